"""ECG of the QT database: which wave of the heartbeat is this, at every time step.

    python examples/ecg_stream.py                              # FPTT, an update at every step
    python examples/ecg_stream.py --method bptt --loss-every 1
    python examples/ecg_stream.py --label-fraction 0.1         # nine labels in ten are hidden while training
    python examples/ecg_stream.py --crop 100                   # sequences of 100 steps

Four channels of level-crossing spikes, six classes, 1301 steps. The target of a step is known at that step, which is
what learning online asks for. Steps without a label are masked while training and do not count in the test.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _data import ECG_CLASSES, Split, ecg, in_order, shuffled, write_synthetic_ecg
from _experiment import Experiment, no_score, run
from _options import Recipes, add_drive_options, add_recipes, drive_parts, drives_of, make_parser, parse
from models import recurrent_net
from torch import Tensor, nn


def crop(data: Split, length: int | None) -> Split:
    """Sequences cut into pieces of that many steps; what is left over at the end is dropped."""
    if length is None:
        return data
    count = data.x_train.shape[1] // length
    if count == 0:
        raise ValueError(f"--crop {length} is longer than the sequences of {data.x_train.shape[1]} steps")
    pieces = [part[:, : count * length].reshape(-1, length, *part.shape[2:]) for part in data]
    return Split(*pieces)


class LabeledAccuracy:
    """Per-step accuracy over labeled steps (class >= 0), as a mean over all steps of all sequences.

    Args:
        y: All labels, for the share of steps that have one.
    """

    __name__ = "accuracy"

    def __init__(self, y: Tensor) -> None:
        self.labeled = (y >= 0).float().mean()

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        right = (output.argmax(dim=1) == target) & (target >= 0)
        return right.float().mean() / self.labeled.to(output.device)


RECIPES: Recipes = {"paper": {}, "normalized": {"norm": "accumulated", "spread": True, "longest": 100.0, "window": 10}}


def main() -> None:
    parser = make_parser(__doc__, epochs=40, batch_size=64, loss_every=1, schedule="cosine")
    parser.add_argument("--hidden", type=int, nargs="+", default=[36])
    parser.add_argument("--threshold", type=float, default=0.1)
    parser.add_argument("--adaptation", type=float, default=1.8)
    parser.add_argument("--label-fraction", type=float, default=1.0, help="labels that training sees")
    parser.add_argument("--crop", type=int, help="cut the sequences into pieces of that many steps")
    add_drive_options(parser)
    add_recipes(parser, RECIPES)
    options = parse(parser, write_synthetic_ecg, epochs=2, batch_size=8, hidden=[16])
    data = crop(ecg(options.data_dir), options.crop)
    # Which labels are hidden is settled once: a label that is missing stays missing.
    chance = torch.rand(data.y_train.shape, generator=torch.Generator().manual_seed(options.seed))
    seen = (data.y_train >= 0) & (chance < options.label_fraction)

    def train(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index in shuffled(len(seen), options.batch_size, generator):
            target = data.y_train[index].clamp(min=0)
            yield data.x_train[index].transpose(0, 1), target.t(), seen[index].t()

    def test() -> Iterator[tuple[Tensor, Tensor]]:
        for index in in_order(len(data.x_test), 200):
            yield data.x_test[index].transpose(0, 1), data.y_test[index].t()

    labeled = data.y_test[data.y_test >= 0]
    experiment = Experiment(
        "ecg_stream",
        "-".join(
            [
                f"T{data.x_train.shape[1]}",
                f"h{'x'.join(map(str, options.hidden))}",
                f"y{options.label_fraction:g}",
                *drive_parts(options),
            ]
        ),
        recurrent_net(
            options.neuron,
            options.library,
            data.x_train.shape[2],
            options.hidden,
            ECG_CLASSES,
            threshold=options.threshold,
            adaptation=options.adaptation,
            **drives_of(options, data.x_train.shape[1]),
        ),
        nn.CrossEntropyLoss(),
        train,
        test,
        metric=LabeledAccuracy(data.y_test),
        train_metric=no_score,  # it would be of the last steps alone
        notes={
            "train_samples": len(seen),
            "test_samples": len(data.x_test),
            "steps": data.x_train.shape[1],
            "labels_seen": seen.float().mean().item(),
            "chance": (labeled.bincount().max() / len(labeled)).item(),
            "test_labels_per_class": labeled.bincount(minlength=ECG_CLASSES).tolist(),
        },
    )
    run(experiment, options)


if __name__ == "__main__":
    main()
