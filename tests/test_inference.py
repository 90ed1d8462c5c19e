"""Iterations and whole fits of every backend against dense formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from contract.cases import both_sides, float32_exact, make_case, rate_on_host
from contract.tolerances import Tolerance, assert_close, assert_near
from hypothesis import given, settings
from problems import SCHEDULES, SMALL, Problem, ScheduleName, problems, rule, run_fit, small_reference

from hpf_gpu.backends.protocol import Backend, Host
from hpf_gpu.data.blocks import Pairs
from hpf_gpu.model.inference import State, fit, iterate
from hpf_gpu.model.likelihood import pair_llk
from hpf_gpu.model.sides import Model


def parameters_of(backend: Backend, model: Model) -> dict[str, Host]:
    """Every variational parameter of a model with one block."""
    found = {}
    for name, side in (("users", model.users[0]), ("items", model.items)):
        found[f"{name}: shape"] = backend.asnumpy(side.factor.shape)
        found[f"{name}: rate"] = rate_on_host(backend, side.factor.rates)
        found[f"{name}: mean"] = backend.asnumpy(backend.mean(side.factor))
        found[f"{name}: column sums"] = backend.asnumpy(side.column_sums)
        found[f"{name}: hyper rate"] = backend.asnumpy(side.hyper_rate)
    return found


def expected_parameters(state: oracle.State) -> dict[str, Host]:
    found = {}
    for name, x, hyper in (("users", state.theta, state.xi), ("items", state.beta, state.eta)):
        found[f"{name}: shape"] = x.shape
        found[f"{name}: rate"] = x.rate
        found[f"{name}: mean"] = x.mean
        found[f"{name}: column sums"] = x.column_sums
        found[f"{name}: hyper rate"] = hyper.rate
    return found


def assert_parameters(backend: Backend, model: Model, state: oracle.State, limit: float) -> None:
    got, want = parameters_of(backend, model), expected_parameters(state)
    for name, wanted in want.items():
        assert got[name].shape == wanted.shape, name
        error = float(np.linalg.norm(got[name] - wanted) / np.linalg.norm(wanted))
        assert error <= limit, f"{name}: relative Frobenius error {error:.2e} > {limit:.0e}"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_iterations(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, schedule: ScheduleName, exact: bool
) -> None:
    """Every parameter after each of 20 iterations from hpfrec's start values."""
    start, *states = small_reference(dtype.name, schedule)
    blocks = SMALL.blocks(backend)
    model = SMALL.model(backend, blocks)
    assert_parameters(backend, model, start, tolerance.mean)
    for state in states:
        model = iterate(backend, blocks, model, rule(schedule, exact=exact))
        assert_parameters(backend, model, state, tolerance.parameters)


@pytest.mark.parametrize("full_llk", [False, True], ids=["", "full"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fit(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, schedule: ScheduleName, full_llk: bool
) -> None:
    """The last model, and the ELBO and both log-likelihoods on the way to it."""
    states = small_reference(dtype.name, schedule)
    fitted = run_fit(backend, schedule, full_llk=full_llk)
    assert fitted.iterations == 20
    assert_parameters(backend, fitted.model, states[-1], tolerance.parameters)
    held_out = SMALL.validation()
    pairs = (held_out.rows, held_out.columns, held_out.values)
    for check, state in zip(fitted.history, states[1:], strict=True):
        theta, beta, scale = state.theta.mean, state.beta.mean, state.elbo_magnitude
        llk = oracle.log_likelihood(SMALL.y, theta, beta, full=full_llk)
        val_llk = oracle.pair_log_likelihood(theta, beta, *pairs, full=full_llk)
        assert_near(check.elbo, state.elbo, tolerance.objective, scale)
        assert_near(check.llk, llk, tolerance.objective, scale)
        assert_near(check.val_llk, val_llk, tolerance.objective, scale)


def test_a_fit_keeps_pace_before_it_reports(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each iteration once, so that what is reported and timed has been done, but for one iteration."""
    calls, blocks, how = [], SMALL.blocks(backend), rule("joint")
    monkeypatch.setattr(backend, "keep_pace", lambda: calls.append("pace"))

    def advance(model: Model, iteration: int) -> Model:
        calls.append("iterate")
        return iterate(backend, blocks, model, how)

    objective = SMALL.objective(backend, blocks, full_llk=False)
    state = State(SMALL.model(backend, blocks))
    fit(backend, state, how, objective, advance, lambda check: calls.append("report"))
    assert calls == ["iterate", "pace", "report"] * 20


@pytest.mark.parametrize("full_llk", [False, True], ids=["", "full"])
def test_pair_llk(backend: Backend, tolerance: Tolerance, full_llk: bool) -> None:
    case, held_out = make_case("K=30"), SMALL.validation()
    theta, beta = (float32_exact(side.gamma.mean) for side in both_sides(case))
    rows, columns = held_out.rows % len(theta), held_out.columns % len(beta)
    want = oracle.pair_log_likelihood(theta, beta, rows, columns, held_out.values, full=full_llk)
    pairs = Pairs(rows, columns, held_out.values)
    got_rates = backend.predict_pairs(backend.asarray(theta), backend.asarray(beta), rows, columns)
    got = pair_llk(got_rates, pairs, full_llk=full_llk)
    rates = np.einsum("zk,zk->z", theta[rows], beta[columns])
    scale = float(np.sum(held_out.values * (1 + np.abs(np.log(rates))) + rates))
    assert_near(got, want, tolerance.predict, scale)


@pytest.mark.parametrize("users_per_block", [1, 9, 23])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_are_one(
    backend: Backend, tolerance: Tolerance, schedule: ScheduleName, users_per_block: int
) -> None:
    """Users handed out in blocks, down to single users: the same model, spare buffers and all."""
    one_block, three = SMALL.blocks(backend), SMALL.blocks(backend, users_per_block)
    assert len(three.slices) == -(-24 // users_per_block)
    whole, split = SMALL.model(backend, one_block), SMALL.model(backend, three)
    objectives = [SMALL.objective(backend, blocks, full_llk=False) for blocks in (three, one_block)]
    for iteration in range(1, 4):
        whole = iterate(backend, one_block, whole, rule(schedule))
        split = iterate(backend, three, split, rule(schedule))
        for name in ("shape", "exp_log"):
            pieces = [backend.asnumpy(getattr(users.factor, name)) for users in split.users]
            one = backend.asnumpy(getattr(whole.users[0].factor, name))
            assert_close(np.concatenate(pieces), one.astype(np.float64), tolerance.parameters)
            got, want = (backend.asnumpy(getattr(model.items.factor, name)) for model in (split, whole))
            assert_close(got, want.astype(np.float64), tolerance.parameters)
        got_check, want_check = (
            objective.check(model, iteration)
            for objective, model in zip(objectives, (split, whole), strict=True)
        )
        for figure in ("elbo", "llk", "val_llk"):
            want_figure = getattr(want_check, figure)
            assert_near(getattr(got_check, figure), want_figure, tolerance.objective, abs(want_figure))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_iteration_leaves_the_last_model_whole(backend: Backend, schedule: ScheduleName) -> None:
    """Whoever is interrupted, or looks back, finds the finished model and its φ unchanged."""
    blocks = SMALL.blocks(backend, 10)
    objective, model = SMALL.objective(backend, blocks, full_llk=False), SMALL.model(backend, blocks)
    for _ in range(3):
        before = objective.elbo(model)
        following = iterate(backend, blocks, model, rule(schedule))
        assert objective.elbo(model) == before
        model = following


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_elbo_never_falls(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, schedule: ScheduleName
) -> None:
    """Coordinate ascent ascends; and each ELBO is that of the oracle."""

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(problems())
    def check(problem: Problem) -> None:
        states = problem.reference(dtype, 12, schedule)
        blocks = problem.blocks(backend)
        model, objective = problem.model(backend, blocks), problem.objective(backend, blocks, full_llk=False)
        elbo = objective.elbo(model)
        for i, state in enumerate(states):
            if i > 0:
                model = iterate(backend, blocks, model, rule(schedule))
                before, elbo = elbo, objective.elbo(model)
                assert before - elbo <= tolerance.monotone * state.elbo_magnitude
            assert_near(elbo, state.elbo, tolerance.objective, state.elbo_magnitude)

    check()
