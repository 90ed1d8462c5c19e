"""Poisson factorization as a transformer of scikit-learn."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .data.blocks import in_memory
from .data.counts import NewRows
from .data.ids import Ids
from .data.triplets import canonical, read_matrix
from .estimator import HPF
from .fitting.folding import Folded, fold_rows
from .fitting.partial import USERS
from .model.likelihood import Objective
from .model.settings import default_step_size, whole_number
from .model.sides import Model

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.validation import check_array, check_is_fitted, check_non_negative, validate_data
except ImportError as error:
    raise ImportError(
        f"hpf_gpu.sklearn needs scikit-learn 1.6 or later ({error}): pip install 'hpf_gpu[sklearn]'"
    ) from error

#: So small that a fold-in takes all its iterations, or the factors of a row would depend on the other rows.
_NEVER = float(np.finfo(np.float64).tiny)


class PoissonFactorization(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Hierarchical Poisson factorization of counts, as a transformer of scikit-learn.

    The count of row i and feature j is modelled as ``x_ij ~ Poisson(Σ_k θ_ik β_jk)`` with hierarchical gamma
    priors of θ and β [1]_, fitted by mean-field variational inference.  The features are the items of
    :class:`hpf_gpu.HPF`, the rows its users.

    Parameters
    ----------
    n_components : int
        Number of factors K.
    init : {'svd', 'hpfrec'}
        Start values, see :class:`hpf_gpu.HPF`.
    max_iter : int
        Maximum number of iterations of ``fit``.
    tol : float
        ``fit`` stops when the training log-likelihood has improved by at most this, relative to its
        magnitude, in ``check_every`` iterations; for other rules see ``stop_crit``.
    random_state : int, RandomState or None
        Seed of the start values.
    verbose : int
        Whether to show a progress bar.
    transform_max_iter : int
        Number of iterations of ``transform``, all of which are run, so that the factors of a row do not
        depend on the rows that it is transformed with.
    a, a_prime, b_prime, c, c_prime, d_prime, hierarchical : float or bool
        Priors of rows and features.
    counts : {'raw', 'binary', 'log1p'}
        What is taken for a count above zero.
    stop_crit, check_every, patience, schedule, users_per_batch, items_per_batch, step_size :
        How ``fit`` iterates and stops.
    ncores, backend, precision :
        Where and how to compute.

    Parameters from ``a`` on are those of :class:`hpf_gpu.HPF`, which describes them.

    Attributes
    ----------
    components_ : array (n_components, n_features)
        E[β].
    n_iter_ : int
        Iterations of the fit.
    model_ : HPF
        The fitted model.  Its ``Theta`` are the factors of the rows at the end of the fit.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array (n_features,)
        Names of the features, if X had names that are strings.

    Notes
    -----
    X is an array, a frame or a sparse matrix of counts, which need not be integers.  Computation is in the
    type of X if that is float32 or float64, else in float32.

    ``fit_transform(X)`` is ``fit(X).transform(X)``: factors of the rows given the final features, from
    ``transform_max_iter`` iterations, not ``model_.Theta``.

    References
    ----------
    .. [1] P. Gopalan, J. M. Hofman, D. M. Blei: Scalable Recommendation with Hierarchical Poisson
       Factorization. UAI 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from hpf_gpu.sklearn import PoissonFactorization
    >>> X = np.random.default_rng(0).poisson(2.0, (100, 20))
    >>> PoissonFactorization(n_components=3, random_state=0).fit_transform(X).shape
    (100, 3)
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        init: str = "svd",
        max_iter: int = 100,
        tol: float = 1e-3,
        random_state: Any = None,
        verbose: int = 0,
        transform_max_iter: int = 50,
        a: float = 0.3,
        a_prime: float = 0.3,
        b_prime: float = 1.0,
        c: float = 0.3,
        c_prime: float = 0.3,
        d_prime: float = 1.0,
        hierarchical: bool = True,
        counts: str = "raw",
        stop_crit: str = "train-llk",
        check_every: int | None = 10,
        patience: int | None = None,
        schedule: str = "joint",
        users_per_batch: int | None = None,
        items_per_batch: int | None = None,
        step_size: Callable[[int], float] | None = default_step_size,
        ncores: int = -1,
        backend: str = "auto",
        precision: str = "full",
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose
        self.transform_max_iter = transform_max_iter
        self.a = a
        self.a_prime = a_prime
        self.b_prime = b_prime
        self.c = c
        self.c_prime = c_prime
        self.d_prime = d_prime
        self.hierarchical = hierarchical
        self.counts = counts
        self.stop_crit = stop_crit
        self.check_every = check_every
        self.patience = patience
        self.schedule = schedule
        self.users_per_batch = users_per_batch
        self.items_per_batch = items_per_batch
        self.step_size = step_size
        self.ncores = ncores
        self.backend = backend
        self.precision = precision

    def fit(self, X: Any, y: Any = None) -> PoissonFactorization:
        """Fit the model.

        Parameters
        ----------
        X : array, frame or sparse matrix (n_samples, n_features)
            Counts.
        y : object
            Ignored.

        Returns
        -------
        PoissonFactorization
            This object.
        """
        counts = self._read(X, reset=True)
        names = {"n_components": "k", "max_iter": "maxiter", "tol": "stop_thr"}
        own = {"random_state", "transform_max_iter", "verbose"}
        params = {
            names.get(name, name): value for name, value in self.get_params().items() if name not in own
        }
        self.model_ = HPF(
            **params,
            random_seed=_seed(self.random_state),
            verbose=bool(self.verbose),
            use_float=counts.dtype == np.float32,
        ).fit(counts)
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Factors E[θ] of rows, with the features of the model unchanged.

        Parameters
        ----------
        X : array, frame or sparse matrix (n_samples, n_features)
            Counts.

        Returns
        -------
        array (n_samples, n_components)
            E[θ] of each row.
        """
        check_is_fitted(self)
        return self._folded(X).mean

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """Expected counts of rows with these factors.

        Parameters
        ----------
        X : array (n_samples, n_components)
            Factors, as :meth:`transform` returns them.

        Returns
        -------
        array (n_samples, n_features)
            ``X @ components_``.
        """
        check_is_fitted(self)
        theta = check_array(X, dtype=[np.float32, np.float64])
        if theta.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {theta.shape[1]} columns; the model has {self._n_features_out} components"
            )
        expected: NDArray[Any] = theta @ self.components_
        return expected

    def score(self, X: Any, y: Any = None) -> float:
        """Mean over the rows of a lower bound of their log-likelihood, all zeros included.

        The bound is the evidence lower bound of a row given the features of the model,
        ``E[ln p(x_i, θ_i, ξ_i | β) − ln q(θ_i, ξ_i)]`` under q(β), with the factors of :meth:`transform`, in
        nats and with the terms −ln x!.  The factors of a row are paid for in it, so that for rows that the
        model was not fitted to it can be compared between numbers of components.  With ``counts='log1p'`` or
        ``'binary'`` it is that of the transformed counts, and not to be compared with others.

        Parameters
        ----------
        X : array, frame or sparse matrix (n_samples, n_features)
            Counts.
        y : object
            Ignored.

        Returns
        -------
        float
            The higher, the better.
        """
        check_is_fitted(self)
        folded = self._folded(X)
        backend, csr = folded.backend, folded.new.csr
        with backend.in_use():
            blocks = in_memory(backend, csr[:, folded.numbers], len(self.components_))
            objective = Objective.of(backend, blocks, full_llk=True, elbo_at_checks=False)
            # Features that are given have no terms of their own.
            elbo = objective.elbo(Model((folded.rows,), replace(folded.others, fixed=True)))
        return elbo / int(csr.shape[0])

    @property
    def components_(self) -> NDArray[Any]:
        """E[β], (n_components, n_features)."""
        beta: NDArray[Any] = self.model_.Beta
        return beta.T

    @property
    def n_iter_(self) -> int:
        """Iterations of the fit."""
        return int(self.model_.niter)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _folded(self, X: Any) -> Folded:
        """Fold in rows of counts."""
        settings, fitted = self.model_._settings(), self.model_._require_fitted()
        counts = canonical(read_matrix(self._read(X, reset=False), fitted.dtype.type), settings.counts)
        return fold_rows(
            settings,
            fitted,
            NewRows(counts, Ids(None, counts.shape[0], "user")),
            side=USERS,
            maxiter=whole_number("transform_max_iter", self.transform_max_iter, 1),
            stop_thr=_NEVER,
            threads=settings.threads,
        )

    def _read(self, X: Any, *, reset: bool) -> sparse.csr_array:
        """A copy of checked counts (n_samples, n_features), float32 or float64, without zeros."""
        checked = validate_data(
            self,
            X,
            reset=reset,
            accept_sparse="csr",
            dtype=[np.float32, np.float64],
            accept_large_sparse=True,
        )
        check_non_negative(checked, "PoissonFactorization")
        counts = sparse.csr_array(checked, copy=True)
        counts.sum_duplicates()
        counts.eliminate_zeros()
        return counts


def _seed(random_state: Any) -> int:
    """The seed of a fit: a number as it is, so that an HPF with the same seed has the same factors."""
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(1, 2**31 - 1))
