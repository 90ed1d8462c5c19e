"""The item-to-item term: weights w of items that occur together.

Beside θ_u·β_i, a count may come from another item that the user has::

    y_ui ~ Poisson(θ_u·β_i + Σ_l w_il),    w_il ~ Gamma(s, r)

over those of the L neighbours of item i (its sources) that user u has.  This is conjugate like the rest: each
count is allocated to the factors and to the neighbours that the user has, and q(w_il) has the shape
s + Σ_u y_ui φ_uil and the rate r + n, where n users have the source.  The term without factors, given the
items of each user, is what Chaney, Blei and Eliassi-Rad (2015) have for a user's friends.

φ is tempered: proportional to exp(E[ln ·]/T).  At T = 1 weights that explain a few counts well take them
from all others, and fits of many iterations recommend worse than fits of five; at T = 1.25 they do not.
Coordinate ascent then maximizes the ELBO with the entropy of φ counted T times, as at one temperature of
deterministic annealing (Katahira, Watanabe and Okada 2008).  It never falls, but is no lower bound of the
evidence if T > 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from hpf_gpu.backends.protocol import Array, Backend, Factor, Full, Host, RankOne, Rates

#: Items of a user that count for the choice of neighbours; of users with more, so many are drawn.
MOST_ITEMS = 1000


@dataclass(frozen=True)
class WeightPrior:
    """w_il ~ Gamma(shape, rate), and the temperature of φ."""

    shape: float
    rate: float
    temperature: float


@dataclass(frozen=True)
class Weights:
    """q(w) during a fit.  ``spare`` is as in :class:`hpf_gpu.model.sides.Side`."""

    prior: WeightPrior
    factor: Factor  # (M, L)
    rates: Rates  # (M, L) of q(w) after every update
    spare: tuple[Array, Array] | None = None  # shape and exp_log, (M, L) each

    @property
    def spare_shape(self) -> Array | None:
        """A matrix (M, L) that may be overwritten by the next shape, or None."""
        return None if self.spare is None else self.spare[0]


def choose_sources(backend: Backend, csr: sparse.csr_array, n: int) -> Host:
    """At most ``n`` neighbours of each item, (M, n) int32, from counts (N, M).

    They are the items with the largest n_ij ln(n_ij N / (n_i n_j)): the number of users with both, times the
    logarithm of how much larger it is than by chance.
    """
    return backend.choose_neighbours(_thinned(csr), n)


def _thinned(csr: sparse.csr_array) -> sparse.csr_array:
    """The counts with at most MOST_ITEMS of each user, drawn at random, so that work is not quadratic."""
    sizes = np.diff(csr.indptr)
    if sizes.max(initial=0) <= MOST_ITEMS:
        return csr
    kept, rng = np.ones(csr.nnz, bool), np.random.default_rng(0)
    for u in np.flatnonzero(sizes > MOST_ITEMS):
        row = kept[csr.indptr[u] : csr.indptr[u + 1]]
        row[rng.permutation(len(row))[MOST_ITEMS:]] = False
    indptr = np.concatenate([[0], np.cumsum(kept)])[csr.indptr].astype(csr.indptr.dtype)
    return sparse.csr_array((csr.data[kept], csr.indices[kept], indptr), shape=csr.shape)


def users_with_sources(sources: Host, users_with: Host) -> Host:
    """Number of users that have each source, (M, L), from that of each item, (M,); zero beyond the last."""
    return np.where(sources >= 0, users_with[sources], 0.0)


def start_weights(
    backend: Backend, prior: WeightPrior, sources: Host, users_with: Host, totals: Host
) -> Weights:
    """The weights before their first update: equal within an item, so that they explain half of its counts.

    ``users_with`` and ``totals`` (M,) are the number of users and the sum of the counts of each item.
    """
    n = users_with_sources(sources, users_with)
    expected = 0.5 * totals / np.maximum(n.sum(axis=1), 1.0)
    rows = 1.0 / np.maximum(expected, np.finfo(np.float32).tiny)
    shape = np.where(sources >= 0, 1.0, prior.shape)  # no update changes those beyond the last neighbour
    rates = RankOne(backend.asarray(rows), backend.asarray(np.zeros(sources.shape[1])))
    return _weights(backend, prior, shape, rates, prior.rate + n)


def _weights(backend: Backend, prior: WeightPrior, shape: Host, rates: Rates, later: Host) -> Weights:
    """The weights with these shapes and rates (M, L), and with the rates ``later`` after every update."""
    factor, *_ = backend.gamma_update(backend.asarray(shape), 0.0, rates, temperature=prior.temperature)
    return Weights(prior, factor, Full(backend.asarray(later)))


def weights_of_shapes(backend: Backend, weights: Weights, shape: Host) -> Weights:
    """The weights with other shapes (M, L), and with the rates that they have after every update."""
    factor, *_ = backend.gamma_update(
        backend.asarray(shape), 0.0, weights.rates, temperature=weights.prior.temperature
    )
    return Weights(weights.prior, factor, weights.rates)


def update_weights(
    backend: Backend, weights: Weights, statistic: Array, *, scale: float = 1.0, step: float = 1.0
) -> Weights:
    """Update q(w) with Σ yφ (M, L), which is overwritten; ``scale`` and ``step`` as for update_side."""
    if step * scale != 1.0:
        statistic *= step * scale
    if step != 1.0:
        statistic += weights.factor.shape * (1.0 - step)
    factor, *_ = backend.gamma_update(
        statistic,
        step * weights.prior.shape,
        weights.rates,
        None if weights.spare is None else weights.spare[1],
        weights.prior.temperature,
    )
    return replace(weights, factor=factor, spare=weights.factor.matrices)


# -- of a fitted model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """Sources and q(w) of a fitted model."""

    prior: WeightPrior
    sources: Host  # (M, L) int32
    shape: Host  # (M, L)
    users_with: Host  # (M,) float64, number of users that have each item

    @property
    def rate(self) -> Host:
        """Rates of q(w), (M, L) float64."""
        rate: Host = self.prior.rate + users_with_sources(self.sources, self.users_with)
        return rate

    @cached_property
    def mean(self) -> Host:
        """E[w], (M, L); zero where an item has fewer neighbours."""
        mean: Host = np.where(self.sources >= 0, self.shape / self.rate, 0.0).astype(self.shape.dtype)
        return mean

    @cached_property
    def by_source(self) -> sparse.csr_array:
        """E[w] with a row for the source and a column for the item that it adds to, (M, M)."""
        matrix = self.by_target.T.tocsr()
        matrix.sort_indices()
        return matrix

    @property
    def by_target(self) -> sparse.csr_array:
        """The same with a row for the item that is added to, and a column for the source."""
        return self.matrix(self.mean, slice(None))

    def matrix(self, values: Host, items: Host | slice) -> sparse.csr_array:
        """Values (M', L) for the neighbours of some items, as a matrix (M', M) with columns for sources."""
        sources = self.sources[items]
        real = sources >= 0
        indptr = np.concatenate([[0], np.cumsum(real.sum(axis=1))])
        shape = len(sources), len(self.sources)
        return sparse.csr_array((values[real], sources[real], indptr), shape=shape)

    def among(self, numbers: Host) -> Neighbours:
        """The neighbours of some items, ``numbers`` (M',) ascending, that are themselves among them."""
        place = np.full(len(self.sources) + 1, -1, np.int32)  # one behind the last, for sources of −1
        place[numbers] = np.arange(len(numbers))
        sources = place[self.sources[numbers]]
        items, columns = np.nonzero(sources >= 0)
        starts = np.searchsorted(items, np.arange(len(numbers) + 1))
        into = items, np.arange(len(items)) - starts[items]  # of the sources that are left, in their order
        size = len(numbers), max(1, int(np.diff(starts).max(initial=0)))
        kept, shape = np.full(size, -1, np.int32), np.full(size, self.prior.shape, self.shape.dtype)
        kept[into], shape[into] = sources[items, columns], self.shape[numbers[items], columns]
        return Neighbours(self.prior, kept, shape, self.users_with[numbers])

    def with_items(self, size: int) -> Neighbours:
        """The same for more items, ``size`` in all, of which the new ones have no neighbours."""
        more = size - len(self.sources)
        return Neighbours(
            self.prior,
            np.pad(self.sources, ((0, more), (0, 0)), constant_values=-1),
            np.pad(self.shape, ((0, more), (0, 0)), constant_values=self.prior.shape),
            np.pad(self.users_with, (0, more)),
        )

    def start(self, backend: Backend, users_with: Host | None = None) -> Weights:
        """The weights in the backend's memory, ready to be updated.

        ``users_with`` (M,) are the numbers of users after the update, if they change.
        """
        rate = self.rate
        later = rate if users_with is None else replace(self, users_with=users_with).rate
        return _weights(backend, self.prior, self.shape, Full(backend.asarray(rate)), later)


def neighbours_of(backend: Backend, weights: Weights, sources: Host, users_with: Host) -> Neighbours:
    """Copy the weights of a fit to the host."""
    return Neighbours(weights.prior, sources, backend.asnumpy(weights.factor.shape), users_with)
