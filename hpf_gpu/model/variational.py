"""The model's variational family: priors, the state of one side, start values."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Counts, Factor, Host, NotEnoughMemory

_NOISE = 0.01  # of start values
#: Where θ is known, q(θ) is Gamma(θ·POINT, POINT), so narrow that E[ln θ] is ln θ: no backend has to know.
#: That of a column of ones is larger, for its rate is a sum with E[ξ], which must not be seen in it.
POINT, ONE = 2.0**80, 2.0**120
#: Updates, or batches, for which the biases of a fit rest, and the share of counts that either side's have
#: when they wake.  CONTRIBUTING.md has the figures.
REST, SHARE = 10, 0.1


@dataclass(frozen=True)
class Prior:
    """θ_nk ~ Gamma(shape, ξ_n),  ξ_n ~ Gamma(hyper_shape, hyper_shape / hyper_mean).

    For users these are a, a', b' of Gopalan, Hofman and Blei (2015), for items c, c', d'.  If not
    ``hierarchical``, ξ_n is its mean: θ_nk ~ Gamma(shape, hyper_mean).  Column ``ones`` of θ, if any, is held
    at one: what the other side has there are its biases; those of this side are column ``bias``.  They rest,
    so near to zero that they take no counts, while ``rest`` is above one; the update that finds it at one
    sets them free.  If ``known``, no θ of this side is ever updated.
    """

    shape: float
    hyper_shape: float
    hyper_mean: float
    hierarchical: bool = True
    ones: int | None = None
    known: bool = False
    bias: int | None = None
    rest: int = 0

    @property
    def held(self) -> dict[int, tuple[float, float]]:
        """Columns of θ that no update moves, with shape and rate of q(θ) there."""
        columns = {} if self.ones is None else {self.ones: (ONE, ONE)}
        if self.bias is not None and self.rest > 1:
            columns[self.bias] = (self.shape, POINT)
        return columns

    @property
    def hyper_rate(self) -> float:
        """Prior rate a'/b' of ξ."""
        return self.hyper_shape / self.hyper_mean

    def posterior_hyper_shape(self, k: int) -> float:
        """Shape a' + K·a of q(ξ), which no data changes; ``k`` columns of θ, ones included."""
        return self.hyper_shape + (k if self.ones is None else k - 1) * self.shape

    def start_hyper_rate(self, k: int) -> float:
        """Rate of q(ξ) before the first update: hpfrec's, or what makes E[ξ] its prior mean."""
        return self.hyper_mean if self.hierarchical else self.posterior_hyper_shape(k) / self.hyper_mean

    def next_hyper_rate(self, row_sums: Array, k: int) -> Array:
        """Rates (N,) of q(ξ) at their optimum, given Σ_k E[θ_nk], ones included."""
        if not self.hierarchical:
            return row_sums * 0.0 + self.start_hyper_rate(k)
        return (row_sums if self.ones is None else row_sums + -1.0) + self.hyper_rate

    def column_rates(self, rates: Array, k: int, asarray: Callable[[Host], Array] = np.asarray) -> Array:
        """Column part (K,) of the rates of q(θ), with those of what is held."""
        if not self.held:
            return rates
        free, values = np.ones(k), np.zeros(k)
        for column, (_, rate) in self.held.items():
            free[column], values[column] = 0.0, rate
        return rates * asarray(free) + asarray(values)

    def hold(self, shape: Array, added: float = 0.0) -> None:
        """Put the shape (N, K) of q(θ) where it is held, less what will be ``added`` to all of it."""
        for column, (value, _) in self.held.items():
            shape[:, column] = value - added

    def wake(self, statistic: Array, kept: float = 0.0) -> None:
        """Give biases that have rested a share of the row's counts, Σ_k of ``statistic`` (N, K).

        Biases that were free from the start would take all counts: while factors are alike, each of them is
        near its prior, where exp E[ln θ] is a small part of E[θ].  Biases that begin at zero once the factors
        differ would find no counts left, even where they alone explain them.  ``kept`` is the part of the
        prior's shape that the statistic has in it.
        """
        if self.rest == 1:
            prior, factors = kept * self.shape, statistic.shape[1] - 2
            total = statistic[:, :factors].sum(axis=1) + -prior * factors
            statistic *= 1.0 - 2.0 * SHARE
            statistic += 2.0 * SHARE * prior
            statistic[:, self.bias] = total * SHARE + prior

    def started(self) -> Prior:
        """The prior that a fit begins with."""
        return self if self.bias is None else replace(self, rest=REST + 1)


@dataclass(frozen=True)
class Side:
    """Users or items: q(θ), q(ξ), and what the other side needs of them.

    A Side is never changed, so the last one that was finished stays usable whatever
    interrupts the next.  ``spare`` is the factor before this one, whose matrices nobody needs any
    more: the next update overwrites them.
    """

    prior: Prior
    factor: Factor
    hyper_rate: Array  # (N,) rate of q(ξ)
    column_sums: Array  # (K,) Σ_n E[θ_nk]
    spare: Factor | None


@dataclass(frozen=True)
class Pairs:
    """Counts of chosen pairs: user and item numbers and values, each (Z,), on the host."""

    rows: Host
    columns: Host
    values: Host


@dataclass(frozen=True)
class Block:
    """Some users with all their counts: the unit that data is handed out in.

    ``validation`` holds held-out counts of these users, numbered within the block.
    """

    counts: Counts  # (N, M)
    users: Side
    validation: Pairs | None = None


@dataclass(frozen=True)
class Model:
    """The whole variational state.  In memory there is one block, out of core there are many."""

    blocks: tuple[Block, ...]
    items: Side


@dataclass(frozen=True)
class StartValues:
    """Host matrices that the fit begins with."""

    user_shape: Host  # (N, K)
    user_rate: Host  # (N, K)
    item_shape: Host  # (M, K)
    item_rate: Host  # (M, K)


def draw_start_values(
    n_users: int, n_items: int, k: int, user: Prior, item: Prior, seed: int, dtype: np.dtype[Any]
) -> StartValues:
    """Shapes and rates near a' and c', with noise that parts the factors.

    The generator and the order of the draws are those of hpfrec 0.2.14, so that one seed
    gives the same model there and here, and on every backend.
    """
    _check_memory(n_users + n_items, k, dtype)
    rng = np.random.Generator(np.random.MT19937(seed))

    def noisy(n: int, level: float) -> Host:
        values: Host = rng.random((n, k), dtype=dtype)
        values *= dtype.type(_NOISE)
        values += dtype.type(level)
        return values

    user_rate = noisy(n_users, user.hyper_shape)
    item_rate = noisy(n_items, item.hyper_shape)
    user_shape = noisy(n_users, user.hyper_shape)
    item_shape = noisy(n_items, item.hyper_shape)
    return StartValues(user_shape, user_rate, item_shape, item_rate)


def _check_memory(rows: int, k: int, dtype: np.dtype[Any]) -> None:
    """Refuse what this machine could never hold: some systems grant it, and end the process that uses it."""
    least = 4 * rows * k * dtype.itemsize  # shapes and rates of the start, and two matrices made of them
    have = physical_memory()
    if have is not None and least > have:
        raise NotEnoughMemory(
            f"{rows:,} users and items with k={k} in {dtype} need {least / 1e9:,.1f} GB and more, and this "
            f"machine has {have / 1e9:,.1f} GB; take a smaller k"
        )


def physical_memory() -> int | None:
    """Bytes of memory that this machine has; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def start_side(backend: Backend, prior: Prior, shape: Host, rate: Host) -> Side:
    """A side before its first update, with full matrices (N, K) for shape and rate."""
    n, k = shape.shape
    if prior.held:
        shape, rate = shape.copy(), rate.copy()
        prior.hold(shape)
        rate[:, list(prior.held)] = 0
    columns = prior.column_rates(np.zeros(k), k)
    factor, _, column_sums = backend.gamma_update(
        backend.asarray(shape), 0.0, backend.asarray(rate), backend.asarray(columns)
    )
    hyper_rate = backend.asarray(np.full(n, prior.start_hyper_rate(k)))
    return Side(prior, factor, hyper_rate, column_sums, spare=None)


def known_side(backend: Backend, prior: Prior, mean: Host) -> Side:
    """A side whose θ are given, (N, K), and stay."""
    n, k = mean.shape
    # Zero has no logarithm: this is so far below all else that it adds nothing.
    shape = np.maximum(mean.astype(np.float64) * POINT, 1e-30)
    factor, _, column_sums = backend.gamma_update(
        backend.asarray(shape),
        0.0,
        backend.asarray(np.zeros(n))[:, None],
        backend.asarray(np.full(k, POINT)),
    )
    return Side(replace(prior, known=True), factor, backend.asarray(np.ones(n)), column_sums, spare=None)


def start_sides(
    backend: Backend,
    priors: tuple[Prior, Prior],
    counts: tuple[int, int],
    k: int,
    seed: int,
    known: tuple[Host | None, Host | None] = (None, None),
) -> tuple[Side, Side]:
    """Users and items (N, M of them) before their first update, or with θ or β (n, K) that are known."""
    start = draw_start_values(*counts, k, *priors, seed, backend.dtype)
    drawn = ((start.user_shape, start.user_rate), (start.item_shape, start.item_rate))
    if all(mean is None for mean in known):  # what is known tells the factors apart
        priors = (priors[0].started(), priors[1].started())
    users, items = (
        start_side(backend, prior, *values) if mean is None else known_side(backend, prior, mean)
        for prior, values, mean in zip(priors, drawn, known, strict=True)
    )
    return users, items


def update_side(backend: Backend, side: Side, statistic: Array, other_sums: Array) -> Side:
    """Coordinate ascent on q(θ), then on q(ξ), given Σ yφ (N, K) and the other side's column sums (K,).

    The one update of users and of items (equations in section 3 of Gopalan, Hofman and Blei 2015).
    """
    prior = side.prior
    if prior.known:
        return side
    k = statistic.shape[1]
    prior.wake(statistic)
    prior.hold(statistic, prior.shape)
    factor, row_sums, column_sums = backend.gamma_update(
        statistic,
        prior.shape,
        (prior.posterior_hyper_shape(k) / side.hyper_rate)[:, None],
        prior.column_rates(other_sums, k, backend.asarray),
        out=None if side.spare is None else side.spare.exp_log,
    )
    return Side(prior, factor, prior.next_hyper_rate(row_sums, k), column_sums, spare=side.factor)


def blend_side(
    backend: Backend, side: Side, statistic: Array, other_sums: Array, *, scale: float, step: float
) -> Side:
    """Move q(θ) by ``step`` towards what :func:`update_side` would make of a sample; then q(ξ).

    ``statistic`` (N, K) and ``other_sums`` (K,) are of a sample of which there are ``scale`` as many on
    the other side.  The prior is counted once.  A step of 1 with the whole for a sample is the full update.
    q(ξ) depends on data through q(θ) alone, so it is always at its optimum.
    """
    prior, old, kept = side.prior, side.factor, 1.0 - step
    if prior.known:
        return side
    k = statistic.shape[1]
    statistic *= step * scale
    if kept:
        statistic += old.shape * kept
    prior.wake(statistic, kept)
    prior.hold(statistic, step * prior.shape)
    steps: Any = step
    if prior.rest == 1:  # biases had another rate while they rested: nothing of it is kept
        whole = np.full(k, step)
        whole[prior.bias] = 1.0
        steps = backend.asarray(whole)
    columns = other_sums * (steps * scale) + old.rate_columns * (1.0 - steps)
    factor, row_sums, column_sums = backend.gamma_update(
        statistic,
        step * prior.shape,
        (prior.posterior_hyper_shape(k) / side.hyper_rate)[:, None] * step + old.rate_rows * kept,
        prior.column_rates(columns, k, backend.asarray),
        out=None if side.spare is None else side.spare.exp_log,
    )
    return Side(prior, factor, prior.next_hyper_rate(row_sums, k), column_sums, spare=old)


def after_update(side: Side) -> Side:
    """The side as the next update finds it: its biases rest for one update less."""
    prior = side.prior
    return replace(side, prior=replace(prior, rest=prior.rest - 1)) if prior.rest else side


def level_side(backend: Backend, prior: Prior, n: int, k: int) -> Side:
    """A side at the start values of a fit without their noise, for rows that are folded in.

    The frozen side tells the factors apart.  All rows start alike, so a row's result does not depend on
    its place among the others.
    """
    level = np.broadcast_to(backend.dtype.type(prior.hyper_shape), (n, k))
    return start_side(backend, replace(prior, known=False, rest=0), level, level)


@dataclass(frozen=True)
class Posterior:
    """A fitted side on the host: what is kept of q(θ) and q(ξ) after the backend is gone."""

    prior: Prior
    shape: Host  # (N, K)
    rate_rows: Host  # (N, 1) float64, or (N, K) once rows were folded in
    rate_columns: Host  # (K,) float64
    hyper_rate: Host  # (N,) float64
    column_sums: Host  # (K,) float64, Σ_n E[θ_nk]

    @property
    def rate(self) -> Host:
        """Rates of q(θ), (N, K), built anew at each call."""
        rate: Host = (self.rate_rows + self.rate_columns).astype(self.shape.dtype)
        return rate

    def with_rank_one(self, other_sums: Host) -> Posterior:
        """The side with rates of rank one again: their next update, where rows were folded in."""
        if self.rate_rows.shape[1] == 1:
            return self
        k = self.shape.shape[1]
        rate_rows = self.prior.posterior_hyper_shape(k) / self.hyper_rate
        columns = self.prior.column_rates(other_sums, k)
        return replace(self, rate_rows=rate_rows[:, None], rate_columns=columns)

    def with_rows(self, rows: Host, new: Posterior, mean: Host) -> Posterior:
        """The side after other rows took the places ``rows`` (B,), some of them behind its end.

        ``mean`` (N', K) is E[θ] of the result.  Rows of the fit and new ones have different
        ``rate_columns``, so rates become a full matrix.
        """
        return Posterior(
            self.prior,
            shape=put_rows(self.shape, rows, new.shape),
            rate_rows=put_rows(self.rate, rows, new.rate),
            rate_columns=np.zeros_like(self.rate_columns),
            hyper_rate=put_rows(self.hyper_rate, rows, new.hyper_rate),
            column_sums=mean.sum(axis=0, dtype=np.float64),
        )


def with_start_rows(posterior: Posterior, n: int, rng: np.random.Generator) -> Posterior:
    """The side with ``n`` more rows behind its end, whose shapes are those that fits start with.

    Their rates are what the next update would make of them, those of rows that have no counts.
    """
    if n == 0:
        return posterior
    prior, k, dtype = posterior.prior, posterior.shape.shape[1], posterior.shape.dtype
    shape = (prior.hyper_shape + _NOISE * rng.random((n, k))).astype(dtype)
    prior.hold(shape)
    hyper_rate = prior.start_hyper_rate(k)
    rate_rows = np.full((n, 1), prior.posterior_hyper_shape(k) / hyper_rate)
    return replace(
        posterior,
        shape=np.concatenate([posterior.shape, shape]),
        rate_rows=np.concatenate([posterior.rate_rows, rate_rows]),
        hyper_rate=np.concatenate([posterior.hyper_rate, np.full(n, hyper_rate)]),
    )


def put_rows(array: Host, rows: Host, new: Host) -> Host:
    """A copy with new rows at the places ``rows`` (B,); places behind the end make it longer."""
    size = max(len(array), int(rows.max()) + 1)
    result = np.empty((size, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    result[rows] = new
    return result


def posterior_of(backend: Backend, side: Side) -> Posterior:
    """Bring one side to the host."""
    factor = side.factor
    arrays = (factor.shape, factor.rate_rows, factor.rate_columns, side.hyper_rate, side.column_sums)
    return Posterior(side.prior, *(backend.asnumpy(array) for array in arrays))


def whole_side(backend: Backend, posterior: Posterior) -> Side:
    """A fitted side with rates of rank one in the backend's memory."""
    factor, _, column_sums = backend.gamma_update(
        backend.asarray(posterior.shape),
        0.0,
        backend.asarray(posterior.rate_rows[:, 0])[:, None],
        backend.asarray(posterior.rate_columns),
    )
    return Side(posterior.prior, factor, backend.asarray(posterior.hyper_rate), column_sums, spare=None)


def frozen_side(backend: Backend, posterior: Posterior, rows: Host) -> Side:
    """Some rows (B,) of a fitted side in the backend's memory, with the column sums of all."""
    rates, matrix = posterior.rate_rows[rows], posterior.rate_rows.shape[1] > 1
    factor, _, _ = backend.gamma_update(
        backend.asarray(posterior.shape[rows]),
        0.0,
        backend.asarray(rates) if matrix else backend.asarray(rates[:, 0])[:, None],
        backend.asarray(posterior.rate_columns),
    )
    hyper_rate, sums = (backend.asarray(x) for x in (posterior.hyper_rate[rows], posterior.column_sums))
    return Side(posterior.prior, factor, hyper_rate, sums, spare=None)
