"""Host time of an iteration of the cuda backend: everything but the kernels, over the simulated driver.

PYTHONPATH=tests python bench/host_time.py [--iterations 1000] [--k 30]

A fit of small data runs in the simulator until its first iteration is done; from then on kernels, graphs and
events do nothing.  Python, CuPy and our own code are those of a GPU; a launch costs what a call from C to
Python costs.  Printed is the processor time from one iteration to the next, without checks.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cudasim.arguments
import numpy as np
from cudasim import device, driver
from scipy import sparse

from hpf_gpu import HPF

SUBMITTED = ("graphLaunch", "eventRecord", "eventSynchronize", "memsetAsync")
CASES: dict[str, dict[str, Any]] = {
    "joint": {},
    "alternating": {"schedule": "alternating"},
    "with biases": {"bias": True},
}


class Device:
    """Whether the device does anything."""

    off = False


def unless_off(function: Callable[..., None]) -> Callable[..., None]:
    """A function of the driver that does nothing while the device is off."""
    return lambda *arguments: None if Device.off else function(*arguments)


def host_time(iterations: int, k: int, **options: Any) -> list[float]:
    """Microseconds of each iteration after the first ten."""
    rng = np.random.default_rng(0)
    counts = sparse.random_array((1000, 500), density=0.04, rng=rng, format="csr")
    counts.data = np.ceil(9 * counts.data)
    times: list[float] = []

    def after_each(_: object) -> None:
        Device.off = True
        times.append(time.thread_time())

    model = HPF(k=k, maxiter=iterations + 10, stop_crit="maxiter", verbose=False, backend="cuda", **options)
    Device.off = False
    model.fit(counts, callback=after_each)
    return [1e6 * (after - before) for before, after in itertools.pairwise(times[9:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--k", type=int, default=30)
    arguments = parser.parse_args()
    for kind, names in ((driver.Driver, ("launchKernel",)), (device.Runtime, SUBMITTED)):
        for name in names:
            setattr(kind, name, unless_off(getattr(kind, name)))
    cudasim.arguments.check = lambda *_: None  # a GPU's driver does not check
    cudasim.install()
    import cupy as cp

    cp.cuda.set_allocator(cp.cuda.MemoryPool().malloc)  # CuPy's default, which the simulator does without
    for name, options in CASES.items():
        taken = host_time(arguments.iterations, arguments.k, **options)
        sys.stdout.write(f"{name}: {statistics.median(taken):.1f} µs, the fastest {min(taken):.1f} µs\n")


if __name__ == "__main__":
    main()
