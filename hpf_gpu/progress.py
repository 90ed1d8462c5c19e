"""The progress bar of a fit."""

from __future__ import annotations

from types import TracebackType

from tqdm.auto import tqdm

from .convergence import Check


class ProgressBar:
    """Iterations, time left and the last likelihood on standard error; nothing unless ``enabled``."""

    def __init__(self, maxiter: int | None, *, enabled: bool) -> None:
        self._bar = tqdm(total=maxiter, desc="HPF", unit="it", disable=not enabled, dynamic_ncols=True)

    def report(self, check: Check) -> None:
        """Hear of one finished iteration."""
        self._bar.update()
        if check.llk == check.llk:
            self._bar.set_postfix_str(f"llk={check.llk:.6g}", refresh=False)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
