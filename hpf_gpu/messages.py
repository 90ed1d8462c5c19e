"""Values in messages, and warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = Path(__file__).parent


def shown(value: Any) -> str:
    """The repr of a value for a message: -2, not np.int64(-2)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the location of the user's line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_of_zeros(how_many: int, what: str) -> None:
    """Warn that counts of zero were left out; ``what`` is "dropped" or "left out of" an argument."""
    warn(f"{how_many} counts of zero were {what}: absent pairs count as zero")
