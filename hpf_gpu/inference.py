"""Coordinate ascent: one loop for every backend, schedule and number of blocks, full-batch or stochastic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from .backends.protocol import Array, Backend, Counts, SideName
from .convergence import Check, has_converged
from .likelihood import Objective, user_sums
from .variational import Block, Model, Side, update_side


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
class Fit:
    """What a fit leaves: the last finished model, its checks, and how it ended."""

    model: Model
    history: list[Check]
    iterations: int
    interrupted: bool


def iterate(backend: Backend, model: Model, schedule: Schedule) -> Model:
    """One full iteration over all blocks: φ, then the users, then the items."""
    items, blocks = model.items, []
    statistic: Array | None = None
    sides: tuple[SideName, ...] = ("users", "items") if schedule.alternating else ("both",)
    for block in model.blocks:
        users = block.users
        for side in sides:
            # The first block may overwrite the items' spare matrix; the others add to its result.
            out = (_spare_shape(users), _spare_shape(items) if statistic is None else None)
            user_part, item_part = backend.allocate(
                block.counts, users.factor, items.factor, side=side, exact=schedule.exact_phi, out=out
            )
            if user_part is not None:
                users = update_side(backend, users, user_part, items.column_sums)
            if statistic is None:
                statistic = item_part
            elif item_part is not None:
                statistic += item_part
        blocks.append(replace(block, users=users))
    items = update_side(backend, items, statistic, user_sums(blocks))
    return Model(tuple(blocks), items)


def fit(
    backend: Backend,
    model: Model,
    schedule: Schedule,
    objective: Objective,
    report: Callable[[Check], None],
    advance: Callable[[Model, int], Model] | None = None,
) -> Fit:
    """Iterate until the rule is met, ``maxiter`` is reached or the user interrupts.

    ``report`` hears of every iteration; its Check holds figures where they were due.
    ``advance`` makes of a model and the number of iterations before it the next model; a full
    iteration unless given.
    KeyboardInterrupt is passed on when no iteration has finished yet.
    """
    history: list[Check] = []
    started, iteration, interrupted = time.perf_counter(), 0, False
    watches_theta = schedule.stop_crit == "diff-norm"
    try:
        theta = _user_means(backend, model.blocks) if watches_theta else []
        while True:
            model = advance(model, iteration) if advance else iterate(backend, model, schedule)
            iteration += 1
            last = iteration == schedule.maxiter
            if not last and (schedule.check_every is None or iteration % schedule.check_every):
                report(Check(iteration))
                continue
            check = objective.check(model, iteration)
            if watches_theta:
                before, theta = theta, _user_means(backend, model.blocks)
                norms = (backend.distance(a, b) for a, b in zip(theta, before, strict=True))
                check = replace(check, diff_norm=math.hypot(*norms))
            check = replace(check, seconds=time.perf_counter() - started)
            previous = history[-1] if history else None
            history.append(check)
            report(check)
            if last or has_converged(schedule.stop_crit, schedule.stop_thr, previous, check):
                break
    except KeyboardInterrupt:
        if iteration == 0:
            raise
        interrupted = True
    if not history or history[-1].iteration < iteration:
        check = objective.check(model, iteration)
        history.append(replace(check, seconds=time.perf_counter() - started))
    return Fit(model, history, iteration, interrupted)


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
            counts, new.factor, frozen.factor, side="users", exact=exact_phi, out=(_spare_shape(new), None)
        )
        new = update_side(backend, new, statistic, frozen.column_sums)
        before, theta = theta, backend.mean(new.factor)
        if backend.distance(theta, before) < threshold:
            break
    return new


def _spare_shape(side: Side) -> Array | None:
    return None if side.spare is None else side.spare.shape


def _user_means(backend: Backend, blocks: tuple[Block, ...]) -> list[Array]:
    return [backend.mean(block.users.factor) for block in blocks]
