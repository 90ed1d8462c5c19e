"""``hpf-gpu select``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hpf_gpu.app.options import (
    AsJson,
    Quiet,
    Table,
)
from hpf_gpu.app.parameters import with_parameters
from hpf_gpu.app.tables import as_text, show, writing
from hpf_gpu.app.terminal import Progress, is_terminal, write
from hpf_gpu.files.whole_file import writable
from hpf_gpu.tuning import METRICS, Selection
from hpf_gpu.tuning import select as choose


@with_parameters(several=True)
def select(
    table: Table,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="MODEL", help="File of the best model.", show_default=False),
    ] = None,
    metric: Annotated[
        str, typer.Option(metavar="|".join(METRICS), help="What the best is best in.")
    ] = "precision",
    n: Annotated[int, typer.Option("-n", "--n", help="Length of the lists.", min=1)] = 20,
    validation: Annotated[float, typer.Option(help="Share of the counts that is held out.")] = 0.1,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    parameters: dict[str, list[Any]],
) -> None:
    """Fit several models, and keep the one that finds held-out counts best.

    Parameters take values with commas between them, as in --k 10,30,100, and all combinations are tried.
    If none has several, factorizations, neighbours, and mixtures of both are tried, with the parameters
    that are given where they have none of their own.
    """
    if output is not None:
        writable(output)
    with Progress(quiet=quiet) as progress:
        progress.step("Fitting models")
        tried = {name: values for name, values in parameters.items() if len(values) > 1}
        common = {name: values[0] for name, values in parameters.items() if len(values) == 1}
        selection = choose(
            table,
            tried or None,
            metric=metric,
            n=n,
            validation=validation,
            refit=output is not None,
            **common,
        )
        if output is not None and selection.model is not None:
            selection.model.save(output)
    _tell_result(selection, output, as_json=as_json, quiet=quiet)


#: Columns of the table that are shown even where they have one value.
_SHOWN = ("candidate", "round", "iterations", "score", "seconds", "chosen")


def _tell_result(selection: Selection, output: Path | None, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        result = {
            "model": None if output is None else str(output),
            "metric": selection.metric,
            "parameters": selection.parameters,
            "discount": selection.discount,
            "table": selection.table.to_dict("records"),
        }
        write(f"{as_text(result)}\n")
    elif not quiet:
        table = selection.table.dropna(axis="columns", how="all")
        if not is_terminal(sys.stdout):
            with writing(None, as_json=False) as rows:
                rows.add(table)
            return
        differing = [name for name in table if name in _SHOWN or table[name].astype(str).nunique() > 1]
        show(table[differing])
        best = {name: value for name, value in selection.parameters.items() if name != "verbose"}
        write(f"Best in {selection.metric}: {best}, discount {selection.discount:g}\n")
        if output is not None:
            write(f"{output}: this model, fitted to all counts\n")
