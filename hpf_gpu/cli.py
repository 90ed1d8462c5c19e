"""The command ``hpf-gpu``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (the process's arguments if None); returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        sys.stderr.write("hpf-gpu: interrupted\n")
        return 130


# Each command imports what it needs, so that --help and usage errors come at once.


def _demo(arguments: argparse.Namespace) -> int:
    from . import BackendUnavailable, demo

    try:
        demo.run(arguments.output, arguments.backend, arguments.seed, arguments.k, sys.stdout.write)
    except (BackendUnavailable, ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        sys.stderr.write(f"hpf-gpu: {error}\n")
        return 2
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    report = doctor.examine()
    sys.stdout.writelines(f"{line}\n" for line in report.lines())
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
        description="Fit UCI Online Retail, which comes with the package, and show what the model does.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--backend", default="auto", help="what computes: auto, or a backend that `hpf-gpu doctor` lists"
    )
    demo.add_argument("--seed", type=int, default=1, help="seed of the split and of the start values")
    demo.add_argument("--k", type=int, default=30, help="number of factors")
    demo.add_argument(
        "--output", type=Path, default=Path("hpf_gpu_demo.png"), metavar="PNG", help="picture to write"
    )
    doctor = commands.add_parser(
        "doctor",
        help="say which backends work here, and what mends the others",
        description="Try every backend out, and say what mends those that do not work."
        " The exit status is 0 if one works that is faster than NumPy, else 1.",
    )
    doctor.set_defaults(run=_doctor)
    return parser
