"""What the GPU's own counters say about the kernels of an iteration and of a check, by Nsight Compute.

python -m gpu.counters SHAPE K --data FOLDER --results FILE
"""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu.worker import Worker
from hpf_gpu.backends.cuda_source import Variant

#: Nsight Compute's names, in base units: nanoseconds, bytes, percent, cycles for each instruction.
METRICS = {
    "ns": "gpu__time_duration.sum",
    "l1_hits": "l1tex__t_sector_hit_rate.pct",
    "l2_hits": "lts__t_sector_hit_rate.pct",
    "dram_bytes": "dram__bytes.sum",
    "l2_bytes": "lts__t_bytes.sum",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "latency": "smsp__average_warp_latency_per_inst_issued.ratio",
    "long_scoreboard": "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
}
_SIDES = ("users", "items")  # in this order gpu.once has them
_PERMISSION = "ERR_NVGPUCTRPERM"


def command(log: Path, program: Sequence[str]) -> tuple[str, ...]:
    """Profile our kernels in a program, with clocks and caches as they are without a profiler."""
    ours = "|".join(Variant(1, np.dtype(np.float32)).signatures())
    what = ("--metrics", ",".join(METRICS.values()), "--kernel-name", f"regex:^({ours})$")
    how = ("--profile-from-start", "off", "--clock-control", "none", "--cache-control", "none")
    return ("ncu", "--csv", "--print-units", "base", "--log-file", str(log), *what, *how, *program)


def kernels(text: str) -> Iterator[dict[str, Any]]:
    """Each launch in what ncu has written, by kernel, with those of :data:`METRICS` that the GPU has.

    Raises
    ------
    RuntimeError
        If there is none; the message is ncu's.
    """
    lines = text.splitlines()
    # Messages come before the table, and after it; a row is one metric of one launch.
    rows = list(csv.DictReader(line for line in lines if line.startswith('"')))
    if not rows:
        if _PERMISSION in text:
            raise RuntimeError(f"ncu may not read the GPU's counters here ({_PERMISSION})")
        errors = [line for line in lines if line.startswith("==ERROR==")]
        raise RuntimeError(f"ncu has profiled nothing: {(errors or lines or ['it is silent'])[-1]}")
    launches: dict[str, dict[str, Any]] = {}
    names = {metric: name for name, metric in METRICS.items()}
    for row in rows:
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        value = _number(row["Metric Value"])
        if row["Metric Name"] in names and value is not None:
            launch[names[row["Metric Name"]]] = value
    yield from launches.values()


def _number(text: str) -> float | None:
    """A number, which may have commas between thousands; None where the GPU does not have the metric."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def labelled(launches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same, a kernel that is launched twice with the side that it works for."""
    times, seen = Counter(launch["kernel"] for launch in launches), Counter[str]()
    for launch in launches:
        kernel = launch["kernel"]
        side = f" {_SIDES[seen[kernel]]}" if times[kernel] == len(_SIDES) else ""
        seen[kernel] += 1
        yield launch | {"kernel": kernel + side}


def measure(worker: Worker) -> None:
    arguments = worker.arguments
    program = (sys.executable, "-m", "gpu.once", arguments.shape, str(arguments.k))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "ncu.csv")
        try:
            ran = subprocess.run(
                command(log, (*program, "--data", str(arguments.data))),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise RuntimeError("ncu (Nsight Compute) is not on this machine") from None
        sys.stdout.write(ran.stdout)
        text = log.read_text(encoding="utf-8") if log.exists() else ran.stdout
    sys.stdout.write(text)
    for launch in labelled(list(kernels(text))):
        worker.write("counters", **launch)


def main() -> None:
    worker = Worker(__doc__ or "")
    worker.load("fused")
    worker.attempt("counters", partial(measure, worker))
    worker.finish()


if __name__ == "__main__":
    main()
