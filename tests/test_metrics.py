"""Ranking metrics against cases worked out by hand and against slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from small_data import COUNTS, quick

from hpf_gpu import HPF, metrics
from hpf_gpu.datasets import load_online_retail, split_by_user
from hpf_gpu.metrics import evaluate_ranking, factor_scores, model_scores, popularity_scores

# -- by hand -------------------------------------------------------------------------------------

HITS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=bool)
N_RELEVANT = np.array([5, 1, 2])


def test_normalized_precision_divides_by_the_possible_hits():
    expected = [2 / 3, 0, 2 / 2]
    np.testing.assert_allclose(metrics.normalized_precision_at_n(HITS, N_RELEVANT), expected)


def test_recall_divides_by_all_held_out_items():
    np.testing.assert_allclose(metrics.recall_at_n(HITS, N_RELEVANT), [2 / 5, 0, 2 / 2])


def test_ndcg_discounts_by_rank():
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    expected = [(1 + third) / (1 + second + third), 0, 1]
    np.testing.assert_allclose(metrics.ndcg_at_n(HITS, N_RELEVANT), expected)


def test_other_measures_of_hits():
    wanted = {
        "precision": [2 / 3, 0, 2 / 3],
        "map": [(1 + 2 / 3) / 3, 0, 1],
        "mrr": [1, 0, 1],
        "hit_rate": [1, 0, 1],
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(metrics.OF_HITS[name](HITS, N_RELEVANT), values, err_msg=name)
    late = np.array([[False, False, True]])
    assert metrics.reciprocal_rank_at_n(late, np.array([9])) == 1 / 3
    assert metrics.average_precision_at_n(late, np.array([9])) == 1 / 9


@pytest.mark.parametrize("metric", metrics.OF_HITS.values(), ids=metrics.OF_HITS)
@pytest.mark.parametrize(
    ("hits", "n_relevant", "message"),
    [
        (HITS, [5, 0, 2], "n_relevant=0 of user 1"),
        (HITS, [5, 1, 1], "n_relevant=1 of user 2"),
        (HITS, [5, 1], r"hits \(3, 3\) and n_relevant \(2,\)"),
        (HITS[0], [5, 1, 2], r"hits \(3,\)"),
    ],
)
def test_lists_that_cannot_be(metric, hits, n_relevant, message):
    with pytest.raises(ValueError, match=message):
        metric(hits, np.array(n_relevant))


# -- whole rankings ------------------------------------------------------------------------------


def random_split(rng, n_users, n_items):
    """Training and held-out items without overlap; some users without either."""
    kind = rng.choice(3, size=(n_users, n_items), p=[0.6, 0.25, 0.15])
    kind[rng.integers(n_users)] = 0
    return sparse.csr_array(kind == 1), sparse.csr_array(kind == 2)


def listed_slowly(row, seen, n):
    """The items of a user's list, in plain Python, from her scores and training items (M,)."""
    unseen = [item for item in range(len(row)) if not seen[item] and row[item] > -math.inf]
    return sorted(unseen, key=lambda item: (-row[item], item))[:n]


#: A user's figures from her list, held-out items and the length that was asked for.
SLOWLY: dict[str, Callable] = {
    "normalized_precision": lambda ranked, wanted, n: sum(wanted[ranked]) / min(n, sum(wanted)),
    "precision": lambda ranked, wanted, n: sum(wanted[ranked]) / n,
    "recall": lambda ranked, wanted, n: sum(wanted[ranked]) / sum(wanted),
    "ndcg": lambda ranked, wanted, n: (
        sum(1 / math.log2(rank + 2) for rank, item in enumerate(ranked) if wanted[item])
        / sum(1 / math.log2(rank + 2) for rank in range(min(n, sum(wanted))))
    ),
    "map": lambda ranked, wanted, n: (
        sum(sum(wanted[ranked[: r + 1]]) / (r + 1) for r, item in enumerate(ranked) if wanted[item])
        / min(n, sum(wanted))
    ),
    "mrr": lambda ranked, wanted, n: next((1 / (r + 1) for r, i in enumerate(ranked) if wanted[i]), 0.0),
    "hit_rate": lambda ranked, wanted, n: float(any(wanted[item] for item in ranked)),
}


@pytest.mark.parametrize("n", [1, 4, 23, 30])
@pytest.mark.parametrize("kind", ["distinct", "tied", "infinite"])
def test_rankings_agree_with_plain_loops(monkeypatch, n, kind):
    """Also where a list is longer than the items that are left to a user, or than the catalogue."""
    rng = np.random.default_rng(n)
    train, held_out = random_split(rng, n_users=37, n_items=23)
    scores = rng.normal(size=train.shape) if kind == "distinct" else rng.integers(0, 4, train.shape)
    if kind == "infinite":
        scores = np.where(rng.random(train.shape) < 0.4, -np.inf, scores)
    before = scores.copy()
    monkeypatch.setattr(metrics, "_BLOCK_SCORES", 5 * 23)  # several blocks, the last one smaller

    lists = metrics.ranked(lambda users: scores[users], train, held_out, n)

    seen, wanted = train.toarray(), held_out.toarray()
    users = [user for user in range(37) if wanted[user].any()]
    assert lists.users.tolist() == users
    ranked = {user: listed_slowly(scores[user], seen[user], n) for user in users}
    assert [row[row >= 0].tolist() for row in lists.items] == list(ranked.values())
    assert set(SLOWLY) == set(metrics.OF_HITS)
    means = {}
    for name, slowly in SLOWLY.items():
        expected = [slowly(ranked[user], wanted[user], n) for user in users]
        got = metrics.OF_HITS[name](lists.hits, lists.n_relevant)
        np.testing.assert_allclose(got, expected, atol=1e-15, err_msg=name)
        means[name] = np.mean(expected)
    np.testing.assert_array_equal(scores, before)
    if n <= 23:
        result = evaluate_ranking(lambda users: scores[users], train, held_out, n)
        expected = [means[name] for name in ("normalized_precision", "recall", "ndcg")]
        np.testing.assert_allclose((result.precision, result.recall, result.ndcg), expected)
        assert (result.n, result.n_users) == (n, len(users))


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_whole_rankings_agree_with_scikit_learn(kind):
    """Of all candidates.  In average precision and NDCG scikit-learn gives equal scores the same rank."""
    from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

    rng = np.random.default_rng(8)
    train, held_out = random_split(rng, 30, 25)
    scores = rng.permutation(750).reshape(30, 25) if kind == "distinct" else rng.integers(0, 5, (30, 25))
    lists = metrics.ranked(lambda users: scores[users], train, held_out, 25, with_auc=True)
    unseen = ~train.toarray()
    average = metrics.average_precision_at_n(lists.hits, lists.n_relevant)
    ndcg = metrics.ndcg_at_n(lists.hits, lists.n_relevant)
    assert len(lists.users) > 25
    for place, user in enumerate(lists.users):
        left = unseen[user]
        truth, score = held_out.toarray()[user][left], scores[user][left]
        if truth.all():
            assert np.isnan(lists.auc[place])
            continue
        assert lists.auc[place] == pytest.approx(roc_auc_score(truth, score))
        if kind == "distinct":
            assert average[place] == pytest.approx(average_precision_score(truth, score))
            assert ndcg[place] == pytest.approx(ndcg_score(truth[None].astype(float), score[None]))


def test_auc_needs_something_to_compare():
    assert np.isnan(metrics.auc(np.array([1.0, 2.0]), np.array([True, True])))
    assert np.isnan(metrics.auc(np.array([1.0, 2.0]), np.array([False, False])))
    assert metrics.auc(np.array([1.0, 1.0, -np.inf]), np.array([True, False, False])) == 0.75


def test_coverage_and_novelty_by_hand():
    items = np.array([[0, 2, -1], [2, 3, 0], [-1, -1, -1]])
    assert metrics.coverage(items, 6) == 3 / 6
    users_with = np.array([8, 5, 4, 0, 1, 1])  # of 8 users: 0, 0.68, 1, 3 (as if one had it), 3, 3 bits
    np.testing.assert_allclose(metrics.novelty(items, users_with, 8), [(0 + 1) / 2, (1 + 3 + 0) / 3, np.nan])


def test_a_score_block_may_hand_out_its_own_array():
    """Nothing is written into what the callable returns."""
    train, held_out = random_split(np.random.default_rng(0), 6, 9)
    scores = np.ones((5, 9))
    with_items = sparse.csr_array(held_out.toarray()[held_out.sum(axis=1) > 0][:5])
    train = sparse.csr_array(train.toarray()[held_out.sum(axis=1) > 0][:5])
    evaluate_ranking(lambda users: scores, train, with_items, n=3)
    assert (scores == 1).all()


def test_a_perfect_ranking_scores_one():
    train, held_out = random_split(np.random.default_rng(1), 20, 30)
    result = evaluate_ranking(lambda users: held_out.toarray()[users], train, held_out, n=30)
    assert (result.precision, result.recall, result.ndcg) == (1, 1, 1)


def test_factor_scores_are_the_product_of_the_factors():
    rng = np.random.default_rng(2)
    theta, beta = rng.random((6, 3)), rng.random((8, 3))
    np.testing.assert_allclose(factor_scores(theta, beta)(np.array([4, 1])), (theta @ beta.T)[[4, 1]])


@pytest.mark.parametrize("extra", [{}, {"neighbours": 4}, {"k": 0, "neighbours": 4}])
def test_model_scores_are_the_expected_counts(extra):
    model = quick(backend="numpy", use_float=False, **extra).fit(COUNTS)
    users = np.array([7, 0, 7, 31])  # not ascending, one of them twice
    expected = [model.predict(user, model.item_mapping_) for user in model.user_mapping_[users]]
    scores = model_scores(model)(users)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)  # sums of at most 3 + 4 terms in float64
    of_factors = model.Theta[users] @ model.Beta.T
    assert np.allclose(scores, of_factors) == ("neighbours" not in extra)


def test_a_model_without_a_fit_has_no_scores():
    with pytest.raises(ValueError, match="has not been fitted"):
        model_scores(HPF())


def test_popularity_counts_users_and_not_their_counts():
    train = sparse.csr_array([[9, 1, 0], [0, 1, 0], [0, 2, 1]])
    np.testing.assert_array_equal(popularity_scores(train)(np.array([0, 2])), [[1, 3, 1]] * 2)


def test_popularity_of_a_frame_is_in_the_order_of_a_fit():
    model = quick(maxiter=1).fit(COUNTS)
    n_users = COUNTS.groupby("ItemId").size()[model.item_mapping_]
    np.testing.assert_array_equal(popularity_scores(COUNTS)(np.arange(2)), [n_users, n_users])


def test_explicit_zeros_are_no_items():
    train = sparse.csr_array((np.array([0.0, 1.0]), (np.array([0, 0]), np.array([0, 1]))), shape=(1, 3))
    held_out = sparse.csr_array([[1, 0, 0]])
    assert evaluate_ranking(lambda users: np.array([[3.0, 2.0, 1.0]]), train, held_out, n=1).recall == 1
    # Nor are they among those that are looked for, and who has no others is not counted.
    entries = (np.array([1.0, 0.0, 0.0]), (np.array([0, 0, 1]), np.array([0, 2, 1])))
    with_zeros = sparse.csr_array(entries, shape=(2, 3))
    nothing = sparse.csr_array((2, 3))
    found = evaluate_ranking(lambda users: np.array([[3.0, 2.0, 1.0]] * len(users)), nothing, with_zeros, n=1)
    assert (found.recall, found.n_users) == (1, 1)


TRAIN, HELD_OUT = sparse.csr_array([[1, 0, 0], [0, 1, 0]]), sparse.csr_array([[0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n=0 must lie between 1 and the number of items, 3"),
        ({"n": 4}, "n=4"),
        ({"held_out": TRAIN}, "2 entries are both in train and held_out"),
        ({"held_out": sparse.csr_array((2, 3))}, "held_out is empty"),
        ({"held_out": sparse.csr_array((2, 4))}, r"train \(2, 3\) and held_out \(2, 4\)"),
        ({"scores": lambda users: np.ones((2, 2))}, r"scores have shape \(2, 2\), not .* \(2, 3\)"),
        ({"scores": lambda users: np.array([[1, 1, 1], [1, np.nan, 1]])}, "score of user 1 is nan"),
    ],
)
def test_what_cannot_be_ranked(change, message):
    given = {"scores": lambda users: np.ones((2, 3)), "train": TRAIN, "held_out": HELD_OUT, "n": 1} | change
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(**given)


def test_dense_matrices_are_refused():
    with pytest.raises(TypeError, match="sparse matrix, not ndarray"):
        evaluate_ranking(lambda users: np.ones((2, 3)), TRAIN.toarray(), HELD_OUT, 1)


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"theta \(2, 3\) and beta \(4, 2\)"):
        factor_scores(np.ones((2, 3)), np.ones((4, 2)))


# -- the data that rankings are measured on --------------------------------------------------------


def test_online_retail_is_complete():
    retail = load_online_retail()
    purchases = retail.purchases
    assert list(purchases.columns) == ["UserId", "ItemId", "Count", "Orders"]
    assert (len(purchases), purchases["UserId"].nunique()) == (264_673, 4_323)
    assert not purchases.duplicated(["UserId", "ItemId"]).any()
    assert set(purchases["ItemId"]) == set(retail.product_names.index)
    assert (purchases[["Count", "Orders"]] >= 1).all(axis=None)
    assert retail.product_names["22423"] == "REGENCY CAKESTAND 3 TIER"


def test_split_takes_its_share_of_every_user():
    sizes = np.arange(1, 31)
    counts = pd.DataFrame({"UserId": np.repeat(sizes, sizes), "Count": 1}).sample(frac=1, random_state=0)
    train, held_out = split_by_user(counts, fraction=0.2, min_items=10, seed=5)
    pd.testing.assert_frame_equal(pd.concat([train, held_out]).sort_index(), counts.sort_index())
    taken = held_out.groupby("UserId").size().reindex(sizes, fill_value=0)
    np.testing.assert_array_equal(taken, np.where(sizes >= 10, np.round(0.2 * sizes), 0))


def test_split_follows_the_seed():
    counts = pd.DataFrame({"UserId": np.repeat(np.arange(20), 20), "Count": 1})
    first, again, other = (split_by_user(counts, seed=seed)[1].index for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


@pytest.mark.parametrize(("name", "value"), [("fraction", 0), ("fraction", 1.0), ("min_items", 0)])
def test_split_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        split_by_user(pd.DataFrame({"UserId": [1]}), **{name: value})


def test_users_with_just_enough_items_give_some():
    counts = pd.DataFrame({"UserId": np.repeat([1, 2], [9, 10]), "Count": 1}, index=np.arange(19)[::-1] * 2)
    before = counts.copy()
    train, held_out = split_by_user(counts)  # a fifth of those with ten items or more
    assert held_out.UserId.tolist() == [2, 2]
    assert sorted([*train.index, *held_out.index]) == sorted(counts.index)
    pd.testing.assert_frame_equal(counts, before)
    assert len(split_by_user(counts[9:], fraction=0.27)[1]) == 3  # 2.7, rounded
    assert len(split_by_user(counts[9:], fraction=0.24)[1]) == 2
    assert len(split_by_user(counts[9:], fraction=0.01)[1]) == 0
    assert len(split_by_user(counts[:1], fraction=0.5, min_items=1)[1]) == 0  # half a row, to the even


def test_scores_keep_their_precision():
    """Scores that float32 would make equal are told apart, and integers are scores."""
    held_out = sparse.csr_array([[0, 0, 1.0]])
    train = sparse.csr_array((1, 3))
    close = np.array([[1.0, 0.0, 1.0 + 1e-12]])
    assert evaluate_ranking(lambda users: close[users], train, held_out, 1).recall == 1
    assert evaluate_ranking(lambda users: np.array([[1, 0, 2]])[users], train, held_out, 1).recall == 1
    assert evaluate_ranking(lambda users: np.array([[5, 5, 5]])[users], train, held_out, 1).recall == 0
    whole = evaluate_ranking(lambda users: np.array([[1, 2, 3]])[users], train, held_out, 3)
    assert (whole.n, whole.n_users, whole.precision, whole.recall) == (3, 1, 1.0, 1.0)
    with pytest.raises(TypeError):
        evaluate_ranking(lambda users: close[users], train, held_out, 1.5)


def test_more_items_than_are_ranked_at_once(monkeypatch):
    monkeypatch.setattr("hpf_gpu.metrics._BLOCK_SCORES", 2)
    held_out = sparse.csr_array(np.eye(4))
    scores = np.eye(4)[::-1]
    got = evaluate_ranking(lambda users: scores[users], sparse.csr_array((4, 4)), held_out, 1)
    assert (got.n_users, got.recall) == (4, 0.0)
    got = evaluate_ranking(lambda users: scores[::-1][users], sparse.csr_array((4, 4)), held_out, 1)
    assert (got.n_users, got.recall) == (4, 1.0)


def test_entries_below_zero_are_no_items():
    held_out, train = sparse.csr_array([[0, -1.0, 1.0]]), sparse.csr_array([[-2.0, 0, 0]])
    got = evaluate_ranking(lambda users: np.array([[3.0, 2.0, 1.0]])[users], train, held_out, 2)
    assert (got.n_users, got.recall) == (1, 0.0)
    np.testing.assert_array_equal(popularity_scores(train)(np.arange(1)), [[0, 0, 0]])


def test_one_vector_is_no_factors():
    with pytest.raises(ValueError, match=r"theta \(3,\) and beta \(2, 3\) must have the shapes"):
        factor_scores(np.ones(3), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"theta \(2, 3\) and beta \(4, 3, 1\) must have the shapes"):
        factor_scores(np.ones((2, 3)), np.ones((4, 3, 1)))
