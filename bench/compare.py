"""Hold two records of bench/run.py against each other: what has become slower, or takes more memory?

    python bench/compare.py OLD.jsonl NEW.jsonl             two files
    python bench/compare.py FILE.jsonl --commits OLD NEW    two commits in one

Of each quantity the smallest value counts.  The exit status is 1 where one of hpf_gpu's has grown by more
than a relative AND an absolute limit, so that neither noise of short times nor that of long ones fails; or
where something that was measured has failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from competitors import COMPETITORS
from record import read

Entry = dict[str, Any]
Key = tuple[Any, ...]

_RELATIVE = 0.10
_ABSOLUTE = {"s": 1e-3, "B": 4 << 20}
_JOB = ("case", "who", "k", "threads", "dtype")
#: Small differences of large times, which are compared themselves.
_DERIVED = ("set-up",)


def smallest(entries: Iterable[Entry]) -> dict[Key, tuple[float, str]]:
    """The best value, and its unit, of everything that is better small and ours."""
    best: dict[Key, tuple[float, str]] = {}
    for entry in entries:
        if entry.get("unit") in _ABSOLUTE and entry["quantity"] not in _DERIVED and _is_ours(entry):
            key = (*_job(entry), entry["quantity"], entry.get("iterations"))
            value = (entry["value"], entry["unit"])
            best[key] = min(best.get(key, value), value)
    return best


def what_got_worse(
    old: Iterable[Entry], new: Iterable[Entry], relative: float = _RELATIVE
) -> tuple[list[str], int]:
    """A line for each quantity beyond both limits and each failure, and how many were compared."""
    old, new = list(old), list(new)
    before, after = smallest(old), smallest(new)
    shared = [key for key in after if key in before]
    worse = []
    for key in shared:
        (was, unit), (now, _) = before[key], after[key]
        if now - was > max(relative * was, _ABSOLUTE[unit]):
            worse.append(f"{_name(key)}: {was:.4g} → {now:.4g} {unit}, {now / was - 1:+.0%}")
    return worse + list(_failures({key[: len(_JOB)] for key in before}, new)), len(shared)


def _failures(measured: set[Key], new: Iterable[Entry]) -> Iterator[str]:
    for entry in new:
        if "error" in entry and _job(entry) in measured:
            yield f"{_name(_job(entry))}: was measured, and now: {entry['error']}"


def _is_ours(entry: Entry) -> bool:
    return entry["who"] in COMPETITORS and COMPETITORS[entry["who"]].package == "hpf_gpu"


def _job(entry: Entry) -> Key:
    return tuple(entry[field] for field in _JOB)


def _name(key: Key) -> str:
    case, who, k, threads, _, *rest = key
    return " ".join(map(str, filter(None, (case, who, f"K={k}", f"{threads} threads", *rest))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--commits", nargs=2, metavar=("OLD", "NEW"), help="as they stand in the record")
    parser.add_argument("--relative", type=float, default=_RELATIVE, help="limit, as a fraction (0.1)")
    arguments = parser.parse_args()
    if len(arguments.files) != (1 if arguments.commits else 2):
        parser.error("two files, or one with --commits OLD NEW")
    entries = [read(path) for path in arguments.files]
    if arguments.commits:
        entries = [[e for e in entries[0] if e["machine"]["commit"] == c] for c in arguments.commits]
    old, new = entries
    machines = {(entry["machine"]["cpu"], entry["machine"]["cores"]) for entry in (*old, *new)}
    if len(machines) > 1:
        parser.error(f"measured on different machines: {', '.join(map(str, sorted(machines)))}")
    worse, compared = what_got_worse(old, new, arguments.relative)
    if not compared:
        parser.error("the two have nothing in common")
    sys.stdout.write("".join(f"{told}\n" for told in worse))
    sys.stdout.write(f"{compared} figures compared, {len(worse)} worse\n")
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
