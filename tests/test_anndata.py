"""Gene programs: what a fit writes into an AnnData, against formulas, and where programs are known."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hpf_gpu import HPF

anndata = pytest.importorskip("anndata", reason="anndata is not installed: nox -s single_cells")

import hpf_gpu.anndata as tl  # noqa: E402

K, N, M = 3, 120, 60
FEW = {"verbose": False, "ncores": 1, "random_seed": 1}


def counts(seed=0):
    """Counts (N, M) of three programs of 15 genes each; the last gene and one cell have none."""
    rng = np.random.default_rng(seed)
    usage, depth = rng.gamma(0.4, 1.0, (N, K)), rng.lognormal(0.0, 0.5, N)
    programs = np.kron(np.eye(K), np.linspace(1.0, 4.0, 15))
    rates = np.hstack([usage @ programs, np.zeros((N, M - 45))]) + 0.02
    drawn = rng.poisson(depth[:, None] * rates)
    drawn[5] = drawn[:, -1] = 0
    return drawn


def cells(seed=0, form=sparse.csr_matrix, dtype=np.float32):
    adata = anndata.AnnData(form(counts(seed).astype(dtype)))
    adata.obs_names, adata.var_names = [f"cell{i}" for i in range(N)], [f"gene{j}" for j in range(M)]
    return adata


@pytest.fixture(scope="module")
def fitted():
    adata = cells()
    return adata, tl.fit(adata, K, **FEW)


# -- what is written -----------------------------------------------------------------------------


def test_known_programs_are_found(fitted):
    adata, _ = fitted
    table = tl.top_genes(adata, 10)
    found = table.groupby("Factor")["Gene"].apply(lambda genes: {int(gene[4:]) // 15 for gene in genes})
    assert sorted(found.map(tuple)) == [(0,), (1,), (2,)]
    assert list(table.columns) == ["Factor", "Rank", "Gene", "Score"]
    assert (table.groupby("Factor")["Score"].diff().dropna() <= 0).all()
    assert table.pivot(index="Rank", columns="Factor", values="Gene").shape == (10, K)
    assert len(tl.top_genes(adata, 1000)) == K * M


def test_scores_by_formula(fitted):
    """Levitin et al. (2019): E[ξ_i]·E[θ_ik] and E[η_g]·E[β_gk]; q(ξ) is Gamma(a' + K·a, b' + Σ_k E[θ_ik])."""
    adata, model = fitted
    X = counts()
    for mean, names, axis, shape, hyper, totals in (
        ("hpf_theta", "X_hpf", adata.obsm, model.a, model.a_prime, X.sum(1)),
        ("hpf_beta", "hpf", adata.varm, model.c, model.c_prime, X.sum(0)),
    ):
        rate = hyper * totals.mean() / totals.var()
        capacity = (hyper + K * shape) / (rate + axis[mean].sum(1, dtype=float))
        # float32: 8e-8 measured.
        np.testing.assert_allclose(axis[names], capacity[:, None] * axis[mean], rtol=2e-6)
    np.testing.assert_array_equal(adata.obsm["hpf_theta"], model.Theta)
    np.testing.assert_array_equal(adata.varm["hpf_beta"], model.Beta)


def test_priors_by_formula(fitted):
    """Rates of ξ and η: a'·mean/variance and c'·mean/variance of the totals; a = c = 0.3, a' = c' = 1."""
    _, model = fitted
    X = counts()
    assert (model.a, model.a_prime, model.c, model.c_prime) == (0.3, 1.0, 0.3, 1.0)
    for rate, totals in (
        (model.a_prime / model.b_prime, X.sum(1)),
        (model.c_prime / model.d_prime, X.sum(0)),
    ):
        np.testing.assert_allclose(rate, totals.mean() / totals.var(), rtol=1e-6)


def test_rate_of_genes_has_a_bound():
    """A gene that dwarfs all others would make it zero: at least a thousandth of that of the cells."""
    adata = cells(form=np.asarray)
    adata.X[:, 0] = 100_000
    model = tl.fit(adata, K, **FEW, maxiter=1)
    np.testing.assert_allclose(model.c_prime / model.d_prime, model.a_prime / model.b_prime / 1000)


def test_priors_can_be_passed():
    adata = cells()
    model = tl.fit(adata, K, **FEW, maxiter=1, b_prime=2.0, a_prime=0.5)
    assert (model.a_prime, model.b_prime) == (0.5, 2.0)
    assert model.d_prime > 10
    model = tl.fit(adata, K, **FEW, maxiter=1, empirical_priors=False)
    assert (model.b_prime, model.d_prime) == (1.0, 1.0)
    adata = anndata.AnnData(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"all cells have the same total.*pass b_prime"):
        tl.fit(adata, 2, **FEW)
    with pytest.raises(ValueError, match=r"all genes have the same total.*pass d_prime"):
        tl.fit(adata, 2, **FEW, b_prime=1.0)
    tl.fit(adata, 2, **FEW, b_prime=1.0, d_prime=1.0)


def test_binary_counts_have_priors_of_their_own():
    model = tl.fit(cells(), K, **FEW, maxiter=1, counts="binary")
    totals = (counts() > 0).sum(1)
    np.testing.assert_allclose(model.b_prime, totals.var() / totals.mean(), rtol=1e-6)


def test_it_is_an_hpf_of_cells_and_genes(fitted):
    _, model = fitted
    X = sparse.csr_array(counts())
    params = model.get_params()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = HPF(**params).fit(X)
    np.testing.assert_array_equal(model.Theta, plain.Theta)
    assert model.predict("cell3", "gene7") == plain.predict(3, 7)
    assert model.topN("cell3", 2, exclude_seen=False)[0].startswith("gene")


def test_restarts_keep_the_best():
    adata = cells()
    model = tl.fit(adata, K, **{**FEW, "maxiter": 30, "init": "hpfrec"}, restarts=3)
    table = adata.uns["hpf"]["restarts"]
    assert list(table["random_seed"]) == [1, 2, 3]
    assert table["llk"].nunique() == 3
    best = table.loc[table["llk"].idxmax()]
    assert (model.random_seed_, model.niter, model.train_llk) == tuple(best)
    assert adata.uns["hpf"]["params"]["random_seed"] == model.random_seed_
    np.testing.assert_array_equal(adata.obsm["hpf_theta"], model.Theta)


def test_cells_and_genes_without_counts_keep_their_rows(fitted):
    adata, _ = fitted
    for array, row in ((adata.obsm["X_hpf"], 5), (adata.varm["hpf"], M - 1)):
        assert np.isfinite(array).all()
        assert array[row].max() < np.median(array.max(1))


def test_genes_that_are_left_out():
    adata = cells()
    adata.var["used"] = np.arange(M) % 2 == 0
    model = tl.fit(adata, K, mask_var="used", key_added="half", **FEW, maxiter=5)
    assert model.nitems == 30
    assert np.isnan(adata.varm["half"][1::2]).all()
    assert np.isfinite(adata.varm["half"][::2]).all()
    alone = adata[:, ::2].copy()
    tl.fit(alone, K, **FEW, maxiter=5)
    np.testing.assert_array_equal(alone.obsm["X_hpf"], adata.obsm["X_half"])
    assert set(tl.top_genes(adata, 100, key="half")["Gene"]) == set(alone.var_names)
    for mask, message in (
        ("no", "no column 'no'"),
        (np.ones(3, bool), "60 booleans"),
        (np.ones(M), "60 boo"),
    ):
        with pytest.raises(ValueError, match=message):
            tl.fit(adata, K, mask_var=mask, **FEW)


# -- forms of AnnData ----------------------------------------------------------------------------


def test_h5ad_round_trip(fitted, tmp_path):
    adata, model = fitted
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    for one, other in ((again.obsm, adata.obsm), (again.varm, adata.varm)):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    params = again.uns["hpf"]["params"]
    assert (params["k"], params["a"], params["random_seed"]) == (K, 0.3, 1)
    assert params["b_prime"] == model.b_prime
    history = again.uns["hpf"]["history"]
    assert list(history["iteration"]) == list(model.history_["iteration"])
    pd.testing.assert_frame_equal(tl.top_genes(again), tl.top_genes(adata))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array])
@pytest.mark.parametrize("backed", [False, True])
def test_dense_sparse_and_in_a_file(fitted, form, backed, tmp_path):
    adata = cells(form=form)
    if backed:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    tl.fit(adata, K, **FEW)
    np.testing.assert_array_equal(adata.obsm["X_hpf"], fitted[0].obsm["X_hpf"])


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float64])
def test_types_of_counts(fitted, dtype):
    adata = cells(dtype=dtype)
    before = adata.X.copy()
    tl.fit(adata, K, **FEW)
    np.testing.assert_array_equal(adata.obsm["X_hpf"], fitted[0].obsm["X_hpf"])
    np.testing.assert_array_equal(adata.X.toarray(), before.toarray())


def test_view():
    adata = cells()
    view = adata[10:60]
    with pytest.warns(UserWarning, match="view"):  # anndata's own, when a view becomes an object
        tl.fit(view, K, **FEW, maxiter=2)
    assert view.obsm["X_hpf"].shape == (50, K)
    assert "X_hpf" not in adata.obsm


# -- what are no counts --------------------------------------------------------------------------


def test_layers_are_named():
    adata = cells()
    adata.layers["umis"] = adata.X.copy()
    adata.layers["scaled"] = adata.X.toarray() - 1.0
    adata.X = adata.X.log1p()
    with pytest.warns(UserWarning, match=r"not whole numbers, such as 1.09.*pass layer='umis'$"):
        tl.fit(adata, K, **FEW, maxiter=1)
    with pytest.raises(ValueError, match=r"layer 'scaled' has values below zero, such as -1.*layer='umis'$"):
        tl.fit(adata, K, layer="scaled", **FEW)
    with pytest.raises(ValueError, match="no layer 'counts'; it has 'umis', 'scaled'"):
        tl.fit(adata, K, layer="counts", **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tl.fit(adata, K, layer="umis", **FEW, maxiter=1)
    assert adata.uns["hpf"]["params"]["layer"] == "umis"
    adata.X = None
    with pytest.raises(ValueError, match=r"adata.X is None: pass layer='umis'"):
        tl.fit(adata, K, **FEW)


def test_wrong_arguments():
    adata = cells()
    with pytest.raises(TypeError, match="must be an AnnData, not ndarray"):
        tl.fit(adata.X.toarray(), K)
    for change in ({"hierarchical": False}, {"bias": True}, {"neighbours": 5}, {"keep_all_objs": False}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}=.*: scores are defined for"):
            tl.fit(adata, K, **FEW, **change)
    with pytest.raises(
        TypeError, match="fit has no parameter 'use_raw'; others than its own are those of hpf_gpu"
    ):
        tl.fit(adata, K, use_raw=True)
    with pytest.raises(
        TypeError, match=r"project takes an AnnData and a model, not AnnData and str: hpf_gpu.load"
    ):
        tl.project(adata, "m.hpf")
    with pytest.raises(ValueError, match="restarts=0"):
        tl.fit(adata, K, restarts=0, **FEW)
    with pytest.raises(ValueError, match=r"call hpf_gpu.anndata.fit first"):
        tl.top_genes(adata)
    adata.X.data[3] = np.nan
    with pytest.raises(ValueError, match=r"nan.*cannot be used"):
        tl.fit(adata, K, empirical_priors=False, **FEW)


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_names_must_be_unique(axis):
    adata = cells()
    names = list(getattr(adata, f"{axis}_names"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(adata, f"{axis}_names", [names[1], *names[1:]])
    with pytest.raises(ValueError, match=f"{names[1]}' is there twice: call adata.{axis}_names_make_unique"):
        tl.fit(adata, K, **FEW)


# -- new cells -----------------------------------------------------------------------------------


def test_project(fitted, tmp_path):
    """New cells have scores that explain them; genes may come in any order, with others among them."""
    _, model = fitted
    model.save(tmp_path / "model")
    model = HPF.load(tmp_path / "model")
    new = cells(seed=1)
    tl.project(new, model)
    X, expected = counts(1), new.obsm["hpf_theta"] @ model.Beta.T
    assert np.corrcoef(X.ravel(), expected.ravel())[0, 1] > 0.8
    capacity = (1 + K * 0.3) / (1 / model.b_prime + new.obsm["hpf_theta"].sum(1, dtype=float))
    # float32: 8e-8 measured.
    np.testing.assert_allclose(new.obsm["X_hpf"], capacity[:, None] * new.obsm["hpf_theta"], rtol=2e-6)

    shuffled = new[:, np.random.default_rng(0).permutation(M)].copy()
    other = anndata.AnnData(np.ones((N, 2)), obs=new.obs[[]])
    other.var_names = ["x", "y"]
    both = anndata.concat([other, shuffled], axis=1)
    tl.project(both, model, key_added="new")
    # Sums over genes may be in another order; no difference measured.
    np.testing.assert_allclose(both.obsm["X_new"], new.obsm["X_hpf"], rtol=2e-6)


def test_project_the_cells_of_the_fit(fitted):
    adata, model = fitted
    again = cells()
    tl.project(again, model, maxiter=1000, stop_thr=1e-6)
    # The fit stops when the log-likelihood hardly changes, and θ would still move: by 0.8 % measured.
    np.testing.assert_allclose(again.obsm["hpf_theta"], adata.obsm["hpf_theta"], rtol=0.03)


def test_project_without_some_genes(fitted):
    _, model = fitted
    new = cells(seed=1)
    with pytest.warns(UserWarning, match="10 of the 60 genes of the model are not in adata"):
        tl.project(new[:, 10:].copy(), model)
    new.var_names = [f"ENSG{j}" for j in range(M)]
    with pytest.raises(ValueError, match=r"no gene of adata, such as 'ENSG0', is in the model.*'gene0'"):
        tl.project(new, model)


def test_project_what_are_no_counts(fitted):
    new = cells(seed=1)
    for value, message in ((np.nan, "nan.*cannot be used"), (-1.0, "below zero, such as -1")):
        new.X.data[3] = value
        with pytest.raises(ValueError, match=message):
            tl.project(new, fitted[1])
    assert "X_hpf" not in new.obsm


def test_project_cells_without_counts(fitted):
    _, model = fitted
    new = cells()
    new.X = sparse.csr_matrix(new.shape, dtype=np.float32)
    tl.project(new, model)
    np.testing.assert_array_equal(new.obsm["X_hpf"], np.tile(new.obsm["X_hpf"][:1], (N, 1)))
