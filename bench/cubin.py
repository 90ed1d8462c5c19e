"""CUDA sources compiled without a GPU, and what the compiler and the machine code tell of them.

NVRTC compiles, as it does on a machine with a GPU.  Needs ``pip install '.[cuda-check]'``.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    from cuda.bindings import nvrtc

    #: Files of packages from PyPI, in the versions pinned there, not of a toolkit that the machine may have.
    _FILES = {
        file.name: Path(str(file.locate()))
        for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-nvdisasm")
        for file in metadata.files(package) or ()
    }
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}: pip install '.[cuda-check]'") from error

#: What CuPy adds to the options of every module (cupy/cuda/compiler.py of CuPy 14).
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
_REPORT_OPTION = "--ptxas-options=-v"  # does not change the code
#: Lines of that report; all else in the log is a message.
_REPORT = re.compile(
    r"ptxas info\s+: (\d+ bytes gmem|Compiling entry function|Function properties|Used|Compile time)"
    r"|ptxas\s+\.\s+\d+ bytes stack frame"
)
_INSTRUCTION = 16  # bytes of machine code


@dataclass(frozen=True)
class Instruction:
    """One instruction of the machine code; ``target`` is the index of the one that it jumps to."""

    opcode: str
    target: int | None
    conditional: bool = False  # whether the next one may follow though this one jumps or ends the kernel


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes of a multiprocessor, and its code."""

    threads: int  # of a block, at most
    registers: int  # of a thread
    shared: int  # bytes of a block
    #: Bytes of a thread in local memory: what registers do not hold.  The compiler also counts "spill
    #: stores"; it has counted none where the code had some, all of them on this stack.
    spilled: int
    code: tuple[Instruction, ...]


@dataclass(frozen=True)
class Compiled:
    """A module: its kernels by name, its global ints, the compiler's version, and what it had to say."""

    kernels: dict[str, Kernel]
    constants: dict[str, int]
    compiler: str
    messages: str


class CompileError(Exception):
    """NVRTC refused the source; holds its log."""


def compile_source(source: str, sm: int, options: Iterable[str] = ()) -> Compiled:
    """Compile for one architecture, given as 75 for sm_75, with what CuPy adds to ``options``.

    Raises CompileError if NVRTC refuses, ValueError if a kernel has no ``__launch_bounds__``.
    """
    cubin, ptx, log = _run_nvrtc(source, _options(sm, options))
    header, functions = _disassemble(cubin)
    code = {function["function-name"]: _instructions(function) for function in functions}
    threads = dict(re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx))
    kernels = {}
    for name, used in re.findall(r"Compiling entry function '(\w+)'.*?: Used ([^\n]*)", log, re.DOTALL):
        if name not in threads:
            raise ValueError(f"kernel {name} has no __launch_bounds__: its occupancy is unknown")
        kernels[name] = Kernel(
            int(threads[name]),
            _amount("registers", used),
            _amount("bytes smem", used),
            _amount("bytes cumulative stack size", used),
            code[name],
        )
    return Compiled(
        kernels,
        {name: int(value) for name, value in re.findall(r"\.global \.align 4 \.u32 (\w+) = (\d+);", ptx)},
        header[".note.nv.tkinfo"]["tki_toolVersion"].rpartition("V")[2],
        "\n".join(line for line in log.splitlines() if line.strip() and not _REPORT.match(line)),
    )


def tightest_loop(code: tuple[Instruction, ...]) -> tuple[int, int]:
    """Instructions and 16-byte loads of the loop with the fewest instructions for such a load.

    A loop is all that lies between a backward jump and its target, branches that are seldom taken
    included; the subroutines they call lie outside.
    """
    loops = []
    for end, instruction in enumerate(code):
        if instruction.target is not None and instruction.target <= end:
            body = code[instruction.target : end + 1]
            loads = sum(bool(re.match(r"LDG.*\.128", one.opcode)) for one in body)
            if loads:
                loops.append((len(body), loads))
    if not loops:
        raise ValueError("no loop of this kernel loads 16 bytes at once")
    return min(loops, key=lambda loop: loop[0] / loop[1])


def _options(sm: int, options: Iterable[str]) -> list[bytes]:
    every = (*options, *CUPY_OPTIONS, f"-arch=sm_{sm}", f"-I{_FILES['cuda_fp16.h'].parent}", _REPORT_OPTION)
    return [option.encode() for option in every]


def _run_nvrtc(source: str, options: list[bytes]) -> tuple[bytes, str, str]:
    """Machine code, PTX and log."""
    program = _value(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = _read(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode().strip("\0\n ")
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(log)
    cubin = _read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    ptx = _read(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX).decode()
    _value(nvrtc.nvrtcDestroyProgram(program))
    return cubin, ptx, log


def _read(program: Any, size: Callable[..., Any], read: Callable[..., Any]) -> bytes:
    buffer = bytes(_value(size(program)))
    _value(read(program, buffer))
    return buffer


def _value(result: tuple[Any, ...]) -> Any:
    """What a function of NVRTC returned beside its status."""
    status, *value = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return value[0] if value else None


def _disassemble(cubin: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Notes of the compiler, and the functions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        result = subprocess.run(
            [_FILES["nvdisasm"], "-json", path], check=True, capture_output=True, text=True
        )
    header, functions = json.loads(result.stdout)
    return header, functions


def _instructions(function: dict[str, Any]) -> tuple[Instruction, ...]:
    found = []
    for instruction in function["sass-instructions"]:
        address = re.search(r"(?:^|,)0x([0-9a-f]+)$", instruction.get("operands", ""))
        # A call of an address, not of a subroutine by name, is a jump too.
        jumps = instruction["opcode"].startswith(("BRA", "CALL")) and address
        conditional = "predicate" in instruction or bool(jumps and "," in instruction["operands"])
        target = int(address[1], 16) // _INSTRUCTION if jumps else None
        found.append(Instruction(instruction["opcode"], target, conditional))
    return tuple(found)


def _amount(unit: str, used: str) -> int:
    found = re.search(rf"(\d+) {unit}", used)
    return int(found[1]) if found else 0
