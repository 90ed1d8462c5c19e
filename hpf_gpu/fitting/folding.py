"""Users and items that the fit has not seen: their factors, given those of the other side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.answers.ranking import with_items
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.counts import NewRows, new_rows, on_host, one_user
from hpf_gpu.data.ids import Ids
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.inference import fold_in
from hpf_gpu.model.settings import positive_number, whole_number
from hpf_gpu.model.variational import Side, frozen_side, level_side, posterior_of, put_rows

from .partial import PartialModel, Place

_USERS, _ITEMS = 0, 1


@dataclass(frozen=True)
class _Folded:
    """New rows after the last iteration, and what they were folded in against."""

    fitted: Fitted
    backend: Backend
    given: NewRows  # (B, M)
    rows: Side  # (B, K)
    frozen: Side  # (M', K): those of the other side that have counts here
    numbers: NDArray[Any]  # (M',) their rows in the model

    @property
    def mean(self) -> NDArray[Any]:
        """E[θ] of the new rows, (B, K)."""
        return self.backend.asnumpy(self.backend.mean(self.rows.factor))


class FoldingModel(PartialModel):
    """A fitted model that takes in users and items without a new fit.

    Fold-in is coordinate ascent on the new rows' q(θ) and q(ξ) with the other side frozen, from start
    values that are the same for all.  It runs on the backend that the parameters ask for.
    """

    def transform(
        self, counts_df: Any, maxiter: int = 10, stop_thr: float = 1e-3, ncores: int | None = None
    ) -> pd.DataFrame:
        """Factors of many new users at once, given the items of the model, which stay as they are.

        Parameters
        ----------
        counts_df : same forms as for ``fit``
            Counts of new users, whose ids may be any, by items of the model.  Unknown items are left out
            with a warning, zeros too.  Never modified.
        maxiter : int
            Most iterations.
        stop_thr : float
            Ends when the root mean square over the users of ‖Δθ_u‖, the norm of the change of a user's
            factors in an iteration, is below this.
        ncores : int, optional
            Threads of the ``openmp`` backend; by default those of the model.

        Returns
        -------
        DataFrame (n, k)
            E[θ] of each new user.  The index has the user ids in order of first appearance, or the row
            numbers of a matrix.  A user with nothing that can be used gets, with a warning, the factors
            of a user without counts.

        Raises
        ------
        ValueError, TypeError
            For data that are not counts, if none of the items is known, if the model is not fitted, and
            if ``keep_all_objs=False`` has dropped the shapes and rates.
        """
        return _frame(self._fold(_USERS, counts_df, maxiter, stop_thr, ncores), "UserId")

    def transform_items(
        self, counts_df: Any, maxiter: int = 10, stop_thr: float = 1e-3, ncores: int | None = None
    ) -> pd.DataFrame:
        """Factors of many new items at once, given the users of the model, which stay as they are.

        :meth:`transform` with users and items exchanged: ``counts_df`` has counts of new items by users of
        the model, and the result (n, k) has E[β] by item id, or by the column numbers of a matrix.
        """
        return _frame(self._fold(_ITEMS, counts_df, maxiter, stop_thr, ncores), "ItemId")

    def predict_factors(
        self,
        counts_df: Any,
        maxiter: int = 10,
        ncores: int = 1,
        random_seed: int = 1,
        stop_thr: float = 1e-3,
        return_all: bool = False,
    ) -> Any:
        """Factors of one new user, given the items of the model, which stay as they are.

        Parameters
        ----------
        counts_df : DataFrame, array (n, 2) or scipy sparse matrix (1, nitems)
            Her counts, with columns ItemId and Count.  Unknown items are left out with a warning, zeros
            too.  Never modified.
        maxiter : int
            Most iterations.
        ncores : int
            Threads of the ``openmp`` backend.
        random_seed : int
            Accepted, without effect: the start values are the same for all.
        stop_thr : float
            Ends when ‖Δθ_u‖, the norm of the change of her factors in an iteration, is below this.
        return_all : bool
            Whether to return shapes, rates and φ too.

        Returns
        -------
        array (k,), or tuple of arrays (k,), (k,), (k,) and (n, k)
            E[θ_u]; or E[θ_u], shapes and rates of q(θ_u), and φ: how the count in each row of
            ``counts_df`` is shared among the factors, NaN in rows that were left out.

        Raises
        ------
        ValueError, TypeError
            As :meth:`transform`, which takes many users at once.
        """
        whole_number("random_seed", random_seed, 0)
        user = one_user(counts_df, 0, name="counts_df")
        folded = self._fold(_USERS, user, maxiter, stop_thr, ncores)
        theta = folded.mean[0]
        if not return_all:
            return theta
        posterior = posterior_of(folded.backend, folded.rows)
        return theta, posterior.shape[0], posterior.rate[0], _phi(folded, user["ItemId"])

    def add_user(
        self,
        user_id: Any,
        counts_df: Any,
        update_existing: bool = False,
        maxiter: int = 10,
        ncores: int = 1,
        random_seed: int = 1,
        stop_thr: float = 1e-3,
        update_all_params: bool | None = None,
    ) -> bool:
        """Add one user to the model, or replace what it knows of one.

        Parameters
        ----------
        user_id : hashable
            Where ids are row numbers, that of a new user must be ``nusers``.
        counts_df : same forms as for :meth:`predict_factors`
            All her counts, those that the model has seen included.
        update_existing : bool
            Whether she is in the model: her factors and the items she has had are replaced.
        maxiter, ncores, random_seed, stop_thr :
            As for :meth:`predict_factors`.
        update_all_params : bool, optional
            Whether to move all items too, by the step of :meth:`partial_fit` with her for a batch, which
            lets one user speak for all.  ``maxiter`` and ``stop_thr`` are then without effect.

        Returns
        -------
        bool
            True.

        Raises
        ------
        ValueError, TypeError
            If a new user is in the model already or one to replace is not, and as :meth:`transform`.
            The model is then as it was.
        """
        whole_number("random_seed", random_seed, 0)
        user = one_user(counts_df, user_id, name="counts_df")
        if update_all_params:
            self._step_with(user, update_existing, ncores)
            return True
        self._fitted = _with_users(self._fold(_USERS, user, maxiter, stop_thr, ncores), update_existing)
        return True

    def add_users(
        self,
        counts_df: Any,
        update_existing: bool = False,
        maxiter: int = 10,
        stop_thr: float = 1e-3,
        ncores: int | None = None,
    ) -> Any:
        """Add many users to the model at once, or replace what it knows of many.

        Parameters
        ----------
        counts_df : DataFrame or array (n, 3)
            Columns UserId, ItemId and Count: all counts of these users.  Where ids are row numbers, those
            of new users must go on from ``nusers``.
        update_existing : bool
            Whether all of them are in the model, or none.
        maxiter, stop_thr, ncores :
            As for :meth:`transform`.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            As :meth:`add_user`; the model is then as it was.
        """
        if sparse.issparse(on_host(counts_df)):
            raise TypeError("users are added by their ids: pass a frame with UserId, ItemId and Count")
        folded = self._fold(_USERS, counts_df, maxiter, stop_thr, ncores)
        self._fitted = _with_users(folded, update_existing)
        return self

    # -- the one way in, and what comes out of it ------------------------------------------------

    def _fold(self, side: int, counts_df: Any, maxiter: int, stop_thr: float, ncores: int | None) -> _Folded:
        """Fold new users (side 0) or new items (side 1) in."""
        fitted = self._require_fitted()
        posteriors, dtype, k = fitted.known_posteriors, fitted.theta.dtype, fitted.theta.shape[1]
        maxiter, stop_thr = whole_number("maxiter", maxiter, 1), positive_number("stop_thr", stop_thr)
        kind, known = (("user", fitted.item_ids), ("item", fitted.user_ids))[side]
        given = new_rows(counts_df, kind, known, dtype=dtype.type, name="counts_df")
        self._count_once(given.csr.data)
        backend = self._working_backend(dtype, self.ncores if ncores is None else ncores, k)
        numbers, csr = _columns_in_use(given.csr)
        counts = backend.counts(csr, k)  # first: it refuses what would not fit into memory
        frozen = frozen_side(backend, posteriors[1 - side], numbers)
        start = level_side(backend, posteriors[side].prior, csr.shape[0], k)
        exact = bool(self.sum_exp_trick)
        rows = fold_in(backend, counts, start, frozen, maxiter=maxiter, stop_thr=stop_thr, exact_phi=exact)
        return _Folded(fitted, backend, given, rows, frozen, numbers)

    def _step_with(self, user: pd.DataFrame, update_existing: bool, ncores: int) -> None:
        """Move all parameters by the counts of one user, who is added or replaced."""
        fitted = self._require_fitted()
        step, known = self._step(fitted, None), fitted.item_ids
        given = new_rows(user, "user", known, dtype=fitted.theta.dtype.type, name="counts_df")
        rows, users = _rows_for(fitted, given.ids.index, update_existing)
        totals = max(fitted.nusers, users.size), max(fitted.nitems, known.size)
        everything = np.arange(known.size)
        places = Place(users, rows, rows, totals[0]), Place(known, everything, everything, totals[1])
        indices = (np.repeat(rows, given.csr.nnz), given.csr.indices)
        csr = sparse.coo_array((given.csr.data, indices), shape=(users.size, known.size)).tocsr()
        seed = self._seed_of_rows(fitted, None)
        self._fitted = self._after_step(
            fitted, places, csr, _USERS, step, seed, ncores, replaces=update_existing
        )


def _phi(folded: _Folded, items: pd.Series) -> NDArray[Any]:
    """φ of one user with each of the given items (n, k)."""
    # Counts of one, shared among the factors, with the roles exchanged: a row for each item.
    beta = folded.fitted.beta
    n, k = len(folded.numbers), beta.shape[1]
    ones = sparse.csr_array(np.ones((n, 1), dtype=beta.dtype))
    counts = folded.backend.counts(ones, k)
    shares, _ = folded.backend.allocate(counts, folded.frozen.factor, folded.rows.factor, side="users")
    of_item = np.full((len(beta), k), np.nan, dtype=beta.dtype)
    of_item[folded.numbers] = folded.backend.asnumpy(shares)
    codes = folded.fitted.item_ids.codes(items)
    return np.where(codes[:, None] < 0, beta.dtype.type(np.nan), of_item[codes])


def _with_users(folded: _Folded, update_existing: bool) -> Fitted:
    """The model with the folded users in it, new ones or in place of what it knew of them."""
    fitted = folded.fitted
    of_users, of_items = fitted.known_posteriors
    if of_users.prior.known:
        raise ValueError("the users of this model are fixed: transform tells the factors of others")
    rows, users = _rows_for(fitted, folded.given.ids.index, update_existing)
    theta = put_rows(fitted.theta, rows, folded.mean)
    of_users = of_users.with_rows(rows, posterior_of(folded.backend, folded.rows), theta)
    seen, csr = fitted.seen, folded.given.csr
    if seen is not None:
        seen = with_items(seen, rows, (csr.indptr, csr.indices))
    return replace(
        fitted,
        theta=theta,
        nusers=max(users.size, fitted.nusers),
        user_ids=users,
        posteriors=(of_users, of_items),
        seen=seen,
    )


def _rows_for(fitted: Fitted, ids: pd.Index, update_existing: bool) -> tuple[NDArray[Any], Ids]:
    """Rows (B,) of users who must be in the model, or must not be; and all ids then."""
    users = fitted.user_ids
    return (users.known(ids), users) if update_existing else users.with_new(ids)


def _frame(folded: _Folded, name: str) -> pd.DataFrame:
    return pd.DataFrame(folded.mean, index=folded.given.ids.index.rename(name))


def _columns_in_use(csr: sparse.csr_array) -> tuple[NDArray[Any], sparse.csr_array]:
    """Numbers (M',) of the columns that have entries, and the matrix (B, M') of these alone."""
    used = np.zeros(csr.shape[1], dtype=bool)
    used[csr.indices] = True
    place = np.cumsum(used, dtype=csr.indices.dtype) - 1
    numbers = np.flatnonzero(used)
    return numbers, sparse.csr_array((csr.data, place[csr.indices], csr.indptr), (csr.shape[0], len(numbers)))
