"""Hierarchical Poisson factorization of sparse counts on NumPy and OpenMP."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends.protocol import BackendUnavailable
    from .estimator import HPF
else:

    def __getattr__(name: str) -> object:
        # Imported when asked for: `hpf-gpu doctor` has to speak where NumPy or pandas is broken.
        if name == "HPF":
            from .estimator import HPF as value
        elif name == "BackendUnavailable":
            from .backends.protocol import BackendUnavailable as value
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return value


try:
    __version__ = version("hpf_gpu")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["HPF", "BackendUnavailable", "__version__"]
