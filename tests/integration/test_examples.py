"""The examples run, from another folder, and write what they promise."""

import importlib
import json
import re

import pytest
import torch


@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
def test_quickstart(library, run_example, tmp_path):
    def run(name):
        printed = run_example("quickstart.py", "--smoke", "--library", library, "--json", name)
        return printed, json.loads((tmp_path / name).read_text())

    printed, figures = run("first.json")
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    results = {row["arm"]: row for row in figures["results"]}
    assert list(results) == ["FPTT", "alpha = 0", "BPTT"]
    for row in results.values():
        assert row["arm"] in printed
        assert row["test_accuracy"] > 0.3  # one epoch, ten classes
        assert row["firing_rates"]
        assert all(0.01 < rate < 0.5 for rate in row["firing_rates"].values())
    assert results["FPTT"]["firing_rates"] != results["alpha = 0"]["firing_rates"]  # the regularizer acts
    flat, control, growing = figures["memory"]["saved_bytes"].values()
    assert len(set(flat)) == len(set(control)) == 1
    assert growing[-1] > 2.5 * growing[0]  # T = 30 against T = 10

    timed = ("seconds",)
    again = run("second.json")[1]
    for row in (*figures["results"], *again["results"]):
        for name in timed:
            del row[name]
    assert again == figures, "the same seed gives the same figures"


@pytest.mark.slow
@pytest.mark.parametrize(("library", "updates"), [("snntorch", 2100), ("spikingjelly", 525)])
def test_the_programs_of_the_front_page(library, updates, run_example):
    """The page says: an accuracy of more than 90 %."""
    printed = run_example(f"first_{library}.py")
    accuracy, made = re.search(r"test accuracy ([\d.]+)% after (\d+) updates", printed).groups()
    assert float(accuracy) > 90
    assert int(made) == updates


def test_beta_rule(run_example, tmp_path):
    printed = run_example("beta_rule.py", "--smoke", "--json", "figures.json")
    assert "| constant, T = 5 |" in printed
    assert "| rows, T = 8 |" in printed
    cells = json.loads((tmp_path / "figures.json").read_text())["cells"]
    found = {(cell["presentation"], cell["neuron"], cell["beta"]): cell for cell in cells}
    assert len(found) == len(cells) == 6
    for presentation in ("constant", "rows"):
        fires, silent, stock = (
            found[presentation, *neuron] for neuron in (("LTCLeaky", 0.5), ("LTCLeaky", 0.98), ("snn.Leaky", 0.9))
        )
        assert fires["firing_rate"][0] > 0.02
        assert stock["firing_rate"][0] > 0.02
        assert silent["firing_rate"][0] < 0.01
        assert fires["test_accuracy"][0] > silent["test_accuracy"][0] + 0.1


@pytest.mark.usefixtures("examples_importable")
def test_digits_are_presented_in_the_order_of_their_pixels():
    present = importlib.import_module("beta_rule").present
    x = torch.arange(128.0).view(2, 8, 8)
    assert torch.equal(present(x, "constant", 5), x.view(1, 2, 64).expand(5, 2, 64))
    assert torch.equal(present(x, "rows", 8), x.transpose(0, 1))
    brightness = torch.rand(3, 8, 8)
    spikes = present(brightness, "rates", 2000)
    assert spikes.unique().tolist() == [0, 1]
    assert torch.allclose(spikes.mean(0), brightness.flatten(1), atol=0.06)  # over five standard errors
    assert torch.equal(present(x, "pixels", 64)[:, 1, 0], torch.arange(64.0, 128.0))
