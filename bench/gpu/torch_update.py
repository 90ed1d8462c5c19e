"""The same iteration in PyTorch, as somebody would write it there, for comparison.

    python -m gpu.torch_update SHAPE K --data FOLDER --results FILE

φ is not stored here either: the weights y/(U·V) are computed in chunks of nonzeros from gathered rows, and
their sums over rows are products of sparse matrices ("torch sparse") or ``index_add_`` in chunks ("torch
index_add").  Everything is float32, and nothing guards against underflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from gpu.clock import QUICK, Clock
from gpu.state import PRIOR, SEED
from gpu.worker import Worker
from hpf_gpu.model.start import StartValues

_CHUNK = 1 << 22  # nonzeros whose rows are gathered at once


@dataclass(frozen=True)
class Counts:
    """The nonzeros by users, and what brings them into the order of items."""

    shape: tuple[int, int]
    user: torch.Tensor  # (Z,) int64
    item: torch.Tensor  # (Z,) int64
    value: torch.Tensor  # (Z,)
    indptr: tuple[torch.Tensor, torch.Tensor]  # (N + 1,), (M + 1,)
    by_item: torch.Tensor  # (Z,)

    @classmethod
    def of(cls, csr: Any, device: str) -> Counts:
        indptr, item = (
            torch.as_tensor(a, dtype=torch.int64, device=device) for a in (csr.indptr, csr.indices)
        )
        user = torch.repeat_interleave(torch.arange(csr.shape[0], device=device), indptr.diff())
        ends = torch.bincount(item, minlength=csr.shape[1]).cumsum(0)
        item_indptr = torch.cat([ends.new_zeros(1), ends])
        value = torch.as_tensor(csr.data, dtype=torch.float32, device=device)
        return cls(csr.shape, user, item, value, (indptr, item_indptr), torch.argsort(item, stable=True))

    def chunks(self) -> Iterator[slice]:
        return (slice(start, start + _CHUNK) for start in range(0, len(self.value), _CHUNK))


def by_index_add(counts: Counts, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ y φ over items (N, K) and over users (M, K), from u (N, K) and v (M, K)."""
    users, items = torch.zeros_like(u), torch.zeros_like(v)
    for part in counts.chunks():
        user, item = counts.user[part], counts.item[part]
        u_rows, v_rows = u[user], v[item]
        weight = (counts.value[part] / (u_rows * v_rows).sum(1))[:, None]
        users.index_add_(0, user, weight * v_rows)
        items.index_add_(0, item, weight * u_rows)
    return u * users, v * items


def by_sparse_products(counts: Counts, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by two products of a sparse matrix of weights."""
    weight = torch.empty_like(counts.value)
    for part in counts.chunks():
        dots = (u[counts.user[part]] * v[counts.item[part]]).sum(1)
        weight[part] = counts.value[part] / dots
    (n, m), (users, items), order = counts.shape, counts.indptr, counts.by_item
    by_users = torch.sparse_csr_tensor(users, counts.item, weight, (n, m))
    by_items = torch.sparse_csr_tensor(items, counts.user[order], weight[order], (m, n))
    return u * (by_users @ v), v * (by_items @ u)


ALLOCATE = {"torch sparse": by_sparse_products, "torch index_add": by_index_add}


@dataclass(frozen=True)
class Side:
    """q(θ) and q(ξ) of users or items."""

    shape: torch.Tensor  # (N, K)
    rate: torch.Tensor  # (N, K)
    hyper_rate: torch.Tensor  # (N,)

    @property
    def exp_log(self) -> torch.Tensor:
        """exp E[ln θ], every row divided by its largest entry, (N, K)."""
        log = torch.digamma(self.shape) - torch.log(self.rate)
        return torch.exp(log - log.max(1, keepdim=True).values)

    @property
    def column_sums(self) -> torch.Tensor:
        return (self.shape / self.rate).sum(0)

    def updated(self, statistic: torch.Tensor, other_sums: torch.Tensor) -> Side:
        kappa = PRIOR.posterior_hyper_shape(statistic.shape[1])
        shape, rate = PRIOR.shape + statistic, (kappa / self.hyper_rate)[:, None] + other_sums
        return Side(shape, rate, PRIOR.hyper_rate + (shape / rate).sum(1))


@dataclass(frozen=True)
class Model:
    """A fit in PyTorch."""

    counts: Counts
    users: Side
    items: Side

    @classmethod
    def begin(cls, csr: Any, start: StartValues, device: str) -> Model:
        def side(shape: Any, rate: Any) -> Side:
            shape, rate = (torch.as_tensor(a, device=device) for a in (shape, rate))
            return Side(shape, rate, torch.full(shape.shape[:1], PRIOR.hyper_mean, device=device))

        users, items = side(*start.users(PRIOR)), side(*start.items(PRIOR))
        return cls(Counts.of(csr, device), users, items)

    def iterated(self, how: str) -> Model:
        """One iteration in hpfrec's order: one φ for both sides, then users, then items."""
        statistics = ALLOCATE[how](self.counts, self.users.exp_log, self.items.exp_log)
        users = self.users.updated(statistics[0], self.items.column_sums)
        return replace(self, users=users, items=self.items.updated(statistics[1], users.column_sums))


def measure(worker: Worker, csr: Any, how: str) -> None:
    on_gpu, quick = torch.cuda.is_available(), worker.arguments.quick
    if not on_gpu and not quick:
        raise RuntimeError("PyTorch finds no GPU")
    start = StartValues(*csr.shape, worker.arguments.k, SEED, np.dtype(np.float32))
    model = Model.begin(csr, start, "cuda" if on_gpu else "cpu")

    def step() -> None:
        nonlocal model
        model = model.iterated(how)
        if on_gpu:
            torch.cuda.synchronize()

    timing = (QUICK if quick else Clock(warm_up=1, least=3, seconds=1)).wall(step)
    worker.write("iteration", timing, units=csr.nnz)


def main() -> None:
    worker = Worker(__doc__ or "")
    csr = worker.load("")
    for how in ALLOCATE:
        worker.common["variant"] = how
        worker.attempt("iteration", partial(measure, worker, csr, how))
    worker.finish()


if __name__ == "__main__":
    main()
