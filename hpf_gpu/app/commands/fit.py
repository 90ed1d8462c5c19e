"""``hpf-gpu fit``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from hpf_gpu.app.options import (
    AsJson,
    Quiet,
    Table,
)
from hpf_gpu.app.parameters import with_parameters
from hpf_gpu.app.tables import as_text
from hpf_gpu.app.terminal import FINE, INTERRUPTED, Progress, tell, write
from hpf_gpu.estimator import HPF
from hpf_gpu.files.whole_file import writable


@with_parameters()
def fit(
    table: Table,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL", help="File to write.", show_default=False)
    ],
    held_out: Annotated[
        Path | None,
        typer.Option(metavar="COUNTS", help="Held-out counts, for --stop-crit val-llk.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the state of the fit is kept; if the file exists, the fit goes on from it.",
            show_default=False,
        ),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Iterations between two checkpoints.")] = 10,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that the command may take, such as 4GB: the counts are kept on disk.",
            show_default=False,
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where they are kept, with --memory-limit.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    parameters: dict[str, Any],
) -> int:
    """Fit a model to a file of counts.

    Ctrl-C ends the fit, keeps the last finished iteration and writes the model.
    """
    writable(output)  # raises before the fit what would be raised after it
    model = HPF(**parameters, verbose=False)
    status = FINE
    with Progress(quiet=quiet) as progress:
        progress.step(f"Reading {table}")
        # An interrupt that is a warning otherwise, after which the model is the same.
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the fit was interrupted")
            try:
                model.fit(
                    table,
                    held_out,
                    callback=_reporter(progress, model.maxiter) if progress.shown else None,
                    checkpoint=checkpoint,
                    checkpoint_every=checkpoint_every,
                    memory_limit=memory_limit,
                    scratch=scratch,
                )
            except KeyboardInterrupt:
                if not model.is_fitted:
                    raise
                status = INTERRUPTED
        model.verbose = True  # for fits in Python; here the bars are the command's own
        model.save(output)
    if status == INTERRUPTED:
        tell(f"interrupted: {output} has the model after iteration {model.niter}")
    _summarize(model, output, as_json=as_json, quiet=quiet)
    return status


def _reporter(progress: Progress, maxiter: int | None) -> Any:
    """A callback of the fit that moves its bar."""
    begun = False

    def report(check: Any) -> None:
        nonlocal begun
        if not begun:
            progress.step("Fitting", maxiter)
            progress.advance(check.iteration - 1)  # of a fit that goes on from a checkpoint
            begun = True
        progress.advance(1, None if check.llk != check.llk else f"log-likelihood {check.llk:.6g}")

    return report


def _summarize(model: HPF, output: Path, *, as_json: bool, quiet: bool) -> None:
    last = model.history_.iloc[-1]
    result = {
        "model": str(output),
        "users": model.nusers,
        "items": model.nitems,
        "k": model.k,
        "backend": model.backend_,
        "random_seed": model.random_seed_,
        "iterations": model.niter,
        "seconds": last["seconds"],
        "llk": last["llk"],
        "elbo": last["elbo"],
    }
    if as_json:
        write(f"{as_text(result)}\n")
    elif not quiet:
        write(
            f"{output}: {model.nusers:,} users, {model.nitems:,} items, {model.k} factors, seed "
            f"{model.random_seed_}\n"
            f"{model.niter} iterations in {last['seconds']:.2f} s on {model.backend_}, "
            f"log-likelihood {last['llk']:,.0f}, ELBO {last['elbo']:,.0f}\n"
        )
