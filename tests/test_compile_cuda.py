"""The compile check of the CUDA kernels: what it sees in small kernels, and what it makes of it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from functools import cache
from importlib import metadata

import pytest

cubin = pytest.importorskip("cubin")  # which says what is missing

import compile_cuda  # noqa: E402
import occupancy  # noqa: E402
from compile_cuda import Case, Figures, Place  # noqa: E402

SM = 90

#: Sums rows of four numbers, `rows` at a time.
GATHER = """
extern "C" __global__ void __launch_bounds__(64)
    gather_{rows}(const int* column, const float4* matrix, int n, float4* out) {{
  __shared__ float4 sum_of_thread[64];
  float4 sum = {{}};
  #pragma unroll 1
  for (int z = threadIdx.x; z < n; z += {rows} * 64) {{
    float4 row[{rows}];
    #pragma unroll
    for (int j = 0; j < {rows}; ++j) row[j] = matrix[column[z + j]];
    #pragma unroll
    for (int j = 0; j < {rows}; ++j) {{
      sum.x += row[j].x; sum.y += row[j].y;
      sum.z += row[j].z; sum.w += row[j].w;
    }}
  }}
  sum_of_thread[threadIdx.x] = sum;
  __syncthreads();
  out[threadIdx.x] = sum_of_thread[63 - threadIdx.x];
}}
"""
GATHERS = 'extern "C" __device__ int answer = 42;' + "".join(GATHER.format(rows=rows) for rows in (1, 4))

#: Two blocks of 1024 threads leave 32 registers for 48 numbers that are all needed to the end.
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(const float* in, float* out) {
  float x[48];
  #pragma unroll
  for (int i = 0; i < 48; ++i) x[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 48; ++i) out[i * 1024 + threadIdx.x] = x[i] * x[(7 * i + 1) % 48];
}
"""

#: An array whose places are known only at run time is on the stack, though the compiler counts no spills.
INDEXED = """
extern "C" __global__ void __launch_bounds__(32) indexed(const int* at, float* out) {
  float x[16];
  for (int i = 0; i < 16; ++i) x[at[i]] = i;
  out[threadIdx.x] = x[at[threadIdx.x]];
}
"""


compiled_once = cache(cubin.compile_source)


def compile_one(source):
    compiled = compiled_once(source, SM)
    (kernel,) = compiled.kernels.values()
    return compiled, kernel


# -- what the compiler says ----------------------------------------------------------------------


@pytest.mark.parametrize("sm", list(occupancy.MULTIPROCESSORS))
def test_report(sm):
    compiled = compiled_once(GATHERS, sm)
    assert compiled.messages == ""
    assert compiled.compiler == metadata.version("nvidia-cuda-nvrtc")
    assert compiled.constants == {"answer": 42}
    assert sorted(compiled.kernels) == ["gather_1", "gather_4"]
    for kernel in compiled.kernels.values():
        assert (kernel.threads, kernel.shared, kernel.spilled) == (64, 64 * 16, 0)
        assert 8 <= kernel.registers <= 64
        assert [one.opcode for one in kernel.code].count("EXIT") >= 1


@pytest.mark.parametrize("source", [SPILLING, INDEXED])
def test_what_registers_do_not_hold_is_reported(source):
    compiled, kernel = compile_one(source)
    assert compiled.messages == ""
    assert kernel.spilled > 0
    assert any(one.opcode.startswith(("LDL", "STL")) for one in kernel.code)


def test_a_warning_is_a_message():
    compiled, _ = compile_one(
        'extern "C" __global__ void __launch_bounds__(32) f(int* out) { int unused; *out = 1; }'
    )
    assert '"unused" was declared but never referenced' in compiled.messages


def test_an_error_is_raised_with_its_line():
    with pytest.raises(cubin.CompileError, match=r'kernels.cu\(2\).*"missing" is undefined'):
        cubin.compile_source("\n__device__ int f() { return missing; }", SM)


def test_a_kernel_without_launch_bounds_is_an_error():
    with pytest.raises(ValueError, match="kernel f has no __launch_bounds__"):
        cubin.compile_source('extern "C" __global__ void f(int* out) { *out = 1; }', SM)


# -- loops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sm", list(occupancy.MULTIPROCESSORS))
@pytest.mark.parametrize("rows", [1, 4])
def test_tightest_loop(rows, sm):
    kernel = compiled_once(GATHERS, sm).kernels[f"gather_{rows}"]
    instructions, loads = cubin.tightest_loop(kernel.code)
    assert loads == rows
    # Of each row two loads, an address and four additions; of the loop a counter, a test and a jump.
    assert 7 * rows + 3 <= instructions <= 10 * rows + 10


def test_fewest_instructions_for_a_load_count():
    jump = cubin.Instruction("BRA", 0)
    other, load = cubin.Instruction("FFMA", None), cubin.Instruction("LDG.E.128.CONSTANT", None)
    slow = (load, other, other, jump)
    fast = (load, load, other, cubin.Instruction("BRA", len(slow)))
    forward = (cubin.Instruction("BRA", 99),)
    assert cubin.tightest_loop(slow + fast + forward) == (4, 2)


def test_a_nonzero_is_counted_in_the_layout_of_its_rows():
    """In mixed precision the rows of one loop are in half precision, and those of another are not."""
    load, other = cubin.Instruction("LDG.E.128.CONSTANT", None), cubin.Instruction("FFMA", None)
    loop = (load,) * 4 + (other,) * 27 + (cubin.Instruction("BRA", 0),)
    kernel = cubin.Kernel(threads=32, registers=8, shared=0, spilled=0, code=loop)
    layout = {"rows_of_Store": 8, "loads_of_Store": 1, "rows_of_Real": 4, "loads_of_Real": 2}
    found = (compile_cuda.instructions_per_nonzero(kernel, layout, name) for name in ("Store", "Real"))
    assert list(found) == [32 / (4 * 8), 32 / (2 * 4)]


def test_no_loop_is_an_error():
    with pytest.raises(ValueError, match="no loop"):
        cubin.tightest_loop(compile_one(SPILLING)[1].code)


# -- occupancy -----------------------------------------------------------------------------------

#: NVIDIA's own calculator.  Reads capability, threads and shared memory of a multiprocessor; threads,
#: registers and shared memory of a kernel.
CALCULATOR = """
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int sm, most_threads, most_shared, threads, registers, shared;
  while (scanf("%d %d %d %d %d %d", &sm, &most_threads, &most_shared, &threads, &registers, &shared) == 6) {
    cudaOccDeviceProp device;
    device.computeMajor = sm / 10;
    device.computeMinor = sm % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = most_threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.numSms = 1;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = most_shared;
    device.sharedMemPerBlockOptin = most_shared;
    device.reservedSharedMemPerBlock = sm < 80 ? 0 : 1024;
    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = threads;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0)) return 1;
    printf("%d ", result.activeBlocksPerMultiprocessor * (threads / 32));
  }
}
"""


def test_occupancy_is_what_nvidias_calculator_says(tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    headers = next(
        file.locate().parent
        for file in metadata.files("nvidia-cuda-runtime")
        if file.name == "cuda_occupancy.h"
    )
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    subprocess.run(
        [compiler, "-isystem", headers, tmp_path / "calculator.cpp", "-o", tmp_path / "calculator"],
        check=True,
    )
    kernels = list(
        itertools.product(
            (32, 64, 128, 256, 1024), (16, 33, 54, 64, 65, 96, 128, 255), (0, 1, 5000, 48 * 1024)
        )
    )
    cases = [(sm, *kernel) for sm in occupancy.MULTIPROCESSORS for kernel in kernels]
    lines = [
        f"{sm} {limits.warps * 32} {limits.shared * 1024} {threads} {registers} {shared}"
        for sm, threads, registers, shared in cases
        for limits in [occupancy.MULTIPROCESSORS[sm]]
    ]
    result = subprocess.run(
        [tmp_path / "calculator"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    expected = [int(warps) for warps in result.stdout.split()]
    assert [occupancy.resident_warps(*case) for case in cases] == expected


# -- the table -----------------------------------------------------------------------------------

PLACE = Place("allocate", "float32", 90, 32)


def whole_table(figures):
    return {PLACE._replace(k=k): figures for k in compile_cuda.FACTORS}


@pytest.mark.parametrize(
    "figures", [Figures(54, 56), Figures(255, 12, 49152, 64, 33.8), Figures(32, 100, instructions=10.0)]
)
def test_a_table_is_read_as_it_was_written(figures):
    table = whole_table(figures)
    assert compile_cuda.read_table(compile_cuda.as_text(table, "13.5.37")) == (table, "13.5.37")


def test_limits_are_held():
    assert not list(compile_cuda.broken_limits({PLACE: Figures(54, 56, 49152, 0, 10.0)}))
    (shared,) = compile_cuda.broken_limits({PLACE: Figures(54, 56, 49153)})
    assert "49153 bytes of shared memory" in shared
    (spilled,) = compile_cuda.broken_limits({PLACE._replace(k=128): Figures(54, 56, spilled=8)})
    assert "sm_90, K=128: 8 bytes" in spilled
    assert not list(compile_cuda.broken_limits({PLACE._replace(k=256): Figures(54, 56, spilled=8)}))
    (slow,) = compile_cuda.broken_limits({PLACE: Figures(54, 56, instructions=10.1)})
    assert "10.1 instructions" in slow


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (Figures(54, 56, 0, 8, 7.6), []),
        (Figures(50, 56, 0, 0, 7.5), []),
        (Figures(55, 56, 0, 8, 7.6), ["registers 54 → 55"]),
        (Figures(54, 56, 0, 9, 7.7), ["spilled 8 → 9", "instructions 7.6 → 7.7"]),
    ],
)
def test_what_got_worse_is_named(now, found):
    worse = list(compile_cuda.what_got_worse({PLACE: now}, whole_table(Figures(54, 56, 0, 8, 7.6))))
    assert worse == [f"allocate, float32, sm_90, K=32: {text}" for text in found]


def test_kernels_on_one_side_alone_are_named():
    one, other = {PLACE: Figures(54, 56)}, {PLACE._replace(kernel="weigh"): Figures(54, 56)}
    assert list(compile_cuda.what_got_worse(one, other)) == [
        "allocate, float32, sm_90, K=32: not in the table",
        "weigh: in the table, but not in the sources",
    ]


def test_the_kernels_themselves():
    outcome = compile_cuda.compile_case(Case("float32", 90, 32))
    assert outcome.message == ""
    assert 0 < outcome.figures["allocate"].instructions <= 10
