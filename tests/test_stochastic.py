"""Stochastic variational inference: against dense formulas, and through the public class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pandas as pd
import pytest
from contract.tolerances import TOLERANCE, Tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import DATA, relative_error
from problems import SCHEDULES, SMALL, Problem, problems, rule
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.blocks import row_batches
from hpf_gpu.data.counts import training_data
from hpf_gpu.data.triplets import Columns
from hpf_gpu.datasets import load_online_retail
from hpf_gpu.fitting.training import _epochs
from hpf_gpu.model.inference import iterate
from hpf_gpu.model.sides import Model, Side
from hpf_gpu.model.stochastic import Batch, Epochs, LocalUpdates

MATRICES = ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "k_rte", "t_rte")


# -- the update --------------------------------------------------------------------------------


def batches_of(backend: Backend, problem: Problem, size: int | None, *, by_item: bool) -> tuple[Batch, ...]:
    if size is None:
        return ()
    csr = sparse.csr_array(problem.y.astype(backend.dtype))
    csr = csr.T.tocsr() if by_item else csr
    parts = row_batches(csr, size, np.random.default_rng(5))
    return tuple(
        Batch(rows, backend.counts(part, problem.k), csr.shape[0] / len(rows)) for rows, part in parts
    )


def epochs_of(
    backend: Backend, problem: Problem, sizes: tuple[int | None, int | None], how: LocalUpdates, step: Any
) -> Epochs:
    by_user, by_item = (
        batches_of(backend, problem, size, by_item=by_item)
        for size, by_item in zip(sizes, (False, True), strict=True)
    )
    return Epochs(backend, by_user, by_item, step, np.random.default_rng(11), how)


def half(backend: Backend, side: Side) -> oracle.Half:
    factor, prior = side.factor, side.prior
    arrays = (factor.shape, factor.rates.rows, factor.rates.columns, side.hyper_rate)
    host = (backend.asnumpy(array).astype(np.float64) for array in arrays)
    return oracle.Half(*host, prior.shape, prior.hyper_shape, prior.hyper_rate)


def assert_half(backend: Backend, side: Side, want: oracle.Half, limit: float) -> None:
    got = half(backend, side)
    for field in ("shape", "row_rate", "column_rate", "hyper_rate"):
        error = relative_error(getattr(got, field), getattr(want, field))
        assert error <= limit, f"{field}: relative Frobenius error {error:.2e} > {limit:.0e}"


def assert_epochs(
    backend: Backend, problem: Problem, model: Model, epochs: Epochs, numbers: range, limit: float
) -> Model:
    """Run the epochs with these numbers beside the oracle."""
    users, items = half(backend, model.users[0]), half(backend, model.items)
    order = np.random.default_rng(11)
    schedule = "alternating" if epochs.local.alternating else "joint"
    for number in numbers:
        model = epochs(model, number)
        by_user = bool(epochs.user_batches) and (not epochs.item_batches or number % 2 == 1)
        batches = epochs.user_batches if by_user else epochs.item_batches
        rows = [batches[b].rows for b in order.permutation(len(batches))]
        arguments = (rows, epochs.local.steps, epochs.step_size(number), schedule)
        if by_user:
            users, items = oracle.stochastic_epoch(problem.y, users, items, *arguments)
        else:
            items, users = oracle.stochastic_epoch(problem.y.T, items, users, *arguments)
        assert_half(backend, model.users[0], users, limit)
        assert_half(backend, model.items, items, limit)
    return model


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize("sizes", [(7, None), (None, 10), (1, 33)], ids=str)
def test_epochs(
    backend: Backend,
    tolerance: Tolerance,
    schedule: Any,
    exact: bool,
    sizes: tuple[int | None, int | None],
) -> None:
    """Every parameter after each of four epochs, the first two from a model of rank one."""
    how = LocalUpdates(schedule == "alternating", exact, steps=3)
    epochs = epochs_of(backend, SMALL, sizes, how, lambda epoch: (epoch + 1) ** -0.6)
    blocks = SMALL.blocks(backend)
    model = iterate(backend, blocks, SMALL.model(backend, blocks), rule(schedule))
    assert_epochs(backend, SMALL, model, epochs, range(1, 5), tolerance.parameters)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("size", [24, 1000])
def test_one_batch_and_one_step_are_a_full_iteration(backend: Backend, schedule: Any, size: int) -> None:
    """The same bits, from the start values on."""
    how = LocalUpdates(schedule == "alternating", steps=1)
    epochs = epochs_of(backend, SMALL, (size, None), how, lambda _: 1.0)
    blocks = SMALL.blocks(backend)
    full = stochastic = SMALL.model(backend, blocks)
    objective = SMALL.objective(backend, blocks, full_llk=False)
    for number in range(4):
        full, stochastic = iterate(backend, blocks, full, rule(schedule)), epochs(stochastic, number)
        for one, other in zip(_arrays(stochastic), _arrays(full), strict=True):
            np.testing.assert_array_equal(backend.asnumpy(one), backend.asnumpy(other))
        assert objective.check(stochastic, number) == objective.check(full, number)


def _arrays(model: Model) -> list[Any]:
    return [
        array
        for side in (*model.users, model.items)
        for array in (
            *(
                side.factor.shape,
                side.factor.exp_log,
                side.factor.log_scale,
                side.hyper_rate,
                side.column_sums,
            ),
            *vars(side.factor.rates).values(),
        )
    ]


def test_an_epoch_leaves_the_last_model_whole(backend: Backend) -> None:
    blocks = SMALL.blocks(backend)
    objective = SMALL.objective(backend, blocks, full_llk=False)
    epochs = epochs_of(backend, SMALL, (5, 8), LocalUpdates(), lambda _: 0.5)
    model = SMALL.model(backend, blocks)
    for number in range(6):
        before = objective.elbo(model)
        following = epochs(model, number)
        assert objective.elbo(model) == before
        model = following


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_small_problems(backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, schedule: Any) -> None:
    """Any data, priors, sizes and steps: the oracle's numbers, and each user's counts among her factors."""

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(
        problems(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0])
    )
    def check(problem: Problem, by_user: int, by_item: int, steps: int, step: float) -> None:
        how = LocalUpdates(schedule == "alternating", steps=steps)
        epochs = epochs_of(backend, problem, (by_user, by_item), how, lambda _: step)
        blocks = problem.blocks(backend)
        model = iterate(backend, blocks, problem.model(backend, blocks), rule(schedule))
        model = assert_epochs(backend, problem, model, epochs, range(1, 4), tolerance.parameters)
        users, total = (
            half(backend, model.users[0]),
            problem.y.sum(axis=1),
        )  # the last epoch was theirs
        shared = (users.shape - users.prior_shape).sum(axis=1)
        scale = total + problem.k * users.prior_shape
        assert (np.abs(shared - total) <= tolerance.conservation * scale).all()

    check()


# -- the public class --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def purchases() -> pd.DataFrame:
    """Orders of each customer for each article, 264,673 counts."""
    frame = load_online_retail().purchases
    return frame[["UserId", "ItemId"]].assign(Count=frame["Orders"])


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    return DATA["random_strings"]()


def model_of(**arguments: Any) -> HPF:
    return HPF(
        **{"k": 5, "maxiter": 4, "stop_crit": "maxiter", "random_seed": 3, "verbose": False} | arguments
    )


WAYS = {
    "users": {"users_per_batch": 40},
    "items": {"items_per_batch": 33},
    "both": {"users_per_batch": 90, "items_per_batch": 70},
    "more than there are": {"users_per_batch": 10**6, "items_per_batch": 10**6},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fits_repeat_and_depend_on_the_seed(
    small: pd.DataFrame, backend_name: str, way: str, schedule: str
) -> None:
    arguments = WAYS[way] | {"backend": backend_name, "schedule": schedule}
    one, same, other = (model_of(**arguments, random_seed=seed).fit(small) for seed in (3, 3, 4))
    for name in MATRICES:
        assert np.array_equal(getattr(one, name), getattr(same, name)), name
        assert not np.array_equal(getattr(one, name), getattr(other, name)), name
        assert np.isfinite(getattr(one, name)).all()
    assert one.niter == 4
    assert relative_error(one.Theta, one.Gamma_shp / one.Gamma_rte) < 1e-6
    assert one.topN(one.user_mapping_[0], n=3).tolist() == one.topN(one.user_mapping_[0], n=9).tolist()[:3]


@pytest.mark.parametrize("kind", ["users", "items"])
def test_a_small_last_batch_counts_for_more(kind: str) -> None:
    """Ten rows in batches of four, four and two, which stand for 10/4, 10/4 and 10/2 of themselves."""
    y = np.random.default_rng(2).poisson(1.0, (10, 7)) + 1.0
    problem = Problem(y if kind == "users" else y.T, 3, SMALL.priors)
    backend = create("numpy", np.dtype(np.float64))
    data = training_data(sparse.csr_array(problem.y), backend=backend, reindex=False, columns=Columns())
    epochs = _epochs(
        model_of(k=3, **{f"{kind}_per_batch": 4})._settings(), backend, data, seed=3, sources=None
    )
    assert sorted(len(batch.rows) for batch in (*epochs.user_batches, *epochs.item_batches)) == [2, 4, 4]
    epochs = replace(epochs, rng=np.random.default_rng(11))  # the order that assert_epochs draws
    blocks = problem.blocks(backend)
    model = iterate(backend, blocks, problem.model(backend, blocks), rule("joint"))
    assert_epochs(backend, problem, model, epochs, range(1, 4), TOLERANCE["float64"].parameters)


def test_each_fit_draws_the_same_batches(small: pd.DataFrame) -> None:
    model = model_of(users_per_batch=40).fit(small)
    theta = model.Theta
    assert np.array_equal(model.fit(small).Theta, theta)


@pytest.mark.parametrize("way", ["users", "items", "both"])
def test_epochs_get_further_than_iterations(purchases: pd.DataFrame, way: str) -> None:
    """Eight epochs of ten batches beside eight full iterations, in held-out likelihood with the zeros."""
    held_out = np.random.default_rng(1).random(len(purchases)) < 0.1
    train, test = purchases[~held_out], purchases[held_out]
    sizes = {"users": {"users_per_batch": 430}, "items": {"items_per_batch": 360}}
    sizes["both"] = sizes["users"] | sizes["items"]

    def outside_training(model: HPF) -> float:
        rates = model.predict(train.UserId, train.ItemId).sum(dtype=np.float64)
        everything = model.Theta.sum(axis=0, dtype=np.float64) @ model.Beta.sum(axis=0, dtype=np.float64)
        found = model.eval_llk(test)["llk"] + np.nansum(model.predict(test.UserId, test.ItemId))
        return float(found - (everything - rates))

    full, stochastic = (model_of(k=30, maxiter=8, **given).fit(train) for given in ({}, sizes[way]))
    # Both are negative; the quotients are 0.887, 0.904 and 0.888.
    assert outside_training(stochastic) > 0.95 * outside_training(full)


def test_checks_and_stopping_count_epochs(small: pd.DataFrame) -> None:
    train, held_out = small.iloc[::2], small.iloc[1::2]
    sizes = {"users_per_batch": 60, "items_per_batch": 60}
    arguments = {**sizes, "maxiter": 200, "check_every": 2, "compute_elbo": True}
    for stop_crit in ("train-llk", "val-llk", "elbo", "diff-norm"):
        model = model_of(**arguments, stop_crit=stop_crit, stop_thr=0.02).fit(train, held_out)
        assert model.history_.iteration.tolist() == list(range(2, model.niter + 1, 2))
        assert np.isfinite(model.history_[["llk", "elbo", "val_llk"]]).all().all()


def test_steps_are_asked_for_by_epoch(small: pd.DataFrame) -> None:
    asked: list[int] = []

    def step_size(epoch: int) -> float:
        asked.append(epoch)
        return 0.5

    model = model_of(users_per_batch=40, step_size=step_size)
    asked.clear()  # the constructor has tried it
    model.fit(small)
    assert asked == [0, 1, 2, 3]
    default, none = (model_of(users_per_batch=40, **given).fit(small) for given in ({}, {"step_size": None}))
    assert np.array_equal(default.Theta, none.Theta)


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (1.5, ValueError, r"step_size\(2\) is 1.5; steps must lie between 0 and 1"),
        (np.nan, ValueError, r"step_size\(2\) is nan"),
        ("half", TypeError, r"step_size\(2\) is 'half'"),
        (None, TypeError, r"step_size\(2\) is None"),
    ],
)
def test_steps_that_are_none(small: pd.DataFrame, step: Any, kind: type[Exception], message: str) -> None:
    model = model_of(users_per_batch=40, step_size=lambda epoch: step if epoch == 2 else 0.5)
    with pytest.raises(kind, match=message):
        model.fit(small)
    assert not model.is_fitted


@pytest.mark.parametrize(("seed", "use_float"), [(0, True), (1, False), (2, True), (3, False)])
def test_never_a_nan(small: pd.DataFrame, backend_name: str, use_float: bool, seed: int) -> None:
    """Batches of one user, 200 factors, counts over nine decades, priors of a thousandth."""
    rng = np.random.default_rng(seed)
    frame = small[::40].assign(Count=lambda rows: np.ceil(10 ** rng.uniform(0, 9, len(rows))))
    priors = dict.fromkeys(("a", "a_prime", "c", "c_prime"), 10.0 ** -rng.integers(0, 4))
    model = model_of(
        k=200, users_per_batch=1, random_seed=seed, use_float=use_float, backend=backend_name, **priors
    )
    model.fit(frame)
    for name in MATRICES:
        assert np.isfinite(getattr(model, name)).all(), name
        assert (getattr(model, name) >= 0).all(), name
