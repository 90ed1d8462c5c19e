"""What the warps of each kernel execute, by the machine code that NVRTC makes for one case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from compile_cuda import NEIGHBOURS, PRECISIONS, PROBE
from cubin import Kernel, compile_source
from occupancy import resident_warps

from gpumodel.sass import Counts, Flow, Loop, Way
from hpf_gpu.backends.cuda_source import FILES_OF_A_FIT, Variant, source

#: As PROBE, for rows of the gamma posteriors.
_MORE_PROBES = """
extern "C" __device__ int lanes_of_posterior = gamma_lanes;
"""
#: What the usual way of a nonzero needs: a reciprocal, of its product or in its logarithm.
_USUAL = "MUFU"


@dataclass(frozen=True)
class Executed:
    """What a warp executes each time for so many things, and once beside that."""

    things: float
    each_time: Counts
    once: Counts


@dataclass(frozen=True)
class MachineCode:
    """The kernels for one variant and one compute capability."""

    variant: Variant
    kernels: Mapping[str, Kernel]
    blocks: Mapping[str, int]  # that a multiprocessor holds at once
    executed: Mapping[str, Executed]  # for nonzeros, rows, or numbers to be added up

    def warps(self, name: str) -> int:
        """Warps of a block."""
        return self.kernels[name].threads // 32


@cache
def machine_code(precision: str, k: int, sm: int, files: tuple[str, ...] = FILES_OF_A_FIT) -> MachineCode:
    """What NVRTC makes of the kernels in these files."""
    kind, half = PRECISIONS[precision]
    variant = Variant(k, np.dtype(kind), half=half, neighbours=NEIGHBOURS)
    compiled = compile_source(source(files) + PROBE + _MORE_PROBES, sm, variant.options)
    probes = compiled.constants
    flows = {name: Flow(kernel.code) for name, kernel in compiled.kernels.items()}
    nonzeros_of_store, nonzeros_of_real = (
        partial(_for_nonzeros, at_once=probes[f"rows_of_{name}"], loads=probes[f"loads_of_{name}"])
        for name in ("Store", "Real")
    )
    rows = partial(_for_rows, variant=variant, lanes=probes["lanes_of_posterior"])
    ways = {
        "allocate": nonzeros_of_store,
        "log_rate_sums": nonzeros_of_real,
        "log_normalizer_sums": nonzeros_of_store,
        "gamma_update": rows,
        "gamma_entropy": rows,
        "join_segments": _for_sums,
        "sum_columns": _for_sums,
        "mean": lambda flow: Executed(32, flow.way(None).counts, Counts()),
    }
    executed = {name: way(flows[name]) for name, way in ways.items() if name in flows}
    blocks = {
        name: resident_warps(sm, kernel.threads, kernel.registers, kernel.shared) * 32 // kernel.threads
        for name, kernel in compiled.kernels.items()
    }
    return MachineCode(variant, compiled.kernels, blocks, executed)


def _for_nonzeros(flow: Flow, at_once: int, loads: int) -> Executed:
    """The loop over the nonzeros of a segment; loops within it are for rare ones.

    A warp gathers ``at_once`` rows with ``loads`` loads of 16 bytes.
    """
    found = []
    for loop in flow.loops:
        way = _usual_way(flow, loop)
        gathered = way.count(r"LDG.*\.128") if way else 0
        if way and gathered:
            found.append(Executed(gathered / loads * at_once, way.counts, _beside_loops(flow)))
    if not found:
        raise ValueError("no loop of this kernel gathers rows and takes a reciprocal")
    return min(found, key=lambda executed: executed.each_time.issued / executed.things)


def _usual_way(flow: Flow, loop: Loop) -> Way | None:
    try:
        return flow.way(loop, lambda _: 0, through=_USUAL)
    except ValueError:
        return None


def _for_rows(flow: Flow, variant: Variant, lanes: int) -> Executed:
    """The loop over rows of posteriors, each of them in so many lanes."""

    def trips(inner: Loop) -> float:
        """A loop over the factors of a lane may be unrolled: every factor is stored once.

        Where rows are padded, the loop that stores what it has not loaded also stores zeros.
        """
        way = flow.way(inner)
        stores = way.count("STG")
        if variant.width > variant.k and not way.count("LDG"):
            stores /= 2
        arithmetic = way.counts.float64 + way.counts.float32 + way.counts.special
        return -(-variant.k // lanes) / max(1, stores) if arithmetic else 1

    main = max(flow.loops, key=lambda loop: flow.way(loop).counts.issued)
    return Executed(32 / lanes, flow.way(main, trips, without=flow.rare).counts, _beside_loops(flow))


def _for_sums(flow: Flow) -> Executed:
    """The loop that adds up numbers, as many as it loads at once."""
    way = max(map(flow.way, flow.loops), key=lambda way: way.count("LDG"))
    return Executed(way.count("LDG"), way.counts, _beside_loops(flow))


def _beside_loops(flow: Flow) -> Counts:
    return flow.way(None, lambda _: 0).counts
