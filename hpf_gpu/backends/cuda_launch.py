"""Launches kernels, after checking every argument against the kernel's signature."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_source import Parameter

_MAX_BLOCKS = np.iinfo(np.int32).max


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
        if array.data.device_id != self._device:
            raise ValueError(
                f"{self._name}: {parameter.name} is on device {array.data.device_id}, not {self._device}"
            )
        size = array.itemsize
        gapless = (self._width * size, size) if array.ndim == 2 else (size,)
        if array.size and (array.strides != gapless or array.data.ptr % 16):
            raise ValueError(
                f"{self._name}: {parameter.name} is at {array.data.ptr:#x} with strides {array.strides}, "
                f"not at a multiple of 16 with {gapless}"
            )
