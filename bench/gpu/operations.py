"""Every operation of the CUDA backend, and a whole iteration, beside the ceilings of the same minute.

    python -m gpu.operations SHAPE K VARIANT... --data FOLDER --results FILE

The ceiling of what works on nonzeros is the gathering of the same rows by the same columns; of what works
on matrices, a copy of the same number of bytes.  Bytes are what an operation cannot do without: each
nonzero and its row of the other side once, matrices in and out once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpu.ceilings import copy, gather
from gpu.state import PRIOR, Started
from gpu.worker import Worker
from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.model.sides import Side

#: Precision and options of each variant.
VARIANTS: dict[str, tuple[type, dict[str, str]]] = {
    "fused": (np.float32, {}),
    "mixed": (np.float32, {"precision": "mixed"}),
    "composed": (np.float32, {"allocate": "cusparse"}),
    "float64": (np.float64, {}),
}
#: Operations that differ between the variants; of the others one is enough.
_OF_EACH = ("allocate users", "allocate items", "gamma_update", "iteration")
_MAX_PAIRS, _RANKED_USERS, _PLACES = 1 << 22, 4096, 10
_COPIED = 1 << 30
#: Nonzeros times factors for which the exact form is timed: it takes hundreds of operations for each.
_MAX_EXACT = 2 << 30


@dataclass(frozen=True)
class Operation:
    """What is timed, what it moves and what it could be done in."""

    name: str
    work: Callable[[], object]
    units: int  # nonzeros, rows, pairs or scores
    bytes: int | None = None
    ceiling: float | None = None  # ms
    rows: int = 0  # that are gathered
    row_bytes: int = 0  # of one of them


@dataclass
class State:
    """A fit on the device, and the ceilings (ms) of its nonzeros and (ms per byte) of its matrices."""

    started: Started
    gathers: tuple[float | None, float | None]  # of the users' allocate and of the items'
    copying: float

    @property
    def backend(self) -> Backend:
        return self.started.backend

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.started.sides

    @property
    def counts(self) -> Any:
        return self.started.counts

    @property
    def bytes_of_allocate(self) -> list[int]:
        """Column number, count and gathered row of every nonzero; own row read and statistic written."""
        counts, real = self.counts, self.backend.dtype.itemsize
        stored = row_bytes(self.sides[1].factor.exp_log)
        written = row_bytes(self.sides[1].factor.shape)
        return [counts.nnz * (4 + real + stored) + n * (stored + written) for n in counts.shape]

    @property
    def gather_both(self) -> float | None:
        users, items = self.gathers
        return None if users is None or items is None else users + items

    def step(self) -> None:
        self.started.step()


def row_bytes(matrix: Any) -> int:
    """Bytes from one row of a matrix on the device to the next."""
    return int(matrix.strides[0])


def whole(state: State) -> Iterator[Operation]:
    """An iteration; its floor is the gathering for both sides, without what the updates move."""
    nnz, stored = state.counts.nnz, row_bytes(state.sides[1].factor.exp_log)
    moved = sum(state.bytes_of_allocate)
    yield Operation("iteration", state.step, nnz, moved, state.gather_both, 2 * nnz, stored)


def on_nonzeros(state: State) -> Iterator[Operation]:
    """Operations whose ceiling is the gathering of rows."""
    backend, counts = state.backend, state.counts
    users, items = (side.factor for side in state.sides)
    stored, real, nnz = row_bytes(users.exp_log), row_bytes(users.shape), counts.nnz
    moved, both = state.bytes_of_allocate, state.gather_both
    out = backend.allocate(counts, users, items)

    def allocate(**options: Any) -> Callable[[], object]:
        return partial(backend.allocate, counts, users, items, out=out, **options)

    for side, moves, ceiling in zip(("users", "items"), moved, state.gathers, strict=True):
        yield Operation(f"allocate {side}", allocate(side=side), nnz, moves, ceiling, nnz, stored)
    yield Operation("allocate both", allocate(), nnz, sum(moved), both, 2 * nnz, stored)
    if nnz * users.shape.shape[1] <= _MAX_EXACT:
        yield Operation("allocate exact", allocate(exact=True), nnz)
    theta, beta = backend.mean(users), backend.mean(items)
    mean_gather = state.gathers[0] if stored == real else None
    rate_bytes = nnz * (4 + backend.dtype.itemsize + real) + users.shape.shape[0] * real
    rates = partial(backend.log_rate_sum, counts, theta, beta)
    normalizers = partial(backend.log_normalizer_sum, counts, users, items)
    yield Operation("log_rate_sum", rates, nnz, rate_bytes, mean_gather, nnz, real)
    yield Operation("log_normalizer_sum", normalizers, nnz, moved[0], state.gathers[0], nnz, stored)
    factorials, read = partial(backend.log_factorial_sum, counts), nnz * backend.dtype.itemsize
    yield Operation("log_factorial_sum", factorials, nnz, read, read * state.copying)


def on_rows(state: State) -> Iterator[Operation]:
    """Operations on the users' matrices, whose ceiling is a copy."""
    backend, side = state.backend, state.sides[0]
    factor, n = side.factor, side.factor.shape.shape[0]
    stored, real = row_bytes(factor.exp_log), row_bytes(factor.shape)
    # With the prior's shape in the statistic already, an update leaves it as it is, and can be repeated.
    statistic = backend.mean(factor)
    statistic[...] = factor.shape
    exp_log = backend.gamma_update(statistic, 0.0, factor.rates)[0].exp_log
    update = partial(backend.gamma_update, statistic, 0.0, factor.rates, out=exp_log)
    prior = (PRIOR.shape, PRIOR.hyper_shape, PRIOR.hyper_rate)
    elbo = partial(backend.gamma_elbo, factor, side.hyper_rate, *prior)

    def operation(name: str, work: Callable[[], object], moved: int) -> Operation:
        return Operation(name, work, n, moved, moved * state.copying)

    yield operation("gamma_update", update, n * (2 * real + stored + 24))
    yield operation("mean", partial(backend.mean, factor), n * (2 * real + 8))
    yield operation("gamma_elbo", elbo, n * (real + 32))
    yield operation("distance", partial(backend.distance, factor.shape, statistic), n * (2 * real + 8))


def on_predictions(state: State) -> Iterator[Operation]:
    """Operations whose results come to the host, transfers included; they have no ceiling."""
    backend, rng = state.backend, np.random.default_rng(0)
    theta, beta = (backend.mean(side.factor) for side in state.sides)
    pairs = min(_MAX_PAIRS, state.counts.nnz)
    users, items = (rng.integers(0, matrix.shape[0], pairs) for matrix in (theta, beta))
    yield Operation("predict_pairs", partial(backend.predict_pairs, theta, beta, users, items), pairs)
    some = theta[:_RANKED_USERS]
    scores = some.shape[0] * beta.shape[0]
    yield Operation("top_items", partial(backend.top_items, some, beta, _PLACES), scores)


def measure_variant(worker: Worker, csr: Any, k: int, variant: str, copying: float) -> None:
    """Time the operations of one variant and write them down."""
    dtype, options = VARIANTS[variant]
    backend = create("cuda", dtype, **options)
    started = Started(backend, csr, k, 1 if worker.arguments.quick else 10)
    counts, (users, items) = started.counts, (side.factor for side in started.sides)
    gathers = []
    for own, other in ((counts.users, items), (counts.items, users)):
        (segments,) = own.parts  # of counts on the device
        gathers.append(gather(worker.clock, other.exp_log, segments.fields["column"]))
    for name, timing in zip(("gather for users", "gather for items"), gathers, strict=True):
        if timing is not None:
            worker.write(name, timing, bytes=counts.nnz * row_bytes(users.exp_log), units=counts.nnz)
    state = State(started, tuple(timing and timing.ms for timing in gathers), copying)
    for operations in (whole, on_nonzeros, on_rows, on_predictions):
        for operation in operations(state):
            if variant == "fused" or operation.name in _OF_EACH:
                worker.attempt(operation.name, partial(measure, worker, operation))


def measure(worker: Worker, operation: Operation) -> None:
    timing = worker.clock.device(operation.work)
    fields: dict[str, Any] = {"units": operation.units}
    if operation.bytes is not None:
        fields["bytes"] = operation.bytes
    if operation.rows:
        fields |= {"rows": operation.rows, "row_bytes": operation.row_bytes}
    if operation.ceiling is not None:
        fields |= {"ceiling_ms": operation.ceiling, "share": operation.ceiling / timing.ms}
    worker.write(operation.name, timing, **fields)


def main() -> None:
    worker = Worker(__doc__ or "")
    import cupy as cp

    arguments = worker.arguments
    if arguments.no_pool:  # so that a sanitizer sees the end of every array
        cp.cuda.set_allocator(None)
    csr = worker.load("")
    copied = 1 << 20 if arguments.quick else _COPIED
    copying = copy(worker.clock, copied).ms / (2 * copied)
    for variant in arguments.variants:
        worker.common |= {"variant": variant, "dtype": np.dtype(VARIANTS[variant][0]).name}
        worker.attempt("variant", partial(measure_variant, worker, csr, arguments.k, variant, copying))
        gc.collect()
        cp.get_default_memory_pool().free_all_blocks()
    worker.finish()


if __name__ == "__main__":
    main()
