"""What a fit would take, by the planner's model, and the command that tells it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from record import read
from scaling import RECORD, predicted_over_measured

import hpf_gpu
from hpf_gpu import backends, hardware, planning
from hpf_gpu.app.cli import main
from hpf_gpu.backends import cuda_layout
from hpf_gpu.backends.cuda_source import Variant
from hpf_gpu.fitting.beyond_memory import Limit
from hpf_gpu.model.start import bytes_of_fit
from hpf_gpu.planning import Sizes, plan

LAPTOP: dict[str, Any] = {"cores": 8, "memory": 16e9, "disk": 1e12, "gpus": 0}
SERVER: dict[str, Any] = {"cores": 64, "memory": 2e12, "disk": 10e12, "gpus": 8, "gpu": "h100"}
TABLE = Path(__file__).parents[1] / "bench" / "results" / "gpu_model.tsv"
F32 = np.dtype(np.float32)


def way(found: planning.Plan, name: str) -> planning.Way:
    return next(one for one in found.ways if one.name.startswith(name))


def test_small_counts_fit_in_memory() -> None:
    found = plan(50_000, 10_000, 2_000_000, **LAPTOP)
    assert [one.name for one in found.ways] == ["in memory", "out of core"]
    assert found.table.Fits.all()
    assert found.best is found.ways[0]


def test_a_billion_counts_do_not() -> None:
    found = plan(1e7, 1e6, 1e9, 16, **LAPTOP)
    assert (found.table.Fits.tolist(), found.best) == ([False, True], found.ways[1])
    assert found.ways[0].lacking == "90.3 GB of memory, of 16 GB"
    assert "No room" not in str(found)


def test_a_cluster() -> None:
    """The issue's example: only several GPUs hold it, and links decide how fast they are."""
    found = plan(1e8, 1e7, 1e10, 64, **SERVER)
    assert found.table.Way.tolist() == [
        *("in memory", "out of core", "on a GPU, counts on the host", "on 8 GPUs of 1 machine (Dask)"),
    ]
    assert found.table.Fits.tolist() == [True, True, False, True]
    one = way(found, "on 8 GPUs")
    parts = {part.name: part.seconds for part in one.parts}
    links = parts["sums of items to one worker"] + parts["items to all workers"]
    assert links == pytest.approx(2 * 3 * 1e7 * 64 * 4 / 1e9)
    fast = way(plan(1e8, 1e7, 1e10, 64, **SERVER, local_rate="100GB"), "on 8 GPUs")
    assert one.seconds - fast.seconds == pytest.approx(0.99 * links)
    two = plan(1e8, 1e7, 1e10, 64, **SERVER, machines=2)
    assert two.table.Way.tolist()[-2:] == ["on 2 machines (Dask)", "on 16 GPUs of 2 machines (Dask)"]


# -- memory: asked of the functions that a fit asks ------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_is_that_of_a_fit(dtype: str) -> None:
    found = plan(1e6, 1e5, 1e8, 50, **SERVER, dtype=dtype)
    state = bytes_of_fit(10**6, 10**5, 50, np.dtype(dtype))
    table = found.table.set_index("Way")
    assert table.Memory["out of core"] - state == 1e9
    variant = Variant(50, np.dtype(dtype))
    assert table.GpuMemory["on a GPU"] == cuda_layout.bytes_of_fit(variant, (10**6, 10**5), 10**8)
    assert table.GpuMemory["on 8 GPUs of 1 machine (Dask)"] == cuda_layout.bytes_of_fit(
        variant, (125_000, 10**5), 12_500_000
    )
    least = way(found, "in memory").needs[0].bytes
    assert least > 90e8  # while the file is read
    sizes = Sizes(10**6, 10**5, 10**8, 50, np.dtype(dtype))
    counts = 10**8 * (8 + np.dtype(dtype).itemsize) + 8 * sizes.segments(64)
    assert planning.bytes_in_memory(sizes, 64, reading=0.0) == counts + state


@pytest.mark.parametrize("n", [10**4, 10**6, 10**8])
def test_limit_of_memory_is_enough(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the plan says, a fit out of core takes blocks of millions of counts."""
    monkeypatch.setattr("hpf_gpu.fitting.beyond_memory.resident_memory", lambda: 0)  # of a process of its own
    found = plan(n, 10**4, 10 * n, 16, **LAPTOP)
    limit = Limit(int(way(found, "out of core").needs[0].bytes))
    assert limit.counts_of_a_block(bytes_of_fit(n, 10**4, 16, F32), "they") >= 1 << 22


def test_counts_that_stream() -> None:
    """Where the GPU holds the factors and not the counts, these come from the host in each iteration."""
    given = {**SERVER, "gpus": 1}
    needed = {
        streamed: backends.bytes_on_gpu((10**6, 10**5), 10**9, 32, F32, streamed=streamed)
        for streamed in (0, 4)
    }
    found = plan(1e6, 1e5, 1e9, 32, **given, gpu_memory=float(needed[0] - 1)).ways[2]
    assert (found.name, found.needs[1].bytes, found.fits) == (
        *("on a GPU, counts on the host", needed[4], True),
    )
    moved = found.parts[-1]
    assert (moved.bytes, moved.seconds, moved.beside) == (8e9, 8e9 / hardware.GPUS["h100"].pcie_rate, True)
    assert found.seconds == max(moved.seconds, sum(part.seconds for part in found.parts[:-1]))
    assert plan(1e6, 1e5, 1e9, 32, **given, gpu_memory=float(needed[0])).ways[2].name == "on a GPU"


# -- seconds ---------------------------------------------------------------------------------------------


def test_segments() -> None:
    """One for each user where a block has all columns, else one for each block with counts of the user."""
    assert Sizes(1000, 100, 5000, 30, F32).segments(1) == 1000
    wide = Sizes(1000, 2**20, 1000 * 2**20, 16, F32)  # 16 blocks of 8 MiB
    assert (wide.filled, wide.segments(1), wide.segments(64)) == (
        16,
        pytest.approx(16_000),
        pytest.approx(64_000),
    )
    assert Sizes(1000, 2**20, 1000, 16, F32).segments(1) == pytest.approx(1000)
    expected = 16_000 * (1 - (15 / 16) ** 64)
    assert Sizes(1000, 2**20, 64_000, 16, F32).segments(1) == pytest.approx(expected, rel=1e-9)


def test_iterations_scale() -> None:
    """With counts and cores; out of core the disk is beside the rest until it is the slowest."""
    once, more = (plan(1e6, 1e4, z, 32, **LAPTOP).ways[0].parts[0].seconds for z in (1e8, 2e8))
    assert 1.8 < more / once < 2
    one, two = (plan(1e6, 1e4, 1e8, 32, **{**LAPTOP, "cores": cores}).ways[0].seconds for cores in (4, 8))
    assert 1.8 < one / two < 2  # more cores have more segments
    fast, slow = (plan(1e6, 1e4, 1e8, 32, **LAPTOP, disk_rate=rate).ways[1] for rate in (1e12, 1e6))
    assert fast.seconds == sum(part.seconds for part in fast.parts if not part.beside)
    assert slow.seconds == pytest.approx(450.0)


def test_what_it_costs_to_be_wrong() -> None:
    """Half of a rate adds its part once more; what is beside the rest may cost nothing."""
    found = plan(1e7, 1e6, 1e9, 16, **LAPTOP, disk_rate="10GB")
    best, times = found.shown, found.sensitivity.set_index("Rate").Times
    parts = {part.name: part.seconds for part in best.parts}
    computed = sum(part.seconds for part in best.parts if not part.beside)
    assert best.seconds == computed
    assert times["cores"] == pytest.approx(2)
    allocated = times[["segments", "lines", "distant"]].sum() - 3
    assert allocated == pytest.approx(parts["allocate"] / computed)
    assert list(times) == sorted(times, reverse=True)
    assert "disk" not in times
    slow = plan(1e7, 1e6, 1e9, 16, **LAPTOP, disk_rate="1GB").sensitivity
    assert slow.set_index("Rate").Times.to_dict() == {"disk": 2.0, "cores": pytest.approx(2 * computed / 4.5)}
    assert set(times.index) <= set(planning.SOURCES)


def test_measuring_scales_the_rates_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_measured_speed", lambda cores: 2.0)
    recorded, measured = (plan(1e6, 1e4, 1e8, 32, **LAPTOP, measure=on) for on in (False, True))
    assert recorded.ways[0].seconds == pytest.approx(2 * measured.ways[0].seconds)
    assert "2.00 times the recorded ones" in str(measured)


def test_speed_of_this_machine() -> None:
    assert planning._measured_speed(1, seconds=0.0) > 0


def test_what_was_measured() -> None:
    """Recorded fits, beside what the model says now, within what docs/scaling.md states."""
    ratios = [predicted_over_measured(entry) for entry in read(RECORD)]
    assert len(ratios) >= 20
    for name, low, high in (("iteration", 0.8, 1.2), ("bytes", 0.9, 1.13), ("segments", 0.99, 1.15)):
        assert low <= min(one[name] for one in ratios) <= max(one[name] for one in ratios) <= high, name


def test_gpus_beside_the_model_of_the_kernels() -> None:
    """Iterations in float32 of the tracked table, itself a model, are met within what the docs state."""
    shapes = {"lastfm": (358_868, 160_113, 17.5e6), "netflix": (480_189, 17_770, 100.5e6)}
    shapes["taste"] = (1_019_318, 384_546, 48.4e6)
    ratios = []
    table = pd.read_csv(TABLE, sep="\t", comment="#")
    wanted = table[(table.operation == "iteration") & (table.precision == "float32")]
    for shape, k, gpu, ms in wanted[["shape", "k", "gpu", "ms"]].itertuples(index=False):
        found = plan(*shapes[shape], int(k), **{**SERVER, "gpus": 1, "gpu": gpu})
        ratios.append(way(found, "on a GPU").seconds * 1e3 / ms)
    assert len(ratios) == 3 * 3 * 6
    assert min(ratios) > 0.6
    assert max(ratios) < 2.7


# -- machines --------------------------------------------------------------------------------------------


def test_this_machine(tmp_path: Path) -> None:
    here = hardware.this_machine(tmp_path)
    assert here.cores >= 1
    assert here.memory > 2**28
    assert here.disk > 0
    found = plan(100, 100, 1000, 5, gpus=0).computers
    assert (found.cores, found.memory, found.machines) == (here.cores, here.memory, 1)


def test_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the driver lists them; in the place of one that is not known stands a usual one."""

    def lists(text: str) -> None:
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))

    lists("NVIDIA A100-SXM4-80GB, 81920\nNVIDIA A100-SXM4-80GB, 81920\n")
    found = plan(1e5, 1e4, 1e6).computers
    assert found.gpu is not None
    assert (found.gpus, found.gpu.name, found.gpu.memory) == (2, "NVIDIA A100", 81920 * 2**20)
    lists("NVIDIA L40S, 46068\n")
    found = plan(1e5, 1e4, 1e6, gpu="l4").computers
    assert found.gpu == hardware.GPUS["l4"]
    assert hardware.gpu_of_driver("NVIDIA L40S") is None
    lists("")
    assert plan(1e5, 1e4, 1e6).computers.gpus == 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"users": 0}, ValueError, "users=0"),
        ({"users": 1.5}, (ValueError, TypeError), "users=1.5"),
        ({"users": 2**31}, ValueError, "users=2,147,483,648 are more than the 2,147,483,647"),
        ({"items": 3e9}, ValueError, "items=3,000,000,000 are more"),
        ({"nonzeros": 10_001}, ValueError, "nonzeros=10,001 are more than 100 users × 100 items"),
        ({"dtype": "int32"}, ValueError, "dtype='int32' must be float32 or float64"),
        ({"gpus": 1, "gpu": "k80"}, ValueError, "gpu='k80' is not known; choose one of h200"),
        ({"memory": "much"}, ValueError, "memory='much'"),
        ({"disk_rate": -1}, ValueError, "disk_rate=-1"),
        ({"machines": 0}, ValueError, "machines=0"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], error: Any, message: str) -> None:
    given: dict[str, Any] = {"users": 100, "items": 100, "nonzeros": 1000, "k": 5, "gpus": 0}
    with pytest.raises(error, match=message):
        plan(**given | wrong)


def test_no_gpu_has_so_many_factors() -> None:
    assert [one.name for one in plan(1e4, 1e4, 1e6, 2000, **SERVER).ways] == ["in memory", "out of core"]


# -- the command -------------------------------------------------------------------------------------------

THERE = ["--cores", "64", "--memory", "2TB", "--disk", "10TB", "--gpus", "8", "--gpu", "h100"]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--users", "1e8", "--items", "1e7", "--nonzeros", "1e10", "--k", "64"]
    assert main(["plan", *sizes, *THERE]) == 0
    told, found = capsys.readouterr().out, plan(1e8, 1e7, 1e10, 64, **SERVER)
    assert told == str(found)
    for line in ("on 8 GPUs of 1 machine (Dask)", "If a rate is half", "no GPU was measured"):
        assert line in told
    assert main(["plan", *sizes, *THERE, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["best"] == "on 8 GPUs of 1 machine (Dask)"
    assert [one["Iteration"] for one in told["ways"]] == found.table.Iteration.tolist()


def test_command_without_room(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--users", "1e8", "--items", "1e7", "--nonzeros", "1e10", "--k", "64", "--gpus", "0"]
    assert main(["plan", *sizes, "--memory", "16GB", "--disk", "100GB"]) == 0
    told = capsys.readouterr().out
    assert "No room out of core: 153 GB of memory, of 16 GB; 145 GB of disk, of 100 GB." in told
    assert "Fastest, if there were room: in memory" in told


def test_command_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, and ids that are integers, are counted by the metadata; the rest must be said."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "plays.parquet"
    rows = np.arange(10_000)
    names = {"who": 5 + rows % 700, "UserId": np.char.add("u", (rows % 50).astype(str)), "ItemId": rows % 90}
    pd.DataFrame(names | {"Count": 1}).to_parquet(path, row_group_size=3000)
    assert planning.sizes_of_file(path, "who", "ItemId") == {"nonzeros": 10_000, "users": 700, "items": 90}
    assert main(["plan", str(path), "--user", "who", "--gpus", "0"]) == 0
    assert capsys.readouterr().out.startswith("700 users, 90 items, 10,000 nonzeros, k=30, float32\n")
    assert main(["plan", str(path), "--users", "5e3", "--gpus", "0"]) == 0
    assert capsys.readouterr().out.startswith("5,000 users, 90 items, 10,000")
    assert main(["plan", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"hpf-gpu: --users: say how many there are, which {path} does not tell, as in --users 1e6\n"
    )
    (tmp_path / "no.parquet").write_text("no")
    assert main(["plan", str(tmp_path / "no.parquet")]) == 2
    assert "is not a Parquet file" in capsys.readouterr().err


def test_name_of_the_package() -> None:
    assert hpf_gpu.plan is plan
