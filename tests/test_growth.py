"""Arrays that grow at their end, and ids that do."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpf_gpu.data.growth import appended
from hpf_gpu.data.ids import Ids


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=25), st.sampled_from([(), (2,)]))
def test_every_array_keeps_its_rows(steps: list[tuple[int, int]], shape: tuple[int, ...]) -> None:
    """Whichever of the arrays so far is continued, all others are as they were."""
    arrays = [np.arange(2 * max(1, int(np.prod(shape))), dtype=np.float32).reshape(2, *shape)]
    wanted = [arrays[0].copy()]
    for number, (which, size) in enumerate(steps):
        which %= len(arrays)
        new = np.full((size, *shape), number + 10.0)
        arrays.append(appended(arrays[which], new))
        wanted.append(np.concatenate([wanted[which], new]).astype(np.float32))
        assert arrays[-1].dtype == np.float32
        assert type(arrays[-1]) is np.ndarray
    for got, want in zip(arrays, wanted, strict=True):
        assert np.array_equal(got, want)


def test_one_row_is_not_a_copy_of_all() -> None:
    first = appended(np.zeros((10_000, 3)), np.ones((1, 3)))
    second = appended(first, np.ones((1, 3)))
    assert np.shares_memory(first, second)
    assert not np.shares_memory(first, appended(first, np.ones((1, 3))))  # the room behind it is taken
    backwards = second[::-1]
    assert not np.shares_memory(backwards, appended(backwards, np.ones((1, 3))))
    for one in (copy.deepcopy(second), pickle.loads(pickle.dumps(second))):
        assert np.array_equal(one, second)
        assert not np.shares_memory(one, second)
    words = appended(
        appended(np.array(["a", (1, 2)], object), np.array(["b"], object)), np.array([3], object)
    )
    assert words.tolist() == ["a", (1, 2), "b", 3]


@pytest.mark.parametrize("names", [["a", "b", (1, 2)], [5, 3, 8], [1.5, 2.0, -1.0]])
def test_ids_that_grow(names: list[object]) -> None:
    """Each has its own ids, whichever of those so far is continued, and finds them as a dict does."""
    values = pd.Index(names, tupleize_cols=False).to_numpy()
    family = [Ids(values, len(values), "user")]
    wanted = [list(names)]
    for number in range(40):
        which = (number * 7) % len(family) if number % 3 == 0 else -1
        new = [10.0 + number if isinstance(names[0], float) else 10 + number]
        rows, longer = family[which].with_new(pd.Index(new))
        assert rows.tolist() == [len(wanted[which])]
        family.append(longer)
        wanted.append(wanted[which] + new)
    everything = [*names, *(10 + number for number in range(40)), "nobody"]
    for ids, want in zip(family, wanted, strict=True):
        assert list(ids.values) == want
        rows = {one: row for row, one in enumerate(want)}
        assert ids.codes(everything).tolist() == [rows.get(one, -1) for one in everything]
        assert ids.rows == rows
    with pytest.raises(ValueError, match="in the model already"):
        family[-1].with_new(pd.Index([wanted[-1][-1]]))
    # So many that an index of their own is better.
    rows, many = family[-1].with_new(pd.Index(np.arange(1000, 5000)))
    assert many.codes([1000, 4999, wanted[-1][-1]]).tolist() == [rows[0], rows[-1], len(wanted[-1]) - 1]
