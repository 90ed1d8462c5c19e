"""The gamma posteriors: gamma_update, mean, gamma_elbo and distance."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from contract import checks
from contract.cases import Case, both_sides, factor_of, float32_exact, make_case, rate_on_host, rates_of
from contract.tolerances import Tolerance, assert_same
from hpf_gpu.backends.protocol import Backend, Full, RankOne


@pytest.mark.parametrize("prior_shape", [0.0, 1e-3, 0.3])
def test_gamma_update(backend: Backend, case: Case, tolerance: Tolerance, prior_shape: float) -> None:
    checks.gamma_update(backend, case, tolerance, prior_shape)


@pytest.mark.parametrize("k", [1, 3])
def test_one_row_of_start_values(backend: Backend, k: int) -> None:
    """A matrix (1, 1) of rates is one, though it looks like a vector."""
    statistic, rates = (backend.asarray(np.full((1, k), value)) for value in (0.5, 0.75))
    factor, row_sums, _ = backend.gamma_update(statistic, 0.25, Full(rates))
    assert_same(backend.asnumpy(row_sums), np.full(1, k * 1.0))
    assert_same(backend.asnumpy(backend.mean(factor)), np.ones((1, k)))


def test_gamma_update_leaves_rates_alone(backend: Backend, case: Case) -> None:
    """Only the statistic is consumed."""
    for side in both_sides(case):
        rates = rates_of(backend, side)
        backend.gamma_update(backend.asarray(side.shape), 0.3, rates)
        assert_same(rate_on_host(backend, rates), side.gamma.rate)


def test_what_is_small_beside_a_tiny_factor(backend: Backend) -> None:
    """exp E[ln θ] as far as the matrix's type holds it, also where e^ψ itself has underflowed."""
    for ratio, power in ((1.5, -60), (1.8, -60), (1.1, -350), (1.1, -650), (1.2, -650)):
        if backend.dtype == np.float32 and power * (ratio - 1) < -80:
            continue
        shape = float32_exact(np.array([[-1 / power, -1 / (power * ratio)]]))
        log = oracle.Gamma(shape, np.ones((1, 2))).expected_log
        factor, *_ = backend.gamma_update(
            backend.asarray(shape), 0.0, RankOne(backend.asarray(np.ones(1)), backend.asarray(np.zeros(2)))
        )
        got = backend.asnumpy(factor.exp_log).astype(np.float64)
        np.testing.assert_allclose(
            got, np.exp(log - log[0, 0]), rtol=1e-6 if backend.dtype == np.float32 else 1e-12
        )


@pytest.mark.parametrize("steps", [-3, 0, 1, 30])
def test_extrapolate(backend: Backend, case: Case, tolerance: Tolerance, steps: float) -> None:
    checks.extrapolate(backend, case, tolerance, steps)


def test_extrapolate_what_has_underflowed(backend: Backend) -> None:
    """It stays zero; what was zero keeps its ratio to the largest entry."""
    least = 1.5 * float(np.finfo(backend.dtype).tiny)
    now, then = [[1.0, 0.0, 0.5, least, least / 4]], [[1.0, 0.5, 0.0, 1.0, least / 4]]
    factor, scale = factor_of(backend, np.array(now)), backend.asarray(np.array([3.0]))
    earlier = (backend.asarray(np.array(then)), scale)
    got = backend.extrapolate(factor, earlier, backend.asarray(np.ones(1)))
    np.testing.assert_allclose(backend.asnumpy(got.exp_log), [[1.0, 0.0, 0.5, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(backend.asnumpy(got.log_scale), [-1.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        ("K=1", None),
        ("K=30", None),
        ("one user", None),
        ("no nonzero", None),
        ("small shapes", None),
        ("nearly disjoint", None),
        ("K=5", 1.0),
        ("K=30", 1.25),
        ("nearly disjoint", 1.25),
    ],
)
@pytest.mark.parametrize("exact", [False, True], ids=["plain", "exact"])
def test_ascend(
    backend: Backend, tolerance: Tolerance, name: str, temperature: float | None, exact: bool
) -> None:
    """All iterations of a fold-in at once; tests/test_folding.py has what all backends do."""
    if backend.name != "openmp":
        pytest.skip(f"{backend.name} leaves fold-in to a loop over its other operations")
    checks.ascend(backend, make_case(name), tolerance, exact=exact, temperature=temperature)


def test_mean(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.mean(backend, case, tolerance)


@pytest.mark.parametrize(
    ("shape", "hyper_shape", "hyper_mean"), [(0.3, 0.3, 1.0), (1e-3, 5.0, 0.2), (2.5, 1e-3, 7.0)]
)
def test_gamma_elbo(
    backend: Backend, case: Case, tolerance: Tolerance, shape: float, hyper_shape: float, hyper_mean: float
) -> None:
    checks.gamma_elbo(backend, case, tolerance, shape, hyper_shape, hyper_mean)


def test_distance(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.distance(backend, case, tolerance)
