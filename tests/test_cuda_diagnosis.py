"""Every reason why CUDA cannot be used, provoked, with what the user is told to do about it."""

from __future__ import annotations

import pytest
from sandbox import Sandbox

#: Opens the GPU as the CUDA backend does, and prints what is wrong as JSON.
OPEN = """
import json
from hpf_gpu.backends import cuda_diagnosis
from hpf_gpu.backends.protocol import BackendUnavailable

def open_gpu():
    cuda_diagnosis.check_machine()
    try:
        import cupy
        cupy.compile()
    except Exception as error:
        raise cuda_diagnosis.find_fault(error) from error

try:
    open_gpu()
except BackendUnavailable as error:
    told = {"problem": error.problem, "remedy": error.remedy, "expected": error.expected}
else:
    told = {"problem": "", "remedy": "", "expected": False}
print(json.dumps(told | {"machine": cuda_diagnosis.describe_machine()}))
"""

WORKS = "def compile(): pass"
NEVER_IMPORTED = "raise SystemExit('CuPy was imported')"
NVIDIA_SMI = "run nvidia-smi; if that fails too, restart the machine, or the container with --gpus all"


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


def diagnosis(sandbox):
    told = sandbox.json(OPEN)
    return told["problem"], told["remedy"], told["expected"]


def test_nothing_is_wrong(sandbox):
    sandbox.driver(cuda=12040)
    sandbox.install("cupy-cuda12x", "14.2.0")
    sandbox.module("cupy", WORKS)
    assert diagnosis(sandbox) == ("", "", False)
    driver, cupy = sandbox.json(OPEN)["machine"]
    assert driver.startswith("driver ")
    assert driver.endswith("for CUDA 12.4, first GPU of compute capability 8.6")
    assert cupy == "cupy-cuda12x 14.2.0"


# -- driver and GPU --------------------------------------------------------------------------


def test_no_driver(sandbox):
    sandbox.install("cupy-cuda12x", "14.2.0")
    sandbox.module("cupy", NEVER_IMPORTED)
    problem, remedy, expected = diagnosis(sandbox)
    assert problem.startswith("this machine has no NVIDIA driver (")
    assert ("libcuda.so.1" in problem) or ("nvcuda.dll" in problem)
    assert remedy == "if it has an NVIDIA GPU, install its driver; start a container with --gpus all"
    assert expected
    assert sandbox.json(OPEN)["machine"] == ["cupy-cuda12x 14.2.0"]


@pytest.mark.parametrize(
    ("init", "name", "cure"),
    [
        (100, "CUDA_ERROR_NO_DEVICE", NVIDIA_SMI),
        (999, "CUDA_ERROR_UNKNOWN", NVIDIA_SMI),
        (803, "error", "restart the machine: its driver was updated, and the kernel still runs the old one"),
        (34, "error", "remove the folder 'stubs' of the CUDA toolkit from LD_LIBRARY_PATH"),
        (804, "error", "remove the folder 'compat' of the CUDA toolkit from LD_LIBRARY_PATH"),
        (
            3,
            "error",
            "start processes by multiprocessing's 'spawn', or use backend='openmp' in them: CUDA was in use "
            "when this one was forked, and does not survive a fork",
        ),
    ],
)
def test_the_driver_does_not_start(sandbox, init, name, cure):
    sandbox.driver(init=init)
    problem = f"the NVIDIA driver offers no GPU: cuInit says {name} ({init})"
    assert diagnosis(sandbox) == (problem, cure, False)


def test_the_driver_has_no_gpu(sandbox):
    sandbox.driver(count=0)
    problem = "the NVIDIA driver offers no GPU: cuDeviceGetCount says CUDA_ERROR_NO_DEVICE (100)"
    assert diagnosis(sandbox) == (problem, NVIDIA_SMI, False)


@pytest.mark.parametrize("visible", ["", " ", "-1", "-1,0"])
def test_gpus_that_are_hidden_on_purpose(sandbox, visible):
    sandbox.driver(init=100)
    sandbox.environment["CUDA_VISIBLE_DEVICES"] = visible
    problem, remedy, expected = diagnosis(sandbox)
    assert problem.endswith(f"CUDA_ERROR_NO_DEVICE (100), with CUDA_VISIBLE_DEVICES={visible!r}")
    assert remedy == "unset CUDA_VISIBLE_DEVICES to use a GPU"
    assert expected


@pytest.mark.parametrize(("init", "visible"), [(100, "7"), (999, "-1")])
def test_a_choice_of_gpus_that_may_be_to_blame(sandbox, init, visible):
    sandbox.driver(init=init)
    sandbox.environment["CUDA_VISIBLE_DEVICES"] = visible
    problem, remedy, expected = diagnosis(sandbox)
    assert problem.endswith(f"({init}), with CUDA_VISIBLE_DEVICES={visible!r}")
    assert remedy == f"unset CUDA_VISIBLE_DEVICES; if there is still none, {NVIDIA_SMI}"
    assert not expected


def test_an_old_driver(sandbox):
    sandbox.driver(cuda=11040)
    problem = "the NVIDIA driver is for CUDA 11.4, and CuPy needs 12.0 or newer"
    assert diagnosis(sandbox) == (problem, "install an NVIDIA driver of version 525 or newer", False)


def test_an_old_gpu(sandbox):
    sandbox.driver(cuda=12040, capability=61)
    sandbox.install("cupy-cuda12x", "14.2.0")
    problem, _, expected = diagnosis(sandbox)
    assert problem == "the first GPU has compute capability 6.1, and the kernels need 7.0 or newer"
    assert expected


# -- CuPy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "capability", "extra"),
    [
        *((12000, 86, "cuda12"), (12090, 100, "cuda12"), (13000, 86, "cuda13"), (14010, 75, "cuda13")),
        *((13000, 70, "cuda12"), (13000, 75, "cuda13")),
    ],
)
def test_no_cupy(sandbox, cuda, capability, extra):
    sandbox.driver(cuda=cuda, capability=capability)
    assert diagnosis(sandbox) == ("CuPy is not installed", f"pip install 'hpf_gpu[{extra}]'", False)


@pytest.mark.parametrize(
    ("package", "cuda", "capability"),
    [
        *(("cupy-cuda12x", 12000, 70), ("cupy-cuda12x", 13000, 86), ("cupy-cuda12x", 13000, 70)),
        *(("cupy-cuda13x", 13000, 75), ("cupy-cuda13x", 14000, 100), ("cupy", 12000, 70)),
    ],
)
def test_a_cupy_that_suits(sandbox, package, cuda, capability):
    """For this driver or an older one, and for this GPU; one from source is not judged by its name."""
    sandbox.driver(cuda=cuda, capability=capability)
    sandbox.install(package, "14.2.0")
    sandbox.module("cupy", WORKS)
    assert diagnosis(sandbox) == ("", "", False)


def test_other_packages_are_no_cupy(sandbox):
    sandbox.driver()
    sandbox.install("cupy-xarray", "0.1.4")
    assert diagnosis(sandbox) == ("CuPy is not installed", "pip install 'hpf_gpu[cuda13]'", False)


def test_a_cupy_without_files(sandbox):
    sandbox.driver()
    sandbox.install("cupy-cuda13x", "14.2.0")
    (sandbox.site / "cupy" / "left_over").mkdir(parents=True)
    problem, remedy, _ = diagnosis(sandbox)
    assert problem == "the files of cupy-cuda13x 14.2.0 are missing"
    assert remedy == "pip uninstall -y cupy-cuda13x && pip install 'hpf_gpu[cuda13]'"


@pytest.mark.parametrize("other", ["cupy", "cupy-cuda12x", "cupy-cuda112", "cupy-rocm-7-0", "amd-cupy"])
def test_two_cupys(sandbox, other):
    sandbox.driver()
    sandbox.install(other, "13.6.0")
    sandbox.install("cupy_cuda13x", "14.2.0")
    sandbox.module("cupy", NEVER_IMPORTED)
    problem, remedy, expected = diagnosis(sandbox)
    names = sorted([other, "cupy-cuda13x"])
    assert problem.startswith("2 packages of CuPy overwrite each other: ")
    assert f"{other} 13.6.0" in problem
    assert "cupy-cuda13x 14.2.0" in problem
    assert remedy == f"pip uninstall -y {' '.join(names)} && pip install 'hpf_gpu[cuda13]'"
    assert not expected


def test_a_cupy_for_a_newer_driver(sandbox):
    sandbox.driver(cuda=12080)
    sandbox.install("cupy-cuda13x", "14.2.0")
    sandbox.module("cupy", NEVER_IMPORTED)
    problem, remedy, _ = diagnosis(sandbox)
    assert problem == "cupy-cuda13x needs a driver for CUDA 13, and this one is for CUDA 12.8"
    assert remedy == "pip uninstall -y cupy-cuda13x && pip install 'hpf_gpu[cuda12]'"


def test_a_cupy_for_newer_gpus(sandbox):
    sandbox.driver(cuda=13000, capability=70)
    sandbox.install("cupy-cuda13x", "14.2.0")
    sandbox.module("cupy", NEVER_IMPORTED)
    problem, remedy, _ = diagnosis(sandbox)
    assert (
        problem == "cupy-cuda13x is made for GPUs of compute capability 7.5 and newer, and this one has 7.0"
    )
    assert remedy == "pip uninstall -y cupy-cuda13x && pip install 'hpf_gpu[cuda12]'"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise ImportError('libcublas.so.13: no such file')", "ImportError: libcublas.so.13: no such file"),
        ("raise OSError('=' * 250)", "OSError: " + "=" * 200),
        ("raise ValueError('numpy.dtype size\\n changed')", "ValueError: numpy.dtype size changed"),
        (
            "try:\n    import no_such_part\nexcept ImportError as error:\n"
            "    raise ImportError('=' * 60 + 'a long banner') from error",
            "ImportError: No module named 'no_such_part'",
        ),
    ],
    ids=["ImportError", "long", "ValueError", "banner"],
)
def test_a_cupy_that_fails_on_import(sandbox, text, told):
    sandbox.driver()
    sandbox.install("cupy-cuda13x", "14.2.0")
    sandbox.module("cupy", text)
    problem, remedy, expected = diagnosis(sandbox)
    assert problem == f"cupy-cuda13x 14.2.0 cannot be imported ({told})"
    assert remedy == "pip uninstall -y cupy-cuda13x && pip install 'hpf_gpu[cuda13]'"
    assert not expected


#: What CuPy does when it is imported, and when it has compiled a kernel.
CACHE = """
import os, tempfile
folder = os.environ.get("CUPY_CACHE_DIR", os.path.expanduser("~/.cupy/kernel_cache"))
if not os.path.isdir(folder):
    os.makedirs(folder, exist_ok=True)

def compile():
    {then}
    tempfile.NamedTemporaryFile(dir=folder)
"""
SET_CACHE = "set the environment variable CUPY_CACHE_DIR to a folder that can be written, and restart"


@pytest.mark.parametrize(
    ("variable", "folder", "then", "told"),
    [
        ("HOME", "file", "", "file/.cupy"),  # no folder can be made there, even by root
        ("CUPY_CACHE_DIR", "file/cache", "", "file/cache"),
        ("HOME", "home", "os.rmdir(folder)", "home/.cupy/kernel_cache"),
        ("HOME", "home", "raise OSError(28, 'No space left on device')", "No space left on device"),
        ("HOME", "home", "raise OSError(30, 'Read-only file system', folder)", "Read-only file system"),
    ],
)
def test_a_cache_that_cannot_be_written(sandbox, tmp_path, variable, folder, then, told):
    """On import, and later; the advice helps."""
    sandbox.driver()
    sandbox.install("cupy-cuda13x", "14.2.0")
    sandbox.module("cupy", CACHE.format(then=then if then else "pass"))
    (tmp_path / "file").touch()
    sandbox.environment[variable] = str(tmp_path / folder)
    problem, remedy, expected = diagnosis(sandbox)
    assert problem.startswith("cupy-cuda13x 14.2.0 cannot write compiled kernels to its cache (")
    assert told in problem
    assert (remedy, expected) == (SET_CACHE, False)
    if not then:
        sandbox.environment["CUPY_CACHE_DIR"] = str(tmp_path / "elsewhere")
        assert diagnosis(sandbox) == ("", "", False)


@pytest.mark.parametrize(
    "message",
    [
        'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so.13',  # CuPy 14
        "CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open shared object",  # CuPy 13
        "Failed to find CUDA headers. Please install CUDA toolkit headers via",  # CuPy 14
        "CuPy failed to load nvrtc64_120_0.dll: FileNotFoundError: Could not find module",
        'f.cu(1): catastrophic error: could not open source file "cuda_fp16.h" (no directories)',  # NVRTC 13
        "nvrtc: error: failed to open nvrtc-builtins64_130.dll.",
        'x.cuh(3): catastrophic error: cannot open source file "vector_types.h"',  # NVRTC 12
    ],
)
def test_no_compiler_or_headers(sandbox, message):
    sandbox.driver()
    sandbox.install("cupy-cuda13x", "14.2.0")
    sandbox.module("cupy", f"def compile():\n    raise RuntimeError({message!r} + '\\n  more lines')")
    problem, remedy, _ = diagnosis(sandbox)
    assert problem == f"cupy-cuda13x 14.2.0 does not find the CUDA compiler (NVRTC) or its headers: {message}"
    assert remedy == "pip uninstall -y cupy-cuda13x && pip install 'hpf_gpu[cuda13]'"


def test_another_failure(sandbox):
    sandbox.driver()
    sandbox.module("cupy", "def compile():\n    raise RuntimeError('cudaErrorECCUncorrectable: bad memory')")
    problem, remedy, expected = diagnosis(sandbox)
    assert problem == "CuPy cannot use the GPU (RuntimeError: cudaErrorECCUncorrectable: bad memory)"
    assert remedy == NVIDIA_SMI
    assert not expected


def test_a_cupy_that_is_imported_already_is_not_judged(sandbox):
    sandbox.module("cupy", WORKS)  # and no driver
    told = sandbox.json("import cupy\n" + OPEN)
    assert told["problem"] == ""
