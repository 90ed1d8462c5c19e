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


@pytest.fixture(scope="session", params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=("float32", "float64"))
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    return np.dtype(request.param)


@pytest.fixture(scope="session")
def backend(backend_name: str, dtype: np.dtype[Any]) -> Backend:
    return create(backend_name, dtype)
