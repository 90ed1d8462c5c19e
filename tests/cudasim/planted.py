"""Runs the kernels of bugs.cu, with their bug and without, in every flavour.

``python -m cudasim FLAVOUR python -m cudasim.planted`` prints what happened, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import SimulationError, build, environment

SOURCE = Path(__file__).with_name("bugs.cu")
COUNT = np.arange(1, 133, dtype=np.float32)  # 1, 2, 3, ...: exact as float32, as are their sums


@dataclass(frozen=True)
class Case:
    """A launch of one kernel, less the last argument, which plants the bug."""

    inputs: tuple[np.ndarray | np.generic, ...]
    expected: np.ndarray
    blocks: int = 1
    threads: int = 32
    shared: int = 0
    kernel: str | None = None  # where it is not the case's name


def _swapped(n: int) -> np.ndarray:
    return COUNT[np.arange(n) ^ 1]


CASES = {
    "missing_syncthreads": Case((COUNT[:64],), COUNT[63::-1], threads=64),
    "missing_syncwarp": Case((COUNT[:32],), COUNT[31::-1]),
    "wrong_mask": Case((COUNT[:32],), _swapped(32)),
    "mask_of_others": Case((COUNT[:32],), _swapped(32)),
    "divergent_barrier": Case((COUNT[:64],), COUNT[:64], threads=64),
    "barrier_after_exit": Case((COUNT[:48], np.int32(48)), COUNT[:48], threads=64),
    "deadlock": Case((COUNT[:32],), COUNT[:32]),
    "segment_off_by_one": Case((COUNT[:8], np.array([0, 3, 8], np.int32)), np.float32([6, 30]), threads=2),
    # The array ends in the middle of the 16 bytes that a guard page can tell apart.
    "segment_off_by_one_odd": Case(
        (COUNT[:7], np.array([0, 3, 7], np.int32)),
        np.float32([6, 22]),
        threads=2,
        kernel="segment_off_by_one",
    ),
    "plain_add": Case((COUNT[:32],), np.float32([2 * 528]), blocks=2),
    "misaligned_float4": Case((COUNT[:132],), COUNT[:128:4] + COUNT[3:128:4]),
    "index_overflow": Case((COUNT[:4], np.int32(70_000), np.int32(40_000)), COUNT[3:4], threads=1),
    "uninitialised_shared": Case((COUNT[:64],), np.float32([2080]), threads=64),
    "static_shared_overrun": Case((COUNT[:32],), COUNT[:32]),
    "dynamic_shared_overrun": Case((COUNT[:32],), COUNT[:32], shared=128),
    "missing_threadfence": Case(
        (COUNT[:8], np.zeros(8, np.float32), np.zeros(1, np.uint32)), np.float32([36]), blocks=8
    ),
}

RIGHT, WRONG = "right result", "wrong result"


def run(module, name: str, planted: bool) -> str:
    """Launch a kernel; say whether the result was right, or what the simulator raised."""
    case = CASES[name]
    inputs = [module.array(value) if value.ndim else value for value in case.inputs]
    out = module.array(np.zeros_like(case.expected))
    try:
        module.launch(
            case.kernel or name,
            (case.blocks,),
            (case.threads,),
            [*inputs, out, np.int32(planted)],
            shared_mem=case.shared,
        )
    except SimulationError as error:
        return str(error)
    return RIGHT if np.array_equal(out, case.expected) else f"{WRONG}: {out}"


def outcomes(flavour: str) -> dict[str, str]:
    """Run every kernel with its bug ("name") and without ("name, mended") in a process of that flavour."""
    command = [sys.executable, "-m", "cudasim", flavour, sys.executable, "-m", "cudasim.planted"]
    done = subprocess.run(command, env=environment("fast"), capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    """Print the outcomes of this process's flavour."""
    module = build(SOURCE.read_text(encoding="utf-8"), filename=SOURCE.name)
    result = {}
    for name in CASES:
        result[f"{name}, mended"] = _in_child(module, name, planted=False)
        result[name] = _in_child(module, name, planted=True)
    json.dump(result, sys.stdout)


def _in_child(module, name: str, *, planted: bool) -> str:
    """Run in a forked process, which a sanitizer may end; return its report, or else the outcome."""
    with tempfile.TemporaryFile() as report:
        child = os.fork()
        if child == 0:
            os.dup2(report.fileno(), 1)
            os.dup2(report.fileno(), 2)
            os.write(1, run(module, name, planted).encode())
            os._exit(0)
        os.waitpid(child, 0)
        report.seek(0)
        return report.read().decode(errors="replace")


if __name__ == "__main__":
    main()
