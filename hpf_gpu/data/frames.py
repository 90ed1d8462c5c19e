"""Tables of other libraries than pandas, and files: their columns as pandas' and results in the same library.

narwhals knows the libraries.  It is loaded with the first table that is not of pandas, and pyarrow with the
first file, so that those who have neither pay nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from hpf_gpu.messages import did_you_mean

_PANDAS = "pandas"
_OURS = ("builtins", "numpy", "pandas", "scipy")  # packages whose types are known without narwhals
_PARQUET = (".parquet", ".pq")
_ARROW = (".arrow", ".feather", ".ipc")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_OTHER_SEPARATORS = ";\t|,"
_HEADER = 1 << 16  # bytes in which a header ends
_COMPRESSED = (".gz", ".bz2", ".zst")
_ROWS_OF_A_BATCH = 1 << 20
_CSV_AT_ONCE = 1 << 20  # bytes of a CSV file that pyarrow converts together, of which a line is a part
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
    if (files := files_of(data, name)) is not None:
        data = _columns_of_files(files, columns_needed(ids, count), name)
    elif isinstance(data, (str, os.PathLike)):
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
    close = did_you_mean(missing[:1], [column for column in have if column not in wanted])
    more = f" and {len(have) - _SHOWN} more" if len(have) > _SHOWN else ""
    needed = ", ".join(map(str, wanted))
    raise ValueError(
        f"{name} has no column {missing[0]!r}{close}; it needs {needed} and has "
        f"{', '.join(map(repr, have[:_SHOWN])) or 'none'}{more}. Say which columns these are by "
        "HPF(user=..., item=..., count=...), on the command line --user, --item and --count; count=None if "
        "every row is one. If there is a row for each user and a column for each item, pass "
        "hpf_gpu.Counts(frame)"
    )


def like(frame: pd.DataFrame, *given: Any, library: str | None = None) -> Any:
    """A result in the library of the first of the user's tables or columns ``given`` that is not of pandas.

    If none of them is a table or column, in ``library``, that of the training data.  An index with a name
    becomes a column.  The result stays with pandas if that library is not installed, or has no column for
    such ids, as for those of several types.
    """
    named = [name for name in map(_library_of, given) if name is not None]
    wanted: Any = next((name for name in named if name != _PANDAS), None) if named else library
    if wanted is None:
        return frame
    import narwhals.stable.v2 as nw

    if frame.index.name is not None:
        frame = frame.reset_index()
    columns = {_flat(label): frame[label].to_numpy() for label in frame.columns}
    try:
        return nw.from_dict(columns, backend=wanted).to_native()
    except Exception:  # each library has its own
        return frame


def library_of(data: Any) -> str | None:
    """narwhals' name of the library of training data; None for pandas, and for what is no table."""
    library = _library_of(data)
    return None if library == _PANDAS else library


def _library_of(data: Any) -> str | None:
    """narwhals' name of the library of a table or column; None if it is neither."""
    if isinstance(data, (pd.DataFrame, pd.Series, pd.Index)):
        return _PANDAS
    if not _is_foreign(data):
        return None
    import narwhals.stable.v2 as nw

    native: Any = nw.from_native(_chunked(data), pass_through=True, allow_series=True)
    known = isinstance(native, (nw.DataFrame, nw.LazyFrame, nw.Series))
    return str(native.implementation.value) if known else None


def indexed(data: Any, labels: Sequence[Any], name: str) -> Any:
    """A table of any library as pandas', with the ids in its index.

    They are in a column, the first of ``labels`` that it has.  A frame of pandas, and what is
    no table, is returned as is.
    """
    if not _is_foreign(data):
        return data
    import narwhals.stable.v2 as nw

    frame: Any = nw.from_native(data, pass_through=True)
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect()
    if not isinstance(frame, nw.DataFrame):
        return data
    if frame.implementation.is_pandas():
        return frame.to_native()
    own = next((label for label in labels if label in frame.columns), None)
    if own is None:
        close = did_you_mean(labels[:1], frame.columns)
        raise ValueError(f"{name} has no column {labels[0]!r} with ids{close}, beside one for each factor")
    others = {label: frame[label].to_numpy() for label in frame.columns if label != own}
    return pd.DataFrame(others, index=pd.Index(_id_column(frame[own])))


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


def files_of(data: Any, name: str) -> Any:
    """The pyarrow dataset of Parquet or Arrow files, a folder or a list of such, or passed as one; or None.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If a file is not there or cannot be read, or there is no pyarrow.
    """
    if type(data).__module__.startswith("pyarrow.") and hasattr(data, "count_rows"):
        return data
    several = isinstance(data, (list, tuple)) and len(data) > 0
    listed = list(data) if several else [data]
    if not all(isinstance(one, (str, os.PathLike)) for one in listed):
        return None
    paths = [_existing(Path(os.fsdecode(one)).expanduser(), name) for one in listed]
    kinds = {"" if path.is_dir() else _kind(path) for path in paths}
    if not kinds <= {"", *_PARQUET} and not kinds <= set(_ARROW):
        if several:
            raise ValueError(
                f"{name} is a list of files {', '.join(sorted(kinds))}: several files are all of Parquet "
                f"({', '.join(_PARQUET)}) or all of Arrow ({', '.join(_ARROW)})"
            )
        return None
    _, dataset = _pyarrow(paths[0])
    where: Any = [str(path) for path in paths] if several else paths[0]
    with _readable(repr(str(paths[0]))):
        return dataset.dataset(
            where, format="ipc" if kinds <= set(_ARROW) else "parquet", partitioning="hive"
        )


def _columns_of_files(files: Any, wanted: list[Any], name: str) -> Any:
    """Some columns of a dataset as a table of pyarrow."""
    require_columns(files.schema.names, wanted, name)
    with _readable(name):
        return files.to_table(columns=wanted)


def batches_of(files: Any, wanted: list[Any], size: int, name: str) -> Iterator[Any]:
    """Some columns of a dataset in tables of pyarrow of about ``size`` rows, of which few are in memory."""
    from pyarrow import dataset

    # Unless it is told otherwise, pyarrow reads some row groups as a whole in advance.
    sparing = (
        {
            "fragment_scan_options": dataset.ParquetFragmentScanOptions(
                pre_buffer=False, use_buffered_stream=True
            )
        }
        if isinstance(getattr(files, "format", None), dataset.ParquetFileFormat)
        else {}
    )
    with _readable(name):
        batches = files.to_batches(
            columns=wanted,
            batch_size=min(size, _ROWS_OF_A_BATCH),
            batch_readahead=1,
            fragment_readahead=1,
            **sparing,
        )
        yield from _gathered(batches, size)


def _gathered(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Batches of pyarrow in tables of about ``size`` rows."""
    import pyarrow as pa

    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(one) for one in waiting) >= size:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _existing(path: Path, name: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{name} is {str(path)!r}, and there is no such file")
    return path


def _kind(path: Path) -> str:
    """The suffix that says what is in a file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else "none"


def _pyarrow(path: Path) -> tuple[Any, Any]:
    """pyarrow, and its datasets."""
    try:
        import pyarrow as pa
        from pyarrow import dataset
    except ImportError as error:
        raise ImportError(
            f"reading {str(path)!r} needs pyarrow: pip install 'hpf_gpu[parquet]'; or pass a data frame"
        ) from error
    return pa, dataset


def _read_file(path: Path, ids: Sequence[Any], count: Any, name: str, text: _Names) -> Any:
    """The columns of a CSV file as a table of pyarrow."""
    how = _how_to_read_csv(path, ids, count, name)
    from pyarrow import csv

    with _readable(repr(str(path))):
        return _with_integers(csv.read_csv(path, **how), ids, set(text()))


def csv_in_pieces(
    path: str | os.PathLike[str], ids: Sequence[Any], count: Any, size: int, name: str, text: _Names
) -> Iterator[Any]:
    """The columns of a CSV file in tables of pyarrow of about ``size`` rows, of which few are in memory.

    Ids are integers up to the first piece with one that is not written as such, and strings from there on.

    Raises
    ------
    ValueError, ImportError
        As for :func:`read_table`.
    """
    file, strings = Path(os.fsdecode(path)).expanduser(), set(text())
    how = _how_to_read_csv(file, ids, count, name)
    from pyarrow import csv

    # With threads it would not say in which row an error is.
    how["read_options"] = csv.ReadOptions(block_size=_CSV_AT_ONCE, use_threads=False)
    with _readable(repr(str(file))), csv.open_csv(file, **how) as batches:
        for table in _gathered(batches, size):
            yield _with_integers(table, ids, strings)


def _how_to_read_csv(path: Path, ids: Sequence[Any], count: Any, name: str) -> dict[str, Any]:
    """How pyarrow reads columns of a CSV file with a header, which may show that the separator is another.

    pyarrow decides from the first megabyte what a column has: a stock code 85123A after that would be an
    error, and 007 the same id as 7.  So ids are read as strings, and are integers if all are written as such.
    """
    kind = _kind(path)
    if kind == ".h5ad":
        raise ValueError(f"{name} is {str(path)!r}: pass anndata.read_h5ad({str(path)!r})")
    if kind not in _SEPARATORS:
        known = ", ".join((*_PARQUET, *_ARROW, *_SEPARATORS))
        raise ValueError(
            f"{name} is {str(path)!r}: pass a file {known}, also compressed ({', '.join(_COMPRESSED)}), a "
            "folder of Parquet files, or a data frame"
        )
    pa, _ = _pyarrow(path)
    from pyarrow import csv

    separator = _SEPARATORS[kind]
    with _readable(repr(str(path))):
        with pa.input_stream(str(path)) as start:
            header = start.read(_HEADER).partition(b"\n")[0].decode(errors="replace")
        separator = next((one for one in (separator, *_OTHER_SEPARATORS) if one in header), separator)
        parse = csv.ParseOptions(delimiter=separator)
        with csv.open_csv(path, parse_options=parse) as start:
            require_columns(start.schema.names, columns_needed(ids, count), f"{name}, {path},")
    types = dict.fromkeys(ids, pa.dictionary(pa.int32(), pa.string()))
    if count is not None:
        types[count] = pa.float64()
    convert = csv.ConvertOptions(
        include_columns=list(types), column_types=types, null_values=[""], strings_can_be_null=True
    )
    return {"parse_options": parse, "convert_options": convert}


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    """Makes an error of pyarrow one that says what cannot be read."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowInvalid as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def _with_integers(table: Any, ids: Sequence[Any], strings: set[Any]) -> Any:
    """The table of pyarrow with integers in those columns of ids that have nothing else.

    Columns among ``strings`` remain strings, and those that do are added to them.
    """
    for label in [one for one in ids if one not in strings]:
        place = table.column_names.index(label)
        column = _integers_if_so_written(table.column(label))
        if column is None:
            strings.add(label)
        else:
            table = table.set_column(place, label, column)
    return table


def _integers_if_so_written(column: Any) -> Any | None:
    """Strings of a dictionary as integers; None if that would lose something."""
    import pyarrow as pa

    encoded = column.unify_dictionaries().combine_chunks()
    try:
        numbers = encoded.dictionary.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    if not numbers.cast(pa.string()).equals(encoded.dictionary):
        return None
    return numbers.take(encoded.indices)
