"""The version of the package, as it was installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hpf_gpu")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"
