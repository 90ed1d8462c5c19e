"""Reads fixed factors that the user passes: from a frame by id, or from an array by row number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.messages import shown

from .frames import indexed
from .ids import Ids
from .triplets import on_host

_MAX_FACTOR = 1e9  # so that sums of many products stay within float32


def read_factors(factors: Any, ids: Ids, k: int, *, name: str, labels: Sequence[Any]) -> NDArray[Any]:
    """Fixed factors (n, k) in the order of ``ids``, from a frame by id or from an array by row number.

    In frames of other libraries than pandas ids are in a column, the first of ``labels`` that is there.

    Raises
    ------
    ValueError, TypeError
        If an id has no row or several, or if shape, dtype or a value is not accepted.
    """
    factors = indexed(factors, labels, name)
    matrix: NDArray[Any]
    if isinstance(factors, pd.DataFrame):
        if not factors.index.is_unique:
            twice = factors.index[factors.index.duplicated()][0]
            raise ValueError(f"{name} has several rows for {ids.kind} {shown(twice)}")
        places = np.full(ids.size, -1)
        codes = ids.codes(factors.index)
        places[codes[codes >= 0]] = np.flatnonzero(codes >= 0)
        if (places < 0).any():
            missing = ids.index[int(np.argmin(places))] if ids.values is not None else int(np.argmin(places))
            raise ValueError(f"{name} has no row for {ids.kind} {shown(missing)}, who is in counts_df")
        numeric = all(pd.api.types.is_numeric_dtype(column) for column in factors.dtypes)
        matrix = (factors.to_numpy(np.float64, na_value=np.nan) if numeric else factors.to_numpy())[places]
    else:
        matrix = np.asarray(on_host(factors))
        if ids.values is not None:
            raise TypeError(
                f"{name} must be a data frame indexed by {ids.kind} ids, or of another library than pandas "
                f"with them in a column {labels[0]!r}, not {type(factors).__name__}: "
                "an array is accepted only if ids are row numbers"
            )
    if matrix.shape != (ids.size, k):
        raise ValueError(f"{name} has shape {matrix.shape}, and the model needs ({ids.size}, {k})")
    if matrix.dtype.kind not in "iuf":
        raise TypeError(f"{name} must have numbers, not {matrix.dtype}")
    bad = ~((matrix >= 0) & (matrix <= _MAX_FACTOR))
    if bad.any():
        value = matrix[bad][0].item()
        raise ValueError(f"{name} has {value!r}; factors must lie between 0 and {_MAX_FACTOR:g}")
    empty = ~(matrix > 0).any(axis=1)
    if empty.any():
        raise ValueError(
            f"row {int(np.argmax(empty))} of {name} is all zero: its expected counts would all be zero"
        )
    return matrix
