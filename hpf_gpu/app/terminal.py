"""Standard output and standard error of the command: text, progress, and errors in one line."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

#: Exit statuses.
FINE, NEGATIVE, FAILED, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 128 + 13
_EXPECTED = (ImportError, MemoryError, OSError, TypeError, ValueError)


def write(text: str) -> None:
    """Write to standard output, if it is open."""
    if sys.stdout is not None:
        sys.stdout.write(text)


def tell(message: str) -> None:
    """Write a message to standard error, in one line, if it is open."""
    if sys.stderr is not None:
        sys.stderr.write(f"hpf-gpu: {' '.join(message.split())}\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody reads the stream as it is written."""
    return stream is not None and stream.isatty()


def status_of(run: Callable[[], int | None]) -> int:
    """The exit status of a command; expected errors are told in one line, without a traceback."""
    try:
        with _told_warnings():
            status = run() or FINE
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error such as a full disk is still reported
        return status
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader has exited, as in `hpf-gpu demo | head -1`
        _drop_output()
        return READER_GONE  # the status of a program ended by SIGPIPE, as in a shell
    except OSError as error:
        tell(str(error))
        _drop_output()
        return FAILED
    except Exception as error:
        # Our own classes by their module, because importing them would import NumPy.
        if not isinstance(error, _EXPECTED) and type(error).__module__.partition(".")[0] != "hpf_gpu":
            raise
        tell(str(error) or type(error).__name__)
        return FAILED


@contextlib.contextmanager
def _told_warnings() -> Iterator[None]:
    """Within this block a warning is a line like an error's, without the place in the code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        tell(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of packages, for those who call them
        warnings.showwarning = show
        yield


def _drop_output() -> None:
    """Redirect standard output to nowhere, so that Python's flush at exit succeeds."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):  # not a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """The steps of a command as bars on standard error; nothing if ``quiet`` or if that is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.shown = not quiet and is_terminal(sys.stderr)
        self._bar: Any = None
        self._step: Any = None

    def __enter__(self) -> Progress:
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bar = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, description: str, total: int | None = None) -> None:
        """Begin a step, of ``total`` parts if that is known; the one before has ended."""
        if self._bar is None:
            return
        if self._step is not None:
            self._bar.remove_task(self._step)
        self._step = self._bar.add_task(description, total=total, state="")

    def advance(self, parts: int = 1, state: str | None = None) -> None:
        """Some more parts of the step are done; ``state`` is shown beside the bar."""
        if self._bar is not None:
            self._bar.update(self._step, advance=parts, **({} if state is None else {"state": state}))
