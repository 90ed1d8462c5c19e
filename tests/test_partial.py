"""partial_fit: batches from outside, of users and items that may be new."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from parity import DATA
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends import create
from hpf_gpu.data.counts import training_data
from hpf_gpu.data.triplets import Columns
from hpf_gpu.fitting.training import start_sides
from hpf_gpu.model.stochastic import Batch, LocalUpdates, average_start_rates, run_epoch

MATRICES = ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "k_rte", "t_rte")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return DATA["random_strings"]()


@pytest.fixture(scope="module")
def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """The same with row numbers for ids."""
    return frame.assign(UserId=pd.factorize(frame.UserId)[0], ItemId=pd.factorize(frame.ItemId)[0])


def model_of(**arguments: Any) -> HPF:
    return HPF(**{"k": 5, "random_seed": 3, "verbose": False} | arguments)


def sizes(frame: pd.DataFrame) -> dict[str, int]:
    return {"nusers": frame.UserId.nunique(), "nitems": frame.ItemId.nunique()}


def batches(frame: pd.DataFrame, column: str, parts: int, seed: int = 0) -> Iterator[pd.DataFrame]:
    ids = np.random.default_rng(seed).permutation(frame[column].unique())
    return (frame[frame[column].isin(part)] for part in np.array_split(ids, parts))


def assert_same_model(one: HPF, other: HPF) -> None:
    for name in MATRICES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def assert_whole(model: HPF) -> None:
    for name in MATRICES:
        assert np.isfinite(getattr(model, name)).all(), name
    assert model.Theta.shape == (len(model.Gamma_shp), model.k)
    np.testing.assert_allclose(model.Theta, model.Gamma_shp / model.Gamma_rte, rtol=1e-5)


def pairs(frame: pd.DataFrame) -> set[tuple[Any, Any]]:
    return set(zip(frame.UserId, frame.ItemId, strict=True))


def seen_pairs(model: HPF) -> list[tuple[Any, Any]]:
    indptr, items = model._fitted.seen
    users = model._fitted.user_ids.labels(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)))
    return list(zip(users, model._fitted.item_ids.labels(items), strict=True))


# -- the step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["users", "items"])
@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_all_data_for_a_batch_is_an_epoch(
    frame: pd.DataFrame, backend_name: str, kind: str, schedule: str
) -> None:
    """The same bits as a stochastic fit, after one call and after three."""
    arguments = {"backend": backend_name, "schedule": schedule, "step_size": lambda epoch: 1 / (epoch + 1)}
    model = model_of(**arguments)
    for calls in (1, 2, 3):
        fitted = model_of(**arguments, **{f"{kind}_per_batch": 10**6}, maxiter=calls, stop_crit="maxiter")
        assert_same_model(model.partial_fit(frame, kind, **sizes(frame)), fitted.fit(frame))
        assert model.niter == calls


def test_a_batch_stands_for_all_users_that_are_announced(frame: pd.DataFrame) -> None:
    """With twice as many users as it brings, each of its counts moves the items like two."""
    users, items = frame.UserId.nunique(), frame.ItemId.nunique()
    model = model_of(use_float=False, backend="numpy")
    model.partial_fit(frame, nusers=2 * users, nitems=items, step_size=0.5)
    backend = create("numpy", np.dtype(np.float64))
    csr = training_data(frame, backend=backend, reindex=True, columns=Columns()).csr
    start = start_sides(model._settings(), backend, csr.shape, model.random_seed)
    own, other = (average_start_rates(backend, side) for side in (*start.users, start.items))
    batch = Batch(np.arange(users), backend.counts(csr, model.k), scale=2.0)
    own, other = run_epoch(backend, [batch], own, other, LocalUpdates(), 0.5)
    for got, side in ((model.Gamma_shp, own), (model.Lambda_shp, other)):
        np.testing.assert_allclose(got, side.factor.shape, rtol=1e-12)
    rates = other.factor.rates.rows[:, None] + other.factor.rates.columns
    np.testing.assert_allclose(model.Lambda_rte, rates, rtol=1e-12)


def test_batches_get_where_a_fit_gets(frame: pd.DataFrame) -> None:
    model = model_of()
    for epoch in range(5):
        for batch in batches(frame, "UserId", 6, epoch):
            model.partial_fit(batch, **sizes(frame))
    full = model_of(maxiter=5, stop_crit="maxiter").fit(frame)
    assert model.niter == 30
    assert_whole(model)
    # Measured: 32,930 and 29,838.
    assert model.eval_llk(frame)["llk"] > full.eval_llk(frame)["llk"]


def test_users_in_no_batch_keep_their_counts(numbers: pd.DataFrame) -> None:
    model = model_of(use_float=False, reindex=False, maxiter=5, stop_crit="maxiter").fit(numbers)
    shapes, beta = model.Gamma_shp.copy(), model.Beta.copy()
    batch = numbers[numbers.UserId.isin([0, 1, 2])]
    model.partial_fit(batch)
    np.testing.assert_array_equal(model.Gamma_shp[3:], shapes[3:])
    totals = batch.groupby("UserId").Count.sum()
    np.testing.assert_allclose((model.Gamma_shp[:3] - 0.3).sum(axis=1), totals, rtol=1e-12)
    absent = np.setdiff1d(numbers.ItemId, batch.ItemId)
    assert (model.Lambda_shp[absent] - 0.3 < model.partial_fit(batch, step_size=0.0).Lambda_shp[absent]).all()
    assert not np.array_equal(model.Beta[absent], beta[absent])


def test_calls_repeat(frame: pd.DataFrame, backend_name: str) -> None:
    one, two = model_of(backend=backend_name), model_of(backend=backend_name)
    for kind, column in (("users", "UserId"), ("items", "ItemId"), ("users", "UserId")):
        for batch in batches(frame, column, 4):
            for model in (one, two):
                model.partial_fit(batch, kind, **sizes(frame))
    assert_same_model(one, two)
    assert_whole(one)


def test_steps(frame: pd.DataFrame) -> None:
    asked: list[int] = []

    def step_size(call: int) -> float:
        asked.append(call)
        return 0.5

    model = model_of(step_size=step_size)
    twin = copy.deepcopy(model)
    asked.clear()
    for batch in batches(frame, "UserId", 3):
        model.partial_fit(batch, **sizes(frame))
        twin.partial_fit(batch, step_size=0.5, **sizes(frame))
    assert [number for number in asked if number > 1] == [2]  # 0 and 1 are tried by every check, too
    assert_same_model(model, twin)
    model.step_size = None  # the default
    model.partial_fit(frame[:100])


# -- what is new -------------------------------------------------------------------------------


def test_ids_come_with_batches(frame: pd.DataFrame) -> None:
    """Rows are made when an id is met, up to the number announced; each count is counted once."""
    model, met = model_of(use_float=False), pd.DataFrame()
    for batch in batches(frame, "UserId", 5):
        met = pd.concat([met, batch])
        model.partial_fit(batch, step_size=0.5, **sizes(frame))
        assert model.user_mapping_.tolist() == met.UserId.unique().tolist()
        assert model.item_mapping_.tolist() == met.ItemId.unique().tolist()
        assert len(model.Theta) == met.UserId.nunique()
        total = (model.Gamma_shp - 0.3).sum(axis=1)
        np.testing.assert_allclose(total, met.groupby("UserId", sort=False).Count.sum(), rtol=1e-12)
        assert (model.nusers, model.nitems) == tuple(sizes(frame).values())
        seen = seen_pairs(model)
        assert len(seen) == len(pairs(met))
        assert set(seen) == pairs(met)
    assert_whole(model)


def test_seen_items_of_batches_of_items(frame: pd.DataFrame) -> None:
    model, met = model_of(), pd.DataFrame()
    for number, batch in enumerate(batches(frame, "ItemId", 4)):
        met = pd.concat([met, batch])
        model.partial_fit(batch, "items", **sizes(frame))
        if number == 1:
            some = frame[frame.UserId == met.UserId.iloc[0]]
            met = pd.concat([met, some])
            model.partial_fit(some)
        seen = seen_pairs(model)
        assert len(seen) == len(pairs(met))
        assert set(seen) == pairs(met)
    user = met.UserId.iloc[0]
    assert not set(model.topN(user, n=1000)) & set(met.ItemId[met.UserId == user])
    assert model_of(keep_data=False).partial_fit(frame, **sizes(frame))._fitted.seen is None


@pytest.mark.parametrize("ids", ["names", "numbers"])
def test_new_users_and_items_are_taken_in_when_allowed(
    frame: pd.DataFrame, numbers: pd.DataFrame, ids: str
) -> None:
    data = frame if ids == "names" else numbers
    few = data[data.UserId.isin(data.UserId.unique()[:200]) & data.ItemId.isin(data.ItemId.unique()[:150])]
    model = model_of(reindex=ids == "names", maxiter=5).fit(few)
    n, m = len(model.Theta), len(model.Beta)
    new_user, new_item = data.UserId.unique()[n + 4], data.ItemId.unique()[m + 6]
    more = pd.DataFrame(
        {"UserId": [new_user, few.UserId.iloc[0]], "ItemId": [few.ItemId.iloc[0], new_item], "Count": 2}
    )
    before = dict(vars(model))
    with pytest.raises(ValueError, match=r"new users?, and the model has 200 of nusers=200.*new_users=True"):
        model.partial_fit(more, new_items=True)
    with pytest.raises(ValueError, match=r"new items?, and the model has 150 of nitems=150.*new_items=True"):
        model.partial_fit(more, new_users=True)
    assert all(vars(model)[name] is value for name, value in before.items())
    model.partial_fit(more, new_users=True, new_items=True)
    user_rows, item_rows = (1, 1) if ids == "names" else (5, 7)  # numbers in between get rows too
    assert (
        (len(model.Theta), len(model.Beta)) == (model.nusers, model.nitems) == (n + user_rows, m + item_rows)
    )
    assert_whole(model)
    assert model.predict(new_user, new_item) > 0
    assert set(seen_pairs(model)) == pairs(few) | pairs(more)
    model.partial_fit(more, new_users=True)  # nobody is new by now
    assert len(model.Theta) == n + user_rows


def test_row_numbers_before_any_fit(numbers: pd.DataFrame) -> None:
    model = model_of(reindex=False)
    for batch in batches(numbers, "UserId", 3):
        model.partial_fit(batch, nusers=400, nitems=250)
        assert (model.Theta.shape, model.Beta.shape) == ((400, 5), (250, 5))
    assert model.user_mapping_ is None
    assert_whole(model)
    far = pd.DataFrame({"UserId": [1_199_999], "ItemId": [3], "Count": [1]})
    with pytest.raises(ValueError, match="would need a factor matrix of 1200000 rows"):
        model.partial_fit(far, new_users=True)
    for members in (None, [1_199_999, 5]):
        lonely = model_of(k=1, reindex=False)
        lonely.partial_fit(far, nusers=1_200_000, nitems=4, users_in_batch=members)
        assert len(lonely.Theta) == 1_200_000


def test_a_sparse_matrix_is_a_batch_of_its_rows(numbers: pd.DataFrame) -> None:
    part = numbers[numbers.UserId % 3 == 1].groupby(["UserId", "ItemId"], as_index=False).sum()
    matrix = sparse.coo_array((part.Count, (part.UserId, part.ItemId)), shape=(300, 200))
    one, two = (
        model_of(reindex=False).partial_fit(given, nusers=300, nitems=200) for given in (matrix.tocsr(), part)
    )
    assert_same_model(one, two)


def test_users_of_a_batch_without_counts(numbers: pd.DataFrame) -> None:
    """They make the batch larger, and so each of its counts worth less."""
    batch = numbers[numbers.UserId < 10]
    arguments = {"nusers": 300, "nitems": 200, "step_size": 1.0}
    alone = model_of(reindex=False).partial_fit(batch, **arguments)
    among = model_of(reindex=False).partial_fit(batch, users_in_batch=range(20), **arguments)
    mass = [(model.Lambda_shp - 0.3).sum() for model in (alone, among)]
    assert mass[0] == pytest.approx(batch.Count.sum() * 30, rel=1e-4)
    assert mass[1] == pytest.approx(batch.Count.sum() * 15, rel=1e-4)
    zeros = pd.concat([batch, pd.DataFrame({"UserId": range(10, 20), "ItemId": 0, "Count": 0})])
    with pytest.warns(UserWarning, match="10 counts of zero were left out of counts_df"):
        assert_same_model(model_of(reindex=False).partial_fit(zeros, **arguments), among)
    with pytest.raises(ValueError, match=r"user 9 has counts and is not in users_in_batch"):
        model_of(reindex=False).partial_fit(batch, users_in_batch=range(9), **arguments)
    by_item = model_of(reindex=False).partial_fit(batch, "items", items_in_batch=range(200), **arguments)
    assert (by_item.Gamma_shp - 0.3).sum() == pytest.approx(batch.Count.sum(), rel=1e-4)


def test_users_of_a_batch_are_any_collection(frame: pd.DataFrame) -> None:
    batch = frame[frame.UserId < "user 2"]
    users = [*batch.UserId.unique(), "idle"]
    listed = model_of().partial_fit(batch, users_in_batch=users, **sizes(frame))
    for given in (iter(users), dict.fromkeys(users), pd.Series(users), tuple(users)):
        assert_same_model(listed, model_of().partial_fit(batch, users_in_batch=given, **sizes(frame)))
    for wrong in ("user 1", b"user 1", 5):
        with pytest.raises(TypeError, match=f"users_in_batch is {wrong!r}: pass a list"):
            model_of().partial_fit(batch, users_in_batch=wrong, **sizes(frame))


def test_start_values_of_new_rows_follow_the_seed(frame: pd.DataFrame) -> None:
    few, more = frame[frame.UserId < "user 2"], frame[frame.UserId >= "user 2"]

    def grown(seed: int | None) -> HPF:
        return (
            model_of(maxiter=3).fit(few).partial_fit(more, new_users=True, new_items=True, random_seed=seed)
        )

    assert_same_model(grown(None), grown(None))
    assert_same_model(grown(0), grown(0))
    assert not np.array_equal(grown(0).Theta, grown(1).Theta)


# -- beside all else ---------------------------------------------------------------------------


def test_after_fits_fold_ins_and_files(frame: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    few, more = frame[frame.UserId < "user 2"], frame[frame.UserId >= "user 2"]
    model = model_of(maxiter=5).fit(few)
    history = model.history_
    model.add_users(more[more.ItemId.isin(few.ItemId)])
    model.partial_fit(more[more.ItemId.isin(few.ItemId)])
    assert_whole(model)
    assert model.train_llk is None
    assert model.history_ is history
    assert model.niter == len(range(history.iteration.iloc[-1])) + 1
    half_met = model_of().partial_fit(few, **sizes(frame))
    for given in (model, half_met):
        given.save(tmp_path / "model")
        twin = HPF.load(tmp_path / "model")
        assert (twin.nusers, twin.nitems) == (given.nusers, given.nitems)
        batch = more[more.ItemId.isin(given.item_mapping_)]
        assert_same_model(given.partial_fit(batch), twin.partial_fit(batch))
    fresh = model_of(maxiter=5).fit(few)
    assert_same_model(model.fit(few), fresh)
    assert model.nusers == fresh.nusers


def test_a_user_who_moves_all_parameters(frame: pd.DataFrame) -> None:
    one = pd.DataFrame({"ItemId": frame.ItemId.unique()[:3], "Count": [4, 1, 2]})
    fitted = model_of(maxiter=5).fit(frame)
    added, stepped = copy.deepcopy(fitted), copy.deepcopy(fitted)
    assert added.add_user("joe", one, update_all_params=True)
    stepped.partial_fit(one.assign(UserId="joe"), new_users=True)
    assert_same_model(added, stepped)
    assert not np.array_equal(added.Beta, fitted.Beta)
    with pytest.raises(ValueError, match="user 'joe' is in the model already"):
        added.add_user("joe", one, update_all_params=True)
    with pytest.raises(ValueError, match="user 'sue' was not in the training data"):
        added.add_user("sue", one, update_existing=True, update_all_params=True)
    assert len(added.Theta) == len(fitted.Theta) + 1


def test_a_user_who_moves_all_parameters_is_replaced(frame: pd.DataFrame) -> None:
    model = model_of(maxiter=5).fit(frame)
    user, items = frame.UserId.iloc[0], model.item_mapping_
    others = {name: model.topN(name).tolist() for name in model.user_mapping_[:9] if name != user}
    had = pairs(frame) & {(user, item) for item in items}
    wanted = next(item for item in items if (user, item) not in had)
    one = pd.DataFrame({"ItemId": [wanted], "Count": [5]})
    model.add_user(user, one, update_existing=True, update_all_params=True)
    assert set(model.topN(user, n=len(items))) == set(items) - {wanted}
    for name in others:
        assert not {(name, item) for item in model.topN(name)} & pairs(frame)


def test_row_numbers_of_users_who_move_all_parameters(numbers: pd.DataFrame) -> None:
    model = model_of(reindex=False, maxiter=5).fit(numbers)
    one, users = pd.DataFrame({"ItemId": [3, 1], "Count": [4, 1]}), model.nusers
    model.add_user(users, one, update_all_params=True)
    model.add_user(0, one, update_existing=True, update_all_params=True)
    assert model.nusers == users + 1
    for user in (0, users):
        assert set(model.topN(user, n=model.nitems)) == set(range(model.nitems)) - {1, 3}
    assert_whole(model)


def test_a_user_who_moves_all_parameters_brings_no_items(frame: pd.DataFrame) -> None:
    one = pd.DataFrame({"ItemId": [*frame.ItemId.unique()[:2], "strange"], "Count": [4, 1, 2]})
    half_met = model_of().partial_fit(frame, nusers=999, nitems=999)
    for model in (model_of(maxiter=5).fit(frame), half_met):
        known = copy.deepcopy(model)
        with pytest.warns(
            UserWarning, match="1 of the 3 counts of counts_df were left out: their items"
        ) as caught:
            model.add_user("joe", one, update_all_params=True)
        assert caught[0].filename == __file__
        assert_same_model(model, known.partial_fit(one[:2].assign(UserId="joe"), new_users=True))
        assert model.nitems == known.nitems
        with pytest.raises(ValueError, match="no count of an item that the model has"):
            model.add_user("sue", one[2:], update_all_params=True)
        with pytest.raises(TypeError, match="ncores"):
            model.add_user("sue", one[:2], update_all_params=True, ncores="x")
        assert "sue" not in model.user_dict_


def one_count(**given: Any) -> pd.DataFrame:
    return pd.DataFrame({"UserId": ["u"], "ItemId": ["x"], "Count": [1]} | given)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"nitems": None}, ValueError, "the first partial_fit .* needs nitems"),
        ({"nusers": 0}, ValueError, "nusers=0"),
        ({"nusers": 7}, ValueError, "the batch brings 299 new users, and the model has 0 of nusers=7"),
        ({"batch_type": "rows"}, ValueError, "batch_type='rows' is unknown; choose one of 'users', 'items'"),
        ({"step_size": 1.5}, ValueError, "step_size is 1.5"),
        ({"step_size": np.nan}, ValueError, "step_size is nan"),
        ({"step_size": "x"}, TypeError, "step_size is 'x'"),
        ({"random_seed": -1}, ValueError, "random_seed=-1"),
        ({"counts_df": [1]}, TypeError, "counts_df must be a data frame"),
        ({"counts_df": one_count(UserId=[None])}, ValueError, "missing"),
        ({"counts_df": one_count(Count=[-1])}, ValueError, "count -1"),
        ({"counts_df": sparse.csr_array((3, 4))}, ValueError, "counts_df is empty"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(frame: pd.DataFrame, arguments: dict[str, Any], kind: Any, message: str) -> None:
    model = model_of()
    with pytest.raises(kind, match=message):
        model.partial_fit(**{"counts_df": frame, **sizes(frame)} | arguments)
    assert not model.is_fitted
    assert model.nusers is model.niter is None


def test_what_is_refused_once_fitted(frame: pd.DataFrame) -> None:
    model = model_of(maxiter=2).fit(frame)
    with pytest.raises(ValueError, match="nusers=5 is less than the 299 that the model has"):
        model.partial_fit(frame, nusers=5)
    with pytest.raises(ValueError, match="set keep_all_objs=True before the fit"):
        model_of(maxiter=2, keep_all_objs=False).fit(frame).partial_fit(frame)
    with pytest.raises(ValueError, match="set keep_all_objs=True before the fit"):
        model_of(keep_all_objs=False).partial_fit(frame, **sizes(frame))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("use_float", [True, False])
def test_never_a_nan(frame: pd.DataFrame, backend_name: str, use_float: bool, seed: int) -> None:
    """Batches of one user or one item, 200 factors, counts over nine decades."""
    rng = np.random.default_rng(seed)
    some = frame[::60].assign(Count=lambda rows: np.ceil(10 ** rng.uniform(0, 9, len(rows))))
    model = model_of(k=200, random_seed=seed, use_float=use_float, backend=backend_name)
    for kind, column in (("users", "UserId"), ("items", "ItemId")):
        for batch in list(batches(some, column, some[column].nunique(), seed))[:25]:
            model.partial_fit(batch, kind, **sizes(some))
    assert_whole(model)


def test_the_example_with_parquet(frame: pd.DataFrame, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = tmp_path / "plays.parquet"
    parts = [pyarrow.Table.from_pandas(part, preserve_index=False) for part in batches(frame, "UserId", 4)]
    with pq.ParquetWriter(file, parts[0].schema) as writer:
        for part in parts:
            writer.write_table(part)
    plays, model = pq.ParquetFile(file), model_of()
    for group in np.random.default_rng(0).permutation(plays.num_row_groups):
        model.partial_fit(plays.read_row_group(group).to_pandas(), **sizes(frame))
    assert model.niter == plays.num_row_groups == 4
    assert set(seen_pairs(model)) == pairs(frame)


def test_users_that_are_added_leave_what_was_announced(frame: pd.DataFrame) -> None:
    """Users are still expected in batches after one was added by herself."""
    first, *others = batches(frame, "UserId", 4)
    model = model_of().partial_fit(first, **sizes(frame))
    model.add_user("somebody", frame[["ItemId", "Count"]].drop_duplicates("ItemId").head(5))
    assert model.nusers == frame.UserId.nunique()
    model.partial_fit(others[0])
    assert model.nusers == frame.UserId.nunique()


@pytest.mark.parametrize("hierarchical", [True, False])
def test_new_rows_beside_biases_begin_like_the_others(frame: pd.DataFrame, hierarchical: bool) -> None:
    """Their column of ones is one, and the rates that are blended are those of columns that have some."""
    model = model_of(bias=True, hierarchical=hierarchical, use_float=False, backend="numpy")
    model.partial_fit(frame, **sizes(frame))
    for posterior in model._fitted.posteriors:
        longer = posterior.with_start_rows(3, np.random.default_rng(1))
        mean, pin = longer.shape / longer.exact_rate, posterior.prior.pins[0]
        np.testing.assert_allclose(mean[:, pin.column], 1.0, rtol=1e-15)
        assert (np.delete(mean[-3:], pin.column, axis=1) > 0).all()
    backend = create("numpy", np.dtype(np.float64))
    start = start_sides(model._settings(), backend, (7, 4), seed=1)
    for side in (*start.users, start.items):
        pinned = [pin.column for pin in side.prior.pins]
        assert len(pinned) == 2  # ones, and the biases that wait
        free = np.delete(side.factor.rates.matrix, pinned, axis=1)
        got = average_start_rates(backend, side).factor.rates.rows
        np.testing.assert_allclose(got, free.mean(axis=1), rtol=1e-14)


# -- what a call leaves as it was ------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "argument"), [("users", "items_in_batch"), ("items", "users_in_batch")])
def test_only_members_of_the_own_side_count(frame: pd.DataFrame, kind: str, argument: str) -> None:
    plain, told = (model_of().fit(frame) for _ in range(2))
    plain.partial_fit(frame, kind)
    told.partial_fit(frame, kind, **{argument: ["nobody"]})
    assert_same_model(plain, told)


def test_a_seed_of_new_rows_is_not_that_of_the_model(frame: pd.DataFrame) -> None:
    model = model_of().fit(frame)
    model.partial_fit(frame, random_seed=99)
    assert model.random_seed_ == 3
    first = model_of(random_seed=None).partial_fit(frame, **sizes(frame), random_seed=99)
    assert first.random_seed_ == 99
    assert_same_model(first, model_of(random_seed=99).partial_fit(frame, **sizes(frame)))


def test_rows_that_come_with_one_batch_begin_unlike_those_of_the_next(frame: pd.DataFrame) -> None:
    model = model_of(use_float=False).fit(frame)
    one = frame[:1]
    for name in ("new", "newer"):  # a step of zero leaves items where they begin
        model.partial_fit(one.assign(ItemId=name), step_size=0.0, new_items=True)
    begun = model.Lambda_shp[-2:]
    assert np.ptp(begun) < 0.0101
    assert (begun[0] != begun[1]).all()


def test_what_was_not_kept_does_not_come_back(frame: pd.DataFrame) -> None:
    model = model_of(keep_data=False).fit(frame)
    model.keep_data = True
    model.partial_fit(frame)
    assert not hasattr(model, "seen")


def test_what_a_call_leaves(frame: pd.DataFrame) -> None:
    model = model_of(maxiter=3, stop_crit="maxiter").fit(frame)
    history, mapping = model.history_.copy(), model.user_mapping_.copy()
    before = frame.copy()
    assert model.partial_fit(frame) is model
    assert model.niter == 4
    assert model.train_llk is None
    pd.testing.assert_frame_equal(model.history_, history)
    pd.testing.assert_frame_equal(frame, before)
    assert model.user_mapping_.tolist() == mapping.tolist()
    model = model_of().partial_fit(frame, **sizes(frame))
    assert model.niter == 1
    assert len(model.history_) == 0
    assert model.history_.dtypes.astype(str).to_dict() == {
        "iteration": "int64", "llk": "float64", "elbo": "float64", "val_llk": "float64", "seconds": "float64"
    }  # fmt: skip


def test_a_batch_of_row_numbers_has_those_with_counts(numbers: pd.DataFrame) -> None:
    batch = numbers[numbers.UserId.isin([0, 5])]
    few, same, more = (model_of(use_float=False, reindex=False).fit(numbers) for _ in range(3))
    few.partial_fit(batch)
    same.partial_fit(batch, users_in_batch=[5, 0, 5])
    more.partial_fit(batch[:1], users_in_batch=range(6))
    assert_same_model(few, same)
    first, *others = more.Gamma_shp[:6]
    np.testing.assert_allclose(first.sum() - 5 * 0.3, batch.Count.iloc[0], rtol=1e-12)
    np.testing.assert_allclose(others, 0.3, rtol=1e-12)  # without any count: the prior's shape


@pytest.mark.filterwarnings("ignore:3 counts of zero")
def test_zeros_of_a_batch_are_nothing_that_users_have_had(frame: pd.DataFrame) -> None:
    zeros = frame[:3].assign(ItemId=frame.ItemId.iloc[::-1].to_numpy()[:3], Count=0.0)
    plain, told = (model_of(backend="numpy").partial_fit(frame[:40], **sizes(frame)) for _ in range(2))
    plain.partial_fit(frame[40:80])
    told.partial_fit(pd.concat([frame[40:80], zeros.assign(UserId=frame.UserId.iloc[40])]), new_items=True)
    assert set(seen_pairs(told)) == pairs(frame[:80]) == set(seen_pairs(plain))
    assert told.backend_ == "numpy"
