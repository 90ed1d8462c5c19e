"""Recommendations that are written to a Parquet file part by part."""

from __future__ import annotations

import errno

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from small_data import COUNTS, quick

from hpf_gpu import HPFEnsemble
from hpf_gpu.answers import recommendations
from hpf_gpu.files import parquet_file

NAMED = COUNTS.assign(UserId="u" + COUNTS.UserId.astype(str), ItemId="i" + COUNTS.ItemId.astype(str))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parquet_file, "_USERS_AT_ONCE", 7)


@pytest.mark.parametrize("counts", [COUNTS, NAMED], ids=["numbers", "strings"])
@pytest.mark.parametrize("kind", ["model", "ensemble"])
def test_the_file_is_the_table(kind, counts, small_parts, tmp_path):
    many = HPFEnsemble([{"k": 2}, {"k": 2, "transposed": True}], maxiter=3, random_seed=1, verbose=False)
    model = (quick() if kind == "model" else many).fit(counts)
    path = tmp_path / "lists.parquet"
    options = {"n": 4, "discount": 0.1, "exclude_seen": False}
    assert model.recommend(path=path, **options) is None
    want = model.recommend(**options)
    pd.testing.assert_frame_equal(pd.read_parquet(path), want, check_dtype=False)
    assert pl.read_parquet(path).columns == ["UserId", "ItemId", "Score"]
    users = counts.UserId.nunique()
    assert pq.ParquetFile(path).num_row_groups == -(-users // 7)
    assert [one.name for one in tmp_path.iterdir()] == ["lists.parquet"]


def test_lists_of_some_and_of_new_users(small_parts, tmp_path):
    model, path = quick().fit(COUNTS), tmp_path / "lists.pq"
    some = [103, 101]
    model.recommend(some, n=3, path=path)
    pd.testing.assert_frame_equal(pd.read_parquet(path), model.recommend(some, n=3))
    model.recommend(counts=COUNTS[:50], n=3, path=str(path))
    pd.testing.assert_frame_equal(pd.read_parquet(path), model.recommend(counts=COUNTS[:50], n=3))


def test_parts_are_written_before_the_next_are_ranked(small_parts, tmp_path, monkeypatch):
    """So that memory is that of one part."""
    happened = []
    add, rank = parquet_file.ParquetTable.add, recommendations.rank
    monkeypatch.setattr(
        parquet_file.ParquetTable, "add", lambda self, frame: happened.append("written") or add(self, frame)
    )
    monkeypatch.setattr(
        recommendations, "rank", lambda *args, **named: happened.append("ranked") or rank(*args, **named)
    )
    quick().fit(COUNTS).recommend(path=tmp_path / "lists.parquet")
    assert happened == ["ranked", "written"] * -(-COUNTS.UserId.nunique() // 7)


def test_parts_of_long_lists_have_fewer_users(monkeypatch):
    monkeypatch.setattr(parquet_file, "_ENTRIES_AT_ONCE", 100)
    parts = list(parquet_file.in_parts(np.arange(45), 10))
    assert [len(part) for part in parts] == [10, 10, 10, 10, 5]
    assert [len(part) for part in parquet_file.in_parts(np.arange(3), 1000)] == [1, 1, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("place", ["rank", "write_table"])
@pytest.mark.parametrize("exists", [False, True])
def test_what_fails_leaves_no_file(error, place, exists, small_parts, tmp_path, monkeypatch, capsys):
    model, path, calls = quick().fit(COUNTS), tmp_path / "lists.parquet", []
    if exists:
        path.write_text("old")
    owner = recommendations if place == "rank" else pq.ParquetWriter
    real = getattr(owner, place)

    def fails_later(*args, **named):
        calls.append(place)
        if len(calls) == 3:
            raise error
        return real(*args, **named)

    monkeypatch.setattr(owner, place, fails_later)
    with pytest.raises(type(error)):
        model.recommend(path=path)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"] * exists
    assert capsys.readouterr().err == ""  # nothing that pyarrow writes to a closed file


def test_users_for_whom_nothing_is_left(small_parts, tmp_path):
    """The first parts have no rows, whose ids would be of no type."""
    counts = pd.DataFrame([(f"u{j:02}", "ab"[i], 1.0) for j in range(20) for i in range(1 + (j < 19))])
    counts.columns = ["UserId", "ItemId", "Count"]
    model, path = quick(k=2).fit(counts), tmp_path / "lists.parquet"
    model.recommend(path=path)
    assert pd.read_parquet(path)[["UserId", "ItemId"]].to_numpy().tolist() == [["u19", "b"]]
    model = quick(k=2).fit(sparse.csr_array(np.ones((9, 2))))
    model.recommend(path=path)
    pd.testing.assert_frame_equal(pd.read_parquet(path), model.recommend())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("lists.csv", r"call it 'lists.parquet'"),
        ("nowhere/lists.parquet", "nowhere is not an existing folder"),
    ],
)
def test_where_no_file_can_be(path, said, tmp_path):
    with pytest.raises((ValueError, OSError), match=said):
        quick().fit(COUNTS).recommend(path=tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_ids_of_several_types(tmp_path):
    counts = COUNTS.astype({"UserId": object})
    counts.loc[counts.UserId == 101, "UserId"] = "ann"
    with pytest.raises(ValueError, match="ids fit into no column of a Parquet file"):
        quick().fit(counts).recommend(path=tmp_path / "lists.parquet")
    assert not list(tmp_path.iterdir())
