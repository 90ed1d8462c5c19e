"""The state of a fit in a file, and how a fit that was killed goes on from there."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpf_gpu.backends.protocol import Backend, Counts
from hpf_gpu.model.convergence import Check
from hpf_gpu.model.inference import State
from hpf_gpu.model.settings import check_parameters, step_at
from hpf_gpu.model.variational import REST, Block, Model, Pairs, Prior, posterior_of, whole_side

from .model_file import (
    decode_posteriors,
    encode_posteriors,
    history_arrays,
    plain_parameters,
    posterior_arrays,
)
from .schema import (
    TABLE,
    TEXT,
    Array,
    Field,
    Fields,
    check_arrays,
    check_fields,
    check_names,
    one_of,
    real,
    short,
    whole,
)
from .tensor_file import Kind, Tensors, believed
from .whole_file import path_of, remove_leftovers, writable

CHECKPOINT = Kind("checkpoint", key="hpf_gpu.checkpoint", format=1)
#: Parameters that a fit may go on with other values of: where it runs, how far, what is shown and kept.
_FREE = (
    "backend", "ncores", "maxiter", "verbose", "reindex", "save_folder", "keep_data", "produce_dicts",
    "keep_all_objs", "allow_inconsistent_math", "alloc_full_phi",
)  # fmt: skip
_DATA = ("counts_df", "val_set", "fixed_users", "fixed_items")
#: State of NumPy's default generator.
_GENERATOR: Fields = {
    "bit_generator": one_of("PCG64"),
    "state": {"state": whole(0, 2**128 - 1), "inc": whole(0, 2**128 - 1)},
    "has_uint32": whole(0, 1),
    "uinteger": whole(0, 2**32 - 1),
}
_CHUNK = 1 << 20  # numbers whose copies are held at once


@dataclass(frozen=True)
class Identity:
    """What a fit must share with a checkpoint to go on from it."""

    parameters: dict[str, Any]
    data: dict[str, str]  # what the fit was given, and a line that tells it from others
    shape: tuple[int, int]  # users and items
    others: dict[str, Any]  # parameters that need not be the same, as any fit may have them

    @staticmethod
    def of(
        parameters: Mapping[str, Any], csr: Any, validation: Pairs | None, fixed: Mapping[str, NDArray[Any]]
    ) -> Identity:
        """Of a fit with these parameters to ``csr``, scipy's, held-out counts and factors that are given."""
        relevant = {name: value for name, value in plain_parameters(parameters).items() if name not in _FREE}
        stochastic = parameters["users_per_batch"] is not None or parameters["items_per_batch"] is not None
        # A function is known by what it gives; without batches nobody asks it.
        steps = [step_at(parameters["step_size"], epoch) for epoch in (0, 1)] if stochastic else None
        data = {"counts_df": _fingerprint(csr.shape, csr.indptr, csr.indices, csr.data)}
        if validation is not None:
            arrays = (validation.rows, validation.columns, validation.values)
            data["val_set"] = _fingerprint(csr.shape, *arrays)
        for name, factors in fixed.items():
            crc = zlib.crc32(np.ascontiguousarray(factors, "<f8").data)
            data[name] = f"shape {factors.shape}, checksum {crc:08x}"
        others = {**plain_parameters(parameters), "step_size": None, "backend": "auto", "maxiter": 1}
        return Identity(relevant | {"step_size": steps}, data, csr.shape, others)

    def check(self, path: Path, parameters: Mapping[str, Any], data: Mapping[str, str]) -> None:
        """Raise ValueError unless the checkpoint at ``path`` has these too."""
        with believed(path):
            self._check_form(parameters, data)
        for name, value in self.parameters.items():
            if parameters[name] != value:
                found = f"{path} is a checkpoint of a fit with {name}={parameters[name]!r}, not {value!r}"
                raise ValueError(f"{found}; delete it to fit from the start")
        for name in _DATA:
            if data.get(name) != self.data.get(name):
                found, given = (known.get(name, "none") for known in (data, self.data))
                raise ValueError(
                    f"{path} is a checkpoint of a fit to another {name} ({found}, not {given}); delete it to "
                    "fit from the start"
                )

    def _check_form(self, parameters: Mapping[str, Any], data: Mapping[str, str]) -> None:
        """Raise ValueError or TypeError unless these can be those of a fit."""
        TABLE.check("header.parameters", parameters)
        check_names("field of header.parameters", parameters, self.parameters)
        steps = parameters["step_size"]
        if steps is not None and not (type(steps) is list and len(steps) == 2):
            raise ValueError(f"header.parameters.step_size is {short(steps)}, not the first two steps")
        for step in steps or ():
            real(0.0, 1.0).check("header.parameters.step_size", step)
        check_parameters({**self.others, **parameters, "step_size": None})
        TABLE.check("header.data", data)
        check_names("field of header.data", data, {"counts_df", *data} & set(_DATA))
        for name, line in data.items():
            TEXT.check(f"header.data.{name}", line)

    @property
    def width(self) -> int:
        """Columns K of both sides, with those of biases."""
        return int(self.parameters["k"]) + 2 * bool(self.parameters["bias"])

    @property
    def is_stochastic(self) -> bool:
        """Whether the fit draws its batches at random."""
        return self.parameters["step_size"] is not None

    def priors(self) -> tuple[Prior, Prior]:
        """Those of a fit with these parameters."""
        given, k = self.parameters, self.width

        def prior(side: str, shape: str, hyper_shape: str, hyper_mean: str, ones: int, bias: int) -> Prior:
            numbers = float(given[shape]), float(given[hyper_shape]), float(given[hyper_mean])
            known = f"fixed_{side}s" in self.data
            columns = (ones, bias) if given["bias"] else (None, None)
            return Prior(*numbers, bool(given["hierarchical"]), columns[0], known, columns[1])

        users = prior("user", "a", "a_prime", "b_prime", k - 1, k - 2)
        return users, prior("item", "c", "c_prime", "d_prime", k - 2, k - 1)

    def fields(self) -> Fields:
        """The header of a checkpoint of this fit."""
        seed = self.parameters["random_seed"]
        return {
            "parameters": TABLE,
            "data": TABLE,
            "priors": {
                side: {name: one_of(value) for name, value in asdict(prior).items()} | {"rest": self._rest()}
                for side, prior in zip(("user", "item"), self.priors(), strict=True)
            },
            "iteration": whole(1),
            "seconds": real(0.0),
            "seed": whole(0) if seed is None else one_of(int(seed)),
            "rng": _GENERATOR if self.is_stochastic else one_of(None),
        }

    def _rest(self) -> Field:
        """For how many batches biases may still rest; full-batch fits count no iteration before they wake."""
        waits = self.parameters["bias"] and self.is_stochastic
        return whole(0, REST + 1 if waits else 0)

    def arrays(self) -> dict[str, Array]:
        """The arrays of a checkpoint of this fit."""
        number = "float32" if self.parameters["use_float"] else "float64"
        watches_theta = self.parameters["stop_crit"] == "diff-norm"
        unknown = dict.fromkeys((field.name for field in fields(Check)), "never")
        unknown |= {"val_llk": "never" if "val_set" in self.data else "always"}
        unknown |= {"diff_norm": "never" if watches_theta else "always"}
        theta = {"checked_theta": Array(number, ("N", "K"), 0.0)} if watches_theta else {}
        sides: dict[str, Array] = {}
        for side, rows, prior in zip(("user", "item"), "NM", self.priors(), strict=True):
            sides |= posterior_arrays(side, rows, number, known=prior.known)
        return sides | theta | history_arrays(unknown)


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory."""

    header: dict[str, Any]
    tensors: Tensors

    @property
    def seed(self) -> int:
        """Seed that the start values were drawn with."""
        return int(self.header["seed"])

    @property
    def iteration(self) -> int:
        """Iterations that are done."""
        return int(self.header["iteration"])

    def state(self, backend: Backend, counts: Counts, validation: Pairs | None) -> State:
        """The state of the fit, in the backend's memory; to be asked for once, for the host's arrays go."""
        users, items = (
            whole_side(backend, side) for side in decode_posteriors(self.header["priors"], self.tensors)
        )
        columns = [self.tensors[f"history.{field.name}"].tolist() for field in fields(Check)]
        theta = [self.tensors["checked_theta"]] if "checked_theta" in self.tensors else []
        self.tensors.clear()
        return State(
            Model((Block(counts, users, validation),), items),
            self.iteration,
            tuple(Check(*row) for row in zip(*columns, strict=True)),
            self.header["seconds"],
            tuple(backend.asarray(matrix) for matrix in theta),
        )

    def draw_on(self, rng: np.random.Generator) -> None:
        """Let ``rng`` go on where that of the fit was."""
        rng.bit_generator.state = self.header["rng"]


@dataclass(frozen=True)
class Checkpoint:
    """The file of a fit."""

    path: Path
    every: int  # iterations between two states that are written
    identity: Identity

    @staticmethod
    def at(path: str | bytes | os.PathLike[str], every: int, identity: Identity) -> Checkpoint:
        """Find out now, and not after hours, whether a file can be there."""
        target = path_of("checkpoint", path)
        writable(target)
        return Checkpoint(target, every, identity)

    def read(self, maxiter: int | None) -> Saved | None:
        """What there is to go on from: None if there is nothing yet.

        ModelFileError if the file is damaged, ValueError if it is of another fit.
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
        saved = Saved(header, tensors)
        if maxiter is not None and saved.iteration >= maxiter:
            raise ValueError(
                f"{self.path} is a checkpoint of iteration {saved.iteration}, and maxiter={maxiter} has no "
                "more; delete it to fit from the start"
            )
        return saved

    def _check(self, header: Mapping[str, Any], tensors: Tensors) -> None:
        """Raise ValueError unless header and arrays are those of one state of this fit."""
        check_fields("header", header, self.identity.fields())
        n, m = self.identity.shape
        check_arrays(tensors, self.identity.arrays(), {"N": n, "M": m, "K": self.identity.width})
        for name in ("iteration", "seconds"):
            column = tensors[f"history.{name}"]
            if len(column) and column[-1] > header[name]:
                raise ValueError(
                    f"history.{name} ends with {column[-1]}, and header.{name} is {header[name]}"
                )

    def keep(self, backend: Backend, seed: int, rng: np.random.Generator | None, state: State) -> None:
        """Replace the file by one of this state, if it is time."""
        if state.iteration % self.every:
            return
        (block,) = state.model.blocks
        tensors: Tensors = {}
        posteriors = (posterior_of(backend, block.users), posterior_of(backend, state.model.items))
        header = {
            "parameters": self.identity.parameters,
            "data": self.identity.data,
            "priors": encode_posteriors(posteriors, tensors),
            "iteration": state.iteration,
            "seconds": state.seconds,
            "seed": seed,
            "rng": None if rng is None else rng.bit_generator.state,
        }
        for field in fields(Check):
            dtype = np.int64 if field.name == "iteration" else np.float64  # of an empty history, too
            tensors[f"history.{field.name}"] = np.array(
                [getattr(row, field.name) for row in state.history], dtype
            )
        for theta in state.checked_theta:
            tensors["checked_theta"] = backend.asnumpy(theta)
        CHECKPOINT.write(self.path, header, tensors)


def _fingerprint(shape: tuple[int, int], *arrays: NDArray[Any]) -> str:
    """The size of a set of counts and a checksum of its numbers, whatever integers they are in."""
    crc = 0
    for array in arrays:
        kind = "<i8" if array.dtype.kind in "iu" else array.dtype.newbyteorder("<")
        for start in range(0, len(array), _CHUNK):
            crc = zlib.crc32(array[start : start + _CHUNK].astype(kind).data, crc)
    return f"{len(arrays[-1])} counts of {shape[0]} users and {shape[1]} items, checksum {crc:08x}"
