"""The result of a fit, as one immutable value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import UserItems

from .neighbours import Neighbours
from .posterior import Posterior


class ScoreBounds:
    """Bounds of one matrix β for :meth:`Backend.top_items`, made when they are first asked for.

    They are neither saved nor copied.  Several threads that ask first make the same.
    """

    def __init__(self) -> None:
        self._made: tuple[ref[NDArray[Any]], str, Any] | None = None

    def __reduce__(self) -> tuple[type[ScoreBounds], tuple[()]]:
        return ScoreBounds, ()

    def of(self, backend: Backend, beta: NDArray[Any]) -> Any:
        """Those of β (M, K), which from now on cannot be changed in place; None if it has none."""
        made = self._made
        if made is None or made[0]() is not beta or made[1] != backend.name:
            beta.flags.writeable = False  # or lists would be those of numbers that it no longer has
            self._made = made = (ref(beta), backend.name, backend.score_bounds(backend.operand(beta)))
        return made[2]


@dataclass(frozen=True)
class Fitted:
    """A fitted model without its settings.

    A fit, a batch or new users produce a new Fitted, which :class:`hpf_gpu.HPF` takes in one assignment: an
    interrupt leaves either the old or the new model.  Methods that read a model fetch it once, so that a
    thread that reads during a refit never sees a mixture of two models.
    """

    theta: NDArray[Any]  # (N, K) E[θ]
    beta: NDArray[Any]  # (M, K) E[β]
    user_ids: Ids  # of the N rows
    item_ids: Ids  # of the M rows
    nusers: int  # in total, including those that no batch has brought yet
    nitems: int
    posteriors: tuple[Posterior, Posterior] | None  # of users and items; None without keep_all_objs
    seen: UserItems | None  # items of each user; None without keep_data
    niter: int
    train_llk: float | None
    history: pd.DataFrame
    seed: int  # of the start values
    backend: str  # name of the backend that fitted the model
    neighbours: Neighbours | None = None  # of a model with neighbours; it has ``seen``, too
    # Models that were made of this one by adding users have it, too.
    bounds: ScoreBounds = field(default_factory=ScoreBounds, repr=False, compare=False)  # of ``beta``
    library: str | None = None  # narwhals' name of that of the training data, for tables that come out

    @property
    def k(self) -> int:
        """Number of columns K of Theta and Beta, including those of biases."""
        return int(self.theta.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return np.dtype(self.theta.dtype)

    def require_posteriors(self, what: str = "fold-in") -> tuple[Posterior, Posterior]:
        """Posteriors of users and items, for ``what``; ValueError if they were not kept."""
        if self.posteriors is None:
            raise ValueError(f"{what} needs shapes and rates: fit with keep_all_objs=True")
        return self.posteriors

    def posterior(self, side: int) -> Posterior:
        """Posterior of users (0) or items (1); AttributeError, for hasattr, if it was not kept."""
        if self.posteriors is None:
            raise AttributeError("shapes and rates exist only after fit with keep_all_objs=True")
        return self.posteriors[side]

    def hyper_rate(self, side: int) -> NDArray[Any]:
        """Rates of q(ξ) (N, 1) or q(η) (M, 1); AttributeError if there is no such distribution."""
        posterior = self.posterior(side)
        if not posterior.has_hyper_rate:
            raise AttributeError(
                "a fixed side has no rates of q(ξ) or q(η), and neither has a model with hierarchical=False"
            )
        return np.asarray(posterior.hyper_rate[:, None].astype(posterior.shape.dtype))


def checked_mean(name: str, mean: NDArray[Any]) -> NDArray[Any]:
    """Theta or Beta, or new rows of one; ValueError if they overflow their dtype."""
    if np.isinf(mean).any():
        raise ValueError(f"{name} is too large for {mean.dtype}: set use_float=False, or priors closer to 1")
    return mean
