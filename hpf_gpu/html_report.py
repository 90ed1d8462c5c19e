"""report: a fitted model as one HTML page that needs no network."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from . import checks, plot
from .answers.ensembles import all_scores
from .answers.similarity import rows_of_similar_items
from .answers.summaries import changed, facts_of, facts_of_ensemble
from .ensemble import HPFEnsemble, as_ensemble
from .estimator import HPF
from .files.whole_file import path_of, replacing
from .model.ensemble import Ensemble
from .model.settings import whole_number
from .ranking import best_columns, top_columns
from .version import __version__

_MOST_FACTORS = 100  # that are shown, the largest
_OF_FACTOR = 8  # items of each
_PROFILE = 6  # factors of an item or a user
_LIST = 10  # similar items, recommendations, and items that a user has
_LONGEST = 100  # characters of a name


def report(
    model: HPF | HPFEnsemble,
    path: str | os.PathLike[str],
    *,
    names: Any = None,
    data: Any = None,
    title: str | None = None,
    n_items: int = 2000,
    n_users: int = 300,
) -> Path:
    """Write a page about a fitted model: one HTML file that needs no network.

    It has the state of the fit, the factors with their first items, items and users that can be searched, and
    checks of the model against counts.  Nothing is loaded from elsewhere: the file can be mailed or archived.

    Parameters
    ----------
    model : HPF or HPFEnsemble
        A fitted model.  Ensembles, and models with k=0, have no factors to show; ensembles have a table of
        their members.
    path : str or path-like
        File to write; an existing one is replaced.
    names : mapping or pandas.Series, optional
        Name of each item by its id; by default the id.
    data : same forms as for :meth:`hpf_gpu.HPF.fit`, optional
        Counts that the model is checked against, usually those that it was fitted to.  By default the pairs
        that the model has kept, without their counts; there are no checks if it has kept none.
    title : str, optional
        Title of the page.
    n_items, n_users : int
        How many items and users can be searched, those with most counts; zero for none.  The page holds the
        ids of these users, what they have and what is recommended to them: with ``n_users=0`` it does not.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError, TypeError
        If the model is not fitted, ``data`` are not counts, or an argument is invalid.
    OSError
        If the file cannot be written.

    Examples
    --------
    Of a model of the purchases that come with the package::

        retail = load_online_retail()
        model = HPF(k=20).fit(retail.purchases)
        report(model, "report.html", names=retail.product_names, data=retail.purchases)
    """
    n_items, n_users = whole_number("n_items", n_items, 0), whole_number("n_users", n_users, 0)
    if title is None:
        title = "HPFEnsemble" if isinstance(model, HPFEnsemble) else "Hierarchical Poisson factorization"
    elif not isinstance(title, str):
        raise TypeError(f"title is {title!r}: pass a string")
    target = path_of("path", path)
    content = _content(model, names, data, n_items, n_users)
    with replacing(target) as file:
        file.write(_page(title, content).encode("utf-8", "replace"))
    return target


# -- the page ------------------------------------------------------------------------------------


def _page(title: str, content: dict[str, Any]) -> str:
    """The page; text of the user is escaped, and inserted last, so that nothing is looked for in it."""
    files = resources.files(__package__).joinpath("page_files")
    page, style, script = (
        files.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    before, after = page.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script).split("<!--DATA-->")
    return before.replace("<!--TITLE-->", html.escape(title)) + _json(content) + after


def _json(content: dict[str, Any]) -> str:
    """JSON in ASCII that does not end the script element in which it is, whatever names are."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _content(model: HPF | HPFEnsemble, names: Any, data: Any, n_items: int, n_users: int) -> dict[str, Any]:
    """All that is on the page, for JSON."""
    ensemble = as_ensemble(model)
    fitted = None if isinstance(model, HPFEnsemble) else model._require_fitted()
    factors = None if isinstance(model, HPFEnsemble) or not model.k else _Factors.of(model)
    kept = all(member.fitted.seen is not None for member in ensemble.members)
    observed = None if data is None and not kept else checks.Observed.of(model, data)
    activity = None if observed is None else checks.activity(model, observed)
    items = _Items(ensemble.item_ids.index, names)
    users_of_items, items_of_users = (
        _expected_totals(ensemble) if activity is None else (activity.items, activity.users)
    )
    shown_items = _largest(users_of_items, n_items)
    shown_users = _largest(items_of_users, n_users)
    return {
        "version": __version__,
        "facts": facts_of_ensemble(ensemble) if fitted is None else facts_of(fitted),
        "k": 0 if factors is None else factors.beta.shape[1],
        "parameters": _parameters(model),
        "members": _members(model) if isinstance(model, HPFEnsemble) else None,
        "history": None if fitted is None else _history(fitted.history),
        # First, because what can be searched has the first numbers.
        "explored_items": _explored_items(model, factors, items, shown_items, activity),
        "explored_users": _explored_users(ensemble, factors, items, shown_users, observed),
        "factors": [] if factors is None else _listed_factors(factors, items),
        "activity": activity and {"users": _histogram(activity.users), "items": _histogram(activity.items)},
        "presence": observed is not None and observed.presence,
        "calibration": observed and _columns(checks.calibration(model, observed)),
        "predictive": observed and _columns(checks.posterior_predictive(model, observed)),
        "items": items.listed(),
    }


class _Items:
    """The items that the page names, by numbers in order of their first use."""

    def __init__(self, ids: pd.Index, names: Any) -> None:
        self._ids, self._names = ids, names
        self._numbers: dict[int, int] = {}

    @property
    def size(self) -> int:
        """Number of all items, named or not."""
        return len(self._ids)

    def number(self, row: int) -> int:
        return self._numbers.setdefault(int(row), len(self._numbers))

    def numbers(self, rows: Iterable[int]) -> list[int]:
        return [self.number(row) for row in rows]

    def listed(self) -> dict[str, Any]:
        ids = self._ids[list(self._numbers)]
        return {"name": _short(plot.item_labels(ids, self._names)), "id": _short(plot.item_labels(ids))}


@dataclass(frozen=True)
class _Factors:
    """The factors of a model, without columns of biases."""

    theta: NDArray[Any]  # (N, K)
    beta: NDArray[Any]  # (M, K)

    @staticmethod
    def of(model: HPF) -> _Factors:
        fitted = model._require_fitted()
        return _Factors(fitted.theta[:, : model.k], fitted.beta[:, : model.k])

    @property
    def of_users(self) -> NDArray[np.float64]:
        """Σ_u θ_uk, (K,)."""
        return np.asarray(self.theta.sum(axis=0, dtype=np.float64))

    @property
    def of_items(self) -> NDArray[np.float64]:
        """Σ_i β_ik, (K,)."""
        return np.asarray(self.beta.sum(axis=0, dtype=np.float64))


def _shares(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row over its sum."""
    return np.asarray(expected / np.maximum(expected.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny))


def _listed_factors(factors: _Factors, items: _Items) -> list[dict[str, Any]]:
    """The largest factors, with the items that have the largest shares of them."""
    sizes = _shares(factors.of_users * factors.of_items)
    leading = plot.leading_items(factors.theta, factors.beta, _MOST_FACTORS, _OF_FACTOR)
    return [
        {
            "k": k,
            "share": round(float(sizes[k]), 4),
            "items": items.numbers(rows),
            "parts": np.round(factors.beta[rows, k] / factors.of_items[k], 5).tolist(),
        }
        for k, rows in leading.items()
    ]


def _explored_items(
    model: HPF | HPFEnsemble,
    factors: _Factors | None,
    items: _Items,
    rows: NDArray[np.intp],
    activity: checks.Activity | None,
) -> dict[str, Any]:
    """Items that can be searched, with their factors and the items that are like them or go with them."""
    items.numbers(rows)
    explored: dict[str, Any] = {
        "count": len(rows),
        "total": items.size,
        "size": None if activity is None else activity.items[rows].tolist(),
        "profile": None,
        "like": None,
        "goes_with": None,
    }
    if factors is not None:
        explored["profile"] = _profiles(_shares(factors.beta[rows] * factors.of_users))
    similar = rows_of_similar_items(as_ensemble(model), rows, _LIST)
    if similar is not None:
        explored["like"] = [items.numbers(like) for like in similar]
    neighbours = None if isinstance(model, HPFEnsemble) else model._require_fitted().neighbours
    if neighbours is not None:
        by_source = neighbours.by_source[rows]
        explored["goes_with"] = [items.numbers(_strongest(by_source[[row]])) for row in range(len(rows))]
    return explored


def _explored_users(
    ensemble: Ensemble,
    factors: _Factors | None,
    items: _Items,
    rows: NDArray[np.intp],
    observed: checks.Observed | None,
) -> dict[str, Any]:
    """Users that can be searched, with what they have and what is recommended to them."""
    had: list[list[int]] = []
    recommended: list[list[int]] = []
    scores: list[list[float]] = []
    sizes: list[int] = []
    for row in rows:
        of_all = all_scores(ensemble, np.array([row]))[0].astype(np.float64)
        if observed is not None:
            of_user = observed.counts[[row]]
            order = np.lexsort((-of_all[of_user.indices], -of_user.data))
            sizes.append(int(of_user.nnz))
            had.append(items.numbers(of_user.indices[order[:_LIST]]))
            of_all[of_user.indices] = -np.inf
        best = best_columns(of_all[None], min(_LIST, len(of_all)))[0][0]
        best = best[best >= 0]
        recommended.append(items.numbers(best))
        scores.append([_rounded(score) for score in of_all[best]])
    return {
        "count": len(rows),
        "total": int(ensemble.user_ids.size),
        "id": _short(plot.item_labels(ensemble.user_ids.index[rows])),
        "size": None if observed is None else sizes,
        "profile": None if factors is None else _profiles(_shares(factors.theta[rows] * factors.of_items)),
        "had": None if observed is None else had,
        "recommended": recommended,
        "scores": scores,
    }


def _profiles(shares: NDArray[np.float64]) -> list[list[list[float]]]:
    """The factors with the largest shares (B, K) of each row, at least a hundredth."""
    if not len(shares):
        return []
    best = top_columns(shares, min(_PROFILE, shares.shape[1]))
    return [
        [[int(k), round(float(row[k]), 3)] for k in columns if row[k] >= 0.01]
        for row, columns in zip(shares, best, strict=True)
    ]


def _strongest(weights: sparse.csr_array) -> NDArray[np.intp]:
    """Columns of the largest entries of a single row, largest first."""
    return np.asarray(weights.indices[np.argsort(-weights.data, kind="stable")[:_LIST]], np.intp)


# -- numbers of the page -------------------------------------------------------------------------


def _expected_totals(ensemble: Ensemble) -> tuple[NDArray[Any], NDArray[Any]]:
    """Expected sums of the counts of each item and of each user, by the first member."""
    member = ensemble.members[0]
    theta, beta = member.fitted.theta, member.fitted.beta
    of_columns, of_rows = beta @ theta.sum(axis=0), theta @ beta.sum(axis=0)
    return (of_rows, of_columns) if member.transposed else (of_columns, of_rows)


def _largest(numbers: NDArray[Any], n: int) -> NDArray[np.intp]:
    return np.argsort(-numbers, kind="stable")[:n]


def _parameters(model: HPF | HPFEnsemble) -> list[tuple[str, str]]:
    if isinstance(model, HPF):
        return changed(model.get_params())
    of_members = ("members", "weights")
    return [(name, repr(value)) for name, value in model.get_params().items() if name not in of_members]


def _members(ensemble: HPFEnsemble) -> list[dict[str, Any]]:
    """A row for each member: its share of the weight, what it differs by, and how its fit ended."""
    members, rows = ensemble._ensemble.members, []
    total = sum(member.weight for member in members)
    for model, member in zip(ensemble.members_, members, strict=True):
        parameters = model.get_params()
        own = [
            f"{name}={value}"
            for name, value in changed(parameters)
            if name not in ensemble.parameters or ensemble.parameters[name] != parameters[name]
        ]
        rows.append(
            {
                "weight": f"{100 * member.weight / total:.3g} %",
                "parameters": ", ".join(["transposed"] * member.transposed + own),
                "iterations": member.fitted.niter,
                "llk": None if member.fitted.train_llk is None else _rounded(member.fitted.train_llk),
            }
        )
    return rows


def _history(history: pd.DataFrame) -> dict[str, list[Any]]:
    return _columns(history[["iteration", "llk", "elbo"]])


def _histogram(numbers: NDArray[np.int64]) -> dict[str, list[int]]:
    """How many numbers are in each bin; there is one more edge than bins."""
    edges = plot.growing_edges(int(numbers.max()))
    return {"edges": edges, "numbers": np.histogram(numbers[numbers > 0], edges)[0].tolist()}


def _columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """The columns of a table; what is not finite is None."""
    return {str(name): [_rounded(value) for value in column.tolist()] for name, column in table.items()}


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _short(labels: list[str]) -> list[str]:
    return [label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…" for label in labels]
