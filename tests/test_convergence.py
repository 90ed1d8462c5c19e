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


@pytest.mark.parametrize("rule", ["train-llk", "val-llk", "elbo"])
@pytest.mark.parametrize(
    ("last", "value", "gain"),
    [(-100.0, -50.0, 0.5), (5.0, 10.0, 1.0), (-50.0, 50.0, 2.0), (-64.0, -68.0, -0.0625), (-8.0, -8.0, 0.0)],
)
def test_a_gain_is_relative(rule: str, last: float, value: float, gain: float) -> None:
    """To the magnitude of the last check, on either side of zero.  These numbers round nothing."""
    name = {"train-llk": "llk", "val-llk": "val_llk", "elbo": "elbo"}[rule]
    previous, current = Check(10, **{name: last}), Check(20, **{name: value})
    for threshold in (-0.0625, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0):
        assert has_converged(rule, threshold, previous, current) is (gain <= threshold)
    assert not has_converged(rule, 1e9, None, current)


def test_the_norm_of_a_change_is_absolute() -> None:
    current = Check(10, diff_norm=0.25)
    for previous in (None, Check(5, diff_norm=1e-9)):
        assert not has_converged("diff-norm", 0.25, previous, current)
        assert has_converged("diff-norm", 0.26, previous, current)


def test_a_number_of_iterations_watches_nothing() -> None:
    assert not has_converged("maxiter", math.inf, Check(1, llk=-1.0), Check(2, llk=-1.0))


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
