"""The posteriors q(θ) and q(ξ) of a fitted side, as host arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Full, Host, RankOne, Rates
from hpf_gpu.data.growth import appended

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
    fixed: bool = False  # θ was passed by the user and is not updated

    @property
    def rate(self) -> Host:
        """Rates of q(θ), (N, K), in the dtype of the shapes, built at each access."""
        rate: Host = self.exact_rate.astype(self.shape.dtype, copy=False)
        return rate

    @property
    def exact_rate(self) -> Host:
        """Rates of q(θ), (N, K), as stored: float64 if they have rank one."""
        rates = self.rates
        exact: Host = rates.matrix if isinstance(rates, Full) else rates.rows[:, None] + rates.columns
        return exact

    @property
    def has_hyper_rate(self) -> bool:
        """Whether ξ has a distribution."""
        return self.prior.hierarchical and not self.fixed

    def rows(self, rows: Host | slice) -> Posterior:
        """Some rows (B,); the column sums are still those of all rows."""
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
        """Concatenate the parts of a side; their rates have the same columns or are all full."""
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
        """The side with rates of rank one.

        Full rates, of a side into which rows were folded, are replaced by those of the next update, with the
        column sums (K,) of the other side.
        """
        if isinstance(self.rates, RankOne):
            return self
        k = self.shape.shape[1]
        rows = self.prior.posterior_hyper_shape(k) / self.hyper_rate
        return replace(self, rates=RankOne(rows, self.prior.column_rates(other_sums)))

    def with_rows(self, rows: Host, new: Posterior, mean: Host) -> Posterior:
        """The side with new rows at positions ``rows`` (B,); positions past the end append rows.

        ``mean`` (N', K) is E[θ] of the result.  Fitted and new rows differ in the column part of their rates,
        so the rates become a full matrix.
        """
        old = len(self.shape)
        added = (rows >= old).all()
        column_sums = mean[old:].sum(axis=0, dtype=np.float64) + self.column_sums if added else None
        return replace(
            self,
            shape=put_rows(self.shape, rows, new.shape),
            rates=Full(put_rows(self.rate, rows, new.rate)),
            hyper_rate=put_rows(self.hyper_rate, rows, new.hyper_rate),
            column_sums=mean.sum(axis=0, dtype=np.float64) if column_sums is None else column_sums,
        )

    def with_start_rows(self, n: int, rng: np.random.Generator) -> Posterior:
        """The side, with rank-one rates, after appending ``n`` rows whose shapes are start values.

        Their rates are those that the next update would give to rows without counts.
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
    """The array with new rows at positions ``rows`` (B,); positions past the end make it longer.

    Where all are past the end, in order, it may share memory with ``array``, see :func:`appended`.
    """
    if np.array_equal(rows, np.arange(len(array), len(array) + len(rows))):
        return appended(array, new)
    size = max(len(array), int(rows.max()) + 1)
    result = np.empty((size, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    result[rows] = new
    return result
