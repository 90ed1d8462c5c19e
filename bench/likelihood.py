"""Poisson log-likelihoods of fitted models of any library, by one formula and without −Σ ln y!.

A model has ``Theta`` (N, K), ``Beta`` (M, K), and the ids of their rows in ``user_mapping_`` and
``item_mapping_``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_CHUNK = 1 << 18  # counts whose rows are gathered at once


def training_likelihood(model: Any, train: pd.DataFrame) -> float:
    """Of all pairs of users and items, given all counts of the training data."""
    rates, counts = _rates(model, train)
    return _data_term(rates, counts) - _expected_total(model)


def held_out_likelihoods(model: Any, train: pd.DataFrame, test: pd.DataFrame) -> dict[str, float]:
    """Of the held-out counts alone, and of all pairs outside the training data, where the zeros count too.

    Users and items that the model does not know are left out.
    """
    rates, counts = _rates(model, test)
    data_term = _data_term(rates, counts)
    outside = _expected_total(model) - float(_rates(model, train)[0].sum())
    return {"counts_alone": data_term - float(rates.sum()), "with_zeros": data_term - outside}


def _rates(model: Any, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """θ_u·β_i in float64 and the count of every row of the frame that the model knows."""
    rows = pd.Index(model.user_mapping_).get_indexer(frame["UserId"])
    columns = pd.Index(model.item_mapping_).get_indexer(frame["ItemId"])
    known = (rows >= 0) & (columns >= 0)
    rows, columns = rows[known], columns[known]
    rates = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        rates[part] = np.einsum("zk,zk->z", model.Theta[rows[part]], model.Beta[columns[part]])
    return rates, frame["Count"].to_numpy()[known]


def _data_term(rates: np.ndarray, counts: np.ndarray) -> float:
    # Models that shrink to zero give some counts no chance: the smallest number keeps their logarithm finite.
    return float(counts @ np.log(np.maximum(rates, np.finfo(np.float64).tiny)))


def _expected_total(model: Any) -> float:
    theta, beta = (factors.sum(axis=0, dtype=np.float64) for factors in (model.Theta, model.Beta))
    return float(theta @ beta)
