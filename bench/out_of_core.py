"""Fits to counts on disk, beside the same fit in memory.

    python bench/out_of_core.py make counts.parquet --users 1e7 --items 1e6 --counts 1e9
    python bench/out_of_core.py fit counts.parquet --limit 6GB --k 16 --iterations 6
    python bench/out_of_core.py fit counts.parquet --limit 1.5GB --k 30 --iterations 10 --all
    python bench/out_of_core.py fit ... --record     the same, added to bench/results/out_of_core.jsonl

Each fit is a process of its own, whose peak memory the system tells.  Without ``--limit`` the counts are in
memory; ``--all`` fits the same blocks from memory, too, and compares the bits.  The last iteration also
computes the log-likelihoods and is not timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
from record import RESULTS, append, machine
from stochastic import say

RECORD = RESULTS / "out_of_core.jsonl"


def fit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit in this process, and what there is to tell."""
    import resource

    from hpf_gpu import HPF
    from hpf_gpu.fitting import training

    seen: dict[str, Any] = {}
    on_disk, prepared = training.counts_on_disk, training._prepared
    began = time.perf_counter()

    def watched(*given: Any, **more: Any) -> Any:
        seen["started"] = time.perf_counter()
        result = on_disk(*given, **more)
        seen["blocks"] = result[1]
        return result

    def kept(*given: Any) -> Any:
        result = prepared(*given)
        seen.setdefault("blocks", result.blocks)
        seen["converted"] = time.perf_counter()
        return result

    training.counts_on_disk, training._prepared = watched, kept
    slices = arguments.slices and [slice(*pair) for pair in json.loads(arguments.slices)]
    if slices:
        training.in_memory = lambda backend, csr, k, *_: _in_blocks(backend, csr, k, slices)
    ends: list[float] = []
    model = HPF(
        k=arguments.k, maxiter=arguments.iterations, stop_crit="maxiter", random_seed=1, keep_all_objs=False,
        keep_data=False, verbose=arguments.verbose, backend="openmp",
    )  # fmt: skip
    limit = {} if arguments.limit is None else {"memory_limit": arguments.limit, "scratch": arguments.scratch}
    model.fit(arguments.file, callback=lambda _: ends.append(time.perf_counter()), **limit)
    blocks = seen["blocks"]
    nnz = blocks.nnz if limit else sum(block.counts.nnz for block in blocks)
    seconds = float(np.median(np.diff(ends)[:-1])) if len(ends) > 2 else float("nan")
    facts = {
        "users": blocks.shape[0], "items": blocks.shape[1], "nonzeros": int(nnz),
        "blocks": len(blocks.slices),
        "seconds to convert": round(seen["converted"] - began, 1),
        "seconds an iteration": round(seconds, 3), "ns a nonzero": round(seconds / nnz * 1e9, 2),
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "checksum": zlib.crc32(np.ascontiguousarray(model.Beta).data, zlib.crc32(model.Theta.data)),
    }  # fmt: skip
    if limit:
        facts["bytes a nonzero on disk"] = round(sum(_size(places) for _, places in blocks.files) / nnz, 2)
        facts["slices"] = json.dumps([(rows.start, rows.stop) for rows in blocks.slices])
    return facts


def _size(places: dict[str, Any]) -> int:
    return sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape, _ in places.values())


def _in_blocks(backend: Any, csr: Any, k: int, slices: list[slice]) -> Any:
    from hpf_gpu.data.blocks import Block, BlocksInMemory

    return BlocksInMemory(csr.shape, tuple(Block(rows, backend.counts(csr[rows], k)) for rows in slices))


def in_a_process(arguments: argparse.Namespace, **changed: Any) -> dict[str, Any]:
    """The facts of a fit in a fresh process."""
    values = vars(arguments) | changed
    command = [sys.executable, __file__, "fit", arguments.file, "--child"]
    for name in ("k", "iterations", "limit", "scratch", "slices"):
        if values.get(name) is not None:
            command += [f"--{name}", str(values[name])]
    if arguments.verbose:
        command.append("--verbose")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "fit"))
    parser.add_argument("file")
    for name in ("users", "items", "counts"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--limit")
    parser.add_argument("--scratch")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--slices", help=argparse.SUPPRESS)
    for flag in ("--all", "--record", "--verbose"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "make":
        sizes = (int(getattr(arguments, name)) for name in ("users", "items", "counts"))
        synthetic.write_power_law(Path(arguments.file), *sizes)
        return
    if arguments.child:
        say(json.dumps(fit(arguments)))
        return
    result: dict[str, Any] = {"limit": arguments.limit, "k": arguments.k, "iterations": arguments.iterations}
    if arguments.limit is not None:
        result["on disk"] = in_a_process(arguments)
        slices = result["on disk"].pop("slices")
    if arguments.limit is None:
        result["in memory"] = in_a_process(arguments)
    elif arguments.all:
        result["in memory"] = in_a_process(arguments, limit=None, slices=slices)
        result["same bits"] = result["in memory"]["checksum"] == result["on disk"]["checksum"]
    facts = machine("hpf_gpu", "numpy", "pyarrow") | result
    for name, value in facts.items():
        say(f"{name:16} {value}")
    if arguments.record:
        append(RECORD, facts)


if __name__ == "__main__":
    main()
