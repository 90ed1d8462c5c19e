"""Every check by name: `nox -l` lists them, `nox -s NAME` runs one in an environment of its own.

With `nox --no-venv -s NAME` it runs in the environment that is active and installs nothing, as in .ci/run.
"""

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
LINT = PROJECT["optional-dependencies"]["lint"]


def install(session: nox.Session, *packages: str) -> None:
    """Install into the session's own environment; without one, all must be there."""
    if session.venv_backend != "none":
        session.install(*packages)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of Python and C++: ruff, ruff format and clang-format."""
    install(session, *LINT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    listed = session.run(
        "git", "ls-files", "*.h", "*.cpp", "*.cu", "*.cuh", external=True, silent=True, stderr=None
    )
    session.run("clang-format", "--dry-run", "--Werror", *listed.split())


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package: mypy, strict."""
    install(session, *LINT, *PROJECT["dependencies"])
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The everyday suite (arguments after -- go to pytest)."""
    install(session, ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Tests that take long for what they tell."""
    install(session, ".[test]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def levels(session: nox.Session) -> None:
    """Tests of what the instruction set changes, at every level that this machine has.

    Of the widest, which the everyday suite takes, only the comparison with hpfrec; it takes so long that the
    others are compared with hpfrec's recorded figures alone.  Whole fits agree with NumPy's at every level in
    test_levels.py, wherever that runs.
    """
    install(session, ".[test,parity]")
    find = "from hpf_gpu import _openmp; print(*_openmp.levels())"
    found = session.run("python", "-P", "-c", find, silent=True, stderr=None)
    widest, *others = found.split()
    session.run("pytest", "--level", widest, "tests/test_parity.py")
    # NumPy is the same at every level, and tests with a level's name run at all of them wherever they run.
    elsewhere = " or ".join(("against_hpfrec", "[numpy", *found.split()))
    names = ("parity", "levels", "special")
    for level in others:
        files = [f"tests/test_{name}.py" for name in names]
        session.run("pytest", "--level", level, "-k", f"not ({elsewhere})", "tests/contract", *files)


@nox.session
def lenskit(session: nox.Session) -> None:
    """HPFScorer in LensKit, which brings PyTorch and gigabytes of CUDA with it."""
    install(session, ".[test,lenskit]")
    session.run("pytest", "tests/test_lenskit.py", *session.posargs)


@nox.session
def packages(session: nox.Session) -> None:
    """Tests of sdist, wheel and editable install, in fresh environments."""
    install(session, ".[test,package]")
    session.run("pytest", "-m", "package", *session.posargs)


@nox.session
def compile_check(session: nox.Session) -> None:
    """The CUDA kernels, compiled for every architecture and compared with the record; no GPU."""
    install(session, ".[test,cuda-check]")
    session.run("pytest", "tests/test_compile_cuda.py", "tests/test_gpu_model.py")
    session.run("python", "bench/compile_cuda.py", "--quick")


@nox.session
def single_cells(session: nox.Session) -> None:
    """Tests of AnnData, and of tables with the pandas that it needs: 2 on Python 3.11."""
    install(session, ".[test,anndata]")
    files = [f"tests/test_{name}.py" for name in ("anndata", "frames", "ids", "hpf", "folding", "evaluation")]
    session.run("pytest", *files)


@nox.session
def docs(session: nox.Session) -> None:
    """The site in docs/_build: tutorials are run, every warning is an error; and examples in docstrings."""
    install(session, ".[docs,test]")
    listed = session.run("git", "grep", "-l", ">>> ", "hpf_gpu", external=True, silent=True, stderr=None)
    names = [name.removesuffix(".py").replace("/", ".") for name in listed.split()]
    # -P: of the package that is installed, not of the sources here, which are not compiled.
    session.run("python", "-P", "-m", "pytest", "--doctest-modules", "--pyargs", *names)
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session
def links(session: nox.Session) -> None:
    """The external links of the documentation; needs the network."""
    install(session, ".[docs]")
    session.run("sphinx-build", "-q", "-b", "linkcheck", "docs", "docs/_build/linkcheck")


@nox.session
def bench_smoke(session: nox.Session) -> None:
    """Every case of the benchmark once, small."""
    install(session, ".[test,parity]")
    session.run("python", "bench/run.py", "--smoke")
    counts = f"{session.create_tmp()}/counts.parquet"
    sizes = ("--users", "2000", "--items", "300", "--counts", "40000")
    session.run("python", "bench/out_of_core.py", "make", counts, *sizes)
    session.run("python", "bench/out_of_core.py", "fit", counts, "--limit", "1GB", "--k", "4", "--all")
