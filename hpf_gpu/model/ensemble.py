"""Several fitted models of the same counts, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import users_with

from .fitted import Fitted


@dataclass(frozen=True)
class Member:
    """A model of an ensemble; if ``transposed``, its rows are the items, and its columns the users."""

    fitted: Fitted
    weight: float
    transposed: bool = False

    @property
    def user_ids(self) -> Ids:
        """Ids of the users."""
        return self.fitted.item_ids if self.transposed else self.fitted.user_ids

    @property
    def item_ids(self) -> Ids:
        """Ids of the items."""
        return self.fitted.user_ids if self.transposed else self.fitted.item_ids

    @cached_property
    def items_of_users(self) -> sparse.csr_array:
        """A one for each item that a user has in the training data, (N, M)."""
        fitted, seen = self.fitted, self.fitted.seen
        if seen is None:
            raise ValueError("this needs the items of each user: fit with keep_data=True")
        ones = np.ones(len(seen[1]), fitted.dtype)
        csr = sparse.csr_array((ones, seen[1], seen[0]), shape=(len(fitted.theta), len(fitted.beta)))
        return csr.T.tocsr() if self.transposed else csr


@dataclass(frozen=True)
class Ensemble:
    """The members, and whether their expected counts are averaged or the logarithms of these."""

    members: tuple[Member, ...]
    of_logarithms: bool

    @property
    def user_ids(self) -> Ids:
        """Ids of the users, the same in all members."""
        return self.members[0].user_ids

    @property
    def item_ids(self) -> Ids:
        """Ids of the items, the same in all members."""
        return self.members[0].item_ids

    @property
    def library(self) -> str | None:
        """Of the training data, see :class:`hpf_gpu.model.fitted.Fitted`."""
        return self.members[0].fitted.library

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the expected counts."""
        return np.result_type(*(member.fitted.dtype for member in self.members))

    @property
    def items_of_users(self) -> sparse.csr_array:
        """A one for each item that a user has in the training data, (N, M)."""
        return self.members[0].items_of_users

    @cached_property
    def users_with(self) -> NDArray[np.float64]:
        """Number of users that have each item in the training data, (M,)."""
        csr = self.items_of_users
        return users_with((csr.indptr, csr.indices), csr.shape[1])

    def combined(self, rates: Sequence[NDArray[Any]], members: Sequence[Member]) -> NDArray[Any]:
        """The weighted mean of expected counts, or the exponential of that of their logarithms."""
        return self.combined_terms(self.terms(rates), members)

    def terms(self, rates: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """What the weighted mean is taken of; it does not depend on the weights."""
        if not self.of_logarithms:
            return rates
        return [np.log(np.maximum(one, np.finfo(one.dtype).tiny)) for one in rates]

    def combined_terms(self, terms: Sequence[NDArray[Any]], members: Sequence[Member]) -> NDArray[Any]:
        """The same as ``combined`` of the rates, from their ``terms``."""
        mean = weighted_mean(terms, members)
        return np.asarray(np.exp(mean)) if self.of_logarithms else mean


def weighted_mean(arrays: Sequence[NDArray[Any]], members: Sequence[Member]) -> NDArray[Any]:
    """The mean of one array for each member, by their weights."""
    total = sum(member.weight for member in members)
    mean: NDArray[Any] = np.zeros_like(arrays[0])
    for array, member in zip(arrays, members, strict=True):
        mean += array * array.dtype.type(member.weight / total)
    return mean
