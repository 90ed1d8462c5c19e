"""The CUDA sources as a single string for the compiler, and the signatures of their kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

#: Sources that depend on the number of factors, and those that do not.
FACTORS = ("allocate.cu", "gamma.cu", "top_items.cu")
COUNTS = ("counts.cu",)
MAX_FACTORS = 1024  # the largest k for which the rows of a block fit into shared memory
_SECTOR = 32  # bytes of a memory transaction

THREADS = 128  # of a block in which each warp processes one segment
TOP_PLACES = 256  # ranks that one pass of ``top_items`` fills at most, and threads of its block

#: NumPy's dtype for each C++ type in a kernel's signature.  ``Real`` and ``Store`` depend on the model.
_TYPES: dict[str, Any] = {
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "long long": np.int64,
    "unsigned char": np.uint8,
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel."""

    name: str
    type: np.dtype[Any]
    is_pointer: bool


@dataclass(frozen=True)
class Variant:
    """What the sources are compiled for: K factors, float32 or float64, and half-precision storage or not."""

    k: int
    real: np.dtype[Any]
    half: bool = False

    @property
    def store(self) -> np.dtype[Any]:
        """Dtype of exp E[ln θ]."""
        return np.dtype(np.float16) if self.half else self.real

    @property
    def width(self) -> int:
        """Row stride of a matrix in numbers: K, padded with zeros to whole sectors."""
        numbers = _SECTOR // self.store.itemsize
        return -(-self.k // numbers) * numbers

    @property
    def gamma_threads(self) -> int:
        """Threads of a block that processes whole rows; fewer if the rows fill shared memory."""
        return 128 if self.k <= 512 else 64

    @property
    def top_rows(self) -> int:
        """Rows per block of ``top_items``."""
        return 32 // self.real.itemsize

    @property
    def macros(self) -> dict[str, object]:
        """Macros for the compiler: all constants that host and device share."""
        macros: dict[str, object] = {
            "HPF_K": self.k,
            "HPF_REAL": "float" if self.real == np.float32 else "double",
            "HPF_WIDTH": self.width,
            "HPF_THREADS": THREADS,
            "HPF_GAMMA_THREADS": self.gamma_threads,
            "HPF_TOP_ROWS": self.top_rows,
            "HPF_TOP_PLACES": TOP_PLACES,
        }
        return macros | {"HPF_HALF": 1} if self.half else macros

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the compiler, without the architecture."""
        return ("--std=c++17", *(f"-D{name}={value}" for name, value in self.macros.items()))

    def signatures(self, files: tuple[str, ...] = FACTORS + COUNTS) -> dict[str, tuple[Parameter, ...]]:
        """The parameters of every kernel, parsed from these sources."""
        types = _TYPES | {"Real": self.real, "Store": self.store}
        kernels = re.findall(
            r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\))?\s*(\w+)\(([^)]*)\)', _code(files)
        )
        return {
            name: tuple(_parameter(text, types) for text in parameters.split(","))
            for name, parameters in kernels
        }


@cache
def source(files: tuple[str, ...] = FACTORS + COUNTS) -> str:
    """These sources as one translation unit, with headers inlined.

    CuPy's cache of compiled kernels does not notice changes in headers found by ``-I``.
    """
    folder = _kernels_folder()
    seen: set[str] = set()

    def expand(path: Path) -> str:
        lines = [f'#line 1 "{path.name}"']
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name = re.fullmatch(r'#include "([^"]+)"', line)
            if name is None:
                lines.append("" if line == "#pragma once" else line)
            elif name[1] not in seen:
                seen.add(name[1])
                found = next(p for p in (path.parent / name[1], folder / "common" / name[1]) if p.exists())
                lines += [expand(found), f'#line {number + 1} "{path.name}"']
            else:
                lines.append("")
        return "\n".join(lines)

    return "\n".join(expand(folder / "cuda" / name) for name in files)


def _kernels_folder() -> Path:
    """The folder of kernels: inside an installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(folder for folder in (package / "kernels", package.parent / "kernels") if folder.is_dir())


@cache
def _code(files: tuple[str, ...]) -> str:
    """The sources without comments."""
    return re.sub(r"//[^\n]*", "", source(files))


def _parameter(text: str, types: dict[str, Any]) -> Parameter:
    words = text.replace("*", " * ").split()
    type_name = " ".join(word for word in words[:-1] if word not in ("const", "*", "__restrict__"))
    return Parameter(words[-1], np.dtype(types[type_name]), "*" in words)
