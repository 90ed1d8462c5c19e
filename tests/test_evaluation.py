"""evaluate and compare against slow loops over all cells, and what they say of their data."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from small_data import COUNTS, planted, quick

from hpf_gpu import HPF, Evaluation, HPFEnsemble, compare, evaluate, evaluation, plot
from hpf_gpu.datasets import load_online_retail
from hpf_gpu.metrics import OF_HITS, model_scores, popularity_scores, ranked
from hpf_gpu.splitting import split_by_user

TRAIN, HELD_OUT = split_by_user(COUNTS, fraction=0.3, min_items=12, seed=4)
QUICK: dict[str, Any] = {"backend": "numpy", "use_float": False, "maxiter": 8, "stop_crit": "maxiter"}

NEIGHBOURS = {"k": 0, "neighbours": 4}
MEMBERS = [{}, {"neighbours": 4}, NEIGHBOURS | {"transposed": True}]
MODELS: dict[str, Any] = {
    "factors": {},
    "float32": {"use_float": True},
    "biases": {"bias": True},
    "factors and neighbours": {"neighbours": 4},
    "neighbours": NEIGHBOURS,
    "ones": {"counts": "binary"},
    "logarithms": {"counts": "log1p", "neighbours": 4},
    "ensemble": {"members": MEMBERS, "weights": [1.0, 0.5, 0.25]},
    "ensemble, mean": {"members": MEMBERS, "weights": [1.0, 0.5, 0.25], "combine": "mean"},
}


def fitted(given: dict[str, Any], train: pd.DataFrame = TRAIN) -> Any:
    if "members" in given:
        return HPFEnsemble(**{"k": 3, "random_seed": 1, "verbose": False} | QUICK | given).fit(train)
    return quick(**QUICK | given).fit(train)


def taken(y: float, counts: str) -> float:
    return {"raw": y, "binary": 1.0, "log1p": math.log1p(y)}[counts]


# -- likelihoods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_likelihoods_agree_with_loops_over_all_cells(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("hpf_gpu.answers.ensembles._BLOCK", 7 * 40)  # several blocks of users
    model, counts = fitted(MODELS[name]), MODELS[name].get("counts", "raw")
    got = evaluate(model, TRAIN, HELD_OUT, ("llk", "llk_per_cell", "llk_of_counts"), exposure=0.4)
    items = COUNTS.ItemId.unique()
    seen = set(zip(TRAIN.UserId, TRAIN.ItemId, strict=True))
    held = {(u, i): taken(y, counts) for u, i, y in HELD_OUT.itertuples(index=False)}
    all_cells, cells, of_counts = {}, {}, {}
    for user in HELD_OUT.UserId.unique():
        rates = dict(zip(items, np.asarray(model.predict(user, items), np.float64), strict=True))
        left = [item for item in items if (user, item) not in seen]
        cells[user] = len(left)
        all_cells[user] = sum(log_poisson(held.get((user, item), 0.0), 0.4 * rates[item]) for item in left)
        of_counts[user] = sum(log_poisson(y, rates[i]) for (u, i), y in held.items() if u == user)
    table = got.per_user.loc[list(cells)]
    # float32 rates have an error of 1e-7 each, and the sum over all cells is larger than what is left of it.
    close = {"rtol": 1e-5 if name == "float32" else 1e-10}
    np.testing.assert_allclose(table.llk, list(all_cells.values()), **close)
    np.testing.assert_allclose(table.llk_of_counts, list(of_counts.values()), **close)
    np.testing.assert_array_equal(table.cells, list(cells.values()))
    assert got.n_users == len(got.per_user) == len(cells) < COUNTS.UserId.nunique()
    assert got["llk"] == pytest.approx(sum(all_cells.values()), rel=close["rtol"])
    assert got["llk_per_cell"] == pytest.approx(got["llk"] / sum(cells.values()))
    assert got["llk_of_counts"] == pytest.approx(model.eval_llk(HELD_OUT, full_llk=True)["llk"])
    assert got.exposure == 0.4


def log_poisson(y: float, rate: float) -> float:
    """ln of the density of Poisson(rate) at y, which may be a fraction."""
    return y * math.log(rate) - rate - math.lgamma(y + 1.0)


def times(model: HPF, factor: float) -> HPF:
    """The model with all expected counts multiplied by a factor."""
    state = model._require_fitted()
    return HPF._of(model._settings(), replace(state, theta=state.theta * factor))


def test_too_large_rates_are_seen_in_zeros_alone() -> None:
    """Four times Theta "improves" the log-likelihood of the held-out counts, and lowers that of all cells."""
    model = fitted({})
    fair, inflated = (evaluate(one, TRAIN, HELD_OUT) for one in (model, times(model, 4.0)))
    assert inflated["llk_of_counts"] > fair["llk_of_counts"]
    assert inflated["llk"] < fair["llk"]
    assert inflated["llk_per_cell"] < fair["llk_per_cell"]
    for metric in OF_HITS:
        assert inflated[metric] == fair[metric]


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("held_out", ["pairs", "units of counts"])
def test_true_rates_are_the_best_with_the_exposure_of_the_data(held_out: str, share: float) -> None:
    """Held-out counts are few, so that without an exposure much smaller rates than the true ones are best."""
    rng = np.random.default_rng(6)
    theta, beta = rng.gamma(0.5, 0.2, (400, 3)), rng.gamma(0.5, 0.3, (300, 3))
    counts = rng.poisson(theta @ beta.T)
    if held_out == "pairs":
        later = counts * (rng.random(counts.shape) < share)
    else:  # as by time: a pair may be in both parts
        later = rng.binomial(counts, share)
    train, later = sparse.csr_array(counts - later), sparse.csr_array(later)
    model = HPF(k=3, maxiter=1, stop_crit="maxiter", verbose=False, use_float=False).fit(train)
    # What a fit estimates are the rates of the training counts.
    of_train = replace(model._require_fitted(), theta=theta * (1 - share), beta=beta)
    true = HPF._of(model._settings(), of_train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with_exposure, without = (
            [evaluate(times(true, by), train, later, ("llk",), exposure=s)["llk"] for by in SCALES]
            for s in (None, 1.0)
        )
    assert SCALES[int(np.argmax(with_exposure))] == 1.0
    assert SCALES[int(np.argmax(without))] <= 0.5


SCALES = (0.1, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


def test_exposure_is_the_ratio_of_the_counts_of_the_same_users() -> None:
    users = HELD_OUT.UserId.unique()
    got = evaluate(fitted({}), TRAIN, HELD_OUT, ("llk",))
    assert got.exposure == HELD_OUT.Count.sum() / TRAIN.Count[TRAIN.UserId.isin(users)].sum()
    of_ones = evaluate(fitted({"counts": "binary"}), TRAIN, HELD_OUT, ("llk",))
    assert of_ones.exposure == len(HELD_OUT) / TRAIN.UserId.isin(users).sum()
    assert np.isnan(evaluate(fitted({}), TRAIN, HELD_OUT, ("recall",)).exposure)


# -- lists ---------------------------------------------------------------------------------------


def test_figures_of_lists_are_means_over_users() -> None:
    model = fitted({"neighbours": 4})
    got = evaluate(model, TRAIN, HELD_OUT, n=5)
    assert list(got.figures) == list(evaluation.METRICS)
    rows, columns = (
        {user: row for row, user in enumerate(model.user_mapping_)},
        {item: column for column, item in enumerate(model.item_mapping_)},
    )
    train, held_out = (
        sparse.csr_array(
            (np.ones(len(one), bool), (one.UserId.map(rows), one.ItemId.map(columns))),
            shape=(model.nusers, model.nitems),
        )
        for one in (TRAIN, HELD_OUT)
    )
    lists = ranked(model_scores(model), train, held_out, 5, with_auc=True)
    for metric, of_hits in OF_HITS.items():
        values = of_hits(lists.hits, lists.n_relevant)
        np.testing.assert_array_equal(got.per_user[metric], values)
        assert got[metric] == pytest.approx(values.mean())
    assert got.per_user.index.tolist() == model.user_mapping_[lists.users].tolist()
    assert got.per_user.index.name == "UserId"
    assert got["auc"] == pytest.approx(np.nanmean(lists.auc))
    assert got["coverage"] == len(np.unique(lists.items)) / model.nitems
    n_with = TRAIN.groupby("ItemId").size()[model.item_mapping_].to_numpy()
    assert got["novelty"] == pytest.approx(-np.log2(n_with[lists.items] / model.nusers).mean())
    assert (got.n, got.n_users, got.n_unknown, got.n_repeated) == (5, len(lists.users), 0, 0)


def test_a_matrix_and_a_frame_give_the_same_figures() -> None:
    def matrix(frame: pd.DataFrame) -> sparse.csr_array:
        return sparse.csr_array((frame.Count, (frame.UserId - 100, frame.ItemId - 500)), shape=(60, 40))

    numbered = [
        frame.assign(UserId=frame.UserId - 100, ItemId=frame.ItemId - 500) for frame in (TRAIN, HELD_OUT)
    ]
    model = quick(**QUICK).fit(matrix(TRAIN))
    got, same = evaluate(model, matrix(TRAIN), matrix(HELD_OUT)), evaluate(model, *numbered)
    assert got.figures == pytest.approx(same.figures)
    # A function has the rows of the matrix, or those of a fit to the frame.
    popular = evaluate(popularity_scores(matrix(TRAIN)), matrix(TRAIN), matrix(HELD_OUT))
    of_frame = evaluate(popularity_scores(TRAIN), TRAIN, HELD_OUT)
    assert list(popular.figures) == list(evaluation.LISTS)
    for metric in ("auc", "novelty"):  # equal scores are listed by number, which differs
        assert popular[metric] == pytest.approx(of_frame[metric])
    by_discount = evaluate(model_scores(model, 0.3), matrix(TRAIN), matrix(HELD_OUT))
    assert by_discount["novelty"] > got["novelty"]


def test_lists_may_be_longer_than_the_catalogue() -> None:
    got = evaluate(fitted({}), TRAIN, HELD_OUT, ("recall", "precision", "hit_rate", "coverage"), n=100)
    assert (got["recall"], got["hit_rate"], got["coverage"]) == (1, 1, 1)
    n_held_out = HELD_OUT.groupby("UserId").size()
    assert got["precision"] == pytest.approx(n_held_out.mean() / 100)


def test_ids_of_any_type() -> None:
    as_tuples = [one.assign(UserId=[("u", user) for user in one.UserId]) for one in (TRAIN, HELD_OUT)]
    model = quick(**QUICK).fit(as_tuples[0])
    got = evaluate(model, *as_tuples)
    assert set(got.per_user.index) == set(as_tuples[1].UserId)
    assert got.figures == pytest.approx(evaluate(fitted({}), TRAIN, HELD_OUT).figures)


# -- what is left out ------------------------------------------------------------------------------


def test_counts_that_tell_nothing_are_left_out_and_said() -> None:
    model = fitted({})
    strange = pd.DataFrame({"UserId": [100, 7, 7], "ItemId": [-1, 500, -1], "Count": [2, 3, 0]})
    with pytest.warns(UserWarning, match="2 of the .* counts of held_out were left out: their user or item"):
        unknown = evaluate(model, TRAIN, pd.concat([HELD_OUT, strange]))
    with pytest.warns(UserWarning, match="5 counts of held_out were left out: their pairs are in train"):
        repeated = evaluate(
            model, TRAIN, pd.concat([HELD_OUT, TRAIN[:5]]), exposure=evaluate(model, TRAIN, HELD_OUT).exposure
        )
    plain = evaluate(model, TRAIN, HELD_OUT)
    assert plain.figures == unknown.figures == repeated.figures
    assert (unknown.n_unknown, unknown.n_repeated) == (2, 0)
    assert (repeated.n_unknown, repeated.n_repeated) == (0, 5)
    assert repr(unknown).splitlines()[0].endswith("lists of 20, 2 held-out counts left out")


def test_pairs_of_both_parts_still_tell_of_the_exposure() -> None:
    """As when the next month is held out, in which users do again what they did before."""
    again = pd.concat([HELD_OUT, TRAIN.assign(Count=TRAIN.Count / 2)])
    with pytest.warns(UserWarning, match="their pairs are in train"):
        got = evaluate(fitted({}), TRAIN, again, ("llk",))
    of_users = TRAIN.Count[TRAIN.UserId.isin(HELD_OUT.UserId)].sum()
    assert got.exposure == pytest.approx(HELD_OUT.Count.sum() / of_users + 0.5)


def test_what_is_left_out_of_a_comparison_is_said_once() -> None:
    models = {"a": fitted({}), "b": popularity_scores(TRAIN), "c": fitted(NEIGHBOURS)}
    with pytest.warns(UserWarning, match="left out") as caught:
        compare(models, TRAIN, pd.concat([HELD_OUT, TRAIN[:5], ELSEWHERE[:3]]), ("recall",))
    assert len(caught) == 2
    assert {warning.filename for warning in caught} == {__file__}


def test_input_is_not_modified() -> None:
    before = TRAIN.copy(), HELD_OUT.copy()
    evaluate(fitted({"counts": "binary"}), TRAIN, HELD_OUT)
    for frame, copy in zip((TRAIN, HELD_OUT), before, strict=True):
        pd.testing.assert_frame_equal(frame, copy)


# -- standard errors and comparisons -------------------------------------------------------------------


def test_standard_errors_of_means_sums_and_ratios() -> None:
    got = evaluate(fitted({}), TRAIN, HELD_OUT)
    users = got.n_users
    for metric in (*OF_HITS, "auc", "novelty"):
        assert got.errors[metric] == pytest.approx(got.per_user[metric].sem(), rel=1e-9), metric
    for metric in ("llk", "llk_of_counts"):
        assert got.errors[metric] == pytest.approx(users * got.per_user[metric].sem(), rel=1e-9)
    assert np.isnan(got.errors["coverage"])
    table = got.per_user
    without = np.array(
        [
            (table.llk.sum() - llk) / (table.cells.sum() - n)
            for llk, n in zip(table.llk, table.cells, strict=True)
        ]
    )
    jackknife = np.sqrt((users - 1) / users * ((without - without.mean()) ** 2).sum())
    # The delta method and the jackknife differ by terms of the order 1/users: 0.2 % here.
    assert got.errors["llk_per_cell"] == pytest.approx(jackknife, rel=0.01)
    frame = got.to_frame().set_index("metric")
    assert list(frame.columns) == ["value", "error", "low", "high"]
    ends = stats.norm.interval(0.95, got["recall"], got.errors["recall"])
    assert frame.loc["recall", ["low", "high"]].tolist() == pytest.approx(ends)


def test_users_without_a_value_have_no_part_in_a_mean() -> None:
    """Whoever has nothing but held-out items left has no AUC."""
    train = sparse.csr_array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 1, 1]])
    held_out = sparse.csr_array([[0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    scores = np.array([[0, 2.0, 1.0]] * 4)
    got = evaluate(lambda users: scores[users], train, held_out, ("auc", "mrr"), n=1)
    assert got.per_user.auc.tolist() == pytest.approx([np.nan, 1.0, 0.0], nan_ok=True)
    assert (got["auc"], got["mrr"]) == (0.5, 2 / 3)
    assert got.errors["auc"] == pytest.approx(np.sqrt(3 / 2 * 2 * 0.25**2))


def test_one_user_has_no_standard_error() -> None:
    got = evaluate(fitted({}), TRAIN, HELD_OUT[:1])
    assert all(np.isnan(error) for error in got.errors.values())
    assert got.n_users == 1
    assert "±" not in repr(got)


def test_differences_are_paired_by_user() -> None:
    models = {"factors": fitted({}), "popular": popularity_scores(TRAIN), "neighbours": fitted(NEIGHBOURS)}
    table = compare(models, TRAIN, HELD_OUT, n=5)
    assert table.model.tolist() == list(models) * len(evaluation.METRICS)
    found = {name: evaluate(model, TRAIN, HELD_OUT, n=5) for name, model in models.items()}
    rows = table.set_index(["metric", "model"])
    for metric in ("recall", "auc", "llk_of_counts"):
        for name, one in found.items():
            row = rows.loc[(metric, name)]
            if metric not in one.figures:
                assert row.drop("users").isna().all()
                continue
            assert row["value"] == one[metric]
            by = (one.per_user[metric] - found["factors"].per_user[metric])[:]
            scale = one.n_users if metric == "llk_of_counts" else 1
            assert row["difference"] == pytest.approx(scale * by.mean(), abs=1e-12)
            half = (row["difference_high"] - row["difference_low"]) / 2
            assert half == pytest.approx(1.959964 * scale * by.sem(), rel=1e-5, abs=1e-12)
    some = compare(models, TRAIN, HELD_OUT, ("llk", "recall"), n=5)
    assert some.metric.tolist() == ["llk"] * 3 + ["recall"] * 3
    assert some.value.isna().tolist() == [False, True, False, False, False, False]
    assert rows.loc[("coverage", "popular"), "difference"] < 0
    assert np.isnan(rows.loc[("coverage", "popular"), "difference_low"])
    assert (table.users == len(HELD_OUT.UserId.unique())).all()


def test_counts_are_read_once_for_models_of_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """And once more for each other thing that models take for counts, and for functions."""
    reads = []
    read = evaluation.read

    def counted(data: Any, **given: Any) -> Any:
        reads.append(given["name"])
        return read(data, **given)

    monkeypatch.setattr(evaluation, "read", counted)
    models = {str(seed): fitted({"random_seed": seed}) for seed in range(3)}
    models["ones"] = fitted({"counts": "binary"})
    together = compare(models, TRAIN, HELD_OUT, ("recall", "ndcg"), n=5).set_index(["metric", "model"])
    assert reads == ["train", "held_out"] * 2
    reversed_ids = fitted({}, TRAIN[::-1])
    compare({"one": models["0"], "other": reversed_ids}, TRAIN, HELD_OUT, ("recall",), n=5)
    assert reads == ["train", "held_out"] * 4
    for name, model in models.items():
        alone = evaluate(model, TRAIN, HELD_OUT, ("recall", "ndcg"), n=5)
        assert together.loc[("ndcg", name), "value"] == alone["ndcg"]


@pytest.mark.parametrize("name", ["factors", "neighbours", "ones", "ensemble, mean", "fixed"])
def test_predictive_likelihoods_agree_with_loops_over_all_cells(name: str, monkeypatch: Any) -> None:
    """Of negative binomial distributions with the moments of the rates, in mixtures of the members."""
    monkeypatch.setattr("hpf_gpu.evaluation._BLOCK_CELLS", 7 * 40)  # several blocks of users
    given = MODELS.get(name, {})
    model = fitted(given) if name in MODELS else quick(**QUICK).fit(TRAIN, fixed_items=fixed_factors())
    got = evaluate(model, TRAIN, HELD_OUT, ("llk", "llk_predictive"), exposure=0.4)
    items = COUNTS.ItemId.unique()
    cells = pd.MultiIndex.from_product([got.per_user.index, items], names=["UserId", "ItemId"])
    cells = cells[~cells.isin(TRAIN.set_index(["UserId", "ItemId"]).index)].to_frame(index=False)
    y = cells.merge(HELD_OUT, "left").Count.fillna(0.0)
    y = np.array([taken(one, given.get("counts", "raw")) if one else 0.0 for one in y])
    members = model.members_ if "members" in given else [model]
    weights = np.array(given.get("weights", [1.0])) / sum(given.get("weights", [1.0]))
    probability = np.zeros(len(y))
    for member, weight, own in zip(members, weights, given.get("members", [{}]), strict=True):
        pair = cells.UserId, cells.ItemId
        rates = member.predict_interval(*(pair[::-1] if own.get("transposed") else pair))
        shape = (rates.Mean / rates.Std) ** 2
        probability += weight * stats.nbinom.pmf(y, shape, shape / (shape + 0.4 * rates.Mean))
    want = np.bincount(cells.UserId.factorize()[0], np.log(probability))
    np.testing.assert_allclose(got.per_user.llk_predictive, want, rtol=1e-6)
    assert got["llk_predictive"] == pytest.approx(want.sum(), rel=1e-6)


def fixed_factors() -> pd.DataFrame:
    items = TRAIN.ItemId.unique()
    return pd.DataFrame({k: 1.0 + (items % 3 == k) for k in range(3)}, index=items)


def test_the_predictive_likelihood_is_that_of_draws() -> None:
    """The mean of Poisson probabilities over draws of the rates, which are nearly gamma variables."""
    model = fitted({})
    got = evaluate(model, TRAIN, HELD_OUT, ("llk", "llk_predictive"), exposure=1.0).per_user
    users, items = got.index[:6], COUNTS.ItemId.unique()
    pairs = pd.MultiIndex.from_product([users, items], names=["UserId", "ItemId"])
    pairs = pairs[~pairs.isin(TRAIN.set_index(["UserId", "ItemId"]).index)].to_frame(index=False)
    y = pairs.merge(HELD_OUT, "left").Count.fillna(0)
    rates = model.sample_rates(pairs.UserId, pairs.ItemId, 4000, random_state=3)
    of_draws = np.log(stats.poisson.pmf(y.to_numpy(), rates).mean(axis=0))
    # The largest relative difference measured is 0.003, and 0.0007 with ten times as many draws.
    want = pd.Series(of_draws).groupby(pairs.UserId, sort=False).sum()
    np.testing.assert_allclose(got.llk_predictive[:6], want, rtol=0.01)
    assert (got.llk_predictive > got.llk).mean() > 0.9  # one that is sure of its rates loses more


def test_the_predictive_likelihood_is_not_computed_unless_asked_for() -> None:
    assert "llk_predictive" not in evaluate(fitted({}), TRAIN, HELD_OUT).figures
    assert "llk_predictive" not in set(compare({"one": fitted({})}, TRAIN, HELD_OUT).metric)
    lean = fitted({"keep_all_objs": False})
    with pytest.raises(ValueError, match="uncertainty needs shapes and rates: fit with keep_all_objs=True"):
        evaluate(lean, TRAIN, HELD_OUT, "llk_predictive")


@pytest.mark.parametrize("members", [{}, {"members": [{}, {"transposed": True}]}], ids=["one", "ensemble"])
def test_held_out_counts_that_were_fitted_are_said(members: dict[str, Any]) -> None:
    """Figures of a model that has been fitted to all counts are too good, and nothing else shows it."""
    leaky, fair = fitted(members, COUNTS), fitted(members)
    said = (
        f"{len(HELD_OUT)} of the {len(HELD_OUT)} counts of held_out are of pairs that the model was fitted to"
    )
    with pytest.warns(UserWarning, match=said):
        evaluate(leaky, TRAIN, HELD_OUT, "recall")
    with pytest.warns(UserWarning, match="'leaky' was fitted to"):
        compare({"fair": fair, "leaky": leaky}, TRAIN, HELD_OUT, "recall")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(fair, TRAIN, HELD_OUT, "recall")
        evaluate(fitted(members | {"keep_data": False}, COUNTS), TRAIN, HELD_OUT, "auc")  # it cannot tell


def test_models_that_take_counts_differently_share_no_likelihood() -> None:
    models = {"raw": fitted({}), "ones": fitted({"counts": "binary"})}
    assert set(compare(models, TRAIN, HELD_OUT).metric) == set(evaluation.LISTS)
    with pytest.raises(ValueError, match="llk of models with counts='binary' and 'raw' cannot be compared"):
        compare(models, TRAIN, HELD_OUT, ("recall", "llk"))
    mixed = HPFEnsemble([{}, {"counts": "log1p"}], k=2, verbose=False, **QUICK).fit(TRAIN)
    assert list(evaluate(mixed, TRAIN, HELD_OUT).figures) == list(evaluation.LISTS)
    with pytest.raises(ValueError, match="no llk, because members differ in counts: 'log1p' and 'raw'"):
        evaluate(mixed, TRAIN, HELD_OUT, ("llk",))


def test_more_users_make_narrower_intervals_that_hold_the_truth() -> None:
    """In 100 draws of users with known figures, 95 % intervals hold the mean of all in 88 or more."""
    rng = np.random.default_rng(3)
    per_user = pd.DataFrame({"recall": rng.beta(0.5, 2, 5000), "llk_per_cell": -rng.gamma(2.0, 1.0, 5000)})
    per_user["cells"] = rng.integers(50, 150, 5000)
    for metric in ("recall", "llk_per_cell"):
        truth, inside = evaluation._figure(per_user, metric), 0
        for _ in range(100):
            part = per_user.sample(100, random_state=rng)
            error = evaluation._error(evaluation._influence(part, metric))
            inside += abs(evaluation._figure(part, metric) - truth) < 1.96 * error
        assert inside >= 88, metric


# -- what is shown and refused -----------------------------------------------------------------------


def test_what_is_shown() -> None:
    got = evaluate(fitted({}), TRAIN, HELD_OUT, ("recall", "coverage", "llk"), n=5)
    head, recall, cover, llk = repr(got).splitlines()
    assert head == f"Evaluation of {got.n_users} users, lists of 5"
    assert recall == f"  recall    {got['recall']:.5g} ± {got.errors['recall']:.2g}"
    assert cover == f"  coverage  {got['coverage']:.5g}"
    assert llk.startswith("  llk ")
    assert isinstance(got, Evaluation)
    assert got.per_user.columns.tolist() == ["recall", "llk", "cells"]
    assert list(evaluate(fitted({}), TRAIN, HELD_OUT, "recall").figures) == ["recall"]


def test_the_figure_of_a_comparison() -> None:
    from matplotlib.figure import Figure

    table = compare({"a": fitted({}), "b": popularity_scores(TRAIN)}, TRAIN, HELD_OUT, ("recall", "coverage"))
    ax = Figure().subplots()
    plot.comparison(table, ax)
    of_recall = table[table.metric == "recall"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    drawn = {tuple(line.get_xdata()) for line in ax.lines}
    assert {(low, high) for low, high in zip(of_recall.low, of_recall.high, strict=True)} <= drawn
    assert {(value,) for value in of_recall.value} <= drawn
    assert ax.get_xlabel() == "recall, with 95 % interval"
    assert ax.yaxis_inverted()
    other = Figure().subplots()
    plot.comparison(table, other, "coverage")
    assert other.get_xlabel() == "coverage"
    with pytest.raises(ValueError, match="'auc' is not in the table; it has 'recall', 'coverage'"):
        plot.comparison(table, ax, "auc")
    with pytest.raises(ValueError, match="the table is empty"):
        plot.comparison(table[:0], ax)


ELSEWHERE = planted().assign(UserId=-1)


@pytest.mark.filterwarnings("ignore:.* counts of .* were left out")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metrics": ("recal",)}, ValueError, "metric 'recal' is unknown; there are normalized_precision,"),
        ({"metrics": ()}, ValueError, "metrics is empty"),
        ({"n": 0}, ValueError, "n=0 must be at least 1"),
        ({"exposure": 0.0}, ValueError, "exposure=0.0 must be above zero"),
        ({"exposure": math.nan}, ValueError, "exposure=nan must be above zero"),
        ({"held_out": ELSEWHERE}, ValueError, "held_out has no count whose user and item are both"),
        ({"held_out": TRAIN}, ValueError, "all pairs of held_out are also in train"),
        ({"train": ELSEWHERE}, ValueError, "exposure cannot be estimated"),
        ({"model": HPF()}, ValueError, "this HPF has not been fitted"),
        ({"model": HPFEnsemble()}, ValueError, "this HPFEnsemble has not been fitted"),
        ({"model": "popular"}, TypeError, "a model is HPF, HPFEnsemble or a function .* not 'popular'"),
        (
            {"model": popularity_scores(TRAIN), "metrics": ("llk",)},
            ValueError,
            "there is no llk, because scores of a function need not be expected counts",
        ),
    ],
)
def test_what_cannot_be_evaluated(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": fitted({}), "train": TRAIN, "held_out": HELD_OUT} | change
    with pytest.raises(error, match=message):
        evaluate(**given)


def test_nothing_cannot_be_compared() -> None:
    with pytest.raises(TypeError, match="models is a list: pass a dict of models by name"):
        compare([], None, None)
    with pytest.raises(ValueError, match="models is empty"):
        compare({}, TRAIN, HELD_OUT)


def test_the_page(tmp_path: Path, monkeypatch: Any) -> None:
    """What docs/evaluation.md shows runs, here with some of the customers and fits of few iterations."""
    retail = load_online_retail()
    some = replace(retail, purchases=retail.purchases[retail.purchases.UserId < 13000])
    short = {"maxiter": 2, "stop_crit": "maxiter"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpf_gpu.HPF", lambda **given: HPF(**given | short))
    monkeypatch.setattr("hpf_gpu.datasets.load_online_retail", lambda: some)
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    code = "".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    with pytest.warns(UserWarning, match="counts of held_out were left out"):
        exec(compile(code, "evaluation.md", "exec"), names)
    assert set(names["table"].model) == set(names["models"])
    assert names["result"].n_users == names["held_out"].UserId.nunique()
    assert Path("comparison.png").exists()
