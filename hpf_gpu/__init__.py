"""Hierarchical Poisson factorization of sparse counts on CUDA, OpenMP and NumPy."""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .backends.protocol import BackendUnavailable, DeviceError, NotEnoughMemory
    from .data.triplets import Counts
    from .ensemble import HPFEnsemble
    from .estimator import HPF
    from .evaluation import Evaluation, compare, evaluate
    from .files.tensor_file import ModelFileError
    from .html_report import report
    from .loading import load
    from .model.convergence import ConvergenceWarning
    from .planning import plan
    from .tuning import select
else:
    # Public modules of their own.
    _MODULES = ("anndata", "checks", "dask", "datasets", "lenskit", "metrics", "plot", "sklearn", "splitting")
    # Imported on first access, so that `hpf-gpu doctor` also runs where NumPy or pandas is broken.
    _HOMES = {
        "HPF": ".estimator",
        "HPFEnsemble": ".ensemble",
        "BackendUnavailable": ".backends.protocol",
        "ConvergenceWarning": ".model.convergence",
        "Counts": ".data.triplets",
        "DeviceError": ".backends.protocol",
        "Evaluation": ".evaluation",
        "ModelFileError": ".files.tensor_file",
        "NotEnoughMemory": ".backends.protocol",
        "report": ".html_report",
        "compare": ".evaluation",
        "evaluate": ".evaluation",
        "load": ".loading",
        "plan": ".planning",
        "select": ".tuning",
    }

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name], __name__), name)

    def __dir__() -> list[str]:
        return sorted([*__all__, *_MODULES])


__all__ = [
    "HPF",
    "BackendUnavailable",
    "ConvergenceWarning",
    "Counts",
    "DeviceError",
    "Evaluation",
    "HPFEnsemble",
    "ModelFileError",
    "NotEnoughMemory",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "plan",
    "report",
    "select",
]
