"""Counts in blocks of rows, which fits go through again and again."""

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
    """Counts of chosen pairs: user and item numbers and values, each (Z,), on the host."""

    rows: Host
    columns: Host
    values: Host


@dataclass(frozen=True)
class Block:
    """Some users with all their counts, and what is held out of them, numbered within the block."""

    users: slice  # row numbers
    counts: Counts  # (B, M)
    validation: Pairs | None = None


class CountBlocks(Protocol):
    """Blocks of counts in the order of their users; can be gone through again, and may load each in turn."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""

    @property
    def slices(self) -> tuple[slice, ...]:
        """Row numbers of each block's users."""

    def __iter__(self) -> Iterator[Block]: ...


@dataclass(frozen=True)
class BlocksInMemory:
    """Blocks that a backend has laid out in its memory."""

    shape: tuple[int, int]  # (N, M)
    blocks: tuple[Block, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Row numbers of each block's users."""
        return tuple(block.users for block in self.blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)


def in_memory(
    backend: Backend, csr: Any, k: int, validation: Pairs | None = None, users_per_block: int | None = None
) -> BlocksInMemory:
    """Canonical counts (N, M), scipy's or the backend's own, as blocks; as one unless told how many users."""
    n, m = int(csr.shape[0]), int(csr.shape[1])
    size = users_per_block or n
    slices = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    parts = [csr] if len(slices) == 1 else [_rows(csr, rows) for rows in slices]
    return BlocksInMemory(
        (n, m),
        tuple(
            Block(rows, backend.counts(part, k), None if validation is None else _pairs_of(validation, rows))
            for rows, part in zip(slices, parts, strict=True)
        ),
    )


def _rows(csr: Any, rows: slice) -> Any:
    """Some rows of a matrix; a backend's own has a method for it."""
    return csr[rows] if isinstance(csr, sparse.csr_array) else csr.rows(rows)


def _pairs_of(pairs: Pairs, users: slice) -> Pairs | None:
    """The pairs of some users, numbered from the first of these; None if there are none."""
    within = slice(*np.searchsorted(pairs.rows, (users.start, users.stop)))
    if within.start == within.stop:
        return None
    return Pairs(pairs.rows[within] - users.start, pairs.columns[within], pairs.values[within])


def row_batches(
    csr: sparse.csr_array, size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[Any], sparse.csr_array]]:
    """All rows in random batches of ``size``, the last one perhaps smaller: row numbers and their counts."""
    shuffled = rng.permutation(csr.shape[0])
    for start in range(0, len(shuffled), size):
        rows = np.sort(shuffled[start : start + size])
        yield rows, csr[rows]
