"""What `hpf-gpu doctor` says where things work, and where they are broken."""

from __future__ import annotations

import sys
from pathlib import Path

import conftest
import numpy as np
import pytest
from sandbox import Sandbox

from hpf_gpu import BackendUnavailable, __version__, backends
from hpf_gpu.app import doctor
from hpf_gpu.app.cli import main
from hpf_gpu.app.doctor import Finding, Report

DOCTOR = "import sys; from hpf_gpu.app.cli import main; sys.exit(main(['doctor']))"


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


def works(name):
    try:
        backends.create(name, np.float32)
    except BackendUnavailable:
        return False
    return True


@pytest.fixture
def made_up(monkeypatch):
    """A function that has the doctor find these backends: an exception, or a real backend's name."""

    def replace(**found):
        def create(name, dtype, threads=None, *, really=backends.create):
            if isinstance(found[name], Exception):
                raise found[name]
            return really(found[name], dtype, threads)

        monkeypatch.setattr(backends, "create", create)
        conftest.only_backends(monkeypatch, *found)

    return replace


def said(capsys):
    """Exit status and lines of `hpf-gpu doctor` in this process."""
    status = main(["doctor"])
    told = capsys.readouterr()
    assert told.err == ""
    return status, told.out.splitlines()


# -- as it is ----------------------------------------------------------------------------------


def test_this_machine(capsys):
    status, lines = said(capsys)
    assert f"hpf_gpu  {__version__}, in {Path(doctor.__file__).parents[1]}" in lines
    assert any(line.startswith(f"Python   {sys.version.split()[0]}, {sys.executable}, on ") for line in lines)
    assert f"numpy    {np.__version__}" in lines
    for name in backends.NAMES:
        start = f"{name:<9}works: " if works(name) else f"{name:<9}"
        assert any(line.startswith(start) for line in lines), name
    best = next(name for name in backends.NAMES if works(name))
    assert lines[-2] == f"backend='auto' uses {best!r}."
    assert status == (0 if best != "numpy" else 1)


# -- what may be broken --------------------------------------------------------------------------


def test_the_compiled_module_is_missing(sandbox):
    result = sandbox.run(DOCTOR)
    assert result.returncode == 1
    assert result.stderr == ""
    assert (
        "openmp   does not work: the compiled module is missing: this machine has no C++ com" in result.stdout
    )
    assert "numpy    works: numpy " in result.stdout
    *_, automatic, last = result.stdout.splitlines()
    assert automatic == "backend='auto' uses 'numpy'."
    assert last.startswith("Next: ")
    assert last.endswith(f"--no-binary hpf_gpu -e {sandbox.site}")


@pytest.mark.parametrize("package", ["numpy", "scipy", "pandas", "tqdm"])
def test_a_package_is_broken(sandbox, package):
    sandbox.module(
        package, "raise ValueError('numpy.dtype size changed,\\n may indicate binary incompatibility')"
    )
    result = sandbox.run(DOCTOR)
    assert result.returncode == 1
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    told = "ValueError: numpy.dtype size changed, may indicate binary incompatibility"
    assert f"{package:<9}does not work: {told}" in lines
    assert lines[-2:] == ["backend='auto' does not work.", f"Next: pip install --force-reinstall {package}"]


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_package_of_the_command_line_is_broken(sandbox, package):
    sandbox.module(package, "raise ImportError('no such file')")
    result = sandbox.run(DOCTOR)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert f"{package:<9}does not work: ImportError: no such file" in lines
    assert any(line.startswith("numpy    works: numpy ") for line in lines)
    assert lines[-2] == "backend='auto' uses 'numpy'."
    assert lines[-1] == f"Next: pip install --force-reinstall {package}"
    assert result.returncode == 1  # NumPy alone works in here


def test_without_typer_other_commands_say_so(sandbox):
    sandbox.module("typer", "raise ImportError('no such file')")
    result = sandbox.run(DOCTOR.replace("'doctor'", "'fit', 'plays.csv'"))
    assert result.returncode == 2
    assert result.stdout == ""
    told = (
        "hpf-gpu: typer cannot be imported (ImportError: no such file): pip install --force-reinstall typer"
    )
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1


def test_the_compiled_module_is_broken(sandbox):
    sandbox.module("hpf_gpu/_openmp", "raise ImportError('undefined symbol: GOMP_parallel')")
    result = sandbox.run(DOCTOR)
    assert result.returncode == 1
    assert (
        "does not work: the compiled module cannot be loaded: undefined symbol: GOMP_parallel"
        in result.stdout
    )


def test_a_machine_without_a_gpu(sandbox):
    lines = sandbox.run(DOCTOR).stdout.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("cuda "))
    assert lines[place].startswith("cuda     not for this machine: this machine has no NVIDIA driver (")
    assert lines[place + 1].startswith("         -> if it has an NVIDIA GPU, install its driver")


def test_a_gpu_without_cupy(sandbox):
    sandbox.driver(cuda=12040)
    lines = sandbox.run(DOCTOR).stdout.splitlines()
    place = lines.index("cuda     does not work: CuPy is not installed")
    assert lines[place + 1].endswith("for CUDA 12.4, first GPU of compute capability 8.6")
    assert lines[place + 2] == "         -> pip install 'hpf_gpu[cuda12]'"
    assert lines[-1] == "Next: pip install 'hpf_gpu[cuda12]'"


def test_a_cupy_that_fails_on_import(sandbox):
    sandbox.driver()
    sandbox.install("cupy-cuda13x", "14.2.0")
    sandbox.module("cupy", "raise ImportError('libcudart.so.13: no such file')")
    lines = sandbox.run(DOCTOR).stdout.splitlines()
    told = "cupy-cuda13x 14.2.0 cannot be imported (ImportError: libcudart.so.13: no such file)"
    assert f"cuda     does not work: {told}" in lines
    assert "         cupy-cuda13x 14.2.0" in lines
    assert lines[-1] == "Next: pip uninstall -y cupy-cuda13x && pip install 'hpf_gpu[cuda13]'"


def test_compiled_without_openmp(capsys, monkeypatch):
    pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    from hpf_gpu.backends import openmp_backend

    monkeypatch.setattr(openmp_backend, "HAS_OPENMP", False)
    conftest.only_backends(monkeypatch, "openmp", "numpy")
    monkeypatch.setattr(openmp_backend, "install_openmp", lambda: "install it")
    status, lines = said(capsys)
    assert status == 0
    assert any("one thread: compiled without OpenMP" in line for line in lines)
    assert "         -> install it" in lines
    assert lines[-1] == "Next: install it"


def test_hardware_that_is_not_there_is_nothing_to_fix(capsys, made_up):
    made_up(cuda=BackendUnavailable("no such card", remedy="buy one", expected=True), numpy="numpy")
    status, lines = said(capsys)
    assert "cuda     not for this machine: no such card" in lines
    assert "         -> buy one" in lines
    assert lines[-2:] == ["backend='auto' uses 'numpy'.", "No problems found."]
    assert status == 1


def test_hardware_that_is_not_used(capsys, made_up):
    made_up(cuda=BackendUnavailable("CuPy is not installed", remedy="install it"), numpy="numpy")
    status, lines = said(capsys)
    assert "cuda     does not work: CuPy is not installed" in lines
    assert lines[-2:] == ["backend='auto' uses 'numpy'.", "Next: install it"]
    assert status == 1


def test_a_fault_that_nobody_foresaw(capsys, made_up):
    made_up(cuda=OSError("the device\nis on fire"), numpy="numpy")
    status, lines = said(capsys)
    assert "cuda     does not work: OSError: the device is on fire" in lines
    assert lines[-2:] == [
        "backend='auto' does not work.",
        "Next: report these lines to the authors of hpf_gpu",
    ]
    assert status == 1


def test_a_backend_that_computes_nonsense(capsys, monkeypatch):
    from hpf_gpu.backends.numpy_backend import NumpyBackend

    monkeypatch.setattr(NumpyBackend, "mean", lambda self, factor: np.full_like(factor.shape, np.nan))
    conftest.only_backends(monkeypatch, "numpy")
    status, lines = said(capsys)
    assert any(
        line.startswith("numpy    does not work: ArithmeticError: a small fit gave [[nan") for line in lines
    )
    assert status == 1


# -- the report ------------------------------------------------------------------------------------


def test_what_comes_first_is_mended_first():
    fine, absent = Finding("numpy", True, "2.4"), Finding("cuda", False, "", (), "buy one", expected=True)
    broken, slow = Finding("scipy", False, "", (), "install scipy"), Finding("openmp", True, "", (), "hurry")
    assert Report((fine,), (absent, fine), "numpy").next_step == "No problems found."
    assert Report((fine, broken), (slow,), "openmp").next_step == "Next: install scipy"
    assert Report((fine,), (absent, slow), "openmp").next_step == "Next: hurry"
    assert Report((fine,), (absent, slow), "openmp").compiled_works
    assert not Report((fine,), (absent, fine), "numpy").compiled_works
