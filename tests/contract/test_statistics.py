"""Sums for every row and column: allocate, and products with ln(1 + y)."""

from __future__ import annotations

from typing import Any

import conftest
import numpy as np
import oracle
import pytest
from scipy import sparse

from contract import checks
from contract.cases import (
    Case,
    Parameters,
    expected_statistics,
    factor_of,
    float32_exact,
    garbage,
    make_case,
    make_factors,
    on_host,
)
from contract.tolerances import Tolerance, assert_close, assert_same
from hpf_gpu.backends.protocol import Backend


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_allocate(backend: Backend, case: Case, tolerance: Tolerance, exact: bool) -> None:
    checks.allocate(backend, case, tolerance, exact)


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_allocate_conserves_counts(backend: Backend, case: Case, tolerance: Tolerance, exact: bool) -> None:
    """Σ_k of a row's statistic is the row's total: no count is lost, whatever underflows."""
    users, items = make_factors(backend, case)
    got = backend.allocate(backend.counts(case.csr(backend.dtype), case.k), users, items, exact=exact)
    for axis, statistic in zip((1, 0), on_host(backend, got), strict=True):
        assert statistic is not None
        row_totals = statistic.sum(axis=1, dtype=np.float64)
        assert_close(row_totals[:, None], case.y.sum(axis=axis)[:, None], tolerance.conservation)


def test_exact_needs_no_scaled_product(backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance) -> None:
    """``exact`` finds shares that the scaled product has lost, though that product has not underflowed."""
    # exp E[ln θ] underflows on the second factor; the low exp E[ln β] of the first makes up for it.
    low, rate = {"float32": (1 / 110, 2.0**40), "float64": (1 / 760, 2.0**330)}[dtype.name]
    users = Parameters(float32_exact(np.array([[1.0, low]])), np.ones(1), np.zeros(2))
    items = Parameters(np.ones((1, 2)), np.array([[rate, 1.0]]), np.zeros(2))
    case = Case("exact", np.array([[8.0]]), users, items)
    got = backend.allocate(backend.counts(case.csr(dtype), 2), *make_factors(backend, case), exact=True)
    wanted = oracle.allocate(case.y, users.gamma.expected_log, items.gamma.expected_log)
    for statistic, want in zip(on_host(backend, got), wanted, strict=True):
        assert statistic is not None
        assert_close(statistic.T, want.T, tolerance.allocate)  # every entry by its own size


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_allocate_into_buffers(backend: Backend, case: Case, exact: bool) -> None:
    """Buffers are used, what they held before is forgotten, and the result is the same bits."""
    users, items = make_factors(backend, case)
    counts = backend.counts(case.csr(backend.dtype), case.k)
    (n, m), k = case.y.shape, case.k
    want = on_host(backend, backend.allocate(counts, users, items, exact=exact))
    for for_users, for_items in ((True, True), (True, False), (False, True)):
        out = (garbage(backend, n, k) if for_users else None, garbage(backend, m, k) if for_items else None)
        got = on_host(backend, backend.allocate(counts, users, items, exact=exact, out=out))
        for result, wanted, buffer in zip(got, want, on_host(backend, out), strict=True):
            assert_same(result, wanted)
            if buffer is not None:
                assert_same(buffer, wanted)


@pytest.mark.parametrize("name", ["K=3", "K=30", "K=32", "K=200", "power law", "disjoint"])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("values", [np.float32, np.float64])
def test_csr_types(backend: Backend, tolerance: Tolerance, name: str, index: type, values: type) -> None:
    """Indices and values of either width mean the same counts."""
    case = make_case(name)
    users, items = make_factors(backend, case)
    csr = case.csr(np.dtype(values), index)
    assert csr.indices.dtype == csr.indptr.dtype == index
    counts = backend.counts(csr, case.k)
    got = on_host(backend, backend.allocate(counts, users, items))
    for statistic, want in zip(got, expected_statistics(name), strict=True):
        assert statistic is not None
        assert_close(statistic, want, tolerance.allocate)
    plain = backend.counts(case.csr(backend.dtype), case.k)
    want_sum = backend.log_normalizer_sum(plain, users, items)
    assert backend.log_normalizer_sum(counts, users, items) == want_sum


@pytest.mark.parametrize("k", [3, 30, 200])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13] if not conftest.SIMULATED else [1, 7, 13])
def test_one_product_underflows(backend: Backend, tolerance: Tolerance, k: int, size: int) -> None:
    checks.one_product_underflows(backend, tolerance, k, size)


@pytest.mark.parametrize("k", [8, 30, 64, 100])
def test_a_product_at_the_threshold_is_counted_once(backend: Backend, k: int) -> None:
    """U·V within some rounding errors of where the log-sum-exp begins: one of the two passes takes it."""
    rng, size = np.random.default_rng(k), 3000
    threshold, epsilon = (1e-18, 1e-7) if backend.dtype == np.float32 else (1e-150, 2e-16)
    u, v = rng.uniform(0.1, 1.0, (1, k)), rng.uniform(0.1, 1.0, (size, k))
    v *= (threshold / (v @ u[0]) * (1 + rng.uniform(-3, 3, size) * epsilon))[:, None]

    csr = sparse.csr_array(np.ones((1, size)), dtype=backend.dtype)
    sums = backend.allocate(backend.counts(csr, k), factor_of(backend, u), factor_of(backend, v))[1]
    np.testing.assert_allclose(backend.asnumpy(sums).sum(axis=1), 1.0, rtol=1e-5)


def test_log_count_products(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.log_count_products(backend, case, tolerance)
