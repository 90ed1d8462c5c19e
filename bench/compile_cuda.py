"""Compile the CUDA kernels for every architecture, on a machine without a GPU, and look at the result.

    python bench/compile_cuda.py            all of it: writes bench/results/cuda_kernels.tsv
    python bench/compile_cuda.py gamma.cu   the kernels of these files: replaces their rows in that table
    python bench/compile_cuda.py --check    all of it, compared with that table
    python bench/compile_cuda.py --quick    each architecture and precision, few K; compared with that table

The exit status is 1 where the compiler has something to say, where a kernel needs more shared memory
than every GPU has or, up to K = 128, spills out of its registers; and where the comparison finds more
registers, more spilled bytes or more instructions for a nonzero than the table has.

Needs ``pip install '.[cuda-check]'``, which has the compiler that the table was made with, on Linux.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cubin import CompileError, Kernel, compile_source, tightest_loop
from occupancy import MULTIPROCESSORS, resident_warps

from hpf_gpu.backends.cuda_source import FILES, Variant, source

TABLE = Path(__file__).resolve().parent / "results" / "cuda_kernels.tsv"
PRECISIONS = {"float32": ("f4", False), "float64": ("f8", False), "mixed": ("f4", True)}
NEIGHBOURS = 200  # for which kernels that depend on it are compiled
FACTORS = (1, 8, 30, 32, 50, 64, 100, 128, 256)
QUICK = (8, 32, 128)  # of these

MAX_SHARED = 48 * 1024  # bytes that a block gets on every architecture without asking
MAX_FACTORS_WITHOUT_SPILLS = 128
#: Kernels whose innermost loop takes rows, and the type of their numbers: its cost is given for a nonzero.
LOOPS_OVER_NONZEROS = {
    "allocate": "Store",
    "weigh": "Store",
    "log_rate_sums": "Real",
    "log_normalizer_sums": "Store",
}
#: Nonzeros that a warp takes at once, and 16-byte loads of a lane for each: added to the sources.
PROBE = """
extern "C" __device__ int rows_of_Store = hpf::Layout<hpf::Store>::groups;
extern "C" __device__ int loads_of_Store = hpf::Layout<hpf::Store>::per_lane;
extern "C" __device__ int rows_of_Real = hpf::Layout<hpf::Real>::groups;
extern "C" __device__ int loads_of_Real = hpf::Layout<hpf::Real>::per_lane;
"""


class Case(NamedTuple):
    """One compilation."""

    precision: str
    sm: int
    k: int
    files: tuple[str, ...] = FILES


class Place(NamedTuple):
    """One cell of the table."""

    kernel: str
    precision: str
    sm: int
    k: int

    def __str__(self) -> str:
        return f"{self.kernel}, {self.precision}, sm_{self.sm}, K={self.k}"


@dataclass(frozen=True)
class Figures:
    """What the table holds of one kernel."""

    registers: int  # of a thread
    occupancy: int  # percent: resident warps, of those a multiprocessor can hold
    shared: int = 0  # bytes of a block
    spilled: int = 0  # bytes of a thread
    instructions: float = 0  # of a warp, for one nonzero and one side; 0 where the kernel has no such loop

    def __str__(self) -> str:
        amounts = (self.registers, self.occupancy, self.shared, self.spilled, self.instructions)
        return " ".join(f"{amount:g}{unit}" for amount, unit in zip(amounts, _UNITS, strict=True) if amount)

    @classmethod
    def read(cls, cell: str) -> Figures:
        amounts = {unit: float(amount) for amount, unit in re.findall(r"([\d.]+)(\D)", cell)}
        *whole, instructions = (amounts.get(unit, 0) for unit in _UNITS)
        return cls(*map(int, whole), instructions)


_UNITS = "r%s!i"
Table = dict[Place, Figures]


# -- compiling -----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of one case: nothing but a message, where it did not compile."""

    figures: dict[str, Figures]
    compiler: str
    message: str


def compile_case(case: Case) -> Outcome:
    kind, half = PRECISIONS[case.precision]
    variant = Variant(case.k, np.dtype(kind), half=half, neighbours=NEIGHBOURS)
    try:
        compiled = compile_source(source(case.files) + PROBE, case.sm, variant.options)
    except CompileError as error:
        return Outcome({}, "", str(error))
    figures = {
        name: figures_of(name, kernel, compiled.constants, case.sm)
        for name, kernel in compiled.kernels.items()
    }
    if unmatched := set(variant.signatures(case.files)) ^ set(figures):
        return Outcome({}, "", f"launched or compiled, but not both: {', '.join(sorted(unmatched))}")
    return Outcome(figures, compiled.compiler, compiled.messages)


def figures_of(name: str, kernel: Kernel, layout: dict[str, int], sm: int) -> Figures:
    warps = resident_warps(sm, kernel.threads, kernel.registers, kernel.shared)
    return Figures(
        kernel.registers,
        round(100 * warps / MULTIPROCESSORS[sm].warps),
        kernel.shared,
        kernel.spilled,
        instructions_per_nonzero(kernel, layout, LOOPS_OVER_NONZEROS[name])
        if name in LOOPS_OVER_NONZEROS
        else 0,
    )


def instructions_per_nonzero(kernel: Kernel, layout: dict[str, int], type_name: str) -> float:
    """Of the innermost loop over rows of numbers of this type, ``Store`` or ``Real``."""
    instructions, loads = tightest_loop(kernel.code)
    loads_of_row = layout[f"loads_of_{type_name}"]
    rows, rest = divmod(loads, loads_of_row)
    if rest:
        raise ValueError(f"{loads} loads in a loop are no multiple of {loads_of_row} for each row")
    return round(instructions / (rows * layout[f"rows_of_{type_name}"]), 1)


def compile_all(cases: list[Case]) -> dict[Case, Outcome]:
    with ProcessPoolExecutor() as workers:
        return dict(zip(cases, workers.map(compile_case, cases), strict=True))


# -- judging -------------------------------------------------------------------------------------


def said_by_compiler(outcomes: dict[Case, Outcome]) -> Iterator[str]:
    for (precision, sm, k, _), outcome in outcomes.items():
        if outcome.message:
            yield f"{precision}, sm_{sm}, K={k}: {outcome.message}"


def broken_limits(table: Table) -> Iterator[str]:
    for place, found in table.items():
        if found.shared > MAX_SHARED:
            yield f"{place}: {found.shared} bytes of shared memory, more than {MAX_SHARED}"
        if found.spilled and place.k <= MAX_FACTORS_WITHOUT_SPILLS:
            yield f"{place}: {found.spilled} bytes of each thread do not fit into registers"
    target = Place("allocate", "float32", 90, 32)
    if target in table and table[target].instructions > 10:
        yield f"{target}: {table[target].instructions} instructions for a nonzero, more than 10"


def what_got_worse(table: Table, recorded: Table) -> Iterator[str]:
    for place, found in table.items():
        if place not in recorded:
            yield f"{place}: not in the table"
            continue
        for quantity in ("registers", "spilled", "instructions"):
            now, before = getattr(found, quantity), getattr(recorded[place], quantity)
            if now > before:
                yield f"{place}: {quantity} {before} → {now}"
    names = {place.kernel for place in table}
    gone = {place.kernel for place in recorded} - names
    yield from (f"{name}: in the table, but not in the sources" for name in sorted(gone))


# -- the table -----------------------------------------------------------------------------------


def as_text(table: Table, compiler: str) -> str:
    lines = [
        f"# Made by bench/compile_cuda.py with NVRTC {compiler}.  In each cell:",
        "#   r  registers of a thread",
        "#   %  occupancy: warps that a multiprocessor holds at once, of those it can hold",
        "#   s  bytes of shared memory of a block",
        "#   !  bytes of a thread that spill out of registers",
        "#   i  instructions of a warp for one nonzero and one side, in the innermost loop",
        "\t".join(["kernel", "precision", "sm", *(f"K={k}" for k in FACTORS)]),
    ]
    rows = dict.fromkeys(place[:3] for place in table)
    for row in sorted(rows, key=lambda row: (row[0] != "allocate", row)):
        cells = (str(table[Place(*row, k)]) for k in FACTORS)
        lines.append("\t".join([*map(str, row), *cells]))
    return "\n".join(lines) + "\n"


def read_table(text: str) -> tuple[Table, str]:
    """The figures, and the version of the compiler they were made with."""
    compiler = re.search(r"NVRTC ([\d.]+\d)", text)
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    if compiler is None or not lines:
        raise ValueError(f"{TABLE.name} is not a table of this program")
    factors = [int(name.removeprefix("K=")) for name in lines[0][3:]]
    return {
        Place(kernel, precision, int(sm), k): Figures.read(cell)
        for kernel, precision, sm, *cells in lines[1:]
        for k, cell in zip(factors, cells, strict=True)
    }, compiler[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the table, do not write it")
    parser.add_argument("--quick", action="store_true", help="few cases, compared with the table")
    parser.add_argument("files", nargs="*", metavar="FILE", help="sources, in place of all")
    arguments = parser.parse_args()
    files = tuple(arguments.files) or FILES
    if unknown := set(files) - set(FILES):
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(FILES)}")
    if files != FILES and (arguments.check or arguments.quick):
        parser.error("--check and --quick compile all files")
    if arguments.quick:  # the architectures in turn
        pairs = itertools.product(PRECISIONS, QUICK)
        cases = [
            Case(precision, sm, k) for (precision, k), sm in zip(pairs, itertools.cycle(MULTIPROCESSORS))
        ]
    else:
        cases = [Case(*values, files) for values in itertools.product(PRECISIONS, MULTIPROCESSORS, FACTORS)]

    outcomes = compile_all(cases)
    compiled = all(outcome.figures for outcome in outcomes.values())
    compiler = outcomes[cases[0]].compiler
    table = {
        Place(name, *case[:3]): figures
        for case, outcome in outcomes.items()
        for name, figures in outcome.figures.items()
    }
    failures = [*said_by_compiler(outcomes), *broken_limits(table)]
    if compiled and (arguments.check or arguments.quick):
        recorded, other = read_table(TABLE.read_text(encoding="utf-8"))
        if compiler == other:
            failures += what_got_worse(table, recorded)
        else:
            failures.append(f"the table was made with NVRTC {other}, this is {compiler}: nothing to compare")
    elif compiled:
        if files != FILES:
            recorded, _ = read_table(TABLE.read_text(encoding="utf-8"))
            table = recorded | table
        TABLE.write_text(as_text(table, compiler), encoding="utf-8")
    sys.stdout.write("".join(f"{failure}\n" for failure in failures))
    sys.stdout.write(f"{len(table)} kernels in {len(cases)} compilations, {len(failures)} failures\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
