"""Counts in any form that users have them: tables of many libraries, files, matrices with ids, AnnData."""

from __future__ import annotations

import datetime
import decimal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import narwhals
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from small_data import COUNTS, quick

from hpf_gpu import HPF, Counts, HPFEnsemble, select
from hpf_gpu.data.triplets import Columns, load, read

#: The same counts with ids of two types, and with other names of the columns.
NAMED = COUNTS.assign(UserId=[f"user {user}" for user in COUNTS.UserId]).sample(frac=1.0, random_state=1)
NAMED = NAMED.reset_index(drop=True)
RENAMED = NAMED.rename(columns={"UserId": "fan", "ItemId": "song", "Count": "plays"}).assign(year=2000.5)
OWN = {"user": "fan", "item": "song", "count": "plays"}
WANT = quick().fit(NAMED)


def anndata() -> Any:
    """The package; the test is skipped where it is not installed."""
    return pytest.importorskip("anndata", reason="anndata is not installed: nox -s single_cells")


def arrow() -> pa.Table:
    return pa.Table.from_pandas(RENAMED, preserve_index=False)


FORMS: dict[str, Any] = {
    "pandas": lambda: RENAMED,
    "pandas over pyarrow": lambda: arrow().to_pandas(types_mapper=pd.ArrowDtype),
    "pandas with categories": lambda: RENAMED.astype({"fan": "category"}),
    "polars": lambda: pl.from_arrow(arrow()),
    "polars in parts": lambda: pl.concat(
        [pl.from_arrow(arrow())[:7], pl.from_arrow(arrow())[7:]], rechunk=False
    ),
    "polars with categories": lambda: pl.from_arrow(arrow()).cast({"fan": pl.Categorical}),
    "polars with wide counts": lambda: pl.from_arrow(arrow()).cast({"plays": pl.Int128}),
    "polars with decimals": lambda: pl.from_arrow(arrow()).cast({"plays": pl.Decimal(20, 2)}),
    "polars, lazy": lambda: pl.from_arrow(arrow()).lazy(),
    "pyarrow": arrow,
    "pyarrow in parts": lambda: pa.concat_tables([arrow()[:7], arrow()[7:]]),
    "pyarrow with dictionaries": lambda: pa.concat_tables(
        [part.set_column(0, "fan", part["fan"].dictionary_encode()) for part in (arrow()[:7], arrow()[7:])]
    ),
    "a batch of pyarrow": lambda: arrow().combine_chunks().to_batches()[0],
    "a stream of pyarrow": lambda: pa.RecordBatchReader.from_batches(arrow().schema, arrow().to_batches()),
    "narwhals": lambda: narwhals.from_native(pl.from_arrow(arrow())),
    "narwhals over pandas": lambda: narwhals.from_native(RENAMED),
    "DuckDB": lambda: duckdb.from_arrow(arrow()),
}


def same_fit(got: HPF, want: HPF) -> None:
    """The same factors of the same ids; ids of the same types."""
    assert got.user_mapping_.tolist() == want.user_mapping_.tolist()
    assert got.item_mapping_.tolist() == want.item_mapping_.tolist()
    assert got.item_mapping_.dtype == want.item_mapping_.dtype
    np.testing.assert_array_equal(got.Theta, want.Theta)


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_any_library(form: str) -> None:
    same_fit(quick(**OWN).fit(FORMS[form]()), WANT)


def written(form: str, folder: Path, frame: pd.DataFrame = RENAMED) -> Any:
    """The path of a file of this form."""
    path = folder / f"plays{form}"
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if form == ".parquet":
        pq.write_table(table, path)
    elif form == ".folder":
        path.mkdir()
        pq.write_table(table[:50], path / "part-0.parquet")
        pq.write_table(table[50:], path / "part-1.parquet")
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in form else ",")
    return path


@pytest.mark.parametrize("form", [".parquet", ".folder", ".csv", ".csv.gz", ".tsv"])
def test_files(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    same_fit(quick(**OWN).fit(path), WANT)
    same_fit(quick(**OWN).fit(str(path)), WANT)


def test_partitions_are_columns(tmp_path: Path) -> None:
    pq.write_to_dataset(arrow(), tmp_path / "plays", partition_cols=["song"])
    model = quick(**OWN).fit(tmp_path / "plays")
    assert sorted(model.item_mapping_) == sorted(WANT.item_mapping_)


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path) -> None:
    """Others may be damaged, or of types that no frame has."""
    lines = [
        f"{fan},{song},{plays}"
        for fan, song, plays in zip(*RENAMED[list(OWN.values())].T.to_numpy(), strict=True)
    ]
    path = tmp_path / "plays.csv"
    path.write_text("fan,song,plays,note\n" + "".join(f"{line},x{n % 7}\n" for n, line in enumerate(lines)))
    same_fit(quick(**OWN).fit(path), WANT)


def test_ids_in_csv_files_are_numbers_if_all_are_written_as_such(tmp_path: Path) -> None:
    path = tmp_path / "plays.csv"
    rows = "".join(f"{user},{10**18 + user % 5},1\n" for user in range(60_000))
    path.write_text("UserId,ItemId,Count\n" + rows + "007,85123A,1\n7,5,1\n")
    assert len(rows) > 1 << 20  # of which pyarrow decides what a column has
    frame = load(path, Columns(), "counts_df")
    assert frame.UserId.tolist()[-2:] == ["007", "7"]
    assert frame.ItemId.tolist()[-2:] == ["85123A", "5"]
    path.write_text("UserId,ItemId,Count\n-3,00,1\n9007199254740993,0,2\n")
    model = quick(k=1, maxiter=1).fit(path)
    assert model.user_mapping_.tolist() == [-3, 2**53 + 1]
    assert model.item_mapping_.tolist() == ["00", "0"]
    path.write_text("UserId,ItemId,Count\nNA,null,1\nnan,x,2\n")
    assert quick(k=1, maxiter=1).fit(path).user_mapping_.tolist() == ["NA", "nan"]


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("name", ["plays.csv", "plays.tsv", "plays.csv.gz"])
def test_separators(name: str, separator: str, tmp_path: Path) -> None:
    """As Excel writes them in much of Europe; quoted, with a byte order mark."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RENAMED.to_csv(tmp_path / name, sep=separator, index=False, quoting=2, encoding="utf-8-sig")
    same_fit(quick(**OWN).fit(tmp_path / name), WANT)


def csv(text: str) -> Any:
    def make(folder: Path) -> Path:
        path = folder / "plays.csv"
        path.write_text(text)
        return path

    return make


def named(name: str, content: bytes) -> Any:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no file": (
        lambda _: "nowhere.parquet",
        FileNotFoundError,
        "counts_df is 'nowhere.parquet', and there is no",
    ),
    "a word": (lambda _: "plays", FileNotFoundError, "counts_df is 'plays', and there is no such file"),
    "another kind": (
        named("plays.xlsx", b""),
        ValueError,
        r"pass a file .parquet, .pq, .arrow, .feather, .ipc, .csv, .tsv, also compr",
    ),
    "no parquet": (named("plays.parquet", b"PAR1 or so"), ValueError, "plays.parquet' cannot be read: "),
    "no gzip": (named("plays.csv.gz", b"UserId,ItemId\n"), OSError, "gzip|zlib"),
    "columns": (
        csv("a,b,c\n1,2,3\n"),
        ValueError,
        r"no column 'UserId'; it needs UserId, ItemId, Count and has 'a', 'b', 'c'. Say .* HPF\(user=",
    ),
    "a short row": (
        csv("UserId,ItemId,Count\n1,2\n"),
        ValueError,
        "cannot be read: .*Expected 3 columns, got 2",
    ),
    "no user": (
        csv("UserId,ItemId,Count\n1,2,3\n,2,3\n"),
        ValueError,
        "1 user ids are missing, the first in row 1",
    ),
    "no count": (csv("UserId,ItemId,Count\n1,2,\n"), ValueError, "count nan in row 0"),
    "a word for a count": (csv("UserId,ItemId,Count\n1,2,two\n"), ValueError, "invalid value 'two'"),
    "no rows": (csv("UserId,ItemId,Count\n"), ValueError, "counts_df is empty"),
    "nothing": (csv(""), ValueError, "cannot be read: Empty CSV file"),
    "polars, columns": (
        lambda _: pl.DataFrame({"fan": [1], "song": [2], "plays": [3]}),
        ValueError,
        "no column 'UserId'; it needs UserId, ItemId, Count and has 'fan', 'song', 'plays'. Say",
    ),
    "many columns": (
        lambda _: pd.DataFrame(np.ones((3, 100)), columns=[f"gene {j}" for j in range(100)]),
        ValueError,
        r"'gene 11' and 88 more. Say .* a column for each item, pass hpf_gpu.Counts\(frame",
    ),
    "lazy, columns": (lambda _: pl.LazyFrame({"a": [1]}), ValueError, "no column 'UserId'.* has 'a'"),
    "null user": (
        lambda _: table(UserId=["a", None]),
        ValueError,
        "1 user ids are missing, the first in row 1",
    ),
    "null number": (
        lambda _: table(UserId=[1, None]),
        ValueError,
        "1 user ids are missing, the first in row 1",
    ),
    "null count": (lambda _: table(Count=[1, None]), ValueError, "count nan in row 1 cannot be used"),
    "negative": (lambda _: table(Count=[1, -2]), ValueError, "count -2 in row 1 cannot be used"),
    "strings": (
        lambda _: table(Count=["1", "2"]),
        ValueError,
        "counts in counts_df are strings, the first is '1'",
    ),
    "dates": (lambda _: table(Count=[datetime.date(2020, 1, 1)] * 2), ValueError, "is not a number"),
    "times": (lambda _: table(Count=[datetime.timedelta(1)] * 2), ValueError, "is not a number"),
    "lists": (lambda _: table(UserId=[[1], [2]]), TypeError, "user ids must be hashable"),
    "structs": (lambda _: table(UserId=[{"a": 1}] * 2), TypeError, "user ids must be hashable"),
    "empty": (lambda _: table()[:0], ValueError, "counts_df is empty"),
    "a dict": (
        lambda _: {"UserId": [1], "ItemId": [2], "Count": [3]},
        TypeError,
        r"Parquet or CSV file, not dict: pass pandas.DataFrame\(data\), with columns 'UserId', 'ItemId'",
    ),
    "tuples": (
        lambda _: [("a", "x", 1)],
        TypeError,
        r"not list: pass pandas.DataFrame\(data, columns=\['UserId', 'ItemId', 'Count'\]\)",
    ),
    "a series": (lambda _: pl.Series([1, 2]), TypeError, "must be a data frame .*, not Series"),
    "raw": (
        lambda _: annotated(raw=True).raw,
        TypeError,
        r"raw part of an AnnData: pass adata.raw.to_adata\(\)",
    ),
    "an empty AnnData": (
        lambda _: anndata().AnnData(shape=(2, 3)),
        ValueError,
        r"without X: pass hpf_gpu.Counts\(",
    ),
}


def table(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"UserId": ["a", "b"], "ItemId": ["x", "y"], "Count": [1, 2]} | columns, strict=False)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    make, kind, message = REFUSED[case]
    data = make(tmp_path)
    with pytest.raises(kind, match=message):
        quick().fit(data)


ODD_IDS: dict[str, tuple[Any, list[Any]]] = {
    "unsigned": (pl.Series([2**64 - 1, 3, 2**64 - 1], dtype=pl.UInt64), [2**64 - 1, 3]),
    "small": (pl.Series([7, 3, 7], dtype=pl.UInt8), [7, 3]),
    "wide": (pl.Series([2**60, 3, 2**60], dtype=pl.Int128), [2**60, 3]),
    "floats": (pl.Series([0.5, 3.0, 0.5], dtype=pl.Float32), [0.5, 3.0]),
    "booleans": (pl.Series([True, False, True]), [True, False]),
    "decimals": (pl.Series(["0.10", "3.00", "0.10"]).cast(pl.Decimal(9, 2)), [decimal.Decimal("0.10"), 3]),
    "dates": (
        pl.Series([datetime.date(2020, 1, day) for day in (2, 1, 2)]),
        [datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)],
    ),
    "times": (
        pl.Series([datetime.datetime(2020, 1, day) for day in (2, 1, 2)]),
        [datetime.datetime(2020, 1, 2), datetime.datetime(2020, 1, 1)],
    ),
    "zoned": (
        pl.Series(pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-02"]).tz_localize("Europe/Vienna")),
        list(pd.to_datetime(["2020-01-02", "2020-01-01"]).tz_localize("Europe/Vienna")),
    ),
    "NUL": (pl.Series(["\0b", "\0a", "\0b"]), ["\0b", "\0a"]),
    "levels": (pl.Series(["b", "a", "b"], dtype=pl.Enum(["z", "a", "b"])), ["b", "a"]),
    "bytes": (pl.Series([b"\xff", b"a", b"\xff"]), [b"\xff", b"a"]),
    "objects": (pl.Series([(1, "a"), "x", (1, "a")], dtype=pl.Object), [(1, "a"), "x"]),
}


@pytest.mark.parametrize("case", ODD_IDS)
def test_ids_of_odd_types(case: str) -> None:
    column, distinct = ODD_IDS[case]
    frame = pl.DataFrame([column.alias("UserId"), pl.Series("ItemId", ["x", "x", "y"])])
    model = quick(count=None).fit(frame)
    found = [pd.Timestamp(one) if "times" in case else one for one in model.user_mapping_]
    assert found == distinct
    for at, one in enumerate(distinct):
        assert model.predict(one, "x") == pytest.approx(model.Theta[at] @ model.Beta[0], rel=1e-6)
    np.testing.assert_array_equal(model.predict(column, "y"), model.predict(list(column), "y"))


@pytest.mark.parametrize("dtype", [pl.UInt8, pl.Float32, pl.Int128, pl.Decimal(20, 3), pl.Boolean])
def test_counts_of_odd_types(dtype: Any) -> None:
    frame = table(Count=pl.Series([1, 1]).cast(dtype))
    np.testing.assert_array_equal(quick().fit(frame).Theta, quick().fit(table(Count=[1, 1])).Theta)


# -- names of columns ----------------------------------------------------------------------------


def test_names_apply_everywhere(tmp_path: Path) -> None:
    own, model = quick(**OWN), quick()
    half, other = RENAMED[::2], NAMED[::2]
    own.fit(RENAMED, half)
    model.fit(NAMED, other)
    pd.testing.assert_frame_equal(
        own.history_.drop(columns="seconds"), model.history_.drop(columns="seconds")
    )
    assert own.eval_llk(half) == model.eval_llk(other)
    one, its = (frame[frame.iloc[:, 0] == "user 107"] for frame in (RENAMED, NAMED))
    new, its_new = one.assign(fan="new"), its.assign(UserId="new")
    pd.testing.assert_frame_equal(own.recommend(counts=new), model.recommend(counts=its_new))
    pd.testing.assert_frame_equal(own.transform(new), model.transform(its_new))
    pd.testing.assert_frame_equal(own.transform_items(half), model.transform_items(other))
    np.testing.assert_array_equal(own.predict_factors(one[["song", "plays"]]), model.predict_factors(its))
    own.add_users(new)
    model.add_users(its_new)
    own.add_user("newer", one[["plays", "song"]])
    model.add_user("newer", its)
    own.partial_fit(new)
    model.partial_fit(its_new)
    same_fit(own, model)
    own.save(tmp_path / "model")
    twin = HPF.load(tmp_path / "model")
    assert {name: getattr(twin, name) for name in OWN} == OWN
    assert twin.eval_llk(half) == own.eval_llk(half)
    assert repr(HPF(**OWN)) == "HPF(user='fan', item='song', count='plays')"


def test_names_of_an_ensemble(tmp_path: Path) -> None:
    given = {"members": 2, "k": 3, "maxiter": 5, "random_seed": 1, "verbose": False}
    frame = pl.from_pandas(RENAMED)
    own, ensemble = (
        HPFEnsemble(**given, **OWN).fit(frame.lazy(), frame),
        HPFEnsemble(**given).fit(NAMED, NAMED),
    )
    assert own.eval_llk(frame) == ensemble.eval_llk(NAMED)
    new, its = frame.filter(pl.col("fan") == "user 107"), NAMED[NAMED.UserId == "user 107"]
    lists, want = own.recommend(counts=new, n=3), ensemble.recommend(counts=its, n=3)
    pd.testing.assert_frame_equal(lists.to_pandas(), want, check_dtype=False)
    factors = own.transform(new)
    assert isinstance(factors, pl.DataFrame)
    assert factors.columns == [
        "UserId",
        *[f"{member}_{factor}" for member in range(2) for factor in range(3)],
    ]
    np.testing.assert_array_equal(factors.drop("UserId").to_numpy(), ensemble.transform(its).to_numpy())
    own.save(tmp_path / "model")
    assert HPFEnsemble.load(tmp_path / "model").eval_llk(frame) == own.eval_llk(frame)
    with pytest.raises(ValueError, match="pass user, item and count to the ensemble"):
        HPFEnsemble([{"user": "fan"}, {}])


def test_names_of_a_selection(tmp_path: Path) -> None:
    given = {"metric": "llk", "rounds": (3,), "candidates": {"k": [2, 3]}}
    found = select(written(".parquet", tmp_path), validation=RENAMED[::5], **given, **OWN)
    want = select(NAMED, validation=NAMED[::5], **given)
    assert found.table.score.tolist() == want.table.score.tolist()
    same_fit(found.model, want.model)


def test_without_counts_every_row_is_one(tmp_path: Path) -> None:
    want = quick().fit(NAMED.assign(Count=1))
    pairs = NAMED[["UserId", "ItemId"]]
    for data in (
        pairs,
        pl.from_pandas(pairs),
        NAMED,
        written(".parquet", tmp_path, NAMED),
        written(".csv", tmp_path, pairs),
    ):
        same_fit(quick(count=None).fit(data), want)
    np.testing.assert_array_equal(quick(count=None).fit(pairs.to_numpy()).Theta, want.Theta)
    model = quick(count=None).fit(pairs)
    items = pairs[pairs.UserId == "user 107"].ItemId
    theta = want.predict_factors(pd.DataFrame({"ItemId": items, "Count": 1}))
    for one in (
        items.to_frame(),
        items.to_numpy(),
        items.to_numpy()[:, None],
        pl.DataFrame({"ItemId": items}),
    ):
        np.testing.assert_array_equal(model.predict_factors(one), theta)
    assert model.eval_llk(pairs)["nobs"] == len(pairs.drop_duplicates())
    with pytest.raises(ValueError, match=r"\(n, 2\) with columns UserId, ItemId"):
        model.fit(NAMED.to_numpy())
    csr = sparse.csr_array([[3, 0], [1, 2]])  # its counts are used
    np.testing.assert_array_equal(quick(count=None).fit(csr).Theta, quick().fit(csr).Theta)
    twice = pd.concat([pairs, pairs])
    np.testing.assert_array_equal(
        quick(count=None).fit(twice).Theta, quick().fit(NAMED.assign(Count=2)).Theta
    )


def test_columns_may_be_numbers(tmp_path: Path) -> None:
    model = quick(user=0, item=1, count=np.int64(2)).fit(NAMED.set_axis([0, 1, 2], axis=1))
    same_fit(model, WANT)
    model.save(tmp_path / "model")
    assert HPF.load(tmp_path / "model").user == 0


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"user": None}, TypeError, "user must be the name of a column, not None"),
        (
            {"count": True},
            TypeError,
            "count must be the name of a column, or None if every row is one, not True",
        ),
        ({"item": ["song"]}, TypeError, r"item must be the name of a column, not \['song'\]"),
        (
            {"item": "UserId"},
            ValueError,
            "user='UserId', item='UserId' and count='Count' must be different col",
        ),
    ],
)
def test_names_that_are_none(wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        HPF(**wrong)


# -- matrices with ids -----------------------------------------------------------------------------

USERS, ITEMS = sorted(set(NAMED.UserId), reverse=True), sorted(set(NAMED.ItemId))


def matrix(users: list[Any] = USERS) -> sparse.csr_array:
    rows, columns = pd.Index(users).get_indexer(NAMED.UserId), pd.Index(ITEMS).get_indexer(NAMED.ItemId)
    return sparse.coo_array((NAMED.Count, (rows, columns)), shape=(len(users), len(ITEMS))).tocsr()


def annotated(*, dense: bool = False, raw: bool = False) -> Any:
    counts = matrix().astype(np.float32)
    data = anndata().AnnData(counts.toarray() if dense else counts)
    data.obs_names, data.var_names = USERS, [f"gene {item}" for item in ITEMS]
    if raw:
        data.raw = data
    return data


def test_matrices_with_ids() -> None:
    plain = quick().fit(matrix())
    for given in (matrix(), matrix().tocoo(), matrix().toarray()):
        counts = Counts(given, users=pl.Series(USERS), items=ITEMS)
        model = quick().fit(counts, counts)
        np.testing.assert_array_equal(model.Theta, plain.Theta)
        assert model.user_mapping_.tolist() == USERS
        assert model.item_mapping_.tolist() == ITEMS
        assert model.topN(USERS[3], n=4).tolist() == [ITEMS[j] for j in plain.topN(3, n=4)]
        assert model.eval_llk(counts) == model.eval_llk(NAMED) == plain.eval_llk(matrix())
    assert quick().fit(Counts(matrix(), items=ITEMS)).user_mapping_ is None


def test_rows_without_counts_are_users() -> None:
    """So that results can be laid beside the rows of the matrix."""
    counts = Counts(matrix([*USERS, "silent"]), users=[*USERS, "silent"], items=ITEMS)
    model = quick().fit(counts)
    assert model.nusers == len(USERS) + 1
    assert model.predict("silent", ITEMS[0]) > 0
    model = quick().fit(Counts(matrix(), users=USERS, items=ITEMS))
    new = [f"new {user}" for user in [*USERS, "silent"]]
    with pytest.warns(UserWarning, match="1 new users have no count"):
        factors = model.transform(Counts(counts.matrix, users=new, items=ITEMS))
    assert factors.index.tolist() == new
    some = Counts(matrix()[:5], users=new[:5], items=ITEMS)
    want = model.transform(NAMED[NAMED.UserId.isin(USERS[:5])])
    np.testing.assert_allclose(model.transform(some), want.loc[USERS[:5]], rtol=1e-5)  # 2e-7 measured
    one = model.predict_factors(Counts(matrix()[:1], items=ITEMS))
    np.testing.assert_array_equal(one, model.predict_factors(NAMED[NAMED.UserId == USERS[0]]))
    # In any order, and with items that the model does not know.
    with pytest.warns(UserWarning, match="counts of counts_df were left out: their items were not"):
        mixed = model.transform(Counts(matrix()[:5, ::-1], users=new[:5], items=[*ITEMS[:0:-1], "unknown"]))
    assert mixed.shape == (5, 3)
    model.add_users(some)
    assert model.user_mapping_[-5:].tolist() == new[:5]
    model.partial_fit(some)
    assert len(model.recommend(counts=some, n=2)) == 10


BAD_COUNTS: dict[str, tuple[Any, type[Exception], str]] = {
    "too few": (
        lambda: Counts(matrix(), users=USERS[1:]),
        ValueError,
        "Counts has 59 users for a matrix of shape",
    ),
    "no matrix": (
        lambda: Counts([[1, 2]]),
        TypeError,
        "Counts needs a sparse matrix, an array or a frame, not",
    ),
    "one dimension": (
        lambda: Counts(np.ones(3)),
        ValueError,
        r"a matrix of users by items; this one has .*\(3,\)",
    ),
    "twice": (
        lambda: quick().fit(Counts(matrix(), items=[*ITEMS[:-1], ITEMS[2]])),
        ValueError,
        "item 502 is there twice",
    ),
    "missing": (
        lambda: quick().fit(Counts(matrix(), users=[None, *USERS[1:]])),
        ValueError,
        "1 user ids are miss",
    ),
    "negative": (lambda: quick().fit(Counts(-matrix(), users=USERS)), ValueError, "finite and not negative"),
    "numbered": (
        lambda: quick(reindex=False).fit(Counts(matrix(), users=USERS)),
        ValueError,
        "with reindex=False ids are row numbers: leave out those of Counts",
    ),
}


@pytest.mark.parametrize("case", BAD_COUNTS)
def test_matrices_with_wrong_ids(case: str) -> None:
    call, kind, message = BAD_COUNTS[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("ids", [[(1, "a"), (2, "a")], ["\0a", "\0b"], [1, "1"], [0.5, np.inf], [b"a", "a"]])
def test_ids_of_any_type_beside_a_matrix(ids: list[Any]) -> None:
    counts = Counts(sparse.csr_array([[1, 0, 2], [0, 3, 1]]), users=ids, items=["x", "y", "z"])
    model = quick().fit(counts, counts)
    assert [model.user_dict_[one] for one in ids] == [0, 1]
    assert model.eval_llk(counts)["nobs"] == 4


@pytest.mark.parametrize("dense", [False, True])
def test_anndata(dense: bool, tmp_path: Path) -> None:
    data, plain = annotated(dense=dense), quick().fit(matrix())
    model = quick(user="whatever").fit(data)
    np.testing.assert_array_equal(model.Theta, plain.Theta)
    assert model.user_mapping_.tolist() == list(data.obs_names)
    assert model.item_mapping_.tolist() == list(data.var_names)
    assert list(model.transform(data[:3]).index) == USERS[:3]
    assert model.eval_llk(data) == plain.eval_llk(matrix())
    data.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata().read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(quick().fit(backed).Theta, plain.Theta)


def test_wide_frames() -> None:
    """Index and columns are the ids, unless others are passed."""
    wide = pd.DataFrame([[3, 0, 1], [0, 5, 2]], index=["ann", "bob"], columns=["x", "y", "z"])
    model = quick().fit(Counts(wide))
    assert model.user_mapping_.tolist() == ["ann", "bob"]
    assert model.item_mapping_.tolist() == ["x", "y", "z"]
    assert model.eval_llk(Counts(wide))["nobs"] == 4
    other = quick().fit(Counts(wide, users=[7, 8]))
    assert other.user_mapping_.tolist() == [7, 8]
    np.testing.assert_array_equal(other.Theta, model.Theta)


def test_ids_of_another_type_are_named() -> None:
    """The user 1 is not the user "1", and messages say when that is why nothing is found."""
    frame = pd.DataFrame({"UserId": [1, 1, 2], "ItemId": ["x", "y", "x"], "Count": [3, 1, 2]})
    text = frame.assign(UserId=frame.UserId.astype(str))
    model = quick().fit(frame)
    told = "; the user ids of the model are numbers, and these are strings"
    for ask in (
        lambda: model.recommend("1"), lambda: model.recommend(["1", "2"]), lambda: model.topN("1"),
        lambda: model.eval_llk(text),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            ask()
    with pytest.raises(ValueError, match="the item ids of the model are strings, and these are numbers"):
        model.transform(frame.assign(ItemId=5))
    with pytest.warns(UserWarning, match=f"users '1', '2' are added as new{told}"):
        model.add_users(text)
    with pytest.raises(ValueError, match=r"user 'x' was not in the training data$"):
        quick().fit(text).recommend("x")


def test_an_anndata_of_normalized_values_is_told() -> None:
    data = annotated()
    data.layers["umis"] = data.X.copy()
    data.X = data.X.log1p()
    with pytest.warns(UserWarning, match="not whole numbers, as after a normalization.*layers are 'umis'"):
        quick().fit(data)


def test_a_file_has_the_types_of_ids_of_the_model(tmp_path: Path) -> None:
    """Digits are integers, unless all ids of the model are strings."""
    frame = pd.DataFrame({"UserId": ["1", "1", "b"], "ItemId": ["7", "08", "7"], "Count": [3, 1, 2]})
    frame.to_csv(tmp_path / "some.csv", index=False)
    frame.iloc[:1].to_csv(tmp_path / "digits.csv", index=False)
    model = quick().fit(tmp_path / "some.csv")
    assert model.user_mapping_.tolist() == ["1", "b"]
    assert model.eval_llk(tmp_path / "digits.csv")["nobs"] == 1
    assert model.transform(tmp_path / "digits.csv").index.tolist() == ["1"]
    numbers = quick().fit(tmp_path / "digits.csv")
    assert numbers.item_mapping_.tolist() == [7]
    assert numbers.eval_llk(tmp_path / "digits.csv")["nobs"] == 1
    both = HPFEnsemble(2, **quick().get_params()).fit(tmp_path / "some.csv")
    assert both.eval_llk(tmp_path / "digits.csv")["nobs"] == 1


# -- what comes out --------------------------------------------------------------------------------

COLUMNS = ["UserId", "ItemId", "Score"]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (pl.Series(USERS[:3]), pl.DataFrame),
        (pl.DataFrame({"a": USERS[:3]})["a"].cast(pl.Categorical), pl.DataFrame),
        (pa.array(USERS[:3]), pa.Table),
        (pa.chunked_array([USERS[:1], USERS[1:3]]), pa.Table),
        (narwhals.from_native(pl.Series(USERS[:3]), series_only=True), pl.DataFrame),
        (narwhals.from_native(pd.Series(USERS[:3]), series_only=True), pd.DataFrame),
        (pd.Series(USERS[:3]), pd.DataFrame),
        (pd.Categorical(USERS[:3]), pd.DataFrame),
        (pd.Series(USERS[:3], dtype=pd.ArrowDtype(pa.string())), pd.DataFrame),
        (np.array(USERS[:3]), pd.DataFrame),
        (USERS[:3], pd.DataFrame),
    ],
)
def test_ids_and_lists_of_any_library(given: Any, kind: type) -> None:
    want = WANT.recommend(USERS[:3], n=4)
    found = WANT.recommend(given, n=4)
    assert type(found) is kind
    as_pandas = found if kind is pd.DataFrame else narwhals.from_native(found).to_pandas()
    assert as_pandas.columns.tolist() == COLUMNS
    assert as_pandas.UserId.tolist() == want.UserId.tolist()
    assert as_pandas.ItemId.tolist() == want.ItemId.tolist()
    assert as_pandas.Score.dtype == want.Score.dtype
    np.testing.assert_array_equal(as_pandas.Score, want.Score)
    np.testing.assert_array_equal(WANT.topN(given, n=4), WANT.topN(USERS[:3], n=4))
    np.testing.assert_array_equal(WANT.predict(given, ITEMS[0]), WANT.predict(USERS[:3], ITEMS[0]))


def test_frames_as_ids() -> None:
    for frame in (pl.DataFrame({"fan": ["ann"]}), pa.table({"fan": ["ann"]}), pd.DataFrame({"fan": ["ann"]})):
        with pytest.raises(TypeError, match=r"ids must be one column, such as frame\['fan'\]"):
            WANT.predict(frame, ITEMS[0])


def test_unknown_and_missing_ids_in_a_column() -> None:
    column = pl.Series(["who", None, "user 107"])
    known = WANT.predict("user 107", ITEMS[0])
    np.testing.assert_array_equal(WANT.predict(column, ITEMS[0]), [np.nan, np.nan, known])
    held_out = pl.DataFrame({"UserId": column, "ItemId": ITEMS[:3], "Count": 1})
    with pytest.warns(UserWarning, match="2 of the 3 counts of input_df were left out"):
        assert WANT.eval_llk(held_out)["nobs"] == 1
    numbers = quick().fit(COUNTS)
    np.testing.assert_array_equal(
        np.isnan(numbers.predict(pl.Series([107, None, 9]), 500)), [False, True, True]
    )
    assert (
        numbers.topN(107, n=2, items_pool=pl.Series([503, 504, 505])).tolist()
        == numbers.topN(107, n=2, items_pool=[503, 504, 505]).tolist()
    )


def test_tables_come_out_in_the_library_of_the_counts() -> None:
    new = NAMED[NAMED.UserId.isin(USERS[:2])].reset_index(drop=True)
    want = WANT.recommend(counts=new, n=3)
    for given, kind in (
        (pl.from_pandas(new), pl.DataFrame),
        (pl.from_pandas(new).lazy(), pl.DataFrame),
        (pa.Table.from_pandas(new), pa.Table),
        (narwhals.from_native(pl.from_pandas(new)), pl.DataFrame),
    ):
        found = WANT.recommend(counts=given, n=3)
        assert type(found) is kind
        np.testing.assert_array_equal(narwhals.from_native(found)["Score"].to_numpy(), want.Score)
    factors, theta = WANT.transform(pl.from_pandas(new)), WANT.transform(new)
    assert factors.columns == ["UserId", "0", "1", "2"]
    assert factors["UserId"].to_list() == theta.index.tolist()
    np.testing.assert_array_equal(factors.drop("UserId").to_numpy(), theta.to_numpy())
    of_items = WANT.transform_items(pa.Table.from_pandas(new))
    assert of_items.column_names == ["ItemId", "0", "1", "2"]


@pytest.mark.parametrize("kind", [HPF, HPFEnsemble])
def test_where_no_table_is_passed_results_come_in_the_library_of_the_training_data(
    kind: Any, tmp_path: Path
) -> None:
    own = {"k": 2, "maxiter": 2, "verbose": False, "stop_crit": "maxiter"}
    frame = pl.from_pandas(NAMED)
    model = kind(**(own if kind is HPF else {"members": 2, **own})).fit(frame)
    model.save(tmp_path / "model")
    user = NAMED.UserId[0]
    for one in (model, kind.load(tmp_path / "model")):
        for found in (one.recommend(), one.recommend(user), one.recommend([user]), one.similar_items(n=2)):
            assert isinstance(found, pl.DataFrame)
        assert found.columns == ["ItemId", "SimilarId", "Score"]
        assert isinstance(one.recommend(pd.Series([user])), pd.DataFrame)
        assert isinstance(one.recommend(counts=NAMED), pd.DataFrame)
        assert isinstance(one.recommend(counts=pa.Table.from_pandas(NAMED)), pa.Table)
    of_counts = model.transform(Counts(matrix(), users=USERS, items=ITEMS))  # no table, though it has ids
    assert isinstance(of_counts, pl.DataFrame)
    assert of_counts["UserId"].to_list() == USERS
    assert isinstance(model.fit(NAMED).recommend(), pd.DataFrame)
    assert isinstance(model.fit(frame.lazy()).recommend(), pl.DataFrame)


def test_batches_leave_the_library_of_the_first(tmp_path: Path) -> None:
    model = quick().partial_fit(pl.from_pandas(NAMED), nusers=60, nitems=40)
    model.partial_fit(NAMED).add_users(NAMED.assign(UserId=NAMED.UserId + "!")[:20])
    assert isinstance(model.recommend(), pl.DataFrame)


def test_a_library_that_is_not_installed_gives_way_to_pandas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quick().fit(pl.from_pandas(NAMED))
    model._fitted = replace(model._fitted, library="cudf")
    model.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "cudf", None)
    found = HPF.load(tmp_path / "model").recommend()
    pd.testing.assert_frame_equal(found, WANT.recommend())


def test_explanations_come_out_in_the_library_of_the_ids() -> None:
    model = quick(neighbours=5).fit(NAMED)
    user, item = USERS[3], ITEMS[:2]
    want, found = model.explain(user, item), model.explain(user, pl.Series(item))
    assert isinstance(found, pl.DataFrame)
    assert found.columns == want.columns.tolist()
    assert found["Because"].to_list() == [None if pd.isna(one) else one for one in want.Because]
    assert found["Term"].to_list() == want.Term.tolist()
    related = model.related_items(pl.Series(item), n=2)
    assert isinstance(related, pl.DataFrame)
    assert related["RelatedId"].to_list() == model.related_items(item, n=2).RelatedId.tolist()


@pytest.mark.parametrize("users", [pl.Series(["bob"]), pa.array(["bob"])])
def test_ids_that_a_library_has_no_column_for(users: Any) -> None:
    """As strings they would be other ids, so tables are pandas'."""
    items = [1, "1", ("a", 2)]
    model = quick(count=None).fit(pd.DataFrame({"UserId": ["ann", "bob", "ann"], "ItemId": items}))
    found = model.recommend(users, exclude_seen=False)
    pd.testing.assert_frame_equal(found, model.recommend(["bob"], exclude_seen=False))


# -- fixed factors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["polars", "polars, lazy", "pyarrow", "narwhals over pandas", "categories"])
def test_fixed_factors_of_any_library(kind: str) -> None:
    """As transform returns them: the order of the rows is another, and there are more of them."""
    factors = WANT.transform(NAMED)
    want = quick().fit(NAMED, fixed_users=factors)
    columns = factors.reset_index()[::-1].reset_index(drop=True)
    given: Any = {
        "polars": lambda: pl.from_pandas(columns),
        "polars, lazy": lambda: pl.from_pandas(columns).lazy(),
        "pyarrow": lambda: pl.from_pandas(columns).to_arrow(),
        "narwhals over pandas": lambda: narwhals.from_native(factors),
        "categories": lambda: pl.from_pandas(columns).cast({"UserId": pl.Categorical}),
    }[kind]()
    same_fit(quick().fit(NAMED, fixed_users=given), want)


def test_columns_of_fixed_factors() -> None:
    of_items = pl.from_pandas(WANT.transform_items(NAMED).reset_index())
    want = quick(**OWN).fit(RENAMED, fixed_items=of_items)
    same_fit(quick(**OWN).fit(RENAMED, fixed_items=of_items.rename({"ItemId": "song"})), want)
    message = (
        r"fixed_items has no column 'song' with ids \(did you mean 'songs'\?\), beside one for each factor"
    )
    with pytest.raises(ValueError, match=message):
        quick(**OWN).fit(RENAMED, fixed_items=of_items.rename({"ItemId": "songs"}))
    with pytest.raises(ValueError, match=r"fixed_items has shape \(\d+, 2\), and the model needs"):
        quick(**OWN).fit(RENAMED, fixed_items=of_items.drop("1"))


# -- what is loaded, kept and left alone -----------------------------------------------------------


def test_data_are_not_modified(tmp_path: Path) -> None:
    frame, batch = pl.from_pandas(NAMED), arrow()
    before = frame.clone()
    quick().fit(frame, frame)
    assert frame.equals(before)
    quick(**OWN).fit(batch)
    assert batch.equals(arrow())
    dense = matrix().toarray()
    quick(counts="log1p").fit(Counts(dense, users=USERS))
    np.testing.assert_array_equal(dense, matrix().toarray())


def test_numbers_are_not_copied() -> None:
    """One copy is made anyway: of the counts, in the type of the model."""
    users = np.arange(1000)
    frame = pl.DataFrame({"UserId": users, "ItemId": users % 7, "Count": np.ones(1000)})
    triplets = read(frame, dtype=np.float32, name="frame", taken="raw", columns=Columns())
    assert np.shares_memory(triplets.users.to_numpy(), frame["UserId"].to_numpy())


def test_checkpoints_know_the_data_in_every_form(tmp_path: Path) -> None:
    given = {"maxiter": 6, "stop_thr": 1e-9}
    quick(**given).fit(NAMED, checkpoint=tmp_path / "state", checkpoint_every=4)
    heard: list[int] = []
    quick(**given, **OWN).fit(
        FORMS["polars, lazy"](),
        checkpoint=tmp_path / "state",
        callback=lambda check: heard.append(check.iteration),
    )
    assert heard == [5, 6]


def run(code: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()


def test_frames_of_pandas_load_no_other_library() -> None:
    code = """
import sys, numpy as np, pandas as pd
from hpf_gpu import HPF
counts = pd.DataFrame({"UserId": ["a", "b"], "ItemId": [1, 2], "Count": [1, 2]})
model = HPF(k=2, maxiter=2, verbose=False).fit(counts)
model.recommend(counts=counts)
model.recommend(np.array(["a", "b"]))
print(*sys.modules)
"""
    assert not {"narwhals", "polars", "anndata"} & set(run(code))


def test_polars_without_pyarrow() -> None:
    code = """
import sys
sys.modules["pyarrow"] = None
import polars as pl
from hpf_gpu import HPF
counts = pl.DataFrame({"UserId": ["a", "b", "a"], "ItemId": [1, 2, 2], "Count": [1, 2, 3]})
model = HPF(k=2, maxiter=2, verbose=False).fit(counts)
print(*model.user_mapping_, *model.recommend(pl.Series(["a"]), exclude_seen=False)["UserId"])
try:
    model.fit("nowhere.csv")
except FileNotFoundError:
    print("missing")
import pathlib, tempfile
path = pathlib.Path(tempfile.mkdtemp()) / "plays.csv"
path.write_text("UserId,ItemId,Count")
try:
    model.fit(path)
except ImportError as error:
    print(str(error).partition("needs ")[2])
"""
    said = " ".join(run(code))
    assert said.startswith("a b a a missing pyarrow: pip install 'hpf_gpu[parquet]'; or pass a data frame")
