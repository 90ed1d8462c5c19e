"""The CUDA simulator: correct kernels give the right results, and every planted bug is caught."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cudasim
import numpy as np
import pytest
import scipy.sparse
import scipy.special
from cudasim import planted

HERE = Path(__file__).parent
FEATURES = (HERE / "cudasim" / "features.cu").read_text(encoding="utf-8")
ORDERS = [("eager", 0), ("lazy", 0), *(("random", seed) for seed in range(4))]


def unavailable(error: RuntimeError) -> None:
    """Skip, or fail if HPF_GPU_REQUIRE names the simulator."""
    if "cudasim" in os.environ.get("HPF_GPU_REQUIRE", "").split(","):
        pytest.fail(f"HPF_GPU_REQUIRE names cudasim: {error}", pytrace=False)
    pytest.skip(str(error))


def build(source: str, **options):
    try:
        return cudasim.build(source, **options)
    except cudasim.Unsupported as error:
        unavailable(error)


@pytest.fixture(scope="module")
def cp():
    """The real CuPy over the simulated device."""
    try:
        cudasim.install()
    except RuntimeError as error:
        unavailable(error)
    import cupy

    return cupy


@pytest.fixture(scope="module")
def features():
    return build(FEATURES, options=("-DREAL=double", "-DK=30"), filename="features.cu")


# ---- planted bugs ----

FORBIDDEN, RACE, SANITIZED = r"bugs\.cu:\d+: ", "data race", "AddressSanitizer|runtime error"

#: Which flavour finds which bug, and by what in its report.  A flavour that is not named sees nothing, and
#: the result is right: there is no other way to find the bug.  None: it depends on the memory beside.
FOUND_BY = {
    "missing_syncthreads": {"fast": planted.WRONG, "asan": planted.WRONG, "tsan": RACE},
    "missing_syncwarp": {"tsan": RACE},
    "wrong_mask": dict.fromkeys(
        cudasim.FLAVOURS, FORBIDDEN + "__shfl_xor_sync: lane 20 .*not in its own mask"
    ),
    "mask_of_others": dict.fromkeys(cudasim.FLAVOURS, FORBIDDEN + "deadlock: .*waits for ever in __shfl_xor"),
    "divergent_barrier": dict.fromkeys(
        cudasim.FLAVOURS, FORBIDDEN + r"__syncthreads: .*at line \d+, another"
    ),
    "barrier_after_exit": dict.fromkeys(cudasim.FLAVOURS, FORBIDDEN + "__syncthreads: 16 of 64 .*have left"),
    "deadlock": dict.fromkeys(cudasim.FLAVOURS, FORBIDDEN + "deadlock: .*waits for ever in __syncwarp"),
    "segment_off_by_one": {"fast": FORBIDDEN + "access to memory", "asan": SANITIZED, "tsan": None},
    "segment_off_by_one_odd": {"asan": SANITIZED, "tsan": None},
    "plain_add": {"tsan": RACE},
    "misaligned_float4": {"fast": None, "asan": "runtime error: .*misaligned", "tsan": None},
    "index_overflow": {"fast": None, "asan": "runtime error: signed integer overflow", "tsan": None},
    "uninitialised_shared": dict.fromkeys(cudasim.FLAVOURS, "wrong result: .nan"),
    "static_shared_overrun": {"fast": None, "asan": SANITIZED, "tsan": None},
    "dynamic_shared_overrun": dict.fromkeys(cudasim.FLAVOURS, "access to memory|AddressSanitizer"),
    "missing_threadfence": {"tsan": RACE},
}


@pytest.fixture(scope="module", params=cudasim.FLAVOURS)
def outcomes(request):
    """What became of every kernel of bugs.cu in one flavour."""
    try:
        return request.param, planted.outcomes(request.param)
    except cudasim.Unsupported as error:
        unavailable(error)


@pytest.mark.parametrize("name", planted.CASES)
def test_planted_bug_is_caught(outcomes, name):
    flavour, result = outcomes
    found_by = FOUND_BY[name].get(flavour, planted.RIGHT)
    if found_by is not None:
        assert re.search(found_by, result[name]), result[name]
    if found_by not in (planted.RIGHT, planted.WRONG, None):
        assert "bugs.cu:" in result[name] or planted.WRONG in result[name]


@pytest.mark.parametrize("name", planted.CASES)
def test_the_same_kernel_without_its_bug_passes(outcomes, name):
    assert outcomes[1][f"{name}, mended"] == planted.RIGHT


def test_every_bug_is_planted_and_found():
    assert set(FOUND_BY) == set(planted.CASES)
    assert all(any(reports.values()) for reports in FOUND_BY.values())


# ---- correct kernels ----


def split_rows(csr, length):
    """Rows and bounds of segments of at most `length` nonzeros."""
    rows = np.repeat(np.arange(csr.shape[0]), -(-np.diff(csr.indptr) // length))
    first = np.concatenate([csr.indptr[row] + np.arange(0, end - csr.indptr[row], length)
                            for row, end in enumerate(csr.indptr[1:])])  # fmt: skip
    return rows.astype(np.int32), np.append(first, csr.nnz).astype(np.int64)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_kernel_through_cupy(cp, dtype, seed, monkeypatch):
    monkeypatch.setenv("HPF_CUDASIM_SEED", str(seed))
    k, rng = 30, np.random.default_rng(0)
    csr = scipy.sparse.random(40, 50, 0.4, "csr", dtype=dtype, rng=rng)
    dense = rng.random((50, k)).astype(dtype)
    rows, bounds = split_rows(csr, 8)
    assert np.bincount(rows).max() > 1
    real = {np.float32: "float", np.float64: "double"}[dtype]
    options = ("--std=c++17", f"-DREAL={real}", f"-DK={k}")
    kernel = cp.RawModule(code=FEATURES, options=options).get_function("csr_times_dense")
    out = cp.zeros((40, k), dtype)
    arguments = (rows, bounds, np.int32(len(rows)), csr.indices, csr.data, dense)
    kernel(
        (-(-len(rows) // 4),),
        (128,),
        (*(cp.asarray(value) if value.ndim else value for value in arguments), out),
    )
    expected = csr.astype(np.float64) @ dense.astype(np.float64)
    # Measured: 2.4e-7 and 4.4e-16.
    np.testing.assert_allclose(out.get(), expected, rtol={np.float32: 1e-6, np.float64: 2e-15}[dtype])


def test_shared_memory_vectors_and_halves(features):
    x = np.random.default_rng(0).integers(0, 9, (100, 4)).astype(np.float32)
    halves, sums = features.array(np.zeros(4, np.float16)), features.array(np.zeros(4, np.float32))
    features.launch(
        "column_sums", (1,), (32,), [features.array(x), np.int32(100), halves, sums], shared_mem=32 * 16
    )
    np.testing.assert_array_equal(sums, x.sum(0))
    np.testing.assert_array_equal(halves, 0.5 * x.sum(0))


def test_collectives(features):
    lane = np.arange(32)
    x = (lane * 7 % 32).astype(np.int32)
    out = features.array(np.full((10, 32), -1, np.int64))
    features.launch("collectives", (1,), (32,), [features.array(x), out])
    groups = [(np.int64(1) << lane)[x % 4 == value % 4].sum() for value in x]
    expected = [
        x[(lane + 1) % 32],
        x[np.where(lane < 3, lane, lane - 3)],
        x[np.where(lane % 8 + 3 < 8, lane + 3, lane)],
        x[lane ^ 5],
        np.full(32, (np.int64(1) << lane)[x % 2 == 1].sum()),
        np.full(32, 1),
        np.full(32, 1),
        groups,
        np.full(32, x.sum()),
        np.where(lane < 8, x[lane ^ 7], -1),
    ]
    np.testing.assert_array_equal(out, expected)


def run_atomics(features, blocks=3, threads=64):
    n = blocks * threads
    x = np.random.default_rng(0).integers(-1000, 1000, n).astype(np.int32)
    results = [np.zeros(2, np.int32), np.zeros(1, np.uint32), np.zeros(1, np.uint64), np.zeros(1),
               np.zeros(n, np.uint32)]  # fmt: skip
    results = [features.array(value) for value in results]
    features.launch("atomics", (blocks,), (threads,), [features.array(x), *results])
    return x, results


def test_atomics(features):
    x, (extremes, count, big, total, order) = run_atomics(features)
    assert extremes.tolist() == [x.min(), x.max()]
    assert (count[0], big[0], total[0]) == (len(x), len(x) << 33, x.sum())
    np.testing.assert_array_equal(np.sort(order), np.arange(len(x)))


def test_a_seed_shuffles_blocks_and_threads(features, monkeypatch):
    orders = []
    for seed in (0, 1, 1, 2):
        monkeypatch.setenv("HPF_CUDASIM_SEED", str(seed))
        orders.append(run_atomics(features)[1][-1].tolist())
    in_order, shuffled, again, another = orders
    assert in_order == sorted(in_order)
    assert shuffled == again
    assert len({tuple(order) for order in orders}) == 3
    assert [i // 64 for i in shuffled] != sorted(i // 64 for i in shuffled) or another != sorted(another)
    assert [i % 64 for i in shuffled[:64]] != list(range(64))


def test_arithmetic(features):
    x = np.array([0.25, 1.0, 3.0, 1e30], np.float32)
    out = features.array(np.zeros((6, 4), np.float32))
    features.launch("arithmetic", (1,), (4,), [features.array(x), out])
    with np.errstate(over="ignore"):
        expected = [8 / x, 1 / x, x * x + 1, np.sqrt(x) + np.fmin(x, 2), np.exp(-x) + np.log(x),
                    x.astype(np.float16)]  # fmt: skip
    np.testing.assert_allclose(out, expected, rtol=3e-7)  # measured: 6e-8


def test_fast_division_by_huge_numbers_gives_zero(features):
    huge, out = np.float32([1e38]), features.array(np.zeros((6, 1), np.float32))
    features.launch("arithmetic", (1,), (1,), [features.array(huge), out])
    assert 8 / huge[0] > np.finfo(np.float32).tiny
    assert out[0, 0] == 0


def test_the_special_functions_of_the_kernels():
    header = (HERE.parent / "kernels" / "common" / "special.h").read_text(encoding="utf-8")
    module = build(
        header.replace("#pragma once", "") + 'extern "C" __global__ void f(const double* x, double* out) {\n'
        "  out[threadIdx.x] = hpf::expected_log(x[threadIdx.x], 2.0);\n}\n"
    )
    x = np.geomspace(1e-3, 1e3, 100)
    out = module.array(np.zeros(100))
    module.launch("f", (1,), (100,), [module.array(x), out])
    np.testing.assert_allclose(out, scipy.special.digamma(x) - np.log(2), rtol=2e-15, atol=2e-15)


# ---- the host's side: launches ----


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((1,), (2048,), 0, r"invalid block \(2048, 1, 1\)"),
        ((1,), (0,), 0, "invalid block"),
        ((0,), (32,), 0, r"invalid grid \(0, 1, 1\)"),
        ((1, 70_000), (32,), 0, "invalid grid"),
        ((1,), (32,), 50_000, "50000 bytes of dynamic shared memory are over the limit of 49152"),
    ],
)
def test_bad_launch_configurations(features, grid, block, shared, message):
    x, out = features.array(np.ones(64, np.float32)), features.array(np.zeros((6, 64), np.float32))
    with pytest.raises(cudasim.SimulationError, match=f"^arithmetic: {message}"):
        features.launch("arithmetic", grid, block, [x, out], shared_mem=shared)


SCALE = """
extern "C" __global__ void scale(const float* x, float factor, long long n, float* out) {
  const long long i = threadIdx.x;
  if (i < n) out[i] = factor * x[i];
}
"""


def test_arguments_are_held_against_the_signature(cp):
    module = build(SCALE)
    assert module.signature("scale") == ("*f4", "f4", "i8", "*f4")
    kernel = cp.RawModule(code=SCALE).get_function("scale")
    x, out = cp.ones(4, np.float32), cp.zeros(4, np.float32)
    kernel((1,), (4,), (x, np.float32(2), np.int64(4), out))
    assert out.get().tolist() == [2, 2, 2, 2]
    for arguments, complaint in [
        ((x, 2.0, np.int64(4), out), "parameter 1 is f4, the argument a Python float"),
        ((x, np.float64(2), np.int64(4), out), "parameter 1 is f4, the argument a scalar f8"),
        ((x, np.float32(2), np.int32(4), out), "parameter 2 is i8, the argument a scalar i4"),
        ((x, np.float32(2), np.int64(4), out.astype(np.float64)), "parameter 3 is .f4, .* an array of f8"),
        ((x, np.float32(2), np.int64(4), cp.zeros(8, np.float32)[::2]), "not C-contiguous"),
        ((x, np.float32(2), np.int64(4)), "3 arguments for 4 parameters"),
    ]:
        with pytest.raises(TypeError, match=f"^scale: .*{complaint}"):
            kernel((1,), (4,), arguments)


def test_without_that_check_a_wrong_scalar_goes_unseen(cp):
    checked = cp.RawModule(code=SCALE).get_function("scale")
    x, out = cp.ones(4, np.float32), cp.zeros(4, np.float32)
    vars(checked)["_kernel"]((1,), (4,), (x, 2.0, np.int64(4), out))
    assert out.get().tolist() == [0, 0, 0, 0]


def test_a_fault_names_kernel_line_and_thread(cp):
    kernel = cp.RawModule(code=SCALE).get_function("scale")
    with pytest.raises(cudasim.SimulationError, match=r"^scale: kernel\.cu:4: .* thread \(4, 0, 0\)"):
        kernel((1,), (8,), (cp.ones(4, np.float32), np.float32(2), np.int64(8), cp.zeros(8, np.float32)))
    assert cp.ones(3).sum().get() == 3  # and the device is as good as new


def test_compile_errors_quote_the_line():
    with pytest.raises(cudasim.CompileError, match=r"(?s)wrong\.cu:2:\d+: error: .*not_declared"):
        build('extern "C" __global__ void f(int* x) {\n  x[0] = not_declared;\n}', filename="wrong.cu")
    with pytest.raises(cudasim.CompileError, match="--maxrregcount"):
        build(SCALE, options=("--maxrregcount=32",))


def test_an_unknown_kernel_is_an_error(cp):
    with pytest.raises(cudasim.SimulationError, match="no kernel 'scala' among scale"):
        cp.RawModule(code=SCALE).get_function("scala")


def test_two_processes_may_build_the_same_kernel(tmp_path):
    build(SCALE)
    code = f"import cudasim; print(cudasim.build({SCALE!r}).signature('scale')[0])"
    environment = dict(cudasim.environment("fast"), TMPDIR=str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in processes] == ["*f4", "*f4"]
    assert [path.suffix for path in tmp_path.glob("hpf_cudasim_*/*")] == [".so", ".so"]


# ---- the host's side: streams ----

ADD_ONE = 'extern "C" __global__ void add_one(float* x) { x[threadIdx.x] += 1; }'


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("waits", [True, False])
def test_missing_event(cp, order, waits):
    """Eager order never shows it; random order does for some seeds."""
    kernel = cp.RawModule(code=ADD_ONE).get_function("add_one")
    first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    with cudasim.stream_order(*order):
        x = cp.zeros(32, np.float32)
        cp.cuda.get_current_stream().synchronize()
        with first:
            kernel((1,), (32,), (x,))
        if waits:
            second.wait_event(first.record())
        with second:
            result = x.get()[0]
    assert result == {"eager": 1, "lazy": int(waits), "random": 1 if waits else result}[order[0]]


def test_a_random_order_shows_a_missing_event(cp):
    kernel = cp.RawModule(code=ADD_ONE).get_function("add_one")
    seen = set()
    for seed in range(8):
        first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
        with cudasim.stream_order("random", seed):
            x = cp.zeros(32, np.float32)
            cp.cuda.get_current_stream().synchronize()
            with first:
                kernel((1,), (32,), (x,))
            with second:
                seen.add(int(x.get()[0]))
    assert seen == {0, 1}


def copy_from_pinned(cp, mistake):
    """Copy ones to the device from pinned memory, which then changes or goes away."""
    import cupyx

    stream = cp.cuda.Stream(non_blocking=True)
    pinned = cupyx.empty_pinned(1000, np.float32)
    pinned[:] = 1
    x = cp.empty(1000, np.float32)
    x.set(pinned, stream)
    if mistake is None:
        stream.synchronize()
    if mistake == "freed":
        del pinned
    else:
        pinned[:] = 2
    stream.synchronize()
    return x.get()[0]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_pinned_memory_after_a_synchronization(cp, order):
    with cudasim.stream_order(*order):
        assert copy_from_pinned(cp, None) == 1


def test_pinned_memory_overwritten_too_early(cp):
    with cudasim.stream_order("eager"):
        assert copy_from_pinned(cp, "overwritten") == 1
    with cudasim.stream_order("lazy"):
        assert copy_from_pinned(cp, "overwritten") == 2


def test_pinned_memory_freed_too_early(cp):
    with cudasim.stream_order("eager"):
        assert copy_from_pinned(cp, "freed") == 1
    with cudasim.stream_order("lazy"), pytest.raises(cudasim.SimulationError, match="freed before a copy"):
        copy_from_pinned(cp, "freed")


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_ordinary_memory_may_change_at_once(cp, order):
    values = np.ones(1000, np.float32)
    with cudasim.stream_order(*order):
        x = cp.asarray(values)
        values[:] = 2
        assert x.get()[0] == 1


@pytest.mark.parametrize("waits", [True, False])
def test_array_freed_while_another_stream_uses_it(cp, waits):
    """CuPy's pool gives the memory to the next array of the stream it was made on."""
    kernel = cp.RawModule(code=ADD_ONE).get_function("add_one")
    other = cp.cuda.Stream(non_blocking=True)
    with cudasim.stream_order("lazy"):
        x = cp.zeros(32, np.float32)
        other.wait_event(cp.cuda.get_current_stream().record())
        with other:
            kernel((1,), (32,), (x,))
        if waits:
            cp.cuda.get_current_stream().wait_event(other.record())
        del x
        cp.cuda.get_current_stream().synchronize()
        if waits:
            other.synchronize()
        else:
            with pytest.raises(cudasim.SimulationError, match=r"add_one: .*belongs to no array"):
                other.synchronize()


# ---- CuPy ----


def test_fresh_memory_is_poisoned(cp):
    assert np.isnan(cp.empty(100, np.float32).get()).all()
    assert (cp.empty(100, np.int32).get() == -1).all()


def test_arrays(cp):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    y = cp.asarray(x)
    for result, expected in [
        (2 * y + y / 4, 2 * x + x / 4),
        (y[1:, ::2], x[1:, ::2]),
        (cp.ascontiguousarray(y.T), x.T),
        (
            cp.concatenate([y, cp.full((1, 4), 2.5, np.float32)]),
            np.vstack([x, np.full((1, 4), 2.5, np.float32)]),
        ),
        (y.sum(axis=0), x.sum(axis=0)),
        (y.max(), x.max()),
        ((y > 20).any(), np.False_),
        ((y >= 0).all(), np.True_),
        (y.astype(np.float64), x.astype(np.float64)),
        (cp.cumsum(cp.arange(5)), np.cumsum(np.arange(5))),
        (cp.repeat(cp.arange(3), 2), np.repeat(np.arange(3), 2)),
    ]:
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result.get(), expected)


def test_device(cp):
    runtime = cp.cuda.runtime
    assert cp.cuda.Device().compute_capability == "80"
    assert cp.cuda.Device().attributes["MultiProcessorCount"] == 4
    assert runtime.getDeviceCount() == 1
    assert runtime.getDeviceProperties(0)["name"] == b"CUDA simulator"
    assert runtime.driverGetVersion() == runtime.runtimeGetVersion() == 13020
    free, total = runtime.memGetInfo()
    assert 0 < free < total
    assert cp.get_default_memory_pool().used_bytes() == 0


def test_arrays_are_exchanged_without_a_copy(cp):
    class Foreign:
        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    x = cp.zeros(4, np.float32)
    for other in (cp.from_dlpack(x), cp.asarray(Foreign(x))):
        other[:] = 3
        assert x.get().tolist() == [3, 3, 3, 3]
        x[:] = 0


@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_matrix_times_dense(cp, transposed):
    import cupyx.scipy.sparse

    rng = np.random.default_rng(0)
    csr = scipy.sparse.random(20, 30, 0.2, "csr", dtype=np.float32, rng=rng)
    dense = rng.random((20 if transposed else 30, 5)).astype(np.float32)
    ours = cupyx.scipy.sparse.csr_matrix(
        (cp.asarray(csr.data), cp.asarray(csr.indices), cp.asarray(csr.indptr)), csr.shape
    )
    np.testing.assert_array_equal(ours.indptr.get(), csr.indptr)
    result = (ours.T if transposed else ours) @ cp.asarray(dense)
    np.testing.assert_allclose(result.get(), (csr.T if transposed else csr) @ dense, rtol=1e-6)


# ---- where it runs ----


def test_install_twice(cp):
    cudasim.install()
    other = next(name for name in cudasim.FLAVOURS if name != os.environ.get("HPF_CUDASIM", "fast"))
    with pytest.raises(RuntimeError, match=f"not {other}"):
        cudasim.install(other)


def test_unsupported_machines(cp, monkeypatch):
    from cudasim import real_cupy

    monkeypatch.setattr(real_cupy, "_installed", None)
    with pytest.raises(RuntimeError, match=r"imported before"):
        cudasim.install()
    monkeypatch.setattr(real_cupy, "_cupy_version", lambda: "12.0.0")
    with pytest.raises(cudasim.Unsupported, match=r"not tried with CuPy 12\.0\.0"):
        cudasim.install()
    monkeypatch.setattr(real_cupy, "_cupy_version", lambda: None)
    with pytest.raises(cudasim.Unsupported, match="CuPy is not installed"):
        cudasim.install()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(cudasim.Unsupported, match="Linux on x86-64, not darwin"):
        cudasim.install()


def test_unknown_flavour():
    with pytest.raises(ValueError, match="no flavour 'msan'"):
        cudasim.environment("msan")


@pytest.mark.parametrize("flavour", ["asan", "tsan"])
def test_pytest_runs_in_a_flavour(flavour):
    try:
        environment = cudasim.environment("fast")
        cudasim.environment(flavour)
    except cudasim.Unsupported as error:
        unavailable(error)
    test = f"{__file__}::test_sparse_kernel_through_cupy[float32-1]"
    command = [sys.executable, "-m", "cudasim", flavour, sys.executable, "-m", "pytest", "-q", test]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
