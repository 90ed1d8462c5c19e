"""The command ``hpf-gpu``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hpf_gpu import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (the process's arguments if None); returns the exit status."""
    try:
        arguments = _parser().parse_args(argv)
        status = int(arguments.run(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error such as a full disk is still reported
        return status
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except BrokenPipeError:  # the reader has exited, as in `hpf-gpu demo | head -1`
        _drop_output()
        return 128 + 13  # the status of a program ended by SIGPIPE, as in a shell
    except OSError as error:
        _tell(str(error))
        _drop_output()
        return 2


def _write(text: str) -> None:
    """Write to standard output, if it is open."""
    if sys.stdout is not None:
        sys.stdout.write(text)


def _tell(message: str) -> None:
    """Write a message to standard error, if it is open."""
    if sys.stderr is not None:
        sys.stderr.write(f"hpf-gpu: {message}\n")


def _drop_output() -> None:
    """Redirect standard output to nowhere, so that Python's flush at exit succeeds."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):  # not a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Each command imports what it needs, so that --help and usage errors are immediate.


def _demo(arguments: argparse.Namespace) -> int:
    from hpf_gpu import BackendUnavailable

    from . import demo

    try:
        demo.run(arguments.output, arguments.backend, arguments.seed, arguments.k, _write)
    except (BackendUnavailable, ImportError, MemoryError, TypeError, ValueError) as error:
        _tell(str(error))
        return 2
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    report = doctor.examine()
    _write("".join(f"{line}\n" for line in report.lines()))
    return 0 if report.compiled_works else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hpf-gpu", description="Hierarchical Poisson factorization of sparse counts."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="recommend products to the customers of a gift shop",
        description="Fit UCI Online Retail, which comes with the package, and show its recommendations.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--backend", default="auto", help="auto, or a backend that `hpf-gpu doctor` lists")
    demo.add_argument("--seed", type=int, default=1, help="seed of the split and of the start values")
    demo.add_argument("--k", type=int, default=30, help="number of factors")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("hpf_gpu_demo.png"),
        metavar="PNG",
        help="picture to write; without matplotlib a page, .html",
    )
    doctor = commands.add_parser(
        "doctor",
        help="show which backends work on this machine, and how to fix the others",
        description="Test every backend, and show how to fix those that do not work."
        " The exit status is 0 if a backend works that is faster than NumPy, else 1.",
    )
    doctor.set_defaults(run=_doctor)
    return parser
