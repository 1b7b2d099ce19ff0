"""Plots for training, as thin functions over matplotlib: ``pip install matplotlib``.

Each function draws on the given axes, or on those of a new figure, and returns them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import EpochRecord

__all__ = ["learning_curves", "memory", "raster", "time_constants"]


def learning_curves(history: Iterable[EpochRecord], label: str = "", *, axes: Axes | None = None) -> Axes:
    """Plot the score of each epoch in per cent: a line for validation, dashed in its colour for training.

    Args:
        history: What :meth:`~fptt_plugin.FPTTTrainer.fit` returned, with a metric in [0, 1] such as the accuracy.
        label: Name of the run in the legend.
        axes: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no epoch to draw.

    Example:
        >>> from fptt_plugin.results import EpochRecord
        >>> history = [EpochRecord(1, 0.9, 0.6, 0.5, {}, 20, 1.0), EpochRecord(2, 0.5, 0.8, 0.7, {}, 40, 1.0)]
        >>> axes = learning_curves(history, "FPTT")
        >>> [line.get_label() for line in axes.lines]
        ['FPTT validation', 'FPTT training']
    """
    from matplotlib.ticker import MaxNLocator

    records = list(history)
    if not records:
        raise ValueError("the history holds no epoch: pass the list that trainer.fit(...) returned")
    axes = _axes(axes)
    validation = [(record.epoch, record.val_score) for record in records if record.val_score is not None]
    training = [(record.epoch, record.train_score) for record in records]
    color = None
    for kind, style, points in (("validation", "-", validation), ("training", "--", training)):
        if points:
            epochs, scores = zip(*points, strict=True)
            (line,) = axes.plot(epochs, [100 * score for score in scores], style, color=color)
            line.set_label(f"{label} {kind}".strip())
            color = line.get_color()
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return axes


def time_constants(kappa: Tensor, label: str = "", *, axes: Axes | None = None) -> Axes:
    """Plot time constants of a layer over time, ``1 / kappa`` steps: the median and the band of the middle 80 %.

    Args:
        kappa: Fraction of the membrane that each step replaces, ``sigmoid(mem_gate(x, u))``, in (0, 1]: ``[T]`` or
            ``[T, ...]`` with any shape of neurons. For the adaptation, ``1 - rho``.
        label: Name of the layer in the legend.
        axes: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: If values lie outside (0, 1], such as logits that have not been through a sigmoid.

    Example:
        >>> axes = time_constants(torch.tensor([0.5, 0.1, 0.05]))
        >>> axes.lines[0].get_ydata().round(3).tolist()
        [2.0, 10.0, 20.0]
    """
    kappa = kappa.detach().cpu().double().reshape(len(kappa), -1)
    if not bool(((kappa > 0) & (kappa <= 1)).all()):
        raise ValueError("kappa must lie in (0, 1]: apply torch.sigmoid to the gate's logits first")
    low, middle, high = torch.quantile(1 / kappa, torch.tensor([0.1, 0.5, 0.9], dtype=torch.double), dim=1).numpy()
    axes = _axes(axes)
    (line,) = axes.semilogy(middle, label=label or None)
    axes.fill_between(range(len(middle)), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    _plain_numbers(axes)
    axes.set(xlabel="time step", ylabel="time constant (steps)")
    if label:
        axes.legend()
    return axes


def raster(spikes: Tensor, *, axes: Axes | None = None) -> Axes:
    """Plot a mark for every spike: time to the right, neurons upward.

    Args:
        spikes: Spikes of one sample, ``[T]`` or ``[T, ...]`` with any shape of neurons; all but 0 are spikes.
        axes: Axes to draw on.

    Returns:
        The axes.

    Example:
        >>> raster(torch.tensor([[0, 1], [1, 0], [0, 0]])).collections[0].get_offsets().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    spikes = spikes.detach().cpu().reshape(len(spikes), -1)
    steps, neurons = spikes.nonzero(as_tuple=True)
    axes = _axes(axes)
    axes.scatter(steps.numpy(), neurons.numpy(), s=12, marker="|", color="black", linewidths=1)
    margin = 0.5
    axes.set(xlim=(-margin, len(spikes) - margin), ylim=(-margin, spikes.shape[1] - margin))
    axes.set(xlabel="time step", ylabel="neuron")
    return axes


def memory(lengths: Sequence[int], sizes: Sequence[int], label: str = "", *, axes: Axes | None = None) -> Axes:
    """Plot memory against the length of the sequence, both logarithmic.

    Args:
        lengths: Time steps of each measurement.
        sizes: Its bytes, such as :attr:`SavedForBackward.peak <fptt_plugin.SavedForBackward>`.
        label: Name of the way to train in the legend.
        axes: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: If the two have different lengths.

    Example:
        >>> memory([10, 100], [2**20, 2**21], "BPTT").lines[0].get_ydata().tolist()
        [1.0, 2.0]
    """
    if len(lengths) != len(sizes):
        raise ValueError(f"{len(lengths)} lengths and {len(sizes)} sizes: give one size in bytes for each length")
    axes = _axes(axes)
    axes.loglog(lengths, [size / 2**20 for size in sizes], marker="o", label=label or None)
    axes.set(xlabel="time steps T", ylabel="memory (MiB)")
    if label:
        axes.legend()
    return axes


def _axes(axes: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure."""
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("fptt_plugin.plot needs matplotlib: pip install matplotlib") from error
    _, fresh = plt.subplots(figsize=(6, 3.5), layout="constrained")
    return cast("Axes", fresh)


def _plain_numbers(axes: Axes) -> None:
    """Label a logarithmic axis of less than a decade with 3, 4, 5 instead of powers of ten."""
    from matplotlib.ticker import LogFormatter

    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
