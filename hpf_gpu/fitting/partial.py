"""Batches from outside: a model that is updated with some users, or some items, at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.answers.ranking import UserItems, with_items, with_more_items
from hpf_gpu.answers.recommending import FittedModel
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.counts import BatchSide, TrainingData, batch_data, row_batches
from hpf_gpu.data.ids import Ids
from hpf_gpu.model.convergence import history_frame
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.settings import (
    check_choice,
    check_parameters,
    checked_step,
    seed_or_fresh,
    step_at,
    whole_number,
)
from hpf_gpu.model.stochastic import Batch, Epochs, Local, run_epoch, with_rank_one
from hpf_gpu.model.variational import Prior, Side, posterior_of, start_sides, whole_side, with_start_rows


@dataclass(frozen=True)
class Place:
    """Where the ids of a batch belong on one side of the model."""

    ids: Ids  # of the whole side, those that are new included
    rows: NDArray[Any]  # (B,) of the ids that have counts
    members: NDArray[Any]  # (B',) of all that the batch is made of, ascending
    total: int  # how many there are in all, met or not


class PartialModel(FittedModel):
    """A model that can be updated with batches."""

    a: Any
    a_prime: Any
    b_prime: Any
    c: Any
    c_prime: Any
    d_prime: Any
    use_float: Any
    reindex: Any
    keep_data: Any
    keep_all_objs: Any
    random_seed: Any
    schedule: str
    stop_crit: str
    sum_exp_trick: Any
    hierarchical: Any
    bias: Any
    users_per_batch: Any
    items_per_batch: Any
    step_size: Callable[[int], float] | None

    def partial_fit(
        self,
        counts_df: Any,
        batch_type: str = "users",
        step_size: float | None = None,
        nusers: int | None = None,
        nitems: int | None = None,
        users_in_batch: Any = None,
        items_in_batch: Any = None,
        new_users: bool = False,
        new_items: bool = False,
        random_seed: int | None = None,
    ) -> Any:
        """Update the model with a batch: some users with all their counts, or some items with all theirs.

        The users of the batch are brought to rest, then all items move by a step towards what they would
        be if all users were like these; or the same with users and items exchanged.  Works on a fitted
        model and, with ``nusers`` and ``nitems``, on one that is not.

        Parameters
        ----------
        counts_df : DataFrame, array (n, 3) or scipy sparse matrix (nusers, nitems)
            As for :meth:`~hpf_gpu.HPF.fit`; the rows of a matrix that are empty are not in the batch.
        batch_type : {'users', 'items'}
            Whether the batch has users with all their counts or items with all theirs.
        step_size : float, optional
            Step in [0, 1]; by default what the model's ``step_size`` gives for ``niter``, which counts
            calls, iterations of a fit before included.
        nusers, nitems : int, optional
            How many users and items there are in all; the first call needs both if the model is not
            fitted, and later ones go by the last that were given.  So many ids can come with batches,
            each when it comes.  Where ids are row numbers they are those below.
        users_in_batch, items_in_batch : array-like of ids, optional
            All users (items) of the batch, for those who have no count at all; by default those in
            ``counts_df``.  Only that of the batch's own side has an effect.
        new_users, new_items : bool
            Whether users (items) beyond ``nusers`` (``nitems``) are taken into the model, which is an
            error otherwise.
        random_seed : int, optional
            Seed of the start values of rows that are new; by default it follows from the model's seed.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            For data that are not counts, for ids that the model has no room for, for a step outside
            [0, 1], and if ``keep_all_objs=False`` has dropped the shapes and rates.  The model is then as
            it was.

        Notes
        -----
        A call takes time and memory for the whole model beside those for the batch.  What users have had,
        for ``topN``, grows with every batch.  ``train_llk`` is None after a call and ``history_`` stays
        that of the last fit: nobody has all counts.

        Examples
        --------
        Batches from a Parquet file that is too large for memory, written so that each of its row groups
        has some users with all their counts::

            import numpy as np
            import pyarrow.parquet as pq

            plays, model = pq.ParquetFile("plays.parquet"), HPF(k=30)
            for epoch in range(5):
                for group in np.random.permutation(plays.num_row_groups):
                    batch = plays.read_row_group(group).to_pandas()
                    model.partial_fit(batch, nusers=1_000_000, nitems=50_000)
        """
        check_choice("batch_type", batch_type, ("users", "items"))
        fitted = self._fitted
        step = self._step(fitted, step_size)
        own = 0 if batch_type == "users" else 1
        members = (users_in_batch, None) if own == 0 else (None, items_in_batch)
        totals = _totals(fitted, nusers, nitems)
        known = self._known_ids(fitted, totals)
        data = batch_data(counts_df, known, members, dtype=self._dtype(fitted).type, name="counts_df")
        allowed = (bool(new_users), bool(new_items))
        users, items = (_place(*given) for given in zip(known, data.sides, totals, allowed, strict=True))
        csr = data.csr((users.rows, items.rows), (users.ids.size, items.ids.size))
        seed = self._seed_of_rows(fitted, random_seed)
        self._fitted = self._after_step(fitted, (users, items), csr, own, step, seed, self.ncores)
        return self

    def _step(self, fitted: Fitted | None, given: Any) -> float:
        """The next step of a model that can take one, unless another is given."""
        check_parameters(vars(self))
        if not self.keep_all_objs or (fitted is not None and fitted.posteriors is None):
            raise ValueError("partial_fit needs shapes and rates, which keep_all_objs=False drops")
        done = 0 if fitted is None else fitted.niter
        return checked_step("step_size", step_at(self.step_size, done) if given is None else given)

    def _dtype(self, fitted: Fitted | None) -> np.dtype[Any]:
        if fitted is None:
            return np.dtype(np.float32 if self.use_float else np.float64)
        return fitted.theta.dtype

    def _after_step(
        self,
        fitted: Fitted | None,
        places: tuple[Place, Place],
        csr: sparse.csr_array,  # (N, M)
        own: int,  # 0 for a batch of users, 1 for one of items
        step: float,
        seed: int,
        ncores: Any,
        *,
        replaces: bool = False,  # what the users of the batch have had
    ) -> Fitted:
        """The model moved by a batch."""
        k = self._width() if fitted is None else fitted.theta.shape[1]
        backend = self._working_backend(self._dtype(fitted), ncores, k)
        _check_fixed(fitted, places)
        self._count_once(csr.data)
        rows = csr if own == 0 else csr.T.tocsr()
        members = places[own].members
        batch = Batch(members, backend.counts(rows[members], k), places[own].total / len(members))
        sides = self._sides(backend, fitted, places, seed)
        moved = run_epoch(backend, [batch], sides[own], sides[1 - own], self._local(), step)
        users, items = moved if own == 0 else moved[::-1]
        theta, beta = (backend.asnumpy(backend.mean(side.factor)) for side in (users, items))
        return Fitted(
            theta=theta,
            beta=beta,
            user_ids=places[0].ids,
            item_ids=places[1].ids,
            nusers=max(places[0].total, len(theta)),
            nitems=max(places[1].total, len(beta)),
            posteriors=(posterior_of(backend, users), posterior_of(backend, items)),
            seen=_seen_after(fitted, places[0], csr, replaces) if self.keep_data else None,
            niter=1 if fitted is None else fitted.niter + 1,
            train_llk=None,
            history=history_frame([], self.stop_crit) if fitted is None else fitted.history,
            seed=seed if fitted is None else fitted.seed,
            backend=backend.name,
        )

    def _known_ids(self, fitted: Fitted | None, totals: tuple[int, int]) -> tuple[Ids, Ids]:
        """The ids that have rows: names as they come with batches, row numbers all from the start."""
        none = np.empty(0, dtype=object) if self.reindex else None
        known = (
            (Ids(none, 0, "user"), Ids(none, 0, "item"))
            if fitted is None
            else (fitted.user_ids, fitted.item_ids)
        )
        users, items = (
            Ids(None, total, ids.kind) if ids.values is None else ids
            for ids, total in zip(known, totals, strict=True)
        )
        return users, items

    def _seed_of_rows(self, fitted: Fitted | None, random_seed: Any) -> int:
        """Seed of the start values of rows that are new."""
        if random_seed is not None:
            return whole_number("random_seed", random_seed, 0)
        if fitted is None:
            return seed_or_fresh(self.random_seed)
        return int(np.random.SeedSequence((fitted.seed, fitted.niter)).generate_state(1)[0])

    def _epochs(self, backend: Backend, data: TrainingData, seed: int) -> Epochs | None:
        """What stochastic fits do in place of full iterations; None for full-batch fits."""
        if self.users_per_batch is None and self.items_per_batch is None:
            return None
        rng, k = np.random.default_rng(seed), self._width()

        def batches(csr: Any, size: int | None) -> tuple[Batch, ...]:
            parts = () if size is None else row_batches(csr, int(size), rng)
            return tuple(
                Batch(rows, backend.counts(part, k), csr.shape[0] / len(rows)) for rows, part in parts
            )

        csr = data.host_csr
        by_user = batches(csr, self.users_per_batch)
        by_item = batches(csr.T.tocsr(), self.items_per_batch) if self.items_per_batch is not None else ()
        return Epochs(backend, by_user, by_item, partial(step_at, self.step_size), rng, self._local())

    def _local(self) -> Local:
        return Local(self.schedule == "alternating", bool(self.sum_exp_trick))

    def _width(self) -> int:
        return int(self.k) + (2 if self.bias else 0)

    def _priors(self) -> tuple[Prior, Prior]:
        # A bias is a factor whose other side is one: first that of the users, then that of the items.
        k, levels = int(self.k), bool(self.hierarchical)
        of_users, of_items = (k, k + 1) if self.bias else (None, None)
        return (
            Prior(
                float(self.a), float(self.a_prime), float(self.b_prime), levels, ones=of_items, bias=of_users
            ),
            Prior(
                float(self.c), float(self.c_prime), float(self.d_prime), levels, ones=of_users, bias=of_items
            ),
        )

    def _sides(
        self, backend: Backend, fitted: Fitted | None, places: tuple[Place, Place], seed: int
    ) -> tuple[Side, Side]:
        """Both sides before the step, rows that are new at start values."""
        n, m = (place.ids.size for place in places)
        if fitted is None:
            users, items = start_sides(backend, self._priors(), (n, m), self._width(), seed)
            return with_rank_one(backend, users), with_rank_one(backend, items)
        rng, (of_users, of_items) = np.random.default_rng(seed), fitted.known_posteriors
        of_users, of_items = (
            with_start_rows(posterior.with_rank_one(other.column_sums), size - len(posterior.shape), rng)
            for posterior, other, size in ((of_users, of_items, n), (of_items, of_users, m))
        )
        return whole_side(backend, of_users), whole_side(backend, of_items)


def _totals(fitted: Fitted | None, nusers: Any, nitems: Any) -> tuple[int, int]:
    """How many users and items there are in all: as given, or as known."""
    rows = (0, 0) if fitted is None else (len(fitted.theta), len(fitted.beta))
    known = (None, None) if fitted is None else (fitted.nusers, fitted.nitems)
    totals: list[int] = []
    for name, given, kept, least in zip(("nusers", "nitems"), (nusers, nitems), known, rows, strict=True):
        if given is None and kept is None:
            raise ValueError(f"the first partial_fit of a model that is not fitted needs {name}")
        total = whole_number(name, kept if given is None else given, 1)
        if total < least:
            raise ValueError(f"{name}={total} is less than the {least} that the model has")
        totals.append(total)
    return totals[0], totals[1]


def _check_fixed(fitted: Fitted | None, places: tuple[Place, Place]) -> None:
    """What is new has no factors on a side whose factors were given."""
    posteriors = () if fitted is None else fitted.known_posteriors
    for place, posterior in zip(places, posteriors, strict=False):
        if posterior.prior.known and place.ids.size > len(posterior.shape):
            raise ValueError(f"the {place.ids.kind}s of this model are fixed: a batch cannot bring new ones")


def _seen_after(
    fitted: Fitted | None, users: Place, csr: sparse.csr_array, replaces: bool
) -> UserItems | None:
    """What users have had, that of a batch included; None if it was dropped before."""
    seen = (np.zeros(1, np.int64), np.empty(0, csr.indices.dtype)) if fitted is None else fitted.seen
    if seen is None:
        return None
    if not replaces:
        return with_more_items(seen, csr)
    given = csr[users.members]
    return with_items(seen, users.members, (given.indptr, given.indices))


def _place(known: Ids, given: BatchSide, total: int, may_grow: bool) -> Place:
    """Find the ids of a batch in the model, and rows for those that are new."""
    ids, rows = known.extended(given.ids)
    if ids.size > max(total, known.size) and not may_grow:
        kind = known.kind
        raise ValueError(
            f"the batch brings {ids.size - known.size} new {kind}s, and the model has {known.size} of the "
            f"{total} that it was told of: new_{kind}s=True takes in more, n{kind}s= says how many there are"
        )
    return Place(ids, rows, np.sort(rows[given.members]), max(total, ids.size))
