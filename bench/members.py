"""What members of an ensemble share: its fit beside as many separate fits, and the time of a list.

    python bench/members.py [--members 8] [--k 32] [--iterations 20] [--rounds 3] [--small]

Counts are 2.0M drawn from the model (``--small``: 20 thousand), as a data frame with integers as ids.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import synthetic
from record import machine

from hpf_gpu import HPF, HPFEnsemble


def seconds(task: Callable[[], Any]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("members", 8), ("k", 32), ("iterations", 20), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    sizes = (1_000, 300, 30, 40_000) if arguments.small else (50_000, 10_000, 30, 4_000_000)
    counts = synthetic.model_counts(*sizes)
    members, given = arguments.members, {"k": arguments.k, "maxiter": arguments.iterations}
    given |= {"stop_crit": "maxiter", "verbose": False, "random_seed": 0}
    ensemble = HPFEnsemble(members, **given)
    together, apart = [], []
    for _ in range(arguments.rounds):
        together.append(seconds(lambda: ensemble.fit(counts)))
        apart.append(seconds(lambda: [HPF(**given).fit(counts) for _ in range(members)]))
    facts = ", ".join(f"{name} {fact}" for name, fact in machine("hpf_gpu", "numpy").items())
    both = np.median(together), np.median(apart)
    users = np.asarray(ensemble.members_[0].user_mapping_[:100])
    one = np.median([seconds(lambda user=user: ensemble.topN(user)) for user in users])
    many = seconds(lambda: ensemble.topN(users)) / len(users)
    sys.stdout.write(
        f"{facts}\n{len(counts):,} counts, K = {arguments.k}, {arguments.iterations} iterations:\n"
        f"  {members} members {both[0]:.2f} s, {members} fits {both[1]:.2f} s: {both[1] / both[0]:.2f} ×\n"
        f"  a list of ten: {1e3 * one:.2f} ms for one user, {1e3 * many:.2f} ms each of {len(users)}\n"
    )


if __name__ == "__main__":
    main()
