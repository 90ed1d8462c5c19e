"""From the user's data to counts and ids.  Every error in user data is raised here."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .backends.protocol import Backend
from .variational import Pairs

COLUMNS = ("UserId", "ItemId", "Count")
_NAMED = 3  # of many unknown ids in a message
_BLOCK = 1 << 18  # rows that are worked on at once


class Ids:
    """The ids of one side in row order; ``values=None`` stands for the row numbers themselves."""

    def __init__(self, values: NDArray[Any] | None, size: int, kind: str) -> None:
        self.values = values  # (size,)
        self.size = size
        self.kind = kind  # "user" or "item", for messages

    @cached_property
    def _index(self) -> pd.Index:
        # The dtype keeps tuples from turning into a MultiIndex.
        return pd.Index(_column(self.values), tupleize_cols=False)

    @cached_property
    def rows(self) -> dict[Any, int] | None:
        """Row number of each id; None if ids are row numbers."""
        return None if self.values is None else dict(zip(self._index, range(self.size), strict=True))

    @cached_property
    def _has_tuples(self) -> bool:
        values = self.values
        return values is not None and values.dtype == object and any(isinstance(v, tuple) for v in values)

    def is_single(self, ids: Any) -> bool:
        """Whether ``ids`` is one id rather than a collection of them."""
        if isinstance(ids, tuple):
            return self._has_tuples
        if isinstance(ids, np.ndarray):
            return ids.ndim == 0
        return isinstance(ids, Hashable) and not isinstance(ids, (Iterator, range))

    def codes(self, ids: Any) -> NDArray[np.int64]:
        """Row numbers of many ids (n,); −1 where an id is unknown."""
        column = _column(ids)
        if self.values is not None:
            codes: NDArray[np.int64] = self._index.get_indexer(pd.Index(column, tupleize_cols=False))
            return codes
        if column.dtype == object:
            return np.array([self._number(value) for value in column], dtype=np.int64)
        if column.dtype.kind not in "iufb":
            return np.full(len(column), -1, dtype=np.int64)
        with np.errstate(invalid="ignore"):
            valid = (column >= 0) & (column < self.size) & (column == np.floor(column))
        return np.where(valid, np.where(valid, column, 0).astype(np.int64), -1)

    def codes_of(self, given: Any) -> NDArray[np.int64]:
        """Row numbers of one id or of many, (1,) or (n,); −1 where an id is unknown."""
        return self.codes(self._listed(given))

    def known(self, given: Any) -> NDArray[np.int64]:
        """Row numbers of one id or of many, (1,) or (n,); ValueError if one is unknown."""
        ids = self._listed(given)
        codes = self.codes(ids)
        if (codes < 0).any():
            unknown = list(dict.fromkeys(map(_shown, ids[codes < 0])))
            some = f"{self.kind}{'s' * (len(unknown) > 1)} {', '.join(unknown[:_NAMED])}"
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            raise ValueError(f"{some}{more} {'were' if len(unknown) > 1 else 'was'} not in the training data")
        return codes

    def _listed(self, given: Any) -> NDArray[Any]:
        """One id or many as an array, (1,) or (n,)."""
        if not self.is_single(given):
            return _column(given)
        return _column([given[()] if isinstance(given, np.ndarray) else given])

    def _number(self, value: Any) -> int:
        within: bool = _is_number(value) and 0 <= value < self.size
        return int(value) if within and float(value).is_integer() else -1

    def labels(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Ids of row numbers, in the same shape; where some are −1, objects with None in their places."""
        labels = codes if self.values is None else self.values[codes]
        if (codes >= 0).all():
            return labels
        labels = _objects(labels.reshape(-1)).reshape(codes.shape)
        labels[codes < 0] = None
        return labels


@dataclass(frozen=True)
class TrainingData:
    """Canonical counts (sorted, unique, above zero) and the ids of their rows and columns."""

    csr: Any  # (N, M), a scipy.sparse.csr_array, or a backend's own from Backend.adopt
    users: Ids
    items: Ids

    @property
    def host_csr(self) -> sparse.csr_array:
        """The counts (N, M) as scipy's CSR."""
        if isinstance(self.csr, sparse.csr_array):
            return self.csr
        arrays = (on_host(self.csr.data), on_host(self.csr.indices), on_host(self.csr.indptr))
        return sparse.csr_array(arrays, shape=self.csr.shape)

    @property
    def seen(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Which items each user has, as indptr (N + 1,) and item numbers (Z,) on the host."""
        return on_host(self.csr.indptr), on_host(self.csr.indices)


def training_data(data: Any, *, backend: Backend, reindex: bool) -> TrainingData:
    """Read counts in any accepted form; see :meth:`hpf_gpu.HPF.fit` for the forms and the errors.

    What lies in the backend's memory already stays there; all else comes to the host.
    """
    adopted = backend.adopt(data, reindex=reindex)
    if adopted is not None:
        users = Ids(adopted.user_ids, adopted.csr.shape[0], "user")
        return TrainingData(adopted.csr, users, Ids(adopted.item_ids, adopted.csr.shape[1], "item"))
    data, dtype = on_host(data), backend.dtype.type
    if sparse.issparse(data):
        csr = _canonical(_checked_matrix(data, dtype), drop_zeros=True)
        return TrainingData(csr, Ids(None, csr.shape[0], "user"), Ids(None, csr.shape[1], "item"))
    users, items, given = _triplets(data, COLUMNS, "counts_df")
    counts = _checked_counts(given, dtype)
    positive = counts > 0
    if not positive.all():
        _warn_zeros(len(positive) - int(positive.sum()), "dropped")
        users, items, counts = users[positive], items[positive], counts[positive]
    if len(counts) == 0:
        raise ValueError("counts_df has no count above zero: there is nothing to fit")
    user_codes, user_ids = _encode(users, "user", reindex)
    item_codes, item_ids = _encode(items, "item", reindex)
    del users, items
    shape = (user_ids.size, item_ids.size)
    csr = sparse.coo_array((counts, (user_codes, item_codes)), shape=shape).tocsr()
    return TrainingData(_canonical(csr), user_ids, item_ids)


def held_out_pairs(data: Any, users: Ids, items: Ids, *, dtype: type, name: str) -> Pairs:
    """Counts of known users and items; rows of others are left out.

    Returns pairs in row order without duplicates; ValueError if none is left.
    """
    data = on_host(data)
    if sparse.issparse(data):
        csr = _checked_matrix(data, dtype)
        user_column, item_column, values = _row_of_each(csr), csr.indices, csr.data
    else:
        user_column, item_column, count_column = _triplets(data, COLUMNS, name)
        values = _checked_counts(count_column, dtype)
    rows, columns = users.codes(user_column), items.codes(item_column)
    kept = (rows >= 0) & (columns >= 0) & (values > 0)
    zeros = int((values == 0).sum())
    if zeros:
        _warn_zeros(zeros, f"left out of {name}")
    if not kept.any():
        raise ValueError(f"{name} has no count whose user and item are both in the training data")
    coo = sparse.coo_array((values[kept], (rows[kept], columns[kept])), shape=(users.size, items.size))
    canonical = _canonical(coo.tocsr())
    return Pairs(_row_of_each(canonical), canonical.indices, canonical.data)


def row_batches(
    csr: sparse.csr_array, size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[Any], sparse.csr_array]]:
    """All rows in random batches of ``size``, the last one perhaps smaller: row numbers and their counts."""
    shuffled = rng.permutation(csr.shape[0])
    for start in range(0, len(shuffled), size):
        rows = np.sort(shuffled[start : start + size])
        yield rows, csr[rows]


def on_host(data: Any) -> Any:
    """An array or sparse matrix of CuPy as NumPy's or SciPy's; anything else as it is."""
    return data.get() if type(data).__module__.partition(".")[0] in ("cupy", "cupyx") else data


# -- ids ---------------------------------------------------------------------------------------


def _encode(column: pd.Series, kind: str, reindex: bool) -> tuple[NDArray[Any], Ids]:
    """Row numbers (Z,) in order of first appearance, and the ids behind them."""
    if not reindex:
        codes = _row_numbers(column, kind)
        return codes, Ids(None, int(codes.max()) + 1, kind)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
        encoded = _encode_by_table(column.to_numpy())
        if encoded is not None:
            return encoded[0], Ids(encoded[1], len(encoded[1]), kind)
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise TypeError(f"{kind} ids must be hashable: {error}") from error
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise ValueError(
            f"{len(missing)} {kind} ids are missing, the first in row {_shown(column.index[missing[0]])}"
        )
    return _narrow(codes, len(values)), Ids(_as_values(values), len(values), kind)


def _encode_by_table(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """What pandas.factorize does, for integers of a range not much wider than they are many.

    A table over the range replaces the hash: 0.6 of the time, and 0.3 to 0.5 of the memory (measured at
    2.0M and 17.5M rows).  None if the range is too wide.
    """
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values) + 1000 or high > np.iinfo(np.int64).max:
        return None
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(values), _BLOCK)]
    first_row = np.full(high - low + 1, len(values))
    for block in reversed(blocks):  # and each block backwards: what is written last stays
        places = (values[block].astype(np.int64) - low)[::-1]
        first_row[places] = np.arange(block.start + len(places), block.start, -1) - 1
    present = np.flatnonzero(first_row < len(values))
    in_order = present[np.argsort(first_row[present])]
    code = _narrow(first_row, len(in_order))
    code[in_order] = np.arange(len(in_order))
    codes = np.empty(len(values), dtype=code.dtype)
    for block in blocks:
        codes[block] = code[values[block].astype(np.int64) - low]
    return codes, (in_order + low).astype(values.dtype)


def _row_numbers(column: pd.Series, kind: str) -> NDArray[Any]:
    """Ids that are row numbers already (reindex=False), checked one by one."""
    advice = f"with reindex=False {kind} ids must be whole numbers from 0; reindex=True takes any"
    if column.isna().any():
        raise ValueError(f"{int(column.isna().sum())} {kind} ids are missing; {advice}")
    values = np.asarray(column)
    if values.dtype.kind not in "iufb":
        strange = [value for value in values if not _is_number(value)]
        if strange or values.dtype != object:
            first = strange[0] if strange else values[0]
            raise ValueError(f"{kind} id {_shown(first)} is not a number; {advice}")
        endless = [value for value in values if not -(2**63) <= value < 2**63]
        if endless:
            raise ValueError(f"{kind} id {_shown(endless[0])} is not a row number; {advice}")
        values = values.astype(np.float64)
    bad = (values < 0) | (values != np.floor(values)) | (values > np.iinfo(np.int64).max // 2)
    if bad.any():
        raise ValueError(f"{kind} id {_shown(values[np.argmax(bad)])} is not a row number; {advice}")
    largest = int(values.max())
    if largest > 100 * len(values) + 1_000_000:
        raise ValueError(f"{kind} id {largest} would make a factor matrix of {largest + 1} rows; {advice}")
    return _narrow(values, largest + 1)


def _narrow(codes: NDArray[Any], size: int) -> NDArray[Any]:
    return codes.astype(np.int32 if size <= np.iinfo(np.int32).max else np.int64)


def _as_values(values: Any) -> NDArray[Any]:
    """Unique ids as a NumPy array; tuples stay objects, extension types become objects or numbers."""
    if isinstance(values, np.ndarray):
        return values
    array = np.asarray(values)
    return array if array.ndim == 1 else _objects(values)


def _column(ids: Any) -> NDArray[Any]:
    """Many ids as an array (n,), without turning 1 into '1' or a tuple into a row."""
    if isinstance(ids, (np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        array = np.asarray(ids).reshape(-1)
        # pandas has no index of float16.
        return array.astype(np.float32) if array.dtype == np.float16 else array
    return _objects(ids)


def _objects(ids: Iterable[Hashable]) -> NDArray[Any]:
    given = list(ids)
    array = np.empty(len(given), dtype=object)
    array[:] = given
    return array


# -- counts ------------------------------------------------------------------------------------


def _triplets(data: Any, columns: Sequence[str], name: str) -> list[Any]:
    """The columns of a frame, or of an array (n, 3), as they are."""
    if isinstance(data, pd.DataFrame):
        missing = [column for column in columns if column not in data.columns]
        if missing:
            have = ", ".join(map(repr, data.columns))
            raise ValueError(
                f"{name} has no column {missing[0]!r}; it needs {', '.join(columns)} and has {have}"
            )
        doubled = [column for column in columns if (data.columns == column).sum() > 1]
        if doubled:
            raise ValueError(f"{name} has several columns {doubled[0]!r}")
        series = [data[column] for column in columns]
    elif isinstance(data, np.ndarray):
        data = np.asarray(data)  # numpy.matrix has no columns of one dimension
        if data.ndim != 2 or data.shape[1] != len(columns):
            raise ValueError(
                f"{name} has shape {data.shape}; an array must be (n, {len(columns)}) with columns "
                f"{', '.join(columns)}. For a dense matrix of counts pass scipy.sparse.csr_array(matrix)"
            )
        series = [pd.Series(data[:, j]) for j in range(len(columns))]
    else:
        raise TypeError(
            f"{name} must be a pandas data frame, an array (n, {len(columns)}) or a scipy sparse matrix, "
            f"not {type(data).__name__}"
        )
    if len(data) == 0:
        raise ValueError(f"{name} is empty")
    return series


def _checked_matrix(data: Any, dtype: type) -> Any:
    """A sparse matrix as CSR in ``dtype``, a copy: indices within its shape, counts finite and not negative.

    Counts are checked and cast before anything is summed: int8 would overflow, and −1 + 2 look like 1.
    """
    if data.ndim != 2 or 0 in data.shape:
        raise ValueError(f"a sparse matrix of counts needs rows and columns; this one has shape {data.shape}")
    if data.format in ("csr", "csc"):
        given = data.copy()
        try:
            given.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"the arrays of this sparse matrix contradict each other: {error}") from error
        given.data = _checked_counts(pd.Series(given.data), dtype)
        csr = sparse.csr_array(given)
    else:
        given = data.tocoo()
        for indices, size in zip((given.row, given.col), data.shape, strict=True):
            if len(indices) and not 0 <= indices.min() <= indices.max() < size:
                raise ValueError(f"this sparse matrix of shape {data.shape} has an index outside its shape")
        counts = _checked_counts(pd.Series(given.data), dtype)
        csr = sparse.coo_array((counts, (given.row, given.col)), shape=data.shape).tocsr()
    columns = csr.indices if csr.nnz > np.iinfo(np.int32).max else _narrow(csr.indices, csr.shape[1])
    return sparse.csr_array((csr.data, columns, csr.indptr.astype(columns.dtype)), shape=csr.shape)


def _checked_counts(column: pd.Series, dtype: type) -> NDArray[Any]:
    """Counts (Z,) in ``dtype``: a copy, every entry finite and at least zero."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = pd.Series(np.asarray(column), index=column.index)
    numeric = column
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        # Texts may spell numbers; pandas would make numbers of dates, too, so those are all blanked.
        textual = column.dtype == object or pd.api.types.is_string_dtype(column)
        numeric = pd.to_numeric(column, errors="coerce") if textual else column.where(column.isna())
        wrong = numeric.isna() & column.notna()
        if wrong.any():
            raise ValueError(f"count {_shown(column[wrong].iloc[0])} is not a number")
    with np.errstate(over="ignore"):
        values: NDArray[Any] = numeric.to_numpy(dtype=dtype, na_value=np.nan, copy=True)
    # Two reductions see whether all is well; only if not is the culprit looked for.
    total, limit = values.sum(dtype=np.float64), float(np.sqrt(np.finfo(dtype).max))
    if len(values) == 0 or (values.min() >= 0 and total < limit):
        return values
    exact = numeric.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~((exact >= 0) & np.isfinite(exact))
    if bad.any():
        row = int(np.argmax(bad))
        where = f"count {_shown(column.iloc[row])} in row {_shown(column.index[row])}"
        raise ValueError(f"{where} cannot be used: counts are finite and not negative")
    raise ValueError(
        f"the counts add up to {exact.sum():.3g}, and {np.dtype(dtype)} holds {limit:.3g} at most"
    )


def _row_of_each(csr: Any) -> NDArray[Any]:
    """Row number of every nonzero (Z,)."""
    return np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))


def _canonical(csr: sparse.csr_array, drop_zeros: bool = False) -> sparse.csr_array:
    """Sorted, the same (user, item) summed; zeros dropped if asked."""
    csr.sum_duplicates()
    if drop_zeros:
        stored = csr.nnz
        csr.eliminate_zeros()
        if csr.nnz < stored:
            _warn_zeros(stored - csr.nnz, "dropped")
        if csr.nnz == 0:
            raise ValueError("the matrix has no count above zero: there is nothing to fit")
    return csr


def _warn_zeros(how_many: int, what: str) -> None:
    warnings.warn(f"{how_many} counts of zero were {what}: pairs that are absent count as zero", stacklevel=4)


def _shown(value: Any) -> str:
    """A value for a message: -2, not np.int64(-2)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)
