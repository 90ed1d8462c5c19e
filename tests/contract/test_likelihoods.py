"""Sums over the nonzeros: log_rate_sum, log_normalizer_sum and log_factorial_sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest

from contract import checks
from contract.cases import Case, both_sides, float32_exact, make_case
from contract.tolerances import Tolerance, assert_near
from hpf_gpu.backends.protocol import Backend


def test_log_rate_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.log_rate_sum(backend, case, tolerance)


@pytest.mark.parametrize("k", [3, 30])
def test_log_rate_sum_of_small_products(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, k: int
) -> None:
    checks.log_rate_sum_of_small_products(backend, dtype, tolerance, k)


def test_log_rate_sum_below_float32(backend: Backend, tolerance: Tolerance) -> None:
    """Products that underflow in float32 have a logarithm all the same."""
    case = make_case("K=30")
    theta, beta = (float32_exact(side.gamma.mean * 1e-25) for side in both_sides(case))
    counts = backend.counts(case.csr(backend.dtype), case.k)
    got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
    assert_near(got, oracle.log_rate_sum(case.y, theta, beta), tolerance.log_sums, 100 * float(case.y.sum()))


def test_log_normalizer_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.log_normalizer_sum(backend, case, tolerance)


def test_log_factorial_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.log_factorial_sum(backend, case, tolerance)
