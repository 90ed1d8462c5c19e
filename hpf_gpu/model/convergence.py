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


@dataclass(frozen=True)
class Check:
    """One row of the history: figures after ``iteration`` iterations; NaN where not computed."""

    iteration: int
    llk: float = math.nan
    elbo: float = math.nan
    val_llk: float = math.nan
    diff_norm: float = math.nan
    seconds: float = math.nan


def has_converged(stop_crit: str, stop_thr: float, previous: Check | None, current: Check) -> bool:
    """Whether the monitored quantity improved by at most ``stop_thr`` since the last check.

    For likelihoods and the ELBO the improvement is relative to their magnitude.  (hpfrec's
    1 − current/previous is the same number for negative likelihoods and has the wrong sign for positive
    ones.)  The rule diff-norm is met when the norm of the change in Theta is below ``stop_thr``.
    """
    watched = STOP_CRITERIA[stop_crit]
    if watched is None:
        return False
    value: float = getattr(current, watched)
    if watched == "diff_norm":
        return value < stop_thr
    if previous is None:
        return False
    last: float = getattr(previous, watched)
    return value - last <= stop_thr * abs(last)


def history_frame(history: Sequence[Check], stop_crit: str) -> pd.DataFrame:
    """The checks of a fit, one row each; the column diff_norm only with the rule diff-norm."""
    columns = ["iteration", "llk", "elbo", "val_llk", "seconds"]
    if stop_crit == "diff-norm":
        columns.append("diff_norm")
    types = dict.fromkeys(columns, "float64") | {"iteration": "int64"}  # of an empty history, too
    return pd.DataFrame([vars(check) for check in history], columns=columns).astype(types)
