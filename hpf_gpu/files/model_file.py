"""A fitted model in one file: arrays as safetensors, everything else as JSON in the file's metadata.

Arrays: ``Theta``, ``Beta``; ``user.*`` and ``item.*``, ids, and shapes and rates if they were kept;
``seen.*``, the items of each user; ``weights.*``, neighbours and their weights, if the model has them;
``history.*``, one array per column.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpf_gpu import backends
from hpf_gpu.backends.protocol import Full, RankOne, Rates
from hpf_gpu.data.ids import Ids
from hpf_gpu.model.biases import WARM_UP
from hpf_gpu.model.convergence import Check
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.neighbours import Neighbours
from hpf_gpu.model.posterior import Posterior
from hpf_gpu.model.priors import POINT_MASS_RATE
from hpf_gpu.model.settings import MAX_PRIOR, MIN_PRIOR, NAMES, Settings, default_step_size

from .schema import (
    FLAG,
    LARGEST,
    POSITIVE,
    STRING,
    TABLE,
    Array,
    check_arrays,
    check_fields,
    check_names,
    one_of,
    real,
    short,
    whole,
)
from .tensor_file import UPDATE, FileFormat, Tensors, believed
from .whole_file import path_of

MODEL = FileFormat("model", key="hpf_gpu", format=1)
_DEFAULT = "default"  # stands for the function default_step_size
_SIDES = ("user", "item")
#: Parameters that files of earlier versions lack, and what their fits had.
_LATER: dict[str, Any] = {"init": "hpfrec", "user": "UserId", "item": "ItemId", "count": "Count"}
#: Fields of a prior in the header; pinned columns follow from the settings.
PRIOR = ("shape", "hyper_shape", "hyper_mean", "hierarchical")
#: Scalars in the header, and the corresponding fields of Fitted.
_SCALARS = {
    "nusers": "nusers", "nitems": "nitems", "niter": "niter", "train_llk": "train_llk",
    "random_seed_": "seed", "backend_": "backend",
}  # fmt: skip
_NUMBERS = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64",
)  # fmt: skip
_ROUNDING = 1e-3  # relative; 1e-7 in float32
_BLOCK = 1 << 10  # rows whose means are checked at once
_INDICES = ("int32", "int64")
#: Columns of the history, without diff_norm, which only the rule diff-norm has.
_COLUMNS = [field.name for field in fields(Check) if field.name != "diff_norm"]
_FREE_RATES = ((POSITIVE, LARGEST), (0.0, LARGEST), (POSITIVE, LARGEST))
_MAYBE_UNKNOWN = ("elbo", "val_llk", "diff_norm")
_DATES = re.compile(r"<[mM]8\[(s|ms|us|ns)\]")
#: Arrays of a model with neighbours.
_WEIGHTS = ("sources", "shape", "users_with")


# -- writing -----------------------------------------------------------------------------------


def save_model(path: str | bytes | os.PathLike[str], fitted: Fitted, values: Mapping[str, Any]) -> None:
    """Write a fitted model with the ``values`` of its settings; an existing file is replaced atomically.

    A symbolic link is kept and its target is replaced.  The new file gets the permissions of the old one.

    Raises
    ------
    ValueError
        If model and settings contradict each other, for example because ``k`` was changed after the fit.
    TypeError
        If ids are of a type that a file cannot hold.
    OSError
        If the file cannot be written, or is a folder, a pipe or a device.
    """
    target = path_of("path", path)
    MODEL.write(target, *encode_model(fitted, values))


def encode_model(fitted: Fitted, values: Mapping[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """Header and arrays of a model; errors as for :func:`save_model`."""
    tensors: Tensors = {"Theta": fitted.theta, "Beta": fitted.beta}
    header: dict[str, Any] = {name: getattr(fitted, field) for name, field in _SCALARS.items()}
    header["backend_"] = backends.entry_of(fitted.backend).name  # without the number of this machine's device
    if fitted.library is not None:
        header["library"] = fitted.library
    header["ids"] = {}
    for side, ids in zip(_SIDES, (fitted.user_ids, fitted.item_ids), strict=True):
        encoding, array = _encoded(ids)
        header["ids"][side] = encoding
        if array is not None:
            tensors[f"{side}.ids"] = array
    if fitted.posteriors is not None:
        header["priors"] = encode_posteriors(fitted.posteriors, tensors)
        header["biases_wait"] = fitted.posteriors[1].prior.biases_wait
    if fitted.seen is not None:
        tensors["seen.indptr"], tensors["seen.indices"] = fitted.seen
    if fitted.neighbours is not None:
        tensors |= {f"weights.{name}": getattr(fitted.neighbours, name) for name in _WEIGHTS}
    tensors |= {f"history.{name}": column.to_numpy() for name, column in fitted.history.items()}
    header["history"] = list(fitted.history.columns)
    try:
        settings = Settings.of(values)
        _check_unchanged(fitted, settings)
        header["parameters"] = plain_settings(settings)
        check_model(json.loads(json.dumps(header)), tensors)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"this model cannot be saved, because it is inconsistent: {error}") from error
    return header, tensors


def _check_unchanged(fitted: Fitted, settings: Settings) -> None:
    """Raise ValueError unless what a file has in its settings alone is that of the fit: pins, prior of w."""
    for side, posterior in enumerate(fitted.posteriors or ()):
        priors = settings.priors(biases_wait=posterior.prior.biases_wait)
        if posterior.prior.pins != priors[side].pins:
            raise ValueError(f"bias={settings.bias} and k={settings.k} are not those of the fit")
    of_weights = None if fitted.neighbours is None else fitted.neighbours.prior
    if of_weights != (settings.weight_prior if settings.neighbours else None):
        names = ("neighbours", "w_shape", "w_rate", "temperature")
        given = ", ".join(f"{name}={getattr(settings, name)}" for name in names)
        raise ValueError(f"{given} are not those of the fit")


def encode_posteriors(posteriors: tuple[Posterior, Posterior], tensors: Tensors) -> dict[str, Any]:
    """Add the arrays of both sides to ``tensors``; returns their priors, for the header."""
    priors: dict[str, Any] = {}
    for side, posterior in zip(_SIDES, posteriors, strict=True):
        rates, prior = posterior.rates, posterior.prior
        if isinstance(rates, RankOne):
            arrays = {"rate_rows": rates.rows, "rate_columns": rates.columns}
        else:
            arrays = {"rates": rates.matrix}
        arrays |= {name: getattr(posterior, name) for name in ("shape", "hyper_rate", "column_sums")}
        tensors.update({f"{side}.{name}": array for name, array in arrays.items()})
        priors[side] = {name: getattr(prior, name) for name in PRIOR} | {"fixed": posterior.fixed}
    return priors


def decode_posteriors(
    priors: Mapping[str, Any], settings: Settings, tensors: Tensors, *, biases_wait: bool = False
) -> tuple[Posterior, Posterior]:
    """The inverse of :func:`encode_posteriors`; pinned columns follow from ``settings``."""
    users, items = (
        Posterior(
            replace(prior, **{name: priors[side][name] for name in PRIOR}),
            tensors[f"{side}.shape"],
            _rates(side, tensors),
            tensors[f"{side}.hyper_rate"],
            tensors[f"{side}.column_sums"],
            priors[side]["fixed"],
        )
        for side, prior in zip(_SIDES, settings.priors(biases_wait=biases_wait), strict=True)
    )
    return users, items


def _rates(side: str, tensors: Tensors) -> Rates:
    if f"{side}.rates" in tensors:
        return Full(tensors[f"{side}.rates"])
    return RankOne(tensors[f"{side}.rate_rows"], tensors[f"{side}.rate_columns"])


def plain_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, without ``save_folder`` and without any ``step_size`` but the default."""
    plain = {name: getattr(settings, name) for name in NAMES}
    is_default = settings.step_size is default_step_size
    return plain | {"save_folder": None, "step_size": _DEFAULT if is_default else None}


def settings_from_plain(plain: Mapping[str, Any]) -> Settings:
    """The inverse of :func:`plain_settings`; TypeError or ValueError if a value is not accepted."""
    step_size = default_step_size if plain["step_size"] == _DEFAULT else None
    return Settings.of({**plain, "step_size": step_size})


# -- ids ---------------------------------------------------------------------------------------


def _encoded(ids: Ids) -> tuple[str, NDArray[Any] | None]:
    """Encoding and array of ids: numbers unchanged, datetime64 as integers, objects as JSON in UTF-8."""
    values = ids.values
    if values is None:
        return "rows", None
    if values.dtype.name in _NUMBERS:
        return "array", values
    if values.dtype.kind in "mM":
        return values.dtype.newbyteorder("<").str, values.astype(values.dtype.newbyteorder("=")).view(
            np.int64
        )
    # Unescaped, because JSON joins two escaped surrogates into one character.
    text = json.dumps([_plain_id(value, ids.kind) for value in values.tolist()], ensure_ascii=False)
    return "json", np.frombuffer(text.encode(errors="surrogatepass"), dtype=np.uint8)


def _decoded(encoding: str, array: NDArray[Any] | None, size: int, kind: str, *, mapped: bool) -> Ids:
    """The ids; ValueError unless there are ``size``, none missing and none duplicated.

    Of a ``mapped`` array numbers stay in the file, unchecked, and JSON is read when an id is needed.
    """
    if array is None:
        return Ids(None, size, kind)
    if encoding == "json" and mapped:
        return Ids(partial(_objects, array, size, kind), size, kind)
    if encoding == "json":
        values = _objects(array, size, kind)
    else:
        values = array if encoding == "array" else array.view(np.dtype(encoding).newbyteorder("="))
    if mapped:
        return Ids(values, size, kind)
    missing = values.dtype.kind in "fmMO" and bool((values != values).any())  # NaN
    distinct = len(set(values.tolist()) if values.dtype == object else np.unique(array))
    if missing or distinct < size:
        raise ValueError(
            f"{kind}.ids have {'missing values' if missing else f'{size - distinct} duplicates'}"
        )
    return Ids(values, size, kind)


def _objects(array: NDArray[Any], size: int, kind: str) -> NDArray[Any]:
    """Ids (size,) from JSON in UTF-8."""
    listed = json.loads(array.tobytes().decode(errors="surrogatepass"))
    if type(listed) is not list or len(listed) != size:
        raise ValueError(f"{kind}.ids are {short(listed)}, not a list of {size}")
    values = np.empty(size, dtype=object)
    values[:] = listed if set(map(type, listed)) == {str} else [_id_of(value) for value in listed]
    return values


def _plain_id(value: Any, kind: str) -> Any:
    if value != value:  # NaN, NaT
        raise ValueError(f"{kind} id {value!r} is a missing value, which cannot be looked up")
    if isinstance(value, (np.datetime64, np.timedelta64)):  # timedelta64 is a subclass of np.integer
        return {"date": [int(value.astype(np.int64)), value.dtype.str[1:]]}
    if isinstance(value, (np.bool_, np.integer, np.floating, np.str_, np.bytes_)):
        value = value.item()
    if type(value) in (str, int, float, bool):
        return value
    if type(value) is bytes:
        return {"bytes": value.decode("latin-1")}
    if type(value) is tuple:
        return {"tuple": [_plain_id(part, kind) for part in value]}
    raise TypeError(
        f"{kind} id {value!r} is a {type(value).__name__}: a model file can hold numbers, strings, booleans, "
        "bytes, datetime64 and tuples of these; pickle the model, or fit with strings as ids"
    )


def _id_of(value: Any) -> Any:
    if type(value) in (str, int, float, bool):
        return value
    if type(value) is dict and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "bytes" and type(inner) is str:
            return inner.encode("latin-1")
        if kind == "tuple" and type(inner) is list:
            return tuple(map(_id_of, inner))
        if kind == "date" and type(inner) is list and [*map(type, inner)] == [int, str]:
            number, unit = inner
            if re.fullmatch(r"[mM]8\[\d{0,9}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]", unit):
                return np.array(number, dtype=np.int64).view(unit)[()]
    raise ValueError(f"{short(value)} is not a valid id")


# -- checks --------------------------------------------------------------------------------------


def check_model(header: Mapping[str, Any], tensors: Tensors, *, mapped: bool = False) -> Settings:
    """The settings; ValueError or TypeError unless header and arrays are those of a consistent model.

    Of ``mapped`` arrays only dtypes and shapes are checked, so that they are not read.
    """
    has_posteriors = "priors" in header or any(f"{side}.shape" in tensors for side in _SIDES)
    expected = _fields(has_posteriors) | ({"library": STRING} if "library" in header else {})
    check_names("field of header", header, expected)
    settings = _check_parameters(header["parameters"])
    check_fields("header", header, expected)
    _check_priors(header, settings)
    sizes = check_arrays(
        tensors, _layout(header, settings, tensors), {"K": settings.width}, values=not mapped
    )
    for side, rows in zip(_SIDES, (sizes["N"], sizes["M"]), strict=True):
        total, are_rows = header[f"n{side}s"], header["ids"][side] == "rows"
        if total < rows or (are_rows and total > rows):
            raise ValueError(f"header.n{side}s is {total}, and there are {rows} rows")
    _check_history(header, tensors)
    if not mapped:
        _check_rows(header, settings, tensors)
    return settings


def _check_rows(header: Mapping[str, Any], settings: Settings, tensors: Tensors) -> None:
    """Raise ValueError unless the rows of users and items, whose values are in range, fit together."""
    if "priors" in header:
        posteriors = _posteriors(header, settings, tensors)
        for mean, posterior in zip(("Theta", "Beta"), posteriors, strict=True):
            _check_mean(mean, tensors[mean], posterior)
    if "seen.indptr" in tensors:
        _check_seen(tensors["seen.indptr"], tensors["seen.indices"], len(tensors["Beta"]))
    if settings.neighbours:
        check_sources(tensors["weights.sources"])


def _check_parameters(parameters: Any) -> Settings:
    TABLE.check("header.parameters", parameters)
    unknown = parameters.keys() - set(NAMES)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"parameters that this version does not know: {names}; {UPDATE}")
    parameters = _LATER | parameters
    check_names("field of header.parameters", parameters, NAMES)
    one_of(None).check("header.parameters.save_folder", parameters["save_folder"])
    one_of(None, _DEFAULT).check("header.parameters.step_size", parameters["step_size"])
    return settings_from_plain(parameters)


def _fields(has_posteriors: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "parameters": TABLE,
        "ids": dict.fromkeys(_SIDES, STRING),
        "nusers": whole(1),
        "nitems": whole(1),
        "niter": whole(1),
        "train_llk": one_of(None, real()),
        "random_seed_": whole(0),
        "backend_": one_of(*backends.NAMES),
        "history": one_of(_COLUMNS, [*_COLUMNS, "diff_norm"]),
    }
    if has_posteriors:
        number = real(MIN_PRIOR, MAX_PRIOR)
        prior = dict.fromkeys(PRIOR[:3], number) | {"hierarchical": FLAG, "fixed": FLAG}
        fields |= {"priors": dict.fromkeys(_SIDES, prior), "biases_wait": FLAG}
    return fields


def _posteriors(
    header: Mapping[str, Any], settings: Settings, tensors: Tensors
) -> tuple[Posterior, Posterior]:
    return decode_posteriors(header["priors"], settings, tensors, biases_wait=header["biases_wait"])


def _check_priors(header: Mapping[str, Any], settings: Settings) -> None:
    if "priors" not in header:
        return
    user, item = (header["priors"][side] for side in _SIDES)
    if user["fixed"] and item["fixed"]:
        raise ValueError(
            "header.priors.user.fixed and header.priors.item.fixed are true, so nothing was fitted"
        )
    if user["hierarchical"] is not item["hierarchical"]:
        raise ValueError("header.priors.user.hierarchical is not header.priors.item.hierarchical")
    # Biases are pinned during the first batches of partial_fit.
    may_wait = settings.bias and not (user["fixed"] or item["fixed"]) and header["niter"] < WARM_UP
    if header["biases_wait"] and not (may_wait and header["train_llk"] is None):
        raise ValueError("header.biases_wait is true, but this model has no biases to be pinned")


def posterior_arrays(
    side: str, rows: str, number: str, *, fixed: Any, full_rates: bool = False
) -> dict[str, Array]:
    """The arrays of one side; ``rows`` is the letter of its size in shapes."""
    # For a fixed side all arrays except the shapes are constant, see sides.fixed_side.
    constants = ((0.0, 0.0), (POINT_MASS_RATE, POINT_MASS_RATE), (1.0, 1.0))
    rate, columns, hyper_rate = constants if fixed is True else _FREE_RATES
    rates = {
        f"{side}.rate_rows": Array("float64", (rows,), *rate),
        f"{side}.rate_columns": Array("float64", ("K",), *columns),
    }
    if full_rates:
        rates = {f"{side}.rates": Array(number, (rows, "K"), POSITIVE)}
    return rates | {
        f"{side}.shape": Array(number, (rows, "K"), POSITIVE),
        f"{side}.hyper_rate": Array("float64", (rows,), *hyper_rate),
        f"{side}.column_sums": Array("float64", ("K",), 0.0),
    }


def weight_arrays(number: str, width: int) -> dict[str, Array]:
    """The arrays of the neighbours and their weights during a fit."""
    return {
        "weights.sources": Array("int32", ("M", width), -1),
        "weights.shape": Array(number, ("M", width), POSITIVE),
    }


def history_arrays(unknown: Mapping[str, str]) -> dict[str, Array]:
    """The columns of a history, of equal length; ``unknown`` says for each whether it may be NaN."""
    columns = {name: Array("float64", ("checks",), unknown=when) for name, when in unknown.items()}
    columns["iteration"] = Array("int64", ("checks",), 1, rises="always")
    columns["seconds"] = Array("float64", ("checks",), 0.0, rises="never falls")
    if "diff_norm" in columns:
        columns["diff_norm"] = Array("float64", ("checks",), 0.0, unknown=unknown["diff_norm"])
    return {f"history.{name}": column for name, column in columns.items()}


def _layout(header: Mapping[str, Any], settings: Settings, tensors: Tensors) -> dict[str, Array]:
    number = settings.dtype.name
    layout = {"Theta": Array(number, ("N", "K"), 0.0), "Beta": Array(number, ("M", "K"), 0.0)}
    for side, rows in zip(_SIDES, "NM", strict=True):
        ids = _ids_array(f"{side}.ids", header["ids"][side], rows)
        layout |= {} if ids is None else {f"{side}.ids": ids}
        if "priors" in header:  # rates are full if rows were folded in
            fixed, full = header["priors"][side]["fixed"], f"{side}.rates" in tensors
            layout |= posterior_arrays(side, rows, number, fixed=fixed, full_rates=full and not fixed)
    if settings.neighbours or {"seen.indptr", "seen.indices"} & tensors.keys():
        layout["seen.indptr"] = Array(_INDICES, ("N + 1",), 0)
        layout["seen.indices"] = Array(_INDICES, ("seen",), 0)
    if settings.neighbours:
        layout |= weight_arrays(number, settings.neighbours)
        layout["weights.users_with"] = Array("float64", ("M",), 0.0)
    unknown = {name: "maybe" if name in _MAYBE_UNKNOWN else "never" for name in header["history"]}
    return layout | history_arrays(unknown)


def _ids_array(name: str, encoding: str, rows: str) -> Array | None:
    if encoding == "rows":
        return None
    if encoding == "json":
        return Array("uint8", (f"bytes of {name}",))
    if encoding == "array":
        return Array(_NUMBERS, (rows,), -math.inf, math.inf, unknown="maybe")
    if _DATES.fullmatch(encoding):
        return Array("int64", (rows,), np.iinfo(np.int64).min + 1)  # the smallest is NaT
    raise ValueError(
        f"header.ids of {name} is {short(encoding)}, not 'rows', 'array', 'json' or a datetime64 dtype"
    )


def _check_seen(indptr: NDArray[Any], indices: NDArray[Any], items: int) -> None:
    """Raise ValueError unless the items of each user are in range and ascending."""
    if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"seen.indptr does not rise from 0 to the {len(indices)} of seen.indices")
    if len(indices) and indices.max() >= items:
        raise ValueError(f"seen.indices has {indices.max()}, and there are {items} items")
    rises = np.empty(len(indices) + 1, dtype=bool)
    np.greater(indices[1:], indices[:-1], out=rises[1:-1])
    rises[indptr] = True
    if not rises.all():
        place = int(np.argmin(rises))
        raise ValueError(
            f"seen.indices[{place}] is {indices[place]}, not above the previous item of this user"
        )


def check_sources(sources: NDArray[Any]) -> None:
    """Raise ValueError unless the neighbours (M, L) are items, ascending, with −1 behind the last."""
    real = sources >= 0
    bad = (sources >= len(sources)) | (sources == np.arange(len(sources))[:, None])
    bad[:, 1:] |= real[:, 1:] & (sources[:, 1:] <= sources[:, :-1])
    bad[:, 1:] |= real[:, 1:] & ~real[:, :-1]
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"weights.sources[{row}, {column}] is {sources[row, column]}: neighbours are other items in "
            "ascending order"
        )


def _check_mean(name: str, mean: NDArray[Any], posterior: Posterior) -> None:
    """Raise ValueError unless the mean and its sums match the posterior, with room for rounding."""
    tiny, sums = np.finfo(mean.dtype).tiny, np.zeros(mean.shape[1])
    for start in range(0, len(mean), _BLOCK):
        rows = slice(start, start + _BLOCK)
        want = posterior.shape[rows] / posterior.rows(rows).exact_rate
        sums += want.sum(axis=0)
        off = np.abs(mean[rows] - want)
        want *= _ROUNDING
        want += tiny
        far = off > want
        if far.any():
            row, column = np.argwhere(far)[0]
            at, value = f"{name}[{start + row}, {column}]", mean[start + row, column]
            raise ValueError(f"{at} is {value}, {off[row, column]:.3g} from the mean of its posterior")
    if (np.abs(posterior.column_sums - sums) > _ROUNDING * sums + len(mean) * tiny).any():
        raise ValueError(f"the column_sums of {name} are {posterior.column_sums}, not {sums}")


def _check_history(header: Mapping[str, Any], tensors: Tensors) -> None:
    iterations, llk, elbo = (tensors[f"history.{name}"] for name in ("iteration", "llk", "elbo"))
    last = header["train_llk"]
    if len(iterations) and iterations[-1] > header["niter"]:
        raise ValueError(
            f"history.iteration ends with {iterations[-1]}, and header.niter is {header['niter']}"
        )
    if last is not None and (len(llk) == 0 or last != llk[-1]):
        raise ValueError(f"header.train_llk is {last!r}, not the last value of history.llk")
    if len(elbo) and math.isnan(elbo[-1]):
        raise ValueError("history.elbo ends with nan, and the last check of a fit has an ELBO")


# -- reading -----------------------------------------------------------------------------------


def load_model(path: str | bytes | os.PathLike[str], *, mapped: bool = False) -> tuple[Settings, Fitted]:
    """Read the settings and the fitted model from a file that :func:`save_model` wrote.

    Raises
    ------
    ModelFileError
        If the file is damaged, not a model, or written by a newer version.  Everything is checked before use,
        of ``mapped`` arrays only dtypes and shapes.
    OSError
        If the file cannot be read.
    """
    source = path_of("path", path)
    header, tensors = MODEL.read(source, mapped=mapped)
    with believed(source):
        return decode_model(header, tensors, mapped=mapped)


def decode_model(
    header: Mapping[str, Any], tensors: Tensors, *, mapped: bool = False
) -> tuple[Settings, Fitted]:
    """The inverse of :func:`encode_model`; ValueError or TypeError if anything is inconsistent."""
    settings = check_model(header, tensors, mapped=mapped)
    return settings, _fitted(header, settings, tensors, mapped=mapped)


def _fitted(header: Mapping[str, Any], settings: Settings, tensors: Tensors, *, mapped: bool) -> Fitted:
    theta, beta = tensors["Theta"], tensors["Beta"]
    users, items = (
        _decoded(header["ids"][side], tensors.get(f"{side}.ids"), size, side, mapped=mapped)
        for side, size in zip(_SIDES, (len(theta), len(beta)), strict=True)
    )
    columns = {name: tensors[f"history.{name}"] for name in header["history"]}
    return Fitted(
        theta=theta,
        beta=beta,
        user_ids=users,
        item_ids=items,
        posteriors=_posteriors(header, settings, tensors) if "priors" in header else None,
        seen=(tensors["seen.indptr"], tensors["seen.indices"]) if "seen.indptr" in tensors else None,
        neighbours=None
        if not settings.neighbours
        else Neighbours(settings.weight_prior, *(tensors[f"weights.{name}"] for name in _WEIGHTS)),
        history=pd.DataFrame(columns, columns=header["history"]),
        library=header.get("library"),
        **{field: header[name] for name, field in _SCALARS.items()},
    )
