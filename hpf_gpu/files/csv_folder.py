"""The folder of CSV files that hpfrec writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_HYPERPARAMETERS = ("a", "a_prime", "b_prime", "c", "c_prime", "d_prime")
#: File and attribute of each matrix; those that a model does not keep are left out.
_MATRICES = {name: name for name in ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte")}
_MATRICES |= {"kappa_rte": "k_rte", "tau_rte": "t_rte"}
_MAPPINGS = {"users.csv": "user_mapping_", "items.csv": "item_mapping_"}


def write_csv_folder(folder: str | os.PathLike[str], model: Any) -> None:
    """Write a fitted HPF as hpfrec does: comma-separated matrices, id mappings, hyper-parameters.

    Mappings have one id a line under a header; where ids are row numbers there are none.
    """
    target = Path(folder).expanduser()
    for name, attribute in _MATRICES.items():
        if hasattr(model, attribute):
            np.savetxt(target / name, getattr(model, attribute), fmt="%.10f", delimiter=",")
    for name, attribute in _MAPPINGS.items():
        ids = getattr(model, attribute)
        if ids is not None:
            pd.Series(ids).to_csv(target / name, index=False)
    lines = [f"{name}: {float(getattr(model, name)):.3f}" for name in _HYPERPARAMETERS]
    lines += [f"k: {int(model.k)}", f"random seed: {model.random_seed_}"]
    (target / "hyperparameters.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
