"""Models on disk: what is saved comes back, and what is no whole model is refused."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import altered
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy import sparse
from small_data import COUNTS, IDS, assert_same, of_user, quick

from hpf_gpu import HPF, ModelFileError
from hpf_gpu.data.ids import Ids
from hpf_gpu.files.model_file import MODEL
from hpf_gpu.model.settings import default_step_size


def saved(model, path):
    model.save(path)
    return HPF.load(path)


# -- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("use_float", [False, True], ids=["float64", "float32"])
def test_round_trip(use_float, backend_name, tmp_path):
    model = quick(backend=backend_name, use_float=use_float, stop_crit="diff-norm").fit(COUNTS, COUNTS[::3])
    twin = saved(model, tmp_path / "model.safetensors")
    assert_same(twin, model)
    assert twin.get_params() == model.get_params()
    assert np.array_equal(twin.transform(COUNTS), model.transform(COUNTS))
    assert twin.eval_llk(COUNTS) == model.eval_llk(COUNTS)
    assert np.array_equal(twin.fit(COUNTS).Theta, model.Theta)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_users_that_were_added_are_saved_and_taken_in_again(backend_name, tmp_path):
    model = quick(backend=backend_name).fit(COUNTS)
    model.add_user(7, of_user(103))
    twin = saved(model, tmp_path / "model")
    assert_same(twin, model)
    for each in (twin, model):
        each.add_user(8, of_user(104))
    assert_same(twin, model)
    assert np.array_equal(twin.transform_items(COUNTS), model.transform_items(COUNTS))


@pytest.mark.parametrize(
    "arguments",
    [{"keep_all_objs": False}, {"keep_data": False}, {"produce_dicts": False}, {"reindex": False}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_lean_models(arguments, tmp_path):
    numbered = COUNTS.assign(UserId=COUNTS.UserId - 100, ItemId=COUNTS.ItemId - 500)
    model = quick(**arguments).fit(numbered)
    assert_same(saved(model, tmp_path / "model"), model)


def test_models_of_matrices(tmp_path):
    model = quick().fit(sparse.csr_array(np.eye(5, 7)))
    assert_same(saved(model, tmp_path / "model"), model)


def test_parameters_come_back_as_plain_values(tmp_path):
    given = {
        "k": np.int64(3), "a": np.float32(0.5), "c": Fraction(1, 4), "maxiter": np.int16(4), "ncores": -1,
        "random_seed": None, "use_float": np.True_, "check_every": 2.0, "full_llk": 1, "step_size": None,
        "save_folder": tmp_path,
    }  # fmt: skip
    (tmp_path / "models").mkdir()
    model = HPF(**given, verbose=False).fit(COUNTS)
    twin = saved(model, tmp_path / "models" / "one")
    for name, value in given.items():
        assert getattr(twin, name) == (None if name == "save_folder" else value), name
    assert type(twin.k) is int
    assert twin.use_float is True


def test_step_sizes(tmp_path):
    model = quick().fit(COUNTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert saved(model, tmp_path / "model").step_size is default_step_size
    model.step_size = lambda iteration: 1 / (iteration + 1)
    with pytest.warns(UserWarning, match="step_size is not the default function and is not saved") as caught:
        model.save(tmp_path / "model")
    assert caught[0].filename == __file__
    assert HPF.load(tmp_path / "model").step_size is None


SAVED = sorted({"strings", "tuples", "mixed", "dates", "floats", "bytes", "negative", "huge"})


@pytest.mark.parametrize("kind", SAVED)
def test_ids_keep_their_types(kind, tmp_path):
    frame = pd.DataFrame({"UserId": IDS[kind][:20], "ItemId": IDS[kind][20:], "Count": 2})
    model = quick(k=2, maxiter=2).fit(frame)
    assert_same(saved(model, tmp_path / "model"), model)


@pytest.mark.parametrize("kind", sorted(IDS.keys() - set(SAVED)))
def test_ids_that_cannot_be_saved_are_named(kind, tmp_path):
    frame = pd.DataFrame({"UserId": IDS[kind][:20], "ItemId": range(20), "Count": 2})
    model = quick(k=2, maxiter=2).fit(frame)
    (tmp_path / "model").write_text("precious")
    with pytest.raises(TypeError, match=r"user id .* is a (Decimal|Fraction|frozenset|Timestamp): .*pickle"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "precious"
    assert_same(pickle.loads(pickle.dumps(model)), model)


DAYS = [np.datetime64("2020-01-01"), np.datetime64("2021", "Y"), np.datetime64(1, "ns")]
OBJECTS = {
    "dates": DAYS,
    "dates among others": [*DAYS, "x", (1, np.datetime64("2020-01-01")), b"\0"],
    "times": [np.timedelta64(5, "ns"), np.timedelta64(7, "D"), np.timedelta64(-1, "s")],
    "times among others": [np.timedelta64(5, "ns"), 7, "5"],
    "zeros": ["a\0b", "a\0c", "a", "a\0"],
    "surrogates": ["\ud800", "\udfff", "a\ud800", "\ud83d\ude00", "\N{GRINNING FACE}"],
    "like what a file has": [("bytes", "x"), "NaN", "null", '{"tuple": []}', (), ((),)],
    "infinite": [float("inf"), -float("inf"), "inf"],
    "endless": [10**400, -(10**400), 1e300],
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_ids_that_are_objects_come_back(kind, tmp_path):
    ids = np.empty(len(OBJECTS[kind]), dtype=object)
    ids[:] = OBJECTS[kind]
    # By numbers: pandas makes one of texts that differ behind a zero.
    model = quick(k=2, maxiter=2).fit(sparse.csr_array(np.eye(len(ids), 3) + 1))
    model._fitted = replace(model._fitted, user_ids=Ids(ids, len(ids), "user"))
    twin = saved(model, tmp_path / "model")
    assert_same(twin, model)
    got = twin.user_mapping_.tolist()
    assert [*map(repr, got)] == [*map(repr, ids.tolist())]
    assert np.array_equal(twin.predict(ids, 0), model.predict(ids, 0))


@pytest.mark.parametrize("one", [np.datetime64("NaT"), np.timedelta64("NaT"), float("nan")], ids=repr)
def test_ids_that_are_missing_are_not_saved(one, tmp_path):
    model = quick(k=2, maxiter=2).fit(sparse.csr_array(np.eye(2) + 1))
    model._fitted = replace(model._fitted, user_ids=Ids(np.array([one, "x"], dtype=object), 2, "user"))
    with pytest.raises(ValueError, match=r"user id .* is a missing value"):
        model.save(tmp_path / "model")


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "null", '["a"]', '["a", "a"]', '["a", null]', '["a", NaN]', '["a", ["b"]]', '["a", {}]',
        '[1, true]', '[1, 1.0]', '["a", {"bytes": 1}]', '["a", {"bytes": "\u0100"}]', '["a", {"tuple": "b"}]',
        '["a", {"tuple": [], "bytes": ""}]', '["a", {"date": [1, "M8[s]", 2]}]', '["a", {"date": [1, "i8"]}]',
        '["a", {"date": [1, "O"]}]', '["a", {"date": [true, "M8[ns]"]}]', '["a", {"date": [1e3, "M8[ns]"]}]',
        '["a", {"date": [9999999999999999999, "M8[s]"]}]', '["a", {"date": [-9223372036854775808, "M8[s]"]}]',
        '["a", {"date": [1, "M8"]}]', '["a", {"date": [1, "M8[0s]"]}]', '["a", ' + "[" * 100_000,
        '["a", ' + '{"tuple": [' * 100_000 + "]}" * 100_000 + "]", '["a", 1' + "0" * 5000 + "]", '["a", "b',
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_ids_that_are_none(text, tmp_path):
    model = quick(k=2, maxiter=2).fit(pd.DataFrame({"UserId": ["a", "b"], "ItemId": [1, 2], "Count": 1}))
    model.save(tmp_path / "model")
    given = np.frombuffer(text.encode(), dtype=np.uint8)
    rewritten(tmp_path / "model", lambda _, tensors: tensors.update({"user.ids": given}))
    with pytest.raises(ModelFileError, match="model has invalid contents"):
        HPF.load(tmp_path / "model")


parts = st.one_of(
    st.text(), st.integers(), st.booleans(), st.binary(), st.floats(allow_nan=False),
    st.text(st.characters(categories=["Cs"])),
)  # fmt: skip
ids = st.recursive(parts, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
some_ids = st.lists(ids, min_size=1, max_size=8, unique=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(users=some_ids, items=some_ids)
@example(users=["\ud800", "b"], items=["\ud800"])
def test_any_ids_come_back(users, items, tmp_path):
    rows = max(len(users), len(items))
    frame = pd.DataFrame({"UserId": pd.Series([users[j % len(users)] for j in range(rows)], dtype=object)})
    frame["ItemId"] = pd.Series([items[j % len(items)] for j in range(rows)], dtype=object)
    model = quick(k=2, maxiter=1).fit(frame.assign(Count=1.0))
    assert_same(saved(model, tmp_path / "model"), model)


KINDS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "M8[s]", "m8[ns]", ">i4", ">M8[s]"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), size=st.integers(1, 60))
def test_ids_of_any_dtype_come_back(kind, size, tmp_path):
    users = np.arange(size).astype(np.int64).astype(kind)
    frame = pd.DataFrame({"UserId": users, "ItemId": ["x"] * size, "Count": [1] * size})
    model = quick(k=2, maxiter=1).fit(frame)
    twin = saved(model, tmp_path / "model")
    assert twin.user_mapping_.dtype == model.user_mapping_.dtype.newbyteorder("=")
    assert np.array_equal(twin.user_mapping_, model.user_mapping_)
    assert not np.isnan(twin.predict(users, "x")).any()


def test_a_model_is_loaded_where_its_backend_is_missing(tmp_path, monkeypatch):
    model = quick(backend="numpy").fit(COUNTS)
    model.backend, model._fitted = "cuda", replace(model._fitted, backend="cuda")
    model.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "hpf_gpu.backends.cuda_backend", None)
    twin = HPF.load(tmp_path / "model")
    assert twin.backend == "cuda"
    assert twin.predict(100, 503) == pytest.approx(model.predict(100, 503), rel=1e-5)


# -- files -------------------------------------------------------------------------------------


def test_what_a_file_holds(tmp_path):
    model = quick().fit(COUNTS)
    model.save(str(tmp_path / "model"))
    tensors = load_file(tmp_path / "model")
    assert np.array_equal(tensors["Theta"], model.Theta)
    assert np.array_equal(tensors["user.ids"], model.user_mapping_)
    with safe_open(tmp_path / "model", framework="numpy") as file:
        header = json.loads(file.metadata()["hpf_gpu"])
    assert header["format"] == MODEL.format
    (tmp_path / "any file").touch()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "any file").stat().st_mode
    assert header["parameters"]["k"] == 3


def test_a_failure_leaves_the_file_that_is_there(tmp_path, monkeypatch):
    model = quick().fit(COUNTS)
    path = tmp_path / "model"
    model.save(path)
    before = path.read_bytes()
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def interrupt(*_arguments):
                raise KeyboardInterrupt

            patch.setattr(f"os.{function}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                quick(k=2).fit(COUNTS).save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    quick(k=2).fit(COUNTS).save(path)
    assert HPF.load(path).k == 2
    with pytest.raises(FileNotFoundError, match="nowhere is not an existing folder"):
        model.save(tmp_path / "nowhere" / "model")


def test_cut_files(tmp_path):
    quick().fit(COUNTS).save(tmp_path / "model")
    whole = (tmp_path / "model").read_bytes()
    for length in [*range(0, 2000, 97), *range(2000, len(whole), len(whole) // 9), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="cut is damaged"):
            HPF.load(tmp_path / "cut")
    (tmp_path / "long").write_bytes(whole + b"\0")
    with pytest.raises(ModelFileError, match="long is damaged"):
        HPF.load(tmp_path / "long")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_goes_unseen(data, tmp_path):
    path = tmp_path / "model"
    if not path.exists():
        quick(k=2, maxiter=1).fit(COUNTS[:40]).save(path)
    changed = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(changed) - 1) | st.integers(0, 3000))
    changed[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / "changed").write_bytes(changed)
    with pytest.raises(ModelFileError, match="changed"):
        HPF.load(tmp_path / "changed")


def test_other_files(tmp_path):
    path = tmp_path / "model"
    save_file({"x": np.ones(3)}, path)
    with pytest.raises(ModelFileError, match="model is a safetensors file, but not a model of hpf_gpu"):
        HPF.load(path)
    path.write_bytes(pickle.dumps(quick().fit(COUNTS)))
    with pytest.raises(ModelFileError, match="model is damaged, or not a model of hpf_gpu"):
        HPF.load(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        HPF.load(tmp_path / "nothing")
    with pytest.raises(OSError, match=r"(?i)directory|permission"):
        HPF.load(tmp_path)


def test_paths(tmp_path):
    """In any form that paths have; what is none, or no file, is an error that says so and returns at once."""
    model = quick().fit(COUNTS)
    for path in (str(tmp_path / "a"), tmp_path / "b", os.fsencode(tmp_path / "c"), tmp_path / ("d" * 255)):
        assert_same(saved(model, path), model)
    for action in (model.save, HPF.load):
        for wrong in (5, None, ["model"]):
            with pytest.raises(TypeError, match="path must be a path, not "):
                action(wrong)
        with pytest.raises(ValueError, match=r"path=.* contains a null character"):
            action("a\0b")
        with pytest.raises(OSError, match="name too long"):
            action(tmp_path / ("x" * 300))
        if hasattr(os, "mkfifo"):
            pipe = tmp_path / "pipe"
            pipe.exists() or os.mkfifo(pipe)
            with pytest.raises(OSError, match="pipe is a pipe, socket or device"):
                action(pipe)


def rewritten(path, change):
    """The same file with another header or other arrays, and the right checksum."""
    header, tensors = altered.read(path, "hpf_gpu")
    change(header, tensors)
    altered.write(path, "hpf_gpu", header, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, _: header.update(format=2, version="9"), "format 2, written by hpf_gpu 9;.*; update"),
        (lambda header, _: header["parameters"].update(magic=1), "does not know: magic; update hpf_gpu"),
        (lambda header, _: header.pop("format"), "header cannot be read"),
        (lambda header, _: header.pop("niter"), "field of header 'niter' is missing"),
        (lambda header, _: header.update(nusers="zz"), "header.nusers is 'zz', not an integer"),
        (lambda header, _: header["parameters"].update(a=-1.0), "a=-1.0 must lie between 1e-30 and 1e.30"),
        (lambda header, _: header["parameters"].update(save_folder="/tmp"), "folder is '/tmp', not None"),
        (lambda header, _: header["parameters"].update(use_float=False), "Theta is float32 .*, not float64"),
        (lambda _, tensors: tensors.pop("Beta"), "array 'Beta' is missing"),
        (lambda _, tensors: tensors.update({"user.ids": np.arange(3)}), r"int64 \(3,\), not \(60,\)"),
        (lambda _, tensors: tensors["user.ids"].fill(7), "user.ids have 59 duplicates"),
        (lambda _, tensors: tensors["Beta"].fill(np.nan), r"Beta\[0, 0\] is nan, not finite"),
        (lambda _, tensors: tensors["seen.indices"].fill(10**8), "seen.indices has 100000000, .* 40 items"),
    ],
    ids=[
        "newer", "parameter", "no-format", "no-niter", "nusers", "prior", "folder", "dtype", "no-beta", "ids",
        "twice", "nan", "seen",
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change, message, tmp_path):
    quick().fit(COUNTS).save(tmp_path / "model")
    rewritten(tmp_path / "model", change)
    with pytest.raises(ModelFileError, match=f"model .*{message}"):
        HPF.load(tmp_path / "model")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a":' * 100_000, '{"format": 1e999, "version": ""}', "", "null", "[]", '"format"',
        '{"format": 1}', '{"format": true, "version": ""}', '{"format": 1.0, "version": ""}',
        '{"format": 0, "version": ""}', '{"format": "1", "version": ""}', '{"format": 1, "version": 1}',
        '{"format": NaN, "version": ""}', '{"format": 1' + "0" * 5000 + ', "version": ""}',
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_headers_that_are_none(text, tmp_path):
    altered.write(tmp_path / "model", "hpf_gpu", text, {"Theta": np.ones((2, 2))})
    with pytest.raises(ModelFileError, match="model is damaged: its header cannot be read"):
        HPF.load(tmp_path / "model")


def test_the_checksum_is_of_names_types_and_shapes(tmp_path):
    """The same bytes under other names, of other types or in other shapes, with the checksum as it was."""
    path = tmp_path / "model"
    quick().fit(COUNTS).save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    swapped = {
        "user.column_sums": tensors["item.column_sums"],
        "item.column_sums": tensors["user.column_sums"],
    }
    cases = [
        swapped,
        {"history.iteration": tensors["history.iteration"].view(np.uint64)},
        {"user.rate_columns": tensors["user.rate_columns"][None, :]},
    ]
    for change in cases:
        save_file(tensors | change, path, metadata=metadata)
        with pytest.raises(ModelFileError, match="model is damaged: its checksum"):
            HPF.load(path)
    save_file(tensors, path, metadata={"hpf_gpu": metadata["hpf_gpu"]})
    with pytest.raises(ModelFileError, match="model is damaged: its checksum"):
        HPF.load(path)
    save_file(tensors, path, metadata=metadata | {"more": "that no checksum is of"})
    with pytest.raises(ModelFileError, match="metadata 'more' is not known"):
        HPF.load(path)
    save_file(tensors, path, metadata=metadata)
    HPF.load(path)


# -- files that are wrong in one place -----------------------------------------------------------


def with_users(**arguments):
    model = quick(**arguments).fit(COUNTS)
    model.add_users(COUNTS.assign(UserId=COUNTS.UserId + 1000))
    return model


def with_batches(model=None, counts=COUNTS, *, first="users", step_size=None, **arguments):
    model = quick(**arguments) if model is None else model
    for batch in (counts.iloc[:200], counts.iloc[200:]):
        model.partial_fit(batch, first, step_size, nusers=200, nitems=90)
    return model


def named(frame=COUNTS):
    days = pd.to_datetime(frame.ItemId, unit="D")
    return frame.assign(UserId="u\0\N{GREEK SMALL LETTER THETA}" + frame.UserId.astype(str), ItemId=days)


NUMBERED = COUNTS.assign(UserId=COUNTS.UserId - 100, ItemId=COUNTS.ItemId - 500)
FACTORS = np.random.default_rng(1).gamma(1.0, 1.0, (40, 3))
MODELS = {
    "all": lambda: quick(stop_crit="diff-norm", check_every=3).fit(COUNTS, COUNTS[::3]),
    "biases": lambda: quick(bias=True, hierarchical=False, use_float=False).fit(named()),
    "users added": with_users,
    "batches": lambda: with_batches(use_float=False),
    "lean": lambda: quick(keep_data=False, keep_all_objs=False).fit(COUNTS),
    "items known": lambda: quick(reindex=False).fit(NUMBERED, fixed_items=FACTORS),
    "users known": lambda: quick(reindex=False, bias=True, k=1).fit(NUMBERED, fixed_users=np.ones((60, 3))),
    "log1p": lambda: quick(counts="log1p").fit(COUNTS),
    "one factor, users added": lambda: with_users(k=1),
    "biases, users added": lambda: with_users(bias=True),
    "users replaced": lambda: with_users().add_users(COUNTS, update_existing=True),
    "matrix": lambda: quick().fit(sparse.csr_array(np.eye(5, 7))),
    "batches of items": lambda: with_batches(first="items"),
    "batches without a step": lambda: with_batches(step_size=0.0),
    "batches of numbers": lambda: with_batches(quick(reindex=False), NUMBERED),
    "batches after a fit": lambda: with_batches(with_users()),
    "a fit after batches": lambda: with_batches().fit(COUNTS),
    "stochastic": lambda: quick(users_per_batch=13, items_per_batch=7, schedule="alternating").fit(COUNTS),
    "far priors": lambda: quick(a=1e-3, b_prime=1e3, c=50.0, d_prime=1e-3, use_float=False).fit(COUNTS),
    "stopped": lambda: quick().fit(COUNTS, callback=lambda check: check.iteration == 3),
    "parameters changed": lambda: changed(
        a=5.0, maxiter=7, random_seed=None, keep_data=False, hierarchical=False, ncores=3
    ),
}


def changed(**parameters):
    model = quick().fit(COUNTS)
    vars(model).update(parameters)
    return model


@pytest.mark.filterwarnings("ignore:.*dropped")
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_every_kind_come_back(kind, tmp_path):
    model = MODELS[kind]()
    twin = saved(model, tmp_path / "model")
    assert_same(twin, model)
    assert twin.get_params() == model.get_params()


def is_another_model(path, value, header):
    """Whether a header with another value is that of another model: what makes no difference to the rest."""
    if path[0] == "parameters" and len(path) == 2 and value != "left out":
        given = header["parameters"]
        parameters = (
            given | {path[1]: value} | {"step_size": default_step_size if path[1] != "step_size" else value}
        )
        try:
            HPF(**parameters)
        except (TypeError, ValueError, OverflowError):
            return False
        settled = all(bool(given[name]) == bool(parameters[name]) for name in ("use_float", "bias"))
        same = all(parameters[name] == given[name] for name in ("k", "neighbours"))
        return settled and same and parameters["save_folder"] is None
    if path[0] == "parameters" and path[-1] in ("init", "user", "item", "count") and value == "left out":
        return True  # as in files of earlier versions
    number = type(value) is int and value in (0, 3)
    return {
        ("version",): value == "zz",
        ("train_llk",): value is None,
        ("random_seed_",): number,
        # A model without a history has been through any number of batches.
        ("niter",): number and value > 0 and header["train_llk"] is None,
    }.get(path, path[0] == "priors" and path[-1] in ("shape", "hyper_shape", "hyper_mean") and value == 0.5)


def are_those_of_another_model(name, change, tensors, before, header):
    """Whether arrays of which one was altered are those of another model."""
    if change in ("left out", "added") or tensors[name].shape != before[name].shape:
        return False
    array = tensors[name]
    kind, same_type = array.dtype.kind, array.dtype == before[name].dtype
    finite = kind != "f" or bool(np.isfinite(array).all())
    if name.endswith(".ids"):
        encoding = header["ids"][name.split(".")[0]]
        if encoding == "json" or (encoding != "array" and not same_type):
            return False
        ids = array if encoding == "array" else array.view(encoding)
        return bool((ids == ids).all()) and len(np.unique(ids)) == len(ids)
    if name.startswith("seen."):
        return array.dtype == np.int64 and np.array_equal(array, before[name])
    if name in ("history.val_llk", "history.diff_norm"):
        return (
            same_type and not np.isinf(array).any() and (name == "history.val_llk" or not (array < 0).any())
        )
    if name == "history.seconds":
        return same_type and finite and bool((np.diff(array) >= 0).all() and array[0] >= 0)
    if name == "history.llk":
        return same_type and finite and array[-1] == before[name][-1]
    if name == "history.elbo":
        return same_type and not np.isinf(array).any() and np.isfinite(array[-1])
    if name.endswith(".hyper_rate"):
        return same_type and finite and bool((array > 0).all())
    # Without shapes and rates nothing tells what the means must be.
    return (
        name in ("Theta", "Beta") and "user.shape" not in tensors and same_type and change.startswith("zero")
    )


def attempt(path, header, tensors):
    """The error that loading ends with, if any."""
    altered.write(path, "hpf_gpu", header, tensors)
    try:
        HPF.load(path)
    except ModelFileError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["all", "biases", "users added", "batches", "lean"])
def test_every_field_and_array_is_checked(kind, tmp_path):
    """Files that are wrong in one place, with the right checksum: errors that name the place."""
    path = tmp_path / "model"
    MODELS[kind]().save(path)
    header, tensors = altered.read(path, "hpf_gpu")
    wrong = 0
    for place, value, other in altered.headers(header):
        if kind != "all" and place[0] == "parameters" and len(place) > 1:
            continue
        error = attempt(path, other, tensors)
        if is_another_model(place, value, header):
            assert error is None, (place, value)
        else:
            wrong += 1
            assert error is not None, (place, value)
            assert str(path) in error
            # Some fields say what arrays are like.
            places = (place[-1], "header.priors", "user.rate", "item.rate", "weights.", *tensors)
            assert any(name in error for name in places), (place, value, error)
    for (name, change), others in altered.arrays(tensors):
        error = attempt(path, header, others)
        if are_those_of_another_model(name, change, others, tensors, header):
            assert error is None, (name, change)
        else:
            wrong += 1
            assert error is not None, (name, change)
            assert str(path) in error
    assert wrong > 300


#: What the index arrays of scipy and of the kernels must never see, and what became of it.
CRASHES = {
    "large": lambda tensors: tensors["seen.indices"].fill(10**8),  # SIGSEGV in scipy
    "negative": lambda tensors: tensors["seen.indices"].fill(-10),  # a double free
    "long": lambda tensors: tensors["seen.indptr"].fill(2**31 - 1),
    "backwards": lambda tensors: tensors["seen.indptr"].sort() or tensors["seen.indptr"][1:-1][::-1].sort(),
}


def test_what_would_corrupt_memory_is_refused(tmp_path):
    """In a process of its own, whose last line names the file before the one that has ended it."""
    quick().fit(COUNTS).save(tmp_path / "whole")
    for kind, spoil in CRASHES.items():
        shutil.copy(tmp_path / "whole", tmp_path / kind)
        rewritten(tmp_path / kind, lambda _, tensors, spoil=spoil: spoil(tensors))
    COUNTS.to_csv(tmp_path / "counts", index=False)
    code = f"""
import pandas as pd
from hpf_gpu import HPF, ModelFileError
for kind in {list(CRASHES)}:
    try:
        model = HPF.load(kind)
    except ModelFileError as error:
        print("refused:", error, flush=True)
    else:
        print("taken:", kind, flush=True)
        model.partial_fit(pd.read_csv("counts"))
        model.topN(100, n=3)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for kind, line in zip(CRASHES, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"refused: {kind} has invalid contents: seen.")


def test_index_arrays_of_either_type_are_taken(backend_name, tmp_path):
    model = quick(backend=backend_name).fit(COUNTS)
    model.save(tmp_path / "model")
    header, tensors = altered.read(tmp_path / "model", "hpf_gpu")
    for indptr, indices in itertools.product(("int32", "int64"), repeat=2):
        given = {"seen.indptr": tensors["seen.indptr"].astype(indptr)}
        given["seen.indices"] = tensors["seen.indices"].astype(indices)
        altered.write(tmp_path / "other", "hpf_gpu", header, tensors | given)
        twin = HPF.load(tmp_path / "other")
        assert_same(twin, model)
        twin.partial_fit(COUNTS)
        twin.add_user(7, of_user(103))
        assert twin.topN([7, 100], n=3).shape == (2, 3)


def test_a_model_that_nobody_could_load_is_not_saved(tmp_path):
    """Parameters that the arrays depend on were changed after the fit."""
    path = tmp_path / "model"
    path.write_text("precious")
    for parameters, message in (
        ({"k": 4}, r"Theta is float32 \(60, 3\), not \(N, 4\)"),
        ({"use_float": False}, "Theta is float32 .*, not float64"),
        ({"bias": True}, "bias=True and k=3 are not those of the fit"),
        ({"bias": True, "k": 1}, "bias=True and k=1 are not those of the fit"),
        ({"a": -1.0}, "a=-1.0 must lie between"),
    ):
        with pytest.raises(ValueError, match=f"cannot be saved.*{message}"):
            changed(**parameters).save(path)
    assert path.read_text() == "precious"


def test_unfitted_models_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="call fit first"):
        HPF().save(tmp_path / "model")


# -- other ways to keep a model ------------------------------------------------------------------


def test_pickles_and_copies(tmp_path):
    model = quick().fit(COUNTS)
    model.add_user("ann", of_user(100))
    assert model.topN("ann", n=3).tolist() == model.topN(100, n=3).tolist()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert_same(twin, model)
        twin.add_user("bob", of_user(101))
        assert (twin.nusers, model.nusers) == (62, 61)
        assert "bob" not in model.user_dict_


def test_joblib(tmp_path):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    model = quick().fit(COUNTS)
    joblib.dump(model, tmp_path / "model")
    assert_same(joblib.load(tmp_path / "model"), model)


def test_seen_is_hpfrecs():
    """All users' item numbers in one array, users in the order of their rows."""
    model = quick().fit(COUNTS)
    items = pd.factorize(COUNTS.ItemId)[0]
    want = [np.sort(items[(user == COUNTS.UserId).to_numpy()]) for user in model.user_mapping_]
    assert np.array_equal(model.seen, np.concatenate(want))
    assert not hasattr(quick(keep_data=False).fit(COUNTS), "seen")
    assert not hasattr(HPF(), "seen")


def test_ids_of_decimals_are_told_from_floats(tmp_path):
    frame = pd.DataFrame({"UserId": [Decimal("0.5"), 2.5], "ItemId": ["x", "y"], "Count": 1})
    with pytest.raises(TypeError, match="Decimal"):
        quick().fit(frame).save(tmp_path / "model")


def test_files_without_a_later_parameter(tmp_path):
    """A file of an earlier version lacks it: the model has what fits then had."""
    path = tmp_path / "model"
    quick(init="svd").fit(COUNTS).save(path)
    assert HPF.load(path).init == "svd"
    rewritten(path, lambda header, _: [header["parameters"].pop(name) for name in ("init", "user", "count")])
    assert HPF.load(path).init == "hpfrec"
    assert HPF.load(path).get_params()["user"] == "UserId"
    assert HPF.load(path).get_params()["count"] == "Count"


def test_folders_stay_on_their_machine(tmp_path):
    """However they were given."""
    for folder in (tmp_path, str(tmp_path)):
        quick(save_folder=folder).fit(COUNTS).save(tmp_path / "model")
        assert HPF.load(tmp_path / "model").save_folder is None


def test_texts_and_bytes_of_numpy_are_ids(tmp_path):
    users = np.array([np.str_("ann"), np.bytes_(b"\xff"), np.int8(3), np.bool_(False)], dtype=object)
    model = quick().fit(pd.DataFrame({"UserId": users, "ItemId": list("xyxy"), "Count": 1}))
    model.save(tmp_path / "model")
    loaded = HPF.load(tmp_path / "model")
    assert loaded.user_mapping_.tolist() == ["ann", b"\xff", 3, False]
    assert {type(one) for one in loaded.user_mapping_} == {str, bytes, int, bool}
    for one in users:
        assert loaded.predict(one, "x") == model.predict(one, "x")


def test_a_mean_far_down_is_found_and_named(tmp_path):
    rows = 3000
    matrix = sparse.csr_array((np.ones(rows), np.arange(rows) % 7, np.arange(rows + 1)), shape=(rows, 7))
    quick(maxiter=2).fit(matrix).save(tmp_path / "model")
    header, tensors = altered.read(tmp_path / "model", "hpf_gpu")
    tensors["Theta"][2500, 1] *= 1.01
    altered.write(tmp_path / "model", "hpf_gpu", header, tensors)
    with pytest.raises(ModelFileError, match=r"Theta\[2500, 1\] is .* from the mean of its posterior"):
        HPF.load(tmp_path / "model")


def test_arrays_begin_where_their_numbers_may(tmp_path):
    """At whole numbers of their size from the beginning of the file, so that it can be mapped."""
    for size in range(1, 9):  # header and ids of any length
        users = pd.Series(["u" * size * (1 + user % 3) + str(user) for user in COUNTS.UserId])
        quick(k=3).fit(COUNTS.assign(UserId=users.to_numpy())).save(tmp_path / "model")
        content = (tmp_path / "model").read_bytes()
        length = int.from_bytes(content[:8], "little")
        layout = json.loads(content[8 : 8 + length])
        del layout["__metadata__"]
        for name, array in layout.items():
            itemsize = np.dtype(load_file(tmp_path / "model")[name].dtype).itemsize
            assert (8 + length + array["data_offsets"][0]) % itemsize == 0, name
