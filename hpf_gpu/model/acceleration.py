"""Acceleration: momentum in E[ln θ], and the safeguard that keeps the ELBO from falling.

An accelerated iteration is an ordinary one from a point ahead of the last model.  There, with k iterations
since the start of the momentum,::

    E[ln θ] + k/(k + 1) (E[ln θ] − E[ln θ] of the model before the last)

takes the place of E[ln θ] in φ, for users, items and weights; everything else is that of the last model.
This is the momentum of Nesterov (1983) with faster growing coefficients, on the scale in which φ is linear
before it is normalized.  An iteration still takes one pass over the nonzeros, and one more matrix for each
side: exp E[ln θ] ahead.

From such a point the ELBO may fall, unlike from the last model.  So it is computed after every
SAFEGUARD_EVERY iterations and at checks.  If it has fallen since it was last computed, the fit returns to the
model of that time, which is kept on the host, and momentum begins again; at the second fall after the same
model only after SAFEGUARD_EVERY iterations, which cannot fall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, Factor, Full

from .sides import Model, Momentum, Past, Side
from .snapshot import Snapshot

#: Iterations between two computations of the ELBO, and those without momentum after it has fallen twice.
SAFEGUARD_EVERY = 10


def with_momentum(backend: Backend, model: Model, *, plain: int = 0) -> Model:
    """The model with momentum that begins here, unless it has momentum or start values.

    The next ``plain`` + 1 iterations are ordinary ones.
    """
    sides = (*model.users, model.items)
    if model.momentum is not None or any(isinstance(side.factor.rates, Full) for side in sides):
        return model
    *users, items = (None if side.fixed else _past(side.factor) for side in sides)
    weights = model.items.weights
    of_weights = None if weights is None else _past(weights.factor)
    steps = backend.asarray(np.array([-float(plain)]))
    return replace(model, momentum=Momentum(steps, tuple(users), items, of_weights))


def accelerated(backend: Backend, update: Callable[[Model], Model], model: Model) -> Model:
    """``update``, one iteration of coordinate ascent, from the point ahead of a model with momentum."""
    momentum = model.momentum
    if momentum is None:
        return update(model)
    ahead = _ahead(backend, model, momentum)
    updated = update(ahead)
    # The spare matrices are those of the last model, of which the point ahead has the shapes alone.
    users = tuple(_from(old, new) for old, new in zip(model.users, updated.users, strict=True))
    items = _from(model.items, updated.items)
    past = [
        None if old.fixed else _past(old.factor, point.factor.exp_log)
        for old, point in zip((*model.users, model.items), (*ahead.users, ahead.items), strict=True)
    ]
    of_weights = None
    old_weights, point_weights = model.items.weights, ahead.items.weights
    if old_weights is not None and point_weights is not None and items.weights is not None:
        items = replace(items, weights=replace(items.weights, spare=old_weights.factor.matrices))
        of_weights = _past(old_weights.factor, point_weights.factor.exp_log)
    return Model(users, items, Momentum(momentum.steps + 1.0, tuple(past[:-1]), past[-1], of_weights))


def _ahead(backend: Backend, model: Model, momentum: Momentum) -> Model:
    """The point ahead of a model."""

    def moved(factor: Factor, past: Past) -> Factor:
        return backend.extrapolate(factor, (past.exp_log, past.log_scale), momentum.steps, past.ahead)

    def of_side(side: Side, past: Past | None) -> Side:
        return side if past is None else replace(side, factor=moved(side.factor, past))

    users = tuple(of_side(side, past) for side, past in zip(model.users, momentum.users, strict=True))
    items, weights = of_side(model.items, momentum.items), model.items.weights
    if weights is not None and momentum.weights is not None:
        items = replace(items, weights=replace(weights, factor=moved(weights.factor, momentum.weights)))
    return Model(users, items)


def _past(factor: Factor, ahead: Array | None = None) -> Past:
    """What the iteration after the next needs of a factor."""
    log_scale = factor.log_scale * 1.0  # a copy: no state has vectors of the one before
    return Past(factor.exp_log, log_scale, ahead)


def _from(old: Side, new: Side) -> Side:
    return new if old.fixed else replace(new, spare=old.factor.matrices)


# -- the safeguard -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """The model with the last ELBO that had not fallen, on the host.

    ``iteration`` says when an ELBO was last compared with it, and ``falls`` how often it was higher.
    """

    iteration: int
    falls: int
    elbo: float
    snapshot: Snapshot

    def restored(self, backend: Backend, fallen: Model) -> Model:
        """The model that takes the place of one whose ELBO has fallen; momentum begins there."""
        model = self.snapshot.restored(backend, fallen)
        return with_momentum(backend, model, plain=SAFEGUARD_EVERY if self.falls else 0)
