"""What a fit is judged by: Poisson log-likelihoods and the evidence lower bound, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from .backends.protocol import Array, Backend, Host
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
        prior = side.prior
        return self.backend.gamma_elbo(
            side.factor, side.hyper_rate, prior.shape, prior.hyper_shape, prior.hyper_rate
        )

    def _expected_total(self, model: Model) -> float:
        """Σ_ui E[θ_u]·E[β_i] over all pairs, those without a count included."""
        return float((user_sums(model.blocks) * model.items.column_sums).sum())


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
