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

from hpf_gpu.backends import create
from hpf_gpu.backends.protocol import BackendUnavailable, Full

SHAPES = np.concatenate(
    [np.geomspace(1e-30, 1e-4, 60), np.geomspace(1e-4, 1e18, 500), np.arange(1, 30) / 2, [9.999999, 10.0]]
)
RATES = np.geomspace(1e-12, 1e15, len(SHAPES))


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


def test_expected_log(openmp):
    rates = np.random.default_rng(0).permutation(RATES)
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
