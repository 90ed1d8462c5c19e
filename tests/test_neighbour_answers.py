"""What a model with neighbours answers, and its files: predictions, lists, explanations, checkpoints."""

from __future__ import annotations

import copy
import pickle

import altered
import numpy as np
import oracle
import pandas as pd
import pytest
from neighbour_models import FRAME, M, N, Y, dense_rates, fit, model_of, rows_of, weights_of
from parity import relative_error
from scipy import sparse
from small_data import IDS

from hpf_gpu import HPF, ModelFileError

WAYS = {"both": {}, "no factors": {"k": 0}, "float32": {"use_float": True}}
HELD_OUT = sparse.csr_array(np.roll(Y, 1, axis=1) * (Y.sum(axis=1, keepdims=True) > 0))
NEW = np.random.default_rng(4).poisson(0.4, (3, M)) + np.eye(3, M)


def fitted(way="both", **others):
    return model_of(**WAYS[way] | others).fit(sparse.csr_array(Y))


@pytest.fixture(scope="module", params=WAYS)
def model(request, backend_name):
    """A fit that nobody may change."""
    return fitted(request.param, backend=backend_name)


def limit_of(model):
    return 1e-6 if model.use_float else 1e-12


# -- expected counts ---------------------------------------------------------------------------


def test_predict(model):
    """One pair, an item for all users, unknown ids; and the rates of all pairs are those of both terms."""
    want = dense_rates(model)
    users, items = np.divmod(np.random.default_rng(1).permutation(N * M), M)
    got = model.predict(users, items)
    assert got.dtype == model.Theta.dtype
    assert relative_error(got, want[users, items]) < limit_of(model)
    assert model.predict(3, 4) == pytest.approx(want[3, 4], rel=limit_of(model))
    assert relative_error(model.predict(np.arange(N), 4), want[:, 4]) < limit_of(model)
    assert np.isnan(model.predict([0, N], [M, 0])).all()
    # The term is there, and it is not that of the factors.
    assert relative_error(want, model.Theta @ model.Beta.T) > 0.1


@pytest.mark.parametrize("full", [False, True])
def test_held_out_likelihood_is_that_of_the_fit(model, full, backend_name):
    rates, (u, i) = dense_rates(model), HELD_OUT.nonzero()
    y = HELD_OUT.toarray()[u, i]
    want = float((y * np.log(rates[u, i]) - rates[u, i]).sum()) - full * oracle.log_factorial_sum(y)
    got = model.eval_llk(HELD_OUT, full_llk=full)
    assert got == {"llk": pytest.approx(want, rel=1e-6 if model.use_float else 1e-12), "nobs": len(y)}
    given = {"k": model.k, "use_float": model.use_float, "full_llk": full, "backend": backend_name}
    during = model_of(**given).fit(sparse.csr_array(Y), HELD_OUT)
    assert during.history_.val_llk.iloc[-1] == pytest.approx(
        got["llk"], rel=1e-5 if model.use_float else 1e-12
    )


# -- lists -------------------------------------------------------------------------------------


def assert_best(codes, rates, n, left_out):
    """The ``n`` best that are not left out, by score because two items may be within a rounding error."""
    _, best = oracle.top_items(rates[None], n, [left_out])
    best = best[0][np.isfinite(best[0])]
    assert len(set(codes)) == len(codes) == len(best)
    assert not set(codes) & set(left_out)
    assert rates[codes] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("pool", [None, [20, 3, 4, 11, 7, 0]], ids=["", "pool"])
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("n", [1, 4, 100])
def test_lists(model, n, exclude_seen, pool):
    """Of one user and of many; as ids and as a table with scores."""
    rates = dense_rates(model)
    users = [5, 0, 7, 39, 5]
    many = model.topN(users, n=n, exclude_seen=exclude_seen, items_pool=pool)
    table = model.recommend(users, n, exclude_seen=exclude_seen, items=pool)
    assert list(table) == ["UserId", "ItemId", "Score"]
    assert table.Score.to_numpy() == pytest.approx(rates[table.UserId, table.ItemId], rel=1e-5)
    begin = 0
    for user, row in zip(users, many, strict=True):
        codes = [int(item) for item in row if item is not None]
        out = set(np.flatnonzero(Y[user])) if exclude_seen else set()
        out |= set() if pool is None else set(range(M)) - set(pool)
        assert_best(codes, rates[user], n, list(out))
        single = model.topN(user, n=n, exclude_seen=exclude_seen, items_pool=pool)
        assert single.tolist() == codes
        part = table.iloc[begin : begin + len(codes)]
        begin += len(codes)
        assert part.ItemId.tolist() == codes
        assert (part.UserId == user).all()
    assert begin == len(table)


@pytest.mark.parametrize("pool", [None, [20, 3, 4, 11, 7, 0]], ids=["", "pool"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_discount_of_popularity(model, exclude_seen, pool):
    users_with = np.maximum((Y > 0).sum(axis=0), 1)
    rates = dense_rates(model) / users_with**0.4
    table = model.recommend([5, 0, 7], 4, exclude_seen=exclude_seen, items=pool, discount=0.4)
    assert table.Score.to_numpy() == pytest.approx(rates[table.UserId, table.ItemId], rel=1e-5)
    for user in (5, 0, 7):
        out = set(np.flatnonzero(Y[user])) if exclude_seen else set()
        out |= set() if pool is None else set(range(M)) - set(pool)
        assert_best(table.ItemId[table.UserId == user].to_numpy(), rates[user], 4, list(out))
    new = model.recommend(counts=rows_of(NEW, 1000), n=M, exclude_seen=False, discount=0.4)
    plain = model.recommend(counts=rows_of(NEW, 1000), n=M, exclude_seen=False)
    both = new.merge(plain, on=["UserId", "ItemId"])
    assert len(both) == len(new) == len(plain)
    want = both.Score_y / users_with[both.ItemId] ** 0.4
    assert both.Score_x.to_numpy() == pytest.approx(want.to_numpy(), rel=1e-5)
    with pytest.raises(ValueError, match="discount=-1 must be at least zero"):
        model.recommend([5], discount=-1)


def test_recommend_for_new_counts_is_what_added_users_get(model):
    """In the order of their first appearance, and the model stays as it is."""
    before, given = model._fitted, rows_of(NEW, 1000)[::-1]
    tables = [
        model.recommend(counts=given, n=5, exclude_seen=exclude, items=pool)
        for exclude in (True, False)
        for pool in (None, [1, 2, 3, 4])
    ]
    assert model._fitted is before
    more = copy.deepcopy(model).set_params(reindex=True)
    named = pd.DataFrame(
        {"UserId": rows_of(NEW, N)[::-1].UserId, "ItemId": given.ItemId, "Count": given.Count}
    )
    more.add_users(named)
    order = pd.unique(named.UserId)
    for table, (exclude, pool) in zip(
        tables, [(e, p) for e in (True, False) for p in (None, [1, 2, 3, 4])], strict=True
    ):
        want = more.recommend(order, 5, exclude_seen=exclude, items=pool)
        assert table.ItemId.tolist() == want.ItemId.tolist()
        assert (table.UserId - 1000 + N).tolist() == want.UserId.tolist()
        assert table.Score.to_numpy() == pytest.approx(want.Score.to_numpy(), rel=1e-6)


def test_recommend_without_neighbours(backend_name):
    model = fitted(backend=backend_name, neighbours=0)
    table = model.recommend([3, 4], 5)
    assert table.ItemId.tolist() == model.topN([3, 4], n=5).ravel().tolist()
    assert table.Score.to_numpy() == pytest.approx(model.predict(table.UserId, table.ItemId))
    assert model.recommend(3, 2).UserId.tolist() == [3, 3]
    lean = fitted(backend=backend_name, neighbours=0, keep_data=False)
    assert len(lean.recommend(3, 5, exclude_seen=False)) == 5
    with pytest.raises(ValueError, match="keep_data=True"):
        lean.recommend(3)


def test_all_users_and_some_that_are_unknown(model):
    everyone = model.recommend(n=3)
    pd.testing.assert_frame_equal(everyone, model.recommend(np.arange(N), 3))
    with pytest.warns(UserWarning, match="user 777 was not in the training data, and left out"):
        some = model.recommend([3, 777, 5], 3)
    pd.testing.assert_frame_equal(some, model.recommend([3, 5], 3))


def test_lists_as_arrays(model):
    """The ids and scores of the table; where fewer items are left, None and minus infinity."""
    table, (ids, scores) = model.recommend([5, 0, 7], M), model.recommend([5, 0, 7], M, as_frame=False)
    assert ids.shape == scores.shape == (3, M)
    there = ids != np.array(None)
    assert ids[there].tolist() == table.ItemId.tolist()
    assert (scores[there] == table.Score.to_numpy()).all()
    assert (scores[~there] == -np.inf).all()
    assert there.sum(axis=1).tolist() == [(Y[user] == 0).sum() for user in (5, 0, 7)]
    new = rows_of(NEW, 1000)
    ids, scores = model.recommend(counts=new, n=2, as_frame=False)
    assert ids.ravel().tolist() == model.recommend(counts=new, n=2).ItemId.tolist()


def test_tables_are_the_users_own(model):
    """What is written into one shows in no other, and nowhere in the model."""
    for ask in (
        lambda: model.recommend([3, 4], 5),
        lambda: model.explain(3, [1, 2]),
        lambda: model.related_items(1),
    ):
        want, table = ask(), ask()
        table.columns.name = "changed"
        table[:] = table.iloc[::-1].to_numpy()
        pd.testing.assert_frame_equal(ask(), want)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"users": 1, "counts": FRAME},
            ValueError,
            "users, ids of the model, or counts of new users",
        ),
        ({"users": 777}, ValueError, "user 777 was not in the training data"),
        ({"users": [777, "x"]}, ValueError, "users 777, 'x' were not in the training data"),
        ({"users": 1, "n": 0}, ValueError, "n=0 must be at least 1"),
        ({"users": 1, "items": [777]}, ValueError, "none of the items to choose from"),
        ({"users": 1, "items": 3}, TypeError, "items to choose from are 3: pass a list"),
        (
            {"counts": FRAME.assign(ItemId="x")},
            ValueError,
            "counts has no item that was in the training data; the item ids of the model are numbers",
        ),
        ({"counts": "all"}, FileNotFoundError, "counts is 'all', and there is no such file"),
        ({"counts": [1]}, TypeError, "counts must be a data frame .* not list"),
    ],
)
def test_recommend_says_what_is_wrong(given, kind, message, model):
    with pytest.raises(kind, match=message):
        model.recommend(**given)
    with pytest.raises(ValueError, match="call fit first"):
        HPF(neighbours=5).recommend(1)


@pytest.mark.filterwarnings("ignore:.*(left out|can be used)")
def test_new_users_without_known_items_get_a_list(model):
    """What a user without counts is expected to have, so that a batch of users does not fail for them."""
    strangers = FRAME[FRAME.UserId < 3].assign(ItemId=777, UserId=lambda frame: frame.UserId + 1000)
    known = FRAME[FRAME.UserId == 5]
    with pytest.warns(UserWarning, match=r"(\d+) of the \1 counts of counts were left out"):
        alone = model.recommend(counts=strangers, n=4)
    with pytest.warns(UserWarning, match="new users have no count that can be used"):
        beside = model.recommend(counts=pd.concat([strangers, known]), n=4)
    assert alone.UserId.nunique() == strangers.UserId.nunique()
    lists = alone.groupby("UserId").ItemId.agg(tuple)
    assert lists.nunique() == 1
    assert beside[beside.UserId >= 1000].ItemId.tolist() == alone.ItemId.tolist()
    assert (beside.UserId == 5).sum() == 4


# -- explanations ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 100])
def test_explanations_add_up(model, n):
    """To the prediction and to 1; of each item that the user has as much as its weight, the largest first."""
    found, factors = weights_of(model), model.Theta @ model.Beta.T
    users, items = np.divmod(np.random.default_rng(3).permutation(N * M)[:50], M)
    table = model.explain(users, items, n)
    assert list(table) == ["UserId", "ItemId", "Term", "Because", "Rate", "Share"]
    assert (table.Rate > 0).all()
    pairs = pd.MultiIndex.from_arrays([users, items])
    sums = table.groupby(["UserId", "ItemId"]).sum(numeric_only=True).loc[pairs]
    assert sums.Rate.to_numpy() == pytest.approx(model.predict(users, items), rel=1e-6)
    assert sums.Share.to_numpy() == pytest.approx(1)
    assert list(dict.fromkeys(zip(table.UserId, table.ItemId, strict=True))) == list(pairs)
    for (user, item), part in table.groupby(["UserId", "ItemId"]):
        assert (np.diff(part.Share) <= 0).all()
        weights = dict(zip(found.sources[item].tolist(), found.mean[item].tolist(), strict=True))
        had = {source: weight for source, weight in weights.items() if source >= 0 and Y[user, source] > 0}
        named = part[part.Term == "item"]
        assert dict(zip(named.Because, named.Rate, strict=True)) == pytest.approx(
            dict(sorted(had.items(), key=lambda pair: -pair[1])[:n])
        )
        others = part[part.Term == "other items"]
        assert len(others) == (len(had) > n)
        assert others.Rate.sum() == pytest.approx(sum(sorted(had.values())[: max(0, len(had) - n)]))
        assert part[part.Term == "factors"].Rate.to_numpy() == pytest.approx(factors[user, item], rel=1e-5)
        assert part[part.Term != "item"].Because.isna().all()


def test_explanations_of_many_are_each_alone(model):
    users, items = [0, 3, 7, 0], [4, 4, 9, 1]
    many = model.explain(users, items)
    each = pd.concat([model.explain(*pair) for pair in zip(users, items, strict=True)], ignore_index=True)
    pd.testing.assert_frame_equal(many, each)
    pd.testing.assert_frame_equal(model.explain(0, items), model.explain([0] * 4, items))
    pd.testing.assert_frame_equal(model.explain(users, 4), model.explain(users, [4] * 4))
    # User 7 has no items: only the factors are left.
    assert model.explain(7, 9).Term.tolist() == ["factors"]
    assert model.explain([], []).empty


#: Forty ids that pandas' own strings do not take.
SURROGATES = [f"\ud800{j}" for j in range(40)]


@pytest.mark.parametrize("kind", ["strings", "tuples", "mixed", "dates", "surrogates"])
def test_ids_of_any_type(kind, backend_name):
    names = (IDS | {"surrogates": SURROGATES})[kind]
    frame = pd.DataFrame({"UserId": pd.Series([names[u] for u in FRAME.UserId], dtype=object)})
    frame["ItemId"] = pd.Series([names[i] for i in FRAME.ItemId], dtype=object)
    frame["Count"] = FRAME.Count.to_numpy()
    model = model_of(backend=backend_name, reindex=True).fit(frame)
    numbered = model_of(backend=backend_name, reindex=True).fit(FRAME)
    for got, want in (
        (model.explain(names[2], names[3]), numbered.explain(2, 3)),
        (model.related_items(names[3]), numbered.related_items(3)),
        (model.recommend([names[2], names[9]], 3), numbered.recommend([2, 9], 3)),
    ):
        assert len(got) == len(want) > 0
        for column in ("UserId", "ItemId", "Because", "RelatedId"):
            if column in want:
                wanted = [None if pd.isna(code) else names[int(code)] for code in want[column]]
                assert got[column].tolist() == wanted


def test_related_items(model):
    """From an item to others: weights of a column of w, and not those of a row."""
    found = weights_of(model)
    w = np.zeros((M, M))  # of the source towards the item
    item, place = np.nonzero(found.sources >= 0)
    w[found.sources[item, place], item] = found.mean[item, place]
    assert not np.allclose(w, w.T)
    for n in (1, 4, 100):
        table = model.related_items(np.arange(M), n)
        assert list(table) == ["ItemId", "RelatedId", "Weight"]
        assert table.Weight.to_numpy() == pytest.approx(w[table.ItemId, table.RelatedId])
        for source in range(M):
            part = table[table.ItemId == source]
            assert part.Weight.to_numpy() == pytest.approx(np.sort(w[source][w[source] > 0])[::-1][:n])
            pd.testing.assert_frame_equal(model.related_items(source, n), part.reset_index(drop=True))
    assert model.related_items(5).empty  # which nobody has
    assert model.related_items([]).empty


def test_what_cannot_be_explained(model, backend_name):
    for call, message in (
        (lambda: model.explain(777, 1), "user 777 was not in the training data"),
        (lambda: model.explain(1, [1, 777]), "item 777 was not in the training data"),
        (lambda: model.explain([1, 2, 3], [1, 2]), "3 users and 2 items cannot be paired"),
        (lambda: model.explain(1, 1, n=0), "n=0 must be at least 1"),
        (lambda: model.related_items(777), "item 777 was not in the training data"),
        (lambda: model.related_items(1, n=0), "n=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    without = fitted(backend=backend_name, neighbours=0, maxiter=1)
    for call in (lambda: without.explain(1, 1), lambda: without.related_items(1)):
        with pytest.raises(ValueError, match="this model has no neighbours: fit with"):
            call()


# -- models that are kept ----------------------------------------------------------------------


def assert_same_answers(twin, model):
    """Bit by bit."""
    users, items = np.divmod(np.arange(N * M), M)
    assert np.array_equal(twin.predict(users, items), model.predict(users, items))
    for got, want in (
        (twin.recommend(np.arange(N), 4), model.recommend(np.arange(N), 4)),
        (twin.explain(users[::7], items[::7]), model.explain(users[::7], items[::7])),
        (twin.related_items(np.arange(M)), model.related_items(np.arange(M))),
    ):
        pd.testing.assert_frame_equal(got, want)
    for name in ("sources", "shape", "users_with"):
        got, want = getattr(weights_of(twin), name), getattr(weights_of(model), name)
        assert got.dtype == want.dtype
        assert np.array_equal(got, want)


def saved(model, path):
    model.save(path)
    return HPF.load(path)


@pytest.mark.parametrize("lean", [False, True], ids=["", "lean"])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_comes_back(way, lean, backend_name, tmp_path):
    """From a file and from a pickle; and it is fitted, folded and moved on like the first."""
    model = fitted(way, backend=backend_name, keep_all_objs=not lean)
    for twin in (
        saved(model, tmp_path / "model"),
        pickle.loads(pickle.dumps(model)),
        copy.copy(model),
        copy.deepcopy(model),
    ):
        assert twin.get_params() == model.get_params()
        assert repr(twin) == repr(model)
        assert_same_answers(twin, model)
    twin, more = saved(model, tmp_path / "model"), copy.copy(model)
    if lean:
        with pytest.raises(ValueError, match="keep_all_objs=True"):
            twin.transform(rows_of(NEW))
        return
    pd.testing.assert_frame_equal(twin.recommend(counts=rows_of(NEW)), model.recommend(counts=rows_of(NEW)))
    for each in (twin, more):
        each.add_users(rows_of(NEW, N))
        each.partial_fit(rows_of(Y[:9]))
    assert_same_answers(twin, more)
    assert_same_answers(saved(twin, tmp_path / "model"), more)
    assert np.array_equal(twin.fit(sparse.csr_array(Y)).Beta, model.Beta)


def test_models_of_batches_come_back(backend_name, tmp_path):
    model = model_of(backend=backend_name, reindex=True)
    model.partial_fit(FRAME[FRAME.UserId < 20], nusers=N, nitems=M)
    model.partial_fit(FRAME[FRAME.UserId >= 20])
    twin = saved(model, tmp_path / "model")
    assert np.array_equal(twin.predict(FRAME.UserId, FRAME.ItemId), model.predict(FRAME.UserId, FRAME.ItemId))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"w_rate": 7.0},
            r"neighbours=6, w_shape=0.35, w_rate=7.0, temperature=1.25 are not those of the fit",
        ),
        ({"w_shape": 7.0}, "w_shape=7.0, .* are not those of the fit"),
        ({"temperature": 3.0}, "temperature=3.0 are not those of the fit"),
        ({"neighbours": 0}, "neighbours=0, .* are not those of the fit"),
        ({"neighbours": 7}, r"weights.sources is int32 \(24, 6\), not \(24, 7\)"),
        ({"k": 0}, "k=0 are not those of the fit"),
    ],
)
def test_a_prior_that_was_changed_is_not_saved(given, message, backend_name, tmp_path):
    """A file has it in the parameters alone, and E[w] depends on it."""
    model = fitted(backend=backend_name, k=1, maxiter=2).set_params(**given)
    with pytest.raises(ValueError, match=f"cannot be saved.*{message}"):
        model.save(tmp_path / "model")
    without = fitted(backend=backend_name, neighbours=0, maxiter=2).set_params(neighbours=5)
    with pytest.raises(ValueError, match=r"neighbours=5, .* are not those of the fit"):
        without.save(tmp_path / "model")


DAMAGE = {
    "out of range": (
        "weights.sources",
        lambda a: np.where(a == a.max(), M, a),
        r"sources\[\d+, \d+\] is 24: ",
    ),
    "its own": (
        "weights.sources",
        lambda a: np.sort(np.where(a == a[3, 0], 3, a)),
        "neighbours are other items",
    ),
    "not ascending": (
        "weights.sources",
        lambda a: a[:, ::-1],
        "neighbours are other items in ascending order",
    ),
    "twice": ("weights.sources", lambda a: np.repeat(a[:, :3], 2, axis=1), "in ascending order"),
    "a gap": ("weights.sources", lambda a: np.insert(a[:, 1:], 1, -1, axis=1), "in ascending order"),
    "below -1": ("weights.sources", lambda a: np.where(a < 0, -2, a), "weights.sources.* is -2, not"),
    "wide": ("weights.sources", lambda a: a.astype(np.int64), r"weights.sources is int64 .* not int32"),
    "short": ("weights.sources", lambda a: a[1:], r"weights.sources is int32 \(23, 6\), not \(24, 6\)"),
    "narrow": ("weights.shape", lambda a: a[:, 1:], r"weights.shape is float64 \(24, 5\), not \(24, 6\)"),
    "single": ("weights.shape", lambda a: a.astype(np.float32), "weights.shape is float32 .*, not float64"),
    "zero": ("weights.shape", lambda a: a * 0, "weights.shape.* is 0.0, not above zero and finite"),
    "nan": ("weights.shape", lambda a: a * np.nan, "weights.shape.* is nan"),
    "negative": ("weights.users_with", lambda a: -1 - a, "weights.users_with.* is -"),
    "flat": ("weights.users_with", lambda a: a[:, None], "weights.users_with is float64"),
    "no sources": ("weights.sources", None, "array 'weights.sources' is missing"),
    "no items": ("seen.indices", None, "array 'seen.indices' is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused(kind, tmp_path):
    path, (name, change, message) = tmp_path / "model", DAMAGE[kind]
    fitted(backend="numpy", maxiter=2).save(path)
    header, tensors = altered.read(path, "hpf_gpu")
    if kind == "no items":
        del tensors["seen.indptr"]
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    altered.write(path, "hpf_gpu", header, tensors)
    with pytest.raises(ModelFileError, match=f"model has invalid contents: .*{message}|{message}"):
        HPF.load(path)


def test_files_that_do_not_have_the_parameters(tmp_path):
    """As for every parameter that was added: the file is refused, and the parameter is named."""
    path = tmp_path / "model"
    fitted(backend="numpy", maxiter=2, neighbours=0).save(path)
    header, tensors = altered.read(path, "hpf_gpu")
    for name in ("neighbours", "w_shape", "w_rate", "temperature"):
        header["parameters"].pop(name)
    altered.write(path, "hpf_gpu", header, tensors)
    with pytest.raises(ModelFileError, match=r"field of header.parameters 'neighbours' is missing"):
        HPF.load(path)


# -- checkpoints -------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a fit in a way that it does not notice, as a signal would."""


def kill(check):
    if check.iteration == 4:
        raise Killed


FITS = {
    "both": {},
    "no factors": {"k": 0},
    "alternating, float32": {"schedule": "alternating", "use_float": True},
    "biases": {"bias": True},
    "stochastic": {"users_per_batch": 9},
}


@pytest.mark.parametrize("name", FITS)
def test_a_killed_fit_ends_the_same(name, backend_name, tmp_path, monkeypatch):
    """Bit by bit, with the neighbours of the checkpoint."""
    given, path = FITS[name] | {"backend": backend_name}, tmp_path / "state"
    undisturbed = fit(model_of(**given))
    with pytest.raises(Killed):
        fit(model_of(**given), checkpoint=path, checkpoint_every=3, callback=kill)
    _, tensors = altered.read(path, "hpf_gpu.checkpoint")
    assert np.array_equal(tensors["weights.sources"], weights_of(undisturbed).sources)

    def chooses(*arguments):
        raise AssertionError("neighbours were chosen again")

    monkeypatch.setattr("hpf_gpu.fitting.training.choose_sources", chooses)
    resumed = fit(model_of(**given), checkpoint=path, checkpoint_every=100)
    assert np.array_equal(resumed.Theta, undisturbed.Theta)
    assert resumed.history_.drop(columns="seconds").equals(undisturbed.history_.drop(columns="seconds"))
    assert_same_answers(resumed, undisturbed)


def test_checkpoints_of_other_fits_are_refused(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(Killed):
        fit(model_of(backend="numpy"), checkpoint=path, checkpoint_every=3, callback=kill)
    for other in (
        {"neighbours": 0},
        {"neighbours": 7},
        {"temperature": 1.0},
        {"w_rate": 1.0},
        {"w_shape": 1.0},
    ):
        with pytest.raises(ValueError, match=f"is a checkpoint of a fit with {next(iter(other))}="):
            fit(model_of(backend="numpy", **other), checkpoint=path)
    header, tensors = altered.read(path, "hpf_gpu.checkpoint")
    for kind in ("out of range", "not ascending", "a gap", "wide", "short", "narrow", "zero", "no sources"):
        name, change, message = DAMAGE[kind]
        others = {key: value for key, value in tensors.items() if key != name}
        if change is not None:
            others[name] = change(tensors[name])
        altered.write(path, "hpf_gpu.checkpoint", header, others)
        with pytest.raises(ModelFileError, match=message):
            fit(model_of(backend="numpy"), checkpoint=path)


# -- the estimator -----------------------------------------------------------------------------


def test_parameters():
    model = HPF(k=0, neighbours=np.int64(50), w_rate=2, temperature=1)
    assert repr(model) == f"HPF(k=0, neighbours={np.int64(50)!r}, w_rate=2, temperature=1)"
    assert HPF(**model.get_params()).get_params() == model.get_params()
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    assert base.clone(model).get_params() == model.get_params()
    assert HPF().get_params().items() >= {"neighbours": 0, "temperature": 1.25}.items()
