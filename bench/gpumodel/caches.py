"""How warps share a GPU and its caches while they gather rows, by a simulation in C++ (caches.cpp).

Needs ``g++``; what it compiles stays out of the package.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

_SOURCE = Path(__file__).with_suffix(".cpp")
#: From so many columns on, the rows of only one of eight columns are followed, through caches of an eighth
#: of the size.  For Netflix and LastFM-360K that changes the share of rows in L1 by less than 2 percent
#: points and of those from DRAM by less than half a point.
_SAMPLED_FROM = 1 << 14
_SAMPLING = 8


@dataclass(frozen=True)
class Nonzeros:
    """The nonzeros of a matrix in rows, of which some columns are followed through the caches."""

    count: int  # Z
    sampling: int  # of so many columns one is followed
    at: np.ndarray  # (F,) int64, which nonzeros are followed
    column: np.ndarray  # (F,) int32, their columns

    @classmethod
    def of(cls, column: np.ndarray, columns: int, sampling: int | None = None) -> Nonzeros:
        """Those with column numbers ``column`` (Z,), of a matrix with so many columns."""
        if sampling is None:
            sampling = _SAMPLING if columns >= _SAMPLED_FROM else 1
        hashed = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        follows = (hashed >> np.uint64(32)) % np.uint64(sampling) == 0
        at = np.flatnonzero(follows[column])
        return cls(len(column), sampling, at, column[at].astype(np.int32))


@dataclass(frozen=True)
class Segments:
    """Segments of rows in the order in which they are launched."""

    begin: np.ndarray  # (S,) int64, first nonzero of each
    size: np.ndarray  # (S,) int32, number of nonzeros


@dataclass(frozen=True)
class Machine:
    """A GPU and what a warp does there."""

    multiprocessors: int
    blocks: int  # resident on a multiprocessor
    warps: int  # of a block
    l1_rows: float  # that the L1 cache of a multiprocessor holds
    l2_rows: float
    step: int  # nonzeros that a warp takes at once
    row_bytes: float = 0
    nonzero_l2_bytes: float = 0  # moved beside the row
    nonzero_dram_bytes: float = 0
    segment_l2_bytes: float = 0
    segment_dram_bytes: float = 0
    step_seconds: float = 0  # for which a step keeps the busiest unit of a multiprocessor
    segment_seconds: float = 0  # the same for all else of a segment
    l2_rate: float = 1e30  # bytes a second
    dram_rate: float = 1e30
    l2_latency: float = 0  # seconds
    dram_latency: float = 0
    waits: int = 2  # rounds of a segment without nonzeros: where it is; its sum


@dataclass(frozen=True)
class Traffic:
    """What the simulation found."""

    l1_hits: float  # share of the rows
    dram: float  # share of the rows
    busy: float  # share of the warps of resident blocks
    rounds: int
    waited_for: dict[str, float]  # seconds: rounds that were as long as latency, l2, dram or unit needed

    @property
    def seconds(self) -> float:
        return sum(self.waited_for.values())


def gather(machine: Machine, segments: Segments, nonzeros: Nonzeros) -> Traffic:
    """Let every segment's warp gather the rows of its nonzeros' columns."""
    begin, size = segments.begin.astype(np.int64), segments.size.astype(np.int32)
    first = np.searchsorted(nonzeros.at, begin).astype(np.int64)
    given = asdict(machine)
    for cache_rows in ("l1_rows", "l2_rows"):
        given[cache_rows] = round(given[cache_rows] / nonzeros.sampling)
    found = _Traffic()
    arguments = (
        _Machine(**given),
        _Segments(len(size), _pointer(begin), _pointer(size), _pointer(first)),
        _Followed(len(nonzeros.at), _pointer(nonzeros.at), _pointer(nonzeros.column)),
        found,
    )
    _library().gather(*map(ctypes.byref, arguments))
    rows = max(1, found.followed)
    return Traffic(
        found.l1_hits / rows,
        (found.followed - found.l1_hits - found.l2_hits) / rows,
        found.busy / max(1, found.slots),
        found.rounds,
        {name: getattr(found, name) for name in ("latency", "l2", "dram", "unit")},
    )


def _structure(name: str, **kinds: str) -> type[ctypes.Structure]:
    """A structure with the fields of the one of that name in caches.cpp."""
    types = {"integers": ctypes.c_int64, "pointers": ctypes.c_void_p, "reals": ctypes.c_double}
    listed = [(field, types[kind]) for kind, names in kinds.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": listed})


_Machine = _structure(
    "Machine",
    integers="multiprocessors blocks warps l1_rows l2_rows step waits",
    reals="row_bytes nonzero_l2_bytes nonzero_dram_bytes segment_l2_bytes segment_dram_bytes "
    "step_seconds segment_seconds l2_rate dram_rate l2_latency dram_latency",
)
_Segments = _structure("Segments", integers="count", pointers="begin size followed")
_Followed = _structure("Followed", integers="count", pointers="at column")
_Traffic = _structure(
    "Traffic", integers="followed l1_hits l2_hits busy slots rounds", reals="latency l2 dram unit"
)


@cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("caches are simulated by a C++ program: install g++")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "caches.so")
        done = subprocess.run(
            [compiler, "-std=c++17", "-O3", "-shared", "-fPIC", str(_SOURCE), "-o", str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"g++ does not compile {_SOURCE.name}: {done.stderr[:300]}")
        library = ctypes.CDLL(str(target))
    library.gather.restype = None
    return library


def _pointer(array: np.ndarray) -> int:
    return int(array.ctypes.data)
