"""A table in a Parquet file, written part after part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import pandas as pd

from .whole_file import path_of, replacing

PARQUET = (".parquet", ".pq")
_USERS_AT_ONCE, _ENTRIES_AT_ONCE = 8192, 1 << 20  # whose lists are in memory together, and how many entries


def in_parts(users: Any, n: int) -> Iterator[Any]:
    """Users (B,) in slices, short enough that lists of ``n`` items for those of one take little memory."""
    size = max(1, min(_USERS_AT_ONCE, _ENTRIES_AT_ONCE // n))
    for start in range(0, len(users), size):
        yield users[start : start + size]


class ParquetTable:
    """Takes the rows of a table, part after part; each part is a row group."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                f"Parquet files need pyarrow ({error}): pip install 'hpf_gpu[parquet]'"
            ) from error
        self._arrow = pyarrow
        self._file = file
        self._writer: Any = None
        self._empty: pd.DataFrame | None = None

    def add(self, frame: pd.DataFrame) -> bool:
        """Write these rows; always True, that more of them would be of use.

        Raises
        ------
        ValueError, TypeError
            If a column has values that fit into no column of Arrow, such as ids of several types.
        """
        if frame.empty:  # objects have no type then
            self._empty = frame
            return True
        self._write(frame)
        return True

    def close(self) -> None:
        """The table is complete."""
        if self._writer is None and self._empty is not None:
            self._write(self._empty)
        if self._writer is not None:
            self._writer.close()

    def _write(self, frame: pd.DataFrame) -> None:
        arrow, schema = self._arrow, None if self._writer is None else self._writer.schema
        try:
            table = arrow.Table.from_pandas(frame, schema=schema, preserve_index=False)
        except (arrow.ArrowInvalid, arrow.ArrowTypeError, UnicodeEncodeError) as error:
            raise ValueError(f"these ids fit into no column of a Parquet file: {error}") from error
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def abandon(self) -> None:
        """No more is written, not even when the writer of pyarrow is deleted."""
        if self._writer is not None:
            with contextlib.suppress(Exception):  # whatever made this necessary
                self._writer.close()


@contextlib.contextmanager
def parquet_table(file: BinaryIO) -> Iterator[ParquetTable]:
    """A table in an open file, complete when the block ends."""
    table = ParquetTable(file)
    try:
        yield table
        table.close()
    except BaseException:
        table.abandon()
        raise


def write_parquet(path: str | os.PathLike[str], frames: Iterable[pd.DataFrame]) -> None:
    """Write a table whose parts are made meanwhile; an existing file is replaced when it is complete.

    Raises
    ------
    ValueError, OSError, ImportError
        If the name is not that of a Parquet file, the file cannot be written, or there is no pyarrow.  An
        existing file is then unchanged.
    """
    target = path_of("path", path)
    if target.suffix.lower() not in PARQUET:
        raise ValueError(
            f"path={str(target)!r} is written as Parquet: call it {target.with_suffix('.parquet').name!r}"
        )
    with replacing(target) as file, parquet_table(file) as table:
        for frame in frames:
            table.add(frame)
