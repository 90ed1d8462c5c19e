"""The demo and its command: the real thing, once with the defaults and once in small."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import gammaln

from hpf_gpu import __version__, plot
from hpf_gpu.app import demo
from hpf_gpu.app.cli import main
from hpf_gpu.datasets import OnlineRetail, load_online_retail, split_by_user

# Runs the command and writes to standard error each path that was opened for writing.
AUDITED = """
import os, sys

def note_writes(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith("/dev/"):
            sys.stderr.write(f"WRITES {os.path.abspath(path)}\\n")

import matplotlib.font_manager  # builds its own cache of fonts, once per machine
sys.addaudithook(note_writes)
from hpf_gpu.app.cli import main
sys.exit(main(["demo"]))
"""


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """``hpf-gpu demo`` with nothing else, in an empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    package = str(Path(demo.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", AUDITED]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.fixture(scope="module")
def some_retail():
    """The purchases of every fifth customer."""
    retail = load_online_retail()
    return OnlineRetail(retail.purchases[retail.purchases.UserId % 5 == 0], retail.product_names)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, some_retail):
    """Three factors, an odd number, on the reference backend, which is slow with neighbours."""
    output, text = tmp_path_factory.mktemp("small") / "picture.png", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_ITERATIONS", 2)
        patch.setattr(demo, "_NEIGHBOURS", 20)
        patch.setattr(demo, "load_online_retail", lambda: some_retail)
        result = demo.run(output, backend="numpy", seed=3, k=3, write=text.append)
    return output, "".join(text), result


def assert_is_picture(path):
    from matplotlib.image import imread

    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:24])
    assert 1200 <= width <= 4000
    assert 800 <= height <= 3000
    assert imread(path)[..., :3].std() > 0.05  # not blank


def test_the_default_demo_beats_the_most_popular(default_run):
    _, text, _ = default_run
    rows = {line[:16].strip(): line[16:].split() for line in text.splitlines() if line.startswith("  ")}
    names = ("HPF", "HPF+neighbours", "mixture", "most popular")
    ours, better, best, baseline = (list(map(float, rows[name])) for name in names)
    assert len(ours) == len(better) == len(best) == len(baseline) == 3
    assert all(a > 2 * b > 0 for a, b in zip(ours, baseline, strict=True))
    assert all(a > 1.5 * b for a, b in zip(better, ours, strict=True))  # measured: twice
    assert all(a > 1.01 * b for a, b in zip(best, better, strict=True))  # measured: 1.03 to 1.05


def test_the_default_demo_writes_its_picture_and_nothing_else(default_run):
    folder, _, errors = default_run
    assert [path.name for path in folder.iterdir()] == ["hpf_gpu_demo.png"]
    assert_is_picture(folder / "hpf_gpu_demo.png")
    written = {line.split(" ", 1)[1] for line in errors.splitlines() if line.startswith("WRITES ")}
    assert written == {str(folder / "hpf_gpu_demo.png")}


def test_the_text_names_products(default_run):
    _, text, _ = default_run
    names = {" ".join(name.split()).capitalize() for name in load_online_retail().product_names}
    customer, factors = text.split("\nCustomer ")[1].split("\nThe largest factors")
    customer, reasons = customer.split("\nThe same customer")
    proposed = [(line[4:40].strip(), line[47:].strip()) for line in reasons.splitlines()[3:] if line]
    assert len(proposed) == 10
    assert names.issuperset(name for pair in proposed for name in pair)
    recommended = [line[42:].strip() for line in customer.splitlines()[2:] if line]
    bought = [line[:40].strip() for line in customer.splitlines()[2:] if line]
    assert len(recommended) == len(bought) == 10
    assert names.issuperset(recommended + bought)
    assert not set(recommended) & set(bought)
    assert sum(name in factors for name in names) >= 20
    assert all(len(line) <= 110 for line in text.splitlines())


def test_recommendations_leave_out_what_was_bought(small_run, some_retail):
    _, _, result = small_run
    train, _ = split_by_user(some_retail.purchases, seed=3)
    bought = set(train.loc[train["UserId"] == result.customer, "ItemId"])
    assert len(bought) >= 40
    assert len(set(result.recommended)) == 10
    assert not bought & set(result.recommended)


def test_without_matplotlib_the_demo_writes_a_page(small_run, some_retail, tmp_path, monkeypatch):
    _, _, result = small_run
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text, page = [], tmp_path / "picture.html"
    names = some_retail.product_names
    demo._draw(text.append, tmp_path / "picture.png", result.model, result.qualities, names)
    assert text == [f"Page: {page} (figures need matplotlib: pip install 'hpf_gpu[plot]')\n"]
    assert list(tmp_path.iterdir()) == [page]
    assert names["22423"] in page.read_text(encoding="utf-8")


def test_an_odd_number_of_factors_is_printed_and_drawn(small_run):
    output, text, result = small_run
    assert_is_picture(output)
    assert text.count("\n  factor ") + text.count("   factor ") == 3
    assert result.qualities["HPF"].precision > result.qualities["most popular"].precision
    assert result.qualities["HPF"].n_users == result.qualities["most popular"].n_users


def test_the_text_is_of_this_run(small_run, some_retail):
    """Every figure and every name is that of the model, the seed and the split."""
    output, text, result = small_run
    model = result.model
    assert (model.k, model.random_seed_, model.backend_, model.full_llk) == (3, 3, "numpy", True)
    orders = some_retail.purchases.assign(Count=some_retail.purchases.Orders)
    train, held_out = split_by_user(orders, seed=3)
    name_of = some_retail.product_names.str.split().str.join(" ").str.capitalize()
    last = model.history_.iloc[-1]
    told = (
        f"{orders.UserId.nunique():,} customers, {orders.ItemId.nunique():,} products, {len(orders):,} pairs",
        f"of which {len(held_out):,} are held out",
        "HPF with 3 factors on backend numpy",
        "from up to 20 other products to each",
        f"2 iterations in {result.with_neighbours.history_.seconds.iloc[-1]:.2f} s",
        f"{model.niter} iterations in {last.seconds:.2f} s",
        f"log-likelihood {last.llk:,.0f}, ELBO {last.elbo:,.0f}",
        f"mean of {result.qualities['HPF'].n_users:,} customers",
        f"Customer {result.customer}: ",
        f"Picture: {output}",
    )
    for line in told:
        assert line in text
    counts = sparse.coo_array(
        (train.Count, (pd.factorize(train.UserId)[0], pd.factorize(train.ItemId)[0])), dtype=float
    )
    expected = model.Theta.sum(axis=0, dtype=float) @ model.Beta.sum(axis=0, dtype=float)
    rates = (model.Theta[counts.row].astype(float) * model.Beta[counts.col]).sum(axis=1)
    llk = counts.data @ np.log(rates) - gammaln(counts.data + 1).sum() - expected
    assert last.llk == pytest.approx(llk, rel=1e-5)  # float32: orders, and with the factorials
    for method, quality in result.qualities.items():
        row = next(line for line in text.splitlines() if line.startswith(f"  {method:14}"))
        assert row.split()[-3:] == [f"{x:.3f}" for x in (quality.precision, quality.recall, quality.ndcg)]

    history = train[train.UserId == result.customer]
    assert 40 <= len(history) <= 80
    sizes = train.groupby("UserId").size()
    drawn = np.random.default_rng(3).choice(sizes.index[(sizes >= 40) & (sizes <= 80)])
    assert result.customer == drawn
    assert result.recommended == model.topN(result.customer, n=10).tolist()
    part = text.split(f"Customer {result.customer}")[1].split("\nThe same customer")[0].splitlines()[1:]
    assert part[0].split("  ")[1] == f"{len(history)} products ordered"
    most = history.sort_values("Count", ascending=False, kind="stable").ItemId[:10]
    assert [line[2:40].strip() for line in part[1:] if line] == [name_of[item] for item in most]
    later = set(held_out[held_out.UserId == result.customer].ItemId)
    starred = [("* " if item in later else "  ") + name_of[item] for item in result.recommended]
    assert [line[40:] for line in part[1:] if line] == starred

    factors = text.split("The largest factors by their first products\n")[1].split("Picture")[0]
    for factor, items in plot.leading_items(model.Theta, model.Beta, 6, 5).items():
        assert f"factor {factor}" in factors
        for item in model.item_mapping_[items]:
            assert name_of[item] in factors


def test_reasons_are_the_largest_weights_of_what_the_customer_has(small_run, some_retail):
    _, text, result = small_run
    model, customer = result.with_neighbours, result.customer
    assert (model.k, model.neighbours, model.random_seed_, model.backend_) == (3, 20, 3, "numpy")
    name_of = some_retail.product_names.str.split().str.join(" ").str.capitalize()
    train, held_out = split_by_user(some_retail.purchases, seed=3)
    bought = train.ItemId[train.UserId == customer]
    later = set(held_out.ItemId[held_out.UserId == customer])
    weights = model.related_items(bought, n=model.nitems)
    lines = text.split("\nThe same customer")[1].split("\nThe largest factors")[0].splitlines()[3:]
    recommended = model.topN(customer, n=10)
    assert result.explained.ItemId.tolist() == recommended.tolist()
    found = 0
    for line, item in zip((line for line in lines if line), recommended, strict=True):
        assert line[2:40].rstrip() == f"{'*' if item in later else ' '} {name_of[item]}"
        of_item = weights[weights.RelatedId == item]
        if of_item.empty:
            assert line[40:] == ""
            continue
        found += 1
        best = of_item.loc[of_item.Weight.idxmax()]
        share = best.Weight / model.predict(customer, item)
        assert line[40:] == f"{100 * share:3.0f} %  {name_of[best.ItemId]}"
    assert found >= 5


def test_the_command_hands_its_options_on(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(demo, "run", lambda *arguments: asked.append(arguments[:4]))
    assert main(["demo"]) == 0
    assert main(["demo", "--output", "o.png", "--backend", "numpy", "--seed", "7", "--k", "5"]) == 0
    assert asked == [(Path("hpf_gpu_demo.png"), "auto", 1, 30), (Path("o.png"), "numpy", 7, 5)]
    assert main([]) == 2


def test_the_reader_of_the_output_has_gone(monkeypatch, capsys):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(demo, "run", closed)
    assert main(["demo"]) == 141
    assert capsys.readouterr() == ("", "")


def test_importing_does_not_load_matplotlib():
    code = "import sys, hpf_gpu, hpf_gpu.plot, hpf_gpu.app.demo; sys.exit('matplotlib' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(demo.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "missing/picture.png"], "'missing' does not exist"),
        (["--output", "."], "'.' is a folder"),
        (["--output", "picture.png", "--backend", "abacus"], "'abacus'"),
        (["--output", "picture.png", "--k", "0"], "k=0"),
        (["--output", "picture.png", "--seed", "-1"], "random_seed=-1"),
    ],
)
def test_errors_are_one_line_and_status_two(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    text, errors = capsys.readouterr()
    assert text == ""
    assert errors.startswith("hpf-gpu: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_locked_folder_is_found_before_the_fit(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["demo", "--output", str(tmp_path / "picture.png")]) == 2
    assert "is not writable" in capsys.readouterr().err


def test_interruption_has_its_own_status(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "hpf-gpu: interrupted\n"


@pytest.mark.parametrize("arguments", [["fit"], ["demo", "--k", "many"], ["demo", "--colour"]])
def test_usage_errors(capsys, arguments):
    assert main(arguments) == 2
    assert "Usage: hpf-gpu" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hpf-gpu {__version__}\n"
