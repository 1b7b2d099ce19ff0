"""docs/results.md is made from files of runs: rows by arm, no paths of a machine, nothing by hand."""

import importlib
import json
import sys
from pathlib import Path

import pytest

NO_BREAK = "\u00a0"
ROOT = Path(__file__).parents[2]
PAGE = "before\n<!-- table rmnist -->\nold\n<!-- end -->\nbetween\n<!-- commands rmnist -->\n<!-- end -->\nafter\n"


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("results_page")


def run_file(folder, method, seed, scores, status="finished", **settings):
    """A result.json as an experiment writes it, as far as the page reads it."""
    options = {"method": method, "seed": seed, "alpha": 0.1, "lr": 0.001, "eps": "1e-8", "neuron": "ltc", "epochs": 4}
    options |= {"library": "snntorch", "dataset": "mnist", "smoke": False, "data_dir": "/home/me", **settings}
    record = {"updates": 9, "firing_rate": 0.1, "cpu_seconds": 1.0, "seconds": 1.0, "loss": 1.0}
    run = {
        "task": "rate_mnist",
        "settings": options,
        "commands": [f"python examples/rate_mnist.py --method {method} --data-dir /home/me --out /home/me/x --resume"],
        "date": "2026-01-02T03:04:05",
        "versions": {"commit": "abc"},
        "machine": {"name": "CPU", "threads": 1},
        "parameters": 7,
        "higher_is_better": True,
        "metric": "accuracy",
        "status": status,
        "saved_for_backward_bytes": 2**20,
        "records": [{"epoch": i + 1, "test": score, **record} for i, score in enumerate(scores)],
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(run))


@pytest.fixture
def filled(page, tmp_path, monkeypatch):
    """The page filled by the command, twice."""
    run_file(tmp_path / "runs" / "a", "fptt", 0, [0.5, 0.8])
    run_file(tmp_path / "runs" / "b", "fptt", 1, [0.5, 0.6])
    run_file(tmp_path / "runs" / "c", "tbptt", 0, [0.9, 0.4])
    run_file(tmp_path / "runs" / "d", "tbptt", 1, [0.1], smoke=True)
    run_file(tmp_path / "runs" / "e", "bptt", 0, [0.1], status="running")
    (tmp_path / "page.md").write_text(PAGE)
    places = {"--results": "results", "--page": "page.md", "--images": "images"}
    options = [word for name, place in places.items() for word in (name, str(tmp_path / place))]
    pages = []
    for extra in (["--collect", str(tmp_path / "runs")], []):
        monkeypatch.setattr(sys, "argv", ["results_page.py", *options, *extra])
        page.main()
        pages.append((tmp_path / "page.md").read_text())
    assert pages[0] == pages[1]
    assert (tmp_path / "images" / "results_rmnist.png").read_bytes().startswith(b"\x89PNG")
    return pages[0]


def test_seeds_share_a_row_and_arms_do_not(filled):
    lines = filled.replace(NO_BREAK, " ").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| FPTT", "| alpha = 0"))]
    assert [row[2] for row in rows] == ["70.0 % (60.0 to 80.0 %)", "40.0 %"]
    assert [row[3] for row in rows] == ["70.0 % (60.0 to 80.0 %)", "90.0 %"]
    assert [row[4] for row in rows] == ["2", "1"]


def test_only_finished_runs_and_no_places(filled):
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert "old" not in filled
    assert "BPTT," not in filled
    assert f"10.0{NO_BREAK}%" not in filled.split("firing rate")[0]
    assert "/home/me" not in filled
    assert "--resume" not in filled
    assert "python examples/rate_mnist.py --method fptt  # seeds 0, 1" in filled


def test_a_table_that_there_is_not(page):
    with pytest.raises(ValueError, match="asks for a table 'nothing': there are adding-"):
        page.fill("<!-- table nothing -->\n<!-- end -->", [])


def test_the_page_in_the_repository_is_what_its_files_give(page):
    text = (ROOT / "docs" / "results.md").read_text()
    runs = importlib.import_module("_result_files").load(ROOT / "docs" / "results")
    assert page.fill(text, runs) == text


def test_a_run_that_diverged_is_counted_and_said(page, tmp_path):
    run_file(tmp_path / "runs" / "a", "bptt", 0, [0.5, 0.6])
    run_file(tmp_path / "runs" / "b", "bptt", 1, [0.5], status="diverged: step 3")
    files = importlib.import_module("_result_files")
    files.collect(tmp_path / "runs", tmp_path / "results")
    heads, _, line = page.markdown_table(page.TABLES["rmnist"], files.load(tmp_path / "results")).splitlines()
    assert dict(zip(heads.split(" | "), line.split(" | "), strict=True))["n"] == f"2 (1{NO_BREAK}diverged)"
    assert "paper" not in heads  # which has no figure for any of these rows


def test_a_run_without_the_auxiliary_term_has_its_own_row(page, tmp_path):
    run_file(tmp_path / "runs" / "a", "fptt", 0, [0.5])
    run_file(tmp_path / "runs" / "b", "fptt", 0, [0.6], no_auxiliary=True)
    files = importlib.import_module("_result_files")
    files.collect(tmp_path / "runs", tmp_path / "results")
    assert {files.arm(run) for run in files.load(tmp_path / "results")} == {
        "FPTT, alpha = 0.1",
        "FPTT, alpha = 0.1, no auxiliary term",
    }


def test_runs_with_another_eps_have_their_own_row(page, tmp_path):
    for name, method, eps in (("a", "fptt", "1e-8"), ("b", "fptt", "3e-4"), ("c", "tbptt", "auto")):
        run_file(tmp_path / "runs" / name, method, 0, [0.5], eps=eps)
    files = importlib.import_module("_result_files")
    files.collect(tmp_path / "runs", tmp_path / "results")
    assert {files.arm(run) for run in files.load(tmp_path / "results")} == {
        "FPTT, alpha = 0.1",
        "FPTT, alpha = 0.1, eps = 0.0003",
        "alpha = 0, eps = 0.0001",
    }


def test_a_row_leaves_out_what_its_runs_have_not(page, tmp_path):
    run_file(tmp_path / "runs" / "a", "logistic regression", 0, [0.5], library=None, alpha=None, eps=None)
    files = importlib.import_module("_result_files")
    files.collect(tmp_path / "runs", tmp_path / "results")
    (row,) = files.rows(files.load(tmp_path / "results"), {"task": "rate_mnist"}, ("library", "lr"))
    assert row.label == "logistic regression, lr 0.001"


def test_a_legend_says_what_tells_its_rows_apart(page):
    files, plots = importlib.import_module("_result_files"), importlib.import_module("_result_plots")
    found = [files.Row("FPTT", ("window 8", f"lr {rate}"), []) for rate in (0.1, 0.01)]
    assert plots._labels(found) == ["FPTT, lr 0.1", "FPTT, lr 0.01"]
    assert plots._labels(found[:1]) == ["FPTT"]


def test_the_best_learning_rate_of_each_arm(page, tmp_path):
    files = importlib.import_module("_result_files")
    for rate, scores in ((0.1, [0.9, 0.2]), (0.01, [0.5, 0.6])):
        for method in ("fptt", "bptt"):
            run_file(tmp_path / "runs" / f"{method}{rate}", method, 0, scores, lr=rate)
    files.collect(tmp_path / "runs", tmp_path / "results")
    found = files.rows(files.load(tmp_path / "results"), {"task": "rate_mnist"}, ("lr",))
    assert len(found) == 4
    assert [row.label for row in files.at_best_rate(found)] == ["FPTT, alpha = 0.1, lr 0.01", "BPTT, lr 0.01"]


def test_the_summary_sets_each_arm_at_its_own_best_rate(page, tmp_path):
    runs = [
        ("fptt", 0, [0.9, 0.7], {"lr": 0.001}),
        ("fptt", 1, [0.1, 0.5], {"lr": 0.001}),
        ("fptt", 0, [0.2, 0.8], {"lr": 0.003}),
        ("tbptt", 0, [0.3, 0.6], {"lr": 0.001}),
        ("tbptt", 0, [0.4, 0.9], {"lr": 0.001, "eps": "auto"}),
        ("tbptt", 0, [0.4, 0.2], {"lr": 0.003, "eps": "3e-4"}),
        ("bptt", 0, [None, 0.4], {"norm": "step"}),  # another network: not in this row
    ]
    for index, (method, seed, scores, settings) in enumerate(runs):
        run_file(tmp_path / "runs" / str(index), method, seed, scores, **{"epochs": 20, **settings})
    files = importlib.import_module("_result_files")
    files.collect(tmp_path / "runs", tmp_path / "results")
    found = files.load(tmp_path / "results")
    (line,) = [line for line in page.summary(found).splitlines() if line.startswith("| R-MNIST")]
    assert line.replace(NO_BREAK, " ").split(" | ")[2:6] == [
        "80.0 % (n = 1, 2 tried)",
        "60.0 % (n = 1, 1 tried)",
        "90.0 % (n = 1, 2 tried)",
        "not run",
    ]


def test_epochs_without_a_test_are_left_out(page, tmp_path):
    run_file(tmp_path / "runs" / "a", "fptt", 0, [None, 0.5, None, 0.6], norm="step")
    files = importlib.import_module("_result_files")
    files.collect(tmp_path / "runs", tmp_path / "results")
    (row,) = files.rows(files.load(tmp_path / "results"), {"norm": "step"}, ())
    assert (row.scores(2), row.best(), row.scores_at(3.0)) == ([0.55], [0.6], [0.5])


def test_two_runs_of_one_seed_differ_in_something(page, tmp_path):
    for name, recalibrate in (("a", 0), ("b", 10)):
        run_file(tmp_path / "runs" / name, "fptt", 0, [0.5], recalibrate=recalibrate)
    page.collect(tmp_path / "runs", tmp_path / "results")
    runs = page.load(tmp_path / "results")
    with pytest.raises(ValueError, match=r"seeds \[0, 0\]; add the setting in which these runs differ"):
        page.fill(PAGE, runs)
    table = page.TABLES["rmnist"]
    assert len(page.table_rows(table._replace(columns=(*table.columns, "recalibrate")), runs)) == 2
