"""Fits to counts that memory does not hold: read in pieces, sorted on disk, and iterated over in blocks."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpf_gpu.backends.protocol import Backend, NotEnoughMemory
from hpf_gpu.data.counts import Elsewhere, TrainingData
from hpf_gpu.data.numbering import Numbering
from hpf_gpu.data.pieces import in_pieces
from hpf_gpu.data.triplets import Triplets
from hpf_gpu.files.count_store import BlocksOnDisk, RunsOfCounts
from hpf_gpu.model.settings import Settings
from hpf_gpu.model.start import bytes_of_fit

from .progress import Progress

_PROCESS = 400_000_000  # bytes of a process before it fits: Python, the packages, and what reading leaves
_STEP = 256_000_000  # what it has beyond that is taken in such steps, so that a rerun has the same blocks
#: Bytes for a count at the peak: while it is read and sorted into a run, and as part of a block, two of which
#: are laid out while a third is read.
_OF_A_RUN, _OF_A_BLOCK = 40, 48
_READ_AT_ONCE = 1 << 22  # counts
_LARGEST_RUN = 1 << 26
_SMALLEST_BLOCK = 1 << 16
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def bytes_in(name: str, value: Any) -> int:
    """A number of bytes, or a string such as "4GB", "512 MB" or "2GiB"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", value, re.IGNORECASE)
        if match:
            number, unit, binary = match[1], match[2].upper(), bool(match[3])
            scale = 1024 ** "KMGT".index(unit) * 1024 if binary and unit else _UNITS[unit]
            return int(float(number) * scale)
    elif isinstance(value, (int, float, np.integer)) and not isinstance(value, bool) and 0 < value < 2**63:
        return int(value)
    raise ValueError(f"{name}={value!r} is not an amount of memory: pass bytes, or a string such as '4GB'")


@dataclass(frozen=True)
class Limit:
    """How much memory a process may have, and what of it is for counts.

    Sizes are powers of two, and depend on the limit alone unless the process is large already: the blocks of
    a fit, and so the roundings of its sums, are the same when it is run again.
    """

    memory: int  # bytes

    @property
    def left(self) -> int:
        """Bytes beyond what the process has."""
        more = max(0, resident_memory() - _PROCESS)
        return self.memory - _PROCESS - -(-more // _STEP) * _STEP

    def counts_of_a_run(self) -> int:
        """Counts that are read and sorted at once; NotEnoughMemory if the limit is too small to begin."""
        if self.left < _OF_A_RUN * _SMALLEST_BLOCK:
            limit, has = self.memory / 1e9, resident_memory() / 1e9
            raise NotEnoughMemory(
                f"memory_limit is {limit:.2g} GB, and the process has {has:.2g} GB before the fit, for "
                "which it needs 0.5 GB and more: raise the limit"
            )
        return min(_power_of_two(self.left // 2 // _OF_A_RUN), _LARGEST_RUN)

    def counts_of_a_block(self, state: int, what: str) -> int:
        """Counts in a block of a fit whose state takes so many bytes; NotEnoughMemory if it does not fit."""
        left = self.left - state
        if left < _OF_A_BLOCK * _SMALLEST_BLOCK:
            least = self.memory - left + 4 * _OF_A_BLOCK * _SMALLEST_BLOCK
            raise NotEnoughMemory(
                f"{what} need {state / 1e9:.3g} GB, for which memory_limit={self.memory / 1e9:.3g} GB has no "
                f"room: raise it to {least / 1e9:.3g} GB or more, or take a smaller k"
            )
        return _power_of_two(left // _OF_A_BLOCK)


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def resident_memory() -> int:
    """Bytes of physical memory that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def refuse_what_needs_all(settings: Settings) -> None:
    """Raise ValueError for a fit that cannot go over the counts block by block."""
    for name in ("users_per_batch", "items_per_batch", "neighbours"):
        if value := getattr(settings, name):
            raise ValueError(f"{name}={value} needs all counts in memory: leave out memory_limit, or {name}")


def counts_on_disk(
    settings: Settings, backend: Backend, data: Any, limit: Limit, folder: Path, *, checkpoint: bool
) -> tuple[TrainingData, BlocksOnDisk]:
    """Read counts, and lay them out in blocks of users in files of a folder.

    Raises
    ------
    ValueError, TypeError, NotEnoughMemory, OSError
    """
    runs = RunsOfCounts(folder)
    size = limit.counts_of_a_run()
    source = in_pieces(data, settings.columns, min(size, _READ_AT_ONCE))
    users, items = (
        Numbering(kind, reindex=settings.reindex, written=source.written) for kind in ("user", "item")
    )
    with Progress("reading", source.total, " counts", enabled=settings.verbose, scale=True) as progress:
        pieces = source.triplets(min(size, _READ_AT_ONCE), dtype=backend.dtype.type, columns=settings.columns)
        _write_runs(pieces, users, items, runs, size, progress)
    training = TrainingData(Elsewhere((users.size, items.size)), users.ids, items.ids)
    del users, items, source, pieces
    _give_back()
    shape, k = training.csr.shape, settings.width
    copies = (settings.schedule == "accelerated") + checkpoint
    state = bytes_of_fit(shape[0], shape[1], k, backend.dtype, copies=copies)
    what = f"{shape[0]:,} users and {shape[1]:,} items with k={settings.k} in {backend.dtype}"
    slices = runs.slices(shape[0], limit.counts_of_a_block(state, what))
    with Progress("sorting", runs.total, " counts", enabled=settings.verbose, scale=True) as progress:
        blocks = BlocksOnDisk.of(
            backend,
            folder,
            runs,
            shape,
            k,
            slices,
            settings.counts,
            done=lambda counts, size: progress.advance(counts, _written(size)),
        )
    return training, blocks


def _write_runs(
    pieces: Iterable[Triplets],
    users: Numbering,
    items: Numbering,
    runs: RunsOfCounts,
    size: int,
    progress: Progress,
) -> None:
    """Number the ids of all pieces, and write their counts in runs of ``size``."""
    buffers: list[NDArray[Any]] = []
    used = 0
    for triplets in pieces:
        given = (users.numbers(triplets.users), items.numbers(triplets.items), triplets.counts)
        if not buffers:
            buffers = [np.empty(size, dtype) for dtype in (np.int32, np.int32, triplets.counts.dtype)]
        start = 0
        while start < len(triplets.counts):
            taken = min(size - used, len(triplets.counts) - start)
            for buffer, values in zip(buffers, given, strict=True):
                buffer[used : used + taken] = values[start : start + taken]
            start, used = start + taken, used + taken
            if used == size:
                runs.add(*buffers)
                used = 0
        progress.advance(len(triplets.counts), _written(runs.bytes))
    if used:
        runs.add(*(buffer[:used] for buffer in buffers))


def _written(size: int) -> str:
    return f"{size / 1e9:.1f} GB written"


def _give_back() -> None:
    """Return memory that pyarrow and the interpreter hold in reserve to the system."""
    gc.collect()
    if (pa := sys.modules.get("pyarrow")) is not None:
        pa.default_memory_pool().release_unused()
