"""Arrays that grow at their end without a copy of what they hold."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPARE = 8  # an eighth of the rows
_LEAST = 256

_claiming = Lock()


class _Room(np.ndarray[Any, Any]):
    """Memory behind arrays that all begin where it does; the longest of them has ``used`` rows."""

    used: int | None = None


def appended(array: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """``array`` (N, ...) followed by ``new`` (B, ...), in the dtype of ``array``.

    The result has room for more rows behind it.  If it is appended to, only the new rows are written, and
    both arrays share memory: neither may be changed in place.  Of several arrays that ``array`` is continued
    to, the first shares its memory, and the others are copies.
    """
    size = len(array) + len(new)
    with _claiming:
        room = _room_behind(array)
        if room is None or size > len(room):
            room = np.empty((size + size // _SPARE + _LEAST, *array.shape[1:]), array.dtype).view(_Room)
            room[: len(array)] = array
        room.used = size
    room[len(array) : size] = new
    return room[:size].view(np.ndarray)


def _room_behind(array: NDArray[Any]) -> _Room | None:
    """The memory of an array, if that is the longest of those which share it."""
    owner = array.base
    while owner is not None and not (isinstance(owner, _Room) and owner.used is not None):
        owner = getattr(owner, "base", None)
    if owner is None or owner.used != len(array):
        return None
    # Not a view of it such as its rows backwards.
    begins = [one.__array_interface__["data"] for one in (array, owner)]
    same = begins[0] == begins[1] and array.strides == owner.strides and array.dtype == owner.dtype
    return owner if same and array.shape[1:] == owner.shape[1:] else None
