"""Options and settings of the suite, and the contract's fixtures: every backend in every dtype, by name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from contract.tolerances import Tolerance, tolerance_of
from hypothesis import HealthCheck, settings

from hpf_gpu import backends
from hpf_gpu.backends import create
from hpf_gpu.backends.openmp_diagnosis import usable_cores
from hpf_gpu.backends.protocol import Backend, BackendUnavailable

# Limits of time would hold the machine to account, and whoever else is busy on it.
_CHECKED_ONCE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("any machine", deadline=None, suppress_health_check=_CHECKED_ONCE)
settings.load_profile("any machine")

#: Flavour of the CUDA simulator, in a process that test_simulated_cuda.py has started for it.
SIMULATED = os.environ.get("HPF_CUDASIM")
#: In which order its streams run.
STREAMS = os.environ.get("HPF_CUDASIM_STREAMS")

if SIMULATED:
    import cudasim

    from hpf_gpu.backends import cuda_layout

    cudasim.install()
    # Short, so that small test data, too, has rows of several segments and of one.
    cuda_layout.SEGMENT = 16

#: Every backend, or in such a process the simulated one.
NAMES = ("cuda",) if SIMULATED else ("numpy", "openmp", "cuda")


def _why_not(name: str) -> str:
    try:
        create(name, np.float32)
    except BackendUnavailable as error:
        return str(error)
    return ""


#: Why those that cannot work here cannot: test_every_backend_is_here says it.
MISSING = {name: reason for name in NAMES if (reason := _why_not(name))}

#: Those that the suite holds to the contract.
BACKENDS = tuple(name for name in NAMES if name not in MISSING)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--level",
        help="instruction set of the openmp backend, here and where tests start Python (default: the best)",
    )


def pytest_configure(config: pytest.Config) -> None:
    level = config.getoption("level")
    if level is None:
        return
    try:
        import hpf_gpu._openmp as _openmp
    except ImportError as error:
        raise pytest.UsageError(f"--level={level}: the compiled module is missing: {error}") from error
    if level not in _openmp.levels():
        raise pytest.UsageError(f"--level={level}: this machine has {', '.join(_openmp.levels())}")
    _openmp.use_level(level)
    os.environ["HPF_GPU_LEVEL"] = level  # for those processes


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in two processes, where pytest-xdist is installed; ``-n 0`` leaves it in one.

    A file is run by one of them, so that what its tests share is made once.  Whoever names files, or wants
    the terminal (``-s``, ``--pdb``), stays in this process: each other one has to collect all tests first.
    """
    option, source = config.option, config.args_source
    if not config.pluginmanager.hasplugin("xdist") or source is not config.ArgsSource.TESTPATHS:
        return
    terminal = option.usepdb or option.trace or option.capture == "no"
    asked = option.numprocesses is not None or option.tx or option.dist != "no"
    worker = hasattr(config, "workerinput")
    if not (asked or terminal or worker or option.collectonly) and usable_cores() > 1:
        option.numprocesses, option.dist = 2, "loadfile"
        option.loadscopereorder = False  # the files with the fewest tests, which would be last, take longest


def pytest_report_header() -> list[str]:
    working = [f"{name}: {create(name, np.float32).describe()}" for name in BACKENDS]
    return [f"backend {line}" for line in (*working, *(f"{name}: {why}" for name, why in MISSING.items()))]


@pytest.fixture(scope="session", params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=("float32", "float64"))
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    return np.dtype(request.param)


@pytest.fixture(scope="session")
def tolerance(backend_name: str, dtype: np.dtype[Any]) -> Tolerance:
    return tolerance_of(backend_name, dtype.name)


@pytest.fixture(scope="session")
def backend(backend_name: str, dtype: np.dtype[Any]) -> Backend:
    return create(backend_name, dtype)


def only_backends(monkeypatch, *names):
    """Let these be all backends that there are, the fastest first; a name that is none stands for one."""
    entries = {
        name: backends.REGISTRY.get(name, backends.Entry(name, ("", ""), on_host=True)) for name in names
    }
    monkeypatch.setattr(backends, "REGISTRY", entries)
    monkeypatch.setattr(backends, "NAMES", names)
