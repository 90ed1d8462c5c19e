"""Single operations of a backend, each with what it cannot do without.

For Z counts of N users and M items, rows of K factors of b bytes:

==================  ===================  ===================  =========================================
operation           multiply-adds        rows gathered        bytes streamed
==================  ===================  ===================  =========================================
allocate, one side  2 K Z (dot, axpy)    Z of the other side  counts; own row read and its sum written
allocate, both      3 K Z (dot, 2 axpy)  2 Z (row and sum)    counts; all rows read, all sums written
with neighbours     (3 K + 2 L) Z        2 Z (row and sum)    counts with L bits each; all rows and sums
log_..._sum         K Z                  Z                    counts; own rows
gamma_update        not counted          0                    statistic read, shape and exp E[ln] written
predict_pairs       K pairs              2 pairs              two numbers and a rate for each pair
top_items           K N M                0                    all rows, and the results
counts              0                    0                    counts read, and written
encode              0                    0                    ids read, codes written
==================  ===================  ===================  =========================================

"with neighbours" is allocate_with_neighbours of both sides with L neighbours an item; an addition under a
mask is charged as a multiply-add.  A count is its column number and its value.  Rows are gathered at the rate
of a block in cache: tiling keeps one there.  Writing the sums back is not counted, nor ψ, exp and ln, nor
what tiling costs: own rows that are read once for each column block.  The slowest of the three gives the
floor: what an operation reaches of it is its share of the nearer ceiling.  Beside it stands the share of the
time in which the same rows could be gathered from all over the memory: beyond 100 % where tiling pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from cases import Input
from ceilings import Ceilings
from gpu.state import PRIOR, Started

from hpf_gpu.backends.protocol import Backend, RankOne
from hpf_gpu.data.ids import encode

_MAX_PAIRS, _RANKED_USERS, _PLACES, _NEIGHBOURS = 1 << 20, 2000, 10, 200


class Operation(NamedTuple):
    """What is timed, and what it takes at least."""

    name: str
    work: Callable[[], object]
    fma: float = 0
    gathered: float = 0  # bytes
    streamed: float = 0  # bytes
    prepare: Callable[[], object] | None = None  # comes before each run, untimed

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """Seconds that it takes at best, and the ceiling that says so."""
        return max(
            (self.fma / ceilings.fma, "multiply-add"),
            (self.gathered / ceilings.gather_cache, "gather"),
            (self.streamed / ceilings.copy, "copy"),
        )

    def untiled(self, ceilings: Ceilings) -> float:
        """Seconds in which its rows could be gathered from memory, without tiles."""
        return self.gathered / ceilings.gather_memory


def operations(backend: Backend, given: Input, k: int) -> Iterator[Operation]:
    """All of them, on a model after two iterations."""
    state = Started(backend, given.csr, k, 2)
    counts, (users, items) = state.counts, state.sides
    z, (n, m), real = counts.nnz, counts.shape, backend.dtype.itemsize
    row, count = k * real, 4 + real
    both = backend.allocate(counts, users.factor, items.factor)
    for side, fma, rows, own in (("users", 2, 1, n), ("items", 2, 1, m), ("both", 3, 2, n + m)):
        work = partial(backend.allocate, counts, users.factor, items.factor, side=side, out=both)
        streamed = z * count + 2 * own * row
        yield Operation(f"allocate {side}", work, fma * k * z, rows * z * row, streamed)
    yield _with_neighbours(backend, given, users.factor, items.factor)
    yield _gamma_update(backend, users.factor, n * row)
    theta, beta = backend.mean(users.factor), backend.mean(items.factor)
    sums = {"fma": k * z, "gathered": z * row, "streamed": z * count + n * row}
    yield Operation("log_rate_sum", partial(backend.log_rate_sum, counts, theta, beta), **sums)
    normalizers = partial(backend.log_normalizer_sum, counts, users.factor, items.factor)
    yield Operation("log_normalizer_sum", normalizers, **sums)
    rng, pairs, some = np.random.default_rng(0), min(z, _MAX_PAIRS), min(n, _RANKED_USERS)
    chosen = (rng.integers(0, size, pairs) for size in (n, m))
    predict = partial(backend.predict_pairs, theta, beta, *chosen)
    yield Operation("predict_pairs", predict, k * pairs, 2 * pairs * row, pairs * (16 + real))
    top = partial(backend.top_items, theta[:some], beta, min(_PLACES, m))
    yield Operation("top_items", top, k * some * m, streamed=(some + m) * row + some * _PLACES * (8 + real))
    yield Operation("counts", partial(backend.counts, given.csr, k), streamed=2 * z * count)


def _with_neighbours(backend: Backend, given: Input, users: Any, items: Any) -> Operation:
    (n, m), (_, k), real = given.csr.shape, users.shape.shape, backend.dtype.itemsize
    z, width = given.csr.nnz, min(_NEIGHBOURS, m - 1)
    counts = backend.counts(given.csr, k, backend.choose_neighbours(given.csr, width))
    rates = RankOne(backend.asarray(np.ones(m)), backend.asarray(np.ones(width)))
    statistic = backend.asarray(np.ones((m, width)))
    weights, *_ = backend.gamma_update(statistic, PRIOR.shape, rates)
    out = backend.allocate_with_neighbours(counts, users, items, weights)
    work = partial(backend.allocate_with_neighbours, counts, users, items, weights, out=out)
    streamed = z * (4 + real + width / 8) + 2 * real * ((n + m) * k + m * width)
    return Operation("with neighbours", work, (3 * k + 2 * width) * z, 2 * z * k * real, streamed)


def _gamma_update(backend: Backend, factor: Any, matrix_bytes: int) -> Operation:
    statistic, consumed, exp_log = (backend.mean(factor) for _ in range(3))

    def refill() -> None:
        consumed[...] = statistic

    work = partial(backend.gamma_update, consumed, PRIOR.shape, factor.rates, out=exp_log)
    return Operation("gamma_update", work, streamed=3 * matrix_bytes, prepare=refill)


def encodings(given: Input) -> Iterator[Operation]:
    """Reading a column of ids, as numbers and as texts; no backend is at work."""
    numbers = pd.Series(given.frame["UserId"])
    for kind, ids in (("integers", numbers), ("texts", as_texts(numbers))):
        yield Operation(f"encode {kind}", partial(encode, ids, "user", True), streamed=12 * len(ids))


def as_texts(ids: pd.Series) -> pd.Series:
    """Ids that are strings, as many different ones."""
    return "id-" + ids.astype(str)
