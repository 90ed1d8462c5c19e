"""How the CUDA backend lays out counts, reads sources and a user's arrays, checks launches; no CUDA here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends import cuda_input, cuda_layout, cuda_source
from hpf_gpu.backends.cuda_counts import DeviceCounts
from hpf_gpu.backends.cuda_launch import Kernel, pack
from hpf_gpu.backends.cuda_source import (
    FILES,
    MAX_FACTORS,
    MAX_NEIGHBOURS,
    TOP_PLACES,
    Knobs,
    Parameter,
    Struct,
    Variant,
    file_of,
)
from hpf_gpu.backends.cuda_stream import HostRows, Narrow


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


def test_launch_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long segments by the column in their middle, the others by length; equal ones as they were."""
    monkeypatch.setattr(cuda_layout, "_NEIGHBOURS", 1)
    half = cuda_layout.SEGMENT // 2
    size = np.array([3, half, half - 1, 2 * half, 3, 0, half])
    middle = np.array([5, 9, 0, 2, 1, 0, 2], np.int32)
    assert cuda_layout.launch_order(size, middle).tolist() == [3, 6, 1, 2, 0, 4, 5]
    assert cuda_layout.launch_order(size[:0], middle[:0]).tolist() == []


def test_launch_order_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among so many neighbours in the order of columns, long ones first."""
    monkeypatch.setattr(cuda_layout, "_NEIGHBOURS", 3)
    size = cuda_layout.SEGMENT - np.array([2, 1, 0, 2, 1, 0, 0])
    assert cuda_layout.launch_order(size, np.arange(7, dtype=np.int32)).tolist() == [2, 1, 0, 5, 4, 3, 6]


def test_logs_go_by_the_side_that_gathers_less() -> None:
    """By users, whose sums gather rows of items, where there are more users than items."""
    for shape, by_users in (((40, 9), True), ((9, 40), False)):
        sides: Any = (SimpleNamespace(shape=shape), SimpleNamespace(shape=shape[::-1]))
        assert DeviceCounts(*sides).gathers_less_by_users is by_users


def test_parts_in_launch_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a part begin from its first nonzero, and know their number among all."""
    monkeypatch.setattr(cuda_layout, "_NEIGHBOURS", 1)
    half = cuda_layout.SEGMENT // 2
    cut = cuda_layout.segmentation(np.cumsum([0, 1, 2 * half + 3, 0, half]))
    assert (cut.count, cut.nnz, cut.middle.tolist()) == (
        5,
        3 * half + 4,
        [0, 1 + half, 2 + 2 * half, 4 + 2 * half, 4 + 2 * half + half // 2],
    )
    begin, size, row, slot, number = cut.in_launch_order(slice(1, 5), np.array([9, 0, 0, 3]))
    assert number.tolist() == [4, 1, 2, 3]
    assert begin.tolist() == [2 * half + 3, 0, 2 * half, 2 * half + 3]
    assert size.tolist() == [half, 2 * half, 3, 0]
    assert row.tolist() == [3, 1, 1, 2]
    assert slot.tolist() == [-1, 0, 1, -1]


@pytest.mark.parametrize(
    ("begin", "most", "stops"),
    [
        ([0, 3, 6, 9], 6, [2, 3]),
        ([0, 3, 6, 9], 5, [1, 2, 3]),
        ([0, 3, 3, 9, 9, 9], 6, [2, 5]),
        ([0, 0, 0], 6, [2]),
        ([0, 9, 10, 12], 3, [1, 3]),  # a piece of too many is one by itself
        ([0], 6, []),
    ],
)
def test_parts(begin: list[int], most: int, stops: list[int]) -> None:
    parts = cuda_layout.parts_of(np.array(begin), most)
    assert [part.stop for part in parts] == stops
    assert [part.start for part in parts] == [0, *stops][: len(stops)]


@pytest.mark.parametrize(
    ("largest", "shape", "narrow"),
    [
        (255, (3, 1 << 16), ("u2", "u2", "u1")),
        (256, ((1 << 16) + 1, 3), ("u2", "i4", "u2")),
        (65535, (3, (1 << 16) + 1), ("i4", "u2", "u2")),
        (65536, (3, 4), ("u2", "u2", "f4")),
        (2.5, (3, 4), ("u2", "u2", "f4")),
    ],
)
@pytest.mark.parametrize("part", [2, 1 << 24])
def test_narrow_types(
    largest: float,
    shape: tuple[int, int],
    narrow: tuple[str, ...],
    part: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As small as loses nothing, wherever the largest count and the one that is not whole are."""
    monkeypatch.setattr(cuda_layout, "PART", part)
    for place in range(3):
        values = np.roll([largest, 1.0, 2.0], place)
        csr = sparse.csr_array((values, ([0, 1, 2], [0, 2, 1])), shape=shape)
        got = Narrow.of(csr, np.dtype("f4"))
        assert (got.by_users, got.by_items, got.value) == narrow
        assert got.nbytes == max(got.by_users.itemsize, got.by_items.itemsize) + got.value.itemsize


@pytest.mark.parametrize("part", [1, 7, 64, 1 << 24])
@pytest.mark.parametrize("shape", [(60, 45), (1, 90), (90, 1), (7, 300)])
def test_sorting_on_the_host(part: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy's CSC, nonzero by nonzero, sorted in pieces of any size."""
    monkeypatch.setattr(cuda_layout, "PART", part)
    rng = np.random.default_rng(0)
    y = rng.integers(1, 200, shape) * (rng.random(shape) < 0.3)
    csr, csc = sparse.csr_array(y), sparse.csr_array(y).tocsc()
    given = (csr.indptr.astype(np.int64), csr.indices.astype(np.uint16), csr.data.astype(np.uint8))
    got = HostRows(shape, *given).by_columns(np.empty(csr.nnz, np.uint16), np.empty(csr.nnz, np.uint8))
    assert got.shape == shape[::-1]
    np.testing.assert_array_equal(got.indptr, csc.indptr)
    np.testing.assert_array_equal(got.column, csc.indices)
    np.testing.assert_array_equal(got.value, csc.data)


def test_segments_beyond_32_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_layout, "MAX_NUMBER", 5)
    size = cuda_layout.SEGMENT
    assert len(cuda_layout.segmentation(np.array([0, 1, 1 + 4 * size])).row) == 5
    with pytest.raises(ValueError, match=f"6 segments of {size} counts are more than 32 bits"):
        cuda_layout.segmentation(np.array([0, 1, 2 + 4 * size]))


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
        groups = variant.gamma_threads // lanes
        assert variant.gamma_groups == groups
        gamma_update = groups * 2 * 8 * k + variant.real.itemsize * k
        allocate_exactly = 2 * 2 * 8 * k
        top_items = (
            variant.top_rows * (2 * TOP_PLACES + 1) * (variant.real.itemsize + 4) + 4 * variant.top_rows
        )
        assert max(gamma_update, allocate_exactly, top_items) <= 48 << 10, k


@pytest.mark.parametrize(
    ("real", "half"), [("f4", False), ("f8", False), ("f4", True)], ids=["float32", "float64", "mixed"]
)
def test_blocks_with_neighbours_fit_into_shared_memory(real: str, half: bool) -> None:
    """What a block takes for a table of neighbours, which always has free slots, and for its warps."""
    for neighbours in range(1, MAX_NEIGHBOURS + 1):
        for k in (1, 30, 64, 200, 512, MAX_FACTORS):
            variant = Variant(k, np.dtype(real), half, neighbours=neighbours)
            size = variant.real.itemsize
            table = variant.slots * 10 + neighbours * size
            of_warp = size * (neighbours + variant.width) + 2 * neighbours + 4 * 2 * 32
            exactly = 2 * 8 * (k + neighbours)
            assert neighbours < variant.slots <= 1 << 16
            assert max(table + variant.table_warps * of_warp + 64, exactly) <= 48 << 10, (k, neighbours)


def test_only_one_source_depends_on_neighbours() -> None:
    """The others are compiled once for all numbers of neighbours."""
    variant = Variant(30, np.dtype("f4"), neighbours=200)
    assert variant.of("neighbours.cu") is variant
    assert {variant.of(file) for file in FILES if file != "neighbours.cu"} == {Variant(30, np.dtype("f4"))}
    assert (variant.weights.k, variant.weights.width) == (200, 200)


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
    half = Variant(5, np.dtype("f4"), half=True).signatures()
    assert [p.type for p in half["weigh"] if p.name in ("own", "weight")] == [np.dtype("f2"), np.dtype("f4")]


def test_structs_are_read_off_the_sources() -> None:
    """As the compiler lays them out: 64-bit addresses, and an int with padding behind it."""
    variant = Variant(5, np.dtype("f4"))
    segments = variant.struct("Segments")
    assert segments.fields[0] == Parameter("begin", np.dtype("i8"), is_pointer=True)
    assert segments.fields[-1] == Parameter("count", np.dtype("i4"), is_pointer=False)
    assert (segments.dtype.fields["value"][1], segments.dtype.fields["count"][1]) == (48, 56)  # type: ignore[index]
    assert segments.dtype.itemsize == 64
    assert variant.signatures()["allocate"][0] == Parameter("segments", segments, is_pointer=False)
    assert Variant(5, np.dtype("f8")).struct("Segments") != segments


def test_structs_are_read_once() -> None:
    """They are packed many times in every iteration, and the sources are long."""
    first, again = (Variant(5, np.dtype("f4")).struct("Gamma") for _ in range(2))
    assert first is again
    assert first.dtype is again.dtype


def test_every_kernel_has_a_file() -> None:
    assert {file_of(name) for name in Variant(5, np.dtype("f4")).signatures()} == {
        "allocate.cu", "gamma.cu", "likelihood.cu", "predict.cu", "top_items.cu", "composed.cu",
        "log_counts.cu", "neighbours.cu", "item_to_item.cu", "counts.cu",
    }  # fmt: skip


def test_knobs_by_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_source.knobs_for(90) == Knobs()
    monkeypatch.setattr(cuda_source, "_KNOBS", {90: Knobs(threads=64)})
    assert cuda_source.knobs_for(90) == Knobs(threads=64)
    assert cuda_source.knobs_for(89) == Knobs()


def test_knobs_are_macros() -> None:
    macros = Variant(5, np.dtype("f4"), knobs=Knobs(threads=64, in_flight=2, min_blocks=3)).macros
    assert (macros["HPF_THREADS"], macros["HPF_IN_FLIGHT"], macros["HPF_MIN_BLOCKS"]) == (64, 2, 3)


class FakeArray(SimpleNamespace):
    """The attributes of a device array that a launch looks at."""

    __cuda_array_interface__ = None


def fake_array(
    dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], at: int = 256, device: int = 0
) -> FakeArray:
    kind = np.dtype(dtype)
    pointer = SimpleNamespace(ptr=at, device_id=device)
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
        (fake_array("f4", (3,), (4,), device=1), ValueError, "x is on device 1, not 0"),
    ],
)
def test_launch_refuses_arrays(argument: Any, error: type[Exception], message: str) -> None:
    kernel = Kernel("f", _never, (Parameter("x", np.dtype("f4"), is_pointer=True),), width=8, device=0)
    with pytest.raises(error, match=message):
        kernel(1, 32, argument)


@pytest.mark.parametrize(("kind", "number"), [("i4", 2**31), ("i4", 1.5), ("i4", -(2**31) - 1), ("u4", -1)])
def test_launch_refuses_numbers_that_do_not_fit(kind: str, number: float) -> None:
    kernel = Kernel("f", _never, (Parameter("n", np.dtype(kind), is_pointer=False),), width=8, device=0)
    with pytest.raises(ValueError, match="does not fit"):
        kernel(1, 32, number)


PAIR = Struct("Pair", (Parameter("x", np.dtype("f4"), True), Parameter("n", np.dtype("i4"), False)))


def test_structs_hold_addresses_and_keep_arrays() -> None:
    got: list[Any] = []
    kernel = Kernel(
        "f", lambda *launch: got.extend(launch[2]), (Parameter("pair", PAIR, False),), width=8, device=0
    )
    array = fake_array("f4", (3,), (4,))
    packed = pack(PAIR, 8, 0, array, 7)
    kernel(1, 32, packed)
    kernel(1, 32, pack(PAIR, 8, 0, None, 7))
    assert [tuple(value) for value in got] == [(256, 7), (0, 7)]
    assert packed.arrays[0] is array


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ((fake_array("f8", (3,), (8,)), 7), TypeError, "Pair: x is an array of float32, not float64"),
        ((fake_array("f4", (3, 5), (20, 4)), 7), ValueError, r"Pair: x is at 0x100 with strides \(20, 4\)"),
        ((None, 2**31), ValueError, "Pair: n=2147483648 does not fit int32"),
        ((None,), TypeError, "Pair takes 2 arguments, not 1"),
    ],
)
def test_structs_are_checked(values: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack(PAIR, 8, 0, *values)


def test_launch_refuses_another_struct() -> None:
    other = Struct("Pair", (Parameter("x", np.dtype("f8"), True), Parameter("n", np.dtype("i4"), False)))
    kernel = Kernel("f", _never, (Parameter("pair", PAIR, False),), width=8, device=0)
    for argument in (pack(other, 8, 0, None, 7), 7, None):
        with pytest.raises(TypeError, match="f: pair is a Pair of this model, not"):
            kernel(1, 32, argument)


def test_launch_counts_arguments_and_blocks() -> None:
    kernel = Kernel("f", _never, (Parameter("n", np.dtype("i4"), is_pointer=False),), width=8, device=0)
    with pytest.raises(TypeError, match="takes 1 arguments, not 2"):
        kernel(1, 32, 1, 2)
    with pytest.raises(ValueError, match="more than CUDA can launch"):
        kernel(2**31, 32, 1)
    kernel(0, 32, 1)  # nothing to do, and nothing launched


def test_launch_makes_numbers_of_the_kernels_type() -> None:
    got: list[Any] = []
    parameters = (Parameter("n", np.dtype("i8"), False), Parameter("a", np.dtype("f8"), False))
    Kernel("f", lambda *launch: got.extend(launch[2]), parameters, width=8, device=0)(1, 32, 7, 2)
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


# -- data that lies on a GPU, with NumPy in place of CuPy ------------------------------------------


def array_of_another_library(device: int | None, interface: bool = False) -> Any:
    """An object whose type says, by DLPack or by CUDA's interface, where it lies."""
    methods: dict[str, Any] = {}
    if device is not None:
        methods["__dlpack_device__"] = lambda self: (device, 0)
    if interface:
        methods["__cuda_array_interface__"] = {}
    return type("Tensor", (), methods)()


@pytest.mark.parametrize(
    ("array", "is_there"),
    [
        (array_of_another_library(2), True),  # kDLCUDA
        (array_of_another_library(13), True),  # kDLCUDAManaged
        (array_of_another_library(1), False),  # kDLCPU
        (array_of_another_library(3), False),  # kDLCUDAHost
        (array_of_another_library(10), False),  # kDLROCM
        (array_of_another_library(1, interface=True), False),
        (array_of_another_library(None, interface=True), True),
        (np.zeros(3), False),
        (object(), False),
    ],
)
def test_where_arrays_lie(array: Any, is_there: bool) -> None:
    assert cuda_input.is_device_array(array) is is_there


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u1", "u4", "u8", "f4", "f8"])
def test_ids_are_numbered_in_order_of_appearance(kind: str) -> None:
    ids = np.array([100, 7, 100, 0, 90, 7, 127]).astype(kind)
    row, names, rows = cuda_input._numbered(np, ids, "user", True)
    assert (row.tolist(), row.dtype) == ([0, 1, 0, 2, 3, 1, 4], np.int32)
    assert names is not None
    assert (names.tolist(), names.dtype, rows) == ([100, 7, 0, 90, 127], ids.dtype, 5)
    row, names, rows = cuda_input._numbered(np, ids, "user", False)
    assert (row.tolist(), row.dtype, names, rows) == (ids.tolist(), np.int32, None, 128)


@pytest.mark.parametrize("ids", [[-128, 127, -128], [2**63 - 3, 2**63 - 1, 2**63 - 2], [-(2**63), 5 - 2**63]])
def test_ids_at_the_ends_of_their_type(ids: list[int]) -> None:
    """No difference wraps and no bit is lost."""
    given = np.array(ids, np.int8 if ids[0] == -128 else np.int64)
    row, names, rows = cuda_input._numbered(np, given, "user", True)
    assert names is not None
    assert names[row].tolist() == ids
    assert rows == len(names) == len(set(ids))


@pytest.mark.parametrize(("reindex", "most"), [(False, 1_000_300), (True, 1_000_048)])
def test_how_far_ids_may_lie_apart(reindex: bool, most: int) -> None:
    """By the number of counts, here three."""
    row, _, rows = cuda_input._numbered(np, np.array([0, most, 1]), "user", reindex)
    assert (row.tolist(), rows) == (([0, 1, 2], 3) if reindex else ([0, most, 1], most + 1))
    with pytest.raises(ValueError, match="too far apart" if reindex else f"user id {most + 1} is not a row"):
        cuda_input._numbered(np, np.array([0, most + 1, 1]), "user", reindex)


def test_row_numbers_have_32_bits() -> None:
    """However many counts there are to go with them."""
    ids = np.lib.stride_tricks.as_strided(np.zeros(1, np.int64), (2**26,), (0,))
    high = np.array([2**31 - 1])

    class Many(np.ndarray[Any, Any]):
        def max(self, *_: Any, **__: Any) -> Any:
            return high[0]

    with pytest.raises(ValueError, match="user id 2147483647 is not a row number"):
        cuda_input._numbered(np, ids.view(Many), "user", False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 0.5, 2], None),
        ([True, False, True], None),
        ([1, 2, -1], "count -1 at position 2"),
        ([np.inf, np.nan, 1], "count inf at position 0"),
        ([1.0e19, 1.0e19, 1.0], r"add up to 2e\+19, and float32 holds 1\.84e\+19"),
        ([9.0e18, 9.0e18, 1.0], None),
        (np.array(["1", "2", "3"]), "counts of type <U1 are not numbers"),
    ],
)
def test_counts_are_checked_and_copied(given: Any, message: str | None) -> None:
    given = np.asarray(given)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            cuda_input._checked(np, given, np.dtype("f4"))
        return
    taken = cuda_input._checked(np, given, np.dtype("f4"))
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, given.astype(np.float32))
    already = given.astype(np.float32)
    assert not np.shares_memory(cuda_input._checked(np, already, np.dtype("f4")), already)


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_matrices_become_triplets(form: str) -> None:
    """With empty rows at both ends and a stored zero, which is dropped and counted."""
    dense = np.array([[0, 0, 0, 0], [5, 0, 0, 2], [0, 0, 3, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.float64)
    matrix = getattr(sparse, f"{form}_array")(dense)
    matrix.data[np.flatnonzero(matrix.data == 3)] = 0
    taken = cuda_input.from_matrix(np, matrix, np.dtype("f4"))
    got = sparse.coo_array((taken.value, (taken.row, taken.column)), shape=taken.shape)
    np.testing.assert_array_equal(got.toarray(), np.where(dense == 3, 0, dense))
    assert (taken.dropped, taken.row.dtype, taken.column.dtype) == (1, np.int32, np.int32)
    assert (taken.value > 0).all()


@pytest.mark.parametrize("shape", [(2**31, 3), (3, 2**31)])
def test_matrices_beyond_32_bits(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="in 32 bits, too few for"):
        cuda_input.from_matrix(np, SimpleNamespace(shape=shape), np.dtype("f4"))


def test_arrays_become_triplets() -> None:
    """Whoever has only counts of zero is no user, and no item."""
    table = np.array([[9, 1, 0], [7, 3, 2], [8, 1, 4], [7, 2, 0], [7, 1, 1]], np.float64)
    taken = cuda_input.from_array(np, table, np.dtype("f4"), True)
    assert (taken.shape, taken.dropped) == ((2, 2), 2)
    assert (taken.row.tolist(), taken.column.tolist(), taken.value.tolist()) == (
        [0, 1, 0],
        [0, 1, 1],
        [2, 4, 1],
    )
    assert taken.user_ids is not None
    assert taken.item_ids is not None
    assert (taken.user_ids.tolist(), taken.item_ids.tolist()) == ([7, 8], [3, 1])
    for bad in (table[:0], table[:, :2], table[0]):
        with pytest.raises(ValueError, match=r"must be \(n, 3\)"):
            cuda_input.from_array(np, bad, np.dtype("f4"), True)
    with pytest.raises(ValueError, match="no count is above zero"):
        cuda_input.from_array(np, table * [1, 1, 0], np.dtype("f4"), True)
    for number, told in ((0.5, "user id 0.5 is not one"), (-1, "user id -1 is not a row number")):
        table[1, 0] = number
        with pytest.raises(ValueError, match=told):
            cuda_input.from_array(np, table, np.dtype("f4"), False)
