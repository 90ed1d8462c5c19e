"""schedule="accelerated": its iterations, its safeguard, and how much sooner it arrives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import relative_error
from problems import SMALL, planted_counts, rule
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.fitting import training
from hpf_gpu.model.acceleration import Kept, accelerated, with_momentum
from hpf_gpu.model.inference import iterate
from hpf_gpu.model.sides import Model

Y = planted_counts()
GIVEN = np.random.default_rng(9).gamma(0.5, 1.0, (max(Y.shape), 5))

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flat": {"hierarchical": False},
    "biases": {"bias": True},
    "blocks": {},
    "fixed items": {},
    "fixed users": {},
    "neighbours": {"neighbours": 4},
    "biases, neighbours": {"bias": True, "neighbours": 4, "temperature": 2.0},
    "neighbours alone": {"k": 0, "neighbours": 4},
    "fixed items, neighbours": {"neighbours": 4},
}


def fit(way: str, monkeypatch: pytest.MonkeyPatch, y: Any = Y, **options: Any) -> HPF:
    """A fit in float64, checked after every third iteration."""
    if way == "blocks":
        monkeypatch.setattr(training, "USERS_PER_BLOCK", 7)
    k = WAYS[way].get("k", 3)
    n, m = y.shape
    width = k + 2 * WAYS[way].get("bias", False)
    fixed = {"items": GIVEN[:m, :width], "users": GIVEN[:n, :width]}
    known = {f"fixed_{name}": value for name, value in fixed.items() if f"fixed {name}" in way}
    defaults = {"k": 3, "random_seed": 2, "stop_crit": "elbo", "stop_thr": 1e-300, "check_every": 3}
    how = defaults | {"maxiter": 60, "use_float": False, "verbose": False, "schedule": "accelerated"}
    callback = options.pop("callback", None)
    return HPF(**how | WAYS[way] | options).fit(sparse.csr_array(y), **known, callback=callback)


def far_ahead(monkeypatch: pytest.MonkeyPatch, backend_name: str) -> None:
    """Let every fourth point be nowhere near, the factors of users in another order than those of items."""
    kind = type(create(backend_name, np.dtype(np.float64)))
    original = kind.extrapolate

    def extrapolate(self: Any, factor: Any, earlier: Any, steps: Any, out: Any = None) -> Any:
        ahead = original(self, factor, earlier, steps, out)
        if float(steps[0]) % 4 != 3 or float(steps[0]) < 0 or len(factor.exp_log) == Y.shape[1]:
            return ahead
        return replace(ahead, exp_log=self.asarray(self.asnumpy(ahead.exp_log)[:, ::-1]))

    monkeypatch.setattr(kind, "extrapolate", extrapolate)


# -- iterations ------------------------------------------------------------------------------------


def test_dense_formulas(backend: Backend) -> None:
    """Iterations from the point ahead, by an implementation that writes φ out."""
    k, priors = SMALL.k, SMALL.priors
    blocks = SMALL.blocks(backend)
    model = iterate(backend, blocks, SMALL.model(backend, blocks), rule("joint"))
    start = SMALL.reference(backend.dtype, 1, "joint")[1]
    theta, beta, xi, eta = start.theta, start.beta, start.xi, start.eta
    logs = [theta.expected_log, beta.expected_log]
    for steps in range(12):
        model = with_momentum(backend, model)
        model = accelerated(backend, lambda one: iterate(backend, blocks, one, rule("joint")), model)
        now = [theta.expected_log, beta.expected_log]
        z = oracle.expected_z(
            SMALL.y, *(oracle.extrapolate(*pair, steps) for pair in zip(now, logs, strict=True))
        )
        logs = now
        theta = oracle.Gamma(priors.a + z.sum(axis=1), xi.mean[:, None] + beta.column_sums)
        beta = oracle.Gamma(priors.c + z.sum(axis=0), eta.mean[:, None] + theta.column_sums)
        xi = oracle.Gamma(xi.shape, priors.a_prime / priors.b_prime + theta.row_sums)
        eta = oracle.Gamma(eta.shape, priors.c_prime / priors.d_prime + beta.row_sums)
    assert theta.shape.shape == (len(SMALL.y), k)
    limit = 1e-3 if backend.dtype == np.float32 else 1e-11
    for side, want in ((model.users[0], theta), (model.items, beta)):
        assert relative_error(backend.asnumpy(backend.mean(side.factor)), want.mean) < limit


def test_an_iteration_leaves_the_last_model_whole(backend: Backend) -> None:
    """So that an interrupt loses nothing."""
    blocks = SMALL.blocks(backend)

    def update(one: Model) -> Model:
        return iterate(backend, blocks, one, rule("joint"))

    model = update(SMALL.model(backend, blocks))
    for _ in range(6):
        model = with_momentum(backend, model)
        factors = [side.factor for side in (*model.users, model.items)]
        before = [backend.asnumpy(one) for factor in factors for one in (*factor.matrices, factor.log_scale)]
        following = accelerated(backend, update, model)
        after = [backend.asnumpy(one) for factor in factors for one in (*factor.matrices, factor.log_scale)]
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)
        model = following


@pytest.mark.parametrize("way", WAYS)
def test_fits_repeat(way: str, backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit; and where the ELBO does not fall, whatever is checked on the way."""
    how = {"backend": backend_name, "maxiter": 25}
    one, other, often = (fit(way, monkeypatch, check_every=n, **how) for n in (25, 25, 1))
    for same in (other, often) if np.all(np.diff(often.history_.elbo) > 0) else (other,):
        assert np.array_equal(one.Theta, same.Theta)
        assert np.array_equal(one.Beta, same.Beta)


# -- the safeguard ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_elbo_never_falls(way: str, backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a bit."""
    for options in ({"check_every": 1, "maxiter": 150}, {"check_every": 7, "use_float": True}):
        elbo = fit(way, monkeypatch, backend=backend_name, **options).history_.elbo.to_numpy()
        assert len(elbo) > 5
        assert np.all(np.diff(elbo) >= 0)


def test_the_elbo_never_falls_in_small_fits(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any data, priors and temperatures."""

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        n, m = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 8))
        count = st.one_of(st.just(0), st.just(0), st.integers(1, 20), st.floats(0.01, 3.0), st.just(9999))
        y = np.array(data.draw(st.lists(count, min_size=n * m, max_size=n * m)), float).reshape(n, m)
        y[0, 0] += 1.0
        level = st.sampled_from([0.05, 0.3, 1.0, 3.0])
        names = ("a", "a_prime", "b_prime", "c", "c_prime", "d_prime", "w_shape", "w_rate")
        drawn: dict[str, Any] = {name: data.draw(level) for name in names}
        drawn |= {
            "neighbours": data.draw(st.integers(0, 3)),
            "temperature": data.draw(st.sampled_from([1.0, 1.25, 3.0])),
            "hierarchical": data.draw(st.booleans()),
            "use_float": data.draw(st.booleans()),
            "check_every": data.draw(st.sampled_from([1, 3, 11])),
        }
        model = fit("plain", monkeypatch, y, backend=backend_name, maxiter=40, **drawn)
        assert np.all(np.diff(model.history_.elbo) >= 0)

    check()


@pytest.mark.parametrize("way", WAYS)
def test_a_fall_is_taken_back(way: str, backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit goes on from the model that was kept, which climbs."""
    restored: list[Kept] = []
    original = Kept.restored
    monkeypatch.setattr(
        Kept, "restored", lambda self, *given: restored.append(self) or original(self, *given)
    )
    far_ahead(monkeypatch, backend_name)
    elbo = fit(way, monkeypatch, backend=backend_name, maxiter=100, check_every=5).history_.elbo.to_numpy()
    assert np.all(np.diff(elbo) >= 0)
    if way in ("plain", "flat", "blocks", "biases"):
        assert len(restored) >= 3
        assert (np.diff(elbo) == 0).sum() >= 2
        assert (np.diff(elbo) > 0).sum() >= 5


def test_a_fall_does_not_end_a_fit(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been gained since the last check then, which is no convergence."""
    far_ahead(monkeypatch, backend_name)
    model = fit("plain", monkeypatch, backend=backend_name, check_every=5, stop_thr=1e-9, maxiter=60)
    gains = np.diff(model.history_.elbo)
    assert (gains[:-1] == 0).any()
    assert model.niter == 60


@pytest.mark.parametrize("stop", range(1, 24))
def test_a_fit_that_ends_between_checks(
    stop: int, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Has an ELBO at least as high as at every check before, also where it had just fallen."""
    far_ahead(monkeypatch, backend_name)
    model = fit(
        "plain",
        monkeypatch,
        backend=backend_name,
        check_every=9,
        callback=lambda check: check.iteration == stop,
    )
    assert model.niter == stop
    assert np.all(np.diff(model.history_.elbo) >= 0)
    assert model.history_.iteration.tolist() == [*range(9, stop, 9), stop]


def test_ctrl_c(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a fit after the last whole iteration, with a model that has not fallen."""
    far_ahead(monkeypatch, backend_name)

    def interrupt(check: Any) -> None:
        if check.iteration == 16:
            raise KeyboardInterrupt

    models = []
    for callback in (interrupt, lambda check: check.iteration == 16):
        how = {"backend": backend_name, "check_every": 9, "callback": callback}
        try:
            models.append(fit("plain", monkeypatch, **how))
        except KeyboardInterrupt:
            pytest.fail("the interrupt is not passed on")
    first, second = models
    assert first.niter == second.niter == 16
    assert np.array_equal(first.Theta, second.Theta)


# -- what it is for --------------------------------------------------------------------------------


def test_it_arrives_sooner(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 60 iterations beyond where ordinary ones are after 100, on average over start values."""
    rng = np.random.default_rng(3)
    theta, beta = rng.gamma(0.3, 1.0, (150, 8)), rng.gamma(0.3, 1.0, (90, 8))
    y = rng.poisson(theta @ beta.T).astype(float)
    y[:, 0] += 1

    def elbo(seed: int, **options: Any) -> float:
        how = {"backend": backend_name, "k": 8, "check_every": 1000, "random_seed": seed}
        return float(fit("plain", monkeypatch, y, **how | options).history_.elbo.iloc[-1])

    sooner = np.mean([elbo(seed, maxiter=60) for seed in range(5)])
    later = np.mean([elbo(seed, maxiter=100, schedule="joint") for seed in range(5)])
    assert sooner > later


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"users_per_batch": 5}, "leave out users_per_batch"),
        ({"items_per_batch": 5}, "leave out items_per_batch"),
        ({"sum_exp_trick": True}, "sum_exp_trick=True computes φ"),
        ({"precision": "mixed", "use_float": True, "backend": "cuda"}, "precision='mixed' keeps too few"),
    ],
)
def test_what_it_cannot_be_combined_with(
    others: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message):
        fit("plain", monkeypatch, **others)


def test_a_fitted_model_is_updated_by_ordinary_batches(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """partial_fit does not accelerate."""
    models = [fit("plain", monkeypatch, backend=backend_name) for _ in range(2)]
    models[1].set_params(schedule="joint")
    users, items = Y[:5].nonzero()
    batch = np.stack([users, items, Y[:5][users, items]], axis=1)
    for model in models:
        model.partial_fit(batch, batch_type="users", step_size=0.5)
    assert np.array_equal(models[0].Theta, models[1].Theta)
