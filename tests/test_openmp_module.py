"""The compiled module by itself: what it refuses, what happens where memory ends, and who works."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

openmp = pytest.importorskip("hpf_gpu._openmp", reason="the compiled module is missing")

from hpf_gpu.backends.openmp_backend import OpenMPBackend, TiledCounts  # noqa: E402

DTYPES = [np.float32, np.float64]

Call = tuple[Callable[..., Any], dict[str, Any]]


def make_calls(dtype: type, n: int, m: int, k: int, threads: int, density: float = 0.03) -> dict[str, Call]:
    """Every function of the module with arguments that it takes."""
    rng = np.random.default_rng(n)
    backend = OpenMPBackend(np.dtype(dtype), threads)
    single = dtype is np.float32
    y = sparse.random_array((n, m), density=density, rng=rng, format="csr", dtype=dtype)
    y.data[:] = np.ceil(5 * y.data)
    counts_of = openmp.Counts32 if single else openmp.Counts64
    side_of = openmp.Side32 if single else openmp.Side64
    csr = {"indptr": y.indptr, "indices": y.indices, "data": y.data}
    lists = {"columns": np.empty((n, 4), np.int64), "scores": np.empty((n, 4), dtype)}
    excluded = {"indptr": np.arange(n + 1), "indices": np.full(n, m - 1)}  # the last item, to everybody
    nothing = dict.fromkeys(("had_indptr", "had", "starts", "targets", "weights"))
    bounds = {"bounds": np.zeros(-(-m // 16) * -(-k // 4) * 64, np.uint8), "scale": np.ones(k)}
    unbounded = dict.fromkeys(bounds)
    pairs = max(12_000, n)
    rows, columns = np.arange(pairs) % n, np.arange(pairs) % m

    by_item = y.T.tocsr()
    width = min(40, m - 1)  # neighbours an item
    sources = (np.arange(m)[:, None] + np.arange(1, width + 1)) % m
    sources = np.sort(sources, axis=1).astype(np.int32)
    sources[::3, width // 2 :] = -1

    def matrix(size: int, k: int = k) -> Any:
        return backend.asarray(rng.gamma(0.5, size=(size, k)))

    def side(size: int) -> dict[str, Any]:
        names = ("shape", "rate_rows", "rate_matrix", "rate_columns", "exp_log", "log_scale")
        arrays = (matrix(size), np.ones(size), None, np.ones(k), matrix(size), np.zeros(size))
        return dict(zip(names, arrays, strict=True)) | {"temperature": 1.0}

    def folded() -> dict[str, Any]:
        return {
            "columns": np.ones(k),
            "prior_shape": 0.3,
            "hyper_shape": 0.3 * (1 + k),
            "slope": 1.0,
            "offset": 0.3,
            "pinned_columns": np.array([k - 1]),
            "pinned_shapes": np.array([2.0]),
            "most": 3,
            "threshold": 0.0,
            "exact": False,
            "shape": matrix(n),
            "rate_rows": np.empty(n),
            "exp_log": matrix(n),
            "log_scale": np.empty(n),
            "hyper_rate": np.ones(n),
            "column_sums": np.empty(k),
        }

    # In matrices of their own, and in vectors: what gamma_update writes to, the sides read.
    counts = counts_of(m, *csr.values(), k, threads)
    users, items = side_of(**side(n)), side_of(**side(m))
    update = side(n) | {"prior_shape": 0.3, "row_sums": np.empty(n), "column_sums": np.empty(k)}
    sides = {"counts": counts, "users": users, "items": items}
    transposed = counts_of(n, by_item.indptr, by_item.indices, by_item.data, k, threads)
    of_weights = side(m) | {
        "shape": matrix(m, width),
        "rate_columns": np.ones(width),
        "exp_log": matrix(m, width),
    }
    had = openmp.had_neighbours(transposed, y.indptr, y.indices, sources, threads)
    shared = {
        "counts": transposed,
        "had": had,
        "items": items,
        "users": users,
        "weights": side_of(**of_weights),
    }
    sums = {"item_sums": matrix(m), "weight_sums": matrix(m, width), "user_sums": matrix(n)}
    owned = {"indptr": y.indptr.astype(np.int64), "indices": y.indices.astype(np.int64)}
    added = {
        "had_indptr": owned["indptr"],
        "had": owned["indices"],
        "starts": np.arange(m + 1) * 2,
        "targets": np.arange(2 * m, dtype=np.int32) % m,
        "weights": rng.gamma(0.5, size=2 * m).astype(dtype),
    }
    packed = backend.packed(TiledCounts(counts, (n, m)))
    for name, kind in (
        ("segment_step", "u2"),
        ("segment_size", "u4"),
        ("column_offset", "u4"),
        ("value", dtype),
    ):
        packed[name] = packed[name].astype(kind)  # a byte would be at a good address everywhere
    calls: dict[str, Call] = {
        "Counts": (counts_of, {"columns": m, **csr, "k": k}),
        "Counts of packed arrays": (counts_of, {"rows": n, "columns": m, **packed}),
        "Side": (side_of, side(n)),
        "gamma_update": (openmp.gamma_update, update),
        "extrapolate": (
            openmp.extrapolate,
            {
                "exp_log": matrix(n),
                "log_scale": np.zeros(n),
                "earlier": matrix(n),
                "earlier_scale": np.zeros(n),
                "steps": np.ones(1),
                "out": matrix(n),
                "out_scale": np.zeros(n),
            },
        ),
        "mean": (openmp.mean, {"side": users, "out": matrix(n)}),
        "gamma_entropy": (
            openmp.gamma_entropy,
            {"side": users, "prior_shape": 0.3, "row_sums": np.empty(n)},
        ),
        "allocate": (
            openmp.allocate,
            sides | {"user_sums": matrix(n), "item_sums": matrix(m), "exact": False},
        ),
        "allocate exactly": (
            openmp.allocate,
            sides | {"user_sums": matrix(n), "item_sums": matrix(m), "exact": True},
        ),
        "had_neighbours": (
            openmp.had_neighbours,
            {"counts": transposed, "indptr": y.indptr, "indices": y.indices, "sources": sources},
        ),
        "allocate_with_neighbours": (openmp.allocate_with_neighbours, shared | sums | {"exact": False}),
        "allocate_with_neighbours exactly": (
            openmp.allocate_with_neighbours,
            shared | sums | {"exact": True},
        ),
        "fold_in": (openmp.fold_in, sides | {"had": None, "weights": None} | folded()),
        "fold_in with neighbours": (openmp.fold_in, shared | folded()),
        "log_rate_sum_with_neighbours": (
            openmp.log_rate_sum_with_neighbours,
            {
                "counts": transposed,
                "had": had,
                "beta": matrix(m),
                "theta": matrix(n),
                "weights": matrix(m, width),
            },
        ),
        "log_normalizer_sum_with_neighbours": (openmp.log_normalizer_sum_with_neighbours, shared),
        "neighbour_rates": (
            openmp.neighbour_rates,
            owned
            | {
                "j": m,
                "sources": sources,
                "weights": matrix(m, width),
                "rows": np.sort(rows),
                "columns": columns,
                "out": np.empty(pairs, dtype),
            },
        ),
        "choose_neighbours": (
            openmp.choose_neighbours,
            {
                "user_indptr": owned["indptr"],
                "user_indices": y.indices.astype(np.int32),
                "item_indptr": by_item.indptr.astype(np.int64),
                "item_indices": by_item.indices.astype(np.int32),
                "begin": 0,
                "end": m,
                "chosen": np.empty((m, width), np.int32),
            },
        ),
        "log_rate_sum": (openmp.log_rate_sum, {"counts": counts, "theta": matrix(n), "beta": matrix(m)}),
        "log_normalizer_sum": (openmp.log_normalizer_sum, sides),
        "log_count_products of users": (
            openmp.log_count_products,
            {"counts": counts, "x": matrix(m), "scale": np.ones(n), "of_rows": True, "out": matrix(n)},
        ),
        "log_count_products of items": (
            openmp.log_count_products,
            {"counts": counts, "x": matrix(n), "scale": np.ones(m), "of_rows": False, "out": matrix(m)},
        ),
        "log_factorial_sum": (openmp.log_factorial_sum, {"counts": counts}),
        "predict_pairs": (
            openmp.predict_pairs,
            {
                "theta": matrix(n),
                "beta": matrix(m),
                "rows": rows,
                "columns": columns,
                "out": np.empty(pairs, dtype),
            },
        ),
        "byte_bounds": (
            openmp.byte_bounds,
            {"beta": matrix(m), "bytes": bounds["bounds"], "scale": bounds["scale"]},
        ),
        "top_items": (
            openmp.top_items,
            {"theta": matrix(n), "beta": matrix(m), **bounds, **excluded, **nothing, **lists},
        ),
        "top_items with neighbours": (
            openmp.top_items,
            {"theta": matrix(n), "beta": matrix(m), **unbounded, **excluded, **added, **lists},
        ),
        "distance": (openmp.distance, {"a": matrix(n), "b": matrix(n)}),
    }
    for name, (_, arguments) in calls.items():
        if name != "Side":
            arguments["threads"] = threads
    return calls


OPERATIONS = tuple(make_calls(np.float64, 2, 2, 1, 1, 1.0))


# -- what it refuses ---------------------------------------------------------------------------

NUMBERS = {
    "threads": (-(2**63), -(2**31), -1, 0, openmp.most_threads + 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, None),
    "k": (-(2**63), -1, 0, 2**31, 2**32, 2**61, 2**62 - 1, 2**62, 2**63 - 1, 2**63, None),
    "rows": (-(2**63), -1, 0, 1, 2**31, 2**62, 2**63 - 1, None),
    "columns": (-(2**63), -1, 0, 1, 2**31, 2**62, 2**63 - 1, None),
    "j": (-(2**63), -1, 0, 1, 2**31, 2**62, 2**63 - 1, None),
    "begin": (-(2**63), -1, 1, 2**31, 2**62, 2**63 - 1, None),
    "end": (-(2**63), -1, 0, 1, 2**31, 2**62, 2**63 - 1, None),
    "most": (-(2**63), -1, 0, 2**63, None),
    "temperature": (-1.0, 0.0, float("nan"), float("inf"), None),
}
#: Rows of the caller's own, of which there may be more, at any distance.
ROWS = {
    (operation, name)
    for operation in ("predict_pairs", "byte_bounds", "top_items", "top_items with neighbours")
    for name in ("theta", "beta")
}
OPTIONAL = {"rate_matrix", "user_sums", "item_sums"}
#: Of any width.
TABLES = {("had_neighbours", "sources"), ("choose_neighbours", "chosen")}


def misaligned(array: Any) -> Any:
    """The same numbers, at an address that is no multiple of their size."""
    raw = np.empty(array.nbytes + 1, np.uint8)
    copy = raw[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def spoiled_arrays(operation: str, name: str, array: Any) -> Iterator[Any]:
    if (operation, name) != (
        "byte_bounds",
        "beta",
    ):  # whose type and last row nothing tells
        yield array[:-1]
        yield array.astype(np.float32 if array.dtype == np.float64 else np.float64)
    yield array[:0]
    yield array.astype(np.complex128)
    yield array.astype(object)
    yield array[None]
    yield array.ravel()[0]
    if array.itemsize > 1:
        yield misaligned(array)
    yield "text"
    if name not in OPTIONAL:
        yield None
    if array.ndim == 2:
        yield array[:, :0]
        if (operation, name) not in TABLES:
            yield np.empty((len(array), array.shape[1] + 1), array.dtype)
        yield np.asfortranarray(array)
    if (operation, name) not in ROWS:
        yield np.concatenate([array, array[:1]])
        if array.ndim == 2 and array.base is not None:  # in the module's layout, but a row in between
            padded = array.base.view(array.dtype)[: len(array) * array.strides[0] // array.itemsize]
            yield padded.reshape(len(array), -1)[::2, : array.shape[1]]
            yield padded.reshape(len(array), -1)[-1::2, : array.shape[1]]


def spoiled(operation: str, calls: dict[str, Call], others: tuple[dict[str, Call], ...]) -> Iterator[Any]:
    """Arguments of which one is wrong, with its name."""
    function, good = calls[operation]
    for name, value in good.items():
        wrong: list[Any] = []
        if isinstance(value, np.ndarray):
            wrong += spoiled_arrays(operation, name, value)
        elif name in NUMBERS:
            wrong += NUMBERS[name]
        elif value is not None and name in ("counts", "had", "side", "users", "items", "weights"):
            wrong += [None, object(), type(value).__new__(type(value))]
            # Of another type or size, where anything else is there to fit.
            alone = {"log_factorial_sum": 2, "gamma_entropy": 1, "had_neighbours": 1}.get(
                operation, int(name == "had")
            )
            wrong += [other[operation][1][name] for other in others[alone:]]
        for one in wrong:
            yield function, name, good | {name: one}
    if operation == "allocate":
        yield function, "both sums", good | {"user_sums": None, "item_sums": None}
    if operation == "Side":
        yield function, "no rates", good | {"rate_rows": None}
        yield function, "rates twice", good | {"rate_matrix": good["shape"]}
    if operation == "top_items":
        yield function, "no list", good | {name: good[name][:, :0] for name in ("columns", "scores")}
        yield function, "half of CSR", good | {"indptr": None}
        yield function, "half of bounds", good | {"scale": None}
    if operation == "top_items with neighbours":
        for wrong_item in (-1, good["beta"].shape[0]):
            yield function, "targets", good | {"targets": np.full_like(good["targets"], wrong_item)}
        yield function, "starts", good | {"starts": good["starts"][::-1].copy()}
    if operation in ("had_neighbours", "neighbour_rates"):
        for place, wrong_item in ((0, -2), (0, -1), (0, good["sources"][0, 1]), (-1, 7)):
            wrong_sources = good["sources"].copy()
            wrong_sources[1, place] = wrong_item
            yield function, "sources", good | {"sources": wrong_sources}
    if operation == "had_neighbours":  # of other counts, as many
        moved = good["indices"].copy()
        moved[: good["indptr"][1]] = np.arange(good["indptr"][1])
        if (moved != good["indices"]).any():
            yield function, "indices", good | {"indices": moved}
    if operation.startswith("fold_in"):
        for wrong_column in (-1, len(good["columns"])):
            yield function, "pinned_columns", good | {"pinned_columns": np.array([wrong_column])}
    if operation == "fold_in with neighbours":
        yield function, "no weights", good | {"had": None, "weights": None}
    if operation == "allocate_with_neighbours":
        yield function, "no sums", good | {"user_sums": None, "item_sums": None, "weight_sums": None}
        yield function, "half of the items", good | {"weight_sums": None}


def refuse_everything(operation: str) -> None:
    """What is wrong is an error that says so, and nothing else."""
    for dtype in DTYPES:
        calls = make_calls(dtype, 6, 7, 5, 2, 0.5)
        other = np.float64 if dtype is np.float32 else np.float32
        others = (make_calls(other, 6, 7, 5, 2, 0.5), make_calls(dtype, 4, 8, 5, 2, 0.5))
        for function, name, arguments in spoiled(operation, calls, others):
            try:
                function(**arguments)
            except (ValueError, TypeError, IndexError):
                pass
            else:
                raise AssertionError(f"{operation} has taken {name} = {arguments.get(name)!r}")
        function, arguments = calls[operation]
        function(**arguments)


def refuse_everything_of_all() -> None:
    """In a process of its own, whose last line names the operation that has ended it."""
    for operation in OPERATIONS:
        print(operation, flush=True)  # noqa: T201
        refuse_everything(operation)


def test_wrong_arguments_are_errors() -> None:
    """Any size, shape, type and layout that does not fit is an error; none of them ends the process."""
    done = subprocess.run(
        [sys.executable, "-c", "from test_openmp_module import refuse_everything_of_all as refuse; refuse()"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    begun = done.stdout.splitlines()
    assert done.returncode == 0, f"{begun[-1:]}, exit status {done.returncode}: {done.stderr[-2000:]}"
    assert begun == list(OPERATIONS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_the_callers_own_at_any_distance(dtype: type) -> None:
    """Of users and of items, which need not have the same."""
    rng = np.random.default_rng(0)
    theta, beta = (
        rng.integers(0, 9, (40, 11)).astype(dtype)[::2, 1:6],
        rng.integers(0, 9, (30, 7)).astype(dtype)[:, :5],
    )
    for users, items in ((theta, beta), (beta, theta), (theta.copy(), beta), (theta, beta.copy())):
        rates = users.astype(float) @ items.T
        rows, columns = map(np.ravel, np.indices(rates.shape))
        out = np.empty(rates.size, dtype)
        openmp.predict_pairs(users, items, rows, columns, out, 1)
        np.testing.assert_array_equal(out, rates.ravel())
        best, scores = np.empty((len(users), 4), np.int64), np.empty((len(users), 4), dtype)
        openmp.top_items(users, items, *[None] * 9, best, scores, 1)
        np.testing.assert_array_equal(scores, -np.sort(-rates, axis=1)[:, :4])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threads", 0, f"threads must be between 1 and {openmp.most_threads}, not 0"),
        ("threads", 2**40, f"not {2**40}"),
        ("k", 2**62, f"the number of factors must be between 1 and 2147483647, not {2**62}"),
        ("data", np.ones(3), "data has the length 3 instead of"),
    ],
)
def test_errors_name_the_value(name: str, value: Any, message: str) -> None:
    function, arguments = make_calls(np.float64, 6, 7, 5, 2, 0.5)["Counts"]
    with pytest.raises(ValueError, match=message):
        function(**arguments | {name: value})


def test_errors_name_the_shape() -> None:
    function, arguments = make_calls(np.float64, 6, 7, 5, 2, 0.5)["mean"]
    with pytest.raises(ValueError, match=r"out has the shape \(5, 5\) instead of \(6, 5\)"):
        function(**arguments | {"out": arguments["out"][:5]})
    with pytest.raises(ValueError, match="out is not laid out in rows of whole cache lines"):
        function(**arguments | {"out": misaligned(arguments["out"])})


# -- where memory ends -------------------------------------------------------------------------


#: Some work in what they are given, and take no memory.
FRUGAL = ("Side", "predict_pairs", "log_count_products of users", "log_count_products of items")


@pytest.fixture(scope="module")
def large() -> Callable[..., dict[str, Call]]:
    """Calls large enough for threads, by type, threads and a number; to make them is what takes time."""
    return cache(lambda dtype, threads, number: make_calls(dtype, 1200, 1100, 30, threads))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_allocation_may_fail(
    operation: str, dtype: type, threads: int, large: Callable[..., dict[str, Call]]
) -> None:
    """The first, then the second and so on: MemoryError, nothing is lost, and the next call works."""

    def result(number: int) -> list[Any]:
        function, arguments = large(dtype, threads, number)[operation]
        returned = function(**arguments)
        arrays = [value for value in arguments.values() if isinstance(value, np.ndarray)]
        return [returned if isinstance(returned, float) else None, *map(np.copy, arrays)]

    want = result(0)
    function, arguments = large(dtype, threads, 1)[operation]
    in_use = openmp.pieces_in_use()
    try:
        for failures in count():
            openmp.fail_allocation(failures)
            try:
                kept = function(**arguments)
            except MemoryError:
                assert openmp.pieces_in_use() == in_use
            else:
                break
    finally:
        openmp.fail_allocation(-1)
    del kept
    assert openmp.pieces_in_use() == in_use
    assert (failures == 0) == (operation in FRUGAL)
    for got, wanted in zip(result(2), want, strict=True):
        np.testing.assert_array_equal(got, wanted)


# -- threads -----------------------------------------------------------------------------------


def threads_begun(function: Callable[..., Any], arguments: dict[str, Any]) -> int:
    """Threads that work on a call: each of Python's threads has a team of its own, which stays with it."""
    begun, tasks = [], Path("/proc/self/task")

    def work() -> None:
        before = set(tasks.iterdir())
        kept = function(**arguments)
        begun.append(1 + len(set(tasks.iterdir()) - before))  # those of an earlier team may still be ending
        del kept

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return begun[0]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists a process's threads")
@pytest.mark.skipif(not openmp.has_openmp, reason="the module was compiled without OpenMP")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "Side"])
def test_threads_are_used_where_they_are_earned(
    operation: str, dtype: type, large: Callable[..., dict[str, Call]]
) -> None:
    if operation == "byte_bounds" and openmp.level() == "baseline":
        pytest.skip("at this level there are no bounds")
    assert threads_begun(*large(dtype, 3, 3)[operation]) == 3
    if not operation.startswith(
        ("predict_pairs", "top_items", "neighbour_rates")
    ):  # whose work is not in the factors' size
        assert threads_begun(*make_calls(dtype, 20, 30, 3, 3)[operation]) == 1
