"""The interface of a backend: operations on matrices, vectors and counts.

Shapes have N rows and M columns (users and items, or the reverse), K factors and Z nonzeros.  Backends know
nothing about models and files.  They do not see ids, except in :meth:`Backend.read_device_data`, for data
that never leave the memory of a GPU.  "users" and "items" in names mean the rows and the columns of the
counts; fold-in of items exchanges them.  There is no base class: every backend implements every operation,
and ``tests/contract`` compares each one with the same dense formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

#: An array in the backend's own memory.  Vectors support ``+``, ``*``, ``/`` and assignment to an entry;
#: matrices support ``+=`` and, with a number, ``*``, ``*=`` and assignment to a column.  Everything else is
#: done by the operations below.
Array: TypeAlias = Any
#: A count matrix (N, M) in the backend's own layout, made by :meth:`Backend.counts`.  It has
#: ``shape`` and ``nnz``.
Counts: TypeAlias = Any
#: A NumPy array.
Host: TypeAlias = NDArray[Any]
SideName: TypeAlias = Literal["users", "items", "both"]
#: Dataclasses and tuples of arrays and of values that compare by ``==``.
ModelState = TypeVar("ModelState")


class BackendUnavailable(RuntimeError):
    """A backend cannot work on this machine; the message says why and how to fix it.

    Parameters
    ----------
    problem : str
        What is wrong.
    remedy : str
        How to fix it, with the command if there is one.
    expected : bool
        True if nothing is broken: the machine lacks the hardware, or it is hidden on purpose.
    """

    def __init__(self, problem: str, *, remedy: str = "", expected: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.expected = problem, remedy, expected

    def __str__(self) -> str:
        return f"{self.problem}; to fix it: {self.remedy}" if self.remedy else self.problem


class NotEnoughMemory(MemoryError):
    """The memory of the device or of the machine is too small; the message says for what, and what to do."""


class DeviceError(RuntimeError):
    """A GPU failed; the message says which operation noticed it, and how to find the one to blame."""


@dataclass(frozen=True)
class RankOne:
    """Rates of q(θ) of the form ``rows[n] + columns[k]``, which every update produces."""

    rows: Array  # (N,) float64
    columns: Array  # (K,) float64


@dataclass(frozen=True)
class Full:
    """Rates of q(θ) as a full matrix, for start values and for sides with folded-in rows."""

    matrix: Array  # (N, K)


Rates: TypeAlias = RankOne | Full


@dataclass(frozen=True)
class Factor:
    """The variational posterior q(θ) = Gamma(shape, rate) of one side, and its expected log.

    ``exp_log`` is exp(E[ln θ]/T) with every row divided by its largest entry, which keeps every entry in
    [0, 1].  ``log_scale`` is the logarithm of the divisors.  The temperature T is 1 except in models with
    neighbours.
    """

    shape: Array  # (N, K)
    rates: Rates  # (N, K)
    exp_log: Array  # (N, K)
    log_scale: Array  # (N,) float64
    temperature: float = 1.0

    @property
    def matrices(self) -> tuple[Array, Array]:
        """``shape`` and ``exp_log``, (N, K) each."""
        return self.shape, self.exp_log


@dataclass(frozen=True)
class Ascent:
    """What the updates of some rows have in common while the other side does not change.

    An update gives shapes ``prior_shape + statistic``, rates E[ξ] + ``columns`` and, of q(ξ), the rates
    ``slope · Σ_k E[θ_nk] + offset``.
    """

    prior_shape: float  # a
    columns: Array  # (K,) float64, column part of the rates of q(θ)
    hyper_shape: float  # of q(ξ)
    hyper_rate: tuple[float, float]  # slope and offset
    pins: tuple[tuple[int, float], ...]  # columns that no update changes, and their shapes
    maxiter: int
    threshold: float  # of the norm of the change of E[θ] in an iteration, below which no other follows
    exact: bool = False  # as in :meth:`Backend.allocate`


@dataclass(frozen=True)
class ItemScores:
    """What the items that users have add to the rates of other items, for :meth:`Backend.top_items`."""

    had: tuple[Host, Host]  # items of each user: CSR indptr (N + 1,) and numbers (Z,), ascending, below J
    indptr: Host  # (J + 1,)
    targets: Host  # (P,) for each item that a user may have: numbers of other items, ascending, below M
    weights: Host  # (P,) and their E[w], in the backend's dtype


@dataclass(frozen=True)
class DeviceData:
    """Counts of users and items that a backend has read from its own memory."""

    csr: Any  # (N, M), canonical as for :meth:`Backend.counts`, which accepts it; indptr is on the host
    user_ids: Host | None  # (N,); None where ids are row numbers
    item_ids: Host | None  # (M,)
    dropped: int  # number of zeros that were left out


class Backend(Protocol):
    """The operations.  Every matrix has dtype ``dtype``; sums and likelihoods are float64."""

    @property
    def name(self) -> str:
        """Name in ``HPF(backend=...)``, with the number of the device if it was named."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""

    def describe(self) -> str:
        """One line about the hardware in use: threads, instruction set, device."""

    def in_use(self) -> AbstractContextManager[object]:
        """The context for arithmetic on arrays.  The operations below need none."""

    def keep_pace(self) -> None:
        """Wait for all work that was submitted before the previous call of this method.

        A backend whose operations return before their work is done may otherwise fall behind without limit.
        """

    def asarray(self, host: Host) -> Array:
        """Copy a host array to the backend: a matrix (N, K) as ``dtype``, a vector (N,) as float64."""

    def asnumpy(self, array: Array) -> Host:
        """Copy an array to the host, C-contiguous."""

    def select_rows(self, array: Array, rows: Host) -> Array:
        """Copy of some rows, by number (B,), of a matrix (N, K) or a vector (N,)."""

    def select_columns(self, array: Array, columns: Host) -> Array:
        """Copy of some columns, by number (K',), of a matrix (N, K)."""

    def assign_rows(self, array: Array, rows: Host, values: Array) -> None:
        """Overwrite some rows, by distinct numbers (B,), with ``values``, (B, K) or (B,)."""

    def counts(self, csr: Any, k: int, sources: Host | None = None) -> Counts:
        """Copy counts (N, M), a canonical scipy CSR or ``DeviceData.csr``, into the layout for ``k`` factors.

        Canonical means: columns sorted within rows, no duplicates, all counts above zero.  With ``sources``
        (M, L), the neighbours of each item, the layout is that of operations which take weights w; they are
        column numbers in int32, ascending within a row, never the row's own, with −1 behind the last.

        Raises
        ------
        NotEnoughMemory
            If a fit of these counts is too large for the memory of the device.
        """

    def packed(self, counts: Counts) -> dict[str, Host]:
        """The arrays of counts (N, M) without neighbours in few bytes, on the host, to be written to a file.

        Counts take 8 or 16 bits if all are whole numbers that fit, else those of ``dtype``; the other numbers
        of nonzeros and of rows take as many as the largest needs.  Names and number of the arrays are the
        backend's own, and the layout may depend on its threads.

        Raises
        ------
        TypeError
            If the counts were laid out with neighbours.
        """

    def unpacked(self, arrays: Mapping[str, Host], shape: tuple[int, int], k: int) -> Counts:
        """Counts (N, M) for ``k`` factors, in the layout of those that were :meth:`packed`: a copy.

        With the same k, every operation returns the same bits for them.  This is to take far less time than
        :meth:`counts`, and may run in another thread while operations work on other counts.  Arrays may be
        read-only, as those of a mapped file.

        Raises
        ------
        ValueError
            If the arrays do not fit each other or the shape.  So a damaged file may have wrong numbers, but
            none that operations would follow out of an array.
        """

    def recorded(self, step: Callable[[ModelState], ModelState]) -> Callable[[ModelState], ModelState]:
        """The same function, which the backend may record while it is called and replay later.

        ``step`` calls operations of this backend and has no other effect.  A state that was returned is valid
        while the next one is computed from it; the call after that may overwrite its arrays.
        """

    def choose_neighbours(self, csr: Any, n: int) -> Host:
        """For each item the ``n`` items that occur with it far more often than by chance: (M, n), int32.

        For ``csr`` as for :meth:`counts`; the counts' values do not matter.  Those n items j are chosen whose
        n_ij ln(n_ij N / (n_i n_j)) is largest, where n_ij users have both items; of equal ones, to rounding,
        the lower number.  Only items with n_ij > 0 are chosen.  Numbers ascend, with −1 behind the last.
        There is never a matrix (M, M).
        """

    def read_device_data(self, data: Any, *, reindex: bool, has_counts: bool = True) -> DeviceData | None:
        """Read counts that are in this backend's own memory; None if they are not.

        Arrays are (n, 3), or without counts (n, 2), and every row is one.

        Raises errors for the same data as :func:`hpf_gpu.data.counts.training_data`; messages may differ.
        """

    def operand(self, host: Host) -> Array:
        """A host matrix (N, K) as an argument for operations that only read it.

        A backend that works in host memory returns the matrix itself, others a copy.
        """

    def gamma_update(
        self,
        statistic: Array,  # (N, K), overwritten: becomes the shape
        prior_shape: float,
        rates: Rates,  # (N, K)
        out: Array | None = None,  # (N, K), receives exp_log
        temperature: float = 1.0,  # T
    ) -> tuple[Factor, Array, Array]:
        """The gamma posterior with shape ``prior_shape + statistic``, and the sums of its mean.

        Returns the factor, the row sums Σ_k E[θ_nk] (N,) and the column sums Σ_n E[θ_nk] (K,), in float64.
        """

    def extrapolate(
        self,
        factor: Factor,  # (N, K)
        earlier: tuple[Array, Array],  # its exp_log (N, K) and log_scale (N,) some time ago
        steps: Array,  # (1,) k
        out: Array | None = None,  # (N, K), receives exp_log
    ) -> Factor:
        """The factor with E[ln θ] moved on by k/(k + 1) of its change since ``earlier``; as it is for k ≤ 0.

        Only ``exp_log`` and ``log_scale`` are new: shapes and rates, and so E[ln θ] where :meth:`allocate`
        computes it from them, are the old ones.  An entry of ``exp_log`` below the smallest normal number
        becomes zero, and one that was below it earlier keeps its ratio to the largest entry of the row.
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
        """Allocate every count to the factors: Σ_i y_ui φ_uik (N, K) and Σ_u y_ui φ_uik (M, K).

        φ_uik ∝ exp(E[ln θ_uk] + E[ln β_ik]) (Gopalan, Hofman and Blei 2015, section 3) is never stored.
        Nonzeros whose scaled product underflows, or all if ``exact``, use the max-shifted log-sum-exp.
        ``out`` has buffers that may be overwritten.  The result for a side that is not in ``side`` is None.
        """

    def allocate_with_neighbours(
        self,
        counts: Counts,  # with sources (M, L)
        users: Factor,
        items: Factor,
        weights: Factor,  # q(w), (M, L)
        *,
        side: SideName = "both",
        exact: bool = False,
        out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Allocate every count y_ui to the factors, and to those neighbours of item i that user u has.

        φ is proportional to exp((E[ln θ_uk] + E[ln β_ik])/T) for a factor and to exp(E[ln w_il]/T) for the
        neighbour l, over the K factors and the neighbours with a count in row u.  All three have the same T.
        Returns Σ_i y φ (N, K) of the users, Σ_u y φ (M, K) of the items and Σ_u y φ (M, L) of the weights.
        ``side`` "users" asks for the first, "items" for the other two; what is not asked for is None.
        ``exact`` and ``out`` are as in :meth:`allocate`.
        """

    def ascend(
        self,
        counts: Counts,
        rows: Factor,  # (N, K) at their start values
        others: Factor,  # (M, K)
        hyper_rate: Array,  # (N,) rates of q(ξ) at the start
        ascent: Ascent,
        weights: Factor | None = None,  # q(w), (M, L)
    ) -> tuple[Factor, Array, Array] | None:
        """All iterations of a fold-in at once: the rows (N, K), rates of q(ξ) (N,) and Σ_n E[θ_nk] (K,).

        They are those of :func:`hpf_gpu.model.inference.fold_in`, which makes them of the other operations
        where the result is None: where a backend has nothing faster, or none for so many rows.
        """

    def mean(self, factor: Factor, out: Array | None = None) -> Array:
        """E[θ] = shape / rate, (N, K), in ``out`` if that is passed."""

    def log_rate_sum(self, counts: Counts, theta: Array, beta: Array, weights: Array | None = None) -> float:
        """Σ y_ui ln(θ_u·β_i) over the nonzeros, the data term of the Poisson log-likelihood.

        With ``weights`` (M, L), the rate is θ_u·β_i + Σ_l w_il over the neighbours that user u has.
        """

    def log_normalizer_sum(
        self, counts: Counts, users: Factor, items: Factor, weights: Factor | None = None
    ) -> float:
        """Σ y_ui ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]), the data term of the ELBO.

        With ``weights``, T Σ y_ui ln of the sum to which φ of :meth:`allocate_with_neighbours` is normalized.
        """

    def log_count_products(
        self,
        counts: Counts,
        matrix: Array,  # x: (M, K) for the side "users", (N, K) for "items"
        scale: Array,  # s: (N,) for the side "users", (M,) for "items"
        *,
        side: Literal["users", "items"],
    ) -> Array:
        """Products of ln(1 + y) and a matrix: s_u Σ_i ln(1 + y_ui) x_ik (N, K) for the side "users".

        For "items" s_i Σ_u ln(1 + y_ui) x_uk (M, K).
        """

    def log_factorial_sum(self, counts: Counts) -> float:
        """Σ ln y! over all counts, which need not be integers."""

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
        """θ_u·β_i for pairs of row numbers of ``theta`` and ``beta``, (Z,) each; numbers must be in range."""

    def neighbour_rates(
        self,
        had: tuple[Host, Host],  # items of N users: CSR indptr (N + 1,) and numbers (Z',), ascending
        sources: Host,  # (M, L) as for counts
        weights: Array,  # (M, L) E[w]
        rows: Host,  # (Z,) numbers of users
        columns: Host,  # (Z,) numbers of items
    ) -> Host:
        """Σ_l w_il over the neighbours of item i that user u has, for pairs of users and items (Z,)."""

    def score_bounds(self, beta: Array) -> Any:
        """Upper bounds of the entries of β (M, K) in a quarter of their memory, for :meth:`top_items`.

        They are worth making for a matrix that is asked about often, for few users at a time.  None if a
        backend has none, or none of this matrix, as if an entry is negative.
        """

    def top_items(
        self,
        theta: Array,  # (N, K)
        beta: Array,  # (M, K)
        n: int,
        exclude: tuple[Host, Host] | None = None,  # CSR indptr (N + 1,) and column numbers (Z,) to exclude
        neighbours: ItemScores | None = None,
        bounds: Any = None,
    ) -> tuple[Host, Host]:
        """The ``n`` ≥ 1 largest θ_u·β_i of each row, best first: columns (N, n), int64, and scores (N, n).

        With ``neighbours``, the score is θ_u·β_i plus the weights towards i of all items that the user has.
        With ``bounds``, :meth:`score_bounds` of this very matrix, scores that cannot be among the largest are
        not computed.  The result is the same.

        Of equal scores the lower column comes first.  If fewer than ``n`` items are left, or ``n`` exceeds M,
        columns are padded with −1 and scores with −inf.  Column numbers in ``exclude`` must be in range and
        ascend within a row.  Temporaries take some tens of MB: there is never a matrix (N, M).
        """
