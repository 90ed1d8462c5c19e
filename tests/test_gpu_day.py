"""The run on a GPU, as far as that shows without one: data, limits of time, table, and every step once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cudasim
import gpu_day
import numpy as np
import pytest
import record
import synthetic
from gpu import clock, shapes, state, steps, table, worker
from parity import relative_error

from hpf_gpu.backends import create
from hpf_gpu.model.start import StartValues

BENCH = Path(__file__).resolve().parents[1] / "bench"

# -- count matrices ------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_BLOCK", 500)


def test_the_matrix_is_canonical_and_of_the_size_asked_for(small_blocks: None) -> None:
    csr = synthetic.power_law_csr(2000, 300, 30_000)
    assert (csr.shape, csr.nnz, csr.dtype, csr.indices.dtype) == ((2000, 300), 30_000, np.float32, np.int32)
    csr.check_format(full_check=True)
    pairs = np.repeat(np.arange(2000), np.diff(csr.indptr)) * 300 + csr.indices
    assert (np.diff(pairs) > 0).all()
    assert (csr.data >= 1).all()
    assert (csr.data == np.floor(csr.data)).all()
    assert csr.data.mean() == pytest.approx(2.54, rel=0.02)  # 1 + 1 / (e^½ − 1)


def test_degrees_follow_the_power_laws() -> None:
    n, m, nnz = 3000, 2000, 60_000
    csr = synthetic.power_law_csr(n, m, nnz)
    expected = (np.arange(n) + 1 + n / 100) ** -0.8
    degrees = np.sort(np.diff(csr.indptr))[::-1]
    np.testing.assert_allclose(degrees, expected * (nnz / expected.sum()), atol=1)
    # Shares of the most popular items.  Measured over eight seeds: 1.4 % off at most.
    popular = np.cumsum(np.sort(np.bincount(csr.indices, minlength=m))[::-1]) / nnz
    for items in (20, 200, 1000):
        share = ((items + 20) ** 0.2 - 20**0.2) / ((m + 20) ** 0.2 - 20**0.2)
        assert popular[items - 1] == pytest.approx(share, rel=0.05)
    # Neither ids of users nor of items tell how many counts they have.
    for counts in (np.diff(csr.indptr), np.bincount(csr.indices, minlength=m)):
        assert abs(np.corrcoef(np.arange(len(counts)), counts)[0, 1]) < 0.1


def test_the_same_seed_gives_the_same_matrix_on_any_number_of_threads(
    small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (synthetic.power_law_csr(900, 200, 9000, seed=seed) for seed in (1, 2))
    monkeypatch.setattr(synthetic, "ThreadPoolExecutor", partial(ThreadPoolExecutor, 1))
    again = synthetic.power_law_csr(900, 200, 9000, seed=1)
    for field in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(one, field), getattr(again, field))
    assert not np.array_equal(one.indices, other.indices)


def test_users_may_have_every_item_and_no_more() -> None:
    full = synthetic.power_law_csr(40, 30, 218)
    assert np.diff(full.indptr).max() == 30
    with pytest.raises(ValueError, match="one of 40 users would have 41 counts of 30 items"):
        synthetic.power_law_csr(40, 30, 300)


def test_a_matrix_comes_back_from_its_folder(tmp_path: Path) -> None:
    shapes.save(tmp_path, "tiny")
    back, made = shapes.load(tmp_path, "tiny"), synthetic.power_law_csr(400, 150, 4000)
    assert back.shape == made.shape
    assert (back != made).nnz == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.npz"]


# -- steps -----------------------------------------------------------------------------------------


def step(code: str, limit: float = 300, least: float = 0) -> steps.Step:
    return steps.Step("name", (sys.executable, "-c", code), limit, least)


def run(given: steps.Step, tmp_path: Path, seconds: float = 100) -> steps.Outcome:
    return steps.run(
        given, steps.Budget(seconds), tmp_path / "log.txt", os.environ | {"PYTHONUNBUFFERED": "1"}
    )


def test_a_budget_gives_what_is_left_and_nothing_to_those_that_need_more() -> None:
    now = 1000.0
    budget = steps.Budget(100, lambda: now)
    assert budget.limit_of(step("", limit=30, least=10)) == 30
    now = 1085.0
    assert budget.limit_of(step("", limit=30, least=10)) == 15
    assert budget.limit_of(step("", limit=30, least=16)) is None
    now = 1101.0
    assert budget.limit_of(step("", least=0)) is None


def test_outcomes(tmp_path: Path) -> None:
    ok = run(step("print('one'); print('two')"), tmp_path)
    failed = run(step("print('three'); 1 / 0"), tmp_path)
    assert (ok.verdict, ok.note) == ("ok", "two")
    assert (failed.verdict, failed.note) == ("failed", "ZeroDivisionError: division by zero")
    skipped = run(step("", least=50), tmp_path, seconds=20)
    assert (skipped.verdict, skipped.note) == ("skipped", "needs 50 s, and 20 s are left")
    missing = run(steps.Step("name", ("no-such-program",), 5, 0), tmp_path)
    assert (missing.verdict, missing.note) == ("failed", "no-such-program: No such file or directory")
    silent = run(step(""), tmp_path)
    assert (silent.verdict, silent.note) == ("ok", "")
    log = (tmp_path / "log.txt").read_text()
    assert log.index("two") < log.index("three") < log.index("=== name: no-such-program")


def test_a_step_ends_at_its_limit_with_all_that_it_has_started(tmp_path: Path) -> None:
    child = """
import subprocess, time
print(subprocess.Popen(["sleep", "3600"]).pid, flush=True)
time.sleep(3600)
"""
    for limit in (1, 6, 36, 216):  # a busy machine may not get to the print
        outcome = run(step(child, limit=limit), tmp_path, seconds=1000)
        assert outcome.verdict == "out of time"
        assert limit <= outcome.seconds < 1800
        if outcome.note:
            break
    status = Path("/proc", outcome.note, "stat")
    while status.exists() and status.read_text().split()[2] != "Z":
        assert outcome.seconds < 1800
        time.sleep(0.01)


# -- measuring -------------------------------------------------------------------------------------


def test_the_clock_repeats_until_it_knows_enough() -> None:
    taken = iter([90.0, 90.0, 3.0, 1.0, 2.0, 2.0, 7.0, 99.0])
    timing = clock.Clock(warm_up=2, least=5, seconds=0)._repeated(lambda: next(taken))
    assert timing == clock.Timing(ms=2.0, min=1.0, max=7.0, repeats=5)
    assert clock.Clock(warm_up=0, seconds=0.1, most=50)._repeated(lambda: 10.0).repeats == 10
    assert clock.Clock(warm_up=0, seconds=9, most=50)._repeated(lambda: 10.0).repeats == 50


def test_a_failure_is_a_result_and_the_next_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["program", "--results", str(results)])
    monkeypatch.setenv("HPF_GPU_COMMIT", "abc")
    mine = worker.Worker("")
    mine.common = {"k": 8}
    mine.attempt("first", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    mine.attempt("second", lambda: mine.write("second", clock.Timing(2.0, 1.0, 3.0, 5), bytes=4000))
    with results.open("a") as file:
        file.write('{"op": "killed whi')
    with pytest.raises(SystemExit, match="1"):
        mine.finish()
    first, second = record.read(results)
    assert (first["error"], first["k"]) == ("ZeroDivisionError: division by zero", 8)
    assert (second["ms"], second["repeats"], second["bytes_per_second"]) == (2.0, 5, 2e6)
    assert second["machine"]["commit"] == "abc"
    told = capsys.readouterr().out
    assert told == "1 of 2 results failed: first: ZeroDivisionError: division by zero\n"


@pytest.mark.parametrize("row_bytes", [64, 128, 256, 416, 512])
def test_the_gather_kernel_reads_every_row(row_bytes: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (50, row_bytes // 4)).astype(np.float32)
    column = rng.integers(0, 50, 1000).astype(np.int32)
    source = (BENCH / "gpu" / "gather.cu").read_text()
    try:
        module = cudasim.build(source, (f"-DROW_BYTES={row_bytes}", "-DIN_FLIGHT=4"))
    except cudasim.Unsupported as error:
        pytest.skip(str(error))
    device_table, device_column, out = map(module.array, (values, column, np.zeros(128, np.float32)))
    module.launch("gather", (1,), (128,), (device_table, device_column, np.int64(1000), out))
    assert out.sum() == values[column].sum()


def test_pytorch_computes_the_same_iterations() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: its iteration was not compared")
    from gpu import torch_update

    csr, k = synthetic.power_law_csr(400, 150, 4000), 12
    ours = state.started(create("numpy", np.float32), csr, k, 5)
    start = StartValues(400, 150, k, state.SEED, np.dtype(np.float32))
    for how in torch_update.ALLOCATE:
        theirs = torch_update.Model.begin(csr, start, "cpu")
        for _ in range(5):
            theirs = theirs.iterated(how)
        for mine, side in ((ours.users[0], theirs.users), (ours.items, theirs.items)):
            assert relative_error(side.shape.numpy(), mine.factor.shape) < 1e-5  # 1.7e-6
            assert relative_error(side.hyper_rate.numpy(), mine.hyper_rate) < 1e-6  # 1.7e-7


# -- the table -------------------------------------------------------------------------------------


def entry(op: str, name: str = "lastfm", k: int = 64, variant: str = "fused", **more: Any) -> dict[str, Any]:
    shape = {"name": name, "users": 358_868, "items": 160_113, "nnz": 17_500_000}
    timed = {"ms": 12.34, "min": 12.0, "max": 13.0, "bytes_per_second": 1.5e12, "units_per_second": 2e9}
    return {"op": op, "shape": shape, "k": k, "variant": variant} | timed | more


def test_the_table_shows_times_shares_and_failures() -> None:
    broken = {key: value for key, value in entry("mean").items() if key != "ms"}
    entries = [
        {"op": "gather", "variant": "in L2", "row_bytes": 128, "ms": 1.0, "bytes_per_second": 5.25e12},
        {"op": "copy", "error": "OutOfMemory"},
        entry("allocate users", share=0.87),
        entry("allocate users", k=128, ms=1234.5),
        entry("allocate users", variant="mixed"),
        broken,
    ]
    outcomes = [
        steps.Outcome("contract", "failed", 12.3, "1 failed, 99 passed " * 9),
        steps.Outcome("ceilings", "failed", 1.0, "some.module.CUDARuntimeError: no device"),
    ]
    text = table.table(entries, outcomes)
    assert "contract        failed        12 s  1 failed, 99 passed 1 failed" in text
    assert "ceilings        failed         1 s  CUDARuntimeError: no device\n" in text
    assert "gather 128 B in L2          5.25 TB/s" in text
    assert "copy                        failed" in text
    assert "lastfm, 358,868 × 160,113, 17,500,000 counts" in text
    assert "allocate users                12.3 ±4%  87%  1234 ±0%\n" in text
    assert "allocate users (mixed)        12.3 ±4%" in text
    assert "mean" + " " * 33 + "failed" in text
    assert "allocate users                     1.5 TB/s    2 Gcounts/s  K=64" in text


def test_the_table_of_a_whole_day_fits(tmp_path: Path) -> None:
    """What a terminal or a log of 12,000 characters shows in full."""
    plan = gpu_day.Plan(tmp_path, tmp_path / "results.jsonl", smoke=False)
    planned = [*plan.check(), *plan.measure()]
    outcomes = [steps.Outcome(given.name, "out of time", 100.0, "x" * 500) for given in planned]
    ours = (
        *("gather for users", "gather for items", "iteration", "allocate users", "allocate items"),
        *("allocate both", "allocate exact", "log_rate_sum", "log_normalizer_sum", "log_factorial_sum"),
        *("gamma_update", "mean", "gamma_elbo", "distance", "predict_pairs", "top_items", "fit"),
    )
    of_each = ("gather for users", "gather for items", "iteration", "allocate users", "allocate items")
    entries = [
        {"op": "gather", "variant": "beyond L2", "row_bytes": 512, "ms": 1.0, "bytes_per_second": 1e12}
    ] * 8
    for name in gpu_day.SHAPES:
        for k in (32, 64, 128):
            entries += [entry(op, name, k, share=0.5) for op in ours]
            for variant in ("mixed", "composed", *(("float64",) if name == "lastfm" else ())):
                entries += [entry(op, name, k, variant, share=0.5) for op in (*of_each, "gamma_update")]
            others = ("openmp", "torch sparse", "torch index_add")
            entries += [entry("iteration", name, k, variant) for variant in others]
    assert len(table.table(entries, outcomes)) < 12_000


# -- all of it -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_runs_under_the_simulator(tmp_path: Path) -> None:
    """All but compute-sanitizer and PyTorch, which are missing on most machines: then they say so."""
    try:
        environment = cudasim.environment("fast")
    except cudasim.Unsupported as error:
        pytest.skip(str(error))
    command = [sys.executable, str(BENCH / "gpu_day.py"), "--smoke", "--no-install", "--out", str(tmp_path)]
    ran = subprocess.run(
        [*command, "--seconds", "1500"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    report = ran.stdout + ran.stderr
    assert ran.returncode == 0, report
    text = (tmp_path / "table.txt").read_text()
    assert ran.stdout.endswith(f"\n\n{text}")
    for name in ("contract", "data", "ceilings", "tiny K=64", "fit tiny", "openmp tiny"):
        assert f"\n{name:<16}ok " in f"\n{text}", f"{report}\n{(tmp_path / 'log.txt').read_text()[-6000:]}"
    for name in ("torch tiny", "memcheck", "racecheck", "synccheck"):
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert " ok " in line or "No module named" in line or "No such file" in line
    (results,) = tmp_path.glob("*.jsonl")
    entries = record.read(results)
    assert not [entry for entry in entries if "ms" not in entry]
    allocated = {entry["variant"] for entry in entries if entry["op"] == "allocate users"}
    assert allocated == {"fused", "mixed", "composed", "float64"}
    assert {"copy", "gather", "iteration", "top_items", "fit"} <= {entry["op"] for entry in entries}
