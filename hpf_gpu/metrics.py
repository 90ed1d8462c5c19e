"""Measures of ranked lists of recommendations, each defined once, and their values on held-out items.

Sources: Manning, Raghavan and Schütze, Introduction to Information Retrieval, 2008.  Järvelin and Kekäläinen,
Cumulated gain-based evaluation of IR techniques, 2002.  Voorhees, The TREC-8 question answering track report,
1999.  Deshpande and Karypis, Item-based top-N recommendation algorithms, 2004.  Rendle et al., BPR: Bayesian
personalized ranking from implicit feedback, 2009.  Ge, Delgado-Battenfeld and Jannach, Beyond accuracy:
evaluating recommender systems by coverage and serendipity, 2010.  Zhou et al., Solving the apparent
diversity-accuracy dilemma of recommender systems, 2010.  Gopalan, Hofman and Blei, Scalable recommendation
with hierarchical Poisson factorization, 2015.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from . import backends
from .answers.ensembles import all_scores
from .data.counts import training_data
from .data.triplets import Columns
from .ensemble import HPFEnsemble, as_ensemble
from .estimator import HPF
from .model.settings import from_zero
from .ranking import best_columns

#: Function from row numbers of users (B,) to the scores of all items for each of them (B, M).
ScoreBlock = Callable[[NDArray[np.intp]], NDArray[Any]]
#: The same of several models, (B, M) each, one after the other.
ScoreBlocks = Callable[[NDArray[np.intp]], Iterable[NDArray[Any]]]

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


def precision_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Precision: hits / n (Manning, Raghavan and Schütze 2008, section 8.4), also of lists that are shorter.

    Parameters, return value and errors are those of :func:`normalized_precision_at_n`.
    """
    hits, _ = _checked_hits(hits, n_relevant)
    precision: NDArray[np.float64] = hits.sum(axis=1) / hits.shape[1]
    return precision


def recall_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Recall: hits / number of held-out items (Manning, Raghavan and Schütze 2008, section 8.3).

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


def average_precision_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Average precision, of which the mean over users is MAP.

    Σ_r hit_r · (hits among the first r) / r over ranks r = 1…n (Manning, Raghavan and Schütze 2008,
    section 8.4), divided by min(n, number of held-out items), so that the best possible list has 1.

    Parameters, return value and errors are those of :func:`normalized_precision_at_n`.
    """
    hits, n_relevant = _checked_hits(hits, n_relevant)
    n = hits.shape[1]
    precisions = np.cumsum(hits, axis=1) / np.arange(1, n + 1)
    average: NDArray[np.float64] = (precisions * hits).sum(axis=1) / np.minimum(n, n_relevant)
    return average


def reciprocal_rank_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Reciprocal rank of the first hit, 0 without a hit; the mean over users is MRR (Voorhees 1999).

    Parameters, return value and errors are those of :func:`normalized_precision_at_n`.
    """
    hits, _ = _checked_hits(hits, n_relevant)
    reciprocal: NDArray[np.float64] = hits.any(axis=1) / (1.0 + hits.argmax(axis=1))
    return reciprocal


def hit_rate_at_n(hits: NDArray[Any], n_relevant: NDArray[Any]) -> NDArray[np.float64]:
    """Whether there is any hit, 0 or 1 (Deshpande and Karypis 2004).

    Parameters, return value and errors are those of :func:`normalized_precision_at_n`.
    """
    hits, _ = _checked_hits(hits, n_relevant)
    any_hit: NDArray[np.float64] = hits.max(axis=1).astype(np.float64)
    return any_hit


# Measures of a user's hits, by name.
OF_HITS: Mapping[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]] = {
    "normalized_precision": normalized_precision_at_n,
    "precision": precision_at_n,
    "recall": recall_at_n,
    "ndcg": ndcg_at_n,
    "map": average_precision_at_n,
    "mrr": reciprocal_rank_at_n,
    "hit_rate": hit_rate_at_n,
}


def auc(scores: NDArray[Any], relevant: NDArray[Any]) -> float:
    """Probability that a held-out item has a higher score than another candidate; equal scores count half.

    The area under the ROC curve of one user (Rendle et al. 2009, "Analogies to AUC optimization"), of all
    candidates and not of a list.

    Parameters
    ----------
    scores : numpy.ndarray, (C,)
        Scores of the candidates: all items without a training count.
    relevant : numpy.ndarray of bool, (C,)
        Which of them are held-out items.

    Returns
    -------
    float
        Between 0 and 1; NaN if all candidates are held-out items, or none is.
    """
    wanted, others = scores[relevant], np.sort(scores[~relevant])
    if not len(wanted) or not len(others):
        return float("nan")
    below, up_to = (np.searchsorted(others, wanted, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(others)))


def coverage(items: NDArray[Any], n_items: int) -> float:
    """Share of the catalogue that is in at least one list (Ge, Delgado-Battenfeld and Jannach 2010).

    Parameters
    ----------
    items : numpy.ndarray of int, (U, n)
        Item numbers of the lists; −1 where a list is shorter.
    n_items : int
        Number of items in the catalogue.

    Returns
    -------
    float
        Between 0 and 1.
    """
    return len(np.unique(items[items >= 0])) / n_items


def novelty(items: NDArray[Any], users_with: NDArray[Any], n_users: int) -> NDArray[np.float64]:
    """Mean of −log₂(n_i / N) over the items of a list, in bits, where n_i of N users have item i.

    The self-information of what is recommended (Zhou et al. 2010).  An item that nobody has counts as if one
    user had it.

    Parameters
    ----------
    items : numpy.ndarray of int, (U, n)
        Item numbers of the lists; −1 where a list is shorter.
    users_with : numpy.ndarray, (M,)
        Number of users with a training count of each item.
    n_users : int
        Number of users N.

    Returns
    -------
    numpy.ndarray, (U,)
        One value per user; NaN for an empty list.
    """
    listed = items >= 0
    bits = np.where(listed, np.log2(n_users / np.maximum(users_with, 1.0))[items], 0.0)
    n = listed.sum(axis=1)
    return np.where(n > 0, bits.sum(axis=1) / np.maximum(n, 1), np.nan)


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


def popularity_scores(
    train: Any, *, user: str = "UserId", item: str = "ItemId", count: str | None = "Count"
) -> ScoreBlock:
    """Scores of the baseline "most popular": the number of users of each item in ``train`` (U, M).

    Parameters
    ----------
    train : scipy sparse matrix (U, M), or another form of counts that :meth:`hpf_gpu.HPF.fit` takes
        Training counts.  Of a frame, users and items are numbered as in a fit.
    user, item, count : str
        Names of the columns of a frame, as for :class:`hpf_gpu.HPF`.

    Returns
    -------
    callable
        For :func:`evaluate_ranking` and :func:`hpf_gpu.evaluate`.

    Raises
    ------
    ValueError, TypeError
        If ``train`` does not hold counts of users and items.
    """
    if not sparse.issparse(train):
        numpy = backends.create("numpy", np.dtype(np.float64))
        columns = Columns(user, item, count)
        train = training_data(train, backend=numpy, reindex=True, columns=columns).host_csr
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
    return qualities(lambda users: [scores(users)], 1, train, held_out, n)[0]


def qualities(scores: ScoreBlocks, number: int, train: Any, held_out: Any, n: int) -> list[RankingQuality]:
    """As :func:`evaluate_ranking`, of a ``number`` of scores that are computed together."""
    train, held_out = _as_binary(train), _as_binary(held_out)
    n_items, n = train.shape[1], operator.index(n)
    if train.shape != held_out.shape:
        raise ValueError(f"train {train.shape} and held_out {held_out.shape} must have the same shape")
    if not 1 <= n <= n_items:
        raise ValueError(f"n={n} must lie between 1 and the number of items, {n_items}")
    if shared := train.multiply(held_out).nnz:
        raise ValueError(f"{shared} entries are both in train and held_out")
    if held_out.nnz == 0:
        raise ValueError("held_out is empty")
    return [_quality(lists, n) for lists in _ranked(scores, number, train, held_out, n)]


def _quality(lists: Lists, n: int) -> RankingQuality:
    return RankingQuality(
        n=n,
        n_users=len(lists.users),
        precision=float(normalized_precision_at_n(lists.hits, lists.n_relevant).mean()),
        recall=float(recall_at_n(lists.hits, lists.n_relevant).mean()),
        ndcg=float(ndcg_at_n(lists.hits, lists.n_relevant).mean()),
    )


@dataclass(frozen=True)
class Lists:
    """Lists of the users with held-out items, out of the items without a training count."""

    users: NDArray[np.intp]  # (U,) row numbers
    items: NDArray[np.intp]  # (U, n) item numbers, best first; −1 where no item is left
    hits: NDArray[np.bool_]  # (U, n) whether these are held-out items
    n_relevant: NDArray[Any]  # (U,) number of held-out items
    auc: NDArray[np.float64]  # (U,) see :func:`auc`; NaN unless asked for


def ranked(scores: ScoreBlock, train: Any, held_out: Any, n: int, *, with_auc: bool = False) -> Lists:
    """Lists of at most ``n`` items for all users with held-out items.

    ``train`` and ``held_out`` are CSR arrays of booleans (U, M) without a common entry.
    """
    return _ranked(lambda users: [scores(users)], 1, train, held_out, n, with_auc=with_auc)[0]


def _ranked(
    scores: ScoreBlocks, number: int, train: Any, held_out: Any, n: int, *, with_auc: bool = False
) -> list[Lists]:
    """The same for each of a ``number`` of scores that are computed together."""
    n_relevant = np.diff(held_out.indptr)
    users = np.flatnonzero(n_relevant)
    found = [
        Lists(
            users,
            np.full((len(users), n), -1),
            np.zeros((len(users), n), bool),
            n_relevant[users],
            np.full(len(users), np.nan),
        )
        for _ in range(number)
    ]
    width, step = min(n, train.shape[1]), max(1, _BLOCK_SCORES // train.shape[1])
    for start in range(0, len(users), step):
        rows = slice(start, start + step)
        seen, wanted = (matrix[users[rows]].toarray() for matrix in (train, held_out))
        for lists, raw in zip(found, scores(users[rows]), strict=True):
            block = _checked_scores(raw, users[rows], train.shape[1])
            if with_auc:
                lists.auc[rows] = [
                    auc(row[unseen], of_row[unseen])
                    for row, of_row, unseen in zip(block, wanted, ~seen, strict=True)
                ]
            block[seen] = -np.inf
            lists.items[rows, :width] = best = best_columns(block, width)[0]
            lists.hits[rows, :width] = np.take_along_axis(wanted, best, axis=1) & (best >= 0)
    return found


def _checked_scores(scores: Any, users: NDArray[Any], n_items: int) -> NDArray[np.floating[Any]]:
    """A copy of the scores (B, M) of some users; ValueError if they have another shape, or one is NaN."""
    raw = np.asarray(scores)
    expected = (len(users), n_items)
    if raw.shape != expected:
        raise ValueError(f"scores have shape {raw.shape}, not (users, items) = {expected}")
    block = raw.astype(np.result_type(raw, np.float32))
    if np.isnan(block).any():
        raise ValueError(f"a score of user {users[np.isnan(block).any(axis=1)][0]} is nan")
    return block


def _as_binary(matrix: Any) -> Any:
    """The entries above zero as a CSR array of booleans."""
    is_sparse: bool = sparse.issparse(matrix)
    if not is_sparse:
        raise TypeError(f"users' items must be a scipy sparse matrix, not {type(matrix).__name__}")
    return sparse.csr_array(sparse.csr_array(matrix) > 0)
