"""How the CUDA backend lays out counts, reads its sources and holds launches against them: no CUDA needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpf_gpu import HPF
from hpf_gpu.backends import cuda_layout
from hpf_gpu.backends.cuda_launch import Kernel
from hpf_gpu.backends.cuda_source import MAX_FACTORS, THREADS, TOP_PLACES, Parameter, Variant


@pytest.mark.parametrize("lengths", [[0], [1, 0, 16, 17, 0], [256, 257, 1], [1000, 0, 0, 3, 512], []])
def test_segmentation(lengths: list[int]) -> None:
    """Segments cover every row in order, none is too long, and slots number those of long rows."""
    indptr = np.append(0, np.cumsum(lengths)).astype(np.int64)
    cut = cuda_layout.segmentation(indptr)
    sizes = np.diff(cut.begin)
    assert cut.begin[-1] == indptr[-1]
    assert (sizes <= cuda_layout.SEGMENT).all()
    for row, length in enumerate(lengths):
        mine = np.flatnonzero(cut.row == row)
        assert cut.begin[mine[0]] == indptr[row]
        assert sizes[mine].sum() == length
        assert len(mine) == max(1, -(-length // cuda_layout.SEGMENT))
        slots = cut.slot[mine]
        if len(mine) == 1:
            assert slots == -1
        else:
            place = int(np.flatnonzero(cut.long_row == row)[0])
            assert slots.tolist() == list(range(cut.long_begin[place], cut.long_begin[place + 1]))
    assert cut.slots == (cut.slot >= 0).sum()


@pytest.mark.parametrize(
    ("k", "real", "half", "width"),
    [
        (1, "f4", False, 8),
        (30, "f4", False, 32),
        (50, "f4", False, 56),
        (5, "f8", False, 8),
        (50, "f4", True, 64),
    ],
)
def test_rows_fill_sectors(k: int, real: str, half: bool, width: int) -> None:
    assert Variant(k, np.dtype(real), half).width == width


@pytest.mark.parametrize("real", ["f4", "f8"])
def test_blocks_fit_into_shared_memory(real: str) -> None:
    """Of 48 KiB, what a block of each kernel that keeps rows of K numbers there takes."""
    for k in range(1, MAX_FACTORS + 1):
        variant = Variant(k, np.dtype(real))
        lanes = min(32, 1 << (k - 1).bit_length())
        gamma_update = variant.gamma_threads // lanes * 2 * 8 * k
        log_normalizer_sums, allocate_exactly = THREADS // 32 * 8 * k, 2 * 2 * 8 * k
        top_items = (
            variant.top_rows * (2 * TOP_PLACES + 1) * (variant.real.itemsize + 4) + 4 * variant.top_rows
        )
        assert max(gamma_update, log_normalizer_sums, allocate_exactly, top_items) <= 48 << 10, k


@pytest.mark.parametrize(
    ("columns", "segments", "nnz", "strands"),
    [
        (10, 5, 1_000, 5),  # a segment each
        (10, 10_000, 10**6, 1024),
        (10**6, 10**6, 10**6, 2),  # as many counters as are always free
        (10**6, 10**6, 10**7, 10),  # a counter for each nonzero
        (10**8, 10**6, 10**7, 1),
        (0, 0, 0, 1),
    ],
)
def test_strands_of_a_sort(columns: int, segments: int, nnz: int, strands: int) -> None:
    assert cuda_layout.strands_of(columns, segments, nnz) == strands


def test_signatures_are_read_off_the_sources() -> None:
    signatures = Variant(5, np.dtype("f8"), half=False).signatures()
    assert len(signatures) > 12
    update = {parameter.name: parameter for parameter in signatures["gamma_update"]}
    assert update["shape"] == Parameter("shape", np.dtype("f8"), is_pointer=True)
    assert update["prior_shape"] == Parameter("prior_shape", np.dtype("f8"), is_pointer=False)
    assert update["n"] == Parameter("n", np.dtype("i8"), is_pointer=False)
    half = Variant(5, np.dtype("f4"), half=True).signatures()["allocate"]
    assert [p.type for p in half if p.name in ("own", "out")] == [np.dtype("f2"), np.dtype("f4")]


class FakeArray(SimpleNamespace):
    """The attributes of a device array that a launch looks at."""

    __cuda_array_interface__ = None


def fake_array(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], at: int = 256) -> FakeArray:
    kind = np.dtype(dtype)
    pointer = SimpleNamespace(ptr=at)
    size = int(np.prod(shape))
    return FakeArray(
        dtype=kind, ndim=len(shape), size=size, strides=strides, itemsize=kind.itemsize, data=pointer
    )


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        (fake_array("f8", (3,), (8,)), TypeError, "x is an array of float32, not float64"),
        (np.zeros(3, np.float32), TypeError, "x is an array of float32"),
        (7, TypeError, "x is an array of float32, not int"),
        (fake_array("f4", (3,), (8,)), ValueError, "strides"),
        (fake_array("f4", (3, 5), (20, 4)), ValueError, r"strides \(20, 4\)"),
        (fake_array("f4", (3, 5), (4, 32)), ValueError, r"strides \(4, 32\)"),
        (fake_array("f4", (3, 5), (32, 4), at=264), ValueError, "multiple of 16"),
    ],
)
def test_launch_refuses_arrays(argument: Any, error: type[Exception], message: str) -> None:
    kernel = Kernel("f", _never, (Parameter("x", np.dtype("f4"), is_pointer=True),), width=8)
    with pytest.raises(error, match=message):
        kernel(1, 32, argument)


@pytest.mark.parametrize(("kind", "number"), [("i4", 2**31), ("i4", 1.5), ("i4", -(2**31) - 1), ("u4", -1)])
def test_launch_refuses_numbers_that_do_not_fit(kind: str, number: float) -> None:
    kernel = Kernel("f", _never, (Parameter("n", np.dtype(kind), is_pointer=False),), width=8)
    with pytest.raises(ValueError, match="does not fit"):
        kernel(1, 32, number)


def test_launch_counts_arguments_and_blocks() -> None:
    kernel = Kernel("f", _never, (Parameter("n", np.dtype("i4"), is_pointer=False),), width=8)
    with pytest.raises(TypeError, match="takes 1 arguments, not 2"):
        kernel(1, 32, 1, 2)
    with pytest.raises(ValueError, match="more than CUDA can launch"):
        kernel(2**31, 32, 1)
    kernel(0, 32, 1)  # nothing to do, and nothing launched


def test_launch_makes_numbers_of_the_kernels_type() -> None:
    got: list[Any] = []
    parameters = (Parameter("n", np.dtype("i8"), False), Parameter("a", np.dtype("f8"), False))
    Kernel("f", lambda *launch: got.extend(launch[2]), parameters, width=8)(1, 32, 7, 2)
    assert [(type(number), number) for number in got] == [(np.int64, 7), (np.float64, 2.0)]


def _never(*_: Any) -> None:
    raise AssertionError("launched")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "mixed", "backend": "numpy"}, "precision='mixed' needs backend='cuda', not 'numpy'"),
        ({"allocate": "cusparse", "backend": "openmp"}, "allocate='cusparse' needs backend='cuda'"),
        ({"precision": "half"}, "precision='half' is unknown"),
        ({"precision": "mixed", "use_float": False}, "needs use_float=True"),
        ({"precision": "mixed", "allocate": "cusparse"}, "needs allocate='fused'"),
    ],
)
def test_options_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HPF(**arguments)
