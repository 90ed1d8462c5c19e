"""The state of a fit, as iterations find it."""

from __future__ import annotations

from typing import Any

from hpf_gpu.backends.protocol import Backend
from hpf_gpu.model.inference import Schedule, iterate
from hpf_gpu.model.variational import Block, Model, Prior, draw_start_values, start_side

PRIOR = Prior(shape=0.3, hyper_shape=0.3, hyper_mean=1.0)  # HPF's own, of users and of items
SCHEDULE = Schedule("maxiter", 0.0, check_every=None, maxiter=None)
SEED = 1


def started(backend: Backend, csr: Any, k: int, iterations: int) -> Model:
    """The model of these counts after some iterations."""
    counts = backend.counts(csr, k)
    start = draw_start_values(*csr.shape, k, PRIOR, PRIOR, SEED, backend.dtype)
    users = start_side(backend, PRIOR, start.user_shape, start.user_rate)
    items = start_side(backend, PRIOR, start.item_shape, start.item_rate)
    model = Model((Block(counts, users),), items)
    for _ in range(iterations):
        model = iterate(backend, model, SCHEDULE)
    return model
