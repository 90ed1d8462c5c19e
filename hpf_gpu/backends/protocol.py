"""What inference asks of a backend: about a dozen operations on matrices, vectors and counts.

Shapes are written with N rows and M columns (users and items, whichever side is at hand),
K factors and Z nonzero counts.  A backend computes, and knows nothing of models and files; only
:meth:`Backend.read_device_data` sees ids, for data that never leave the memory of a GPU.
There is no base class: every backend implements every operation itself, and
``tests/test_backend_contract.py`` holds each one against the same dense formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: An array in the backend's own memory.  Vectors support ``+``, ``*`` and ``/``, matrices ``+=`` and, with
#: a number, ``*``, ``*=`` and assignment to a column; everything else goes through the operations below.
Array: TypeAlias = Any
#: A count matrix (N, M) in the backend's own layout, made by :meth:`Backend.counts`.  It has
#: ``shape`` and ``nnz``.
Counts: TypeAlias = Any
Host: TypeAlias = NDArray[Any]
SideName: TypeAlias = Literal["users", "items", "both"]


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot work here; the message says why and how to fix it.

    Parameters
    ----------
    problem : str
        What is wrong.
    remedy : str
        What to do about it, with the command where there is one.
    expected : bool
        True where nothing is broken: this machine has no such hardware, or it is hidden on purpose.
    """

    def __init__(self, problem: str, *, remedy: str = "", expected: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.expected = problem, remedy, expected

    def __str__(self) -> str:
        return f"{self.problem}; to fix it: {self.remedy}" if self.remedy else self.problem


class NotEnoughMemory(MemoryError):
    """The memory of the device or the machine does not suffice; the message says for what, and what would."""


@dataclass(frozen=True)
class RankOne:
    """Rates of q(θ) that are sums, ``rows[n] + columns[k]``, as every update leaves them."""

    rows: Array  # (N,) float64
    columns: Array  # (K,) float64


@dataclass(frozen=True)
class Full:
    """Rates of q(θ) one by one, as start values and rows that were folded in bring them."""

    matrix: Array  # (N, K)


Rates: TypeAlias = RankOne | Full


@dataclass(frozen=True)
class Factor:
    """The variational posterior q(θ) = Gamma(shape, rate) of one side, and its expected log.

    ``exp_log`` is exp E[ln θ] with every row divided by its largest entry, which changes no φ and
    keeps every entry in [0, 1]; ``log_scale`` is the logarithm of those divisors.
    """

    shape: Array  # (N, K)
    rates: Rates  # (N, K)
    exp_log: Array  # (N, K)
    log_scale: Array  # (N,) float64


@dataclass(frozen=True)
class DeviceData:
    """Counts of users and items that were read where they are, in a backend's own memory."""

    csr: Any  # (N, M) canonical: what :meth:`Backend.counts` takes, with indptr on the host
    user_ids: Host | None  # (N,); None where ids are row numbers
    item_ids: Host | None  # (M,)
    dropped: int  # counts of zero that were left out


class Backend(Protocol):
    """The operations.  ``dtype`` is that of every matrix; sums and likelihoods are float64."""

    @property
    def name(self) -> str:
        """Name that ``HPF(backend=...)`` takes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""

    def describe(self) -> str:
        """Say in one line what does the work: threads, instruction set, device."""

    def asarray(self, host: Host) -> Array:
        """Copy a host array in: a matrix (N, K) becomes ``dtype``, a vector (N,) float64."""

    def asnumpy(self, array: Array) -> Host:
        """Copy an array out, C-contiguous."""

    def select_rows(self, array: Array, rows: Host) -> Array:
        """Copy of the rows with these numbers (B,) of a matrix (N, K) or a vector (N,)."""

    def select_columns(self, array: Array, columns: Host) -> Array:
        """Copy of the columns with these numbers (K',) of a matrix (N, K)."""

    def assign_rows(self, array: Array, rows: Host, values: Array) -> None:
        """Overwrite the rows with these different numbers (B,) with ``values``, (B, K) or (B,)."""

    def counts(self, csr: Any, k: int) -> Counts:
        """Take a canonical scipy CSR matrix (N, M) in, laid out for models of ``k`` factors.

        Canonical: columns sorted within rows, no duplicates, all counts above zero.
        """

    def read_device_data(self, data: Any, *, reindex: bool) -> DeviceData | None:
        """Read counts that are in this backend's own memory already; None if they are not.

        Refuses what :func:`hpf_gpu.data.counts.training_data` refuses, in words that may differ.
        """

    def operand(self, host: Host) -> Array:
        """A host matrix (N, K) for operations that only read it.

        The matrix itself where the backend works in the host's memory, otherwise a copy.
        """

    def gamma_update(
        self,
        statistic: Array,  # (N, K), consumed: becomes the shape
        prior_shape: float,
        rates: Rates,  # (N, K)
        out: Array | None = None,  # (N, K), receives exp_log
    ) -> tuple[Factor, Array, Array]:
        """Gamma posterior with shape ``prior_shape + statistic``, and the sums of its mean.

        Returns the factor, the row sums Σ_k E[θ] (N,) and the column sums Σ_n E[θ] (K,), in float64.
        """

    def allocate(
        self,
        counts: Counts,
        users: Factor,
        items: Factor,
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None] = (None, None),
    ) -> tuple[Array | None, Array | None]:
        """Share every count among the factors: Σ_i y_ui φ_uik (N, K) and Σ_u y_ui φ_uik (M, K).

        φ_uik ∝ exp(E[ln θ_uk] + E[ln β_ik]) is never stored.  Nonzeros for which the scaled product
        underflows, all of them if ``exact``, go through the max-shifted log-sum-exp.
        ``out`` offers buffers to overwrite; the result of the side not asked for is None.
        """

    def mean(self, factor: Factor) -> Array:
        """E[θ] = shape / rate, (N, K)."""

    def log_rate_sum(self, counts: Counts, theta: Array, beta: Array) -> float:
        """Σ y_ui ln(θ_u·β_i), the data term of the Poisson log-likelihood."""

    def log_normalizer_sum(self, counts: Counts, users: Factor, items: Factor) -> float:
        """Σ y_ui ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]), the data term of the ELBO."""

    def log_factorial_sum(self, counts: Counts) -> float:
        """Σ ln y! over all counts, which need not be whole."""

    def gamma_elbo(
        self,
        factor: Factor,
        hyper_rate: Array,  # (N,)
        shape: float,  # a
        hyper_shape: float,  # a'
        hyper_prior_rate: float,  # a'/b'
    ) -> float:
        """Terms of θ and ξ in the ELBO: E[ln p(θ|ξ)] + E[ln p(ξ)] − E[ln q(θ)] − E[ln q(ξ)]."""

    def distance(self, a: Array, b: Array) -> float:
        """Frobenius norm of the difference of two matrices (N, K)."""

    def predict_pairs(self, theta: Array, beta: Array, rows: Host, columns: Host) -> Host:
        """θ_u·β_i for each of the given pairs of row numbers, (Z,); numbers must be in range."""

    def top_items(
        self,
        theta: Array,  # (N, K)
        beta: Array,  # (M, K)
        n: int,
        exclude: tuple[Host, Host] | None = None,  # CSR indptr (N + 1,) and the items (Z,) to leave out
    ) -> tuple[Host, Host]:
        """Columns, int64, and scores of the ``n`` ≥ 1 largest θ_u·β_i of each row, best first, both (N, n).

        Of equal scores the lower column comes first.  Where fewer than ``n`` items are left, columns end
        in −1 and scores in −inf; so they do where ``n`` exceeds M.  The items to leave out must be in
        range, and ascend within a row.  Beside the results, temporaries take some tens of MB: there is
        never a matrix (N, M).
        """
