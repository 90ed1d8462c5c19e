"""Fits on clusters of processes: the numbers of a fit in one process, whatever becomes of the workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing import forkserver
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MISSING
from scipy import sparse
from small_data import planted

import hpf_gpu
from hpf_gpu import BackendUnavailable
from hpf_gpu.backends import create
from hpf_gpu.data.counts import training_data
from hpf_gpu.data.parts import csr_of, joined_ids, pieces_of, read_part, shard_rows
from hpf_gpu.data.triplets import Columns
from hpf_gpu.fitting.shards import Share, added_up

dask = pytest.importorskip("dask", reason="Dask is not installed: pip install 'hpf_gpu[dask]'")
distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'hpf_gpu[dask]'")

import dask.dataframe as dd  # noqa: E402

from hpf_gpu import dask as hpf_dask  # noqa: E402
from hpf_gpu.dask import HPF, balanced  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*leaked semaphore")

COUNTS = planted(90, 40).assign(UserId=lambda frame: "u" + frame.UserId.astype(str))
HELD_OUT = planted(90, 40, seed=6).assign(UserId=lambda frame: "u" + frame.UserId.astype(str))[::3]
MATRICES = ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "k_rte", "t_rte", "seen")


@pytest.fixture(scope="module", autouse=True)
def forked_workers() -> Any:
    """Workers that are forked from a process that has imported everything: a tenth of the processor time."""
    if sys.platform == "win32":
        yield
        return
    # The package that is installed, not the sources here, which are not compiled.
    os.environ["PYTHONSAFEPATH"] = "1"
    forkserver.set_forkserver_preload(["hpf_gpu.dask", "dask.dataframe", "distributed.nanny"])
    forkserver.ensure_running()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield
    del os.environ["PYTHONSAFEPATH"]


def cluster_of(workers: int) -> Any:
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL"
    )


@pytest.fixture(scope="module")
def two() -> Any:
    with cluster_of(2) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def four() -> Any:
    with cluster_of(4) as cluster, distributed.Client(cluster) as client:
        yield client


def parameters(**more: Any) -> dict[str, Any]:
    return {"k": 3, "maxiter": 8, "stop_crit": "maxiter", "random_seed": 1, "verbose": False} | more


def assert_close(model: Any, other: Any, limit: float = 1e-11) -> None:
    # Sums over users in another order: rounding of float64, magnified in the iterations. Measured: 6e-14.
    for name in (name for name in MATRICES if hasattr(other, name)):
        np.testing.assert_allclose(getattr(model, name), getattr(other, name), rtol=limit, err_msg=name)
    for name in ("user_mapping_", "item_mapping_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(other, name))
    one, two = (each.history_.drop(columns="seconds") for each in (model, other))
    np.testing.assert_allclose(one, two, rtol=limit)


def assert_equal(model: Any, other: Any) -> None:
    for name in MATRICES:
        np.testing.assert_array_equal(getattr(model, name), getattr(other, name), err_msg=name)
    one, two = (each.history_.drop(columns="seconds") for each in (model, other))
    pd.testing.assert_frame_equal(one, two)


# -- the same numbers ----------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "joint, full likelihood": {"full_llk": True, "compute_elbo": True},
    "alternating": {"schedule": "alternating", "hierarchical": False, "counts": "binary"},
    "biases": {"bias": True},
    "change of Theta": {"stop_crit": "diff-norm", "stop_thr": 1e-9, "check_every": 3},
    "ELBO": {"stop_crit": "elbo", "check_every": 2, "stop_thr": 1e-9},
    "best on held-out counts": {
        "stop_crit": "val-llk", "check_every": 1, "patience": 3, "maxiter": 30, "stop_thr": 1e-3,
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers(two: Any, way: str) -> None:
    """As in one process, with every rule and schedule."""
    options = parameters(use_float=False) | WAYS[way]
    model = HPF(**options).fit(dd.from_pandas(COUNTS, npartitions=3), HELD_OUT, client=two)
    one = hpf_gpu.HPF(**options).fit(COUNTS, HELD_OUT)
    assert model.niter == one.niter
    assert_close(model, one)


@pytest.mark.parametrize("name", ["numpy", "openmp"])
def test_with_a_backend_by_name(two: Any, name: str) -> None:
    if name in MISSING:
        pytest.skip(MISSING[name])
    options = parameters(use_float=False, maxiter=3, backend=name)
    model = HPF(**options).fit(COUNTS, client=two)
    assert model.backend_ == name
    assert_close(model, hpf_gpu.HPF(**options).fit(COUNTS))


def forms(folder: Any) -> dict[str, Any]:
    third = len(COUNTS) // 3
    parts = [COUNTS[:third], COUNTS[third:third], COUNTS[third : 2 * third], COUNTS[2 * third :]]
    paths = []
    for number, part in enumerate(part for part in parts if len(part)):
        paths.append(str(folder / f"{number}.parquet"))
        part.assign(More="x").to_parquet(paths[-1])
    return {
        "delayed": [dask.delayed(part) for part in parts],
        "files": paths,
        "folder": folder,
        "frame": COUNTS,
        "dask": dd.from_pandas(COUNTS.assign(More=1), npartitions=4, sort=False),
    }


def test_forms_of_counts(two: Any, tmp_path: Any) -> None:
    """Wherever the counts are; and what comes out is an ordinary model."""
    options = parameters(maxiter=3, use_float=False)
    one = hpf_gpu.HPF(**options).fit(COUNTS)
    for counts in forms(tmp_path).values():
        model = HPF(**options).fit(counts, shards=3)
        assert_close(model, one)
    model.save(tmp_path / "model")
    loaded = hpf_gpu.HPF.load(tmp_path / "model")
    user = COUNTS.UserId.iloc[0]
    np.testing.assert_array_equal(loaded.topN(user, 5), one.topN(user, 5))
    assert model.backend_ == one.backend_
    matrix = sparse.csr_array(([1.0, 2.0, 3.0], ([0, 1, 2], [0, 1, 3])), shape=(4, 5))
    assert_close(HPF(**options).fit(matrix), hpf_gpu.HPF(**options).fit(matrix))


def test_single_precision(two: Any) -> None:
    """Within the 1e-5 that is promised; measured: 6e-7."""
    model = HPF(**parameters()).fit(COUNTS)
    one = hpf_gpu.HPF(**parameters()).fit(COUNTS)
    for name in ("Theta", "Beta"):
        difference = np.linalg.norm(getattr(model, name) - getattr(one, name))
        assert difference < 1e-5 * np.linalg.norm(getattr(one, name)), name


# -- workers that come and go --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(two: Any) -> Any:
    options = parameters(maxiter=13, stop_crit="diff-norm", stop_thr=1e-12, check_every=4)
    return options, HPF(**options).fit(dd.from_pandas(COUNTS, npartitions=3), client=two, shards=6)


def disturbed(undisturbed: Any, client: Any, callback: Any) -> Any:
    counts = dd.from_pandas(COUNTS, npartitions=3)
    return HPF(**undisturbed[0]).fit(counts, client=client, shards=6, callback=callback)


def test_bits_do_not_depend_on_workers(undisturbed: Any, four: Any) -> None:
    assert_equal(disturbed(undisturbed, four, None), undisturbed[1])


@pytest.mark.parametrize("iteration", [2, 12], ids=["before a copy of the state", "after one"])
def test_a_worker_is_killed(
    undisturbed: Any, four: Any, iteration: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its users are taken over, with the same bits; the fit returns to its copy, or to its start."""
    four.wait_for_workers(4)
    killed = []
    called: list[str] = []
    call = hpf_dask._Cluster.call

    def recorded(self: Any, home: str, method: str, *args: Any) -> Any:
        if killed:
            called.append(method)
        return call(self, home, method, *args)

    monkeypatch.setattr(hpf_dask._Cluster, "call", recorded)

    def kill(check: Any) -> None:
        if check.iteration == iteration:
            four.amm.run_once()  # frees what several workers have, but for one: as every other second
            address, pid = next(iter(four.run(os.getpid).items()))
            os.kill(pid, signal.SIGKILL)
            killed.append(address)

    model = disturbed(undisturbed, four, kill)
    assert len(killed) == 1
    assert ("start" in called) == (iteration < 10)
    assert_equal(model, undisturbed[1])


def test_a_worker_is_slow(undisturbed: Any, two: Any) -> None:
    """The others wait for it."""
    address = next(iter(two.nthreads()))

    def delay(check: Any) -> None:
        if check.iteration == 5:
            naps.append(two.submit(time.sleep, 1.5, workers=[address], pure=False))

    naps: list[Any] = []
    assert_equal(disturbed(undisturbed, two, delay), undisturbed[1])
    assert naps[0].status == "finished"


def fits_held() -> int:
    return len(hpf_dask._held)


def test_a_worker_joins(undisturbed: Any) -> None:
    """It has some of the users soon after; and nobody has anything when the fit is over."""
    with cluster_of(1) as cluster, distributed.Client(cluster) as client:
        at_work = []

        def join(check: Any) -> None:
            if check.iteration == 3:
                cluster.scale(2)
                client.wait_for_workers(2)
            at_work.append(sum(client.run(fits_held).values()))

        assert_equal(disturbed(undisturbed, client, join), undisturbed[1])
        assert at_work == [1] * 3 + [2] * 10
        assert sum(client.run(fits_held).values()) == 0


def test_an_interrupt_keeps_what_is_done(two: Any) -> None:
    def interrupt(check: Any) -> None:
        if check.iteration == 4:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="iteration 4 is kept"):
        model = HPF(**parameters(use_float=False)).fit(COUNTS, callback=interrupt, client=two)
    assert_close(model, hpf_gpu.HPF(**parameters(use_float=False, maxiter=4)).fit(COUNTS))


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"neighbours": 3}, {"users_per_batch": 5}, {"items_per_batch": 5}, {"init": "svd"},
     {"schedule": "accelerated"}],
)  # fmt: skip
def test_what_a_cluster_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not for fits on a cluster"):
        HPF(**parameters(**options)).fit(COUNTS)


@pytest.mark.parametrize("name", ["checkpoint", "fixed_users", "fixed_items"])
def test_arguments_that_a_cluster_does_not_take(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}= is not for fits on a cluster"):
        HPF(**parameters()).fit(COUNTS, **{name: "here"})
    with pytest.raises(TypeError, match="no argument 'client_name'"):
        HPF(**parameters()).fit(COUNTS, client_name="here")


def test_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise ValueError("No clients found")

    monkeypatch.setattr(distributed, "default_client", none)
    with pytest.raises(ValueError, match=r"there is no Dask client.*Client\(\)"):
        HPF(**parameters()).fit(COUNTS)
    with pytest.raises(TypeError, match="client must be"):
        HPF(**parameters()).fit(COUNTS, client="tcp://here")


def test_errors_of_workers(two: Any) -> None:
    """They are raised here, as they are, and the last model stays."""
    model = HPF(**parameters(maxiter=1)).fit(COUNTS)
    theta = model.Theta
    bad = COUNTS.assign(Count=COUNTS.Count.where(COUNTS.index != COUNTS.index[7], -2))
    with pytest.raises(ValueError, match=r"count -2 in row .* cannot be used"):
        model.fit(dd.from_pandas(bad, npartitions=2))
    with pytest.raises(ValueError, match="counts_df has no column 'UserId'"):
        model.fit(dd.from_pandas(COUNTS.rename(columns={"UserId": "Who"}), npartitions=2))
    with pytest.raises(ValueError, match="no count above zero"):
        model.fit([dask.delayed(COUNTS[:0])])
    if "cuda" in MISSING:
        with pytest.raises(BackendUnavailable):
            HPF(**parameters(backend="cuda")).fit(COUNTS)
    assert model.Theta is theta


def test_zeros_are_dropped_with_one_warning(two: Any) -> None:
    zeros = COUNTS[:50].assign(Count=0, UserId="nobody")
    with pytest.warns(UserWarning, match="50 counts of zero"):
        model = HPF(**parameters(maxiter=1)).fit([dask.delayed(zeros), dask.delayed(COUNTS)])
    assert "nobody" not in model.user_mapping_


# -- parts, and sums over them, without a cluster ------------------------------------------------------


@pytest.mark.parametrize("reindex", [True, False])
@pytest.mark.parametrize("shards", [1, 3, 7])
def test_parts_are_the_whole(reindex: bool, shards: int) -> None:
    """The same ids, in the same order, and the same counts, with duplicates over several parts."""
    frame = planted(30, 20) if not reindex else pd.concat([COUNTS[:300], COUNTS[:40]])
    frame = frame.sample(frac=1, random_state=1)
    if not reindex:
        frame = frame.assign(UserId=frame.UserId - 100, ItemId=frame.ItemId - 500)
    whole = training_data(
        frame, backend=create("numpy", np.float64), reindex=reindex, columns=Columns(), taken="raw"
    )
    how = {"dtype": np.float64, "name": "counts_df", "reindex": reindex, "columns": Columns()}
    parts = [read_part(part, **how) for part in (frame[:100], frame[:0], frame[100:101], frame[101:])]
    users, user_rows = joined_ids([part.ids.users for part in parts], len(frame))
    items, item_rows = joined_ids([part.ids.items for part in parts], len(frame))
    for ids, wanted in ((users, whole.users), (items, whole.items)):
        np.testing.assert_array_equal(ids.index, wanted.index)
    rows = shard_rows(np.diff(whole.csr.indptr), shards)
    assert len(rows) == shards
    pieces = [
        pieces_of(part, *places, rows) for part, *places in zip(parts, user_rows, item_rows, strict=True)
    ]
    for number, own in enumerate(rows):
        csr = csr_of([piece[number] for piece in pieces], (own.stop - own.start, items.size), "raw")
        assert csr.has_canonical_format
        np.testing.assert_array_equal(csr.toarray(), whole.csr[own].toarray())


@pytest.mark.parametrize("sizes", [[5], [1, 1, 1], [100, 1, 1, 1, 1], [1, 1, 1, 1, 100], [0, 0, 3, 3, 3, 3]])
@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_are_ranges_of_all_rows(sizes: list[int], shards: int) -> None:
    rows = shard_rows(np.array(sizes), shards)
    assert len(rows) == min(shards, len(sizes))
    assert [row for one in rows for row in range(one.start, one.stop)] == list(range(len(sizes)))
    assert all(one.start < one.stop for one in rows)


def test_sums_do_not_depend_on_who_has_what() -> None:
    rng = np.random.default_rng(3)
    shares = [(rng.gamma(1.0, 1.0, (6, 2)).astype(np.float32), rng.gamma(1.0, 1.0, 2)) for _ in range(7)]
    found = []
    for owners in ([0] * 7, [0, 0, 1, 1, 2, 2, 2], [2, 0, 1, 0, 2, 1, 1]):
        parts: list[Any] = []
        for owner in set(owners):
            own = {(0, n): Share(s[0].copy(), s[1]) for n, s in enumerate(shares) if owners[n] == owner}
            parts.append(added_up(own, 7))
        merged = added_up({node: share for part in parts for node, share in part.items()}, 7)
        assert list(merged) == [(3, 0)]
        found.append(merged[3, 0])
    for one in found[1:]:
        np.testing.assert_array_equal(one.statistic, found[0].statistic)
        np.testing.assert_array_equal(one.user_sums, found[0].user_sums)
    np.testing.assert_allclose(found[0].statistic, sum(share[0] for share in shares), rtol=1e-5)


def test_balance() -> None:
    """Neighbours together at first; then as few moves as may be, and nobody idle."""
    first = balanced({}, {"a": 1, "b": 1}, 5)
    assert [first[n] for n in range(5)] == ["a", "a", "a", "b", "b"]
    after_loss = balanced(first, {"b": 1, "c": 1}, 5)
    assert {n: after_loss[n] for n in (3, 4)} == {3: "b", 4: "b"}
    assert sorted(after_loss.values()) in (["b"] * 2 + ["c"] * 3, ["b"] * 3 + ["c"] * 2)
    joined = balanced(first, {"a": 1, "b": 1, "c": 1}, 5)
    assert sum(joined[n] != first[n] for n in range(5)) == 1
    assert balanced(first, {"a": 1, "b": 1}, 5) == first
    assert sorted(balanced({}, {"a": 3, "b": 1}, 4).values()) == ["a", "a", "a", "b"]
