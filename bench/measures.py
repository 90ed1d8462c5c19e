"""What a process of its own measures: one function for each ``measure`` of cases.toml.

Each yields results as they come: a quantity, its value and unit, and what else belongs to it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ceilings
import numpy as np
from cases import Input, Job
from competitors import COMPETITORS, Fitted, Task
from gpu.clock import Clock
from gpu.state import Started
from likelihood import held_out_likelihoods, training_likelihood
from operations import as_texts, encodings, operations

from hpf_gpu.backends import create
from hpf_gpu.data.counts import training_data
from hpf_gpu.data.triplets import Columns

Entry = dict[str, Any]

_CLOCK = Clock(warm_up=1, least=3, seconds=0.2)
_HELD_OUT = 0.1
_TOP = 10


def fit(job: Job, given: Input, iterations: int) -> Fitted:
    return COMPETITORS[job.who].fit(given, Task(job.k, iterations, job.threads, job.case.dtype))


def seconds(value: float, quantity: str, **more: Any) -> Entry:
    return {"quantity": quantity, "value": value, "unit": "s"} | more


def fits(job: Job, given: Input) -> Iterator[Entry]:
    """Whole fits of every length; with ``likelihood`` on nine tenths of the counts, and judged."""
    train, test = given, given.frame[:0]
    if job.case.likelihood:
        held_out = np.random.default_rng(1).random(len(given.frame)) < _HELD_OUT
        train, test = Input(given.frame[~held_out]), given.frame[held_out]
    _ = train.csr, train.ids  # made before the clock starts
    fit(job, Input(given.frame[:1000]), 1)  # modules are loaded, and threads begun
    for length in job.lengths:
        started_at = time.perf_counter()
        model = fit(job, train, length)
        entry = seconds(time.perf_counter() - started_at, "fit", iterations=length)
        if job.case.likelihood and COMPETITORS[job.who].poisson:
            entry |= {"training": training_likelihood(model, train.frame)}
            entry |= held_out_likelihoods(model, train.frame, test)
        yield entry


def memory(job: Job, given: Input) -> Iterator[Entry]:
    """Bytes that a fit of two iterations takes at its peak, on top of the process with its input (Linux)."""
    fit(job, Input(given.frame[:1000]), 1)  # modules and thread stacks are not the fit's
    ctypes.CDLL(None).malloc_trim(0)  # what making the input has freed must not be there to be used again
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    fit(job, given, 2)
    yield {"quantity": "peak of a fit", "value": _status("VmHWM") - before, "unit": "B"}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def ids(job: Job, given: Input) -> Iterator[Entry]:
    """What comes before the first iteration: reading a frame of integer or text ids, and tiling."""
    backend = create(job.who, job.case.dtype, job.threads)
    yield _timed("iteration", Started(backend, given.csr, job.k, 1).step)
    texts = given.frame.assign(**{name: as_texts(given.frame[name]) for name in ("UserId", "ItemId")})
    for kind, frame in (("integer", given.frame), ("text", texts)):
        work = partial(training_data, frame, backend=backend, reindex=True, columns=Columns())
        yield _timed(f"reading {kind} ids", work, Clock(warm_up=0, least=2, most=3))
    yield _timed("tiling", partial(backend.counts, given.csr, job.k))


def top(job: Job, given: Input) -> Iterator[Entry]:
    """The ten best new items of every user, all users in one call."""
    model = fit(job, given, 3)
    if model.top is None:
        raise ValueError(f"{job.who} ranks no batch of users")
    yield _timed("top 10 of all users", partial(model.top, _TOP), Clock(warm_up=1, least=2, most=5))


def kernels(job: Job, given: Input) -> Iterator[Entry]:
    """Every operation, and its share of the nearer of the ceilings that were measured just before."""
    backend = create(job.who, job.case.dtype, job.threads)
    limits = ceilings.measure(job.k, job.case.dtype, job.threads)
    units = {"fma": "FMA/s", "copy": "B/s", "gather_cache": "B/s", "gather_memory": "B/s"}
    yield from (
        {"quantity": f"ceiling {name}", "value": value, "unit": units[name]}
        for name, value in vars(limits).items()
    )
    for operation in (*operations(backend, given, job.k), *encodings(given)):
        floor, nearest = operation.floor(limits)
        entry = _timed(operation.name, operation.work, prepare=operation.prepare)
        shares = {"share": floor / entry["value"], "untiled": operation.untiled(limits) / entry["value"]}
        yield entry | {"floor": floor, "ceiling": nearest} | shares


def _timed(
    quantity: str,
    work: Callable[[], object],
    clock: Clock = _CLOCK,
    prepare: Callable[[], object] | None = None,
) -> Entry:
    return seconds(clock.wall(work, prepare).ms / 1e3, quantity)


MEASURES = {"fits": fits, "memory": memory, "ids": ids, "top": top, "kernels": kernels}
