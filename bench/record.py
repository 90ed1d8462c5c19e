"""What every result is recorded with: the machine, the versions and the commit."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CPU_RECORD = RESULTS / "cpu.jsonl"
#: Cores that others may keep busy while something is measured.
QUIET = 0.2


def machine(*packages: str) -> dict[str, Any]:
    """Where a figure comes from, with the versions of these packages."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    facts = {"cpu": cpu, "cores": multiprocessing.cpu_count(), "commit": commit()}
    return facts | {package: version(package) for package in packages}


def graphics_card() -> dict[str, str]:
    """Name, driver and memory of the first GPU; {} where nvidia-smi finds none."""
    fields = {"gpu": "name", "driver": "driver_version", "memory": "memory.total"}
    query = f"--query-gpu={','.join(fields.values())}"
    first = output("nvidia-smi", query, "--format=csv,noheader").partition("\n")[0]
    return dict(zip(fields, first.split(", "), strict=True)) if first else {}


def core_seconds_of_others() -> float | None:
    """Core-seconds that this machine has spent on other processes than this one and those it has started.

    Of two calls the difference over the time between says how busy others were.  None but on Linux.
    """
    if not Path("/proc/stat").exists():
        return None
    user, nice, system, _idle, _iowait, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    spent = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return spent - sum(os.times()[:4])


def commit() -> str:
    """The commit of this checkout; HPF_GPU_COMMIT says it for a copy without history."""
    return os.environ.get("HPF_GPU_COMMIT") or output(
        "git", "-C", str(HERE), "describe", "--always", "--dirty"
    )


def output(*command: str) -> str:
    """What a command prints, '' if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add one line to a file of results."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All entries of a file of results; what a process that was killed has left unfinished is passed over."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries
