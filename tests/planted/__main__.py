"""Plants bugs in copies of the checkout, one in each, and says which of them the tests find.

    python tests/planted                        # every bug of bugs.toml, by the tests that should find it
    python tests/planted --only NAME ...        # these alone
    python tests/planted --list FILE --all-tests  # other bugs, by the whole suite

A bug is a table in the list: its name, a file, a string that occurs there once (``old``) and what takes its
place (``new``), and ``found_by``, selections of tests as pytest takes them.  ``simulator`` runs these in a
flavour of the CUDA simulator, ``environment`` has variables for them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
BUGS = Path(__file__).with_name("bugs.toml")
FOLDERS = ("hpf_gpu", "kernels", "tests", "bench")  # and the files beside them
#: Says of every bug whether it still applies, so it fails with any.
EVERYDAY = ("tests --ignore=tests/test_planted.py",)

#: In a copy this is imported before all else: the finder of an editable install goes before the path, and
#: would hand out the package of the checkout.
SITE = """\
import sys

sys.meta_path[:] = [f for f in sys.meta_path if "hpf_gpu" not in getattr(f, "known_source_files", ())]
"""

FOUND, NOT_FOUND = "found", "NOT FOUND"
BROKEN, NO_BUILD, STALE = "fails without the bug", "does not build", "does not apply"


@dataclass(frozen=True)
class Bug:
    """A change of one file, and the tests that should find it."""

    name: str
    file: str
    old: str
    new: str
    found_by: tuple[str, ...]
    simulator: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_compiled(self) -> bool:
        """Whether the C++ module has to be built anew for the tests to see it."""
        compiled = self.file.startswith("kernels/") and not self.file.startswith("kernels/cuda/")
        return compiled and self.simulator is None

    def planted(self, text: str) -> str:
        """The text of the file with the bug; ValueError if it does not apply."""
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"its old string occurs {times} times in {self.file}")
        return text.replace(self.old, self.new)


def read(path: Path) -> list[Bug]:
    """The bugs of a list.

    Raises
    ------
    ValueError
        If two have the same name, or an entry lacks a key or has one that means nothing.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["bug"]
    needed, known = {"name", "file", "old", "new", "found_by"}, set(Bug.__dataclass_fields__)
    for number, entry in enumerate(entries, 1):
        wrong = [f"no {key}" for key in sorted(needed - set(entry))]
        wrong += [f"an unknown key {key!r}" for key in sorted(set(entry) - known)]
        if wrong:
            raise ValueError(f"bug {number} of {path.name} has {', '.join(wrong)}")
    bugs = [Bug(**entry | {"found_by": tuple(entry["found_by"])}) for entry in entries]
    twice = [name for name, times in Counter(bug.name for bug in bugs).items() if times > 1]
    if twice:
        raise ValueError(f"{path.name} has several bugs named {', '.join(twice)}")
    return bugs


class BuildError(Exception):
    """The compiled module could not be built; the message has the compiler's first error."""


class Workshop:
    """A clean copy of the checkout, copies of it with a bug each, and one build of the compiled module.

    The module is built where sources and objects always lie in the same place, and after every bug both are
    as they were, times included: so only what a bug touches is compiled.
    """

    def __init__(self, folder: Path, *, build: bool) -> None:
        self.clean, self._folder = folder / "clean", folder
        self._sources, self._build = folder / "kernels", folder / "build"
        self._lock = threading.Lock()
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
        self.clean.mkdir()
        for path in ROOT.iterdir():
            if path.name in FOLDERS:
                shutil.copytree(path, self.clean / path.name, ignore=ignore)
            elif path.is_file():
                shutil.copy2(path, self.clean)
        (self.clean / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        if build:
            self._first_build()
        elif (found := _installed_module()) is not None:
            shutil.copy2(found, self.clean / "hpf_gpu")

    def copy(self, name: str) -> Path:
        """A copy of the checkout with the compiled module."""
        return Path(shutil.copytree(self.clean, self._folder / "copies" / name))

    def plant(self, bug: Bug, copy: Path) -> None:
        """Plant a bug in a copy, and in its compiled module."""
        target = copy / bug.file
        text = bug.planted(target.read_text(encoding="utf-8"))
        target.write_text(text, encoding="utf-8")
        if not bug.is_compiled:
            return
        source = self._sources / Path(bug.file).relative_to("kernels")
        with self._lock:
            state, objects = source.stat(), self._folder / "objects"
            original = source.read_text(encoding="utf-8")
            shutil.copytree(self._build, objects)
            try:
                source.write_text(text, encoding="utf-8")
                shutil.copy2(self._make(), copy / "hpf_gpu")
            finally:
                shutil.rmtree(self._build)
                objects.rename(self._build)
                source.write_text(original, encoding="utf-8")
                os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))

    def _first_build(self) -> None:
        shutil.copytree(self.clean / "kernels", self._sources)
        nanobind = [sys.executable, "-m", "nanobind", "--cmake_dir"]
        found = subprocess.run(nanobind, capture_output=True, text=True)
        if found.returncode or shutil.which("cmake") is None:
            raise BuildError("bugs in C++ need CMake and nanobind: pip install cmake ninja nanobind")
        command = ["cmake", "-S", str(self._sources), "-B", str(self._build)]
        command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={found.stdout.strip()}"]
        _compile([*command, "-G", "Ninja"] if shutil.which("ninja") else command)
        shutil.copy2(self._make(), self.clean / "hpf_gpu")

    def _make(self) -> Path:
        _compile(["cmake", "--build", str(self._build), "--parallel"])
        return next(path for path in self._build.iterdir() if path.name.startswith("_openmp."))


def _installed_module() -> Path | None:
    """The compiled module of the package that is installed; None where it has none."""
    found = importlib.util.find_spec("hpf_gpu._openmp")
    return None if found is None or found.origin is None else Path(found.origin)


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no output"]
        raise BuildError(next((line for line in lines if "error" in line.lower()), lines[-1]))


@dataclass(frozen=True)
class Run:
    """A selection of tests, and how it is run."""

    selection: str
    simulator: str | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def failure(self, copy: Path, limit: float) -> str | None:
        """The first test that fails in a copy, or what else is wrong; None if some pass and none fails."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += shlex.split(self.selection)
        if self.simulator is not None:
            command = [sys.executable, "-m", "cudasim", self.simulator, *command]
        variables = {key: value for key, value in os.environ.items() if not key.startswith("HPF_CUDASIM")}
        variables["PYTHONPATH"] = os.pathsep.join((str(copy), str(copy / "tests")))
        with subprocess.Popen(
            command,
            cwd=copy,
            env=variables | dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and what its tests have started
                return f"not done after {limit:.0f} s"
        if process.returncode == 0 and re.search(r"\d+ passed", output):
            return None
        return _first_failure(output, process.returncode)


def _first_failure(output: str, status: int) -> str:
    if failed := re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE):
        return failed[1]
    if died := re.search(r'File ".*?(\w+\.py)", line \d+ in (test_\w+)', output):  # what faulthandler says
        return f"{died[1]}::{died[2]} (exit status {status})"
    lines = output.strip().splitlines() or ["no output"]
    return f"{lines[-1]} (exit status {status})"


@dataclass(frozen=True)
class Outcome:
    """What became of a bug."""

    status: str
    seconds: float
    where: str  # the first test that failed, or what is wrong


def runs_of(bug: Bug, *, all_tests: bool) -> list[Run]:
    """The tests that a bug is held against."""
    if all_tests:
        return [Run(selection) for selection in EVERYDAY]
    environment = tuple(sorted(bug.environment.items()))
    return [Run(selection, bug.simulator, environment) for selection in bug.found_by]


def try_bug(workshop: Workshop, bug: Bug, runs: Iterable[Run], limit: float) -> Outcome:
    """Plant a bug in a copy of its own and run its tests, one selection after the other."""
    started, copy = time.perf_counter(), workshop.copy(bug.name)

    def outcome(status: str, where: str) -> Outcome:
        return Outcome(status, time.perf_counter() - started, where)

    try:
        workshop.plant(bug, copy)
        for run in runs:
            if (where := run.failure(copy, limit)) is not None:
                return outcome(FOUND, where)
        return outcome(NOT_FOUND, "")
    except BuildError as error:
        return outcome(NO_BUILD, str(error))
    except (OSError, ValueError) as error:
        return outcome(STALE, str(error))
    finally:
        shutil.rmtree(copy)


def imported_from(copy: Path) -> Path:
    """The folder of the package that tests of a copy import."""
    code = "import hpf_gpu; print(hpf_gpu.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip()).parent


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def report(bugs: Sequence[Bug], outcomes: Iterable[Outcome]) -> int:
    """Print a line for every bug and how many became of each kind; return the exit status."""
    width, statuses = max(len(bug.name) for bug in bugs), []
    for bug, outcome in zip(bugs, outcomes, strict=True):
        result = f"{outcome.status:<{len(BROKEN)}}  {outcome.seconds:5.0f} s"
        say(f"{bug.name:<{width}}  {result}  {outcome.where}".rstrip())
        statuses.append(outcome.status)
    say(", ".join(f"{times} {status}" for status, times in Counter(statuses).items()))
    return 0 if set(statuses) <= {FOUND} else 1


def main() -> int:
    """Plant the bugs that the command line asks for; the exit status is 0 if all are found."""
    parser = argparse.ArgumentParser(prog="python tests/planted", description="Plants bugs in copies.")
    add = parser.add_argument
    add("--list", type=Path, default=BUGS, metavar="FILE", help="take the bugs from here")
    add("--only", nargs="+", metavar="NAME", help="plant these alone")
    add("--all-tests", action="store_true", help="run the everyday suite, whatever found_by says")
    add("--limit", type=float, metavar="SECONDS", help="of a run: 600, or for the suite 7200")
    add("-j", type=int, default=1, metavar="N", help="so many bugs side by side")
    given = parser.parse_args()
    bugs = read(given.list)
    if given.only is not None:
        if unknown := set(given.only) - {bug.name for bug in bugs}:
            parser.error(f"{given.list.name} has no bug {', '.join(sorted(unknown))}")
        bugs = [bug for bug in bugs if bug.name in given.only]
    limit = given.limit or (7200 if given.all_tests else 600)
    runs = {bug.name: runs_of(bug, all_tests=given.all_tests) for bug in bugs}
    with TemporaryDirectory(prefix="hpf_gpu_planted_") as folder, ThreadPoolExecutor(given.j) as pool:
        try:
            workshop = Workshop(Path(folder), build=any(bug.is_compiled for bug in bugs))
        except BuildError as error:
            sys.exit(f"without any bug: {error}")
        if (package := imported_from(workshop.clean)) != workshop.clean / "hpf_gpu":
            sys.exit(f"the tests would import {package}, where no bug is planted")
        selections = list(dict.fromkeys(run for several in runs.values() for run in several))
        say(f"{len(selections)} selections of tests, without any bug first")
        reasons = pool.map(lambda run: run.failure(workshop.clean, limit), selections)
        failing = {run: why for run, why in zip(selections, reasons, strict=True) if why is not None}

        def outcome(bug: Bug) -> Outcome:
            if broken := [failing[run] for run in runs[bug.name] if run in failing]:
                return Outcome(BROKEN, 0, broken[0])
            return try_bug(workshop, bug, runs[bug.name], limit)

        return report(bugs, pool.map(outcome, bugs))


if __name__ == "__main__":
    sys.exit(main())
