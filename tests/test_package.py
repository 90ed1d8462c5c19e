"""Wheel, sdist and editable install, each in a fresh environment and away from the source tree.

Slow (it compiles twice, without optimization), so it runs by ``pytest -m package``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.package
SOURCE = Path(__file__).resolve().parents[1]
#: Where something is compiled; what packages contain does not depend on how well.
QUICKLY = os.environ | {"SKBUILD_CMAKE_BUILD_TYPE": "Debug"}

CHECK = """
import sys
from importlib import resources
import pandas as pd
import hpf_gpu
from hpf_gpu.datasets import load_online_retail
assert {outside!r} not in hpf_gpu.__file__, hpf_gpu.__file__
model = hpf_gpu.HPF(k=3, maxiter=3, verbose=False, backend={backend!r})
model.fit(load_online_retail().purchases[:500])
assert model.backend_ == {expected!r}, model.backend_
assert len(model.topN(12347)) == 10
kernels = resources.files("hpf_gpu") / "kernels"
assert "expected_log" in (kernels / "common" / "special.h").read_text()
assert (resources.files("hpf_gpu") / "py.typed").is_file()
"""


def run(*command, **options):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture
def environment(tmp_path):
    """A function that makes a fresh virtual environment and returns its Python."""

    def make(name="venv"):
        venv.create(tmp_path / name, with_pip=True)
        return tmp_path / name / "bin" / "python"

    return make


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The tracked files alone, as a clone would have them."""
    target = tmp_path_factory.mktemp("source") / "hpf_gpu"
    files = subprocess.run(
        ["git", "-C", str(SOURCE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, target / name)
    return target


@pytest.fixture(scope="module")
def distributions(tree, tmp_path_factory):
    """An sdist built from the tree, and a wheel built from that sdist."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", target, tree, env=QUICKLY)
    return {path.suffix: path for path in target.iterdir()}


def check(python, folder, backend="openmp", expected="openmp", outside=str(SOURCE), **options):
    code = CHECK.format(backend=backend, expected=expected, outside=outside)
    return run(python, "-W", "default", "-c", code, cwd=folder, **options)


@pytest.fixture(scope="module")
def wheel(distributions, tmp_path_factory):
    """The wheel as it would be uploaded: on Linux for every distribution with this glibc, libgomp inside."""
    if sys.platform != "linux":
        return distributions[".whl"]
    target = tmp_path_factory.mktemp("repaired")
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", target, distributions[".whl"])
    (repaired,) = target.iterdir()
    assert "manylinux" in repaired.name
    names = zipfile.ZipFile(repaired).namelist()
    assert any(name.startswith("hpf_gpu.libs/libgomp") for name in names), names
    return repaired


def test_wheel_of_the_sdist(wheel, environment, tmp_path):
    """The wheel was built from the sdist, so that both are complete; installing it compiles nothing."""
    python = environment()
    run(python, "-m", "pip", "install", "--only-binary", ":all:", wheel, cwd=tmp_path)
    check(python, tmp_path)
    assert "precision@20" in run(python.with_name("hpf-gpu"), "demo", cwd=tmp_path)


def test_editable(tree, environment, tmp_path):
    python = environment()
    run(python, "-m", "pip", "install", "-e", tree, cwd=tmp_path, env=QUICKLY)
    check(python, tmp_path)
    moved = tree / "hpf_gpu" / "__init__.py"
    text = moved.read_text()
    moved.write_text(text + "\nedited = True\n")
    try:
        assert "True" in run(python, "-c", "import hpf_gpu; print(hpf_gpu.edited)", cwd=tmp_path)
    finally:
        moved.write_text(text)


def test_without_a_compiler(tree, environment, tmp_path):
    python = environment()
    nothing = tmp_path / "no-compiler"
    nothing.write_text("#!/bin/sh\nexit 1\n")
    nothing.chmod(0o755)
    blind = os.environ | {"CC": str(nothing), "CXX": str(nothing)}
    output = run(python, "-m", "pip", "install", "-v", tree, cwd=tmp_path, env=blind)
    assert "it will run on NumPy" in output
    without_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    said = check(python, tmp_path, backend="auto", expected="numpy", env=without_gpu)
    assert said.count("'auto' took 'numpy', not openmp: the compiled module is missing") == 1
