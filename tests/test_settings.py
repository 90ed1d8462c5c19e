"""The table of settings, and what follows from it."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest

from hpf_gpu import HPF
from hpf_gpu.model.settings import NAMES, TABLE, Settings, default_step_size

COUNTS = np.array([[0, 0, 2], [0, 1, 1], [1, 1, 3], [2, 0, 1]])


def test_the_constructor_is_the_table() -> None:
    """Names, order and defaults."""
    parameters = inspect.signature(HPF).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [(row.name, row.default) for row in TABLE]


def test_every_parameter_is_kept_as_given() -> None:
    given = {row.name: row.default for row in TABLE} | {"k": 7.0, "a": 1, "verbose": 0, "ncores": None}
    model = HPF(**given)
    assert all(getattr(model, name) is given[name] for name in NAMES)
    assert model.get_params() == model.get_params(deep=False) == given


def test_settings_have_the_types_of_their_kind() -> None:
    values = HPF(k=7.0, a=np.float32(0.5), verbose=0, use_float=np.False_, maxiter=np.int64(3)).get_params()
    settings = Settings.of(values)
    assert [settings.k, settings.a, settings.verbose, settings.use_float] == [7, 0.5, False, False]
    found = (settings.k, settings.a, settings.verbose, settings.use_float, settings.maxiter)
    assert [type(value) for value in found] == [int, float, bool, bool, int]


def test_settings_that_were_accepted_once_are_told_from_equal_ones() -> None:
    """Of other types, or that cannot be hashed."""
    values = HPF(k=1).get_params()
    assert Settings.of(values) is Settings.of(dict(values))
    for wrong, message in (
        (True, "k must be an integer, not True"),
        ([1], r"k must be an integer, not \[1\]"),
    ):
        with pytest.raises(TypeError, match=message):
            Settings.of(values | {"k": wrong})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "HPF()"),
        ({"k": 30, "stop_thr": 1e-3}, "HPF()"),
        ({"k": 50, "bias": True, "backend": "numpy"}, "HPF(k=50, backend='numpy', bias=True)"),
        ({"step_size": None, "random_seed": 0}, "HPF(step_size=None, random_seed=0)"),
    ],
)
def test_repr_has_what_differs_from_the_defaults(given: dict[str, Any], told: str) -> None:
    model = HPF(**given)
    assert repr(model) == told
    assert eval(told).get_params() == model.get_params()
    model.verbose = False
    assert "verbose=False" in repr(model.fit(COUNTS))


def test_set_params() -> None:
    model = HPF(k=2, maxiter=3, verbose=False).fit(COUNTS)
    theta = model.Theta
    assert model.set_params(k=5, stop_crit="elbo") is model
    assert (model.k, model.stop_crit) == (5, "elbo")
    assert model.Theta is theta
    assert model.set_params() is model


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"k": 0}, ValueError, "k=0 leaves the factors out: set neighbours"),
        ({"factors": 5}, ValueError, "HPF has no parameter 'factors'; it has k, a, "),
        ({"a": "much"}, TypeError, "a must be a number, not 'much'"),
        (
            {"stop_crit": "maxiter", "maxiter": None},
            ValueError,
            "needs a number of iterations: maxiter is None",
        ),
        ({"save_folder": "/nowhere/at/all"}, ValueError, "is not an existing folder"),
    ],
)
def test_parameters_that_cannot_be_set_change_nothing(
    wrong: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = HPF(k=4)
    with pytest.raises(kind, match=message):
        model.set_params(verbose=False, **wrong)
    assert model.get_params() == HPF(k=4).get_params()


def test_clones_of_scikit_learn() -> None:
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    model = HPF(k=3, maxiter=4, verbose=False, random_seed=np.int64(5), step_size=lambda epoch: 0.5)
    twin = base.clone(model.fit(COUNTS))
    assert not twin.is_fitted
    assert all(getattr(twin, name) is getattr(model, name) for name in NAMES if name != "random_seed")
    assert twin.random_seed == 5
    np.testing.assert_array_equal(twin.fit(COUNTS).Theta, model.Theta)


def test_step_sizes_may_be_taken_away_and_models_pickled() -> None:
    """As users of hpfrec do."""
    model = HPF(k=2, maxiter=3, verbose=False, random_seed=1, step_size=lambda epoch: 0.5).fit(COUNTS)
    model.step_size = None
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.Theta, model.Theta)
    np.testing.assert_array_equal(
        twin.topN(0, n=1, exclude_seen=False), model.topN(0, n=1, exclude_seen=False)
    )
    assert twin.step_size is None
    assert HPF().step_size is default_step_size


def test_answers_need_no_folder() -> None:
    """A folder that is gone keeps a model from being fitted anew, and from nothing else."""
    model = HPF(k=2, maxiter=3, verbose=False, random_seed=1).fit(COUNTS)
    model.save_folder = "/nowhere/at/all"
    model.topN(0, n=1)
    model.transform(COUNTS)
    model.partial_fit(COUNTS)
    with pytest.raises(ValueError, match="save_folder='/nowhere/at/all' is not an existing folder"):
        model.fit(COUNTS)
