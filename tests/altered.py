"""Files that are wrong in one place and have the right checksum."""

from __future__ import annotations

import copy
import json

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hpf_gpu.files.tensor_file import checksum

#: What a field of a header is replaced by: every type of JSON, and numbers out of any range.
VALUES = (
    None, True, False, 0, -1, 3, 10**30, -(10**30), 0.5, 1e300, float("nan"), float("inf"), "zz", [1],
    {"x": 1},
)  # fmt: skip
DTYPES = ("bool", "int8", "int64", "uint64", "float16", "float32", "float64")


def read(path, key):
    """Header and arrays of a file."""
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()[key]), load_file(path)


def write(path, key, header, tensors):
    """The file of a header, or of a text in its place, and arrays, with the right checksum."""
    text = header if isinstance(header, str) else json.dumps(header)
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={key: text, "crc32": checksum(text, tensors)})


def same(one, other):
    return type(one) is type(other) and one == other


def paths(table, above=()):
    """Of every field of a header, tables within it included."""
    for name, value in table.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from paths(value, (*above, name))


def headers(header):
    """Path, value and header with this value there: each field left out, each replaced, one too many."""
    tables = [(), *(path for path in paths(header) if isinstance(at(header, path), dict))]
    for path in paths(header):
        for value in ("left out", *VALUES):
            if not same(value, at(header, path)):
                yield path, value, put(header, path, value)
    for path in tables:
        yield (*path, "unknown"), 1, put(header, (*path, "unknown"), 1)


def at(header, path):
    for name in path:
        header = header[name]
    return header


def put(header, path, value):
    changed = copy.deepcopy(header)
    table = at(changed, path[:-1])
    if value == "left out":
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return changed


def arrays(tensors):
    """What was done, and all arrays with one of them altered, left out, or beside one too many."""
    yield ("unknown", "added"), tensors | {"unknown": np.ones(3)}
    for name, array in tensors.items():
        yield (name, "left out"), {other: value for other, value in tensors.items() if other != name}
        for change, altered in changes(array):
            if altered.dtype != array.dtype or not np.array_equal(
                altered, array, equal_nan=array.dtype.kind == "f"
            ):
                yield (name, change), tensors | {name: altered}


def described(array):
    return array.dtype, array.shape, array.tobytes()


def changes(array):
    for dtype in DTYPES:
        if dtype != array.dtype.name:
            with np.errstate(all="ignore"):
                yield dtype, array.astype(dtype)
    yield "flat", array.reshape(-1)[None, None, :]
    yield "one axis more", array[..., None]
    yield "no axis", np.array(1, dtype=array.dtype)
    for axis in range(array.ndim):
        if array.shape[axis]:
            yield f"longer along {axis}", np.concatenate([array, array.take([-1], axis)], axis)
            yield f"shorter along {axis}", array.take(range(array.shape[axis] - 1), axis)
            yield f"empty along {axis}", array.take([], axis)
    if array.size == 0:
        return
    numbers = {"negative": -1, "huge": 10**8, "least": np.iinfo("i8").min, "largest": np.iinfo("i8").max}
    if array.dtype.kind == "f":
        numbers = {"negative": -1.0, "zero": 0.0, "NaN": np.nan, "infinite": np.inf}
        numbers |= {"minus infinite": -np.inf}
    for place in sorted({0, array.size - 1}):
        for what, number in numbers.items():
            changed = array.copy()
            with np.errstate(all="ignore"):
                changed.reshape(-1)[place] = np.array(number).astype(array.dtype)
            yield f"{what} at {place}", changed
    if array.size > 1 and array.ndim == 1:
        yield "backwards", array[::-1]
        yield "all the same", np.full_like(array, array[0])
