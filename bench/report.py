"""Tabulate and draw what bench/run.py has recorded.

    python bench/report.py                            bench/results/cpu.jsonl -> bench/results/REPORT.md
    python bench/report.py --record FILE --out FOLDER

Of every case the last run is told, so that ratios are those of one run.  Figures lie beside the report, as
PNG and SVG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from record import RESULTS, read
from run import RECORD

mpl.use("Agg")
import matplotlib.pyplot as plt

Entry = dict[str, Any]
Points = list[tuple[float, float]]  # seconds and likelihoods

_REFERENCE = "hpfrec"
_INK, _OURS, _THEIRS = "#333333", "#0b6e4f", "#b0b0b0"


def last_runs(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries of the last run of every case."""
    last = {entry["case"]: entry["run"] for entry in entries}
    return {case: [e for e in entries if (e["case"], e["run"]) == (case, run)] for case, run in last.items()}


def values(entries: Sequence[Entry], quantity: str) -> dict[tuple[str, int, int], float]:
    """Value of a quantity by competitor, K and threads."""
    return {
        (entry["who"], entry["k"], entry["threads"]): entry["value"]
        for entry in entries
        if entry["quantity"] == quantity and "value" in entry
    }


# -- likelihoods over time -----------------------------------------------------------------------------


def curves(entries: Sequence[Entry], quantity: str) -> dict[str, Points]:
    """Likelihood after so many seconds, by competitor.

    Where hpfrec's fits end early, it is told the likelihoods of `openmp`, whose iterations are the same, and
    the times that its own iterations would take.
    """
    fits: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        if quantity in entry:
            fits.setdefault(entry["who"], {})[entry["iterations"]] = entry
    found = {who: [(e["value"], e[quantity]) for e in by.values()] for who, by in fits.items()}
    if is_extrapolated(entries):
        theirs = {entry["quantity"]: entry["value"] for entry in of(entries, _REFERENCE) if "value" in entry}
        iteration, set_up = theirs["iteration"], theirs["set-up"]
        found[_REFERENCE] = [(set_up + n * iteration, e[quantity]) for n, e in fits["openmp"].items()]
    return found


def is_extrapolated(entries: Sequence[Entry]) -> bool:
    lengths = {
        who: max((e.get("iterations", 0) for e in of(entries, who)), default=0)
        for who in (_REFERENCE, "openmp")
    }
    return 0 < lengths[_REFERENCE] < lengths["openmp"]


def of(entries: Sequence[Entry], who: str) -> list[Entry]:
    return [entry for entry in entries if entry["who"] == who]


def time_to(points: Points, target: float) -> float | None:
    """Seconds until a likelihood is reached, between two fits by a straight line; None if it is not."""
    before: tuple[float, float] | None = None
    for seconds, likelihood in points:
        if likelihood >= target:
            if before is None:
                return seconds
            share = (target - before[1]) / (likelihood - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, likelihood)
    return None


# -- tables: lines of Markdown for each measure ---------------------------------------------------------


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    names = head.split("|")
    rule = ["---"] + ["---:"] * (len(names) - 1)
    return [f"| {' | '.join(map(str.strip, row))} |" for row in (names, rule, *rows)]


def of_fits(entries: Sequence[Entry]) -> list[str]:
    iterations, fits = values(entries, "iteration"), [e for e in entries if e["quantity"] == "fit"]
    if any("training" in entry for entry in fits):
        return of_likelihoods(entries)
    if not iterations:
        best = {entry["who"]: entry["value"] for entry in fits}
        slowest = max(best.values(), default=0)
        rows = [
            [e["who"], str(e["iterations"]), f"{e['value']:,.2f} s", f"{slowest / e['value']:.1f} ×"]
            for e in fits
        ]
        return table("|iterations|whole fit|ratio", rows)
    set_ups, nnz = values(entries, "set-up"), entries[0]["data"]["nnz"]
    reference = max(
        (v for (who, *_), v in iterations.items() if who == _REFERENCE), default=max(iterations.values())
    )
    rows = [
        [
            *(who, str(k), str(threads), f"{seconds * 1e3:,.1f} ms", f"{seconds * 1e9 / nnz / k:.3f} ns"),
            *(f"{reference / seconds:.1f} ×", f"{set_ups[who, k, threads] * 1e3:,.0f} ms"),
        ]
        for (who, k, threads), seconds in iterations.items()
    ]
    return table("|K|threads|one iteration|per count and factor|ratio|set-up", rows)


def of_likelihoods(entries: Sequence[Entry]) -> list[str]:
    """Times to the likelihoods that hpfrec's last fit has (or would have)."""
    training, held_out = (curves(entries, name) for name in ("training", "with_zeros"))
    standard = _REFERENCE if _REFERENCE in training else next(iter(training))
    rows = []
    for who in training:
        reached = (time_to(of_all[who], of_all[standard][-1][1]) for of_all in (training, held_out))
        told = ("not reached" if seconds is None else f"{seconds:,.2f} s" for seconds in reached)
        rows.append([who, *told, f"{training[who][-1][1]:,.0f}", f"{held_out[who][-1][1]:,.0f}"])
    lines = table("|to equal training|to equal held-out|training at the end|held-out at the end", rows)
    note = f"Times to the log-likelihoods of {standard}'s last fit, without −Σ ln y!."
    note += " Held-out is of all pairs outside the training data."
    if is_extrapolated(entries):
        note += f" {_REFERENCE} was timed for a few iterations, and the rest is extrapolated: its iterations"
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
    best = {who: seconds for (who, *_), seconds in values(entries, "top 10 of all users").items()}
    slowest = max(best.values())
    rows = [[who, f"{seconds * 1e3:,.0f} ms", f"{slowest / seconds:.1f} ×"] for who, seconds in best.items()]
    return table("|ten items for every user|ratio", rows)


def of_kernels(entries: Sequence[Entry]) -> list[str]:
    rates = [entry for entry in entries if entry["quantity"].startswith("ceiling ")]
    shared = [entry for entry in entries if "share" in entry]
    rows = [[e["quantity"], f"{e['value'] * 1e3:,.2f} ms", e["ceiling"], f"{e['share']:.0%}"] for e in shared]
    told = ", ".join(f"{e['quantity'].split()[1]} {e['value'] / 1e9:,.1f} G{e['unit']}" for e in rates)
    return [
        *table("|time|nearer ceiling|share of it", rows),
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
        failures = [entry for entry in entries if "error" in entry]
        if len(failures) < len(entries):
            lines += ["", *TABLES[entries[0]["measure"]](entries)]
        lines += [f"\n{entry['who']}, K={entry['k']}: {entry['error']}." for entry in failures]
        lines.append("")
    return "\n".join(lines)


# -- figures -------------------------------------------------------------------------------------------


def figures(runs: dict[str, list[Entry]]) -> Iterator[tuple[str, Any]]:
    """Names and figures of all that can be drawn of these runs."""
    sweeps = []
    for case, entries in runs.items():
        iterations = values(entries, "iteration")
        if any("training" in entry for entry in entries):
            yield case, draw_likelihoods(entries)
        elif any("share" in entry for entry in entries):
            yield case, draw_shares(entries)
        elif len({who for who, *_ in iterations}) > 2:
            yield case, draw_bars(iterations)
        elif len({k for _, k, _ in iterations}) > 2:
            sweeps.append(entries)
    if sweeps:
        yield "factors", draw_factors(sweeps)


def draw_bars(seconds: dict[tuple[str, int, int], float]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3))
    bars = sorted(((value * 1e3, who) for (who, *_), value in seconds.items()), reverse=True)
    colours = [_OURS if who in ("numpy", "openmp", "cuda") else _THEIRS for _, who in bars]
    drawn = axes.barh([who for _, who in bars], [ms for ms, _ in bars], color=colours)
    axes.bar_label(drawn, [f"{ms:,.0f} ms" for ms, _ in bars], padding=3, color=_INK)
    axes.set(xscale="log", xlabel="one iteration, ms")
    axes.margins(x=0.2)
    return figure


def draw_factors(cases: Sequence[list[Entry]]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3))
    for entries in cases:
        nnz, best = entries[0]["data"]["nnz"], values(entries, "iteration")
        ks = sorted(k for _, k, _ in best)
        per = {k: seconds * 1e9 / nnz / k for (_, k, _), seconds in best.items()}
        axes.plot(ks, [per[k] for k in ks], marker="o", label=f"{nnz / 1e6:.1f}M counts")
    axes.set(xlabel="K", ylabel="ns per count and factor", ylim=(0, None))
    axes.legend()
    return figure


def draw_likelihoods(entries: Sequence[Entry]) -> Any:
    figure, both = plt.subplots(1, 2, figsize=(9, 3.5))
    for axes, quantity, name in zip(both, ("training", "with_zeros"), ("training", "held-out"), strict=True):
        for who, points in curves(entries, quantity).items():
            axes.plot(*zip(*points, strict=True), marker=".", label=who)
        axes.set(xscale="log", xlabel="seconds", ylabel=f"{name} log-likelihood")
    both[0].legend()
    return figure


def draw_shares(entries: Sequence[Entry]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3.5))
    shared = [entry for entry in reversed(entries) if "share" in entry]
    bars = axes.barh([e["quantity"] for e in shared], [100 * e["share"] for e in shared], color=_OURS)
    axes.bar_label(bars, [e["ceiling"] for e in shared], padding=3, color=_INK)
    axes.set(xlim=(0, 120), xlabel="percent of the nearer ceiling")
    return figure


def write(record: Path, out: Path) -> str:
    """Write REPORT.md and its figures; returns the report."""
    runs = last_runs(read(record))
    if not runs:
        raise SystemExit(f"{record} holds no results: python bench/run.py CASE --record")
    names = []
    for name, figure in figures(runs):
        figure.tight_layout()
        figure.savefig(out / f"{name}.png", dpi=150)
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        names.append(name)
    text = markdown(runs, names)
    (out / "REPORT.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    arguments = parser.parse_args()
    mpl.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "hpf_gpu"}
    sys.stdout.write(write(arguments.record, arguments.out))


if __name__ == "__main__":
    main()
