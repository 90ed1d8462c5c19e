"""Counts that are read in pieces, for fits to more than memory holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from hpf_gpu.messages import warn_of_zeros

from .frames import batches_of, columns_needed, csv_in_pieces, files_of, require_columns
from .ids import Numbered
from .triplets import Columns, Counts, Triplets, load, on_host, read, read_matrix, row_numbers, row_of_each

_NAME = "counts_df"


@dataclass(frozen=True)
class Source:
    """Counts that are read in pieces."""

    pieces: Callable[[], Iterable[Any]]  # each in a form that :func:`hpf_gpu.data.triplets.read` takes
    total: int | None  # counts in all, if that is known
    written: bool = False  # ids are as a text has them: integers, and all strings once one is not an integer

    def triplets(self, size: int, *, dtype: type, columns: Columns) -> Iterator[Triplets]:
        """The counts above zero, at most about ``size`` at once, as they are: duplicates are not added up.

        Some may be of none, which still tell what type ids are of.

        Raises
        ------
        ValueError, TypeError
            If a piece is not of counts, or none is above zero.
        """
        zeros = others = 0
        for piece in self.pieces():
            for triplets in _parts(load(piece, columns, _NAME), size, dtype, columns):
                positive = triplets.counts > 0
                kept = int(positive.sum())
                zeros, others = zeros + len(positive) - kept, others + kept
                yield triplets if kept == len(positive) else triplets.where(positive)
        if zeros:
            warn_of_zeros(zeros, "dropped")
        if not others:
            raise ValueError(f"{_NAME} has no count above zero: there is nothing to fit")


def in_pieces(data: Any, columns: Columns, size: int) -> Source:
    """Counts in any form that :meth:`hpf_gpu.HPF.fit` takes, or several of them, as pieces of about ``size``.

    Files, memory-mapped matrices and what is iterated over are never in memory as a whole.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, ImportError
        As for :func:`hpf_gpu.data.triplets.load`.
    """
    ids = columns.user, columns.item
    if (files := files_of(data, _NAME)) is not None:
        wanted = columns_needed(ids, columns.count)
        require_columns(files.schema.names, wanted, _NAME)
        batches = partial(batches_of, files, wanted, size, _NAME)
        return Source(lambda: _of_one_table(batches(), columns), files.count_rows())
    if isinstance(data, (str, os.PathLike)):
        batches = partial(csv_in_pieces, data, ids, columns.count, size, _NAME, columns.text)
        return Source(lambda: _of_one_table(batches(), columns), None, written=True)
    if _is_several(data):
        return Source(lambda: data, None)
    loaded = load(data, columns, _NAME)
    return Source(lambda: [loaded], _size_of(loaded))


def _of_one_table(tables: Iterable[Any], columns: Columns) -> Iterator[pd.DataFrame]:
    """Parts of a table as frames of pandas, with the numbers that their rows have in the whole."""
    first = 0
    for table in tables:
        frame = load(table, columns, _NAME)
        frame.index = pd.RangeIndex(first, first + len(frame))
        first += len(frame)
        yield frame


def _is_several(data: Any) -> bool:
    """Whether data are tables to be iterated over; a single table may be iterable, too, over its columns."""
    single = isinstance(data, (str, bytes, os.PathLike, dict))
    return (
        isinstance(data, Iterable)
        and not single
        and not hasattr(data, "shape")
        and not (hasattr(data, "columns") or hasattr(data, "schema") or hasattr(data, "__arrow_c_stream__"))
    )


def _is_sparse(data: Any) -> bool:
    return bool(sparse.issparse(data))


def _size_of(data: Any) -> int | None:
    matrix: Any = data.sparse if isinstance(data, Counts) else data
    if _is_sparse(matrix):
        return int(matrix.nnz)
    return len(matrix) if hasattr(matrix, "__len__") else None


def _parts(data: Any, size: int, dtype: type, columns: Columns) -> Iterator[Triplets]:
    """A table or matrix in parts of about ``size`` counts; rows of a matrix keep their numbers."""
    given = data.ids if isinstance(data, Counts) else None
    host: Any = on_host(data.sparse if isinstance(data, Counts) else data)
    if _is_sparse(host):
        csr = host.tocsr()
        of_rows, of_columns = given or row_numbers(csr.shape)
        cuts = np.searchsorted(csr.indptr, np.arange(size, csr.nnz, size))
        for start, stop in pairwise(np.unique([0, *cuts, csr.shape[0]]).tolist()):
            part = read_matrix(csr[start:stop], dtype)
            rows, items = Numbered(row_of_each(part) + start, of_rows), Numbered(part.indices, of_columns)
            yield Triplets(rows, items, part.data, "raw")
        return
    several = isinstance(host, (pd.DataFrame, np.ndarray))
    for first in range(0, max(len(host), 1), size) if several else (0,):
        within = slice(first, first + size)
        piece = host.iloc[within] if isinstance(host, pd.DataFrame) else host[within] if several else host
        yield read(piece, dtype=dtype, name=_NAME, taken="raw", columns=columns)
