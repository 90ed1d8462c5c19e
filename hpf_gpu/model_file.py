"""A fitted model in one file: arrays as safetensors, all else as JSON in the file's metadata.

``Theta``, ``Beta``; ``user.*`` and ``item.*``: ids, and the shapes and rates if they were kept;
``seen.*``: the items that each user has had; ``history.*``: a column each.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .ids import Ids
from .parameters import default_step_size
from .tensor_file import UPDATE, Kind, ModelFileError, Tensors
from .variational import Posterior, Prior
from .whole_file import path_of

MODEL = Kind("model", key="hpf_gpu", format=1)
_DEFAULT = "default"  # stands for the function default_step_size
_SIDES = ("user", "item")
_ARRAYS = tuple(field.name for field in fields(Posterior) if field.name != "prior")
_SCALARS = ("nusers", "nitems", "niter", "train_llk", "random_seed_", "backend_")
_NUMBERS = {
    np.dtype(name) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}


# -- writing -----------------------------------------------------------------------------------


def save_model(path: str | bytes | os.PathLike[str], model: Any, parameters: Mapping[str, Any]) -> None:
    """Write a fitted HPF; a file that is there is replaced when the new one is complete.

    A link stays and what it points to is replaced.  The new file has the permissions of the old one.

    Raises
    ------
    TypeError
        If ids are of a type that a file cannot hold.
    OSError
        If the file cannot be written.  A folder, a pipe and a device cannot be replaced as a whole.
    """
    target = path_of("path", path)
    tensors: Tensors = {"Theta": model.Theta, "Beta": model.Beta}
    header: dict[str, Any] = {name: getattr(model, name) for name in _SCALARS}
    header |= {"parameters": plain_parameters(parameters), "ids": {}}
    for side, ids in zip(_SIDES, (model._user_ids, model._item_ids), strict=True):
        encoding, array = _encoded(ids)
        header["ids"][side] = encoding
        if array is not None:
            tensors[f"{side}.ids"] = array
    if model._posteriors is not None:
        header["priors"] = encode_posteriors(model._posteriors, tensors)
    if model._seen is not None:
        tensors["seen.indptr"], tensors["seen.indices"] = model._seen
    tensors |= {f"history.{name}": column.to_numpy() for name, column in model.history_.items()}
    header["history"] = list(model.history_.columns)
    MODEL.write(target, header, tensors)


def encode_posteriors(posteriors: tuple[Posterior, Posterior], tensors: Tensors) -> dict[str, Any]:
    """Put both sides among ``tensors``; returns their priors, for the header."""
    for side, posterior in zip(_SIDES, posteriors, strict=True):
        tensors.update({f"{side}.{name}": getattr(posterior, name) for name in _ARRAYS})
    return {side: asdict(posterior.prior) for side, posterior in zip(_SIDES, posteriors, strict=True)}


def decode_posteriors(priors: Mapping[str, Any], tensors: Tensors) -> tuple[Posterior, Posterior]:
    """Both sides, as :func:`encode_posteriors` has put them there."""
    users, items = (
        Posterior(Prior(**priors[side]), *(tensors[f"{side}.{name}"] for name in _ARRAYS)) for side in _SIDES
    )
    return users, items


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as JSON has them, but for ``save_folder``: truth values, numbers, texts and None."""
    plain: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "step_size":
            plain[name] = _DEFAULT if value is default_step_size else None
        elif value is None or isinstance(value, str):
            plain[name] = value
        elif isinstance(value, (bool, np.bool_)):
            plain[name] = bool(value)
        elif name != "save_folder":
            plain[name] = int(value) if isinstance(value, numbers.Integral) else float(value)
    return plain | {"save_folder": None}


# -- ids ---------------------------------------------------------------------------------------


def _encoded(ids: Ids) -> tuple[str, NDArray[Any] | None]:
    """How ids are written: as they are, dates as integers, objects as a JSON text in UTF-8."""
    values = ids.values
    if values is None:
        return "rows", None
    if values.dtype.newbyteorder("=") in _NUMBERS:
        return "array", values
    if values.dtype.kind in "mM":
        return values.dtype.str, values.view(np.int64)
    # Unescaped, because JSON makes one character of two escaped surrogates.
    text = json.dumps([_plain_id(value, ids.kind) for value in values.tolist()], ensure_ascii=False)
    return "json", np.frombuffer(text.encode(errors="surrogatepass"), dtype=np.uint8)


def _decoded(encoding: str, array: NDArray[Any] | None, size: int, kind: str) -> Ids:
    if array is None:
        return Ids(None, size, kind)
    if encoding == "json":
        values = np.empty(size, dtype=object)
        values[:] = [_id_of(value) for value in json.loads(array.tobytes().decode(errors="surrogatepass"))]
        return Ids(values, size, kind)
    return Ids(array if encoding == "array" else array.view(encoding), size, kind)


def _plain_id(value: Any, kind: str) -> Any:
    if isinstance(value, (np.bool_, np.integer, np.floating, np.str_, np.bytes_)):
        value = value.item()
    if type(value) in (str, int, float, bool):
        return value
    if type(value) is bytes:
        return {"bytes": value.decode("latin-1")}
    if type(value) is tuple:
        return {"tuple": [_plain_id(part, kind) for part in value]}
    raise TypeError(
        f"{kind} id {value!r} is a {type(value).__name__}: a model file can hold numbers, texts, bytes, "
        "NumPy's dates and tuples of these; pickle the model, or fit with texts as ids"
    )


def _id_of(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return value["bytes"].encode("latin-1")
    return tuple(_id_of(part) for part in value["tuple"])


# -- reading -----------------------------------------------------------------------------------


def load_model(
    path: str | bytes | os.PathLike[str], known: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters, which must be ``known``, and fitted state of a model that :func:`save_model` wrote."""
    source = path_of("path", path)
    header, tensors = MODEL.read(source)
    try:
        parameters = header["parameters"]
        unknown = parameters.keys() - set(known)
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ModelFileError(
                f"{source} has parameters that this version does not know: {names}; {UPDATE}"
            )
        if parameters["step_size"] == _DEFAULT:
            parameters["step_size"] = default_step_size
        return parameters, _state(header, tensors)
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{source} contradicts itself: {error!r}") from error


def _state(header: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    theta, beta = tensors["Theta"], tensors["Beta"]
    state: dict[str, Any] = {name: header[name] for name in _SCALARS}
    state |= {"Theta": theta, "Beta": beta, "is_fitted": True}
    for side, size in zip(_SIDES, (len(theta), len(beta)), strict=True):
        ids = _decoded(header["ids"][side], tensors.get(f"{side}.ids"), size, side)
        if ids.values is not None and len(ids.values) != size:
            raise ValueError(f"{len(ids.values)} {side} ids for {size} rows")
        state[f"_{side}_ids"] = ids
    state["_posteriors"] = None
    if "priors" in header:
        state["_posteriors"] = decode_posteriors(header["priors"], tensors)
    state["_seen"] = None
    if "seen.indptr" in tensors:
        state["_seen"] = (tensors["seen.indptr"], tensors["seen.indices"])
    columns = {name: tensors[f"history.{name}"] for name in header["history"]}
    return state | {"history_": pd.DataFrame(columns, columns=header["history"])}
