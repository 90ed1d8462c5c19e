"""evaluate and compare: how well models do on held-out counts, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import gammaln

from . import backends
from .answers.ensembles import combined_pairs, expected_totals, mixture
from .data.counts import training_data
from .data.ids import Ids
from .data.triplets import Columns, load, read, row_of_each
from .ensemble import HPFEnsemble, as_ensemble
from .estimator import HPF
from .messages import did_you_mean, warn
from .metrics import OF_HITS, Lists, ScoreBlock, coverage, model_scores, novelty, ranked
from .model.ensemble import Ensemble
from .model.settings import whole_number

#: What can be evaluated: a fitted model, or a function that scores all items for users by row number.
Evaluated: TypeAlias = HPF | HPFEnsemble | ScoreBlock

LISTS = (*OF_HITS, "auc", "coverage", "novelty")
LIKELIHOODS = ("llk_per_cell", "llk", "llk_of_counts")
METRICS = (*LISTS, *LIKELIHOODS)  # by default
PREDICTIVE = "llk_predictive"  # only where it is asked for: it takes all cells, and shapes and rates

_SUMS = ("llk", "llk_of_counts", PREDICTIVE)  # the others are means
_BLOCK_CELLS = 1 << 20  # that are examined at once
_COLUMNS = Columns()
_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The outcome of :func:`evaluate`; ``result["recall"]`` is a figure.

    Attributes
    ----------
    figures : dict of str to float
        Value of each metric.
    errors : dict of str to float
        Standard error of each figure over users; NaN for coverage, which is a figure of all lists together.
    n : int
        Length of the lists.
    n_users : int
        Number of users with held-out counts, over whom figures are taken.
    per_user : DataFrame
        A row for each of them, by id, and a column for each metric but coverage; with a likelihood also
        ``cells``, the number of the user's cells that are not in the training data.
    exposure : float
        What expected counts were multiplied by in likelihoods of all cells; NaN without one of these.
    n_unknown, n_repeated : int
        Number of held-out counts that were left out, because their user or item is not in the model, or
        because the training data have the same pair.
    """

    figures: dict[str, float]
    errors: dict[str, float]
    n: int
    n_users: int
    per_user: pd.DataFrame
    exposure: float
    n_unknown: int
    n_repeated: int

    def __getitem__(self, metric: str) -> float:
        """The figure of a metric."""
        return self.figures[metric]

    def to_frame(self) -> pd.DataFrame:
        """A row for each metric: metric, value, standard error, and the ends of the 95 % interval."""
        return pd.DataFrame(
            [
                {"metric": metric, "value": value, "error": error} | _interval(value, error)
                for metric, value, error in zip(
                    self.figures, self.figures.values(), self.errors.values(), strict=True
                )
            ]
        )

    def __repr__(self) -> str:
        """The figures with their standard errors, one in a line."""
        head = f"Evaluation of {self.n_users:,} users, lists of {self.n}"
        left_out = self.n_unknown + self.n_repeated
        lines = [head + (f", {left_out:,} held-out counts left out" if left_out else "")]
        width = max(map(len, self.figures))
        for metric, value in self.figures.items():
            error = self.errors[metric]
            lines.append(f"  {metric:<{width}}  {value:.5g}" + ("" if np.isnan(error) else f" ± {error:.2g}"))
        return "\n".join(lines)


def evaluate(
    model: Evaluated,
    train: Any,
    held_out: Any,
    metrics: Sequence[str] | None = None,
    n: int = 20,
    *,
    exposure: float | None = None,
) -> Evaluation:
    """How well a model does on counts that were held out from its fit.

    Lists are of the ``n`` items with the highest scores among those that a user does not have in ``train``.
    Users without held-out counts have no part in any figure.

    Parameters
    ----------
    model : HPF, HPFEnsemble or callable
        A fitted model; or, for baselines, a function from row numbers of users (B,) to scores (B, M), such as
        :func:`hpf_gpu.metrics.popularity_scores` or :func:`hpf_gpu.metrics.model_scores` with a discount.
        Rows and columns are those of ``train``, if that is a matrix; otherwise users and items are numbered
        in order of first appearance in ``train``, as a fit does.
    train, held_out : same forms as for :meth:`hpf_gpu.HPF.fit`
        The counts to which the model was fitted, and those to judge it by.  Held-out counts whose user or
        item is not in the model, or whose pair is also in ``train``, are left out with a warning; there is
        one, too, if the model has been fitted to held-out counts (and has kept what, ``keep_data``).
    metrics : sequence of str, optional
        Which of the figures below; by default all that the model has but ``llk_predictive``.
    n : int
        Length of the lists.
    exposure : float, optional
        How large held-out counts are compared with those in ``train`` that tell as much about a pair: if a
        fifth of the counts is held out, 0.25, if the next month follows eleven others, 1/11.  By default the
        sum of held-out counts divided by that of training counts, both of the users with held-out counts.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError, TypeError
        If a metric is unknown, the data are not counts, no held-out count is left, or a model is not fitted;
        if a likelihood is asked of a function or of members that differ in ``counts``.

    Notes
    -----
    Of lists, with their definitions in :mod:`hpf_gpu.metrics`:

    - ``normalized_precision``, ``precision``, ``recall``, ``ndcg``, ``map``, ``mrr``, ``hit_rate``: how many
      held-out items are in the list, and how high.  ``auc``: how often a held-out item is ranked before
      another.  Means over users.
    - ``coverage``, ``novelty``: how many items, and how rare ones, are recommended.

    Likelihoods, in nats; counts are what the model takes them for (``counts``):

    - ``llk``: Σ ln Poisson(y | s·λ) over all pairs of these users with any item that are not in ``train``,
      zeros included, with the expected count λ and the exposure s.  ``llk_per_cell``: the same divided by
      the number of these pairs.
    - ``llk_predictive``, only where it is asked for: Σ ln E[Poisson(y | s·λ)] over the same pairs as ``llk``,
      where λ has its posterior distribution, of an ensemble that of one member, drawn by weight.  A model
      that is surer of its rates than it may be loses.  With the gamma distributions of
      :meth:`hpf_gpu.HPF.predict_interval` the probabilities are negative binomial.  It takes the time of all
      pairs, and shapes and rates (``keep_all_objs=True``).
    - ``llk_of_counts``: Σ ln Poisson(y | λ) over the held-out counts alone, which is
      ``model.eval_llk(held_out, full_llk=True)``.  Zeros have no part in it, so it prefers expected counts
      that are too large: do not choose models by it.

    Standard errors are those of means, sums and ratios over users drawn independently.
    """
    judged = _Judged.of(model)
    asked = _asked(metrics, judged)
    for metric in asked:
        if metric in (*LIKELIHOODS, PREDICTIVE) and judged.taken is None:
            raise ValueError(f"there is no {metric}, because {judged.why_not}: leave it out of metrics")
    return _evaluation(judged, _Counts(train, held_out), asked, n, exposure)


def compare(
    models: Mapping[str, Evaluated],
    train: Any,
    held_out: Any,
    metrics: Sequence[str] | None = None,
    n: int = 20,
    *,
    exposure: float | None = None,
) -> pd.DataFrame:
    """Evaluate several models on the same counts, with intervals of what each differs from the first by.

    Parameters
    ----------
    models : mapping of str to HPF, HPFEnsemble or callable
        Models by name; differences are from the first.
    train, held_out, metrics, n, exposure
        As for :func:`evaluate`.  By default likelihoods are left out if models differ in ``counts``.

    Returns
    -------
    DataFrame
        A row for each metric and model, in their order: metric, model, value, error (standard error over
        users), low and high (95 % interval), difference (from the first model), difference_low and
        difference_high (its 95 % interval, paired by user), and users.  NaN where a model has no such figure.

    Raises
    ------
    ValueError, TypeError
        As for :func:`evaluate`; if there is no model, or models differ in ``counts`` and a likelihood is
        asked for.

    See Also
    --------
    hpf_gpu.plot.comparison : draws the table.

    Notes
    -----
    The same users are easy or hard for all models, so that a difference is known better than the figures:
    two intervals that overlap do not say that the models are equal.
    """
    if not isinstance(models, Mapping):
        raise TypeError(f"models is a {type(models).__name__}: pass a dict of models by name")
    if not models:
        raise ValueError("models is empty: there is nothing to compare")
    fitted = [model for model in models.values() if isinstance(model, (HPF, HPFEnsemble))]
    columns = fitted[0]._columns if fitted else _COLUMNS
    train, held_out = load(train, columns, "train"), load(held_out, columns, "held_out")
    judged = {name: replace(_Judged.of(model, columns), name=repr(name)) for name, model in models.items()}
    asked = _asked(metrics, *judged.values())
    taken = sorted({one.taken for one in judged.values() if one.taken is not None})
    if len(taken) > 1:
        meaningless = [metric for metric in asked if metric not in LISTS]
        if metrics is not None and meaningless:
            of_models = f"{meaningless[0]} of models with counts={' and '.join(map(repr, taken))}"
            raise ValueError(f"{of_models} cannot be compared: leave it out of metrics")
        asked = [metric for metric in asked if metric in LISTS]
    counts = _Counts(train, held_out)
    found = {name: _evaluation(one, counts, one.having(asked), n, exposure) for name, one in judged.items()}
    first = next(iter(found.values()))
    rows = []
    for metric in asked:
        for name, one in found.items():
            value, error = one.figures.get(metric, np.nan), one.errors.get(metric, np.nan)
            by, error_of_it = _difference(first, one, metric)
            ends = {f"difference_{end}": at for end, at in _interval(by, error_of_it).items()}
            row = {"metric": metric, "model": name, "value": value, "error": error}
            rows.append(row | _interval(value, error) | {"difference": by} | ends | {"users": one.n_users})
    return pd.DataFrame(rows)


# -- what is judged, and by what -------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """A model or a function, as one thing that scores all items for some users."""

    scores: ScoreBlock
    together: Ensemble | None  # of a model
    threads: int | None
    taken: str | None  # what it takes for a count; None without a likelihood
    columns: Columns  # of tables of counts
    why_not: str = ""  # there is no likelihood
    name: str = "the model"  # in messages

    @staticmethod
    def of(model: Any, columns: Columns = _COLUMNS) -> _Judged:
        """The model; for a function, tables have these columns."""
        if isinstance(model, HPF):
            threads, columns = model._settings().threads, model._columns
            return _Judged(model_scores(model), as_ensemble(model), threads, model.counts, columns)
        if isinstance(model, HPFEnsemble):
            taken = sorted({one.counts for one in model.members_})
            why_not = f"members differ in counts: {' and '.join(map(repr, taken))}" * (len(taken) > 1)
            own = None if why_not else taken[0]
            threads, columns = model._threads, model._columns
            return _Judged(model_scores(model), as_ensemble(model), threads, own, columns, why_not)
        if not callable(model):
            raise TypeError(f"a model is HPF, HPFEnsemble or a function of row numbers, not {model!r}")
        return _Judged(model, None, None, None, columns, "scores of a function need not be expected counts")

    def maps_as(self, other: _Judged) -> bool:
        """Whether counts are the same matrix for both."""
        if (self.taken or "raw", self.columns) != (other.taken or "raw", other.columns):
            return False
        if self.together is None or other.together is None:
            return self.together is other.together
        users, items = self.together.user_ids, self.together.item_ids
        return users.equals(other.together.user_ids) and items.equals(other.together.item_ids)

    def having(self, metrics: Sequence[str]) -> list[str]:
        """Those of the metrics that it has."""
        return [metric for metric in metrics if metric in LISTS or self.taken is not None]


@dataclass(frozen=True)
class _Split:
    """Training and held-out counts in the rows and columns of a model."""

    train: sparse.csr_array  # (N, M)
    held_out: sparse.csr_array  # (N, M), without the pairs of ``train``
    held_sums: NDArray[np.float64]  # (N,) sum of a user's held-out counts, also of those pairs
    users: Ids
    items: Ids
    n_unknown: int
    n_repeated: int

    @staticmethod
    def of(judged: _Judged, train: Any, held_out: Any, said: set[str]) -> _Split:
        """Read both; what is left out is said, unless it is in ``said``, to which it is added."""
        if judged.together is None:
            numpy = backends.create("numpy", np.dtype(np.float64))
            data = training_data(train, backend=numpy, reindex=True, columns=judged.columns)
            users, items, known = data.users, data.items, data.host_csr
        else:
            users, items = judged.together.user_ids, judged.together.item_ids
            known, _ = _matrix(train, "train", judged, users, items, said)
        wanted, n_unknown = _matrix(held_out, "held_out", judged, users, items, said)
        if not wanted.nnz:
            raise ValueError(
                "held_out has no count whose user and item are both in the training data: are its ids of the "
                "same type, strings or numbers?"
            )
        new = sparse.csr_array(wanted - wanted.multiply(known > 0))
        new.eliminate_zeros()
        n_repeated = wanted.nnz - new.nnz
        if n_repeated:
            _say(f"{n_repeated} counts of held_out were left out: their pairs are in train, too", said)
        if not new.nnz:
            raise ValueError("all pairs of held_out are also in train: hold them out before the fit")
        sums = wanted.sum(axis=1, dtype=np.float64)
        return _Split(known, new, sums, users, items, n_unknown, n_repeated)

    def exposure(self, users: NDArray[Any]) -> float:
        """The held-out counts of some users (B,) divided by their training counts."""
        of_train = float(self.train[users].sum(dtype=np.float64))
        if not of_train:
            raise ValueError(
                "exposure cannot be estimated, because the users with held-out counts have none in train: "
                "pass it"
            )
        return float(self.held_sums[users].sum()) / of_train


class _Counts:
    """Training and held-out counts, mapped once for all models that have the same ids and take the same."""

    def __init__(self, train: Any, held_out: Any) -> None:
        self._train, self._held_out = train, held_out
        self._splits: list[tuple[_Judged, _Split]] = []
        self._said: set[str] = set()

    def split_for(self, judged: _Judged) -> _Split:
        """The counts in the rows and columns of a model."""
        for other, split in self._splits:
            if judged.maps_as(other):
                return split
        split = _Split.of(judged, self._train, self._held_out, self._said)
        self._splits.append((judged, split))
        return split


def _matrix(
    data: Any, name: str, judged: _Judged, users: Ids, items: Ids, said: set[str]
) -> tuple[sparse.csr_array, int]:
    """Counts (N, M) above zero in the model's rows and columns, and how many others were left out."""
    taken = judged.taken or "raw"
    triplets = read(data, dtype=np.float64, name=name, taken=taken, columns=judged.columns)
    rows, columns = users.codes(triplets.users), items.codes(triplets.items)
    positive = triplets.counts > 0
    known = (rows >= 0) & (columns >= 0)
    n_unknown = int((positive & ~known).sum())
    if n_unknown:
        of_all = f"{n_unknown} of the {int(positive.sum())} counts of {name} were left out"
        _say(f"{of_all}: their user or item is not in the model", said)
    return triplets.csr(rows, columns, positive & known, (users.size, items.size)), n_unknown


def _warn_of_fitted_pairs(judged: _Judged, split: _Split) -> None:
    """Warn if the model has been fitted to held-out counts, as far as it has kept what it was fitted to."""
    if judged.together is None or judged.together.members[0].fitted.seen is None:
        return
    n_fitted, n_all = split.held_out.multiply(judged.together.items_of_users).nnz, split.held_out.nnz
    if n_fitted:
        of_all = f"{n_fitted} of the {n_all} counts of held_out are of pairs that {judged.name} was fitted to"
        warn(f"{of_all}, so its figures are too good: fit it to train alone")


def _say(message: str, said: set[str]) -> None:
    """Warn, but not again of what has been said."""
    if message not in said:
        said.add(message)
        warn(message)


def _asked(metrics: Sequence[str] | None, *judged: _Judged) -> list[str]:
    """The metrics that were asked for, checked; by default all that one of the models has."""
    if metrics is None:
        return list(METRICS if any(one.taken is not None for one in judged) else LISTS)
    asked = [metrics] if isinstance(metrics, str) else list(metrics)
    for metric in asked:
        if metric not in (*METRICS, PREDICTIVE):
            known = (*METRICS, PREDICTIVE)
            close = did_you_mean([metric], known)
            raise ValueError(f"metric {metric!r} is unknown; there are {', '.join(known)}{close}")
    if not asked:
        raise ValueError(f"metrics is empty; there are {', '.join((*METRICS, PREDICTIVE))}")
    return list(dict.fromkeys(asked))


def _evaluation(
    judged: _Judged, counts: _Counts, asked: Sequence[str], n: int, exposure: float | None
) -> Evaluation:
    n = whole_number("n", n, 1)
    if exposure is not None and not (np.isfinite(exposure) and exposure > 0):
        raise ValueError(f"exposure={exposure!r} must be above zero")
    split, s = counts.split_for(judged), float("nan")
    _warn_of_fitted_pairs(judged, split)
    users = np.flatnonzero(np.diff(split.held_out.indptr))
    columns: dict[str, NDArray[Any]] = {}
    figures: dict[str, float] = dict.fromkeys(asked, float("nan"))
    if any(metric in LISTS for metric in asked):
        lists = ranked(judged.scores, split.train > 0, split.held_out > 0, n, with_auc="auc" in asked)
        columns |= _of_lists(lists, split.train, asked)
        if "coverage" in asked:
            figures["coverage"] = coverage(lists.items, split.train.shape[1])
    if judged.together is not None and any(metric not in LISTS for metric in asked):
        s = split.exposure(users) if exposure is None else float(exposure)
        if any(metric in LIKELIHOODS for metric in asked):
            columns |= _likelihoods(judged.together, judged.threads, split, users, s)
        if PREDICTIVE in asked:
            columns[PREDICTIVE] = _predictive(judged.together, judged.threads, split, users, s)
    index = pd.Index(split.users.column(users), name="UserId")
    per_user = pd.DataFrame({name: columns[name] for name in (*asked, "cells") if name in columns}, index)
    errors = dict.fromkeys(asked, float("nan"))
    for metric in asked:
        if metric in columns:
            figures[metric] = _figure(per_user, metric)
            errors[metric] = _error(_influence(per_user, metric))
    return Evaluation(figures, errors, n, len(users), per_user, s, split.n_unknown, split.n_repeated)


# -- figures of users ------------------------------------------------------------------------------


def _of_lists(lists: Lists, train: sparse.csr_array, asked: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The figures of each user's list, (U,) each."""
    columns = {
        metric: of_hits(lists.hits, lists.n_relevant)
        for metric, of_hits in OF_HITS.items()
        if metric in asked
    }
    if "auc" in asked:
        columns["auc"] = lists.auc
    if "novelty" in asked:
        users_with = np.bincount(train.indices, minlength=train.shape[1])
        columns["novelty"] = novelty(lists.items, users_with, train.shape[0])
    return columns


def _likelihoods(
    together: Ensemble, threads: int | None, split: _Split, users: NDArray[Any], exposure: float
) -> dict[str, NDArray[Any]]:
    """The log-likelihoods of some users' cells (B,), and how many cells each has.

    Zeros need no cell of their own: Σ_i λ_ui is known for all items at once, and what training pairs have of
    it is subtracted.
    """
    train, held_out = split.train[users], split.held_out[users]

    def rates(matrix: sparse.csr_array) -> NDArray[np.float64]:
        pairs = combined_pairs(together, threads, users[row_of_each(matrix)], matrix.indices)
        return pairs.astype(np.float64)

    def by_user(matrix: sparse.csr_array, values: NDArray[Any]) -> NDArray[np.float64]:
        sums = np.zeros(len(users))
        np.add.at(sums, row_of_each(matrix), values)
        return sums

    y, expected = held_out.data, rates(held_out)
    # A rate below the range of float32 is zero here; its logarithm must stay finite.
    log_rates = np.log(np.maximum(expected, np.finfo(np.float64).tiny))
    of_zeros_too = expected_totals(together, users) - by_user(train, rates(train))
    terms = y * log_rates - gammaln(y + 1.0)
    llk = by_user(held_out, terms + y * np.log(exposure)) - exposure * of_zeros_too
    cells = train.shape[1] - np.diff(train.indptr)
    return {
        "llk_per_cell": llk / cells,
        "llk": llk,
        "llk_of_counts": by_user(held_out, terms - expected),
        "cells": cells,
    }


def _predictive(
    together: Ensemble, threads: int | None, split: _Split, users: NDArray[Any], exposure: float
) -> NDArray[np.float64]:
    """The posterior predictive log-likelihoods of some users' cells, (B,).

    First all cells are taken for zeros.
    """
    n_items = split.train.shape[1]
    llk, step = np.empty(len(users)), max(1, _BLOCK_CELLS // n_items)
    for start in range(0, len(users), step):
        some = users[start : start + step]
        columns = np.tile(np.arange(n_items), len(some))
        rates = mixture(together, threads, np.repeat(some, n_items), columns)
        zeros = rates.log_of_zero(exposure).reshape(-1, n_items)
        zeros[split.train[some].nonzero()] = 0.0
        held_out = split.held_out[some].tocoo()
        zeros[held_out.row, held_out.col] = 0.0
        pairs = mixture(together, threads, some[held_out.row], held_out.col)
        of_counts = pairs.log_probability(held_out.data, exposure)
        llk[start : start + step] = zeros.sum(axis=1) + np.bincount(held_out.row, of_counts, len(some))
    return llk


# -- figures of all users --------------------------------------------------------------------------


def _weights(per_user: pd.DataFrame, metric: str) -> pd.Series:
    """What each user counts in a mean; zero where there is no value."""
    has = per_user[metric].notna().astype(np.float64)
    return has * per_user["cells"] if metric == "llk_per_cell" else has


def _figure(per_user: pd.DataFrame, metric: str) -> float:
    """The sum over users, or the mean."""
    values, weights = per_user[metric], _weights(per_user, metric)
    total = float((values * weights).sum())
    return total if metric in _SUMS else total / float(weights.sum()) if weights.any() else float("nan")


def _influence(per_user: pd.DataFrame, metric: str) -> pd.Series:
    """How much each user moves the figure: what remains of her value less the mean, by her weight."""
    values, weights = per_user[metric], _weights(per_user, metric)
    mean = (values * weights).sum() / weights.sum() if weights.any() else np.nan
    moved = ((values - mean) * weights).fillna(0.0)
    return moved if metric in _SUMS else moved / weights.sum()


def _error(influence: pd.Series) -> float:
    """Standard error of a figure; NaN of a single user."""
    n = len(influence)
    return float(np.sqrt(n / (n - 1) * (influence**2).sum())) if n > 1 else float("nan")


def _difference(first: Evaluation, other: Evaluation, metric: str) -> tuple[float, float]:
    """What a figure differs from the first by, and the standard error of that."""
    if metric not in first.figures or metric not in other.figures:
        return float("nan"), float("nan")
    by = other.figures[metric] - first.figures[metric]
    if metric not in first.per_user or metric not in other.per_user:
        return by, float("nan")
    one, two = (_influence(of.per_user, metric) for of in (first, other))
    return by, _error(two.sub(one, fill_value=0.0))


def _interval(value: float, error: float) -> dict[str, float]:
    """The ends of the 95 % interval of a normal distribution."""
    return {"low": value - _Z * error, "high": value + _Z * error}
