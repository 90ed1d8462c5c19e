"""The backends by name.  Importing this package loads none of them."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from hpf_gpu.user_warnings import warn

from .cuda_source import MOST_FACTORS
from .protocol import Backend, BackendUnavailable

#: Every backend, the fastest first: the order in which ``"auto"`` tries them.
NAMES = ("cuda", "openmp", "numpy")

#: Those that work on arrays in the host's memory, where a fitted model lies.
ON_HOST = ("openmp", "numpy")

#: Factors at most, where that is fewer than memory holds.
_MOST_FACTORS = {"cuda": MOST_FACTORS}

#: Module and class of each.
_HOMES = {
    "cuda": ("cuda_backend", "CudaBackend"),
    "openmp": ("openmp_backend", "OpenMPBackend"),
    "numpy": ("numpy_backend", "NumpyBackend"),
}

_log = logging.getLogger("hpf_gpu")
_announced: set[str] = set()
_loaded: dict[str, Any] = {}  # by name: the class, or the BackendUnavailable that its module raised
_loading = threading.Lock()


def _renew_lock() -> None:
    """A thread that held the lock when the process was forked does not live in the child."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _load(name: str) -> Any:
    """The class of the named backend; BackendUnavailable if its module does not load.

    Python forgets a module that failed and imports it anew at every call, which takes milliseconds, and
    while one thread does so others see the module half-made.  So it is tried once.
    """
    with _loading:
        if name not in _loaded:
            module, attribute = _HOMES[name]
            try:
                _loaded[name] = getattr(import_module(f".{module}", __name__), attribute)
            except BackendUnavailable as error:
                _loaded[name] = error
    outcome = _loaded[name]
    if isinstance(outcome, BackendUnavailable):
        # A copy: an exception that is raised again and again would keep all its tracebacks.
        raise copy.copy(outcome) from outcome.__cause__
    return outcome


def create(name: str, dtype: np.dtype[Any] | type, threads: int | None = None, **options: Any) -> Backend:
    """Make the named backend; raises BackendUnavailable if it cannot work here, ValueError if unknown.

    ``threads=None`` takes every core this process may use.  ``options`` are those of the cuda backend.
    """
    if name not in NAMES:
        raise ValueError(
            f"backend={name!r} is unknown; choose 'auto' or one of {', '.join(map(repr, NAMES))}"
        )
    if options and name != "cuda":
        raise ValueError(f"{', '.join(options)}: options of the cuda backend, which {name!r} does not have")
    settings = {"threads": threads} if name == "openmp" else options
    backend: Backend = _load(name)(np.dtype(dtype), **settings)
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
    """Make the named backend, or for ``"auto"`` the best that works here with ``k`` factors, said once.

    ``among`` limits ``"auto"`` to some names.  Who asks for an option of the cuda backend asks for it.
    """
    if name != "auto" or options:
        return create("cuda" if name == "auto" else name, dtype, threads, **options)
    passed_over = {}
    for candidate in (name for name in among or NAMES if k <= _MOST_FACTORS.get(name, k)):
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
