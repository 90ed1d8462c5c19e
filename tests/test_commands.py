"""The commands of `hpf-gpu` that read and write files, each against the same calls in Python."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import typer
from small_data import COUNTS

import hpf_gpu
from hpf_gpu import HPF, HPFEnsemble, load
from hpf_gpu.app import parameters, tables
from hpf_gpu.app.application import COMMANDS
from hpf_gpu.app.bench import drawn_counts
from hpf_gpu.app.cli import main
from hpf_gpu.app.commands import fit as fitting
from hpf_gpu.app.commands import select as selecting
from hpf_gpu.files import parquet_file
from hpf_gpu.model.settings import TABLE

NAMES = {"UserId": "listener", "ItemId": "artist", "Count": "plays"}
NAMED = ["--user", "listener", "--item", "artist", "--count", "plays"]
SMALL = ["--k", "3", "--maxiter", "10", "--seed", "1"]
RUN = "import sys; from hpf_gpu.app.cli import main; sys.exit(main(sys.argv[1:]))"
#: Ids that are text; those of the items look like numbers.
PLAYS = COUNTS.assign(UserId="u" + COUNTS.UserId.astype(str), ItemId="0" + COUNTS.ItemId.astype(str))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Counts in files of both kinds, and a model of them."""
    place = tmp_path_factory.mktemp("plays")
    PLAYS.rename(columns=NAMES).to_parquet(place / "plays.parquet")
    COUNTS.to_csv(place / "numbers.csv", index=False)
    COUNTS.rename(columns=NAMES).to_csv(place / "plays.csv", index=False)
    assert main(["fit", str(place / "plays.parquet"), *NAMED, *SMALL, "-o", str(place / "m.hpf"), "-q"]) == 0
    return place


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """A function that runs a command in the folder; returns its status, output and lines of errors."""

    def command(*arguments):
        monkeypatch.chdir(folder)
        status = main([str(one) for one in arguments])
        told = capsys.readouterr()
        return SimpleNamespace(status=status, out=told.out, errors=told.err.splitlines())

    return command


def fitted(counts, **arguments):
    return HPF(**{"k": 3, "maxiter": 10, "random_seed": 1, "verbose": False} | arguments).fit(counts)


@pytest.fixture(scope="module")
def help_of_fit():
    """What `hpf-gpu fit --help` says of each option."""
    application = typer.Typer()
    application.command()(fitting.fit)
    command = typer.main.get_command(application)
    return {name: param.help for param in command.params for name in param.opts if name.startswith("--")}


# -- fit -------------------------------------------------------------------------------------------


def test_a_fit_is_that_of_python(folder):
    model, same = load(folder / "m.hpf"), fitted(PLAYS)
    np.testing.assert_array_equal(model.Theta, same.Theta)
    np.testing.assert_array_equal(model.item_mapping_, same.item_mapping_)
    assert model.verbose  # of fits in Python


def test_a_csv_file_has_the_same_counts(folder, run):
    assert run("fit", "plays.csv", *NAMED, *SMALL, "-o", "csv.hpf").status == 0
    np.testing.assert_array_equal(load(folder / "csv.hpf").Theta, fitted(COUNTS).Theta)


def test_without_a_column_of_counts_every_row_is_one(folder, run):
    assert run("fit", "plays.csv", *NAMED[:4], "--count", "none", *SMALL, "-o", "ones.hpf").status == 0
    np.testing.assert_array_equal(load(folder / "ones.hpf").Theta, fitted(COUNTS.assign(Count=1)).Theta)


def test_options_are_parameters_of_the_model(folder, run):
    given = ["--k", "4", "--bias", "--counts", "log1p", "--stop-crit", "maxiter", "--maxiter", "2"]
    given += [
        "--seed",
        "7",
        "--threads",
        "1",
        "--no-use-float",
        "--check-every",
        "none",
        "--stop-thr",
        "1e-4",
    ]
    assert run("fit", "numbers.csv", *given, "-o", "options.hpf").status == 0
    expected = {"k": 4, "bias": True, "counts": "log1p", "stop_crit": "maxiter", "maxiter": 2, "ncores": 1}
    expected |= {"random_seed": 7, "use_float": False, "check_every": None, "stop_thr": 1e-4}
    assert load(folder / "options.hpf").get_params() == HPF(**expected).get_params()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_parameter_is_an_option(row, help_of_fit):
    if row.name in parameters._LEFT_OUT:
        assert row.name not in parameters._ROWS
    else:
        typed = parameters._shown(row.default)
        assert parameters.value_of(row.name, typed) == row.default
        assert f"[default: {typed}]" in help_of_fit[f"--{row.name.replace('_', '-')}"]


def test_what_an_option_is_for(help_of_fit):
    told = parameters._first_sentences(HPF.__doc__)
    assert not {row.name for row in TABLE} - set(told)
    assert told["k"] == "Number of factors K."
    assert told["a_prime"] == "Prior of the users: shape a of θ, shape a' and mean b' of the activity ξ."
    assert told["users_per_batch"].startswith("If either is set, the fit is stochastic and an iteration is")
    assert "hpfrec, svd" in help_of_fit["--init"]
    assert help_of_fit["--seed"] == help_of_fit["--random-seed"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["numbers.csv", "--k", "-3"], "k=-3 must be at least 0"),
        (["numbers.csv", "--k", "many"], "k='many' is not a number"),
        (["numbers.csv", "--counts", "most"], "counts='most' is unknown; choose one of 'raw', 'binary'"),
        (["numbers.csv", "--backend", "abacus"], "backend='abacus' is unknown"),
        (
            ["plays.csv"],
            "counts_df, plays.csv, has no column 'UserId'; it needs UserId, ItemId, Count and has 'listener'",
        ),
        (["plays.parquet"], "on the command line --user, --item and --count; count=None if every row is one"),
        (["missing.csv"], "counts_df is 'missing.csv', and there is no such file"),
        (["m.hpf"], "counts_df is 'm.hpf': pass a file .parquet, .pq, .arrow"),
        (["empty.csv"], "'empty.csv' cannot be read"),
        (["numbers.csv", "-o", "nowhere/x.hpf"], "nowhere is not an existing folder"),
        (["numbers.csv", "--stop-crit", "val-llk"], "stop_crit='val-llk' needs held-out counts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_one_line_and_status_two(folder, run, arguments, told):
    (folder / "empty.csv").touch()
    ran = run("fit", "-o", "x.hpf", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert len(ran.errors) == 1
    assert ran.errors[0].startswith("hpf-gpu: ")
    assert told in ran.errors[0]
    assert not (folder / "x.hpf").exists()


def test_what_a_fit_says(folder, run):
    arguments = ["fit", "numbers.csv", *SMALL, "-o", "said.hpf"]
    assert run(*arguments, "--quiet").out == ""
    model = load(folder / "said.hpf")
    text = run(*arguments).out
    assert f"said.hpf: {model.nusers} users, {model.nitems} items, 3 factors, seed 1\n" in text
    assert "\n10 iterations in " in text
    assert f"log-likelihood {model.history_.llk.iloc[-1]:,.0f}" in text
    values = json.loads(run(*arguments, "--json").out)
    assert values.pop("seconds") > 0
    assert values == {
        "model": "said.hpf", "users": model.nusers, "items": model.nitems, "k": 3, "random_seed": 1,
        "backend": model.backend_, "iterations": 10, "llk": model.history_.llk.iloc[-1],
        "elbo": model.history_.elbo.iloc[-1],
    }  # fmt: skip


def test_held_out_counts_and_a_checkpoint(folder, run):
    COUNTS[::7].to_csv(folder / "later.csv", index=False)
    arguments = ["fit", "numbers.csv", "--held-out", "later.csv", "--stop-crit", "val-llk", "--k", "3"]
    arguments += ["--seed", "1", "--check-every", "2", "--checkpoint", "state", "--checkpoint-every", "1"]
    assert run(*arguments, "-o", "first.hpf", "--maxiter", "4").status == 0
    assert load(folder / "first.hpf").history_.val_llk.notna().all()
    assert run(*arguments, "-o", "more.hpf", "--maxiter", "6").status == 0
    whole = HPF(3, maxiter=6, random_seed=1, stop_crit="val-llk", check_every=2, verbose=False)
    np.testing.assert_array_equal(load(folder / "more.hpf").Theta, whole.fit(COUNTS, COUNTS[::7]).Theta)


def test_counts_on_disk(folder, run):
    arguments = [
        "fit",
        "numbers.csv",
        "-o",
        "disk.hpf",
        "--k",
        "3",
        "--maxiter",
        "2",
        "--stop-crit",
        "maxiter",
    ]
    assert run(*arguments, "--memory-limit", "2GB", "--scratch", ".").status == 0
    assert load(folder / "disk.hpf").nitems == COUNTS.ItemId.nunique()
    assert not [*folder.glob("hpf_gpu-*")]
    assert "is not an amount of memory" in run(*arguments, "--memory-limit", "much").errors[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_an_interrupted_fit_writes_its_model(folder):
    arguments = ["fit", "numbers.csv", "--k", "3", "--stop-crit", "maxiter", "--maxiter", "1000000000"]
    arguments += ["--checkpoint", "interrupted", "--checkpoint-every", "1", "-o", "interrupted.hpf"]
    # Where the tests run in the background of a shell, SIGINT is ignored, also by the processes they start.
    heeding = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {RUN}"
    process = subprocess.Popen(
        [sys.executable, "-c", heeding, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (folder / "interrupted").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    niter = load(folder / "interrupted.hpf").niter
    assert errors == f"hpf-gpu: interrupted: interrupted.hpf has the model after iteration {niter}\n"
    assert process.returncode == 130


# -- recommend ---------------------------------------------------------------------------------------


def same_lists(frame, expected):
    pd.testing.assert_frame_equal(frame, expected, check_dtype=False, rtol=1e-6)  # text of float32


def test_lists_of_all_users(folder, run, monkeypatch):
    expected = load(folder / "m.hpf").recommend(n=5)
    monkeypatch.setattr(parquet_file, "_USERS_AT_ONCE", 7)  # 60 users in nine blocks
    assert run("recommend", "m.hpf", "-n", 5, "-o", "lists.parquet").status == 0
    same_lists(pd.read_parquet(folder / "lists.parquet"), expected)
    assert run("recommend", "m.hpf", "-n", 5, "-o", "lists.csv").out == ""
    same_lists(pd.read_csv(folder / "lists.csv", dtype={"ItemId": str}), expected)
    assert run("recommend", "m.hpf", "-n", 5).out == (folder / "lists.csv").read_text()
    records = json.loads(run("recommend", "m.hpf", "-n", 5, "--json").out)
    same_lists(pd.DataFrame(records), expected)


def test_lists_of_some_users(folder, run):
    ran = run("recommend", "m.hpf", "--users", 'u101,ann,u103,"u1,2"', "--include-seen", "--discount", "0.2")
    assert ran.errors == ["hpf-gpu: warning: users 'ann', 'u1,2' are not in the model"]
    (folder / "some.csv").write_text(ran.out)
    expected = load(folder / "m.hpf").recommend(["u101", "u103"], exclude_seen=False, discount=0.2)
    same_lists(pd.read_csv(folder / "some.csv", dtype={"ItemId": str}), expected)
    ran = run("recommend", "m.hpf", "--users", "ann,bob")
    assert (ran.status, ran.errors) == (2, ["hpf-gpu: users 'ann', 'bob': not in the model"])


def test_models_of_polars_frames(folder, run):
    model = HPF(k=2, maxiter=2, verbose=False, random_seed=1, stop_crit="maxiter").fit(pl.from_pandas(PLAYS))
    model.save(folder / "polars.hpf")
    records = json.loads(run("recommend", "polars.hpf", "-n", 3, "--json").out)
    same_lists(pd.DataFrame(records), model.recommend(n=3).to_pandas())
    PLAYS[:20].to_csv(folder / "new.csv", index=False)
    run("recommend", "polars.hpf", "--counts", "new.csv", "-o", "lists.parquet")
    same_lists(pd.read_parquet(folder / "lists.parquet"), model.recommend(counts=PLAYS[:20]))
    assert run("similar", "polars.hpf", "0501", "-o", "similar.csv").status == 0


def test_lists_by_counts_of_new_users(folder, run):
    """Columns are those of the model; its ids of items are text, and digits in the file."""
    new = PLAYS[PLAYS.UserId < "u103"].assign(UserId="new").rename(columns=NAMES)
    new.to_csv(folder / "new.csv", index=False)
    ran = run("recommend", "m.hpf", "--counts", "new.csv", "-n", 3, "--json")
    assert ran.errors == []
    same_lists(pd.DataFrame(json.loads(ran.out)), load(folder / "m.hpf").recommend(counts=new, n=3))
    assert run("recommend", "m.hpf", "--counts", "new.csv", "--users", "u101").status == 2


def test_numbers_as_ids(folder, run):
    run("fit", "numbers.csv", *SMALL, "-o", "numbers.hpf")
    lists = pd.DataFrame(json.loads(run("recommend", "numbers.hpf", "--users", "101", "--json").out))
    same_lists(lists, load(folder / "numbers.hpf").recommend([101]))


def test_lists_of_an_ensemble(folder, run):
    ensemble = HPFEnsemble(2, k=2, maxiter=3, random_seed=1, verbose=False).fit(PLAYS)
    ensemble.save(folder / "ensemble.hpf")
    records = json.loads(run("recommend", "ensemble.hpf", "-n", 2, "--json").out)
    same_lists(pd.DataFrame(records), ensemble.recommend(PLAYS.UserId.unique(), n=2))


@pytest.mark.parametrize("output", ["lists.txt", "nowhere/lists.csv", "lists.csv.gz"])
def test_where_lists_cannot_be_written(folder, run, output, monkeypatch):
    monkeypatch.setattr(HPF, "recommend", lambda *_, **__: pytest.fail("found only after the work"))
    ran = run("recommend", "m.hpf", "-o", output)
    assert ran.status == 2
    assert len(ran.errors) == 1
    assert not (folder / output).exists()


def test_a_list_that_fails_leaves_the_old_file(folder, run, monkeypatch):
    (folder / "old.csv").write_text("old")
    monkeypatch.setattr(parquet_file, "_USERS_AT_ONCE", 7)
    whole = HPF.recommend

    def fails_later(self, users, *_, **__):
        if "u110" in users:
            raise MemoryError
        return whole(self, users)

    monkeypatch.setattr(HPF, "recommend", fails_later)
    ran = run("recommend", "m.hpf", "-o", "old.csv")
    assert (ran.status, ran.errors) == (2, ["hpf-gpu: MemoryError"])
    assert (folder / "old.csv").read_text() == "old"


# -- what other modules do -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["items", "users"])
def test_similar(folder, run, kind):
    ids = ["0501", "0502"] if kind == "items" else ["u101", "u102"]
    flag = [] if kind == "items" else ["--users"]
    ran = run("similar", "m.hpf", ",".join([*ids, "none"]), "-n", 4, "--json", *flag)
    want = getattr(load(folder / "m.hpf"), f"similar_{kind}")(ids, n=4)
    got = pd.DataFrame(json.loads(ran.out))
    pd.testing.assert_frame_equal(got, want, check_dtype=False)
    assert ran.errors == [f"hpf-gpu: warning: {kind} 'none' are not in the model"]


def test_evaluate(folder, run):
    """Of text ids, as the model has them, although one file has digits alone."""
    held_out = PLAYS.assign(Count=1).drop_duplicates("UserId", keep="last").iloc[:30]
    train = PLAYS.drop(held_out.index)
    for name, frame in (("train.csv", train), ("held_out.csv", held_out)):
        frame.to_csv(folder / name, index=False)
    fitted(train).save(folder / "train.hpf")
    files = ["--train", "train.csv", "--held-out", "held_out.csv"]
    want = hpf_gpu.evaluate(load(folder / "train.hpf"), train, held_out, ["precision", "auc"], 7)
    ran = run("evaluate", "train.hpf", *files, "-n", 7, "--metrics", "precision,auc", "--json")
    got = pd.DataFrame(json.loads(ran.out)).set_index("metric")["value"]
    assert got.to_dict() == pytest.approx(want.figures)
    table = run("evaluate", "train.hpf", *files, "-n", 7).out
    assert table.startswith("metric,value,error,low,high\nnormalized_precision,")


def test_report(folder, run):
    (folder / "names.csv").write_text("code,name,price\n0501,Lamp <1>,1\n0502,Bag,2\n")
    assert run("report", "m.hpf", "-o", "page.html", "--names", "names.csv").status == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "Lamp" in page
    assert "Lamp <1>" not in page
    assert run("report", "m.hpf", "-o", "page.html").status == 0
    assert "Lamp" not in (folder / "page.html").read_text(encoding="utf-8")


# -- select and bench ----------------------------------------------------------------------------------


def test_select_tries_all_combinations(folder, run):
    options = ["--k", "2,3", "--counts", "raw,log1p", "--maxiter", "3", "--seed", "1", "-n", "5"]
    ran = run("select", "numbers.csv", *options, "-o", "best.hpf", "--json")
    result = json.loads(ran.out)
    tried = pd.DataFrame(result["table"])
    assert set(zip(tried.k, tried.counts, strict=True)) == {
        (2, "raw"), (2, "log1p"), (3, "raw"), (3, "log1p")
    }  # fmt: skip
    best = load(folder / "best.hpf")
    assert {name: best.get_params()[name] for name in result["parameters"]} == result["parameters"]
    assert result["parameters"]["k"] == tried.k[tried.score.idxmax()]
    assert best.nusers == COUNTS.UserId.nunique()


def test_select_for_people(run, monkeypatch):
    """A table of what differs on a terminal, and CSV in a pipe."""
    asked = ["select", "numbers.csv", "--k", "2,3", "--maxiter", "2", "-n", "5"]
    table = pd.read_csv(io.StringIO(run(*asked).out))
    assert table.k.tolist()[:2] == [2, 3]
    assert table.maxiter.unique().tolist() == [2]
    monkeypatch.setattr(selecting, "is_terminal", lambda _: True)
    text = run(*asked).out
    assert "Best in precision: {" in text
    assert "┃ candid" in text
    assert "┃ maxiter" not in text


def test_ids_with_commas(folder, run):
    names = ["Crosby, Stills & Nash", "Simon", "Nina"]
    plays = pd.DataFrame({"UserId": [1, 1, 2, 2, 3, 3], "ItemId": names * 2, "Count": 1})
    fitted(plays).save(folder / "commas.hpf")
    found = json.loads(run("similar", "commas.hpf", names[0], "-n", "1", "--json").out)
    assert [row["ItemId"] for row in found] == names[:1]
    found = json.loads(run("similar", "commas.hpf", f'"{names[0]}",Nina', "-n", "1", "--json").out)
    assert [row["ItemId"] for row in found] == [names[0], "Nina"]


def test_without_a_command_help_is_shown(run):
    assert "recommend" in run().out


def test_bench(run):
    options = ["--seconds", "0.01", "--nonzeros", "3000", "--k", "2"]
    result = json.loads(run("bench", *options, "--json").out)
    assert result["nonzeros"] > 2500
    rows = {row["Backend"]: row for row in result["backends"]}
    speed = rows["numpy"]
    assert speed["Iterations"] >= 2
    assert speed["ns/nonzero"] == pytest.approx(1e9 / (speed["Iterations/s"] * result["nonzeros"]))
    assert all(row["Iterations"] or row["Note"] for row in rows.values())
    text = run("bench", *options).out
    assert all(name in text for name in rows)


def test_counts_that_bench_draws():
    counts = drawn_counts(500, 200, 20_000)
    assert counts.shape == (500, 200)
    of_users, of_items = np.sort(counts.sum(axis=1)), np.sort(counts.sum(axis=0))
    assert of_items[-20:].sum() > 0.25 * counts.sum()  # a tenth of the items has a quarter of the counts
    assert of_users[-50:].sum() > 0.25 * counts.sum()
    assert of_users[-1] < 0.02 * counts.sum()


# -- models in files -----------------------------------------------------------------------------------


def test_load_tells_a_model_from_an_ensemble(folder, tmp_path):
    HPFEnsemble(2, k=2, maxiter=2, verbose=False).fit(PLAYS).save(tmp_path / "e.hpf")
    ensemble = load(tmp_path / "e.hpf")
    assert isinstance(load(folder / "m.hpf"), HPF)
    assert isinstance(ensemble, HPFEnsemble)
    assert ensemble.user_mapping_.tolist() == PLAYS.UserId.unique().tolist()
    assert ensemble.item_mapping_.tolist() == PLAYS.ItemId.unique().tolist()
    text = (folder / "m.hpf").read_bytes()
    (tmp_path / "other").write_bytes(text.replace(b'"hpf_gpu"', b'"hpf_cpu"'))
    (tmp_path / "short").write_bytes(text[:50])
    with pytest.raises(hpf_gpu.ModelFileError, match="neither a model nor a model ensemble of hpf_gpu"):
        load(tmp_path / "other")
    with pytest.raises(hpf_gpu.ModelFileError, match="short is damaged, or neither a model nor"):
        load(tmp_path / "short")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


# -- the program ---------------------------------------------------------------------------------------


def test_help_is_immediate():
    code = """
import sys
from hpf_gpu.app.cli import main
for command in ([], ["recommend"], ["demo"], ["similar"], ["evaluate"], ["report"], ["bench"], ["doctor"]):
    assert main([*command, "--help"]) == 0
assert main(["recommend"]) == 2
loaded = {"numpy", "pandas", "scipy", "hpf_gpu.estimator"} & set(sys.modules)
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run, name):
    ran = run(name, "--help")
    assert ran.status == 0
    assert f"Usage: hpf-gpu {name}" in ran.out
    assert COMMANDS[name] in " ".join(run("--help").out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("hpf-gpu re", {"recommend", "report"}), ("hpf-gpu fit --counts ", {"raw", "binary", "log1p"})],
)
def test_completion(run, monkeypatch, typed, offered):
    monkeypatch.setenv("_HPF_GPU_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    assert set(run().out.split()) == offered


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminal")
def test_on_a_terminal(folder):
    """Bars on standard error, and a table on standard output."""
    import pty

    code = f"""
import sys
from hpf_gpu.app.cli import main
main(["fit", "numbers.csv", *{SMALL}, "-o", "terminal.hpf"])
sys.exit(main(["recommend", "terminal.hpf", "-n", "9"]))
"""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=follower, stderr=follower
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # Linux says so where others end the file
            part = b""
        if not part:
            break
        shown += part
    os.close(leader)
    text = shown.decode()
    assert process.wait() == 0
    for step in ("Reading numbers.csv", "Fitting", "log-likelihood", "Ranking"):
        assert step in text
    assert "UserId" in text
    assert "┃" in text
    assert "... and more: `-o FILE` writes them all" in text
    assert len(re.findall(r"^│ +1\d\d ", text, re.MULTILINE)) == tables._ROWS_ON_A_TERMINAL
