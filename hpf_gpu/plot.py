"""Figures of a fit: convergence, ranking quality, and the leading items of its factors.

Matplotlib is slow to import, so it is imported only where it is used, and without pyplot, so that the
caller's figures and settings are not affected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .metrics import RankingQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


# -- single panels -------------------------------------------------------------------------------


def convergence(history: pd.DataFrame, ax: Axes) -> None:
    """Draw log-likelihood and ELBO by iteration.

    Parameters
    ----------
    history : pandas.DataFrame
        ``HPF.history_``: columns ``iteration``, ``llk`` and ``elbo``; missing values are left out.  Without
        ``compute_elbo=True`` the ELBO is a single point, that of the last check.
    ax : matplotlib.axes.Axes
        Where to draw.

    Raises
    ------
    ValueError
        If the history has neither a log-likelihood nor an ELBO.
    """
    largest = history[["llk", "elbo"]].abs().max().max()
    if not np.isfinite(largest):
        raise ValueError(f"a history of {len(history)} checks holds no finite log-likelihood or ELBO")
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


def quality(qualities: Mapping[str, RankingQuality], ax: Axes) -> None:
    """Draw precision, recall and NDCG of several methods side by side.

    Parameters
    ----------
    qualities : mapping of str to RankingQuality
        Results of :func:`hpf_gpu.metrics.evaluate_ranking` by name of the method; the first is emphasized.
    ax : matplotlib.axes.Axes
        Where to draw.

    Raises
    ------
    ValueError
        If ``qualities`` is empty.
    """
    if not qualities:
        raise ValueError("qualities is empty: there is no method to draw")
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


def selection(table: pd.DataFrame, ax: Axes) -> None:
    """Draw the scores of the candidates of :func:`hpf_gpu.select` by the iterations they were given.

    Parameters
    ----------
    table : pandas.DataFrame
        ``Selection.table``; the candidate with the best score in the last round is emphasized.
    ax : matplotlib.axes.Axes
        Where to draw.

    Raises
    ------
    ValueError
        If the table is empty.
    """
    if table.empty:
        raise ValueError("the table is empty: there is no candidate to draw")
    last = table.groupby("candidate").last()
    best = last.score.idxmax()
    for candidate, of_one in table.groupby("candidate"):
        colour, width = (_BLUE, 2.5) if candidate == best else (_GREY, 1.2)
        ax.plot(of_one.iterations, of_one.score, color=colour, linewidth=width, marker="o", markersize=4)
        ax.annotate(
            str(candidate),
            (of_one.iterations.iloc[-1], of_one.score.iloc[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=_INK if candidate == best else _GREY,
        )
    ax.margins(x=0.08, y=0.15)
    ax.grid(axis="y", color=_GRID)
    _finish(ax, "Score of each candidate")
    ax.set_xlabel("iterations")


def factors(
    theta: NDArray[Any],
    beta: NDArray[Any],
    item_names: Sequence[str],
    ax: Axes,
    *,
    n_factors: int = 8,
    n_items: int = 4,
) -> None:
    """Draw the leading items of the largest factors as a heat map.

    A cell shows the share of the item's expected counts, over all users, that comes from the factor.  An item
    with a single dark cell belongs to that factor alone.

    Parameters
    ----------
    theta, beta, n_factors, n_items
        As for :func:`leading_items`.
    item_names : sequence of str, (M,)
        Names in the order of the rows of ``beta``.
    ax : matplotlib.axes.Axes
        Where to draw.

    Raises
    ------
    ValueError
        If the number of names is not the number of items.
    """
    if len(item_names) != len(beta):
        raise ValueError(f"{len(item_names)} item_names for {len(beta)} items")
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


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", color=_INK, weight="bold", fontsize=12, pad=10)
    ax.tick_params(colors=_INK, length=0)
    ax.xaxis.label.set_color(_INK)
    ax.yaxis.label.set_color(_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_GREY)


# -- the figure ----------------------------------------------------------------------------------


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
    """
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


def comparison(table: pd.DataFrame, ax: Axes, metric: str | None = None) -> None:
    """Draw a figure of several models with 95 % intervals, the first model emphasized.

    Parameters
    ----------
    table : pandas.DataFrame
        Result of :func:`hpf_gpu.compare`.
    ax : matplotlib.axes.Axes
        Where to draw.
    metric : str, optional
        Which figure; by default the first in the table.

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
