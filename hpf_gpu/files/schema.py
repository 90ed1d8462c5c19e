"""Checks of a file's contents: the fields of its header and its arrays, by type, shape and range.

Every check raises ValueError with the field and its value; the caller adds the name of the file.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = sys.float_info.max
POSITIVE = math.ulp(0.0)  # the smallest number above zero
_MAX_WHOLE = 2**63 - 1
_CALLED = {
    int: "an integer",
    float: "a number with a decimal point",
    bool: "true or false",
    str: "a string",
}
_CALLED |= {dict: "a table", list: "a list"}


# -- headers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A JSON value of exactly this type, so that true is not a number, within a range."""

    type: type
    least: float = -math.inf
    most: float = math.inf

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless the value is accepted."""
        number: Any = value if self.type in (int, float) else 0
        if type(value) is not self.type:
            raise ValueError(f"{name} is {short(value)}, not {_CALLED[self.type]}")
        if not self.least <= number <= self.most:
            raise ValueError(f"{name} is {short(value)}, not {_between(self.least, self.most)}")


@dataclass(frozen=True)
class OneOf:
    """One of some values, or a value that one of some fields accepts."""

    allowed: tuple[Any, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless the value is accepted."""
        for one in self.allowed:
            if isinstance(one, Field):
                if type(value) is one.type:
                    return one.check(name, value)
            elif type(value) is type(one) and value == one:
                return None
        said = (_CALLED[one.type] if isinstance(one, Field) else repr(one) for one in self.allowed)
        raise ValueError(f"{name} is {short(value)}, not {' or '.join(said)}")


Fields = Mapping[str, "Field | OneOf | Fields"]

FLAG, STRING, TABLE = Field(bool), Field(str), Field(dict)


def whole(least: int, most: int = _MAX_WHOLE) -> Field:
    """An integer."""
    return Field(int, least, most)


def real(least: float = -LARGEST, most: float = LARGEST) -> Field:
    """A finite number."""
    return Field(float, least, most)


def one_of(*allowed: Any) -> OneOf:
    """One of some values, or a value that one of some fields accepts."""
    return OneOf(allowed)


def check_fields(name: str, table: Any, fields: Fields) -> None:
    """Raise ValueError unless ``table`` has exactly these fields with accepted values."""
    TABLE.check(name, table)
    check_names("field of " + name, table, fields)
    for key, field in fields.items():
        if isinstance(field, (Field, OneOf)):
            field.check(f"{name}.{key}", table[key])
        else:
            check_fields(f"{name}.{key}", table[key], field)


def check_names(kind: str, names: Iterable[str], expected: Iterable[str]) -> None:
    """Raise ValueError if an expected name is missing, or a name is not expected."""
    names, expected = set(names), set(expected)
    if expected - names:
        raise ValueError(f"{kind} {min(expected - names)!r} is missing")
    if names - expected:
        raise ValueError(f"{kind} {short(min(names - expected))} is not known")


# -- arrays ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """An array with one of these dtypes; a letter in the shape stands for the same size in all arrays."""

    dtypes: str | tuple[str, ...]
    shape: tuple[str | int, ...]
    least: float = -LARGEST
    most: float = LARGEST
    unknown: str = "never"  # or "maybe" or "always": whether values are NaN
    rises: str = ""  # "always" or "never falls": monotone along its only axis

    def check(self, name: str, array: NDArray[Any], sizes: dict[str, int], *, values: bool = True) -> None:
        """Raise ValueError unless the array is accepted; adds the sizes of new letters to ``sizes``.

        Without ``values`` only its dtype and shape are checked, for which nothing of it is read.
        """
        shape = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in self.shape)
        dtypes = (self.dtypes,) if isinstance(self.dtypes, str) else self.dtypes
        fits = len(shape) == array.ndim and all(
            isinstance(want, str) or want == size for want, size in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name not in dtypes:
            wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
            if array.dtype.name not in dtypes:
                wanted = f"{' or '.join(dtypes)} {wanted}"
            raise ValueError(f"{name} is {array.dtype.name} {array.shape}, not {wanted}")
        for size, n in zip(shape, array.shape, strict=True):
            if isinstance(size, str):
                sizes |= {size: n, f"{size} + 1": n + 1}
        if values:
            self._check_values(name, array)

    def _check_values(self, name: str, array: NDArray[Any]) -> None:
        if array.size == 0 or array.dtype.kind not in "iuf":
            return
        # As Python numbers, which are compared with any bound exactly; NaN if any value is NaN.
        low, high = array.min().item(), array.max().item()
        if low != low and self.unknown == "maybe":
            low, high = np.fmin.reduce(array, axis=None).item(), np.fmax.reduce(array, axis=None).item()
        wanted, bad = _between(self.least, self.most), None
        if self.unknown == "always":
            wanted, bad = "NaN", ~np.isnan(array)
        elif low < self.least or high > self.most:
            bad = array == (low if low < self.least else high)
        elif low != low and self.unknown == "never":
            bad = np.isnan(array)
        if bad is not None and bad.any():
            place = np.unravel_index(int(np.argmax(bad)), array.shape)
            at = ", ".join(map(str, place))
            raise ValueError(f"{name}[{at}] is {array[place]}, not {wanted}")
        if self.rises:
            bad = array[1:] < array[:-1] if self.rises == "never falls" else array[1:] <= array[:-1]
            if bad.any():
                first = int(np.argmax(bad))
                pair = f"{array[first]} and then {array[first + 1]}"
                raise ValueError(f"{name}[{first}:{first + 2}] is {pair}, and must rise")


def check_arrays(
    tensors: Mapping[str, NDArray[Any]],
    layout: Mapping[str, Array],
    sizes: Mapping[str, int],
    *,
    values: bool = True,
) -> dict[str, int]:
    """Raise ValueError unless ``tensors`` are the arrays of ``layout``; returns the size of each letter.

    Without ``values`` only dtypes and shapes are checked.
    """
    check_names("array", tensors, layout)
    found = dict(sizes)
    for name, array in layout.items():
        array.check(name, tensors[name], found, values=values)
    return found


# -- messages ----------------------------------------------------------------------------------


def short(value: Any) -> str:
    """A value for a message, abbreviated."""
    return reprlib.repr(value)


def _between(least: float, most: float) -> str:
    if least in (-LARGEST, -math.inf):
        return "finite"
    if most in (LARGEST, math.inf):
        return "above zero and finite" if least == POSITIVE else f"finite and {least} or more"
    return f"between {least} and {most}"
