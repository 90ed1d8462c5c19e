"""Items and users that are alike, by the shares of the factors in their expected counts.

Of the counts that are expected of an item from all users, Σ_u θ_u·β_i, factor k has the share
p_ik = β_ik Σ_u θ_uk / Σ_k' β_ik' Σ_u θ_uk'.  A factor may be rescaled without a change of the model, θ_k by s
and β_k by 1/s, and where the scale ends is chance; shares do not depend on it, nor on how popular an item is.
Items are compared by the correlation of their √p_i about the mean of all items: the geometry of the Hellinger
distance, less what all items have in common.  docs/uncertainty.md has figures of this and other measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.data.ids import Ids, table
from hpf_gpu.model.ensemble import Ensemble
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.ranking import top_columns

from .predictions import known_rows

_BLOCK = 1 << 22  # similarities that exist at once

#: Weight of a model, factors of what is compared (M, K), and factors of the other side (N, K).
_Side = tuple[float, NDArray[Any], NDArray[Any]]


def similar_items(fitted: Fitted, items: Any, n: int) -> pd.DataFrame:
    """The items most like some items; see :meth:`hpf_gpu.HPF.similar_items`."""
    return _most_similar(fitted.item_ids, "ItemId", _profiles([(1.0, fitted.beta, fitted.theta)]), items, n)


def similar_users(fitted: Fitted, users: Any, n: int) -> pd.DataFrame:
    """The users most like some users; see :meth:`hpf_gpu.HPF.similar_users`."""
    return _most_similar(fitted.user_ids, "UserId", _profiles([(1.0, fitted.theta, fitted.beta)]), users, n)


def similar_items_of(ensemble: Ensemble, items: Any, n: int) -> pd.DataFrame:
    """The same by the mean over the members; see :meth:`hpf_gpu.HPFEnsemble.similar_items`."""
    sides = [(weight, other, own) for weight, own, other in _sides(ensemble)]
    return _most_similar(ensemble.item_ids, "ItemId", _profiles(sides), items, n)


def similar_users_of(ensemble: Ensemble, users: Any, n: int) -> pd.DataFrame:
    """The same by the mean over the members; see :meth:`hpf_gpu.HPFEnsemble.similar_users`."""
    return _most_similar(ensemble.user_ids, "UserId", _profiles(_sides(ensemble)), users, n)


def rows_of_similar_items(ensemble: Ensemble, rows: NDArray[Any], n: int) -> NDArray[np.intp] | None:
    """Numbers (B, n) of the items most like some items (B,); None if no member has two factors or more."""
    sides = [(weight, other, own) for weight, own, other in _sides(ensemble)]
    return _most_alike(_profiles(sides), rows, n)[0] if _comparable(sides) else None


def _sides(ensemble: Ensemble) -> Iterable[_Side]:
    """Weight, factors of the users and factors of the items of each member."""
    for member in ensemble.members:
        sides = member.fitted.theta, member.fitted.beta
        yield member.weight, *(sides[::-1] if member.transposed else sides)


def _profiles(sides: Iterable[_Side]) -> NDArray[Any]:
    """A matrix (M, K) whose rows have the similarities of items for their products.

    From the factors of the items (M, K) and of the users (N, K) of one or more models and their weights: the
    product of joined rows is the mean of the models' similarities.
    """
    if not (used := _comparable(sides)):
        raise ValueError("similarities need two factors or more; a model with neighbours has related_items")
    total = sum(weight for weight, _, _ in used)
    return np.concatenate(
        [profile(own, other) * own.dtype.type(np.sqrt(weight / total)) for weight, own, other in used],
        axis=1,
    )


def _comparable(sides: Iterable[_Side]) -> list[_Side]:
    """Those with a weight and two factors or more."""
    return [one for one in sides if one[0] > 0 and one[1].shape[1] > 1]


def profile(own: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """√p less its mean, with rows of length one, (M, K), from factors (M, K) of items and (N, K) of users."""
    expected = own * other.sum(axis=0, dtype=np.float64)
    tiny = np.finfo(np.float64).tiny  # for rows of zeros
    roots = np.sqrt(expected / np.maximum(expected.sum(axis=1, keepdims=True), tiny))
    roots -= roots.mean(axis=0)
    roots /= np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), tiny)
    return np.asarray(roots, own.dtype)


def _most_similar(ids: Ids, name: str, profiles: NDArray[Any], asked: Any, n: int) -> pd.DataFrame:
    """A row for each of the ``n`` ids most like each of those in question, best first."""
    rows = known_rows(ids, asked)
    best, scores = _most_alike(profiles, rows, n)
    return table(
        {
            name: ids.column(np.repeat(rows, best.shape[1])),
            "SimilarId": ids.column(best.ravel()),
            "Score": scores.ravel(),
        }
    )


def _most_alike(
    profiles: NDArray[Any],  # (M, K)
    rows: NDArray[Any],  # (B,)
    n: int,
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Numbers and similarities (B, n) of the ``n`` most like each of some rows, best first."""
    size = len(profiles)
    n, step = min(n, size - 1), max(1, _BLOCK // size)
    best = np.empty((len(rows), n), np.intp)
    scores = np.empty((len(rows), n), profiles.dtype)
    for start in range(0, len(rows) if n else 0, step):
        some = rows[start : start + step]
        similarity = profiles[some] @ profiles.T
        similarity[np.arange(len(some)), some] = -np.inf
        best[start : start + step] = columns = top_columns(similarity, n)
        scores[start : start + step] = np.take_along_axis(similarity, columns, axis=1)
    return best, scores
