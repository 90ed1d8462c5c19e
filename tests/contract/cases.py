"""Data that operations are tried on, their expected results, and what goes into a backend and comes out.

The cases hold only numbers that float32 represents exactly, so one oracle value serves both dtypes, and
what is measured is the backend's arithmetic and not the rounding of its input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import conftest
import numpy as np
import oracle
from scipy import sparse

from hpf_gpu.backends.protocol import Array, Backend, Factor, Full, Host, RankOne, Rates


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


def float32_exact(values: Host) -> Host:
    return values.astype(np.float32).astype(np.float64)


def make_parameters(rng: np.random.Generator, n: int, k: int, shape: Host | None = None) -> Parameters:
    """Shapes over three decades unless given, rates of rank one."""
    if shape is None:
        shape = np.exp(rng.normal(0.0, 1.2, (n, k)))
    return Parameters(
        float32_exact(shape), float32_exact(rng.gamma(2.0, 1.0, n)), float32_exact(rng.gamma(3.0, 1.0, k))
    )


def make_counts(rng: np.random.Generator, n: int, m: int, nnz: int) -> Host:
    """Small whole counts (N, M): power-law degrees, with empty rows and columns at both ends."""
    weight = rng.zipf(1.7, n)[:, None] ** 0.7 * rng.zipf(1.7, m) ** 0.7
    priority = np.log(weight) + rng.gumbel(size=(n, m))
    if min(n, m) > 3:
        priority[[0, n // 2, -1]] = priority[:, [0, m // 3, -1]] = -np.inf
    y = np.zeros(n * m)
    chosen = np.argsort(priority, axis=None)[::-1][:nnz]
    y[chosen] = rng.geometric(0.3, nnz)
    return y.reshape(n, m)


def disjoint(n: int, k: int, low: Host | float) -> Host:
    """Shapes (N, K): row n is large on factor n mod K, and ``low`` on all others."""
    return np.where(np.arange(n)[:, None] % k == np.arange(k), 50.0, low)


def _make_case(name: str) -> Case:
    rng = np.random.default_rng(sum(map(ord, name)))

    def case(n: int, m: int, k: int, nnz: int) -> Case:
        return Case(name, make_counts(rng, n, m, nnz), make_parameters(rng, n, k), make_parameters(rng, m, k))

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
            return case(100, 600, 32, 1_500) if conftest.SIMULATED else case(300, 2000, 32, 20_000)
        case "wide":  # more columns than a tile has whose factors fit in cache; rows of thousands
            return case(20, 80_000, 3, 40_000)
        case "tall":  # the same with the sides exchanged
            return case(80_000, 10, 3, 20_000)
        case "huge counts":
            base = case(23, 31, 5, 130)
            y = np.where(base.y > 0, 10.0 ** rng.uniform(0, 9, base.y.shape), 0.0)
            y[tuple(np.argwhere(base.y)[0])] = 1e9
            shapes = (10 ** rng.uniform(-3, 9, side.shape.shape) for side in (base.users, base.items))
            users, items = (make_parameters(rng, len(shape), 5, shape) for shape in shapes)
            return Case(name, float32_exact(np.ceil(y)), users, items)
        case "fractional counts":
            base = case(23, 31, 5, 130)
            return dataclasses.replace(base, y=float32_exact(base.y * rng.uniform(1e-3, 1, base.y.shape)))
        case "start values" | "start values, K=1" | "start values, K=20":  # rates as full matrices
            k = int(name.partition("=")[2] or 30)
            users, items = (
                Parameters(
                    float32_exact(0.3 + 0.01 * rng.random((n, k))),
                    float32_exact(0.3 + 0.01 * rng.random((n, k))),
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
            users, items = (make_parameters(rng, len(shape), 20, shape) for shape in shapes)
            return Case(name, make_counts(rng, n, 31, 5 * n), users, items)
        case "small shapes":
            shapes = (10 ** rng.uniform(-3, 1, (n, 30)) for n in (23, 31))
            users, items = (make_parameters(rng, len(shape), 30, shape) for shape in shapes)
        case "disjoint":  # exp(ψ(1e-3)) is below float64's range: φ has only the log-sum-exp
            users, items = (make_parameters(rng, n, 7, disjoint(n, 7, 1e-3)) for n in (23, 31))
        case "nearly disjoint":  # below float32's range, and on both sides of any threshold
            lows = (rng.uniform(0.008, 0.05, (n, 1)) for n in (23, 31))
            users, items = (make_parameters(rng, len(low), 7, disjoint(len(low), 7, low)) for low in lows)
        case _:
            raise ValueError(name)
    return Case(name, make_counts(rng, 23, 31, 130), users, items)


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


#: Those that a simulator runs in float32 alone, as it takes seconds to compile the kernels of one K: in
#: float64, K = 1, 5, 30, 64 and 200 stand for all.
IN_FLOAT32_ALONE = ("K=3", "K=32", "K=50", "K=100") if conftest.SIMULATED else ()


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


# -- neighbours --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of a case's items, and their weights."""

    sources: Host  # (M, L) int32
    weights: Parameters  # M, L


#: Neighbours an item; 17 unless the name is here.
_WIDTHS = {"K=1": 1, "K=5": 33, "K=30": 200, "K=64": 8, "power law": 100, "wide": 3, "tall": 9}


@cache
def make_neighbours(name: str) -> Neighbours:
    """As many neighbours as there are, fewer, or none, all drawn at random."""
    case, rng = make_case(name), np.random.default_rng(len(name))
    m, width = case.y.shape[1], _WIDTHS.get(name, 17)
    sources = np.full((m, width), -1, np.int32)
    if m < 5000:
        for i in range(m):
            others = np.delete(np.arange(m), i)
            size = min(len(others), width if i % 3 else int(rng.integers(0, width + 1)))
            sources[i, :size] = np.sort(rng.choice(others, size, replace=False))
    else:  # among those that follow, for all at once: one by one takes seconds
        distances = np.argpartition(rng.random((m, 4 * width - 1)), width, axis=1)[:, :width] + 1
        size = np.where(np.arange(m) % 3, width, rng.integers(0, width + 1, m))
        drawn = np.where(np.arange(width) < size[:, None], (np.arange(m)[:, None] + distances) % m, m)
        sources[:] = np.where((ascending := np.sort(drawn, axis=1)) < m, ascending, -1)
    low = case.items.shape.min(axis=1, keepdims=True)  # as small as the case's shapes are
    shape = low * np.exp(rng.normal(0.0, 1.2, (m, width)))
    rates = float32_exact(rng.gamma(2.0, 1.0, (m, width)))
    return Neighbours(sources, Parameters(float32_exact(shape), rates, np.zeros(width)))


#: Cases for operations with neighbours: those with K = 1, 5, 30, 64 and 200 stand for all K.  A simulator
#: takes minutes for all of them.
_OF_ALL_K = ("K=1", "K=5", "K=30") if conftest.SIMULATED else ("K=1", "K=5", "K=30", "K=64", "K=200")
_ELSEWHERE = ("fractional counts", "start values", "start values, K=20", "small shapes", "disjoint")
NEIGHBOUR_CASES = tuple(
    name
    for name in CASES
    if (name in _OF_ALL_K or not name.startswith("K=")) and not (conftest.SIMULATED and name in _ELSEWHERE)
)


@cache
def expected_with_neighbours(name: str, temperature: float) -> tuple[Host, Host, Host]:
    """What allocate_with_neighbours is to return, by the oracle."""
    case, more = make_case(name), make_neighbours(name)
    logs = (side.gamma.expected_log for side in (case.users, case.items, more.weights))
    return oracle.allocate_with_neighbours(case.y, *logs, more.sources, temperature)


@cache
def expected_log_totals_with_neighbours(name: str, temperature: float) -> Host:
    """The logarithms of what the shares of nonzeros are normalized by (Z,), by the oracle."""
    case, more = make_case(name), make_neighbours(name)
    logs = (side.gamma.expected_log for side in (case.users, case.items, more.weights))
    return oracle.log_phi_with_neighbours(case.y, *logs, more.sources, temperature)[1]


@cache
def expected_neighbour_rates(name: str) -> Host:
    """The neighbours' part of the rates of all pairs (N, M), by the oracle from means as float32 has them."""
    case, more = make_case(name), make_neighbours(name)
    nothing = (np.zeros((n, 1)) for n in case.y.shape)
    return oracle.rates_with_neighbours(
        case.y, *nothing, float32_exact(more.weights.gamma.mean), more.sources
    )


# -- what goes in and comes out ----------------------------------------------------------------


def make_factor(backend: Backend, side: Parameters, temperature: float = 1.0) -> Factor:
    """The factor with these parameters, made as at the start of a fit."""
    shape, rates = backend.asarray(side.shape), rates_of(backend, side)
    factor, _, _ = backend.gamma_update(shape, 0.0, rates, temperature=temperature)
    return factor


def rates_of(backend: Backend, side: Parameters) -> Rates:
    """The rates of these parameters in the backend's memory."""
    if side.rate_rows.ndim == 2:
        return Full(backend.asarray(side.rate_rows))
    return RankOne(backend.asarray(side.rate_rows), backend.asarray(side.rate_columns))


def make_factors(backend: Backend, case: Case) -> tuple[Factor, Factor]:
    return make_factor(backend, case.users), make_factor(backend, case.items)


def factor_of(backend: Backend, exp_log: Host) -> Factor:
    """Shapes and rates of one, beside an exp E[ln θ] that is not theirs."""
    n, k = exp_log.shape
    rates = RankOne(backend.asarray(np.ones(n)), backend.asarray(np.zeros(k)))
    shape, scale = backend.asarray(np.ones((n, k))), backend.asarray(np.zeros(n))
    return Factor(shape, rates, backend.asarray(exp_log), scale)


def both_sides(case: Case) -> Iterator[Parameters]:
    yield case.users
    yield case.items


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


def as_csr(lists: list[list[int]], index: type = np.int64) -> tuple[Host, Host]:
    """Indptr and indices of lists of items."""
    indptr = np.concatenate([[0], np.cumsum([len(items) for items in lists], dtype=np.int64)])
    return indptr.astype(index), np.array([i for items in lists for i in items], dtype=index)


def lists_of_items(n: int, m: int) -> list[list[int]]:
    """Nothing, everything, and all shares in between, for each of N users."""
    rng = np.random.default_rng(n + m)
    return [np.flatnonzero(rng.random(m) < u % 5 / 4).tolist() for u in range(n)]
