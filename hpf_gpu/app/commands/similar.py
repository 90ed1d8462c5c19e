"""``hpf-gpu similar``."""

from __future__ import annotations

from typing import Annotated

import typer

from hpf_gpu.app.options import AsJson, ModelFile, TableOut
from hpf_gpu.app.terminal import tell


def similar(
    model: ModelFile,
    ids: Annotated[
        str, typer.Argument(metavar="ITEM", help="Id of an item, or several: a,b.", show_default=False)
    ],
    n: Annotated[int, typer.Option("-n", "--n", help="Similar ones for each.", min=1)] = 10,
    users: Annotated[bool, typer.Option("--users", help="The ids are of users.")] = False,
    output: TableOut = None,
    as_json: AsJson = False,
) -> None:
    """Find the items most similar to one, or the users most similar to one."""
    from hpf_gpu import load
    from hpf_gpu.app import tables

    if output is not None:
        tables.check_output(output)
    fitted = load(model)
    known = tables.ids_of_users(fitted) if users else tables.ids_of_items(fitted)
    kind = "users" if users else "items"
    found, unknown = tables.ids_named(ids, known, kind)
    if unknown:
        tell(f"warning: {kind} {', '.join(map(repr, unknown))} are not in the model")
    search = getattr(fitted, f"similar_{kind}")
    with tables.writing(output, as_json=as_json) as table:
        table.add(tables.as_pandas(search(found, n=n)))
