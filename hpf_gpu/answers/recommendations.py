"""Recommendations of a fitted model."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from hpf_gpu.model.settings import Choice, fraction, from_zero, whole_number

from .predictions import backend_for
from .uncertainty import Gammas, of_all_items, rank_by_quantile, tails

_MIN_USERS_FOR_GPU = 1000  # below this many, copying the model to the GPU does not pay
# To so many users bounds of the scores are looked at by top_items, and from so many numbers in β on they are
# worth making: with 182,000 a list takes 0.04 ms in place of 0.06; with 2.5 million 0.17 in place of 1.0, and
# they are made in 20.
_FEW_USERS, _MIN_BOUNDED = 8, 1 << 18


@dataclass(frozen=True)
class Wanted:
    """What a list of recommendations is to be."""

    n: int
    exclude_seen: bool
    items: Any = None  # ids to choose from; None for all
    discount: float = 0.0
    quantile: float | None = None  # of the rates, which is the score; None for expected counts

    @classmethod
    def checked(
        cls,
        n: Any,
        exclude_seen: Any,
        items: Any,
        discount: Any = 0.0,
        rank_by: Any = "mean",
        level: Any = 0.9,
    ) -> Wanted:
        """The same after a check; ValueError or TypeError if a value is out of range."""
        n, discount = whole_number("n", n, 1), from_zero("discount", discount)
        lower, upper = tails(fraction("level", level))
        by = Choice(("mean", "lower", "upper")).checked("rank_by", rank_by)
        quantile = {"mean": None, "lower": lower, "upper": upper}[by]
        return cls(n, bool(exclude_seen), items, discount, quantile)

    def pool(self, items: Ids) -> NDArray[Any] | None:
        """Numbers of the items to choose from, ascending; None for all."""
        return None if self.items is None else pool_of(items, self.items)


@dataclass(frozen=True)
class Lists:
    """Lists of recommendations: numbers of items, best first, −1 where none is left, and their scores."""

    users: Ids
    rows: NDArray[Any]  # (B,) numbers of the users in ``users``
    items: Ids
    best: NDArray[Any]  # (B, n)
    scores: NDArray[Any]  # (B, n)

    def table(self) -> pd.DataFrame:
        """A row for each recommendation, the users one after the other."""
        row, place = np.nonzero(self.best >= 0)
        return table(
            {
                "UserId": self.users.column(self.rows[row]),
                "ItemId": self.items.column(self.best[row, place]),
                "Score": self.scores[row, place],
            }
        )

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ids of items and scores, (B, n) each; None and −∞ where no item is left."""
        return self.items.labels(self.best), self.scores


def top_n(fitted: Fitted, threads: int | None, user: Any, wanted: Wanted) -> NDArray[Any]:
    """Ids of the items with the highest expected counts; see :meth:`hpf_gpu.HPF.topN`."""
    rows = fitted.user_ids.require(user)
    best = recommend(fitted, threads, rows, wanted).best
    return fitted.item_ids.labels(best[best >= 0] if fitted.user_ids.is_single(user) else best)


def recommend(fitted: Fitted, threads: int | None, rows: NDArray[Any], wanted: Wanted) -> Lists:
    """The best items of known users, by row number (B,); see :meth:`hpf_gpu.HPF.recommend`."""
    on_gpu = not backends.entry_of(fitted.backend).on_host and len(rows) >= _MIN_USERS_FOR_GPU
    among = tuple(dict.fromkeys((fitted.backend, *backends.NAMES))) if on_gpu else backends.ON_HOST
    backend = backend_for(fitted, threads, among)
    had, theta = _had_by(fitted, rows, wanted.exclude_seen), fitted.theta[rows]
    shape = None if wanted.quantile is None else fitted.require_posteriors("uncertainty")[0].shape[rows]
    return _lists(backend, fitted, fitted.user_ids, rows, theta, shape, had, wanted)


def recommend_for(
    fitted: Fitted,
    threads: int | None,
    users: Ids,  # of the B users
    theta: NDArray[Any],  # (B, K)
    shape: NDArray[Any],  # (B, K) of q(θ)
    had: UserItems,  # of the B users
    wanted: Wanted,
) -> Lists:
    """The same from the factors and items of users who are not in the model."""
    backend = backend_for(fitted, threads)
    return _lists(backend, fitted, users, np.arange(users.size), theta, shape, had, wanted)


def _lists(
    backend: Backend,
    fitted: Fitted,
    users: Ids,
    rows: NDArray[Any],  # (B,) numbers of the users in ``users``
    theta: NDArray[Any],  # (B, K)
    shape: NDArray[Any] | None,  # (B, K) of q(θ), for quantiles
    had: UserItems | None,  # of the B users; None if neither neighbours nor exclude_seen need them
    wanted: Wanted,
) -> Lists:
    pool, exclude = wanted.pool(fitted.item_ids), had if wanted.exclude_seen else None
    if wanted.quantile is None or shape is None:
        best, scores = rank(
            backend, fitted, theta, wanted.n, had=had, exclude=exclude, pool=pool, discount=wanted.discount
        )
    else:
        items = np.arange(fitted.item_ids.size) if pool is None else pool
        best, scores = rank_by_quantile(
            of_all_items(fitted, Gammas.of(theta, shape), had, items),
            (len(theta), fitted.item_ids.size),
            wanted.n,
            wanted.quantile,
            excluded=exclude,
            pool=pool,
            factors=_factors(fitted, wanted.discount),
        )
    return Lists(users, rows, fitted.item_ids, best, scores)


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
    factors = _factors(fitted, discount)
    if factors is not None:
        factors = factors if pool is None else factors[pool]
        beta = beta * factors[:, None]
        if neighbours is not None:
            neighbours = replace(neighbours, weights=neighbours.weights * factors[neighbours.targets])
    bounds = None
    if beta is fitted.beta and beta.size >= _MIN_BOUNDED and len(theta) <= _FEW_USERS and neighbours is None:
        bounds = fitted.bounds.of(backend, beta)
    best, scores = backend.top_items(
        backend.operand(theta), backend.operand(beta), min(n, len(beta)), exclude, neighbours, bounds
    )
    return best if pool is None else np.where(best < 0, -1, pool[best]), scores


def _factors(fitted: Fitted, discount: float) -> NDArray[Any] | None:
    """What the scores of items are multiplied by, (M,); None without a discount."""
    if not discount:
        return None
    if fitted.seen is None:
        raise ValueError("a discount needs the items of each user: fit with keep_data=True")
    return discounts(users_with(fitted.seen, len(fitted.beta)), discount, fitted.dtype)


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


def pool_of(items: Ids, pool: Any) -> NDArray[Any]:
    """Numbers of the items to choose from that are in the model, ascending."""
    if not pd.api.types.is_list_like(pool):
        raise TypeError(f"the items to choose from are {shown(pool)}: pass a list of item ids")
    codes = items.codes(pool)
    if len(codes) == 0:
        raise ValueError("the list of items to choose from is empty: there is nothing to recommend")
    unknown = int((codes < 0).sum())
    if unknown == len(codes):
        raise ValueError("none of the items to choose from was in the training data")
    if unknown:
        warn(f"{unknown} of the items to choose from were not in the training data")
    return np.unique(codes[codes >= 0])
