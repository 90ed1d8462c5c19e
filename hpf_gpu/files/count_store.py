"""Counts of a fit on disk: sorted by user outside of memory, and kept in blocks that are loaded in turn.

Row numbers are known when a count is read.  So one pass writes runs, each sorted by row in memory, and a
second one takes the rows of a block from every run.  The backend lays a block out and packs it for its file.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.blocks import Block, Pairs, pairs_of
from hpf_gpu.data.triplets import canonical
from hpf_gpu.narrowing import narrowest, value_type

#: Array, and where it begins in a file.
_Places = dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]


class RunsOfCounts:
    """Counts in files, sorted by row within each of them.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: list[tuple[Path, _Places]] = []
        self._degrees = np.zeros(0, np.int64)  # number of counts of each row, duplicates included
        self.bytes = 0  # of the files

    @property
    def total(self) -> int:
        """Number of counts, duplicates included."""
        return int(self._degrees.sum())

    def add(self, rows: NDArray[Any], columns: NDArray[Any], counts: NDArray[Any]) -> None:
        """Write a run of counts in any order, (Z,) each."""
        n = int(rows.max()) + 1
        csr = _csr(rows, columns, counts, (n, int(columns.max()) + 1))
        degrees = np.diff(csr.indptr)
        if n > len(self._degrees):
            self._degrees = np.concatenate([self._degrees, np.zeros(n - len(self._degrees), np.int64)])
        self._degrees[:n] += degrees
        path = self._folder / f"run-{len(self._runs)}"
        arrays = {
            "degrees": degrees.astype(narrowest(degrees)),
            "columns": csr.indices,
            "counts": csr.data.astype(value_type(csr.data, csr.data.dtype)),
        }
        self._runs.append((path, _write(path, arrays)))
        self.bytes += path.stat().st_size

    def slices(self, n: int, most: int) -> tuple[slice, ...]:
        """Rows in consecutive blocks of at most ``most`` counts, unless a single row has more; N in all."""
        ends = np.zeros(n, np.int64)
        ends[: len(self._degrees)] = self._degrees
        np.cumsum(ends, out=ends)
        bounds = [0]
        while bounds[-1] < n:
            before = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(max(int(np.searchsorted(ends, before + most, side="right")), bounds[-1] + 1))
        return tuple(slice(a, b) for a, b in pairwise(bounds))

    def blocks(
        self, slices: Iterable[slice], m: int, dtype: np.dtype[Any], taken: str
    ) -> Iterator[sparse.csr_array]:
        """Canonical counts (B, M) of consecutive rows, each read once; the files are removed in the end."""
        starts = [0] * len(self._runs)
        for rows in slices:
            parts = []
            for number, (path, places) in enumerate(self._runs):
                length = places["degrees"][1][0]
                within = slice(min(rows.start, length), min(rows.stop, length))
                degrees = _read(path, places, "degrees", within)
                here = slice(starts[number], starts[number] + int(degrees.sum(dtype=np.int64)))
                starts[number] = here.stop
                if here.stop > here.start:
                    columns, counts = (_read(path, places, name, here) for name in ("columns", "counts"))
                    parts.append((degrees, columns, counts))
            yield _joined(parts, (rows.stop - rows.start, m), dtype, taken)
        for path, _ in self._runs:
            path.unlink()


def _joined(
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    taken: str,
) -> sparse.csr_array:
    """Counts (B, M) of the same rows from several runs: their degrees, columns and counts."""
    if not parts:  # of a matrix, with users who have no count
        return sparse.csr_array(shape, dtype=dtype)
    if len(parts) == 1:
        [(degrees, columns, counts)] = parts
        ends = np.cumsum(degrees, dtype=np.int64)
        indptr = np.concatenate([[0], ends, np.full(shape[0] - len(ends), ends[-1])])
        csr = sparse.csr_array((counts.astype(dtype), columns, indptr), shape=shape)
    else:
        rows = [np.repeat(np.arange(len(degrees), dtype=np.int32), degrees) for degrees, _, _ in parts]
        columns = np.concatenate([columns for _, columns, _ in parts])
        counts = np.concatenate([counts.astype(dtype) for _, _, counts in parts])
        parts.clear()  # so that memory has each of them once
        csr = _csr(np.concatenate(rows), columns, counts, shape)
    return canonical(csr, taken)


def _csr(
    rows: NDArray[Any], columns: NDArray[Any], counts: NDArray[Any], shape: tuple[int, int]
) -> sparse.csr_array:
    """Counts (Z,) in order of rows; duplicates added up."""
    return sparse.coo_array((counts, (rows, columns)), shape=shape).tocsr()


@dataclass(frozen=True)
class BlocksOnDisk:
    """Blocks of counts in files, in the packed form of a backend; the next is loaded while one is used."""

    backend: Backend
    shape: tuple[int, int]  # (N, M)
    k: int
    slices: tuple[slice, ...]
    files: tuple[tuple[Path, _Places], ...]
    nnz: int
    checksums: tuple[int, ...]  # of the users' numbers of counts, of columns and of counts
    validation: Pairs | None = None

    @staticmethod
    def of(
        backend: Backend,
        folder: Path,
        runs: RunsOfCounts,
        shape: tuple[int, int],
        k: int,
        slices: tuple[slice, ...],
        taken: str,
        done: Callable[[int, int], object],
    ) -> BlocksOnDisk:
        """Lay the counts of sorted runs out for ``k`` factors, block by block.

        ``done`` is called after each block with its number of counts, and with the bytes of all so far.
        """
        files, nnz, size, checksums = [], 0, 0, [0, 0, 0]
        for number, csr in enumerate(runs.blocks(slices, shape[1], backend.dtype, taken)):
            arrays_of: list[NDArray[Any]] = [np.diff(csr.indptr).astype(np.int64), csr.indices, csr.data]
            checksums = [zlib.crc32(a.data, crc) for a, crc in zip(arrays_of, checksums, strict=True)]
            del arrays_of
            own = csr.nnz
            arrays = backend.packed(backend.counts(csr, k))
            del csr
            path = folder / f"block-{number}"
            files.append((path, _write(path, arrays)))
            nnz, size = nnz + own, size + path.stat().st_size
            done(own, size)
        return BlocksOnDisk(backend, shape, k, slices, tuple(files), nnz, tuple(checksums))

    @property
    def fingerprint(self) -> str:
        """What identifies the counts."""
        n, m = self.shape
        sums = ", ".join(f"{one:08x}" for one in self.checksums)
        return f"{self.nnz} counts of {n} users and {m} items on disk, checksums {sums}"

    def __iter__(self) -> Iterator[Block]:
        with ThreadPoolExecutor(1, "hpf_gpu-load") as loader:
            coming = loader.submit(self._load, 0)
            for number in range(len(self.slices)):
                block = coming.result()
                if number + 1 < len(self.slices):
                    coming = loader.submit(self._load, number + 1)
                yield block
                del block  # or three would be in memory when the next is asked for

    def _load(self, number: int) -> Block:
        rows, (path, places) = self.slices[number], self.files[number]
        arrays = {name: _read(path, places, name) for name in places}
        counts = self.backend.unpacked(arrays, (rows.stop - rows.start, self.shape[1]), self.k)
        return Block(rows, counts, None if self.validation is None else pairs_of(self.validation, rows))

    def with_validation(self, pairs: Pairs | None) -> BlocksOnDisk:
        """The same with held-out counts."""
        return replace(self, validation=pairs)


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> _Places:
    """Write arrays to a file one after the other, and say where they are."""
    places: _Places = {}
    with open(path, "wb", buffering=0) as file:
        for name, array in arrays.items():
            places[name] = (array.dtype, array.shape, file.tell())
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            while len(flat):  # a disk that is nearly full takes less than it is given
                flat = flat[file.write(flat) :]
    return places


def _read(path: Path, places: _Places, name: str, part: slice = slice(None)) -> NDArray[Any]:
    """An array of a file, or some of its rows.

    Raises
    ------
    OSError
        If the file is gone or shorter than it was.
    """
    dtype, shape, offset = places[name]
    start, stop, _ = part.indices(shape[0])
    width = int(np.prod(shape[1:], dtype=np.int64))
    try:
        array = np.fromfile(
            path, dtype, (stop - start) * width, offset=offset + start * width * dtype.itemsize
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}, with counts of this fit, was removed in the meantime") from error
    if len(array) < (stop - start) * width:
        raise OSError(f"{path}, with counts of this fit, was changed in the meantime: fit again")
    return array.reshape(stop - start, *shape[1:])
