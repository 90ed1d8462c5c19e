"""The panels of the overview show what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_data import COUNTS, quick

from hpf_gpu import HPF, checks, plot
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


# -- of a model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> HPF:
    return quick().fit(COUNTS)


@pytest.fixture(autouse=True)
def closed() -> Any:
    """No figure of pyplot is shown, and none is left."""
    import matplotlib

    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_without_axes_there_is_a_figure_of_pyplot(model: HPF) -> None:
    from matplotlib import pyplot

    table = pd.DataFrame({"candidate": [0], "iterations": [5], "score": [0.1], "chosen": [True]})
    drawn = [
        plot.convergence(model.history_),
        plot.quality({"HPF": RankingQuality(20, 5, 0.3, 0.2, 0.25)}),
        plot.selection(table),
        plot.factors(THETA, BETA, NAMES),
        plot.calibration(model),
    ]
    assert [ax.figure.number for ax in drawn] == pyplot.get_fignums() == [1, 2, 3, 4, 5]


def test_axes_that_are_passed_are_drawn_on(model: HPF, ax: Any) -> None:
    assert plot.calibration(model, ax=ax) is ax


def test_names_of_items() -> None:
    names = {1: "ant  hill\n", 2: None, 4: float("nan")}
    assert plot.item_labels([1, 2, 3, 4, ("a", 5)], names) == ["ant hill", "2", "3", "4", "('a', 5)"]
    assert plot.item_labels(["x"], pd.Series({"x": "ex"})) == ["ex"]
    assert plot.item_labels(["x"]) == ["x"]
    assert plot.item_labels([1, 2], {1: ("a", 1), 2: ("b", 2)}) == ["('a', 1)", "('b', 2)"]
    assert plot.item_labels([], {1: "one"}) == []
    assert plot.item_labels([1, 2], {1: pd.NA, 2: "two"}) == ["1", "two"]
    with pytest.warns(
        UserWarning, match="no item has a name: the first id is 1, and the first key of names '1'"
    ):
        assert plot.item_labels([1], {"1": "one"}) == ["1"]
    with pytest.raises(TypeError, match="names is a list: pass a dict or Series"):
        plot.item_labels(["x"], ["ex"])


def test_top_items_are_shares_of_the_factors(model: HPF) -> None:
    names = {item: f"item {item}" for item in model.item_mapping_}
    figure = plot.top_items(model, names, n_factors=2, n_items=3)
    leading = plot.leading_items(model.Theta, model.Beta, 2, 3)
    size = (model.Theta.sum(axis=0) * model.Beta.sum(axis=0)).astype(float)
    for panel, (factor, items) in zip(figure.axes, leading.items(), strict=True):
        title = f"Factor {factor}: {100 * size[factor] / size.sum():.1f} %"
        assert panel.get_title(loc="left") == title
        assert labels(panel.get_yticklabels()) == [f"item {item}" for item in model.item_mapping_[items]]
        share = 100 * model.Beta[items, factor] / model.Beta[:, factor].sum()
        np.testing.assert_allclose([bar.get_width() for bar in panel.patches], share, rtol=1e-5)
    odd = plot.top_items(model, n_factors=9, columns=2)
    assert [panel.get_visible() for panel in odd.axes] == [True, True, True, False]
    with pytest.raises(ValueError, match="a model with k=0 has no factors"):
        plot.top_items(quick(k=0, neighbours=3, maxiter=2).fit(COUNTS))


def test_biases_are_no_factors() -> None:
    model = quick(bias=True, maxiter=5).fit(COUNTS)
    figure = plot.top_items(model, n_factors=9)
    assert sum(panel.get_visible() for panel in figure.axes) == 3


def test_activity_has_all_users_and_items(model: HPF) -> None:
    users, items = plot.activity(model).axes
    assert sum(bar.get_height() for bar in users.patches) == model.nusers
    assert sum(bar.get_height() for bar in items.patches) == model.nitems
    assert users.get_xlabel() == "items of a user"
    assert items.get_xlabel() == "users of an item"


@pytest.mark.parametrize(
    ("data", "label"), [(None, "observed share of pairs with a count"), (COUNTS, "observed count")]
)
def test_calibration_has_a_point_for_each_group(model: HPF, data: Any, label: str, ax: Any) -> None:
    plot.calibration(model, data, ax)
    table = checks.calibration(model, data)
    table = table[table.observed > 0]
    diagonal = ax.lines[0]
    points, _, _ = ax.containers[0].lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_allclose(points.get_xdata().astype(float), table.predicted)
    np.testing.assert_allclose(points.get_ydata().astype(float), table.observed)
    assert ax.get_ylabel() == label


def test_the_predictive_check_has_observed_and_drawn_numbers(model: HPF) -> None:
    figure = plot.predictive_check(model, COUNTS, draws=5, random_seed=2)
    table = checks.posterior_predictive(model, COUNTS, draws=5, random_seed=2)
    for panel, of in zip(figure.axes, ("pair", "user", "item"), strict=True):
        rows = table[table["of"] == of]
        assert [bar.get_height() for bar in panel.patches] == rows.observed.tolist()
        points, _, _ = panel.containers[1].lines
        np.testing.assert_allclose(points.get_ydata().astype(float), rows.drawn)
        assert labels(panel.get_xticklabels())[:3] == ["0", "1", "2–3"]
    share = 100 * (1 - table.observed[0] / (60 * 40))
    assert figure.axes[0].get_title(loc="right").startswith(f"{share:.2f} % observed")


def test_what_to_install_without_matplotlib(model: HPF, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"figures need matplotlib: pip install 'hpf_gpu\[plot\]'"):
        plot.calibration(model)
