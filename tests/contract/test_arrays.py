"""Arrays and counts on their way into a backend's memory and back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from contract.cases import Case, make_factors
from contract.tolerances import assert_same
from hpf_gpu.backends.protocol import Backend


@pytest.mark.parametrize(
    "shape", [(7,), (1,), (6, 1), (1, 1), (5, 3), (4, 30), (3, 32), (2, 200), (1, 5), (0, 5)]
)
@pytest.mark.parametrize("layout", ["C", "F", "strided", "float32", "int64"])
def test_round_trip(backend: Backend, shape: tuple[int, ...], layout: str) -> None:
    """A matrix arrives in ``dtype``, a vector in float64, whatever the host's type and order."""
    host = np.arange(math.prod(shape), dtype=np.float64).reshape(shape) + 1
    if layout == "strided":
        host = np.repeat(host, 2, axis=-1)[..., ::2]
    elif layout == "F":
        host = np.asfortranarray(host)
    elif layout != "C":
        host = host.astype(layout)
    back = backend.asnumpy(backend.asarray(host))
    assert back.dtype == (backend.dtype if len(shape) == 2 else np.float64)
    assert back.flags.c_contiguous
    assert_same(back, host)


def test_vectors_keep_float64(backend: Backend) -> None:
    vector = np.array([1 / 3, 1e300, 1 + 2**-50])
    assert_same(backend.asnumpy(backend.asarray(vector)), vector)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (5, 3), (2, 32)])
def test_transfers_copy(backend: Backend, shape: tuple[int, ...]) -> None:
    """Neither side sees what is written to the other afterwards."""
    host = np.ones(shape, backend.dtype if len(shape) == 2 else np.float64)
    array = backend.asarray(host)
    host[...] = 2
    copy = backend.asnumpy(array)
    assert (copy == 1).all()
    copy[...] = 3
    assert (backend.asnumpy(array) == 1).all()


def test_array_arithmetic(backend: Backend) -> None:
    """What inference does to arrays without asking the backend."""
    vector, matrix = np.array([1.0, 2.0, 4.0]), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    v, m = backend.asarray(vector), backend.asarray(matrix)
    assert_same(backend.asnumpy(v + v), vector + vector)
    assert_same(backend.asnumpy(0.5 + v), 0.5 + vector)
    assert_same(backend.asnumpy(v * v), vector * vector)
    assert_same(backend.asnumpy(3.0 / v), 3.0 / vector)
    assert_same(backend.asnumpy((3.0 / v)[:, None]), (3.0 / vector)[:, None])
    assert float((v * v).sum()) == 21.0
    m += backend.asarray(matrix)
    assert_same(backend.asnumpy(m), 2 * matrix)
    m *= 0.5
    m += m * 0.25
    assert_same(backend.asnumpy(m), 1.25 * matrix)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3), (7, 32), (7, 200)])
@pytest.mark.parametrize("numbers", [[5, 0, 3], [2], [], list(range(7))], ids=len)
def test_rows(backend: Backend, shape: tuple[int, ...], numbers: list[int]) -> None:
    """Selected rows are a copy, laid out as operations take them; assigned ones leave the others alone."""
    host, rows = np.arange(1.0, math.prod(shape) + 1).reshape(shape), np.array(numbers, np.int64)
    array = backend.asarray(host)
    selected = backend.select_rows(array, rows)
    assert_same(backend.asnumpy(selected), host[rows])
    assert backend.asnumpy(selected).dtype == backend.asnumpy(array).dtype
    if len(shape) == 2 and numbers:
        assert backend.distance(selected, backend.asarray(host[rows])) == 0
        selected *= 2.0
        assert_same(backend.asnumpy(array), host)
    target, values = backend.asarray(host), np.full((len(rows), *shape[1:]), -1.0)
    backend.assign_rows(target, rows, backend.asarray(values))
    want = host.copy()
    want[rows] = values
    assert_same(backend.asnumpy(target), want)


@pytest.mark.parametrize("columns", [[0], [4, 1], [0, 1, 2, 3, 4]], ids=str)
def test_columns(backend: Backend, columns: list[int]) -> None:
    """Columns are copied, in a layout that kernels take, and one can be overwritten with a number."""
    host = np.random.default_rng(6).random((7, 5)).astype(backend.dtype)
    array = backend.asarray(host)
    selected = backend.select_columns(array, np.array(columns))
    assert_same(backend.asnumpy(selected), np.ascontiguousarray(host[:, columns]))
    assert backend.distance(selected, backend.asarray(host[:, columns])) == 0
    selected *= 2.0
    assert_same(backend.asnumpy(array), host)
    array[:, 3] = 2.0**120
    host[:, 3] = 2.0**120
    assert_same(backend.asnumpy(array), host)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_counts(backend: Backend, case: Case, index: type) -> None:
    """Shape and number of nonzeros are kept; the matrix that was handed over is left alone."""
    csr = case.csr(backend.dtype, index)
    before = [array.copy() for array in (csr.data, csr.indices, csr.indptr)]
    counts = backend.counts(csr, case.k)
    users, items = make_factors(backend, case)
    for _ in range(2):
        backend.allocate(counts, users, items)
    backend.log_normalizer_sum(counts, users, items)
    assert counts.shape == case.y.shape
    assert counts.nnz == np.count_nonzero(case.y)
    for array, kept in zip((csr.data, csr.indices, csr.indptr), before, strict=True):
        assert array.dtype == kept.dtype
        assert_same(array, kept)


@pytest.mark.parametrize("shape", [(2**31, 2), (2, 2**31)], ids=["rows", "columns"])
def test_more_rows_or_columns_than_32_bits_number(backend: Backend, shape: tuple[int, int]) -> None:
    if backend.name == "numpy":
        pytest.skip("NumPy numbers them in 64 bits")

    class Huge:
        indptr = indices = np.zeros(3, np.int64)
        data = np.zeros(0)
        nnz = 0

    Huge.shape = shape
    with pytest.raises(ValueError, match=rf"32 bits, too few for \({shape[0]}, {shape[1]}\)"):
        backend.counts(Huge, 3)
