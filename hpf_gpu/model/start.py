"""Start values of a fit, equal to those of hpfrec."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from hpf_gpu.backends.protocol import Host, NotEnoughMemory

from .priors import Prior

NOISE = 0.01  # of start values
_LINE = 64  # bytes of a cache line
_SKIPPED_AT_ONCE = 1 << 22  # draws


class StartValues:
    """Shapes and rates at the start of a fit: near a' and c', with noise that makes the factors differ.

    The generator and the order of the draws are those of hpfrec 0.2.14, so the same seed gives the same model
    as hpfrec, on every backend: rates of all users, rates of all items, shapes of all users, shapes of all
    items, row after row.  Rows that are drawn separately get the same values as when all rows are drawn.

    Parameters
    ----------
    n_users, n_items : int
        Numbers of rows N and M.
    k : int
        Number of columns K.
    seed : int
        Seed of NumPy's MT19937.
    dtype : numpy.dtype
        float32 or float64.

    Raises
    ------
    NotEnoughMemory
        If the model is larger than the memory of the machine.
    """

    def __init__(self, n_users: int, n_items: int, k: int, seed: int, dtype: np.dtype[Any]) -> None:
        _check_memory(n_users + n_items, k, dtype)
        self._k, self._seed, self._dtype = k, seed, dtype
        self._sizes = {"users": n_users, "items": n_items}
        #: Row of the whole sequence that each matrix begins with.
        self._first = {
            ("users", "rate"): 0,
            ("items", "rate"): n_users,
            ("users", "shape"): n_users + n_items,
            ("items", "shape"): 2 * n_users + n_items,
        }
        self._generators: dict[int, np.random.Generator] = {}  # by the row of their next draw

    def users(self, prior: Prior, rows: slice | None = None) -> tuple[Host, Host]:
        """Shapes and rates (B, K) of some users, by default of all."""
        return self._drawn("users", prior, rows)

    def items(self, prior: Prior, rows: slice | None = None) -> tuple[Host, Host]:
        """Shapes and rates (B, K) of some items, by default of all."""
        return self._drawn("items", prior, rows)

    def _drawn(self, side: str, prior: Prior, rows: slice | None) -> tuple[Host, Host]:
        start, stop, _ = (rows or slice(None)).indices(self._sizes[side])
        rate, shape = (
            self._noisy((side, which), prior.hyper_shape, start, stop) for which in ("rate", "shape")
        )
        return shape, rate

    def _noisy(self, matrix: tuple[str, str], level: float, start: int, stop: int) -> Host:
        first = self._first[matrix]
        rng = self._generator_at(first + start)
        values: Host = rng.random((stop - start, self._k), dtype=self._dtype)
        self._generators[first + stop] = rng
        values *= self._dtype.type(NOISE)
        values += self._dtype.type(level)
        return values

    def _generator_at(self, row: int) -> np.random.Generator:
        """A generator whose next draws are those of this row.

        One that has come to an earlier row is copied: rows between the two may be asked for later.  So of
        blocks that are asked for in order no row is drawn or skipped twice.
        """
        if row in self._generators:
            return self._generators.pop(row)
        rng = np.random.Generator(np.random.MT19937(self._seed))
        at = max((at for at in self._generators if at < row), default=0)
        if at:
            rng.bit_generator.state = self._generators[at].bit_generator.state
        words = 1 if self._dtype == np.float32 else 2  # of the generator's 32 bits, for a number
        left = (row - at) * self._k * words
        while left > 0:
            rng.bit_generator.random_raw(min(left, _SKIPPED_AT_ONCE), output=False)
            left -= _SKIPPED_AT_ONCE
        return rng


def bytes_of_fit(n_users: int, n_items: int, k: int, dtype: np.dtype[Any], *, copies: int = 0) -> int:
    """Memory that the state of a fit takes at its peak, without the counts.

    In the first iteration a row has a shape, a rate and an exponential, and the next two of these; the items
    have the sums of two blocks as well, and either side ``copies`` more.  A row fills whole cache lines, and
    has seven numbers in float64.
    """
    row = -(-k * dtype.itemsize // _LINE) * _LINE
    return (n_users + n_items) * (row * (5 + copies) + 7 * 8) + 2 * n_items * row


def _check_memory(rows: int, k: int, dtype: np.dtype[Any]) -> None:
    """Refuse models larger than memory: some systems grant such memory, and kill the process that uses it."""
    least = 4 * rows * k * dtype.itemsize  # shapes and rates, and two matrices computed from them
    have = physical_memory()
    if have is not None and least > have:
        raise NotEnoughMemory(
            f"{rows:,} users and items with k={k} in {dtype} need {least / 1e9:,.1f} GB and more, and this "
            f"machine has {have / 1e9:,.1f} GB; take a smaller k"
        )


def physical_memory() -> int | None:
    """Physical memory of this machine in bytes; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
