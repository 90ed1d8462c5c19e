"""report: what is on the page, from its data; test_report_page.py looks at the page in a browser."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
from small_data import COUNTS, quick

import hpf_gpu
from hpf_gpu import HPFEnsemble, checks, html_report, plot, report

#: What names may be, by anyone who can name an item.
NASTY = {
    500: "</script><script>window.hacked = 1</script>",
    501: "<img src=x onerror='window.hacked = 2'>",
    502: "line\u2028separator \u2029 & \"quotes\" 'too'",
    503: "lone surrogate \ud800",
    504: "long " * 400,
    505: "<!--",
    506: "$& $' /*STYLE*/ <!--TITLE--> <!--DATA-->",
    507: "Crème brûlée",
}


@pytest.fixture(scope="module")
def model():
    return quick(check_every=5, stop_thr=1e-12).fit(COUNTS)


def content(page):
    """The data of the page, read as a browser does: up to the first end of a script element."""
    text = page.read_text(encoding="utf-8")
    (start,) = (found.end() for found in re.finditer(r'<script id="data" type="application/json">', text))
    return json.loads(text[start : text.index("</script", start)])


def names_of(found, numbers):
    return [found["items"]["name"][number] for number in numbers]


def test_factors_are_those_of_the_model(model, tmp_path):
    found = content(report(model, tmp_path / "report.html"))
    size = model.Theta.sum(axis=0, dtype=float) * model.Beta.sum(axis=0, dtype=float)
    leading = plot.leading_items(model.Theta, model.Beta, 3, 8)
    assert [factor["k"] for factor in found["factors"]] == list(leading)
    for factor, (k, rows) in zip(found["factors"], leading.items(), strict=True):
        assert factor["share"] == pytest.approx(size[k] / size.sum(), abs=1e-4)
        assert names_of(found, factor["items"]) == [str(item) for item in model.item_mapping_[rows]]
        assert factor["parts"] == pytest.approx(model.Beta[rows, k] / model.Beta[:, k].sum(), abs=1e-4)


def test_items_are_those_with_most_users(model, tmp_path):
    found = content(report(model, tmp_path / "report.html", n_items=5))
    explored = found["explored_items"]
    users = COUNTS.groupby("ItemId").UserId.nunique()
    assert explored["size"] == sorted(users, reverse=True)[:5]
    assert [users[int(item)] for item in found["items"]["id"][:5]] == explored["size"]
    assert (explored["count"], explored["total"]) == (5, model.nitems)
    for number in range(5):
        beta = model.Beta[model.item_dict_[int(found["items"]["id"][number])]]
        shares = beta * model.Theta.sum(axis=0)
        profile = dict(explored["profile"][number])
        assert profile == pytest.approx(
            {k: share for k, share in enumerate(shares / shares.sum()) if share >= 0.01}, abs=1e-3
        )
        like = [int(found["items"]["id"][other]) for other in explored["like"][number]]
        assert like == model.similar_items(int(found["items"]["id"][number]), 10).SimilarId.tolist()


def test_similar_items_are_of_the_same_group(model, tmp_path):
    """The counts have three groups of items by the rest of the id."""
    found = content(report(model, tmp_path / "report.html"))
    group = [(int(item) - 500) % 3 for item in found["items"]["id"]]
    alike = [
        group[other] == group[number]
        for number, like in enumerate(found["explored_items"]["like"])
        for other in like
    ]
    assert np.mean(alike) > 0.95


def test_recommendations_are_those_of_the_model(model, tmp_path):
    explored = content(page := report(model, tmp_path / "report.html", n_users=4))["explored_users"]
    items = content(page)["items"]["id"]
    assert len(explored["id"]) == explored["count"] == 4
    n_items = COUNTS.groupby("UserId").size()
    assert explored["size"] == sorted(n_items, reverse=True)[:4]
    for number, user in enumerate(map(int, explored["id"])):
        wanted = model.recommend(user, n=10)
        assert [int(items[item]) for item in explored["recommended"][number]] == wanted.ItemId.tolist()
        assert explored["scores"][number] == pytest.approx(wanted.Score, rel=1e-5)
        had = {int(items[item]) for item in explored["had"][number]}
        assert had <= set(COUNTS.ItemId[COUNTS.UserId == user])
        assert len(had) == 10
        shares = model.Theta[model.user_dict_[user]] * model.Beta.sum(axis=0)
        assert explored["profile"][number][0][0] == shares.argmax()


def test_checks_are_of_the_counts_that_are_passed(model, tmp_path):
    kept, passed = (content(report(model, tmp_path / "report.html", data=data)) for data in (None, COUNTS))
    for found, data in ((kept, None), (passed, COUNTS)):
        assert found["presence"] == (data is None)
        table = checks.calibration(model, data)
        assert found["calibration"]["observed"] == pytest.approx(table.observed, rel=1e-5)
        table = checks.posterior_predictive(model, data)
        assert found["predictive"]["observed"] == table.observed.tolist()
        assert found["activity"]["items"]["edges"][0] == 1
        assert sum(found["activity"]["items"]["numbers"]) == model.nitems
        assert sum(found["activity"]["users"]["numbers"]) == model.nusers
    first = COUNTS[COUNTS.UserId == int(passed["explored_users"]["id"][0])].sort_values("Count")
    most = [int(passed["items"]["id"][item]) for item in passed["explored_users"]["had"][0]]
    assert first.set_index("ItemId").Count[most].tolist() == sorted(first.Count, reverse=True)[:10]


def test_the_fit(model, tmp_path):
    found = content(report(model, tmp_path / "report.html"))
    facts = dict(found["facts"])
    assert facts["users"] == str(model.nusers)
    assert facts["log-likelihood"] == f"{model.train_llk:,.0f}"
    assert found["history"]["iteration"] == model.history_.iteration.tolist()
    assert found["history"]["elbo"][0] is None
    assert ["k", "3"] in found["parameters"]
    assert found["version"] == hpf_gpu.__version__


def test_names_cannot_break_out(model, tmp_path):
    title = "<b>Report</b> & more <!--DATA-->"
    page = report(model, tmp_path / "report.html", names=NASTY, title=title)
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text
    assert "<title>&lt;b&gt;Report&lt;/b&gt; &amp; more &lt;!--DATA--&gt;</title>" in text
    assert "\u2028" not in text
    shown = dict(zip(content(page)["items"]["id"], content(page)["items"]["name"], strict=True))
    for item, name in NASTY.items():
        wanted = " ".join(name.split())
        assert shown[str(item)] == (wanted if len(wanted) <= 100 else f"{wanted[:99]}…")
    assert shown["508"] == "508"


def test_the_page_is_small_however_large_the_model(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, (200, 2000), (5000, 2))
    model = quick(k=120, maxiter=1).fit(np.column_stack([pairs, np.ones(len(pairs), int)]))
    monkeypatch.setattr(checks, "_COMPARED", 1 << 16)
    monkeypatch.setattr(checks, "_DRAWN", 1 << 16)
    monkeypatch.setattr(checks, "_FEWEST_USERS", 20)
    names = dict.fromkeys(range(2000), "x" * 500)
    page = report(model, tmp_path / "report.html", names=names, n_items=500, n_users=50)
    found = content(page)
    assert len(found["factors"]) == 100
    assert {len(name) for name in found["items"]["name"]} == {100}
    # An item has its name, its id, six factors and ten similar items: at most 250 bytes.
    assert page.stat().st_size < 100_000 + 250 * len(found["items"]["name"])


@pytest.mark.parametrize(
    "parameters",
    [{"bias": True}, {"neighbours": 5}, {"k": 0, "neighbours": 5}, {"k": 1}, {"keep_data": False}],
)
def test_every_kind_of_model(parameters, tmp_path):
    model = quick(**{"maxiter": 3, **parameters}).fit(COUNTS)
    found = content(report(model, tmp_path / "report.html", n_items=4, n_users=2))
    assert [factor["k"] for factor in found["factors"]] == (
        list(plot.leading_items(model.Theta[:, : model.k], model.Beta[:, : model.k], 9, 1)) if model.k else []
    )
    assert (found["explored_items"]["profile"] is None) == (model.k == 0)
    assert (found["explored_items"]["goes_with"] is None) == (model.neighbours == 0)
    assert (found["calibration"] is None) == (found["explored_users"]["had"] is None) == (not model.keep_data)
    if model.neighbours:
        first = int(found["items"]["id"][0])
        related = model.related_items(first).RelatedId.tolist()
        assert [int(item) for item in names_of(found, found["explored_items"]["goes_with"][0])] == related


@pytest.mark.parametrize("keep_data", [True, False])
def test_ensembles(tmp_path, keep_data):
    members = [{"k": 3}, {"k": 2, "transposed": True}]
    ensemble = HPFEnsemble(members, maxiter=5, verbose=False, keep_data=keep_data, random_seed=1).fit(COUNTS)
    found = content(report(ensemble, tmp_path / "report.html", n_users=2))
    assert dict(found["facts"])["members"] == "2"
    assert found["factors"] == []
    like = [int(found["items"]["id"][other]) for other in found["explored_items"]["like"][0]]
    assert like == ensemble.similar_items(int(found["items"]["id"][0]), 10).SimilarId.tolist()
    user = int(found["explored_users"]["id"][0])
    wanted = ensemble.recommend(user, n=10, exclude_seen=keep_data).ItemId.tolist()
    assert [int(item) for item in names_of(found, found["explored_users"]["recommended"][0])] == wanted


def test_the_members_of_an_ensemble(tmp_path):
    """What a member differs by, and how its fit ended; nothing is told twice."""
    members = [{"k": 3}, {"k": 0, "neighbours": 4, "transposed": True}, {}]
    ensemble = HPFEnsemble(members, weights=[1, 2, 1], k=2, maxiter=5, verbose=False, random_seed=1).fit(
        COUNTS
    )
    found = content(report(ensemble, tmp_path / "report.html"))
    want = [
        ("25 %", "k=3"),
        ("50 %", "transposed, k=0, random_seed=2, neighbours=4"),
        ("25 %", "random_seed=3"),
    ]
    assert [(one["weight"], one["parameters"]) for one in found["members"]] == want
    assert [one["iterations"] for one in found["members"]] == [5, 5, 5]
    likelihoods = [one["llk"] for one in found["members"]]
    assert likelihoods == pytest.approx([model.train_llk for model in ensemble.members_], rel=1e-5)
    assert [name for name, _ in found["parameters"]] == ["combine", "k", "maxiter", "verbose", "random_seed"]
    loaded = HPFEnsemble.load(saved(ensemble, tmp_path / "ensemble"))
    again = content(report(loaded, tmp_path / "report.html"))
    assert [name for name, _ in again["parameters"]] == ["combine"]
    assert again["members"][1]["parameters"].startswith("transposed, k=0, ")


def saved(ensemble, path):
    ensemble.save(path)
    return path


def test_a_model_alone_has_no_members(model, tmp_path):
    assert content(report(model, tmp_path / "report.html"))["members"] is None


def test_nothing_is_explored_where_it_is_not_wanted(model, tmp_path):
    found = content(report(model, tmp_path / "report.html", n_items=0, n_users=0))
    assert found["explored_users"]["id"] == found["explored_users"]["recommended"] == []
    assert found["explored_items"]["count"] == 0


def test_data_are_read_once(model, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report(model, tmp_path / "report.html", data=COUNTS.assign(ItemId=COUNTS.ItemId + 1))
    assert len([one for one in caught if "was not in the training data" in str(one.message)]) == 1


def test_errors(model, tmp_path):
    with pytest.raises(ValueError, match="has not been fitted yet"):
        report(quick(), tmp_path / "report.html")
    with pytest.raises(TypeError, match="names is a list"):
        report(model, tmp_path / "report.html", names=["a"])
    with pytest.raises(TypeError, match="title is 3: pass a string"):
        report(model, tmp_path / "report.html", title=3)
    with pytest.raises(ValueError, match="n_users=-1 must be at least 0"):
        report(model, tmp_path / "report.html", n_users=-1)
    with pytest.raises(FileNotFoundError):
        report(model, tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_function_stays_a_function():
    """No module of this name takes its place once it was imported."""
    assert hpf_gpu.report is html_report.report
    assert callable(hpf_gpu.report)


# -- in notebooks ----------------------------------------------------------------------------------


def test_a_model_in_a_notebook(model):
    shown = model._repr_html_()
    for value in ("k", 3, "iterations", model.niter, "backend", model.backend_, f"{model.train_llk:,.0f}"):
        assert f">{value}<" in shown
    assert ">maxiter<" in shown
    assert ">schedule<" not in shown  # has its default
    points = re.search(r'points="([^"]+)"', shown).group(1).split()
    assert len(points) == len(model.history_)
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[0] > heights[-1]  # a larger log-likelihood is further up
    assert all(0 <= height <= 48 for height in heights)


def test_before_a_fit_and_with_one_check():
    assert "not fitted" in quick()._repr_html_()
    assert "<svg" not in quick()._repr_html_()
    assert "<svg" not in quick(maxiter=2).fit(COUNTS)._repr_html_()
    assert "parameters" not in hpf_gpu.HPF()._repr_html_()


def test_values_are_escaped(tmp_path):
    folder = tmp_path / "<b>&"
    folder.mkdir()
    shown = quick(save_folder=str(folder))._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;&amp;" in shown


def test_an_ensemble_in_a_notebook():
    ensemble = HPFEnsemble(2, k=2, maxiter=3, verbose=False)
    assert "not fitted" in ensemble._repr_html_()
    shown = ensemble.fit(COUNTS)._repr_html_()
    assert ">members<" in shown
    assert ">iterations</th>" in shown
    assert ">6<" in shown
