"""HPFScorer keeps the contract of LensKit's scorers; `nox -s lenskit` has an environment with LensKit."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hpf_gpu import HPF

lenskit = pytest.importorskip(
    "lenskit", reason="LensKit is not installed (it brings PyTorch): nox -s lenskit"
)

from lenskit import batch  # noqa: E402
from lenskit.data import ItemList, RecQuery, from_interactions_df  # noqa: E402
from lenskit.metrics import NDCG, RunAnalysis  # noqa: E402
from lenskit.pipeline import topn_pipeline  # noqa: E402
from lenskit.splitting import SampleFrac, crossfold_users  # noqa: E402
from lenskit.testing import BasicComponentTests, ScorerTests  # noqa: E402
from lenskit.training import TrainingOptions  # noqa: E402

from hpf_gpu.lenskit import HPFConfig, HPFScorer  # noqa: E402

N, M = 120, 150


@pytest.fixture(scope="module")
def ratings():
    """Counts of two groups of users and items."""
    rng = np.random.default_rng(0)
    rates = np.kron(np.eye(2), np.ones((N // 2, M // 2))) * 0.4 + 0.02
    users, items = np.nonzero(counts := rng.poisson(rates))
    return pd.DataFrame({"user_id": users + 1000, "item_id": items + 1, "rating": counts[users, items] * 1.0})


@pytest.fixture(scope="module")
def ml_ds(ratings):
    return from_interactions_df(ratings.copy())


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def scorer(**config):
    return HPFScorer(**({"features": 2, "count_attribute": "rating", "ncores": 1, "random_seed": 3} | config))


@pytest.fixture(scope="module")
def trained(ml_ds):
    component = scorer()
    component.train(ml_ds, TrainingOptions())
    return component


class TestContract(BasicComponentTests, ScorerTests):
    component = HPFScorer
    config = HPFConfig(embedding_size=2, count_attribute="rating", ncores=1, maxiter=5)
    configs = [{"features": 5, "count_attribute": None, "user_embeddings": False, "init": "svd"}]  # noqa: RUF012


def test_scores_are_expected_counts(ml_ds, trained):
    items = ItemList([5, 1, 149, 999])
    scores = trained(query=RecQuery(user_id=1007), items=items).scores()
    direct = trained.model.predict(7, ml_ds.items.numbers([5, 1, 149]))
    np.testing.assert_allclose(scores[:3], direct)
    assert np.isnan(scores[3])
    assert scores[0] > 5 * scores[2]


def test_counts_are_those_of_the_attribute(ml_ds, ratings, trained):
    matrix = sparse.coo_array(
        (ratings["rating"], (ratings["user_id"] - 1000, ml_ds.items.numbers(ratings["item_id"]))),
        shape=(N, M),
    )
    plain = HPF(k=2, ncores=1, random_seed=3, verbose=False).fit(matrix)
    np.testing.assert_array_equal(trained.model.Theta, plain.Theta)
    ones = scorer(count_attribute=None)
    ones.train(ml_ds, TrainingOptions())
    plain = HPF(k=2, ncores=1, random_seed=3, verbose=False).fit((matrix > 0).astype(float))
    np.testing.assert_array_equal(ones.model.Theta, plain.Theta)


def test_new_users(ml_ds, trained):
    """Folded in from the items of the query, with their counts if the query has them."""
    items = ItemList(ml_ds.items.ids())
    history = ItemList([3, 2, 777], rating=[2.0, 1.0, 5.0])
    scores = trained(RecQuery(user_id=-5, history_items=history), items).scores()
    columns = ml_ds.items.numbers([3, 2])
    row = sparse.csr_array(([2.0, 1.0], ([0, 0], columns)), shape=(1, M))
    theta = trained.model.transform(row).to_numpy()[0]
    np.testing.assert_allclose(scores, trained.model.Beta @ theta, rtol=1e-5)
    np.testing.assert_array_equal(trained(history, items).scores(), scores)
    uncounted = trained(ItemList([3, 2]), items).scores()
    assert (uncounted < scores).all()
    for query in (RecQuery(), RecQuery(user_id=-5), ItemList([777]), ItemList([])):
        assert np.isnan(trained(query, items).scores()).all()


def test_whose_factors(ml_ds, trained):
    items = ItemList(ml_ds.items.ids())
    other = ItemList([149, 148, 147])
    query = RecQuery(user_id=1000, history_items=other)
    known, folded = trained(1000, items).scores(), trained(other, items).scores()
    for use, expected in (("prefer", known), (True, folded), (False, folded)):
        component = scorer(user_embeddings=use)
        component.train(ml_ds, TrainingOptions())
        np.testing.assert_array_equal(component(query, items).scores(), expected)
    assert np.isnan(component(RecQuery(user_id=1000), items).scores()).all()


def test_models_with_neighbours(ml_ds):
    component = scorer(neighbours=5, maxiter=5)
    component.train(ml_ds, TrainingOptions())
    items, numbers = ItemList(ml_ds.items.ids()), np.arange(M)
    np.testing.assert_allclose(component(1003, items).scores(), component.model.predict(3, numbers))
    new = component(ItemList([1, 2, 3]), items).scores()
    assert np.isfinite(new).all()


def test_training_options(ml_ds):
    def theta(rng, **config):
        component = HPFScorer(features=2, count_attribute="rating", maxiter=2, ncores=1, **config)
        component.train(ml_ds, TrainingOptions(rng=rng))
        return component.model.Theta

    np.testing.assert_array_equal(theta(5), theta(5))
    assert (theta(5) != theta(6)).any()
    np.testing.assert_array_equal(theta(5, random_seed=1), theta(6, random_seed=1))
    component = scorer()
    component.train(ml_ds, TrainingOptions())
    model = component.model
    component.train(ml_ds, TrainingOptions(retrain=False))
    assert component.model is model
    assert component.is_trained()
    assert not scorer().is_trained()


def test_unknown_parameter(ml_ds):
    with pytest.raises(TypeError, match="nfactors"):
        scorer(nfactors=3).train(ml_ds, TrainingOptions())


def test_pipeline_and_pickle(ml_ds, trained):
    """Recommendations of a whole evaluation are far better than chance."""
    split = next(iter(crossfold_users(ml_ds, 4, SampleFrac(0.2), rng=1)))
    pipe = topn_pipeline(scorer(), n=10)
    pipe.train(split.train)
    recs = batch.recommend(pickle.loads(pickle.dumps(pipe)), split.test.keys(), n_jobs=1)
    analysis = RunAnalysis()
    analysis.add_metric(NDCG())
    ndcg = analysis.measure(recs, split.test).list_metrics()["NDCG"].mean()
    assert ndcg > 0.1
