"""Pictures with boxes, in the folders of the Pascal VOC challenge."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _data import require
from PIL import Image, ImageDraw
from torch import Tensor

# Folders of a data set below VOCdevkit/: those to train on (the list trainval) and the one to test on (the list test).
VOC_SETS = {"bccd": (("VOC2007",), "VOC2007"), "voc": (("VOC2007", "VOC2012"), "VOC2007")}
SYNTHETIC = {"dot": (220, 60, 60), "field": (60, 90, 220)}


class Boxes(NamedTuple):
    """The objects of one picture.

    Attributes:
        places: ``[n, 4]``, left, upper, right and lower edge as fractions of the picture's width and height. Boxes
            without an area, which the blood-cell data set has, are left out.
        labels: ``[n]``, classes.
        difficult: ``[n]``, objects that an evaluation passes over, found or not.
    """

    places: Tensor
    labels: Tensor
    difficult: Tensor


class Pictures(NamedTuple):
    """A data set in memory.

    Attributes:
        x: ``[N, 3, height, width]`` bytes.
        boxes: Their objects.
    """

    x: Tensor
    boxes: list[Boxes]


def voc(dataset: str, data_dir: Path, size: tuple[int, int]) -> tuple[Pictures, Pictures, list[str]]:
    """Pictures to train on, pictures to test on, and the names of the classes.

    ``"bccd"`` is the blood-cell data set in VOC's layout, ``"voc"`` Pascal VOC 2007 and 2012, tested on 2007.

    Args:
        dataset: One of ``VOC_SETS``, the name of its folder in ``data_dir`` as well.
        data_dir: Holds ``DATASET/VOCdevkit/VOC2007/`` with ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        size: Width and height that pictures are scaled to.

    Raises:
        FileNotFoundError: If a file is missing; says where it should be.
    """
    train, test = VOC_SETS[dataset]
    root = data_dir / dataset / "VOCdevkit"
    wanted = [*((folder, "trainval") for folder in train), (test, "test")]
    require(data_dir / dataset, [f"VOCdevkit/{folder}/ImageSets/Main/{part}.txt" for folder, part in wanted])
    *train_parts, test_objects = [_objects(root / folder, part) for folder, part in wanted]
    train_objects = {path: found for part in train_parts for path, found in part.items()}
    everything = [*train_objects.values(), *test_objects.values()]
    names = sorted({entry.findtext("name", "") for found in everything for entry in found})
    return _pictures(train_objects, names, size), _pictures(test_objects, names, size), names


def _objects(folder: Path, part: str) -> dict[Path, list[ET.Element]]:
    """The objects of each picture of one part, after a look that all its files are there."""
    stems = (folder / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
    require(folder, [name for stem in stems for name in (f"Annotations/{stem}.xml", f"JPEGImages/{stem}.jpg")])
    annotations = ((stem, ET.parse(folder / "Annotations" / f"{stem}.xml")) for stem in stems)
    return {folder / "JPEGImages" / f"{stem}.jpg": tree.getroot().findall("object") for stem, tree in annotations}


def _pictures(objects: dict[Path, list[ET.Element]], names: list[str], size: tuple[int, int]) -> Pictures:
    x, boxes = torch.empty(len(objects), 3, size[1], size[0], dtype=torch.uint8), []
    for index, (path, found) in enumerate(objects.items()):
        with Image.open(path) as picture:
            scale = torch.tensor(picture.size * 2, dtype=torch.float32)
            pixels = np.array(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        x[index] = torch.from_numpy(pixels).permute(2, 0, 1)
        corners = [
            [float(entry.findtext(f"bndbox/{edge}", "nan")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for entry in found
        ]
        labels = [names.index(entry.findtext("name", "")) for entry in found]
        difficult = [entry.findtext("difficult", "0").strip() == "1" for entry in found]
        places = torch.tensor(corners).view(-1, 4) / scale
        real = (places[:, 2:] > places[:, :2]).all(dim=1)
        marks = torch.tensor(labels, dtype=torch.long), torch.tensor(difficult, dtype=torch.bool)
        boxes.append(Boxes(places[real], marks[0][real], marks[1][real]))
    return Pictures(x, boxes)


def write_synthetic_voc(data_dir: Path, train: int = 24, test: int = 8) -> None:
    """Pictures of small red and large blue rectangles, in the files of the blood-cell data set."""
    chance = np.random.default_rng(0)
    folder = data_dir / "bccd" / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    stems = [f"{index:06}" for index in range(train + test)]
    for part, chosen in (("trainval", stems[:train]), ("test", stems[train:])):
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(chosen) + "\n")
    for stem in stems:
        picture = Image.new("RGB", (96, 96), (235, 225, 215))
        root = ET.Element("annotation")
        for name, typical in (("field", 40), ("dot", 16), ("dot", 16)):
            side = typical + int(chance.integers(6))
            left, upper = chance.integers(0, 96 - side, 2).tolist()
            edges = {"xmin": left, "ymin": upper, "xmax": left + side, "ymax": upper + side}
            ImageDraw.Draw(picture).rectangle(list(edges.values()), fill=SYNTHETIC[name])
            entry = ET.SubElement(root, "object")
            ET.SubElement(entry, "name").text = name
            box = ET.SubElement(entry, "bndbox")
            for edge, value in edges.items():
                ET.SubElement(box, edge).text = str(value)
        picture.save(folder / "JPEGImages" / f"{stem}.jpg", quality=95)
        ET.ElementTree(root).write(folder / "Annotations" / f"{stem}.xml")
