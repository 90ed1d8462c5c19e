"""``hpf-gpu recommend``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpf_gpu.app.options import (
    AsJson,
    ModelFile,
    Quiet,
    TableOut,
)
from hpf_gpu.app.terminal import FAILED, Progress, tell

if TYPE_CHECKING:
    import pandas as pd

    from hpf_gpu import HPF, HPFEnsemble


def recommend(
    model: ModelFile,
    n: Annotated[int, typer.Option("-n", "--n", help="Items for each user.", min=1)] = 10,
    users: Annotated[
        str | None, typer.Option(help="Ids of users, as in ann,bob.", show_default="all users of the model")
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(
            metavar="COUNTS",
            help="Counts of other users, who are not added to the model.",
            show_default=False,
        ),
    ] = None,
    output: TableOut = None,
    discount: Annotated[
        float,
        typer.Option(help="Divide scores by the number of users that have the item to this power.", min=0),
    ] = 0.0,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also recommend items that the user has.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """Recommend items to users of the model, all or some, or to users whose counts are passed.

    The table has columns UserId, ItemId and Score, for each user the best item first.
    """
    from hpf_gpu import load
    from hpf_gpu.app import tables

    if users is not None and counts is not None:
        tell("--users names users of the model, and --counts has others: leave one of them out")
        return FAILED
    if output is not None:
        tables.check_output(output)
    fitted = load(model)
    options: dict[str, Any] = {"n": n, "exclude_seen": not include_seen, "discount": discount}
    with Progress(quiet=quiet) as progress:
        if counts is not None:
            progress.step("Ranking")
            parts = iter([fitted.recommend(counts=counts, **options)])
        else:
            parts = _lists(fitted, _wanted(fitted, users), options, progress)
        with tables.writing(output, as_json=as_json) as table:
            for part in parts:
                if not table.add(tables.as_pandas(part)):
                    break
    return None


def _wanted(fitted: HPF | HPFEnsemble, users: str | None) -> Any:
    """Ids of users, (B,): all, or those that are named."""
    from hpf_gpu.app import tables

    known = tables.ids_of_users(fitted)
    if users is None:
        return known
    found, unknown = tables.ids_named(users, known, "users")
    if unknown:
        tell(f"warning: users {', '.join(map(repr, unknown))} are not in the model")
    return found


def _lists(
    fitted: HPF | HPFEnsemble, users: Any, options: dict[str, Any], progress: Progress
) -> Iterator[pd.DataFrame]:
    """The lists of users (B,), block after block, so that memory is bounded."""
    from hpf_gpu.files.parquet_file import in_parts

    progress.step("Ranking", len(users))
    for block in in_parts(users, options["n"]):
        yield fitted.recommend(block, **options)
        progress.advance(len(block))
