"""The results of a day with a GPU as a short text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from gpu.modelled import Model
from gpu.steps import Outcome

Entry = dict[str, Any]

_NOTE, _NAME, _LABEL = 44, 20, 28  # characters
_SWEPT = 3  # best knobs that are shown
#: What tells entries apart, beside the shape.
_DISTINCT = ("op", "variant", "k", "kernel", "knobs")
#: What is shown in brief: of the kernels as they are by default, and of other precisions and forms.
_MAIN = ("iteration", "allocate users", "allocate items")
_DEFAULT = (*_MAIN, "gamma_update", "log_rate_sum", "fit", "fit with checks")
_BRIEF_K = 64


class Peaks(NamedTuple):
    """Bytes per second of a copy, and of rows gathered from a table in L2, by the bytes of a row."""

    copy: float | None
    gather: dict[int, float]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Peaks:
        rates = {
            (entry["op"], entry.get("variant"), entry.get("row_bytes")): entry["bytes_per_second"]
            for entry in entries
            if "shape" not in entry and "bytes_per_second" in entry
        }
        in_l2 = {key[2]: rate for key, rate in rates.items() if key[:2] == ("gather", "in L2")}
        return cls(rates.get(("copy", None, None)), in_l2)


def table(entries: Sequence[Entry], outcomes: Sequence[Outcome], model: Model, *, brief: bool = False) -> str:
    """Steps, ceilings, and a block of times for each data set and K; in brief under 12,000 characters."""
    entries = [entry for entry in _latest(entries) if not brief or _is_brief(entry)]
    peaks = Peaks.of(entries)
    lines = [*_machine(entries), *_steps(outcomes), "", *_ceilings(entries)]
    timed = [entry for entry in entries if "shape" in entry and entry["op"] not in _BESIDES]
    for name, k in _unique((entry["shape"]["name"], entry["k"]) for entry in timed):
        block = [entry for entry in timed if (entry["shape"]["name"], entry["k"]) == (name, k)]
        lines += ["", *_block(block, peaks, model)]
    for name in _unique(entry["shape"]["name"] for entry in entries if entry["op"] in _BESIDES):
        of_shape = [entry for entry in entries if entry.get("shape", {}).get("name") == name]
        for op, lines_of in _BESIDES.items():
            lines += lines_of([entry for entry in of_shape if entry["op"] == op])
    return "\n".join(lines)


def _is_brief(entry: Entry) -> bool:
    if "shape" not in entry or entry["op"] in _BESIDES:
        return True
    return entry["k"] == _BRIEF_K and entry["op"] in (_DEFAULT if entry["variant"] == "fused" else _MAIN)


def _latest(entries: Iterable[Entry]) -> list[Entry]:
    """Of measurements that were repeated the last one, in the order of the first ones."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        # Rows of several lengths are gathered without a shape; those of an operation follow from the rest.
        which = entry["shape"]["name"] if "shape" in entry else entry.get("row_bytes")
        latest[repr((which, *(entry.get(name) for name in _DISTINCT)))] = entry
    return list(latest.values())


def _machine(entries: Sequence[Entry]) -> Iterator[str]:
    if entries and "machine" in entries[-1]:
        machine = entries[-1]["machine"]
        yield ", ".join(f"{machine[name]}" for name in ("gpu", "driver", "commit") if machine.get(name))


def _steps(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        note = re.sub(r"^(\w+\.)+(?=\w+: )", "", outcome.note)  # the module of an exception
        note = note if len(note) <= _NOTE else note[: _NOTE - 1] + "…"
        if outcome.verdict != "skipped":
            yield f"{outcome.name:<{_NAME}}{outcome.verdict:<12}{outcome.seconds:>4.0f} s  {note}".rstrip()
    if skipped := [outcome.name for outcome in outcomes if outcome.verdict == "skipped"]:
        yield f"no time was left for {', '.join(skipped)}"


def _ceilings(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        if "shape" not in entry:
            row = f"{entry['row_bytes']} B" if "row_bytes" in entry else ""
            what = " ".join(filter(None, (entry["op"], row, entry.get("variant"))))
            yield f"{what:<{_LABEL}}{_rate(entry) if 'ms' in entry else 'failed'}"


def _block(entries: Sequence[Entry], peaks: Peaks, model: Model) -> Iterator[str]:
    """Median times of one data set and number of factors, and what they are of the ceilings.

    "rows" is the share of the rate at which the same rows are gathered in the order of the counts, beyond
    100 % where the order of launches is better; "L2" that of rows that are all in L2; "DRAM" the bytes per
    second as a share of a copy's, beyond 100 % where they come from caches; "model" what bench/gpu_model.py
    expects, and how many times that it took.
    """
    shape, k = entries[0]["shape"], entries[0]["k"]
    size = f"{shape['users']:,} × {shape['items']:,}, {shape['nnz']:,} counts"
    yield f"{shape['name']} K={k}: {size}"
    yield " " * _LABEL + "     ms    ±   host  GB/s  rows   L2  DRAM   model"
    for entry in entries:
        if not entry["op"].startswith("gather"):
            yield f"{_label(entry):<{_LABEL}}{_cells(entry, peaks, model)}".rstrip()


def _label(entry: Entry) -> str:
    return f"{entry['op']} ({entry['variant']})" if entry["variant"] != "fused" else str(entry["op"])


def _cells(entry: Entry, peaks: Peaks, model: Model) -> str:
    if "ms" not in entry:
        return f"{'failed':>7}"
    ms, rate = entry["ms"], entry.get("bytes_per_second")
    spread = 50 * (entry["max"] - entry["min"]) / ms if ms else 0.0
    in_l2 = peaks.gather.get(entry.get("row_bytes", 0))
    gathered = entry.get("rows", 0) * entry.get("row_bytes", 0) / ms * 1e3 if ms else 0.0
    expected = model.ms(entry)
    return "".join(
        (
            f"{_number(ms):>7} {spread:>3.0f}%",
            f"{_number(entry.get('host_ms')):>7}",
            f"{_number(rate and rate / 1e9):>6}",
            f"{_share(entry.get('share')):>6}",
            f"{_share(gathered / in_l2 if in_l2 and gathered else None):>5}",
            f"{_share(rate / peaks.copy if rate and peaks.copy else None):>6}",
            f"{_number(expected):>8}{f' × {ms / expected:.2f}' if expected else ''}",
            f"  {entry['in_checks']:.0%} in checks" if "in_checks" in entry else "",
        )
    )


def _counters(entries: Sequence[Entry]) -> Iterator[str]:
    """What ncu has counted, of those metrics that the GPU has."""
    entries = [entry for entry in entries if "error" not in entry]
    if not entries:
        return
    head = ("ms", "L1 hits", "L2 hits", "DRAM GB", "L2 GB", "warps", "stalled")
    yield ""
    yield f"{entries[0]['shape']['name']} K={entries[0]['k']}, ncu".ljust(_LABEL) + "".join(
        f"{h:>9}" for h in head
    )
    for entry in entries:
        scaled = [
            _number(None if name not in entry else entry[name] / unit)
            for name, unit in (("ns", 1e6), ("dram_bytes", 1e9), ("l2_bytes", 1e9))
        ]
        hits = [_share(_percent(entry, name)) for name in ("l1_hits", "l2_hits", "warps")]
        stalled = entry["long_scoreboard"] / entry["latency"] if entry.get("latency") else None
        cells = (scaled[0], *hits[:2], *scaled[1:], hits[2], _share(stalled))
        yield f"{entry['kernel']:<{_LABEL}}" + "".join(f"{cell:>9}" for cell in cells)


def _percent(entry: Entry, name: str) -> float | None:
    return entry[name] / 100 if name in entry else None


def _sweeps(entries: Sequence[Entry]) -> Iterator[str]:
    """The default knobs and the best of the others."""
    if not entries:
        return
    yield ""
    shape, k, sm = (entries[0].get(name, "") for name in ("shape", "k", "sm"))
    yield f"{shape['name']} K={k}, sweep on sm_{sm}: ms of allocate users + items"
    worked = [entry for entry in entries if "total_ms" in entry]
    best = sorted(worked[1:], key=lambda entry: entry["total_ms"])[:_SWEPT]
    for entry in (*worked[:1], *best, *(entry for entry in entries if "error" in entry)):
        knobs = " ".join(f"{name}={value}" for name, value in entry.get("knobs", {}).items())
        if "error" in entry:
            yield f"{knobs:<{_LABEL + 20}}{entry['error'][:_NOTE]}"
        else:
            both = f"{_number(entry['users_ms'])} + {_number(entry['items_ms'])}"
            yield f"{knobs:<{_LABEL + 20}}{both:>14}{entry['total_ms'] / worked[0]['total_ms']:>7.0%}"


def _clocks(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        if "error" not in entry:
            told = (
                ("SM {} MHz", "sm_mhz", "most_sm_mhz"),
                ("memory {} MHz", "memory_mhz", "most_memory_mhz"),
            )
            clocks = (
                text.format(f"{entry[now]:.0f} of {entry[most]:.0f}")
                for text, now, most in told
                if now in entry and most in entry
            )
            more = (f"{entry[n]:.0f} {unit}" for n, unit in (("watts", "W"), ("celsius", "°C")) if n in entry)
            yield ""
            yield f"clocks in iterations of {entry['shape']['name']}: {', '.join((*clocks, *more))}"


#: What has lines of its own.
_BESIDES = {"clocks": _clocks, "counters": _counters, "sweep": _sweeps}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _rate(entry: Entry) -> str:
    rate = entry.get("bytes_per_second", 0.0)
    size, letter = next((pair for pair in ((1e12, "T"), (1e9, "G")) if rate >= pair[0]), (1e6, "M"))
    return f"{rate / size:.3g} {letter}B/s"


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
