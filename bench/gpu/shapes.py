"""Count matrices of the sizes of public data sets, made once and kept in a folder.

python -m gpu.shapes FOLDER lastfm netflix taste
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from synthetic import power_law_csr


@dataclass(frozen=True)
class Shape:
    """Users, items and counts of a data set."""

    users: int
    items: int
    nnz: int


SHAPES = {
    "lastfm": Shape(358_868, 160_113, 17_500_000),  # LastFM-360K
    "netflix": Shape(480_189, 17_770, 100_500_000),  # Netflix Prize
    "taste": Shape(1_019_318, 384_546, 48_400_000),  # Taste Profile
    "small": Shape(2000, 700, 60_000),  # rows of several segments, for the sanitizer
    "tiny": Shape(400, 150, 4000),
}


def path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def save(folder: Path, name: str) -> None:
    shape = SHAPES[name]
    csr = power_law_csr(shape.users, shape.items, shape.nnz)
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
    for name in arguments.names:
        save(arguments.folder, name)
        sys.stdout.write(f"{name} is there after {time.perf_counter() - started:.1f} s\n")


if __name__ == "__main__":
    main()
