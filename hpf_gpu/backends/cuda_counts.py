"""Counts on a GPU, by users and by items, and the counting sorts that order them.

The array module ``xp`` (CuPy) is an argument, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .cuda_input import Triplets, row_numbers
from .cuda_launch import Kernel
from .cuda_layout import Segmentation, segmentation, strands_of
from .protocol import Array, Host


@dataclass(frozen=True)
class Rows:
    """The nonzeros sorted by the rows of one side, on the device."""

    shape: tuple[int, int]  # (N, M)
    segments: Segmentation  # with CuPy arrays
    column: Array  # (Z,) int32
    value: Array  # (Z,)
    slots: int  # number of segments of rows that have several

    @property
    def count(self) -> int:
        """Number of segments S."""
        return int(self.segments.row.size)

    @property
    def nonzeros(self) -> tuple[Array, Array, int, Array, Array]:
        """Arguments of kernels without slots: begin, row, S, column, value."""
        return (self.segments.begin, self.segments.row, self.count, self.column, self.value)

    @property
    def slotted(self) -> tuple[Array, Array, Array, int, Array, Array]:
        """Arguments of kernels with slots: begin, row, slot, S, column, value."""
        begin, row, *rest = self.nonzeros
        return (begin, row, self.segments.slot, *rest)


@dataclass(frozen=True)
class DeviceCounts:
    """The same counts by users and by items."""

    users: Rows
    items: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items, (N, M)."""
        return self.users.shape

    @property
    def nnz(self) -> int:
        """Number of nonzeros Z."""
        return int(self.users.value.size)


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
    dtype: np.dtype[Any]

    def rows(self, shape: tuple[int, int], indptr: Host, column: Array, value: Array) -> Rows:
        """Nonzeros of a CSR matrix that are on the device already, in segments."""
        cut = segmentation(indptr)
        on_device = {field.name: self.xp.asarray(getattr(cut, field.name)) for field in fields(cut)}
        return Rows(shape, Segmentation(**on_device), column, value, cut.slots)

    def canonical(self, triplets: Triplets) -> DeviceCsr:
        """Sort by two counting sorts, by columns and then by rows, and add up duplicates."""
        (n, m), nnz = triplets.shape, int(triplets.value.size)
        # Unsorted triplets are treated as a single row, with a separate row number for each nonzero.
        unsorted = self.rows((1, m), np.array([0, nnz]), triplets.column, triplets.value)
        by_column = self.rows((m, n), *self.by_columns(unsorted, triplets.row))
        indptr, column, value = self.by_columns(by_column)
        row = row_numbers(self.xp, self.xp.asarray(indptr), nnz)
        is_new = self.xp.ones(nnz, np.bool_)
        is_new[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
        begin = self.xp.append(self.xp.flatnonzero(is_new), nnz)
        if begin.size <= nnz:
            sums = self.xp.empty(begin.size - 1, self.dtype)
            self.kernels["sum_runs"](-(-sums.size // 256), 256, begin, sums.size, value, sums)
            indptr = np.append(0, np.cumsum(is_new.get()))[indptr]
            column, value = column[begin[:-1]], sums
        return DeviceCsr(triplets.shape, indptr, column, value)

    def by_columns(self, rows: Rows, own_row: Array | None = None) -> tuple[Host, Array, Array]:
        """The same nonzeros by columns, in the order of the rows: indptr (M + 1,), rows (Z,), values (Z,).

        ``own_row`` (Z,), if passed, replaces the row numbers of the segments.
        """
        m, nnz = rows.shape[1], int(rows.value.size)
        strands = strands_of(m, rows.count, nnz)
        counts, out_of_range = self.xp.zeros(m * strands, np.uint32), self.xp.zeros(1, np.int32)
        begin, row, segments, column, value = rows.nonzeros
        self.kernels["count_columns"](strands, 256, begin, segments, column, m, counts, out_of_range)
        if int(out_of_range[0]):
            raise ValueError(f"a column number of the counts is outside the {m} columns")
        place = self.xp.cumsum(counts, dtype=np.int64)
        place -= counts
        indptr = np.append(place[::strands].get(), nnz)
        out_row, out_value = self.xp.empty(nnz, np.int32), self.xp.empty(nnz, self.dtype)
        row = row if own_row is None else None
        self.kernels["scatter"](
            *(strands, 32, begin, row, segments, column, value, own_row, place, out_row, out_value)
        )
        return indptr, out_row, out_value
