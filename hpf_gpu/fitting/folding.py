"""Fold-in: factors of new users, or of new items, with the other side unchanged.

Fold-in is coordinate ascent on q(θ) and q(ξ) of the new rows, from start values that are the same for all
rows.  It runs on the backend that the settings name.
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
from hpf_gpu.model.fitted import Fitted, checked_mean
from hpf_gpu.model.inference import fold_in
from hpf_gpu.model.posterior import Posterior, put_rows
from hpf_gpu.model.priors import UNIT_RATE
from hpf_gpu.model.settings import Settings, positive_number, whole_number
from hpf_gpu.model.sides import Side, gather_side, noise_free_side, posterior_of

from .partial import ITEMS, USERS, BatchRows, Step, seed_of_rows, size_of_step, take_step
from .training import working_backend


@dataclass(frozen=True)
class Folded:
    """The result of fold-in: the new rows, and the other side's rows that they have counts with."""

    fitted: Fitted
    backend: Backend
    new: NewRows  # (B, M)
    rows: Side  # (B, K)
    others: Side  # (M', K) rows of the other side that occur in the counts
    numbers: NDArray[Any]  # (M',) row numbers of ``others`` in the model

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
    name: str = "counts_df",  # of the argument, in messages
) -> Folded:
    """Fold in new users (``side`` USERS) or new items (ITEMS); see :meth:`hpf_gpu.HPF.transform`."""
    fitted.require_posteriors()
    maxiter, stop_thr = whole_number("maxiter", maxiter, 1), positive_number("stop_thr", stop_thr)
    kind, known = (("user", fitted.item_ids), ("item", fitted.user_ids))[side]
    new = new_rows(triplets, kind, known, name=name)
    return fold_rows(settings, fitted, new, side=side, maxiter=maxiter, stop_thr=stop_thr, threads=threads)


def fold_rows(
    settings: Settings,
    fitted: Fitted,
    new: NewRows,
    *,
    side: int,
    maxiter: int,
    stop_thr: float,
    threads: int | None,
) -> Folded:
    """Fold in new users or items whose counts have been read."""
    posteriors, k = fitted.require_posteriors(), fitted.k
    backend = working_backend(settings, fitted.dtype, k, threads)
    numbers, csr = _columns_in_use(new.csr)
    exact = settings.sum_exp_trick
    own, other = posteriors[side], posteriors[1 - side]
    neighbours = None
    if side == ITEMS:  # a new item is in no item's neighbours, and has none
        own, other = (replace(one, prior=replace(one.prior, temperature=1.0)) for one in (own, other))
    elif fitted.neighbours is not None:
        neighbours = fitted.neighbours.among(numbers)
    with backend.in_use():
        # First, because it raises NotEnoughMemory if this is too large.
        counts = backend.counts(csr, k, None if neighbours is None else neighbours.sources)
        others = gather_side(backend, other, numbers)
        if neighbours is not None:
            others = replace(others, weights=neighbours.start(backend))
        start = noise_free_side(backend, own.prior, csr.shape[0], k)
        rows = fold_in(backend, counts, start, others, maxiter=maxiter, stop_thr=stop_thr, exact_phi=exact)
    return Folded(fitted, backend, new, rows, others, numbers)


def factors_of_new_users(
    settings: Settings, fitted: Fitted, triplets: Triplets, *, maxiter: int, stop_thr: float
) -> tuple[NewRows, NDArray[Any], NDArray[Any]]:
    """New users with their counts, E[θ] and shapes of q(θ), (B, K) each.

    Without factors (k=0) nothing has to be folded in.
    """
    of_users = None if fitted.posteriors is None else fitted.posteriors[0]
    pinned = settings.k == 0 if of_users is None else len(of_users.prior.pins) == fitted.k
    if pinned:
        new = new_rows(triplets, "user", fitted.item_ids, name="counts")
        ones = np.ones((new.csr.shape[0], 1), fitted.dtype)
        return new, ones, ones * UNIT_RATE
    folded = fold(
        settings,
        fitted,
        triplets,
        side=USERS,
        maxiter=maxiter,
        stop_thr=stop_thr,
        threads=settings.threads,
        name="counts",
    )
    return folded.new, folded.mean, folded.posterior.shape


def with_users(folded: Folded, *, update_existing: bool, other: Fitted | None = None) -> Fitted:
    """The model with the folded-in users, added or, with ``update_existing``, replaced.

    ``other`` is a model of the same users that has them already: ids, and items of users, are taken from it.
    """
    fitted = folded.fitted
    of_users, of_items = fitted.require_posteriors()
    if of_users.fixed:
        raise ValueError("the users of this model are fixed: use transform for the factors of other users")
    if other is None:
        rows, users = _rows_for(fitted, folded.new.ids.index, update_existing)
    else:
        rows, users = other.user_ids.require(folded.new.ids.index), other.user_ids
    theta = put_rows(fitted.theta, rows, checked_mean("Theta", folded.mean))
    seen, csr = fitted.seen, folded.new.csr
    if seen is not None:
        shared = None if other is None else other.seen
        seen = with_items(seen, rows, (csr.indptr, csr.indices)) if shared is None else shared
    return replace(
        fitted,
        theta=theta,
        nusers=max(users.size, fitted.nusers),
        user_ids=users,
        posteriors=(of_users.with_rows(rows, folded.posterior, theta), of_items),
        seen=seen,
    )


def step_with_user(
    settings: Settings, fitted: Fitted, triplets: Triplets, *, update_existing: bool, threads: int | None
) -> Fitted:
    """The model after one step of all parameters with the counts of one user, who is added or replaced."""
    size, items = size_of_step(settings, fitted, None), fitted.item_ids
    new = new_rows(triplets, "user", items, name="counts_df")
    if new.csr.nnz == 0:
        raise ValueError(
            "counts_df has no count of an item that the model has, by which update_all_params could move all "
            "items: leave it out to add the user"
        )
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
    """φ of one folded-in user for each of ``items`` (n,), as (n, K); NaN where an item is unknown.

    With neighbours these are shares of what the factors take of the count.
    """
    # Allocating counts of 1 gives φ.  Users and items exchange roles: one row per item, one column.
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
    """Rows (B,) of existing (``update_existing``) or new users, and the ids of all users afterwards."""
    users = fitted.user_ids
    return (users.require(ids), users) if update_existing else users.with_new(ids)


def _columns_in_use(csr: sparse.csr_array) -> tuple[NDArray[Any], sparse.csr_array]:
    """Numbers (M',) of the columns with entries, and the matrix (B, M') restricted to them."""
    # Of rows without any count one column is kept, because backends take no matrix without columns.
    numbers = np.unique(csr.indices) if csr.nnz else np.zeros(1, csr.indices.dtype)
    # Written only where it is read: one user must not cost as much as all columns.
    place = np.empty(csr.shape[1], csr.indices.dtype)
    place[numbers] = np.arange(len(numbers))
    return numbers, sparse.csr_array((csr.data, place[csr.indices], csr.indptr), (csr.shape[0], len(numbers)))
