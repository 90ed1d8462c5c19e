"""The CUDA sources as a single string for the compiler, and the signatures of their kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

#: Sources, each compiled as a module of its own when one of its kernels is first launched.  The last two do
#: not depend on the number of factors.
FILES = (
    "allocate.cu", "gamma.cu", "likelihood.cu", "predict.cu", "top_items.cu", "composed.cu", "log_counts.cu",
    "neighbours.cu", "item_to_item.cu", "counts.cu",
)  # fmt: skip
#: The only one that depends on the number of neighbours.
NEIGHBOURS_FILE = "neighbours.cu"
#: Those that every fit needs.
FILES_OF_A_FIT = ("allocate.cu", "gamma.cu", "likelihood.cu")
MAX_FACTORS = 1024  # the largest k for which the rows of a block fit into shared memory
MAX_NEIGHBOURS = 1024  # the largest number of neighbours for which a block does
_SECTOR = 32  # bytes of a memory transaction
_TABLE_BYTES = 24 << 10  # of shared memory that a block with a table of neighbours is to take

JOIN_STRANDS = 4  # warps of a block that adds up the parts of one row
TOP_PLACES = 256  # ranks that one pass of ``top_items`` fills at most, and threads of its block

#: NumPy's dtype for each C++ type in a kernel's signature.  ``Real`` and ``Store`` depend on the model.
_TYPES: dict[str, Any] = {
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "long long": np.int64,
    "unsigned char": np.uint8,
    "unsigned short": np.uint16,
}
#: Structs that kernels take.
_STRUCTS = ("Gamma", "Segments", "Sums", "Left", "Had")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, or one field of a struct."""

    name: str
    type: np.dtype[Any] | Struct
    is_pointer: bool


@dataclass(frozen=True)
class Struct:
    """A C++ struct that kernels take by value."""

    name: str
    fields: tuple[Parameter, ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The layout of the struct in memory, with addresses for pointers."""
        types = [(field.name, np.uint64 if field.is_pointer else field.type) for field in self.fields]
        return np.dtype(types, align=True)


@dataclass(frozen=True)
class Knobs:
    """Choices that change the speed of ``allocate`` on a GPU, but no bits."""

    threads: int = 128  # of a block in which each warp processes one segment
    in_flight: int = 0  # nonzeros of a group of lanes whose rows are loaded together; 0: as registers allow
    min_blocks: int = 0  # on a multiprocessor, for which the compiler keeps registers free; 0: the usual ones

    @property
    def macros(self) -> dict[str, object]:
        """Macros for the compiler."""
        return {
            "HPF_THREADS": self.threads,
            "HPF_IN_FLIGHT": self.in_flight,
            "HPF_MIN_BLOCKS": self.min_blocks,
        }


#: Better knobs than the defaults by compute capability (90 for 9.0), as the sweep of ``bench/gpu_day.py``
#: finds them.  Nothing has been measured yet.
_KNOBS: dict[int, Knobs] = {}


def knobs_for(capability: int) -> Knobs:
    """The knobs for GPUs of a compute capability."""
    return _KNOBS.get(capability, Knobs())


@dataclass(frozen=True)
class Variant:
    """What the sources are compiled for.

    K factors, float32 or float64, half-precision storage or not, and for NEIGHBOURS_FILE L neighbours.
    """

    k: int
    real: np.dtype[Any]
    half: bool = False
    knobs: Knobs = Knobs()
    neighbours: int = 0

    def of(self, file: str) -> Variant:
        """What one source is compiled for: without what it does not depend on."""
        return self if file == NEIGHBOURS_FILE else replace(self, neighbours=0)

    @property
    def weights(self) -> Variant:
        """The variant whose factors are the neighbours: of weights (M, L)."""
        return replace(self, k=self.neighbours, neighbours=0)

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
    def gamma_groups(self) -> int:
        """Rows that such a block processes at the same time."""
        return self.gamma_threads // min(32, 1 << (self.k - 1).bit_length())

    @property
    def top_rows(self) -> int:
        """Rows per block of ``top_items``."""
        return 32 // self.real.itemsize

    @property
    def slots(self) -> int:
        """Slots of the table of an item's neighbours, of which half are free, and words of its bits."""
        return 1 << (2 * self.neighbours - 1).bit_length()

    @property
    def table_warps(self) -> int:
        """Warps that share such a table: as many as leave room for several blocks on a multiprocessor."""
        table = 10 * self.slots + self.real.itemsize * self.neighbours
        of_warp = self.real.itemsize * (self.neighbours + self.width) + 2 * self.neighbours + 256
        return next((warps for warps in (4, 2) if table + warps * of_warp <= _TABLE_BYTES), 1)

    @property
    def macros(self) -> dict[str, object]:
        """Macros for the compiler: all constants that host and device share."""
        macros: dict[str, object] = {
            "HPF_K": self.k,
            "HPF_REAL": "float" if self.real == np.float32 else "double",
            "HPF_WIDTH": self.width,
            **self.knobs.macros,
            "HPF_JOIN_STRANDS": JOIN_STRANDS,
            "HPF_GAMMA_THREADS": self.gamma_threads,
            "HPF_TOP_ROWS": self.top_rows,
            "HPF_TOP_PLACES": TOP_PLACES,
            "HPF_MAX_NEIGHBOURS": MAX_NEIGHBOURS,
        }
        if self.neighbours:
            macros |= {
                "HPF_NEIGHBOURS": self.neighbours,
                "HPF_WEIGHTS_WIDTH": self.weights.width,
                "HPF_TABLE_SLOTS": self.slots,
                "HPF_TABLE_WARPS": self.table_warps,
            }
        return macros | {"HPF_HALF": 1} if self.half else macros

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the compiler, without the architecture."""
        return ("--std=c++17", *(f"-D{name}={value}" for name, value in self.macros.items()))

    def signatures(self, files: tuple[str, ...] = FILES) -> dict[str, tuple[Parameter, ...]]:
        """The parameters of every kernel, parsed from these sources."""
        types = _types(files, self.real, self.store)
        return {name: _parameters(text, ",", types) for name, text in _kernels(files)}

    def struct(self, name: str) -> Struct:
        """The struct with this name, parsed from the sources."""
        struct: Struct = _types(FILES, self.real, self.store)[name]
        return struct


@cache
def source(files: tuple[str, ...] = FILES) -> str:
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


@cache
def _kernels(files: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name and parameters of each kernel."""
    pattern = r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\))?\s*(\w+)\(([^)]*)\)'
    return re.findall(pattern, _code(files))


@cache
def file_of(kernel: str) -> str:
    """The source that defines a kernel."""
    return next(file for file in FILES if kernel in dict(_kernels((file,))))


@cache
def _types(files: tuple[str, ...], real: np.dtype[Any], store: np.dtype[Any]) -> dict[str, Any]:
    """What each type name in a signature or a struct stands for."""
    types = _TYPES | {"Real": real, "Store": store}
    for name, body in re.findall(r"struct (\w+) {(.*?)\n};", _code(files), re.DOTALL):
        if name in _STRUCTS:
            types[name] = Struct(name, _parameters(re.split("template|__device__", body)[0], ";", types))
    return types


def _parameters(text: str, separator: str, types: dict[str, Any]) -> tuple[Parameter, ...]:
    declared = (part.replace("*", " * ").split() for part in text.split(separator))
    return tuple(_parameter(words, types) for words in declared if words)


def _parameter(words: list[str], types: dict[str, Any]) -> Parameter:
    type_name = " ".join(word for word in words[:-1] if word not in ("const", "*", "__restrict__"))
    known = types[type_name]
    return Parameter(words[-1], known if isinstance(known, Struct) else np.dtype(known), "*" in words)
