"""Stopping rules, and the history of checks that they use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

#: Values of ``stop_crit``, and the field of Check that each rule monitors.
STOP_CRITERIA = {
    "maxiter": None,
    "train-llk": "llk",
    "val-llk": "val_llk",
    "elbo": "elbo",
    "diff-norm": "diff_norm",
}


class ConvergenceWarning(UserWarning):
    """A fit that ended by ``maxiter`` although its stopping rule had been judged, and was not met."""


@dataclass(frozen=True)
class Check:
    """One row of the history: figures after ``iteration`` iterations; NaN where not computed."""

    iteration: int
    llk: float = math.nan
    elbo: float = math.nan
    val_llk: float = math.nan
    diff_norm: float = math.nan
    seconds: float = math.nan


def keeps_best(stop_crit: str, patience: int | None) -> bool:
    """Whether a fit ends with the best model on held-out counts, and not with the last."""
    return patience is not None and stop_crit == "val-llk"


def has_converged(
    stop_crit: str, stop_thr: float, history: Sequence[Check], patience: int | None = None
) -> bool:
    """Whether a rule is met at the last of these checks.

    Likelihoods, ELBO: whether the quantity improved by at most ``stop_thr``, relative to its magnitude.
    Without ``patience`` this is hpfrec's rule, which compares the last check with the one before.  (hpfrec's
    1 − current/previous is the same number for negative likelihoods and has the wrong sign for positive
    ones.)  With ``patience`` the best value so far is compared with the best of ``patience`` iterations ago:
    it does not matter how many checks lie between, and one bad check is not the end.

    The rule diff-norm: whether the norm of the change in Theta since the last check is below ``stop_thr``.
    With ``patience``, whether its mean per iteration was in all checks of the last ``patience`` iterations.
    """
    watched = STOP_CRITERIA[stop_crit]
    if watched is None:
        return False
    values = [getattr(check, watched) for check in history]
    if patience is None:
        if watched == "diff_norm":
            return bool(values[-1] < stop_thr)
        return len(values) > 1 and _gained_little(stop_thr, values[-2], values[-1])
    before = history[-1].iteration - patience
    older = [value for check, value in zip(history, values, strict=True) if check.iteration <= before]
    if watched == "diff_norm":
        starts = (0, *(check.iteration for check in history[:-1]))
        means = [
            value / (check.iteration - start)
            for check, value, start in zip(history, values, starts, strict=True)
        ]
        return before >= 0 and max(means[len(older) :]) < stop_thr
    return bool(older) and _gained_little(stop_thr, max(older), max(values))


def _gained_little(stop_thr: float, last: float, value: float) -> bool:
    return value - last <= stop_thr * abs(last)


def history_frame(history: Sequence[Check], stop_crit: str) -> pd.DataFrame:
    """The checks of a fit, one row each; the column diff_norm only with the rule diff-norm."""
    columns = ["iteration", "llk", "elbo", "val_llk", "seconds"]
    if stop_crit == "diff-norm":
        columns.append("diff_norm")
    types = dict.fromkeys(columns, "float64") | {"iteration": "int64"}  # of an empty history, too
    return pd.DataFrame([vars(check) for check in history], columns=columns).astype(types)
