"""Stochastic fits: held-out likelihood after as many epochs, hpf_gpu beside hpfrec, in one run.

    python bench/stochastic.py --lastfm FILE    Online Retail, synthetic counts and Last.fm
    python bench/stochastic.py --record         the same, added to bench/results/stochastic.jsonl
    python bench/stochastic.py --smoke          a small case, to see that it works

Last.fm is a table of user, artist and plays with a header, separated by tabs; without the file it is
left out.  A tenth of the counts is held out.  Two likelihoods are told: of the held-out counts alone, as
``eval_llk`` has it, and of all pairs outside the training data, where the zeros count too.  The first one
rewards a model that expects too much everywhere, and hpfrec's does: it takes the prior of the global side
as often as there are batches.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from likelihood import held_out_likelihoods
from record import RESULTS, append, machine
from synthetic import model_counts, power_law_counts

from hpf_gpu import HPF
from hpf_gpu.datasets import load_online_retail

#: Batches that an epoch has: of users alone, or of users and of items in turn.
WAYS = {"users": ("users",), "both": ("users", "items")}


def data_sets(arguments: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Counts by name."""
    if arguments.smoke:
        return {"smoke": power_law_counts(300, 200, 5000)}
    purchases = load_online_retail().purchases
    ids = ["UserId", "ItemId"]
    sets = {
        "Online Retail, quantities": purchases[[*ids, "Count"]],
        "Online Retail, orders": purchases[ids].assign(Count=purchases["Orders"]),
        "synthetic, popularity alone": power_law_counts(50_000, 10_000, 2_000_000),
        "synthetic, from the model": model_counts(50_000, 10_000, 20, 2_050_000),
    }
    if arguments.lastfm is not None:
        plays = pd.read_csv(arguments.lastfm, sep="\t")
        sets["Last.fm 2k"] = plays.set_axis([*ids, "Count"], axis=1)
    return sets


def fit_with(
    name: str, arguments: argparse.Namespace, train: pd.DataFrame, way: str | None, epochs: int
) -> tuple[Any, float]:
    """A fitted model of hpfrec or of ours, and the seconds that it took; ``way=None`` is full-batch."""
    sizes = {"users": train.UserId.nunique(), "items": train.ItemId.nunique()}
    batches = (
        {}
        if way is None
        else {f"{side}_per_batch": -(-sizes[side] // arguments.batches) for side in WAYS[way]}
    )
    options = {"stop_crit": "maxiter", "check_every": epochs, "verbose": False, "random_seed": 1}
    options |= {"k": arguments.k, "ncores": arguments.threads, "maxiter": epochs} | batches
    if name == "hpfrec":
        import hpfrec

        model, train = hpfrec.HPF(**options), train.copy()
    else:
        model = HPF(**options)
    started = time.perf_counter()
    return model.fit(train), time.perf_counter() - started


def compare(arguments: argparse.Namespace, name: str, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """All fits of one data set, printed as they end."""
    held_out = np.random.default_rng(1).random(len(frame)) < 0.1
    train, test = frame[~held_out], frame[held_out]
    say(f"{name}: {len(train):,} counts, {arguments.batches} batches an epoch, k={arguments.k}")
    results = []
    for way, who in ((None, "hpf_gpu"), *((way, who) for way in WAYS for who in ("hpfrec", "hpf_gpu"))):
        for epochs in arguments.epochs:
            model, seconds = fit_with(who, arguments, train, way, epochs)
            found = held_out_likelihoods(model, train, test)
            results.append(
                {"data": name, "batches_of": way, "who": who, "epochs": epochs, "s": seconds} | found
            )
            say(
                f"  {way or 'full':6} {who:8} {epochs:3} epochs {seconds:7.1f} s"
                f"  counts alone {found['counts_alone']:14,.0f}  with zeros {found['with_zeros']:14,.0f}"
            )
    return results


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lastfm", type=Path)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--only", help="data sets with this in their names")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    for name, frame in data_sets(arguments).items():
        if arguments.only is None or arguments.only in name:
            results = compare(arguments, name, frame)
            if arguments.record:
                facts = machine("hpf_gpu", "hpfrec", "numpy")
                append(
                    RESULTS / "stochastic.jsonl",
                    facts | {"k": arguments.k, "batches": arguments.batches, "fits": results},
                )


if __name__ == "__main__":
    main()
