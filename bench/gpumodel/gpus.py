"""GPUs that gpu_model.py knows, by public figures.

Multiprocessors, clock, size of the L2 cache and rate of the DRAM: NVIDIA's data sheets and architecture
white papers of each GPU.  Rates of instructions and size of the L1 cache: CUDA Programming Guide, "Throughput
of Native Arithmetic Instructions" and "Technical Specifications per Compute Capability"; conversions from and
to 64 bits and reciprocals share a unit.  Rates of the L2 cache, latencies and the time of an empty kernel in
a row of kernels: measured by github.com/te42kyfo/gpu-benches (gpu-l2-cache, gpu-latency, gpu-small-kernels)
on an H200 and an H100 PCIe, an A100 80 GB and an L40, and for the T4 by Jia et al., arXiv:1903.07486.

Estimates: the H100 (SXM) has the H200's L2 rate and clock and the H100 PCIe's latencies; the RTX 4090 and
the L4 have the L40's L2 rate for each multiprocessor and clock, and its latencies in cycles; the T4's latency
of DRAM and time of a kernel.  Of the DRAM's rate nine tenths can be reached (measured: 81 % on an H200, 85 on
the A100, 92 on the L40, 97 on an H100 PCIe).  The L2 cache of the A100, H100 and H200 has two halves, and
each keeps what its multiprocessors read: only half of it counts as one cache.  (Measured rates fall from
28 MB on an A100 and 34 to 44 MB on an H100 and H200 on.)
"""

from __future__ import annotations

from dataclasses import dataclass

from hpf_gpu import hardware


@dataclass(frozen=True)
class Gpu:
    """What a kernel finds there."""

    name: str  # as the driver says it, or its beginning
    sm: int  # compute capability
    multiprocessors: int
    clock: float  # Hz
    dram_rate: float  # bytes a second
    l2_rate: float
    l2: float  # bytes that count as one cache
    l1: float  # bytes of a multiprocessor, shared memory included
    # Lanes of a multiprocessor:
    float64: int
    float32: int
    special: int
    # Seconds:
    dram_latency: float
    l2_latency: float
    launch: float


def _gpu(short: str, sm: int, multiprocessors: int, clock: float, *rest: float) -> Gpu:
    """A GPU of the package's own list, with what else a kernel finds there."""
    public = hardware.GPUS[short]
    rates = public.dram_rate, public.l2_rate, public.l2
    return Gpu(public.name, sm, multiprocessors, clock, *rates, *rest)


_NS, _US, _KIB = 1e-9, 1e-6, 1024

GPUS = {
    name: _gpu(name, *figures)
    for name, figures in {
        "h200": (90, 132, 1.98e9, 256 * _KIB, 64, 128, 16, 370 * _NS, 151 * _NS, 2.3 * _US),
        "h100": (90, 132, 1.98e9, 256 * _KIB, 64, 128, 16, 370 * _NS, 151 * _NS, 2.3 * _US),
        "a100": (80, 108, 1.41e9, 192 * _KIB, 32, 64, 16, 404 * _NS, 150 * _NS, 2.7 * _US),
        "rtx4090": (89, 128, 2.52e9, 128 * _KIB, 2, 128, 16, 253 * _NS, 111 * _NS, 1.6 * _US),
        "l4": (89, 58, 2.04e9, 128 * _KIB, 2, 128, 16, 309 * _NS, 135 * _NS, 1.6 * _US),
        "t4": (75, 40, 1.59e9, 96 * _KIB, 2, 64, 16, 400 * _NS, 118 * _NS, 2.7 * _US),
    }.items()
}

ISSUES = 4  # instructions of a multiprocessor in a cycle, one for each of its four partitions
PASS_BYTES = 128  # that the L1 cache of a multiprocessor gives in a cycle

#: KiB of shared memory that the driver can set apart from the L1 cache, by compute capability.
_CARVEOUTS = {
    75: (32, 64),
    80: (0, 8, 16, 32, 64, 100, 132, 164),
    89: (0, 8, 16, 32, 64, 100),
    90: (0, 8, 16, 32, 64, 100, 132, 164, 196, 228),
}
_RESERVED = 1024  # bytes of shared memory that the driver keeps of each block, from 8.0 on


def l1_bytes(gpu: Gpu, blocks: int, shared: int) -> float:
    """L1 cache that is left beside so many resident blocks with so many bytes of shared memory each."""
    taken = blocks * (shared + (_RESERVED if gpu.sm >= 80 else 0))
    return gpu.l1 - 1024 * next(size for size in _CARVEOUTS[gpu.sm] if size * 1024 >= taken)
