"""The progress bar of a fit."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from hpf_gpu.model.convergence import Check


class ProgressBar:
    """Iterations, time left and the last likelihood on standard error; nothing unless ``enabled``."""

    def __init__(self, maxiter: int | None, first: int = 0, *, enabled: bool) -> None:
        self._bar: Any = None
        # A bar takes a lock that forked processes share, and which stays locked if the holder is killed.
        if enabled:
            from tqdm.auto import tqdm  # which imports asyncio

            self._bar = tqdm(total=maxiter, initial=first, desc="HPF", unit="it", dynamic_ncols=True)

    def report(self, check: Check) -> None:
        """Advance the bar; called after every iteration."""
        if self._bar is None:
            return
        self._bar.update()
        if check.llk == check.llk:
            self._bar.set_postfix_str(f"llk={check.llk:.6g}", refresh=False)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
