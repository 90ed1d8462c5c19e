"""Figures of a fitted model: convergence, ranking quality, factors, and checks against counts.

Each function draws on ``ax`` if it is passed, else on a new figure of pyplot.  Matplotlib is slow to import
and not needed for fits, so it is imported only where something is drawn: ``pip install 'hpf_gpu[plot]'``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import checks
from .ensemble import HPFEnsemble
from .estimator import HPF
from .messages import warn
from .metrics import RankingQuality
from .model.settings import whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GRID = "#22313f", "#e3e7eb"
_BLUE, _ORANGE, _GREY = "#1f6fb2", "#d9622b", "#b3bdc7"
_UNITS = ((1e9, "billion nats"), (1e6, "million nats"), (1e3, "thousand nats"), (1.0, "nats"))


def leading_items(
    theta: NDArray[Any], beta: NDArray[Any], n_factors: int, n_items: int
) -> dict[int, NDArray[np.intp]]:
    """The items with the highest expected counts in each of the largest factors.

    Parameters
    ----------
    theta : numpy.ndarray, (N, K)
        ``HPF.Theta``.
    beta : numpy.ndarray, (M, K)
        ``HPF.Beta``.
    n_factors, n_items : int
        Number of factors, and number of items of each.

    Returns
    -------
    dict
        Maps the number of a factor to row numbers of ``beta``, both largest first.  The size of a factor is
        its part Σ_u θ_uk · Σ_i β_ik of the expected sum of all counts.
    """
    largest = np.argsort(-theta.sum(axis=0) * beta.sum(axis=0), kind="stable")[:n_factors]
    return {int(k): np.argsort(-beta[:, k], kind="stable")[:n_items] for k in largest}


def item_labels(items: Iterable[Any], names: Any = None) -> list[str]:
    """Names of items for figures, in one line each; the id where there is none.

    Parameters
    ----------
    items : iterable of ids, (M,)
        For example ``HPF.item_mapping_``.
    names : mapping or pandas.Series, optional
        Name of each item by its id.

    Returns
    -------
    list of str, (M,)

    Raises
    ------
    TypeError
        If ``names`` is neither a mapping nor a Series.
    """
    if not (names is None or isinstance(names, (Mapping, pd.Series))):
        raise TypeError(f"names is a {type(names).__name__}: pass a dict or Series from item ids to names")
    items, known = list(items), {} if names is None else dict(names.items())
    found = [known.get(item) for item in items]
    if items and known and all(name is None for name in found):
        key = next(iter(known))
        warn(f"no item has a name: the first id is {items[0]!r}, and the first key of names {key!r}")
    missing = pd.Series(found, dtype=object).isna()
    named = (item if none else name for item, name, none in zip(items, found, missing, strict=True))
    return [" ".join(str(label).split()) for label in named]


# -- single panels -------------------------------------------------------------------------------


def convergence(history: pd.DataFrame | HPF, ax: Axes | None = None) -> Axes:
    """Draw log-likelihood and ELBO by iteration.

    Parameters
    ----------
    history : pandas.DataFrame or HPF
        A fitted model, or its ``history_``: columns ``iteration``, ``llk`` and ``elbo``; missing values are
        left out.  Without ``compute_elbo=True`` the ELBO is a single point, that of the last check.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the history has neither a log-likelihood nor an ELBO.
    """
    history = history if isinstance(history, pd.DataFrame) else history.history_
    largest = history[["llk", "elbo"]].abs().max().max()
    if not np.isfinite(largest):
        raise ValueError(f"a history of {len(history)} checks holds no finite log-likelihood or ELBO")
    ax = _axes(ax)
    scale, unit = next((scale, unit) for scale, unit in _UNITS if largest >= scale or scale == 1)
    for column, label, colour in (("llk", "log-likelihood", _BLUE), ("elbo", "ELBO", _ORANGE)):
        rows = history.dropna(subset=[column])
        if rows.empty:
            continue
        iteration, value = rows["iteration"].to_numpy(), rows[column].to_numpy() / scale
        ax.plot(iteration, value, color=colour, linewidth=2, marker="o", markersize=4)
        ax.annotate(
            label,
            (iteration[-1], value[-1]),
            xytext=(0, -8),
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="top",
            color=colour,
            weight="bold",
        )
    ax.set_xlim(left=0)
    ax.margins(y=0.15)
    ax.grid(axis="y", color=_GRID)
    _finish(ax, "Convergence of the fit")
    ax.set_xlabel("iteration")
    ax.set_ylabel(unit)
    return ax


def quality(qualities: Mapping[str, RankingQuality], ax: Axes | None = None) -> Axes:
    """Draw precision, recall and NDCG of several methods side by side.

    Parameters
    ----------
    qualities : mapping of str to RankingQuality
        Results of :func:`hpf_gpu.metrics.evaluate_ranking` by name of the method; the first is emphasized.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If ``qualities`` is empty.
    """
    if not qualities:
        raise ValueError("qualities is empty: there is no method to draw")
    ax = _axes(ax)
    n = next(iter(qualities.values())).n
    metrics = [f"precision@{n}", f"recall@{n}", f"NDCG@{n}"]
    width = 0.8 / len(qualities)
    colours = [_BLUE, *[_GREY] * (len(qualities) - 1)]
    for j, ((name, result), colour) in enumerate(zip(qualities.items(), colours, strict=True)):
        places = np.arange(len(metrics)) + (j - (len(qualities) - 1) / 2) * width
        values = (result.precision, result.recall, result.ndcg)
        bars = ax.bar(places, values, 0.94 * width, color=colour, label=name)
        ax.bar_label(bars, fmt="%.3f", padding=2, color=_INK, fontsize=9)
    ax.set_xticks(range(len(metrics)), metrics)
    ax.margins(y=0.2)
    ax.legend(frameon=False, loc="upper right", ncols=len(qualities), labelcolor=_INK)
    _finish(ax, "Recommendations against held-out items")
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    return ax


def selection(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the scores of the candidates of :func:`hpf_gpu.select` by the iterations they were given.

    Parameters
    ----------
    table : pandas.DataFrame
        ``Selection.table``; the candidate that was chosen is emphasized.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the table is empty.
    """
    if table.empty:
        raise ValueError("the table is empty: there is no candidate to draw")
    ax = _axes(ax)
    for candidate, of_one in table.groupby("candidate"):
        chosen = of_one.chosen.any()
        colour, width = (_BLUE, 2.5) if chosen else (_GREY, 1.2)
        ax.plot(of_one.iterations, of_one.score, color=colour, linewidth=width, marker="o", markersize=4)
        ax.annotate(
            str(candidate),
            (of_one.iterations.iloc[-1], of_one.score.iloc[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=_INK if chosen else _GREY,
        )
    ax.margins(x=0.08, y=0.15)
    ax.grid(axis="y", color=_GRID)
    _finish(ax, "Score of each candidate")
    ax.set_xlabel("iterations")
    return ax


def factors(
    theta: NDArray[Any],
    beta: NDArray[Any],
    item_names: Sequence[str],
    ax: Axes | None = None,
    *,
    n_factors: int = 8,
    n_items: int = 4,
) -> Axes:
    """Draw the leading items of the largest factors as a heat map.

    A cell shows the share of the item's expected counts, over all users, that comes from the factor.  An item
    with a single dark cell belongs to that factor alone.

    Parameters
    ----------
    theta, beta, n_factors, n_items
        As for :func:`leading_items`.
    item_names : sequence of str, (M,)
        Names in the order of the rows of ``beta``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the number of names is not the number of items.
    """
    if len(item_names) != len(beta):
        raise ValueError(f"{len(item_names)} item_names for {len(beta)} items")
    ax = _axes(ax, (9, 8.5))
    leading = leading_items(theta, beta, n_factors, n_items)
    shown = np.concatenate(list(leading.values()))
    expected = beta[shown] * theta.sum(axis=0)
    share = 100 * expected[:, list(leading)] / expected.sum(axis=1, keepdims=True)

    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    for row in range(n_items, len(shown), n_items):
        ax.axhline(row - 0.5, color="white", linewidth=5)
    for column in range(1, len(leading)):
        ax.axvline(column - 0.5, color="white", linewidth=1)
    ax.set_xticks(range(len(leading)), [str(factor) for factor in leading])
    ax.set_yticks(range(len(shown)), [item_names[item] for item in shown])
    _finish(ax, "What the largest factors stand for")
    ax.set_xlabel("number of the factor, largest factor first")
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02, aspect=45, format="%d %%")
    bar.set_label("share of the item's expected counts", color=_INK)
    bar.ax.tick_params(colors=_INK, length=0)
    bar.outline.set_visible(False)
    return ax


def calibration(model: HPF | HPFEnsemble, data: Any = None, ax: Axes | None = None) -> Axes:
    """Draw predicted against observed counts, both as means of groups of pairs.

    Parameters
    ----------
    model, data
        As for :func:`hpf_gpu.checks.calibration`, which computes the means.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Points on the diagonal are well calibrated; bars are two standard errors to both sides.

    Raises
    ------
    ValueError, TypeError
        As for :func:`hpf_gpu.checks.calibration`.
    """
    table = checks.calibration(model, data)
    ax = _axes(ax, (6, 5.5))
    shown = table[table.observed > 0]
    ends = shown[["predicted", "observed"]].stack()
    ax.plot([ends.min(), ends.max()], [ends.min(), ends.max()], color=_GREY, linewidth=1.2)
    error = 2 * shown.error
    below = np.minimum(error, 0.9 * shown.observed)  # a logarithmic axis has no zero
    ax.errorbar(shown.predicted, shown.observed, yerr=[below, error], color=_BLUE, fmt="o", markersize=5)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(color=_GRID)
    what = "share of pairs with a count" if data is None else "count"
    _finish(ax, "Predicted and observed, in groups of pairs")
    ax.set_xlabel(f"predicted {what}")
    ax.set_ylabel(f"observed {what}")
    return ax


def require_matplotlib() -> None:
    """ImportError, with the command that installs it, if matplotlib is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'hpf_gpu[plot]'") from error


def _axes(ax: Axes | None, size: tuple[float, float] = (7, 4.5)) -> Axes:
    return _figure(size).subplots() if ax is None else ax


def _figure(size: tuple[float, float]) -> Figure:
    """A figure that pyplot shows, as in a notebook."""
    require_matplotlib()
    from matplotlib import pyplot

    return pyplot.figure(figsize=size, layout="constrained")


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", color=_INK, weight="bold", fontsize=12, pad=10)
    ax.tick_params(colors=_INK, length=0)
    ax.xaxis.label.set_color(_INK)
    ax.yaxis.label.set_color(_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_GREY)


# -- figures of several panels ------------------------------------------------------------------


def top_items(
    model: HPF, names: Any = None, *, n_factors: int = 8, n_items: int = 6, columns: int = 2
) -> Figure:
    """Draw the items with the largest shares of each of the largest factors.

    Parameters
    ----------
    model : HPF
        A fitted model with factors.
    names : mapping or pandas.Series, optional
        Name of each item by its id; by default the id.
    n_factors, n_items : int
        Number of factors, and number of items of each.
    columns : int
        Number of factors side by side.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each factor, with its share of the expected counts of all factors.  A bar is
        β_ik / Σ_j β_jk: the item's share of those of this factor.

    Raises
    ------
    ValueError, TypeError
        If the model is not fitted or has no factors.
    """
    fitted = model._require_fitted()
    n_factors = min(whole_number("n_factors", n_factors, 1), model.k)
    n_items, columns = whole_number("n_items", n_items, 1), whole_number("columns", columns, 1)
    if not model.k:
        raise ValueError("a model with k=0 has no factors")
    theta, beta = fitted.theta[:, : model.k], fitted.beta[:, : model.k]
    size = theta.sum(axis=0, dtype=float) * beta.sum(axis=0, dtype=float)
    columns = min(columns, n_factors)
    rows = -(-n_factors // columns)
    figure = _figure((6 * columns, rows * (0.9 + 0.26 * n_items)))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for ax, (factor, items) in zip(
        panels, leading_items(theta, beta, n_factors, n_items).items(), strict=False
    ):
        share = 100 * beta[items, factor] / beta[:, factor].sum(dtype=float)
        ax.barh(range(len(items)), share, 0.7, color=_BLUE)
        ax.set_yticks(range(len(items)), item_labels(fitted.item_ids.index[items], names))
        ax.invert_yaxis()
        _finish(ax, f"Factor {factor}: {100 * size[factor] / size.sum():.1f} %")
        ax.xaxis.set_major_formatter("{x:g} %")
    for ax in panels[n_factors:]:
        ax.set_visible(False)
    return figure


def activity(model: HPF | HPFEnsemble, data: Any = None) -> Figure:
    """Draw how many items users have, and how many users items have.

    Parameters
    ----------
    model, data
        As for :func:`hpf_gpu.checks.activity`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        As for :func:`hpf_gpu.checks.activity`.
    """
    found = checks.activity(model, data)
    figure = _figure((11, 4))
    panels = figure.subplots(1, 2)
    for ax, numbers, title, label in (
        (panels[0], found.users, "Activity of the users", "items of a user"),
        (panels[1], found.items, "Popularity of the items", "users of an item"),
    ):
        edges = growing_edges(int(numbers.max()))
        ax.hist(numbers[numbers > 0], edges, color=_BLUE, rwidth=0.94)
        ax.set_xscale("log")
        _finish(ax, title)
        ax.set_xlabel(label)
        ax.set_ylabel("users" if ax is panels[0] else "items")
    return figure


_PREDICTIVE = {
    "pair": ("Counts of pairs", "count", "pairs with a count in this range"),
    "user": ("Totals of users", "sum of a user's counts", "users"),
    "item": ("Totals of items", "sum of an item's counts", "items"),
}


def predictive_check(
    model: HPF | HPFEnsemble, data: Any = None, *, draws: int = 20, random_seed: int = 0
) -> Figure:
    """Draw counts and totals that are observed, and the same drawn from the model.

    Parameters
    ----------
    model, data, draws, random_seed
        As for :func:`hpf_gpu.checks.posterior_predictive`.

    Returns
    -------
    matplotlib.figure.Figure
        Bars are observed; points are the medians of the draws, with lines from the 5 to the 95 % quantile.

    Raises
    ------
    ValueError, TypeError
        As for :func:`hpf_gpu.checks.posterior_predictive`.
    """
    table = checks.posterior_predictive(model, data, draws=draws, random_seed=random_seed)
    figure = _figure((14, 4.2))
    for ax, (of, (title, label, unit)) in zip(figure.subplots(1, 3), _PREDICTIVE.items(), strict=True):
        rows = table[table["of"] == of]
        places = np.arange(len(rows))
        ax.bar(places, rows.observed, 0.8, color=_GREY, label="observed")
        error = [rows.drawn - rows.drawn_low, rows.drawn_high - rows.drawn]
        ax.errorbar(places, rows.drawn, yerr=error, color=_ORANGE, fmt="o", markersize=5, label="drawn")
        ax.set_xticks(places, range_labels(rows.low, rows.high), rotation=45, ha="right")
        _finish(ax, title)
        ax.set_xlabel(label)
        ax.set_ylabel(unit)
        if of == "pair":
            ax.set_yscale("log")
            drawn, seen = (
                1 - rows.drawn.iloc[0] / rows.drawn.sum(),
                1 - rows.observed.iloc[0] / rows.observed.sum(),
            )
            ax.set_title(
                f"{100 * seen:.2f} % observed, {100 * drawn:.2f} % drawn", loc="right", color=_INK, fontsize=9
            )
            ax.legend(frameon=False, labelcolor=_INK)
    return figure


def growing_edges(largest: int) -> list[int]:
    """Edges of bins of integers from 1 to ``largest``, each bin at least as wide as the one before."""
    edges = [1, 2]
    while edges[-1] <= largest:
        edges.append(-(-edges[-1] * 4 // 3))
    return edges


def range_labels(low: Iterable[int], high: Iterable[int]) -> list[str]:
    """Labels of ranges of whole numbers, both ends included."""
    pairs = zip(low, high, strict=True)
    return [f"{first:,}" if first == last else f"{first:,}–{last:,}" for first, last in pairs]


# -- the overview ----------------------------------------------------------------------------------


def save_overview(
    output: Path,
    title: str,
    history: pd.DataFrame,
    qualities: Mapping[str, RankingQuality],
    theta: NDArray[Any],
    beta: NDArray[Any],
    item_names: Sequence[str],
) -> None:
    """Write a PNG file with all three panels.

    Parameters
    ----------
    output : pathlib.Path
        File to write.
    title : str
        Title of the figure.
    history, qualities, theta, beta, item_names
        As for :func:`convergence`, :func:`quality` and :func:`factors`.

    Raises
    ------
    OSError
        If ``output`` cannot be written.
    ImportError
        If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(14, 8.5), layout=layout)
    figure.suptitle(title, x=0.012, horizontalalignment="left", color=_INK, fontsize=14)
    places: list[Any] = [["convergence", "factors"], ["quality", "factors"]]
    panels = figure.subplot_mosaic(places, width_ratios=[1, 1.15])
    convergence(history, panels["convergence"])
    quality(qualities, panels["quality"])
    factors(theta, beta, item_names, panels["factors"])
    FigureCanvasAgg(figure).print_figure(output, format="png", dpi=130)


# -- of several models ---------------------------------------------------------------------------


def comparison(table: pd.DataFrame, ax: Axes | None = None, metric: str | None = None) -> Axes:
    """Draw a figure of several models with 95 % intervals, the first model emphasized.

    Parameters
    ----------
    table : pandas.DataFrame
        Result of :func:`hpf_gpu.compare`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    metric : str, optional
        Which figure; by default the first in the table.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the table is empty, or ``metric`` is not in it.
    """
    if table.empty:
        raise ValueError("the table is empty: there is no model to draw")
    metrics = list(dict.fromkeys(table["metric"]))
    metric = metrics[0] if metric is None else metric
    if metric not in metrics:
        raise ValueError(f"metric {metric!r} is not in the table; it has {', '.join(map(repr, metrics))}")
    ax = _axes(ax)
    rows = table[table["metric"] == metric]
    for place, (low, value, high) in enumerate(rows[["low", "value", "high"]].to_numpy(np.float64)):
        colour = _BLUE if place == 0 else _GREY
        ax.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
        ax.plot([value], [place], color=colour, marker="o", markersize=7)
        ax.annotate(
            f"{value:.4g}",
            (value, place),
            xytext=(0, 8),
            textcoords="offset points",
            horizontalalignment="center",
            color=_INK,
        )
    ax.set_yticks(range(len(rows)), rows["model"])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.margins(x=0.1)
    ax.grid(axis="x", color=_GRID)
    _finish(ax, "Models on held-out counts")
    ax.set_xlabel(metric + (", with 95 % interval" if rows["error"].notna().any() else ""))
    return ax
