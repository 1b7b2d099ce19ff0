"""What users have around their network keeps working: schedulers, mixed precision, compilation, DDP, data, monitors."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from nets import LIF, adam, batch, copies, distance, identical, sgd, spikes, spiking_net
from snntorch import spikegen
from spikingjelly.activation_based import functional, layer, monitor, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fptt_plugin import DynamicRegularizer, FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.state import ModelState

CE = nn.CrossEntropyLoss()


def loader(samples=12, size=4):
    x = torch.rand(samples, 6, 3)
    return DataLoader(TensorDataset(x, (x.mean((1, 2)) > 0.5).long()), batch_size=size)


# ---------------------------------------------------------------------- schedulers


def test_a_scheduler_per_update():
    rates = []
    net = spiking_net()
    optimizer = adam(net, 0.1)
    optimizer.register_step_pre_hook(lambda *args: rates.append(optimizer.param_groups[0]["lr"]))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (1 + update))
    optimizer.register_step_post_hook(lambda *args: scheduler.step())
    trainer = FPTTTrainer(net, optimizer, CE, window=2)
    trainer.train_sequence(*batch(8))
    assert rates == pytest.approx([0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4])


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), 0.1 / 8),
        # Nothing is better than twice the first epoch.
        (lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, 0, 2), 0.1 / 4),
    ],
    ids=["step", "plateau"],
)
def test_a_scheduler_per_epoch(make, rate):
    net = spiking_net()
    optimizer = adam(net, 0.1)
    trainer = FPTTTrainer(net, optimizer, CE, batch_first=True)
    trainer.fit(loader(), epochs=3, scheduler=make(optimizer), progress=False)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


# ---------------------------------------------------------------------- mixed precision


def test_a_grad_scaler_changes_nothing_but_the_range():
    net = spiking_net()
    other = copy.deepcopy(net)
    x, y = batch()
    ones = FPTTTrainer(net, adam(net), CE, grad_scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    others = FPTTTrainer(other, adam(other), CE)
    with spikes(net):
        results = [trainer.train_sequence(x, y) for trainer in (ones, others)]
    assert torch.equal(results[0].loss, results[1].loss)
    assert identical(net.parameters(), other.parameters())  # a power of two
    assert ones.updates == 6


def test_a_scaler_skips_infinite_gradients_and_training_goes_on():
    net = spiking_net()
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38, backoff_factor=1e-30)
    trainer = FPTTTrainer(net, adam(net), lambda output, target: 1e3 * CE(output, target), grad_scaler=scaler)
    before = copies(net.parameters())
    x, y = batch(8)
    assert not trainer.step(x[0], y).updated
    assert (trainer.updates, trainer.skipped) == (0, 1)
    assert identical(net.parameters(), before)
    assert scaler.get_scale() < 1e10
    assert all(trainer.step(x_t, y).updated for x_t in x[1:])
    assert not identical(net.parameters(), before)


@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_a_checkpoint_holds_the_scale(tmp_path, variant):
    def make():
        torch.manual_seed(0)
        net = spiking_net()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=5)
        return FPTTTrainer(net, adam(net), CE, grad_scaler=scaler, variant=variant)

    one, other = make(), make()
    x, y = batch(20)
    for x_t in x[:13]:
        one.step(x_t, y)
    one.save(tmp_path / "a.pt")
    other.load(tmp_path / "a.pt")
    for trainer in (one, other):
        for x_t in x[13:]:
            trainer.step(x_t, y)
    assert one.grad_scaler.get_scale() == other.grad_scaler.get_scale() == 8.0 * 2**4
    assert identical(one.net.parameters(), other.net.parameters())


def test_a_loss_that_is_not_finite_is_not_the_scalers_business():
    net = spiking_net()
    scaler = torch.amp.GradScaler("cpu")
    trainer = FPTTTrainer(net, adam(net), lambda o, t: CE(o, t) * float("nan"), grad_scaler=scaler)
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.train_sequence(*batch())
    with pytest.raises(ValueError, match=r"grad_scaler must be a torch.amp.GradScaler"):
        FPTTTrainer(net, sgd(net), CE, grad_scaler=True)


def liquid():
    layers = [nn.Linear(3, 8), LTCLeaky(init_hidden=True, linear_features=8), nn.Linear(8, 2)]
    return nn.Sequential(*layers, LTCIntegrator(init_hidden=True, linear_features=2))


# ---------------------------------------------------------------------- compilation


@pytest.mark.parametrize("build", [spiking_net, liquid])
def test_a_compiled_network(build):
    net = build()
    other = copy.deepcopy(net)
    compiled = torch.compile(net, backend="eager")
    assert isinstance(compiled, torch._dynamo.OptimizedModule)
    x, y = batch()
    ones, others = (FPTTTrainer(n, adam(n), CE, window=2) for n in (compiled, other))
    with spikes(other):
        others.train_sequence(x, y)
    ones.train_sequence(x, y)
    assert distance(net.parameters(), other.parameters()) < 1e-6
    assert distance([ones.predict(x)], [others.predict(x)]) < 1e-6
    ones.reset()
    assert all(value is None or value.numel() == 0 for value in ones.state.get()["_orig_mod.1"].values())
    torch._dynamo.reset()


# ---------------------------------------------------------------------- DDP


@pytest.mark.slow
def test_two_processes_do_as_one_with_the_doubled_batch(tmp_path):
    import ddp_worker

    worker = Path(__file__).with_name("ddp_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, worker, tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"out.{rank}") for rank in (0, 1)]
    for window in (1, 3):
        net = ddp_worker.build()
        before = copies(net.parameters())
        with spikes(net):
            trainer = ddp_worker.train(net, net.parameters(), window=window)
        alone = [list(net.parameters()), [trainer.regularizer.average_of(p) for p in net.parameters()]]
        assert distance(before, net.parameters()) > 0.01
        for result in ranks:
            for found, expected in zip(result[window], alone, strict=True):
                assert distance(found, expected) < 1e-5
    assert "state of 'module.1', 'module.3'" in ranks[1]["refusal"]
    assert "broadcast_buffers=False" in ranks[1]["refusal"]


# ---------------------------------------------------------------------- data


class Events:
    """Synthetic recordings of different lengths, as tonic data sets give them."""

    sensor_size = (4, 4, 2)

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = np.random.default_rng(index)
        count = 60 + 20 * index
        events = np.zeros(count, dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
        events["x"], events["y"] = generator.integers(0, 4, (2, count))
        events["t"], events["p"] = np.sort(generator.integers(0, 1000 * (5 + index), count)), generator.integers(0, 2)
        return self.transform(events), index % 2


def test_tonic_frames_padded_to_a_batch():
    tonic = pytest.importorskip("tonic")

    def batches(transform):
        return DataLoader(Events(transform), batch_size=4, collate_fn=tonic.collation.PadTensors(batch_first=False))

    to_frame = tonic.transforms.ToFrame(Events.sensor_size, time_window=1000)
    net = nn.Sequential(nn.Flatten(), *spiking_net(inputs=32))
    trainer = FPTTTrainer(net, adam(net), CE)
    raw = next(iter(batches(to_frame)))
    if not raw[0].is_floating_point():
        with pytest.raises(TypeError, match=r"got torch.int.*x.float\(\).*tonic"):
            trainer.train_sequence(*raw)
    as_float = tonic.transforms.Compose([to_frame, lambda frames: frames.astype(np.float32)])
    history = trainer.fit(batches(as_float), epochs=2, progress=False)
    assert trainer.updates > 2 * 2 * 8
    assert np.isfinite(history[-1].loss)


@pytest.mark.parametrize("loss_fn", [SF.ce_rate_loss(), SF.mse_membrane_loss()])
def test_snntorch_losses_and_spikegen(loss_fn):
    lif = [snn.Leaky(beta=0.9, init_hidden=True, threshold=0.3), snn.Leaky(beta=0.9, init_hidden=True, output=True)]
    net = nn.Sequential(nn.Linear(3, 8), lif[0], nn.Linear(8, 2), lif[1])
    trainer = FPTTTrainer(net, adam(net), loss_fn)
    intensity, y = batch(1)
    for coded in (spikegen.rate(intensity[0], num_steps=8), spikegen.latency(intensity[0], num_steps=8)):
        assert coded.shape == (8, 4, 3)
        before = copies(net.parameters())
        assert trainer.train_sequence(coded, y).loss.isfinite()
        assert not identical(net.parameters(), before)
    assert trainer.updates == 16


# ---------------------------------------------------------------------- monitors


@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjelly_monitors_while_training(mode):
    net = nn.Sequential(layer.Linear(3, 8), neuron.LIFNode(v_threshold=0.2), layer.Linear(8, 2), LIF(spikes=False))
    if mode == "m":
        net = net[:3]
    functional.set_step_mode(net, mode)
    trainer = FPTTTrainer(net, adam(net), CE, window=2)
    x, y = batch(6)
    trainer.train_sequence(x, y)
    with monitor.OutputMonitor(net, neuron.LIFNode) as outputs:
        trainer.train_sequence(x, y)
        trainer.reset()
        trainer.step(x[0], y)
        trainer.step(x[1], y, new_sequence=torch.tensor([True, False, False, True]))
        seen = torch.cat([record.reshape(-1, 4, 8) for record in outputs.records])
    assert seen.shape == (8, 4, 8)
    assert 0 < seen.mean() < 1
    assert trainer.updates == 7


# ---------------------------------------------------------------------- loops of others


def fabric():
    from lightning_fabric import Fabric

    own = Fabric(accelerator="cpu", devices=1)

    def save(folder, *parts):
        own.save(folder / "a.pt", dict(zip("no", parts, strict=True)))

    def load(folder, *parts):
        own.load(folder / "a.pt", dict(zip("no", parts, strict=True)))

    return own.setup, own.backward, save, load


def accelerator():
    from accelerate import Accelerator

    own = Accelerator(cpu=True)
    return (
        own.prepare,
        own.backward,
        lambda folder, *_: own.save_state(folder),
        lambda folder, *_: own.load_state(folder),
    )


@pytest.mark.parametrize("regularizer_first", [True, False])
@pytest.mark.parametrize("make", [adam, sgd, lambda net: torch.optim.Adagrad(net.parameters(), lr=0.05)])
@pytest.mark.parametrize(("package", "framework"), [("lightning_fabric", fabric), ("accelerate", accelerator)])
def test_other_frameworks_checkpoints_resume_bit_for_bit(package, framework, make, regularizer_first, tmp_path):
    pytest.importorskip(package)

    def prepared(regularizer_first=True):
        setup, backward, save, load = framework()
        torch.manual_seed(0)
        net = liquid()
        optimizer = make(net)
        regularizer = DynamicRegularizer(optimizer, 0.3, max_grad_norm=1.0) if regularizer_first else None
        model, wrapped = setup(net, optimizer)

        def train(seed):
            torch.manual_seed(seed)
            state = ModelState(net)
            x, y = batch(5)
            for x_t in x:
                wrapped.zero_grad()
                backward(CE(model(x_t), y))
                wrapped.step()
                state.detach()

        def result():
            parameters = list(net.parameters())
            return copies(
                [*parameters, *map(regularizer.average_of, parameters), *map(regularizer.dual_of, parameters)]
            )

        def restore():
            nonlocal regularizer
            load(tmp_path, model, wrapped)
            regularizer = regularizer or DynamicRegularizer(optimizer, 0.3, max_grad_norm=1.0)

        return net, train, lambda: save(tmp_path, model, wrapped), restore, result

    net, train, save, _, result = prepared()
    with spikes(net):
        train(1)
    ModelState(net).reset()
    save()
    train(2)
    if package == "accelerate":
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    net, train, _, restore, resumed = prepared(regularizer_first)
    restore()
    train(2)
    assert identical(resumed(), result())
    assert result()[-1].abs().max() > 0  # a dual


def test_the_trainer_takes_the_optimizer_that_fabric_wraps():
    """As it does Lightning's, which is a wrapper of the same make: see ``test_lightning.py``."""
    pytest.importorskip("lightning_fabric")
    ends = []
    for wrap in (True, False):
        torch.manual_seed(0)
        net = liquid()
        model, optimizer = fabric()[0](net, adam(net)) if wrap else (net, adam(net))
        trainer = FPTTTrainer(model, optimizer, CE, max_grad_norm=1.0)
        for seed in range(3):
            torch.manual_seed(seed)
            trainer.train_sequence(*batch(5))
        parameters = list(net.parameters())
        ends.append(copies([*parameters, *map(trainer.regularizer.average_of, parameters)]))
        assert trainer.updates == 15
        assert trainer.regularizer.dual_of(net[0].weight).abs().max() > 0
    assert identical(*ends)


@pytest.mark.parametrize(
    ("package", "script"), [("lightning_fabric", "fabric_loop"), ("accelerate", "accelerate_loop")]
)
def test_examples_of_other_loops(package, script, run_example):
    pytest.importorskip(package)
    printed = run_example(f"{script}.py", "--smoke", timeout=300)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in printed.splitlines() if "loss " in line]
    assert losses[-1] < losses[0] < 1


@pytest.mark.slow
def test_the_example_of_two_processes(run_example):
    printed = run_example("torchrun_loop.py", "--smoke", processes=2, timeout=300).splitlines()
    accuracies = [float(line.split("accuracy ")[1]) for line in printed if line.startswith("epoch")]
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.85
    assert printed[-1] == "2 processes, 800 updates, equal weights: True"
