"""The model of a GPU: caches and warps by hand, ways through machine code, and the tables."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_model
import numpy as np
import pytest
import synthetic
from gpu import modelled
from gpu_model import Case
from gpumodel.caches import Machine, Nonzeros, Segments, Traffic, gather
from gpumodel.cost import COLUMNS, Cost
from gpumodel.gpus import GPUS, l1_bytes
from gpumodel.matrices import ORDERS, rows_of, stored
from gpumodel.sass import Counts, Flow, counts_of

try:
    import cubin
    from gpumodel.machine_code import machine_code
except ModuleNotFoundError as error:
    why_not = str(error)
else:
    why_not = ""

TINY = Case("tiny", 32, "float32", "h100")
GAMMA = ("gamma.cu",)

# -- caches and warps ------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="the simulation of caches needs g++")
needs_nvrtc = pytest.mark.skipif(bool(why_not), reason=why_not)


def run(columns: list[int] | np.ndarray, sizes: list[int], **more: float) -> Traffic:
    """Segments of these sizes over these columns, in order."""
    machine = {
        "multiprocessors": 1,
        "blocks": 1,
        "warps": 1,
        "l1_rows": 64,
        "l2_rows": 1024,
        "step": 1,
    } | more
    column, size = np.asarray(columns, np.int32), np.array(sizes, np.int32)
    segments = Segments(np.cumsum(size) - size, size)
    return gather(Machine(**machine), segments, Nonzeros.of(column, int(column.max()) + 1, sampling=1))


@needs_compiler
def test_one_column_comes_from_dram_once_and_from_l2_once_for_each_multiprocessor() -> None:
    one = run([0] * 100, [50, 50])
    assert (one.l1_hits, one.dram) == (0.99, 0.01)
    two = run([0] * 100, [50, 50], multiprocessors=2)
    assert (two.l1_hits, two.dram) == (0.98, 0.01)


@needs_compiler
def test_a_table_that_fits_is_read_once() -> None:
    columns = np.random.default_rng(0).integers(0, 40, 4000)
    fits = run(columns, [4000], l1_rows=4096)  # so large that no set overflows
    assert (fits.dram, fits.l1_hits) == (40 / 4000, 1 - 40 / 4000)
    too_large = run(np.tile(np.arange(4000), 3), [12000], l1_rows=8, l2_rows=1 << 16)
    assert (too_large.dram, too_large.l1_hits) == (4000 / 12000, 0.0)


@needs_compiler
def test_a_stream_has_no_hits_nor_has_a_sweep_over_more_than_fits() -> None:
    stream = run(np.arange(1000), [1000])
    assert (stream.dram, stream.l1_hits) == (1.0, 0.0)
    sweep = run(np.tile(np.arange(5000), 2), [10000], l2_rows=64)
    assert (sweep.dram, sweep.l1_hits) == (1.0, 0.0)


@needs_compiler
def test_a_long_segment_keeps_the_warps_of_short_ones_idle() -> None:
    columns = np.zeros(256 + 3 * 16)
    beside = {"warps": 4, "step": 16}
    together = run(columns, [256, 16, 16, 16], waits=0, **beside)
    assert (together.rounds, together.busy) == (16, (16 + 3) / 64)
    # Two rounds without nonzeros are work too.
    waiting = run(columns, [256, 16, 16, 16], waits=2, **beside)
    assert (waiting.rounds, waiting.busy) == (18, (18 + 3 * 3) / 72)
    # In a block of its own it holds up nobody: the others go one after the other through the second place.
    apart = run(columns, [256, 16, 16, 16], waits=0, warps=1, blocks=2, step=16)
    assert (apart.rounds, apart.busy) == (16, 1.0)


@needs_compiler
def test_blocks_go_to_the_first_place_that_is_free() -> None:
    one_by_one = run(np.zeros(100), [40, 30, 30], waits=0)
    assert one_by_one.rounds == 100
    side_by_side = run(np.zeros(100), [40, 30, 30], waits=0, multiprocessors=2)
    assert side_by_side.rounds == 60  # the third follows the shorter of the first two
    assert run(np.zeros(1), [1, 0, 0], waits=1, blocks=3).busy == 1.0  # empty rows


@needs_compiler
def test_a_round_lasts_as_long_as_its_scarcest_resource_needs() -> None:
    columns, slow = np.arange(100), {"dram_latency": 5.0, "l2_latency": 2.0, "waits": 1}
    # Each nonzero waits for its column and its row; the segment's place is in DRAM, its row in L2.
    assert run(columns, [100], **slow).waited_for["latency"] == 100 * 10 + 7
    near = run(np.zeros(100), [100], **slow)
    assert near.waited_for["latency"] == 10 + 99 * 7 + 7
    narrow = run(columns, [100], dram_rate=10.0, row_bytes=200, nonzero_dram_bytes=8, **slow)
    assert narrow.waited_for["dram"] == pytest.approx(100 * 208 / 10)
    assert narrow.seconds == pytest.approx(100 * 208 / 10 + 7)
    # Rows that are in L1 do not cross to it again.
    hits = run(np.zeros(100), [100], l2_rate=10.0, row_bytes=200, nonzero_l2_bytes=8, waits=0)
    assert hits.seconds == pytest.approx((200 + 100 * 8) / 10)
    busy = run(np.zeros(100), [60, 40], blocks=2, step_seconds=3.0, segment_seconds=7.0, waits=1)
    assert busy.waited_for["unit"] == 2 * 7 + 40 * 6 + 20 * 3  # both warps on the same multiprocessor


@needs_compiler
def test_few_columns_stand_for_all() -> None:
    csr = synthetic.power_law_csr(20_000, 20_000, 400_000)
    rows = rows_of(csr)
    machine = Machine(16, blocks=4, warps=4, l1_rows=256, l2_rows=4096, step=16)
    some = gather(machine, rows.segments, Nonzeros.of(csr.indices, 20_000, sampling=8))
    every = gather(machine, rows.segments, Nonzeros.of(csr.indices, 20_000, sampling=1))
    assert (some.rounds, some.busy) == (every.rounds, every.busy)
    # Measured: 0.005 and 0.005.
    assert some.dram == pytest.approx(every.dram, abs=0.02)
    assert some.l1_hits == pytest.approx(every.l1_hits, abs=0.02)


def test_orders_launch_every_segment_once() -> None:
    segments = Segments(np.array([0, 200, 210, 400, 430]), np.array([200, 10, 190, 30, 128], np.int32))
    column = np.concatenate(
        [np.full(200, 7), np.full(10, 1), np.full(190, 2), np.full(30, 0), np.full(128, 5)]
    )
    assert stored(segments, column).tolist() == [0, 2, 4, 3, 1]  # neighbours, long ones first
    for order in ORDERS.values():
        assert sorted(order(segments, column)) == [0, 1, 2, 3, 4]


def test_matrices_are_cut_as_the_backend_cuts_them() -> None:
    csr = synthetic.power_law_csr(300, 1000, 20_000)
    rows = rows_of(csr, stored)
    assert (rows.rows, rows.columns, rows.segments.size.sum()) == (300, 1000, 20_000)
    pieces = np.maximum(1, -(-np.diff(csr.indptr) // 256))
    assert len(rows.segments.size) == pieces.sum()
    assert (rows.longest, rows.long_rows) == (pieces.max(), (pieces > 1).sum())
    assert rows.slots == pieces[pieces > 1].sum()


def test_shared_memory_is_taken_from_the_l1_cache() -> None:
    assert l1_bytes(GPUS["t4"], blocks=6, shared=0) == 64 * 1024
    assert l1_bytes(GPUS["t4"], blocks=4, shared=8200) == 32 * 1024
    assert l1_bytes(GPUS["h100"], blocks=6, shared=0) == (256 - 8) * 1024
    assert l1_bytes(GPUS["a100"], blocks=8, shared=4096) == (192 - 64) * 1024


# -- ways through machine code ---------------------------------------------------------------------


def code(text: str) -> Flow:
    """One instruction a line: its opcode, ``> n`` for a jump to line n, ``?`` where it is conditional."""
    found = []
    for line in text.split("\n"):
        opcode, *rest = line.split()
        target = int(rest[rest.index(">") + 1]) if ">" in rest else None
        found.append(SimpleNamespace(opcode=opcode, target=target, conditional="?" in rest))
    return Flow(found)


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        ("DFMA", Counts(1, float64=1)),
        ("DEPBAR.LE", Counts(1)),
        ("FFMA.FTZ", Counts(1, float32=1)),
        ("MUFU.RCP64H", Counts(1, special=1)),
        ("F2F.F64.F32", Counts(1, special=1)),
        ("LDG.E.128.CONSTANT", Counts(1, passes=4)),
        ("SHFL.BFLY", Counts(1, passes=1)),
        ("STS.64", Counts(1, passes=2)),
        ("LDGSTS", Counts(1)),
        ("IMAD", Counts(1)),
    ],
)
def test_kinds_of_instructions(opcode: str, expected: Counts) -> None:
    assert counts_of(opcode) == expected


def test_loops_are_those_that_lie_behind_their_first_instruction() -> None:
    flow = code("MOV\nFFMA\nDFMA\nBRA > 2 ?\nBRA > 1 ?\nEXIT\nMOV\nBRA > 3\nBRA > 8")
    # Line 7 jumps back from code that nothing reaches, line 8 only to itself.
    assert [(loop.first, loop.last) for loop in flow.loops] == [(1, 4), (2, 3)]
    outer, inner = flow.loops
    assert flow.inner(outer) == (inner,)
    assert flow.way(outer).counts == Counts(4, float64=1, float32=1)
    assert flow.way(outer, lambda loop: 5 if loop == inner else 0).counts == Counts(12, float64=5, float32=1)
    assert flow.way(None, lambda _: 0).counts == Counts(2)


def test_of_two_branches_the_way_takes_the_longer_or_the_one_asked_for() -> None:
    flow = code("BRA > 5 ?\nDADD\nDADD\nDADD\nBRA > 7\nMUFU.RCP\nFADD\nEXIT")
    assert flow.way(None).counts.float64 == 3
    assert flow.way(None, through="MUFU").counts == Counts(4, float32=1, special=1)
    with pytest.raises(ValueError, match="no way through this code meets 'LDG'"):
        flow.way(None, through="LDG")


def test_what_a_rare_loop_has_is_not_met() -> None:
    flow = code("MOV\nBRA > 5 ?\nMUFU.RCP\nBRA > 2 ?\nBRA > 6\nMUFU.LG2\nEXIT")
    assert flow.way(None, lambda _: 0, through="MUFU").count("MUFU.LG2") == 1


def test_slow_paths_are_left_out() -> None:
    division = code("MUFU.RCP64H\nBRA > 4 ?\nMOV\nCALL.REL.NOINC\nEXIT")
    assert division.way(None).counts == Counts(3, special=1)
    split = code("BRA.DIV > 3\nSHFL.BFLY\nEXIT\nMOV\nMOV\nMOV\nBRA > 2")
    assert split.way(None).counts == Counts(3, passes=1)


LOOPS = """
extern "C" __global__ void __launch_bounds__(64) powers(const double* x, int n, double* out) {
  double sum = 0;
  #pragma unroll 1
  for (int i = 0; i < n; ++i) {
    double power = x[i];
    #pragma unroll 1
    for (int j = 0; j < 10; ++j) power = power * power;
    sum += power;
  }
  out[threadIdx.x] = sum;
}
"""


@needs_nvrtc
@pytest.mark.parametrize("sm", [75, 90])
def test_loops_of_compiled_code(sm: int) -> None:
    flow = Flow(cubin.compile_source(LOOPS, sm).kernels["powers"].code)
    outer, inner = flow.loops
    assert flow.way(inner).counts.float64 == 1
    way = flow.way(outer, lambda _: 10)
    assert (way.counts.float64, way.count("LDG")) == (11, 1)


def test_what_lanes_vote_for_is_rare() -> None:
    flow = code("VOTE.ANY\nISETP\nBRA > 5 ?\nDFMA\nDFMA\nFFMA\nEXIT")
    assert flow.rare == {3, 4}
    assert flow.way(None).counts.float64 == 2
    assert flow.way(None, without=flow.rare).counts == Counts(5, float32=1)
    assert code("VOTE.ANY\nFFMA\nEXIT").rare == frozenset()


@needs_nvrtc
def test_every_factor_of_gamma_update_is_counted_once() -> None:
    one, four = (machine_code("float64", k, 90, GAMMA).executed["gamma_update"] for k in (32, 128))
    assert (one.things, four.things) == (1, 1)  # rows of a warp
    # The shuffles and comparisons of a row, and the logarithm of its largest entry, do not depend on K.
    assert 3 < four.each_time.float64 / one.each_time.float64 < 4


@needs_nvrtc
def test_moments_of_float32_models_take_no_float64() -> None:
    """Of a row, the logarithm of its largest entry alone, whatever K."""
    one, four = (machine_code("float32", k, 90, GAMMA).executed["gamma_update"].each_time for k in (32, 128))
    assert one.float64 == pytest.approx(four.float64, abs=8)
    assert one.float64 < 60
    assert four.float32 > 2.5 * one.float32


@needs_nvrtc
def test_nonzeros_of_the_loops_that_gather() -> None:
    found = machine_code("float32", 32, 90).executed
    # Four groups of eight lanes; `allocate` has four rows of each in flight, the likelihoods eight.
    assert found["allocate"].things == 16
    assert found["log_rate_sums"].things == 32
    assert found["allocate"].each_time.float64 == 0
    assert found["log_rate_sums"].each_time.float64 == 0
    likelihood = machine_code("float64", 32, 90, (*GAMMA, "likelihood.cu")).executed
    assert likelihood["log_rate_sums"].each_time.float64 > 0


# -- costs and tables ------------------------------------------------------------------------------


def test_costs_add_up() -> None:
    one = Cost(1, dram=10, waits={"dram": 2.0, "launch": 0.5})
    other = Cost(2, float64=3, busy=0.5, waits={"launch": 1.0, "issue": 1.0})
    both = (one + other) * 2
    assert (both.launches, both.dram, both.float64) == (6, 20, 6)
    assert both.waits == {"dram": 4.0, "launch": 3.0, "issue": 2.0}
    assert (both.ms, both.bound) == (9.0, "dram")
    assert np.isnan(both.busy)


@needs_compiler
@needs_nvrtc
def test_the_command_line_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", "tiny", "--k", "32", "--gpu", "h100"])
    gpu_model.main()
    header, *lines, last = capsys.readouterr().out.splitlines()
    assert all(name in header for name in COLUMNS)
    width = max(map(len, gpu_model.predict(TINY)))
    assert [line[:width].strip() for line in lines] == list(gpu_model.predict(TINY))
    assert "Checks take" in last


@needs_compiler
@needs_nvrtc
def test_amounts_that_can_be_counted_by_hand() -> None:
    costs = gpu_model.predict(TINY)
    row, nonzeros = 32 * 4, 4000
    # Each row of the other side crosses from L2 at most once for each nonzero, and counts stream.
    most = nonzeros * (row + 8) + 400 * (20 + 2 * row + 1)
    assert 0.3 * most < costs["allocate users"].l2 <= most
    assert costs["mean users"].dram == 400 * (2 * row + 8)
    assert costs["join_segments users"].launches == 0  # no row of 150 items has several segments
    assert costs["iteration"].launches == 14
    assert costs["fit"].ms == pytest.approx(10 * costs["iteration"].ms + costs["check"].ms)
    assert costs["iteration"].ms == pytest.approx(sum(costs[name].ms for name in gpu_model.ITERATION))


def test_the_tracked_table_is_what_the_program_writes() -> None:
    *comments, header = gpu_model.record([], "13.5.37")
    tracked = gpu_model.TABLE.read_text(encoding="utf-8").splitlines()
    assert tracked[: len(comments)] == comments
    assert tracked[len(comments)] == header
    rows = [line.split("\t") for line in tracked[len(comments) + 1 :]]
    assert {len(row) for row in rows} == {len(header.split("\t"))}
    cases = [tuple(map(str, case)) for case in gpu_model.cases()]
    names = [*gpu_model.ITERATION, *gpu_model.CHECK, *gpu_model.ELBO, "iteration", "check", "elbo", "fit"]
    assert sorted(tuple(row[:5]) for row in rows) == sorted((*case, name) for case in cases for name in names)


@needs_compiler
@needs_nvrtc
def test_a_row_of_the_table_can_be_read_back(tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("".join(f"{line}\n" for line in gpu_model.record([TINY], "1.0")))
    timed = {"shape": {"name": "tiny"}, "k": 32, "variant": "fused", "op": "iteration"}
    found = modelled.Model(table, "NVIDIA H100 PCIe").ms(timed)
    assert found == pytest.approx(gpu_model.predict(TINY)["iteration"].ms, rel=5e-3)
