"""Why CUDA cannot be used here, and the command that fixes it.

Faults are looked for in the order in which they have to be fixed: driver, GPU, CuPy.  CuPy is not imported,
because that takes half a second, and the driver's library and the list of installed packages have the
information.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.metadata
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .protocol import BackendUnavailable

_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
_OLDEST_CUDA = (12, 0)  # the oldest with packages of CuPy 14; supported by NVIDIA's drivers since version 525
_OLDEST_GPU = (7, 0)  # compute capability; the first with independent thread scheduling
_OLDEST_GPU_OF_CUDA_13 = (7, 5)  # compute capability; drivers for CUDA 13 still run older ones

# CUresult of cuInit, from NVIDIA's cuda.h
_NO_DEVICE = 100
_CURES = {
    3: "start processes by multiprocessing's 'spawn', or use backend='openmp' in them: CUDA was in use when "
    "this one was forked, and does not survive a fork",
    34: "remove the folder 'stubs' of the CUDA toolkit from LD_LIBRARY_PATH",
    803: "restart the machine: its driver was updated, and the kernel still runs the old one",
    804: "remove the folder 'compat' of the CUDA toolkit from LD_LIBRARY_PATH",
}
_CURE = "run nvidia-smi; if that fails too, restart the machine, or the container with --gpus all"

# Messages of CuPy 13 and 14, and of NVRTC itself, if the compiler or its headers are missing
_NO_COMPILER = re.compile(
    r"[^\n]*(?:libnvrtc|nvrtc64_|nvrtc-builtins|open source file|find CUDA headers)[^\n]*", re.IGNORECASE
)


def check_machine() -> None:
    """Raise BackendUnavailable for every fault that can be found without importing CuPy.

    Does nothing if CuPy has been imported already.
    """
    if "cupy" not in sys.modules:
        _check_packages(_first_gpu())


def find_fault(error: Exception) -> BackendUnavailable:
    """The fault behind an exception that CuPy raised when it was imported or first used."""
    try:
        gpu = _first_gpu()
        _check_packages(gpu)
    except BackendUnavailable as fault:
        return fault
    cupy = " and ".join(_described(_cupy_packages())) or "CuPy"
    if missing := _NO_COMPILER.search(str(error)):
        return BackendUnavailable(
            f"{cupy} does not find the CUDA compiler (NVRTC) or its headers: {_one_line(missing[0])}",
            remedy=_reinstall(gpu),
        )
    if isinstance(error, OSError) and _is_of_cache(error):
        return BackendUnavailable(
            f"{cupy} cannot write compiled kernels to its cache ({_one_line(str(error))})",
            remedy="set the environment variable CUPY_CACHE_DIR to a folder that can be written, and restart",
        )
    told = f"{type(error).__name__}: {_one_line(str(error.__cause__ or error))}"
    if "cupy" not in sys.modules:
        return BackendUnavailable(f"{cupy} cannot be imported ({told})", remedy=_reinstall(gpu))
    return BackendUnavailable(f"{cupy} cannot use the GPU ({told})", remedy=_CURE)


def describe_machine() -> list[str]:
    """Versions of the driver and of CuPy, one per line, if installed."""
    lines = []
    try:
        gpu = _first_gpu()
    except BackendUnavailable:
        pass
    else:
        driver = " ".join(["driver", *_driver_version(), "for CUDA", _dotted(gpu.cuda)])
        lines.append(f"{driver}, first GPU of compute capability {_dotted(gpu.capability)}")
    return lines + _described(_cupy_packages())


# -- driver and GPU --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gpu:
    """The first GPU, and the newest CUDA that its driver supports."""

    cuda: tuple[int, int]
    capability: tuple[int, int]

    @property
    def extra(self) -> str:
        """Name of the extra of hpf_gpu with the CuPy for this GPU."""
        newest = self.cuda[0] >= 13 and self.capability >= _OLDEST_GPU_OF_CUDA_13
        return "cuda13" if newest else "cuda12"


def _first_gpu() -> _Gpu:
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise BackendUnavailable(
            f"this machine has no NVIDIA driver ({error})",
            remedy="if it has an NVIDIA GPU, install its driver; start a container with --gpus all",
            expected=True,
        ) from error
    _ask(driver, "cuInit", 0)
    if not _number(driver, "cuDeviceGetCount"):
        raise _no_gpu(driver, "cuDeviceGetCount", _NO_DEVICE)
    version = _number(driver, "cuDriverGetVersion")
    cuda = version // 1000, version % 1000 // 10
    if cuda < _OLDEST_CUDA:
        raise BackendUnavailable(
            f"the NVIDIA driver is for CUDA {_dotted(cuda)}, and CuPy needs {_dotted(_OLDEST_CUDA)} or newer",
            remedy="install an NVIDIA driver of version 525 or newer",
        )
    device = _number(driver, "cuDeviceGet", 0)
    major, minor = (_number(driver, "cuDeviceGetAttribute", which, device) for which in (75, 76))
    if (major, minor) < _OLDEST_GPU:
        raise BackendUnavailable(
            f"the first GPU has compute capability {_dotted((major, minor))}, and the kernels need "
            f"{_dotted(_OLDEST_GPU)} or newer",
            remedy="if there is a newer GPU, put it first: CUDA_VISIBLE_DEVICES",
            expected=True,
        )
    return _Gpu(cuda, (major, minor))


def _number(driver: ctypes.CDLL, function: str, *arguments: int) -> int:
    """The integer that a function of the driver writes to its first argument."""
    value = ctypes.c_int()
    _ask(driver, function, ctypes.byref(value), *arguments)
    return value.value


def _ask(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    if code := getattr(driver, function)(*arguments):
        raise _no_gpu(driver, function, code)


def _no_gpu(driver: ctypes.CDLL, function: str, code: int) -> BackendUnavailable:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(name))
    problem = f"the NVIDIA driver offers no GPU: {function} says {(name.value or b'error').decode()} ({code})"
    cure, hidden = _CURES.get(code, _CURE), False
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        problem += f", with CUDA_VISIBLE_DEVICES={visible!r}"
        hidden = code == _NO_DEVICE and (not visible.strip() or visible.startswith("-"))
        unset = "unset CUDA_VISIBLE_DEVICES"
        cure = f"{unset} to use a GPU" if hidden else f"{unset}; if there is still none, {cure}"
    return BackendUnavailable(problem, remedy=cure, expected=hidden)


def _driver_version() -> list[str]:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return []
    return re.findall(r"\d+(?:\.\d+)+", text)[:1]


# -- CuPy ------------------------------------------------------------------------------------


def _cupy_packages() -> dict[str, str]:
    """Versions of the installed packages that contain a module ``cupy``, by name."""
    packages: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        name = str(package.metadata["Name"]).lower().replace("_", "-")
        if re.fullmatch(r"cupy|amd-cupy|cupy-(cuda|rocm)[\w-]*", name):
            packages.setdefault(name, package.version)
    return packages


def _check_packages(gpu: _Gpu) -> None:
    packages = _cupy_packages()
    if len(packages) > 1:
        raise BackendUnavailable(
            f"{len(packages)} packages of CuPy overwrite each other: {' and '.join(_described(packages))}",
            remedy=_reinstall(gpu),
        )
    spec = importlib.util.find_spec("cupy")
    if spec is None or spec.origin is None:  # without origin: only a folder is left of it
        gone = "".join(f"the files of {package} are missing" for package in _described(packages))
        raise BackendUnavailable(gone or "CuPy is not installed", remedy=_reinstall(gpu))
    for name in packages:
        built = re.match(r"cupy-cuda(1\d)", name)
        if built and int(built[1]) > gpu.cuda[0]:
            raise BackendUnavailable(
                f"{name} needs a driver for CUDA {built[1]}, and this one is for CUDA {_dotted(gpu.cuda)}",
                remedy=_reinstall(gpu),
            )
        if built and built[1] == "13" and gpu.capability < _OLDEST_GPU_OF_CUDA_13:
            raise BackendUnavailable(
                f"{name} is made for GPUs of compute capability {_dotted(_OLDEST_GPU_OF_CUDA_13)} and newer,"
                f" and this one has {_dotted(gpu.capability)}",
                remedy=_reinstall(gpu),
            )


def _is_of_cache(error: OSError) -> bool:
    """Whether CuPy failed to make, or to write to, the folder of compiled kernels; it does both on disk."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    cache = Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
    path = Path(str(error.filename))
    return path.is_relative_to(cache) or cache.is_relative_to(path)


def _reinstall(gpu: _Gpu) -> str:
    """The command that installs the one CuPy for this GPU, with compiler and headers."""
    names = " ".join(sorted(_cupy_packages()))
    remove = f"pip uninstall -y {names} && " if names else ""
    return f"{remove}pip install 'hpf_gpu[{gpu.extra}]'"


def _described(packages: dict[str, str]) -> list[str]:
    return [f"{name} {version}" for name, version in sorted(packages.items())]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
