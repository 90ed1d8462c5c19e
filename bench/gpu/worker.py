"""What the programs of this folder share: arguments, the simulator, and where results go."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
from scipy import sparse

from gpu.clock import QUICK, Clock, Timing
from gpu.shapes import load

_PER_SECOND = ("bytes", "units")


class Worker:
    """One program: its arguments, of which it uses what it needs, and its results."""

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("shape", nargs="?", help="one of those in gpu.shapes")
        parser.add_argument("k", nargs="?", type=int, help="number of factors")
        parser.add_argument("variants", nargs="*")
        parser.add_argument("--data", type=Path, help="folder that gpu.shapes has filled")
        parser.add_argument("--results", type=Path, help="file to append results to; by default nowhere")
        parser.add_argument("--quick", action="store_true", help="everything once, on little data")
        parser.add_argument("--no-pool", action="store_true", help="every array an allocation of its own")
        self.arguments = parser.parse_args()
        self.clock = QUICK if self.arguments.quick else Clock()
        self.common: dict[str, Any] = {}
        self.entries = 0
        self.failures: list[str] = []
        packages = ("hpf_gpu", "numpy", "scipy", "cupy-cuda13x", "cupy-cuda12x", "torch")
        self._machine = record.graphics_card() | record.machine(*packages)
        if "HPF_CUDASIM" in os.environ:
            import cudasim

            cudasim.install()

    def load(self, variant: str) -> sparse.csr_array:
        """The matrix of the arguments, which all entries from here on are about."""
        csr = load(self.arguments.data, self.arguments.shape)
        size = {"name": self.arguments.shape, "users": csr.shape[0], "items": csr.shape[1], "nnz": csr.nnz}
        self.common = {"variant": variant, "shape": size, "k": self.arguments.k, "dtype": "float32"}
        return csr

    def write(self, op: str, timing: Timing | None = None, **fields: Any) -> None:
        """Add an entry to the results; of a timed one also ``bytes`` and ``units`` per second."""
        self.entries += 1
        entry = {"op": op} | self.common | fields
        if timing is not None:
            rates = {
                f"{name}_per_second": entry[name] / timing.ms * 1e3 for name in _PER_SECOND if name in entry
            }
            entry |= vars(timing) | rates
        if self.arguments.results is not None:
            record.append(self.arguments.results, entry | {"machine": self._machine})

    def attempt(self, op: str, work: Callable[[], None], **fields: Any) -> None:
        """Do some work; if it fails, that is its result, and the next can follow."""
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.failures.append(f"{op}: {message}")
            self.write(op, error=message, **fields)

    def finish(self) -> None:
        """Say how it went, and end the process."""
        told = f"{self.entries} results"
        if self.failures:
            told = f"{self.failures[0]} ({len(self.failures)} of {told} failed)"
        sys.stdout.write(f"{told}\n")
        sys.exit(1 if self.failures else 0)
