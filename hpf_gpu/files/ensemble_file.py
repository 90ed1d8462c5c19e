"""An ensemble in one file: header and arrays of each member as in a model file, one number before each name.

Ids, and the items of each user, are written once if members have the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hpf_gpu.model.ensemble import Ensemble, Member
from hpf_gpu.model.settings import Settings

from .model_file import decode_model, encode_model
from .schema import FLAG, TABLE, check_fields, check_names, real, short
from .tensor_file import FileFormat, Tensors, believed
from .whole_file import path_of

ENSEMBLE = FileFormat("model ensemble", key="hpf_gpu.ensemble", format=1)
_SHARED = ("user.ids", "item.ids", "seen.indptr", "seen.indices")
_FIELDS = {"model": TABLE, "weight": real(0.0), "transposed": FLAG}


def save_ensemble(
    path: str | bytes | os.PathLike[str], parameters: Sequence[Mapping[str, Any]], ensemble: Ensemble
) -> None:
    """Write an ensemble with the ``parameters`` of its members; errors as for a model."""
    target = path_of("path", path)
    headers: list[dict[str, Any]] = []
    tensors: Tensors = {}
    for number, (values, member) in enumerate(zip(parameters, ensemble.members, strict=True)):
        header, arrays = encode_model(member.fitted, values)
        shared = {}
        for name, array in arrays.items():
            owner = _owner(tensors, number, name, array)
            if owner is None:
                tensors[f"{number}.{name}"] = array
            else:
                shared[name] = owner
        headers.append(
            {"model": header, "weight": member.weight, "transposed": member.transposed, "shared": shared}
        )
    ENSEMBLE.write(target, {"members": headers, "of_logarithms": ensemble.of_logarithms}, tensors)


def _owner(tensors: Tensors, number: int, name: str, array: Any) -> int | None:
    """Number of an earlier member that has the same array; None if none has, or it is one that may differ."""
    if name not in _SHARED:
        return None
    for earlier in range(number):
        other = tensors.get(f"{earlier}.{name}")
        if other is not None and other.dtype == array.dtype and np.array_equal(other, array):
            return earlier
    return None


def load_ensemble(
    path: str | bytes | os.PathLike[str], *, mapped: bool = False
) -> tuple[list[Settings], Ensemble]:
    """Read the settings of the members and the ensemble from a file that :func:`save_ensemble` wrote.

    Raises
    ------
    ModelFileError
        If the file is damaged, not an ensemble, or written by a newer version.  Everything is checked before
        use, of ``mapped`` arrays only dtypes and shapes.
    OSError
        If the file cannot be read.
    """
    source = path_of("path", path)
    header, tensors = ENSEMBLE.read(source, mapped=mapped)
    with believed(source):
        check_names("field of header", header, ("members", "of_logarithms"))
        FLAG.check("header.of_logarithms", header["of_logarithms"])
        if type(header["members"]) is not list or not header["members"]:
            raise ValueError(f"header.members is {short(header['members'])}, not a list of models")
        settings, members = [], []
        for number, one in enumerate(header["members"]):
            of, member = _member(number, one, tensors, mapped=mapped)
            settings.append(of)
            members.append(member)
        _check_ids(members, mapped=mapped)
        return settings, Ensemble(tuple(members), header["of_logarithms"])


def _member(number: int, header: Any, tensors: Tensors, *, mapped: bool) -> tuple[Settings, Member]:
    where = f"header.members[{number}]"
    TABLE.check(where, header)
    fields = {**_FIELDS, "shared": TABLE}
    check_names(f"field of {where}", header, fields)
    check_fields(where, header, fields)
    prefix = f"{number}."
    own = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
    for name, owner in header["shared"].items():
        if name not in _SHARED or f"{owner}.{name}" not in tensors:
            raise ValueError(f"{where}.shared.{name} is {short(owner)}, not a member that has this array")
        own[name] = tensors[f"{owner}.{name}"]
    settings, fitted = decode_model(header["model"], own, mapped=mapped)
    if header["transposed"]:
        users, items = fitted.user_ids, fitted.item_ids
        fitted = replace(fitted, user_ids=users.called("item"), item_ids=items.called("user"))
    return settings, Member(fitted, header["weight"], header["transposed"])


def _check_ids(members: Sequence[Member], *, mapped: bool) -> None:
    """Raise ValueError unless all members have the same users and items; ``mapped`` ids are only counted."""
    first = members[0]
    for number, member in enumerate(members):
        for own, others in ((member.user_ids, first.user_ids), (member.item_ids, first.item_ids)):
            if own.size != others.size or not (mapped or own.equals(others)):
                raise ValueError(f"the {own.kind}s of member {number} are not those of the first")
