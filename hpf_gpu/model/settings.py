"""The constructor's parameters: checked when given and again when used, never rewritten."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .convergence import STOP_CRITERIA

_PRIORS = ("a", "a_prime", "b_prime", "c", "c_prime", "d_prime")
LEAST_PRIOR, MOST_PRIOR = 1e-30, 1e30  # what float32 can hold, and the update can square in float64
_MOST_BESIDE_ONES = 1e19
_MOST_WHOLE = 2**63 - 1
_MOST_FACTORS = 2**31 - 1
_OPTIONAL_COUNTS = ("check_every", "users_per_batch", "items_per_batch", "maxiter")
_FLAGS = (
    "use_float",
    "reindex",
    "verbose",
    "allow_inconsistent_math",
    "full_llk",
    "alloc_full_phi",
    "keep_data",
    "produce_dicts",
    "keep_all_objs",
    "sum_exp_trick",
    "hierarchical",
    "binary",
    "bias",
)
SCHEDULES = ("joint", "alternating")
#: What only the cuda backend offers, the default first.
CUDA_OPTIONS = {"precision": ("full", "mixed"), "allocate": ("fused", "cusparse")}


def default_step_size(iteration: int) -> float:
    """Step size 1/√(iteration + 2) of stochastic fits, iterations counted from zero."""
    return 1.0 / math.sqrt(iteration + 2)


def check_parameters(given: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for the first parameter that cannot be used."""
    _check_whole("k", given["k"], 1, _MOST_FACTORS)
    for name in _PRIORS:
        _check_real(name, given[name])
        if not LEAST_PRIOR <= given[name] <= MOST_PRIOR:
            raise ValueError(f"{name}={given[name]!r} must lie between {LEAST_PRIOR:g} and {MOST_PRIOR:g}")
    if given["bias"]:
        _check_rates_beside_ones(given)
    positive_number("stop_thr", given["stop_thr"])
    for name in _OPTIONAL_COUNTS:
        if given[name] is not None:
            _check_whole(name, given[name], 1)
    for name in _FLAGS:
        if not isinstance(given[name], (bool, np.bool_, int)):
            raise TypeError(f"{name} must be True or False, not {given[name]!r}")
    thread_count(given["ncores"])
    if given["random_seed"] is not None:
        _check_whole("random_seed", given["random_seed"], 0)
    check_choice("stop_crit", given["stop_crit"], tuple(STOP_CRITERIA))
    check_choice("schedule", given["schedule"], SCHEDULES)
    if not isinstance(given["backend"], str):
        raise TypeError(f"backend must be a name such as 'auto', not {given['backend']!r}")
    _check_cuda_options(given)
    if given["stop_crit"] == "maxiter" and given["maxiter"] is None:
        raise ValueError("stop_crit='maxiter' needs a number of iterations in maxiter")
    if given["stop_crit"] != "maxiter" and given["check_every"] is None:
        raise ValueError(f"stop_crit={given['stop_crit']!r} needs a number of iterations in check_every")
    _check_step_size(given["step_size"])
    folder = given["save_folder"]
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"save_folder must be a path, not {folder!r}")
    if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
        raise ValueError(f"save_folder={folder!r} is not an existing folder")


def cuda_options(given: Mapping[str, Any]) -> dict[str, str]:
    """Options of the cuda backend that differ from their defaults."""
    return {name: given[name] for name, choices in CUDA_OPTIONS.items() if given[name] != choices[0]}


def _check_cuda_options(given: Mapping[str, Any]) -> None:
    for name, choices in CUDA_OPTIONS.items():
        check_choice(name, given[name], choices)
    options = cuda_options(given)
    for name, value in options.items():
        if given["backend"] not in ("auto", "cuda"):
            raise ValueError(f"{name}={value!r} needs backend='cuda', not {given['backend']!r}")
    if "precision" in options and not given["use_float"]:
        raise ValueError("precision='mixed' keeps factors in half precision and needs use_float=True")
    if len(options) == 2:
        raise ValueError("allocate='cusparse' is in full precision: precision='mixed' needs allocate='fused'")


def _check_rates_beside_ones(given: Mapping[str, Any]) -> None:
    """A rate of q(θ) that is a sum with E[ξ] must not be seen in the column of ones."""
    for shape, hyper_shape, mean in (("a", "a_prime", "b_prime"), ("c", "c_prime", "d_prime")):
        largest = given[mean] * (1 + given["k"] * given[shape] / given[hyper_shape])
        if largest > _MOST_BESIDE_ONES:
            raise ValueError(
                f"bias=True needs {mean}·(1 + k·{shape}/{hyper_shape}) up to {_MOST_BESIDE_ONES:g}, "
                f"not {largest:.3g}"
            )


def thread_count(ncores: Any) -> int | None:
    """``ncores`` as a number of threads; None, for every core, if it is None or below 1."""
    if ncores is None:
        return None
    _check_whole("ncores", ncores, least=None)
    return int(ncores) if ncores >= 1 else None


def seed_or_fresh(random_seed: Any) -> int:
    """The seed that was given, or one that nobody has given."""
    return int(np.random.default_rng().integers(1, 2**31)) if random_seed is None else int(random_seed)


def whole_number(name: str, value: Any, least: int) -> int:
    """``value`` as int; 10.0 and numpy.int64(10) count as whole, True and 10.5 do not."""
    _check_whole(name, value, least)
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """``value`` as float, which must be above zero and finite."""
    _check_real(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be above zero and finite")
    return float(value)


def _is_real(value: Any) -> bool:
    """Whether ``value`` is a real number; numpy's are, truth values are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _check_real(name: str, value: Any) -> None:
    if not _is_real(value):
        raise TypeError(f"{name} must be a number, not {value!r}")


def _check_whole(name: str, value: Any, least: int | None, most: int = _MOST_WHOLE) -> None:
    if not _is_real(value):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not isinstance(value, numbers.Integral) and not float(value).is_integer():
        raise ValueError(f"{name}={value!r} must be a whole number")
    if least is not None and value < least:
        raise ValueError(f"{name}={value!r} must be at least {least}")
    if value > most:
        raise ValueError(f"{name}={value!r} must be at most {most}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError unless ``value`` is one of the names."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a name such as {choices[0]!r}, not {value!r}")
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}")


def _check_step_size(step_size: Any) -> None:
    if step_size is None:  # users of pickle have always set it to None after a fit
        return
    if not callable(step_size):
        raise TypeError(f"step_size must be a function of the iteration number, not {step_size!r}")
    for iteration in (0, 1):
        step_at(step_size, iteration)


def step_at(step_size: Callable[[int], float] | None, iteration: int) -> float:
    """The step of an iteration, from zero, as a float in [0, 1]; None stands for the default.

    TypeError or ValueError if the function does not give one.
    """
    try:
        step = (step_size or default_step_size)(iteration)
    except TypeError as error:
        raise TypeError(f"step_size must take the iteration number alone: {error}") from error
    return checked_step(f"step_size({iteration})", step)


def checked_step(name: str, step: Any) -> float:
    """``step`` as a float in [0, 1]."""
    if not _is_real(step):
        raise TypeError(f"{name} is {step!r}; steps must be numbers between 0 and 1")
    if not 0 <= step <= 1:
        raise ValueError(f"{name} is {step!r}; steps must lie between 0 and 1")
    return float(step)
