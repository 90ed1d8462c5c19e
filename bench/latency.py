"""How long one user waits for ten recommendations, and where that time goes.

    python bench/latency.py [CASE...] [--repeats 200] [--threads 1] [--stages]
    python bench/latency.py small        one small case, to see that it works

Unseen users come as a frame, as an array (n, 3) and, where items are numbers, as a matrix with one row, each
with 30 counts; known users by their id.  Printed are milliseconds: the fastest twentieth and the median of
the calls on the clock, and the fastest twentieth of the calling thread's processor time, which other
processes disturb less.  ``--stages`` adds the processor time of the parts of each call and its share; parts
contain those that are indented below them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import synthetic
from scipy import sparse

from hpf_gpu import HPF, estimator
from hpf_gpu.answers import recommendations
from hpf_gpu.backends.openmp_backend import OpenMPBackend
from hpf_gpu.data import counts, triplets
from hpf_gpu.datasets import load_online_retail
from hpf_gpu.fitting import folding
from hpf_gpu.model.neighbours import Neighbours

COUNTS = 30  # of an unseen user


class Case(NamedTuple):
    """A model: Online Retail's, or of synthetic counts; ``total`` is their sum."""

    users: int
    items: int
    total: int
    k: int
    neighbours: int = 0


CASES = {
    "50k": Case(160_000, 50_000, 5_000_000, 50),
    "27k, neighbours": Case(140_000, 27_000, 2_000_000, 0, 200),
    "27k, both": Case(140_000, 27_000, 2_000_000, 32, 200),
    "retail, neighbours": Case(0, 0, 0, 0, 200),
    "retail, both": Case(0, 0, 0, 32, 200),
    "small": Case(500, 300, 20_000, 8, 20),
}

#: Functions whose time is shown, by how deep they are inside one another.
STAGES = (
    (0, estimator.HPF, "_settings"),
    (0, estimator, "read"),
    (0, estimator, "factors_of_new_users"),
    (1, folding, "new_rows"),
    (2, counts, "encode"),
    (2, triplets.Triplets, "csr"),
    (1, folding, "_columns_in_use"),
    (1, Neighbours, "among"),
    (1, OpenMPBackend, "counts"),
    (1, folding, "gather_side"),
    (1, Neighbours, "start"),
    (1, folding, "noise_free_side"),
    (1, folding, "fold_in"),
    (0, estimator, "recommend_for"),
    (1, recommendations, "rank"),
    (2, recommendations, "_added"),
    (2, OpenMPBackend, "top_items"),
    (0, recommendations.Lists, "table"),
)


def fitted(case: Case) -> HPF:
    """A model whose factors differ, after few iterations."""
    if case.users:
        frame = synthetic.model_counts(case.users, case.items, max(case.k, 20), case.total)
    else:
        frame = load_online_retail().purchases[["UserId", "ItemId", "Count"]]
    options = {"maxiter": 10, "stop_crit": "maxiter", "verbose": False, "random_seed": 1}
    return HPF(k=case.k, neighbours=case.neighbours, **options).fit(frame)


def calls(model: HPF, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, by name."""
    users, items = (np.asarray(ids) for ids in (model.user_mapping_, model.item_mapping_))
    some, values = rng.choice(items, COUNTS, replace=False), rng.poisson(2.0, COUNTS) + 1
    frame = pd.DataFrame({"UserId": np.full(COUNTS, "new"), "ItemId": some, "Count": values})
    yield "unseen, frame", lambda: model.recommend(counts=frame)
    numbers = items.dtype.kind in "iu"
    triplet = np.column_stack([np.full(COUNTS, 7), some, values])
    array = triplet.astype(np.int64 if numbers else object)
    yield "unseen, array", lambda: model.recommend(counts=array)
    if numbers:
        row = np.zeros(COUNTS, np.int64), some
        matrix = sparse.csr_array((values.astype(np.float32), row), shape=(1, int(items.max()) + 1))
        yield "unseen, matrix", lambda: model.recommend(counts=matrix)
    asked = iter(rng.choice(users, 100_000).tolist())
    yield "known, recommend", lambda: model.recommend(next(asked))
    yield "known, topN", lambda: model.topN(next(asked))


def timed(work: Callable[[], object], repeats: int) -> str:
    """Milliseconds on the clock and of the processor."""
    for _ in range(10):
        work()
    wall, processor = np.empty(repeats), np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter(), time.thread_time()
        work()
        wall[i], processor[i] = time.perf_counter() - start[0], time.thread_time() - start[1]
    figures = 1e3 * np.array([np.quantile(wall, 0.05), np.median(wall), np.quantile(processor, 0.05)])
    return "".join(f"{figure:9.2f}" for figure in figures)


@contextmanager
def measured_stages(taken: dict[str, list[float]]) -> Iterator[None]:
    """While it lasts, the seconds that each stage takes are added to ``taken``."""

    def measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                taken.setdefault(name, []).append(time.thread_time() - start)

        return run

    before = [(place, name, getattr(place, name)) for _, place, name in STAGES]
    for place, name, function in before:
        setattr(place, name, measured(name, function))
    try:
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def stages(work: Callable[[], object], repeats: int) -> Iterator[str]:
    """A line for each stage: its milliseconds, and its share of the call."""
    taken: dict[str, list[float]] = {}
    with measured_stages(taken):
        for _ in range(repeats):
            start = time.thread_time()
            work()
            taken.setdefault("", []).append(time.thread_time() - start)
    whole = float(np.quantile(taken[""], 0.05))
    for depth, _, name in STAGES:
        if name in taken:
            share = float(np.quantile(taken[name], 0.05)) * len(taken[name]) / repeats
            yield f"    {'  ' * depth + name.strip('_'):26s}{1e3 * share:8.2f}{share / whole:7.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; by default all but the last")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, help="by default as many as there are cores")
    parser.add_argument("--stages", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}")
    for name in arguments.cases or list(CASES)[:-1]:
        model = fitted(CASES[name])
        model.set_params(ncores=arguments.threads)
        sys.stdout.write(f"{name}: {CASES[name]}\n{'':20s}  clock 5%   median    processor 5%, ms\n")
        for what, work in calls(model, np.random.default_rng(0)):
            sys.stdout.write(f"  {what:18s}{timed(work, arguments.repeats)}\n")
            if arguments.stages:
                sys.stdout.writelines(f"{line}\n" for line in stages(work, arguments.repeats))


if __name__ == "__main__":
    main()
