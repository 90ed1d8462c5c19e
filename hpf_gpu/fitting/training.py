"""Fits a model, full-batch or stochastic, from start values or from a checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpf_gpu import backends
from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.blocks import CountBlocks, Pairs, in_memory, row_batches
from hpf_gpu.data.counts import TrainingData, held_out_pairs, training_data
from hpf_gpu.data.factors import read_factors
from hpf_gpu.data.ids import Ids
from hpf_gpu.data.seen import UserItems
from hpf_gpu.data.triplets import read
from hpf_gpu.files.checkpoint import Checkpoint, Identity, Saved, fingerprint
from hpf_gpu.files.count_store import BlocksOnDisk
from hpf_gpu.files.scratch import scratch_folder
from hpf_gpu.model.acceleration import accelerated
from hpf_gpu.model.biases import warm_up
from hpf_gpu.model.convergence import Check, history_frame
from hpf_gpu.model.fitted import Fitted, checked_mean
from hpf_gpu.model.inference import Fit, Schedule, State, fit, iterate
from hpf_gpu.model.likelihood import Having, Objective
from hpf_gpu.model.loadings import Loadings, svd_loadings
from hpf_gpu.model.neighbours import Neighbours, choose_sources, neighbours_of, start_weights
from hpf_gpu.model.posterior import Posterior
from hpf_gpu.model.settings import Settings, seed_or_fresh, step_at
from hpf_gpu.model.sides import Model, Side, fixed_side, posterior_of, start_side
from hpf_gpu.model.start import StartValues
from hpf_gpu.model.stochastic import Batch, Epochs, LocalUpdates

from .beyond_memory import Limit, bytes_in, counts_on_disk, refuse_what_needs_all
from .progress import IterationsShown

#: Users in a block of counts; None for a single block.
USERS_PER_BLOCK: int | None = None


@dataclass(frozen=True)
class Inputs:
    """The data arguments of :meth:`hpf_gpu.HPF.fit`, as the user passed them."""

    counts: Any
    validation: Any = None
    fixed_users: Any = None
    fixed_items: Any = None
    transposed: bool = False  # whether the model's rows are the items, for members of an ensemble
    memory_limit: Any = None  # what the process may take, if the counts are to be on disk
    scratch: Any = None  # folder for them


@dataclass(frozen=True)
class _Data:
    """The inputs, read and checked."""

    training: TrainingData
    validation: Pairs | None
    fixed: dict[str, NDArray[Any]]  # fixed factors (n, K) by argument: "fixed_users" or "fixed_items"
    on_disk: BlocksOnDisk | None = None

    @property
    def fingerprint(self) -> str:
        """What identifies the training counts."""
        if self.on_disk is not None:
            return self.on_disk.fingerprint
        csr = self.training.host_csr
        return fingerprint(csr.shape, csr.indptr, csr.indices, csr.data)


@dataclass(frozen=True)
class Trained:
    """A fitted model, and how the fit ended; see :class:`hpf_gpu.model.inference.Fit`."""

    fitted: Fitted
    ended_by: BaseException | None
    unmet: bool


def train(
    settings: Settings,
    inputs: Inputs,
    *,
    callback: Callable[[Check], object] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
) -> Trained:
    """Fit a model; see :meth:`hpf_gpu.HPF.fit` for arguments and errors."""
    backend = working_backend(settings, settings.dtype, settings.width, settings.threads)
    with backend.in_use(), _folder(settings, inputs) as folder:
        data = _read(settings, backend, inputs, folder, checkpoint=checkpoint is not None)
        file = saved = None
        if checkpoint is not None:
            shape = data.training.csr.shape
            identity = Identity.of(settings, shape, data.fingerprint, data.validation, data.fixed)
            file = Checkpoint.at(checkpoint, checkpoint_every, identity)
            saved = file.read(settings.maxiter)
        prepared = _prepared(settings, backend, data, None if saved is None else saved.sources)
        del data  # so that counts of which the backend has its own copy are freed
        seed = seed_or_fresh(settings.random_seed) if saved is None else saved.seed
        return _fit(prepared, seed, callback, file, saved)


def _folder(settings: Settings, inputs: Inputs) -> AbstractContextManager[Path | None]:
    """A folder for counts on disk; None without a limit of memory."""
    if inputs.memory_limit is None:
        if inputs.scratch is not None:
            raise ValueError("scratch is a folder for fits with memory_limit, which is not set")
        return nullcontext()
    refuse_what_needs_all(settings)
    return scratch_folder(inputs.scratch)


def train_with_seeds(
    settings: Settings, inputs: Inputs, fits: Iterable[tuple[int, Callable[[Check], object] | None]]
) -> Iterator[Trained]:
    """Fit models with these seeds and callbacks, one after the other, to counts that are laid out once."""
    backend = working_backend(settings, settings.dtype, settings.width, settings.threads)
    with backend.in_use():
        prepared = _prepared(settings, backend, _read(settings, backend, inputs))
        for seed, callback in fits:
            yield _fit(prepared, seed, callback)


@dataclass(frozen=True)
class _Prepared:
    """What fits have in common that differ in nothing but the seed."""

    settings: Settings
    backend: Backend
    training: TrainingData  # without counts, unless batches are drawn from them
    fixed: dict[str, NDArray[Any]]
    having: Having | None
    totals: NDArray[Any] | None  # (M,) sums of the counts of each item, with neighbours
    blocks: CountBlocks
    objective: Objective


def _prepared(
    settings: Settings, backend: Backend, data: _Data, sources: NDArray[Any] | None = None
) -> _Prepared:
    """Lay out the counts; the neighbours of the items are chosen unless ``sources`` are given."""
    # Before anything else is allocated, because this raises NotEnoughMemory if the fit is too large.
    having = _having(settings, backend, data.training, sources)
    sources = None if having is None else having.sources
    width = settings.width
    blocks: CountBlocks = (
        in_memory(backend, data.training.csr, width, data.validation, USERS_PER_BLOCK, sources)
        if data.on_disk is None
        else data.on_disk
    )
    watches_elbo = settings.stop_crit == "elbo" or settings.schedule == "accelerated"
    elbo_at_checks = settings.compute_elbo or watches_elbo
    objective = Objective.of(
        backend, blocks, full_llk=settings.full_llk, elbo_at_checks=elbo_at_checks, having=having
    )
    totals = None if having is None else _totals(data.training)
    training = data.training if settings.is_stochastic else data.training.without_counts()
    return _Prepared(settings, backend, training, data.fixed, having, totals, blocks, objective)


def _fit(
    prepared: _Prepared,
    seed: int,
    callback: Callable[[Check], object] | None,
    file: Checkpoint | None = None,
    saved: Saved | None = None,
) -> Trained:
    """One fit, from start values or, if there is one, from a saved state."""
    settings, backend, blocks, having = prepared.settings, prepared.backend, prepared.blocks, prepared.having
    schedule = schedule_of(settings)
    # An iteration is a pass over all blocks, or an epoch over batches in stochastic fits.
    update = partial(iterate, backend, blocks, schedule=schedule)
    step = partial(accelerated, backend, update) if schedule.accelerated else update
    # What is recorded would go on using the counts that were in memory then.
    full = partial(_advance, step if isinstance(blocks, BlocksOnDisk) else backend.recorded(step))
    sources = None if having is None else having.sources
    training = prepared.training
    epochs = _epochs(settings, backend, training, seed, sources) if settings.is_stochastic else None
    rng = None if epochs is None else epochs.rng
    if saved is not None and rng is not None:
        saved.draw_on(rng)
    done = 0 if saved is None else saved.iteration

    with IterationsShown(settings.maxiter, done, enabled=settings.verbose) as progress:
        # No variable refers to the start state, so that its matrices are freed when no longer needed.
        result = fit(
            backend,
            _start(prepared, seed, full) if saved is None else saved.state(backend, blocks, having),
            schedule,
            prepared.objective,
            epochs or full,
            reporting(progress, callback),
            on_state=None if file is None else partial(file.save_if_due, backend, seed, rng, sources),
        )
    del full  # and with it the matrices that the model has no more
    return Trained(_fitted(prepared, result, seed), result.ended_by, result.unmet)


def reporting(
    progress: IterationsShown, callback: Callable[[Check], object] | None
) -> Callable[[Check], bool]:
    """What is called after every iteration: shows progress, and asks the callback whether to end the fit."""

    def report(check: Check) -> bool:
        progress.report(check)
        answer = None if callback is None else callback(check)
        return isinstance(answer, (bool, np.bool_)) and bool(answer)

    return report


def working_backend(settings: Settings, dtype: np.dtype[Any], k: int, threads: int | None) -> Backend:
    """Create the backend that the settings name, for a model of this dtype with ``k`` columns."""
    return backends.choose(settings.backend, dtype, threads, k=k, **settings.backend_options)


def schedule_of(settings: Settings) -> Schedule:
    """The order of updates and the stopping rule."""
    informs = settings.stop_crit != "maxiter" or settings.verbose
    return Schedule(
        settings.stop_crit,
        settings.stop_thr,
        check_every=settings.check_every if informs else None,
        maxiter=settings.maxiter,
        alternating=settings.schedule == "alternating",
        accelerated=settings.schedule == "accelerated",
        exact_phi=settings.sum_exp_trick,
        patience=settings.patience,
    )


def local_updates(settings: Settings) -> LocalUpdates:
    """How the rows of a batch are updated."""
    return LocalUpdates(settings.schedule == "alternating", settings.sum_exp_trick)


def start_sides(
    settings: Settings,
    backend: Backend,
    shape: tuple[int, int],
    seed: int,
    slices: tuple[slice, ...] = (slice(None),),
    fixed: dict[str, NDArray[Any]] | None = None,
    loadings: Loadings | None = None,
) -> Model:
    """The model before its first update, with start values or fixed factors (n, K).

    ``shape`` is (N, M), and ``slices`` are the rows of each block of users.  ``loadings`` are added to the
    shapes of the factors.  Biases, if any, are pinned until :func:`hpf_gpu.model.biases.warm_up`, unless a
    side is fixed: then the factors differ from the start.
    """
    fixed = fixed or {}
    of_users, of_items = settings.priors(biases_wait=not fixed)
    values = StartValues(*shape, settings.width, seed, backend.dtype)

    def users(number: int, rows: slice) -> Side:
        if "fixed_users" in fixed:
            return fixed_side(backend, of_users, fixed["fixed_users"][rows])
        shapes, rates = values.users(of_users, rows)
        if loadings is not None:
            shapes[:, : settings.k] += loadings.users[number]
            rates[:, : settings.k] = loadings.rate
        return start_side(backend, of_users, shapes, rates)

    def items() -> Side:
        if "fixed_items" in fixed:
            return fixed_side(backend, of_items, fixed["fixed_items"])
        shapes, rates = values.items(of_items)
        if loadings is not None:
            shapes[:, : settings.k] += loadings.items
            rates[:, : settings.k] = loadings.rate
        return start_side(backend, of_items, shapes, rates)

    of_all_items = items()
    return Model(tuple(users(number, rows) for number, rows in enumerate(slices)), of_all_items)


def _read(
    settings: Settings,
    backend: Backend,
    inputs: Inputs,
    folder: Path | None = None,
    *,
    checkpoint: bool = False,
) -> _Data:
    """Read the data; the counts to files of a folder, if there is one."""
    if inputs.fixed_users is not None and inputs.fixed_items is not None:
        raise ValueError("fixed_users and fixed_items are both set: there is nothing to fit")
    if settings.k == 0 and (inputs.fixed_users is not None or inputs.fixed_items is not None):
        raise ValueError("k=0 leaves the factors out: fixed_users and fixed_items need a model with factors")
    if inputs.fixed_users is not None and settings.stop_crit == "diff-norm":
        raise ValueError("stop_crit='diff-norm' monitors Theta, which fixed_users keeps constant")
    columns, taken = settings.columns, settings.counts
    on_disk = None
    if folder is None:
        data = training_data(
            inputs.counts, backend=backend, reindex=settings.reindex, columns=columns, taken=taken
        )
    else:
        limit = Limit(bytes_in("memory_limit", inputs.memory_limit))
        data, on_disk = counts_on_disk(settings, backend, inputs.counts, limit, folder, checkpoint=checkpoint)
    validation = None
    if inputs.validation is not None:
        dtype = backend.dtype.type
        held_out = read(inputs.validation, dtype=dtype, name="val_set", taken=taken, columns=columns)
        validation = held_out_pairs(held_out, data.users, data.items, name="val_set")
    if inputs.transposed:
        data = data.transposed()
        validation = None if validation is None else validation.transposed()
    sides = (
        ("fixed_users", inputs.fixed_users, data.users, (settings.user, "UserId")),
        ("fixed_items", inputs.fixed_items, data.items, (settings.item, "ItemId")),
    )
    fixed = {
        name: read_factors(factors, ids, settings.width, name=name, labels=labels)
        for name, factors, ids, labels in sides
        if factors is not None
    }
    return _Data(data, validation, fixed, on_disk and on_disk.with_validation(validation))


def _advance(update: Callable[[Model], Model], model: Model, _: int = 0) -> Model:
    return update(model)


def _start(prepared: _Prepared, seed: int, update: Callable[[Model], Model]) -> State:
    """The state before the first iteration."""
    started = time.perf_counter()
    settings, backend, blocks, having = prepared.settings, prepared.backend, prepared.blocks, prepared.having
    # A fixed side makes the factors differ, and no loadings belong to its columns.
    by_svd = settings.init == "svd" and not prepared.fixed
    loadings = svd_loadings(backend, blocks, settings.k, seed) if by_svd else None
    model = start_sides(settings, backend, blocks.shape, seed, blocks.slices, prepared.fixed, loadings)
    if having is not None and prepared.totals is not None:
        prior, totals = settings.weight_prior, prepared.totals
        weights = start_weights(backend, prior, having.sources, having.users_with, totals)
        model = replace(model, items=replace(model.items, weights=weights))
    if settings.bias_columns is not None and not prepared.fixed:
        model = warm_up(backend, model, settings.bias_columns, update)
    return State(model, seconds=time.perf_counter() - started)


def _having(
    settings: Settings, backend: Backend, data: TrainingData, sources: NDArray[Any] | None
) -> Having | None:
    """The items of the users and the neighbours of the items, chosen unless given; None without them."""
    if not settings.neighbours:
        return None
    if sources is None:
        sources = choose_sources(backend, data.host_csr, settings.neighbours)
    csr = data.host_csr
    return Having.of((csr.indptr, csr.indices), sources)


def _totals(data: TrainingData) -> NDArray[Any]:
    """Sum of the counts of each item, (M,)."""
    csr = data.host_csr
    return np.bincount(csr.indices, csr.data, minlength=csr.shape[1])


def _epochs(
    settings: Settings, backend: Backend, data: TrainingData, seed: int, sources: NDArray[Any] | None
) -> Epochs:
    """The epochs of a stochastic fit, with their batches."""
    rng, k = np.random.default_rng(seed), settings.width

    def batches(csr: Any, size: int | None) -> tuple[Batch, ...]:
        parts = () if size is None else row_batches(csr, size, rng)
        return tuple(
            Batch(rows, backend.counts(part, k, sources), csr.shape[0] / len(rows)) for rows, part in parts
        )

    csr = data.host_csr
    by_user = batches(csr, settings.users_per_batch)
    by_item = batches(csr.T.tocsr(), settings.items_per_batch) if settings.items_per_batch else ()
    step = partial(step_at, settings.step_size)
    return Epochs(backend, by_user, by_item, step, rng, local_updates(settings))


def _means(backend: Backend, blocks: CountBlocks, users: Sequence[Side]) -> NDArray[Any]:
    """E[θ] of the users of all blocks (N, K), of which memory has no second copy."""
    theta = np.empty((blocks.shape[0], users[0].factor.shape.shape[1]), backend.dtype)
    for rows, side in zip(blocks.slices, users, strict=True):
        theta[rows] = backend.asnumpy(backend.mean(side.factor))
    return theta


def _fitted(prepared: _Prepared, result: Fit, seed: int) -> Fitted:
    """Copy the result of a fit to the host."""
    settings, backend, data, having = prepared.settings, prepared.backend, prepared.training, prepared.having
    users, items = result.model.users, result.model.items
    theta = _means(backend, prepared.blocks, users)
    beta = backend.asnumpy(backend.mean(items.factor))
    posteriors: tuple[Posterior, Posterior] | None = None
    if settings.keep_all_objs or settings.save_folder is not None:
        posteriors = (posterior_of(backend, users), posterior_of(backend, [items]))
    neighbours = None
    if items.weights is not None and having is not None:
        neighbours = neighbours_of(backend, items.weights, having.sources, having.users_with)
    return fitted_model(
        settings,
        result,
        theta=theta,
        beta=beta,
        ids=(data.users, data.items),
        posteriors=posteriors,
        seen=data.seen if settings.keep_data else None,
        seed=seed,
        backend=backend.name,
        neighbours=neighbours,
    )


def fitted_model(
    settings: Settings,
    result: Fit,
    *,
    theta: NDArray[Any],  # (N, K)
    beta: NDArray[Any],  # (M, K)
    ids: tuple[Ids, Ids],
    posteriors: tuple[Posterior, Posterior] | None,
    seen: UserItems | None,
    seed: int,
    backend: str,
    neighbours: Neighbours | None = None,
) -> Fitted:
    """A fitted model from what a fit leaves, all on the host."""
    users, items = ids
    return Fitted(
        theta=checked_mean("Theta", theta),
        beta=checked_mean("Beta", beta),
        user_ids=users,
        item_ids=items,
        nusers=users.size,
        nitems=items.size,
        posteriors=posteriors,
        seen=seen,
        niter=result.iterations,
        train_llk=result.history[-1].llk,
        history=history_frame(result.history, settings.stop_crit),
        seed=seed,
        backend=backend,
        neighbours=neighbours,
    )
