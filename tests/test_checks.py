"""Checks of models against counts, beside the same from dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from small_data import COUNTS, quick

from hpf_gpu import HPFEnsemble, checks

MATRIX = sparse.csr_array((COUNTS.Count, (COUNTS.UserId - 100, COUNTS.ItemId - 500)))
DENSE = MATRIX.toarray()
N_PAIRS = DENSE.size


@pytest.fixture(scope="module")
def model():
    return quick().fit(MATRIX)


@pytest.mark.parametrize("data", [None, MATRIX])
def test_activity_is_numbers_of_items_and_users(model, data):
    found = checks.activity(model, data)
    np.testing.assert_array_equal(found.users, (DENSE > 0).sum(axis=1))
    np.testing.assert_array_equal(found.items, (DENSE > 0).sum(axis=0))


def test_other_counts_are_taken(model):
    other = COUNTS[:7].assign(UserId=COUNTS.UserId[:7] - 100, ItemId=COUNTS.ItemId[:7] - 500)
    assert checks.activity(model, other).items.sum() == 7


@pytest.mark.parametrize("data", [None, MATRIX])
def test_calibration_is_that_of_all_pairs(model, data, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK", 100)  # several blocks
    rates = model.Theta.astype(float) @ model.Beta.T
    predicted, observed = (rates, DENSE) if data is not None else (1 - np.exp(-rates), DENSE > 0)
    table = checks.calibration(model, data, groups=5)
    assert len(table) == 5
    assert table.pairs.sum() == N_PAIRS
    assert table.predicted.is_monotonic_increasing
    # All scores are computed in float32: measured 1e-7.
    assert (table.pairs * table.predicted).sum() == pytest.approx(predicted.sum(), rel=1e-5)
    assert (table.pairs * table.observed).sum() == pytest.approx(observed.sum(), rel=1e-12)
    shares = table.pairs * table.predicted / predicted.sum()
    assert shares.between(0.1, 0.3).all()  # a fifth, but for the width of a bin
    first = np.sort(predicted.ravel())[: table.pairs[0]]
    assert table.predicted[0] == pytest.approx(first.mean(), rel=1e-5)
    of_first = observed.ravel()[np.argsort(predicted.ravel())[: table.pairs[0]]]
    assert table.observed[0] == pytest.approx(of_first.mean(), abs=1e-12)
    assert table.error[0] == pytest.approx(of_first.std() / np.sqrt(len(of_first)), abs=1e-12)


def test_a_model_that_is_wrong_is_not_calibrated(model):
    table = checks.calibration(model, 3 * MATRIX, groups=5)
    assert (table.observed > 2 * table.predicted).iloc[-3:].all()


@pytest.mark.parametrize("data", [None, MATRIX])
def test_observed_numbers_are_those_of_the_counts(model, data):
    table = checks.posterior_predictive(model, data, draws=3)
    counts = DENSE if data is not None else DENSE > 0
    for of, values in (("pair", counts.ravel()), ("user", counts.sum(axis=1)), ("item", counts.sum(axis=0))):
        rows = table[table["of"] == of]
        want = [
            ((low <= values) & (values <= high)).sum() for low, high in zip(rows.low, rows.high, strict=True)
        ]
        assert rows.observed.tolist() == want
        assert rows.observed.sum() == len(values)
        assert rows.low.tolist()[:4] == [0, 1, 2, 4][: len(rows)]
        assert (rows.drawn_low <= rows.drawn).all()
        assert (rows.drawn <= rows.drawn_high).all()
    assert table.loc[0, ["low", "high", "observed"]].tolist() == [0, 0, (DENSE == 0).sum()]


def test_draws_are_those_of_the_model(model):
    """Pairs without a count: their number is that of many draws by hand, within four standard errors."""
    zeros = checks.posterior_predictive(model, MATRIX, draws=200).loc[0]
    rng, by_hand = np.random.default_rng(7), []
    for _ in range(200):
        theta = rng.gamma(model.Gamma_shp, 1 / model.Gamma_rte)
        beta = rng.gamma(model.Lambda_shp, 1 / model.Lambda_rte)
        by_hand.append((rng.poisson(theta @ beta.T) == 0).sum())
    error = np.std(by_hand) / np.sqrt(200)
    assert zeros.drawn == pytest.approx(np.median(by_hand), abs=4 * 1.25 * error * np.sqrt(2))
    want = np.quantile(by_hand, [0.05, 0.95])
    assert zeros.drawn_high - zeros.drawn_low == pytest.approx(want[1] - want[0], rel=0.3)
    again = checks.posterior_predictive(model, MATRIX, draws=200).loc[0]
    assert again.equals(zeros)
    other = checks.posterior_predictive(model, MATRIX, draws=200, random_seed=1).loc[0]
    assert not other.equals(zeros)


def test_rates_are_fixed_where_no_posterior_was_kept(model):
    """Draws then spread less."""
    plain = quick(keep_all_objs=False).fit(MATRIX)
    fixed = checks.posterior_predictive(plain, MATRIX, draws=200)
    drawn = checks.posterior_predictive(model, MATRIX, draws=200)
    spread = [table.drawn_high[0] - table.drawn_low[0] for table in (fixed, drawn)]
    assert spread[0] < spread[1]


def test_some_users_stand_for_all_of_a_large_model(model, monkeypatch):
    monkeypatch.setattr(checks, "_FEWEST_USERS", 10)
    monkeypatch.setattr(checks, "_DRAWN", 1)
    monkeypatch.setattr(checks, "_COMPARED", 20 * MATRIX.shape[1])
    table = checks.posterior_predictive(model, draws=2)
    assert table.observed[table["of"] == "user"].sum() == 10
    assert table.observed[table["of"] == "item"].sum() == MATRIX.shape[1]
    assert checks.calibration(model).pairs.sum() == 20 * MATRIX.shape[1]


@pytest.mark.parametrize("parameters", [{"neighbours": 5}, {"k": 0, "neighbours": 5}, {"bias": True}])
def test_every_kind_of_model(parameters):
    model = quick(maxiter=5, **parameters).fit(COUNTS)
    users, items = np.repeat(model.user_mapping_, model.nitems), np.tile(model.item_mapping_, model.nusers)
    table = checks.calibration(model, COUNTS)
    assert (table.pairs * table.predicted).sum() == pytest.approx(model.predict(users, items).sum(), rel=1e-4)
    rows = checks.posterior_predictive(model, COUNTS, draws=10)
    assert rows.drawn[0] == pytest.approx(rows.observed[0], rel=0.2)


def test_ensembles():
    ensemble = HPFEnsemble(
        [{"k": 3}, {"k": 0, "neighbours": 5, "transposed": True}], maxiter=5, verbose=False
    )
    ensemble.fit(COUNTS)
    assert checks.activity(ensemble).items.sum() == len(COUNTS)
    assert checks.calibration(ensemble, COUNTS).pairs.sum() == N_PAIRS
    assert checks.posterior_predictive(ensemble, draws=2).observed[0] == (DENSE == 0).sum()


def test_what_cannot_be_checked(model):
    without = quick(keep_data=False).fit(COUNTS)
    for check in (checks.activity, checks.calibration, checks.posterior_predictive):
        with pytest.raises(ValueError, match="keep_data=True"):
            check(without)
        with pytest.raises(ValueError, match="has not been fitted yet"):
            check(quick())
    with pytest.raises(ValueError, match="groups=0 must be at least 1"):
        checks.calibration(model, groups=0)
    with pytest.raises(ValueError, match="draws=0 must be at least 1"):
        checks.posterior_predictive(model, draws=0)
    mixed = HPFEnsemble([{"counts": "raw"}, {"counts": "log1p"}], k=2, maxiter=2, verbose=False).fit(COUNTS)
    with pytest.raises(ValueError, match="a check of members with counts='log1p' and 'raw'"):
        checks.calibration(mixed, COUNTS)
