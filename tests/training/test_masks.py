"""Labels of some samples at some steps."""

import copy

import pytest
import torch
from nets import Before, adam, batch, copies, identical, spikes, spiking_net, twins
from torch import nn

from fptt_plugin import FPTTTrainer

CE = nn.CrossEntropyLoss()
SOME = torch.tensor([True, False, True, False])


@pytest.mark.parametrize("options", [{}, {"window": 3, "loss_every": 1}], ids=str)
def test_unlabeled_rows_add_nothing_to_the_loss(options):
    ones, others = twins(options)
    others.objective.loss_fn = lambda output, target: CE(output[SOME], target[SOME])
    for _ in range(6):
        x, y = batch(1)
        wild = torch.where(SOME, y, -7)  # never looked at
        with spikes(ones.net):
            results = ones.step(x[0], wild, mask=SOME), others.step(x[0], y)
        assert torch.equal(results[0].loss, results[1].loss)
        assert results[0].output.shape == (4, 2)
    assert identical(ones.net.parameters(), others.net.parameters())
    assert ones.updates == 6 // options.get("window", 1)


def test_a_mask_without_labels_is_a_step_without_target():
    ones, others = twins({"window": 2, "loss_every": 1})
    none = torch.zeros(4).bool()
    for step in range(8):
        x, y = batch(1)
        result = ones.step(x[0], y, mask=none if step % 4 else None)
        assert (result.loss is None) == (step % 4 > 0)
        others.step(x[0], None if step % 4 else y)
    assert identical(ones.net.parameters(), others.net.parameters())
    assert ones.updates == 2


@pytest.mark.parametrize("batch_first", [False, True])
def test_masks_of_sequences(batch_first):
    x, _ = batch(6)
    y, mask = torch.randint(2, (6, 4)), torch.rand(6, 4) > 0.5
    mask[2] = False
    ones, others = twins({"batch_first": batch_first, "targets": "step"})
    turn = (lambda tensor: tensor.transpose(0, 1)) if batch_first else (lambda tensor: tensor)
    assert ones.train_sequence(turn(x), turn(y), turn(mask)).updates == 5
    for x_t, y_t, rows in zip(x, y, mask, strict=True):
        others.step(x_t, y_t, mask=rows)
    assert identical(ones.net.parameters(), others.net.parameters())


def test_mask_of_sequences_with_a_label_each():
    ones, others = twins()
    x, y = batch()
    before = copies(ones.net.parameters())
    result = ones.train_sequence(x, y, torch.zeros(4).bool())
    assert result.updates == 0
    assert result.loss.isnan()
    assert identical(ones.net.parameters(), before)
    ones.train_sequence(x, y, SOME)
    others.train_sequence(x, y, SOME.expand(6, 4))
    assert identical(ones.net.parameters(), others.net.parameters())
    assert not identical(ones.net.parameters(), before)


def test_targets_of_unlabeled_samples_may_be_nan():
    net = spiking_net(classes=1)
    trainer = FPTTTrainer(net, adam(net), nn.MSELoss())
    x, y = torch.rand(6, 4, 3), torch.rand(6, 4, 1)
    y[:, 1] = float("nan")
    mask = y[..., 0].isfinite()
    assert trainer.train_sequence(x, y, mask).loss.isfinite()
    assert trainer.step(x[0], y[0], mask=mask[0]).updated
    with pytest.raises(ValueError, match=r"non-finite values: pass None.*mask=y_t.isfinite\(\)"):
        trainer.step(x[0], y[0])
    with pytest.raises(ValueError, match="non-finite values: pass a mask"):
        trainer.train_sequence(x, y, torch.ones(6, 4).bool())


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (torch.ones(3).bool(), ValueError, r"of shape \(3,\) does not fit a batch of 4"),
        (torch.ones(4), TypeError, r"must be a boolean tensor, got torch.float32: .*\.bool\(\)"),
        ({"a": torch.ones(4).bool()}, TypeError, "must be a boolean tensor, got dict"),
        ("all", TypeError, "has a str where a tensor belongs"),
    ],
)
def test_bad_rows_change_nothing(rows, error, words):
    trainer = twins()[0]
    x, y = batch(1)
    trainer.step(x[0], y)
    before = Before(trainer)
    for name in ("mask", "new_sequence"):
        with pytest.raises(error, match=f"{name} {words}"):
            trainer.step(x[0], y, **{name: rows})
    with pytest.raises((ValueError, TypeError), match="mask"):
        trainer.train_sequence(x, y, rows)
    assert before.differs() == []


@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("stepwise", [False, True])
def test_labels_to_ignore_are_masked(ignore_index, stepwise):
    loss = nn.CrossEntropyLoss(ignore_index=ignore_index)
    nets = [spiking_net(classes=3)]
    nets.append(copy.deepcopy(nets[0]))
    ones, others = (FPTTTrainer(net, adam(net), loss) for net in nets)
    for _ in range(3):
        x, y = batch()
        y, mask = (y.expand(6, 4), torch.rand(6, 4) < 0.5) if stepwise else (y, SOME)
        y = torch.where(mask, 2 * y, ignore_index)
        with spikes(ones.net):
            results = ones.train_sequence(x, y), others.train_sequence(x, y, mask & (y != ignore_index))
        assert torch.equal(results[0].loss, results[1].loss)
        y = torch.where(SOME, 2 * batch()[1], ignore_index)
        steps = ones.step(x[0], y), others.step(x[0], y, SOME & (y != ignore_index))
        assert torch.equal(steps[0].loss, steps[1].loss)
    assert identical(ones.net.parameters(), others.net.parameters())
    x, y = batch()
    padded = torch.cat([2 * y[:2], torch.full((2,), ignore_index)])
    padded[1] = 0
    assert ones.evaluate([(x, padded)]) == ones.evaluate([(x[:, :2], padded[:2])])


def test_a_sequence_that_ends_in_padding():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    x, y = batch()
    y = y.expand(6, 4).clone()
    y[4:] = -100
    assert trainer.train_sequence(x, y).updates == 4
    assert trainer.step(x[0], torch.full((4,), -100)).loss is None


@pytest.mark.parametrize("stepwise", [False, True])
def test_labels_to_ignore_beside_a_mask(stepwise):
    ones, others = twins()
    x, y = batch()
    y = y.expand(6, 4) if stepwise else y
    y = torch.where(torch.tensor([True, True, False, False]), y, -100)
    results = ones.train_sequence(x, y, SOME), others.train_sequence(x, y, torch.tensor([True, False, False, False]))
    assert torch.equal(results[0].loss, results[1].loss)
    assert identical(ones.net.parameters(), others.net.parameters())


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("weight", [None, torch.ones(200)])
@pytest.mark.parametrize("index", [-100, 156])
def test_labels_of_eight_bits_are_not_ignored_by_their_last_digits(index, weight, stepwise):
    """-100 is 156 in eight bits."""
    x = torch.rand(5, 4, 3)
    y = torch.full((5, 4) if stepwise else (4,), 156)
    y[..., 0] = 3
    figures = []
    for dtype in (torch.int64, torch.uint8):
        torch.manual_seed(0)
        trainer = FPTTTrainer(
            net := spiking_net(classes=200), adam(net), nn.CrossEntropyLoss(weight, ignore_index=index)
        )
        record = trainer.fit([(x, y.to(dtype))], progress=False)[0]
        trainer.reset()
        steps = trainer.step(x[0], y[0].to(dtype) if stepwise else y.to(dtype)).loss.item()
        figures.append([record.loss, record.decision_loss, record.train_score, steps])
    assert figures[0] == figures[1]
