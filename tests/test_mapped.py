"""Models that are mapped from their file rather than read."""

from __future__ import annotations

import gc
import json
import mmap
import os
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from small_data import COUNTS, assert_same, of_user, quick

from hpf_gpu import HPF, HPFEnsemble, ModelFileError, load
from hpf_gpu.data import ids as ids_of_any_type
from hpf_gpu.data.ids import Ids

NAMED = COUNTS.assign(UserId="u" + COUNTS.UserId.astype(str), ItemId="i" + COUNTS.ItemId.astype(str))


def mapped(model, path):
    model.save(path)
    return HPF.load(path, mmap=True)


def is_mapped(array):
    """Whether an array is a view of a file, which cannot be written to."""
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(getattr(owner, "obj", owner), mmap.mmap) and not array.flags.writeable


@pytest.mark.parametrize("counts", [COUNTS, NAMED], ids=["numbers", "strings"])
def test_a_mapped_model_answers_as_the_model(counts, backend_name, tmp_path):
    model = quick(backend=backend_name).fit(counts)
    twin = mapped(model, tmp_path / "model")
    assert is_mapped(twin.Theta)
    assert is_mapped(twin.Beta)
    assert is_mapped(twin._fitted.seen[1])
    assert_same(twin, model)
    pd.testing.assert_frame_equal(twin.recommend(discount=0.2), model.recommend(discount=0.2))
    pd.testing.assert_frame_equal(twin.recommend(rank_by="lower"), model.recommend(rank_by="lower"))
    assert np.array_equal(twin.transform(counts), model.transform(counts))
    assert twin.eval_llk(counts) == model.eval_llk(counts)


def test_neighbours_are_mapped(tmp_path):
    model = quick(neighbours=3, backend="numpy").fit(COUNTS)
    twin = mapped(model, tmp_path / "model")
    assert is_mapped(twin._fitted.neighbours.sources)
    assert_same(twin, model)
    pd.testing.assert_frame_equal(twin.explain(100, 503), model.explain(100, 503))
    pd.testing.assert_frame_equal(twin.related_items(503), model.related_items(503))


def test_nothing_is_read_before_it_is_used(tmp_path, monkeypatch):
    """Every array but the history is out of reach, as is the file behind its header."""
    quick().fit(NAMED).save(tmp_path / "model")
    whole = (tmp_path / "model").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = json.loads(whole[8:header])
    spoiled = bytearray(whole[:header]) + b"\xff" * (len(whole) - header)
    for name, place in places.items():
        if name.startswith("history."):
            kept = slice(*(header + end for end in place["data_offsets"]))
            spoiled[kept] = whole[kept]
    (tmp_path / "model").write_bytes(spoiled)
    model = HPF.load(tmp_path / "model", mmap=True)
    assert (model.nusers, model.k) == (len(NAMED.UserId.unique()), 3)
    assert np.isnan(model.Theta).all()
    with pytest.raises(ValueError, match="decode"):
        model.user_mapping_  # noqa: B018
    with pytest.raises(ModelFileError, match="checksum"):
        HPF.load(tmp_path / "model")


def test_a_model_that_changes_leaves_its_file_as_it_is(backend_name, tmp_path):
    path = tmp_path / "model"
    model = quick(backend=backend_name).fit(COUNTS)
    twin = mapped(model, path)
    before = path.read_bytes()
    for one in (model, twin):
        one.add_user(7, of_user(103))
        one.add_user(100, of_user(104), update_existing=True)
        one.partial_fit(COUNTS[:50])
    assert_same(twin, model)
    assert path.read_bytes() == before
    assert np.array_equal(HPF.load(path, mmap=True).fit(COUNTS).Theta, model.fit(COUNTS).Theta)
    with pytest.raises(ValueError, match="read-only"):
        HPF.load(path, mmap=True).Theta[0, 0] = 1.0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not replace files that are mapped")
def test_a_model_is_saved_over_the_file_that_it_is_mapped_from(tmp_path):
    path = tmp_path / "model"
    model = quick().fit(NAMED)
    twin, other = mapped(model, path), HPF.load(path, mmap=True)
    twin.add_user("new", of_user(103).assign(ItemId=lambda frame: "i" + frame.ItemId.astype(str)))
    twin.save(path)
    assert_same(other, model)  # still the old file, which has no name any more
    assert_same(HPF.load(path, mmap=True), twin)
    quick(k=2).fit(NAMED).save(path)
    assert other.topN("u100", n=3).tolist() == model.topN("u100", n=3).tolist()


def test_ensembles_are_mapped(tmp_path):
    ensemble = HPFEnsemble([{"k": 2}, {"k": 3, "transposed": True}], verbose=False, maxiter=5)
    ensemble.fit(NAMED).save(tmp_path / "model")
    twin = load(tmp_path / "model", mmap=True)
    assert all(is_mapped(member.Theta) for member in twin.members_)
    pd.testing.assert_frame_equal(twin.recommend(), ensemble.recommend())
    assert twin.topN("u100", n=3).tolist() == ensemble.topN("u100", n=3).tolist()


def test_pickles_of_mapped_models(tmp_path):
    model = quick().fit(NAMED)
    twin = pickle.loads(pickle.dumps(mapped(model, tmp_path / "model")))
    (tmp_path / "model").unlink()
    assert_same(twin, model)


def test_files_whose_arrays_are_not_aligned(tmp_path):
    model = quick().fit(COUNTS)
    path = tmp_path / "model"
    model.save(path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :])
    twin = HPF.load(path, mmap=True)
    assert twin.Theta.flags.aligned
    assert_same(twin, model)


def test_files_of_the_library_are_mapped(tmp_path):
    """Every array of ours is aligned, and the format is that of the safetensors library."""
    model, path = quick().fit(COUNTS), tmp_path / "model"
    model.save(path)
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    save_file(load_file(path), tmp_path / "again", metadata=header["__metadata__"])
    for one in (path, tmp_path / "again"):
        twin = HPF.load(one, mmap=True)
        assert is_mapped(twin.Theta)
        assert twin.Theta.flags.aligned
        assert is_mapped(twin.user_mapping_)
        assert_same(twin, model)


@pytest.mark.parametrize("damage", ["cut", "longer", "another dtype"])
def test_damage_that_shows_without_reading(damage, tmp_path):
    path = tmp_path / "model"
    quick().fit(COUNTS).save(path)
    whole = path.read_bytes()
    changed = {"cut": whole[:-1], "longer": whole + b"\0", "another dtype": whole.replace(b"F32", b"I32")}
    path.write_bytes(changed[damage])
    with pytest.raises(ModelFileError, match=r"damaged|Theta is int32"):
        HPF.load(path, mmap=True)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="open files are listed in /proc")
def test_the_file_is_closed_with_the_model(tmp_path):
    model = mapped(quick().fit(COUNTS), tmp_path / "model")

    def is_open():
        links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return any(os.readlink(link) == str(tmp_path / "model") for link in links if os.path.islink(link))

    assert is_open()
    del model
    gc.collect()
    assert not is_open()


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_many_integers_are_looked_up_without_a_dict(dtype, monkeypatch):
    monkeypatch.setattr(ids_of_any_type, "_MOST_IN_A_DICT", 3)
    ids = Ids(np.array([5, 3, 9, 7], dtype), 4, "user")
    for asked in ([9, 3, 4], np.array([9, 3, 4]), [np.int64(9), 3, 4], pd.Series([9, 3, 4])):
        assert ids.codes(asked).tolist() == [2, 1, -1]
    assert ids.codes_of(7).tolist() == [3]
    assert "rows" not in vars(ids)
    assert ids.codes([9, 10**30, -(10**10), "9", 9.0, True]).tolist() == [2, -1, -1, -1, 2, -1]
