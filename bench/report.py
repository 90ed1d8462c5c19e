"""Tabulate and draw what bench/run.py has recorded.

    python bench/report.py                            bench/results/cpu.jsonl -> bench/results/REPORT.md
    python bench/report.py --record FILE --out FOLDER

Of every case the last run is told, so that ratios are those of one run.  Figures lie beside the report, as
PNG and SVG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from entries import REFERENCE, Entry, curves, is_extrapolated, last_runs, time_to, values
from figures import save
from record import CPU_RECORD, QUIET, RESULTS, read


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    names = head.split("|")
    rule = ["---"] + ["---:"] * (len(names) - 1)
    return [f"| {' | '.join(map(str.strip, row))} |" for row in (names, rule, *rows)]


def times_as_fast(best: dict[tuple[str, int, int], float]) -> list[str]:
    """Each time against hpfrec's, or implicit's, or the longest, at the same K."""

    def standard(k: int) -> float:
        same = {who: seconds for (who, other, _), seconds in reversed(best.items()) if other == k}
        longest = max(seconds for (_, other, _), seconds in best.items() if other == k)
        return same.get(REFERENCE, same.get("implicit", longest))

    return [f"{standard(k) / seconds:.1f} ×" for (_, k, _), seconds in best.items()]


def of_fits(entries: Sequence[Entry]) -> list[str]:
    iterations, fits = values(entries, "iteration"), [e for e in entries if e["quantity"] == "fit"]
    if any("training" in entry for entry in fits):
        return of_likelihoods(entries)
    if not iterations:
        faster = times_as_fast(values(entries, "fit"))
        rows = [
            [e["who"], str(e["iterations"]), f"{e['value']:,.2f} s", ratio]
            for e, ratio in zip(fits, faster, strict=True)
        ]
        return table("|iterations|whole fit|times as fast", rows)
    set_ups, nnz = values(entries, "set-up"), entries[0]["data"]["nnz"]
    rows = [
        [
            *(who, str(k), str(threads), f"{seconds * 1e3:,.1f} ms", f"{seconds * 1e9 / nnz / k:.3f} ns"),
            *(ratio, f"{set_ups[who, k, threads] * 1e3:,.0f} ms"),
        ]
        for ((who, k, threads), seconds), ratio in zip(
            iterations.items(), times_as_fast(iterations), strict=True
        )
    ]
    return table("|K|threads|one iteration|per count and factor|times as fast|set-up", rows)


def of_likelihoods(entries: Sequence[Entry]) -> list[str]:
    """Times to the likelihoods that hpfrec's last fit has (or would have)."""
    training, held_out = (curves(entries, name) for name in ("training", "with_zeros"))
    standard = REFERENCE if REFERENCE in training else next(iter(training))
    rows = []
    for who in training:
        reached = (time_to(of_all[who], of_all[standard][-1][1]) for of_all in (training, held_out))
        told = ("not reached" if seconds is None else f"{seconds:,.2f} s" for seconds in reached)
        rows.append([who, *told, f"{training[who][-1][1]:,.0f}", f"{held_out[who][-1][1]:,.0f}"])
    lines = table("|to equal training|to equal held-out|training at the end|held-out at the end", rows)
    note = f"Times to the log-likelihoods of {standard}'s last fit, without −Σ ln y!."
    note += " Held-out is of all pairs outside the training data."
    if is_extrapolated(entries):
        note += f" {REFERENCE} was timed for a few iterations, and the rest is extrapolated: its iterations"
        note += " give `openmp`'s numbers (`tests/test_parity.py`)."
    return [*lines, "", note]


def of_memory(entries: Sequence[Entry]) -> list[str]:
    peaks, data = values(entries, "peak of a fit"), entries[0]["data"]
    rows = [[who, str(k), f"{peak / 2**20:,.0f} MiB"] for (who, k, _), peak in peaks.items()]
    lines = table("|K|peak of a fit beyond its input", rows)
    for who in dict.fromkeys(who for who, *_ in peaks):
        # Bytes = a·nnz + b·(N + M)·K·(bytes of a number), for several K solved for a and b.
        ours = {k: peak for (name, k, _), peak in peaks.items() if name == who}
        numbers = [
            (data["users"] + data["items"]) * k * (4 if entries[0]["dtype"] == "float32" else 8) for k in ours
        ]
        if len(ours) > 1:
            (a, b), *_ = np.linalg.lstsq([(data["nnz"], n) for n in numbers], list(ours.values()), rcond=None)
            lines += ["", f"{who}: {a:.1f} bytes a count and {b:.1f} (N + M) K numbers, by least squares."]
    return lines


def of_ids(entries: Sequence[Entry]) -> list[str]:
    iteration = max(values(entries, "iteration").values())
    timed = [entry for entry in entries if "value" in entry]
    rows = [[e["quantity"], f"{e['value'] * 1e3:,.1f} ms", f"{e['value'] / iteration:.1f}"] for e in timed]
    return table("|time|in iterations", rows)


def of_top(entries: Sequence[Entry]) -> list[str]:
    best = values(entries, "top 10 of all users")
    faster = times_as_fast(best)
    rows = [
        [who, f"{seconds * 1e3:,.0f} ms", ratio]
        for ((who, *_), seconds), ratio in zip(best.items(), faster, strict=True)
    ]
    return table("|ten items for every user|times as fast", rows)


def of_kernels(entries: Sequence[Entry]) -> list[str]:
    rates = [entry for entry in entries if entry["quantity"].startswith("ceiling ")]
    shared = [entry for entry in entries if "share" in entry]
    rows = [
        [
            e["quantity"],
            f"{e['value'] * 1e3:,.2f} ms",
            e["ceiling"],
            f"{e['share']:.0%}",
            f"{e['untiled']:.0%}",
        ]
        for e in shared
    ]
    told = ", ".join(f"{e['quantity'].split()[1]} {e['value'] / 1e9:,.1f} G{e['unit']}" for e in rates)
    return [
        *table("|time|nearer ceiling|share of it|of a gather from memory", rows),
        "",
        f"Ceilings: {told}. `bench/operations.py` has the model.",
    ]


TABLES = {"fits": of_fits, "memory": of_memory, "ids": of_ids, "top": of_top, "kernels": of_kernels}


def markdown(runs: dict[str, list[Entry]], figures: Sequence[str]) -> str:
    lines = ["# Measured on a CPU", "", "Made by `bench/report.py`; `bench/cases.toml` has the cases.", ""]
    for name in figures:
        lines += [f"![{name}]({name}.svg)", ""]
    for case, entries in runs.items():
        data, machine = entries[0]["data"], entries[0]["machine"]
        size = f"{data['users']:,} × {data['items']:,}, {data['nnz']:,} counts"
        lines += [
            f"## {case}",
            "",
            f"{size}, {entries[0]['dtype']}. {machine['cpu']}, {machine['cores']} cores, ",
        ]
        lines[-1] += f"commit {machine['commit']}, {entries[0]['run'][:10]}."
        if (others := entries[0].get("others")) is not None:
            lines[-1] += f" Other processes kept {others} cores busy."
            lines[-1] += " **Measure again on a quiet machine.**" * (others > QUIET)
        failures = [entry for entry in entries if "error" in entry]
        if len(failures) < len(entries):
            lines += ["", *TABLES[entries[0]["measure"]](entries)]
        lines += [f"\n{entry['who']}, K={entry['k']}: {entry['error']}." for entry in failures]
        lines.append("")
    return "\n".join(lines)


def write(record: Path, out: Path) -> str:
    """Write REPORT.md and its figures; returns the report."""
    runs = last_runs(read(record))
    if not runs:
        raise SystemExit(f"{record} holds no results: python bench/run.py CASE --record")
    text = markdown(runs, save(runs, out))
    (out / "REPORT.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, default=CPU_RECORD, metavar="FILE")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    arguments = parser.parse_args()
    sys.stdout.write(write(arguments.record, arguments.out))


if __name__ == "__main__":
    main()
