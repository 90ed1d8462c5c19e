"""Stochastic variational inference (Hoffman, Blei, Wang and Paisley 2013): one step per batch.

A batch is some rows of one side, users or items, with all their counts.  The variables of these rows are
local: some updates of them are run with the other side unchanged.  The variables of the other side are
global: they are then moved by a step towards the values that they would have if all rows were like those of
the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Counts, Factor, Full, Host, RankOne, SideName

from .sides import Model, Side, Statistic, allocate, update_side

#: Local updates per batch.  Held-out likelihoods after 5 to 20 epochs (bench/stochastic.py) improve from 1 to
#: 2 and from 2 to 5 updates; with 10 they are better as often as worse.
LOCAL_STEPS = 5


@dataclass(frozen=True)
class Batch:
    """Some rows of the local side with all their counts; ``scale`` is the number of all rows divided by B."""

    rows: Host  # (B,) row numbers
    counts: Counts  # (B, M)
    scale: float


@dataclass(frozen=True)
class LocalUpdates:
    """How the rows of a batch are updated: ``steps`` times, with φ as in Schedule."""

    alternating: bool = False
    exact_phi: bool = False
    steps: int = LOCAL_STEPS


@dataclass(frozen=True)
class Epochs:
    """The iteration of a stochastic fit: an epoch, which is one pass over all batches.

    With batches of both sides, epochs of items and of users alternate, items first.  The batches are the same
    in the whole fit, so that a backend lays out their counts once; their order is drawn for each epoch.
    """

    backend: Backend
    user_batches: tuple[Batch, ...]
    item_batches: tuple[Batch, ...]
    step_size: Callable[[int], float]  # of the epoch, from zero
    rng: np.random.Generator
    local: LocalUpdates

    def __call__(self, model: Model, epoch: int) -> Model:
        """Run epoch number ``epoch``, counted from zero; ``model`` is not modified."""
        users, items = _joined(self.backend, model.users), model.items
        users, items = (average_start_rates(self.backend, side) for side in (users, items))
        step = self.step_size(epoch)
        if self.user_batches and not (self.item_batches and epoch % 2 == 0):
            batches = self._shuffled(self.user_batches)
            users, items = run_epoch(self.backend, batches, users, items, self.local, step)
        else:
            batches = self._shuffled(self.item_batches)
            items, users = run_epoch(self.backend, batches, items, users, self.local, step)
        return Model(_split(self.backend, users, [len(side.hyper_rate) for side in model.users]), items)

    def _shuffled(self, batches: tuple[Batch, ...]) -> list[Batch]:
        return [batches[number] for number in self.rng.permutation(len(batches))]


def run_epoch(
    backend: Backend, batches: Iterable[Batch], side: Side, other: Side, local: LocalUpdates, step: float
) -> tuple[Side, Side]:
    """Run local updates of each batch of rows of ``side``, and move ``other`` by ``step`` after each batch.

    The batches have no rows in common, and the rates of both sides have rank one.  Neither argument is
    modified.  Rows that are in no batch keep their shapes; only the column part of their rates is updated.
    """
    start, old = other, side.factor
    shape = _copy(backend, old.shape)
    rows, columns = _rank_one(side).rows * 1.0, other.column_sums
    for batch in batches:
        columns = other.column_sums
        part = select_rows(backend, side, batch.rows)
        part, statistic = update_local(backend, batch.counts, part, other, local)
        backend.assign_rows(shape, batch.rows, part.factor.shape)
        backend.assign_rows(rows, batch.rows, _rank_one(part).rows)
        moved = update_side(backend, other, statistic, part.column_sums, scale=batch.scale, step=step)
        other = moved.without_spare() if other is start else moved  # the argument is not overwritten
    if side.fixed:
        return side, other
    # All rows share the column part of the rates: that of the last batch.
    k = shape.shape[1]
    rates = RankOne(rows, side.prior.column_rates(columns))
    temperature = side.prior.temperature
    factor, row_sums, sums = backend.gamma_update(shape, 0.0, rates, side.spare_exp_log, temperature)
    hyper_rate = side.prior.next_hyper_rate(row_sums, k)
    return replace(side, factor=factor, hyper_rate=hyper_rate, column_sums=sums, spare=old.matrices), other


def update_local(
    backend: Backend, counts: Counts, part: Side, other: Side, local: LocalUpdates
) -> tuple[Side, Statistic]:
    """Update the rows ``part`` (B, K) of a batch; returns them, and Σ yφ for the other side (M, K)."""
    statistic: Statistic | None = None
    asked: list[SideName] = ["users"] * local.steps
    if part.fixed:
        asked = ["items"]
    elif local.alternating:
        asked.append("items")
    else:
        asked[-1] = "both"
    for side in asked:
        own, statistic = allocate(backend, counts, part, other, side=side, exact=local.exact_phi)
        if own is not None:
            part = update_side(backend, part, own, other.column_sums)
    return part, cast(Statistic, statistic)  # the last of those asked for has it


def select_rows(backend: Backend, side: Side, rows: Host) -> Side:
    """Copy of some rows of a side whose rates have rank one."""
    old, hyper_rate = side.factor, backend.select_rows(side.hyper_rate, rows)
    shape = backend.select_rows(old.shape, rows)
    rates = RankOne(backend.select_rows(_rank_one(side).rows, rows), _rank_one(side).columns)
    if side.fixed:  # no update will add up the means of these rows
        factor, _, sums = backend.gamma_update(shape, 0.0, rates, temperature=side.prior.temperature)
        return replace(side, factor=factor, hyper_rate=hyper_rate, column_sums=sums, spare=None)
    exp_log, log_scale = (backend.select_rows(array, rows) for array in (old.exp_log, old.log_scale))
    factor = Factor(shape, rates, exp_log, log_scale, old.temperature)
    return replace(side, factor=factor, hyper_rate=hyper_rate, spare=None)


def average_start_rates(backend: Backend, side: Side) -> Side:
    """Replace full rates, as start values have them, by the mean of each row, so that steps can blend them.

    Expectations are not recomputed.  Rates of rank one are unchanged.
    """
    rates = side.factor.rates
    if isinstance(rates, RankOne):
        return side
    free = np.delete(backend.asnumpy(rates.matrix), [pin.column for pin in side.prior.pins], axis=1)
    mean = free.mean(axis=1, dtype=np.float64) if free.shape[1] else np.zeros(len(free))
    columns = side.prior.column_rates(np.zeros(rates.matrix.shape[1]))
    averaged = RankOne(backend.asarray(mean), backend.asarray(columns))
    return replace(side, factor=replace(side.factor, rates=averaged))


def _rank_one(side: Side) -> RankOne:
    rates = side.factor.rates
    if isinstance(rates, Full):
        raise TypeError("stochastic updates need rates of rank one: use average_start_rates first")
    return rates


def _copy(backend: Backend, array: Array) -> Array:
    return backend.select_rows(array, np.arange(array.shape[0]))


def _joined(backend: Backend, sides: Sequence[Side]) -> Side:
    """The sides of all blocks as one, because batches are drawn from all users."""
    if len(sides) == 1:
        return sides[0]
    first = sides[0]

    def joined(arrays: list[Array]) -> Array:
        lengths = [array.shape[0] for array in arrays]
        result = backend.asarray(np.zeros((sum(lengths), *arrays[0].shape[1:])))
        for end, array in zip(np.cumsum(lengths), arrays, strict=True):
            backend.assign_rows(result, np.arange(end - array.shape[0], end), array)
        return result

    rates = [side.factor.rates for side in sides]
    whole = (
        RankOne(joined([one.rows for one in rates if isinstance(one, RankOne)]), rates[0].columns)
        if isinstance(rates[0], RankOne)
        else Full(joined([one.matrix for one in rates if isinstance(one, Full)]))
    )
    shape = joined([side.factor.shape for side in sides])
    factor, _, sums = backend.gamma_update(shape, 0.0, whole, temperature=first.prior.temperature)
    return Side(first.prior, factor, joined([side.hyper_rate for side in sides]), sums, fixed=first.fixed)


def _split(backend: Backend, side: Side, lengths: Sequence[int]) -> tuple[Side, ...]:
    """Split a side made by :func:`_joined` into its blocks, each with the column sums of its own rows."""
    if len(lengths) == 1:
        return (side,)
    ends = np.cumsum(lengths)
    parts = []
    for end, length in zip(ends, lengths, strict=True):
        part = select_rows(backend, side, np.arange(end - length, end))
        shape, temperature = _copy(backend, part.factor.shape), part.prior.temperature
        factor, _, sums = backend.gamma_update(shape, 0.0, part.factor.rates, temperature=temperature)
        parts.append(replace(part, factor=factor, column_sums=sums))
    return tuple(parts)
