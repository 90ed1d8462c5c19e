"""g++ and its sanitizers: the flavours of the simulator, and the environment each needs."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Unsupported

TESTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Flavour:
    """How kernels are compiled, and how a process that loads them is started."""

    kernel_flags: tuple[str, ...]
    runtime_flags: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()  # libraries that must be in the process before Python is
    options: tuple[tuple[str, str], ...] = ()  # environment variables


#: For source lines in reports: in DWARF 5, addr2line of binutils 2.40 takes one file for another.
_LINES = ("-gdwarf-4", "-g1")

FLAVOURS = {
    # Contracted to fused multiply-adds, as NVRTC does by default.  A kernel runs for less time than g++
    # takes to optimize it further.
    "fast": Flavour(kernel_flags=("-O1", *_LINES, "-ffp-contract=fast")),
    "asan": Flavour(
        kernel_flags=(
            # With -O1 and -g, g++ takes four times as long, which is most of the time of a test.
            *("-O0", *_LINES, "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
            *("-fno-sanitize-recover=undefined", "-fsanitize-sections=cudasim_shared"),
        ),
        runtime_flags=("-DCUDASIM_ASAN",),
        preload=("libasan.so", "libubsan.so", "libstdc++.so"),
        # Python's own memory lives to the end.  Fibres have no use for stacks kept aside.
        options=(("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0"),),
    ),
    "tsan": Flavour(
        kernel_flags=("-O1", *_LINES, "-fno-omit-frame-pointer", "-fsanitize=thread"),
        runtime_flags=("-DCUDASIM_TSAN",),
        preload=("libtsan.so",),
        # OpenBLAS's threads are not compiled with TSan, which would misunderstand them.  At a fork Arrow's
        # allocator holds more locks than TSan's search for deadlocks can count.
        options=(
            ("TSAN_OPTIONS", "exitcode=66:atexit_sleep_ms=0:detect_deadlocks=0"),
            ("OPENBLAS_NUM_THREADS", "1"),
            ("OMP_NUM_THREADS", "1"),
        ),
    ),
}

COMMON_FLAGS = (
    *("-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w"),
    *("-mfma", "-mf16c", "-U_FORTIFY_SOURCE"),
)


def flavour_of_process() -> str:
    """Name the flavour that this process was started for: HPF_CUDASIM, or fast."""
    return os.environ.get("HPF_CUDASIM", "fast")


def require(flavour: str) -> Flavour:
    """Return the flavour of that name; raise Unsupported where this machine cannot build it."""
    if flavour not in FLAVOURS:
        raise ValueError(f"no flavour {flavour!r} of the CUDA simulator: use one of {', '.join(FLAVOURS)}")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Unsupported(
            f"the CUDA simulator needs Linux on x86-64, not {sys.platform} on {platform.machine()}"
        )
    if not {"fma", "f16c"} <= _processor_flags():
        raise Unsupported("the CUDA simulator needs a processor with FMA and F16C")
    if not _accepts_cpp20():
        raise Unsupported("the CUDA simulator needs g++ with C++20 (g++ 11 or later)")
    for library in FLAVOURS[flavour].preload:
        _library(library)
    return FLAVOURS[flavour]


def environment(flavour: str) -> dict[str, str]:
    """Return the environment of a process that runs the simulator in this flavour.

    A sanitizer's library must be in the process before Python is: start a new one with this.
    """
    chosen = require(flavour)
    result = dict(os.environ, HPF_CUDASIM=flavour, **dict(chosen.options))
    result["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    # Plugins that come with other packages are loaded first, and zarr's imports CuPy.
    result["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if chosen.preload:
        result["LD_PRELOAD"] = " ".join(_library(name) for name in chosen.preload)
        # A report must reach the terminal though it ends the process.
        result["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} --capture=sys"
    return result


@functools.cache
def compiler() -> str:
    """Tell one g++ from another: what the last one compiled is not this one's."""
    path = os.path.realpath(shutil.which("g++") or "g++")
    return f"{path} {os.stat(path).st_mtime_ns}"


def compile(arguments: list[str], directory: Path) -> str | None:
    """Run g++ in a directory; return what it complained about, or None."""
    done = _run("g++", *arguments, cwd=directory)
    return done.stderr if done.returncode else None


def source_line(library: Path, offset: int) -> str:
    """Return the file:line of an instruction of a library."""
    done = _run("addr2line", "-e", str(library), hex(offset))
    return os.path.basename(done.stdout.split()[0])


def _run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    # A sanitizer preloaded into this process has no business in g++'s.
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(command, env=clean, capture_output=True, text=True, **options)


@functools.cache
def _processor_flags() -> set[str]:
    return set(Path("/proc/cpuinfo").read_text().split())


@functools.cache
def _accepts_cpp20() -> bool:
    if shutil.which("g++") is None:
        return False
    program = "#include <bit>\n#include <source_location>\nint main() { return std::popcount(0u); }"
    return _run("g++", "-std=c++20", "-fsyntax-only", "-xc++", "-", input=program).returncode == 0


@functools.cache
def _library(name: str) -> str:
    """Find a library of g++'s: it prints the bare name of one that it does not have."""
    path = _run("g++", f"-print-file-name={name}").stdout.strip()
    if not os.path.isabs(path):
        raise Unsupported(f"g++ has no {name}")
    return os.path.realpath(path)
