"""A model of what an iteration costs on a GPU.  Nothing in it was measured by this project.

    python bench/gpu_model.py netflix --k 64 --gpu h100       the table of one case
    python bench/gpu_model.py --record                        all cases: writes bench/results/gpu_model.tsv

Segments are those of the backend, for the counts that gpu_day.py times (power laws without structure).
Instructions, registers and shared memory are those of the machine code that NVRTC makes for the GPU
(gpumodel/machine_code.py).  Hits in caches and busy warp slots come from a simulation of caches and of the
scheduling of blocks (gpumodel/caches.py).  The figures of the GPUs are public (gpumodel/gpus.py).

An operation takes as long as the scarcest of: bytes from DRAM; bytes from L2; passes through L1 and shared
memory; float64, float32 and special instructions; instructions of any kind; and latency, where too few warps
are at work.  Where rows are gathered, this is decided anew in each round of the simulation.  Each launch
costs what an empty kernel costs.  The host is never late.

Left out: queues, and latency beyond one number for L2 and one for DRAM; pages and refreshes of DRAM; bank
conflicts; slices of L2 that are used unevenly; what streams take of the caches, and what the kernel before
has left there; warps of a multiprocessor that drift apart; limits of power; products that underflow; the
host's time.  So a time is rather too short than too long.

Needs ``pip install '.[cuda-check]'`` and g++.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gpu.shapes import SHAPES as MATRICES
from gpumodel.cost import COLUMNS, Cost
from gpumodel.gpus import GPUS

TABLE = Path(__file__).resolve().parent / "results" / "gpu_model.tsv"
SHAPES = ("lastfm", "netflix", "taste")
PRECISIONS = ((32, "float32"), (64, "float32"), (128, "float32"), (64, "float64"), (64, "mixed"))
CHECK_EVERY = 10  # iterations of a default fit

ITERATION = (
    *("allocate users", "join_segments users", "allocate items", "join_segments items"),
    *("gamma_update users", "sum_columns users", "gamma_update items", "sum_columns items"),
    "other kernels",
)
#: Of the log-likelihood of the training counts.
CHECK = ("mean users", "mean items", "log_rate_sums", "other kernels of a check")
#: What a check computes beside it where it is asked for the ELBO.
ELBO = (*("log_normalizer_sums", "gamma_entropy users", "gamma_entropy items", "other kernels of the ELBO"),)


class Case(NamedTuple):
    """What is modelled."""

    shape: str
    k: int
    precision: str
    gpu: str


# -- predicting ----------------------------------------------------------------------------------


def predict(case: Case, order: str = "stored") -> dict[str, Cost]:
    """Every operation by name, then ``iteration``, ``check``, ``elbo``, ``fit`` (ten iterations, a check).

    Computes for some seconds.  ``gpu/modelled.py`` reads what is tracked.
    """
    from gpumodel.machine_code import machine_code  # which needs compilers
    from gpumodel.matrices import matrices
    from gpumodel.operations import Model

    gpu = GPUS[case.gpu]
    costs = Model(gpu, machine_code(case.precision, case.k, gpu.sm), *matrices(case.shape, order)).costs()
    iteration, check, elbo = (
        sum((costs[name] for name in names), Cost()) for names in (ITERATION, CHECK, ELBO)
    )
    fit = iteration * CHECK_EVERY + check
    return costs | {"iteration": iteration, "check": check, "elbo": elbo, "fit": fit}


def share_of_checks(costs: dict[str, Cost]) -> float:
    """Share of the time of a default fit that checks take."""
    return costs["check"].ms / costs["fit"].ms


# -- tables --------------------------------------------------------------------------------------


def as_text(costs: dict[str, Cost]) -> str:
    """The table of one case."""
    rows = [["", *COLUMNS], *([name, *cells(cost)] for name, cost in costs.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, values, widths[1:])]) for name, *values in rows
    ]
    lines.append(f"Checks take {share_of_checks(costs):.1%} of a fit with one in {CHECK_EVERY} iterations.")
    return "\n".join(lines) + "\n"


def cells(cost: Cost) -> list[str]:
    return [text(cost) for text in COLUMNS.values()]


def cases() -> Iterator[Case]:
    """All of the tracked table."""
    for shape in SHAPES:
        for k, precision in PRECISIONS:
            yield from (Case(shape, k, precision, gpu) for gpu in GPUS)


def record(modelled: Iterable[Case], compiler: str) -> Iterator[str]:
    """The lines of the tracked table."""
    yield f"# Made by bench/gpu_model.py --record with NVRTC {compiler}.  A model: nothing was measured."
    yield "# Bytes in millions, instructions of warps in millions, shares in percent; bound: what most of the"
    yield f"# time is waited for.  A fit is {CHECK_EVERY} iterations and a check without the ELBO."
    yield "\t".join([*Case._fields, "operation", *COLUMNS])
    for case in modelled:
        for name, cost in predict(case).items():
            yield "\t".join([*map(str, case), name, *cells(cost)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", nargs="?", choices=list(MATRICES))
    parser.add_argument("--k", type=int, default=64, help="number of factors (64)")
    parser.add_argument("--precision", choices=("float32", "float64", "mixed"), default="float32")
    parser.add_argument("--gpu", choices=list(GPUS), default="h100")
    parser.add_argument(
        "--order",
        choices=("stored", "rows"),
        default="stored",
        help="of segments: as the backend stores them, or as rows come",
    )
    parser.add_argument("--record", action="store_true", help="model all cases and write the table")
    arguments = parser.parse_args()
    if arguments.record:
        from importlib.metadata import version

        text = "".join(f"{line}\n" for line in record(cases(), version("nvidia-cuda-nvrtc")))
        TABLE.write_text(text, encoding="utf-8")
        return
    if arguments.shape is None:
        parser.error("name a shape, or --record")
    case = Case(arguments.shape, arguments.k, arguments.precision, arguments.gpu)
    sys.stdout.write(as_text(predict(case, arguments.order)))


if __name__ == "__main__":
    main()
