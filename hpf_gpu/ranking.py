"""From scores to recommendations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_columns(scores: NDArray[Any], n: int) -> NDArray[np.intp]:
    """Columns of the ``n`` largest of each row (B, M), best first (B, n); of equal ones the first."""
    last = scores.shape[1] - n
    threshold = np.partition(scores, last, axis=1)[:, last, None]
    above, tied = scores > threshold, scores == threshold
    missing = n - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= missing))
    columns = np.nonzero(chosen)[1].reshape(-1, n)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def recommend(
    theta: NDArray[Any],  # (K,) of one user
    beta: NDArray[Any],  # (M, K)
    n: int,
    *,
    exclude: NDArray[Any] | None = None,  # item numbers
    pool: NDArray[Any] | None = None,  # item numbers, unique
) -> NDArray[Any]:
    """Numbers of the ``n`` items with the highest expected count θ·β_i, best first; fewer if few are left."""
    scores = (beta if pool is None else beta[pool]) @ theta
    if exclude is not None:
        seen = exclude if pool is None else np.flatnonzero(np.isin(pool, exclude))
        scores[seen] = -np.inf
    n = min(n, int(np.count_nonzero(scores > -np.inf)))
    best = top_columns(scores[None], n)[0] if n else np.empty(0, dtype=np.intp)
    return best if pool is None else pool[best]
