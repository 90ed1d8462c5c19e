"""HPF, the public class: its parameters, methods and attributes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .answers.explanations import explain, related_items
from .answers.predictions import eval_llk, known_rows, predict
from .answers.recommendations import Lists, Wanted, recommend, recommend_for, top_n
from .answers.similarity import similar_items, similar_users
from .answers.summaries import changed, facts_of, repr_html
from .answers.uncertainty import (
    OfPairs,
    PosteriorSample,
    draws_of_rates,
    intervals_of_counts,
    moments_of,
    predict_interval,
    predict_proba,
    sample_posterior,
    sample_rates,
)
from .data.frames import library_of, like
from .data.ids import Ids
from .data.triplets import Columns, Triplets, read, read_one_user, with_ids
from .files.csv_folder import write_csv_folder
from .files.model_file import load_model, save_model
from .files.parquet_file import in_parts, write_parquet
from .fitting.folding import Folded, factors_of_new_users, fold, phi_of_user, step_with_user, with_users
from .fitting.partial import ITEMS, USERS, Totals, partial_step
from .fitting.training import Inputs, Trained, train
from .messages import did_you_mean, warn
from .model.convergence import Check, ConvergenceWarning
from .model.fitted import Fitted
from .model.settings import (
    NAMES,
    Choice,
    Settings,
    check_folder,
    default_step_size,
    fraction,
    is_default,
    thread_count,
    whole_number,
)


class HPF:
    """Hierarchical Poisson factorization of sparse counts, by mean-field variational inference.

    The count of user u and item i is modelled as ``y_ui ~ Poisson(θ_u·β_i)`` with
    ``θ_uk ~ Gamma(a, ξ_u)``, ``ξ_u ~ Gamma(a', a'/b')``, ``β_ik ~ Gamma(c, η_i)`` and
    ``η_i ~ Gamma(c', c'/d')`` [1]_, section 3; all Gamma(shape, rate).  Absent pairs count as zero.  For the
    same seed and data, results agree with those of hpfrec 0.2.14 within rounding, on every backend.

    Parameters
    ----------
    k : int
        Number of factors K.  With ``neighbours``, k=0 leaves the factors out; each item then has a base rate
        instead, and Theta is a column of ones.
    a, a_prime, b_prime : float
        Prior of the users: shape a of θ, shape a' and mean b' of the activity ξ.
    c, c_prime, d_prime : float
        Prior of the items: shape c of β, shape c' and mean d' of the popularity η.
    ncores : int
        Threads of the ``openmp`` backend; −1 (or any number below 1) means every core that
        this process may use.  A process forked from one that has loaded the backend uses one
        thread, because OpenMP's threads do not survive a fork.
    stop_crit : {'train-llk', 'maxiter', 'val-llk', 'diff-norm', 'elbo'}
        When to stop.  'maxiter': after ``maxiter`` iterations.  'train-llk', 'val-llk', 'elbo': when the
        training log-likelihood, the log-likelihood of ``val_set`` or the evidence lower bound (ELBO) has
        improved by at most ``stop_thr`` since the last check, relative to its magnitude.  'diff-norm': when
        the Frobenius norm of the change in Theta since the last check is below ``stop_thr``.
    check_every : int or None
        Iterations between two checks.  A check computes log-likelihoods, and the ELBO with ``compute_elbo``,
        adds a row to ``history_`` and applies ``stop_crit``.  With ``stop_crit='maxiter'`` checks are made
        only if ``verbose``.  The last iteration is always checked.
    stop_thr : float
        Threshold of ``stop_crit``.
    users_per_batch, items_per_batch : int or None
        If either is set, the fit is stochastic [2]_ and an iteration is an epoch: a pass over random batches
        of this many users (or items) with all their counts.  For each batch of users, five updates of these
        users are run with the items unchanged; then all items are moved by one step towards their optimum
        for this batch.  Batches of items likewise.  If both are set, epochs of items and of users alternate,
        items first.  An epoch takes longer than a full iteration.
    step_size : callable or None
        Function from the epoch number, counted from zero, to the step size in [0, 1] of every batch in that
        epoch; the default, also for None, is 1/√(epoch + 2).  With hundreds of batches smaller steps are
        better.
    maxiter : int or None
        Maximum number of iterations (epochs in stochastic fits); None for no limit.  Where it ends a fit of
        more than one check before ``stop_crit`` is met, there is a ConvergenceWarning.
    use_float : bool
        float32 if True, else float64.  Sums, likelihoods and the ELBO are always float64.
    reindex : bool
        If True, ids are of any hashable type and are numbered in order of first appearance.  If False,
        ids must be row and column numbers: integers from zero.  The ids of a sparse matrix are always its
        row and column numbers.
    verbose : bool
        Whether to show a progress bar on standard error.
    random_seed : int or None
        Seed of the start values, at least 0.  None draws a new one.  The seed that was used is in
        ``random_seed_``.
    allow_inconsistent_math : bool
        Ignored: updates are parallel, and bit-identical for the same number of threads.
    full_llk : bool
        Whether log-likelihoods include −Σ ln y!, which does not depend on the model.
    alloc_full_phi : bool
        Ignored: φ is never stored.
    keep_data : bool
        Whether to keep the items that each user has in the data, so that ``topN`` can exclude them.
    save_folder : str or None
        Existing folder in which to write all parameters as CSV files, as hpfrec does.  For a file that
        can be loaded again see :meth:`save`.
    produce_dicts : bool
        Whether ``user_dict_`` and ``item_dict_`` are available; they are built on first access.
    keep_all_objs : bool
        Whether to keep shapes and rates (``Gamma_shp`` ... ``t_rte``) in addition to ``Theta`` and ``Beta``.
        Folding in new users or items needs them.
    sum_exp_trick : bool
        Whether to compute φ of every count by the max-shifted log-sum-exp.  Counts whose product underflows
        always use it; True is slower and changes results only by rounding.
    backend : {'auto', 'cuda', 'openmp', 'numpy'} or 'cuda:N'
        Where to compute.  'auto' uses the fastest backend that works on this machine; a backend that is
        named is used, or BackendUnavailable is raised.  'cuda' uses CuPy's current device, 'cuda:1' the GPU
        that CUDA numbers 1, whatever the current one.
    schedule : {'joint', 'alternating', 'accelerated'}
        Order of the updates.  'joint' updates both sides from the same φ, as hpfrec does.  'alternating'
        computes φ again after the update of the users: more progress and more work per iteration.
        'accelerated' has momentum: it needs fewer iterations, each of them a pass over the counts, and one
        more matrix for each side.  The ELBO, which it computes at checks and after every ten iterations,
        never falls from check to check: where it would, iterations since the last of these are undone, and
        are counted all the same.  Not for batches, which ``partial_fit`` updates as with 'joint'; nor with
        ``sum_exp_trick`` or ``precision='mixed'``.
    precision : {'full', 'mixed'}
        How the cuda backend stores exp E[ln θ] and exp E[ln β].  'mixed' is half precision, which halves the
        bytes that an iteration reads; sums stay float32.
    allocate : {'fused', 'cusparse'}
        How the cuda backend allocates counts to factors: 'fused' uses one kernel, 'cusparse' a kernel for
        the weights and cuSPARSE products, for comparison.
    hierarchical : bool
        If False, there are no ξ and η, and the model is Bayesian Poisson factorization [1]_:
        ``θ_uk ~ Gamma(a, b')`` and ``β_ik ~ Gamma(c, d')``, with rates fixed at the prior means b' and d' of
        ξ and η.  a' and c' then only determine the level of the start values.
    counts : {'raw', 'binary', 'log1p'}
        What the model takes for a count y above zero: y itself, 1 or ln(1 + y).  In ``fit``, ``val_set``,
        ``eval_llk`` and fold-in alike, after duplicates are added up.  Expected counts and likelihoods are
        then those of 1 or of ln(1 + y).  For recommendations from counts of very different size, such as
        plays, 'log1p' is better than 'raw'.
    bias : bool
        Whether expected counts have a bias b_u of the user and c_i of the item, ``θ_u·β_i + b_u + c_i``, with
        the priors of θ_uk and β_ik.  Theta and Beta then have k + 2 columns.  The last two are b_u and 1 in
        Theta, 1 and c_i in Beta, so that Theta @ Beta.T are still the expected counts.  Biases are held near
        zero for eleven updates, until the factors differ, and then released.  In ``fit`` these updates are
        not counted and precede the first iteration; in ``partial_fit`` they are the first eleven batches.
        The ELBO with biases is lower because of their prior: do not compare it with that without.
    patience : int or None
        Iterations over which ``stop_crit`` is judged.  None is hpfrec's way: two checks are compared, however
        few iterations lie between; with ``check_every=1`` most fits then end in the plateau at their start.
        Otherwise the fit ends when the best value so far is at most ``stop_thr``, relative to its magnitude,
        above the best of ``patience`` iterations ago; with 'diff-norm', when in all checks of the last
        ``patience`` iterations the norm of the change, divided by the iterations since the check before, was
        below ``stop_thr``.  With 'val-llk' and ``patience`` the fit keeps the model with the best
        log-likelihood of ``val_set``, not the last; ``niter`` and ``history_`` end with it.
    compute_elbo : bool
        Whether every check also computes the ELBO, for ``history_`` and callbacks; with the openmp backend a
        check then takes three to four times as long.  With ``stop_crit='elbo'`` every check does.  The last
        row of ``history_`` always has the ELBO.
    neighbours : int
        If above zero, counts may also come from the other items of the user: the expected count is
        ``θ_u·β_i + Σ_j w_ji`` over those items j of the user that are neighbours of i, with
        ``w_ji ~ Gamma(w_shape, w_rate)``.  Each item has at most this many neighbours, up to 1024: the items
        j with the largest n_ij ln(n_ij N / (n_i n_j)), where n_ij users have both (of users with more than
        1000 items, 1000 drawn ones count for this choice).  Users are those of the training data with their
        items there, or new ones with the counts that are passed.  Needs ``keep_data=True``.
    w_shape, w_rate : float
        Prior of the weights w.
    temperature : float
        With ``neighbours``: φ is proportional to exp(E[ln ·]/temperature), from 1 to 10.  At 1 the weights
        overfit after five to ten iterations; above 1 they are spread over more neighbours.  The ELBO in
        ``history_`` has the entropy of φ times the temperature; it never falls, but is a lower bound of the
        evidence only at 1.
    init : {'hpfrec', 'svd'}
        Start values.  'hpfrec' are hpfrec's, random and nearly alike in all factors: the first ten to thirty
        iterations hardly tell them apart.  'svd' starts from a decomposition of the counts' logarithms, for
        the time of some iterations: the ELBO that hpfrec's have after 100 iterations is reached in a tenth
        to a quarter of them, and the ELBO at the end is usually higher, but lists of recommendations need
        not be better.  Models of different seeds are more alike.  Use 'svd' where a fit takes long or its
        likelihood matters, 'hpfrec' where results are to be those of hpfrec.  'svd' has no effect with
        ``fixed_users`` or ``fixed_items``, whose factors differ already.  In ``partial_fit`` rows that are
        new in a fitted model start as with 'hpfrec'; a first batch cannot start from 'svd'.
    user, item, count : str or int
        Names of the columns in tables of counts, in every method that takes counts.  With ``count=None``
        every row is one, and arrays have two columns; the counts of a sparse matrix are used all the same.
        Tables that come out have the columns UserId, ItemId and so on, whatever these names are.

    Attributes
    ----------
    Theta, Beta : array (nusers, k), array (nitems, k)
        E[θ] and E[β]; with ``bias=True`` two columns more.
    user_mapping_, item_mapping_ : array (nusers,), array (nitems,), or None
        Id of each row; None if ids are row numbers.  Also without the underscore.
    user_dict_, item_dict_ : dict or None
        Row of each id.  Also without the underscore.
    Gamma_shp, Gamma_rte, Lambda_shp, Lambda_rte : array (nusers, k) or (nitems, k)
        Shapes and rates of q(θ) and q(β).  Rates are built at each access.  Fixed values (``fixed_users``,
        ``fixed_items``, the columns of ones with ``bias=True``) have huge shapes and rates, which make q a
        numerical point mass.
    k_rte, t_rte : array (nusers, 1), array (nitems, 1)
        Rates of q(ξ) and q(η); AttributeError if the side is fixed or the model is not hierarchical.
    seen : array (Z,)
        Column numbers of the items of each user, user after user; only with ``keep_data=True``.
    is_fitted : bool
        Whether the model has been fitted.
    niter : int
        Iterations of the fit, plus calls of ``partial_fit``.
    train_llk : float or None
        Training log-likelihood after the last iteration; None after ``partial_fit``.
    history_ : DataFrame
        One row per check: iteration, llk, elbo, val_llk, seconds, and diff_norm with 'diff-norm'.  The ELBO
        is NaN except in the last row, unless ``compute_elbo`` or ``stop_crit='elbo'``.
    nusers, nitems : int
        Numbers of users and items, including those announced to ``partial_fit`` but not yet seen.
    random_seed_ : int
        Seed of the start values.
    backend_ : str
        Name of the backend that fitted the model, with the GPU's number if it was named; a file does not
        keep the number.

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
        counts: str = "raw",
        bias: bool = False,
        patience: int | None = None,
        compute_elbo: bool = False,
        neighbours: int = 0,
        w_shape: float = 0.3,
        w_rate: float = 10.0,
        temperature: float = 1.25,
        init: str = "hpfrec",
        user: str | int = "UserId",
        item: str | int = "ItemId",
        count: str | int | None = "Count",
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
        self.counts = counts
        self.bias = bias
        self.patience = patience
        self.compute_elbo = compute_elbo
        self.neighbours = neighbours
        self.w_shape = w_shape
        self.w_rate = w_rate
        self.temperature = temperature
        self.init = init
        self.user = user
        self.item = item
        self.count = count
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
        memory_limit: int | str | None = None,
        scratch: str | os.PathLike[str] | None = None,
    ) -> HPF:
        """Fit the model to counts, from fresh start values or from a checkpoint.

        Parameters
        ----------
        counts_df : data frame, path, array (n, 3), sparse matrix (nusers, nitems), Counts or AnnData
            A frame with columns UserId, ItemId and Count, or those that ``user``, ``item`` and ``count``
            name, in any order: of pandas, polars (also lazy), pyarrow or any library that narwhals knows.
            The path of a Parquet or CSV file, or of a folder of Parquet files, with these columns.  An array
            with these three columns.  A sparse matrix or array of any format, whose row and column numbers
            are the ids; with other ids, :class:`hpf_gpu.Counts`.  An AnnData, of which X is taken, with
            obs_names for users and var_names for items.  docs/data.md says more.  CuPy arrays and sparse
            matrices are also accepted, and with the cuda backend never leave the GPU; ids in such arrays are
            integers.  Counts of the same user and item are added up; counts of zero are dropped with a
            warning; all other counts, integers or not, are used as they are.  Never modified.
        val_set : same forms, optional
            Held-out counts for the log-likelihood in ``history_`` and for ``stop_crit='val-llk'``.
            Users and items without training data are left out with a warning.
        callback : callable, optional
            Called after every iteration with an object that has the attributes ``iteration``, ``seconds``,
            ``llk``, ``elbo``, ``val_llk`` and ``diff_norm``; the last four are NaN unless a check was made,
            and ``elbo`` also without ``compute_elbo`` or ``stop_crit='elbo'``, even at the last check.  If it
            returns True, the fit ends.  If it raises an exception, the fit ends, the iterations finished so
            far are kept, as for Ctrl-C, and the exception is raised.
        checkpoint : str or path-like, optional
            File to which the state of the fit is written every ``checkpoint_every`` iterations.  If the file
            exists, the fit resumes from it, and the result is bit-identical to that of an uninterrupted fit
            on the same backend with the same number of threads.  The file is kept when the fit ends.  A
            ``step_size`` is compared with that of the checkpoint by its first two values.
        checkpoint_every : int
            Iterations between two checkpoints.
        fixed_users, fixed_items : data frame (n, k) or array (nusers, k) or (nitems, k), optional
            Factors of the users (or of the items) that stay fixed while the other side is fitted: a frame
            of pandas indexed by id, or one of another library with ids in the column that ``user`` or
            ``item`` names, or in UserId or ItemId, of which the rows for ids in ``counts_df`` are used; or,
            if ids are row numbers, an array.  The columns are those of Theta or Beta, including the two bias
            columns with ``bias=True``; the value beside a bias of the other side multiplies that bias.
            Values are between 0 and 1e9, and no row is all zero.  Values below 1e-15 lose digits.
        memory_limit : int or str, optional
            Memory that the process may take, in bytes or as "4GB": the counts are read in pieces, sorted on
            disk, and kept there in blocks of users of which two are in memory.  ``counts_df`` may then also
            be a list of files, a dataset of pyarrow, a memory-mapped CSR matrix, or a list or generator of
            any of these forms; ids are of one type in all of them.  The items of the users are not kept, as
            with ``keep_data=False``.  docs/out-of-core.md says more.
        scratch : str or path-like, optional
            Folder for the counts on disk, by default that of temporary files.  They take 3 to 5 bytes
            a count, and 10 more while they are sorted, and are removed when the fit ends.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            If the data are not counts of users and items; the message names the value.  If the checkpoint
            is of a fit with other data or other parameters, except for ``backend``, ``ncores``, ``maxiter``,
            names of columns, and the parameters that determine what is shown, written and kept.  The previous
            fit is kept.
        FileNotFoundError, ImportError
            If the data are a path where no file is, or pyarrow, which reads it, is not installed.
        ModelFileError
            If the checkpoint is damaged, not a checkpoint, or written by a newer version.
        BackendUnavailable
            If the backend that was named cannot work on this machine.
        NotEnoughMemory
            If the fit is too large for the memory of the GPU or of the machine, or for ``memory_limit``.
        OSError
            If the disk is full, or files with counts were removed during the fit.
        DeviceError
            If CUDA reports an error during the fit.

        Notes
        -----
        Ctrl-C ends the fit with a warning and keeps the last finished iteration.

        A new fit replaces the model in one step.  Meanwhile other threads may call ``predict``, ``topN``,
        ``eval_llk``, ``transform`` and ``save``: each call uses either the old or the new model.  Two
        attributes that are read one after the other may belong to different models.  If two fits of one
        object run at the same time, the model is that of the last to end.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of one argument, not {callback!r}")
        settings = self._settings()
        check_folder(settings.save_folder)
        if settings.stop_crit == "val-llk" and val_set is None:
            raise ValueError("stop_crit='val-llk' needs held-out counts: fit(counts_df, val_set=...)")
        trained = train(
            settings,
            Inputs(counts_df, val_set, fixed_users, fixed_items, memory_limit=memory_limit, scratch=scratch),
            callback=callback,
            checkpoint=checkpoint,
            checkpoint_every=whole_number("checkpoint_every", checkpoint_every, 1),
        )
        self._take(trained, settings, library_of(counts_df))
        return self

    def _take(self, trained: Trained, settings: Settings, library: str | None) -> None:
        """Make a fit's result that of this object; then raise or warn of what ended it."""
        fitted = replace(trained.fitted, library=library)
        self._fitted = fitted if settings.keep_all_objs else replace(fitted, posteriors=None)
        if settings.save_folder is not None:
            write_csv_folder(settings.save_folder, fitted, settings)
        if isinstance(trained.ended_by, KeyboardInterrupt):
            try:
                warnings.warn(f"the fit was interrupted; iteration {fitted.niter} is kept", stacklevel=2)
            except UserWarning as warning:  # if warnings are errors, still raise KeyboardInterrupt
                raise trained.ended_by from warning
        elif trained.ended_by is not None:
            raise trained.ended_by
        elif trained.unmet:
            rule = f"maxiter={settings.maxiter}, before its rule stop_crit={settings.stop_crit!r} was met"
            advice = "raise maxiter, or set stop_crit='maxiter' if so many iterations are meant"
            warn(f"the fit ended at {rule}: {advice}", ConvergenceWarning)

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
        """Update the model with a batch of some users with all their counts, or of some items.

        One step of stochastic variational inference (Hoffman et al. 2013).  Five local updates of the users
        of the batch are run; then all items are moved by one step towards the values they would have if all
        users were like those of the batch.  For items the same with users and items exchanged.  Works on a
        fitted model and, with ``nusers`` and ``nitems``, on one that is not fitted.

        Parameters
        ----------
        counts_df : same forms as for :meth:`~hpf_gpu.HPF.fit`
            Empty rows of a matrix are not part of the batch.
        batch_type : {'users', 'items'}
            Whether the batch has users with all their counts or items with all theirs.
        step_size : float, optional
            Step in [0, 1]; by default the model's ``step_size`` at ``niter``, the number of iterations and
            calls so far.
        nusers, nitems : int, optional
            Total numbers of users and items.  Required in the first call if the model is not fitted; later
            calls default to the last values.  Batches may bring new ids up to these numbers.  If ids are row
            numbers, they are below these numbers.
        users_in_batch, items_in_batch : array-like of ids, optional
            All users (items) of the batch, including those without any count; by default those in
            ``counts_df``.  Only the argument for the batch's own side has an effect.
        new_users, new_items : bool
            Whether users (items) beyond ``nusers`` (``nitems``) are added to the model; otherwise they are
            an error.
        random_seed : int, optional
            Seed of the start values of new rows; by default derived from the seed of the model.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            If the data are not counts, if there are more new ids than the model has room for, if the step is
            outside [0, 1], if a batch of items is passed to a model with neighbours, or if shapes and rates
            were not kept (``keep_all_objs=False``).  The model is then unchanged.

        Notes
        -----
        A call takes time and memory for the whole model, in addition to those for the batch.  The items of
        each batch are added to those that ``topN`` excludes.  ``train_llk`` is None after a call, because
        the full data are not available, and ``history_`` is that of the last fit.  With ``neighbours``
        batches are of users; the neighbours are those of the fit, or of the first batch if there was none,
        and items that later batches bring have none.

        Examples
        --------
        Batches from a Parquet file that is too large for memory, in which each row group holds some users
        with all their counts::

            import numpy as np
            import pyarrow.parquet as pq

            plays, model = pq.ParquetFile("plays.parquet"), HPF(k=30)
            for epoch in range(5):
                for group in np.random.permutation(plays.num_row_groups):
                    batch = plays.read_row_group(group)
                    model.partial_fit(batch, nusers=1_000_000, nitems=50_000)
        """
        Choice(("users", "items")).checked("batch_type", batch_type)
        settings, fitted = self._settings(), self._fitted
        side = USERS if batch_type == "users" else ITEMS
        after = partial_step(
            settings,
            fitted,
            self._read(counts_df, "counts_df"),
            side=side,
            step_size=step_size,
            totals=Totals(nusers, nitems),
            members=(users_in_batch, None) if side == USERS else (None, items_in_batch),
            may_grow=(bool(new_users), bool(new_items)),
            random_seed=random_seed,
        )
        self._fitted = after if fitted is not None else replace(after, library=library_of(counts_df))
        return self

    # -- new users and items ---------------------------------------------------------------------

    def transform(
        self, counts_df: Any, maxiter: int = 10, stop_thr: float = 1e-3, ncores: int | None = None
    ) -> Any:
        """Factors of many new users at once, with the item factors of the model unchanged (fold-in).

        Parameters
        ----------
        counts_df : same forms as for ``fit``
            Counts of new users, with ids of any kind, for items of the model.  Unknown items and zeros are
            left out with a warning.  Never modified.
        maxiter : int
            Maximum number of iterations.
        stop_thr : float
            Stop when the root mean square over users of ‖Δθ_u‖, the norm of the change of a user's factors
            in one iteration, is below this.
        ncores : int, optional
            Threads of the ``openmp`` backend; by default those of the model.

        Returns
        -------
        DataFrame (n, k)
            E[θ] of each new user (k + 2 columns with ``bias=True``).  The index holds the user ids in order
            of first appearance, or the row numbers of a matrix.  A user without usable counts, alone or among
            others, gets the factors of a user without counts, with a warning.  If the counts are a frame of
            another library than pandas, a frame of that, with the ids in a column UserId.

        Raises
        ------
        ValueError, TypeError
            If the data are not counts, if no item is in the model and their ids are of another type, if the
            model is not fitted, or if shapes and rates were not kept (``keep_all_objs=False``).
        """
        folded = self._fold(USERS, self._read(counts_df, "counts_df"), maxiter, stop_thr, ncores)
        return self._like(folded.frame("UserId"), counts_df)

    def transform_items(
        self, counts_df: Any, maxiter: int = 10, stop_thr: float = 1e-3, ncores: int | None = None
    ) -> Any:
        """Factors of many new items at once, with the user factors of the model unchanged (fold-in).

        As :meth:`transform` with users and items exchanged.

        Parameters
        ----------
        counts_df : same forms as for ``fit``
            Counts of new items for users of the model.
        maxiter, stop_thr, ncores :
            As for :meth:`transform`.

        Returns
        -------
        DataFrame (n, k)
            E[β] of each new item.  The index holds the item ids, or the column numbers of a matrix; ids in a
            frame of another library are in a column ItemId.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`transform`.
        """
        folded = self._fold(ITEMS, self._read(counts_df, "counts_df"), maxiter, stop_thr, ncores)
        return self._like(folded.frame("ItemId"), counts_df)

    def predict_factors(
        self,
        counts_df: Any,
        maxiter: int = 10,
        ncores: int = 1,
        random_seed: int = 1,
        stop_thr: float = 1e-3,
        return_all: bool = False,
    ) -> Any:
        """Factors of one new user, with the item factors of the model unchanged (fold-in).

        Parameters
        ----------
        counts_df : data frame, path, array (n, 2), sparse matrix (1, nitems) or Counts
            Counts of the user, in columns ItemId and Count, or those that ``item`` and ``count`` name.
            Unknown items and zeros are left out with a warning.  Never modified.
        maxiter : int
            Maximum number of iterations.
        ncores : int
            Threads of the ``openmp`` backend.
        random_seed : int
            Ignored: all users start from the same values.
        stop_thr : float
            Stop when ‖Δθ_u‖, the norm of the change of the factors in one iteration, is below this.
        return_all : bool
            Whether to also return shapes, rates and φ.

        Returns
        -------
        array (k,), or tuple of arrays (k,), (k,), (k,) and (n, k)
            E[θ_u]; or E[θ_u], shapes and rates of q(θ_u), and φ, the shares of the factors in the count of
            each row of ``counts_df``, NaN in rows that were left out.  With ``neighbours`` the shares are
            those in the part of the count that all factors get.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`transform`, which takes many users at once.
        """
        whole_number("random_seed", random_seed, 0)
        triplets = self._one_user(counts_df, 0)
        folded = self._fold(USERS, triplets, maxiter, stop_thr, ncores)
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
        """Add one user to the model, or replace the factors and seen items of an existing one.

        Parameters
        ----------
        user_id : hashable
            Id of the user.  If ids are row numbers, a new user must have the number ``nusers``.
        counts_df : same forms as for :meth:`predict_factors`
            All counts of the user, including those that the model has been fitted to.
        update_existing : bool
            True if the user is in the model: factors and seen items are replaced.
        maxiter, ncores, random_seed, stop_thr :
            As for :meth:`predict_factors`.
        update_all_params : bool, optional
            Whether to also move all items, by one step of :meth:`partial_fit` with this user as the batch.
            One user then stands for all, and must have a count.  ``maxiter`` and ``stop_thr`` have no effect
            then.

        Returns
        -------
        bool
            True.

        Raises
        ------
        ValueError, TypeError
            If a new user is in the model already, if a user to replace is not, and as for
            :meth:`transform`.  The model is then unchanged.
        """
        whole_number("random_seed", random_seed, 0)
        triplets = self._one_user(counts_df, user_id)
        if update_all_params:
            self._fitted = step_with_user(
                self._settings(),
                self._require_fitted(),
                triplets,
                update_existing=update_existing,
                threads=thread_count(ncores),
            )
            return True
        folded = self._fold(USERS, triplets, maxiter, stop_thr, ncores)
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
        """Add many users to the model at once, or replace the factors and seen items of existing ones.

        Parameters
        ----------
        counts_df : same forms as for ``fit``, but no matrix without ids
            All counts of these users.  If ids are row numbers, new users must be numbered consecutively from
            ``nusers``.
        update_existing : bool
            True if all of these users are in the model, False if none is.
        maxiter, stop_thr, ncores :
            As for :meth:`transform`.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`add_user`; the model is then unchanged.
        """
        triplets = self._read(with_ids(counts_df, self._columns), "counts_df")
        folded = self._fold(USERS, triplets, maxiter, stop_thr, ncores)
        self._fitted = with_users(folded, update_existing=update_existing)
        return self

    def _fold(
        self, side: int, triplets: Triplets, maxiter: int, stop_thr: float, ncores: int | None = None
    ) -> Folded:
        """Fold in new users or items."""
        settings, fitted = self._settings(), self._require_fitted()
        threads = settings.threads if ncores is None else thread_count(ncores)
        return fold(
            settings, fitted, triplets, side=side, maxiter=maxiter, stop_thr=stop_thr, threads=threads
        )

    def _read(self, data: Any, name: str) -> Triplets:
        """Counts for the fitted model, or for one to be fitted."""
        settings, fitted = self._settings(), self._fitted
        dtype = settings.dtype if fitted is None else fitted.dtype
        columns = _columns_of(settings, fitted)
        return read(data, dtype=dtype.type, name=name, taken=settings.counts, columns=columns)

    @property
    def _columns(self) -> Columns:
        """The columns of tables of counts."""
        return _columns_of(self._settings(), self._fitted)

    def _one_user(self, counts_df: Any, user: Any) -> Triplets:
        settings, fitted = self._settings(), self._require_fitted()
        dtype, columns = fitted.dtype.type, _columns_of(settings, fitted)
        return read_one_user(
            counts_df, user, dtype=dtype, name="counts_df", taken=settings.counts, columns=columns
        )

    # -- answers -------------------------------------------------------------------------------

    def predict(self, user: Any, item: Any) -> Any:
        """Expected counts θ_u·β_i, with ``neighbours`` plus the weights of the user's other items.

        Parameters
        ----------
        user, item : one id, or array-like (n,) of ids
            Pairs of ids; a single id is paired with all ids of the other argument.

        Returns
        -------
        float or array (n,)
            NaN where the user or the item was not in the training data.

        Raises
        ------
        ValueError
            If there are several users and several items in different numbers, or the model is not fitted.
        """
        return predict(self._require_fitted(), thread_count(self.ncores), user, item)

    def topN(self, user: Any, n: int = 10, exclude_seen: bool = True, items_pool: Any = None) -> NDArray[Any]:
        """Items with the highest expected counts, best first, for one user or for each of many.

        Parameters
        ----------
        user : id, or array-like (B,) of ids
            Users of the training data.
        n : int
            Number of items; fewer are returned if fewer are left.
        exclude_seen : bool
            Whether to exclude the items that the user has in the training data.
        items_pool : array-like of ids, optional
            Items to choose from, for all users; :meth:`recommend` calls them ``items``.  Unknown items are
            left out with a warning.

        Returns
        -------
        array (n,), or for many users array (B, n)
            Item ids.  For one user the array is shorter if fewer than ``n`` items are left.  For many users
            it has fewer columns if there are fewer than ``n`` items to choose from.  Rows of users with fewer
            items left are padded with None; the array then has dtype object.

        Raises
        ------
        ValueError
            If a user or every item of the pool is unknown, or if ``exclude_seen`` and ``keep_data=False``.

        Notes
        -----
        For many users this takes some tens of MB in addition to the result and the users' part of the model,
        never a matrix of users by items.  Ties are broken by the order of the rows of Beta.  For many users,
        a model that was fitted on a GPU is ranked there if possible.
        """
        wanted = Wanted.checked(n, exclude_seen, items_pool)
        return top_n(self._require_fitted(), thread_count(self.ncores), user, wanted)

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
        """The items with the highest expected counts and these, for users of the model or for new ones.

        Parameters
        ----------
        users : id, or array-like (B,) of ids, optional
            Users of the training data; if neither these nor ``counts`` are passed, all of them.  Of many
            users, those who are not in the model are left out with a warning.
        n : int
            Number of items for each user; fewer are returned if fewer are left.
        counts : same forms as for :meth:`transform`
            In place of ``users``: counts of users who are not added to the model; those of a single user,
            too, have a column of users, with any id.  Those without a count of
            an item of the model get the items that a user without counts is expected to have, which are
            popular ones, with a warning.
        exclude_seen : bool
            Whether to exclude the items that the user has in the training data, or in ``counts``.
        items : array-like of ids, optional
            Items to choose from, for all users; :meth:`topN` calls them ``items_pool``, as hpfrec does.
            Unknown items are left out with a warning.
        discount : float
            Scores are expected counts divided by n_i to this power, where n_i users have the item.  Expected
            counts of popular items are high for everybody; a discount of 0.1 to 0.3 puts what is particular
            to a user first, and finds more held-out items on three of four data sets (docs/quality.md).
        rank_by : {'mean', 'lower', 'upper'}
            Whether scores are expected counts, or the lower or upper bounds of intervals of the rates, as
            :meth:`predict_interval` has them.  Lower bounds put first what is certain, upper bounds what may
            be good and is little known.
        level : float
            Probability of the intervals.
        as_frame : bool
            Whether to return a table rather than arrays.
        path : str or path-like, optional
            Parquet file to which the table is written instead, for lists of more users than memory holds:
            users of the model are ranked part by part, and each part is a row group.  An existing file is
            replaced when the new one is complete.  Needs pyarrow.

        Returns
        -------
        DataFrame, or tuple of arrays (B, n) and (B, n), or None with ``path``
            Columns UserId, ItemId and Score; users in the given order, best items first.  Or ids of items and
            scores, a row for each user; where fewer items are left, rows end in None and −∞.  If ``users`` or
            ``counts`` are of another library than pandas, so is the table.

        Raises
        ------
        ValueError, TypeError
            If both ``users`` and ``counts`` are passed; if no user is known; if ``discount`` is negative, or
            is not zero and keep_data=False; if bounds are asked for and shapes and rates were not kept
            (``keep_all_objs=False``); if ``path`` has another suffix than .parquet or .pq; and as for
            :meth:`topN` and :meth:`transform`.
        OSError
            If the file cannot be written; an existing file is then unchanged.
        """
        if users is not None and counts is not None:
            raise ValueError("recommend takes users, ids of the model, or counts of new users, and not both")
        wanted = Wanted.checked(n, exclude_seen, items, discount, rank_by, level)
        fitted, threads = self._require_fitted(), thread_count(self.ncores)
        if counts is None:
            rows = known_rows(fitted.user_ids, users)
            parts = [rows] if path is None else in_parts(rows, wanted.n)
            lists: Iterable[Lists] = (recommend(fitted, threads, part, wanted) for part in parts)
        else:
            settings, triplets = self._settings(), self._read(counts, "counts")
            new, theta, shape = factors_of_new_users(settings, fitted, triplets, maxiter=10, stop_thr=1e-3)
            had = new.csr.indptr, new.csr.indices
            lists = [recommend_for(fitted, threads, new.ids, theta, shape, had, wanted)]
        if path is not None:
            return write_parquet(path, (part.table() for part in lists))
        (whole,) = lists
        return self._like(whole.table(), users, counts) if as_frame else whole.arrays()

    def explain(self, user: Any, item: Any, n: int = 5) -> Any:
        """Why counts are expected: their shares from the user's own items and from the factors.

        For models with ``neighbours``.

        Parameters
        ----------
        user, item : one id, or array-like (Z,) of ids
            Pairs of ids of the training data; a single id is paired with all ids of the other argument.
        n : int
            Number of items of the user that are named for each pair, those with the largest share.

        Returns
        -------
        DataFrame
            For each pair the parts of its expected count, the largest first, in columns UserId, ItemId, Term,
            Because, Rate and Share.  Term is 'item', with the item of the user in Because; 'other items', all
            of the user's items that are not named; or 'factors', θ_u·β_i, with k=0 the base rate of the item.
            The rates of a pair add up to :meth:`predict`, the shares to 1; parts of zero are left out.

        Raises
        ------
        ValueError
            If an id is unknown, the ids cannot be paired, or the model has no neighbours.
        """
        n = whole_number("n", n, 1)
        parts = explain(self._require_fitted(), thread_count(self.ncores), user, item, n)
        return self._like(parts, user, item)

    def related_items(self, item: Any, n: int = 10) -> Any:
        """The items whose expected counts are raised most for users who have an item.

        For models with ``neighbours``.  The relation is directed: a cable may go with a camera, and not the
        camera with the cable.

        Parameters
        ----------
        item : id, or array-like of ids
            Items of the training data.
        n : int
            Largest number of related items for each.

        Returns
        -------
        DataFrame
            Columns ItemId, RelatedId and Weight, E[w]: how much the item adds to the expected count of the
            related one; largest first.

        Raises
        ------
        ValueError
            If an item is unknown, or the model has no neighbours.
        """
        return self._like(related_items(self._require_fitted(), item, whole_number("n", n, 1)), item)

    def similar_items(self, items: Any = None, n: int = 10) -> Any:
        """The items most like some items: those whose expected counts come from the same factors.

        The relation is symmetric, and does not depend on how popular an item is.  :meth:`related_items`, for
        models with ``neighbours``, has what is had together with an item, which need not be like it.

        Parameters
        ----------
        items : id, or array-like of ids, optional
            Items of the training data; by default all.  Of many items, those that are not in the model are
            left out with a warning.
        n : int
            Number of similar items for each.

        Returns
        -------
        DataFrame
            Columns ItemId, SimilarId and Score, best first.  The score is the correlation, from −1 to 1, of
            the square roots of the factors' shares in the expected counts (docs/uncertainty.md).

        Raises
        ------
        ValueError
            If no item is known, or the model has fewer than two factors.
        """
        return self._like(similar_items(self._require_fitted(), items, whole_number("n", n, 1)), items)

    def similar_users(self, users: Any = None, n: int = 10) -> Any:
        """The users most like some users, as :meth:`similar_items` with users and items exchanged.

        Parameters
        ----------
        users : id, or array-like of ids, optional
            Users of the training data; by default all.  Unknown users as for :meth:`similar_items`.
        n : int
            Number of similar users for each.

        Returns
        -------
        DataFrame
            Columns UserId, SimilarId and Score, best first.

        Raises
        ------
        ValueError
            As for :meth:`similar_items`.
        """
        return self._like(similar_users(self._require_fitted(), users, whole_number("n", n, 1)), users)

    # -- uncertainty -----------------------------------------------------------------------------

    def predict_interval(self, user: Any, item: Any, level: float = 0.9, of: str = "rate") -> Any:
        """Posterior mean, standard deviation and interval of rates, or of counts that are still to come.

        Parameters
        ----------
        user, item : one id, or array-like (Z,) of ids
            Pairs of ids; a single id is paired with all ids of the other argument.  Of many pairs, those with
            an unknown id are left out with a warning.
        level : float
            Probability of the interval, which leaves as much below it as above.
        of : {'rate', 'count'}
            'rate': the expected count of the pair, which is uncertain because θ, β and w are.  'count': a
            count with this rate, which also varies by itself; bounds are integers, and the interval has at
            least the probability ``level``.  Only with ``counts='raw'``.

        Returns
        -------
        DataFrame
            Columns UserId, ItemId, Mean, Std, Lower and Upper, in float64.

        Raises
        ------
        ValueError, TypeError
            If no pair is known, the ids cannot be paired, or a value is invalid; with of='count' if
            ``counts`` is not 'raw'; if shapes and rates were not kept (``keep_all_objs=False``).

        Notes
        -----
        Mean and standard deviation are exact under q.  Quantiles are those of the gamma distribution (of the
        negative binomial for counts) with these two moments.  Of 90 % intervals on Online Retail, k=30,
        0.936 to 0.964 of the draws of every pair were below the upper bound; below the lower bound were
        0.048 on average where an item is recommended, 0.040 for held-out pairs and 0.021 for any pairs: it is
        too low for rates that nothing is known about.  q itself, a mean-field approximation, is narrower than
        the posterior.  On data drawn from the model 90 % intervals had new counts as often as they said, and
        0.64 to 0.76 of the true rates (docs/uncertainty.md).
        """
        level, of_counts = fraction("level", level), intervals_of_counts(of, self._settings().counts)
        table = predict_interval(*self._moments(), user, item, level, of_counts=of_counts)
        return self._like(table, user, item)

    def _moments(self) -> tuple[Ids, Ids, OfPairs]:
        """Ids of the users and of the items, and the moments of the rates of pairs."""
        fitted = self._require_fitted()
        return fitted.user_ids, fitted.item_ids, partial(moments_of, fitted, thread_count(self.ncores))

    def predict_proba(self, user: Any, item: Any) -> Any:
        """Probability that the count of a pair is not zero, the uncertainty of its rate included.

        1 − E[exp(−rate)], by the gamma distribution with the rate's mean and variance.

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
            As for :meth:`predict`; if shapes and rates were not kept (``keep_all_objs=False``).

        Notes
        -----
        With ``counts='binary'`` or ``'log1p'`` it is the same event, and the Poisson distribution is that of
        ones or of ln(1 + y): the order of pairs is meaningful, the probabilities are rougher.
        """
        return predict_proba(*self._moments(), user, item)

    def sample_rates(
        self, user: Any, item: Any, n: int = 100, random_state: int | np.random.Generator | None = None
    ) -> NDArray[np.float64]:
        """Draws of the rates of pairs from q, all pairs of a draw together.

        Pairs of the same user or item share its draw of θ or β, so that draws can be ranked (Thompson
        sampling) and added up; counts are ``rng.poisson(rates)``.

        Parameters
        ----------
        user, item : one id, or array-like (Z,) of ids
            As for :meth:`predict`.
        n : int
            Number of draws.
        random_state : int or numpy.random.Generator, optional
            Seed, or where random numbers come from.

        Returns
        -------
        array (n, Z)
            In float64; NaN where the user or the item was not in the training data.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`predict`; if shapes and rates were not kept (``keep_all_objs=False``).
        """
        n, rng = whole_number("n", n, 1), np.random.default_rng(random_state)
        fitted = self._require_fitted()
        draw = partial(draws_of_rates, fitted, thread_count(self.ncores), n, rng)
        return sample_rates(fitted.user_ids, fitted.item_ids, draw, user, item, n)

    def sample_posterior(
        self, n: int = 1, random_state: int | np.random.Generator | None = None
    ) -> PosteriorSample:
        """Draws of all factors from q.

        Parameters
        ----------
        n : int
            Number of draws, each of the size of the model.
        random_state : int or numpy.random.Generator, optional
            Seed, or where random numbers come from.

        Returns
        -------
        PosteriorSample
            A named tuple of ``Theta`` (n, nusers, k) and ``Beta`` (n, nitems, k), in the rows of the
            attributes of these names, and ``weights`` (n, nitems, L) of the neighbours, None without them.

        Raises
        ------
        ValueError
            If the model is not fitted, or shapes and rates were not kept (``keep_all_objs=False``).
        """
        return sample_posterior(
            self._require_fitted(), whole_number("n", n, 1), np.random.default_rng(random_state)
        )

    # -- likelihood ------------------------------------------------------------------------------

    def eval_llk(self, input_df: Any, full_llk: bool = False) -> dict[str, Any]:
        """Poisson log-likelihood of the pairs in the data, in float64; absent pairs are not included.

        Where all pairs have a count, expected counts that are too large improve it: choose models by the
        log-likelihood of all pairs, zeros included, that :func:`hpf_gpu.evaluate` computes.

        Parameters
        ----------
        input_df : same forms as for ``fit``
            Counts whose user or item was not in the training data, and zeros, are left out with a warning.
        full_llk : bool
            Whether to include −Σ ln y!.

        Returns
        -------
        dict
            ``llk``, and ``nobs``, the number of pairs in the sum.

        Raises
        ------
        ValueError, TypeError
            If the data are not counts, or none is left; if the model is not fitted.
        """
        fitted, triplets = self._require_fitted(), self._read(input_df, "input_df")
        return eval_llk(fitted, thread_count(self.ncores), triplets, full_llk=bool(full_llk))

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one safetensors file, which :meth:`load` reads on any machine.

        Parameters
        ----------
        path : str or path-like
            File to write.  An existing file is replaced once the new one is complete; the new file gets its
            permissions.  A symbolic link is kept, and its target is replaced.

        Raises
        ------
        ValueError
            If the model is not fitted, or if ``k``, ``use_float``, ``bias``, ``neighbours``, ``w_shape``,
            ``w_rate`` or ``temperature`` were changed after the fit.
        TypeError
            If ids are not numbers, strings, booleans, bytes, datetime64, timedelta64 or tuples of these.
        OSError
            If the file cannot be written; an existing file is then unchanged.  Pipes and devices are refused.

        Notes
        -----
        Two parameters are not saved and are None after :meth:`load`: ``save_folder``, and, with a warning, a
        ``step_size`` other than the default.
        """
        fitted = self._require_fitted()
        if self.step_size not in (None, default_step_size):
            warnings.warn("step_size is not the default function and is not saved", stacklevel=2)
        save_model(path, fitted, self.get_params())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False) -> HPF:
        """Read a model that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
            File to read.  Loading executes no code from the file.
        mmap : bool
            Whether to map the file rather than read it, for models larger than the memory.  It is then open
            in milliseconds; what an answer needs is read when it needs it, into memory that the system can
            take back and that all processes share.

        Returns
        -------
        HPF
            The fitted model that was saved.

        Raises
        ------
        ModelFileError
            If the file is damaged, not a model, or written by a newer version.  It is a ValueError.
        OSError
            If the file cannot be read.

        Notes
        -----
        The backend that fitted the model need not be available, because predictions run on the host.  If
        ``backend`` names one that is not available, set it to ``'auto'`` before the next fit or fold-in, and
        ``precision`` and ``allocate`` to their defaults.

        With ``mmap`` neither the checksum nor the values of arrays are checked, because that would read all
        of the file: damage shows only where it is in the header, so load a doubtful file without it first.
        ``Theta`` and all other arrays are read-only.  The first look-up of an id makes an index of all users
        or items: a million integers take 0.1 s and 26 MB, a million strings 1.5 s and 100 MB.  Without it
        are ids that are row numbers.  A user who is added, or a batch, copies the model to memory.  A file
        that is replaced, as :meth:`save` does, stays what it was for the models that are mapped from it;
        one that is changed or truncated in place ends the process.  On Windows a mapped file cannot be
        replaced: save to another name.
        """
        settings, fitted = load_model(path, mapped=bool(mmap))
        return cls._of(settings, fitted)

    @classmethod
    def _of(cls, settings: Settings, fitted: Fitted) -> HPF:
        """A model with these parameters that has been fitted already."""
        model = cls(**{name: getattr(settings, name) for name in NAMES})
        model._fitted = fitted
        return model

    # -- settings ------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Current values of the parameters by name, as in scikit-learn.

        Parameters
        ----------
        deep : bool
            Ignored: no parameter has parameters of its own.

        Returns
        -------
        dict
            Value of each parameter of the constructor.
        """
        return {name: getattr(self, name) for name in NAMES}

    def set_params(self, **params: Any) -> HPF:
        """Set parameters by name.  The fitted model is unchanged.

        Parameters
        ----------
        **params
            Parameters of the constructor.

        Returns
        -------
        HPF
            This object.

        Raises
        ------
        ValueError, TypeError
            If a name is not a parameter, or a value or combination of values is invalid.  All parameters
            are then unchanged.
        """
        unknown = [name for name in params if name not in NAMES]
        if unknown:
            close = did_you_mean(unknown[:1], NAMES)
            raise ValueError(f"HPF has no parameter {unknown[0]!r}; it has {', '.join(NAMES)}{close}")
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

    def _repr_html_(self) -> str:
        """The parameters that differ from their defaults, and the state of the fit, for notebooks."""
        fitted, parameters = self._fitted, changed(self.get_params())
        if fitted is None:
            return repr_html("HPF", parameters, None)
        return repr_html("HPF", parameters, facts_of(fitted), fitted.history)

    def _like(self, frame: pd.DataFrame, *given: Any) -> Any:
        """A result in the library of what was passed, otherwise in that of the training data."""
        return like(frame, *given, library=self._require_fitted().library)

    def _settings(self) -> Settings:
        """The parameters, checked again because attributes can be changed after construction."""
        return Settings.of(self.get_params())

    def _require_fitted(self) -> Fitted:
        fitted = self._fitted
        if fitted is None:
            raise ValueError("this HPF has not been fitted yet: call fit first")
        return fitted

    # -- attributes that are views of the fitted state -------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """Whether the model has been fitted."""
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
        """Number of users, including those that no batch has brought yet."""
        return self._view("nusers")

    @property
    def nitems(self) -> Any:
        """Number of items, including those that no batch has brought yet."""
        return self._view("nitems")

    @property
    def niter(self) -> Any:
        """Iterations of the fit, plus calls of partial_fit."""
        return self._view("niter")

    @property
    def train_llk(self) -> Any:
        """Training log-likelihood after the last iteration; None after partial_fit."""
        return self._view("train_llk")

    @property
    def history_(self) -> Any:
        """One row for each check of the last fit."""
        return self._view("history")

    @property
    def random_seed_(self) -> Any:
        """Seed of the start values."""
        return self._view("seed")

    @property
    def backend_(self) -> Any:
        """Name of the backend that fitted the model."""
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
        """Column numbers of the items of each user, user after user, (Z,)."""
        fitted = self._fitted
        if fitted is None or fitted.seen is None:
            # AttributeError, so that hasattr works.
            raise AttributeError("the items of each user are kept only with keep_data=True, after fit")
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
            # AttributeError, so that hasattr works.
            raise AttributeError("shapes and rates exist only after fit with keep_all_objs=True")
        return fitted


def _columns_of(settings: Settings, fitted: Fitted | None) -> Columns:
    """The columns of tables of counts, with the ids of a fitted model."""
    columns = settings.columns
    return columns if fitted is None else replace(columns, known=(fitted.user_ids, fitted.item_ids))
