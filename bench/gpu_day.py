"""Everything that is to be known from a GPU, in one run of eight minutes that needs no network.

    python bench/gpu_day.py --out FOLDER

builds this checkout, runs the contract suite on the GPU, the kernels under compute-sanitizer, and times
them beside the ceilings of the same machine, the openmp backend and PyTorch.  Each step is a process with
a limit of time; a step that fails is a line in the table, and the next one follows.  The most important come
first, and those for which no time is left are skipped.

FOLDER gets <name of the GPU>.jsonl (to be added to bench/results), table.txt, and the logs.  Where the
checkout has no git history, HPF_GPU_COMMIT says what commit it is.  It needs NumPy, SciPy, pandas, CuPy,
scikit-build-core and nanobind; pytest, hypothesis, compute-sanitizer and PyTorch for their steps alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from gpu.steps import Budget, Outcome, Running, Step, run
from gpu.table import table
from record import graphics_card, read

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = sys.executable
CUDA_TOOLS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
SHAPES = ("lastfm", "netflix", "taste")
DOCTOR = "import sys; from hpf_gpu.app.cli import main; sys.exit(main(['doctor']))"


def program(name: str, *arguments: object) -> tuple[str, ...]:
    return (PYTHON, "-m", f"gpu.{name}", *map(str, arguments))


def install(site: Path) -> Step:
    # Into a folder of its own: the machine's Python stays as it is, and needs not be writable.
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    command = (PYTHON, "-m", "pip", "install", *options, "--target", str(site), str(ROOT))
    return Step("install", command, limit=150, least=5)


def tests(*select: str) -> Step:
    files = (str(ROOT / "tests" / name) for name in ("contract", "test_inference.py", "test_cuda.py"))
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    if find_spec("xdist"):  # most of the time goes into compiling and into Python
        options += ["-n", "4"]
    command = (PYTHON, "-m", "pytest", *files, *options, "-k", " and ".join(("cuda", *select)))
    return Step("contract", command, limit=180, least=20, variables={"HPF_GPU_REQUIRE": "cuda"})


def sanitizer(tool: str, data: Path) -> Step:
    # K = 50: rows with padding.  No pool: the end of every array is the end of an allocation.
    work = program(
        "operations", "small", 50, "fused", "mixed", "float64", "--data", data, "--quick", "--no-pool"
    )
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *work)
    return Step(tool, command, limit=75, least=25)


class Plan:
    """The steps after the installation, the most important first.

    Parameters
    ----------
    data : Path
        Folder of count matrices.
    results : Path
        File that timings are appended to.
    smoke : bool
        Whether to do everything once and on little data, to see that it works.
    """

    def __init__(self, data: Path, results: Path, *, smoke: bool) -> None:
        self._data, self._smoke = data, smoke
        self._options = ("--data", data, "--results", results, *(("--quick",) if smoke else ()))

    def check(self) -> Iterator[Step]:
        """Steps that need no data."""
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu"
        yield Step("nvidia-smi", ("nvidia-smi", query, "--format=csv,noheader"), limit=20, least=1)
        yield Step("doctor", (PYTHON, "-c", DOCTOR), limit=60, least=5)
        yield tests(*(("counts_by_items",) if self._smoke else ()))

    def shapes(self) -> tuple[str, ...]:
        return ("small", "tiny") if self._smoke else ("small", *SHAPES)

    def make_data(self) -> Step:
        return Step("data", program("shapes", self._data, *self.shapes()), limit=150, least=1)

    def measure(self) -> Iterator[Step]:
        first, *others = self.shapes()[1:]
        yield Step("ceilings", program("ceilings", *self._options[2:]), limit=40, least=10)
        yield self._operations(first, 64, "fused", "mixed", "composed", "float64")
        yield from (self._operations(shape, 64, "fused", "mixed", "composed") for shape in others)
        yield self._fit(first)
        yield self._compare("host", "openmp", first)
        yield self._compare("torch_update", "torch", first)
        yield from (sanitizer(tool, self._data) for tool in ("memcheck", "racecheck", "synccheck"))
        yield from map(self._fit, others)
        yield from self._others(128)
        for shape in others:
            yield self._compare("torch_update", "torch", shape)
            yield self._compare("host", "openmp", shape)
        yield from self._others(32)

    def _others(self, k: int) -> Iterator[Step]:
        """The three data sets at other numbers of factors."""
        if not self._smoke:
            yield from (self._operations(shape, k, "fused", "mixed", "composed") for shape in SHAPES)

    def _operations(self, shape: str, k: int, *variants: str) -> Step:
        command = program("operations", shape, k, *variants, *self._options)
        return Step(f"{shape} K={k}", command, limit=90, least=20)

    def _fit(self, shape: str) -> Step:
        return Step(f"fit {shape}", program("fit", shape, 64, *self._options), limit=60, least=20)

    def _compare(self, module: str, name: str, shape: str) -> Step:
        return Step(f"{name} {shape}", program(module, shape, 64, *self._options), limit=45, least=15)


class Day:
    """One run: what is done is kept at once, so that little is lost if it ends early."""

    def __init__(self, out: Path, work: Path, budget: Budget, patience: float) -> None:
        self._budget, self._out, self._patience = budget, out, patience
        self._outcomes: list[Outcome] = []
        self._environment = os.environ | {
            "PATH": os.pathsep.join((os.environ.get("PATH", ""), *CUDA_TOOLS)),
            "PYTHONSAFEPATH": "1",  # the package that was installed, not the one in the current folder
            "PYTHONUNBUFFERED": "1",
            "CUPY_CACHE_DIR": str(work / "cupy"),
        }
        installed = find_spec("hpf_gpu")
        self.use_package(Path(installed.origin).parents[1] if installed and installed.origin else ROOT)

    def use_package(self, folder: Path) -> None:
        """Take hpf_gpu from this folder in the steps that follow."""
        inherited = os.environ.get("PYTHONPATH")
        path = (str(folder), str(HERE), *((inherited,) if inherited else ()))
        self._environment["PYTHONPATH"] = os.pathsep.join(path)

    def run(self, step: Step) -> Outcome:
        step = replace(step, limit=step.limit * self._patience)
        return self._keep(run(step, self._budget, self._out / "log.txt", self._environment))

    def start(self, step: Step) -> Running:
        """Begin a step beside the others."""
        return Running(step, self._out / f"{step.name}.txt", self._environment)

    def wait(self, running: Running, limit: float) -> Outcome:
        return self._keep(running.wait(min(limit, self._budget.left)))

    def _keep(self, outcome: Outcome) -> Outcome:
        self._outcomes.append(outcome)
        sys.stdout.write(f"{outcome.name}: {outcome.verdict}, {outcome.seconds:.0f} s\n")
        sys.stdout.flush()
        return outcome

    def report(self, results: Path) -> str:
        text = table(read(results), self._outcomes)
        (self._out / "table.txt").write_text(text + "\n", encoding="utf-8")
        return text


def results_file(out: Path) -> Path:
    name = graphics_card().get("gpu", "no GPU")
    return out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=470, help="that everything may take (470)")
    parser.add_argument(
        "--no-install", action="store_true", help="take the package in this checkout as it is"
    )
    parser.add_argument("--smoke", action="store_true", help="everything once, on little data")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = results_file(out)
    for old in (results, *(out / name for name in ("log.txt", "data.txt", "table.txt"))):
        old.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # with the table of what was done
    work = Path(tempfile.mkdtemp(prefix="hpf_gpu_day_"))
    day = Day(out, work, Budget(arguments.seconds), patience=5 if arguments.smoke else 1)
    plan = Plan(work, results, smoke=arguments.smoke)
    data = day.start(plan.make_data())  # while the package is built and tested
    try:
        if not arguments.no_install and day.run(install(work / "site")).verdict == "ok":
            day.use_package(work / "site")
        for step in plan.check():
            day.run(step)
        day.wait(data, limit=60)
        for step in plan.measure():
            day.run(step)
    finally:
        data.stop()
        shutil.rmtree(work, ignore_errors=True)
        sys.stdout.write(f"\n{day.report(results)}\n")


if __name__ == "__main__":
    main()
