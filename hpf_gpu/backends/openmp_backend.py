"""The C++/OpenMP backend: kernels/openmp over NumPy arrays whose rows fill whole cache lines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import sparse

from hpf_gpu.narrowing import UNSIGNED, narrowest, value_type, value_types

from .openmp_diagnosis import find_fault, install_openmp, unknown_level, usable_cores
from .packing import checked
from .protocol import Array, Ascent, Factor, Host, ItemScores, ModelState, RankOne, Rates, SideName

# GNU OpenMP reads this when it is loaded.  By default its threads spin while they wait, and on shared cores
# they slow down the thread that they wait for.  Online Retail, k=30, two threads on two cores, ms per
# iteration: 1.5 spinning, 1.7 sleeping; with two other busy processes 7.6 spinning, 2.7 to 5.4 sleeping.
_policy_of_user = os.environ.get("OMP_WAIT_POLICY")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
try:
    import hpf_gpu._openmp as _openmp
except ImportError as error:
    raise find_fault(error) from error
finally:
    if _policy_of_user is None:
        del os.environ["OMP_WAIT_POLICY"]

# Without this variable, the widest instruction set of the processor is used.
if _level := os.environ.get("HPF_GPU_LEVEL"):
    if _level not in _openmp.levels():
        raise unknown_level(_level, _openmp.levels())
    _openmp.use_level(_level)

_PRODUCTS = 1 << 35  # of one call, which cannot be interrupted: about a second on one core
_ASCENT = 1 << 28  # numbers of rows and nonzeros that one fold-in goes through, likewise
_PAIRS = 1 << 29  # of items that a user has, in one call
_LINE = 64  # bytes of a cache line, and of the widest vector
_BLOCK, _FOUR = 16, 4  # items and factors whose bounds lie together

#: Whether the module was compiled with OpenMP; without it, it runs on one thread.
HAS_OPENMP = bool(_openmp.has_openmp)

# In a forked child the parent's threads do not exist, and GNU OpenMP would wait for them for ever.
# So a child uses a single thread.
_in_forked_child = False


def _remember_fork() -> None:
    global _in_forked_child
    _in_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_fork)


def describe_devices() -> list[str]:
    """Nothing: the diagnosis describes the cores."""
    return []


def advice() -> str:
    """What would make this backend faster on this machine, or ''."""
    return "" if HAS_OPENMP else install_openmp()


@dataclass(frozen=True)
class TiledCounts:
    """Counts in the tiled layout of the kernels."""

    tiles: Any  # of users and items; of items and users if there are neighbours
    shape: tuple[int, int]
    had: Any = None  # which neighbours of an item its users have

    @property
    def nnz(self) -> int:
        return int(self.tiles.nnz)

    def laid_out(self, *, neighbours: bool) -> Any:
        """The tiles, for operations with or without neighbours."""
        if neighbours != (self.had is not None):
            raise TypeError(f"these counts were laid out with{'out' * neighbours} neighbours")
        return self.tiles


class OpenMPBackend:
    """C++ with OpenMP threads and the widest instruction set of the processor, or that of HPF_GPU_LEVEL.

    A matrix (N, K) is a NumPy view of an array (N, K') whose rows fill whole cache lines, with zeros
    beyond K, so that kernels need no remainder loops.
    """

    name = "openmp"

    def __init__(self, dtype: np.dtype[Any], threads: int | None = None) -> None:
        self.dtype = np.dtype(dtype)
        threaded = HAS_OPENMP and not _in_forked_child
        cores = usable_cores()
        self.threads = min(threads or cores, _openmp.most_threads) if threaded else 1
        single = self.dtype == np.float32
        self._counts_type = _openmp.Counts32 if single else _openmp.Counts64
        self._side_type = _openmp.Side32 if single else _openmp.Side64

    def describe(self) -> str:
        threads = f"{self.threads} threads" if HAS_OPENMP else "one thread: compiled without OpenMP"
        return f"C++ for {_openmp.level()}, {threads}, {self.dtype}"

    def in_use(self) -> AbstractContextManager[object]:
        return nullcontext()

    def keep_pace(self) -> None:
        pass  # the work is done when an operation returns

    # -- transfers ---------------------------------------------------------------------------

    def asarray(self, host: Host) -> Array:
        if host.ndim == 1:
            return np.array(host, dtype=np.float64)
        array = self._empty(*host.shape)
        array[...] = host
        return array

    def asnumpy(self, array: Array) -> Host:
        return np.array(array, order="C")

    def select_rows(self, array: Array, rows: Host) -> Array:
        if array.ndim == 1:
            return array[rows]
        selected = self._empty(len(rows), array.shape[1])
        selected[...] = array[rows]
        return selected

    def select_columns(self, array: Array, columns: Host) -> Array:
        selected = self._empty(len(array), len(columns))
        selected[...] = array[:, columns]
        return selected

    def assign_rows(self, array: Array, rows: Host, values: Array) -> None:
        array[rows] = values

    def counts(self, csr: Any, k: int, sources: Host | None = None) -> TiledCounts:
        if max(csr.shape) > np.iinfo(np.int32).max:
            raise ValueError(
                f"the openmp backend numbers rows and columns in 32 bits, too few for {csr.shape}"
            )
        shape = (int(csr.shape[0]), int(csr.shape[1]))
        if sources is None:
            return TiledCounts(self._tiles(csr, k), shape)
        by_item = sparse.csc_array((csr.data, csr.indices, csr.indptr), shape=shape[::-1]).tocsr()
        tiles, sources = self._tiles(by_item, k), np.ascontiguousarray(sources, dtype=np.int32)
        return TiledCounts(tiles, shape, _openmp.had_neighbours(tiles, *_places(csr), sources, self.threads))

    def _tiles(self, csr: Any, k: int) -> Any:
        data = np.ascontiguousarray(csr.data, dtype=self.dtype)
        return self._counts_type(csr.shape[1], *_places(csr), data, k, self.threads)

    def packed(self, counts: TiledCounts) -> dict[str, Host]:
        tiles = counts.laid_out(neighbours=False)
        first_segment, first_nonzero = tiles.first.T
        row, start = tiles.segment_row, tiles.row_start
        blocks = len(tiles.column_start) - 1
        step = np.diff(row, prepend=0)
        # Of the first segment of each tile: from where the tile's rows begin.
        filled = np.flatnonzero(np.diff(first_segment))
        step[first_segment[filled]] = row[first_segment[filled]] - start[filled // blocks]
        offset = np.empty(tiles.nnz, narrowest(np.diff(tiles.column_start) - 1))
        for tile, (begin, end) in enumerate(pairwise(first_nonzero)):
            within, origin = slice(begin, end), tiles.column_start[tile % blocks]
            np.subtract(tiles.column[within], np.int32(origin), out=offset[within], casting="unsafe")
        return {
            "row_start": start.copy(),
            "column_start": tiles.column_start.copy(),
            "first": tiles.first.copy(),
            "segment_step": step.astype(narrowest(step)),
            "segment_size": tiles.segment_size.astype(narrowest(tiles.segment_size)),
            "column_offset": offset,
            "value": tiles.value.astype(value_type(tiles.value, self.dtype)),
        }

    def unpacked(self, arrays: Mapping[str, Host], shape: tuple[int, int], k: int) -> TiledCounts:
        whole = (np.dtype(np.int64),)
        wanted = {
            "row_start": (1, whole),
            "column_start": (1, whole),
            "first": (2, whole),
            "segment_step": (1, UNSIGNED),
            "segment_size": (1, UNSIGNED),
            "column_offset": (1, UNSIGNED),
            "value": (1, value_types(self.dtype)),
        }
        tiles = self._counts_type(*shape, **checked(arrays, wanted), threads=self.threads)
        return TiledCounts(tiles, shape)

    def choose_neighbours(self, csr: Any, n: int) -> Host:
        users, m = _as_lists(csr.indptr, csr.indices), csr.shape[1]
        ones = sparse.csr_array((np.ones(csr.nnz, np.int8), csr.indices, csr.indptr), shape=csr.shape)
        by_item = ones.T.tocsr()
        items, chosen = _as_lists(by_item.indptr, by_item.indices), np.empty((m, n), np.int32)
        # Python handles Ctrl-C between two calls.
        work = np.concatenate([[0], np.cumsum(np.diff(users[0])[items[1]])])[items[0]]
        cuts = np.searchsorted(work, np.arange(_PAIRS, work[-1], _PAIRS))
        for start, stop in pairwise(np.unique([0, *cuts, m])):
            _openmp.choose_neighbours(*users, *items, start, stop, chosen[start:stop], self.threads)
        return chosen

    def recorded(self, step: Callable[[ModelState], ModelState]) -> Callable[[ModelState], ModelState]:
        return step

    def read_device_data(self, data: Any, *, reindex: bool, has_counts: bool = True) -> None:
        return None  # there is no device

    def operand(self, host: Host) -> Array:
        return host

    # -- the gamma posteriors ----------------------------------------------------------------

    def gamma_update(
        self,
        statistic: Array,
        prior_shape: float,
        rates: Rates,
        out: Array | None = None,
        temperature: float = 1.0,
    ) -> tuple[Factor, Array, Array]:
        n, k = statistic.shape
        exp_log = self._empty(n, k) if out is None else out
        log_scale, row_sums, column_sums = np.empty(n), np.empty(n), np.empty(k)
        _openmp.gamma_update(
            statistic,
            prior_shape,
            *_arrays(rates),
            exp_log,
            log_scale,
            row_sums,
            column_sums,
            temperature,
            self.threads,
        )
        return Factor(statistic, rates, exp_log, log_scale, temperature), row_sums, column_sums

    def mean(self, factor: Factor, out: Array | None = None) -> Array:
        out = self._empty(*factor.shape.shape) if out is None else out
        _openmp.mean(self._side(factor), out, self.threads)
        return out

    def extrapolate(
        self, factor: Factor, earlier: tuple[Array, Array], steps: Array, out: Array | None = None
    ) -> Factor:
        exp_log = self._empty(*factor.exp_log.shape) if out is None else out
        log_scale = np.empty(len(exp_log))
        _openmp.extrapolate(
            *(factor.exp_log, factor.log_scale, *earlier, steps, exp_log, log_scale, self.threads)
        )
        return replace(factor, exp_log=exp_log, log_scale=log_scale)

    def gamma_elbo(
        self, factor: Factor, hyper_rate: Array, shape: float, hyper_shape: float, hyper_prior_rate: float
    ) -> float:
        n, k = factor.shape.shape
        kappa = hyper_shape + k * shape
        row_sums = np.empty(n)
        total = _openmp.gamma_entropy(self._side(factor), shape, row_sums, self.threads)
        total += n * (
            hyper_shape * np.log(hyper_prior_rate) - math.lgamma(hyper_shape) + math.lgamma(kappa) + kappa
        )
        total -= n * k * math.lgamma(shape) + kappa * np.log(hyper_rate).sum()
        return float(total - kappa * ((row_sums + hyper_prior_rate) / hyper_rate).sum())

    def distance(self, a: Array, b: Array) -> float:
        return float(_openmp.distance(a, b, self.threads))

    # -- the nonzeros ------------------------------------------------------------------------

    def allocate(
        self,
        counts: TiledCounts,
        users: Factor,
        items: Factor,
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None] = (None, None),
    ) -> tuple[Array | None, Array | None]:
        tiles, k = counts.laid_out(neighbours=False), users.shape.shape[1]
        sums = [
            (self._empty(n, k) if buffer is None else buffer) if side in (name, "both") else None
            for name, n, buffer in zip(("users", "items"), counts.shape, out, strict=True)
        ]
        _openmp.allocate(tiles, self._side(users), self._side(items), *sums, exact, self.threads)
        return sums[0], sums[1]

    def allocate_with_neighbours(
        self,
        counts: TiledCounts,
        users: Factor,
        items: Factor,
        weights: Factor,
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
    ) -> tuple[Array | None, Array | None, Array | None]:
        tiles, factors = counts.laid_out(neighbours=True), (users, items, weights)
        of_users, of_items, of_weights = (
            (self._empty(*factor.shape.shape) if buffer is None else buffer)
            if side in (name, "both")
            else None
            for name, factor, buffer in zip(("users", "items", "items"), factors, out, strict=True)
        )
        sides = (self._side(factor) for factor in (items, users, weights))
        _openmp.allocate_with_neighbours(
            tiles, counts.had, *sides, of_items, of_weights, of_users, exact, self.threads
        )
        return of_users, of_items, of_weights

    def ascend(
        self,
        counts: TiledCounts,
        rows: Factor,
        others: Factor,
        hyper_rate: Array,
        ascent: Ascent,
        weights: Factor | None = None,
    ) -> tuple[Factor, Array, Array] | None:
        tiles, (n, k) = counts.laid_out(neighbours=weights is not None), rows.shape.shape
        width = k if weights is None else k + weights.shape.shape[1]
        if ascent.maxiter * (n + counts.nnz) * width > _ASCENT:
            return None
        shape, exp_log, log_scale = self._empty(n, k), self._empty(n, k), np.empty(n)
        rates = RankOne(np.empty(n), ascent.columns)
        hyper_rate, column_sums = hyper_rate.copy(), np.empty(k)
        _openmp.fold_in(
            tiles,
            counts.had,
            *(None if side is None else self._side(side) for side in (rows, others, weights)),
            ascent.columns,
            ascent.prior_shape,
            ascent.hyper_shape,
            *ascent.hyper_rate,
            np.array([column for column, _ in ascent.pins], np.int64),
            np.array([shape for _, shape in ascent.pins], np.float64),
            ascent.maxiter,
            ascent.threshold,
            ascent.exact,
            shape,
            rates.rows,
            exp_log,
            log_scale,
            hyper_rate,
            column_sums,
            self.threads,
        )
        return Factor(shape, rates, exp_log, log_scale, rows.temperature), hyper_rate, column_sums

    def log_rate_sum(
        self, counts: TiledCounts, theta: Array, beta: Array, weights: Array | None = None
    ) -> float:
        tiles = counts.laid_out(neighbours=weights is not None)
        if weights is None:
            return float(_openmp.log_rate_sum(tiles, theta, beta, self.threads))
        return float(
            _openmp.log_rate_sum_with_neighbours(tiles, counts.had, beta, theta, weights, self.threads)
        )

    def log_normalizer_sum(
        self, counts: TiledCounts, users: Factor, items: Factor, weights: Factor | None = None
    ) -> float:
        tiles = counts.laid_out(neighbours=weights is not None)
        if weights is None:
            total = _openmp.log_normalizer_sum(tiles, self._side(users), self._side(items), self.threads)
        else:
            sides = (self._side(factor) for factor in (items, users, weights))
            total = _openmp.log_normalizer_sum_with_neighbours(tiles, counts.had, *sides, self.threads)
        return float(total) * users.temperature

    def log_count_products(
        self, counts: TiledCounts, matrix: Array, scale: Array, *, side: Literal["users", "items"]
    ) -> Array:
        out = self._empty(counts.shape[0 if side == "users" else 1], matrix.shape[1])
        # With neighbours, rows of the tiles are items.
        of_rows = (side == "users") == (counts.had is None)
        _openmp.log_count_products(counts.tiles, matrix, scale, of_rows, out, self.threads)
        return out

    def log_factorial_sum(self, counts: TiledCounts) -> float:
        return float(_openmp.log_factorial_sum(counts.tiles, self.threads))

    def predict_pairs(self, theta: Array, beta: Array, rows: Host, columns: Host) -> Host:
        out = np.empty(len(rows), self.dtype)
        rows, columns = (np.ascontiguousarray(numbers, dtype=np.int64) for numbers in (rows, columns))
        _openmp.predict_pairs(theta, beta, rows, columns, out, self.threads)
        return out

    def neighbour_rates(
        self, had: tuple[Host, Host], sources: Host, weights: Array, rows: Host, columns: Host
    ) -> Host:
        order, rates = np.argsort(rows, kind="stable"), np.empty(len(rows), self.dtype)
        indptr, indices, rows, columns = (
            np.ascontiguousarray(numbers, dtype=np.int64) for numbers in (*had, rows[order], columns[order])
        )
        sources = np.ascontiguousarray(sources, dtype=np.int32)
        items = max(len(weights), int(sources.max(initial=-1)) + 1, int(indices.max(initial=-1)) + 1)
        out = np.empty(len(rows), self.dtype)
        _openmp.neighbour_rates(indptr, indices, items, sources, weights, rows, columns, out, self.threads)
        rates[order] = out
        return rates

    def score_bounds(self, beta: Array) -> tuple[Host, Host] | None:
        """Bytes and their scale, as kernels.h has them."""
        m, k = beta.shape
        bytes_of, scale = np.empty(-(-m // _BLOCK) * -(-k // _FOUR) * _BLOCK * _FOUR, np.uint8), np.empty(k)
        return (bytes_of, scale) if _openmp.byte_bounds(beta, bytes_of, scale, self.threads) else None

    def top_items(
        self,
        theta: Array,
        beta: Array,
        n: int,
        exclude: tuple[Host, Host] | None = None,
        neighbours: ItemScores | None = None,
        bounds: tuple[Host, Host] | None = None,
    ) -> tuple[Host, Host]:
        columns, scores = np.empty((len(theta), n), np.int64), np.empty((len(theta), n), self.dtype)
        nothing: tuple[Host | None, Host | None] = (None, None)
        added: tuple[Host | None, Host | None, Host | None] = (None, None, None)
        products = beta.size + 1  # of a user
        if neighbours is not None:
            indptr, targets = _as_lists(neighbours.indptr, neighbours.targets)
            added = (indptr, targets, np.ascontiguousarray(neighbours.weights, dtype=self.dtype))
            average = len(neighbours.had[1]) * len(targets) / max(len(theta) * (len(indptr) - 1), 1)
            products += int(8 * average)  # an addition somewhere takes as long as some products in registers
        # Python handles Ctrl-C between two calls.
        step = max(64 * self.threads, min(_PRODUCTS // products, 1 << 16))
        for start in range(0, len(theta), step):
            users = slice(start, start + step)
            left_out = nothing if exclude is None else _csr_rows(exclude, users)
            had = nothing if neighbours is None else _csr_rows(neighbours.had, users)
            results = columns[users], scores[users]
            _openmp.top_items(
                theta[users], beta, *(bounds or nothing), *left_out, *had, *added, *results, self.threads
            )
        return columns, scores

    def _side(self, factor: Factor) -> Any:
        arrays = factor.shape, *_arrays(factor.rates), factor.exp_log, factor.log_scale
        return self._side_type(*arrays, factor.temperature)

    def _empty(self, n: int, k: int) -> Array:
        """A matrix (n, k) in the kernels' layout, zero beyond k."""
        size = self.dtype.itemsize
        stride = -(-k * size // _LINE) * _LINE // size
        raw = np.empty(n * stride * size + _LINE, np.uint8)
        start = -raw.ctypes.data % _LINE
        padded = raw[start : start + n * stride * size].view(self.dtype).reshape(n, stride)
        padded[:, k:] = 0
        return padded[:, :k]


def _places(csr: Any) -> tuple[Host, Host]:
    """Indptr and indices of one type."""
    index = np.promote_types(csr.indptr.dtype, csr.indices.dtype)
    return csr.indptr.astype(index, copy=False), csr.indices.astype(index, copy=False)


def _as_lists(indptr: Host, numbers: Host) -> tuple[Host, Host]:
    """CSR indptr and indices for kernels that take numbers in 32 bits; without a copy if they are."""
    if numbers.dtype != np.int32 and numbers.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"the openmp backend numbers items in 32 bits, too few for {numbers.max()}")
    return np.ascontiguousarray(indptr, dtype=np.int64), np.ascontiguousarray(numbers, dtype=np.int32)


def _csr_rows(csr: tuple[Host, Host], rows: slice) -> tuple[Host, Host]:
    """Some rows of CSR indptr and indices, as int64 for the kernels."""
    starts = csr[0][rows.start : rows.stop + 1].astype(np.int64)
    return starts - starts[0], csr[1][starts[0] : starts[-1]].astype(np.int64)


def _arrays(rates: Rates) -> tuple[Array | None, Array | None, Array]:
    """Rates as kernel arguments: rows (N,) or a matrix (N, K), and what is added to each column (K,)."""
    if isinstance(rates, RankOne):
        return rates.rows, None, rates.columns
    return None, rates.matrix, np.zeros(rates.matrix.shape[1])
