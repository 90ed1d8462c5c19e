"""What only the CUDA backend has: its copy by items, memory, options, and data that lies on a GPU.

Runs on a GPU, and without one in the legs of test_simulated_cuda.py.
"""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from typing import Any

import conftest
import numpy as np
import oracle
import pandas as pd
import pytest
import test_backend_contract as contract
from parity import MATRICES, relative_error
from scipy import sparse

from hpf_gpu import HPF, BackendUnavailable, NotEnoughMemory
from hpf_gpu.backends import create, cuda_layout
from hpf_gpu.backends.cuda_source import Variant
from hpf_gpu.inference import iterate

if "cuda" not in conftest.BACKENDS:
    pytest.skip(f"cuda: {conftest.MISSING['cuda']}", allow_module_level=True)

# -- the device --------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["float32", "float64"])
def cuda(request: pytest.FixtureRequest) -> Any:
    return create("cuda", np.dtype(request.param))


@pytest.fixture(scope="session")
def cuda32() -> Any:
    return create("cuda", np.dtype(np.float32))


def random_counts(n: int = 60, m: int = 45, nnz: int = 700, seed: int = 0) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    pairs = rng.choice(n * m, nnz, replace=False)
    values = rng.geometric(0.4, nnz).astype(np.float64)
    return sparse.coo_array((values, (pairs // m, pairs % m)), shape=(n, m)).tocsr()


@pytest.mark.parametrize("shape", [(60, 45), (1, 700), (700, 1), (3, 900)])
def test_counts_by_items(cuda: Any, shape: tuple[int, int]) -> None:
    """The copy by items is SciPy's CSC, nonzero by nonzero."""
    csr = random_counts(*shape, nnz=min(700, shape[0] * shape[1] // 2))
    by_items, csc = cuda.counts(csr, 5).items, csr.tocsc()
    np.testing.assert_array_equal(by_items.column.get(), csc.indices)
    np.testing.assert_array_equal(by_items.value.get(), csc.data.astype(cuda.dtype))
    cut = cuda_layout.segmentation(csc.indptr.astype(np.int64))
    np.testing.assert_array_equal(by_items.segments.begin.get(), cut.begin)


@pytest.mark.parametrize("column", [-1, 45])
def test_columns_outside_are_refused(cuda: Any, column: int) -> None:
    csr = random_counts()
    csr.indices[17] = column
    with pytest.raises(ValueError, match="outside the 45 columns"):
        cuda.counts(csr, 5)


@pytest.mark.parametrize("k", [513, 1024])
def test_most_factors(cuda: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    case = contract.Case(
        "k", contract._counts(rng, 9, 7, 40), contract._parameters(rng, 9, k), contract._parameters(rng, 7, k)
    )
    users, items = contract.make_factors(cuda, case)
    wanted = oracle.allocate(case.y, case.users.gamma.expected_log, case.items.gamma.expected_log)
    for exact in (False, True):
        got = cuda.allocate(cuda.counts(case.csr(cuda.dtype), k), users, items, exact=exact)
        for statistic, want in zip(got, wanted, strict=True):
            contract.assert_close(cuda.asnumpy(statistic), want, contract.TOLERANCE[cuda.dtype.name].allocate)
    with pytest.raises(ValueError, match="k=1025: the cuda backend takes at most 1024"):
        cuda.counts(case.csr(cuda.dtype), 1025)


def test_an_iteration_does_not_wait(cuda32: Any) -> None:
    """Simulated streams that run only when somebody waits still have all their work after an iteration."""
    import cupy as cp

    if not conftest.SIMULATED or conftest.STREAMS != "lazy":
        pytest.skip("only streams that are simulated as lazy show who waits")
    model = iterate(cuda32, contract.SMALL.model(cuda32), contract.rule("joint"))
    stream = cp.cuda.get_current_stream()
    stream.synchronize()
    iterate(cuda32, model, contract.rule("joint"))
    assert not stream.done


def test_any_stream(cuda32: Any) -> None:
    """A fit on a stream of the user's is the same fit."""
    import cupy as cp

    def fitted() -> tuple[np.ndarray[Any, Any], ...]:
        return contract.factor_on_host(
            cuda32, contract.run_fit(cuda32, "joint", full_llk=False).model.items.factor
        )

    plain = fitted()
    with cp.cuda.Stream(non_blocking=True):
        streamed = fitted()
    for a, b in zip(plain, streamed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_forked_child_is_told(cuda32: Any) -> None:
    fork = multiprocessing.get_context("fork")
    with fork.Pool(1) as pool, pytest.raises(BackendUnavailable, match="does not survive"):
        pool.apply(create, ("cuda", np.float32))


def test_many_users_are_ranked_on_the_device(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpf_gpu import recommending
    from hpf_gpu.backends.cuda_backend import CudaBackend

    model, called = fit(random_counts()), []
    one_by_one = [model.topN(user, 5) for user in range(60)]
    rank = CudaBackend.top_items
    monkeypatch.setattr(CudaBackend, "top_items", lambda *a: called.append(1) or rank(*a))
    monkeypatch.setattr(recommending, "_WORTH_A_GPU", 60)
    np.testing.assert_array_equal(model.topN(np.arange(60), 5), one_by_one)
    assert called


# -- memory ------------------------------------------------------------------------------------


def fit(data: Any, val_set: Any = None, **arguments: Any) -> HPF:
    defaults = {"k": 5, "maxiter": 4, "check_every": 2, "random_seed": 1, "verbose": False, "backend": "cuda"}
    return HPF(**defaults | arguments).fit(data, val_set=val_set)


def test_too_much_for_the_device_is_refused_first(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is refused before anything is allocated."""
    import cupy as cp

    from hpf_gpu.backends import cuda_backend

    asked: list[int] = []

    def allocate(size: int) -> Any:
        asked.append(size)
        return cp.get_default_memory_pool().malloc(size)

    monkeypatch.setattr(cuda_backend, "free_bytes", lambda: 1 << 14)
    with (
        cp.cuda.using_allocator(allocate),
        pytest.raises(NotEnoughMemory, match=r"700 counts .* needs about .* precision='mixed'"),
    ):
        fit(random_counts())
    assert not asked
    monkeypatch.undo()
    with cp.cuda.using_allocator(allocate):
        fit(random_counts())
    assert asked


def test_memory_that_others_took_meanwhile(cuda32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CuPy finds no memory in an operation, the user hears which, and what to do."""
    import cupy as cp

    from hpf_gpu import recommending

    model = fit(random_counts())
    monkeypatch.setattr(recommending, "_WORTH_A_GPU", 1)

    def allocate(size: int) -> Any:
        raise cp.cuda.memory.OutOfMemoryError(size, 1 << 30, 1 << 31)

    with cp.cuda.using_allocator(allocate):
        for work in (lambda: fit(random_counts()), lambda: model.topN(np.arange(60), 5)):
            with pytest.raises(NotEnoughMemory, match=r"for \w+: Out of memory .* take backend='openmp'"):
                work()


def test_the_cusparse_form_refuses_more_nonzeros_than_it_can_number(cuda32: Any) -> None:
    class Huge:
        shape, nnz = (10, 10), 1 << 31

    with pytest.raises(ValueError, match=r"2,147,483,648; take allocate='fused'"):
        create("cuda", np.float32, allocate="cusparse").counts(Huge, 5)


def test_parts_on_their_way_to_the_host(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions and rankings of more than go to the host at once are those of one piece."""
    from hpf_gpu.backends import cuda_backend

    rng = np.random.default_rng(2)
    theta, beta = (cuda.asarray(rng.gamma(0.3, 1.0, (n, 5))) for n in (60, 45))
    rows, columns = rng.integers(0, 60, 500), rng.integers(0, 45, 500)
    csr = random_counts()
    seen = (csr.indptr, csr.indices)
    whole = cuda.predict_pairs(theta, beta, rows, columns), *cuda.top_items(theta, beta, 7, seen)
    monkeypatch.setattr(cuda_backend, "_AT_ONCE", 64)
    parts = cuda.predict_pairs(theta, beta, rows, columns), *cuda.top_items(theta, beta, 7, seen)
    for part, want in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part, want)


@pytest.mark.parametrize("shape", [(800, 500), (4000, 20)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_float": False},
        {"precision": "mixed", "k": 40},
        {"k": 40},
        {"k": 40, "maxiter": 1},
        {"k": 40, "stop_crit": "diff-norm", "stop_thr": 1e-9},
    ],
)
def test_memory_is_predicted(
    cuda32: Any, arguments: dict[str, Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fit takes at its peak is at most what was predicted, and not much less."""
    import cupy as cp

    monkeypatch.setattr(cuda_layout, "SEGMENT", 256)
    data = random_counts(*shape, 20_000)
    fit(data, **arguments)  # kernels compiled, small things cached
    held = peak = 0

    class Counted(cp.cuda.Memory):
        def __init__(self, size: int) -> None:
            nonlocal held, peak
            super().__init__(size)
            self.counted = size
            held += size
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.counted

    with cp.cuda.using_allocator(lambda size: cp.cuda.MemoryPointer(Counted(size), 0)):
        fit(data, **arguments)
    real = np.dtype(np.float32 if arguments.get("use_float", True) else np.float64)
    variant = Variant(arguments.get("k", 5), real, half="precision" in arguments)
    predicted = cuda_layout.bytes_of_fit(variant, data.shape, data.nnz)
    assert 0.5 * predicted < peak <= predicted, f"{peak / predicted:.2f} of {predicted}"


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["K=30", "power law", "nearly disjoint", "disjoint", "start values"])
def test_composed_form(cuda: Any, name: str) -> None:
    """A kernel for the weights and cuSPARSE for the sums: the same statistic."""
    composed = create("cuda", cuda.dtype, allocate="cusparse")
    case = contract.make_case(name)
    users, items = contract.make_factors(composed, case)
    counts = composed.counts(case.csr(composed.dtype), case.k)
    wanted = contract.expected_statistics(name)
    for exact in (False, True):
        got = composed.allocate(counts, users, items, exact=exact)
        for statistic, want in zip(got, wanted, strict=True):
            limit = contract.TOLERANCE[cuda.dtype.name].allocate
            contract.assert_close(composed.asnumpy(statistic), want, limit)


#: Relative error of a statistic, entry by entry, with U and V in half precision: eleven bits each.
MIXED = 2e-3  # 8e-4 measured


@pytest.mark.parametrize(
    "name", ["K=1", "K=30", "K=100", "power law", "nearly disjoint", "disjoint", "small shapes"]
)
def test_mixed_precision(cuda32: Any, name: str) -> None:
    mixed = create("cuda", np.dtype(np.float32), precision="mixed")
    case = contract.make_case(name)
    users, items = contract.make_factors(mixed, case)
    counts = mixed.counts(case.csr(mixed.dtype), case.k)
    got = mixed.allocate(counts, users, items)
    for statistic, want in zip(got, contract.expected_statistics(name), strict=True):
        error = np.abs(mixed.asnumpy(statistic) - want)
        assert (error <= MIXED * want.sum(axis=1, keepdims=True)).all()
    exact = mixed.allocate(counts, users, items, exact=True)
    for statistic, want in zip(exact, contract.expected_statistics(name), strict=True):
        contract.assert_close(mixed.asnumpy(statistic), want, contract.TOLERANCE["float32"].allocate)
    wanted = contract.expected_log_normalizer_sum(name)
    scale = abs(wanted) + float(case.y.sum())
    contract.assert_near(mixed.log_normalizer_sum(counts, users, items), wanted, MIXED, scale)


def test_options_reach_the_backend(cuda32: Any) -> None:
    data = random_counts()
    plain = fit(data)
    assert relative_error(fit(data, allocate="cusparse").Theta, plain.Theta) < 1e-5
    mixed = fit(data, precision="mixed", backend="auto")
    assert mixed.backend_ == "cuda"
    assert 1e-6 < relative_error(mixed.Theta, plain.Theta) < 1e-2


# -- data that lies on the device ----------------------------------------------------------------


def assert_same_fit(got: HPF, want: HPF) -> None:
    for name in MATRICES:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    for row in (0, 7):
        user = want.user_mapping_[row] if want.user_mapping_ is not None else row
        np.testing.assert_array_equal(got.topN(user, 5), want.topN(user, 5))
    assert got.train_llk == want.train_llk


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_device_matrix(cuda32: Any, form: str, dtype: type) -> None:
    """A CuPy sparse matrix is fitted as the same SciPy matrix is, and left as it was."""
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = random_counts().astype(dtype)
    given = getattr(cupy_sparse, f"{form}_matrix")(sparse.csr_matrix(matrix))
    before = given.get().toarray()
    assert_same_fit(fit(given), fit(matrix))
    np.testing.assert_array_equal(given.get().toarray(), before)


def test_device_matrix_with_duplicates_and_zeros(cuda32: Any) -> None:
    import cupy as cp

    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    rng = np.random.default_rng(3)
    rows, columns = rng.integers(0, 40, 900), rng.integers(0, 30, 900)
    values = rng.integers(0, 4, 900).astype(np.float32)
    arrays = (cp.asarray(values), (cp.asarray(rows), cp.asarray(columns)))
    given = cupy_sparse.coo_matrix(arrays, shape=(40, 30))
    host = sparse.coo_array((values, (rows, columns)), shape=(40, 30))
    with pytest.warns(UserWarning, match="counts of zero were dropped") as warned:
        got = fit(given)
    assert [warning.filename for warning in warned] == [__file__]
    with pytest.warns(UserWarning, match="counts of zero were dropped"):
        want = fit(host)
    assert_same_fit(got, want)


@pytest.mark.parametrize("reindex", [True, False])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_device_array(cuda32: Any, reindex: bool, dtype: type) -> None:
    """An array (n, 3) on the device: ids in order of first appearance, or row numbers."""
    import cupy as cp

    rng = np.random.default_rng(4)
    offset = 100 if reindex else 0
    columns = (rng.integers(0, 40, 900) * 2 + offset, rng.integers(0, 30, 900), rng.integers(1, 5, 900))
    table = np.stack(columns, axis=1).astype(dtype)
    got, want = fit(cp.asarray(table), reindex=reindex), fit(table, reindex=reindex)
    assert_same_fit(got, want)
    if reindex:
        np.testing.assert_array_equal(got.user_mapping_, want.user_mapping_)
        np.testing.assert_array_equal(got.item_mapping_, want.item_mapping_)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_narrow_device_ids_do_not_wrap(cuda32: Any, dtype: type) -> None:
    import cupy as cp

    rng, most = np.random.default_rng(6), int(np.iinfo(dtype).max)
    ids = rng.integers(-most, most, (2, 3000))
    table = np.stack([*ids, rng.integers(1, 5, 3000)], axis=1).astype(dtype)
    got, want = fit(cp.asarray(table)), fit(table)
    assert_same_fit(got, want)


class OnlyDLPack:
    """An array of another library."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_array_of_another_library(cuda32: Any) -> None:
    import cupy as cp

    rng = np.random.default_rng(5)
    table = np.stack([rng.integers(0, 20, 200), rng.integers(0, 9, 200), rng.integers(1, 5, 200)], axis=1)
    assert_same_fit(fit(OnlyDLPack(cp.asarray(table))), fit(table))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 1, np.nan], "count nan at position 3 cannot be used"),
        ([1, 1, -2], r"count -2\.0 at position 3 cannot be used"),
        ([1.5, 1, 2], r"user id 1\.5 is not one"),
        ([1, np.inf, 2], "item id inf is not one"),
        ([1, 1, 1e30], "add up to 1e"),
        ([1e15, 1, 2], "too far apart"),
    ],
)
def test_bad_device_arrays(cuda32: Any, row: list[float], message: str) -> None:
    import cupy as cp

    table = np.array([[0, 0, 1], [2, 1, 3], [1, 2, 1], row], np.float64)
    with pytest.raises(ValueError, match=message):
        fit(cp.asarray(table))


@pytest.mark.parametrize("number", [-1.0, 2.0**31, 1e15])
def test_device_ids_that_are_no_row_numbers(cuda32: Any, number: float) -> None:
    import cupy as cp

    with pytest.raises(ValueError, match=f"user id {number:.0f} is not a row number"):
        fit(cp.asarray([[0, 0, 1], [number, 1, 3]]), reindex=False)


def test_bad_device_matrices(cuda32: Any) -> None:
    import cupy as cp

    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    given = cupy_sparse.csr_matrix(sparse.csr_matrix(random_counts()))
    given.data[11] = cp.nan
    with pytest.raises(ValueError, match="count nan at position 11"):
        fit(given)
    given.data[11] = 1
    given.indices[11] = 45
    with pytest.raises(ValueError, match="column outside its shape"):
        fit(given)
    with pytest.raises(ValueError, match=r"must be \(n, 3\)"):
        fit(cp.ones((5, 4)))


@pytest.mark.parametrize("backend", ["numpy", "openmp"])
def test_device_data_comes_to_other_backends(cuda32: Any, backend: str) -> None:
    import cupy as cp

    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = random_counts()
    given = cupy_sparse.csr_matrix(sparse.csr_matrix(matrix))
    assert_same_fit(fit(given, backend=backend), fit(matrix, backend=backend))
    table = np.array([[0, 0, 1], [2, 1, 3], [1, 2, 1]] * 4, np.float64)
    got, want = fit(cp.asarray(table), backend=backend), fit(table, backend=backend)
    np.testing.assert_array_equal(got.Theta, want.Theta)


@pytest.mark.parametrize("wrap", [lambda array: array, OnlyDLPack])
def test_held_out_data_on_the_device(cuda32: Any, wrap: Any) -> None:
    import cupy as cp

    table = np.array([[0, 0, 1], [2, 1, 3], [1, 2, 1], [2, 2, 2]], np.float64)
    model, given = fit(table), wrap(cp.asarray(table))
    assert model.eval_llk(given) == model.eval_llk(table)
    np.testing.assert_array_equal(model.transform(given), model.transform(table))
    assert fit(table, stop_crit="val-llk", val_set=given).niter == 4


def test_a_matrix_on_the_device_has_no_user_ids(cuda32: Any) -> None:
    cupy_sparse = pytest.importorskip("cupyx.scipy.sparse")
    matrix = sparse.csr_matrix(random_counts())
    with pytest.raises(TypeError, match="users are added by their ids"):
        fit(matrix).add_users(cupy_sparse.csr_matrix(matrix))


# -- away from the GPU -------------------------------------------------------------------------


def test_a_fitted_model_needs_no_gpu(cuda32: Any, tmp_path: Any) -> None:
    """Pickled here, it predicts in a process that cannot import CuPy."""
    users = [f"user {row}" for row in range(60)]
    coo = random_counts().tocoo()
    frame = pd.DataFrame({"UserId": [users[row] for row in coo.row], "ItemId": coo.col, "Count": coo.data})
    model = fit(frame)
    wanted = (model.predict("user 3", 4), model.topN("user 3", 5).tolist())
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    script = f"""
import pickle, sys
sys.modules["cupy"] = None
model = pickle.load(open({str(tmp_path / "model.pickle")!r}, "rb"))
print(repr((float(model.predict("user 3", 4)), model.topN("user 3", 5).tolist())))
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    predicted, best = eval(ran.stdout)
    assert predicted == pytest.approx(wanted[0], rel=1e-6)
    assert best == wanted[1]
