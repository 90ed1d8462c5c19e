"""What a fit leaves, as one value that is never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.answers.ranking import UserItems
from hpf_gpu.data.ids import Ids

from .variational import Posterior


@dataclass(frozen=True)
class Fitted:
    """A fitted model without its settings; ValueError if Theta or Beta are too large for their type.

    Whatever changes a model makes a new value and hands it over in one assignment, so an interrupt leaves
    the old model or the new one.  Whatever answers takes the value once, so a thread that reads while
    another fits gets the answer of one model, never a mixture of two.
    """

    theta: NDArray[Any]  # (N, K) E[θ]
    beta: NDArray[Any]  # (M, K) E[β]
    user_ids: Ids  # of the N rows
    item_ids: Ids  # of the M rows
    nusers: int  # how many there are in all, those that no batch has brought yet included
    nitems: int
    posteriors: tuple[Posterior, Posterior] | None  # of users and items; None without keep_all_objs
    seen: UserItems | None  # items of each user; None without keep_data
    niter: int
    train_llk: float | None
    history: pd.DataFrame
    seed: int  # that the start values were drawn with
    backend: str  # name of the one that fitted

    def __post_init__(self) -> None:
        for name, mean in (("Theta", self.theta), ("Beta", self.beta)):
            if np.isinf(mean).any():
                raise ValueError(
                    f"{name} is too large for {mean.dtype}: take use_float=False, or priors nearer to 1"
                )

    @property
    def known_posteriors(self) -> tuple[Posterior, Posterior]:
        """Shapes and rates of users and items; ValueError if they were not kept."""
        if self.posteriors is None:
            raise ValueError("fold-in needs shapes and rates, which keep_all_objs=False has dropped")
        return self.posteriors
