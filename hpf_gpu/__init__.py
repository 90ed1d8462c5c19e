"""Hierarchical Poisson factorization of sparse counts on NumPy and OpenMP."""

from importlib.metadata import PackageNotFoundError, version

from .backends.protocol import BackendUnavailable
from .estimator import HPF

try:
    __version__ = version("hpf_gpu")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["HPF", "BackendUnavailable", "__version__"]
