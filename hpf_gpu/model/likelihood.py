"""Poisson log-likelihoods and the evidence lower bound (ELBO), in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaln

from hpf_gpu.backends.protocol import Array, Backend, Factor, Full, Host, RankOne
from hpf_gpu.data.blocks import CountBlocks, Pairs

from .convergence import Check
from .priors import Pin
from .sides import Model, Side

_CHUNK = 1 << 16  # counts whose temporaries exist at once


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

    @staticmethod
    def of(backend: Backend, blocks: CountBlocks, *, full_llk: bool, elbo_at_checks: bool) -> Objective:
        """The objective for these counts."""
        total = sum(backend.log_factorial_sum(block.counts) for block in blocks)
        return Objective(backend, blocks, float(total), full_llk, elbo_at_checks)

    def check(self, model: Model, iteration: int, thetas: Iterable[Array] | None = None) -> Check:
        """Training log-likelihood, held-out log-likelihood (NaN without held-out data) and ELBO if asked for.

        ``thetas`` are E[θ] of each block (rows of the block, K), if they have been computed already.
        """
        if thetas is None:
            thetas = (self.backend.mean(users.factor) for users in model.users)
        beta = self.backend.mean(model.items.factor)
        log_rates, held_out = 0.0, []
        for block, theta in zip(self.blocks, thetas, strict=True):
            log_rates += self.backend.log_rate_sum(block.counts, theta, beta)
            if block.validation is not None:
                held_out.append(pair_llk(self.backend, theta, beta, block.validation, full_llk=self.full_llk))
        llk = log_rates - _expected_total(model)
        if self.full_llk:
            llk -= self.log_factorial_sum
        return Check(
            iteration,
            llk=llk,
            elbo=self.elbo(model) if self.elbo_at_checks else math.nan,
            val_llk=sum(held_out) if held_out else math.nan,
        )

    def elbo(self, model: Model) -> float:
        """The evidence lower bound with φ at its optimum, all constants included."""
        log_normalizers = sum(
            self.backend.log_normalizer_sum(block.counts, users.factor, model.items.factor)
            for block, users in zip(self.blocks, model.users, strict=True)
        )
        total = sum(self._gamma_elbo(side) for side in (model.items, *model.users))
        return total + log_normalizers - _expected_total(model) - self.log_factorial_sum

    def _gamma_elbo(self, side: Side) -> float:
        """Terms of θ and ξ; fixed sides and pinned columns have none, because their q equals their prior."""
        prior, (n, k) = side.prior, side.factor.shape.shape
        if side.fixed:
            return 0.0
        free = _without_pins(self.backend, side.factor, prior.pins) if prior.pins else side.factor
        total: float = self.backend.gamma_elbo(
            free, side.hyper_rate, prior.shape, prior.hyper_shape, prior.hyper_rate
        )
        if prior.hierarchical:
            return total
        # ξ is the constant b', so the terms that the backend has added for its distribution are subtracted.
        excess = (prior.hyper_shape, prior.posterior_hyper_shape(k))
        without, counted = (math.lgamma(x) - x * math.log(x) + x for x in excess)
        return total + int(n) * (without - counted)


def _expected_total(model: Model) -> float:
    """Σ_ui E[θ_u]·E[β_i] over all pairs, including those without a count."""
    return float((model.user_sums * model.items.column_sums).sum())


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


def pair_llk(backend: Backend, theta: Array, beta: Array, pairs: Pairs, *, full_llk: bool) -> float:
    """Poisson log-likelihood of these pairs, not of absent ones; without −Σ ln y! unless ``full_llk``."""
    rates = backend.predict_pairs(theta, beta, pairs.rows, pairs.columns).astype(np.float64)
    # A rate below the range of float32 is zero here; its logarithm must stay finite.
    log_rates = np.log(np.maximum(rates, np.finfo(np.float64).tiny))
    llk = float(np.dot(pairs.values.astype(np.float64), log_rates) - rates.sum())
    return llk - log_factorial_sum(pairs.values) if full_llk else llk


def log_factorial_sum(counts: Host) -> float:
    """Σ ln y! in float64 for counts (Z,), which need not be integers."""
    chunks = (counts[start : start + _CHUNK] for start in range(0, len(counts), _CHUNK))
    return float(sum(gammaln(chunk.astype(np.float64) + 1.0).sum() for chunk in chunks))
