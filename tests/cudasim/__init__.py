"""CUDA on a CPU: runs unchanged .cu sources, and the real CuPy over simulated CUDA calls.

    cudasim.install()                    # from here on `import cupy` works without a GPU
    cudasim.build(source).launch(...)    # a kernel by itself

CONTRIBUTING.md ("CUDA without a GPU") tells how it works and what it can find.
"""

from __future__ import annotations

from .compilation import build
from .errors import CompileError, SimulationError, Unsupported
from .module import Module
from .real_cupy import PROVED_ON, calls, check, install, stream_order
from .toolchain import FLAVOURS, environment

__all__ = [
    "FLAVOURS",
    "PROVED_ON",
    "CompileError",
    "Module",
    "SimulationError",
    "Unsupported",
    "build",
    "calls",
    "check",
    "environment",
    "install",
    "stream_order",
]
