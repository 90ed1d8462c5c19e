"""The C++/OpenMP backend: kernels/openmp over NumPy arrays whose rows fill whole cache lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from .openmp_diagnosis import find_fault, install_openmp, unknown_level, usable_cores
from .protocol import Array, Factor, Host, ModelState, RankOne, Rates, SideName

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
_LINE = 64  # bytes of a cache line, and of the widest vector

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

    tiles: Any
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        return int(self.tiles.nnz)


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

    def counts(self, csr: Any, k: int) -> TiledCounts:
        data = np.ascontiguousarray(csr.data, dtype=self.dtype)
        index = np.promote_types(csr.indptr.dtype, csr.indices.dtype)
        indptr, indices = csr.indptr.astype(index, copy=False), csr.indices.astype(index, copy=False)
        if max(csr.shape) > np.iinfo(np.int32).max:
            raise ValueError(
                f"the openmp backend numbers rows and columns in 32 bits, too few for {csr.shape}"
            )
        tiles = self._counts_type(csr.shape[1], indptr, indices, data, k, self.threads)
        return TiledCounts(tiles, (int(csr.shape[0]), int(csr.shape[1])))

    def recorded(self, step: Callable[[ModelState], ModelState]) -> Callable[[ModelState], ModelState]:
        return step

    def read_device_data(self, data: Any, *, reindex: bool) -> None:
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
            self.threads,
        )
        return Factor(statistic, rates, exp_log, log_scale), row_sums, column_sums

    def mean(self, factor: Factor) -> Array:
        out = self._empty(*factor.shape.shape)
        _openmp.mean(self._side(factor), out, self.threads)
        return out

    def gamma_elbo(
        self, factor: Factor, hyper_rate: Array, shape: float, hyper_shape: float, hyper_prior_rate: float
    ) -> float:
        n, k = factor.shape.shape
        kappa = hyper_shape + k * shape
        row_sums = np.empty(n)
        total = _openmp.gamma_entropy(self._side(factor), shape, row_sums, self.threads)
        total += n * (hyper_shape * np.log(hyper_prior_rate) - gammaln(hyper_shape) + gammaln(kappa) + kappa)
        total -= n * k * gammaln(shape) + kappa * np.log(hyper_rate).sum()
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
        k = users.shape.shape[1]
        sums = [
            (self._empty(n, k) if buffer is None else buffer) if side in (name, "both") else None
            for name, n, buffer in zip(("users", "items"), counts.shape, out, strict=True)
        ]
        _openmp.allocate(counts.tiles, self._side(users), self._side(items), *sums, exact, self.threads)
        return sums[0], sums[1]

    def log_rate_sum(self, counts: TiledCounts, theta: Array, beta: Array) -> float:
        return float(_openmp.log_rate_sum(counts.tiles, theta, beta, self.threads))

    def log_normalizer_sum(self, counts: TiledCounts, users: Factor, items: Factor) -> float:
        return float(
            _openmp.log_normalizer_sum(counts.tiles, self._side(users), self._side(items), self.threads)
        )

    def log_factorial_sum(self, counts: TiledCounts) -> float:
        return float(_openmp.log_factorial_sum(counts.tiles, self.threads))

    def predict_pairs(self, theta: Array, beta: Array, rows: Host, columns: Host) -> Host:
        out = np.empty(len(rows), self.dtype)
        rows, columns = (np.ascontiguousarray(numbers, dtype=np.int64) for numbers in (rows, columns))
        _openmp.predict_pairs(theta, beta, rows, columns, out, self.threads)
        return out

    def top_items(
        self, theta: Array, beta: Array, n: int, exclude: tuple[Host, Host] | None = None
    ) -> tuple[Host, Host]:
        columns, scores = np.empty((len(theta), n), np.int64), np.empty((len(theta), n), self.dtype)
        # Python handles Ctrl-C between two calls.
        step = max(64 * self.threads, min(_PRODUCTS // (beta.size + 1), 1 << 16))
        for start in range(0, len(theta), step):
            users = slice(start, start + step)
            left_out = (None, None) if exclude is None else _csr_rows(exclude, users)
            _openmp.top_items(theta[users], beta, *left_out, columns[users], scores[users], self.threads)
        return columns, scores

    def _side(self, factor: Factor) -> Any:
        return self._side_type(factor.shape, *_arrays(factor.rates), factor.exp_log, factor.log_scale)

    def _empty(self, n: int, k: int) -> Array:
        """A matrix (n, k) in the kernels' layout, zero beyond k."""
        size = self.dtype.itemsize
        stride = -(-k * size // _LINE) * _LINE // size
        raw = np.empty(n * stride * size + _LINE, np.uint8)
        start = -raw.ctypes.data % _LINE
        padded = raw[start : start + n * stride * size].view(self.dtype).reshape(n, stride)
        padded[:, k:] = 0
        return padded[:, :k]


def _csr_rows(csr: tuple[Host, Host], rows: slice) -> tuple[Host, Host]:
    """Some rows of CSR indptr and indices, as int64 for the kernels."""
    starts = csr[0][rows.start : rows.stop + 1].astype(np.int64)
    return starts - starts[0], csr[1][starts[0] : starts[-1]].astype(np.int64)


def _arrays(rates: Rates) -> tuple[Array | None, Array | None, Array]:
    """Rates as kernel arguments: rows (N,) or a matrix (N, K), and what is added to each column (K,)."""
    if isinstance(rates, RankOne):
        return rates.rows, None, rates.columns
    return None, rates.matrix, np.zeros(rates.matrix.shape[1])
