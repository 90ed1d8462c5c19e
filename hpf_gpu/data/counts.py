"""Counts for a fit, for evaluation, for fold-in and for partial_fit, from triplets or matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.backends.protocol import Backend, DeviceData
from hpf_gpu.messages import shown, warn, warn_of_zeros

from .blocks import Pairs
from .ids import Ids, Numbered, encode
from .triplets import (
    Columns,
    Counts,
    Triplets,
    canonical,
    load,
    on_host,
    read,
    read_matrix,
    row_numbers,
    row_of_each,
    take,
)


@dataclass(frozen=True)
class Pattern:
    """The positions of counts (N, M), without their values."""

    shape: tuple[int, int]
    indptr: NDArray[Any]  # (N + 1,)
    indices: NDArray[Any]  # (Z,)


@dataclass(frozen=True)
class Elsewhere:
    """Counts (N, M) that are not in memory."""

    shape: tuple[int, int]


@dataclass(frozen=True)
class TrainingData:
    """Canonical counts (sorted, unique, above zero) and the ids of their rows and columns.

    ``csr`` is scipy's, that of DeviceData, a Pattern once the values are released, or Elsewhere.
    """

    csr: Any  # (N, M)
    users: Ids
    items: Ids

    @cached_property
    def host_csr(self) -> sparse.csr_array:
        """The counts (N, M) as scipy's CSR; those of a device are copied once."""
        if isinstance(self.csr, sparse.csr_array):
            return self.csr
        arrays = (on_host(self.csr.data), on_host(self.csr.indices), on_host(self.csr.indptr))
        return sparse.csr_array(arrays, shape=self.csr.shape)

    @property
    def seen(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """The items of each user, as CSR indptr (N + 1,) and column numbers (Z,) on the host, or None."""
        if isinstance(self.csr, Elsewhere):
            return None
        return on_host(self.csr.indptr), on_host(self.csr.indices)

    def transposed(self) -> TrainingData:
        """The same with items as rows and users as columns, in host memory."""
        csr = self.host_csr.T.tocsr()
        csr.sort_indices()
        return TrainingData(csr, self.items, self.users)

    def without_counts(self) -> TrainingData:
        """The same with positions only, to free the values once a backend has its own copy."""
        return self if self.seen is None else replace(self, csr=Pattern(self.csr.shape, *self.seen))


def training_data(
    data: Any, *, backend: Backend, reindex: bool, columns: Columns, taken: str = "raw"
) -> TrainingData:
    """Read counts in any accepted form; see :meth:`hpf_gpu.HPF.fit` for the forms and the errors.

    Data in the memory of the backend's GPU stay there; all others are copied to the host.
    """
    data, ids = load(data, columns, "counts_df"), None
    if isinstance(data, Counts):
        data, ids = data.sparse, data.ids
        if not reindex and any(one.values is not None for one in ids):
            raise ValueError("with reindex=False ids are row numbers: leave out those of Counts")
    on_device = backend.read_device_data(data, reindex=reindex, has_counts=columns.count is not None)
    if on_device is not None:
        return _of_device_data(on_device, taken, ids)
    data, dtype = on_host(data), backend.dtype.type
    if sparse.issparse(data):
        return _of_matrix(read_matrix(data, dtype), taken, ids)
    triplets = read(data, dtype=dtype, name="counts_df", taken=taken, columns=columns)
    positive = triplets.counts > 0
    if not positive.all():
        warn_of_zeros(len(positive) - int(positive.sum()), "dropped")
        triplets = triplets.where(positive)
    users, items = triplets.users, triplets.items
    if len(triplets.counts) == 0:
        raise ValueError("counts_df has no count above zero: there is nothing to fit")
    user_codes, user_ids = encode(users, "user", reindex)
    item_codes, item_ids = encode(items, "item", reindex)
    del users, items
    csr = triplets.csr(user_codes, item_codes, slice(None), (user_ids.size, item_ids.size))
    return TrainingData(csr, user_ids, item_ids)


def _of_device_data(data: DeviceData, taken: str, ids: tuple[Ids, Ids] | None) -> TrainingData:
    if data.dropped:
        warn_of_zeros(data.dropped, "dropped")
    take(data.csr.data, taken)
    n, m = data.csr.shape
    users, items = ids or (Ids(data.user_ids, n, "user"), Ids(data.item_ids, m, "item"))
    return TrainingData(data.csr, users, items)


def _of_matrix(csr: sparse.csr_array, taken: str, ids: tuple[Ids, Ids] | None) -> TrainingData:
    csr.sum_duplicates()
    stored = csr.nnz
    csr.eliminate_zeros()
    if csr.nnz < stored:
        warn_of_zeros(stored - csr.nnz, "dropped")
    if csr.nnz == 0:
        raise ValueError("the matrix has no count above zero: there is nothing to fit")
    users, items = ids or row_numbers(csr.shape)
    return TrainingData(canonical(csr, taken), users, items)


def held_out_pairs(triplets: Triplets, users: Ids, items: Ids, *, name: str) -> Pairs:
    """Held-out counts as pairs in row order, without duplicates.

    Counts whose user or item is not in ``users`` or ``items`` (the ids of the training data) are left out
    with a warning, and so are zeros.  ``name`` is the argument's name in messages.

    Raises
    ------
    ValueError
        If no count is left.
    """
    rows, columns = users.codes(triplets.users), items.codes(triplets.items)
    known = (rows >= 0) & (columns >= 0)
    kept = known & (triplets.counts > 0)
    zeros = int((triplets.counts == 0).sum())
    if zeros:
        warn_of_zeros(zeros, f"left out of {name}")
    if not kept.any():
        hint = users.hint(triplets.users) or items.hint(triplets.items)
        raise ValueError(f"{name} has no count whose user and item are both in the training data{hint}")
    if not known.all():
        unknown = f"{len(known) - int(known.sum())} of the {len(known)} counts of {name} were left out"
        warn(f"{unknown}: their user or item was not in the training data")
    csr = triplets.csr(rows, columns, kept, (users.size, items.size))
    return Pairs(row_of_each(csr), csr.indices, csr.data)


@dataclass(frozen=True)
class NewRows:
    """Canonical counts of new users by the items of a model, or of new items by its users."""

    csr: sparse.csr_array  # (B, M)
    ids: Ids  # of the B rows


def new_rows(triplets: Triplets, kind: str, known: Ids, *, name: str) -> NewRows:
    """Counts of new users (``kind`` "user") by the items of a model, or of new items ("item") by its users.

    Rows are in order of first appearance; rows of a matrix keep their numbers.  Counts whose other id is not
    in ``known`` (the ids of the model's other side) are left out with a warning, and so are zeros.  Rows
    that have no other counts are kept, also if no row has any: one user whose items are all new must not end
    the work for many, nor get another answer alone than among others.

    Raises
    ------
    ValueError
        If no id is known, and they are of another type than those of the model.
    """
    own, others = triplets.users, triplets.items
    if kind == "item":
        own, others = others, own
    if isinstance(own, Numbered):
        rows, ids = own.numbers, own.ids
    else:
        rows, ids = encode(own, kind, reindex=True)
    codes = known.codes(others)
    unknown, zero = codes < 0, triplets.counts == 0
    if zero.any():
        warn_of_zeros(int(zero.sum()), f"left out of {name}")
    if unknown.all() and (hint := known.hint(others)):
        raise ValueError(f"{name} has no {known.kind} that was in the training data{hint}")
    if unknown.any():
        left_out = f"{int(unknown.sum())} of the {len(unknown)} counts of {name} were left out"
        warn(f"{left_out}: their {known.kind}s were not in the training data")
    csr = triplets.csr(rows, codes, ~(unknown | zero), (ids.size, known.size))
    empty = int((np.diff(csr.indptr) == 0).sum())
    if empty:
        warn(
            f"{empty} new {kind}s have no count that can be used; they get the factors of a {kind} "
            "without counts"
        )
    return NewRows(csr, ids)


@dataclass(frozen=True)
class BatchSide:
    """The ids of one side in a batch, not yet matched with the rows of a model."""

    ids: Ids  # distinct
    codes: NDArray[Any]  # (Z,) positions in ``ids``, one for each count
    members: NDArray[Any]  # (B,) positions in ``ids`` of all that are in the batch


def batch_sides(
    triplets: Triplets, known: tuple[Ids, Ids], members: tuple[Any, Any], *, name: str
) -> tuple[BatchSide, BatchSide]:
    """The users and items of a batch.

    ``known`` are the ids of the model's users and items.  ``members`` has, for users and items, all ids of
    the batch, or None for the ids in the data, including those with only zeros.

    Raises
    ------
    ValueError, TypeError
        If the data are empty, ``members`` is not a list, or an id in the data is not among ``members``.
    """
    if len(triplets.counts) == 0:
        raise ValueError(f"{name} is empty")
    zeros = int((triplets.counts == 0).sum())
    if zeros:
        warn_of_zeros(zeros, f"left out of {name}")
    users, items = (
        _batch_side(column.column() if isinstance(column, Numbered) else column, *side)
        for column, *side in zip((triplets.users, triplets.items), known, members, strict=True)
    )
    return users, items


def _batch_side(column: pd.Series, known: Ids, members: Any) -> BatchSide:
    kind, named = known.kind, known.values is not None
    if members is None:
        codes, ids = encode(column, kind, named, room=known.size)
        return BatchSide(ids, codes, np.unique(codes))
    if not pd.api.types.is_list_like(members):
        raise TypeError(f"{kind}s_in_batch is {shown(members)}: pass a list of {kind} ids")
    members = list(members)
    listed = pd.Series(members, dtype=None if members else column.dtype)
    codes, ids = encode(pd.concat([column, listed], ignore_index=True), kind, named, room=known.size)
    codes, places = codes[: len(column)], np.unique(codes[len(column) :])
    stray = codes[~np.isin(codes, places)]
    if len(stray):
        raise ValueError(f"{kind} {shown(ids.index[stray[0]])} has counts and is not in {kind}s_in_batch")
    return BatchSide(ids, codes, places)
