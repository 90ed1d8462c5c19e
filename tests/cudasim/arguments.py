"""A launch's arguments against the kernel's C++ parameters.

CUDA packs whatever it is given: a Python float for a ``float`` arrives as 0, and an int32 for a
``long long`` brings four bytes of its neighbour along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

UNTYPED = "V0"  # the target of a void*


def check(kernel: str, signature: Sequence[str], arguments: Sequence[Any], array_type: type) -> None:
    """Raise TypeError where an argument is not what the parameter takes.

    ``signature`` has numpy's type codes, with a star for pointers: ``("*f4", "i8")`` is
    ``(float*, long long)``.
    """
    if len(arguments) != len(signature):
        raise TypeError(f"{kernel}: {len(arguments)} arguments for {len(signature)} parameters")
    for number, (parameter, argument) in enumerate(zip(signature, arguments, strict=True)):
        fits = _fits_pointer if parameter.startswith("*") else _fits_scalar
        if not fits(parameter.lstrip("*"), argument, array_type):
            raise TypeError(
                f"{kernel}: parameter {number} is {parameter}, the argument {_describe(argument, array_type)}"
            )


def _code(value: Any) -> str:
    return value.dtype.str[1:]


def _fits_pointer(target: str, argument: Any, array_type: type) -> bool:
    if argument is None:
        return True
    if not isinstance(argument, array_type):
        return False
    return target in (UNTYPED, _code(argument)) and _is_dense(argument)


def _is_dense(array: Any) -> bool:
    """Whether a kernel that gets the address alone finds the elements: rows may be padded, but in order."""
    if array.ndim != 2 or array.size == 0:
        return array.flags.c_contiguous
    return array.strides[1] == array.itemsize and array.strides[0] >= array.shape[1] * array.itemsize


def _fits_scalar(code: str, argument: Any, array_type: type) -> bool:
    return isinstance(argument, np.generic) and _code(argument) == code


def _describe(argument: Any, array_type: type) -> str:
    if isinstance(argument, array_type):
        layout = "" if _is_dense(argument) else " that is not C-contiguous"
        return f"an array of {_code(argument)}{layout}"
    if isinstance(argument, np.generic):
        return f"a scalar {_code(argument)}"
    return f"a Python {type(argument).__name__}, which has no fixed size: make it a numpy scalar"
