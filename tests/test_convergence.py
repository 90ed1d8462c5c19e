"""When a fit stops, by the figures of its checks alone."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from problems import SMALL
from small_data import COUNTS, quick

from hpf_gpu import ConvergenceWarning, HPFEnsemble, select
from hpf_gpu.backends import create
from hpf_gpu.model.convergence import Check, has_converged
from hpf_gpu.model.inference import Schedule, State, fit, iterate

NAMES = {"train-llk": "llk", "val-llk": "val_llk", "elbo": "elbo", "diff-norm": "diff_norm"}


def checks(rule: str, *values: float, every: int = 10) -> list[Check]:
    return [Check(every * (number + 1), **{NAMES[rule]: value}) for number, value in enumerate(values)]


@pytest.mark.parametrize("rule", ["train-llk", "val-llk", "elbo"])
@pytest.mark.parametrize(
    ("last", "value", "gain"),
    [(-100.0, -50.0, 0.5), (5.0, 10.0, 1.0), (-50.0, 50.0, 2.0), (-64.0, -68.0, -0.0625), (-8.0, -8.0, 0.0)],
)
def test_a_gain_is_relative(rule: str, last: float, value: float, gain: float) -> None:
    """To the magnitude of the last check, on either side of zero.  These numbers round nothing."""
    for threshold in (-0.0625, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0):
        assert has_converged(rule, threshold, checks(rule, 1e9, last, value)) is (gain <= threshold)
    assert not has_converged(rule, 1e9, checks(rule, value))


def test_the_norm_of_a_change_is_absolute() -> None:
    for values in ((0.25,), (1e-9, 0.25)):
        assert not has_converged("diff-norm", 0.25, checks("diff-norm", *values))
        assert has_converged("diff-norm", 0.26, checks("diff-norm", *values))


def test_a_number_of_iterations_watches_nothing() -> None:
    assert not has_converged("maxiter", math.inf, [Check(1, llk=-1.0), Check(2, llk=-1.0)])


@pytest.mark.parametrize("every", [1, 2, 4])
def test_patience_is_counted_in_iterations(every: int) -> None:
    """The ELBO gains nothing until iteration 8, half of what is left until 20, the rest in 21."""
    values = [-100.0] * 8 + [-100.0 * 0.5**n for n in range(1, 13)] + [0.0] * 20
    seen = [checks("elbo", *values[every - 1 : n : every], every=every) for n in range(every, 41, every)]
    over = [history[-1].iteration for history in seen if has_converged("elbo", 0.25, history, patience=12)]
    last_gain = -(-21 // every) * every
    assert over == list(range(last_gain + 12, 41, every))
    assert has_converged("elbo", 0.25, seen[1])  # without patience, in the plateau


def test_patience_forgives_one_bad_check() -> None:
    history = checks("val-llk", -10.0, -8.0, -9.0)
    assert has_converged("val-llk", 0.0, history)
    assert not has_converged("val-llk", 0.0, history, patience=20)
    assert not has_converged("val-llk", 0.0, [*history, Check(40, val_llk=-7.0)], patience=20)
    assert has_converged("val-llk", 0.0, [*history, Check(40, val_llk=-8.5)], patience=20)


def test_with_patience_the_norm_of_a_change_is_that_of_an_iteration() -> None:
    history = checks("diff-norm", 5.0, 2.0, 2.0)  # 0.5, 0.2 and 0.2 an iteration
    assert has_converged("diff-norm", 0.25, history, patience=20)
    assert not has_converged("diff-norm", 0.25, history, patience=21)
    assert not has_converged("diff-norm", 0.25, history[:2], patience=20)
    assert has_converged("diff-norm", 0.25, history[:2], patience=10)
    assert not has_converged("diff-norm", 9.0, history, patience=31)
    assert not has_converged("diff-norm", 0.25, [*history, Check(32, diff_norm=1.0)], patience=10)


def test_the_change_of_two_blocks_is_that_of_all_users() -> None:
    """The root of the sum of squares over users, however these are handed out."""
    backend = create("numpy", np.dtype(np.float64))
    watched = Schedule("diff-norm", 0.0, 1, 3)
    norms = []
    for users_per_block in (None, 10):
        blocks = SMALL.blocks(backend, users_per_block)
        objective, model = SMALL.objective(backend, blocks, full_llk=False), SMALL.model(backend, blocks)
        advance = partial(lambda blocks, model, _: iterate(backend, blocks, model, watched), blocks)
        fitted = fit(backend, State(model), watched, objective, advance, report=lambda check: None)
        norms.append([check.diff_norm for check in fitted.history])
    # The norms are 0.1 to 100 times those of what rounding changes 1e-15 of.
    assert norms[1] == pytest.approx(norms[0], rel=1e-12)


# -- fits that end before their rule is met ----------------------------------------------------------


@pytest.mark.parametrize("rule", ["train-llk", "val-llk", "elbo", "diff-norm"])
def test_a_fit_that_is_not_over_says_so_once(rule: str) -> None:
    model = quick(stop_crit=rule, check_every=2, maxiter=6, stop_thr=1e-12, backend="numpy")
    val_set = COUNTS[:20] if rule == "val-llk" else None
    said = f"ended at maxiter=6, before its rule stop_crit='{rule}' was met: raise maxiter"
    with pytest.warns(ConvergenceWarning, match=said) as caught:
        model.fit(COUNTS, val_set)
    assert [warning.filename for warning in caught] == [__file__]
    assert model.niter == 6


@pytest.mark.parametrize(
    "given",
    [
        {"stop_crit": "maxiter"},
        {"stop_thr": 10.0},  # the rule is met at the second check, before the end
        {"stop_thr": 10.0, "maxiter": 4},  # and there
        {"maxiter": 2},  # a single check judges nothing
        {"stop_crit": "diff-norm", "stop_thr": 1e9},
    ],
)
def test_others_say_nothing(given: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(**{"check_every": 2, "maxiter": 6, "stop_thr": 1e-12, "backend": "numpy"} | given).fit(COUNTS)


def test_who_ends_a_fit_is_not_told() -> None:
    model = quick(check_every=2, maxiter=6, stop_thr=1e-12, backend="numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(COUNTS, callback=lambda check: check.iteration == 6)
        with pytest.raises(ZeroDivisionError):
            model.fit(COUNTS, callback=lambda check: 1 / (6 - check.iteration))


def test_where_warnings_are_errors_the_model_is_kept() -> None:
    model = quick(check_every=2, maxiter=6, stop_thr=1e-12, backend="numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceWarning):
            model.fit(COUNTS)
    assert model.niter == 6


def test_an_ensemble_says_it_once_for_all_members() -> None:
    short = {"check_every": 2, "stop_thr": 1e-12, "verbose": False, "random_seed": 1, "backend": "numpy"}
    members = [{}, {}, {"stop_crit": "maxiter"}]
    with pytest.warns(ConvergenceWarning, match="2 of the 3 fits ended at maxiter") as caught:
        HPFEnsemble(members, k=2, maxiter=6, **short).fit(COUNTS)
    assert [warning.filename for warning in caught] == [__file__]


def test_rounds_of_select_are_short_on_purpose() -> None:
    given = {"rounds": (4, None), "check_every": 2, "stop_thr": 1e-12, "maxiter": 6, "backend": "numpy"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(COUNTS, {"k": [1, 2]}, n=5, refit=False, **given)
    with pytest.warns(ConvergenceWarning) as caught:
        select(COUNTS, {"k": [1, 2]}, n=5, **given)
    assert len(caught) == 1
