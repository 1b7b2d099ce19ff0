"""The paper's experiments: every script runs, every arm differs where it should, and a broken run goes on exactly."""

import argparse
import csv
import importlib
import json
import math
import sys

import pytest
import torch

pytestmark = pytest.mark.usefixtures("examples_importable")
SCRIPTS = ("adding", "sequential_mnist", "rate_mnist", "ecg_stream")
LIBRARIES = ("snntorch", "spikingjelly")
TIMES = ("seconds", "cpu_seconds", "evaluation_seconds", "ms_per_update", "peak_rss_mib")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a script within this process, ``--smoke``, into a folder; returns its ``result.json``."""

    def run(script, folder, *arguments):
        out = tmp_path / folder
        monkeypatch.setattr(sys, "argv", [script, "--smoke", "--out", str(out), *map(str, arguments)])
        importlib.import_module(script).main()
        return json.loads((out / "result.json").read_text())

    return run


def records(result):
    return [{name: value for name, value in record.items() if name not in TIMES} for record in result["records"]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_from_another_folder_without_data(script, run_example, tmp_path):
    run_example(f"{script}.py", "--smoke")
    (folder,) = (tmp_path / "runs" / script).iterdir()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["final"] == result["records"][-1]
    assert result["parameters"] > 0
    assert result["saved_for_backward_bytes"] > 0
    assert {"fptt_plugin", "torch"} <= result["versions"].keys()
    assert "--smoke" in result["commands"][0]
    with (folder / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["records"]) > 1
    for row, record in zip(rows, result["records"], strict=True):
        assert float(row["test"]) == record["test"]
        assert math.isfinite(record["loss"])
        assert record["firing_rate"] > 0.001
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_arms_of_the_adding_task(run):
    fptt, control = run("adding", "fptt"), run("adding", "control", "--method", "tbptt")
    eps = run("adding", "eps", "--method", "tbptt", "--eps", "auto")
    bptt = run("adding", "bptt", "--method", "bptt")
    assert [result["final"]["updates"] for result in (fptt, control, eps, bptt)] == [60, 60, 60, 6]
    assert len({result["final"]["loss"] for result in (fptt, control, eps, bptt)}) == 4
    assert control["final"]["test"] == control["final"]["test_w"]
    assert fptt["final"]["test"] != fptt["final"]["test_w"]
    assert bptt["saved_for_backward_bytes"] > 3 * fptt["saved_for_backward_bytes"]


@pytest.mark.parametrize("neuron", ["ltc", "alif", "lif"])
@pytest.mark.parametrize("readout", ["membrane", "spike"])
def test_both_libraries_give_the_same_figures(run, neuron, readout):
    options = ("--neuron", neuron, "--readout", readout, "--threshold", 0.02)
    ours, theirs = (run("adding", library, *options, "--library", library) for library in ("snntorch", "spikingjelly"))
    assert ours["final"]["firing_rate"] > 0.01
    for mine, other in zip(records(ours), records(theirs), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["firing_rate"] == pytest.approx(other["firing_rate"], rel=1e-3)


@pytest.mark.parametrize("recipe", ["paper", "code", "normalized"])
def test_recipes_are_sets_of_options_that_help_prints(run, recipe, capsys):
    result = run("sequential_mnist", recipe, "--recipe", recipe)
    settings = result["settings"]
    with pytest.raises(SystemExit):
        run("sequential_mnist", "help", "--help")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {recipe}: ")]
    given = run("sequential_mnist", "given", *line.split(": ")[1].split(), "--recipe", "paper", "--epochs", 2,
                "--hidden", 16, "--batch-size", 32, "--window", settings["window"])["settings"]  # fmt: skip
    differs = {name for name in settings if settings[name] != given[name]} - {"recipe", "out", "data_dir"}
    assert differs <= {"milestones", "gamma"}  # where these count, the line has them; else they are the paper's here
    assert result["final"]["firing_rate"] > 0.01


@pytest.mark.parametrize(
    "options",
    [
        ("--norm", "step"),
        ("--norm", "accumulated"),
        ("--norm", "layer"),
        ("--norm", "step", "--norm-gamma", 0.1),
        ("--norm", "step", "--norm-readout"),
        ("--spread",),
        ("--spread", "--longest", 3),
        ("--auxiliary-mean",),
        ("--no-auxiliary",),
    ],
    ids=str,
)
def test_every_option_of_the_recipes_changes_the_run_in_both_libraries(run, options):
    plain = run("sequential_mnist", "plain", "--epochs", 1)
    results = [run("sequential_mnist", name, "--epochs", 1, *options, "--library", name) for name in LIBRARIES]
    assert results[0]["final"]["loss"] != plain["final"]["loss"]
    assert results[0]["final"]["loss"] == pytest.approx(results[1]["final"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("normalized", ("--norm", "none")),
        ("normalized", ("--no-spread",)),
        ("normalized", ("--auxiliary",)),
        ("code", ("--no-norm-readout",)),
    ],
    ids=str,
)
def test_every_part_of_a_recipe_can_be_left_out(run, recipe, options):
    whole = run("sequential_mnist", "whole", "--recipe", recipe, "--epochs", 1)
    result = run("sequential_mnist", "part", "--recipe", recipe, "--epochs", 1, *options)
    assert result["final"]["loss"] != whole["final"]["loss"]
    assert result["final"]["firing_rate"] > 0.01


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_recurrent_task_has_the_normalized_recipe(run, script):
    result = run(script, "normalized", "--recipe", "normalized")
    assert "PerStepBatchNorm1d" in result["network"]
    assert result["settings"]["spread"]
    assert result["final"]["firing_rate"] > 0.01
    assert result["final"]["loss"] != run(script, "plain", "--recipe", "paper")["final"]["loss"]


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_recalibration_without_running_statistics_is_refused_before_training(run, tmp_path, norm):
    with pytest.raises(ValueError, match="--recalibrate"):
        run("sequential_mnist", "refused", "--norm", norm, "--recalibrate", 3)
    assert not (tmp_path / "refused").exists()


def test_recalibrated_statistics_change_the_tests_and_not_the_training(run):
    options = ("--recipe", "normalized", "--hidden", 32, "--epochs", 4, "--init-state", "zeros")
    lagging = run("sequential_mnist", "lagging", *options)
    anew = run("sequential_mnist", "anew", *options, "--recalibrate", 3)
    assert lagging["final"]["loss"] == anew["final"]["loss"]
    tests = [[(record["test"], record["test_w"]) for record in result["records"]] for result in (lagging, anew)]
    assert tests[0] != tests[1]
    again = run("sequential_mnist", "lagging", *options, "--recalibrate", 3, "--resume", "--test-only")
    assert again["final"]["loss"] == lagging["final"]["loss"]
    assert again["final"]["test"] == anew["final"]["test"]
    assert again["records"][:-1] == lagging["records"][:-1]
    assert (again["status"], len(again["commands"])) == ("finished", 2)


def test_tests_between_epochs_can_be_spared(run):
    every = run("sequential_mnist", "every", "--epochs", 3)
    spared = run("sequential_mnist", "spared", "--epochs", 3, "--test-every", 2)
    assert [record["test"] is None for record in spared["records"]] == [True, False, False]
    assert spared["final"]["test"] == every["final"]["test"]
    assert spared["best"]["epoch"] in (2, 3)


@pytest.mark.parametrize("options", [("--neuron", "lstm", "--norm", "step"), ("--neuron", "lif", "--spread")])
def test_what_a_network_cannot_have_is_refused(run, options):
    with pytest.raises(ValueError, match=r"LSTM|liquid"):
        run("sequential_mnist", "refused", *options)


def test_lstm(run):
    result = run("sequential_mnist", "lstm", "--neuron", "lstm", "--hidden", 8, 8)
    assert result["final"]["firing_rate"] is None
    assert result["final"]["loss"] < result["records"][0]["loss"]


def test_spike_counts_in_a_relu_network(run):
    result = run("rate_counts", "counts")
    assert result["status"] == "finished"
    assert result["final"]["test"] > 0.3  # chance: 0.1
    assert result["final"]["loss"] < result["records"][0]["loss"]
    assert run("rate_counts", "one", "--presentations", 1)["final"]["loss"] != result["final"]["loss"]
    assert run("rate_counts", "wide", "--hidden", 64)["parameters"] != result["parameters"]


@pytest.mark.parametrize("script", ["rate_counts", "event_counts"])
@pytest.mark.parametrize("option", ["--method", "--window", "--resume", "--neuron"])
def test_comparisons_refuse_options_of_training_through_time(run, script, option, capsys):
    with pytest.raises(SystemExit):
        run(script, "counts", option, *({"--method": ["fptt"], "--resume": []}.get(option, ["1"])))
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["rate_mnist", "sequential_mnist"])
def test_resumed_run_equals_one_without_a_break(run, script):
    options = ("--schedule", "steps", "--milestones", 1)
    whole = run(script, "whole", *options, "--epochs", 3)
    run(script, "broken", *options, "--epochs", 1)
    broken = run(script, "broken", *options, "--epochs", 3, "--resume")
    assert records(broken) == records(whole)
    assert len(broken["commands"]) == 2
    assert broken["records"][0]["lr"] > broken["records"][1]["lr"]


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_no_run_overwrites_another(run, resume):
    first = run("adding", "same")
    with pytest.raises(ValueError, match=r"other settings \(lr\).*--out"):
        run("adding", "same", "--lr", 0.1, *resume)
    assert records(run("adding", "same")) == records(first)


def test_stops_when_the_time_is_used_up(run):
    result = run("adding", "brief", "--max-minutes", 0)
    assert len(result["records"]) == 1
    assert "out of time" in result["status"]


def test_divergence_is_a_result(run):
    result = run("adding", "wild", "--lr", 1e30, "--method", "tbptt")
    assert result["status"].startswith("diverged")
    assert "not finite" in result["status"]


def test_learning_rates():
    from _options import eps_of, learning_rate

    options = argparse.Namespace(
        schedule="steps", lr=1.0, milestones=[2, 3], gamma=0.1, epochs=4, eps="auto", alpha=0.5
    )
    assert [learning_rate(options, epoch) for epoch in (1, 2, 3, 4)] == pytest.approx([1, 1, 0.1, 0.01])
    assert eps_of(options) == 0.5
    options.schedule = "cosine"
    assert [learning_rate(options, epoch) for epoch in (1, 3)] == pytest.approx([1, 0.5])


def test_adding_data():
    from adding import adding_batch, authors_ramp

    x, y = adding_batch(50, 2000, torch.Generator().manual_seed(0))
    assert x.shape == (50, 2000, 2)
    assert (x[:25, :, 1].sum(0) == 1).all()
    assert (x[25:, :, 1].sum(0) == 1).all()
    assert torch.equal((x[..., 0] * x[..., 1]).sum(0), y[:, 0])
    assert ((y - 1) ** 2).mean().item() == pytest.approx(1 / 6, rel=0.1)
    assert [authors_ramp(t, 50) for t in (4, 9, 49)] == pytest.approx([0.1, 1.1, 9.1])


def test_idx_files(tmp_path):
    from _data import images, read_idx, write_idx, write_synthetic_images

    data = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
    write_idx(tmp_path / "some.gz", data)
    assert torch.equal(read_idx(tmp_path / "some.gz"), data)
    write_synthetic_images(tmp_path)
    split = images("fashion_mnist", tmp_path)
    assert split.x_train.shape == (96, 28, 28)
    assert 0.9 < split.x_train.max() <= 1
    assert split.subset(5).y_train.tolist() == [0, 1, 2, 3, 4]


def test_damaged_and_missing_files(tmp_path):
    import gzip

    from _data import ecg, images, read_idx

    (tmp_path / "short.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])))
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"holds 1 values .* \[9\]"):
        read_idx(tmp_path / "short.gz")
    with pytest.raises(ValueError, match="no IDX file"):
        read_idx(tmp_path / "other.gz")
    with pytest.raises(FileNotFoundError, match=r"mnist lacks train-images-idx3-ubyte.gz.*--data-dir.*FPTT_DATA"):
        images("mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"qtdb_ecg lacks QTDB_train.mat, QTDB_test.mat"):
        ecg(tmp_path)


def test_batches_are_whole_and_cover_the_data():
    from _data import in_order, shuffled

    drawn = list(shuffled(10, 4, torch.Generator().manual_seed(0)))
    assert [len(index) for index in drawn] == [4, 4]
    assert len(set(torch.cat(drawn).tolist())) == 8
    assert torch.cat(list(in_order(10, 4))).tolist() == list(range(10))
    with pytest.raises(ValueError, match="--batch-size"):
        shuffled(3, 4, torch.Generator())


def test_ecg_labels(tmp_path):
    from _data import ecg, write_synthetic_ecg
    from ecg_stream import LabeledAccuracy, crop

    write_synthetic_ecg(tmp_path)
    split = ecg(tmp_path)
    assert split.x_train.shape == (24, 60, 4)
    assert (split.y_train[:, -2:] == -1).all()
    assert split.y_train[0, :58].tolist() == [step // 10 for step in range(58)]
    pieces = crop(split, 25)
    assert pieces.x_train.shape == (48, 25, 4)
    assert torch.equal(pieces.y_train[1], split.y_train[0, 25:50])
    with pytest.raises(ValueError, match="--crop 61"):
        crop(split, 61)

    labels = torch.tensor([[0, 1, -1, -1]])
    metric = LabeledAccuracy(labels)
    always_zero = torch.tensor([[1.0, 0.0]])
    assert sum(metric(always_zero, labels[:, t]) for t in range(4)) / 4 == 0.5  # right at one labeled step of two


def test_auxiliary_term_changes_the_training(run):
    with_term, without = run("rate_mnist", "with"), run("rate_mnist", "without", "--no-auxiliary")
    assert with_term["final"]["loss"] != without["final"]["loss"]


def test_hidden_labels_change_the_training(run):
    all_labels, few = run("ecg_stream", "all"), run("ecg_stream", "few", "--label-fraction", 0.1)
    assert few["labels_seen"] < 0.2 < all_labels["labels_seen"]
    assert few["final"]["loss"] != all_labels["final"]["loss"]


def test_pixels_in_a_row():
    from sequential_mnist import as_sequences

    x = torch.arange(32.0).view(2, 4, 4)
    assert as_sequences(x, 1, None)[0].tolist() == list(range(16))
    assert as_sequences(x, 2, None)[0].tolist() == [2.5, 4.5, 10.5, 12.5]
    shuffled = as_sequences(x, 1, 0)
    assert torch.equal(shuffled, as_sequences(x, 1, 0))
    assert shuffled[0].tolist() != list(range(16))
    assert sorted(shuffled[0].tolist()) == list(range(16))
    assert torch.equal(shuffled[1] - 16, shuffled[0])
