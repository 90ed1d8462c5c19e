"""The data set of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import pandas as pd

from .splitting import split_by_user as split_by_user  # where it was before


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


def _read_csv(name: str) -> pd.DataFrame:
    with resources.files(__package__).joinpath("data_files", name).open("rb") as file:
        return pd.read_csv(file, compression="gzip", dtype={"StockCode": str})
