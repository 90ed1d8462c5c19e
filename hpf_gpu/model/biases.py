"""Biases of users and items: columns of θ and β that are ordinary except at the start of a fit.

Biases that are updated from the start take nearly all counts: while the factors are still alike, each of them
is near its prior, where exp E[ln θ] is much smaller than E[θ].  Biases that start at zero once the factors
differ get no counts, even if the data have nothing but biases.  So biases are pinned near zero for some
updates, and then released with a share of each row's counts.  docs/performance.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpf_gpu.backends.protocol import Array, Backend, RankOne

from .sides import Model, Side

#: Updates for which biases are pinned near zero, and the share of a row's counts that they then get.
WARM_UP, SHARE = 11, 0.1


def warm_up(
    backend: Backend, model: Model, columns: tuple[int, int], update: Callable[[Model], Model]
) -> Model:
    """Run ``update`` while the biases of users and items, in these columns, are pinned; then release them."""
    for _ in range(WARM_UP):
        model = update(model)
    return with_free_biases(backend, model, columns)


def with_free_biases(backend: Backend, model: Model, columns: tuple[int, int]) -> Model:
    """The model with released biases, each with a share of its row's counts."""
    users, items = columns
    item_sums, user_sums = model.items.column_sums, model.user_sums
    return Model(
        tuple(with_share(backend, side, users, item_sums) for side in model.users),
        with_share(backend, model.items, items, user_sums),
    )


def with_share(backend: Backend, side: Side, column: int, other_sums: Array) -> Side:
    """The side whose biases, in this column, are released; ``other_sums`` (K,) are of the other side."""
    prior, k = side.prior.with_free_biases(), side.factor.shape.shape[1]
    taken = [pin.column for pin in side.prior.pins]
    shape = backend.select_rows(side.factor.shape, np.arange(len(side.hyper_rate)))
    factors = backend.select_columns(shape, np.setdiff1d(np.arange(k), taken))
    counts = factors.sum(axis=1) + -prior.shape * (k - len(taken))
    shape *= 1.0 - 2.0 * SHARE  # one share for the biases of this side, one for those of the other side
    shape += 2.0 * SHARE * prior.shape
    shape[:, column] = counts * SHARE + prior.shape
    prior.pin_shapes(shape)
    rates = side.factor.rates
    rows = rates.rows if isinstance(rates, RankOne) else prior.posterior_hyper_shape(k) / side.hyper_rate
    rates = RankOne(rows, prior.column_rates(other_sums))
    factor, row_sums, sums = backend.gamma_update(shape, 0.0, rates, temperature=prior.temperature)
    hyper_rate = prior.next_hyper_rate(row_sums, k)
    return Side(prior, factor, hyper_rate, sums, weights=side.weights)
