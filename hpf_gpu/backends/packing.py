"""CSR counts packed into arrays of the narrowest types that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse

from hpf_gpu.narrowing import UNSIGNED, Kinds, narrowest, value_type, value_types

from .protocol import Host


def checked(arrays: Mapping[str, Host], wanted: Mapping[str, tuple[int, Kinds]]) -> dict[str, Host]:
    """The arrays of packed counts by name, as compiled code takes them: gapless and aligned.

    ``wanted`` has the number of dimensions and the types of each.  Raises ValueError if others are there.
    """
    if set(arrays) != set(wanted):
        raise ValueError(
            f"the arrays of packed counts are {', '.join(wanted)}, not {', '.join(arrays) or 'none'}"
        )
    for name, (dimensions, kinds) in wanted.items():
        array = arrays[name]
        if array.ndim != dimensions or array.dtype not in kinds:
            raise ValueError(f"{name} of packed counts is no {array.ndim}-dimensional array of {array.dtype}")
    return {name: np.require(arrays[name], requirements=("C", "A")) for name in wanted}


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
    kinds = {"size": (1, UNSIGNED), "column": (1, UNSIGNED), "value": (1, value_types(dtype))}
    size, column, value = checked(arrays, kinds).values()
    indptr = np.concatenate([[0], np.cumsum(size, dtype=np.int64)])
    fits = len(size) == shape[0] and indptr[-1] == len(column) == len(value)
    # Sums of sizes that are too large might come out right.
    if not fits or size.max(initial=0) > shape[1] or (column >= shape[1]).any():
        raise ValueError(f"these are not the packed counts of {shape[0]} rows and {shape[1]} columns")
    return sparse.csr_array((value.astype(dtype), column, indptr), shape=shape)
