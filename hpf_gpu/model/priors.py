"""Priors of users and items, and columns of θ and β with fixed values (pins)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpf_gpu.backends.protocol import Array

#: Rates of numerical point masses: q(θ) = Gamma(θ·rate, rate) is so narrow that E[ln θ] rounds to ln θ, so
#: kernels need no special case.  A column of ones has the larger rate, because E[ξ] is added to it and must
#: be lost in rounding.
POINT_MASS_RATE, UNIT_RATE = 2.0**80, 2.0**120


@dataclass(frozen=True)
class Pin:
    """A column of θ that is fixed at shape / rate in every row: q(θ) is a numerical point mass there."""

    column: int
    shape: float
    rate: float

    @property
    def value(self) -> float:
        """The fixed value of θ."""
        return self.shape / self.rate


def unit(column: int) -> Pin:
    """A column fixed at 1; the other side's entries there are its biases."""
    return Pin(column, UNIT_RATE, UNIT_RATE)


@dataclass(frozen=True)
class Prior:
    """θ_nk ~ Gamma(shape, ξ_n),  ξ_n ~ Gamma(hyper_shape, hyper_shape / hyper_mean).

    Shape, hyper-shape and hyper-mean are a, a', b' of Gopalan, Hofman and Blei (2015, section 3) for users,
    and c, c', d' for items.  If not ``hierarchical``, ξ_n is fixed at its mean: θ_nk ~ Gamma(shape,
    hyper_mean).  Columns in ``pins`` have fixed values instead, and no update changes them.  ``temperature``
    is that of φ, see :mod:`hpf_gpu.model.neighbours`.
    """

    shape: float
    hyper_shape: float
    hyper_mean: float
    hierarchical: bool = True
    pins: tuple[Pin, ...] = ()
    temperature: float = 1.0

    @property
    def biases_wait(self) -> bool:
        """Whether biases are pinned near zero, see :mod:`hpf_gpu.model.biases`."""
        return any(pin.rate == POINT_MASS_RATE for pin in self.pins)

    def with_waiting_biases(self, column: int) -> Prior:
        """The prior while the biases in a column are pinned, so near zero that they take no counts."""
        return replace(self, pins=(*self.pins, Pin(column, self.shape, POINT_MASS_RATE)))

    def with_free_biases(self) -> Prior:
        """The prior after the biases have been released."""
        return replace(self, pins=tuple(pin for pin in self.pins if pin.rate != POINT_MASS_RATE))

    @property
    def hyper_rate(self) -> float:
        """Prior rate a'/b' of ξ."""
        return self.hyper_shape / self.hyper_mean

    def posterior_hyper_shape(self, k: int) -> float:
        """Shape a' + K·a of q(ξ), whatever the data; ``k`` is the number of columns, pinned ones included."""
        return self.hyper_shape + (k - len(self.pins)) * self.shape

    def start_hyper_rate(self, k: int) -> float:
        """Rate of q(ξ) before the first update: hpfrec's, or without hierarchy the one with E[ξ] = b'."""
        return self.hyper_mean if self.hierarchical else self.posterior_hyper_shape(k) / self.hyper_mean

    def hyper_rate_line(self, k: int) -> tuple[float, float]:
        """Slope and offset of the optimal rate of q(ξ_n), a linear function of Σ_k E[θ_nk].

        The sums include pinned columns.
        """
        if not self.hierarchical:
            return 0.0, self.start_hyper_rate(k)
        return 1.0, self.hyper_rate - sum(pin.value for pin in self.pins)

    def next_hyper_rate(self, row_sums: Array, k: int) -> Array:
        """Optimal rates (N,) of q(ξ) for the sums Σ_k E[θ_nk] (N,), which include pinned columns."""
        slope, offset = self.hyper_rate_line(k)
        return row_sums * slope + offset

    def column_rates(self, rates: Array) -> Array:
        """Column part (K,) of the rates of q(θ), with the rates of pinned columns put in.

        A copy even without pins, so that no state has arrays of the one before.
        """
        rates = rates * 1.0
        for pin in self.pins:
            rates[pin.column] = pin.rate
        return rates

    def pin_shapes(self, shape: Array, added: float = 0.0) -> None:
        """Set pinned columns of the shape (N, K) of q(θ), less what will be ``added`` to every entry."""
        for pin in self.pins:
            shape[:, pin.column] = pin.shape - added
