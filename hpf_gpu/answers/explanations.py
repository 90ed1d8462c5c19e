"""Why a count is expected, and which items go with an item: answers from the weights of neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.data.ids import table
from hpf_gpu.data.seen import items_of
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.neighbours import Neighbours

from .predictions import backend_for, paired


def explain(fitted: Fitted, threads: int | None, user: Any, item: Any, n: int) -> pd.DataFrame:
    """The shares of expected counts; see :meth:`hpf_gpu.HPF.explain`."""
    neighbours, users, items = _neighbours(fitted), fitted.user_ids, fitted.item_ids
    rows, columns = paired(users.require(user), items.require(item))
    backend = backend_for(fitted, threads)
    of_factors = backend.predict_pairs(fitted.theta, fitted.beta, rows, columns).astype(np.float64)

    sources = neighbours.sources[columns]
    had = _has_items(fitted, rows, sources)
    parts = np.where(had, neighbours.mean[columns], 0.0).astype(np.float64)
    n = min(n, parts.shape[1])
    order = np.argsort(-parts, axis=1, kind="stable")
    parts, sources = (np.take_along_axis(array, order, axis=1) for array in (parts, sources))
    others = parts[:, n:].sum(axis=1)
    # A row for each of the n items, one for her other items and one for the factors.
    rates = np.concatenate([parts[:, :n], others[:, None], of_factors[:, None]], axis=1)
    numbers = np.concatenate([sources[:, :n], np.full((len(rows), 2), -1)], axis=1)
    terms = np.array(["item"] * n + ["other items", "factors"], dtype=object)
    kept = rates > 0
    shares = np.divide(rates, rates.sum(axis=1, keepdims=True), where=kept, out=np.zeros_like(rates))
    pair, term = np.nonzero(kept)
    in_order = np.lexsort((-shares[kept], pair))
    pair, term = pair[in_order], term[in_order]
    return table(
        {
            "UserId": users.column(rows[pair]),
            "ItemId": items.column(columns[pair]),
            "Term": terms[term],
            "Because": items.column(numbers[pair, term]),
            "Rate": rates[pair, term],
            "Share": shares[pair, term],
        }
    )


def related_items(fitted: Fitted, item: Any, n: int) -> pd.DataFrame:
    """The items that go with an item; see :meth:`hpf_gpu.HPF.related_items`."""
    by_source, items = _neighbours(fitted).by_source, fitted.item_ids
    indptr, rows = by_source.indptr, items.require(item)
    best = [
        indptr[row] + np.argsort(-by_source.data[indptr[row] : indptr[row + 1]], kind="stable")[:n]
        for row in rows
    ]
    sizes, places = [len(one) for one in best], np.concatenate([np.empty(0, np.int64), *best])
    return table(
        {
            "ItemId": items.column(np.repeat(rows, sizes)),
            "RelatedId": items.column(by_source.indices[places]),
            "Weight": by_source.data[places],
        }
    )


def _has_items(fitted: Fitted, rows: NDArray[Any], items: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each user (Z,) has each of some items (Z, L); no user has −1."""
    if fitted.seen is None:
        raise ValueError("explanations need the items of each user: fit with keep_data=True")
    indptr, indices = items_of(rows, fitted.seen)
    width = len(fitted.beta)
    own = np.repeat(np.arange(len(rows)), np.diff(indptr)) * width + indices  # ascending
    asked = np.arange(len(rows))[:, None] * width + items
    found = np.minimum(np.searchsorted(own, asked), max(len(own) - 1, 0))
    return (items >= 0) & (len(own) > 0) & (own[found] == asked if len(own) else False)


def _neighbours(fitted: Fitted) -> Neighbours:
    if fitted.neighbours is None:
        raise ValueError("this model has no neighbours: fit with, for example, neighbours=200")
    return fitted.neighbours
