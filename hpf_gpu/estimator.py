"""HPF, the public class: parameters in, data in, attributes and recommendations out."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends.protocol import Backend, Counts
from .data.counts import TrainingData, held_out_pairs, known_factors, training_data
from .files.checkpoint import Checkpoint, Identity
from .files.csv_folder import write_csv_folder
from .fitting.folding import FoldingModel
from .fitting.progress import ProgressBar
from .model.convergence import Check, history_frame
from .model.fitted import Fitted
from .model.inference import Fit, Schedule, State, fit
from .model.likelihood import Objective
from .model.settings import check_parameters, default_step_size, seed_or_fresh, whole_number
from .model.variational import Block, Model, Pairs, posterior_of, start_sides


@dataclass(frozen=True)
class _Given:
    """What a fit is given, read and checked."""

    data: TrainingData
    validation: Pairs | None
    fixed: dict[str, NDArray[Any]]  # factors of a side, by the name of the argument


class HPF(FoldingModel):
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
        self._check_parameters()

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
        self._check_parameters()
        if self.stop_crit == "val-llk" and val_set is None:
            raise ValueError("stop_crit='val-llk' needs held-out counts: fit(counts_df, val_set=...)")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of the last check, not {callback!r}")
        every, schedule = whole_number("checkpoint_every", checkpoint_every, 1), self._schedule()
        dtype = np.dtype(np.float32 if self.use_float else np.float64)
        backend = self._working_backend(dtype, self.ncores, self._width())
        given = self._read(backend, counts_df, val_set, fixed_users, fixed_items)
        file = saved = None
        if checkpoint is not None:
            identity = Identity.of(self._parameters(), given.data.host_csr, given.validation, given.fixed)
            file = Checkpoint.at(checkpoint, every, identity)
            saved = file.read(schedule.maxiter)
        seed = seed_or_fresh(self.random_seed) if saved is None else saved.seed

        # First: it refuses what would not fit into memory.
        counts = backend.counts(given.data.csr, self._width())
        objective = Objective(backend, backend.log_factorial_sum(counts), bool(self.full_llk))
        epochs = self._epochs(backend, given.data, seed)
        given = replace(given, data=given.data.without_counts())
        rng = None if epochs is None else epochs.rng
        if saved is not None and rng is not None:
            saved.draw_on(rng)
        done = 0 if saved is None else saved.iteration

        with ProgressBar(schedule.maxiter, done, enabled=bool(self.verbose)) as progress:

            def report(check: Check) -> bool:
                progress.report(check)
                answer = None if callback is None else callback(check)
                return isinstance(answer, (bool, np.bool_)) and bool(answer)

            # Nobody else holds the start, so that its matrices are free once they are not needed.
            result = fit(
                backend,
                State(self._start(backend, counts, given, seed))
                if saved is None
                else saved.state(backend, counts, given.validation),
                schedule,
                objective,
                report,
                epochs,
                keep=None if file is None else partial(file.keep, backend, seed, rng),
            )
        self._take(backend, given.data, result, seed)
        if isinstance(result.ended_by, KeyboardInterrupt):
            try:
                warnings.warn(f"the fit was interrupted; iteration {result.iterations} is kept", stacklevel=2)
            except UserWarning as warning:  # where warnings are errors, Ctrl-C is still what it is
                raise result.ended_by from warning
        elif result.ended_by is not None:
            raise result.ended_by
        return self

    def _read(
        self, backend: Backend, counts_df: Any, val_set: Any, fixed_users: Any, fixed_items: Any
    ) -> _Given:
        if fixed_users is not None and fixed_items is not None:
            raise ValueError("fixed_users with fixed_items too: there is nothing to fit")
        if fixed_users is not None and self.stop_crit == "diff-norm":
            raise ValueError("fixed_users with stop_crit='diff-norm', which watches Theta: it never changes")
        data = training_data(counts_df, backend=backend, reindex=bool(self.reindex))
        self._count_once(data.csr.data)
        validation = None
        if val_set is not None:
            dtype = backend.dtype.type
            validation = held_out_pairs(val_set, data.users, data.items, dtype=dtype, name="val_set")
            self._count_once(validation.values)
        sides = (("fixed_users", fixed_users, data.users), ("fixed_items", fixed_items, data.items))
        fixed = {
            name: known_factors(factors, ids, self._width(), name=name)
            for name, factors, ids in sides
            if factors is not None
        }
        return _Given(data, validation, fixed)

    def _check_parameters(self) -> None:
        check_parameters(self._parameters())

    def _schedule(self) -> Schedule:
        informs = self.stop_crit != "maxiter" or self.verbose
        return Schedule(
            self.stop_crit,
            float(self.stop_thr),
            check_every=int(self.check_every) if informs and self.check_every is not None else None,
            maxiter=None if self.maxiter is None else int(self.maxiter),
            alternating=self.schedule == "alternating",
            exact_phi=bool(self.sum_exp_trick),
        )

    def _start(self, backend: Backend, counts: Counts, given: _Given, seed: int) -> Model:
        known = given.fixed.get("fixed_users"), given.fixed.get("fixed_items")
        users, items = start_sides(backend, self._priors(), counts.shape, self._width(), seed, known)
        return Model((Block(counts, users, given.validation),), items)

    def _take(self, backend: Backend, data: TrainingData, result: Fit, seed: int) -> None:
        """Take what a fit leaves, in one assignment, and write it to ``save_folder`` if there is one."""
        users, items = result.model.blocks[0].users, result.model.items
        means = [backend.asnumpy(backend.mean(side.factor)) for side in (users, items)]
        posteriors = None
        if self.keep_all_objs or self.save_folder is not None:
            posteriors = (posterior_of(backend, users), posterior_of(backend, items))
        n_users, n_items = data.csr.shape
        fitted = Fitted(
            theta=means[0],
            beta=means[1],
            user_ids=data.users,
            item_ids=data.items,
            nusers=n_users,
            nitems=n_items,
            posteriors=posteriors,
            seen=data.seen if self.keep_data else None,
            niter=result.iterations,
            train_llk=result.history[-1].llk,
            history=history_frame(result.history, self.stop_crit),
            seed=seed,
            backend=backend.name,
        )
        self._fitted = fitted if self.keep_all_objs else replace(fitted, posteriors=None)
        if self.save_folder is not None:
            whole = copy.copy(self)
            whole._fitted = fitted
            write_csv_folder(self.save_folder, whole)


HPF._parameter_names = tuple(inspect.signature(HPF).parameters)
