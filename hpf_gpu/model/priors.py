"""Priors of users and items, and the columns of θ and β whose values are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hpf_gpu.backends.protocol import Array, Host

#: Rates of point masses: q(θ) = Gamma(θ·rate, rate) is so narrow that E[ln θ] is ln θ, so that kernels need
#: no special case.  A column of ones has the larger: its rate is a sum with E[ξ], which must not show in it.
POINT_MASS_RATE, UNIT_RATE = 2.0**80, 2.0**120


@dataclass(frozen=True)
class Pin:
    """A column of θ with a given value, shape / rate, in every row: a numerical point mass."""

    column: int
    shape: float
    rate: float

    @property
    def value(self) -> float:
        """The value."""
        return self.shape / self.rate


def unit(column: int) -> Pin:
    """A column fixed at 1; the other side's entries there are its biases."""
    return Pin(column, UNIT_RATE, UNIT_RATE)


@dataclass(frozen=True)
class Prior:
    """θ_nk ~ Gamma(shape, ξ_n),  ξ_n ~ Gamma(hyper_shape, hyper_shape / hyper_mean).

    For users these are a, a', b' of Gopalan, Hofman and Blei (2015), for items c, c', d'.  If not
    ``hierarchical``, ξ_n is its mean: θ_nk ~ Gamma(shape, hyper_mean).  Columns in ``pins`` have given values
    in place of all this, and no update changes them.
    """

    shape: float
    hyper_shape: float
    hyper_mean: float
    hierarchical: bool = True
    pins: tuple[Pin, ...] = ()

    @property
    def biases_wait(self) -> bool:
        """Whether a column is pinned near zero, see :mod:`hpf_gpu.model.biases`."""
        return any(pin.rate == POINT_MASS_RATE for pin in self.pins)

    def with_waiting_biases(self, column: int) -> Prior:
        """The prior while the biases in a column wait, so near zero that they take no counts."""
        return replace(self, pins=(*self.pins, Pin(column, self.shape, POINT_MASS_RATE)))

    def with_free_biases(self) -> Prior:
        """The prior once they no longer wait."""
        return replace(self, pins=tuple(pin for pin in self.pins if pin.rate != POINT_MASS_RATE))

    @property
    def hyper_rate(self) -> float:
        """Prior rate a'/b' of ξ."""
        return self.hyper_shape / self.hyper_mean

    def posterior_hyper_shape(self, k: int) -> float:
        """Shape a' + K·a of q(ξ), which no data change; ``k`` columns of θ, pinned ones included."""
        return self.hyper_shape + (k - len(self.pins)) * self.shape

    def start_hyper_rate(self, k: int) -> float:
        """Rate of q(ξ) before the first update: hpfrec's, or what makes E[ξ] its prior mean."""
        return self.hyper_mean if self.hierarchical else self.posterior_hyper_shape(k) / self.hyper_mean

    def next_hyper_rate(self, row_sums: Array, k: int) -> Array:
        """Rates (N,) of q(ξ) at their optimum, given Σ_k E[θ_nk], pinned columns included."""
        if not self.hierarchical:
            return row_sums * 0.0 + self.start_hyper_rate(k)
        return row_sums + -sum(pin.value for pin in self.pins) + self.hyper_rate

    def column_rates(self, rates: Array, k: int, asarray: Callable[[Host], Array] = np.asarray) -> Array:
        """Column part (K,) of rates of q(θ), with those of pinned columns."""
        if not self.pins:
            return rates
        free, values = np.ones(k), np.zeros(k)
        for pin in self.pins:
            free[pin.column], values[pin.column] = 0.0, pin.rate
        return rates * asarray(free) + asarray(values)

    def pin_shapes(self, shape: Array, added: float = 0.0) -> None:
        """Give pinned columns of the shape (N, K) of q(θ) theirs, less what is then ``added`` to all."""
        for pin in self.pins:
            shape[:, pin.column] = pin.shape - added
