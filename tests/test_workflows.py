"""What CI runs and what the package says of itself: the same sessions, Python versions and version number."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = [
    match[1]
    for line in PROJECT["classifiers"]
    if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
]


def text(name):
    if not (SOURCE / name).exists():
        pytest.skip(f"{name} is missing: an sdist does not have it")
    return (SOURCE / name).read_text(encoding="utf-8")


def test_python_versions():
    config = tomllib.loads(text("pyproject.toml"))["tool"]
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    assert config["cibuildwheel"]["build"] == [f"cp{version.replace('.', '')}-*" for version in VERSIONS]
    assert config["mypy"]["python_version"] == VERSIONS[0]
    (matrix,) = re.findall(r"python: \[(.*)\]", text(".github/workflows/tests.yml"))
    assert re.findall(r"[\d.]+", matrix) == VERSIONS


def test_sessions_of_nox():
    """Each session that CI names exists; .ci/run leaves out what its README lane has, network and LensKit."""
    sessions = set(re.findall(r"^@nox\.session\ndef (\w+)", text("noxfile.py"), re.M))
    (loop,) = re.findall(r"for session in (.*); do\n *step nox --no-venv -s \"\$session\"", text(".ci/run"))
    assert sessions == set(loop.split()) | {"tests", "slow", "links", "lenskit"}
    named = {
        name
        for line in re.findall(r"nox -s (.*)", text(".github/workflows/tests.yml"))
        for name in line.split()
    }
    assert named == {"lint", "types", "tests", "docs", "links"} <= sessions


def test_version_of_the_citation():
    assert f"version: {PROJECT['version']}\n" in text("CITATION.cff")
