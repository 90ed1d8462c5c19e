"""`allocate` with other values of the knobs that change no bit of its results: blocks, and loads in flight.

    python -m gpu.sweep SHAPE K --data FOLDER --results FILE

One knob after the other gets the value that is fastest with the best values of those before it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpu.state import Started
from gpu.worker import Worker
from hpf_gpu.backends import create
from hpf_gpu.backends.cuda_source import Knobs

#: What each knob is set to, beside its default.
VALUES: dict[str, tuple[int, ...]] = {
    "threads": (64, 128, 256),
    "in_flight": (0, 1, 2, 4, 8),
    "min_blocks": (0, 1, 2, 3, 4, 5, 6, 8),
}


class Sweep:
    """Measures ``allocate`` of one state with different knobs, and compares its bits with the first one's."""

    def __init__(self, worker: Worker, csr: Any) -> None:
        self._worker = worker
        self._state = Started(create("cuda", np.float32), csr, worker.arguments.k, 2)
        self._variant = self._state.backend._variant(worker.arguments.k)
        self._expected: tuple[Any, ...] | None = None
        self._ms: dict[Knobs, float] = {}  # of those that worked

    def run(self) -> None:
        best = self._variant.knobs
        self._attempt(best)
        for name, values in VALUES.items():
            others = [value for value in values if value != getattr(best, name)]
            for value in others[: 1 if self._worker.arguments.quick else None]:
                self._attempt(replace(best, **{name: value}))
            best = min(self._ms, key=self._ms.__getitem__, default=best)

    def _attempt(self, knobs: Knobs) -> None:
        self._worker.attempt("sweep", partial(self._measure, knobs), knobs=vars(knobs))

    def _measure(self, knobs: Knobs) -> None:
        backend, counts = self._state.backend, self._state.counts
        variant = replace(self._variant, knobs=knobs)
        backend._variant = lambda k: variant
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
        self._ms[knobs] = total = sum(times.values())
        self._worker.write("sweep", knobs=vars(knobs), total_ms=total, **times)


def main() -> None:
    worker = Worker(__doc__ or "")
    import cupy as cp

    csr = worker.load("fused")
    worker.common["sm"] = int(cp.cuda.Device().compute_capability)
    worker.attempt("sweep", lambda: Sweep(worker, csr).run())
    worker.finish()


if __name__ == "__main__":
    main()
