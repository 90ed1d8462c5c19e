"""``hpf-gpu report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpf_gpu.app.options import ModelFile, Quiet
from hpf_gpu.app.terminal import Progress, write


def report(
    model: ModelFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="HTML", help="File to write.", show_default=False)
    ],
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV or Parquet: ids of items and their names.", show_default=False
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a page about a model, to read in a browser: fit, factors, items and recommendations."""
    import hpf_gpu
    from hpf_gpu.app import tables
    from hpf_gpu.files.whole_file import writable

    writable(output)
    fitted = hpf_gpu.load(model)
    with Progress(quiet=quiet) as progress:
        progress.step("Writing the page")
        named = None if names is None else tables.read_names(fitted, names)
        hpf_gpu.report(fitted, output, names=named)
    if not quiet:
        write(f"{output}: open it in a browser\n")
