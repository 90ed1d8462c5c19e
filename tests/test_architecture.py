"""Who may import whom, and what `import hpf_gpu` may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hpf_gpu

PACKAGE = Path(hpf_gpu.__file__).parent

#: Modules of the package that each module may import; what is not listed may import nothing of it.
ALLOWED = {
    "__init__": {"backends.protocol", "estimator", "tensor_file"},
    "backends.__init__": {
        "backends.protocol", "backends.cuda_backend", "backends.cuda_source", "backends.openmp_backend",
        "backends.numpy_backend", "user_warnings",
    },
    "backends.numpy_backend": {"backends.protocol"},
    "backends.openmp_backend": {"backends.protocol", "backends.openmp_diagnosis", "_openmp"},
    "backends.cuda_diagnosis": {"backends.protocol"},
    "backends.openmp_diagnosis": {"backends.protocol"},
    "backends.cuda_layout": {"backends.cuda_source", "backends.protocol"},
    "backends.cuda_launch": {"backends.cuda_source"},
    "backends.cuda_input": {"backends.cuda_layout", "backends.protocol"},
    "backends.cuda_backend": {
        "backends.cuda_counts", "backends.cuda_diagnosis", "backends.cuda_input", "backends.cuda_launch",
        "backends.cuda_layout", "backends.cuda_source", "backends.protocol",
    },
    "backends.cuda_counts": {
        "backends.cuda_input", "backends.cuda_launch", "backends.cuda_layout", "backends.protocol",
    },
    "variational": {"backends.protocol"},
    "likelihood": {"backends.protocol", "convergence", "variational"},
    "inference": {"backends.protocol", "convergence", "likelihood", "variational"},
    "stochastic": {"backends.protocol", "variational"},
    "data": {"backends.protocol", "ids", "user_warnings", "variational"},
    "parameters": {"convergence"},
    "progress": {"convergence"},
    "ranking": {"backends.protocol"},
    "metrics": {"backends.numpy_backend"},
    "plot": {"metrics"},
    "fitted": {"ids", "ranking", "variational"},
    "recommending": {
        "backends", "backends.protocol", "data", "fitted", "ids", "likelihood", "model_file", "parameters",
        "ranking", "user_warnings", "variational",
    },
    "folding": {
        "backends.protocol", "data", "fitted", "ids", "inference", "parameters", "partial", "ranking",
        "variational",
    },
    "partial": {
        "backends.protocol", "convergence", "data", "fitted", "ids", "parameters", "ranking", "recommending",
        "stochastic", "variational",
    },
    "tensor_file": {"", "schema", "whole_file"},
    "model_file": {
        "backends", "convergence", "fitted", "ids", "parameters", "schema", "tensor_file", "variational",
        "whole_file",
    },
    "checkpoint": {
        "backends.protocol", "convergence", "inference", "model_file", "parameters", "schema", "tensor_file",
        "variational", "whole_file",
    },
    "estimator": {
        "backends.protocol", "checkpoint", "convergence", "data", "fitted", "folding", "inference",
        "likelihood", "model_file", "parameters", "progress", "stochastic", "storage", "variational",
    },
    "demo": {"", "datasets", "estimator", "metrics", "plot"},
    "doctor": {
        "", "backends", "backends.cuda_backend", "backends.cuda_diagnosis", "backends.openmp_backend",
        "backends.openmp_diagnosis", "backends.protocol",
    },
    "cli": {"", "demo", "doctor"},
}  # fmt: skip


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "kernels" not in path.parts:
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imported(name, path):
    """Absolute names that a module imports, with the package's own as 'hpf_gpu....'."""
    inside = ["hpf_gpu", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = PACKAGE.joinpath(*module.split(".")[1:], alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                yield f"{module}.{alias.name}" if module.startswith("hpf_gpu") and is_module else module


@pytest.mark.parametrize(
    ("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_import_rules(name, path):
    for target in imported(name, path):
        if target.split(".")[0] == "hpf_gpu":
            assert target.removeprefix("hpf_gpu").lstrip(".") in ALLOWED.get(name, set()), (
                f"{name} imports {target}"
            )
        if target.split(".")[0] in ("cupy", "cupyx"):
            assert name == "backends.cuda_backend", f"{name} imports {target}"


#: What the simulator is known to run as a GPU does, and cuSPARSE's matrices, which only a GPU runs.
CUPY_NAMES = {
    "__version__", "add.at", "append", "arange", "array", "asarray", "cuda.Device", "cumsum", "empty",
    "cuda.memory.OutOfMemoryError", "cuda.runtime.CUDARuntimeError", "cuda.runtime.getDeviceCount",
    "cuda.runtime.getDeviceProperties", "cuda.runtime.memGetInfo", "flatnonzero", "from_dlpack", "full",
    "get_default_memory_pool", "isfinite", "floor", "log", "minimum.at", "multiply", "ones", "argmax",
    "argmin", "RawModule", "zeros",
}  # fmt: skip


def test_names_of_cupy():
    """Some of CuPy cannot run in the simulator, or runs there otherwise than on a GPU."""
    used = set()
    for name in ("cuda_backend", "cuda_counts", "cuda_input"):
        text = (PACKAGE / "backends" / f"{name}.py").read_text(encoding="utf-8")
        used |= set(re.findall(r"\b(?:cp|xp)\.([\w.]+)", text))
    assert used == CUPY_NAMES


def test_inference_imports_no_array_library():
    path = PACKAGE / "inference.py"
    assert not {"numpy", "scipy", "cupy"} & {target.split(".")[0] for target in imported("inference", path)}


def test_nothing_is_printed():
    for name, path in modules():
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        assert not [call for call in calls if getattr(call.func, "id", "") == "print"], name


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()


def test_import_loads_neither_backends_nor_plots():
    loaded = run("import sys; from hpf_gpu import HPF; print(*sys.modules)")
    for module in ("hpf_gpu._openmp", "hpf_gpu.backends.numpy_backend", "matplotlib", "cupy"):
        assert module not in loaded


def test_the_package_itself_loads_nothing():
    """So that `hpf-gpu doctor` has its say where NumPy or pandas is broken."""
    loaded = run("import sys, hpf_gpu.doctor, hpf_gpu.cli; print(*sys.modules)")
    assert not {"numpy", "scipy", "pandas", "tqdm"} & set(loaded)


def test_names_of_the_package():
    from hpf_gpu.backends import protocol

    assert hpf_gpu.HPF is hpf_gpu.estimator.HPF
    assert hpf_gpu.BackendUnavailable is protocol.BackendUnavailable
    with pytest.raises(AttributeError, match="module 'hpf_gpu' has no attribute 'HPG'"):
        hpf_gpu.HPG  # noqa: B018


def test_import_budget():
    """Beside what it imports, in time of the processor: other work on the machine does not change it."""
    code = """
import time
start = time.process_time()
import pandas, scipy.sparse, scipy.special, tqdm.auto
others = time.process_time() - start
from hpf_gpu import HPF
print((time.process_time() - start - others) / others)
"""
    # 0.05 measured, 0.11 without compiled files; the best of three.
    assert min(float(run(code)[0]) for _ in range(3)) < 0.3
