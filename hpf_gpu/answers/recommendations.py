"""Recommendations of a fitted model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu import backends
from hpf_gpu.backends.protocol import Backend, ItemScores
from hpf_gpu.data.ids import Ids, table
from hpf_gpu.data.seen import UserItems, items_of, places_in, places_of, users_with
from hpf_gpu.messages import shown, warn
from hpf_gpu.model.fitted import Fitted

from .predictions import backend_for

_MIN_USERS_FOR_GPU = 1000  # below this many, copying the model to the GPU does not pay


def top_n(
    fitted: Fitted, threads: int | None, user: Any, n: int, *, exclude_seen: bool, items_pool: Any
) -> NDArray[Any]:
    """Ids of the items with the highest expected counts; see :meth:`hpf_gpu.HPF.topN`."""
    rows = fitted.user_ids.require(user)
    had = _had_by(fitted, rows, exclude_seen)
    exclude = had if exclude_seen else None
    pool = None if items_pool is None else pool_of(fitted.item_ids, items_pool)
    on_gpu = not backends.entry_of(fitted.backend).on_host and len(rows) >= _MIN_USERS_FOR_GPU
    among = tuple(dict.fromkeys((fitted.backend, *backends.NAMES))) if on_gpu else backends.ON_HOST
    backend = backend_for(fitted, threads, among)
    best, _ = rank(backend, fitted, fitted.theta[rows], n, had=had, exclude=exclude, pool=pool)
    return fitted.item_ids.labels(best[best >= 0] if fitted.user_ids.is_single(user) else best)


def recommend(
    fitted: Fitted,
    threads: int | None,
    user: Any,
    n: int,
    *,
    exclude_seen: bool,
    items_pool: Any,
    discount: float,
) -> pd.DataFrame:
    """A table of the best items of known users; see :meth:`hpf_gpu.HPF.recommend`."""
    users = fitted.user_ids
    rows = users.require(user)
    had, theta = _had_by(fitted, rows, exclude_seen), fitted.theta[rows]
    return recommend_for(
        fitted,
        threads,
        users,
        rows,
        theta,
        had,
        n,
        exclude_seen=exclude_seen,
        items_pool=items_pool,
        discount=discount,
    )


def recommend_for(
    fitted: Fitted,
    threads: int | None,
    users: Ids,
    rows: NDArray[Any],  # (B,) numbers of the users in ``users``
    theta: NDArray[Any],  # (B, K)
    had: UserItems | None,  # of the B users; None if neither neighbours nor exclude_seen need them
    n: int,
    *,
    exclude_seen: bool,
    items_pool: Any,
    discount: float,
) -> pd.DataFrame:
    """The same table from the factors and items of users, who need not be in the model."""
    pool = None if items_pool is None else pool_of(fitted.item_ids, items_pool)
    exclude = had if exclude_seen else None
    backend = backend_for(fitted, threads)
    best, scores = rank(backend, fitted, theta, n, had=had, exclude=exclude, pool=pool, discount=discount)
    return table_of(users, rows, fitted.item_ids, best, scores)


def table_of(
    users: Ids,
    rows: NDArray[Any],  # (B,) numbers of the users in ``users``
    items: Ids,
    best: NDArray[Any],  # (B, n) numbers of items, −1 where there is none
    scores: NDArray[Any],  # (B, n)
) -> pd.DataFrame:
    """A row for each recommendation, the users one after the other."""
    row, place = np.nonzero(best >= 0)
    return table(
        {
            "UserId": users.column(rows[row]),
            "ItemId": items.column(best[row, place]),
            "Score": scores[row, place],
        }
    )


def rank(
    backend: Backend,
    fitted: Fitted,
    theta: NDArray[Any],  # (B, K)
    n: int,
    *,
    had: UserItems | None = None,  # of the B users, if the model has neighbours
    exclude: UserItems | None = None,  # of the B users
    pool: NDArray[Any] | None = None,  # item numbers, ascending
    discount: float = 0.0,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Numbers of the ``n`` items with the highest scores, best first, and the scores.

    These are expected counts, divided by the number of users that have the item to the power of ``discount``.
    Both are (B, n), or have fewer columns if there are fewer items to choose from; where no item is left, −1
    and −∞.
    """
    beta, neighbours = fitted.beta, None
    if fitted.neighbours is not None and had is not None:
        neighbours = _added(fitted.neighbours.by_source, had, pool)
    if pool is not None:
        exclude = None if exclude is None else places_in(pool, len(beta), exclude)
        beta = beta[pool]
    if discount:
        if fitted.seen is None:
            raise ValueError("a discount needs the items of each user: fit with keep_data=True")
        factors = discounts(users_with(fitted.seen, len(fitted.beta)), discount, fitted.dtype)
        factors = factors if pool is None else factors[pool]
        beta = beta * factors[:, None]
        if neighbours is not None:
            neighbours = replace(neighbours, weights=neighbours.weights * factors[neighbours.targets])
    best, scores = backend.top_items(
        backend.operand(theta), backend.operand(beta), min(n, len(beta)), exclude, neighbours
    )
    return best if pool is None else np.where(best < 0, -1, pool[best]), scores


def discounts(users_with: NDArray[Any], discount: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """What the expected counts of items are multiplied by, (M,), for the numbers of users that have them."""
    factors: NDArray[Any] = np.maximum(users_with, 1.0) ** -discount
    return factors.astype(dtype)


def _added(weights: sparse.csr_array, had: UserItems, pool: NDArray[Any] | None) -> ItemScores:
    """What the items of some users add: of the weights (M, M) by source, only the rows of these items."""
    indptr, indices = had
    used = np.unique(indices)
    had = indptr, np.searchsorted(used, indices)
    if pool is not None:
        rows = weights[used][:, pool]
        return ItemScores(had, rows.indptr, rows.indices, rows.data)
    # What weights[used] would be, ten times as fast for one user.
    starts, places = places_of(used, weights.indptr)
    return ItemScores(had, starts, weights.indices[places], weights.data[places])


def _had_by(fitted: Fitted, rows: NDArray[Any], exclude_seen: bool) -> UserItems | None:
    """The items of some users (B,) in the training data; None if nothing depends on them."""
    if not exclude_seen and fitted.neighbours is None:
        return None
    if fitted.seen is None:
        raise ValueError("exclude_seen needs the items of each user: fit with keep_data=True")
    return items_of(rows, fitted.seen)


def pool_of(items: Ids, items_pool: Any) -> NDArray[Any]:
    """Numbers of the pool's items that are in the model, ascending."""
    if not pd.api.types.is_list_like(items_pool):
        raise TypeError(f"items_pool is {shown(items_pool)}: pass a list of item ids")
    codes = items.codes(items_pool)
    if len(codes) == 0:
        raise ValueError("items_pool is empty: there is nothing to recommend")
    unknown = int((codes < 0).sum())
    if unknown == len(codes):
        raise ValueError("none of the items in items_pool was in the training data")
    if unknown:
        warn(f"{unknown} items of items_pool were not in the training data")
    return np.unique(codes[codes >= 0])
