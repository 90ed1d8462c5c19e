"""A fit by two Dask workers with one thread each, beside the same fit in one process with two threads.

    python bench/cluster.py [--nonzeros 17500000] [--users 400000] [--items 150000] [--k 30]
                            [--iterations 20] [--rounds 3] [--shards N]

Printed are milliseconds of an iteration, medians over all but the first of each fit, their ratio, and how far
the two models are from each other.  The fits alternate, so that both meet whatever else the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from typing import Any

import numpy as np
import synthetic
from distributed import Client, LocalCluster
from record import machine

import hpf_gpu
from hpf_gpu.dask import HPF


def timed(model: Any, counts: Any, **options: Any) -> tuple[Any, list[float], float]:
    """The model, fitted; milliseconds of the iterations after the first, and seconds of the fit."""
    times: list[float] = []
    started = time.perf_counter()
    model.fit(counts, callback=lambda check: times.append(time.perf_counter()), **options)
    return model, [1e3 * (b - a) for a, b in itertools.pairwise(times)], time.perf_counter() - started


def error(one: Any, other: Any) -> float:
    """Relative Frobenius error."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("nonzeros", 17_500_000),
        ("users", 400_000),
        ("items", 150_000),
        ("k", 30),
        ("iterations", 20),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shards", type=int)
    given = parser.parse_args()
    counts = synthetic.power_law_csr(given.users, given.items, given.nonzeros)
    options = {"k": given.k, "maxiter": given.iterations, "stop_crit": "maxiter", "random_seed": 0}
    options |= {"verbose": False, "backend": "openmp"}
    apart: list[float] = []
    together: list[float] = []
    whole = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for _ in range(given.rounds):
            one, times, seconds = timed(hpf_gpu.HPF(**options, ncores=2), counts)
            together += times
            model, times, of_cluster = timed(HPF(**options), counts, client=client, shards=given.shards)
            apart += times
            whole.append(of_cluster / seconds)
    both = statistics.median(apart), statistics.median(together)
    facts = ", ".join(f"{name} {fact}" for name, fact in machine("hpf_gpu", "numpy", "distributed").items())
    errors = ", ".join(
        f"{name} {error(getattr(model, name), getattr(one, name)):.1e}" for name in ("Theta", "Beta")
    )
    sys.stdout.write(
        f"{facts}\n{counts.nnz:,} counts, K = {given.k}, {given.rounds} × {given.iterations} iterations:\n"
        f"  two workers {both[0]:.0f} ms an iteration, two threads {both[1]:.0f}: {both[0] / both[1]:.2f} ×\n"
        f"  whole fits, with the way of the counts to the workers: {statistics.median(whole):.2f} ×\n"
        f"  relative errors: {errors}\n"
    )


if __name__ == "__main__":
    main()
