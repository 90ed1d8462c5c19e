"""Values in messages, and warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = Path(__file__).parent
_MOST_COMPARED = 20_000  # pairs of names; a second if all are alike


def shown(value: Any) -> str:
    """The repr of a value for a message: -2, not np.int64(-2)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def did_you_mean(given: Collection[Any], known: Collection[Any]) -> str:
    """The end of a message about a few names or ids that are not known: what they are close to, or ""."""
    if len(given) * len(known) > _MOST_COMPARED:
        return ""
    by_letters = {one.lower(): one for one in known if isinstance(one, str)}
    close = [get_close_matches(one.lower(), by_letters, n=1) for one in given if isinstance(one, str)]
    found = list(dict.fromkeys(repr(by_letters[match]) for matches in close for match in matches))
    return f" (did you mean {', '.join(found)}?)" if found else ""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the location of the user's line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_of_zeros(how_many: int, what: str) -> None:
    """Warn that counts of zero were left out; ``what`` is "dropped" or "left out of" an argument."""
    warn(f"{how_many} counts of zero were {what}: absent pairs count as zero")
