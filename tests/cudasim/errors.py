"""What can go wrong with the simulator, and in what it simulates."""

from __future__ import annotations


class Unsupported(RuntimeError):
    """This machine cannot run the simulator; the message says what it lacks."""


class SimulationError(RuntimeError):
    """A kernel or the host code around it did what CUDA forbids; the message says what and where."""


class CompileError(SimulationError):
    """A .cu source was not accepted; the message is g++'s."""
