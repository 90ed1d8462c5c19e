"""``hpf-gpu evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpf_gpu.app.options import (
    DEFAULT_COUNT,
    DEFAULT_ITEM,
    DEFAULT_USER,
    AsJson,
    Count,
    Item,
    ModelFile,
    Quiet,
    TableOut,
    User,
    columns_named,
)
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
    user: User = DEFAULT_USER,
    item: Item = DEFAULT_ITEM,
    count: Count = DEFAULT_COUNT,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a model finds held-out counts, and how likely it takes them to be."""
    import hpf_gpu
    from hpf_gpu.app import tables

    if output is not None:
        tables.check_output(output)
    fitted = hpf_gpu.load(model)
    columns = columns_named(user, item, count)
    with Progress(quiet=quiet) as progress:
        progress.step(f"Reading {train} and {held_out}")
        seen, unseen = (tables.read_counts_for(fitted, path, columns) for path in (train, held_out))
        progress.step("Measuring")
        wanted = {} if metrics is None else {"metrics": tables.listed(metrics)}
        evaluation = hpf_gpu.evaluate(fitted, seen, unseen, n=n, **wanted)  # type: ignore[attr-defined]
    with tables.writing(output, as_json=as_json) as table:
        table.add(evaluation.to_frame())
