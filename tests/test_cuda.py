"""What only the CUDA backend has: its copy by items, memory, options, and data that lies on a GPU.

Runs on a GPU, and without one in the legs of test_simulated_cuda.py.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import conftest
import numpy as np
import oracle
import pandas as pd
import pytest
from contract import checks
from contract.cases import (
    Case,
    Parameters,
    as_csr,
    disjoint,
    expected_log_normalizer_sum,
    expected_statistics,
    expected_with_neighbours,
    factor_on_host,
    float32_exact,
    garbage,
    make_case,
    make_counts,
    make_factor,
    make_factors,
    make_neighbours,
    make_parameters,
    rates_of,
)
from contract.tolerances import assert_close, assert_near, tolerance_of
from parity import MATRICES, relative_error
from problems import SMALL, rule, run_fit
from scipy import sparse

from hpf_gpu import HPF, BackendUnavailable, Counts, DeviceError, NotEnoughMemory
from hpf_gpu.backends import create, cuda_layout
from hpf_gpu.backends.cuda_counts import Sorted
from hpf_gpu.backends.cuda_input import Triplets, from_matrix
from hpf_gpu.backends.cuda_launch import pack
from hpf_gpu.backends.cuda_source import Variant
from hpf_gpu.backends.protocol import Full, RankOne
from hpf_gpu.model.inference import iterate
from hpf_gpu.model.priors import POINT_MASS_RATE, UNIT_RATE

if "cuda" not in conftest.BACKENDS:
    pytest.skip(f"cuda: {conftest.MISSING['cuda']}", allow_module_level=True)

# -- the device --------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["float32", "float64"])
def cuda(request: pytest.FixtureRequest) -> Any:
    return create("cuda", np.dtype(request.param))


@pytest.fixture(scope="session")
def cuda32() -> Any:
    return create("cuda", np.dtype(np.float32))


def test_devices_are_told(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, compute capability and memory of each; one that does not answer has a line that says so."""
    import cupy as cp

    from hpf_gpu.backends import cuda_backend

    runtime, properties = cp.cuda.runtime, cp.cuda.runtime.getDeviceProperties(0)
    capability = f"sm {properties['major']}.{properties['minor']}"
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "memGetInfo", lambda: (3 << 29, 5 << 30))
        line = f"cuda:0 is {properties['name'].decode()}, {capability}, 1.50 GiB of 5.00 GiB free"
        assert cuda_backend.describe_devices()[0] == line
        assert cuda.describe() == f"{line}, CuPy {cp.__version__}, {cuda.dtype}"
        mixed = create("cuda", np.dtype(np.float32), precision="mixed")
        assert mixed.describe().endswith(", half precision in float32")

    def fails() -> Any:
        raise runtime.CUDARuntimeError(2)

    monkeypatch.setattr(runtime, "memGetInfo", fails)
    monkeypatch.setattr(runtime, "getDeviceCount", lambda: 1)
    (line,) = cuda_backend.describe_devices()
    assert line.startswith("cuda:0: cudaError")


def test_a_compiler_that_does_not_work_is_explained(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy as cp

    from hpf_gpu.backends import cuda_backend

    class Module:
        def __init__(self, **_: Any) -> None:
            pass

        def get_function(self, name: str) -> Any:
            raise RuntimeError("libnvrtc.so.13: cannot open shared object file")

    monkeypatch.setattr(cp, "RawModule", Module)
    monkeypatch.setattr(cuda_backend, "find_fault", lambda error: BackendUnavailable(f"told: {error}"))
    with pytest.raises(BackendUnavailable, match="told: libnvrtc"):
        cuda_backend._compile("counts.cu", Variant(1, cuda.dtype), 0)


def random_counts(n: int = 60, m: int = 45, nnz: int = 700, seed: int = 0) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    pairs = rng.choice(n * m, nnz, replace=False)
    values = rng.geometric(0.4, nnz).astype(np.float64)
    return sparse.coo_array((values, (pairs // m, pairs % m)), shape=(n, m)).tocsr()


@pytest.mark.parametrize(
    ("shape", "segment", "strands"),
    [
        *(((60, 45), 16, 1024), ((1, 700), 16, 1024), ((700, 1), 16, 1024), ((3, 900), 16, 1024)),
        # Strands of several segments; segments that a warp needs several steps for.
        *(((60, 45), 80, 2), ((300, 3), 16, 2), ((1, 700), 80, 3)),
    ],
)
def test_counts_by_items(
    cuda: Any, shape: tuple[int, int], segment: int, strands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy by items is SciPy's CSC, nonzero by nonzero."""
    monkeypatch.setattr(cuda_layout, "SEGMENT", segment)
    monkeypatch.setattr(cuda_layout, "_MAX_STRANDS", strands)
    csr = random_counts(*shape, nnz=min(700, shape[0] * shape[1] // 2))
    by_items, csc = segments_of(cuda.counts(csr, 5).items), csr.tocsc()
    np.testing.assert_array_equal(by_items["column"].get(), csc.indices)
    np.testing.assert_array_equal(by_items["value"].get(), csc.data.astype(cuda.dtype))


def segments_of(side: Any) -> dict[str, Any]:
    """The only part of one side of counts on the device."""
    (segments,) = side.parts
    fields: dict[str, Any] = segments.fields
    return fields


@pytest.mark.parametrize("shape", [(60, 45), (1, 700), (700, 1), (3, 900)])
def test_launch_order_keeps_segments(
    cuda: Any, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each segment is started once, with its own size, row, slot and number, whatever the order."""
    monkeypatch.setattr(cuda_layout, "SEGMENT", 16)
    csr = random_counts(*shape, nnz=min(700, shape[0] * shape[1] // 2))
    counts = cuda.counts(csr, 5)
    for at, indptr in ((counts.users, csr.indptr), (counts.items, csr.tocsc().indptr)):
        cut, found = cuda_layout.segmentation(indptr.astype(np.int64)), segments_of(at)
        names = ("begin", "size", "row", "slot", "number")
        launched = np.stack([found[name].get() for name in names], axis=1)
        wanted = np.stack([cut.begin[:-1], np.diff(cut.begin), cut.row, cut.slot, range(at.count)], axis=1)
        assert sorted(launched.tolist()) == sorted(wanted.tolist())
        middle = launched[:, 0] + launched[:, 1] // 2
        column = found["column"].get()[np.minimum(middle, csr.nnz - 1)]
        order = cuda_layout.launch_order(launched[:, 1], column)
        np.testing.assert_array_equal(order, np.arange(at.count))


@pytest.mark.parametrize("strands", [1, 2, 5])
def test_triplets_by_items(cuda: Any, strands: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triplets in any order, most of them of a few columns, are sorted stably; each keeps its own row."""
    import cupy as cp

    monkeypatch.setattr(cuda_layout, "SEGMENT", 80)
    monkeypatch.setattr(cuda_layout, "_MAX_STRANDS", strands)
    rng = np.random.default_rng(0)
    column, row = rng.integers(0, 3, 500).astype(np.int32), rng.integers(0, 60, 500).astype(np.int32)
    value = np.arange(500).astype(cuda.dtype)
    cut = cuda_layout.segmentation(np.array([0, 500]))
    unsorted = Sorted((1, 3), cut, cp.asarray(column), cp.asarray(value))
    by_items = cuda._sorter.by_columns(unsorted, cp.asarray(row), 60)
    order = np.argsort(column, kind="stable")
    assert by_items.shape == (3, 60)
    np.testing.assert_array_equal(by_items.cut.indptr, np.searchsorted(column[order], [0, 1, 2, 3]))
    np.testing.assert_array_equal(by_items.column.get(), row[order])
    np.testing.assert_array_equal(by_items.value.get(), value[order])


@pytest.mark.parametrize("column", [-1, 45])
def test_columns_outside_are_refused(cuda: Any, column: int) -> None:
    csr = random_counts()
    csr.indices[17] = column
    with pytest.raises(ValueError, match="outside the 45 columns"):
        cuda.counts(csr, 5)


@pytest.mark.parametrize("k", [513, 1024])
def test_most_factors(cuda: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    case = Case("k", make_counts(rng, 9, 7, 40), make_parameters(rng, 9, k), make_parameters(rng, 7, k))
    users, items = make_factors(cuda, case)
    wanted = oracle.allocate(case.y, case.users.gamma.expected_log, case.items.gamma.expected_log)
    for exact in (False, True):
        got = cuda.allocate(cuda.counts(case.csr(cuda.dtype), k), users, items, exact=exact)
        for statistic, want in zip(got, wanted, strict=True):
            assert_close(cuda.asnumpy(statistic), want, tolerance_of("cuda", cuda.dtype.name).allocate)
    with pytest.raises(ValueError, match="k=1025: the cuda backend supports at most 1024"):
        cuda.counts(case.csr(cuda.dtype), 1025)


def triangle(k: int, lows: tuple[float, float] | None = None) -> Case:
    """Rows and columns of every length from 0 to 130; with ``lows``, many products underflow."""
    rng, (n, m) = np.random.default_rng(k), (131, 130)
    y = np.tril(rng.geometric(0.3, (n, m)), -1).astype(np.float64)
    if conftest.SIMULATED in ("asan", "tsan"):  # a few lengths, for they take minutes
        y[np.arange(n) % 13 > 0] = 0
    if lows is None:
        return Case("triangle", y, make_parameters(rng, n, k), make_parameters(rng, m, k))
    shapes = (disjoint(size, k, rng.uniform(*lows, (size, 1))) for size in (n, m))
    users, items = (make_parameters(rng, len(shape), k, shape) for shape in shapes)
    return Case("triangle", y, users, items)


#: Number of factors, precision and allocation: ways for rows to lie over the lanes of a warp that the
#: contract's cases lack, and those with little data there.
LAYOUTS = {
    "K=5": (5, {}),
    "K=12": (12, {}),
    "K=300": (300, {}),
    "K=5, composed": (5, {"allocate": "cusparse"}),
    "K=40, mixed": (40, {"precision": "mixed"}),
    "K=200, mixed": (200, {"precision": "mixed"}),
}


@pytest.mark.parametrize("layout", LAYOUTS if conftest.SIMULATED in (None, "fast") else ["K=5"])
@pytest.mark.parametrize("underflow", [False, True], ids=["", "underflow"])
def test_allocate_and_log_sums_of_every_length(
    cuda: Any, layout: str, underflow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number of nonzeros that a warp may find left, in segments that it needs several steps for."""
    monkeypatch.setattr(cuda_layout, "SEGMENT", 100)
    k, options = LAYOUTS[layout]
    if options and cuda.dtype != np.float32:
        pytest.skip("the options are tried in float32")
    backend = create("cuda", cuda.dtype, **options)
    # Products with low shapes lie on both sides of where the log-sum-exp begins, those of half precision
    # where its subnormal numbers have a few bits left.
    lows = {"float32": (0.008, 0.05), "float64": (0.0025, 0.005)}[cuda.dtype.name]
    if "precision" in options:
        lows = (0.04, 0.065)
    case = triangle(k, lows if underflow else None)
    users, items = make_factors(backend, case)
    counts = backend.counts(case.csr(backend.dtype), k)
    log_theta, log_beta = case.users.gamma.expected_log, case.items.gamma.expected_log
    tolerance = tolerance_of("cuda", cuda.dtype.name)
    for exact in (False, True):
        got = backend.allocate(counts, users, items, exact=exact)
        for statistic, want in zip(got, oracle.allocate(case.y, log_theta, log_beta), strict=True):
            if "precision" in options and not exact:
                error = np.abs(backend.asnumpy(statistic) - want)
                assert (error <= MIXED * want.sum(axis=1, keepdims=True)).all()
            else:
                assert_close(backend.asnumpy(statistic), want, tolerance.allocate)
    want, total = oracle.log_normalizer_sum(case.y, log_theta, log_beta), float(case.y.sum())
    limit = MIXED if "precision" in options else tolerance.log_sums
    assert_near(backend.log_normalizer_sum(counts, users, items), want, limit, abs(want) + total)
    theta, beta = (float32_exact(side.gamma.mean) for side in (case.users, case.items))
    want = oracle.log_rate_sum(case.y, theta, beta)
    got_sum = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
    assert_near(got_sum, want, tolerance.log_sums, abs(want) + total)
    want = oracle.log_factorial_sum(case.y)
    assert_near(backend.log_factorial_sum(counts), want, tolerance.gamma_elbo, want)


def test_allocate_for_more_rows_than_blocks(cuda: Any) -> None:
    """The warps that do what underflowed take several segments each, and each segment once."""
    rng, n, m, k = np.random.default_rng(0), 2100, 11, 7
    lows = {"float32": 0.02, "float64": 0.0035}[cuda.dtype.name]
    shapes = (disjoint(size, k, rng.uniform(lows / 2, lows, (size, 1))) for size in (n, m))
    users, items = (make_parameters(rng, len(shape), k, shape) for shape in shapes)
    case = Case("rows", (rng.random((n, m)) < 0.2).astype(float), users, items)
    factors, counts = make_factors(cuda, case), cuda.counts(case.csr(cuda.dtype), k)
    wanted = oracle.allocate(case.y, users.gamma.expected_log, items.gamma.expected_log)
    for exact in (False, True):
        for statistic, want in zip(cuda.allocate(counts, *factors, exact=exact), wanted, strict=True):
            assert_close(cuda.asnumpy(statistic), want, tolerance_of("cuda", cuda.dtype.name).allocate)


def test_allocate_joins_long_rows_in_double(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a row and their sum are exact in float32; the running sum of a strand is not."""
    monkeypatch.setattr(cuda_layout, "SEGMENT", 16)
    parts, first = 512, 2**20 - 14
    y = np.ones((1, 16 * parts))
    y[0, ::16] = first
    one = Parameters(np.ones((1, 1)), np.ones(1), np.zeros(1))
    many = Parameters(np.ones((y.size, 1)), np.ones(y.size), np.zeros(1))
    case = Case("long", y, one, many)
    users, items = make_factors(cuda, case)
    counts = cuda.counts(case.csr(cuda.dtype), 1)
    for exact in (False, True):
        statistic, _ = cuda.allocate(counts, users, items, side="users", exact=exact)
        assert cuda.asnumpy(statistic).item() == parts * (first + 15)


@pytest.mark.parametrize("allocation", ["fused", "cusparse"])
def test_allocate_joins_any_number_of_parts(
    cuda: Any, allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer parts of a row than strands, as many, one more, and several for each; some products underflow."""
    monkeypatch.setattr(cuda_layout, "SEGMENT", 16)
    backend, k = create("cuda", cuda.dtype, allocate=allocation), 40
    rng, lengths = np.random.default_rng(0), 16 * np.array([1, 2, 7, 8, 9, 16, 23]) - 3
    low = {"float32": 0.02, "float64": 0.0035}[cuda.dtype.name]
    shapes = (disjoint(n, k, rng.uniform(low / 2, low, (n, 1))) for n in (len(lengths), 370))
    users, items = (make_parameters(rng, len(shape), k, shape) for shape in shapes)
    case = Case("parts", 1.0 * (np.arange(370) < lengths[:, None]), users, items)
    counts = backend.counts(case.csr(backend.dtype), k)
    assert np.diff(counts.users.long_begin.get()).tolist() == [2, 7, 8, 9, 16, 23]
    want, _ = oracle.allocate(case.y, users.gamma.expected_log, items.gamma.expected_log)
    for exact in (False, True):
        got, _ = backend.allocate(counts, *make_factors(backend, case), side="users", exact=exact)
        assert_close(backend.asnumpy(got), want, tolerance_of("cuda", cuda.dtype.name).allocate)


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("shape", [(9, 40), (40, 9)], ids=["by items", "by users"])
def test_every_log_is_taken_once(cuda: Any, shape: tuple[int, int], k: int) -> None:
    """By either side; of products that are taken at once, and of those that are left to the next kernel."""
    (n, m), rng, tolerance = shape, np.random.default_rng(k), tolerance_of("cuda", cuda.dtype.name)
    y = make_counts(rng, n, m, n * m // 2)
    y[0] = 1  # one row with all columns, and so every column with a row
    low, scale = {"float32": (0.02, 1e-12), "float64": (0.0035, 1e-90)}[cuda.dtype.name]
    shapes = (disjoint(size, k, rng.uniform(low / 2, low, (size, 1))) for size in shape)
    case = Case("logs", y, *(make_parameters(rng, len(shape), k, shape) for shape in shapes))
    counts = cuda.counts(case.csr(cuda.dtype), k)
    want = oracle.log_normalizer_sum(y, case.users.gamma.expected_log, case.items.gamma.expected_log)
    got = cuda.log_normalizer_sum(counts, *make_factors(cuda, case))
    assert_near(got, want, tolerance.log_sums, abs(want) + y.sum())
    theta, beta = (float32_exact(rng.gamma(0.5, 1.0, (size, k))) for size in shape)
    theta[::3] *= scale
    beta[::2] *= scale
    theta, beta = (array.astype(cuda.dtype).astype(float) for array in (theta, beta))
    want = oracle.log_rate_sum(y, theta, beta)
    got = cuda.log_rate_sum(counts, cuda.asarray(theta), cuda.asarray(beta))
    assert_near(got, want, tolerance.log_sums, abs(want) + y.sum())


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_rows_are_padded_with_zeros(cuda: Any, exact: bool) -> None:
    """What operations return is as wide as kernels take it, and zero beyond K."""
    case = make_case("K=5")
    users, items = make_factors(cuda, case)
    counts, some = cuda.counts(case.csr(cuda.dtype), case.k), np.array([2, 0])
    returned = {
        "statistics": cuda.allocate(counts, users, items, exact=exact),
        "gamma_update": (users.shape, users.exp_log),
        "extrapolate": (
            cuda.extrapolate(users, (users.exp_log, users.log_scale), cuda.asarray(np.ones(1))).exp_log,
        ),
        "mean": (cuda.mean(users),),
        "select_rows": (cuda.select_rows(users.exp_log, some),),
        "select_columns": (cuda.select_columns(users.exp_log, some),),
    }
    for name, arrays in returned.items():
        for array in arrays:
            assert array.base.shape == (len(array), Variant(array.shape[1], cuda.dtype).width), name
            assert (array.base[:, array.shape[1] :].get() == 0).all(), name


def test_mixed_factors_come_to_the_host_unscaled(cuda32: Any) -> None:
    mixed = create("cuda", np.dtype(np.float32), precision="mixed")
    factor = make_factor(mixed, triangle(40).users)
    exp_log = mixed.asnumpy(factor.exp_log)
    assert exp_log.dtype == np.float32
    assert (exp_log.max(axis=1) == 1).all()


def test_top_items_of_any_sign_at_random(cuda: Any) -> None:
    """Collections that are sorted several times: their worst places move in the last step of a sort, too."""
    rng = np.random.default_rng(1)
    theta, beta = np.array([[1.0], [-1.0]]), rng.permutation(700)[:, None] - 350.0
    for length in (3, 10, 120):
        columns, _ = cuda.top_items(cuda.asarray(theta), cuda.asarray(beta), length)
        np.testing.assert_array_equal(columns, np.argsort(-theta @ beta.T, axis=1)[:, :length])


def test_rows_and_columns_of_mixed_factors(cuda32: Any) -> None:
    """Copies of half-precision factors are in half precision, which is what kernels take."""
    mixed = create("cuda", np.dtype(np.float32), precision="mixed")
    factor, some = make_factor(mixed, triangle(40).users), np.array([5, 0, 2])
    whole = mixed.asnumpy(factor.exp_log)
    rows, columns = mixed.select_rows(factor.exp_log, some), mixed.select_columns(factor.exp_log, some)
    assert rows.dtype == columns.dtype == factor.exp_log.dtype == np.float16
    np.testing.assert_array_equal(mixed.asnumpy(rows), whole[some])
    np.testing.assert_array_equal(mixed.asnumpy(columns), whole[:, some])


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"precision": "mixed"}, 0.1),  # 0.016: 2^-11 of each factor, while factors that were alike part
        ({"allocate": "cusparse"}, 1e-4),
        ({"bias": True}, 1e-4),
    ],
    ids=str,
)
def test_options_in_batches(cuda32: Any, options: dict[str, Any], limit: float) -> None:
    """Epochs and batches from outside take them too, to nearly the same numbers as without."""
    data, sizes = random_counts(), {"users_per_batch": 25, "items_per_batch": 20}
    bias = {name: value for name, value in options.items() if name == "bias"}
    plain = fit(data, **sizes, **bias | {"backend": "openmp" if bias else "cuda"})
    model = fit(data, **sizes, **options)
    for _ in range(2):
        assert relative_error(model.Theta, plain.Theta) < limit
        assert relative_error(model.Beta, plain.Beta) < limit
        model.partial_fit(data[:30])
        plain.partial_fit(data[:30])


def test_products_of_exactly_the_threshold_are_counted_once(cuda: Any) -> None:
    """One of the two passes takes a product, also the smallest that is not left to the log-sum-exp."""
    threshold = cuda.dtype.type({"float32": 1e-18, "float64": 1e-150}[cuda.dtype.name])
    products = np.array([np.nextafter(threshold, 0), threshold, np.nextafter(threshold, 1)], cuda.dtype)
    users, items = (make_factor(cuda, Parameters(np.ones((n, 1)), np.ones(n), np.zeros(1))) for n in (1, 3))
    items.exp_log[:, 0] = cuda.asarray(products.astype(np.float64)[:, None])[:, 0]
    counts = cuda.counts(sparse.csr_array(np.full((1, 3), 2.0, cuda.dtype)), 1)
    for statistic, want in zip(cuda.allocate(counts, users, items), ([6], [2, 2, 2]), strict=True):
        np.testing.assert_allclose(cuda.asnumpy(statistic)[:, 0], want, rtol=1e-5)


def far(array: Any, rows: int) -> Any:
    """A view of a matrix or vector as the last rows of one with so many more, which are not there."""
    import cupy as cp

    begin = cp.cuda.UnownedMemory(array.data.ptr - rows * array.strides[0], 1 << 40, array)
    shape = (rows + array.shape[0], *array.shape[1:])
    return cp.ndarray(shape, array.dtype, cp.cuda.MemoryPointer(begin, 0), array.strides)


@pytest.mark.parametrize("k", [3, 40])
def test_one_product_underflows_in_the_composed_form(cuda: Any, k: int) -> None:
    composed = create("cuda", cuda.dtype, allocate="cusparse")
    checks.one_product_underflows(composed, tolerance_of("cuda", cuda.dtype.name), k, 13)


@pytest.mark.parametrize("name", ["nearly disjoint", "start values, K=1"])
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_allocate_in_matrices_of_more_than_32_bits(
    cuda: Any, exact: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows beyond 2^31 numbers are found: of matrices whose last rows alone are in memory."""
    monkeypatch.setattr(cuda_layout, "SEGMENT", 8)
    case, rows = make_case(name), 2**30 + 6  # 2^32 numbers, and more: width is 4 or 8
    factors, counts = make_factors(cuda, case), cuda.counts(case.csr(cuda.dtype), case.k)
    assert counts.users.slots
    wanted = cuda.allocate(counts, *factors, exact=exact)

    def far_rows(side: Any) -> Any:
        fields = segments_of(side)
        fields |= {name: fields[name] + np.int32(rows) for name in ("row", "column")}
        segments = pack(side.parts[0].struct, 1, 0, *fields.values())
        return dataclasses.replace(side, parts=(segments,), long_row=side.long_row + np.int32(rows))

    def far_factor(factor: Any) -> Any:
        changed = {name: far(getattr(factor, name), rows) for name in ("shape", "exp_log", "log_scale")}
        rates = factor.rates
        rates = (
            RankOne(far(rates.rows, rows), rates.columns)
            if isinstance(rates, RankOne)
            else Full(far(rates.matrix, rows))
        )
        return dataclasses.replace(factor, rates=rates, **changed)

    far_counts = dataclasses.replace(counts, users=far_rows(counts.users), items=far_rows(counts.items))
    far_factors = tuple(map(far_factor, factors))
    outs = tuple(garbage(cuda, n, case.k) for n in case.y.shape)
    cuda.allocate(far_counts, *far_factors, exact=exact, out=tuple(far(out, rows) for out in outs))
    for out, want in zip(outs, wanted, strict=True):
        np.testing.assert_array_equal(cuda.asnumpy(out), cuda.asnumpy(want))
    got = cuda.log_normalizer_sum(far_counts, *far_factors)
    assert got == cuda.log_normalizer_sum(counts, *factors)
    theta, beta = (cuda.mean(factor) for factor in factors)
    got = cuda.log_rate_sum(far_counts, far(theta, rows), far(beta, rows))
    assert got == cuda.log_rate_sum(counts, theta, beta)
    pairs = case.y.nonzero()
    got = cuda.predict_pairs(far(theta, rows), far(beta, rows), *(numbers + rows for numbers in pairs))
    np.testing.assert_array_equal(got, cuda.predict_pairs(theta, beta, *pairs))


@pytest.mark.parametrize("k", [1, 30, 200])
def test_predict_pairs_of_every_number(cuda: Any, k: int) -> None:
    """However many pairs are left for the last warp and the last block."""
    rng = np.random.default_rng(k)
    theta, beta = (float32_exact(rng.gamma(0.3, 1.0, (n, k))) for n in (20, 30))
    rows, columns = rng.integers(0, 20, 200), rng.integers(0, 30, 200)
    want = np.einsum("zk,zk->z", theta[rows], beta[columns])
    arrays = cuda.asarray(theta), cuda.asarray(beta)
    for size in (*range(1, 66), 127, 128, 129, 200):
        got = cuda.predict_pairs(*arrays, rows[:size], columns[:size])
        limit = tolerance_of("cuda", cuda.dtype.name).predict
        assert_close(got[:, None], want[:size, None], limit)


@pytest.mark.parametrize(
    ("n", "k"),
    [*((n, k) for n in (1, 63, 64, 65, 129) for k in (1, 5, 30)), (2200, 30)],  # 35 blocks
)
def test_gamma_update_of_any_number_of_rows(cuda: Any, n: int, k: int) -> None:
    """Blocks, groups of lanes and strands of the sum over blocks that are full, and those that are not."""
    side, tolerance = (
        make_parameters(np.random.default_rng(n), n, k),
        tolerance_of("cuda", cuda.dtype.name),
    )
    rates = rates_of(cuda, side)
    factor, row_sums, column_sums = cuda.gamma_update(cuda.asarray(side.shape), 0.0, rates)
    gamma = side.gamma
    wanted = np.exp(gamma.expected_log - gamma.expected_log.max(axis=1, keepdims=True))
    assert_close(cuda.asnumpy(factor.exp_log), wanted, tolerance.exp_log)
    for sums, want in ((row_sums, gamma.row_sums), (column_sums, gamma.column_sums)):
        assert_close(cuda.asnumpy(sums)[:, None], want[:, None], tolerance.sums)
    assert_close(cuda.asnumpy(cuda.mean(factor)), gamma.mean, tolerance.mean)
    hyper = oracle.Gamma(np.full(n, 0.3 + k * 0.3), np.linspace(0.1, 3.0, n))
    terms = oracle.gamma_elbo_terms(gamma, hyper, 0.3, 0.3, 0.3)
    got = cuda.gamma_elbo(factor, cuda.asarray(hyper.rate), 0.3, 0.3, 0.3)
    assert_near(got, sum(terms.values()), tolerance.gamma_elbo, oracle.magnitude(terms))
    want = float(np.sqrt(((side.shape - gamma.mean) ** 2).sum()))
    got = cuda.distance(cuda.asarray(side.shape), cuda.asarray(gamma.mean))
    assert_near(got, want, 4e-7 if cuda.dtype == np.float32 else tolerance.distance, want)


def one_block(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one block go over all rows, so that each group of lanes gets many."""
    monkeypatch.setattr(cuda, "_by_rows", lambda n, k: (1, cuda._variant(k).gamma_threads))


@pytest.mark.parametrize("k", [1, 3, 40])
def test_scales_of_many_rows_in_one_group(cuda: Any, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logarithms are taken in batches of rows, the last one incomplete; every fifth row is too small."""
    one_block(cuda, monkeypatch)
    lanes, groups = min(32, 1 << (k - 1).bit_length()), Variant(k, cuda.dtype).gamma_groups
    rng, n = np.random.default_rng(k), groups * (2 * lanes + 3) - 1
    shape = float32_exact(rng.uniform(0.3, 9.0, (n, k)) * np.where(np.arange(n) % 5 == 4, 1e-4, 1)[:, None])
    side = make_parameters(rng, n, k, shape)
    factor, *_ = cuda.gamma_update(cuda.asarray(side.shape), 0.0, rates_of(cuda, side))
    want = side.gamma.expected_log.max(axis=1)
    error = np.abs(cuda.asnumpy(factor.log_scale) - want) / (1 + np.abs(want))
    assert error.max() <= tolerance_of("cuda", cuda.dtype.name).log_scale


def test_column_sums_of_many_rows_in_one_group(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large number and many that are below its last bit: the sum is exact to twice the bits of float."""
    one_block(cuda, monkeypatch)
    k, first, others = 40, 2.0**20, 2.0**-6
    n = 4 * 300 + 3
    shape = np.full((n, k), others)
    shape[0] = first
    rates = RankOne(cuda.asarray(np.zeros(n)), cuda.asarray(np.ones(k)))
    _, _, column_sums = cuda.gamma_update(cuda.asarray(shape), 0.0, rates)
    want = first + (n - 1) * others
    np.testing.assert_allclose(cuda.asnumpy(column_sums), np.full(k, want), rtol=2.0**-44)


def test_pinned_columns_beside_others(cuda: Any) -> None:
    """Point masses at 1 and 1/3, as biases have them, and a column that is none."""
    rng, n = np.random.default_rng(0), 50
    shape = np.column_stack([np.full(n, UNIT_RATE), np.full(n, POINT_MASS_RATE / 3), rng.gamma(2.0, 1.0, n)])
    side = Parameters(float32_exact(shape), np.ones(n), np.array([UNIT_RATE, POINT_MASS_RATE, 2.0]))
    factor, row_sums, column_sums = cuda.gamma_update(cuda.asarray(side.shape), 0.0, rates_of(cuda, side))
    tolerance, log = tolerance_of("cuda", cuda.dtype.name), side.gamma.expected_log
    want = np.exp(log - log.max(axis=1, keepdims=True))
    assert_close(cuda.asnumpy(factor.exp_log), want, tolerance.exp_log)
    for sums, exact in ((row_sums, side.gamma.row_sums), (column_sums, side.gamma.column_sums)):
        assert_close(cuda.asnumpy(sums)[:, None], exact[:, None], tolerance.sums)


@pytest.mark.parametrize("rate", [1.0, 1e-12, 1e15])
def test_moments_of_every_shape(cuda: Any, rate: float) -> None:
    """From those whose e^ψ is far below the range of float to those of pinned columns."""
    shape = np.concatenate(
        [np.geomspace(1e-30, 1e-4, 40), np.geomspace(1e-4, 1e24, 400), np.arange(1, 30) / 2]
    )
    shape = float32_exact(shape)[:, None]
    rates = RankOne(cuda.asarray(np.zeros(len(shape))), cuda.asarray(np.full(1, rate)))
    factor, row_sums, _ = cuda.gamma_update(cuda.asarray(shape), 0.0, rates)
    want, limits = oracle.Gamma(shape, np.full_like(shape, rate)), tolerance_of("cuda", cuda.dtype.name)
    log = want.expected_log[:, 0]
    assert (np.abs(cuda.asnumpy(factor.log_scale) - log) / (1 + np.abs(log))).max() <= limits.log_scale
    least = float(np.finfo(cuda.dtype).tiny)
    np.testing.assert_allclose(cuda.asnumpy(row_sums), want.row_sums, rtol=limits.sums, atol=least)


def test_shapes_side_by_side(cuda: Any) -> None:
    """Entries of any size beside one that is not small: as far as the matrix's type holds their ratio."""
    small = float32_exact(np.geomspace(1e-30, 10.0, 300))
    shape = np.column_stack([np.full(300, 10.0), small])
    rates = RankOne(cuda.asarray(np.full(300, 0.5)), cuda.asarray(np.array([0.5, 1.5])))
    factor, *_ = cuda.gamma_update(cuda.asarray(shape), 0.0, rates)
    log = oracle.Gamma(shape, np.full((300, 2), (1.0, 2.0))).expected_log
    want, least = np.exp(log[:, 1] - log[:, 0]), float(np.finfo(cuda.dtype).tiny)
    limit = max(tolerance_of("cuda", cuda.dtype.name).exp_log, 4e-15 * 708)
    np.testing.assert_allclose(cuda.asnumpy(factor.exp_log)[:, 1], want, rtol=limit, atol=least)


def test_top_items_that_keep_rising(cuda: Any) -> None:
    """Where each step's columns all beat what was found so far, the collection does not overflow.

    The neighbouring rows have their best first, where an overflow would be written.
    """
    theta = np.tile([[1.0], [-1.0]], (8, 1))
    beta = np.arange(2000.0)[:, None]
    for length in (1, 2, 255, 256, 257):
        columns, scores = cuda.top_items(cuda.asarray(theta), cuda.asarray(beta), length)
        np.testing.assert_array_equal(columns[0::2], np.tile(np.arange(1999, 1999 - length, -1), (8, 1)))
        np.testing.assert_array_equal(columns[1::2], np.tile(np.arange(length), (8, 1)))
        np.testing.assert_array_equal(scores, np.tile([[1.0], [-1.0]], (8, 1)) * columns)


@pytest.mark.parametrize("m", [255, 256, 257, 511, 512, 513])
def test_top_items_of_whole_steps(cuda: Any, m: int) -> None:
    """Columns that fill the last step of a block, those that don't, and rankings of all of them."""
    rng = np.random.default_rng(m)
    theta, beta = np.ones((3, 1)), rng.permutation(m)[:, None].astype(float)
    exclude = [[], [0, m - 1], list(range(0, m, 2))]
    for length in (1, 255, 256, 257, m):
        got = cuda.top_items(cuda.asarray(theta), cuda.asarray(beta), length, as_csr(exclude))
        for one, want in zip(got, oracle.top_items(theta @ beta.T, length, exclude), strict=True):
            np.testing.assert_array_equal(one, want)


def test_an_iteration_does_not_wait(cuda32: Any) -> None:
    """Simulated streams that run only when somebody waits still have all their work after an iteration."""
    import cupy as cp

    if not conftest.SIMULATED or conftest.STREAMS != "lazy":
        pytest.skip("only streams that are simulated as lazy show who waits")
    blocks = SMALL.blocks(cuda32)
    model = iterate(cuda32, blocks, SMALL.model(cuda32, blocks), rule("joint"))
    stream = cp.cuda.get_current_stream()
    stream.synchronize()
    iterate(cuda32, blocks, model, rule("joint"))
    assert not stream.done


def test_any_stream(cuda32: Any) -> None:
    """A fit on a stream of the user's is the same fit."""
    import cupy as cp

    def fitted() -> tuple[np.ndarray[Any, Any], ...]:
        return factor_on_host(cuda32, run_fit(cuda32, "joint", full_llk=False).model.items.factor)

    plain = fitted()
    with cp.cuda.Stream(non_blocking=True):
        streamed = fitted()
    for a, b in zip(plain, streamed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_forked_child_is_told(cuda32: Any) -> None:
    fork = multiprocessing.get_context("fork")
    with fork.Pool(1) as pool, pytest.raises(BackendUnavailable, match="does not survive"):
        pool.apply(create, ("cuda", np.float32))


def test_many_users_are_ranked_on_the_device(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpf_gpu.answers import recommendations
    from hpf_gpu.backends.cuda_backend import CudaBackend

    model, called = fit(random_counts()), []
    one_by_one = [model.topN(user, 5) for user in range(60)]
    rank = CudaBackend.top_items
    monkeypatch.setattr(CudaBackend, "top_items", lambda *a: called.append(1) or rank(*a))
    monkeypatch.setattr(recommendations, "_MIN_USERS_FOR_GPU", 60)
    np.testing.assert_array_equal(model.topN(np.arange(60), 5), one_by_one)
    assert called


def test_who_keeps_pace_waits_for_the_work_before_the_previous_call(cuda32: Any) -> None:
    """Simulated streams that run only when somebody waits show what was waited for, and what not."""
    import cupy as cp

    if not conftest.SIMULATED or conftest.STREAMS != "lazy":
        pytest.skip("only streams that are simulated as lazy show who waits")
    blocks = SMALL.blocks(cuda32)
    model, ends = SMALL.model(cuda32, blocks), []
    cp.cuda.get_current_stream().synchronize()
    for _ in range(4):
        model = iterate(cuda32, blocks, model, rule("joint"))
        ends.append(cp.cuda.Event(disable_timing=True))
        ends[-1].record()
        cuda32.keep_pace()
        assert [end.done for end in ends] == [True] * (len(ends) - 1) + [False]


# -- memory ------------------------------------------------------------------------------------


def fit(data: Any, val_set: Any = None, **arguments: Any) -> HPF:
    defaults = {"k": 5, "maxiter": 4, "check_every": 2, "random_seed": 1, "verbose": False, "backend": "cuda"}
    return HPF(**defaults | arguments).fit(data, val_set=val_set)


def test_too_much_for_the_device_is_refused_first(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is refused before anything is allocated."""
    import cupy as cp

    from hpf_gpu.backends import cuda_backend

    asked: list[int] = []

    def allocate(size: int) -> Any:
        asked.append(size)
        return cp.get_default_memory_pool().malloc(size)

    monkeypatch.setattr(cuda_backend, "free_bytes", lambda: 1 << 14)
    with (
        cp.cuda.using_allocator(allocate),
        pytest.raises(NotEnoughMemory, match=r"700 counts .* needs about .* precision='mixed'"),
    ):
        fit(random_counts())
    assert not asked
    monkeypatch.undo()
    with cp.cuda.using_allocator(allocate):
        fit(random_counts())
    assert asked


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        (0, 7 << 30, 5 << 30),  # no limit: what the driver has, and what the pool keeps for reuse
        (20 << 30, 7 << 30, 5 << 30),
        (8 << 30, 7 << 30, 1 << 30),
        (6 << 30, 7 << 30, 0),  # set when more was in use
    ],
)
def test_free_memory_of_the_pool(
    cuda32: Any, limit: int, used: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy as cp

    from hpf_gpu.backends import cuda_backend

    pool = SimpleNamespace(
        malloc=cp.cuda.alloc,
        free_bytes=lambda: 2 << 30,
        used_bytes=lambda: used,
        get_limit=lambda: limit,
    )
    monkeypatch.setattr(cp, "get_default_memory_pool", lambda: pool)
    monkeypatch.setattr(cp.cuda, "get_allocator", lambda: pool.malloc)
    monkeypatch.setattr(cp.cuda.runtime, "memGetInfo", lambda: (3 << 30, 5 << 30))
    assert cuda_backend.free_bytes() == free


def test_the_limit_of_the_pool_refuses_a_fit(cuda32: Any) -> None:
    """CuPy's own pool, in a fit: too low a limit is told before, and one that suffices does not hinder."""
    import cupy as cp

    pool = cp.get_default_memory_pool()
    before = pool.get_limit()
    try:
        with cp.cuda.using_allocator(pool.malloc):
            pool.set_limit(size=pool.used_bytes() + (1 << 12))
            with pytest.raises(NotEnoughMemory, match=r"a fit of 700 counts .* of which 0\.00 GiB are free"):
                fit(random_counts())
            pool.set_limit(size=pool.used_bytes() + (1 << 24))
            fit(random_counts())
    finally:
        pool.set_limit(size=before)
        pool.free_all_blocks()


def test_another_allocator_knows_itself_what_it_has(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RMM's pool has taken all memory from the driver, or managed memory is larger than the device's."""
    import cupy as cp

    monkeypatch.setattr(cp.cuda.runtime, "memGetInfo", lambda: (0, 5 << 30))
    with cp.cuda.using_allocator(lambda size: cp.cuda.MemoryPointer(cp.cuda.Memory(size), 0)):
        fit(random_counts())


def test_large_arrays_leave_nothing_pinned(cuda32: Any) -> None:
    """Counts and matrices are uploaded without a copy in pinned memory, which CuPy's pool would keep."""
    import cupy as cp

    pinned: list[int] = []

    def allocate(size: int) -> Any:
        pinned.append(size)
        return cp.cuda.PinnedMemoryPointer(cp.cuda.PinnedMemory(size), 0)

    csr, matrix = random_counts(300, 200, 20_000), np.ones((500, 5))
    cp.cuda.set_pinned_memory_allocator(allocate)
    try:
        counts = cuda32.counts(csr, 5)
        got = cuda32.asarray(matrix)
    finally:
        default = None if conftest.SIMULATED else cp.get_default_pinned_memory_pool().malloc
        cp.cuda.set_pinned_memory_allocator(default)
    assert counts.nnz == 20_000
    np.testing.assert_array_equal(cuda32.asnumpy(got), matrix)
    assert max(pinned, default=0) < csr.indices.nbytes / 4  # numbers of segments


def test_arrays_are_uploaded_in_parts(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpf_gpu.backends import cuda_backend

    monkeypatch.setattr(cuda_backend, "_AT_ONCE", 40)
    csr, matrix = random_counts(), np.arange(600.0).reshape(120, 5)
    users = segments_of(cuda.counts(csr, 5).users)
    np.testing.assert_array_equal(users["column"].get(), csr.indices)
    np.testing.assert_array_equal(users["value"].get(), csr.data)
    np.testing.assert_array_equal(cuda.asnumpy(cuda.asarray(matrix)), matrix)
    assert cuda.asarray(np.ones((0, 5))).shape == (0, 5)


def test_the_composed_form_is_refused_by_what_was_predicted(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; tests/test_cuda_stream.py has the other forms, which stream."""
    from hpf_gpu.backends import cuda_backend

    backend, csr, k = create("cuda", cuda.dtype, allocate="cusparse"), random_counts(), 70
    needed = cuda_layout.bytes_of_fit(Variant(k, cuda.dtype), csr.shape, csr.nnz, composed=True)
    monkeypatch.setattr(cuda_backend, "free_bytes", lambda: needed)
    assert backend.counts(csr, k).nnz == 700
    monkeypatch.setattr(cuda_backend, "free_bytes", lambda: needed - 1)
    with pytest.raises(NotEnoughMemory, match=r"with k=70 .* use allocate='fused'"):
        backend.counts(csr, k)


def every_operation(backend: Any) -> dict[str, tuple[Any, ...]]:
    """Arguments of each operation that computes something."""
    import cupy as cp

    case = make_case("K=5")
    csr, (users, items) = case.csr(backend.dtype), make_factors(backend, case)
    counts, (theta, beta) = backend.counts(csr, 5), map(backend.mean, (users, items))
    some, none = np.array([0, 1]), backend.asarray(np.ones((2, 5)))
    with theta.device:
        table = cp.asarray([[0, 0, 1]])
    return {
        "asarray": (np.ones((2, 5)),),
        "select_rows": (theta, some),
        "select_columns": (theta, some),
        "assign_rows": (theta, some, none),
        "counts": (csr, 5),
        "read_device_data": (table,),
        "operand": (np.ones((2, 5)),),
        "gamma_update": (users.shape, 0.3, users.rates),
        "extrapolate": (users, (users.exp_log, users.log_scale), backend.asarray(np.ones(1))),
        "mean": (users,),
        "gamma_elbo": (users, backend.asarray(np.ones(23)), 0.3, 0.3, 0.3),
        "distance": (theta, theta),
        "allocate": (counts, users, items),
        "log_rate_sum": (counts, theta, beta),
        "log_normalizer_sum": (counts, users, items),
        "log_factorial_sum": (counts,),
        "predict_pairs": (theta, beta, some, some),
        "top_items": (theta, beta, 3),
    }


def run_operation(backend: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    options = {"reindex": False} if name == "read_device_data" else {}
    return getattr(backend, name)(*arguments, **options)


@pytest.mark.parametrize("fault", ["CuPy's pool", "RMM", "CUDA", "illegal address", "driver"])
def test_every_operation_tells_what_failed(cuda32: Any, fault: str) -> None:
    """It names itself, and tells memory that is short from an error of CUDA."""
    import cupy as cp

    class LaunchFailed(cp.cuda.driver.CUDADriverError):
        def __init__(self) -> None:  # without the driver, whom CuPy asks for the name
            RuntimeError.__init__(self, "CUDA_ERROR_LAUNCH_FAILED")
            self.status = 719

    errors: dict[str, tuple[type, Exception, str]] = {
        "CuPy's pool": (NotEnoughMemory, cp.cuda.memory.OutOfMemoryError(1, 2, 3), "for {}: Out of"),
        "RMM": (NotEnoughMemory, MemoryError("std::bad_alloc: pool"), "for {}: std::bad_alloc: pool"),
        "CUDA": (NotEnoughMemory, cp.cuda.runtime.CUDARuntimeError(2), "for {}: cudaErrorMemoryAllocation"),
        "illegal address": (
            DeviceError,
            cp.cuda.runtime.CUDARuntimeError(700),
            "CUDA failed in {}: cudaErrorIllegalAddress: .* CUDA_LAUNCH_BLOCKING=1 .* restart",
        ),
        "driver": (DeviceError, LaunchFailed(), "CUDA failed in {}: CUDA_ERROR_LAUNCH"),
    }
    kind, error, message = errors[fault]

    def allocate(size: int) -> Any:
        raise error

    for name, arguments in every_operation(cuda32).items():
        told = "asarray" if name == "operand" else name  # which it is on a GPU
        with cp.cuda.using_allocator(allocate), pytest.raises(kind, match=message.format(told)) as raised:
            run_operation(cuda32, name, arguments)
        assert raised.value.__cause__ is error


def test_an_error_between_operations_is_told(cuda32: Any) -> None:
    """Arithmetic on arrays in a fit; other errors pass, as those of files and of the host's memory."""
    import cupy as cp

    with pytest.raises(DeviceError, match="in arithmetic between operations: cudaErr"), cuda32.in_use():
        raise cp.cuda.runtime.CUDARuntimeError(700)
    with pytest.raises(NotEnoughMemory, match=r"^for allocate$"), cuda32.in_use():
        raise NotEnoughMemory("for allocate")
    for kind in (KeyboardInterrupt, PermissionError, MemoryError):
        with pytest.raises(kind) as raised, cuda32.in_use():
            raise kind("as it was")
        assert raised.value.args == ("as it was",)


def test_a_cache_that_cannot_be_written_is_explained(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's own kernels are compiled in the middle of an operation."""
    import cupy as cp

    from hpf_gpu.backends import cuda_backend

    def fails(*_: Any) -> Any:
        raise OSError(30, "Read-only file system", "/home/.cupy/kernel_cache/tmp1")

    monkeypatch.setattr(cp, "empty", fails)
    monkeypatch.setattr(cuda_backend, "find_fault", lambda error: BackendUnavailable(f"told: {error}"))
    with pytest.raises(BackendUnavailable, match=r"told: .* Read-only"):
        cuda32.asarray(np.ones((2, 5)))


def test_memory_that_others_took_meanwhile(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CuPy finds no memory in an operation, the user hears which, and what to do."""
    import cupy as cp

    from hpf_gpu.answers import recommendations

    model = fit(random_counts())
    monkeypatch.setattr(recommendations, "_MIN_USERS_FOR_GPU", 1)

    def allocate(size: int) -> Any:
        raise cp.cuda.memory.OutOfMemoryError(size, 1 << 30, 1 << 31)

    with cp.cuda.using_allocator(allocate):
        for work in (lambda: fit(random_counts()), lambda: model.topN(np.arange(60), 5)):
            with pytest.raises(NotEnoughMemory, match=r"for \w+: Out of memory .* use backend='openmp'"):
                work()


def test_the_cusparse_form_refuses_more_nonzeros_than_it_can_number(cuda32: Any) -> None:
    class Huge:
        shape, nnz = (10, 10), 1 << 31

    with pytest.raises(ValueError, match=r"2,147,483,648; use allocate='fused'"):
        create("cuda", np.float32, allocate="cusparse").counts(Huge, 5)


def test_parts_on_their_way_to_the_host(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions and rankings of more than go to the host at once are those of one piece."""
    from hpf_gpu.backends import cuda_backend

    rng = np.random.default_rng(2)
    theta, beta = (cuda.asarray(rng.gamma(0.3, 1.0, (n, 5))) for n in (60, 45))
    rows, columns = rng.integers(0, 60, 500), rng.integers(0, 45, 500)
    csr = random_counts()
    seen = (csr.indptr, csr.indices)

    def asked() -> tuple[Any, ...]:
        lists = (cuda.top_items(theta, beta, n, seen) for n in (7, 65))
        return (cuda.predict_pairs(theta, beta, rows, columns), *(part for both in lists for part in both))

    whole = asked()
    monkeypatch.setattr(cuda_backend, "_AT_ONCE", 64)
    for part, want in zip(asked(), whole, strict=True):
        np.testing.assert_array_equal(part, want)


@pytest.mark.parametrize(("shape", "segment"), [((800, 500), 256), ((4000, 20), 256), ((1000, 25), 4)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_float": False},
        {"precision": "mixed", "k": 40},
        {"k": 40},
        {"k": 40, "maxiter": 1},
        {"k": 40, "stop_crit": "diff-norm", "stop_thr": 1e-9},
        {"allocate": "cusparse", "k": 40},
    ],
)
def test_memory_is_predicted(
    cuda32: Any,
    arguments: dict[str, Any],
    shape: tuple[int, int],
    segment: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a fit takes at its peak is at most what was predicted, and not much less."""
    import cupy as cp

    monkeypatch.setattr(cuda_layout, "SEGMENT", segment)  # a short one: many parts of long rows
    data = random_counts(*shape, 20_000)
    fit(data, **arguments | {"maxiter": 1})  # kernels compiled, small things cached
    held = peak = 0

    class Counted(cp.cuda.Memory):
        def __init__(self, size: int) -> None:
            nonlocal held, peak
            super().__init__(size)
            self.counted = size
            held += size
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.counted

    with cp.cuda.using_allocator(lambda size: cp.cuda.MemoryPointer(Counted(size), 0)):
        fit(data, **arguments)
    real = np.dtype(np.float32 if arguments.get("use_float", True) else np.float64)
    variant = Variant(arguments.get("k", 5), real, half="precision" in arguments)
    predicted = cuda_layout.bytes_of_fit(variant, data.shape, data.nnz, composed="allocate" in arguments)
    assert 0.5 * predicted < peak <= predicted, f"{peak / predicted:.2f} of {predicted}"


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["K=30", "power law", "nearly disjoint", "disjoint", "start values"])
def test_composed_form(cuda: Any, name: str) -> None:
    """A kernel for the weights and cuSPARSE for the sums: the same statistic."""
    composed = create("cuda", cuda.dtype, allocate="cusparse")
    case = make_case(name)
    users, items = make_factors(composed, case)
    counts = composed.counts(case.csr(composed.dtype), case.k)
    wanted = expected_statistics(name)
    for exact in (False, True):
        old = tuple(composed.asarray(np.ones((n, case.k))) for n in case.y.shape)  # to be forgotten
        got = composed.allocate(counts, users, items, exact=exact, out=old)
        for statistic, want in zip(got, wanted, strict=True):
            limit = tolerance_of("cuda", cuda.dtype.name).allocate
            assert_close(composed.asnumpy(statistic), want, limit)


#: Relative error of a statistic, entry by entry, with U and V in half precision: eleven bits each.
MIXED = 2e-3  # 8e-4 measured


@pytest.mark.parametrize(
    "name", ["K=1", "K=30", "K=100", "power law", "nearly disjoint", "disjoint", "small shapes"]
)
def test_mixed_precision(cuda32: Any, name: str) -> None:
    mixed = create("cuda", np.dtype(np.float32), precision="mixed")
    case = make_case(name)
    users, items = make_factors(mixed, case)
    counts = mixed.counts(case.csr(mixed.dtype), case.k)
    got = mixed.allocate(counts, users, items)
    for statistic, want in zip(got, expected_statistics(name), strict=True):
        error = np.abs(mixed.asnumpy(statistic) - want)
        assert (error <= MIXED * want.sum(axis=1, keepdims=True)).all()
    exact = mixed.allocate(counts, users, items, exact=True)
    for statistic, want in zip(exact, expected_statistics(name), strict=True):
        assert_close(mixed.asnumpy(statistic), want, tolerance_of("cuda", "float32").allocate)
    wanted = expected_log_normalizer_sum(name)
    scale = abs(wanted) + float(case.y.sum())
    assert_near(mixed.log_normalizer_sum(counts, users, items), wanted, MIXED, scale)


@pytest.mark.parametrize("name", ["K=1", "K=30", "nearly disjoint", "small shapes"])
def test_mixed_precision_with_neighbours(cuda32: Any, name: str) -> None:
    mixed = create("cuda", np.dtype(np.float32), precision="mixed")
    case, more = make_case(name), make_neighbours(name)
    factors = tuple(make_factor(mixed, side, 1.25) for side in (case.users, case.items, more.weights))
    counts = mixed.counts(case.csr(mixed.dtype), case.k, more.sources)
    wanted = expected_with_neighbours(name, 1.25)
    of_items = np.concatenate(wanted[1:], axis=1)
    for exact, limit in ((False, MIXED), (True, tolerance_of("cuda", "float32").allocate)):
        got = [mixed.asnumpy(x) for x in mixed.allocate_with_neighbours(counts, *factors, exact=exact)]
        for statistic, want in ((got[0], wanted[0]), (np.concatenate(got[1:], axis=1), of_items)):
            assert (np.abs(statistic - want) <= limit * want.sum(axis=1, keepdims=True)).all()
    logs = (side.gamma.expected_log for side in (case.users, case.items, more.weights))
    _, total = oracle.log_phi_with_neighbours(case.y, *logs, more.sources, 1.25)
    y = case.y[case.y.nonzero()]
    scale = 1.25 * float(y @ (1 + np.abs(total)))
    assert_near(mixed.log_normalizer_sum(counts, *factors), 1.25 * float(y @ total), MIXED, scale)


@pytest.mark.parametrize("k", [3, 40])
def test_long_rows_of_users_and_items_with_neighbours(
    cuda: Any, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of every length, and users whose items are gone through beside those in which neighbours are
    searched; the lists of the items are longer and shorter than a warp."""
    monkeypatch.setattr(cuda_layout, "SEGMENT", 50)
    case, rng, width = triangle(k), np.random.default_rng(k), 7 if k == 3 else 40
    m = case.y.shape[1]
    sources = np.full((m, width), -1, np.int32)
    for i in range(m):
        size = width if i % 2 else int(rng.integers(0, width + 1))
        sources[i, :size] = np.sort(rng.choice(np.delete(np.arange(m), i), size, replace=False))
    weights = make_parameters(rng, m, width)
    logs = tuple(side.gamma.expected_log for side in (case.users, case.items, weights))
    factors = tuple(make_factor(cuda, side) for side in (case.users, case.items, weights))
    counts = cuda.counts(case.csr(cuda.dtype), k, sources)
    tolerance = tolerance_of("cuda", cuda.dtype.name)
    wanted = oracle.allocate_with_neighbours(case.y, *logs, sources, 1.0)
    for exact in (False, True):
        got = cuda.allocate_with_neighbours(counts, *factors, exact=exact)
        for statistic, want in zip(got, wanted, strict=True):
            assert_close(cuda.asnumpy(statistic), want, tolerance.allocate)
    _, total = oracle.log_phi_with_neighbours(case.y, *logs, sources, 1.0)
    y = case.y[case.y.nonzero()]
    got_sum = cuda.log_normalizer_sum(counts, *factors)
    assert_near(got_sum, float(y @ total), tolerance.log_sums, float(y @ (1 + np.abs(total))))


def test_log_rates_of_small_sums(cuda: Any) -> None:
    """Rates below any threshold, of factors, of weights, or of both."""
    power = {"float32": -12, "float64": -90}[cuda.dtype.name]
    y, sources = np.ones((3, 4)), np.array([[1, 2], [0, -1], [3, -1], [0, 2]], np.int32)
    rng = np.random.default_rng(0)
    theta, beta, w = (rng.uniform(0.5, 1, (n, 2)) for n in (3, 4, 4))
    counts = cuda.counts(sparse.csr_array(y.astype(cuda.dtype)), 2, sources)
    for a, b, c in ((power, power, 2 * power), (0, 2 * power, 3 * power), (power, 2 * power, 2 * power)):
        arrays = [
            (10.0**p * x).astype(cuda.dtype).astype(np.float64) for p, x in ((a, theta), (b, beta), (c, w))
        ]
        want = float(np.log(oracle.rates_with_neighbours(y, *arrays, sources)).sum())
        got = cuda.log_rate_sum(counts, *map(cuda.asarray, arrays))
        assert_near(got, want, tolerance_of("cuda", cuda.dtype.name).log_sums, abs(want))


def test_too_many_neighbours(cuda32: Any) -> None:
    csr = sparse.csr_array(np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match="neighbours=1025: the cuda backend supports at most 1024"):
        cuda32.counts(csr, 2, np.full((4, 1025), -1, np.int32))
    with pytest.raises(ValueError, match="neighbours=1025"):
        cuda32.choose_neighbours(csr, 1025)
    counts, theta, other = cuda32.counts(csr, 2), *(cuda32.asarray(np.ones((n, 2))) for n in (3, 4))
    with pytest.raises(TypeError, match="laid out without neighbours"):
        cuda32.log_rate_sum(counts, theta, other, other)


def test_equal_candidates(cuda32: Any) -> None:
    """The lower ones are chosen of as many as there is room for, and all if there are fewer."""
    csr = sparse.csr_array(np.ones((3, 4), np.float32))
    all_others = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert cuda32.choose_neighbours(csr, 2).tolist() == [others[:2] for others in all_others]
    assert cuda32.choose_neighbours(csr, 1024)[:, :4].tolist() == [[*others, -1] for others in all_others]


def test_counts_with_neighbours_do_not_stream(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpf_gpu.backends import cuda_backend

    csr = sparse.csr_array(np.ones((30, 40), np.float32))
    monkeypatch.setattr(cuda_backend, "free_bytes", lambda: 1 << 14)
    with pytest.raises(NotEnoughMemory, match=r"k=2 and 3 neighbours in float32 needs .* do not stream"):
        cuda32.counts(csr, 2, np.full((40, 3), -1, np.int32))


def test_options_reach_the_backend(cuda32: Any) -> None:
    data = random_counts()
    plain = fit(data)
    assert relative_error(fit(data, allocate="cusparse").Theta, plain.Theta) < 1e-5
    mixed = fit(data, precision="mixed", backend="auto")
    assert mixed.backend_ == "cuda"
    assert 1e-6 < relative_error(mixed.Theta, plain.Theta) < 1e-2


# -- data that lies on the device ----------------------------------------------------------------


def assert_same_fit(got: HPF, want: HPF) -> None:
    for name in MATRICES:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    for row in (0, 7):
        user = want.user_mapping_[row] if want.user_mapping_ is not None else row
        np.testing.assert_array_equal(got.topN(user, 5), want.topN(user, 5))
    assert got.train_llk == want.train_llk


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_device_matrix(cuda32: Any, form: str, dtype: type) -> None:
    """A CuPy sparse matrix is fitted as the same SciPy matrix is, and left as it was."""
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = random_counts().astype(dtype)
    given = getattr(cupy_sparse, f"{form}_matrix")(sparse.csr_matrix(matrix))
    before = given.get().toarray()
    assert_same_fit(fit(given), fit(matrix))
    np.testing.assert_array_equal(given.get().toarray(), before)


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_a_device_matrix_with_nothing_at_its_ends(cuda32: Any, form: str) -> None:
    """No counts in the first rows and columns, nor in the last."""
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = np.zeros((66, 51))
    matrix[3:-3, 3:-3] = random_counts().toarray()[:60, :45]
    given = getattr(cupy_sparse, f"{form}_matrix")(sparse.csr_matrix(matrix))
    assert_same_fit(fit(given), fit(sparse.csr_array(matrix)))


def test_blocks_of_a_device_matrix(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut on the device into blocks of users, of which the last is smaller: the same as on the host."""
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = random_counts()
    monkeypatch.setattr("hpf_gpu.fitting.training.USERS_PER_BLOCK", 17)
    assert_same_fit(fit(cupy_sparse.csr_matrix(sparse.csr_matrix(matrix))), fit(matrix))


def test_device_matrix_with_duplicates_and_zeros(cuda32: Any) -> None:
    import cupy as cp

    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    rng = np.random.default_rng(3)
    rows, columns = rng.integers(0, 40, 900), rng.integers(0, 30, 900)
    values = rng.integers(0, 4, 900).astype(np.float32)
    arrays = (cp.asarray(values), (cp.asarray(rows), cp.asarray(columns)))
    given = cupy_sparse.coo_matrix(arrays, shape=(40, 30))
    host = sparse.coo_array((values, (rows, columns)), shape=(40, 30))
    with pytest.warns(UserWarning, match="counts of zero were dropped") as warned:
        got = fit(given)
    assert [warning.filename for warning in warned] == [__file__]
    with pytest.warns(UserWarning, match="counts of zero were dropped"):
        want = fit(host)
    assert_same_fit(got, want)


def test_the_same_pair_on_the_device_is_summed_in_double(cuda: Any) -> None:
    """Ones that a sum in float32 would lose; 300 pairs, so that sums fill more than a block."""
    import cupy as cp

    pairs = np.arange(300)
    row, column = np.repeat(pairs % 20, 3), np.repeat(pairs // 20, 3)
    value = np.tile([2.0**24, 1.0, 1.0], 300)
    numbers = (cp.asarray(x.astype(np.int32)) for x in (row, column))
    csr = cuda._sorter.canonical(Triplets((20, 15), *numbers, cp.asarray(value.astype(cuda.dtype)), 0))
    got = sparse.csr_array((csr.data.get(), csr.indices.get(), csr.indptr), shape=csr.shape)
    assert csr.nnz == 300
    assert (got.toarray() == 2.0**24 + 2).all()


@pytest.mark.parametrize("doubled", [0, 1, 2])
def test_few_pairs_on_the_device_are_given_twice(cuda: Any, doubled: int) -> None:
    """None, one or two of them: each is one nonzero then."""
    import cupy as cp

    row, column = np.arange(50) % 9, np.arange(50) % 8
    row, column = (np.concatenate([numbers, numbers[:doubled]]) for numbers in (row, column))
    numbers = (cp.asarray(x.astype(np.int32)) for x in (row, column))
    csr = cuda._sorter.canonical(Triplets((9, 8), *numbers, cp.ones(50 + doubled, cuda.dtype), 0))
    got = sparse.csr_array((csr.data.get(), csr.indices.get(), csr.indptr), shape=csr.shape)
    want = sparse.coo_array((np.ones(len(row)), (row, column)), shape=(9, 8)).tocsr()
    assert csr.nnz == got.nnz == want.nnz == 50
    np.testing.assert_array_equal(got.toarray(), want.toarray())


@pytest.mark.parametrize("reindex", [True, False])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_device_array(cuda32: Any, reindex: bool, dtype: type) -> None:
    """An array (n, 3) on the device: ids in order of first appearance, or row numbers."""
    import cupy as cp

    rng = np.random.default_rng(4)
    offset = 100 if reindex else 0
    columns = (rng.integers(0, 40, 900) * 2 + offset, rng.integers(0, 30, 900), rng.integers(1, 5, 900))
    table = np.stack(columns, axis=1).astype(dtype)
    got, want = fit(cp.asarray(table), reindex=reindex), fit(table, reindex=reindex)
    assert_same_fit(got, want)
    if reindex:
        np.testing.assert_array_equal(got.user_mapping_, want.user_mapping_)
        np.testing.assert_array_equal(got.item_mapping_, want.item_mapping_)


def test_a_device_array_without_counts(cuda32: Any) -> None:
    import cupy as cp

    rng = np.random.default_rng(4)
    pairs = np.stack([rng.integers(0, 40, 900), rng.integers(0, 30, 900)], axis=1)  # some are there twice
    got = fit(cp.asarray(pairs), count=None)
    assert_same_fit(got, fit(np.insert(pairs, 2, 1, axis=1)))
    with pytest.raises(ValueError, match=r"must be \(n, 2\) with UserId, ItemId, not \(900, 3\)"):
        fit(cp.asarray(np.insert(pairs, 2, 1, axis=1)), count=None)
    with pytest.raises(ValueError, match=r"must be \(n, 3\) with UserId, ItemId, Count, not \(900, 2\)"):
        fit(cp.asarray(pairs))


def test_ids_beside_a_device_matrix(cuda32: Any) -> None:
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    data = random_counts()
    users, items = ([f"{kind} {row}" for row in range(n)] for kind, n in zip("ui", data.shape, strict=True))
    counts = Counts(cupy_sparse.csr_matrix(data), users=users, items=items)
    got = fit(counts)
    np.testing.assert_array_equal(got.Theta, fit(data).Theta)
    assert got.user_mapping_.tolist() == users
    assert got.item_mapping_.tolist() == items
    assert got.transform(counts).index.tolist() == users


def test_zeros_in_a_device_array(cuda32: Any) -> None:
    """They are dropped and counted, and who has nothing else is no user."""
    import cupy as cp

    table = np.array([[7, 1, 0], [5, 2, 3], [6, 1, 2], [9, 3, 0], [5, 1, 1]])
    with pytest.warns(UserWarning, match="2 counts of zero were dropped"):
        got = fit(cp.asarray(table), k=2)
    with pytest.warns(UserWarning, match="2 counts of zero were dropped"):
        want = fit(table, k=2)
    np.testing.assert_array_equal(got.user_mapping_, [5, 6])
    np.testing.assert_array_equal(got.item_mapping_, want.item_mapping_)
    np.testing.assert_array_equal(got.Theta, want.Theta)


@pytest.mark.parametrize("dtype", [np.int8] if conftest.SIMULATED else [np.int8, np.int16])
def test_narrow_device_ids_do_not_wrap(cuda32: Any, dtype: type) -> None:
    import cupy as cp

    rng, most = np.random.default_rng(6), int(np.iinfo(dtype).max)
    ids = rng.integers(-most, most, (2, 3000))
    table = np.stack([*ids, rng.integers(1, 5, 3000)], axis=1).astype(dtype)
    got, want = fit(cp.asarray(table)), fit(table)
    assert_same_fit(got, want)


class OnlyDLPack:
    """An array of another library."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_array_of_another_library(cuda32: Any) -> None:
    import cupy as cp

    rng = np.random.default_rng(5)
    table = np.stack([rng.integers(0, 20, 200), rng.integers(0, 9, 200), rng.integers(1, 5, 200)], axis=1)
    assert_same_fit(fit(OnlyDLPack(cp.asarray(table))), fit(table))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 1, np.nan], "count nan at position 3 cannot be used"),
        ([1, 1, -2], r"count -2\.0 at position 3 cannot be used"),
        ([1.5, 1, 2], r"user id 1\.5 is not one"),
        ([1, np.inf, 2], "item id inf is not one"),
        ([1, 1, 1e30], "add up to 1e"),
        ([1e15, 1, 2], "too far apart"),
    ],
)
def test_bad_device_arrays(cuda32: Any, row: list[float], message: str) -> None:
    import cupy as cp

    table = np.array([[0, 0, 1], [2, 1, 3], [1, 2, 1], row], np.float64)
    with pytest.raises(ValueError, match=message):
        fit(cp.asarray(table))


@pytest.mark.parametrize("number", [-1.0, 2.0**31, 1e15])
def test_device_ids_that_are_no_row_numbers(cuda32: Any, number: float) -> None:
    import cupy as cp

    with pytest.raises(ValueError, match=f"user id {number:.0f} is not a row number"):
        fit(cp.asarray([[0, 0, 1], [number, 1, 3]]), reindex=False)


def test_bad_device_matrices(cuda32: Any) -> None:
    import cupy as cp

    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    given = cupy_sparse.csr_matrix(sparse.csr_matrix(random_counts()))
    given.data[11] = cp.nan
    with pytest.raises(ValueError, match="count nan at position 11"):
        fit(given)
    given.data[11] = 1
    given.indices[11] = 45
    with pytest.raises(ValueError, match="column outside its shape"):
        fit(given)
    with pytest.raises(ValueError, match=r"must be \(n, 3\)"):
        fit(cp.ones((5, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": [1, 1, 2, 3]}, "does not divide its 3 nonzeros into 3 rows"),
        ({"indptr": [0, 1, 2, 2]}, "does not divide"),
        ({"indptr": [0, 2, 1, 3]}, "does not divide"),
        ({"indptr": [0, 1, 3]}, "does not divide"),
        ({"indices": [0, -1, 2]}, "a column outside its shape"),
        ({"indices": [0, 3, 2]}, "a column outside its shape"),
        ({"format": "csc", "indices": [0, 3, 2]}, "a row outside its shape"),
        ({"data": np.array([1, 2, 1], np.complex64)}, "counts of type complex64 are not numbers"),
        ({"data": np.zeros(3, np.float32)}, "no count above zero"),
        ({"format": "bsr"}, r"'bsr' is not supported: pass data\.tocsr"),
        ({"shape": (0, 3)}, r"needs rows and columns; this one has shape \(0, 3\)"),
        ({"shape": (3,)}, r"this array has shape \(3,\)"),
        ({"shape": (2**31, 3)}, "numbers rows and columns in 32 bits"),
    ],
)
def test_device_matrices_that_are_none(cuda32: Any, change: dict[str, Any], message: str) -> None:
    """Whatever arrays a matrix holds, its kernels are not given numbers that lie outside."""
    import cupy as cp

    good = {
        "shape": (3, 3),
        "format": "csr",
        "indptr": [0, 1, 2, 3],
        "indices": [0, 1, 2],
        "data": [1.0, 2.0, 1.0],
    }
    fields = good | change
    arrays = {name: cp.asarray(fields[name]) for name in ("indptr", "indices", "data")}
    with pytest.raises(ValueError, match=message):
        from_matrix(cp, SimpleNamespace(**fields | arrays), np.dtype(np.float32))
    from_matrix(
        cp, SimpleNamespace(**good | {name: cp.asarray(good[name]) for name in arrays}), np.dtype("f4")
    )


def test_row_numbers_far_above_the_counts_are_no_row_numbers(cuda32: Any) -> None:
    """A matrix with a row for each would be all empty rows: somebody's ids, most likely."""
    import cupy as cp

    for reindex, message in ((False, "user id 1000301 is not a row number"), (True, "too far apart")):
        table = cp.asarray([[0, 0, 1], [1_000_301, 1, 3], [1, 1, 1]])
        with pytest.raises(ValueError, match=message):
            fit(table, reindex=reindex)
    with pytest.raises(ValueError, match="no count is above zero"):
        fit(cp.asarray([[0, 0, 0], [1, 1, 0]]))
    with pytest.raises(ValueError, match=r"must be \(n, 3\)"):
        fit(cp.ones((0, 3)))


@pytest.mark.parametrize("backend", ["numpy", "openmp"])
def test_device_data_comes_to_other_backends(cuda32: Any, backend: str) -> None:
    import cupy as cp

    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = random_counts()
    given = cupy_sparse.csr_matrix(sparse.csr_matrix(matrix))
    assert_same_fit(fit(given, backend=backend), fit(matrix, backend=backend))
    table = np.array([[0, 0, 1], [2, 1, 3], [1, 2, 1]] * 4, np.float64)
    got, want = fit(cp.asarray(table), backend=backend), fit(table, backend=backend)
    np.testing.assert_array_equal(got.Theta, want.Theta)


@pytest.mark.parametrize("wrap", [lambda array: array, OnlyDLPack])
def test_held_out_data_on_the_device(cuda32: Any, wrap: Any) -> None:
    import cupy as cp

    table = np.array([[0, 0, 1], [2, 1, 3], [1, 2, 1], [2, 2, 2]], np.float64)
    model, given = fit(table), wrap(cp.asarray(table))
    assert model.eval_llk(given) == model.eval_llk(table)
    np.testing.assert_array_equal(model.transform(given), model.transform(table))
    assert fit(table, stop_crit="val-llk", val_set=given).niter == 4


def test_a_matrix_on_the_device_has_no_user_ids(cuda32: Any) -> None:
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = sparse.csr_matrix(random_counts())
    with pytest.raises(TypeError, match="users are added by id"):
        fit(matrix).add_users(cupy_sparse.csr_matrix(matrix))


# -- several devices ---------------------------------------------------------------------------


@pytest.fixture
def second(cuda32: Any) -> Any:
    """The backend on device 1, while device 0 is the current one."""
    import cupy as cp

    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    return create("cuda:1", np.dtype(np.float32))


def test_fit_on_another_device(second: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All work is done on the device that is named, whatever the current one, which stays the current one."""
    import cupy as cp

    from hpf_gpu.answers import recommendations

    monkeypatch.setattr(recommendations, "_MIN_USERS_FOR_GPU", 60)
    data, used = random_counts(), set()

    def allocate(size: int) -> Any:
        used.add(cp.cuda.runtime.getDevice())
        return cp.cuda.MemoryPointer(cp.cuda.Memory(size), 0)

    def work(backend: str) -> HPF:
        model = fit(data, backend=backend, stop_crit="diff-norm")
        model.partial_fit(data[:20])
        return model

    want = work("cuda")
    with cp.cuda.using_allocator(allocate):
        got = work("cuda:1")
        np.testing.assert_array_equal(got.transform(data[:5]), want.transform(data[:5]))
        np.testing.assert_array_equal(got.topN(np.arange(60), 5), want.topN(np.arange(60), 5))
        assert used == {0, 1}  # ``want`` folds in and ranks on the other device
    assert (got.backend_, want.backend_) == ("cuda:1", "cuda")
    assert cp.cuda.runtime.getDevice() == 0
    assert_same_fit(got, want)


@pytest.mark.parametrize(
    "options", [{"users_per_batch": 25, "items_per_batch": 20}, {"allocate": "cusparse"}]
)
def test_options_on_another_device(second: Any, options: dict[str, Any]) -> None:
    data = random_counts()
    got, want = fit(data, backend="cuda:1", **options), fit(data, **options)
    assert relative_error(got.Theta, want.Theta) < 1e-5


def test_every_operation_runs_on_its_own_device(second: Any) -> None:
    """Also the backend that was created while another device was the current one."""
    import cupy as cp

    with cp.cuda.Device(1):
        unnamed = create("cuda", np.float32)
    for backend in (second, unnamed):
        assert backend.describe().startswith("cuda:1 is ")
        for name, arguments in every_operation(backend).items():
            result = run_operation(backend, name, arguments)
            parts = result if isinstance(result, tuple) else (result,)
            assert {part.device.id for part in parts if isinstance(part, cp.ndarray)} <= {1}, name
        backend.keep_pace()
        assert cp.cuda.runtime.getDevice() == 0


def test_arrays_of_another_device_are_refused(cuda32: Any, second: Any) -> None:
    """Each array of a launch, and counts that the user has there."""
    import cupy as cp

    factor = make_factor(cuda32, make_case("K=5").users)
    with pytest.raises(ValueError, match="Gamma: shape is on device 0, not 1"):
        second.mean(factor)
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    table = cp.asarray([[0, 0, 1], [2, 1, 3], [1, 2, 1]])
    for data in (table, OnlyDLPack(table), cupy_sparse.csr_matrix(sparse.csr_matrix(random_counts()))):
        with pytest.raises(ValueError, match=r"are on device cuda:0, .* on cuda:1: pass backend='cuda:0'"):
            fit(data, backend="cuda:1")


def test_counts_on_another_device_are_fitted_there(second: Any) -> None:
    import cupy as cp

    table = np.array([[0, 0, 1], [2, 1, 3], [1, 2, 1], [2, 2, 2]], np.float64)
    with cp.cuda.Device(1):
        given = cp.asarray(table)
    for data in (given, OnlyDLPack(given)):
        got, want = (fit(counts, k=2, backend="cuda:1") for counts in (data, table))
        np.testing.assert_array_equal(got.Theta, want.Theta)


def test_memory_of_another_device_is_asked_for(second: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy as cp

    pool = cp.get_default_memory_pool()
    monkeypatch.setattr(
        cp.cuda.runtime, "memGetInfo", lambda: ((1 << 30, 0)[cp.cuda.runtime.getDevice()], 1 << 30)
    )
    with cp.cuda.using_allocator(pool.malloc):
        fit(random_counts())
        with pytest.raises(NotEnoughMemory, match=r"of which 0\.00 GiB are free"):
            fit(random_counts(), backend="cuda:1")
    pool.free_all_blocks()


def test_a_device_that_does_not_exist(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that exist are listed; it is no fault of the machine."""
    import cupy as cp

    count = cp.cuda.runtime.getDeviceCount()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    message = rf"no device cuda:{count}: cuda:0 is .*; with CUDA_VISIBLE_DEVICES='0,1'; .* backend='cuda'"
    with pytest.raises(BackendUnavailable, match=message) as raised:
        fit(random_counts(), backend=f"cuda:{count}")
    assert raised.value.expected


def test_a_model_of_another_device_is_taken_anywhere(
    second: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, pickled, and from a checkpoint: where the device does not exist, others do the work."""
    import cupy as cp

    from hpf_gpu.answers import recommendations

    data, kept = random_counts(), {"checkpoint": tmp_path / "fit", "checkpoint_every": 1}
    model = fit(data, backend="cuda:1")
    model.fit(data, callback=lambda check: check.iteration == 2, **kept)
    assert model.niter == 2
    model.save(tmp_path / "model")
    pickled = pickle.dumps(model)
    monkeypatch.setattr(cp.cuda.runtime, "getDeviceCount", lambda: 1)
    monkeypatch.setattr(recommendations, "_MIN_USERS_FOR_GPU", 60)
    for got in (HPF.load(tmp_path / "model"), pickle.loads(pickled)):
        assert got.backend == "cuda:1"
        assert got.predict(3, 4) == model.predict(3, 4)
        assert got.topN(np.arange(60), 5).shape == (60, 5)
        with pytest.raises(BackendUnavailable, match="no device cuda:1"):
            got.transform(data)
        got.backend = "cuda"
        got.transform(data)
    assert HPF.load(tmp_path / "model").backend_ == "cuda"
    model.backend = "cuda"
    assert model.fit(data, **kept).niter == 4


# -- away from the GPU -------------------------------------------------------------------------


def test_a_fitted_model_needs_no_gpu(cuda32: Any, tmp_path: Any) -> None:
    """Pickled here, it predicts in a process that cannot import CuPy."""
    users = [f"user {row}" for row in range(60)]
    coo = random_counts().tocoo()
    frame = pd.DataFrame({"UserId": [users[row] for row in coo.row], "ItemId": coo.col, "Count": coo.data})
    model = fit(frame)
    wanted = (model.predict("user 3", 4), model.topN("user 3", 5).tolist())
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    script = f"""
import pickle, sys
sys.modules["cupy"] = None
model = pickle.load(open({str(tmp_path / "model.pickle")!r}, "rb"))
print(repr((float(model.predict("user 3", 4)), model.topN("user 3", 5).tolist())))
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    predicted, best = eval(ran.stdout)
    assert predicted == pytest.approx(wanted[0], rel=1e-6)
    assert best == wanted[1]
