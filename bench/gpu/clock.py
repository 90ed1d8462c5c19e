"""Repeated timing: by CUDA's events on the device, or by the wall clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds of the repeats of one piece of work."""

    ms: float  # median
    min: float
    max: float
    repeats: int


@dataclass(frozen=True)
class Clock:
    """How often work is repeated: at least ``least`` times and for ``seconds``, after ``warm_up`` runs."""

    warm_up: int = 2
    least: int = 5
    most: int = 30
    seconds: float = 0.25

    def wall(self, work: Callable[[], object], prepare: Callable[[], object] | None = None) -> Timing:
        """Time work that ends when it returns; ``prepare`` comes before each run, untimed."""

        def once() -> float:
            if prepare is not None:
                prepare()
            started = time.perf_counter()
            work()
            return (time.perf_counter() - started) * 1e3

        return self._repeated(once)

    def device(self, work: Callable[[], object], prepare: Callable[[], object] | None = None) -> Timing:
        """Time what ``work`` puts on the current stream; ``prepare`` comes before each run, untimed."""
        import cupy as cp

        begin, end = cp.cuda.Event(), cp.cuda.Event()

        def once() -> float:
            if prepare is not None:
                prepare()
            begin.record()
            work()
            end.record()
            end.synchronize()
            return float(cp.cuda.get_elapsed_time(begin, end))

        return self._repeated(once)

    def _repeated(self, once: Callable[[], float]) -> Timing:
        for _ in range(self.warm_up):
            once()
        taken: list[float] = []
        while len(taken) < self.least or (sum(taken) < self.seconds * 1e3 and len(taken) < self.most):
            taken.append(once())
        return Timing(statistics.median(taken), min(taken), max(taken), len(taken))


#: To see that everything runs, where times mean nothing.
QUICK = Clock(warm_up=0, least=1, most=1)
