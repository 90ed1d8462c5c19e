"""A whole fit of 100 iterations on the GPU, from a SciPy matrix to the model on the host.

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


def fit(csr: Any, k: int, iterations: int) -> HPF:
    options = {"stop_crit": "maxiter", "verbose": False, "random_seed": SEED, "backend": "cuda"}
    return HPF(k=k, maxiter=iterations, **options).fit(csr)


def measure(worker: Worker, csr: Any) -> None:
    import cupy as cp

    k, iterations = worker.arguments.k, 2 if worker.arguments.quick else 100
    fit(csr[:200], k, 2)  # compiles
    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    loops = []

    def work() -> None:
        model = fit(csr, k, iterations)
        loops.append(float(model.history_["seconds"].iloc[-1]))

    # One run, or two where that is no long time.
    timing = Clock(warm_up=0, least=1, most=2, seconds=0 if worker.arguments.quick else 8).wall(work)
    expected = bytes_of_fit(Variant(k, np.dtype(np.float32)), csr.shape, csr.nnz)
    memory = {"pool_bytes": pool.total_bytes(), "expected_bytes": expected}
    loop = {"iterations": iterations, "loop_ms": min(loops) * 1e3}
    worker.write("fit", timing, units=csr.nnz * iterations, **loop, **memory)


def main() -> None:
    worker = Worker(__doc__ or "")
    csr = worker.load("fused")
    worker.attempt("fit", partial(measure, worker, csr))
    worker.finish()


if __name__ == "__main__":
    main()
