"""The benchmark suite: its cases, competitors and verdicts, and a small run of everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import biases
import cases
import ceilings
import compare
import competitors
import entries
import latency
import likelihood
import measures
import numpy as np
import pandas as pd
import pytest
import recommending
import record
import report
import run
from scipy import sparse, stats

from hpf_gpu import HPF

BENCH = Path(run.__file__).parent
SMALL, TINY = (cases.Input(cases.DATA[name].frame()) for name in ("small", "tiny"))

# -- cases -----------------------------------------------------------------------------------------


def test_every_case_can_be_run() -> None:
    for case in cases.CASES.values():
        assert case.data in cases.DATA
        assert case.measure in measures.MEASURES
        assert case.dtype in ("float32", "float64")
        assert set(case.who) <= set(competitors.COMPETITORS) | set(competitors.NEVER_MEASURED)
        assert set(case.lengths) <= {*case.who, "all"}
        for job in case.jobs():
            assert job.lengths == sorted(set(job.lengths))
            assert bool(job.lengths) == (case.measure == "fits"), job


@pytest.mark.parametrize("name", ["small", "tiny", "online-retail"])
def test_data_sets_are_of_their_size(name: str) -> None:
    data = cases.DATA[name]
    frame, csr = data.frame(), data.csr()
    assert (len(frame), csr.nnz, csr.shape) == (data.nnz, data.nnz, (data.users, data.items))
    assert not frame.duplicated(["UserId", "ItemId"]).any()
    assert csr.sum() == frame["Count"].sum()


def test_a_matrix_and_its_ids_say_what_the_frame_says() -> None:
    frame = pd.DataFrame({"UserId": [7, 3, 7], "ItemId": ["b", "b", "a"], "Count": [1, 2, 3]})
    given = cases.Input(frame)
    users, items = given.ids
    coo = given.csr.tocoo()
    back = zip(users[coo.row], items[coo.col], coo.data, strict=True)
    assert sorted(back) == [(3, "b", 2), (7, "a", 3), (7, "b", 1)]


# -- competitors -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:OpenBLAS is configured:RuntimeWarning")  # implicit; run.py does it
@pytest.mark.parametrize("who", competitors.COMPETITORS)
def test_competitors_have_one_signature(who: str) -> None:
    if why := competitors.why_not(who):
        pytest.skip(why)
    fitted = competitors.COMPETITORS[who].fit(SMALL, competitors.Task(k=5, iterations=3, threads=1))
    for factors, ids, column in (
        (fitted.Theta, fitted.user_mapping_, "UserId"),
        (fitted.Beta, fitted.item_mapping_, "ItemId"),
    ):
        assert factors.shape == (SMALL.frame[column].nunique(), 5)
        assert set(ids) == set(SMALL.frame[column])
    # The factors belong to these ids: who counts much is expected to.
    expected = pd.Series(fitted.Theta @ fitted.Beta.sum(axis=0), fitted.user_mapping_)
    counted = SMALL.frame.groupby("UserId")["Count"].sum()
    assert expected.corr(counted) > 0.5  # 0.88 (poismf)


def test_who_is_missing_is_told_why() -> None:
    assert competitors.why_not("numpy") is None
    assert competitors.why_not("schpf") == "scHPF is not on PyPI"


def test_likelihoods_are_those_of_the_model() -> None:
    held_out = np.random.default_rng(0).random(len(SMALL.frame)) < 0.2
    train, test = SMALL.frame[~held_out], SMALL.frame[held_out]
    options = {"k": 4, "backend": "numpy", "use_float": False, "maxiter": 5, "verbose": False}
    model = HPF(**options, stop_crit="maxiter", random_seed=1).fit(train)
    assert likelihood.training_likelihood(model, train) == pytest.approx(model.train_llk, rel=1e-9)
    found = likelihood.held_out_likelihoods(model, train, test)
    assert found["counts_alone"] == pytest.approx(model.eval_llk(test)["llk"], rel=1e-9)
    rates = model.Theta @ model.Beta.T
    rows, columns = (
        pd.Index(ids).get_indexer(train[name])
        for ids, name in zip((model.user_mapping_, model.item_mapping_), ("UserId", "ItemId"), strict=True)
    )
    zeros = rates.sum() - rates[rows, columns].sum() - likelihood._rates(model, test)[0].sum()
    assert found["with_zeros"] == pytest.approx(found["counts_alone"] - zeros, rel=1e-9)


# -- running ---------------------------------------------------------------------------------------


def test_a_process_is_cut_off_at_its_limit_and_keeps_what_it_told(tmp_path: Path) -> None:
    SMALL.frame.to_pickle(tmp_path / "small.pkl")
    for limit in (6, 36, 216):  # a busy machine may not get to the end of the first fit
        endless = replace(cases.CASES["iteration-2m"], lengths={"all": [1, 10**9]}, limit=limit)
        *told, last = run.in_process(cases.Job(endless, "numpy", k=4, threads=1), tmp_path / "small.pkl")
        assert last == {"error": f"cut off after {limit} s"}
        if told:
            break
    (first,) = told
    assert (first["quantity"], first["iterations"]) == ("fit", 1)


def test_what_fails_in_a_process_is_its_result(tmp_path: Path) -> None:
    job = cases.Job(cases.CASES["iteration-2m"], "numpy", k=4, threads=1)
    (told,) = run.in_process(job, tmp_path / "missing.pkl")
    assert told["error"].startswith("FileNotFoundError: ")


def test_the_fastest_round_counts_and_iterations_are_differences() -> None:
    def fit(length: int, value: float) -> dict[str, Any]:
        return {"quantity": "fit", "value": value, "unit": "s", "iterations": length}

    best = list(run.fastest([fit(1, 3.0), fit(11, 9.0), fit(1, 2.0), fit(11, 7.0)]))
    assert [(entry["iterations"], entry["value"]) for entry in best] == [(1, 2.0), (11, 7.0)]
    assert best[0]["rounds"] == [3.0, 2.0]
    assert [(e["quantity"], e["value"]) for e in run.derived(best)] == [("iteration", 0.5), ("set-up", 1.5)]
    assert run.derived(best[:1]) == []


def test_work_of_others_is_what_neither_idles_nor_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = "cpu  500 20 30 9000 700 1 2 4 0 0\ncpu0 250 10 15 4500 350 0 1 2 0 0\n"
    monkeypatch.setattr(record.Path, "exists", lambda path: str(path) == "/proc/stat")
    monkeypatch.setattr(record.Path, "read_text", lambda path: stat)
    monkeypatch.setattr(record.os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    monkeypatch.setattr(record.os, "times", lambda: (0.5, 0.25, 1.0, 0.25, 99.0))
    assert record.core_seconds_of_others() == pytest.approx(5.57 - 2.0)


def test_ceilings_are_ceilings() -> None:
    try:
        found = ceilings.measure(30, "float32", 1)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert min(vars(found).values()) > 1e8
    assert found.gather_memory < found.gather_cache


# -- verdicts --------------------------------------------------------------------------------------


def entry(value: float, who: str = "openmp", unit: str = "s", **more: Any) -> dict[str, Any]:
    facts = {"case": "iteration-2m", "who": who, "k": 30, "threads": 2, "dtype": "float32"}
    return facts | {"quantity": "iteration", "value": value, "unit": unit} | more


@pytest.mark.parametrize(
    ("old", "new", "unit", "worse"),
    [
        (0.020, 0.030, "s", True),  # beyond both limits
        (0.0010, 0.0019, "s", False),  # nearly twice as long, and less than a millisecond more
        (10.0, 10.9, "s", False),  # nearly a second more, and less than a tenth
        (0.030, 0.020, "s", False),
        (100e6, 120e6, "B", True),
        (1e6, 5e6, "B", False),
        (100.0, 200.0, "B/s", False),  # rates are no times
    ],
)
def test_a_regression_exceeds_both_limits(old: float, new: float, unit: str, worse: bool) -> None:
    lines, compared = compare.what_got_worse([entry(old, unit=unit)], [entry(new, unit=unit)])
    assert bool(lines) == worse
    assert compared == (unit != "B/s")


def test_the_best_of_a_record_counts_and_only_ours() -> None:
    old, new = [entry(0.02), entry(0.08)], [entry(0.09), entry(0.021)]
    assert compare.what_got_worse(old, new) == ([], 1)
    assert compare.what_got_worse([entry(1.0, who="hpfrec")], [entry(9.0, who="hpfrec")]) == ([], 0)
    failed = {key: value for key, value in entry(0).items() if key not in ("value", "unit")} | {"error": "no"}
    lines, _ = compare.what_got_worse(old, [failed])
    assert lines == ["iteration-2m openmp K=30 2 threads: was measured, and now: no"]


@pytest.mark.parametrize(("new", "status"), [(0.020, 0), (0.030, 1)])
def test_the_exit_status_is_the_verdict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    new: float,
    status: int,
) -> None:
    path = tmp_path / "record.jsonl"
    for commit, value in (("old", 0.020), ("new", new)):
        machine = {"cpu": "x", "cores": 2, "commit": commit}
        record.append(path, entry(value, machine=machine))
    monkeypatch.setattr(sys, "argv", ["compare.py", str(path), "--commits", "old", "new"])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert ended.value.code == status
    assert capsys.readouterr().out.endswith(f"1 figures compared, {status} worse\n")


# -- recommending ----------------------------------------------------------------------------------


def test_a_split_keeps_every_pair_on_one_side() -> None:
    kept, held_out = recommending.split(TINY.csr, 0.2, 3)
    assert kept.multiply(held_out).nnz == 0
    assert (kept + held_out != TINY.csr).nnz == 0
    assert held_out.nnz == pytest.approx(0.2 * TINY.csr.nnz, abs=100)  # four standard deviations


def test_lists_are_of_users_with_training_and_held_out_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommending, "LENGTH", 2)
    train = sparse.csr_array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    held_out = sparse.csr_array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    order = np.array([5.0, 4.0, 1.0, 3.0, 2.0])  # the first user is shown the items 1 and 3
    found = recommending.judged(lambda users: np.tile(order, (len(users), 1)), train, held_out)
    ndcg = 1 / (1 + 1 / np.log2(3))  # the first of two that could be
    assert found == pytest.approx({"recall": 1 / 2, "ndcg": ndcg, "coverage": 2 / 5})


@pytest.mark.parametrize("penalty", [1.0, 30.0])
def test_ease_is_its_definition(penalty: float) -> None:
    X = (TINY.csr.toarray() > 0).astype(float)
    P = np.linalg.inv(X.T @ X + penalty * np.eye(X.shape[1]))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    users = np.array([5, 2])
    scores = recommending.ease(TINY.csr, 0, penalty)(users)
    np.testing.assert_allclose(scores, X[users] @ B, atol=1e-10)


def test_parameters_are_searched_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = {(1, 1): 0.1, (2, 1): 0.2, (2, 2): 0.3, (1, 2): 0.4}
    tried = []

    def fit(train: sparse.csr_array, seed: int, a: int, b: int) -> float:
        tried.append((a, b))
        return reached[a, b]

    monkeypatch.setattr(recommending, "judged", lambda scores, *_: {"recall": scores})  # for recall, too
    method = recommending.Method(fit, {"a": (1, 2), "b": (1, 2)})
    assert recommending.tuned(method, TINY.csr, 0) == {"a": 2, "b": 2}
    assert tried == [(1, 1), (2, 1), (2, 2)]
    once = list(recommending.measure(TINY.csr, {"x": method}, 3, tune_once=True))
    assert tried[3:] == [(1, 1), (2, 1), (2, 2), *[(2, 2)] * 3]
    assert [(found["split"], found["tuned_on"]) for found in once] == [(0, 0), (1, 0), (2, 0)]
    # What an earlier run has chosen is not chosen again.
    lines = pd.DataFrame(once).assign(data="it", method="ALS")
    lines.to_csv(tmp_path / "lines.tsv", sep="\t", index=False)
    earlier = recommending.chosen_in(tmp_path / "lines.tsv", "it")
    assert earlier == {("ALS", split): (0, {"a": 2, "b": 2}) for split in range(3)}
    assert not recommending.chosen_in(tmp_path / "lines.tsv", "another")
    before = len(tried)
    again = list(recommending.measure(TINY.csr, {"ALS": method}, 3, tune_once=False, chosen=earlier))
    assert tried[before:] == [(2, 2)] * 3
    assert [found["parameters"] for found in again] == [found["parameters"] for found in once]


def test_a_mixture_is_between_its_parts() -> None:
    one, other = ({"counts": "one", "k": k, "maxiter": 2} for k in (2, 3))
    users = np.array([7, 1])
    parts = [recommending.hpf(TINY.csr, 1, **options)(users) for options in (one, other)]
    mixture = recommending.mixed(TINY.csr, 1, 0.25, one, other)(users)
    np.testing.assert_allclose(mixture, 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-6)
    several = recommending.hpf(TINY.csr, 1, **one, fits=2)(users)
    singles = [recommending.hpf(TINY.csr, seed, **one)(users) for seed in (2, 3)]
    np.testing.assert_allclose(several, np.mean(singles, axis=0), rtol=1e-6)


def test_everything_is_recommended_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "some.tsv", tmp_path / "results.tsv"
    TINY.frame.to_csv(data, sep="\t", index=False)
    small = {"HPF": {"counts": ("one",), "k": (2,), "maxiter": (3,)}, "EASE": {"penalty": (30.0, 300.0)}}
    methods = {name: recommending.METHODS[name]._replace(values=values) for name, values in small.items()}
    monkeypatch.setattr(recommending, "METHODS", methods)
    for name in methods:  # one after the other, into one file
        command = ["recommending.py", str(data), "--only", name, "--splits", "3", "--out", str(out)]
        command += ["--figure", str(tmp_path / "recalls.svg")]
        monkeypatch.setattr(sys, "argv", command)
        recommending.main()
    assert "HPF, one fit" in (tmp_path / "recalls.svg").read_text()
    results = pd.read_csv(out, sep="\t").pivot(index="split", columns="method", values="recall")
    assert results.shape == (3, 2)
    difference = results["HPF"] - results["EASE"]
    half = stats.t.interval(0.95, 2, difference.mean(), difference.sem())[1] - difference.mean()
    printed = capsys.readouterr().out.rpartition("some\n")[2]
    assert f"{difference.mean():+.4f} ± {half:.4f}" in printed
    assert '{"counts": "one", "k": 2, "maxiter": 3}' in printed


def test_biases_are_compared_with_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "some.tsv"
    TINY.frame.to_csv(data, sep="\t", index=False)
    command = ["biases.py", str(data), "--seeds", "1", "--k", "2", "--iterations", "3"]
    monkeypatch.setattr(sys, "argv", command)
    biases.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert "seed 0: most popular 0." in head
    assert [line.split("  ")[1].strip() for line in lines] == list(biases.WAYS)
    assert ["prior" in line for line in lines] == [False, True, False, True]
    assert all(line.endswith("3 iterations") for line in lines)


def test_the_wait_of_one_user_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latency.py", "small", "--repeats", "3", "--stages"])
    latency.main()
    lines = capsys.readouterr().out.splitlines()
    for form in ("unseen, frame", "unseen, array", "unseen, matrix", "known, recommend", "known, topN"):
        (line,) = (line for line in lines if line.startswith(f"  {form} "))
        fast, median, processor = map(float, line.removeprefix(f"  {form}").split())
        assert 0 < fast <= median
        assert processor > 0
    told = {line.split()[0] for line in lines if line.endswith("%")}
    assert told == {name.strip("_") for _, _, name in latency.STAGES}


# -- the report ------------------------------------------------------------------------------------


def test_time_to_a_likelihood() -> None:
    points = [(1.0, -100.0), (2.0, -50.0), (4.0, -40.0)]
    assert entries.time_to(points, -75.0) == pytest.approx(1.5, rel=1e-4)
    assert entries.time_to(points, -45.0) == pytest.approx(3.0, rel=1e-4)
    assert entries.time_to(points, -40.0 + 1e-4) == pytest.approx(4.0, rel=1e-4)  # but for rounding
    assert entries.time_to(points, -200.0) == 1.0
    assert entries.time_to(points, -10.0) is None


def test_a_short_hpfrec_is_extrapolated_along_its_likelihoods() -> None:
    ours = [
        entry(0.1 * n, quantity="fit", iterations=n, training=-100.0 / n, with_zeros=-50.0 / n)
        for n in (1, 3, 100)
    ]
    theirs = [e | {"who": "hpfrec", "value": 5.0 + 2 * e["iterations"]} for e in ours[:2]]
    derived = [entry(2.0, who="hpfrec"), entry(5.0, who="hpfrec", quantity="set-up")]
    assert entries.curves([*ours, *theirs, *derived], "training")["hpfrec"] == [
        (7.0, -100.0), (11.0, pytest.approx(-100 / 3)), (205.0, -1.0),
    ]  # fmt: skip
    assert entries.curves(ours, "training") == {"openmp": [(e["value"], e["training"]) for e in ours]}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the ceilings need g++")
def test_everything_runs_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    command = [sys.executable, str(BENCH / "run.py"), "--smoke", "--who", "numpy", "--record", str(path)]
    environment = os.environ | {"PYTHONPATH": str(BENCH.parent)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = record.read(path)
    assert {result["measure"] for result in results} == set(measures.MEASURES)
    assert not [result for result in results if "error" in result]
    assert all(result["machine"]["cpu"] and result["run"] for result in results)
    text = report.write(path, tmp_path)
    assert (tmp_path / "REPORT.md").read_text(encoding="utf-8") == text
    for told in ("to equal training", "peak of a fit", "in iterations", "ten items", "nearer ceiling"):
        assert told in text
    assert {".png", ".svg"} <= {file.suffix for file in tmp_path.iterdir()}
