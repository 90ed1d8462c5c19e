"""Answers of several models of the same counts, combined into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.data.counts import held_out_pairs
from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import UserItems, exclude, items_of
from hpf_gpu.data.triplets import Triplets
from hpf_gpu.model.ensemble import Ensemble, Member, weighted_mean
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.likelihood import pair_llk
from hpf_gpu.ranking import best_columns

from . import uncertainty
from .predictions import backend_for, of_pairs, rates_of_pairs
from .recommendations import Lists, Wanted, discounts
from .uncertainty import (
    Gammas,
    Mixture,
    Moments,
    OfUsers,
    factors_of_users,
    moments_of,
    of_all_items,
    rank_by_quantile,
)

_BLOCK = 1 << 22  # scores that exist at once

#: Function from some of the users in question to the expected counts of all items for each of them, (B, M).
_Rates = Callable[[slice], NDArray[Any]]


# -- pairs ---------------------------------------------------------------------------------------


def predict(ensemble: Ensemble, threads: int | None, user: Any, item: Any) -> Any:
    """Expected counts of pairs; see :meth:`hpf_gpu.HPFEnsemble.predict`."""
    return _of_pairs(ensemble, threads, user, item, lambda rates: ensemble.combined(rates, ensemble.members))


def spread(ensemble: Ensemble, threads: int | None, user: Any, item: Any) -> Any:
    """Standard deviation across the members; see :meth:`hpf_gpu.HPFEnsemble.spread`."""

    def deviation(rates: Sequence[NDArray[Any]]) -> NDArray[Any]:
        mean = weighted_mean(rates, ensemble.members)
        variance = weighted_mean([(one - mean) ** 2 for one in rates], ensemble.members)
        return np.asarray(np.sqrt(variance))

    return _of_pairs(ensemble, threads, user, item, deviation)


def mixture(ensemble: Ensemble, threads: int | None, rows: NDArray[Any], columns: NDArray[Any]) -> Mixture:
    """The rates of pairs of row and column numbers (Z,), each that of one member, drawn by weight."""
    members, weights = _drawn(ensemble.members)
    parts = [moments_of(member.fitted, threads, *_swapped(member, rows, columns)) for member in members]
    return Mixture(parts, weights)


def draws_of_rates(
    ensemble: Ensemble,
    threads: int | None,
    n: int,
    rng: np.random.Generator,
    rows: NDArray[Any],  # (Z,)
    columns: NDArray[Any],  # (Z,)
) -> NDArray[np.float64]:
    """Draws of the rates of pairs of row and column numbers, (n, Z), each of one member."""
    members, weights = _drawn(ensemble.members)
    rates, drawn = np.empty((n, len(rows))), rng.choice(len(members), n, p=weights)
    for number, member in enumerate(members):
        own = np.flatnonzero(drawn == number)
        pairs = _swapped(member, rows, columns)
        rates[own] = uncertainty.draws_of_rates(member.fitted, threads, len(own), rng, *pairs)
    return rates


def _drawn(members: Sequence[Member]) -> tuple[list[Member], list[float]]:
    """Those members that have a weight, and their probabilities."""
    drawn = [member for member in members if member.weight]
    total = sum(member.weight for member in drawn)
    return drawn, [member.weight / total for member in drawn]


def _of_pairs(
    ensemble: Ensemble,
    threads: int | None,
    user: Any,
    item: Any,
    answer: Callable[[Sequence[NDArray[Any]]], NDArray[Any]],
) -> Any:
    """The answer from the members' expected counts of pairs; NaN where an id is unknown."""

    def of_numbers(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
        return answer([_pairs(member, threads, rows, columns) for member in ensemble.members])

    return of_pairs(ensemble.user_ids, ensemble.item_ids, user, item, ensemble.dtype, of_numbers)


def eval_llk(
    ensemble: Ensemble, threads: int | None, triplets: Triplets, *, full_llk: bool
) -> dict[str, Any]:
    """Log-likelihood of counts; see :meth:`hpf_gpu.HPFEnsemble.eval_llk`."""
    pairs = held_out_pairs(triplets, ensemble.user_ids, ensemble.item_ids, name="input_df")
    rates = combined_pairs(ensemble, threads, pairs.rows, pairs.columns)
    return {"llk": pair_llk(rates, pairs, full_llk=full_llk), "nobs": len(pairs.values)}


def combined_pairs(
    ensemble: Ensemble, threads: int | None, users: NDArray[Any], items: NDArray[Any]
) -> NDArray[Any]:
    """Combined expected counts of pairs of row and column numbers, (Z,) each."""
    rates = [_pairs(member, threads, users, items) for member in ensemble.members]
    return ensemble.combined(rates, ensemble.members)


def _pairs(member: Member, threads: int | None, users: NDArray[Any], items: NDArray[Any]) -> NDArray[Any]:
    """Expected counts of pairs, (Z,)."""
    pairs = _swapped(member, users, items)
    return rates_of_pairs(backend_for(member.fitted, threads), member.fitted, *pairs)


def _swapped(member: Member, users: NDArray[Any], items: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row and column numbers (Z,) of the member's own factors."""
    return (items, users) if member.transposed else (users, items)


def _rates(member: Member, users: NDArray[Any]) -> _Rates:
    """Expected counts of all items for users of the model, by row number (B,)."""
    fitted = member.fitted
    if not member.transposed:
        had = None if fitted.neighbours is None else member.items_of_users[users]
        return _rates_of_factors(fitted, fitted.theta[users], had)
    return partial(_rates_of_transposed, member, users)


def _rates_of_factors(fitted: Fitted, theta: NDArray[Any], had: sparse.csr_array | None) -> _Rates:
    """Expected counts of all items for users with these factors (B, K) and items (B, M)."""

    def rates(part: slice) -> NDArray[Any]:
        block: NDArray[Any] = theta[part] @ fitted.beta.T
        if fitted.neighbours is not None and had is not None:
            block += (had[part] @ fitted.neighbours.by_source).toarray()
        return block

    return rates


def _rates_of_transposed(member: Member, users: NDArray[Any], part: slice) -> NDArray[Any]:
    """The same of a transposed member, whose neighbours are users."""
    fitted, rows = member.fitted, users[part]
    block: NDArray[Any] = fitted.beta[rows] @ fitted.theta.T
    if fitted.neighbours is not None:
        block += (fitted.neighbours.by_target[rows] @ member.items_of_users).toarray()
    return block


def _moments(member: Member, threads: int | None, users: NDArray[Any], items: NDArray[Any]) -> OfUsers:
    """Moments of the rates of some items (M',) for users of the model, by row number (B,)."""
    if member.transposed:
        return partial(_moments_of_transposed, member, threads, users, items)
    fitted, had = member.fitted, None
    if fitted.neighbours is not None:
        csr = member.items_of_users
        had = items_of(users, (csr.indptr, csr.indices))
    return of_all_items(fitted, factors_of_users(fitted, users), had, items)


def _moments_of_transposed(
    member: Member, threads: int | None, users: NDArray[Any], items: NDArray[Any], part: slice
) -> Moments:
    """The same of a transposed member, pair by pair."""
    rows, columns = np.broadcast_arrays(users[part, None], items)
    moments = moments_of(member.fitted, threads, *_swapped(member, rows.ravel(), columns.ravel()))
    return Moments(moments.mean.reshape(rows.shape), moments.variance.reshape(rows.shape))


# -- sums over all items ---------------------------------------------------------------------------


def expected_totals(ensemble: Ensemble, users: NDArray[Any]) -> NDArray[np.float64]:
    """Σ_i of the combined expected counts of some users (B,) over all items, (B,).

    Means of expected counts need no matrix of users by items: Σ_i θ_u·β_i = θ_u·Σ_i β_i, and what neighbours
    add is Σ_j Σ_i w_ji over the items j that the user has.  Means of logarithms have no such form.
    """
    if not ensemble.of_logarithms:
        return weighted_mean([_totals(member, users) for member in ensemble.members], ensemble.members)
    totals = np.empty(len(users))
    for part in _parts(len(users), ensemble.item_ids.size):
        totals[part] = all_scores(ensemble, users[part]).sum(axis=1, dtype=np.float64)
    return totals


def _totals(member: Member, users: NDArray[Any]) -> NDArray[np.float64]:
    """The same of one member."""
    fitted, neighbours = member.fitted, member.fitted.neighbours
    rows, columns = (fitted.beta, fitted.theta) if member.transposed else (fitted.theta, fitted.beta)
    totals: NDArray[np.float64] = rows[users].astype(np.float64) @ columns.sum(axis=0, dtype=np.float64)
    if neighbours is None:
        return totals
    if member.transposed:
        totals += neighbours.by_target[users] @ member.items_of_users.sum(axis=1, dtype=np.float64)
    else:
        totals += member.items_of_users[users] @ neighbours.by_source.sum(axis=1, dtype=np.float64)
    return totals


# -- lists ---------------------------------------------------------------------------------------


def recommend(ensemble: Ensemble, threads: int | None, rows: NDArray[Any], wanted: Wanted) -> Lists:
    """The best items of known users, by row number (B,); see :meth:`hpf_gpu.HPFEnsemble.recommend`."""
    had = None
    if wanted.exclude_seen:
        csr = ensemble.items_of_users
        had = items_of(rows, (csr.indptr, csr.indices))
    members = ensemble.members
    if wanted.quantile is None:
        rates = [_rates(member, rows) for member in members]
        best, scores = _best(ensemble, members, rates, len(rows), had, wanted)
    else:
        moments = [partial(_moments, member, threads, rows) for member in members]
        best, scores = _best_by_quantile(ensemble, members, moments, wanted.quantile, len(rows), had, wanted)
    return Lists(ensemble.user_ids, rows, ensemble.item_ids, best, scores)


def top_n(ensemble: Ensemble, threads: int | None, user: Any, wanted: Wanted) -> NDArray[Any]:
    """Ids of the items with the highest expected counts; see :meth:`hpf_gpu.HPFEnsemble.topN`."""
    users = ensemble.user_ids
    best = recommend(ensemble, threads, users.require(user), wanted).best
    return ensemble.item_ids.labels(best[best >= 0] if users.is_single(user) else best)


def recommend_for(
    ensemble: Ensemble,
    users: Ids,
    factors: Sequence[tuple[NDArray[Any], NDArray[Any]]],  # E[θ] and shapes (B, K) of each such member
    had: UserItems,  # of the B users
    wanted: Wanted,
) -> Lists:
    """The same for users who are not in the model, by the members that are not transposed."""
    members = [member for member in ensemble.members if not member.transposed]
    excluded = had if wanted.exclude_seen else None
    if wanted.quantile is None:
        indptr, indices = had
        ones = np.ones(len(indices), ensemble.dtype)
        items = sparse.csr_array((ones, indices, indptr), shape=(users.size, ensemble.item_ids.size))
        rates = [
            _rates_of_factors(member.fitted, theta, items)
            for member, (theta, _) in zip(members, factors, strict=True)
        ]
        best, scores = _best(ensemble, members, rates, users.size, excluded, wanted)
    else:
        moments = [
            partial(of_all_items, member.fitted, Gammas.of(*own), had)
            for member, own in zip(members, factors, strict=True)
        ]
        best, scores = _best_by_quantile(
            ensemble, members, moments, wanted.quantile, users.size, excluded, wanted
        )
    return Lists(users, np.arange(users.size), ensemble.item_ids, best, scores)


def all_scores(ensemble: Ensemble, users: NDArray[Any], *, discount: float = 0.0) -> NDArray[Any]:
    """Combined expected counts of all items for some users (B,), by row number, (B, M)."""
    return next(scores_of_each([(ensemble, discount)], users))


def scores_of_each(
    ensembles: Sequence[tuple[Ensemble, float]], users: NDArray[Any]
) -> Iterator[NDArray[Any]]:
    """The same with each of some discounts, of ensembles that differ in nothing but weights.

    What the members expect, of which most of the time is, is computed once.
    """
    first, _ = ensembles[0]
    terms = first.terms([_rates(member, users)(slice(None)) for member in first.members])
    for ensemble, discount in ensembles:
        scores = ensemble.combined_terms(terms, ensemble.members)
        yield scores * _factors(ensemble, discount) if discount else scores


def _factors(ensemble: Ensemble, discount: float) -> NDArray[Any]:
    """What the combined expected counts of each item are multiplied by, (M,)."""
    return discounts(ensemble.users_with, discount, ensemble.dtype)


def _best(
    ensemble: Ensemble,
    members: Sequence[Member],
    rates: Sequence[_Rates],
    size: int,
    had: UserItems | None,  # that are excluded
    wanted: Wanted,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Numbers and scores of the best items, (B, n) or with fewer columns if there are fewer items."""
    pool = wanted.pool(ensemble.item_ids)
    n = min(wanted.n, ensemble.item_ids.size if pool is None else len(pool))
    factors = _factors(ensemble, wanted.discount) if wanted.discount else None
    found: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for part in _parts(size, ensemble.item_ids.size):
        scores = ensemble.combined([of_member(part) for of_member in rates], members)
        if factors is not None:
            scores *= factors
        if had is not None:
            exclude(scores, np.arange(part.start, part.stop), had)
        if pool is not None:
            scores = scores[:, pool]
        best, scores = best_columns(scores, n)
        found.append((best if pool is None else np.where(best < 0, -1, pool[best]), scores))
    best, scores = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return best, scores


def _best_by_quantile(
    ensemble: Ensemble,
    members: Sequence[Member],
    moments: Sequence[Callable[[NDArray[Any]], OfUsers]],  # of each member, from the items to choose from
    p: float,
    size: int,
    had: UserItems | None,  # that are excluded
    wanted: Wanted,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The same by quantiles of the mixture of the members' rates."""
    pool, n_items = wanted.pool(ensemble.item_ids), ensemble.item_ids.size
    items = np.arange(n_items) if pool is None else pool
    _, weights = _drawn(members)
    parts = [of_items(items) for of_items, member in zip(moments, members, strict=True) if member.weight]
    return rank_by_quantile(
        lambda users: Mixture([of_users(users) for of_users in parts], weights),
        (size, n_items),
        wanted.n,
        p,
        excluded=had,
        pool=pool,
        factors=_factors(ensemble, wanted.discount) if wanted.discount else None,
    )


def _parts(size: int, n_items: int) -> Iterator[slice]:
    """Slices of at most so many users that their scores are a block; one, if there are no users."""
    step = max(1, _BLOCK // n_items)
    for start in range(0, max(size, 1), step):
        yield slice(start, min(start + step, size))
