"""`allocate` with other values of the knobs that change no bit of its results: blocks, and loads in flight.

    python -m gpu.sweep SHAPE K --data FOLDER --results FILE

One knob after the other gets the value that is fastest with the best values of those before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from gpu.state import Started
from gpu.worker import Worker
from hpf_gpu.backends import create, cuda_source
from hpf_gpu.backends.cuda_source import Variant

Knobs = dict[str, int]

#: Macros of the kernels and their values, the default first.
KNOBS: dict[str, tuple[int, ...]] = {
    "HPF_THREADS": (cuda_source.THREADS, 64, 256),
    "HPF_IN_FLIGHT": (0, 1, 2, 4, 8),
    "HPF_MIN_BLOCKS": (1, 2, 4, 6, 8),
}
_macros = Variant.macros.fget


def known() -> dict[str, tuple[int, ...]]:
    """Those that the sources have."""
    return {name: values for name, values in KNOBS.items() if name in cuda_source.source()}


def use(knobs: Mapping[str, int]) -> None:
    """Let the backend compile and launch its kernels with these."""
    from hpf_gpu.backends import cuda_backend  # after the simulator, if there is one

    Variant.macros = property(lambda variant: _macros(variant) | knobs)
    cuda_backend.THREADS = knobs["HPF_THREADS"]
    cuda_backend._compiled.cache_clear()


class Sweep:
    """Measures ``allocate`` of one state with different knobs, and compares its bits with the first one's."""

    def __init__(self, worker: Worker, csr: Any) -> None:
        self._worker = worker
        self._state = Started(create("cuda", np.float32), csr, worker.arguments.k, 2)
        self._expected: tuple[Any, ...] | None = None
        self.ms: dict[tuple[int, ...], float] = {}  # by the values of the knobs, where they worked

    def run(self) -> None:
        few = slice(2 if self._worker.arguments.quick else None)
        knobs = {name: values[few] for name, values in known().items()}
        best = {name: values[0] for name, values in knobs.items()}
        self._attempt(best)
        for name, values in knobs.items():
            for value in values[1:]:
                self._attempt(best | {name: value})
            if self.ms:
                best = dict(zip(knobs, min(self.ms, key=self.ms.__getitem__), strict=True))

    def _attempt(self, knobs: Knobs) -> None:
        self._worker.attempt("sweep", partial(self._measure, knobs), knobs=knobs)

    def _measure(self, knobs: Knobs) -> None:
        use(knobs)
        backend, counts = self._state.backend, self._state.counts
        allocate = partial(backend.allocate, counts, *(side.factor for side in self._state.sides))
        sums = allocate()
        if self._expected is None:
            self._expected = sums
        if not all(bool((one == other).all()) for one, other in zip(sums, self._expected, strict=True)):
            raise RuntimeError("these knobs change bits")
        times = {
            f"{side}_ms": self._worker.clock.device(partial(allocate, side=side, out=sums)).ms
            for side in ("users", "items")
        }
        self.ms[tuple(knobs.values())] = total = sum(times.values())
        self._worker.write("sweep", knobs=knobs, total_ms=total, **times)


def main() -> None:
    worker = Worker(__doc__ or "")
    import cupy as cp

    csr = worker.load("fused")
    worker.common["sm"] = int(cp.cuda.Device().compute_capability)
    worker.attempt("sweep", lambda: Sweep(worker, csr).run())
    worker.finish()


if __name__ == "__main__":
    main()
