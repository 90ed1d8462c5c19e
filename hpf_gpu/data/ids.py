"""Ids of users and items, of any hashable type, and their row numbers."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.messages import did_you_mean, shown, warn

from .frames import series_of
from .growth import appended

_NAMED = 3  # ids that a message names, of many
_NUMERIC = {"i", "u", "f"}  # kinds of dtypes
_ALIKE = {(int, "i"), (int, "u"), (str, "O")}  # an id and kinds that pandas finds it among as a dict would
_EXACT = 2**53  # float64 holds every integer up to here
_FEW = 1000  # ids that were added later are looked up one by one up to here, or an eighth of the others
_BLOCK = 1 << 18  # rows that are processed at once
_MOST_IN_A_DICT = 1 << 20  # of which single ids are found faster, but which takes 100 bytes for each

_adding = Lock()


class Ids:
    """The ids of one side in row order; with ``values=None`` ids are the row numbers themselves.

    ``values`` may be a function that returns them, which is called when they are needed.
    """

    def __init__(
        self,
        values: NDArray[Any] | Callable[[], NDArray[Any]] | None,
        size: int,
        kind: str,
        later: _Later | None = None,
    ) -> None:
        self._given = values
        self.size = size
        self.kind = kind  # "user" or "item", for messages
        # The first of these ids, which have an index, and the rows of those after them.  The table is shared
        # with longer ids: rows from ``size`` on are not of these.
        self._later = later

    @cached_property
    def values(self) -> NDArray[Any] | None:
        """The ids (size,); None if they are row numbers."""
        return self._given() if callable(self._given) else self._given

    def called(self, kind: str) -> Ids:
        """The same ids as those of "user" or "item"."""
        return Ids(self._given, self.size, kind)

    @cached_property
    def _index(self) -> pd.Index:
        return _as_index(_column(self.values))

    @cached_property
    def _hashed(self) -> pd.Index:
        """The same for lookups, with its hash table: pandas 2 is not safe where two threads make that."""
        index = _as_index(_column(self.values))
        _ = index.is_unique  # makes the table, before another thread can see the index
        return index

    @property
    def index(self) -> pd.Index:
        """The ids as labels (size,)."""
        return pd.RangeIndex(self.size) if self.values is None else self._index

    @cached_property
    def rows(self) -> dict[Any, int] | None:
        """Row number of each id; None if ids are row numbers."""
        return None if self.values is None else dict(zip(self._index, range(self.size), strict=True))

    def equals(self, other: Ids) -> bool:
        """Whether both have the same ids in the same rows."""
        return self is other or (self.size == other.size and self.index.equals(other.index))

    def are_strings(self) -> bool:
        """Whether all of them are strings."""
        values = self.values
        return values is not None and values.dtype == object and all(isinstance(v, str) for v in values)

    @cached_property
    def _has_tuples(self) -> bool:
        values = self.values
        return values is not None and values.dtype == object and any(isinstance(v, tuple) for v in values)

    def is_single(self, ids: Any) -> bool:
        """Whether ``ids`` is one id rather than a collection of them."""
        if isinstance(ids, tuple):
            return self._has_tuples
        if isinstance(ids, np.ndarray):
            return ids.ndim == 0
        return isinstance(ids, Hashable) and not isinstance(ids, (Iterator, range))

    def codes(self, ids: Any) -> NDArray[np.int64]:
        """Row numbers of many ids (n,); −1 where an id is unknown."""
        if isinstance(ids, Numbered):
            return np.asarray(self.codes(ids.ids.index)[ids.numbers])
        ids = series_of(ids)
        if isinstance(getattr(ids, "dtype", None), pd.CategoricalDtype):
            categories: Any = ids.array if isinstance(ids, pd.Series) else ids
            # One more for missing ids, whose code is −1.
            return np.asarray(np.append(self.codes(categories.categories), -1)[categories.codes])
        column = _column(ids)
        if self.values is not None:
            return self._places(_as_index(column))
        if column.dtype == object:
            return np.array([self._number(value) for value in column], dtype=np.int64)
        if column.dtype.kind not in "iufb":
            return np.full(len(column), -1, dtype=np.int64)
        with np.errstate(invalid="ignore"):
            valid = (column >= 0) & (column < self.size) & (column == np.floor(column))
        return np.where(valid, np.where(valid, column, 0).astype(np.int64), -1)

    def _places(self, ids: pd.Index) -> NDArray[np.int64]:
        """Row numbers of ids (n,), found as in a dict: True, 1 and 1.0 are the same id; −1 where unknown."""
        if self._later is not None:
            first, rows_of_others = self._later
            places = first._places(ids)
            missing = np.flatnonzero(places < 0)
            for place, one in zip(missing, ids[missing], strict=True):
                places[place] = self._of_these(rows_of_others.get(one))
            return places
        if self.size > _MOST_IN_A_DICT:
            ids = _as_integers_of(self._index.dtype, ids)
        if _compare_as_in_python(self._index, ids):
            codes: NDArray[np.int64] = self._hashed.get_indexer(ids)
            return codes
        rows = self.rows or {}
        return np.array([rows.get(one, -1) for one in ids], dtype=np.int64)

    def codes_of(self, ids: Any) -> NDArray[np.int64]:
        """Row numbers of one id or of many, (1,) or (n,); −1 where an id is unknown."""
        return self.codes(self._listed(ids))

    def _row_of(self, one: int | str) -> int:
        """Row number of an id, in a tenth of the time of :meth:`codes`; −1 where it is unknown.

        So it may be where the ids are of a type that only :meth:`codes` compares with it.
        """
        if self.values is None:
            return one if isinstance(one, int) and 0 <= one < self.size else -1
        if self._later is not None:
            first, rows_of_others = self._later
            row = first._row_of(one)
            return row if row >= 0 else self._of_these(rows_of_others.get(one))
        if (type(one), self.values.dtype.kind) not in _ALIKE:
            return -1
        try:
            place: Any = self._hashed.get_loc(one)
        except (KeyError, OverflowError):
            return -1
        return int(place)

    def _of_these(self, row: int | None) -> int:
        """The row of an id that was added later, −1 if that was after these."""
        return row if row is not None and row < self.size else -1

    def require(self, ids: Any) -> NDArray[np.int64]:
        """Row numbers of one id or of many, (1,) or (n,); ValueError if one is unknown."""
        if type(ids) in (int, str) and (row := self._row_of(ids)) >= 0:
            return np.array([row])
        listed = self._listed(ids)
        codes = self.codes(listed)
        if (codes < 0).any():
            hint = self.hint(listed) if (codes < 0).all() else ""
            hint = hint or self.close(listed, codes < 0)
            raise ValueError(f"{self.missing(listed, codes < 0)} not in the training data{hint}")
        return codes

    def missing(self, ids: Any, unknown: NDArray[np.bool_]) -> str:
        """Those of many ids (n,) that are ``unknown`` (n,), as the subject of a message."""
        return self._named(_column(ids)[unknown], "was", "were")

    def close(self, ids: Any, unknown: NDArray[np.bool_]) -> str:
        """The end of a message about those of ids (n,) that are ``unknown`` (n,): what they are close to."""
        if self.values is None or self.values.dtype != object or np.count_nonzero(unknown) > _NAMED:
            return ""
        return did_you_mean(_column(ids)[unknown], self.values)

    def hint(self, ids: Any) -> str:
        """The end of a message about ids (n,), none of which is known: that they are of another type."""
        if isinstance(ids, Numbered):
            return ""
        own, given = (_type_of(one) for one in (self.index, _column(ids)))
        if not own or not given or own == given:
            return ""
        return f"; the {self.kind} ids of the model are {own}, and these are {given}"

    def with_new(self, ids: pd.Index) -> tuple[NDArray[np.int64], Ids]:
        """Append distinct new ids (B,): their row numbers, and all ids.  ValueError if one exists already."""
        known = ids[self.codes(ids) >= 0]
        if len(known):
            named = self._named(known, "is", "are")
            raise ValueError(f"{named} in the model already; to replace, pass update_existing=True")
        rows = np.arange(self.size, self.size + len(ids))
        if self.values is not None:
            if hint := self.hint(ids):
                warn(f"{self._named(ids, 'is', 'are')} added as new{hint}")
            values = self._joined(ids)
            return rows, Ids(values, len(values), self.kind, self._with_later(values, ids))
        longer = Ids(None, self.size + len(ids), self.kind)
        codes = longer.codes(ids)
        if not np.array_equal(np.sort(codes), rows):
            numbered = f"the {self.kind} ids of this model are row numbers"
            raise ValueError(f"{numbered}, and the next is {self.size}, not {shown(ids[0])}")
        return codes, longer

    def extended(self, other: Ids) -> tuple[Ids, NDArray[np.int64]]:
        """The union with other ids, which keeps the rows of these, and the row of each of the others."""
        if self.values is None:
            return Ids(None, max(self.size, other.size), self.kind), np.arange(other.size)
        if self.size == 0:
            return other, np.arange(other.size)
        rows = self.codes(other.index)
        unknown = rows < 0
        if not unknown.any():
            return self, rows
        rows[unknown], ids = self.with_new(other.index[unknown])
        return ids, rows

    def _with_later(self, values: NDArray[Any], new: pd.Index) -> _Later | None:
        """What saves ids with these ``values`` an index of their own; None if they had better make one."""
        first, others = (self, dict[Any, int]()) if self._later is None else self._later
        if first.values is None or first.values.dtype != values.dtype:
            return None
        if len(values) - first.size > max(_FEW, first.size // 8):
            return None
        with _adding:
            if len(others) != self.size - first.size:  # another has gone on from these ids
                others = {one: row for one, row in others.items() if row < self.size}
            others.update(zip(new, range(self.size, len(values)), strict=True))
        return first, others

    def _joined(self, ids: pd.Index) -> NDArray[Any]:
        """All ids in the dtype of the existing ones, or as objects if that cannot hold the new ones."""
        new, dtype = ids, self._index.dtype
        with contextlib.suppress(UnicodeEncodeError):  # strings that are not Unicode stay objects
            new = ids.infer_objects()
        if new.dtype.kind == dtype.kind or {new.dtype.kind, dtype.kind} <= _NUMERIC:
            with contextlib.suppress(TypeError, ValueError, OverflowError), np.errstate(invalid="ignore"):
                cast = new.astype(dtype)
                # As Python compares: to NumPy 2**53 + 1 equals 2.0**53.
                if self.values is not None and [*cast] == [*ids]:
                    return appended(self.values, _as_values(cast))
        return _objects([*self._index, *ids])

    def _named(self, ids: Iterable[Any], singular: str, plural: str) -> str:
        """Some ids as the subject of a message: "users 'ann', 'bob', 'eve' and 2 more were"."""
        distinct = list(dict.fromkeys(map(shown, ids)))
        many = len(distinct) > 1
        more = f" and {len(distinct) - _NAMED} more" if len(distinct) > _NAMED else ""
        return f"{self.kind}{'s' * many} {', '.join(distinct[:_NAMED])}{more} {plural if many else singular}"

    def _listed(self, ids: Any) -> NDArray[Any]:
        """One id or many as an array, (1,) or (n,)."""
        if not self.is_single(ids):
            return _column(ids)
        return _column([ids[()] if isinstance(ids, np.ndarray) else ids])

    def _number(self, value: Any) -> int:
        within: bool = _is_number(value) and 0 <= value < self.size
        return int(value) if within and float(value).is_integer() else -1

    def labels(self, codes: NDArray[Any]) -> NDArray[Any]:
        """The ids of row numbers, in the same shape; if some are −1, objects with None in their place."""
        labels = codes if self.values is None else self.values[codes]
        if (codes >= 0).all():
            return labels
        labels = _objects(labels.reshape(-1)).reshape(codes.shape)
        labels[codes < 0] = None
        return labels

    def column(self, codes: NDArray[Any]) -> Any:
        """The same (n,) as a column of :func:`table`, in the dtype that they have here."""
        labels = self.labels(codes)
        # In an index objects stay objects; pandas' own strings would have to be valid Unicode.
        return _as_index(labels) if labels.dtype == object else labels


@dataclass(frozen=True)
class Numbered:
    """Ids (n,) by their numbers among those of the rows, or of the columns, of a matrix."""

    numbers: NDArray[Any]  # (n,)
    ids: Ids

    def __getitem__(self, kept: NDArray[np.bool_]) -> Numbered:
        return Numbered(self.numbers[kept], self.ids)

    def column(self) -> pd.Series:
        """The ids themselves."""
        return pd.Series(self.ids.column(self.numbers))


def table(columns: dict[str, Any]) -> pd.DataFrame:
    """A data frame of columns by name, arrays or indexes (n,), which are not copied.

    pandas makes one in half the time, which for a few rows is all there is, if it need not find out that the
    names are strings and that the columns are as long as each other.
    """
    frame = pd.DataFrame(
        dict(enumerate(columns.values())), index=pd.RangeIndex(len(next(iter(columns.values())))), copy=False
    )
    frame.columns = _names(tuple(columns)).copy()  # because users may set its name
    return frame


#: The first ids, and the rows of all others.
_Later = tuple[Ids, dict[Any, int]]


@cache
def _names(names: tuple[str, ...]) -> pd.Index:
    return pd.Index(names)


def encode(column: pd.Series, kind: str, reindex: bool, room: int = 0) -> tuple[NDArray[Any], Ids]:
    """Row numbers (Z,), assigned in order of first appearance, and the ids.

    Without ``reindex`` ids are row numbers already; those below ``room`` are accepted without the check that
    the matrix would not be much larger than the data.

    Raises
    ------
    ValueError, TypeError
        If an id is missing, not hashable, or, without ``reindex``, not a row number.
    """
    if not reindex:
        codes = row_numbers_of(column, kind, room)
        return codes, Ids(None, int(codes.max()) + 1, kind)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
        encoded = _encode_by_table(column.to_numpy())
        if encoded is not None:
            return encoded[0], Ids(encoded[1], len(encoded[1]), kind)
    try:
        codes, values = _factorize(column)
    except (TypeError, NotImplementedError) as error:  # the latter of Arrow's lists and structs
        raise TypeError(f"{kind} ids must be hashable: {error}") from error
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise ValueError(
            f"{len(missing)} {kind} ids are missing, the first in row {shown(column.index[missing[0]])}"
        )
    return narrow(codes, len(values)), Ids(_as_values(values), len(values), kind)


def distinct(ids: Any, size: int, kind: str) -> Ids:
    """The ids (size,) of the rows of a matrix, None for row numbers; ValueError unless all are different."""
    if ids is None:
        return Ids(None, size, kind)
    values = _column(ids)
    column = pd.Series(values, dtype=object if values.dtype == object else None)
    codes, found = encode(column, kind, reindex=True)
    if found.size < size:
        twice = codes[np.argmin(codes == np.arange(size))]
        raise ValueError(f"{kind} {shown(found.index[twice])} is there twice among the ids of a matrix")
    return found


def _factorize(column: pd.Series) -> tuple[NDArray[Any], Any]:
    """As pandas.factorize, but different strings are always different ids.

    Before version 3.1 pandas hashes strings only up to the first NUL, and all versions confuse strings with
    lone surrogates.
    """
    codes: NDArray[Any]
    distinct: Any
    # Of a series, pandas would make an index; of its array over NumPy's memory, pandas 2 warns.
    codes, distinct = pd.factorize(column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array)
    if column.dtype != object and getattr(column.dtype, "storage", None) != "python":
        return codes, distinct
    if _mention(distinct, "\\ud") or (_strings_end_at_nul() and _mention(column, "\0")):
        values = np.empty(len(column) + 1, dtype=object)
        values[:-1], values[-1] = column, ()
        # The tuple makes pandas use Python's own hash, because not all values are strings.
        codes, distinct = pd.factorize(values)
        codes, distinct = codes[:-1], distinct[:-1]
    return codes, distinct


@cache
def _strings_end_at_nul() -> bool:
    return len(pd.factorize(np.array(["\0a", "\0b"], dtype=object))[1]) == 1


def _mention(ids: Any, what: str) -> bool:
    """Whether all ids are strings, and some contain ``what`` or a lone surrogate."""
    strings = np.asarray(ids, dtype=object)
    for start in range(0, len(strings), _BLOCK):
        try:
            joined = "".join(strings[start : start + _BLOCK].tolist())
            joined.encode()
        except TypeError:  # not all are strings
            return False
        except UnicodeEncodeError:
            return True
        if what in joined:
            return True
    return False


def _encode_by_table(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """As pandas.factorize, for integers whose range is not much larger than their number; else None.

    A table over the range replaces the hash: 0.6 of the time, and 0.3 to 0.5 of the memory (measured at
    2.0M and 17.5M rows).
    """
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values) + 1000 or high > np.iinfo(np.int64).max:
        return None
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(values), _BLOCK)]
    first_row = np.full(high - low + 1, len(values))
    for block in reversed(blocks):  # and each block backwards, so that the first row is written last
        places = (values[block].astype(np.int64) - low)[::-1]
        first_row[places] = np.arange(block.start + len(places), block.start, -1) - 1
    present = np.flatnonzero(first_row < len(values))
    in_order = present[np.argsort(first_row[present])]
    code = narrow(first_row, len(in_order))
    code[in_order] = np.arange(len(in_order))
    codes = np.empty(len(values), dtype=code.dtype)
    for block in blocks:
        codes[block] = code[values[block].astype(np.int64) - low]
    return codes, (in_order + low).astype(values.dtype)


def row_numbers_of(column: pd.Series, kind: str, room: int) -> NDArray[Any]:
    """Ids that are row numbers already (reindex=False), checked."""
    advice = f"with reindex=False {kind} ids must be integers from 0; reindex=True accepts any ids"
    if column.isna().any():
        raise ValueError(f"{int(column.isna().sum())} {kind} ids are missing; {advice}")
    values = np.asarray(column)
    if values.dtype.kind not in "iufb":
        strange = [value for value in values if not _is_number(value)]
        if strange or values.dtype != object:
            first = strange[0] if strange else values[0]
            raise ValueError(f"{kind} id {shown(first)} is not a number; {advice}")
        endless = [value for value in values if not -(2**63) <= value < 2**63]
        if endless:
            raise ValueError(f"{kind} id {shown(endless[0])} is not a row number; {advice}")
        values = values.astype(np.float64)
    bad = (values < 0) | (values != np.floor(values)) | (values > np.iinfo(np.int64).max // 2)
    if bad.any():
        raise ValueError(f"{kind} id {shown(values[np.argmax(bad)])} is not a row number; {advice}")
    largest = int(values.max())
    if largest > max(room, 100 * len(values) + 1_000_000):
        raise ValueError(f"{kind} id {largest} would need a factor matrix of {largest + 1} rows; {advice}")
    return narrow(values, largest + 1)


def narrow(codes: NDArray[Any], size: int) -> NDArray[Any]:
    """Row numbers as int32 if that can number ``size`` rows, else as int64."""
    return codes.astype(np.int32 if size <= np.iinfo(np.int32).max else np.int64)


def _compare_as_in_python(one: pd.Index, other: pd.Index) -> bool:
    """Whether pandas finds the ids of one index in another exactly where a dict would.

    Between different dtypes it parses strings as dates, distinguishes True from 1, converts integers to
    floats, and dates overflow.
    """
    kinds = {one.dtype.kind, other.dtype.kind}
    if one.dtype == other.dtype or kinds == {"O"}:
        return True
    integers = [index for index in (one, other) if index.dtype.kind in "iu" and len(index)]
    return kinds <= _NUMERIC and all(ids.min() >= -_EXACT and ids.max() <= _EXACT for ids in integers)


def _as_integers_of(dtype: Any, ids: pd.Index) -> pd.Index:
    """Integers (n,) in the ``dtype`` of an index that they are looked up in; others as they are."""
    if ids.dtype == dtype or dtype.kind not in "iu" or ids.dtype.kind not in "iuO":
        return ids
    if ids.dtype == object and not all(type(one) in (int, np.int64) for one in ids):
        return ids
    with contextlib.suppress(OverflowError):
        return _as_index(np.array(ids.tolist(), dtype=dtype))
    return ids


def _as_values(values: Any) -> NDArray[Any]:
    """Unique ids as a NumPy array; tuples stay objects, extension types become objects or numbers."""
    if isinstance(values, np.ndarray):
        return values
    array = np.asarray(values)
    return array if array.ndim == 1 else _objects(values)


def _column(ids: Any) -> NDArray[Any]:
    """Many ids as an array (n,), without turning 1 into '1' or a tuple into a row."""
    if isinstance(ids, (np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        array = np.asarray(getattr(ids, "array", ids))  # of a series itself it takes three times as long
        if array.ndim > 1:
            raise ValueError(f"ids must be one-dimensional, not of shape {array.shape}")
        array = native(array.reshape(-1))
        # pandas has no index of float16.
        return array.astype(np.float32) if array.dtype == np.float16 else array
    if hasattr(ids, "columns"):
        name = next(iter(getattr(ids, "column_names", ids.columns)), "...")
        raise TypeError(f"ids must be one column, such as frame[{name!r}], and not a data frame")
    series = series_of(ids)
    return _objects(ids) if series is ids else _column(series)


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the byte order of this machine, which pandas and SciPy require."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_index(column: NDArray[Any]) -> pd.Index:
    """Ids (n,) as an index: tuples stay tuples, and strings are objects.

    pandas' own strings would have to be valid Unicode, and take three times as long to look up.
    """
    return pd.Index(column, dtype=object if column.dtype == object else None, tupleize_cols=False)


def _type_of(ids: Any) -> str:
    """What ids (n,) are called in a message, by the first and the last; "" where that is of no use."""
    ends = [ids[place] for place in (0, -1)] if len(ids) else [None]
    if all(isinstance(one, str) for one in ends):
        return "strings"
    numeric = all(_is_number(one) and not isinstance(one, (bool, np.bool_)) for one in ends)
    return "numbers" if numeric else ""


def _objects(ids: Iterable[Hashable]) -> NDArray[Any]:
    listed = list(ids)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)
