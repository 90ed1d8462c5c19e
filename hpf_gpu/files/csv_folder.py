"""Writes the folder of CSV files that hpfrec writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.settings import Settings

_HYPERPARAMETERS = ("a", "a_prime", "b_prime", "c", "c_prime", "d_prime")


def write_csv_folder(folder: str | os.PathLike[str], fitted: Fitted, settings: Settings) -> None:
    """Write a fitted model as hpfrec does: comma-separated matrices, id mappings, hyper-parameters.

    Matrices that the model does not have are omitted.  Mappings have one id per line under a header, and are
    omitted if ids are row numbers.
    """
    target = Path(folder).expanduser()
    for name, matrix in _matrices(fitted).items():
        np.savetxt(target / name, matrix, fmt="%.10f", delimiter=",")
    for name, ids in (("users.csv", fitted.user_ids), ("items.csv", fitted.item_ids)):
        if ids.values is not None:
            pd.Series(ids.values).to_csv(target / name, index=False)
    lines = [f"{name}: {getattr(settings, name):.3f}" for name in _HYPERPARAMETERS]
    lines += [f"k: {settings.k}", f"random seed: {fitted.seed}"]
    (target / "hyperparameters.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _matrices(fitted: Fitted) -> dict[str, NDArray[Any]]:
    """The matrix of each file."""
    matrices = {"Theta": fitted.theta, "Beta": fitted.beta}
    names = (("Gamma_shp", "Gamma_rte", "kappa_rte"), ("Lambda_shp", "Lambda_rte", "tau_rte"))
    for posterior, (shape, rate, hyper_rate) in zip(fitted.posteriors or (), names, strict=False):
        matrices |= {shape: posterior.shape, rate: posterior.rate}
        if posterior.has_hyper_rate:
            matrices[hyper_rate] = posterior.hyper_rate[:, None].astype(posterior.shape.dtype)
    return matrices
