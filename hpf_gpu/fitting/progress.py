"""Progress of reading and of iterations: a bar on a terminal and in notebooks, lines elsewhere."""

from __future__ import annotations

import io
import sys
import time
from types import TracebackType
from typing import Any, Self

from hpf_gpu.model.convergence import Check

_SECONDS = 1.0  # between two lines, at least
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress:
    """Steps that are done, the rate and the time left on standard error; nothing unless ``enabled``.

    Where standard error is a file, there is a line for each step, though not more than one a second.
    """

    def __init__(
        self, what: str, total: int | None, unit: str, first: int = 0, *, enabled: bool, scale: bool = False
    ) -> None:
        self._bar: Any = None
        self._lines = False
        self._shown = -_SECONDS
        # A bar takes a lock that forked processes share, and which stays locked if the holder is killed.
        if enabled:
            from tqdm.auto import tqdm  # which imports asyncio

            self._lines = not sys.stderr.isatty() and "notebook" not in tqdm.__module__
            where: dict[str, Any] = {"file": io.StringIO(), "bar_format": _LINE} if self._lines else {}
            self._bar = tqdm(
                total=total,
                initial=first,
                desc=what,
                unit=unit,
                unit_scale=scale,
                dynamic_ncols=True,
                **where,
            )

    def advance(self, by: int = 1, more: str = "") -> None:
        """Count steps, with what there is to say about the last."""
        if self._bar is None:
            return
        if more:
            self._bar.set_postfix_str(more, refresh=False)
        self._bar.update(by)
        if self._lines and (self._is_done or time.monotonic() - self._shown >= _SECONDS):
            self._shown = time.monotonic()
            sys.stderr.write(f"{self._bar}\n")

    @property
    def _is_done(self) -> bool:
        return self._bar.total is not None and self._bar.n >= self._bar.total

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class IterationsShown(Progress):
    """The progress of a fit: its iterations and the last log-likelihood."""

    def __init__(self, maxiter: int | None, first: int = 0, *, enabled: bool) -> None:
        super().__init__("HPF", maxiter, "it", first, enabled=enabled)

    def report(self, check: Check) -> None:
        """Count an iteration; called after each one."""
        self.advance(1, f"llk={check.llk:.6g}" if check.llk == check.llk else "")
