"""Choice of a model by how it does on held-out counts, with successive halving."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from . import backends
from .answers.ensembles import scores_of_each
from .data.counts import held_out_pairs, training_data
from .data.triplets import Columns, load, read
from .ensemble import HPFEnsemble, as_ensemble
from .estimator import HPF
from .messages import did_you_mean
from .metrics import qualities
from .model.convergence import ConvergenceWarning
from .model.settings import NAMES, Choice, Real, from_zero, settings_with, whole_number

Parameters: TypeAlias = dict[str, Any]

METRICS = ("precision", "recall", "ndcg", "llk")
#: Iterations of each round; None stands for the candidate's own ``maxiter``.
ROUNDS = (10, 30, None)
_DEFAULT_MAXITER = 100

_FACTORS = [{"k": 50, "counts": "log1p", "random_seed": seed} for seed in range(8)]
_AMONG_ITEMS = {"k": 0, "neighbours": 200, "maxiter": 20, "stop_crit": "maxiter", "counts": "binary"}
_AMONG_USERS = _AMONG_ITEMS | {"transposed": True}
#: Neighbours among items, of ones and of logarithms, neighbours among users, and eight fits with factors.
MIXED = [_AMONG_ITEMS, _AMONG_ITEMS | {"counts": "log1p"}, _AMONG_USERS, *_FACTORS]
#: What is tried unless candidates are passed: factors, neighbours, and mixtures of both.
CANDIDATES: tuple[Parameters, ...] = (
    {"k": 30, "counts": "log1p"},
    {"k": 100, "counts": "log1p"},
    {"k": 30, "counts": "raw"},
    _AMONG_ITEMS,
    _AMONG_ITEMS | {"counts": "raw"},
    _AMONG_ITEMS | {"neighbours": 500, "w_rate": 20.0},
    *(
        {"members": MIXED, "weights": [0.5, 0.5, users, *[factors / 8] * 8], "discount": discount}
        for users in (0.0, 0.1, 0.3, 0.6)
        for factors in (0.1, 0.3)
        for discount in (0.1, 0.2)
    ),
)


@dataclass(frozen=True)
class Selection:
    """The outcome of :func:`select`.

    Attributes
    ----------
    parameters : dict
        Parameters of the best candidate, for :class:`hpf_gpu.HPF`, or with ``members`` for
        :class:`hpf_gpu.HPFEnsemble`.
    discount : float
        Discount of popularity with which it was best, for ``recommend``.
    model : HPF, HPFEnsemble or None
        The best candidate, fitted to all counts; None with ``refit=False``.
    table : DataFrame
        A row for each candidate and round: candidate, round, iterations (at most), score, seconds (an equal
        share, of those with one fit in common), whether the candidate was chosen in the end, and the
        parameters.
    metric : str
        What the score is.

    See Also
    --------
    hpf_gpu.plot.selection : draws the table.
    """

    parameters: Parameters
    discount: float
    model: HPF | HPFEnsemble | None
    table: pd.DataFrame
    metric: str


def select(
    counts_df: Any,
    candidates: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | None = None,
    *,
    metric: str = "precision",
    n: int = 20,
    validation: Any = 0.1,
    rounds: Sequence[int | None] = ROUNDS,
    kept: float = 1 / 3,
    random_seed: int = 0,
    refit: bool = True,
    **parameters: Any,
) -> Selection:
    """Choose among models by held-out counts: in each round the best ones go on to more iterations.

    Parameters
    ----------
    counts_df : same forms as for :meth:`hpf_gpu.HPF.fit`
        Training counts.  Counts by which the result is to be judged must not be among them.
    candidates : mapping of str to values, or sequence of mappings, optional
        All combinations of some values of parameters, or the parameters of each candidate.  One with
        ``members`` is an :class:`hpf_gpu.HPFEnsemble`.  ``discount`` is that of
        :meth:`hpf_gpu.HPFEnsemble.recommend`.  Those that differ in ``weights`` and ``discount`` alone are
        fitted once.  By default, factorizations, neighbours, and mixtures of both with several weights.
    metric : {'precision', 'recall', 'ndcg', 'llk'}
        'precision': hits / min(n, held-out items) in lists of ``n`` items that leave out the training items,
        as the other two the mean of users.  'llk': log-likelihood of the held-out counts; candidates must
        agree in ``counts``.
    n : int
        Length of the lists.
    validation : float, or same forms as ``counts_df``
        Share of the counts, drawn at random, that is held out; or other counts.
    rounds : sequence of int or None
        Iterations in each round, at most those of the candidate; None for the candidate's ``maxiter``.
    kept : float
        Share of the candidates, the best, that is kept after each round; at least one.
    random_seed : int
        Seed of the draw, and of candidates that have none.
    refit : bool
        Whether the best candidate is fitted to all counts.
    **parameters
        Parameters of all candidates.

    Returns
    -------
    Selection

    Raises
    ------
    ValueError, TypeError
        If a parameter is unknown or invalid, there is no candidate, the data are not counts, or nothing is
        held out.
    """
    Choice(METRICS).checked("metric", metric)
    n = whole_number("n", n, 1)
    kept = Real(1e-9, 1.0).checked("kept", kept)
    if not len(rounds):
        raise ValueError("rounds is empty: at least one is needed")
    rounds = [None if most is None else whole_number("rounds", most, 1) for most in rounds]
    common = {"verbose": False, "random_seed": random_seed} | parameters
    trials = [_Trial.of(common | own) for own in _listed(candidates)]
    if metric == "llk" and len({trial.taken for trial in trials}) > 1:
        raise ValueError(
            "metric='llk' cannot compare candidates that differ in counts: choose another metric"
        )
    names = {name: common[name] for name in ("user", "item", "count") if name in common}
    columns = settings_with(names).columns
    counts = load(counts_df, columns, "counts_df")
    train, held_out = _split(counts, validation, random_seed, columns)
    left, rows = list(range(len(trials))), []
    scores: dict[int, float] = {}
    tried: dict[int, int] = {}  # iterations at most
    for number, most in enumerate(rounds):
        fits: dict[str, list[int]] = {}  # candidates that have one in common
        for candidate in left:
            limit = trials[candidate].limit(most)
            if tried.get(candidate) != limit:  # otherwise it has nothing to gain
                fits.setdefault(repr(trials[candidate].fit_parameters(limit)), []).append(candidate)
        for together in fits.values():
            started, some = time.perf_counter(), [trials[candidate] for candidate in together]
            limit = some[0].limit(most)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # of those that were to be short
                model = some[0].fitted(train, limit)
            found = _scores(some, model, train, held_out, metric, n)
            seconds = (time.perf_counter() - started) / len(together)
            for candidate, trial, score in zip(together, some, found, strict=True):
                scores[candidate], tried[candidate] = score, limit
                figures = (candidate, number, limit, score, seconds)
                rows.append(dict(zip(_COLUMNS, figures, strict=True)) | trial.shown)
        left = sorted(left, key=lambda candidate: -scores[candidate])
        if number < len(rounds) - 1:
            left = left[: max(1, math.floor(kept * len(left)))]
    best = trials[left[0]]
    of_all = best.weighted(best.fitted(counts, None)) if refit else None
    table = pd.DataFrame(rows)
    table.insert(len(_COLUMNS), "chosen", table["candidate"] == left[0])
    return Selection(best.parameters, best.discount, of_all, table, metric)


_COLUMNS = ("candidate", "round", "iterations", "score", "seconds")


@dataclass(frozen=True)
class _Trial:
    """A candidate."""

    parameters: Parameters
    discount: float
    shown: Parameters  # what is in the table

    @staticmethod
    def of(given: Parameters) -> _Trial:
        """The candidate with these parameters, checked before anything is fitted."""
        parameters = dict(given)
        discount = from_zero("discount", parameters.pop("discount", 0.0))
        trial = _Trial(parameters, discount, {k: v for k, v in given.items() if k != "verbose"})
        trial.model(parameters)
        return trial

    @property
    def taken(self) -> str:
        """What is taken for a count."""
        own = [member.get("counts") for member in self._members]
        return str({self.parameters.get("counts", "raw") if one is None else one for one in own})

    @property
    def _members(self) -> Sequence[Mapping[str, Any]]:
        members = self.parameters.get("members", 1)
        return [{}] * members if isinstance(members, int) else members

    def limit(self, most: int | None) -> int:
        """Iterations of a round, of an ensemble those of the member with most."""
        common: int = self.parameters.get("maxiter", _DEFAULT_MAXITER)
        own: int = max(member.get("maxiter", common) for member in self._members)
        return own if most is None else min(own, most)

    @staticmethod
    def model(parameters: Parameters) -> HPF | HPFEnsemble:
        """The model, not fitted."""
        unknown = [name for name in parameters if name not in (*NAMES, "members", "weights", "combine")]
        if unknown:
            close = did_you_mean(unknown[:1], NAMES)
            raise ValueError(f"HPF has no parameter {unknown[0]!r}; it has {', '.join(NAMES)}{close}")
        return HPFEnsemble(**parameters) if "members" in parameters else HPF(**parameters)

    def fit_parameters(self, limit: int | None) -> Parameters:
        """Those of a fit with at most ``limit`` iterations, on which weights and discount have no effect."""
        parameters = dict(self.parameters)
        if "members" in parameters:
            parameters.pop("weights", None)
        if limit is not None:
            common = parameters.get("maxiter", _DEFAULT_MAXITER)
            parameters["maxiter"] = min(common, limit)
            if not isinstance(parameters.get("members", 1), int):
                parameters["members"] = [
                    {**member, "maxiter": min(member.get("maxiter", common), limit)}
                    for member in self._members
                ]
        return parameters

    def fitted(self, counts: Any, limit: int | None) -> HPF | HPFEnsemble:
        """The model of these parameters, fitted."""
        return self.model(self.fit_parameters(limit)).fit(counts)

    def weighted(self, model: HPF | HPFEnsemble) -> HPF | HPFEnsemble:
        """A fitted model with the candidate's weights."""
        weights = self.parameters.get("weights")
        return model if weights is None or isinstance(model, HPF) else model.with_weights(weights)


def _scores(
    trials: Sequence[_Trial],
    model: HPF | HPFEnsemble,
    train: sparse.csr_array,
    held_out: sparse.csr_array,
    metric: str,
    n: int,
) -> list[float]:
    """How candidates that have a fit in common do on held-out counts."""
    weighted = [trial.weighted(model) for trial in trials]
    if metric == "llk":
        return [float(one.eval_llk(held_out)["llk"]) for one in weighted]
    asked = [(as_ensemble(one), trial.discount) for one, trial in zip(weighted, trials, strict=True)]
    found = qualities(partial(scores_of_each, asked), len(asked), train, held_out, n)
    return [float(getattr(quality, metric)) for quality in found]


def _listed(
    candidates: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | None,
) -> list[Parameters]:
    """The parameters of each candidate."""
    if candidates is None:
        return [dict(one) for one in CANDIDATES]
    if isinstance(candidates, Mapping):
        for name, values in candidates.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise TypeError(f"candidates[{name!r}] is {values!r}: pass a list of values")
        return [
            dict(zip(candidates, combination, strict=True))
            for combination in itertools.product(*candidates.values())
        ]
    listed = list(candidates)
    if not listed:
        raise ValueError("candidates is empty: there is nothing to choose from")
    for one in listed:
        if not isinstance(one, Mapping):
            raise TypeError(f"candidate {one!r} is not a dict of parameters")
    return [dict(one) for one in listed]


def _split(
    counts_df: Any, validation: Any, seed: int, columns: Columns
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Counts that are fitted and counts that are held out, (N, M) each."""
    backend = backends.create("numpy", np.dtype(np.float64))
    data = training_data(counts_df, backend=backend, reindex=True, columns=columns)
    csr = data.host_csr
    if not isinstance(validation, (int, float, np.number)):
        held_out = read(validation, dtype=np.float64, name="validation", taken="raw", columns=columns)
        pairs = held_out_pairs(held_out, data.users, data.items, name="validation")
        at = (pairs.values, (pairs.rows, pairs.columns))
        return csr, sparse.coo_array(at, shape=csr.shape).tocsr()
    share = Real(1e-9, 1.0).checked("validation", validation)
    out = np.random.default_rng(seed).random(csr.nnz) < share
    if out.all() or not out.any():
        raise ValueError(f"validation={validation!r} holds out {int(out.sum())} of {csr.nnz} counts")
    return _part(csr, ~out), _part(csr, out)


def _part(csr: sparse.csr_array, chosen: NDArray[np.bool_]) -> sparse.csr_array:
    indptr = np.concatenate([[0], np.cumsum(chosen)])[csr.indptr]
    return sparse.csr_array((csr.data[chosen], csr.indices[chosen], indptr), shape=csr.shape)
