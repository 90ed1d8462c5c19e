"""HPFEnsemble, the public class: several models of the same counts that answer as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from .answers import ensembles
from .answers.predictions import known_rows
from .answers.recommendations import Lists, Wanted
from .answers.similarity import similar_items_of, similar_users_of
from .answers.summaries import facts_of_ensemble, repr_html
from .data.frames import library_of, like
from .data.triplets import Columns, load, read
from .estimator import HPF
from .files.ensemble_file import load_ensemble, save_ensemble
from .files.parquet_file import in_parts, write_parquet
from .fitting.folding import factors_of_new_users
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
        return ensembles.top_n(self._ensemble, user, Wanted.checked(n, exclude_seen, items_pool))

    def recommend(
        self,
        users: Any = None,
        n: int = 10,
        *,
        counts: Any = None,
        exclude_seen: bool = True,
        items: Any = None,
        discount: float = 0.0,
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

        Returns
        -------
        DataFrame, or tuple of arrays (B, n) and (B, n), or None with ``path``
            As of :meth:`hpf_gpu.HPF.recommend`.

        Raises
        ------
        ValueError, TypeError
            If both ``users`` and ``counts`` are given, no user is known, ``discount`` is negative, or the
            ensemble is not fitted; with ``counts``, if all members are transposed or were fitted with
            keep_all_objs=False.
        """
        if users is not None and counts is not None:
            raise ValueError("recommend takes users, ids of the model, or counts of new users, and not both")
        wanted, ensemble = Wanted.checked(n, exclude_seen, items, discount), self._ensemble
        if counts is None:
            rows = known_rows(ensemble.user_ids, users)
            parts = [rows] if path is None else in_parts(rows, wanted.n)
            lists: Iterable[Lists] = (ensembles.recommend(ensemble, part, wanted) for part in parts)
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
        return ensembles.recommend_for(ensemble, new.ids, [theta for _, theta, _ in folded], had, wanted)

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
            number: model._fold(USERS, loaded, maxiter, stop_thr, None).frame("UserId")
            for number, model in models.items()
        }
        return self._like(pd.concat(frames, axis=1, names=["member", "factor"]), counts_df)

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
