"""Coordinate ascent (Gopalan, Hofman and Blei 2015, section 3), and the loop of every fit.

The loop is the same for every backend, schedule and number of blocks, and for stochastic fits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hpf_gpu.backends.protocol import Array, Ascent, Backend, Counts, SideName
from hpf_gpu.data.blocks import CountBlocks

from .acceleration import SAFEGUARD_EVERY, Kept, with_momentum
from .convergence import Check, has_converged, keeps_best
from .likelihood import Objective
from .sides import Model, Side, Statistic, allocate, column_sums, update_side
from .snapshot import Best, Snapshot


@dataclass(frozen=True)
class Schedule:
    """The order of updates in an iteration, and the stopping rule.

    With ``alternating``, φ is computed again after the update of the users; otherwise, as in hpfrec, both
    sides use the same φ.  With ``exact_phi`` every φ is computed by the log-sum-exp.  ``check_every=None``
    checks only after the last iteration; ``maxiter=None`` sets no limit on iterations.  For ``patience`` see
    :func:`hpf_gpu.model.convergence.has_converged`.  If ``accelerated``, the ELBO is watched, see
    :mod:`hpf_gpu.model.acceleration`.
    """

    stop_crit: str
    stop_thr: float
    check_every: int | None
    maxiter: int | None
    alternating: bool = False
    exact_phi: bool = False
    accelerated: bool = False
    patience: int | None = None


@dataclass(frozen=True)
class State:
    """The state of a fit between two iterations: everything that the remaining iterations depend on."""

    model: Model
    iteration: int = 0
    history: tuple[Check, ...] = ()
    seconds: float = 0.0  # elapsed so far
    checked_theta: tuple[Array, ...] = ()  # E[θ] of each block at the last check, only with diff-norm
    kept: Kept | None = None  # only if accelerated
    best: Best | None = None  # only with patience and val-llk


@dataclass(frozen=True)
class Fit:
    """The result of the loop: the model after the last finished iteration, the checks, and how it ended.

    The last check is that of the last iteration, and has the ELBO.  ``ended_by`` is the KeyboardInterrupt, or
    the exception of a callback, that stopped the fit; else None.  ``unmet`` says that ``maxiter`` stopped it
    although its rule had been judged, by more than one check, and was not met.
    """

    model: Model
    history: tuple[Check, ...]
    iterations: int
    ended_by: BaseException | None
    unmet: bool


def iterate(backend: Backend, blocks: CountBlocks, model: Model, schedule: Schedule) -> Model:
    """One full iteration over all blocks: φ, then the update of the users, then that of the items.

    The users of a block are updated with the block; Σ yφ for the items is summed over all blocks first.
    """
    items, updated = model.items, []
    statistic: Statistic | None = None
    for block, users in zip(blocks, model.users, strict=True):
        # The first block may overwrite the items' spare matrices; the others add to its result.
        users, part = update_block(
            backend, block.counts, users, items, schedule, into_spare=statistic is None
        )
        updated.append(users)
        if statistic is None:
            statistic = part
        elif part is not None:
            statistic.add(part)
    if statistic is not None:
        items = update_side(backend, items, statistic, column_sums(updated))
    return Model(tuple(updated), items)


def update_block(
    backend: Backend, counts: Counts, users: Side, items: Side, schedule: Schedule, *, into_spare: bool
) -> tuple[Side, Statistic | None]:
    """What an iteration does with one block: update its users, and compute its share of Σ yφ of the items.

    The share is None if the items are fixed; it is in the items' spare matrices if these may be overwritten,
    ``into_spare``.
    """
    statistic: Statistic | None = None
    for side in _sides_to_update(users, items, schedule):
        user_part, item_part = allocate(
            backend,
            counts,
            users,
            items,
            side=side,
            exact=schedule.exact_phi,
            into_spare=(True, into_spare),
        )
        if user_part is not None:
            users = update_side(backend, users, user_part, items.column_sums)
        if item_part is not None:
            statistic = item_part
    return users, statistic


def _sides_to_update(users: Side, items: Side, schedule: Schedule) -> tuple[SideName, ...]:
    """The sides for which Σ yφ is computed, in order; a fixed side is left out."""
    if users.fixed:
        return ("items",)
    if items.fixed and items.weights is None:
        return ("users",)
    return ("users", "items") if schedule.alternating else ("both",)


def fit(
    backend: Backend,
    state: State,
    schedule: Schedule,
    objective: Objective,
    advance: Callable[[Model, int], Model],
    report: Callable[[Check], object],
    on_state: Callable[[State], None] | None = None,
) -> Fit:
    """Iterate until the stopping rule is met, ``maxiter`` is reached, ``report`` returns True or Ctrl-C.

    Parameters
    ----------
    backend : Backend
    state : State
        Where to start: start values, or a checkpoint.
    schedule : Schedule
    objective : Objective
        Computes the figures of a check.
    advance : callable
        One iteration, or one epoch of a stochastic fit: takes a model and the number of iterations before
        it, and returns the next model.
    report : callable
        Called after every iteration with a Check, whose figures are NaN unless a check was made.
    on_state : callable, optional
        Called with every state from which the fit continues.

    Returns
    -------
    Fit
        An exception of ``report`` or ``on_state``, or a KeyboardInterrupt, ends the fit after the last
        finished iteration and is returned in ``ended_by``.

    Raises
    ------
    KeyboardInterrupt
        If no iteration has finished yet.
    """
    started = time.perf_counter() - state.seconds
    ended_by: BaseException | None = None
    unmet = False
    try:
        if schedule.stop_crit == "diff-norm" and not state.checked_theta:
            state = replace(state, checked_theta=objective.means(state.model))
        while True:
            model = advance(state.model, state.iteration)
            # In one assignment: after an interrupt the iteration is either counted or not started.
            state = replace(state, model=model, iteration=state.iteration + 1)
            backend.keep_pace()  # so that seconds and report tell of work that is done
            check = Check(state.iteration)
            last = state.iteration == schedule.maxiter
            due = last or (schedule.check_every is not None and state.iteration % schedule.check_every == 0)
            if due:
                check, theta = _judge(state, objective)
            fell = False
            if schedule.accelerated:
                state, fell = _safeguarded(backend, state, objective, check.elbo, due=due)
                if fell and due:
                    check, theta = _judge(state, objective)
            check = replace(check, seconds=time.perf_counter() - started)
            state = replace(state, seconds=check.seconds)
            if due:
                state = replace(state, history=(*state.history, check), checked_theta=theta)
                state = _with_best(state, schedule, objective)
            # Where the model is that of an earlier iteration, nothing has been gained, but may be.
            met = due and not fell and _is_over(schedule, state)
            try:
                if report(check) is True or met:
                    break
                if last:
                    unmet = schedule.stop_crit != "maxiter" and len(state.history) > 1
                    break
                if on_state is not None:
                    on_state(state)
            except Exception as error:
                ended_by = error
                break
        # An interrupt of this loses nothing either.
        state = _completed(backend, state, schedule, objective, started)
    except KeyboardInterrupt as interrupt:
        if state.iteration == 0:
            raise
        ended_by = interrupt
        state = _completed(backend, state, schedule, objective, started)
    return Fit(state.model.without_spares(), state.history, state.iteration, ended_by, unmet)


def _is_over(schedule: Schedule, state: State) -> bool:
    """Whether the stopping rule is met, judged at a check."""
    return has_converged(schedule.stop_crit, schedule.stop_thr, state.history, schedule.patience)


def _with_best(state: State, schedule: Schedule, objective: Objective) -> State:
    """The state that remembers its model if that is the best on held-out counts so far."""
    val_llk, best = state.history[-1].val_llk, state.best
    if not keeps_best(schedule.stop_crit, schedule.patience) or (
        best is not None and val_llk <= best.val_llk
    ):
        return state
    return replace(state, best=Best(state.iteration, val_llk, objective.snapshot(state.model)))


def _safeguarded(
    backend: Backend, state: State, objective: Objective, elbo: float, *, due: bool
) -> tuple[State, bool]:
    """The state, or with the model that is kept if its ELBO is higher, and whether it is.

    ``due`` says that the ELBO is compared now, ``elbo`` is its value or NaN if it is to be computed.
    """
    kept = state.kept
    if not due and kept is not None and state.iteration % SAFEGUARD_EVERY:
        return replace(state, model=with_momentum(backend, state.model)), False
    if math.isnan(elbo):
        elbo = objective.elbo(state.model)
    if kept is not None and not elbo >= kept.elbo:
        model = kept.restored(backend, state.model)
        kept = replace(kept, iteration=state.iteration, falls=kept.falls + 1)
        return replace(state, model=model, kept=kept), True
    kept = Kept(state.iteration, 0, elbo, Snapshot.of(backend, state.model))
    return replace(state, model=with_momentum(backend, state.model), kept=kept), False


def _completed(
    backend: Backend, state: State, schedule: Schedule, objective: Objective, started: float
) -> State:
    """The state with which a fit ends: its last check is of its model and has an ELBO.

    Where the best model on held-out counts is kept, it is the state of that model.
    """
    if schedule.accelerated and (state.kept is None or state.kept.iteration < state.iteration):
        state, _ = _safeguarded(backend, state, objective, math.nan, due=True)
    history, iteration = state.history, state.iteration
    if not history or history[-1].iteration < iteration:
        check = objective.check(state.model, iteration)
        history = (*history, replace(check, seconds=time.perf_counter() - started))
    best = state.best
    if best is not None and best.val_llk > history[-1].val_llk:
        history = tuple(check for check in history if check.iteration <= best.iteration)
        model = objective.restored(best.snapshot, state.model)
        state = replace(state, model=model, iteration=best.iteration)
    if math.isnan(history[-1].elbo):
        history = (*history[:-1], replace(history[-1], elbo=objective.elbo(state.model)))
    return replace(state, history=history)


def _judge(state: State, objective: Objective) -> tuple[Check, tuple[Array, ...]]:
    """The check of a state, and with the rule diff-norm E[θ] of each block."""
    if not state.checked_theta:
        return objective.check(state.model, state.iteration), ()
    theta = objective.means(state.model)
    return objective.check(state.model, state.iteration, theta, state.checked_theta), theta


def fold_in(
    backend: Backend,
    counts: Counts,  # (N, M)
    new: Side,  # N rows at their start values
    frozen: Side,  # M rows
    *,
    maxiter: int,
    stop_thr: float,
    exact_phi: bool = False,
) -> Side:
    """Coordinate ascent on q(θ) and q(ξ) of new users, with q(β) unchanged.

    New items are folded in by the same function, with items as rows and the users as ``frozen``.  Stops when
    the root mean square over rows of the norm of the change of E[θ_n] in one iteration is below ``stop_thr``;
    for a single row this is hpfrec's rule.
    """
    prior, k = new.prior, new.factor.shape.shape[1]
    if len(prior.pins) == k:
        return new  # there is nothing to fit
    threshold = stop_thr * math.sqrt(counts.shape[0])
    ascent = Ascent(
        prior_shape=prior.shape,
        columns=prior.column_rates(frozen.column_sums),
        hyper_shape=prior.posterior_hyper_shape(k),
        hyper_rate=prior.hyper_rate_line(k),
        pins=tuple((pin.column, pin.shape) for pin in prior.pins),
        maxiter=maxiter,
        threshold=threshold,
        exact=exact_phi,
    )
    weights = None if frozen.weights is None else frozen.weights.factor
    at_once = backend.ascend(counts, new.factor, frozen.factor, new.hyper_rate, ascent, weights)
    if at_once is not None:
        factor, hyper_rate, sums = at_once
        return replace(new, factor=factor, hyper_rate=hyper_rate, column_sums=sums)
    theta, before = backend.mean(new.factor), None
    for _ in range(maxiter):
        statistic, _ = allocate(
            backend, counts, new, frozen, side="users", exact=exact_phi, into_spare=(True, False)
        )
        if statistic is not None:
            new = update_side(backend, new, statistic, frozen.column_sums)
        before, theta = theta, backend.mean(new.factor, before)
        if backend.distance(theta, before) < threshold:
            break
    return new
