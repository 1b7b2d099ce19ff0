"""Boxes: from objects to targets, from the network's output to detections, and how good these are.

A box is left, upper, right and lower edge, in fractions of the picture. The network says for each anchor (a box of a
given size about a cell of one of its maps) how the object's box differs from it, whether there is one, and its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from _voc import Boxes
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

POSITIVE, NEGATIVE = 0.4, 0.3  # an anchor stands for an object that it overlaps so far; below that for none
MAX_GROWTH = 4.0  # of a box over its anchor, as a logarithm: keeps exp finite


class Detections(NamedTuple):
    """What is found in one picture, the surest first.

    Attributes:
        places: ``[n, 4]``, boxes.
        labels: ``[n]``, classes.
        scores: ``[n]``, probability of an object of that class.
    """

    places: Tensor
    labels: Tensor
    scores: Tensor


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each of ``a [n, 4]`` with each of ``b [m, 4]``: ``[n, m]``."""
    common, union = _common_and_union(a[:, None], b)
    return common / union


def _common_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    corner, end = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (end - corner).clamp(min=0).prod(dim=-1)
    return common, (_area(a) + _area(b) - common).clamp(min=1e-12)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def anchor_sizes(boxes: Sequence[Boxes], count: int) -> Tensor:
    """Typical widths and heights ``[count, 2]`` of objects, the smallest first, by k-means over their logarithms."""
    places = torch.cat([entry.places for entry in boxes])
    sizes = (places[:, 2:] - places[:, :2]).clamp(min=1e-3).log()
    centers = KMeans(count, n_init=4, random_state=0).fit(sizes.numpy()).cluster_centers_
    found = torch.as_tensor(centers, dtype=torch.float32).exp()
    return found[found.prod(dim=1).argsort()]


def anchor_boxes(sizes: Tensor, maps: Sequence[tuple[int, int]]) -> Tensor:
    """Anchors ``[N, 4]`` of maps of given heights and widths; each map has an equal share of the sizes.

    The order is that of the network's output: map by map, in it size by size, row by row.
    """
    boxes = []
    for (height, width), own in zip(maps, sizes.chunk(len(maps)), strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centers = torch.stack([x / width, y / height], dim=2).view(1, -1, 2)
        half = own.view(-1, 1, 2) / 2
        boxes.append(torch.cat([centers - half, centers + half], dim=2).view(-1, 4))
    return torch.cat(boxes)


def encode(boxes: Sequence[Boxes], anchors: Tensor) -> Tensor:
    """Targets ``[B, N, 6]``: box, class, and 1 where an anchor stands for an object, 0 where for none, -1 for neither.

    An anchor stands for the object that it overlaps most, if it does so far enough, and each object has at least the
    anchor that overlaps it most (the matching of SSD and RetinaNet). Difficult objects are not learned.
    """
    target = torch.zeros(len(boxes), len(anchors), 6)
    for row, entry in zip(target, boxes, strict=True):
        places, labels = entry.places[~entry.difficult], entry.labels[~entry.difficult]
        if not len(places):
            continue
        matches = overlap(anchors, places)
        most, owner = matches.max(dim=1)
        row[:, 5] = torch.where(most >= NEGATIVE, -1.0, 0.0)
        best = matches.argmax(dim=0)
        owner[best], most[best] = torch.arange(len(places)), 1.0
        row[most >= POSITIVE, 5] = 1.0
        row[:, :4], row[:, 4] = places[owner], labels[owner].float()
    return target


def decode(output: Tensor, anchors: Tensor) -> Tensor:
    """Boxes ``[B, N, 4]`` from shifts of the center, in sizes of the anchor, and logarithms of its growth."""
    size = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, :2] + anchors[:, 2:]) / 2 + output[..., :2] * size
    half = size * output[..., 2:4].clamp(max=MAX_GROWTH).exp() / 2
    return torch.cat([center - half, center + half], dim=-1)


class DetectionLoss(nn.Module):
    """Sum over a picture's anchors of the losses of box (generalized IoU), class and object, per matched anchor.

    Args:
        anchors: ``[N, 4]``, see :func:`anchor_boxes`.
    """

    anchors: Tensor

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        matched = target[..., 5] == 1
        count = matched.sum().clamp(min=1)
        boxes = decode(output, self.anchors)[matched]
        place = (1 - generalized_overlap(boxes, target[..., :4][matched])).sum()
        kind = F.cross_entropy(output[..., 5:][matched], target[..., 4][matched].long(), reduction="sum")
        there = F.binary_cross_entropy_with_logits(output[..., 4], matched.float(), reduction="none")
        return (place + kind + there[target[..., 5] >= 0].sum()) / count


def generalized_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union less the empty share of the hull, box by box (Rezatofighi et al. 2019)."""
    common, union = _common_and_union(a, b)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(dim=1).clamp(min=1e-12)
    return common / union - (hull - union) / hull


def detect(output: Tensor, anchors: Tensor, *, least: float = 0.01, same: float = 0.45) -> list[Detections]:
    """Detections of each picture of ``output [B, N, 5 + classes]``.

    Args:
        output: Of the network.
        anchors: ``[N, 4]``.
        least: Probability from which on a box counts.
        same: Overlap from which on two boxes of a class are taken for one object, and the surer one is kept.
    """
    boxes = decode(output, anchors).clamp(0, 1)
    scores = output[..., 4].sigmoid().unsqueeze(-1) * output[..., 5:].softmax(dim=-1)
    found = []
    for places, rows in zip(boxes, scores, strict=True):
        sure, labels = rows.max(dim=1)
        order = sure.argsort(descending=True)
        order = order[sure[order] >= least]
        kept = _without_doubles(places[order], labels[order], same)
        found.append(Detections(places[order][kept], labels[order][kept], sure[order][kept]))
    return found


def _without_doubles(places: Tensor, labels: Tensor, same: float) -> Tensor:
    doubles = (overlap(places, places) > same) & (labels[:, None] == labels)
    keep = torch.ones(len(places), dtype=torch.bool)
    for index in range(len(places)):  # the surest first: what is out puts nothing else out
        if keep[index]:
            keep[index + 1 :] &= ~doubles[index, index + 1 :]
    return keep


def average_precision(found: Sequence[Detections], boxes: Sequence[Boxes], label: int, least: float = 0.5) -> float:
    """Area under precision over recall for one class, as Pascal VOC counts it since 2010; nan without an object.

    Args:
        found: Detections of each picture.
        boxes: Its objects; those that are difficult count neither as found nor as missed.
        label: The class.
        least: Overlap from which on an object is found.
    """
    objects = sum(int(((entry.labels == label) & ~entry.difficult).sum()) for entry in boxes)
    scores: list[float] = []
    right: list[bool] = []
    for detections, entry in zip(found, boxes, strict=True):
        own = entry.labels == label
        taken, difficult = [False] * int(own.sum()), entry.difficult[own].tolist()
        mine = detections.labels == label
        matches = overlap(detections.places[mine], entry.places[own])
        for score, row in zip(detections.scores[mine].tolist(), matches, strict=True):
            best = int(row.argmax()) if len(row) else -1
            hit = best >= 0 and row[best].item() >= least
            if hit and difficult[best]:
                continue
            scores.append(score)
            right.append(hit and not taken[best])
            if hit:
                taken[best] = True
    if not objects:
        return float("nan")
    order = torch.tensor(scores, dtype=torch.float64).argsort(descending=True, stable=True)
    hits = torch.tensor(right, dtype=torch.float64)[order].cumsum(dim=0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best_from_here_on = precision.flip(0).cummax(dim=0).values.flip(0)
    return float((best_from_here_on * hits.diff(prepend=torch.zeros(1, dtype=torch.float64))).sum() / objects)
