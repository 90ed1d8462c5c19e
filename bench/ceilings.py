"""What this machine gives at best: copies, rows gathered at random, and fused multiply-adds.

Rates are those of the same threads, precision and row width as the operations that they are held against.
Needs ``g++`` with OpenMP; what it compiles stays out of the package.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gpu.clock import Clock

_SOURCE = Path(__file__).with_suffix(".cpp")
_LINE = 64  # bytes of a cache line: rows of factors fill whole ones
_IN_CACHE, _IN_MEMORY = 1 << 19, 1 << 29  # bytes: half of a usual L2, and more than any L3 of a desktop
_ROWS_READ = 1 << 20
_CLOCK = Clock(warm_up=1, least=5, seconds=0.1)


@dataclass(frozen=True)
class Ceilings:
    """Rates of the whole machine at so many threads."""

    copy: float  # bytes a second, those read and those written
    gather_cache: float  # bytes a second, rows of a block in cache
    gather_memory: float  # the same, rows all over the memory
    fma: float  # multiply-adds a second


def measure(k: int, dtype: str, threads: int) -> Ceilings:
    """Measure them for rows of ``k`` factors; RuntimeError where nothing can be compiled."""
    row = row_bytes(k, dtype) // np.dtype(dtype).itemsize
    library = _compile(row, dtype)
    return Ceilings(
        _copy(library, threads),
        _gather(library, row, dtype, _IN_CACHE, threads),
        _gather(library, row, dtype, _IN_MEMORY, threads),
        _fma(library, threads),
    )


def row_bytes(k: int, dtype: str) -> int:
    """Bytes of a row of factors, in whole cache lines."""
    return -(-k * np.dtype(dtype).itemsize // _LINE) * _LINE


def _compile(row: int, dtype: str) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("ceilings are measured by a C++ program: install g++")
    real = {"float32": "float", "float64": "double"}[dtype]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "ceilings.so")
        options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", f"-DREAL={real}", f"-DROW={row}"]
        done = subprocess.run(
            [compiler, *options, str(_SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"g++ does not compile {_SOURCE.name}: {done.stderr[:300]}")
        library = ctypes.CDLL(str(target))
    library.gather.restype = library.multiply_add.restype = ctypes.c_double
    return library


def _rate(amount: float, work: Callable[[], object]) -> float:
    """Amount a second, of the fastest run."""
    return amount / _CLOCK.wall(work).min * 1e3


def _copy(library: ctypes.CDLL, threads: int) -> float:
    source, target = (np.ones(_IN_MEMORY // 2, np.uint8) for _ in range(2))
    arguments = (_pointer(target), _pointer(source), ctypes.c_int64(source.nbytes), threads)
    return _rate(2 * source.nbytes, lambda: library.copy(*arguments))


def _gather(library: ctypes.CDLL, row: int, dtype: str, table_bytes: int, threads: int) -> float:
    width = row * np.dtype(dtype).itemsize
    rows = table_bytes // width
    memory = np.ones(rows * width + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    memory[begin : begin + rows * width].view(dtype)[:] = 1
    column = np.random.default_rng(0).integers(0, rows, _ROWS_READ, np.int32)

    def rate(ahead: int) -> float:
        arguments = (_pointer(memory[begin:]), _pointer(column), ctypes.c_int64(len(column)), ahead, threads)
        return _rate(len(column) * width, lambda: library.gather(*arguments))

    return max(rate(ahead) for ahead in (0, 8, 16))


def _fma(library: ctypes.CDLL, threads: int) -> float:
    rounds = 1 << 20
    arguments = (ctypes.c_int64(rounds), ctypes.c_double(0.999), ctypes.c_double(0.001), threads)
    return _rate(rounds * library.fmas_of_round() * threads, lambda: library.multiply_add(*arguments))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
