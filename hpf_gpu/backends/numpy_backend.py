"""The reference backend: the operations in NumPy and SciPy, written for readability.

Factors are computed in float64, block by block, and rounded once to ``dtype``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.special import gammaln, logsumexp, psi

from hpf_gpu.ranking import top_columns

from . import numpy_neighbours
from .packing import packed_csr, unpacked_csr
from .protocol import Array, Ascent, Factor, Host, ItemScores, ModelState, RankOne, Rates, SideName

_BLOCK_BYTES = 1 << 23  # temporaries of one block


@dataclass(frozen=True)
class NumpyCounts:
    """CSR counts, the neighbours of items if there are any, and what is computed from them on first use."""

    csr: Any  # (N, M)
    sources: Host | None = None  # (M, L)

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.csr.shape[0]), int(self.csr.shape[1]))

    @property
    def nnz(self) -> int:
        return int(self.csr.nnz)

    @cached_property
    def rows(self) -> Host:  # (Z,)
        return np.repeat(np.arange(self.csr.shape[0], dtype=self.csr.indices.dtype), np.diff(self.csr.indptr))

    @cached_property
    def has(self) -> Any:  # (N, M)
        return numpy_neighbours.ones_of(self.csr, self.csr.data.dtype)

    @property
    def neighbours(self) -> Host:  # (M, L)
        if self.sources is None:
            raise TypeError("these counts were laid out without neighbours")
        return self.sources

    def sums_over_had(self, weights: Host) -> Host:
        """Σ_l w_il over the neighbours of item i that user u has, for each nonzero (Z,)."""
        return numpy_neighbours.sums_over_had(self.has, self.neighbours, weights, self.rows, self.csr.indices)

    def with_data(self, data: Host) -> Any:
        """The same nonzeros with other values (Z,), sharing the indices."""
        return sparse.csr_array((data, self.csr.indices, self.csr.indptr), shape=self.shape)


class NumpyBackend:
    """NumPy and SciPy on one core."""

    name = "numpy"

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = np.dtype(dtype)
        # A scaled product below this goes through the log-sum-exp.  Above it, the error by underflow is
        # below one rounding error, and y / product cannot overflow (counts are below the square root of the
        # largest number).
        self._tiny = 1e-18 if self.dtype == np.float32 else 1e-150

    def describe(self) -> str:
        return f"numpy {np.__version__}, {self.dtype}"

    def in_use(self) -> AbstractContextManager[object]:
        return nullcontext()

    def keep_pace(self) -> None:
        pass  # the work is done when an operation returns

    # -- transfers ---------------------------------------------------------------------------

    def asarray(self, host: Host) -> Array:
        return np.array(host, dtype=self.dtype if host.ndim == 2 else np.float64, order="C")

    def asnumpy(self, array: Array) -> Host:
        return np.array(array, order="C")

    def select_rows(self, array: Array, rows: Host) -> Array:
        return array[rows]

    def select_columns(self, array: Array, columns: Host) -> Array:
        return np.ascontiguousarray(array[:, columns])

    def assign_rows(self, array: Array, rows: Host, values: Array) -> None:
        array[rows] = values

    def counts(self, csr: Any, k: int, sources: Host | None = None) -> NumpyCounts:
        return NumpyCounts(sparse.csr_array(csr, dtype=self.dtype), sources)

    def packed(self, counts: NumpyCounts) -> dict[str, Host]:
        if counts.sources is not None:
            raise TypeError("these counts were laid out with neighbours")
        return packed_csr(counts.csr)

    def unpacked(self, arrays: Mapping[str, Host], shape: tuple[int, int], k: int) -> NumpyCounts:
        return NumpyCounts(unpacked_csr(arrays, shape, self.dtype))

    def choose_neighbours(self, csr: Any, n: int) -> Host:
        return numpy_neighbours.choose(csr, n)

    def recorded(self, step: Callable[[ModelState], ModelState]) -> Callable[[ModelState], ModelState]:
        return step

    def read_device_data(self, data: Any, *, reindex: bool, has_counts: bool = True) -> None:
        return None  # there is no device

    def operand(self, host: Host) -> Array:
        return host

    # -- the gamma posteriors ----------------------------------------------------------------

    def gamma_update(
        self,
        statistic: Array,
        prior_shape: float,
        rates: Rates,
        out: Array | None = None,
        temperature: float = 1.0,
    ) -> tuple[Factor, Array, Array]:
        shape, (n, k) = statistic, statistic.shape
        exp_log = np.empty_like(shape) if out is None else out
        log_scale, row_sums, column_sums = np.empty(n), np.empty(n), np.zeros(k)
        shape += self.dtype.type(prior_shape)
        for block in _blocks(n, k):
            rate = _rates(rates, block)
            mean = shape[block] / rate
            row_sums[block] = mean.sum(axis=1)
            column_sums += mean.sum(axis=0)
            log_mean = (psi(shape[block].astype(np.float64)) - np.log(rate)) / temperature
            log_scale[block] = log_mean.max(axis=1)
            exp_log[block] = np.exp(log_mean - log_scale[block, None])
        return Factor(shape, rates, exp_log, log_scale, temperature), row_sums, column_sums

    def ascend(
        self,
        counts: NumpyCounts,
        rows: Factor,
        others: Factor,
        hyper_rate: Array,
        ascent: Ascent,
        weights: Factor | None = None,
    ) -> None:
        return None

    def mean(self, factor: Factor, out: Array | None = None) -> Array:
        mean = np.empty_like(factor.shape) if out is None else out
        for block in _blocks(*mean.shape):
            mean[block] = factor.shape[block] / _rates(factor.rates, block)
        return mean

    def extrapolate(
        self, factor: Factor, earlier: tuple[Array, Array], steps: Array, out: Array | None = None
    ) -> Factor:
        then, then_scale = earlier
        momentum = max(steps[0], 0.0) / (max(steps[0], 0.0) + 1.0)
        exp_log = np.empty_like(factor.exp_log) if out is None else out
        log_scale = factor.log_scale + momentum * (factor.log_scale - then_scale)
        for block in _blocks(*exp_log.shape):
            now, before = factor.exp_log[block].astype(np.float64), then[block].astype(np.float64)
            if momentum == 0:
                exp_log[block] = now
                continue
            smallest = np.finfo(self.dtype).tiny
            log_now = np.log(now, where=now >= smallest, out=np.full_like(now, -np.inf))
            log_before = np.log(before, where=before >= smallest, out=log_now.copy())
            moved = log_now + momentum * np.subtract(
                log_now, log_before, where=now >= smallest, out=np.zeros_like(now)
            )
            top = moved.max(axis=1)
            exp_log[block] = np.exp(moved - top[:, None])
            log_scale[block] += top
        return replace(factor, exp_log=exp_log, log_scale=log_scale)

    def gamma_elbo(
        self, factor: Factor, hyper_rate: Array, shape: float, hyper_shape: float, hyper_prior_rate: float
    ) -> float:
        n, k = factor.shape.shape
        kappa = hyper_shape + k * shape
        total = n * (hyper_shape * np.log(hyper_prior_rate) - gammaln(hyper_shape) + gammaln(kappa) + kappa)
        total -= n * k * gammaln(shape) + kappa * np.log(hyper_rate).sum()
        for block in _blocks(n, k):
            s = factor.shape[block].astype(np.float64)
            r = _rates(factor.rates, block)
            log_mean = psi(s) - np.log(r)
            # E[ln ξ] cancels: its coefficient K·a + (a' − 1) − (κ − 1) is zero.
            total += ((shape - s) * log_mean + gammaln(s) - s * np.log(r) + s).sum()
            total -= (kappa / hyper_rate[block] * ((s / r).sum(axis=1) + hyper_prior_rate)).sum()
        return float(total)

    # -- the nonzeros ------------------------------------------------------------------------

    def allocate(
        self,
        counts: NumpyCounts,
        users: Factor,
        items: Factor,
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None] = (None, None),
    ) -> tuple[Array | None, Array | None]:
        rate = self._products(counts, users.exp_log, items.exp_log)
        underflowed = np.ones(counts.nnz, bool) if exact else rate < self._tiny
        weight = np.zeros_like(rate)
        np.divide(counts.csr.data, rate, out=weight, where=~underflowed)
        weights = counts.with_data(weight)
        sums: list[Array | None] = [None, None]
        if side in ("users", "both"):
            sums[0] = _into(out[0], weights @ items.exp_log * users.exp_log)
        if side in ("items", "both"):
            sums[1] = _into(out[1], weights.T @ users.exp_log * items.exp_log)
        for z in _chunks(np.flatnonzero(underflowed), users.shape.shape[1]):
            log_phi = self._log_phi(counts, z, users, items)
            share = counts.csr.data[z, None] * np.exp(log_phi - logsumexp(log_phi, axis=1, keepdims=True))
            for total, numbers in zip(sums, (counts.rows, counts.csr.indices), strict=True):
                if total is not None:
                    np.add.at(total, numbers[z], share.astype(self.dtype))
        return sums[0], sums[1]

    def allocate_with_neighbours(
        self,
        counts: NumpyCounts,
        users: Factor,
        items: Factor,
        weights: Factor,
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
    ) -> tuple[Array | None, Array | None, Array | None]:
        y = counts.csr.data
        total, of_factors, of_weights = self._total(counts, users, items, weights)
        underflowed = np.ones(counts.nnz, bool) if exact else total < self._tiny
        ratio = np.divide(y, total, out=np.zeros_like(total), where=~underflowed)
        shares = counts.with_data((ratio * of_factors).astype(self.dtype))
        sums: list[Array | None] = [None, None, None]
        if side in ("users", "both"):
            sums[0] = _into(out[0], shares @ items.exp_log * users.exp_log)
        if side in ("items", "both"):
            sums[1] = _into(out[1], shares.T @ users.exp_log * items.exp_log)
            of_had = counts.with_data((ratio * of_weights).astype(self.dtype))
            spread = numpy_neighbours.sums_over_users(counts.has, of_had, counts.neighbours)
            sums[2] = _into(out[2], spread * weights.exp_log)
        k = users.shape.shape[1]
        for z in _chunks(np.flatnonzero(underflowed), k + weights.shape.shape[1]):
            log_phi = self._log_phi_with_neighbours(counts, z, users, items, weights)
            share = y[z, None] * np.exp(log_phi - logsumexp(log_phi, axis=1, keepdims=True))
            share = share.astype(self.dtype)
            rows, columns = counts.rows[z], counts.csr.indices[z]
            parts = ((rows, share[:, :k]), (columns, share[:, :k]), (columns, share[:, k:]))
            for statistic, (numbers, part) in zip(sums, parts, strict=True):
                if statistic is not None:
                    np.add.at(statistic, numbers, part)
        return sums[0], sums[1], sums[2]

    def log_rate_sum(
        self, counts: NumpyCounts, theta: Array, beta: Array, weights: Array | None = None
    ) -> float:
        rate = self._products(counts, theta, beta).astype(np.float64)
        had = np.zeros_like(rate) if weights is None else counts.sums_over_had(weights).astype(np.float64)
        small = rate + had < self._tiny
        log_rate = np.log(np.where(small, 1, rate + had))
        for z in _chunks(np.flatnonzero(small), theta.shape[1]):
            # 2^500 times larger, and at least the smallest normal number
            a, b = theta[counts.rows[z]], np.ldexp(beta[counts.csr.indices[z]].astype(np.float64), 500)
            large = np.einsum("zk,zk->z", a.astype(np.float64), b) + np.ldexp(had[z], 500)
            log_rate[z] = np.log(np.maximum(large, np.finfo(np.float64).tiny)) - 500 * np.log(2)
        return float(np.dot(counts.csr.data.astype(np.float64), log_rate))

    def log_normalizer_sum(
        self, counts: NumpyCounts, users: Factor, items: Factor, weights: Factor | None = None
    ) -> float:
        y = counts.csr.data.astype(np.float64)
        log_scale = users.log_scale[counts.rows] + items.log_scale[counts.csr.indices]
        if weights is None:
            total, k = self._products(counts, users.exp_log, items.exp_log), users.shape.shape[1]
        else:
            total, *_ = self._total(counts, users, items, weights)
            log_scale = np.maximum(log_scale, weights.log_scale[counts.csr.indices])
            k = users.shape.shape[1] + weights.shape.shape[1]
        underflowed = total < self._tiny
        log_rate = np.log(np.where(underflowed, 1, total).astype(np.float64))
        log_rate += log_scale
        for z in _chunks(np.flatnonzero(underflowed), k):
            log_phi = (
                self._log_phi(counts, z, users, items)
                if weights is None
                else self._log_phi_with_neighbours(counts, z, users, items, weights)
            )
            log_rate[z] = logsumexp(log_phi, axis=1)
        return float(np.dot(y, log_rate)) * users.temperature

    def log_count_products(
        self, counts: NumpyCounts, matrix: Array, scale: Array, *, side: Literal["users", "items"]
    ) -> Array:
        logs = counts.with_data(np.log1p(counts.csr.data))
        products = logs @ matrix if side == "users" else logs.T @ matrix
        products *= scale[:, None].astype(self.dtype)
        return products

    def log_factorial_sum(self, counts: NumpyCounts) -> float:
        parts = (counts.csr.data[z].astype(np.float64) for z in _blocks(counts.nnz, 1))
        return float(sum(gammaln(y + 1).sum() for y in parts))

    def predict_pairs(self, theta: Array, beta: Array, rows: Host, columns: Host) -> Host:
        rates = np.empty(len(rows), self.dtype)
        for z in _blocks(len(rows), theta.shape[1]):
            rates[z] = np.einsum("zk,zk->z", theta[rows[z]], beta[columns[z]])
        return rates

    def neighbour_rates(
        self, had: tuple[Host, Host], sources: Host, weights: Array, rows: Host, columns: Host
    ) -> Host:
        indptr, indices = had
        shape = (len(indptr) - 1, 1 + max(int(sources.max(initial=0)), int(indices.max(initial=0))))
        has = sparse.csr_array((np.ones(len(indices), self.dtype), indices, indptr), shape=shape)
        order = np.argsort(rows, kind="stable")
        rates = np.empty(len(rows), self.dtype)
        rates[order] = numpy_neighbours.sums_over_had(has, sources, weights, rows[order], columns[order])
        return rates

    def score_bounds(self, beta: Array) -> None:
        return None

    def top_items(
        self,
        theta: Array,
        beta: Array,
        n: int,
        exclude: tuple[Host, Host] | None = None,
        neighbours: ItemScores | None = None,
        bounds: None = None,
    ) -> tuple[Host, Host]:
        columns = np.full((len(theta), n), -1)
        scores = np.full((len(theta), n), -np.inf, self.dtype)
        for items in _blocks(len(beta), 8):
            for users in _blocks(len(theta), n + items.stop - items.start):
                block = theta[users] @ beta[items].T
                if neighbours is not None:
                    block += numpy_neighbours.added_scores(neighbours, users, items)
                if exclude is not None:
                    block[_entries_within(exclude, users, items)] = -np.inf
                # The best items so far come first: they have lower columns than items with equal scores in
                # this block, and their −1 precedes every excluded item.
                found = np.concatenate([scores[users], block], axis=1)
                numbers = np.broadcast_to(np.arange(items.start, items.stop), block.shape)
                best = top_columns(found, n)
                columns[users] = np.take_along_axis(
                    np.concatenate([columns[users], numbers], axis=1), best, axis=1
                )
                scores[users] = np.take_along_axis(found, best, axis=1)
        return columns, scores

    def distance(self, a: Array, b: Array) -> float:
        return float(np.sqrt(sum(((a[z].astype(np.float64) - b[z]) ** 2).sum() for z in _blocks(*a.shape))))

    def _products(self, counts: NumpyCounts, a: Array, b: Array) -> Host:
        """The sampled dense-dense product: a_u·b_i for every nonzero (Z,)."""
        return self.predict_pairs(a, b, counts.rows, counts.csr.indices)

    def _total(
        self, counts: NumpyCounts, users: Factor, items: Factor, weights: Factor
    ) -> tuple[Host, Host, Host]:
        """The sum to which φ is normalized, for every nonzero (Z,), and the scales of its two parts.

        In float64, and divided by the exponential of the larger log scale of the two.
        """
        columns = counts.csr.indices
        scales = np.stack(
            [users.log_scale[counts.rows] + items.log_scale[columns], weights.log_scale[columns]]
        )
        of_factors, of_weights = np.exp(scales - scales.max(axis=0))
        total = of_factors * self._products(counts, users.exp_log, items.exp_log)
        total += of_weights * counts.sums_over_had(weights.exp_log)
        return total, of_factors, of_weights

    def _log_phi_with_neighbours(
        self, counts: NumpyCounts, z: Host, users: Factor, items: Factor, weights: Factor
    ) -> Host:
        """ln φ up to a constant for the nonzeros z: K factors, then L neighbours, −inf for those not had."""
        rows, columns = counts.rows[z], counts.csr.indices[z]
        had = numpy_neighbours.had_among(counts.csr, counts.neighbours, rows, columns)
        log_weight = np.where(had, _log_mean(weights, columns), -np.inf)
        log_phi: Host = np.concatenate([self._log_phi(counts, z, users, items), log_weight], axis=1)
        return log_phi

    def _log_phi(self, counts: NumpyCounts, z: Host, users: Factor, items: Factor) -> Host:
        """(E[ln θ_uk] + E[ln β_ik])/T for the nonzeros z, (len(z), K) in float64."""
        return _log_mean(users, counts.rows[z]) + _log_mean(items, counts.csr.indices[z])


def describe_devices() -> list[str]:
    """Nothing: this backend uses no device."""
    return []


def advice() -> str:
    """Nothing: only the other backends are faster."""
    return ""


def _entries_within(csr: tuple[Host, Host], rows: slice, columns: slice) -> tuple[Host, Host]:
    """Row and column, within a block, of the CSR entries (indptr and indices) in the block."""
    indptr, indices = csr
    starts = indptr[rows.start : rows.stop + 1]
    row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    column = indices[starts[0] : starts[-1]] - columns.start
    within = (column >= 0) & (column < columns.stop - columns.start)
    return row[within], column[within]


def _log_mean(factor: Factor, rows: Host) -> Host:
    """E[ln θ]/T of some rows, (B, K) in float64."""
    log_mean: Host = psi(factor.shape[rows].astype(np.float64)) - np.log(_rates(factor.rates, rows))
    return log_mean / factor.temperature


def _rates(rates: Rates, rows: Host | slice) -> Host:
    """Rates of some rows (B, K) in float64."""
    if isinstance(rates, RankOne):
        rank_one: Host = rates.rows[rows, None] + rates.columns
        return rank_one
    full: Host = rates.matrix[rows].astype(np.float64)
    return full


def _into(buffer: Array | None, result: Array) -> Array:
    if buffer is None:
        return result
    buffer[...] = result
    return buffer


def _blocks(n: int, k: int) -> Iterator[slice]:
    """Row ranges whose float64 temporaries stay small."""
    step = max(1, _BLOCK_BYTES // (8 * k))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _chunks(numbers: Host, k: int) -> Iterator[Host]:
    return (numbers[block] for block in _blocks(len(numbers), k))
