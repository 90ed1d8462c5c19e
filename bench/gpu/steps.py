"""Steps of a day with a GPU: programs with limits of time, none of which can take the others down."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A program, the seconds it may take, and the seconds without which it is not worth starting."""

    name: str
    command: tuple[str, ...]
    limit: float
    least: float
    variables: Mapping[str, str] = field(default_factory=dict)  # of its environment
    shape: str = ""  # whose data it needs


@dataclass(frozen=True)
class Outcome:
    """How a step ended: 'ok', 'failed', 'out of time' or 'skipped'; ``note`` is the last line it said."""

    name: str
    verdict: str
    seconds: float
    note: str


class Budget:
    """Seconds that are left of those there were at the beginning."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    @property
    def left(self) -> float:
        return self._end - self._now()

    def limit_of(self, step: Step) -> float | None:
        """Seconds that a step gets; None if too few are left for it."""
        return min(step.limit, self.left) if self.left >= step.least else None


class Running:
    """A step that was started, with everything it starts in turn."""

    def __init__(self, step: Step, log: Path, environment: Mapping[str, str]) -> None:
        self._step, self._log, self._started = step, log, time.monotonic()
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n=== {step.name}: {' '.join(step.command)}\n")
            file.flush()
            self._begin = file.tell()
            self._process = subprocess.Popen(
                step.command,
                env={**environment, **step.variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, limit: float) -> Outcome:
        """Wait for the end, and bring it about when the time is over."""
        try:
            verdict = "ok" if self._process.wait(max(limit, 0)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            verdict = "out of time"
        finally:
            self.stop()
        return Outcome(self._step.name, verdict, time.monotonic() - self._started, self._last_line())

    def stop(self) -> None:
        """End what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _last_line(self) -> str:
        with self._log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._begin)
            lines = [line.strip() for line in file if line.strip()]
        return lines[-1] if lines else ""


def run(step: Step, budget: Budget, log: Path, environment: Mapping[str, str]) -> Outcome:
    """Run a step within its limit and the budget; whatever happens is its outcome."""
    limit = budget.limit_of(step)
    if limit is None:
        note = f"needs {step.least:.0f} s, and {max(budget.left, 0):.0f} s are left"
        return Outcome(step.name, "skipped", 0.0, note)
    try:
        return Running(step, log, environment).wait(limit)
    except OSError as error:
        return Outcome(step.name, "failed", 0.0, f"{step.command[0]}: {error.strerror}")
