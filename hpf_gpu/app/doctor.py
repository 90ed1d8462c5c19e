"""Which backends work on this machine, and how to fix those that do not.

Any import may fail on a machine where this command is needed, so everything except the standard library is
imported inside a ``try``, and a failure is a line of the report.
"""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path

from hpf_gpu import __version__

_NEEDED = ("numpy", "scipy.special", "pandas", "tqdm")
_OF_COMMANDS = ("typer", "rich")  # of all but this one


@dataclass(frozen=True)
class Finding:
    """The result for one package or backend."""

    name: str
    works: bool
    text: str
    details: tuple[str, ...] = ()
    remedy: str = ""
    expected: bool = False  # it does not work, but nothing is broken

    def lines(self) -> Iterator[str]:
        """The finding as text, the remedy last."""
        yield f"{self.name:<9}{self.text}"
        for detail in self.details:
            yield f"{'':<9}{detail}"
        if self.remedy:
            yield f"{'':<9}-> {self.remedy}"


@dataclass(frozen=True)
class Report:
    """The results for all packages and backends."""

    software: tuple[Finding, ...]
    backends: tuple[Finding, ...]  # the fastest first; empty if NumPy does not work
    automatic: str  # the backend that 'auto' uses, '' if it fails

    @property
    def compiled_works(self) -> bool:
        """Whether a backend that is faster than NumPy works."""
        return any(finding.works and finding.name != "numpy" for finding in self.backends)

    @property
    def next_step(self) -> str:
        """The first thing to fix, or "No problems found."."""
        remedies = [
            finding.remedy
            for finding in chain(self.software, self.backends)
            if finding.remedy and not finding.expected
        ]
        return f"Next: {remedies[0]}" if remedies else "No problems found."

    def lines(self) -> Iterator[str]:
        """The report as text, the next step last."""
        for finding in self.software:
            yield from finding.lines()
        if self.backends:
            yield ""
            yield "Backends, the fastest first:"
        for finding in self.backends:
            yield from finding.lines()
        yield ""
        yield (
            f"backend='auto' uses {self.automatic!r}." if self.automatic else "backend='auto' does not work."
        )
        yield self.next_step


def examine() -> Report:
    """Examine Python, the packages that hpf_gpu needs, and every backend, with a small fit on each."""
    software = (
        Finding("hpf_gpu", True, f"{__version__}, in {Path(__file__).parents[1]}"),
        Finding("Python", True, f"{platform.python_version()}, {sys.executable}, on {platform.platform()}"),
        *map(_package, (*_NEEDED, *_OF_COMMANDS)),
    )
    if not all(finding.works for finding in software[: -len(_OF_COMMANDS)]):
        return Report(software, (), "")
    from hpf_gpu import backends

    with warnings.catch_warnings():  # their contents are in the report
        warnings.simplefilter("ignore")
        return Report(software, tuple(map(_backend, backends.NAMES)), _automatic())


def _package(module: str) -> Finding:
    name = module.split(".")[0]
    try:
        importlib.import_module(module)
    except Exception as error:
        return Finding(name, False, _broken(error), remedy=f"pip install --force-reinstall {name}")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = getattr(sys.modules[name], "__version__", "of unknown version")
    return Finding(name, True, version)


def _backend(name: str) -> Finding:
    try:
        return _examined(name)
    except Exception as error:
        return Finding(name, False, _broken(error), remedy="report these lines to the authors of hpf_gpu")


def _examined(name: str) -> Finding:
    from hpf_gpu import backends
    from hpf_gpu.backends.protocol import BackendUnavailable

    details = tuple(backends.describe_machine(name))
    try:
        text = f"works: {_try_out(name)}"
    except BackendUnavailable as error:
        verdict = "not for this machine" if error.expected else "does not work"
        return Finding(name, False, f"{verdict}: {error.problem}", details, error.remedy, error.expected)
    module = backends.module_of(name)
    return Finding(name, True, text, (*details, *module.describe_devices()), module.advice())


def _try_out(name: str) -> str:
    """Run a small fit, because some faults appear only in computation; returns describe()."""
    import numpy as np

    from hpf_gpu import HPF, backends

    counts = np.array([[0, 0, 2], [0, 1, 1], [1, 1, 3], [2, 0, 1]])
    model = HPF(k=2, maxiter=2, stop_crit="maxiter", random_seed=1, verbose=False, backend=name).fit(counts)
    if not np.isfinite(model.Theta).all():
        raise ArithmeticError(f"a small fit gave {model.Theta.tolist()}")
    return backends.create(name, np.float32).describe()


def _automatic() -> str:
    import numpy as np

    from hpf_gpu import backends

    try:
        return backends.choose("auto", np.float32).name
    except Exception:  # the reason is reported with the backend
        return ""


def _broken(error: Exception) -> str:
    return f"does not work: {type(error).__name__}: {' '.join(str(error).split())}"
