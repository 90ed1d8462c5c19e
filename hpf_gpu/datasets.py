"""The data set of the demo, and a split of counts into training and held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class OnlineRetail:
    """Purchases of 4,323 customers of a British gift shop within a year.

    Attributes
    ----------
    purchases : pandas.DataFrame
        One row per customer and product: ``UserId`` (customer number), ``ItemId`` (stock code, a
        string), ``Count`` (quantity bought, net of returns), ``Orders`` (number of orders it was in).
    product_names : pandas.Series
        Description of each product, indexed by stock code.
    """

    purchases: pd.DataFrame
    product_names: pd.Series


def load_online_retail() -> OnlineRetail:
    """Load UCI Online Retail (Chen, Sain and Guo 2012; CC BY 4.0), which comes with the package.

    Returns
    -------
    OnlineRetail
        264,673 purchases and the names of 3,643 products.

    Notes
    -----
    ``data_files/LICENSE-DATA.md`` names the source, the licence and the changes.

    Examples
    --------
    >>> retail = load_online_retail()
    >>> list(retail.purchases.columns)
    ['UserId', 'ItemId', 'Count', 'Orders']
    >>> retail.product_names["22423"]
    'REGENCY CAKESTAND 3 TIER'
    """
    purchases = _read_csv("online_retail.csv.gz").rename(
        columns={"CustomerID": "UserId", "StockCode": "ItemId", "Quantity": "Count"}
    )
    products = _read_csv("online_retail_items.csv.gz")
    return OnlineRetail(purchases, products.set_index("StockCode")["Description"])


def split_by_user(
    counts: pd.DataFrame, *, fraction: float = 0.2, min_items: int = 10, seed: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split counts at random into training and held-out data, user by user.

    Parameters
    ----------
    counts : pandas.DataFrame
        One row per user and item, with a column ``UserId``.
    fraction : float
        Share of each user's rows to hold out, rounded to an integer number of rows.
    min_items : int
        Nothing is held out of users with fewer rows than this.
    seed : int
        Seed of the random choice.

    Returns
    -------
    train, held_out : pandas.DataFrame
        The rows of ``counts``, each in one of the two, in the original order and with the original index.

    Raises
    ------
    ValueError
        If ``fraction`` is not between 0 and 1, or ``min_items`` is below 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction!r} must lie between 0 and 1")
    if min_items < 1:
        raise ValueError(f"min_items={min_items!r} must be at least 1")
    shuffled = pd.Series(np.random.default_rng(seed).random(len(counts)), index=counts.index)
    by_user = shuffled.groupby(counts["UserId"])
    n_items = by_user.transform("size")
    chosen = (by_user.rank(method="first") <= (fraction * n_items).round()) & (n_items >= min_items)
    return counts[~chosen], counts[chosen]


def _read_csv(name: str) -> pd.DataFrame:
    with resources.files(__package__).joinpath("data_files", name).open("rb") as file:
        return pd.read_csv(file, compression="gzip", dtype={"StockCode": str})
