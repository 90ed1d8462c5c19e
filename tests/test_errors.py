"""What is wrong is said, with the value and what to do; nothing is read or written outside arrays."""

from __future__ import annotations

import itertools
import pickle
import re
import subprocess
import sys

import conftest
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse

from hpf_gpu import HPF, BackendUnavailable, NotEnoughMemory, backends


def frame(**columns):
    return pd.DataFrame(
        {"UserId": ["a", "b", "c"], "ItemId": ["x", "y", "x"], "Count": [1.0, 2.0, 3.0]} | columns
    )


def numbered(**columns):
    return frame(UserId=[0, 1, 2], ItemId=[0, 1, 0]).assign(**columns)


BAD_DATA = {
    "negative": (frame(Count=[1, -2, 3]), ValueError, r"count -2.* in row 1"),
    "nan": (frame(Count=[1, np.nan, 3]), ValueError, r"count nan.* in row 1"),
    "infinite": (frame(Count=[1, 2, np.inf]), ValueError, r"count inf.* in row 2"),
    "overflow": (frame(Count=[1, 2, 1e60]), ValueError, r"count 1e\+60|float32 holds"),
    "too-large": (frame(Count=[1, 2, 1e20]), ValueError, "float32 holds"),
    "indexed": (
        frame().set_index(["UserId", "ItemId"]),
        ValueError,
        r"'UserId' in its index, not in a column: pass counts_df.reset_index\(\)",
    ),
    "series": (frame().set_index(["UserId", "ItemId"]).Count, TypeError, r"pass series.reset_index\(\)"),
    "string-counts": (frame(Count=["1", "2", "3"]), ValueError, "strings, the first is '1': .*to_numeric"),
    "object-counts": (frame(Count=pd.Series(["1", None, "3"], dtype=object)), ValueError, "are strings"),
    "word-count": (np.array([["a", "x", "1"], ["b", "y", "two"]]), ValueError, "count 'two' is not a number"),
    "none-count": (frame(Count=[1, None, 3]).astype(object), ValueError, "in row 1"),
    "complex": (frame(Count=[1j, 2, 3]), ValueError, "not a number"),
    "dates": (frame(Count=pd.date_range("2020", periods=3)), ValueError, "not a number"),
    "no-user": (frame(UserId=["a", None, "c"]), ValueError, "1 user ids are missing, the first in row 1"),
    "no-item": (frame(ItemId=[np.nan, 1.0, 2.0]), ValueError, "item ids are missing, the first in row 0"),
    "unhashable": (frame(UserId=[["a"], ["b"], ["c"]]), TypeError, "user ids must be hashable"),
    "arrow-lists": (
        frame(UserId=pd.arrays.ArrowExtensionArray(pa.array([[1], [2], [3]]))),
        TypeError,
        "user ids must be hashable",
    ),
    "no-column": (
        frame().rename(columns={"ItemId": "item"}),
        ValueError,
        "no column 'ItemId'.* has 'UserId', 'item'",
    ),
    "two-columns": (frame()[["UserId", "ItemId", "Count", "Count"]], ValueError, "several columns 'Count'"),
    "empty-frame": (frame().iloc[:0], ValueError, "empty"),
    "empty-columns": (pd.DataFrame(columns=["UserId", "ItemId", "Count"]), ValueError, "counts_df is empty"),
    "no-counts": (frame(Count=pd.Series([None] * 3, dtype=object)), ValueError, "count None in row 0"),
    "all-zero": (frame(Count=[0, 0, 0]), ValueError, "no count above zero"),
    "dense": (np.ones((5, 7)), ValueError, r"shape \(5, 7\).*scipy.sparse.csr_array"),
    "vector": (np.ones(5), ValueError, r"shape \(5,\)"),
    "empty-array": (np.ones((0, 3)), ValueError, "empty"),
    "list": ([["a", "x", 1]], TypeError, "not list"),
    "nothing": (None, TypeError, "not NoneType"),
    "sparse-negative": (sparse.csr_array([[1, -3.0]]), ValueError, r"count -3"),
    "sparse-nan": (sparse.coo_array([[1, np.nan]]), ValueError, "count nan"),
    "sparse-zero": (sparse.csr_array((3, 4)), ValueError, "no count above zero"),
    "sparse-shapeless": (sparse.csr_array((0, 4)), ValueError, r"shape \(0, 4\)"),
    "sparse-1d": (sparse.coo_array(np.array([1, 2])), ValueError, r"shape \(2,\)"),
}


@pytest.mark.filterwarnings(
    "ignore:.*counts of zero:UserWarning", "ignore:overflow encountered:RuntimeWarning"
)
@pytest.mark.parametrize("case", sorted(BAD_DATA))
def test_bad_data(case):
    data, kind, message = BAD_DATA[case]
    model = HPF(k=2, verbose=False)
    with pytest.raises(kind, match=message):
        model.fit(data)
    assert not model.is_fitted


def broken_matrices():
    """Matrices whose arrays point outside them; scipy makes them without complaint."""
    for index in (5, 10**8, -5):
        yield sparse.csr_array((np.ones(2), np.array([0, index]), np.array([0, 1, 2])), shape=(2, 3))
        yield sparse.csc_matrix((np.ones(2), np.array([0, index]), np.array([0, 1, 2, 2])), shape=(2, 3))
        coo = sparse.coo_array((np.ones(2), (np.array([0, 1]), np.array([0, 1]))), shape=(2, 3))
        coo.coords[1][0] = index
        yield coo
    yield sparse.csr_array((np.ones(2), np.array([0, 1]), np.array([0, 2, 1])), shape=(2, 3))


@pytest.mark.parametrize("broken", list(broken_matrices()), ids=lambda matrix: matrix.format)
def test_matrices_that_point_outside_themselves(broken):
    with pytest.raises(ValueError, match="sparse matrix"):
        HPF(k=2, verbose=False).fit(broken)
    whole = sparse.csr_array(np.ones((2, 3)))
    with pytest.raises(ValueError, match="sparse matrix"):
        HPF(k=2, verbose=False).fit(whole, val_set=broken)


def test_the_compiled_module_trusts_no_caller():
    openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    good = np.array([0, 1, 2]), np.array([0, 2]), np.ones(2)
    openmp.Counts64(3, *good, 4, 1)
    for indptr, indices in (
        ([0, 1, 2], [0, 3]), ([0, 1, 2], [0, -1]), ([0, 3, 2], [0, 1]), ([0, 2], [1, 0]), ([1, 1, 2], [0, 1]),
        ([0, 2], [1, 1]), ([0, 1, 1], [0, 1]), ([0, 1, 3], [0, 1]), ([0, -1, 2], [0, 1]), ([0], [0, 1]),
    ):  # fmt: skip
        for index, counts in itertools.product((np.int32, np.int64), (openmp.Counts32, openmp.Counts64)):
            values = np.ones(2, np.float32 if counts is openmp.Counts32 else np.float64)
            with pytest.raises(ValueError, match="CSR"):
                counts(3, np.array(indptr, index), np.array(indices, index), values, 4, 1)
    ones, pair = np.ones((2, 3), np.float32), np.zeros(1, np.int64)
    with pytest.raises(TypeError, match="incompatible function arguments"):  # never a silent copy
        openmp.predict_pairs(ones, ones, pair, pair, np.empty(1), 1)
    out = np.empty(1, np.float32)
    openmp.predict_pairs(ones, ones, pair + 1, pair + 1, out, 1)
    for row, column in ((-1, 0), (2, 0), (0, -1), (0, 2)):
        with pytest.raises(IndexError, match="a pair lies outside the matrices"):
            openmp.predict_pairs(ones, ones, pair + row, pair + column, out, 1)


def test_the_compiled_ranking_trusts_no_caller():
    openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    theta, beta = np.ones((2, 3)), np.ones((4, 3))
    columns, scores = np.empty((2, 5), np.int64), np.empty((2, 5))
    good, added = (np.array([0, 1, 2]), np.array([0, 3])), (None,) * 5
    openmp.top_items(theta, beta, None, None, *good, *added, columns, scores, 1)
    for indptr, indices in (
        ([0, 1, 2], [0, 4]), ([0, 1, 2], [0, -1]), ([0, 3, 2], [0, 1]), ([0, 2], [0, 1]), ([1, 1, 2], [0, 1]),
        ([0, 1, 3], [0, 1]), ([0, 0, 2], [1, 0]), ([0, 0, 2], [1, 1]), ([0, -1, 2], [0, 1]), ([], []),
    ):  # fmt: skip
        bad = np.array(indptr, dtype=np.int64), np.array(indices, dtype=np.int64)
        with pytest.raises(ValueError, match="excluded items"):
            openmp.top_items(theta, beta, None, None, *bad, *added, columns, scores, 1)
    for one in ((good[0], None), (None, good[1])):
        with pytest.raises(ValueError, match="excluded items"):
            openmp.top_items(theta, beta, None, None, *one, *added, columns, scores, 1)
    for arrays in (
        (theta, beta[:, :2].copy(), columns, scores),
        (np.asfortranarray(theta), beta, columns, scores),
        (theta, beta[:, ::2], columns, scores),
        (theta, beta, columns[:1], scores),
        (theta, beta, columns, scores[:1]),
        (theta, beta, columns[:, :4].copy(), scores),
        (theta, beta, columns[:, :0].copy(), scores[:, :0].copy()),
        (theta[:, :0].copy(), beta[:, :0].copy(), columns, scores),
    ):
        with pytest.raises(ValueError, match=r"length|rows|factors"):
            openmp.top_items(*arrays[:2], None, None, None, None, *added, *arrays[2:], 1)
    with pytest.raises(ValueError, match="threads"):
        openmp.top_items(theta, beta, None, None, None, None, *added, columns, scores, 0)
    for wrong in (
        (theta, beta, columns.astype(np.int32), scores),
        (theta, beta, columns, scores.astype(np.float32)),
        (theta, beta, columns, np.asfortranarray(scores)),
    ):
        with pytest.raises(TypeError, match="incompatible function arguments"):  # never a silent copy
            openmp.top_items(*wrong[:2], None, None, None, None, *added, *wrong[2:], 1)


def test_items_to_leave_out_that_do_not_exist():
    """Checked by block of users in the compiled module, whatever slicing made of them before."""
    openmp = pytest.importorskip("hpf_gpu.backends.openmp_backend", reason="the compiled module is missing")
    backend, ones = openmp.OpenMPBackend(np.dtype(np.float32)), np.ones((2, 3), np.float32)
    for indptr, indices in (([0, 1, 2], [0, 2]), ([0, 1, 9], [0, 1]), ([0, 1], [0]), ([0, 2, 1], [0, 1])):
        with pytest.raises(ValueError, match="excluded items"):
            backend.top_items(ones, ones, 2, (np.array(indptr), np.array(indices)))


BAD_NUMBERS = {
    "negative": (numbered(UserId=[0, -1, 2]), "user id -1 "),
    "fraction": (numbered(ItemId=[0, 0.5, 2]), "item id 0.5 "),
    "text": (numbered(UserId=["0", "1", "2"]), "user id '0' is not a number"),
    "mixed": (numbered(UserId=[0, "one", 2]), "user id 'one' is not a number"),
    "missing": (numbered(UserId=[0, np.nan, 2]), "1 user ids are missing"),
    "infinite": (numbered(UserId=[0, np.inf, 2]), "user id inf "),
    "huge": (numbered(UserId=[0, 2**60, 2]), "factor matrix of"),
    "dates": (numbered(UserId=pd.date_range("2020", periods=3)), "is not a number"),
    "endless": (numbered(UserId=np.array([0, 10**400, 2], dtype=object)), "user id 1000"),
    "complex": (numbered(UserId=[0, 1j, 2]), "is not a number"),
    "beyond": (numbered(UserId=[0, 1e300, 2]), "user id 1e.300 "),
}


@pytest.mark.parametrize("case", sorted(BAD_NUMBERS))
def test_ids_that_are_not_row_numbers(case):
    data, message = BAD_NUMBERS[case]
    with pytest.raises(ValueError, match=message) as caught:
        HPF(k=2, reindex=False, verbose=False).fit(data)
    assert "reindex=True" in str(caught.value)


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0.0, 1.0, 2.0], np.array([0, 1, 2], dtype=object)])
def test_row_numbers(numbers):
    model = HPF(k=2, reindex=False, verbose=False, maxiter=3).fit(numbered(UserId=numbers))
    assert model.nusers == 3
    assert model.predict(2, 1) > 0


BAD_PARAMETERS = [
    ({"k": 0}, ValueError, "k=0 leaves the factors out: set neighbours"),
    ({"k": 2.5}, ValueError, "k=2.5"),
    ({"k": "30"}, TypeError, "k must be an integer, not '30'"),
    ({"k": True}, TypeError, "not True"),
    ({"k": None}, TypeError, "not None"),
    ({"k": 10**400}, ValueError, "k=1000.* must be at most"),
    ({"a": 0}, ValueError, "a=0 must lie between 1e-30 and 1e.30"),
    ({"a": 1e39}, ValueError, "a=1e.39 must lie between"),
    ({"c_prime": 1e-300}, ValueError, "c_prime=1e-300"),
    ({"d_prime": 10**400}, ValueError, "d_prime=1000"),
    ({"a_prime": -1.0}, ValueError, "a_prime=-1.0"),
    ({"b_prime": np.nan}, ValueError, "b_prime=nan"),
    ({"c": np.inf}, ValueError, "c=inf"),
    ({"c_prime": "x"}, TypeError, "c_prime must be a number"),
    ({"d_prime": None}, TypeError, "d_prime must be a number"),
    ({"ncores": 1.5}, ValueError, "ncores=1.5"),
    ({"stop_crit": "train_llk"}, ValueError, "'train_llk' is unknown; choose one of 'maxiter', 'train-llk'"),
    ({"stop_crit": "maxiter", "maxiter": None}, ValueError, "needs a number of iterations: maxiter is None"),
    ({"check_every": None}, ValueError, "needs a number of iterations: check_every is None"),
    ({"check_every": 0}, ValueError, "check_every=0"),
    ({"maxiter": 0}, ValueError, "maxiter=0"),
    ({"stop_thr": 0}, ValueError, "stop_thr=0"),
    ({"users_per_batch": 0}, ValueError, "users_per_batch=0"),
    ({"items_per_batch": "x"}, TypeError, "items_per_batch"),
    ({"step_size": 0.1}, TypeError, "step_size must be a function"),
    ({"step_size": lambda: 0.1}, TypeError, "iteration number"),
    ({"step_size": lambda i: 2.0}, ValueError, r"step_size\(0\) is 2.0"),
    ({"random_seed": -1}, ValueError, "random_seed=-1"),
    ({"random_seed": "x"}, TypeError, "random_seed"),
    ({"save_folder": 5}, TypeError, "save_folder must be a path"),
    ({"stop_crit": pd.NA}, TypeError, "stop_crit must be a name"),
    ({"save_folder": "no/such/folder"}, ValueError, "no/such/folder"),
    ({"use_float": "yes"}, TypeError, "use_float must be True or False"),
    ({"backend": None}, TypeError, "backend must be a name"),
    ({"schedule": "both"}, ValueError, "schedule='both'"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD_PARAMETERS, ids=lambda value: str(value)[:40])
def test_bad_parameters(given, kind, message):
    with pytest.raises(kind, match=message):
        HPF(**given)
    model = HPF(verbose=False)
    for name, value in given.items():
        setattr(model, name, value)
    with pytest.raises(kind, match=message):
        model.fit(frame())


def test_categories_are_what_they_stand_for():
    plain = HPF(k=2, verbose=False, random_seed=1, reindex=False).fit(numbered())
    named = HPF(k=2, verbose=False, random_seed=1, reindex=False).fit(numbered().astype("category"))
    assert np.array_equal(plain.Theta, named.Theta)


def test_settings_that_break_after_the_fit():
    model = HPF(k=2, verbose=False).fit(frame())
    model.ncores = "x"
    with pytest.raises(TypeError, match="ncores must be an integer"):
        model.predict("a", "x")


def test_more_threads_than_a_machine_has():
    users = np.arange(60_000)
    many = pd.DataFrame({"UserId": users, "ItemId": users % 3, "Count": 1 + users % 2})
    model = HPF(k=2, verbose=False, reindex=False, ncores=100_000, maxiter=2).fit(many)
    assert np.isfinite(model.Theta).all()


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend='fast' is unknown; choose 'auto' or one of"):
        HPF(backend="fast", verbose=False).fit(frame())


def test_explicit_backends_never_fall_back(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "hpf_gpu._openmp", None)
    monkeypatch.delitem(sys.modules, "hpf_gpu.backends.openmp_backend", raising=False)
    monkeypatch.setattr("hpf_gpu.backends._loaded", {})
    with pytest.raises(BackendUnavailable, match="compiled module is missing"):
        HPF(backend="openmp", verbose=False).fit(frame())
    monkeypatch.setattr("hpf_gpu.backends._announced", set())
    conftest.only_backends(monkeypatch, "openmp", "numpy")  # whatever GPU is here
    with pytest.warns(
        RuntimeWarning, match="'auto' took 'numpy', not openmp: the compiled module is missing"
    ) as warned:
        model = HPF(verbose=False, k=2).fit(frame())
    assert [warning.filename for warning in warned] == [__file__]
    assert model.backend_ == "numpy"
    HPF(verbose=False, k=2).fit(frame())  # said once: a second warning would be an error here


def test_hardware_that_is_not_there_is_no_reason_to_warn(monkeypatch, caplog):
    from hpf_gpu import backends

    def create(name, dtype, threads=None, *, really=backends.create):
        if name == "numpy":
            return really(name, dtype, threads)
        raise BackendUnavailable("no such card", remedy="buy one", expected=name == "absent")

    monkeypatch.setattr(backends, "create", create)
    monkeypatch.setattr(backends, "_announced", set())
    conftest.only_backends(monkeypatch, "absent", "numpy")
    with caplog.at_level("INFO", logger="hpf_gpu"):
        assert backends.choose("auto", np.float32).name == "numpy"  # a warning would be an error here
    assert "backend absent is not for this machine: no such card" in caplog.messages
    assert f"backend numpy: numpy {np.__version__}, float32" in caplog.messages
    caplog.clear()
    with caplog.at_level("INFO", logger="hpf_gpu"):
        backends.choose("auto", np.float32)
    assert not caplog.messages  # said once
    monkeypatch.setattr(backends, "_announced", set())
    conftest.only_backends(monkeypatch, "absent", "broken", "numpy")
    with pytest.warns(RuntimeWarning) as warned:
        backends.choose("auto", np.float32)
    told = "backend 'auto' took 'numpy', not broken: no such card; to fix it: buy one"
    assert [str(warning.message) for warning in warned] == [told]
    conftest.only_backends(monkeypatch, "absent", "broken")
    with pytest.raises(BackendUnavailable, match="absent: no such card; to fix it: buy one; broken: no such"):
        backends.choose("auto", np.float32)


def test_auto_passes_over_a_backend_that_takes_fewer_factors(monkeypatch):
    from hpf_gpu import backends

    tried = []

    def create(name, dtype, threads=None, *, really=backends.create):
        tried.append(name)
        return really("numpy", dtype, threads)

    monkeypatch.setattr(backends, "create", create)
    backends.choose("auto", np.float32, k=1024)
    backends.choose("auto", np.float32, k=1025)
    assert tried == ["cuda", "openmp"]


def test_the_choice_of_a_backend(monkeypatch):
    """By name or, for 'auto', the first that works among those allowed; options are the cuda backend's."""
    made = []

    class Made:
        def __init__(self, name, dtype, **settings):
            if name in broken:
                raise BackendUnavailable("no", expected=True)
            self.name = name
            made.append((name, dtype, settings))

        def describe(self):
            return self.name

    def load(name):
        return lambda *arguments, **settings: Made(name, *arguments, **settings)

    broken, double = set(), np.dtype(np.float64)
    monkeypatch.setattr(backends, "_load", load)
    monkeypatch.setattr(backends, "_announced", set(backends.NAMES))
    for name in ("auto", "cuda", "openmp", "numpy"):
        backends.choose(name, np.float64, 3, k=2000)
    backends.choose("auto", "float32", 5)
    openmp, numpy = ("openmp", double, {"threads": 3}), ("numpy", double, {})
    assert made == [openmp, ("cuda", double, {}), openmp, numpy, ("cuda", np.dtype("f4"), {})]
    made.clear()
    broken.add("cuda")
    backends.choose("auto", np.float64, 3)
    backends.choose("auto", np.float64, 3, among=("numpy", "openmp"))
    backends.choose("auto", np.float64, among=backends.ON_HOST)
    assert made == [openmp, numpy, ("openmp", double, {"threads": None})]
    with pytest.raises(BackendUnavailable):
        backends.choose("auto", np.float64, among=("cuda",))
    with pytest.raises(BackendUnavailable):
        backends.choose("cuda", np.float64)
    with pytest.raises(BackendUnavailable):  # who asks for an option asks for the backend that has it
        backends.choose("auto", np.float64, precision="mixed")
    broken.clear()
    made.clear()
    backends.choose("auto", np.float64, 3, precision="mixed")
    backends.create("cuda", np.float64, 3, allocate="cusparse")
    assert made == [("cuda", double, {"precision": "mixed"}), ("cuda", double, {"allocate": "cusparse"})]
    for name in backends.ON_HOST:
        for make in (backends.create, backends.choose):
            with pytest.raises(
                ValueError, match=f"^allocate, x: options of the cuda backend, which '{name}'"
            ):
                make(name, np.float64, allocate="fused", x=1)
    with pytest.raises(ValueError, match=r"backend='auto' is unknown; .*'cuda', 'openmp', 'numpy', or "):
        backends.create("auto", np.float64)


def test_the_choice_of_a_device(monkeypatch):
    """By its number behind the backend's name, also with options; only backends of devices take one."""
    made = []

    def load(name):
        return lambda dtype, **settings: made.append((name, settings))

    monkeypatch.setattr(backends, "_load", load)
    backends.create("cuda:0", np.float32)
    backends.choose("cuda:12", np.float32, 3, k=2000, precision="mixed")
    assert made == [("cuda", {"device": 0}), ("cuda", {"precision": "mixed", "device": 12})]
    for name in (
        "cuda:",
        "cuda:-1",
        "cuda:one",
        "cuda:1.0",
        "cuda:²",
        "cuda:1:2",
        "openmp:0",
        "auto:1",
        ":0",
    ):
        with pytest.raises(ValueError, match=f"^backend='{name}' is unknown; .* as in 'cuda:1'$"):
            backends.create(name, np.float32)
        with pytest.raises(ValueError, match=f"^backend='{name}' is unknown"):
            HPF(backend=name, precision="mixed", verbose=False).fit(frame())
    assert len(made) == 2


def test_an_unavailable_backend_travels_between_processes():
    error = pickle.loads(pickle.dumps(BackendUnavailable("no card", remedy="buy one", expected=True)))
    assert str(error) == "no card; to fix it: buy one"
    assert (error.problem, error.remedy, error.expected) == ("no card", "buy one", True)
    assert str(BackendUnavailable("no card")) == "no card"


def test_val_set():
    with pytest.raises(ValueError, match=r"val_set=\.\.\."):
        HPF(stop_crit="val-llk", verbose=False).fit(frame())
    with pytest.raises(ValueError, match="no count whose user and item are both"):
        HPF(verbose=False).fit(frame(), val_set=frame(UserId=["q", "r", "s"]))
    with pytest.raises(ValueError, match="val_set has no column"):
        HPF(verbose=False).fit(frame(), val_set=frame()[["UserId", "Count"]])


# -- backends ----------------------------------------------------------------------------------

AUTO_IN_THREADS = """
import sys, threading
import numpy as np
from hpf_gpu import backends

sys.setswitchinterval(1e-6)
names, wrong, start = [], [], threading.Barrier(8)

def choose():
    start.wait()
    for _ in range(40):
        try:
            names.append(backends.choose("auto", np.float32).name)
        except Exception as error:
            wrong.append(repr(error))

threads = [threading.Thread(target=choose) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(names), len(set(names)), wrong[:1])
"""


def test_auto_in_threads():
    """Where CuPy does not load, and its failure must not show in other threads as a half-made module."""
    ran = subprocess.run([sys.executable, "-c", AUTO_IN_THREADS], capture_output=True, text=True, check=True)
    assert ran.stdout.split(maxsplit=2) == ["320", "1", "[]\n"]


def test_a_backend_that_does_not_load_is_tried_once(monkeypatch):
    tried, reason = [], OSError("no file")

    def fails(name, package):
        tried.append(name)
        raise BackendUnavailable("no GPU", remedy="buy one", expected=True) from reason

    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "import_module", fails)
    raised = []
    for _ in range(3):
        with pytest.raises(BackendUnavailable, match=r"^no GPU; to fix it: buy one$") as caught:
            backends.create("cuda", np.float32)
        raised.append(caught.value)
        assert caught.value.__cause__ is reason
    assert tried == [".cuda_backend"]
    assert len(set(map(id, raised))) == 3
    assert all(error.expected for error in raised)


# -- less usual data ---------------------------------------------------------------------------


def with_counts_as(matrix, dtype):
    """The matrix with counts of a type that SciPy's own functions refuse."""
    matrix = matrix.copy()
    matrix.data = matrix.data.astype(dtype)
    return matrix


@pytest.mark.parametrize("dtype", [">f8", ">i4", np.float16, object])
@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix, sparse.coo_array])
def test_matrices_of_types_that_scipy_refuses(form, dtype):
    plain = form(np.array([[1.0, 2.0, 0.0], [0.0, 4.0, 3.0]]))
    strange = with_counts_as(plain, dtype)
    fits = [HPF(k=2, verbose=False, random_seed=1, maxiter=3).fit(matrix) for matrix in (plain, strange)]
    assert np.array_equal(fits[0].Theta, fits[1].Theta)
    assert strange.data.dtype == dtype


def test_big_endian_arrays():
    array = np.array([[1, 2, 3], [2, 1, 1], [4, 2, 5]], dtype=float)
    fits = [HPF(k=2, verbose=False, random_seed=1, maxiter=3).fit(a) for a in (array, array.astype(">f8"))]
    assert np.array_equal(fits[0].Theta, fits[1].Theta)
    ids = np.array([4.0, 1.0], dtype=">f8")
    assert np.array_equal(fits[1].predict(ids, 2), fits[0].predict([4, 1], 2))
    assert fits[1].topN(ids.astype(">i8"), n=1, exclude_seen=False).shape == (2, 1)


def test_a_pool_is_a_list():
    model = HPF(k=2, verbose=False).fit(frame())
    with pytest.raises(TypeError, match="items to choose from are 'x': pass a list of item ids"):
        model.topN("a", items_pool="x")


def test_unknown_held_out_counts_are_told():
    held_out = frame(UserId=["a", "nobody", "b"], ItemId=["y", "x", "nothing"])
    told = "2 of the 3 counts of {} were left out: their user or item was not in the training data"
    with pytest.warns(UserWarning, match=told.format("val_set")):
        model = HPF(k=2, verbose=False).fit(frame(), val_set=held_out)
    with pytest.warns(UserWarning, match=told.format("input_df")):
        assert model.eval_llk(held_out)["nobs"] == 1


# -- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2**31, 2**61, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 10**30])
def test_factors_beyond_reason(k):
    with pytest.raises(ValueError, match=f"k={k} must be at most 2147483647"):
        HPF(k=k)


@pytest.mark.parametrize("backend", ["numpy", "openmp"])
def test_a_fit_that_no_machine_holds_is_refused(backend, monkeypatch):
    monkeypatch.setattr("hpf_gpu.model.start.physical_memory", lambda: 10**9)
    model = HPF(k=10**8, verbose=False, backend=backend)
    try:
        with pytest.raises(
            NotEnoughMemory, match=r"k=100000000 in float32 need 8\.0 GB and more.* has 1\.0 GB"
        ):
            model.fit(frame())
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert not model.is_fitted


def test_memory_of_this_machine():
    from hpf_gpu.model.start import physical_memory

    have = physical_memory()
    assert have is None or 2**28 < have < 2**60


@pytest.mark.parametrize("index", [[10, 20, 30], ["p", "q", "r"]])
@pytest.mark.parametrize("kind", [None, "category"])
def test_rows_are_named_as_the_frame_names_them(index, kind):
    given = frame(Count=[1, -2, 3]).astype({} if kind is None else {"Count": kind}).set_index(pd.Index(index))
    with pytest.raises(ValueError, match=rf"count -2.* in row {index[1]!r} cannot be used"):
        HPF(k=2, verbose=False).fit(given)
    for column, side in (("UserId", "user"), ("ItemId", "item")):
        given = frame(**{column: ["a", None, None]}).set_index(pd.Index(index))
        with pytest.raises(ValueError, match=f"2 {side} ids are missing, the first in row {index[1]!r}"):
            HPF(k=2, verbose=False).fit(given)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3), (0, 2), (3, 4)])
def test_arrays_have_two_dimensions_and_three_columns(shape):
    with pytest.raises(
        ValueError, match=rf"counts_df has shape {re.escape(str(shape))}; an array must be \(n, 3\)"
    ):
        HPF(k=2, verbose=False).fit(np.ones(shape))


def test_a_matrix_of_numpy_is_an_array():
    array = np.array([[1, 2, 3], [2, 1, 1], [4, 2, 5]], dtype=float)
    fits = [HPF(k=2, verbose=False, random_seed=1, maxiter=3).fit(a) for a in (array, np.asmatrix(array))]
    assert np.array_equal(fits[0].Theta, fits[1].Theta)


@pytest.mark.parametrize("format", ["coo", "csr", "csc"])
def test_big_endian_matrices(format):
    matrix = sparse.coo_array(np.arange(1.0, 7.0).reshape(2, 3)).asformat(format)
    given = matrix.copy()
    given.data = given.data.astype(">f8")
    fits = [HPF(k=2, verbose=False, random_seed=1, maxiter=3).fit(a) for a in (matrix, given)]
    assert np.array_equal(fits[0].Theta, fits[1].Theta)


@pytest.mark.parametrize(("axis", "place"), [(0, 2), (0, -1), (1, 3), (1, -1)])
def test_triplets_of_a_matrix_end_at_its_shape(axis, place):
    matrix = sparse.coo_array(np.ones((2, 3)))
    (matrix.row if axis == 0 else matrix.col)[1] = place
    with pytest.raises(ValueError, match=r"sparse matrix of shape \(2, 3\) has an index outside its shape"):
        HPF(k=2, verbose=False).fit(matrix)


def test_row_numbers_in_arrays():
    model = HPF(k=2, verbose=False, reindex=False, maxiter=2).fit(numbered())
    for users, unknown in (
        (np.array([0.0, 0.5, 2.0, 3.0, np.nan, -1.0, np.inf]), [0, 1, 0, 1, 1, 1, 1]),
        (np.array([True, False]), [0, 0]),
        (np.array([2, 3, -1], np.int8), [0, 1, 1]),
        (np.array(["0", "1"]), [1, 1]),
        (np.array(["2020-01-01"], "M8[D]"), [1]),
        ([0.0, 0.5, True, "0", None, 3], [0, 1, 0, 1, 1, 1]),
    ):
        assert np.isnan(model.predict(users, 0)).tolist() == [bool(one) for one in unknown]


def test_one_id_is_a_scalar_and_many_are_an_array():
    model = HPF(k=2, verbose=False, maxiter=2).fit(numbered())
    for one in (0, np.int64(0), np.array(0), 0.0):
        assert np.isscalar(model.predict(one, 1))
        assert model.predict(one, [1]).shape == (1,)
    for many in ([0], (0,), np.array([0]), range(1), iter([0]), {0: 1}.keys(), pd.Series([0])):
        assert np.shape(model.predict(many, 1)) == (1,)


@pytest.mark.parametrize(
    ("unknown", "told"),
    [
        ([7], "user 7 was not"),
        ([7, 8, 7], "users 7, 8 were not"),
        ([7, 8, 9], "users 7, 8, 9 were not"),
        ([7, 8, 9, 5, 6], "users 7, 8, 9 and 2 more were not"),
    ],
)
def test_unknown_ids_are_named(unknown, told):
    model = HPF(k=2, verbose=False, maxiter=2).fit(numbered())
    with pytest.raises(ValueError, match=f"^{told} in the training data"):
        model.topN(unknown)


def test_known_factors_go_up_to_a_bound():
    factors = pd.DataFrame([[1e9, 0.0], [0.0, 1.0]], index=["x", "y"])
    model = HPF(k=2, verbose=False, maxiter=2).fit(frame(), fixed_items=factors)
    np.testing.assert_allclose(model.Beta, factors, rtol=1e-6, atol=1e-20)
    with pytest.raises(
        ValueError, match=r"fixed_items has 1000000001\.0; factors must lie between 0 and 1e\+09"
    ):
        HPF(k=2, verbose=False).fit(frame(), fixed_items=factors.replace(1e9, 1e9 + 1))


def test_a_device_is_asked_for_a_copy_on_the_host():
    class Elsewhere:
        def __init__(self, array):
            self._array = array

        def __dlpack_device__(self):
            return (2, 0) if self._array is None else (1, 0)

        def __dlpack__(self, **keywords):
            assert keywords["dl_device"] == (1, 0)
            return self._array.__dlpack__(**keywords)

    array = np.array([[1, 2, 3], [2, 1, 1], [4, 2, 5]], dtype=float)
    fits = [HPF(k=2, verbose=False, random_seed=1, maxiter=3).fit(a) for a in (array, Elsewhere(array))]
    assert np.array_equal(fits[0].Theta, fits[1].Theta)


def test_lists_are_no_ids():
    lists = pd.Series([[1], [2], [3]], dtype=pd.ArrowDtype(pa.list_(pa.int64())))
    with pytest.raises(TypeError, match="user ids must be hashable"):
        HPF(k=2, verbose=False).fit(frame(UserId=lists))


def test_a_count_that_is_finite_is_only_too_large():
    """What float32 makes infinite is not: the sum is what it cannot hold."""
    with pytest.raises(
        ValueError, match=r"the counts add up to 1e\+60, and float32 holds 1\.84e\+19 at most"
    ):
        HPF(k=2, verbose=False).fit(frame(Count=[1, 2, 1e60]))


@pytest.mark.parametrize("column", ["UserId", "ItemId", "Count"])
def test_columns_that_are_missing_or_doubled(column):
    have = ", ".join(map(repr, frame().columns.drop(column)))
    with pytest.raises(ValueError, match=f"counts_df has no column '{column}'; it needs .* and has {have}"):
        HPF(k=2, verbose=False).fit(frame().drop(columns=column))
    with pytest.raises(ValueError, match=f"counts_df has several columns '{column}'"):
        HPF(k=2, verbose=False).fit(pd.concat([frame(), frame()[[column]]], axis=1))
    model = HPF(k=2, verbose=False, maxiter=2).fit(frame())
    if column != "UserId":
        with pytest.raises(ValueError, match=f"counts_df has no column '{column}'; it needs ItemId, Count"):
            model.predict_factors(frame().drop(columns=["UserId", column]))
    with pytest.raises(ValueError, match=f"input_df has no column '{column}'"):
        model.eval_llk(frame().drop(columns=column))
    with pytest.raises(ValueError, match=f"val_set has no column '{column}'"):
        model.fit(frame(), val_set=frame().drop(columns=column))


TEXTS = np.array([["1", "2"], ["3", "4"]])


@pytest.mark.parametrize(
    "given",
    [np.ones((2, 2), bool), TEXTS, pd.DataFrame(TEXTS), pd.DataFrame({"a": [1.0, 2.0], "b": TEXTS[0]})],
    ids=["truths", "texts", "frame", "column"],
)
def test_known_factors_are_numbers(given):
    with pytest.raises(TypeError, match="fixed_items must have numbers, not"):
        HPF(k=2, verbose=False, reindex=False).fit(numbered(), fixed_items=given)


@pytest.mark.parametrize(
    ("own", "name"), [({"a": 1e10, "b_prime": 1e-30}, "Theta"), ({"c": 1e10, "d_prime": 1e-30}, "Beta")]
)
def test_either_side_may_be_too_large(own, name):
    model = HPF(k=2, maxiter=5, random_seed=1, verbose=False, hierarchical=False, **own)
    with pytest.raises(ValueError, match=f"^{name} is too large for float32"):
        model.fit(sparse.eye_array(3, format="csr") * 2)


def test_zeros_are_no_held_out_counts():
    model = HPF(k=2, verbose=False, maxiter=2).fit(frame())
    with pytest.warns(UserWarning, match="1 counts of zero were left out of input_df"):
        got = model.eval_llk(pd.concat([frame(), frame(UserId=["b", "b", "b"], Count=0)[:1]]))
    assert got == model.eval_llk(frame())
    with pytest.warns(UserWarning, match="1 of the 3 counts of input_df were left out"):
        assert model.eval_llk(frame(UserId=["a", "zoe", "c"]))["nobs"] == 2
