"""kernels/common/special.h against 50-digit arithmetic, through the operations that call it.

Errors measured are the largest of every instruction set; those "at 20,000 more" are of that many further
arguments, drawn where these functions change most.  A limit leaves other compilers as much again and more.

With one factor, ``log_scale`` is E[ln θ] itself; with two, ``exp_log`` holds one exponential; the
ELBO of one entry is ln Γ and logarithms.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy import sparse

from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import BackendUnavailable, Factor, Full, RankOne

SHAPES = np.concatenate(
    [np.geomspace(1e-30, 1e-4, 60), np.geomspace(1e-4, 1e18, 500), np.arange(1, 30) / 2, [9.999999, 10.0]]
)
RATES = np.geomspace(1e-12, 1e15, len(SHAPES))

#: Where series take over from recurrences, and their last terms are largest.
BRANCH = np.concatenate([np.linspace(9, 12, 61), 10 * (1 + np.array([-1e-9, -3e-16, 3e-16, 1e-9]))])


@pytest.fixture(scope="module")
def openmp():
    try:
        return create("openmp", np.float64)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def gamma(backend, shape, rate):
    """Gamma posterior with the given shapes and rates, (n, K)."""
    return backend.gamma_update(backend.asarray(shape), 0.0, Full(backend.asarray(rate)))[0]


def exact(function, *columns):
    with mpmath.workdps(50):
        return np.array([float(function(*map(mpmath.mpf, row))) for row in zip(*columns, strict=True)])


@pytest.mark.parametrize(
    "rates", [np.ones(len(SHAPES)), np.random.default_rng(0).permutation(RATES)], ids=["one", "any"]
)
def test_expected_log(openmp, rates):
    got = gamma(openmp, SHAPES[:, None], rates[:, None]).log_scale
    expected = exact(lambda s, r: mpmath.digamma(s) - mpmath.log(r), SHAPES, rates)
    scale = 1 + np.abs(exact(mpmath.digamma, SHAPES)) + np.abs(np.log(rates))
    # ψ(x) near 1 takes 45 roundings of a sum of 2.9: 2e-15 where they meet at random, on a scale of 1.6.
    assert (np.abs(got - expected) / scale).max() < 3e-15  # 8.3e-16; 1.1e-15 at 20,000 more


def test_exponential(openmp):
    """exp of what the operation itself says the two expected logs are."""
    shapes = np.column_stack([np.full(len(SHAPES), 50.0), np.minimum(SHAPES, 49.0)])
    factor = gamma(openmp, shapes, np.ones_like(shapes))
    alone = gamma(openmp, shapes[:, 1:], np.ones((len(shapes), 1))).log_scale
    expected = exact(lambda low, top: mpmath.exp(low - top), alone, factor.log_scale)
    got = factor.exp_log[:, 1]
    normal = alone - factor.log_scale > -708
    assert (
        np.abs(got[normal] / expected[normal] - 1)
    ).max() < 3e-13  # 6.8e-14; 1.8e-13 at 20,000 more: an ulp of x = -700
    close = alone - factor.log_scale > -1
    assert (np.abs(got[close] / expected[close] - 1)).max() < 2e-15  # 3.4e-16; 4.5e-16
    assert (got[~normal] == 0).all()
    assert (~normal).any()


def test_log_gamma(openmp):
    """−ln q's part of the ELBO: (a − s)(ψ(s) − ln r) + ln Γ(s) − s ln r + s, at r = 1 and a = s.

    ln Γ(1) is the difference of two numbers near 17.5, each a sum of some up to 27: half an ulp of each
    rounding, of its argument and of both logarithms (an ulp) add up to 1.9e-14, on a scale of 1.9.
    """
    for s in SHAPES[(SHAPES > 1e-20) & (SHAPES < 1e15)]:
        factor = gamma(openmp, np.array([[s]]), np.ones((1, 1)))
        got = openmp.gamma_elbo(factor, np.ones(1), s, 1.0, 1.0)
        with mpmath.workdps(50):
            # a = s, a' = 1, hyper rate 1: E[ξ] = 1 + s, Σθ = s
            x = mpmath.mpf(s)
            expected = mpmath.loggamma(x) + x - mpmath.loggamma(x) + mpmath.loggamma(1 + x)
            expected += (1 + x) - (1 + x) * (x + 1)
        scale = 1 + abs(float(mpmath.loggamma(s))) + s * s + abs(float(mpmath.loggamma(1 + s)))
        assert abs(got - float(expected)) / scale < 1e-14, s  # 1.6e-15 (AVX2: 3.8e-15); 3.7e-15


# -- one number at a time ------------------------------------------------------------------------


def counts_of(backend, y):
    """One count, of one user and one item."""
    return backend.counts(sparse.csr_array(np.array([[y]])), 1)


def relative(got, want, least):
    return (np.abs(got - want) / np.maximum(least, np.abs(want))).max()


def test_logarithm(openmp):
    """ln x itself: one count whose rate is x."""
    edges = np.array([0.5, 0.5**0.5, 1.0, 2.0**0.5, 2.0])  # of the mantissa's range, and zero
    x = np.concatenate([edges * (1 + d) for d in (-1e-3, -1e-9, -3e-16, 0, 3e-16, 1e-9, 1e-3)])
    x = np.concatenate(
        [x, x * 2.0**400, x * 2.0**-400, np.geomspace(0.5, 2, 300), np.geomspace(1e-149, 1e300, 200)]
    )
    one, theta = counts_of(openmp, 1.0), openmp.asarray(np.ones((1, 1)))
    got = np.array([openmp.log_rate_sum(one, theta, openmp.asarray(np.array([[rate]]))) for rate in x])
    assert relative(got, exact(mpmath.log, x), 1e-300) < 4.5e-16  # 2.2e-16


@pytest.mark.parametrize("rates", ["one", "any"])
def test_expected_log_where_products_underflow(openmp, rates):
    """ψ(s) − ln r itself: one count whose product is zero, of an item with E[ln β] = 0."""
    shapes = np.concatenate([SHAPES, BRANCH])
    rate = np.ones(len(shapes)) if rates == "one" else np.geomspace(1e15, 1e-12, len(shapes))

    def without_product(shape, rate):
        shape, rate, zero, scale = (
            openmp.asarray(np.array(x)) for x in ([[shape]], [[rate]], [[0.0]], [0.0])
        )
        return Factor(shape, Full(rate), zero, scale)

    one, item = counts_of(openmp, 1.0), without_product(1.0, float(mpmath.exp(mpmath.digamma(1))))
    pairs = zip(shapes, rate, strict=True)
    got = np.array([openmp.log_normalizer_sum(one, without_product(*pair), item) for pair in pairs])
    expected = exact(lambda s, r: mpmath.digamma(s) - mpmath.log(r), shapes, rate)
    scale = np.maximum(1, np.maximum(np.abs(exact(mpmath.digamma, shapes)), np.abs(np.log(rate))))
    error = np.abs(got - expected) / scale
    assert error.max() < 2e-15  # 1.1e-15
    assert error[shapes >= 10].max() < 5e-16  # 2.0e-16: no recurrence


def test_log_gamma_alone(openmp):
    """ln y! of one count."""
    y = np.concatenate([BRANCH - 1, np.geomspace(1e-6, 1e3, 300), np.geomspace(1e3, 1e15, 50)])
    got = np.array([openmp.log_factorial_sum(counts_of(openmp, count)) for count in y])
    expected = exact(lambda count: mpmath.loggamma(count + 1), y)
    assert relative(got, expected, 1) < 1.5e-14  # 7.2e-15: see test_log_gamma
    series = y >= 9
    assert relative(got[series], expected[series], 1) < 1e-15  # 4.3e-16


@pytest.mark.parametrize("rates", ["one", "any"])
def test_moments_in_the_precision_of_float(rates):
    """Means and E[ln θ] of float shapes, with a shorter series: 2e-9 of max(1, 1/shape) (special.h)."""
    try:
        backend = create("openmp", np.float32)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    shapes = np.concatenate([SHAPES, BRANCH, np.linspace(0.4, 9, 200)]).astype(np.float32).astype(float)
    rate = np.ones(len(shapes)) if rates == "one" else np.geomspace(1e15, 1e-12, len(shapes))
    factor, row_sums, _ = backend.gamma_update(
        backend.asarray(shapes[:, None]), 0.0, RankOne(backend.asarray(rate), backend.asarray(np.zeros(1)))
    )
    expected = exact(lambda s, r: mpmath.digamma(s) - mpmath.log(r), shapes, rate)
    assert (np.abs(factor.log_scale - expected) / np.maximum(1, 1 / shapes)).max() < 1e-9  # 3.9e-10
    assert np.abs(row_sums / (shapes / rate) - 1).max() < 1e-15  # 2.2e-16
