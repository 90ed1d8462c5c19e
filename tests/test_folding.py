"""Fold-in: new users and items against the other side as it is."""

from __future__ import annotations

import copy
import itertools
import warnings

import numpy as np
import oracle
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import relative_error
from scipy import sparse
from small_data import COUNTS, IDS, of_user, quick

from hpf_gpu import HPF
from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import RankOne
from hpf_gpu.data.counts import NewRows
from hpf_gpu.data.ids import Ids, shown
from hpf_gpu.data.seen import with_items
from hpf_gpu.fitting.folding import USERS, fold_rows
from hpf_gpu.model.inference import fold_in
from hpf_gpu.model.posterior import Posterior
from hpf_gpu.model.priors import Prior
from hpf_gpu.model.sides import gather_side, noise_free_side

A, A_PRIME, B_PRIME = 0.25, 0.5, 2.0


@pytest.fixture(scope="module")
def model(backend_name):
    """A fit that nobody may change."""
    return quick(backend=backend_name, use_float=False).fit(COUNTS)


def tight(**arguments):
    return {"maxiter": 30, "stop_thr": 1e-12} | arguments


def test_rows_without_any_count(model):
    """They have the factors of a row without counts that is folded in with others."""
    settings, fitted = model._settings(), model._require_fitted()
    m = fitted.item_ids.size
    some = sparse.csr_array(([2.0, 1.0], ([0, 0], [1, 3])), shape=(3, m))
    among, alone = (
        fold_rows(settings, fitted, NewRows(csr, Ids(None, 3, "user")), side=USERS, **tight(), threads=1).mean
        for csr in (some, sparse.csr_array((3, m)))
    )
    # Rounding of float64, of which no difference was measured.
    np.testing.assert_allclose(alone, among[[1, 1, 2]], rtol=1e-13)
    assert (among[0] > among[1]).any()


# -- inference ---------------------------------------------------------------------------------

#: Relative Frobenius error of E[θ] after five iterations, and beside it the largest measured.
AGAINST_ORACLE = {"float32": 1e-6, "float64": 1e-14}


def folding_case():
    """Seven rows, one of them empty, against nine frozen ones in K = 4 factors."""
    rng = np.random.default_rng(2)
    y = rng.poisson(rng.gamma(0.4, 3.0, (7, 9))).astype(np.float64)
    y[3] = 0
    beta = oracle.Gamma(rng.integers(1, 40, (9, 4)) / 8, np.broadcast_to(rng.integers(1, 9, 4) / 4, (9, 4)))
    return y, beta


def folded(backend, y, beta, **arguments):
    prior, rates = Prior(A, A_PRIME, B_PRIME), RankOne(np.zeros(9), beta.rate[0])
    posterior = Posterior(prior, beta.shape, rates, np.ones(9), beta.column_sums)
    others = gather_side(backend, posterior, np.arange(9))
    counts = backend.counts(sparse.csr_array(y.astype(backend.dtype)), 4)
    side = fold_in(backend, counts, noise_free_side(backend, prior, 7, 4), others, **arguments)
    return backend.asnumpy(backend.mean(side.factor)), backend.asnumpy(side.hyper_rate)


@pytest.mark.parametrize("exact_phi", [False, True], ids=["plain", "exact"])
def test_fold_in_is_the_dense_formulas(backend, dtype, exact_phi):
    y, beta = folding_case()
    theta, hyper_rate = folded(backend, y, beta, maxiter=5, stop_thr=1e-30, exact_phi=exact_phi)
    want_theta, want_xi = oracle.fold_in(y, beta, A, A_PRIME, B_PRIME, 5)[-1]
    assert theta.dtype == dtype
    assert relative_error(theta, want_theta.mean) < AGAINST_ORACLE[dtype.name]
    assert relative_error(hyper_rate, want_xi.rate) < AGAINST_ORACLE[dtype.name]


def test_fold_in_stops_when_rows_move_less_than_the_threshold(backend, dtype):
    y, beta = folding_case()
    means = [theta.mean for theta, _ in oracle.fold_in(y, beta, A, A_PRIME, B_PRIME, 40)]
    steps = [np.sqrt(((b - a) ** 2).sum(axis=1).mean()) for a, b in itertools.pairwise(means)]
    for iterations in (1, 4, 9):
        threshold = np.sqrt(steps[iterations - 2] * steps[iterations - 1]) if iterations > 1 else 1e9
        theta, _ = folded(backend, y, beta, maxiter=40, stop_thr=threshold)
        assert relative_error(theta, means[iterations]) < AGAINST_ORACLE[dtype.name]
        assert (
            relative_error(means[iterations], means[iterations + 1]) > 1e-4
        )  # so the one told from the next


def test_fold_in_of_many_rows_can_be_interrupted(dtype, monkeypatch):
    """Beyond so many numbers openmp takes one iteration after the other, between which Python sees Ctrl-C."""
    pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")
    backend, (y, beta) = create("openmp", dtype), folding_case()
    want_theta, _ = oracle.fold_in(y, beta, A, A_PRIME, B_PRIME, 6)[-1]
    monkeypatch.setattr("hpf_gpu.backends.openmp_backend._ASCENT", 6 * (7 + np.count_nonzero(y)) * 4 - 1)
    theta, _ = folded(backend, y, beta, maxiter=6, stop_thr=1e-30)
    assert relative_error(theta, want_theta.mean) < AGAINST_ORACLE[dtype.name]
    monkeypatch.setattr("hpf_gpu.model.inference.update_side", lambda *_: 1 / 0)
    folded(backend, y, beta, maxiter=5, stop_thr=1e-30)
    with pytest.raises(ZeroDivisionError):
        folded(backend, y, beta, maxiter=6, stop_thr=1e-30)


# -- what the model gives ----------------------------------------------------------------------


def test_training_users_and_items_land_on_their_factors(backend_name):
    """The largest relative error of a row, measured in float64: 1e-9 of the users, 1e-11 of the items."""
    model = quick(backend=backend_name, use_float=False, maxiter=3000, stop_crit="maxiter").fit(COUNTS)
    theta = model.transform(COUNTS, maxiter=3000, stop_thr=1e-14)
    assert theta.index.tolist() == model.user_mapping_.tolist()
    beta = model.transform_items(COUNTS, maxiter=3000, stop_thr=1e-14)
    assert beta.index.tolist() == list(dict.fromkeys(COUNTS.ItemId))
    for folded, fitted in ((theta, model.Theta), (beta, model.Beta)):
        errors = np.linalg.norm(folded - fitted, axis=1) / np.linalg.norm(fitted, axis=1)
        assert errors.max() < 5e-9


def test_many_are_each_alone(model):
    many = model.transform(COUNTS, **tight())
    assert many.shape == (60, 3)
    for user in (100, 117, 159):
        alone = model.predict_factors(of_user(user), **tight())
        assert alone.shape == (3,)
        assert relative_error(alone, many.loc[user].to_numpy()) < 1e-12
    backwards = model.transform(COUNTS[::-1], **tight())
    assert backwards.index.tolist() == list(dict.fromkeys(COUNTS.UserId[::-1]))
    assert relative_error(backwards.loc[many.index], many) < 1e-12


def test_float32_and_threads(backend_name):
    model = quick(backend=backend_name).fit(COUNTS)
    theta = model.transform(COUNTS)
    assert (theta.dtypes == np.float32).all()
    assert model.predict_factors(of_user(100)).dtype == np.float32
    assert relative_error(model.transform(COUNTS, ncores=1), theta) < 1e-5


@pytest.mark.parametrize(
    "form",
    [
        lambda frame: frame,
        lambda frame: frame.sample(frac=1, random_state=1).sort_values("UserId", kind="stable"),
        lambda frame: frame.to_numpy(),
        lambda frame: pd.concat([frame.assign(Count=frame.Count / 2)] * 2),
        lambda frame: frame.assign(UserId=frame.UserId.map("u{}".format)),
    ],
    ids=["frame", "shuffled", "array", "halves", "strings"],
)
def test_forms_of_new_users_are_equal(form, model):
    given = form(COUNTS)
    before = given.copy()
    theta = model.transform(given, **tight())
    assert relative_error(theta, model.transform(COUNTS, **tight())) < 1e-12
    assert given.equals(before) if isinstance(given, pd.DataFrame) else np.array_equal(given, before)


def test_matrices_of_new_rows(backend_name):
    dense = np.zeros((60, 40))
    dense[COUNTS.UserId - 100, COUNTS.ItemId - 500] = COUNTS.Count
    model = quick(backend=backend_name, use_float=False).fit(sparse.csr_array(dense))
    given = sparse.coo_array(np.vstack([dense[:5], np.zeros((1, 40)), dense[5:7]]))
    with pytest.warns(UserWarning, match="1 new users have no count that can be used") as caught:
        theta = model.transform(given, **tight())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert theta.index.tolist() == list(range(8))
    assert (
        relative_error(theta.iloc[[0, 7]], model.transform(sparse.csr_array(dense), **tight()).iloc[[0, 6]])
        < 1e-12
    )
    some = sparse.csc_array(dense[:, :4])
    beta = model.transform_items(some, **tight())
    assert beta.shape == (4, 3)
    items, users = np.nonzero(dense[:, :4].T)
    frame = pd.DataFrame({"UserId": users, "ItemId": items, "Count": dense[users, items]})
    assert relative_error(beta, model.transform_items(frame, **tight())) < 1e-12
    one = model.predict_factors(sparse.csr_array(dense[[6]]), **tight())
    assert relative_error(one, theta.loc[7].to_numpy()) < 1e-12


def test_what_the_model_does_not_know_is_left_out(model):
    strangers = pd.DataFrame({"UserId": [100, 777], "ItemId": ["new", 999], "Count": [5, 5]})
    with pytest.warns(UserWarning, match=r"left out|no count") as caught:
        theta = model.transform(pd.concat([COUNTS, strangers]), **tight())
    assert [str(warning.message).partition(":")[0] for warning in caught] == [
        f"2 of the {len(COUNTS) + 2} counts of counts_df were left out",
        "1 new users have no count that can be used; they get the factors of a user without counts",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    assert relative_error(theta.iloc[:60], model.transform(COUNTS, **tight())) < 1e-12
    beta = oracle.Gamma(model.Lambda_shp, model.Lambda_rte)
    empty = oracle.fold_in(np.zeros((1, model.nitems)), beta, 0.3, 0.3, 1.0, 30)[-1][0].mean
    assert relative_error(theta.loc[[777]], empty) < 1e-10
    zero = of_user(100).assign(Count=0).head(1).assign(ItemId=539)
    with pytest.warns(UserWarning, match="1 counts of zero were left out of counts_df") as caught:
        alone = model.predict_factors(pd.concat([of_user(100), zero]), **tight())
    assert [warning.filename for warning in caught] == [__file__]
    assert relative_error(alone, theta.loc[100].to_numpy()) < 1e-12


def test_return_all(model):
    given = of_user(130)
    longer = pd.concat([given, given.head(1), pd.DataFrame({"ItemId": ["new"], "Count": [3]})])
    with pytest.warns(
        UserWarning, match="1 of the [0-9]+ counts of counts_df were left out: their items were not"
    ):
        theta, shape, rate, phi = model.predict_factors(longer, maxiter=2000, stop_thr=1e-14, return_all=True)
    assert theta.shape == shape.shape == rate.shape == (3,)
    assert np.allclose(theta, shape / rate, rtol=1e-12)
    assert phi.shape == (len(given) + 2, 3)
    assert np.isnan(phi[-1]).all()
    assert np.array_equal(phi[0], phi[-2])
    assert np.allclose(phi[:-1].sum(axis=1), 1, rtol=1e-12)
    # At the fixed point the shape is the prior and what φ gives it: measured to 2e-15.
    assert np.allclose(shape, 0.3 + longer.Count.to_numpy()[:-1] @ phi[:-1], rtol=1e-12)


# -- users that stay ---------------------------------------------------------------------------


def seen_of(model, user):
    indptr, indices = model._fitted.seen
    row = model.user_dict_[user]
    return sorted(model.item_mapping_[indices[indptr[row] : indptr[row + 1]]])


def test_add_user(backend_name):
    model = quick(backend=backend_name, use_float=False).fit(COUNTS)
    before, tops = model.Theta.copy(), {user: model.topN(user).tolist() for user in model.user_mapping_}
    given = of_user(103).tail(5)
    assert model.add_user(7, given, **tight()) is True
    assert model.nusers == len(model.Theta) == len(model.user_mapping_) == 61
    assert model.user_mapping_.dtype == np.int64
    assert model.user_dict_[7] == 60
    expected = model.predict_factors(given, **tight())
    assert np.array_equal(model.Theta[60], expected)
    assert model.predict(7, 503) == pytest.approx(expected @ model.Beta[model.item_dict_[503]], rel=1e-12)
    assert seen_of(model, 7) == sorted(given.ItemId)
    assert not set(model.topN(7, n=100)) & set(given.ItemId)
    assert len(model.topN(7, n=100)) == model.nitems - 5
    assert np.allclose(model.Theta, model.Gamma_shp / model.Gamma_rte, rtol=1e-12)
    assert model.k_rte[60, 0] == pytest.approx(0.3 + expected.sum(), rel=1e-12)
    # nobody else has changed
    assert np.array_equal(model.Theta[:60], before)
    assert {user: model.topN(user).tolist() for user in tops} == tops


def test_update_existing_replaces(backend_name):
    model = quick(backend=backend_name, use_float=False).fit(COUNTS)
    tops = {user: model.topN(user).tolist() for user in model.user_mapping_}
    other = of_user(101)
    assert model.add_user(130, other, update_existing=True, **tight())
    row = model.user_dict_[130]
    assert model.nusers == 60
    assert np.array_equal(model.Theta[row], model.predict_factors(other, **tight()))
    assert model.k_rte[row, 0] == pytest.approx(0.3 + model.Theta[row].sum(), rel=1e-12)
    assert np.allclose(model.Theta, model.Gamma_shp / model.Gamma_rte, rtol=1e-12)
    assert seen_of(model, 130) == sorted(other.ItemId)
    assert not set(model.topN(130, n=100)) & set(other.ItemId)
    del tops[130]
    assert {user: model.topN(user).tolist() for user in tops} == tops


def test_add_users_is_add_user_of_each(backend_name):
    many, each = (quick(backend=backend_name, use_float=False).fit(COUNTS) for _ in range(2))
    new = pd.concat([COUNTS[COUNTS.UserId < 104].assign(UserId=lambda frame: frame.UserId + 900)])
    assert many.add_users(new, **tight()) is many
    for user in dict.fromkeys(new.UserId):
        each.add_user(user, of_user(user, new), **tight())
    changed = COUNTS[COUNTS.UserId.isin([120, 110, 159])].iloc[::-2]
    many.add_users(changed, update_existing=True, **tight())
    for user in set(changed.UserId):
        each.add_user(user, of_user(user, changed), update_existing=True, **tight())
    assert many.user_mapping_.tolist() == each.user_mapping_.tolist()
    assert many.nusers == each.nusers == 64
    for name in ("Theta", "Gamma_shp", "Gamma_rte", "k_rte"):
        assert relative_error(getattr(many, name), getattr(each, name)) < 1e-12
    assert all(seen_of(many, user) == seen_of(each, user) for user in many.user_mapping_)
    assert seen_of(many, 110) == sorted(changed.ItemId[changed.UserId == 110])
    assert many.topN([110, 1001], n=5).tolist() == each.topN([110, 1001], n=5).tolist()


def test_items_are_folded_in_against_the_users_that_are_there_now(backend_name):
    """Added users count in Σθ as those of the fit do."""
    half = COUNTS[COUNTS.UserId < 130]
    model = quick(backend=backend_name, use_float=False, maxiter=400, stop_crit="maxiter").fit(half)
    model.add_users(COUNTS[COUNTS.UserId >= 130], maxiter=500, stop_thr=1e-12)
    beta = model.transform_items(COUNTS, **tight())
    theta = oracle.Gamma(model.Gamma_shp, model.Gamma_rte)
    dense = np.zeros((60, 40))
    dense[[model.user_dict_[user] for user in COUNTS.UserId], pd.factorize(COUNTS.ItemId)[0]] = COUNTS.Count
    want = oracle.fold_in(dense.T, theta, 0.3, 0.3, 1.0, 30)[-1][0].mean
    assert relative_error(beta, want) < 1e-10


@pytest.mark.parametrize("kind", sorted(IDS))
def test_ids_keep_their_types(kind):
    names = np.empty(40, dtype=object)
    names[:] = IDS[kind]
    frame = pd.DataFrame(
        {"UserId": names[:30].tolist(), "ItemId": names[np.arange(30) % 9].tolist(), "Count": 2}
    )
    model = quick(k=2, maxiter=5).fit(frame)
    dtype = model.user_mapping_.dtype
    new = pd.DataFrame({"UserId": names[30:].tolist(), "ItemId": names[:1].tolist() * 10, "Count": 3})
    theta = model.transform(new)
    assert theta.index.tolist() == names[30:].tolist()
    model.add_user(names[30], new.iloc[:1][["ItemId", "Count"]])
    model.add_users(new.iloc[1:])
    assert model.user_mapping_.dtype == dtype
    assert list(model._fitted.user_ids.index) == names.tolist()
    assert [type(name) for name in model.user_dict_] == [type(name) for name in frame.UserId] + [
        type(name) for name in new.UserId
    ]
    for row, name in enumerate(names):
        assert model.user_dict_[name] == row
        assert np.isscalar(model.predict(name, names[0]))
        assert not np.isnan(model.predict(name, names[0]))


def test_ids_of_another_type_are_kept_beside_the_old():
    model = quick(k=2).fit(COUNTS)
    for name in ("x", (1, 2), 2.5, 2**70, pd.Timestamp("2020-01-01")):
        model.add_user(name, of_user(100))
    assert [type(name) for name in model.user_dict_][:60] == [int] * 60
    assert list(model.user_dict_)[60:] == ["x", (1, 2), 2.5, 2**70, pd.Timestamp("2020-01-01")]
    assert np.isscalar(model.predict((1, 2), 503))
    assert len(model.topN(2.5, n=3)) == 3
    expected = model.Theta @ model.Beta[model.item_dict_[503]]
    # Sums of two positive products in float32, in either order, fused or not: three roundings of 6e-8 each.
    np.testing.assert_allclose(model.predict(list(model.user_dict_), 503), expected, rtol=4e-7)


def test_an_id_that_equals_a_known_one_is_that_one():
    model = quick(k=2).fit(COUNTS.assign(UserId=COUNTS.UserId - 100))
    before = model.user_mapping_
    for same in (True, 1.0, np.float32(1), np.True_):
        with pytest.raises(ValueError, match=f"user {shown(same)} is in the model already"):
            model.add_user(same, of_user(100))
        assert model.predict(same, 503) == model.predict(1, 503)
        model.add_user(same, of_user(100), update_existing=True)
    assert model.user_mapping_ is before


def test_users_of_a_model_with_row_numbers():
    numbered = COUNTS.assign(UserId=COUNTS.UserId - 100, ItemId=COUNTS.ItemId - 500)
    model = quick(reindex=False).fit(numbered)
    with pytest.raises(
        ValueError, match="user ids of this model are row numbers, and the next is 60, not 61"
    ):
        model.add_user(61, of_user(3, numbered))
    model.add_user(60, of_user(3, numbered))
    model.add_users(numbered[numbered.UserId < 2].replace({"UserId": {0: 62, 1: 61}}))
    assert model.nusers == 63
    assert model.user_mapping_ is None
    assert np.array_equal(model.Theta[62], model.predict_factors(of_user(0, numbered)))
    assert (
        relative_error(
            model.transform(numbered.assign(UserId="x")), model.transform(numbered.assign(UserId=3))
        )
        == 0
    )


@given(st.data())
def test_items_of_users_are_replaced_and_added(data):
    rows = st.lists(st.sets(st.integers(0, 8)).map(sorted), min_size=1, max_size=6)
    old, new = data.draw(rows), data.draw(rows)
    added = data.draw(st.integers(max(0, len(new) - len(old)), len(new)))
    places = data.draw(st.permutations(range(len(old))))[: len(new) - added]
    places = data.draw(st.permutations([*places, *range(len(old), len(old) + added)]))

    def as_csr(lists):
        return np.cumsum([0, *map(len, lists)]), np.array(
            [i for items in lists for i in items], dtype=np.int32
        )

    indptr, indices = with_items(as_csr(old), np.array(places), as_csr(new))
    want = old + [[]] * added
    for place, items in zip(places, new, strict=True):
        want[place] = items
    assert [indices[a:b].tolist() for a, b in itertools.pairwise(indptr)] == want
    assert indices.dtype == np.int32


def test_adding_users_copies_the_model_once(backend_name):
    """The rows that are there stay where they are; a model that is kept aside does not see later users."""
    model = quick(backend=backend_name, keep_data=True).fit(COUNTS).add_users(COUNTS.assign(UserId="first"))
    aside = copy.copy(model)
    before = {name: getattr(model, name) for name in ("Theta", "Gamma_shp", "Gamma_rte", "k_rte", "seen")}
    kept = {name: array.copy() for name, array in before.items()}
    model.add_user("second", of_user(100))
    for name, array in before.items():
        if name != "k_rte":  # a copy in another dtype
            assert np.shares_memory(array, getattr(model, name)), name
        assert np.array_equal(getattr(aside, name), kept[name]), name
    aside.add_user("third", of_user(101))
    assert list(model.user_mapping_[-2:]) == ["first", "second"]
    assert list(aside.user_mapping_[-2:]) == ["first", "third"]
    assert np.isnan(aside.predict("second", COUNTS.ItemId.iloc[0]))
    alone = quick(backend=backend_name, keep_data=True).fit(COUNTS).add_users(COUNTS.assign(UserId="first"))
    alone.add_user("third", of_user(101))
    for name in before:
        assert np.array_equal(getattr(aside, name), getattr(alone, name)), name


@pytest.mark.parametrize("update_existing", [False, True])
def test_column_sums_follow_the_users(update_existing, backend_name):
    """Items that are folded in afterwards see the users as they are, and each of them once."""
    model = quick(backend=backend_name, use_float=False).fit(COUNTS)
    few = COUNTS[COUNTS.UserId.isin([101, 105, 107])].assign(Count=lambda frame: frame.Count * 3)
    model.add_users(few if update_existing else few.assign(UserId=few.UserId + 1000), update_existing)
    for posterior, mean in zip(model._fitted.posteriors, (model.Theta, model.Beta), strict=True):
        # A sum of 63 numbers, each rounded once.
        np.testing.assert_allclose(posterior.column_sums, mean.sum(axis=0), rtol=63 * 2**-52)


# -- errors ------------------------------------------------------------------------------------


def test_errors_of_fold_in(backend_name):
    model = quick(backend=backend_name).fit(COUNTS)
    one = of_user(100)
    before = {name: getattr(model, name).copy() for name in ("Theta", "Gamma_shp", "k_rte", "user_mapping_")}
    seen = model._fitted.seen
    cases = [
        (lambda: model.add_user(100, one), ValueError, "user 100 is in the model already"),
        (lambda: model.add_users(COUNTS), ValueError, r"users 100, 101, 102 and 57 more are in the model"),
        (lambda: model.add_user(5, one, update_existing=True), ValueError, "user 5 was not in the"),
        (lambda: model.add_user("100", one, True), ValueError, "user '100' was not in the training data"),
        (lambda: model.add_user(None, one), ValueError, "user ids are missing"),
        (lambda: model.add_user([5], one), TypeError, "user ids must be hashable"),
        (lambda: model.add_users(sparse.csr_array(np.ones((2, 40)))), TypeError, "pass a frame with UserId"),
        (lambda: model.predict_factors(one.assign(ItemId="x")), ValueError, "no item that was in .* strings"),
        (lambda: model.transform_items(COUNTS.assign(UserId="x")), ValueError, "no user .* strings"),
        (lambda: model.predict_factors(one.assign(Count=-1)), ValueError, "count -1 in row"),
        (lambda: model.predict_factors(one[["ItemId"]]), ValueError, "no column 'Count'"),
        (lambda: model.predict_factors(one.iloc[:0]), ValueError, "empty"),
        (lambda: model.predict_factors(sparse.csr_array(np.ones((2, 40)))), ValueError, "2 rows; .* one row"),
        (lambda: model.predict_factors(None), TypeError, "not NoneType"),
        (lambda: model.transform(COUNTS, maxiter=0), ValueError, "maxiter=0 must be at least 1"),
        (lambda: model.transform(COUNTS, stop_thr=0), ValueError, "stop_thr=0 must be above zero"),
        (lambda: model.predict_factors(one, random_seed=-1), ValueError, "random_seed=-1"),
        (lambda: model.predict_factors(one, maxiter="10"), TypeError, "maxiter must be an integer"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    for name, value in before.items():
        assert np.array_equal(getattr(model, name), value), name
    assert model._fitted.seen is seen
    assert model.nusers == 60


NOTHING_KNOWN = {
    "unknown items": (
        lambda frame: frame.assign(ItemId=-1),
        r"(\d+) of the \1 counts of counts_df were left out",
    ),
    "zeros": (lambda frame: frame.assign(Count=0), "counts of zero were left out"),
}


@pytest.mark.filterwarnings("ignore:.*(left out|can be used)")
@pytest.mark.parametrize("way", NOTHING_KNOWN)
def test_users_without_known_items(model, way):
    """Alone, together and beside others they have the factors of a user without counts, and say so."""
    change, said = NOTHING_KNOWN[way]
    strangers = change(COUNTS[COUNTS.UserId < 103])
    grown = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=said):
        together = model.transform(strangers, **tight())
    with pytest.warns(UserWarning, match="1 new users have no count that can be used"):
        alone = model.predict_factors(change(of_user(100)), **tight())
    with pytest.warns(UserWarning, match="3 new users have no count that can be used"):
        beside = model.transform(pd.concat([COUNTS[COUNTS.UserId > 150], strangers]), **tight())
    assert together.index.tolist() == [100, 101, 102]
    # Rounding of float64: they are folded in with and without others.
    for one in (together.to_numpy(), alone, beside.loc[[100, 101, 102]].to_numpy()):
        np.testing.assert_allclose(one, np.broadcast_to(alone, one.shape), rtol=1e-13)
    with pytest.warns(UserWarning, match="1 new users have no count"):
        grown.add_user(7, change(of_user(100)), **tight())
    with pytest.warns(UserWarning, match="3 new users have no count"):
        grown.add_users(strangers.assign(UserId=strangers.UserId + 1000), **tight())
    np.testing.assert_allclose(grown.Theta[-4:], np.broadcast_to(alone, (4, 3)), rtol=1e-13)
    assert len(grown.topN(7, 40)) == 40  # they have seen nothing


@pytest.mark.filterwarnings("ignore:.*(left out|can be used)")
def test_a_user_without_known_items_does_not_move_the_items(model):
    with pytest.raises(ValueError, match="no count of an item that the model has"):
        model.add_user(7, of_user(100).assign(ItemId=-1), update_all_params=True)


def test_fold_in_needs_a_fit_and_its_shapes():
    with pytest.raises(ValueError, match="call fit first"):
        HPF().transform(COUNTS)
    lean = quick(keep_all_objs=False).fit(COUNTS)
    for call in (lean.transform, lean.transform_items, lean.add_users):
        with pytest.raises(ValueError, match="fit with keep_all_objs=True"):
            call(COUNTS)


def test_models_without_data_take_users_in():
    model = quick(keep_data=False, produce_dicts=False).fit(COUNTS)
    model.add_user("x", of_user(100))
    assert model.user_dict_ is None
    assert len(model.topN("x", exclude_seen=False)) == 10


def test_stop_thr_is_not_rounded(backend_name):
    """hpfrec's add_user casts it to an integer: any threshold below one meant never."""
    model = quick(backend=backend_name, use_float=False).fit(COUNTS)
    given = of_user(100)
    step = np.linalg.norm(model.predict_factors(given, maxiter=2) - model.predict_factors(given, maxiter=1))
    assert 0 < 2 * step < 1
    model.add_user("soon", given, maxiter=50, stop_thr=2 * step)
    model.add_user("two", given, maxiter=2, stop_thr=1e-12)
    assert np.array_equal(model.Theta[60], model.Theta[61])


def test_new_ids_of_integers():
    ids = Ids(np.array([5, 3], dtype=np.int32), 2, "user")
    rows, longer = ids.with_new(pd.Index([9, 2**31 - 1]))
    assert rows.tolist() == [2, 3]
    assert longer.values.dtype == np.int32
    assert ids.with_new(pd.Index([2**31]))[1].values.tolist() == [5, 3, 2**31]


def test_changed_parameters_do_not_change_the_fitted_prior(backend_name):
    model = quick(backend=backend_name, use_float=False).fit(COUNTS)
    before = model.transform(COUNTS)
    model.a, model.b_prime, model.use_float = 7.0, 5.0, True
    assert np.array_equal(model.transform(COUNTS), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.transform(COUNTS)


def test_frames_of_factors_are_named_by_their_ids(model):
    users = model.transform(COUNTS.assign(UserId=COUNTS.UserId.map("u{}".format)))
    assert users.index.name == "UserId"
    assert users.index.tolist() == list(dict.fromkeys(COUNTS.UserId.map("u{}".format)))
    items = model.transform_items(COUNTS.assign(ItemId=COUNTS.ItemId.map("i{}".format)))
    assert items.index.name == "ItemId"
    assert items.index.tolist() == list(dict.fromkeys(COUNTS.ItemId.map("i{}".format)))
    assert users.columns.tolist() == items.columns.tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:1 counts of")
def test_shares_of_what_was_left_out_are_nan(model):
    given = pd.DataFrame({"ItemId": [503, 501, 12345, 503], "Count": [2.0, 0.0, 1.0, 4.0]})
    theta, shape, rate, phi = model.predict_factors(given, return_all=True)
    assert np.isnan(phi).all(axis=1).tolist() == [False, True, True, False]
    np.testing.assert_allclose(phi[[0, 3]].sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(phi[0], phi[3])
    np.testing.assert_allclose(theta, shape / rate, rtol=1e-12)
    assert {one.dtype for one in (theta, shape, rate, phi)} == {np.dtype(float)}


@pytest.mark.parametrize("wrong", [-1, 1.5, "x"])
def test_seeds_without_effect_are_checked(wrong):
    model = quick().fit(COUNTS)
    before = model.Theta
    for call in (
        lambda: model.predict_factors(of_user(100), random_seed=wrong),
        lambda: model.add_user(7, of_user(100), random_seed=wrong),
        lambda: model.add_user(7, of_user(100), random_seed=wrong, update_all_params=True),
    ):
        with pytest.raises((TypeError, ValueError), match="random_seed"):
            call()
    assert model.Theta is before


def test_rows_of_a_matrix_that_are_empty_keep_their_places(model):
    rows = sparse.csr_array(([2.0, 1.0], ([1, 2], [0, 3])), shape=(5, 40))
    fitted = quick(use_float=False).fit(sparse.csr_array(np.ones((4, 40))))
    with pytest.warns(UserWarning, match="3 new users have no count that can be used"):
        users = fitted.transform(rows)
    assert users.index.tolist() == [0, 1, 2, 3, 4]
    assert (users.loc[0] == users.loc[4]).all()
    assert (users.loc[1] != users.loc[0]).any()
