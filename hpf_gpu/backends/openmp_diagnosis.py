"""Why the compiled module is missing or slow here, and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from .protocol import BackendUnavailable

_COMPILERS = ("g++", "clang++")

# By system: commands that install a compiler, Python's headers, and OpenMP for Clang (GCC includes it)
_INSTALL = {
    "debian": (
        "sudo apt-get install g++",
        "sudo apt-get install python3-dev",
        "sudo apt-get install libomp-dev",
    ),
    "fedora": ("sudo dnf install gcc-c++", "sudo dnf install python3-devel", "sudo dnf install libomp-devel"),
    "macos": (
        "xcode-select --install",
        "install Python from python.org or by Homebrew",
        "brew install libomp && export OpenMP_ROOT=$(brew --prefix libomp)",
    ),
}
_INSTALL_ELSEWHERE = ("install GCC or Clang", "install Python's headers", "install OpenMP for your compiler")


def find_fault(error: ImportError) -> BackendUnavailable:
    """The reason why the compiled module could not be imported, and how to fix it."""
    if not isinstance(error, ModuleNotFoundError):
        return BackendUnavailable(f"the compiled module cannot be loaded: {error}", remedy=_compile_again())
    compiler, headers, _ = _INSTALL.get(_system(), _INSTALL_ELSEWHERE)
    lacking, commands = [], []
    if not any(map(shutil.which, _COMPILERS)):
        lacking.append(f"C++ compiler ({' or '.join(_COMPILERS)})")
        commands.append(compiler)
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacking.append("headers of Python (Python.h)")
        commands.append(headers)
    told = f"this machine has no {' and no '.join(lacking)} to build it with" if lacking else str(error)
    return BackendUnavailable(
        f"the compiled module is missing: {told}", remedy=" && ".join([*commands, _compile_again()])
    )


def unknown_level(asked: str, levels: Sequence[str]) -> BackendUnavailable:
    """The error for an HPF_GPU_LEVEL that this machine does not support."""
    return BackendUnavailable(
        f"HPF_GPU_LEVEL={asked!r} is not an instruction set of this machine, which has {', '.join(levels)}",
        remedy="unset HPF_GPU_LEVEL, to use the best one",
    )


def install_openmp() -> str:
    """The commands that make the compiled module use several threads."""
    *_, openmp = _INSTALL.get(_system(), _INSTALL_ELSEWHERE)
    return f"{openmp} && {_compile_again()}"


def usable_cores() -> int:
    """Number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def describe_machine() -> list[str]:
    """The limits on the number of threads, one per line."""
    lines, cores = [], os.cpu_count() or 1
    if usable_cores() < cores:
        lines.append(f"this process may use {usable_cores()} of {cores} cores (CPU affinity)")
    if "OMP_NUM_THREADS" in os.environ:
        lines.append(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} is ignored: use HPF(ncores=...)")
    if "OMP_THREAD_LIMIT" in os.environ:
        lines.append(f"OMP_THREAD_LIMIT={os.environ['OMP_THREAD_LIMIT']} limits HPF(ncores=...)")
    return lines


def _compile_again() -> str:
    """The command that compiles hpf_gpu again from its origin (PEP 610)."""
    try:
        origin = json.loads(importlib.metadata.distribution("hpf_gpu").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:  # running from a source tree that was never installed
        origin = {"url": str(Path(__file__).resolve().parents[2]), "dir_info": {"editable": True}}
    source = origin.get("url", "hpf_gpu")
    if "vcs_info" in origin:
        source = f"{origin['vcs_info']['vcs']}+{source}"
    if origin.get("dir_info", {}).get("editable"):
        source = f"-e {source}"
    # Without these options, pip would reuse the wheel that it built when the compiler was missing.
    return f"pip install --force-reinstall --no-deps --no-cache-dir --no-binary hpf_gpu {source}"


def _system() -> str:
    """The key of _INSTALL for this system, or ''."""
    if sys.platform == "darwin":
        return "macos"
    try:
        release = platform.freedesktop_os_release()
    except OSError:  # not Linux, or a Linux without os-release
        return ""
    kin = {release["ID"], *release.get("ID_LIKE", "").split()}
    return next((name for name in _INSTALL if name in kin), "")
