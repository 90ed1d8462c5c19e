"""The CUDA backend without a GPU: parts of this suite once more, over the simulator in tests/cudasim.

Each leg is a pytest of its own, in a process that has CUDA simulated from the start.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cudasim
import pytest

import hpf_gpu
from hpf_gpu.backends.openmp_diagnosis import usable_cores

TESTS = Path(__file__).resolve().parent
OPERATIONS = ("contract", "test_inference.py", "test_cuda.py", "test_cuda_graph.py")
FITS = (
    "test_cuda_graph.py::test_recorded_fits",
    "test_parity.py::test_golden_figures",
    "test_agreement.py::test_agrees_with_numpy",
    "test_folding.py",
    "test_blocks.py",
    "test_beyond_memory.py::test_the_same_bits_with_every_backend",
    "test_checkpoint.py::test_a_killed_fit_ends_the_same[cuda-diff-norm]",
    "test_checkpoint.py::test_a_killed_fit_ends_the_same[cuda-both]",
    "test_family.py::test_dense_formulas[cuda-float32-flat-joint]",
    "test_family.py::test_dense_formulas[cuda-float32-bias-joint]",
    "test_family.py::test_dense_formulas[cuda-float32-bias items-alternating]",
)


@dataclass(frozen=True)
class Leg:
    """A flavour of the simulator, the order in which streams run, and which tests run so."""

    flavour: str
    select: str
    tests: tuple[str, ...] = OPERATIONS
    streams: str = "eager"
    seed: int = 0


#: For every day, half a minute with nothing compiled yet: every kernel with K=5 in float32, and a whole fit.
CORE = (
    "((allocate or gamma_update or extrapolate or mean or predict or select or top_items)"
    " and (5 and not 1.25 or 5-both-True-1.25) or one-nonzero or 7-3 or iterations or test_fit)"
    " and not float64 and not 50 and not equal_scores"
    " and not where_blocks_meet and not memory"
)
#: Every operation and a whole fit, once.
FEW = (
    "(allocate or gamma or extrapolate or sum or predict or top_items or iterations or by_items or device"
    " or stream or wait) and not float64 and not where_blocks_meet and not csr_types and not memory"
)
#: The same for few cases.
SMALL = f"{FEW} and (5 or user or nonzero or device or stream or wait or recorded) and not 50"

#: Without tests of rounding, and of data from the device: their kernels are CuPy's, and other legs find what
#: goes beyond an array.
ADDRESSES = "not device and not in_double and not small_sums and not small_products"

#: Of counts that stream, whose tests choose orders of streams themselves.
STREAMED = "overtakes or given_back or same_bits and eager and 40 and float32"

#: The longest first, for they run side by side.
LEGS = {
    "core": Leg("fast", f"{CORE} or overtakes", (*OPERATIONS, "test_cuda_stream.py")),
    # Without packing tens of thousands of columns, and predicting memory for one of three shapes: two minutes
    # of the host's work.
    "everything in float32": Leg(
        "fast", "not float64 and not (ends_of_types and not 256) and not (memory_is_predicted and shape1)"
    ),
    # Packing is the host's work, of which float32 has seen everything.
    "everything in float64": Leg("fast", "float64 and not packing"),
    "streamed counts": Leg("fast", "cuda_stream", ("test_cuda_stream.py",)),
    "streamed counts, asan": Leg("asan", STREAMED, ("test_cuda_stream.py",)),
    "fits": Leg("fast", "not online_retail and not land_on", FITS),
    "asan": Leg("asan", f"{FEW} and {ADDRESSES}"),
    "lazy streams": Leg("fast", SMALL, streams="lazy", seed=1),
    "random streams": Leg("fast", SMALL, streams="random", seed=2),
    # CuPy's own kernel behind flatnonzero has a race, so no data from the device; ranking, a row of 512
    # segments and a fit in batches take minutes.
    "tsan": Leg(
        "tsan",
        "(allocate or gamma_update or extrapolate or log_ or pairs or by_items or any_sign)"
        " and not float64 and not long_rows_in_double and not batches",
        seed=3,
    ),
    "streamed counts, tsan": Leg("tsan", f"({STREAMED}) and not overtakes", ("test_cuda_stream.py",)),
}


def run(leg: Leg) -> subprocess.CompletedProcess[str]:
    environment = cudasim.environment(leg.flavour) | {
        "HPF_CUDASIM_STREAMS": leg.streams,
        "HPF_CUDASIM_SEED": str(leg.seed),
        "HPF_GPU_REQUIRE": "cuda",
        # The hpf_gpu of this process, compiled module and all: not the sources in the working directory.
        "PYTHONSAFEPATH": "1",
    }
    paths = (environment["PYTHONPATH"], str(Path(hpf_gpu.__file__).parents[1]))
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-m", "not package", "-k", leg.select]
    simulator = [sys.executable, "-m", "cudasim", leg.flavour]
    return subprocess.run(
        [*simulator, *command, *(str(TESTS / test) for test in leg.tests)],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The legs that this session asks for, side by side: each keeps one core busy."""
    items = [item for item in request.session.items if item.name.startswith(f"{test_leg.__name__}[")]
    names = [item.callspec.params["name"] for item in items if isinstance(item, pytest.Function)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        yield {name: pool.submit(run, LEGS[name]) for name in names}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "core" else [pytest.mark.slow]) for name in LEGS]
)
def test_leg(name: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    try:
        ran = runs[name].result()
    except cudasim.Unsupported as error:
        required = "cudasim" in os.environ.get("HPF_GPU_REQUIRE", "").split(",")
        (pytest.fail if required else pytest.skip)(str(error))
    report = ran.stdout + ran.stderr
    assert ran.returncode == 0, report[-6000:]
    assert re.search(r"\d+ passed", ran.stdout), report[-6000:]


def test_nothing_simulates_unasked() -> None:
    """This process itself has the CUDA of the machine, or none."""
    assert "HPF_CUDASIM" not in os.environ
