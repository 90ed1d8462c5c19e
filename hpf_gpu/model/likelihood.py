"""What a fit is judged by: Poisson log-likelihoods and the evidence lower bound, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaln

from hpf_gpu.backends.protocol import Array, Backend, Factor, Host

from .convergence import Check
from .variational import Block, Model, Pairs, Side

_CHUNK = 1 << 16  # counts whose temporaries are held at once


@dataclass(frozen=True)
class Objective:
    """The objective of a model on its training data.

    ``log_factorial_sum`` is Σ ln y! of the training counts: constant during a fit, always part of
    the ELBO, part of the log-likelihood if ``full_llk``.
    """

    backend: Backend
    log_factorial_sum: float
    full_llk: bool

    def check(self, model: Model, iteration: int) -> Check:
        """Training and held-out log-likelihood, and the ELBO."""
        beta = self.backend.mean(model.items.factor)
        log_rates, held_out = 0.0, []
        for block in model.blocks:
            theta = self.backend.mean(block.users.factor)
            log_rates += self.backend.log_rate_sum(block.counts, theta, beta)
            if block.validation is not None:
                held_out.append(pair_llk(self.backend, theta, beta, block.validation, full_llk=self.full_llk))
        llk = log_rates - self._expected_total(model)
        if self.full_llk:
            llk -= self.log_factorial_sum
        val_llk = sum(held_out) if held_out else math.nan
        return Check(iteration, llk=llk, elbo=self.elbo(model), val_llk=val_llk)

    def elbo(self, model: Model) -> float:
        """The evidence lower bound with φ at its optimum, all constants included."""
        total = self._gamma_elbo(model.items) - self._expected_total(model) - self.log_factorial_sum
        for block in model.blocks:
            total += self._gamma_elbo(block.users)
            total += self.backend.log_normalizer_sum(block.counts, block.users.factor, model.items.factor)
        return total

    def _gamma_elbo(self, side: Side) -> float:
        """Terms of θ and ξ: what is known has none, for its distribution is that of the prior."""
        prior, (n, k) = side.prior, side.factor.shape.shape
        if prior.known:
            return 0.0
        free = side.factor if prior.ones is None else _without_column(self.backend, side.factor, prior.ones)
        total: float = self.backend.gamma_elbo(
            free, side.hyper_rate, prior.shape, prior.hyper_shape, prior.hyper_rate
        )
        if prior.hierarchical:
            return total
        # E[ξ] is b' in every row, but ξ has no distribution: what the backend has counted for it goes.
        excess = (prior.hyper_shape, prior.posterior_hyper_shape(k))
        without, counted = (math.lgamma(x) - x * math.log(x) + x for x in excess)
        return total + int(n) * (without - counted)

    def _expected_total(self, model: Model) -> float:
        """Σ_ui E[θ_u]·E[β_i] over all pairs, those without a count included."""
        return float((user_sums(model.blocks) * model.items.column_sums).sum())


def _without_column(backend: Backend, factor: Factor, column: int) -> Factor:
    """The factor without one of its columns; its rates are of rank one, or have none there."""
    left = np.delete(np.arange(factor.shape.shape[1]), column)
    rates = factor.rate_rows
    return replace(
        factor,
        shape=backend.select_columns(factor.shape, left),
        rate_rows=rates if rates.shape[1] == 1 else backend.select_columns(rates, left),
        rate_columns=backend.select_rows(factor.rate_columns, left),
        exp_log=backend.select_columns(factor.exp_log, left),
    )


def user_sums(blocks: Iterable[Block]) -> Array:
    """Σ_u E[θ_uk] over all blocks, (K,)."""
    first, *others = (block.users.column_sums for block in blocks)
    for sums in others:
        first = first + sums
    return first


def pair_llk(backend: Backend, theta: Array, beta: Array, pairs: Pairs, *, full_llk: bool) -> float:
    """Poisson log-likelihood of the given pairs alone; without Σ ln y! unless ``full_llk``."""
    rates = backend.predict_pairs(theta, beta, pairs.rows, pairs.columns).astype(np.float64)
    # A rate below float32's range arrives as zero; its logarithm has to stay finite.
    log_rates = np.log(np.maximum(rates, np.finfo(np.float64).tiny))
    llk = float(np.dot(pairs.values.astype(np.float64), log_rates) - rates.sum())
    return llk - log_factorial_sum(pairs.values) if full_llk else llk


def log_factorial_sum(counts: Host) -> float:
    """Σ ln y! in float64 for counts (Z,), which need not be whole."""
    chunks = (counts[start : start + _CHUNK] for start in range(0, len(counts), _CHUNK))
    return float(sum(gammaln(chunk.astype(np.float64) + 1.0).sum() for chunk in chunks))
