"""Reads and checks user data: counts with the ids of their users and items.

All errors about counts are raised here.  Input is never modified.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.messages import shown, warn

from .frames import columns_needed, read_table, require_columns
from .ids import Ids, Numbered, distinct, narrow, native

#: What a model may take for a count y > 0, by the value of the parameter ``counts``; None for y itself.
TRANSFORMS: dict[str, Callable[[Any], Any] | None] = {"raw": None, "binary": np.ones_like, "log1p": np.log1p}


@dataclass(frozen=True)
class Columns:
    """What the columns of a table of counts are called; without a column of counts every row is one."""

    user: Any = "UserId"
    item: Any = "ItemId"
    count: Any = "Count"
    known: tuple[Ids, Ids] | None = field(default=None, compare=False)  # users and items of a fitted model

    def text(self) -> list[Any]:
        """Columns with ids that are strings in the model, as they are then where a file has digits alone."""
        named = () if self.known is None else zip((self.user, self.item), self.known, strict=True)
        return [name for name, ids in named if ids.are_strings()]


@dataclass(frozen=True, eq=False)
class Counts:
    """A matrix of counts with the ids of its rows and columns, wherever counts are taken.

    Parameters
    ----------
    matrix : scipy or CuPy sparse matrix, array or DataFrame of pandas (nusers, nitems)
        Counts, with a row for each user and a column for each item.  Rows and columns without counts are
        users and items like all others: row j of ``Theta`` is that of row j here.  A frame brings the ids.
        Never modified.
    users : array-like (nusers,) of ids, optional
        All different, of any hashable type; by default row numbers.
    items : array-like (nitems,) of ids, optional
        Likewise of the columns.

    Raises
    ------
    ValueError, TypeError
        If ``matrix`` is not one, or there are not as many ids as rows or columns.

    Examples
    --------
    >>> from scipy import sparse
    >>> from hpf_gpu import HPF, Counts
    >>> plays = sparse.csr_array([[3, 0, 1], [0, 5, 2]])
    >>> model = HPF(k=2, verbose=False).fit(Counts(plays, users=["ann", "bob"], items=["x", "y", "z"]))
    >>> model.topN("ann", n=1).tolist()
    ['y']
    """

    matrix: Any
    _: KW_ONLY
    users: Any = None
    items: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.matrix, pd.DataFrame):
            frame = self.matrix
            for name, labels in (("users", frame.index), ("items", frame.columns)):
                if getattr(self, name) is None:
                    object.__setattr__(self, name, labels)
            object.__setattr__(self, "matrix", frame.to_numpy())
        shape = getattr(self.matrix, "shape", None)
        if shape is None:
            kind = type(self.matrix).__name__
            raise TypeError(f"Counts needs a sparse matrix, an array or a frame, not {kind}")
        if len(shape) != 2:
            raise ValueError(f"Counts needs a matrix of users by items; this one has shape {tuple(shape)}")
        for name, ids, size in zip(("users", "items"), (self.users, self.items), shape, strict=True):
            if ids is not None and len(ids) != size:
                raise ValueError(f"Counts has {len(ids)} {name} for a matrix of shape {tuple(shape)}")

    @property
    def sparse(self) -> Any:
        """The matrix as a sparse one, where it is."""
        if sparse.issparse(self.matrix) or type(self.matrix).__module__.startswith("cupyx."):
            return self.matrix
        return sparse.csr_array(np.asarray(on_host(self.matrix)))

    @property
    def ids(self) -> tuple[Ids, Ids]:
        """Those of the rows and of the columns; ValueError if one is missing or occurs twice."""
        n, m = self.matrix.shape
        return distinct(self.users, n, "user"), distinct(self.items, m, "item")


@dataclass(frozen=True)
class Triplets:
    """Checked counts, finite and at least zero, with the ids of their users and items.

    These are series of pandas, or, if the counts are from a matrix, numbers of its rows and columns with all
    their ids.
    """

    users: Any  # (Z,)
    items: Any  # (Z,)
    counts: NDArray[Any]  # (Z,)
    taken: str  # what a model takes for a count, see TRANSFORMS

    def where(self, kept: NDArray[np.bool_]) -> Triplets:
        """Those counts that are ``kept`` (Z,)."""
        return replace(self, users=self.users[kept], items=self.items[kept], counts=self.counts[kept])

    def csr(
        self, rows: NDArray[Any], columns: NDArray[Any], kept: NDArray[Any] | slice, shape: tuple[int, int]
    ) -> sparse.csr_array:
        """Canonical CSR of the counts that are ``kept``, at these rows and columns (Z,) of ``shape``.

        It may take over the memory of these arrays.
        """
        counts, rows, columns = self.counts[kept], rows[kept], columns[kept]
        if (rows[1:] >= rows[:-1]).all():  # as those of one user are: CSR but for indptr
            csr = sparse.csr_array((counts, columns, indptr_of(rows, shape[0])), shape=shape)
        else:
            csr = sparse.coo_array((counts, (rows, columns)), shape=shape).tocsr()
        return canonical(csr, self.taken)


def load(data: Any, columns: Columns, name: str) -> Any:
    """Counts in memory, in the forms that are read below: files are read, and tables made pandas'.

    To load what is loaded already changes nothing.  So data that are read several times are loaded once.
    """
    anndata = sys.modules.get("anndata")
    if anndata is not None and isinstance(data, anndata.Raw):
        raise TypeError(f"{name} is the raw part of an AnnData: pass adata.raw.to_adata()")
    if anndata is not None and isinstance(data, anndata.AnnData):
        matrix = data.to_memory().X if data.isbacked else data.X
        if matrix is None:
            raise ValueError(
                f"{name} is an AnnData without X: pass hpf_gpu.Counts(adata.layers[...], "
                "users=adata.obs_names, items=adata.var_names)"
            )
        if first_fraction(matrix.data if hasattr(matrix, "nnz") else np.asarray(matrix)) is not None:
            layers = ", ".join(map(repr, data.layers)) or "none"
            warn(
                f"X of the AnnData has values that are not whole numbers, as after a normalization: pass the "
                f"molecule counts, hpf_gpu.Counts(adata.layers[...], users=adata.obs_names, "
                f"items=adata.var_names); its layers are {layers}"
            )
        return Counts(matrix, users=data.obs_names, items=data.var_names)
    return read_table(data, (columns.user, columns.item), columns.count, name, columns.text)


def first_fraction(values: NDArray[Any]) -> float | None:
    """The first finite value that is not a whole number, or None; counts have none."""
    if values.dtype.kind != "f":
        return None
    finite = values[np.isfinite(values)]
    whole = finite == np.rint(finite)
    return None if whole.all() else float(finite[np.argmin(whole)])


def read(data: Any, *, dtype: type, name: str, taken: str, columns: Columns) -> Triplets:
    """Read counts in any accepted form (see :meth:`hpf_gpu.HPF.fit`), as numbers of ``dtype``.

    Raises
    ------
    ValueError, TypeError
        If the data are not counts of users and items; the message has the argument's ``name`` and the value.
    """
    host, given = _on_host_with_ids(load(data, columns, name))
    if sparse.issparse(host):
        csr = read_matrix(host, dtype)
        of_rows, of_columns = given or row_numbers(csr.shape)
        return Triplets(
            Numbered(row_of_each(csr), of_rows), Numbered(csr.indices, of_columns), csr.data, taken
        )
    (users, items), column = _columns(host, (columns.user, columns.item), columns.count, name)
    return Triplets(users, items, _counts(column, len(users), dtype), taken)


def read_one_user(data: Any, user: Any, *, dtype: type, name: str, taken: str, columns: Columns) -> Triplets:
    """Read counts of one user: a table of items and counts, an array (n, 2) or a matrix with one row."""
    host, given = _on_host_with_ids(read_table(data, (columns.item,), columns.count, name, columns.text))
    items: Any
    if sparse.issparse(host):
        csr = read_matrix(host, dtype)
        if csr.shape[0] != 1:
            raise ValueError(
                f"{name} has {csr.shape[0]} rows; pass the counts of one user as a matrix with one row"
            )
        _, of_columns = given or row_numbers(csr.shape)
        items, counts = Numbered(csr.indices, of_columns), csr.data
    else:
        (items,), column = _columns(host, (columns.item,), columns.count, name)
        counts = _counts(column, len(items), dtype)
    # As objects, because pandas' own strings must be valid Unicode.
    users = pd.Series(
        [user] * len(counts),
        index=getattr(items, "index", None),
        dtype=object if isinstance(user, str) else None,
    )
    return Triplets(users, items, counts, taken)


def _on_host_with_ids(data: Any) -> tuple[Any, tuple[Ids, Ids] | None]:
    """Data on the host, and the ids that a matrix brings."""
    return (on_host(data.sparse), data.ids) if isinstance(data, Counts) else (on_host(data), None)


def with_ids(data: Any, columns: Columns) -> Any:
    """The data as they are; TypeError if they are a matrix, which has no ids of its users."""
    if sparse.issparse(on_host(data)):
        raise TypeError(
            f"users are added by id: pass a frame with {columns.user}, {columns.item} and "
            f"{'a row for each pair' if columns.count is None else columns.count}, or hpf_gpu.Counts(matrix, "
            "users=ids, items=ids)"
        )
    return data


def row_numbers(shape: tuple[int, int]) -> tuple[Ids, Ids]:
    """The ids of a matrix that brings none."""
    return Ids(None, shape[0], "user"), Ids(None, shape[1], "item")


def canonical(csr: sparse.csr_array, taken: str) -> sparse.csr_array:
    """Sort the counts in place and add up duplicates; then replace them by what is ``taken`` for them."""
    csr.sum_duplicates()
    take(csr.data, taken)
    return csr


def take(counts: Any, taken: str) -> None:
    """Replace counts (Z,), an array of NumPy or CuPy, by what is ``taken`` for them."""
    if (transform := TRANSFORMS[taken]) is not None:
        counts[...] = transform(counts)


def on_host(data: Any) -> Any:
    """Convert an array of any library to NumPy, and a CuPy sparse matrix to SciPy; return anything else."""
    if type(data).__module__.partition(".")[0] in ("cupy", "cupyx"):
        return data.get()
    if isinstance(data, np.ndarray) or not hasattr(type(data), "__dlpack__"):
        return data
    try:
        return np.from_dlpack(data, device="cpu")
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = f"{type(data).__module__}.{type(data).__name__}"
        raise TypeError(f"{kind} cannot be copied to the host ({error}): pass it as a NumPy array") from error


def _columns(
    data: Any, ids: Sequence[Any], count: Any, name: str
) -> tuple[list[pd.Series], pd.Series | None]:
    """The columns of ids and of counts of a frame of pandas, or of an array (n, 3), unconverted."""
    columns = columns_needed(ids, count)
    if isinstance(data, pd.DataFrame):
        if not data.columns.is_unique:
            names = data.columns.tolist()  # comparing the index itself takes a millisecond
            doubled = [column for column in columns if names.count(column) > 1]
            if doubled:
                raise ValueError(f"{name} has several columns {doubled[0]!r}")
        try:
            series = [data[column] for column in columns]
        except KeyError:
            require_columns(data.columns, columns, name, index=data.index.names)
            raise
        if count is not None and not pd.api.types.is_numeric_dtype(series[-1]):
            counts = series[-1].dropna()
            if len(counts) and pd.api.types.is_string_dtype(counts):
                example = f"the first is {shown(counts.iloc[0])}"
                raise ValueError(
                    f"counts in {name} are strings, {example}: pass numbers, for example by pandas.to_numeric"
                )
    elif isinstance(data, np.ndarray):
        data = native(np.asarray(data))  # numpy.matrix has no columns of one dimension
        if data.ndim == 1 and len(columns) == 1:
            data = data[:, None]
        if data.ndim != 2 or data.shape[1] != len(columns):
            raise ValueError(
                f"{name} has shape {data.shape}; an array must be (n, {len(columns)}) with columns "
                f"{', '.join(map(str, columns))}. For a dense matrix of counts pass "
                "scipy.sparse.csr_array(matrix)"
            )
        # Strings as objects, because pandas' own strings must be valid Unicode.
        values = data.astype(object) if data.dtype.kind == "U" else data
        dtype = object if values.dtype == object else None
        series = [pd.Series(values[:, j], dtype=dtype) for j in range(len(columns))]
    else:
        raise TypeError(_refused(data, columns, name))
    if len(data) == 0:
        raise ValueError(f"{name} is empty")
    return series[: len(ids)], None if count is None else series[-1]


def _refused(data: Any, columns: Sequence[Any], name: str) -> str:
    """What to call instead of passing such data."""
    names = ", ".join(map(repr, columns))
    kind = "an object" if isinstance(data, type) or callable(data) else type(data).__name__
    if isinstance(data, dict):
        way = f"pandas.DataFrame(data), with columns {names}"
    elif isinstance(data, pd.Series):
        way = f"series.reset_index(), with columns {names}"
    elif isinstance(data, (list, tuple, set)):
        way = f"pandas.DataFrame(data, columns=[{names}])"
    else:
        way = "pandas.DataFrame(...) of it"
    return (
        f"{name} must be a data frame (pandas, polars, pyarrow, ...) with columns {names}, an array "
        f"(n, {len(columns)}), a scipy sparse matrix, hpf_gpu.Counts, an AnnData, or the path of a Parquet "
        f"or CSV file, not {kind}: pass {way}"
    )


def _counts(column: pd.Series | None, size: int, dtype: type) -> NDArray[Any]:
    """Counts (Z,) in ``dtype``, checked; ones if there is no column of them."""
    return np.ones(size, dtype) if column is None else _checked_counts(column, dtype)


def read_matrix(data: Any, dtype: type) -> Any:
    """Copy a sparse matrix to CSR in ``dtype``, after checking its indices and counts.

    Counts are checked and cast before duplicates are added up: int8 would overflow, and −1 + 2 would be 1.

    Raises
    ------
    ValueError
        If an index is outside the shape, or a count is negative or not finite.
    """
    if data.ndim != 2 or 0 in data.shape:
        raise ValueError(f"a sparse matrix of counts needs rows and columns; this one has shape {data.shape}")
    if data.format in ("csr", "csc"):
        counts = _checked_counts(pd.Series(native(data.data)), dtype)
        try:
            arrays = (counts, data.indices.copy(), data.indptr.copy())
            matrix = type(data)(arrays, shape=data.shape)
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"the arrays of this sparse matrix contradict each other: {error}") from error
        csr = sparse.csr_array(matrix)
    else:
        matrix = data.tocoo()
        for indices, size in zip((matrix.row, matrix.col), data.shape, strict=True):
            if len(indices) and not 0 <= indices.min() <= indices.max() < size:
                raise ValueError(f"this sparse matrix of shape {data.shape} has an index outside its shape")
        counts = _checked_counts(pd.Series(native(matrix.data)), dtype)
        csr = sparse.coo_array((counts, (matrix.row, matrix.col)), shape=data.shape).tocsr()
    columns = csr.indices if csr.nnz > np.iinfo(np.int32).max else narrow(csr.indices, csr.shape[1])
    return sparse.csr_array((csr.data, columns, csr.indptr.astype(columns.dtype)), shape=csr.shape)


def _checked_counts(column: pd.Series, dtype: type) -> NDArray[Any]:
    """Counts (Z,) in ``dtype``, as a copy; ValueError unless all are finite and at least zero."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = pd.Series(np.asarray(column), index=column.index)
    numeric = column
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        # Strings may be numbers; other types, such as dates, which pandas would convert, are set to missing.
        textual = column.dtype == object or pd.api.types.is_string_dtype(column)
        numeric = pd.to_numeric(column, errors="coerce") if textual else column.where(column.isna())
        wrong = numeric.isna() & column.notna()
        if wrong.any():
            raise ValueError(f"count {shown(column[wrong].iloc[0])} is not a number")
    # In columns of NumPy's types nothing is missing but NaN; looking for more takes ten times as long.
    missing = {} if isinstance(numeric.dtype, np.dtype) else {"na_value": np.nan}
    with np.errstate(over="ignore"):
        values: NDArray[Any] = numeric.to_numpy(dtype=dtype, copy=True, **missing)
    # Two reductions decide whether all counts are valid; only if not is the invalid one searched for.
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


def indptr_of(rows: NDArray[Any], n: int) -> NDArray[np.int64]:
    """CSR indptr (n + 1,) of nonzeros in ascending rows (Z,); in 64 bits, because Z may need them."""
    return np.searchsorted(rows, np.arange(n + 1, dtype=rows.dtype)).astype(np.int64, copy=False)


def row_of_each(csr: Any) -> NDArray[Any]:
    """Row number of every nonzero (Z,)."""
    return np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
