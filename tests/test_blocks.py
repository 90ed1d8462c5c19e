"""Counts in blocks of users: public fits have the same numbers, however many blocks there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity import relative_error
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.data.blocks import Pairs, in_memory
from hpf_gpu.fitting import training
from hpf_gpu.model.priors import Prior
from hpf_gpu.model.start import StartValues

N, M, K = 60, 25, 4


def _counts() -> sparse.csr_array:
    rng = np.random.default_rng(4)
    y = rng.poisson(rng.gamma(0.4, 2.0, (N, K)) @ rng.gamma(0.4, 2.0, (K, M)))
    y[7] = y[:, 3] = 0  # nobody, and nothing
    return sparse.csr_array(y.astype(float))


COUNTS = _counts()
HELD_OUT = sparse.csr_array(np.roll(COUNTS.toarray(), 1, axis=1) * (np.arange(N) % 3 == 0)[:, None])
GIVEN = np.random.default_rng(6).gamma(0.5, 1.0, (N, K))

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "joint": ({}, {}),
    "alternating": ({"schedule": "alternating"}, {}),
    "exact": ({"sum_exp_trick": True, "full_llk": True}, {}),
    "held out": ({"stop_crit": "val-llk", "stop_thr": 1e-9}, {"val_set": HELD_OUT}),
    "change of Theta": ({"stop_crit": "diff-norm", "stop_thr": 1e-9}, {}),
    "biases": ({"bias": True}, {}),
    "no hierarchy": ({"hierarchical": False, "counts": "binary"}, {}),
    "SVD": ({"init": "svd"}, {}),
    "items fixed": ({}, {"fixed_items": GIVEN[:M]}),
    "users fixed": ({}, {"fixed_users": GIVEN}),
    "batches of users": ({"users_per_batch": 13}, {}),
    "batches of both": ({"users_per_batch": 13, "items_per_batch": 9, "bias": True}, {}),
}


def fitted(way: str, backend: str, **more: Any) -> HPF:
    parameters, arguments = WAYS[way]
    options = {"stop_crit": "maxiter", "maxiter": 8, "check_every": 2, "random_seed": 3} | parameters
    model = HPF(K, **options, use_float=False, verbose=False, backend=backend)
    return model.fit(COUNTS, **arguments, **more)


def matrices(model: HPF) -> dict[str, Any]:
    names = ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "k_rte", "t_rte")
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def assert_close(one: HPF, other: HPF) -> None:
    # Sums over items in another order: a rounding error in each, magnified by at most ten iterations. The
    # largest measured is 2e-14.
    for name, matrix in matrices(one).items():
        assert relative_error(matrix, getattr(other, name)) < 1e-12, name
    history = [model.history_.drop(columns="seconds").to_numpy() for model in (one, other)]
    np.testing.assert_allclose(history[0], history[1], rtol=1e-11)
    assert one.niter == other.niter
    assert one.topN(0, n=5).tolist() == other.topN(0, n=5).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers(way: str, backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block, three and thirty."""
    whole = fitted(way, backend_name)
    for users in (20, 2):
        monkeypatch.setattr(training, "USERS_PER_BLOCK", users)
        assert_close(fitted(way, backend_name), whole)


@pytest.mark.parametrize(
    "way", ["change of Theta", "alternating", "biases", "batches of both", "items fixed"]
)
def test_checkpoints(way: str, backend_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A fit goes on from its checkpoint with the same bits; and in other blocks with the same numbers."""

    def stopping(check: Any) -> None:
        if check.iteration == 6:
            raise RuntimeError("the machine was switched off")

    monkeypatch.setattr(training, "USERS_PER_BLOCK", 17)
    undisturbed = fitted(way, backend_name)
    for users in (17, None, 5):
        monkeypatch.setattr(training, "USERS_PER_BLOCK", 17)
        path = tmp_path / f"state {users}"
        with pytest.raises(RuntimeError, match="switched off"):
            fitted(way, backend_name, checkpoint=path, checkpoint_every=5, callback=stopping)
        monkeypatch.setattr(training, "USERS_PER_BLOCK", users)
        resumed = fitted(way, backend_name, checkpoint=path, checkpoint_every=100)
        assert_close(resumed, undisturbed)
        if users == 17:
            for name, matrix in matrices(undisturbed).items():
                assert np.array_equal(matrix, getattr(resumed, name)), name


# -- what blocks are made of ---------------------------------------------------------------------


def test_held_out_counts_are_numbered_within_their_block(backend: Any) -> None:
    rows, columns = HELD_OUT.nonzero()
    pairs = Pairs(rows, columns, HELD_OUT.data)
    blocks = in_memory(backend, COUNTS.astype(backend.dtype), K, pairs, 7)
    assert blocks.shape == (N, M)
    assert [(rows.start, rows.stop) for rows in blocks.slices] == [(i, min(i + 7, N)) for i in range(0, N, 7)]
    found = np.zeros((N, M))
    for block in (*blocks, *blocks):  # they can be gone through again
        size = block.users.stop - block.users.start
        assert tuple(block.counts.shape) == (size, M)
        if block.validation is not None:
            assert block.validation.rows.max() < size
            found[block.users][block.validation.rows, block.validation.columns] += block.validation.values
    np.testing.assert_array_equal(found, 2 * HELD_OUT.toarray())
    assert sum(block.counts.nnz for block in blocks) == COUNTS.nnz


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [1, 3, 30])
def test_start_values_of_some_rows_are_those_of_the_whole(dtype: str, k: int) -> None:
    """In order and out of it, and not beyond the end."""
    users, items = Prior(0.3, 0.4, 1.0), Prior(0.2, 2.0, 1.0)
    whole = StartValues(50, 31, k, 5, np.dtype(dtype))
    parts = StartValues(50, 31, k, 5, np.dtype(dtype))
    for draw, prior in (("users", users), ("items", items)):
        shape, rate = getattr(whole, draw)(prior)
        assert shape.dtype == rate.dtype == dtype
        for rows in (slice(0, 7), slice(7, 8), slice(20, 31), slice(3, 9), slice(25, 10**6), slice(None)):
            part = getattr(parts, draw)(prior, rows)
            np.testing.assert_array_equal(part[0], shape[rows])
            np.testing.assert_array_equal(part[1], rate[rows])


def test_start_values_are_drawn_as_hpfrec_draws_them() -> None:
    """Rates of users and of items, then shapes of users and of items, row after row."""
    rng, values = np.random.Generator(np.random.MT19937(9)), StartValues(4, 3, 2, 9, np.dtype(np.float32))
    prior = Prior(0.3, 0.25, 1.0)
    user_rate, item_rate, user_shape, item_shape = (
        np.float32(0.25) + np.float32(0.01) * rng.random((n, 2), dtype=np.float32) for n in (4, 3, 4, 3)
    )
    for got, want in (
        (values.users(prior), (user_shape, user_rate)),
        (values.items(prior), (item_shape, item_rate)),
    ):
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


def test_draws_that_are_skipped_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpf_gpu.model.start._SKIPPED_AT_ONCE", 1000)
    prior = Prior(0.3, 0.3, 1.0)
    few = StartValues(10**4, 3, 2, 1, np.dtype(np.float64)).users(prior, slice(9_998, 10_000))
    all_of_them = StartValues(10**4, 3, 2, 1, np.dtype(np.float64)).users(prior)
    np.testing.assert_array_equal(few[0], all_of_them[0][-2:])
