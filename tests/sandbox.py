"""A Python process in a made-up environment: packages, NVIDIA driver and PATH are what a test says."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import dateutil
import numpy
import pandas
import pytest
import rich
import scipy
import tqdm
import typer

import hpf_gpu

#: Answers of the driver that is compiled below come from these environment variables.
DRIVER = r"""
#include <cstdlib>

static int answer(const char* name) { return std::atoi(std::getenv(name)); }

extern "C" {
int cuInit(unsigned) { return answer("MADE_UP_INIT"); }
int cuDeviceGetCount(int* count) { return *count = answer("MADE_UP_COUNT"), 0; }
int cuDriverGetVersion(int* version) { return *version = answer("MADE_UP_CUDA"), 0; }
int cuDeviceGet(int* device, int number) { return *device = 40 + number, 0; }
int cuDeviceGetAttribute(int* value, int which, int device) {
  const int capability = answer("MADE_UP_CAPABILITY");
  *value = which == 75 ? capability / 10 : capability % 10;
  return device == 40 && (which == 75 || which == 76) ? 0 : 1;
}
int cuGetErrorName(int code, const char** name) {
  *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : code == 999 ? "CUDA_ERROR_UNKNOWN" : nullptr;
  return *name ? 0 : 1;
}
}
"""


@cache
def _compiled() -> bytes:
    with TemporaryDirectory() as folder:
        library = Path(folder, "libcuda.so.1")
        command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
        subprocess.run(command, input=DRIVER, text=True, check=True)
        return library.read_bytes()


@cache
def _shared() -> TemporaryDirectory[str]:
    """What all sandboxes have: the packages that hpf_gpu needs, linked, and a compiled copy of hpf_gpu.

    The links of packages are what is installed here, without the records of others, which take long to read.
    """
    folder = TemporaryDirectory()
    packages, copy = Path(folder.name, "packages"), Path(folder.name, "hpf_gpu")
    packages.mkdir()
    needed = (numpy, scipy, pandas, tqdm, dateutil, typer, rich)
    records = tuple(f"{module.__name__}-" for module in needed)
    for site in {Path(module.__file__).parents[1] for module in needed}:
        for entry in site.iterdir():
            other = entry.suffix == ".dist-info" and not entry.name.startswith(records)
            if not other and not entry.name.startswith(("cupy", "hpf_gpu", "__pycache__")):
                (packages / entry.name).symlink_to(entry)
    leave_out = shutil.ignore_patterns("__pycache__", "data_files", "kernels", "_openmp*")
    shutil.copytree(Path(hpf_gpu.__file__).parent, copy, ignore=leave_out)
    compileall.compile_dir(copy, quiet=1)
    return folder


class Sandbox:
    """Holds NumPy, SciPy, pandas and hpf_gpu, but no CuPy and no compiled module until a test adds them."""

    def __init__(self, folder: Path) -> None:
        self.site, self.library = folder / "site", folder / "library"
        self.environment = {"PATH": str(folder / "bin"), "LD_LIBRARY_PATH": str(self.library)}
        for path in (self.site, self.library, folder / "bin"):
            path.mkdir()
        shared = Path(_shared().name)
        self.packages = shared / "packages"
        shutil.copytree(shared / "hpf_gpu", self.site / "hpf_gpu")
        # A file that is no library stops the search for one, wherever a real driver may lie.
        (self.library / "libcuda.so.1").write_text("not a library\n" * 100)

    def install(self, name: str, version: str, **files: str) -> None:
        """Register a package, with files that bear more than its version."""
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for file, text in files.items():
            (folder / f"{file}.json").write_text(text)

    def module(self, name: str, text: str) -> None:
        """Put a package of that name first on the path, in place of a real one."""
        path = self.site / name
        path.mkdir()
        (path / "__init__.py").write_text(text)

    def program(self, name: str) -> None:
        """Put a program on the PATH."""
        path = Path(self.environment["PATH"], name)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)

    def driver(self, init: int = 0, count: int = 1, cuda: int = 13000, capability: int = 86) -> None:
        """Compile a driver for CUDA ``cuda`` with ``count`` GPUs, whose cuInit returns ``init``."""
        if sys.platform != "linux":
            pytest.skip("the made-up driver is for Linux")
        if shutil.which("g++") is None:
            pytest.skip("the made-up driver needs g++")
        (self.library / "libcuda.so.1").write_bytes(_compiled())
        answers = {"INIT": init, "COUNT": count, "CUDA": cuda, "CAPABILITY": capability}
        self.environment |= {f"MADE_UP_{name}": str(value) for name, value in answers.items()}

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in here; of this process's environment it sees nothing."""
        path = os.pathsep.join((str(self.site), str(self.packages)))
        environment = {"PYTHONPATH": path, "HOME": str(self.site), **self.environment}
        if "SYSTEMROOT" in os.environ:  # Python does not start without it on Windows
            environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        return subprocess.run(
            [sys.executable, "-S", "-c", code],
            capture_output=True, text=True, check=False, cwd=self.site, env=environment,
        )  # fmt: skip

    def json(self, code: str) -> dict[str, object]:
        """What the code prints, which is JSON."""
        result = self.run(code)
        assert result.returncode == 0, result.stderr
        return dict(json.loads(result.stdout))
