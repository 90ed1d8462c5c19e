"""Kernels that are compiled and loaded, and the runtime that executes them."""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import arguments, toolchain
from .errors import SimulationError

#: In a block.
MAX_THREADS = 1024

#: What a kernel may use without asking for more, in bytes.
DYNAMIC_SHARED_LIMIT = 48 << 10


class _Launch(ctypes.Structure):  # cudasim::Launch in include/runtime.h
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_size_t),
        ("dynamic_shared_limit", ctypes.c_size_t),
        ("seed", ctypes.c_uint64),
    )


class Runtime:
    """Simulated device memory; one for each flavour."""

    def __init__(self, library: Path) -> None:
        self.library = library
        # PyDLL keeps Python's lock: kernels of two threads must not run at the same time.
        functions = ctypes.PyDLL(str(library))
        self._allocate = functions.cudasim_allocate
        self._allocate.restype = ctypes.c_void_p
        self._allocate.argtypes = [ctypes.c_size_t]
        self._free = functions.cudasim_free
        self._free.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def allocate(self, size: int) -> int:
        """Return the address of new memory, filled with 0xFF, whose end is guarded."""
        address = self._allocate(size)
        if not address:
            raise MemoryError(f"no {size} bytes for the simulated device")
        return int(address)

    def free(self, address: int, size: int) -> None:
        """Give memory back; an access to it is an error from then on."""
        self._free(address, size)


class Module:
    """The kernels of one .cu source."""

    def __init__(self, library: Path, names: Sequence[str], runtime: Runtime) -> None:
        self.library = library
        self.names = tuple(names)
        self._functions = ctypes.PyDLL(str(library))
        self._runtime = runtime

    def signature(self, name: str) -> tuple[str, ...]:
        """Return numpy's type codes of a kernel's parameters, ``*`` before those of pointers."""
        function = self._function("signature", name)
        function.restype = ctypes.c_char_p
        return tuple(function().decode().split())

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        """Run a kernel to its end.

        ``args`` are arrays (see :meth:`array`) and numpy scalars, each checked against the C++ parameter.
        Raises TypeError if one does not fit, SimulationError if the kernel does what CUDA forbids.
        """
        arguments.check(name, self.signature(name), args, np.ndarray)
        packed = [_pack(argument) for argument in args]
        self.launch_packed(name, grid, block, [value.ctypes.data for value in packed], shared_mem)

    def launch_packed(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        addresses: Sequence[int],
        shared_mem: int,
        shared_limit: int = DYNAMIC_SHARED_LIMIT,
    ) -> None:
        """Run a kernel whose arguments lie at ``addresses``, as cuLaunchKernel takes them."""
        how = _Launch(
            grid=(*grid, 1, 1)[:3],
            block=(*block, 1, 1)[:3],
            dynamic_shared=shared_mem,
            dynamic_shared_limit=shared_limit,
            seed=int(os.environ.get("HPF_CUDASIM_SEED", "0")),
        )
        function = self._function("launch", name)
        function.restype = ctypes.c_char_p
        pointers = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
        error = function(ctypes.byref(how), pointers)
        if error:
            raise SimulationError(f"{name}: {self._with_source_line(error.decode())}")

    def array(self, values: Any) -> np.ndarray:
        """Return a copy of an array in simulated device memory, which ends at a guard page or redzone."""
        values = np.ascontiguousarray(values)
        address = self._runtime.allocate(values.nbytes)
        memory = (ctypes.c_char * values.nbytes).from_address(address)
        weakref.finalize(memory, self._runtime.free, address, values.nbytes)
        result = np.frombuffer(memory, values.dtype, values.size).reshape(values.shape)
        result[...] = values
        return result

    def _function(self, kind: str, name: str) -> Any:
        if name not in self.names:
            raise SimulationError(f"no kernel {name!r} among {', '.join(self.names) or 'none'}")
        return getattr(self._functions, f"cudasim_{kind}_{name}")

    def _with_source_line(self, message: str) -> str:
        """Replace the address of a fault, {in braces}, by its line."""

        def line(match: re.Match[str]) -> str:
            return toolchain.source_line(self.library, int(match[1], 16) - _load_address(self.library))

        return re.sub(r"\{([0-9a-f]+)\}", line, message)


def _pack(argument: Any) -> np.ndarray:
    """Return an array of one element, whose memory holds the value that the kernel gets."""
    if argument is None or isinstance(argument, np.ndarray):
        return np.array([0 if argument is None else argument.ctypes.data], np.uint64)
    return np.array([argument])


def _load_address(library: Path) -> int:
    """Return where a library was loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(library)):
            return int(line.split("-")[0], 16)
    return 0
