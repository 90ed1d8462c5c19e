"""Whole fits on the GPU, from a SciPy matrix to the model on the host: without checks, and HPF's default.

python -m gpu.fit SHAPE K --data FOLDER --results FILE
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpu.clock import Clock
from gpu.state import SEED
from gpu.worker import Worker
from hpf_gpu import HPF
from hpf_gpu.backends.cuda_layout import bytes_of_fit
from hpf_gpu.backends.cuda_source import Variant

#: How each kind of fit ends.  The default checks the likelihood at every tenth iteration; a threshold this
#: small lets it go on to the last.
FITS: dict[str, dict[str, Any]] = {
    "fit": {"stop_crit": "maxiter", "check_every": None},
    "fit with checks": {"stop_thr": 1e-300},
}


def fit(csr: Any, k: int, iterations: int, **options: Any) -> HPF:
    model = HPF(k=k, maxiter=iterations, verbose=False, random_seed=SEED, backend="cuda", **options)
    return model.fit(csr)


class Fits:
    """Measures one kind of fit after the other."""

    def __init__(self, worker: Worker, csr: Any) -> None:
        self._worker, self._csr = worker, csr
        self._iteration_ms: dict[str, float] = {}

    def measure(self, name: str) -> None:
        import cupy as cp

        worker, csr, k = self._worker, self._csr, self._worker.arguments.k
        iterations = 2 if worker.arguments.quick else 100
        fit(csr[:200], k, 2, **FITS[name])  # compiles
        pool = cp.get_default_memory_pool()
        pool.free_all_blocks()
        loops = []

        def work() -> None:
            model = fit(csr, k, iterations, **FITS[name])
            loops.append(float(model.history_["seconds"].iloc[-1]) * 1e3 / model.niter)

        # One run, or two where that is no long time.
        clock = Clock(warm_up=0, least=1, most=2, seconds=0 if worker.arguments.quick else 8)
        timing = clock.wall(work)
        self._iteration_ms[name] = min(loops)
        fields = {"iterations": iterations, "iteration_ms": min(loops)}
        if name != "fit" and "fit" in self._iteration_ms:
            fields["in_checks"] = 1 - self._iteration_ms["fit"] / min(loops)
        expected = bytes_of_fit(Variant(k, np.dtype(np.float32)), csr.shape, csr.nnz)
        memory = {"pool_bytes": pool.total_bytes(), "expected_bytes": expected}
        worker.write(name, timing, units=csr.nnz * iterations, **fields, **memory)


def main() -> None:
    worker = Worker(__doc__ or "")
    fits = Fits(worker, worker.load("fused"))
    for name in FITS:
        worker.attempt(name, partial(fits.measure, name))
    worker.finish()


if __name__ == "__main__":
    main()
