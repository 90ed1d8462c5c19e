"""Writes hpfrec_0.2.14.npz: some rows of what hpfrec 0.2.14.post1 fits, for machines without it.

Run with the extra ``parity`` installed: ``PYTHONPATH=tests python tests/golden/make_golden.py``.
"""

import numpy as np
from hpfrec import HPF
from parity import DATA, GOLDEN_CASES, GOLDEN_FILE, golden_rows, matrices_of, parameters

if __name__ == "__main__":
    arrays = {}
    for case in GOLDEN_CASES:
        data, *settings = case
        for name, matrix in matrices_of(HPF(**parameters(*settings)).fit(DATA[data]())).items():
            arrays["/".join(map(str, (*case, name)))] = golden_rows(matrix)
    np.savez_compressed(GOLDEN_FILE, **arrays)
