"""select: which candidates are fitted for how long, and which is chosen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from small_data import COUNTS

from hpf_gpu import HPF, HPFEnsemble, plot, select, tuning
from hpf_gpu.answers import ensembles
from hpf_gpu.data.triplets import Columns
from hpf_gpu.metrics import evaluate_ranking, model_scores

MATRIX = sparse.csr_array((COUNTS.Count, (COUNTS.UserId - 100, COUNTS.ItemId - 500)))
QUICK = {"n": 5, "random_seed": 3}
#: With one factor the three groups cannot be told apart.
GRID = {"k": [1, 3], "counts": ["raw", "log1p"]}


def test_the_best_model_is_chosen_and_fitted_to_all_counts() -> None:
    found = select(COUNTS, GRID, maxiter=20, **QUICK)
    assert found.parameters["k"] == 3
    assert isinstance(found.model, HPF)
    given = {"k": 3, "counts": found.parameters["counts"], "maxiter": 20, "verbose": False, "random_seed": 3}
    assert found.model.get_params() == HPF(**given).get_params()
    want = HPF(**given).fit(COUNTS)
    assert list(found.model.user_mapping_) == list(want.user_mapping_)
    np.testing.assert_allclose(found.model.Theta, want.Theta, rtol=1e-6)
    assert select(COUNTS, GRID, refit=False, **QUICK).model is None


def test_fewer_candidates_get_more_iterations() -> None:
    candidates = [{"k": k, "maxiter": 30} for k in (1, 2, 3, 4, 5, 6)]
    found = select(COUNTS, candidates, rounds=(5, 10, None), kept=0.5, **QUICK)
    table = found.table
    assert table.groupby("round").candidate.nunique().tolist() == [6, 3, 1]
    assert table.groupby("round").iterations.first().tolist() == [5, 10, 30]
    for number in (0, 1):
        of_round, of_next = table[table["round"] == number], table[table["round"] == number + 1]
        assert of_next.candidate.isin(of_round.candidate).all()
        lost = of_round[~of_round.candidate.isin(of_next.candidate)]
        assert of_round[of_round.candidate.isin(of_next.candidate)].score.min() >= lost.score.max()
    assert found.parameters["k"] == table[table["round"] == 2].k.item()


def test_what_has_nothing_to_gain_is_not_fitted_again() -> None:
    found = select(COUNTS, [{"k": 3, "maxiter": 4}, {"k": 1}], rounds=(4, 8, None), kept=1.0, **QUICK)
    assert found.table.groupby("candidate").iterations.apply(list).tolist() == [[4], [4, 8, 100]]


@pytest.mark.parametrize("metric", ["precision", "recall", "ndcg", "llk"])
def test_scores_are_those_of_held_out_counts(metric: str) -> None:
    found = select(MATRIX, [{"k": 2, "maxiter": 6}], metric=metric, validation=0.25, **QUICK)
    train, held_out = tuning._split(MATRIX, 0.25, 3, Columns())
    assert (train.toarray() + held_out.toarray() == MATRIX.toarray()).all()
    assert not ((train.toarray() > 0) & (held_out.toarray() > 0)).any()
    assert held_out.nnz == pytest.approx(0.25 * MATRIX.nnz, rel=0.2)
    model = HPF(k=2, maxiter=6, verbose=False, random_seed=3).fit(train)
    want = (
        model.eval_llk(held_out)["llk"]
        if metric == "llk"
        else getattr(evaluate_ranking(model_scores(model), train, held_out, 5), metric)
    )
    assert found.table.score.item() == pytest.approx(want, rel=1e-6)
    assert found.metric == metric


def test_held_out_counts_of_the_caller() -> None:
    held_out = COUNTS.sample(frac=0.3, random_state=1)
    train = COUNTS.drop(held_out.index)
    found = select(train, [{"k": 2, "maxiter": 6}], validation=held_out, metric="llk", **QUICK)
    model = HPF(k=2, maxiter=6, verbose=False, random_seed=3).fit(train)
    # The log-likelihoods are sums over the same pairs in other orders.
    assert found.table.score.item() == pytest.approx(model.eval_llk(held_out)["llk"], rel=1e-5)


def test_weights_and_discounts_are_tried_on_one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    whole = HPFEnsemble.fit
    monkeypatch.setattr(
        HPFEnsemble, "fit", lambda self, *args: fits.append(self.weights) or whole(self, *args)
    )
    scored = []
    rates = ensembles._rates
    monkeypatch.setattr(ensembles, "_rates", lambda *given: scored.append(1) or rates(*given))
    members = [{"k": 0, "neighbours": 5, "maxiter": 4}, {"k": 3, "maxiter": 6}]
    weights = ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0])
    candidates = [
        {"members": members, "weights": one, "discount": discount}
        for one in weights
        for discount in (0.0, 0.3)
    ]
    found = select(COUNTS, candidates, rounds=(None,), **QUICK)
    assert len(fits) == 2  # and one to all counts
    assert len(scored) == len(members)  # each once, for all weights and discounts
    assert found.table.score.nunique() > 2
    best = candidates[found.table.candidate[found.table.chosen].item()]
    assert [member.weight for member in found.model._ensemble.members] == best["weights"]
    alone = select(COUNTS, [best], rounds=(None,), **QUICK)
    assert alone.table.score.item() == pytest.approx(found.table.score[found.table.chosen].item())
    pd.testing.assert_frame_equal(alone.model.recommend(n=3), found.model.recommend(n=3))


def test_ensembles_and_a_discount() -> None:
    members = [{"k": 0, "neighbours": 5}, {"k": 3, "maxiter": 40}]
    candidates = [{"members": members, "weights": [1.0, 0.5], "discount": 0.2}, {"members": 2, "k": 1}]
    found = select(COUNTS, candidates, rounds=(5, None), kept=1.0, maxiter=10, **QUICK)
    of_first = found.table[found.table.candidate == 0]
    assert of_first.iterations.tolist() == [5, 40]
    assert found.discount == 0.2
    assert isinstance(found.model, HPFEnsemble)
    assert [model.maxiter for model in found.model.members_] == [10, 40]
    assert found.parameters["members"] == members
    train, held_out = tuning._split(COUNTS, 0.1, 3, Columns())
    ensemble = HPFEnsemble(members, weights=[1.0, 0.5], maxiter=10, verbose=False, random_seed=3).fit(train)
    want = evaluate_ranking(model_scores(ensemble, 0.2), train, held_out, 5).precision
    assert of_first.score.iloc[-1] == pytest.approx(want, rel=1e-6)


def test_the_default_candidates_work() -> None:
    found = select(COUNTS, rounds=(2,), refit=False, **QUICK)
    assert found.table.candidate.tolist() == list(range(len(tuning.CANDIDATES)))
    assert found.table.score.between(0, 1).all()


def test_the_figure_emphasizes_the_chosen_candidate() -> None:
    """Also where another one had a better score in a round that it did not survive."""
    from matplotlib.figure import Figure

    columns = {"candidate": [0, 1, 0, 1, 2], "round": [0, 0, 1, 1, 0], "iterations": [5, 5, 10, 10, 5]}
    chosen = [False, True, False, True, False]
    table = pd.DataFrame({**columns, "score": [0.4, 0.5, 0.1, 0.2, 0.3], "chosen": chosen})
    ax = Figure().subplots()
    plot.selection(table, ax)
    assert [list(line.get_xdata()) for line in ax.lines] == [[5, 10], [5, 10], [5]]
    widths = [line.get_linewidth() for line in ax.lines]
    assert widths[1] > widths[0] == widths[2]
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="no candidate to draw"):
        plot.selection(table[:0], ax)


def test_the_table_says_which_candidate_was_chosen(monkeypatch) -> None:
    """Candidate 1 has the best of all last scores, but had not survived the round before."""
    scores = iter([0.5, 0.45, 0.1])
    monkeypatch.setattr(tuning, "_scores", lambda *_: [next(scores)])
    candidates = [{"k": 1}, {"k": 2}]
    found = select(COUNTS, candidates, rounds=(1, 2), kept=0.5, refit=False, **QUICK)
    assert found.parameters["k"] == 1
    assert found.table.candidate.tolist() == [0, 1, 0]
    assert found.table.chosen.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"candidates": []}, ValueError, "candidates is empty"),
        ({"candidates": [3]}, TypeError, "candidate 3 is not a dict"),
        ({"candidates": {"k": 3}}, TypeError, r"candidates\['k'\] is 3: pass a list of values"),
        ({"candidates": {"kk": [3]}}, ValueError, "HPF has no parameter 'kk'"),
        ({"candidates": {"k": [-1]}}, ValueError, "k=-1 must be at least 0"),
        ({"candidates": [{"discount": -1}]}, ValueError, "discount=-1 must be at least zero"),
        ({"metric": "auc"}, ValueError, "metric='auc' is unknown"),
        ({"rounds": ()}, ValueError, "rounds is empty"),
        ({"rounds": (0,)}, ValueError, "rounds=0 must be at least 1"),
        ({"kept": 1.5}, ValueError, "kept=1.5 must lie between"),
        ({"validation": 1e-9}, ValueError, "holds out 0 of"),
        ({"metric": "llk", "candidates": GRID}, ValueError, "differ in counts"),
    ],
)
def test_bad_arguments(given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select(COUNTS, **QUICK | given)
