"""What a fitted model answers: predictions, recommendations, likelihoods, and its parameters."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import backends
from .backends.protocol import Backend
from .data import held_out_pairs
from .fitted import Fitted
from .ids import shown
from .likelihood import pair_llk
from .model_file import load_model, save_model
from .parameters import cuda_options, default_step_size, thread_count, whole_number
from .ranking import UserItems, items_of, recommend
from .user_warnings import warn
from .variational import Posterior

_WORTH_A_GPU = 1000  # users to rank for, before the model is copied there


class FittedModel:
    """What a fit has left, and all that only reads it.

    :class:`hpf_gpu.HPF` describes the public attributes.  Every method takes ``_fitted`` once, at its
    beginning, and hands it on.
    """

    _parameter_names: ClassVar[tuple[str, ...]]  # of HPF's constructor

    backend: str
    k: Any
    ncores: Any
    produce_dicts: Any
    binary: Any
    step_size: Any

    _fitted: Fitted | None = None

    def predict(self, user: Any, item: Any) -> Any:
        """Expected counts θ_u·β_i.

        Parameters
        ----------
        user, item : one id, or array-like (n,) of ids
            Pairs; one id on either side is paired with all of the other.

        Returns
        -------
        float or array (n,)
            NaN where the user or the item was not in the training data.
        """
        fitted = self._require_fitted()
        users, items = fitted.user_ids, fitted.item_ids
        single = users.is_single(user) and items.is_single(item)
        rows, columns = users.codes_of(user), items.codes_of(item)
        if len(rows) != len(columns) and 1 not in (len(rows), len(columns)):
            raise ValueError(f"{len(rows)} users and {len(columns)} items cannot be paired")
        rows, columns = np.broadcast_arrays(rows, columns)
        known = (rows >= 0) & (columns >= 0)
        rates = np.full(len(rows), np.nan, dtype=fitted.theta.dtype)
        backend = self._host_backend(fitted)
        rates[known] = backend.predict_pairs(fitted.theta, fitted.beta, rows[known], columns[known])
        return rates[0] if single else rates

    def topN(self, user: Any, n: int = 10, exclude_seen: bool = True, items_pool: Any = None) -> NDArray[Any]:
        """The items with the highest expected counts for one user or for each of many, best first.

        Parameters
        ----------
        user : id, or array-like (B,) of ids
            Users of the training data.
        n : int
            How many; fewer come back if fewer are left.
        exclude_seen : bool
            Whether to leave out the items that the user had in the training data.
        items_pool : array-like of ids, optional
            Items to choose from, for all users.  Unknown ones are left out with a warning.

        Returns
        -------
        array (n,), or for many users array (B, n)
            Item ids.  For one user the array is shorter if fewer than ``n`` items are left.  For many
            it is narrower if there are fewer than ``n`` items to choose from at all; rows of users with
            still fewer left end in None, and the array is then one of objects.

        Raises
        ------
        ValueError
            If a user or the whole pool is unknown, or ``exclude_seen`` with ``keep_data=False``.

        Notes
        -----
        For many users this takes some tens of MB beside the result and the users' part of the model,
        never a matrix of users and items.  Of equal scores the item that comes first in the rows of
        Beta comes first.  A model that was fitted on a GPU ranks there for many users, if it can.
        """
        fitted = self._require_fitted()
        n = whole_number("n", n, 1)
        rows = fitted.user_ids.known(user)
        exclude = _seen_by(fitted, rows) if exclude_seen else None
        pool = None if items_pool is None else _pool(fitted, items_pool)
        backend, theta = self._ranking_backend(fitted, len(rows)), fitted.theta[rows]
        best = recommend(backend, theta, fitted.beta, n, exclude=exclude, pool=pool)
        return fitted.item_ids.labels(best[best >= 0] if fitted.user_ids.is_single(user) else best)

    def eval_llk(self, input_df: Any, full_llk: bool = False) -> dict[str, Any]:
        """Poisson log-likelihood of the given counts alone, in float64.

        Parameters
        ----------
        input_df : same forms as for ``fit``
            Users and items that were not in the training data are left out, and zeros, with a warning.
        full_llk : bool
            Whether to include −Σ ln y!.

        Returns
        -------
        dict
            ``llk``, and ``nobs``: how many pairs it is the sum of.
        """
        fitted = self._require_fitted()
        dtype = fitted.theta.dtype.type
        pairs = held_out_pairs(input_df, fitted.user_ids, fitted.item_ids, dtype=dtype, name="input_df")
        self._count_once(pairs.values)
        backend = self._host_backend(fitted)
        llk = pair_llk(backend, fitted.theta, fitted.beta, pairs, full_llk=bool(full_llk))
        return {"llk": llk, "nobs": len(pairs.values)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one safetensors file, which :meth:`load` reads on any machine.

        Parameters
        ----------
        path : str or path-like
            File to write.  One that is there is replaced when the new one is complete, which gets its
            permissions.  A symbolic link stays, and what it points to is replaced.

        Raises
        ------
        ValueError
            If the model is not fitted, or could not be loaded: ``k``, ``use_float`` and ``bias`` are still
            to be those of the fit.
        TypeError
            If ids are neither numbers, texts, bytes, NumPy's dates nor tuples of these.
        OSError
            If the file cannot be written; one that was there is then as it was.  Pipes and devices cannot
            be replaced as a whole and are refused.

        Notes
        -----
        Two parameters are not written and None after :meth:`load`: ``save_folder``, which belongs to this
        machine, and, with a warning, a ``step_size`` of your own.
        """
        fitted = self._require_fitted()
        if self.step_size not in (None, default_step_size):
            warnings.warn("step_size is a function of your own and is not saved", stacklevel=2)
        save_model(path, fitted, self._parameters())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Any:
        """Read a model that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
            File to read.  Nothing in it is ever executed.

        Returns
        -------
        HPF
            A fitted model that answers as the one that was saved.

        Raises
        ------
        ModelFileError
            If the file is damaged, no model, or written by a newer version.  It is a ValueError.
        OSError
            If the file cannot be read.

        Notes
        -----
        The backend that fitted it need not be there: predictions run on the host.  Where ``backend`` names
        one that is missing, set it to ``'auto'`` before the next fit or fold-in, and ``precision`` and
        ``allocate`` to their defaults.
        """
        parameters, fitted = load_model(path, cls._parameter_names)
        model = cls(**parameters)
        model._fitted = fitted
        return model

    def _parameters(self) -> dict[str, Any]:
        """The parameters as they are now: users change attributes after construction."""
        return {name: getattr(self, name) for name in self._parameter_names}

    def _count_once(self, counts: Any) -> None:
        """Make every count (Z,) a one, in place, if the model is of whether and not of how often."""
        if self.binary:
            counts[...] = 1

    def _working_backend(self, dtype: np.dtype[Any], ncores: Any, k: int) -> Backend:
        """What fits and folds in, with ``k`` columns: the backend that was asked for."""
        options = cuda_options(vars(self))
        return backends.choose(self.backend, dtype, thread_count(ncores), k=k, **options)

    def _host_backend(self, fitted: Fitted) -> Backend:
        """What predicts: the model is on the host, in the precision that it was fitted in."""
        return self._backend_among(fitted, backends.ON_HOST)

    def _ranking_backend(self, fitted: Fitted, users: int) -> Backend:
        on_gpu = fitted.backend == "cuda" and users >= _WORTH_A_GPU
        return self._backend_among(fitted, backends.NAMES if on_gpu else backends.ON_HOST)

    def _backend_among(self, fitted: Fitted, names: Sequence[str]) -> Backend:
        name = "numpy" if fitted.backend == "numpy" else "auto"
        k, threads = fitted.theta.shape[1], thread_count(self.ncores)
        return backends.choose(name, fitted.theta.dtype, threads, k=k, among=names)

    def _require_fitted(self) -> Fitted:
        fitted = self._fitted
        if fitted is None:
            raise ValueError("this HPF has not been fitted yet: call fit first")
        return fitted

    # -- attributes that are views of the fitted state -------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """Whether there is a model."""
        return self._fitted is not None

    @property
    def Theta(self) -> Any:
        """E[θ], (nusers, k); None before the first fit."""
        return self._view("theta")

    @property
    def Beta(self) -> Any:
        """E[β], (nitems, k); None before the first fit."""
        return self._view("beta")

    @property
    def nusers(self) -> Any:
        """How many users there are, those that no batch has brought yet included."""
        return self._view("nusers")

    @property
    def nitems(self) -> Any:
        """How many items there are, those that no batch has brought yet included."""
        return self._view("nitems")

    @property
    def niter(self) -> Any:
        """Iterations run."""
        return self._view("niter")

    @property
    def train_llk(self) -> Any:
        """Training log-likelihood after the last iteration."""
        return self._view("train_llk")

    @property
    def history_(self) -> Any:
        """One row for each check of the last fit."""
        return self._view("history")

    @property
    def random_seed_(self) -> Any:
        """Seed that the start values were drawn with."""
        return self._view("seed")

    @property
    def backend_(self) -> Any:
        """Name of the backend that fitted."""
        return self._view("backend")

    def _view(self, name: str) -> Any:
        fitted = self._fitted
        return None if fitted is None else getattr(fitted, name)

    @property
    def user_mapping_(self) -> Any:
        """Id of each row of Theta, (nusers,)."""
        fitted = self._fitted
        return None if fitted is None else fitted.user_ids.values

    @property
    def item_mapping_(self) -> Any:
        """Id of each row of Beta, (nitems,)."""
        fitted = self._fitted
        return None if fitted is None else fitted.item_ids.values

    @property
    def user_dict_(self) -> dict[Any, int] | None:
        """Row of Theta of each user id."""
        fitted = self._fitted
        return None if fitted is None or not self.produce_dicts else fitted.user_ids.rows

    @property
    def item_dict_(self) -> dict[Any, int] | None:
        """Row of Beta of each item id."""
        fitted = self._fitted
        return None if fitted is None or not self.produce_dicts else fitted.item_ids.rows

    user_mapping, item_mapping = user_mapping_, item_mapping_
    user_dict, item_dict = user_dict_, item_dict_

    @property
    def seen(self) -> NDArray[Any]:
        """Item numbers that each user has had, user after user, (Z,)."""
        fitted = self._fitted
        if fitted is None or fitted.seen is None:
            # AttributeError, so that hasattr tells whether they are there.
            raise AttributeError("the items that users had are kept by fit with keep_data=True")
        return fitted.seen[1]

    @property
    def Gamma_shp(self) -> NDArray[Any]:
        """Shapes of q(θ), (nusers, k)."""
        return self._posterior(0).shape

    @property
    def Gamma_rte(self) -> NDArray[Any]:
        """Rates of q(θ), (nusers, k), built at each access."""
        return self._posterior(0).rate

    @property
    def Lambda_shp(self) -> NDArray[Any]:
        """Shapes of q(β), (nitems, k)."""
        return self._posterior(1).shape

    @property
    def Lambda_rte(self) -> NDArray[Any]:
        """Rates of q(β), (nitems, k), built at each access."""
        return self._posterior(1).rate

    @property
    def k_rte(self) -> NDArray[Any]:
        """Rates of q(ξ), (nusers, 1)."""
        return self._hyper_rate(0)

    @property
    def t_rte(self) -> NDArray[Any]:
        """Rates of q(η), (nitems, 1)."""
        return self._hyper_rate(1)

    def _hyper_rate(self, side: int) -> NDArray[Any]:
        posterior = self._posterior(side)
        if posterior.prior.known or not posterior.prior.hierarchical:
            raise AttributeError(
                "a side that is fixed has no such rates, nor has a model that is not hierarchical"
            )
        return posterior.hyper_rate[:, None].astype(posterior.shape.dtype)

    def _posterior(self, side: int) -> Posterior:
        fitted = self._fitted
        if fitted is None or fitted.posteriors is None:
            # AttributeError, so that hasattr tells whether shapes and rates are there.
            raise AttributeError("shapes and rates exist after fit with keep_all_objs=True")
        return fitted.posteriors[side]


def _seen_by(fitted: Fitted, rows: NDArray[Any]) -> UserItems:
    """Items that some users (B,) have had."""
    if fitted.seen is None:
        raise ValueError("exclude_seen needs the training data, which keep_data=False has dropped")
    return items_of(rows, fitted.seen)


def _pool(fitted: Fitted, items_pool: Any) -> NDArray[Any]:
    """Numbers of the known items of a pool, ascending."""
    if not pd.api.types.is_list_like(items_pool):
        raise TypeError(f"items_pool is {shown(items_pool)}: pass a list of item ids")
    codes = fitted.item_ids.codes(items_pool)
    if len(codes) == 0:
        raise ValueError("items_pool is empty: there is nothing to recommend")
    unknown = int((codes < 0).sum())
    if unknown == len(codes):
        raise ValueError("none of the items in items_pool was in the training data")
    if unknown:
        warn(f"{unknown} items of items_pool were not in the training data")
    return np.unique(codes[codes >= 0])
