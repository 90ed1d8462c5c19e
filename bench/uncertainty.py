"""The figures of docs/uncertainty.md: bounds beside draws, coverage of drawn data, measures of similarity.

    python bench/uncertainty.py

Takes 90 seconds of one core.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import sparse, stats

from hpf_gpu import HPF
from hpf_gpu.answers.similarity import profile
from hpf_gpu.datasets import OnlineRetail, load_online_retail, split_by_user
from hpf_gpu.ranking import top_columns

DRAWS, PAIRS, LEVEL = 4000, 600, 0.9
#: Words of product names that say nothing about what the product is.
COMMON = {
    "OF", "THE", "AND", "SET", "IN", "WITH", "A", "FOR", "SMALL", "LARGE", "RED", "BLUE", "PINK", "WHITE",
    "BLACK", "GREEN", "ASSORTED", "DESIGN", "ON", "TO", "2", "3", "4", "6", "10", "12",
}  # fmt: skip
MODELS = ({"k": 30}, {"k": 100}, {"k": 50, "counts": "log1p"}, {"k": 50, "counts": "binary"})
#: Users, items, factors, and the mean of the activities and popularities, which sets the level of the counts.
WORLDS = ((200, 150, 5, 1.0), (200, 150, 5, 0.3), (1000, 500, 10, 1.0))


def orders(retail: OnlineRetail) -> pd.DataFrame:
    return retail.purchases[["UserId", "ItemId"]].assign(Count=retail.purchases["Orders"])


# -- bounds ----------------------------------------------------------------------------------------


def bounds(model: HPF, users: pd.Series, items: pd.Series) -> list[float]:
    """Shares of the draws below the bounds, and the largest errors of the upper one and of P(y > 0)."""
    below, errors = [], []
    for start in range(0, len(users), 200):  # the draws of 200 pairs at a time
        pair = users[start : start + 200], items[start : start + 200]
        got, drawn = model.predict_interval(*pair, LEVEL), model.sample_rates(*pair, DRAWS, start)
        below.append([(drawn <= got[name].to_numpy()).mean(axis=0) for name in ("Lower", "Upper")])
        errors.append(model.predict_proba(*pair) - -np.expm1(-drawn).mean(axis=0))
    lower, upper = np.concatenate(below, axis=1)
    of_upper = np.abs(upper - (1 + LEVEL) / 2).max()
    return [lower.mean(), upper.mean(), of_upper, np.abs(np.concatenate(errors)).max()]


def table_of_bounds(counts: pd.DataFrame) -> pd.DataFrame:
    train, held_out = split_by_user(counts)
    model = HPF(k=30, random_seed=1, verbose=False).fit(train)
    best = model.recommend(model.user_mapping_[:PAIRS], n=1)
    held_out = held_out[held_out["ItemId"].isin(model.item_mapping_)].sample(PAIRS, random_state=1)
    rng = np.random.default_rng(0)
    users, items = (pd.Series(rng.choice(ids, PAIRS)) for ids in (model.user_mapping_, model.item_mapping_))
    found = {
        "recommended": bounds(model, best["UserId"], best["ItemId"]),
        "held out": bounds(model, held_out["UserId"], held_out["ItemId"]),
        "any": bounds(model, users, items),
    }
    return pd.DataFrame(found, index=["below lower", "below upper", "largest error", "of P(y > 0)"]).T


# -- coverage --------------------------------------------------------------------------------------


def coverage(n: int, m: int, k: int, level: float, seed: int) -> dict[str, float]:
    """Of data drawn from the model: the share of new counts, and of true rates, in the intervals of a fit."""
    rng = np.random.default_rng(seed)
    activity, popularity = rng.gamma(5, level / 5, n), rng.gamma(5, level / 5, m)
    theta, beta = rng.gamma(0.3, 1, (n, k)), rng.gamma(0.3, 1, (m, k))
    rates = (theta / activity[:, None]) @ (beta / popularity[:, None]).T
    y, later = rng.poisson(rates), rng.poisson(rates)
    model = HPF(
        k=k, a=0.3, c=0.3, a_prime=5, c_prime=5, b_prime=level, d_prime=level, use_float=False, reindex=False,
        stop_crit="elbo", stop_thr=1e-6, maxiter=300, random_seed=1, verbose=False,
    ).fit(sparse.csr_array(y))  # fmt: skip
    users, items = np.divmod(np.arange(model.nusers * model.nitems), model.nitems)
    true, new = rates[users, items], later[users, items]
    rate, count = (model.predict_interval(users, items, LEVEL, of=of) for of in ("rate", "count"))
    shape = rate["Mean"] ** 2 / rate["Std"] ** 2
    uncertain, known = stats.nbinom(shape, shape / (shape + rate["Mean"])), stats.poisson(rate["Mean"])
    low, high = (known.ppf(p) for p in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    found = {
        "mean count": y.mean(),
        "inside": ((count["Lower"] <= new) & (new <= count["Upper"])).mean(),
        "said": (uncertain.cdf(count["Upper"]) - uncertain.cdf(count["Lower"] - 1)).mean(),
        "inside, rates known": ((low <= new) & (new <= high)).mean(),
        "said, rates known": (known.cdf(high) - known.cdf(low - 1)).mean(),
        "true rates inside": ((rate["Lower"] <= true) & (true <= rate["Upper"])).mean(),
    }
    probability = model.predict_proba(users, items)
    for first, last in ((0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.95)):
        some = (first <= probability) & (probability < last)
        found |= {
            f"P {first}-{last}": probability[some].mean(),
            f"y > 0 {first}-{last}": (new > 0)[some].mean(),
        }
    return found


# -- similarities ----------------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def similarities(model: HPF) -> Iterator[tuple[str, np.ndarray]]:
    """Rows whose products are the similarities of items."""
    theta, beta = model.Theta.astype(np.float64), model.Beta.astype(np.float64)
    shares = beta * theta.sum(axis=0)
    shares /= shares.sum(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(theta.T @ theta)
    yield "correlation of roots", profile(beta, theta)
    yield "roots", np.sqrt(shares)
    yield "cosine of Beta", unit(beta)
    yield "correlation of shares", unit(shares - shares.mean(axis=0))
    yield "cosine of shares", unit(shares)
    yield "cosine of expected counts", unit(beta @ (vectors * np.sqrt(np.maximum(values, 0))))


def table_of_similarities(counts: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    found = []
    for seed in (1, 2):
        train, held_out = split_by_user(counts, seed=seed)
        for parameters in MODELS:
            model = HPF(**parameters, random_seed=seed, verbose=False).fit(train)
            rows, columns = (
                pd.Series(range(len(ids)), ids) for ids in (model.user_mapping_, model.item_mapping_)
            )
            kept = held_out[held_out["ItemId"].isin(columns.index)]
            shape = len(rows), len(columns)
            had = sparse.csr_array(
                (np.ones(len(kept)), (rows[kept["UserId"]], columns[kept["ItemId"]])), shape
            )
            together = (had.T @ had).toarray()
            by_chance = np.outer(had.sum(axis=0), had.sum(axis=0)) / (had.sum(axis=1) > 0).sum()
            words = [set(re.findall(r"[A-Z0-9']+", str(names.get(it)))) - COMMON for it in columns.index]
            asked = np.flatnonzero(train["ItemId"].value_counts().reindex(columns.index, fill_value=0) >= 10)
            for name, profiles in similarities(model):
                similarity = profiles[asked] @ profiles.T
                similarity[np.arange(len(asked)), asked] = -np.inf
                best = top_columns(similarity, 10)
                pairs = asked[:, None], best
                shared = [bool(words[i] & words[j]) for i, row in zip(asked, best, strict=True) for j in row]
                held = together[pairs]
                found.append((name, np.mean(shared), held.mean(), held.sum() / by_chance[pairs].sum()))
    table = pd.DataFrame(found, columns=["similarity", "word in common", "held-out pairs", "times chance"])
    return table.groupby("similarity", sort=False).mean()


def main() -> None:
    retail = load_online_retail()
    tables = [table_of_bounds(orders(retail))]
    for world in WORLDS:
        found = pd.DataFrame([coverage(*world, seed) for seed in range(3)])
        tables.append(found.agg(["mean", "std"]).T.rename_axis(str(world)))
    tables.append(table_of_similarities(orders(retail), retail.product_names))
    sys.stdout.write("\n\n".join(table.round(4).to_string() for table in tables) + "\n")


if __name__ == "__main__":
    main()
