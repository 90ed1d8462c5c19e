"""Same seed, same numbers as hpfrec 0.2.14: golden figures everywhere, the package itself where it is."""

from __future__ import annotations

import itertools

import conftest
import numpy as np
import pytest
from parity import (
    DATA,
    GOLDEN_CASES,
    GOLDEN_FILE,
    MATRICES,
    assert_parity,
    golden_rows,
    matrices_of,
    parameters,
    relative_error,
)

import hpf_gpu
from hpf_gpu import HPF


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN_FILE) as arrays:
        return dict(arrays)


def backends_with_cases():
    """NumPy's hundred iterations of the larger data take as long as all others together."""
    for name, case in itertools.product(conftest.BACKENDS, GOLDEN_CASES):
        slow = (name, case[0], case[-1]) == ("numpy", "online_retail", 100)
        marks = [pytest.mark.slow] if slow else []
        yield pytest.param(name, case, marks=marks, id="-".join(map(str, (name, *case))))


@pytest.mark.parametrize(("backend_name", "case"), list(backends_with_cases()))
def test_golden_figures(case, golden, backend_name):
    data, k, use_float, iterations = case
    model = HPF(**parameters(k, use_float, iterations), backend=backend_name).fit(DATA[data]())
    ours = {name: golden_rows(matrix) for name, matrix in matrices_of(model).items()}
    theirs = {name: golden["/".join(map(str, (*case, name)))] for name in MATRICES}
    assert_parity(ours, theirs, use_float, iterations)


@pytest.mark.parametrize("sum_exp_trick", [False, True], ids=["plain", "sum_exp_trick"])
@pytest.mark.parametrize(
    ("use_float", "iterations"),
    [(False, 10), (True, 2), (True, 10)],
    ids=["float64-10", "float32-2", "float32-10"],
)
@pytest.mark.parametrize("k", [5, 30, 64])
@pytest.mark.parametrize("data", ["random_strings", "some_customers"])
def test_against_hpfrec(data, k, use_float, iterations, sum_exp_trick):
    hpfrec = pytest.importorskip("hpfrec", reason="hpfrec is not installed (extra 'parity')")
    arguments = parameters(k, use_float, iterations, sum_exp_trick)
    theirs = matrices_of(hpfrec.HPF(**arguments).fit(DATA[data]()))
    assert_parity(matrices_of(HPF(**arguments).fit(DATA[data]())), theirs, use_float, iterations)


def test_fold_in_against_hpfrec():
    """From other start values, so the fixed point is compared; a few users have several of them.

    Of 60 users 59 agreed; medians of 6e-13 (Theta) and 1e-12 (φ).
    """
    hpfrec = pytest.importorskip("hpfrec", reason="hpfrec is not installed (extra 'parity')")
    frame, arguments = DATA["random_strings"](), parameters(k=5, use_float=False, iterations=100)
    theirs, ours = (module.HPF(**arguments).fit(frame) for module in (hpfrec, hpf_gpu))
    errors = []
    for user in ours.user_mapping_[:60]:
        counts = frame[frame.UserId == user].groupby("ItemId", as_index=False).Count.sum()
        rest = {"maxiter": 5000, "stop_thr": 1e-12, "return_all": True}
        want, got = (model.predict_factors(counts, **rest) for model in (theirs, ours))
        assert [array.shape for array in got] == [array.shape for array in want]
        errors.append([relative_error(g, w) for g, w in zip(got, want, strict=True)])
    assert (np.median(errors, axis=0) < 1e-10).all()
    assert (np.max(errors, axis=1) < 1e-4).mean() > 0.9


@pytest.mark.parametrize("keep_all_objs", [True, False])
def test_save_folder_is_hpfrecs(keep_all_objs, tmp_path):
    """The same files; texts to the letter, numbers to the last of their ten decimals."""
    hpfrec = pytest.importorskip("hpfrec", reason="hpfrec is not installed (extra 'parity')")
    arguments = parameters(5, False, 10) | {"keep_all_objs": keep_all_objs}
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for module, folder in ((hpfrec, theirs), (hpf_gpu, ours)):
        folder.mkdir()
        module.HPF(**arguments, save_folder=str(folder)).fit(DATA["random_strings"]())
    assert sorted(file.name for file in ours.iterdir()) == sorted(file.name for file in theirs.iterdir())
    for file in theirs.iterdir():
        if file.suffix:
            assert (ours / file.name).read_text() == file.read_text()
        else:
            got, want = (np.loadtxt(folder / file.name, delimiter=",") for folder in (ours, theirs))
            assert np.allclose(got, want, rtol=0, atol=1.1e-10), file.name


@pytest.mark.parametrize("use_float", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("k", [5, 30, 64])
def test_against_hpfrec_for_long(k, use_float):
    hpfrec = pytest.importorskip("hpfrec", reason="hpfrec is not installed (extra 'parity')")
    arguments = parameters(k, use_float, iterations=100)
    theirs = matrices_of(hpfrec.HPF(**arguments).fit(DATA["random_strings"]()))
    assert_parity(matrices_of(HPF(**arguments).fit(DATA["random_strings"]())), theirs, use_float, 100)
