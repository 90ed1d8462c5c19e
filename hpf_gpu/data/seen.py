"""The items that each user has in the data, by row and column numbers of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .growth import appended

#: CSR indptr (N + 1,) and indices (Z,): the items of each user, ascending.
UserItems = tuple[NDArray[Any], NDArray[Any]]


def items_of(users: NDArray[Any], items: UserItems) -> UserItems:
    """The items of some users (B,)."""
    indptr, indices = items
    if len(users) == 1:  # in a quarter of the time
        own = indices[indptr[users[0]] : indptr[users[0] + 1]]
        return np.array([0, len(own)]), own
    starts, places = places_of(users, indptr)
    return starts, indices[places]


def places_of(rows: NDArray[Any], indptr: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indptr (B + 1,) of some rows of a CSR matrix, and the places of their entries in it."""
    first = indptr[rows].astype(np.int64)
    sizes = indptr[rows + 1] - first
    starts = _indptr(sizes)
    return starts, np.arange(starts[-1]) + np.repeat(first - starts[:-1], sizes)


def users_with(items: UserItems, n_items: int) -> NDArray[np.float64]:
    """Number of users that have each item, (M,)."""
    return np.bincount(items[1], minlength=n_items).astype(np.float64)


def with_items(items: UserItems, rows: NDArray[Any], new: UserItems) -> UserItems:
    """Replace the items of some users, ``rows`` (B,), by ``new``; row numbers past the end append users."""
    indptr, indices = items
    if np.array_equal(rows, np.arange(len(indptr) - 1, len(indptr) - 1 + len(rows))):
        return continued(indptr, new[0]), appended(indices, new[1])
    sizes = np.zeros(max(len(indptr) - 1, int(rows.max()) + 1), dtype=np.int64)
    sizes[: len(indptr) - 1] = np.diff(indptr)
    replaced = np.zeros(len(sizes), dtype=bool)
    replaced[rows] = True
    kept = indices[~np.repeat(replaced, sizes)]
    sizes[rows] = np.diff(new[0])
    result = np.empty(int(sizes.sum()), dtype=indices.dtype)
    from_new = np.repeat(replaced, sizes)
    result[~from_new] = kept
    result[from_new] = items_of(np.argsort(rows), new)[1]
    return _indptr(sizes), result


def continued(indptr: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
    """Indptr (N + B + 1,) of rows followed by those of ``more`` (B + 1,); in 64 bits if it needs them."""
    ends = more[1:].astype(np.int64) + int(indptr[-1])
    wide = len(ends) and ends[-1] > np.iinfo(indptr.dtype).max
    return appended(indptr.astype(np.int64) if wide else indptr, ends)


def with_more_items(items: UserItems, new: sparse.csr_array) -> UserItems:
    """Add the items with entries in ``new`` (N, M), which may have more users."""
    rows = np.flatnonzero(np.diff(new.indptr))
    missing = new.shape[0] + 1 - len(items[0])
    items = (np.append(items[0], np.repeat(items[0][-1:], max(0, missing))), items[1])
    if len(rows) == 0:
        return items
    indptr, indices = items_of(rows, items)
    shape = (len(rows), new.shape[1])
    old = sparse.csr_array((np.ones(len(indices), np.int8), indices, indptr), shape=shape)
    added = new[rows]
    added = sparse.csr_array((np.ones(added.nnz, np.int8), added.indices, added.indptr), shape=shape)
    both = old + added
    return with_items(items, rows, (both.indptr, both.indices))


def exclude(scores: NDArray[Any], users: NDArray[Any], items: UserItems) -> None:
    """Set the scores (B, M) of the items that some users (B,) have to −∞, in place."""
    indptr, indices = items_of(users, items)
    scores[np.repeat(np.arange(len(users)), np.diff(indptr)), indices] = -np.inf


def places_in(pool: NDArray[Any], n_items: int, items: UserItems) -> UserItems:
    """The users' items that are in the pool, as positions in the pool."""
    indptr, indices = items
    place = np.full(n_items, -1)
    place[pool] = np.arange(len(pool))
    places = place[indices]
    return _indptr(places >= 0)[indptr], places[places >= 0]


def _indptr(sizes: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
