"""The layout of counts on a GPU, and the memory that a fit needs there.  Computed on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .cuda_source import Variant
from .protocol import Host

#: Maximum number of nonzeros in a segment, which one warp processes.
SEGMENT = 256
#: Maximum number of nonzeros in a part of counts that stream, at least SEGMENT: so many that launches do not
#: matter, so few that three buffers for them take little of a GPU's memory.
PART = 1 << 24
#: The largest number of rows, columns or segments: kernels that go over 256 of them at a time, in 32 bits,
#: get beyond the last by less than that.
MAX_NUMBER = int(np.iinfo(np.int32).max) - 256
_MAX_STRANDS = 1024
_NEIGHBOURS = 64  # segments that are near enough in the order of columns to be sorted by length
_FREE_COUNTERS = 1 << 21  # of a sort; so few that their memory does not matter


@dataclass(frozen=True)
class Segmentation:
    """Rows of a CSR matrix, split into segments of at most SEGMENT nonzeros; every row has at least one."""

    indptr: Host  # (N + 1,) int64
    begin: Host  # (S + 1,) int64
    row: Host  # (S,) int32
    slot: Host  # (S,) int32, position among the segments of long rows; −1 if the segment is a whole row
    long_row: Host  # (L,) int32, rows of several segments
    long_begin: Host  # (L + 1,) int32, first slot of each of them

    @property
    def slots(self) -> int:
        """Number of segments of rows that have several."""
        return int(self.long_begin[-1])

    @property
    def count(self) -> int:
        """Number of segments S."""
        return len(self.row)

    @property
    def nnz(self) -> int:
        """Number of nonzeros Z."""
        return int(self.indptr[-1])

    @property
    def middle(self) -> Host:
        """The nonzero (S,) in the middle of each segment; any one where a segment is empty."""
        middle: Host = (self.begin[:-1] + self.begin[1:]) // 2
        return middle.clip(max=max(0, self.nnz - 1))

    def in_launch_order(self, part: slice, middle: Host) -> tuple[Host, Host, Host, Host, Host]:
        """Segments of a part as kernels take them: begin in the part, size, row, slot and number, each (P,).

        ``middle`` (P,) is the column of each one's middle nonzero.
        """
        begin = self.begin[part.start : part.stop + 1]
        size = np.diff(begin)
        order = launch_order(size, middle)
        return (
            begin[order] - begin[0],
            size[order].astype(np.int32),
            self.row[part][order],
            self.slot[part][order],
            (part.start + order).astype(np.int32),
        )


def segmentation(indptr: Host) -> Segmentation:
    """Split the rows of a CSR matrix with ``indptr`` (N + 1,) into segments.

    Raises
    ------
    ValueError
        If there are more segments than an int32 can number.
    """
    pieces = np.maximum(1, -(-np.diff(indptr) // SEGMENT))
    if int(pieces.sum()) > MAX_NUMBER:
        raise ValueError(f"{int(pieces.sum())} segments of {SEGMENT} counts are more than 32 bits can number")
    row = np.repeat(np.arange(len(pieces), dtype=np.int32), pieces)
    before = np.cumsum(pieces) - pieces  # segments of the rows above
    begin = indptr[row] + SEGMENT * (np.arange(len(row)) - before[row])
    is_long = pieces > 1
    in_long = is_long[row]
    return Segmentation(
        indptr=indptr,
        begin=np.append(begin, indptr[-1]).astype(np.int64),
        row=row,
        slot=np.where(in_long, np.cumsum(in_long) - 1, -1).astype(np.int32),
        long_row=np.flatnonzero(is_long).astype(np.int32),
        long_begin=np.append(0, np.cumsum(pieces[is_long])).astype(np.int32),
    )


def parts_of(begin: Host, most: int) -> list[slice]:
    """Cut pieces that begin at nonzeros ``begin`` (P + 1,) into runs of at most ``most`` nonzeros.

    A piece of more is a run by itself.
    """
    parts, start = [], 0
    while start < len(begin) - 1:
        stop = int(np.searchsorted(begin, begin[start] + most, side="right")) - 1
        parts.append(slice(start, max(stop, start + 1)))
        start = parts[-1].stop
    return parts


def launch_order(size: Host, middle: Host) -> Host:
    """The order (S,) in which warps take segments of these sizes (S,).

    ``middle`` (S,) is the column in the middle of each; any number where a segment is empty.  First the long
    ones, by that column: warps that run together then gather the same rows of the other side, which stay in
    the cache.  Then the others.  Longer ones come first among neighbours, so that the warps of a block, whose
    place is free when the last of them ends, end together.
    """
    long = np.flatnonzero(size >= SEGMENT // 2)
    short = np.flatnonzero(size < SEGMENT // 2)
    long = long[np.argsort(middle[long], kind="stable")]
    long = long[np.lexsort((-size[long], np.arange(len(long)) // _NEIGHBOURS))]
    return np.concatenate([long, short[np.argsort(-size[short], kind="stable")]])


def strands_of(columns: int, segments: int, nnz: int) -> int:
    """Number of strands of the counting sort by columns, so few that their counters take little memory."""
    return max(1, min(_MAX_STRANDS, segments, max(nnz, _FREE_COUNTERS) // max(1, columns)))


def bytes_of_fit(
    variant: Variant, shape: tuple[int, int], nnz: int, *, composed: bool = False, streamed: int = 0
) -> int:
    """Peak memory of a fit in bytes: counts by users and by items, and the larger of sorting and factors.

    If the variant has neighbours, their weights, an array of numbers for nonzeros, and weights of long rows
    are part of it.  ``streamed``, if not 0, is the number of bytes in which a nonzero comes to the device.
    Counts then take two buffers for parts in this form and one for a part as kernels take it, and are sorted
    on the host.
    """
    rows, real = sum(shape), variant.real.itemsize
    segments = rows + 2 * nnz // SEGMENT
    counts = min(nnz, PART) * (4 + real + 2 * streamed) if streamed else 2 * nnz * (4 + real)
    counts += 24 * segments
    sorting = 0 if streamed else 12 * shape[1] * strands_of(shape[1], segments, nnz)
    # Shapes and exp E[ln θ] of this iteration and the last; start rates or means, means of the last check
    # ('diff-norm'), and a contiguous copy for the transfer to the host; fourteen vectors.
    factors = rows * (variant.width * (5 * real + 2 * variant.store.itemsize) + 112)
    parts = 2 * nnz // SEGMENT * variant.width * real  # of long rows
    # Weights, row pointers, and a contiguous copy of each side of the product.
    product = nnz * real + rows * (variant.k * real + 12) + segments if composed else 0
    fit = factors + parts + product
    if variant.neighbours:
        width = variant.weights.width
        fit += shape[1] * (width * (5 * real + 2 * variant.store.itemsize) + 4 * variant.neighbours + 112)
        fit += nnz * real + 8 * shape[0] + 2 * nnz // SEGMENT * width * real
    return counts + max(sorting, fit)
