"""The examples run, from another folder, and write what they promise."""

import json

import pytest


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
    assert results["FPTT"]["firing_rates"] != results["alpha = 0"]["firing_rates"]  # the regulariser acts
    flat, control, growing = figures["memory"]["saved_bytes"].values()
    assert len(set(flat)) == len(set(control)) == 1
    assert growing[-1] > 2.5 * growing[0]  # T = 30 against T = 10

    timed = ("seconds",)
    again = run("second.json")[1]
    for row in (*figures["results"], *again["results"]):
        for name in timed:
            del row[name]
    assert again == figures, "the same seed gives the same figures"
