"""Every instruction set that this machine has computes what the best one does."""

from __future__ import annotations

import os

import numpy as np
import pytest
from parity import online_retail, random_strings, relative_error

from hpf_gpu import HPF
from hpf_gpu.backends import create

openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")


@pytest.fixture
def level(request):
    best = openmp.level()
    openmp.use_level(request.param)
    yield request.param
    openmp.use_level(best)


def fitted(frame, k, use_float=False, ncores=-1):
    model = HPF(k, maxiter=6, stop_crit="maxiter", random_seed=1, use_float=use_float, ncores=ncores)
    model.verbose, model.backend = False, "openmp"
    return model.fit(frame)


@pytest.mark.parametrize("use_float", [True, False], ids=["float32", "float64"])
@pytest.mark.parametrize("k", [1, 3, 16, 30, 50, 100, 130, 200])
@pytest.mark.parametrize("level", openmp.levels(), indirect=True)
def test_levels_agree(level, k, use_float):
    frame = random_strings()
    here = fitted(frame, k, use_float)
    openmp.use_level(openmp.levels()[0])
    best = fitted(frame, k, use_float)
    limit = 1e-5 if use_float else 1e-13  # 2e-6 and 3e-15 measured
    assert relative_error(here.Theta, best.Theta) < limit
    assert relative_error(here.Beta, best.Beta) < limit
    assert here.train_llk == pytest.approx(best.train_llk, rel=limit)


def test_the_best_level_is_in_use():
    assert openmp.level() == os.environ.get("HPF_GPU_LEVEL", openmp.levels()[0])
    assert openmp.levels()[-1] == "baseline"


def test_unknown_level():
    with pytest.raises(ValueError, match="no instruction set x86-64-v9"):
        openmp.use_level("x86-64-v9")


@pytest.mark.parametrize("threads", [2, 3, 5, 8, 32])
def test_any_number_of_threads(threads):
    frame = online_retail()  # enough counts for 32 row blocks
    many, one = fitted(frame, 30, ncores=threads), fitted(frame, 30, ncores=1)
    assert relative_error(many.Theta, one.Theta) < 1e-13  # 4e-15 measured
    assert relative_error(many.Beta, one.Beta) < 1e-13
    assert np.array_equal(many.Theta, fitted(frame, 30, ncores=threads).Theta)


@pytest.mark.parametrize("level", openmp.levels(), indirect=True)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 30, 100])
def test_top_items_depend_on_nothing_but_the_user(level, dtype, k):
    """The same bits for any number of threads, and whoever else is asked for, in whatever order."""
    rng = np.random.default_rng(k)
    theta, beta = (rng.gamma(0.3, size=(n, k)).astype(dtype) for n in (3001, 500))
    whole = create("openmp", np.dtype(dtype), 1).top_items(theta, beta, 9)
    for threads in (2, 3, 7, 64):
        backend = create("openmp", np.dtype(dtype), threads)
        some = rng.permutation(3001)[: 1000 * threads]
        for got, want in zip(backend.top_items(theta[some], beta, 9), whole, strict=True):
            assert np.array_equal(got, want[some])


@pytest.mark.parametrize("level", openmp.levels(), indirect=True)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 7, 16, 33])
def test_top_items_of_every_level(level, dtype, k):
    """Small whole numbers: no rounding, many ties, so every level finds what NumPy does."""
    rng = np.random.default_rng(k)
    theta, beta = (rng.integers(0, 3, (n, k)).astype(dtype) for n in (61, 331))
    exclude = (np.arange(62) * 3, np.tile([0, 5, 330], 61))
    for n in (1, 12, 400):
        got = create("openmp", np.dtype(dtype)).top_items(theta, beta, n, exclude)
        want = create("numpy", np.dtype(dtype)).top_items(theta, beta, n, exclude)
        assert np.array_equal(got[0], want[0])
        assert np.array_equal(got[1], want[1])
