"""Runs a command in the environment of a flavour: ``python -m cudasim tsan pytest tests/test_cudasim.py``."""

from __future__ import annotations

import ctypes
import os
import sys

from .toolchain import environment

_NO_ADDRESS_RANDOMIZATION = 0x0040000  # personality(2)


def main() -> None:
    """Replace this process by the command."""
    if len(sys.argv) < 3:
        sys.exit("usage: python -m cudasim fast|asan|tsan command [argument ...]")
    flavour, *command = sys.argv[1:]
    variables = environment(flavour)
    if "LD_PRELOAD" in variables:
        # Sanitizers want fixed parts of the address space, which randomization may take from them.
        # Where a container forbids this call it is mostly not needed either.
        ctypes.CDLL(None).personality(_NO_ADDRESS_RANDOMIZATION)
    os.execvpe(command[0], command, variables)


main()
