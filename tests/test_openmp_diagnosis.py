"""Every reason why the compiled module does not work, with what the user is told to do about it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sandbox import Sandbox

from hpf_gpu.backends import openmp_diagnosis

COMPILE = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary hpf_gpu"

#: Asks for the backend, on a system of that name with Python's headers there; prints what is wrong as JSON.
CREATE = """
import json, platform, sys, sysconfig
sys.platform, platform.freedesktop_os_release = "linux", lambda: {release!r}
sysconfig.get_path = lambda name: {headers!r}
from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import BackendUnavailable
try:
    create("openmp", "float32")
except BackendUnavailable as error:
    print(json.dumps({{"problem": error.problem, "remedy": error.remedy, "expected": error.expected}}))
"""

UBUNTU = {"ID": "ubuntu", "ID_LIKE": "debian"}
ROCKY = {"ID": "rocky", "ID_LIKE": "rhel centos fedora"}
GENTOO = {"ID": "gentoo"}


@pytest.fixture
def sandbox(tmp_path):
    box = Sandbox(tmp_path)
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers" / "Python.h").touch()
    return box


def diagnosis(sandbox, release, headers=True):
    folder = sandbox.site.with_name("headers" if headers else "no headers")
    told = sandbox.json(CREATE.format(release=release, headers=str(folder)))
    assert not told["expected"]
    return told["problem"], told["remedy"]


@pytest.mark.parametrize(
    ("release", "command"),
    [
        (UBUNTU, "sudo apt-get install g++"),
        (ROCKY, "sudo dnf install gcc-c++"),
        (GENTOO, "install GCC or Clang"),
    ],
    ids=lambda value: value["ID"] if isinstance(value, dict) else "",
)
def test_no_compiler(sandbox, release, command):
    sandbox.install("hpf_gpu", "0.1.0")
    problem, remedy = diagnosis(sandbox, release)
    told = "this machine has no C++ compiler (g++ or clang++) to build it with"
    assert problem == f"the compiled module is missing: {told}"
    assert remedy == f"{command} && {COMPILE} hpf_gpu"


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_no_headers(sandbox, compiler):
    sandbox.install("hpf_gpu", "0.1.0")
    sandbox.program(compiler)
    problem, remedy = diagnosis(sandbox, UBUNTU, headers=False)
    told = "this machine has no headers of Python (Python.h) to build it with"
    assert problem == f"the compiled module is missing: {told}"
    assert remedy == f"sudo apt-get install python3-dev && {COMPILE} hpf_gpu"


def test_neither_compiler_nor_headers(sandbox):
    sandbox.install("hpf_gpu", "0.1.0")
    problem, remedy = diagnosis(sandbox, ROCKY, headers=False)
    assert "no C++ compiler (g++ or clang++) and no headers of Python (Python.h) to build" in problem
    assert remedy == f"sudo dnf install gcc-c++ && sudo dnf install python3-devel && {COMPILE} hpf_gpu"


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ({"url": "file:///home/ann/hpf_gpu", "dir_info": {}}, "file:///home/ann/hpf_gpu"),
        (
            {"url": "file:///home/ann/hpf_gpu", "dir_info": {"editable": True}},
            "-e file:///home/ann/hpf_gpu",
        ),
        ({"url": "https://host/hpf_gpu", "vcs_info": {"vcs": "git"}}, "git+https://host/hpf_gpu"),
    ],
    ids=["folder", "editable", "repository"],
)
def test_it_was_not_compiled(sandbox, origin, source):
    sandbox.install("hpf_gpu", "0.1.0", direct_url=json.dumps(origin))
    sandbox.program("g++")
    problem, remedy = diagnosis(sandbox, UBUNTU)
    assert problem == "the compiled module is missing: No module named 'hpf_gpu._openmp'"
    assert remedy == f"{COMPILE} {source}"


def test_a_source_tree_that_was_never_installed(sandbox):
    sandbox.program("g++")
    assert diagnosis(sandbox, UBUNTU)[1] == f"{COMPILE} -e {sandbox.site}"


def test_it_cannot_be_loaded(sandbox):
    sandbox.install("hpf_gpu", "0.1.0")
    text = "libgomp.so.1: cannot open shared object file"
    sandbox.module("hpf_gpu/_openmp", f"raise ImportError({text!r})")
    problem, remedy = diagnosis(sandbox, UBUNTU)
    assert problem == f"the compiled module cannot be loaded: {text}"
    assert remedy == f"{COMPILE} hpf_gpu"


@pytest.mark.parametrize(
    ("system", "release", "compiler", "headers", "openmp"),
    [
        (
            "linux",
            {"ID": "debian"},
            "apt-get install g++",
            "install python3-dev",
            "apt-get install libomp-dev",
        ),
        (
            "linux",
            {"ID": "fedora"},
            "dnf install gcc-c++",
            "install python3-devel",
            "dnf install libomp-devel",
        ),
        (
            "darwin",
            {},
            "xcode-select --install",
            "install Python from python.org",
            "brew install libomp && exp",
        ),
        (
            "linux",
            {"ID": "arch"},
            "install GCC or Clang",
            "install Python's headers",
            "install OpenMP for your",
        ),
    ],
    ids=["debian", "fedora", "macos", "elsewhere"],
)
def test_what_each_system_installs(monkeypatch, system, release, compiler, headers, openmp):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    monkeypatch.setattr(openmp_diagnosis.shutil, "which", lambda name: None)
    monkeypatch.setattr(openmp_diagnosis.sysconfig, "get_path", lambda name: "/nowhere")
    told, *_, last = openmp_diagnosis.install_openmp().rpartition(" && ")
    assert openmp in told
    assert last.startswith(COMPILE)
    fault = openmp_diagnosis.find_fault(ModuleNotFoundError("gone"))
    first, second, *_, last = fault.remedy.split(" && ")
    assert compiler in first
    assert headers in second
    assert last.startswith(COMPILE)


def test_a_system_that_does_not_tell_its_name(monkeypatch):
    def unknown():
        raise OSError("no /etc/os-release")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "freedesktop_os_release", unknown)
    assert openmp_diagnosis.install_openmp().startswith("install OpenMP for your compiler && ")


def test_threads(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert openmp_diagnosis.describe_machine() == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    assert openmp_diagnosis.describe_machine() == [
        "this process may use 2 of 64 cores (CPU affinity)",
        "OMP_NUM_THREADS=4 is ignored: use HPF(ncores=...)",
        "OMP_THREAD_LIMIT=1 limits HPF(ncores=...)",
    ]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert openmp_diagnosis.usable_cores() == 64


def test_without_openmp_one_thread_is_said(monkeypatch):
    pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    from hpf_gpu.backends import openmp_backend

    monkeypatch.setattr(openmp_backend, "HAS_OPENMP", False)
    backend = openmp_backend.OpenMPBackend(np.dtype(np.float32), threads=2)
    assert backend.threads == 1
    assert "one thread: compiled without OpenMP" in backend.describe()


def in_its_own_process(code, level):
    command = [sys.executable, "-c", code]
    environment = os.environ | {"HPF_GPU_LEVEL": level, "PYTHONSAFEPATH": "1"}
    environment["PYTHONPATH"] = str(Path(openmp_diagnosis.__file__).parents[2])
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_an_instruction_set_may_be_chosen():
    openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    code = "from hpf_gpu.backends import create; print(create('openmp', 'float32').describe())"
    for level in openmp.levels():
        assert in_its_own_process(code, level).startswith(f"C++ for {level}, ")
    assert in_its_own_process(code, "").startswith(f"C++ for {openmp.levels()[0]}, ")


def test_an_instruction_set_that_is_not_there():
    openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    code = """
from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import BackendUnavailable
try:
    create("openmp", "float32")
except BackendUnavailable as error:
    print(error.problem, error.remedy, sep="\\n")
"""
    problem, remedy = in_its_own_process(code, "x86-64-v9").splitlines()
    there = ", ".join(openmp.levels())
    assert (
        problem == f"HPF_GPU_LEVEL='x86-64-v9' is not an instruction set of this machine, which has {there}"
    )
    assert remedy == "unset HPF_GPU_LEVEL, to use the best one"


@pytest.mark.parametrize("policy", [None, "active"])
def test_how_threads_wait(policy):
    """They sleep unless the user has them spin, and nobody else's OpenMP learns of it."""
    openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    code = """
import os
from hpf_gpu.backends import create
backend = create("openmp", "float32", 2)
print(os.environ.get("OMP_WAIT_POLICY"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true", "PYTHONSAFEPATH": "1"}
    environment |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    environment["PYTHONPATH"] = str(Path(openmp_diagnosis.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(policy)
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip(f"this OpenMP does not show its settings (has_openmp={openmp.has_openmp})")
    (line,) = (line for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line)
    assert (policy or "passive").upper() in line.upper()
