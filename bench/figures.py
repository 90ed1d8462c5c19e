"""The figures of the report, each drawn from the entries of one run of a case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from entries import Entry, curves, values

mpl.use("Agg")
import matplotlib.pyplot as plt

INK, OURS, THEIRS = "#333333", "#0b6e4f", "#b0b0b0"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "hpf_gpu"}


def draw_all(runs: dict[str, list[Entry]]) -> Iterator[tuple[str, Any]]:
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
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    bars = sorted(((value * 1e3, who) for (who, *_), value in seconds.items()), reverse=True)
    colours = [OURS if who in ("numpy", "openmp", "cuda") else THEIRS for _, who in bars]
    drawn = axes.barh([who for _, who in bars], [ms for ms, _ in bars], color=colours)
    axes.bar_label(drawn, [f"{ms:,.0f} ms" for ms, _ in bars], padding=3, color=INK)
    axes.set(xscale="log", xlabel="one iteration, ms")
    axes.margins(x=0.2)
    return figure


def draw_factors(cases: Sequence[list[Entry]]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for entries in cases:
        nnz, best = entries[0]["data"]["nnz"], values(entries, "iteration")
        ks = sorted(k for _, k, _ in best)
        per = {k: seconds * 1e9 / nnz / k for (_, k, _), seconds in best.items()}
        axes.plot(ks, [per[k] for k in ks], marker="o", label=f"{nnz / 1e6:.1f}M counts")
    axes.set(xlabel="K", ylabel="ns per count and factor")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    return figure


def draw_likelihoods(entries: Sequence[Entry]) -> Any:
    figure, both = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, quantity, name in zip(both, ("training", "with_zeros"), ("training", "held-out"), strict=True):
        for who, points in curves(entries, quantity).items():
            axes.plot(*zip(*points, strict=True), marker=".", label=who)
        axes.set(xscale="log", xlabel="seconds", ylabel=f"{name} log-likelihood")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


def draw_shares(entries: Sequence[Entry]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    shared = [entry for entry in reversed(entries) if "share" in entry]
    bars = axes.barh([e["quantity"] for e in shared], [100 * e["share"] for e in shared], color=OURS)
    axes.bar_label(bars, [e["ceiling"] for e in shared], padding=3, color=INK)
    axes.set(xlim=(0, 125), xlabel="percent of the nearer ceiling")
    return figure


def save(runs: dict[str, list[Entry]], out: Path) -> list[str]:
    """Draw them into a folder as PNG and SVG; returns their names."""
    names = []
    with mpl.rc_context(STYLE):
        for name, figure in draw_all(runs):
            figure.savefig(out / f"{name}.png", dpi=150)
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
            names.append(name)
    return names
