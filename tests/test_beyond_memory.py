"""Fits to counts on disk: read in pieces, sorted outside of memory, iterated over in blocks."""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import dataset, feather, parquet
from scipy import sparse

from hpf_gpu import HPF, Counts, NotEnoughMemory
from hpf_gpu.backends.openmp_backend import OpenMPBackend
from hpf_gpu.data import frames, pieces
from hpf_gpu.data.blocks import Block, BlocksInMemory, pairs_of
from hpf_gpu.data.ids import encode
from hpf_gpu.data.numbering import Numbering
from hpf_gpu.data.triplets import Columns, load
from hpf_gpu.files import count_store
from hpf_gpu.files.count_store import BlocksOnDisk, RunsOfCounts
from hpf_gpu.files.scratch import scratch_folder
from hpf_gpu.fitting import beyond_memory, training
from hpf_gpu.fitting.beyond_memory import Limit, bytes_in

RNG = np.random.default_rng(5)
#: With pairs that are there several times, and users in no order.
ROWS = pd.DataFrame(
    {
        "UserId": RNG.integers(0, 90, 3000),
        "ItemId": RNG.zipf(1.3, 3000) % 40,
        "Count": RNG.integers(1, 9, 3000),
    }
)
HOW: dict[str, Any] = {
    "k": 5,
    "maxiter": 4,
    "stop_crit": "maxiter",
    "random_seed": 2,
    "verbose": False,
    "ncores": 2,
}


@pytest.fixture
def small(monkeypatch: Any) -> None:
    """Runs and blocks of a few hundred counts, so that there are several."""
    monkeypatch.setattr(beyond_memory, "_READ_AT_ONCE", 450)
    monkeypatch.setattr(frames, "_CSV_AT_ONCE", 1024)
    monkeypatch.setattr(Limit, "counts_of_a_run", lambda self: 700)
    monkeypatch.setattr(Limit, "counts_of_a_block", lambda self, *_: 512)


def fit(
    data: Any, val_set: Any = None, *, limit: Any = "2GB", checkpoint: Any = None, **parameters: Any
) -> HPF:
    model = HPF(**HOW | parameters)
    return model.fit(data, val_set, memory_limit=limit, checkpoint=checkpoint, checkpoint_every=2)


def same(one: HPF, other: HPF) -> None:
    assert np.array_equal(one.Theta, other.Theta)
    assert np.array_equal(one.Beta, other.Beta)
    for name in ("user_mapping_", "item_mapping_"):
        ids = [getattr(model, name) for model in (one, other)]
        assert (ids[0] is None) == (ids[1] is None)
        assert ids[0] is None or ids[0].tolist() == ids[1].tolist()


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        RNG.integers(-50, 400, 900),
        np.concatenate([RNG.integers(0, 9, 300), RNG.integers(-9000, 90_000, 600)]),
        RNG.integers(-(2**62), 2**62, 900).repeat(2),
        np.array([2**63 + 5, 3, 2**63 + 5, 4], np.uint64),
        RNG.integers(0, 200, 900).astype(np.int16),
        RNG.integers(0, 60, 900) / 8,
        np.array([f"id {one}" for one in RNG.integers(0, 300, 900)], dtype=object),
        pd.Categorical([f"id {one}" for one in RNG.integers(0, 300, 900)]),
        pd.date_range("2020", periods=30)[RNG.integers(0, 30, 900)],
        np.array([("a", 1), ("a", 2), "a", ("a", 1)], dtype=object),
        pd.array([3, 1, 2, 3], dtype="Int64"),
    ],
    ids=lambda ids: str(ids.dtype),
)
def test_ids_are_numbered_as_if_they_came_at_once(ids: Any) -> None:
    column = pd.Series(ids)
    want, at_once = encode(column, "user", reindex=True)
    numbering = Numbering("user")
    pieces = [numbering.numbers(column.iloc[a : a + 130]) for a in range(0, len(column), 130)]
    assert np.array_equal(np.concatenate(pieces), want)
    assert numbering.size == at_once.size
    assert numbering.ids.values is not None
    assert at_once.values is not None
    assert numbering.ids.values.tolist() == at_once.values.tolist()
    assert numbering.ids.values.dtype == at_once.values.dtype


def test_integers_far_apart_need_no_table_over_their_range() -> None:
    numbering = Numbering("user")
    assert numbering.numbers(pd.Series([5, 7])).tolist() == [0, 1]
    assert numbering.numbers(pd.Series([2**60, 7, -(2**60)])).tolist() == [2, 1, 3]
    assert numbering.numbers(pd.Series([5, 2**60 + 1, 2**60])).tolist() == [0, 4, 2]


def test_ids_of_one_type() -> None:
    numbering = Numbering("item")
    numbering.numbers(pd.Series([5, 7]))
    with pytest.raises(TypeError, match="item ids of one piece are object, and of those before it int64"):
        numbering.numbers(pd.Series(["5"], dtype=object))
    with pytest.raises(ValueError, match="1 item ids are missing"):
        numbering.numbers(pd.Series([5, np.nan]))


def test_ids_that_32_bits_do_not_number() -> None:
    numbering = Numbering("user", reindex=False)
    numbering._size = 2**31 - 1
    assert numbering.numbers(pd.Series([2**31 - 2])).tolist() == [2**31 - 2]
    with pytest.raises(ValueError, match=r"there are 2,147,483,648 users, and 32 bits number no more"):
        numbering.numbers(pd.Series([2**31 - 1]))


def test_row_numbers_stay_what_they_are() -> None:
    numbering = Numbering("user", reindex=False)
    assert numbering.numbers(pd.Series([5, 7])).tolist() == [5, 7]
    assert numbering.numbers(pd.Series([3])).tolist() == [3]
    assert numbering.size == 8
    assert numbering.ids.values is None


# -- sources ---------------------------------------------------------------------------------------


def written(folder: Path) -> dict[str, Any]:
    """The same rows in every form that is read in pieces."""
    table = pa.table(ROWS)
    parquet.write_table(table, folder / "one.parquet", row_group_size=200)
    parts = [folder / f"part-{number}.parquet" for number in range(3)]
    for number, path in enumerate(parts):
        parquet.write_table(table.slice(1000 * number, 1000), path)
    feather.write_feather(table, folder / "one.arrow", compression="uncompressed")
    frames = [ROWS.iloc[:1000], ROWS.iloc[1000:1100], ROWS.iloc[1100:]]
    return {
        "frame": ROWS,
        "array": ROWS.to_numpy(),
        "path": folder / "one.parquet",
        "string": str(folder / "one.parquet"),
        "files": parts,
        "arrow": folder / "one.arrow",
        "dataset": dataset.dataset(parts),
        "table": table,
        "frames": frames,
        "generator": (frame for frame in frames),
        "tables": [pa.table(frame) for frame in frames],
        "csv": ROWS.to_csv(folder / "one.csv", index=False) or folder / "one.csv",
    }


@pytest.mark.usefixtures("small")
def test_every_form(tmp_path: Path) -> None:
    forms = written(tmp_path)
    want = fit(forms.pop("frame"))
    for name, data in forms.items():
        same(fit(data), want)
        assert not [*Path(tmp_path).glob("hpf_gpu-*")], name


# -- CSV files -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "separator"),
    [
        ("plays.csv", ","),
        ("plays.csv", ";"),
        ("plays.tsv", "\t"),
        ("plays.tsv", "|"),
        ("plays.csv.gz", ";"),
        ("plays.csv.bz2", ","),
    ],
)
def test_csv_files_in_pieces(name: str, separator: str, tmp_path: Path) -> None:
    rows = ROWS.assign(ItemId="item; " + ROWS.ItemId.astype(str), Note="a,b;c|d")
    path = tmp_path / name
    rows.to_csv(path, sep=separator, index=False, quoting=2, encoding="utf-8-sig")
    same(fit(path, maxiter=1), fit(load(path, Columns(), "counts_df"), maxiter=1))


@pytest.mark.usefixtures("small")
def test_csv_files_without_a_column_of_counts(tmp_path: Path) -> None:
    path = tmp_path / "plays.csv"
    ROWS.drop(columns="Count").to_csv(path, index=False)
    same(fit(os.fspath(path), count=None, maxiter=1), fit(ROWS, count=None, maxiter=1))


#: Ids by the number of their row.
WRITTEN = {
    "integers": lambda row: f"{row % 70}",
    "strings": lambda row: f"id {row % 70}",
    "one string, late": lambda row: "85123A" if row == 2000 else f"{row % 70}",
    "a string at the end": lambda row: "x" if row == 2999 else f"{row % 70}",
    "a zero in front, late": lambda row: f"{row % 70:0{1 + (row > 1500)}}",
    "large integers": lambda row: f"{10**18 + row % 70}",
    "larger than 64 bits, late": lambda row: f"{row % 70 + (row > 2500) * 2**64}",
    "negative": lambda row: f"{row % 70 - 35}",
    "words for what is missing": lambda row: ("NA", "nan", "null")[row % 3] if row > 900 else f"{row % 70}",
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ids", WRITTEN.values(), ids=WRITTEN)
def test_ids_of_csv_files_are_those_in_memory(ids: Any, tmp_path: Path) -> None:
    path = tmp_path / "plays.csv"
    lines = [f"{ids(row)},{row % 7},{row % 3 + 1}\n" for row in range(3000)]
    path.write_text("UserId,ItemId,Count\n" + "".join(lines))
    in_memory, model = HPF(**HOW | {"maxiter": 1}).fit(path), fit(path, maxiter=1)
    for name in ("user_mapping_", "item_mapping_"):
        got, want = getattr(model, name), getattr(in_memory, name)
        assert got.tolist() == want.tolist()
        assert got.dtype == want.dtype
    np.testing.assert_allclose(model.Theta, in_memory.Theta, rtol=1e-4)


@pytest.mark.usefixtures("small")
def test_ids_of_csv_files_that_are_strings_by_rows_without_a_count(tmp_path: Path) -> None:
    path = tmp_path / "plays.csv"
    lines = [f"{row % 70},3,1\n" for row in range(2000)] + ["x1,3,0\n"] * 1000
    path.write_text("UserId,ItemId,Count\n" + "".join(lines))
    with pytest.warns(UserWarning, match="1000 counts of zero"):
        model = fit(path)
    assert model.user_mapping_.tolist() == [str(user) for user in range(70)]


@pytest.mark.usefixtures("small")
def test_row_numbers_in_csv_files(tmp_path: Path) -> None:
    path = tmp_path / "plays.csv"
    ROWS.to_csv(path, index=False)
    same(fit(path, reindex=False), fit(ROWS, reindex=False))
    with path.open("a") as file:
        file.write("x7,3,1\n")
    with pytest.raises(ValueError, match="is not a number; with reindex=False"):
        fit(path, reindex=False)


def test_few_rows_of_a_csv_file_are_held(small: None, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "plays.csv"
    pd.concat([ROWS] * 4).to_csv(path, index=False)
    alive: list[Any] = []  # references to tables with pieces of the file
    held = []  # rows of those that are alive whenever another is read

    def watched(*given: Any) -> Any:
        loaded = load(*given)
        alive.append(weakref.ref(loaded))
        frames = {id(frame): len(frame) for one in alive if (frame := one()) is not None}
        held.append(sum(frames.values()))
        return loaded

    monkeypatch.setattr(pieces, "load", watched)
    fit(path)
    # 450 at once, and the rest of 1024 bytes of the file, with 6 or more for each row.
    most = 450 + 1024 // 6
    assert len(held) >= len(ROWS) * 4 / most
    assert max(held) <= 2 * most


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["plays.csv", "plays.csv.gz", "plays.parquet"])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("Count", "count nan in row 2345 cannot be used"),
        ("UserId", "1 user ids are missing, the first in row 2345"),
    ],
)
def test_what_is_missing_is_named_by_its_row_in_the_file(
    name: str, column: str, message: str, tmp_path: Path
) -> None:
    rows = ROWS.astype({column: "Int64"})
    rows.loc[2345, column] = None
    if name.endswith(".parquet"):
        rows.to_parquet(tmp_path / name)
    else:
        rows.to_csv(tmp_path / name, index=False)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / name)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,two\n", "plays.csv' cannot be read: .*Row #3002: .*invalid value 'two'"),
        ("1,2\n", "plays.csv' cannot be read: .* Expected 3 columns, got 2: 1,2"),
    ],
)
def test_a_line_of_a_csv_file_that_cannot_be_read(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plays.csv"
    path.write_text(ROWS.to_csv(index=False) + line)
    with pytest.raises(ValueError, match=message):
        fit(path)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "plays.json").write_text("[]")
    with pytest.raises(ValueError, match=r"pass a file .parquet, .pq, .arrow"):
        fit(tmp_path / "plays.json")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        fit(tmp_path / "plays.csv")
    (tmp_path / "plays.csv").write_text("UserId,Item,Count\n1,2,3\n")
    with pytest.raises(ValueError, match=r"plays\.csv, has no column 'ItemId'"):
        fit(tmp_path / "plays.csv")


# -- matrices and several files --------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_matrices_in_memory_or_mapped(tmp_path: Path) -> None:
    csr = sparse.coo_array((ROWS.Count, (ROWS.UserId + 3, ROWS.ItemId)), shape=(120, 60)).tocsr()
    arrays = []
    for name in ("data", "indices", "indptr"):
        np.save(tmp_path / name, getattr(csr, name))
        arrays.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    want = fit(csr)
    assert want.Theta.shape == (120, 5)  # with the users that have no count
    same(fit(sparse.csr_array(tuple(arrays), shape=csr.shape)), want)
    named = fit(Counts(csr, users=[f"u{row}" for row in range(120)]))
    assert np.array_equal(named.Theta, want.Theta)
    assert [*named.user_mapping_][:2] == ["u0", "u1"]


def test_several_files_in_memory(tmp_path: Path) -> None:
    forms = written(tmp_path)
    want = HPF(**HOW).fit(ROWS)
    same(HPF(**HOW).fit(forms["files"]), want)
    same(HPF(**HOW).fit(forms["dataset"]), want)
    with pytest.raises(ValueError, match=r"list of files \.csv, \.parquet: several files are all of Parquet"):
        HPF(**HOW).fit([forms["path"], forms["csv"]])
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        HPF(**HOW).fit([forms["path"], tmp_path / "none.parquet"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([ROWS, ROWS.assign(Count=-1)], "count -1 in row 0 cannot be used"),
        ([ROWS, ROWS.drop(columns="ItemId")], "counts_df has no column 'ItemId'"),
        ([ROWS, ROWS.astype({"UserId": str})], "user ids of one piece"),
        ([ROWS.assign(Count=0)], "no count above zero"),
        ([], "no count above zero"),
        ([5], "counts_df must be a data frame"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*counts of zero")
def test_bad_pieces(data: Any, message: str, tmp_path: Path) -> None:
    model = HPF(**HOW)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(data, memory_limit="2GB", scratch=tmp_path)
    assert not any(tmp_path.iterdir())
    assert not model.is_fitted


@pytest.mark.usefixtures("small")
def test_zeros_are_dropped() -> None:
    zeros = pd.DataFrame({"UserId": [1000, 1], "ItemId": [1, 1000], "Count": 0})
    with pytest.warns(UserWarning, match="2 counts of zero"):
        model = fit([zeros, ROWS])
    same(model, fit(ROWS))


# -- sorting -------------------------------------------------------------------------------------


def stored(folder: Path, rows: pd.DataFrame, most: int, run: int, dtype: Any = np.float32) -> BlocksOnDisk:
    backend = OpenMPBackend(np.dtype(dtype), threads=2)
    runs = RunsOfCounts(folder)
    for start in range(0, len(rows), run):
        part = rows.iloc[start : start + run]
        runs.add(part.UserId.to_numpy(), part.ItemId.to_numpy(), part.Count.to_numpy(dtype))
    shape = (int(rows.UserId.max()) + 3, 40)
    slices = runs.slices(shape[0], most)
    return BlocksOnDisk.of(backend, folder, runs, shape, 5, slices, "raw", done=lambda *_: None)


def blocks_of(rows: pd.DataFrame, on_disk: BlocksOnDisk) -> BlocksInMemory:
    """What is on disk, laid out in memory."""
    backend = on_disk.backend
    csr = sparse.coo_array(
        (rows.Count.to_numpy(backend.dtype), (rows.UserId, rows.ItemId)), shape=on_disk.shape
    ).tocsr()
    return BlocksInMemory(
        on_disk.shape, tuple(Block(part, backend.counts(csr[part], 5)) for part in on_disk.slices)
    )


@pytest.mark.parametrize("counts", [1, 300, 70_000, 0.37])
@pytest.mark.parametrize("run", [250, 10_000])
def test_blocks_hold_what_was_written(tmp_path: Path, counts: float, run: int) -> None:
    rows = ROWS.assign(Count=ROWS.Count * counts)
    on_disk = stored(tmp_path, rows, 512, run)
    assert len(on_disk.slices) > 2
    assert [part.start for part in on_disk.slices[1:]] == [part.stop for part in on_disk.slices[:-1]]
    assert not [*tmp_path.glob("run-*")]
    backend, in_memory = on_disk.backend, blocks_of(rows, on_disk)
    ones = backend.asarray(np.ones((40, 1), np.float32))
    for _ in range(2):
        for one, other in zip(on_disk, in_memory.blocks, strict=True):
            assert one.users == other.users
            assert one.counts.nnz == other.counts.nnz
            scale = backend.asarray(np.ones(one.counts.shape[0]))
            got, want = (
                backend.log_count_products(b.counts, ones, scale, side="users") for b in (one, other)
            )
            # Sums of fractions depend on their order.
            np.testing.assert_allclose(got, want, rtol=1e-6 if counts == 0.37 else 0)
    assert on_disk.nnz == sum(block.counts.nnz for block in in_memory.blocks)
    whole = stored(tmp_path, rows, 10**6, 900)
    assert len(whole.slices) == 1
    if counts != 0.37:
        assert whole.fingerprint == on_disk.fingerprint
    assert stored(tmp_path, rows.iloc[1:], 512, run).fingerprint != on_disk.fingerprint


def test_a_user_with_more_than_a_block_is_one(tmp_path: Path) -> None:
    rows = pd.DataFrame({"UserId": [0, 2, 2, 2, 4], "ItemId": [1, 1, 2, 3, 1], "Count": 1})
    on_disk = stored(tmp_path, rows, 2, 2)
    assert [(part.start, part.stop) for part in on_disk.slices] == [(0, 2), (2, 3), (3, 7)]


def test_a_block_that_was_removed_or_cut(tmp_path: Path) -> None:
    on_disk = stored(tmp_path, ROWS, 512, 400)
    with open(tmp_path / "block-1", "r+b") as file:
        file.truncate(100)
    with pytest.raises(OSError, match="block-1, with counts of this fit, was changed in the meantime"):
        list(on_disk)
    (tmp_path / "block-1").unlink()
    with pytest.raises(FileNotFoundError, match="block-1, with counts of this fit, was removed"):
        list(on_disk)


# -- fits ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "parameters",
    [
        {"use_float": False, "counts": "log1p"},
        {"schedule": "alternating", "stop_crit": "elbo", "maxiter": 30},
        {"schedule": "accelerated", "init": "svd"},
        {"bias": True},
        {"reindex": False},
    ],
    ids=str,
)
def test_the_same_bits_as_from_memory(parameters: dict[str, Any], monkeypatch: Any) -> None:
    equal_to_a_fit_in_memory(monkeypatch, parameters)


@pytest.mark.usefixtures("small")
def test_the_same_bits_with_every_backend(backend_name: str, monkeypatch: Any) -> None:
    equal_to_a_fit_in_memory(monkeypatch, {"backend": backend_name})


def equal_to_a_fit_in_memory(monkeypatch: Any, parameters: dict[str, Any]) -> None:
    """Fit from disk, and from memory over the same blocks."""
    held_out = ROWS.sample(80, random_state=1).assign(Count=2)
    seen = []
    original = beyond_memory.counts_on_disk

    def watched(*given: Any, **more: Any) -> Any:
        seen.append(original(*given, **more))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(training, "counts_on_disk", watched)
        on_disk = fit(ROWS, held_out, **parameters)
    [(_, blocks)] = seen
    assert len(blocks.slices) > 3

    def in_blocks(backend: Any, csr: Any, k: int, validation: Any, *_: Any) -> BlocksInMemory:
        return BlocksInMemory(
            csr.shape,
            tuple(
                Block(rows, backend.counts(csr[rows], k), pairs_of(validation, rows))
                for rows in blocks.slices
            ),
        )

    monkeypatch.setattr(training, "in_memory", in_blocks)
    in_memory = HPF(**HOW | parameters).fit(ROWS, held_out)
    same(on_disk, in_memory)
    figures = ["llk", "elbo", "val_llk"]
    pd.testing.assert_frame_equal(on_disk.history_[figures], in_memory.history_[figures], rtol=0, atol=0)
    assert np.array_equal(on_disk.Gamma_shp, in_memory.Gamma_shp)


@pytest.mark.usefixtures("small")
def test_a_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    whole = fit(ROWS, maxiter=6)
    fit(ROWS, maxiter=3, checkpoint=tmp_path / "fit")
    same(fit(ROWS, maxiter=6, checkpoint=tmp_path / "fit"), whole)
    with pytest.raises(ValueError, match="checkpoint of a fit to another counts_df"):
        fit(ROWS.iloc[1:], checkpoint=tmp_path / "fit")


@pytest.mark.usefixtures("small")
def test_progress_of_reading_and_sorting(capsys: Any) -> None:
    fit(ROWS, verbose=True)
    shown = capsys.readouterr().err
    for what in ("reading: 3.00k/3.00k", "sorting: ", "HPF: 4/4"):
        assert what in shown
    assert "0.0 GB written" in shown


@pytest.mark.usefixtures("small")
def test_what_a_model_of_counts_on_disk_does() -> None:
    model = fit(ROWS)
    with pytest.raises(ValueError, match="keep_data"):
        model.topN(ROWS.UserId[0], exclude_seen=True)
    assert len(model.topN(ROWS.UserId[0], n=3, exclude_seen=False)) == 3
    model.add_user(1000, pd.DataFrame({"ItemId": [1, 2], "Count": 1}))


@pytest.mark.parametrize("name", ["users_per_batch", "items_per_batch", "neighbours"])
def test_what_needs_all_counts_is_refused(name: str) -> None:
    more = {"users_per_batch": 10} if name == "items_per_batch" else {}
    with pytest.raises(ValueError, match="needs all counts in memory: leave out memory_limit"):
        fit(ROWS, **{name: 5} | more)


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (5e9, 5 * 10**9),
        ("4GB", 4 * 10**9),
        ("1.5 gb", 15 * 10**8),
        ("2GiB", 2**31),
        ("700M", 7 * 10**8),
        ("9", 9),
    ],
)
def test_amounts_of_memory(given: Any, want: int) -> None:
    assert bytes_in("memory_limit", given) == want


@pytest.mark.parametrize("given", ["", "much", "4 XB", "-1GB", 0, -5, True, None, float("nan"), float("inf")])
def test_what_is_no_amount_of_memory(given: Any) -> None:
    with pytest.raises(ValueError, match="is not an amount of memory: pass bytes, or a string such as '4GB'"):
        bytes_in("memory_limit", given)


def test_limits_that_are_too_small(monkeypatch: Any) -> None:
    with pytest.raises(NotEnoughMemory, match=r"memory_limit is 0.3 GB, .* raise the limit"):
        fit(ROWS, limit="300MB")
    monkeypatch.setattr(beyond_memory, "bytes_of_fit", lambda *_, **__: 10**9)
    with pytest.raises(NotEnoughMemory, match=r"users and 40 items with k=5 .* raise it to .* GB or more"):
        fit(ROWS, limit="1GB")


def test_blocks_depend_on_the_limit_alone(monkeypatch: Any) -> None:
    sizes = set()
    for resident in (90e6, 250e6, 399e6):
        monkeypatch.setattr(beyond_memory, "resident_memory", lambda have=resident: int(have))
        limit = Limit(2 * 10**9)
        sizes.add((limit.counts_of_a_run(), limit.counts_of_a_block(10**8, "")))
    assert len(sizes) == 1
    monkeypatch.setattr(beyond_memory, "resident_memory", lambda: 10**9)
    assert Limit(2 * 10**9).left < 1.1e9


def test_memory_holds_a_run_or_some_blocks(monkeypatch: Any) -> None:
    def pieces() -> Any:
        rng = np.random.default_rng(0)
        for _ in range(20):
            ids = {"UserId": rng.integers(0, 3000, 20_000), "ItemId": rng.integers(0, 500, 20_000)}
            yield pd.DataFrame(ids | {"Count": 1})

    monkeypatch.setattr(Limit, "counts_of_a_run", lambda self: 30_000)
    monkeypatch.setattr(Limit, "counts_of_a_block", lambda self, *_: 1 << 14)
    peaks = []
    for fit_it in (lambda: fit(pieces()), lambda: HPF(**HOW).fit(pd.concat(pieces()))):
        tracemalloc.start()
        fit_it()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 2.2 and 25.7 MB measured.
    assert peaks[0] < peaks[1] / 4


def test_scratch_without_a_limit() -> None:
    with pytest.raises(ValueError, match="scratch is a folder for fits with memory_limit"):
        HPF(**HOW).fit(ROWS, scratch="/tmp")
    with pytest.raises(FileNotFoundError, match="is not an existing folder"):
        HPF(**HOW).fit(ROWS, memory_limit="1GB", scratch="/nowhere")


# -- interruptions -------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("at", range(8))
def test_a_full_disk(at: int, tmp_path: Path, monkeypatch: Any) -> None:
    left = [at]
    original = count_store._write

    def write(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*given)

    monkeypatch.setattr(count_store, "_write", write)
    model = HPF(**HOW).fit(ROWS)
    before = model.Theta
    with pytest.raises(OSError, match=r"the disk is full: .* fit\(\.\.\., scratch=\.\.\.\)") as caught:
        model.fit(ROWS, memory_limit="1GB", scratch=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert model.Theta is before
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_ctrl_c_while_counts_are_read(tmp_path: Path) -> None:
    def pieces() -> Any:
        yield ROWS
        raise KeyboardInterrupt

    model = HPF(**HOW).fit(ROWS)
    before = model.Theta
    with pytest.raises(KeyboardInterrupt):
        model.fit(pieces(), memory_limit="1GB", scratch=tmp_path)
    assert model.Theta is before
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_ctrl_c_in_an_iteration_keeps_the_last(tmp_path: Path, monkeypatch: Any) -> None:
    original, calls = BlocksOnDisk._load, [0]

    def load(self: Any, number: int) -> Any:
        calls[0] += 1
        if calls[0] == 20:
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(BlocksOnDisk, "_load", load)
    model = HPF(**HOW | {"maxiter": 50})
    with pytest.warns(UserWarning, match=r"the fit was interrupted; iteration \d is kept"):
        model.fit(ROWS, memory_limit="1GB", scratch=tmp_path)
    assert not any(tmp_path.iterdir())


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {os.fspath(Path(training.__file__).parents[2])!r})
from hpf_gpu.files.scratch import scratch_folder
with scratch_folder({os.fspath(tmp_path)!r}) as folder:
    (folder / "block-0").write_bytes(b"counts")
    print(folder, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        with scratch_folder(tmp_path) as own:
            assert theirs.exists()  # as long as the process lives
            assert own != theirs
        process.kill()
        process.wait()
        assert (theirs / "block-0").exists()
        with scratch_folder(tmp_path):
            assert not theirs.exists()
    assert not any(tmp_path.iterdir())


def test_folders_of_processes_killed_while_they_made_or_removed_them(
    tmp_path: Path, monkeypatch: Any
) -> None:
    unlink = Path.unlink

    def killed(path: Path, *args: Any) -> None:
        unlink(path, *args)
        raise KeyboardInterrupt

    scratch = scratch_folder(tmp_path)
    folder = scratch.__enter__()
    for number in range(3):
        (folder / f"block-{number}").write_bytes(b"counts")
    with monkeypatch.context() as changed:
        changed.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            scratch.__exit__(None, None, None)
    assert len(list(folder.iterdir())) == 3  # one block is gone, the file with the lock is not
    (tmp_path / f"{folder.name}-empty").mkdir()
    del scratch
    gc.collect()  # closes that file
    with scratch_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert not any(tmp_path.iterdir())


#: Fits in a new process for each line it reads; writes its id and, after another line, its exit code.
FITS = """
import os, sys
import pyarrow.parquet
from hpf_gpu import HPF
from hpf_gpu.fitting import beyond_memory
from hpf_gpu.fitting.beyond_memory import Limit

def fit(folder):
    model = HPF(k=5, maxiter=40, stop_crit="maxiter", random_seed=2, verbose=False, ncores=2)
    counts, checkpoint = f"{folder}/rows.parquet", f"{folder}/fit"
    model.fit(counts, memory_limit="2GB", scratch=folder, checkpoint=checkpoint, checkpoint_every=3)
    model.save(f"{folder}/model")

beyond_memory._READ_AT_ONCE = 450
Limit.counts_of_a_run = lambda self: 700
Limit.counts_of_a_block = lambda self, *_: 512
while sys.stdin.readline():
    child = os.fork()
    if not child:
        fit(sys.argv[1])
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def killed_and_run_again(folder: Path, kills: int, rng: random.Random) -> HPF:
    """The model of a fit that was killed so many times before it could end."""
    ROWS.to_parquet(folder / "rows.parquet")
    # -P: the package that is installed, not the sources here, which are not compiled.
    command = [sys.executable, "-P", "-c", FITS, os.fspath(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        ask, answers = process.stdin, process.stdout
        assert ask is not None
        assert answers is not None

        def told() -> int:
            ask.write("\n")
            ask.flush()
            return int(answers.readline())

        while kills:
            fit = told()
            time.sleep(rng.uniform(0, 0.25))
            os.kill(fit, signal.SIGKILL)
            kills -= told() == -signal.SIGKILL  # it may have ended before
        told()
        assert told() == 0
        ask.close()
    assert sorted(path.name for path in folder.iterdir()) == ["fit", "model", "rows.parquet"]
    return HPF.load(folder / "model")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor SIGKILL")
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_fit_that_is_killed_is_run_again(kills: int, tmp_path: Path) -> None:
    same(killed_and_run_again(tmp_path, kills, random.Random(3)), fit(ROWS, maxiter=40))
