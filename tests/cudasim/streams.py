"""Streams and events: what was submitted, and every order in which CUDA may run it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from .captures import CAPTURED_EVENT, ISOLATION, CapturedEvent, Captures, Node
from .errors import SimulationError

EAGER, LAZY, RANDOM = "eager", "lazy", "random"
ORDERS = (EAGER, LAZY, RANDOM)

#: What CUDA calls the current device's default stream: it waits for all blocking streams, and they for it.
LEGACY = (0, 1)
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


class Graph:
    """An executable graph: what was captured, and its last launch, which the next one waits for."""

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = nodes
        self.launched: Operation | None = None


class Streams:
    """Runs operations when it must (lazy), at once (eager), or at a random moment between (random)."""

    def __init__(self, order: str, seed: int) -> None:
        self.set_order(order, seed)
        self._last: dict[int, Operation] = {}  # of each stream
        self._non_blocking: set[int] = set()
        self._devices: dict[int, int] = {}  # of streams that were created
        self._current = threading.local()
        self.captures = Captures(self)
        self._events: dict[int, Operation | CapturedEvent] = {}
        self._times: dict[int, float] = {}  # of events that have happened

    def set_order(self, order: str, seed: int) -> None:
        """Choose when operations run from here on."""
        if order not in ORDERS:
            raise ValueError(f"no stream order {order!r}: use one of {', '.join(ORDERS)}")
        self.order = order
        self._random = random.Random(seed)

    @property
    def device(self) -> int:
        """Number of this thread's current device."""
        return int(getattr(self._current, "device", 0))

    @device.setter
    def device(self, number: int) -> None:
        self._current.device = number

    def number(self, stream: int) -> int:
        """Return a stream's own number; the default streams of devices 0, 1, ... have −1, −2, ..."""
        return -1 - self.device if stream in LEGACY else stream

    def device_of(self, stream: int) -> int:
        """Return the device that a stream belongs to."""
        number = self.number(stream)
        return self._devices.get(number, self.device) if number > 0 else -1 - number

    def blocks(self, stream: int) -> bool:
        """Tell whether the default stream of its device and a stream wait for each other."""
        return stream not in self._non_blocking

    def created(self, stream: int, flags: int) -> None:
        """Take note of a new stream of the current device."""
        self._devices[stream] = self.device
        if flags & NON_BLOCKING:
            self._non_blocking.add(stream)

    def submit(self, stream: int, action: Callable[[], None], *after: Operation | None) -> Operation | None:
        """Append an operation to a stream, to run after what is there and after the others named.

        A stream that captures takes a note of it instead.
        """
        capture = self.captures.of(stream)
        if capture is None:
            return self.enqueue(stream, action, *after)
        capture.add(stream, action)
        return None

    def enqueue(self, stream: int, action: Callable[[], None], *after: Operation | None) -> Operation:
        """Append an operation to a stream to run, whether the stream captures or not."""
        stream = self.number(stream)
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
        return [last for last in list(self._last.values()) if not last.done]

    def _across(self, stream: int) -> list[Operation | None]:
        """Return what the default stream of its device orders."""
        if stream in self._non_blocking:
            return []
        device = self.device_of(stream)
        if stream > 0:
            return [self._last.get(-1 - device)]
        # A copy: memory that is collected meanwhile may take its stream along.
        others = (other for other in list(self._last) if other not in self._non_blocking)
        return [self._last.get(other) for other in others if self.device_of(other) == device]

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

    def launch(self, stream: int, graph: Graph) -> None:
        """Append the nodes of a graph to a stream; one launch of the same graph comes after the other."""
        capture = self.captures.of(stream)
        if capture is not None:
            raise SimulationError("the CUDA simulator knows no graphs within graphs")
        start = self.enqueue(stream, _nothing, graph.launched)
        made: dict[Node, Operation] = {}
        for node in graph.nodes:
            made[node] = Operation(node.action, [made[other] for other in node.after] or [start])
        graph.launched = self.enqueue(stream, _nothing, *made.values())

    def synchronize(self, stream: int) -> None:
        """Run all of a stream."""
        self.captures.forbid(stream, "the host waited for a stream that captures")
        self.finish(self._last.get(self.number(stream)))

    def synchronize_all(self, device: int | None = None) -> None:
        """Run everything, or everything on one device."""
        streams = [stream for stream in self._last if device in (None, self.device_of(stream))]
        self._random.shuffle(streams)
        for stream in streams:
            self.finish(self._last[stream])

    def is_done(self, stream: int) -> bool:
        """Tell whether nothing of a stream is left to run."""
        self.captures.forbid(stream, "the host asked a stream that captures whether it is done")
        last = self._last.get(self.number(stream))
        return last is None or last.done

    def record(self, event: int, stream: int) -> None:
        """Let an event stand for all that was submitted to a stream so far."""
        capture = self.captures.of(stream)
        self._times.pop(event, None)
        if capture is None:
            self._events[event] = self.enqueue(stream, lambda: self._happened(event))
        else:
            self._events[event] = CapturedEvent(capture, tuple(capture.ends[stream]))

    def _happened(self, event: int) -> None:
        self._times[event] = time.perf_counter()

    def elapsed(self, first: int, second: int) -> float:
        """Return the milliseconds between two events."""
        if not {first, second} <= self._times.keys():
            raise SimulationError("the time between two events was asked for before both had happened")
        return (self._times[second] - self._times[first]) * 1e3

    def wait(self, stream: int, event: int) -> None:
        """Let a stream wait for an event; one that was never recorded is over already."""
        recorded, capture = self._events.get(event), self.captures.of(stream)
        if isinstance(recorded, CapturedEvent):
            self.captures.wait(stream, recorded)
        elif capture is None:
            self.enqueue(stream, _nothing, recorded)
        elif recorded is not None:
            capture.fail(ISOLATION, "a stream that captures would wait for an event outside the capture")

    def finish_event(self, event: int) -> None:
        """Run what an event stands for."""
        self.finish(self._outside(event, "the host waited for"))

    def event_is_done(self, event: int) -> bool:
        """Tell whether an event has happened."""
        operation = self._outside(event, "the host asked about")
        return operation is None or operation.done

    def _outside(self, event: int, what: str) -> Operation | None:
        """Return what an event stands for that was not recorded in a capture."""
        recorded = self._events.get(event)
        if isinstance(recorded, CapturedEvent):
            recorded.capture.fail(CAPTURED_EVENT, f"{what} an event recorded in a capture")
        return recorded


def _nothing() -> None:
    pass
