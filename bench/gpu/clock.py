"""Repeated timing: by CUDA's events on the device, or by the wall clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: Steps of hold.cu in a millisecond at the highest clocks; at lower ones it only holds for longer.
_STEPS = 700_000


@dataclass(frozen=True)
class Timing:
    """Milliseconds that one call of some work takes, over several repeats."""

    ms: float  # median
    min: float
    max: float
    repeats: int
    calls: int = 1  # of each repeat
    host_ms: float | None = None  # median time to submit a call; None where a call waits for its result
    queued: int = 0  # repeats whose calls had all been submitted before the device began the first


class _Repeat(NamedTuple):
    """What one call took, on average over the calls of a repeat."""

    ms: float
    host_ms: float
    queued: bool


@dataclass(frozen=True)
class Clock:
    """How often work is repeated: at least ``least`` times and for ``seconds``, after ``warm_up`` runs.

    On the device a repeat is a number of calls that take ``repeat_ms``, at most ``most_calls``: the driver
    queues about a thousand launches.  ``hold_ms`` is more than the host needs to submit a call.
    """

    warm_up: int = 2
    least: int = 5
    most: int = 30
    seconds: float = 0.25
    repeat_ms: float = 5.0
    most_calls: int = 32
    hold_ms: float = 10.0

    def wall(self, work: Callable[[], object], prepare: Callable[[], object] | None = None) -> Timing:
        """Time work that ends when it returns; ``prepare`` comes before each run, untimed."""

        def once() -> _Repeat:
            if prepare is not None:
                prepare()
            started = time.perf_counter()
            work()
            ms = (time.perf_counter() - started) * 1e3
            return _Repeat(ms, ms, False)

        for _ in range(self.warm_up):
            once()
        return _timing(self._repeats(once, 1), 1)

    def device(self, work: Callable[[], object]) -> Timing:
        """Time what ``work`` puts on the current stream, and how long the host takes to put it there.

        A kernel holds the device while the calls of a repeat queue up behind it, so that the device goes from
        one to the next without a pause, however slow the host is.  Work that waits for its result cannot
        queue up: its time includes the host's.
        """
        for _ in range(self.warm_up):
            work()
        first = _repeat(work, 1, self.hold_ms)
        if self.most == 1:
            return _timing([first], 1)
        calls = max(1, min(self.most_calls, math.ceil(self.repeat_ms / max(first.ms, 1e-3))))
        held_ms = 1.5 * calls * first.host_ms + 0.1 if first.queued else 0.0
        return _timing(self._repeats(lambda: _repeat(work, calls, held_ms), calls), calls)

    def _repeats(self, once: Callable[[], _Repeat], calls: int) -> list[_Repeat]:
        taken: list[_Repeat] = []
        spent = 0.0
        while len(taken) < self.least or (spent < self.seconds * 1e3 and len(taken) < self.most):
            taken.append(once())
            spent += taken[-1].ms * calls
        return taken


def _timing(repeats: list[_Repeat], calls: int) -> Timing:
    ms, queued = [repeat.ms for repeat in repeats], sum(repeat.queued for repeat in repeats)
    host_ms = statistics.median(repeat.host_ms for repeat in repeats) if queued else None
    return Timing(statistics.median(ms), min(ms), max(ms), len(ms), calls, host_ms, queued)


def _repeat(work: Callable[[], object], calls: int, held_ms: float) -> _Repeat:
    """Call some work behind a kernel that holds the device for so long."""
    import cupy as cp

    begin, end = cp.cuda.Event(), cp.cuda.Event()
    kernel, out = _hold()
    kernel((1,), (1,), (np.int64(held_ms * _STEPS), out))
    begin.record()
    started = time.perf_counter()
    for _ in range(calls):
        work()
    host_ms = (time.perf_counter() - started) * 1e3
    queued = not begin.done
    end.record()
    end.synchronize()
    return _Repeat(cp.cuda.get_elapsed_time(begin, end) / calls, host_ms / calls, queued)


@cache
def _hold() -> tuple[Any, Any]:
    """The kernel in hold.cu, and its output (1,)."""
    import cupy as cp

    source = Path(__file__).with_name("hold.cu").read_text(encoding="utf-8")
    return cp.RawModule(code=source, options=("--std=c++17",)).get_function("hold"), cp.zeros(1, np.float32)


#: To see that everything runs, where times mean nothing.
QUICK = Clock(warm_up=0, least=1, most=1, hold_ms=0.0)
