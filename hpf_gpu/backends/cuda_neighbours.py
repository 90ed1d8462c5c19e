"""Neighbours of items on a GPU, and the launches of what goes over nonzeros with them.

The array module ``xp`` (CuPy) is an argument, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cuda_counts import DeviceCounts, Rows
from .cuda_launch import Kernel, Packed, pack
from .cuda_source import JOIN_STRANDS, Variant
from .protocol import Array, Factor, Host, ItemScores, SideName


@dataclass(frozen=True)
class _Sums:
    """Where sums (N, K) of rows go, those of long rows in parts; nowhere if nobody asked for them."""

    packed: Packed
    out: Array | None = None  # (N, K)
    partial: Array | None = None  # (P, K)


@dataclass(frozen=True)
class WithNeighbours:
    """Operations on counts with neighbours, for K factors and L neighbours.

    All but the sums of users go over the nonzeros by items, and a block takes a segment.
    """

    xp: Any
    kernels: Mapping[str, Kernel]
    variant: Variant
    device: int
    gamma: Callable[[Factor], Packed]  # shapes and rates of a factor, as kernels take them

    def allocate(
        self,
        counts: DeviceCounts,
        factors: tuple[Factor, Factor, Factor],  # of users, items and weights
        side: SideName,
        exact: bool,
        out: tuple[Array | None, Array | None, Array | None],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """See :meth:`hpf_gpu.backends.protocol.Backend.allocate_with_neighbours`."""
        of_users, of_items = side in ("users", "both"), side in ("items", "both")
        users = self._sums(self.variant, counts.users, of_users, out[0])
        items = self._sums(self.variant, counts.items, of_items, out[1])
        weights = self._sums(self.variant.weights, counts.items, of_items, out[2])
        ratio = self.xp.empty(counts.nnz, self.variant.real)
        near, gammas = _near(counts), tuple(map(self.gamma, factors))

        segments, left = self._segments(counts.items)
        if not exact:
            self.kernels["allocate_with_neighbours"](
                *(counts.items.count, 32 * self.variant.table_warps, segments, *near),
                *(*self._stored(factors), ratio, of_items, items.packed, weights.packed, left),
            )
        if of_items:
            self.kernels["allocate_exactly_with_neighbours"](
                *(_few(counts.items), 32, segments, True, *near, *gammas, ratio, exact, left),
                *(items.packed, weights.packed),
            )
            self._join(self.variant, "join_segments", counts.items, items.partial, False, items.out)
            partial = self._flat(weights.partial)
            self._join(self.variant.weights, "join_weights", counts.items, partial, self._flat(weights.out))
        if of_users:
            segments, left = self._segments(counts.users)
            if not exact:
                threads = self.variant.knobs.threads
                self.kernels["allocate_by_ratio"](
                    *(-(-counts.users.count * 32 // threads), threads, segments, ratio),
                    *(factors[0].exp_log, factors[1].exp_log, users.packed, left),
                )
            self.kernels["allocate_exactly_with_neighbours"](
                *(_few(counts.users), 32, segments, False, *near, *gammas, ratio, exact, left),
                *(users.packed, weights.packed),
            )
            self._join(self.variant, "join_segments", counts.users, users.partial, False, users.out)
        return users.out, items.out, weights.out

    def log_rate_sum(self, counts: DeviceCounts, theta: Array, beta: Array, weights: Array) -> float:
        """See :meth:`hpf_gpu.backends.protocol.Backend.log_rate_sum`."""
        means = (beta, theta, self._flat(weights))
        return self._log_sum(counts, "log_rate_sums_with_neighbours", means, "log_rates_exactly", means)

    def log_normalizer_sum(self, counts: DeviceCounts, factors: tuple[Factor, Factor, Factor]) -> float:
        """The same for :meth:`log_normalizer_sum`, but for the temperature."""
        stored, gammas = self._stored(factors), tuple(map(self.gamma, factors))
        return self._log_sum(
            counts, "log_normalizer_sums_with_neighbours", stored, "log_normalizers_exactly", gammas
        )

    def _log_sum(
        self, counts: DeviceCounts, name: str, rows: tuple[Any, ...], exact: str, exact_rows: tuple[Any, ...]
    ) -> float:
        """A sum over the nonzeros, by a kernel and one that adds what it leaves out."""
        sums, is_left = self.xp.empty(counts.items.count), self.xp.empty(counts.nnz, np.uint8)
        (segments, left), near = self._segments(counts.items), _near(counts)
        threads = 32 * self.variant.table_warps
        self.kernels[name](counts.items.count, threads, segments, *near, *rows, is_left, sums, left)
        self.kernels[f"{exact}_with_neighbours"](
            *(_few(counts.items), 32, segments, *near, *exact_rows, is_left, sums, left),
        )
        return float(sums.sum())

    def _segments(self, at: Rows) -> tuple[Packed, Packed]:
        """The segments of a side, and where a kernel notes what it leaves to the next one."""
        (segments,) = at.parts
        left = (self.xp.empty(at.count, np.uint8), self.xp.zeros(1, np.int32))
        return segments, self._pack(self.variant, "Left", *left)

    def _stored(self, factors: tuple[Factor, Factor, Factor]) -> tuple[Array, ...]:
        """exp(E[ln]/T) of items, users and weights, and their scales."""
        users, items, weights = factors
        matrices = (items.exp_log, users.exp_log, self._flat(weights.exp_log))
        return (*matrices, items.log_scale, users.log_scale, weights.log_scale)

    def _flat(self, weights: Array) -> Array:
        """The memory of a matrix (M, L), whose rows are wider or narrower than those of factors."""
        width = self.variant.weights.width
        if weights.size and weights.strides != (width * weights.itemsize, weights.itemsize):
            raise ValueError(f"weights have strides {weights.strides}, not those of rows of {width} numbers")
        return self.xp.ndarray((len(weights) * width,), weights.dtype, weights.data)

    def _sums(self, variant: Variant, at: Rows, asked: bool, out: Array | None) -> _Sums:
        if not asked:
            return _Sums(self._pack(variant, "Sums", None, None))
        shapes = (at.shape[0], at.slots)
        made = [self.xp.empty((n, variant.width), variant.real)[:, : variant.k] for n in shapes]
        out, partial = made[0] if out is None else out, made[1]
        return _Sums(self._pack(variant, "Sums", out, partial), out, partial)

    def _pack(self, variant: Variant, name: str, *values: Any) -> Packed:
        return pack(variant.struct(name), variant.width, self.device, *values)

    def _join(self, variant: Variant, kernel: str, at: Rows, partial: Array, *rest: Any) -> None:
        blocks = at.long_row.size * -(-variant.width // 32)
        self.kernels[kernel](blocks, 32 * JOIN_STRANDS, at.long_row, at.long_begin, partial, *rest)


def _near(counts: DeviceCounts) -> tuple[Packed, Array]:
    """The items of users, and the neighbours of items."""
    if counts.neighbours is None:
        raise TypeError("these counts were laid out without neighbours")
    return counts.neighbours.had, counts.neighbours.sources


def _few(at: Rows) -> int:
    """Number of blocks of kernels that go over what others left out."""
    return min(at.count, 2048)


def rows_in_use(neighbours: ItemScores) -> tuple[Host, Host, Host]:
    """Indptr (J + 1,), targets and weights of only those items that some user has."""
    used = np.zeros(len(neighbours.indptr) - 1, bool)
    used[neighbours.had[1]] = True
    size = np.where(used, np.diff(neighbours.indptr), 0)
    begin = np.append(0, np.cumsum(size, dtype=np.int64))
    if begin[-1] == len(neighbours.targets):
        return begin, neighbours.targets, neighbours.weights
    entries = np.repeat(neighbours.indptr[:-1] - begin[:-1], size) + np.arange(begin[-1])
    return begin, neighbours.targets[entries], neighbours.weights[entries]
