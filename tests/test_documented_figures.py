"""Numbers that the front page, the README and the rules repeat are those of the measured files."""

import importlib
import json
import re
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MIB = 2**20


def page(name):
    """Text of a page without emphasis and line breaks."""
    return re.sub(r"\s+", " ", (ROOT / name).read_text().replace("**", ""))


@pytest.fixture
def rows(monkeypatch):
    """Rows of a table of the results, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    results_page = importlib.import_module("results_page")
    runs = importlib.import_module("_result_files").load(DOCS / "results")
    return lambda table: results_page.table_rows(results_page.TABLES[table], runs)


@pytest.fixture
def digits():
    """The quickstart's arms: accuracy in percent of every seed, and memory."""
    runs = [json.loads(path.read_text()) for path in sorted((DOCS / "performance").glob("quickstart_seed*.json"))]
    assert [run["settings"]["seed"] for run in runs] == [0, 1, 2]
    return {
        row["arm"]: {
            "accuracy": [100 * run["results"][i]["test_accuracy"] for run in runs],
            "firing": 100 * row["firing_rates"]["1"],
            "updates": row["updates"],
            "saved": row["saved_bytes"] / MIB,
            "long": runs[0]["memory"]["saved_bytes"][row["arm"]][-1] / MIB,
        }
        for i, row in enumerate(runs[0]["results"])
    }


def test_memory_and_accuracy_of_the_front_page(digits):
    text = page("docs/index.md")
    fptt, control, bptt = (digits[arm] for arm in ("FPTT", "alpha = 0", "BPTT"))
    assert f"{fptt['long']:.2f} MiB, not {bptt['long']:.0f}" in text
    assert f"{mean(fptt['accuracy']):.1f} %, not {mean(bptt['accuracy']):.1f}" in text
    assert f"(`alpha = 0`): {mean(control['accuracy']):.1f} %" in text


def test_table_of_the_readme(digits):
    text = page("README.md")
    for arm, row in digits.items():
        updates = f"{row['updates']:,}".replace(",", " ")
        saved = [f"{size:.2g} MiB" if size < 10 else f"{size:.0f} MiB" for size in (row["saved"], row["long"])]
        cells = [arm, f"{row['accuracy'][0]:.1f} %", f"{row['firing']:.1f} %", updates, *saved]
        assert f"| {' | '.join(cells)} |" in text
    means = [f"{mean(digits[arm]['accuracy']):.1f} %" for arm in ("FPTT", "alpha = 0", "BPTT")]
    assert f"{means[0]}, {means[1]} and {means[2]}" in text


def test_electrocardiograms_of_the_front_page(rows):
    text = page("docs/index.md")
    found = {row.arm: row for row in rows("ecg") if {"window 10", "lr 0.001", "epochs 6"} <= set(row.values)}
    bptt = next(row for row in rows("ecg") if row.arm == "BPTT" and {"lr 0.01", "epochs 6"} <= set(row.values))
    fptt, control = found["FPTT, alpha = 0.1"], found["alpha = 0"]
    assert [len(row.runs) for row in (fptt, control, bptt)] == [3, 3, 3]
    scores = [100 * mean(row.scores()) for row in (fptt, bptt, control)]
    saved = [row.runs[0]["saved_for_backward_bytes"] / MIB for row in (fptt, bptt)]
    assert f"{scores[0]:.1f} %, not {scores[1]:.1f}" in text
    assert f"with {saved[0]:.1f} MiB against {saved[1]:.0f} MiB. `alpha = 0`: {scores[2]:.1f} %" in text


def test_which_neuron(rows):
    text = page("docs/tutorials/choosing.md")

    def accuracy(presentation, steps, neuron, beta, file="beta_rule"):
        cells = json.loads((DOCS / "performance" / f"{file}.json").read_text())["cells"]
        wanted = (presentation, steps, neuron, beta)
        found = [c for c in cells if (c["presentation"], c["steps"], c["neuron"], c["beta"]) == wanted]
        return 100 * mean(found[0]["test_accuracy"])

    for name, presentation, steps in (
        ("digits as a constant current, T = 10", "constant", 10),
        ("digits as a constant current, T = 20", "constant", 20),
        ("digits row by row, T = 8", "rows", 8),
    ):
        stock, liquid = (accuracy(presentation, steps, *neuron) for neuron in (("snn.Leaky", 0.9), ("LTCLeaky", 0.5)))
        assert f"| {name} | `snn.Leaky(0.9)`: {stock:.1f} % | {liquid:.1f} % |" in text
    for steps in (10, 20):
        stock, liquid = (
            " / ".join(
                f"{accuracy('rates', steps, *neuron, file):.1f}"
                for file in ("beta_rule_rates", "beta_rule_rates_10_epochs")
            )
            for neuron in (("snn.Leaky", 0.9), ("LTCLeaky", 0.5))
        )
        name = f"digits as spikes, T = {steps}, 3 / 10 epochs"
        assert f"| {name} | `snn.Leaky(0.9)`: {stock} % | {liquid} % |" in text
    adding = {row.values[0]: mean(row.scores(4)) for row in rows("adding-neurons") if row.values[1] == "length 100"}
    stated = f"LIF: {adding['lif']:.3f}, adaptive LIF: {adding['alif']:.3f} (chance 0.167) | {adding['ltc']:.3f} |"
    assert stated in text


@pytest.mark.parametrize(("table", "name"), [("window", "digits, a pixel"), ("window-long", "S-MNIST at half size")])
def test_which_window(rows, table, name):
    best = importlib.import_module("_result_files").at_best_rate(rows(table))
    line = next(line for line in (DOCS / "tutorials" / "choosing.md").read_text().splitlines() if name in line)
    shown = [cell.strip(" *") for cell in line.split("|")[2:-1]]
    for window, cell in zip(("1", "4", "8", "16", "64", "T"), shown, strict=True):
        arm = "BPTT" if window == "T" else "FPTT, alpha = 0.1"
        row = next(row for row in best if row.arm == arm and f"window {window}" in row.values)
        seeds = " (one)" * (len(row.runs) == 1)
        assert cell == f"{100 * mean(row.scores()):.1f}{seeds}"
        assert f"| {row.runs[0]['saved_for_backward_bytes'] / MIB:.3g} |" in page("docs/tutorials/choosing.md")


def test_which_part_of_the_recipe_and_which_window(rows):
    text, arm = page("docs/tutorials/choosing.md"), "FPTT, alpha = 0.1, no auxiliary term"
    parts = {row.values: 100 * mean(row.scores()) for row in rows("normalized-parts") if row.arm == arm}
    gamma = "norm_gamma 1"
    ordered = [
        ("norm step", gamma, "spread"),
        ("norm none", gamma, "spread"),
        ("norm layer", gamma, "spread"),
        ("norm accumulated", gamma, "spread"),
        ("norm step", "norm_gamma 0.1", "spread"),
        ("norm step", gamma),
    ]
    assert f"| {' | '.join(f'{parts[values]:.1f}' for values in ordered)} |" in text
    windows = {row.values[0]: 100 * mean(row.scores()) for row in rows("normalized-window")}
    for window, name in ((14, "14"), (28, "28 steps"), (7, "7"), (56, "56"), (1, "1"), (196, "the whole sequence")):
        assert f"{name} ({windows[f'window {window}']:.1f})" in text
    short = {row.arm: mean(row.scores()) for row in rows("normalized") if "lr 0.003" in row.values}
    gain = 100 * (short[arm] - short["alpha = 0, no auxiliary term"])
    assert round(gain) == 3


def test_which_alpha(rows):
    scores = {row.arm: 100 * mean(row.scores()) for row in rows("detection")}
    stated = f"{scores['alpha = 0']:.1f} % at 0, {scores['FPTT, alpha = 0.1']:.1f} % at 0.1"
    assert stated in page("docs/tutorials/choosing.md")


def test_which_beta():
    """Every cell: accuracy / firing rate; bold at 0.5, and where the time constants fit into half the steps."""
    text = (DOCS / "tutorials" / "choosing.md").read_text().split("| input |")[1]
    head = [float(cell) for cell in re.findall(r"(?:^|\|) ([\d.]+) (?=\|)", text.splitlines()[0])]
    files = {"one seed": "beta_rule_100_steps", "two hidden layers": "beta_rule_2_layers"}
    checked = 0
    for line in text.splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, *shown = [cell.strip() for cell in line.strip("|").split("|")]
        file = next((file for part, file in files.items() if part in name), "beta_rule")
        cells = json.loads((DOCS / "performance" / f"{file}.json").read_text())["cells"]
        presentation = "constant" if "constant" in name else "rows" if "row" in name else "pixels"
        steps, layers = int(re.search(r"T = (\d+)", name)[1]), 3 if "two hidden" in name else 2
        for beta, cell in zip([*head, None], shown, strict=True):
            neuron = ("LTCLeaky", beta) if beta else ("snn.Leaky", 0.9)
            wanted = (presentation, steps, *neuron)
            found = [c for c in cells if (c["presentation"], c["steps"], c["neuron"], c["beta"]) == wanted]
            if not cell:
                continue
            accuracy, firing = 100 * mean(found[0]["test_accuracy"]), 100 * mean(found[0]["firing_rate"])
            assert cell.replace("*", "") == f"{accuracy:.0f} / {firing:.1f}", (name, beta)
            if beta:
                assert ("**" in cell) == (beta == 0.5 or layers / (1 - beta) <= steps / 2 + 1e-9), (name, beta)
            checked += 1
    assert checked > 60


def test_tables_of_windows():
    text = page("docs/performance.md")
    records = json.loads((DOCS / "performance" / "windows.json").read_text())["records"]
    lengths, alone = records[:-3], records[-3:]
    assert [record["window"] for record in lengths] == [1, 2, 4, 8, 16, 28]
    for way in ("one graph", "called step"):
        ratios = [f"{r['ratio'][way]:.2f}" if way in r["ratio"] else "not run" for r in lengths]
        assert f"| {way} | {' | '.join(ratios)} |" in text
    for record in alone:
        ways = [(record["ratio"][way], record["ready_seconds"][way]) for way in ("one graph", "called step")]
        assert " | ".join(f"{ratio:.2f} | {ready:.0f} s" for ratio, ready in ways) in text
