"""Stream capture: what is submitted to a capturing stream becomes the nodes of a graph, and does not run.

Errors are those of CUDA ("Prohibited and Unhandled Operations" in its programming guide).  An error that has
to do with a capture also invalidates it: no graph comes of it, and only its end is left to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from .errors import cuda_error

if TYPE_CHECKING:
    from .streams import Streams

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # cudaStreamCaptureMode

# cudaError_t
ILLEGAL_STATE = 401
UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED, ISOLATION, IMPLICIT, CAPTURED_EVENT, WRONG_THREAD = (
    range(900, 909)
)


@dataclass(eq=False)
class Node:
    """What a graph runs at each launch, after other nodes of it."""

    action: Callable[[], None]
    after: list[Node]


@dataclass(eq=False)
class Capture:
    """What has been captured, since ``origin`` began, from it and from streams that joined it by events."""

    origin: int
    mode: int
    thread: int = field(default_factory=threading.get_ident)
    nodes: list[Node] = field(default_factory=list)
    ends: dict[int, list[Node]] = field(default_factory=dict)  # what the next node of each stream comes after
    valid: bool = True

    def add(self, stream: int, action: Callable[[], None]) -> None:
        """Append a node to a stream."""
        node = Node(action, self.ends[stream])
        self.nodes.append(node)
        self.ends[stream] = [node]

    def fail(self, status: int, why: str) -> NoReturn:
        """Invalidate the capture and raise an error."""
        self.valid = False
        raise cuda_error(status, why)

    def is_joined(self) -> bool:
        """Tell whether every node comes before what the origin captures next."""
        reached: set[Node] = set()
        left = list(self.ends[self.origin])
        while left:
            node = left.pop()
            if node not in reached:
                reached.add(node)
                left += node.after
        return reached >= {*self.nodes}


@dataclass(frozen=True)
class CapturedEvent:
    """What an event stands for that was recorded in a capturing stream."""

    capture: Capture
    nodes: tuple[Node, ...]


class Captures:
    """The captures that are under way."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._of: dict[int, Capture] = {}  # by each stream that takes part

    def begin(self, stream: int, mode: int) -> None:
        """Let a stream capture."""
        if self._is_default(stream):
            raise cuda_error(UNSUPPORTED, "the legacy default stream cannot be captured")
        if stream in self._of:
            self._of[stream].fail(ILLEGAL_STATE, "the stream is capturing already")
        capture = Capture(stream, mode)
        capture.ends[stream] = []
        self._of[stream] = capture

    def end(self, stream: int) -> tuple[Node, ...]:
        """Return the nodes of a capture, whose streams run things again."""
        capture = self._of.get(stream)
        if capture is None:
            raise cuda_error(ILLEGAL_STATE, "the stream is not capturing")
        if stream != capture.origin:
            capture.fail(UNMATCHED, "the capture was begun in another stream")
        if capture.mode != RELAXED and capture.thread != threading.get_ident():
            capture.fail(WRONG_THREAD, "the capture was begun in another thread")
        for other in capture.ends:
            del self._of[other]
        if not capture.valid:
            raise cuda_error(INVALIDATED, "an error before has invalidated the capture")
        if not capture.is_joined():
            capture.fail(UNJOINED, "the first stream does not wait for all that another one has captured")
        return tuple(capture.nodes)

    def of(self, stream: int) -> Capture | None:
        """Return what captures the next operation of a stream, if anything does."""
        if self._of and self._is_default(stream):
            for capture in self._blocking():
                capture.fail(
                    IMPLICIT, "the legacy default stream would wait for a blocking one that captures"
                )
        capture = self._of.get(stream)
        if capture is not None and not capture.valid:
            raise cuda_error(INVALIDATED, "an error before has invalidated the capture")
        return capture

    def is_capturing(self, stream: int) -> bool:
        """Tell whether a stream captures; to ask is an error, but does no harm."""
        if self._is_default(stream) and self._blocking():
            raise cuda_error(IMPLICIT, "a blocking stream is capturing")
        return self.of(stream) is not None

    def _is_default(self, stream: int) -> bool:
        return self._streams.number(stream) < 0

    def _blocking(self) -> list[Capture]:
        """Return the captures that the default stream of the current device would wait for."""
        return [capture for stream, capture in self._here().items() if self._streams.blocks(stream)]

    def _here(self) -> dict[int, Capture]:
        """Return the captures of each stream of the current device."""
        here = self._streams.device
        return {
            stream: found for stream, found in self._of.items() if self._streams.device_of(stream) == here
        }

    def wait(self, stream: int, event: CapturedEvent) -> None:
        """Let the next node of a stream come after an event; the stream joins the capture, if it had not."""
        capture, into = self.of(stream), event.capture
        if into not in self._of.values():
            raise cuda_error(CAPTURED_EVENT, "the event was recorded in a capture that has ended")
        if not into.valid:
            raise cuda_error(INVALIDATED, "an error before has invalidated the capture")
        if self._is_default(stream):
            into.fail(IMPLICIT, "the legacy default stream cannot join a capture")
        if capture is None:
            self._of[stream], into.ends[stream] = into, []
        elif capture is not into:
            capture.valid = False
            into.fail(MERGE, "the stream and the event belong to different captures")
        into.ends[stream] = [*into.ends[stream], *event.nodes]

    # ---- what is forbidden meanwhile ----

    def forbid(self, stream: int, why: str) -> None:
        """Raise an error if a stream captures."""
        capture = self.of(stream)
        if capture is not None:
            capture.fail(UNSUPPORTED, why)

    def forbid_on_device(self, what: str) -> None:
        """Raise an error if any stream of the current device captures."""
        for capture in self._here().values():
            capture.fail(UNSUPPORTED, f"{what} while a stream was capturing")

    def forbid_unless_relaxed(self, what: str) -> None:
        """Raise an error if a stream captures in a mode that forbids what may wait for the device."""
        for capture in self._of.values():
            own = capture.mode == THREAD_LOCAL and capture.thread == threading.get_ident()
            if own or capture.mode == GLOBAL:
                capture.fail(
                    UNSUPPORTED, f"{what} while a stream was capturing, in another mode than relaxed"
                )
