"""Shards of users: what each of several processes that carry out one fit together has and computes.

A shard is a range of users with all their counts, and stays in one process.  In each iteration this process
updates its users, and hands back what they add to the update of the items.  These shares are added up in a
fixed tree over the shards, and every process updates the items with the sum.  So all have the same items, and
the result does not depend on which process has which shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from scipy import sparse

from hpf_gpu.backends.protocol import Array, Backend, Host
from hpf_gpu.data.blocks import Block, BlocksInMemory, Pairs
from hpf_gpu.data.seen import UserItems
from hpf_gpu.model.biases import WARM_UP, with_share
from hpf_gpu.model.convergence import Check
from hpf_gpu.model.inference import update_block
from hpf_gpu.model.likelihood import Objective
from hpf_gpu.model.posterior import Posterior
from hpf_gpu.model.settings import Settings
from hpf_gpu.model.sides import Model, Side, Statistic, posterior_of, side_from_posterior, update_side

from .training import schedule_of, start_sides, working_backend

#: A node of the tree over the shards: its level, from zero, and its number there.  It has two nodes below.
Node: TypeAlias = tuple[int, int]


class Forgotten(RuntimeError):
    """A process does not have the shards that it is asked about: it is not the one that had them."""


@dataclass(frozen=True)
class ShardedFit:
    """What all processes know of a fit."""

    settings: Settings
    seed: int
    n_items: int
    rows: tuple[slice, ...]  # users of each shard

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""
        return self.rows[-1].stop, self.n_items

    @property
    def first(self) -> int:
        """The number of updates before the first iteration: the warm-up of biases, and their release."""
        return 0 if self.settings.bias_columns is None else WARM_UP + 1


@dataclass(frozen=True)
class Share:
    """What users add to the update of the items."""

    statistic: Array | None  # (M, K) Σ yφ
    user_sums: Array  # (K,) Σ_u E[θ_uk]

    def plus(self, other: Share) -> Share:
        """The sum of two, in the memory of the first."""
        if self.statistic is not None and other.statistic is not None:
            Statistic(self.statistic).add(Statistic(other.statistic))
        return Share(self.statistic, self.user_sums + other.user_sums)

    def on_host(self, backend: Backend) -> Share:
        """A copy to be sent to another process."""
        statistic = None if self.statistic is None else backend.asnumpy(self.statistic)
        return Share(statistic, backend.asnumpy(self.user_sums))

    def on_backend(self, backend: Backend) -> Share:
        """A copy of one that was sent."""
        statistic = None if self.statistic is None else backend.asarray(self.statistic)
        return Share(statistic, backend.asarray(self.user_sums))


#: What the items follow from: their state, or the sum of all shares, at the root, after those before.
ItemSource: TypeAlias = Posterior | Mapping[Node, Share]


def added_up(shares: Mapping[Node, Share], shards: int) -> dict[Node, Share]:
    """The shares, of which those below one node of the tree over ``shards`` have been added up to one."""
    sums, level, width = dict(shares), 0, shards
    while width > 1:
        for number in range(0, width, 2):
            below = [(level, one) for one in (number, number + 1) if one < width]
            if all(node in sums for node in below):
                share, *others = (sums.pop(node) for node in below)
                for other in others:
                    share = share.plus(other)
                sums[level + 1, number // 2] = share
        level, width = level + 1, -(-width // 2)
    return sums


@dataclass(frozen=True)
class ShardState:
    """The state of a shard's users on the host, from which a fit can go on."""

    users: Posterior
    checked: tuple[int, Host] | None  # how many updates E[θ] had had when it was remembered, and E[θ]


@dataclass
class _Shard:
    """A shard with its counts, and the state of its users after the last update and after the one before."""

    block: Block
    objective: Objective
    seen: UserItems | None
    users: dict[int, Side] = field(default_factory=dict)  # by the number of updates
    checked: tuple[int, Array] | None = None  # as in ShardState


class Shards:
    """The shards of a fit that this process has; ``threads`` is for backends that have this option."""

    def __init__(self, fit: ShardedFit, threads: int | None) -> None:
        settings = fit.settings
        self.backend = working_backend(settings, settings.dtype, settings.width, settings.threads or threads)
        self._fit, self._schedule = fit, schedule_of(settings)
        self._shards: dict[int, _Shard] = {}
        self._items: dict[int, Side] = {}  # as the users of a shard
        self._copies: dict[tuple[int, int], ShardState] = {}  # by updates and shard, which may be another's

    # -- counts ------------------------------------------------------------------------------------

    def add(self, number: int, csr: sparse.csr_array, validation: Pairs | None) -> None:
        """Take over a shard: its canonical counts, and its held-out counts."""
        settings, rows = self._fit.settings, self._fit.rows[number]
        arrays = (_aligned(array) for array in (csr.data, csr.indices, csr.indptr))
        csr = sparse.csr_array(tuple(arrays), shape=csr.shape)
        if validation is not None:
            pairs = (validation.rows, validation.columns, validation.values)
            validation = Pairs(*(_aligned(array) for array in pairs))
        block = Block(rows, self.backend.counts(csr, settings.width), validation)
        objective = Objective.of(
            self.backend,
            BlocksInMemory(csr.shape, (block,)),
            full_llk=settings.full_llk,
            elbo_at_checks=settings.compute_elbo or settings.stop_crit == "elbo",
        )
        seen = (csr.indptr, csr.indices) if settings.keep_data else None
        self._shards[number] = _Shard(block, objective, seen)

    def drop(self, numbers: Sequence[int]) -> None:
        """Free shards that another process has taken over."""
        for number in numbers:
            self._shards.pop(number, None)

    # -- state -------------------------------------------------------------------------------------

    def start(self, numbers: Sequence[int]) -> Posterior:
        """Give the users of these shards their start values, and the items; returns those of the items."""
        fit = self._fit
        rows = tuple(fit.rows[number] for number in numbers)
        model = start_sides(fit.settings, self.backend, fit.shape, fit.seed, rows)
        for number, users in zip(numbers, model.users, strict=True):
            shard = self._shard(number)
            shard.users, shard.checked = {0: users}, None
        self._items = {0: model.items}
        return posterior_of(self.backend, [model.items])

    def state(self, number: int, updates: int) -> ShardState:
        """The state of a shard after these updates."""
        checked, users = self._shard(number).checked, self._users(number, updates)
        return ShardState(
            posterior_of(self.backend, [users]),
            None if checked is None else (checked[0], self.backend.asnumpy(checked[1])),
        )

    def restore(self, number: int, updates: int, state: ShardState) -> None:
        """Go on from a state after these updates."""
        shard, checked = self._shard(number), state.checked
        shard.users = {updates: side_from_posterior(self.backend, state.users)}
        shard.checked = None if checked is None else (checked[0], self.backend.asarray(checked[1]))

    def keep(self, number: int, updates: int, state: ShardState) -> None:
        """Keep a copy of the state of a shard, of this process or of another, until keep_only frees it."""
        self._copies[updates, number] = state

    def keep_only(self, needed: Sequence[int]) -> None:
        """Free the copies of all states but those after so many updates."""
        self._copies = {place: state for place, state in self._copies.items() if place[0] in needed}

    def copies(self) -> list[tuple[int, int]]:
        """The updates and the shards of the copies that are kept."""
        return list(self._copies)

    def copy(self, number: int, updates: int) -> ShardState:
        """A copy that is kept."""
        if (updates, number) not in self._copies:
            raise Forgotten(f"no copy of shard {number} after {updates} updates")
        return self._copies[updates, number]

    def remember(self, numbers: Sequence[int], updates: int) -> None:
        """Keep E[θ] after these updates, with which a later check compares."""
        for number in numbers:
            self._shard(number).checked = updates, self.backend.mean(self._users(number, updates).factor)

    # -- iterations --------------------------------------------------------------------------------

    def advance(self, numbers: Sequence[int], updates: int, items: ItemSource) -> dict[Node, Share]:
        """Update the users of these shards; returns what they add to the update of the items."""
        backend, of_items = self.backend, self._side(updates, items)
        self._items = {updates: of_items}  # the spare matrices, of the items before, are overwritten
        shares: dict[Node, Share] = {}
        for number in numbers:
            shard, users = self._shard(number), self._users(number, updates)
            shard.users = {updates: users}  # likewise
            columns = self._released_at(updates)
            if columns is None:
                new, statistic = update_block(
                    backend, shard.block.counts, users, of_items, self._schedule, into_spare=not shares
                )
                share = Share(None if statistic is None else statistic.factors, new.column_sums)
            else:
                new = with_share(backend, users, columns[0], of_items.column_sums)
                share = Share(None, users.column_sums)
            shard.users[updates + 1] = new
            shares = added_up({**shares, (0, number): share}, len(self._fit.rows))
        return {node: share.on_host(backend) for node, share in shares.items()}

    def merge(self, *parts: Mapping[Node, Share]) -> dict[Node, Share]:
        """Shares of several processes as those of one."""
        shares = {node: share.on_backend(self.backend) for part in parts for node, share in part.items()}
        sums = added_up(shares, len(self._fit.rows))
        return {node: share.on_host(self.backend) for node, share in sums.items()}

    def _released_at(self, updates: int) -> tuple[int, int] | None:
        """The columns of biases, if this is the update that releases them."""
        return self._fit.settings.bias_columns if updates + 1 == self._fit.first else None

    # -- figures and results -----------------------------------------------------------------------

    def checks(
        self, numbers: Sequence[int], updates: int, items: ItemSource, since: int | None
    ) -> list[Check]:
        """The terms of a check that each shard adds; with ``since`` the change of E[θ] since those updates.

        In that case E[θ] is remembered.
        """
        checks = []
        for number in numbers:
            shard, model = self._shard(number), self._model(number, updates, items)
            if since is None:
                checks.append(shard.objective.check_of_users(model))
                continue
            if shard.checked is None or shard.checked[0] != since:
                raise Forgotten(f"no E[θ] of {since} updates")
            theta = shard.objective.means(model)
            checks.append(shard.objective.check_of_users(model, theta, (shard.checked[1],)))
            shard.checked = updates, theta[0]
        return checks

    def elbo(self, numbers: Sequence[int], updates: int, items: ItemSource) -> list[float]:
        """The terms of the ELBO that each shard adds."""
        return [
            self._shard(number).objective.elbo_of_users(self._model(number, updates, items))
            for number in numbers
        ]

    def elbo_of_items(self, number: int, updates: int, items: ItemSource) -> float:
        """The terms of the ELBO that the items add; ``number`` is that of any shard."""
        return self._shard(number).objective.elbo_of_items(self._side(updates, items))

    def theta(self, number: int, updates: int) -> Host:
        """E[θ] of the users of a shard, (rows, K)."""
        backend = self.backend
        return backend.asnumpy(backend.mean(self._users(number, updates).factor))

    def items(self, updates: int, items: ItemSource) -> Posterior:
        """The items after these updates, on the host."""
        return posterior_of(self.backend, [self._side(updates, items)])

    def beta(self, updates: int, items: ItemSource) -> Host:
        """E[β], (M, K)."""
        return self.backend.asnumpy(self.backend.mean(self._side(updates, items).factor))

    def seen(self, number: int) -> UserItems | None:
        """The items of the users of a shard; None without keep_data."""
        return self._shard(number).seen

    def name(self) -> str:
        """The name of the backend."""
        return self.backend.name

    # -- what is there -----------------------------------------------------------------------------

    def _shard(self, number: int) -> _Shard:
        if number not in self._shards:
            raise Forgotten(f"no shard {number}")
        return self._shards[number]

    def _users(self, number: int, updates: int) -> Side:
        users = self._shard(number).users
        if updates not in users:
            raise Forgotten(f"shard {number} has no state after {updates} updates")
        return users[updates]

    def _side(self, updates: int, source: ItemSource) -> Side:
        """The items after these updates."""
        if updates not in self._items:
            if isinstance(source, Posterior):
                self._items = {updates: side_from_posterior(self.backend, source)}
            elif updates - 1 in self._items:
                before = self._items[updates - 1]
                self._items = {updates - 1: before, updates: self._updated(before, updates, source)}
            else:
                raise Forgotten(f"no items of {updates - 1} updates")
        return self._items[updates]

    def _updated(self, items: Side, updates: int, shares: Mapping[Node, Share]) -> Side:
        backend, columns = self.backend, self._released_at(updates - 1)
        (share,) = (one.on_backend(backend) for one in shares.values())
        if columns is not None:
            return with_share(backend, items, columns[1], share.user_sums)
        if share.statistic is None:
            return items
        return update_side(backend, items, Statistic(share.statistic), share.user_sums)

    def _model(self, number: int, updates: int, items: ItemSource) -> Model:
        return Model((self._users(number, updates),), self._side(updates, items))


def _aligned(array: Host) -> Host:
    """The same numbers where kernels can read them: an array that was sent may begin at any byte."""
    return np.require(array, requirements="A")
