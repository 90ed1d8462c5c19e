"""The run on a GPU, as far as that shows without one: data, limits of time, table, and every step once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cudasim
import gpu_day
import numpy as np
import pytest
import record
import synthetic
from gpu import clock, counters, modelled, shapes, state, steps, sweep, table, worker
from parity import relative_error

from hpf_gpu.backends import create
from hpf_gpu.backends.cuda_source import Knobs, Variant
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


def test_a_matrix_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    shapes.path(tmp_path, "tiny").write_bytes(b"as it was")
    shapes.save(tmp_path, "tiny")
    assert shapes.path(tmp_path, "tiny").read_bytes() == b"as it was"


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


def test_the_clock_repeats_until_it_knows_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now / 1e3))

    def work(ms: float) -> None:
        nonlocal now
        now += ms

    taken = iter([90.0, 90.0, 3.0, 1.0, 2.0, 2.0, 7.0, 99.0])
    timing = clock.Clock(warm_up=2, least=5, seconds=0).wall(lambda: work(next(taken)))
    assert (timing.repeats, timing.calls, timing.host_ms) == (5, 1, None)
    assert (timing.ms, timing.min, timing.max) == pytest.approx((2.0, 1.0, 7.0))
    assert clock.Clock(warm_up=0, seconds=0.0999, most=50).wall(lambda: work(10.0)).repeats == 10
    assert clock.Clock(warm_up=0, seconds=9, most=50).wall(lambda: work(10.0)).repeats == 50


class Gpu:
    """A device and a host in milliseconds of their own making: kernels run one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.idle_from = 0.0, 0.0  # of the host; when the device has done all that it was given
        cuda = SimpleNamespace(Event=partial(Event, self), get_elapsed_time=lambda a, b: b.at - a.at)
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now / 1e3))
        monkeypatch.setattr(clock, "_hold", lambda: (self._hold, None))

    def run(self, ms: float, host_ms: float, *, wait: bool = False) -> None:
        self.now += host_ms
        self.idle_from = max(self.now, self.idle_from) + ms
        if wait:
            self.now = self.idle_from

    def _hold(self, blocks: object, threads: object, arguments: tuple[np.int64, object]) -> None:
        self.run(arguments[0] / clock._STEPS, 0.01)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = max(self._gpu.now, self._gpu.idle_from)

    @property
    def done(self) -> bool:
        return self.at <= self._gpu.now

    def synchronize(self) -> None:
        self._gpu.now = max(self._gpu.now, self.at)


def test_a_slow_host_does_not_count_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    timing = clock.Clock().device(lambda: gpu.run(0.05, host_ms=0.3))
    assert (timing.ms, timing.host_ms) == pytest.approx((0.05, 0.3))
    assert (timing.calls, timing.repeats, timing.queued) == (32, 30, 30)
    long = clock.Clock().device(lambda: gpu.run(7.0, host_ms=0.3))
    assert (long.ms, long.host_ms, long.calls) == pytest.approx((7.0, 0.3, 1))
    between = clock.Clock().device(lambda: gpu.run(2.0, host_ms=3.0))
    assert (between.ms, between.host_ms, between.calls) == pytest.approx((2.0, 3.0, 3))


def test_work_that_waits_for_its_result_takes_the_host_s_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    timing = clock.Clock().device(lambda: gpu.run(1.0, host_ms=0.5, wait=True))
    assert timing.ms == pytest.approx(1.5)
    assert (timing.host_ms, timing.queued, timing.calls) == (None, 0, 5)


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
    assert told == "first: ZeroDivisionError: division by zero (1 of 2 results failed)\n"


# -- Nsight Compute --------------------------------------------------------------------------------

_HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",'
    '"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def counted(*launches: tuple[str, dict[str, str]]) -> str:
    """What ``ncu --csv`` writes about kernels with these values of metrics."""
    rows = [
        f'"{number}","77","python3.12","127.0.0.1","{kernel}","1","7","(128, 1, 1)","(9, 1, 1)","0","9.0",'
        f'"Command line profiler metrics","{metric}","","{value}"'
        for number, (kernel, values) in enumerate(launches)
        for metric, value in values.items()
    ]
    connected = "==PROF== Connected to process 77 (/usr/bin/python3.12)"
    return "\n".join((connected, _HEAD, *rows, "==PROF== Disconnected from process 77\n"))


NCU = counted(
    ("allocate", {counters.METRICS["ns"]: "2,345,678", counters.METRICS["l1_hits"]: "18.40"}),
    ("allocate", {counters.METRICS["ns"]: "4,000,000", counters.METRICS["dram_bytes"]: "12,345,678,912"}),
    (
        "gamma_update",
        {
            counters.METRICS["ns"]: "500000",
            counters.METRICS["warps"]: "n/a",
            counters.METRICS["l2_hits"]: "nan",
            counters.METRICS["latency"]: "20",
            counters.METRICS["long_scoreboard"]: "15.5",
            "a.metric_of_somebody_else": "1",
        },
    ),
)


def test_launches_in_the_table_of_ncu() -> None:
    users, items, update = counters.labelled(list(counters.kernels(NCU)))
    assert users == {"kernel": "allocate users", "ns": 2_345_678, "l1_hits": 18.4}
    assert items == {"kernel": "allocate items", "ns": 4_000_000, "dram_bytes": 12_345_678_912}
    assert update == {"kernel": "gamma_update", "ns": 500_000, "latency": 20, "long_scoreboard": 15.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "may not read the GPU's counters"),
        (
            "==PROF== Connected\n==ERROR== Failed to connect\n==PROF== Bye",
            "nothing: ==ERROR== Failed to conn",
        ),
        ("==WARNING== No kernels were profiled.", "nothing: ==WARNING== No kernels"),
        ("", "nothing: it is silent"),
        (_HEAD, "profiled nothing"),
    ],
)
def test_ncu_has_counted_nothing(text: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        list(counters.kernels(text))


def test_ncu_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["program", "tiny", "64", "--data", str(tmp_path)])
    with pytest.raises(RuntimeError, match=r"ncu .* is not on this machine"):
        counters.measure(worker.Worker(""))


# -- knobs -----------------------------------------------------------------------------------------


def test_the_sweep_has_values_for_every_knob() -> None:
    assert set(sweep.VALUES) == set(vars(Knobs()))
    for name, values in sweep.VALUES.items():
        assert getattr(Knobs(), name) in values


class FakeBackend:
    """Its ``allocate`` takes as long as the knobs say, and one value of them changes bits."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def _variant(self, k: int) -> Variant:
        return Variant(k, np.dtype(np.float32))

    def allocate(self, *_: object, side: str = "both", out: object = None) -> tuple[np.ndarray, ...]:
        knobs = self._variant(64).knobs
        self._gpu.run(2 + abs(knobs.threads - 64) / 64 + abs(knobs.in_flight - 4), host_ms=0.1)
        return (np.full(3, knobs.min_blocks == 8), np.zeros(3))


def test_the_sweep_finds_the_best_knobs_that_change_no_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(Gpu(monkeypatch))
    started = SimpleNamespace(backend=backend, counts=None, sides=(SimpleNamespace(factor=None),) * 2)
    monkeypatch.setattr(sweep, "create", lambda *_: backend)
    monkeypatch.setattr(sweep, "Started", lambda *_: started)
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["program", "tiny", "64", "--results", str(results)])
    mine = worker.Worker("")
    sweep.Sweep(mine, None).run()
    entries = record.read(results)
    assert entries[0]["knobs"] == vars(Knobs())  # the default comes first
    failed = [entry["knobs"]["min_blocks"] for entry in entries if "error" in entry]
    assert failed == [8]
    best = min((entry for entry in entries if "total_ms" in entry), key=lambda entry: entry["total_ms"])
    assert (best["knobs"]["threads"], best["knobs"]["in_flight"]) == (64, 4)
    assert best["users_ms"] == pytest.approx(2)
    tried = [tuple(entry["knobs"].values()) for entry in entries]
    assert len(set(tried)) == len(tried) == 1 + sum(len(values) - 1 for values in sweep.VALUES.values())


# -- the model -------------------------------------------------------------------------------------


@pytest.fixture
def expected(tmp_path: Path) -> Path:
    rows = [
        "gpu\tshape\tk\tprecision\toperation\tms\tbound",
        "h100\tlastfm\t64\tfloat32\tallocate users\t6\tL2",
        "h100\tlastfm\t64\tfloat32\tjoin_segments users\t0.17\tL2",
        "h100\tlastfm\t64\tfloat32\tallocate items\t5\tL2",
        *(
            f"{case}\tjoin_segments users\t0\tL2"
            for case in ("h100\tlastfm\t64\tmixed", "rtx4090\tlastfm\t64\tfloat32", "l4\tlastfm\t64\tfloat32")
        ),
        "h100\tlastfm\t64\tmixed\tallocate users\t3.5\tL2",
        "rtx4090\tlastfm\t64\tfloat32\tallocate users\t9\tHBM",
        "l4\tlastfm\t64\tfloat32\tallocate users\t30\tHBM",
    ]
    path = tmp_path / "gpu_model.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("gpu", "ms"),
    [
        ("NVIDIA H100 80GB HBM3", 6.17),
        ("NVIDIA GeForce RTX 4090", 9),
        ("NVIDIA L4", 30),
        ("NVIDIA L40S", None),
        ("NVIDIA H200", None),
        ("", None),
    ],
)
def test_the_model_of_the_gpu_that_is_there(expected: Path, gpu: str, ms: float | None) -> None:
    assert modelled.Model(expected, gpu).ms(entry("allocate users")) == ms


def test_the_model_of_each_case(expected: Path, tmp_path: Path) -> None:
    model = modelled.Model(expected, "NVIDIA H100 PCIe")
    assert model.ms(entry("allocate users", variant="mixed")) == 3.5
    for other in (
        entry("allocate users", variant="composed"),
        entry("allocate users", variant="float64", dtype="float64"),
        entry("allocate users", k=32),
        entry("allocate items"),  # of which a part is missing
        entry("allocate users", "netflix"),
        entry("predict_pairs"),
    ):
        assert model.ms(other) is None
    assert modelled.Model(tmp_path / "missing.tsv", "NVIDIA H100").ms(entry("allocate users")) is None


def test_the_tracked_model_has_what_is_timed() -> None:
    for gpu, tracked in (("NVIDIA H100 80GB HBM3", True), ("NVIDIA L4", True), ("NVIDIA L40", False)):
        model = modelled.Model(modelled.TABLE, gpu)
        for op in modelled.TIMED:
            assert (model.ms(entry(op, "netflix")) is not None) is tracked
        assert model.ms(entry("iteration", "netflix", k=63)) is None


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
    timed = {"ms": 12.34, "min": 12.0, "max": 13.0, "host_ms": 0.25, "bytes_per_second": 1.5e12}
    return {"op": op, "shape": shape, "k": k, "variant": variant} | timed | more


def beside(op: str, **fields: Any) -> dict[str, Any]:
    """An entry of which the table has a line of its own kind."""
    return {key: value for key, value in entry(op).items() if key in ("op", "shape", "k", "variant")} | fields


def test_the_table_shows_times_shares_and_failures(expected: Path) -> None:
    broken = {key: value for key, value in entry("mean").items() if key != "ms"}
    gathers = {"rows": 17_500_000, "row_bytes": 256, "share": 0.87}
    entries = [
        {"op": "gather", "variant": "in L2", "row_bytes": 256, "ms": 1.0, "bytes_per_second": 5.25e11},
        {"op": "copy", "ms": 1.0, "bytes_per_second": 3e12},
        {"op": "gather", "variant": "beyond L2", "row_bytes": 256, "error": "OutOfMemory"},
        entry("allocate users", ms=99.0),
        entry("allocate users", **gathers),  # measured again
        entry("allocate users", k=128, ms=1234.5, host_ms=None),
        entry("allocate users", variant="mixed"),
        entry("fit with checks", in_checks=0.125),
        broken,
    ]
    outcomes = [
        steps.Outcome("contract", "failed", 12.3, "1 failed, 99 passed " * 9),
        steps.Outcome("ceilings", "failed", 1.0, "some.module.CUDARuntimeError: no device"),
        steps.Outcome("taste K=64", "skipped", 0.0, "needs 20 s, and 3 s are left"),
        steps.Outcome("openmp taste", "skipped", 0.0, "needs 15 s, and 3 s are left"),
    ]
    text = table.table(entries, outcomes, modelled.Model(expected, "NVIDIA H100 80GB HBM3"))
    assert "contract            failed        12 s  1 failed, 99 passed 1 failed" in text
    assert "ceilings            failed         1 s  CUDARuntimeError: no device\n" in text
    assert "gather 256 B in L2          525 GB/s" in text
    assert "gather 256 B beyond L2      failed" in text
    assert "lastfm K=64: 358,868 × 160,113, 17,500,000 counts" in text
    # 4.48 GB of rows in 12.34 ms are 69 % of 525 GB/s; 1.5 of 3 TB/s are half a copy's rate.
    line = "allocate users                 12.3   4%   0.25  1500   87%  69%   50%    6.17 × 2.00\n"
    assert line in text
    assert text.count("allocate users   ") == 2  # the first of three is out of date
    assert "allocate users                 1234   0%         1500              50%" in text
    assert "allocate users (mixed)         12.3   4%   0.25  1500              50%     3.5 × 3.53" in text
    assert "12% in checks" in text
    assert "mean" + " " * 25 + "failed" in text
    assert "no time was left for taste K=64, openmp taste\n" in text


def test_in_brief_the_table_has_what_matters_most() -> None:
    entries = [
        {"op": "copy", "ms": 1.0, "bytes_per_second": 3e12},
        *(entry(op) for op in ("iteration", "log_rate_sum", "mean", "fit with checks")),
        *(entry(op, variant="mixed") for op in ("iteration", "gamma_update")),
        entry("iteration", k=32),
        beside("clocks", sm_mhz=1755.0, most_sm_mhz=1980.0),
    ]
    lines = table.table(entries, [], modelled.Model(Path("none"), ""), brief=True).splitlines()
    shown = [line[: table._LABEL].strip() for line in lines]
    assert shown[:2] == ["", "copy"]
    assert [label for label in shown if label][2:] == [
        *("iteration", "log_rate_sum", "fit with checks", "iteration (mixed)"),
        "clocks in iterations of last",
    ]


def test_the_table_shows_counters_knobs_and_clocks() -> None:
    told = {"ns": 2.5e6, "l1_hits": 18.4, "dram_bytes": 1.25e10, "latency": 20.0, "long_scoreboard": 15.5}
    times = {"users_ms": 3.0, "items_ms": 5.0}
    entries = [
        beside("clocks", sm_mhz=1755.0, most_sm_mhz=1980.0, watts=612.3),
        beside("counters", kernel="allocate users", **told),
        beside("counters", error="RuntimeError: ncu is not there"),
        beside("sweep", knobs={"threads": 128, "in_flight": 0}, total_ms=8.0, sm=90, **times),
        beside("sweep", knobs={"threads": 64, "in_flight": 0}, total_ms=7.6, **times),
        beside("sweep", knobs={"threads": 256, "in_flight": 0}, error="RuntimeError: change bits"),
    ]
    lines = table.table(entries, [], modelled.Model(Path("none"), "")).splitlines()
    (clocks,) = (line for line in lines if line.startswith("clocks"))
    assert clocks == "clocks in iterations of lastfm: SM 1755 of 1980 MHz, 612 W"
    (counted,) = (line.split() for line in lines if line.startswith("allocate users"))
    assert counted[2:] == ["2.5", "18%", "12.5", "78%"]
    assert "lastfm K=64, sweep on sm_90: ms of allocate users + items" in lines
    swept = [line.split() for line in lines if "threads=" in line]
    assert [words[0] for words in swept] == ["threads=128", "threads=64", "threads=256"]
    assert [words[-1] for words in swept] == ["100%", "95%", "bits"]


def test_the_table_of_a_whole_day_fits(tmp_path: Path, expected: Path) -> None:
    """What is printed, into a log of 12,000 characters."""
    planned = list(gpu_day.Plan(tmp_path, tmp_path / "results.jsonl", smoke=False).steps())
    outcomes = [steps.Outcome(given.name, "out of time", 100.0, "x" * 500) for given in planned]
    ours = (
        *("gather for users", "gather for items", "iteration", "allocate users", "allocate items"),
        *("allocate both", "allocate exact", "log_rate_sum", "log_normalizer_sum", "log_factorial_sum"),
        *("gamma_update", "mean", "gamma_elbo", "distance", "predict_pairs", "top_items"),
    )
    of_each = ("gather for users", "gather for items", "iteration", "allocate users", "allocate items")
    full = {"share": 0.5, "rows": 10**8, "row_bytes": 256}
    entries = [
        {"op": "gather", "variant": where, "row_bytes": size, "ms": 1.0, "bytes_per_second": 1e12}
        for size in (64, 128, 256, 512)
        for where in ("in L2", "beyond L2")
    ]
    for name in (*gpu_day.LARGE, *gpu_day.SMALL):
        for k in (32, 64, 128) if name in gpu_day.LARGE else (64,):
            entries += [entry(op, name, k, **full) for op in ours]
            for variant in ("mixed", "composed", *(("float64",) if name == "lastfm" and k == 64 else ())):
                entries += [entry(op, name, k, variant, **full) for op in (*of_each, "gamma_update")]
        entries += [entry("fit", name), entry("fit with checks", name, in_checks=0.2)]
        if name in gpu_day.LARGE:
            others = ("openmp", "torch sparse", "torch index_add")
            entries += [entry("iteration", name, 64, variant) for variant in others]
    entries += [beside("clocks", sm_mhz=1755.0, most_sm_mhz=1980.0)]
    for name in ("lastfm", "netflix"):
        told = {"shape": entry("", name)["shape"], "users_ms": 1.0, "items_ms": 1.0, "total_ms": 2.0}
        knobs = [{"threads": 64, "in_flight": 4, "min_blocks": n} for n in range(12)]
        entries += [beside("sweep", knobs=each, **told) for each in knobs]
        entries += [beside("counters", kernel=f"kernel {n}", ns=1e6, **told) for n in range(9)]
    model = modelled.Model(expected, "NVIDIA H100")
    assert len(table.table(entries, outcomes, model, brief=True)) < 12_000


# -- the plan --------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path) -> list[steps.Step]:
    return list(gpu_day.Plan(tmp_path, tmp_path / "results.jsonl", smoke=False).steps())


def test_only_some_steps(plan: list[steps.Step]) -> None:
    names = [given.name for given in plan]
    assert len(set(names)) == len(names)
    assert gpu_day.select(plan, []) == plan
    chosen = gpu_day.select(plan, ["netflix*", "doctor", "fit lastfm"])
    assert {given.name for given in chosen} >= {"doctor", "netflix K=64", "netflix K=128", "fit lastfm"}
    assert [given for given in plan if given in chosen] == chosen  # in the plan's order
    assert gpu_day.select(plan, ["install", "data"]) == []
    with pytest.raises(
        ValueError, match=r"no step is called 'netflx\*'; the steps are install, data, nvidia-smi"
    ):
        gpu_day.select(plan, ["doctor", "netflx*"])


def test_the_composed_form_is_measured_on_every_shape(plan: list[steps.Step]) -> None:
    composed = {given.shape for given in plan if "composed" in given.command}
    assert composed == {*gpu_day.LARGE, *gpu_day.SMALL}


def test_data_are_made_for_the_steps_that_need_them(plan: list[steps.Step], tmp_path: Path) -> None:
    made = gpu_day.Plan(tmp_path, tmp_path / "results.jsonl", smoke=False).make_data
    wanted = made(gpu_day.select(plan, ["doctor", "netflix*", "memcheck"])).command
    assert wanted[-3:] == (str(tmp_path), "netflix", "small")
    assert set(made(plan).command) >= {*gpu_day.LARGE, *gpu_day.SMALL}
    assert all(given.shape in given.command for given in plan if given.shape)


def test_the_package_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(site: Path) -> steps.Step:
        return step(f"import os; os.mkdir({str(site)!r}); {code}")

    monkeypatch.setattr(gpu_day, "install", install)
    day = gpu_day.Day(tmp_path, tmp_path, steps.Budget(1000), patience=1)
    site = tmp_path / "site-1"
    for code, there in (("1 / 0", False), ("", True), ("1 / 0", True)):  # noqa: B007
        day.install(site)
        assert site.exists() == there
    assert [outcome.verdict for outcome in day._outcomes] == ["failed", "ok", "ok"]
    assert day._outcomes[-1].note == "was there"
    assert day._environment["PYTHONPATH"].startswith(f"{site}{os.pathsep}")


def test_a_fingerprint_changes_with_contents_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_day, "ROOT", tmp_path)
    folder = tmp_path / "package"
    (folder / "__pycache__").mkdir(parents=True)
    seen = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        (folder / name).write_text(text)
        seen.add(gpu_day.fingerprint(folder))
    (folder / "__pycache__" / "a.pyc").write_text("compiled")
    assert len(seen) == 3
    assert gpu_day.fingerprint(folder) in seen


# -- all of it -------------------------------------------------------------------------------------


_NVIDIA_SMI = """
told = {"name": "CUDA simulator", "clocks.sm": "1755", "clocks.max.sm": "1980", "power.draw": "[N/A]"}
(query,) = (each.partition("=")[2] for each in sys.argv if each.startswith("--query-gpu="))
print(", ".join(told.get(name, "1") for name in query.split(",")))
"""

_NCU = f"""
program = sys.argv[sys.argv.index({sys.executable!r}):]
subprocess.run(program, check=True)
pathlib.Path(sys.argv[sys.argv.index("--log-file") + 1]).write_text({NCU!r})
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with programs that answer as NVIDIA's do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (("nvidia-smi", _NVIDIA_SMI), ("ncu", _NCU)):
        (folder / name).write_text(f"#!{sys.executable}\nimport pathlib, subprocess, sys\n{code}")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_every_step_runs_under_the_simulator(tmp_path: Path, tools: Path) -> None:
    """All but compute-sanitizer and PyTorch, which are missing on most machines: then they say so."""
    try:
        environment = cudasim.environment("fast")
    except cudasim.Unsupported as error:
        pytest.skip(str(error))
    environment["PATH"] = os.pathsep.join((str(tools), environment["PATH"]))
    out, work = tmp_path / "out", tmp_path / "work"

    def run_day(*options: str) -> str:
        command = [sys.executable, str(BENCH / "gpu_day.py"), "--smoke", "--no-install", "--seconds", "1500"]
        folders = ("--out", str(out), "--work", str(work))
        ran = subprocess.run(
            [*command, *folders, *options], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        text = (out / "table.txt").read_text()
        assert ran.stdout.endswith(text[text.rindex("\n\n") :])
        return text

    text = run_day()
    log = f"{text}\n{(out / 'log.txt').read_text()[-6000:]}"
    working = ("nvidia-smi", "doctor", "contract", "data", "ceilings", "launch blocking", "tiny K=64")
    for name in (*working, "fit tiny", "clocks tiny", "ncu tiny", "sweep tiny", "openmp tiny"):
        assert re.search(rf"^{name} +ok ", text, re.MULTILINE), log
    for name in ("torch tiny", "memcheck", "racecheck", "synccheck", "initcheck"):
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert " ok " in line or "No module named" in line or "No such file" in line
    in_order = ("contract", "data", "tiny K=64", "fit tiny", "launch blocking", "sweep tiny", "openmp tiny")
    assert sorted(in_order, key=lambda name: text.index(f"\n{name} ")) == list(in_order)
    results = out / "cuda-simulator.jsonl"
    entries = record.read(results)
    assert not [entry for entry in entries if "error" in entry]
    allocated = {entry["variant"] for entry in entries if entry["op"] == "allocate users"}
    assert allocated == {"fused", "mixed", "composed", "float64"}
    assert {"copy", "gather", "iteration", "top_items", "fit", "fit with checks"} <= {
        entry["op"] for entry in entries
    }
    assert "clocks in iterations of tiny: SM 1755 of 1980 MHz" in text
    counted = [entry["kernel"] for entry in entries if entry["op"] == "counters"]
    assert counted == ["allocate users", "allocate items", "gamma_update"]
    (matrix,) = work.glob("data-*/tiny.npz")
    made = matrix.stat().st_mtime_ns

    again = run_day("--only", "nvidia*,data")
    assert [line.split()[0] for line in again.splitlines()[1:3]] == ["nvidia-smi", "data"]
    assert matrix.stat().st_mtime_ns == made
    assert record.read(results) == entries
    assert again[again.index("\n\n") :] == text[text.index("\n\n") :]


def test_an_unknown_step_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "gpu_day.py"), "--out", str(tmp_path / "out"), "--only", "contrat"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2
    assert (
        "no step is called 'contrat'; the steps are install, data, nvidia-smi, doctor, contract" in ran.stderr
    )
    assert not (tmp_path / "out").exists()
