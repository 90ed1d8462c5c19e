"""Makes `import cupy` give the real CuPy over the simulated device.

Real: arrays, ufuncs, reductions and the code they generate, RawModule, the packing of arguments, streams,
events, pinned memory.  Simulated: allocation, copies, the order of streams, compilation and launches.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, FunctionType
from typing import Any

from . import arguments, compilation, cusparse_stand_in, device, driver, module, stubs, toolchain
from .errors import SimulationError, Unsupported

#: Versions of cupy-cuda13x and cupy-cuda12x that the simulator was tried with.
PROVED_ON = ("14.1.0", "14.1.1", "14.2.0")

_installed: tuple[str, device.Device] | None = None


def install(flavour: str | None = None) -> None:
    """Let `import cupy` give the real CuPy over simulated CUDA.

    Parameters
    ----------
    flavour
        "fast", "asan" or "tsan"; by default that of the process (environment variable HPF_CUDASIM).
        The last two need a process that was started for them (:func:`cudasim.environment`).

    Raises
    ------
    Unsupported
        If this machine cannot run the simulator, or CuPy is missing or of a version not tried.
    RuntimeError
        If CuPy was imported before, or the simulator installed in another flavour.
    """
    global _installed
    flavour = flavour or toolchain.flavour_of_process()
    if _installed is not None:
        if _installed[0] != flavour:
            raise RuntimeError(f"the CUDA simulator is installed as {_installed[0]}, not {flavour}")
        return
    _check(flavour)
    simulated = device.Device(compilation.runtime(flavour))
    _replace_cuda(simulated)
    _adapt_cupy(simulated, flavour)
    _installed = flavour, simulated


def check() -> None:
    """Run everything that was submitted to the simulated device; raise what failed unseen."""
    _device().check()


@contextlib.contextmanager
def stream_order(order: str, seed: int = 0) -> Iterator[None]:
    """Run what is submitted to streams at once ("eager"), late ("lazy") or at any time ("random").

    Outside, the environment variable HPF_CUDASIM_STREAMS chooses, and HPF_CUDASIM_SEED among random orders.
    """
    streams = _device().streams
    before = streams.order
    streams.synchronize_all()
    streams.set_order(order, seed)
    try:
        yield
        check()
    finally:
        streams.set_order(before, seed)


@contextlib.contextmanager
def calls() -> Iterator[Counter[str]]:
    """Count the calls of CUDA's functions, by name, that this thread makes through CuPy.

    Left out are those that only make sure of the device.
    """
    counted: Counter[str] = Counter()
    classes = (device.Runtime, driver.Driver)
    names = {function.__code__: name for kind in classes for name, function in _functions(kind)}
    left_out = {"getDevice", "setDevice", "_ensure_context"}

    def count(frame: FrameType, event: str, _: object) -> None:
        # Those that one of them calls are not CuPy's.
        if event == "call" and frame.f_code in names and frame.f_back.f_code not in names:
            counted[names[frame.f_code]] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(before)
        for name in left_out:
            del counted[name]


def _functions(kind: type) -> Iterator[tuple[str, FunctionType]]:
    return ((name, function) for name, function in vars(kind).items() if isinstance(function, FunctionType))


def _device() -> device.Device:
    if _installed is None:
        raise RuntimeError("call cudasim.install() first")
    return _installed[1]


def _check(flavour: str) -> None:
    toolchain.require(flavour)
    version = _cupy_version()
    if version is None:
        raise Unsupported(f"CuPy is not installed: pip install cupy-cuda13x=={PROVED_ON[-1]}")
    if version not in PROVED_ON:
        raise Unsupported(f"the CUDA simulator was not tried with CuPy {version}, but {', '.join(PROVED_ON)}")
    if "cupy" in sys.modules:
        raise RuntimeError("CuPy was imported before cudasim.install(): it has its CUDA functions already")


def _cupy_version() -> str | None:
    for name in ("cupy-cuda13x", "cupy-cuda12x"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _replace_cuda(simulated: device.Device) -> None:
    # These carry a CUDA runtime of their own.
    os.environ["CUPY_ACCELERATORS"] = ""
    from cupy_backends.cuda.api import driver as cuda_driver
    from cupy_backends.cuda.api import runtime as cuda_runtime

    functions = device.Runtime(simulated, cuda_runtime.PointerAttributes)
    stubs.replace(cuda_runtime, device.methods(functions, "_ensure_context"))
    stubs.replace(cuda_driver, device.methods(driver.Driver(simulated)))


def _adapt_cupy(simulated: device.Device, flavour: str) -> None:
    import cuda.pathfinder
    import cupy
    from cupy.cuda import compiler

    # CuPy asks for the toolkit's headers before it compiles; the simulator has its own.
    cuda.pathfinder.find_nvidia_header_directory = lambda _name: str(compilation.INCLUDE)
    simulated.current_stream = lambda: cupy.cuda.get_current_stream().ptr
    build = _builder(flavour)
    compiler._compile_module_with_cache = _compiler(simulated, build)
    cusparse_stand_in.install()
    cupy.RawModule = _checked_raw_module(cupy, build)
    # No pools: every array ends at a guard page or redzone, and freed memory is gone.
    cupy.cuda.set_allocator(None)
    cupy.cuda.set_pinned_memory_allocator(None)


def _builder(flavour: str) -> Callable[[str, Sequence[str]], module.Module]:
    """Return what compiles a source to the same library, whether CuPy asks or who wants its signatures.

    CuPy passes folders of headers beside the options that it was given: of these its own is enough here.
    """
    include = f"-I{os.path.dirname(sys.modules['cupy'].__file__)}/_core/include"

    def build(source, options):
        others = [option for option in options if not option.startswith("-I")]
        return compilation.build(source, [*others, include], flavour)

    return build


def _compiler(simulated: device.Device, build: Callable[[str, Sequence[str]], module.Module]) -> Any:
    """Return what takes the place of NVRTC: options other than -D make no difference here."""
    from cupy.cuda import function

    def compile_module(source, options=(), *, name_expressions=None, **_ignored):
        if name_expressions:
            raise SimulationError('the CUDA simulator knows extern "C" kernels only, no name_expressions')
        compiled = build(source, options)
        image = str(compiled.library).encode()
        simulated.modules[image] = compiled
        loaded = function.Module()
        loaded.load(image)
        return loaded

    return compile_module


def _checked_raw_module(cupy: Any, build: Callable[[str, Sequence[str]], module.Module]) -> type:
    """Return a RawModule whose kernels take nothing but what their C++ parameters are."""

    class RawModule(cupy.RawModule):
        def get_function(self, name):
            kernel = super().get_function(name)
            signature = build(self.code, self.options).signature(name)
            return CheckedKernel(kernel, name, signature)

    class CheckedKernel:
        def __init__(self, kernel, name, signature):
            vars(self).update(_kernel=kernel, _name=name, _signature=signature)

        def __getattr__(self, attribute):
            return getattr(self._kernel, attribute)

        def __setattr__(self, attribute, value):
            setattr(self._kernel, attribute, value)

        def __call__(self, grid, block, args, **keywords):
            arguments.check(self._name, self._signature, args, cupy.ndarray)
            self._kernel(grid, block, args, **keywords)

    return RawModule
