"""Counts in blocks of rows, over which a fit iterates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.backends.protocol import Backend, Counts, Host


@dataclass(frozen=True)
class Pairs:
    """Counts of selected pairs: row numbers, column numbers and values, each (Z,), on the host."""

    rows: Host  # ascending
    columns: Host
    values: Host

    def transposed(self) -> Pairs:
        """The same with rows and columns exchanged."""
        order = np.lexsort((self.rows, self.columns))
        return Pairs(self.columns[order], self.rows[order], self.values[order])


@dataclass(frozen=True)
class Block:
    """Some users with all their counts, and their held-out counts, with rows numbered within the block."""

    users: slice  # row numbers
    counts: Counts  # (B, M)
    validation: Pairs | None = None


class CountBlocks(Protocol):
    """Blocks of counts in the order of their users; iterable repeatedly, and may be loaded one at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""

    @property
    def slices(self) -> tuple[slice, ...]:
        """Row numbers of each block's users."""

    def __iter__(self) -> Iterator[Block]: ...


@dataclass(frozen=True)
class BlocksInMemory:
    """Blocks of counts in the memory of a backend."""

    shape: tuple[int, int]  # (N, M)
    blocks: tuple[Block, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Row numbers of each block's users."""
        return tuple(block.users for block in self.blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)


def in_memory(
    backend: Backend,
    csr: Any,
    k: int,
    validation: Pairs | None = None,
    users_per_block: int | None = None,
    sources: Host | None = None,
) -> BlocksInMemory:
    """Canonical counts (N, M), scipy's or the backend's own, in blocks; by default in a single block.

    ``sources`` (M, L) are the neighbours of each item, if the model has them.
    """
    n, m = int(csr.shape[0]), int(csr.shape[1])
    size = users_per_block or n
    slices = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    parts = [csr] if len(slices) == 1 else [_rows(csr, rows) for rows in slices]
    return BlocksInMemory(
        (n, m),
        tuple(
            Block(
                rows,
                backend.counts(part, k, sources),
                None if validation is None else pairs_of(validation, rows),
            )
            for rows, part in zip(slices, parts, strict=True)
        ),
    )


def _rows(csr: Any, rows: slice) -> Any:
    """Some rows of a matrix, scipy's or the backend's own."""
    return csr[rows] if isinstance(csr, sparse.csr_array) else csr.rows(rows)


def pairs_of(pairs: Pairs, users: slice) -> Pairs | None:
    """The pairs of some users, with rows numbered from the first of them; None if there are none."""
    within = slice(*np.searchsorted(pairs.rows, (users.start, users.stop)))
    if within.start == within.stop:
        return None
    return Pairs(pairs.rows[within] - users.start, pairs.columns[within], pairs.values[within])


def row_batches(
    csr: sparse.csr_array, size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[Any], sparse.csr_array]]:
    """Row numbers and counts of all rows in random batches of ``size``; the last batch may be smaller."""
    shuffled = rng.permutation(csr.shape[0])
    for start in range(0, len(shuffled), size):
        rows = np.sort(shuffled[start : start + size])
        yield rows, csr[rows]
