"""Object detection with a spiking tiny YOLO v4, on Pascal VOC or in its layout.

    python examples/detection.py --device cuda                                  # VOC 07 + 12, full size
    python examples/detection.py --dataset bccd --size 160 128 --width 0.25 \\
        --presentations 4 --batch-size 8 --lr 0.003 --epochs 16 --alpha 0.01    # blood cells, minutes on a CPU

The picture is the input current at every step; boxes are read out and the weights move at every step. Figures are mean
average precision at an overlap of one half, on the test pictures. ``detections.png`` in the run's folder shows some.
Training pictures are mirrored at random, and with ``--augment`` scaled, shifted and made brighter or darker; there are
no mosaics. ``--maps 3`` finds objects of ten pixels, for which the two maps of tiny YOLO are too coarse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _boxes import DetectionLoss, Detections, anchor_boxes, anchor_sizes, average_precision, detect, encode
from _data import in_order, shuffled
from _experiment import Experiment, no_score, run
from _options import make_parser, parse
from _voc import VOC_SETS, Boxes, Pictures, voc, write_synthetic_voc
from models import NORMS, Normalization
from models_conv import add_map_options, map_parts
from models_detection import ANCHORS, STRIDES, SpikingTinyYOLO
from torch import Tensor

from fptt_plugin import FPTTTrainer


def presentations(x: Tensor, steps: int) -> Tensor:
    """``[T, B, 3, height, width]`` in [0, 1] of pictures in bytes, the same at every step."""
    return (x / 255.0).expand(steps, -1, -1, -1, -1)


def mirrored(x: Tensor, boxes: Sequence[Boxes], chosen: Tensor) -> tuple[Tensor, list[Boxes]]:
    """Pictures and boxes, those of the chosen pictures with left and right exchanged."""
    pairs = zip(boxes, chosen.tolist(), strict=True)
    turned = [entry._replace(places=_exchange(entry.places)) if is_chosen else entry for entry, is_chosen in pairs]
    return torch.where(chosen.view(-1, 1, 1, 1), x.flip(3), x), turned


def _exchange(places: Tensor) -> Tensor:
    left, upper, right, lower = places.unbind(dim=1)
    return torch.stack([1 - right, upper, 1 - left, lower], dim=1)


def zoomed(x: Tensor, boxes: Sequence[Boxes], generator: torch.Generator) -> tuple[Tensor, list[Boxes]]:
    """Pictures scaled by 0.7 to 1.4, shifted and made brighter or darker, and their boxes.

    Objects of which less than 40 % stays in the picture are left out. Beyond its edge a picture goes on as it ends.
    """
    count = len(x)
    scale = torch.exp(math.log(0.7) + math.log(2.0) * torch.rand(count, generator=generator))
    center = 0.5 + (torch.rand(count, 2, generator=generator) - 0.5) * (1 - 1 / scale).abs().unsqueeze(1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = 2 * center - 1
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    light = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    seen = []
    for entry, factor, place in zip(boxes, scale, center, strict=True):
        places = (entry.places - place.repeat(2)) * factor + 0.5
        inside = places.clamp(0, 1)
        kept = _areas(inside) >= 0.4 * _areas(places)
        seen.append(Boxes(inside[kept], entry.labels[kept], entry.difficult[kept]))
    return (moved * light).clamp(0, 255).to(x.dtype), seen


def _areas(places: Tensor) -> Tensor:
    return (places[:, 2:] - places[:, :2]).clamp(min=0).prod(dim=1)


class MeanAveragePrecision:
    """Mean over the classes of the average precision on the test pictures.

    Args:
        pictures: To test on.
        anchors: Of the network.
        classes: Their number.
        steps: Presentations of each picture.
    """

    __name__ = "mAP50"

    def __init__(self, pictures: Pictures, anchors: Tensor, classes: int, steps: int) -> None:
        self.pictures, self.anchors, self.classes, self.steps = pictures, anchors, classes, steps
        self.found: list[Detections] = []  # by the last evaluation of W_bar

    def __call__(self, trainer: FPTTTrainer, averaged: bool) -> float:
        found = self.detections(trainer, averaged)
        if averaged:
            self.found = found
        return sum(self.by_class(found)) / self.classes

    def detections(self, trainer: FPTTTrainer, averaged: bool) -> list[Detections]:
        """What the network finds in each picture."""
        device = next(trainer.net.parameters()).device
        found: list[Detections] = []
        for index in in_order(len(self.pictures.x), 32):
            x = presentations(self.pictures.x[index].to(device), self.steps)
            found += detect(trainer.predict(x, averaged=averaged).cpu(), self.anchors)
        return found

    def by_class(self, found: list[Detections]) -> list[float]:
        """Average precision of each class; 0 for one that the test pictures do not have."""
        values = [average_precision(found, self.pictures.boxes, label) for label in range(self.classes)]
        return [0.0 if math.isnan(value) else value for value in values]


def draw(pictures: Pictures, found: list[Detections], names: list[str], path: Path, *, least: float = 0.3) -> None:
    """Some pictures with what was found (solid, from that probability on) and what is there (dotted)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = min(len(found), 4)
    figure, panels = plt.subplots(1, count, figsize=(4 * count, 4), squeeze=False, layout="constrained")
    for axes, picture, there, own in zip(panels[0], pictures.x, pictures.boxes, found, strict=False):
        axes.imshow(picture.permute(1, 2, 0).numpy())
        axes.axis("off")
        sure = own.scores >= least
        for places, labels, style in ((there.places, there.labels, ":"), (own.places[sure], own.labels[sure], "-")):
            for place, label in zip(places.tolist(), labels.tolist(), strict=True):
                axes.add_patch(_frame(place, picture.shape, f"C{label}", style))
    handles = [plt.Line2D([], [], color=f"C{label}", label=name) for label, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _frame(place: list[float], shape: torch.Size, color: str, style: str) -> Any:
    from matplotlib.patches import Rectangle

    left, upper, right, lower = (edge * shape[2 - index % 2] - 0.5 for index, edge in enumerate(place))
    return Rectangle((left, upper), right - left, lower - upper, fill=False, edgecolor=color, linestyle=style)


def main() -> None:
    parser = make_parser(__doc__, epochs=100, batch_size=16, lr=1e-3, schedule="cosine")
    parser.add_argument("--dataset", choices=tuple(VOC_SETS), default="voc")
    parser.add_argument("--size", type=int, nargs=2, default=[416, 416], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--presentations", type=int, default=5, help="time steps")
    parser.add_argument(
        "--rectifiers", action="store_true", help="the twin that does not spike: what data and budget give"
    )
    parser.add_argument("--norm", choices=NORMS[:3], default="none", help="none: one normalization for all time steps")
    parser.add_argument("--maps", type=int, choices=(2, 3), default=2, help="3: one more, for small objects")
    parser.add_argument("--augment", action="store_true", help="scale, shift and light of the training pictures")
    add_map_options(parser)
    options = parse(
        parser,
        write_synthetic_voc,
        dataset="bccd",
        size=[96, 96],
        width=0.125,
        epochs=2,
        batch_size=8,
        presentations=3,
        lr=1e-2,
    )
    if any(side % 32 or side < 64 for side in options.size):
        parser.error(f"--size {options.size[0]} {options.size[1]}: width and height are multiples of 32, from 64 on")
    pictures, test, names = voc(options.dataset, options.data_dir, tuple(options.size))
    maps = [(options.size[1] // stride, options.size[0] // stride) for stride in STRIDES[-options.maps :]]
    anchors = anchor_boxes(anchor_sizes(pictures.boxes, ANCHORS * len(maps)), maps)
    score = MeanAveragePrecision(test, anchors, len(names), options.presentations)

    def train(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for index in shuffled(len(pictures.x), options.batch_size, generator):
            chosen = torch.rand(len(index), generator=generator) < 0.5
            x, boxes = mirrored(pictures.x[index], [pictures.boxes[i] for i in index.tolist()], chosen)
            if options.augment:
                x, boxes = zoomed(x, boxes, generator)
            yield presentations(x, options.presentations), encode(boxes, anchors)

    net = SpikingTinyYOLO(
        options.neuron,
        options.library,
        len(names),
        maps=options.maps,
        width=options.width,
        gate_norm=options.gate_norm,
        init_state=options.init_state,
        norm=Normalization(options.norm, options.presentations),
        rectifiers=options.rectifiers,
    )
    parts = [options.dataset, "x".join(map(str, options.size)), *map_parts(options), f"t{options.presentations}"]
    parts += [f"{options.norm}norm"] * (options.norm != "none") + ["rectifiers"] * options.rectifiers
    parts += ["m3"] * (options.maps == 3) + ["augment"] * options.augment
    experiment = Experiment(
        "detection",
        "-".join(parts),
        net,
        DetectionLoss(anchors).to(options.device),
        train,
        score=score,
        train_metric=no_score,
        trainer={"targets": "sequence"},
        notes={"classes": names, "train_samples": len(pictures.x), "test_samples": len(test.x)},
    )
    results = run(experiment, options)
    if score.found:
        by_class = zip(names, score.by_class(score.found), strict=True)
        print("average precision:", ", ".join(f"{name} {100 * value:.1f} %" for name, value in by_class))
        draw(test, score.found, names, results.folder / "detections.png")


if __name__ == "__main__":
    main()
