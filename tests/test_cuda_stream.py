"""Counts that stream from the host: the bits of counts on the device, whatever the parts and whoever is late.

Runs on a GPU, and without one in the legs of test_simulated_cuda.py.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import conftest
import numpy as np
import problems
import pytest
from contract.cases import Case, disjoint, make_factors, make_parameters
from parity import MATRICES
from problems import SMALL, rule
from scipy import sparse

from hpf_gpu import HPF, NotEnoughMemory
from hpf_gpu.backends import create, cuda_layout
from hpf_gpu.backends.cuda_source import Variant
from hpf_gpu.backends.cuda_stream import Narrow
from hpf_gpu.model.inference import iterate

if "cuda" not in conftest.BACKENDS:
    pytest.skip(f"cuda: {conftest.MISSING['cuda']}", allow_module_level=True)

#: Orders in which streams are simulated, with seeds; a GPU has its own.
ORDERS = [("eager", 0), ("lazy", 0), *(("random", seed) for seed in range(8))]
F4, F8 = np.dtype(np.float32), np.dtype(np.float64)
U1, U2, I4 = (np.dtype(kind) for kind in ("u1", "u2", "i4"))


@pytest.fixture(params=ORDERS if conftest.SIMULATED else [None], ids=str)
def order(request: pytest.FixtureRequest) -> Iterator[None]:
    """Streams run in this order."""
    if request.param is None:
        yield
        return
    import cudasim

    with cudasim.stream_order(*request.param):
        yield


def counts(kind: str = "u1", n: int = 40, m: int = 33, seed: int = 0) -> sparse.csr_array:
    """Counts (N, M) that fit this type: rows and columns of all lengths, and some without counts."""
    rng = np.random.default_rng(seed)
    y = rng.geometric(0.3, (n, m)) * (rng.random((n, m)) < np.linspace(0, 1, n)[:, None] ** 2)
    y = y.astype(np.float64)
    y[:, 7] = y[n // 2] = 0
    y[-1, -1] = {"u1": 255, "u2": 65535, "f4": 2.5}[kind]
    return sparse.csr_array(y)


def case_of(csr: sparse.csr_array, k: int, low: float) -> Case:
    """Factors for these counts, of which many products underflow."""
    rng = np.random.default_rng(k)
    shapes = (disjoint(size, k, rng.uniform(low / 2, low, (size, 1))) for size in csr.shape)
    users, items = (make_parameters(rng, len(shape), k, shape) for shape in shapes)
    return Case("streamed", csr.toarray(), users, items)


def results(backend: Any, counted: Any, users: Any, items: Any) -> dict[str, Any]:
    """What every operation on nonzeros returns, on the host."""
    got: dict[str, Any] = {"ln y!": backend.log_factorial_sum(counted)}
    for exact in (False, True):
        for side in ("users", "items", "both"):
            sums = backend.allocate(counted, users, items, side=side, exact=exact)
            got[f"{side}, {exact}"] = [None if one is None else backend.asnumpy(one) for one in sums]
    for side, x, scale in (("users", items, users), ("items", users, items)):
        products = backend.log_count_products(counted, backend.mean(x), scale.log_scale, side=side)
        got[f"ln(1 + y), {side}"] = backend.asnumpy(products)
    got["ELBO"] = backend.log_normalizer_sum(counted, users, items)
    got["rates"] = backend.log_rate_sum(counted, backend.mean(users), backend.mean(items))
    return got


def assert_same_bits(got: dict[str, Any], want: dict[str, Any]) -> None:
    for name, value in want.items():
        pairs = zip(got[name], value, strict=True) if isinstance(value, list) else [(got[name], value)]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "options", "kind", "narrow", "part"),
    [
        (F4, {}, "u1", None, 16),  # a segment each
        (F4, {}, "u1", None, 40),  # rows of several segments in several parts
        (F4, {}, "u2", None, 100),
        (F4, {}, "f4", None, 40),
        (F4, {}, "u1", None, 1 << 24),  # one part
        (F4, {}, "u1", (I4, U2, U1), 40),  # as with many columns by users, or by items, or both
        (F4, {}, "u1", (U2, I4, U2), 40),
        (F4, {}, "f4", (I4, I4, F4), 40),
        (F4, {"precision": "mixed"}, "u1", None, 40),
        (F8, {}, "u1", None, 40),
        (F8, {}, "f4", None, 100),
    ],
    ids=str,
)
def test_same_bits_as_on_the_device(
    dtype: np.dtype[Any],
    options: dict[str, Any],
    kind: str,
    narrow: tuple[np.dtype[Any], ...] | None,
    part: int,
    order: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_layout, "SEGMENT", 16)
    monkeypatch.setattr(cuda_layout, "PART", part)
    backend, csr = create("cuda", dtype, **options), counts(kind)
    low = 0.06 if options else {F4: 0.02, F8: 0.0035}[dtype]
    users, items = make_factors(backend, case_of(csr, 5, low))
    on_device = backend.counts(csr, 5)
    chosen = Narrow.of(csr, dtype)
    assert chosen.value == {"u1": U1, "u2": U2, "f4": dtype}[kind]
    streamed = backend._streamer.counts(csr, Narrow(*narrow) if narrow else chosen)
    assert (on_device.is_streamed, streamed.is_streamed) == (False, True)
    assert streamed.nnz == on_device.nnz == csr.nnz
    assert on_device.users.slots
    assert (len(streamed.users.parts._parts) > 1) == (part < csr.nnz)
    want, got = results(backend, on_device, users, items), results(backend, streamed, users, items)
    assert_same_bits(got, want)


def test_no_part_overtakes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come is what was sent, in many orders: few random ones let a copy overtake two parts."""
    import cupy as cp

    if not conftest.SIMULATED:
        pytest.skip("only simulated streams run in many orders")
    import cudasim

    monkeypatch.setattr(cuda_layout, "PART", 40)
    backend, csr = create("cuda", F4), counts()
    users = backend._streamer.counts(csr, Narrow.of(csr, F4)).users
    channel = users.parts._channel
    for order in [("lazy", 0), *(("random", seed) for seed in range(100))]:
        with cudasim.stream_order(*order):
            came = [(channel.column.copy(), channel.value.copy()) for _ in users.parts]
            cp.cuda.get_current_stream().synchronize()
        begin = 0
        for part, (column, value) in zip(users.parts._parts, came, strict=True):
            within, size = slice(begin, begin + len(part.column)), len(part.column)
            np.testing.assert_array_equal(column.get()[:size], csr.indices[within], err_msg=str(order))
            np.testing.assert_array_equal(value.get()[:size], csr.data[within], err_msg=str(order))
            begin += size
        assert begin == csr.nnz


# -- fits --------------------------------------------------------------------------------------


def fit(data: Any, **arguments: Any) -> HPF:
    defaults = {"k": 5, "maxiter": 4, "check_every": 2, "random_seed": 1, "verbose": False, "backend": "cuda"}
    return HPF(**defaults | arguments).fit(data)


def needs(
    csr: sparse.csr_array, k: int = 5, dtype: np.dtype[Any] = F4, half: bool = False
) -> tuple[int, int]:
    """Predicted bytes of a fit whose counts are on the device, and of one whose counts stream."""
    variant, streamed = Variant(k, dtype, half), Narrow.of(csr, dtype).nbytes
    return (
        cuda_layout.bytes_of_fit(variant, csr.shape, csr.nnz),
        cuda_layout.bytes_of_fit(variant, csr.shape, csr.nnz, streamed=streamed),
    )


def let_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    from hpf_gpu.backends import cuda_backend

    monkeypatch.setattr(cuda_backend, "free_bytes", lambda: free)


@contextlib.contextmanager
def told_once(file: str = __file__) -> Iterator[None]:
    with pytest.warns(UserWarning, match="stay in host memory and stream") as warned:
        yield
    (warning,) = (one for one in warned if "stream" in str(one.message))
    assert warning.filename == file


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"schedule": "alternating", "stop_crit": "elbo", "stop_thr": 1e-9},
        {"sum_exp_trick": True, "use_float": False},
    ],
    ids=str,
)
def test_a_fit_that_streams_is_the_same(
    arguments: dict[str, Any], order: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_layout, "PART", 64)
    csr = counts()
    want = fit(csr, **arguments)
    on_device, streamed = needs(csr, dtype=F4 if arguments.get("use_float", True) else F8)
    assert streamed < on_device
    let_free(monkeypatch, streamed)
    with told_once():
        got = fit(csr, **arguments)
    for name in MATRICES:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    assert got.train_llk == want.train_llk
    np.testing.assert_array_equal(got.topN(0, 5), want.topN(0, 5))


@pytest.mark.skipif(not conftest.SIMULATED, reason="only the simulator counts calls of CUDA")
def test_iterations_that_stream_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    import cudasim

    csr = counts()
    with cudasim.calls() as calls:
        fit(csr, maxiter=5)
    assert calls["graphLaunch"] == 3
    let_free(monkeypatch, needs(csr)[1])
    with told_once(), cudasim.calls() as calls:
        fit(csr, maxiter=5)
    assert calls["graphLaunch"] == calls["streamBeginCapture"] == 0


def test_a_backend_tells_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first of several blocks or batches; the next fit has a backend of its own."""
    csr = counts()
    let_free(monkeypatch, needs(csr)[0] - 1)
    for _ in range(2):
        backend = create("cuda", F4)
        with told_once():
            assert backend.counts(csr, 5).is_streamed
            assert backend.counts(csr, 5).is_streamed


def test_an_iteration_that_streams_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated streams that run only when somebody waits still have all their work after an iteration."""
    import cupy as cp

    if not conftest.SIMULATED:
        pytest.skip("only streams that are simulated as lazy show who waits")
    import cudasim

    monkeypatch.setattr(cuda_layout, "PART", 64)
    let_free(monkeypatch, needs(sparse.csr_array(SMALL.y))[1])
    backend = create("cuda", F4)
    with cudasim.stream_order("lazy"), told_once(problems.__file__):
        blocks = SMALL.blocks(backend)
        assert blocks.blocks[0].counts.is_streamed
        model = iterate(backend, blocks, SMALL.model(backend, blocks), rule("joint"))
        stream = cp.cuda.get_current_stream()
        stream.synchronize()
        iterate(backend, blocks, model, rule("joint"))
        assert not stream.done


def test_any_stream(order: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit on a stream of the user's, from its first allocation to its last, is the same fit."""
    import cupy as cp

    monkeypatch.setattr(cuda_layout, "PART", 64)
    csr = counts()
    want = fit(csr)
    let_free(monkeypatch, needs(csr)[1])
    with cp.cuda.Stream(non_blocking=True), told_once():
        got = fit(csr)
    np.testing.assert_array_equal(got.Theta, want.Theta)


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "segment"), [((800, 500), 256), ((4000, 20), 256), ((1000, 25), 4)])
@pytest.mark.parametrize("part", [256, 4000, 1 << 24])
@pytest.mark.parametrize("arguments", [{}, {"use_float": False}, {"precision": "mixed", "k": 40}], ids=str)
def test_memory_is_predicted(
    arguments: dict[str, Any],
    part: int,
    shape: tuple[int, int],
    segment: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a fit that streams takes on the device at its peak, by every allocation."""
    import cupy as cp

    monkeypatch.setattr(cuda_layout, "SEGMENT", segment)
    monkeypatch.setattr(cuda_layout, "PART", part)
    rng = np.random.default_rng(0)
    pairs = rng.choice(shape[0] * shape[1], 15_000, replace=False)
    coo = (rng.geometric(0.4, pairs.size).astype(np.float64), (pairs // shape[1], pairs % shape[1]))
    data = sparse.coo_array(coo, shape=shape).tocsr()
    dtype = F4 if arguments.get("use_float", True) else F8
    on_device, predicted = needs(data, arguments.get("k", 5), dtype, half="precision" in arguments)
    assert predicted < on_device
    fit(data, **arguments | {"maxiter": 1})  # kernels compiled, small things cached
    held = peak = 0

    class Counted(cp.cuda.Memory):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            nonlocal held, peak
            super().__init__(size)
            self.counted = size
            held += size
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.counted

    let_free(monkeypatch, predicted)
    with told_once(), cp.cuda.using_allocator(lambda size: cp.cuda.MemoryPointer(Counted(size), 0)):
        fit(data, **arguments)
    assert 0.5 * predicted < peak <= predicted, f"{peak / predicted:.2f} of {predicted}"


@pytest.mark.parametrize(("dtype", "half"), [(F4, False), (F8, False), (F4, True)])
def test_refused_by_what_was_predicted(
    dtype: np.dtype[Any], half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte: on the device, streaming, and refused, with the smaller figure."""
    csr, k = counts(), 70
    on_device, streamed = needs(csr, k, dtype, half)
    backend = create("cuda", dtype, precision="mixed" if half else "full")
    let_free(monkeypatch, on_device)
    assert not backend.counts(csr, k).is_streamed
    let_free(monkeypatch, streamed)
    with told_once():
        assert backend.counts(csr, k).is_streamed
    let_free(monkeypatch, streamed - 1)
    with pytest.raises(NotEnoughMemory, match=r"with k=70 .* needs about 0\.00 GiB"):
        backend.counts(csr, k)
    # Where counts are so large in their narrow form that it does not pay, they are not streamed.
    monkeypatch.setattr("hpf_gpu.backends.cuda_stream.Narrow.nbytes", 50)
    let_free(monkeypatch, on_device - 1)
    with pytest.raises(NotEnoughMemory):
        backend.counts(csr, k)


def test_what_cannot_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts that are on the device already, and those of cuSPARSE."""
    import cupy as cp

    csr = counts()
    coo = csr.tocoo()
    table = cp.asarray(np.column_stack([coo.row, coo.col, coo.data]))
    let_free(monkeypatch, needs(csr)[0] - 1)
    with pytest.raises(NotEnoughMemory, match="use use_float=True"):
        fit(table, reindex=False)
    with pytest.raises(NotEnoughMemory, match="use allocate='fused', use_float=True"):
        fit(csr, allocate="cusparse")


def test_columns_outside_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for column in (-1, 33, 1 << 16):
        csr = counts()
        csr.indices[17] = column
        let_free(monkeypatch, needs(csr)[0] - 1)
        with told_once(), pytest.raises(ValueError, match="outside the 33 columns"):
            create("cuda", F4).counts(csr, 5)


def test_host_memory_is_given_back_when_it_was_read(order: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where counts are dropped with copies still to come: one from freed memory is a simulated error."""
    import cupy as cp

    pinned = 0

    class Counted(cp.cuda.PinnedMemory):  # type: ignore[misc]
        def __init__(self, size: int, flags: int = 0) -> None:
            nonlocal pinned
            super().__init__(size, flags)
            pinned += size

        def __del__(self) -> None:
            nonlocal pinned
            pinned -= self.size
            super().__del__()

    monkeypatch.setattr(cp.cuda, "PinnedMemory", Counted)
    monkeypatch.setattr(cuda_layout, "PART", 64)
    backend, csr = create("cuda", F4), counts()
    factors = make_factors(backend, case_of(csr, 5, 0.3))
    want = backend.allocate(backend.counts(csr, 5), *factors)
    streamed = backend._streamer.counts(csr, Narrow.of(csr, F4))
    assert 6 * csr.nnz <= pinned <= 6 * csr.nnz + 4 * 16
    got = backend.allocate(streamed, *factors)
    del streamed
    gc.collect()
    assert pinned == 0
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one.get(), other.get())


def test_memory_that_cannot_be_pinned(order: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary memory takes its place, and the user is told."""
    import cupy as cp

    def fails(size: int) -> Any:
        raise cp.cuda.runtime.CUDARuntimeError(2)

    monkeypatch.setattr(cuda_layout, "PART", 64)
    backend, csr = create("cuda", F4), counts()
    factors = make_factors(backend, case_of(csr, 5, 0.3))
    want = results(backend, backend.counts(csr, 5), *factors)
    monkeypatch.setattr(cp.cuda, "PinnedMemory", fails)
    with pytest.warns(UserWarning, match=r"host memory cannot be pinned .* from ordinary memory") as warned:
        streamed = backend._streamer.counts(csr, Narrow.of(csr, F4))
    assert len(warned) == 1
    assert_same_bits(results(backend, streamed, *factors), want)
