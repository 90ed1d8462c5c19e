"""All that a fit leaves, as one value that is never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import UserItems

from .posterior import Posterior


@dataclass(frozen=True)
class Fitted:
    """A fitted model without its settings.

    Whatever changes a model makes a new value, which the model takes in one assignment, so an interrupt
    leaves the old model or the new one.  Whatever answers takes the value once, so a thread that reads while
    another fits gets the answer of one model, never of a mixture of two.

    Raises
    ------
    ValueError
        If Theta or Beta are too large for their type.
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
    def k(self) -> int:
        """Columns K of Theta and Beta, those of biases included."""
        return int(self.theta.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return np.dtype(self.theta.dtype)

    def require_posteriors(self) -> tuple[Posterior, Posterior]:
        """Shapes and rates of users and items; ValueError if they were not kept."""
        if self.posteriors is None:
            raise ValueError("fold-in needs shapes and rates, which keep_all_objs=False has dropped")
        return self.posteriors

    def posterior(self, side: int) -> Posterior:
        """Shapes and rates of users (0) or items (1); AttributeError, for hasattr, if they were not kept."""
        if self.posteriors is None:
            raise AttributeError("shapes and rates exist after fit with keep_all_objs=True")
        return self.posteriors[side]

    def hyper_rate(self, side: int) -> NDArray[Any]:
        """Rates of q(ξ) (N, 1) or q(η) (M, 1); AttributeError if there is no such distribution."""
        posterior = self.posterior(side)
        if not posterior.has_hyper_rate:
            raise AttributeError(
                "a side that is fixed has no such rates, nor has a model that is not hierarchical"
            )
        return np.asarray(posterior.hyper_rate[:, None].astype(posterior.shape.dtype))
