"""SciPy in place of cuSPARSE, as far as `csr_matrix @ dense` goes.

It shows that our code hands CuPy the right matrices.  It says nothing about cuSPARSE: neither about its
rounding nor about the order of its sums.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np


def install() -> None:
    """Let cupyx.scipy.sparse find this in place of cupyx.cusparse, which needs NVIDIA's library."""
    import cupy
    import cupyx

    module = types.ModuleType("cupyx.cusparse", __doc__)
    module.MatDescriptor = MatDescriptor
    module.check_availability = check_availability
    module.spmm = spmm
    sys.modules[module.__name__] = cupyx.cusparse = module
    cupy.asfortranarray = asfortranarray


def asfortranarray(array: Any, dtype: Any = None) -> Any:
    """Return the array in Fortran order, which spmm asks for: CuPy's function has cuBLAS transpose it."""
    import cupy

    result = cupy.empty(array.shape, dtype or array.dtype, order="F")
    result[...] = array
    return result


class MatDescriptor:
    """cuSPARSE's handle of a matrix, which every sparse matrix makes; spmm needs none."""

    @classmethod
    def create(cls) -> MatDescriptor:
        """Return a new handle."""
        return cls()


def check_availability(name: str) -> bool:
    """Tell CuPy which of cuSPARSE's functions there are."""
    return name == "spmm"


def spmm(
    a: Any,  # sparse (N, M)
    b: Any,  # (M, K), Fortran order
    c: Any = None,  # (N, K), receives the result
    alpha: float = 1,
    beta: float = 0,
    transa: bool = False,
    transb: bool = False,
) -> Any:
    """Return c = alpha·a·b + beta·c, either factor transposed if asked for."""
    import cupy

    if not b.flags.f_contiguous:
        raise ValueError("cuSPARSE takes dense matrices in Fortran order")
    left, right = a.get(), b.get()
    dtype = np.promote_types(left.dtype, right.dtype)
    product = (left.T if transa else left).astype(dtype) @ (right.T if transb else right).astype(dtype)
    if c is None:
        return cupy.asarray(np.asfortranarray(alpha * product, dtype=dtype))
    c.set(np.asfortranarray(alpha * product + beta * c.get(), dtype=c.dtype))
    return c
