"""Numbers of counts in the narrowest types that hold them, and CSR counts packed into such arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from .protocol import Host

_PIECE = 1 << 22  # counts that are looked at together, so that temporaries are small


def narrowest(numbers: Host) -> np.dtype[Any]:
    """The narrowest unsigned type that holds all of these nonnegative integers."""
    return np.min_scalar_type(int(numbers.max(initial=0)))


def value_type(values: Host, real: np.dtype[Any]) -> np.dtype[Any]:
    """The narrowest type that holds all of these counts (Z,) exactly: 8 bits, 16, or ``real``."""
    largest = 0.0
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE]
        if not (piece % 1 == 0).all():
            return real
        largest = max(largest, float(piece.max()))
    integers = (np.dtype(kind) for kind in (np.uint8, np.uint16) if largest <= np.iinfo(kind).max)
    return next(integers, real)


def check_names(arrays: Mapping[str, Host], names: Collection[str]) -> None:
    """Raise ValueError unless these arrays of packed counts are there, and no others."""
    if set(arrays) != set(names):
        raise ValueError(
            f"the arrays of packed counts are {', '.join(sorted(names))}, not {', '.join(sorted(arrays))}"
        )


def packed_csr(csr: Any) -> dict[str, Host]:
    """The numbers of nonzeros of the rows (N,), their columns (Z,) and counts (Z,) of a CSR matrix (N, M)."""
    size = np.diff(csr.indptr)
    return {
        "size": size.astype(narrowest(size)),
        "column": csr.indices.astype(narrowest(csr.indices)),
        "value": csr.data.astype(value_type(csr.data, csr.data.dtype)),
    }


def unpacked_csr(
    arrays: Mapping[str, Host], shape: tuple[int, int], dtype: np.dtype[Any]
) -> sparse.csr_array:
    """The CSR matrix (N, M) that was packed, with counts in ``dtype``.

    Raises
    ------
    ValueError
        If the arrays do not fit each other or the shape.
    """
    check_names(arrays, ("size", "column", "value"))
    size, column, value = (np.asarray(arrays[name]) for name in ("size", "column", "value"))
    if (
        size.dtype.kind != "u"
        or column.dtype.kind != "u"
        or (value.dtype.kind != "u" and value.dtype != dtype)
    ):
        raise ValueError(
            f"packed counts are not in {size.dtype} (size), {column.dtype} (column) and {value.dtype} (value)"
        )
    fits = size.shape == shape[:1] and column.ndim == 1 and column.shape == value.shape
    indptr = np.concatenate([[0], np.cumsum(size, dtype=np.int64)])
    if not fits or indptr[-1] != len(column) or (size > shape[1]).any() or (column >= shape[1]).any():
        raise ValueError(f"these are not the packed counts of {shape[0]} rows and {shape[1]} columns")
    return sparse.csr_array((value.astype(dtype), column, indptr), shape=shape)
