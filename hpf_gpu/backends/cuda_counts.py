"""Counts on a GPU, by users and by items, and the counting sorts that order them.

The array module ``xp`` (CuPy) is an argument, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from .cuda_input import Triplets, row_numbers
from .cuda_launch import Kernel, Packed, pack
from .cuda_layout import Segmentation, segmentation, strands_of
from .cuda_source import Variant
from .protocol import Array, Host


@dataclass(frozen=True)
class Sorted:
    """Nonzeros of a CSR matrix, sorted by its rows, and their segments in the same order."""

    shape: tuple[int, int]  # (N, M)
    cut: Segmentation
    column: Array  # (Z,) int32
    value: Array  # (Z,)


@dataclass(frozen=True)
class Rows:
    """The nonzeros of one side by its rows, in parts of consecutive segments.

    Counts on the device are a single part.  Those that stream are several: each comes when the iteration
    reaches it, and is there until the next.
    """

    shape: tuple[int, int]  # (N, M)
    nnz: int  # Z
    parts: Iterable[Packed]  # Segments, stored in launch order
    count: int  # S, of all parts
    slots: int  # number of segments of rows that have several
    long_row: Array  # (L,) int32, rows of several segments
    long_begin: Array  # (L + 1,) int32, first slot of each of them
    matrix: Any = None  # the same in cuSPARSE's form, where that is asked for

    def on_host(self) -> sparse.csr_array:
        """The CSR matrix (N, M) that was laid out."""
        size, column, value = np.zeros(self.shape[0], np.int64), [], []
        for part in self.parts:
            fields = part.fields
            sizes = fields["size"].get()
            np.add.at(size, fields["row"].get(), sizes)
            column.append(fields["column"][: sizes.sum()].get())
            value.append(fields["value"][: sizes.sum()].get())
        indptr = np.append(0, np.cumsum(size))
        return sparse.csr_array((np.concatenate(value), np.concatenate(column), indptr), shape=self.shape)


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of items, and the items of users, among which kernels look for them."""

    sources: Array  # (M·L,) int32
    had: Packed  # Had


@dataclass(frozen=True)
class DeviceCounts:
    """The same counts by users and by items."""

    users: Rows
    items: Rows
    is_streamed: bool = False
    neighbours: Neighbours | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items, (N, M)."""
        return self.users.shape

    @property
    def nnz(self) -> int:
        """Number of nonzeros Z."""
        return self.users.nnz

    @property
    def gathers_less_by_users(self) -> bool:
        """Whether a sum that may go by either side gathers the rows of a smaller matrix by users."""
        return self.shape[0] >= self.shape[1]


@dataclass(frozen=True)
class DeviceCsr:
    """Canonical counts (N, M) that were passed on the device."""

    shape: tuple[int, int]
    indptr: Host  # (N + 1,) int64
    indices: Array  # (Z,) int32
    data: Array  # (Z,)

    @property
    def nnz(self) -> int:
        """Number of nonzeros Z."""
        return int(self.data.size)

    def rows(self, rows: slice) -> DeviceCsr:
        """Some rows, which share memory with this matrix."""
        begin = self.indptr[rows.start : rows.stop + 1]
        within = slice(int(begin[0]), int(begin[-1]))
        shape = (rows.stop - rows.start, self.shape[1])
        return DeviceCsr(shape, begin - begin[0], self.indices[within], self.data[within])


@dataclass(frozen=True)
class Sorter:
    """Sorts counts of one dtype on the current device with the kernels of counts.cu."""

    xp: Any
    kernels: Mapping[str, Kernel]
    variant: Variant  # whose dtype the counts have
    device: int

    def rows(self, nonzeros: Sorted) -> Rows:
        """The nonzeros with their segments in launch order, on the device."""
        cut, column, value = nonzeros.cut, nonzeros.column, nonzeros.value
        middle = np.zeros(cut.count, np.int32)
        if cut.nnz:
            middle = column[self.xp.asarray(cut.middle)].get()
        segments = self.segments(cut, slice(0, cut.count), middle, column, value)
        return self.in_parts(nonzeros.shape, cut, (segments,))

    def segments(self, cut: Segmentation, part: slice, middle: Host, column: Array, value: Array) -> Packed:
        """Consecutive segments in launch order, on the device.

        ``middle`` (P,) is the column in the middle of each; ``column`` (Z,) and ``value`` (Z,) are where the
        nonzeros of the part are, or will be.
        """
        tables = map(self.xp.asarray, cut.in_launch_order(part, middle))
        return pack(self.variant.struct("Segments"), 1, self.device, *tables, column, value, len(middle))

    def in_parts(self, shape: tuple[int, int], cut: Segmentation, parts: Iterable[Packed]) -> Rows:
        """Rows (N, M) that are cut into segments, from the parts that these form."""
        long_row, long_begin = self.xp.asarray(cut.long_row), self.xp.asarray(cut.long_begin)
        return Rows(shape, cut.nnz, parts, cut.count, cut.slots, long_row, long_begin)

    def canonical(self, triplets: Triplets) -> DeviceCsr:
        """Sort by two counting sorts, by columns and then by rows, and add up duplicates."""
        (n, m), nnz = triplets.shape, int(triplets.value.size)
        # Unsorted triplets are treated as a single row, with a separate row number for each nonzero.
        cut = segmentation(np.array([0, nnz]))
        by_column = self.by_columns(Sorted((1, m), cut, triplets.column, triplets.value), triplets.row, n)
        by_row = self.by_columns(by_column)
        indptr, column, value = by_row.cut.indptr, by_row.column, by_row.value
        row = row_numbers(self.xp, self.xp.asarray(indptr), nnz)
        is_new = self.xp.ones(nnz, np.bool_)
        is_new[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
        begin = self.xp.append(self.xp.flatnonzero(is_new), nnz)
        if begin.size <= nnz:
            sums = self.xp.empty(begin.size - 1, self.variant.real)
            self.kernels["sum_runs"](-(-sums.size // 256), 256, begin, sums.size, value, sums)
            indptr = np.append(0, np.cumsum(is_new.get()))[indptr]
            column, value = column[begin[:-1]], sums
        return DeviceCsr(triplets.shape, indptr, column, value)

    def by_columns(self, rows: Sorted, own_row: Array | None = None, n: int | None = None) -> Sorted:
        """The same nonzeros sorted by columns, and within a column in the order of the rows.

        ``own_row`` (Z,), if passed, replaces the row numbers, of which there are ``n``.
        """
        m, nnz, segments = rows.shape[1], int(rows.value.size), len(rows.cut.row)
        strands = strands_of(m, segments, nnz)
        counts, out_of_range = self.xp.zeros(m * strands, np.uint32), self.xp.zeros(1, np.int32)
        begin, column = self.xp.asarray(rows.cut.begin), rows.column
        self.kernels["count_columns"](strands, 256, begin, segments, column, m, counts, out_of_range)
        if int(out_of_range[0]):
            raise ValueError(f"a column number of the counts is outside the {m} columns")
        place = self.xp.cumsum(counts, dtype=np.int64)
        place -= counts
        indptr = np.append(place[::strands].get(), nnz)
        out_row, out_value = self.xp.empty(nnz, np.int32), self.xp.empty(nnz, self.variant.real)
        row = self.xp.asarray(rows.cut.row) if own_row is None else None
        self.kernels["scatter"](
            *(strands, 32, begin, row, segments, column, rows.value, own_row, place, out_row, out_value)
        )
        return Sorted((m, n or rows.shape[0]), segmentation(indptr), out_row, out_value)
