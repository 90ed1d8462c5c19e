"""Ids of users and items: what the estimator's tests do not see."""

from __future__ import annotations

import datetime
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpf_gpu.data import ids as hpf_ids
from hpf_gpu.data.ids import Ids


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_integer_ids_by_table_are_factorized(dtype, block, monkeypatch):
    monkeypatch.setattr(hpf_ids, "_BLOCK", block)
    info = np.iinfo(dtype)
    values = np.random.default_rng(1).integers(max(info.min, -100), min(info.max, 100), 1000).astype(dtype)
    codes, ids = hpf_ids._encode_by_table(values)
    expected_codes, expected_ids = pd.factorize(values)
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(ids, expected_ids)
    assert ids.dtype == dtype
    assert codes.dtype == np.int32


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-50, 50), min_size=1))
def test_integer_ids_of_any_range(values):
    column = pd.Series(values, dtype=np.int64)
    codes, ids = hpf_ids.encode(column, "user", reindex=True)
    expected_codes, expected_ids = pd.factorize(column)
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(ids.values, expected_ids)


def test_wide_ranges_are_left_to_the_hash():
    assert hpf_ids._encode_by_table(np.array([0, 10**9])) is None
    assert hpf_ids._encode_by_table(np.array([2**64 - 2, 2**64 - 1], dtype=np.uint64)) is None


def test_lookups_keep_types_apart():
    ids = hpf_ids.Ids(np.array([1, 2, 3]), 3, "user")
    assert ids.codes([1, "1", 2.0, 2.5, None, (1,)]).tolist() == [0, -1, 1, -1, -1, -1]
    assert ids.codes(pd.Series([3, 1])).tolist() == [2, 0]
    assert ids.codes(pd.Series([3, None], dtype="Int64")).tolist() == [2, -1]
    assert ids.codes_of(np.array(3)).tolist() == [2]
    named = hpf_ids.Ids(np.array(["1", "b"], dtype=object), 2, "item")
    assert named.codes(np.array(["b", "1", "z"])).tolist() == [1, 0, -1]
    assert named.codes([1]).tolist() == [-1]
    assert named.codes(pd.Categorical(["b"])).tolist() == [1]


BIG = 2**53  # floats from here on skip integers
DATES = pd.to_datetime(["2020-01-01", "2020-01-02"])
FAR = pd.DatetimeIndex(np.array(["2020-01-01", "9000-01-01"], "M8[s]"))  # nanoseconds end in 2262
FINE = DATES.as_unit("ns") + pd.to_timedelta([0, 1], unit="ns")

#: Ids that are there, ids that come, and all ids then: as in a dict, what equals a key is that key.
JOINS = {
    "texts, dates": (["2020-01-01", "b"], DATES, ["2020-01-01", "b", *DATES]),
    "dates, texts": (DATES, ["2020-01-01", "b"], [*DATES, "2020-01-01", "b"]),
    "dates, days": (DATES, [datetime.date(2020, 1, 1)], [*DATES, datetime.date(2020, 1, 1)]),
    "texts, times": (["1 days"], pd.to_timedelta([1], unit="D"), ["1 days", pd.Timedelta(1, "D")]),
    "integers, dates": ([0, 1577836800000000000], DATES, [0, 1577836800000000000, *DATES]),
    "fine dates, far dates": (DATES.as_unit("ns"), FAR, [*DATES, FAR[1]]),
    "coarse dates, fine dates": (DATES.as_unit("s"), FINE, [*DATES, FINE[1]]),
    "truths, integers": ([True, False], [1, 2], [True, False, 2]),
    "integers, truths": ([1, 2], [True, False], [1, 2, False]),
    "texts, truths": (["True"], [True, False], ["True", True, False]),
    "floats, integers": ([0.5, 1.5], [2, 3], [0.5, 1.5, 2, 3]),
    "floats, large integers": ([0.5, float(BIG)], [BIG, BIG + 1], [0.5, float(BIG), BIG + 1]),
    "large integers, floats": ([BIG + 1, 5], [float(BIG), 5.0, 0.5], [BIG + 1, 5, float(BIG), 0.5]),
    "integers, larger ones": ([-1, 5], np.array([2**64 - 1, 5], np.uint64), [-1, 5, 2**64 - 1]),
    "texts, numbers": (["a"], np.array([BIG, BIG + 1, 0.5], object), ["a", BIG, BIG + 1, 0.5]),
    "floats, numbers": ([0.25], np.array([BIG, BIG + 1, 0.5], object), [0.25, BIG, BIG + 1, 0.5]),
    "single, double": (np.array([0.5, 0.1], np.float32), [0.1], [0.5, float(np.float32(0.1)), 0.1]),
}


@pytest.mark.parametrize("case", JOINS)
def test_ids_of_two_types_are_all_kept(case):
    first, second, want = JOINS[case]
    _, known = hpf_ids.encode(pd.Series(first), "user", reindex=True)
    _, others = hpf_ids.encode(pd.Series(second), "user", reindex=True)
    together, rows = known.extended(others)
    assert list(together.index) == want
    assert rows.tolist() == [want.index(other) for other in others.index]
    for asked in (first, second, want, np.array(want, dtype=object)):
        assert together.codes(asked).tolist() == [want.index(one) for one in asked]


def test_objects_that_come_stay_what_they_are():
    _, known = hpf_ids.encode(pd.Series(["a"]), "user", reindex=True)
    _, numbers = hpf_ids.encode(pd.Series([7, 0.5], dtype=object), "user", reindex=True)
    together, _ = known.extended(numbers)
    assert [type(one) for one in together.values] == [str, int, float]


WHOLE = st.sampled_from([-1, 0, 1, 2, BIG, BIG + 1, 2**62, 2**63, 2**64 - 1, 2**64])
FLOATS = st.sampled_from([-1.0, 0.0, 1.0, 0.5, float(BIG), 2.0**63, 2.0**64])
NUMBERS = st.booleans() | WHOLE | FLOATS
TEXTS = st.sampled_from(["1", "True", "2020-01-01"])
OTHERS = st.sampled_from([(1, 2), (True, 2), b"1", datetime.date(2020, 1, 1)])
DAYS = st.sampled_from([*DATES])
KINDS = [WHOLE, FLOATS, st.booleans(), NUMBERS, TEXTS, DAYS, OTHERS, NUMBERS | TEXTS | DAYS | OTHERS]


@given(
    st.lists(st.sampled_from(KINDS).flatmap(lambda kind: st.lists(kind, min_size=1)), min_size=1), st.data()
)
def test_ids_are_the_keys_of_a_dict(batches, data):
    """Whether a batch has a type of its own, or is of objects."""
    columns = []
    for batch in batches:
        # pandas would make floats of integers, before anybody saw them.
        typed = len({type(one) for one in batch}) == 1 and data.draw(st.booleans())
        columns.append(pd.Series(batch, dtype=None if typed else object))
    _, together = hpf_ids.encode(columns[0], "user", reindex=True)
    keys = dict.fromkeys(columns[0])
    for column in columns[1:]:
        _, others = hpf_ids.encode(column, "user", reindex=True)
        together, _ = together.extended(others)
        keys |= dict.fromkeys(column)
    assert list(together.index) == list(keys)
    assert together.codes(list(keys)).tolist() == list(range(len(keys)))
    assert together.rows == dict(zip(keys, range(len(keys)), strict=True))


STRANGE = ["x\0one", "x\0two", "x\0", "x", "", "\0", "y\udc80", "y\udc81", "'y\\udc80'", "y"]


@pytest.mark.parametrize("dtype", [object, "string[python]", "str"])
def test_no_two_strings_are_one(dtype, monkeypatch):
    """NUL and lone surrogates are characters like any other, as in a dict."""
    given = [one for one in STRANGE if dtype is object or not re.search("[\udc80-\udc81]", one)]
    column = pd.Series([*given, *reversed(given)], dtype=dtype)
    for old_pandas in (False, True):
        if old_pandas:  # as if it was one
            monkeypatch.setattr(hpf_ids, "_strings_end_at_nul", lambda: True)
        codes, ids = hpf_ids.encode(column, "user", reindex=True)
        assert codes.tolist() == [*range(len(given)), *reversed(range(len(given)))]
        assert ids.values.tolist() == given
        assert ids.codes(given[::-1]).tolist() == list(reversed(range(len(given))))
        assert ids.codes(["x\0three", "y\udc82", "\0\0"]).tolist() == [-1, -1, -1]


def test_strange_strings_beside_others_are_kept_apart(monkeypatch):
    monkeypatch.setattr(hpf_ids, "_strings_end_at_nul", lambda: True)
    monkeypatch.setattr(hpf_ids, "_BLOCK", 2)
    given = ["a", "b", "c", "d\0e", ("t", 1), 7, "d\0f"]
    codes, ids = hpf_ids.encode(pd.Series(given, dtype=object), "user", reindex=True)
    assert codes.tolist() == list(range(7))
    assert ids.values.tolist() == given


def test_ids_are_of_one_dimension():
    ids = hpf_ids.Ids(np.array(["a", "b"], dtype=object), 2, "user")
    frame = pd.DataFrame({"UserId": ["a"]})
    with pytest.raises(TypeError, match=r"one column, such as frame\['UserId'\], and not a data frame"):
        ids.codes(frame)
    with pytest.raises(ValueError, match=r"ids must be one-dimensional, not of shape \(1, 2\)"):
        ids.codes(np.array([["a", "b"]]))


@pytest.mark.parametrize("sign", [1, -1])
def test_integers_that_floats_cannot_hold_are_told_apart(sign: int) -> None:
    """2**53 and 2**53 + 1 are one number in float64."""
    known = Ids(np.array([sign * (2**53 + 1), 5]), 2, "user")
    assert known.codes(np.array([sign * 2.0**53, 5.0])).tolist() == [-1, 1]
    known = Ids(np.array([sign * 2.0**53, 5.0]), 2, "user")
    assert known.codes(np.array([sign * (2**53 + 1), 5])).tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "float64"])
@pytest.mark.parametrize(
    "new", [[50], [50.0], [np.int8(50)], [np.float64(50)], pd.Series([50], dtype="Int16")]
)
def test_new_numbers_get_the_type_of_those_that_are_there(dtype: str, new: object) -> None:
    known = Ids(np.array([7, 9], dtype), 2, "user")
    rows, both = known.with_new(pd.Index(new))
    assert rows.tolist() == [2]
    assert both.values.dtype == dtype
    assert both.values.tolist() == [7, 9, 50]


def test_no_labels_have_the_type_of_labels() -> None:
    known = Ids(np.array([7, 9], np.int16), 2, "user")
    assert known.labels(np.empty((0, 4), np.int64)).dtype == np.int16
    assert known.labels(np.empty((0, 4), np.int64)).shape == (0, 4)


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, 1, 2**62]),
        np.array([3, 200], np.uint8),
        np.array([1.0, 2.5, 3.0]),
        np.array(["a", 1, (1, 2), "b\0", "\ud800", "b"], dtype=object),
        None,
    ],
    ids=["integers", "bytes", "floats", "objects", "row numbers"],
)
def test_one_id_is_found_as_among_many(values):
    ids = Ids(values, 3 if values is None else len(values), "user")
    if values is not None:
        _, ids = ids.with_new(pd.Index(["c", 77], dtype=object) if values.dtype == object else pd.Index([77]))
        _, longer = ids.with_new(pd.Index([78]))
    else:
        longer = Ids(None, 4, "user")
    asked = [
        "a",
        "b",
        "b\0",
        "\ud800",
        "c",
        "z",
        "",
        0,
        1,
        2,
        3,
        77,
        78,
        -1,
        200,
        2**62,
        2**64,
        True,
        1.0,
        2.5,
    ]
    for one in (*asked, True, 1.0, np.int64(1), np.float32(2.5)):
        for known in (ids, longer):
            row = known.codes([one])[0]
            if row < 0:
                with pytest.raises(ValueError, match="not in the training data"):
                    known.require(one)
            else:
                assert known.require(one).tolist() == [row]
