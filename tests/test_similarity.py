"""Similar items and users beside the definition, and what they have to find."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from neighbour_models import Y
from scipy import sparse
from small_data import COUNTS, quick

from hpf_gpu import HPF, HPFEnsemble

USERS, ITEMS = COUNTS.UserId.unique(), COUNTS.ItemId.unique()


@pytest.fixture(scope="module")
def model():
    return quick(k=4, init="svd").fit(COUNTS)


def correlations(own, other):
    """The definition, pair by pair."""
    expected = np.array([[one[k] * other[:, k].astype(float).sum() for k in range(len(one))] for one in own])
    roots = np.sqrt(expected / expected.sum(axis=1, keepdims=True))
    centred = roots - roots.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=1))
    return centred @ centred.T / np.outer(lengths, lengths)


def check(frame, name, ids, scores, asked, n):
    """A frame has the ``n`` best of a matrix of scores, best first, and not the id itself."""
    assert list(frame.columns) == [name, "SimilarId", "Score"]
    place = {one: number for number, one in enumerate(ids)}
    assert list(frame[name]) == [one for one in asked for _ in range(n)]
    for one, rows in frame.groupby(name):
        row = np.delete(scores[place[one]], place[one])
        assert one not in set(rows.SimilarId)
        assert rows.SimilarId.is_unique
        assert np.allclose(rows.Score, np.sort(row)[::-1][:n], atol=1e-5)
        assert np.allclose(rows.Score, [scores[place[one], place[it]] for it in rows.SimilarId], atol=1e-5)


def test_similar_items(model):
    scores = correlations(model.Beta, model.Theta)
    check(model.similar_items(ITEMS[[5, 2, 9]], n=7), "ItemId", ITEMS, scores, ITEMS[[5, 2, 9]], 7)
    check(model.similar_items(ITEMS[5]), "ItemId", ITEMS, scores, [ITEMS[5]], 10)
    check(model.similar_items(n=1000), "ItemId", ITEMS, scores, ITEMS, len(ITEMS) - 1)


def test_similar_users(model):
    scores = correlations(model.Theta, model.Beta)
    check(model.similar_users(USERS[[3, 40]], n=2), "UserId", USERS, scores, USERS[[3, 40]], 2)
    check(model.similar_users(n=3), "UserId", USERS, scores, USERS, 3)


def test_they_are_of_the_same_group(model):
    """The data have groups of users and items, by their number modulo three."""
    for found, first in (
        (model.similar_items(n=8), 500),
        (model.similar_users(n=8), 100),
    ):
        alike = (found.iloc[:, 0] - first) % 3 == (found.SimilarId - first) % 3
        assert alike.mean() > 0.95


def test_scales_and_popularity_do_not_matter(model):
    """Neither s in θ_k·s and β_k/s, nor how often an item is had, changes what it is like."""
    want = model.similar_items(n=5)
    scaled = HPF._of(model._settings(), model._fitted)
    s = np.float32([4, 0.25, 8, 1])
    from dataclasses import replace

    popular = np.ones((len(ITEMS), 1), np.float32)
    popular[7] = 64
    scaled._fitted = replace(model._fitted, theta=model.Theta * s, beta=model.Beta / s * popular)
    got = scaled.similar_items(n=5)
    assert np.allclose(got.Score, want.Score, atol=1e-5)
    assert (got.SimilarId == want.SimilarId).mean() > 0.97  # the others are ties


def test_blocks(model, monkeypatch):
    whole = model.similar_items(n=4)
    monkeypatch.setattr("hpf_gpu.answers.similarity._BLOCK", 100)
    pd.testing.assert_frame_equal(model.similar_items(n=4), whole, check_exact=False, atol=1e-6)


def test_unknown_ids(model):
    with pytest.warns(UserWarning, match="item 1 was not in the training data, and left out"):
        got = model.similar_items([1, 505], n=2)
    assert list(got.ItemId) == [505, 505]
    with pytest.raises(ValueError, match="users 1, 2 were not in the training data"):
        model.similar_users([1, 2])
    with pytest.raises(ValueError, match="item 1 was not in the training data"):
        model.similar_items(1)
    with pytest.raises(ValueError, match="n=0"):
        model.similar_items(505, n=0)
    assert len(model.similar_items([])) == 0


def test_models_without_factors():
    alone = HPF(k=0, neighbours=6, maxiter=5, verbose=False).fit(sparse.csr_array(Y))
    for model in (alone, quick(k=1).fit(COUNTS)):
        with pytest.raises(ValueError, match=r"two factors or more.*related_items"):
            model.similar_items()
    with pytest.raises(ValueError, match="has not been fitted"):
        HPF().similar_items(1)


def test_members():
    """The weighted mean of the members that have factors, of which one has users for items."""
    members = [{}, {"random_seed": 9, "k": 5}, {"k": 2, "transposed": True}, {"k": 0, "neighbours": 6}]
    ensemble = HPFEnsemble(
        members, weights=[1.0, 0.5, 2.0, 3.0], k=3, maxiter=10, verbose=False, random_seed=4
    ).fit(COUNTS)  # fmt: skip
    one, other, swapped, _ = ensemble.members_
    of_items = [(one.Beta, one.Theta), (other.Beta, other.Theta), (swapped.Theta, swapped.Beta)]
    items = np.average([correlations(*sides) for sides in of_items], axis=0, weights=[1.0, 0.5, 2.0])
    users = np.average([correlations(*sides[::-1]) for sides in of_items], axis=0, weights=[1.0, 0.5, 2.0])
    check(ensemble.similar_items(ITEMS[[5, 2]], n=7), "ItemId", ITEMS, items, ITEMS[[5, 2]], 7)
    check(ensemble.similar_users(n=2), "UserId", USERS, users, USERS, 2)


def test_tables_are_of_the_library_of_the_ids(model):
    polars = pytest.importorskip("polars", reason="polars is not installed (extra 'test')")
    users, items = polars.Series(USERS[:3]), polars.Series(ITEMS[:3])
    ensemble = HPFEnsemble(2, k=3, maxiter=3, verbose=False, random_seed=1).fit(COUNTS)
    for got, want in (
        (model.similar_items(items), model.similar_items(ITEMS[:3])),
        (model.similar_users(users), model.similar_users(USERS[:3])),
        (ensemble.similar_items(items), ensemble.similar_items(ITEMS[:3])),
        (ensemble.similar_users(users), ensemble.similar_users(USERS[:3])),
        (model.predict_interval(users, items), model.predict_interval(USERS[:3], ITEMS[:3])),
    ):
        assert isinstance(got, polars.DataFrame)
        pd.testing.assert_frame_equal(got.to_pandas(), want)


def test_an_only_item_is_like_no_other():
    model = quick().fit(COUNTS[:1])
    assert model.similar_items().empty
    assert list(model.similar_items(int(COUNTS.ItemId[0]))) == ["ItemId", "SimilarId", "Score"]
