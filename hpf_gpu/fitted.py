"""What a fitted model answers: predictions, recommendations, likelihoods, and its parameters."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import backends
from .backends.protocol import Backend
from .data import held_out_pairs
from .ids import Ids
from .likelihood import pair_llk
from .model_file import load_model, save_model
from .parameters import cuda_options, default_step_size, thread_count, whole_number
from .ranking import UserItems, items_of, recommend
from .variational import Posterior

_WORTH_A_GPU = 1000  # users to rank for, before the model is copied there


class FittedModel:
    """The state that a fit leaves, and all that only reads it.

    :class:`hpf_gpu.HPF` describes the public attributes.
    """

    _parameter_names: ClassVar[tuple[str, ...]]  # of HPF's constructor

    backend: str
    k: Any
    ncores: Any
    produce_dicts: Any
    binary: Any
    step_size: Any

    is_fitted: bool
    nusers: int | None
    Theta: Any
    Beta: Any
    backend_: str
    _user_ids: Ids
    _item_ids: Ids
    _posteriors: tuple[Posterior, Posterior] | None  # of users and items; None without keep_all_objs
    _seen: UserItems | None  # None without keep_data

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
        self._check_fitted()
        single = self._user_ids.is_single(user) and self._item_ids.is_single(item)
        rows, columns = self._user_ids.codes_of(user), self._item_ids.codes_of(item)
        if len(rows) != len(columns) and 1 not in (len(rows), len(columns)):
            raise ValueError(f"{len(rows)} users and {len(columns)} items cannot be paired")
        rows, columns = np.broadcast_arrays(rows, columns)
        known = (rows >= 0) & (columns >= 0)
        rates = np.full(len(rows), np.nan, dtype=self.Theta.dtype)
        rates[known] = self._host_backend().predict_pairs(self.Theta, self.Beta, rows[known], columns[known])
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
        self._check_fitted()
        n = whole_number("n", n, 1)
        rows = self._user_ids.known(user)
        exclude = self._seen_by(rows) if exclude_seen else None
        pool = None if items_pool is None else self._pool(items_pool)
        backend, theta = self._ranking_backend(len(rows)), self.Theta[rows]
        best = recommend(backend, theta, self.Beta, n, exclude=exclude, pool=pool)
        return self._item_ids.labels(best[best >= 0] if self._user_ids.is_single(user) else best)

    def eval_llk(self, input_df: Any, full_llk: bool = False) -> dict[str, Any]:
        """Poisson log-likelihood of the given counts alone, in float64.

        Parameters
        ----------
        input_df : same forms as for ``fit``
            Users and items that were not in the training data are left out; zeros are left out
            with a warning.
        full_llk : bool
            Whether to include −Σ ln y!.

        Returns
        -------
        dict
            ``llk``, and ``nobs``: how many pairs it is the sum of.
        """
        self._check_fitted()
        dtype = self.Theta.dtype.type
        pairs = held_out_pairs(input_df, self._user_ids, self._item_ids, dtype=dtype, name="input_df")
        self._count_once(pairs.values)
        llk = pair_llk(self._host_backend(), self.Theta, self.Beta, pairs, full_llk=bool(full_llk))
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
        self._check_fitted()
        if self.step_size not in (None, default_step_size):
            warnings.warn("step_size is a function of your own and is not saved", stacklevel=2)
        save_model(path, self, self._parameters())

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
        parameters, state = load_model(path, cls._parameter_names)
        model = cls(**parameters)
        vars(model).update(state)
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

    def _host_backend(self) -> Backend:
        """What predicts: the model is on the host, in the precision that it was fitted in."""
        return self._backend_among(backends.ON_HOST)

    def _ranking_backend(self, users: int) -> Backend:
        on_gpu = self.backend_ == "cuda" and users >= _WORTH_A_GPU
        return self._backend_among(backends.NAMES if on_gpu else backends.ON_HOST)

    def _backend_among(self, names: Sequence[str]) -> Backend:
        name = "numpy" if self.backend_ == "numpy" else "auto"
        k, threads = self.Theta.shape[1], thread_count(self.ncores)
        return backends.choose(name, self.Theta.dtype, threads, k=k, among=names)

    def _seen_by(self, rows: NDArray[Any]) -> UserItems:
        if self._seen is None:
            raise ValueError("exclude_seen needs the training data, which keep_data=False has dropped")
        return items_of(rows, self._seen)

    def _pool(self, items_pool: Any) -> NDArray[Any]:
        codes = self._item_ids.codes(items_pool)
        if len(codes) == 0:
            raise ValueError("items_pool is empty: there is nothing to recommend")
        unknown = int((codes < 0).sum())
        if unknown == len(codes):
            raise ValueError("none of the items in items_pool was in the training data")
        if unknown:
            warnings.warn(f"{unknown} items of items_pool were not in the training data", stacklevel=3)
        return np.unique(codes[codes >= 0])

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise ValueError("this HPF has not been fitted yet: call fit first")

    # -- attributes that are views of the fitted state -------------------------------------------

    @property
    def user_mapping_(self) -> Any:
        """Id of each row of Theta, (nusers,)."""
        return self._user_ids.values if self.is_fitted else None

    @property
    def item_mapping_(self) -> Any:
        """Id of each row of Beta, (nitems,)."""
        return self._item_ids.values if self.is_fitted else None

    @property
    def user_dict_(self) -> dict[Any, int] | None:
        """Row of Theta of each user id."""
        return self._user_ids.rows if self.is_fitted and self.produce_dicts else None

    @property
    def item_dict_(self) -> dict[Any, int] | None:
        """Row of Beta of each item id."""
        return self._item_ids.rows if self.is_fitted and self.produce_dicts else None

    user_mapping, item_mapping = user_mapping_, item_mapping_
    user_dict, item_dict = user_dict_, item_dict_

    @property
    def seen(self) -> NDArray[Any]:
        """Item numbers that each user has had, user after user, (Z,)."""
        if not self.is_fitted or self._seen is None:
            # AttributeError, so that hasattr tells whether they are there.
            raise AttributeError("the items that users had are kept by fit with keep_data=True")
        return self._seen[1]

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
        return posterior.hyper_rate[:, None].astype(self.Theta.dtype)

    def _posterior(self, side: int) -> Posterior:
        if not self.is_fitted or self._posteriors is None:
            # AttributeError, so that hasattr tells whether shapes and rates are there.
            raise AttributeError("shapes and rates exist after fit with keep_all_objs=True")
        return self._posteriors[side]
