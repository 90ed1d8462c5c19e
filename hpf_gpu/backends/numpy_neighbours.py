"""Neighbours in NumPy and SciPy: which items occur together, and sums over those that a user has."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from .protocol import Host, ItemScores

_BLOCK_BYTES = 1 << 25  # of dense blocks (B, M)


def ones_of(csr: Any, dtype: np.dtype[Any]) -> Any:
    """1 where there is a count, (N, M)."""
    return sparse.csr_array((np.ones(csr.nnz, dtype), csr.indices, csr.indptr), shape=csr.shape)


def by_source(sources: Host, weights: Host, shape: tuple[int, int]) -> Any:
    """The weights (M, L) as a sparse matrix (J, M) with a row for each item that a user may have."""
    target, place = np.nonzero(sources >= 0)
    at = (sources[target, place], target)
    return sparse.csr_array((weights[target, place], at), shape=shape)


def sums_over_had(has: Any, sources: Host, weights: Host, rows: Host, columns: Host) -> Host:
    """Σ_l w_il over the neighbours of item i that user u has, for pairs (Z,) in row order.

    ``has`` is 1 where user u has item j, (N, J), and ``weights`` are (M, L).
    """
    sums, matrix = (
        np.empty(len(rows), weights.dtype),
        by_source(sources, weights, (has.shape[1], len(weights))),
    )
    for users in _blocks(has.shape[0], len(weights)):
        pairs = slice(*np.searchsorted(rows, (users.start, users.stop)))
        if pairs.start < pairs.stop:
            sums[pairs] = (has[users] @ matrix).toarray()[rows[pairs] - users.start, columns[pairs]]
    return sums


def sums_over_users(has: Any, values: Any, sources: Host) -> Host:
    """Σ_u values_ui over the users of item i who have its neighbour l, (M, L), for CSR values (N, M)."""
    sums, by_item = np.zeros(sources.shape, has.dtype), values.T.tocsr()
    pairs = int((np.diff(has.indptr).astype(np.int64) ** 2).sum())  # of items that users have together
    for items in _blocks(len(sources), 1 + pairs // len(sources)):
        together = (by_item[items] @ has).tocsr()
        together.sort_indices()
        found, places = _entries(together, np.arange(together.shape[0])[:, None], sources[items])
        sums[items][found] = together.data[places]
    return sums


def had_among(csr: Any, sources: Host, rows: Host, columns: Host) -> Host:
    """Whether user u has neighbour l of item i, for pairs: (Z, L).  ``csr`` (N, J) is canonical."""
    found, _ = _entries(csr, rows[:, None], sources[columns])
    return found


def _entries(csr: Any, rows: Host, columns: Host) -> tuple[Host, Host]:
    """Which entries a canonical matrix has, in the common shape of both, and the places of those it has."""
    width = csr.shape[1]
    has = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr)) * width + csr.indices  # ascending
    if len(has) == 0:
        return np.zeros(np.broadcast_shapes(rows.shape, columns.shape), bool), np.empty(0, np.intp)
    asked = rows.astype(np.int64) * width + columns
    places = np.minimum(np.searchsorted(has, asked), len(has) - 1)
    found: Host = (has[places] == asked) & (columns >= 0)
    return found, places[found]


def choose(csr: Any, n: int) -> Host:
    """See :meth:`hpf_gpu.backends.protocol.Backend.choose_neighbours`."""
    has = ones_of(csr, np.dtype(np.float64))
    by_item, (users, items) = has.T.tocsr(), csr.shape
    sizes = np.diff(by_item.indptr).astype(np.float64)
    chosen = np.full((items, n), -1, np.int32)
    for block in _blocks(items, items):
        together = (by_item[block] @ has).tocsr()
        together.sort_indices()
        for i, row in enumerate(together, start=block.start):
            other = row.indices != i
            candidates, both = row.indices[other], row.data[other]
            score = both * np.log(both * users / (sizes[i] * sizes[candidates]))
            best = candidates[np.argsort(-score, kind="stable")[:n]]
            chosen[i, : len(best)] = np.sort(best)
    return chosen


def added_scores(neighbours: ItemScores, users: slice, items: slice) -> Host:
    """What the items that some users (B,) have add to the rates of some items, (B, C)."""
    indptr, indices = neighbours.had
    starts = indptr[users.start : users.stop + 1]
    own = indices[starts[0] : starts[-1]]
    has = sparse.csr_array(
        (np.ones(len(own), neighbours.weights.dtype), own, starts - starts[0]),
        shape=(len(starts) - 1, len(neighbours.indptr) - 1),
    )
    triplet = (neighbours.weights, neighbours.targets, neighbours.indptr)
    n_items = max(items.stop, int(neighbours.targets.max(initial=-1)) + 1)
    weights = sparse.csr_array(triplet, shape=(has.shape[1], n_items))
    added: Host = (has @ weights[:, items.start : items.stop]).toarray()
    return added


def _blocks(n: int, width: int) -> list[slice]:
    step = max(1, _BLOCK_BYTES // (8 * max(width, 1)))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
