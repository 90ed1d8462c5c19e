"""What the entries of a record say: single quantities, and likelihoods over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Entry = dict[str, Any]
Points = list[tuple[float, float]]  # seconds and likelihoods

#: Whom the others are held against.
REFERENCE = "hpfrec"
#: Part of a likelihood by which two float32 fits of the same model may differ.  3e-6 measured between hpfrec
#: and openmp after 100 iterations on Online Retail.
ROUNDING = 1e-5


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
        theirs = {entry["quantity"]: entry["value"] for entry in of(entries, REFERENCE) if "value" in entry}
        iteration, set_up = theirs["iteration"], theirs["set-up"]
        found[REFERENCE] = [(set_up + n * iteration, e[quantity]) for n, e in fits["openmp"].items()]
    return found


def is_extrapolated(entries: Sequence[Entry]) -> bool:
    lengths = {
        who: max((e.get("iterations", 0) for e in of(entries, who)), default=0)
        for who in (REFERENCE, "openmp")
    }
    return 0 < lengths[REFERENCE] < lengths["openmp"]


def of(entries: Sequence[Entry], who: str) -> list[Entry]:
    return [entry for entry in entries if entry["who"] == who]


def time_to(points: Points, target: float) -> float | None:
    """Seconds until a likelihood is reached but for rounding; None if it is not.

    Between two fits by a straight line.
    """
    target -= ROUNDING * abs(target)
    before: tuple[float, float] | None = None
    for seconds, likelihood in points:
        if likelihood >= target:
            if before is None:
                return seconds
            share = (target - before[1]) / (likelihood - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, likelihood)
    return None
