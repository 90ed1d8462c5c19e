"""``hpf-gpu evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpf_gpu.app.options import AsJson, ModelFile, Quiet, TableOut
from hpf_gpu.app.terminal import Progress


def evaluate(
    model: ModelFile,
    train: Annotated[
        Path, typer.Option(metavar="COUNTS", help="What the model was fitted to.", show_default=False)
    ],
    held_out: Annotated[
        Path, typer.Option(metavar="COUNTS", help="What it has not seen.", show_default=False)
    ],
    metrics: Annotated[
        str | None, typer.Option(help="Names with commas between them.", show_default="all")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Length of the lists.", min=1)] = 20,
    output: TableOut = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a model finds held-out counts, and how likely it takes them to be."""
    import hpf_gpu
    from hpf_gpu.app import tables

    if output is not None:
        tables.check_output(output)
    fitted = hpf_gpu.load(model)
    with Progress(quiet=quiet) as progress:
        progress.step("Measuring")
        wanted = None if metrics is None else tables.listed(metrics)
        evaluation = hpf_gpu.evaluate(fitted, train, held_out, wanted, n)
    with tables.writing(output, as_json=as_json) as table:
        table.add(evaluation.to_frame())
