"""Synthetic counts with power-law degrees, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pandas as pd


def power_law_counts(n_users: int, n_items: int, nnz: int, seed: int = 0) -> pd.DataFrame:
    """Data frame of ``nnz`` distinct pairs in random order, ids shuffled, counts Poisson(2) + 1.

    The popularity of user or item r falls as (r + 10)^−0.6 and (r + 10)^−0.8.
    """
    rng = np.random.default_rng(seed)
    users, items = (
        rng.permutation(n)[np.searchsorted(_distribution(n, exponent), rng.random(nnz + nnz // 2))]
        for n, exponent in ((n_users, 0.6), (n_items, 0.8))
    )
    pairs = rng.permutation(np.unique(users * np.int64(n_items) + items))
    if len(pairs) < nnz:
        raise ValueError(f"{n_users} × {n_items} is too small for {nnz} pairs of this popularity")
    pairs = pairs[:nnz]
    return pd.DataFrame(
        {"UserId": pairs // n_items, "ItemId": pairs % n_items, "Count": rng.poisson(2.0, nnz) + 1}
    )


def _distribution(n: int, exponent: float) -> np.ndarray:
    weight = np.cumsum((np.arange(n) + 10.0) ** -exponent)
    return weight / weight[-1]
