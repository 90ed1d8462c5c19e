"""The program ``hpf-gpu``, which runs its doctor even where the command line's own packages are broken."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .terminal import FAILED, status_of, tell


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (the process's arguments if None); returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return status_of(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        from .application import run
    except Exception as error:  # whatever a broken package raises
        if arguments == ["doctor"]:
            from .commands.doctor import doctor

            return doctor()
        tell(
            f"typer cannot be imported ({type(error).__name__}: {error}): "
            "pip install --force-reinstall typer, or ask `hpf-gpu doctor`"
        )
        return FAILED
    return run(arguments)
