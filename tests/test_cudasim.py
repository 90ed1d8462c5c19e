"""The CUDA simulator: correct kernels give the right results, and every planted bug is caught."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cudasim
import numpy as np
import pytest
import scipy.sparse
import scipy.special
from cudasim import planted

from hpf_gpu.backends.cuda_source import Variant, source

HERE = Path(__file__).parent
FEATURES = (HERE / "cudasim" / "features.cu").read_text(encoding="utf-8")


def why_not(flavour: str) -> str:
    try:
        cudasim.environment(flavour)
    except cudasim.Unsupported as error:
        return str(error)
    return ""


#: Why the flavours that cannot run here cannot: test_every_flavour_is_here says it.
MISSING = {flavour: reason for flavour in cudasim.FLAVOURS if (reason := why_not(flavour))}
FLAVOURS = [flavour for flavour in cudasim.FLAVOURS if flavour not in MISSING]


def unavailable(reason: str) -> None:
    """Skip, or fail if HPF_GPU_REQUIRE names the simulator."""
    if "cudasim" in os.environ.get("HPF_GPU_REQUIRE", "").split(","):
        pytest.fail(f"HPF_GPU_REQUIRE names cudasim: {reason}", pytrace=False)
    pytest.skip(reason)


if not FLAVOURS and "cudasim" not in os.environ.get("HPF_GPU_REQUIRE", "").split(","):
    pytest.skip(MISSING["fast"], allow_module_level=True)


@pytest.mark.parametrize("flavour", cudasim.FLAVOURS)
def test_every_flavour_is_here(flavour):
    if flavour in MISSING:
        unavailable(MISSING[flavour])


@pytest.fixture(scope="module")
def features():
    return cudasim.build(FEATURES, options=("-DREAL=double", "-DK=30"), filename="features.cu")


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


@pytest.fixture(scope="module")
def all_outcomes():
    """What became of every kernel of bugs.cu in each flavour."""
    with ThreadPoolExecutor() as pool:  # of processes that wait for g++
        return dict(zip(FLAVOURS, pool.map(planted.outcomes, FLAVOURS), strict=True))


@pytest.fixture(params=FLAVOURS)
def outcomes(request, all_outcomes):
    return request.param, all_outcomes[request.param]


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
    module = cudasim.build(
        header.replace("#pragma once", "") + 'extern "C" __global__ void f(const double* x, double* out) {\n'
        "  out[threadIdx.x] = hpf::expected_log(x[threadIdx.x], 2.0);\n}\n"
    )
    x = np.geomspace(1e-3, 1e3, 100)
    out = module.array(np.zeros(100))
    module.launch("f", (1,), (100,), [module.array(x), out])
    np.testing.assert_allclose(out, scipy.special.digamma(x) - np.log(2), rtol=2e-15, atol=2e-15)


#: A row's width that refuses to be multiplied with a number of 32 bits.
WIDTH = """
struct Width {
  constexpr operator int() const { return HPF_WIDTH; }
};
template <class T>
constexpr long long operator*(T row, Width) {
  static_assert(sizeof(T) == 8, "rows beyond 2^31 numbers need 64 bits");
  return row * HPF_WIDTH;
}
constexpr int K = HPF_K;
constexpr Width width;
"""


def test_the_kernels_find_rows_by_products_of_64_bits():
    """In every kernel; test_cuda.py runs those that can do with a few rows of a matrix so large."""
    variant, declaration = (
        Variant(30, np.dtype("f4"), neighbours=200),
        "constexpr int K = HPF_K, width = HPF_WIDTH;",
    )
    code = source()
    assert code.count(declaration) == 1
    cudasim.build(code.replace(declaration, WIDTH), variant.options)
    mistaken = code.replace("matrix + row * width)", "matrix + int(row) * width)")
    assert mistaken != code
    with pytest.raises(cudasim.CompileError, match="need 64 bits"):
        cudasim.build(mistaken.replace(declaration, WIDTH), variant.options)


# ---- launches ----


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


def test_arguments_are_held_against_the_signature():
    module = cudasim.build(SCALE)
    assert module.signature("scale") == ("*f4", "f4", "i8", "*f4")
    x, out = module.array(np.ones(4, np.float32)), module.array(np.zeros(4, np.float32))
    module.launch("scale", (1,), (4,), [x, np.float32(2), np.int64(4), out])
    assert out.tolist() == [2, 2, 2, 2]
    with pytest.raises(TypeError, match="parameter 2 is i8, the argument a scalar i4"):
        module.launch("scale", (1,), (4,), [x, np.float32(2), np.int32(4), out])


def test_compile_errors_quote_the_line():
    with pytest.raises(cudasim.CompileError, match=r"(?s)wrong\.cu:2:\d+: error: .*not_declared"):
        cudasim.build(
            'extern "C" __global__ void f(int* x) {\n  x[0] = not_declared;\n}', filename="wrong.cu"
        )
    with pytest.raises(cudasim.CompileError, match="--maxrregcount"):
        cudasim.build(SCALE, options=("--maxrregcount=32",))


def test_two_processes_may_build_the_same_kernel(tmp_path):
    code = f"import cudasim; print(cudasim.build({SCALE!r}).signature('scale')[0])"
    environment = dict(cudasim.environment("fast"), TMPDIR=str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in processes] == ["*f4", "*f4"]
    names = sorted(path.name.split("-")[0] for path in tmp_path.glob("hpf_cudasim_*/*"))
    assert names == ["builtins", "kernel", "lock", "runtime"]


# ---- CuPy ----


@pytest.mark.slow
def test_cupy_over_the_simulator():
    """cupy_suite.py, in a process of its own: this one keeps the CUDA of the machine, or none.

    CuPy under the sanitizers is what the legs of test_simulated_cuda.py run.
    """
    suite = ["-qrs", "--noconftest", "-p", "no:cacheprovider", str(HERE / "cudasim" / "cupy_suite.py")]
    command = [sys.executable, "-m", "cudasim", "fast", sys.executable, "-m", "pytest", *suite]
    done = subprocess.run(command, env=cudasim.environment("fast"), capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    if "passed" not in done.stdout:
        unavailable(report)


@pytest.mark.slow
def test_host_time_is_measured():
    """By the program, for each kind of iteration; not how long it is."""
    command = [sys.executable, str(HERE.parent / "bench" / "host_time.py"), "--iterations", "3", "--k", "5"]
    done = subprocess.run(command, env=cudasim.environment("fast"), capture_output=True, text=True)
    if "Unsupported: " in done.stderr:
        unavailable(done.stderr)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(?:[a-z ]+: \d+\.\d µs, the fastest \d+\.\d µs\n){3}", done.stdout), done.stdout


# ---- where it runs ----


def test_unsupported_machines(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(cudasim.Unsupported, match="Linux on x86-64, not darwin"):
        cudasim.environment("fast")


def test_unknown_flavour():
    with pytest.raises(ValueError, match="no flavour 'msan'"):
        cudasim.environment("msan")
