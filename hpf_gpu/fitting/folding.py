"""Users and items that the fit has not seen: their factors, given those of the other side.

Fold-in is coordinate ascent on the new rows' q(θ) and q(ξ) with the other side as it is, from start values
that are the same for all.  It runs on the backend that the settings ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.counts import NewRows, new_rows
from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import with_items
from hpf_gpu.data.triplets import Triplets
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.inference import fold_in
from hpf_gpu.model.posterior import Posterior, put_rows
from hpf_gpu.model.settings import Settings, positive_number, whole_number
from hpf_gpu.model.sides import Side, gather_side, noise_free_side, posterior_of

from .partial import USERS, BatchRows, Step, seed_of_rows, size_of_step, take_step
from .training import working_backend


@dataclass(frozen=True)
class Folded:
    """New rows after the last iteration, and what they were folded in against."""

    fitted: Fitted
    backend: Backend
    new: NewRows  # (B, M)
    rows: Side  # (B, K)
    others: Side  # (M', K): those of the other side that have counts here
    numbers: NDArray[Any]  # (M',) their rows in the model

    @property
    def mean(self) -> NDArray[Any]:
        """E[θ] of the new rows, (B, K)."""
        return self.backend.asnumpy(self.backend.mean(self.rows.factor))

    @property
    def posterior(self) -> Posterior:
        """q(θ) and q(ξ) of the new rows."""
        return posterior_of(self.backend, [self.rows])

    def frame(self, name: str) -> pd.DataFrame:
        """E[θ] of the new rows by id, (B, K)."""
        return pd.DataFrame(self.mean, index=self.new.ids.index.rename(name))


def fold(
    settings: Settings,
    fitted: Fitted,
    triplets: Triplets,
    *,
    side: int,
    maxiter: Any,
    stop_thr: Any,
    threads: int | None,
) -> Folded:
    """Fold new users (``side`` USERS) or new items (ITEMS) in; see :meth:`hpf_gpu.HPF.transform`."""
    posteriors, k = fitted.require_posteriors(), fitted.k
    maxiter, stop_thr = whole_number("maxiter", maxiter, 1), positive_number("stop_thr", stop_thr)
    kind, known = (("user", fitted.item_ids), ("item", fitted.user_ids))[side]
    new = new_rows(triplets, kind, known, name="counts_df")
    backend = working_backend(settings, fitted.dtype, k, threads)
    numbers, csr = _columns_in_use(new.csr)
    counts = backend.counts(csr, k)  # first: it refuses what would not fit into memory
    others = gather_side(backend, posteriors[1 - side], numbers)
    start = noise_free_side(backend, posteriors[side].prior, csr.shape[0], k)
    rows = fold_in(
        backend, counts, start, others, maxiter=maxiter, stop_thr=stop_thr, exact_phi=settings.sum_exp_trick
    )
    return Folded(fitted, backend, new, rows, others, numbers)


def with_users(folded: Folded, *, update_existing: bool) -> Fitted:
    """The model with the folded users in it, new ones or in place of what it knew of them."""
    fitted = folded.fitted
    of_users, of_items = fitted.require_posteriors()
    if of_users.fixed:
        raise ValueError("the users of this model are fixed: transform tells the factors of others")
    rows, users = _rows_for(fitted, folded.new.ids.index, update_existing)
    theta = put_rows(fitted.theta, rows, folded.mean)
    seen, csr = fitted.seen, folded.new.csr
    return replace(
        fitted,
        theta=theta,
        nusers=max(users.size, fitted.nusers),
        user_ids=users,
        posteriors=(of_users.with_rows(rows, folded.posterior, theta), of_items),
        seen=None if seen is None else with_items(seen, rows, (csr.indptr, csr.indices)),
    )


def step_with_user(
    settings: Settings, fitted: Fitted, triplets: Triplets, *, update_existing: bool, threads: int | None
) -> Fitted:
    """The model after all parameters moved by the counts of one user, who is added or replaced."""
    size, items = size_of_step(settings, fitted, None), fitted.item_ids
    new = new_rows(triplets, "user", items, name="counts_df")
    rows, users = _rows_for(fitted, new.ids.index, update_existing)
    everything = np.arange(items.size)
    places = (
        BatchRows(users, rows, rows, max(fitted.nusers, users.size)),
        BatchRows(items, everything, everything, max(fitted.nitems, items.size)),
    )
    indices = (np.repeat(rows, new.csr.nnz), new.csr.indices)
    csr = sparse.coo_array((new.csr.data, indices), shape=(users.size, items.size)).tocsr()
    seed = seed_of_rows(settings, fitted, None)
    return take_step(settings, fitted, Step(places, csr, USERS, size, seed, update_existing), threads)


def phi_of_user(folded: Folded, items: Any) -> NDArray[Any]:
    """φ of one folded user with each of the given items (n, K); NaN where an item is unknown."""
    # Counts of one, shared among the factors, with the roles exchanged: a row for each item.
    beta = folded.fitted.beta
    n, k = len(folded.numbers), beta.shape[1]
    ones = sparse.csr_array(np.ones((n, 1), dtype=beta.dtype))
    counts = folded.backend.counts(ones, k)
    shares, _ = folded.backend.allocate(counts, folded.others.factor, folded.rows.factor, side="users")
    of_item = np.full((len(beta), k), np.nan, dtype=beta.dtype)
    of_item[folded.numbers] = folded.backend.asnumpy(shares)
    codes = folded.fitted.item_ids.codes(items)
    return np.where(codes[:, None] < 0, beta.dtype.type(np.nan), of_item[codes])


def _rows_for(fitted: Fitted, ids: pd.Index, update_existing: bool) -> tuple[NDArray[Any], Ids]:
    """Rows (B,) of users who must be in the model, or must not be; and all ids then."""
    users = fitted.user_ids
    return (users.require(ids), users) if update_existing else users.with_new(ids)


def _columns_in_use(csr: sparse.csr_array) -> tuple[NDArray[Any], sparse.csr_array]:
    """Numbers (M',) of the columns that have entries, and the matrix (B, M') of these alone."""
    used = np.zeros(csr.shape[1], dtype=bool)
    used[csr.indices] = True
    place = np.cumsum(used, dtype=csr.indices.dtype) - 1
    numbers = np.flatnonzero(used)
    return numbers, sparse.csr_array((csr.data, place[csr.indices], csr.indptr), (csr.shape[0], len(numbers)))
