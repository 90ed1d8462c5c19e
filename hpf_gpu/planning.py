"""What a fit would take: memory, and seconds of an iteration, by a model, before there are data or a machine.

Each way to fit is a list of parts, and each part moves bytes or works at one of the :class:`Rates`.  What
memory holds is asked of the functions that decide it in a fit.  ``docs/scaling.md`` has the formulas in
words, and how far they were from what was measured.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from . import backends, hardware
from .estimator import HPF
from .fitting.beyond_memory import bytes_in
from .model.settings import whole_number
from .model.start import bytes_of_fit

_LINE = 64  # bytes of a cache line, which rows of factors fill on a CPU
_CACHE = 8 << 20  # bytes of cache that two matrices of a block of columns fill
_OF_SEGMENT = 7.0  # nonzeros that take as long as one segment when counts are laid out
_PROCESS = 0.3e9  # bytes of Python and its packages
_FROM_FILE = 90.0  # bytes for a count while it is read from a Parquet file of integers into memory
_BLOCKS = 1.0e9  # bytes of a process and of its blocks of some million counts, out of core
_PART = 40.0  # the same on a worker of a cluster, which reads part by part; assumed
_RUN, _PACKED = 10.0, 4.5  # bytes of a count on disk: while it is sorted, and in a block
_STREAMED = 4  # bytes of a count that comes to a GPU, by users and by items each
#: The share of rows that come from beyond a GPU's L2 cache is that of the matrix which does not fit, to this
#: power: few rows are most of what is gathered.
_POPULAR = 2.0
_MAX_ROWS = 2**31 - 1  # that backends number


@dataclass(frozen=True)
class Rates:
    """What is done in a second; half of one of them is an assumption that was wrong by two.

    Those of a GPU are zero where there is none.
    """

    cores: float = 1.0
    lines: float = 1.22e8
    segments: float = 5.2e7
    distant: float = 1.5e8
    numbers: float = 1.28e8
    rows: float = 1.4e7
    layout: float = 1.9e8
    unpacking: float = 3.3e8
    reading: float = 7.7e6
    sorting: float = 7e6
    memory: float = 2e11
    disk: float = 1e9
    local: float = 1e9
    network: float = 1.2e9
    dram: float = 0.0
    l2: float = 0.0
    pcie: float = 0.0


_MEASURED = "measured on 2 cores of an EPYC with AVX2"
_ASSUMED = "assumed"
_PUBLIC = "data sheet; no GPU was measured"


class Source(NamedTuple):
    """What a rate is of, its unit, and where it comes from."""

    what: str
    unit: str
    origin: str


#: Those of the Rates.
SOURCES = {
    "cores": Source("cores that add up", "of 1", "measured with one and two"),
    "lines": Source("nonzeros × cache lines of a row, by a core", "/s", _MEASURED),
    "segments": Source("users' runs of nonzeros × cache lines, by a core", "/s", _MEASURED),
    "distant": Source("the same beyond a core's caches, in addition", "/s", _MEASURED),
    "numbers": Source("numbers of a gamma update, by a core", "/s", _MEASURED),
    "rows": Source("rows of a gamma update, by a core", "/s", _MEASURED),
    "layout": Source("nonzeros laid out, by a core", "/s", _MEASURED),
    "unpacking": Source("nonzeros unpacked, by a core", "/s", _MEASURED),
    "reading": Source("nonzeros with integer ids read and numbered", "/s", _MEASURED),
    "sorting": Source("nonzeros sorted on disk", "/s", _MEASURED),
    "memory": Source("of a machine's memory", "B/s", _ASSUMED),
    "disk": Source("from and to the disk", "B/s", _ASSUMED),
    "local": Source("between processes of a machine", "B/s", _ASSUMED),
    "network": Source("between machines", "B/s", "10 Gbit/s"),
    "dram": Source("of a GPU's memory", "B/s", _PUBLIC),
    "l2": Source("of a GPU's L2 cache", "B/s", _PUBLIC),
    "pcie": Source("between a GPU and its host", "B/s", _PUBLIC),
}
_ON_CPU = ("lines", "segments", "distant", "numbers", "rows", "layout", "unpacking", "reading", "sorting")


@dataclass(frozen=True)
class Sizes:
    """The size of a fit."""

    users: int  # N
    items: int  # M
    nonzeros: int  # Z
    k: int
    dtype: np.dtype[Any]

    @property
    def number(self) -> int:
        """Bytes of a number."""
        return int(self.dtype.itemsize)

    @property
    def lines(self) -> int:
        """Cache lines of a row of factors on a CPU."""
        return -(-self.k * self.number // _LINE)

    @property
    def filled(self) -> float:
        """Caches that two matrices of the items fill."""
        return self.items * 2 * self.lines * _LINE / _CACHE

    def segments(self, cores: float) -> float:
        """Runs of a user's nonzeros in a block of columns; for each the user's sums are read and written.

        There are at least as many blocks as cores.
        """
        blocks, each = max(math.ceil(self.filled), int(cores)), self.nonzeros / self.users
        return self.users * blocks * -math.expm1(each * math.log1p(-1 / blocks)) if blocks > 1 else self.users

    def places(self, cores: float) -> float:
        """What a layout takes the time of: nonzeros, again if items are many, and some for each segment."""
        return (1 + min(1.0, self.filled)) * self.nonzeros + _OF_SEGMENT * self.segments(cores)

    def share(self, parts: int) -> Sizes:
        """What one of so many processes has: some of the users, and all items."""
        return replace(self, users=-(-self.users // parts), nonzeros=-(-self.nonzeros // parts))

    def __str__(self) -> str:
        shape = f"{self.users:,} users, {self.items:,} items"
        return f"{shape}, {self.nonzeros:,} nonzeros, k={self.k}, {self.dtype}"


@dataclass(frozen=True)
class Computers:
    """What there is to fit on."""

    machines: int
    cores: int  # of each, and so on
    memory: float  # bytes
    disk: float  # bytes
    gpus: int
    gpu: hardware.Gpu | None

    def __str__(self) -> str:
        of_each = f"{self.cores} cores, {_bytes(self.memory)} of memory, {_bytes(self.disk)} of disk"
        if self.gpu is not None:
            of_each += f", {self.gpus} × {self.gpu.name} with {_bytes(self.gpu.memory)}"
        return of_each if self.machines == 1 else f"{self.machines} machines with {of_each} each"


class Part(NamedTuple):
    """Something that an iteration does."""

    name: str
    bytes: float  # that are moved
    seconds: float
    beside: bool = False  # whether it goes on while the others do


class Need(NamedTuple):
    """Memory or disk that a way to fit takes."""

    of: str
    bytes: float
    have: float


@dataclass(frozen=True)
class Way:
    """One way to fit."""

    name: str
    how: str  # it is called
    needs: tuple[Need, ...]
    parts: tuple[Part, ...]
    conversion: float  # seconds from a file to the first iteration
    source: str  # of its figures

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return all(need.bytes <= need.have for need in self.needs)

    @property
    def seconds(self) -> float:
        """Seconds of an iteration."""
        one_by_one = sum(part.seconds for part in self.parts if not part.beside)
        return max([one_by_one, *(part.seconds for part in self.parts if part.beside)])

    @property
    def lacking(self) -> str:
        """What is missing, or ''."""
        return "; ".join(
            f"{_bytes(need.bytes)} of {need.of}, of {_bytes(need.have)}"
            for need in self.needs
            if need.bytes > need.have
        )


@dataclass(frozen=True)
class Plan:
    """What a fit would take, each way that it could be done: :func:`plan` makes it."""

    sizes: Sizes
    computers: Computers
    rates: Rates
    ways: tuple[Way, ...]
    note: str = ""

    @property
    def best(self) -> Way | None:
        """The way that has room and takes the least time for an iteration; None if nothing has room."""
        return min((way for way in self.ways if way.fits), key=lambda way: way.seconds, default=None)

    @property
    def shown(self) -> Way:
        """The best way or, where nothing has room, the one that would take the least time if it had."""
        return self.best or min(self.ways, key=lambda way: way.seconds)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each way: whether it fits, bytes needed, and seconds."""
        return pd.DataFrame(
            {
                "Way": [way.name for way in self.ways],
                "Fits": [way.fits for way in self.ways],
                "Lacking": [way.lacking for way in self.ways],
                **{
                    name: [sum(need.bytes for need in way.needs if need.of == of) for way in self.ways]
                    for name, of in (("Memory", "memory"), ("Disk", "disk"), ("GpuMemory", "GPU memory"))
                },
                "Conversion": [way.conversion for way in self.ways],
                "Iteration": [way.seconds for way in self.ways],
                "Source": [way.source for way in self.ways],
            }
        )

    @property
    def parts(self) -> pd.DataFrame:
        """A row for each part of an iteration of each way: its bytes and seconds."""
        rows = [(way.name, *part) for way in self.ways for part in way.parts]
        return pd.DataFrame(rows, columns=["Way", "Part", "Bytes", "Seconds", "Beside"])

    @property
    def sensitivity(self) -> pd.DataFrame:
        """What it would cost to be wrong: a row for each rate, if it were half of what it is taken for.

        Times is that of an iteration, of the way that is ``shown``; what moves it most comes first.
        """
        return pd.DataFrame(self._slower, columns=["Rate", "What", "Value", "Unit", "Source", "Times"])

    @property
    def _slower(self) -> list[tuple[str, str, float, str, str, float]]:
        """The rows of ``sensitivity``."""
        way, rows = self.shown, []
        for name, source in SOURCES.items():
            rate = getattr(self.rates, name)
            ways = _ways(self.sizes, self.computers, replace(self.rates, **{name: rate / 2}))
            seconds = next(other.seconds for other in ways if other.name == way.name)
            if seconds > 1.005 * way.seconds:
                rows.append((name, source.what, rate, source.unit, source.origin, seconds / way.seconds))
        return sorted(rows, key=lambda row: -row[-1])

    def __str__(self) -> str:
        lines = [str(self.sizes), str(self.computers), ""]
        rows = [("", "fits", "needs", "conversion", "iteration")]
        for way in self.ways:
            needs = ", ".join(f"{_bytes(need.bytes)} {need.of}" for need in way.needs)
            times = (_seconds(way.conversion), _seconds(way.seconds))
            rows.append((way.name, "yes" if way.fits else "no", needs, *times))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
            cells += [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *self._told()]) + "\n"

    def _told(self) -> list[str]:
        """What is to be known, line by line: what lacks where nothing fits, and the costs of one way."""
        best, way, lines = self.best, self.shown, [""]
        if best is None:
            lines += [f"No room {one.name}: {one.lacking}." for one in self.ways]
        first = "Fastest that fits" if best is not None else "Fastest, if there were room"
        lines += [f"{first}: {way.name}. {way.how}", f"An iteration, {_seconds(way.seconds)}:"]
        for part in sorted(way.parts, key=lambda one: -one.seconds):
            beside = ", beside the others" if part.beside else ""
            moved = f", {_bytes(part.bytes)}" if part.bytes else ""
            lines.append(f"  {_seconds(part.seconds):>8}  {part.name}{moved}{beside}")
        lines.append("If a rate is half of what is assumed, an iteration takes")
        for _, what, value, unit, origin, times in self._slower:
            lines.append(f"  {times:.2f} ×  {_scaled(value)}{unit} {what} ({origin})")
        lines += [f"A model: {way.source}.", *([self.note] if self.note else [])]
        return lines


def plan(
    users: float,
    items: float,
    nonzeros: float,
    k: int = 30,
    *,
    dtype: Any = "float32",
    machines: int = 1,
    cores: int | None = None,
    memory: float | str | None = None,
    disk: float | str | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
    gpu_memory: float | str | None = None,
    disk_rate: float | str | None = None,
    local_rate: float | str | None = None,
    network_rate: float | str | None = None,
    measure: bool = False,
) -> Plan:
    """What a fit would take: what fits where, and how long it takes, by a model.

    Parameters
    ----------
    users, items, nonzeros : int, or a float that is whole such as 1e8
        The size of the counts.
    k : int, optional
        Number of factors, those of biases included.
    dtype : numpy.dtype, optional
        float32 or float64.
    machines : int, optional
        How many there are of what follows.
    cores : int, optional
        Of a machine; by default, as for all that follows, what this machine has.
    memory, disk : float or str, optional
        Bytes of a machine's memory, and of its disk that are free, or strings such as "64GB".
    gpus : int, optional
        Of a machine.
    gpu : {"h200", "h100", "a100", "rtx4090", "l4", "t4"}, optional
        Which GPU; by default the one of this machine, if it is one of these, else "a100".
    gpu_memory : float or str, optional
        Bytes of a GPU's memory; by default what the GPU has.
    disk_rate, local_rate, network_rate : float or str, optional
        Bytes a second of the disk, between processes of one machine, and between machines; by default 1 GB,
        1 GB and 1.2 GB.
    measure : bool, optional
        Run some iterations on this machine, for two seconds, and scale the rates of CPUs by what they take.

    Returns
    -------
    Plan
        Printed, it is a table with the costs of the fastest way; ``table``, ``parts`` and ``sensitivity``
        are frames, and ``best`` is that way.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range.

    Examples
    --------
    >>> import hpf_gpu
    >>> there = {"cores": 32, "memory": 256e9, "disk": 1e12, "gpus": 0}
    >>> plan = hpf_gpu.plan(1e8, 1e7, 1e10, k=16, **there)
    >>> plan.best.name
    'out of core'
    """
    given = {"users": users, "items": items, "nonzeros": nonzeros, "k": k}
    n, m, z, k = (whole_number(name, value, 1) for name, value in given.items())
    sizes = Sizes(n, m, z, k, np.dtype(dtype))
    for name, rows in (("users", sizes.users), ("items", sizes.items)):
        if rows > _MAX_ROWS:
            raise ValueError(f"{name}={rows:,} are more than the {_MAX_ROWS:,} that backends number")
    if sizes.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype={dtype!r} must be float32 or float64")
    if sizes.nonzeros > sizes.users * sizes.items:
        raise ValueError(
            f"nonzeros={sizes.nonzeros:,} are more than {sizes.users:,} users × {sizes.items:,} items"
        )
    here = hardware.this_machine()
    gpus = len(here.gpus) if gpus is None else whole_number("gpus", gpus, 0)
    device = _gpu(here, gpu, gpu_memory) if gpus else None
    computers = Computers(
        whole_number("machines", machines, 1),
        here.cores if cores is None else whole_number("cores", cores, 1),
        here.memory if memory is None else float(bytes_in("memory", memory)),
        here.disk if disk is None else float(bytes_in("disk", disk)),
        gpus,
        device,
    )
    rates, note = Rates(), ""
    links = {"disk": disk_rate, "local": local_rate, "network": network_rate}
    known = {name: float(bytes_in(f"{name}_rate", rate)) for name, rate in links.items() if rate is not None}
    if device is not None:
        known |= {"dram": device.dram_rate, "l2": device.l2_rate, "pcie": device.pcie_rate}
    if measure:
        speed = _measured_speed(here.cores)
        known |= {name: getattr(rates, name) * speed for name in _ON_CPU}
        note = f"Rates of CPUs are those of this machine: {speed:.2f} times the recorded ones."
    rates = replace(rates, **known)
    return Plan(sizes, computers, rates, _ways(sizes, computers, rates), note)


def sizes_of_file(path: str | os.PathLike[str], user: str, item: str) -> dict[str, int]:
    """Numbers of nonzeros, users and items of a Parquet file, by its metadata alone.

    Of users and items those are told whose ids are integers: the range of the ids, if that is smaller than
    the number of rows.  Where ids have gaps there are fewer.

    Raises
    ------
    ImportError, OSError, ValueError
        If pyarrow is missing, the file cannot be read, or it is not Parquet.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need pyarrow ({error}): pip install 'hpf_gpu[parquet]'") from error
    try:
        metadata = parquet.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    sizes = {"nonzeros": metadata.num_rows}
    for kind, name in (("users", user), ("items", item)):
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [
            group.column(number).statistics
            for group in groups
            for number in range(group.num_columns)
            if group.column(number).path_in_schema == name
        ]
        ends = [(one.min, one.max) for one in columns if one is not None and one.has_min_max]
        if len(ends) == len(groups) > 0 and all(isinstance(end, int) for pair in ends for end in pair):
            low, high = min(pair[0] for pair in ends), max(pair[1] for pair in ends)
            if high - low < metadata.num_rows:
                sizes[kind] = high - low + 1
    return sizes


# -- ways ----------------------------------------------------------------------------------------------


def _ways(sizes: Sizes, computers: Computers, rates: Rates) -> tuple[Way, ...]:
    """Every way to fit on these computers."""
    ways = [_in_memory(sizes, computers, rates), _out_of_core(sizes, computers, rates)]
    gpu = computers.gpu
    if gpu is not None and sizes.k <= backends.REGISTRY["cuda"].max_factors:
        ways.append(_on_gpu(sizes, computers, rates, gpu))
        if computers.gpus > 1:
            ways.append(_on_gpus(sizes, replace(computers, machines=1), rates, gpu))
    if computers.machines > 1:
        ways.append(_on_machines(sizes, computers, rates))
        if gpu is not None and sizes.k <= backends.REGISTRY["cuda"].max_factors:
            ways.append(_on_gpus(sizes, computers, rates, gpu))
    return tuple(ways)


def _in_memory(sizes: Sizes, computers: Computers, rates: Rates) -> Way:
    cores = _cores(computers, rates)
    return Way(
        "in memory",
        "HPF(...).fit(path)",
        (Need("memory", bytes_in_memory(sizes, computers.cores) + _PROCESS, computers.memory),),
        _on_cores(sizes, computers, rates),
        sizes.nonzeros / rates.reading + sizes.places(cores) / rates.layout / cores,
        f"rates {_MEASURED}",
    )


def _out_of_core(sizes: Sizes, computers: Computers, rates: Rates) -> Way:
    z, cores = sizes.nonzeros, _cores(computers, rates)
    needs = (
        Need("memory", _state(sizes) + _BLOCKS, computers.memory),
        Need("disk", (_RUN + _PACKED) * z, computers.disk),
    )
    parts = (
        *_on_cores(sizes, computers, rates),
        Part("unpack blocks", 8.0 * z, z / rates.unpacking / cores),
        Part("read blocks from disk", _PACKED * z, _PACKED * z / rates.disk, beside=True),
    )
    conversion = z / rates.reading + z / rates.sorting + sizes.places(cores) / rates.layout / cores
    conversion += (2 * _RUN + _PACKED) * z / rates.disk
    how = "HPF(...).fit(path, memory_limit=...)"
    return Way("out of core", how, needs, parts, conversion, f"rates {_MEASURED}, of the disk {_ASSUMED}")


def _on_gpu(sizes: Sizes, computers: Computers, rates: Rates, gpu: hardware.Gpu) -> Way:
    shape, z = (sizes.users, sizes.items), sizes.nonzeros
    needed = backends.bytes_on_gpu(shape, z, sizes.k, sizes.dtype)
    host, parts, name = _FROM_FILE * z + _PROCESS, _on_device(sizes, rates, gpu), "on a GPU"
    if needed > gpu.memory:
        needed = backends.bytes_on_gpu(shape, z, sizes.k, sizes.dtype, streamed=_STREAMED)
        moved = 2.0 * _STREAMED * z
        parts = (*parts, Part("counts from the host", moved, moved / rates.pcie, beside=True))
        name = "on a GPU, counts on the host"
    needs = (Need("memory", host, computers.memory), Need("GPU memory", needed, gpu.memory))
    conversion = z / rates.reading + 8.0 * z / rates.pcie
    return Way(name, "HPF(backend='cuda', ...).fit(path)", needs, parts, conversion, _OF_GPUS)


def _on_gpus(sizes: Sizes, computers: Computers, rates: Rates, gpu: hardware.Gpu) -> Way:
    workers = computers.machines * computers.gpus
    each, machines = sizes.share(workers), computers.machines
    needed = backends.bytes_on_gpu((each.users, each.items), each.nonzeros, sizes.k, sizes.dtype)
    needs = (
        Need("memory", _PART * sizes.nonzeros / machines + _PROCESS * computers.gpus, computers.memory),
        Need("GPU memory", needed, gpu.memory),
    )
    again = _gamma_on_device(sizes.items, sizes, rates)
    steps = _rounds(workers)
    copied = (2 * steps + 2) * _items_array(sizes)
    parts = (
        *_on_device(each, rates, gpu),
        Part("items again on all workers", *again),
        Part("copies between GPUs and hosts", copied, copied / rates.pcie),
        *_transfers(sizes, workers, machines, rates),
    )
    name = f"on {workers} GPUs of {machines} machine{'s' * (machines > 1)} (Dask)"
    conversion = sizes.nonzeros / rates.reading / workers + 8.0 * each.nonzeros / rates.pcie
    return Way(name, _DASK, needs, parts, conversion, f"{_OF_GPUS}; links as given")


def _on_machines(sizes: Sizes, computers: Computers, rates: Rates) -> Way:
    machines = computers.machines
    each = sizes.share(machines)
    cores = _cores(computers, rates)
    again = _gamma_on_cores(sizes.items, sizes, rates, cores)
    parts = (
        *_on_cores(each, computers, rates),
        Part("items again on all workers", *again),
        *_transfers(sizes, machines, machines, rates),
    )
    conversion = each.nonzeros / rates.reading + each.places(cores) / rates.layout / cores
    source = f"rates {_MEASURED}, links as given"
    needs = (Need("memory", bytes_in_memory(each, computers.cores, _PART) + _PROCESS, computers.memory),)
    return Way(f"on {machines} machines (Dask)", _DASK, needs, parts, conversion, source)


_DASK = "hpf_gpu.dask.HPF(...).fit(path)"
_OF_GPUS = "public figures of the GPU; no GPU was measured"


# -- what memory holds ---------------------------------------------------------------------------------


def bytes_in_memory(sizes: Sizes, cores: int, reading: float = _FROM_FILE) -> float:
    """Bytes at the peak of a fit in memory, beside those of the process: while counts are read, or later.

    A count laid out takes a column, a value and, for recommendations, a column again; a segment two numbers.
    """
    counts = (8.0 + sizes.number) * sizes.nonzeros + 8.0 * sizes.segments(cores)
    return max(reading * sizes.nonzeros, counts + _state(sizes))


def _state(sizes: Sizes) -> int:
    return bytes_of_fit(sizes.users, sizes.items, sizes.k, sizes.dtype)


# -- what an iteration does ----------------------------------------------------------------------------


def _on_cores(sizes: Sizes, computers: Computers, rates: Rates) -> tuple[Part, ...]:
    """An iteration on the cores of one machine, or at the rate of its memory where that takes longer."""
    cores, row = _cores(computers, rates), sizes.lines * _LINE
    segments = sizes.segments(cores)
    moved = (4.0 + sizes.number) * sizes.nonzeros + (8.0 + 3 * row) * segments + 3.0 * row * sizes.items
    near = sizes.nonzeros / rates.lines + segments / rates.segments
    seconds = sizes.lines * (near + min(1.0, sizes.filled) * sizes.nonzeros / rates.distant) / cores
    return (
        Part("allocate", moved, max(seconds, moved / rates.memory)),
        Part("gamma updates of users", *_gamma_on_cores(sizes.users, sizes, rates, cores)),
        Part("gamma updates of items", *_gamma_on_cores(sizes.items, sizes, rates, cores)),
    )


def _cores(computers: Computers, rates: Rates) -> float:
    """Cores of a machine that count: all, or of several the share that adds up."""
    return max(1.0, computers.cores * rates.cores)


def _gamma_on_cores(n: int, sizes: Sizes, rates: Rates, cores: float) -> tuple[float, float]:
    """Bytes and seconds of the update of n rows."""
    moved = 3.0 * n * sizes.lines * _LINE
    return moved, max(n * (sizes.k / rates.numbers + 1 / rates.rows) / cores, moved / rates.memory)


def _on_device(sizes: Sizes, rates: Rates, gpu: hardware.Gpu) -> tuple[Part, ...]:
    """An iteration on one GPU."""
    row = backends.row_bytes_on_gpu(sizes.k, sizes.dtype)
    parts = []
    for name, own, other in (("users", sizes.users, sizes.items), ("items", sizes.items, sizes.users)):
        beyond = max(0.0, 1 - gpu.l2 / (other * row)) ** _POPULAR
        streamed = (4.0 + sizes.number) * sizes.nonzeros
        from_l2, from_dram = row * sizes.nonzeros + streamed, beyond * row * sizes.nonzeros + streamed
        from_dram += 2.0 * row * own
        seconds = max(from_l2 / rates.l2, from_dram / rates.dram)
        parts.append(Part(f"allocate {name}", from_dram, seconds))
        parts.append(Part(f"gamma updates of {name}", *_gamma_on_device(own, sizes, rates)))
    return tuple(parts)


def _gamma_on_device(n: int, sizes: Sizes, rates: Rates) -> tuple[float, float]:
    moved = n * (3.0 * backends.row_bytes_on_gpu(sizes.k, sizes.dtype) + 24)
    return moved, moved / rates.dram


def _transfers(sizes: Sizes, workers: int, machines: int, rates: Rates) -> tuple[Part, ...]:
    """Σ yφ of the items up a tree over the workers, and the items down again."""
    array, steps = _items_array(sizes), _rounds(workers)
    of_machines = _rounds(machines)
    seconds = array * (of_machines / rates.network + (steps - of_machines) / rates.local)
    return (
        Part("sums of items to one worker", steps * array, seconds),
        Part("items to all workers", steps * array, seconds),
    )


def _items_array(sizes: Sizes) -> float:
    return float(sizes.items) * sizes.k * sizes.number


def _rounds(processes: int) -> int:
    """Levels of a tree over processes, of which two at a time are joined."""
    return (processes - 1).bit_length()


# -- this machine --------------------------------------------------------------------------------------


def _measured_speed(cores: int, seconds: float = 2.0) -> float:
    """How many times as fast as the model says this machine is at some iterations in memory."""
    rng, sizes = np.random.default_rng(0), Sizes(20_000, 5_000, 400_000, 32, np.dtype(np.float32))
    pairs = np.unique(rng.integers(0, sizes.users * sizes.items, sizes.nonzeros))
    counts = np.stack([pairs // sizes.items, pairs % sizes.items, np.ones_like(pairs)], axis=1)
    times: list[float] = []
    started = time.perf_counter()

    def until_late(_: Any) -> bool:
        times.append(time.perf_counter())
        return len(times) > 3 and times[-1] - started > seconds

    settings: dict[str, Any] = {"stop_crit": "maxiter", "maxiter": 1000, "verbose": False, "random_seed": 1}
    HPF(k=sizes.k, backend="openmp", reindex=False, **settings).fit(counts, callback=until_late)
    computers = Computers(1, cores, 0.0, 0.0, 0, None)
    expected = sum(part.seconds for part in _on_cores(sizes, computers, Rates()))
    return float(expected / np.median(np.diff(times)))


def _gpu(here: hardware.Machine, name: str | None, memory: float | str | None) -> hardware.Gpu:
    """The GPU to plan for."""
    found, size = here.gpus[0] if here.gpus else ("", 0.0)
    known = hardware.gpu_of_driver(found) if name is None else None
    usual = name or hardware.USUAL_GPU
    gpu = hardware.gpu_named(usual) if known is None else replace(known, memory=size)
    return gpu if memory is None else replace(gpu, memory=float(bytes_in("gpu_memory", memory)))


# -- text ----------------------------------------------------------------------------------------------


def _scaled(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def _bytes(value: float) -> str:
    return f"{_scaled(value)}B"


def _seconds(value: float) -> str:
    for size, unit, until in ((1e-3, "ms", 1.0), (1.0, "s", 120.0), (60.0, "min", 7200.0)):
        if value < until:
            return f"{value / size:.3g} {unit}"
    return f"{value / 3600:.3g} h"
