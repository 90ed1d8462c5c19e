"""Checkpoints: the state of a fit in a file, from which an interrupted fit resumes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.blocks import CountBlocks, Pairs
from hpf_gpu.model.acceleration import Kept
from hpf_gpu.model.convergence import Check, keeps_best
from hpf_gpu.model.inference import State
from hpf_gpu.model.likelihood import Having
from hpf_gpu.model.neighbours import Neighbours
from hpf_gpu.model.settings import Settings, may_differ_on_resume, step_at
from hpf_gpu.model.sides import Model, Momentum, Past, posterior_of, side_from_posterior
from hpf_gpu.model.snapshot import Best, Snapshot

from .model_file import (
    PRIOR,
    check_sources,
    decode_posteriors,
    encode_posteriors,
    history_arrays,
    plain_settings,
    posterior_arrays,
    settings_from_plain,
    weight_arrays,
)
from .schema import (
    STRING,
    TABLE,
    Array,
    Fields,
    check_arrays,
    check_fields,
    check_names,
    one_of,
    real,
    short,
    whole,
)
from .tensor_file import FileFormat, Tensors, believed
from .whole_file import path_of, remove_leftovers, writable

CHECKPOINT = FileFormat("checkpoint", key="hpf_gpu.checkpoint", format=1)
_DATA = ("counts_df", "val_set", "fixed_users", "fixed_items")
#: State of NumPy's default generator.
_GENERATOR: Fields = {
    "bit_generator": one_of("PCG64"),
    "state": {"state": whole(0, 2**128 - 1), "inc": whole(0, 2**128 - 1)},
    "has_uint32": whole(0, 1),
    "uinteger": whole(0, 2**32 - 1),
}
_CHUNK = 1 << 20  # numbers that are copied at once


@dataclass(frozen=True)
class Identity:
    """What identifies a fit: a checkpoint can be resumed only by a fit with the same identity."""

    settings: Settings
    parameters: dict[str, Any]  # settings that must be the same, and the first two steps of a stochastic fit
    data: dict[str, str]  # size and checksum of each data argument
    shape: tuple[int, int]  # users and items

    @staticmethod
    def of(
        settings: Settings,
        shape: tuple[int, int],
        counts: str,
        validation: Pairs | None,
        fixed: Mapping[str, NDArray[Any]],
    ) -> Identity:
        """The identity of a fit with these settings, held-out counts and fixed factors.

        ``counts`` is the fingerprint of the counts, of this ``shape``.
        """
        plain = plain_settings(settings)
        parameters = {name: value for name, value in plain.items() if not may_differ_on_resume(name)}
        # A function is identified by its first two values; without batches it is never called.
        steps = [step_at(settings.step_size, epoch) for epoch in (0, 1)] if settings.is_stochastic else None
        data = {"counts_df": counts}
        if validation is not None:
            arrays = (validation.rows, validation.columns, validation.values)
            data["val_set"] = fingerprint(shape, *arrays)
        for name, factors in fixed.items():
            crc = zlib.crc32(np.ascontiguousarray(factors, "<f8").data)
            data[name] = f"shape {factors.shape}, checksum {crc:08x}"
        return Identity(settings, parameters | {"step_size": steps}, data, shape)

    def check(self, path: Path, parameters: Mapping[str, Any], data: Mapping[str, str]) -> None:
        """Raise ValueError unless the checkpoint at ``path`` has the same parameters and data."""
        with believed(path):
            self._check_form(parameters, data)
        for name, value in self.parameters.items():
            if parameters[name] != value:
                found = f"{path} is a checkpoint of a fit with {name}={parameters[name]!r}, not {value!r}"
                raise ValueError(f"{found}; delete it to fit from the start")
        for name in _DATA:
            if data.get(name) != self.data.get(name):
                found, wanted = (lines.get(name, "none") for lines in (data, self.data))
                raise ValueError(
                    f"{path} is a checkpoint of a fit to another {name} ({found}, not {wanted}); "
                    "delete it to fit from the start"
                )

    def _check_form(self, parameters: Mapping[str, Any], data: Mapping[str, str]) -> None:
        """Raise ValueError or TypeError unless these have the form of parameters and data of a fit."""
        TABLE.check("header.parameters", parameters)
        check_names("field of header.parameters", parameters, self.parameters)
        steps = parameters["step_size"]
        if steps is not None and not (type(steps) is list and len(steps) == 2):
            raise ValueError(f"header.parameters.step_size is {short(steps)}, not the first two steps")
        for step in steps or ():
            real(0.0, 1.0).check("header.parameters.step_size", step)
        others = plain_settings(self.settings) | {"backend": "auto", "maxiter": 1}
        settings_from_plain({**others, **parameters, "step_size": None})
        TABLE.check("header.data", data)
        check_names("field of header.data", data, {"counts_df", *data} & set(_DATA))
        for name, line in data.items():
            STRING.check(f"header.data.{name}", line)

    def _priors(self) -> Fields:
        """The fields of the header for the priors of a fit with these settings."""
        return {
            side: {name: one_of(getattr(prior, name)) for name in PRIOR}
            | {"fixed": one_of(self._is_fixed(side))}
            for side, prior in zip(("user", "item"), self.settings.priors(), strict=True)
        }

    def _is_fixed(self, side: str) -> bool:
        return f"fixed_{side}s" in self.data

    @property
    def _is_accelerated(self) -> bool:
        return self.settings.schedule == "accelerated"

    @property
    def _keeps_best(self) -> bool:
        return keeps_best(self.settings.stop_crit, self.settings.patience)

    def fields(self) -> Fields:
        """The fields of the header of a checkpoint of this fit."""
        seed = self.settings.random_seed
        return {
            "parameters": TABLE,
            "data": TABLE,
            "priors": self._priors(),
            "iteration": whole(1),
            "seconds": real(0.0),
            "seed": whole(0) if seed is None else one_of(seed),
            "rng": _GENERATOR if self.settings.is_stochastic else one_of(None),
            "kept": {"iteration": whole(1), "falls": whole(0), "elbo": real()}
            if self._is_accelerated
            else one_of(None),
            "best_iteration": whole(0) if self._keeps_best else one_of(0),
        }

    def arrays(self, *, has_best: bool = False) -> dict[str, Array]:
        """The arrays of a checkpoint of this fit; ``has_best`` if it has the best model so far."""
        number = self.settings.dtype.name
        watches_theta = self.settings.stop_crit == "diff-norm"
        unknown = dict.fromkeys((field.name for field in fields(Check)), "never")
        has_elbo = self._is_accelerated or self.settings.stop_crit == "elbo"
        unknown |= {"elbo": "never" if has_elbo else "maybe"}
        unknown |= {"val_llk": "never" if "val_set" in self.data else "always"}
        unknown |= {"diff_norm": "never" if watches_theta else "always"}
        theta = {"checked_theta": Array(number, ("N", "K"), 0.0)} if watches_theta else {}
        sides: dict[str, Array] = {}
        for side, rows in zip(("user", "item"), "NM", strict=True):
            sides |= posterior_arrays(side, rows, number, fixed=self._is_fixed(side))
        weights = weight_arrays(number, self.settings.neighbours) if self.settings.neighbours else {}
        state = sides | weights | theta | history_arrays(unknown)
        state |= _copied("best", sides | weights) if has_best else {}
        return state | self._arrays_of_acceleration(sides | weights) if self._is_accelerated else state

    def _arrays_of_acceleration(self, model: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays of the model that is kept, which are like those of ``model``, and of the momentum."""
        arrays = _copied("kept", model)
        arrays["momentum.steps"] = Array("float64", (1,))
        for side, rows in zip(("user", "item"), "NM", strict=True):
            if not self._is_fixed(side):
                arrays |= _past_arrays(side, rows, "K", self.settings.dtype.name)
        if self.settings.neighbours:
            arrays |= _past_arrays("weights", "M", self.settings.neighbours, self.settings.dtype.name)
        return arrays


def _copied(name: str, model: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of a snapshot, which are like those of a model."""
    return {f"{name}.{own}": array for own, array in model.items() if own != "weights.sources"}


def _past_arrays(factor: str, rows: str, columns: str | int, number: str) -> dict[str, Array]:
    return {
        f"momentum.{factor}.exp_log": Array(number, (rows, columns), 0.0),
        f"momentum.{factor}.log_scale": Array("float64", (rows,)),
    }


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory."""

    header: dict[str, Any]
    tensors: Tensors
    settings: Settings

    @property
    def seed(self) -> int:
        """Seed of the start values."""
        return int(self.header["seed"])

    @property
    def iteration(self) -> int:
        """Number of finished iterations."""
        return int(self.header["iteration"])

    @property
    def sources(self) -> NDArray[Any] | None:
        """The neighbours of each item, (M, L); None without them."""
        return self.tensors.get("weights.sources")

    def state(self, backend: Backend, blocks: CountBlocks, having: Having | None) -> State:
        """Copy the state of the fit to the backend; call once, because it frees the host's arrays."""
        of_users, of_items = decode_posteriors(self.header["priors"], self.settings, self.tensors)
        users = tuple(side_from_posterior(backend, of_users.rows(rows)) for rows in blocks.slices)
        items = side_from_posterior(backend, of_items)
        if having is not None:
            prior, shape = self.settings.weight_prior, self.tensors["weights.shape"]
            neighbours = Neighbours(prior, having.sources, shape, having.users_with)
            items = replace(items, weights=neighbours.start(backend))
        del of_users, of_items
        model, kept = Model(users, items), None
        if self.header["kept"] is not None:
            model = replace(model, momentum=self._momentum(backend, blocks))
            kept = Kept(**self.header["kept"], snapshot=self._snapshot("kept"))
        columns = [self.tensors[f"history.{field.name}"].tolist() for field in fields(Check)]
        whole = self.tensors.get("checked_theta")
        theta = [] if whole is None else [backend.asarray(whole[rows]) for rows in blocks.slices]
        history = tuple(Check(*row) for row in zip(*columns, strict=True))
        best = self._best(history)
        self.tensors.clear()
        return State(
            model, self.iteration, history, self.header["seconds"], tuple(theta), kept=kept, best=best
        )

    def _snapshot(self, name: str) -> Snapshot:
        """A copy of an earlier model."""
        prefix = f"{name}."
        tensors = {
            own.removeprefix(prefix): array for own, array in self.tensors.items() if own.startswith(prefix)
        }
        users, items = decode_posteriors(self.header["priors"], self.settings, tensors)
        return Snapshot(users, items, tensors.get("weights.shape"))

    def _best(self, history: Sequence[Check]) -> Best | None:
        """The best model on held-out counts so far, whose check is in the history."""
        iteration = self.header["best_iteration"]
        found = [check for check in history if check.iteration == iteration]
        return Best(iteration, found[0].val_llk, self._snapshot("best")) if found else None

    def _momentum(self, backend: Backend, blocks: CountBlocks) -> Momentum:
        """The momentum of an accelerated fit."""

        def past(factor: str, rows: slice = slice(None)) -> Past | None:
            exp_log, log_scale = (
                self.tensors.get(f"momentum.{factor}.{name}") for name in ("exp_log", "log_scale")
            )
            if exp_log is None or log_scale is None:
                return None
            return Past(backend.asarray(exp_log[rows]), backend.asarray(log_scale[rows]))

        users = tuple(past("user", rows) for rows in blocks.slices)
        steps = backend.asarray(self.tensors["momentum.steps"])
        return Momentum(steps, users, past("item"), past("weights"))

    def draw_on(self, rng: np.random.Generator) -> None:
        """Set ``rng`` to the state of the checkpoint's generator."""
        rng.bit_generator.state = self.header["rng"]


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of a fit."""

    path: Path
    every: int  # iterations between two states that are written
    identity: Identity

    @staticmethod
    def at(path: str | bytes | os.PathLike[str], every: int, identity: Identity) -> Checkpoint:
        """Check that the file can be written, now and not after hours of fitting."""
        target = path_of("checkpoint", path)
        writable(target)
        return Checkpoint(target, every, identity)

    def read(self, maxiter: int | None) -> Saved | None:
        """Read the checkpoint; None if there is no file yet.

        Raises
        ------
        ModelFileError
            If the file is damaged.
        ValueError
            If it is a checkpoint of another fit, or has ``maxiter`` iterations already.
        """
        remove_leftovers(writable(self.path))
        if not self.path.exists():
            return None
        header, tensors = CHECKPOINT.read(self.path)
        with believed(self.path):
            check_names("field of header", header, self.identity.fields())
        self.identity.check(self.path, header["parameters"], header["data"])
        with believed(self.path):
            self._check(header, tensors)
        saved = Saved(header, tensors, self.identity.settings)
        if maxiter is not None and saved.iteration >= maxiter:
            raise ValueError(
                f"{self.path} is a checkpoint of iteration {saved.iteration}, and maxiter={maxiter} allows "
                "no more; increase maxiter, or delete the file to fit from the start"
            )
        return saved

    def _check(self, header: Mapping[str, Any], tensors: Tensors) -> None:
        """Raise ValueError unless header and arrays are a consistent state of this fit."""
        check_fields("header", header, self.identity.fields())
        n, m = self.identity.shape
        best = header["best_iteration"]
        if (best > 0) != any(name.startswith("best.") for name in tensors):
            there = "missing" if best else "there"
            raise ValueError(f"header.best_iteration is {best}, and the arrays of its model are {there}")
        check_arrays(
            tensors,
            self.identity.arrays(has_best=best > 0),
            {"N": n, "M": m, "K": self.identity.settings.width},
        )
        if "weights.sources" in tensors:
            check_sources(tensors["weights.sources"])
        if best > 0 and best not in tensors["history.iteration"]:
            raise ValueError(f"header.best_iteration is {best}, of which the history has no check")
        kept = header["kept"]
        if kept is not None and kept["iteration"] > header["iteration"]:
            raise ValueError(
                f"header.kept.iteration is {kept['iteration']}, and header.iteration is {header['iteration']}"
            )
        for name in ("iteration", "seconds"):
            column = tensors[f"history.{name}"]
            if len(column) and column[-1] > header[name]:
                raise ValueError(
                    f"history.{name} ends with {column[-1]}, and header.{name} is {header[name]}"
                )

    def save_if_due(
        self,
        backend: Backend,
        seed: int,
        rng: np.random.Generator | None,
        sources: NDArray[Any] | None,
        state: State,
    ) -> None:
        """Write this state to the file, if its iteration is a multiple of ``every``."""
        if state.iteration % self.every:
            return
        tensors: Tensors = {}
        posteriors = (posterior_of(backend, state.model.users), posterior_of(backend, [state.model.items]))
        header = {
            "parameters": self.identity.parameters,
            "data": self.identity.data,
            "priors": encode_posteriors(posteriors, tensors),
            "iteration": state.iteration,
            "seconds": state.seconds,
            "seed": seed,
            "rng": None if rng is None else rng.bit_generator.state,
            "kept": None
            if state.kept is None
            else {name: getattr(state.kept, name) for name in ("iteration", "falls", "elbo")},
            "best_iteration": 0 if state.best is None else state.best.iteration,
        }
        for field in fields(Check):
            dtype = np.int64 if field.name == "iteration" else np.float64  # of an empty history, too
            tensors[f"history.{field.name}"] = np.array(
                [getattr(row, field.name) for row in state.history], dtype
            )
        if state.model.items.weights is not None and sources is not None:
            tensors["weights.sources"] = sources
            tensors["weights.shape"] = backend.asnumpy(state.model.items.weights.factor.shape)
        if state.kept is not None:
            tensors |= _snapshot_arrays("kept", state.kept.snapshot)
        if state.best is not None:
            tensors |= _snapshot_arrays("best", state.best.snapshot)
        if state.model.momentum is not None:
            tensors |= _momentum_arrays(backend, state.model.momentum)
        if state.checked_theta:
            tensors["checked_theta"] = np.concatenate([backend.asnumpy(part) for part in state.checked_theta])
        CHECKPOINT.write(self.path, header, tensors)


def _snapshot_arrays(name: str, snapshot: Snapshot) -> Tensors:
    tensors: Tensors = {} if snapshot.weights is None else {"weights.shape": snapshot.weights}
    encode_posteriors((snapshot.users, snapshot.items), tensors)
    return {f"{name}.{own}": array for own, array in tensors.items()}


def _momentum_arrays(backend: Backend, momentum: Momentum) -> Tensors:
    tensors: Tensors = {"momentum.steps": backend.asnumpy(momentum.steps)}
    factors = {"user": momentum.users, "item": (momentum.items,), "weights": (momentum.weights,)}
    for factor, blocks in factors.items():
        parts = [past for past in blocks if past is not None]
        for name in ("exp_log", "log_scale") if parts else ():
            arrays = [backend.asnumpy(getattr(past, name)) for past in parts]
            tensors[f"momentum.{factor}.{name}"] = np.concatenate(arrays)
    return tensors


def fingerprint(shape: tuple[int, int], *arrays: NDArray[Any]) -> str:
    """The size of a set of counts and a checksum of its numbers, independent of the integer dtypes."""
    crc = 0
    for array in arrays:
        kind = "<i8" if array.dtype.kind in "iu" else array.dtype.newbyteorder("<")
        for start in range(0, len(array), _CHUNK):
            crc = zlib.crc32(array[start : start + _CHUNK].astype(kind).data, crc)
    return f"{len(arrays[-1])} counts of {shape[0]} users and {shape[1]} items, checksum {crc:08x}"
