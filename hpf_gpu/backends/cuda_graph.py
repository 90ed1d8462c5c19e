"""Iterations as CUDA graphs: recorded once, then replayed by one launch each.

With small data, kernels end sooner than Python can launch the next ones.  An iteration takes a state X to Y,
and the next one Y to Z.  Their matrices lie in two places by turns, but every iteration makes new vectors.
So the second one is recorded with the vectors of Z in the place of those of X, and the first with those of Y
where they are: two graphs, from X to Y and from Y to X, which are launched by turns.

The array module ``xp`` (CuPy) is an argument, so that nothing here imports it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import count
from typing import Any, Generic, TypeAlias

from .protocol import ModelState

_log = logging.getLogger("hpf_gpu")

#: CuPy's pointer into memory, which keeps the memory alive.
_Pointer: TypeAlias = Any


class Recorded(Generic[ModelState]):
    """A function from state to state that is recorded when it is called with its own results.

    The first call runs plainly, the second does so in memory that is kept (a rehearsal), and the third
    records.  A state that is not a result of the last calls starts over.  If a step cannot be recorded, all
    run plainly.

    Parameters
    ----------
    xp : module
        CuPy.
    step : callable
        See :meth:`hpf_gpu.backends.protocol.Backend.recorded`.
    """

    def __init__(self, xp: Any, step: Callable[[ModelState], ModelState]) -> None:
        self._xp, self._step = xp, step
        self._last: ModelState | None = None  # result of the last call, if that was a plain one
        self._rehearsal: _Rehearsal[ModelState] | None = None
        self._graphs: tuple[tuple[ModelState, Any, ModelState], ...] = ()  # before, graph, after
        self._possible = True

    def __call__(self, state: ModelState) -> ModelState:
        """Replay the step, record it or run it."""
        for before, graph, after in self._graphs:
            if state is before:
                graph.launch()
                return after
        rehearsal, last = self._rehearsal, self._last
        self._graphs, self._rehearsal, self._last = (), None, None
        try:
            if rehearsal is not None and state is rehearsal.after:
                self._graphs, self._rehearsal = rehearsal.graphs(), rehearsal
                return self(state)
            if state is last and self._possible:
                self._rehearsal = _Rehearsal(self._xp, self._step, state)
                return self._rehearsal.after
        except (RuntimeError, MemoryError) as error:  # of CUDA and CuPy
            _log.debug("iterations are not recorded as CUDA graphs: %s", error)
            self._graphs, self._rehearsal, self._possible = (), None, False
        self._last = self._step(state)
        return self._last


class _Rehearsal(Generic[ModelState]):
    """A step that has run in memory which its graphs will use, so that recording allocates nothing."""

    def __init__(self, xp: Any, step: Callable[[ModelState], ModelState], before: ModelState) -> None:
        self._xp, self._step, self._before, self._memory = xp, step, before, _Memory(xp)
        self._taken: list[tuple[int, int]] = []  # address and size of each allocation
        with xp.cuda.using_allocator(self._allocate):
            self.after = step(before)

    def _allocate(self, size: int) -> _Pointer:
        pointer = self._memory.take(size)
        self._taken.append((pointer.ptr, size))
        return pointer

    def graphs(self) -> tuple[tuple[ModelState, Any, ModelState], ...]:
        """The step from the later state to the earlier one, and back."""
        before, after = [*_parts(self._before)], [*_parts(self.after)]
        if [type(part) for part in before] != [type(part) for part in after]:
            raise RuntimeError("the states before and after a step are not alike")
        pairs = [pair for pair in zip(before, after, strict=True) if isinstance(pair[0], self._xp.ndarray)]
        # Numbers of the allocations that became arrays of the result: the last ones at their addresses.
        numbers = {address: number for number, (address, _) in enumerate(self._taken)}
        made = [(numbers[new.data.ptr], old, new) for old, new in pairs if new.data.ptr in numbers]
        for number, _, _ in made:
            if self._taken.count(self._taken[number]) > 1:  # something temporary was there before
                self._memory.reserve(self._taken[number][1])
        to_before = self._record(self.after, self._before, {number: old.data for number, old, _ in made})
        to_after = self._record(self._before, self.after, {number: new.data for number, _, new in made})
        return (self.after, to_before, self._before), (self._before, to_after, self.after)

    def _record(self, state: ModelState, result: ModelState, places: dict[int, _Pointer]) -> Any:
        """The graph of the step from ``state`` to ``result``; ``places`` are of allocations, by number."""
        numbers = count()

        def allocate(size: int) -> _Pointer:
            place = places.get(next(numbers))
            return self._memory.take(size) if place is None else place

        # Recording must not wait for others that use the default stream, nor they for it.
        stream = self._xp.cuda.Stream(non_blocking=True)
        with stream, self._xp.cuda.using_allocator(allocate):
            try:
                stream.begin_capture()
                made = self._step(state)
                graph = stream.end_capture()
            except BaseException:
                with suppress(RuntimeError):  # it has ended, or has become invalid
                    stream.end_capture()
                raise
        if self._layout(made) != self._layout(result):
            raise RuntimeError("a step does not leave the same state each time")
        return graph

    def _layout(self, state: ModelState) -> list[Any]:
        """Where the arrays of a state lie, and its other parts."""
        return [
            (part.data.ptr, part.shape, part.strides, part.dtype)
            if isinstance(part, self._xp.ndarray)
            else part
            for part in _parts(state)
        ]


def _parts(state: Any) -> Iterator[Any]:
    """What a state of dataclasses and tuples consists of, in a fixed order."""
    if is_dataclass(state):
        yield type(state)
        state = tuple(getattr(state, field.name) for field in fields(state))
    if isinstance(state, tuple):
        for part in state:
            yield from _parts(part)
    else:
        yield state


class _Memory:
    """Memory from CuPy's allocator.  What arrays give back is kept for the next ones of the same size."""

    def __init__(self, xp: Any) -> None:
        self._xp, self._device = xp, xp.cuda.Device().id
        self._source: Callable[[int], _Pointer] = xp.cuda.get_allocator()
        self._kept: defaultdict[int, list[_Pointer]] = defaultdict(list)  # by size

    def take(self, size: int) -> _Pointer:
        """Memory for an array."""
        kept = self._kept[size]
        pointer = kept.pop() if kept else self._source(size)
        memory = self._xp.cuda.UnownedMemory(pointer.ptr, size, _Loan(pointer, kept), self._device)
        return self._xp.cuda.MemoryPointer(memory, 0)

    def reserve(self, size: int) -> None:
        """Keep more memory for an array."""
        self._kept[size].append(self._source(size))


class _Loan:
    """Gives memory back when no array uses it."""

    def __init__(self, pointer: _Pointer, kept: list[_Pointer]) -> None:
        self._pointer, self._kept = pointer, kept

    def __del__(self) -> None:
        self._kept.append(self._pointer)
