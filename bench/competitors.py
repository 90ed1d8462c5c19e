"""Libraries that factorize counts, behind one signature: ``fit(given, task)`` gives a ``Fitted``.

Each takes the data in the form that its users have, a frame or a sparse matrix, and runs exactly as many
iterations as the task says.  What cannot be measured here says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from cases import Input
from record import version


class Task(NamedTuple):
    """What to fit."""

    k: int
    iterations: int
    threads: int
    dtype: str = "float32"
    seed: int = 1


class Fitted(NamedTuple):
    """What a fit leaves."""

    Theta: np.ndarray  # (N, K)
    Beta: np.ndarray  # (M, K)
    user_mapping_: Any  # (N,) ids
    item_mapping_: Any  # (M,) ids
    top: Callable[[int], Any] | None = None  # the n best new items of every user


Fit = Callable[[Input, Task], Fitted]


@dataclass(frozen=True)
class Competitor:
    """A library: how it fits, and what it needs."""

    fit: Fit
    package: str  # on PyPI
    poisson: bool = True  # whether Theta and Beta are means of counts
    even: bool = True  # whether one iteration is as much work as another
    threads_in_blas: bool = True  # whether BLAS may use threads: implicit asks that it does not


# -- hierarchical Poisson factorization ----------------------------------------------------------------


def _hpf_parameters(task: Task) -> dict[str, Any]:
    return {
        "k": task.k,
        "ncores": task.threads,
        "maxiter": task.iterations,
        "use_float": task.dtype == "float32",
        "random_seed": task.seed,
        "stop_crit": "maxiter",
        "check_every": task.iterations,
        "verbose": False,
    }


def fit_hpf_gpu(given: Input, task: Task, **options: Any) -> Fitted:
    from hpf_gpu import HPF

    model = HPF(**_hpf_parameters(task), **options).fit(given.frame)
    users = model.user_mapping_
    return Fitted(model.Theta, model.Beta, users, model.item_mapping_, partial(model.topN, users))


def fit_hpfrec(given: Input, task: Task) -> Fitted:
    import hpfrec

    model = hpfrec.HPF(**_hpf_parameters(task)).fit(given.frame)
    return Fitted(model.Theta, model.Beta, model.user_mapping_, model.item_mapping_)


def fit_torch(given: Input, task: Task) -> Fitted:
    """The same iteration as somebody would write it in PyTorch: ``gpu/torch_update.py``."""
    import torch
    from gpu.torch_update import Model

    from hpf_gpu.model.start import StartValues

    torch.set_num_threads(task.threads)
    dtype = np.dtype(task.dtype)
    start = StartValues(*given.csr.shape, task.k, task.seed, dtype)
    model = Model.begin(given.csr, start, "cpu")
    for _ in range(task.iterations):
        model = model.iterated("torch index_add")
    theta, beta = ((side.shape / side.rate).numpy() for side in (model.users, model.items))
    return Fitted(theta, beta, *given.ids)


# -- others --------------------------------------------------------------------------------------------


def fit_poismf(given: Input, task: Task) -> Fitted:
    """Its default, truncated Newton with L2 regularization."""
    from poismf import PoisMF

    model = PoisMF(
        k=task.k,
        niter=task.iterations,
        nthreads=task.threads,
        use_float=task.dtype == "float32",
        random_state=task.seed,
    )
    model.fit(given.csr.tocoo())
    return Fitted(model.A, model.B, *given.ids)


def fit_sklearn(given: Input, task: Task) -> Fitted:
    """Non-negative matrix factorization by multiplicative updates of the Kullback-Leibler divergence."""
    from scipy import sparse
    from sklearn.decomposition import NMF

    model = NMF(
        task.k,
        init="random",
        solver="mu",
        beta_loss="kullback-leibler",
        max_iter=task.iterations,
        tol=0,
        random_state=task.seed,
    )
    theta = model.fit_transform(sparse.csr_matrix(given.csr.astype(task.dtype)))
    return Fitted(theta, np.ascontiguousarray(model.components_.T), *given.ids)


def fit_implicit(given: Input, task: Task) -> Fitted:
    """Alternating least squares on confidences, no model of counts."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy import sparse

    model = AlternatingLeastSquares(
        factors=task.k,
        iterations=task.iterations,
        num_threads=task.threads,
        dtype=np.dtype(task.dtype),
        random_state=task.seed,
    )
    csr = sparse.csr_matrix(given.csr)
    model.fit(csr, show_progress=False)
    users = np.arange(csr.shape[0])

    def top(n: int) -> Any:
        return model.recommend(users, csr, N=n, filter_already_liked_items=True)

    return Fitted(model.user_factors, model.item_factors, *given.ids, top)


def _ours(backend: str, **options: Any) -> Competitor:
    return Competitor(partial(fit_hpf_gpu, backend=backend, **options), "hpf_gpu")


COMPETITORS = {
    "numpy": _ours("numpy"),
    "openmp": _ours("openmp"),
    "openmp-alternating": _ours("openmp", schedule="alternating"),
    "cuda": _ours("cuda"),
    "hpfrec": Competitor(fit_hpfrec, "hpfrec"),
    "torch": Competitor(fit_torch, "torch"),
    "poismf": Competitor(fit_poismf, "poismf", even=False),
    "sklearn": Competitor(fit_sklearn, "scikit-learn"),
    "implicit": Competitor(fit_implicit, "implicit", poisson=False, threads_in_blas=False),
}
#: Why those of the cases that have no adapter have none.
NEVER_MEASURED = {"schpf": "scHPF is not on PyPI"}
PACKAGES = sorted({competitor.package for competitor in COMPETITORS.values()})


def why_not(who: str, dtype: str = "float32") -> str | None:
    """Why a competitor cannot be measured here; None if it can."""
    from hpf_gpu.backends import create
    from hpf_gpu.backends.protocol import BackendUnavailable

    if who in NEVER_MEASURED:
        return NEVER_MEASURED[who]
    competitor = COMPETITORS[who]
    if competitor.package != "hpf_gpu":
        missing = version(competitor.package) is None
        return (
            f"{competitor.package} is not installed (pip install {competitor.package})" if missing else None
        )
    try:
        create(who.partition("-")[0], dtype)
    except BackendUnavailable as error:
        return str(error)
    return None
