"""How certain expected counts are: moments, quantiles and draws of rates under the posterior.

Under q all θ_uk, β_ik and w_il are independent gamma variables, so that the mean and the variance of the rate
λ_ui = Σ_k θ_uk β_ik + Σ_l w_il are sums over its terms, and exact: a gamma variable with mean m and shape s
has the variance m²/s, and a product of two independent ones

    Var(θβ) = Var(θ) (E[β]² + Var(β)) + E[θ]² Var(β),

in which nothing cancels.  The rate's distribution has no closed form; it is taken for the gamma distribution
with the same mean and variance, and counts with such a rate have a negative binomial distribution.
docs/uncertainty.md says how far that is from draws of the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from hpf_gpu.backends.protocol import Backend
from hpf_gpu.data.ids import Ids, table
from hpf_gpu.data.seen import UserItems, exclude, items_of, places_in
from hpf_gpu.messages import warn
from hpf_gpu.model.fitted import Fitted
from hpf_gpu.model.neighbours import Neighbours
from hpf_gpu.model.settings import Choice
from hpf_gpu.ranking import best_columns

from .predictions import backend_for, of_neighbours, of_pairs, paired

_BLOCK = 1 << 20  # rates of all items that exist at once
_KNOTS = 4096  # between which quantiles are interpolated; so many and fewer are computed one by one
_CLOSE = 1e-6  # relative, far above the error of interpolated quantiles, 8e-8


class PosteriorSample(NamedTuple):
    """Draws of the factors, and of the weights of neighbours if there are any."""

    Theta: NDArray[Any]  # (n, N, K)
    Beta: NDArray[Any]  # (n, M, K)
    weights: NDArray[Any] | None  # (n, M, L)


@dataclass(frozen=True)
class Gammas:
    """Independent gamma variables, by their means and shapes in float64."""

    mean: NDArray[np.float64]
    shape: NDArray[np.float64]  # the same shape

    @staticmethod
    def of(mean: NDArray[Any], shape: NDArray[Any]) -> Gammas:
        """From means and shapes of any dtype."""
        return Gammas(mean.astype(np.float64), shape.astype(np.float64))

    @property
    def variance(self) -> NDArray[np.float64]:
        """m²/s; fixed values have huge shapes, and a variance that is lost in rounding."""
        variance: NDArray[np.float64] = self.mean * (self.mean / self.shape)
        return variance

    @property
    def left(self) -> NDArray[np.float64]:
        """What is multiplied by ``right`` of other variables for variances of products, (N, 2K)."""
        return np.concatenate([self.variance, self.mean**2], axis=1)

    @property
    def right(self) -> NDArray[np.float64]:
        """See ``left``."""
        variance = self.variance
        return np.concatenate([self.mean**2 + variance, variance], axis=1)

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Draws of each variable, (n, N, K)."""
        drawn: NDArray[np.float64] = rng.standard_gamma(self.shape, (n, *self.shape.shape))
        drawn *= self.mean / self.shape
        return drawn


@dataclass(frozen=True)
class Moments:
    """Mean and variance of rates, of any shape."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    def __getitem__(self, places: Any) -> Moments:
        """Those of some of the rates."""
        return Moments(self.mean[places], self.variance[places])

    @property
    def gamma_shape(self) -> NDArray[np.float64]:
        """Shape of the gamma distribution with these moments; 1 where the rate is zero."""
        zero = self.variance == 0
        shape: NDArray[np.float64] = self.mean / np.where(zero, 1.0, self.variance) * self.mean
        shape[zero] = 1.0
        return shape

    def quantiles(self, p: float) -> NDArray[np.float64]:
        """Quantiles of the gamma distributions with these moments.

        Divided by the mean they depend on the shape alone.  Many are interpolated in its logarithm, in a
        tenth of the time.
        """
        from scipy.special import gammaincinv

        shape = self.gamma_shape
        if shape.size <= _KNOTS:
            return np.asarray(self.mean * (gammaincinv(shape, p) / shape))
        logs = np.log(shape)
        start, step = logs.min(), (logs.max() - logs.min() + 1e-6) / (_KNOTS - 1)
        knots = np.exp(start + step * np.arange(_KNOTS))
        smooth = _interpolated(_log_ratio(knots, p) * _scale(knots), (logs - start) / step)
        return np.asarray(self.mean * np.exp(smooth / _scale(shape)))

    def bounds_of_quantiles(self, p: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What quantiles lie between; here they themselves."""
        quantiles = self.quantiles(p)
        return quantiles, quantiles

    def below(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability that the gamma variables are at most ``rates``."""
        from scipy.special import gammainc

        shape, zero = self.gamma_shape, self.mean == 0
        within = gammainc(shape, rates * (shape / np.where(zero, 1.0, self.mean)))
        return np.asarray(np.where(zero, 1.0, within))

    def count_quantiles(self, p: float) -> NDArray[np.float64]:
        """Smallest counts y with P(Y ≤ y) ≥ p, where Y is Poisson with such a gamma variable for its rate."""
        # P(Y ≤ high) ≥ p by Cantelli's inequality.
        high = np.ceil(self.mean + np.sqrt((self.mean + self.variance) * (p / (1 - p))))
        return _smallest_counts(self.counts_below, p, np.full(high.shape, -1.0), high)

    def counts_below(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(Y ≤ counts) of such counts Y."""
        from scipy.special import betainc

        shape = self.gamma_shape
        return np.asarray(betainc(shape, counts + 1, shape / (shape + self.mean)))

    @property
    def positive(self) -> NDArray[np.float64]:
        """P(Y > 0)."""
        return np.asarray(-np.expm1(self.log_of_zero(1.0)))

    def log_of_zero(self, exposure: float) -> NDArray[np.float64]:
        """ln P(Y = 0), where the rate of Y is ``exposure`` times such a gamma variable."""
        shape = self.gamma_shape
        return np.asarray(-shape * np.log1p(exposure * self.mean / shape))

    def log_probability(self, counts: NDArray[np.float64], exposure: float) -> NDArray[np.float64]:
        """ln P(Y = counts) of the same Y, for counts above zero."""
        from scipy.special import betaln

        shape, mean = self.gamma_shape, np.maximum(exposure * self.mean, np.finfo(np.float64).tiny)
        # ln Γ(s + y) − ln Γ(s) − ln y!, in which betaln cancels what is large.
        ways = -betaln(shape, counts) - np.log(counts)
        of_counts = counts * (np.log(mean) - np.log(shape + mean))
        return np.asarray(ways + of_counts + self.log_of_zero(exposure))


@dataclass(frozen=True)
class Mixture:
    """Rates each of which is that of one of several models, drawn by their weights."""

    parts: Sequence[Moments]
    weights: Sequence[float]  # of the parts, above zero; their sum is 1

    def __getitem__(self, places: Any) -> Mixture:
        """Some of the rates."""
        return Mixture([part[places] for part in self.parts], self.weights)

    def _mean_of(self, arrays: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(sum(w * array for w, array in zip(self.weights, arrays, strict=True)))

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the rates."""
        return self._mean_of(part.mean for part in self.parts)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance within the models, and between them."""
        mean = self.mean
        return self._mean_of(part.variance + (part.mean - mean) ** 2 for part in self.parts)

    def bounds_of_quantiles(self, p: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The smallest and the largest quantiles of the parts, between which those of the mixture lie."""
        of_parts = [part.quantiles(p) for part in self.parts]
        return np.minimum.reduce(of_parts), np.maximum.reduce(of_parts)

    def quantiles(self, p: float) -> NDArray[np.float64]:
        """Quantiles of the mixture of gamma distributions, to 1e-12."""
        tiny = np.finfo(np.float64).tiny
        low, high = (np.log(np.maximum(bound, tiny)) for bound in self.bounds_of_quantiles(p))
        while (high - low > 1e-12).any():
            middle = (low + high) / 2
            if np.array_equal(middle, low) or np.array_equal(middle, high):
                break
            reached = self._mean_of(part.below(np.exp(middle)) for part in self.parts) >= p
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return np.asarray(np.exp(high))

    def count_quantiles(self, p: float) -> NDArray[np.float64]:
        """Smallest counts y with P(Y ≤ y) ≥ p, which also lie between those of the parts."""
        of_parts = np.array([part.count_quantiles(p) for part in self.parts])

        def below(counts: NDArray[np.float64]) -> NDArray[np.float64]:
            return self._mean_of(part.counts_below(counts) for part in self.parts)

        return _smallest_counts(below, p, of_parts.min(axis=0) - 1, of_parts.max(axis=0))

    @property
    def positive(self) -> NDArray[np.float64]:
        """P(Y > 0)."""
        return self._mean_of(part.positive for part in self.parts)

    def log_of_zero(self, exposure: float) -> NDArray[np.float64]:
        """ln P(Y = 0); see :meth:`Moments.log_of_zero`."""
        return self._log_mean_of([part.log_of_zero(exposure) for part in self.parts])

    def log_probability(self, counts: NDArray[np.float64], exposure: float) -> NDArray[np.float64]:
        """ln P(Y = counts) for counts above zero."""
        return self._log_mean_of([part.log_probability(counts, exposure) for part in self.parts])

    def _log_mean_of(self, logs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        weighted = [np.log(w) + log for w, log in zip(self.weights, logs, strict=True)]
        return np.asarray(np.logaddexp.reduce(weighted))


def _smallest_counts(
    below: Callable[[NDArray[np.float64]], NDArray[np.float64]],  # P(Y ≤ y) for counts y
    p: float,
    low: NDArray[np.float64],  # P(Y ≤ low) < p
    high: NDArray[np.float64],  # P(Y ≤ high) ≥ p
) -> NDArray[np.float64]:
    """Smallest counts y with P(Y ≤ y) ≥ p."""
    while (high - low > np.maximum(1.0, np.spacing(high))).any():
        middle = np.floor((low + high) / 2)
        reached = (middle >= 0) & (below(np.maximum(middle, 0)) >= p)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


def _log_ratio(shape: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """Logarithm of a quantile of gamma distributions, divided by their mean."""
    from scipy.special import gammaincinv, gammaln

    quantile = gammaincinv(shape, p)
    tiny = quantile < np.finfo(np.float64).tiny
    # For x towards zero P(X ≤ x) is x^s / Γ(s + 1).
    of_tiny = (np.log(p) + gammaln(shape + 1)) / shape
    return np.asarray(np.where(tiny, of_tiny, np.log(np.where(tiny, 1.0, quantile))) - np.log(shape))


def _scale(shape: NDArray[np.float64]) -> NDArray[np.float64]:
    """What logarithms of quantiles are multiplied by: they are as 1/s for s → 0, and as 1/√s for s → ∞."""
    return np.asarray(shape / (1 + np.sqrt(shape)))


def _interpolated(values: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at places 0, 1, 2 ... interpolated by a cubic polynomial through the four nearest."""
    first = np.clip(places.astype(np.int64) - 1, 0, len(values) - 4)
    x = places - first
    a, b, c = x - 1, x - 2, x - 3
    ends = values[first + 3] * (x * a * b) - values[first] * (a * b * c)
    middle = values[first + 1] * (x * b * c) - values[first + 2] * (x * a * c)
    return np.asarray(ends / 6 + middle / 2)


#: Moments of the rates of pairs of row and column numbers, (Z,) each.
OfPairs: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], Moments | Mixture]
#: Those of some items (b, M') for each of a slice of the users.
OfUsers: TypeAlias = Callable[[slice], Moments]


def tails(level: float) -> tuple[float, float]:
    """Probabilities below the lower and the upper bound of a central interval."""
    return (1 - level) / 2, (1 + level) / 2


# -- pairs ---------------------------------------------------------------------------------------


def predict_interval(
    users: Ids, items: Ids, moments: OfPairs, user: Any, item: Any, level: float, *, of_counts: bool
) -> pd.DataFrame:
    """Intervals of pairs; see :meth:`hpf_gpu.HPF.predict_interval`."""
    rows, columns = _known_pairs(users, items, user, item)
    rates = moments(rows, columns)
    variance, quantiles = rates.variance, rates.quantiles
    if of_counts:
        variance, quantiles = rates.mean + variance, rates.count_quantiles
    low, high = tails(level)
    return table(
        {
            "UserId": users.column(rows),
            "ItemId": items.column(columns),
            "Mean": rates.mean,
            "Std": np.sqrt(variance),
            "Lower": quantiles(low),
            "Upper": quantiles(high),
        }
    )


def intervals_of_counts(of: Any, taken: str) -> bool:
    """Whether intervals are to be of counts; ValueError if they cannot, by what is ``taken`` for a count."""
    of_counts = Choice(("rate", "count")).checked("of", of) == "count"
    if of_counts and taken != "raw":
        raise ValueError(
            f"this model is one of counts={taken!r}, which its intervals of counts would be of: "
            "ask for of='rate', or for predict_proba"
        )
    return of_counts


def predict_proba(users: Ids, items: Ids, moments: OfPairs, user: Any, item: Any) -> Any:
    """P(y > 0) of pairs; see :meth:`hpf_gpu.HPF.predict_proba`."""

    def of_numbers(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.float64]:
        return moments(rows, columns).positive

    return of_pairs(users, items, user, item, np.dtype(np.float64), of_numbers)


def sample_rates(
    users: Ids,
    items: Ids,
    draw: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
    user: Any,
    item: Any,
    n: int,
) -> NDArray[np.float64]:
    """Draws of the rates of pairs, (n, Z), by those (n, Z') of pairs of row and column numbers (Z',) each."""
    rows, columns = paired(users.codes_of(user), items.codes_of(item))
    known = (rows >= 0) & (columns >= 0)
    rates = np.full((n, len(rows)), np.nan)
    if known.any():
        rates[:, known] = draw(rows[known], columns[known])
    return rates


def draws_of_rates(
    fitted: Fitted,
    threads: int | None,
    n: int,
    rng: np.random.Generator,
    rows: NDArray[Any],  # (Z,)
    columns: NDArray[Any],  # (Z,)
) -> NDArray[np.float64]:
    """Draws of the rates of pairs of row and column numbers, (n, Z)."""
    users, row = np.unique(rows, return_inverse=True)
    items, column = np.unique(columns, return_inverse=True)
    backend, theta, beta = _backend(fitted, threads), factors_of_users(fitted, users), _items(fitted, items)
    weights = None if fitted.neighbours is None else _weights(fitted.neighbours, items)
    rates = np.empty((n, len(rows)))
    step = max(1, _BLOCK // (theta.mean.size + beta.mean.size + len(row)))
    for start in range(0, n, step):
        draws = min(step, n - start)
        # The draws of a user are as many users, and one product has the pairs of all.
        thetas, betas = (gammas.draw(rng, draws).reshape(-1, fitted.k) for gammas in (theta, beta))
        number = np.arange(draws)[:, None]
        places = (row + number * len(users)).ravel(), (column + number * len(items)).ravel()
        drawn = backend.predict_pairs(thetas, betas, *places).reshape(draws, -1)
        if weights is not None:
            for one in drawn:
                one += of_neighbours(backend, fitted, weights.draw(rng, 1)[0], users, items, row, column)
        rates[start : start + draws] = drawn
    return rates


def _known_pairs(users: Ids, items: Ids, user: Any, item: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row and column numbers of pairs, (Z,) each; those with an unknown id are left out with a warning."""
    rows, columns = paired(users.codes_of(user), items.codes_of(item))
    known = (rows >= 0) & (columns >= 0)
    if known.all():
        return rows, columns
    if not known.any():
        raise ValueError("no pair has a user and an item that were both in the training data")
    left_out = f"{np.sum(~known)} of {len(known)} pairs were left out"
    warn(f"{left_out}: their user or item was not in the training data")
    return rows[known], columns[known]


def moments_of(fitted: Fitted, threads: int | None, rows: NDArray[Any], columns: NDArray[Any]) -> Moments:
    """Moments of the rates of pairs of row and column numbers, (Z,) each."""
    if len(rows) == 0:
        return Moments(np.zeros(0), np.zeros(0))
    users, row = np.unique(rows, return_inverse=True)
    items, column = np.unique(columns, return_inverse=True)
    backend, theta, beta = _backend(fitted, threads), factors_of_users(fitted, users), _items(fitted, items)
    mean = backend.predict_pairs(theta.mean, beta.mean, row, column)
    variance = backend.predict_pairs(theta.left, beta.right, row, column)
    if fitted.neighbours is not None:
        weights = _weights(fitted.neighbours, items)
        mean += of_neighbours(backend, fitted, weights.mean, users, items, row, column)
        variance += of_neighbours(backend, fitted, weights.variance, users, items, row, column)
    return Moments(mean, variance)


def _backend(fitted: Fitted, threads: int | None) -> Backend:
    """The backend for answers in float64, whatever the model's dtype."""
    return backend_for(fitted, threads, dtype=np.dtype(np.float64))


def factors_of_users(fitted: Fitted, rows: NDArray[Any] | slice) -> Gammas:
    """q(θ) of some users, (B, K)."""
    return Gammas.of(fitted.theta[rows], fitted.require_posteriors("uncertainty")[0].shape[rows])


def _items(fitted: Fitted, columns: NDArray[Any] | slice) -> Gammas:
    """q(β) of some items, (M', K)."""
    return Gammas.of(fitted.beta[columns], fitted.require_posteriors("uncertainty")[1].shape[columns])


def _weights(neighbours: Neighbours, columns: NDArray[Any] | slice) -> Gammas:
    """q(w) of some items, (M', L)."""
    return Gammas.of(neighbours.mean[columns], neighbours.shape[columns])


# -- draws of the factors ------------------------------------------------------------------------


def sample_posterior(fitted: Fitted, n: int, rng: np.random.Generator) -> PosteriorSample:
    """Draws of all factors; see :meth:`hpf_gpu.HPF.sample_posterior`."""
    everything = slice(None)
    drawn = [factors_of_users(fitted, everything), _items(fitted, everything)]
    if fitted.neighbours is not None:
        drawn.append(_weights(fitted.neighbours, everything))
    draws = [np.empty((n, *gammas.mean.shape), fitted.dtype) for gammas in drawn]
    for number in range(n):
        for gammas, into in zip(drawn, draws, strict=True):
            into[number] = gammas.draw(rng, 1)[0]
    theta, beta, *weights = draws
    return PosteriorSample(theta, beta, weights[0] if weights else None)


# -- lists ---------------------------------------------------------------------------------------


def rank_by_quantile(
    rates: Callable[[slice], Moments | Mixture],  # of the items to choose from, for a slice of the users
    size: tuple[int, int],  # B users, and M items
    n: int,
    p: float,
    *,
    excluded: UserItems | None,  # of the B users
    pool: NDArray[Any] | None,  # item numbers, ascending
    factors: NDArray[Any] | None,  # (M,) what the quantiles are multiplied by
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """As :func:`hpf_gpu.answers.recommendations.rank`, by quantiles of rates in place of expected counts.

    Those of a mixture have to be searched for, which takes long.  So it is done for the items that may be
    among the best alone: whose upper bound is not below the n-th largest of the lower bounds.
    """
    items = np.arange(size[1]) if pool is None else pool
    if pool is not None and excluded is not None:
        excluded = places_in(pool, size[1], excluded)
    scale = np.ones(len(items)) if factors is None else factors[items].astype(np.float64)
    n, found = min(n, len(items)), []
    step = max(1, _BLOCK // len(items))
    for start in range(0, max(size[0], 1), step):
        part = slice(start, min(start + step, size[0]))
        of_part = rates(part)
        low, high = (scale * bound for bound in of_part.bounds_of_quantiles(p))
        if excluded is not None:
            for bound in (low, high):
                exclude(bound, np.arange(part.start, part.stop), excluded)
        least = np.partition(low, -n, axis=1)[:, -n, None] * (1 - _CLOSE)
        places = np.nonzero((high >= least) & (high > -np.inf))
        scores = np.full(high.shape, -np.inf)
        scores[places] = scale[places[1]] * of_part[places].quantiles(p)
        best, scores = best_columns(scores, n)
        found.append((np.where(best < 0, -1, items[best]), scores))
    best, scores = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return best, scores


def of_all_items(
    fitted: Fitted,
    theta: Gammas,  # (B, K)
    had: UserItems | None,  # of the B users, if the model has neighbours
    items: NDArray[Any],  # (M',) to choose from
) -> OfUsers:
    """Function from a slice of the users to the moments of the rates of these items."""
    beta, left = _items(fitted, items), theta.left
    right = beta.right
    added: list[Any] = []  # (M, M') each
    if fitted.neighbours is not None:
        weights = _weights(fitted.neighbours, items)
        added = [fitted.neighbours.matrix(values, items).T for values in (weights.mean, weights.variance)]

    def rates(part: slice) -> Moments:
        moments = theta.mean[part] @ beta.mean.T, left[part] @ right.T
        if added and had is not None:
            indptr, indices = items_of(np.arange(part.start, part.stop), had)
            shape = len(indptr) - 1, len(fitted.beta)
            ones = sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=shape)
            for moment, weight in zip(moments, added, strict=True):
                moment += (ones @ weight).toarray()
        return Moments(*moments)

    return rates
