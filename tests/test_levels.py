"""Every instruction set that this machine has computes what the best one does."""

from __future__ import annotations

import numpy as np
import pytest
from parity import online_retail, random_strings, relative_error

from hpf_gpu import HPF

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
    assert openmp.level() == openmp.levels()[0]
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
