"""Checks of a fitted model against counts: activity and popularity, calibration, and draws from the model.

Each function takes the counts to compare with as ``data``.  Without, it takes what the model has kept: which
items each user has, and not how often, so that the model is asked for the probability of any count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .answers.ensembles import all_scores
from .answers.uncertainty import Gammas
from .data.counts import held_out_pairs
from .data.triplets import read
from .ensemble import HPFEnsemble, as_ensemble
from .estimator import HPF
from .model.ensemble import Ensemble
from .model.settings import whole_number

_BLOCK = 1 << 20  # pairs of users and items whose expected counts exist at once
_COMPARED = 1 << 23  # pairs that calibration looks at
_DRAWN = 1 << 20  # pairs in each draw
_FEWEST_USERS = 100  # of a sample, however many items there are
_FINE = 40  # bins in a decade of expected counts
_LARGEST = 1e15  # mean of what NumPy draws, with a margin


@dataclass(frozen=True)
class Activity:
    """How the counts are spread over users and items.

    Attributes
    ----------
    users : numpy.ndarray, (N,)
        Number of items of each user.
    items : numpy.ndarray, (M,)
        Number of users of each item.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]


def activity(model: HPF | HPFEnsemble, data: Any = None) -> Activity:
    """Activity of the users and popularity of the items.

    Parameters
    ----------
    model : HPF or HPFEnsemble
        A fitted model.
    data : same forms as for :meth:`hpf_gpu.HPF.fit`, optional
        Counts; by default those pairs that the model was fitted to.

    Returns
    -------
    Activity

    Raises
    ------
    ValueError, TypeError
        If the model is not fitted, or has not kept its data and none are passed; if ``data`` are not counts.
    """
    observed = Observed.of(model, data).counts
    users = np.diff(observed.indptr).astype(np.int64)
    return Activity(users, np.bincount(observed.indices, minlength=observed.shape[1]).astype(np.int64))


def calibration(
    model: HPF | HPFEnsemble, data: Any = None, *, groups: int = 20, random_seed: int = 0
) -> pd.DataFrame:
    """Predicted against observed counts, in groups of pairs with similar predictions.

    All pairs of a user and an item are in one of the groups, those without a count as zero.  The groups have
    about the same sum of predictions.  Of large models, some users are drawn at random.

    Parameters
    ----------
    model, data
        As for :func:`activity`.  Without ``data`` predictions are probabilities of any count, 1 − exp(−rate),
        and observed is the share of pairs that have one.
    groups : int
        Largest number of groups.
    random_seed : int
        Seed of the draw of users.

    Returns
    -------
    DataFrame
        A row for each group, smallest predictions first: ``pairs``, their number; ``predicted`` and
        ``observed``, the means; ``error``, the standard error of ``observed``.

    Raises
    ------
    ValueError, TypeError
        As for :func:`activity`.
    """
    groups = whole_number("groups", groups, 1)
    question = Observed.of(model, data)
    sums = np.zeros((4, 24 * _FINE))  # pairs, predicted, observed, observed² by decimal logarithm of the rate
    for rows in _blocks(question.sample(_COMPARED, random_seed), question.counts.shape[1]):
        rates = all_scores(question.ensemble, rows).ravel().astype(np.float64)
        predicted = -np.expm1(-rates) if question.presence else rates
        observed = question.counts[rows].toarray().ravel()
        place = (np.log10(np.maximum(rates, 1e-300)) + 16) * _FINE
        fine = np.clip(place, 0, sums.shape[1] - 1).astype(np.intp)
        for total, weights in zip(sums, (None, predicted, observed, observed**2), strict=True):
            total += np.bincount(fine, weights, minlength=len(total))
    middle = np.cumsum(sums[1]) - sums[1] / 2
    share = middle / max(sums[1].sum(), np.finfo(np.float64).tiny)
    group = np.minimum((groups * share).astype(np.intp), groups - 1)
    of_groups = np.stack([np.bincount(group, one, minlength=groups) for one in sums])
    of_groups = of_groups[:, of_groups[0] > 0]
    pairs = of_groups[0]
    means, squares = of_groups[1:3] / pairs, of_groups[3] / pairs
    error = np.sqrt(np.maximum(squares - means[1] ** 2, 0) / pairs)
    columns = {"pairs": pairs.astype(np.int64), "predicted": means[0], "observed": means[1], "error": error}
    return pd.DataFrame(columns)


def posterior_predictive(
    model: HPF | HPFEnsemble, data: Any = None, *, draws: int = 20, random_seed: int = 0
) -> pd.DataFrame:
    """Counts drawn from the model beside those observed: of pairs, and the totals of users and of items.

    For each draw, factors are drawn from their posterior, if the model has it (``keep_all_objs=True``), and
    counts from the Poisson distribution.  Of large models, some users are drawn at random, once.  In a model
    with neighbours each count is drawn given the user's observed items.  Ensembles have no posterior: their
    combined expected counts are fixed.

    Parameters
    ----------
    model, data
        As for :func:`activity`.  Without ``data`` any count is taken as 1, and totals are numbers of items
        and users.
    draws : int
        Number of draws.
    random_seed : int
        Seed of all draws.

    Returns
    -------
    DataFrame
        Columns ``of`` ('pair', 'user' or 'item'); ``low`` and ``high``, a range of counts or totals, both
        included; ``observed``, how many are in this range; ``drawn_low``, ``drawn`` and ``drawn_high``, the
        5, 50 and 95 % quantiles of the same in the draws.  The first row has the pairs without a count.

    Raises
    ------
    ValueError, TypeError
        As for :func:`activity`.
    """
    draws = whole_number("draws", draws, 1)
    question = Observed.of(model, data)
    rows = question.sample(_DRAWN, random_seed)
    drawn_rates = _drawn_rates(model, question, rows)
    rng = np.random.default_rng(random_seed)
    observed = question.counts[rows].toarray()
    drawn = []
    for _ in range(draws):
        counts = rng.poisson(np.clip(drawn_rates(rng), 0, _LARGEST))
        drawn.append(_numbers(np.minimum(counts, 1) if question.presence else counts))
    return pd.concat(
        [
            _compared(of, _numbers(observed)[of], [numbers[of] for numbers in drawn])
            for of in ("pair", "user", "item")
        ],
        ignore_index=True,
    )


# -- draws ---------------------------------------------------------------------------------------


def _drawn_rates(
    model: HPF | HPFEnsemble, question: Observed, rows: NDArray[np.intp]
) -> Callable[[np.random.Generator], NDArray[Any]]:
    """Function that draws rates (B, M) of some users (B,) from the posterior; what has none is fixed."""
    rates = all_scores(question.ensemble, rows).astype(np.float64)
    fitted = None if isinstance(model, HPFEnsemble) else model._require_fitted()
    if fitted is None or fitted.posteriors is None:
        return lambda rng: rates
    of_users, of_items = fitted.posteriors
    theta, beta = Gammas.of(fitted.theta[rows], of_users.shape[rows]), Gammas.of(fitted.beta, of_items.shape)
    neighbours = (
        0.0 if fitted.neighbours is None else rates - fitted.theta[rows] @ fitted.beta.T.astype(np.float64)
    )
    return lambda rng: theta.draw(rng, 1)[0] @ beta.draw(rng, 1)[0].T + neighbours


def _numbers(counts: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    """Numbers of pairs, users and items whose count or total is 0, 1, 2 to 3, 4 to 7 and so on, rounded."""
    totals = {"pair": counts.ravel(), "user": counts.sum(axis=1), "item": counts.sum(axis=0)}
    numbers = {}
    for of, values in totals.items():
        some = np.rint(values[values >= 0.5])  # few, of pairs
        of_some = np.bincount(1 + np.log2(some).astype(np.intp), minlength=1)
        of_some[0] = len(values) - len(some)
        numbers[of] = of_some
    return numbers


def _compared(of: str, observed: NDArray[Any], drawn: list[NDArray[Any]]) -> pd.DataFrame:
    size = max(len(observed), *(len(numbers) for numbers in drawn))
    all_drawn = np.array([np.pad(numbers, (0, size - len(numbers))) for numbers in drawn])
    low, median, high = np.quantile(all_drawn, [0.05, 0.5, 0.95], axis=0)
    edges = np.concatenate([[0], 2 ** np.arange(size)])
    columns = {
        "of": of,
        "low": edges[:-1],
        "high": edges[1:] - 1,
        "observed": np.pad(observed, (0, size - len(observed))),
    }
    return pd.DataFrame(columns | {"drawn_low": low, "drawn": median, "drawn_high": high})


# -- counts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observed:
    """What a model is compared with; each check takes it as ``data``, too, so that data are read once."""

    ensemble: Ensemble
    counts: sparse.csr_array  # (N, M)
    presence: bool  # whether counts are ones, for any count

    @staticmethod
    def of(model: HPF | HPFEnsemble, data: Any) -> Observed:
        """The data, or what the model has kept if they are None."""
        if isinstance(data, Observed):
            return data
        ensemble = as_ensemble(model)
        if data is None:
            return Observed(ensemble, ensemble.items_of_users, presence=True)
        taken = model._taken("a check of") if isinstance(model, HPFEnsemble) else model.counts
        dtype, columns = ensemble.dtype.type, model._columns
        triplets = read(data, dtype=dtype, name="data", taken=taken, columns=columns)
        pairs = held_out_pairs(triplets, ensemble.user_ids, ensemble.item_ids, name="data")
        shape = (ensemble.user_ids.size, ensemble.item_ids.size)
        at = (pairs.values.astype(np.float64), (pairs.rows, pairs.columns))
        return Observed(ensemble, sparse.coo_array(at, shape=shape).tocsr(), presence=False)

    def sample(self, n_pairs: int, seed: int) -> NDArray[np.intp]:
        """Row numbers of the users, or of so many that with all items there are about ``n_pairs`` pairs."""
        n_users, n_items = self.counts.shape
        wanted = max(_FEWEST_USERS, n_pairs // n_items)
        if wanted >= n_users:
            return np.arange(n_users)
        return np.sort(np.random.default_rng(seed).choice(n_users, wanted, replace=False))


def _blocks(rows: NDArray[np.intp], n_items: int) -> Iterator[NDArray[np.intp]]:
    step = max(1, _BLOCK // n_items)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
