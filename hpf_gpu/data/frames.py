"""Tables of other libraries than pandas, and files: their columns as pandas' and results in the same library.

narwhals knows the libraries.  It is loaded with the first table that is not of pandas, and pyarrow with the
first file, so that those who have neither pay nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

_OURS = ("builtins", "numpy", "pandas", "scipy")  # packages whose types are known without narwhals
_PARQUET = (".parquet", ".pq")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COMPRESSED = (".gz", ".bz2", ".zst")
_SHOWN = 12  # names of columns in a message
#: Function to some columns.
_Names: TypeAlias = Callable[[], Sequence[Any]]

_NUMPY_LACKS = ("Int128", "UInt128")


def read_table(data: Any, ids: Sequence[Any], count: Any, name: str, text: _Names = list) -> Any:
    """The columns ``ids`` and ``count`` of a table of any library, or in a file, as a frame of pandas.

    Without ``count`` (None) only those of ids.  Of a CSV file, ids in the columns ``text()`` are strings even
    if all are written as integers.  A frame of pandas, and what is no table, is returned as is.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If a column is missing, a file is not there or of no known kind, or pyarrow is needed and not there.
    """
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, (str, os.PathLike)):
        data = _read_file(Path(os.fsdecode(data)).expanduser(), ids, count, name, text)
    elif not _is_foreign(data):
        return data
    import narwhals.stable.v2 as nw

    frame: Any = nw.from_native(data, pass_through=True)
    if frame is data and (hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")):
        import pyarrow as pa

        try:
            frame = nw.from_native(pa.table(data))
        except (pa.ArrowInvalid, TypeError):  # a single column
            return data
    if not isinstance(frame, (nw.DataFrame, nw.LazyFrame)):
        return data
    if frame.implementation.is_pandas():
        return frame.to_native()
    wanted = columns_needed(ids, count)
    require_columns(frame.collect_schema().names(), wanted, name)
    frame = frame.select(*wanted)
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect()
    columns = {label: _id_column(frame[label]) for label in ids}
    if count is not None:
        columns[count] = _count_column(frame[count])
    return pd.DataFrame(columns, copy=False)


def columns_needed(ids: Sequence[Any], count: Any) -> list[Any]:
    """The columns ``ids``, and that of counts if there is one."""
    return [*ids, *([] if count is None else [count])]


def require_columns(have: Any, wanted: Sequence[Any], name: str, index: Sequence[Any] = ()) -> None:
    """Raise ValueError unless a table has these columns; ``index`` has the names of pandas' index."""
    missing = [column for column in wanted if column not in have]
    if not missing:
        return
    if missing[0] in index:
        raise ValueError(
            f"{name} has {missing[0]!r} in its index, not in a column: pass {name}.reset_index()"
        )
    more = f" and {len(have) - _SHOWN} more" if len(have) > _SHOWN else ""
    needed = ", ".join(map(str, wanted))
    raise ValueError(
        f"{name} has no column {missing[0]!r}; it needs {needed} and has "
        f"{', '.join(map(repr, have[:_SHOWN])) or 'none'}{more}. Say which columns these are by "
        "HPF(user=..., item=..., count=...), on the command line --user, --item and --count; count=None if "
        "every row is one. If there is a row for each user and a column for each item, pass "
        "hpf_gpu.Counts(frame)"
    )


def like(frame: pd.DataFrame, *given: Any) -> Any:
    """A result in the library of the first of the user's tables or columns ``given`` that is not of pandas.

    An index with a name becomes a column.  The result stays with pandas if that library has no column for
    such ids, as for those of several types.
    """
    foreign = [data for data in given if _is_foreign(data)]
    if not foreign:
        return frame
    import narwhals.stable.v2 as nw

    for data in foreign:
        native: Any = nw.from_native(_chunked(data), pass_through=True, allow_series=True)
        if (
            not isinstance(native, (nw.DataFrame, nw.LazyFrame, nw.Series))
            or native.implementation.is_pandas()
        ):
            continue
        if frame.index.name is not None:
            frame = frame.reset_index()
        columns = {_flat(label): frame[label].to_numpy() for label in frame.columns}
        try:
            return nw.from_dict(columns, backend=native.implementation).to_native()
        except Exception:  # each library has its own
            return frame
    return frame


def series_of(ids: Any) -> Any:
    """A column of another library as pandas' series; anything else is returned as it is."""
    if not _is_foreign(ids):
        return ids
    import narwhals.stable.v2 as nw

    native: Any = nw.from_native(_chunked(ids), pass_through=True, allow_series=True)
    return _id_column(native) if isinstance(native, nw.Series) else ids


def _is_foreign(data: Any) -> bool:
    return data is not None and type(data).__module__.partition(".")[0] not in _OURS


def _chunked(data: Any) -> Any:
    """An array of pyarrow as narwhals knows it."""
    pa = sys.modules.get("pyarrow")
    return pa.chunked_array([data]) if pa is not None and isinstance(data, pa.Array) else data


def _flat(label: Any) -> str:
    """The name of a column; pandas has tuples where there are several levels, ending in "" for the index."""
    return "_".join(str(one) for one in label if one != "") if isinstance(label, tuple) else str(label)


# -- columns -------------------------------------------------------------------------------------


def _id_column(series: Any) -> Any:
    """A column of narwhals (Z,); strings as categories, so that no Python object is made of each."""
    if series.implementation.is_pandas():
        return series.to_native()
    dtype = series.dtype
    if str(dtype) in _NUMPY_LACKS:
        series = series.cast(_narwhals().Int64)
    if dtype.is_integer() or dtype.is_float() or dtype == _narwhals().Boolean:
        return pd.Series(series.to_numpy(), copy=False)
    if dtype != _narwhals().Object:
        try:
            import pyarrow as pa
        except ImportError:
            pass
        else:
            arrow = series.to_arrow()
            textual = pa.types.is_large_string(arrow.type) or pa.types.is_string(arrow.type)
            return pd.Series((arrow.dictionary_encode() if textual else arrow).to_pandas())
    return pd.Series(series.to_list(), dtype=object)


def _count_column(series: Any) -> pd.Series:
    """A column of narwhals (Z,) whose strings are strings."""
    dtype = series.dtype
    if dtype.is_decimal() or str(dtype) in _NUMPY_LACKS:
        series = series.cast(_narwhals().Float64)
    return pd.Series(series.to_numpy(), copy=False)


def _narwhals() -> Any:
    import narwhals.stable.v2 as nw

    return nw


# -- files ---------------------------------------------------------------------------------------


def _read_file(path: Path, ids: Sequence[Any], count: Any, name: str, text: _Names) -> Any:
    """The columns of a Parquet or CSV file, or of a folder of Parquet files, as a table of pyarrow."""
    if not path.exists():
        raise FileNotFoundError(f"{name} is {str(path)!r}, and there is no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind == ".h5ad":
        raise ValueError(f"{name} is {str(path)!r}: pass anndata.read_h5ad({str(path)!r})")
    if not path.is_dir() and kind not in (*_PARQUET, *_SEPARATORS):
        raise ValueError(
            f"{name} is {str(path)!r}: pass a file {', '.join((*_PARQUET, *_SEPARATORS))}, also compressed "
            f"({', '.join(_COMPRESSED)}), a folder of Parquet files, or a data frame"
        )
    try:
        import pyarrow as pa
        from pyarrow import dataset
    except ImportError as error:
        raise ImportError(
            f"reading {str(path)!r} needs pyarrow: pip install 'hpf_gpu[parquet]'; or pass a data frame"
        ) from error
    wanted = columns_needed(ids, count)
    try:
        if kind in _SEPARATORS and not path.is_dir():
            return _read_csv(path, _SEPARATORS[kind], ids, count, name, text)
        files = dataset.dataset(path, format="parquet", partitioning="hive")
        require_columns(files.schema.names, wanted, f"{name}, {path},")
        return files.to_table(columns=wanted)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


def _read_csv(path: Path, separator: str, ids: Sequence[Any], count: Any, name: str, text: _Names) -> Any:
    """The columns of a CSV file with a header.

    pyarrow decides from the first megabyte what a column has: a stock code 85123A after that would be an
    error, and 007 the same id as 7.  So ids are read as strings, and are integers if all are written as such.
    """
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter=separator)
    with csv.open_csv(path, parse_options=parse) as start:
        require_columns(start.schema.names, columns_needed(ids, count), f"{name}, {path},")
    types = dict.fromkeys(ids, pa.dictionary(pa.int32(), pa.string()))
    if count is not None:
        types[count] = pa.float64()
    convert = csv.ConvertOptions(
        include_columns=list(types), column_types=types, null_values=[""], strings_can_be_null=True
    )
    table = csv.read_csv(path, parse_options=parse, convert_options=convert)
    strings = text()
    for label in [one for one in ids if one not in strings]:
        place = table.column_names.index(label)
        table = table.set_column(place, label, _integers_if_so_written(table.column(label)))
    return table


def _integers_if_so_written(column: Any) -> Any:
    """Strings of a dictionary as integers, if that loses nothing."""
    import pyarrow as pa

    encoded = column.unify_dictionaries().combine_chunks()
    try:
        numbers = encoded.dictionary.cast(pa.int64())
    except pa.ArrowInvalid:
        return column
    if not numbers.cast(pa.string()).equals(encoded.dictionary):
        return column
    return numbers.take(encoded.indices)
