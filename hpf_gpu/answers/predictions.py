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
from hpf_gpu.messages import warn
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


def known_rows(ids: Ids, asked: Any) -> NDArray[np.int64]:
    """Row numbers of one id, of many or, if None, of all; of many, those that are unknown are left out.

    Raises
    ------
    ValueError
        If no id is known.
    """
    if asked is None:
        return np.arange(ids.size)
    if ids.is_single(asked):
        return ids.require(asked)
    codes = ids.codes(asked)
    unknown = codes < 0
    if unknown.any():
        named = ids.missing(asked, unknown)
        if unknown.all():
            hint = ids.hint(asked) or ids.close(asked, unknown)
            raise ValueError(f"{named} not in the training data{hint}")
        warn(f"{named} not in the training data, and left out{ids.close(asked, unknown)}")
    return codes[~unknown]


def rates_of_pairs(
    backend: Backend, fitted: Fitted, rows: NDArray[Any], columns: NDArray[Any]
) -> NDArray[Any]:
    """Expected counts of pairs of row and column numbers, (Z,) each."""
    rates = backend.predict_pairs(fitted.theta, fitted.beta, rows, columns)
    if fitted.neighbours is not None:
        # Only the rows in question are copied: one pair must not cost as much as all.
        users, row = np.unique(rows, return_inverse=True)
        items, column = np.unique(columns, return_inverse=True)
        rates += of_neighbours(backend, fitted, fitted.neighbours.mean[items], users, items, row, column)
    return rates


def of_neighbours(
    backend: Backend,
    fitted: Fitted,
    values: NDArray[Any],  # (I, L) for the neighbours of I items, such as E[w]
    users: NDArray[Any],  # (U,) row numbers
    items: NDArray[Any],  # (I,) column numbers
    row: NDArray[Any],  # (Z,) places in ``users``
    column: NDArray[Any],  # (Z,) places in ``items``
) -> NDArray[Any]:
    """Sums of the values of those neighbours that the users have, for pairs (Z,)."""
    if fitted.neighbours is None or fitted.seen is None or len(row) == 0:
        return np.zeros(len(row), backend.dtype)
    had, sources = items_of(users, fitted.seen), fitted.neighbours.sources[items]
    return backend.neighbour_rates(had, sources, backend.asarray(values), row, column)


def backend_for(
    fitted: Fitted,
    threads: int | None,
    among: Sequence[str] = backends.ON_HOST,
    dtype: np.dtype[Any] | None = None,
) -> Backend:
    """The backend for queries, in the dtype of the fit: the fastest of ``among``, or NumPy if it fitted."""
    name = "numpy" if fitted.backend == "numpy" else "auto"
    return backends.choose(name, dtype or fitted.dtype, threads, k=fitted.k, among=among)
