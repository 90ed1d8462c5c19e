"""Start values from a decomposition of the counts: init="svd"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.blocks import in_memory
from hpf_gpu.model import loadings
from hpf_gpu.model.loadings import svd_loadings

GROUPS, SIZE = 4, 15  # of users, each with items of its own


def grouped(noise: float = 0.02, seed: int = 5) -> sparse.csr_array:
    """Users who nearly all have items of their own group, and some of others."""
    rng = np.random.default_rng(seed)
    own = np.kron(np.eye(GROUPS), np.ones((SIZE, 10))) > 0
    return sparse.csr_array(rng.poisson(np.where(own, 1.5, noise)).astype(float))


def drawn(n: int = 300, m: int = 200, k: int = 8) -> sparse.csr_array:
    """Counts drawn from the model."""
    rng = np.random.default_rng(2)
    rates = rng.gamma(0.1, 1.0, (n, k)) @ rng.gamma(0.1, 1.0, (k, m))
    return sparse.csr_array(rng.poisson(rates).astype(float))


def fitted(counts: Any = None, *, backend: str = "numpy", **parameters: Any) -> HPF:
    settings = {"k": GROUPS, "maxiter": 10, "stop_crit": "maxiter", "random_seed": 1, "init": "svd"}
    model = HPF(**(settings | parameters), backend=backend, verbose=False)
    return model.fit(grouped() if counts is None else counts)


def elbo(model: HPF) -> float:
    return float(model.history_["elbo"].iloc[-1])


def test_each_group_has_a_factor_of_its_own(backend: Backend) -> None:
    """Of users and of items the same, before any iteration."""
    blocks = in_memory(backend, grouped().astype(backend.dtype), GROUPS)
    start = svd_loadings(backend, blocks, GROUPS, seed=3)
    best = [side.argmax(axis=1).reshape(GROUPS, -1) for side in (*start.users, start.items)]
    for side in best:
        assert (side == side[:, :1]).mean() > 0.95
    groups = [np.median(side, axis=1).tolist() for side in best]
    assert groups[0] == groups[1]
    assert sorted(groups[0]) == list(range(GROUPS))


def test_the_mean_of_loadings(backend: Backend) -> None:
    """One, and the level that is added to all; what is added keeps every loading above zero."""
    blocks = in_memory(backend, drawn().astype(backend.dtype), 5, users_per_block=70)
    start = svd_loadings(backend, blocks, 5, seed=3)
    for side in (np.concatenate(start.users), start.items):
        assert side.dtype == backend.dtype
        assert side.mean() == pytest.approx(1 + loadings.LEVEL, rel=1e-5)
        assert (side[side.any(axis=1)] > 0).all()


def test_what_is_decomposed(backend: Backend) -> None:
    """Products with the logarithms of the counts, scaled by rows and by columns, over blocks of users."""
    logs = np.log1p(grouped().toarray())
    rows, columns = (
        np.sqrt(logs.sum(axis) + loadings.REGULARIZER * logs.sum() / logs.shape[1 - axis]) for axis in (1, 0)
    )
    scaled = logs / rows[:, None] / columns
    blocks = in_memory(backend, grouped().astype(backend.dtype), GROUPS, users_per_block=17)
    counts = loadings._ScaledCounts.of(backend, blocks)
    x = np.random.default_rng(1).normal(size=(len(columns), 3)).astype(backend.dtype)
    tolerance = 1e-5 if backend.dtype == np.float32 else 1e-13  # largest measured: 7e-7 and 2e-15
    np.testing.assert_allclose(np.concatenate(counts.times(x)), scaled @ x, rtol=0, atol=tolerance)
    np.testing.assert_allclose(counts.squared_times(x), scaled.T @ scaled @ x, rtol=0, atol=tolerance)


def test_a_higher_elbo_in_fewer_iterations(backend_name: str) -> None:
    counts = drawn()
    quick = fitted(counts, backend=backend_name, k=8, maxiter=10)
    assert elbo(quick) > elbo(fitted(counts, backend=backend_name, k=8, maxiter=50, init="hpfrec"))


@pytest.mark.parametrize("use_float", [True, False])
def test_seeds(backend_name: str, use_float: bool) -> None:
    """The same seed gives the same bits, another one another model."""
    one, again, other = (
        fitted(drawn(), backend=backend_name, use_float=use_float, random_seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.Theta, again.Theta)
    np.testing.assert_array_equal(one.Beta, again.Beta)
    assert (one.Theta != other.Theta).any()


@pytest.mark.parametrize("k", [1, 2, 7, 40])
@pytest.mark.parametrize(
    "counts",
    [[[3]], [[1, 0, 2]], [[1], [0], [2]], [[0, 0], [0, 5], [0, 0]], [[1, 1, 1], [1, 1, 1]]],
    ids=str,
)
def test_tiny_data(backend_name: str, counts: list[list[int]], k: int) -> None:
    """Of a rank below K, with users and items without counts."""
    model = fitted(sparse.csr_array(np.array(counts, float)), backend=backend_name, k=k)
    assert np.isfinite(model.Theta).all()
    assert np.isfinite(model.Beta).all()
    assert np.isfinite(elbo(model))


def test_counts_of_any_size(backend_name: str) -> None:
    """From 1e-6 to 1e8."""
    counts = drawn()
    counts.data = 10.0 ** np.random.default_rng(0).uniform(-6, 8, counts.nnz)
    assert np.isfinite(elbo(fitted(counts, backend=backend_name)))


@pytest.mark.parametrize(
    "parameters",
    [
        {"bias": True},
        {"hierarchical": False},
        {"binary": True},
        {"neighbours": 5},
        {"neighbours": 5, "bias": True},
        {"users_per_batch": 50, "maxiter": 4},
        {"users_per_batch": 50, "items_per_batch": 40, "maxiter": 4},
        {"schedule": "alternating"},
    ],
    ids=str,
)
def test_every_kind_of_model(backend_name: str, parameters: dict[str, Any]) -> None:
    """It starts with a higher ELBO than from hpfrec's start values, and goes on from there.

    Neighbours take counts at once where factors are still alike, so with them a first ELBO says nothing.
    """
    first, few, hpfrec = (
        elbo(fitted(drawn(), backend=backend_name, **(parameters | more)))
        for more in ({"maxiter": 1}, {"maxiter": 4}, {"maxiter": 1, "init": "hpfrec"})
    )
    assert few > first
    assert first > hpfrec or "neighbours" in parameters


@pytest.mark.parametrize("side", ["fixed_users", "fixed_items"])
def test_no_effect_with_fixed_factors(side: str) -> None:
    rows = GROUPS * (SIZE if side == "fixed_users" else 10)
    given = {side: np.random.default_rng(1).gamma(0.5, size=(rows, GROUPS))}
    one, other = (
        HPF(GROUPS, init=init, random_seed=1, maxiter=5, verbose=False) for init in ("svd", "hpfrec")
    )
    for model in (one, other):
        model.fit(grouped(), **given)
    np.testing.assert_array_equal(one.Theta, other.Theta)
    np.testing.assert_array_equal(one.Beta, other.Beta)


def test_partial_fit() -> None:
    """A first batch has not all the data; later ones go on from a fit."""
    batch = np.array([[0, 0, 1], [0, 7, 2], [99, 3, 1]])
    with pytest.raises(ValueError, match="init='svd' decomposes all the data"):
        HPF(GROUPS, init="svd").partial_fit(batch)
    model = fitted()
    model.partial_fit(batch[:2])
    assert model.niter == 11


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="init='nmf' is unknown; choose one of 'hpfrec', 'svd'"):
        HPF(init="nmf").fit(grouped())
    with pytest.raises(ValueError, match="init='svd' is for factors, which k=0 leaves out"):
        HPF(k=0, neighbours=5, init="svd")


def test_a_checkpoint_of_another_start_is_refused(tmp_path: Any) -> None:
    model = HPF(GROUPS, init="svd", random_seed=1, maxiter=5, verbose=False)
    model.fit(grouped(), checkpoint=tmp_path / "state", checkpoint_every=2)
    model.set_params(init="hpfrec")
    with pytest.raises(ValueError, match="a fit with init='svd', not 'hpfrec'"):
        model.fit(grouped(), checkpoint=tmp_path / "state", checkpoint_every=2)
