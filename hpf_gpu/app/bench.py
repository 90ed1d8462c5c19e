"""How fast the backends fit drawn counts on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from hpf_gpu import backends
from hpf_gpu.backends.protocol import BackendUnavailable
from hpf_gpu.estimator import HPF
from hpf_gpu.model.convergence import Check

USERS, ITEMS = 20_000, 5_000


@dataclass(frozen=True)
class Speed:
    """The speed of one backend, or why it has none."""

    name: str
    iterations: int = 0  # that were measured
    seconds: float = float("nan")
    note: str = ""

    def row(self, nonzeros: int) -> dict[str, Any]:
        """The figures that are shown."""
        measured = self.iterations > 0
        return {
            "Backend": self.name,
            "Iterations": self.iterations,
            "Iterations/s": self.iterations / self.seconds if measured else float("nan"),
            "ns/nonzero": 1e9 * self.seconds / (self.iterations * nonzeros) if measured else float("nan"),
            "Note": self.note,
        }


def drawn_counts(users: int, items: int, nonzeros: int, seed: int = 1) -> sparse.csr_array:
    """Counts (users, items), fewer than drawn where pairs repeat; as in real data, few have most of them."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(10, items + 10)
    columns = rng.choice(items, nonzeros, p=popularity / popularity.sum())
    rows = rng.gamma(1.0, 1 / 5, nonzeros) % 1.0 * users
    counts = 1.0 + rng.poisson(1.0, nonzeros)
    at = (rows.astype(np.int64), columns)
    csr: sparse.csr_array = sparse.coo_array((counts, at), shape=(users, items)).tocsr()
    return csr


def measure(counts: sparse.csr_array, k: int, seconds: float) -> Iterator[Speed]:
    """The speed of every backend, and of hpfrec if it is installed; it takes ``seconds`` for each."""
    for name in backends.NAMES:
        try:
            yield _of_backend(name, counts, k, seconds)
        except BackendUnavailable as error:
            yield Speed(name, note=error.problem)
    if find_spec("hpfrec") is not None:
        yield _of_hpfrec(counts, k, seconds)


def _of_backend(name: str, counts: sparse.csr_array, k: int, seconds: float) -> Speed:
    """Iterations after the first, which also loads kernels, until the time has passed."""
    times: list[float] = []

    def until_late(check: Check) -> bool:
        times.append(check.seconds)
        return len(times) > 2 and times[-1] > seconds

    model = HPF(k=k, stop_crit="maxiter", maxiter=1000, verbose=False, random_seed=1, backend=name)
    model.fit(counts, callback=until_late)
    return Speed(name, len(times) - 1, times[-1] - times[0], backends.create(name, np.float32).describe())


def _of_hpfrec(counts: sparse.csr_array, k: int, seconds: float) -> Speed:
    """The time of a fit of some iterations less that of a fit of one."""
    import hpfrec

    coo = counts.tocoo()
    frame = pd.DataFrame({"UserId": coo.row, "ItemId": coo.col, "Count": coo.data})

    def timed(iterations: int) -> float:
        started = time.perf_counter()
        model = hpfrec.HPF(
            k=k,
            stop_crit="maxiter",
            maxiter=iterations,
            check_every=iterations,
            verbose=False,
            random_seed=1,
            keep_data=False,
        )
        model.fit(frame)
        return time.perf_counter() - started

    try:
        once = timed(1)
        more = max(1, min(20, int(seconds / max(once, 0.1))))
        taken = timed(1 + more) - once
    except Exception as error:  # its versions do not go with all of NumPy's and pandas'
        return Speed("hpfrec", note=f"failed: {type(error).__name__} {error}")
    return Speed("hpfrec", more, taken, f"hpfrec {version('hpfrec')}, float32")
