"""Arrays and a JSON header in one safetensors file, written all or not at all, and checksummed.

The metadata of the file has the header, under a key that says what the file is, and ``crc32``, a checksum
of it and of all arrays.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import __version__

Tensors = dict[str, NDArray[Any]]
UPDATE = "update hpf_gpu"


class ModelFileError(ValueError):
    """A file that this version cannot go on from; the message names it and says why."""


@dataclass(frozen=True)
class Kind:
    """What a file can be."""

    name: str  # for messages
    key: str  # of the header in the metadata
    format: int  # that is written, and the newest that is read

    def write(self, path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Tensors) -> None:
        """Write beside the target, then rename: nobody ever sees half a file.

        Raises
        ------
        OSError
            If the file cannot be written; one that was there is then as it was.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        target = Path(path).expanduser()
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target.parent} is not an existing folder")
        text = json.dumps({"format": self.format, "version": __version__, **header})
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        # A folder, because safetensors writes beside the file that it is told, and may be killed there.
        folder = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            folder.mkdir()
            temporary = folder / "new"
            temporary.touch()
            mode = temporary.stat().st_mode  # that of any new file; safetensors shuts everybody else out
            save_file(tensors, temporary, metadata={self.key: text, "crc32": checksum(text, tensors)})
            temporary.chmod(mode)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except SafetensorError as error:
            raise OSError(f"{target} could not be written: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensors]:
        """The header and all arrays, once their checksum is known to be right.

        Raises
        ------
        ModelFileError
            If the file is damaged, of another kind, or written by a newer version.
        OSError
            If it cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        source = Path(path).expanduser()
        with open(source, "rb"):  # errors of the file system come from here, with the name
            pass
        try:
            with safe_open(source, framework="numpy") as file:
                metadata = file.metadata() or {}
                if self.key not in metadata:
                    raise ModelFileError(f"{source} is a safetensors file, but not a {self.name} of hpf_gpu")
                text = metadata[self.key]
                header = self._header(source, text)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelFileError(f"{source} is damaged, or no {self.name} of hpf_gpu: {error}") from error
        if checksum(text, tensors) != metadata.get("crc32"):
            raise ModelFileError(f"{source} is damaged: its checksum is not that of its contents")
        return header, tensors

    def _header(self, source: Path, text: str) -> dict[str, Any]:
        try:
            header = json.loads(text)
            newer = int(header["format"]) > self.format
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{source} is damaged: its header cannot be read ({error!r})") from error
        if newer:
            written = f"{source} has format {header['format']}, written by hpf_gpu {header.get('version')}"
            raise ModelFileError(f"{written}; this version reads formats up to {self.format}; {UPDATE}")
        return dict(header)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete what writers of this file left behind when they were killed."""
    target = Path(path).expanduser()
    ours = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{32}")
    for folder in target.parent.iterdir():
        if ours.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def checksum(text: str, tensors: Tensors) -> str:
    """CRC-32 of the header and of every array with its name, type and shape."""
    crc = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        crc = zlib.crc32(f"{name} {tensor.dtype.name} {tensor.shape}".encode(), crc)
        crc = zlib.crc32(little.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"
