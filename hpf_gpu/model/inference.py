"""Coordinate ascent: one loop for every backend, schedule and number of blocks, full-batch or stochastic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hpf_gpu.backends.protocol import Array, Backend, Counts, SideName
from hpf_gpu.data.blocks import CountBlocks

from .convergence import Check, has_converged
from .likelihood import Objective
from .sides import Model, Side, column_sums, update_side


@dataclass(frozen=True)
class Schedule:
    """How an iteration is put together and when the fit ends.

    ``alternating`` computes φ anew between the two sides; otherwise, as in hpfrec, one φ serves
    both. ``check_every=None`` checks after the last iteration only, ``maxiter=None`` never ends
    by count.
    """

    stop_crit: str
    stop_thr: float
    check_every: int | None
    maxiter: int | None
    alternating: bool = False
    exact_phi: bool = False


@dataclass(frozen=True)
class State:
    """Where a fit is between two iterations: all that the rest of it depends on."""

    model: Model
    iteration: int = 0
    history: tuple[Check, ...] = ()
    seconds: float = 0.0  # taken so far
    checked_theta: tuple[Array, ...] = ()  # E[θ] of each block at the last check, if the rule watches it


@dataclass(frozen=True)
class Fit:
    """What a fit leaves: the last finished model, its checks, and how it ended.

    ``ended_by`` is the interrupt of the user or the callback exception that stopped it.
    """

    model: Model
    history: tuple[Check, ...]
    iterations: int
    ended_by: BaseException | None


def iterate(backend: Backend, blocks: CountBlocks, model: Model, schedule: Schedule) -> Model:
    """One full iteration over all blocks: φ, then the users, then the items."""
    items, updated = model.items, []
    statistic: Array | None = None
    for block, users in zip(blocks, model.users, strict=True):
        for side in _sides_to_update(users, items, schedule):
            # The first block may overwrite the items' spare matrix; the others add to its result.
            out = (users.spare_shape, items.spare_shape if statistic is None else None)
            user_part, item_part = backend.allocate(
                block.counts, users.factor, items.factor, side=side, exact=schedule.exact_phi, out=out
            )
            if user_part is not None:
                users = update_side(backend, users, user_part, items.column_sums)
            if statistic is None:
                statistic = item_part
            elif item_part is not None:
                statistic += item_part
        updated.append(users)
    if statistic is not None:
        items = update_side(backend, items, statistic, column_sums(updated))
    return Model(tuple(updated), items)


def _sides_to_update(users: Side, items: Side, schedule: Schedule) -> tuple[SideName, ...]:
    """For which sides φ is computed, one after the other; none for a side that is fixed."""
    if users.fixed:
        return ("items",)
    if items.fixed:
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
    """Iterate until the rule is met, ``maxiter`` is reached, ``report`` returns True or the user interrupts.

    ``advance`` makes the next model from a model and the number of iterations before it.  ``report`` is
    called after every iteration; its Check holds figures where they were due.  ``on_state`` is called with
    every state that the fit continues from.  An error of either ends the fit with the last iteration.
    KeyboardInterrupt is passed on when no iteration has finished yet.
    """
    started = time.perf_counter() - state.seconds
    ended_by: BaseException | None = None
    try:
        if schedule.stop_crit == "diff-norm" and not state.checked_theta:
            state = replace(state, checked_theta=_user_means(backend, state.model))
        while True:
            model = advance(state.model, state.iteration)
            # In one step: an interrupt finds the iteration counted or not begun.
            state = replace(state, model=model, iteration=state.iteration + 1)
            previous, check = state.history[-1] if state.history else None, Check(state.iteration)
            last = state.iteration == schedule.maxiter
            due = last or (schedule.check_every is not None and state.iteration % schedule.check_every == 0)
            if due:
                check, theta = _judge(backend, state, objective)
            check = replace(check, seconds=time.perf_counter() - started)
            state = replace(state, seconds=check.seconds)
            if due:
                state = replace(state, history=(*state.history, check), checked_theta=theta)
            over = last or (due and has_converged(schedule.stop_crit, schedule.stop_thr, previous, check))
            try:
                if report(check) is True or over:
                    break
                if on_state is not None:
                    on_state(state)
            except Exception as error:
                ended_by = error
                break
    except KeyboardInterrupt as interrupt:
        if state.iteration == 0:
            raise
        ended_by = interrupt
    history = state.history
    if not history or history[-1].iteration < state.iteration:
        check = objective.check(state.model, state.iteration)
        history = (*history, replace(check, seconds=time.perf_counter() - started))
    return Fit(_without_spares(state.model), history, state.iteration, ended_by)


def _without_spares(model: Model) -> Model:
    """The model without the matrices that are kept to be overwritten."""
    users = (replace(side, spare=None) for side in model.users)
    return Model(tuple(users), replace(model.items, spare=None))


def _judge(backend: Backend, state: State, objective: Objective) -> tuple[Check, tuple[Array, ...]]:
    """The figures of a state, and E[θ] where they have its distance from the last check."""
    check = objective.check(state.model, state.iteration)
    if not state.checked_theta:
        return check, ()
    theta = _user_means(backend, state.model)
    norms = (backend.distance(a, b) for a, b in zip(theta, state.checked_theta, strict=True))
    return replace(check, diff_norm=math.hypot(*norms)), theta


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
    """Coordinate ascent on q(θ) and q(ξ) of new users given q(β), which stays as it is.

    Items are folded in by the same function, with their counts as rows and the users frozen.  Ends when
    the root mean square over the rows of ‖E[θ_n] − E[θ_n] before‖ is below ``stop_thr``: for one row
    hpfrec's rule.
    """
    theta = backend.mean(new.factor)
    threshold = stop_thr * math.sqrt(counts.shape[0])
    for _ in range(maxiter):
        statistic, _ = backend.allocate(
            counts, new.factor, frozen.factor, side="users", exact=exact_phi, out=(new.spare_shape, None)
        )
        new = update_side(backend, new, statistic, frozen.column_sums)
        before, theta = theta, backend.mean(new.factor)
        if backend.distance(theta, before) < threshold:
            break
    return new


def _user_means(backend: Backend, model: Model) -> tuple[Array, ...]:
    return tuple(backend.mean(users.factor) for users in model.users)
