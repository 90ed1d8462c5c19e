"""The interface itself, and what holds for every operation."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import conftest
import numpy as np
import pytest

from contract import checks
from contract.cases import Case, factor_on_host, make_case, make_factors, on_host
from contract.tolerances import TOLERANCE
from hpf_gpu.backends import create, protocol
from hpf_gpu.backends.protocol import Backend, Host


def _public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def _parameters_of(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(method).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


#: What a backend shows beyond the protocol: ``threads`` is a setting that only OpenMP has.
EXTRAS = {"openmp": {"threads"}}


@pytest.mark.parametrize("name", conftest.NAMES)
def test_every_backend_is_here(name: str) -> None:
    """One that is not is a skip that says why; a failure if HPF_GPU_REQUIRE (names, with commas) has it."""
    if name in conftest.MISSING:
        required = os.environ.get("HPF_GPU_REQUIRE", "").split(",")
        (pytest.fail if name in required else pytest.skip)(f"{name}: {conftest.MISSING[name]}")


def test_signatures(backend: Backend) -> None:
    """The protocol's names, parameters, kinds and defaults: nothing missing, nothing more."""
    assert _public(backend) == _public(protocol.Backend) | EXTRAS.get(backend.name, set())
    for name, asked in inspect.getmembers(protocol.Backend, inspect.isfunction):
        if not name.startswith("_"):
            assert _parameters_of(getattr(type(backend), name)) == _parameters_of(asked), name


def test_names_itself(backend: Backend, backend_name: str, dtype: np.dtype[Any]) -> None:
    assert backend.name == backend_name
    assert backend.dtype == dtype
    line = backend.describe()
    assert line
    assert "\n" not in line


def test_arithmetic_in_use(backend: Backend) -> None:
    """Arrays take part in arithmetic within the context, which may be entered again."""
    with backend.in_use(), backend.in_use():
        vector, matrix = backend.asarray(np.arange(3.0)), backend.asarray(np.ones((2, 3)))
        matrix *= 3
        matrix += matrix * 2
        total = vector / 2 + vector * vector
    np.testing.assert_array_equal(backend.asnumpy(matrix), np.full((2, 3), 9, backend.dtype))
    np.testing.assert_array_equal(backend.asnumpy(total), [0, 1.5, 5])


def test_keeping_pace_changes_nothing(backend: Backend) -> None:
    """At any time, whatever was submitted since the last call."""
    matrix = backend.asarray(np.ones((2, 3)))
    for times in (2, 3):
        backend.keep_pace()
        backend.keep_pace()
        matrix *= times
    backend.keep_pace()
    np.testing.assert_array_equal(backend.asnumpy(matrix), np.full((2, 3), 6, backend.dtype))


def test_operations_repeat_and_leave_inputs_alone(backend: Backend, case: Case) -> None:
    """Two calls give the same bits, and what the protocol doesn't call consumed stays as it was."""
    users, items = make_factors(backend, case)
    theta, beta = backend.mean(users), backend.mean(items)
    counts = backend.counts(case.csr(backend.dtype), case.k)
    rows, columns = case.y.nonzero()
    hyper_rate = backend.asarray(np.linspace(0.1, 3.0, len(case.y)))
    then, *_ = backend.gamma_update(backend.asarray(case.users.shape[:, ::-1] + 0.1), 0.0, users.rates)
    earlier, steps = (then.exp_log, then.log_scale), backend.asarray(np.array([2.0]))
    exclude = (np.arange(len(case.y) + 1), np.zeros(len(case.y), np.int64))  # the first item, to everybody

    ascent = protocol.Ascent(0.3, backend.asarray(np.ones(case.k)), 1.5, (1.0, 0.25), ((0, 0.5),), 2, 0.0)

    def ascended() -> tuple[Host | None, ...]:
        found = backend.ascend(counts, users, items, hyper_rate, ascent)
        return () if found is None else (*factor_on_host(backend, found[0]), *on_host(backend, found[1:]))

    def refreshed() -> tuple[Host | None, ...]:
        factor, *sums = backend.gamma_update(backend.asarray(case.users.shape), 0.3, users.rates)
        return (*factor_on_host(backend, factor), *on_host(backend, tuple(sums)))

    operations: dict[str, Callable[[], tuple[Any, ...]]] = {
        "allocate": lambda: on_host(backend, backend.allocate(counts, users, items)),
        "allocate users": lambda: on_host(backend, backend.allocate(counts, users, items, side="users")),
        "allocate items": lambda: on_host(backend, backend.allocate(counts, users, items, side="items")),
        "allocate exact": lambda: on_host(backend, backend.allocate(counts, users, items, exact=True)),
        "gamma_update": refreshed,
        "extrapolate": lambda: factor_on_host(backend, backend.extrapolate(users, earlier, steps)),
        "ascend": ascended,
        "mean": lambda: on_host(backend, (backend.mean(users),)),
        "log_rate_sum": lambda: (backend.log_rate_sum(counts, theta, beta),),
        "log_normalizer_sum": lambda: (backend.log_normalizer_sum(counts, users, items),),
        "gamma_elbo": lambda: (backend.gamma_elbo(users, hyper_rate, 0.3, 0.3, 0.3),),
        "distance": lambda: (backend.distance(theta, users.shape),),
        "log_count_products": lambda: on_host(
            backend, (backend.log_count_products(counts, beta, hyper_rate, side="users"),)
        ),
        "log_factorial_sum": lambda: (backend.log_factorial_sum(counts),),
        "select_rows": lambda: on_host(backend, (backend.select_rows(users.exp_log, rows),)),
        "select_columns": lambda: on_host(backend, (backend.select_columns(users.exp_log, np.array([0])),)),
        "predict_pairs": lambda: (backend.predict_pairs(theta, beta, rows, columns),),
        "score_bounds": lambda: backend.score_bounds(beta) or (),
        "top_items": lambda: backend.top_items(theta, beta, 3, exclude),
    }

    def inputs() -> list[Host | None]:
        factors = (*factor_on_host(backend, users), *factor_on_host(backend, items))
        return [
            *factors,
            *on_host(backend, (theta, beta, hyper_rate, ascent.columns, *earlier, steps)),
            rows.copy(),
            columns.copy(),
            *map(np.copy, exclude),
        ]

    before = inputs()
    for name, operation in operations.items():
        first, second = operation(), operation()
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
        for kept, now in zip(before, inputs(), strict=True):
            np.testing.assert_array_equal(now, kept, err_msg=name)


@pytest.mark.skipif("numpy" not in conftest.BACKENDS, reason="this process holds the simulated backend alone")
@pytest.mark.parametrize("name", ["K=30", "start values", "disjoint"])
def test_numpy_works_in_blocks_of_any_size(
    name: str, dtype: np.dtype[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seven rows at once, where small data have but one block."""
    monkeypatch.setattr("hpf_gpu.backends.numpy_backend._BLOCK_BYTES", 7 * 30 * 8)
    backend, case, tolerance = create("numpy", dtype), make_case(name), TOLERANCE[dtype.name]
    checks.gamma_update(backend, case, tolerance, 0.3)
    checks.extrapolate(backend, case, tolerance, 4)
    checks.mean(backend, case, tolerance)
    checks.gamma_elbo(backend, case, tolerance, 0.3, 0.3, 1.0)
    checks.distance(backend, case, tolerance)
    checks.allocate(backend, case, tolerance, False)
    checks.allocate(backend, case, tolerance, True)
    checks.log_rate_sum(backend, case, tolerance)
    checks.log_rate_sum_of_small_products(backend, backend.dtype, tolerance, 30)
    checks.log_normalizer_sum(backend, case, tolerance)
    checks.log_count_products(backend, case, tolerance)
    checks.log_factorial_sum(backend, case, tolerance)
    checks.predict_pairs(backend, case, tolerance, np.int64)
    checks.top_items(backend, case, tolerance, 10)
