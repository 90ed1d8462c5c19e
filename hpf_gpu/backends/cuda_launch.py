"""Launching a kernel: every argument is held against the kernel's signature."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_source import Parameter

_MAX_BLOCKS = np.iinfo(np.int32).max


class Kernel:
    """A compiled kernel that trusts none of its arguments.

    CUDA takes whatever bytes it is given: an int32 for a long long, an array with gaps for one without.

    Parameters
    ----------
    name : str
    function : callable
        ``function((blocks,), (threads,), arguments)``, CuPy's.
    parameters : tuple of Parameter
    width : int
        Numbers from one row of a matrix to the next.
    """

    def __init__(self, name: str, function: Any, parameters: tuple[Parameter, ...], width: int) -> None:
        self._name, self._function, self._parameters, self._width = name, function, parameters, width

    def __call__(self, blocks: int, threads: int, *arguments: Any) -> None:
        """Launch ``blocks`` × ``threads`` threads on the current stream; without blocks, nothing.

        Raises
        ------
        TypeError
            If the number of arguments or the type of an array is not the kernel's.
        ValueError
            If a number does not fit the kernel's type, or an array has gaps or is not aligned.
        """
        if len(arguments) != len(self._parameters):
            raise TypeError(f"{self._name} takes {len(self._parameters)} arguments, not {len(arguments)}")
        pairs = zip(self._parameters, arguments, strict=True)
        checked = tuple(self._checked(*pair) for pair in pairs)
        if blocks > _MAX_BLOCKS:
            raise ValueError(f"{self._name}: {blocks} blocks are more than CUDA can launch")
        if blocks:
            self._function((blocks,), (threads,), checked)

    def _checked(self, parameter: Parameter, argument: Any) -> Any:
        if not parameter.is_pointer:
            return self._number(parameter, argument)
        if argument is not None:
            self._check_array(parameter, argument)
        return argument

    def _number(self, parameter: Parameter, argument: Any) -> Any:
        try:
            number = parameter.type.type(argument)
        except OverflowError:
            number = None
        if number is None or number != argument:
            raise ValueError(f"{self._name}: {parameter.name}={argument!r} does not fit {parameter.type}")
        return number

    def _check_array(self, parameter: Parameter, array: Any) -> None:
        if not hasattr(array, "__cuda_array_interface__") or array.dtype != parameter.type:
            kind = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{self._name}: {parameter.name} is an array of {parameter.type}, not {kind}")
        size = array.itemsize
        gapless = (self._width * size, size) if array.ndim == 2 else (size,)
        if array.size and (array.strides != gapless or array.data.ptr % 16):
            raise ValueError(
                f"{self._name}: {parameter.name} lies at {array.data.ptr:#x} with strides {array.strides}, "
                f"not at a multiple of 16 with {gapless}"
            )
