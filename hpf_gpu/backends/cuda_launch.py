"""Launches kernels, after checking every argument against the kernel's signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cuda_source import Parameter, Struct

_MAX_BLOCKS = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Packed:
    """The value of a struct, checked once, and the arrays that it points to, which it keeps alive."""

    struct: Struct
    value: Any  # numpy.void
    arrays: tuple[Any, ...]

    @property
    def fields(self) -> dict[str, Any]:
        """What it was packed from, by the names of its fields."""
        return {field.name: value for field, value in zip(self.struct.fields, self.arrays, strict=True)}


def pack(struct: Struct, width: int, device: int, *values: Any) -> Packed:
    """A struct for kernels, from a value for each of its fields: arrays or None for pointers, else numbers.

    ``width`` is the row stride of matrices in numbers, ``device`` that of the arrays.  Raises TypeError or
    ValueError as :meth:`Kernel.__call__`.
    """
    checked = _checked(struct.name, struct.fields, width, device, values)
    addresses = [
        (0 if value is None else value.data.ptr) if field.is_pointer else value
        for field, value in zip(struct.fields, checked, strict=True)
    ]
    return Packed(struct, np.array(tuple(addresses), struct.dtype)[()], checked)


class Kernel:
    """A compiled kernel that checks its arguments.

    CUDA itself checks nothing: it would accept an int32 for a long long, or an array with a wrong stride.

    Parameters
    ----------
    name : str
        For messages.
    function : callable
        CuPy's ``function((blocks,), (threads,), arguments)``.
    parameters : tuple of Parameter
        The kernel's signature.
    width : int
        Row stride of a matrix, in numbers.
    device : int
        Number of the device that it was compiled for.
    """

    def __init__(
        self, name: str, function: Any, parameters: tuple[Parameter, ...], width: int, device: int
    ) -> None:
        self._name, self._function, self._parameters, self._width = name, function, parameters, width
        self._device = device

    def __call__(self, blocks: int, threads: int, *arguments: Any) -> None:
        """Launch ``blocks`` × ``threads`` threads on the current stream; nothing if ``blocks`` is 0.

        Raises
        ------
        TypeError
            If the number of arguments, or the dtype of an array, is not that of the signature.
        ValueError
            If a number does not fit its type, or an array is on another device, has other strides or is
            not aligned.
        """
        checked = _checked(self._name, self._parameters, self._width, self._device, arguments)
        if blocks > _MAX_BLOCKS:
            raise ValueError(f"{self._name}: {blocks} blocks are more than CUDA can launch")
        if blocks:
            values = (value.value if isinstance(value, Packed) else value for value in checked)
            self._function((blocks,), (threads,), tuple(values))


def _checked(
    name: str, parameters: Sequence[Parameter], width: int, device: int, arguments: Sequence[Any]
) -> tuple[Any, ...]:
    """The arguments of a kernel, or fields of a struct, with numbers as NumPy scalars of their types."""
    if len(arguments) != len(parameters):
        raise TypeError(f"{name} takes {len(parameters)} arguments, not {len(arguments)}")
    return tuple(
        _one_checked(name, parameter, width, device, argument)
        for parameter, argument in zip(parameters, arguments, strict=True)
    )


def _one_checked(name: str, parameter: Parameter, width: int, device: int, argument: Any) -> Any:
    if isinstance(parameter.type, Struct):
        if not isinstance(argument, Packed) or argument.struct != parameter.type:
            raise TypeError(
                f"{name}: {parameter.name} is a {parameter.type.name} of this model, not {argument!r}"
            )
    elif not parameter.is_pointer:
        return _number(name, parameter.name, parameter.type, argument)
    elif argument is not None:
        _check_array(name, parameter.name, parameter.type, width, device, argument)
    return argument


def _number(name: str, parameter: str, kind: np.dtype[Any], argument: Any) -> Any:
    try:
        number = kind.type(argument)
    except OverflowError:
        number = None
    if number is None or number != argument:
        raise ValueError(f"{name}: {parameter}={argument!r} does not fit {kind}")
    return number


def _check_array(name: str, parameter: str, kind: np.dtype[Any], width: int, device: int, array: Any) -> None:
    if not hasattr(array, "__cuda_array_interface__") or array.dtype != kind:
        found = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name}: {parameter} is an array of {kind}, not {found}")
    if array.data.device_id != device:
        raise ValueError(f"{name}: {parameter} is on device {array.data.device_id}, not {device}")
    size = array.itemsize
    gapless = (width * size, size) if array.ndim == 2 else (size,)
    if array.size and (array.strides != gapless or array.data.ptr % 16):
        raise ValueError(
            f"{name}: {parameter} is at {array.data.ptr:#x} with strides {array.strides}, "
            f"not at a multiple of 16 with {gapless}"
        )
