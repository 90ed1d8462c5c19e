"""PoissonFactorization keeps the contract of scikit-learn's transformers, and answers as an HPF."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars
import pytest
from scipy import sparse
from scipy.special import digamma, gammaln
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from hpf_gpu import HPF
from hpf_gpu.sklearn import PoissonFactorization

K = 3


def factorization(**params):
    return PoissonFactorization(**({"n_components": K, "random_state": 0, "ncores": 1} | params))


@pytest.fixture(scope="module")
def X():
    """Counts (80, 12) of three groups of features; one row and one feature have none."""
    rng = np.random.default_rng(1)
    theta = rng.gamma(0.4, 3.0, (80, K))
    beta = np.kron(np.eye(K), np.ones(4)) + 0.02
    counts = rng.poisson(theta @ beta)
    counts[7] = counts[:, 11] = 0
    return counts


@pytest.fixture(scope="module")
def fitted(X):
    return factorization().fit(X)


# No check is expected to fail.  (Of NMF's own two do if it stops early, as fit_transform is not transform.)
@parametrize_with_checks([factorization(n_components=2, max_iter=20, transform_max_iter=10)])
def test_contract(estimator, check):
    check(estimator)


def test_clone_of_hpf():
    model = clone(HPF(k=4, a=0.5, init="svd"))
    assert (model.k, model.a, model.init, model.is_fitted) == (4, 0.5, "svd", False)


def test_it_is_an_hpf(X, fitted):
    """The same factors as those of an HPF with the same parameters, and the names of both."""
    model = HPF(k=K, random_seed=0, ncores=1, init="svd", verbose=False).fit(sparse.csr_array(X))
    np.testing.assert_array_equal(fitted.components_, model.Beta.T)
    np.testing.assert_array_equal(fitted.model_.Theta, model.Theta)
    assert fitted.n_iter_ == model.niter
    assert list(fitted.get_feature_names_out()) == [f"poissonfactorization{k}" for k in range(K)]


def test_parameters_reach_the_hpf(X):
    params = {
        "a": 0.4, "a_prime": 0.5, "b_prime": 0.6, "c": 0.7, "c_prime": 0.8, "d_prime": 0.9,
        "hierarchical": False, "counts": "log1p", "stop_crit": "elbo", "check_every": 5, "patience": 10,
        "schedule": "alternating", "users_per_batch": 40, "items_per_batch": 6, "step_size": None,
        "ncores": 1, "backend": "numpy", "init": "hpfrec",
    }  # fmt: skip
    model = factorization(**params, max_iter=7, tol=0.5, n_components=2).fit(X).model_
    assert {name: getattr(model, name) for name in params} == params
    assert (model.k, model.maxiter, model.stop_thr, model.random_seed) == (2, 7, 0.5, 0)
    own = {"n_components", "max_iter", "tol", "random_state", "verbose", "transform_max_iter"}
    assert set(factorization().get_params()) == own | set(params) | {"precision"}


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        np.asfortranarray,
        lambda X: X.astype(np.uint8),
        sparse.csr_matrix,
        sparse.csc_array,
        lambda X: sparse.coo_array(X.astype(float)),
        pd.DataFrame,
        lambda X: polars.DataFrame(X),
    ],
    ids=["array", "fortran", "uint8", "csr", "csc", "coo", "pandas", "polars"],
)
def test_forms_of_input(X, fitted, form):
    given = form(X)
    again = factorization().fit(given)
    # The type follows X: float64 for one of these forms, float32 for the others.
    np.testing.assert_allclose(again.components_, fitted.components_, rtol=2e-3)
    assert again.transform(given).shape == (80, K)
    assert again.n_features_in_ == 12


def test_type_of_the_factors(X):
    for given, dtype in ((X, np.float32), (X.astype(np.float32), np.float32), (X / 1.0, np.float64)):
        model = factorization(max_iter=2).fit(given)
        assert (model.components_.dtype, model.transform(given).dtype) == (dtype, dtype)


def test_stored_zeros_and_duplicates(X, fitted):
    """Zeros that a sparse matrix stores are no counts, and the matrix is not changed."""
    full = sparse.csr_array((X.ravel(), np.tile(np.arange(12), 80), np.arange(0, 961, 12)), shape=(80, 12))
    before = full.copy()
    model = factorization().fit(full)
    np.testing.assert_array_equal(model.components_, fitted.components_)
    np.testing.assert_array_equal(model.transform(full), fitted.transform(X))
    assert full.nnz == 960
    np.testing.assert_array_equal(full.data, before.data)


def test_rows_do_not_depend_on_each_other(X, backend_name):
    model = factorization(backend=backend_name).fit(X)
    together = model.transform(X)
    apart = np.vstack([model.transform(X[i : i + 1]) for i in range(80)])
    # float32 sums in another order; 1.5e-7 measured.
    np.testing.assert_allclose(apart, together, rtol=2e-6, atol=1e-6)
    # A row without counts, alone and among others, has the factors of one.
    np.testing.assert_allclose(model.transform(np.zeros((2, 12)))[1], together[7], rtol=2e-6)


def test_rows_of_the_fit_keep_their_factors(X):
    """At the optimum of the fit, fold-in leads to the same factors."""
    model = factorization(max_iter=500, stop_crit="maxiter", transform_max_iter=500).fit(X / 1.0)
    np.testing.assert_allclose(model.transform(X / 1.0), model.model_.Theta, rtol=1e-2, atol=1e-3)


def test_inverse_transform(X, fitted):
    expected = fitted.inverse_transform(fitted.transform(X))
    np.testing.assert_allclose(expected, fitted.transform(X) @ fitted.model_.Beta.T)
    assert np.corrcoef(expected.ravel(), X.ravel())[0, 1] > 0.8  # 0.90 measured
    with pytest.raises(ValueError, match="X has 2 columns; the model has 3 components"):
        fitted.inverse_transform(np.ones((1, 2)))


def test_score_is_the_bound_of_rows(X, fitted):
    """Against the formula: E[ln p(x, θ, ξ | β) − ln q(θ, ξ)], dense, from shapes and rates."""
    rows = X[:20]
    model, folded = fitted.model_, fitted._folded(rows)
    q = folded.posterior
    shape, rate = q.shape.astype(float), q.exact_rate
    e, log = shape / rate, digamma(shape) - np.log(rate)
    beta_log = digamma(model.Lambda_shp.astype(float)) - np.log(model.Lambda_rte.astype(float))
    weights = np.exp(log[:, None] + beta_log[None]).sum(-1)
    bound = (rows * np.log(weights) - gammaln(rows + 1)).sum() - (e @ model.Beta.sum(0, dtype=float)).sum()
    a, b = model.a, model.a_prime / model.b_prime
    h_shape, h_rate = model.a_prime + K * a, q.hyper_rate[:, None]
    h, h_log = h_shape / h_rate, digamma(h_shape) - np.log(h_rate)
    bound += (a * h_log - gammaln(a) + (a - 1) * log - h * e).sum()
    bound += (shape - np.log(rate) + gammaln(shape) + (1 - shape) * digamma(shape)).sum()
    a = model.a_prime
    bound += (a * np.log(b) - gammaln(a) + (a - 1) * h_log - b * h).sum()
    bound += (h_shape - np.log(h_rate) + gammaln(h_shape) + (1 - h_shape) * digamma(h_shape)).sum()
    # Shapes and rates are float32: 1e-7 measured.
    np.testing.assert_allclose(fitted.score(rows), bound / 20, rtol=2e-6)


def test_grid_search_finds_the_number_of_components(X):
    grid = GridSearchCV(factorization(), {"n_components": [1, 2, 3, 6]}, cv=2).fit(X)
    assert grid.best_params_ == {"n_components": 3}


def test_pipeline_columns_and_frames(X):
    frame = pd.DataFrame(X, columns=[f"word{j}" for j in range(12)])
    model = factorization(max_iter=5)
    columns = make_column_transformer((model, list(frame.columns[:8])), remainder="passthrough")
    out = make_pipeline(columns, FunctionTransformer(np.sqrt)).set_output(transform="pandas")
    table = out.fit_transform(frame)
    assert table.shape == (80, K + 4)
    assert "poissonfactorization__poissonfactorization0" in table.columns
    fitted = clone(model).fit(frame)
    assert list(fitted.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(frame[frame.columns[::-1]])
    assert isinstance(fitted.set_output(transform="polars").transform(frame), polars.DataFrame)


def test_pickle(X, fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(X), fitted.transform(X))


def test_random_state(X):
    def components(state):
        return factorization(random_state=state, max_iter=2).fit(X).components_

    np.testing.assert_array_equal(components(3), components(np.int64(3)))
    np.testing.assert_array_equal(components(np.random.RandomState(3)), components(np.random.RandomState(3)))
    assert (components(None) != components(None)).any()


def test_counts_are_transformed_once(X):
    model = factorization(counts="log1p", max_iter=5).fit(X)
    plain = factorization(max_iter=5).fit(np.log1p(X.astype(np.float32)))
    np.testing.assert_allclose(model.components_, plain.components_, rtol=1e-5)
    np.testing.assert_allclose(model.transform(X), plain.transform(np.log1p(X.astype(np.float32))), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "k=0"),
        ({"max_iter": -1}, ValueError, "maxiter=-1"),
        ({"init": "nndsvd"}, ValueError, "init='nndsvd' is unknown"),
        ({"random_state": "x"}, ValueError, "seed"),
    ],
)
def test_wrong_parameters(X, change, error, message):
    with pytest.raises(error, match=message):
        factorization(**change).fit(X)
