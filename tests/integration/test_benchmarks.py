"""The benchmarks compare like with like, and one command writes JSON, table and plots."""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_check  # noqa: E402
from contenders import CHANNELS_LAST, COMPILE, CONTENDERS, EAGER, GRAPH, STRAIGHTFORWARD, Training  # noqa: E402
from floors import BARE, COMPILED_UPDATE, FLOORS, PRODUCTS, UPDATE  # noqa: E402
from memory import backward_bytes, expected_bytes, peak_in_fresh_process  # noqa: E402
from networks import networks  # noqa: E402
from overhead import BPTT, OWN, RATIOS, StepProfile, check_same_weights, own_loop, spread  # noqa: E402
from overhead import networks as overhead_networks  # noqa: E402
from plots import STYLES  # noqa: E402
from timing import alternate, milliseconds_per_step  # noqa: E402

from fptt_plugin import FiringRates, FPTTTrainer  # noqa: E402
from fptt_plugin.errors import FPTTWarning  # noqa: E402
from fptt_plugin.plot import METHOD_COLORS, method_color  # noqa: E402
from fptt_plugin.state import ModelState  # noqa: E402

CPU = torch.device("cpu")
NETS = {net.name: net for net in networks("smoke")}
ROWS = {**CONTENDERS, **FLOORS}
T = 12


def rows(net):
    """Names of the rows of a network that run anywhere, and in no time."""
    return [
        name
        for name, row in ROWS.items()
        if row.suits(net) and name not in (COMPILE, CHANNELS_LAST, GRAPH, COMPILED_UPDATE)
    ]


PAIRS = [(net, name) for net in NETS.values() for name in rows(net)]
TRAINED = [(net, name) for net, name in PAIRS if name not in FLOORS]


def label(value):
    return getattr(value, "name", value)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def outputs(model, x):
    """What a network, of one step or of all, puts out over a sequence."""
    many = getattr(model[1], "step_mode", "s") == "m"
    ModelState(model).reset()
    with torch.no_grad():
        record = model(x) if many else torch.stack([model(x_t) for x_t in x])
    ModelState(model).reset()
    return record


# ------------------------------------------------------------------ like with like


@pytest.mark.parametrize(("net", "name"), [pair for pair in PAIRS if pair[1] != UPDATE], ids=label)  # has stepped once
def test_all_rows_have_the_same_network(net, name):
    x, _ = net.data(T, CPU)
    model, reference = ROWS[name].prepare(net, CPU).model, net.fresh(CPU)
    assert all(torch.equal(*pair) for pair in zip(weights(model), weights(reference), strict=True))
    torch.testing.assert_close(outputs(model, x), outputs(reference, x))
    assert not torch.equal(outputs(model, x), outputs(model, 0 * x)), "a network blind to its input has equal outputs"


@pytest.mark.parametrize("net", NETS.values(), ids=label)
def test_the_networks_spike(net):
    model = net.fresh(CPU)
    with FiringRates(model) as firing:
        outputs(model, net.data(T, CPU)[0])
    rates = firing.rates()
    assert rates
    assert all(0 < rate < 0.7 for rate in rates.values()), rates


@pytest.mark.parametrize(("net", "name"), TRAINED, ids=label)
def test_every_weight_is_trained(net, name):
    training = CONTENDERS[name].prepare(net, CPU)
    before = weights(training.model)
    training.train(*net.data(T, CPU))
    moved = [not torch.equal(*pair) for pair in zip(weights(training.model), before, strict=True)]
    assert all(moved), [key for (key, _), ok in zip(training.model.named_parameters(), moved, strict=True) if not ok]


@pytest.mark.parametrize("net", NETS.values(), ids=label)
def test_the_straightforward_loop_is_the_trainer(net):
    ours, plain = (CONTENDERS[name].prepare(net, CPU) for name in (EAGER, STRAIGHTFORWARD))
    start = weights(plain.model)
    for _ in range(2):  # the averages cross from one sequence to the next
        for training in (ours, plain):
            training.train(*net.data(T, CPU))
    for one, other, before in zip(weights(ours.model), weights(plain.model), start, strict=True):
        change = (other - before).abs().max()
        assert (one - other).abs().max() < 0.01 * change


def test_checkpointed_bptt_is_bptt():
    net = NETS["LIFNode 16"]
    names = ("SpikingJelly BPTT", "SpikingJelly BPTT, memopt")
    one, other = (CONTENDERS[name].prepare(net, CPU) for name in names)
    for training in (one, other):
        training.train(*net.data(T, CPU))
    grads = [[parameter.grad for parameter in training.model.parameters()] for training in (one, other)]
    assert all(grad.norm() > 0 for grad in grads[0])
    torch.testing.assert_close(*grads)


# ------------------------------------------------------------------ floors


def flops(net, name):
    """Of one step after the first."""
    training, (x, y) = ROWS[name].prepare(net, CPU), net.data(2, CPU)
    counts = []
    for steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            training.train(x[:steps], y)
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


def test_matrix_products_are_those_of_the_equations():
    net, hidden, inputs, classes = NETS["LTC-SRNN 16"], 16, 10, 10
    gate = 2 + 2 + 1  # [x, state] forward, its weight's gradient, the gradient of x
    recurrent = 1 + 1  # no gradient into the step before
    neuron = (2 * gate + recurrent) * hidden**2
    layers = 2 * inputs * hidden + 3 * hidden * classes + gate * classes**2
    assert flops(net, PRODUCTS) == 2 * net.batch * (neuron + layers)


@pytest.mark.parametrize("net", NETS.values(), ids=label)
def test_no_step_does_without_its_matrix_products(net):
    assert 0.7 * flops(net, BARE) < flops(net, PRODUCTS) <= flops(net, BARE)


def test_the_update_alone_runs_no_network():
    net = NETS["LTC-SRNN 16"]
    training = FLOORS[UPDATE].prepare(net, CPU)
    before = weights(training.model)
    assert flops(net, UPDATE) == 0
    training.train(*net.data(1, CPU))
    assert not any(torch.equal(*pair) for pair in zip(weights(training.model), before, strict=True))


# ------------------------------------------------------------------ meters


def test_saved_bytes_grow_for_bptt_alone():
    net = NETS["LTC-SRNN 16"]
    for name, grows in ((EAGER, False), (STRAIGHTFORWARD, False), ("snnTorch BPTT", True)):
        row = CONTENDERS[name]
        short, long = (backward_bytes(net, row, steps, CPU) for steps in (5, 50))
        assert (long > 8 * short) == grows
        assert abs(expected_bytes(net, row, 50, CPU) - long) <= 0.05 * long
        if not grows:
            assert short == long > 0


def test_the_process_memory_sees_bptt_grow():
    net = NETS["LTC-SRNN 16"]
    result = peak_in_fresh_process(net, "snnTorch BPTT", 2000, CPU, "smoke")
    assert result["peak"] - result["base"] > 0.8 * expected_bytes(net, CONTENDERS["snnTorch BPTT"], 2000, CPU)


def test_rows_take_turns():
    order = []
    times = alternate({name: lambda name=name: order.append(name) for name in "abc"}, seconds=0, least=3)
    assert "".join(order) == "abcbcacab"
    assert [len(values) for values in times.values()] == [3, 3, 3]


def test_cpu_time_leaves_out_what_others_took():
    def works():
        torch.randn(200_000).sort()

    def waits():
        works()
        time.sleep(0.05)

    calls = {"works": works, "waits": waits}
    by_clock, by_thread = (alternate(calls, 0, clock=clock) for clock in (time.perf_counter, time.thread_time))
    assert min(by_clock["waits"]) > 0.05
    assert median(by_thread["waits"]) < 2 * median(by_thread["works"])


def test_cpu_time_is_that_of_one_thread():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--cpu-time"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pass --threads 1" in done.stderr


def test_warnings_of_a_row_are_notes():
    def train(x, y):
        warnings.warn("about half as fast", FPTTWarning, stacklevel=2)

    x, y = NETS["Leaky 16"].data(3, CPU)
    ((times, notes),) = milliseconds_per_step({"row": Training(None, train)}, x, y, seconds=0).values()
    assert len(times) == 3
    assert notes == ["about half as fast"]


# ------------------------------------------------------------------ overhead of the trainer


@pytest.mark.parametrize("net", overhead_networks(smoke=True), ids=label)
def test_an_own_loop_is_the_trainer(net):
    ours, own = CONTENDERS[EAGER].prepare(net, CPU), own_loop(net, CPU)
    with FiringRates(own.model) as firing:
        for training in (ours, own):
            training.train(*net.data(T, CPU))
    assert all(rate > 0 for rate in firing.rates().values())
    check_same_weights(net, ours.model, own.model)
    with pytest.raises(RuntimeError, match="was not trained"):
        check_same_weights(net, net.fresh(CPU), own.model)
    own.train(*net.data(1, CPU))
    with pytest.raises(RuntimeError, match="differs"):
        check_same_weights(net, ours.model, own.model)


def test_ratios_are_taken_round_by_round():
    assert spread([1, 4, 9, 16, 25], [1, 2, 3, 4, 5]) == [2, 3, 4]


@pytest.mark.parametrize("prepare", [CONTENDERS[EAGER].prepare, own_loop], ids=["trainer", "own loop"])
def test_the_profile_is_of_one_steady_step(prepare):
    net, found = NETS["LTC-SRNN 16"], []
    for length, step in ((5, 3), (9, 7)):
        training, (x, y) = prepare(net, CPU), net.data(length, CPU)
        training.train(x, y)
        with StepProfile(training.model, step) as profile:
            training.train(x, y)
        found.append(profile.figures())
        names = [code.co_name for code in profile.calls.elements()]
        assert names.count("ltc_step") == names.count("add_regularizer_gradient_") == 1
    assert found[0] == found[1]
    assert sys.getprofile() is None


def test_overhead_is_one_command(run_example, tmp_path):
    printed = run_example(
        "benchmarks/overhead.py", "--smoke", "--profile", "--steps", "6", "--out", "one/overhead.json"
    )
    records = json.loads((tmp_path / "one" / "overhead.json").read_text())["records"]
    assert [record["net"] for record in records] == [net.name for net in overhead_networks(smoke=True)]
    for record in records:
        assert record["T"] == 6
        assert set(record["ms"]) == {EAGER, OWN, BARE, BPTT}
        assert min(record["ms"].values()) > 0
        assert len(record["ratios"]) == len(RATIOS)
        assert all(0 < low <= middle <= high for low, middle, high in record["ratios"].values())
        assert record["net"] in printed
    calls, files, depth = (
        [records[0]["profile"][name][key] for name in (EAGER, OWN, BARE)] for key in ("calls", "files", "depth")
    )
    assert calls == sorted(calls, reverse=True)
    assert files == sorted(files, reverse=True)
    assert depth == sorted(depth, reverse=True)


# ------------------------------------------------------------------ compiled windows


@pytest.mark.slow
def test_windows_are_measured_both_ways(run_example, tmp_path):
    printed = run_example("benchmarks/windows.py", "--smoke", "--out", "one/windows.json")
    (record,) = json.loads((tmp_path / "one" / "windows.json").read_text())["records"]
    assert record["window"] == 2
    assert record["ratio"].keys() == record["ready_seconds"].keys() == {"one graph", "called step"}
    assert min(record["ratio"].values()) > 0
    assert "K = 2" in printed


# ------------------------------------------------------------------ the command


@pytest.mark.slow
def test_one_command_writes_everything(run_example, tmp_path):
    run_example("benchmarks/run.py", "--smoke", "--out", "one")
    figures = json.loads((tmp_path / "one" / "benchmarks.json").read_text())
    assert {"date", "command", "device", "threads", "clock", "torch", "snntorch", "spikingjelly"} <= set(
        figures["machines"][0]
    )
    assert list(figures["networks"]) == list(NETS)

    found = {(record["part"], record["net"], record["row"]): record for record in figures["records"]}
    for net in NETS.values():
        for name in rows(net):
            record = found["nets", net.name, name]
            assert len(record["ms"]) >= 3
            assert min(record["ms"]) > 0
        assert found["nets", net.name, GRAPH]["not_run"] == "no GPU"
        assert found["nets", net.name, COMPILE]["not_run"]
    srnn = [record for record in figures["records"] if record["net"] == "LTC-SRNN 16"]
    assert {record["T"] for record in srnn if record["part"] == "time" and "ms" in record} == {2, 6}
    assert all(record["bytes"] > 0 for record in srnn if record["part"] == "saved")
    assert all(record["peak"] >= record["base"] > 2**20 for record in srnn if record["part"] == "resident")
    assert sum(record["part"] == "resident" for record in srnn) == 3

    table = (tmp_path / "one" / "table.md").read_text()
    assert all(f"**{name}**" in table for name in NETS)
    assert all(f"| {name} |" in table for name, row in ROWS.items() if not row.only)
    assert "not run: no GPU" in table
    pictures = ("update", "length", "saved", "resident")
    for name in pictures:
        assert (tmp_path / "one" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    run_example("benchmarks/run.py", "--from-json", "one/benchmarks.json", "--out", "two")
    assert (tmp_path / "two" / "table.md").read_text() == table
    assert all((tmp_path / "two" / f"{name}.png").is_file() for name in pictures)


def test_an_unknown_network_is_named():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--nets", "LSTM"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'LSTM' is unknown; choose from 'LTC-SRNN 128'" in done.stderr


# ------------------------------------------------------------------ the check on a GPU


def at_once():
    """Nothing to wait for."""


@pytest.mark.parametrize("name", gpu_check.CASES)
def test_the_networks_of_the_check_learn(name):
    (record,) = gpu_check.check(name, CPU, ("none",), 1, at_once)
    assert record["right"], record
    assert record["off"] == 0
    assert record["moved"] > 1e-4
    case = gpu_check.CASES[name]
    torch.manual_seed(0)
    net = case.build().double()
    with FiringRates(net) as firing:
        trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.0), case.loss(), **(case.options or {}))
        trainer.train_sequence(2 * torch.rand(12, 8, *case.sample, dtype=torch.float64), torch.arange(8) % 3)
    assert all(0 < rate < 1 for rate in firing.rates().values()), firing.rates()


def test_the_check_sees_what_is_wrong(monkeypatch):
    trained, calls = gpu_check.trained, []

    def second_is_wrong(case, *arguments):
        calls.append(case)
        return trained(case if len(calls) < 2 else case._replace(options={"beta": 0.4}), *arguments)

    monkeypatch.setattr(gpu_check, "trained", second_is_wrong)
    (record,) = gpu_check.check("recurrent LTC", CPU, ("none",), 1, at_once)
    assert not record["right"]
    assert "WRONG" in gpu_check.line_of(record)


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu_check.CASES)
def test_compiled_networks_of_the_check_are_right(name, traced):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FPTTWarning)  # of what is not compiled
        (record,) = gpu_check.check(name, CPU, ("compile",), 2, at_once)
    assert record["right"], record
    assert "compiled: " in record["compiled"]


@pytest.mark.slow
def test_the_check_runs_in_processes(tmp_path, run_example):
    run_example("benchmarks/gpu_check.py", "--smoke", "--device", "cpu", "--jobs", "2", "--out", "check.json")
    records = json.loads((tmp_path / "check.json").read_text())["records"]
    assert {record["part"] for record in records} == {"right", "speed", "S-MNIST", "memory"}
    assert not any("not_run" in record for record in records)


def test_what_the_processes_have_no_time_for_is_in_the_results(tmp_path, monkeypatch):
    place = tmp_path / "check.json"
    options = ["--smoke", "--device", "cpu", "--jobs", "2", "--minutes", "0.01", "--out", str(place)]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *options])
    with pytest.raises(SystemExit, match="0"):
        gpu_check.main()
    records = json.loads(place.read_text())["records"]
    assert len(records) == 9
    assert all(record["not_run"] == "no time left after 0 records" for record in records)


def test_the_check_is_one_command(run_example, tmp_path):
    printed = run_example("benchmarks/gpu_check.py", "--smoke", "--device", "cpu", "--out", "one/check.json")
    figures = json.loads((tmp_path / "one" / "check.json").read_text())
    assert {"date", "device", "torch", "fptt_plugin"} <= set(figures)
    records = figures["records"]
    assert {record["part"] for record in records} == {"right", "speed", "S-MNIST", "memory"}
    assert not any("not_run" in record for record in records)
    assert all(record["right"] for record in records if record["part"] == "right")
    assert all(min(record["us_per_step"]) > 0 for record in records if record["part"] == "speed")
    (eager, whole) = (record["bytes"] for record in records if record["part"] == "memory")
    assert eager["4"] == eager["12"] < whole["4"] < whole["12"]
    assert len(printed.splitlines()) == len(records) + 2


def test_the_check_ends_in_time(tmp_path, monkeypatch, capsys):
    place = tmp_path / "check.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu_check.py", "--smoke", "--device", "cpu", "--minutes", "0", "--out", str(place)]
    )
    with pytest.raises(SystemExit, match="0"):
        gpu_check.main()
    records = json.loads(place.read_text())["records"]
    assert records
    assert all(record["not_run"] == "no time left" for record in records)
    assert "not run: no time left" in capsys.readouterr().out


def test_a_method_has_the_color_that_it_has_on_every_page():
    """Ways to train by one method are shades of its color; what is no method of the pages is gray."""
    shades = {method: {method_color(method, shade) for shade in range(5)} for method in ("FPTT", "BPTT")}
    assert STYLES[COMPILE]["color"] == METHOD_COLORS["FPTT"]
    assert STYLES["snnTorch BPTT"]["color"] == METHOD_COLORS["BPTT"]
    for name in CONTENDERS:
        color = STYLES[name]["color"]
        if "OTTT" in name or "SLTT" in name:
            assert 0 < float(color) < 0.75
        else:
            assert color in shades["BPTT" if "BPTT" in name else "FPTT"], name
    together = ["ours, eager", COMPILE, STRAIGHTFORWARD, "SpikingJelly FPTT"]
    assert len({STYLES[name]["color"] for name in together}) == len(together)
