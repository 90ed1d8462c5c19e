"""When to stop: the rules, and the history that they are judged on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

#: What ``stop_crit`` may be, and the quantity in the history that the rule watches.
STOP_CRITERIA = {
    "maxiter": None,
    "train-llk": "llk",
    "val-llk": "val_llk",
    "elbo": "elbo",
    "diff-norm": "diff_norm",
}


@dataclass(frozen=True)
class Check:
    """One row of the history: the state after ``iteration`` full iterations."""

    iteration: int
    llk: float = math.nan
    elbo: float = math.nan
    val_llk: float = math.nan
    diff_norm: float = math.nan
    seconds: float = math.nan


def has_converged(stop_crit: str, stop_thr: float, previous: Check | None, current: Check) -> bool:
    """Whether the monitored quantity improved by at most ``stop_thr`` since the last check.

    For likelihoods and the ELBO this is the gain relative to their magnitude.  (hpfrec's
    1 − current/previous is the same number below zero and has the wrong sign above.)  For diff-norm it is
    the norm of the change in Theta, which must be below ``stop_thr``.
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
    """The checks of a fit, one row each; diff_norm only where the rule watches it."""
    columns = ["iteration", "llk", "elbo", "val_llk", "seconds"]
    if stop_crit == "diff-norm":
        columns.append("diff_norm")
    types = dict.fromkeys(columns, "float64") | {"iteration": "int64"}  # of an empty history, too
    return pd.DataFrame([vars(check) for check in history], columns=columns).astype(types)
