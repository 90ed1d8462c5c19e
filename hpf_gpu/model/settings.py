"""The parameters of a model: one table of names, types, ranges and defaults, and their checks."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from hpf_gpu.backends import REGISTRY, entry_of
from hpf_gpu.data.triplets import TRANSFORMS, Columns
from hpf_gpu.messages import did_you_mean

from .convergence import STOP_CRITERIA
from .neighbours import WeightPrior
from .priors import Prior, unit

MIN_PRIOR, MAX_PRIOR = 1e-30, 1e30  # what float32 can hold, and the update can square in float64
_MAX_RATE_BESIDE_ONES = 1e19
_MAX_WHOLE = 2**63 - 1
_MAX_FACTORS = 2**31 - 1
_MAX_NEIGHBOURS = 1024  # what a block of a GPU has shared memory for


def default_step_size(iteration: int) -> float:
    """Step size 1/√(iteration + 2) of stochastic fits, iterations counted from zero."""
    return 1.0 / math.sqrt(iteration + 2)


# -- kinds of settings ---------------------------------------------------------------------------


class Kind(Protocol):
    """The values that a setting accepts."""

    def checked(self, name: str, value: Any) -> Any:
        """The value, converted to its type; TypeError or ValueError if it is not accepted."""

    def describe(self) -> str:
        """What is taken, for documentation."""


@dataclass(frozen=True)
class Whole:
    """An integer; 10.0 and numpy.int64(10) are accepted, True and 10.5 are not."""

    least: int | None = None
    most: int = _MAX_WHOLE
    optional: bool = False

    def checked(self, name: str, value: Any) -> int | None:
        """The value as int."""
        if value is None and self.optional:
            return None
        if not _is_real(value):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if not isinstance(value, numbers.Integral) and not float(value).is_integer():
            raise ValueError(f"{name}={value!r} must be an integer")
        if self.least is not None and value < self.least:
            raise ValueError(f"{name}={value!r} must be at least {self.least}")
        if value > self.most:
            raise ValueError(f"{name}={value!r} must be at most {self.most}")
        return int(value)

    def describe(self) -> str:
        """What is taken, for documentation."""
        least = "" if self.least is None else f" from {self.least}"
        most = "" if self.most == _MAX_WHOLE else f" to {self.most}"
        return f"integer{least}{most}{' or None' * self.optional}"


@dataclass(frozen=True)
class Real:
    """A positive finite number, within bounds if there are any."""

    least: float = 0.0
    most: float = math.inf

    def checked(self, name: str, value: Any) -> float:
        """The value as float."""
        if not _is_real(value):
            raise TypeError(f"{name} must be a number, not {value!r}")
        if self.least > 0 and not self.least <= value <= self.most:
            raise ValueError(f"{name}={value!r} must lie between {self.least:g} and {self.most:g}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} must be above zero and finite")
        return float(value)

    def describe(self) -> str:
        """What is taken, for documentation."""
        return f"number from {self.least:g} to {self.most:g}" if self.least > 0 else "number above zero"


@dataclass(frozen=True)
class Flag:
    """True or False; integers are accepted too."""

    def checked(self, name: str, value: Any) -> bool:
        """The value as bool."""
        if not isinstance(value, (bool, np.bool_, int)):
            raise TypeError(f"{name} must be True or False, not {value!r}")
        return bool(value)

    def describe(self) -> str:
        """What is taken, for documentation."""
        return "True or False"


@dataclass(frozen=True)
class Choice:
    """One of a set of names."""

    names: tuple[str, ...]

    def checked(self, name: str, value: Any) -> str:
        """The value."""
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a name such as {self.names[0]!r}, not {value!r}")
        if value not in self.names:
            known, close = ", ".join(map(repr, self.names)), did_you_mean([value], self.names)
            raise ValueError(f"{name}={value!r} is unknown; choose one of {known}{close}")
        return str(value)

    def describe(self) -> str:
        """What is taken, for documentation."""
        return ", ".join(map(repr, self.names))


@dataclass(frozen=True)
class BackendName:
    """The name of a backend, which is checked when the backend is created."""

    def checked(self, name: str, value: Any) -> str:
        """The value."""
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a name such as 'auto', not {value!r}")
        return str(value)

    def describe(self) -> str:
        """What is taken, for documentation."""
        return f"{', '.join(map(repr, ('auto', *REGISTRY)))}, 'cuda:N' for GPU number N"


@dataclass(frozen=True)
class ColumnName:
    """What a column of a table is called: a string, or a number as in frames without a header."""

    optional: bool = False

    def checked(self, name: str, value: Any) -> str | int | None:
        """The value."""
        if value is None and self.optional:
            return None
        if isinstance(value, str):
            return str(value)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
            or_none = ", or None if every row is one" if self.optional else ""
            raise TypeError(f"{name} must be the name of a column{or_none}, not {value!r}")
        return int(value)

    def describe(self) -> str:
        """What is taken, for documentation."""
        return f"name of a column, a string or an integer{', or None' * self.optional}"


@dataclass(frozen=True)
class StepSize:
    """A function from an iteration number to a step in [0, 1], or None for the default."""

    def checked(self, name: str, value: Any) -> Any:
        """The value."""
        if value is None:  # hpfrec's users set it to None before pickling
            return None
        if not callable(value):
            raise TypeError(f"{name} must be a function of the iteration number, not {value!r}")
        for iteration in (0, 1):
            step_at(value, iteration)
        return value

    def describe(self) -> str:
        """What is taken, for documentation."""
        return "function of the iteration number, or None"


@dataclass(frozen=True)
class Folder:
    """A path, or None."""

    def checked(self, name: str, value: Any) -> Any:
        """The value."""
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise TypeError(f"{name} must be a path, not {value!r}")
        return value

    def describe(self) -> str:
        """What is taken, for documentation."""
        return "folder that exists, or None"


# -- the table -----------------------------------------------------------------------------------


def _setting(default: Any, kind: Kind, *, resume: bool = False) -> Any:
    """A row of the table; ``resume`` if a checkpoint may be resumed with a different value."""
    return field(default=default, metadata={"kind": kind, "resume": resume})


_PRIOR = Real(MIN_PRIOR, MAX_PRIOR)
_COUNT = Whole(1, optional=True)


@dataclass(frozen=True)
class Settings:
    """The checked parameters of :class:`hpf_gpu.HPF`, whose docstring describes them.

    Names, order and defaults are those of its constructor.  Create with :meth:`of`, which checks the values.
    """

    k: int = _setting(30, Whole(0, _MAX_FACTORS))
    a: float = _setting(0.3, _PRIOR)
    a_prime: float = _setting(0.3, _PRIOR)
    b_prime: float = _setting(1.0, _PRIOR)
    c: float = _setting(0.3, _PRIOR)
    c_prime: float = _setting(0.3, _PRIOR)
    d_prime: float = _setting(1.0, _PRIOR)
    ncores: int | None = _setting(-1, Whole(optional=True), resume=True)
    stop_crit: str = _setting("train-llk", Choice(tuple(STOP_CRITERIA)))
    check_every: int | None = _setting(10, _COUNT)
    stop_thr: float = _setting(1e-3, Real())
    users_per_batch: int | None = _setting(None, _COUNT)
    items_per_batch: int | None = _setting(None, _COUNT)
    step_size: Callable[[int], float] | None = _setting(default_step_size, StepSize())
    maxiter: int | None = _setting(100, _COUNT, resume=True)
    use_float: bool = _setting(True, Flag())
    reindex: bool = _setting(True, Flag(), resume=True)
    verbose: bool = _setting(True, Flag(), resume=True)
    random_seed: int | None = _setting(None, Whole(0, optional=True))
    allow_inconsistent_math: bool = _setting(False, Flag(), resume=True)
    full_llk: bool = _setting(False, Flag())
    alloc_full_phi: bool = _setting(False, Flag(), resume=True)
    keep_data: bool = _setting(True, Flag(), resume=True)
    save_folder: str | os.PathLike[str] | None = _setting(None, Folder(), resume=True)
    produce_dicts: bool = _setting(True, Flag(), resume=True)
    keep_all_objs: bool = _setting(True, Flag(), resume=True)
    sum_exp_trick: bool = _setting(False, Flag())
    backend: str = _setting("auto", BackendName(), resume=True)
    schedule: str = _setting("joint", Choice(("joint", "alternating", "accelerated")))
    precision: str = _setting("full", Choice(("full", "mixed")))
    allocate: str = _setting("fused", Choice(("fused", "cusparse")))
    hierarchical: bool = _setting(True, Flag())
    counts: str = _setting("raw", Choice(tuple(TRANSFORMS)))
    bias: bool = _setting(False, Flag())
    patience: int | None = _setting(None, _COUNT)
    compute_elbo: bool = _setting(False, Flag(), resume=True)
    neighbours: int = _setting(0, Whole(0, _MAX_NEIGHBOURS))
    w_shape: float = _setting(0.3, _PRIOR)
    w_rate: float = _setting(10.0, _PRIOR)
    temperature: float = _setting(1.25, Real(1.0, 10.0))
    init: str = _setting("hpfrec", Choice(("hpfrec", "svd")))
    user: str | int = _setting("UserId", ColumnName(), resume=True)
    item: str | int = _setting("ItemId", ColumnName(), resume=True)
    count: str | int | None = _setting("Count", ColumnName(optional=True), resume=True)

    @staticmethod
    def of(values: Mapping[str, Any]) -> Settings:
        """The settings with these values; TypeError or ValueError for the first that is not accepted."""
        given = tuple(values[name] for name in NAMES)
        try:
            hash(given)
        except TypeError:  # one of the values is a list or the like
            return _checked.__wrapped__(*given)
        return _checked(*given)

    @property
    def width(self) -> int:
        """Number of columns of Theta and Beta, including those of biases; with k=0 one for base rates."""
        return max(self.k + 2 * self.bias, 1)

    @property
    def bias_columns(self) -> tuple[int, int] | None:
        """Columns of the user biases and of the item biases, where the other side has ones; None without."""
        return (self.k, self.k + 1) if self.bias else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the factors."""
        return np.dtype(np.float32 if self.use_float else np.float64)

    @property
    def columns(self) -> Columns:
        """The columns of tables of counts."""
        return Columns(self.user, self.item, self.count)

    @property
    def threads(self) -> int | None:
        """Number of threads; None for all cores."""
        return thread_count(self.ncores)

    @property
    def is_stochastic(self) -> bool:
        """Whether a fit is stochastic (in batches)."""
        return self.users_per_batch is not None or self.items_per_batch is not None

    @property
    def backend_options(self) -> dict[str, str]:
        """Options of a backend that differ from their defaults."""
        values = {name: getattr(self, name) for name in _BACKEND_OPTIONS}
        return {name: value for name, value in values.items() if value != _DEFAULTS[name]}

    @property
    def weight_prior(self) -> WeightPrior:
        """Prior of the weights of neighbours."""
        return WeightPrior(self.w_shape, self.w_rate, self.temperature)

    def priors(self, *, biases_wait: bool = False) -> tuple[Prior, Prior]:
        """Priors of users and of items; with ``biases_wait`` their biases, if any, are pinned near zero."""
        temperature = self.temperature if self.neighbours else 1.0
        users = Prior(self.a, self.a_prime, self.b_prime, self.hierarchical, temperature=temperature)
        items = Prior(self.c, self.c_prime, self.d_prime, self.hierarchical, temperature=temperature)
        if self.k == 0:
            return replace(users, pins=(unit(0),)), items
        if self.bias_columns is None:
            return users, items
        of_users, of_items = self.bias_columns
        users, items = replace(users, pins=(unit(of_items),)), replace(items, pins=(unit(of_users),))
        if biases_wait:
            return users.with_waiting_biases(of_users), items.with_waiting_biases(of_items)
        return users, items

    def _check_together(self) -> None:
        """Raise ValueError for values that contradict each other."""
        if self.bias or self.k == 0:
            self._check_rates_beside_ones()
        self._check_backend_options()
        self._check_neighbours()
        if len({self.user, self.item, self.count}) < 3:
            raise ValueError(
                f"user={self.user!r}, item={self.item!r} and count={self.count!r} must be different columns"
            )
        if self.schedule == "accelerated":
            self._check_accelerated()
        if self.stop_crit == "maxiter" and self.maxiter is None:
            raise ValueError("stop_crit='maxiter' needs a number of iterations: maxiter is None")
        if self.stop_crit == "maxiter" and self.patience is not None:
            raise ValueError(
                f"patience={self.patience} needs a quantity to watch: set stop_crit to another rule than "
                "'maxiter', for example 'train-llk'"
            )
        if self.stop_crit != "maxiter" and self.check_every is None:
            raise ValueError(
                f"stop_crit={self.stop_crit!r} needs a number of iterations: check_every is None"
            )

    def _check_accelerated(self) -> None:
        """Raise ValueError for what has no E[ln θ] to extrapolate, or not precisely enough."""
        for name in ("users_per_batch", "items_per_batch"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"schedule='accelerated' is for fits without batches: leave out {name}, "
                    "or use schedule='joint'"
                )
        if self.sum_exp_trick:
            raise ValueError(
                "sum_exp_trick=True computes φ from shapes and rates, which schedule='accelerated' does not "
                "extrapolate: leave one of them out"
            )
        if self.precision == "mixed":
            raise ValueError(
                "precision='mixed' keeps too few digits for the differences that schedule='accelerated' "
                "takes: leave one of them out"
            )

    def _check_neighbours(self) -> None:
        if self.k == 0 and not self.neighbours:
            raise ValueError("k=0 leaves the factors out: set neighbours, for example to 200, or a larger k")
        if self.k == 0 and self.bias:
            raise ValueError("k=0 has a base rate for each item in place of biases: set bias=False")
        if self.k == 0 and self.init == "svd":
            raise ValueError("init='svd' is for factors, which k=0 leaves out: use init='hpfrec'")
        if self.k == 0 and self.stop_crit == "diff-norm":
            raise ValueError("stop_crit='diff-norm' monitors Theta, which k=0 keeps constant")
        if not self.neighbours:
            return
        if not self.keep_data:
            raise ValueError("neighbours needs the items of each user for predictions: set keep_data=True")
        if self.items_per_batch is not None:
            raise ValueError(
                f"items_per_batch={self.items_per_batch} has no users with all their items, which neighbours "
                "needs: use users_per_batch"
            )
        if self.allocate == "cusparse":
            raise ValueError("allocate='cusparse' knows no neighbours: use allocate='fused'")

    def _check_backend_options(self) -> None:
        options = self.backend_options
        for name, value in options.items():
            able = [entry.name for entry in REGISTRY.values() if name in entry.options]
            if self.backend != "auto" and entry_of(self.backend).name not in able:
                raise ValueError(f"{name}={value!r} needs backend={able[0]!r}, not {self.backend!r}")
        if self.precision == "mixed" and not self.use_float:
            raise ValueError("precision='mixed' keeps factors in half precision and needs use_float=True")
        if self.precision == "mixed" and self.allocate == "cusparse":
            raise ValueError(
                "allocate='cusparse' works in full precision: precision='mixed' needs allocate='fused'"
            )

    def _check_rates_beside_ones(self) -> None:
        """Raise ValueError if E[ξ] could be so large that it changes the column of ones by rounding."""
        for shape, hyper_shape, mean in (("a", "a_prime", "b_prime"), ("c", "c_prime", "d_prime")):
            share = self.k * getattr(self, shape) / getattr(self, hyper_shape)
            largest = getattr(self, mean) * (1 + share)
            if largest > _MAX_RATE_BESIDE_ONES:
                cause = "bias=True" if self.bias else "k=0"
                raise ValueError(
                    f"{cause} needs {mean}·(1 + k·{shape}/{hyper_shape}) up to {_MAX_RATE_BESIDE_ONES:g}, "
                    f"not {largest:.3g}"
                )


#: The rows of the table.
TABLE: tuple[Field[Any], ...] = fields(Settings)
NAMES = tuple(row.name for row in TABLE)
_DEFAULTS = {row.name: row.default for row in TABLE}
_KINDS: dict[str, Kind] = {row.name: row.metadata["kind"] for row in TABLE}
_BACKEND_OPTIONS = tuple(name for name in NAMES if any(name in entry.options for entry in REGISTRY.values()))


@lru_cache(maxsize=16, typed=True)  # every method asks, and to check all takes as long as a short fold-in
def _checked(*values: Any) -> Settings:
    """The settings with these values, in the order of the table."""
    settings = Settings(
        *(_KINDS[name].checked(name, value) for name, value in zip(NAMES, values, strict=True))
    )
    settings._check_together()
    return settings


def markdown() -> str:
    """The table for documentation; ``tests/test_migration.py`` holds the page to it."""
    lines = ["| parameter | default | takes | a resumed fit may change it |", "| --- | --- | --- | --- |"]
    for row in TABLE:
        default = "1/√(epoch + 2)" if row.default is default_step_size else repr(row.default)
        resume = "yes" if row.metadata["resume"] else "no"
        lines.append(f"| `{row.name}` | {default} | {row.metadata['kind'].describe()} | {resume} |")
    return "\n".join(lines) + "\n"


def is_default(name: str, value: Any) -> bool:
    """Whether a value equals the default of its setting and has the same type."""
    default = _DEFAULTS[name]
    return value is default or (type(value) is type(default) and bool(value == default))


def may_differ_on_resume(name: str) -> bool:
    """Whether a checkpoint may be resumed with a different value of this setting."""
    return bool(next(row for row in TABLE if row.name == name).metadata["resume"])


# -- arguments of methods --------------------------------------------------------------------------


def thread_count(ncores: Any) -> int | None:
    """``ncores`` as a number of threads; None, meaning all cores, if it is None or below 1."""
    cores = Whole(optional=True).checked("ncores", ncores)
    return None if cores is None or cores < 1 else cores


def seed_or_fresh(random_seed: int | None) -> int:
    """The seed, or a random one if it is None."""
    return int(np.random.default_rng().integers(1, 2**31)) if random_seed is None else random_seed


def whole_number(name: str, value: Any, least: int) -> int:
    """``value`` as int, at least ``least``; 10.0 and numpy.int64(10) are accepted, True and 10.5 are not."""
    return int(Whole(least).checked(name, value) or 0)


def positive_number(name: str, value: Any) -> float:
    """``value`` as float, which must be above zero and finite."""
    return Real().checked(name, value)


def from_zero(name: str, value: Any) -> float:
    """``value`` as float, which must be at least zero and finite."""
    if _is_real(value) and value < 0:
        raise ValueError(f"{name}={value!r} must be at least zero")
    return 0.0 if _is_real(value) and value == 0 else positive_number(name, value)


def fraction(name: str, value: Any) -> float:
    """``value`` as float, which must lie between zero and one, and not so near one that a tail is lost."""
    number = positive_number(name, value)
    if number > 1 - 1e-12:
        raise ValueError(f"{name}={value!r} must be below one: 0.9 for 90 %")
    return number


def settings_with(values: Mapping[str, Any]) -> Settings:
    """The settings with these values, and defaults for all others."""
    return Settings.of({**_DEFAULTS, **values})


def check_folder(folder: Any) -> None:
    """Raise ValueError unless ``save_folder`` is None or exists."""
    if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
        raise ValueError(f"save_folder={folder!r} is not an existing folder")


def step_at(step_size: Callable[[int], float] | None, iteration: int) -> float:
    """The step size in [0, 1] of an iteration, counted from zero; None means the default function.

    Raises TypeError or ValueError if the function does not return such a number.
    """
    try:
        step = (step_size or default_step_size)(iteration)
    except TypeError as error:
        raise TypeError(f"step_size must take the iteration number as its only argument: {error}") from error
    return checked_step(f"step_size({iteration})", step)


def checked_step(name: str, step: Any) -> float:
    """``step`` as a float in [0, 1]."""
    if not _is_real(step):
        raise TypeError(f"{name} is {step!r}; steps must be numbers between 0 and 1")
    if not 0 <= step <= 1:
        raise ValueError(f"{name} is {step!r}; steps must lie between 0 and 1")
    return float(step)


def _is_real(value: Any) -> bool:
    """Whether ``value`` is a real number; NumPy's are, booleans are not."""
    # Asking the abstract class takes ten times as long.
    return type(value) in (int, float) or (
        isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    )
