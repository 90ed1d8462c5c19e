"""What can go wrong with the simulator, and in what it simulates."""

from __future__ import annotations


class Unsupported(RuntimeError):
    """This machine cannot run the simulator; the message says what it lacks."""


class SimulationError(Exception):
    """A kernel or the host code around it did what CUDA forbids; the message says what and where.

    Not a RuntimeError, as CuPy's errors are: code that can do without CUDA must not hide this one.
    """


class CompileError(SimulationError):
    """A .cu source was not accepted; the message is g++'s."""


def cuda_error(status: int, why: str) -> Exception:
    """Return the error that CuPy makes of what a function of CUDA returns, with what CUDA leaves out."""
    from cupy_backends.cuda.api.runtime import CUDARuntimeError

    error = CUDARuntimeError(status)
    error.args = (f"{error}: {why}",)
    return error
