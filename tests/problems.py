"""Small fits whose every step the oracle knows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import conftest
import numpy as np
import oracle
from hypothesis import strategies as st
from scipy import sparse

from hpf_gpu.backends.protocol import Backend, Host
from hpf_gpu.data.blocks import BlocksInMemory, Pairs, in_memory
from hpf_gpu.model.convergence import Check
from hpf_gpu.model.inference import Fit, Schedule, State, fit, iterate
from hpf_gpu.model.likelihood import Objective, log_factorial_sum
from hpf_gpu.model.priors import Prior
from hpf_gpu.model.sides import Model, start_side
from hpf_gpu.model.start import StartValues

ScheduleName = Literal["joint", "alternating"]


SCHEDULES: tuple[ScheduleName, ...] = ("joint", "alternating")


@dataclass(frozen=True)
class Problem:
    """Data and priors of a small fit."""

    y: Host  # (N, M)
    k: int
    priors: oracle.Priors
    seed: int = 1

    def reference(self, dtype: np.dtype[Any], iterations: int, schedule: ScheduleName) -> list[oracle.State]:
        priors = dataclasses.astuple(self.priors)
        return oracle.fit(self.y, self.k, *priors, self.seed, dtype, iterations, schedule)

    def blocks(self, backend: Backend, users_per_block: int | None = None) -> BlocksInMemory:
        """The counts, in one block or in several, and what is held out."""
        csr = sparse.csr_array(self.y.astype(backend.dtype))
        return in_memory(backend, csr, self.k, self.validation(), users_per_block)

    def model(self, backend: Backend, blocks: BlocksInMemory) -> Model:
        """The model at its start values, for these blocks."""
        p = self.priors
        user, item = Prior(p.a, p.a_prime, p.b_prime), Prior(p.c, p.c_prime, p.d_prime)
        start = StartValues(*self.y.shape, self.k, self.seed, backend.dtype)
        users = (start_side(backend, user, *start.users(user, rows)) for rows in blocks.slices)
        return Model(tuple(users), start_side(backend, item, *start.items(item)))

    def validation(self) -> Pairs:
        """Held-out counts: the data once more, moved by one column."""
        held_out = np.roll(self.y, 1, axis=1)
        rows, columns = held_out.nonzero()
        return Pairs(rows, columns, held_out[rows, columns])

    def objective(self, backend: Backend, blocks: BlocksInMemory, *, full_llk: bool) -> Objective:
        total = log_factorial_sum(self.y[self.y > 0])
        return Objective(backend, blocks, total, full_llk, elbo_at_checks=True)


def planted_counts(n: int = 25, m: int = 18) -> Host:
    """Counts (N, M) with activity, popularity and four tastes; nobody and nothing is empty."""
    rng = np.random.default_rng(8)
    theta, beta = rng.gamma(0.4, 1.0, (n, 4)), rng.gamma(0.4, 1.0, (m, 4))
    y = rng.poisson(theta @ beta.T + rng.gamma(0.5, 0.5, (n, 1)) + rng.gamma(0.5, 0.5, m)).astype(float)
    y[np.arange(n), np.arange(n) % m] += 1
    return y


def _small_problem() -> Problem:
    rng = np.random.default_rng(7)
    theta, beta = rng.gamma(0.4, 2.0, (24, 4)), rng.gamma(0.4, 2.0, (33, 4))
    y = rng.poisson(theta @ beta.T).astype(np.float64)
    y[5] = y[:, 9] = 0  # a user and an item without counts
    return Problem(y, 5, oracle.Priors(0.3, 0.4, 1.2, 0.25, 0.5, 0.8))


SMALL = _small_problem()


@cache
def small_reference(dtype: str, schedule: ScheduleName) -> list[oracle.State]:
    return SMALL.reference(np.dtype(dtype), 20, schedule)


#: K of random problems.  A simulator compiles for each, and the contract's cases have these.
FACTORS = (1, 3, 5) if conftest.SIMULATED else (1, 2, 3, 4, 5, 6)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small data, often with empty rows and columns, and priors over two decades."""
    n, m, k = draw(st.integers(1, 7)), draw(st.integers(1, 8)), draw(st.sampled_from(FACTORS))
    count = st.one_of(st.just(0), st.just(0), st.integers(1, 20), st.integers(100, 10_000))
    y = np.array(draw(st.lists(count, min_size=n * m, max_size=n * m)), np.float64).reshape(n, m)
    level = st.sampled_from([0.05, 0.1, 0.3, 1.0, 3.0])
    return Problem(y, k, oracle.Priors(*(draw(level) for _ in range(6))), draw(st.integers(0, 2**31)))


def rule(schedule: ScheduleName, *, maxiter: int | None = 20, exact: bool = False) -> Schedule:
    return Schedule("maxiter", 0.0, 1, maxiter, alternating=schedule == "alternating", exact_phi=exact)


def run_fit(backend: Backend, schedule: ScheduleName, *, full_llk: bool) -> Fit:
    reports: list[Check] = []
    blocks, how = SMALL.blocks(backend), rule(schedule)
    step = backend.recorded(lambda model: iterate(backend, blocks, model, how))
    objective = SMALL.objective(backend, blocks, full_llk=full_llk)
    fitted = fit(
        backend,
        State(SMALL.model(backend, blocks)),
        how,
        objective,
        lambda model, _: step(model),
        reports.append,
    )
    assert reports == list(fitted.history)
    return fitted
