"""Small data and models that several tests take, and ids of every type."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd

from hpf_gpu import HPF


def planted(n=60, m=40, k=3, seed=5):
    """Counts of users who each like the items of one group, and a little of all."""
    rng = np.random.default_rng(seed)
    rate = 0.05 + 4.0 * (np.arange(n)[:, None] % k == np.arange(m) % k)
    dense = rng.poisson(rate * rng.gamma(3.0, 1 / 3, (n, 1)))
    users, items = dense.nonzero()
    return pd.DataFrame({"UserId": users + 100, "ItemId": items + 500, "Count": dense[users, items]})


COUNTS = planted()


def quick(**arguments):
    return HPF(**{"k": 3, "maxiter": 20, "random_seed": 1, "verbose": False} | arguments)


def of_user(user, frame=COUNTS):
    return frame.loc[frame.UserId == user, ["ItemId", "Count"]]


#: Forty ids, by their type.
IDS = {
    "strings": [f"u{j}" for j in range(40)],
    "tuples": [(j, "x") for j in range(40)],
    "mixed": [j if j % 2 else str(j) for j in range(40)],
    "dates": list(pd.date_range("2020-01-01", periods=40)),
    "zoned": list(pd.date_range("2020-01-01", periods=40, tz="Europe/Vienna")),
    "floats": [j + 0.5 for j in range(40)],
    "bytes": [b"%d" % j for j in range(40)],
    "fractions": [Fraction(j, 7) for j in range(40)],
    "decimals": [Decimal(j) / 3 for j in range(40)],
    "frozensets": [frozenset({j, "a"}) for j in range(40)],
    "negative": list(range(-20, 20)),
    "huge": [2**62 + j for j in range(40)],
}

MATRICES = ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "k_rte", "t_rte")


def assert_same(twin, model):
    """Every attribute and every answer are the same, bit by bit."""
    for name in MATRICES:
        if hasattr(model, name):
            got, want = getattr(twin, name), getattr(model, name)
            assert got.dtype == want.dtype
            assert np.array_equal(got, want), name
        else:
            assert not hasattr(twin, name)
    for mapping in ("user_mapping_", "item_mapping_"):
        got, want = getattr(twin, mapping), getattr(model, mapping)
        if want is None:
            assert got is None
        else:
            assert got.dtype == want.dtype
            assert got.tolist() == want.tolist()
            assert list(map(type, got.tolist())) == list(map(type, want.tolist()))
    for name in ("nusers", "nitems", "niter", "train_llk", "random_seed_", "backend_", "is_fitted"):
        assert getattr(twin, name) == getattr(model, name), name
    pd.testing.assert_frame_equal(twin.history_, model.history_)
    assert twin.user_dict_ == model.user_dict_
    users = list(range(model.nusers)) if model.user_mapping_ is None else list(model.user_mapping_)
    seen = {"exclude_seen": model._fitted.seen is not None}
    assert twin.topN(users, n=3, **seen).tolist() == model.topN(users, n=3, **seen).tolist()
