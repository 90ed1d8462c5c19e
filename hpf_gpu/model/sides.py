"""The variational state: q(θ) and q(ξ) of one side, and how updates move them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Factor, Full, Host, RankOne

from .posterior import Posterior
from .priors import POINT_MASS_RATE, Prior


@dataclass(frozen=True)
class Side:
    """Some users, or the items: q(θ), q(ξ), and what the other side needs of them.

    A Side is never changed, so the last one that was finished stays usable whatever interrupts the next.
    ``spare`` is the factor before this one, whose matrices are no longer needed: the next update overwrites
    them.  If ``fixed``, θ is given and no update changes it.
    """

    prior: Prior
    factor: Factor
    hyper_rate: Array  # (N,) rate of q(ξ)
    column_sums: Array  # (K,) Σ_n E[θ_nk]
    spare: Factor | None = None
    fixed: bool = False

    @property
    def spare_shape(self) -> Array | None:
        """A matrix (N, K) to overwrite, if there is one."""
        return None if self.spare is None else self.spare.shape


@dataclass(frozen=True)
class Model:
    """The whole variational state: a side for the users of each block of counts, and the items."""

    users: tuple[Side, ...]
    items: Side

    @property
    def user_sums(self) -> Array:
        """Σ_u E[θ_uk] over all blocks, (K,)."""
        return column_sums(self.users)


def column_sums(sides: Sequence[Side]) -> Array:
    """Σ_n E[θ_nk] over the rows of several sides, (K,)."""
    first, *others = (side.column_sums for side in sides)
    for sums in others:
        first = first + sums
    return first


# -- from start values, given factors and fitted sides -------------------------------------------


def start_side(backend: Backend, prior: Prior, shape: Host, rate: Host) -> Side:
    """A side before its first update, with start values (N, K) for shape and rate."""
    n, k = shape.shape
    if prior.pins:
        shape, rate = shape.copy(), rate.copy()
        prior.pin_shapes(shape)
        for pin in prior.pins:
            rate[:, pin.column] = pin.rate
    hyper_rate = np.full(n, prior.start_hyper_rate(k))
    return _side(backend, prior, shape, Full(rate), hyper_rate)


def fixed_side(backend: Backend, prior: Prior, mean: Host) -> Side:
    """A side whose θ are given, (N, K), and stay."""
    n, k = mean.shape
    # Zero has no logarithm: this is so far below all else that it adds nothing.
    shape = np.maximum(mean.astype(np.float64) * POINT_MASS_RATE, 1e-30)
    rates = RankOne(np.zeros(n), np.full(k, POINT_MASS_RATE))
    return replace(_side(backend, prior, shape, rates, np.ones(n)), fixed=True)


def noise_free_side(backend: Backend, prior: Prior, n: int, k: int) -> Side:
    """A side at the start values of a fit without their noise, for rows that are folded in.

    The other side, which stays as it is, makes the factors differ.  All rows start alike, so a row's result
    does not depend on its place among the others.  Their biases do not wait.
    """
    level = np.broadcast_to(backend.dtype.type(prior.hyper_shape), (n, k))
    return start_side(backend, prior.with_free_biases(), level, level)


def side_from_posterior(backend: Backend, posterior: Posterior) -> Side:
    """A fitted side in the backend's memory, ready to be updated."""
    side = _side(backend, posterior.prior, posterior.shape, posterior.rates, posterior.hyper_rate)
    return replace(side, fixed=posterior.fixed)


def gather_side(backend: Backend, posterior: Posterior, rows: Host) -> Side:
    """Some rows (B,) of a fitted side in the backend's memory, with the column sums of all."""
    part = posterior.rows(rows)
    side = _side(backend, part.prior, part.shape, part.rates, part.hyper_rate)
    return replace(side, column_sums=backend.asarray(posterior.column_sums), fixed=part.fixed)


def posterior_of(backend: Backend, sides: Sequence[Side]) -> Posterior:
    """Bring the sides of one block after the other to the host, as one."""
    posteriors = []
    for side in sides:
        rates = side.factor.rates
        posteriors.append(
            Posterior(
                side.prior,
                backend.asnumpy(side.factor.shape),
                RankOne(backend.asnumpy(rates.rows), backend.asnumpy(rates.columns))
                if isinstance(rates, RankOne)
                else Full(backend.asnumpy(rates.matrix)),
                backend.asnumpy(side.hyper_rate),
                backend.asnumpy(side.column_sums),
                side.fixed,
            )
        )
    return Posterior.joined(posteriors)


def _side(backend: Backend, prior: Prior, shape: Host, rates: RankOne | Full, hyper_rate: Host) -> Side:
    """A side of host arrays: shapes (N, K), rates (N, K) and rates of q(ξ) (N,)."""
    on_device = (
        RankOne(backend.asarray(rates.rows), backend.asarray(rates.columns))
        if isinstance(rates, RankOne)
        else Full(backend.asarray(rates.matrix))
    )
    factor, _, sums = backend.gamma_update(backend.asarray(shape), 0.0, on_device)
    return Side(prior, factor, backend.asarray(hyper_rate), sums)


# -- updates -------------------------------------------------------------------------------------


def update_side(
    backend: Backend,
    side: Side,
    statistic: Array,
    other_sums: Array,
    *,
    scale: float = 1.0,
    step: float = 1.0,
) -> Side:
    """Coordinate ascent on q(θ), then on q(ξ), given Σ yφ (N, K) and the other side's column sums (K,).

    The one update of users and of items (equations in section 3 of Gopalan, Hofman and Blei 2015), full and
    stochastic.  ``statistic``, which is overwritten, and ``other_sums`` may be of a sample of the other side
    that is one of ``scale``; the prior is counted once.  With a ``step`` below 1, for which the side's rates
    must be of rank one, q(θ) moves by that much towards the optimum.  q(ξ) depends on data through q(θ)
    alone, so it is always at its optimum.
    """
    prior, old, kept = side.prior, side.factor, 1.0 - step
    if side.fixed:
        return side
    k = statistic.shape[1]
    rows = prior.posterior_hyper_shape(k) / side.hyper_rate
    if step * scale != 1.0:
        statistic *= step * scale
        other_sums = other_sums * (step * scale)
    if kept and isinstance(old.rates, RankOne):
        statistic += old.shape * kept
        rows = rows * step + old.rates.rows * kept
        other_sums = other_sums + old.rates.columns * kept
    prior.pin_shapes(statistic, step * prior.shape)
    factor, row_sums, sums = backend.gamma_update(
        statistic,
        step * prior.shape,
        RankOne(rows, prior.column_rates(other_sums, k, backend.asarray)),
        out=None if side.spare is None else side.spare.exp_log,
    )
    return replace(
        side, factor=factor, hyper_rate=prior.next_hyper_rate(row_sums, k), column_sums=sums, spare=old
    )
