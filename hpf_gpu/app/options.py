"""Options and arguments that several commands have."""

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
TableOut: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="CSV or Parquet file to write.", show_default="standard output"
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")]
