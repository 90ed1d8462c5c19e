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

#: The rooms of the package, each with those that its modules may import from beside their own.  Modules that
#: stand alone at the top are the public ones: HPF, and what is imported by name.
ROOMS = {
    "messages": set(),
    "version": set(),
    "ranking": set(),
    "narrowing": set(),
    "backends": {"messages", "ranking", "narrowing"},
    "data": {"messages", "backends"},
    "model": {"messages", "backends", "data"},
    "files": {"version", "narrowing", "backends", "data", "model"},
    "answers": {"messages", "ranking", "backends", "data", "model"},
    "fitting": {"backends", "data", "model", "files"},
    "top": {"messages", "version", "ranking", "backends", "data", "model", "files", "answers", "fitting"},
    "app": {"messages", "version", "backends", "model", "files", "top"},
    "app.commands": {"files", "top", "app"},
}

#: Within a room modules may import those that stand before them.  Of the backends all others may import the
#: registry and the protocol alone.
ORDER = {
    "messages": ("__init__",),
    "version": ("__init__",),
    "ranking": ("__init__",),
    "narrowing": ("__init__",),
    "backends": (
        "protocol", "packing", "openmp_diagnosis", "cuda_diagnosis", "cuda_source", "cuda_layout",
        "cuda_launch", "cuda_input", "cuda_counts", "cuda_neighbours", "cuda_graph", "cuda_stream",
        "numpy_neighbours", "numpy_backend",
        "openmp_backend", "cuda_backend",
        "__init__",
    ),
    "data": (
        "__init__", "frames", "growth", "ids", "seen", "blocks", "triplets", "factors", "counts", "parts",
        "numbering", "pieces",
    ),
    "model": (
        "__init__", "neighbours", "priors", "start", "loadings", "posterior", "sides", "biases",
        "convergence", "settings", "fitted", "ensemble", "snapshot", "likelihood", "acceleration",
        "inference", "stochastic",
    ),
    "files": ("__init__", "schema", "whole_file", "tensor_file", "csv_folder", "parquet_file",
        "model_file", "ensemble_file", "checkpoint", "scratch", "count_store",
    ),
    "answers": (
        "__init__", "summaries", "predictions", "uncertainty", "similarity", "recommendations",
        "explanations", "ensembles",
    ),
    "fitting": (
        "__init__", "progress", "beyond_memory", "training", "partial", "folding", "shards",
    ),
    "top": (
        "__init__", "estimator", "ensemble", "loading", "metrics", "evaluation", "checks", "tuning", "plot",
        "html_report", "splitting", "datasets", "sklearn", "anndata", "lenskit", "dask", "hardware",
        "planning",
    ),
    "app": ("__init__", "demo", "doctor", "bench", "terminal", "options", "parameters", "tables",
        "application", "cli",
    ),
    "app.commands": ("__init__", "fit", "recommend", "similar", "evaluate", "select", "report", "plan",
        "demo", "bench", "doctor",
    ),
}  # fmt: skip

#: What goes past the rules, and why.
EXCEPTIONS = {
    ("backends.openmp_backend", "_openmp"): "the compiled module",
    ("__init__", "estimator"): "loaded when asked for",
    ("__init__", "data.triplets"): "likewise",
    ("__init__", "ensemble"): "likewise",
    ("__init__", "html_report"): "likewise",
    ("__init__", "tuning"): "likewise",
    ("__init__", "evaluation"): "likewise",
    ("__init__", "model.convergence"): "likewise",
    ("__init__", "loading"): "likewise",
    ("__init__", "planning"): "likewise",
    ("app.cli", "app.commands.doctor"): "where the module that has the commands cannot be imported",
}


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


def room_of(name):
    """Room and name in it of a module."""
    room, _, inner = name.rpartition(".")
    return (room, inner) if room else (name, "__init__") if name in ROOMS else ("top", inner or "__init__")


def may_import(name, target):
    (room, own), (other, inner) = room_of(name), room_of(target)
    if room == other:
        return ORDER[room].index(inner) < ORDER[room].index(own)
    return other in ROOMS[room] and (other != "backends" or inner in ("__init__", "protocol"))


def test_every_module_has_its_place():
    assert sorted(room_of(name) for name, _ in modules()) == sorted(
        (room, name) for room, names in ORDER.items() for name in names
    )


def test_rules_can_be_broken():
    for name, target in (
        ("model.sides", "fitting.training"),  # another room that builds on this one
        ("model.priors", "model.sides"),  # a module that builds on this one
        ("fitting.training", "backends.cuda_backend"),  # past the registry
        ("files.checkpoint", "estimator"),
        ("data.ids", ""),
    ):
        assert not may_import(name, target), name


@pytest.mark.parametrize(
    ("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_import_rules(name, path):
    for target in imported(name, path):
        if target.split(".")[0] == "hpf_gpu":
            inner = target.removeprefix("hpf_gpu").lstrip(".")
            if (name, inner) not in EXCEPTIONS:
                assert may_import(name, inner), f"{name} imports {target}"
        if target.split(".")[0] in ("cupy", "cupyx"):
            assert name == "backends.cuda_backend", f"{name} imports {target}"


#: What the simulator is known to run as a GPU does, and cuSPARSE's matrices, which only a GPU runs.
CUPY_NAMES = {
    "__version__", "add.at", "append", "arange", "array", "asarray", "cuda.Device", "cuda.Event",
    "cuda.MemoryPointer", "cuda.Stream", "cuda.UnownedMemory", "cuda.driver.CUDADriverError",
    "cuda.get_allocator", "cuda.memory.OutOfMemoryError", "cuda.runtime.CUDARuntimeError",
    "cuda.runtime.getDevice", "cuda.runtime.getDeviceCount", "cuda.runtime.setDevice", "cuda.using_allocator",
    "cumsum", "empty",
    "cuda.runtime.getDeviceProperties", "cuda.runtime.memGetInfo", "flatnonzero", "from_dlpack", "full",
    "get_default_memory_pool", "isfinite", "floor", "log", "minimum.at", "multiply", "ones", "argmax",
    "argmin", "RawModule", "ndarray", "zeros",
}  # fmt: skip


def test_names_of_cupy():
    """Some of CuPy cannot run in the simulator, or runs there otherwise than on a GPU."""
    used = set()
    for name in ("cuda_backend", "cuda_counts", "cuda_graph", "cuda_input", "cuda_neighbours"):
        text = (PACKAGE / "backends" / f"{name}.py").read_text(encoding="utf-8")
        used |= set(re.findall(r"\b(?:cp|_?xp)\.([\w.]+)", text))
    assert used == CUPY_NAMES


def test_inference_imports_no_array_library():
    path = PACKAGE / "model" / "inference.py"
    assert not {"numpy", "scipy", "cupy"} & {
        target.split(".")[0] for target in imported("model.inference", path)
    }


TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_import_no_tests(path):
    """What several need lies in a module of its own, so that each can be moved, and run, alone."""
    others = {other.stem for other in TESTS}
    assert not [name for name in imported(path.stem, path) if name.split(".")[-1] in others]


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
    for module in (
        "hpf_gpu._openmp", "hpf_gpu.backends.numpy_backend", "matplotlib", "cupy", "tqdm", "scipy.special",
        "typer", "rich",
    ):  # fmt: skip
        assert module not in loaded


def test_the_package_itself_loads_nothing():
    """So that `hpf-gpu doctor` has its say where a package is broken."""
    loaded = run("import sys, hpf_gpu.app.commands.doctor, hpf_gpu.app.cli; print(*sys.modules)")
    assert not {"numpy", "scipy", "pandas", "tqdm", "typer", "rich"} & set(loaded)


def test_names_of_the_package():
    from hpf_gpu.backends import protocol

    assert hpf_gpu.HPF is hpf_gpu.estimator.HPF
    assert hpf_gpu.BackendUnavailable is protocol.BackendUnavailable
    with pytest.raises(AttributeError, match="module 'hpf_gpu' has no attribute 'HPG'"):
        hpf_gpu.HPG  # noqa: B018


def test_names_are_listed_and_modules_found():
    """What completion shows is what there is, without an import of each module."""
    code = """
import hpf_gpu
names = dir(hpf_gpu)
assert {"HPF", "select", "plot", "datasets"} <= set(names) and "import_module" not in names, names
print(hpf_gpu.datasets.load_online_retail.__name__, hpf_gpu.plot.convergence.__name__)
"""
    assert run(code) == ["load_online_retail", "convergence"]


def test_import_loads_what_it_needs():
    """Beside its own modules, those of the standard library and of pandas and scipy.sparse."""
    code = """
import sys, pandas, scipy.sparse
before = set(sys.modules)
from hpf_gpu import HPF
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*packages - {"hpf_gpu"} - set(sys.stdlib_module_names))
"""
    assert run(code) == []
