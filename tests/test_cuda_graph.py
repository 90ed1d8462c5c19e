"""Iterations that the CUDA backend records as graphs and replays.

Runs on a GPU, and without one in the legs of test_simulated_cuda.py.  A graph runs the kernels of the step
that it was recorded from, in the same order: replayed iterations have the bits of plain ones.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import conftest
import numpy as np
import pytest
from problems import SMALL, rule
from scipy import sparse

from hpf_gpu import HPF
from hpf_gpu.backends import create
from hpf_gpu.fitting import training
from hpf_gpu.model.inference import iterate
from hpf_gpu.model.sides import Model

if "cuda" not in conftest.BACKENDS:
    pytest.skip(f"cuda: {conftest.MISSING['cuda']}", allow_module_level=True)

simulated = pytest.mark.skipif(not conftest.SIMULATED, reason="only the simulator counts calls of CUDA")


@pytest.fixture(scope="session")
def cuda32() -> Any:
    return create("cuda", np.dtype(np.float32))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    import cudasim

    with cudasim.calls() as calls:
        yield calls


class Steps:
    """Iterations of the small problem, and how often the step itself was called."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.blocks, self.called = backend, SMALL.blocks(backend), 0
        self.interfere: Callable[[Model], object] = lambda model: None

    def __call__(self, model: Model) -> Model:
        self.called += 1
        self.interfere(model)
        return iterate(self.backend, self.blocks, model, rule("joint"))

    def start(self, seed: int = 1) -> Model:
        """The model at its start values, whose matrices the second iteration overwrites."""
        return replace(SMALL, seed=seed).model(self.backend, self.blocks)

    def bits(self, model: Model) -> list[Any]:
        """Every array of a model, on the host."""
        found = []
        for side in (*model.users, model.items):
            factor = side.factor
            arrays = (*factor.matrices, factor.log_scale, side.hyper_rate, side.column_sums)
            found += [
                self.backend.asnumpy(array) for array in (*arrays, factor.rates.rows, factor.rates.columns)
            ]
        return found

    def plain(self, iterations: int) -> list[list[Any]]:
        """The models after each iteration, from the start."""
        model, found = self.start(), []
        for _ in range(iterations):
            model = iterate(self.backend, self.blocks, model, rule("joint"))
            found.append(self.bits(model))
        return found


def assert_bits(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_recorded_iterations(cuda32: Any) -> None:
    """The step is called twice plainly and twice to be recorded; each state outlives the next iteration."""
    steps = Steps(cuda32)
    want = steps.plain(9)
    recorded, model = cuda32.recorded(steps), steps.start()
    for number, bits in enumerate(want):
        before, model = model, recorded(model)
        assert_bits(steps.bits(model), bits)
        if number:
            assert_bits(steps.bits(before), want[number - 1])
        assert steps.called == min(number + 1, 2) + 2 * (number > 1)


def test_recorded_iterations_start_over(cuda32: Any) -> None:
    """With any state that is not one of the graphs' own."""
    steps = Steps(cuda32)
    want = steps.plain(5)
    recorded, model = cuda32.recorded(steps), steps.start(seed=2)
    for _ in range(5):
        model = recorded(model)
    assert steps.called == 4
    copied = replace(model, items=replace(model.items))  # equal, but who knows what becomes of it
    recorded(copied)
    assert steps.called == 5
    model = steps.start()
    for bits in want:
        model = recorded(model)
        assert_bits(steps.bits(model), bits)
    assert steps.called == 9


@simulated
def test_recorded_iterations_are_single_launches(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other call of CUDA, to allocate, copy or wait; recording makes none that CUDA might forbid."""
    import cupy as cp

    begin, strict = cp.cuda.Stream.begin_capture, cp.cuda.runtime.streamCaptureModeGlobal
    monkeypatch.setattr(cp.cuda.Stream, "begin_capture", lambda stream: begin(stream, strict))
    steps = Steps(cuda32)
    # Many temporary arrays at once, in whose places arrays of the result come to lie.
    steps.interfere = lambda model: [cp.empty_like(model.users[0].hyper_rate) for _ in range(8)]
    recorded, model, calls = cuda32.recorded(steps), steps.start(), []
    for _ in range(6):
        with counted() as one:
            model = recorded(model)
        calls.append(one)
    assert calls[3:] == [{"graphLaunch": 1}] * 3
    recording = calls[2]
    assert recording["graphLaunch"] == 1
    assert recording["streamBeginCapture"] == recording["streamEndCapture"] == 2
    assert recording["launchKernel"] == 2 * calls[1]["launchKernel"]
    assert not {"memcpyAsync", "streamSynchronize", "deviceSynchronize"} & set(+recording)


FITS: dict[str, dict[str, Any]] = {
    "joint": {},
    "alternating": {"schedule": "alternating"},
    "accelerated": {"schedule": "accelerated"},
    "exact": {"sum_exp_trick": True},
    "mixed": {"precision": "mixed"},
    "float64": {"use_float": False},
    "flat": {"hierarchical": False},
    "biases": {"bias": True},
    "checked often": {"stop_crit": "diff-norm", "stop_thr": 1e-9, "check_every": 1},
    "fixed items": {},
    "blocks": {},
    "cusparse": {"allocate": "cusparse"},
}


def fit(name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> HPF:
    rng = np.random.default_rng(0)
    counts = sparse.random_array((60, 45), density=0.3, rng=rng, format="csr")
    counts.data = np.ceil(9 * counts.data)
    fixed = {"fixed_items": rng.gamma(0.3, 1.0, (45, 5))} if name == "fixed items" else {}
    if name == "blocks":
        monkeypatch.setattr(training, "USERS_PER_BLOCK", 25)
    defaults = {"k": 5, "maxiter": 12, "check_every": 4, "stop_crit": "train-llk", "stop_thr": 1e-9}
    how = {"random_seed": 1, "verbose": False, "backend": "cuda"}
    return HPF(**defaults | how | FITS[name] | options).fit(counts, **fixed)


@pytest.mark.parametrize("name", FITS)
def test_recorded_fits(cuda32: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as without recording, and graphs from the third iteration on; with biases twice.

    Momentum begins after the first iteration, whose result is no longer that of the last call then.
    """
    with counted() as calls:
        got = fit(name, monkeypatch)
    monkeypatch.setattr(type(cuda32), "recorded", lambda self, step: step)
    want = fit(name, monkeypatch)
    for matrix in ("Theta", "Beta", "Gamma_shp", "Lambda_rte"):
        np.testing.assert_array_equal(getattr(got, matrix), getattr(want, matrix))
    assert got.history_.drop(columns="seconds").equals(want.history_.drop(columns="seconds"))
    expected = {"biases": 12 - 2 + 11 - 2, "cusparse": 0, "accelerated": 12 - 3}.get(name, 12 - 2)
    assert not conftest.SIMULATED or calls["graphLaunch"] == expected


def test_others_use_the_default_stream_while_iterations_are_recorded(cuda32: Any) -> None:
    """Which neither waits for what records nor spoils it."""
    import cupy as cp

    steps, x = Steps(cuda32), cp.zeros(3)

    def use_default_stream(_: Model) -> None:
        with cp.cuda.Stream.null:
            x.fill(steps.called)

    steps.interfere = use_default_stream
    recorded, model = cuda32.recorded(steps), steps.start()
    for _ in range(5):
        model = recorded(model)
    assert x.get().tolist() == [4, 4, 4]
    assert steps.called == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_while_iterations_are_recorded(cuda32: Any, error: type[BaseException]) -> None:
    """Leaves the last state, and nothing that captures."""
    import cupy as cp

    steps = Steps(cuda32)
    want = steps.plain(8)
    recorded, model = cuda32.recorded(steps), steps.start()
    for _ in range(2):
        model = recorded(model)

    def interrupt(_: Model) -> None:
        assert cp.cuda.get_current_stream().is_capturing()
        iterate(cuda32, steps.blocks, model, rule("joint"))
        raise error("now")

    steps.interfere = interrupt
    with pytest.raises(error, match="now"):
        recorded(model)
    cp.cuda.Device().synchronize()
    assert_bits(steps.bits(model), want[1])
    steps.interfere = lambda _: None
    for bits in want[2:]:
        model = recorded(model)
        assert_bits(steps.bits(model), bits)
    assert steps.called == 2 + 1 + 2 + 2


def wait(model: Model) -> None:
    float(model.items.column_sums.sum())


def no_memory(_: Model) -> None:
    import cupy as cp

    def refuse(size: int) -> Any:
        raise cp.cuda.memory.OutOfMemoryError(size, 0)

    if cp.cuda.get_current_stream().is_capturing():
        with cp.cuda.using_allocator(refuse):
            cp.empty(1)


class EveryOther:
    """A step that differs each time it is called."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def __call__(self, model: Model) -> None:
        import cupy as cp

        for _ in self.kept:
            cp.empty(model.items.hyper_rate.size)
        self.kept.append(None)


@pytest.mark.parametrize(
    ("interfere", "reason"),
    [(wait, "is capturing"), (no_memory, "Out of memory"), (EveryOther(), "the same state each time")],
    ids=["waits", "allocates", "differs"],
)
def test_iterations_that_cannot_be_recorded(
    cuda32: Any, interfere: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Run plainly, to the same bits; a line for debugging says so once."""
    import cupy as cp

    steps = Steps(cuda32)
    want = steps.plain(7)
    steps.interfere = interfere
    recorded, model = cuda32.recorded(steps), steps.start()
    with caplog.at_level(logging.DEBUG, logger="hpf_gpu"):
        for bits in want:
            model = recorded(model)
            assert_bits(steps.bits(model), bits)
    (record,) = caplog.records
    assert reason in record.getMessage()
    cp.cuda.Device().synchronize()


def test_memory_of_recorded_iterations_is_freed(cuda32: Any) -> None:
    import cupy as cp

    held: list[int] = []

    class Counted(cp.cuda.Memory):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            held.append(size)

        def __del__(self) -> None:
            held.remove(self.size)

    steps = Steps(cuda32)
    with cp.cuda.using_allocator(lambda size: cp.cuda.MemoryPointer(Counted(size), 0)):
        recorded, model = cuda32.recorded(steps), steps.start()
        for _ in range(5):
            model = recorded(model)
        assert steps.called == 4
        while_recorded = sum(held)
        recorded(steps.start(seed=2))  # the graphs are of no more use
        del model
        gc.collect()
        assert sum(held) < while_recorded
        del recorded
        gc.collect()
    assert not held


def test_recorded_iterations_on_streams_of_the_user(cuda32: Any) -> None:
    """In whose order they are, whichever is current."""
    import cupy as cp

    steps = Steps(cuda32)
    want = steps.plain(8)
    recorded, model = cuda32.recorded(steps), steps.start()
    streams = [cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(), cp.cuda.Stream.null]
    before = cp.cuda.get_current_stream()
    for number, bits in enumerate(want):
        stream = streams[number % 3]
        stream.wait_event(before.record())
        with stream:
            model = recorded(model)
            assert_bits(steps.bits(model), bits)
        before = stream
