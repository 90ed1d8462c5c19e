"""Every instruction set that this machine has keeps the contract, with any number of threads."""

from __future__ import annotations

import os
from functools import cache
from itertools import product

import numpy as np
import oracle
import pytest
from contract import checks
from contract.cases import (
    FACTORS,
    NEIGHBOUR_CASES,
    Case,
    disjoint,
    make_case,
    make_counts,
    make_factor,
    make_factors,
    make_parameters,
)
from contract.tolerances import TOLERANCE, assert_close, assert_near, assert_same
from hypothesis import given
from hypothesis import strategies as st
from parity import online_retail, random_strings, relative_error
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import ItemScores

openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")


@pytest.fixture
def level(request):
    best = openmp.level()
    openmp.use_level(request.param)
    yield request.param
    openmp.use_level(best)


LEVELS = pytest.mark.parametrize("level", openmp.levels(), indirect=True)
DTYPES = pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)


def fitted(frame, k, use_float=False, ncores=-1, backend="openmp"):
    model = HPF(k, maxiter=6, stop_crit="maxiter", random_seed=1, use_float=use_float, ncores=ncores)
    model.verbose, model.backend = False, backend
    return model.fit(frame)


@cache
def fitted_by_numpy(k, use_float):
    return fitted(random_strings(), k, use_float, backend="numpy")


@pytest.mark.parametrize("use_float", [True, False], ids=["float32", "float64"])
@pytest.mark.parametrize("k", [1, 16, 30, 45, 90, 130])
@LEVELS
def test_fits_of_every_level(level, k, use_float):
    here, want = fitted(random_strings(), k, use_float), fitted_by_numpy(k, use_float)
    limit = 1e-5 if use_float else 1e-13
    errors = [relative_error(getattr(here, name), getattr(want, name)) for name in ("Theta", "Beta")]
    assert max(errors) < limit, errors
    assert here.train_llk == pytest.approx(want.train_llk, rel=limit)


@DTYPES
def test_factors_fill_every_number_of_cache_lines(dtype):
    """Rows of up to eight lines have kernels of their own with AVX-512, of up to four and two with less."""
    lines = {-(-k * dtype.itemsize // 64) for k in FACTORS}
    assert lines >= set(range(1, 9))
    assert max(lines) > 9


CASES = (
    *(f"K={k}" for k in FACTORS),
    "one nonzero",
    "no nonzero",
    "power law",
    "huge counts",
    "start values",
    "start values, K=20",
    "small shapes",
    "tiny rows",
    "disjoint",
    "nearly disjoint",
)


@DTYPES
@pytest.mark.parametrize("name", CASES)
@LEVELS
def test_every_level_keeps_the_contract(level, name, dtype):
    """What the contract asks of the best level, against the same dense formulas."""
    backend, case, tolerance = (
        create("openmp", dtype),
        make_case(name),
        TOLERANCE[dtype.name],
    )
    checks.gamma_update(backend, case, tolerance, 0.3)
    checks.extrapolate(backend, case, tolerance, 4)
    checks.mean(backend, case, tolerance)
    checks.gamma_elbo(backend, case, tolerance, 0.3, 0.3, 1.0)
    checks.distance(backend, case, tolerance)
    for exact in (False, True):
        checks.allocate(backend, case, tolerance, exact)
    checks.log_rate_sum(backend, case, tolerance)
    checks.log_normalizer_sum(backend, case, tolerance)
    checks.log_factorial_sum(backend, case, tolerance)
    checks.predict_pairs(backend, case, tolerance, np.int64)
    checks.top_items(backend, case, tolerance, 10)


@DTYPES
@pytest.mark.parametrize("name", [name for name in CASES if name in NEIGHBOUR_CASES])
@LEVELS
def test_every_level_keeps_the_contract_with_neighbours(level, name, dtype):
    backend, case, tolerance = create("openmp", dtype), make_case(name), TOLERANCE[dtype.name]
    checks.gamma_update_at_a_temperature(backend, case, tolerance, 1.25)
    for side, exact in product(checks.SIDES, (False, True)):
        checks.allocate_with_neighbours(backend, case, tolerance, side, exact=exact, temperature=1.25)
    checks.log_sums_with_neighbours(backend, case, tolerance, 1.25)
    checks.neighbour_rates(backend, case, tolerance)
    checks.top_items_with_neighbours(backend, case, tolerance, 10)
    if name != "power law":  # whose matrix of all pairs takes the oracle too long
        checks.choose_neighbours(backend, case, 5)


@cache
def many_neighbours():
    """Counts for five row blocks, and parameters that let some products underflow in either part."""
    rng, (n, m, width) = np.random.default_rng(8), (1500, 200, 40)
    csr = sparse.csr_array(make_counts(rng, n, m, 45_000))
    sources = np.sort(np.argsort(rng.random((m, m - 1)), axis=1)[:, :width], axis=1).astype(np.int32)
    sources += sources >= np.arange(m)[:, None]
    sources[::7, width // 2 :] = -1
    lows = (rng.uniform(0.008, 0.05, (size, 1)) for size in (n, m))
    users, items = (make_parameters(rng, len(low), 20, disjoint(len(low), 20, low)) for low in lows)
    shape = np.exp(rng.normal(-1.0, 2.0, (m, width))) * rng.choice([1.0, 1e-2], (m, 1))
    return csr, sources, (users, items, make_parameters(rng, m, width, shape))


def with_many_neighbours(backend):
    """Statistics of users (N, K), items (M, K) and weights (M, L), and two sums; then the same, exactly."""
    csr, sources, sides = many_neighbours()
    factors = [make_factor(backend, side, 1.25) for side in sides]
    counts, results = backend.counts(csr.astype(backend.dtype), 20, sources), []
    for exact in (False, True):
        found = backend.allocate_with_neighbours(counts, *factors, exact=exact)
        totals = (
            backend.log_normalizer_sum(counts, *factors),
            backend.log_rate_sum(counts, *(backend.mean(factor) for factor in factors)),
        )
        results.append((*map(backend.asnumpy, found), *totals))
    return results


@cache
def numpy_with_many_neighbours():
    return with_many_neighbours(create("numpy", np.float64))


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@LEVELS
def test_neighbours_with_any_number_of_threads(level, threads, dtype):
    """What NumPy finds, and the same bits each time."""
    want, _ = numpy_with_many_neighbours()
    results, again = (with_many_neighbours(create("openmp", dtype, threads)) for _ in range(2))
    tolerance, size = TOLERANCE[dtype.name], float(many_neighbours()[0].sum())
    for got in results:
        assert_close(got[0], want[0], tolerance.allocate)
        both = [np.concatenate(statistics[1:3], axis=1) for statistics in (got, want)]
        assert_close(*both, tolerance.allocate)
        for total, wanted in zip(got[3:], want[3:], strict=True):
            assert_near(total, wanted, tolerance.log_sums, abs(wanted) + size)
    for first, second in zip(results, again, strict=True):
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(one, other)


@DTYPES
@LEVELS
def test_small_rates_with_neighbours(level, dtype):
    """Rates below what the dtype holds, to which factors, neighbours or both contribute."""
    backend, (csr, sources, _) = create("openmp", dtype), many_neighbours()
    rng, (n, m), least = np.random.default_rng(5), csr.shape, 1e-20 if dtype == np.float32 else 1e-160
    theta, beta = (
        rng.gamma(0.5, size=(n, 3)) * rng.choice([0, 1], (n, 1)),
        rng.gamma(0.5, size=(m, 3)) * least,
    )
    weights = rng.gamma(0.5, size=sources.shape) * least
    theta, beta, weights = (x.astype(dtype).astype(np.float64) for x in (theta, beta, weights))
    y = csr.toarray()
    rates = oracle.rates_with_neighbours(y, theta, beta, weights, sources)
    least_log = np.log(np.finfo(np.float64).tiny) - 500 * np.log(2)
    logs = np.where(rates[y > 0] > 0, np.log(np.where(rates[y > 0] > 0, rates[y > 0], 1)), least_log)
    counts = backend.counts(csr.astype(dtype), 3, sources)
    got = backend.log_rate_sum(counts, *map(backend.asarray, (theta, beta, weights)))
    assert_near(got, float(y[y > 0] @ logs), TOLERANCE[dtype.name].log_sums, float(y[y > 0] @ np.abs(logs)))


@DTYPES
@pytest.mark.parametrize("k", [3, 30, 200])
@LEVELS
def test_every_level_finds_what_underflows(level, k, dtype):
    backend, tolerance = create("openmp", dtype), TOLERANCE[dtype.name]
    for size in (*range(1, 10), 13, 70):
        checks.one_product_underflows(backend, tolerance, k, size)
    checks.log_rate_sum_of_small_products(backend, dtype, tolerance, k)


@cache
def much_underflow(k):
    """Users and items who hardly share a factor, in counts for five row blocks, and their statistics."""
    rng = np.random.default_rng(k)
    shapes = [disjoint(n, k, rng.uniform(0.008, 0.05, (n, 1))) for n in (1500, 200)]
    users, items = (make_parameters(rng, len(shape), k, shape) for shape in shapes)
    case = Case("much underflow", make_counts(rng, 1500, 200, 45_000), users, items)
    logs = users.gamma.expected_log, items.gamma.expected_log
    return case, oracle.allocate(case.y, *logs), oracle.log_normalizer_sum(case.y, *logs)


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("k", [3, 20])
@LEVELS
def test_underflow_in_every_row_block(level, k, threads, dtype):
    """Nonzeros left to the log-sum-exp, in tiles of every thread."""
    case, statistics, normalizer = much_underflow(k)
    backend, tolerance = create("openmp", dtype, threads), TOLERANCE[dtype.name]
    users, items = make_factors(backend, case)
    counts = backend.counts(case.csr(dtype), k)
    for exact in (False, True):
        for got, want in zip(backend.allocate(counts, users, items, exact=exact), statistics, strict=True):
            assert_close(backend.asnumpy(got), want, tolerance.allocate)
    got = backend.log_normalizer_sum(counts, users, items)
    assert_near(got, normalizer, tolerance.log_sums, abs(normalizer) + float(case.y.sum()))


@pytest.mark.parametrize("threads", [2, 3])
def test_many_more_column_blocks_than_row_blocks(threads):
    """Factors of 2,048 columns fill the largest block, so a thread meets five blocks and more."""
    rng, k = np.random.default_rng(3), 500
    csr = sparse.random_array((60, 9000), density=0.05, rng=rng, dtype=np.float64, format="csr")
    csr.data = np.ceil(csr.data * 9)
    sides = [make_parameters(rng, n, k) for n in csr.shape]
    found = []
    for backend in (create("openmp", np.float64, threads), create("numpy", np.float64)):
        users, items = (make_factor(backend, side) for side in sides)
        statistics = backend.allocate(backend.counts(csr, k), users, items)
        found.append([backend.asnumpy(statistic) for statistic in statistics])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, TOLERANCE["float64"].allocate)


@DTYPES
@pytest.mark.parametrize("k", [1, 7, 30])
@LEVELS
def test_any_number_of_pairs(level, k, dtype):
    """One to some vectors of them, and so many that threads share them."""
    rng = np.random.default_rng(k)
    theta, beta = (rng.gamma(0.5, size=(n, k)).astype(np.float32) for n in (40, 50))
    for threads, sizes in ((1, (*range(1, 34), 129)), (3, (10_000, 10_001, 10_003))):
        backend = create("openmp", dtype, threads)
        for size in sizes:
            rows, columns = rng.integers(0, 40, size), rng.integers(0, 50, size)
            got = backend.predict_pairs(backend.asarray(theta), backend.asarray(beta), rows, columns)
            want = np.einsum("zk,zk->z", theta[rows], beta[columns], dtype=np.float64)
            assert_close(got[:, None], want[:, None], TOLERANCE[dtype.name].predict)


def test_the_best_level_is_in_use():
    assert openmp.level() == os.environ.get("HPF_GPU_LEVEL", openmp.levels()[0])
    assert openmp.levels()[-1] == "baseline"


def test_unknown_level():
    with pytest.raises(ValueError, match="no instruction set x86-64-v9"):
        openmp.use_level("x86-64-v9")


@pytest.mark.parametrize("threads", [2, 3, 5, 8, 32])
def test_any_number_of_threads(threads):
    frame = online_retail()  # enough counts for 32 row blocks
    many, one = fitted(frame, 30, ncores=threads), fitted(frame, 30, ncores=1)
    assert relative_error(many.Theta, one.Theta) < 1e-13  # 4e-15 measured
    assert relative_error(many.Beta, one.Beta) < 1e-13
    assert np.array_equal(many.Theta, fitted(frame, 30, ncores=threads).Theta)


@LEVELS
@DTYPES
@pytest.mark.parametrize("k", [1, 30, 100])
def test_top_items_depend_on_nothing_but_the_user(level, dtype, k):
    """The same bits for any number of threads, and whoever else is asked for, in whatever order."""
    rng = np.random.default_rng(k)
    theta, beta = (rng.gamma(0.3, size=(n, k)).astype(dtype) for n in (3001, 500))
    whole = create("openmp", dtype, 1).top_items(theta, beta, 9)
    for threads in (2, 3, 7, 64):
        backend = create("openmp", dtype, threads)
        some = rng.permutation(3001)[: 1000 * threads]
        for got, want in zip(backend.top_items(theta[some], beta, 9), whole, strict=True):
            assert np.array_equal(got, want[some])


@LEVELS
@DTYPES
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 7, 35])
def test_top_items_of_few_users(level, dtype, n, k):
    """With items that exclude and add; whole numbers, so that ties are many and nothing is rounded."""
    rng, m = np.random.default_rng(n), 3011
    theta, beta = (rng.integers(0, 3, (rows, k)).astype(dtype) for rows in (n, m))
    indptr = np.arange(n + 1) * 4
    exclude = indptr, np.tile([0, 7, 1500, m - 1], n)
    targets = np.sort(np.stack([rng.choice(m, 900, replace=False) for _ in range(4)]), axis=1)
    weights = rng.integers(1, 200, targets.size).astype(dtype)
    had = indptr, np.tile(np.arange(4), n)
    neighbours = ItemScores(had, np.arange(5) * 900, targets.reshape(-1).astype(np.int32), weights)
    for added in (None, neighbours):
        want = create("numpy", dtype).top_items(theta, beta, 20, exclude, added)
        got = create("openmp", dtype).top_items(theta, beta, 20, exclude, added)
        assert np.array_equal(got[0], want[0])
        assert np.array_equal(got[1], want[1])


@LEVELS
@DTYPES
@pytest.mark.parametrize("k", [1, 7, 16, 33])
def test_top_items_of_every_level(level, dtype, k):
    """Small whole numbers: no rounding, many ties, so every level finds what NumPy does."""
    rng = np.random.default_rng(k)
    theta, beta = (rng.integers(0, 3, (n, k)).astype(dtype) for n in (61, 331))
    exclude = (np.arange(62) * 3, np.tile([0, 5, 330], 61))
    for n in (1, 12, 400):
        got = create("openmp", dtype).top_items(theta, beta, n, exclude)
        want = create("numpy", dtype).top_items(theta, beta, n, exclude)
        assert np.array_equal(got[0], want[0])
        assert np.array_equal(got[1], want[1])


@LEVELS
@DTYPES
def test_bounds_that_there_are(level, dtype):
    """Whatever the other tests of bounds find, they have them where bytes are multiplied."""
    backend, beta = create("openmp", dtype), np.ones((40, 5), dtype)
    assert (backend.score_bounds(beta) is None) == (level == "baseline" or "x86" not in level)
    for unusable in (-1.0, np.nan, np.inf):
        beta[3, 2] = unusable
        assert backend.score_bounds(beta) is None


@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 200),
    k=st.integers(1, 40),
    length=st.integers(1, 12),
    spread=st.sampled_from([0, 3, 30]),
    density=st.sampled_from([0.05, 0.5, 1.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_bounds_change_no_list(seed, m, k, length, spread, density, dtype):
    """Columns of any scale, zeros, ties, items excluded or in rising order; no score is rounded."""
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-spread, spread + 1, k)
    theta = rng.integers(0, 8, (3, k)) / scale * (rng.random((3, k)) < density)
    beta = rng.integers(0, 100, (m, k)) * scale * (rng.random((m, k)) < density)
    theta[2] = 0
    if seed % 2:
        beta = beta[np.argsort(theta[0] @ beta.T)]
    left_out = [np.flatnonzero(rng.random(m) < 0.3) for _ in range(3)]
    indptr, indices = np.cumsum([0, *map(len, left_out)]), np.concatenate(left_out)
    users, items = theta.astype(dtype), beta.astype(dtype)
    best, backend = openmp.level(), create("openmp", np.dtype(dtype))
    bounds = backend.score_bounds(items)
    for name in openmp.levels():
        openmp.use_level(name)
        for n in (2, 3):  # without and with the user who has zeros alone
            exclude = indptr[: n + 1], indices[: indptr[n]]
            for without, lists in ((None, [[]] * n), (exclude, left_out[:n])):
                want = oracle.top_items(theta[:n] @ beta.T, length, [list(own) for own in lists])
                got = backend.top_items(users[:n], items, length, without, None, bounds)
                for one, wanted in zip(got, want, strict=True):
                    assert_same(one, wanted)
    openmp.use_level(best)


@LEVELS
@DTYPES
def test_bounds_that_are_of_no_use(level, dtype):
    """Items that all exceed those before them, until bounds are given up; most of the best are excluded."""
    m = 3000
    beta = np.stack([np.arange(m), np.arange(m) % 7], axis=1).astype(dtype)
    theta, backend = np.array([[2.0, 1.0]], dtype), create("openmp", dtype)
    excluded = np.append(np.arange(100), np.arange(m - 40, m - 2))
    exclude = np.array([0, len(excluded)]), excluded
    got = backend.top_items(theta, beta, 5, exclude, None, backend.score_bounds(beta))
    want = oracle.top_items(theta.astype(float) @ beta.T.astype(float), 5, [list(excluded)])
    for one, wanted in zip(got, want, strict=True):
        assert_same(one, wanted)


@LEVELS
@DTYPES
@pytest.mark.parametrize("spoiled", [-1.0, np.nan, np.inf])
def test_bounds_and_users_that_have_none(level, dtype, spoiled):
    backend, beta = create("openmp", dtype), np.arange(200.0).reshape(100, 2).astype(dtype)
    theta = np.array([[1.0, 2.0], [spoiled, 1.0]], dtype)
    lists, _ = backend.top_items(theta, beta, 3, None, None, backend.score_bounds(beta))
    assert lists[0].tolist() == [99, 98, 97]
    # −x + (x + 1) is the same for all items; ∞ times zero, of the first item, is no number.
    assert lists[1].tolist() == {-1.0: [0, 1, 2], np.inf: [1, 2, 3]}.get(spoiled, [-1, -1, -1])


@LEVELS
@pytest.mark.parametrize("exponents", [(-140, -5), (-100, -45), (-20, -120), (62, 62), (120, -120)])
def test_bounds_where_scores_underflow_or_overflow(level, exponents):
    """Of float32's numbers: scores that round to zero, to a denormal number or to infinity, in any order."""
    rng, backend = np.random.default_rng(1), create("openmp", np.dtype(np.float32))
    theta, beta = (
        (rng.integers(1, 64, shape) * 2.0**exponent).astype(np.float32)
        for shape, exponent in zip(((1, 3), (300, 3)), exponents, strict=True)
    )
    columns, scores = backend.top_items(theta, beta, 5, None, None, backend.score_bounds(beta))
    exact = (theta.astype(float) @ beta.T.astype(float))[0]
    with np.errstate(over="ignore"):
        best, own = np.sort(exact)[:-6:-1].astype(np.float32), exact[columns[0]].astype(np.float32)
    for wanted in (best, own):  # each of three products may be rounded by half the smallest number
        np.testing.assert_allclose(scores[0], wanted, rtol=1e-6, atol=2 * 2.0**-149)
