"""The command `hpf-gpu` where its output goes nowhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Runs the command, on the purchases of every twentieth customer.
RUN = """
import sys
from hpf_gpu import datasets
from hpf_gpu.app.cli import main

def of_some(load=datasets.load_online_retail):
    retail = load()
    purchases = retail.purchases[retail.purchases.UserId % 20 == 0]
    return datasets.OnlineRetail(purchases, retail.product_names)

datasets.load_online_retail = of_some
sys.exit(main(sys.argv[1:]))
"""
COMMANDS = (["doctor"], ["demo", "--k", "2"])


def shell(command, redirection, folder):
    """Exit status and errors of `hpf-gpu COMMAND REDIRECTION`."""
    line = f'"$0" -c "$1" {" ".join(command)} {redirection}'
    bash = ["bash", "-o", "pipefail", "-c", line, sys.executable, RUN]
    ran = subprocess.run(bash, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return ran.returncode, ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("redirection", "statuses", "told"),
    [
        (">&-", {0, 1}, ""),
        pytest.param(
            ">/dev/full", {2}, "hpf-gpu: [Errno 28] No space left on device\n",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's"),
        ),
        ("| true", {0, 1, 141}, ""),
    ],
    ids=["closed", "full", "pipe"],
)  # fmt: skip
def test_no_traceback(command, redirection, statuses, told, tmp_path):
    status, errors = shell(command, redirection, tmp_path)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert errors.endswith(told)
    assert status in statuses
