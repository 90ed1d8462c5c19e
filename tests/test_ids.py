"""Ids of users and items: what the estimator's tests do not see."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpf_gpu import ids as hpf_ids


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
