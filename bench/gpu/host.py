"""An iteration of the openmp backend on all threads of the same machine, for comparison.

python -m gpu.host SHAPE K --data FOLDER --results FILE
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpu.clock import QUICK, Clock
from gpu.state import Started
from gpu.worker import Worker
from hpf_gpu.backends import create


def measure(worker: Worker, csr: Any) -> None:
    backend = create("openmp", np.float32)
    step = Started(backend, csr, worker.arguments.k, 1).step
    clock = QUICK if worker.arguments.quick else Clock(warm_up=1, least=3, seconds=2)
    worker.write("iteration", clock.wall(step), units=csr.nnz, about=backend.describe())


def main() -> None:
    worker = Worker(__doc__ or "")
    csr = worker.load("openmp")
    worker.attempt("iteration", partial(measure, worker, csr))
    worker.finish()


if __name__ == "__main__":
    main()
