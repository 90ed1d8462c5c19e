"""Single operations of every backend, timed by pytest-benchmark.

    pytest bench --benchmark-only
    pytest bench --benchmark-only --benchmark-histogram

A plain ``pytest`` does not collect them.  HPF_GPU_BENCH_DATA names one of the data sets of cases.toml.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from cases import DATA, Input
from operations import Operation, encodings, operations

from hpf_gpu.backends import NAMES, create
from hpf_gpu.backends.protocol import BackendUnavailable

_DATA, _K, _DTYPE = os.environ.get("HPF_GPU_BENCH_DATA", "2m"), 30, "float32"
_OF_BACKENDS = (
    *("allocate users", "allocate items", "allocate both", "gamma_update", "log_rate_sum"),
    *("log_normalizer_sum", "predict_pairs", "top_items", "counts"),
)


@cache
def given() -> Input:
    return Input(DATA[_DATA].frame())


@cache
def of_backend(name: str) -> dict[str, Operation] | str:
    """Operations by name, or why there are none."""
    try:
        backend = create(name, _DTYPE)
    except BackendUnavailable as error:
        return str(error)
    return {operation.name: operation for operation in operations(backend, given(), _K)}


def settled(name: str, work: Callable[[], object]) -> Callable[[], object]:
    """``work`` that ends when its results are there."""
    if name != "cuda":
        return work
    import cupy

    def work_and_wait() -> None:
        work()
        cupy.cuda.get_current_stream().synchronize()

    return work_and_wait


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operation", _OF_BACKENDS)
def test_operation(benchmark: Any, operation: str, name: str) -> None:
    found = of_backend(name)
    if isinstance(found, str):
        pytest.skip(found)
    benchmark.group = operation
    chosen = found[operation]
    benchmark.pedantic(settled(name, chosen.work), setup=chosen.prepare, rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("ids", ["integers", "texts"])
def test_encode(benchmark: Any, ids: str) -> None:
    benchmark.group = "encode"
    work = {operation.name: operation.work for operation in encodings(given())}
    benchmark.pedantic(work[f"encode {ids}"], rounds=5)
