"""The planner's model beside what is measured: seconds and peak memory of fits of many sizes, in memory.

    python bench/scaling.py                 a grid of sizes, up to 17.5M nonzeros; two minutes
    python bench/scaling.py --small         the smallest of them
    python bench/scaling.py --record        the same, added to bench/results/scaling.jsonl
    python bench/scaling.py --recorded      the model beside what was recorded, when a rate has been changed

Each case is a process of its own.  Seconds are those of the process on all cores (core-seconds): other work
on the machine hardly changes them, and the model's rates are those of one core.  Of repeated measurements the
least counts.  The counts are power laws without structure.  Peak memory is that of a fit of two iterations to
the counts as a matrix, beyond what the process had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, append, core_seconds_of_others, machine, read

RECORD = RESULTS / "scaling.jsonl"
SIZES = (
    (20_000, 5_000, 1_000_000),
    (50_000, 10_000, 2_000_000),
    (1_000_000, 20_000, 5_000_000),
    (200_000, 100_000, 5_000_000),
    (400_000, 150_000, 17_500_000),
)
FACTORS = (8, 16, 32, 64)
OF_A_MATRIX = 17.0  # bytes for a count while a matrix is copied and laid out


def core_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least that work takes of all cores."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def peak() -> int | None:
    """The most memory that this process has had since it was last asked; None but on Linux."""
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measure(users: int, items: int, nonzeros: int, k: int) -> dict[str, Any]:
    """One case, in this process."""
    import synthetic
    from gpu.state import PRIOR, Started

    from hpf_gpu import HPF
    from hpf_gpu.backends import create

    backend, csr = create("openmp", np.float32), synthetic.power_law_csr(users, items, nonzeros)
    before = peak()
    before = peak()  # since the first look
    HPF(k=k, maxiter=2, stop_crit="maxiter", verbose=False, backend="openmp", random_seed=1).fit(csr)
    most = peak()
    cores, started = backend.threads, time.perf_counter()
    others = core_seconds_of_others()
    state = Started(backend, csr, k, 1)
    of_users, of_items = state.sides
    out = backend.allocate(state.counts, of_users.factor, of_items.factor)
    statistic, exp_log = (backend.mean(of_users.factor) for _ in range(2))
    rates = of_users.factor.rates
    packed = backend.packed(state.counts)
    seconds = {
        "allocate": core_seconds(
            partial(backend.allocate, state.counts, of_users.factor, of_items.factor, out=out), 4
        ),
        "gamma updates of users": core_seconds(
            partial(backend.gamma_update, statistic, PRIOR.shape, rates, exp_log), 3
        ),
        "iteration": core_seconds(state.step, 3),
        "layout": core_seconds(partial(backend.counts, csr, k), 2),
        "unpacking": core_seconds(partial(backend.unpacked, packed, csr.shape, k), 3),
    }
    segments, disk = len(state.counts.tiles.segment_row), sum(array.nbytes for array in packed.values())
    spent, busy = time.perf_counter() - started, core_seconds_of_others()
    return {
        "users": users,
        "items": items,
        "nonzeros": nonzeros,
        "k": k,
        "cores": cores,
        "seconds": seconds,
        "bytes": None if before is None or most is None else most - before,
        "segments": segments,
        "bytes_packed": disk / nonzeros,
        "others": None if others is None or busy is None else (busy - others) / spent,
    }


def predicted_over_measured(entry: dict[str, Any]) -> dict[str, float]:
    """The model's core-seconds, bytes and segments in proportion to those of a measured case."""
    from hpf_gpu.planning import Sizes, bytes_in_memory, plan

    cores, shape = entry["cores"], [entry[name] for name in ("users", "items", "nonzeros", "k")]
    sizes, model = Sizes(*shape, np.dtype(np.float32)), plan(*shape, cores=cores, gpus=0)
    parts = {part.name: part.seconds * cores for part in model.ways[1].parts}
    seconds = {
        **{name: parts[name] for name in ("allocate", "gamma updates of users")},
        "iteration": model.ways[0].seconds * cores,
        "layout": sizes.places(cores) / model.rates.layout,
        "unpacking": parts["unpack blocks"],
    }
    ratios = {name: seconds[name] / taken for name, taken in entry["seconds"].items()}
    if entry["bytes"]:
        ratios["bytes"] = bytes_in_memory(sizes, cores, reading=OF_A_MATRIX) / entry["bytes"]
    return ratios | {"segments": sizes.segments(cores) / entry["segments"]}


def line(entry: dict[str, Any]) -> str:
    """A case as text."""
    ratios = "".join(f"{ratio:8.2f}" for ratio in predicted_over_measured(entry).values())
    size = f"{entry['users']:>9,} × {entry['items']:>7,} {entry['nonzeros']:>11,} {entry['k']:>3}"
    taken = 1e9 * entry["seconds"]["iteration"] / entry["nonzeros"]
    return f"{size} {taken:8.1f} {ratios} {entry['bytes_packed']:6.2f}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the smallest case alone")
    parser.add_argument("--record", action="store_true", help=f"add the results to {RECORD.name}")
    parser.add_argument(
        "--recorded", action="store_true", help="measure nothing: the model beside the record"
    )
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        sys.stdout.write(json.dumps(measure(*arguments.case)))
        return
    if arguments.recorded:
        sys.stdout.writelines(line(entry) for entry in read(RECORD))
        return
    cases = [(*size, k) for size in SIZES for k in FACTORS]
    facts = machine("hpf_gpu", "numpy")
    sys.stdout.write(
        f"{', '.join(f'{name} {fact}' for name, fact in facts.items())}\n"
        "users × items, nonzeros, k; core-ns of an iteration for a nonzero; predicted over measured:\n"
        "allocate, gamma update, iteration, layout, unpacking, peak memory, segments; then bytes of a\n"
        "nonzero on disk\n"
    )
    for case in cases[:1] if arguments.small else cases:
        command = [sys.executable, __file__, "--case", *map(str, case)]
        entry = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        sys.stdout.write(line(entry))
        sys.stdout.flush()
        if arguments.record:
            append(
                RECORD, {"run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry, "machine": facts}
            )


if __name__ == "__main__":
    main()
