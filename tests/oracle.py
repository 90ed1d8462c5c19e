"""Hierarchical Poisson factorization in dense float64 formulas: slow, plain, and independent of hpf_gpu.

Everything follows from the model of Gopalan, Hofman and Blei (2015),

    y_ui = Σ_k z_uik,  z_uik ~ Poisson(θ_uk β_ik),
    θ_uk ~ Gamma(a, ξ_u),  ξ_u ~ Gamma(a', a'/b'),    β_ik ~ Gamma(c, η_i),  η_i ~ Gamma(c', c'/d'),

with q(z_ui) = Multinomial(y_ui, φ_ui) and gamma distributions, in shape and rate, for all the rest.
φ is written out as an (N, M, K) array, and no sum is rearranged to make it small or fast: the
library does both, and what it gains that way is checked against this file.

N users, M items, K factors.  Every array is float64 unless a start value is rounded on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.special import gammaln, logsumexp, psi

Matrix: TypeAlias = NDArray[np.float64]
Vector: TypeAlias = NDArray[np.float64]

# -- gamma distributions -----------------------------------------------------------------------


@dataclass(frozen=True)
class Gamma:
    """Independent Gamma(shape, rate) variables."""

    shape: NDArray[Any]  # (N, K) or (N,)
    rate: NDArray[Any]  # the same

    @property
    def mean(self) -> NDArray[Any]:
        """E[x], the same shape as the parameters."""
        return self.shape / self.rate

    @property
    def expected_log(self) -> NDArray[Any]:
        """E[ln x], the same shape as the parameters."""
        return psi(self.shape) - np.log(self.rate)

    @property
    def row_sums(self) -> Vector:
        """Σ_k E[x_nk], (N,)."""
        return self.mean.sum(axis=1)

    @property
    def column_sums(self) -> Vector:
        """Σ_n E[x_nk], (K,)."""
        return self.mean.sum(axis=0)

    @property
    def entropy(self) -> float:
        """−E[ln q(x)], summed over all variables."""
        log_density = (
            self.shape * np.log(self.rate)
            - gammaln(self.shape)
            + (self.shape - 1) * self.expected_log
            - self.rate * self.mean
        )
        return float(-log_density.sum())


def extrapolate(now: Matrix, then: Matrix, steps: float) -> Matrix:
    """E[ln θ] (N, K), further on by k/(k + 1) of its change, where k is ``steps``."""
    return now + steps / (steps + 1) * (now - then)


# -- φ and what it allocates -------------------------------------------------------------------


def log_phi(log_theta: Matrix, log_beta: Matrix) -> NDArray[np.float64]:
    """ln φ_uik (N, M, K) from E[ln θ] (N, K) and E[ln β] (M, K)."""
    logits = log_theta[:, None, :] + log_beta[None, :, :]
    return logits - logsumexp(logits, axis=2, keepdims=True)


def phi(log_theta: Matrix, log_beta: Matrix) -> NDArray[np.float64]:
    """φ_uik (N, M, K) from E[ln θ] (N, K) and E[ln β] (M, K)."""
    return np.exp(log_phi(log_theta, log_beta))


def expected_z(y: Matrix, log_theta: Matrix, log_beta: Matrix) -> NDArray[np.float64]:
    """E[z_uik] = y_ui φ_uik (N, M, K) from counts (N, M), E[ln θ] (N, K) and E[ln β] (M, K)."""
    return y[:, :, None] * phi(log_theta, log_beta)


def allocate(y: Matrix, log_theta: Matrix, log_beta: Matrix) -> tuple[Matrix, Matrix]:
    """Σ_i y_ui φ_uik (N, K) and Σ_u y_ui φ_uik (M, K)."""
    z = expected_z(y, log_theta, log_beta)
    return z.sum(axis=1), z.sum(axis=0)


# -- neighbours: y_ui ~ Poisson(θ_u·β_i + Σ_l w_il), over the neighbours l of item i that user u has ---


def had_neighbours(y: Matrix, sources: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Whether user u has neighbour l of item i, for the nonzeros (u, i) of counts (N, M): (Z, L)."""
    u, i = y.nonzero()
    return np.asarray((sources[i] >= 0) & (y[u[:, None], sources[i]] > 0))


def log_phi_with_neighbours(
    y: Matrix,  # (N, M)
    log_theta: Matrix,  # (N, K)
    log_beta: Matrix,  # (M, K)
    log_w: Matrix,  # (M, L)
    sources: NDArray[np.integer[Any]],  # (M, L)
    temperature: float,
) -> tuple[Matrix, Vector]:
    """ln φ (Z, K + L) of the nonzeros, and the logarithm of what φ was normalized by (Z,)."""
    u, i = y.nonzero()
    of_neighbours = np.where(had_neighbours(y, sources), log_w[i], -np.inf)
    logits = np.concatenate([log_theta[u] + log_beta[i], of_neighbours], axis=1) / temperature
    total = logsumexp(logits, axis=1, keepdims=True)
    return logits - total, total[:, 0]


def allocate_with_neighbours(
    y: Matrix,  # (N, M)
    log_theta: Matrix,  # (N, K)
    log_beta: Matrix,  # (M, K)
    log_w: Matrix,  # (M, L)
    sources: NDArray[np.integer[Any]],  # (M, L)
    temperature: float,
) -> tuple[Matrix, Matrix, Matrix]:
    """Σ_i y φ (N, K), Σ_u y φ (M, K), and Σ_u y φ of the neighbours (M, L)."""
    (u, i), k = y.nonzero(), log_theta.shape[1]
    log_phi, _ = log_phi_with_neighbours(y, log_theta, log_beta, log_w, sources, temperature)
    z = y[u, i][:, None] * np.exp(log_phi)
    sums = np.zeros_like(log_theta), np.zeros_like(log_beta), np.zeros_like(log_w)
    for total, rows, part in zip(sums, (u, i, i), (z[:, :k], z[:, :k], z[:, k:]), strict=True):
        np.add.at(total, rows, part)
    return sums


def rates_with_neighbours(
    y: Matrix,  # (N, M)
    theta: Matrix,  # (N, K)
    beta: Matrix,  # (M, K)
    w: Matrix,  # (M, L)
    sources: NDArray[np.integer[Any]],  # (M, L)
) -> Matrix:
    """θ_u·β_i + Σ_l w_il of all pairs (N, M), over the neighbours l of item i that user u has in ``y``."""
    of_neighbours = np.zeros(y.shape)
    for neighbour, weight in zip(sources.T, w.T, strict=True):
        of_neighbours += (y[:, neighbour] > 0) * np.where(neighbour >= 0, weight, 0)
    return theta @ beta.T + of_neighbours


def cooccurrence_scores(y: Matrix) -> Matrix:
    """n_ij ln(n_ij N / (n_i n_j)) of all pairs of items (M, M); −inf for i = j and pairs never together."""
    has = (y > 0).astype(np.float64)
    both, sizes = has.T @ has, has.sum(axis=0)
    np.fill_diagonal(both, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = both * np.log(both * len(y) / np.outer(sizes, sizes))
    return np.where(both > 0, scores, -np.inf)


# -- likelihoods -------------------------------------------------------------------------------


def log_rate_sum(y: Matrix, theta: Matrix, beta: Matrix) -> float:
    """Σ y_ui ln(θ_u·β_i) from counts (N, M), θ (N, K) and β (M, K)."""
    rate = theta @ beta.T
    u, i = y.nonzero()
    return float(np.sum(y[u, i] * np.log(rate[u, i])))


def log_count_products(y: Matrix, x: Matrix, scale: Matrix) -> Matrix:
    """s_u Σ_i ln(1 + y_ui) x_ik (N, K)."""
    return scale[:, None] * np.einsum("ui,ik->uk", np.log1p(y), x)


def log_factorial_sum(y: Matrix) -> float:
    """Σ ln y! of counts (N, M)."""
    return float(gammaln(y + 1).sum())


def log_normalizer_sum(y: Matrix, log_theta: Matrix, log_beta: Matrix) -> float:
    """Σ y_ui ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]) from counts (N, M), E[ln θ] (N, K), E[ln β] (M, K)."""
    return float(np.sum(y * logsumexp(log_theta[:, None, :] + log_beta[None, :, :], axis=2)))


def log_likelihood(y: Matrix, theta: Matrix, beta: Matrix, *, full: bool) -> float:
    """ln p(y | θ, β) of all pairs, zeros included; without −Σ ln y! unless ``full``.

    Counts (N, M), θ (N, K), β (M, K).
    """
    llk = log_rate_sum(y, theta, beta) - float(np.sum(theta @ beta.T))
    return llk - float(gammaln(y + 1).sum()) if full else llk


def pair_log_likelihood(
    theta: Matrix,  # (N, K)
    beta: Matrix,  # (M, K)
    rows: NDArray[np.integer[Any]],  # (Z,)
    columns: NDArray[np.integer[Any]],  # (Z,)
    values: Vector,  # (Z,)
    *,
    full: bool,
) -> float:
    """ln p of the given pairs alone; without −Σ ln y! unless ``full``."""
    llk = 0.0
    for u, i, y in zip(rows, columns, values, strict=True):
        rate = float(theta[u] @ beta[i])
        llk += y * np.log(rate) - rate - (gammaln(y + 1) if full else 0.0)
    return float(llk)


def top_items(
    scores: Matrix,  # (N, M)
    n: int,
    exclude: list[list[int]],  # items of each of the N users
) -> tuple[NDArray[np.int64], Matrix]:
    """The ``n`` best columns of each row and their scores, (N, n): best first, of equal ones the first.

    −1 and −inf where no more are left.
    """
    columns, best = np.full((len(scores), n), -1), np.full((len(scores), n), -np.inf)
    for u, row in enumerate(scores):
        left = np.setdiff1d(np.arange(len(row)), exclude[u])
        left = left[np.argsort(-row[left], kind="stable")][:n]
        columns[u, : len(left)] = left
        best[u, : len(left)] = row[left]
    return columns, best


# -- the evidence lower bound ------------------------------------------------------------------


@dataclass(frozen=True)
class Priors:
    """a, a', b' of the users and c, c', d' of the items."""

    a: float
    a_prime: float
    b_prime: float
    c: float
    c_prime: float
    d_prime: float


def gamma_elbo_terms(
    x: Gamma, hyper: Gamma, shape: float, hyper_shape: float, rate: float
) -> dict[str, float]:
    """ELBO terms of x_nk ~ Gamma(shape, h_n) and h_n ~ Gamma(hyper_shape, rate).

    ``x`` is q(x) with parameters (N, K), ``hyper`` is q(h) with parameters (N,).
    """
    log_h, h = hyper.expected_log[:, None], hyper.mean[:, None]  # (N, 1)
    log_p_x = shape * log_h - gammaln(shape) + (shape - 1) * x.expected_log - h * x.mean  # (N, K)
    log_p_h = (
        hyper_shape * np.log(rate)
        - gammaln(hyper_shape)
        + (hyper_shape - 1) * hyper.expected_log
        - rate * hyper.mean
    )  # (N,)
    return {
        "E[ln p(x|h)]": float(log_p_x.sum()),
        "E[ln p(h)]": float(log_p_h.sum()),
        "-E[ln q(x)]": x.entropy,
        "-E[ln q(h)]": hyper.entropy,
    }


def elbo_terms(
    y: Matrix,  # (N, M)
    theta: Gamma,  # (N, K)
    beta: Gamma,  # (M, K)
    xi: Gamma,  # (N,)
    eta: Gamma,  # (M,)
    priors: Priors,
) -> dict[str, float]:
    """The terms of the evidence lower bound, φ at its optimum.

    −Σ E[ln z!] stands in E[ln p(z|θ,β)] and +Σ E[ln z!] in the multinomials' entropy; both are left
    out, so that counts need not be whole.
    """
    log_p = log_phi(theta.expected_log, beta.expected_log)  # (N, M, K)
    z = y[:, :, None] * np.exp(log_p)  # (N, M, K)
    log_rate = theta.expected_log[:, None, :] + beta.expected_log[None, :, :]  # (N, M, K)
    rate = theta.mean[:, None, :] * beta.mean[None, :, :]  # (N, M, K)
    # φ = 0 comes with ln φ far below zero but finite, so that their product is a clean zero.
    terms = {
        "E[ln p(z|theta,beta)]": float((z * log_rate - rate).sum()),
        "-E[ln q(z)]": float(-(z * log_p).sum() - gammaln(y + 1).sum()),
    }
    users = gamma_elbo_terms(theta, xi, priors.a, priors.a_prime, priors.a_prime / priors.b_prime)
    items = gamma_elbo_terms(beta, eta, priors.c, priors.c_prime, priors.c_prime / priors.d_prime)
    terms |= {f"users: {name}": value for name, value in users.items()}
    return terms | {f"items: {name}": value for name, value in items.items()}


def magnitude(terms: dict[str, float]) -> float:
    """Sum of the absolute values: what rounding errors of the total are in proportion to."""
    return sum(abs(value) for value in terms.values())


# -- coordinate ascent -------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """All variational parameters, φ apart, and the ELBO after some iteration."""

    theta: Gamma  # (N, K)
    beta: Gamma  # (M, K)
    xi: Gamma  # (N,)
    eta: Gamma  # (M,)
    elbo: float
    elbo_magnitude: float


def fit(
    y: Matrix,  # (N, M)
    k: int,
    a: float,
    a_prime: float,
    b_prime: float,
    c: float,
    c_prime: float,
    d_prime: float,
    seed: int,
    dtype: DTypeLike,
    iterations: int,
    schedule: Literal["joint", "alternating"] = "joint",
) -> list[State]:
    """The state at hpfrec's start values, then after each iteration: ``iterations + 1`` of them.

    Only the start values are rounded to ``dtype``.  hpfrec's order is "joint": one φ serves both
    sides.  "alternating" computes φ anew once the users are updated.
    """
    n, m = y.shape
    priors = Priors(a, a_prime, b_prime, c, c_prime, d_prime)

    rng = np.random.Generator(np.random.MT19937(seed))
    theta_rate = a_prime + 0.01 * rng.random(size=(n, k), dtype=dtype)
    beta_rate = c_prime + 0.01 * rng.random(size=(m, k), dtype=dtype)
    theta_shape = a_prime + 0.01 * rng.random(size=(n, k), dtype=dtype)
    beta_shape = c_prime + 0.01 * rng.random(size=(m, k), dtype=dtype)
    theta = Gamma(theta_shape.astype(np.float64), theta_rate.astype(np.float64))
    beta = Gamma(beta_shape.astype(np.float64), beta_rate.astype(np.float64))
    xi = Gamma(np.full(n, a_prime + k * a), np.full(n, b_prime))
    eta = Gamma(np.full(m, c_prime + k * c), np.full(m, d_prime))

    def state() -> State:
        terms = elbo_terms(y, theta, beta, xi, eta, priors)
        return State(theta, beta, xi, eta, sum(terms.values()), magnitude(terms))

    states = [state()]
    for _ in range(iterations):
        z = expected_z(y, theta.expected_log, beta.expected_log)  # (N, M, K)
        theta = Gamma(a + z.sum(axis=1), xi.mean[:, None] + beta.column_sums)
        if schedule == "alternating":
            z = expected_z(y, theta.expected_log, beta.expected_log)
        beta = Gamma(c + z.sum(axis=0), eta.mean[:, None] + theta.column_sums)
        xi = Gamma(xi.shape, a_prime / b_prime + theta.row_sums)
        eta = Gamma(eta.shape, c_prime / d_prime + beta.row_sums)
        states.append(state())
    return states


def fold_in(
    y: Matrix,  # (N, M)
    beta: Gamma,  # (M, K)
    a: float,
    a_prime: float,
    b_prime: float,
    iterations: int,
) -> list[tuple[Gamma, Gamma]]:
    """θ (N, K) and ξ (N,) of new rows at their start values, then after each iteration with q(β) frozen."""
    n, k = y.shape[0], beta.shape.shape[1]
    theta = Gamma(np.full((n, k), a_prime), np.full((n, k), a_prime))
    xi = Gamma(np.full(n, a_prime + k * a), np.full(n, b_prime))
    states = [(theta, xi)]
    for _ in range(iterations):
        z = expected_z(y, theta.expected_log, beta.expected_log)
        theta = Gamma(a + z.sum(axis=1), xi.mean[:, None] + beta.column_sums)
        xi = Gamma(xi.shape, a_prime / b_prime + theta.row_sums)
        states.append((theta, xi))
    return states


# -- the rest of the family ----------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One side of a model in which columns of θ are pinned at one and whole sides fixed at given values.

    Beside a column of ones the last free column has biases.  While they ``wait`` they are Gamma(a, 2^80),
    next to nothing, and no part of the prior; then they get a tenth of each row's counts, and eight tenths
    stay where they were.
    """

    x: Gamma  # (N, K), of the free columns
    ones: int | None  # the column that is one
    hyper_rate: Vector  # (N,)
    shape: float
    hyper_shape: float
    hyper_mean: float
    hierarchical: bool
    known: Matrix | None  # (N, K), in place of all that
    wait: bool
    row_rate: Vector  # (N,) E[ξ] in the rates of the last update

    def _whole(self, free: Matrix, one: float) -> Matrix:
        return free if self.ones is None else np.insert(free, self.ones, one, axis=1)

    @property
    def mean(self) -> Matrix:
        return self._whole(self.x.mean, 1.0) if self.known is None else self.known

    @property
    def expected_log(self) -> Matrix:
        if self.known is None:
            return self._whole(self.x.expected_log, 0.0)
        return np.log(np.maximum(self.known, 1e-300))

    @property
    def hyper(self) -> Gamma:
        free = self.x.shape.shape[1] - self.wait
        return Gamma(np.full(len(self.hyper_rate), self.hyper_shape + free * self.shape), self.hyper_rate)

    @property
    def expected_hyper(self) -> Vector:
        return self.hyper.mean if self.hierarchical else np.full(len(self.hyper_rate), self.hyper_mean)

    def updated(self, z: Matrix, other_sums: Vector) -> Part:
        """Given Σ y φ (N, K) and the column sums (K,) of the other side's mean."""
        if self.known is not None:
            return self
        free = np.delete(np.arange(z.shape[1]), self.ones if self.ones is not None else [])
        rows = self.expected_hyper
        shape, rate = self.shape + z[:, free], rows[:, None] + other_sums[free]
        if self.wait:
            shape[:, -1], rate[:, -1] = self.shape, 2.0**80
        return replace(self._with(shape, rate), row_rate=rows)

    def freed(self, other_sums: Vector) -> Part:
        """Biases that have waited, set free."""
        free = np.delete(np.arange(len(other_sums)), self.ones)
        counts = self.x.shape - self.shape
        shape = self.shape + 0.8 * counts
        shape[:, -1] = self.shape + 0.1 * counts[:, :-1].sum(axis=1)
        return replace(self._with(shape, self.row_rate[:, None] + other_sums[free]), wait=False)

    def _with(self, shape: Matrix, rate: Matrix) -> Part:
        x = Gamma(shape, rate)
        return replace(self, x=x, hyper_rate=self.hyper_shape / self.hyper_mean + x.row_sums)

    @property
    def elbo_terms(self) -> list[float]:
        if self.known is not None:
            return []
        if self.hierarchical:
            rate = self.hyper_shape / self.hyper_mean
            return list(gamma_elbo_terms(self.x, self.hyper, self.shape, self.hyper_shape, rate).values())
        log_p = self.shape * np.log(self.hyper_mean) - gammaln(self.shape)
        log_p = log_p + (self.shape - 1) * self.x.expected_log - self.hyper_mean * self.x.mean  # (N, K)
        return [float(log_p.sum()), self.x.entropy]


def family_start(
    shape: tuple[int, int],
    k: int,
    priors: Priors,
    seed: int,
    dtype: DTypeLike,
    *,
    hierarchical: bool = True,
    bias: bool = False,
    known_users: Matrix | None = None,
    known_items: Matrix | None = None,
) -> tuple[Part, Part]:
    """Both sides at hpfrec's start values; without factors (``k`` = 0) users are a column of ones."""
    n, m = shape
    width = max(1, k + 2 * bias)
    rng = np.random.Generator(np.random.MT19937(seed))
    levels = (priors.a_prime, priors.c_prime, priors.a_prime, priors.c_prime)
    drawn = [
        (level + 0.01 * rng.random(size=(rows, width), dtype=dtype)).astype(np.float64)
        for level, rows in zip(levels, (n, m, n, m), strict=True)
    ]
    waits = bias and known_users is None and known_items is None

    def part(
        shape: Matrix, rate: Matrix, ones: int | None, prior: tuple[float, ...], known: Matrix | None
    ) -> Part:
        free = np.delete(np.arange(width), [] if ones is None else ones)
        start = np.full(len(shape), prior[2])
        shape, rate = shape[:, free], rate[:, free]
        if waits:
            shape[:, -1], rate[:, -1] = prior[0], 2.0**80
        return Part(Gamma(shape, rate), ones, start, *prior, hierarchical, known, waits, start)

    p = priors
    of_users, of_items = (k + 1, k) if bias else (None if k else 0, None)
    users = part(drawn[2], drawn[0], of_users, (p.a, p.a_prime, p.b_prime), known_users)
    items = part(drawn[3], drawn[1], of_items, (p.c, p.c_prime, p.d_prime), known_items)
    return users, items


def fit_family(
    y: Matrix,  # (N, M)
    k: int,
    priors: Priors,
    seed: int,
    dtype: DTypeLike,
    iterations: int,
    schedule: Literal["joint", "alternating"] = "joint",
    *,
    hierarchical: bool = True,
    bias: bool = False,
    known_users: Matrix | None = None,
    known_items: Matrix | None = None,
) -> list[tuple[Part, Part, float, float]]:
    """Both sides, the ELBO and its magnitude after each iteration, without constants for known sides.

    Eleven updates for which biases wait are not among them.
    """
    users, items = family_start(
        y.shape,
        k,
        priors,
        seed,
        dtype,
        hierarchical=hierarchical,
        bias=bias,
        known_users=known_users,
        known_items=known_items,
    )
    waits = users.wait
    states = []
    waiting = 11 * waits
    for iteration in range(waiting + iterations):
        if waits and iteration == waiting:
            item_sums, user_sums = items.mean.sum(axis=0), users.mean.sum(axis=0)
            users, items = users.freed(item_sums), items.freed(user_sums)
        z = expected_z(y, users.expected_log, items.expected_log)
        users = users.updated(z.sum(axis=1), items.mean.sum(axis=0))
        if schedule == "alternating":
            z = expected_z(y, users.expected_log, items.expected_log)
        items = items.updated(z.sum(axis=0), users.mean.sum(axis=0))
        terms = [
            log_normalizer_sum(y, users.expected_log, items.expected_log),
            -float((users.mean @ items.mean.T).sum()),
            -log_factorial_sum(y),
            *users.elbo_terms,
            *items.elbo_terms,
        ]
        states.append((users, items, sum(terms), sum(map(abs, terms))))
    return states[waiting:]


# -- whole fits with neighbours --------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """q(w) over the neighbours of each item; what is beyond an item's last neighbour is not part of it."""

    w: Gamma  # (M, L)
    sources: NDArray[np.integer[Any]]  # (M, L)
    shape: float
    rate: float
    temperature: float

    @property
    def mean(self) -> Matrix:
        return np.where(self.sources >= 0, self.w.mean, 0.0)

    def updated(self, y: Matrix, z: Matrix) -> Weights:
        """Given Σ y φ (M, L): the rate counts the users that have the neighbour."""
        return replace(self, w=Gamma(self.shape + z, self.rate + users_with(y, self.sources)))

    @property
    def elbo_terms(self) -> list[float]:
        real = self.sources >= 0
        w = Gamma(self.w.shape[real], self.w.rate[real])
        log_p = self.shape * np.log(self.rate) - gammaln(self.shape)
        log_p = log_p + (self.shape - 1) * w.expected_log - self.rate * w.mean
        return [float(log_p.sum()), w.entropy]


def users_with(y: Matrix, sources: NDArray[np.integer[Any]]) -> Matrix:
    """Number of users with a count of each neighbour (M, L); zero beyond the last."""
    return np.where(sources >= 0, (y > 0).sum(axis=0)[sources], 0).astype(np.float64)


def start_weights(
    y: Matrix, sources: NDArray[np.integer[Any]], shape: float, rate: float, temperature: float
) -> Weights:
    """Equal weights within an item, so that over all users they sum up to half of its counts."""
    each = 0.5 * y.sum(axis=0) / np.maximum(users_with(y, sources).sum(axis=1), 1)  # (M,)
    level = np.broadcast_to(1 / np.maximum(each, np.finfo(np.float32).tiny)[:, None], sources.shape)
    return Weights(Gamma(np.ones(sources.shape), level), sources, shape, rate, temperature)


def fit_with_neighbours(
    y: Matrix,  # (N, M)
    users: Part,
    items: Part,
    weights: Weights,
    iterations: int,
    schedule: Literal["joint", "alternating"] = "joint",
) -> list[tuple[Part, Part, Weights, float, float]]:
    """Both sides, the weights, the ELBO and its magnitude after each iteration from these start values.

    The ELBO has T times the entropy of φ.  Eleven updates for which biases wait are not among the iterations.
    """
    (u, i), states, k = y.nonzero(), [], users.mean.shape[1]
    waiting = 11 * users.wait

    def log_means() -> tuple[Matrix, Matrix, Matrix]:
        return users.expected_log, items.expected_log, weights.w.expected_log

    def allocated() -> tuple[Matrix, Matrix, Matrix]:
        return allocate_with_neighbours(y, *log_means(), weights.sources, weights.temperature)

    for iteration in range(waiting + iterations):
        if users.wait and iteration == waiting:
            item_sums, user_sums = items.mean.sum(axis=0), users.mean.sum(axis=0)
            users, items = users.freed(item_sums), items.freed(user_sums)
        z = allocated()
        users = users.updated(z[0], items.mean.sum(axis=0))
        if schedule == "alternating":
            z = allocated()
        items = items.updated(z[1], users.mean.sum(axis=0))
        weights = weights.updated(y, z[2])

        log_p, _ = log_phi_with_neighbours(y, *log_means(), weights.sources, weights.temperature)
        z_of_all = y[u, i][:, None] * np.exp(log_p)  # (Z, K + L)
        of_factors = users.expected_log[u] + items.expected_log[i]
        log_rate = np.concatenate([of_factors, weights.w.expected_log[i]], axis=1)
        entropy = -weights.temperature * z_of_all * np.where(z_of_all > 0, log_p, 0)
        rates = rates_with_neighbours(y, users.mean, items.mean, weights.mean, weights.sources)
        terms = [
            float((z_of_all[:, :k] * log_rate[:, :k]).sum()),
            float((z_of_all[:, k:] * log_rate[:, k:]).sum()),
            float(entropy.sum()),
            -float(rates.sum()),
            -log_factorial_sum(y),
            *users.elbo_terms,
            *items.elbo_terms,
            *weights.elbo_terms,
        ]
        states.append((users, items, weights, sum(terms), sum(map(abs, terms))))
    return states[waiting:]


def fold_in_with_neighbours(
    y: Matrix,  # (N, M)
    beta: Gamma,  # (M, K)
    weights: Weights,
    a: float,
    a_prime: float,
    b_prime: float,
    iterations: int,
) -> Gamma:
    """θ (N, K) of new rows after some iterations with q(β) and q(w) frozen."""
    n, k = y.shape[0], beta.shape.shape[1]
    theta = Gamma(np.full((n, k), a_prime), np.full((n, k), a_prime))
    xi = Gamma(np.full(n, a_prime + k * a), np.full(n, b_prime))
    for _ in range(iterations):
        log_means = theta.expected_log, beta.expected_log, weights.w.expected_log
        z, *_ = allocate_with_neighbours(y, *log_means, weights.sources, weights.temperature)
        theta = Gamma(a + z, xi.mean[:, None] + beta.column_sums)
        xi = Gamma(xi.shape, a_prime / b_prime + theta.row_sums)
    return theta


def ascend(
    y: Matrix,  # (N, M)
    theta: Gamma,  # (N, K) at the start
    beta: Gamma,  # (M, K)
    xi_rate: Vector,  # (N,) at the start
    weights: Weights | None,
    a: float,
    column_rate: Vector,  # (K,)
    xi_shape: float,
    xi_line: tuple[float, float],
    pins: dict[int, float],  # shapes by column
    iterations: int,
) -> list[tuple[Gamma, Vector]]:
    """θ and the rates of ξ at the start and after each iteration in which nothing else is updated.

    The rates of ξ are a linear function of the sums of rows of E[θ], with a slope and an offset.
    """
    states = [(theta, xi_rate)]
    for _ in range(iterations):
        if weights is None:
            z, _ = allocate(y, theta.expected_log, beta.expected_log)
        else:
            logs = theta.expected_log, beta.expected_log, weights.w.expected_log
            z, *_ = allocate_with_neighbours(y, *logs, weights.sources, weights.temperature)
        shape = a + z
        for column, pinned in pins.items():
            shape[:, column] = pinned
        theta = Gamma(shape, (xi_shape / xi_rate)[:, None] + column_rate)
        xi_rate = xi_line[0] * theta.row_sums + xi_line[1]
        states.append((theta, xi_rate))
    return states


# -- stochastic updates ------------------------------------------------------------------------


@dataclass(frozen=True)
class Half:
    """One side in a stochastic fit.  Its rates are kept as the sum that they are."""

    shape: Matrix  # (N, K)
    row_rate: Vector  # (N,) E[ξ]
    column_rate: Vector  # (K,) Σ E[β]
    hyper_rate: Vector  # (N,)
    prior_shape: float
    prior_hyper_shape: float
    prior_hyper_rate: float

    @property
    def gamma(self) -> Gamma:
        return Gamma(self.shape, self.row_rate[:, None] + self.column_rate)

    @property
    def expected_hyper(self) -> Vector:
        return (self.prior_hyper_shape + self.shape.shape[1] * self.prior_shape) / self.hyper_rate

    def with_optimal_hyper(self) -> Half:
        """q(ξ) at its optimum."""
        return replace(self, hyper_rate=self.prior_hyper_rate + self.gamma.row_sums)


def stochastic_epoch(
    y: Matrix,  # (N, M)
    own: Half,  # N rows
    other: Half,  # M rows
    batches: list[NDArray[np.int64]],
    steps: int,
    rho: float,
    schedule: Literal["joint", "alternating"],
) -> tuple[Half, Half]:
    """Stochastic variational inference (Hoffman et al. 2013), batch by batch.

    The rows of a batch are updated ``steps`` times; then every parameter of the other side becomes
    (1 − ρ) of itself and ρ of what the batch, taken N/B times, would make of it.
    """
    shape, row_rate = own.shape.copy(), own.row_rate.copy()
    for rows in batches:
        column_rate = other.gamma.column_sums
        part = replace(
            own, shape=own.shape[rows], row_rate=own.row_rate[rows], hyper_rate=own.hyper_rate[rows]
        )
        for _ in range(steps):
            z = expected_z(y[rows], part.gamma.expected_log, other.gamma.expected_log)  # (B, M, K)
            part = replace(
                part,
                shape=own.prior_shape + z.sum(axis=1),
                row_rate=part.expected_hyper,
                column_rate=column_rate,
            ).with_optimal_hyper()
        if schedule == "alternating":
            z = expected_z(y[rows], part.gamma.expected_log, other.gamma.expected_log)
        many = len(y) / len(rows)
        other = replace(
            other,
            shape=(1 - rho) * other.shape + rho * (other.prior_shape + many * z.sum(axis=0)),
            row_rate=(1 - rho) * other.row_rate + rho * other.expected_hyper,
            column_rate=(1 - rho) * other.column_rate + rho * many * part.gamma.column_sums,
        ).with_optimal_hyper()
        shape[rows], row_rate[rows] = part.shape, part.row_rate
    # Every row ends with the column rates of the last batch.
    own = replace(own, shape=shape, row_rate=row_rate, column_rate=column_rate)
    return own.with_optimal_hyper(), other
