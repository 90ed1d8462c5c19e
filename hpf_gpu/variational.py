"""The model's variational family: priors, the state of one side, start values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .backends.protocol import Array, Backend, Counts, Factor, Host

_NOISE = 0.01  # of start values


@dataclass(frozen=True)
class Prior:
    """θ_nk ~ Gamma(shape, ξ_n),  ξ_n ~ Gamma(hyper_shape, hyper_shape / hyper_mean).

    For users these are a, a', b' of Gopalan, Hofman and Blei (2015), for items c, c', d'.
    """

    shape: float
    hyper_shape: float
    hyper_mean: float

    @property
    def hyper_rate(self) -> float:
        """Prior rate a'/b' of ξ."""
        return self.hyper_shape / self.hyper_mean

    def posterior_hyper_shape(self, k: int) -> float:
        """Shape a' + K·a of q(ξ), which no data changes."""
        return self.hyper_shape + k * self.shape


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


def start_side(backend: Backend, prior: Prior, shape: Host, rate: Host) -> Side:
    """A side before its first update, with full matrices (N, K) for shape and rate."""
    n, k = shape.shape
    factor, _, column_sums = backend.gamma_update(
        backend.asarray(shape), 0.0, backend.asarray(rate), backend.asarray(np.zeros(k))
    )
    return Side(prior, factor, backend.asarray(np.full(n, prior.hyper_mean)), column_sums, spare=None)


def update_side(backend: Backend, side: Side, statistic: Array, other_sums: Array) -> Side:
    """Coordinate ascent on q(θ), then on q(ξ), given Σ yφ (N, K) and the other side's column sums (K,).

    The one update of users and of items (equations in section 3 of Gopalan, Hofman and Blei 2015).
    """
    hyper_shape = side.prior.posterior_hyper_shape(statistic.shape[1])
    factor, row_sums, column_sums = backend.gamma_update(
        statistic,
        side.prior.shape,
        (hyper_shape / side.hyper_rate)[:, None],
        other_sums,
        out=None if side.spare is None else side.spare.exp_log,
    )
    return Side(side.prior, factor, side.prior.hyper_rate + row_sums, column_sums, spare=side.factor)


def blend_side(
    backend: Backend, side: Side, statistic: Array, other_sums: Array, *, scale: float, step: float
) -> Side:
    """Move q(θ) by ``step`` towards what :func:`update_side` would make of a sample; then q(ξ).

    ``statistic`` (N, K) and ``other_sums`` (K,) are of a sample of which there are ``scale`` as many on
    the other side.  The prior is counted once.  A step of 1 with the whole for a sample is the full update.
    q(ξ) depends on data through q(θ) alone, so it is always at its optimum.
    """
    old, kept = side.factor, 1.0 - step
    hyper_shape = side.prior.posterior_hyper_shape(statistic.shape[1])
    statistic *= step * scale
    if kept:
        statistic += old.shape * kept
    factor, row_sums, column_sums = backend.gamma_update(
        statistic,
        step * side.prior.shape,
        (hyper_shape / side.hyper_rate)[:, None] * step + old.rate_rows * kept,
        other_sums * (step * scale) + old.rate_columns * kept,
        out=None if side.spare is None else side.spare.exp_log,
    )
    return Side(side.prior, factor, side.prior.hyper_rate + row_sums, column_sums, spare=old)


def level_side(backend: Backend, prior: Prior, n: int, k: int) -> Side:
    """A side at the start values of a fit without their noise, for rows that are folded in.

    The frozen side tells the factors apart.  All rows start alike, so a row's result does not depend on
    its place among the others.
    """
    level = np.broadcast_to(backend.dtype.type(prior.hyper_shape), (n, k))
    return start_side(backend, prior, level, level)


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
        rate_rows = self.prior.posterior_hyper_shape(self.shape.shape[1]) / self.hyper_rate
        return replace(self, rate_rows=rate_rows[:, None], rate_columns=other_sums)

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
    rate_rows = np.full((n, 1), prior.posterior_hyper_shape(k) / prior.hyper_mean)
    return replace(
        posterior,
        shape=np.concatenate([posterior.shape, shape]),
        rate_rows=np.concatenate([posterior.rate_rows, rate_rows]),
        hyper_rate=np.concatenate([posterior.hyper_rate, np.full(n, prior.hyper_mean)]),
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
