"""Everything that is to be known from a GPU, in one run of eight minutes that needs no network.

    python bench/gpu_day.py --out FOLDER [--work FOLDER] [--only STEP,STEP…]

builds this checkout, runs the contract suite on the GPU, the kernels under compute-sanitizer and Nsight
Compute, and times them beside the ceilings of the same machine, the times that bench/gpu_model.py expects,
the openmp backend and PyTorch.  Each step is a process with a limit of time; a step that fails, or whose tool
is missing, is a line in the table, and the next one follows.  The most important come first, and those for
which no time is left are skipped.

FOLDER gets <name of the GPU>.jsonl (to be added to bench/results), table.txt, which is printed in brief, and
the logs.  Where the checkout has no git history, HPF_GPU_COMMIT says what commit it is.  --only runs the
steps with these names, or that match these patterns ('netflix*'), and adds to what FOLDER has.  --work keeps
the data, the installed package and the compiled kernels for the next run; what has changed since is made
again.

It needs NumPy, SciPy, pandas, CuPy, scikit-build-core and nanobind; pytest, hypothesis, compute-sanitizer,
ncu and PyTorch for their steps alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from glob import glob
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from gpu.modelled import TABLE, Model
from gpu.steps import Budget, Outcome, Running, Step, run
from gpu.table import table
from record import graphics_card, read

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = sys.executable
CUDA_TOOLS = (
    *("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"),
    *sorted(glob("/opt/nvidia/nsight-compute/*"), reverse=True),
)
LARGE = ("lastfm", "netflix", "taste")
#: Where launches take as long as kernels.
SMALL = ("movielens-1m", "movielens-100k")
SANITIZED = "small"
SOURCES = ("hpf_gpu", "kernels", "pyproject.toml")  # of the package
DOCTOR = "import sys; from hpf_gpu.app.cli import main; sys.exit(main(['doctor']))"
#: Names that --only takes beside those of the plan: both are done before it, as far as its steps need them.
INSTALL, DATA = "install", "data"


def program(name: str, *arguments: object) -> tuple[str, ...]:
    return (PYTHON, "-m", f"gpu.{name}", *map(str, arguments))


def install(site: Path) -> Step:
    # Into a folder of its own: the machine's Python stays as it is, and needs not be writable.
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    command = (PYTHON, "-m", "pip", "install", *options, "--target", str(site), str(ROOT))
    return Step(INSTALL, command, limit=150, least=5)


def tests(name: str, files: Iterable[str], select: Iterable[str], **variables: str) -> Step:
    paths = (str(ROOT / "tests" / file) for file in files)
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    if find_spec("xdist"):  # most of the time goes into compiling and into Python
        options += ["-p", "xdist", "-n", "4"]  # by name: PYTEST_DISABLE_PLUGIN_AUTOLOAD may be set
    command = (PYTHON, "-m", "pytest", *paths, *options, "-k", " and ".join(("cuda", *select)))
    return Step(name, command, 180, least=20, variables={"HPF_GPU_REQUIRE": "cuda", **variables})


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

    _few = "counts_by_items"  # tests of the smoke run

    def __init__(self, data: Path, results: Path, *, smoke: bool) -> None:
        self._data, self._smoke = data, smoke
        self._options = ("--data", data, "--results", results, *(("--quick",) if smoke else ()))

    def steps(self) -> Iterator[Step]:
        first, *others = ("tiny",) if self._smoke else LARGE
        yield from self._checks()
        yield Step("ceilings", program("ceilings", *self._options[2:]), limit=40, least=10)
        yield self._operations(first, 64, "float64")
        yield self._on("fit", "fit", first, limit=60)
        yield self._on("clocks", "clocks", first, limit=30)
        if not self._smoke:
            yield from (self._operations(shape, 64) for shape in ("netflix", *SMALL))
            yield from (self._on("fit", "fit", shape, limit=30) for shape in SMALL)
        yield self._on("ncu", "counters", others[0] if others else first, limit=60)
        yield from map(self._sanitizer, ("memcheck", "racecheck", "synccheck"))
        yield self._blocking()
        yield self._on("sweep", "sweep", first, limit=75)
        yield self._sanitizer("initcheck")
        if not self._smoke:
            yield self._operations("taste", 64)
        yield from (self._on("fit", "fit", shape, limit=60) for shape in others)
        yield from self._comparisons(first)
        if not self._smoke:
            yield self._on("ncu", "counters", first, limit=60)
            yield self._on("sweep", "sweep", "netflix", limit=75)
            yield from (self._operations(shape, k) for k in (128, 32) for shape in LARGE)
        for shape in others:
            yield from self._comparisons(shape)

    def make_data(self, steps: Iterable[Step]) -> Step:
        """What makes the matrices that these steps need."""
        return Step(DATA, program("shapes", self._data, *_unique(s.shape for s in steps)), limit=150, least=1)

    def _checks(self) -> Iterator[Step]:
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu"
        yield Step("nvidia-smi", ("nvidia-smi", query, "--format=csv,noheader"), limit=20, least=1)
        yield Step("doctor", (PYTHON, "-c", DOCTOR), limit=60, least=5)
        files = ("contract", "test_inference.py", "test_cuda.py")
        yield tests("contract", files, (self._few,) if self._smoke else ())

    def _blocking(self) -> Step:
        """A few tests where every launch waits for its kernel, which must change nothing."""
        file, select = "contract/test_statistics.py", "allocate_conserves_counts"
        if self._smoke:
            file, select = "test_cuda.py", self._few
        return tests("launch blocking", (file,), (select,), CUDA_LAUNCH_BLOCKING="1")

    def _sanitizer(self, tool: str) -> Step:
        # K = 50: rows with padding.  No pool: the end of every array is the end of an allocation.
        variants = ("fused", "mixed", "float64")
        options = ("--data", self._data, "--quick", "--no-pool")
        work = program("operations", SANITIZED, 50, *variants, *options)
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *work)
        return Step(tool, command, limit=75, least=25, shape=SANITIZED)

    def _operations(self, shape: str, k: int, *more: str) -> Step:
        command = program("operations", shape, k, "fused", "mixed", "composed", *more, *self._options)
        return Step(f"{shape} K={k}", command, limit=90, least=20, shape=shape)

    def _on(self, name: str, module: str, shape: str, limit: float) -> Step:
        command = program(module, shape, 64, *self._options)
        return Step(f"{name} {shape}", command, limit, least=15, shape=shape)

    def _comparisons(self, shape: str) -> Iterator[Step]:
        yield self._on("torch", "torch_update", shape, limit=45)
        yield self._on("openmp", "host", shape, limit=45)


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
        self._use_package(Path(installed.origin).parents[1] if installed and installed.origin else ROOT)

    def install(self, site: Path) -> None:
        """Install the package, unless it is there, and take it in the steps that follow."""
        if site.exists():
            self._keep(Outcome(INSTALL, "ok", 0.0, "was there"))
        else:
            unfinished = site.with_name("unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            if self.run(install(unfinished)).verdict != "ok":
                return
            unfinished.rename(site)
        self._use_package(site)

    def _use_package(self, folder: Path) -> None:
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
        """Write table.txt, and return the same in brief."""
        show = partial(table, read(results), self._outcomes, Model(TABLE, graphics_card().get("gpu", "")))
        (self._out / "table.txt").write_text(show() + "\n", encoding="utf-8")
        return show(brief=True)


def results_file(out: Path) -> Path:
    name = graphics_card().get("gpu", "no GPU")
    return out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.jsonl"


def select(steps: Sequence[Step], patterns: Sequence[str]) -> list[Step]:
    """The steps that match one of the patterns, in the order of the plan; all if there are none.

    Raises
    ------
    ValueError
        If a pattern matches no step.
    """
    names = (INSTALL, DATA, *(step.name for step in steps))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no step is called {pattern!r}; the steps are {', '.join(names)}")
    return [
        step for step in steps if not patterns or any(fnmatchcase(step.name, pattern) for pattern in patterns)
    ]


def fingerprint(*paths: Path) -> str:
    """A short name for the contents of these files and folders."""
    found = (file for path in paths for file in (path, *sorted(path.rglob("*"))) if file.is_file())
    digest = hashlib.sha256()
    for file in found:
        if "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(ROOT)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _unique(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="kept for the next run; by default temporary"
    )
    parser.add_argument(
        "--only", metavar="STEPS", help="names or patterns of steps, with commas between them"
    )
    parser.add_argument("--seconds", type=float, default=470, help="that everything may take (470)")
    parser.add_argument(
        "--no-install", action="store_true", help="take the package in this checkout as it is"
    )
    parser.add_argument("--smoke", action="store_true", help="everything once, on little data")
    arguments = parser.parse_args()
    patterns = [pattern.strip() for pattern in arguments.only.split(",")] if arguments.only else []
    out = arguments.out.resolve()
    results = results_file(out)
    with _folder(arguments.work) as folder:
        work = Path(folder)
        matrices = work / f"data-{fingerprint(HERE / 'cases.toml', HERE / 'synthetic.py')}"
        plan = Plan(matrices, results, smoke=arguments.smoke)
        steps = list(plan.steps())
        try:
            chosen = select(steps, patterns)
        except ValueError as error:
            parser.error(str(error))
        for made in (out, work):
            made.mkdir(parents=True, exist_ok=True)
        if not patterns:
            for old in (results, *(out / name for name in ("log.txt", "data.txt", "table.txt"))):
                old.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # with the table of what was done
        day = Day(out, work, Budget(arguments.seconds), patience=5 if arguments.smoke else 1)
        needing = steps if any(fnmatchcase(DATA, pattern) for pattern in patterns) else chosen
        data = day.start(plan.make_data(needing)) if any(step.shape for step in needing) else None
        try:
            if not arguments.no_install:
                day.install(work / f"site-{fingerprint(*(ROOT / name for name in SOURCES))}")
            ahead = list(takewhile(lambda step: not step.shape, chosen))
            for step in ahead:  # while the data are made
                day.run(step)
            if data:
                day.wait(data, limit=90)
            for step in chosen[len(ahead) :]:
                day.run(step)
        finally:
            if data:
                data.stop()
            sys.stdout.write(f"\n{day.report(results)}\n")


def _folder(kept: Path | None) -> contextlib.AbstractContextManager[str | Path]:
    """The folder of --work, or one that goes away."""
    if kept is not None:
        return contextlib.nullcontext(kept.resolve())
    return tempfile.TemporaryDirectory(prefix="hpf_gpu_day_", ignore_cleanup_errors=True)


if __name__ == "__main__":
    main()
