"""The best entries of rows of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_columns(scores: NDArray[Any], n: int) -> NDArray[np.intp]:
    """Columns (B, n) of the ``n`` largest entries of each row (B, M), best first; of equal ones the first."""
    last = scores.shape[1] - n
    threshold = np.partition(scores, last, axis=1)[:, last, None]
    above, tied = scores > threshold, scores == threshold
    missing = n - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= missing))
    columns = np.nonzero(chosen)[1].reshape(-1, n)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def best_columns(scores: NDArray[Any], n: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """The same, with −1 where the score is −∞, and the scores (B, n)."""
    columns = top_columns(scores, n)
    best = np.take_along_axis(scores, columns, axis=1)
    return np.where(best > -np.inf, columns, -1), best
