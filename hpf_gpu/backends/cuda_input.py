"""Reads user data that are on a GPU already: CuPy sparse matrices, and arrays (n, 3) of any library.

The array module ``xp`` (CuPy) is an argument, so that nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .cuda_layout import MAX_NUMBER
from .protocol import Array


@dataclass(frozen=True)
class Triplets:
    """Nonzeros in any order, possibly with duplicates, and the ids of their rows and columns."""

    shape: tuple[int, int]  # (N, M)
    row: Array  # (Z,) int32
    column: Array  # (Z,) int32
    value: Array  # (Z,), each above zero
    dropped: int  # number of zeros that were left out
    user_ids: Array | None = None  # (N,); None where ids are row numbers
    item_ids: Array | None = None  # (M,)


def is_device_matrix(data: Any) -> bool:
    """Whether ``data`` is one of CuPy's sparse matrices."""
    return type(data).__module__.startswith("cupyx.scipy.sparse")


def is_device_array(data: Any) -> bool:
    """Whether ``data`` is an array on a GPU, CuPy's or another library's."""
    # The type is tested, because on torch's host tensors hasattr of the object raises an error.
    if hasattr(type(data), "__dlpack_device__"):
        cuda, cuda_managed = 2, 13  # of DLPack's device types
        return data.__dlpack_device__()[0] in (cuda, cuda_managed)
    return hasattr(data, "__cuda_array_interface__")


def from_matrix(xp: Any, data: Any, dtype: np.dtype[Any]) -> Triplets:
    """The nonzeros of a CuPy CSR, CSC or COO matrix."""
    if len(data.shape) != 2:
        raise ValueError(f"counts are a matrix of users and items; this array has shape {data.shape}")
    shape = (int(data.shape[0]), int(data.shape[1]))
    if 0 in shape:
        raise ValueError(f"a sparse matrix of counts needs rows and columns; this one has shape {shape}")
    if max(shape) > MAX_NUMBER:
        raise ValueError(f"the cuda backend numbers rows and columns in 32 bits, too few for {shape}")
    if data.format == "coo":
        row, column = data.row, data.col
    elif data.format in ("csr", "csc"):
        _check_indptr(data.indptr, shape[0 if data.format == "csr" else 1], int(data.data.size))
        major = row_numbers(xp, data.indptr, int(data.data.size))
        row, column = (major, data.indices) if data.format == "csr" else (data.indices, major)
    else:
        raise ValueError(f"a CuPy matrix in format {data.format!r} is not supported: pass data.tocsr()")
    for name, numbers, size in (("row", row, shape[0]), ("column", column, shape[1])):
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < size:
            raise ValueError(f"this sparse matrix of shape {shape} has a {name} outside its shape")
    return _above_zero(xp, shape, row, column, _checked(xp, data.data, dtype))


def from_array(xp: Any, data: Any, dtype: np.dtype[Any], reindex: bool, has_counts: bool = True) -> Triplets:
    """The nonzeros of an array (n, 3) of users, items and counts, or (n, 2) where every row is one."""
    if data.ndim != 2 or data.shape[1] != 2 + has_counts or len(data) == 0:
        wanted = "(n, 3) with UserId, ItemId, Count" if has_counts else "(n, 2) with UserId, ItemId"
        raise ValueError(f"an array of counts must be {wanted}, not {data.shape}")
    value = _checked(xp, data[:, 2], dtype) if has_counts else xp.ones(len(data), dtype=dtype)
    positive = value > 0
    sides = []
    for kind, ids in (("user", data[:, 0][positive]), ("item", data[:, 1][positive])):
        if ids.size == 0:
            raise ValueError("no count is above zero: there is nothing to fit")
        sides.append(_numbered(xp, ids, kind, reindex))
    (row, users, n), (column, items, m) = sides
    return Triplets((n, m), row, column, value[positive], int(value.size - row.size), users, items)


def row_numbers(xp: Any, indptr: Array, nnz: int) -> Array:
    """Row of every nonzero of a CSR matrix, (Z,) int32."""
    starts = indptr[1:-1]
    marks = xp.zeros(nnz, dtype=np.int32)
    xp.add.at(marks, starts[starts < nnz], 1)
    return xp.cumsum(marks, dtype=np.int32)


def _check_indptr(indptr: Array, rows: int, nnz: int) -> None:
    whole = indptr.size == rows + 1 and int(indptr[0]) == 0 and int(indptr[-1]) == nnz
    if not whole or bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError(f"indptr of this sparse matrix does not divide its {nnz} nonzeros into {rows} rows")


def _checked(xp: Any, counts: Array, dtype: np.dtype[Any]) -> Array:
    """Counts (Z,) in ``dtype``, as a copy; ValueError unless all are finite and at least zero."""
    if counts.dtype.kind not in "iufb":
        raise ValueError(f"counts of type {counts.dtype} are not numbers")
    bad = ~(xp.isfinite(counts) & (counts >= 0))
    if bool(bad.any()):
        row = int(xp.argmax(bad))
        raise ValueError(
            f"count {counts[row].item()!r} at position {row} cannot be used: "
            "counts are finite and not negative"
        )
    total, limit = float(counts.sum(dtype=np.float64)), float(np.sqrt(np.finfo(dtype).max))
    if total >= limit:
        raise ValueError(f"the counts add up to {total:.3g}, and {dtype} holds {limit:.3g} at most")
    return xp.array(counts, dtype=dtype)


def _above_zero(xp: Any, shape: tuple[int, int], row: Array, column: Array, value: Array) -> Triplets:
    positive = value > 0
    zeros = int(value.size) - int(positive.sum())
    if zeros == value.size:
        raise ValueError("the matrix has no count above zero: there is nothing to fit")
    if zeros:
        row, column, value = row[positive], column[positive], value[positive]
    return Triplets(shape, xp.array(row, dtype=np.int32), xp.array(column, dtype=np.int32), value, zeros)


def _numbered(xp: Any, ids: Array, kind: str, reindex: bool) -> tuple[Array, Array | None, int]:
    """Row numbers (Z,) int32, the ids in order of first appearance or None, and the number of rows."""
    advice = f"{kind} ids on a GPU must be integers"
    whole = xp.isfinite(ids) & (ids == xp.floor(ids)) if ids.dtype.kind == "f" else xp.ones(ids.shape, bool)
    if not bool(whole.all()):
        raise ValueError(f"{kind} id {ids[int(xp.argmin(whole))].item()!r} is not one; {advice}")
    low, high = int(ids.min()), int(ids.max())
    if not reindex:
        if low < 0 or high > min(MAX_NUMBER - 1, 100 * ids.size + 1_000_000):
            raise ValueError(f"{kind} id {low if low < 0 else high} is not a row number; {advice} from 0")
        return ids.astype(np.int32), None, high + 1
    if high - low > 16 * ids.size + 1_000_000:
        raise ValueError(
            f"{kind} ids from {low} to {high} are too far apart for {ids.size} counts; {advice} close "
            "together, or pass the data from the host"
        )
    # The difference of narrow integers would overflow; wide ones must not lose bits.
    wide = ids if ids.dtype.itemsize == 8 else ids.astype(np.float64 if ids.dtype.kind == "f" else np.int64)
    places = (wide - low).astype(np.int64)
    first_row = xp.full(high - low + 1, ids.size, dtype=np.int64)
    xp.minimum.at(first_row, places, xp.arange(ids.size))
    is_first = xp.zeros(ids.size + 1, dtype=np.int64)  # one more, for the ids in the range that do not occur
    is_first[first_row] = 1
    is_first[-1] = 0
    order = xp.cumsum(is_first) - 1
    codes = order[first_row[places]].astype(np.int32)
    return codes, ids[is_first[:-1] == 1], int(order[-1]) + 1
