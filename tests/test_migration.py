"""MIGRATION.md: its code runs, and its tables have all there is to say something about."""

from __future__ import annotations

import inspect
import re
import tempfile
import warnings
from pathlib import Path

import pytest

from hpf_gpu import HPF, metrics
from hpf_gpu.model.settings import markdown

PAGE = (Path(__file__).resolve().parents[1] / "MIGRATION.md").read_text(encoding="utf-8")
VERDICTS = {"same", "better", "ignored"}
HPFREC_ONLY = {"input_df", "val_set"}  # attributes of its models


def table(heading):
    """Cells of the rows of the first table below a heading."""
    _, _, below = PAGE.partition(f"{heading}\n")
    assert below, f"no heading {heading}"
    lines = below[below.index("| ") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def positional(function):
    """Names of the parameters that may be given by position: hpfrec's."""
    kinds = inspect.signature(function).parameters.values()
    return [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


def keyword_only(function):
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """What the page's code leaves, block after block."""
    names = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("hgaprec")))
        warnings.simplefilter("error")
        for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
            exec(compile(block, "MIGRATION.md", "exec"), names)
    return names


def test_code(namespace):
    assert namespace["model"].is_fitted
    assert namespace["later"].Beta.shape == namespace["model"].Beta.shape
    assert not namespace["bpf"].hierarchical
    assert namespace["hpf"].history_.val_llk.notna().all()


def test_parameters():
    rows = table("### Parameters of `HPF`")
    assert [name.strip("`") for name, _, _ in rows] == positional(HPF)
    assert {verdict for _, verdict, _ in rows} <= VERDICTS
    assert all(why for _, verdict, why in rows if verdict != "same")
    new = re.search(r"New, by keyword only: (.*)\.", PAGE)[1]
    assert re.findall(r"`(\w+)`", new) == keyword_only(HPF)


def test_what_parameters_take():
    """The page has the table of the settings."""
    _, _, below = PAGE.partition("### All parameters, and what they take\n\n")
    assert below.partition("\n\n")[0] + "\n" == markdown()


def test_methods():
    rows = table("### Methods")
    for signature, verdict, why in rows:
        name, given = re.fullmatch(r"`(\w+)\((.*)\)`", signature).groups()
        assert given.split(", ") == positional(getattr(HPF, name))
        assert verdict in VERDICTS
        assert why
    assert set(keyword_only(HPF.fit)) - {"checkpoint_every"} == set(re.findall(r"`(\w+)=`", rows[0][2]))
    methods = {
        name
        for name, value in vars(HPF).items()
        if inspect.isfunction(value) or isinstance(value, classmethod)
    }
    new = re.findall(r"`(\w+)`", re.search(r"### Methods.*?\nNew: (.*?)\n", PAGE, flags=re.DOTALL)[1])
    told = {row[0].strip("`").partition("(")[0] for row in rows} | set(new)
    assert told == {name for name in methods if not name.startswith("_")}


def test_attributes(namespace):
    for name, verdict, why in table("### Attributes"):
        assert hasattr(namespace["model"], name.strip("`")) or name.strip("`") in HPFREC_ONLY, name
        assert verdict in VERDICTS
        assert why or verdict == "same"


def test_hgaprec(namespace):
    """The names on the right are names of this package."""
    known = {*inspect.signature(HPF).parameters, *inspect.signature(HPF.fit).parameters}
    options = PAGE[PAGE.index("| hgaprec | here | |") :].splitlines()[2:]
    assert len(options) > 20
    for line in options:
        here = line.split("|")[2]
        assert set(re.findall(r"(\w+)=", here)) <= known, line
        for name in re.findall(r"hpf_gpu\.metrics\.(\w+)", here):
            assert hasattr(metrics, name)
        for name in re.findall(r"`(\w+)(?:\([^`]*\))?`", here):
            assert name in known or hasattr(namespace["hpf"], name), line


def test_against_hpfrec():
    """Its own signature has no parameter that the page does not know."""
    hpfrec = pytest.importorskip("hpfrec", reason="hpfrec is not installed (extra 'parity')")
    assert [name.strip("`") for name, _, _ in table("### Parameters of `HPF`")] == positional(hpfrec.HPF)
    public = {
        name for name, value in vars(hpfrec.HPF).items() if inspect.isfunction(value) and name[0] != "_"
    }
    assert public <= {row[0].strip("`").partition("(")[0] for row in table("### Methods")}
