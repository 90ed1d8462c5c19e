"""The results of a day with a GPU as a short text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gpu.steps import Outcome

Entry = dict[str, Any]

_NOTE, _CELL, _LABEL = 56, 15, 28  # characters


def table(entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> str:
    """Steps, ceilings, and a block of times for each data set; under 12,000 characters."""
    lines = [*_steps(outcomes), "", *_ceilings(entries)]
    for name in _unique(entry["shape"]["name"] for entry in entries if "shape" in entry):
        of_shape = [entry for entry in entries if entry.get("shape", {}).get("name") == name]
        lines += ["", *_block(of_shape), *_rates(of_shape)]
    return "\n".join(lines)


def _steps(outcomes: Iterable[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        note = re.sub(r"^(\w+\.)+(?=\w+: )", "", outcome.note)  # the module of an exception
        note = note if len(note) <= _NOTE else note[: _NOTE - 1] + "…"
        yield f"{outcome.name:<16}{outcome.verdict:<12}{outcome.seconds:>4.0f} s  {note}"


def _ceilings(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        if "shape" not in entry:
            row = f"{entry['row_bytes']} B" if "row_bytes" in entry else ""
            what = " ".join(filter(None, (entry["op"], row, entry.get("variant"))))
            yield f"{what:<{_LABEL}}{_rate(entry, 'bytes', 'B/s') if 'ms' in entry else 'failed'}"


def _block(entries: Sequence[Entry]) -> Iterator[str]:
    """Median times of one data set: a row for each operation and variant, a column for each K."""
    shape, factors = entries[0]["shape"], sorted(_unique(entry["k"] for entry in entries))
    yield (
        f"{shape['name']}, {shape['users']:,} × {shape['items']:,}, {shape['nnz']:,} counts: "
        "median ms ± half the spread, share of the ceiling"
    )
    yield " " * _LABEL + "".join(f"{f'K={k}':>{_CELL}}" for k in factors)
    for label in _unique(map(_label, entries)):
        cells = {entry["k"]: _cell(entry) for entry in entries if _label(entry) == label}
        yield f"{label:<{_LABEL}}" + "".join(f"{cells.get(k, ''):>{_CELL}}" for k in factors).rstrip()


def _rates(entries: Iterable[Entry]) -> Iterator[str]:
    """What the two allocations reach at K = 64."""
    for entry in entries:
        if entry["k"] == 64 and entry["op"] in ("allocate users", "allocate items") and "ms" in entry:
            rates = f"{_rate(entry, 'bytes', 'B/s'):>{_CELL}}{_rate(entry, 'units', 'counts/s'):>{_CELL}}"
            yield f"{_label(entry):<{_LABEL}}{rates}  K=64"


def _label(entry: Entry) -> str:
    return f"{entry['op']} ({entry['variant']})" if entry["variant"] != "fused" else str(entry["op"])


def _cell(entry: Entry) -> str:
    if "ms" not in entry:
        return "failed"
    digits = f"{entry['ms']:.0f}" if entry["ms"] >= 1000 else f"{entry['ms']:.3g}"
    spread = 50 * (entry["max"] - entry["min"]) / entry["ms"] if entry["ms"] else 0.0
    share = f" {entry['share']:>4.0%}" if "share" in entry else " " * 5
    return f"{digits} ±{spread:.0f}%{share}"


def _rate(entry: Entry, what: str, unit: str) -> str:
    rate = entry.get(f"{what}_per_second", 0.0)
    size, letter = next((pair for pair in ((1e12, "T"), (1e9, "G")) if rate >= pair[0]), (1e6, "M"))
    return f"{rate / size:.3g} {letter}{unit}"


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
