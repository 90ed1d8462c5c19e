"""Modules for other libraries say which command installs the library."""

from __future__ import annotations

import subprocess
import sys


def test_missing_libraries():
    code = """
import importlib, sys
for name in ("sklearn", "anndata", "lenskit", "dask"):
    sys.modules[name] = sys.modules[f"{name}.base"] = None
    try:
        importlib.import_module(f"hpf_gpu.{name}")
    except ImportError as error:
        assert f"pip install 'hpf_gpu[{name}]'" in str(error), error
    else:
        raise SystemExit(f"hpf_gpu.{name} was imported")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
