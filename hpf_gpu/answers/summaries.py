"""What there is to tell about a fitted model, as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu.model.ensemble import Ensemble
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.settings import is_default

#: A label and a value.
Fact = tuple[str, str]

_WIDTH, _HEIGHT = 220, 48  # of the curve


def facts_of(fitted: Fitted) -> list[Fact]:
    """The state of a fit."""
    facts = [("users", f"{fitted.nusers:,}"), ("items", f"{fitted.nitems:,}")]
    if fitted.seen is not None:
        facts.append(("nonzeros", f"{len(fitted.seen[1]):,}"))
    facts.append(("iterations", f"{fitted.niter:,}"))
    if fitted.train_llk is not None:
        facts.append(("log-likelihood", f"{fitted.train_llk:,.0f}"))
    if len(fitted.history):
        last = fitted.history.iloc[-1]
        if np.isfinite(last["elbo"]):
            facts.append(("ELBO", f"{last['elbo']:,.0f}"))
        facts.append(("seconds", f"{last['seconds']:,.2f}"))
    facts.append(("backend", fitted.backend))
    facts.append(("seed", str(fitted.seed)))
    return facts


def facts_of_ensemble(ensemble: Ensemble) -> list[Fact]:
    """The state of the fits of an ensemble."""
    fits = [member.fitted for member in ensemble.members]
    seconds = sum(float(fitted.history["seconds"].iloc[-1]) for fitted in fits if len(fitted.history))
    return [
        ("users", f"{ensemble.user_ids.size:,}"),
        ("items", f"{ensemble.item_ids.size:,}"),
        ("members", f"{len(fits):,}"),
        ("iterations", f"{sum(fitted.niter for fitted in fits):,}"),
        ("seconds", f"{seconds:,.2f}"),
    ]


def changed(parameters: Mapping[str, Any]) -> list[Fact]:
    """The parameters of an HPF that differ from their defaults."""
    return [(name, repr(value)) for name, value in parameters.items() if not is_default(name, value)]


def repr_html(
    name: str,
    parameters: Iterable[Fact],
    facts: Iterable[Fact] | None,
    history: pd.DataFrame | None = None,
) -> str:
    """A model as a piece of HTML; ``facts`` is None before the fit."""
    parts = [f"<div><strong>{escape(name)}</strong>"]
    if facts is None:
        parts.append(" <em>not fitted</em>")
    parts.append(_table("parameters", parameters))
    if facts is not None:
        parts.append(_table("fit", facts))
    if history is not None:
        rows = history[["iteration", "llk"]].dropna()
        parts.append(_curve(rows["iteration"].to_numpy(), rows["llk"].to_numpy()))
    return "".join([*parts, "</div>"])


def _table(title: str, facts: Iterable[Fact]) -> str:
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal">{escape(label)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for label, value in facts
    )
    caption = f'<caption style="text-align:left;opacity:.7">{escape(title)}</caption>'
    return f'<table style="margin:.5em 0">{caption}<tbody>{rows}</tbody></table>' if rows else ""


def _curve(iterations: NDArray[Any], llk: NDArray[Any]) -> str:
    """The log-likelihood by iteration, without axes; nothing where there are not two finite values."""
    finite = np.isfinite(llk)
    iterations, llk = iterations[finite].astype(float), llk[finite].astype(float)
    if len(llk) < 2:
        return ""
    x = _scaled(iterations, 3, _WIDTH - 3)
    y = _scaled(-llk, 3, _HEIGHT - 3)
    points = " ".join(f"{left:.1f},{top:.1f}" for left, top in zip(x, y, strict=True))
    label = f"log-likelihood from {llk[0]:,.0f} to {llk[-1]:,.0f} in {int(iterations[-1])} iterations"
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{label}"><title>{label}</title><polyline points="{points}" fill="none"'
        f' stroke="currentColor" stroke-width="1.5"/><circle cx="{x[-1]:.1f}" cy="{y[-1]:.1f}" r="2.5"'
        ' fill="currentColor"/></svg>'
    )


def _scaled(values: NDArray[Any], low: float, high: float) -> Sequence[float]:
    width = values.max() - values.min() or 1.0
    scaled: list[float] = (low + (high - low) * (values - values.min()) / width).tolist()
    return scaled
