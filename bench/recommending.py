"""Recommendation quality: how many held-out items are among the first 20, hpf_gpu beside other methods.

    python bench/recommending.py online-retail FILE...       all methods on these data sets
    python bench/recommending.py FILE --only HPF --out FILE.tsv

A file is a table of user, item and count with a header, separated by tabs; the counts of Online Retail are
orders.  Five times a random fifth of the pairs is held out.  Each time (``--tune-once``: the first time) a
method's parameters are chosen by the recall on a tenth of the other pairs; then it is fitted to all of them.
Recall is hits / min(20, held-out items) of a user (normalized precision), whose training items are not
listed, averaged over users with training and held-out items; NDCG is that of the same lists, and coverage the
share of the items that are in any.  Means have 95 % intervals (Student's t over the splits).  Differences are
from the better of ALS and EASE, paired by split.

``--out`` adds a line for each split.  The tables are then those of all lines in the file, of repeated ones
the last: what others reach need not be measured again for a new method.  ``--chosen`` takes the parameters
from the lines of such a file, where it has them, instead of choosing them again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from cases import Input
from record import machine
from scipy import sparse, stats

from hpf_gpu import HPF, HPFEnsemble, evaluate
from hpf_gpu.datasets import load_online_retail
from hpf_gpu.metrics import ScoreBlock, factor_scores, model_scores, popularity_scores

Parameters = dict[str, Any]

LENGTH = 20
HELD_OUT, VALIDATION = 0.2, 0.1
REFERENCES = ["ALS", "EASE"]

#: What a method may take for a count.
COUNTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one": np.ones_like,
    "log1p": np.log1p,
    "as they are": np.array,
}


# -- methods: functions of a matrix of counts (N, M), a seed and parameters --------------------------------


def weighted(train: sparse.csr_array, counts: str) -> sparse.csr_array:
    return sparse.csr_array((COUNTS[counts](train.data), train.indices, train.indptr), train.shape)


def most_popular(train: sparse.csr_array, seed: int) -> ScoreBlock:
    return popularity_scores(train)


def als(train: sparse.csr_array, seed: int, counts: str, **options: Any) -> ScoreBlock:
    """Alternating least squares on confidences (Hu, Koren and Volinsky 2008), as implicit has it."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit asks for it
        model = AlternatingLeastSquares(**options, dtype=np.float32, random_state=seed)
        model.fit(sparse.csr_matrix(weighted(train, counts)), show_progress=False)
    return factor_scores(model.user_factors, model.item_factors)


def bpr(train: sparse.csr_array, seed: int, **options: Any) -> ScoreBlock:
    """Bayesian personalized ranking (Rendle et al. 2009), as implicit has it."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(**options, dtype=np.float32, random_state=seed)
    model.fit(sparse.csr_matrix(weighted(train, "one")), show_progress=False)
    return factor_scores(model.user_factors, model.item_factors)


def hpfrec(train: sparse.csr_array, seed: int, counts: str, **options: Any) -> ScoreBlock:
    """Hierarchical Poisson factorization by hpfrec."""
    import hpfrec

    model = hpfrec.HPF(**options, random_seed=seed + 1, verbose=False, reindex=False, keep_data=False)
    model.fit(sparse.coo_matrix(weighted(train, counts)))
    return factor_scores(model.Theta, model.Beta)


def poismf(train: sparse.csr_array, seed: int, counts: str, **options: Any) -> ScoreBlock:
    """Poisson factorization with penalties (Cortes 2018), as poismf has it."""
    from poismf import PoisMF

    model = PoisMF(**options, random_state=seed + 1, reindex=False)
    model.fit(sparse.coo_matrix(weighted(train, counts)))
    return factor_scores(model.A, model.B)


def ease(train: sparse.csr_array, seed: int, penalty: float) -> ScoreBlock:
    """Ridge regression of every item on all others, whether a user has them (Steck 2019).

    The solution has P = (XᵀX + λI)⁻¹ (M, M).  With A = (XXᵀ + λI)⁻¹ (N, N), P = (I − XᵀAX) / λ and XP = AX:
    exact for any number of items, at the cost of N³.
    """
    X = weighted(train, "one").astype(np.float64)
    AX = X.T @ np.linalg.inv((X @ X.T).toarray() + penalty * np.eye(X.shape[0]))  # (M, N), transposed
    P = (1 - X.T.multiply(AX).sum(axis=1)) / penalty  # (M,), the diagonal
    return lambda users: X[users].toarray() - (AX[:, users].T / P)


def hpf(train: sparse.csr_array, seed: int, counts: str, fits: int = 1, **options: Any) -> ScoreBlock:
    """The expected counts of one fit, or the mean of several with other start values."""
    given = weighted(train, counts)
    models = [
        HPF(**options, random_seed=fits * seed + number, verbose=False).fit(given) for number in range(fits)
    ]
    members = [model_scores(model) for model in models]
    return lambda users: np.mean([scores(users) for scores in members], axis=0)


def mixed(
    train: sparse.csr_array, seed: int, weight: float, first: Parameters, second: Parameters
) -> ScoreBlock:
    """The expected counts of two models that are fitted separately, each by :func:`hpf`."""
    one, other = hpf(train, seed, **first), hpf(train, seed, **second)
    return lambda users: (1 - weight) * one(users) + weight * other(users)


def ensemble(
    train: sparse.csr_array,
    seed: int,
    k: int,
    neighbours: Parameters,
    users: float,
    factors: float,
    discount: float,
    items: float = 1.0,
) -> ScoreBlock:
    """Neighbours among items, of ones and of ln(1 + y), neighbours among users, and eight fits with factors.

    Combined by the mean of logarithms.  ``items`` is the weight of both fits with neighbours among items,
    ``users`` that of the neighbours among users, ``factors`` that of the fits with factors.
    """
    alone: Parameters = {"k": 0, "random_seed": seed} | SHORT
    members = [alone | neighbours | {"counts": counts} for counts in ("binary", "log1p")]
    members += [alone | {"counts": "binary", "transposed": True}]
    members += [{"k": k, "counts": "log1p", "random_seed": 8 * seed + number} for number in range(8)]
    model = _fitted(train, members).with_weights([items / 2, items / 2, users, *[factors / 8] * 8])
    return model_scores(model, discount)


_ENSEMBLES: dict[str, tuple[sparse.csr_array, HPFEnsemble]] = {}


def _fitted(train: sparse.csr_array, members: list[Parameters]) -> HPFEnsemble:
    """The fit of these members to these counts; the last ones are kept, for other weights."""
    key = repr(members)
    if key not in _ENSEMBLES or _ENSEMBLES[key][0] is not train:
        _ENSEMBLES[key] = train, HPFEnsemble(members, verbose=False).fit(train)
    return _ENSEMBLES[key][1]


class Method(NamedTuple):
    """Function that fits, and the values of each parameter that are tried, beginning with the first ones."""

    fit: Callable[..., ScoreBlock]
    values: dict[str, Sequence[Any]]


SHORT: Parameters = {"neighbours": 200, "maxiter": 20, "stop_crit": "maxiter"}
NEIGHBOURS: dict[str, Sequence[Any]] = {name: (value,) for name, value in SHORT.items()} | {
    "counts": ("one", "as they are"),
    "neighbours": (200, 500),
    "w_rate": (10.0, 5.0, 20.0),
    "temperature": (1.25, 1.1, 1.5),
}

METHODS = {
    "most popular": Method(most_popular, {}),
    "ALS": Method(
        als,
        {
            "regularization": (30.0, 10.0, 1.0),
            "alpha": (10.0, 5.0, 20.0, 40.0, 80.0),
            "counts": ("one", "log1p"),
            "factors": (128, 32, 64, 256, 512),
        },
    ),
    "EASE": Method(ease, {"penalty": (100.0, 20.0, 50.0, 200.0, 400.0, 800.0)}),
    "BPR": Method(
        bpr,
        {
            "learning_rate": (0.05, 0.01, 0.1),
            "regularization": (0.01, 0.001, 0.05),
            "factors": (64, 128, 256),
            "iterations": (100, 300),
        },
    ),
    "poismf": Method(
        poismf,
        {
            "l2_reg": (10.0, 1.0, 30.0, 100.0),
            "method": ("cg", "tncg"),
            "counts": ("one", "log1p"),
            "k": (50, 20, 100),
        },
    ),
    "hpfrec": Method(hpfrec, {"counts": ("log1p", "one"), "k": (30, 60)}),
    "HPF": Method(hpf, {"counts": ("log1p", "one"), "k": (30, 60, 100)}),
    "HPF, 8 fits": Method(hpf, {"fits": (8,), "counts": ("log1p", "one"), "k": (30, 60, 100)}),
    "neighbours": Method(hpf, {"k": (0,)} | NEIGHBOURS),
    "HPF + neighbours": Method(hpf, {"k": (30, 100)} | NEIGHBOURS),
    "HPF and neighbours, mixed": Method(
        mixed,
        {
            "first": ({"k": 0, "counts": "one", **SHORT}, {"k": 0, "counts": "as they are", **SHORT}),
            "second": ({"k": 30, "counts": "log1p"}, {"k": 100, "counts": "log1p"}),
            "weight": (0.1, 0.02, 0.3),
        },
    ),
    "ensemble": Method(
        ensemble,
        {
            "k": (50,),
            "neighbours": ({"neighbours": 500, "w_rate": 20.0}, {"neighbours": 200, "w_rate": 10.0}),
            "users": (0.1, 0.0, 0.3, 0.6),
            "factors": (0.3, 0.0, 0.1, 0.6),
            "discount": (0.2, 0.0, 0.1, 0.3),
        },
    ),
}


#: What is left out of the ensemble that was chosen, with ``--ablate``.
ABLATIONS: dict[str, Parameters] = {
    "no neighbours among users": {"users": 0.0},
    "no factors": {"factors": 0.0},
    "no discount": {"discount": 0.0},
    "factors alone": {"items": 0.0, "users": 0.0, "factors": 1.0},
}


# -- measuring -----------------------------------------------------------------------------------------


def read(name: str) -> sparse.csr_array:
    """Counts (N, M) of Online Retail or of a file."""
    if name == "online-retail":
        frame = load_online_retail().purchases[["UserId", "ItemId", "Orders"]]
    else:
        frame = pd.read_csv(name, sep="\t").iloc[:, :3]
    return Input(frame.set_axis(["UserId", "ItemId", "Count"], axis=1)).csr


def split(counts: sparse.csr_array, share: float, seed: Any) -> list[sparse.csr_array]:
    """The pairs that are kept, and a random share of them that are held out."""
    coo = counts.tocoo()
    out = np.random.default_rng(seed).random(coo.nnz) < share
    return [
        sparse.csr_array((coo.data[part], (coo.row[part], coo.col[part])), counts.shape)
        for part in (~out, out)
    ]


#: Columns of the results, and the metrics of :func:`hpf_gpu.evaluate` that they have.
METRICS = {"recall": "normalized_precision", "ndcg": "ndcg", "coverage": "coverage"}


def recall(scores: ScoreBlock, train: sparse.csr_array, held_out: sparse.csr_array) -> float:
    return judged(scores, train, held_out, ["recall"])["recall"]


def judged(
    scores: ScoreBlock,
    train: sparse.csr_array,
    held_out: sparse.csr_array,
    columns: Sequence[str] = tuple(METRICS),
) -> dict[str, float]:
    with_counts = sparse.csr_array(held_out.multiply((np.diff(train.indptr) > 0)[:, None]))
    found = evaluate(scores, train, with_counts, [METRICS[column] for column in columns], LENGTH)
    return {column: found[METRICS[column]] for column in columns}


def described(parameters: Parameters) -> str:
    return json.dumps(parameters)


def tuned(method: Method, train: sparse.csr_array, seed: int) -> Parameters:
    """One parameter after the other gets the value with the best recall."""
    part, validation = split(train, VALIDATION, (seed, 1))
    found: dict[str, float] = {}

    def reached(parameters: Parameters) -> float:
        if (key := described(parameters)) not in found:
            found[key] = recall(method.fit(part, seed, **parameters), part, validation)
        return found[key]

    best = {name: values[0] for name, values in method.values.items()}
    for name, values in method.values.items():
        if len(values) > 1:
            best = max((best | {name: value} for value in values), key=reached)
    return best


#: Parameters by method and split, and the split on which they were chosen.
Chosen = dict[tuple[str, int], tuple[int, Parameters]]


def chosen_in(file: Path | None, data: str) -> Chosen:
    """What the lines of a file say of one data set."""
    if file is None:
        return {}
    lines = pd.read_csv(file, sep="\t", keep_default_na=False)
    lines = lines[(lines["data"] == data) & lines["method"].isin(METHODS)]
    return {
        (line.method, int(line.split)): (int(line.tuned_on), json.loads(line.parameters))
        for line in lines.itertuples()
    }


def measure(
    counts: sparse.csr_array,
    methods: dict[str, Method],
    splits: int,
    tune_once: bool,
    ablate: bool = False,
    chosen: Chosen | None = None,
) -> Iterator[dict[str, Any]]:
    chosen = dict(chosen or {})
    for seed in range(splits):
        train, held_out = split(counts, HELD_OUT, seed)
        for name, method in methods.items():
            if (name, seed) not in chosen:
                first = chosen.get((name, 0)) if tune_once else None
                chosen[name, seed] = first or (seed, tuned(method, train, seed))
            tuned_on, parameters = chosen[name, seed]
            started = time.perf_counter()
            scores, seconds = method.fit(train, seed, **parameters), time.perf_counter() - started
            line = {"method": name, "split": seed, "s": seconds, "tuned_on": tuned_on}
            yield line | judged(scores, train, held_out) | {"parameters": described(parameters)}
            for left_out, others in ABLATIONS.items() if ablate and name == "ensemble" else ():
                scores = method.fit(train, seed, **parameters | others)
                line |= {"method": f"  {left_out}"}
                yield line | judged(scores, train, held_out) | {"parameters": described(others)}


# -- tables --------------------------------------------------------------------------------------------


def interval(values: pd.Series) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * values.sem())


def table(results: pd.DataFrame) -> str:
    """Mean recalls of one data set, and what they differ from the better reference by."""
    recalls = results.pivot(index="split", columns="method", values="recall")
    measured = [name for name in REFERENCES if name in recalls]
    best = max(measured, key=lambda name: recalls[name].mean(), default=None)
    head = f"{'recall@' + str(LENGTH):>44}{f'difference to {best}' if best else '':>28}"
    lines = [f"{head}{'NDCG':>17}{'coverage':>10}{'fit, s':>10}"]
    for name, of_method in results.groupby("method", sort=False):
        mean, half = interval(recalls[name].dropna())
        line = f"{name:<28}{mean:.4f} ± {half:.4f}"
        if best:
            difference, half = interval((recalls[name] - recalls[best]).dropna())
            line += f"{difference:+12.4f} ± {half:.4f}  {difference / recalls[best].mean():+7.1%}"
        line += f"{of_method['ndcg'].mean():10.4f}{of_method['coverage'].mean():10.2f}"
        lines.append(f"{line}{of_method['s'].median():10.1f}  {of_method['parameters'].mode()[0]}".rstrip())
    return "\n".join(lines)


#: Methods in the figure, and how they are called there.
DRAWN = {
    "most popular": "most popular",
    "poismf": "poismf",
    "BPR": "BPR (implicit)",
    "HPF": "HPF, one fit",
    "EASE": "EASE",
    "ALS": "ALS (implicit)",
    "ensemble": "HPFEnsemble",
}


def draw(results: pd.DataFrame, file: Path) -> None:
    """Bars of the mean recalls, a panel for each data set."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from figures import INK, OURS, STYLE, THEIRS

    means = results.groupby(["data", "method"])["recall"].mean()
    sets = list(dict.fromkeys(results["data"]))
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(sets), figsize=(2.2 * len(sets) + 1, 2.6), sharey=True, layout="constrained", squeeze=False
        )
        for axes, data in zip(panels[0], sets, strict=True):
            values = [means.get((data, method), np.nan) for method in DRAWN]
            colours = [OURS if name.startswith("HPF") else THEIRS for name in DRAWN.values()]
            bars = axes.barh(list(DRAWN.values()), values, color=colours)
            labels = ["" if np.isnan(value) else f"{value:.3f}" for value in values]
            axes.bar_label(bars, labels, padding=3, color=INK, fontsize=8)
            axes.set_title(data.replace("_", " "), fontsize=9)
            axes.set_xticks([])
            axes.spines.bottom.set_visible(False)
            axes.margins(x=0.25)
        figure.supxlabel(f"recall@{LENGTH} of held-out items", fontsize=9)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)
        plt.close(figure)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="online-retail, or a file")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--tune-once", action="store_true", help="only on the first split")
    parser.add_argument("--ablate", action="store_true", help="the ensemble without some of its parts, too")
    parser.add_argument(
        "--chosen", type=Path, metavar="FILE", help="with parameters that were chosen earlier"
    )
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the recalls (.svg or .png)")
    arguments = parser.parse_args()
    methods, out = {name: METHODS[name] for name in arguments.only}, arguments.out
    facts = machine("hpf_gpu", "implicit", "numpy", "scipy")
    lines = []
    for given in arguments.data:
        name, counts = Path(given).name.partition(".")[0], read(given)
        say(f"{name}: {counts.shape[0]:,} users, {counts.shape[1]:,} items, {counts.nnz:,} counts")
        chosen = chosen_in(arguments.chosen, name)
        for result in measure(
            counts, methods, arguments.splits, arguments.tune_once, arguments.ablate, chosen
        ):
            say("  {method:28}split {split}  {recall:.4f}  {s:7.1f} s  {parameters}".format(**result))
            lines.append({"data": name} | result | facts)
            if out:
                new = not out.exists()
                pd.DataFrame(lines[-1:]).to_csv(out, sep="\t", mode="a", header=new, index=False)
    results = pd.read_csv(out, sep="\t", keep_default_na=False) if out else pd.DataFrame(lines)
    results = results.drop_duplicates(["data", "method", "split"], keep="last")
    if arguments.figure:
        draw(results, arguments.figure)
    for name, of_data in results.groupby("data", sort=False):
        say(f"\n{name}\n{table(of_data)}")


if __name__ == "__main__":
    main()
