"""Gene programs in single-cell counts: fits and fold-ins of AnnData, as the tools of scanpy work.

Cell scores, gene scores and priors are those of scHPF (H. M. Levitin et al.: De novo gene signature
identification from single-cell RNA-seq with hierarchical Poisson factorization. Molecular Systems Biology 15,
e8557, 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .data.counts import NewRows
from .data.ids import Ids
from .data.triplets import canonical, first_fraction, read_matrix
from .estimator import HPF
from .fitting.folding import fold_rows
from .fitting.partial import USERS
from .fitting.training import Inputs, train_with_seeds
from .messages import warn
from .model.fitted import Fitted
from .model.posterior import Posterior
from .model.settings import NAMES, Settings, positive_number, seed_or_fresh, whole_number

try:
    from anndata import AnnData
except ImportError as error:
    raise ImportError(f"hpf_gpu.anndata needs anndata ({error}): pip install 'hpf_gpu[anndata]'") from error

#: Where defaults are not those of HPF: scHPF's, whose threshold is 0.001 percent, and another start.
_DEFAULTS: dict[str, Any] = {
    "a_prime": 1.0,
    "c_prime": 1.0,
    "maxiter": 1000,
    "stop_thr": 1e-5,
    "init": "svd",
}

#: What the scores are defined for.
_REQUIRED = {"hierarchical": True, "bias": False, "neighbours": 0, "keep_all_objs": True}

#: scHPF bounds the rate of the genes' prior by this share of that of the cells'.
_LEAST_RATE_OF_GENES = 1e-3


def fit(
    adata: AnnData,
    k: int,
    *,
    layer: str | None = None,
    mask_var: Any = None,
    empirical_priors: bool = True,
    restarts: int = 1,
    key_added: str = "hpf",
    **params: Any,
) -> HPF:
    """Fit gene programs to the counts of an AnnData, and write cell and gene scores into it.

    Parameters
    ----------
    adata : AnnData (n_obs, n_vars)
        Cells and genes.  Counts are not modified.
    k : int
        Number of factors.
    layer : str, optional
        Layer with the counts; by default ``adata.X``.
    mask_var : str or array of bool (n_vars,), optional
        Genes to fit, by default all: a column of ``adata.var``, such as "highly_variable", or a mask.
    empirical_priors : bool
        Whether b' and d', unless passed, are taken from the counts as in scHPF: b' is the variance of the
        cells' totals divided by their mean, d' that of the genes' totals, but at most 1000·b'·c'/a'.  (What
        scHPF calls b' and d' are the rates a'/b' and c'/d' of the priors of ξ and η.)  If False, they are
        those of :class:`hpf_gpu.HPF`.
    restarts : int
        Number of fits, with the seeds ``random_seed``, ``random_seed + 1``, ...; the one with the highest
        log-likelihood is kept.
    key_added : str
        Name under which results are written, see below.
    **params
        Other parameters of :class:`hpf_gpu.HPF`.  Defaults that differ are ``a_prime=1``, ``c_prime=1``,
        ``maxiter=1000`` and ``stop_thr=1e-5``, as in scHPF, and ``init="svd"``, with which fits are shorter
        and less different from seed to seed.

    Returns
    -------
    HPF
        The fitted model, whose users are the cells and whose items the genes, by name.  ``model.save(path)``
        keeps it for :func:`project`.

    Raises
    ------
    ValueError, TypeError
        If the values are not counts, names are not unique, or a parameter is invalid.

    Warns
    -----
    UserWarning
        If values are not whole numbers, as normalized ones are.

    Notes
    -----
    For ``key_added="hpf"`` these are written into ``adata``:

    ``obsm["X_hpf"]`` : array (n_obs, k)
        Cell scores E[ξ_i]·E[θ_ik].
    ``varm["hpf"]`` : array (n_vars, k)
        Gene scores E[η_g]·E[β_gk]; NaN for genes that ``mask_var`` leaves out.
    ``obsm["hpf_theta"]``, ``varm["hpf_beta"]`` : arrays of the same shapes
        E[θ] and E[β], whose product has the expected counts.
    ``uns["hpf"]``
        ``params``; ``history``, the checks of the fit; ``restarts``, seed, iterations and log-likelihood of
        each fit.

    Scores are factors without the scale of the cell (sequencing depth) or of the gene (abundance)
    (Levitin et al. 2019).

    Examples
    --------
    >>> model = hpf_gpu.anndata.fit(adata, k=20, layer="counts")  # doctest: +SKIP
    >>> hpf_gpu.anndata.top_genes(adata, n=10)  # doctest: +SKIP
    >>> sc.pp.neighbors(adata, use_rep="X_hpf")  # doctest: +SKIP
    """
    unknown = [name for name in params if name not in NAMES]
    if unknown:
        raise TypeError(f"fit has no parameter {unknown[0]!r}; others than its own are those of hpf_gpu.HPF")
    counts, mask = _counts(adata, layer), _mask(adata, mask_var)
    counts = counts if mask.all() else counts[:, mask]
    cells, genes = _names(adata, "obs"), _names(adata, "var")[mask]
    given = {**_DEFAULTS, "k": k, **params}
    if empirical_priors:
        unset = {"b_prime", "d_prime"} - given.keys()
        given |= _empirical(counts, HPF(**given)._settings(), unset)
    settings = HPF(**given)._settings()
    for name, required in _REQUIRED.items():
        if getattr(settings, name) != required:
            raise ValueError(
                f"{name}={getattr(settings, name)!r}: scores are defined for {name}={required!r}"
            )
    first = seed_or_fresh(settings.random_seed)
    seeds = range(first, first + whole_number("restarts", restarts, 1))
    log: list[tuple[int, int, float]] = []
    best = max(_fits(settings, counts, seeds, log), key=_llk)
    users, items = Ids(cells, len(cells), "user"), Ids(genes, len(genes), "item")
    model = HPF._of(settings, replace(best, user_ids=users, item_ids=items))

    of_cells, of_genes = best.require_posteriors()
    adata.obsm[f"X_{key_added}"] = _scores(of_cells, best.theta)
    adata.obsm[f"{key_added}_theta"] = best.theta.copy()
    adata.varm[key_added] = _of_all_genes(_scores(of_genes, best.beta), mask)
    adata.varm[f"{key_added}_beta"] = _of_all_genes(best.beta, mask)
    asked = {"layer": layer, "mask_var": mask_var if isinstance(mask_var, str) else None}
    values = {**asked, **model.get_params(), "random_seed": best.seed}
    adata.uns[key_added] = {
        # Files have no None and no functions.
        "params": {
            name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))
        },
        "history": best.history,
        "restarts": pd.DataFrame(log, columns=["random_seed", "iterations", "llk"]),
    }
    return model


def project(
    adata: AnnData,
    model: HPF,
    *,
    layer: str | None = None,
    key_added: str = "hpf",
    maxiter: int = 100,
    stop_thr: float = 1e-3,
) -> None:
    """Write the scores of new cells into an AnnData, with the genes of a model unchanged (fold-in).

    Parameters
    ----------
    adata : AnnData (n_obs, n_vars)
        New cells.  Genes are found by name, in any order.  Those that are not in the model are left out;
        those of the model that are not here are taken to have no counts, with a warning.
    model : HPF
        What :func:`fit` returned, or :meth:`hpf_gpu.HPF.load` read.
    layer, key_added :
        As for :func:`fit`; ``obsm["X_hpf"]`` and ``obsm["hpf_theta"]`` are written.
    maxiter, stop_thr :
        As for :meth:`hpf_gpu.HPF.transform`.

    Raises
    ------
    ValueError, TypeError
        If the values are not counts, or no gene is in the model.
    """
    if not isinstance(adata, AnnData) or not isinstance(model, HPF):
        raise TypeError(
            f"project takes an AnnData and a model, not {type(adata).__name__} and {type(model).__name__}: "
            "hpf_gpu.load(path) reads a model"
        )
    settings, fitted = model._settings(), model._require_fitted()
    counts, names, genes = _counts(adata, layer), _names(adata, "var"), fitted.item_ids
    places = genes.codes(names)
    known = np.flatnonzero(places >= 0)
    if len(known) == 0:
        raise ValueError(
            f"no gene of adata, such as {names[0]!r}, is in the model, whose genes are such as "
            f"{genes.index[0]!r}: name them alike in adata.var_names"
        )
    if len(known) < genes.size:
        warn(
            f"{genes.size - len(known)} of the {genes.size} genes of the model are not in adata: they are "
            "taken to have no counts"
        )
    part = counts[:, known].tocoo()
    shape = (counts.shape[0], genes.size)
    placed = sparse.coo_array((part.data, (part.row, places[known][part.col])), shape=shape)
    csr = read_matrix(placed, fitted.dtype.type)
    folded = fold_rows(
        settings,
        fitted,
        NewRows(canonical(csr, settings.counts), Ids(None, shape[0], "user")),
        side=USERS,
        maxiter=whole_number("maxiter", maxiter, 1),
        stop_thr=positive_number("stop_thr", stop_thr),
        threads=settings.threads,
    )
    adata.obsm[f"X_{key_added}"] = _scores(folded.posterior, folded.mean)
    adata.obsm[f"{key_added}_theta"] = folded.mean


def top_genes(adata: AnnData, n: int = 20, *, key: str = "hpf") -> pd.DataFrame:
    """The genes with the highest scores in each factor.

    Parameters
    ----------
    adata : AnnData
        With the results of :func:`fit`.
    n : int
        Number of genes of each factor.
    key : str
        The ``key_added`` of :func:`fit`.

    Returns
    -------
    DataFrame
        Columns Factor (from 0), Rank (from 1), Gene and Score, best genes first;
        ``.pivot(index="Rank", columns="Factor", values="Gene")`` has a column of genes for each factor.

    Raises
    ------
    ValueError
        If ``adata`` has no gene scores of this name.
    """
    if key not in adata.varm:
        raise ValueError(f"adata.varm has no {key!r}: call hpf_gpu.anndata.fit first, with key_added={key!r}")
    scores = np.asarray(adata.varm[key])
    n = min(whole_number("n", n, 1), int(np.isfinite(scores[:, 0]).sum()))
    best = np.argsort(-scores, axis=0, kind="stable")[:n].T  # (k, n); NaN comes last
    k = len(best)
    return pd.DataFrame(
        {
            "Factor": np.repeat(np.arange(k), n),
            "Rank": np.tile(np.arange(1, n + 1), k),
            "Gene": adata.var_names.to_numpy()[best.ravel()],
            "Score": np.take_along_axis(scores.T, best, axis=1).ravel(),
        }
    )


# -- fits and scores -----------------------------------------------------------------------------


def _fits(
    settings: Settings, counts: sparse.csr_array, seeds: Iterable[int], log: list[tuple[int, int, float]]
) -> Iterator[Fitted]:
    """Fits with these seeds; seed, iterations and log-likelihood of each go to the log."""
    for trained in train_with_seeds(settings, Inputs(counts), [(seed, None) for seed in seeds]):
        if trained.ended_by is not None:
            raise trained.ended_by
        log.append((trained.fitted.seed, trained.fitted.niter, _llk(trained.fitted)))
        yield trained.fitted


def _llk(fitted: Fitted) -> float:
    return float(fitted.history["llk"].iloc[-1])


def _scores(posterior: Posterior, mean: NDArray[Any]) -> NDArray[Any]:
    """E[ξ]·E[θ] (N, K), from E[θ]; "cell score" and "gene score" in Levitin et al. (2019)."""
    if not posterior.has_hyper_rate:
        raise ValueError("scores are defined for models with hierarchical=True and without fixed factors")
    capacity = posterior.prior.posterior_hyper_shape(mean.shape[1]) / posterior.hyper_rate  # E[ξ]
    scores: NDArray[Any] = (capacity[:, None] * mean).astype(mean.dtype)
    return scores


def _empirical(counts: sparse.csr_array, settings: Settings, unset: Set[str]) -> dict[str, float]:
    """b' and d', as far as they are not set, as scHPF takes them from the counts (N, M)."""
    taken = canonical(counts.copy(), settings.counts)
    priors: dict[str, float] = {}
    for name, axis, what in (("b_prime", 1, "cells"), ("d_prime", 0, "genes")):
        if name not in unset:
            continue
        totals = np.asarray(taken.sum(axis=axis, dtype=np.float64))
        if totals.var() == 0:
            raise ValueError(
                f"all {what} have the same total, from whose variance the prior would be taken: pass {name}, "
                "or empirical_priors=False"
            )
        priors[name] = float(totals.var() / totals.mean())
    if "d_prime" in priors:
        rate_of_cells = settings.a_prime / priors.get("b_prime", settings.b_prime)
        most = settings.c_prime / (_LEAST_RATE_OF_GENES * rate_of_cells)
        priors["d_prime"] = min(priors["d_prime"], most)
    return priors


# -- from and to AnnData -------------------------------------------------------------------------


def _counts(adata: AnnData, layer: str | None) -> sparse.csr_array:
    """The counts (n_obs, n_vars) of X or of a layer, in memory; a warning or an error if they are none."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}")
    if layer is not None and layer not in adata.layers:
        raise ValueError(
            f"adata has no layer {layer!r}; it has {', '.join(map(repr, adata.layers)) or 'none'}"
        )
    where = "adata.X" if layer is None else f"layer {layer!r}"
    values = adata.X if layer is None else adata.layers[layer]
    if values is None:
        raise ValueError(f"adata.X is None: {_advice(adata, layer)}")
    counts = _in_memory(values)
    if counts.nnz and (least := counts.data.min()) < 0:
        raise ValueError(
            f"{where} has values below zero, such as {least:g}, which are no counts: {_advice(adata, layer)}"
        )
    if (example := first_fraction(counts.data)) is not None:
        warn(
            f"{where} has values that are not whole numbers, such as {example:g}. The model is for raw "
            f"counts, not for normalized or log-transformed ones: {_advice(adata, layer)}"
        )
    return counts


def _in_memory(values: Any) -> sparse.csr_array:
    """A matrix of AnnData, which may be dense or in a file, as CSR."""
    if hasattr(values, "to_memory"):
        values = values.to_memory()
    matrix: Any = values if sparse.issparse(values) else np.asarray(values)
    counts = sparse.csr_array(matrix)
    if (counts.data == 0).any():
        counts = counts.copy()
        counts.eliminate_zeros()
    return counts


def _advice(adata: AnnData, layer: str | None) -> str:
    """Which layer to pass: those that have counts."""
    found = [name for name in adata.layers if name != layer and _are_counts(_in_memory(adata.layers[name]))]
    named = " or ".join(f"layer={name!r}" for name in found)
    return f"pass {named}" if found else "pass the layer with raw counts, layer=..."


def _are_counts(counts: sparse.csr_array) -> bool:
    values = counts.data
    return first_fraction(values) is None and not (values < 0).any() and bool(np.isfinite(values).all())


def _mask(adata: AnnData, mask_var: Any) -> NDArray[np.bool_]:
    """Which genes (n_vars,) are fitted."""
    if mask_var is None:
        return np.ones(adata.n_vars, bool)
    if isinstance(mask_var, str) and mask_var not in adata.var:
        raise ValueError(f"adata.var has no column {mask_var!r}")
    mask = np.asarray(adata.var[mask_var] if isinstance(mask_var, str) else mask_var)
    if mask.shape != (adata.n_vars,) or mask.dtype != bool:
        raise ValueError(f"mask_var must be {adata.n_vars} booleans, not {mask.dtype} of shape {mask.shape}")
    return mask


def _names(adata: AnnData, axis: str) -> NDArray[Any]:
    """Names of cells ("obs") or genes ("var"), which identify them."""
    names = getattr(adata, f"{axis}_names")
    if not names.is_unique:
        example = names[names.duplicated()][0]
        raise ValueError(
            f"adata.{axis}_names are not unique, {example!r} is there twice: call "
            f"adata.{axis}_names_make_unique()"
        )
    return np.asarray(names, dtype=object)


def _of_all_genes(values: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Rows for all genes (n_vars, k) from those that were fitted; NaN in the others."""
    everything = np.full((len(mask), values.shape[1]), np.nan, values.dtype)
    everything[mask] = values
    return everything
