"""``hpf-gpu demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpf_gpu.app.terminal import write


def demo(
    backend: Annotated[str, typer.Option(help="auto, or a backend that `hpf-gpu doctor` lists.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the split and of the start values.")] = 1,
    k: Annotated[int, typer.Option(help="Number of factors.")] = 30,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="Picture to write.")] = Path(
        "hpf_gpu_demo.png"
    ),
) -> None:
    """Fit UCI Online Retail, which comes with the package, and show its recommendations."""
    from hpf_gpu.app import demo as shop

    shop.run(output, backend, seed, k, write)
