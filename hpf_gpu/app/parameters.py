"""The parameters of HPF as options of a command, all from the table of settings and the docstring of HPF."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from hpf_gpu.estimator import HPF
from hpf_gpu.model.settings import TABLE, Choice, Flag, Kind, Real, Whole

#: Without a meaning here: a function, what the command decides, and what has no effect.
_LEFT_OUT = {"step_size", "verbose", "produce_dicts", "allow_inconsistent_math", "alloc_full_phi"}
#: Shorter names of options.
_SHORT = {"random_seed": "--seed", "ncores": "--threads"}
_PANEL = "Parameters of HPF"
_NOTHING = "none"  # stands for None
_ROWS = {row.name: row for row in TABLE if row.name not in _LEFT_OUT}


def with_parameters(*, several: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command every parameter of HPF as an option; its argument ``parameters`` has those given.

    With ``several`` an option takes values with commas between them, and the dict has lists.
    """

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(**arguments: Any) -> Any:
            texts = {name: arguments.pop(name) for name in _ROWS}
            given = {name: text for name, text in texts.items() if text is not None}
            parameters = {
                name: [value_of(name, one) for one in text.split(",")] if several else value_of(name, text)
                for name, text in given.items()
            }
            return command(**arguments, parameters=parameters)

        own = inspect.signature(command, eval_str=True).parameters.values()
        helps = _first_sentences(HPF.__doc__ or "")
        options = [_option(name, helps.get(name, ""), several) for name in _ROWS]
        listed = [*(one for one in own if one.name != "parameters"), *options]
        called.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
        return called

    return decorated


def value_of(name: str, text: str | bool) -> Any:
    """The value of a parameter that was typed; ValueError if it is none."""
    kind: Kind = _ROWS[name].metadata["kind"]
    if isinstance(text, bool):
        return text
    if text == _NOTHING and _takes_none(name, kind):
        return None
    value: Any = text
    if isinstance(kind, (Whole, Real)):
        value = _number(name, text)
    elif isinstance(kind, Flag):
        value = _boolean(name, text)
    return kind.checked(name, value)


def _takes_none(name: str, kind: Kind) -> bool:
    try:
        kind.checked(name, None)
    except (TypeError, ValueError):
        return False
    return True


def _number(name: str, text: str) -> int | float:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    raise ValueError(f"{name}={text!r} is not a number")


def _boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{name}={text!r} is neither true nor false")
    return text == "true"


def _option(name: str, help: str, several: bool) -> inspect.Parameter:
    """The option of a parameter, without a default, so that only what is typed is passed on."""
    row = _ROWS[name]
    kind: Kind = row.metadata["kind"]
    flag = isinstance(kind, Flag) and not several
    dashed = name.replace("_", "-")
    if flag:
        names = [f"--{dashed}/--no-{dashed}"]
    else:
        names = [f"--{dashed}", *([_SHORT[name]] if name in _SHORT else [])]
    choices = kind.names if isinstance(kind, Choice) else ()
    help = f"{help} One of {', '.join(choices)}." if choices else help
    option = typer.Option(
        *names,
        help=f"{escape(help)} [dim]{escape(f'[default: {_shown(row.default)}]')}[/dim]",
        metavar=None if flag else _metavar(kind),
        show_default=False,
        rich_help_panel=_PANEL,
        autocompletion=(lambda: list(choices)) if choices else None,
    )
    annotation: Any = bool | None if flag else str | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def _metavar(kind: Kind) -> str:
    if isinstance(kind, (Whole, Real)):
        return "INTEGER" if isinstance(kind, Whole) else "NUMBER"
    return "TEXT"


def _shown(default: Any) -> str:
    return (
        _NOTHING if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    )


def _first_sentences(docstring: str) -> dict[str, str]:
    """The first sentence about each parameter in a numpydoc docstring."""
    _, _, section = inspect.cleandoc(docstring).partition("\nParameters\n----------\n")
    section = re.split(r"\n\n\w+\n-+\n", section)[0]
    sentences = {}
    for names, text in re.findall(r"^(\w[\w, ]*) : .*\n((?:    .*\n?)+)", section, re.MULTILINE):
        words = re.sub(r" \[\d+\]_", "", " ".join(text.split())).replace("``", "")
        for name in names.split(", "):
            sentences[name] = re.split(r"(?<=\.) (?=[A-Z'])", words)[0]
    return sentences
