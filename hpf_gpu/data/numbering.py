"""Row numbers for ids that come in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .ids import Ids, Numbered, encode, narrow, row_numbers_of

_SPARSE = 8  # places of a table for each id, at most, and as many more as
_SMALL = 1 << 20


class Numbering:
    """Numbers ids in order of first appearance, as :func:`hpf_gpu.data.ids.encode` numbers all at once.

    Memory is that of the distinct ids, once as they are and once to be found again: integers whose range is
    not much larger than their number by a table over the range, other numbers in sorted order, all else by a
    dict.

    Parameters
    ----------
    kind : str
        "user" or "item", for messages.
    reindex : bool
        Without it ids are row numbers already.
    written : bool
        Ids are as a text has them: integers, until a piece with strings shows that all are strings.
    """

    def __init__(self, kind: str, *, reindex: bool = True, written: bool = False) -> None:
        self._kind, self._reindex, self._written = kind, reindex, written
        self._size = 0
        self._values: list[NDArray[Any]] = []  # distinct ids in order
        self._known: _Table | _Sorted | _Hashed | None = None
        self._given: Ids | None = None  # those of a matrix

    @property
    def size(self) -> int:
        """Number of ids so far."""
        return self._size

    @property
    def ids(self) -> Ids:
        """All ids so far."""
        if self._given is not None:
            return self._given
        values = np.concatenate(self._values) if self._reindex else None
        return Ids(values, self._size, self._kind)

    def numbers(self, column: pd.Series | Numbered) -> NDArray[Any]:
        """Row numbers (Z,) of a piece of ids, those that are new included.

        Raises
        ------
        ValueError, TypeError
            If an id is missing or not hashable, is not of the type of those before, or there are more than
            numbers of 32 bits.
        """
        numbers = self._numbers_of(column)
        if self._size > np.iinfo(np.int32).max:
            raise ValueError(
                f"there are {self._size:,} {self._kind}s, and 32 bits number no more than 2^31 - 1"
            )
        return numbers

    def _numbers_of(self, column: pd.Series | Numbered) -> NDArray[Any]:
        if isinstance(column, Numbered):
            self._given, self._size = column.ids, column.ids.size
            return np.asarray(column.numbers)
        if self._written and column.dtype.kind == "O":
            self._become_strings()
        if not len(column):
            return np.empty(0, np.int32)
        if not self._reindex:
            codes = row_numbers_of(column, self._kind, room=self._size)
            self._size = max(self._size, int(codes.max()) + 1)
            return codes
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
            values = column.to_numpy()
            if isinstance(self._known, _Table | None) and (table := self._table_for(values)) is not None:
                return self._by_table(table, values)
        codes, found = encode(column, self._kind, reindex=True)
        values = found.values if found.values is not None else np.arange(found.size)
        numbers: NDArray[Any] = self._by_lookup(values)[codes]
        return numbers

    def _become_strings(self) -> None:
        """Make the ids so far, which may be integers, what the text has."""
        if self._values and self._values[0].dtype.kind in "iu":
            self._values = [np.array([*map(str, values.tolist())], dtype=object) for values in self._values]
            self._known = None

    def _table_for(self, values: NDArray[Any]) -> _Table | None:
        """The table, wide enough for these; None if it would be much larger than the number of ids."""
        low, high = int(values.min()), int(values.max())
        table = self._known if isinstance(self._known, _Table) else None
        if table is not None:
            low, high = min(low, table.low), max(high, table.high)
        most = _SPARSE * (self._size + len(values)) + _SMALL
        if high - low >= most or high > np.iinfo(np.int64).max:
            return None
        self._known = table = _Table(low, high) if table is None else table.widened(low, high)
        return table

    def _by_table(self, table: _Table, values: NDArray[Any]) -> NDArray[Any]:
        codes = table.codes(values)
        unknown = codes < 0
        if unknown.any():
            late = values[unknown]
            new = pd.unique(late)
            table.add(new, self._size)
            self._append(new)
            codes[unknown] = table.codes(late)
        return codes

    def _by_lookup(self, values: NDArray[Any]) -> NDArray[Any]:
        """Numbers of distinct ids (n,), new ones in their order."""
        wanted = _Sorted if values.dtype.kind in "iuf" else _Hashed
        known = self._known
        if not isinstance(known, wanted):
            before = np.concatenate(self._values) if self._values else values[:0]
            if _type(before) != _type(values):
                raise TypeError(
                    f"{self._kind} ids of one piece are {values.dtype}, and of those before it "
                    f"{before.dtype}: make them the same type in all pieces"
                )
            self._known = known = wanted()
            known.add(before, 0)
        codes = known.codes(values)
        unknown = codes < 0
        if unknown.any():
            new = values[unknown]
            codes[unknown] = np.arange(self._size, self._size + len(new))
            known.add(new, self._size)
            self._append(new)
        return codes

    def _append(self, new: NDArray[Any]) -> None:
        self._values.append(new)
        self._size += len(new)


def _type(values: NDArray[Any]) -> str:
    return "integers" if values.dtype.kind in "iu" else values.dtype.kind


class _Table:
    """Numbers of integers, by a table over their range."""

    def __init__(self, low: int, high: int, numbers: NDArray[Any] | None = None) -> None:
        self.low, self.high = low, high
        self._numbers = np.full(high - low + 1, -1, np.int32) if numbers is None else numbers

    def widened(self, low: int, high: int) -> _Table:
        """The same over a range that contains this one's, and somewhat more if it grows upwards."""
        if low == self.low and high == self.high:
            return self
        if high > self.high:
            high = max(high, self.high + (self.high - self.low) // 2)
        wider = _Table(low, high)
        wider._numbers[self.low - low : self.high - low + 1] = self._numbers
        return wider

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._numbers[values.astype(np.int64) - self.low]

    def add(self, new: NDArray[Any], first: int) -> None:
        self._numbers[new.astype(np.int64) - self.low] = np.arange(first, first + len(new))


class _Sorted:
    """Numbers of numbers, in ascending order."""

    def __init__(self) -> None:
        self._values: NDArray[Any] | None = None
        self._numbers: NDArray[Any] = np.empty(0, np.int32)

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        if self._values is None or not len(self._values):
            return np.full(len(values), -1)
        places = np.minimum(np.searchsorted(self._values, values), len(self._values) - 1)
        return np.where(self._values[places] == values, self._numbers[places], -1)

    def add(self, new: NDArray[Any], first: int) -> None:
        order = np.argsort(new)
        numbers = narrow(order + first, first + len(new))
        if self._values is None:
            self._values, self._numbers = new[order], numbers
            return
        places = np.searchsorted(self._values, new[order])
        self._values = np.insert(self._values, places, new[order])
        self._numbers = np.insert(self._numbers, places, numbers)


class _Hashed:
    """Numbers of ids of any hashable type."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.array([self._numbers.get(one, -1) for one in values.tolist()], dtype=np.int64)

    def add(self, new: NDArray[Any], first: int) -> None:
        self._numbers.update(zip(new.tolist(), range(first, first + len(new)), strict=True))
