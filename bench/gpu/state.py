"""The state of a fit, as iterations find it."""

from __future__ import annotations

from typing import Any

from hpf_gpu.backends.protocol import Backend, Counts
from hpf_gpu.data.blocks import in_memory
from hpf_gpu.model.inference import Schedule, iterate
from hpf_gpu.model.priors import Prior
from hpf_gpu.model.sides import Model, Side, start_side
from hpf_gpu.model.start import StartValues

PRIOR = Prior(shape=0.3, hyper_shape=0.3, hyper_mean=1.0)  # HPF's own, of users and of items
SCHEDULE = Schedule("maxiter", 0.0, check_every=None, maxiter=None)
SEED = 1


class Started:
    """A model of some counts in one block."""

    def __init__(self, backend: Backend, csr: Any, k: int, iterations: int) -> None:
        self.backend, self.blocks = backend, in_memory(backend, csr, k)
        values = StartValues(*csr.shape, k, SEED, backend.dtype)
        users, items = (start_side(backend, PRIOR, *draw(PRIOR)) for draw in (values.users, values.items))
        self.model = Model((users,), items)
        for _ in range(iterations):
            self.step()

    @property
    def counts(self) -> Counts:
        (block,) = self.blocks
        return block.counts

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.model.users[0], self.model.items

    def step(self) -> None:
        """One full iteration."""
        self.model = iterate(self.backend, self.blocks, self.model, SCHEDULE)
