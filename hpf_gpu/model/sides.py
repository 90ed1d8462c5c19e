"""The variational state: q(θ) and q(ξ) of users and items, and their coordinate updates.

"Side" means the users or the items.  Names follow the users: θ, ξ, a, a', b'; for items read β, η, c, c', d'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Counts, Factor, Full, Host, RankOne, SideName

from .neighbours import Weights, update_weights
from .posterior import Posterior
from .priors import POINT_MASS_RATE, Prior


@dataclass(frozen=True)
class Side:
    """The variational state of some users, or of the items: q(θ), q(ξ) and Σ_n E[θ_n].

    ``factor`` has the shapes and rates of q(θ).  ``spare`` has the matrices of the factor before the last
    update, which are overwritten by the next one.  A Side itself is immutable, so the last finished one
    remains valid if an update is interrupted.  If ``fixed``, θ was passed by the user, and no update changes
    it.  ``weights`` are those of the items' neighbours, if the model has them.
    """

    prior: Prior
    factor: Factor
    hyper_rate: Array  # (N,) rate of q(ξ)
    column_sums: Array  # (K,) Σ_n E[θ_nk]
    spare: tuple[Array, Array] | None = None  # shape and exp_log, (N, K) each
    fixed: bool = False
    weights: Weights | None = None

    @property
    def spare_shape(self) -> Array | None:
        """A matrix (N, K) that may be overwritten by the next shape, or None."""
        return None if self.spare is None else self.spare[0]

    @property
    def spare_exp_log(self) -> Array | None:
        """A matrix (N, K) that may be overwritten by the next exp_log, or None."""
        return None if self.spare is None else self.spare[1]

    def without_spare(self) -> Side:
        """The side without matrices to be overwritten."""
        weights = None if self.weights is None else replace(self.weights, spare=None)
        return replace(self, spare=None, weights=weights)


@dataclass(frozen=True)
class Past:
    """What an accelerated iteration needs of a factor as it was one iteration earlier.

    ``exp_log`` is one of the side's spare matrices.
    """

    exp_log: Array  # (N, K)
    log_scale: Array  # (N,)
    ahead: Array | None = None  # (N, K), may be overwritten by exp_log of the point ahead


@dataclass(frozen=True)
class Momentum:
    """The past of every factor, see :mod:`hpf_gpu.model.acceleration`; None for a fixed side."""

    steps: Array  # (1,) iterations since it began; at most zero without momentum
    users: tuple[Past | None, ...]
    items: Past | None
    weights: Past | None


@dataclass(frozen=True)
class Model:
    """The whole variational state: one Side per block of users, and one for the items."""

    users: tuple[Side, ...]
    items: Side
    momentum: Momentum | None = None

    @property
    def user_sums(self) -> Array:
        """Σ_u E[θ_uk] over the users of all blocks, (K,)."""
        return column_sums(self.users)

    def without_spares(self) -> Model:
        """The model without momentum and without its spare matrices, so that their memory is freed."""
        return Model(tuple(side.without_spare() for side in self.users), self.items.without_spare())


def column_sums(sides: Sequence[Side]) -> Array:
    """Σ_n E[θ_nk] over the rows of several sides, (K,)."""
    first, *others = (side.column_sums for side in sides)
    for sums in others:
        first = first + sums
    return first


# -- from start values, fixed factors and fitted sides -------------------------------------------


def start_side(backend: Backend, prior: Prior, shape: Host, rate: Host) -> Side:
    """A side before its first update, with start values (N, K) for shapes and rates."""
    n, k = shape.shape
    if prior.pins:
        shape, rate = shape.copy(), rate.copy()
        prior.pin_shapes(shape)
        for pin in prior.pins:
            rate[:, pin.column] = pin.rate
    hyper_rate = np.full(n, prior.start_hyper_rate(k))
    return _side(backend, prior, shape, Full(rate), hyper_rate)


def fixed_side(backend: Backend, prior: Prior, mean: Host) -> Side:
    """A side whose θ is fixed at ``mean`` (N, K)."""
    n, k = mean.shape
    # Zero has no logarithm; 1e-30 is too small to contribute.
    shape = np.maximum(mean.astype(np.float64) * POINT_MASS_RATE, 1e-30)
    rates = RankOne(np.zeros(n), np.full(k, POINT_MASS_RATE))
    return replace(_side(backend, prior, shape, rates, np.ones(n)), fixed=True)


def noise_free_side(backend: Backend, prior: Prior, n: int, k: int) -> Side:
    """A side with N rows at the start values of a fit without noise, for fold-in.

    No noise is needed, because the other side, which is not updated, makes the factors differ.  All rows
    start from the same values, so the result for a row does not depend on its position.  Biases are not
    pinned.
    """
    level = np.broadcast_to(backend.dtype.type(prior.hyper_shape), (n, k))
    return start_side(backend, prior.with_free_biases(), level, level)


def side_from_posterior(backend: Backend, posterior: Posterior) -> Side:
    """Copy a fitted side to the backend's memory, ready to be updated."""
    side = _side(backend, posterior.prior, posterior.shape, posterior.rates, posterior.hyper_rate)
    return replace(side, fixed=posterior.fixed)


def gather_side(backend: Backend, posterior: Posterior, rows: Host) -> Side:
    """Copy some rows (B,) of a fitted side to the backend's memory, with the column sums of all rows."""
    part = posterior.rows(rows)
    side = _side(backend, part.prior, part.shape, part.rates, part.hyper_rate)
    return replace(side, column_sums=backend.asarray(posterior.column_sums), fixed=part.fixed)


def posterior_of(backend: Backend, sides: Sequence[Side]) -> Posterior:
    """Copy the sides of all blocks to the host, concatenated."""
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
    """A side from host arrays: shapes and rates of q(θ) (N, K), and rates of q(ξ) (N,)."""
    on_device = (
        RankOne(backend.asarray(rates.rows), backend.asarray(rates.columns))
        if isinstance(rates, RankOne)
        else Full(backend.asarray(rates.matrix))
    )
    factor, _, sums = backend.gamma_update(
        backend.asarray(shape), 0.0, on_device, temperature=prior.temperature
    )
    return Side(prior, factor, backend.asarray(hyper_rate), sums)


# -- updates -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """Σ yφ of one side: of its factors, and of its weights if it has them."""

    factors: Array  # (N, K)
    weights: Array | None = None  # (N, L)

    def add(self, other: Statistic) -> None:
        """Add another one to the arrays of this one."""
        factors, weights = self.factors, self.weights
        factors += other.factors
        if weights is not None:
            weights += other.weights


def allocate(
    backend: Backend,
    counts: Counts,
    users: Side,
    items: Side,
    *,
    side: SideName,
    exact: bool = False,
    into_spare: tuple[bool, bool] = (True, True),
) -> tuple[Statistic | None, Statistic | None]:
    """Allocate every count to the factors, and to neighbours if the items have weights.

    Returns the statistics of users and of items; None for a side that ``side`` does not ask for.
    ``into_spare`` says which sides' spare matrices may be overwritten.
    """
    users_into, items_into = (
        one.spare_shape if may else None for one, may in zip((users, items), into_spare, strict=True)
    )
    weights, of_weights = items.weights, None
    if weights is None:
        of_users, of_items = backend.allocate(
            counts, users.factor, items.factor, side=side, exact=exact, out=(users_into, items_into)
        )
    else:
        out = (users_into, items_into, weights.spare_shape if into_spare[1] else None)
        of_users, of_items, of_weights = backend.allocate_with_neighbours(
            counts, users.factor, items.factor, weights.factor, side=side, exact=exact, out=out
        )
    return (
        None if of_users is None else Statistic(of_users),
        None if of_items is None else Statistic(of_items, of_weights),
    )


def update_side(
    backend: Backend,
    side: Side,
    statistic: Statistic,
    other_sums: Array,
    *,
    scale: float = 1.0,
    step: float = 1.0,
) -> Side:
    """Update q(θ), then q(ξ), and q(w) if there are weights, of users or items; full-batch or stochastic.

    The coordinate update is, with Σ_i E[β_ik] in ``other_sums`` (Gopalan, Hofman and Blei 2015, section 3)::

        shape_uk = a + Σ_i y_ui φ_uik        rate_uk = E[ξ_u] + Σ_i E[β_ik]

    and the rate of q(ξ_u) is a'/b' + Σ_k E[θ_uk].  A stochastic update (Hoffman et al. 2013) moves shape and
    rate by ``step`` towards these values.  q(ξ) is always set to its optimum.

    Parameters
    ----------
    backend : Backend
    side : Side
        N rows; unchanged, but for weights, if fixed.
    statistic : Statistic
        Σ yφ, which is overwritten.
    other_sums : Array, (K,)
        Σ_i E[β_ik] over the other side (for items Σ_u E[θ_uk]).
    scale : float
        Factor for both sums, if they come from a sample that is 1/scale of the other side.  The prior is
        not scaled.
    step : float
        In [0, 1].  Below 1 the side's rates must have rank one.

    Returns
    -------
    Side
        Its ``spare`` has the matrices of the argument ``side``.
    """
    if side.weights is not None and statistic.weights is not None:
        weights = update_weights(backend, side.weights, statistic.weights, scale=scale, step=step)
        side = replace(side, weights=weights)
    if side.fixed:
        return side
    prior, old, kept, total = side.prior, side.factor, 1.0 - step, statistic.factors
    k = total.shape[1]
    rows = prior.posterior_hyper_shape(k) / side.hyper_rate  # E[ξ]
    if step * scale != 1.0:
        total *= step * scale
        other_sums = other_sums * (step * scale)
    if kept and isinstance(old.rates, RankOne):
        total += old.shape * kept
        rows = rows * step + old.rates.rows * kept
        other_sums = other_sums + old.rates.columns * kept
    prior.pin_shapes(total, step * prior.shape)  # gamma_update adds step·a to every entry
    factor, row_sums, sums = backend.gamma_update(
        total,
        step * prior.shape,
        RankOne(rows, prior.column_rates(other_sums)),
        side.spare_exp_log,
        prior.temperature,
    )
    hyper_rate = prior.next_hyper_rate(row_sums, k)
    return replace(side, factor=factor, hyper_rate=hyper_rate, column_sums=sums, spare=old.matrices)
