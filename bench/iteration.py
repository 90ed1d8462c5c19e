"""One iteration, and the memory of a fit: hpf_gpu's CPU backends beside hpfrec, in one run.

    python bench/iteration.py             two million counts, k=30, float32, two threads
    python bench/iteration.py --record    the same, and add the result to bench/results/iteration.jsonl
    python bench/iteration.py --smoke     a small case, to see that it works

An iteration is timed as the difference of a long and a short fit, divided by the difference of their
lengths: all set-up cancels out.  Rounds take turns, and the fastest fit of each kind counts.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from record import RESULTS, append, machine, version
from synthetic import power_law_counts

from hpf_gpu import HPF

#: Iterations of the long fit; the short one has one.
LENGTHS = {"hpfrec": 3, "numpy": 11, "openmp": 81}


def fit_with(name: str, arguments: argparse.Namespace, frame: pd.DataFrame, maxiter: int) -> None:
    """Fit ``maxiter`` iterations with hpfrec or with one of our backends."""
    common = {
        "k": arguments.k,
        "ncores": arguments.threads,
        "maxiter": maxiter,
        "use_float": not arguments.double,
        "stop_crit": "maxiter",
        "check_every": 1,
        "verbose": False,
        "random_seed": 1,
    }
    if name == "hpfrec":
        import hpfrec

        hpfrec.HPF(**common).fit(frame.copy())
    else:
        HPF(**common, backend=name).fit(frame)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def time_iterations(arguments: argparse.Namespace, frame: pd.DataFrame) -> dict[str, float]:
    """Seconds of one iteration, from the fastest long and the fastest short fit of all rounds."""
    best: dict[tuple[str, int], float] = {}
    for _ in range(arguments.rounds):
        for name in arguments.who:
            for length in (LENGTHS[name], 1):
                taken = seconds(partial(fit_with, name, arguments, frame, length))
                best[name, length] = min(best.get((name, length), taken), taken)
    return {name: (best[name, LENGTHS[name]] - best[name, 1]) / (LENGTHS[name] - 1) for name in arguments.who}


def peak_of_fit(name: str, arguments: argparse.Namespace, result: Any) -> None:
    """Bytes that a fit takes at its peak on top of the process with its input (Linux)."""
    frame = power_law_counts(arguments.users, arguments.items, arguments.nnz)
    fit_with(name, arguments, frame[:100], 1)  # modules and thread stacks are not the fit's
    ctypes.CDLL(None).malloc_trim(0)  # what making the input has freed must not be there to be used again
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    fit_with(name, arguments, frame, 2)
    result.put(memory("VmHWM") - before)


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_memory(arguments: argparse.Namespace) -> dict[str, int]:
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in arguments.who:
        result = context.Queue()
        process = context.Process(target=peak_of_fit, args=(name, arguments, result))
        process.start()
        peaks[name] = result.get()
        process.join()
    return peaks


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    case, floats = result["case"], (result["case"]["users"] + result["case"]["items"]) * result["case"]["k"]
    slowest = max(result["seconds"].values())
    lines = [
        f"{case['nnz']:,} counts of {case['users']:,} users and {case['items']:,} items, k={case['k']}, "
        f"{'float64' if case['double'] else 'float32'}, {case['threads']} threads",
        "",
        "| | one iteration | ns per count and factor | ratio | peak of a fit beyond its input |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    size = 8 if case["double"] else 4
    for name, best in result["seconds"].items():
        # The factors are given as what 8 (N + M) K numbers take; the rest is shared by the counts.
        rest = (result["peak"][name] - 8 * floats * size) / case["nnz"]
        per = best * 1e9 / case["nnz"] / case["k"]
        lines.append(
            f"| {name} | {best * 1e3:,.1f} ms | {per:.2f} | {slowest / best:.0f} × | "
            f"{result['peak'][name] / 2**20:,.0f} MiB = 8 (N+M) K numbers {rest:+.1f} bytes a count |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--nnz", type=int, default=2_000_000)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--double", action="store_true", help="float64")
    parser.add_argument("--who", nargs="+", default=["hpfrec", "numpy", "openmp"], choices=list(LENGTHS))
    parser.add_argument("--record", action="store_true", help="add the result to bench/results")
    parser.add_argument("--smoke", action="store_true", help="a small case")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.users, arguments.items, arguments.nnz, arguments.rounds = 2000, 1000, 50_000, 1
    if version("hpfrec") is None:
        arguments.who = [name for name in arguments.who if name != "hpfrec"]
        sys.stderr.write("hpfrec is not installed (extra 'parity'): no comparison with it\n")

    frame = power_law_counts(arguments.users, arguments.items, arguments.nnz)
    case = {name: getattr(arguments, name) for name in ("users", "items", "nnz", "k", "threads", "double")}
    result = {
        "machine": machine("hpf_gpu", "hpfrec", "numpy", "scipy", "pandas"),
        "case": case,
        "seconds": time_iterations(arguments, frame),
        "peak": measure_memory(arguments),
    }
    sys.stdout.write(table(result) + "\n")
    if arguments.record:
        append(RESULTS / "iteration.jsonl", result)


if __name__ == "__main__":
    main()
