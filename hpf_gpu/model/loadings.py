"""Loadings of users and items on factors, from a singular value decomposition of the counts: ``init="svd"``.

What is decomposed is ln(1 + y), divided by the roots of the row sums and of the column sums, so that neither
large counts nor the most active rows make up all directions.  The singular vectors come from a few steps of
subspace iteration (Halko, Martinsson and Tropp 2011).  They are determined up to a rotation, and varimax
finds the one in which most entries of a row are near zero; then nearly all large ones of a factor have the
same sign (Rohe and Zeng 2023), and those of the other sign are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Counts, Host
from hpf_gpu.data.blocks import CountBlocks

#: Steps of subspace iteration, and directions beyond K that it keeps.  docs/performance.md has the figures
#: for these and for the other constants.
STEPS, MORE = 2, 8
#: Multiple of the mean row sum that is added to every row sum before the division by its root.
REGULARIZER = 5.0
#: Share of the smallest singular value, which is mostly noise, that is subtracted from all.
NOISE = 0.5
#: Rows of each side, those of the largest norm, that the rotation is found for, and its iterations.
ROTATED, ROTATIONS = 1000, 45
#: Multiple of the mean of a row's loadings that is added to all of them: no factor is shut out of a row.
LEVEL = 3.0


@dataclass(frozen=True)
class Loadings:
    """Loadings of the users of each block and of the items, with a mean of 1 + LEVEL on each side."""

    users: tuple[Host, ...]  # (B, K) each
    items: Host  # (M, K)
    rate: float  # what they are divided by for E[θ] and E[β]


def svd_loadings(backend: Backend, blocks: CountBlocks, k: int, seed: int) -> Loadings:
    """Loadings on ``k`` factors; those on factors beyond the rank of the counts are the same in all columns.

    The backend multiplies the counts by matrices, block by block; all else is done on the host, with two or
    three matrices (N, K + MORE) and (M, K + MORE) at a time.
    """
    scaled = _ScaledCounts.of(backend, blocks)
    rng, size = np.random.default_rng(seed), (blocks.shape[1], k + MORE)
    basis: Host = rng.standard_normal(size, dtype=backend.dtype.type)
    for _ in range(STEPS):
        basis = _orthonormal(scaled.squared_times(basis))
    images = scaled.times(basis)
    squares, vectors = _eigenpairs(_total([image.T @ image for image in images]))
    singular, vectors = np.sqrt(squares[-k:]), vectors[:, -k:]
    roots = np.sqrt(np.maximum(singular - NOISE * np.sqrt(squares[0]), 0))
    users, items = [image @ (vectors * (roots / singular)) for image in images], basis @ (vectors * roots)
    rotation = _varimax(np.concatenate([_largest_rows(users), _largest_rows([items])]))
    users, items = [part @ rotation for part in users], items @ rotation
    for part, scale in zip((*users, items), (*scaled.users, scaled.items), strict=True):
        np.maximum(part, 0, out=part)
        part /= scale[:, None]
    rate = math.sqrt(k * blocks.shape[0] * blocks.shape[1] / scaled.total)
    return _on_one_scale(users, items, k, rate)


@dataclass(frozen=True)
class _ScaledCounts:
    """X = ln(1 + y) / √(r_u c_i) for row sums r and column sums c, both with the regularizer added."""

    backend: Backend
    blocks: CountBlocks
    users: tuple[Host, ...]  # (B,) √r of each block
    items: Host  # (M,) √c
    total: float  # Σ ln(1 + y)

    @staticmethod
    def of(backend: Backend, blocks: CountBlocks) -> _ScaledCounts:
        m = blocks.shape[1]
        of_users, of_items = [], np.zeros((m, 1))
        ones = backend.asarray(np.ones((m, 1)))
        for block in blocks:
            n = block.users.stop - block.users.start
            unscaled = [backend.asarray(np.ones(size)) for size in (n, m)]
            row_sums = backend.log_count_products(block.counts, ones, unscaled[0], side="users")
            of_users.append(backend.asnumpy(row_sums)[:, 0].astype(np.float64))
            column_sums = backend.log_count_products(
                block.counts, backend.asarray(np.ones((n, 1))), unscaled[1], side="items"
            )
            of_items += backend.asnumpy(column_sums)
        total = float(of_items.sum())
        # In the precision of the matrices: NumPy would compute in the higher one.
        users, items = (
            [np.sqrt(sums + REGULARIZER * total / size).astype(backend.dtype) for sums in side]
            for side, size in ((of_users, blocks.shape[0]), ([of_items[:, 0]], m))
        )
        return _ScaledCounts(backend, blocks, tuple(users), items[0], total)

    def times(self, matrix: Host) -> list[Host]:
        """X times a matrix (M, L): the rows (B, L) of each block."""
        scaled = self._scaled(matrix)
        return [
            self.backend.asnumpy(self._image(number, block.counts, scaled, power=1))
            for number, block in enumerate(self.blocks)
        ]

    def squared_times(self, matrix: Host) -> Host:
        """XᵀX times a matrix (M, L)."""
        scaled, result = self._scaled(matrix), np.zeros_like(matrix)
        scale = self.backend.asarray(1 / self.items)
        for number, block in enumerate(self.blocks):
            image = self._image(number, block.counts, scaled, power=2)
            product = self.backend.log_count_products(block.counts, image, scale, side="items")
            result += self.backend.asnumpy(product)
        return result

    def _scaled(self, matrix: Host) -> Array:
        return self.backend.asarray(matrix / self.items[:, None])

    def _image(self, number: int, counts: Counts, scaled: Array, power: int) -> Array:
        """Rows (B, L) of a block of X times a matrix, divided by √r once more if ``power`` is 2."""
        scale = self.backend.asarray(self.users[number] ** -power)
        return self.backend.log_count_products(counts, scaled, scale, side="users")


def _total(arrays: Sequence[Host]) -> Host:
    total: Host = np.sum(arrays, axis=0)
    return total


def _orthonormal(matrix: Host) -> Host:
    """Orthonormal columns (M, L') that span those of a matrix (M, L), but for directions lost in rounding."""
    values, vectors = _eigenpairs(matrix.T @ matrix)
    return matrix @ (vectors / np.sqrt(values))


def _eigenpairs(square: Host) -> tuple[Host, Host]:
    """Eigenvalues (L',) of a matrix (L, L), ascending, and their vectors (L, L'), but for those of zero."""
    values, vectors = np.linalg.eigh(square)
    kept = values > values[-1] * 8 * np.finfo(square.dtype).eps  # others have no digit left beside it
    return values[kept], vectors[:, kept]


def _largest_rows(parts: Sequence[Host]) -> Host:
    """The rows of the largest norm, ROTATED or all, of matrices (B, L)."""
    squares = np.concatenate([np.einsum("nk,nk->n", part, part) for part in parts])
    chosen, count = np.zeros(len(squares), bool), min(ROTATED, len(squares))
    chosen[np.argpartition(squares, -count)[-count:]] = True
    of_parts = np.split(chosen, np.cumsum([len(part) for part in parts])[:-1])
    return np.concatenate([part[own] for part, own in zip(parts, of_parts, strict=True)])


def _varimax(matrix: Host) -> Host:
    """The rotation (L, L) after which squares of a matrix (N, L) vary most within columns (Kaiser 1958).

    With signs that make the large entries of a column positive.
    """
    rotation = np.eye(matrix.shape[1], dtype=matrix.dtype)
    for _ in range(ROTATIONS):
        rotated = matrix @ rotation
        squares = rotated * rotated
        left, _, right = np.linalg.svd(matrix.T @ (rotated * (squares - squares.mean(axis=0))))
        rotation = left @ right
    rotated = matrix @ rotation
    rotation *= np.where((rotated * rotated * rotated).sum(axis=0) < 0, matrix.dtype.type(-1), 1)
    return rotation


def _on_one_scale(users: Sequence[Host], items: Host, k: int, rate: float) -> Loadings:
    """Loadings with LEVEL added, and padded to K columns; before, both sides' sums of a factor are equal."""
    user_sums, item_sums = _total([part.sum(axis=0) for part in users]), items.sum(axis=0)
    ratio = np.sqrt(user_sums * item_sums)

    def leveled(parts: Sequence[Host], sums: Host) -> list[Host]:
        factors = np.divide(ratio, sums, out=np.zeros_like(ratio), where=sums > 0)
        mean = float(ratio.sum()) / (sum(len(part) for part in parts) * k)
        result = []
        for part in parts:
            whole = np.zeros((len(part), k), part.dtype)
            whole[:, : part.shape[1]] = part * (factors / mean)
            whole += LEVEL * whole.mean(axis=1, keepdims=True)
            result.append(whole)
        return result

    return Loadings(tuple(leveled(users, user_sums)), leveled([items], item_sums)[0], rate)
