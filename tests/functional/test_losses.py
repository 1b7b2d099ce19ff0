"""Loss terms of one step: ramp, divergence, and the class-distribution table against a plain loop."""

import pytest
import torch

from fptt_plugin.functional import ClassDistribution, constant_ramp, divergence, linear_ramp

CLASSES = 4


class PlainTable:
    """The authors' rule by loops: per class, the first misclassified sample overwrites the row."""

    def __init__(self, steps):
        self.rows = [[[1 / CLASSES] * CLASSES for _ in range(CLASSES)] for _ in range(steps)]

    def loss(self, t, logits, labels):
        total = 0.0
        for row, label in zip(logits, labels, strict=True):
            log_p = torch.log_softmax(row, 0)
            total += -sum(q * p.item() for q, p in zip(self.rows[t][label], log_p, strict=True)) / len(labels)
        for label in range(CLASSES):
            for row, truth in zip(logits, labels, strict=True):
                if truth == label and row.argmax() != label:
                    self.rows[t][label] = torch.softmax(row, 0).tolist()
                    break
        return total


def batch(size=12, dtype=torch.float64):
    return 2 * torch.randn(size, CLASSES, dtype=dtype), torch.randint(CLASSES, (size,))


@pytest.mark.parametrize("size", [1, 5, 40])
def test_table_follows_the_authors_rule(size):
    table, plain = ClassDistribution(), PlainTable(steps=3)
    for _ in range(4):
        for t in range(3):
            logits, labels = batch(size)
            assert table.loss(t, logits, labels).item() == pytest.approx(plain.loss(t, logits, labels.tolist()))
    assert torch.allclose(table.table[:3], torch.tensor(plain.rows, dtype=torch.float64))
    assert not torch.allclose(table.table[:3], torch.tensor(1 / CLASSES, dtype=torch.float64))


def test_first_misclassified_sample_of_a_class_wins_and_a_right_one_changes_nothing():
    table = ClassDistribution()
    right, wrong, later = torch.eye(CLASSES)[[1, 2, 3]].mul(3).unbind()
    table.loss(0, torch.stack([right, wrong, later]), torch.tensor([1, 1, 1]))
    assert torch.allclose(table.table[0, 1], torch.softmax(wrong, 0))
    assert (table.table[0, [0, 2, 3]] == 1 / CLASSES).all()


def test_row_is_read_before_it_is_written_and_only_at_its_step():
    table = ClassDistribution()
    logits, labels = torch.tensor([[0.0, 4.0, 0.0, 0.0]]), torch.tensor([0])
    uniform = divergence(logits, torch.full((1, CLASSES), 1 / CLASSES))
    first, second, elsewhere = (table.loss(t, logits, labels) for t in (0, 0, 1))
    assert torch.allclose(first, uniform)
    assert second < first
    assert torch.allclose(elsewhere, uniform)


def test_a_batch_may_be_scored_without_moving_the_estimate():
    table = ClassDistribution()
    table.loss(0, *batch())
    before, (logits, labels) = table.table.clone(), batch()
    value = table.loss(0, logits, labels, update=False)
    assert torch.equal(table.table, before)
    assert torch.equal(table.loss(0, logits, labels), value)
    assert not torch.equal(table.table, before)


def test_table_grows_keeps_its_rows_and_starts_over_for_another_number_of_classes():
    table = ClassDistribution()
    logits, labels = batch()
    table.loss(0, logits, labels)
    row = table.table[0].clone()
    table.loss(7, logits, labels)
    assert len(table.table) >= 8
    assert torch.equal(table.table[0], row)
    assert (table.table[3] == 1 / CLASSES).all()
    table.loss(0, logits[:, :2], labels % 2)
    assert table.table.shape[1:] == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_table_follows_the_dtype_of_the_scores(dtype):
    table = ClassDistribution()
    table.loss(0, *batch())
    before = table.table.clone()
    logits, labels = batch(dtype=dtype)
    assert table.loss(1, logits, labels).dtype == table.table.dtype == dtype
    assert torch.allclose(table.table[0].double(), before[0], atol=0.01)


def test_gradient_reaches_the_scores_and_not_the_table():
    table = ClassDistribution()
    logits, labels = batch()
    logits.requires_grad_()
    loss = table.loss(0, logits, labels)
    table.loss(0, logits.detach() + 1, labels)  # a write after the read must not disturb the first graph
    loss.backward()
    # d/dz of cross-entropy: softmax minus target, over the batch size.
    expected = (torch.softmax(logits, 1) - 1 / CLASSES) / len(labels)
    assert torch.allclose(logits.grad, expected)
    assert not table.table.requires_grad


def test_state_dict_round_trip_copies():
    table, twin = ClassDistribution(), ClassDistribution()
    table.loss(0, *batch())
    twin.load_state_dict(table.state_dict())
    assert torch.equal(twin.table, table.table)
    kept = twin.table.clone()
    table.loss(0, *batch())
    assert not torch.equal(table.table, kept)
    assert torch.equal(twin.table, kept)


def test_divergence_sums_over_classes_unless_told():
    logits, labels = batch()
    target = torch.softmax(torch.randn_like(logits), 1)
    assert torch.allclose(divergence(logits, target), torch.nn.functional.cross_entropy(logits, target))
    assert torch.allclose(divergence(logits, target, mean_over_classes=True) * CLASSES, divergence(logits, target))
    tables = ClassDistribution(), ClassDistribution(mean_over_classes=True)
    paper, authors = (table.loss(0, logits, labels) for table in tables)
    assert torch.allclose(authors * CLASSES, paper)


def test_ramps():
    assert [linear_ramp(t, 5) for t in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert linear_ramp(0, 1) == linear_ramp(100, None) == constant_ramp(0, 10) == 1.0
