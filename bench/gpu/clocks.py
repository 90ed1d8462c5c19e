"""Clocks, power and temperature of the GPU while it iterates: what every other figure depends on.

python -m gpu.clocks SHAPE K --data FOLDER --results FILE
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import record

from gpu.state import Started
from gpu.worker import Worker
from hpf_gpu.backends import create

#: What nvidia-smi calls it.
FIELDS = {
    "sm_mhz": "clocks.sm",
    "most_sm_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "most_memory_mhz": "clocks.max.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
}
_READINGS = 3  # the last one counts: clocks rise with the load


def read() -> dict[str, float]:
    """The clocks of the first GPU now, without those that it does not tell."""
    query = f"--query-gpu={','.join(FIELDS.values())}"
    line = record.output("nvidia-smi", query, "--format=csv,noheader,nounits").partition("\n")[0]
    if not line:
        raise RuntimeError("nvidia-smi tells no clocks")
    told = zip(FIELDS, line.split(", "), strict=True)
    return {name: float(text) for name, text in told if text.replace(".", "", 1).isdigit()}


def measure(worker: Worker, csr: Any) -> None:
    import cupy as cp

    step = Started(create("cuda", np.float32), csr, worker.arguments.k, 1).step
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: [read() for _ in range(_READINGS)])
        while not reading.done():
            step()
            cp.cuda.get_current_stream().synchronize()
    worker.write("clocks", **reading.result()[-1])


def main() -> None:
    worker = Worker(__doc__ or "")
    csr = worker.load("fused")
    worker.attempt("clocks", partial(measure, worker, csr))
    worker.finish()


if __name__ == "__main__":
    main()
