"""The real CuPy over simulated CUDA; test_cudasim.py runs this in processes made for it."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import cudasim
from cudasim import compilation

FEATURES = Path(__file__).with_name("features.cu").read_text(encoding="utf-8")
ORDERS = [("eager", 0), ("lazy", 0), *(("random", seed) for seed in range(4))]


@pytest.fixture(scope="module")
def cp():
    """The real CuPy."""
    try:
        cudasim.install()
    except cudasim.Unsupported as error:
        pytest.skip(str(error))
    import cupy

    return cupy


# ---- launches ----


def split_rows(csr, length):
    """Rows and bounds of segments of at most `length` nonzeros."""
    rows = np.repeat(np.arange(csr.shape[0]), -(-np.diff(csr.indptr) // length))
    first = np.concatenate([csr.indptr[row] + np.arange(0, end - csr.indptr[row], length)
                            for row, end in enumerate(csr.indptr[1:])])  # fmt: skip
    return rows.astype(np.int32), np.append(first, csr.nnz).astype(np.int64)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_kernel_through_cupy(cp, dtype, seed, monkeypatch):
    monkeypatch.setenv("HPF_CUDASIM_SEED", str(seed))
    k, rng = 30, np.random.default_rng(0)
    csr = scipy.sparse.random(40, 50, 0.4, "csr", dtype=dtype, rng=rng)
    dense = rng.random((50, k)).astype(dtype)
    rows, bounds = split_rows(csr, 8)
    assert np.bincount(rows).max() > 1
    real = {np.float32: "float", np.float64: "double"}[dtype]
    options = ("--std=c++17", f"-DREAL={real}", f"-DK={k}")
    kernel = cp.RawModule(code=FEATURES, options=options).get_function("csr_times_dense")
    out = cp.zeros((40, k), dtype)
    arguments = (rows, bounds, np.int32(len(rows)), csr.indices, csr.data, dense)
    kernel(
        (-(-len(rows) // 4),),
        (128,),
        (*(cp.asarray(value) if value.ndim else value for value in arguments), out),
    )
    expected = csr.astype(np.float64) @ dense.astype(np.float64)
    # Measured: 2.4e-7 and 4.4e-16.
    np.testing.assert_allclose(out.get(), expected, rtol={np.float32: 1e-6, np.float64: 2e-15}[dtype])


SCALE = """
extern "C" __global__ void scale(const float* x, float factor, long long n, float* out) {
  const long long i = threadIdx.x;
  if (i < n) out[i] = factor * x[i];
}
"""


def test_arguments_are_held_against_the_signature(cp):
    kernel = cp.RawModule(code=SCALE).get_function("scale")
    x, out = cp.ones(4, np.float32), cp.zeros(4, np.float32)
    kernel((1,), (4,), (x, np.float32(2), np.int64(4), out))
    assert out.get().tolist() == [2, 2, 2, 2]
    for arguments, complaint in [
        ((x, 2.0, np.int64(4), out), "parameter 1 is f4, the argument a Python float"),
        ((x, np.float64(2), np.int64(4), out), "parameter 1 is f4, the argument a scalar f8"),
        ((x, np.float32(2), np.int32(4), out), "parameter 2 is i8, the argument a scalar i4"),
        ((x, np.float32(2), np.int64(4), out.astype(np.float64)), "parameter 3 is .f4, .* an array of f8"),
        ((x, np.float32(2), np.int64(4), cp.zeros(8, np.float32)[::2]), "not C-contiguous"),
        ((x, np.float32(2), np.int64(4)), "3 arguments for 4 parameters"),
    ]:
        with pytest.raises(TypeError, match=f"^scale: .*{complaint}"):
            kernel((1,), (4,), arguments)


def test_without_that_check_a_wrong_scalar_goes_unseen(cp):
    checked = cp.RawModule(code=SCALE).get_function("scale")
    x, out = cp.ones(4, np.float32), cp.zeros(4, np.float32)
    vars(checked)["_kernel"]((1,), (4,), (x, 2.0, np.int64(4), out))
    assert out.get().tolist() == [0, 0, 0, 0]


def test_a_fault_names_kernel_line_and_thread(cp):
    kernel = cp.RawModule(code=SCALE).get_function("scale")
    with pytest.raises(cudasim.SimulationError, match=r"^scale: kernel\.cu:4: .* thread \(4, 0, 0\)"):
        kernel((1,), (8,), (cp.ones(4, np.float32), np.float32(2), np.int64(8), cp.zeros(8, np.float32)))
    assert cp.ones(3).sum().get() == 3  # and the device is as good as new


def test_a_kernel_is_compiled_once(cp, monkeypatch):
    """What tells its signature is the library that runs it."""
    libraries, cached = set(), compilation.cached

    def noted(*arguments):
        library = cached(*arguments)
        libraries.add(library)
        return library

    module = cp.RawModule(code=f"{SCALE}// of this test alone, or CuPy would have it in memory")
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "cached", noted)
        module.get_function("scale")
    assert sum(library.name.startswith("kernel-") for library in libraries) == 1


def test_an_unknown_kernel_is_an_error(cp):
    with pytest.raises(cudasim.SimulationError, match="no kernel 'scala' among scale"):
        cp.RawModule(code=SCALE).get_function("scala")


# ---- streams ----

ADD_ONE = 'extern "C" __global__ void add_one(float* x) { x[threadIdx.x] += 1; }'


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("waits", [True, False])
def test_missing_event(cp, order, waits):
    """Eager order never shows it; random order does for some seeds."""
    kernel = cp.RawModule(code=ADD_ONE).get_function("add_one")
    first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    with cudasim.stream_order(*order):
        x = cp.zeros(32, np.float32)
        cp.cuda.get_current_stream().synchronize()
        with first:
            kernel((1,), (32,), (x,))
        if waits:
            second.wait_event(first.record())
        with second:
            result = x.get()[0]
    assert result == {"eager": 1, "lazy": int(waits), "random": 1 if waits else result}[order[0]]


def test_events_tell_the_time_between_them(cp):
    first, second = cp.cuda.Event(), cp.cuda.Event()
    with cudasim.stream_order("lazy", 0):
        first.record()
        second.record()
        with pytest.raises(cudasim.SimulationError, match="before both had happened"):
            cp.cuda.get_elapsed_time(first, second)
        first.synchronize()
        time.sleep(0.02)
        second.synchronize()
    assert 20 <= cp.cuda.get_elapsed_time(first, second) < 20_000


def test_a_random_order_shows_a_missing_event(cp):
    kernel = cp.RawModule(code=ADD_ONE).get_function("add_one")
    seen = set()
    for seed in range(8):
        first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
        with cudasim.stream_order("random", seed):
            x = cp.zeros(32, np.float32)
            cp.cuda.get_current_stream().synchronize()
            with first:
                kernel((1,), (32,), (x,))
            with second:
                seen.add(int(x.get()[0]))
    assert seen == {0, 1}


def copy_from_pinned(cp, mistake):
    """Copy ones to the device from pinned memory, which then changes or goes away."""
    import cupyx

    stream = cp.cuda.Stream(non_blocking=True)
    pinned = cupyx.empty_pinned(1000, np.float32)
    pinned[:] = 1
    x = cp.empty(1000, np.float32)
    x.set(pinned, stream)
    if mistake is None:
        stream.synchronize()
    if mistake == "freed":
        del pinned
    else:
        pinned[:] = 2
    stream.synchronize()
    return x.get()[0]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_pinned_memory_after_a_synchronization(cp, order):
    with cudasim.stream_order(*order):
        assert copy_from_pinned(cp, None) == 1


def test_pinned_memory_overwritten_too_early(cp):
    with cudasim.stream_order("eager"):
        assert copy_from_pinned(cp, "overwritten") == 1
    with cudasim.stream_order("lazy"):
        assert copy_from_pinned(cp, "overwritten") == 2


def test_pinned_memory_freed_too_early(cp):
    with cudasim.stream_order("eager"):
        assert copy_from_pinned(cp, "freed") == 1
    with cudasim.stream_order("lazy"), pytest.raises(cudasim.SimulationError, match="freed before a copy"):
        copy_from_pinned(cp, "freed")


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_ordinary_memory_may_change_at_once(cp, order):
    values = np.ones(1000, np.float32)
    with cudasim.stream_order(*order):
        x = cp.asarray(values)
        values[:] = 2
        assert x.get()[0] == 1


@pytest.mark.parametrize("waits", [True, False])
def test_array_freed_while_another_stream_uses_it(cp, waits):
    """CuPy's pool gives the memory to the next array of the stream it was made on."""
    kernel = cp.RawModule(code=ADD_ONE).get_function("add_one")
    other = cp.cuda.Stream(non_blocking=True)
    with cudasim.stream_order("lazy"):
        x = cp.zeros(32, np.float32)
        other.wait_event(cp.cuda.get_current_stream().record())
        with other:
            kernel((1,), (32,), (x,))
        if waits:
            cp.cuda.get_current_stream().wait_event(other.record())
        del x
        cp.cuda.get_current_stream().synchronize()
        if waits:
            other.synchronize()
        else:
            with pytest.raises(cudasim.SimulationError, match=r"add_one: .*belongs to no array"):
                other.synchronize()


def test_an_error_met_while_freeing_is_raised_by_the_next_call(cp, monkeypatch):
    """A destructor cannot raise it."""
    from cudasim import real_cupy

    x = cp.zeros(4)

    def fail(*_):
        raise cudasim.SimulationError("met while freeing")

    with monkeypatch.context() as patch:
        patch.setattr(real_cupy._device().streams, "enqueue", fail)
        del x
    with pytest.raises(cudasim.SimulationError, match="met while freeing"):
        cp.asarray(np.ones(4))
    assert cp.asarray(np.ones(4)).get().sum() == 4


# ---- graphs ----

#: x ← 2x + by: the order of two calls shows in the result.
SHIFT = 'extern "C" __global__ void shift(float* x, float by) { x[threadIdx.x] = 2 * x[threadIdx.x] + by; }'
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # modes
DEVICE_TO_HOST = 2


class Capturing:
    """A stream that may capture, beside others, and memory for both."""

    def __init__(self, cp, *, blocking=False):
        self.cp, self.runtime = cp, cp.cuda.runtime
        self.stream, self.other = cp.cuda.Stream(non_blocking=not blocking), cp.cuda.Stream(non_blocking=True)
        self.x, self.y = cp.zeros(4, np.float32), cp.ones(4, np.float32)
        self.before = cp.cuda.get_current_stream().record()
        self._shift = cp.RawModule(code=SHIFT).get_function("shift")
        cp.cuda.get_current_stream().synchronize()

    def shift(self, x, by, stream):
        with stream:
            self._shift((1,), (x.size,), (x, np.float32(by)))

    def copy(self, host, array, stream):
        """What CuPy refuses to submit while it captures."""
        self.runtime.memcpyAsync(host.ctypes.data, array.data.ptr, host.nbytes, DEVICE_TO_HOST, stream.ptr)

    def graph(self, action):
        """The graph of what an action submits."""
        with self.stream:
            self.stream.begin_capture()
            try:
                action()
            finally:
                graph = self.stream.end_capture()
        return graph

    def numbers(self):
        return int(self.x.get()[0]), int(self.y.get()[0])


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("blocking", [False, True])
def test_a_graph_runs_where_it_is_launched(cp, order, blocking):
    """Kernels, fills and copies, on the device and to pinned memory, in the order of the launching stream."""
    import cupyx

    on, pinned = Capturing(cp, blocking=blocking), cupyx.empty_pinned(4, np.float32)

    def action():
        on.shift(on.x, 1, on.stream)
        on.y[...] = on.x
        on.copy(pinned, on.y, on.stream)
        on.x.data.memset_async(0, on.x.nbytes)
        on.shift(on.x, 3, on.stream)

    with cudasim.stream_order(*order):
        graph = on.graph(action)
        assert not on.stream.is_capturing()
        cp.cuda.get_current_stream().synchronize()
        assert on.numbers() == (0, 1)
        streams = (on.stream, on.other, cp.cuda.Stream.null, on.stream)
        for stream, first in zip(streams, (5, 17, 17, 17), strict=True):
            on.shift(on.x, 2, stream)
            graph.upload(stream)
            graph.launch(stream)
            on.shift(on.y, 0, stream)
            stream.synchronize()
            assert (*on.numbers(), pinned[0]) == (3, 2 * first, first)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_launches_of_a_graph_wait_for_each_other(cp, order):
    on = Capturing(cp)
    graph = on.graph(lambda: (on.shift(on.x, 1, on.stream), on.shift(on.y, 1, on.stream)))
    with cudasim.stream_order(*order):
        for _ in range(2):
            for stream in (on.stream, on.other):
                graph.launch(stream)
        on.other.synchronize()
        assert on.numbers() == (15, 31)


def test_arguments_are_those_of_the_capture(cp):
    on, by = Capturing(cp), np.array([1], np.float32)
    graph = on.graph(lambda: on.shift(on.x, by[0], on.stream))
    by[0] = 5
    graph.launch(on.stream)
    on.stream.synchronize()
    assert on.numbers() == (1, 1)


@pytest.mark.parametrize("waits", [True, False])
def test_branches_of_a_graph(cp, waits):
    """Without an event between them, they run in any order."""

    def action():
        if waits:
            on.shift(on.x, 1, on.stream)
        on.other.wait_event(on.stream.record())
        on.shift(on.x, 5, on.other)
        if not waits:
            on.shift(on.x, 1, on.stream)
        on.stream.wait_event(on.other.record())
        on.shift(on.x, 0, on.stream)

    seen = set()
    for seed in range(8):
        on = Capturing(cp)
        with cudasim.stream_order("random", seed):
            on.graph(action).launch(on.stream)
            on.stream.synchronize()
            seen.add(on.numbers()[0])
    assert seen == ({14} if waits else {14, 22})


def two_captures(on, *, event_of_the_other):
    on.other.begin_capture()
    event = on.other.record()
    try:
        if event_of_the_other:
            on.stream.wait_event(event)
    finally:
        with contextlib.suppress(on.runtime.CUDARuntimeError):  # both are invalid
            on.other.end_capture()


def fork(on, *, joins):
    on.other.wait_event(on.stream.record())
    on.shift(on.y, 1, on.other)
    if joins:
        on.stream.wait_event(on.other.record())


#: What is wrong while a stream captures, what is right in its place, and the error.
MISTAKES = {
    "wait for the stream": (
        lambda on: on.stream.synchronize(),
        lambda on: on.other.synchronize(),
        "Unsupported: .*waited for a stream",
    ),
    "ask the stream": (
        lambda on: on.stream.done,
        lambda on: on.other.done,
        "Unsupported: .*whether it is done",
    ),
    "wait for the device": (
        lambda on: on.cp.cuda.Device().synchronize(),
        lambda on: None,
        "Unsupported: .*the device was waited for",
    ),
    "wait for an event": (
        lambda on: on.stream.record().synchronize(),
        lambda on: on.before.synchronize(),
        "cudaErrorCapturedEvent: .*waited for an event",
    ),
    "ask an event": (
        lambda on: on.stream.record().done,
        lambda on: on.before.done,
        "cudaErrorCapturedEvent: .*asked about an event",
    ),
    "ordinary memory": (
        lambda on: on.copy(np.empty(4, np.float32), on.x, on.stream),
        lambda on: on.copy(np.empty(4, np.float32), on.x, on.other),
        "Unsupported: .*ordinary host memory",
    ),
    "begin twice": (
        lambda on: on.stream.begin_capture(),
        lambda on: two_captures(on, event_of_the_other=False),
        "cudaErrorIllegalState: .*capturing already",
    ),
    "an event of before": (
        lambda on: on.stream.wait_event(on.before),
        lambda on: on.stream.wait_event(on.stream.record()),
        "Isolation: .*outside the capture",
    ),
    "an event of another capture": (
        lambda on: two_captures(on, event_of_the_other=True),
        lambda on: two_captures(on, event_of_the_other=False),
        "Merge: .*different captures",
    ),
    "end in a stream that joined": (
        lambda on: (fork(on, joins=True), on.other.end_capture()),
        lambda on: fork(on, joins=True),
        "Unmatched: .*another stream",
    ),
    "the default stream joins": (
        lambda on: on.cp.cuda.Stream.null.wait_event(on.stream.record()),
        lambda on: on.stream.wait_event(on.stream.record()),
        "Implicit: .*cannot join",
    ),
    "upload a graph": (
        lambda on: on.runtime.graphUpload(0, on.stream.ptr),
        lambda on: None,
        "Unsupported: .*uploaded",
    ),
}
#: While a blocking stream captures; all of it is right while another one does.
IMPLICIT_MISTAKES = {
    "launch": lambda on: on.shift(on.y, 1, on.cp.cuda.Stream.null),
    "copy": lambda on: on.runtime.memcpy(on.y.data.ptr, on.x.data.ptr, 16, 3),
    "fill": lambda on: on.runtime.memset(on.y.data.ptr, 0, 16),
    "record": lambda on: on.cp.cuda.Stream.null.record(),
    "wait for an event": lambda on: on.cp.cuda.Stream.null.wait_event(on.before),
    "synchronize": lambda on: on.cp.cuda.Stream.null.synchronize(),
    "ask": lambda on: on.cp.cuda.Stream.null.done,
}
#: In every mode but relaxed, CuPy's own; for a stream of this thread, or of another one in global mode.
UNSAFE = {
    "allocate": lambda on: on.runtime.malloc(16),
    "free": lambda on: on.runtime.free(on.spare) or on.shift(on.y, 1, on.stream),
    "allocate pinned memory": lambda on: on.runtime.hostAlloc(16, 0),
    "free pinned memory": lambda on: on.runtime.freeHost(on.spare_pinned),
    "load a module": lambda on: on.cp.RawModule(code=f"{ADD_ONE} // {id(on)}").get_function("add_one"),
    "copy and wait": lambda on: on.runtime.memcpy(on.y.data.ptr, on.x.data.ptr, 16, 3),
}


def capture_with(on, mistake, error, mode=None, end="Invalidated"):
    """Capture, with a mistake that is an error if one is named; the graph, or None."""
    with on.stream:
        on.stream.begin_capture(mode)
        on.shift(on.x, 1, on.stream)
        if error is None:
            mistake(on)
            return on.stream.end_capture()
        with pytest.raises(on.runtime.CUDARuntimeError, match=error):
            mistake(on)
        with pytest.raises(on.runtime.CUDARuntimeError, match=end):
            on.stream.end_capture()


def assert_usable(on, graph):
    """The stream runs things again, and a graph has what it should."""
    assert not on.stream.is_capturing()
    assert not on.other.is_capturing()
    if graph is not None:
        graph.launch(on.stream)
    on.shift(on.x, 3, on.stream)
    on.stream.synchronize()
    assert on.numbers()[0] == (3 if graph is None else 5)


@pytest.mark.parametrize("mistaken", [True, False])
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_a_capture(cp, name, mistaken):
    wrong, right, error = MISTAKES[name]
    on = Capturing(cp)
    assert_usable(on, capture_with(on, wrong if mistaken else right, error if mistaken else None))


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("name", IMPLICIT_MISTAKES)
def test_the_default_stream_during_a_capture(cp, name, blocking):
    on = Capturing(cp, blocking=blocking)
    error = "StreamCaptureImplicit" if blocking else None
    assert_usable(on, capture_with(on, IMPLICIT_MISTAKES[name], error))


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
@pytest.mark.parametrize("name", UNSAFE)
def test_modes_of_a_capture(cp, name, mode):
    gc.collect()  # what other tests have left must not be freed while this one captures
    on = Capturing(cp)
    on.spare, on.spare_pinned = on.runtime.malloc(16), on.runtime.hostAlloc(16, 0)
    error = None if mode == RELAXED else "Unsupported: .*another mode than relaxed"
    assert_usable(on, capture_with(on, UNSAFE[name], error, mode))


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_other_threads_during_a_capture(cp, mode):
    """Only the global mode concerns them; they may end a relaxed one."""
    on, allocated = Capturing(cp), []
    with ThreadPoolExecutor(1) as thread:
        on.stream.begin_capture(mode)
        if mode != GLOBAL:
            allocated.append(thread.submit(on.runtime.malloc, 16).result())
        else:
            with pytest.raises(on.runtime.CUDARuntimeError, match="Unsupported"):
                thread.submit(on.runtime.malloc, 16).result()
        if mode == RELAXED:
            thread.submit(on.stream.end_capture).result().launch(on.stream)
        else:
            with pytest.raises(on.runtime.CUDARuntimeError, match="WrongThread"):
                thread.submit(on.stream.end_capture).result()
            with pytest.raises(on.runtime.CUDARuntimeError, match="Invalidated"):
                on.stream.end_capture()
    for address in allocated:
        on.runtime.free(address)
    assert_usable(on, None)


@pytest.mark.parametrize("joins", [True, False])
def test_a_branch_that_is_not_joined(cp, joins):
    on = Capturing(cp)
    with on.stream:
        on.stream.begin_capture()
        fork(on, joins=joins)
        if joins:
            on.stream.end_capture().launch()
        else:
            with pytest.raises(on.runtime.CUDARuntimeError, match=r"Unjoined: .*does not wait"):
                on.stream.end_capture()
    on.stream.synchronize()
    assert on.numbers()[1] == (3 if joins else 1)
    assert_usable(on, None)


def test_captures_that_cannot_begin_or_end(cp):
    on = Capturing(cp)
    with pytest.raises(on.runtime.CUDARuntimeError, match=r"Unsupported: .*legacy default stream"):
        on.runtime.streamBeginCapture(0)
    with pytest.raises(on.runtime.CUDARuntimeError, match=r"IllegalState: .*not capturing"):
        on.stream.end_capture()


def test_cupy_refuses_transfers_in_a_capture(cp):
    on = Capturing(cp)
    with pytest.raises(RuntimeError, match="is capturing"):
        on.graph(lambda: on.x.get())
    with pytest.raises(RuntimeError, match="is capturing"):
        on.graph(lambda: cp.asarray(np.ones(4)))
    assert_usable(on, None)


def test_the_default_stream_cannot_say_whether_it_captures(cp):
    on = Capturing(cp, blocking=True)
    on.stream.begin_capture()
    with pytest.raises(on.runtime.CUDARuntimeError, match="Implicit"):
        cp.cuda.Stream.null.is_capturing()
    on.stream.end_capture()
    assert not cp.cuda.Stream.null.is_capturing()


def test_an_event_of_a_capture_that_has_ended(cp):
    on, events = Capturing(cp), []
    on.graph(lambda: events.append(on.stream.record()))
    with pytest.raises(on.runtime.CUDARuntimeError, match="cudaErrorCapturedEvent"):
        on.other.wait_event(events[0])
    events[0].record(on.stream)
    on.other.wait_event(events[0])


@pytest.mark.parametrize("freed", [True, False])
@pytest.mark.parametrize("use", ["kernel", "fill", "copy"])
def test_memory_of_a_graph(cp, use, freed):
    """Freed before the launch, it is an error, even where other memory has come to lie."""
    on, kept = Capturing(cp), []

    def action():
        z = cp.empty(4, np.float32)
        if use == "fill":
            z.data.memset_async(0, z.nbytes)
        elif use == "copy":
            z.data.copy_from_device_async(on.x.data, z.nbytes)
        else:
            on.shift(z, 1, on.stream)
        kept.append(None if freed else z)

    graph = on.graph(action)
    kept.append([cp.empty(4, np.float32) for _ in range(8)])
    error = pytest.raises(cudasim.SimulationError, match="memory was freed before")
    with error if freed else contextlib.nullcontext():
        graph.launch(on.stream)
        cudasim.check()
    on.stream.synchronize()
    assert on.numbers() == (0, 1)


@pytest.mark.parametrize("destroyed", [True, False])
def test_a_graph_that_is_destroyed(cp, destroyed):
    """What was launched before runs; a launch after is an error."""
    on = Capturing(cp)
    with on.stream:
        on.runtime.streamBeginCapture(on.stream.ptr)
        on.shift(on.x, 1, on.stream)
        graph = on.runtime.streamEndCapture(on.stream.ptr)
    executable = on.runtime.graphInstantiate(graph)
    on.runtime.graphDestroy(graph)
    with cudasim.stream_order("lazy"):
        on.runtime.graphLaunch(executable, on.stream.ptr)
        if destroyed:
            on.runtime.graphExecDestroy(executable)
            for use in (on.runtime.graphLaunch, on.runtime.graphUpload):
                with pytest.raises(cudasim.SimulationError, match="has been destroyed"):
                    use(executable, on.stream.ptr)
        else:
            on.runtime.graphLaunch(executable, on.stream.ptr)
        on.stream.synchronize()
    assert on.numbers()[0] == (1 if destroyed else 3)


def test_pooled_memory_in_a_capture(cp):
    """A pool keeps what was given back to it: graphs may use it at every launch."""
    on, pool = Capturing(cp), cp.cuda.MemoryPool()

    def action():
        with cp.cuda.using_allocator(pool.malloc):
            on.y[...] = (on.x + 1) * 2 + (on.x + 3)

    action()  # loads the kernels
    on.y.fill(0)
    cp.cuda.get_current_stream().synchronize()
    graph = on.graph(action)
    for _ in range(2):
        graph.launch(on.stream)
        on.stream.synchronize()
        assert on.numbers() == (0, 5)


def test_calls_are_counted(cp):
    on = Capturing(cp)
    with cudasim.calls() as counted:
        on.shift(on.x, 1, on.stream)
        on.shift(on.x, 1, on.stream)
        on.stream.synchronize()
    assert counted == {"launchKernel": 2, "streamSynchronize": 1}
    with cudasim.calls() as counted:
        on.x.get()
    assert (counted["memcpyAsync"], counted["streamSynchronize"]) == (1, 1)


# ---- CuPy ----


def test_fresh_memory_is_poisoned(cp):
    assert np.isnan(cp.empty(100, np.float32).get()).all()
    assert (cp.empty(100, np.int32).get() == -1).all()


def test_arrays(cp):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    y = cp.asarray(x)
    for result, expected in [
        (2 * y + y / 4, 2 * x + x / 4),
        (y[1:, ::2], x[1:, ::2]),
        (cp.ascontiguousarray(y.T), x.T),
        (
            cp.concatenate([y, cp.full((1, 4), 2.5, np.float32)]),
            np.vstack([x, np.full((1, 4), 2.5, np.float32)]),
        ),
        (y.sum(axis=0), x.sum(axis=0)),
        (y.max(), x.max()),
        ((y > 20).any(), np.False_),
        ((y >= 0).all(), np.True_),
        (y.astype(np.float64), x.astype(np.float64)),
        (cp.cumsum(cp.arange(5)), np.cumsum(np.arange(5))),
        (cp.repeat(cp.arange(3), 2), np.repeat(np.arange(3), 2)),
    ]:
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result.get(), expected)


def test_device(cp):
    runtime = cp.cuda.runtime
    assert cp.cuda.Device().compute_capability == "80"
    assert cp.cuda.Device().attributes["MultiProcessorCount"] == 4
    assert runtime.getDeviceCount() == 2
    assert runtime.getDeviceProperties(0)["name"] == b"CUDA simulator"
    assert runtime.driverGetVersion() == runtime.runtimeGetVersion() == 13020
    free, total = runtime.memGetInfo()
    assert 0 < free < total
    assert cp.get_default_memory_pool().used_bytes() == 0


# ---- two devices ----


def test_each_device_has_its_own_arrays_and_streams(cp):
    with cp.cuda.Device(1):
        y = cp.arange(4.0)
        assert (y.device.id, cp.cuda.runtime.pointerGetAttributes(y.data.ptr).device) == (1, 1)
        assert (2 * y).get().tolist() == [0, 2, 4, 6]
    assert cp.cuda.Device().id == 0
    assert y.get().tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="different from the current device"):
        y + 1
    with pytest.raises(cudasim.SimulationError, match="no device 2: 2 are simulated"):
        cp.cuda.Device(2).use()


def test_each_thread_has_its_own_current_device(cp):
    found = []
    with cp.cuda.Device(1):
        thread = threading.Thread(target=lambda: found.append(cp.cuda.Device().id))
        thread.start()
        thread.join()
    assert found == [0]


@pytest.mark.parametrize("what", ["kernel", "memory", "stream"])
def test_what_a_launch_needs_is_of_the_current_device(cp, what):
    module = cp.RawModule(code=ADD_ONE)

    def here():
        return {
            "kernel": module.module.get_function("add_one"),  # RawModule's own has one for each device
            "memory": cp.zeros(32, np.float32),
            "stream": cp.cuda.Stream(non_blocking=True),
        }

    theirs = here()
    with cp.cuda.Device(1):
        used = here()
        used["kernel"]((1,), (32,), (used["memory"],), stream=used["stream"])
        used[what] = theirs[what]
        with pytest.raises(cudasim.SimulationError, match=f"add_one: a? ?{what} of device 0"):
            used["kernel"]((1,), (32,), (used["memory"],), stream=used["stream"])


def test_memory_that_a_structure_points_to_is_of_the_current_device(cp):
    code = """
        struct Values { int first; float* x; };
        extern "C" __global__ void add_to(Values v) { v.x[v.first + threadIdx.x] += 1; }
    """
    kernel = cp.RawModule(code=code).get_function("add_to")

    def values(x):
        return np.array((1, x.data.ptr), np.dtype([("first", "i4"), ("x", "u8")], align=True))[()]

    theirs = cp.zeros(32, np.float32)
    with cp.cuda.Device(1):
        own = cp.zeros(32, np.float32)
        kernel((1,), (31,), (values(own),))
        assert own.get().tolist() == [0, *[1] * 31]
        with pytest.raises(cudasim.SimulationError, match="add_to: memory of device 0"):
            kernel((1,), (31,), (values(theirs),))


def test_an_event_is_of_its_stream_s_device(cp):
    event = cp.cuda.Event()
    event.record()
    with cp.cuda.Device(1), pytest.raises(cudasim.SimulationError, match="stream of another device"):
        event.record()


def test_default_streams_do_not_wait_for_other_devices(cp):
    with cudasim.stream_order("lazy"):
        x = cp.zeros(4)
        with cp.cuda.Device(1):
            y = cp.ones(4)
            cp.cuda.get_current_stream().synchronize()
            assert y.get().sum() == 4
            cp.cuda.Device().synchronize()
        assert not cp.cuda.get_current_stream().done
        assert x.get().sum() == 0


def test_arrays_are_exchanged_without_a_copy(cp):
    class Foreign:
        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    x = cp.zeros(4, np.float32)
    for other in (cp.from_dlpack(x), cp.asarray(Foreign(x))):
        other[:] = 3
        assert x.get().tolist() == [3, 3, 3, 3]
        x[:] = 0


@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_matrix_times_dense(cp, transposed):
    import cupyx.scipy.sparse

    rng = np.random.default_rng(0)
    csr = scipy.sparse.random(20, 30, 0.2, "csr", dtype=np.float32, rng=rng)
    dense = rng.random((20 if transposed else 30, 5)).astype(np.float32)
    ours = cupyx.scipy.sparse.csr_matrix(
        (cp.asarray(csr.data), cp.asarray(csr.indices), cp.asarray(csr.indptr)), csr.shape
    )
    np.testing.assert_array_equal(ours.indptr.get(), csr.indptr)
    result = (ours.T if transposed else ours) @ cp.asarray(dense)
    np.testing.assert_allclose(result.get(), (csr.T if transposed else csr) @ dense, rtol=1e-6)


# ---- where it runs ----


def test_install_twice(cp):
    cudasim.install()
    other = next(name for name in cudasim.FLAVOURS if name != os.environ["HPF_CUDASIM"])
    with pytest.raises(RuntimeError, match=f"not {other}"):
        cudasim.install(other)


def test_install_where_it_cannot(cp, monkeypatch):
    from cudasim import real_cupy

    monkeypatch.setattr(real_cupy, "_installed", None)
    with pytest.raises(RuntimeError, match="imported before"):
        cudasim.install()
    monkeypatch.setattr(real_cupy, "_cupy_version", lambda: "12.0.0")
    with pytest.raises(cudasim.Unsupported, match=r"not tried with CuPy 12\.0\.0"):
        cudasim.install()
    monkeypatch.setattr(real_cupy, "_cupy_version", lambda: None)
    with pytest.raises(cudasim.Unsupported, match="CuPy is not installed"):
        cudasim.install()
