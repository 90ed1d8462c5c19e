"""A .cu source becomes a shared library that runs its kernels on the CPU."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import toolchain
from .errors import CompileError
from .module import Module, Runtime

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
RUNTIME_SOURCES = sorted((HERE / "runtime").glob("*.cpp"))
HEADERS = sorted([*INCLUDE.rglob("*.h"), *INCLUDE.rglob("*.cuh"), *(HERE / "runtime").glob("*.h")])

#: Options of NVRTC that change nothing here.
IGNORED_OPTIONS = ("-std", "--std", "-lineinfo", "--restrict", "-ftz", "--ftz", "-default-device")


def build(
    source: str,
    options: Iterable[str] = (),
    flavour: str | None = None,
    filename: str = "kernel.cu",
) -> Module:
    """Compile a .cu source and load it.

    Parameters
    ----------
    source
        CUDA C++; its kernels are those written as ``extern "C" __global__``.
    options
        Options of NVRTC: ``-D`` and ``-I`` are passed on, ``--std`` and the like make no difference.
    flavour
        "fast", "asan" or "tsan"; by default that of the process (environment variable HPF_CUDASIM).
    filename
        Name for error messages.

    Raises
    ------
    Unsupported
        If this machine cannot run the simulator.
    CompileError
        If g++ rejects the source.
    """
    flavour = flavour or toolchain.flavour_of_process()
    chosen = toolchain.require(flavour)
    names = kernel_names(source)
    loaded = runtime(flavour)
    # The source itself is there for g++ to quote.
    files = {"translated.cpp": _translate(source, names, filename), Path(filename).name: source}
    flags = [*toolchain.COMMON_FLAGS, *chosen.kernel_flags, "-shared", f"-I{INCLUDE}", *_passed_on(options)]
    library = cached("kernel", files, [*flags, "translated.cpp", str(loaded.library)])
    return Module(library, names, loaded)


def kernel_names(source: str) -> list[str]:
    """Return the names of the kernels written as ``extern "C" __global__ void name(...)``."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    bounds = r"(?:__launch_bounds__\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*)?"
    return re.findall(rf'extern\s+"C"\s+__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(', code)


def _translate(source: str, names: list[str], filename: str) -> str:
    """Wrap a source so that g++ compiles it.

    The anonymous namespace keeps template functions' ``__shared__`` variables in this library: with
    external linkage they could not share a section with other variables.  Headers stay outside.
    """
    include = re.compile(r"^[ \t]*#[ \t]*include\b.*$", re.MULTILINE)
    headers = "\n".join(['#include "cuda_builtins.h"', *include.findall(source)])
    body = _dynamic_shared_memory(include.sub("", source))
    exports = "\n".join(f"CUDASIM_EXPORT({name})" for name in names)
    return f'{headers}\nnamespace {{\n#line 1 "{filename}"\n{body}\n}}\n#line 1 "exports"\n{exports}\n'


def _dynamic_shared_memory(source: str) -> str:
    """Make ``extern __shared__ T name[];`` a pointer; this is the only change to the source."""
    declaration = (
        r"extern\s+__shared__\s+(?:__align__\s*\(\d+\)\s*)?([\w:]+(?:\s+\w+)*?)\s+(\w+)\s*\[\s*\]\s*;"
    )
    return re.sub(
        declaration, r"\1* const \2 = reinterpret_cast<\1*>(::cudasim::dynamic_shared_memory());", source
    )


def _passed_on(options: Iterable[str]) -> list[str]:
    passed = []
    for option in options:
        if option.startswith(("-D", "-I")):
            passed.append(option)
        elif not option.startswith(IGNORED_OPTIONS):
            raise CompileError(f"the CUDA simulator does not know the compiler option {option!r}")
    return passed


@functools.cache
def runtime(flavour: str) -> Runtime:
    """Return the runtime that executes kernels of a flavour; there is one of each in a process."""
    chosen = toolchain.require(flavour)
    if chosen.preload and toolchain.flavour_of_process() != flavour:
        raise RuntimeError(
            f"start this process with `python -m cudasim {flavour}` to run kernels as {flavour}"
        )
    # Not compiled with the sanitizer, which would take the switching of stacks for a fault.
    flags = ["-O2", *toolchain.COMMON_FLAGS, "-shared", f"-I{INCLUDE}", *chosen.runtime_flags]
    sources = [str(path) for path in RUNTIME_SOURCES]
    content = [path.read_text(encoding="utf-8") for path in [*RUNTIME_SOURCES, *HEADERS]]
    return Runtime(cached("runtime", {}, [*flags, *sources], content))


def cached(
    kind: str, files: Mapping[str, str], arguments: Sequence[str], content: Sequence[str] = ()
) -> Path:
    """Return a library; compile it unless one made of the same is there already.

    g++ runs with ``arguments`` in a directory with ``files``; ``content`` is what else the library is
    made of.  A library appears under its name when it is complete, so that processes may build the same
    one at the same time.
    """
    made_of = "\0".join([*files, *files.values(), *arguments, *content])
    key = hashlib.sha256(made_of.encode()).hexdigest()[:24]
    library = _cache_directory() / f"{kind}-{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        work = Path(directory)
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        complaint = toolchain.compile([*arguments, "-o", "out.so"], work)
        if complaint:
            raise CompileError(complaint)
        os.replace(work / "out.so", library)
    return library


def _cache_directory() -> Path:
    """Return a directory of this user alone, as what lies there is loaded."""
    directory = Path(tempfile.gettempdir()) / f"hpf_cudasim_{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    owner = directory.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        raise PermissionError(f"others may write to {directory}: remove it")
    return directory
