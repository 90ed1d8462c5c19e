"""Synthetic counts, the same for the same seed: with power-law degrees, or drawn from the model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import gcd
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

_BLOCK = 1 << 20  # counts that one thread makes at once
_ROW_GROUP = 1 << 22


def power_law_counts(n_users: int, n_items: int, nnz: int, seed: int = 0) -> pd.DataFrame:
    """Data frame of ``nnz`` distinct pairs in random order, ids shuffled, counts Poisson(2) + 1.

    The popularity of user or item r falls as (r + 10)^−0.6 and (r + 10)^−0.8.
    """
    rng = np.random.default_rng(seed)
    users, items = (
        rng.permutation(n)[np.searchsorted(_distribution(n, exponent), rng.random(nnz + nnz // 2))]
        for n, exponent in ((n_users, 0.6), (n_items, 0.8))
    )
    pairs = rng.permutation(np.unique(users * np.int64(n_items) + items))
    if len(pairs) < nnz:
        raise ValueError(f"{n_users} × {n_items} is too small for {nnz} pairs of this popularity")
    pairs = pairs[:nnz]
    return pd.DataFrame(
        {"UserId": pairs // n_items, "ItemId": pairs % n_items, "Count": rng.poisson(2.0, nnz) + 1}
    )


def model_counts(n_users: int, n_items: int, k: int, total: int, seed: int = 0) -> pd.DataFrame:
    """Data frame of counts that add up to about ``total``, drawn from the model with ``k`` factors.

    Unlike :func:`power_law_counts` these have factors to be found.
    """
    rng = np.random.default_rng(seed)
    theta, beta = (
        rng.gamma(0.3, 1 / rng.gamma(1.0, 1.0, (n, 1)).clip(0.1), (n, k)) for n in (n_users, n_items)
    )
    mass = theta.sum(axis=0) * beta.sum(axis=0)  # of each factor
    sizes = rng.poisson(total * mass / mass.sum())
    users, items = (
        np.concatenate([rng.choice(len(x), size, p=x[:, j] / x[:, j].sum()) for j, size in enumerate(sizes)])
        for x in (theta, beta)
    )
    pairs, counts = np.unique(users * np.int64(n_items) + items, return_counts=True)
    return pd.DataFrame({"UserId": pairs // n_items, "ItemId": pairs % n_items, "Count": counts})


def _distribution(n: int, exponent: float) -> np.ndarray:
    weight = np.cumsum((np.arange(n) + 10.0) ** -exponent)
    return weight / weight[-1]


def power_law_csr(n_users: int, n_items: int, nnz: int, seed: int = 0) -> sparse.csr_array:
    """Canonical CSR matrix (n_users, n_items) of ``nnz`` counts in float32, for a hundred million of them.

    The degree of user r falls as (r + n_users/100)^−0.8, the popularity of item r as (r + 20)^−0.8, ids
    are shuffled, and counts are geometric with mean 2.5.  A user's items are drawn one from each of as many
    equal parts of the popularity as the user has counts; one that is drawn twice gives way to the next.

    Raises
    ------
    ValueError
        If a user would have more counts than there are items.
    """
    rng = np.random.default_rng(seed)
    degrees = _degrees(rng.permutation(n_users), nnz)
    if degrees.max() > n_items:
        raise ValueError(f"one of {n_users} users would have {degrees.max()} counts of {n_items} items")
    indptr = np.append(0, np.cumsum(degrees))
    item_of_rank = rng.permutation(n_items)
    indices, data = np.empty(nnz, np.int32), np.empty(nnz, np.float32)
    # Blocks have seeds of their own, so that the number of threads makes no difference.
    bounds = np.unique(np.append(np.searchsorted(indptr, np.arange(0, nnz, _BLOCK)), n_users))
    blocks = list(zip(bounds[:-1], bounds[1:], rng.spawn(len(bounds) - 1), strict=True))

    def fill(first: int, last: int, block_rng: np.random.Generator) -> None:
        part = slice(indptr[first], indptr[last])
        indices[part] = _items_of_users(degrees[first:last], item_of_rank, block_rng)
        data[part] = 1 + np.floor(block_rng.standard_exponential(part.stop - part.start, np.float32) * 2)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda block: fill(*block), blocks):
            pass
    return sparse.csr_array((data, indices, indptr.astype(np.int32)), shape=(n_users, n_items))


def write_power_law(path: Path, n_users: int, n_items: int, nnz: int, seed: int = 0) -> None:
    """A Parquet file of ``nnz`` rows in random order, for a billion of them: memory holds some millions.

    The activity of user r falls as (r + n_users/100)^−0.6 and the popularity of item r as (r + 20)^−0.8, ids
    are shuffled, and counts are 1 + Poisson(1).  A pair may be there several times; its counts add up.
    """
    import pyarrow as pa
    from pyarrow import parquet

    def rows(size: int, rng: np.random.Generator) -> pa.Table:
        share = rng.random(size)
        low, high = (n_users / 100) ** 0.4, (n_users * 1.01) ** 0.4
        user = (low + share * (high - low)) ** 2.5 - n_users / 100
        user = np.minimum(user.astype(np.int64), n_users - 1)
        item = _popularity_rank(rng.random(size), n_items)
        columns = {
            "UserId": _shuffled(user, n_users).astype(np.int32),
            "ItemId": _shuffled(item, n_items).astype(np.int32),
            "Count": (1 + rng.poisson(1.0, size)).astype(np.uint8),
        }
        return pa.table(columns)

    sizes = [_ROW_GROUP] * (nnz // _ROW_GROUP) + [nnz % _ROW_GROUP] * (nnz % _ROW_GROUP > 0)
    rngs = np.random.default_rng(seed).spawn(len(sizes))
    with (
        parquet.ParquetWriter(
            path, rows(1, rngs[0]).schema, compression="none", use_dictionary=["Count"]
        ) as writer,
        ThreadPoolExecutor(2) as pool,
    ):
        coming = [pool.submit(rows, sizes[0], rngs[0])]
        for number in range(len(sizes)):
            if number + 1 < len(sizes):
                coming.append(pool.submit(rows, sizes[number + 1], rngs[number + 1]))
            writer.write_table(coming.pop(0).result(), row_group_size=_ROW_GROUP)


def _shuffled(numbers: np.ndarray, n: int) -> np.ndarray:
    """Numbers below ``n`` in another order, the same for all of them."""
    step = int(n * 0.618)
    while gcd(step, n) > 1:
        step += 1
    return numbers * step % n


def _degrees(rank: np.ndarray, nnz: int) -> np.ndarray:
    """Counts of each user (N,), by rank, that add up to ``nnz``."""
    weight = np.cumsum((rank + 1 + len(rank) / 100) ** -0.8)
    return np.diff(np.round(weight * (nnz / weight[-1])), prepend=0).astype(np.int64)


def _items_of_users(degrees: np.ndarray, item_of_rank: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Items (Z,) of some users: distinct, and ascending within each."""
    n_items = len(item_of_rank)
    degree = np.repeat(degrees, degrees)
    user = np.repeat(np.arange(len(degrees)), degrees)
    place = np.arange(len(degree)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    rank = _popularity_rank((place + rng.random(len(degree))) / degree, n_items)
    # Ranks never fall within a user.  Those that do not rise move up, and down from the end if need be.
    apart = 2 * n_items * user  # keeps users out of each other's running maximum
    rank = np.maximum.accumulate(rank - place + apart) - apart + place
    rank = np.minimum(rank, n_items - degree + place)
    key = user * n_items + item_of_rank[rank]
    key.sort()
    return key - user * n_items


def _popularity_rank(share: np.ndarray, n: int) -> np.ndarray:
    """The rank below which lies this share of a density that falls as (r + 20)^−0.8."""
    low, high = 20**0.2, (n + 20) ** 0.2
    root = low + share * (high - low)
    return np.minimum((root * root * root * root * root - 20).astype(np.int64), n - 1)
