"""The commands of ``hpf-gpu``, and where each of them is: its module is imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hpf_gpu import __version__

from .terminal import status_of, write

#: What each command is for.  It is the function of its name in the module of its name in ``commands/``.
COMMANDS = {
    "fit": "Fit a model to a file of counts.",
    "recommend": "Recommend items to users, known or new.",
    "similar": "Find the items, or users, most similar to one.",
    "evaluate": "Measure a model on counts that it has not seen.",
    "select": "Fit several models, and keep the best.",
    "report": "Write a page about a model, to read in a browser.",
    "plan": "Say what a fit would take: what fits where, and how long it takes.",
    "demo": "Recommend products to the customers of a gift shop.",
    "bench": "Measure the backends on this machine, in a minute.",
    "doctor": "Show which backends work on this machine, and how to fix the others.",
}


class _Group(TyperGroup):
    """All commands, with one way to end for each."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is called, and exit with its status."""
        # Here, because Typer has a way of its own with interrupts and closed pipes.
        raise typer.Exit(status_of(lambda: super(_Group, self).invoke(ctx)))


class _Command(TyperCommand):
    """A command in its module, which is not imported before it is called."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **named: Any) -> Any:
        """The context of the real command, which parses its own arguments."""
        function = getattr(import_module(f".commands.{self.name}", __package__), str(self.name))
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(function)
        return typer.main.get_command(alone).make_context(info_name, args, *rest, **named)


def _version(wanted: bool) -> None:
    if wanted:
        write(f"hpf-gpu {__version__}\n")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Hierarchical Poisson factorization of sparse counts."""


def _called() -> None:
    """Stands for the function of a command, which :class:`_Command` calls in its place."""


def run(arguments: list[str]) -> int:
    """Run a command; returns the exit status."""
    application = typer.Typer(cls=_Group, pretty_exceptions_enable=False, no_args_is_help=True)
    application.callback()(_options)
    for name, summary in COMMANDS.items():
        application.command(name, cls=_Command, help=summary)(_called)
    try:
        application(args=arguments, prog_name="hpf-gpu")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
