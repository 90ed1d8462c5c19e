"""The demo: recommendations for the customers of a gift shop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from hpf_gpu import plot
from hpf_gpu.datasets import load_online_retail, split_by_user
from hpf_gpu.ensemble import HPFEnsemble
from hpf_gpu.estimator import HPF
from hpf_gpu.html_report import report
from hpf_gpu.metrics import RankingQuality, evaluate_ranking, model_scores, popularity_scores

Write = Callable[[str], object]

_LIST_LENGTH = 20  # of the recommendations that are measured
_SHOWN = 10  # of the recommendations that are printed
_COLUMN = 38  # characters; names of products have up to 35
_NEIGHBOURS = 200  # of a product
_DISCOUNT = 0.1  # of popularity, in the mixture; chosen with its parts in docs/quality.md
_ITERATIONS = 10  # of the model with neighbours; NDCG@20 is 0.315 after 10, 0.313 after 5 (seed 1, k=30)


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo, in addition to its text."""

    model: HPF
    with_neighbours: HPF
    qualities: dict[str, RankingQuality]  # by method: HPF, HPF+neighbours, mixture, most popular
    customer: int  # whose recommendations were printed
    recommended: list[str]  # stock codes, of ``model``
    explained: pd.DataFrame  # recommendations of ``with_neighbours``: columns ItemId, Because, Share


def run(output: Path, backend: str, seed: int, k: int, write: Write) -> DemoResult:
    """Fit Online Retail, measure and print recommendations, draw the overview.

    Parameters
    ----------
    output : pathlib.Path
        PNG file to write.  Without matplotlib a page is written: the same name, with the suffix ``.html``.
    backend : str
        Backend of :class:`hpf_gpu.HPF`.
    seed : int
        Seed of the split, of the start values and of the choice of the customer.
    k : int
        Number of factors.
    write : callable
        Called with the text, piece by piece; for example ``sys.stdout.write``.

    Returns
    -------
    DemoResult

    Raises
    ------
    OSError
        If ``output`` cannot be written; its folder is checked before the fit.
    ValueError, TypeError, BackendUnavailable
        If HPF does not accept a parameter, or the backend does not work on this machine.
    """
    _check_writable(output)
    # The ELBO includes all constants; with full_llk the log-likelihood does too, so they are comparable.
    model = HPF(
        k,
        check_every=5,
        stop_thr=1e-4,
        maxiter=300,
        verbose=False,
        random_seed=seed,
        full_llk=True,
        backend=backend,
        compute_elbo=True,
    )

    retail = load_online_retail()
    # A count is the number of orders with the product, not its quantity.  Quantities span four orders of
    # magnitude, and factors then follow the few wholesale orders.  Measured with seed 1, k=30: precision@20
    # is 0.18 with orders, 0.16 with bought or not, 0.10 with quantities; 0.07 for "most popular".
    orders = retail.purchases[["UserId", "ItemId"]].assign(Count=retail.purchases["Orders"])
    train, held_out = split_by_user(orders, seed=seed)
    model.fit(train)
    with_neighbours = HPF(
        k,
        stop_crit="maxiter",
        maxiter=_ITERATIONS,
        verbose=False,
        random_seed=seed,
        backend=backend,
        neighbours=_NEIGHBOURS,
    ).fit(train)
    # Factors add 0.001 to this (docs/quality.md), in several times the time.
    mixture = HPFEnsemble(
        [{"counts": "binary"}, {"counts": "log1p"}],
        k=0,
        stop_crit="maxiter",
        maxiter=2 * _ITERATIONS,
        verbose=False,
        random_seed=seed,
        backend=backend,
        neighbours=_NEIGHBOURS,
    ).fit(train)
    qualities = _evaluate(model, with_neighbours, mixture, train, held_out)
    names = retail.product_names.str.split().str.join(" ").str.capitalize()
    customer = _customer(train, seed)
    recommended = [str(item) for item in model.topN(customer, n=_SHOWN)]
    explained = _explained(with_neighbours, customer)

    _write_data(write, orders, held_out)
    _write_fit(write, model, with_neighbours)
    _write_qualities(write, qualities)
    in_held_out = set(held_out.loc[held_out["UserId"] == customer, "ItemId"])
    _write_customer(write, customer, recommended, train, in_held_out, names)
    _write_reasons(write, explained, in_held_out, names)
    _write_factors(write, model, names)
    drawn = {name: qualities[name] for name in ("HPF", "most popular")}
    _draw(write, output, model, drawn, names)
    return DemoResult(model, with_neighbours, qualities, customer, recommended, explained)


def _check_writable(output: Path) -> None:
    """Raise OSError for common mistakes before the fit rather than after it."""
    if output.is_dir():
        raise IsADirectoryError(f"output {str(output)!r} is a folder, not a file")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output folder {str(output.parent)!r} does not exist")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"output folder {str(output.parent)!r} is not writable")


# -- recommendations -----------------------------------------------------------------------------


def _evaluate(
    model: HPF,
    with_neighbours: HPF,
    mixture: HPFEnsemble,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
) -> dict[str, RankingQuality]:
    # All models number users and items alike: in the order of the training data.
    train_matrix, held_out_matrix = (_matrix(model, counts) for counts in (train, held_out))
    methods = {
        "HPF": model_scores(model),
        "HPF+neighbours": model_scores(with_neighbours),
        "mixture": model_scores(mixture, _DISCOUNT),
        "most popular": popularity_scores(train_matrix),
    }
    return {
        name: evaluate_ranking(scores, train_matrix, held_out_matrix, _LIST_LENGTH)
        for name, scores in methods.items()
    }


def _matrix(model: HPF, counts: pd.DataFrame) -> sparse.csr_array:
    """Counts (U, M) by the rows of Theta and Beta."""
    rows = pd.Index(model.user_mapping_).get_indexer(pd.Index(counts["UserId"]))
    columns = pd.Index(model.item_mapping_).get_indexer(pd.Index(counts["ItemId"]))
    # No method that learns from sales can recommend a product without sales in training.
    known = columns >= 0
    values = counts["Count"].to_numpy()[known]
    shape = (len(model.user_mapping_), len(model.item_mapping_))
    return sparse.csr_array((values, (rows[known], columns[known])), shape=shape)


def _customer(train: pd.DataFrame, seed: int) -> int:
    """A random customer with a moderate number of products (40 to 80)."""
    n_products = train.groupby("UserId").size()
    candidates = n_products.index[n_products.between(40, 80)]
    return int(np.random.default_rng(seed).choice(candidates))


def _explained(model: HPF, customer: int) -> pd.DataFrame:
    """Recommendations, and which of the customer's products has the largest share in each.

    The columns are ItemId, Because and Share; the last two are missing where no product has a share.
    """
    recommended: pd.DataFrame = model.recommend(customer, n=_SHOWN)[["ItemId"]]
    reasons = model.explain(customer, recommended["ItemId"], n=1)
    of_products = reasons.loc[reasons["Term"] == "item", ["ItemId", "Because", "Share"]]
    explained: pd.DataFrame = recommended.merge(of_products, how="left", on="ItemId")
    return explained


# -- text ----------------------------------------------------------------------------------------


def _write_data(write: Write, orders: pd.DataFrame, held_out: pd.DataFrame) -> None:
    write("UCI Online Retail (Chen, Sain and Guo 2012, CC BY 4.0): orders by customer and product\n")
    write(f"  {orders['UserId'].nunique():,} customers, {orders['ItemId'].nunique():,} products, ")
    write(f"{len(orders):,} pairs, of which {len(held_out):,} are held out\n")


def _write_fit(write: Write, model: HPF, with_neighbours: HPF) -> None:
    last = model.history_.iloc[-1]
    write(f"\nHPF with {model.k} factors on backend {model.backend_}\n")
    write(f"  {model.niter} iterations in {last['seconds']:.2f} s, ")
    write(f"log-likelihood {last['llk']:,.0f}, ELBO {last['elbo']:,.0f}\n")
    seconds = with_neighbours.history_["seconds"].iloc[-1]
    write(f"HPF+neighbours: the same with weights from up to {_NEIGHBOURS} other products to each\n")
    write(f"  {with_neighbours.niter} iterations in {seconds:.2f} s\n")
    write("mixture: two fits of such weights alone, to ones and to logarithms of orders, with a discount\n")
    write("  of popular products\n")


def _write_qualities(write: Write, qualities: dict[str, RankingQuality]) -> None:
    n_users = next(iter(qualities.values())).n_users
    write(f"\nTop {_LIST_LENGTH} of the products not bought yet, against those held out, ")
    write(f"mean of {n_users:,} customers\n")
    header = (f"precision@{_LIST_LENGTH}", f"recall@{_LIST_LENGTH}", f"NDCG@{_LIST_LENGTH}")
    write(f"  {'':14}" + "".join(f"{title:>14}" for title in header) + "\n")
    for name, result in qualities.items():
        values = (result.precision, result.recall, result.ndcg)
        write(f"  {name:14}" + "".join(f"{value:14.3f}" for value in values) + "\n")
    write("  (precision is normalized: hits divided by the largest possible number of hits)\n")


def _write_customer(
    write: Write,
    customer: int,
    recommended: Sequence[str],
    train: pd.DataFrame,
    in_held_out: set[str],
    names: pd.Series,
) -> None:
    history = train[train["UserId"] == customer].sort_values("Count", ascending=False, kind="stable")
    write(f"\nCustomer {customer}: what was ordered most, and what HPF recommends ")
    write("(* held out: actually ordered)\n")
    bought = [names[item] for item in history["ItemId"].head(len(recommended))]
    proposed = _starred(recommended, in_held_out, names)
    _write_columns(write, [f"{len(history)} products ordered", *bought], ["  recommended", *proposed])


def _write_reasons(write: Write, explained: pd.DataFrame, in_held_out: set[str], names: pd.Series) -> None:
    write("\nThe same customer: what HPF+neighbours recommends, and the product of the customer\n")
    write("that has the largest share in the expected count\n")
    proposed = _starred(explained["ItemId"], in_held_out, names)
    reasons = [
        "" if pd.isna(share) else f"{100 * share:3.0f} %  {names[product]}"
        for product, share in zip(explained["Because"], explained["Share"], strict=True)
    ]
    _write_columns(write, ["  recommended", *proposed], ["share  because of", *reasons])


def _starred(items: Iterable[str], in_held_out: set[str], names: pd.Series) -> list[str]:
    return [f"{'*' if item in in_held_out else ' '} {names[item]}" for item in items]


def _write_factors(write: Write, model: HPF, names: pd.Series) -> None:
    write("\nThe largest factors by their first products\n")
    leading = plot.leading_items(model.Theta, model.Beta, n_factors=6, n_items=5)
    cells = [[f"factor {factor}", *names[model.item_mapping_[items]]] for factor, items in leading.items()]
    nothing = [""] * len(cells[0])
    for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=nothing):
        _write_columns(write, left, right)
        write("\n")


def _draw(
    write: Write, output: Path, model: HPF, qualities: dict[str, RankingQuality], names: pd.Series
) -> None:
    """Draw the overview; without matplotlib write a page, which needs nothing but a browser."""
    title = f"Hierarchical Poisson factorization of UCI Online Retail, {model.k} factors"
    labels = plot.item_labels(model.item_mapping_, names)
    try:
        plot.save_overview(output, title, model.history_, qualities, model.Theta, model.Beta, labels)
        write(f"Picture: {output}\n")
    except ImportError as error:
        page = report(model, output.with_suffix(".html"), names=names, title=title)
        write(f"Page: {page} ({error})\n")


def _write_columns(write: Write, left: Sequence[str], right: Sequence[str]) -> None:
    for left_cell, right_cell in zip(left, right, strict=True):
        write(f"  {left_cell:{_COLUMN}}{right_cell}".rstrip() + "\n")
