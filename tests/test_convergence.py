"""When a fit stops, by the figures of its checks alone."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from problems import SMALL

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
