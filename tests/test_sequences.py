"""Random sequences of everything a model can do, beside a dense model that does the same slowly."""

from __future__ import annotations

import numpy as np
import oracle
import pandas as pd
import pytest
from parity import relative_error

from hpf_gpu import HPF

PRIORS = oracle.Priors(0.4, 0.5, 1.3, 0.2, 0.7, 0.6)
K = 3
#: Largest relative error after any operation; 1.6e-13 measured over 200 sequences on numpy and openmp.
LIMIT = 1e-10


class Side:
    """Users or items of the dense model: ids, q(θ), q(ξ)."""

    def __init__(self, shape, hyper_shape, hyper_mean):
        self.prior = (shape, hyper_shape, hyper_shape / hyper_mean)
        self.hyper_mean = hyper_mean
        self.ids = []

    def set(self, gamma, hyper_rate, rank_one):
        self.gamma, self.hyper_rate = gamma, hyper_rate
        self.rank_one = rank_one  # row and column part of the rates; None once rows were folded in

    @property
    def kappa(self):
        return self.prior[1] + K * self.prior[0]

    def rows(self, ids):
        """Row numbers, new ids behind the end."""
        self.ids += [name for name in dict.fromkeys(ids) if name not in self.ids]
        return np.array([self.ids.index(name) for name in ids])

    def half(self, rng, other_sums):
        """Ready for a step: rates of rank one, and start values for ids that have no row yet."""
        rows, columns = self.rank_one or (self.kappa / self.hyper_rate, other_sums)
        n = len(self.ids) - len(rows)
        shape = self.prior[1] + 0.01 * rng.random((n, K))
        return oracle.Half(
            np.vstack([self.gamma.shape, shape]),
            np.append(rows, np.full(n, self.kappa / self.hyper_mean)),
            columns,
            np.append(self.hyper_rate, np.full(n, self.hyper_mean)),
            *self.prior,
        )

    def take(self, half):
        self.set(half.gamma, half.hyper_rate, (half.row_rate, half.column_rate))


class Dense:
    """The model in dense formulas: each method does what that of HPF does."""

    def __init__(self, schedule):
        p = PRIORS
        self.users, self.items = Side(p.a, p.a_prime, p.b_prime), Side(p.c, p.c_prime, p.d_prime)
        self.schedule = schedule
        self.seen = {}

    def matrix(self, frame):
        """Counts (N, M) of a frame, whose new ids get rows."""
        u, i = self.users.rows(frame.UserId), self.items.rows(frame.ItemId)
        y = np.zeros((len(self.users.ids), len(self.items.ids)))
        np.add.at(y, (u, i), frame.Count)
        return y

    def see(self, frame):
        for user, item in zip(frame.UserId, frame.ItemId, strict=True):
            self.seen.setdefault(user, set()).add(item)

    def fit(self, frame, seed, iterations):
        self.users.ids, self.items.ids, self.seen = [], [], {}
        p, y = PRIORS, self.matrix(frame)
        priors = (p.a, p.a_prime, p.b_prime, p.c, p.c_prime, p.d_prime)
        *_, before, last = oracle.fit(y, K, *priors, seed, np.float64, iterations, self.schedule)
        rates = (before.xi.mean, before.beta.column_sums), (before.eta.mean, last.theta.column_sums)
        self.users.set(last.theta, last.xi.rate, rates[0])
        self.items.set(last.beta, last.eta.rate, rates[1])
        self.see(frame)

    def partial_fit(self, frame, kind, step, seed):
        y, rng = self.matrix(frame), np.random.default_rng(seed)
        sums = self.items.gamma.column_sums, self.users.gamma.column_sums
        users, items = self.users.half(rng, sums[0]), self.items.half(rng, sums[1])
        if kind == "users":
            rows = np.unique(self.users.rows(frame.UserId))
            users, items = oracle.stochastic_epoch(y, users, items, [rows], 5, step, self.schedule)
        else:
            rows = np.unique(self.items.rows(frame.ItemId))
            items, users = oracle.stochastic_epoch(y.T, items, users, [rows], 5, step, self.schedule)
        self.users.take(users)
        self.items.take(items)
        self.see(frame)

    def fold(self, frame, iterations):
        """q(θ) and q(ξ) of the users of a frame, in order of first appearance."""
        names = list(dict.fromkeys(frame.UserId))
        y = np.zeros((len(names), len(self.items.ids)))
        np.add.at(y, ([names.index(u) for u in frame.UserId], self.items.rows(frame.ItemId)), frame.Count)
        p = PRIORS
        return names, oracle.fold_in(y, self.items.gamma, p.a, p.a_prime, p.b_prime, iterations)[-1]

    def add_users(self, frame, iterations):
        names, (theta, xi) = self.fold(frame, iterations)
        rows, n = self.users.rows(names), len(self.users.gamma.shape)

        def put(old, new):
            wide = np.zeros((len(self.users.ids), *old.shape[1:]))
            wide[:n] = old
            wide[rows] = new
            return wide

        old = self.users.gamma
        gamma = oracle.Gamma(put(old.shape, theta.shape), put(old.rate, theta.rate))
        self.users.set(gamma, put(self.users.hyper_rate, xi.rate), None)
        for name in names:
            self.seen[name] = set()
        self.see(frame)

    def rates(self):
        return self.users.gamma.mean @ self.items.gamma.mean.T


class Driver:
    """Does the same to both, in an order drawn from a seed, and compares."""

    def __init__(self, seed, backend, folder):
        self.rng = np.random.default_rng(seed)
        self.folder = folder
        schedule = ("joint", "alternating")[seed % 2]
        how = {"backend": backend, "schedule": schedule, "stop_crit": "maxiter", "verbose": False}
        self.model = HPF(k=K, use_float=False, **vars(PRIORS), **how)
        self.dense = Dense(schedule)

    def counts(self, users, items, n):
        """Random counts of these; the same pair may come twice."""
        drawn = self.rng.choice(users, n), self.rng.choice(items, n)
        return pd.DataFrame({"UserId": drawn[0], "ItemId": drawn[1], "Count": self.rng.poisson(2.0, n) + 1})

    def someone(self, side, new):
        """Ids that the model has, and ``new`` that it has not."""
        kind = "u" if side is self.dense.users else "i"
        return [*self.rng.choice(side.ids, 5), *(f"{kind}{n}" for n in self.rng.integers(100, 10**6, new))]

    def fit(self):
        frame = self.counts([f"u{n}" for n in range(14)], [f"i{n}" for n in range(10)], 50)
        self.model.random_seed, self.model.maxiter = int(self.rng.integers(99)), int(self.rng.integers(1, 5))
        self.model.fit(frame)
        self.dense.fit(frame, self.model.random_seed, self.model.maxiter)

    def partial_fit(self):
        kind, step, seed = self.rng.choice(["users", "items"]), self.rng.random(), int(self.rng.integers(99))
        frame = self.counts(
            self.someone(self.dense.users, self.rng.integers(3)),
            self.someone(self.dense.items, self.rng.integers(3)),
            20,
        )
        more = {"new_users": True, "new_items": True, "random_seed": seed}
        self.model.partial_fit(frame, batch_type=str(kind), step_size=step, **more)
        self.dense.partial_fit(frame, kind, step, seed)

    def transform(self):
        frame = self.counts(["ann", "bob", "eve"], self.dense.items.ids, 8)
        iterations = int(self.rng.integers(1, 6))
        got = self.model.transform(frame, maxiter=iterations, stop_thr=1e-300)
        names, (theta, _) = self.dense.fold(frame, iterations)
        assert got.index.tolist() == names
        assert relative_error(got.to_numpy(), theta.mean) < LIMIT

    def add_users(self):
        new = f"u{self.rng.integers(100, 10**6)}"
        update = bool(self.rng.integers(2))
        users = list(self.rng.choice(self.dense.users.ids, 3, replace=False)) if update else [new, new + "b"]
        frame = self.counts(users, self.dense.items.ids, 9)
        iterations = int(self.rng.integers(1, 6))
        self.model.add_users(frame, update_existing=update, maxiter=iterations, stop_thr=1e-300)
        self.dense.add_users(frame, iterations)

    def add_user(self):
        frame = self.counts([f"u{self.rng.integers(100, 10**6)}"], self.dense.items.ids, 4)
        self.model.add_user(frame.UserId[0], frame[["ItemId", "Count"]], maxiter=3, stop_thr=1e-300)
        self.dense.add_users(frame, 3)

    def save_and_load(self):
        self.model.save(self.folder / "model")
        self.model = HPF.load(self.folder / "model")

    def predict(self):
        users, items = self.dense.users.ids, self.dense.items.ids
        u, i = self.rng.integers(len(users), size=9), self.rng.integers(len(items), size=9)
        got = self.model.predict([*(users[n] for n in u), "nobody"], [*(items[n] for n in i), items[0]])
        assert relative_error(got[:-1], self.dense.rates()[u, i]) < LIMIT
        assert np.isnan(got[-1])

    def top_items(self):
        users, items = self.dense.users.ids, self.dense.items.ids
        chosen, n = list(self.rng.choice(users, 4)), int(self.rng.integers(1, len(items)))
        exclude = bool(self.rng.integers(2))
        got = self.model.topN(chosen, n=n, exclude_seen=exclude)
        rates = self.dense.rates()[[users.index(user) for user in chosen]]
        left_out = [
            [items.index(item) for item in self.dense.seen[user]] if exclude else [] for user in chosen
        ]
        _, best = oracle.top_items(rates, n, left_out)
        for row, given, want, out in zip(got, rates, best, left_out, strict=True):
            codes = [items.index(item) for item in row if item is not None]
            assert len(set(codes)) == len(codes) == np.isfinite(want).sum()
            assert not set(codes) & set(out)
            # By score, for two items may be within a rounding error.
            assert given[codes] == pytest.approx(want[np.isfinite(want)], rel=LIMIT)

    def compare(self):
        model, users, items = self.model, self.dense.users, self.dense.items
        assert model.user_mapping_.tolist() == users.ids
        assert model.item_mapping_.tolist() == items.ids
        assert (model.nusers, model.nitems) == (len(users.ids), len(items.ids))
        pairs = {
            "Theta": users.gamma.mean, "Gamma_shp": users.gamma.shape, "Gamma_rte": users.gamma.rate,
            "Beta": items.gamma.mean, "Lambda_shp": items.gamma.shape, "Lambda_rte": items.gamma.rate,
            "k_rte": users.hyper_rate[:, None], "t_rte": items.hyper_rate[:, None],
        }  # fmt: skip
        for name, want in pairs.items():
            assert relative_error(getattr(model, name), want) < LIMIT, name
        bounds = np.cumsum([0, *(len(self.dense.seen.get(user, ())) for user in users.ids)])
        assert len(model.seen) == bounds[-1]
        for user, begin, end in zip(users.ids, bounds, bounds[1:], strict=False):
            assert {items.ids[code] for code in model.seen[begin:end]} == self.dense.seen.get(user, set())


#: What may come next, the more often the more interesting it is.
NEXT = (
    "partial_fit", "partial_fit", "add_users", "add_users", "add_user", "save_and_load", "transform",
    "predict", "top_items", "fit",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(25))
def test_sequences(seed, backend_name, tmp_path):
    driver, done = Driver(seed, backend_name, tmp_path), ["fit"]
    driver.fit()
    driver.compare()
    for _ in range(12):
        done.append(str(driver.rng.choice(NEXT)))
        try:
            getattr(driver, done[-1])()
            driver.compare()
        except Exception as error:
            error.add_note(f"seed {seed}, after {', '.join(done)}")
            raise
