"""Tables that the command reads and writes: CSV and Parquet, by the name of the file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpf_gpu.ensemble import HPFEnsemble
from hpf_gpu.estimator import HPF
from hpf_gpu.files.parquet_file import PARQUET, parquet_table
from hpf_gpu.files.whole_file import replacing, writable
from hpf_gpu.messages import did_you_mean

from .terminal import is_terminal, write

_CSV = (".csv",)
_PACKED = (".gz", ".bz2", ".xz", ".zst")  # what pandas reads
_ROWS_ON_A_TERMINAL = 100


# -- in ------------------------------------------------------------------------------------------


def read_names(model: HPF | HPFEnsemble, path: Path) -> pd.Series:
    """Names of items by their ids, from the first two columns of a file."""
    if _suffix(path) in PARQUET:
        frame = pd.read_parquet(path)
    else:
        known = model.item_mapping_
        as_text = known is not None and len(known) > 0 and isinstance(known[0], str)
        frame = pd.read_csv(path, dtype={0: str} if as_text else None)
    if frame.shape[1] < 2:
        raise ValueError(f"{path} needs two columns, ids of items and their names; it has {frame.shape[1]}")
    return pd.Series(frame.iloc[:, 1].to_numpy(), index=frame.iloc[:, 0].to_numpy())


def _suffix(path: Path) -> str:
    """The ending of the name that says what the file is; ValueError if it is neither CSV nor Parquet."""
    plain = path.with_suffix("") if path.suffix.lower() in _PACKED else path
    suffix = plain.suffix.lower()
    if suffix not in PARQUET + _CSV:
        raise ValueError(f"{path} is neither .csv nor .parquet by its name")
    return suffix


# -- out -----------------------------------------------------------------------------------------


class Writer(Protocol):
    """Takes the rows of a table, part after part."""

    def add(self, frame: pd.DataFrame) -> bool:
        """Write these rows; whether more of them would be of use."""

    def close(self) -> None:
        """The table is complete."""


@contextlib.contextmanager
def writing(output: Path | None, *, as_json: bool) -> Iterator[Writer]:
    """Where a table goes: a file, which appears when it is complete, or standard output.

    Standard output gets JSON if that was asked for, else a table if it is a terminal, else CSV.
    """
    if output is None:
        writer: Writer = _Json() if as_json else _Terminal() if is_terminal(sys.stdout) else _Csv(None)
        yield writer
        writer.close()
        return
    is_parquet = check_output(output) in PARQUET
    with replacing(output) as file:
        if is_parquet:
            with parquet_table(file) as table:
                yield table
        else:
            yield _Csv(file)


def check_output(output: Path) -> str:
    """Raise OSError or ValueError before the work if the table cannot be written after it; its suffix."""
    writable(output)
    if output.suffix.lower() in _PACKED:
        raise ValueError(f"{output}: tables are written as .csv or .parquet")
    return _suffix(output)


class _Csv:
    def __init__(self, file: BinaryIO | None) -> None:
        self._file, self._first = file, True

    def add(self, frame: pd.DataFrame) -> bool:
        text = frame.to_csv(index=False, header=self._first, lineterminator="\n")
        self._first = False
        if self._file is None:
            write(text)
        else:
            self._file.write(text.encode())
        return True

    def close(self) -> None:
        pass


class _Json:
    """A list of objects, one line each."""

    def __init__(self) -> None:
        self._start = "["

    def add(self, frame: pd.DataFrame) -> bool:
        for row in frame.to_dict("records"):
            write(f"{self._start}\n{as_text(row)}")
            self._start = ","
        return True

    def close(self) -> None:
        write("[]\n" if self._start == "[" else "\n]\n")


class _Terminal:
    """The first rows, for people."""

    def __init__(self) -> None:
        self._frames: list[pd.DataFrame] = []
        self._rows = 0

    def add(self, frame: pd.DataFrame) -> bool:
        self._frames.append(frame)
        self._rows += len(frame)
        return self._rows <= _ROWS_ON_A_TERMINAL

    def close(self) -> None:
        if self._frames:
            show(pd.concat(self._frames).head(_ROWS_ON_A_TERMINAL))
        if self._rows > _ROWS_ON_A_TERMINAL:
            write("... and more: `-o FILE` writes them all\n")


def show(frame: pd.DataFrame) -> None:
    """Write a table for people to standard output."""
    table = Table()
    for name, column in frame.items():
        table.add_column(Text(str(name)), justify="right" if column.dtype.kind in "iufb" else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(_in_a_cell(value)) for value in row))
    Console().print(table)


def _in_a_cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def as_text(values: Any) -> str:
    """JSON of plain values, NumPy's too; NaN, which JSON does not have, as null."""
    return json.dumps(_plain(values), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def as_pandas(frame: Any) -> pd.DataFrame:
    """A table that came out, of whichever library the model was fitted to."""
    if isinstance(frame, pd.DataFrame):
        return frame
    import narwhals.stable.v2 as nw

    native: pd.DataFrame = nw.from_native(frame).to_pandas()
    return native


# -- ids -----------------------------------------------------------------------------------------


def ids_of_users(model: HPF | HPFEnsemble) -> NDArray[Any]:
    """Ids of all users of a model, (N,)."""
    return np.arange(model.nusers) if model.user_mapping_ is None else model.user_mapping_


def ids_of_items(model: HPF | HPFEnsemble) -> NDArray[Any]:
    """Ids of all items of a model, (M,)."""
    return np.arange(model.nitems) if model.item_mapping_ is None else model.item_mapping_


def listed(text: str) -> list[str]:
    """Ids with commas between them; one that contains a comma stands in double quotes."""
    return next(csv.reader(io.StringIO(text)), [])


def ids_named(text: str, known: Any, kind: str) -> tuple[list[Any], list[str]]:
    """The ids of a model, any type, that are named in a text with commas between them, and the names of none.

    The whole text may be an id with commas.  ``known`` (n,) are all ids; ValueError if none of them is named.
    """
    by_text = {str(one): one for one in known}
    texts = [text] if text in by_text else listed(text)
    found = [by_text[text] for text in texts if text in by_text]
    unknown = [text for text in texts if text not in by_text]
    if not found:
        close = did_you_mean(texts, by_text)
        raise ValueError(f"{kind} {', '.join(map(repr, texts))}: not in the model{close}")
    return found, unknown
