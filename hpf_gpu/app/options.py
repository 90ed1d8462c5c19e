"""Options and arguments that several commands have, and the names of columns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ModelFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="MODEL", help="File of a model or of an ensemble.", show_default=False)
]
Table: TypeAlias = Annotated[
    Path, typer.Argument(metavar="COUNTS", help="Counts: a CSV or Parquet file.", show_default=False)
]
User: TypeAlias = Annotated[str, typer.Option("--user", metavar="COLUMN", help="Column of the users.")]
Item: TypeAlias = Annotated[str, typer.Option("--item", metavar="COLUMN", help="Column of the items.")]
Count: TypeAlias = Annotated[
    str, typer.Option("--count", metavar="COLUMN", help="Column of the counts; none if every row is one.")
]
TableOut: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="CSV or Parquet file to write.", show_default="standard output"
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")]
DEFAULT_USER, DEFAULT_ITEM, DEFAULT_COUNT = "UserId", "ItemId", "Count"


def columns_named(user: str, item: str, count: str) -> dict[str, str | None]:
    """Columns of a file by what they hold."""
    return {DEFAULT_USER: user, DEFAULT_ITEM: item, DEFAULT_COUNT: None if count == "none" else count}
