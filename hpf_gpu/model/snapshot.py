"""A model in the middle of a fit, copied to the host, so that the fit can return to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Backend, Host

from .neighbours import weights_of_shapes
from .posterior import Posterior
from .sides import Model, posterior_of, side_from_posterior


@dataclass(frozen=True)
class Snapshot:
    """A copy of a model, without momentum."""

    users: Posterior  # of all blocks
    items: Posterior
    weights: Host | None  # (M, L) shapes of q(w)

    @staticmethod
    def of(backend: Backend, model: Model) -> Snapshot:
        """A copy of this model."""
        weights = model.items.weights
        return Snapshot(
            posterior_of(backend, model.users),
            posterior_of(backend, [model.items]),
            None if weights is None else backend.asnumpy(weights.factor.shape),
        )

    def restored(self, backend: Backend, later: Model) -> Model:
        """The model in the backend's memory, in the blocks of a later model of the same fit."""
        ends = np.cumsum([users.factor.shape.shape[0] for users in later.users])
        blocks = (
            slice(end - users.factor.shape.shape[0], end)
            for users, end in zip(later.users, ends, strict=True)
        )
        users = tuple(side_from_posterior(backend, self.users.rows(block)) for block in blocks)
        items, weights = side_from_posterior(backend, self.items), later.items.weights
        if weights is not None and self.weights is not None:
            items = replace(items, weights=weights_of_shapes(backend, weights, self.weights))
        return Model(users, items)


@dataclass(frozen=True)
class Best:
    """The model with the best log-likelihood of held-out counts so far."""

    iteration: int
    val_llk: float
    snapshot: Snapshot
