"""The backends by name.  Importing this package loads none of them."""

from __future__ import annotations

import copy
import logging
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from hpf_gpu.messages import did_you_mean, warn

from .cuda_layout import bytes_of_fit
from .cuda_source import MAX_FACTORS, Variant
from .protocol import Backend, BackendUnavailable


@dataclass(frozen=True)
class Entry:
    """A backend that can be described without importing it.

    Its module has the class, ``describe_devices()`` for :mod:`hpf_gpu.app.doctor`, and ``advice()``, which
    says what would make it faster on this machine.  The diagnosis module, if any, has ``describe_machine()``,
    which lists what the backend depends on, whether it works or not.
    """

    name: str
    home: tuple[str, str]  # module and class
    on_host: bool  # works on arrays in host memory, where a fitted model is
    options: tuple[str, ...] = ()  # keywords of the class in addition to the dtype
    max_factors: float = math.inf  # largest k
    diagnosis: str | None = None  # module


#: Every backend, the fastest first: the order in which ``"auto"`` tries them.
REGISTRY = {
    entry.name: entry
    for entry in (
        Entry(
            "cuda",
            ("cuda_backend", "CudaBackend"),
            on_host=False,
            options=("precision", "allocate", "device"),
            max_factors=MAX_FACTORS,
            diagnosis="cuda_diagnosis",
        ),
        Entry(
            "openmp",
            ("openmp_backend", "OpenMPBackend"),
            on_host=True,
            options=("threads",),
            diagnosis="openmp_diagnosis",
        ),
        Entry("numpy", ("numpy_backend", "NumpyBackend"), on_host=True),
    )
}
NAMES = tuple(REGISTRY)
ON_HOST = tuple(entry.name for entry in REGISTRY.values() if entry.on_host)

_log = logging.getLogger("hpf_gpu")
_announced: set[str] = set()
_loaded: dict[str, Any] = {}  # by name: the class, or the BackendUnavailable that its module raised
_loading = threading.Lock()


def _renew_lock() -> None:
    """A new lock for a forked child: a thread that held the lock does not exist there."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _load(name: str) -> Any:
    """The class of the named backend; BackendUnavailable if its module cannot be imported.

    The import is tried only once: Python would import a module that failed again at every call, which takes
    milliseconds, and meanwhile other threads would see the module partly initialized.
    """
    with _loading:
        if name not in _loaded:
            module, attribute = REGISTRY[name].home
            try:
                _loaded[name] = getattr(import_module(f".{module}", __name__), attribute)
            except BackendUnavailable as error:
                _loaded[name] = error
    outcome = _loaded[name]
    if isinstance(outcome, BackendUnavailable):
        # A copy, because an exception that is raised repeatedly would keep all its tracebacks.
        raise copy.copy(outcome) from outcome.__cause__
    return outcome


def entry_of(name: str) -> Entry:
    """The backend that is named, with the number of a device or without; ValueError if there is none."""
    family, colon, number = name.partition(":")
    entry = REGISTRY.get(family)
    numbered = entry is not None and "device" in entry.options and number.isascii() and number.isdigit()
    if entry is None or (colon and not numbered):
        close = did_you_mean([family], NAMES) if entry is None else ""
        raise ValueError(
            f"backend={name!r} is unknown; choose 'auto' or one of {', '.join(map(repr, NAMES))}, "
            f"or name a GPU by its number, as in 'cuda:1'{close}"
        )
    return entry


def create(name: str, dtype: np.dtype[Any] | type, threads: int | None = None, **options: Any) -> Backend:
    """Create the named backend.

    Parameters
    ----------
    name : str
        One of ``NAMES``, or the name of a backend for devices with the number of one, as in ``"cuda:1"``.
    dtype : numpy.dtype
        float32 or float64.
    threads : int or None
        Number of threads, for backends that have this option; None means all cores that this process may use.
    **options
        Options of this backend.

    Raises
    ------
    BackendUnavailable
        If the backend cannot work on this machine, or the device does not exist.
    ValueError
        If the name is unknown, or the backend does not have one of the options.
    """
    entry = entry_of(name)
    foreign = [option for option in options if option not in entry.options]
    if foreign:
        homes = [other.name for other in REGISTRY.values() if set(foreign) & set(other.options)]
        owner = f"options of the {homes[0]} backend" if homes else "unknown options"
        raise ValueError(f"{', '.join(foreign)}: {owner}, which {name!r} does not have")
    if "threads" in entry.options:
        options["threads"] = threads
    if name != entry.name:
        options["device"] = int(name.partition(":")[2])
    backend: Backend = _load(entry.name)(np.dtype(dtype), **options)
    return backend


def choose(
    name: str,
    dtype: np.dtype[Any] | type,
    threads: int | None = None,
    *,
    k: int = 1,
    among: Sequence[str] | None = None,
    **options: Any,
) -> Backend:
    """Create the named backend, or for ``"auto"`` the fastest that works on this machine with ``k`` factors.

    ``among`` limits ``"auto"`` to some names.  Passing ``options`` selects the first backend that has them.
    The choice is logged once per process, with a warning about faster backends that are broken.

    Raises
    ------
    BackendUnavailable
        If the named backend, or with ``"auto"`` every backend, cannot work.
    ValueError
        As for :func:`create`.
    """
    if name != "auto":
        return create(name, dtype, threads, **options)
    able = [other for other in among or REGISTRY if set(options) <= set(entry_of(other).options)]
    if options:
        return create(able[0], dtype, threads, **options)
    passed_over = {}
    for candidate in (other for other in able if k <= entry_of(other).max_factors):
        try:
            backend = create(candidate, dtype, threads)
        except BackendUnavailable as error:
            passed_over[candidate] = error
        else:
            _announce(backend, passed_over)
            return backend
    raise BackendUnavailable("; ".join(f"{candidate}: {error}" for candidate, error in passed_over.items()))


def _announce(backend: Backend, passed_over: dict[str, BackendUnavailable]) -> None:
    if backend.name in _announced:
        return
    _announced.add(backend.name)
    _log.info("backend %s: %s", backend.name, backend.describe())
    broken = []
    for name, error in passed_over.items():
        if error.expected:
            _log.info("backend %s is not for this machine: %s", name, error.problem)
        else:
            broken.append(f"{name}: {error}")
    if broken:
        warn(f"backend 'auto' took {backend.name!r}, not {'; '.join(broken)}", RuntimeWarning)


def module_of(name: str) -> Any:
    """The module of a backend; BackendUnavailable if it cannot be imported."""
    _load(name)
    return import_module(f".{REGISTRY[name].home[0]}", __name__)


def describe_machine(name: str) -> list[str]:
    """What the named backend depends on, one item per line, whether it works or not."""
    diagnosis = REGISTRY[name].diagnosis
    if diagnosis is None:
        return []
    lines: list[str] = import_module(f".{diagnosis}", __name__).describe_machine()
    return lines


def bytes_on_gpu(
    shape: tuple[int, int], nnz: int, k: int, dtype: np.dtype[Any] | type, *, streamed: int = 0
) -> int:
    """Memory that a fit takes on a GPU at its peak, by which it is refused if there is less.

    ``streamed`` is not 0 for counts that stay on the host: the bytes in which each of them comes.
    """
    return bytes_of_fit(Variant(k, np.dtype(dtype)), shape, nnz, streamed=streamed)


def row_bytes_on_gpu(k: int, dtype: np.dtype[Any] | type) -> int:
    """Bytes of a row of factors on a GPU."""
    return Variant(k, np.dtype(dtype)).width * np.dtype(dtype).itemsize
