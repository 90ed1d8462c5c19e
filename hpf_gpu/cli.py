"""The command ``hpf-gpu``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, backends


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (the process's arguments if None); returns the exit status."""
    arguments = _parser().parse_args(argv)
    # Everything heavy is imported only now, so that --help and usage errors come at once.
    from . import BackendUnavailable, demo

    try:
        demo.run(arguments.output, arguments.backend, arguments.seed, arguments.k, sys.stdout.write)
    except (BackendUnavailable, ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        sys.stderr.write(f"hpf-gpu: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("hpf-gpu: interrupted\n")
        return 130
    return 0


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
    demo.add_argument("--backend", default="auto", help=f"what computes: auto, {', '.join(backends.NAMES)}")
    demo.add_argument("--seed", type=int, default=1, help="seed of the split and of the start values")
    demo.add_argument("--k", type=int, default=30, help="number of factors")
    demo.add_argument(
        "--output", type=Path, default=Path("hpf_gpu_demo.png"), metavar="PNG", help="picture to write"
    )
    return parser
