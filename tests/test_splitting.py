"""Splits of frames of several libraries into training and held-out data."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hpf_gpu import datasets, splitting
from hpf_gpu.splitting import split_by_time, split_by_user, split_last

DAY = datetime.datetime(2024, 3, 1)
SIZES = {"ann": 7, "bob": 1, "eve": 3, "joe": 12}
FRAME = pd.DataFrame(
    {
        "UserId": [user for user, size in SIZES.items() for _ in range(size)],
        "ItemId": np.arange(23),
        "Count": 1,
        "When": [DAY + datetime.timedelta(days=int(day)) for day in np.random.default_rng(2).permutation(23)],
    }
).sample(frac=1, random_state=3)

LIBRARIES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda frame: frame,
    "polars": lambda frame: pl.from_pandas(frame.reset_index(drop=True)),
    "polars, lazy": lambda frame: pl.from_pandas(frame.reset_index(drop=True)).lazy(),
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
}
SPLITS: dict[str, Callable[[Any], Any]] = {
    "by user": lambda frame: split_by_user(frame, min_items=3),
    "by time": lambda frame: split_by_time(frame, "When", fraction=0.3),
    "at a time": lambda frame: split_by_time(frame, "When", at=DAY + datetime.timedelta(days=9)),
    "last": lambda frame: split_last(frame, "When", n=2),
}


def items(frame: Any) -> list[int]:
    return list(pa.table(frame)["ItemId"].to_pylist() if isinstance(frame, pa.Table) else frame["ItemId"])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_frames_of_every_library_are_split_alike(library: str, split: str) -> None:
    given = LIBRARIES[library](FRAME)
    train, held_out = SPLITS[split](given)
    kind = pl.DataFrame if library == "polars, lazy" else type(given)
    assert type(train) is type(held_out) is kind
    wanted = SPLITS[split](FRAME)
    assert [items(train), items(held_out)] == [items(one) for one in wanted]
    assert sorted([*items(train), *items(held_out)]) == list(range(23))
    assert items(train) == [item for item in FRAME.ItemId if item in set(items(train))]


def test_pandas_keeps_its_index() -> None:
    for split in SPLITS.values():
        before = FRAME.copy()
        train, held_out = split(FRAME)
        pd.testing.assert_frame_equal(pd.concat([train, held_out]).sort_index(), FRAME.sort_index())
        pd.testing.assert_frame_equal(FRAME, before)


def test_held_out_is_what_comes_later() -> None:
    for given in ({"at": DAY + datetime.timedelta(days=16)}, {"at": "2024-03-17"}, {"fraction": 7 / 23}):
        train, held_out = split_by_time(FRAME, "When", **given)
        assert len(held_out) == 7
        assert train.When.max() < DAY + datetime.timedelta(days=16) == held_out.When.min()


@pytest.mark.parametrize("times", [[1, 2, 2, 2, 3], ["a", "b", "b", "b", "c"], [0.5, 1.5, 1.5, 1.5, 2.5]])
def test_rows_of_one_time_stay_together(times: list[Any]) -> None:
    frame = pd.DataFrame({"t": times})
    assert len(split_by_time(frame, "t", fraction=0.2)[1]) == 1
    assert len(split_by_time(frame, "t", fraction=0.3)[1]) == 4
    assert len(split_by_time(frame, "t", at=times[1])[1]) == 4


def test_columns_of_dates() -> None:
    days = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    zoned = pd.date_range("2024-01-01", periods=3, tz="Europe/Vienna")
    assert len(split_by_time(pl.DataFrame({"t": days}), "t", at="2024-01-03")[1]) == 1
    assert len(split_by_time(pa.table({"t": days}), "t", fraction=0.5)[1]) == 2
    assert len(split_by_time(pd.DataFrame({"t": zoned}), "t", fraction=0.5)[1]) == 2
    assert len(split_by_time(pd.DataFrame({"t": zoned}), "t", at=zoned[2])[1]) == 1


def test_dates_with_a_time_zone() -> None:
    """A point in time without a zone is one in that of the column."""
    hours = pd.date_range("2024-05-31 22:00", periods=4, freq="h", tz="Europe/Paris")
    frame = pd.DataFrame({"UserId": 1, "ItemId": range(4), "Count": 1, "at": hours})
    for at in ("2024-06-01", datetime.date(2024, 6, 1), datetime.datetime(2024, 6, 1), hours[2]):
        train, held_out = split_by_time(frame, "at", at=at)
        assert (len(train), len(held_out)) == (2, 2)
    train, held_out = split_by_time(pl.from_pandas(frame), "at", at="2024-06-01")
    assert (len(train), len(held_out)) == (2, 2)
    with pytest.raises(ValueError, match="at='oct' is no date and time as in '2024-10-01'"):
        split_by_time(frame, "at", at="oct")


def test_the_last_rows_of_each_user_are_held_out() -> None:
    for n in (1, 3):
        train, held_out = split_last(FRAME, "When", n=n)
        for user, of_user in FRAME.groupby("UserId"):
            last = of_user.sort_values("When").ItemId[-n:] if SIZES[str(user)] > n else []
            assert set(held_out.ItemId[held_out.UserId == user]) == set(last), (user, n)
        assert set(train.UserId) == set(SIZES)


def test_of_equal_times_the_later_row_is_later() -> None:
    frame = pd.DataFrame({"who": [1, 2, 1, 2, 1], "t": [5, 1, 5, 0, 4]})
    assert split_last(frame, "t", user="who")[1].index.tolist() == [1, 2]


def test_other_columns_of_users() -> None:
    renamed = FRAME.rename(columns={"UserId": "who"})
    assert items(split_by_user(renamed, min_items=3, user="who")[1]) == items(SPLITS["by user"](FRAME)[1])


def test_the_old_place_has_the_same_function() -> None:
    assert datasets.split_by_user is splitting.split_by_user


MISSING = FRAME.assign(When=FRAME.When.where(FRAME.ItemId != 3))


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        (lambda: split_by_time(FRAME, "When"), ValueError, "pass either at, .* or fraction"),
        (lambda: split_by_time(FRAME, "When", at=DAY, fraction=0.5), ValueError, "pass either at"),
        (lambda: split_by_time(FRAME, "When", fraction=1.0), ValueError, "fraction=1.0 must lie between"),
        (lambda: split_by_time(FRAME, "When", at="2030-01-01"), ValueError, "holds out 0 of 23 rows"),
        (lambda: split_by_time(FRAME, "When", at="2000-01-01"), ValueError, "holds out 23 of 23 rows"),
        (lambda: split_by_time(FRAME, "Wehn", fraction=0.5), ValueError, "no column 'Wehn'; it has 'UserId'"),
        (lambda: split_by_time(MISSING, "When", fraction=0.5), ValueError, "1 times in column 'When' are"),
        (lambda: split_last(pl.from_pandas(MISSING), "When"), ValueError, "1 times in column 'When' are"),
        (lambda: split_last(FRAME, "When", n=0), ValueError, "n=0 must be at least 1"),
        (lambda: split_by_user(FRAME[:0]), ValueError, "counts is empty"),
        (lambda: split_by_user(np.ones((3, 3))), TypeError, "must be a data frame .* not ndarray"),
    ],
)
def test_what_cannot_be_split(split: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split()
