"""HPF on a cluster of Dask's: users on the workers, items everywhere.

The counts of each user stay with one worker, which updates the user.  What travels in an iteration are arrays
(M, K) of the items and vectors (K,).  The loop, its stopping rules and its history are those of every fit
(:mod:`hpf_gpu.model.inference`); what a worker computes is in :mod:`hpf_gpu.fitting.shards`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from scipy import sparse

from . import estimator
from .backends import create
from .data.blocks import Pairs, pairs_of
from .data.counts import held_out_pairs, training_data
from .data.frames import library_of
from .data.ids import Ids
from .data.parts import Part, PartIds, csr_of, joined_ids, pieces_of, read_part, shard_rows
from .data.seen import UserItems
from .data.triplets import read
from .fitting.progress import IterationsShown
from .fitting.shards import Forgotten, ShardedFit, Shards, ShardState
from .fitting.training import Trained, fitted_model, reporting, schedule_of
from .messages import warn_of_zeros
from .model.convergence import Check
from .model.inference import State, fit
from .model.posterior import Posterior
from .model.settings import Settings, check_folder, seed_or_fresh, whole_number

try:
    import dask
    import distributed
    from dask.delayed import Delayed
except ImportError as error:
    raise ImportError(
        f"hpf_gpu.dask needs Dask and its scheduler ({error}): pip install 'hpf_gpu[dask]'"
    ) from error

#: Counts in a shard, at most, unless the number of shards is given; and the least number of shards.
_COUNTS_PER_SHARD, _LEAST_SHARDS = 1 << 24, 4
#: Iterations between two copies of the state on other workers: those that are repeated if one is lost.
SNAPSHOT_EVERY = 10
#: How often one iteration is tried again: a worker that runs out of memory is lost again and again.
_TRIES = 5
#: Seconds between two looks at which workers are there, while one waits, and until none has come.
_LOOK, _PATIENCE = 0.5, 60.0

_T = TypeVar("_T")


class HPF(estimator.HPF):
    """Hierarchical Poisson factorization, fitted by the workers of a Dask cluster.

    The parameters are those of :class:`hpf_gpu.HPF`, and so are all methods but :meth:`fit`: a fitted model
    is an ordinary one, in the memory of this process.  Not for ``neighbours``, ``users_per_batch``,
    ``items_per_batch``, ``init='svd'`` and ``schedule='accelerated'``.

    ``backend`` is chosen on each worker; ``ncores=-1`` means as many threads as the worker has.
    """

    def fit(
        self,
        counts_df: Any,
        val_set: Any = None,
        *,
        callback: Callable[[Check], object] | None = None,
        client: distributed.Client | None = None,
        shards: int | None = None,
        **others: Any,
    ) -> HPF:
        """Fit the model to counts, on the workers of a cluster.

        Parameters
        ----------
        counts_df : dask DataFrame, Parquet path or paths, delayed frame or frames, or as for HPF.fit
            Of a dask DataFrame, of files and of delayed frames no row comes to this process; files must be
            where all workers find them.  Partitions are read once, and again if a worker is lost or a new one
            takes over users: they must be the same then.  Frames and matrices in the memory of this process
            are sent to the workers.  Ids are numbered in order of first appearance, partition after
            partition.
        val_set : the same forms as for HPF.fit, or dask DataFrame, optional
            Held-out counts, which are read in this process.
        callback : callable, optional
            As for :meth:`hpf_gpu.HPF.fit`; called in this process.
        client : distributed.Client, optional
            The cluster; by default the client that was created last.
        shards : int, optional
            Into how many parts users are divided, of nearly equal numbers of counts; by default a power of
            two, at least 4, with at most 16.8 million counts each.  Choose a multiple of the number of
            workers.  For the same number of shards results are the same bit by bit, however many workers
            there are and whatever becomes of them, if all have the same backend, kind of processor and number
            of threads.
        **others
            All other arguments of :meth:`hpf_gpu.HPF.fit` are refused.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`hpf_gpu.HPF.fit`; if there is no client; for parameters that a cluster cannot do.
        BackendUnavailable
            If the backend that was named cannot work on one of the workers.
        RuntimeError
            If all workers are lost, or are lost again and again.

        Notes
        -----
        A worker that is lost costs time: others take over its users, from the source of the counts and from
        copies of the state that are made every ten iterations, and repeat the iterations since.  A worker
        that joins takes over some users before the next iteration.

        With ``keep_data=True`` the items of each user come to this process at the end, 4 bytes for each
        count; with ``keep_all_objs=True`` the shapes of all users, as many bytes as Theta has.

        Examples
        --------
        >>> from dask.distributed import Client  # doctest: +SKIP
        >>> client = Client()  # doctest: +SKIP
        >>> from hpf_gpu.dask import HPF  # doctest: +SKIP
        >>> model = HPF(k=30).fit("plays.parquet")  # doctest: +SKIP
        >>> model.topN("ann", n=10)  # doctest: +SKIP
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of one argument, not {callback!r}")
        settings = self._settings()
        check_folder(settings.save_folder)
        _refuse(settings, others)
        if settings.stop_crit == "val-llk" and val_set is None:
            raise ValueError("stop_crit='val-llk' needs held-out counts: fit(counts_df, val_set=...)")
        wanted = None if shards is None else whole_number("shards", shards, 1)
        trained = _train(settings, _client(client), counts_df, val_set, wanted, callback)
        of_dask = dask.is_dask_collection(counts_df)
        self._take(trained, settings, None if of_dask else library_of(counts_df))
        return self


def _refuse(settings: Settings, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for settings, and for arguments of HPF.fit, that a cluster cannot do."""
    for name in arguments:
        if name not in inspect.signature(estimator.HPF.fit).parameters:
            raise TypeError(f"fit has no argument {name!r}")
        raise ValueError(
            f"{name}= is not for fits on a cluster: leave it out, or fit in one process with hpf_gpu.HPF"
        )
    for name, plain in (
        ("neighbours", 0),
        ("users_per_batch", None),
        ("items_per_batch", None),
        ("init", "hpfrec"),
    ):
        if getattr(settings, name) != plain:
            raise ValueError(
                f"{name}={getattr(settings, name)!r} is not for fits on a cluster: leave it out, or fit in "
                "one process with hpf_gpu.HPF"
            )
    if settings.schedule == "accelerated":
        raise ValueError("schedule='accelerated' is not for fits on a cluster: use 'joint' or 'alternating'")


def _client(given: Any) -> distributed.Client:
    """The client to use; ValueError if there is none."""
    if given is not None:
        if not isinstance(given, distributed.Client) or given.asynchronous:
            raise TypeError(f"client must be a synchronous dask.distributed.Client, not {given!r}")
        return given
    try:
        return distributed.default_client()
    except ValueError as error:
        raise ValueError(
            "there is no Dask client: create one, for this machine by "
            "client = dask.distributed.Client(), or pass client=..."
        ) from error


def _train(
    settings: Settings,
    client: distributed.Client,
    counts: Any,
    val_set: Any,
    shards: int | None,
    callback: Callable[[Check], object] | None,
) -> Trained:
    seed = seed_or_fresh(settings.random_seed)
    source = _source(settings, client, counts)
    rows = shard_rows(source.sizes, shards or _shard_count(int(source.sizes.sum())))
    validation = None if val_set is None else _held_out(settings, source.ids, val_set)
    plan = ShardedFit(settings, seed, source.ids[1].size, rows)
    cluster = _Cluster(client, plan, source, validation)
    try:
        with IterationsShown(settings.maxiter, enabled=settings.verbose) as progress:
            # The loop passes models on, and asks the objective about them: here both are the cluster's.
            result = fit(
                create("numpy", settings.dtype),
                State(cast(Any, cluster.start())),
                schedule_of(settings),
                cast(Any, cluster),
                cast(Any, cluster.advance),
                reporting(progress, callback),
            )
        last = cast(_Model, result.model)
        fitted = fitted_model(settings, result, ids=source.ids, seed=seed, **cluster.results(last))
        return Trained(fitted, result.ended_by, result.unmet)
    finally:
        cluster.close()


def _shard_count(counts: int) -> int:
    """The number of shards for so many counts."""
    return max(_LEAST_SHARDS, 1 << max(0, (counts - 1) // _COUNTS_PER_SHARD).bit_length())


def _held_out(settings: Settings, ids: tuple[Ids, Ids], val_set: Any) -> Pairs:
    data = val_set.compute() if dask.is_dask_collection(val_set) else val_set
    triplets = read(
        data, dtype=settings.dtype.type, name="val_set", taken=settings.counts, columns=settings.columns
    )
    return held_out_pairs(triplets, *ids, name="val_set")


# -- where the counts are ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _InMemory:
    """Counts in the memory of this process."""

    ids: tuple[Ids, Ids]
    sizes: Any  # (N,) counts of each user
    csr: sparse.csr_array  # (N, M)

    def send(self, cluster: _Cluster, homes: Mapping[int, str]) -> list[distributed.Future]:
        """Have workers take over shards, by number."""
        futures = []
        for number, home in homes.items():
            (csr,) = cluster.client.scatter([self.csr[cluster.plan.rows[number]]], workers=[home], hash=False)
            futures.append(cluster.call(home, "add", number, csr, cluster.held_out(number)))
        return futures


@dataclass(frozen=True)
class _InParts:
    """Counts that the workers read, part by part."""

    ids: tuple[Ids, Ids]
    sizes: Any  # (N,)
    parts: list[Delayed]  # of hpf_gpu.data.parts.Part
    places: list[tuple[Any, Any]]  # rows of the users and of the items of each part
    first: list[distributed.Future]  # the parts that have been read already, until they are sent

    def send(self, cluster: _Cluster, homes: Mapping[int, str]) -> list[distributed.Future]:
        """Have workers take over shards, by number."""
        client, plan = cluster.client, cluster.plan
        numbers = list(homes)
        rows = [plan.rows[number] for number in numbers]
        parts = client.compute(self.parts)
        self.first.clear()
        pieces = [
            client.submit(pieces_of, part, *client.scatter(list(places), hash=False), rows, pure=False)
            for part, places in zip(parts, self.places, strict=True)
        ]
        futures = []
        for place, number in enumerate(numbers):
            own = [client.submit(_entry, of_part, place, pure=False) for of_part in pieces]
            shape = (rows[place].stop - rows[place].start, plan.n_items)
            csr = client.submit(csr_of, own, shape, plan.settings.counts, workers=[homes[number]], pure=False)
            futures.append(cluster.call(homes[number], "add", number, csr, cluster.held_out(number)))
        return futures


def _ids(part: Part) -> PartIds:
    return part.ids


def _entry(values: Sequence[_T], place: int) -> _T:
    return values[place]


def _source(settings: Settings, client: distributed.Client, counts: Any) -> _InMemory | _InParts:
    """The counts, of which the ids have been read."""
    tables = _tables(settings, counts)
    if tables is None:
        data = training_data(
            counts,
            backend=create("numpy", settings.dtype),
            reindex=settings.reindex,
            columns=settings.columns,
            taken=settings.counts,
        )
        csr = data.host_csr
        return _InMemory((data.users, data.items), np.diff(csr.indptr), csr)
    reading = dask.delayed(read_part, pure=False)
    parts = [
        reading(
            table,
            dtype=settings.dtype.type,
            name="counts_df",
            reindex=settings.reindex,
            columns=settings.columns,
        )
        for table in tables
    ]
    first = client.compute(parts)
    found: list[PartIds] = client.gather([client.submit(_ids, part, pure=False) for part in first])
    if zeros := sum(ids.zeros for ids in found):
        warn_of_zeros(zeros, "dropped")
    total = sum(int(ids.sizes.sum()) for ids in found)
    if total == 0:
        raise ValueError("counts_df has no count above zero: there is nothing to fit")
    users, user_rows = joined_ids([ids.users for ids in found], total)
    items, item_rows = joined_ids([ids.items for ids in found], total)
    sizes = np.zeros(users.size, np.int64)
    for ids, rows in zip(found, user_rows, strict=True):
        sizes[rows] += ids.sizes
    return _InParts((users, items), sizes, parts, list(zip(user_rows, item_rows, strict=True)), first)


def _tables(settings: Settings, counts: Any) -> list[Any] | None:
    """Delayed frames, or None for counts in the memory of this process."""
    if _are_parquet(counts):
        from dask.dataframe import read_parquet

        counts = read_parquet(counts)
    if dask.is_dask_collection(counts) and hasattr(counts, "columns") and hasattr(counts, "to_delayed"):
        wanted = [settings.user, settings.item, *([] if settings.count is None else [settings.count])]
        missing = [name for name in wanted if name not in counts.columns]
        return list((counts if missing else counts[wanted]).to_delayed())
    if isinstance(counts, Delayed):
        return [counts]
    if isinstance(counts, (list, tuple)) and counts and all(isinstance(one, Delayed) for one in counts):
        return list(counts)
    if dask.is_dask_collection(counts):
        kind = type(counts).__name__
        raise TypeError(f"counts_df is a dask {kind}: pass a dask DataFrame or a list of delayed frames")
    return None


def _are_parquet(counts: Any) -> bool:
    """Whether these are the path, or the paths, of Parquet files or of folders of them."""
    paths = counts if isinstance(counts, (list, tuple)) else [counts]
    return bool(paths) and all(
        isinstance(path, (str, os.PathLike))
        and (os.fspath(path).endswith((".parquet", ".pq")) or os.path.isdir(path) or "*" in os.fspath(path))
        for path in paths
    )


# -- on the workers ------------------------------------------------------------------------------------

#: By worker, of which threads of one process may be several, and fit; with what lets in one task at a time.
_held: dict[tuple[str, str], tuple[threading.Lock, Shards]] = {}
_opening = threading.Lock()


def _on_worker(key: str, plan: ShardedFit, method: str, *args: Any) -> Any:
    """Call a method of the shards that this worker has of a fit."""
    worker = distributed.get_worker()
    place = str(worker.id), key
    with _opening:
        if place not in _held:
            _held[place] = threading.Lock(), Shards(plan, worker.state.nthreads)
    one_at_a_time, shards = _held[place]
    try:
        # Dask may repeat a task whose result was lost: it does then what it has done, but not beside another.
        with one_at_a_time, shards.backend.in_use():
            return getattr(shards, method)(*args)
    except Forgotten as error:
        raise Forgotten(worker.address) from error


def _forget(key: str, dask_worker: Any) -> None:
    _held.pop((str(dask_worker.id), key), None)


# -- from here -----------------------------------------------------------------------------------------


class _Lost(Exception):
    """Workers are lost, or know nothing of the fit any more."""


@dataclass(frozen=True)
class _Model:
    """The model after so many updates, which is on the workers."""

    updates: int

    def without_spares(self) -> _Model:
        """The same: the workers free what they do not need."""
        return self


@dataclass(frozen=True)
class _Snapshot:
    """The state after so many updates: items here, users with two of the workers, if there are two."""

    updates: int
    checked: int | None  # the updates after which the E[θ] was remembered that it has
    items: Posterior

    def leads_to(self, checked: int | None) -> bool:
        """Whether it has E[θ] of so many updates, or comes before them."""
        return self.checked == checked or (checked is not None and self.updates <= checked)


class _Cluster:
    """A fit on a cluster, in the place of an Objective: models are on the workers, and so are their figures.

    Whatever is asked about a model first brings the workers to it: each shard has a worker with its counts,
    and the users there have the state of that model.  After a loss, updates since the last copy are repeated.
    """

    def __init__(
        self,
        client: distributed.Client,
        plan: ShardedFit,
        source: _InMemory | _InParts,
        validation: Pairs | None,
    ) -> None:
        self.client, self.plan = client, plan
        self._source, self._validation = source, validation
        self._key = uuid.uuid4().hex
        self._homes: dict[int, str] = {}  # the worker of each shard
        self._updates: int | None = None  # that all users have had; None if some are lost
        self._items: dict[int, distributed.Future] = {}  # of ItemSource, by the number of updates
        self._checked: int | None = None  # updates after which E[θ] was remembered
        self._snapshots: dict[str, _Snapshot] = {}  # "last" and "best"

    def held_out(self, number: int) -> Pairs | None:
        """The held-out counts of a shard."""
        return None if self._validation is None else pairs_of(self._validation, self.plan.rows[number])

    def call(self, home: str, method: str, *args: Any) -> distributed.Future:
        """Call a method of the shards that a worker has."""
        name = f"hpf-{method.replace('_', '-')}-{uuid.uuid4().hex}"
        return self.client.submit(
            _on_worker, self._key, self.plan, method, *args, workers=[home], key=name, pure=False
        )

    def start(self) -> _Model:
        """The model before the first iteration."""
        return self._at(self.plan.first, lambda: _Model(self.plan.first))

    def advance(self, model: _Model, iteration: int) -> _Model:
        """One iteration."""
        following = _Model(model.updates + 1)
        self._at(model.updates, lambda: self._step(model.updates))
        if (iteration + 1) % SNAPSHOT_EVERY == 0:
            self._copy("last", following.updates)
        return following

    def close(self) -> None:
        """Free what the workers have."""
        self._items, self._snapshots = {}, {}
        with suppress(Exception):  # of workers that are lost just now
            self.client.run(_forget, self._key)

    # -- in the place of an Objective ----------------------------------------------------------------

    def check(
        self, model: _Model, iteration: int, thetas: Sequence[Any] = (), earlier: Sequence[Any] = ()
    ) -> Check:
        """As :meth:`hpf_gpu.model.likelihood.Objective.check`; E[θ] is named by its number of updates."""
        since = earlier[0] if earlier else None
        settings = self.plan.settings
        with_elbo = settings.compute_elbo or settings.stop_crit == "elbo"

        def figures() -> tuple[list[Check], float]:
            items = self._items[model.updates]
            checks = self._of_shards("checks", model.updates, items, since)
            return checks, self._elbo_of_items(model) if with_elbo else 0.0

        checks, elbo = self._at(model.updates, figures)
        if since is not None:
            self._checked = model.updates
        return joined(checks, iteration, elbo)

    def elbo(self, model: _Model) -> float:
        """The evidence lower bound."""

        def figures() -> float:
            parts = self._of_shards("elbo", model.updates, self._items[model.updates])
            return float(sum(parts)) + self._elbo_of_items(model)

        return self._at(model.updates, figures)

    def means(self, model: _Model) -> tuple[int]:
        """The name of E[θ], which is remembered if none is yet; a check that compares remembers the next."""
        if self._checked is None:
            self._at(model.updates, lambda: self._remember(model.updates))
        return (model.updates,)

    def snapshot(self, model: _Model) -> _Snapshot:
        """A copy of a model."""
        return self._copy("best", model.updates)

    def restored(self, snapshot: _Snapshot, later: _Model) -> _Model:
        """The model of a copy."""
        return _Model(snapshot.updates)

    def results(self, model: _Model) -> dict[str, Any]:
        """What a fitted model needs of a model, as arguments of fitted_model."""
        updates, settings = model.updates, self.plan.settings
        with_posteriors = settings.keep_all_objs or settings.save_folder is not None

        def collected() -> dict[str, Any]:
            numbers, items = sorted(self._homes), self._items[updates]
            home = self._homes[0]
            beta, name = self._gather([self.call(home, "beta", updates, items), self.call(home, "name")])
            theta = self._gather([self.call(self._homes[n], "theta", n, updates) for n in numbers])
            posteriors, seen = None, None
            if with_posteriors:
                states: list[ShardState] = self._gather(
                    [self.call(self._homes[n], "state", n, updates) for n in numbers]
                )
                (of_items,) = self._gather([self.call(home, "items", updates, items)])
                posteriors = Posterior.joined([state.users for state in states]), of_items
            if settings.keep_data:
                seen = _stacked(self._gather([self.call(self._homes[n], "seen", n) for n in numbers]))
            return {
                "theta": np.concatenate(theta),
                "beta": beta,
                "posteriors": posteriors,
                "seen": seen,
                "backend": name,
            }

        return self._at(updates, collected)

    # -- updates -------------------------------------------------------------------------------------

    def _step(self, updates: int) -> None:
        """Update the users, and add up what the update of the items needs."""
        items = self._items[updates]
        parts = [
            (home, self.call(home, "advance", numbers, updates, items)) for home, numbers in self._by_home()
        ]
        while len(parts) > 1:
            pairs = [parts[place : place + 2] for place in range(0, len(parts), 2)]
            parts = [
                (pair[0][0], self.call(pair[0][0], "merge", *(share for _, share in pair))) for pair in pairs
            ]
        ((_, share),) = parts
        self._wait([share])
        self._items = {updates: items, updates + 1: share}
        self._updates = updates + 1

    def _remember(self, updates: int) -> None:
        self._wait([self.call(home, "remember", numbers, updates) for home, numbers in self._by_home()])
        self._checked = updates

    def _copy(self, name: str, updates: int) -> _Snapshot:
        """Take a copy of the state, in the place of the one of this name."""
        snapshot = self._snapshots[name] = self._at(updates, lambda: self._copied(updates))
        needed = [one.updates for one in self._snapshots.values()]
        self._at(
            updates,
            lambda: self._wait([self.call(home, "keep_only", needed) for home, _ in self._by_home()]),
        )
        return snapshot

    def _copied(self, updates: int) -> _Snapshot:
        """A copy of the state: of the items here, of users with their worker and with the next one."""
        # Workers keep the copies themselves: of a result that two have, Dask frees one, and one that is lost
        # it computes again, from a state that has been overwritten.
        ring = [home for home, _ in self._by_home()]
        after = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
        kept = []
        for number, home in self._homes.items():
            state = self.call(home, "state", number, updates)
            kept += [self.call(one, "keep", number, updates, state) for one in {home, after[home]}]
        (items,) = self._gather([self.call(ring[0], "items", updates, self._items[updates])])
        self._wait(kept)
        # Without what it was computed from, which Dask would keep from the first iteration on.
        self._items[updates] = self._sent(items)
        return _Snapshot(updates, self._checked, items)

    def _copies(self) -> dict[int, dict[int, str]]:
        """By updates and shard, the worker that has a copy of the state of its users."""
        homes = [home for home, _ in self._by_home()]
        found: dict[int, dict[int, str]] = {}
        for home, kept in zip(
            homes, self._gather([self.call(home, "copies") for home in homes]), strict=True
        ):
            for updates, number in kept:
                found.setdefault(updates, {})[number] = home
        return found

    def _sent(self, items: Posterior) -> distributed.Future:
        """Items of this process with one worker, from which the others get them."""
        return self.client.scatter(items, workers=[self._homes[0]], hash=False)

    # -- workers that come and go --------------------------------------------------------------------

    def _at(self, updates: int, work: Callable[[], _T]) -> _T:
        """Do something when the workers have the model of so many updates; again if one is lost meanwhile."""
        for _ in range(_TRIES):
            try:
                self._bring(updates)
                return work()
            except (_Lost, OSError) as error:
                if not isinstance(error, _Lost) and not self._gone():
                    raise
                self._updates = None
        raise RuntimeError(
            f"workers were lost {_TRIES} times in iteration {max(0, updates - self.plan.first) + 1}: see "
            "their logs; if their memory is too small, take more workers, more shards or a smaller k"
        )

    def _bring(self, updates: int) -> None:
        """Give every shard a worker, and its users the state after so many updates."""
        workers = self._workers()
        homes = balanced(self._homes, workers, len(self.plan.rows))
        if homes != self._homes:
            self._move(homes, workers)
        if self._updates is not None and updates in (self._updates, self._updates - 1):
            return  # workers have the users before the last update, too
        self._updates = None
        copies = self._copies()
        usable = [
            one
            for one in self._snapshots.values()
            if one.updates <= updates
            and one.leads_to(self._checked)
            and copies.get(one.updates, {}).keys() == homes.keys()
        ]
        if usable:
            snapshot = max(usable, key=lambda one: one.updates)
            at, keepers = snapshot.updates, copies[snapshot.updates]
            states = {number: self.call(keepers[number], "copy", number, at) for number in homes}
            self._wait(
                [self.call(home, "restore", number, at, states[number]) for number, home in homes.items()]
            )
            self._items = {at: self._sent(snapshot.items)}
        else:
            starts = [self.call(home, "start", numbers) for home, numbers in self._by_home()]
            self._wait(starts)
            at, self._items = 0, {0: starts[0]}
        checked = self._checked
        for number in range(at, updates):
            if number == checked:
                self._remember(number)
            self._step(number)
        if updates == checked:
            self._remember(updates)
        self._updates = updates

    def _move(self, homes: dict[int, str], workers: Mapping[str, int]) -> None:
        """Let shards have other workers, with the state of their users unless it is lost."""
        moved = {number: home for number, home in homes.items() if self._homes.get(number) != home}
        left = {number: self._homes[number] for number in moved if self._homes.get(number) in workers}
        if len(left) < len(moved):
            self._updates = None
        updates, used, self._homes = self._updates, self._homes, homes
        try:
            states = {}
            if updates is not None:
                states = {number: self.call(home, "state", number, updates) for number, home in left.items()}
                # A worker that has none of the items before cannot update them.
                old = next(iter(left.values()))
                self._items[updates] = self.call(old, "items", updates, self._items[updates])
            self._wait(self._source.send(self, moved))
            self._wait(
                [
                    self.call(homes[number], "restore", number, updates, state)
                    for number, state in states.items()
                ]
            )
            self._wait([self.call(home, "drop", [number]) for number, home in left.items()])
        except BaseException:
            self._homes = {number: home for number, home in used.items() if homes[number] == home}
            self._updates = None
            raise

    def _workers(self) -> Mapping[str, int]:
        """Addresses and threads of the workers; waits for one if there is none."""
        workers: Mapping[str, int] = self.client.nthreads()
        if not workers:
            try:
                self.client.wait_for_workers(1, timeout=_PATIENCE)
            except TimeoutError as error:
                raise RuntimeError(f"the cluster has had no worker for {_PATIENCE:.0f} seconds") from error
            workers = self.client.nthreads()
        return workers

    def _by_home(self) -> list[tuple[str, list[int]]]:
        """The workers with their shards, in the order of the first of these."""
        found: dict[str, list[int]] = {}
        for number in sorted(self._homes):
            found.setdefault(self._homes[number], []).append(number)
        return list(found.items())

    # -- waiting -------------------------------------------------------------------------------------

    def _of_shards(self, method: str, *args: Any) -> list[Any]:
        """What a method returns for each shard, in their order."""
        by_home = self._by_home()
        lists = self._gather([self.call(home, method, numbers, *args) for home, numbers in by_home])
        found = {
            number: value
            for (_, numbers), values in zip(by_home, lists, strict=True)
            for number, value in zip(numbers, values, strict=True)
        }
        return [found[number] for number in sorted(found)]

    def _elbo_of_items(self, model: _Model) -> float:
        items = self._items[model.updates]
        (elbo,) = self._gather([self.call(self._homes[0], "elbo_of_items", 0, model.updates, items)])
        return float(elbo)

    def _wait(self, futures: Sequence[distributed.Future]) -> None:
        """Wait until all are done; _Lost if that cannot be because a worker is lost."""
        while futures:
            try:
                distributed.wait(list(futures), timeout=_LOOK)
                break
            except TimeoutError:
                self._look()
            except distributed.CancelledError as error:
                raise _Lost from error
        for future in futures:
            self._require(future)

    def _gather(self, futures: Sequence[distributed.Future]) -> list[Any]:
        """The results, brought here; _Lost if that cannot be because a worker is lost."""
        self._wait(futures)
        loop = self.client.loop.asyncio_loop
        arriving = asyncio.run_coroutine_threadsafe(
            self.client.gather(list(futures), asynchronous=True), loop
        )
        while True:
            try:
                # Copies, because arrays that were sent may begin at any byte, and cannot be changed.
                return deepcopy(list(arriving.result(timeout=_LOOK)))
            except TimeoutError:
                self._look(arriving.cancel)
            except (distributed.CancelledError, distributed.KilledWorker) as error:
                raise _Lost from error

    def _require(self, future: distributed.Future) -> None:
        """Raise what a task has raised; _Lost if the reason is that its worker is not what it was."""
        if future.status == "finished":
            return
        error = future.exception() if future.status == "error" else None
        if isinstance(error, Forgotten):
            address = error.args[0]
            self._homes = {number: home for number, home in self._homes.items() if home != address}
        if error is None or isinstance(error, (Forgotten, distributed.KilledWorker)):
            raise _Lost from error
        raise error

    def _look(self, clean_up: Callable[[], object] = lambda: None) -> None:
        """Raise _Lost if one of the workers that have shards is not there any more."""
        if self._gone():
            clean_up()
            raise _Lost

    def _gone(self) -> set[str]:
        """Workers that have shards and are not there any more."""
        return set(self._homes.values()) - set(self.client.nthreads())


def balanced(homes: Mapping[int, str], workers: Mapping[str, int], shards: int) -> dict[int, str]:
    """A worker for each shard, from those that there are with their threads, with as few moves as may be.

    None has more shards for each of its threads than another would have with one more.
    """
    kept = {number: home for number, home in homes.items() if home in workers}
    if not kept:  # neighbours together, whose shares are added up where they are
        places = [worker for worker, threads in sorted(workers.items()) for _ in range(threads)]
        return {number: places[number * len(places) // shards] for number in range(shards)}
    load = Counter(kept.values())

    def with_one_more(worker: str) -> tuple[float, str]:
        return (load[worker] + 1) / workers[worker], worker

    for number in range(shards):
        if number not in kept:
            kept[number] = min(workers, key=with_one_more)
            load[kept[number]] += 1
    while True:
        fullest = max(workers, key=lambda worker: (load[worker] / workers[worker], worker))
        emptiest = min(workers, key=with_one_more)
        if load[fullest] / workers[fullest] <= with_one_more(emptiest)[0]:
            return kept
        last = max(number for number, home in kept.items() if home == fullest)
        kept[last] = emptiest
        load[fullest] -= 1
        load[emptiest] += 1


def joined(checks: Sequence[Check], iteration: int, elbo: float) -> Check:
    """One check of the terms of all shards, and of the items in the ELBO."""
    held_out = [check.val_llk for check in checks if check.val_llk == check.val_llk]
    return Check(
        iteration,
        llk=sum(check.llk for check in checks),
        elbo=sum(check.elbo for check in checks) + elbo,
        val_llk=sum(held_out) if held_out else math.nan,
        diff_norm=math.hypot(*(check.diff_norm for check in checks)),
    )


def _stacked(parts: Sequence[UserItems]) -> UserItems:
    """The items of the users of all shards."""
    sizes = np.concatenate([np.diff(indptr) for indptr, _ in parts])
    indices = np.concatenate([indices for _, indices in parts])
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), indices
