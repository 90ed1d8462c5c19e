"""``hpf-gpu bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from hpf_gpu.app.options import AsJson, Quiet
from hpf_gpu.app.terminal import Progress, write


def bench(
    k: Annotated[int, typer.Option(help="Number of factors.", min=1)] = 50,
    seconds: Annotated[float, typer.Option(help="Time for each backend.", min=0.01)] = 10.0,
    nonzeros: Annotated[
        int, typer.Option(help="Counts that are drawn; fewer are left where pairs repeat.", min=1000)
    ] = 1_000_000,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast each backend fits drawn counts on this machine, beside hpfrec if it is installed."""
    import pandas as pd

    from hpf_gpu.app import bench as speeds
    from hpf_gpu.app import tables

    with Progress(quiet=quiet) as progress:
        progress.step("Drawing counts")
        counts = speeds.drawn_counts(speeds.USERS, speeds.ITEMS, nonzeros)
        progress.step("Measuring")
        rows = []
        for speed in speeds.measure(counts, k, seconds):
            rows.append(speed.row(counts.nnz))
            progress.advance(1, speed.name)
    if as_json:
        shape = {"users": counts.shape[0], "items": counts.shape[1], "nonzeros": counts.nnz, "k": k}
        write(f"{tables.as_text({**shape, 'backends': rows})}\n")
        return
    write(f"{counts.shape[0]:,} users, {counts.shape[1]:,} items, {counts.nnz:,} nonzeros, k={k}, float32\n")
    tables.show(pd.DataFrame(rows))
