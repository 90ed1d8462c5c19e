"""Counts that are too large for a GPU's memory: they stay on the host, and pass through the device in parts.

Columns take 16 bits where that is enough, and counts 8 or 16 where all are whole numbers that fit.  The array
module ``xp`` (CuPy) is an argument, so that nothing here imports it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from scipy import sparse

from hpf_gpu.messages import warn
from hpf_gpu.narrowing import value_type

from . import cuda_layout
from .cuda_counts import DeviceCounts, Rows, Sorter
from .cuda_launch import Packed
from .cuda_layout import parts_of, segmentation
from .protocol import Array, Host


@dataclass(frozen=True)
class Narrow:
    """The types in which nonzeros come to the device."""

    by_users: np.dtype[Any]  # of columns
    by_items: np.dtype[Any]
    value: np.dtype[Any]

    @classmethod
    def of(cls, csr: sparse.csr_array, real: np.dtype[Any]) -> Narrow:
        """The smallest types that hold the columns and counts (N, M) of a model in ``real``."""
        by_items, by_users = (np.dtype(np.uint16 if size <= 1 << 16 else np.int32) for size in csr.shape)
        return cls(by_users, by_items, value_type(csr.data, real))

    @property
    def column(self) -> np.dtype[Any]:
        """The larger of the types of columns."""
        return max(self.by_users, self.by_items, key=lambda kind: kind.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of a nonzero, of the side that takes more."""
        return self.column.itemsize + self.value.itemsize


@dataclass(frozen=True)
class HostRows:
    """The nonzeros of a CSR matrix on the host, in narrow types."""

    shape: tuple[int, int]  # (N, M)
    indptr: Host  # (N + 1,) int64
    column: Host  # (Z,)
    value: Host  # (Z,)

    def by_columns(self, column: Host, value: Host) -> HostRows:
        """The same by columns, and within a column in the order of the rows, in ``column`` and ``value``.

        Sorted piece by piece, so that little memory is needed beyond these two.
        """
        n, m = self.shape
        size = np.zeros(m, np.int64)
        for piece in _pieces(len(self.column)):
            size += np.bincount(self.column[piece], minlength=m)
        indptr = np.append(0, np.cumsum(size))
        place = indptr[:-1].copy()  # where the next nonzero of each column goes
        for rows in parts_of(self.indptr, cuda_layout.PART):
            begin = self.indptr[rows.start : rows.stop + 1]
            within = slice(int(begin[0]), int(begin[-1]))
            given = (self.value[within], self.column[within].astype(np.int32), begin - begin[0])
            csc = sparse.csr_array(given, shape=(rows.stop - rows.start, m)).tocsc()
            size = np.diff(csc.indptr)
            target = np.repeat(place - csc.indptr[:-1], size) + np.arange(csc.nnz)
            column[target], value[target] = csc.indices + rows.start, csc.data
            place += size
        return HostRows((m, n), indptr, column, value)


@dataclass(frozen=True)
class Streamer:
    """Makes counts that stream, with what the ``sorter`` of counts on the device has."""

    sorter: Sorter

    def counts(self, csr: sparse.csr_array, narrow: Narrow) -> DeviceCounts:
        """Counts (N, M), copied to host memory that the device can read, by users and by items."""
        kinds = (narrow.by_users, narrow.value, narrow.by_items, narrow.value)
        arrays = _host_arrays(self.sorter.xp, csr.nnz, kinds)
        users = _copied(csr, *arrays[:2])
        items = users.by_columns(*arrays[2:])
        channel = Channel(self.sorter, narrow, csr.nnz)
        return DeviceCounts(self._rows(users, channel), self._rows(items, channel), is_streamed=True)

    def _rows(self, side: HostRows, channel: Channel) -> Rows:
        cut, parts = segmentation(side.indptr), []
        for part in parts_of(cut.begin, cuda_layout.PART):
            within = slice(int(cut.begin[part.start]), int(cut.begin[part.stop]))
            column, value = side.column[within], side.value[within]
            middle = np.zeros(part.stop - part.start, np.int32)
            if len(column):
                middle = side.column[cut.middle[part]]
            segments = self.sorter.segments(cut, part, middle, channel.column, channel.value)
            parts.append(Part(segments, column, value))
        return self.sorter.in_parts(side.shape, cut, PartsOnTheHost(channel, parts))


@dataclass(frozen=True)
class Part:
    """Consecutive segments, and their nonzeros on the host in narrow types."""

    segments: Packed  # over the channel's arrays
    column: Host  # (Z,)
    value: Host  # (Z,)


class PartsOnTheHost:
    """Parts that come to the device one after the other, whenever they are iterated over."""

    def __init__(self, channel: Channel, parts: Sequence[Part]) -> None:
        self._channel, self._parts = channel, parts
        # Before their memory is given back, what was submitted has read it.
        weakref.finalize(self, channel.finish).atexit = False

    def __iter__(self) -> Iterator[Packed]:
        for part in self._parts:
            self._channel.bring(part.column, part.value)
            yield part.segments


class Channel:
    """The way of parts to the device, on a stream of its own: while kernels work on one, others come.

    A part is copied into one of two buffers in turn, and from there widened into the form that kernels take.
    """

    def __init__(self, sorter: Sorter, narrow: Narrow, nnz: int) -> None:
        xp, size = sorter.xp, min(nnz, cuda_layout.PART)
        self._xp, self._widen = xp, sorter.kernels["widen"]
        self._copies = xp.cuda.Stream(non_blocking=True)
        self._buffers = cycle([_Buffer(xp, narrow, size) for _ in range(2)])
        self.column = xp.empty(size, np.int32)
        self.value = xp.empty(size, sorter.variant.real)

    def bring(self, column: Host, value: Host) -> None:
        """Copy nonzeros (Z,) from the host, and widen them into the first Z of ``column`` and ``value``.

        The current stream waits for them, the host does not.
        """
        buffer, work = next(self._buffers), self._xp.cuda.get_current_stream()
        self._copies.wait_event(buffer.was_read)
        for target, source in ((buffer.column, column), (buffer.value, value)):
            target.data.copy_from_host_async(source.ctypes.data, source.nbytes, self._copies)
        buffer.has_come.record(self._copies)
        work.wait_event(buffer.has_come)
        columns = _by_type(buffer.column.view(column.dtype), np.uint16, np.int32)
        values = _by_type(buffer.value, np.uint8, np.uint16, self.value.dtype)
        blocks = -(-len(column) // 256)
        self._widen(blocks, 256, *columns, *values, len(column), self.column, self.value)
        buffer.was_read.record(work)

    def finish(self) -> None:
        """Wait until all has been copied."""
        self._copies.synchronize()


class _Buffer:
    """Room on the device for a part in narrow types, and the events that order its writers and readers."""

    def __init__(self, xp: Any, narrow: Narrow, size: int) -> None:
        self.column, self.value = xp.empty(size, narrow.column), xp.empty(size, narrow.value)
        self.has_come, self.was_read = (xp.cuda.Event(disable_timing=True) for _ in range(2))
        self.was_read.record()  # by whoever had this memory before


def _by_type(array: Array, *kinds: Any) -> list[Array | None]:
    """The array in the place of its type, and None for others."""
    return [array if array.dtype == kind else None for kind in kinds]


def _pieces(nnz: int) -> Iterator[slice]:
    """Nonzeros in pieces, so that temporaries are small."""
    return (slice(start, start + cuda_layout.PART) for start in range(0, nnz, cuda_layout.PART))


def _copied(csr: sparse.csr_array, column: Host, value: Host) -> HostRows:
    """Counts (N, M), copied to ``column`` (Z,) and ``value`` (Z,)."""
    for piece in _pieces(csr.nnz):
        columns = csr.indices[piece]
        if columns.min() < 0 or columns.max() >= csr.shape[1]:
            raise ValueError(f"a column number of the counts is outside the {csr.shape[1]} columns")
        column[piece], value[piece] = columns, csr.data[piece]
    return HostRows((csr.shape[0], csr.shape[1]), csr.indptr.astype(np.int64), column, value)


def _host_arrays(xp: Any, size: int, kinds: Sequence[np.dtype[Any]]) -> list[Host]:
    """Arrays (size,) of these types in pinned memory; with a warning, in ordinary memory if that fails.

    The memory is not of CuPy's pool, which would keep it.
    """
    lengths = [-(-max(1, size) * kind.itemsize // 16) * 16 for kind in kinds]
    try:
        pinned = xp.cuda.PinnedMemoryPointer(xp.cuda.PinnedMemory(sum(lengths)), 0)
        memory = np.frombuffer(pinned, np.uint8, sum(lengths))
    except xp.cuda.runtime.CUDARuntimeError as error:
        warn(
            f"{sum(lengths):,} bytes of host memory cannot be pinned ({error}): counts stream from ordinary "
            "memory, which is slower"
        )
        memory = np.empty(sum(lengths), np.uint8)
    ends = np.cumsum(lengths)
    return [
        memory[end - length : end].view(kind)[:size]
        for kind, length, end in zip(kinds, lengths, ends, strict=True)
    ]
