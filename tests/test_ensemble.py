"""HPFEnsemble beside its members, whose answers are combined by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from small_data import COUNTS, quick

from hpf_gpu import HPF, HPFEnsemble, ModelFileError
from hpf_gpu.answers.uncertainty import Mixture
from hpf_gpu.files.ensemble_file import ENSEMBLE
from hpf_gpu.fitting import training
from hpf_gpu.metrics import model_scores

GIVEN = {"k": 3, "maxiter": 10, "verbose": False, "random_seed": 4}
USERS, ITEMS = COUNTS.UserId.unique(), COUNTS.ItemId.unique()
SWAPPED = COUNTS.rename(columns={"UserId": "ItemId", "ItemId": "UserId"})
#: Two kinds of neighbours beside factors with two seeds and with another prior.
MIXED = [
    {},
    {"random_seed": 9},
    {"a": 0.5, "counts": "log1p"},
    {"k": 0, "neighbours": 6},
    {"k": 2, "neighbours": 6, "transposed": True},
]
WEIGHTS = [1.0, 0.5, 0.25, 2.0, 1.5]


@pytest.fixture(scope="module")
def mixed() -> HPFEnsemble:
    return HPFEnsemble(MIXED, weights=WEIGHTS, **GIVEN).fit(COUNTS)


def members_rates(ensemble: HPFEnsemble) -> np.ndarray:
    """Expected counts of each member, (R, N, M), from the answers of the members."""
    users, items = np.meshgrid(USERS, ITEMS, indexing="ij")
    rates = []
    for number, model in enumerate(ensemble.members_):
        transposed = isinstance(ensemble.members, list) and ensemble.members[number].get("transposed")
        pair = (items.ravel(), users.ravel()) if transposed else (users.ravel(), items.ravel())
        rates.append(model.predict(*pair).reshape(users.shape))
    return np.array(rates, dtype=np.float64)


def combined(rates: np.ndarray, combine: str, weights: list[float]) -> np.ndarray:
    if combine == "mean":
        return np.average(rates, axis=0, weights=weights)
    return np.exp(np.average(np.log(rates), axis=0, weights=weights))


#: Relative; float32 rounds rates, their logarithms (up to 10 in magnitude) and sums of five to 1e-6.
ROUNDING = 1e-5


# -- fits ------------------------------------------------------------------------------------------


def test_members_are_the_models_that_HPF_fits(mixed: HPFEnsemble) -> None:
    for number, (own, model) in enumerate(zip(MIXED, mixed.members_, strict=True)):
        parameters = {**GIVEN, "random_seed": 4 + number} | own
        transposed = parameters.pop("transposed", False)
        alone = HPF(**parameters).fit(SWAPPED if transposed else COUNTS)
        assert model.get_params() == alone.get_params()
        assert model.random_seed_ == alone.random_seed_ == parameters["random_seed"]
        if transposed:  # rows in the order of the users' and items' first appearance
            assert list(model.item_mapping_) == list(mixed.members_[0].user_mapping_)
        want, got = alone.predict(*PAIRS[transposed]), model.predict(*PAIRS[transposed])
        # The order of the items of a user, and with it that of sums, depends on the numbers of the items.
        np.testing.assert_allclose(got, want, rtol=1e-4 if transposed else 1e-6)


PAIRS = {False: (USERS[:20], ITEMS[:20]), True: (ITEMS[:20], USERS[:20])}


def test_seeds_follow_one_another() -> None:
    ensemble = HPFEnsemble(3, **GIVEN).fit(COUNTS)
    assert [model.random_seed_ for model in ensemble.members_] == [4, 5, 6]
    fresh = HPFEnsemble(3, **GIVEN | {"random_seed": None}).fit(COUNTS)
    assert len({model.random_seed_ for model in fresh.members_}) == 3


def test_counts_are_read_once_for_members_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = training._read
    monkeypatch.setattr(training, "_read", lambda *given: reads.append(1) or read(*given))
    HPFEnsemble([{}, {"k": 2}, {}, {"random_seed": 1}, {"k": 2}], **GIVEN).fit(COUNTS)
    assert len(reads) == 2


@pytest.mark.parametrize("stochastic", [{}, {"users_per_batch": 20}], ids=["full batch", "stochastic"])
def test_held_out_counts_of_a_transposed_member(stochastic: dict[str, int]) -> None:
    held_out = COUNTS.sample(frac=0.2, random_state=1)
    given = GIVEN | {"check_every": 2} | stochastic
    ensemble = HPFEnsemble([{}, {"transposed": True}], **given).fit(COUNTS, held_out)
    swapped = held_out.rename(columns={"UserId": "ItemId", "ItemId": "UserId"})
    for number, model in enumerate(ensemble.members_):
        last = model.history_.val_llk.iloc[-1]
        assert last == pytest.approx(model.eval_llk(swapped if number else held_out)["llk"], rel=1e-5)


def test_input_is_not_modified() -> None:
    frame = COUNTS.copy()
    matrix = sparse.csr_array((COUNTS.Count, (COUNTS.UserId - 100, COUNTS.ItemId - 500)))
    before = matrix.copy()
    for data in (frame, matrix):
        HPFEnsemble(MIXED, **GIVEN).fit(data).recommend(counts=data)
    assert frame.equals(COUNTS)
    assert (matrix != before).nnz == 0


def test_what_a_callback_is_told() -> None:
    told: list[tuple[int, int]] = []

    def callback(member: int, check: object) -> bool:
        told.append((member, check.iteration))
        return member == 1 and check.iteration == 2

    HPFEnsemble([{}, {}, {"k": 2}], **GIVEN | {"maxiter": 3}).fit(COUNTS, callback=callback)
    assert told == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_fit_keeps_the_previous_one(error: type[BaseException]) -> None:
    ensemble = HPFEnsemble(2, **GIVEN).fit(COUNTS)
    before = ensemble.predict(USERS, ITEMS[0])

    def interrupt(member: int, check: object) -> None:
        if member == 1 and check.iteration == 3:
            raise error

    ensemble.parameters["k"] = 2
    with pytest.raises(error):
        ensemble.fit(COUNTS, callback=interrupt)
    np.testing.assert_array_equal(ensemble.predict(USERS, ITEMS[0]), before)


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["log-mean", "mean"])
def test_expected_counts(combine: str) -> None:
    ensemble = HPFEnsemble(MIXED, combine, WEIGHTS, **GIVEN).fit(COUNTS)
    want = combined(members_rates(ensemble), combine, WEIGHTS)
    users, items = np.meshgrid(USERS, ITEMS, indexing="ij")
    got = ensemble.predict(users.ravel(), items.ravel()).reshape(users.shape)
    np.testing.assert_allclose(got, want, rtol=ROUNDING)
    np.testing.assert_allclose(ensemble.predict(USERS[3], ITEMS), want[3], rtol=ROUNDING)
    assert ensemble.predict(USERS[3], ITEMS[2]) == pytest.approx(want[3, 2], rel=ROUNDING)
    assert np.isnan(ensemble.predict([USERS[0], -1, USERS[0]], [ITEMS[0], ITEMS[0], -1])).tolist() == [
        False, True, True,
    ]  # fmt: skip


def best_by_hand(scores: np.ndarray, n: int) -> np.ndarray:
    """Columns of the largest scores, (B, n)."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :n]


@pytest.mark.parametrize("discount", [0.0, 0.4])
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("pool", [None, ITEMS[5:17]], ids=["all", "pool"])
def test_lists(
    mixed: HPFEnsemble,
    monkeypatch: pytest.MonkeyPatch,
    discount: float,
    exclude_seen: bool,
    pool: np.ndarray | None,
) -> None:
    monkeypatch.setattr("hpf_gpu.answers.ensembles._BLOCK", 7 * len(ITEMS))  # seven users at once
    scores = combined(members_rates(mixed), "log-mean", WEIGHTS)
    scores /= COUNTS.groupby("ItemId").UserId.nunique().loc[ITEMS].to_numpy() ** discount
    if exclude_seen:
        row, column = pd.Index(USERS).get_indexer(COUNTS.UserId), pd.Index(ITEMS).get_indexer(COUNTS.ItemId)
        scores[row, column] = -np.inf
    if pool is not None:
        scores[:, ~np.isin(ITEMS, pool)] = -np.inf
    best = best_by_hand(scores, 6)
    table = mixed.recommend(USERS, 6, exclude_seen=exclude_seen, items=pool, discount=discount)
    want = np.take_along_axis(scores, best, axis=1)
    left = want > -np.inf
    assert table.UserId.tolist() == np.repeat(USERS, left.sum(axis=1)).tolist()
    np.testing.assert_allclose(table.Score, want[left], rtol=ROUNDING)
    # Scores that agree to rounding may change places; how many differ, and by how little, is seen above.
    assert (table.ItemId.to_numpy() == ITEMS[best][left]).mean() > 0.95
    if discount == 0.0:
        lists = mixed.topN(USERS, 6, exclude_seen=exclude_seen, items_pool=pool)
        listed = [item for one in lists for item in one if item is not None]
        assert listed == table.ItemId.tolist()
        alone = mixed.topN(USERS[2], 6, exclude_seen=exclude_seen, items_pool=pool)
        assert list(alone) == table.ItemId[table.UserId == USERS[2]].tolist()


def test_other_weights_for_the_same_members(mixed: HPFEnsemble) -> None:
    weights = [0.0, 1.0, 0.0, 2.0, 0.0]
    before = mixed.predict(USERS, ITEMS[0])
    other = mixed.with_weights(weights)
    want = combined(members_rates(mixed), "log-mean", weights)
    np.testing.assert_allclose(other.predict(USERS, ITEMS[0]), want[:, 0], rtol=ROUNDING)
    assert other.members_ == mixed.members_
    np.testing.assert_array_equal(mixed.predict(USERS, ITEMS[0]), before)
    np.testing.assert_array_equal(other.with_weights(WEIGHTS).predict(USERS, ITEMS[0]), before)
    with pytest.raises(ValueError, match="there are 2 weights for 5 members"):
        mixed.with_weights([1, 2])


def test_scores_for_an_evaluation(mixed: HPFEnsemble) -> None:
    want = combined(members_rates(mixed), "log-mean", WEIGHTS)
    want /= COUNTS.groupby("ItemId").UserId.nunique().loc[ITEMS].to_numpy() ** 0.3
    rows = np.array([5, 0, 17])
    np.testing.assert_allclose(model_scores(mixed, 0.3)(rows), want[rows], rtol=ROUNDING)


@pytest.mark.parametrize("discount", [0.0, 0.4])
def test_lists_of_new_users(mixed: HPFEnsemble, discount: float) -> None:
    """By the members that know something of them; the transposed one does not."""
    new = COUNTS[COUNTS.UserId < 110].assign(UserId=lambda frame: frame.UserId + 1000)
    rates = []
    for model in mixed.members_[:4]:
        table = model.recommend(counts=new, n=len(ITEMS), exclude_seen=False)
        rates.append(table.pivot(index="UserId", columns="ItemId", values="Score").loc[:, ITEMS].to_numpy())
    scores = combined(np.array(rates, np.float64), "log-mean", WEIGHTS[:4])
    scores /= COUNTS.groupby("ItemId").UserId.nunique().loc[ITEMS].to_numpy() ** discount
    table = mixed.recommend(counts=new, n=5, exclude_seen=False, discount=discount)
    want = np.take_along_axis(scores, best_by_hand(scores, 5), axis=1)
    np.testing.assert_allclose(table.Score, want.ravel(), rtol=ROUNDING)
    unseen = mixed.recommend(counts=new, n=5, discount=discount)
    both = unseen.merge(new, on=["UserId", "ItemId"])
    assert len(unseen) == 5 * new.UserId.nunique()
    assert len(both) == 0


def test_a_likelihood_and_a_spread() -> None:
    ensemble = HPFEnsemble([{}, {}, {"k": 0, "neighbours": 5}], weights=[1, 2, 3], **GIVEN).fit(COUNTS)
    rates = members_rates(ensemble)
    rows, columns = pd.Index(USERS).get_indexer(COUNTS.UserId), pd.Index(ITEMS).get_indexer(COUNTS.ItemId)
    at = combined(rates, "log-mean", [1, 2, 3])[rows, columns]
    found = ensemble.eval_llk(COUNTS)
    assert found["nobs"] == len(COUNTS)
    assert found["llk"] == pytest.approx((COUNTS.Count * np.log(at) - at).sum(), rel=ROUNDING)
    of_pairs = rates[:, rows, columns]
    variance = np.average(
        (of_pairs - np.average(of_pairs, axis=0, weights=[1, 2, 3])) ** 2, axis=0, weights=[1, 2, 3]
    )
    np.testing.assert_allclose(
        ensemble.spread(COUNTS.UserId, COUNTS.ItemId), np.sqrt(variance), rtol=1e-3, atol=1e-6
    )
    alike = HPFEnsemble([{"random_seed": 1}] * 3, **GIVEN).fit(COUNTS)
    assert ensemble.spread(USERS, ITEMS[0]).min() > 0
    assert alike.spread(USERS, ITEMS[0]).max() <= 1e-6 * alike.predict(USERS, ITEMS[0]).max()


@pytest.fixture(scope="module")
def raw() -> HPFEnsemble:
    """Members of the same counts, of which one is transposed and one has no weight."""
    members = [{}, {"random_seed": 9, "a": 0.5}, {"k": 0, "neighbours": 6}, MIXED[4], {}]
    return HPFEnsemble(members, weights=[1, 2, 3, 4, 0], **GIVEN).fit(COUNTS)


def members_intervals(ensemble: HPFEnsemble, users: np.ndarray, items: np.ndarray) -> list[pd.DataFrame]:
    return [
        model.predict_interval(*((items, users) if number == 3 else (users, items)))
        for number, model in enumerate(ensemble.members_)
    ]


def test_intervals_are_those_of_the_mixture(raw: HPFEnsemble) -> None:
    """A rate is that of one member, drawn by weight; moments and quantiles are those of such rates."""
    weights = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    users, items = (grid.ravel() for grid in np.meshgrid(USERS, ITEMS))
    parts = members_intervals(raw, users, items)
    means, stds = (np.array([one[name] for one in parts]) for name in ("Mean", "Std"))
    shapes = (means / stds) ** 2
    mean = weights @ means
    got, of_counts = (raw.predict_interval(users, items, 0.8, of=of) for of in ("rate", "count"))
    np.testing.assert_allclose(got.Mean, mean, rtol=1e-12)
    np.testing.assert_allclose(got.Std**2, weights @ (stds**2 + means**2) - mean**2, rtol=1e-9)
    np.testing.assert_allclose(of_counts.Std**2, got.Std**2 + mean, rtol=1e-12)
    for bound, p in (("Lower", 0.1), ("Upper", 0.9)):
        below = weights @ stats.gamma.cdf(got[bound].to_numpy(), shapes, scale=means / shapes)
        np.testing.assert_allclose(below, p, rtol=1e-6)
        counts = stats.nbinom(shapes, shapes / (shapes + means))
        y = of_counts[bound].to_numpy()
        assert (weights @ counts.cdf(y) >= p).all()
        assert (weights @ counts.cdf(y - 1) < p).all()
    alone = raw.with_weights([0, 1, 0, 0, 0]).predict_interval(users, items, 0.9)
    pd.testing.assert_frame_equal(alone, parts[1], rtol=1e-7)  # quantiles of many are interpolated to 8e-8


def test_probabilities_are_means_of_the_members(mixed: HPFEnsemble) -> None:
    """Also of members that differ in ``counts``: that there is a count is the same event."""
    users, items = USERS[:30], ITEMS[:30]
    pairs = [(users, items)] * 4 + [(items, users)]
    each = [model.predict_proba(*pair) for model, pair in zip(mixed.members_, pairs, strict=True)]
    want = np.average(each, axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(mixed.predict_proba(users, items), want, rtol=1e-12)
    assert mixed.predict_proba(users[0], items[0]) == pytest.approx(want[0], rel=1e-12)
    assert np.isnan(mixed.predict_proba(-1, items[0]))


def test_draws_are_each_of_one_member(raw: HPFEnsemble) -> None:
    users, items = np.append(USERS[:6], -1), ITEMS[:7]
    draws = raw.sample_rates(users, items, 3_000, random_state=2)
    known = raw.predict_interval(users[:6], items[:6])
    assert np.isnan(draws[:, 6]).all()
    assert draws.shape == (3_000, 7)
    error = known.Std.to_numpy() / np.sqrt(3_000)
    assert (np.abs(draws[:, :6].mean(axis=0) - known.Mean) < 4 * error).all()
    below = (draws[:, :6] < known.Upper.to_numpy()).mean(axis=0)
    # Quantiles of a rate are approximate; chance has a standard deviation of 0.004, and 0.005 was measured.
    assert np.abs(below - 0.95).max() < 0.02
    again = raw.sample_rates(users, items, 3_000, random_state=2)
    np.testing.assert_array_equal(draws, again)


# -- lists by bounds -------------------------------------------------------------------------------


def best_by_bounds(
    ensemble: HPFEnsemble, users: np.ndarray, n: int, bound: str, level: float, exclude: bool, discount: float
) -> pd.DataFrame:
    """Lists from the intervals of all pairs."""
    n_users = COUNTS.groupby("ItemId").UserId.nunique()
    had = COUNTS.groupby("UserId").ItemId.agg(set)
    lists = []
    for user in users:
        frame = ensemble.predict_interval(user, ITEMS, level)
        frame["Score"] = frame[bound.title()] / frame.ItemId.map(n_users) ** discount
        if exclude:
            frame = frame[~frame.ItemId.isin(had[user])]
        lists.append(frame.sort_values("Score", ascending=False, kind="stable").head(n))
    return pd.concat(lists)[["UserId", "ItemId", "Score"]]


def same_lists(got: pd.DataFrame, want: pd.DataFrame) -> None:
    """The same but for the order of equal scores."""
    assert list(got.UserId) == list(want.UserId)
    np.testing.assert_allclose(got.Score, want.Score, rtol=1e-6)
    apart = np.abs(np.diff(want.Score, prepend=np.inf, append=-np.inf)) > 1e-6 * want.Score.max()
    sure = apart[:-1] & apart[1:]
    assert (got.ItemId.to_numpy() == want.ItemId.to_numpy())[sure].all()
    assert sure.sum() > len(sure) // 2


@pytest.mark.parametrize("bound", ["lower", "upper"])
@pytest.mark.parametrize(("exclude", "discount"), [(True, 0.0), (False, 0.5)])
def test_lists_by_bounds(raw: HPFEnsemble, bound: str, exclude: bool, discount: float) -> None:
    users = USERS[[7, 0, 21]]
    want = best_by_bounds(raw, users, 6, bound, 0.8, exclude, discount)
    got = raw.recommend(users, n=6, exclude_seen=exclude, discount=discount, rank_by=bound, level=0.8)
    same_lists(got, want)
    alone = raw.with_weights([0, 1, 0, 0, 0])
    given = {"n": 6, "exclude_seen": exclude, "discount": discount, "rank_by": bound}
    same_lists(alone.recommend(users, **given), raw.members_[1].recommend(users, **given))


def test_lists_by_bounds_of_all_users_and_of_some_items(
    raw: HPFEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of few users, and however few items are left."""
    whole = raw.recommend(n=len(ITEMS), rank_by="lower")
    same_lists(whole, best_by_bounds(raw, USERS, len(ITEMS), "lower", 0.9, True, 0.0))
    monkeypatch.setattr("hpf_gpu.answers.uncertainty._BLOCK", 150)
    best = whole.groupby("UserId", sort=False)
    same_lists(raw.recommend(n=4, rank_by="lower"), best.head(4))
    pool = ITEMS[::-3]
    got = raw.recommend(n=4, items=pool, rank_by="lower")
    same_lists(got, whole[whole.ItemId.isin(pool)].groupby("UserId", sort=False).head(4))


def test_lists_by_bounds_of_new_users() -> None:
    """As of users who were added; transposed members have no part in them."""
    ensemble = HPFEnsemble([{}, {"a": 0.5}, {"k": 0, "neighbours": 6}], weights=[1, 2, 3], **GIVEN).fit(
        COUNTS
    )
    new = COUNTS[COUNTS.UserId.isin(USERS[:4])].assign(UserId=lambda frame: frame.UserId + 1_000_000)
    given = {"n": 5, "rank_by": "upper", "level": 0.5}
    lists = ensemble.recommend(counts=new, **given)
    longer = copy.deepcopy(ensemble)
    longer.add_users(new)
    same_lists(lists, longer.recommend(new.UserId.unique(), **given))
    more = HPFEnsemble([*ensemble.members, MIXED[4]], weights=[1, 2, 3, 4], **GIVEN).fit(COUNTS)
    same_lists(more.recommend(counts=new, **given), lists)


def test_quantiles_of_a_mixture_are_searched_for_where_a_list_may_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble, searched = HPFEnsemble(4, **GIVEN).fit(COUNTS), []
    original = Mixture.quantiles

    def watched(self: Mixture, p: float) -> np.ndarray:
        searched.append(self.mean.size)
        return original(self, p)

    monkeypatch.setattr(Mixture, "quantiles", watched)
    ensemble.recommend(n=2, rank_by="lower")
    assert len(USERS) * 2 <= sum(searched) < 0.75 * len(USERS) * len(ITEMS)  # 0.48 measured


def test_what_has_no_interval(mixed: HPFEnsemble) -> None:
    pair = USERS[0], ITEMS[0]
    for ask in (mixed.predict_interval, mixed.sample_rates, lambda *_: mixed.recommend(rank_by="upper")):
        with pytest.raises(ValueError, match="members with counts='log1p' and 'raw' has no meaning"):
            ask(*pair)
    ones = HPFEnsemble(2, counts="binary", **GIVEN).fit(COUNTS)
    assert ones.predict_interval(*pair).shape == (1, 6)
    with pytest.raises(ValueError, match="counts='binary', which its intervals of counts would be of"):
        ones.predict_interval(*pair, of="count")
    lean = HPFEnsemble(2, keep_all_objs=False, **GIVEN).fit(COUNTS)
    with pytest.raises(ValueError, match="keep_all_objs=True"):
        lean.predict_interval(*pair)
    with pytest.raises(ValueError, match="keep_all_objs=True"):
        lean.recommend(USERS[0], rank_by="lower")
    with pytest.raises(ValueError, match="rank_by='median' is unknown"):
        lean.recommend(USERS[0], rank_by="median")


def test_what_members_answer_alone(mixed: HPFEnsemble) -> None:
    with pytest.raises(AttributeError, match=r"HPFEnsemble has no 'Theta'.* members_\[0\].Theta"):
        _ = mixed.Theta
    with pytest.raises(AttributeError, match=r"'explain'.* members_\[0\].explain"):
        mixed.explain(USERS[0], ITEMS[0])
    with pytest.raises(AttributeError, match=r"HPFEnsemble has no 'thing'$"):
        _ = mixed.thing
    assert not hasattr(mixed, "sample_posterior")


# -- growth ----------------------------------------------------------------------------------------


def grown_alone(ensemble: HPFEnsemble, grow: Callable[[HPF], object]) -> list[HPF]:
    models = copy.deepcopy(ensemble.members_)
    for model in models:
        grow(model)
    return list(models)


def assert_same_models(ensemble: HPFEnsemble, models: list[HPF]) -> None:
    for got, want in zip(ensemble.members_, models, strict=True):
        for name in ("Theta", "Beta", "seen", "user_mapping_", "Gamma_shp"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)


def growing() -> HPFEnsemble:
    return HPFEnsemble([{}, {}, {"k": 2, "counts": "log1p"}, {"neighbours": 4}], **GIVEN).fit(COUNTS)


NEW = COUNTS[COUNTS.UserId < 104].assign(UserId=lambda frame: frame.UserId + 1000)


def test_new_users_are_added_to_every_member() -> None:
    ensemble = growing()
    other = ensemble.with_weights([1, 1, 1, 1])
    models = grown_alone(ensemble, lambda model: model.add_users(NEW))
    want = ensemble.recommend(counts=NEW, n=4)
    assert ensemble.add_users(NEW) is ensemble
    assert_same_models(ensemble, models)
    assert ensemble.nusers == len(USERS) + 4
    got = ensemble.recommend(NEW.UserId.unique(), 4)
    assert got.ItemId.tolist() == want.ItemId.tolist()
    np.testing.assert_allclose(got.Score, want.Score, rtol=ROUNDING)
    assert ensemble.add_user(1999, NEW[:5].drop(columns="UserId"))
    assert_same_models(ensemble, [_ for _ in models if _.add_user(1999, NEW[:5].drop(columns="UserId"))])
    ensemble.add_users(NEW[:9], update_existing=True)
    assert_same_models(ensemble, [_.add_users(NEW[:9], update_existing=True) for _ in models])
    assert other.nusers == len(USERS)  # it shared the members, and keeps those that it had
    kept = [model._require_fitted() for model in ensemble.members_]
    assert len({id(fitted.seen) for fitted in kept}) == 1  # not one copy for each member
    assert len({id(fitted.user_ids) for fitted in kept}) == 1


def test_a_batch_moves_every_member() -> None:
    ensemble = growing()
    models = grown_alone(ensemble, lambda model: model.partial_fit(NEW, new_users=True))
    assert ensemble.partial_fit(NEW, new_users=True) is ensemble
    assert_same_models(ensemble, models)
    fresh = HPFEnsemble(2, **GIVEN).partial_fit(COUNTS, nusers=90, nitems=40)
    want = HPF(**GIVEN | {"random_seed": 5}).partial_fit(COUNTS, nusers=90, nitems=40)
    np.testing.assert_array_equal(fresh.members_[1].Beta, want.Beta)


def test_growth_that_fails_changes_no_member(mixed: HPFEnsemble) -> None:
    for grow in (
        lambda: mixed.add_users(NEW),
        lambda: mixed.add_user(7, NEW[["ItemId", "Count"]]),
        lambda: mixed.partial_fit(NEW, new_users=True),
    ):
        with pytest.raises(ValueError, match="member 4 is transposed"):
            grow()
    ensemble = HPFEnsemble([{}, {"keep_all_objs": False}], **GIVEN).fit(COUNTS)
    with pytest.raises(ValueError, match="keep_all_objs=True"):
        ensemble.add_users(NEW)
    assert ensemble.nusers == len(ensemble.members_[0].Theta) == len(USERS)
    with pytest.raises(ValueError, match="users 100, 101, 102 and 57 more are in the model already"):
        growing().add_users(COUNTS)


def test_parameters_can_be_set() -> None:
    ensemble = HPFEnsemble(2, **GIVEN)
    assert ensemble.set_params(k=4, weights=[1, 2]) is ensemble
    assert ensemble.get_params() == {"members": 2, "combine": "log-mean", "weights": [1, 2]} | GIVEN | {
        "k": 4
    }
    with pytest.raises(ValueError, match="there are 2 weights for 3 members"):
        ensemble.set_params(members=3)
    assert ensemble.members == 2


def test_factors_of_new_users(mixed: HPFEnsemble) -> None:
    new = COUNTS[COUNTS.UserId < 105]
    factors = mixed.transform(new)
    assert factors.columns.names == ["member", "factor"]
    assert list(factors.columns.unique("member")) == [0, 1, 2, 3]
    for number in range(4):
        assert factors[number].equals(mixed.members_[number].transform(new))


# -- files -----------------------------------------------------------------------------------------


def test_a_file_has_everything(mixed: HPFEnsemble, tmp_path) -> None:
    mixed.save(tmp_path / "ensemble")
    loaded = HPFEnsemble.load(tmp_path / "ensemble")
    assert loaded.recommend(USERS, discount=0.2).equals(mixed.recommend(USERS, discount=0.2))
    assert loaded.recommend(counts=COUNTS[:30]).equals(mixed.recommend(counts=COUNTS[:30]))
    assert (loaded.nusers, loaded.nitems) == (len(USERS), len(ITEMS))
    assert [model.get_params() for model in loaded.members_] == [m.get_params() for m in mixed.members_]
    with pytest.raises(ValueError, match="user -7 was not in the training data"):
        loaded.topN(-7)
    loaded.fit(COUNTS)  # with the same seeds
    np.testing.assert_array_equal(loaded.predict(USERS, ITEMS[0]), mixed.predict(USERS, ITEMS[0]))


def test_ids_and_items_are_written_once(tmp_path) -> None:
    HPFEnsemble([{}, {}, {"transposed": True}], **GIVEN).fit(COUNTS).save(tmp_path / "ensemble")
    _, tensors = ENSEMBLE.read(tmp_path / "ensemble")
    for name in ("user.ids", "item.ids", "seen.indptr", "seen.indices"):
        assert f"0.{name}" in tensors
        assert f"1.{name}" not in tensors
        assert f"2.{name}" in tensors


def test_other_files_are_refused(mixed: HPFEnsemble, tmp_path) -> None:
    path = tmp_path / "file"
    quick().fit(COUNTS).save(path)
    with pytest.raises(ModelFileError, match="not a model ensemble"):
        HPFEnsemble.load(path)
    mixed.save(path)
    with pytest.raises(ModelFileError, match="not a model of"):
        HPF.load(path)
    written = bytearray(path.read_bytes())
    written[-5] ^= 1
    path.write_bytes(written)
    with pytest.raises(ModelFileError, match="checksum"):
        HPFEnsemble.load(path)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"members": 0}, ValueError, "members=0 must be at least 1"),
        ({"members": []}, ValueError, "members is empty"),
        ({"members": {"k": 3}}, TypeError, "pass a number, or a list of dicts"),
        ({"members": [3]}, TypeError, r"members\[0\] is 3: pass a dict of parameters"),
        ({"members": [{"kk": 3}]}, ValueError, "HPF has no parameter 'kk'"),
        ({"members": [{"k": -3}]}, ValueError, "k=-3 must be at least 0"),
        (
            {"members": [{"transposed": "yes"}]},
            TypeError,
            r"members\[0\]\['transposed'\] must be True or False",
        ),
        ({"combine": "median"}, ValueError, "combine='median' is unknown"),
        ({"members": 2, "weights": [1.0]}, ValueError, "there are 1 weights for 2 members"),
        ({"members": 2, "weights": [1.0, -0.5]}, ValueError, r"weights\[1\]=-0.5 must be at least zero"),
        (
            {"members": 2, "weights": [1.0, np.inf]},
            ValueError,
            r"weights\[1\]=inf must be above zero",
        ),
        ({"members": 2, "weights": [0.0, 0.0]}, ValueError, "all weights are zero"),
        ({"save_folder": "."}, ValueError, "save_folder must be None"),
        ({"kk": 3}, ValueError, "HPF has no parameter 'kk'"),
    ],
)
def test_bad_parameters(given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HPFEnsemble(**given)


def test_all_users_and_some_that_are_unknown(mixed: HPFEnsemble) -> None:
    pd.testing.assert_frame_equal(mixed.recommend(n=3), mixed.recommend(USERS, 3))
    with pytest.warns(UserWarning, match="users 7, 'x' were not in the training data, and left out"):
        some = mixed.recommend([USERS[0], 7, "x"], 3)
    pd.testing.assert_frame_equal(some, mixed.recommend(USERS[0], 3))
    ids, scores = mixed.recommend(USERS[:2], 3, as_frame=False)
    table = mixed.recommend(USERS[:2], 3)
    assert ids.ravel().tolist() == table.ItemId.tolist()
    assert scores.ravel().tolist() == table.Score.tolist()


def test_what_cannot_be_answered(mixed: HPFEnsemble) -> None:
    with pytest.raises(ValueError, match="not been fitted yet: call fit first"):
        HPFEnsemble(2).predict(1, 2)
    with pytest.raises(ValueError, match="members with counts='log1p' and 'raw' has no meaning"):
        mixed.eval_llk(COUNTS)
    with pytest.raises(ValueError, match="members with counts='log1p' and 'raw' has no meaning"):
        mixed.spread(USERS, ITEMS[0])
    with pytest.raises(ValueError, match="users, ids of the model, or counts of new users, and not both"):
        mixed.recommend(USERS, counts=COUNTS)
    with pytest.raises(ValueError, match="discount=-1 must be at least zero"):
        mixed.recommend(USERS, discount=-1)
    with pytest.raises(ValueError, match="user 7 was not in the training data"):
        mixed.topN(7)
    only = HPFEnsemble([{"transposed": True}], **GIVEN).fit(COUNTS)
    assert only.topN(USERS[0], 3).shape == (3,)
    for none_for_new_users in (only, mixed.with_weights([0, 0, 0, 0, 1])):
        with pytest.raises(ValueError, match="all members with a weight are transposed"):
            none_for_new_users.recommend(counts=COUNTS)
    forgetful = HPFEnsemble(2, keep_data=False, **GIVEN).fit(COUNTS)
    assert forgetful.topN(USERS[0], 3, exclude_seen=False).shape == (3,)
    with pytest.raises(ValueError, match="keep_data=True"):
        forgetful.topN(USERS[0])
    with pytest.raises(ValueError, match="needs held-out counts"):
        HPFEnsemble(2, stop_crit="val-llk").fit(COUNTS)
