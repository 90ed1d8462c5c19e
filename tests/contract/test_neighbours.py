"""The item-to-item term: what counts are allocated to neighbours, sums over both terms, rates and lists."""

from __future__ import annotations

import conftest
import numpy as np
import pytest

from contract import checks
from contract.cases import NEIGHBOUR_CASES, Case, garbage, make_case, make_factor, make_neighbours, on_host
from contract.tolerances import Tolerance, assert_same
from hpf_gpu.backends import protocol
from hpf_gpu.backends.protocol import Backend


@pytest.fixture(scope="session", params=NEIGHBOUR_CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest, backend: Backend) -> Case:
    if (backend.name, request.param) == ("numpy", "wide"):
        pytest.skip("items that users of thousands have together take the reference ten seconds a time")
    return make_case(request.param)


def test_log_count_products(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    """Counts that are laid out with neighbours have them as well."""
    checks.log_count_products(backend, case, tolerance, with_neighbours=True)


def test_gamma_update(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.gamma_update_at_a_temperature(backend, case, tolerance, 1.25)


@pytest.mark.parametrize(
    ("side", "exact", "temperature"),
    [
        ("both", False, 1.0),
        ("both", False, 1.25),
        ("both", True, 1.25),
        ("users", False, 1.25),
        ("items", False, 1.25),
    ],
)
def test_allocate(
    backend: Backend,
    case: Case,
    tolerance: Tolerance,
    side: protocol.SideName,
    exact: bool,
    temperature: float,
) -> None:
    checks.allocate_with_neighbours(backend, case, tolerance, side, exact=exact, temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 1.25])
def test_log_sums(backend: Backend, case: Case, tolerance: Tolerance, temperature: float) -> None:
    checks.log_sums_with_neighbours(backend, case, tolerance, temperature)


def test_rates(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    checks.neighbour_rates(backend, case, tolerance)


@pytest.mark.parametrize("length", [1, 10])
def test_top_items(backend: Backend, case: Case, tolerance: Tolerance, length: int) -> None:
    if case.name == "wide":
        pytest.skip("its tiles are those of sums over nonzeros, and its lists take the oracle seconds")
    checks.top_items_with_neighbours(backend, case, tolerance, length)


@pytest.mark.parametrize("n", [1, 5])
def test_choose(backend: Backend, case: Case, n: int) -> None:
    if case.name in ("wide", "power law"):
        pytest.skip("the oracle's matrix of all pairs of items takes too long")
    checks.choose_neighbours(backend, case, n)


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_into_buffers_twice(backend: Backend, case: Case, exact: bool) -> None:
    """Buffers are used, what they held before is forgotten, and each time the result is the same bits."""
    more, (n, m) = make_neighbours(case.name), case.y.shape
    counts = backend.counts(case.csr(backend.dtype), case.k, more.sources)
    factors = tuple(make_factor(backend, part) for part in (case.users, case.items, more.weights))
    out = (
        garbage(backend, n, case.k),
        garbage(backend, m, case.k),
        garbage(backend, m, more.sources.shape[1]),
    )
    want = on_host(backend, backend.allocate_with_neighbours(counts, *factors, exact=exact))
    got = on_host(backend, backend.allocate_with_neighbours(counts, *factors, exact=exact, out=out))
    for result, wanted, buffer in zip(got, want, on_host(backend, out), strict=True):
        assert_same(result, wanted)
        assert_same(buffer, wanted)


@pytest.mark.skipif("numpy" not in conftest.BACKENDS, reason="this process holds the simulated backend alone")
@pytest.mark.parametrize("name", ["K=30", "disjoint"])
def test_numpy_works_in_blocks_of_any_size(
    name: str, tolerance: Tolerance, dtype: np.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a few rows at once, where small data have but one block."""
    from hpf_gpu.backends import create

    monkeypatch.setattr("hpf_gpu.backends.numpy_neighbours._BLOCK_BYTES", 5 * 31 * 8)
    backend, case = create("numpy", dtype), make_case(name)
    checks.allocate_with_neighbours(backend, case, tolerance, "both", exact=False, temperature=1.0)
    checks.allocate_with_neighbours(backend, case, tolerance, "both", exact=True, temperature=1.0)
    checks.neighbour_rates(backend, case, tolerance)
    checks.choose_neighbours(backend, case, 5)
