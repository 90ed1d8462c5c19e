"""The contract of hpf_gpu.backends.protocol: every operation × backend × dtype against dense formulas.

The cases below hold only numbers that float32 represents exactly, so one oracle value serves both
dtypes, and what is measured is the backend's arithmetic and not the rounding of its input.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import conftest
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.special import gammaln

from hpf_gpu.backends import create, protocol
from hpf_gpu.backends.protocol import Array, Backend, Factor, Full, Host, RankOne, Rates
from hpf_gpu.data.blocks import BlocksInMemory, Pairs, in_memory
from hpf_gpu.model.convergence import Check
from hpf_gpu.model.inference import Fit, Schedule, State, fit, iterate
from hpf_gpu.model.likelihood import Objective, log_factorial_sum, pair_llk
from hpf_gpu.model.priors import Prior
from hpf_gpu.model.sides import Model, start_side
from hpf_gpu.model.start import StartValues

# -- tolerances --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """Largest error accepted, about five times the largest one measured, which stands beside it.

    Measured over numpy and openmp, the latter with 1, 2, 3 and 7 threads and for every x86-64 level.
    """

    shape: float  # shape = prior + statistic
    exp_log: float  # of exp E[ln θ], scaled
    log_scale: float  # absolute, per unit of 1 + |ln scale|
    mean: float
    sums: float  # row and column sums of the mean
    allocate: float
    conservation: float  # Σ_k statistic against the counts
    log_sums: float  # log_rate_sum and log_normalizer_sum, per Σ y (1 + |ln|)
    gamma_elbo: float  # per Σ |terms|
    distance: float
    predict: float
    top_items: float  # scores
    parameters: float  # relative Frobenius error after 20 iterations
    objective: float  # ELBO and log-likelihoods during a fit, per Σ |terms|
    monotone: float  # fall of the ELBO in one iteration, per Σ |terms|


TOLERANCE = {
    "float32": Tolerance(
        shape=4e-7,  # 8.9e-8
        exp_log=3e-7,  # 6.0e-8
        log_scale=2.5e-9,  # 4.9e-10: openmp works in the precision of float, 2e-9 of 1 + 1/shape (special.h)
        mean=3e-7,  # 6.0e-8
        sums=1e-13,  # 1.4e-14
        allocate=2e-5,  # 2.8e-6, columns of 2,000 counts
        conservation=1e-5,  # 1.4e-6
        log_sums=2e-7,  # 3.3e-8
        gamma_elbo=2e-14,  # 3.8e-15
        distance=4e-15,  # 6.6e-16
        predict=2e-6,  # 3.9e-7
        top_items=4e-6,  # 6.9e-7, K=200
        parameters=4e-5,  # 6.9e-6
        objective=5e-6,  # 8.5e-7
        monotone=1e-7,  # 0; 2.3e-8 in 150 examples of 60 iterations
    ),
    "float64": Tolerance(
        shape=1e-15,  # 0
        exp_log=8e-14,  # 1.8e-14
        log_scale=1e-14,  # 1.7e-15
        mean=1e-15,  # 0
        sums=1e-13,  # 1.3e-14
        allocate=6e-12,  # 1.2e-12, E[ln θ] of both sides near −750: each to 2e-15 of it (special.h)
        conservation=3e-13,  # 4.8e-14
        log_sums=2e-14,  # 3.4e-15
        gamma_elbo=3e-14,  # 6.0e-15, log_factorial_sum without AVX
        distance=4e-15,  # 6.1e-16
        predict=5e-15,  # 8.7e-16
        top_items=6e-15,  # 1.2e-15, K=200
        parameters=4e-13,  # 6.8e-14
        objective=6e-13,  # 1.1e-14; 1.3e-13 in 150 examples of 60 iterations
        monotone=5e-16,  # 0; 5.6e-17 in 150 examples of 60 iterations
    ),
}


@pytest.fixture(scope="session")
def tolerance(dtype: np.dtype[Any]) -> Tolerance:
    return TOLERANCE[dtype.name]


def assert_close(got: Host, want: Host, limit: float) -> None:
    """Elementwise relative error; what lies below a millionth of its row's largest is held against that."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    size = np.abs(want)
    scale = np.maximum(size, 1e-6 * size.max(axis=-1, keepdims=True, initial=0))
    error = np.abs(got.astype(np.float64) - want)
    worst = float(np.divide(error, scale, out=error.copy(), where=scale > 0).max(initial=0))
    assert worst <= limit, f"relative error {worst:.2e} > {limit:.0e}"


def assert_near(got: float, want: float, limit: float, scale: float) -> None:
    """Error of one number in proportion to the size of the terms that it sums."""
    assert math.isfinite(got)
    assert abs(got - want) <= limit * scale, f"relative error {abs(got - want) / scale:.2e} > {limit:.0e}"


def assert_same(got: Host | None, want: Host | None) -> None:
    """The same bits."""
    if got is None or want is None:
        assert got is want
    else:
        np.testing.assert_array_equal(got, want)


# -- cases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """Gamma parameters of one side as the protocol takes them, and as the oracle does."""

    shape: Host  # (N, K) float64
    rate_rows: Host  # (N,) float64, or (N, K) for start values
    rate_columns: Host  # (K,) float64; without effect beside a full matrix

    @property
    def gamma(self) -> oracle.Gamma:
        full = self.rate_rows.ndim == 2
        return oracle.Gamma(
            self.shape, self.rate_rows if full else self.rate_rows[:, None] + self.rate_columns
        )


@dataclass(frozen=True)
class Case:
    name: str
    y: Host  # (N, M) float64
    users: Parameters  # N, K
    items: Parameters  # M, K

    @property
    def k(self) -> int:
        return int(self.users.shape.shape[1])

    def csr(self, dtype: np.dtype[Any], index: type = np.int32) -> Any:
        """The counts (N, M) as canonical CSR with the given types of values and indices."""
        matrix = sparse.csr_array(self.y.astype(dtype))
        indices, indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
        csr = sparse.csr_array(matrix.shape, dtype=dtype)
        # Set one by one: the constructor would narrow the indices to int32.
        csr.data, csr.indices, csr.indptr = matrix.data, indices, indptr
        return csr


FACTORS: tuple[int, ...] = (1, 3, 5, 30, 32, 50, 64, 100, 200)
if not conftest.SIMULATED:
    # With these, rows of one to eight cache lines and of more in either dtype: each of those the openmp
    # backend has a kernel for.
    FACTORS += (16, 20, 40, 48, 72, 90, 120)


def _float32_exact(values: Host) -> Host:
    return values.astype(np.float32).astype(np.float64)


def _parameters(rng: np.random.Generator, n: int, k: int, shape: Host | None = None) -> Parameters:
    """Shapes over three decades unless given, rates of rank one."""
    if shape is None:
        shape = np.exp(rng.normal(0.0, 1.2, (n, k)))
    return Parameters(
        _float32_exact(shape), _float32_exact(rng.gamma(2.0, 1.0, n)), _float32_exact(rng.gamma(3.0, 1.0, k))
    )


def _counts(rng: np.random.Generator, n: int, m: int, nnz: int) -> Host:
    """Small whole counts (N, M): power-law degrees, with empty rows and columns at both ends."""
    weight = rng.zipf(1.7, n)[:, None] ** 0.7 * rng.zipf(1.7, m) ** 0.7
    priority = np.log(weight) + rng.gumbel(size=(n, m))
    if min(n, m) > 3:
        priority[[0, n // 2, -1]] = priority[:, [0, m // 3, -1]] = -np.inf
    y = np.zeros(n * m)
    chosen = np.argsort(priority, axis=None)[::-1][:nnz]
    y[chosen] = rng.geometric(0.3, nnz)
    return y.reshape(n, m)


def _disjoint(n: int, k: int, low: Host | float) -> Host:
    """Shapes (N, K): row n is large on factor n mod K, and ``low`` on all others."""
    return np.where(np.arange(n)[:, None] % k == np.arange(k), 50.0, low)


def _make_case(name: str) -> Case:
    rng = np.random.default_rng(sum(map(ord, name)))

    def case(n: int, m: int, k: int, nnz: int) -> Case:
        return Case(name, _counts(rng, n, m, nnz), _parameters(rng, n, k), _parameters(rng, m, k))

    if name.startswith("K="):
        return case(23, 31, int(name[2:]), 130)
    match name:
        case "one user":
            return case(1, 40, 5, 25)
        case "one item":
            return case(40, 1, 5, 25)
        case "one nonzero":
            return case(7, 9, 5, 1)
        case "no nonzero":  # a block whose users have no counts
            return case(7, 9, 5, 0)
        case "power law":  # long rows and columns
            return case(300, 2000, 32, 6_000 if conftest.SIMULATED else 60_000)
        case "wide":  # more columns than a tile has whose factors fit in cache; rows of thousands
            return case(20, 80_000, 3, 40_000)
        case "tall":  # the same with the sides exchanged
            return case(80_000, 10, 3, 20_000)
        case "huge counts":
            base = case(23, 31, 5, 130)
            y = np.where(base.y > 0, 10.0 ** rng.uniform(0, 9, base.y.shape), 0.0)
            y[tuple(np.argwhere(base.y)[0])] = 1e9
            shapes = (10 ** rng.uniform(-3, 9, side.shape.shape) for side in (base.users, base.items))
            users, items = (_parameters(rng, len(shape), 5, shape) for shape in shapes)
            return Case(name, _float32_exact(np.ceil(y)), users, items)
        case "fractional counts":
            base = case(23, 31, 5, 130)
            return dataclasses.replace(base, y=_float32_exact(base.y * rng.uniform(1e-3, 1, base.y.shape)))
        case "start values" | "start values, K=1" | "start values, K=20":  # rates as full matrices
            k = int(name.partition("=")[2] or 30)
            users, items = (
                Parameters(
                    _float32_exact(0.3 + 0.01 * rng.random((n, k))),
                    _float32_exact(0.3 + 0.01 * rng.random((n, k))),
                    np.zeros(k),
                )
                for n in (23, 31)
            )
        case (
            "tiny rows"
        ):  # every exp E[ln θ] of a row is below 1e-150, or even 1e-300, beside rows that are not
            n = 23 if conftest.SIMULATED else 600
            rows = (rng.choice([1 / 600, 1 / 400, 1.0], (size, 1)) for size in (n, 31))
            shapes = (low * rng.uniform(0.8, 1.0, (len(low), 20)) for low in rows)
            users, items = (_parameters(rng, len(shape), 20, shape) for shape in shapes)
            return Case(name, _counts(rng, n, 31, 5 * n), users, items)
        case "small shapes":
            shapes = (10 ** rng.uniform(-3, 1, (n, 30)) for n in (23, 31))
            users, items = (_parameters(rng, len(shape), 30, shape) for shape in shapes)
        case "disjoint":  # exp(ψ(1e-3)) is below float64's range: φ has only the log-sum-exp
            users, items = (_parameters(rng, n, 7, _disjoint(n, 7, 1e-3)) for n in (23, 31))
        case "nearly disjoint":  # below float32's range, and on both sides of any threshold
            lows = (rng.uniform(0.008, 0.05, (n, 1)) for n in (23, 31))
            users, items = (_parameters(rng, len(low), 7, _disjoint(len(low), 7, low)) for low in lows)
        case _:
            raise ValueError(name)
    return Case(name, _counts(rng, 23, 31, 130), users, items)


ALL_CASES = (
    *(f"K={k}" for k in FACTORS),
    "one user",
    "one item",
    "one nonzero",
    "no nonzero",
    "power law",
    "wide",
    "tall",
    "huge counts",
    "fractional counts",
    "start values",
    "start values, K=1",
    "start values, K=20",  # an odd number of groups of eight
    "small shapes",
    "tiny rows",
    "disjoint",
    "nearly disjoint",
)

#: Cases made for the tiles of the openmp backend: minutes in a simulator.
LARGE = ("wide", "tall")

#: What is left under a sanitizer, many times slower: few nonzeros, rows of several segments, underflow.
FEW = ("K=5", "one user", "one nonzero", "no nonzero", "start values, K=1", "nearly disjoint")

CASES = {
    None: ALL_CASES,
    "fast": tuple(name for name in ALL_CASES if name not in LARGE),
    "asan": FEW,
    "tsan": ("K=5", "nearly disjoint"),
}[conftest.SIMULATED]


@pytest.fixture(scope="session", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


make_case = cache(_make_case)


@cache
def expected_statistics(name: str) -> tuple[Host, Host]:
    """Σ_i y φ (N, K) and Σ_u y φ (M, K), by the oracle."""
    case = make_case(name)
    return oracle.allocate(case.y, case.users.gamma.expected_log, case.items.gamma.expected_log)


@cache
def expected_log_normalizer_sum(name: str) -> float:
    case = make_case(name)
    return oracle.log_normalizer_sum(case.y, case.users.gamma.expected_log, case.items.gamma.expected_log)


# -- what goes in and comes out ----------------------------------------------------------------


def make_factor(backend: Backend, side: Parameters) -> Factor:
    """The factor with these parameters, made as at the start of a fit."""
    factor, _, _ = backend.gamma_update(backend.asarray(side.shape), 0.0, rates_of(backend, side))
    return factor


def rates_of(backend: Backend, side: Parameters) -> Rates:
    """The rates of these parameters in the backend's memory."""
    if side.rate_rows.ndim == 2:
        return Full(backend.asarray(side.rate_rows))
    return RankOne(backend.asarray(side.rate_rows), backend.asarray(side.rate_columns))


def make_factors(backend: Backend, case: Case) -> tuple[Factor, Factor]:
    return make_factor(backend, case.users), make_factor(backend, case.items)


def garbage(backend: Backend, n: int, k: int) -> Array:
    """A matrix (N, K) that must be overwritten, not added to."""
    return backend.asarray(np.full((n, k), np.nan))


def on_host(backend: Backend, arrays: tuple[Array | None, ...]) -> tuple[Host | None, ...]:
    return tuple(None if array is None else backend.asnumpy(array) for array in arrays)


def factor_on_host(backend: Backend, factor: Factor) -> tuple[Host, ...]:
    """Shape, rates, exp E[ln θ] and its scale."""
    arrays = (factor.shape, *vars(factor.rates).values(), factor.exp_log, factor.log_scale)
    return tuple(backend.asnumpy(array) for array in arrays)


def rate_on_host(backend: Backend, rates: Rates) -> Host:
    """Rates (N, K) in float64."""
    if isinstance(rates, Full):
        return backend.asnumpy(rates.matrix).astype(np.float64)
    return backend.asnumpy(rates.rows)[:, None] + backend.asnumpy(rates.columns)


# -- the interface -----------------------------------------------------------------------------


def _public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def _parameters_of(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(method).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


#: What a backend shows beyond the protocol: ``threads`` is a setting that only OpenMP has.
EXTRAS = {"openmp": {"threads"}}


@pytest.mark.parametrize("name", conftest.NAMES)
def test_every_backend_is_here(name: str) -> None:
    """One that is not is a skip that says why; a failure if HPF_GPU_REQUIRE (names, with commas) has it."""
    if name in conftest.MISSING:
        required = os.environ.get("HPF_GPU_REQUIRE", "").split(",")
        (pytest.fail if name in required else pytest.skip)(f"{name}: {conftest.MISSING[name]}")


def test_signatures(backend: Backend) -> None:
    """The protocol's names, parameters, kinds and defaults: nothing missing, nothing more."""
    assert _public(backend) == _public(protocol.Backend) | EXTRAS.get(backend.name, set())
    for name, asked in inspect.getmembers(protocol.Backend, inspect.isfunction):
        if not name.startswith("_"):
            assert _parameters_of(getattr(type(backend), name)) == _parameters_of(asked), name


def test_names_itself(backend: Backend, backend_name: str, dtype: np.dtype[Any]) -> None:
    assert backend.name == backend_name
    assert backend.dtype == dtype
    line = backend.describe()
    assert line
    assert "\n" not in line


# -- transfers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(7,), (1,), (6, 1), (1, 1), (5, 3), (4, 30), (3, 32), (2, 200), (1, 5), (0, 5)]
)
@pytest.mark.parametrize("layout", ["C", "F", "strided", "float32", "int64"])
def test_round_trip(backend: Backend, shape: tuple[int, ...], layout: str) -> None:
    """A matrix arrives in ``dtype``, a vector in float64, whatever the host's type and order."""
    host = np.arange(math.prod(shape), dtype=np.float64).reshape(shape) + 1
    if layout == "strided":
        host = np.repeat(host, 2, axis=-1)[..., ::2]
    elif layout == "F":
        host = np.asfortranarray(host)
    elif layout != "C":
        host = host.astype(layout)
    back = backend.asnumpy(backend.asarray(host))
    assert back.dtype == (backend.dtype if len(shape) == 2 else np.float64)
    assert back.flags.c_contiguous
    assert_same(back, host)


def test_vectors_keep_float64(backend: Backend) -> None:
    vector = np.array([1 / 3, 1e300, 1 + 2**-50])
    assert_same(backend.asnumpy(backend.asarray(vector)), vector)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (5, 3), (2, 32)])
def test_transfers_copy(backend: Backend, shape: tuple[int, ...]) -> None:
    """Neither side sees what is written to the other afterwards."""
    host = np.ones(shape, backend.dtype if len(shape) == 2 else np.float64)
    array = backend.asarray(host)
    host[...] = 2
    copy = backend.asnumpy(array)
    assert (copy == 1).all()
    copy[...] = 3
    assert (backend.asnumpy(array) == 1).all()


def test_array_arithmetic(backend: Backend) -> None:
    """What inference does to arrays without asking the backend."""
    vector, matrix = np.array([1.0, 2.0, 4.0]), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    v, m = backend.asarray(vector), backend.asarray(matrix)
    assert_same(backend.asnumpy(v + v), vector + vector)
    assert_same(backend.asnumpy(0.5 + v), 0.5 + vector)
    assert_same(backend.asnumpy(v * v), vector * vector)
    assert_same(backend.asnumpy(3.0 / v), 3.0 / vector)
    assert_same(backend.asnumpy((3.0 / v)[:, None]), (3.0 / vector)[:, None])
    assert float((v * v).sum()) == 21.0
    m += backend.asarray(matrix)
    assert_same(backend.asnumpy(m), 2 * matrix)
    m *= 0.5
    m += m * 0.25
    assert_same(backend.asnumpy(m), 1.25 * matrix)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3), (7, 32), (7, 200)])
@pytest.mark.parametrize("numbers", [[5, 0, 3], [2], [], list(range(7))], ids=len)
def test_rows(backend: Backend, shape: tuple[int, ...], numbers: list[int]) -> None:
    """Selected rows are a copy, laid out as operations take them; assigned ones leave the others alone."""
    host, rows = np.arange(1.0, math.prod(shape) + 1).reshape(shape), np.array(numbers, np.int64)
    array = backend.asarray(host)
    selected = backend.select_rows(array, rows)
    assert_same(backend.asnumpy(selected), host[rows])
    assert backend.asnumpy(selected).dtype == backend.asnumpy(array).dtype
    if len(shape) == 2 and numbers:
        assert backend.distance(selected, backend.asarray(host[rows])) == 0
        selected *= 2.0
        assert_same(backend.asnumpy(array), host)
    target, values = backend.asarray(host), np.full((len(rows), *shape[1:]), -1.0)
    backend.assign_rows(target, rows, backend.asarray(values))
    want = host.copy()
    want[rows] = values
    assert_same(backend.asnumpy(target), want)


@pytest.mark.parametrize("columns", [[0], [4, 1], [0, 1, 2, 3, 4]], ids=str)
def test_columns(backend: Backend, columns: list[int]) -> None:
    """Columns are copied, in a layout that kernels take, and one can be overwritten with a number."""
    host = np.random.default_rng(6).random((7, 5)).astype(backend.dtype)
    array = backend.asarray(host)
    selected = backend.select_columns(array, np.array(columns))
    assert_same(backend.asnumpy(selected), np.ascontiguousarray(host[:, columns]))
    assert backend.distance(selected, backend.asarray(host[:, columns])) == 0
    selected *= 2.0
    assert_same(backend.asnumpy(array), host)
    array[:, 3] = 2.0**120
    host[:, 3] = 2.0**120
    assert_same(backend.asnumpy(array), host)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_counts(backend: Backend, case: Case, index: type) -> None:
    """Shape and number of nonzeros are kept; the matrix that was handed over is left alone."""
    csr = case.csr(backend.dtype, index)
    before = [array.copy() for array in (csr.data, csr.indices, csr.indptr)]
    counts = backend.counts(csr, case.k)
    users, items = make_factors(backend, case)
    for _ in range(2):
        backend.allocate(counts, users, items)
    backend.log_normalizer_sum(counts, users, items)
    assert counts.shape == case.y.shape
    assert counts.nnz == np.count_nonzero(case.y)
    for array, kept in zip((csr.data, csr.indices, csr.indptr), before, strict=True):
        assert array.dtype == kept.dtype
        assert_same(array, kept)


# -- the gamma posteriors ----------------------------------------------------------------------


def both_sides(case: Case) -> Iterator[Parameters]:
    yield case.users
    yield case.items


@pytest.mark.parametrize("prior_shape", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("with_out", [False, True], ids=["", "out"])
def test_gamma_update(
    backend: Backend, case: Case, tolerance: Tolerance, prior_shape: float, with_out: bool
) -> None:
    """Shape, exp E[ln θ] scaled by rows, and the sums of the mean, for the shape as it was stored."""
    for side in both_sides(case):
        n, k = side.shape.shape
        rates, out = rates_of(backend, side), garbage(backend, n, k) if with_out else None
        factor, row_sums, column_sums = backend.gamma_update(
            backend.asarray(side.shape), prior_shape, rates, out
        )
        stored, *_, exp_log, log_scale = factor_on_host(backend, factor)
        assert stored.dtype == exp_log.dtype == backend.dtype
        assert log_scale.dtype == np.float64
        assert factor.rates is rates
        assert_close(stored, side.shape + prior_shape, tolerance.shape)

        # E[ln θ] of a small shape magnifies the rounding of prior + statistic, so it is judged
        # against the shape that was stored.
        want = oracle.Gamma(stored.astype(np.float64), side.gamma.rate)
        largest = want.expected_log.max(axis=1)
        # Of E[ln θ], 2e-15 may be wrong (special.h): of an entry and of the largest.
        limit = max(tolerance.exp_log, 4e-15 * float(np.abs(largest).max()))
        assert_close(exp_log, np.exp(want.expected_log - largest[:, None]), limit)
        assert ((exp_log >= 0) & (exp_log <= 1)).all()
        assert (exp_log.max(axis=1) == 1).all()
        assert log_scale.shape == (n,)
        scale_error = np.abs(log_scale - largest) / (1 + np.abs(largest))
        assert float(scale_error.max(initial=0)) <= tolerance.log_scale

        for sums, wanted in ((row_sums, want.row_sums), (column_sums, want.column_sums)):
            assert backend.asnumpy(sums).dtype == np.float64
            assert_close(backend.asnumpy(sums)[:, None], wanted[:, None], tolerance.sums)
        if with_out:
            assert_same(backend.asnumpy(out), exp_log)
            alone, *_ = backend.gamma_update(backend.asarray(side.shape), prior_shape, rates)
            assert_same(backend.asnumpy(alone.exp_log), exp_log)


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


def test_mean(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    for side in both_sides(case):
        mean = backend.asnumpy(backend.mean(make_factor(backend, side)))
        assert mean.dtype == backend.dtype
        assert_close(mean, side.gamma.mean, tolerance.mean)


@pytest.mark.parametrize(
    ("shape", "hyper_shape", "hyper_mean"), [(0.3, 0.3, 1.0), (1e-3, 5.0, 0.2), (2.5, 1e-3, 7.0)]
)
def test_gamma_elbo(
    backend: Backend, case: Case, tolerance: Tolerance, shape: float, hyper_shape: float, hyper_mean: float
) -> None:
    for side in both_sides(case):
        n, k = side.shape.shape
        hyper = oracle.Gamma(np.full(n, hyper_shape + k * shape), np.linspace(0.1, 3.0, n))
        prior_rate = hyper_shape / hyper_mean
        terms = oracle.gamma_elbo_terms(side.gamma, hyper, shape, hyper_shape, prior_rate)
        factor, rate = make_factor(backend, side), backend.asarray(hyper.rate)
        got = backend.gamma_elbo(factor, rate, shape, hyper_shape, prior_rate)
        assert_near(got, sum(terms.values()), tolerance.gamma_elbo, oracle.magnitude(terms))


def test_distance(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    a = case.users.shape
    # Not all within a factor of two, where a difference of floats would be exact.
    b = _float32_exact(a * np.linspace(0.01, 20.0, a.size).reshape(a.shape))
    want = float(np.sqrt(((a - b) ** 2).sum()))
    assert_near(backend.distance(backend.asarray(a), backend.asarray(b)), want, tolerance.distance, want)
    assert backend.distance(backend.asarray(a), backend.asarray(a)) == 0


# -- the nonzeros ------------------------------------------------------------------------------

SIDES: tuple[protocol.SideName, ...] = ("both", "users", "items")


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize("side", SIDES)
def test_allocate(
    backend: Backend, case: Case, tolerance: Tolerance, side: protocol.SideName, exact: bool
) -> None:
    users, items = make_factors(backend, case)
    counts = backend.counts(case.csr(backend.dtype), case.k)
    got = backend.allocate(counts, users, items, side=side, exact=exact)
    names = ("users", "items")
    for name, statistic, want in zip(
        names, on_host(backend, got), expected_statistics(case.name), strict=True
    ):
        if side not in (name, "both"):
            assert statistic is None
            continue
        assert statistic is not None
        assert statistic.dtype == backend.dtype
        assert_close(statistic, want, tolerance.allocate)


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
    users = Parameters(_float32_exact(np.array([[1.0, low]])), np.ones(1), np.zeros(2))
    items = Parameters(np.ones((1, 2)), np.array([[rate, 1.0]]), np.zeros(2))
    case = Case("exact", np.array([[8.0]]), users, items)
    got = backend.allocate(backend.counts(case.csr(dtype), 2), *make_factors(backend, case), exact=True)
    wanted = oracle.allocate(case.y, users.gamma.expected_log, items.gamma.expected_log)
    for statistic, want in zip(on_host(backend, got), wanted, strict=True):
        assert statistic is not None
        assert_close(statistic.T, want.T, tolerance.allocate)  # every entry by its own size


@pytest.mark.parametrize("offered", ["both", "users", "items"])
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_allocate_into_buffers(backend: Backend, case: Case, offered: str, exact: bool) -> None:
    """Buffers are used, what they held before is forgotten, and the result is the same bits."""
    users, items = make_factors(backend, case)
    counts = backend.counts(case.csr(backend.dtype), case.k)
    (n, m), k = case.y.shape, case.k
    out = (
        garbage(backend, n, k) if offered in ("users", "both") else None,
        garbage(backend, m, k) if offered in ("items", "both") else None,
    )
    want = on_host(backend, backend.allocate(counts, users, items, exact=exact))
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


def test_log_rate_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    theta, beta = (_float32_exact(side.gamma.mean) for side in both_sides(case))
    counts = backend.counts(case.csr(backend.dtype), case.k)
    got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
    u, i = case.y.nonzero()
    scale = float(np.sum(case.y[u, i] * (1 + np.abs(np.log((theta @ beta.T)[u, i])))))
    assert_near(got, oracle.log_rate_sum(case.y, theta, beta), tolerance.log_sums, scale)


@pytest.mark.parametrize("k", [3, 30])
def test_log_rate_sum_of_small_products(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, k: int
) -> None:
    """Where products are tiny, subnormal in part, or zero, which counts as 2^-1022 / 2^500."""
    rng, (n, m) = np.random.default_rng(k), (7, 9)
    csr = sparse.csr_array(rng.integers(0, 5, (n, m)).astype(dtype))
    y, counts = csr.toarray().astype(np.float64), backend.counts(csr, k)
    powers = {"float32": (-8, -9, -17, -18, -19, -20), "float64": (-75, -76, -152, -153, -154, -155)}
    for power in powers[dtype.name]:
        theta, beta = (rng.gamma(0.5, size=(size, k)) * 10.0**power for size in (n, m))
        theta, beta = (x.astype(dtype).astype(np.float64) for x in (theta, beta))
        # The oracle's own products are normal: one factor is scaled by a power of two.
        up = 2.0**500 if dtype == np.float64 else 1.0
        want = oracle.log_rate_sum(y, theta * up, beta) - y.sum() * np.log(up)
        got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
        assert_near(got, want, tolerance.log_sums, abs(want))
    theta[:], least = 0, np.log(np.finfo(np.float64).tiny) - 500 * np.log(2)
    got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
    assert_near(got, y.sum() * least, tolerance.log_sums, abs(y.sum() * least))


def test_log_rate_sum_below_float32(backend: Backend, tolerance: Tolerance) -> None:
    """Products that underflow in float32 have a logarithm all the same."""
    case = make_case("K=30")
    theta, beta = (_float32_exact(side.gamma.mean * 1e-25) for side in both_sides(case))
    counts = backend.counts(case.csr(backend.dtype), case.k)
    got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
    assert_near(got, oracle.log_rate_sum(case.y, theta, beta), tolerance.log_sums, 100 * float(case.y.sum()))


def test_log_normalizer_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    users, items = make_factors(backend, case)
    got = backend.log_normalizer_sum(backend.counts(case.csr(backend.dtype), case.k), users, items)
    want = expected_log_normalizer_sum(case.name)
    assert_near(got, want, tolerance.log_sums, abs(want) + float(case.y.sum()))


def test_log_factorial_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    want = oracle.log_factorial_sum(case.y)
    got = backend.log_factorial_sum(backend.counts(case.csr(backend.dtype), case.k))
    assert_near(got, want, tolerance.gamma_elbo, np.abs(gammaln(case.y + 1)).sum() + 1)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_predict_pairs(backend: Backend, case: Case, tolerance: Tolerance, index: type) -> None:
    """Any pairs in any order, repeated ones included."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, n, 500).astype(index) for n in case.y.shape)
    theta, beta = (_float32_exact(side.gamma.mean) for side in both_sides(case))
    got = backend.predict_pairs(backend.asarray(theta), backend.asarray(beta), rows, columns)
    want = np.einsum("zk,zk->z", theta[rows], beta[columns])
    assert isinstance(got, np.ndarray)
    assert got.dtype == backend.dtype
    assert_close(got[:, None], want[:, None], tolerance.predict)


def test_predict_no_pairs(backend: Backend) -> None:
    none = np.zeros(0, np.int64)
    ones = backend.asarray(np.ones((3, 5)))
    assert backend.predict_pairs(ones, ones, none, none).shape == (0,)


# -- recommendations ---------------------------------------------------------------------------


def as_csr(lists: list[list[int]], index: type = np.int64) -> tuple[Host, Host]:
    """Indptr and indices of lists of items."""
    indptr = np.concatenate([[0], np.cumsum([len(items) for items in lists], dtype=np.int64)])
    return indptr.astype(index), np.array([i for items in lists for i in items], dtype=index)


def lists_of_items(n: int, m: int) -> list[list[int]]:
    """Nothing, everything, and all shares in between, for each of N users."""
    rng = np.random.default_rng(n + m)
    return [np.flatnonzero(rng.random(m) < u % 5 / 4).tolist() for u in range(n)]


@pytest.mark.parametrize("length", [1, 10])
def test_top_items(backend: Backend, case: Case, tolerance: Tolerance, length: int) -> None:
    """The best scores to rounding, each that of its column; no column twice, and none that is left out."""
    some = slice(0, 300)  # of "tall" and "wide": the oracle is slow
    theta, beta = _float32_exact(case.users.gamma.mean[some]), _float32_exact(case.items.gamma.mean[:3000])
    rate, exclude = theta @ beta.T, lists_of_items(len(theta), len(beta))
    arrays = backend.asarray(theta), backend.asarray(beta)
    columns, scores = backend.top_items(*arrays, length, as_csr(exclude))
    assert isinstance(columns, np.ndarray)
    assert isinstance(scores, np.ndarray)
    assert (columns.dtype, scores.dtype) == (np.int64, backend.dtype)
    _, want = oracle.top_items(rate, length, exclude)
    assert columns.shape == scores.shape == want.shape
    found = columns >= 0
    assert_same(found, want > -np.inf)
    assert_same(np.isneginf(scores), ~found)
    own = np.where(found, np.take_along_axis(rate, columns, axis=1), 0)
    for wanted in (own, np.where(found, want, 0)):
        assert_close(np.where(found, scores, 0)[..., None], wanted[..., None], tolerance.top_items)
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    for u, items in enumerate(columns):
        assert len(set(items[found[u]])) == found[u].sum()
        assert not set(items[found[u]]) & set(exclude[u])


@pytest.mark.parametrize("length", [1, 5, 64, 150, 600])
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (1, 100, 3), (3, 64, 1), (50, 130, 5), (7, 1000, 33)])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_top_items_of_equal_scores(
    backend: Backend, n: int, m: int, k: int, length: int, index: type
) -> None:
    """Small whole numbers, so that no score is rounded and most are tied: the right columns, one by one."""
    rng = np.random.default_rng(m)
    theta, beta = rng.integers(0, 3, (n, k)).astype(float), rng.integers(0, 3, (m, k)).astype(float)
    nothing, all_but_one = [[] for _ in range(n)], [list(range(1, m)) for _ in range(n)]
    everything = [list(range(m)) for _ in range(n)]
    for exclude in (nothing, all_but_one, everything, lists_of_items(n, m)):
        want = oracle.top_items(theta @ beta.T, length, exclude)
        got = backend.top_items(backend.asarray(theta), backend.asarray(beta), length, as_csr(exclude, index))
        for one, wanted in zip(got, want, strict=True):
            assert_same(one, wanted)
    without = backend.top_items(backend.asarray(theta), backend.asarray(beta), length)
    for one, wanted in zip(without, oracle.top_items(theta @ beta.T, length, nothing), strict=True):
        assert_same(one, wanted)


def test_top_items_of_any_sign_and_order(backend: Backend) -> None:
    """Scores below zero and rising ones, which displace one another, are no special case."""
    beta = np.arange(-500.0, 500.0)[:, None]
    theta = np.array([[1.0], [-1.0], [0.0]])
    columns, scores = backend.top_items(backend.asarray(theta), backend.asarray(beta), 4)
    assert columns.tolist() == [[999, 998, 997, 996], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert scores.tolist() == [[499, 498, 497, 496], [500, 499, 498, 497], [0, 0, 0, 0]]
    for length in (999, 1000, 1001, 1002):  # of all but one, all, and more than there are
        columns, _ = backend.top_items(backend.asarray(theta), backend.asarray(beta), length)
        want = np.full((3, 1002), -1)
        want[:, :1000] = np.arange(1000)
        want[0, :1000] = want[0, 999::-1]
        assert_same(columns, want[:, :length])
    below, _ = backend.top_items(backend.asarray(theta), backend.asarray(beta[:70] - 500), 2)
    assert below.tolist() == [[69, 68], [0, 1], [0, 1]]


def test_top_items_of_nobody_and_of_nothing(backend: Backend) -> None:
    nobody, somebody, items = (backend.asarray(np.ones(shape)) for shape in ((0, 3), (2, 3), (4, 3)))
    for exclude in (None, as_csr([])):
        columns, scores = backend.top_items(nobody, items, 5, exclude)
        assert columns.shape == scores.shape == (0, 5)
    columns, scores = backend.top_items(somebody, nobody, 2)
    assert columns.tolist() == [[-1, -1]] * 2
    assert np.isneginf(scores).all()


@pytest.mark.parametrize(
    ("n", "m"), [(700, 70), (3, 6_000)] if conftest.SIMULATED else [(70_000, 70), (3, 600_000)]
)
def test_top_items_where_blocks_meet(backend: Backend, n: int, m: int) -> None:
    """More users, and more items, than are worked on at once."""
    beta = np.random.default_rng(1).permutation(m)[:, None].astype(float)  # exact in float32
    theta, best = np.ones((n, 1)), np.argsort(-beta[:, 0])
    exclude = [[int(best[u % 5])] for u in range(n)]
    columns, _ = backend.top_items(backend.asarray(theta), backend.asarray(beta), 6, as_csr(exclude))
    for residue in range(5):
        want = np.delete(best[:7], residue)
        assert (columns[residue::5] == want[:6]).all()


def test_top_items_in_bounded_memory(backend: Backend) -> None:
    """Of 30 million scores, 120 or 240 MB, only a few are there at once."""
    rng = np.random.default_rng(0)
    theta, beta = (backend.asarray(rng.random((n, 3))) for n in (500, 60_000))
    tracemalloc.start()
    backend.top_items(theta, beta, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 70e6  # 32 MB measured; what compiled code allocates itself is not in it


# -- every operation ---------------------------------------------------------------------------


def test_operations_repeat_and_leave_inputs_alone(backend: Backend, case: Case) -> None:
    """Two calls give the same bits, and what the protocol doesn't call consumed stays as it was."""
    users, items = make_factors(backend, case)
    theta, beta = backend.mean(users), backend.mean(items)
    counts = backend.counts(case.csr(backend.dtype), case.k)
    rows, columns = case.y.nonzero()
    hyper_rate = backend.asarray(np.linspace(0.1, 3.0, len(case.y)))
    exclude = (np.arange(len(case.y) + 1), np.zeros(len(case.y), np.int64))  # the first item, to everybody

    def refreshed() -> tuple[Host | None, ...]:
        factor, *sums = backend.gamma_update(backend.asarray(case.users.shape), 0.3, users.rates)
        return (*factor_on_host(backend, factor), *on_host(backend, tuple(sums)))

    operations: dict[str, Callable[[], tuple[Any, ...]]] = {
        "allocate": lambda: on_host(backend, backend.allocate(counts, users, items)),
        "allocate users": lambda: on_host(backend, backend.allocate(counts, users, items, side="users")),
        "allocate items": lambda: on_host(backend, backend.allocate(counts, users, items, side="items")),
        "allocate exact": lambda: on_host(backend, backend.allocate(counts, users, items, exact=True)),
        "gamma_update": refreshed,
        "mean": lambda: on_host(backend, (backend.mean(users),)),
        "log_rate_sum": lambda: (backend.log_rate_sum(counts, theta, beta),),
        "log_normalizer_sum": lambda: (backend.log_normalizer_sum(counts, users, items),),
        "gamma_elbo": lambda: (backend.gamma_elbo(users, hyper_rate, 0.3, 0.3, 0.3),),
        "distance": lambda: (backend.distance(theta, users.shape),),
        "log_factorial_sum": lambda: (backend.log_factorial_sum(counts),),
        "select_rows": lambda: on_host(backend, (backend.select_rows(users.exp_log, rows),)),
        "select_columns": lambda: on_host(backend, (backend.select_columns(users.exp_log, np.array([0])),)),
        "predict_pairs": lambda: (backend.predict_pairs(theta, beta, rows, columns),),
        "top_items": lambda: backend.top_items(theta, beta, 3, exclude),
    }

    def inputs() -> list[Host | None]:
        factors = (*factor_on_host(backend, users), *factor_on_host(backend, items))
        return [
            *factors,
            *on_host(backend, (theta, beta, hyper_rate)),
            rows.copy(),
            columns.copy(),
            *map(np.copy, exclude),
        ]

    before = inputs()
    for name, operation in operations.items():
        first, second = operation(), operation()
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
        for kept, now in zip(before, inputs(), strict=True):
            np.testing.assert_array_equal(now, kept, err_msg=name)


@pytest.mark.skipif("numpy" not in conftest.BACKENDS, reason="this process holds the simulated backend alone")
@pytest.mark.parametrize("name", ["K=30", "start values", "disjoint"])
def test_numpy_works_in_blocks_of_any_size(
    name: str, dtype: np.dtype[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seven rows at once, where small data have but one block."""
    monkeypatch.setattr("hpf_gpu.backends.numpy_backend._BLOCK_BYTES", 7 * 30 * 8)
    backend, case, tolerance = create("numpy", dtype), make_case(name), TOLERANCE[dtype.name]
    test_gamma_update(backend, case, tolerance, 0.3, False)
    test_mean(backend, case, tolerance)
    test_gamma_elbo(backend, case, tolerance, 0.3, 0.3, 1.0)
    test_distance(backend, case, tolerance)
    test_allocate(backend, case, tolerance, "both", False)
    test_allocate(backend, case, tolerance, "items", True)
    test_log_rate_sum(backend, case, tolerance)
    test_log_rate_sum_of_small_products(backend, backend.dtype, tolerance, 30)
    test_log_normalizer_sum(backend, case, tolerance)
    test_log_factorial_sum(backend, case, tolerance)
    test_predict_pairs(backend, case, tolerance, np.int64)
    test_top_items(backend, case, tolerance, 10)


# -- whole fits --------------------------------------------------------------------------------

ScheduleName = Literal["joint", "alternating"]
SCHEDULES: tuple[ScheduleName, ...] = ("joint", "alternating")


@dataclass(frozen=True)
class Problem:
    """Data and priors of a small fit."""

    y: Host  # (N, M)
    k: int
    priors: oracle.Priors
    seed: int = 1

    def reference(self, dtype: np.dtype[Any], iterations: int, schedule: ScheduleName) -> list[oracle.State]:
        priors = dataclasses.astuple(self.priors)
        return oracle.fit(self.y, self.k, *priors, self.seed, dtype, iterations, schedule)

    def blocks(self, backend: Backend, users_per_block: int | None = None) -> BlocksInMemory:
        """The counts, in one block or in several, and what is held out."""
        csr = sparse.csr_array(self.y.astype(backend.dtype))
        return in_memory(backend, csr, self.k, self.validation(), users_per_block)

    def model(self, backend: Backend, blocks: BlocksInMemory) -> Model:
        """The model at its start values, for these blocks."""
        p = self.priors
        user, item = Prior(p.a, p.a_prime, p.b_prime), Prior(p.c, p.c_prime, p.d_prime)
        start = StartValues(*self.y.shape, self.k, self.seed, backend.dtype)
        users = (start_side(backend, user, *start.users(user, rows)) for rows in blocks.slices)
        return Model(tuple(users), start_side(backend, item, *start.items(item)))

    def validation(self) -> Pairs:
        """Held-out counts: the data once more, moved by one column."""
        held_out = np.roll(self.y, 1, axis=1)
        rows, columns = held_out.nonzero()
        return Pairs(rows, columns, held_out[rows, columns])

    def objective(self, backend: Backend, blocks: BlocksInMemory, *, full_llk: bool) -> Objective:
        return Objective(backend, blocks, log_factorial_sum(self.y[self.y > 0]), full_llk)


def _small_problem() -> Problem:
    rng = np.random.default_rng(7)
    theta, beta = rng.gamma(0.4, 2.0, (24, 4)), rng.gamma(0.4, 2.0, (33, 4))
    y = rng.poisson(theta @ beta.T).astype(np.float64)
    y[5] = y[:, 9] = 0  # a user and an item without counts
    return Problem(y, 5, oracle.Priors(0.3, 0.4, 1.2, 0.25, 0.5, 0.8))


SMALL = _small_problem()


@cache
def small_reference(dtype: str, schedule: ScheduleName) -> list[oracle.State]:
    return SMALL.reference(np.dtype(dtype), 20, schedule)


def rule(schedule: ScheduleName, *, maxiter: int | None = 20, exact: bool = False) -> Schedule:
    return Schedule("maxiter", 0.0, 1, maxiter, alternating=schedule == "alternating", exact_phi=exact)


def parameters_of(backend: Backend, model: Model) -> dict[str, Host]:
    """Every variational parameter of a model with one block."""
    found = {}
    for name, side in (("users", model.users[0]), ("items", model.items)):
        found[f"{name}: shape"] = backend.asnumpy(side.factor.shape)
        found[f"{name}: rate"] = rate_on_host(backend, side.factor.rates)
        found[f"{name}: mean"] = backend.asnumpy(backend.mean(side.factor))
        found[f"{name}: column sums"] = backend.asnumpy(side.column_sums)
        found[f"{name}: hyper rate"] = backend.asnumpy(side.hyper_rate)
    return found


def expected_parameters(state: oracle.State) -> dict[str, Host]:
    found = {}
    for name, x, hyper in (("users", state.theta, state.xi), ("items", state.beta, state.eta)):
        found[f"{name}: shape"] = x.shape
        found[f"{name}: rate"] = x.rate
        found[f"{name}: mean"] = x.mean
        found[f"{name}: column sums"] = x.column_sums
        found[f"{name}: hyper rate"] = hyper.rate
    return found


def assert_parameters(backend: Backend, model: Model, state: oracle.State, limit: float) -> None:
    got, want = parameters_of(backend, model), expected_parameters(state)
    for name, wanted in want.items():
        assert got[name].shape == wanted.shape, name
        error = float(np.linalg.norm(got[name] - wanted) / np.linalg.norm(wanted))
        assert error <= limit, f"{name}: relative Frobenius error {error:.2e} > {limit:.0e}"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_iterations(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, schedule: ScheduleName, exact: bool
) -> None:
    """Every parameter after each of 20 iterations from hpfrec's start values."""
    start, *states = small_reference(dtype.name, schedule)
    blocks = SMALL.blocks(backend)
    model = SMALL.model(backend, blocks)
    assert_parameters(backend, model, start, tolerance.mean)
    for state in states:
        model = iterate(backend, blocks, model, rule(schedule, exact=exact))
        assert_parameters(backend, model, state, tolerance.parameters)


def run_fit(backend: Backend, schedule: ScheduleName, *, full_llk: bool) -> Fit:
    reports: list[Check] = []
    blocks, how = SMALL.blocks(backend), rule(schedule)
    objective = SMALL.objective(backend, blocks, full_llk=full_llk)
    fitted = fit(
        backend,
        State(SMALL.model(backend, blocks)),
        how,
        objective,
        lambda model, _: iterate(backend, blocks, model, how),
        reports.append,
    )
    assert reports == list(fitted.history)
    return fitted


@pytest.mark.parametrize("full_llk", [False, True], ids=["", "full"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fit(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, schedule: ScheduleName, full_llk: bool
) -> None:
    """The last model, and the ELBO and both log-likelihoods on the way to it."""
    states = small_reference(dtype.name, schedule)
    fitted = run_fit(backend, schedule, full_llk=full_llk)
    assert fitted.iterations == 20
    assert_parameters(backend, fitted.model, states[-1], tolerance.parameters)
    held_out = SMALL.validation()
    pairs = (held_out.rows, held_out.columns, held_out.values)
    for check, state in zip(fitted.history, states[1:], strict=True):
        theta, beta, scale = state.theta.mean, state.beta.mean, state.elbo_magnitude
        llk = oracle.log_likelihood(SMALL.y, theta, beta, full=full_llk)
        val_llk = oracle.pair_log_likelihood(theta, beta, *pairs, full=full_llk)
        assert_near(check.elbo, state.elbo, tolerance.objective, scale)
        assert_near(check.llk, llk, tolerance.objective, scale)
        assert_near(check.val_llk, val_llk, tolerance.objective, scale)


@pytest.mark.parametrize("full_llk", [False, True], ids=["", "full"])
def test_pair_llk(backend: Backend, tolerance: Tolerance, full_llk: bool) -> None:
    case, held_out = make_case("K=30"), SMALL.validation()
    theta, beta = (_float32_exact(side.gamma.mean) for side in both_sides(case))
    rows, columns = held_out.rows % len(theta), held_out.columns % len(beta)
    want = oracle.pair_log_likelihood(theta, beta, rows, columns, held_out.values, full=full_llk)
    pairs = Pairs(rows, columns, held_out.values)
    got = pair_llk(backend, backend.asarray(theta), backend.asarray(beta), pairs, full_llk=full_llk)
    rates = np.einsum("zk,zk->z", theta[rows], beta[columns])
    scale = float(np.sum(held_out.values * (1 + np.abs(np.log(rates))) + rates))
    assert_near(got, want, tolerance.predict, scale)


@pytest.mark.parametrize("users_per_block", [1, 9, 23])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_are_one(
    backend: Backend, tolerance: Tolerance, schedule: ScheduleName, users_per_block: int
) -> None:
    """Users handed out in blocks, down to single users: the same model, spare buffers and all."""
    one_block, three = SMALL.blocks(backend), SMALL.blocks(backend, users_per_block)
    assert len(three.slices) == -(-24 // users_per_block)
    whole, split = SMALL.model(backend, one_block), SMALL.model(backend, three)
    objectives = [SMALL.objective(backend, blocks, full_llk=False) for blocks in (three, one_block)]
    for iteration in range(1, 4):
        whole = iterate(backend, one_block, whole, rule(schedule))
        split = iterate(backend, three, split, rule(schedule))
        for name in ("shape", "exp_log"):
            pieces = [backend.asnumpy(getattr(users.factor, name)) for users in split.users]
            one = backend.asnumpy(getattr(whole.users[0].factor, name))
            assert_close(np.concatenate(pieces), one.astype(np.float64), tolerance.parameters)
            got, want = (backend.asnumpy(getattr(model.items.factor, name)) for model in (split, whole))
            assert_close(got, want.astype(np.float64), tolerance.parameters)
        got_check, want_check = (
            objective.check(model, iteration)
            for objective, model in zip(objectives, (split, whole), strict=True)
        )
        for figure in ("elbo", "llk", "val_llk"):
            want_figure = getattr(want_check, figure)
            assert_near(getattr(got_check, figure), want_figure, tolerance.objective, abs(want_figure))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_iteration_leaves_the_last_model_whole(backend: Backend, schedule: ScheduleName) -> None:
    """Whoever is interrupted, or looks back, finds the finished model and its φ unchanged."""
    blocks = SMALL.blocks(backend, 10)
    objective, model = SMALL.objective(backend, blocks, full_llk=False), SMALL.model(backend, blocks)
    for _ in range(3):
        before = objective.elbo(model)
        following = iterate(backend, blocks, model, rule(schedule))
        assert objective.elbo(model) == before
        model = following


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small data, often with empty rows and columns, and priors over two decades."""
    n, m, k = draw(st.integers(1, 7)), draw(st.integers(1, 8)), draw(st.integers(1, 6))
    count = st.one_of(st.just(0), st.just(0), st.integers(1, 20), st.integers(100, 10_000))
    y = np.array(draw(st.lists(count, min_size=n * m, max_size=n * m)), np.float64).reshape(n, m)
    level = st.sampled_from([0.05, 0.1, 0.3, 1.0, 3.0])
    return Problem(y, k, oracle.Priors(*(draw(level) for _ in range(6))), draw(st.integers(0, 2**31)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_elbo_never_falls(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, schedule: ScheduleName
) -> None:
    """Coordinate ascent ascends; and each ELBO is that of the oracle."""

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(problems())
    def check(problem: Problem) -> None:
        states = problem.reference(dtype, 12, schedule)
        blocks = problem.blocks(backend)
        model, objective = problem.model(backend, blocks), problem.objective(backend, blocks, full_llk=False)
        elbo = objective.elbo(model)
        for i, state in enumerate(states):
            if i > 0:
                model = iterate(backend, blocks, model, rule(schedule))
                before, elbo = elbo, objective.elbo(model)
                assert before - elbo <= tolerance.monotone * state.elbo_magnitude
            assert_near(elbo, state.elbo, tolerance.objective, state.elbo_magnitude)

    check()


def factor_of(backend: Backend, exp_log: Host) -> Factor:
    """Shapes and rates of one, beside an exp E[ln θ] that is not theirs."""
    n, k = exp_log.shape
    rates = RankOne(backend.asarray(np.ones(n)), backend.asarray(np.zeros(k)))
    shape, scale = backend.asarray(np.ones((n, k))), backend.asarray(np.zeros(n))
    return Factor(shape, rates, backend.asarray(exp_log), scale)


@pytest.mark.parametrize("k", [3, 30, 200])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13] if not conftest.SIMULATED else [1, 7, 13])
def test_one_product_underflows(backend: Backend, tolerance: Tolerance, k: int, size: int) -> None:
    """Whichever nonzero of a row it is, that one goes through the log-sum-exp, and no other."""
    rng = np.random.default_rng(size)
    u, v = rng.uniform(0.1, 1.0, (1, k)), rng.uniform(0.1, 1.0, (size, k))
    y = rng.integers(1, 9, (1, size)).astype(np.float64)
    counts, users = backend.counts(sparse.csr_array(y.astype(backend.dtype)), k), factor_of(backend, u)
    expected_log = -0.57721566490153286  # ψ(1)
    for place in range(size):
        others = np.arange(size) != place
        items = factor_of(backend, v * others[:, None])
        phi = np.where(others[:, None], u * v / (v @ u.T), 1 / k)
        got = on_host(backend, backend.allocate(counts, users, items))
        for statistic, want in zip(got, (y @ phi, y.T * phi), strict=True):
            assert statistic is not None
            assert_close(statistic, want, tolerance.allocate)
        logs = np.where(others, np.log(v @ u[0]), 2 * expected_log + np.log(k))
        got_sum, want_sum = backend.log_normalizer_sum(counts, users, items), float(y[0] @ logs)
        assert_near(got_sum, want_sum, tolerance.log_sums, float(y[0] @ (1 + np.abs(logs))))


def test_what_is_small_beside_a_tiny_factor(backend: Backend) -> None:
    """exp E[ln θ] as far as the matrix's type holds it, also where e^ψ itself has underflowed."""
    for ratio, power in ((1.5, -60), (1.8, -60), (1.1, -350), (1.1, -650), (1.2, -650)):
        if backend.dtype == np.float32 and power * (ratio - 1) < -80:
            continue
        shape = _float32_exact(np.array([[-1 / power, -1 / (power * ratio)]]))
        log = oracle.Gamma(shape, np.ones((1, 2))).expected_log
        factor, *_ = backend.gamma_update(
            backend.asarray(shape), 0.0, RankOne(backend.asarray(np.ones(1)), backend.asarray(np.zeros(2)))
        )
        got = backend.asnumpy(factor.exp_log).astype(np.float64)
        np.testing.assert_allclose(
            got, np.exp(log - log[0, 0]), rtol=1e-6 if backend.dtype == np.float32 else 1e-12
        )


@pytest.mark.parametrize("shape", [(2**31, 2), (2, 2**31)], ids=["rows", "columns"])
def test_more_rows_or_columns_than_32_bits_number(backend: Backend, shape: tuple[int, int]) -> None:
    if backend.name == "numpy":
        pytest.skip("NumPy numbers them in 64 bits")

    class Huge:
        indptr = indices = np.zeros(3, np.int64)
        data = np.zeros(0)
        nnz = 0

    Huge.shape = shape
    with pytest.raises(ValueError, match=rf"32 bits, too few for \({shape[0]}, {shape[1]}\)"):
        backend.counts(Huge, 3)


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
