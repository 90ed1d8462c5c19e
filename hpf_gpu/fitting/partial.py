"""partial_fit: updates a model with one batch of users, or of items, that the caller supplies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.backends.protocol import Backend, Host
from hpf_gpu.data.counts import BatchSide, batch_sides
from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import UserItems, with_items, with_more_items
from hpf_gpu.data.triplets import Triplets
from hpf_gpu.model.biases import WARM_UP, with_free_biases
from hpf_gpu.model.convergence import history_frame
from hpf_gpu.model.fitted import Fitted, checked_mean
from hpf_gpu.model.neighbours import Neighbours, Weights, choose_sources, neighbours_of, start_weights
from hpf_gpu.model.settings import Settings, checked_step, seed_or_fresh, step_at, whole_number
from hpf_gpu.model.sides import Model, Side, posterior_of, side_from_posterior
from hpf_gpu.model.stochastic import Batch, average_start_rates, run_epoch

from .training import local_updates, start_sides, working_backend

USERS, ITEMS = 0, 1


@dataclass(frozen=True)
class BatchRows:
    """The rows of a batch's ids on one side of the model."""

    ids: Ids  # of the whole side, including new ones
    rows: NDArray[Any]  # (B,) rows of the distinct ids in the data
    members: NDArray[Any]  # (B',) rows of all users (items) of the batch, ascending
    total: int  # number of users (items) in total, seen or not


@dataclass(frozen=True)
class Step:
    """A batch of users or items with all their counts, in the rows of a model."""

    places: tuple[BatchRows, BatchRows]  # of users and of items
    csr: sparse.csr_array  # (N, M)
    side: int  # USERS or ITEMS
    size: float  # in [0, 1]
    seed: int  # of the start values of new rows
    replaces: bool = False  # whether the seen items of the batch's users are replaced


@dataclass(frozen=True)
class Totals:
    """Total numbers of users and items as passed by the caller; None to keep those of the model."""

    nusers: Any = None
    nitems: Any = None


def partial_step(
    settings: Settings,
    fitted: Fitted | None,
    triplets: Triplets,
    *,
    side: int,
    step_size: Any,
    totals: Totals,
    members: tuple[Any, Any],
    may_grow: tuple[bool, bool],
    random_seed: Any,
) -> Fitted:
    """The model after a step with a batch; see :meth:`hpf_gpu.HPF.partial_fit`."""
    if fitted is None and settings.init == "svd":
        raise ValueError(
            "init='svd' decomposes all the data, of which partial_fit has a batch: call fit first, or use "
            "init='hpfrec'"
        )
    size = size_of_step(settings, fitted, step_size)
    sizes = _totals(fitted, totals)
    known = _known_ids(settings, fitted, sizes)
    sides = batch_sides(triplets, known, members, name="counts_df")
    users, items = (_place(*place) for place in zip(known, sides, sizes, may_grow, strict=True))
    rows, columns = (place.rows[one.codes] for place, one in zip((users, items), sides, strict=True))
    csr = triplets.csr(rows, columns, triplets.counts > 0, (users.ids.size, items.ids.size))
    seed = seed_of_rows(settings, fitted, random_seed)
    return take_step(settings, fitted, Step((users, items), csr, side, size, seed), settings.threads)


def size_of_step(settings: Settings, fitted: Fitted | None, step_size: Any) -> float:
    """The step size: as passed, or that of the settings for the next step; ValueError without posteriors."""
    if not settings.keep_all_objs or (fitted is not None and fitted.posteriors is None):
        raise ValueError("partial_fit needs shapes and rates: set keep_all_objs=True before the fit")
    done = 0 if fitted is None else fitted.niter
    return checked_step("step_size", step_at(settings.step_size, done) if step_size is None else step_size)


def seed_of_rows(settings: Settings, fitted: Fitted | None, random_seed: Any) -> int:
    """Seed of the start values of new rows."""
    if random_seed is not None:
        return whole_number("random_seed", random_seed, 0)
    if fitted is None:
        return seed_or_fresh(settings.random_seed)
    return int(np.random.SeedSequence((fitted.seed, fitted.niter)).generate_state(1)[0])


def take_step(settings: Settings, fitted: Fitted | None, step: Step, threads: int | None) -> Fitted:
    """The model after one step."""
    k, dtype = (settings.width, settings.dtype) if fitted is None else (fitted.k, fitted.dtype)
    backend = working_backend(settings, dtype, k, threads)
    _check_fixed(fitted, step.places)
    rows = step.csr if step.side == USERS else step.csr.T.tocsr()
    members = step.places[step.side].members
    own, scale = rows[members], step.places[step.side].total / len(members)
    seen = _seen_after(fitted, step) if settings.keep_data else None
    with backend.in_use():
        neighbours = _neighbours_for(settings, backend, fitted, step, own, scale, seen)
        sources = None if neighbours is None else neighbours.sources
        batch = Batch(members, backend.counts(own, k, sources), scale)
        users, items = _moved(settings, backend, fitted, step, batch, neighbours)
    theta, beta = (backend.asnumpy(backend.mean(side.factor)) for side in (users, items))
    of_users, of_items = step.places
    return Fitted(
        theta=checked_mean("Theta", theta),
        beta=checked_mean("Beta", beta),
        user_ids=of_users.ids,
        item_ids=of_items.ids,
        nusers=max(of_users.total, len(theta)),
        nitems=max(of_items.total, len(beta)),
        posteriors=(posterior_of(backend, [users]), posterior_of(backend, [items])),
        seen=seen,
        niter=1 if fitted is None else fitted.niter + 1,
        train_llk=None,
        history=history_frame([], settings.stop_crit) if fitted is None else fitted.history,
        seed=step.seed if fitted is None else fitted.seed,
        backend=backend.name,
        neighbours=None if neighbours is None else neighbours.after(backend, items),
        library=None if fitted is None else fitted.library,
    )


@dataclass(frozen=True)
class _Neighbours:
    """The neighbours of a step, with the weights before it."""

    sources: Host  # (M, L)
    weights: Weights
    users_with: Host  # (M,) after the step

    def after(self, backend: Backend, items: Side) -> Neighbours | None:
        """The neighbours with the weights of the items after the step."""
        weights = items.weights
        return None if weights is None else neighbours_of(backend, weights, self.sources, self.users_with)


def _neighbours_for(
    settings: Settings,
    backend: Backend,
    fitted: Fitted | None,
    step: Step,
    batch: sparse.csr_array,  # (B, M)
    scale: float,
    seen: UserItems | None,  # after the step
) -> _Neighbours | None:
    """The neighbours and weights before a step; None without them.

    Neighbours are those of the first batch, and items that come later have none.  The numbers of users that
    have each item move by the step, like all that the rates of q(w) depend on, towards those among all users
    who have any, times what is missing in the total number of users.
    """
    known = None if fitted is None else fitted.neighbours
    if known is None and (fitted is not None or not settings.neighbours):
        return None
    if step.side == ITEMS:
        raise ValueError(
            "batch_type='items' brings no users with all their items, which neighbours need: pass users"
        )
    if seen is None:
        raise ValueError("partial_fit of a model with neighbours needs the users' items: set keep_data=True")
    users, items = step.places
    having = int((np.diff(seen[0]) > 0).sum())
    users_with = np.bincount(seen[1], minlength=items.ids.size) * max(1.0, users.total / max(1, having))
    if known is not None:
        known = known.with_items(items.ids.size)
        users_with = (1 - step.size) * known.users_with + step.size * users_with
        return _Neighbours(known.sources, known.start(backend, users_with), users_with)
    sources, totals = choose_sources(backend, batch, settings.neighbours), batch.sum(axis=0) * scale
    weights = start_weights(backend, settings.weight_prior, sources, users_with, totals)
    return _Neighbours(sources, weights, users_with)


def _moved(
    settings: Settings,
    backend: Backend,
    fitted: Fitted | None,
    step: Step,
    batch: Batch,
    neighbours: _Neighbours | None,
) -> tuple[Side, Side]:
    """Users and items after the step; new rows have start values before it."""

    def update(model: Model) -> Model:
        sides = (model.users[0], model.items)
        moved = run_epoch(
            backend, [batch], sides[step.side], sides[1 - step.side], local_updates(settings), step.size
        )
        users, items = moved if step.side == USERS else moved[::-1]
        return Model((users,), items)

    n, m = (place.ids.size for place in step.places)
    if fitted is None:
        model = start_sides(settings, backend, (n, m), step.seed)
        model = Model(
            (average_start_rates(backend, model.users[0]),), average_start_rates(backend, model.items)
        )
    else:
        rng, (of_users, of_items) = np.random.default_rng(step.seed), fitted.require_posteriors()
        users, items = (
            posterior.with_rank_one_rates(other.column_sums).with_start_rows(size - len(posterior.shape), rng)
            for posterior, other, size in ((of_users, of_items, n), (of_items, of_users, m))
        )
        model = Model((side_from_posterior(backend, users),), side_from_posterior(backend, items))
    if neighbours is not None:
        model = replace(model, items=replace(model.items, weights=neighbours.weights))
    model = update(model)
    if model.items.prior.biases_wait and fitted is not None and fitted.niter + 1 == WARM_UP:
        model = with_free_biases(backend, model, (fitted.k - 2, fitted.k - 1))
    return model.users[0], model.items


def _totals(fitted: Fitted | None, passed: Totals) -> tuple[int, int]:
    """Total numbers of users and items: as passed, or those of the model."""
    totals: list[int] = []
    for name, rows in (("nusers", "theta"), ("nitems", "beta")):
        value = getattr(passed, name)
        kept = None if fitted is None else getattr(fitted, name)
        if value is None and kept is None:
            raise ValueError(f"the first partial_fit of a model that is not fitted needs {name}")
        total = whole_number(name, kept if value is None else value, 1)
        least = 0 if fitted is None else len(getattr(fitted, rows))
        if total < least:
            raise ValueError(f"{name}={total} is less than the {least} that the model has")
        totals.append(total)
    return totals[0], totals[1]


def _known_ids(settings: Settings, fitted: Fitted | None, totals: tuple[int, int]) -> tuple[Ids, Ids]:
    """The ids that have rows: with reindex those seen so far, without it all row numbers from the start."""
    if fitted is not None:
        known = (fitted.user_ids, fitted.item_ids)
    else:
        none = np.empty(0, dtype=object) if settings.reindex else None
        known = (Ids(none, 0, "user"), Ids(none, 0, "item"))
    users, items = (
        Ids(None, total, ids.kind) if ids.values is None else ids
        for ids, total in zip(known, totals, strict=True)
    )
    return users, items


def _place(known: Ids, side: BatchSide, total: int, may_grow: bool) -> BatchRows:
    """Look up the ids of a batch in the model, and assign rows to new ones."""
    ids, rows = known.extended(side.ids)
    if ids.size > max(total, known.size) and not may_grow:
        kind = known.kind
        raise ValueError(
            f"the batch brings {ids.size - known.size} new {kind}s, and the model has {known.size} of "
            f"n{kind}s={total}: pass new_{kind}s=True to add more, or a larger n{kind}s"
        )
    return BatchRows(ids, rows, np.sort(rows[side.members]), max(total, ids.size))


def _check_fixed(fitted: Fitted | None, places: tuple[BatchRows, BatchRows]) -> None:
    """Raise ValueError if a batch has new ids on a side with fixed factors."""
    posteriors = () if fitted is None else fitted.require_posteriors()
    for place, posterior in zip(places, posteriors, strict=False):
        if posterior.fixed and place.ids.size > len(posterior.shape):
            raise ValueError(f"the {place.ids.kind}s of this model are fixed: a batch cannot add new ones")


def _seen_after(fitted: Fitted | None, step: Step) -> UserItems | None:
    """The seen items of all users after the batch; None if the model does not keep them."""
    csr, members = step.csr, step.places[USERS].members
    seen = (np.zeros(1, np.int64), np.empty(0, csr.indices.dtype)) if fitted is None else fitted.seen
    if seen is None:
        return None
    if not step.replaces:
        return with_more_items(seen, csr)
    rows = csr[members]
    return with_items(seen, members, (rows.indptr, rows.indices))
