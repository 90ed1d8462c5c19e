"""Arrays and a JSON header in one safetensors file, written atomically, with a checksum.

The metadata of the file holds the header, under a key that identifies the kind of file, and ``crc32``, a
checksum of the header and of all arrays.

The safetensors library would open its own file and copy every array; a model that is larger than the memory
is mapped instead.  The format is little more than the places of the arrays in JSON.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hpf_gpu.version import __version__

from .schema import STRING, TABLE, check_names, short, whole
from .whole_file import check_regular, replacing

Tensors = dict[str, NDArray[Any]]
UPDATE = "update hpf_gpu"
#: Names of NumPy's dtypes in safetensors.
_TYPES = {"bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64"}
_TYPES |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}
_TYPES |= {f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _TYPES.items()}
#: Exceptions of parsing JSON and of checking its contents.
MALFORMED = (KeyError, TypeError, ValueError, OverflowError, RecursionError)


class ModelFileError(ValueError):
    """A model file or checkpoint cannot be used; the message has the name of the file and the reason."""


@dataclass(frozen=True)
class FileFormat:
    """A kind of file: its name, the metadata key of its header, and its format version."""

    name: str  # for messages
    key: str
    format: int  # the version that is written, and the newest that is read

    def write(self, path: Path, header: Mapping[str, Any], tensors: Tensors) -> None:
        """Write a temporary file next to ``path``, then rename it, so that a partial file is never visible.

        Symbolic links are followed and kept.  The new file gets the permissions of the one that it replaces.

        Raises
        ------
        OSError
            If the file cannot be written, or ``path`` is a folder, a pipe or a device.  An existing file is
            then unchanged.
        """
        text = json.dumps({"format": self.format, "version": __version__, **header})
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        with replacing(path) as file:
            _write_safetensors(file, {self.key: text, "crc32": checksum(text, tensors)}, tensors)

    def read(self, source: Path, *, mapped: bool = False) -> tuple[dict[str, Any], Tensors]:
        """Read the header, without format and version, and all arrays, and check the checksum.

        With ``mapped`` arrays are read-only views of the file, of which nothing is read before it is used,
        and the checksum is not checked.  They are those of this file even after another has taken its name.

        Raises
        ------
        ModelFileError
            If the file is damaged, of another kind, or written by a newer version.
        OSError
            If the file cannot be read.
        """
        with _opened(source, f"not a {self.name}") as (file, metadata, places):
            if self.key not in metadata:
                raise ModelFileError(f"{source} is a safetensors file, but not a {self.name} of hpf_gpu")
            text = metadata[self.key]
            header = self._header(source, text)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else None
            tensors = {name: place.array(file, memory) for name, place in places.items()}
        if not mapped and checksum(text, tensors) != metadata.get("crc32"):
            raise ModelFileError(f"{source} is damaged: its checksum does not match its contents")
        with believed(source):
            check_names("metadata", metadata, (self.key, "crc32"))
        return header, tensors

    def _header(self, source: Path, text: str) -> dict[str, Any]:
        try:
            header = json.loads(text)
            TABLE.check("header", header)
            format, version = header.pop("format"), header.pop("version")
            whole(1).check("header.format", format)
            STRING.check("header.version", version)
        except MALFORMED as error:
            raise ModelFileError(f"{source} is damaged: its header cannot be read ({error!r})") from error
        if format > self.format:
            written = f"{source} has format {format}, written by hpf_gpu {version}"
            raise ModelFileError(f"{written}; this version reads formats up to {self.format}; {UPDATE}")
        return dict(header)


def format_of(source: Path, formats: Sequence[FileFormat]) -> FileFormat:
    """Which of some kinds of file this is, by its metadata alone; errors as for :meth:`FileFormat.read`."""
    none = f"neither a {' nor a '.join(kind.name for kind in formats)}"
    with _opened(source, none) as (_, metadata, _):
        for kind in formats:
            if kind.key in metadata:
                return kind
    raise ModelFileError(f"{source} is a safetensors file, but {none} of hpf_gpu")


@dataclass(frozen=True)
class _Place:
    """Where an array is in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def array(self, file: BinaryIO, memory: mmap.mmap | None) -> NDArray[Any]:
        """The array, read from the file or, if that is mapped to ``memory``, a view of it."""
        count = math.prod(self.shape)
        if memory is None or count == 0:
            file.seek(self.start)
            array = np.fromfile(file, self.dtype, count)
        else:
            array = np.frombuffer(memory, self.dtype, count, self.start)
            array = array if array.flags.aligned else array.copy()  # kernels need alignment
        return array.astype(self.dtype.newbyteorder("="), copy=False).reshape(self.shape)


@contextmanager
def _opened(source: Path, none: str) -> Iterator[tuple[BinaryIO, dict[str, str], dict[str, _Place]]]:
    """A safetensors file, its metadata and its arrays; one that cannot be read is damaged, or ``none``."""
    check_regular(source)
    with open(source, "rb") as file:
        try:
            yield file, *_contents(file)
        except ModelFileError:
            raise
        except (AttributeError, *MALFORMED) as error:  # the former where JSON has no table
            raise ModelFileError(f"{source} is damaged, or {none} of hpf_gpu: {error}") from error


def _contents(file: BinaryIO) -> tuple[dict[str, str], dict[str, _Place]]:
    """Metadata and places of the arrays of a safetensors file; an error of MALFORMED if it is none."""
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    first = 8 + length
    if not 8 < first <= size:
        raise ValueError(f"it has {size} bytes, and its header would end at {first}")
    layout = json.loads(file.read(length))
    metadata = layout.pop("__metadata__", {})
    if not all(type(one) is str for one in metadata.values()):
        raise ValueError("its metadata are not strings")
    places, end = {}, first
    for name, one in sorted(layout.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (start, stop) = tuple(one["shape"]), one["data_offsets"]
        if any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"the shape of {name} is {short(shape)}")
        places[name] = _Place(_DTYPES[one["dtype"]], shape, end)
        # Without gaps, so that no byte of the file is without meaning.
        if first + start != end or first + stop != places[name].end:
            raise ValueError(f"{name} is not where its header says")
        end = places[name].end
    if end != size:
        raise ValueError(f"it has {size} bytes, and its arrays end at {end}")
    return metadata, places


@contextmanager
def believed(source: Path) -> Iterator[None]:
    """Turn errors about the contents of a file, raised in this block, into a ModelFileError."""
    try:
        yield
    except ModelFileError:
        raise
    except MALFORMED as error:
        said = str(error) if isinstance(error, (TypeError, ValueError)) else repr(error)
        raise ModelFileError(f"{source} has invalid contents: {said}") from error


def checksum(text: str, tensors: Tensors) -> str:
    """CRC-32 of the header and of every array with its name, dtype and shape."""
    crc = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype.name} {tensor.shape}".encode(), crc)
        crc = zlib.crc32(_bytes(tensor), crc)
    return f"{crc:08x}"


def _write_safetensors(file: BinaryIO, metadata: Mapping[str, str], tensors: Tensors) -> None:
    """Write in safetensors format, every array aligned, so that the file can be mapped."""
    layout: dict[str, Any] = {"__metadata__": metadata}
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # so that all are aligned
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        tensor = tensors[name]
        layout[name] = {
            "dtype": _TYPES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": (start, end)
        }  # fmt: skip
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in names:
        file.write(_bytes(tensors[name]))


def _bytes(tensor: NDArray[Any]) -> memoryview:
    little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
