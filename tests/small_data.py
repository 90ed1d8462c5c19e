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
