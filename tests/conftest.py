"""Fixtures of the contract suite: every backend in every dtype, visible in the test's name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import Backend, BackendUnavailable

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

#: Backends held to the contract.  One that cannot work here is a skip that says why, and a failure
#: if the environment variable HPF_GPU_REQUIRE (comma-separated names) asks for it.
BACKENDS = ("cuda",) if SIMULATED else ("numpy", "openmp", "cuda")


def make_or_skip(name: str, dtype: np.dtype[Any]) -> Backend:
    required = {part.strip() for part in os.environ.get("HPF_GPU_REQUIRE", "").split(",")}
    try:
        return create(name, dtype, threads=None)
    except BackendUnavailable as error:
        if name in required:
            pytest.fail(f"HPF_GPU_REQUIRE names {name}, which is not available: {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=("float32", "float64"))
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    return np.dtype(request.param)


@pytest.fixture(scope="session")
def backend(backend_name: str, dtype: np.dtype[Any]) -> Backend:
    return make_or_skip(backend_name, dtype)


@pytest.fixture(scope="session")
def usable_backend_name(backend_name: str) -> str:
    """Every backend in turn, by name; missing ones are skipped as above."""
    make_or_skip(backend_name, np.dtype(np.float64))
    return backend_name
