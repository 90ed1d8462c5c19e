"""The narrowest types that hold numbers exactly."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Kinds: TypeAlias = tuple[np.dtype[Any], ...]

#: What nonnegative integers may be, from the narrowest.
UNSIGNED: Kinds = tuple(np.dtype(kind) for kind in (np.uint8, np.uint16, np.uint32, np.uint64))

_PIECE = 1 << 22  # counts that are looked at together, so that temporaries are small


def narrowest(numbers: NDArray[Any]) -> np.dtype[Any]:
    """The narrowest unsigned type that holds all of these nonnegative integers."""
    return np.min_scalar_type(int(numbers.max(initial=0)))


def value_types(real: np.dtype[Any]) -> Kinds:
    """What the counts of a model in ``real`` may be, from the narrowest."""
    return (*UNSIGNED[:2], real)


def value_type(values: NDArray[Any], real: np.dtype[Any]) -> np.dtype[Any]:
    """The narrowest type that holds all of these counts (Z,) exactly."""
    largest = 0.0
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE]
        if not (piece == np.rint(piece)).all():  # in a seventh of the time of piece % 1
            return real
        largest = max(largest, float(piece.max()))
    return next((kind for kind in UNSIGNED[:2] if largest <= np.iinfo(kind).max), real)
