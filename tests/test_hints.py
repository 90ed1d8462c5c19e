"""Errors that name what a word is close to."""

from __future__ import annotations

import re

import numpy as np
import pytest
from small_data import COUNTS, quick

from hpf_gpu import HPF, HPFEnsemble, evaluate, select
from hpf_gpu.data.ids import Ids
from hpf_gpu.messages import did_you_mean

NAMED = COUNTS.assign(
    UserId="listener " + COUNTS.UserId.astype(str), ItemId="song " + COUNTS.ItemId.astype(str)
)
MODEL = quick().fit(NAMED)
SOME = NAMED[:20]


@pytest.mark.parametrize(
    ("call", "close"),
    [
        (lambda: HPF(stop_crit="train_llk"), "'train-llk'"),
        (lambda: HPF(backend="opemnp").fit(NAMED), "'openmp'"),
        (lambda: HPF().set_params(max_iter=3), "'maxiter'"),
        (lambda: HPFEnsemble(2, max_iter=3), "'maxiter'"),
        (lambda: select(NAMED, maxitr=[3]), "'maxiter'"),
        (lambda: quick(user="user").fit(NAMED), "'UserId'"),
        (lambda: quick().fit(NAMED.rename(columns={"Count": "counts"})), "'counts'"),
        (lambda: evaluate(MODEL, NAMED, SOME, metrics=["recal"]), "'recall'"),
        (lambda: MODEL.topN("Listener 100"), "'listener 100'"),
        (lambda: MODEL.recommend(["lisener 100"]), "'listener 100'"),
        (lambda: MODEL.similar_items("song503"), "'song 503'"),
        (lambda: MODEL.topN(["listener 100", "listner 103"]), "'listener 103'"),
    ],
)
def test_what_is_close_is_named(call, close):
    with pytest.raises(ValueError, match=re.escape(f"(did you mean {close}?)")):
        call()


def test_users_that_are_left_out():
    with pytest.warns(UserWarning, match=re.escape("left out (did you mean 'listener 100'?)")):
        MODEL.recommend(["listener 101", "listenr 100"])


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (["zzz"], ["recall", "ndcg"]),
        ([3, ("recal",)], ["recall", 3.0]),
        (["recal"] * 20, ["recall"] * 1001),
        (["recal"], np.array(["recall"] * 20_001, object)),
        ([], ["recall"]),
    ],
)
def test_where_there_is_no_hint(given, known):
    assert did_you_mean(given, known) == ""


def test_ids_that_are_no_strings_are_close_to_none():
    with pytest.raises(ValueError, match=r"user 10 was not in the training data$"):
        Ids(np.array([100, 101]), 2, "user").require(10)
    with pytest.raises(
        ValueError, match=r"'ann' was not .*; the user ids of the model are numbers, and these are strings$"
    ):
        Ids(None, 2, "user").require("ann")
