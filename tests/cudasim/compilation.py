"""A .cu source becomes a shared library that runs its kernels on the CPU."""

from __future__ import annotations

import fcntl
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
    flags = [*toolchain.COMMON_FLAGS, *chosen.kernel_flags]
    # Found before the header itself, which g++ falls back to where it cannot use this one.
    folders = [f"-I{_precompiled(tuple(flags)).parent}", f"-I{INCLUDE}"]
    arguments = [*flags, "-shared", *folders, *_passed_on(options), "translated.cpp", str(loaded.library)]
    library = cached("kernel", files, arguments)
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
def _precompiled(flags: tuple[str, ...]) -> Path:
    """Return what every kernel includes first, precompiled: half of what g++ does for a small kernel."""
    content = [path.read_text(encoding="utf-8") for path in HEADERS]
    header = ["-x", "c++-header", str(INCLUDE / "cuda_builtins.h")]
    return cached("builtins", {}, [*flags, *header], content, "{}/cuda_builtins.h.gch")


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
    kind: str,
    files: Mapping[str, str],
    arguments: Sequence[str],
    content: Sequence[str] = (),
    name: str = "{}.so",
) -> Path:
    """Return what g++ makes, such as a library; run it unless the same is there already.

    g++ runs with ``arguments`` in a directory with ``files``; ``content`` is what else the library is
    made of.  A library appears under its name when it is complete.  Of processes that want the same
    one at the same time, one makes it and the others wait.
    """
    made_of = "\0".join([toolchain.compiler(), *files, *files.values(), *arguments, *content])
    key = hashlib.sha256(made_of.encode()).hexdigest()[:24]
    directory = _cache_directory()
    library = directory / name.format(f"{kind}-{key}")
    if library.exists():
        return library
    with open(directory / "lock", "a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(key[:8], 16))  # a byte of it for each library
        if not library.exists():
            _make(library, files, arguments)
    return library


def _make(library: Path, files: Mapping[str, str], arguments: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=_cache_directory()) as directory:
        work = Path(directory)
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        complaint = toolchain.compile([*arguments, "-o", "made"], work)
        if complaint:
            raise CompileError(complaint)
        library.parent.mkdir(exist_ok=True)
        os.replace(work / "made", library)


def _cache_directory() -> Path:
    """Return a directory of this user alone, as what lies there is loaded."""
    directory = Path(tempfile.gettempdir()) / f"hpf_cudasim_{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    owner = directory.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        raise PermissionError(f"others may write to {directory}: remove it")
    return directory
