"""Splits of counts into training and held-out data: by user at random, by time, the last rows of each user.

Frames of any library that narwhals knows are taken, and both parts are frames of that library.
"""

from __future__ import annotations

import datetime
import zoneinfo
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .data.ids import encode
from .messages import shown
from .model.settings import whole_number


def split_by_user(
    counts: Any, *, fraction: float = 0.2, min_items: int = 10, seed: int = 1, user: str = "UserId"
) -> tuple[Any, Any]:
    """Split counts at random into training and held-out data, user by user.

    Parameters
    ----------
    counts : DataFrame of pandas, polars, pyarrow or another library that narwhals knows
        One row per user and item.
    fraction : float
        Share of each user's rows to hold out, rounded to an integer number of rows.
    min_items : int
        Nothing is held out of users with fewer rows than this.
    seed : int
        Seed of the random choice.
    user : str
        Column with the users.

    Returns
    -------
    train, held_out : DataFrame
        The rows of ``counts``, each in one of the two, in the original order and with pandas' index.

    Raises
    ------
    ValueError, TypeError
        If ``fraction`` is not between 0 and 1, ``min_items`` is below 1, there is no column ``user``, or
        ``counts`` is not a data frame.
    """
    _require_share(fraction)
    min_items = whole_number("min_items", min_items, 1)
    frame = _frame(counts, user)
    place, size = _places(frame, user, np.random.default_rng(seed).random(len(frame)))
    return _parted(frame, (place < np.round(fraction * size)) & (size >= min_items))


def split_by_time(
    counts: Any, time: str, *, at: Any = None, fraction: float | None = None
) -> tuple[Any, Any]:
    """Split counts at one point in time: training data before, held-out data from then on.

    This is how a recommender is used: what was known until today is to tell what comes next.  Users and
    items that appear later are in the held-out data alone, and a pair may be in both parts;
    :func:`hpf_gpu.evaluate` leaves these counts out and says how many there are.

    Parameters
    ----------
    counts : DataFrame of pandas, polars, pyarrow or another library that narwhals knows
        One row for each count.
    time : str
        Column with the time: dates, numbers, or strings that sort by time.
    at : value of this column, optional
        The first time that is held out; of a column of dates also a string, '2011-10-01'.
    fraction : float, optional
        In place of ``at``: the share of the rows, the latest, that is held out.  Rows of the same time stay
        together, so that it may be somewhat more.

    Returns
    -------
    train, held_out : DataFrame
        The rows of ``counts``, each in one of the two, in the original order and with pandas' index.

    Raises
    ------
    ValueError, TypeError
        If not exactly one of ``at`` and ``fraction`` is passed, ``fraction`` is not between 0 and 1, a time
        is missing, one of the parts is empty, or ``counts`` is not a data frame with this column.
    """
    if (at is None) == (fraction is None):
        raise ValueError("pass either at, the first time that is held out, or fraction, a share of the rows")
    frame = _frame(counts, time)
    order = _order(frame, time)
    if fraction is not None:
        _require_share(fraction)
        first = min(int(np.floor((1 - fraction) * len(order))), len(order) - 1)
        chosen = order >= np.sort(order)[first]
    else:
        chosen = (frame[time] >= _moment(at, frame[time])).to_numpy().astype(bool)
    if chosen.all() or not chosen.any():
        asked = f"at={shown(at)}" if fraction is None else f"fraction={fraction!r}"
        raise ValueError(f"{asked} holds out {int(chosen.sum())} of {len(chosen)} rows")
    return _parted(frame, chosen)


def _moment(at: Any, times: nw.Series[Any]) -> Any:
    """What the times are compared with: of dates a string too, and in their time zone if it names none."""
    if not times.dtype.is_temporal():
        return at
    if isinstance(at, str):
        try:
            at = datetime.datetime.fromisoformat(at)
        except ValueError as error:
            raise ValueError(f"at={at!r} is no date and time as in '2024-10-01' ({error})") from error
    if isinstance(at, datetime.date) and not isinstance(at, datetime.datetime) and times.dtype != nw.Date:
        at = datetime.datetime.combine(at, datetime.time())
    zone = getattr(times.dtype, "time_zone", None)
    if zone is not None and isinstance(at, datetime.datetime) and at.tzinfo is None:
        at = at.replace(tzinfo=zoneinfo.ZoneInfo(zone))
    return at


def split_last(counts: Any, time: str, *, n: int = 1, user: str = "UserId") -> tuple[Any, Any]:
    """Hold out the last ``n`` rows of each user (leave-last-out).

    Parameters
    ----------
    counts : DataFrame of pandas, polars, pyarrow or another library that narwhals knows
        One row per user and item.
    time : str
        Column with the time: dates, numbers, or strings that sort by time.  Of rows of the same time the
        later one in the frame counts as later.
    n : int
        Number of rows to hold out of each user; nothing of users who have no more than this.
    user : str
        Column with the users.

    Returns
    -------
    train, held_out : DataFrame
        The rows of ``counts``, each in one of the two, in the original order and with pandas' index.

    Raises
    ------
    ValueError, TypeError
        If ``n`` is below 1, a time is missing, or ``counts`` is not a data frame with these columns.
    """
    n = whole_number("n", n, 1)
    frame = _frame(counts, user, time)
    place, size = _places(frame, user, _order(frame, time))
    return _parted(frame, (place >= size - n) & (size > n))


def _require_share(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction!r} must lie between 0 and 1")


def _frame(counts: Any, *columns: str) -> nw.DataFrame[Any]:
    """The frame in memory, with at least these columns."""
    try:
        known = nw.from_native(counts)
    except TypeError as error:
        kind = type(counts).__name__
        raise TypeError(f"counts must be a data frame (pandas, polars, pyarrow), not {kind}") from error
    frame: nw.DataFrame[Any] = known.collect() if isinstance(known, nw.LazyFrame) else known
    for column in columns:
        if column not in frame.columns:
            have = ", ".join(map(repr, frame.columns))
            raise ValueError(f"counts has no column {column!r}; it has {have}")
    if not len(frame):
        raise ValueError("counts is empty")
    return frame


def _order(frame: nw.DataFrame[Any], time: str) -> NDArray[np.intp]:
    """Which number each row's time has among all different times, (Z,), the first being 0."""
    column = frame[time]
    values = column.to_numpy()
    missing = column.is_null().to_numpy().astype(bool) | (values != values)
    if missing.any():
        raise ValueError(f"{int(missing.sum())} times in column {time!r} are missing")
    return np.asarray(np.unique(values, return_inverse=True)[1])


def _places(frame: nw.DataFrame[Any], user: str, keys: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Place of each row among those of its user by ``keys`` (Z,), from 0, and their number, (Z,) each."""
    codes, users = encode(pd.Series(frame[user].to_numpy()), "user", reindex=True)
    sizes = np.bincount(codes, minlength=users.size)
    order = np.lexsort((keys, codes))  # of equal keys the first row comes first
    place = np.empty(len(codes), np.int64)
    place[order] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place, sizes[codes]


def _parted(frame: nw.DataFrame[Any], chosen: NDArray[np.bool_]) -> tuple[Any, Any]:
    """The rows that are not chosen, and those that are."""
    train, held_out = (frame.filter(rows.tolist()) for rows in (~chosen, chosen))
    return train.to_native(), held_out.to_native()
