"""The milliseconds that bench/gpu_model.py expects, to be printed beside those that were measured."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).resolve().parents[1] / "results" / "gpu_model.tsv"


#: What is timed, and the operations of the table that it consists of.
TIMED = {
    "allocate users": ("allocate users", "join_segments users"),
    "allocate items": ("allocate items", "join_segments items"),
    "allocate both": ("allocate users", "join_segments users", "allocate items", "join_segments items"),
    "gamma_update": ("gamma_update users", "sum_columns users"),
    "mean": ("mean users",),
    "gamma_elbo": ("gamma_entropy users",),
    "log_rate_sum": ("log_rate_sums",),
    "log_normalizer_sum": ("log_normalizer_sums",),
    "iteration": ("iteration",),
}


class _Case(NamedTuple):
    shape: str
    k: int
    precision: str
    operation: str


class Model:
    """The rows of a table that are about one GPU.

    Parameters
    ----------
    path : Path
        A table with at least the columns gpu, shape, k, precision, operation and ms; it may be missing.
    gpu : str
        As nvidia-smi names it: "h100" of the table is "NVIDIA H100 80GB HBM3" there.
    """

    def __init__(self, path: Path, gpu: str) -> None:
        self._ms: dict[_Case, float] = {}
        if not path.exists():
            return
        with path.open(encoding="utf-8", newline="") as file:
            lines = (line for line in file if not line.startswith("#"))
            for row in csv.DictReader(lines, delimiter="\t"):
                if _is(row["gpu"], gpu):
                    case = _Case(row["shape"], int(row["k"]), row["precision"], row["operation"])
                    self._ms[case] = float(row["ms"])

    def ms(self, entry: dict[str, Any]) -> float | None:
        """What is expected of an entry of the results; None where the table does not have it."""
        variant = entry["variant"]
        precision = variant if variant == "mixed" else entry.get("dtype", "float32")
        if variant not in ("fused", "mixed", "float64"):
            return None
        parts = [
            self._ms.get(_Case(entry["shape"]["name"], entry["k"], precision, operation))
            for operation in TIMED.get(entry["op"], ())
        ]
        known = [part for part in parts if part is not None]
        return sum(known) if parts and len(known) == len(parts) else None


def _is(short: str, name: str) -> bool:
    """Whether this GPU is meant, in whichever way its letters and numbers are set apart."""
    parts = re.findall(r"[a-z]+|\d+", short.lower())
    return re.search(rf"\b{r'[ -]*'.join(parts)}\b", name.lower()) is not None
