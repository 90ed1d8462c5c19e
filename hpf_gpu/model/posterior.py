"""A fitted side on the host: what is kept of q(θ) and q(ξ) after the backend is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Full, Host, RankOne, Rates

from .priors import Prior
from .start import NOISE


@dataclass(frozen=True)
class Posterior:
    """q(θ) and q(ξ) of all users or of all items."""

    prior: Prior
    shape: Host  # (N, K)
    rates: Rates  # (N, K), of host arrays
    hyper_rate: Host  # (N,) float64
    column_sums: Host  # (K,) float64, Σ_n E[θ_nk]
    fixed: bool = False  # θ was given

    @property
    def rate(self) -> Host:
        """Rates of q(θ), (N, K), in the type of the shapes, built anew at each call."""
        rate: Host = self.exact_rate.astype(self.shape.dtype)
        return rate

    @property
    def exact_rate(self) -> Host:
        """Rates of q(θ), (N, K), as they are kept: the sum of its parts is float64."""
        rates = self.rates
        exact: Host = rates.matrix if isinstance(rates, Full) else rates.rows[:, None] + rates.columns
        return exact

    @property
    def has_hyper_rate(self) -> bool:
        """Whether ξ has a distribution."""
        return self.prior.hierarchical and not self.fixed

    def rows(self, rows: Host | slice) -> Posterior:
        """Some rows (B,), with the column sums of all."""
        rates = self.rates
        return replace(
            self,
            shape=self.shape[rows],
            rates=Full(rates.matrix[rows])
            if isinstance(rates, Full)
            else RankOne(rates.rows[rows], rates.columns),
            hyper_rate=self.hyper_rate[rows],
        )

    @staticmethod
    def joined(parts: Sequence[Posterior]) -> Posterior:
        """Parts of a side, whose rates have the same columns or are all full, one after the other."""
        first = parts[0]
        if len(parts) == 1:
            return first
        rates: Rates = first.rates
        if isinstance(rates, RankOne):
            rows = [part.rates.rows for part in parts if isinstance(part.rates, RankOne)]
            rates = RankOne(np.concatenate(rows), rates.columns)
        else:
            rates = Full(np.concatenate([part.rate for part in parts]))
        return replace(
            first,
            shape=np.concatenate([part.shape for part in parts]),
            rates=rates,
            hyper_rate=np.concatenate([part.hyper_rate for part in parts]),
            column_sums=sum((part.column_sums for part in parts[1:]), start=first.column_sums),
        )

    def with_rank_one_rates(self, other_sums: Host) -> Posterior:
        """The side with rates of rank one again: their next update, where rows were folded in."""
        if isinstance(self.rates, RankOne):
            return self
        k = self.shape.shape[1]
        rows = self.prior.posterior_hyper_shape(k) / self.hyper_rate
        return replace(self, rates=RankOne(rows, self.prior.column_rates(other_sums, k)))

    def with_rows(self, rows: Host, new: Posterior, mean: Host) -> Posterior:
        """The side after other rows took the places ``rows`` (B,), some of them behind its end.

        ``mean`` (N', K) is E[θ] of the result.  Rows of the fit and new ones differ in the columns of their
        rates, so rates become a full matrix.
        """
        return replace(
            self,
            shape=put_rows(self.shape, rows, new.shape),
            rates=Full(put_rows(self.rate, rows, new.rate)),
            hyper_rate=put_rows(self.hyper_rate, rows, new.hyper_rate),
            column_sums=mean.sum(axis=0, dtype=np.float64),
        )

    def with_start_rows(self, n: int, rng: np.random.Generator) -> Posterior:
        """The side, of rank-one rates, with ``n`` more rows behind its end, whose shapes are as fits start.

        Their rates are what the next update would make of them, those of rows that have no counts.
        """
        if n == 0 or not isinstance(self.rates, RankOne):
            return self
        prior, k, dtype = self.prior, self.shape.shape[1], self.shape.dtype
        shape = (prior.hyper_shape + NOISE * rng.random((n, k))).astype(dtype)
        prior.pin_shapes(shape)
        hyper_rate = prior.start_hyper_rate(k)
        rows = np.full(n, prior.posterior_hyper_shape(k) / hyper_rate)
        return replace(
            self,
            shape=np.concatenate([self.shape, shape]),
            rates=RankOne(np.concatenate([self.rates.rows, rows]), self.rates.columns),
            hyper_rate=np.concatenate([self.hyper_rate, np.full(n, hyper_rate)]),
        )


def put_rows(array: Host, rows: Host, new: Host) -> Host:
    """A copy with new rows at the places ``rows`` (B,); places behind the end make it longer."""
    size = max(len(array), int(rows.max()) + 1)
    result = np.empty((size, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    result[rows] = new
    return result
