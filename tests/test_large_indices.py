"""Index arithmetic beyond 2^31, with memory that is never touched: files with holes, and strides of zero."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpf_gpu.backends import cuda_layout
from hpf_gpu.backends.cuda_source import TOP_PLACES, Variant, source
from hpf_gpu.backends.numpy_backend import NumpyBackend
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.seen import continued, items_of
from hpf_gpu.data.triplets import indptr_of

MOST = 2**31 - 1  # that 32 bits hold


@pytest.fixture
def holes(tmp_path: Path) -> Callable[..., np.ndarray]:
    """A function that makes arrays of zeros of any size, in files that take no room on the disk."""
    if sys.platform == "win32":
        pytest.skip("files on Windows have holes only if they are asked for")

    def zeros(*shape: int, dtype: type) -> np.ndarray:
        return np.memmap(tmp_path / str(len(list(tmp_path.iterdir()))), dtype, "w+", shape=shape)

    return zeros


def test_ascending_rows() -> None:
    """As many nonzeros as 32 bits do not hold, all in one row of two."""
    rows = np.broadcast_to(np.int32(1), MOST + 5)
    assert indptr_of(rows, 2).tolist() == [0, 0, MOST + 5]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_users_behind_two_billion_counts(dtype: type) -> None:
    """Users who are added have their items behind those of all others."""
    had = np.array([0, MOST - 1], dtype)
    assert continued(had, np.array([0, 1, 1], np.int32)).tolist() == [0, MOST - 1, MOST, MOST]
    assert continued(had, np.array([0, 1, 5], np.int32)).tolist() == [0, MOST - 1, MOST, MOST + 4]
    assert continued(had, np.array([0], np.int32)).tolist() == had.tolist()


def test_items_behind_two_billion_counts(holes: Callable[..., np.ndarray]) -> None:
    items = holes(MOST + 9, dtype=np.int32)
    items[[5, -3, -2, -1]] = 3, 7, 8, 9
    indptr = np.array([0, 4, 6, MOST + 6, MOST + 9])
    starts, found = items_of(np.array([3, 1]), (indptr, items))
    assert (starts.tolist(), found.tolist()) == ([0, 3, 5], [7, 8, 9, 0, 3])


def _on_host(name: str) -> Backend:
    if name == "numpy":
        return NumpyBackend(np.dtype(np.float32))
    module = pytest.importorskip("hpf_gpu.backends.openmp_backend")
    return module.OpenMPBackend(np.dtype(np.float32))


@pytest.mark.parametrize("name", ["numpy", "openmp"])
def test_rows_times_factors(name: str, holes: Callable[..., np.ndarray]) -> None:
    """Rows that begin behind 2^31 numbers of a matrix are found, whichever of the two it is."""
    backend, k = _on_host(name), 64
    large = holes(MOST // k + 3, k, dtype=np.float32)
    small = np.arange(1.0, 2 * k + 1, dtype=np.float32).reshape(2, k)
    large[-1] = 2.0
    rows, columns = np.array([len(large) - 1, 0, len(large) - 1]), np.array([1, 1, 0])
    wanted = [2 * small[1].sum(), 0.0, 2 * small[0].sum()]
    assert backend.predict_pairs(large, small, rows, columns).tolist() == wanted
    assert backend.predict_pairs(small, large, columns, rows).tolist() == wanted
    assert backend.select_rows(large, rows).sum(axis=1).tolist() == [2.0 * k, 0.0, 2.0 * k]
    backend.assign_rows(large, rows[:1], np.full((1, k), 3.0, np.float32))
    assert (large[-1].tolist(), large[-2].any()) == ([3.0] * k, False)


def test_segments_of_two_billion_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments begin where they do, and those of a part from its first nonzero."""
    size = 1 << 29
    monkeypatch.setattr(cuda_layout, "SEGMENT", size)
    monkeypatch.setattr(cuda_layout, "_NEIGHBOURS", 1)
    indptr = np.array([0, 2, 4 * size + 7, 8 * size])
    cut = cuda_layout.segmentation(indptr)
    first = [0, *(2 + size * i for i in range(5)), *(4 * size + 7 + size * i for i in range(4))]
    assert cut.begin.tolist() == [*first, 8 * size]
    assert cut.middle.tolist() == [(a + b) // 2 for a, b in zip(first, [*first[1:], 8 * size], strict=True)]
    part = slice(6, 10)
    begin, sizes, row, _, number = cut.in_launch_order(part, np.arange(4, dtype=np.int32))
    assert dict(zip(number.tolist(), begin.tolist(), strict=True)) == {6 + i: size * i for i in range(4)}
    assert sizes.sum() == 4 * size - 7
    assert row.tolist() == [2] * 4
    assert [one.stop for one in cuda_layout.parts_of(cut.begin, 3 * size)] == [3, 6, 9, 10]


def test_steps_of_kernels_stay_in_range() -> None:
    """Loops of ``top_items`` and ``add_scores``, by the threads of a block, over the most columns."""
    threads = TOP_PLACES
    last = range(0, cuda_layout.MAX_NUMBER, threads)[-1]
    assert last + threads <= MOST
    assert "item_threads = 256" in source(("item_to_item.cu",))


def test_memory_of_a_trillion_counts() -> None:
    """The bytes of a fit are exact whole numbers."""
    variant = Variant(64, np.dtype(np.float32))
    bytes_of = [cuda_layout.bytes_of_fit(variant, (10**9, 10**8), z) for z in (10**12, 10**12 + 128)]
    assert bytes_of[0] > 16 * 10**12
    assert bytes_of[1] - bytes_of[0] == 128 * 16 + 24 + 256  # counts, a segment, and its sum
    streamed = [
        cuda_layout.bytes_of_fit(variant, (10**9, 10**8), z, streamed=3) for z in (10**12, 10**12 + 128)
    ]
    assert streamed[1] - streamed[0] == 24 + 256
