"""What answers are made of: predict_pairs and top_items."""

from __future__ import annotations

import tracemalloc

import conftest
import numpy as np
import oracle
import pytest

from contract import checks
from contract.cases import Case, as_csr, lists_of_items
from contract.tolerances import Tolerance, assert_same
from hpf_gpu.backends.protocol import Backend


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_predict_pairs(backend: Backend, case: Case, tolerance: Tolerance, index: type) -> None:
    checks.predict_pairs(backend, case, tolerance, index)


def test_predict_no_pairs(backend: Backend) -> None:
    none = np.zeros(0, np.int64)
    ones = backend.asarray(np.ones((3, 5)))
    assert backend.predict_pairs(ones, ones, none, none).shape == (0,)


@pytest.mark.parametrize("length", [1, 10])
def test_top_items(backend: Backend, case: Case, tolerance: Tolerance, length: int) -> None:
    checks.top_items(backend, case, tolerance, length)


@pytest.mark.parametrize("length", [1, 5, 64, 150, 600])
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (1, 100, 3), (3, 64, 1), (50, 130, 5), (7, 1000, 33)])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_top_items_of_equal_scores(
    backend: Backend, n: int, m: int, k: int, length: int, index: type
) -> None:
    """Small whole numbers, so that no score is rounded and most are tied: the right columns, one by one."""
    rng = np.random.default_rng(m)
    theta, beta = rng.integers(0, 3, (n, k)).astype(float), rng.integers(0, 3, (m, k)).astype(float)
    nothing, all_but_one = [[] for _ in range(n)], [list(range(1, m)) for _ in range(n)]
    everything = [list(range(m)) for _ in range(n)]
    for exclude in (nothing, all_but_one, everything, lists_of_items(n, m)):
        want = oracle.top_items(theta @ beta.T, length, exclude)
        got = backend.top_items(backend.asarray(theta), backend.asarray(beta), length, as_csr(exclude, index))
        for one, wanted in zip(got, want, strict=True):
            assert_same(one, wanted)
        arrays = backend.asarray(theta[:8]), backend.asarray(beta)
        bounds = backend.score_bounds(arrays[1])
        got = backend.top_items(*arrays, length, as_csr(exclude[:8], index), None, bounds)
        for one, wanted in zip(got, want, strict=True):
            assert_same(one, wanted[:8])
    without = backend.top_items(backend.asarray(theta), backend.asarray(beta), length)
    for one, wanted in zip(without, oracle.top_items(theta @ beta.T, length, nothing), strict=True):
        assert_same(one, wanted)


def test_top_items_of_any_sign_and_order(backend: Backend) -> None:
    """Scores below zero and rising ones, which displace one another, are no special case."""
    beta = np.arange(-500.0, 500.0)[:, None]
    theta = np.array([[1.0], [-1.0], [0.0]])
    columns, scores = backend.top_items(backend.asarray(theta), backend.asarray(beta), 4)
    assert columns.tolist() == [[999, 998, 997, 996], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert scores.tolist() == [[499, 498, 497, 496], [500, 499, 498, 497], [0, 0, 0, 0]]
    for length in (999, 1000, 1001, 1002):  # of all but one, all, and more than there are
        columns, _ = backend.top_items(backend.asarray(theta), backend.asarray(beta), length)
        want = np.full((3, 1002), -1)
        want[:, :1000] = np.arange(1000)
        want[0, :1000] = want[0, 999::-1]
        assert_same(columns, want[:, :length])
    below, _ = backend.top_items(backend.asarray(theta), backend.asarray(beta[:70] - 500), 2)
    assert below.tolist() == [[69, 68], [0, 1], [0, 1]]


def test_top_items_of_nobody_and_of_nothing(backend: Backend) -> None:
    nobody, somebody, items = (backend.asarray(np.ones(shape)) for shape in ((0, 3), (2, 3), (4, 3)))
    for exclude in (None, as_csr([])):
        columns, scores = backend.top_items(nobody, items, 5, exclude)
        assert columns.shape == scores.shape == (0, 5)
    columns, scores = backend.top_items(somebody, nobody, 2)
    assert columns.tolist() == [[-1, -1]] * 2
    assert np.isneginf(scores).all()


@pytest.mark.parametrize(
    ("n", "m"), [(700, 70), (3, 6_000)] if conftest.SIMULATED else [(70_000, 70), (3, 600_000)]
)
def test_top_items_where_blocks_meet(backend: Backend, n: int, m: int) -> None:
    """More users, and more items, than are worked on at once."""
    beta = np.random.default_rng(1).permutation(m)[:, None].astype(float)  # exact in float32
    theta, best = np.ones((n, 1)), np.argsort(-beta[:, 0])
    exclude = [[int(best[u % 5])] for u in range(n)]
    columns, _ = backend.top_items(backend.asarray(theta), backend.asarray(beta), 6, as_csr(exclude))
    for residue in range(5):
        want = np.delete(best[:7], residue)
        assert (columns[residue::5] == want[:6]).all()


def test_top_items_in_bounded_memory(backend: Backend) -> None:
    """Of 30 million scores, 120 or 240 MB, only a few are there at once."""
    rng = np.random.default_rng(0)
    theta, beta = (backend.asarray(rng.random((n, 3))) for n in (500, 60_000))
    tracemalloc.start()
    backend.top_items(theta, beta, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 70e6  # 32 MB measured; what compiled code allocates itself is not in it
