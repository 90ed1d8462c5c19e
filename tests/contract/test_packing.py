"""Counts that are packed, to be written to a file, and unpacked again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from contract.cases import CASES, Case, make_case, make_factors, make_neighbours, on_host
from contract.tolerances import assert_same
from hpf_gpu.backends.protocol import Backend, Counts, Host

#: With counts of 8 bits, of more and in fractions, rows without any, and columns that need more than 16 bits.
NAMES = tuple(
    name
    for name in ("K=5", "one user", "one nonzero", "no nonzero", "power law", "wide", "tall", "huge counts",
                 "fractional counts")
    if name in CASES
)  # fmt: skip


def packed(backend: Backend, case: Case) -> tuple[Counts, dict[str, Host]]:
    """The counts of a case, and their arrays as a file would return them."""
    counts = backend.counts(case.csr(backend.dtype), case.k)
    arrays = backend.packed(counts)
    for array in arrays.values():
        array.setflags(write=False)
    return counts, arrays


def sums(backend: Backend, case: Case, counts: Counts) -> Iterator[Any]:
    """What the operations over nonzeros return."""
    users, items = make_factors(backend, case)
    theta, beta = backend.mean(users), backend.mean(items)
    yield from on_host(backend, backend.allocate(counts, users, items))
    yield from on_host(backend, backend.allocate(counts, users, items, exact=True))
    yield backend.log_rate_sum(counts, theta, beta)
    yield backend.log_normalizer_sum(counts, users, items)
    yield backend.log_factorial_sum(counts)
    scale = backend.asarray(np.ones(len(case.y)))
    yield backend.asnumpy(backend.log_count_products(counts, beta, scale, side="users"))


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.replace(" ", "-"))
def test_unpacked_counts_have_the_same_sums(backend: Backend, name: str) -> None:
    """The same bits, and in no array that may go once the counts are unpacked."""
    case = make_case(name)
    counts, arrays = packed(backend, case)
    memory = {name: array.copy() for name, array in arrays.items()}
    unpacked = backend.unpacked(memory, counts.shape, case.k)
    for array in memory.values():
        array[...] = 0
    assert (unpacked.shape, unpacked.nnz) == (counts.shape, counts.nnz)
    for got, want in zip(sums(backend, case, unpacked), sums(backend, case, counts), strict=True):
        assert_same(got, want)
    again = backend.packed(unpacked)
    assert {*again} == {*arrays}
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        assert_same(again[name], array)


@pytest.mark.parametrize("columns", [255, 256, 65535, 65536, 70000])
@pytest.mark.parametrize("rows", [1, 3])
def test_numbers_at_the_ends_of_types(backend: Backend, rows: int, columns: int) -> None:
    """Rows, columns and sizes of rows, of which the largest just fit, or just do not."""
    csr = sparse.csr_array(
        (np.ones(columns), (np.full(columns, rows - 1), np.arange(columns))), dtype=backend.dtype
    )
    counts = backend.counts(csr, 1)
    unpacked = backend.unpacked(backend.packed(counts), csr.shape, 1)
    for side, (own, other) in (("users", csr.shape), ("items", csr.shape[::-1])):
        ones, scale = backend.asarray(np.ones((other, 1))), backend.asarray(np.ones(own))
        got, want = (backend.log_count_products(y, ones, scale, side=side) for y in (unpacked, counts))
        assert_same(backend.asnumpy(got), backend.asnumpy(want))


def test_counts_take_as_few_bytes_as_hold_them(backend: Backend) -> None:
    """All take what the one with the most needs."""
    csr = make_case("K=5").csr(backend.dtype)

    def nbytes(largest: float) -> int:
        csr.data[0] = largest
        arrays = backend.packed(backend.counts(csr, 5))
        back = backend.packed(backend.unpacked(arrays, csr.shape, 5))
        assert max(array.max() for array in back.values() if array.dtype.kind in "uf") >= largest
        return sum(array.nbytes for array in arrays.values())

    least = nbytes(1)
    for largest, more in ((255, 0), (256, 1), (65535, 1), (65536, None), (0.5, None)):
        more = backend.dtype.itemsize - 1 if more is None else more
        assert nbytes(largest) == least + more * csr.nnz, largest


def test_counts_with_neighbours_are_not_packed(backend: Backend) -> None:
    case, neighbours = make_case("K=5"), make_neighbours("K=5")
    counts = backend.counts(case.csr(backend.dtype), case.k, neighbours.sources)
    with pytest.raises(TypeError, match="with neighbours"):
        backend.packed(counts)


def damaged(arrays: dict[str, Host]) -> Iterator[dict[str, Host]]:
    yield {}
    yield arrays | {"more": np.zeros(1)}
    for name, array in arrays.items():
        yield {other: kept for other, kept in arrays.items() if other != name}
        yield arrays | {name: array[:-1]}
        yield arrays | {name: array[:0]}
        yield arrays | {name: np.concatenate([array, array[-1:]])}
        yield arrays | {name: array[None]}
        yield arrays | {name: array.astype(np.float16)}
        yield arrays | {
            name: array.astype(array.dtype.newbyteorder()) if array.itemsize > 1 else array.view("?")
        }
        if name != "value":
            most = np.iinfo(array.dtype).max
            yield arrays | {name: np.full_like(array, most)}
            for place in (
                np.ndindex(array.shape) if array.size < 20 else [(0,), (array.size // 2,), (array.size - 1,)]
            ):
                changed = array.copy()
                changed[place] = most
                yield arrays | {name: changed}


@pytest.mark.parametrize("name", ["K=5", "power law"])
def test_damaged_arrays_are_errors(backend: Backend, name: str) -> None:
    if name not in CASES:
        pytest.skip("a case for processes without a sanitizer")
    case = make_case(name)
    counts, arrays = packed(backend, case)
    (n, m), k = counts.shape, case.k
    for wrong in damaged(arrays):
        with pytest.raises(ValueError, match=r"packed counts|instead of"):
            backend.unpacked(wrong, counts.shape, k)
    for shape in ((n + 1, m), (n - 1, m), (n, 1)):
        with pytest.raises(ValueError, match="packed counts"):
            backend.unpacked(arrays, shape, k)


@pytest.mark.parametrize("name", [name for name in ("K=5", "power law") if name in CASES])
def test_no_damage_leads_out_of_arrays(backend: Backend, name: str) -> None:
    """Numbers that are wrong but possible make other counts, of which none is lost."""
    case, rng = make_case(name), np.random.default_rng(0)
    counts, arrays = packed(backend, case)
    ones, scale = (
        backend.asarray(np.ones((counts.shape[1], case.k))),
        backend.asarray(np.ones(counts.shape[0])),
    )
    total = np.log1p(case.y).sum()
    taken = refused = 0
    for index in (name for name in arrays if name != "value"):
        for _ in range(12):
            changed = arrays[index].copy()
            places = rng.integers(0, changed.size, 2)
            changed.flat[places] = changed.flat[places[::-1]] + rng.integers(0, 2, 2).astype(changed.dtype)
            try:
                unpacked = backend.unpacked(arrays | {index: changed}, counts.shape, case.k)
            except ValueError:
                refused += 1
                continue
            taken += 1
            products = backend.asnumpy(backend.log_count_products(unpacked, ones, scale, side="users"))
            np.testing.assert_allclose(products[:, 0].sum(dtype=np.float64), total, rtol=1e-5)
    assert taken
    assert refused
