"""Which allocation an address lies in."""

from __future__ import annotations

import bisect
from dataclasses import dataclass


@dataclass
class Allocation:
    """Memory of the device, or pinned memory of the host."""

    address: int
    size: int
    pinned: bool
    device: int = 0
    stream: int = 0
    freed: bool = False


class Allocations:
    """Which allocation an address lies in."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._by_start: dict[int, Allocation] = {}

    def add(self, allocation: Allocation) -> None:
        bisect.insort(self._starts, allocation.address)
        self._by_start[allocation.address] = allocation

    def remove(self, address: int) -> Allocation:
        self._starts.remove(address)
        return self._by_start.pop(address)

    def find(self, address: int) -> Allocation | None:
        position = bisect.bisect_right(self._starts, address) - 1
        if position < 0:
            return None
        found = self._by_start[self._starts[position]]
        return found if address < found.address + max(found.size, 1) else None
