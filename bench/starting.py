"""How many iterations a fit needs: start values and schedules beside those of hpfrec.

    python bench/starting.py online-retail FILE... [--k 30] [--seeds 8] [--counts log1p]
    python bench/starting.py model --hpfrec      2.0M counts drawn from the model, timed beside hpfrec

The target is the median of the ELBOs that ``init="hpfrec"`` and ``schedule="joint"`` have after 100 and after
400 iterations with these seeds.  Printed for each way of fitting: iterations to each target (median and range
over the seeds), and the ELBO after 400.  ``--hpfrec``, in place of the table: the time of 100 of hpfrec's
iterations, from ten, over that of a whole fit that reaches its ELBO, with the counts read and laid out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import synthetic
from cases import Input
from recommending import read, say
from record import machine
from scipy import sparse

from hpf_gpu import HPF

TARGETS = (100, 400)
WAYS: dict[str, dict[str, Any]] = {
    "hpfrec": {},
    "hpfrec, accelerated": {"schedule": "accelerated"},
    "svd": {"init": "svd"},
    "svd, accelerated": {"init": "svd", "schedule": "accelerated"},
}


def given(name: str) -> sparse.csr_array:
    """Counts (N, M): of a file, of Online Retail, or drawn from the model."""
    if name == "model":
        return Input(synthetic.model_counts(50_000, 10_000, 30, 2_060_000)).csr
    return read(name)


def elbos(data: sparse.csr_array, seed: int, iterations: int, **parameters: Any) -> np.ndarray:
    """The ELBO after each iteration, (iterations,)."""
    model = HPF(
        **parameters, stop_crit="elbo", stop_thr=1e-300, check_every=1, maxiter=iterations,
        random_seed=seed, verbose=False,
    )  # fmt: skip
    return model.fit(data).history_.elbo.to_numpy()


def first_at(curve: np.ndarray, target: float) -> float:
    """The first iteration with at least this ELBO; infinite if there is none."""
    reached = np.flatnonzero(curve >= target)
    return float(reached[0] + 1) if len(reached) else np.inf


def median(values: list[float]) -> str:
    """Median and range."""
    middle, low, high = np.median(values), min(values), max(values)
    return f"{middle:.0f} ({low:.0f}–{high:.0f})"


def compare(counts: sparse.csr_array, k: int, taken: str, seeds: int) -> None:
    """Print the table of one data set."""
    curves: dict[str, list[np.ndarray]] = {}
    for name, way in WAYS.items():
        several = range(seeds)
        curves[name] = [elbos(counts, seed, max(TARGETS), k=k, counts=taken, **way) for seed in several]
    own = curves["hpfrec"]
    targets = [float(np.median([curve[:n][-1] for curve in own])) for n in TARGETS]
    for name, several in curves.items():
        reached = [median([first_at(curve, target) for curve in several]) for target in targets]
        last = np.median([curve[-1] for curve in several])
        say(f"  {name:22}{reached[0]:>16}{reached[1]:>16}{last:>18,.0f}")
    best = max(curve[-1] for curve in own)
    say(f"  {'hpfrec, best seed':54}{best:>18,.0f}")


def beside_hpfrec(counts: sparse.csr_array, k: int) -> None:
    """Print the time of 100 iterations of hpfrec over that of fits that reach its ELBO."""
    import hpfrec

    coo = counts.tocoo()
    frame = pd.DataFrame({"UserId": coo.row, "ItemId": coo.col, "Count": coo.data})
    started = time.perf_counter()
    hpfrec.HPF(
        k=k, stop_crit="maxiter", maxiter=10, random_seed=0, verbose=False, reindex=False, keep_data=False
    ).fit(frame)
    theirs = 10 * (time.perf_counter() - started)
    target = elbos(counts, 0, min(TARGETS), k=k)[-1]
    for name, way in WAYS.items():
        needed = int(first_at(elbos(counts, 0, min(TARGETS), k=k, **way), target))
        settings = {"k": k, "stop_crit": "maxiter", "maxiter": needed, "random_seed": 0, "verbose": False}
        started = time.perf_counter()
        HPF(**settings, **way).fit(frame)
        ours = time.perf_counter() - started
        took = f"{needed:>6} iterations {ours:8.2f} s"
        say(f"  {name:22}{took}, hpfrec 100 in {theirs:.1f} s: {theirs / ours:.0f} ×")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="online-retail, model, or a file")
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--counts", nargs="+", default=["raw"], choices=["raw", "binary", "log1p"])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--hpfrec", action="store_true")
    arguments = parser.parse_args()
    say(", ".join(f"{name} {fact}" for name, fact in machine("hpf_gpu", "numpy").items()))
    for name in arguments.data:
        counts = given(name)
        for taken in arguments.counts:
            size = f"{counts.shape[0]:,} users, {counts.shape[1]:,} items, {counts.nnz:,} counts"
            say(f"\n{Path(name).name.partition('.')[0]}, {taken}: {size}; K = {arguments.k}")
            if arguments.hpfrec:
                beside_hpfrec(counts, arguments.k)
                continue
            say(f"  {'':22}{'to 100':>16}{'to 400':>16}{'ELBO after 400':>18}")
            compare(counts, arguments.k, taken, arguments.seeds)


if __name__ == "__main__":
    main()
