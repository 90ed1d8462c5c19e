"""Models with neighbours: fits against dense formulas, the ELBO, blocks, batches, fold-in, odd data."""

from __future__ import annotations

import numpy as np
import oracle
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbour_models import (
    FRAME,
    GIVEN,
    PRIORS,
    SEED,
    WAYS,
    M,
    N,
    Y,
    dense_rates,
    dense_weights,
    fit,
    model_of,
    rows_of,
    weights_of,
)
from parity import relative_error
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends import create
from hpf_gpu.fitting import training
from hpf_gpu.model import neighbours, stochastic

SCHEDULES = ("joint", "alternating")

#: Largest relative errors of means and shapes, and of sums relative to the magnitude of the ELBO's terms; the
#: largest measured with numpy stand beside them.
LIMITS = {"float64": 1e-13, "float32": 2e-5}  # 7.4e-15, 2.9e-6
SUM_LIMITS = {"float64": 2e-15, "float32": 1e-7}  # 1.9e-16, 4.6e-9


def reference(model, way, iterations, dtype, y=Y):
    """The oracle's states, with the neighbours that the model has chosen."""
    names = ("hierarchical", "bias", "known_users", "known_items")
    how = {name: WAYS[way][name] for name in names if name in WAYS[way]}
    users, items = oracle.family_start(y.shape, model.k, PRIORS, SEED, dtype, **how)
    prior = (model.w_shape, model.w_rate, model.temperature)
    weights = oracle.start_weights(y, weights_of(model).sources, *prior)
    return oracle.fit_with_neighbours(y, users, items, weights, iterations, model.schedule)


# -- fits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("way", WAYS)
def test_dense_formulas(way, schedule, backend, backend_name):
    """Means, shapes and rates at the end, and the ELBO and both log-likelihoods after every iteration."""
    single = backend.dtype == np.float32
    model = model_of(way, backend=backend_name, schedule=schedule, use_float=single)
    held_out = np.roll(Y, 1, axis=1) * (Y.sum(axis=1, keepdims=True) > 0)
    fit(model, way, val_set=sparse.csr_array(held_out))
    states = reference(model, way, model.niter, backend.dtype)
    (users, items, weights, _, _), found = states[-1], weights_of(model)
    limit, of_sums = LIMITS[backend.dtype.name], SUM_LIMITS[backend.dtype.name]
    assert relative_error(model.Theta, users.mean) < limit
    assert relative_error(model.Beta, items.mean) < limit
    real = found.sources >= 0
    assert relative_error(found.shape[real], weights.w.shape[real]) < limit
    assert relative_error(found.mean, weights.mean) < limit
    assert found.shape.dtype == found.mean.dtype == backend.dtype
    if way == "items fixed":
        np.testing.assert_array_equal(model.Beta, GIVEN[:M].astype(backend.dtype))
    u, i = held_out.nonzero()
    y = held_out[u, i]
    for got, (users, items, weights, elbo, magnitude) in zip(
        model.history_.itertuples(), states, strict=True
    ):
        rates = oracle.rates_with_neighbours(Y, users.mean, items.mean, weights.mean, weights.sources)
        llk = float((Y * np.log(rates)).sum() - rates.sum())
        val_llk = float((y * np.log(rates[u, i]) - rates[u, i]).sum())
        for figure, want in ((got.elbo, elbo), (got.llk, llk), (got.val_llk, val_llk)):
            assert abs(figure - want) < of_sums * magnitude


@pytest.mark.parametrize("way", WAYS)
def test_log_sum_exp(way, backend_name):
    """The way that φ of underflowing counts takes, here that of all."""
    one, other = (
        fit(model_of(way, backend=backend_name, sum_exp_trick=exact), way) for exact in (False, True)
    )
    assert relative_error(one.Theta, other.Theta) < LIMITS["float64"]
    assert relative_error(weights_of(one).mean, weights_of(other).mean) < LIMITS["float64"]


def test_without_factors_an_item_has_a_base_rate(backend_name):
    """θ = 1; and the rates of all pairs of an item sum up to about its count."""
    model = fit(model_of("no factors", backend=backend_name, maxiter=100))
    assert model.Theta.shape == (N, 1)
    assert model.Beta.shape == (M, 1)
    assert np.all(model.Theta == 1)
    assert not dense_weights(model).mean[5].any()
    totals = dense_rates(model).sum(axis=0)
    assert np.corrcoef(totals, Y.sum(axis=0))[0, 1] > 0.99


def in_pairs():
    """Counts (200, 40): who has one of the first twenty items often has another one because of it."""
    rng = np.random.default_rng(5)
    has = rng.random((200, 20)) < 0.2
    return np.concatenate([has, has & (rng.random(has.shape) < 0.7)], axis=1).astype(float)


def test_counts_go_to_the_item_that_they_come_from(backend_name):
    model = fit(model_of("no factors", backend=backend_name, maxiter=50), y=in_pairs())
    found = weights_of(model)
    largest = found.sources[np.arange(40), found.mean.argmax(axis=1)]
    assert np.array_equal(largest[20:], np.arange(20))


def test_neighbours_explain_what_factors_cannot(backend_name):
    """A higher held-out likelihood than that of the factors alone, where counts come from other items."""
    y = in_pairs()
    held_out = np.zeros_like(y)
    held_out[::4, 20:] = y[::4, 20:]
    train, test = sparse.csr_array(y - held_out), sparse.csr_array(held_out)
    both = model_of(backend=backend_name, maxiter=30).fit(train, test)
    factors = model_of(backend=backend_name, maxiter=30, neighbours=0).fit(train, test)
    assert both.history_.val_llk.iloc[-1] > factors.history_.val_llk.iloc[-1] + 50


@pytest.mark.parametrize("way", ["both", "no factors"])
def test_fits_repeat_and_depend_on_the_seed(way, backend_name):
    one, same, other = (fit(model_of(way, backend=backend_name, random_seed=seed)) for seed in (3, 3, 4))
    for first, second in ((one.Beta, same.Beta), (weights_of(one).shape, weights_of(same).shape)):
        assert np.array_equal(first, second)
    assert not np.array_equal(one.Beta, other.Beta)


# -- the ELBO ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_elbo_never_falls(schedule, backend_name):
    """For any data, priors and temperatures, whatever the dtype."""

    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def check(data):
        n, m = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 8))
        count = st.one_of(st.just(0), st.just(0), st.integers(1, 20), st.floats(0.01, 3.0), st.just(9999))
        y = np.array(data.draw(st.lists(count, min_size=n * m, max_size=n * m)), float).reshape(n, m)
        y[0, 0] += 1.0
        level = st.sampled_from([0.05, 0.3, 1.0, 3.0])
        names = ("a", "a_prime", "b_prime", "c", "c_prime", "d_prime", "w_shape", "w_rate")
        drawn = {name: data.draw(level) for name in names}
        drawn |= {
            "k": data.draw(st.integers(0, 3)),
            "neighbours": data.draw(st.integers(1, 10)),
            "temperature": data.draw(st.sampled_from([1.0, 1.25, 3.0])),
            "hierarchical": data.draw(st.booleans()),
            "use_float": data.draw(st.booleans()),
        }
        model = fit(model_of(backend=backend_name, schedule=schedule, maxiter=12, **drawn), y=y)
        elbo = model.history_.elbo.to_numpy()
        assert len(elbo) == 12
        limit = 1e-5 if model.use_float else 1e-11  # of the magnitude; 4e-7 and 1e-13 measured
        assert np.all(np.diff(elbo) >= -limit * (np.abs(elbo[1:]) + y.sum() * np.log(y.max() + 2)))

    check()


@pytest.mark.parametrize("way", WAYS)
def test_stops_by_the_elbo(way, backend_name):
    model = model_of(way, backend=backend_name, stop_crit="elbo", stop_thr=1e-5, maxiter=1000, check_every=5)
    fit(model, way)
    assert model.niter < 1000
    elbo = model.history_.elbo.to_numpy()
    assert np.all(np.diff(elbo[:-1]) > 1e-5 * np.abs(elbo[:-2]))
    assert abs(elbo[-1] - elbo[-2]) <= 1e-5 * abs(elbo[-2])


# -- blocks and batches ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "others"),
    [*((way, {}) for way in WAYS), ("both", {"users_per_batch": 13, "maxiter": 5})],
    ids=str,
)
def test_blocks_are_one(way, others, backend_name, monkeypatch):
    """One, three and twenty."""
    given = {"val_set": sparse.csr_array(np.roll(Y, 1, axis=1) * (np.arange(N) % 3 == 0)[:, None])}
    whole = fit(model_of(way, backend=backend_name, **others), way, **given)
    for users in (17, 2):
        monkeypatch.setattr(training, "USERS_PER_BLOCK", users)
        split = fit(model_of(way, backend=backend_name, **others), way, **given)
        # Sums over items in another order.
        assert relative_error(split.Theta, whole.Theta) < 1e-11
        assert relative_error(weights_of(split).shape, weights_of(whole).shape) < 1e-11
        histories = [model.history_.drop(columns="seconds").to_numpy() for model in (split, whole)]
        np.testing.assert_allclose(*histories, rtol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "biases"])  # whose first updates differ
def test_one_batch_and_one_step_are_a_full_iteration(way, schedule, backend_name, monkeypatch):
    """The same bits."""
    monkeypatch.setattr(stochastic.LocalUpdates, "__init__", _with_one_step(stochastic.LocalUpdates.__init__))
    given = {"backend": backend_name, "schedule": schedule}
    full = fit(model_of(way, **given), way)
    batches = fit(model_of(way, users_per_batch=100, step_size=lambda _: 1.0, **given), way)
    assert np.array_equal(full.Theta, batches.Theta)
    assert np.array_equal(full.Beta, batches.Beta)
    assert np.array_equal(weights_of(full).shape, weights_of(batches).shape)
    assert full.history_.drop(columns="seconds").equals(batches.history_.drop(columns="seconds"))


def _with_one_step(init):
    def one_step(self, alternating=False, exact_phi=False, steps=1):
        init(self, alternating, exact_phi, steps)

    return one_step


@pytest.mark.parametrize("way", ["both", "no factors", "items fixed"])
def test_stochastic_fits_come_near_the_full_one(way, backend_name):
    steps = {"step_size": lambda epoch: 0.5 / (1 + epoch / 5), "maxiter": 40}
    model = fit(model_of(way, backend=backend_name, users_per_batch=20, **steps), way)
    full = fit(model_of(way, backend=backend_name, maxiter=30), way)
    best, worst = full.history_.elbo.iloc[-1], full.history_.elbo.iloc[0]
    assert model.history_.elbo.iloc[-1] > best - 0.1 * abs(best - worst)


@pytest.mark.parametrize(("step", "scale"), [(1.0, 1.0), (0.3, 2.5), (0.0, 4.0)])
def test_a_step_of_weights(step, scale, backend, tolerance):
    """Shapes move by the step; rates are those of all users."""
    rng = np.random.default_rng(1)
    sources = np.array([[1, 2], [0, -1], [-1, -1]], np.int32)
    prior = neighbours.WeightPrior(0.5, 2.0, 1.25)
    users_with = np.array([4.0, 3.0, 2.0])
    weights = neighbours.start_weights(backend, prior, sources, users_with, np.array([6.0, 1.0, 0.0]))
    statistic = rng.integers(1, 20, (3, 2)) / 8 * (sources >= 0)
    old = backend.asnumpy(weights.factor.shape).astype(np.float64)
    moved = neighbours.update_weights(backend, weights, backend.asarray(statistic), scale=scale, step=step)
    shape = (1 - step) * old + step * (0.5 + scale * statistic)
    rate = 2.0 + np.array([[3.0, 2.0], [4.0, 0.0], [0.0, 0.0]])
    assert relative_error(backend.asnumpy(moved.factor.shape), shape) < tolerance.mean
    assert relative_error(backend.asnumpy(backend.mean(moved.factor)), shape / rate) < tolerance.mean


# -- fold-in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["both", "T = 1", "no hierarchy"])
def test_fold_in_is_the_dense_formulas(way, backend_name):
    """Of users of the training data, and of others whose items are nobody's neighbours."""
    model = fit(model_of(way, backend=backend_name, hierarchical=True), way)
    new = np.zeros((3, M))
    new[0, [0, 1, 2, 9]], new[1, [4, 20]] = 2.0, 1.0
    y = np.vstack([Y[Y.sum(axis=1) > 0][:9], new[:2]])
    beta = oracle.Gamma(model.Lambda_shp, model.Lambda_rte)
    p = PRIORS
    want = oracle.fold_in_with_neighbours(y, beta, dense_weights(model), p.a, p.a_prime, p.b_prime, 7)
    got = model.transform(sparse.csr_array(y), maxiter=7, stop_thr=1e-300)
    assert relative_error(got.to_numpy(), want.mean) < 1e-12
    one = model.predict_factors(sparse.csr_array(y[[0]]), maxiter=7, stop_thr=1e-300)
    assert relative_error(one, want.mean[0]) < 1e-12


def test_training_users_land_on_their_factors(backend_name):
    model = model_of(backend=backend_name, maxiter=300).fit(sparse.csr_array(Y))
    known = Y.sum(axis=1) > 0
    theta = model.transform(sparse.csr_array(Y[known]), maxiter=300, stop_thr=1e-13)
    # 4e-4 measured: the fit has not quite come to its end.
    assert relative_error(theta.to_numpy(), model.Theta[known]) < 4e-3


def test_without_factors_there_is_nothing_to_fit(backend_name, monkeypatch):
    model = fit(model_of("no factors", backend=backend_name))

    def allocates(*arguments, **more):
        raise AssertionError("a count was allocated")

    monkeypatch.setattr("hpf_gpu.model.inference.allocate", allocates)
    assert (model.transform(sparse.csr_array(Y[:5])).to_numpy() == 1).all()
    assert model.predict_factors(sparse.csr_array(Y[[0]])).tolist() == [1.0]


def test_new_items_have_no_neighbours(backend_name):
    """Their factors are those of a model without neighbours whose users are the same."""
    model = fit(model_of(backend=backend_name))
    new = sparse.csr_array(np.random.default_rng(1).poisson(1.0, (N, 2)).astype(float))
    got = model.transform_items(new, maxiter=6, stop_thr=1e-300)
    theta, p = oracle.Gamma(model.Gamma_shp, model.Gamma_rte), PRIORS
    want, _ = oracle.fold_in(new.toarray().T, theta, p.c, p.c_prime, p.d_prime, 6)[-1]
    assert relative_error(got.to_numpy(), want.mean) < 1e-12
    alone = fit(model_of("no factors", backend=backend_name))
    base = alone.transform_items(new, maxiter=50, stop_thr=1e-12).to_numpy()[:, 0]
    assert base == pytest.approx(new.toarray().mean(axis=0), rel=0.1)


@pytest.mark.parametrize("way", ["both", "no factors"])
def test_added_users_are_answered_by_their_items(way, backend_name):
    """Added at once, one by one, or in place of others; unknown items do not count."""
    model = fit(model_of(way, backend=backend_name))
    new = np.random.default_rng(4).poisson(0.4, (3, M)).astype(float)
    new[:, 0] += 1
    stray = pd.DataFrame({"UserId": [N], "ItemId": [777], "Count": [5.0]})
    with pytest.warns(UserWarning, match="1 of the [0-9]+ counts of counts_df were left out"):
        model.add_users(pd.concat([rows_of(new, N), stray]))
    y = np.vstack([Y, new])
    everyone, everything = np.divmod(np.arange(len(y) * M), M)
    assert relative_error(model.predict(everyone, everything), dense_rates(model, y).ravel()) < 1e-12
    model.add_user(3, rows_of(new[[1]])[["ItemId", "Count"]], update_existing=True)
    model.add_user(len(y), rows_of(new[[2]])[["ItemId", "Count"]])
    y[3] = new[1]
    y = np.vstack([y, new[[2]]])
    everyone, everything = np.divmod(np.arange(len(y) * M), M)
    assert relative_error(model.predict(everyone, everything), dense_rates(model, y).ravel()) < 1e-12
    _, best = oracle.top_items(dense_rates(model, y), 6, [list(np.flatnonzero(row)) for row in y])
    for user in (3, N, len(y) - 1):
        rates = dense_rates(model, y)[user, model.topN(user, n=6)]
        assert rates == pytest.approx(best[user], rel=1e-12)


# -- partial_fit -------------------------------------------------------------------------------


def grown(**arguments):
    """A model of batches alone."""
    model = model_of(reindex=True, **arguments)
    for users in np.array_split(np.unique(FRAME.UserId), 3):
        model.partial_fit(FRAME[FRAME.UserId.isin(users)], nusers=N, nitems=M)
    return model


@pytest.mark.parametrize("way", ["both", "no factors", "T = 1", "no hierarchy"])
def test_a_batch_of_all_users_is_an_epoch(way, backend_name):
    """After a fit, a step of 1 with all counts is what the fit itself would have done next."""
    how = {"backend": backend_name, "users_per_batch": 10**6, "step_size": lambda _: 1.0}
    longer = model_of(way, maxiter=5, **how).fit(FRAME)
    model = model_of(way, maxiter=4, **how).fit(FRAME).partial_fit(FRAME, step_size=1.0)
    assert relative_error(model.Theta, longer.Theta) < 1e-12
    assert relative_error(model.Beta, longer.Beta) < 1e-12
    assert relative_error(weights_of(model).mean, weights_of(longer).mean) < 1e-12


@pytest.mark.parametrize("way", ["both", "no factors"])
def test_a_step_of_zero_changes_no_item(way, backend_name):
    """Neither factors nor weights, also when users join."""
    model = model_of(way, backend=backend_name).fit(FRAME)
    beta, mean = model.Beta, weights_of(model).mean
    batch = FRAME[FRAME.UserId < 9].assign(UserId=lambda rows: rows.UserId + 1000)
    model.partial_fit(batch, step_size=0.0, new_users=True)
    assert relative_error(model.Beta, beta) < 1e-12
    assert relative_error(weights_of(model).mean, mean) < 1e-12


def test_batches_bring_users_and_items(backend_name):
    """New items are answered by factors; they are no item's neighbours and have none."""
    model = model_of(backend=backend_name).fit(FRAME)
    sources = weights_of(model).sources
    batch = pd.DataFrame({"UserId": [0, 0, "new", "new"], "ItemId": [0, "other", 1, "other"], "Count": 1.0})
    model.partial_fit(batch, new_users=True, new_items=True)
    known = len(sources)
    assert np.array_equal(weights_of(model).sources[:known], sources)
    assert (weights_of(model).sources[known:] == -1).all()
    y = np.zeros((len(model.Theta), len(model.Beta)))
    indptr, indices = model._fitted.seen
    y[np.repeat(np.arange(len(y)), np.diff(indptr)), indices] = 1
    assert y[0, -1] == y[-1, -1] == y[-1].sum() - 1 == 1
    everyone, everything = np.divmod(np.arange(y.size), y.shape[1])
    got = model.predict(model.user_mapping_[everyone], model.item_mapping_[everything])
    assert relative_error(got, dense_rates(model, y).ravel()) < 1e-12


@pytest.mark.parametrize("way", ["both", "no factors"])
def test_batches_alone_make_a_model(way, backend_name):
    """Its neighbours are those of the first batch, and its rates are those of all users."""
    model = grown(way=way, backend=backend_name)
    first = FRAME[FRAME.UserId < 14]
    codes, items = pd.factorize(first.ItemId)
    users = pd.factorize(first.UserId)[0]
    csr = sparse.csr_array((first.Count, (users, codes)))
    csr.sort_indices()
    want = create(backend_name, np.float64).choose_neighbours(csr, 6)
    assert np.array_equal(weights_of(model).sources[: len(items)], want)
    assert (weights_of(model).mean[: len(items)][want >= 0] > 0).all()
    for _ in range(20):
        model.partial_fit(FRAME, step_size=1.0)
    # Of the 40 users one never comes, and 39 stand for her, too.
    users_with = FRAME.groupby("ItemId").UserId.count()[model.item_mapping_]
    assert weights_of(model).users_with == pytest.approx(users_with.to_numpy() * 40 / 39)
    assert np.corrcoef(model.predict(FRAME.UserId, FRAME.ItemId), FRAME.Count)[0, 1] > 0.3


def test_items_cannot_be_batches(backend_name):
    for model in (model_of(backend=backend_name).fit(FRAME), model_of(backend=backend_name)):
        before = model._fitted
        with pytest.raises(ValueError, match=r"batch_type='items' .* neighbours need: pass users"):
            model.partial_fit(FRAME, batch_type="items", nusers=N, nitems=M)
        assert model._fitted is before
    model = model_of(backend=backend_name).fit(FRAME)
    model.set_params(neighbours=0, keep_data=False)
    with pytest.raises(ValueError, match="keep_data=True"):
        model.partial_fit(FRAME)


def test_a_user_who_moves_all_items(backend_name):
    model = model_of(backend=backend_name).fit(FRAME)
    before = weights_of(model).mean
    model.add_user("new", FRAME.loc[FRAME.UserId == 2, ["ItemId", "Count"]], update_all_params=True)
    assert not np.array_equal(weights_of(model).mean, before)
    user = model.user_dict_["new"]
    indptr, indices = model._fitted.seen
    assert len(indices[indptr[user] : indptr[user + 1]]) == (FRAME.UserId == 2).sum()
    assert np.isfinite(model.predict("new", 0))


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"k": 0, "neighbours": 0}, ValueError, "k=0 leaves the factors out: set neighbours"),
        ({"k": 0, "bias": True}, ValueError, "k=0 has a base rate for each item .*bias=False"),
        ({"k": 0, "stop_crit": "diff-norm"}, ValueError, "stop_crit='diff-norm' monitors Theta, .*k=0"),
        ({"k": 0, "b_prime": 1e20}, ValueError, r"k=0 needs b_prime.* up to 1e\+19, not 1e\+20"),
        ({"k": -1}, ValueError, "k=-1 must be at least 0"),
        ({"keep_data": False}, ValueError, "set keep_data=True"),
        ({"items_per_batch": 9}, ValueError, "items_per_batch=9 .*: use users_per_batch"),
        ({"backend": "cuda", "allocate": "cusparse"}, ValueError, "allocate='cusparse' .*'fused'"),
        ({"neighbours": -1}, ValueError, "neighbours=-1 must be at least 0"),
        ({"neighbours": 5000}, ValueError, "neighbours=5000 must be at most 1024"),
        ({"neighbours": 2.5}, ValueError, "neighbours=2.5 must be an integer"),
        ({"neighbours": "all"}, TypeError, "neighbours must be an integer, not 'all'"),
        ({"temperature": 0.5}, ValueError, "temperature=0.5 must lie between 1 and 10"),
        ({"temperature": float("nan")}, ValueError, "temperature=nan must lie between 1 and 10"),
        ({"w_rate": 0.0}, ValueError, "w_rate=0.0 must lie between"),
        ({"w_shape": -1.0}, ValueError, "w_shape=-1.0 must lie between"),
    ],
)
def test_settings_that_contradict_each_other(given, kind, message):
    with pytest.raises(kind, match=message):
        HPF(**{"neighbours": 5} | given)
    model = HPF(neighbours=5)
    with pytest.raises(kind, match=message):
        model.set_params(**given)
    assert model.get_params() == HPF(neighbours=5).get_params()


def test_fixed_sides_need_factors(backend_name):
    model = model_of("no factors", backend=backend_name)
    for side, n in (("users", N), ("items", M)):
        with pytest.raises(ValueError, match="k=0 leaves the factors out: fixed_users and fixed_items need"):
            model.fit(sparse.csr_array(Y), **{f"fixed_{side}": np.ones((n, 1))})


def test_without_neighbours_the_new_parameters_do_nothing(backend_name):
    given = {"backend": backend_name, "neighbours": 0}
    one = model_of(**given).fit(FRAME)
    other = model_of(**given, temperature=3.0, w_shape=1.0, w_rate=7.0).fit(FRAME)
    assert np.array_equal(one.Theta, other.Theta)
    assert one.history_.drop(columns="seconds").equals(other.history_.drop(columns="seconds"))
    assert weights_of(one) is None
    assert np.array_equal(one.transform(FRAME), other.transform(FRAME))


# -- odd data ----------------------------------------------------------------------------------

ODD = {
    "one user": np.arange(1.0, 6.0)[None, :],
    "one item": np.arange(1.0, 6.0)[:, None],
    "one count": np.ones((1, 1)),
    "one item each": np.eye(6),
    "an item that nobody shares": np.block([[np.ones((4, 3)), np.zeros((4, 1))], [np.zeros(3), np.ones(1)]]),
    "empty rows and columns": np.pad(Y[:5, :5] + np.eye(5), 2),
    "fractions": Y * 0.25 + np.eye(N, M) * 1e-3,
    "the same for all": np.ones((5, 4)),
    "far apart": np.where(np.arange(20).reshape(4, 5) % 3, 1e-6, 1e7),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("use_float", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("kind", ODD)
def test_odd_data(kind, k, use_float, backend_name):
    """Everything is finite, answers are the dense formulas, and neighbours have occurred together."""
    y = ODD[kind]
    for others in ({"neighbours": 1}, {"neighbours": 100}, {"users_per_batch": 2, "maxiter": 4}):
        given = {"k": k, "use_float": use_float, "backend": backend_name} | others
        with np.errstate(all="raise", under="ignore"):
            model = fit(model_of(**given), y=y)
        assert np.isfinite(model.history_[["llk", "elbo"]]).all().all()
        found = weights_of(model)
        together = (y > 0).T.astype(float) @ (y > 0)
        item, place = np.nonzero(found.sources >= 0)
        assert (together[item, found.sources[item, place]] > 0).all()
        assert (found.mean[item, place] > 0).all()
        everyone, everything = np.divmod(np.arange(y.size), y.shape[1])
        want = dense_rates(model, y).ravel()
        assert np.isfinite(want).all()
        got = model.predict(everyone, everything)
        assert relative_error(got, want) < (1e-6 if use_float else 1e-12)
        row = int(np.argmax(y.sum(axis=1)))
        assert len(model.topN(row, n=3, exclude_seen=False)) == min(3, y.shape[1])
        assert model.transform(sparse.csr_array(y[[row]])).shape == (1, max(k, 1))
        table = model.explain(row, int(np.argmax(y[row])))
        assert table.Rate.sum() == pytest.approx(want.reshape(y.shape)[row, np.argmax(y[row])], rel=1e-5)


def test_users_with_very_many_items_are_thinned(backend_name, monkeypatch):
    """Of 20 items of a user, four count for the choice; all of them for the fit."""
    monkeypatch.setattr(neighbours, "MOST_ITEMS", 4)
    y = np.zeros((7, 20))
    y[0], y[1:, :2] = 1.0, 1.0
    model = fit(model_of(backend=backend_name, neighbours=20), y=y)
    found = weights_of(model)
    chosen = [set(row[row >= 0]) for row in found.sources]
    assert 1 in chosen[0]
    assert sum(map(bool, chosen[2:])) in (2, 3, 4)  # those drawn
    assert max(map(len, chosen)) <= 4
    assert np.array_equal(found.users_with, (y > 0).sum(axis=0))
    again = fit(model_of(backend=backend_name, neighbours=20, random_seed=99), y=y)
    assert np.array_equal(weights_of(again).sources, found.sources)


def test_a_choice_is_of_training_data_alone(backend_name):
    """Held-out counts give no neighbours, and no items to a user."""
    model, other = (
        fit(model_of(backend=backend_name), val_set=val_set)
        for val_set in (None, sparse.csr_array(np.roll(Y, 1, axis=1) * (Y.sum(axis=1, keepdims=True) > 0)))
    )
    assert np.array_equal(weights_of(model).sources, weights_of(other).sources)
    assert np.array_equal(model.seen, other.seen)


@pytest.mark.parametrize("form", ["frame", "array", "csc", "strings"])
def test_forms_of_data_are_equal(form, backend_name):
    order = np.random.default_rng(2).permutation(len(FRAME))
    given = {
        "frame": FRAME,
        "array": FRAME.to_numpy(),
        "csc": sparse.csc_array(Y[np.unique(FRAME.UserId)][:, pd.unique(FRAME.ItemId)]),
        "strings": FRAME.assign(UserId=FRAME.UserId.map("u{}".format), ItemId=FRAME.ItemId.map("i{}".format)),
    }[form]
    want = model_of(backend=backend_name, reindex=True).fit(FRAME)
    got = model_of(backend=backend_name, reindex=True).fit(given)
    assert relative_error(got.Theta, want.Theta) < 1e-12
    assert np.array_equal(weights_of(got).sources, weights_of(want).sources)
    if form == "frame":
        shuffled = model_of(backend=backend_name, reindex=True).fit(FRAME.iloc[order])
        names = [shuffled.item_dict_[item] for item in want.item_mapping_]
        assert np.array_equal(weights_of(shuffled).users_with[names], weights_of(want).users_with)
