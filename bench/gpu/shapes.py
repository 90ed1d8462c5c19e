"""Count matrices of the sizes of public data sets, made once and kept in a folder.

python -m gpu.shapes FOLDER lastfm netflix taste
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from cases import DATA
from scipy import sparse

#: Those that synthetic.py makes as matrices: frames take too long at these sizes.
SHAPES = {name: data for name, data in DATA.items() if data.make == "power_law_csr"}


def path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def save(folder: Path, name: str) -> None:
    """Make a matrix, unless the folder has it."""
    if path(folder, name).exists():
        return
    csr = SHAPES[name].csr()
    unfinished = path(folder, f"unfinished-{name}")
    np.savez(unfinished, shape=csr.shape, data=csr.data, indices=csr.indices, indptr=csr.indptr)
    unfinished.rename(path(folder, name))


def load(folder: Path, name: str) -> sparse.csr_array:
    """The matrix that :func:`save` has left."""
    with np.load(path(folder, name)) as arrays:
        parts = arrays["data"], arrays["indices"], arrays["indptr"]
        return sparse.csr_array(parts, shape=tuple(arrays["shape"].tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=list(SHAPES))
    arguments = parser.parse_args()
    started = time.perf_counter()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        save(arguments.folder, name)
        sys.stdout.write(f"{name} is there after {time.perf_counter() - started:.1f} s\n")


if __name__ == "__main__":
    main()
