"""Small models with neighbours, and what the oracle makes of them."""

from __future__ import annotations

import numpy as np
import oracle
import pandas as pd
from problems import planted_counts
from scipy import sparse

from hpf_gpu import HPF

PRIORS = oracle.Priors(0.4, 0.5, 1.3, 0.2, 0.7, 0.6)
SEED, W_SHAPE, W_RATE = 2, 0.35, 3.0


def counts():
    """Counts (N, M) in which every third item comes with the one before it; a user and an item are empty."""
    y, rng = planted_counts(40, 24), np.random.default_rng(3)
    y[:, 1::3] += rng.poisson(1.5 * (y[:, ::3] > 0))
    y[7] = y[:, 5] = 0
    return y


Y = counts()
N, M = Y.shape
GIVEN = np.random.default_rng(9).gamma(0.5, 1.0, (max(Y.shape), 3)) + 0.01

WAYS = {
    "both": {},
    "T = 1": {"temperature": 1.0},
    "no factors": {"k": 0},
    "no factors, T = 1": {"k": 0, "temperature": 1.0},
    "no hierarchy": {"hierarchical": False, "temperature": 2.0},
    "no factors, no hierarchy": {"k": 0, "hierarchical": False},
    "biases": {"bias": True},
    "items fixed": {"known_items": GIVEN[:M]},
    "users fixed": {"known_users": GIVEN[:N], "temperature": 1.0},
    "many neighbours": {"neighbours": 40},
}


def model_of(way="both", *, backend="auto", **others):
    parameters = {name: value for name, value in WAYS[way].items() if "known" not in name}
    arguments = {
        **vars(PRIORS), "k": 3, "neighbours": 6, "w_shape": W_SHAPE, "w_rate": W_RATE, "random_seed": SEED,
        "stop_crit": "maxiter", "maxiter": 5, "check_every": 1, "verbose": False, "backend": backend,
        "compute_elbo": True, "use_float": False,
    }  # fmt: skip
    return HPF(**arguments | parameters | others)


def fit(model, way="both", y=Y, **options):
    """Fit with a check after every iteration."""
    fixed = {
        name.replace("known", "fixed"): value for name, value in WAYS[way].items() if name.startswith("known")
    }
    model.verbose = True
    try:
        return model.fit(sparse.csr_array(y), **fixed, **options)
    finally:
        model.verbose = False


def weights_of(model):
    return model._fitted.neighbours


def dense_weights(model, y=Y):
    """q(w) of a fitted model, for the oracle."""
    found = weights_of(model)
    rate = model.w_rate + oracle.users_with(y, found.sources)
    gamma = oracle.Gamma(found.shape.astype(np.float64), rate)
    return oracle.Weights(gamma, found.sources, model.w_shape, model.w_rate, model.temperature)


def dense_rates(model, y=Y):
    """Expected counts of all pairs (N, M), for the items that users have in ``y``."""
    found = weights_of(model)
    return oracle.rates_with_neighbours(y, model.Theta, model.Beta, found.mean, found.sources)


def rows_of(y, first=0):
    """Counts (n, M) as a frame of users with the numbers from ``first`` on."""
    users, items = y.nonzero()
    return pd.DataFrame({"UserId": users + first, "ItemId": items, "Count": y[users, items]})


FRAME = rows_of(Y)
