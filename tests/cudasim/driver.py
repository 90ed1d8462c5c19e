"""The functions of CUDA's driver that CuPy calls: kernels are loaded and launched with them.

Methods have the names and arguments of ``cupy_backends.cuda.api.driver``, and replace its functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import module
from .device import VERSION, Device

# Function attributes (CUfunction_attribute).
MAX_THREADS_PER_BLOCK, NUM_REGS, MAX_DYNAMIC_SHARED = 0, 4, 8


@dataclass
class Function:
    """A kernel as the driver knows it."""

    module: module.Module
    name: str
    device: int
    dynamic_shared_limit: int = module.DYNAMIC_SHARED_LIMIT


class Driver:
    """In place of cupy_backends.cuda.api.driver."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._modules: dict[
            int, tuple[module.Module, int]
        ] = {}  # each with the device that it was loaded for
        self._functions: dict[int, Function] = {}

    def get_build_version(self):
        return VERSION

    def moduleLoadData(self, image):
        self._device.streams.captures.forbid_unless_relaxed("a module was loaded")
        handle = self._device.handle()
        self._modules[handle] = self._device.modules[image], self._device.current
        return handle

    def moduleUnload(self, handle):
        pass

    def moduleGetFunction(self, handle, name):
        loaded, device = self._modules[handle]
        loaded.signature(name)  # raises if there is no such kernel
        function = self._device.handle()
        self._functions[function] = Function(loaded, name, device)
        return function

    def funcGetAttribute(self, attribute, function):
        limit = self._functions[function].dynamic_shared_limit
        return {MAX_THREADS_PER_BLOCK: module.MAX_THREADS, NUM_REGS: 32, MAX_DYNAMIC_SHARED: limit}.get(
            attribute, 0
        )

    def funcSetAttribute(self, function, attribute, value):
        if attribute == MAX_DYNAMIC_SHARED:
            self._functions[function].dynamic_shared_limit = value

    def launchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        self._device.raise_unseen()
        kernel = self._functions[function]
        signature = kernel.module.signature(kernel.name)
        self._device.require_here(f"{kernel.name}: a kernel", kernel.device)
        self._device.require_here(f"{kernel.name}: a stream", self._device.streams.device_of(stream))
        addresses, values = _copy_parameters(signature, parameters)
        for target in _possible_pointers(signature, addresses):
            found = self._device.allocations.find(target)
            if found is not None and not found.pinned:
                self._device.require_here(f"{kernel.name}: memory", found.device)

        def run(values=values):  # they live as long as this does
            kernel.module.launch_packed(
                kernel.name, (gx, gy, gz), (bx, by, bz), addresses, shared, kernel.dynamic_shared_limit
            )

        capturing = self._device.streams.captures.of(stream) is not None
        self._device.streams.submit(stream, self._device.guarded(run, *_words(values)) if capturing else run)


def _words(values: list[ctypes.Array]) -> list[int]:
    """Return what may be addresses among a launch's parameters: everything of their size and alignment."""
    return [word for value in values or () for word in memoryview(value.raw[: len(value) // 8 * 8]).cast("Q")]


def _possible_pointers(signature: tuple[str, ...], addresses: list[int]) -> Iterator[int]:
    """Yield every pointer among a launch's parameters, and all else of 8 bytes in its structures."""
    for code, address in zip(signature, addresses, strict=True):
        words = int(code[1:]) // 8 if code.startswith("V") else int(code.startswith("*"))
        yield from (ctypes.c_uint64 * words).from_address(address)


def _copy_parameters(signature: tuple[str, ...], parameters: int) -> tuple[list[int], Any]:
    """Copy a launch's parameters, as CUDA does at the launch."""
    if not signature:
        return [], None
    sources = (ctypes.c_void_p * len(signature)).from_address(parameters)
    values = []
    for code, source in zip(signature, sources, strict=True):
        size = 8 if code.startswith("*") else int(code[1:])
        values.append(ctypes.create_string_buffer(ctypes.string_at(source, size), max(size, 16)))
    return [ctypes.addressof(value) for value in values], values
