"""Counts in several parts, each read on its own: ids numbered as in the whole, counts brought to their rows.

No part is needed whole where another is read: of each, its distinct ids are enough to number all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .ids import Ids, encode
from .triplets import Columns, canonical, load, read

_ANY_NUMBER = 1 << 62  # of rows: whether a row number is too large is decided for all parts together


@dataclass(frozen=True)
class PartIds:
    """The ids of one part in order of first appearance, and how many counts it has."""

    users: Ids
    items: Ids
    sizes: NDArray[Any]  # counts of each of these users
    zeros: int  # counts of zero, which are left out


@dataclass(frozen=True)
class Part:
    """The counts above zero of one part, with users and items numbered within it."""

    ids: PartIds
    users: NDArray[Any]  # (Z,)
    items: NDArray[Any]  # (Z,)
    counts: NDArray[Any]  # (Z,)


#: Row numbers, column numbers and counts (Z,) each.
Piece = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def read_part(data: Any, *, dtype: type, name: str, reindex: bool, columns: Columns) -> Part:
    """Read a table or an array; it may be empty.

    Raises
    ------
    ValueError, TypeError
        As :func:`hpf_gpu.data.counts.training_data`, except where only all parts together can tell.
    """
    data = load(data, columns, name)
    if isinstance(data, (pd.DataFrame, np.ndarray)) and len(data) == 0:
        return _empty(0, dtype)
    triplets = read(data, dtype=dtype, name=name, taken="raw", columns=columns)
    kept = triplets.counts > 0
    zeros = len(kept) - int(kept.sum())
    if zeros == len(kept):
        return _empty(zeros, dtype)
    if zeros:
        triplets = triplets.where(kept)
    user_codes, user_ids = encode(triplets.users, "user", reindex, _ANY_NUMBER)
    item_codes, item_ids = encode(triplets.items, "item", reindex, _ANY_NUMBER)
    sizes = np.bincount(user_codes, minlength=user_ids.size)
    return Part(PartIds(user_ids, item_ids, sizes, zeros), user_codes, item_codes, triplets.counts)


def _empty(zeros: int, dtype: type) -> Part:
    nothing = np.empty(0, np.int32)
    ids = PartIds(Ids(None, 0, "user"), Ids(None, 0, "item"), nothing, zeros)
    return Part(ids, nothing, nothing, np.empty(0, dtype))


def joined_ids(parts: Sequence[Ids], counts: int) -> tuple[Ids, list[NDArray[Any]]]:
    """All ids in order of first appearance, and the rows of those of each part.

    ``counts`` is the number of all counts, which limits ids that are row numbers, as
    :func:`hpf_gpu.data.ids.encode` does.
    """
    kind, there = parts[0].kind, [ids for ids in parts if ids.size]
    if all(ids.values is None for ids in there):
        size = max(ids.size for ids in there)
        encode(pd.Series([size - 1]), kind, False, room=100 * counts + 1_000_000)
        return Ids(None, size, kind), [np.arange(ids.size) for ids in parts]
    columns = [pd.Series(ids.index, dtype=ids.index.dtype) for ids in there]
    codes, ids = encode(pd.concat(columns, ignore_index=True), kind, reindex=True)
    ends = np.cumsum([part.size for part in parts])
    return ids, np.split(codes, ends[:-1])


def pieces_of(
    part: Part, user_rows: NDArray[Any], item_rows: NDArray[Any], shards: Sequence[slice]
) -> list[Piece]:
    """The counts of a part that belong to each of these shards, ranges of rows.

    ``user_rows`` and ``item_rows`` are the rows of the part's users and items among those of all parts.
    """
    rows, columns = user_rows[part.users], item_rows[part.items]
    pieces = []
    for shard in shards:
        own = np.flatnonzero((rows >= shard.start) & (rows < shard.stop))
        pieces.append((rows[own] - shard.start, columns[own], part.counts[own]))
    return pieces


def csr_of(pieces: Sequence[Piece], shape: tuple[int, int], taken: str) -> sparse.csr_array:
    """Canonical CSR of the counts in these pieces, in the order of the parts that they are from."""
    rows, columns, counts = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return canonical(sparse.coo_array((counts, (rows, columns)), shape=shape).tocsr(), taken)


def shard_rows(sizes: NDArray[Any], shards: int) -> tuple[slice, ...]:
    """Ranges of rows, as many as ``shards`` or as there are rows, with nearly equal numbers of counts.

    ``sizes`` (N,) are the counts of each row.
    """
    n = len(sizes)
    shards = min(shards, n)
    totals, steps = np.cumsum(sizes), np.arange(1, shards)
    ends = np.searchsorted(totals, totals[-1] * steps / shards, side="right")
    # None is empty, however many counts one row has.
    ends = np.maximum.accumulate(np.maximum(ends - steps, 0)) + steps
    ends = np.minimum(ends, n - shards + steps)
    bounds = [0, *ends.tolist(), n]
    return tuple(slice(start, stop) for start, stop in pairwise(bounds))
