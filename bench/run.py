"""Measure cases of cases.toml, each competitor in a process of its own.

    python bench/run.py                         what can be measured
    python bench/run.py iteration-2m top-2m     these cases
    python bench/run.py fit-2m --record         the same, and add the results to bench/results/cpu.jsonl
    python bench/run.py --smoke                 every measure on little data, to see that all works

Rounds take turns, and of each time the fastest round counts.  A process that exceeds its case's limit is
cut off, with what it has told so far.  `bench/report.py` draws and tabulates what was recorded,
`bench/compare.py` holds two records against each other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
from cases import CASES, DATA, Case, Input, Job
from competitors import COMPETITORS, PACKAGES, why_not
from measures import MEASURES, Entry, seconds
from record import CPU_RECORD, QUIET, append, core_seconds_of_others, machine

_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


# -- one process ---------------------------------------------------------------------------------------


def work(sender: Connection, job: Job, path: Path) -> None:
    """Do a job and send its results; what the process that was started runs."""
    warnings.simplefilter("ignore")
    try:
        for entry in MEASURES[job.case.measure](job, Input(pd.read_pickle(path))):
            sender.send(entry)
    except Exception as error:
        sender.send({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})


def in_process(job: Job, path: Path) -> Iterator[Entry]:
    """Results of a job as they come; the last one has an ``error`` if it failed or was cut off."""
    blas = job.threads if COMPETITORS[job.who].threads_in_blas else 1
    os.environ |= {"OMP_NUM_THREADS": str(job.threads)} | dict.fromkeys(_THREAD_VARIABLES, str(blas))
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, job, path))
    process.start()
    sender.close()
    deadline = time.monotonic() + job.case.limit
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            yield receiver.recv()
        yield {"error": f"cut off after {job.case.limit:.0f} s"}
    except EOFError:
        process.join()
        if process.exitcode:
            yield {"error": f"the process ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


# -- one case ------------------------------------------------------------------------------------------


def measure(case: Case, folder: Path) -> Iterator[Entry]:
    """All results of a case, competitor by competitor once all rounds are over."""
    path = folder / f"{case.data}.pkl"
    if not path.exists():
        DATA[case.data].frame().to_pickle(path)
    jobs = list(case.jobs())
    failures = {job: f"not measured: {why}" for job in jobs if (why := why_not(job.who, case.dtype))}
    found: dict[Job, list[Entry]] = {job: [] for job in jobs}
    for _ in range(case.rounds):
        for job in jobs:
            if job in failures:
                continue
            for entry in in_process(job, path):
                if "error" in entry:
                    failures[job] = entry["error"]
                else:
                    found[job].append(entry)
    for job in jobs:
        facts = {"case": case.name, "measure": case.measure, "data": vars(DATA[case.data]), "who": job.who}
        facts |= {"k": job.k, "threads": job.threads, "dtype": case.dtype}
        best = list(fastest(found[job]))
        if best and COMPETITORS[job.who].even:
            best += derived(best)
        if job in failures:
            best.append({"quantity": case.measure, "error": failures[job]})
        yield from (facts | entry for entry in best)


def fastest(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Of each quantity (and length of a fit) the smallest value of all rounds, with all of them."""
    rounds: dict[Any, list[Entry]] = {}
    for entry in entries:
        rounds.setdefault((entry["quantity"], entry.get("iterations")), []).append(entry)
    for same in rounds.values():
        best = min(same, key=lambda entry: entry["value"])
        yield best | ({"rounds": [entry["value"] for entry in same]} if len(same) > 1 else {})


def derived(entries: Iterable[Entry]) -> list[Entry]:
    """One iteration, and what comes before the first, from the shortest and the longest fit."""
    fits = {entry["iterations"]: entry["value"] for entry in entries if entry["quantity"] == "fit"}
    short, long = min(fits, default=0), max(fits, default=0)
    if short == long:
        return []
    iteration = (fits[long] - fits[short]) / (long - short)
    return [seconds(iteration, "iteration"), seconds(fits[short] - short * iteration, "set-up")]


# -- all of it -----------------------------------------------------------------------------------------


def line(entry: Entry) -> str:
    """An entry for the eye."""
    what = f"{entry['who']:<20}K={entry['k']:<5}{entry['threads']} threads  {entry['quantity']:<22}"
    if "error" in entry:
        return what + entry["error"]
    scale, unit = {"s": (1e3, "ms"), "B": (2**-20, "MiB")}.get(entry["unit"], (1e-9, f"G{entry['unit']}"))
    told = f"{entry['value'] * scale:12,.2f} {unit}"
    if "iterations" in entry:
        told += f"  {entry['iterations']} iterations"
    if "share" in entry:
        told += f"  {entry['share']:.0%} of {entry['ceiling']}"
    return what + told + "".join(f"  {name} {entry[name]:,.0f}" for name in ("training",) if name in entry)


def watched(case: Case, folder: Path) -> tuple[list[Entry], float | None]:
    """All results of a case, and how many cores were busy with other processes meanwhile."""
    before, started = core_seconds_of_others(), time.monotonic()
    results = list(measure(case, folder))
    after = core_seconds_of_others()
    if before is None or after is None:
        return results, None
    others = round((after - before) / (time.monotonic() - started), 2)
    if others > QUIET:
        sys.stdout.write(f"other processes kept {others} cores busy: measure again on a quiet machine\n")
    return results, others


def smoke_cases() -> list[Case]:
    """One small case of each measure, with everybody who takes part in any of them."""
    cases = {}
    for case in CASES.values():
        before = cases.get(case.measure, case)
        who = tuple(dict.fromkeys((*before.who, *case.who)))
        lengths = case.lengths | before.lengths
        cases[case.measure] = replace(
            before, who=who, lengths=lengths, likelihood=before.likelihood or case.likelihood
        )
    return [case.small() for case in cases.values()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--who", nargs="+", choices=list(COMPETITORS), help="in place of the case's own")
    parser.add_argument("--record", nargs="?", type=Path, const=CPU_RECORD, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="every measure on little data")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; cases are: {', '.join(CASES)}")
    chosen = smoke_cases() if arguments.smoke else [CASES[name] for name in arguments.cases]
    if not chosen:
        sys.stdout.write("".join(f"{case.name:<28}{case.measure}\n" for case in CASES.values()))
    run = {"run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    facts = machine(*PACKAGES, "numpy", "scipy", "pandas")
    failed = False
    with tempfile.TemporaryDirectory(prefix="hpf_gpu_bench_") as folder:
        for case in chosen:
            case = replace(case, who=tuple(arguments.who)) if arguments.who else case
            sys.stdout.write(f"\n{case.name}: {case.data}, {case.dtype}\n")
            sys.stdout.flush()
            results, others = watched(case, Path(folder))
            for entry in results:
                sys.stdout.write(line(entry) + "\n")
                failed |= not entry.get("error", "not measured").startswith(("not measured", "cut off"))
                if arguments.record:
                    append(arguments.record, run | entry | {"others": others, "machine": facts})
    sys.exit(failed)


if __name__ == "__main__":
    main()
