"""Every parameter reaches what it is for, on every path: fits, batches, fold-in, predictions and files."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import gammaln

from hpf_gpu import HPF, backends
from hpf_gpu.backends.numpy_backend import NumpyBackend
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.fitting import training
from hpf_gpu.fitting.progress import IterationsShown, Progress
from hpf_gpu.model.convergence import Check
from hpf_gpu.model.fitted import checked_mean
from hpf_gpu.model.settings import MAX_PRIOR, MIN_PRIOR, default_step_size

rng = np.random.default_rng(8)
PLAYS = pd.DataFrame({"UserId": rng.integers(0, 12, 90), "ItemId": rng.integers(0, 9, 90)})
PLAYS = PLAYS.drop_duplicates(ignore_index=True)
PLAYS["Count"] = rng.integers(1, 7, len(PLAYS)).astype(float)
NEW = pd.DataFrame({"UserId": [77, 77, 78], "ItemId": PLAYS.ItemId[:3], "Count": [3.0, 1.0, 2.0]})


def quick(**arguments: Any) -> HPF:
    return HPF(**{"k": 3, "maxiter": 4, "random_seed": 1, "verbose": False} | arguments)


@pytest.fixture(scope="module")
def fitted() -> HPF:
    """A fit that nobody may change."""
    return quick().fit(PLAYS)


# -- what is computed, and by what ----------------------------------------------------------------

#: Whatever computes φ of counts.
ALLOCATING = {
    "fit": lambda model: model.fit(PLAYS),
    "epoch": lambda model: model.set_params(users_per_batch=5).fit(PLAYS),
    "partial_fit": lambda model: model.partial_fit(PLAYS, nusers=12, nitems=9),
    "transform": lambda model: model.transform(NEW),
    "transform_items": lambda model: model.transform_items(PLAYS[:5].assign(ItemId=99)),
    "predict_factors": lambda model: model.predict_factors(NEW[:2]),
    "add_user": lambda model: model.add_user(77, NEW[:2]),
    "add_user_and_move": lambda model: model.add_user(77, NEW[:2], update_all_params=True),
    "add_users": lambda model: model.add_users(NEW),
}
FROM_A_FIT = [name for name in ALLOCATING if name not in ("fit", "epoch")]


def fresh(**arguments: Any) -> Any:
    given = {"k": 3, "maxiter": 4, "random_seed": 1, "verbose": False, "backend": "numpy"}
    return HPF(**given | arguments).fit(PLAYS)


@pytest.mark.parametrize("way", sorted(ALLOCATING))
@pytest.mark.parametrize("sum_exp_trick", [False, True])
def test_sum_exp_trick_is_for_every_count(way: str, sum_exp_trick: bool, monkeypatch: Any) -> None:
    model, exact, allocate = fresh(sum_exp_trick=sum_exp_trick), [], NumpyBackend.allocate

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        exact.append(options.get("exact", False))
        return allocate(self, *arguments, **options)

    monkeypatch.setattr(NumpyBackend, "allocate", spy)
    ALLOCATING[way](model)
    assert set(exact) == {sum_exp_trick}


def test_a_batch_takes_five_updates_before_the_items_move(monkeypatch: Any) -> None:
    model, sides, allocate = fresh(), [], NumpyBackend.allocate

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        sides.append(options["side"])
        return allocate(self, *arguments, **options)

    monkeypatch.setattr(NumpyBackend, "allocate", spy)
    model.partial_fit(PLAYS)
    assert sides == [*["users"] * 4, "both"]
    sides.clear()
    model.set_params(schedule="alternating").partial_fit(PLAYS)
    assert sides == [*["users"] * 5, "items"]


@pytest.mark.parametrize("given", [1, 2, 0, -1, None])
def test_so_many_threads_as_asked_for(given: Any, monkeypatch: Any) -> None:
    model, asked, choose = fresh(), [], backends.choose

    def spy(name: str, dtype: Any, threads: int | None = None, **options: Any) -> Any:
        asked.append(threads)
        return choose(name, dtype, threads, **options)

    monkeypatch.setattr(backends, "choose", spy)
    want = given if given is not None and given >= 1 else None
    for way in (lambda: model.predict(0, 0), lambda: model.topN(0, n=1), lambda: model.transform(NEW)):
        asked.clear()
        model.ncores = given
        way()
        assert set(asked) == {want}
    model.ncores = 3
    for call in (
        lambda: model.transform(NEW, ncores=given),
        lambda: model.transform_items(PLAYS[:5].assign(ItemId=99), ncores=given),
        lambda: copy.copy(model).add_users(NEW, ncores=given),
    ):
        asked.clear()
        call()
        assert asked == [3 if given is None else want]
    for call in (
        lambda: model.predict_factors(NEW[:2], ncores=given),
        lambda: copy.copy(model).add_user(77, NEW[:2], ncores=given, update_all_params=True),
    ):
        if given is not None:
            asked.clear()
            call()
            assert asked == [want]


def test_what_ranks_and_predicts(fitted: HPF, monkeypatch: Any) -> None:
    """The host predicts; a GPU that fitted ranks for a thousand users or more; NumPy's models stay there."""
    asked, choose = [], backends.choose

    def spy(name: str, *arguments: Any, **options: Any) -> Any:
        asked.append((name, options["among"]))
        return choose(name, *arguments, **options | {"among": backends.ON_HOST})

    monkeypatch.setattr(backends, "choose", spy)
    for fitted_by, name, many in (
        ("cuda", "auto", backends.NAMES),
        ("openmp", "auto", backends.ON_HOST),
        ("numpy", "numpy", backends.ON_HOST),
    ):
        model = copy.copy(fitted)
        model._fitted = dataclasses.replace(fitted._fitted, backend=fitted_by)
        asked.clear()
        model.predict(0, 0)
        model.topN([0] * 999, n=1)
        model.topN([0] * 1000, n=1)
        assert asked == [(name, backends.ON_HOST), (name, backends.ON_HOST), (name, many)]


@pytest.mark.parametrize("use_float", [True, False])
def test_full_llk_counts_the_factorials(use_float: bool) -> None:
    counts = PLAYS.assign(Count=PLAYS.Count * 1e5)
    constant = gammaln(counts.Count + 1).sum()
    plain, full = (
        quick(use_float=use_float, full_llk=full, check_every=1, compute_elbo=True).fit(counts, counts)
        for full in (False, True)
    )
    # Sums in float64 of the same numbers but for the constant, which is a good part of each.
    np.testing.assert_allclose(plain.train_llk - full.train_llk, constant, rtol=1e-12)
    np.testing.assert_allclose(plain.history_.val_llk - full.history_.val_llk, constant, rtol=1e-12)
    np.testing.assert_array_equal(plain.history_.elbo, full.history_.elbo)
    without, whole = (plain.eval_llk(counts, full_llk=full)["llk"] for full in (False, True))
    np.testing.assert_allclose(without - whole, constant, rtol=1e-12)
    assert plain.eval_llk(counts) == full.eval_llk(counts)


# -- checks and what is shown -----------------------------------------------------------------------


def test_where_only_maxiter_ends_a_fit_checks_are_for_show() -> None:
    arguments = {"stop_crit": "maxiter", "maxiter": 5, "check_every": 2}
    assert quick(**arguments).fit(PLAYS).history_.iteration.tolist() == [5]
    assert quick(**arguments, verbose=True).fit(PLAYS).history_.iteration.tolist() == [2, 4, 5]
    arguments["check_every"] = None
    assert quick(**arguments, verbose=True).fit(PLAYS).history_.iteration.tolist() == [5]


class Counted:
    """A backend that counts how often each of its operations is used."""

    def __init__(self, backend: Backend, calls: Counter[str]) -> None:
        self._backend, self._calls = backend, calls

    def __getattr__(self, name: str) -> Any:
        self._calls[name] += 1
        return getattr(self._backend, name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the fits of a test have used each operation of their backend."""
    found: Counter[str] = Counter()
    create = training.working_backend
    monkeypatch.setattr(training, "working_backend", lambda *given: Counted(create(*given), found))
    return found


@pytest.mark.parametrize(
    ("arguments", "checks", "elbos"),
    [
        ({}, 3, 1),
        ({"compute_elbo": True}, 3, 3),
        ({"stop_crit": "elbo"}, 3, 3),
        ({"stop_crit": "elbo", "compute_elbo": True}, 3, 3),
        ({"stop_crit": "val-llk"}, 3, 1),
        ({"stop_crit": "diff-norm"}, 3, 1),
        ({"stop_crit": "maxiter"}, 1, 1),
        ({"stop_crit": "maxiter", "verbose": True}, 3, 1),
        ({"stop_crit": "maxiter", "verbose": True, "compute_elbo": True}, 3, 3),
        ({"users_per_batch": 5}, 3, 1),
        ({"stop_thr": 1e9}, 2, 1),
        ({"stop_thr": 1e9, "compute_elbo": True}, 2, 2),
    ],
)  # fmt: skip
def test_a_check_computes_what_is_asked_for(
    arguments: dict[str, Any], checks: int, elbos: int, calls: Counter[str], backend_name: str
) -> None:
    given = {"maxiter": 30, "check_every": 10, "stop_thr": 1e-9, "backend": backend_name}
    model = quick(**given | arguments).fit(PLAYS, PLAYS[::3])
    assert calls["log_rate_sum"] == len(model.history_) == checks
    assert calls["log_normalizer_sum"] == elbos
    assert calls["gamma_elbo"] == 2 * elbos
    # E[θ] and E[β] once a check and once at the end; diff-norm also needs E[θ] before the first iteration.
    assert calls["mean"] == 2 * checks + 2 + (model.stop_crit == "diff-norm")
    assert model.history_.elbo.notna().tolist() == [False] * (checks - elbos) + [True] * elbos
    assert np.isfinite(model.history_.llk).all()


def test_the_last_elbo_does_not_depend_on_the_others(backend_name: str) -> None:
    arguments = {"maxiter": 9, "check_every": 3, "stop_thr": 1e-9, "backend": backend_name}
    last, every = (quick(**arguments, compute_elbo=flag).fit(PLAYS).history_ for flag in (False, True))
    assert last.elbo.isna().tolist() == [True, True, False]
    assert last.elbo.iloc[-1] == every.elbo.iloc[-1]
    pd.testing.assert_series_equal(last.llk, every.llk)


def test_checks_of_every_rule_have_the_same_likelihood(backend_name: str) -> None:
    """diff-norm uses the E[θ] of the check for the change since the last one, too."""
    given = {"check_every": 2, "stop_thr": 1e-9, "use_float": False, "verbose": True, "backend": backend_name}
    rules = ("train-llk", "maxiter", "val-llk", "elbo", "diff-norm")
    first, *others = (quick(**given, stop_crit=rule).fit(PLAYS, PLAYS[::3]).history_ for rule in rules)
    for other in others:
        for name in ("llk", "val_llk"):
            assert other[name].tolist() == pytest.approx(first[name].tolist(), rel=1e-12)


@pytest.mark.parametrize("compute_elbo", [False, True])
@pytest.mark.parametrize("stop_at", [None, 4, 5])
def test_a_callback_hears_the_elbos_that_were_asked_for(compute_elbo: bool, stop_at: int | None) -> None:
    heard: dict[int, float] = {}

    def callback(check: Check) -> bool:
        heard[check.iteration] = check.elbo
        return check.iteration == stop_at

    given = {"maxiter": 6, "check_every": 2, "stop_thr": 1e-9, "compute_elbo": compute_elbo}
    model = quick(**given).fit(PLAYS, callback=callback)
    found = {iteration: elbo for iteration, elbo in heard.items() if not np.isnan(elbo)}
    rows = dict(zip(model.history_.iteration, model.history_.elbo, strict=True))
    assert list(rows) == {None: [2, 4, 6], 4: [2, 4], 5: [2, 4, 5]}[stop_at]
    wanted = {iteration: elbo for iteration, elbo in rows.items() if iteration % 2 == 0}
    assert found == (wanted if compute_elbo else {})
    assert np.isfinite(model.history_.elbo.iloc[-1])


def test_an_interrupt_of_the_last_elbo_keeps_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    want = fresh()
    original, interrupts = NumpyBackend.log_normalizer_sum, [KeyboardInterrupt]

    def interrupted(*given: Any) -> float:
        if interrupts:
            raise interrupts.pop()
        return original(*given)

    monkeypatch.setattr(NumpyBackend, "log_normalizer_sum", interrupted)
    with pytest.warns(UserWarning, match="interrupted; iteration 4 is kept"):
        model = fresh()
    assert np.array_equal(model.Theta, want.Theta)
    columns = ["iteration", "llk", "elbo"]
    pd.testing.assert_frame_equal(model.history_[columns], want.history_[columns])


def test_progress_shows_where_a_fit_is(capsys: Any) -> None:
    with IterationsShown(10, 4, enabled=True) as shown:
        shown.report(Check(5))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("HPF: 5/10")
    assert "llk" not in lines[-1]
    with IterationsShown(6, 4, enabled=True) as shown:
        shown.report(Check(5, llk=-1234567.0))
        shown.report(Check(6))  # the last has a line, however soon it comes
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("HPF: 5/6")
    assert "llk=-1.23457e+06" in first
    assert last.startswith("HPF: 6/6")


def test_there_is_a_bar_on_a_terminal(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("reading", 4_000_000, " counts", enabled=True, scale=True) as shown:
        shown.advance(1_000_000, "0.1 GB")
    last = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert last.startswith("reading:  25%|")
    assert "1.00M/4.00M" in last
    assert "0.1 GB" in last


def test_the_bar_of_a_fit_that_goes_on_begins_there(tmp_path: Any, capsys: Any) -> None:
    arguments = {"stop_crit": "maxiter", "maxiter": 4}
    quick(**arguments).fit(PLAYS, checkpoint=tmp_path / "fit", checkpoint_every=3)
    quick(**arguments | {"maxiter": 7, "verbose": True}).fit(PLAYS, checkpoint=tmp_path / "fit")
    assert "7/7" in capsys.readouterr().err


# -- types and ranges -------------------------------------------------------------------------------

DEFAULTS = {name: one.default for name, one in inspect.signature(HPF).parameters.items()}
FLAGS = sorted(name for name, default in DEFAULTS.items() if isinstance(default, bool))


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_truth_values(name: str, capsys: Any, tmp_path: Any) -> None:
    for wrong in ("yes", None, 1.0, [True]):
        with pytest.raises(TypeError, match=f"{name} must be True or False, not"):
            HPF(**{name: wrong})
    for plain in (True, False):
        want, *others = (
            quick(**{name: flag}).fit(PLAYS, PLAYS) for flag in (plain, np.bool_(plain), int(plain))
        )
        for model in others:
            for attribute in ("Theta", "Beta", "user_mapping_", "user_dict_", "train_llk"):
                np.testing.assert_array_equal(getattr(model, attribute), getattr(want, attribute))
            assert hasattr(model, "seen") == hasattr(want, "seen")
            assert hasattr(model, "Gamma_shp") == hasattr(want, "Gamma_shp")
            assert model.eval_llk(PLAYS) == want.eval_llk(PLAYS)
            if want.keep_all_objs:
                assert model.transform(NEW).equals(want.transform(NEW))
            model.save(tmp_path / "model")
            assert getattr(HPF.load(tmp_path / "model"), name) == plain


@pytest.mark.parametrize("name", ["a", "a_prime", "b_prime", "c", "c_prime", "d_prime"])
def test_priors_lie_between_the_bounds(name: str) -> None:
    assert (MIN_PRIOR, MAX_PRIOR) == (1e-30, 1e30)  # README.md says so
    for bound, beyond in ((1e-30, 0.99e-30), (1e30, 1.01e30)):
        assert getattr(HPF(**{name: bound}), name) == bound
        with pytest.raises(ValueError, match=f"{name}=.* must lie between 1e-30 and"):
            HPF(**{name: beyond})


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"stop_thr": np.inf}, ValueError, "stop_thr=inf must be above zero and finite"),
        ({"stop_thr": np.bool_(True)}, TypeError, "stop_thr must be a number"),
        ({"maxiter": np.bool_(True)}, TypeError, "maxiter must be an integer"),
        ({"k": 2**31}, ValueError, "k=2147483648 must be at most 2147483647"),
        ({"items_per_batch": 0}, ValueError, "items_per_batch=0 must be at least 1"),
        ({"precision": "mixed", "use_float": False}, ValueError, "precision='mixed' .* needs use_float=True"),
        (
            {"precision": "mixed", "allocate": "cusparse"},
            ValueError,
            "precision='mixed' needs allocate='fused'",
        ),
        ({"precision": "mixed", "backend": "openmp"}, ValueError, "needs backend='cuda', not 'openmp'"),
        ({"allocate": "cusparse", "backend": "numpy"}, ValueError, "needs backend='cuda', not 'numpy'"),
        ({"bias": True, "a_prime": 1e-20}, ValueError, r"needs b_prime·\(1 \+ k·a/a_prime\) up to 1e\+19"),
        ({"bias": True, "d_prime": 1e20}, ValueError, r"needs d_prime·\(1 \+ k·c/c_prime\) up to 1e\+19"),
        ({"step_size": lambda epoch: 0.5 + epoch}, ValueError, r"step_size\(1\) is 1.5"),
    ],
)
def test_parameters_at_their_bounds(given: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        HPF(**given)


def test_what_just_can_be() -> None:
    assert HPF(k=2**31 - 1).k == 2**31 - 1
    assert HPF(bias=True, d_prime=1e10, use_float=False).bias
    for step in (0, 1, 1.0, np.float32(0.5)):
        HPF(step_size=lambda epoch, step=step: step)
        quick(users_per_batch=4, step_size=lambda epoch, step=step: step).fit(PLAYS)


def test_steps_unless_given() -> None:
    assert [default_step_size(epoch) for epoch in (0, 2, 7)] == [1 / 2**0.5, 1 / 2, 1 / 3]


def test_seeds_that_nobody_gave_differ() -> None:
    assert len({quick(random_seed=None).fit(PLAYS).random_seed_ for _ in range(3)}) > 1


def test_parameters_that_broke_after_a_fit_move_nothing() -> None:
    model = fresh()
    before = model.Theta
    model.a = -1.0
    for call in (
        lambda: model.fit(PLAYS),
        lambda: model.partial_fit(PLAYS),
        lambda: model.add_user(77, NEW[:2], update_all_params=True),
    ):
        with pytest.raises(ValueError, match=r"a=-1\.0"):
            call()
    assert model.Theta is before


@pytest.mark.parametrize("way", FROM_A_FIT)
def test_a_model_keeps_width_and_precision_of_its_fit(way: str) -> None:
    """Whatever was set since: these belong to the next fit."""
    model, changed = fresh(), fresh().set_params(k=5, use_float=False, bias=True)
    answers = [(ALLOCATING[way](one), one.Theta, one.Beta) for one in (model, changed)]
    for want, got in zip(*answers, strict=True):
        if isinstance(want, (np.ndarray, pd.DataFrame)):
            assert np.asarray(got).dtype == np.float32
            np.testing.assert_array_equal(got, want)


# -- the folder of CSV files ------------------------------------------------------------------------


def test_the_folder_has_what_the_model_has(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    model = quick(save_folder="~", random_seed=None, a=0.25, d_prime=1.5, use_float=False).fit(PLAYS)
    for file, attribute in {
        **{name: name for name in ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte")},
        "kappa_rte": "k_rte",
        "tau_rte": "t_rte",
    }.items():
        # As hpfrec writes numbers: ten digits behind the point.
        want = [",".join(f"{value:.10f}" for value in row) for row in getattr(model, attribute)]
        assert (tmp_path / file).read_text().split() == want
    for file, ids in (("users.csv", model.user_mapping_), ("items.csv", model.item_mapping_)):
        assert (tmp_path / file).read_text().split()[1:] == [str(one) for one in ids]
    assert (tmp_path / "hyperparameters.txt").read_text().splitlines() == [
        "a: 0.250", "a_prime: 0.300", "b_prime: 1.000", "c: 0.300", "c_prime: 0.300", "d_prime: 1.500",
        "k: 3", f"random seed: {model.random_seed_}",
    ]  # fmt: skip


def test_the_folder_has_no_ids_where_they_are_row_numbers(tmp_path: Any) -> None:
    matrix = sparse.coo_array((PLAYS.Count, (PLAYS.UserId, PLAYS.ItemId)))
    quick(save_folder=tmp_path, keep_all_objs=False, hierarchical=False).fit(matrix)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "hyperparameters.txt",
    }  # fmt: skip


def test_attributes_in_the_precision_of_the_fit(fitted: HPF) -> None:
    for name in ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "k_rte", "t_rte"):
        assert getattr(fitted, name).dtype == np.float32, name
    lean = quick(produce_dicts=False).fit(PLAYS)
    assert lean.user_dict_ is lean.item_dict_ is lean.user_dict is lean.item_dict is None


def test_only_steps_of_your_own_are_warned_of(fitted: HPF, tmp_path: Any, recwarn: Any) -> None:
    model = copy.copy(fitted)
    for model.step_size in (None, default_step_size):
        model.save(tmp_path / "model")
    assert not recwarn
    model.step_size = lambda epoch: 0.1
    model.save(tmp_path / "model")
    assert [warning.filename for warning in recwarn] == [__file__]


@pytest.mark.parametrize("way", FROM_A_FIT)
def test_backends_are_asked_for_the_width_of_the_fit(way: str, monkeypatch: Any) -> None:
    model, asked, choose = fresh().set_params(k=5, bias=True), [], backends.choose

    def spy(*arguments: Any, k: int, **options: Any) -> Any:
        asked.append(k)
        return choose(*arguments, k=k, **options)

    monkeypatch.setattr(backends, "choose", spy)
    ALLOCATING[way](model)
    assert asked == [3]


def test_a_model_knows_who_computed_it_last(backend_name: str) -> None:
    model = quick(backend=backend_name).fit(PLAYS)
    assert model.backend_ == backend_name
    model.backend = "numpy"
    assert model.partial_fit(PLAYS).backend_ == "numpy"
    model.backend = backend_name
    assert model.partial_fit(PLAYS).backend_ == backend_name


def test_what_was_read_of_a_model_stays_as_it_was() -> None:
    """Whatever replaces rows makes new arrays: others may be reading the old ones."""
    model = fresh()
    names = ("Theta", "Beta", "Gamma_shp", "Lambda_shp", "seen", "user_mapping_")
    before = {name: getattr(model, name) for name in names}
    copies = copy.deepcopy(before)
    model.add_users(PLAYS[:9].assign(Count=9.0), update_existing=True).partial_fit(PLAYS)
    model.add_user(PLAYS.UserId[0], NEW[:2], update_existing=True, update_all_params=True)
    for name in names:
        np.testing.assert_array_equal(before[name], copies[name], err_msg=name)


@pytest.mark.parametrize("name", ["Theta", "Beta"])
def test_one_factor_that_is_too_large_is_one_too_many(name: str, fitted: HPF) -> None:
    matrix = getattr(fitted, name).copy()
    assert checked_mean(name, matrix) is matrix
    matrix[-1, -1] = np.inf
    with pytest.raises(ValueError, match=f"^{name} is too large for float32"):
        checked_mean(name, matrix)


def test_rates_that_vanish_have_a_likelihood(fitted: HPF) -> None:
    model = copy.copy(fitted)
    model._fitted = dataclasses.replace(fitted._fitted, theta=np.zeros_like(fitted.Theta))
    llk = model.eval_llk(PLAYS)["llk"]
    np.testing.assert_allclose(llk, PLAYS.Count.sum() * np.log(np.finfo(np.float64).tiny), rtol=1e-12)
