"""The checkpoint as a file: what writing leaves behind, and which files are refused before anything changes."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from nets import Before, adam, batch, identical, spiking_net
from torch import nn

from fptt_plugin import FPTTTrainer, TruncatedBPTT
from fptt_plugin.errors import CheckpointError

CE = nn.CrossEntropyLoss()
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, links and signals")


def make(hidden=8, optimizer=adam, **options):
    net = spiking_net(hidden=hidden)
    trainer = FPTTTrainer(net, optimizer(net), CE, readout="mean", **options)
    trainer.train_sequence(*batch())
    return trainer


# ---------------------------------------------------------------------- writing


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
@pytest.mark.parametrize("link", [False, True])
def test_the_permissions_of_the_old_file_stay(tmp_path, mode, link):
    trainer, file = make(), tmp_path / "a.pt"
    trainer.save(file)
    file.chmod(mode)
    path = tmp_path / "link.pt" if link else file
    if link:
        path.symlink_to("a.pt")
    trainer.train_sequence(*batch())
    trainer.save(path)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert path.is_symlink() == link
    other = make()
    other.load(path)
    assert identical(other.net.parameters(), trainer.net.parameters())


@posix
def test_the_file_is_not_readable_for_others_while_it_is_written(tmp_path, monkeypatch):
    trainer, file, seen = make(), tmp_path / "a.pt", []
    trainer.save(file)
    file.chmod(0o600)
    genuine = torch.save

    def look(content, output):
        seen.extend(stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir() if p.name.endswith(".tmp"))
        genuine(content, output)

    monkeypatch.setattr(torch, "save", look)
    trainer.save(file)
    assert seen == [0o600]


@posix
@pytest.mark.parametrize("planted", ["link", "file", "dangling"])
def test_nothing_is_written_through_what_waits_at_the_temporary_name(tmp_path, monkeypatch, planted):
    trainer, file, victim = make(), tmp_path / "a.pt", tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 16)
    opened = []
    genuine = os.open
    monkeypatch.setattr(os, "open", lambda path, *args: opened.append(path) or genuine(path, *args))
    trainer.save(file)
    trap = opened[0]
    if planted == "file":
        trap.write_text("precious")
        victim = trap
    else:
        trap.symlink_to(victim if planted == "link" else tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        trainer.save(file)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_temporary_names_differ(tmp_path, monkeypatch):
    names, genuine = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *args: names.append(path.name) or genuine(path, *args))
    trainer = make()
    for _ in range(3):
        trainer.save(tmp_path / "a.pt")
    assert len(set(names)) == 3


def test_threads_that_save_to_one_path(tmp_path):
    file, errors = tmp_path / "a.pt", []
    trainers, reader = [make(hidden=60) for _ in range(3)], make(hidden=60)
    trainers[0].save(file)

    def guarded(work):
        try:
            for _ in range(25):
                work()
        except BaseException as error:
            errors.append(error)

    jobs = [lambda t=t: t.save(file) for t in trainers] + [lambda: reader.load(file)]
    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert os.listdir(tmp_path) == ["a.pt"]
    reader.load(file)
    assert any(identical(reader.net.parameters(), trainer.net.parameters()) for trainer in trainers)


@posix
def test_a_killed_process_leaves_no_litter_for_long(tmp_path):
    script = textwrap.dedent(
        """
        import sys, torch
        from torch import nn
        from fptt_plugin import checkpoint
        content = {"net": torch.rand(3_000_000)}
        print("ready", flush=True)
        while True:
            checkpoint.save(content, sys.argv[1])
        """
    )
    file = tmp_path / "run [1].pt"
    litter = 0
    for delay in (0.03, 0.05, 0.08, 0.11, 0.02, 0.04):
        process = subprocess.Popen([sys.executable, "-c", script, file], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        litter += any(name.endswith(".tmp") for name in os.listdir(tmp_path))
    assert litter > 0
    (tmp_path / "run [1].pt.elsewhere-1.0000000000000000.tmp").write_text("another machine's")
    (tmp_path / "notes.tmp").write_text("the user's")
    make().save(file)
    assert sorted(os.listdir(tmp_path)) == [
        "notes.tmp",
        "run [1].pt",
        "run [1].pt.elsewhere-1.0000000000000000.tmp",
    ]


@posix
@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_full_disk_says_so_and_leaves_the_old_file(tmp_path, room):
    """A limit on file sizes stands for the full disk."""
    script = textwrap.dedent(
        """
        import os, resource, sys, torch
        from fptt_plugin import checkpoint
        file = sys.argv[1]
        checkpoint.save({"net": 1}, file)
        old = open(file, "rb").read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
        try:
            checkpoint.save({"net": torch.rand(50_000)}, file)
        except OSError as error:
            print(error.errno)
        assert open(file, "rb").read() == old
        assert os.listdir(os.path.dirname(file)) == ["a.pt"]
        """
    )
    command = [sys.executable, "-c", script, tmp_path / "a.pt", str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(errno.EFBIG)], done.stderr


def test_a_disk_that_fills_up_at_the_end(tmp_path, monkeypatch):
    trainer, file = make(), tmp_path / "a.pt"
    trainer.save(file)
    old = file.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(file)
    assert file.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_folder_is_no_file(tmp_path):
    trainer = FPTTTrainer(net := spiking_net(), adam(net), nn.CrossEntropyLoss())
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path} is a folder: name a file in it, '{tmp_path}/checkpoint.pt'"
    ):
        trainer.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob("*.tmp"))


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_bits_never_change_a_value(tmp_path, seed):
    trainer, file = make(hidden=40), tmp_path / "a.pt"
    trainer.save(file)
    good, draw, refused = file.read_bytes(), random.Random(seed), 0
    expected = [*trainer.net.parameters(), *map(trainer.regularizer.average_of, trainer.net.parameters())]
    other = make(hidden=40)
    for _ in range(25):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(bad))
        before = Before(other)
        try:
            other.load(file)
        except CheckpointError:
            refused += 1
            assert before.differs() == []
        else:  # a bit that carries no value, as in the file's dates
            found = [*other.net.parameters(), *map(other.regularizer.average_of, other.net.parameters())]
            assert identical(found, expected)
    assert refused > 12


def test_a_checksum_is_written_whatever_the_users_settings(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        trainer = make()
        trainer.save(tmp_path / "a.pt")
        assert torch.serialization.get_crc32_options() is False
    finally:
        torch.serialization.set_crc32_options(before)
    make().load(tmp_path / "a.pt")


MALFORMED = {
    "counters missing": lambda c: c["trainer"].pop("counters"),
    "counters negative": lambda c: c["trainer"].update(counters=[1, -1, 0]),
    "progress short": lambda c: c["trainer"].update(progress=[1]),
    "shape of a step is a string": lambda c: c["trainer"]["progress"].__setitem__(4, "no shape"),
    "readout missing": lambda c: c["trainer"].pop("readout"),
    "readout's count missing": lambda c: c["trainer"]["readout"].pop("count"),
    "table is a string": lambda c: c["trainer"].update(distribution={"table": "x"}),
    "state of one neuron missing": lambda c: c["trainer"]["state"].pop("1"),
    "state of a neuron is a number": lambda c: c["trainer"]["state"].update({"1": 3}),
    "regularizer missing": lambda c: c["trainer"].pop("regularizer"),
    "alpha is a string": lambda c: c["trainer"]["regularizer"].update(alpha="x"),
    "beta out of range": lambda c: c["trainer"]["regularizer"].update(beta=3.0),
    "rho missing": lambda c: c["trainer"]["regularizer"].pop("rho"),
    "updates not a number": lambda c: c["trainer"]["regularizer"].update(updates=None),
    "scaler of another kind": lambda c: c["trainer"].update(grad_scaler={"scale": 1.0}),
    "scaler missing": lambda c: c["trainer"].pop("grad_scaler"),
    "history without scores": lambda c: c["trainer"]["fit"].update(history=[{"epoch": 1}]),
    "best without a file": lambda c: c["trainer"]["fit"].update(best=[0.5]),
    "one parameter less in the names": lambda c: c["trainer"]["parameters"][0].pop(),
    "weight is a list": lambda c: c["net"].update({"0.weight": [[0.0]]}),
    "optimizer state of another shape": lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "optimizer state of a weight it has not": lambda c: c["optimizer"]["state"].update({99: {}}),
    "optimizer state empty": lambda c: c["optimizer"].update(state={}),
    "an average missing": lambda c: c["optimizer"]["state"][1].pop("fptt_average"),
    "a dual missing": lambda c: c["optimizer"]["state"][2].pop("fptt_dual"),
    "an average of another shape": lambda c: c["optimizer"]["state"][0].update(fptt_average=torch.zeros(3)),
    "groups missing": lambda c: c["optimizer"].pop("param_groups"),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_file_with_a_missing_or_malformed_entry_changes_nothing(tmp_path, change):
    trainer, file = make(grad_scaler=torch.amp.GradScaler("cpu")), tmp_path / "a.pt"
    trainer.save(file)
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)
    other = make(grad_scaler=torch.amp.GradScaler("cpu"))
    other.grad_scaler.update(8.0)
    before, counters = Before(other), (other.steps, other.updates, other.regularizer.updates, list(other.history))
    with pytest.raises(CheckpointError):
        other.load(file)
    assert before.differs() == []
    assert (other.steps, other.updates, other.regularizer.updates, list(other.history)) == counters
    assert other.grad_scaler.get_scale() == 8.0
    other.train_sequence(*batch())
    assert all(parameter.isfinite().all() for parameter in other.net.parameters())


def square():
    return spiking_net(inputs=3, hidden=3, classes=3)


def permuted(order):
    def optimizer(net):
        parameters = list(net.parameters())
        return torch.optim.Adam([parameters[i] for i in order])

    return optimizer


@pytest.mark.parametrize("build", [square, lambda: spiking_net(classes=3)], ids=["of the same shapes", "of others"])
@pytest.mark.parametrize("order", [(2, 3, 0, 1), (0, 3, 2, 1), (2, 1, 0, 3)])
def test_parameters_in_another_order_are_refused_by_name(tmp_path, order, build):
    net, file = build(), tmp_path / "a.pt"
    trainer = FPTTTrainer(net, permuted((0, 1, 2, 3))(net), CE, readout="mean")
    trainer.train_sequence(*batch(classes=3))
    trainer.save(file)
    other_net = build()
    other = FPTTTrainer(other_net, permuted(order)(other_net), CE, readout="mean")
    before = Before(other)
    with pytest.raises(CheckpointError, match=r"another order: '[02].(weight|bias)' where the file has '[02]"):
        other.load(file)
    assert before.differs() == []


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (torch.optim.Adam, torch.optim.AdamW),
        (torch.optim.AdamW, torch.optim.Adam),
        (torch.optim.AdamW, torch.optim.NAdam),
    ],
)
def test_another_optimizer_class_is_refused(tmp_path, saved, loaded):
    make(optimizer=lambda net: saved(net.parameters())).save(tmp_path / "a.pt")
    other = make(optimizer=lambda net: loaded(net.parameters(), weight_decay=0.5))
    before = Before(other)
    with pytest.raises(CheckpointError, match=loaded.__name__):
        other.load(tmp_path / "a.pt")
    assert before.differs() == []
    assert other.optimizer.param_groups[0]["weight_decay"] == 0.5


def old_format(content):
    """As version 0.1 wrote it: averages by position, no names, no epochs."""
    trainer, state = content["trainer"], content["optimizer"]["state"]
    averages = {i: entry.pop("fptt_average") for i, entry in state.items()}
    duals = {i: entry.pop("fptt_dual") for i, entry in state.items()}
    for entry in state.values():
        del entry["fptt_norm"]
    trainer["regularizer"] |= {"averages": averages, "duals": duals}
    for group in content["optimizer"]["param_groups"]:
        for key in [key for key in group if key.startswith("fptt_")]:
            del group[key]
    for key in ("optimizer", "parameters", "fit"):
        del trainer[key]


@pytest.mark.parametrize("again", [False, True])
def test_a_file_of_version_0_1_loads_and_may_be_saved_again_at_once(tmp_path, again):
    trainer, file = make(), tmp_path / "a.pt"
    trainer.save(file)
    content = torch.load(file, weights_only=True)
    old_format(content)
    torch.save(content, file)
    other = make()
    other.load(file)
    if again:
        other.save(file)
        other = make()
        other.load(file)
    x, y = batch()
    for one in (trainer, other):
        one.train_sequence(x, y)
    for find in (trainer.regularizer.average_of, trainer.regularizer.dual_of):
        found = [getattr(other.regularizer, find.__name__)(p) for p in other.net.parameters()]
        assert identical(found, map(find, trainer.net.parameters()))
    assert identical(other.net.parameters(), trainer.net.parameters())


def test_truncated_bptt_refuses_a_malformed_state_as_such():
    net = spiking_net()
    with pytest.raises(CheckpointError, match="missing"):
        TruncatedBPTT(net, adam(net), CE).load_state_dict({"counters": [0, 0, 0]})


# ---------------------------------------------------------------------- when


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 3}, {"window": 2, "update_every": 4}])
def test_can_save_says_whether_saving_is_possible(tmp_path, options):
    trainer, seen = make(**options), []
    for i in range(8):
        x, y = batch(1)
        trainer.step(x[0], y if i < 4 else None)  # then the labels have stopped
        seen.append(trainer.can_save)
        if trainer.can_save:
            trainer.save(tmp_path / "a.pt")
        else:
            with pytest.raises(RuntimeError, match="can_save"):
                trainer.save(tmp_path / "a.pt")
    expected = {1: range(8), 3: [2, 5], 2: [3, 5, 7]}[options["window"]]
    assert [i for i, can_save in enumerate(seen) if can_save] == list(expected)
    trainer.reset()
    assert trainer.can_save
    with trainer.averaged_weights():
        assert not trainer.can_save
