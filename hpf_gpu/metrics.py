"""Precision, recall and NDCG of ranked lists of recommendations, measured on held-out items."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .answers.ensembles import all_scores
from .ensemble import HPFEnsemble, as_ensemble
from .estimator import HPF
from .model.settings import from_zero
from .ranking import top_columns

#: Function from row numbers of users (B,) to the scores of all items for each of them (B, M).
ScoreBlock = Callable[[NDArray[np.intp]], NDArray[Any]]

_BLOCK_SCORES = 1 << 20  # scores that are ranked at once; about 30 bytes each


@dataclass(frozen=True)
class RankingQuality:
    """Quality of lists of ``n`` recommendations, averaged over the users with held-out items.

    Attributes
    ----------
    n : int
        Length of the lists.
    n_users : int
        Number of users with held-out items, over which averages are taken.
    precision : float
        Normalized precision, see :func:`normalized_precision_at_n`.
    recall : float
        Recall, see :func:`recall_at_n`.
    ndcg : float
        Normalized discounted cumulative gain, see :func:`ndcg_at_n`.
    """

    n: int
    n_users: int
    precision: float
    recall: float
    ndcg: float


# -- of ranked lists -----------------------------------------------------------------------------


def normalized_precision_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Normalized precision: hits / min(n, number of held-out items).

    Unlike plain precision, hits / n, it can reach 1 for users with fewer than n held-out items
    (Gopalan, Hofman and Blei 2015, section 4).

    Parameters
    ----------
    hits : numpy.ndarray of bool, (U, n)
        Whether each item of a user's list, best first, is one of the user's held-out items.
    n_relevant : numpy.ndarray of int, (U,)
        Number of held-out items of each user, at least 1.

    Returns
    -------
    numpy.ndarray, (U,)
        One value per user, between 0 and 1.

    Raises
    ------
    ValueError
        If the shapes do not match, or a user has no held-out item or fewer held-out items than hits.
    """
    hits, n_relevant = _checked_hits(hits, n_relevant)
    precision: NDArray[np.float64] = hits.sum(axis=1) / np.minimum(hits.shape[1], n_relevant)
    return precision


def recall_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Recall: hits / number of held-out items.

    Parameters, return value and errors are those of :func:`normalized_precision_at_n`.
    """
    hits, n_relevant = _checked_hits(hits, n_relevant)
    recall: NDArray[np.float64] = hits.sum(axis=1) / n_relevant
    return recall


def ndcg_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Normalized discounted cumulative gain (Järvelin and Kekäläinen 2002) with binary relevance.

    The gain Σ_r hit_r / log₂(1 + r) over ranks r = 1…n is divided by that of the best possible list, which
    starts with the held-out items.

    Parameters, return value and errors are those of :func:`normalized_precision_at_n`.
    """
    hits, n_relevant = _checked_hits(hits, n_relevant)
    n = hits.shape[1]
    discount = 1.0 / np.log2(1.0 + np.arange(1, n + 1))
    ideal = np.cumsum(discount)[np.minimum(n, n_relevant) - 1]
    ndcg: NDArray[np.float64] = (hits @ discount) / ideal
    return ndcg


def _checked_hits(hits: NDArray[Any], n_relevant: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    hits, n_relevant = np.asarray(hits, dtype=np.bool_), np.asarray(n_relevant)
    if hits.ndim != 2 or hits.shape[1] == 0 or n_relevant.shape != hits.shape[:1]:
        raise ValueError(
            f"hits {hits.shape} and n_relevant {n_relevant.shape} must have the shapes (U, n) and (U,)"
        )
    wrong = np.flatnonzero((n_relevant < 1) | (n_relevant < hits.sum(axis=1)))
    if len(wrong):
        user = wrong[0]
        raise ValueError(
            f"n_relevant={n_relevant[user]!s} of user {user} is below 1 or below the number of hits"
        )
    return hits, n_relevant


# -- of a model ----------------------------------------------------------------------------------


def factor_scores(theta: NDArray[Any], beta: NDArray[Any]) -> ScoreBlock:
    """Scores θ_u·β_i of a factorization.

    Parameters
    ----------
    theta, beta : numpy.ndarray, (U, K) and (M, K)
        For example ``HPF.Theta`` and ``HPF.Beta``.

    Returns
    -------
    callable
        For :func:`evaluate_ranking`.

    Raises
    ------
    ValueError
        If ``theta`` and ``beta`` differ in the number of factors.
    """
    if theta.ndim != 2 or beta.ndim != 2 or theta.shape[1] != beta.shape[1]:
        raise ValueError(f"theta {theta.shape} and beta {beta.shape} must have the shapes (U, K) and (M, K)")
    return lambda users: theta[users] @ beta.T


def model_scores(model: HPF | HPFEnsemble, discount: float = 0.0) -> ScoreBlock:
    """Expected counts of a fitted model or ensemble, with what neighbours add to them if it has neighbours.

    Parameters
    ----------
    model : HPF or HPFEnsemble
        Rows of ``Theta`` are the users, rows of ``Beta`` the items; of an ensemble, those of the first member
        (of its items and users, if that is transposed).
    discount : float
        Expected counts are divided by n_i to this power, where n_i users have the item.

    Returns
    -------
    callable
        For :func:`evaluate_ranking`.

    Raises
    ------
    ValueError
        If the model is not fitted, or ``discount`` is negative.
    """
    discount = from_zero("discount", discount)
    return partial(all_scores, as_ensemble(model), discount=discount)


def popularity_scores(train: Any) -> ScoreBlock:
    """Scores of the baseline "most popular": the number of users of each item in ``train`` (U, M).

    Parameters
    ----------
    train : scipy sparse matrix, (U, M)
        Training counts.

    Returns
    -------
    callable
        For :func:`evaluate_ranking`.

    Raises
    ------
    TypeError
        If ``train`` is not a sparse matrix.
    """
    n_users = _as_binary(train).sum(axis=0).astype(np.float64)
    return lambda users: np.tile(n_users, (len(users), 1))


def evaluate_ranking(scores: ScoreBlock, train: Any, held_out: Any, n: int = 20) -> RankingQuality:
    """Rank for every user the items without a training count, and compare the list with the held-out items.

    Parameters
    ----------
    scores : callable
        Takes row numbers of users (B,) and returns the scores (B, M) of all items for them, higher being
        better; see :func:`model_scores`, :func:`factor_scores` and :func:`popularity_scores`.  Items with a
        score of −inf are not recommended; of equal scores the item with the lower number comes first.
    train, held_out : scipy sparse matrix, (U, M)
        Training and held-out counts.  Every entry above zero is an item of the user.
    n : int
        Length of the lists.

    Returns
    -------
    RankingQuality
        Averages over the users with at least one held-out item.

    Raises
    ------
    ValueError
        If shapes do not match, ``n`` is not between 1 and M, ``held_out`` is empty, a pair is in both
        ``train`` and ``held_out``, or a score is NaN.
    TypeError
        If ``train`` or ``held_out`` is not a sparse matrix.
    """
    train, held_out = _as_binary(train), _as_binary(held_out)
    n_items, n = train.shape[1], operator.index(n)
    if train.shape != held_out.shape:
        raise ValueError(f"train {train.shape} and held_out {held_out.shape} must have the same shape")
    if not 1 <= n <= n_items:
        raise ValueError(f"n={n} must lie between 1 and the number of items, {n_items}")
    if shared := train.multiply(held_out).nnz:
        raise ValueError(f"{shared} entries are both in train and held_out")
    n_relevant = np.diff(held_out.indptr)
    users = np.flatnonzero(n_relevant)
    if len(users) == 0:
        raise ValueError("held_out is empty")

    hits = np.empty((len(users), n), dtype=bool)
    step = max(1, _BLOCK_SCORES // n_items)
    for start in range(0, len(users), step):
        block = slice(start, start + step)
        hits[block] = _hits(scores, train, held_out, users[block], n)
    return RankingQuality(
        n=n,
        n_users=len(users),
        precision=float(normalized_precision_at_n(hits, n_relevant[users]).mean()),
        recall=float(recall_at_n(hits, n_relevant[users]).mean()),
        ndcg=float(ndcg_at_n(hits, n_relevant[users]).mean()),
    )


def _hits(scores: ScoreBlock, train: Any, held_out: Any, users: NDArray[Any], n: int) -> NDArray[np.bool_]:
    """Whether each item (B, n) of the users' lists is a held-out item."""
    raw = np.asarray(scores(users))
    expected = (len(users), train.shape[1])
    if raw.shape != expected:
        raise ValueError(f"scores have shape {raw.shape}, not (users, items) = {expected}")
    block = raw.astype(np.result_type(raw, np.float32))  # a copy, because it is modified
    if np.isnan(block).any():
        raise ValueError(f"a score of user {users[np.isnan(block).any(axis=1)][0]} is nan")
    block[train[users].nonzero()] = -np.inf
    relevant = held_out[users].toarray() & (block > -np.inf)
    return np.take_along_axis(relevant, top_columns(block, n), axis=1)


def _as_binary(matrix: Any) -> Any:
    """The entries above zero as a CSR array of booleans."""
    is_sparse: bool = sparse.issparse(matrix)
    if not is_sparse:
        raise TypeError(f"users' items must be a scipy sparse matrix, not {type(matrix).__name__}")
    return sparse.csr_array(sparse.csr_array(matrix) > 0)
