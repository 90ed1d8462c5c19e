"""Streams and events: what was submitted, and every order in which CUDA may run it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from .errors import SimulationError

EAGER, LAZY, RANDOM = "eager", "lazy", "random"
ORDERS = (EAGER, LAZY, RANDOM)

#: The legacy default stream: it waits for all blocking streams, and they for it.
DEFAULT_STREAM = 0
NON_BLOCKING = 1  # cudaStreamNonBlocking


class Operation:
    """Something submitted to a stream, and the operations that must have run before it."""

    def __init__(self, action: Callable[[], None], after: list[Operation]) -> None:
        self.action = action
        self.after = after
        self.done = False

    def pending(self) -> list[Operation]:
        """Return those of the operations before it that have not run."""
        return [operation for operation in self.after if not operation.done]


class Streams:
    """Runs operations when it must (lazy), at once (eager), or at a random moment between (random)."""

    def __init__(self, order: str, seed: int) -> None:
        self.set_order(order, seed)
        self._last: dict[int, Operation] = {}  # of each stream
        self._non_blocking: set[int] = set()
        self._events: dict[int, Operation] = {}
        self._times: dict[int, float] = {}  # of events that have happened

    def set_order(self, order: str, seed: int) -> None:
        """Choose when operations run from here on."""
        if order not in ORDERS:
            raise ValueError(f"no stream order {order!r}: use one of {', '.join(ORDERS)}")
        self.order = order
        self._random = random.Random(seed)

    def created(self, stream: int, flags: int) -> None:
        """Take note of a new stream."""
        if flags & NON_BLOCKING:
            self._non_blocking.add(stream)

    def submit(self, stream: int, action: Callable[[], None], *after: Operation | None) -> Operation:
        """Append an operation to a stream, to run after what is there and after the others named."""
        stream = _number(stream)
        before = [self._last.get(stream), *after, *self._across(stream)]
        operation = Operation(action, [other for other in before if other and not other.done])
        self._last[stream] = operation
        if self.order == EAGER:
            self.finish(operation)
        elif self.order == RANDOM:
            while (left := self._pending()) and self._random.random() < 0.5:
                self.finish(self._random.choice(left))
        return operation

    def _pending(self) -> list[Operation]:
        return [last for last in self._last.values() if not last.done]

    def _across(self, stream: int) -> list[Operation | None]:
        """Return what the default stream orders."""
        if stream in self._non_blocking:
            return []
        if stream == DEFAULT_STREAM:
            return [last for other, last in self._last.items() if other not in self._non_blocking]
        return [self._last.get(DEFAULT_STREAM)]

    def finish(self, operation: Operation | None) -> None:
        """Run an operation and all that must come before it, and nothing else."""
        stack = [operation] if operation else []
        while stack:
            pending = stack[-1].pending()
            if pending:
                stack.append(self._random.choice(pending))
                continue
            current = stack.pop()
            if not current.done:
                current.done, current.after = True, []  # also if it fails: CUDA does not try again
                current.action()

    def synchronize(self, stream: int) -> None:
        """Run all of a stream."""
        self.finish(self._last.get(_number(stream)))

    def synchronize_all(self) -> None:
        """Run everything."""
        streams = list(self._last)
        self._random.shuffle(streams)
        for stream in streams:
            self.synchronize(stream)

    def is_done(self, stream: int) -> bool:
        """Tell whether nothing of a stream is left to run."""
        last = self._last.get(_number(stream))
        return last is None or last.done

    def record(self, event: int, stream: int) -> None:
        """Let an event stand for all that was submitted to a stream so far."""
        self._times.pop(event, None)
        self._events[event] = self.submit(stream, lambda: self._happened(event))

    def _happened(self, event: int) -> None:
        self._times[event] = time.perf_counter()

    def elapsed(self, first: int, second: int) -> float:
        """Return the milliseconds between two events."""
        if not {first, second} <= self._times.keys():
            raise SimulationError("the time between two events was asked for before both had happened")
        return (self._times[second] - self._times[first]) * 1e3

    def wait(self, stream: int, event: int) -> None:
        """Let a stream wait for an event; one that was never recorded is over already."""
        self.submit(stream, _nothing, self._events.get(event))

    def finish_event(self, event: int) -> None:
        """Run what an event stands for."""
        self.finish(self._events.get(event))

    def event_is_done(self, event: int) -> bool:
        """Tell whether an event has happened."""
        operation = self._events.get(event)
        return operation is None or operation.done


def _number(stream: int) -> int:
    return DEFAULT_STREAM if stream == 1 else stream  # cudaStreamLegacy


def _nothing() -> None:
    pass
