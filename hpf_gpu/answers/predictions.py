"""Expected counts and log-likelihoods of a fitted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpf_gpu import backends
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.counts import held_out_pairs
from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import items_of
from hpf_gpu.data.triplets import Triplets
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.likelihood import pair_llk


def predict(fitted: Fitted, threads: int | None, user: Any, item: Any) -> Any:
    """Expected counts of pairs; see :meth:`hpf_gpu.HPF.predict`."""
    rates = partial(rates_of_pairs, backend_for(fitted, threads), fitted)
    return of_pairs(fitted.user_ids, fitted.item_ids, user, item, fitted.dtype, rates)


def of_pairs(
    users: Ids,
    items: Ids,
    user: Any,
    item: Any,
    dtype: np.dtype[Any],
    answer: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
) -> Any:
    """The answer for pairs of ids from that for row and column numbers (Z,); NaN where an id is unknown."""
    rows, columns = paired(users.codes_of(user), items.codes_of(item))
    known = (rows >= 0) & (columns >= 0)
    answers = np.full(len(rows), np.nan, dtype=dtype)
    answers[known] = answer(rows[known], columns[known])
    return answers[0] if users.is_single(user) and items.is_single(item) else answers


def eval_llk(fitted: Fitted, threads: int | None, triplets: Triplets, *, full_llk: bool) -> dict[str, Any]:
    """Log-likelihood of counts; see :meth:`hpf_gpu.HPF.eval_llk`."""
    pairs = held_out_pairs(triplets, fitted.user_ids, fitted.item_ids, name="input_df")
    backend = backend_for(fitted, threads)
    rates = rates_of_pairs(backend, fitted, pairs.rows, pairs.columns)
    return {"llk": pair_llk(rates, pairs, full_llk=full_llk), "nobs": len(pairs.values)}


def paired(rows: NDArray[Any], columns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row and column numbers of pairs, (Z,) each; a single one is paired with all of the other argument."""
    if len(rows) != len(columns) and 1 not in (len(rows), len(columns)):
        raise ValueError(f"{len(rows)} users and {len(columns)} items cannot be paired")
    rows, columns = np.broadcast_arrays(rows, columns)
    return rows, columns


def rates_of_pairs(
    backend: Backend, fitted: Fitted, rows: NDArray[Any], columns: NDArray[Any]
) -> NDArray[Any]:
    """Expected counts of pairs of row and column numbers, (Z,) each."""
    rates = backend.predict_pairs(fitted.theta, fitted.beta, rows, columns)
    if fitted.neighbours is not None and fitted.seen is not None and len(rows):
        # Only the rows in question are copied: one pair must not cost as much as all.
        users, row = np.unique(rows, return_inverse=True)
        items, column = np.unique(columns, return_inverse=True)
        sources, w = fitted.neighbours.sources[items], fitted.neighbours.mean[items]
        had = items_of(users, fitted.seen)
        rates += backend.neighbour_rates(had, sources, backend.asarray(w), row, column)
    return rates


def backend_for(fitted: Fitted, threads: int | None, among: Sequence[str] = backends.ON_HOST) -> Backend:
    """The backend for queries, in the dtype of the fit: the fastest of ``among``, or NumPy if it fitted."""
    name = "numpy" if fitted.backend == "numpy" else "auto"
    return backends.choose(name, fitted.dtype, threads, k=fitted.k, among=among)
