"""The public class: what it accepts, what it keeps, what it recommends."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from parity import DATA, relative_error
from scipy import sparse
from small_data import IDS

from hpf_gpu import HPF


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(3)
    dense = rng.poisson(rng.gamma(0.3, 3.0, (40, 1)) * rng.gamma(0.3, 1.0, (1, 30)))
    dense[np.arange(30), np.arange(30)] += 1  # nobody is empty but the last users
    users, items = np.nonzero(dense)
    return pd.DataFrame({"UserId": users, "ItemId": items, "Count": dense[users, items]})


def quick(**arguments):
    return HPF(**{"k": 4, "maxiter": 10, "random_seed": 1, "verbose": False} | arguments)


@pytest.fixture(scope="module")
def fitted(counts):
    return quick().fit(counts)


def as_matrix(frame, container):
    coo = sparse.coo_array((frame.Count.to_numpy(), (frame.UserId.to_numpy(), frame.ItemId.to_numpy())))
    return container(coo)


# -- forms of data -----------------------------------------------------------------------------


class OnlyDLPack:
    """An array of another library, on the host."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **keywords):
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_arrays_of_other_libraries():
    rng = np.random.default_rng(5)
    table = np.stack([rng.integers(0, 20, 200), rng.integers(0, 9, 200), rng.integers(1, 5, 200)], axis=1)
    common = {"k": 3, "maxiter": 3, "random_seed": 1, "verbose": False, "backend": "numpy"}
    got, want = HPF(**common).fit(OnlyDLPack(table)), HPF(**common).fit(table)
    np.testing.assert_array_equal(got.Theta, want.Theta)
    assert got.eval_llk(OnlyDLPack(table)) == want.eval_llk(table)


def test_an_array_that_does_not_come_to_the_host():
    class Stays(OnlyDLPack):
        def __dlpack__(self, **keywords):
            raise BufferError("this device stays where it is")

    with pytest.raises(TypeError, match=r"Stays cannot be copied to the host .*stays where it is"):
        HPF(k=3, verbose=False, backend="numpy").fit(Stays(np.ones((4, 3))))


@pytest.mark.parametrize(
    "form",
    [
        lambda frame: frame,
        lambda frame: frame[["Count", "ItemId", "UserId"]].assign(more="x"),
        lambda frame: frame[["UserId", "ItemId", "Count"]].to_numpy(),
        lambda frame: frame[["UserId", "ItemId", "Count"]].to_numpy(dtype=float),
        lambda frame: frame.astype({"UserId": "Int64", "Count": "Float64"}),
        lambda frame: frame.astype({"UserId": object, "ItemId": object, "Count": object}),
        lambda frame: frame.set_index(frame.index[::-1] * 3 + 100),
    ],
    ids=["frame", "columns", "array", "float-array", "nullable", "objects", "odd-index"],
)
def test_forms_of_triplets_are_equal(form, counts, fitted):
    given = form(counts)
    before = given.copy()
    model = quick().fit(given)
    assert np.array_equal(model.Theta, fitted.Theta)
    assert np.array_equal(model.Beta, fitted.Beta)
    assert (given == before).all().all() if isinstance(given, pd.DataFrame) else np.array_equal(given, before)


@pytest.mark.parametrize(
    "container",
    [
        sparse.coo_array, sparse.csr_array, sparse.csc_array,
        sparse.coo_matrix, sparse.csr_matrix, sparse.csc_matrix, sparse.lil_matrix,
    ],
    ids=lambda container: container.__name__,
)  # fmt: skip
def test_forms_of_matrices_are_equal(container, counts):
    matrix = as_matrix(counts, container)
    before = matrix.copy()
    model = quick().fit(matrix)
    expected = quick(reindex=False).fit(counts)
    assert np.array_equal(model.Theta, expected.Theta)
    assert model.user_mapping_ is None
    assert model.topN(0, n=3).tolist() == expected.topN(0, n=3).tolist()
    assert type(matrix) is type(before)
    assert (matrix != before).nnz == 0


def test_unsorted_matrix_with_duplicates_is_summed_and_left_alone():
    matrix = sparse.csr_array(
        (np.array([1.0, 2.0, 3.0, 4.0]), np.array([2, 0, 2, 1]), np.array([0, 3, 4])), shape=(2, 3)
    )
    indices, data = matrix.indices.copy(), matrix.data.copy()
    model = quick().fit(matrix)
    assert np.array_equal(matrix.indices, indices)
    assert np.array_equal(matrix.data, data)
    tidy = quick().fit(sparse.csr_array([[2.0, 0.0, 4.0], [0.0, 4.0, 0.0]]))
    assert np.array_equal(model.Theta, tidy.Theta)
    matrix.indices[:] = 0  # the model holds no part of the caller's arrays
    assert model.topN(0, n=3).tolist() == [1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, bool, np.float32])
def test_duplicates_of_narrow_types_do_not_overflow(dtype):
    """COO sums in its own type when it is converted: three times 100 in int8, or True twice."""
    value = True if dtype is bool else 100
    triplets = np.full(3, value, dtype=dtype), (np.zeros(3, int), np.zeros(3, int))
    model = quick(use_float=False).fit(sparse.coo_array(triplets, shape=(1, 2)))
    assert (model.Gamma_shp - 0.3).sum() == pytest.approx(3 * int(value), rel=1e-12)


def test_the_same_pair_twice_is_summed(counts):
    halves = pd.concat([counts.assign(Count=counts.Count / 2)] * 2)
    assert (
        relative_error(quick(use_float=False).fit(halves).Theta, quick(use_float=False).fit(counts).Theta)
        < 1e-12
    )


def test_zero_counts_are_dropped_with_one_warning(counts, fitted):
    extra = pd.DataFrame({"UserId": [99, 0], "ItemId": [0, 99], "Count": [0, 0]})
    with pytest.warns(UserWarning, match="2 counts of zero") as caught:
        model = quick().fit(pd.concat([counts, extra]))
    assert len(caught) == 1
    assert np.array_equal(model.Theta, fitted.Theta)
    with pytest.warns(UserWarning, match="1 counts of zero"):
        quick().fit(sparse.coo_array(([3, 0], ([0, 1], [0, 1]))))


@pytest.mark.parametrize("stop_crit", ["maxiter", "train-llk", "diff-norm", "elbo"])
def test_fractional_counts_are_kept_under_every_rule(stop_crit):
    frame = pd.DataFrame({"UserId": ["a", "b"], "ItemId": ["x", "y"], "Count": [0.4, 1e-3]})
    model = quick(stop_crit=stop_crit, use_float=False).fit(frame)
    assert model.nusers == model.nitems == 2
    assert np.allclose((model.Gamma_shp - 0.3).sum(axis=1), [0.4, 1e-3], rtol=1e-12)


@pytest.mark.parametrize("kind", sorted(IDS))
def test_ids_of_any_hashable_type_work_everywhere(kind, counts, fitted):
    names = np.empty(40, dtype=object)
    names[:] = IDS[kind]
    frame = pd.DataFrame(
        {
            "UserId": pd.Series(names[counts.UserId.to_numpy()]).tolist(),
            "ItemId": pd.Series(names[counts.ItemId.to_numpy()]).tolist(),
            "Count": counts.Count.to_numpy(),
        }
    )
    model = quick().fit(frame, val_set=frame)
    assert np.array_equal(model.Theta, fitted.Theta)
    for user in (0, 7):
        top = fitted.topN(user, n=5)
        got = model.topN(names[user], n=5)
        assert [model.item_dict_[item] for item in got] == [fitted.item_dict_[item] for item in top]
        one = model.predict(names[user], got[0])
        assert np.isscalar(one)
        assert one == fitted.predict(user, top[0])
        many = model.predict([names[user]] * 5, list(got))
        assert np.array_equal(many, fitted.predict([user] * 5, top))
        assert list(model.topN(names[user], n=2, exclude_seen=False, items_pool=list(got))) == list(got[:2])
    assert model.user_dict_[names[3]] == fitted.user_dict_[3]
    assert model.eval_llk(frame)["nobs"] == len(counts)
    assert np.isnan(model.predict("nobody", names[0]))


def test_missing_ids_never_match(fitted):
    assert np.isnan(fitted.predict(np.nan, 0))
    assert np.isnan(fitted.predict(None, 0))
    assert np.isnan(fitted.predict([0, None], [0, 0])).tolist() == [False, True]


# -- results -----------------------------------------------------------------------------------


def test_attributes(counts, fitted):
    n, m = fitted.nusers, fitted.nitems
    assert (n, m) == (counts.UserId.nunique(), counts.ItemId.nunique())
    assert fitted.Theta.shape == fitted.Gamma_shp.shape == fitted.Gamma_rte.shape == (n, 4)
    assert fitted.Beta.shape == fitted.Lambda_shp.shape == fitted.Lambda_rte.shape == (m, 4)
    assert fitted.k_rte.shape == (n, 1)
    assert fitted.t_rte.shape == (m, 1)
    assert fitted.Theta.dtype == fitted.Gamma_rte.dtype == np.float32
    assert fitted.user_mapping_.tolist() == list(dict.fromkeys(counts.UserId))
    assert fitted.user_dict == fitted.user_dict_ == {u: j for j, u in enumerate(fitted.user_mapping)}
    assert fitted.item_dict == fitted.item_dict_ == {i: j for j, i in enumerate(fitted.item_mapping)}
    assert fitted.niter == 10
    assert fitted.is_fitted
    assert fitted.k == 4
    assert fitted.train_llk == fitted.history_.llk.iloc[-1]
    assert list(fitted.history_.columns) == ["iteration", "llk", "elbo", "val_llk", "seconds"]
    assert np.allclose(fitted.Theta, fitted.Gamma_shp / fitted.Gamma_rte, rtol=1e-6)


def test_lean_models(counts, fitted):
    lean = quick(keep_all_objs=False, keep_data=False, produce_dicts=False).fit(counts)
    assert np.array_equal(lean.Theta, fitted.Theta)
    assert not hasattr(lean, "Gamma_shp")
    assert not hasattr(lean, "t_rte")
    assert lean.user_dict_ is None
    assert lean.predict(0, 0) == fitted.predict(0, 0)
    assert lean.topN(0, n=4, exclude_seen=False).tolist() == fitted.topN(0, n=4, exclude_seen=False).tolist()
    with pytest.raises(ValueError, match="fit with keep_data=True"):
        lean.topN(0)


def test_every_count_is_shared_out_completely(counts):
    model = quick(use_float=False).fit(counts)
    totals = counts.groupby("UserId").Count.sum().loc[model.user_mapping_].to_numpy()
    assert np.allclose((model.Gamma_shp - 0.3).sum(axis=1), totals, rtol=1e-12)


def test_predict_pairs_and_broadcasting(fitted):
    expected = fitted.Theta @ fitted.Beta.T
    users, items = fitted.user_mapping_, fitted.item_mapping_
    assert np.allclose(fitted.predict(users[3], items), expected[3], rtol=1e-6)
    assert np.allclose(fitted.predict(users, items[2]), expected[:, 2], rtol=1e-6)
    some = fitted.predict([users[0], 12345, users[1]], [items[0], items[0], "x"])
    assert np.isnan(some).tolist() == [False, True, True]
    assert some.dtype == np.float32
    assert fitted.predict([], []).shape == (0,)
    assert fitted.predict(np.array(users[0]), np.int64(items[0])) == fitted.predict(users[0], items[0])
    with pytest.raises(ValueError, match="2 users and 3 items"):
        fitted.predict(users[:2], items[:3])


def test_predict_with_row_numbers(counts):
    model = quick(reindex=False).fit(counts)
    assert np.isnan(model.predict([0, -1, 40, 0.5, "0", 2**70, True], [0] * 7)).tolist() == [
        False, True, True, True, True, True, False,
    ]  # fmt: skip
    assert np.isnan(model.predict(-1, 0))
    assert not np.isnan(model.predict(3.0, np.uint8(2)))
    with pytest.raises(ValueError, match="user 40 was not"):
        model.topN(40)


def test_predict_follows_the_fitted_model_and_not_later_settings(counts, backend_name):
    for use_float in (True, False):
        model = quick(use_float=use_float, backend=backend_name).fit(counts)
        users, items = model.user_mapping_[:3], model.item_mapping_[:3]
        before, llk = model.predict(users, items), model.eval_llk(counts)
        model.use_float = not use_float
        assert np.array_equal(model.predict(users, items), before)
        assert model.eval_llk(counts) == llk


def test_a_model_predicts_where_its_backend_is_missing(counts, monkeypatch):
    import sys

    model = quick(backend="openmp" if "openmp" in usable() else "numpy").fit(counts)
    before = model.predict(model.user_mapping_, model.item_mapping_[0])
    monkeypatch.setitem(sys.modules, "hpf_gpu._openmp", None)
    monkeypatch.delitem(sys.modules, "hpf_gpu.backends.openmp_backend", raising=False)
    monkeypatch.setattr("hpf_gpu.backends._loaded", {})
    warnings.simplefilter("ignore", RuntimeWarning)  # that 'auto' took numpy
    assert relative_error(model.predict(model.user_mapping_, model.item_mapping_[0]), before) < 1e-6


def usable():
    from hpf_gpu.backends import NAMES, BackendUnavailable, create

    names = set()
    for name in NAMES:
        with contextlib.suppress(BackendUnavailable):
            names.add(create(name, np.float32).name)
    return names


def test_collections_of_ids_of_any_kind(fitted):
    users, items = list(fitted.user_mapping_[:3]), list(fitted.item_mapping_[:3])
    expected = fitted.predict(users, items)
    for collect in (iter, tuple, np.array, pd.Series, lambda ids: dict.fromkeys(ids).keys(), pd.Categorical):
        assert np.array_equal(fitted.predict(collect(users), collect(items)), expected)
    assert np.array_equal(fitted.predict(np.array(users, np.float16), items), expected)


def test_an_unknown_tuple_is_one_id_where_ids_are_tuples():
    frame = pd.DataFrame({"UserId": [(1, 2), (3, 4)], "ItemId": ["x", "y"], "Count": [1, 2]})
    model = quick().fit(frame)
    assert np.isscalar(model.predict((9, 9), "x"))
    assert np.isnan(model.predict((9, 9), "x"))
    assert model.predict([(1, 2), (9, 9)], "x").shape == (2,)


def test_topn_agrees_with_sorting(fitted, counts):
    scores = pd.DataFrame(fitted.Theta @ fitted.Beta.T, fitted.user_mapping_, fitted.item_mapping_)
    for user, own in scores.iterrows():
        unseen = own.drop(counts.ItemId[user == counts.UserId].unique())
        pool = fitted.item_mapping_[::2]
        for candidates, arguments in (
            (own, {"n": 7, "exclude_seen": False}),
            (unseen, {"n": 7}),
            (unseen, {"n": 1000}),
            (unseen[unseen.index.isin(pool)], {"n": 4, "items_pool": pool}),
        ):
            items = fitted.topN(user, **arguments)
            best = np.sort(candidates)[::-1][: arguments["n"]]
            assert len(set(items)) == len(best)
            # Float32 sums of four positive products, each way with four roundings of 6e-8 at most.
            np.testing.assert_allclose(candidates.loc[items], best, rtol=5e-7)


def test_topn_of_many_users_is_topn_of_each(counts, backend_name):
    fitted = quick(backend=backend_name).fit(counts)
    users = list(fitted.user_mapping_)
    for arguments in ({}, {"n": 3, "exclude_seen": False}, {"n": 2, "items_pool": fitted.item_mapping_[::2]}):
        want = [fitted.topN(user, **arguments).tolist() for user in users]
        for collect in (list, np.array, pd.Series, iter, tuple):
            got = fitted.topN(collect(users), **arguments)
            assert got.shape == (len(users), arguments.get("n", 10))
            assert [[item for item in row if item is not None] for row in got] == want
    full = fitted.topN(users[::-1], n=4, exclude_seen=False)
    assert full.dtype == fitted.item_mapping_.dtype
    assert fitted.topN([users[3], users[3]], n=4, exclude_seen=False).tolist() == [full[-4].tolist()] * 2
    assert fitted.topN([users[3]], n=4).tolist() == [fitted.topN(users[3], n=4).tolist()]
    assert fitted.topN([], n=4).shape == (0, 4)
    assert fitted.topN(users[:2], n=10**9, exclude_seen=False).shape == (2, fitted.nitems)
    assert fitted.topN(users[:2], n=9, exclude_seen=False, items_pool=fitted.item_mapping_[:5]).shape == (
        2,
        5,
    )


@pytest.mark.parametrize("kind", sorted(IDS))
def test_topn_rows_end_in_none(kind):
    """Bob has had three of four items; ids keep their type beside None."""
    items = IDS[kind][:4]
    frame = pd.DataFrame(
        {"UserId": ["ann", "bob", "bob", "bob"], "ItemId": [items[3], *items[:3]], "Count": 1}
    )
    model = quick().fit(frame)
    both = model.topN(["bob", "ann"], n=2)
    assert both.shape == (2, 2)
    assert both.dtype == object
    assert both[0, 0] == model.topN("bob")[0]
    assert both[0, 0] == model.item_mapping_[0]
    assert both[0, 1] is None
    assert list(both[1]) == list(model.topN("ann", n=2))
    assert set(model.topN("ann", n=9)) == set(model.item_mapping_[1:])


def test_topn_of_many_with_row_numbers(counts):
    model = quick().fit(as_matrix(counts, sparse.csr_array))
    everybody = model.topN(range(model.nusers), n=3, exclude_seen=False)
    assert everybody.dtype == np.int64
    assert everybody.tolist() == [
        model.topN(u, n=3, exclude_seen=False).tolist() for u in range(model.nusers)
    ]
    left = model.topN(range(model.nusers), n=model.nitems)
    assert [[i for i in row if i is not None] for row in left] == [
        model.topN(u, n=model.nitems).tolist() for u in range(model.nusers)
    ]


def test_topn_tells_one_tuple_from_many_users():
    frame = pd.DataFrame({"UserId": [(1, 2), (3, 4)], "ItemId": [("x", 1), ("y", 2)], "Count": [1, 2]})
    model = quick().fit(frame)
    assert model.topN((1, 2)).tolist() == [("y", 2)]
    many = model.topN([(1, 2), (3, 4)], n=1)
    assert many.shape == (2, 1)
    assert many[0, 0] == ("y", 2)
    with pytest.raises(ValueError, match=r"user \(9, 9\) was not in the training data"):
        model.topN((9, 9))


def test_topn_names_unknown_users(fitted):
    known = fitted.user_mapping_[0]
    with pytest.raises(ValueError, match=r"^user 'eve' was not in the training data$"):
        fitted.topN([known, "eve", known, "eve"])
    with pytest.raises(ValueError, match=r"^users 'a', 'b', 'c' and 2 more were not in the training data$"):
        fitted.topN(["a", known, *"bcde"])
    lean = copy.copy(fitted)
    lean._fitted = dataclasses.replace(fitted._fitted, seen=None)
    with pytest.raises(ValueError, match="fit with keep_data=True"):
        lean.topN([known])


def test_topn_pools(fitted):
    items = fitted.item_mapping_
    with pytest.warns(UserWarning, match="2 of the items to choose from"):
        top = fitted.topN(0, n=3, exclude_seen=False, items_pool=["x", items[4], -5, items[4], items[1]])
    assert sorted(top) == sorted([items[4], items[1]])
    assert fitted.topN(0, n=3, exclude_seen=False, items_pool=[items[4]]).tolist() == [items[4]]
    for pool in (set(items[:4]), (item for item in items[:4]), pd.Series(items[:4], index=[7, 7, 8, 9])):
        assert sorted(fitted.topN(0, exclude_seen=False, items_pool=pool)) == sorted(items[:4])
    # Of what a user has had nothing is recommended, however few are left.
    indptr, seen = fitted._fitted.seen
    row = int(np.argmax(np.diff(indptr)))
    user, had = fitted.user_mapping_[row], items[seen[indptr[row] : indptr[row + 1]]]
    pool = [had[0], np.setdiff1d(items, had)[0], had[-1]]
    assert fitted.topN(user, n=3, items_pool=pool).tolist() == [pool[1]]
    assert fitted.topN([user], n=3, items_pool=pool).tolist() == [[pool[1], None, None]]
    with pytest.raises(ValueError, match="none of the items"):
        fitted.topN(0, items_pool=["x"])
    with pytest.raises(ValueError, match="items to choose from is empty"):
        fitted.topN(0, items_pool=[])
    with pytest.raises(ValueError, match="'nobody'"):
        fitted.topN("nobody")
    with pytest.raises(ValueError, match="n=0"):
        fitted.topN(0, n=0)
    with pytest.raises(TypeError, match="n must be an integer"):
        fitted.topN(0, n="3")
    assert len(fitted.topN(0, n=np.int32(2))) == len(fitted.topN(0, n=2.0)) == 2


def test_eval_llk(fitted, counts):
    rates = np.einsum(
        "zk,zk->z",
        fitted.Theta[[fitted.user_dict_[u] for u in counts.UserId]].astype(float),
        fitted.Beta[[fitted.item_dict_[i] for i in counts.ItemId]],
    )
    expected = (counts.Count * np.log(rates) - rates).sum()
    got = fitted.eval_llk(counts)
    assert got["nobs"] == len(counts)
    assert got["llk"] == pytest.approx(expected, rel=1e-6)
    from scipy.special import gammaln

    full = fitted.eval_llk(counts, full_llk=True)["llk"]
    assert full == pytest.approx(expected - gammaln(counts.Count + 1.0).sum(), rel=1e-6)
    stranger = pd.DataFrame({"UserId": [0, "x"], "ItemId": [0, 0], "Count": [1, 5]})
    assert fitted.eval_llk(stranger)["nobs"] == 1
    with pytest.raises(ValueError, match="no count whose user and item"):
        fitted.eval_llk(stranger.iloc[1:])


def test_held_out_rows_of_the_same_pair_are_summed(counts, fitted):
    twice = pd.concat([counts.iloc[::2], counts.iloc[::3], counts.iloc[::2]], ignore_index=True)
    summed = twice.groupby(["UserId", "ItemId"], as_index=False, sort=False).Count.sum()
    assert len(summed) < len(twice)
    matrix = as_matrix(twice, sparse.coo_array)
    for model, several in ((fitted, twice), (quick().fit(as_matrix(counts, sparse.csr_array)), matrix)):
        for full_llk in (False, True):
            got, want = (model.eval_llk(given, full_llk=full_llk) for given in (several, summed))
            assert got["nobs"] == want["nobs"] == len(summed)
            # The same sum, perhaps in another order.
            assert got["llk"] == pytest.approx(want["llk"], rel=1e-12)
    got, want = (quick().fit(counts, val_set=given).history_.val_llk for given in (twice, summed))
    assert got.to_numpy() == pytest.approx(want.to_numpy(), rel=1e-12)


# -- stopping ----------------------------------------------------------------------------------


def test_stopping_rules(counts):
    train, held_out = counts.iloc[::2], counts.iloc[1::2]
    for stop_crit in ("train-llk", "val-llk", "elbo"):
        model = quick(stop_crit=stop_crit, maxiter=500, check_every=3, stop_thr=1e-3).fit(train, held_out)
        column = {"train-llk": "llk", "val-llk": "val_llk", "elbo": "elbo"}[stop_crit]
        watched = model.history_[column].to_numpy()
        gains = np.diff(watched) / np.abs(watched[:-1])
        assert 3 < model.niter < 500
        assert model.niter % 3 == 0
        assert (gains[:-1] > 1e-3).all()
        assert gains[-1] <= 1e-3
    norm = quick(stop_crit="diff-norm", maxiter=500, check_every=4, stop_thr=0.05).fit(train)
    assert (norm.history_.diff_norm.to_numpy()[:-1] >= 0.05).all()
    assert norm.history_.diff_norm.iloc[-1] < 0.05
    assert quick(stop_crit="maxiter", maxiter=17).fit(train).niter == 17
    assert quick(stop_crit="train-llk", maxiter=None, check_every=1).fit(train).niter > 1


def test_diff_norm_is_that_of_theta(counts):
    five, seven = (quick(stop_crit="maxiter", maxiter=n).fit(counts) for n in (5, 7))
    watched = quick(stop_crit="diff-norm", stop_thr=1e-30, check_every=1, maxiter=7).fit(counts)
    six = quick(stop_crit="maxiter", maxiter=6).fit(counts)
    expected = [np.linalg.norm(six.Theta - five.Theta), np.linalg.norm(seven.Theta - six.Theta)]
    assert watched.history_.diff_norm.tolist()[-2:] == pytest.approx(expected, rel=1e-5)


def test_maxiter_below_check_every_works(counts):
    model = HPF(k=3, maxiter=5, verbose=False).fit(counts)
    assert model.niter == 5
    assert model.history_.iteration.tolist() == [5]


def test_seeds(counts):
    drawn = HPF(k=3, maxiter=2, verbose=False).fit(counts)
    again = HPF(k=3, maxiter=2, verbose=False, random_seed=drawn.random_seed_).fit(counts)
    assert drawn.random_seed is None
    assert np.array_equal(drawn.Theta, again.Theta)
    assert not np.array_equal(HPF(k=3, maxiter=2, verbose=False).fit(counts).Theta, drawn.Theta)
    zero = [quick(random_seed=0).fit(counts) for _ in range(2)]
    assert np.array_equal(zero[0].Theta, zero[1].Theta)


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_two_runs_are_bit_identical(schedule, counts, backend_name):
    arguments = {"schedule": schedule, "check_every": 5, "compute_elbo": True}
    runs = [quick(backend=backend_name, **arguments).fit(counts) for _ in range(2)]
    assert np.array_equal(runs[0].Theta, runs[1].Theta)
    assert np.array_equal(runs[0].history_.elbo, runs[1].history_.elbo)


def test_fits_in_several_threads_at_once(backend_name):
    frame = DATA["random_strings"]()
    alone = quick(backend=backend_name).fit(frame)
    with ThreadPoolExecutor(3) as pool:
        models = pool.map(lambda _: quick(backend=backend_name).fit(frame), range(6))
    assert all(np.array_equal(model.Theta, alone.Theta) for model in models)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_fits_too(backend_name):
    """OpenMP's threads do not survive a fork; waiting for them would never end."""
    if backend_name == "cuda":
        pytest.skip("CUDA itself does not survive a fork: test_cuda.py has what a child is told")
    frame = DATA["online_retail"]()
    parent = quick(backend=backend_name, use_float=False).fit(frame)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        fitting = pool.apply_async(quick(backend=backend_name, use_float=False).fit, (frame,))
        assert relative_error(fitting.get(timeout=600).Theta, parent.Theta) < 1e-12


# -- the object --------------------------------------------------------------------------------


def test_parameters_stay_as_given(counts):
    given = {
        "k": np.int64(3), "a": np.float32(0.5), "maxiter": np.int16(4), "ncores": -1,
        "random_seed": np.uint8(7), "check_every": 2.0, "stop_thr": 1,
        "use_float": np.True_, "stop_crit": "maxiter", "save_folder": None,
    }  # fmt: skip
    model = HPF(**given, verbose=False).fit(counts).fit(as_matrix(counts, sparse.csr_array)).fit(counts)
    for name, value in given.items():
        assert getattr(model, name) is value
    assert model.Theta.shape[1] == 3


def test_one_fit_never_changes_what_the_next_accepts(counts, fitted):
    model = quick()
    model.fit(as_matrix(counts, sparse.coo_array))
    model.fit(counts.assign(UserId=counts.UserId.map("u{}".format)), val_set=None)
    assert model.fit(counts) is model
    assert np.array_equal(model.Theta, fitted.Theta)


def test_bad_data_lose_nothing(counts):
    model = quick().fit(counts)
    theta, top = model.Theta.copy(), model.topN(0)
    with pytest.raises(ValueError, match="-1"):
        model.fit(counts.assign(Count=-1))
    assert np.array_equal(model.Theta, theta)
    assert np.array_equal(model.topN(0), top)


def test_copies_and_pickles(counts, fitted):
    model = quick().fit(counts)
    model.step_size = None
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(twin.topN(0), fitted.topN(0))
        assert twin.predict(0, 0) == fitted.predict(0, 0)
        assert np.array_equal(twin.fit(counts).Theta, fitted.Theta)
    assert pickle.loads(pickle.dumps(HPF())).k == 30


def test_unfitted_models_say_so():
    model = HPF()
    assert not model.is_fitted
    assert model.Theta is model.Beta is model.user_mapping_ is model.item_dict_ is model.niter is None
    for call in (lambda: model.predict(0, 0), lambda: model.topN(0), lambda: model.eval_llk(None)):
        with pytest.raises(ValueError, match="call fit first"):
            call()


def test_interrupt_keeps_the_last_iteration(counts):
    model = quick(stop_crit="maxiter", maxiter=10**9)
    # A shell starts what it runs in the background deaf to Ctrl-C.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.warns(UserWarning, match=r"interrupted; iteration \d+ is kept"):
            model.fit(counts)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert model.is_fitted
    assert model.history_.iteration.tolist() == [model.niter]
    assert model.train_llk == model.history_.llk.iloc[-1]
    assert np.isfinite(model.Theta).all()
    assert model.topN(0, n=3).tolist() == model.topN(0, n=5).tolist()[:3]


def test_interrupt_in_every_place_keeps_a_finished_iteration(counts, monkeypatch):
    from hpf_gpu.backends.numpy_backend import NumpyBackend

    def model_after(n):
        return quick(stop_crit="maxiter", maxiter=n, backend="numpy").fit(counts)

    for operation, per_iteration in (("allocate", 1), ("gamma_update", 2)):
        for stop_at in range(2 * per_iteration + 1, 4 * per_iteration + 1):
            calls = {"left": stop_at + (2 if operation == "gamma_update" else 0)}  # start values: two updates
            original = getattr(NumpyBackend, operation)

            def interrupting(*arguments, original=original, calls=calls, **options):
                calls["left"] -= 1
                if calls["left"] == 0:
                    raise KeyboardInterrupt
                return original(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(NumpyBackend, operation, interrupting)
                with pytest.warns(UserWarning, match="interrupted"):
                    model = model_after(50)
            finished = (stop_at - 1) // per_iteration
            assert model.niter == finished
            assert np.array_equal(model.Theta, model_after(finished).Theta)
            assert np.array_equal(model.Lambda_shp, model_after(finished).Lambda_shp)


def test_interrupt_before_the_first_iteration_is_passed_on(counts, monkeypatch):
    from hpf_gpu.backends.numpy_backend import NumpyBackend

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(NumpyBackend, "allocate", interrupt)
    model = quick(backend="numpy")
    with pytest.raises(KeyboardInterrupt):
        model.fit(counts)
    assert not model.is_fitted


def test_progress_goes_to_standard_error(counts, capsys):
    quick(verbose=True).fit(counts)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "10/10" in captured.err
    assert "llk=" in captured.err
    quick(verbose=False).fit(counts)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("keep_all_objs", [True, False])
def test_save_folder(keep_all_objs, counts, tmp_path):
    model = quick(save_folder=tmp_path, use_float=False, keep_all_objs=keep_all_objs).fit(counts)
    assert hasattr(model, "Gamma_shp") is keep_all_objs
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        "Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "kappa_rte", "tau_rte",
        "users.csv", "items.csv", "hyperparameters.txt",
    }  # fmt: skip
    assert np.allclose(np.loadtxt(tmp_path / "Theta", delimiter=","), model.Theta, atol=1e-9)
    assert pd.read_csv(tmp_path / "users.csv").iloc[:, 0].tolist() == model.user_mapping_.tolist()
    assert "k: 4" in (tmp_path / "hyperparameters.txt").read_text()


def test_time_is_recorded(fitted):
    assert 0 < fitted.history_.seconds.iloc[-1] < time.perf_counter()


@pytest.mark.parametrize("where", ["frame", "matrix", "val_set", "eval_llk"])
def test_warnings_point_at_the_users_line(where):
    table = np.array([[0, 0, 1], [1, 1, 2], [0, 1, 3], [1, 0, 0]])
    frame = pd.DataFrame(table, columns=["UserId", "ItemId", "Count"])
    model = HPF(k=2, maxiter=2, verbose=False, backend="numpy")
    work = {
        "frame": lambda: model.fit(frame),
        "matrix": lambda: model.fit(sparse.csr_array((table[:, 2], (table[:, 0], table[:, 1])))),
        "val_set": lambda: model.fit(frame[:3], val_set=frame),
        "eval_llk": lambda: model.fit(frame[:3]).eval_llk(frame),
    }[where]
    with pytest.warns(UserWarning, match="counts of zero") as warned:
        work()
    assert [warning.filename for warning in warned] == [__file__]


def test_factors_beyond_the_precision_are_an_error():
    model = HPF(k=2, maxiter=5, random_seed=1, verbose=False, hierarchical=False, a=1e10, b_prime=1e-30)
    with pytest.raises(ValueError, match="is too large for float32: set use_float=False"):
        model.fit(sparse.eye_array(3, format="csr") * 2)
    assert not model.is_fitted
    # Nor do batches and users leave such factors: the model stays as it was.
    model = HPF(k=2, random_seed=1, verbose=False, hierarchical=False, a=1e30, b_prime=1e-30)
    frame = pd.DataFrame({"UserId": [0, 1, 2], "ItemId": [0, 1, 0], "Count": [1.0, 2.0, 3.0]})
    model.partial_fit(frame, nusers=3, nitems=2, step_size=1.0)
    before = model.Theta.copy()
    with pytest.raises(ValueError, match="is too large for float32: set use_float=False"):
        model.partial_fit(frame, step_size=1.0)
    assert np.array_equal(model.Theta, before)
    assert model.niter == 1


def test_auto_is_asked_for_the_width_with_biases(monkeypatch):
    from hpf_gpu import backends

    asked, choose = [], backends.choose
    monkeypatch.setattr(backends, "choose", lambda *a, k, **o: asked.append(k) or choose(*a, k=k, **o))
    HPF(k=4, bias=True, maxiter=2, verbose=False).fit(sparse.eye_array(5, format="csr"))
    assert asked == [6]
