"""What a warp executes of a kernel's machine code: its loops, ways through them, and kinds of instructions.

Branches cannot be decided without running the code, so the caller says which way counts: the one with most
instructions, or the one with fewest through an instruction that only the usual case needs.  No way leads
through the call of a subroutine (the slow path of a division, or shuffles of a warp that has split) where
the code has another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cubin import Instruction

#: 128-byte passes through the L1 cache and shared memory: one for each of these, more for wide ones.
_MEMORY = re.compile(r"(LDG|STG|LDS|STS|LDL|STL|SHFL|LD|ST|ATOM|ATOMG|ATOMS|RED)\b")
_FLOAT64 = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b")
_SPECIAL = re.compile(r"MUFU|(F2F|I2F|F2I)\b.*64")
_FLOAT32 = re.compile(r"[FH](ADD|MUL|FMA|MNMX|SETP|SEL|SET)")


@dataclass(frozen=True)
class Counts:
    """Instructions of a warp, of which some need a unit that is slower than the issue of instructions."""

    issued: float = 0
    float64: float = 0
    float32: float = 0
    special: float = 0  # reciprocals and the like, and conversions from and to 64 bits
    passes: float = 0  # of 128 bytes through the L1 cache and shared memory

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.issued + other.issued,
            self.float64 + other.float64,
            self.float32 + other.float32,
            self.special + other.special,
            self.passes + other.passes,
        )

    def __mul__(self, times: float) -> Counts:
        return Counts(
            self.issued * times,
            self.float64 * times,
            self.float32 * times,
            self.special * times,
            self.passes * times,
        )


@cache
def counts_of(opcode: str) -> Counts:
    """The kinds of one instruction."""
    wide = 4 if ".128" in opcode else 2 if ".64" in opcode else 1
    return Counts(
        1,
        bool(_FLOAT64.match(opcode)),
        bool(_FLOAT32.match(opcode)),
        bool(_SPECIAL.match(opcode)),
        wide if _MEMORY.match(opcode) else 0,
    )


@dataclass(frozen=True)
class Loop:
    """A natural loop: ``last`` jumps back to ``first``, which all of its instructions lie behind."""

    first: int
    last: int
    inside: frozenset[int]


class Way:
    """Instructions from one place to another, each with the number of times that it is executed."""

    def __init__(self, steps: Iterable[tuple[str, float]]) -> None:
        self._steps = tuple(steps)

    @property
    def counts(self) -> Counts:
        return sum((counts_of(opcode) * times for opcode, times in self._steps), Counts())

    def count(self, pattern: str) -> float:
        """Instructions whose opcode matches from its beginning."""
        return sum(times for opcode, times in self._steps if re.match(pattern, opcode))


class Flow:
    """The flow of control of one kernel."""

    def __init__(self, code: Sequence[Instruction]) -> None:
        self._code = code
        self._next = [self._successors(place) for place in range(len(code))]

    def _successors(self, place: int) -> tuple[int, ...]:
        one = self._code[place]
        kind, *more = one.opcode.split(".")
        following = (place + 1,) if place + 1 < len(self._code) else ()
        if kind in ("EXIT", "RET", "BRX") or (kind == "CALL" and one.target is None):
            return following if one.conditional else ()
        # BRA.DIV is taken by warps that have split, which these kernels do not have in their loops.
        if one.target is None or "DIV" in more:
            return following
        return (one.target, *following) if one.conditional else (one.target,)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Loops that can be reached, the outer before the inner ones; endless ones left out."""
        reached = self._reached(0)
        found: dict[int, Loop] = {}
        for last in sorted(reached):
            for first in self._next[last]:
                if first < last and last not in self._reached(0, without=first):
                    inside = self._behind(first, last, reached)
                    if first in found:  # several jumps back to the same place
                        inside |= found[first].inside
                    found[first] = Loop(first, last, inside)
        return tuple(sorted(found.values(), key=lambda loop: -len(loop.inside)))

    @cached_property
    def rare(self) -> frozenset[int]:
        """Places that a warp jumps over unless one of its lanes votes against: seldom, in these kernels."""
        votes = (place for place, one in enumerate(self._code) if one.opcode.startswith("VOTE.ANY"))
        found: set[int] = set()
        for vote in votes:
            jump = next((p for p in range(vote, min(vote + 4, len(self._code))) if self._jumps_over(p)), None)
            if jump is not None:
                found.update(range(jump + 1, self._code[jump].target or 0))
        return frozenset(found)

    def _jumps_over(self, place: int) -> bool:
        one = self._code[place]
        return one.conditional and one.opcode.startswith("BRA") and (one.target or 0) > place

    def inner(self, loop: Loop) -> tuple[Loop, ...]:
        """Loops within this one."""
        return tuple(other for other in self.loops if other.inside < loop.inside)

    def way(
        self,
        loop: Loop | None,
        trips: Callable[[Loop], float] = lambda _: 1,
        *,
        through: str | None = None,
        without: frozenset[int] = frozenset(),
    ) -> Way:
        """Once through a loop, or without one from the kernel's entry to its end.

        Parameters
        ----------
        loop : Loop or None
        trips : callable
            How often a loop within it is executed each time.
        through : str, optional
            Pattern of opcodes.  The way has as few instructions as there can be with one of these; without
            a pattern it has as many as there can be.
        without : frozenset of int
            Places that do not count.

        Raises
        ------
        ValueError
            If there is no such way.
        """
        first = loop.first if loop else 0
        inner = self.inner(loop) if loop else self.loops
        weight = dict.fromkeys(loop.inside if loop else self._reached(0), 1.0)
        for other in inner:
            times = trips(other)
            for place in other.inside:
                weight[place] *= times
        weight.update(dict.fromkeys(without & weight.keys(), 0.0))
        sign = -1 if through is None else 1
        back = {(other.last, other.first) for other in (*inner, *((loop,) if loop else ()))}
        # Of each place the best way there, that has (1) or has not (0) met the pattern: cost and predecessor.
        best: dict[tuple[int, bool], tuple[float, tuple[int, bool] | None]] = {}
        meets = {place for place in weight if weight[place] and self._matches(place, through)}
        best[first, first in meets] = (sign * weight[first], None)
        for place in self._forward_order(first, weight, back):
            for had in (False, True):
                if (place, had) not in best:
                    continue
                for following in self._next[place]:
                    if following not in weight or (place, following) in back or following == first:
                        continue
                    has = had or following in meets
                    cost = best[place, had][0] + sign * weight[following]
                    if (following, has) not in best or cost < best[following, has][0]:
                        best[following, has] = (cost, (place, had))
        ends = [place for place in weight if self._is_end(place, loop) and (place, True) in best]
        if not ends:
            raise ValueError(f"no way through this code meets {through!r}")
        at: tuple[int, bool] | None = min(((place, True) for place in ends), key=lambda end: best[end][0])
        steps = []
        while at is not None:
            steps.append((self._code[at[0]].opcode, weight[at[0]]))
            at = best[at][1]
        return Way(reversed(steps))

    def _matches(self, place: int, pattern: str | None) -> bool:
        return bool(re.match(pattern or "", self._code[place].opcode))

    def _is_end(self, place: int, loop: Loop | None) -> bool:
        return loop.first in self._next[place] if loop else self._code[place].opcode.startswith("EXIT")

    def _reached(self, start: int, without: int | None = None) -> set[int]:
        """Places that can be reached, optionally without passing one of them."""
        seen: set[int] = set()
        left = [] if start == without else [start]
        while left:
            place = left.pop()
            if place not in seen:
                seen.add(place)
                left += (other for other in self._next[place] if other != without)
        return seen

    def _behind(self, first: int, last: int, reached: set[int]) -> frozenset[int]:
        """Places from which ``last`` can be reached without passing ``first``, and ``first``."""
        before: dict[int, list[int]] = {}
        for place in reached:
            for following in self._next[place]:
                before.setdefault(following, []).append(place)
        seen, left = {first}, [last]
        while left:
            place = left.pop()
            if place not in seen:
                seen.add(place)
                left += before.get(place, ())
        return frozenset(seen)

    def _forward_order(self, first: int, places: dict[int, float], back: set[tuple[int, int]]) -> list[int]:
        """Every place after all that lead to it, jumps back left out."""
        order: list[int] = []
        seen: set[int] = set()
        stack = [(first, False)]
        while stack:
            place, done = stack.pop()
            if done:
                order.append(place)
            elif place not in seen:
                seen.add(place)
                stack.append((place, True))
                stack += (
                    (other, False)
                    for other in self._next[place]
                    if other in places and other not in seen and (place, other) not in back
                )
        return order[::-1]
