"""A model is the old one or the new one, whole: whatever interrupts, and whoever reads meanwhile."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpf_gpu import HPF
from hpf_gpu.answers import recommendations
from hpf_gpu.backends import create

ITERATIONS = 4


def counts_of(first_user: int, n: int, m: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    pairs = rng.choice(n * m, n * m // 4, replace=False)
    users, items = pairs // m + first_user, pairs % m
    return pd.DataFrame({"UserId": users, "ItemId": items, "Count": rng.integers(1, 9, len(pairs))})


OLD, NEW = counts_of(0, 30, 25, 1), counts_of(10, 45, 20, 2)
ADDED = counts_of(1000, 6, 20, 3)
BOTH = OLD.merge(NEW[["UserId", "ItemId"]])  # counts of users and items that both models know


def quick(maxiter: int = ITERATIONS) -> HPF:
    how = {"stop_crit": "maxiter", "verbose": False, "random_seed": 1, "ncores": 1}
    return HPF(5, maxiter=maxiter, **how)


def fingerprint(model: HPF) -> str:
    """A checksum of everything that a model says of itself, attribute by attribute, and of its answers."""
    if not model.is_fitted:
        return "not fitted"
    attributes = (
        model.Theta, model.Beta, model.Gamma_shp, model.Gamma_rte, model.Lambda_shp, model.Lambda_rte,
        model.k_rte, model.t_rte, model.seen, model.user_mapping_, model.item_mapping_,
        model.history_.drop(columns="seconds").to_numpy(),
    )  # fmt: skip
    digest = hashlib.sha256()
    for array in attributes:
        digest.update(np.ascontiguousarray(array).tobytes())
    told = (model.nusers, model.nitems, model.niter, model.train_llk, model.random_seed_, model.backend_)
    digest.update(repr(told).encode())
    digest.update(model.topN(model.user_mapping_, n=3).tobytes())
    return digest.hexdigest()


OPERATIONS: dict[str, Callable[[HPF], Any]] = {
    "first fit": lambda model: model.fit(NEW),
    "refit": lambda model: model.fit(NEW),
    "partial_fit": lambda model: model.partial_fit(NEW, nusers=100, nitems=30, new_users=True),
    "add_users": lambda model: model.add_users(ADDED),
    "add_user": lambda model: model.add_user("eve", NEW[["ItemId", "Count"]].head(5)),
    "update_all_params": lambda model: model.add_user("eve", NEW.head(5), update_all_params=True),
}


def start_of(name: str) -> HPF:
    return quick() if name == "first fit" else quick().fit(OLD)


def allowed_after(name: str) -> set[str]:
    """Fingerprints of the old model and the new one, which of a fit is that of any iteration."""
    allowed = {fingerprint(start_of(name))}
    for maxiter in range(1, ITERATIONS + 1) if "fit" in name and name != "partial_fit" else [ITERATIONS]:
        model = start_of(name)
        model.maxiter = maxiter
        OPERATIONS[name](model)
        allowed.add(fingerprint(model))
    return allowed


def run_interrupted(name: str, model: HPF) -> None:
    with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the fit was interrupted
        OPERATIONS[name](model)


# -- interrupts --------------------------------------------------------------------------------

TAKERS = {
    *("fit", "partial_fit", "add_users", "add_user"),
    *("train", "_fitted", "with_users", "partial_step", "take_step", "step_with_user"),
}


def interrupted_at_line(name: str, model: HPF, line: int) -> bool:
    """Ctrl-C before a line, counted over the functions that take a state; False if it is not reached."""
    seen = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_name not in TAKERS or "hpf_gpu" not in frame.f_code.co_filename:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run_interrupted(name, model)
    finally:
        sys.settrace(before)
    return seen >= line


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_at_every_line_that_takes_a_state(name):
    allowed, start = allowed_after(name), start_of(name)
    line = 1
    while interrupted_at_line(name, model := copy.copy(start), line):
        assert fingerprint(model) in allowed, line
        line += 1
    assert line > 5
    assert fingerprint(model) in allowed


def interrupted_at_random(name: str, times: int) -> int:
    """Ctrl-C at random moments; how many came before the end."""
    allowed, start, rng, hits = allowed_after(name), start_of(name), random.Random(name), 0

    def interrupt(number: int, frame: Any) -> None:
        nonlocal hits
        hits += 1
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        began = time.perf_counter()
        OPERATIONS[name](copy.copy(start))
        takes = time.perf_counter() - began
        for _ in range(times):
            model, before = copy.copy(start), hits
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, rng.uniform(0, takes)))
                run_interrupted(name, model)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:  # on the way out
                pass
            assert fingerprint(model) in allowed
            # What it takes changes with what else the machine does.
            takes *= 0.7 if hits == before else 1.1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    return hits


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
@pytest.mark.parametrize("name", OPERATIONS)
def test_interrupts_at_random_moments(name):
    assert interrupted_at_random(name, 15) > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
@pytest.mark.parametrize("name", OPERATIONS)
def test_many_interrupts_at_random_moments(name):
    assert interrupted_at_random(name, 500 // len(OPERATIONS) + 1) > 20


def test_an_interrupt_is_one_where_warnings_are_errors():
    def interrupt(check: Any) -> None:
        if check.iteration == 2:
            raise KeyboardInterrupt

    model = quick()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyboardInterrupt):
            model.fit(OLD, callback=interrupt)
    assert model.niter == 2


# -- readers beside a refit --------------------------------------------------------------------


def answers_of(model: HPF) -> tuple[Any, ...]:
    """What a reader asks for in one call each; every part is told apart from that of another model."""
    some = np.arange(10, 30)  # users of both models
    top = model.topN(some, n=4)
    rates = model.predict(some, 3)
    llk = model.eval_llk(BOTH)
    return top.tobytes(), rates.tobytes(), repr(llk), hashlib.sha256(pickle.dumps(model.Theta)).hexdigest()


def read_beside_refits(readers: int, refits: int) -> None:
    frames = (OLD, NEW)
    models = [quick().fit(frame) for frame in frames]
    allowed = [set(parts) for parts in zip(*map(answers_of, models), strict=True)]
    shared, over, wrong = quick().fit(OLD), threading.Event(), []
    reads = [0] * readers

    def read(number: int) -> None:
        while not over.is_set():
            try:
                parts = answers_of(shared)
            except Exception as error:
                wrong.append(error)
                return
            reads[number] += 1
            for part, known in zip(parts, allowed, strict=True):
                if part not in known:
                    wrong.append(part)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(readers)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for number in itertools.count():
            shared.fit(frames[(number + 1) % 2])
            # A busy machine may let a reader wait for longer than all of them take.
            if number + 1 >= refits and (wrong or all(reads)):
                break
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]
    assert all(reads)


def test_readers_beside_refits():
    read_beside_refits(readers=4, refits=20)


@pytest.mark.slow
def test_many_readers_beside_many_refits():
    read_beside_refits(readers=16, refits=50)


# -- what a folder that cannot be written leaves -----------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="folders that are files")
def test_a_folder_that_cannot_be_written_leaves_the_fit(tmp_path):
    (tmp_path / "Theta").mkdir()
    model = quick()
    model.save_folder, model.keep_all_objs = str(tmp_path), False
    with pytest.raises(OSError, match="Theta"):
        model.fit(OLD)
    assert model.is_fitted
    assert not hasattr(model, "Gamma_shp")
    assert np.array_equal(model.Theta, quick().fit(OLD).Theta)


def test_bounds_of_scores_are_kept_and_not_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lists for one user are the same with them; who adds users has them, and who changes Beta has not."""
    model = quick().fit(OLD)
    users = model.user_mapping_.tolist()
    want = [model.topN(user, n=5).tolist() for user in users]
    assert model.Beta.flags.writeable
    monkeypatch.setattr(recommendations, "_MIN_BOUNDED", 1)
    assert [model.topN(user, n=5).tolist() for user in users] == want
    assert not model.Beta.flags.writeable  # the bounds would not be those of other numbers
    made = model._fitted.bounds.of(create("openmp", model.Beta.dtype), model.Beta)
    assert made is None or made is model._fitted.bounds._made[2]
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other._fitted.bounds._made is None
        assert other.topN(users[0], n=5).tolist() == want[0]
    model.save(tmp_path / "model.hpf")
    assert HPF.load(tmp_path / "model.hpf")._fitted.bounds._made is None
    before = model._fitted
    model.add_users(ADDED)
    assert model._fitted.bounds is before.bounds
    model.partial_fit(OLD)
    first, second = model._fitted.beta, before.beta
    assert first is not second
    for user in users[:3]:
        with_bounds = model.topN(user, n=5).tolist()
        monkeypatch.setattr(recommendations, "_FEW_USERS", 0)
        assert model.topN(user, n=5).tolist() == with_bounds
        monkeypatch.setattr(recommendations, "_FEW_USERS", 8)
