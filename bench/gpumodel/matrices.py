"""The counts of a shape as the backend lays them out: segments by users and by items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from gpu.shapes import SHAPES
from scipy import sparse

from gpumodel.caches import Nonzeros, Segments
from hpf_gpu.backends.cuda_layout import launch_order, segmentation

#: Which segments are launched first.
Order = Callable[[Segments, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rows:
    """The nonzeros of one side."""

    rows: int  # N
    columns: int  # M
    segments: Segments
    nonzeros: Nonzeros
    slots: int  # segments of rows that have several
    long_rows: int
    longest: int  # most segments of a row


def stored(segments: Segments, column: np.ndarray) -> np.ndarray:
    """The order in which the backend stores them."""
    middle = np.minimum(segments.begin + segments.size // 2, len(column) - 1)
    return launch_order(segments.size.astype(np.int64), column[middle])


def by_rows(segments: Segments, column: np.ndarray) -> np.ndarray:
    """As they are cut."""
    return np.arange(len(segments.size))


ORDERS: dict[str, Order] = {"stored": stored, "rows": by_rows}


@cache
def matrices(shape: str, order: str = "stored") -> tuple[Rows, Rows]:
    """The counts of one of ``gpu.shapes.SHAPES`` by users and by items."""
    csr = SHAPES[shape].csr()
    return rows_of(csr, ORDERS[order]), rows_of(csr.T.tocsr(), ORDERS[order])


def rows_of(csr: sparse.csr_array, order: Order = stored) -> Rows:
    """One side: a matrix (N, M) with that side's rows."""
    cut = segmentation(csr.indptr.astype(np.int64))
    segments = Segments(cut.begin[:-1], np.diff(cut.begin).astype(np.int32))
    launched = order(segments, csr.indices)
    return Rows(
        *csr.shape,
        Segments(segments.begin[launched], segments.size[launched]),
        Nonzeros.of(csr.indices, csr.shape[1]),
        cut.slots,
        len(cut.long_row),
        int(np.diff(cut.long_begin).max(initial=0)),
    )
