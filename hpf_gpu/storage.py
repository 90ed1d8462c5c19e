"""Models on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

HYPERPARAMETERS = ("a", "a_prime", "b_prime", "c", "c_prime", "d_prime")


def write_csv_folder(
    folder: str | os.PathLike[str],
    matrices: Mapping[str, NDArray[Any]],
    mappings: Mapping[str, NDArray[Any] | None],
    hyperparameters: Mapping[str, float],
    k: int,
    seed: int,
) -> None:
    """Write a fitted model as hpfrec does: comma-separated matrices, id mappings, hyper-parameters.

    ``matrices`` become files of their names; ``mappings`` files with one id a line under a header.
    """
    target = Path(folder).expanduser()
    for name, matrix in matrices.items():
        np.savetxt(target / name, matrix, fmt="%.10f", delimiter=",")
    for name, ids in mappings.items():
        if ids is not None:
            pd.Series(ids).to_csv(target / name, index=False)
    lines = [f"{name}: {float(value):.3f}" for name, value in hyperparameters.items()]
    lines += [f"k: {k}", f"random seed: {seed}"]
    (target / "hyperparameters.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
