"""What an operation costs on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cost:
    """Amounts of one operation, or of several one after the other."""

    launches: float = 0
    dram: float = 0  # bytes
    l2: float = 0  # bytes from and to L2
    l1: float = 0  # bytes through L1, shared memory and shuffles included
    float64: float = 0  # instructions of warps
    other: float = 0  # all other instructions of warps
    # Where rows are gathered:
    dram_rows: float = math.nan  # share of them that comes from DRAM
    l1_rows: float = math.nan  # share that is in L1
    busy: float = math.nan  # share of the warps of resident blocks that have something to do
    #: ms, by what is waited for.
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        return sum(self.waits.values())

    @property
    def bound(self) -> str:
        """What most of the time is waited for."""
        return max(self.waits, key=self.waits.__getitem__)

    def __add__(self, other: Cost) -> Cost:
        names = dict.fromkeys((*self.waits, *other.waits))
        waits = {name: self.waits.get(name, 0.0) + other.waits.get(name, 0.0) for name in names}
        return Cost(*(getattr(self, name) + getattr(other, name) for name in _SUMMED), waits=waits)

    def __mul__(self, times: float) -> Cost:
        waits = {name: times * ms for name, ms in self.waits.items()}
        return Cost(*(times * getattr(self, name) for name in _SUMMED), waits=waits)


_SUMMED = ("launches", "dram", "l2", "l1", "float64", "other")

#: The columns of a table: header, and the text of each cell.
COLUMNS: dict[str, Callable[[Cost], str]] = {
    "launches": lambda cost: f"{cost.launches:g}",
    "DRAM MB": lambda cost: _digits(cost.dram / 1e6),
    "L2 MB": lambda cost: _digits(cost.l2 / 1e6),
    "L1 MB": lambda cost: _digits(cost.l1 / 1e6),
    "float64 M": lambda cost: _digits(cost.float64 / 1e6),
    "other M": lambda cost: _digits(cost.other / 1e6),
    "rows from DRAM": lambda cost: _percent(cost.dram_rows),
    "rows in L1": lambda cost: _percent(cost.l1_rows),
    "busy slots": lambda cost: _percent(cost.busy),
    "bound": lambda cost: cost.bound,
    "ms": lambda cost: _digits(cost.ms),
}


def _digits(amount: float) -> str:
    return f"{amount:.0f}" if amount >= 1000 else f"{amount:.3g}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"
