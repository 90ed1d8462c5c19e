"""Poisson log-likelihoods and the evidence lower bound (ELBO), in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Factor, Full, Host, RankOne
from hpf_gpu.data.blocks import CountBlocks, Pairs
from hpf_gpu.data.seen import UserItems, users_with

from .convergence import Check
from .neighbours import Weights, users_with_sources
from .priors import Pin, Prior
from .sides import Model, Side
from .snapshot import Snapshot

_CHUNK = 1 << 16  # counts whose temporaries exist at once


@dataclass(frozen=True)
class Having:
    """Which items users have in the training data, for models with neighbours."""

    items: UserItems  # of the N users
    sources: Host  # (M, L)
    users_with: Host  # (M,) number of users that have each item

    @staticmethod
    def of(items: UserItems, sources: Host) -> Having:
        """For the items of each user."""
        return Having(items, sources, users_with(items, len(sources)))

    def rates(self, backend: Backend, w: Array, users: slice, pairs: Pairs) -> Host:
        """Σ_l w_il over the neighbours that the user has, for pairs (Z,) of some of the users."""
        indptr, indices = self.items
        starts = indptr[users.start : users.stop + 1]
        own = (starts - starts[0], indices[starts[0] : starts[-1]])
        return backend.neighbour_rates(own, self.sources, w, pairs.rows, pairs.columns)

    def expected_total(self, w: Host) -> float:
        """Σ_ui Σ_l w_il over the neighbours that the users have, for weights (M, L)."""
        total, step = 0.0, max(1, _CHUNK // w.shape[1])
        for start in range(0, len(w), step):
            rows = slice(start, start + step)
            users_with = users_with_sources(self.sources[rows], self.users_with)
            total += float(np.einsum("il,il->", users_with, w[rows], dtype=np.float64))
        return total


@dataclass(frozen=True)
class Objective:
    """Computes log-likelihoods and the ELBO of a model on its training data.

    ``log_factorial_sum`` is Σ ln y! of the training counts.  It is constant during a fit, always part of
    the ELBO, and part of the log-likelihood if ``full_llk``.  Checks compute the ELBO, which takes a second
    pass over the nonzeros, only with ``elbo_at_checks``.
    """

    backend: Backend
    blocks: CountBlocks
    log_factorial_sum: float
    full_llk: bool
    elbo_at_checks: bool
    having: Having | None = None

    @staticmethod
    def of(
        backend: Backend,
        blocks: CountBlocks,
        *,
        full_llk: bool,
        elbo_at_checks: bool,
        having: Having | None = None,
    ) -> Objective:
        """The objective for these counts; ``having`` if the model has neighbours."""
        total = sum(backend.log_factorial_sum(block.counts) for block in blocks)
        return Objective(backend, blocks, float(total), full_llk, elbo_at_checks, having)

    def check(
        self,
        model: Model,
        iteration: int,
        thetas: Sequence[Array] | None = None,
        earlier: Sequence[Array] = (),
    ) -> Check:
        """Training log-likelihood, held-out log-likelihood (NaN without held-out data) and ELBO if asked for.

        ``thetas`` are E[θ] of each block (rows of the block, K), if they have been computed already; with
        ``earlier``, those of an earlier check, the norm of their change is part of the check.
        """
        check = self.check_of_users(model, thetas, earlier)
        if self.elbo_at_checks:
            check = replace(check, elbo=check.elbo + self.elbo_of_items(model.items))
        return replace(check, iteration=iteration)

    def check_of_users(
        self, model: Model, thetas: Sequence[Array] | None = None, earlier: Sequence[Array] = ()
    ) -> Check:
        """The same but for the terms of q(β) and q(w) in the ELBO: all that is left are sums over users."""
        beta, w = self.backend.mean(model.items.factor), self._mean_weights(model)
        log_rates, held_out = 0.0, []
        means = (self.backend.mean(users.factor) for users in model.users) if thetas is None else thetas
        for block, theta in zip(self.blocks, means, strict=True):
            log_rates += self.backend.log_rate_sum(block.counts, theta, beta, w)
            if block.validation is not None:
                pairs = block.validation
                rates = self.backend.predict_pairs(theta, beta, pairs.rows, pairs.columns)
                if w is not None and self.having is not None:
                    rates = rates + self.having.rates(self.backend, w, block.users, pairs)
                held_out.append(pair_llk(rates, pairs, full_llk=self.full_llk))
        expected = self._expected_total(model, w)
        llk = log_rates - expected
        if self.full_llk:
            llk -= self.log_factorial_sum
        norms = [self.backend.distance(a, b) for a, b in zip(thetas or (), earlier, strict=bool(earlier))]
        return Check(
            0,
            llk=llk,
            elbo=self._elbo_of_users(model, expected) if self.elbo_at_checks else math.nan,
            val_llk=sum(held_out) if held_out else math.nan,
            diff_norm=math.hypot(*norms) if norms else math.nan,
        )

    def elbo(self, model: Model) -> float:
        """The evidence lower bound with φ at its optimum, all constants included."""
        return self.elbo_of_users(model) + self.elbo_of_items(model.items)

    def elbo_of_users(self, model: Model) -> float:
        """The same but for the terms of q(β) and q(w): all that is left are sums over users."""
        return self._elbo_of_users(model, self._expected_total(model, self._mean_weights(model)))

    def elbo_of_items(self, items: Side) -> float:
        """What q(β), q(η) and q(w) add to the ELBO."""
        weights = items.weights
        return self._elbo_of_side(items) + (0.0 if weights is None else self._elbo_of_weights(weights))

    def means(self, model: Model) -> tuple[Array, ...]:
        """E[θ] of each block (rows of the block, K)."""
        return tuple(self.backend.mean(users.factor) for users in model.users)

    def snapshot(self, model: Model) -> Snapshot:
        """A copy of this model, on the host."""
        return Snapshot.of(self.backend, model)

    def restored(self, snapshot: Snapshot, later: Model) -> Model:
        """The model of a snapshot, in the blocks of a later one."""
        return snapshot.restored(self.backend, later)

    def _elbo_of_users(self, model: Model, expected: float) -> float:
        """Sums over users in the ELBO, given the sum of the expected rates of all pairs."""
        weights = model.items.weights
        log_normalizers = sum(
            self.backend.log_normalizer_sum(
                block.counts, users.factor, model.items.factor, None if weights is None else weights.factor
            )
            for block, users in zip(self.blocks, model.users, strict=True)
        )
        total = sum(self._elbo_of_side(users) for users in model.users)
        return total + log_normalizers - expected - self.log_factorial_sum

    def _elbo_of_side(self, side: Side) -> float:
        """Terms of θ and ξ; fixed sides and pinned columns have none, because their q equals their prior."""
        prior, k = side.prior, side.factor.shape.shape[1]
        if side.fixed or len(prior.pins) == k:
            return 0.0
        free = _without_pins(self.backend, side.factor, prior.pins) if prior.pins else side.factor
        return self._gamma_elbo(free, prior, side.hyper_rate, k)

    def _elbo_of_weights(self, weights: Weights) -> float:
        """Terms of w, whose prior has a fixed rate."""
        n, k = weights.factor.shape.shape
        prior = Prior(weights.prior.shape, 1.0, weights.prior.rate, hierarchical=False)
        hyper_rate = self.backend.asarray(np.full(n, prior.start_hyper_rate(k)))
        return self._gamma_elbo(weights.factor, prior, hyper_rate, k)

    def _gamma_elbo(self, free: Factor, prior: Prior, hyper_rate: Array, k: int) -> float:
        """Terms of θ and ξ for a factor without pinned columns, with ``k`` columns with them."""
        n = free.shape.shape[0]
        total: float = self.backend.gamma_elbo(
            free, hyper_rate, prior.shape, prior.hyper_shape, prior.hyper_rate
        )
        if prior.hierarchical:
            return total
        # ξ is the constant b', so the terms that the backend has added for its distribution are subtracted.
        excess = (prior.hyper_shape, prior.posterior_hyper_shape(k))
        without, counted = (math.lgamma(x) - x * math.log(x) + x for x in excess)
        return total + int(n) * (without - counted)

    def _mean_weights(self, model: Model) -> Array | None:
        weights = model.items.weights
        return None if weights is None else self.backend.mean(weights.factor)

    def _expected_total(self, model: Model, w: Array | None) -> float:
        """Sum of the expected rates of all pairs, including those without a count."""
        total = float((model.user_sums * model.items.column_sums).sum())
        if w is not None and self.having is not None:
            total += self.having.expected_total(self.backend.asnumpy(w))
        return total


def _without_pins(backend: Backend, factor: Factor, pins: tuple[Pin, ...]) -> Factor:
    """The factor without its pinned columns."""
    left = np.delete(np.arange(factor.shape.shape[1]), [pin.column for pin in pins])
    rates = factor.rates
    return replace(
        factor,
        shape=backend.select_columns(factor.shape, left),
        rates=RankOne(rates.rows, backend.select_rows(rates.columns, left))
        if isinstance(rates, RankOne)
        else Full(backend.select_columns(rates.matrix, left)),
        exp_log=backend.select_columns(factor.exp_log, left),
    )


def pair_llk(rates: Host, pairs: Pairs, *, full_llk: bool) -> float:
    """Poisson log-likelihood of these pairs, not of absent ones; without −Σ ln y! unless ``full_llk``.

    ``rates`` (Z,) are their expected counts.
    """
    rates = rates.astype(np.float64)
    # A rate below the range of float32 is zero here; its logarithm must stay finite.
    log_rates = np.log(np.maximum(rates, np.finfo(np.float64).tiny))
    llk = float(np.dot(pairs.values.astype(np.float64), log_rates) - rates.sum())
    return llk - log_factorial_sum(pairs.values) if full_llk else llk


def log_factorial_sum(counts: Host) -> float:
    """Σ ln y! in float64 for counts (Z,), which need not be integers."""
    chunks = (counts[start : start + _CHUNK] for start in range(0, len(counts), _CHUNK))
    from scipy.special import gammaln  # which takes a tenth of the time to import HPF

    return float(sum(gammaln(chunk.astype(np.float64) + 1.0).sum() for chunk in chunks))
