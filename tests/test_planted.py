"""The bugs listed in tests/planted can be planted, and the tool tells what is found from what is not."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from planted import __main__ as planted

ROOT = Path(__file__).resolve().parents[1]
BUGS = planted.read(planted.BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_applies(bug):
    text = (ROOT / bug.file).read_text(encoding="utf-8")
    with_bug = bug.planted(text)
    assert with_bug != text
    if bug.file.endswith(".py"):
        compile(with_bug, bug.file, "exec")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_tests_that_should_find_it_exist(bug):
    assert bug.found_by
    for selection in bug.found_by:
        tests = [word for word in shlex.split(selection) if word.startswith("tests/")]
        assert tests, selection
        for test in tests:
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {name.partition('[')[0]}" in text, test


ENTRY = 'name = "a"\nfile = "README.md"\nold = "x"\nnew = "y"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[[bug]]\n{ENTRY}", "bug 1 of bugs.toml has no found_by"),
        (f"[[bug]]\n{ENTRY}found_by = []\nfoundby = 1\n", "bug 1 of bugs.toml has an unknown key 'foundby'"),
        (2 * f"[[bug]]\n{ENTRY}found_by = []\n", "bugs.toml has several bugs named a"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, message):
    path = tmp_path / "bugs.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        planted.read(path)


@pytest.mark.parametrize(
    ("statuses", "exit_status"),
    [([planted.FOUND, planted.FOUND], 0)]
    + [([planted.FOUND, other], 1) for other in (planted.NOT_FOUND, planted.STALE, planted.BROKEN)],
)
def test_only_a_bug_that_is_found_is_well(statuses, exit_status):
    outcomes = [planted.Outcome(status, 1.0, "") for status in statuses]
    assert planted.report(BUGS[:2], outcomes) == exit_status


LIST = """
[[bug]]
name = "turned-around"
file = "hpf_gpu/model/convergence.py"
old = "value - last <= stop_thr"
new = "value - last >= stop_thr"
found_by = ["tests/test_convergence.py -k relative"]

[[bug]]
name = "in-a-comment"
file = "hpf_gpu/model/convergence.py"
old = "One row of the history"
new = "One line of the history"
found_by = ["tests/test_convergence.py -k relative"]

[[bug]]
name = "gone"
file = "hpf_gpu/model/convergence.py"
old = "no such line"
new = ""
found_by = ["tests/test_convergence.py -k relative"]

[[bug]]
name = "untested"
file = "hpf_gpu/model/convergence.py"
old = "One row of the history"
new = "One line of the history"
found_by = ["tests/test_convergence.py -k no_such_test"]
"""


def test_what_is_found_and_what_is_not(tmp_path):
    """Planted in the package itself: tests import the copy, however hpf_gpu is installed."""
    bugs, file = tmp_path / "bugs.toml", ROOT / "hpf_gpu" / "model" / "convergence.py"
    bugs.write_text(LIST, encoding="utf-8")
    before = file.read_bytes()
    command = [sys.executable, str(ROOT / "tests" / "planted"), "--list", str(bugs), "-j", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    patterns = [
        "2 selections of tests, without any bug first",
        r"turned-around  found +\d+ s  tests/test_convergence\.py::test_a_gain_is_relative.*",
        r"in-a-comment   NOT FOUND +\d+ s",
        r"gone           does not apply +\d+ s  its old string occurs 0 times in .*convergence\.py",
        r"untested       fails without the bug +0 s  .*deselected.*",
        "1 found, 1 NOT FOUND, 1 does not apply, 1 fails without the bug",
    ]
    for line, pattern in zip(done.stdout.splitlines(), patterns, strict=True):
        assert re.fullmatch(pattern, line), done.stdout + done.stderr
    assert done.returncode == 1
    assert file.read_bytes() == before
