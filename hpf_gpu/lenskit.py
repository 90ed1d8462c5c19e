"""Hierarchical Poisson factorization as a scorer of LensKit."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy import sparse

from .estimator import HPF

try:
    from lenskit.config.common import EmbeddingSizeMixin
    from lenskit.data import Dataset, ItemList, QueryInput, RecQuery, Vocabulary
    from lenskit.pipeline import Component
    from lenskit.training import Trainable, TrainingOptions
    from pydantic import AliasChoices, BaseModel, Field, JsonValue, PositiveInt
except ImportError as error:
    raise ImportError(
        f"hpf_gpu.lenskit needs LensKit 2025.8 or later ({error}): pip install 'hpf_gpu[lenskit]'"
    ) from error


class HPFConfig(EmbeddingSizeMixin, BaseModel, extra="allow"):
    """Configuration of :class:`HPFScorer`: the fields below, and any parameter of :class:`hpf_gpu.HPF`.

    Attributes
    ----------
    embedding_size : int
        Number of factors, ``k`` of :class:`hpf_gpu.HPF`; also under the name ``features``.
    count_attribute : str or None
        Attribute of the interactions that has the counts, such as "count" or "rating"; None counts every
        pair as 1.
    user_embeddings : bool or 'prefer'
        Which factors of a user are used, as in LensKit's ALS.  'prefer': those of the training data; only
        users who were not in it get factors from the items of the query.  True: those from the items of the
        query, if it has any.  False: these alone.
    """

    __pydantic_extra__: dict[str, JsonValue]

    embedding_size: PositiveInt = Field(
        default=50, validation_alias=AliasChoices("embedding_size", "features")
    )
    count_attribute: str | None = "count"
    user_embeddings: bool | Literal["prefer"] = "prefer"


class HPFScorer(Component[ItemList], Trainable):
    """Scores items by their expected counts in hierarchical Poisson factorization.

    Parameters
    ----------
    config : HPFConfig
        Or its fields as keyword arguments: ``HPFScorer(features=50, count_attribute="rating", maxiter=200)``.

    Attributes
    ----------
    model : HPF
        The fitted model; users and items have the numbers that they have in ``users`` and ``items``.
    users, items : Vocabulary
        Ids of the training data.

    Notes
    -----
    Unless ``random_seed`` is set, the seed comes from the ``rng`` of the training options.  If their
    ``device`` is a GPU ("cuda", "cuda:1"), it is the ``backend``, unless that is set.  There is no progress
    bar unless ``verbose`` is set.
    """

    config: HPFConfig

    model: HPF
    users: Vocabulary
    items: Vocabulary

    def is_trained(self) -> bool:
        """Whether the scorer has been trained."""
        return hasattr(self, "model")

    def train(self, data: Dataset, options: TrainingOptions = TrainingOptions()) -> None:  # noqa: B008
        """Fit the model to the interactions of a data set.

        Parameters
        ----------
        data : Dataset
            Training data.
        options : TrainingOptions
            ``retrain``, ``rng`` and ``device`` have an effect.
        """
        if self.is_trained() and not options.retrain:
            return
        params: dict[str, Any] = {"verbose": False, **self.config.__pydantic_extra__}
        if params.get("random_seed") is None:
            params["random_seed"] = int(options.random_generator().integers(2**31))
        if options.device is not None and options.device.startswith("cuda"):
            params = {"backend": options.device, **params}
        counts = data.interactions().matrix().scipy(self.config.count_attribute, layout="csr")
        self.model = HPF(k=self.config.embedding_size, **params).fit(counts)
        self.users, self.items = data.users, data.items

    def __call__(self, query: QueryInput, items: ItemList) -> ItemList:
        """Score items for a query.

        Parameters
        ----------
        query : QueryInput
            A user, or items that stand for one.
        items : ItemList
            Items to score.

        Returns
        -------
        ItemList
            The items with their expected counts; NaN for items that were not in the training data, and for
            queries of which neither the user nor any item was.
        """
        query = RecQuery.create(query)
        numbers = items.numbers(vocabulary=self.items, missing="negative")
        known = numbers >= 0
        scores = np.full(len(items), np.nan)
        if known.any() and (rates := self._rates(query, numbers[known])) is not None:
            scores[known] = rates
        return ItemList(items, scores=scores)

    def _rates(self, query: RecQuery, numbers: np.ndarray[Any, Any]) -> Any:
        """Expected counts of items (n,), or None if nothing is known about the user."""
        user, use = None, self.config.user_embeddings
        if query.user_id is not None and use is not False:
            user = self.users.number(query.user_id, missing=None)
        counts = None if user is not None and use == "prefer" else self._counts(query.query_items)
        if counts is not None:
            table = self.model.recommend(counts=counts, n=self.items.size, exclude_seen=False)
            rates = np.empty(self.items.size)
            rates[table["ItemId"].to_numpy()] = table["Score"].to_numpy()
            return rates[numbers]
        return None if user is None else self.model.predict(user, numbers)

    def _counts(self, items: ItemList | None) -> sparse.csr_array | None:
        """Counts (1, M) of the items that a query has, 1 where it has no counts; None if there are none."""
        if items is None or len(items) == 0:
            return None
        columns = items.numbers(vocabulary=self.items, missing="negative")
        name = self.config.count_attribute
        field = None if name is None else items.field(name)
        values = np.ones(len(items)) if field is None else np.asarray(field, dtype=np.float64)
        kept = (columns >= 0) & (values > 0)
        if not kept.any():
            return None
        places = (np.zeros(int(kept.sum()), dtype=np.int64), columns[kept])
        return sparse.coo_array((values[kept], places), shape=(1, self.items.size)).tocsr()
