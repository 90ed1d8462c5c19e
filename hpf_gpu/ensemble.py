"""HPFEnsemble, the public class: several models of the same counts that answer as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .answers import ensembles
from .answers.predictions import known_rows
from .answers.recommendations import Lists, Wanted
from .answers.similarity import similar_items_of, similar_users_of
from .answers.summaries import facts_of_ensemble, repr_html
from .answers.uncertainty import (
    OfPairs,
    intervals_of_counts,
    predict_interval,
    predict_proba,
    sample_rates,
)
from .data.frames import library_of, like
from .data.ids import Ids
from .data.triplets import Columns, Triplets, load, read, with_ids
from .estimator import HPF
from .files.ensemble_file import load_ensemble, save_ensemble
from .files.parquet_file import in_parts, write_parquet
from .fitting.folding import factors_of_new_users, with_users
from .fitting.partial import USERS
from .fitting.training import Inputs, train_with_seeds
from .messages import did_you_mean, warn
from .model.convergence import Check, ConvergenceWarning
from .model.ensemble import Ensemble, Member
from .model.settings import (
    NAMES,
    Choice,
    Flag,
    Settings,
    fraction,
    from_zero,
    seed_or_fresh,
    settings_with,
    thread_count,
    whole_number,
)

COMBINATIONS = ("log-mean", "mean")


@dataclass(frozen=True)
class _Planned:
    """A member before its fit: its settings, with a seed, and its part in the ensemble."""

    settings: Settings
    transposed: bool
    weight: float

    def is_like(self, other: _Planned) -> bool:
        """Whether two members differ in nothing but seed and weight."""
        same_seed = replace(self.settings, random_seed=other.settings.random_seed)
        return self.transposed == other.transposed and same_seed == other.settings


class HPFEnsemble:
    """Several fits of one model, or several models, of the same counts, that answer together.

    Coordinate ascent ends in a local optimum, another one for each seed, and each knows something that the
    others do not.  Ranked by the mean of the logarithms of their expected counts, the items of eight fits are
    better than those of each; docs/quality.md has figures.

    Parameters
    ----------
    members : int or sequence of dict
        A number of fits that differ in the seed, ``random_seed``, ``random_seed`` + 1 and so on; or for each
        member the parameters of :class:`hpf_gpu.HPF` in which it differs from ``parameters``.  A member with
        ``'transposed': True`` is fitted to the transposed counts, with items for users and users for items:
        its ``neighbours`` are users, so that a count may come from another user who has the item.  It has no
        part in recommendations for new users.
    combine : {'log-mean', 'mean'}
        Whether expected counts are combined as exp of the mean of their logarithms, or as their mean.  The
        first ranks better, and members may differ in ``counts``.
    weights : sequence of float, optional
        Weight of each member in the mean, at least zero; by default all are equal.
    **parameters
        Parameters of :class:`hpf_gpu.HPF` for all members.

    Attributes
    ----------
    members_ : tuple of HPF
        The fitted models.  In a transposed one users and items are exchanged.
    nusers, nitems : int
        Numbers of users and items.
    user_mapping_, item_mapping_ : array (nusers,), array (nitems,), or None
        Their ids; None if ids are row and column numbers.
    is_fitted : bool
        Whether the ensemble has been fitted.

    Raises
    ------
    ValueError, TypeError
        If a parameter is unknown, or a value or combination of values is invalid.

    Examples
    --------
    Factors with eight seeds, and neighbours of items and of users::

        models = [{"k": 50, "counts": "log1p", "random_seed": seed} for seed in range(8)]
        models += [{"k": 0, "neighbours": 200}, {"k": 0, "neighbours": 200, "transposed": True}]
        ensemble = HPFEnsemble(models, weights=[0.03] * 8 + [0.6, 0.2]).fit(plays)
        ensemble.recommend("ann", discount=0.1)
    """

    def __init__(
        self,
        members: Any = 8,
        combine: str = "log-mean",
        weights: Any = None,
        **parameters: Any,
    ) -> None:
        self.members = members
        self.combine = combine
        self.weights = weights
        self.parameters = parameters
        self._fitted: tuple[tuple[HPF, ...], Ensemble] | None = None
        self._plan()

    # -- fitting -------------------------------------------------------------------------------

    def fit(
        self,
        counts_df: Any,
        val_set: Any = None,
        *,
        callback: Callable[[int, Check], object] | None = None,
    ) -> HPFEnsemble:
        """Fit all members, one after the other.

        Members that differ in nothing but the seed share one copy of the counts.

        Parameters
        ----------
        counts_df, val_set
            As for :meth:`hpf_gpu.HPF.fit`.
        callback : callable, optional
            Called after every iteration with the number of the member, from zero, and the object that
            :meth:`hpf_gpu.HPF.fit` passes.  If it returns True, the fit of this member ends; if it raises an
            exception, no member is kept, and the exception is raised.

        Returns
        -------
        HPFEnsemble
            This object.

        Raises
        ------
        ValueError, TypeError, BackendUnavailable, NotEnoughMemory, DeviceError
            As for :meth:`hpf_gpu.HPF.fit`.  The previous fit is kept.
        KeyboardInterrupt
            By Ctrl-C.  The previous fit is kept.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of two arguments, not {callback!r}")
        plan = self._plan()
        columns = plan[0].settings.columns
        if val_set is None and any(one.settings.stop_crit == "val-llk" for one in plan):
            raise ValueError("stop_crit='val-llk' needs held-out counts: fit(counts_df, val_set=...)")
        counts, held_out = load(counts_df, columns, "counts_df"), None
        if val_set is not None:
            held_out = load(val_set, columns, "val_set")
        models: dict[int, HPF] = {}
        members: dict[int, Member] = {}
        unmet = 0
        for numbers in _alike(plan):
            settings, transposed = plan[numbers[0]].settings, plan[numbers[0]].transposed
            asked = [
                (
                    seed_or_fresh(plan[number].settings.random_seed),
                    None if callback is None else partial(callback, number),
                )
                for number in numbers
            ]
            fits = train_with_seeds(settings, Inputs(counts, held_out, transposed=transposed), asked)
            for number, trained in zip(numbers, fits, strict=True):
                if trained.ended_by is not None:
                    raise trained.ended_by
                unmet += trained.unmet
                fitted = replace(trained.fitted, library=library_of(counts_df))
                models[number] = HPF._of(plan[number].settings, fitted)
                members[number] = Member(fitted, plan[number].weight, transposed)
        order = range(len(plan))
        together = Ensemble(tuple(members[number] for number in order), self.combine == COMBINATIONS[0])
        self._fitted = tuple(models[number] for number in order), together
        if unmet:
            at = f"{unmet} of the {len(plan)} fits ended at maxiter, before their rule stop_crit was met"
            warn(f"{at}: raise maxiter, or set stop_crit='maxiter' if so many are meant", ConvergenceWarning)
        return self

    def with_weights(self, weights: Sequence[float]) -> HPFEnsemble:
        """An ensemble of the same fitted members with other weights; this one is not changed.

        Parameters
        ----------
        weights : sequence of float
            Weight of each member, at least zero.

        Returns
        -------
        HPFEnsemble
            It shares the members with this one.

        Raises
        ------
        ValueError, TypeError
            If there are not as many weights as members, one is negative, or all are zero; if the ensemble is
            not fitted.
        """
        models, together = self._require_fitted()
        new = HPFEnsemble(self.members, self.combine, weights, **self.parameters)
        members = zip(together.members, new._plan(), strict=True)
        of_new = tuple(replace(member, weight=one.weight) for member, one in members)
        new._fitted = models, replace(together, members=of_new)
        return new

    # -- answers -------------------------------------------------------------------------------

    def predict(self, user: Any, item: Any) -> Any:
        """Expected counts of pairs of users and items, combined over the members.

        Parameters
        ----------
        user, item : one id, or array-like (Z,) of ids
            A single id is paired with all ids of the other argument.

        Returns
        -------
        float or array (Z,)
            NaN where an id was not in the training data.

        Raises
        ------
        ValueError
            If the ids cannot be paired, or the ensemble is not fitted.
        """
        return ensembles.predict(self._ensemble, self._threads, user, item)

    def spread(self, user: Any, item: Any) -> Any:
        """Standard deviation of the members' expected counts of pairs: how far the fits disagree.

        Parameters
        ----------
        user, item : one id, or array-like (Z,) of ids
            As for :meth:`predict`.

        Returns
        -------
        float or array (Z,)
            NaN where an id was not in the training data.

        Raises
        ------
        ValueError
            If the ids cannot be paired, members differ in ``counts``, or the ensemble is not fitted.
        """
        self._taken("the spread of")
        return ensembles.spread(self._ensemble, self._threads, user, item)

    def eval_llk(self, input_df: Any, full_llk: bool = False) -> dict[str, Any]:
        """Poisson log-likelihood of the pairs in the data, with the combined expected counts.

        Parameters
        ----------
        input_df, full_llk
            As for :meth:`hpf_gpu.HPF.eval_llk`.

        Returns
        -------
        dict
            ``llk``, and ``nobs``, the number of pairs in the sum.

        Raises
        ------
        ValueError, TypeError
            If the data are not counts, or none is left; if members differ in ``counts``, or the ensemble is
            not fitted.
        """
        ensemble, taken = self._ensemble, self._taken("a likelihood of")
        dtype, columns = ensemble.dtype.type, self._columns
        triplets = read(input_df, dtype=dtype, name="input_df", taken=taken, columns=columns)
        return ensembles.eval_llk(ensemble, self._threads, triplets, full_llk=bool(full_llk))

    def topN(self, user: Any, n: int = 10, exclude_seen: bool = True, items_pool: Any = None) -> NDArray[Any]:
        """Ids of the ``n`` items with the highest combined expected counts, best first.

        Parameters
        ----------
        user, n, exclude_seen, items_pool
            As for :meth:`hpf_gpu.HPF.topN`.

        Returns
        -------
        array (n,) for one user, (B, n) for many
            Padded as in :meth:`hpf_gpu.HPF.topN` where fewer items are left.

        Raises
        ------
        ValueError, TypeError
            If an id is unknown, or the ensemble is not fitted.
        """
        wanted = Wanted.checked(n, exclude_seen, items_pool)
        return ensembles.top_n(self._ensemble, self._threads, user, wanted)

    def recommend(
        self,
        users: Any = None,
        n: int = 10,
        *,
        counts: Any = None,
        exclude_seen: bool = True,
        items: Any = None,
        discount: float = 0.0,
        rank_by: str = "mean",
        level: float = 0.9,
        as_frame: bool = True,
        path: str | os.PathLike[str] | None = None,
    ) -> Any:
        """The ``n`` best items of users of the model, or of new users by their counts.

        Parameters
        ----------
        users, n, counts, exclude_seen, items, as_frame, path
            As for :meth:`hpf_gpu.HPF.recommend`.
        discount : float
            Scores are combined expected counts divided by n_i to this power, where n_i users have the item.
            Popular items have larger expected counts for everyone; held-out items of lists of ten to twenty
            are found best with 0.1 to 0.3.
        rank_by : {'mean', 'lower', 'upper'}
            Whether scores are combined expected counts, or the lower or upper bounds of intervals of the
            rates, as :meth:`predict_interval` has them: those of the mixture of the members.
        level : float
            Probability of the intervals.

        Returns
        -------
        DataFrame, or tuple of arrays (B, n) and (B, n), or None with ``path``
            As of :meth:`hpf_gpu.HPF.recommend`.

        Raises
        ------
        ValueError, TypeError
            If both ``users`` and ``counts`` are given, no user is known, ``discount`` is negative, or the
            ensemble is not fitted; with ``counts``, if all members are transposed or were fitted with
            keep_all_objs=False; if bounds are asked for and a member was fitted with that, or members differ
            in ``counts``.
        """
        if users is not None and counts is not None:
            raise ValueError("recommend takes users, ids of the model, or counts of new users, and not both")
        wanted = Wanted.checked(n, exclude_seen, items, discount, rank_by, level)
        ensemble = self._ensemble
        if wanted.quantile is not None:
            self._taken("bounds of")
        if counts is None:
            rows = known_rows(ensemble.user_ids, users)
            parts = [rows] if path is None else in_parts(rows, wanted.n)
            lists: Iterable[Lists] = (
                ensembles.recommend(ensemble, self._threads, part, wanted) for part in parts
            )
        else:
            lists = [self._recommend_for(ensemble, counts, wanted)]
        if path is not None:
            return write_parquet(path, (part.table() for part in lists))
        (whole,) = lists
        return self._like(whole.table(), users, counts) if as_frame else whole.arrays()

    def _recommend_for(self, ensemble: Ensemble, counts: Any, wanted: Wanted) -> Lists:
        """The lists of new users."""
        folded, columns = [], self._columns
        loaded = load(counts, columns, "counts")
        for number, model in self._for_new_users().items():
            settings, fitted = Settings.of(model.get_params()), ensemble.members[number].fitted
            dtype, taken = fitted.dtype.type, settings.counts
            triplets = read(loaded, dtype=dtype, name="counts", taken=taken, columns=columns)
            folded.append(factors_of_new_users(settings, fitted, triplets, maxiter=10, stop_thr=1e-3))
        new, *_ = folded[0]
        had = new.csr.indptr, new.csr.indices
        factors = [(theta, shape) for _, theta, shape in folded]
        return ensembles.recommend_for(ensemble, new.ids, factors, had, wanted)

    def similar_items(self, items: Any = None, n: int = 10) -> Any:
        """The items most like some items, by the mean similarity of the members that have factors.

        Parameters
        ----------
        items, n
            As for :meth:`hpf_gpu.HPF.similar_items`.

        Returns
        -------
        DataFrame
            Columns ItemId, SimilarId and Score, best first.

        Raises
        ------
        ValueError
            If no item is known, or no member with a weight has two factors or more.
        """
        return self._like(similar_items_of(self._ensemble, items, whole_number("n", n, 1)), items)

    def similar_users(self, users: Any = None, n: int = 10) -> Any:
        """The users most like some users, as :meth:`similar_items` with users and items exchanged.

        Parameters
        ----------
        users, n
            As for :meth:`hpf_gpu.HPF.similar_users`.

        Returns
        -------
        DataFrame
            Columns UserId, SimilarId and Score, best first.

        Raises
        ------
        ValueError
            As for :meth:`similar_items`.
        """
        return self._like(similar_users_of(self._ensemble, users, whole_number("n", n, 1)), users)

    def transform(self, counts_df: Any, maxiter: int = 10, stop_thr: float = 1e-3) -> Any:
        """Factors of new users in every member that is not transposed, without adding them.

        Parameters
        ----------
        counts_df, maxiter, stop_thr
            As for :meth:`hpf_gpu.HPF.transform`.

        Returns
        -------
        DataFrame
            A row for each user, and columns (member, factor); in a frame of another library than pandas,
            member_factor, behind UserId.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`hpf_gpu.HPF.transform`; if all members are transposed, or none is fitted.
        """
        models = self._for_new_users()
        loaded = load(counts_df, self._columns, "counts_df")
        frames = {
            number: model._fold(USERS, model._read(loaded, "counts_df"), maxiter, stop_thr).frame("UserId")
            for number, model in models.items()
        }
        return self._like(pd.concat(frames, axis=1, names=["member", "factor"]), counts_df)

    # -- uncertainty -----------------------------------------------------------------------------

    def predict_interval(self, user: Any, item: Any, level: float = 0.9, of: str = "rate") -> Any:
        """Mean, standard deviation and interval of rates, or of counts, over the mixture of the members.

        A rate is that of one member, drawn by weight: intervals have what each member does not know, and how
        far the members disagree (:meth:`spread`).

        Parameters
        ----------
        user, item, level, of
            As for :meth:`hpf_gpu.HPF.predict_interval`.

        Returns
        -------
        DataFrame
            Columns UserId, ItemId, Mean, Std, Lower and Upper, in float64.  Mean is the mean of the members'
            expected counts, which :meth:`predict` has with ``combine='mean'``; with 'log-mean' that is lower.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`hpf_gpu.HPF.predict_interval`; if members differ in ``counts``.

        Notes
        -----
        Each member's rates have the distribution that :meth:`hpf_gpu.HPF.predict_interval` describes;
        quantiles are those of the mixture.
        """
        level, of_counts = fraction("level", level), intervals_of_counts(of, self._taken("an interval of"))
        table = predict_interval(*self._moments(), user, item, level, of_counts=of_counts)
        return self._like(table, user, item)

    def predict_proba(self, user: Any, item: Any) -> Any:
        """Probability that the count of a pair is not zero: the mean of the members', by their weights.

        Parameters
        ----------
        user, item : one id, or array-like (Z,) of ids
            As for :meth:`predict`.

        Returns
        -------
        float or array (Z,)
            In float64; NaN where the user or the item was not in the training data.

        Raises
        ------
        ValueError
            As for :meth:`hpf_gpu.HPF.predict_proba`.
        """
        return predict_proba(*self._moments(), user, item)

    def sample_rates(
        self, user: Any, item: Any, n: int = 100, random_state: int | np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Draws of the rates of pairs, each from the posterior of one member, which is drawn by weight.

        Parameters
        ----------
        user, item, n, random_state
            As for :meth:`hpf_gpu.HPF.sample_rates`.

        Returns
        -------
        array (n, Z)
            In float64; NaN where the user or the item was not in the training data.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`hpf_gpu.HPF.sample_rates`; if members differ in ``counts``.
        """
        self._taken("draws of")
        n, rng, ensemble = whole_number("n", n, 1), np.random.default_rng(random_state), self._ensemble
        draw = partial(ensembles.draws_of_rates, ensemble, self._threads, n, rng)
        return sample_rates(ensemble.user_ids, ensemble.item_ids, draw, user, item, n)

    def _moments(self) -> tuple[Ids, Ids, OfPairs]:
        """Ids of the users and of the items, and the moments of the rates of pairs."""
        ensemble = self._ensemble
        return ensemble.user_ids, ensemble.item_ids, partial(ensembles.mixture, ensemble, self._threads)

    # -- new users and batches -------------------------------------------------------------------

    def add_user(
        self,
        user_id: Any,
        counts_df: Any,
        update_existing: bool = False,
        maxiter: int = 10,
        stop_thr: float = 1e-3,
    ) -> bool:
        """Add one user to every member, or replace the factors and seen items of an existing one.

        Parameters
        ----------
        user_id, counts_df, update_existing, maxiter, stop_thr
            As for :meth:`hpf_gpu.HPF.add_user`.

        Returns
        -------
        bool
            True.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`add_users`.
        """
        self._add(lambda model: model._one_user(counts_df, user_id), update_existing, maxiter, stop_thr)
        return True

    def add_users(
        self, counts_df: Any, update_existing: bool = False, maxiter: int = 10, stop_thr: float = 1e-3
    ) -> HPFEnsemble:
        """Add many users to every member at once, or replace the factors and seen items of existing ones.

        Parameters
        ----------
        counts_df, update_existing, maxiter, stop_thr
            As for :meth:`hpf_gpu.HPF.add_users`.

        Returns
        -------
        HPFEnsemble
            This object.  Another one that has the same members, by :meth:`with_weights`, is not changed.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`hpf_gpu.HPF.add_users`; if a member is transposed, whose items are the users of the
            fit.  The ensemble is then unchanged.
        """
        columns = self._columns
        loaded = load(with_ids(counts_df, columns), columns, "counts_df")
        self._add(lambda model: model._read(loaded, "counts_df"), update_existing, maxiter, stop_thr)
        return self

    def _add(
        self, read: Callable[[HPF], Triplets], update_existing: bool, maxiter: int, stop_thr: float
    ) -> None:
        """Add or replace users by their counts, which ``read`` has for each member."""
        self._require_fitted()
        models, first = self._growing("add users"), None
        for model in models:
            folded = model._fold(USERS, read(model), maxiter, stop_thr)
            model._fitted = with_users(folded, update_existing=update_existing, other=first)
            first = first or model._fitted
        self._grow(models)

    def partial_fit(
        self,
        counts_df: Any,
        batch_type: str = "users",
        step_size: float | None = None,
        nusers: int | None = None,
        nitems: int | None = None,
        users_in_batch: Any = None,
        items_in_batch: Any = None,
        new_users: bool = False,
        new_items: bool = False,
    ) -> HPFEnsemble:
        """Update every member with a batch of some users with all their counts, or of some items.

        Parameters
        ----------
        counts_df, batch_type, step_size, nusers, nitems, users_in_batch, items_in_batch, new_users, new_items
            As for :meth:`hpf_gpu.HPF.partial_fit`; also of an ensemble that is not fitted.

        Returns
        -------
        HPFEnsemble
            This object.  Another one that has the same members is not changed.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`hpf_gpu.HPF.partial_fit`; if a member is transposed.  The ensemble is then
            unchanged.
        """
        loaded = load(counts_df, self._plan()[0].settings.columns, "counts_df")
        models, totals = self._growing("take batches"), (nusers, nitems)
        batch, new = (users_in_batch, items_in_batch), (new_users, new_items)
        for model in models:
            model.partial_fit(loaded, batch_type, step_size, *totals, *batch, *new)
        self._grow(models)
        return self

    def _growing(self, what: str) -> list[HPF]:
        """Copies of the members, or of those that are planned; ValueError if one is transposed."""
        if self._fitted is None:
            plan = self._plan()
            models = [HPF(**{name: getattr(one.settings, name) for name in NAMES}) for one in plan]
            transposed = [one.transposed for one in plan]
        else:
            models = [copy(model) for model in self.members_]
            transposed = [member.transposed for member in self._ensemble.members]
        if any(transposed):
            raise ValueError(
                f"member {transposed.index(True)} is transposed, and cannot {what}: its items are the users "
                "of the fit, so fit again with all counts"
            )
        return models

    def _grow(self, models: Sequence[HPF]) -> None:
        """Replace all members at once."""
        if self._fitted is None:
            weights, of_logarithms = [one.weight for one in self._plan()], self.combine == COMBINATIONS[0]
        else:
            weights = [member.weight for member in self._ensemble.members]
            of_logarithms = self._ensemble.of_logarithms
        members = (Member(model._require_fitted(), w) for model, w in zip(models, weights, strict=True))
        self._fitted = tuple(models), Ensemble(tuple(members), of_logarithms)

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted members to one file, which :meth:`load` reads on any machine.

        Parameters
        ----------
        path : str or path-like
            File to write; an existing file is replaced once the new one is complete.

        Raises
        ------
        ValueError, TypeError, OSError
            As for :meth:`hpf_gpu.HPF.save`.
        """
        save_ensemble(
            path,
            [model.get_params() for model in self.members_],
            self._ensemble,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False) -> HPFEnsemble:
        """Read an ensemble that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
            File to read.  Loading executes no code from the file.
        mmap : bool
            Whether to map the file rather than read it, as for :meth:`hpf_gpu.HPF.load`.

        Returns
        -------
        HPFEnsemble
            The fitted ensemble; its ``members`` are listed one by one, with all their parameters.

        Raises
        ------
        ModelFileError, OSError
            As for :meth:`hpf_gpu.HPF.load`.
        """
        settings, together = load_ensemble(path, mapped=bool(mmap))
        models = [HPF._of(one, of.fitted) for one, of in zip(settings, together.members, strict=True)]
        listed = [
            model.get_params() | {"transposed": member.transposed}
            for model, member in zip(models, together.members, strict=True)
        ]
        combine = COMBINATIONS[0 if together.of_logarithms else 1]
        ensemble = cls(listed, combine, [member.weight for member in together.members])
        ensemble._fitted = tuple(models), together
        return ensemble

    # -- settings and attributes ---------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Current values of the parameters by name, as in scikit-learn.

        Parameters
        ----------
        deep : bool
            Ignored.

        Returns
        -------
        dict
            ``members``, ``combine``, ``weights``, and the parameters of all members that were passed.
        """
        return {"members": self.members, "combine": self.combine, "weights": self.weights, **self.parameters}

    def set_params(self, **params: Any) -> HPFEnsemble:
        """Set parameters by name.  The fitted members are unchanged.

        Parameters
        ----------
        **params
            ``members``, ``combine``, ``weights``, and parameters of :class:`hpf_gpu.HPF` for all members.

        Returns
        -------
        HPFEnsemble
            This object.

        Raises
        ------
        ValueError, TypeError
            As for the constructor.  All parameters are then unchanged.
        """
        new = HPFEnsemble(**self.get_params() | params)
        self.members, self.combine, self.weights = new.members, new.combine, new.weights
        self.parameters = new.parameters
        return self

    if not TYPE_CHECKING:  # which would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            """Say where to find what a model has and an ensemble cannot have."""
            of_members = not name.startswith("_") and hasattr(HPF, name)
            advice = f", because its members have their own: ask one, as members_[0].{name}" * of_members
            raise AttributeError(f"HPFEnsemble has no {name!r}{advice}")

    def __repr__(self) -> str:
        """The parameters that were passed."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"HPFEnsemble({given})"

    def _repr_html_(self) -> str:
        """The parameters that were passed, and the state of the fits, for notebooks."""
        parameters = [(name, repr(value)) for name, value in self.get_params().items()]
        facts = None if self._fitted is None else facts_of_ensemble(self._ensemble)
        return repr_html("HPFEnsemble", parameters, facts)

    @property
    def is_fitted(self) -> bool:
        """Whether the ensemble has been fitted."""
        return self._fitted is not None

    @property
    def members_(self) -> tuple[HPF, ...]:
        """The fitted models."""
        return self._require_fitted()[0]

    @property
    def nusers(self) -> int:
        """Number of users."""
        return self._ensemble.user_ids.size

    @property
    def nitems(self) -> int:
        """Number of items."""
        return self._ensemble.item_ids.size

    @property
    def user_mapping_(self) -> NDArray[Any] | None:
        """Ids of the users, (nusers,), as :class:`hpf_gpu.HPF` has them; None if they are row numbers."""
        return self._ensemble.user_ids.values

    @property
    def item_mapping_(self) -> NDArray[Any] | None:
        """Ids of the items, (nitems,); None if they are column numbers."""
        return self._ensemble.item_ids.values

    def _like(self, frame: pd.DataFrame, *given: Any) -> Any:
        """A result in the library of what was passed, otherwise in that of the training data."""
        return like(frame, *given, library=self._ensemble.library)

    @property
    def _ensemble(self) -> Ensemble:
        return self._require_fitted()[1]

    @property
    def _threads(self) -> int | None:
        return thread_count(self.parameters.get("ncores", -1))

    def _require_fitted(self) -> tuple[tuple[HPF, ...], Ensemble]:
        if self._fitted is None:
            raise ValueError("this HPFEnsemble has not been fitted yet: call fit first")
        return self._fitted

    def _for_new_users(self) -> dict[int, HPF]:
        """The members that can tell something of users who are not in the model, by number."""
        models, ensemble = self._require_fitted()
        able = {
            number: model
            for number, (model, member) in enumerate(zip(models, ensemble.members, strict=True))
            if not member.transposed
        }
        if not any(ensemble.members[number].weight for number in able):
            raise ValueError(
                "all members with a weight are transposed, and know the users of the training data only"
            )
        return able

    @property
    def _columns(self) -> Columns:
        """The columns of tables of counts, which members have in common."""
        ensemble = self._ensemble
        return replace(self.members_[0]._columns, known=(ensemble.user_ids, ensemble.item_ids))

    def _taken(self, what: str) -> str:
        """What the members take for counts; ValueError if they differ."""
        taken = sorted({model.counts for model in self.members_})
        if len(taken) > 1:
            raise ValueError(f"{what} members with counts={' and '.join(map(repr, taken))} has no meaning")
        return taken[0]

    def _plan(self) -> list[_Planned]:
        """The members, with all values checked."""
        Choice(COMBINATIONS).checked("combine", self.combine)
        if isinstance(self.members, (Mapping, str)):
            raise TypeError(f"members is {self.members!r}: pass a number, or a list of dicts of parameters")
        if isinstance(self.members, Sequence):
            listed = list(self.members)
            if not listed:
                raise ValueError("members is empty: an ensemble needs at least one")
        else:
            listed = [{}] * whole_number("members", self.members, 1)
        if self.parameters.get("save_folder") is not None:
            raise ValueError("an ensemble writes no CSV files: save_folder must be None")
        weights = [1.0] * len(listed) if self.weights is None else list(self.weights)
        if len(weights) != len(listed):
            raise ValueError(f"there are {len(weights)} weights for {len(listed)} members")
        weights = [from_zero(f"weights[{number}]", weight) for number, weight in enumerate(weights)]
        if not any(weights):
            raise ValueError("all weights are zero: at least one member must count")
        plan = [
            _planned(number, self.parameters, own, weight)
            for number, (own, weight) in enumerate(zip(listed, weights, strict=True))
        ]
        if len({one.settings.columns for one in plan}) > 1:
            raise ValueError("all members read the same table: pass user, item and count to the ensemble")
        return plan


def as_ensemble(model: HPF | HPFEnsemble) -> Ensemble:
    """A fitted model as an ensemble of one, or a fitted ensemble; ValueError if it is not fitted."""
    if isinstance(model, HPFEnsemble):
        return model._ensemble
    return Ensemble((Member(model._require_fitted(), 1.0),), of_logarithms=False)


def _planned(number: int, parameters: Mapping[str, Any], own: Mapping[str, Any], weight: float) -> _Planned:
    if not isinstance(own, Mapping):
        raise TypeError(f"members[{number}] is {own!r}: pass a dict of parameters")
    own = dict(own)
    transposed = Flag().checked(f"members[{number}]['transposed']", own.pop("transposed", False))
    for name in (*parameters, *own):
        if name not in NAMES:
            close = did_you_mean([name], NAMES)
            raise ValueError(f"HPF has no parameter {name!r}; it has {', '.join(NAMES)}{close}")
    settings = settings_with({**parameters, **own})
    if "random_seed" not in own and settings.random_seed is not None:
        settings = replace(settings, random_seed=settings.random_seed + number)
    return _Planned(settings, transposed, weight)


def _alike(plan: Sequence[_Planned]) -> list[list[int]]:
    """Numbers of the members, those together that differ in nothing but the seed."""
    groups: list[list[int]] = []
    for number, one in enumerate(plan):
        for group in groups:
            if plan[group[0]].is_like(one):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups
