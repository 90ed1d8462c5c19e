"""The family of models: without a hierarchy, of ones, with biases, with sides that are known."""

from __future__ import annotations

import numpy as np
import oracle
import pandas as pd
import pytest
from parity import relative_error
from problems import planted_counts
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.data.blocks import in_memory
from hpf_gpu.fitting.training import schedule_of, start_sides
from hpf_gpu.model.biases import warm_up
from hpf_gpu.model.inference import iterate
from hpf_gpu.model.settings import Settings

PRIORS = oracle.Priors(0.4, 0.5, 1.3, 0.2, 0.7, 0.6)
K, SEED = 3, 2
SCHEDULES = ("joint", "alternating")


Y = planted_counts()
GIVEN = np.random.default_rng(9).gamma(0.5, 1.0, (max(Y.shape), K + 2))
GIVEN[::3, 1] = 0.0  # zeros, as other factorizations have them

FAMILY = {
    "flat": {"hierarchical": False},
    "bias": {"bias": True},
    "flat bias": {"hierarchical": False, "bias": True},
    "items": {"known_items": GIVEN[: Y.shape[1], :K]},
    "users": {"known_users": GIVEN[: Y.shape[0], :K]},
    "flat items": {"hierarchical": False, "known_items": GIVEN[: Y.shape[1], :K]},
    "bias items": {"bias": True, "known_items": GIVEN[: Y.shape[1], :]},
}

#: Updates before the first iteration, for which biases wait.
WAITING = {"bias": 11, "flat bias": 11}

#: Largest relative errors of means, and of the ELBO relative to the sum of its terms' magnitudes; the largest
#: measured, over numpy, openmp and simulated cuda, stand beside them.
LIMITS = {"float64": 5e-14, "float32": 4e-6}  # 6e-15, 8e-7
ELBO_LIMITS = {"float64": 5e-15, "float32": 5e-8}  # 8e-16, 1e-8


def model_of(variant="", *, backend="auto", **others):
    parameters = {name: value for name, value in FAMILY.get(variant, {}).items() if "known" not in name}
    arguments = {
        **vars(PRIORS), "k": K, "random_seed": SEED, "stop_crit": "maxiter", "maxiter": 12, "check_every": 1,
        "verbose": False, "backend": backend, "compute_elbo": True,
    }  # fmt: skip
    return HPF(**arguments | parameters | others)


def fit(model, variant="", y=Y, **options):
    given = FAMILY.get(variant, {})
    fixed = {name.replace("known", "fixed"): value for name, value in given.items() if "known" in name}
    model.verbose = True  # so that every iteration is checked
    try:
        return model.fit(sparse.csr_array(y), **fixed, **options)
    finally:
        model.verbose = False


# -- the numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant", FAMILY)
def test_dense_formulas(variant, schedule, backend, backend_name):
    """Means of both sides and the ELBO after every iteration."""
    counted = 13 - WAITING.get(variant, 1)  # where factors part, rounding errors grow with every iteration
    states = oracle.fit_family(Y, K, PRIORS, SEED, backend.dtype, counted, schedule, **FAMILY[variant])
    arguments = {"schedule": schedule, "use_float": backend.dtype == np.float32, "maxiter": counted}
    model = fit(model_of(variant, backend=backend_name, **arguments), variant)
    users, items, _, _ = states[-1]
    limit = LIMITS[backend.dtype.name]
    assert relative_error(model.Theta, users.mean) < limit
    assert relative_error(model.Beta, items.mean) < limit
    for got, (_, _, elbo, magnitude) in zip(model.history_.elbo, states, strict=True):
        assert abs(got - elbo) < ELBO_LIMITS[backend.dtype.name] * magnitude


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant", FAMILY)
def test_the_elbo_never_falls(variant, schedule, backend, backend_name):
    single = backend.dtype == np.float32
    arguments = {"schedule": schedule, "use_float": single, "maxiter": 60}
    model = fit(model_of(variant, backend=backend_name, **arguments), variant)
    elbo = model.history_.elbo.to_numpy()
    assert len(elbo) == 60
    assert np.all(np.diff(elbo) > -10 * ELBO_LIMITS[backend.dtype.name] * np.abs(elbo[1:]))


@pytest.mark.parametrize("variant", FAMILY)
def test_log_sum_exp(variant, backend, backend_name):
    """The way that φ of underflowing counts takes, here that of all, has logarithms of what is known, too."""
    single = backend.dtype == np.float32
    models = [
        fit(model_of(variant, backend=backend_name, use_float=single, sum_exp_trick=exact), variant)
        for exact in (False, True)
    ]
    limit = LIMITS[backend.dtype.name]
    assert relative_error(models[1].Theta, models[0].Theta) < limit
    assert relative_error(models[1].Beta, models[0].Beta) < limit


@pytest.mark.parametrize("batches", ["users", "items"])
@pytest.mark.parametrize("variant", FAMILY)
def test_one_batch_and_a_step_of_one_climb(variant, batches, backend_name):
    """An epoch of one batch is coordinate ascent too, of more than one local step."""
    sizes = {"users_per_batch": 100} if batches == "users" else {"items_per_batch": 100}
    model = model_of(
        variant, backend=backend_name, use_float=False, maxiter=20, step_size=lambda _: 1.0, **sizes
    )
    elbo = fit(model, variant).history_.elbo.to_numpy()
    assert np.all(np.diff(elbo) > -1e-12 * np.abs(elbo[1:]))
    full = fit(model_of(variant, backend=backend_name, use_float=False, maxiter=4), variant)
    assert elbo[-1] > full.history_.elbo.iloc[-1]


@pytest.mark.parametrize("sizes", [{"users_per_batch": 7}, {"items_per_batch": 5}], ids=["users", "items"])
@pytest.mark.parametrize("variant", FAMILY)
def test_stochastic_fits(variant, sizes):
    """What is held stays, and the fit comes near the full one."""
    # Batches are few rows, and biases begin after ten of them.
    steps = {"step_size": lambda epoch: 0.5 / (1 + epoch / 10), "maxiter": 100}
    model = fit(model_of(variant, use_float=False, **steps, **sizes), variant)
    counted = 30 - WAITING.get(variant, 0)
    full = fit(model_of(variant, use_float=False, maxiter=counted), variant)
    if model.bias:
        assert np.all(model.Theta[:, K + 1] == 1)
        assert "items" in variant or np.all(model.Beta[:, K] == 1)
    # At most 0.3 % was measured, where a batch is 5 of 18 items that do not adapt.
    end = full.history_.elbo.iloc[-1]
    assert model.history_.elbo.iloc[-1] > end - 0.006 * abs(end)


# -- the models --------------------------------------------------------------------------------


TAKEN = {"binary": lambda y: (y > 0).astype(float), "log1p": np.log1p}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_for_a_count(backend_name, name):
    take = TAKEN[name]
    y = Y.astype(np.float32)
    given, held_out, some = (sparse.csr_array(counts) for counts in (y, y[:, ::-1], y[:4] * 2))
    # Of the same arrays as in a fit: NumPy's functions of other ones need not have the same bits.
    taken, held_out_taken, some_taken = (
        sparse.csr_array((take(csr.data), csr.indices, csr.indptr), csr.shape)
        for csr in (given, held_out, some)
    )
    model = model_of(backend=backend_name, counts=name).fit(given, held_out)
    want = model_of(backend=backend_name).fit(taken, held_out_taken)
    assert np.array_equal(given.toarray(), y)
    assert np.array_equal(model.Theta, want.Theta)
    assert model.history_.drop(columns="seconds").equals(want.history_.drop(columns="seconds"))
    assert model.eval_llk(given) == want.eval_llk(taken)
    assert model.transform(some).equals(want.transform(some_taken))
    model, want = model.partial_fit(given), want.partial_fit(taken)
    assert np.array_equal(model.Beta, want.Beta)


def test_without_a_hierarchy_rates_are_fixed():
    """A user without counts stays at her prior: Gamma(a, b' + Σβ)."""
    y = np.vstack([Y, np.zeros(Y.shape[1])])
    model = fit(model_of("flat", use_float=False), y=y)
    rates = PRIORS.b_prime + model.Beta.sum(axis=0)
    assert model.Gamma_shp[-1] == pytest.approx(PRIORS.a)
    assert not hasattr(model, "k_rte")
    assert not hasattr(model, "t_rte")
    # The rates are those of the items one iteration before.
    more = fit(model_of("flat", use_float=False, maxiter=13), y=y)
    assert more.Gamma_rte[-1] == pytest.approx(rates, rel=1e-12)


def test_biases_take_what_is_not_taste(tmp_path):
    """Counts of activity and popularity alone: the bias columns explain them, and predictions have them."""
    rng = np.random.default_rng(4)
    b, c = rng.gamma(2.0, 0.5, (60, 1)), rng.gamma(2.0, 0.5, 50)
    y = rng.poisson(b + c).astype(float)
    model = fit(model_of("bias", use_float=False, maxiter=200, stop_crit="maxiter"), y=y)
    taste = model.Theta[:, :K] @ model.Beta[:, :K].T
    rates = model.Theta @ model.Beta.T
    assert taste.sum() < 0.3 * rates.sum()
    assert np.corrcoef(model.Theta[:, K], b[:, 0])[0, 1] > 0.8
    assert np.corrcoef(model.Beta[:, K + 1], c)[0, 1] > 0.8
    assert model.predict([0, 1], [2, 3]) == pytest.approx([rates[0, 2], rates[1, 3]])
    assert model.topN(0, n=50, exclude_seen=False).tolist() == np.argsort(-rates[0], kind="stable").tolist()
    assert (model.Gamma_shp[:, : K + 1] - PRIORS.a).sum() + (
        model.Lambda_shp[:, K + 1] - PRIORS.c
    ).sum() == pytest.approx(y.sum())


def tastes(seed, n=300, m=800, groups=8):
    """Users with 25 items each, mostly of two groups out of eight and popular there: tastes and no bias."""
    rng = np.random.default_rng(seed)
    group, popularity = rng.integers(groups, size=m), rng.permutation(np.arange(1, m + 1) ** -0.8)
    y = np.zeros((n, m))
    for user in range(n):
        liked = np.isin(group, rng.choice(groups, 2, replace=False))
        chance = popularity * np.where(liked, 1.0, 0.03)
        y[user, rng.choice(m, 25, replace=False, p=chance / chance.sum())] = 1.0
    return y


def share_of_biases(model):
    total = model.Theta.sum(axis=0, dtype=float) * model.Beta.sum(axis=0, dtype=float)
    return total[-2:].sum() / total.sum()


@pytest.mark.parametrize(("seed", "schedule"), [(1, "joint"), (2, "alternating"), (3, "joint")])
def test_biases_leave_tastes_to_the_factors(seed, schedule, backend_name, monkeypatch):
    """Biases that are free from the start take all counts, at a lower ELBO.

    Measured, seeds 1 to 20: they have 8 to 17 % of the counts, 87 % where free from the start, and the ELBO
    is higher by 1,150 to 1,850 of 37,000.
    """
    y = tastes(seed)
    options = {"k": 20, "bias": True, "maxiter": 80, "schedule": schedule, "backend": backend_name}

    def fitted():
        return HPF(**options, random_seed=seed, stop_crit="maxiter", verbose=False).fit(sparse.csr_array(y))

    model = fitted()
    assert share_of_biases(model) < 0.4
    monkeypatch.setattr(Settings, "priors", lambda settings, *, of=Settings.priors, biases_wait: of(settings))
    monkeypatch.setattr("hpf_gpu.fitting.training.warm_up", lambda backend, model, columns, update: model)
    collapsed = fitted()
    assert share_of_biases(collapsed) > 0.8
    assert model.history_.elbo.iloc[-1] > collapsed.history_.elbo.iloc[-1] + 500


def test_biases_leave_tastes_to_the_factors_in_batches(backend_name):
    y = tastes(1)
    options = {"k": 20, "bias": True, "random_seed": 1, "verbose": False, "backend": backend_name}
    epochs = HPF(**options, maxiter=10, users_per_batch=50).fit(sparse.csr_array(y))
    assert share_of_biases(epochs) < 0.4
    stream = HPF(**options)
    for batch in range(40):
        part = np.zeros_like(y)
        part[batch % 6 :: 6] = y[batch % 6 :: 6]
        stream.partial_fit(sparse.csr_array(part), nusers=y.shape[0], nitems=y.shape[1])
    assert share_of_biases(stream) < 0.4


def test_biases_begin_with_a_share_of_the_counts(backend):
    """While they wait they have none; then each side's have a tenth, and pinned columns stay pinned."""
    settings = model_of("bias")._settings()
    csr = sparse.csr_array(Y.astype(backend.dtype))
    blocks, columns = in_memory(backend, csr, settings.width, users_per_block=7), settings.bias_columns
    model, waiting = start_sides(settings, backend, Y.shape, SEED, blocks.slices), []

    def update(model):
        waiting.append(iterate(backend, blocks, model, schedule_of(settings)))
        return waiting[-1]

    freed = warm_up(backend, model, columns, update)
    assert len(waiting) == 11
    for before, after, column in (
        *((one, other, columns[0]) for one, other in zip(waiting[-1].users, freed.users, strict=True)),
        (waiting[-1].items, freed.items, columns[1]),
    ):
        assert backend.asnumpy(backend.mean(before.factor))[:, column].max() < 1e-20
        shapes = [backend.asnumpy(side.factor.shape).astype(np.float64) for side in (before, after)]
        of_factors, freely = ((shape - before.prior.shape)[:, :K] for shape in shapes)
        np.testing.assert_allclose(freely, 0.8 * of_factors, rtol=1e-4, atol=1e-6)
        bias = shapes[1][:, column] - before.prior.shape
        np.testing.assert_allclose(bias, 0.1 * of_factors.sum(axis=1), rtol=1e-4, atol=1e-6)
        (pin,) = after.prior.pins
        assert (backend.asnumpy(backend.mean(after.factor))[:, pin.column] == 1).all()
        mean = backend.asnumpy(backend.mean(after.factor)).astype(np.float64)
        np.testing.assert_allclose(backend.asnumpy(after.column_sums), mean.sum(axis=0), rtol=1e-5)


def test_biases_of_batches_wait_for_eleven(tmp_path):
    """Through files, too."""
    model, sizes = model_of("bias"), dict(zip(("nusers", "nitems"), Y.shape, strict=True))
    for calls in range(1, 13):
        model.partial_fit(sparse.csr_array(Y), **sizes)
        model.save(tmp_path / "model")
        model = HPF.load(tmp_path / "model")
        biases = (model.Theta[:, K], model.Beta[:, K + 1])
        assert all((bias < 1e-20).all() if calls < 11 else (bias > 1e-3).all() for bias in biases), calls


def test_fold_in_beside_biases():
    """What is folded in has its biases at once."""
    model = fit(model_of("bias", maxiter=1))
    assert model.transform(sparse.csr_array(Y[:5])).to_numpy()[:, K].min() > 1e-3


# -- sides that are known ----------------------------------------------------------------------


def test_known_items_stay(backend_name):
    model = fit(model_of("items", backend=backend_name), "items")
    assert np.array_equal(model.Beta, GIVEN[: Y.shape[1], :K].astype(np.float32))
    assert not hasattr(model, "t_rte")
    assert model.k_rte.shape == (Y.shape[0], 1)


def test_known_items_are_found_by_id():
    """A frame, whose further rows are left alone, from a fit before."""
    rows, columns = Y.nonzero()
    counts = pd.DataFrame(
        {"UserId": rows, "ItemId": [f"item {i}" for i in columns], "Count": Y[rows, columns]}
    )
    first = model_of(use_float=False).fit(counts)
    beta = pd.DataFrame(first.Beta, index=first.item_mapping_)
    strangers = beta.iloc[:2].rename(index=lambda i: i + "?")
    shuffled = pd.concat([strangers[:1], beta.sample(frac=1, random_state=1), strangers[1:]])
    model = model_of(use_float=False).fit(counts, fixed_items=shuffled)
    assert np.array_equal(model.Beta, first.Beta)
    some = counts[counts.UserId < 5]
    again = model_of(use_float=False, maxiter=200).fit(some, fixed_items=shuffled)
    # The same as folding in: coordinate ascent on θ alone. That has q(β), and this its mean.
    folded = first.transform(some, maxiter=200, stop_thr=1e-9)
    assert relative_error(again.Theta, folded.to_numpy()) < 0.2


@pytest.mark.parametrize("side", ["users", "items"])
def test_errors_of_known_factors(side):
    axis = 0 if side == "users" else 1
    good = GIVEN[: Y.shape[axis], :K]
    matrix = sparse.csr_array(Y)
    named = pd.DataFrame({"UserId": ["u", "v"], "ItemId": ["u", "v"], "Count": [1, 2]})
    name = f"fixed_{side}"

    def fails(error, message, data, factors, **parameters):
        model = model_of(**parameters)
        with pytest.raises(error, match=message):
            model.fit(data, **{name: factors})
        assert not model.is_fitted

    fails(ValueError, rf"{name} has shape \(3, 3\), and the model needs \(\d+, 3\)", matrix, good[:3])
    fails(ValueError, rf"{name} has shape .*, 3\), and the model needs \(\d+, 5\)", matrix, good, bias=True)
    first = np.arange(good.size).reshape(good.shape) == 0
    fails(
        ValueError, f"{name} has -1.0; factors must lie between 0 and 1e", matrix, np.where(first, -1.0, good)
    )
    fails(ValueError, f"{name} has inf", matrix, np.where(first, np.inf, good))
    fails(ValueError, f"{name} has nan", matrix, np.where(first, np.nan, good))
    fails(ValueError, f"row 2 of {name} is all zero", matrix, good * (np.arange(len(good)) != 2)[:, None])
    fails(TypeError, f"{name} must have numbers", matrix, good.astype(str))
    fails(TypeError, f"{name} must be a data frame indexed by {side[:-1]} ids", named, good[:2])
    frame = pd.DataFrame(good[:2], index=["u", "w"])
    fails(ValueError, f"{name} has no row for {side[:-1]} 'v'", named, frame)
    fails(ValueError, f"{name} has several rows for {side[:-1]} 'u'", named, frame.set_axis(["u", "u"]))


def test_what_cannot_be_fixed():
    users, items = FAMILY["users"]["known_users"], FAMILY["items"]["known_items"]
    with pytest.raises(ValueError, match="fixed_users and fixed_items are both set: there is nothing to fit"):
        model_of().fit(sparse.csr_array(Y), fixed_users=users, fixed_items=items)
    with pytest.raises(
        ValueError, match="stop_crit='diff-norm' monitors Theta, which fixed_users keeps constant"
    ):
        model_of(stop_crit="diff-norm").fit(sparse.csr_array(Y), fixed_users=users)
    with pytest.raises(ValueError, match="bias=True needs b_prime"):
        model_of(bias=True, b_prime=1e25)


def test_users_that_are_fixed_take_no_others():
    model = fit(model_of("users"), "users")
    row = pd.DataFrame({"UserId": [Y.shape[0]], "ItemId": [1], "Count": [2]})
    assert model.transform(row).shape == (1, K)
    with pytest.raises(ValueError, match="users of this model are fixed: use transform"):
        model.add_users(row)
    with pytest.raises(ValueError, match="users of this model are fixed: a batch cannot add new ones"):
        model.partial_fit(row, new_users=True)
    theta, beta = model.Theta.copy(), model.Beta.copy()
    model.partial_fit(sparse.csr_array(Y))
    assert np.array_equal(model.Theta, theta)
    assert not np.array_equal(model.Beta, beta)


# -- the rest of the surface -------------------------------------------------------------------


@pytest.mark.parametrize("variant", FAMILY)
def test_the_whole_surface(variant, backend_name, tmp_path):
    """Save, load, checkpoints, fold-in and batches, with what is held still held in the end."""
    model = fit(model_of(variant, backend=backend_name, maxiter=12), variant)
    model.save(tmp_path / "model")
    twin = HPF.load(tmp_path / "model")
    new = sparse.csr_array(Y[:5] + 1)
    folded = model.transform(new)
    assert twin.transform(new).equals(folded)
    assert twin._fitted.posteriors[0].prior == model._fitted.posteriors[0].prior
    if model.bias:
        assert np.all(folded[K + 1] == 1)
    if "users" not in variant:
        rows = pd.DataFrame({"UserId": [Y.shape[0]] * 3, "ItemId": [0, 1, 2], "Count": [1, 2, 3]})
        model.add_users(rows)
        assert model.Theta.shape == (Y.shape[0] + 1, K + 2 * model.bias)
    for kind in ("users", "items"):
        before = model.Beta.copy()
        batch = np.vstack([Y, np.zeros((len(model.Theta) - len(Y), Y.shape[1]))])
        model.partial_fit(sparse.csr_array(batch), batch_type=kind)
        assert np.isfinite(model.Theta).all()
        if "items" in variant:
            assert np.array_equal(model.Beta, before)
    if model.bias:
        assert np.all(model.Theta[:, K + 1] == 1)
        assert "items" in variant or np.all(model.Beta[:, K] == 1)
    # A checkpoint has all of it.
    path = tmp_path / "state"
    fit(model_of(variant, backend=backend_name, maxiter=7), variant, checkpoint=path, checkpoint_every=2)
    resumed = fit(model_of(variant, backend=backend_name, maxiter=12), variant, checkpoint=path)
    assert np.array_equal(resumed.Theta, twin.Theta)
    assert np.array_equal(resumed.Beta, twin.Beta)
    if "items" in variant:
        other = FAMILY[variant]["known_items"] * 2
        with pytest.raises(ValueError, match="checkpoint of a fit to another fixed_items"):
            model_of(variant).fit(sparse.csr_array(Y), fixed_items=other, checkpoint=path)


def test_partial_fit_before_fit_with_biases():
    model = model_of("flat bias")
    for rows in (slice(0, 12), slice(12, None)):
        y = np.zeros_like(Y)
        y[rows] = Y[rows]
        model.partial_fit(sparse.csr_array(y), nusers=Y.shape[0], nitems=Y.shape[1])
    assert model.Theta.shape == (Y.shape[0], K + 2)
    assert np.all(model.Theta[:, K + 1] == 1)
    assert np.all(model.Beta[:, K] == 1)


def test_known_factors_of_nullable_types() -> None:
    counts = sparse.csr_array(np.array([[1.0, 2, 0], [0, 1, 3]]))
    factors = pd.DataFrame(np.ones((3, 2)))
    model = HPF(k=2, maxiter=3, random_seed=1, verbose=False, backend="numpy")
    plain = model.fit(counts, fixed_items=factors).Theta
    np.testing.assert_array_equal(model.fit(counts, fixed_items=factors.astype("Float64")).Theta, plain)


@pytest.mark.parametrize("side", ["users", "items"])
def test_others_than_the_fixed_ones_are_folded_in(side: str) -> None:
    """Their own factors follow their counts, whether or not those of the fit were given."""
    rng = np.random.default_rng(4)
    counts = sparse.csr_array(rng.poisson(2.0, (9, 8)).astype(float))
    known = rng.gamma(2.0, 1.0, (9 if side == "users" else 8, 3))
    model = HPF(k=3, maxiter=5, random_seed=1, verbose=False, use_float=False, a=0.25, c=0.25)
    model.fit(counts, **{f"fixed_{side}": known})
    for others, total in ((model.transform, counts.sum(axis=1)), (model.transform_items, counts.sum(axis=0))):
        twice, once = others(counts * 2), others(counts)
        assert (twice.sum(axis=1) > 1.1 * once.sum(axis=1))[total > 0].all()
    one = pd.DataFrame({"ItemId": [0, 3], "Count": [4.0, 2.0]})
    theta, shape, rate, _ = model.predict_factors(one, return_all=True)
    np.testing.assert_allclose((shape - 0.25).sum(), 6, rtol=1e-12)
    np.testing.assert_allclose(theta, shape / rate, rtol=1e-12)


def test_who_is_folded_in_has_a_bias_though_those_of_the_fit_rest() -> None:
    frame = pd.DataFrame({"UserId": [0, 0, 1, 2], "ItemId": [0, 1, 1, 0], "Count": [3.0, 1.0, 2.0, 5.0]})
    model = HPF(k=2, random_seed=1, verbose=False, use_float=False, bias=True)
    model.partial_fit(frame, nusers=3, nitems=2)  # the first of the batches for which biases rest
    theta, shape, _, _ = model.predict_factors(frame[:2][["ItemId", "Count"]], return_all=True)
    assert theta[3] == pytest.approx(1)
    assert shape[2] >= 0.3
    assert 1e-3 < theta[2] < 10
