"""HPF, the public class: parameters and data in, attributes and recommendations out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .answers.predictions import eval_llk, predict
from .answers.recommendations import top_n
from .data.triplets import Triplets, on_host, read, read_one_user
from .files.csv_folder import write_csv_folder
from .files.model_file import load_model, save_model
from .fitting.folding import Folded, fold, phi_of_user, step_with_user, with_users
from .fitting.partial import ITEMS, USERS, Totals, partial_step
from .fitting.training import Inputs, train
from .model.convergence import Check
from .model.fitted import Fitted
from .model.settings import (
    NAMES,
    Choice,
    Settings,
    check_folder,
    default_step_size,
    is_default,
    thread_count,
    whole_number,
)


class HPF:
    """Hierarchical Poisson factorization of sparse counts, by mean-field variational inference.

    The count of user u and item i is modelled as ``y_ui ~ Poisson(θ_u·β_i)`` with
    ``θ_uk ~ Gamma(a, ξ_u)``, ``ξ_u ~ Gamma(a', a'/b')``, ``β_ik ~ Gamma(c, η_i)`` and
    ``η_i ~ Gamma(c', c'/d')`` [1]_.  Pairs that are absent count as zero.  Same seed, same data:
    the numbers of hpfrec 0.2.14, on every backend.

    Parameters
    ----------
    k : int
        Number of factors K.
    a, a_prime, b_prime : float
        Prior of the users: shape of θ, shape and mean of the activity ξ.
    c, c_prime, d_prime : float
        Prior of the items: shape of β, shape and mean of the popularity η.
    ncores : int
        Threads of the ``openmp`` backend; −1 (and any number below 1) takes every core that
        this process may use.  A process forked from one that has loaded the backend gets one
        thread: OpenMP's do not survive a fork.
    stop_crit : {'train-llk', 'maxiter', 'val-llk', 'diff-norm', 'elbo'}
        When to stop: by ``maxiter`` alone; when the training log-likelihood, the log-likelihood of
        ``val_set`` or the evidence lower bound has gained no more than ``stop_thr``, relatively,
        since the last check; or when the Frobenius norm of the change in Theta since the last
        check is below ``stop_thr`` (an absolute figure).
    check_every : int or None
        Iterations between two checks.  With ``stop_crit='maxiter'`` checks only inform, and
        happen only if ``verbose``.  The last iteration is always checked.
    stop_thr : float
        Threshold of ``stop_crit``.
    users_per_batch, items_per_batch : int or None
        With either, the fit is stochastic [2]_: an iteration is an epoch, in which the users, or the
        items, are gone through in random batches of this size with all their counts.  Each batch is
        brought to rest and then moves the other side by a step.  With both, epochs of items and of
        users take turns, items first.  An epoch does more than a full iteration, and takes longer.
    step_size : callable or None
        Step size in [0, 1] of stochastic fits by epoch number from zero, for every batch of the epoch:
        1/√(epoch + 2) unless given, or None.  With hundreds of batches smaller steps are better.
    maxiter : int or None
        Most iterations, which are epochs in stochastic fits; None has no limit.
    use_float : bool
        float32 if True, else float64.  Sums, likelihoods and the ELBO are float64 always.
    reindex : bool
        Whether ids are names (of any hashable type) to be numbered in order of first appearance.
        If False ids must be row and column numbers already, whole and from zero.  Sparse matrices
        are numbered by their rows and columns, whatever is said here.
    verbose : bool
        Whether to show a progress bar on standard error.
    random_seed : int or None
        Seed of the start values, 0 included.  None draws a fresh one; either way the one used is
        kept in ``random_seed_``.
    allow_inconsistent_math : bool
        Accepted, without effect: updates are parallel, and the same for the same number of threads.
    full_llk : bool
        Whether log-likelihoods include −Σ ln y!, which does not depend on the model.
    alloc_full_phi : bool
        Accepted, without effect: φ is never stored.
    keep_data : bool
        Whether to remember which items each user had, so that ``topN`` can leave them out.
    save_folder : str or None
        Folder (it must exist) to write all parameters to as CSV, as hpfrec does.  For a file to load
        again see :meth:`save`.
    produce_dicts : bool
        Whether ``user_dict_`` and ``item_dict_`` are offered; they are built when first asked for.
    keep_all_objs : bool
        Whether to keep shapes and rates (``Gamma_shp`` ... ``t_rte``) beside ``Theta`` and ``Beta``.
        Folding in new users or items needs them.
    sum_exp_trick : bool
        Whether to compute φ of every count by the max-shifted log-sum-exp.  Those that need it
        get it anyway; True is slower and at most a rounding error different.
    backend : {'auto', 'cuda', 'openmp', 'numpy'}
        What computes.  A named backend is used or BackendUnavailable is raised; 'auto' takes the
        fastest that works here.
    schedule : {'joint', 'alternating'}
        'joint' updates both sides from one φ, as hpfrec does; 'alternating' computes φ anew in
        between: more progress and more work per iteration.
    precision : {'full', 'mixed'}
        'mixed' lets the cuda backend keep exp E[ln θ] and exp E[ln β] in half precision, half the
        bytes that an iteration reads; sums stay float32.
    allocate : {'fused', 'cusparse'}
        How the cuda backend shares counts among factors: in one kernel, or in a kernel for the
        weights and cuSPARSE products, for comparison.
    hierarchical : bool
        If False there are no ξ and η, the model is Bayesian Poisson factorization [1]_:
        ``θ_uk ~ Gamma(a, b')`` and ``β_ik ~ Gamma(c, d')`` with rates b' and d' that are fixed, at the
        prior means of ξ and η.  a' and c' are then but the level that start values have.
    binary : bool
        Whether counts above zero are taken as one: in ``fit``, ``val_set``, ``eval_llk`` and what is
        folded in.
    bias : bool
        Whether rates have a bias of the user and one of the item, ``θ_u·β_i + b_u + c_i``, with the priors
        of θ_uk and β_ik.  Theta and Beta then have k + 2 columns: the last two are b_u and one in Theta, one
        and c_i in Beta, so that Theta @ Beta.T are the rates still.  Ten updates without biases, or batches
        in stochastic fits, part the factors before biases begin; in full-batch fits they come before the
        first iteration and are not counted.  The prior of so many biases costs ELBO: that with and that
        without them do not tell which model recommends better.

    Attributes
    ----------
    Theta, Beta : array (nusers, k), array (nitems, k)
        E[θ] and E[β]; with ``bias=True`` two columns more.
    user_mapping_, item_mapping_ : array (nusers,), array (nitems,), or None
        Id of each row; None if ids are row numbers.  Also without the underscore.
    user_dict_, item_dict_ : dict or None
        Row of each id.  Also without the underscore.
    Gamma_shp, Gamma_rte, Lambda_shp, Lambda_rte : array (nusers, k) or (nitems, k)
        Parameters of q(θ) and q(β).  Rates are built at each access.
    k_rte, t_rte : array (nusers, 1), array (nitems, 1)
        Rates of q(ξ) and q(η), where there are ξ and η.  Where θ or β is held (``bias``, ``fixed_items``),
        q is a gamma distribution so narrow that it is a point, and the shapes and rates above are huge.
    seen : array (Z,)
        Item numbers that each user has had, user after user; with ``keep_data=True``.
    is_fitted : bool
    niter : int
        Iterations run.
    train_llk : float
        Training log-likelihood after the last iteration.
    history_ : DataFrame
        One row per check: iteration, llk, elbo, val_llk, seconds, and diff_norm with 'diff-norm'.
    nusers, nitems : int
    random_seed_ : int
        Seed that the start values were drawn with.
    backend_ : str
        Name of the backend that fitted.

    References
    ----------
    .. [1] P. Gopalan, J. M. Hofman, D. M. Blei: Scalable Recommendation with Hierarchical Poisson
       Factorization. UAI 2015.
    .. [2] M. D. Hoffman, D. M. Blei, C. Wang, J. Paisley: Stochastic Variational Inference. Journal of
       Machine Learning Research 14, 2013.
    """

    def __init__(
        self,
        k: int = 30,
        a: float = 0.3,
        a_prime: float = 0.3,
        b_prime: float = 1.0,
        c: float = 0.3,
        c_prime: float = 0.3,
        d_prime: float = 1.0,
        ncores: int = -1,
        stop_crit: str = "train-llk",
        check_every: int | None = 10,
        stop_thr: float = 1e-3,
        users_per_batch: int | None = None,
        items_per_batch: int | None = None,
        step_size: Callable[[int], float] | None = default_step_size,
        maxiter: int | None = 100,
        use_float: bool = True,
        reindex: bool = True,
        verbose: bool = True,
        random_seed: int | None = None,
        allow_inconsistent_math: bool = False,
        full_llk: bool = False,
        alloc_full_phi: bool = False,
        keep_data: bool = True,
        save_folder: str | None = None,
        produce_dicts: bool = True,
        keep_all_objs: bool = True,
        sum_exp_trick: bool = False,
        *,
        backend: str = "auto",
        schedule: str = "joint",
        precision: str = "full",
        allocate: str = "fused",
        hierarchical: bool = True,
        binary: bool = False,
        bias: bool = False,
    ) -> None:
        self.k = k
        self.a = a
        self.a_prime = a_prime
        self.b_prime = b_prime
        self.c = c
        self.c_prime = c_prime
        self.d_prime = d_prime
        self.ncores = ncores
        self.stop_crit = stop_crit
        self.check_every = check_every
        self.stop_thr = stop_thr
        self.users_per_batch = users_per_batch
        self.items_per_batch = items_per_batch
        self.step_size = step_size
        self.maxiter = maxiter
        self.use_float = use_float
        self.reindex = reindex
        self.verbose = verbose
        self.random_seed = random_seed
        self.allow_inconsistent_math = allow_inconsistent_math
        self.full_llk = full_llk
        self.alloc_full_phi = alloc_full_phi
        self.keep_data = keep_data
        self.save_folder = save_folder
        self.produce_dicts = produce_dicts
        self.keep_all_objs = keep_all_objs
        self.sum_exp_trick = sum_exp_trick
        self.backend = backend
        self.schedule = schedule
        self.precision = precision
        self.allocate = allocate
        self.hierarchical = hierarchical
        self.binary = binary
        self.bias = bias
        self._fitted: Fitted | None = None
        check_folder(self._settings().save_folder)

    # -- fitting -------------------------------------------------------------------------------

    def fit(
        self,
        counts_df: Any,
        val_set: Any = None,
        *,
        callback: Callable[[Check], object] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
        fixed_users: Any = None,
        fixed_items: Any = None,
    ) -> HPF:
        """Fit the model to counts, from fresh start values or from a checkpoint.

        Parameters
        ----------
        counts_df : DataFrame, array (n, 3) or scipy sparse matrix (nusers, nitems)
            A frame with columns UserId, ItemId and Count in any order, an array with these three
            columns, or a sparse matrix or array of any format, whose row and column numbers are
            the ids.  CuPy's arrays and sparse matrices are taken too, and with the cuda backend
            never leave the GPU; ids in such arrays are whole numbers.  The same (user, item) given
            twice is summed; counts of zero are dropped with a warning; other counts, whole or not,
            are used as they are.  Never modified.
        val_set : same forms, optional
            Held-out counts for the log-likelihood in ``history_`` and for ``stop_crit='val-llk'``.
            Users and items without training data are left out with a warning.
        callback : callable, optional
            Called after every iteration with what ``history_`` would have in a row: an object with
            ``iteration``, ``seconds`` and, where a check was due (NaN elsewhere), ``llk``, ``elbo``,
            ``val_llk`` and ``diff_norm``.  The fit ends if it returns True.  An error that it raises is
            passed on, after the iterations so far were kept as they are for Ctrl-C.
        checkpoint : str or path-like, optional
            File that the state of the fit is written to every ``checkpoint_every`` iterations.  If it is
            there already, the fit goes on from it, and ends bit by bit as one that was never interrupted
            (on the same backend with as many threads).  It stays when the fit has ended.  It knows a
            ``step_size`` by its first two values.
        checkpoint_every : int
            Iterations between two checkpoints.
        fixed_users, fixed_items : DataFrame (n, k) or array (nusers, k) or (nitems, k), optional
            Factors that are known and stay as they are, those of users or those of items: a frame with ids
            for index, of which those in ``counts_df`` are taken, or where ids are row numbers an array.
            Columns are those of Theta and Beta, with ``bias=True`` those of the biases too: what is given
            there weighs the bias of the other side.  0 up to 1e9, and not a row all zero.  Values below 1e-15
            lose digits.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            For data that are not counts of users and items, naming the value at fault; the last
            fit is kept.  For a checkpoint of a fit with other data or other parameters; these alone
            may differ: where it runs (``backend``, ``ncores``), how far (``maxiter``), and what is shown,
            written and kept.
        ModelFileError
            If the checkpoint is damaged, none, or written by a newer version.
        BackendUnavailable
            If the backend asked for cannot work here.
        NotEnoughMemory
            If the fit would not fit into the memory of the GPU.

        Notes
        -----
        Ctrl-C ends the fit with a warning and keeps the last finished iteration.

        Whatever changes a model replaces it in one step.  Other threads may call the methods that answer
        (``predict``, ``topN``, ``eval_llk``, ``transform``, ``save``) meanwhile: each call answers for the
        model before or for the one after.  Two attributes that are read one after the other may be of two
        models.  Of two fits of one object at the same time the last to end stays.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of the last check, not {callback!r}")
        settings = self._settings()
        check_folder(settings.save_folder)
        if settings.stop_crit == "val-llk" and val_set is None:
            raise ValueError("stop_crit='val-llk' needs held-out counts: fit(counts_df, val_set=...)")
        trained = train(
            settings,
            Inputs(counts_df, val_set, fixed_users, fixed_items),
            callback=callback,
            checkpoint=checkpoint,
            checkpoint_every=whole_number("checkpoint_every", checkpoint_every, 1),
        )
        fitted = trained.fitted
        self._fitted = fitted if settings.keep_all_objs else replace(fitted, posteriors=None)
        if settings.save_folder is not None:
            write_csv_folder(settings.save_folder, fitted, settings)
        if isinstance(trained.ended_by, KeyboardInterrupt):
            try:
                warnings.warn(f"the fit was interrupted; iteration {fitted.niter} is kept", stacklevel=2)
            except UserWarning as warning:  # where warnings are errors, Ctrl-C is still what it is
                raise trained.ended_by from warning
        elif trained.ended_by is not None:
            raise trained.ended_by
        return self

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
        random_seed: int | None = None,
    ) -> HPF:
        """Update the model with a batch: some users with all their counts, or some items with all theirs.

        The users of the batch are brought to rest, then all items move by a step towards what they would
        be if all users were like these; or the same with users and items exchanged.  Works on a fitted
        model and, with ``nusers`` and ``nitems``, on one that is not.

        Parameters
        ----------
        counts_df : DataFrame, array (n, 3) or scipy sparse matrix (nusers, nitems)
            As for :meth:`~hpf_gpu.HPF.fit`; the rows of a matrix that are empty are not in the batch.
        batch_type : {'users', 'items'}
            Whether the batch has users with all their counts or items with all theirs.
        step_size : float, optional
            Step in [0, 1]; by default what the model's ``step_size`` gives for ``niter``, which counts
            calls, iterations of a fit before included.
        nusers, nitems : int, optional
            How many users and items there are in all; the first call needs both if the model is not
            fitted, and later ones go by the last that were given.  So many ids can come with batches,
            each when it comes.  Where ids are row numbers they are those below.
        users_in_batch, items_in_batch : array-like of ids, optional
            All users (items) of the batch, for those who have no count at all; by default those in
            ``counts_df``.  Only that of the batch's own side has an effect.
        new_users, new_items : bool
            Whether users (items) beyond ``nusers`` (``nitems``) are taken into the model, which is an
            error otherwise.
        random_seed : int, optional
            Seed of the start values of rows that are new; by default it follows from the model's seed.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            For data that are not counts, for ids that the model has no room for, for a step outside
            [0, 1], and if ``keep_all_objs=False`` has dropped the shapes and rates.  The model is then as
            it was.

        Notes
        -----
        A call takes time and memory for the whole model beside those for the batch.  What users have had,
        for ``topN``, grows with every batch.  ``train_llk`` is None after a call and ``history_`` stays
        that of the last fit: nobody has all counts.

        Examples
        --------
        Batches from a Parquet file that is too large for memory, written so that each of its row groups
        has some users with all their counts::

            import numpy as np
            import pyarrow.parquet as pq

            plays, model = pq.ParquetFile("plays.parquet"), HPF(k=30)
            for epoch in range(5):
                for group in np.random.permutation(plays.num_row_groups):
                    batch = plays.read_row_group(group).to_pandas()
                    model.partial_fit(batch, nusers=1_000_000, nitems=50_000)
        """
        Choice(("users", "items")).checked("batch_type", batch_type)
        settings, fitted = self._settings(), self._fitted
        side = USERS if batch_type == "users" else ITEMS
        dtype = settings.dtype if fitted is None else fitted.dtype
        self._fitted = partial_step(
            settings,
            fitted,
            read(counts_df, dtype=dtype.type, name="counts_df", binary=settings.binary),
            side=side,
            step_size=step_size,
            totals=Totals(nusers, nitems),
            members=(users_in_batch, None) if side == USERS else (None, items_in_batch),
            may_grow=(bool(new_users), bool(new_items)),
            random_seed=random_seed,
        )
        return self

    # -- users and items that the fit has not seen -----------------------------------------------

    def transform(
        self, counts_df: Any, maxiter: int = 10, stop_thr: float = 1e-3, ncores: int | None = None
    ) -> pd.DataFrame:
        """Factors of many new users at once, given the items of the model, which stay as they are.

        Parameters
        ----------
        counts_df : same forms as for ``fit``
            Counts of new users, whose ids may be any, by items of the model.  Unknown items are left out
            with a warning, zeros too.  Never modified.
        maxiter : int
            Most iterations.
        stop_thr : float
            Ends when the root mean square over the users of ‖Δθ_u‖, the norm of the change of a user's
            factors in an iteration, is below this.
        ncores : int, optional
            Threads of the ``openmp`` backend; by default those of the model.

        Returns
        -------
        DataFrame (n, k)
            E[θ] of each new user.  The index has the user ids in order of first appearance, or the row
            numbers of a matrix.  A user with nothing that can be used gets, with a warning, the factors
            of a user without counts.

        Raises
        ------
        ValueError, TypeError
            For data that are not counts, if none of the items is known, if the model is not fitted, and
            if ``keep_all_objs=False`` has dropped the shapes and rates.
        """
        return self._fold(USERS, counts_df, maxiter, stop_thr, ncores).frame("UserId")

    def transform_items(
        self, counts_df: Any, maxiter: int = 10, stop_thr: float = 1e-3, ncores: int | None = None
    ) -> pd.DataFrame:
        """Factors of many new items at once, given the users of the model, which stay as they are.

        :meth:`transform` with users and items exchanged: ``counts_df`` has counts of new items by users of
        the model, and the result (n, k) has E[β] by item id, or by the column numbers of a matrix.
        """
        return self._fold(ITEMS, counts_df, maxiter, stop_thr, ncores).frame("ItemId")

    def predict_factors(
        self,
        counts_df: Any,
        maxiter: int = 10,
        ncores: int = 1,
        random_seed: int = 1,
        stop_thr: float = 1e-3,
        return_all: bool = False,
    ) -> Any:
        """Factors of one new user, given the items of the model, which stay as they are.

        Parameters
        ----------
        counts_df : DataFrame, array (n, 2) or scipy sparse matrix (1, nitems)
            Her counts, with columns ItemId and Count.  Unknown items are left out with a warning, zeros
            too.  Never modified.
        maxiter : int
            Most iterations.
        ncores : int
            Threads of the ``openmp`` backend.
        random_seed : int
            Accepted, without effect: the start values are the same for all.
        stop_thr : float
            Ends when ‖Δθ_u‖, the norm of the change of her factors in an iteration, is below this.
        return_all : bool
            Whether to return shapes, rates and φ too.

        Returns
        -------
        array (k,), or tuple of arrays (k,), (k,), (k,) and (n, k)
            E[θ_u]; or E[θ_u], shapes and rates of q(θ_u), and φ: how the count in each row of
            ``counts_df`` is shared among the factors, NaN in rows that were left out.

        Raises
        ------
        ValueError, TypeError
            As :meth:`transform`, which takes many users at once.
        """
        whole_number("random_seed", random_seed, 0)
        settings, fitted = self._settings(), self._require_fitted()
        triplets = self._one_user(counts_df, 0)
        folded = fold(
            settings,
            fitted,
            triplets,
            side=USERS,
            maxiter=maxiter,
            stop_thr=stop_thr,
            threads=thread_count(ncores),
        )
        theta = folded.mean[0]
        if not return_all:
            return theta
        posterior = folded.posterior
        return theta, posterior.shape[0], posterior.rate[0], phi_of_user(folded, triplets.items)

    def add_user(
        self,
        user_id: Any,
        counts_df: Any,
        update_existing: bool = False,
        maxiter: int = 10,
        ncores: int = 1,
        random_seed: int = 1,
        stop_thr: float = 1e-3,
        update_all_params: bool | None = None,
    ) -> bool:
        """Add one user to the model, or replace what it knows of one.

        Parameters
        ----------
        user_id : hashable
            Where ids are row numbers, that of a new user must be ``nusers``.
        counts_df : same forms as for :meth:`predict_factors`
            All her counts, those that the model has seen included.
        update_existing : bool
            Whether she is in the model: her factors and the items she has had are replaced.
        maxiter, ncores, random_seed, stop_thr :
            As for :meth:`predict_factors`.
        update_all_params : bool, optional
            Whether to move all items too, by the step of :meth:`partial_fit` with her for a batch, which
            lets one user speak for all.  ``maxiter`` and ``stop_thr`` are then without effect.

        Returns
        -------
        bool
            True.

        Raises
        ------
        ValueError, TypeError
            If a new user is in the model already or one to replace is not, and as :meth:`transform`.
            The model is then as it was.
        """
        whole_number("random_seed", random_seed, 0)
        settings, fitted = self._settings(), self._require_fitted()
        triplets, threads = self._one_user(counts_df, user_id), thread_count(ncores)
        if update_all_params:
            self._fitted = step_with_user(
                settings, fitted, triplets, update_existing=update_existing, threads=threads
            )
            return True
        folded = fold(
            settings, fitted, triplets, side=USERS, maxiter=maxiter, stop_thr=stop_thr, threads=threads
        )
        self._fitted = with_users(folded, update_existing=update_existing)
        return True

    def add_users(
        self,
        counts_df: Any,
        update_existing: bool = False,
        maxiter: int = 10,
        stop_thr: float = 1e-3,
        ncores: int | None = None,
    ) -> HPF:
        """Add many users to the model at once, or replace what it knows of many.

        Parameters
        ----------
        counts_df : DataFrame or array (n, 3)
            Columns UserId, ItemId and Count: all counts of these users.  Where ids are row numbers, those
            of new users must go on from ``nusers``.
        update_existing : bool
            Whether all of them are in the model, or none.
        maxiter, stop_thr, ncores :
            As for :meth:`transform`.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            As :meth:`add_user`; the model is then as it was.
        """
        if sparse.issparse(on_host(counts_df)):
            raise TypeError("users are added by their ids: pass a frame with UserId, ItemId and Count")
        folded = self._fold(USERS, counts_df, maxiter, stop_thr, ncores)
        self._fitted = with_users(folded, update_existing=update_existing)
        return self

    def _fold(self, side: int, counts_df: Any, maxiter: int, stop_thr: float, ncores: int | None) -> Folded:
        """Fold many new users or items in."""
        settings, fitted = self._settings(), self._require_fitted()
        threads = settings.threads if ncores is None else thread_count(ncores)
        triplets = read(counts_df, dtype=fitted.dtype.type, name="counts_df", binary=settings.binary)
        return fold(
            settings, fitted, triplets, side=side, maxiter=maxiter, stop_thr=stop_thr, threads=threads
        )

    def _one_user(self, counts_df: Any, user: Any) -> Triplets:
        dtype, binary = self._require_fitted().dtype.type, bool(self.binary)
        return read_one_user(counts_df, user, dtype=dtype, name="counts_df", binary=binary)

    # -- answers -------------------------------------------------------------------------------

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
        return predict(self._require_fitted(), thread_count(self.ncores), user, item)

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
        return top_n(
            self._require_fitted(),
            thread_count(self.ncores),
            user,
            whole_number("n", n, 1),
            exclude_seen=bool(exclude_seen),
            items_pool=items_pool,
        )

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
        fitted, binary = self._require_fitted(), bool(self.binary)
        triplets = read(input_df, dtype=fitted.dtype.type, name="input_df", binary=binary)
        return eval_llk(fitted, thread_count(self.ncores), triplets, full_llk=bool(full_llk))

    # -- files ---------------------------------------------------------------------------------

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
        save_model(path, fitted, self.get_params())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HPF:
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
        settings, fitted = load_model(path)
        model = cls(**{name: getattr(settings, name) for name in NAMES})
        model._fitted = fitted
        return model

    # -- settings ------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters as they are now, by name, as scikit-learn asks for them.

        Parameters
        ----------
        deep : bool
            Accepted, without effect: no parameter has parameters of its own.

        Returns
        -------
        dict
        """
        return {name: getattr(self, name) for name in NAMES}

    def set_params(self, **params: Any) -> HPF:
        """Set parameters by name.  What is fitted stays as it is.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            For a name that is no parameter, and for values that the constructor refuses; all parameters are
            then as they were.
        """
        unknown = [name for name in params if name not in NAMES]
        if unknown:
            raise ValueError(f"HPF has no parameter {unknown[0]!r}; it has {', '.join(NAMES)}")
        check_folder(Settings.of(self.get_params() | params).save_folder)
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The parameters that differ from their defaults."""
        params = self.get_params().items()
        return (
            f"HPF({', '.join(f'{name}={value!r}' for name, value in params if not is_default(name, value))})"
        )

    def _settings(self) -> Settings:
        """The parameters, checked: users change attributes after construction."""
        return Settings.of(self.get_params())

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
        return self._kept().posterior(USERS).shape

    @property
    def Gamma_rte(self) -> NDArray[Any]:
        """Rates of q(θ), (nusers, k), built at each access."""
        return self._kept().posterior(USERS).rate

    @property
    def Lambda_shp(self) -> NDArray[Any]:
        """Shapes of q(β), (nitems, k)."""
        return self._kept().posterior(ITEMS).shape

    @property
    def Lambda_rte(self) -> NDArray[Any]:
        """Rates of q(β), (nitems, k), built at each access."""
        return self._kept().posterior(ITEMS).rate

    @property
    def k_rte(self) -> NDArray[Any]:
        """Rates of q(ξ), (nusers, 1)."""
        return self._kept().hyper_rate(USERS)

    @property
    def t_rte(self) -> NDArray[Any]:
        """Rates of q(η), (nitems, 1)."""
        return self._kept().hyper_rate(ITEMS)

    def _kept(self) -> Fitted:
        fitted = self._fitted
        if fitted is None:
            # AttributeError, so that hasattr tells whether shapes and rates are there.
            raise AttributeError("shapes and rates exist after fit with keep_all_objs=True")
        return fitted
