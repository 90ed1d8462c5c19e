"""The openmp backend under sanitizers: ``pytest -m slow``, minutes.

For AddressSanitizer and UndefinedBehaviorSanitizer the module is compiled anew and takes the place of the
installed one in a process that runs its tests.  For ThreadSanitizer the kernels run in a program without
Python: GNU OpenMP's barriers are unknown to it, those of Clang's OpenMP are told to it by Archer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = Path(__file__).resolve().parent

#: A plugin of pytest.  NumPy's memory and the backend's slack would hide what goes beyond a matrix, so
#: matrices begin on a cache line and end where their last row does.
PLUGIN = """
import ctypes, importlib.util, sys, weakref
import numpy as np

spec = importlib.util.spec_from_file_location("hpf_gpu._openmp", {module!r})
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert hasattr(ctypes.CDLL(None), "__asan_init")

from hpf_gpu.backends import openmp_backend

assert openmp_backend._openmp is module
C = ctypes.CDLL(None)
C.free.argtypes = [ctypes.c_void_p]

def empty(self, n, k):
    stride = -(-k * self.dtype.itemsize // 64) * 64 // self.dtype.itemsize
    size, address = n * stride * self.dtype.itemsize, ctypes.c_void_p()
    assert C.posix_memalign(ctypes.byref(address), 64, ctypes.c_size_t(size)) == 0
    memory = (ctypes.c_char * size).from_address(address.value)
    weakref.finalize(memory, C.free, address.value)
    padded = np.frombuffer(memory, self.dtype).reshape(n, stride)
    padded[...] = np.nan  # what is not written shows
    padded[:, k:] = 0
    return padded[:, :k]

openmp_backend.OpenMPBackend._empty = empty
"""


def library(name: str) -> str:
    """Where the compiler has one of its libraries."""
    done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return str(Path(done.stdout.strip()).resolve())


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process in which Python finds the sanitized module."""
    folder = tmp_path_factory.mktemp("sanitized")
    defines = ["HPF_SANITIZE=address,undefined", "CMAKE_CXX_COMPILER=g++"]
    options = [f"--config-settings=cmake.define.{define}" for define in defines]
    options += ["--config-settings=cmake.build-type=Debug", f"--config-settings=build-dir={folder / 'build'}"]
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), *options]
    done = subprocess.run(
        [*command, str(TESTS.parent)], capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    modules = list((folder / "hpf_gpu").glob("_openmp*.so"))
    assert modules, "the module was not compiled; why, `pip install -v` with these options says"
    (folder / "sanitized.py").write_text(PLUGIN.format(module=str(modules[0])))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder / "sanitized.py").rpartition("/")[0], str(TESTS)]),
        # Exceptions are caught on their way by the first, which looks for the second when it is loaded.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python's own are not our business
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and GCC's libasan.so are Linux's")
@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (("contract", "test_inference.py"), "openmp"),
        (("test_levels.py",), ""),
        (("test_openmp_module.py",), "not threads"),
    ],
    ids=["contract", "levels", "module"],
)
def test_sanitizers_find_nothing(environment: dict[str, str], files: tuple[str, ...], chosen: str) -> None:
    options = ["-q", "-x", "--capture=sys", "-p", "sanitized", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(TESTS / file) for file in files)],
        cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout


# -- races -------------------------------------------------------------------------------------

KERNELS = TESTS.parent / "kernels"
ALLOCATION = KERNELS / "openmp" / "allocation.h"
STEPS = "inline void in_steps"
BARRIER = "#pragma omp for schedule(static, 1)"


def clang(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["clang++", *arguments], capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def archer() -> str:
    if shutil.which("clang++") is None:
        pytest.skip("ThreadSanitizer knows no OpenMP but Clang's: there is no clang++")
    # In LLVM's own folder of libraries: its resources lie in clang/<version> of that.
    library = Path(clang("-print-resource-dir").stdout.strip()).parents[1] / "libarcher.so"
    if not library.exists():
        pytest.skip(f"{library}, which tells ThreadSanitizer of OpenMP's barriers, is missing (libomp-dev)")
    return str(library)


def races(folder: Path, archer: str, allocation: str) -> str:
    """What ThreadSanitizer reports of the kernels with this text as allocation.h."""
    kernels = folder / "openmp"
    shutil.copytree(KERNELS / "openmp", kernels)
    (kernels / ALLOCATION.name).write_text(allocation)
    sources = [*set(kernels.glob("*.cpp")) - {kernels / "module.cpp"}, TESTS / "openmp_threads.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-w", "-fsanitize=thread", "-fopenmp", "-DHPF_ISA=baseline"]
    flags += [f"-I{KERNELS / 'common'}", f"-I{kernels}"]
    program = folder / "threads"
    built = clang(*flags, *map(str, sources), "-o", str(program))
    if built.returncode:
        pytest.skip(f"clang++ does not link ThreadSanitizer and OpenMP here: {built.stderr[-500:]}")
    # Older runtimes want fixed parts of the address space, which randomization may take from them.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    environment = os.environ | {
        "OMP_TOOL_LIBRARIES": archer,
        "ARCHER_OPTIONS": "verbose=1",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",  # libomp itself is not compiled for it
        "LD_LIBRARY_PATH": os.pathsep.join(
            filter(None, [str(Path(archer).parent), os.environ.get("LD_LIBRARY_PATH")])
        ),
    }
    done = subprocess.run(
        [*fixed, str(program)], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    if "Archer detected" not in done.stdout + done.stderr:
        pytest.skip(f"Archer does not work here: {done.stderr[-500:]}")
    if done.returncode == 0:
        assert done.stdout.splitlines()[-1].strip()
        return ""
    return done.stderr


def test_no_thread_races_another(archer: str, tmp_path: Path) -> None:
    assert races(tmp_path, archer, ALLOCATION.read_text()) == ""


def test_a_missing_barrier_is_a_race(archer: str, tmp_path: Path) -> None:
    """So that silence means something."""
    before, after = ALLOCATION.read_text().split(STEPS)
    without = before + STEPS + after.replace(BARRIER, f"{BARRIER} nowait", 1)
    assert "data race" in races(tmp_path, archer, without)
