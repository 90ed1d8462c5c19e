"""How far results may be from the dense formulas, and the assertions that say so."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from parity import relative_error

from hpf_gpu.backends.protocol import Host


@dataclass(frozen=True)
class Tolerance:
    """Largest error accepted, about five times the largest one measured, which stands beside it.

    Measured over numpy and openmp, the latter with 1, 2, 3 and 7 threads and for every x86-64 level.
    """

    shape: float  # shape = prior + statistic
    exp_log: float  # of exp E[ln θ], scaled
    log_scale: float  # absolute, per unit of 1 + |ln scale|
    extrapolate: float  # of exp E[ln θ] and absolute of its scale, per unit of 1 + |ln| of the smallest entry
    ascend: float  # relative Frobenius error after three iterations
    mean: float
    sums: float  # row and column sums of the mean
    allocate: float
    conservation: float  # Σ_k statistic against the counts
    products: float  # log_count_products, per sum of the absolute values of the terms
    log_sums: float  # log_rate_sum and log_normalizer_sum, per Σ y (1 + |ln|)
    gamma_elbo: float  # per Σ |terms|
    distance: float
    predict: float
    top_items: float  # scores
    parameters: float  # relative Frobenius error after 20 iterations
    objective: float  # ELBO and log-likelihoods during a fit, per Σ |terms|
    monotone: float  # fall of the ELBO in one iteration, per Σ |terms|


TOLERANCE = {
    "float32": Tolerance(
        shape=4e-7,  # 8.9e-8
        exp_log=3e-7,  # 6.0e-8
        log_scale=2.5e-9,  # 4.9e-10: openmp works in the precision of float, 2e-9 of 1 + 1/shape (special.h)
        extrapolate=2e-7,  # 3.3e-8
        ascend=1.2e-6,  # 2.2e-7
        mean=3e-7,  # 6.0e-8
        sums=1e-13,  # 1.4e-14
        allocate=2e-5,  # 2.8e-6, columns of 2,000 counts
        conservation=1e-5,  # 1.4e-6
        products=1.2e-6,  # 2.2e-7, columns of 2,000 counts
        log_sums=2e-7,  # 3.3e-8
        gamma_elbo=2e-14,  # 3.8e-15
        distance=4e-15,  # 6.6e-16
        predict=2e-6,  # 3.9e-7
        top_items=4e-6,  # 6.9e-7, K=200
        parameters=4e-5,  # 6.9e-6
        objective=5e-6,  # 8.5e-7
        monotone=1e-7,  # 0; 2.3e-8 in 150 examples of 60 iterations
    ),
    "float64": Tolerance(
        shape=1e-15,  # 0
        exp_log=8e-14,  # 1.8e-14
        log_scale=1e-14,  # 1.7e-15
        extrapolate=2e-15,  # 3.5e-16
        ascend=5e-15,  # 8.7e-16
        mean=1e-15,  # 0
        sums=1e-13,  # 1.3e-14
        allocate=6e-12,  # 1.2e-12, E[ln θ] of both sides near −750: each to 2e-15 of it (special.h)
        conservation=3e-13,  # 4.8e-14
        products=3.5e-15,  # 6.7e-16
        log_sums=2e-14,  # 3.4e-15
        gamma_elbo=3e-14,  # 6.0e-15, log_factorial_sum without AVX
        distance=4e-15,  # 6.1e-16
        predict=5e-15,  # 8.7e-16
        top_items=6e-15,  # 1.2e-15, K=200
        parameters=4e-13,  # 6.8e-14
        objective=6e-13,  # 1.1e-14; 1.3e-13 in 150 examples of 60 iterations
        monotone=5e-16,  # 0; 5.6e-17 in 150 examples of 60 iterations
    ),
}


#: cuda computes moments in float32 alone (kernels/cuda/moments.cuh): an entry and the largest of its row
#: take about ten roundings of 6e-8 each, where a quotient on a GPU counts as two or four.
_CUDA_FLOAT32 = replace(
    TOLERANCE["float32"],
    exp_log=1.5e-6,  # 4.7e-7 in the simulator, which divides exactly
    log_scale=1e-6,  # 2.2e-7
    extrapolate=4e-7,  # 7.9e-8
    sums=1e-6,  # 2.1e-7
)


def tolerance_of(backend: str, dtype: str) -> Tolerance:
    """What the contract grants a backend."""
    return _CUDA_FLOAT32 if (backend, dtype) == ("cuda", "float32") else TOLERANCE[dtype]


def assert_close(got: Host, want: Host, limit: float) -> None:
    """Elementwise relative error; what lies below a millionth of its row's largest is held against that."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    size = np.abs(want)
    scale = np.maximum(size, 1e-6 * size.max(axis=-1, keepdims=True, initial=0))
    error = np.abs(got.astype(np.float64) - want)
    worst = float(np.divide(error, scale, out=error.copy(), where=scale > 0).max(initial=0))
    assert worst <= limit, f"relative error {worst:.2e} > {limit:.0e}"


def assert_alike(got: Host, want: Host, limit: float) -> None:
    """Relative Frobenius error."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    error = relative_error(got, want)
    assert error <= limit, f"relative error {error:.2e} > {limit:.0e}"


def assert_near(got: float, want: float, limit: float, scale: float) -> None:
    """Error of one number in proportion to the size of the terms that it sums."""
    assert math.isfinite(got)
    assert abs(got - want) <= limit * scale, f"relative error {abs(got - want) / scale:.2e} > {limit:.0e}"


def assert_same(got: Host | None, want: Host | None) -> None:
    """The same bits."""
    if got is None or want is None:
        assert got is want
    else:
        np.testing.assert_array_equal(got, want)
