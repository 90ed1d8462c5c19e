"""The operations that decide the time of an iteration and of a check, each once, for a profiler.

    python -m gpu.once SHAPE K --data FOLDER

Only what lies between cudaProfilerStart and cudaProfilerStop is to be profiled.
"""

from __future__ import annotations

import numpy as np

from gpu.state import PRIOR, Started
from gpu.worker import Worker
from hpf_gpu.backends import create


def main() -> None:
    worker = Worker(__doc__ or "")
    from cupyx.profiler import profile

    csr = worker.load("fused")
    backend = create("cuda", np.float32)
    started = Started(backend, csr, worker.arguments.k, 2)
    users, items = (side.factor for side in started.sides)
    theta, beta = backend.mean(users), backend.mean(items)
    with profile():
        statistic, _ = backend.allocate(started.counts, users, items)
        backend.gamma_update(statistic, PRIOR.shape, users.rates)
        backend.log_rate_sum(started.counts, theta, beta)


if __name__ == "__main__":
    main()
