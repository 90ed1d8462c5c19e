"""The parity contract with hpfrec 0.2.14: data sets, runs and how far apart they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpf_gpu.datasets import load_online_retail

MATRICES = ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte")

#: Largest relative Frobenius error by dtype and iterations.  Beside it the largest one measured: numpy and
#: openmp with every instruction set, K = 5, 30, 64, sum_exp_trick on and off, both data sets.
LIMITS = {
    ("float64", 10): 1e-9,  # 8e-14
    ("float64", 100): 1e-8,  # 9e-13
    ("float32", 2): 1e-5,  # 2.2e-6
    ("float32", 10): 1e-4,  # 1.3e-5
}
#: After 100 float32 iterations: shapes and predictions, and the others once one scalar per factor is
#: taken out.
LIMIT_FLOAT32_100 = 5e-3  # 4.0e-4

#: Fits of which some rows are kept as golden figures: data set, k, use_float, iterations.
GOLDEN_CASES = [
    ("online_retail", 30, False, 10),
    ("online_retail", 30, False, 100),
    ("online_retail", 30, True, 2),
    ("online_retail", 30, True, 10),
    ("online_retail", 30, True, 100),
    ("random_strings", 5, False, 100),
    ("random_strings", 5, True, 10),
    ("random_strings", 64, False, 10),
    ("random_strings", 64, True, 2),
]
GOLDEN_FILE = Path(__file__).resolve().parent / "golden" / "hpfrec_0.2.14.npz"


def golden_rows(matrix: Any) -> Any:
    """Sixteen rows, spread evenly."""
    return matrix[np.linspace(0, len(matrix) - 1, 16).astype(int)]


def online_retail() -> pd.DataFrame:
    """Quantities bought, 264,673 counts."""
    return load_online_retail().purchases[["UserId", "ItemId", "Count"]]


def some_customers() -> pd.DataFrame:
    """Those of every fifth customer: hpfrec takes ten seconds for ten iterations of all, with K=64."""
    purchases = online_retail()
    return purchases[purchases.UserId % 5 == 0].reset_index(drop=True)


def random_strings() -> pd.DataFrame:
    """6,000 counts of 300 users and 200 items with string ids, a few pairs given twice."""
    rng = np.random.default_rng(7)
    users, items = rng.zipf(1.3, 6000) % 300, rng.zipf(1.2, 6000) % 200
    return pd.DataFrame(
        {
            "UserId": [f"user {u}" for u in users],
            "ItemId": [f"item-{i:03d}" for i in items],
            "Count": rng.poisson(3.0, 6000) + 1,
        }
    )


DATA = {
    "online_retail": online_retail,
    "some_customers": some_customers,
    "random_strings": random_strings,
}


def parameters(k: int, use_float: bool, iterations: int, sum_exp_trick: bool = False) -> dict[str, Any]:
    """Constructor arguments that hpfrec and hpf_gpu understand alike."""
    return {
        "k": k,
        "use_float": use_float,
        "maxiter": iterations,
        "sum_exp_trick": sum_exp_trick,
        "stop_crit": "maxiter",
        "check_every": 1,
        "random_seed": 123,
        "verbose": False,
    }


def relative_error(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in float64."""
    theirs = np.asarray(theirs, dtype=np.float64)
    return float(np.linalg.norm(np.asarray(ours, dtype=np.float64) - theirs) / np.linalg.norm(theirs))


def without_scales(left: Any, right: Any) -> tuple[Any, Any]:
    """θ and β with the mean of each factor's column moved from θ to β: the product is the same."""
    scale = np.asarray(left, dtype=np.float64).mean(axis=0)
    return left / scale, right * scale


def matrices_of(model: Any) -> dict[str, Any]:
    """The matrices that are compared, of a fitted model of either package."""
    return {name: getattr(model, name) for name in MATRICES}


def assert_parity(ours: dict[str, Any], theirs: dict[str, Any], use_float: bool, iterations: int) -> None:
    """Hold fitted matrices (or the same rows of both) against hpfrec's."""
    limit = LIMITS.get(("float32" if use_float else "float64", iterations))
    if limit is not None:
        errors = {name: relative_error(ours[name], theirs[name]) for name in MATRICES}
    else:
        errors, limit = float32_errors(ours, theirs), LIMIT_FLOAT32_100
    assert max(errors.values()) < limit, errors


def float32_errors(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Errors after many float32 iterations, where hpfrec's float32 sums let the scale of a factor drift."""
    errors = {name: relative_error(ours[name], theirs[name]) for name in ("Gamma_shp", "Lambda_shp")}
    errors["predictions"] = relative_error(ours["Theta"] @ ours["Beta"].T, theirs["Theta"] @ theirs["Beta"].T)
    for left, right in (("Theta", "Beta"), ("Gamma_rte", "Lambda_rte")):
        mine, other = without_scales(ours[left], ours[right]), without_scales(theirs[left], theirs[right])
        errors |= {left: relative_error(mine[0], other[0]), right: relative_error(mine[1], other[1])}
    return errors
