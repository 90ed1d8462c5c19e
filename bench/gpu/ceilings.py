"""What the memory of the device gives: copies, and rows gathered in any order.

python -m gpu.ceilings --results FILE
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu.clock import Clock, Timing
from gpu.worker import Worker

_THREADS, _CHUNK = 128, 256  # as in gather.cu


def copy(clock: Clock, size: int) -> Timing:
    """Time a copy of ``size`` bytes from the device to the device."""
    import cupy as cp

    source, target = cp.arange(size // 4, dtype=np.float32), cp.empty(size // 4, np.float32)
    return clock.device(lambda: cp.copyto(target, source))


def gather(clock: Clock, table: Any, column: Any) -> Timing | None:
    """Time the reading of rows of ``table`` (M, width) by ``column`` (Z,): the best of three kernels.

    None where rows are longer than the 512 bytes that a warp reads at once.
    """
    import cupy as cp

    row_bytes = table.strides[0]
    if row_bytes > 512:
        return None
    blocks = -(-column.size * 32 // (_CHUNK * _THREADS))
    out = cp.zeros(blocks * _THREADS, np.float32)
    arguments = (table, column, np.int64(column.size), out)
    timings = [
        clock.device(lambda kernel=kernel: kernel((blocks,), (_THREADS,), arguments))
        for kernel in map(_kernel, (row_bytes,) * 3, (2, 4, 8))
    ]
    return min(timings, key=lambda timing: timing.ms)


@cache
def _kernel(row_bytes: int, in_flight: int) -> Any:
    import cupy as cp

    source = Path(__file__).with_name("gather.cu").read_text(encoding="utf-8")
    options = ("--std=c++17", f"-DROW_BYTES={row_bytes}", f"-DIN_FLIGHT={in_flight}")
    return cp.RawModule(code=source, options=options).get_function("gather")


def measure_copy(worker: Worker, size: int) -> None:
    worker.write("copy", copy(worker.clock, size), bytes=2 * size)


def measure_gather(worker: Worker, row_bytes: int, where: str, table_bytes: int, rows_read: int) -> None:
    import cupy as cp

    rows = table_bytes // row_bytes
    table = cp.arange(rows * row_bytes // 4, dtype=np.float32).reshape(rows, -1)
    column = cp.asarray(np.random.default_rng(0).integers(0, rows, rows_read, np.int32))
    timing = gather(worker.clock, table, column)
    worker.write("gather", timing, variant=where, row_bytes=row_bytes, bytes=rows_read * row_bytes)


def main() -> None:
    worker = Worker(__doc__ or "")
    import cupy as cp

    size, rows_read = (1 << 20, 1 << 12) if worker.arguments.quick else (1 << 31, 1 << 25)
    a_quarter = cp.cuda.runtime.getDeviceProperties(0)["l2CacheSize"] // 4
    worker.attempt("copy", partial(measure_copy, worker, size))
    for row_bytes in (64, 128, 256, 512):
        for where, table_bytes in (("in L2", a_quarter), ("beyond L2", size)):
            work = partial(measure_gather, worker, row_bytes, where, table_bytes, rows_read)
            worker.attempt("gather", work, variant=where, row_bytes=row_bytes)
    worker.finish()


if __name__ == "__main__":
    main()
