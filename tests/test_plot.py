"""The panels of the overview show what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpf_gpu import plot
from hpf_gpu.metrics import RankingQuality

#: Four users and five items in three factors; the last factor is the largest, then the first.
THETA = np.array([[1.0, 0.5, 1.0], [2.0, 0.5, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 4.0]])
BETA = np.array([[1.0, 2.0, 0.5], [3.0, 0.0, 0.5], [0.0, 0.5, 2.0], [3.0, 0.0, 1.0], [0.5, 0.5, 2.0]])
NAMES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def ax() -> Any:
    from matplotlib.figure import Figure

    return Figure().subplots()


def history(llk: list[float], elbo: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"iteration": np.arange(1, len(llk) + 1) * 5, "llk": llk, "elbo": elbo})


def labels(ticks: Any) -> list[str]:
    return [tick.get_text() for tick in ticks]


def test_the_largest_factors_have_most_of_the_counts() -> None:
    leading = plot.leading_items(THETA, BETA, n_factors=2, n_items=3)
    size = THETA.sum(axis=0) * BETA.sum(axis=0)
    assert size.argsort()[::-1].tolist() == [2, 0, 1]
    assert {factor: items.tolist() for factor, items in leading.items()} == {2: [2, 4, 3], 0: [1, 3, 0]}
    assert list(leading) == [2, 0]
    few = plot.leading_items(THETA, BETA, n_factors=9, n_items=9)
    assert list(few) == [2, 0, 1]
    assert few[1].tolist() == [0, 2, 4, 1, 3]  # of equal ones the first comes first
    by_size_of_users_alone = plot.leading_items(np.array([[3.0, 2.0]]), np.array([[1.0, 5.0]]), 1, 1)
    assert list(by_size_of_users_alone) == [1]


@pytest.mark.parametrize(
    ("largest", "unit", "scale"),
    [
        (2.5e9, "billion nats", 1e9), (1e9, "billion nats", 1e9), (9e8, "million nats", 1e6),
        (1e6, "million nats", 1e6), (5e3, "thousand nats", 1e3), (1e3, "thousand nats", 1e3),
        (999.0, "nats", 1.0), (0.5, "nats", 1.0), (0.0, "nats", 1.0),
    ],
)  # fmt: skip
def test_convergence_is_in_the_unit_of_its_axis(largest: float, unit: str, scale: float, ax: Any) -> None:
    llk, elbo = [-largest, -largest / 2], [-largest / 4, largest / 8]
    plot.convergence(history(llk, elbo), ax)
    assert ax.get_ylabel() == unit
    assert ax.get_xlabel() == "iteration"
    assert ax.get_title(loc="left") == "Convergence of the fit"
    first, second = ax.lines
    for line, values in ((first, llk), (second, elbo)):
        np.testing.assert_array_equal(line.get_xdata(), [5, 10])
        np.testing.assert_allclose(line.get_ydata(), np.array(values) / scale, rtol=1e-15)
    assert [text.get_text() for text in ax.texts] == ["log-likelihood", "ELBO"]
    for text, line in zip(ax.texts, ax.lines, strict=True):
        assert text.xy == (line.get_xdata()[-1], line.get_ydata()[-1])
        assert text.get_color() == line.get_color()
    assert first.get_color() != second.get_color()
    assert ax.get_xlim()[0] == 0


def test_missing_values_are_left_out(ax: Any) -> None:
    nan = float("nan")
    plot.convergence(history([-3.0, nan, -1.0], [nan] * 3), ax)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [5, 15])
    np.testing.assert_array_equal(line.get_ydata(), [-3, -1])
    with pytest.raises(ValueError, match="a history of 2 checks holds no finite log-likelihood or ELBO"):
        plot.convergence(history([nan, nan], [nan, nan]), ax)
    with pytest.raises(ValueError, match="a history of 0 checks holds no finite"):
        plot.convergence(history([], []), ax)


def test_quality_has_a_bar_for_every_number(ax: Any) -> None:
    methods = {
        "HPF": RankingQuality(20, 5, precision=0.3, recall=0.2, ndcg=0.25),
        "most popular": RankingQuality(20, 5, precision=0.1, recall=0.05, ndcg=0.15),
    }
    plot.quality(methods, ax)
    assert labels(ax.get_xticklabels()) == ["precision@20", "recall@20", "NDCG@20"]
    assert [[bar.get_height() for bar in bars] for bars in ax.containers] == [
        [0.3, 0.2, 0.25],
        [0.1, 0.05, 0.15],
    ]
    assert labels(ax.get_legend().get_texts()) == list(methods)
    for place in range(3):  # side by side around the tick, none over another
        left, right = (bars[place] for bars in ax.containers)
        assert left.get_x() + left.get_width() < right.get_x()
        middle = (left.get_x() + right.get_x() + right.get_width()) / 2
        assert middle == pytest.approx(place, abs=1e-12)
    colours = [bars[0].get_facecolor() for bars in ax.containers]
    assert colours[0] != colours[1]
    assert [text.get_text() for text in ax.texts][:3] == ["0.300", "0.200", "0.250"]
    with pytest.raises(ValueError, match="qualities is empty"):
        plot.quality({}, ax)


def test_cells_are_shares_of_the_items_expected_counts(ax: Any) -> None:
    plot.factors(THETA, BETA, NAMES, ax, n_factors=2, n_items=3)
    assert labels(ax.get_xticklabels()) == ["2", "0"]
    assert labels(ax.get_yticklabels()) == ["cat", "eel", "dog", "bee", "dog", "ant"]
    (image,) = ax.images
    expected = np.stack([np.outer(THETA[:, k], BETA[:, k]).sum(axis=0) for k in range(3)], axis=1)
    share = 100 * expected / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(image.get_array(), share[[2, 4, 3, 1, 3, 0]][:, [2, 0]], rtol=1e-12)
    assert image.get_clim() == (0, 100)
    lines = [(set(line.get_xdata()), set(line.get_ydata())) for line in ax.lines]
    assert lines == [({0, 1}, {2.5}), ({0.5}, {0, 1})]  # between the two factors, down and across
    with pytest.raises(ValueError, match="4 item_names for 5 items"):
        plot.factors(THETA, BETA, NAMES[:-1], ax)


def test_the_overview_has_all_panels(tmp_path: Any) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    methods = {"HPF": RankingQuality(20, 5, 0.3, 0.2, 0.25)}
    output = tmp_path / "overview.of.all"
    plot.save_overview(output, "Title", history([-3.0], [-4.0]), methods, THETA, BETA, NAMES)
    assert output.read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["overview.of.all"]
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(FileNotFoundError):
        plot.save_overview(
            tmp_path / "no" / "png", "Title", history([-3.0], [-4.0]), methods, THETA, BETA, NAMES
        )
