"""``hpf-gpu plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpf_gpu.app.options import AsJson
from hpf_gpu.app.terminal import FAILED, tell, write


def plan(
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[COUNTS]",
            help="Parquet file of counts, whose size is read from its metadata.",
            show_default=False,
        ),
    ] = None,
    users: Annotated[float | None, typer.Option(help="Number of users, as in 1e8.")] = None,
    items: Annotated[float | None, typer.Option(help="Number of items.")] = None,
    nonzeros: Annotated[float | None, typer.Option(help="Number of counts above zero.")] = None,
    k: Annotated[int, typer.Option(help="Number of factors.", min=1)] = 30,
    dtype: Annotated[str, typer.Option(metavar="float32|float64", help="Type of the factors.")] = "float32",
    machines: Annotated[int, typer.Option(help="Number of machines.", min=1)] = 1,
    cores: Annotated[
        int | None, typer.Option(help="Cores of a machine.", min=1, show_default="of this one")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of a machine, as in 64GB.", show_default="of this one")
    ] = None,
    disk: Annotated[
        str | None, typer.Option(help="Free disk of a machine.", show_default="here on this one")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of a machine.", min=0, show_default="of this one")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="h200|h100|a100|rtx4090|l4|t4", help="Which GPU.", show_default="of this one, or a100"
        ),
    ] = None,
    device_memory: Annotated[
        str | None, typer.Option(help="Memory of a GPU, as in 80GB.", show_default="what it has")
    ] = None,
    disk_rate: Annotated[
        str | None, typer.Option(help="What the disk gives in a second.", show_default="1GB")
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(help="What goes between two machines in a second.", show_default="1.2GB"),
    ] = None,
    local_bandwidth: Annotated[
        str | None,
        typer.Option(help="What goes between two processes of a machine in a second.", show_default="1GB"),
    ] = None,
    user: Annotated[str, typer.Option(help="Column of the users in the file.")] = "UserId",
    item: Annotated[str, typer.Option(help="Column of the items in the file.")] = "ItemId",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the processor of this machine, for two seconds.")
    ] = False,
    as_json: AsJson = False,
) -> int | None:
    """Say what a fit would take: what fits where, how long an iteration takes, and how sure that is.

    It is a model: the figures say where each comes from, and what it costs if one of them is wrong.
    """
    from hpf_gpu.app import tables
    from hpf_gpu.planning import plan as planned
    from hpf_gpu.planning import sizes_of_file

    found = {} if table is None else sizes_of_file(table, user, item)
    given = {"users": users, "items": items, "nonzeros": nonzeros}
    sizes = found | {name: value for name, value in given.items() if value is not None}
    missing = [f"--{name}" for name in given if name not in sizes]
    if missing:
        where = "" if table is None else f", which {table} does not tell"
        tell(f"{' and '.join(missing)}: say how many there are{where}, as in --users 1e6")
        return FAILED
    result = planned(
        sizes["users"],
        sizes["items"],
        sizes["nonzeros"],
        k,
        dtype=dtype,
        machines=machines,
        cores=cores,
        gpus=gpus,
        gpu=gpu,
        measure=measure,
        memory=memory,
        disk=disk,
        gpu_memory=device_memory,
        disk_rate=disk_rate,
        local_rate=local_bandwidth,
        network_rate=bandwidth,
    )
    if as_json:
        frames = {"ways": result.table, "parts": result.parts, "sensitivity": result.sensitivity}
        best = None if result.best is None else result.best.name
        write(f"{tables.as_text({'best': best, **{n: f.to_dict('records') for n, f in frames.items()}})}\n")
        return None
    write(str(result))
    return None
