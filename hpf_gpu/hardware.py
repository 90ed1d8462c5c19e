"""What computers and GPUs have, for :mod:`hpf_gpu.planning`: this machine, and public figures of others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .model.start import physical_memory


@dataclass(frozen=True)
class Gpu:
    """A GPU by public figures."""

    name: str  # as the driver says it, or its beginning
    memory: float  # bytes
    dram_rate: float  # bytes a second
    l2_rate: float
    l2: float  # bytes that count as one cache
    pcie_rate: float  # bytes a second from the host


_GIB, _MIB, _GB, _TB = 2.0**30, 2.0**20, 1e9, 1e12

_REACHED = 0.9  # of the rate of a GPU's memory; bench/gpumodel/gpus.py has the sources of this and of the L2s

#: Memory, its rate and that of PCIe in one direction, of which four fifths can be reached: NVIDIA's data
#: sheets.
GPUS = {
    "h200": Gpu("NVIDIA H200", 139 * _GIB, 4.8 * _TB * _REACHED, 9.7 * _TB, 25 * _MIB, 50 * _GB),
    "h100": Gpu("NVIDIA H100", 79 * _GIB, 3.35 * _TB * _REACHED, 9.7 * _TB, 25 * _MIB, 50 * _GB),
    "a100": Gpu("NVIDIA A100", 79 * _GIB, 2.04 * _TB * _REACHED, 5.4 * _TB, 20 * _MIB, 25 * _GB),
    "rtx4090": Gpu(
        "NVIDIA GeForce RTX 4090", 23.5 * _GIB, 1008 * _GB * _REACHED, 4.7 * _TB, 72 * _MIB, 25 * _GB
    ),
    "l4": Gpu("NVIDIA L4", 22 * _GIB, 300 * _GB * _REACHED, 1.7 * _TB, 48 * _MIB, 12.5 * _GB),
    "t4": Gpu("Tesla T4", 14.5 * _GIB, 320 * _GB * _REACHED, 1.27 * _TB, 4 * _MIB, 12.5 * _GB),
}
#: Taken where a GPU has another name.
USUAL_GPU = "a100"


@dataclass(frozen=True)
class Machine:
    """What this process finds."""

    cores: int
    memory: float  # bytes
    disk: float  # bytes that are free
    gpus: tuple[tuple[str, float], ...]  # name and bytes of memory of each


def this_machine(folder: str | os.PathLike[str] = ".") -> Machine:
    """The cores that this process may use, memory, what is free on the disk of a folder, and GPUs."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    memory = float(physical_memory() or 8 * _GIB)
    return Machine(cores, min(memory, _limit_of_container()), float(shutil.disk_usage(folder).free), _gpus())


def _limit_of_container() -> float:
    """Bytes of memory that the control group of this process may have (Linux)."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return float(Path(path).read_text())
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return float("inf")


def _gpus() -> tuple[tuple[str, float], ...]:
    """Name and memory of each GPU that the driver tells of."""
    command = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rpartition(",") for line in done.stdout.splitlines()]
    return tuple((name.strip(), float(size) * _MIB) for name, _, size in rows if size.strip().isdigit())


def gpu_named(short: str) -> Gpu:
    """The figures of a GPU by its short name; ValueError if that is not known."""
    if short not in GPUS:
        raise ValueError(f"gpu={short!r} is not known; choose one of {', '.join(GPUS)}")
    return GPUS[short]


def gpu_of_driver(name: str) -> Gpu | None:
    """The same by the name that the driver gives it, such as "NVIDIA A100-SXM4-80GB"; None if unknown."""
    return next((gpu for gpu in GPUS.values() if re.match(rf"{re.escape(gpu.name)}\b", name)), None)
