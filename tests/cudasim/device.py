"""The simulated device, and the functions of CUDA's runtime that CuPy calls.

Methods of ``Runtime`` have the names and arguments of ``cupy_backends.cuda.api.runtime``, and replace its
functions.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
from collections.abc import Callable
from typing import Any

from . import module
from .allocations import Allocation, Allocations
from .captures import RELAXED, Node
from .errors import SimulationError
from .streams import EAGER, Graph, Streams

VERSION = 13020  # CUDA 13.2: what CuPy 14.2 for CUDA 13 was built with
COMPUTE_CAPABILITY = (8, 0)
PROCESSORS = 4
MEMORY = 16 << 30
DEVICES = 2
NOT_READY = 600  # cudaErrorNotReady

#: Device attributes by number (cudaDeviceAttr); all others are 0.
ATTRIBUTES = {
    1: module.MAX_THREADS,  # threads in a block
    8: module.DYNAMIC_SHARED_LIMIT,  # shared memory of a block
    10: 32,  # threads in a warp
    12: 65536,  # registers of a block
    16: PROCESSORS,
    39: 2048,  # threads on a processor
    75: COMPUTE_CAPABILITY[0],
    76: COMPUTE_CAPABILITY[1],
    97: 166912,  # shared memory of a block, if it asks
}

UNREGISTERED, PINNED, ON_DEVICE = 0, 1, 2  # cudaMemoryType


class Device:
    """What the runtime's and the driver's functions act on: all simulated devices."""

    def __init__(self, memory: module.Runtime) -> None:
        self.memory = memory
        self.streams = Streams(
            os.environ.get("HPF_CUDASIM_STREAMS", EAGER), int(os.environ.get("HPF_CUDASIM_SEED", "0"))
        )
        self.allocations = Allocations()
        self.modules: dict[bytes, module.Module] = {}  # by what stands for their machine code
        self.current_stream: Callable[[], int] = lambda: 0
        self.events: dict[int, int] = {}  # devices of events
        self.errors: list[BaseException] = []  # from where no exception can be raised
        self.exiting = False  # destructors still call when Python has taken most of itself apart
        self._handles = itertools.count(0x1000, 16)
        atexit.register(self._exit)

    def _exit(self) -> None:
        self.exiting = True

    def handle(self) -> int:
        """Return a number that stands for a new stream, event, module or function."""
        return next(self._handles)

    @property
    def current(self) -> int:
        """Number of this thread's current device."""
        return self.streams.device

    def require_here(self, what: str, device: int) -> None:
        """Raise SimulationError unless something is of the current device."""
        if device != self.current:
            raise SimulationError(
                f"{what} of device {device}, while device {self.current} is the current one"
            )

    def check(self) -> None:
        """Run all that was submitted; raise the first error that nobody has seen."""
        self.streams.synchronize_all()
        self.raise_unseen()

    def guarded(self, action: Callable[[], None], *addresses: int) -> Callable[[], None]:
        """Return an action that first makes sure that the memory at these addresses has not been freed.

        A guard page does not tell, where other memory has come to lie since.
        """
        ends = [self.allocations.find(address) for address in addresses]

        def run() -> None:
            _alive(ends)
            action()

        return run

    def raise_unseen(self) -> None:
        """Raise the first error that nobody has seen, as CUDA does from the call that comes next."""
        if self.errors:
            errors, self.errors = self.errors, []
            raise errors[0]


class Runtime:
    """In place of cupy_backends.cuda.api.runtime."""

    def __init__(self, device: Device, pointer_attributes: type) -> None:
        self._device = device
        self._pointer_attributes = pointer_attributes  # CuPy's class for the result of that name
        self._graphs: dict[int, tuple[Node, ...]] = {}
        self._executables: dict[int, Graph] = {}

    # ---- devices ----

    def getDevice(self):
        return self._device.current

    def setDevice(self, number):
        if not 0 <= number < DEVICES:
            raise SimulationError(f"no device {number}: {DEVICES} are simulated")
        self._device.streams.device = number

    def getDeviceCount(self):
        return DEVICES

    def deviceCanAccessPeer(self, device, peer):
        return 0

    def _ensure_context(self):
        pass

    def check_status(self, status):
        if status != 0:
            raise SimulationError(f"CUDA error {status}")

    def deviceGetAttribute(self, attribute, device):
        return ATTRIBUTES.get(attribute, 0)

    def getDeviceProperties(self, device):
        return {
            "name": b"CUDA simulator",
            "major": COMPUTE_CAPABILITY[0],
            "minor": COMPUTE_CAPABILITY[1],
            "multiProcessorCount": PROCESSORS,
            "warpSize": 32,
            "maxThreadsPerBlock": module.MAX_THREADS,
            "sharedMemPerBlock": module.DYNAMIC_SHARED_LIMIT,
            "l2CacheSize": 4 << 20,
            "totalGlobalMem": MEMORY,
        }

    def driverGetVersion(self):
        return VERSION

    def runtimeGetVersion(self):
        return VERSION

    def memGetInfo(self):
        return MEMORY // 2, MEMORY

    def deviceSynchronize(self):
        self._device.streams.captures.forbid_on_device("the device was waited for")
        self._device.streams.synchronize_all(self._device.current)

    # ---- memory ----

    def malloc(self, size):
        return self._allocate(size, pinned=False)

    def mallocAsync(self, size, stream):
        if self._device.streams.captures.is_capturing(stream):
            raise SimulationError("the CUDA simulator knows no nodes that allocate memory")
        return self._allocate(size, pinned=False)

    def hostAlloc(self, size, flags):
        return self._allocate(size, pinned=True)

    def _allocate(self, size, *, pinned):
        self._forbid("memory was allocated")
        address = self._device.memory.allocate(size)
        stream = self._device.streams.number(self._device.current_stream())
        self._device.allocations.add(Allocation(address, size, pinned, self._device.current, stream))
        return address

    def free(self, address):
        """Free memory when its stream has come to this point.

        CuPy's pool hands memory on to the stream that it was allocated for, without waiting for others.
        """
        if not address or self._device.exiting:
            return
        allocation = self._device.allocations.find(address)
        try:
            self._forbid("memory was freed")
            self._device.streams.enqueue(allocation.stream, lambda: self._release(allocation))
        except Exception as error:  # called from destructors, which cannot raise
            self._device.errors.append(error)

    def freeAsync(self, address, stream):
        self.free(address)

    def freeHost(self, address):
        """Free at once, as CuPy's pool gives pinned memory away at once."""
        if address and not self._device.exiting:
            self._forbid("memory was freed")
            self._release(self._device.allocations.find(address))

    def _forbid(self, what):
        self._device.streams.captures.forbid_unless_relaxed(what)

    def _release(self, allocation):
        allocation.freed = True
        self._device.allocations.remove(allocation.address)
        self._device.memory.free(allocation.address, allocation.size)

    def pointerGetMemoryType(self, address):
        found = self._device.allocations.find(address)
        if found is None:
            return UNREGISTERED
        return PINNED if found.pinned else ON_DEVICE

    def pointerGetAttributes(self, address):
        found = self._device.allocations.find(address)
        device = self._device.current if found is None else found.device
        return self._pointer_attributes(device, address, 0, self.pointerGetMemoryType(address))

    # ---- copies ----

    def memcpy(self, target, source, size, kind):
        self._forbid("memory was copied, and the copy waited for,")
        streams = self._device.streams
        streams.finish(streams.submit(0, self._copy(target, source, size)))

    def memcpyAsync(self, target, source, size, kind, stream):
        self._device.raise_unseen()
        if None in (self._device.allocations.find(address) for address in (target, source)):
            self._device.streams.captures.forbid(stream, "a graph would copy to or from ordinary host memory")
        operation = self._device.streams.submit(stream, self._copy(target, source, size))
        if self._device.allocations.find(target) is None:
            self._device.streams.finish(operation)  # CUDA waits if the target is ordinary host memory

    def _copy(self, target, source, size):
        """Return the action of a copy.

        CUDA reads ordinary host memory at once, pinned memory and its own when it comes to the copy.
        """
        ends = [self._device.allocations.find(address) for address in (target, source)]
        if ends[1] is None:
            data = ctypes.string_at(source, size)
            return lambda: _write(target, data, ends)
        return lambda: _write(target, _read(source, size, ends), ends)

    def memset(self, address, value, size):
        self.memsetAsync(address, value, size, 0)

    def memsetAsync(self, address, value, size, stream):
        fill = self._device.guarded(lambda: ctypes.memset(address, value, size), address)
        self._device.streams.submit(stream, fill)

    # ---- streams ----

    def streamCreate(self):
        return self.streamCreateWithFlags(0)

    def streamCreateWithFlags(self, flags):
        stream = self._device.handle()
        self._device.streams.created(stream, flags)
        return stream

    def streamCreateWithPriority(self, flags, priority):
        return self.streamCreateWithFlags(flags)

    def streamDestroy(self, stream):
        pass  # what was submitted runs all the same

    def streamSynchronize(self, stream):
        self._device.streams.synchronize(stream)
        self._device.raise_unseen()

    def streamQuery(self, stream):
        return 0 if self._device.streams.is_done(stream) else NOT_READY

    def streamWaitEvent(self, stream, event):
        self._device.streams.wait(stream, event)

    def streamIsCapturing(self, stream):
        return int(self._device.streams.captures.is_capturing(stream))

    def streamBeginCapture(self, stream, mode=RELAXED):
        self._device.streams.captures.begin(stream, mode)

    def streamEndCapture(self, stream):
        graph = self._device.handle()
        self._graphs[graph] = self._device.streams.captures.end(stream)
        return graph

    # ---- graphs ----

    def graphInstantiate(self, graph):
        executable = self._device.handle()
        self._executables[executable] = Graph(self._graphs[graph])
        return executable

    def graphDestroy(self, graph):
        del self._graphs[graph]

    def graphExecDestroy(self, executable):
        if not self._device.exiting:
            del self._executables[executable]  # a launch that has not run runs all the same

    def graphUpload(self, executable, stream):
        self._device.streams.captures.forbid(stream, "a graph was uploaded in a stream that captures")
        self._executable(executable)

    def graphLaunch(self, executable, stream):
        self._device.raise_unseen()
        self._device.streams.launch(stream, self._executable(executable))

    def _executable(self, handle):
        if handle not in self._executables:
            raise SimulationError("a graph was used that has been destroyed")
        return self._executables[handle]

    # ---- events ----

    def eventCreate(self):
        return self.eventCreateWithFlags(0)

    def eventCreateWithFlags(self, flags):
        event = self._device.handle()
        self._device.events[event] = self._device.current
        return event

    def eventDestroy(self, event):
        pass

    def eventRecord(self, event, stream):
        streams = self._device.streams
        if self._device.events[event] != streams.device_of(stream):
            raise SimulationError("an event was recorded in a stream of another device")
        self._device.streams.record(event, stream)

    def eventSynchronize(self, event):
        self._device.streams.finish_event(event)

    def eventQuery(self, event):
        return 0 if self._device.streams.event_is_done(event) else NOT_READY

    def eventElapsedTime(self, first, second):
        return self._device.streams.elapsed(first, second)

    # ---- profilers, of which none looks on ----

    def profilerStart(self):
        pass

    def profilerStop(self):
        pass


def _alive(ends):
    if any(end is not None and end.freed for end in ends):
        raise SimulationError("memory was freed before a copy, a fill or a graph that uses it had run")


def _read(source, size, ends):
    _alive(ends)
    return ctypes.string_at(source, size)


def _write(target, data, ends):
    _alive(ends)
    ctypes.memmove(target, data, len(data))


def methods(instance: object, *private: str) -> dict[str, Callable[..., Any]]:
    """Return an object's public methods by name, and the private ones named."""
    names = [name for name in dir(type(instance)) if not name.startswith("_")]
    return {name: getattr(instance, name) for name in [*names, *private]}
