"""What the contract asks of each operation, of any backend and case: for its tests here, and for those that
hold other instruction sets, block sizes and forms of a backend to it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import oracle
from scipy import sparse
from scipy.special import gammaln

from contract.cases import (
    Case,
    as_csr,
    both_sides,
    expected_log_normalizer_sum,
    expected_log_totals_with_neighbours,
    expected_neighbour_rates,
    expected_statistics,
    expected_with_neighbours,
    factor_of,
    factor_on_host,
    float32_exact,
    garbage,
    lists_of_items,
    make_factor,
    make_factors,
    make_neighbours,
    on_host,
    rate_on_host,
    rates_of,
)
from contract.tolerances import Tolerance, assert_alike, assert_close, assert_near, assert_same
from hpf_gpu.backends import protocol
from hpf_gpu.backends.protocol import Backend, Host


def gamma_update(backend: Backend, case: Case, tolerance: Tolerance, prior_shape: float) -> None:
    """Shape, exp E[ln θ] scaled by rows, and the sums of the mean, for the shape as it was stored.

    All the same with a buffer, which is used, and without one.
    """
    for side in both_sides(case):
        n, k = side.shape.shape
        rates, out = rates_of(backend, side), garbage(backend, n, k)
        factor, row_sums, column_sums = backend.gamma_update(
            backend.asarray(side.shape), prior_shape, rates, out
        )
        stored, *_, exp_log, log_scale = factor_on_host(backend, factor)
        assert stored.dtype == exp_log.dtype == backend.dtype
        assert log_scale.dtype == np.float64
        assert factor.rates is rates
        assert_close(stored, side.shape + prior_shape, tolerance.shape)

        # E[ln θ] of a small shape magnifies the rounding of prior + statistic, so it is judged
        # against the shape that was stored.
        want = oracle.Gamma(stored.astype(np.float64), side.gamma.rate)
        largest = want.expected_log.max(axis=1)
        # Of E[ln θ], 2e-15 may be wrong (special.h): of an entry and of the largest.
        limit = max(tolerance.exp_log, 4e-15 * float(np.abs(largest).max()))
        assert_close(exp_log, np.exp(want.expected_log - largest[:, None]), limit)
        assert ((exp_log >= 0) & (exp_log <= 1)).all()
        assert (exp_log.max(axis=1) == 1).all()
        assert log_scale.shape == (n,)
        scale_error = np.abs(log_scale - largest) / (1 + np.abs(largest))
        assert float(scale_error.max(initial=0)) <= tolerance.log_scale

        for sums, wanted in ((row_sums, want.row_sums), (column_sums, want.column_sums)):
            assert backend.asnumpy(sums).dtype == np.float64
            assert_close(backend.asnumpy(sums)[:, None], wanted[:, None], tolerance.sums)
        assert_same(backend.asnumpy(out), exp_log)
        alone, *sums_alone = backend.gamma_update(backend.asarray(side.shape), prior_shape, rates)
        with_out = (*factor_on_host(backend, factor), *on_host(backend, (row_sums, column_sums)))
        without = (*factor_on_host(backend, alone), *on_host(backend, tuple(sums_alone)))
        for one, other in zip(with_out, without, strict=True):
            assert_same(one, other)


def gamma_update_at_a_temperature(
    backend: Backend, case: Case, tolerance: Tolerance, temperature: float
) -> None:
    """All is as at T = 1, but for exp(E[ln θ]/T) and its scale."""
    for side in both_sides(case):
        rates, shape = rates_of(backend, side), float32_exact(side.shape)
        factor, *sums = backend.gamma_update(backend.asarray(shape), 0.0, rates, temperature=temperature)
        plain, *plain_sums = backend.gamma_update(backend.asarray(shape), 0.0, rates)
        assert factor.temperature == temperature
        assert plain.temperature == 1.0
        log_mean = side.gamma.expected_log / temperature
        largest = log_mean.max(axis=1)
        limit = max(tolerance.exp_log, 4e-15 * float(np.abs(largest).max()))
        assert_close(backend.asnumpy(factor.exp_log), np.exp(log_mean - largest[:, None]), limit)
        error = np.abs(backend.asnumpy(factor.log_scale) - largest) / (1 + np.abs(largest))
        assert float(error.max(initial=0)) <= tolerance.log_scale
        for one, other in zip(
            on_host(backend, (factor.shape, *sums)), on_host(backend, (plain.shape, *plain_sums)), strict=True
        ):
            assert one is not None
            assert other is not None
            assert_close(one.reshape(len(one), -1), other.reshape(len(one), -1), tolerance.sums)


def extrapolate(backend: Backend, case: Case, tolerance: Tolerance, steps: float) -> None:
    """E[ln θ] further on by a share of its change, and the rest as it was; with a buffer and without one."""
    for side in both_sides(case):
        n, k = side.shape.shape
        factor = make_factor(backend, side)
        shape = backend.asarray(side.shape[:, ::-1] + 0.1)
        then, *_ = backend.gamma_update(shape, 0.0, factor.rates)
        out = garbage(backend, n, k)
        earlier, done = (then.exp_log, then.log_scale), backend.asarray(np.array([float(steps)]))
        got = backend.extrapolate(factor, earlier, done, out)
        exp_log, log_scale = backend.asnumpy(got.exp_log), backend.asnumpy(got.log_scale)
        alone = backend.extrapolate(factor, earlier, done)
        assert_same(backend.asnumpy(alone.exp_log), exp_log)
        assert_same(backend.asnumpy(alone.log_scale), log_scale)
        assert exp_log.dtype == backend.dtype
        assert log_scale.dtype == np.float64
        assert (got.shape, got.rates, got.temperature) == (factor.shape, factor.rates, factor.temperature)
        if steps <= 0:
            assert_same(exp_log, backend.asnumpy(factor.exp_log))
            assert_same(log_scale, backend.asnumpy(factor.log_scale))
            continue
        logs, scales = zip(*(log_of_entries(backend, one) for one in (factor, then)), strict=True)
        finite = [np.nan_to_num(log, neginf=0.0) for log in logs]
        want, of_scale = oracle.extrapolate(*finite, steps), oracle.extrapolate(*scales, steps)
        want = np.where(np.isinf(logs[0]), -np.inf, np.where(np.isinf(logs[1]), logs[0], want))
        top = want.max(axis=1)
        # Of logarithms that cancel, the errors remain.
        size = 1 + np.abs(np.stack(finite)).max(axis=(0, 2))
        limit = tolerance.extrapolate * float(size.max(initial=1))
        assert_close(exp_log, np.exp(want - top[:, None]), limit)
        assert (exp_log.max(axis=1) <= 1 + limit).all()
        error = np.abs(log_scale - (of_scale[:, 0] + top))
        scale = size + np.abs(np.stack(scales)).max(axis=(0, 2))
        assert float((error / scale).max(initial=0)) <= tolerance.extrapolate
        assert_same(backend.asnumpy(out), exp_log)


def log_of_entries(backend: Backend, factor: protocol.Factor) -> tuple[Host, Host]:
    """The logarithms of exp_log (N, K), −∞ where they have underflowed, and of its scale (N, 1)."""
    exp_log = backend.asnumpy(factor.exp_log).astype(np.float64)
    normal = exp_log >= np.finfo(backend.dtype).tiny
    logs = np.log(exp_log, where=normal, out=np.full_like(exp_log, -np.inf))
    return logs, backend.asnumpy(factor.log_scale)[:, None]


def ascend(
    backend: Backend, case: Case, tolerance: Tolerance, *, exact: bool, temperature: float | None
) -> None:
    """Up to three iterations with a pinned column and without one, with ξ and without; with neighbours at a
    temperature.
    """
    more = None if temperature is None else make_neighbours(case.name)
    t, factors = temperature or 1.0, case.k
    users, items = (make_factor(backend, side, t) for side in (case.users, case.items))
    weights = None if more is None else make_factor(backend, more.weights, t)
    counts = backend.counts(case.csr(backend.dtype), case.k, None if more is None else more.sources)
    hyper_rate, columns = np.linspace(0.1, 3.0, len(case.y)), np.linspace(1.0, 9.0, factors)
    for pins, line in ((), (1.0, 0.25)), (((factors // 2, 0.75),), (1.0, 0.25)), ((), (0.0, 2.0)):
        states = oracle.ascend(
            case.y,
            *(case.users.gamma, case.items.gamma, hyper_rate),
            None if more is None else oracle.Weights(more.weights.gamma, more.sources, 0.0, 0.0, t),
            *(0.3, columns, 1.5, line, dict(pins)),
            iterations=3,
        )
        for iterations, most, threshold in ((1, 3, np.inf), (3, 3, 0.0)):
            start, given = backend.asarray(hyper_rate), backend.asarray(columns)
            ascent = protocol.Ascent(0.3, given, 1.5, line, pins, most, threshold, exact)
            got = backend.ascend(counts, users, items, start, ascent, weights)
            assert got is not None
            factor, rates, sums = got
            theta, xi = states[iterations]
            shape, *_, exp_log, log_scale = factor_on_host(backend, factor)
            assert factor.temperature == t
            assert shape.dtype == exp_log.dtype == backend.dtype
            assert_alike(shape, theta.shape, tolerance.ascend)
            assert_alike(rate_on_host(backend, factor.rates), theta.rate, tolerance.ascend)
            assert_alike(backend.asnumpy(backend.mean(factor)), theta.mean, tolerance.ascend)
            assert_alike(backend.asnumpy(rates), xi, tolerance.ascend)
            assert_alike(backend.asnumpy(sums), theta.column_sums, tolerance.ascend)
            again, *_ = backend.gamma_update(backend.asarray(shape), 0.0, factor.rates, temperature=t)
            assert_same(exp_log, backend.asnumpy(again.exp_log))
            assert_same(log_scale, backend.asnumpy(again.log_scale))


def allocate_with_neighbours(
    backend: Backend,
    case: Case,
    tolerance: Tolerance,
    side: protocol.SideName,
    *,
    exact: bool,
    temperature: float,
) -> None:
    """What each part of every count gets, and that none of it is lost."""
    more = make_neighbours(case.name)
    factors = tuple(
        make_factor(backend, part, temperature) for part in (case.users, case.items, more.weights)
    )
    counts = backend.counts(case.csr(backend.dtype), case.k, more.sources)
    got = on_host(backend, backend.allocate_with_neighbours(counts, *factors, side=side, exact=exact))
    wanted = expected_with_neighbours(case.name, temperature)
    for name, statistic in zip(("users", "items", "items"), got, strict=True):
        if side in (name, "both"):
            assert statistic is not None
            assert statistic.dtype == backend.dtype
        else:
            assert statistic is None
    of_users, of_items, of_weights = got
    if of_users is not None:
        # Beside all counts of the user, because the factors' part of them may be too small for its dtype.
        counted = case.y.sum(axis=1, keepdims=True)
        got_users, want_users = (np.concatenate([part, counted], axis=1) for part in (of_users, wanted[0]))
        assert_close(got_users, want_users, tolerance.allocate)
    if of_items is not None and of_weights is not None:
        # Side by side, because a part may be too small for its dtype beside the other one.
        both = np.concatenate([of_items, of_weights], axis=1)
        assert_close(both, np.concatenate(wanted[1:], axis=1), tolerance.allocate)
        totals = both.sum(axis=1, dtype=np.float64, keepdims=True)
        assert_close(totals, case.y.sum(axis=0)[:, None], tolerance.conservation)


def log_sums_with_neighbours(backend: Backend, case: Case, tolerance: Tolerance, temperature: float) -> None:
    """log_rate_sum and log_normalizer_sum over factors and neighbours."""
    more, (u, i) = make_neighbours(case.name), case.y.nonzero()
    sides = (case.users, case.items, more.weights)
    counts = backend.counts(case.csr(backend.dtype), case.k, more.sources)

    theta, beta, w = (float32_exact(side.gamma.mean) for side in sides)
    got = backend.log_rate_sum(counts, *map(backend.asarray, (theta, beta, w)))
    logs = np.log((theta @ beta.T + expected_neighbour_rates(case.name))[u, i])
    y = case.y[u, i]
    assert_near(got, float(y @ logs), tolerance.log_sums, float(y @ (1 + np.abs(logs))))

    total = expected_log_totals_with_neighbours(case.name, temperature)
    factors = tuple(make_factor(backend, side, temperature) for side in sides)
    want = temperature * float(y @ total)
    got = backend.log_normalizer_sum(counts, *factors)
    assert_near(got, want, tolerance.log_sums, float(y @ (1 + np.abs(total))) * temperature)


def neighbour_rates(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    """For any pairs in any order, those without a count among them."""
    more, rng = make_neighbours(case.name), np.random.default_rng(0)
    rows, columns = (rng.integers(0, n, 500) for n in case.y.shape)
    w, csr = float32_exact(more.weights.gamma.mean), case.csr(backend.dtype)
    got = backend.neighbour_rates((csr.indptr, csr.indices), more.sources, backend.asarray(w), rows, columns)
    want = expected_neighbour_rates(case.name)[rows, columns]
    assert isinstance(got, np.ndarray)
    assert got.dtype == backend.dtype
    assert_close(got[:, None], want[:, None], tolerance.predict)


def top_items_with_neighbours(backend: Backend, case: Case, tolerance: Tolerance, length: int) -> None:
    """The best sums of both terms, each that of its column, and none that is left out."""
    some = slice(0, 100)
    more, y = make_neighbours(case.name), case.y[some]
    theta, beta, w = (float32_exact(side.gamma.mean) for side in (case.users, case.items, more.weights))
    theta, m = theta[some], len(beta)
    rate, exclude = theta @ beta.T + expected_neighbour_rates(case.name)[some], lists_of_items(len(theta), m)
    target, place = np.nonzero(more.sources >= 0)
    by_source = sparse.csr_array(
        (w[target, place].astype(backend.dtype), (more.sources[target, place], target)), shape=(m, m)
    )
    by_source.sort_indices()
    had = sparse.csr_array(y)
    scores_of_items = protocol.ItemScores(
        (had.indptr, had.indices), by_source.indptr, by_source.indices, by_source.data
    )
    arrays = backend.asarray(theta), backend.asarray(beta)
    columns, scores = backend.top_items(*arrays, length, as_csr(exclude), scores_of_items)
    _, want = oracle.top_items(rate, length, exclude)
    assert columns.shape == scores.shape == want.shape
    found = columns >= 0
    assert_same(found, want > -np.inf)
    own = np.where(found, np.take_along_axis(rate, columns, axis=1), 0)
    for wanted in (own, np.where(found, want, 0)):
        assert_close(np.where(found, scores, 0)[..., None], wanted[..., None], tolerance.top_items)
    for u, items in enumerate(columns):
        assert len(set(items[found[u]])) == found[u].sum()
        assert not set(items[found[u]]) & set(exclude[u])


def choose_neighbours(backend: Backend, case: Case, n: int) -> None:
    """The n best by score, to rounding; ascending, −1 behind the last, and no pair never together."""
    scores = oracle.cooccurrence_scores(case.y)
    got = backend.choose_neighbours(case.csr(backend.dtype), n)
    assert isinstance(got, np.ndarray)
    assert (got.dtype, got.shape) == (np.int32, (case.y.shape[1], n))
    for row, score in zip(got, scores, strict=True):
        chosen = row[row >= 0]
        assert (row[len(chosen) :] == -1).all()
        assert (np.diff(chosen) > 0).all()
        want = np.sort(score[score > -np.inf])[::-1][:n]
        np.testing.assert_allclose(np.sort(score[chosen])[::-1], want, rtol=1e-9, atol=1e-9)


def mean(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    for side in both_sides(case):
        factor = make_factor(backend, side)
        mean, out = backend.mean(factor), backend.asarray(np.full_like(side.shape, 7.0))
        assert mean.dtype == backend.dtype
        assert backend.mean(factor, out) is out
        for one in (mean, out):
            assert_close(backend.asnumpy(one), side.gamma.mean, tolerance.mean)


def gamma_elbo(
    backend: Backend, case: Case, tolerance: Tolerance, shape: float, hyper_shape: float, hyper_mean: float
) -> None:
    for side in both_sides(case):
        n, k = side.shape.shape
        hyper = oracle.Gamma(np.full(n, hyper_shape + k * shape), np.linspace(0.1, 3.0, n))
        prior_rate = hyper_shape / hyper_mean
        terms = oracle.gamma_elbo_terms(side.gamma, hyper, shape, hyper_shape, prior_rate)
        factor, rate = make_factor(backend, side), backend.asarray(hyper.rate)
        got = backend.gamma_elbo(factor, rate, shape, hyper_shape, prior_rate)
        assert_near(got, sum(terms.values()), tolerance.gamma_elbo, oracle.magnitude(terms))


def distance(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    a = case.users.shape
    # Not all within a factor of two, where a difference of floats would be exact.
    b = float32_exact(a * np.linspace(0.01, 20.0, a.size).reshape(a.shape))
    want = float(np.sqrt(((a - b) ** 2).sum()))
    assert_near(backend.distance(backend.asarray(a), backend.asarray(b)), want, tolerance.distance, want)
    assert backend.distance(backend.asarray(a), backend.asarray(a)) == 0


#: What allocate can be asked for.
SIDES: tuple[protocol.SideName, ...] = ("both", "users", "items")


def allocate(backend: Backend, case: Case, tolerance: Tolerance, exact: bool) -> None:
    users, items = make_factors(backend, case)
    counts = backend.counts(case.csr(backend.dtype), case.k)
    for side in SIDES:
        got = backend.allocate(counts, users, items, side=side, exact=exact)
        wanted = expected_statistics(case.name)
        for name, statistic, want in zip(("users", "items"), on_host(backend, got), wanted, strict=True):
            if side not in (name, "both"):
                assert statistic is None
                continue
            assert statistic is not None
            assert statistic.dtype == backend.dtype
            assert_close(statistic, want, tolerance.allocate)


def log_rate_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    theta, beta = (float32_exact(side.gamma.mean) for side in both_sides(case))
    counts = backend.counts(case.csr(backend.dtype), case.k)
    got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
    u, i = case.y.nonzero()
    scale = float(np.sum(case.y[u, i] * (1 + np.abs(np.log((theta @ beta.T)[u, i])))))
    assert_near(got, oracle.log_rate_sum(case.y, theta, beta), tolerance.log_sums, scale)


def log_count_products(
    backend: Backend, case: Case, tolerance: Tolerance, *, with_neighbours: bool = False
) -> None:
    """Of both sides, with as many columns as the counts are laid out for, and with one.

    Products are of either sign, and cancel; errors are relative to the sums of their absolute values.
    """
    sources = make_neighbours(case.name).sources if with_neighbours else None
    counts, rng = backend.counts(case.csr(backend.dtype), case.k, sources), np.random.default_rng(case.k)
    sides: tuple[tuple[Literal["users", "items"], Host], ...] = (("users", case.y), ("items", case.y.T))
    for side, y in sides:
        scale = rng.uniform(0.1, 10.0, len(y))
        for k in (case.k, 1):
            x = float32_exact(rng.normal(size=(y.shape[1], k)))
            got = backend.log_count_products(counts, backend.asarray(x), backend.asarray(scale), side=side)
            host = backend.asnumpy(got)
            assert host.dtype == backend.dtype
            largest = oracle.log_count_products(y, np.abs(x), scale)
            error = np.abs(host - oracle.log_count_products(y, x, scale))
            assert float((error - tolerance.products * largest).max()) <= 0
            assert host.shape == largest.shape


def log_rate_sum_of_small_products(
    backend: Backend, dtype: np.dtype[Any], tolerance: Tolerance, k: int
) -> None:
    """Where products are tiny, subnormal in part, or zero, which counts as 2^-1022 / 2^500."""
    rng, (n, m) = np.random.default_rng(k), (7, 9)
    csr = sparse.csr_array(rng.integers(0, 5, (n, m)).astype(dtype))
    y, counts = csr.toarray().astype(np.float64), backend.counts(csr, k)
    powers = {"float32": (-8, -9, -17, -18, -19, -20), "float64": (-75, -76, -152, -153, -154, -155)}
    for power in powers[dtype.name]:
        theta, beta = (rng.gamma(0.5, size=(size, k)) * 10.0**power for size in (n, m))
        theta, beta = (x.astype(dtype).astype(np.float64) for x in (theta, beta))
        # The oracle's own products are normal: one factor is scaled by a power of two.
        up = 2.0**500 if dtype == np.float64 else 1.0
        want = oracle.log_rate_sum(y, theta * up, beta) - y.sum() * np.log(up)
        got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
        assert_near(got, want, tolerance.log_sums, abs(want))
    theta[:], least = 0, np.log(np.finfo(np.float64).tiny) - 500 * np.log(2)
    got = backend.log_rate_sum(counts, backend.asarray(theta), backend.asarray(beta))
    assert_near(got, y.sum() * least, tolerance.log_sums, abs(y.sum() * least))


def log_normalizer_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    users, items = make_factors(backend, case)
    got = backend.log_normalizer_sum(backend.counts(case.csr(backend.dtype), case.k), users, items)
    want = expected_log_normalizer_sum(case.name)
    assert_near(got, want, tolerance.log_sums, abs(want) + float(case.y.sum()))


def log_factorial_sum(backend: Backend, case: Case, tolerance: Tolerance) -> None:
    want = oracle.log_factorial_sum(case.y)
    got = backend.log_factorial_sum(backend.counts(case.csr(backend.dtype), case.k))
    assert_near(got, want, tolerance.gamma_elbo, np.abs(gammaln(case.y + 1)).sum() + 1)


def predict_pairs(backend: Backend, case: Case, tolerance: Tolerance, index: type) -> None:
    """Any pairs in any order, repeated ones included."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, n, 500).astype(index) for n in case.y.shape)
    theta, beta = (float32_exact(side.gamma.mean) for side in both_sides(case))
    got = backend.predict_pairs(backend.asarray(theta), backend.asarray(beta), rows, columns)
    want = np.einsum("zk,zk->z", theta[rows], beta[columns])
    assert isinstance(got, np.ndarray)
    assert got.dtype == backend.dtype
    assert_close(got[:, None], want[:, None], tolerance.predict)


def top_items(backend: Backend, case: Case, tolerance: Tolerance, length: int) -> None:
    """The best scores to rounding, each that of its column; no column twice, and none that is left out."""
    some = slice(0, 300)  # of "tall" and "wide": the oracle is slow
    theta, beta = float32_exact(case.users.gamma.mean[some]), float32_exact(case.items.gamma.mean[:3000])
    rate, exclude = theta @ beta.T, lists_of_items(len(theta), len(beta))
    arrays = backend.asarray(theta), backend.asarray(beta)
    few, bounds = slice(0, 5), backend.score_bounds(arrays[1])
    _check_lists(
        backend.top_items(arrays[0][few], arrays[1], length, as_csr(exclude[few]), None, bounds),
        backend, rate[few], exclude[few], tolerance, length,
    )  # fmt: skip
    _check_lists(
        backend.top_items(*arrays, length, as_csr(exclude)), backend, rate, exclude, tolerance, length
    )


def _check_lists(
    found: tuple[Host, Host],
    backend: Backend,
    rate: Host,
    exclude: list[list[int]],
    tolerance: Tolerance,
    length: int,
) -> None:
    columns, scores = found
    assert isinstance(columns, np.ndarray)
    assert isinstance(scores, np.ndarray)
    assert (columns.dtype, scores.dtype) == (np.int64, backend.dtype)
    _, want = oracle.top_items(rate, length, exclude)
    assert columns.shape == scores.shape == want.shape
    there = columns >= 0
    assert_same(there, want > -np.inf)
    assert_same(np.isneginf(scores), ~there)
    own = np.where(there, np.take_along_axis(rate, columns, axis=1), 0)
    for wanted in (own, np.where(there, want, 0)):
        assert_close(np.where(there, scores, 0)[..., None], wanted[..., None], tolerance.top_items)
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    for u, items in enumerate(columns):
        assert len(set(items[there[u]])) == there[u].sum()
        assert not set(items[there[u]]) & set(exclude[u])


def one_product_underflows(backend: Backend, tolerance: Tolerance, k: int, size: int) -> None:
    """Whichever nonzero of a row it is, that one goes through the log-sum-exp, and no other."""
    rng = np.random.default_rng(size)
    u, v = rng.uniform(0.1, 1.0, (1, k)), rng.uniform(0.1, 1.0, (size, k))
    y = rng.integers(1, 9, (1, size)).astype(np.float64)
    counts, users = backend.counts(sparse.csr_array(y.astype(backend.dtype)), k), factor_of(backend, u)
    expected_log = -0.57721566490153286  # ψ(1)
    for place in range(size):
        others = np.arange(size) != place
        items = factor_of(backend, v * others[:, None])
        phi = np.where(others[:, None], u * v / (v @ u.T), 1 / k)
        got = on_host(backend, backend.allocate(counts, users, items))
        for statistic, want in zip(got, (y @ phi, y.T * phi), strict=True):
            assert statistic is not None
            assert_close(statistic, want, tolerance.allocate)
        logs = np.where(others, np.log(v @ u[0]), 2 * expected_log + np.log(k))
        got_sum, want_sum = backend.log_normalizer_sum(counts, users, items), float(y[0] @ logs)
        assert_near(got_sum, want_sum, tolerance.log_sums, float(y[0] @ (1 + np.abs(logs))))
