"""The CUDA backend: kernels/cuda, compiled by CuPy when they are first used.

Everything runs in order on the device that was current when the backend was created, or on the one that was
named, on CuPy's current stream there.  The host waits for results, in likelihoods, transfers and predictions,
and between iterations to keep pace, never within one.  Two runs are bit-identical.  Neither is
guaranteed with ``allocate="cusparse"``, where both depend on cuSPARSE.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, TypeVar

import numpy as np
from scipy.special import gammaln

from hpf_gpu.messages import warn

from .cuda_counts import DeviceCounts, DeviceCsr, Neighbours, Rows, Sorted, Sorter
from .cuda_diagnosis import check_machine, find_fault
from .cuda_graph import Recorded
from .cuda_input import from_array, from_matrix, is_device_array, is_device_matrix
from .cuda_launch import Kernel, Packed, pack
from .cuda_layout import MAX_NUMBER, bytes_of_fit, segmentation
from .cuda_neighbours import WithNeighbours, rows_in_use
from .cuda_source import (
    FILES_OF_A_FIT,
    JOIN_STRANDS,
    MAX_FACTORS,
    MAX_NEIGHBOURS,
    NEIGHBOURS_FILE,
    TOP_PLACES,
    Variant,
    file_of,
    knobs_for,
    source,
)
from .cuda_stream import Narrow, Streamer
from .packing import packed_csr, unpacked_csr
from .protocol import (
    Array,
    Ascent,
    BackendUnavailable,
    DeviceData,
    DeviceError,
    Factor,
    Host,
    ItemScores,
    ModelState,
    NotEnoughMemory,
    RankOne,
    Rates,
    SideName,
)

check_machine()
try:
    import cupy as cp

    cp.cuda.runtime.getDeviceCount()
except Exception as error:
    raise find_fault(error) from error

_AT_ONCE = 1 << 22  # numbers of a matrix or of the counts, pairs, or ranks that are transferred at once
_COUNTERS = 1 << 24  # of items that occur together with another: 256 MiB with what belongs to them

_in_forked_child = False


def _remember_fork() -> None:
    global _in_forked_child
    _in_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_fork)

Allocation = Literal["fused", "cusparse"]
_Class = TypeVar("_Class", bound=type)


# -- kernels and devices ----------------------------------------------------------------------


_compilers = ThreadPoolExecutor(4, "hpf_gpu compiles")
_modules: dict[tuple[str, Variant, int], Future[dict[str, Kernel]]] = {}


def _compiled(file: str, variant: Variant, device: int) -> dict[str, Kernel]:
    """The compiled kernels of one source for one variant; CuPy caches them on disk."""
    try:
        return _compiling(file, variant, device).result()
    except BackendUnavailable:
        _modules.pop((file, variant, device), None)  # the next call tries again
        raise


def _compiling(file: str, variant: Variant, device: int) -> Future[dict[str, Kernel]]:
    """The same, while a thread compiles it: sources compile side by side, and beside other work."""
    key = (file, variant, device)
    if key not in _modules:
        _modules[key] = _compilers.submit(_compile, *key)
    return _modules[key]


def _compile(file: str, variant: Variant, device: int) -> dict[str, Kernel]:
    signatures = variant.signatures((file,))
    with cp.cuda.Device(device):
        module = cp.RawModule(code=source((file,)), options=variant.options)
        try:
            functions = {name: module.get_function(name) for name in signatures}
        except Exception as error:
            raise find_fault(error) from error
    return {
        name: Kernel(name, functions[name], signatures[name], variant.width, device) for name in signatures
    }


class _Kernels(Mapping[str, Kernel]):
    """The kernels for one variant by name; a source is compiled when one of its kernels is first used."""

    def __init__(self, variant: Variant, device: int) -> None:
        self._variant, self._device = variant, device

    def __getitem__(self, name: str) -> Kernel:
        file = file_of(name)
        return _compiled(file, self._variant.of(file), self._device)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variant.signatures())

    def __len__(self) -> int:
        return len(self._variant.signatures())


def describe_devices() -> list[str]:
    """One line per GPU: name, compute capability and memory, or the error that prevents its use."""
    lines = []
    for number in range(cp.cuda.runtime.getDeviceCount()):
        try:
            lines.append(_device_line(number))
        except cp.cuda.runtime.CUDARuntimeError as error:
            lines.append(f"cuda:{number}: {error}")
    return lines


def advice() -> str:
    """Nothing: this is the fastest backend."""
    return ""


def _device_line(number: int) -> str:
    with cp.cuda.Device(number):
        free, total = cp.cuda.runtime.memGetInfo()
    properties = cp.cuda.runtime.getDeviceProperties(number)
    name, capability = properties["name"].decode(), f"{properties['major']}.{properties['minor']}"
    return f"cuda:{number} is {name}, sm {capability}, {_size(free)} of {_size(total)} free"


def free_bytes() -> int | None:
    """Memory of the current device that CuPy's pool can still give out; None with another allocator.

    Other allocators (RMM's, managed memory) may have more than the driver calls free, and do not say.
    """
    pool = cp.get_default_memory_pool()
    if cp.cuda.get_allocator() != pool.malloc:
        return None
    free, limit = cp.cuda.runtime.memGetInfo()[0] + pool.free_bytes(), pool.get_limit()
    return int(min(free, max(0, limit - pool.used_bytes())) if limit else free)


def _no_such_device(number: int) -> BackendUnavailable:
    problem = f"there is no device cuda:{number}: {'; '.join(describe_devices())}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        problem += f"; with CUDA_VISIBLE_DEVICES={visible!r}"
    return BackendUnavailable(problem, remedy="use one of these devices, or backend='cuda'", expected=True)


# -- the backend ---------------------------------------------------------------------------------


#: What CuPy raises when CUDA fails.
_CUDA_ERRORS = (
    cp.cuda.runtime.CUDARuntimeError,
    cp.cuda.driver.CUDADriverError,
    cp.cuda.memory.OutOfMemoryError,
)
#: The same in an operation, where an allocator of another library raises MemoryError, and CuPy OSError if it
#: cannot write a compiled kernel to its cache.
_ERRORS = (*_CUDA_ERRORS, MemoryError, OSError)
_NO_MEMORY = 2  # cudaErrorMemoryAllocation


def _explained(work: str, error: Any) -> Exception:
    """The error that tells the user what to do, for one of ``_ERRORS`` in this work."""
    if isinstance(error, OSError):
        return find_fault(error)
    if isinstance(error, MemoryError) or error.status == _NO_MEMORY:
        free = free_bytes()
        left = "" if free is None else f"; {_size(free)} are free on the GPU"
        return NotEnoughMemory(
            f"memory is too small for {work}: {error}{left}. Free memory, or use backend='openmp'"
        )
    return DeviceError(
        f"CUDA failed in {work}: {error}. An earlier operation may be to blame: a run with the environment "
        "variable CUDA_LAUNCH_BLOCKING=1 tells which. After most of these errors a process cannot use the "
        "GPU any more: restart it"
    )


class _Work:
    """The context of some work: a device is the current one, and ``errors`` are explained.

    CuPy's ``Device`` would call CUDA three times where nothing changes.
    """

    def __init__(self, device: int, name: str, errors: tuple[type[Exception], ...]) -> None:
        self._device, self._name, self._errors = device, name, errors

    def __enter__(self) -> None:
        self._before = cp.cuda.runtime.getDevice()
        if self._before != self._device:
            cp.cuda.runtime.setDevice(self._device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if isinstance(error, self._errors) and not isinstance(error, NotEnoughMemory):
                raise _explained(self._name, error) from error
        finally:
            if self._before != self._device:
                cp.cuda.runtime.setDevice(self._before)


def _operations(backend: _Class) -> _Class:
    """Class decorator: every public method is an operation that runs as :class:`_Work`."""

    def as_work(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(operation)
        def run(self: Any, *arguments: Any, **options: Any) -> Any:
            with _Work(self._device, name, _ERRORS):
                return operation(self, *arguments, **options)

        return run

    for name, operation in vars(backend).copy().items():
        if callable(operation) and not name.startswith("_"):
            setattr(backend, name, as_work(name, operation))
    return backend


@_operations
class CudaBackend:
    """CuPy and CUDA kernels on one device.

    A matrix (N, K) is a view of an array (N, width) with zeros beyond K, so that rows are aligned to memory
    sectors and kernels need no remainder loops.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        *,
        precision: str = "full",
        allocate: Allocation = "fused",
        device: int | None = None,
    ) -> None:
        if _in_forked_child:
            raise BackendUnavailable(
                "CUDA was in use when this process was forked, and does not survive a fork",
                remedy="start processes by multiprocessing's 'spawn', or use backend='openmp' in them",
            )
        if device is not None and device >= cp.cuda.runtime.getDeviceCount():
            raise _no_such_device(device)
        self.name = "cuda" if device is None else f"cuda:{device}"
        self.dtype = np.dtype(dtype)
        self._half, self._composed = precision == "mixed", allocate == "cusparse"
        self._device = cp.cuda.runtime.getDevice() if device is None else device
        counting = Variant(1, self.dtype)
        with cp.cuda.Device(self._device):
            # Fails here if the GPU or the compiler does not work.
            self._counting = _compiled("counts.cu", counting, self._device)
            self._pace = cp.cuda.Event(disable_timing=True)
            self._knobs = knobs_for(int(cp.cuda.Device().compute_capability))
        self._item_to_item = _Kernels(counting, self._device)
        self._sorter = Sorter(cp, self._counting, counting, self._device)
        self._streamer = Streamer(self._sorter)
        self._streams = False  # whether counts do, which the user has been told

    def describe(self) -> str:
        precision = "half precision in float32" if self._half else str(self.dtype)
        return f"{_device_line(self._device)}, CuPy {cp.__version__}, {precision}"

    def _variant(self, k: int, neighbours: int = 0) -> Variant:
        if k > MAX_FACTORS:
            raise ValueError(
                f"k={k}: the cuda backend supports at most {MAX_FACTORS} factors; use backend='openmp'"
            )
        _check_neighbours(neighbours)
        return Variant(k, self.dtype, self._half, self._knobs, neighbours)

    def _kernels(self, k: int) -> _Kernels:
        return _Kernels(self._variant(k), self._device)

    def _empty(self, n: int, k: int, dtype: np.dtype[Any] | None = None) -> Array:
        """A matrix (n, k) in the kernels' layout, for a kernel that writes zeros beyond k."""
        return cp.empty((n, self._variant(k).width), dtype or self.dtype)[:, :k]

    def _zeros(self, n: int, k: int, dtype: np.dtype[Any] | None = None) -> Array:
        """The same with zeros beyond k, for CuPy operations, which do not write them."""
        return cp.zeros((n, self._variant(k).width), dtype or self.dtype)[:, :k]

    def in_use(self) -> AbstractContextManager[object]:
        return _Work(self._device, "arithmetic between operations", _CUDA_ERRORS)

    def keep_pace(self) -> None:
        # When the host returns, the device still has the work submitted since the previous call.
        self._pace.synchronize()
        self._pace.record()

    def _warps(self, k: int, segments: int) -> tuple[int, int]:
        """Numbers of blocks and threads with one warp per segment, or per pair."""
        threads = self._variant(k).knobs.threads
        return -(-segments * 32 // threads), threads

    def _pack(self, k: int, name: str, *values: Any) -> Packed:
        variant = self._variant(k)
        return pack(variant.struct(name), variant.width, self._device, *values)

    def _packed(self, factor: Factor) -> Packed:
        """Shapes and rates of a factor, as kernels take them."""
        rates, k = factor.rates, factor.shape.shape[1]
        if isinstance(rates, RankOne):
            return self._pack(k, "Gamma", factor.shape, rates.rows, None, rates.columns, factor.temperature)
        return self._pack(k, "Gamma", factor.shape, None, rates.matrix, cp.zeros(k), factor.temperature)

    def _left(self, segments: Packed, k: int) -> Packed:
        """Where a kernel notes which nonzeros of a part it leaves to the next one."""
        return self._pack(k, "Left", cp.empty(_count(segments), np.uint8), cp.zeros(1, np.int32))

    def _with_neighbours(self, k: int, neighbours: int) -> WithNeighbours:
        variant = self._variant(k, neighbours)
        return WithNeighbours(cp, _Kernels(variant, self._device), variant, self._device, self._packed)

    def _by_rows(self, n: int, k: int) -> tuple[int, int]:
        """Numbers of blocks and threads with one group of lanes per row, or for many rows several."""
        variant = self._variant(k)
        # Not of the device: partial sums are added by blocks, and are to be the same on all.
        return min(2048, -(-n // variant.gamma_groups)), variant.gamma_threads

    # -- transfers ---------------------------------------------------------------------------

    def asarray(self, host: Host) -> Array:
        if host.ndim == 1:
            return cp.array(host, dtype=np.float64)
        n, k = host.shape
        padded = np.zeros((n, self._variant(k).width), self.dtype)
        padded[:, :k] = host
        return _uploaded(padded, self.dtype)[:, :k]

    def asnumpy(self, array: Array) -> Host:
        host: Host = np.ascontiguousarray(array.get())
        if host.dtype == np.float16:  # exp E[ln θ] in half precision: its largest entries are 2^14
            return host.astype(np.float32) / np.float32(16384)
        return host

    def select_rows(self, array: Array, rows: Host) -> Array:
        selected = array[cp.array(rows, dtype=np.int64)]
        if array.ndim == 1:
            return selected
        padded = self._zeros(len(rows), array.shape[1], array.dtype)
        padded[...] = selected
        return padded

    def select_columns(self, array: Array, columns: Host) -> Array:
        padded = self._zeros(len(array), len(columns), array.dtype)
        padded[...] = array[:, cp.array(columns, dtype=np.int64)]
        return padded

    def assign_rows(self, array: Array, rows: Host, values: Array) -> None:
        array[cp.array(rows, dtype=np.int64)] = values

    def counts(self, csr: Any, k: int, sources: Host | None = None) -> DeviceCounts:
        shape = (int(csr.shape[0]), int(csr.shape[1]))
        if max(shape) > MAX_NUMBER:
            raise ValueError(f"the cuda backend numbers rows and columns in 32 bits, too few for {shape}")
        if self._composed and csr.nnz > MAX_NUMBER:
            raise ValueError(
                f"cuSPARSE numbers nonzeros in 32 bits, too few for {csr.nnz:,}; use allocate='fused'"
            )
        variant = self._variant(k, 0 if sources is None else sources.shape[1])
        for file in FILES_OF_A_FIT if sources is None else (NEIGHBOURS_FILE, *FILES_OF_A_FIT):
            _compiling(file, variant.of(file), self._device)
        narrow = self._narrow_if_too_large(csr, shape, variant)
        if narrow is not None:
            return self._streamer.counts(csr, narrow)
        column, value = _uploaded(csr.indices, np.int32), _uploaded(csr.data, self.dtype)
        users = Sorted(shape, segmentation(csr.indptr.astype(np.int64)), column, value)
        neighbours = None
        if sources is not None:
            had = self._pack(k, "Had", cp.asarray(users.cut.indptr), column)
            neighbours = Neighbours(_uploaded(sources.ravel(), np.int32), had)
        items = self._rows(self._sorter.by_columns(users))
        return DeviceCounts(self._rows(users), items, neighbours=neighbours)

    def packed(self, counts: DeviceCounts) -> dict[str, Host]:
        if counts.neighbours is not None:
            raise TypeError("these counts were laid out with neighbours")
        return packed_csr(counts.users.on_host())

    def unpacked(self, arrays: Mapping[str, Host], shape: tuple[int, int], k: int) -> DeviceCounts:
        return self.counts(unpacked_csr(arrays, shape, self.dtype), k)

    def choose_neighbours(self, csr: Any, n: int) -> Host:
        _check_neighbours(n)
        (users, items), indptr = csr.shape, csr.indptr.astype(np.int64)
        column, value = _uploaded(csr.indices, np.int32), _uploaded(csr.data, self.dtype)
        by_items = self._sorter.by_columns(Sorted((users, items), segmentation(indptr), column, value))
        blocks = max(1, min(items, _COUNTERS // items))
        counts, seen = cp.zeros(blocks * items, np.int32), cp.empty(blocks * items, np.int32)
        keys, chosen = cp.empty(blocks * items, np.int64), cp.empty(items * n, np.int32)
        self._item_to_item["choose_neighbours"](
            *(blocks, 256, cp.asarray(indptr), column, cp.asarray(by_items.cut.indptr), by_items.column),
            *(users, items, n, counts, seen, keys, chosen),
        )
        host: Host = chosen.reshape(items, n).get()
        return host

    def _rows(self, nonzeros: Sorted) -> Rows:
        rows = self._sorter.rows(nonzeros)
        return replace(rows, matrix=_sparse(nonzeros)) if self._composed else rows

    def recorded(self, step: Callable[[ModelState], ModelState]) -> Callable[[ModelState], ModelState]:
        # What cuSPARSE does for a product is not ours: it may wait for the device.  Copies of counts take far
        # longer than the launches that a graph saves, and a rehearsal keeps memory that was not predicted.
        return step if self._composed or self._streams else Recorded(cp, step)

    def read_device_data(self, data: Any, *, reindex: bool, has_counts: bool = True) -> DeviceData | None:
        if is_device_matrix(data):
            self._check_device(data.data)
            triplets = from_matrix(cp, data, self.dtype)
        elif is_device_array(data):
            self._check_device(data)
            as_cupy = cp.asarray if hasattr(type(data), "__cuda_array_interface__") else cp.from_dlpack
            triplets = from_array(cp, as_cupy(data), self.dtype, reindex, has_counts)
        else:
            return None
        users, items = (
            None if side is None else side.get() for side in (triplets.user_ids, triplets.item_ids)
        )
        return DeviceData(self._sorter.canonical(triplets), users, items, triplets.dropped)

    def _check_device(self, array: Any) -> None:
        """Raise ValueError if an array is on another device; one without DLPack is copied by CuPy."""
        own = self._device
        device = array.__dlpack_device__()[1] if hasattr(type(array), "__dlpack_device__") else own
        if device != own:
            raise ValueError(
                f"the counts are on device cuda:{device}, and this fit is on cuda:{own}: "
                f"pass backend='cuda:{device}', or copy them there"
            )

    def operand(self, host: Host) -> Array:
        return self.asarray(host)

    def _narrow_if_too_large(self, csr: Any, shape: tuple[int, int], variant: Variant) -> Narrow | None:
        """The types in which counts stream that the device has no room for; None if it has.

        Raises NotEnoughMemory, before anything is copied, if a fit of these counts is too large either way.
        """
        free = free_bytes()
        on_device = needed = bytes_of_fit(variant, shape, csr.nnz, composed=self._composed)
        if free is None or on_device <= free:
            return None
        narrow = None
        # Counts of device arrays are there already, cuSPARSE takes whole matrices, and neighbours are looked
        # for among all items of a user.
        if not self._composed and not isinstance(csr, DeviceCsr) and not variant.neighbours:
            narrow = Narrow.of(csr, self.dtype)
            needed = min(needed, bytes_of_fit(variant, shape, csr.nnz, streamed=narrow.nbytes))
        with_neighbours = f"and {variant.neighbours} neighbours " if variant.neighbours else ""
        problem = (
            f"a fit of {csr.nnz:,} counts of {shape[0]:,} users and {shape[1]:,} items with k={variant.k} "
            f"{with_neighbours}in {self.dtype} needs about "
            f"{_size(on_device if needed <= free else needed)} on the GPU, of which {_size(free)} are free"
        )
        if needed > free:
            fused = "allocate='fused', " if self._composed else ""
            if variant.neighbours:
                problem += ", and counts with neighbours do not stream there"
                fused = "fewer neighbours, "
            raise NotEnoughMemory(
                f"{problem}; use {fused}use_float=True, precision='mixed', a smaller k, or backend='openmp'"
            )
        if not self._streams and narrow is not None:
            self._streams = True
            warn(
                f"{problem}: the counts stay in host memory and stream to the GPU in every iteration, "
                f"{narrow.nbytes} bytes each by users and by items; the fit takes about {_size(needed)} there"
            )
        return narrow

    # -- the gamma posteriors ----------------------------------------------------------------

    def gamma_update(
        self,
        statistic: Array,
        prior_shape: float,
        rates: Rates,
        out: Array | None = None,
        temperature: float = 1.0,
    ) -> tuple[Factor, Array, Array]:
        (n, k), kernels = statistic.shape, self._kernels(statistic.shape[1])
        variant = self._variant(k)
        exp_log = self._empty(n, k, variant.store) if out is None else out
        log_scale, row_sums, column_sums = cp.empty(n), cp.empty(n), cp.empty(k)
        blocks, threads = self._by_rows(n, k)
        parts = cp.empty(blocks * k)
        factor = Factor(statistic, rates, exp_log, log_scale, temperature)
        kernels["gamma_update"](
            *(blocks, threads, statistic, float(prior_shape), self._packed(factor), n),
            *(exp_log, log_scale, row_sums, parts),
        )
        kernels["sum_columns"](-(-k // 32), 1024, parts, blocks, column_sums)
        return factor, row_sums, column_sums

    def ascend(
        self,
        counts: DeviceCounts,
        rows: Factor,
        others: Factor,
        hyper_rate: Array,
        ascent: Ascent,
        weights: Factor | None = None,
    ) -> None:
        return None

    def mean(self, factor: Factor, out: Array | None = None) -> Array:
        n, k = factor.shape.shape
        out, variant = self._empty(n, k) if out is None else out, self._variant(k)
        self._kernels(k)["mean"](-(-n * variant.width // 256), 256, self._packed(factor), n, out)
        return out

    def extrapolate(
        self, factor: Factor, earlier: tuple[Array, Array], steps: Array, out: Array | None = None
    ) -> Factor:
        (n, k), store = factor.exp_log.shape, factor.exp_log.dtype
        exp_log, log_scale = self._empty(n, k, store) if out is None else out, cp.empty(n)
        self._kernels(k)["extrapolate"](
            *(*self._by_rows(n, k), factor.exp_log, factor.log_scale, *earlier, steps, n, exp_log, log_scale)
        )
        return replace(factor, exp_log=exp_log, log_scale=log_scale)

    def gamma_elbo(
        self, factor: Factor, hyper_rate: Array, shape: float, hyper_shape: float, hyper_prior_rate: float
    ) -> float:
        n, k = factor.shape.shape
        kappa = hyper_shape + k * shape
        entropy, row_sums = cp.empty(n), cp.empty(n)
        self._kernels(k)["gamma_entropy"](
            *(*self._by_rows(n, k), self._packed(factor), n),
            *(shape, entropy, row_sums),
        )
        terms = entropy - kappa * ((row_sums + hyper_prior_rate) / hyper_rate + cp.log(hyper_rate))
        total = n * (hyper_shape * np.log(hyper_prior_rate) - gammaln(hyper_shape) + gammaln(kappa) + kappa)
        return float(terms.sum()) + float(total - n * k * gammaln(shape))

    def distance(self, a: Array, b: Array) -> float:
        n, k = a.shape
        squares = cp.empty(n)
        self._kernels(k)["squared_distance"](*self._by_rows(n, k), a, b, n, squares)
        return float(np.sqrt(float(squares.sum())))

    # -- the nonzeros ------------------------------------------------------------------------

    def allocate(
        self,
        counts: DeviceCounts,
        users: Factor,
        items: Factor,
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None] = (None, None),
    ) -> tuple[Array | None, Array | None]:
        sums: list[Array | None] = [None, None]
        if side in ("users", "both"):
            sums[0] = self._allocate_side(counts.users, users, items, exact, out[0])
        if side in ("items", "both"):
            sums[1] = self._allocate_side(counts.items, items, users, exact, out[1])
        return sums[0], sums[1]

    def allocate_with_neighbours(
        self,
        counts: DeviceCounts,
        users: Factor,
        items: Factor,
        weights: Factor,
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
    ) -> tuple[Array | None, Array | None, Array | None]:
        over = self._with_neighbours(users.shape.shape[1], weights.shape.shape[1])
        return over.allocate(counts, (users, items, weights), side, exact, out)

    def _allocate_side(self, at: Rows, own: Factor, other: Factor, exact: bool, out: Array | None) -> Array:
        """Σ y φ (N, K) over the nonzeros of each row."""
        (n, k), kernels = own.shape.shape, self._kernels(own.shape.shape[1])
        add = self._composed and not exact  # cuSPARSE sums whole rows; nonzeros that underflowed are added
        empty = self._zeros if add else self._empty
        out = empty(n, k) if out is None else out
        partial = empty(at.slots, k)
        sums, stored = self._pack(k, "Sums", out, partial), (own.exp_log, other.exp_log)
        gammas = (self._packed(own), self._packed(other))
        for segments in at.parts:
            left = self._left(segments, k)
            if add:
                self._multiply_sparse(at, segments, own, other, left, out)
            elif not exact:
                kernels["allocate"](*self._warps(k, _count(segments)), segments, *stored, sums, left)
            kernels["allocate_exactly"](*_exactly(segments), segments, *stored, *gammas, exact, left, sums)
        blocks = at.long_row.size * -(-self._variant(k).width // 32)
        kernels["join_segments"](blocks, 32 * JOIN_STRANDS, at.long_row, at.long_begin, partial, add, out)
        return out

    def _multiply_sparse(
        self, at: Rows, segments: Packed, own: Factor, other: Factor, left: Packed, out: Array
    ) -> None:
        """``allocate="cusparse"``: a kernel for the weights y/(U·V), cuSPARSE for their product with V."""
        k = own.shape.shape[1]
        matrix = copy(at.matrix)
        matrix.data = cp.empty(at.nnz, self.dtype)
        self._kernels(k)["weigh"](
            *self._warps(k, at.count), segments, own.exp_log, other.exp_log, matrix.data, left
        )
        cp.multiply(matrix @ other.exp_log, own.exp_log, out=out)

    def log_rate_sum(
        self, counts: DeviceCounts, theta: Array, beta: Array, weights: Array | None = None
    ) -> float:
        if weights is not None:
            over = self._with_neighbours(theta.shape[1], weights.shape[1])
            return over.log_rate_sum(counts, theta, beta, weights)
        by_users = counts.gathers_less_by_users
        at, own, other = (counts.users, theta, beta) if by_users else (counts.items, beta, theta)
        k, sums = theta.shape[1], cp.empty(at.count)
        kernels = self._kernels(k)
        for segments in at.parts:
            arguments = (segments, own, other, sums, self._left(segments, k))
            kernels["log_rate_sums"](*self._warps(k, _count(segments)), *arguments)
            kernels["log_rates_exactly"](*_exactly(segments), *arguments)
        return float(sums.sum())

    def log_normalizer_sum(
        self, counts: DeviceCounts, users: Factor, items: Factor, weights: Factor | None = None
    ) -> float:
        if weights is not None:
            over = self._with_neighbours(users.shape.shape[1], weights.shape.shape[1])
            return over.log_normalizer_sum(counts, (users, items, weights)) * users.temperature
        by_users = counts.gathers_less_by_users
        at, own, other = (counts.users, users, items) if by_users else (counts.items, items, users)
        k, sums = users.shape.shape[1], cp.empty(at.count)
        kernels, stored = self._kernels(k), (own.exp_log, other.exp_log)
        scales, gammas = (own.log_scale, other.log_scale), (self._packed(own), self._packed(other))
        for segments in at.parts:
            warps, left = self._warps(k, _count(segments)), self._left(segments, k)
            kernels["log_normalizer_sums"](*warps, segments, *stored, *scales, sums, left)
            kernels["log_normalizers_exactly"](*_exactly(segments), segments, *stored, *gammas, sums, left)
        return float(sums.sum()) * users.temperature

    def log_count_products(
        self, counts: DeviceCounts, matrix: Array, scale: Array, *, side: Literal["users", "items"]
    ) -> Array:
        at, k = counts.users if side == "users" else counts.items, matrix.shape[1]
        kernels, variant = self._kernels(k), self._variant(k)
        out, partial = self._empty(at.shape[0], k), self._empty(at.slots, k)
        sums = self._pack(k, "Sums", out, partial)
        for segments in at.parts:
            kernels["log_count_products"](*self._warps(k, _count(segments)), segments, matrix, scale, sums)
        blocks = at.long_row.size * -(-variant.width // 32)
        kernels["join_products"](blocks, 32 * JOIN_STRANDS, at.long_row, at.long_begin, partial, out)
        return out

    def log_factorial_sum(self, counts: DeviceCounts) -> float:
        at = counts.users
        sums = cp.empty(at.count)
        for segments in at.parts:
            self._counting["log_factorial_sums"](*self._warps(1, _count(segments)), segments, sums)
        return float(sums.sum())

    def predict_pairs(self, theta: Array, beta: Array, rows: Host, columns: Host) -> Host:
        out = np.empty(len(rows), self.dtype)
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            pairs = [cp.array(numbers[part], dtype=np.int64) for numbers in (rows, columns)]
            rates = cp.empty(pairs[0].size, self.dtype)
            self._kernels(theta.shape[1])["predict_pairs"](
                *self._warps(theta.shape[1], rates.size), theta, beta, *pairs, rates.size, rates
            )
            out[part] = rates.get()
        return out

    def neighbour_rates(
        self, had: tuple[Host, Host], sources: Host, weights: Array, rows: Host, columns: Host
    ) -> Host:
        m, size = weights.shape
        width = self._variant(size).width
        numbers = cp.ndarray((m * width,), weights.dtype, weights.data)
        items = [_uploaded(array, kind) for array, kind in zip(had, (np.int64, np.int32), strict=True)]
        out = np.empty(len(rows), self.dtype)
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            used = np.zeros(m, bool)
            used[columns[part]] = True
            place = (np.cumsum(used, dtype=np.int32) - 1)[columns[part]]
            pairs = [cp.array(some[part], dtype=np.int64) for some in (rows, columns)]
            rates = cp.empty(pairs[0].size, self.dtype)
            self._item_to_item["neighbour_rates"](
                *self._warps(1, rates.size),
                *(*items, _uploaded(sources[used].ravel(), np.int32), numbers, size, width),
                *(*pairs, cp.array(place), rates.size, rates),
            )
            out[part] = rates.get()
        return out

    def score_bounds(self, beta: Array) -> None:
        return None

    def top_items(
        self,
        theta: Array,
        beta: Array,
        n: int,
        exclude: tuple[Host, Host] | None = None,
        neighbours: ItemScores | None = None,
        bounds: None = None,
    ) -> tuple[Host, Host]:
        (users, k), items = theta.shape, beta.shape[0]
        columns, scores = np.empty((users, n), np.int64), np.empty((users, n), self.dtype)
        top_rows = self._variant(k).top_rows
        step = max(1, _AT_ONCE // n)
        if neighbours is not None:
            step = max(1, min(step, _AT_ONCE // max(1, items)))
            begin, targets, weights = rows_in_use(neighbours)
            in_use = (cp.asarray(begin), _uploaded(targets, np.int32), _uploaded(weights, self.dtype))
        for start in range(0, users, step):
            part = slice(start, min(start + step, users))
            rows = part.stop - part.start
            left_out = (None, None) if exclude is None else _rows_of(exclude, part)
            added = None
            if neighbours is not None:
                added = cp.empty(rows * items, self.dtype)
                had = _rows_of(neighbours.had, part)
                self._item_to_item["add_scores"](rows, 256, *had, *in_use, items, added)
            best, score = cp.empty(rows * n, np.int64), cp.empty(rows * n, self.dtype)
            for first in range(0, n, TOP_PLACES):
                self._kernels(k)["top_items"](
                    -(-rows // top_rows),
                    TOP_PLACES,
                    *(theta[part], beta, rows, items, added, *left_out),
                    *(first, min(TOP_PLACES, n - first), n, best, score),
                )
            columns[part], scores[part] = best.reshape(rows, n).get(), score.reshape(rows, n).get()
        return columns, scores


def _uploaded(array: Any, dtype: Any) -> Array:
    """Copy of an array on the device, C-contiguous; of one on the host without a copy in pinned memory.

    CuPy's own functions copy the whole array to pinned memory first, which its pool then keeps.
    """
    if not isinstance(array, np.ndarray):
        return cp.array(array, dtype=dtype)
    uploaded = cp.empty(array.shape, dtype)
    step = max(1, _AT_ONCE // math.prod(array.shape[1:]))
    for start in range(0, len(array), step):
        part = slice(start, start + step)
        uploaded[part].set(array[part].astype(dtype, copy=False))
    return uploaded


def _rows_of(csr: tuple[Host, Host], part: slice) -> tuple[Array, Array]:
    """Indptr and indices of some rows, on the device."""
    begin = csr[0][part.start : part.stop + 1]
    indices = cp.array(csr[1][begin[0] : begin[-1]], dtype=np.int32)
    return cp.array(begin - begin[0], dtype=np.int64), indices


def _check_neighbours(count: int) -> None:
    if count > MAX_NEIGHBOURS:
        raise ValueError(
            f"neighbours={count}: the cuda backend supports at most {MAX_NEIGHBOURS}; use backend='openmp'"
        )


def _sparse(nonzeros: Sorted) -> Any:
    """The nonzeros as a cuSPARSE matrix (N, M)."""
    from cupyx.scipy import sparse

    indptr = cp.asarray(nonzeros.cut.indptr.astype(np.int32))
    matrix = sparse.csr_matrix((nonzeros.value, nonzeros.column, indptr), shape=nonzeros.shape)
    matrix.has_canonical_format = True  # or CuPy looks for it before every product
    return matrix


def _count(segments: Packed) -> int:
    """Number of segments of a part."""
    return int(segments.value["count"])


def _exactly(segments: Packed) -> tuple[int, int]:
    """Numbers of blocks and threads of kernels that go over what others left out."""
    return min(_count(segments), 1024), 64


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
