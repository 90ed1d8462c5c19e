"""Fits that are watched, stopped, killed and resumed."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import re
import signal
import time
import traceback

import altered
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from scipy import sparse
from small_data import COUNTS

from hpf_gpu import HPF, ModelFileError
from hpf_gpu.files.checkpoint import Checkpoint
from hpf_gpu.fitting import training
from hpf_gpu.model.likelihood import Objective

MATRICES = ("Theta", "Beta", "Gamma_shp", "Gamma_rte", "Lambda_shp", "Lambda_rte", "k_rte", "t_rte")
VALIDATION = COUNTS.iloc[::7]
#: Counts of which a model knows less the better it fits.
UNLIKE = COUNTS.assign(ItemId=COUNTS.ItemId.to_numpy()[::-1])

#: One fit for every rule, each ended by it; full-batch and stochastic, in both precisions.
FITS = {
    "maxiter": {"stop_crit": "maxiter", "maxiter": 17},
    "train-llk": {"stop_crit": "train-llk", "stop_thr": 2e-3, "check_every": 4, "use_float": False},
    "val-llk": {
        "stop_crit": "val-llk",
        "stop_thr": 5e-4,
        "check_every": 3,
        "schedule": "alternating",
        "compute_elbo": True,
    },
    "elbo": {"stop_crit": "elbo", "stop_thr": 1e-3, "check_every": 3, "random_seed": None},
    "diff-norm": {"stop_crit": "diff-norm", "stop_thr": 1.0, "check_every": 4},
    "best": {"stop_crit": "val-llk", "stop_thr": 1e-9, "check_every": 2, "patience": 6},
    "accelerated": {"schedule": "accelerated", "stop_crit": "elbo", "stop_thr": 1e-9, "check_every": 3},
    "users": {"stop_crit": "maxiter", "maxiter": 7, "users_per_batch": 13},
    "items": {"stop_crit": "train-llk", "items_per_batch": 7, "check_every": 2, "stop_thr": 0.02},
    "both": {"stop_crit": "diff-norm", "users_per_batch": 20, "items_per_batch": 9, "stop_thr": 3.0},
}
#: And others, which need not be killed.
OTHERS = {
    "biases": {"stop_crit": "train-llk", "bias": True, "hierarchical": False, "random_seed": None},
    "accelerated neighbours": {
        "schedule": "accelerated",
        "stop_crit": "elbo",
        "stop_thr": 1e-9,
        "check_every": 3,
        "neighbours": 4,
        "maxiter": 30,
    },
    "best neighbours": {
        "stop_crit": "val-llk",
        "stop_thr": 1e-9,
        "check_every": 1,
        "neighbours": 4,
        "patience": 4,
    },
    "best users": {
        "stop_crit": "val-llk",
        "stop_thr": 1e-9,
        "check_every": 1,
        "users_per_batch": 13,
        "patience": 4,
    },
    "best accelerated": {
        "stop_crit": "val-llk",
        "stop_thr": 1e-9,
        "check_every": 1,
        "schedule": "accelerated",
        "patience": 5,
    },
    "known": {"stop_crit": "train-llk", "use_float": False, "check_every": 2, "stop_thr": 1e-9},
}


def model_of(name, **others):
    arguments = {"k": 3, "random_seed": 5, "verbose": False, "maxiter": 60, "check_every": 5}
    return HPF(**arguments | (FITS | OTHERS)[name] | others)


def fit(model, **options):
    held_out = None if model.stop_crit != "val-llk" else VALIDATION if model.patience is None else UNLIKE
    with np.errstate(all="raise", under="ignore"):
        return model.fit(COUNTS, held_out, **options)


def assert_same_fit(got, want):
    """All that a fit leaves but the times, bit by bit."""
    for name in MATRICES:
        assert np.array_equal(getattr(got, name), getattr(want, name)), name
    assert got.niter == want.niter
    assert got.random_seed_ == want.random_seed_
    columns = [name for name in want.history_ if name != "seconds"]
    assert got.history_[columns].equals(want.history_[columns])
    assert np.all(np.diff(got.history_.seconds) > 0)


class Killed(BaseException):
    """Ends a fit in a way that it does not notice, as a signal would."""


def kill_at(iteration):
    def callback(check):
        if check.iteration == iteration:
            raise Killed

    return callback


# -- callbacks ---------------------------------------------------------------------------------


def test_callback_hears_of_every_iteration():
    heard = []
    model = fit(model_of("diff-norm"), callback=heard.append)
    assert [check.iteration for check in heard] == list(range(1, model.niter + 1))
    assert np.all(np.diff([check.seconds for check in heard]) > 0)
    due = [dataclasses.asdict(check) for check in heard if not np.isnan(check.llk)]
    for check in due:
        row = model.history_[model.history_.iteration == check["iteration"]].iloc[0]
        assert all(check[name] == row[name] for name in ("llk", "diff_norm", "seconds"))
    assert len(due) == len(model.history_)
    with pytest.raises(dataclasses.FrozenInstanceError):
        heard[0].llk = 0.0
    assert_same_fit(model, fit(model_of("diff-norm")))


@pytest.mark.parametrize("true", [True, np.True_])
def test_callback_stops_the_fit(true, recwarn):
    model = fit(model_of("maxiter"), callback=lambda check: true if check.iteration == 6 else None)
    assert not recwarn.list
    assert_same_fit(model, fit(model_of("maxiter", maxiter=6)))


def test_a_fit_that_is_stopped_between_checks_is_checked():
    model = fit(
        model_of("train-llk", check_every=4, stop_thr=1e-9), callback=lambda check: check.iteration == 6
    )
    assert model.history_.iteration.tolist() == [4, 6]
    whole = fit(model_of("train-llk", check_every=2, stop_thr=1e-9, maxiter=6))
    assert model.train_llk == model.history_.llk.iloc[-1] == whole.train_llk


@pytest.mark.parametrize("other", [None, False, 1, "stop", np.False_])
def test_other_answers_let_it_go_on(other):
    assert fit(model_of("maxiter"), callback=lambda check: other).niter == 17


def test_an_error_of_a_callback_loses_nothing():
    """It is passed on, and the model has what was fitted until then."""
    model = model_of("maxiter")
    with pytest.raises(ZeroDivisionError):
        fit(model, callback=lambda check: 1 / (check.iteration - 6))
    assert_same_fit(model, fit(model_of("maxiter", maxiter=6)))


def test_callback_must_be_a_function():
    with pytest.raises(TypeError, match="callback must be a function of one argument, not 'print'"):
        fit(model_of("maxiter"), callback="print")


# -- the best model on held-out counts -----------------------------------------------------------


@pytest.mark.parametrize("name", ["best", "best neighbours", "best users", "best accelerated"])
@pytest.mark.parametrize("users_per_block", [None, 17])
def test_the_best_model_on_held_out_counts_is_kept(name, users_per_block, backend_name, monkeypatch):
    monkeypatch.setattr(training, "USERS_PER_BLOCK", users_per_block)
    heard = []
    model = fit(model_of(name, backend=backend_name), callback=heard.append)
    found = {check.iteration: check.val_llk for check in heard if not np.isnan(check.val_llk)}
    best = max(found, key=found.get)
    assert best < heard[-1].iteration < 60
    assert model.niter == model.history_.iteration.iloc[-1] == best
    assert model.history_.val_llk.iloc[-1] == found[best]
    assert model.train_llk == model.history_.llk.iloc[-1]
    assert not np.isnan(model.history_.elbo.iloc[-1])
    # The likelihood is that of rates in float32, whose relative errors of 1e-6 or less add up.
    assert model.eval_llk(UNLIKE)["llk"] == pytest.approx(found[best], rel=1e-5)
    alone = fit(model_of(name, backend=backend_name, patience=None, stop_crit="maxiter", maxiter=best))
    for matrix in MATRICES:
        np.testing.assert_allclose(getattr(model, matrix), getattr(alone, matrix), rtol=1e-5, err_msg=matrix)


# -- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITS)
def test_a_killed_fit_ends_the_same(name, backend_name, tmp_path):
    """Killed after every third iteration, also where no checkpoint was written since the last time."""
    path = tmp_path / "state"
    for number in itertools.count(3, 3):
        model = model_of(name, backend=backend_name)
        try:
            fit(model, checkpoint=path, checkpoint_every=2, callback=kill_at(number))
        except Killed:
            continue
        break
    assert number > 3
    # Where none was given, the first run has drawn a seed and the others went on with it.
    assert_same_fit(model, fit(model_of(name, backend=backend_name, random_seed=model.random_seed_)))
    # Once more, from the last checkpoint to the same end.
    again = fit(model_of(name, backend=backend_name), checkpoint=path, checkpoint_every=2)
    assert_same_fit(again, model)


@pytest.mark.parametrize("at", [4, 9, 12])
@pytest.mark.parametrize("name", ["accelerated", "accelerated neighbours"])
def test_a_fall_after_a_checkpoint(name, at, backend_name, tmp_path, monkeypatch):
    """The fit returns to the model that was kept before the checkpoint, as if there had been none."""
    elbo, heard = Objective.elbo, []

    def lowered(objective, model):  # the ELBO that no check asks for
        heard.append(model)
        return elbo(objective, model) - (1e9 if len(heard) == left else 0)

    monkeypatch.setattr(Objective, "elbo", lowered)
    how = {"backend": backend_name, "maxiter": 27, "check_every": 26, "stop_crit": "elbo"}
    left = 3  # after iterations 1 and 10, at 20
    want = fit(model_of(name, **how))
    assert len(heard) == 3
    heard.clear()
    path = tmp_path / "state"
    with pytest.raises(Killed):
        fit(model_of(name, **how), checkpoint=path, checkpoint_every=at, callback=kill_at(at + 1))
    left = 2 if at < 10 else 1
    heard.clear()
    assert_same_fit(fit(model_of(name, **how), checkpoint=path, checkpoint_every=100), want)
    assert len(heard) == left


def in_a_child(task):
    """Run in a forked process, which is returned without waiting for it."""
    child = os.fork()
    if child == 0:
        try:
            task()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked on this system")


@needs_fork
@pytest.mark.parametrize("name", ["elbo", "both"])
def test_sigkill_at_any_moment(name, backend_name, tmp_path):
    """A new process after each kill; the last one comes to the end."""
    if backend_name == "cuda":
        pytest.skip("CUDA does not survive a fork")
    path, rng = tmp_path / "state", random.Random(1)
    arguments = {"backend": backend_name, "ncores": 1, "random_seed": 5, "maxiter": 60, "stop_thr": 1e-9}

    def slowly(_check):  # so that one process cannot do it all before it is killed
        time.sleep(0.005)

    def run():
        model = fit(model_of(name, **arguments), checkpoint=path, checkpoint_every=1, callback=slowly)
        model.save(tmp_path / "model")

    def end(child):
        """Its exit status, or the number of the signal that has ended it, negative."""
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    ends = []
    for _ in range(20):
        child = in_a_child(run)
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        ends.append(end(child))
    assert -signal.SIGKILL in ends
    assert set(ends) <= {0, -signal.SIGKILL}
    assert end(in_a_child(run)) == 0
    assert_same_fit(HPF.load(tmp_path / "model"), fit(model_of(name, **arguments)))
    assert {file.name for file in tmp_path.iterdir()} == {"state", "model"}


@needs_fork
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_sigkill_in_a_write(function, tmp_path, monkeypatch):
    """At the first and the third write; what was half written is cleared away by the next fit."""
    path = tmp_path / "state"

    def dies_at(number):
        def run():
            left, original = itertools.count(1 - number), getattr(os, function)

            def dying(*given):
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*given)

            monkeypatch.setattr(os, function, dying)
            fit(model_of("maxiter", backend="numpy"), checkpoint=path, checkpoint_every=2)

        _, status = os.waitpid(in_a_child(run), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL

    dies_at(1)
    assert not path.exists()
    dies_at(5 if function == "fsync" else 3)  # a file and its folder are brought to the disk
    assert len(list(tmp_path.iterdir())) == 2
    heard = []
    model = fit(
        model_of("maxiter", backend="numpy"), checkpoint=path, checkpoint_every=2, callback=heard.append
    )
    assert heard[0].iteration == 5
    assert list(tmp_path.iterdir()) == [path]
    assert_same_fit(model, fit(model_of("maxiter", backend="numpy")))


def test_a_fit_goes_on_further(tmp_path):
    """With another maxiter, and where nothing that it computes depends on."""
    path = tmp_path / "state"
    fit(model_of("maxiter", maxiter=9), checkpoint=str(path), checkpoint_every=4)
    more = model_of("maxiter", verbose=True, keep_data=False, ncores=1)
    model = fit(more, checkpoint=path, checkpoint_every=4)
    assert model.niter == 17
    assert np.array_equal(model.Theta, fit(model_of("maxiter", ncores=1)).Theta)
    with pytest.raises(
        ValueError, match=r"state is a checkpoint of iteration 16, and maxiter=16 allows no more"
    ):
        fit(model_of("maxiter", maxiter=16), checkpoint=path)


def test_a_resumed_fit_may_begin_to_compute_elbos(tmp_path):
    path, whole = tmp_path / "state", fit(model_of("known", compute_elbo=True, maxiter=6))
    with pytest.raises(Killed):
        fit(model_of("known", maxiter=6), checkpoint=path, checkpoint_every=3, callback=kill_at(4))
    model = fit(model_of("known", compute_elbo=True, maxiter=6), checkpoint=path)
    assert np.isnan(model.history_.elbo.iloc[0])
    assert model.history_.elbo.tolist()[1:] == whole.history_.elbo.tolist()[1:]


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("maxiter", {"k": 4}, "a fit with k=3, not 4; delete it"),
        ("maxiter", {"random_seed": None}, "a fit with random_seed=5, not None"),
        ("maxiter", {"use_float": False}, "a fit with use_float=True, not False"),
        ("maxiter", {"users_per_batch": 5}, "a fit with users_per_batch=None, not 5"),
        ("users", {"step_size": lambda epoch: 0.5}, r"a fit with step_size=\[0.7.*\], not \[0.5, 0.5\]"),
    ],
)  # fmt: skip
def test_other_parameters(name, other, message, tmp_path):
    path = tmp_path / "state"
    fit(model_of(name), checkpoint=path, checkpoint_every=3)
    before = path.read_bytes()
    model = model_of(name, **other)
    with pytest.raises(ValueError, match=f"state is a checkpoint of {message}"):
        fit(model, checkpoint=path)
    assert not model.is_fitted
    assert path.read_bytes() == before


def test_other_data(tmp_path):
    path = tmp_path / "state"
    fit(model_of("val-llk"), checkpoint=path, checkpoint_every=3)
    for data in (
        COUNTS.assign(Count=COUNTS.Count + (COUNTS.index == 4)),
        COUNTS.iloc[:-1],
        COUNTS.iloc[::-1],
    ):
        with pytest.raises(ValueError, match=r"another counts_df \(\d+ counts of 60 users .* delete it"):
            model_of("val-llk").fit(data, VALIDATION, checkpoint=path)
    with pytest.raises(ValueError, match="another val_set"):
        model_of("val-llk").fit(COUNTS, VALIDATION.iloc[1:], checkpoint=path)


def test_the_same_counts_elsewhere_are_other_data(tmp_path):
    """Where counts are is in their checksum, not their values alone."""
    path, ones = tmp_path / "state", np.ones((9, 7))
    ones[0, 3] = ones[4, 4] = 0
    model_of("maxiter", maxiter=4).fit(sparse.csr_array(ones), checkpoint=path, checkpoint_every=2)
    for moved in (ones[:, ::-1], ones[::-1]):
        with pytest.raises(ValueError, match="another counts_df"):
            model_of("maxiter", maxiter=9).fit(sparse.csr_array(moved), checkpoint=path)


def test_the_same_data_in_other_forms(tmp_path):
    path = tmp_path / "state"
    fit(model_of("maxiter"), checkpoint=path, checkpoint_every=4)
    heard = []
    triplets = COUNTS[["UserId", "ItemId", "Count"]].astype({"Count": float}).to_numpy(dtype=object)
    model_of("maxiter").fit(triplets, checkpoint=path, callback=heard.append)
    assert heard[0].iteration == 17


def test_damaged_checkpoints(tmp_path):
    path, cut = tmp_path / "state", tmp_path / "cut"
    fit(model_of("maxiter"), checkpoint=path, checkpoint_every=4)
    whole = path.read_bytes()
    for length in [0, 7, 500, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="cut is damaged"):
            fit(model_of("maxiter"), checkpoint=cut)
    for place in (40, len(whole) // 2, len(whole) - 2):
        cut.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ModelFileError, match=r"cut is (damaged|a safetensors file, but no)"):
            fit(model_of("maxiter"), checkpoint=cut)
    save_file(load_file(path), cut)
    with pytest.raises(ModelFileError, match="not a checkpoint of hpf_gpu"):
        fit(model_of("maxiter"), checkpoint=cut)


def test_checkpoints_and_models_are_told_apart(tmp_path):
    path = tmp_path / "state"
    model = fit(model_of("maxiter"), checkpoint=path, checkpoint_every=4)
    with pytest.raises(ModelFileError, match="not a model of hpf_gpu"):
        HPF.load(path)
    model.save(path)
    with pytest.raises(ModelFileError, match="not a checkpoint of hpf_gpu"):
        fit(model, checkpoint=path)


@pytest.mark.parametrize("name", ["diff-norm", "best", "both", "biases", "known", "accelerated"])
def test_every_field_and_array_is_checked(name, tmp_path, monkeypatch):
    """Checkpoints that are wrong in one place, with the right checksum: errors that name the place."""
    path, files, options = tmp_path / "state", [], {}
    if name == "known":
        factors = np.random.default_rng(1).gamma(1.0, 1.0, (40, 3))
        options["fixed_items"] = pd.DataFrame(factors, index=pd.unique(COUNTS.ItemId))
    original = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda file, *given: files.append(file) or original(file, *given))
    with pytest.raises(Killed):
        fit(model_of(name), checkpoint=path, checkpoint_every=6, callback=kill_at(7), **options)

    def error_of(header, tensors):
        altered.write(path, "hpf_gpu.checkpoint", header, tensors)
        try:
            files[0].read(None)
        except ValueError as error:
            return error
        return None

    header, tensors = altered.read(path, "hpf_gpu.checkpoint")
    assert header["iteration"] == 6
    wrong = 0
    for place, value, other in altered.headers(header):
        if name != "diff-norm" and place[0] == "parameters" and len(place) > 1:
            continue  # which are judged without a look at the rest
        error = error_of(other, tensors)
        if is_another_state(place, value, header, tensors):
            assert error is None, (place, value)
            continue
        wrong += 1
        assert str(path) in str(error), (place, value)
        assert str(place[-1]) in str(error), (place, value, error)
        # Parameters and data may be right, and those of another fit.
        other_fit = re.search("is a checkpoint of a fit ", str(error)) and place[0] in ("parameters", "data")
        assert isinstance(error, ModelFileError) != bool(other_fit), (place, value, error)
    for (array, change), others in altered.arrays(tensors):
        error = error_of(header, others)
        if are_those_of_another_state(array, change, others, tensors, header):
            assert error is None, (array, change)
            continue
        wrong += 1
        assert isinstance(error, ModelFileError), (array, change)
        assert str(path) in str(error)
        assert array.split(".")[0] in str(error)  # or the array that it does not fit
    assert wrong > 300


def is_another_state(path, value, header, tensors):
    """Whether a header with another value is that of another state of the same fit."""
    number = type(value) is int and value >= 0
    if path[0] == "parameters" and len(path) == 2:
        # As in Python 0 is False; but no number is a truth value.
        return value == header["parameters"].get(path[1], "none") and not isinstance(value, bool)
    if path[0] == "rng" and len(path) > 1 and path[1] != "unknown":
        most = {("has_uint32",): 1, ("uinteger",): 2**32 - 1, ("state", "state"): 2**128 - 1}
        return number and value <= (most | {("state", "inc"): 2**128 - 1}).get(path[1:], -1)
    if path == ("seed",):
        return number and value < 2**63 and header["parameters"]["random_seed"] is None
    if path == ("kept", "elbo"):
        return type(value) is float and np.isfinite(value)
    if path in (("kept", "iteration"), ("kept", "falls")):
        return number and (1 <= value <= 6 if path[1] == "iteration" else value < 2**63)
    if path == ("best_iteration",):
        keeps = header["best_iteration"] > 0
        return keeps and number and value > 0 and value in tensors["history.iteration"]
    if path == ("seconds",):
        return type(value) is float and tensors["history.seconds"][-1] <= value < np.inf
    return path == ("version",) and value == "zz"


def are_those_of_another_state(name, change, tensors, before, header):
    """Whether arrays of which one was altered are those of another state of the same fit."""
    if change in ("left out", "added"):
        return False
    array = tensors[name]
    if (array.dtype, array.shape) != (before[name].dtype, before[name].shape):
        return False
    if name == "history.iteration":
        rises = bool((array > 0).all() and (np.diff(array) > 0).all() and array[-1] <= 6)
        return rises and header["best_iteration"] in (0, *array)
    if name == "history.seconds":
        return bool((array >= 0).all() and (np.diff(array) >= 0).all() and array[-1] <= before[name][-1])
    if name == "history.elbo" and header["parameters"]["stop_crit"] != "elbo":
        return not np.isinf(array).any()
    if name.startswith("momentum.") and not name.endswith(".exp_log"):
        return bool(np.isfinite(array).all())
    is_known = header["priors"].get(name.split(".")[0], {}).get("fixed")
    if not np.isfinite(array).all() or (is_known and not name.endswith((".shape", ".column_sums"))):
        return False
    if name in ("history.llk", "history.elbo", "history.val_llk"):
        return not np.isnan(before[name]).any()
    if name == "history.diff_norm":
        return not np.isnan(before[name]).any() and not (array < 0).any()
    is_positive = (".shape", ".rate_rows", ".hyper_rate")
    return bool((array > 0).all() if name.endswith(is_positive) else (array >= 0).all())


def test_a_state_before_the_first_check(tmp_path):
    """Its history is empty."""
    path = tmp_path / "state"
    with pytest.raises(Killed):
        fit(model_of("maxiter", check_every=10), checkpoint=path, checkpoint_every=3, callback=kill_at(5))
    model = fit(model_of("maxiter", check_every=10), checkpoint=path, checkpoint_every=100)
    assert_same_fit(model, fit(model_of("maxiter", check_every=10)))


@pytest.mark.parametrize("wrong", [5, True, ["state"]])
def test_paths_of_other_types(wrong):
    with pytest.raises(TypeError, match="checkpoint must be a path, not "):
        fit(model_of("maxiter"), checkpoint=wrong)


@needs_fork
def test_a_checkpoint_that_cannot_be_a_file(tmp_path):
    """Said before the fit begins."""
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("", "Is a directory"), ("pipe", "pipe is a pipe"), ("x" * 300, "name too long")):
        with pytest.raises(OSError, match=message):
            fit(model_of("maxiter"), checkpoint=tmp_path / name, callback=kill_at(1))
    fit(model_of("maxiter"), checkpoint=os.fsencode(tmp_path / "state"))
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "state"}


@needs_fork
def test_two_fits_at_once_on_one_checkpoint(tmp_path):
    """Both end, each write is whole and the last one stays; no live writer's file is deleted."""
    path, arguments = tmp_path / "state", {"backend": "numpy", "ncores": 1, "maxiter": 60}

    def run():
        fit(model_of("maxiter", **arguments), checkpoint=path, checkpoint_every=1)

    children = [in_a_child(run) for _ in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    again = fit(model_of("maxiter", **arguments), checkpoint=path)
    assert_same_fit(again, fit(model_of("maxiter", **arguments)))


def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    """Before the fit where that is known; later the iterations so far are kept."""
    with pytest.raises(FileNotFoundError, match="nowhere is not an existing folder"):
        fit(model_of("maxiter"), checkpoint=tmp_path / "nowhere" / "state")
    with pytest.raises(ValueError, match="checkpoint_every=0 must be at least 1"):
        fit(model_of("maxiter"), checkpoint_every=0)
    model, path = model_of("maxiter"), tmp_path / "state"

    def full(*_given):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        fit(model, checkpoint=path, checkpoint_every=4)
    assert_same_fit(model, fit(model_of("maxiter", maxiter=4)))


#: Another value of every parameter.  Of what is not here, none does.
OTHER_VALUES = {
    "k": 4, "a": 0.5, "a_prime": 0.5, "b_prime": 0.5, "c": 0.5, "c_prime": 0.5, "d_prime": 0.5, "ncores": 1,
    "stop_crit": "maxiter", "check_every": 3, "stop_thr": 1e-5, "users_per_batch": 9, "items_per_batch": 9,
    "step_size": lambda epoch: 0.5, "maxiter": 8, "random_seed": 6, "backend": "numpy",
    "schedule": "alternating", "neighbours": 5, "w_shape": 0.5, "w_rate": 5.0, "temperature": 1.5,
    "patience": 5,
}  # fmt: skip
OTHER_VALUES |= dict.fromkeys(("verbose", "allow_inconsistent_math", "full_llk", "alloc_full_phi"), True)
OTHER_VALUES["compute_elbo"] = True
OTHER_VALUES |= dict.fromkeys(("use_float", "keep_data", "produce_dicts", "keep_all_objs"), False)
OTHER_VALUES |= {
    "sum_exp_trick": True,
    "hierarchical": False,
    "counts": "log1p",
    "bias": True,
    "reindex": False,
    "user": "fan",
    "item": "song",
    "count": "plays",
}
#: "Where it runs, how far, and what is shown, written and kept"; a step that nobody takes; and names of rows.
MAY_DIFFER = {
    "ncores", "maxiter", "backend", "verbose", "save_folder", "keep_data", "produce_dicts", "keep_all_objs",
    "allow_inconsistent_math", "alloc_full_phi", "step_size", "reindex", "compute_elbo", "user", "item",
    "count",
}  # fmt: skip


@pytest.mark.parametrize("name", [*sorted(OTHER_VALUES), "save_folder"])
def test_what_may_differ_from_a_checkpoint(name, tmp_path, capsys):
    data = COUNTS.assign(UserId=COUNTS.UserId - 100, ItemId=COUNTS.ItemId - 500).sort_values("UserId")
    data["ItemId"] = pd.factorize(data.ItemId)[0]
    given = {"k": 3, "random_seed": 5, "verbose": False, "maxiter": 6, "stop_thr": 1e-9}
    HPF(**given).fit(data, checkpoint=tmp_path / "state", checkpoint_every=5)
    other = tmp_path if name == "save_folder" else OTHER_VALUES[name]
    model, heard = HPF(**given | {name: other}), []
    data = data.rename(columns={"UserId": model.user, "ItemId": model.item, "Count": model.count})
    if name in MAY_DIFFER:
        model.fit(data, checkpoint=tmp_path / "state", callback=heard.append)
        assert heard[0].iteration == 6
    else:
        with pytest.raises(ValueError, match=f"checkpoint of a fit with {name}=|another counts_df"):
            model.fit(data, checkpoint=tmp_path / "state")


def test_where_counts_and_held_out_counts_are(tmp_path):
    """The same items in the same order, but of other users; the same counts, but of another pair."""
    first, other = (
        sparse.csr_array(np.array(rows)) for rows in ([[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]])
    )
    held, moved = (sparse.coo_array(([1.0], ([0], [item])), shape=(2, 3)) for item in (1, 2))
    given = {"k": 2, "random_seed": 1, "verbose": False, "maxiter": 3, "stop_thr": 1e-9}
    HPF(**given).fit(first, held, checkpoint=tmp_path / "state", checkpoint_every=2)
    for data, validation, name in (
        (other, held, "counts_df"),
        (first, moved, "val_set"),
        (first, None, "val_set"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint of a fit to another {name}"):
            HPF(**given).fit(data, validation, checkpoint=tmp_path / "state")
    HPF(**given).fit(first, held, checkpoint=tmp_path / "state")


@pytest.mark.parametrize("side", ["users", "items"])
def test_known_factors_of_any_type_are_the_same(side, tmp_path):
    data = sparse.csr_array(np.ones((4, 4)))
    factors = np.arange(1, 9).reshape(4, 2)
    given = {"k": 2, "random_seed": 1, "verbose": False, "maxiter": 3, "stop_thr": 1e-9}
    path = tmp_path / "state"
    HPF(**given).fit(data, checkpoint=path, checkpoint_every=2, **{f"fixed_{side}": factors})
    for dtype in (np.float32, np.float64, ">f8", np.uint8):
        for order in "CF":
            same = np.array(factors, dtype, order=order)
            HPF(**given).fit(data, checkpoint=path, **{f"fixed_{side}": same})
    for fixed in ({f"fixed_{side}": factors[::-1]}, {}):
        with pytest.raises(ValueError, match=f"to another fixed_{side}"):
            HPF(**given).fit(data, checkpoint=path, **fixed)


@pytest.mark.parametrize("batches", [{"users_per_batch": 60}, {"items_per_batch": 20}])
def test_biases_of_a_stochastic_fit_go_on(batches, tmp_path):
    """They wait before the first epoch, and not after a checkpoint again."""
    given = {"k": 2, "random_seed": 1, "verbose": False, "bias": True, "stop_crit": "maxiter"} | batches
    want = fit(HPF(**given, maxiter=14))
    fit(HPF(**given, maxiter=4), checkpoint=tmp_path / "state", checkpoint_every=3)
    assert_same_fit(fit(HPF(**given, maxiter=14), checkpoint=tmp_path / "state"), want)
