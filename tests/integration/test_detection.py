"""Object detection: pictures and boxes are read, matched and scored right; the network learns and spikes."""

import json
import re
import sys

import pytest
import torch

pytestmark = pytest.mark.usefixtures("examples_importable")


def boxes(*rows):
    """Objects of one picture given as (left, upper, right, lower, class, difficult)."""
    from _voc import Boxes

    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return Boxes(table[:, :4], table[:, 4].long(), table[:, 5].bool())


def detections(*rows):
    """Detections of one picture given as (left, upper, right, lower, class, score)."""
    from _boxes import Detections

    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return Detections(table[:, :4], table[:, 4].long(), table[:, 5])


def anchors(maps=((4, 4), (2, 2))):
    from _boxes import anchor_boxes

    return anchor_boxes(torch.tensor([[0.2, 0.2], [0.3, 0.2], [0.5, 0.5], [0.9, 0.6]]), maps)


LEFT, RIGHT, ALL = (0.0, 0.0, 0.4, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)


def test_overlap():
    from _boxes import generalized_overlap, overlap

    a = torch.tensor([LEFT, RIGHT, ALL])
    expected = torch.tensor([[1.0, 0.0, 0.4], [0.0, 1.0, 0.5], [0.4, 0.5, 1.0]])
    torch.testing.assert_close(overlap(a, a), expected)
    general = generalized_overlap(a, torch.tensor([LEFT, LEFT, LEFT]))
    torch.testing.assert_close(general, torch.tensor([1.0, -0.1, 0.4]))  # the hull of left and right is a tenth empty


def test_anchors_lie_about_the_cells():
    found = anchors()
    assert found.shape == (2 * 16 + 2 * 4, 4)
    torch.testing.assert_close(found[0], torch.tensor([0.025, 0.025, 0.225, 0.225]))
    torch.testing.assert_close(found[1], torch.tensor([0.275, 0.025, 0.475, 0.225]))  # to the right first
    torch.testing.assert_close(found[-1], torch.tensor([0.3, 0.45, 1.2, 1.05]))


def test_anchor_sizes_are_typical():
    from _boxes import anchor_sizes

    pictures = [boxes((0, 0, 0.1, 0.2, 0, 0), (0.5, 0.5, 0.9, 0.8, 0, 0)), boxes((0.3, 0.3, 0.4, 0.5, 1, 0))]
    torch.testing.assert_close(anchor_sizes(pictures, 2), torch.tensor([[0.1, 0.2], [0.4, 0.3]]))


def test_targets():
    from _boxes import NEGATIVE, POSITIVE, encode, overlap

    found = anchors()
    objects = boxes((0.3, 0.05, 0.5, 0.25, 2, 0), (0.46, 0.46, 0.5, 0.5, 1, 0), (0.1, 0.5, 0.6, 1, 0, 1))
    target = encode([objects, boxes()], found)
    assert target.shape == (2, len(found), 6)
    assert not target[1].any()
    first = target[0]
    matched = first[:, 5] == 1
    assert {2.0, 1.0} == set(first[matched, 4].tolist())  # also the small one; not the difficult one
    overlaps = overlap(found, objects.places[:2])
    assert (overlaps[matched & (first[:, 4] == 2), 0] >= POSITIVE).all()
    assert (overlaps[first[:, 5] == 0] < NEGATIVE).all()
    between = overlaps[first[:, 5] == -1].max(dim=1).values
    assert ((between >= NEGATIVE) & (between < POSITIVE)).all()


def ideal_output(target, anchors, classes, sure=12.0):
    """What a network without fault would say."""
    size, place = anchors[:, 2:] - anchors[:, :2], target[..., :4]
    shift = ((place[..., :2] + place[..., 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / size
    growth = ((place[..., 2:] - place[..., :2]).clamp(min=1e-3) / size).log()
    there = torch.where(target[..., 5:] == 1, sure, -sure)
    kinds = sure * torch.nn.functional.one_hot(target[..., 4].long(), classes)
    return torch.cat([shift, growth, there, kinds], dim=-1)


def test_detections_of_an_ideal_output_are_the_objects():
    from _boxes import DetectionLoss, average_precision, detect, encode

    objects = [boxes((0.3, 0.05, 0.5, 0.25, 2, 0), (0.1, 0.5, 0.6, 1, 0, 0)), boxes((0.7, 0.2, 0.75, 0.6, 1, 0))]
    found, target = anchors(), encode(objects, anchors())
    output = ideal_output(target, found, 3).requires_grad_()
    loss = DetectionLoss(found)(output, target)
    assert loss < 1e-2
    loss.backward()
    seen = detect(output.detach(), found)
    assert [len(entry.labels) for entry in seen] == [2, 1]
    assert all(average_precision(seen, objects, label) == 1 for label in range(3))
    torch.testing.assert_close(seen[1].places, objects[1].places, atol=1e-4, rtol=0)
    for part, column, change in (("place", 0, 3.0), ("object", 4, -20.0), ("class", 5, 30.0)):  # each term counts
        worse = output.detach().clone()
        worse[..., column] += change
        assert DetectionLoss(found)(worse, target) > loss + 0.01, part


def test_loss_of_pictures_without_objects():
    from _boxes import DetectionLoss, encode

    output = torch.zeros(2, len(anchors()), 8, requires_grad=True)
    loss = DetectionLoss(anchors())(output, encode([boxes(), boxes()], anchors()))
    loss.backward()
    assert loss.isfinite()
    assert (output.grad[..., 4] > 0).all()
    assert not output.grad[..., :4].any()


def test_doubles_are_dropped_within_a_class():
    from _boxes import detect

    found = torch.tensor([LEFT, LEFT, RIGHT, LEFT])
    output = torch.zeros(1, 4, 7)
    output[0, :, 4] = torch.tensor([1.0, 3.0, 2.0, 0.5])
    output[0, :, 5] = torch.tensor([9.0, 9.0, 9.0, -9.0])
    (seen,) = detect(output, found)
    assert seen.labels.tolist() == [0, 0, 1]
    torch.testing.assert_close(seen.places, torch.tensor([LEFT, RIGHT, LEFT]))
    (sure,) = detect(output, found, least=0.9)
    assert len(sure.labels) == 1
    (all_of_them,) = detect(output, found, same=1.1)
    assert len(all_of_them.labels) == 4


def test_average_precision():
    from _boxes import average_precision

    objects = [boxes((*LEFT, 0, 0), (*RIGHT, 0, 0)), boxes((*ALL, 1, 0))]
    seen = [detections((*LEFT, 0, 0.9), (*LEFT, 0, 0.8), (*RIGHT, 0, 0.6)), detections((*ALL, 0, 0.7))]
    # Surest first: right, a double, a wrong class, right. Precision 1 up to recall 1/2, then 2/4.
    assert average_precision(seen, objects, 0) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert average_precision(seen, objects, 1) == 0
    assert average_precision(seen, objects, 2) != average_precision(seen, objects, 2)  # nan: no such object
    assert average_precision([detections(), detections()], objects, 0) == 0
    difficult = [boxes((*LEFT, 0, 1), (*RIGHT, 0, 0)), objects[1]]
    # Neither found nor missed: the object on the left and what was found there. Then a wrong one, then a right one.
    assert average_precision(seen, difficult, 0) == pytest.approx(0.5)
    close = [detections((0.0, 0.0, 0.4, 0.7, 0, 0.9))]
    assert average_precision(close, [boxes((*LEFT, 0, 0))], 0) == 1
    assert average_precision(close, [boxes((*LEFT, 0, 0))], 0, least=0.8) == 0


def test_mirrored_pictures_and_boxes():
    from detection import mirrored

    x = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).view(2, 3, 2, 4)
    there = [boxes((*LEFT, 0, 0)), boxes((*LEFT, 0, 0))]
    y, seen = mirrored(x, there, torch.tensor([True, False]))
    assert torch.equal(y[0], x[0].flip(2))
    assert torch.equal(y[1], x[1])
    torch.testing.assert_close(seen[0].places, torch.tensor([[0.6, 0.0, 1.0, 1.0]]))
    assert torch.equal(seen[1].places, there[1].places)


def test_zoomed_pictures_and_boxes():
    """A bright rectangle is where its box says, whatever the scale and shift; what is mostly outside is gone."""
    from detection import zoomed

    x = torch.zeros(64, 3, 64, 96, dtype=torch.uint8)
    x[:, :, 16:32, 24:60] = 200
    there = [boxes((24 / 96, 16 / 64, 60 / 96, 32 / 64, 1, 0))] * 64
    y, seen = zoomed(x, there, torch.Generator().manual_seed(0))
    areas = []
    for picture, entry in zip(y, seen, strict=True):
        assert entry.labels.tolist() == [1]
        left, upper, right, lower = (entry.places[0] * torch.tensor([96, 64, 96, 64])).tolist()
        bright = picture[0] > picture.max() / 2
        assert abs(bright.sum().item() - (right - left) * (lower - upper)) < 0.1 * bright.sum().item() + 20
        ys, xs = torch.nonzero(bright, as_tuple=True)
        assert abs(xs.float().mean() + 0.5 - (left + right) / 2) < 1
        assert abs(ys.float().mean() + 0.5 - (upper + lower) / 2) < 1
        areas.append(bright.sum().item())
    assert max(areas) > 2.5 * min(areas)
    assert len({int(picture.max()) for picture in y}) > 10
    corner = [boxes((0.0, 0.0, 0.02, 0.02, 0, 0))] * 64
    _, gone = zoomed(x, corner, torch.Generator().manual_seed(0))
    assert 0 < sum(len(entry.places) for entry in gone) < 64


def test_pictures_in_vocs_layout(tmp_path):
    from _voc import voc, write_synthetic_voc

    with pytest.raises(FileNotFoundError, match=r"bccd lacks VOCdevkit/VOC2007/ImageSets/Main/trainval.txt.*FPTT_DATA"):
        voc("bccd", tmp_path, (96, 64))
    write_synthetic_voc(tmp_path)
    train, test, names = voc("bccd", tmp_path, (96, 64))
    assert names == ["dot", "field"]
    assert train.x.shape == (24, 3, 64, 96)
    assert len(test.boxes) == len(test.x) == 8
    for picture, there in zip(train.x, train.boxes, strict=True):
        assert sorted(there.labels.tolist()) == [0, 0, 1]
        assert not there.difficult.any()
        for place, label in zip(there.places, there.labels, strict=True):
            x, y = ((place[:2] + place[2:]) / 2 * torch.tensor([96, 64])).long()
            red, _, blue = picture[:, y, x].tolist()
            assert red > blue or label == 1  # a dot may lie upon a field, not the other way round
    picture = tmp_path / "bccd" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000003.jpg"
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks JPEGImages/000003.jpg"):
        voc("bccd", tmp_path, (96, 64))


def test_boxes_without_area_are_left_out(tmp_path):
    from _voc import voc, write_synthetic_voc

    write_synthetic_voc(tmp_path)
    file = tmp_path / "bccd" / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml"
    file.write_text(re.sub("<xmax>.*?</xmax>", "<xmax>0</xmax>", file.read_text(), count=1))
    train, _, _ = voc("bccd", tmp_path, (32, 32))
    assert [len(there.labels) for there in train.boxes[:3]] == [3, 2, 3]
    assert train.boxes[1].labels.tolist() == [0, 0]


def test_voc_trains_on_both_years(tmp_path):
    import shutil

    from _voc import voc, write_synthetic_voc

    write_synthetic_voc(tmp_path)
    year = tmp_path / "voc" / "VOCdevkit" / "VOC2007"
    shutil.copytree(tmp_path / "bccd" / "VOCdevkit" / "VOC2007", year)
    shutil.copytree(year, year.with_name("VOC2012"))
    annotation = year / "Annotations" / "000000.xml"
    annotation.write_text(annotation.read_text().replace("</name>", "</name><difficult>1</difficult>", 1))
    train, test, _ = voc("voc", tmp_path, (32, 32))
    assert (len(train.x), len(test.x)) == (48, 8)
    assert train.boxes[0].difficult.tolist() == [True, False, False]
    assert not train.boxes[24].difficult.any()


@pytest.mark.parametrize("neuron", ["ltc", "alif", "lif"])
def test_both_libraries_give_the_same_network(neuron):
    from models_detection import SpikingTinyYOLO

    x = torch.rand(4, 2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    outputs = []
    for library in ("snntorch", "spikingjelly"):
        torch.manual_seed(0)
        net = SpikingTinyYOLO(neuron, library, 2, width=0.125)
        outputs.append(torch.stack([net(x_t) for x_t in x]))
    torch.testing.assert_close(*outputs)
    assert outputs[0].shape == (4, 2, 3 * (4 * 6 + 2 * 3), 7)
    assert outputs[0][-1, ..., 4].sigmoid().mean() < 0.1  # objects are rare


def test_rows_of_the_output_are_those_of_the_anchors():
    from models_detection import SpikingTinyYOLO

    net = SpikingTinyYOLO("ltc", "snntorch", 2, width=0.125)
    maps = torch.zeros(1, 3, 7, 4, 6)
    maps[0, 1, 4, 2, 5] = 1.0  # second size, row 2, column 5
    assert net._rows(maps.flatten(1, 2))[0, 24 + 2 * 6 + 5, 4] == 1


def test_networks_that_cannot_be(monkeypatch, capsys):
    import detection
    from models_detection import SpikingTinyYOLO

    with pytest.raises(ValueError, match="ltc, alif or lif"):
        SpikingTinyYOLO("lstm", "snntorch", 2)
    monkeypatch.setattr(sys, "argv", ["detection.py", "--smoke", "--size", "100", "64"])
    with pytest.raises(SystemExit):
        detection.main()
    assert "multiples of 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--library spikingjelly --gate-norm",
        "--method bptt --neuron alif",
        "--norm step --library spikingjelly",
        "--maps 3 --augment",
        "--rectifiers --presentations 1 --method tbptt",
    ],
)
def test_smoke(command, run_example, tmp_path):
    printed = run_example("detection.py", "--smoke", "--out", "run", "--epochs", "4", *command.split())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["metric"] == "mAP50"
    assert result["final"]["loss"] < result["records"][0]["loss"]
    rates = result["final"]["firing_rates"]
    assert bool(rates) == ("--rectifiers" not in command)
    assert all(0.005 < rate < 0.95 for rate in rates.values()), result["final"]
    assert result["final"]["test"] > 0
    assert re.search(r"average precision: dot [\d.]+ %, field [\d.]+ %", printed)
    assert (tmp_path / "run" / "detections.png").read_bytes().startswith(b"\x89PNG")
