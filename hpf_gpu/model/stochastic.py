"""Stochastic variational inference (Hoffman, Blei, Wang and Paisley 2013): a step after every batch.

A batch is some rows of one side, users or items, with all their counts.  That side is local: its
variables belong to the batch alone and are brought to rest against the other side, the global one, which
is then moved towards what it would be if all rows were like those of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Counts, Factor, Host, SideName

from .variational import Model, Side, after_update, blend_side, update_side

#: Updates of a batch's own side before the other side moves.  Held-out likelihoods after 5 to 20 epochs
#: (bench/stochastic.py) gain from 1 to 2 and from 2 to 5 updates, and are as often better as worse with 10.
LOCAL_STEPS = 5


@dataclass(frozen=True)
class Batch:
    """Some rows of the local side, with all their counts; ``scale`` such batches make the whole."""

    rows: Host  # (B,) their numbers
    counts: Counts  # (B, M)
    scale: float


@dataclass(frozen=True)
class Local:
    """How a batch is brought to rest: ``steps`` updates, with φ as in :class:`hpf_gpu.model.inference.Schedule`."""

    alternating: bool = False
    exact_phi: bool = False
    steps: int = LOCAL_STEPS


@dataclass(frozen=True)
class Epochs:
    """Takes the place of full iterations in a fit: each goes through all batches once.

    With batches of both sides, epochs of items and of users take turns.  Batches stay the same for the
    whole fit, so that a backend lays out their counts once; their order is drawn anew for each epoch.
    """

    backend: Backend
    user_batches: tuple[Batch, ...]
    item_batches: tuple[Batch, ...]
    step_size: Callable[[int], float]  # of the epoch, from zero
    rng: np.random.Generator
    how: Local

    def __call__(self, model: Model, epoch: int) -> Model:
        """Run epoch number ``epoch``, counted from zero; the given model is not changed."""
        (block,) = model.blocks
        users, items = block.users, model.items
        if epoch == 0:
            users, items = (with_rank_one(self.backend, side) for side in (users, items))
        step = self.step_size(epoch)
        if self.user_batches and not (self.item_batches and epoch % 2 == 0):
            batches = self._shuffled(self.user_batches)
            users, items = run_epoch(self.backend, batches, users, items, self.how, step)
        else:
            batches = self._shuffled(self.item_batches)
            items, users = run_epoch(self.backend, batches, items, users, self.how, step)
        return Model((replace(block, users=users),), items)

    def _shuffled(self, batches: tuple[Batch, ...]) -> list[Batch]:
        return [batches[number] for number in self.rng.permutation(len(batches))]


def run_epoch(
    backend: Backend, batches: Iterable[Batch], side: Side, other: Side, how: Local, step: float
) -> tuple[Side, Side]:
    """Go through ``batches`` of different rows of ``side``, and move ``other`` by ``step`` after each.

    Rates of both sides must have rank one.  Neither of the given sides is changed.  Rows that are in no
    batch get no more than the rates of columns that all rows get in the end.
    """
    given, old = other, side.factor
    shape = backend.select_rows(old.shape, np.arange(len(side.hyper_rate)))
    rate_rows, rate_columns = old.rate_rows[:, 0] * 1.0, other.column_sums
    for batch in batches:
        rate_columns = other.column_sums
        part = select_rows(backend, side, batch.rows)
        part, statistic = settle(backend, batch.counts, part, other, how)
        backend.assign_rows(shape, batch.rows, part.factor.shape)
        backend.assign_rows(rate_rows, batch.rows, part.factor.rate_rows[:, 0])
        moved = blend_side(backend, other, statistic, part.column_sums, scale=batch.scale, step=step)
        other = replace(moved, spare=None) if other is given else moved  # what was given stays whole
        side, other = after_update(side), after_update(other)
    if side.prior.known:
        return side, other
    # One rank for all rows: the columns are those that the last batch had.
    k = shape.shape[1]
    exp_log = None if side.spare is None else side.spare.exp_log
    factor, row_sums, column_sums = backend.gamma_update(
        shape, 0.0, rate_rows[:, None], side.prior.column_rates(rate_columns, k, backend.asarray), out=exp_log
    )
    return Side(side.prior, factor, side.prior.next_hyper_rate(row_sums, k), column_sums, spare=old), other


def settle(backend: Backend, counts: Counts, part: Side, other: Side, how: Local) -> tuple[Side, Array]:
    """Bring the rows ``part`` of a batch to rest and share its counts among the other side: Σ yφ (M, K)."""
    statistic = None
    asked: list[SideName] = ["users"] * how.steps
    if part.prior.known:
        asked = ["items"]
    elif how.alternating:
        asked.append("items")
    else:
        asked[-1] = "both"
    for side in asked:
        own, statistic = backend.allocate(
            counts, part.factor, other.factor, side=side, exact=how.exact_phi, out=_spares(part, other)
        )
        if own is not None:
            part = update_side(backend, part, own, other.column_sums)
    return part, statistic


def select_rows(backend: Backend, side: Side, rows: Host) -> Side:
    """Copy of some rows of a side whose rates have rank one."""
    old, hyper_rate = side.factor, backend.select_rows(side.hyper_rate, rows)
    shape = backend.select_rows(old.shape, rows)
    rate_rows = backend.select_rows(old.rate_rows[:, 0], rows)[:, None]
    if side.prior.known:  # no update will add up the means of these rows
        factor, _, sums = backend.gamma_update(shape, 0.0, rate_rows, old.rate_columns)
        return Side(side.prior, factor, hyper_rate, sums, spare=None)
    exp_log, log_scale = (backend.select_rows(array, rows) for array in (old.exp_log, old.log_scale))
    factor = Factor(shape, rate_rows, old.rate_columns, exp_log, log_scale)
    return replace(side, factor=factor, hyper_rate=hyper_rate, spare=None)


def with_rank_one(backend: Backend, side: Side) -> Side:
    """Start values with the mean rate of each row in place of its rates, so that steps can blend them.

    Expectations stay as the single rates had made them.
    """
    if side.prior.known:
        return side
    rates = backend.asnumpy(side.factor.rate_rows)
    free = rates.shape[1] - len(side.prior.held)  # what is held has none
    mean = rates.sum(axis=1, dtype=np.float64) / free
    return replace(side, factor=replace(side.factor, rate_rows=backend.asarray(mean)[:, None]))


def _spares(*sides: Side) -> tuple[Array | None, Array | None]:
    own, other = (None if side.spare is None else side.spare.shape for side in sides)
    return own, other
