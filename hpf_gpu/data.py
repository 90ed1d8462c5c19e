"""From the user's data to counts.  Every error in user data is raised here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .backends.protocol import Backend
from .ids import Ids, encode, narrow, native, shown
from .user_warnings import warn
from .variational import Pairs

COLUMNS = ("UserId", "ItemId", "Count")
_MOST_KNOWN = 1e9  # of a factor that is given: what float32 has room for, and sums of many


@dataclass(frozen=True)
class Pattern:
    """Where counts (N, M) are, without the counts."""

    shape: tuple[int, int]
    indptr: NDArray[Any]  # (N + 1,)
    indices: NDArray[Any]  # (Z,)


@dataclass(frozen=True)
class TrainingData:
    """Canonical counts (sorted, unique, above zero) and the ids of their rows and columns."""

    csr: Any  # (N, M), a scipy.sparse.csr_array, or a backend's own from Backend.adopt, or a Pattern
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

    def without_counts(self) -> TrainingData:
        """What is left when a backend has taken the counts, whose values are half of the matrix."""
        return replace(self, csr=Pattern(self.csr.shape, *self.seen))


def training_data(data: Any, *, backend: Backend, reindex: bool) -> TrainingData:
    """Read counts in any accepted form; see :meth:`hpf_gpu.HPF.fit` for the forms and the errors.

    What lies in the backend's memory already stays there; all else comes to the host.
    """
    adopted = backend.adopt(data, reindex=reindex)
    if adopted is not None:
        if adopted.dropped:
            _warn_zeros(adopted.dropped, "dropped")
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
    user_codes, user_ids = encode(users, "user", reindex)
    item_codes, item_ids = encode(items, "item", reindex)
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
    known = (rows >= 0) & (columns >= 0)
    kept = known & (values > 0)
    zeros = int((values == 0).sum())
    if zeros:
        _warn_zeros(zeros, f"left out of {name}")
    if not kept.any():
        raise ValueError(f"{name} has no count whose user and item are both in the training data")
    if not known.all():
        unknown = f"{len(known) - int(known.sum())} of the {len(known)} counts of {name} were left out"
        warn(f"{unknown}: their user or item was not in the training data")
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


def known_factors(given: Any, ids: Ids, k: int, *, name: str) -> NDArray[Any]:
    """Factors (n, k) in the order of ``ids``, read from a frame by id or from an array by row number."""
    matrix: NDArray[Any]
    if isinstance(given, pd.DataFrame):
        if not given.index.is_unique:
            twice = given.index[given.index.duplicated()][0]
            raise ValueError(f"{name} has several rows for {ids.kind} {shown(twice)}")
        places = np.full(ids.size, -1)
        codes = ids.codes(given.index)
        places[codes[codes >= 0]] = np.flatnonzero(codes >= 0)
        if (places < 0).any():
            missing = ids.index[int(np.argmin(places))] if ids.values is not None else int(np.argmin(places))
            raise ValueError(f"{name} has no row for {ids.kind} {shown(missing)}, who is in counts_df")
        numeric = all(pd.api.types.is_numeric_dtype(column) for column in given.dtypes)
        matrix = (given.to_numpy(np.float64, na_value=np.nan) if numeric else given.to_numpy())[places]
    else:
        matrix = np.asarray(on_host(given))
        if ids.values is not None:
            raise TypeError(
                f"{name} must be a data frame with {ids.kind} ids for index: only row numbers tell the rows "
                f"of an array apart, and not {type(given).__name__}"
            )
    if matrix.shape != (ids.size, k):
        raise ValueError(f"{name} has shape {matrix.shape}, and the model has ({ids.size}, {k}) there")
    if matrix.dtype.kind not in "iuf":
        raise TypeError(f"{name} must have numbers, not {matrix.dtype}")
    bad = ~((matrix >= 0) & (matrix <= _MOST_KNOWN))
    if bad.any():
        value = matrix[bad][0].item()
        raise ValueError(f"{name} has {value!r}; factors lie between 0 and {_MOST_KNOWN:g}")
    empty = ~(matrix > 0).any(axis=1)
    if empty.any():
        raise ValueError(
            f"row {int(np.argmax(empty))} of {name} is all zero: nobody could have a count there"
        )
    return matrix


@dataclass(frozen=True)
class NewRows:
    """Canonical counts of new users by the items of a model, or of new items by its users."""

    csr: sparse.csr_array  # (B, M)
    ids: Ids  # of the B rows


def new_rows(data: Any, kind: str, known: Ids, *, dtype: type, name: str) -> NewRows:
    """Counts of new rows of a ``kind``, "user" or "item", by the known ids of the other side.

    Rows are in order of first appearance; those of a matrix keep their numbers.  Counts of unknown ids
    are left out with a warning; ValueError if none is left.
    """
    data = on_host(data)
    if sparse.issparse(data):
        given = _checked_matrix(data, dtype)
        given = given if kind == "user" else given.T.tocsr()
        rows, columns, values = _row_of_each(given), given.indices, given.data
        ids = Ids(None, given.shape[0], kind)
    else:
        users, items, counts = _triplets(data, COLUMNS, name)
        values = _checked_counts(counts, dtype)
        row_ids, columns = (users, items) if kind == "user" else (items, users)
        rows, ids = encode(row_ids, kind, reindex=True)
    codes = known.codes(columns)
    unknown, zero = codes < 0, values == 0
    if zero.any():
        _warn_zeros(int(zero.sum()), f"left out of {name}")
    if unknown.all():
        raise ValueError(f"{name} has no {known.kind} that was in the training data")
    if unknown.any():
        left_out = f"{int(unknown.sum())} counts of {name} were left out: their {known.kind}s"
        warn(f"{left_out} were not in the training data")
    kept = ~(unknown | zero)
    if not kept.any():
        raise ValueError(f"{name} has no count above zero of {known.kind}s that were in the training data")
    coo = sparse.coo_array((values[kept], (rows[kept], codes[kept])), shape=(ids.size, known.size))
    csr = _canonical(coo.tocsr())
    empty = int((np.diff(csr.indptr) == 0).sum())
    if empty:
        warn(
            f"{empty} new {kind}s have no count that can be used; they get the factors of a {kind} "
            "without counts"
        )
    return NewRows(csr, ids)


@dataclass(frozen=True)
class BatchSide:
    """Ids of one side in a batch, before it is known which rows of a model they have."""

    ids: Ids
    codes: NDArray[Any]  # (Z,) places in ``ids`` of the counts
    members: NDArray[Any]  # (B,) of all that the batch is made of


@dataclass(frozen=True)
class BatchData:
    """Counts of a batch, zeros included: who has only zeros is in the batch too."""

    sides: tuple[BatchSide, BatchSide]  # users and items
    counts: NDArray[Any]  # (Z,)

    def csr(self, rows: tuple[NDArray[Any], NDArray[Any]], shape: tuple[int, int]) -> sparse.csr_array:
        """Canonical counts in ``shape``, where the ids of both sides have these row numbers."""
        kept = self.counts > 0
        places = tuple(numbers[side.codes[kept]] for numbers, side in zip(rows, self.sides, strict=True))
        return _canonical(sparse.coo_array((self.counts[kept], places), shape=shape).tocsr())


def batch_data(
    data: Any, known: tuple[Ids, Ids], members: tuple[Any, Any], *, dtype: type, name: str
) -> BatchData:
    """Read a batch for a model with these ids.

    ``members`` has all ids of the batch for a side, or None: those in the data.
    """
    data = on_host(data)
    if sparse.issparse(data):
        given = _checked_matrix(data, dtype)
        if given.nnz == 0:
            raise ValueError(f"{name} is empty")
        columns, counts = [pd.Series(_row_of_each(given)), pd.Series(given.indices)], given.data
    else:
        *columns, count_column = _triplets(data, COLUMNS, name)
        counts = _checked_counts(count_column, dtype)
    zeros = int((counts == 0).sum())
    if zeros:
        _warn_zeros(zeros, f"left out of {name}")
    users, items = (_batch_side(*given) for given in zip(columns, known, members, strict=True))
    return BatchData((users, items), counts)


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


def one_user(data: Any, user_id: Any, *, name: str) -> pd.DataFrame:
    """Counts of one user by item, as a frame with her id."""
    data = on_host(data)
    if sparse.issparse(data):
        csr = _checked_matrix(data, np.float64)
        if csr.shape[0] != 1:
            raise ValueError(
                f"{name} has {csr.shape[0]} rows; the counts of one user are a matrix of one row"
            )
        items, counts = csr.indices, csr.data
    else:
        items, counts = _triplets(data, COLUMNS[1:], name)
    users = pd.Series(
        [user_id] * len(counts),
        index=getattr(counts, "index", None),
        dtype=object if isinstance(user_id, str) else None,  # pandas' own strings have to be Unicode
    )
    return pd.DataFrame({"UserId": users, "ItemId": items, "Count": counts})


def on_host(data: Any) -> Any:
    """An array of any library, or a sparse matrix of CuPy, as NumPy's or SciPy's; anything else as it is."""
    if type(data).__module__.partition(".")[0] in ("cupy", "cupyx"):
        return data.get()
    if isinstance(data, np.ndarray) or not hasattr(type(data), "__dlpack__"):
        return data
    try:
        return np.from_dlpack(data, device="cpu")
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = f"{type(data).__module__}.{type(data).__name__}"
        raise TypeError(f"{kind} cannot be copied to the host ({error}): pass it as a NumPy array") from error


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
        if not pd.api.types.is_numeric_dtype(series[-1]):
            counts = series[-1].dropna()
            if len(counts) and pd.api.types.is_string_dtype(counts):
                example = f"the first is {shown(counts.iloc[0])}"
                raise ValueError(
                    f"counts in {name} are strings, {example}: pass numbers, as pandas.to_numeric makes"
                )
    elif isinstance(data, np.ndarray):
        data = native(np.asarray(data))  # numpy.matrix has no columns of one dimension
        if data.ndim != 2 or data.shape[1] != len(columns):
            raise ValueError(
                f"{name} has shape {data.shape}; an array must be (n, {len(columns)}) with columns "
                f"{', '.join(columns)}. For a dense matrix of counts pass scipy.sparse.csr_array(matrix)"
            )
        # Strings as objects: those of pandas have to be Unicode.
        values = data.astype(object) if data.dtype.kind == "U" else data
        dtype = object if values.dtype == object else None
        series = [pd.Series(values[:, j], dtype=dtype) for j in range(len(columns))]
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
        counts = _checked_counts(pd.Series(native(data.data)), dtype)
        try:
            arrays = (counts, data.indices.copy(), data.indptr.copy())
            given = type(data)(arrays, shape=data.shape)
            given.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"the arrays of this sparse matrix contradict each other: {error}") from error
        csr = sparse.csr_array(given)
    else:
        given = data.tocoo()
        for indices, size in zip((given.row, given.col), data.shape, strict=True):
            if len(indices) and not 0 <= indices.min() <= indices.max() < size:
                raise ValueError(f"this sparse matrix of shape {data.shape} has an index outside its shape")
        counts = _checked_counts(pd.Series(native(given.data)), dtype)
        csr = sparse.coo_array((counts, (given.row, given.col)), shape=data.shape).tocsr()
    columns = csr.indices if csr.nnz > np.iinfo(np.int32).max else narrow(csr.indices, csr.shape[1])
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
            raise ValueError(f"count {shown(column[wrong].iloc[0])} is not a number")
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
        where = f"count {shown(column.iloc[row])} in row {shown(column.index[row])}"
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
    warn(f"{how_many} counts of zero were {what}: pairs that are absent count as zero")
