"""Plots for training, as thin functions over matplotlib: ``pip install matplotlib``.

Each function draws on the given axes, or on those of a new figure, and returns them. A method of training has one
color in all of them, :data:`METHOD_COLORS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import EpochRecord

__all__ = ["METHOD_COLORS", "learning_curves", "memory", "method_color", "raster", "time_constants"]

METHOD_COLORS = {
    "FPTT": "#0072b2",
    "alpha = 0": "#e69f00",
    "alpha = 0, eps": "#009e73",
    "BPTT": "#aa3377",
}
"""A color for FPTT, for its two controls and for BPTT; color-blind readers can tell them apart."""

_SHADES = (0.0, 0.35, -0.35, 0.55, -0.6)  # parts of white, or of black, in the further runs of a method


def method_color(label: str, shade: int = 0) -> str | None:
    """Return the color of the method that a label names.

    Args:
        label: Such as ``"FPTT, window=4"``, ``"alpha = 0"`` or ``"BPTT"``. ``alpha=0`` counts before FPTT, and a larger
            ``eps`` of Adam with it as a method of its own; truncated BPTT is ``alpha = 0``.
        shade: 0 for the color itself; 1 to 4 for lighter and darker ones, for further runs of the same method; then
            they begin again.

    Returns:
        One of :data:`METHOD_COLORS`, or a shade of it; ``None`` if the label names no method.

    Example:
        >>> method_color("FPTT, alpha = 0.5") == METHOD_COLORS["FPTT"]
        True
        >>> method_color("FPTT, alpha=0") == method_color("TruncatedBPTT") == METHOD_COLORS["alpha = 0"]
        True
        >>> method_color("logistic regression") is None
        True
    """
    if re.search(r"alpha ?= ?0(?![.\d])|truncated", label, flags=re.IGNORECASE):
        name = "alpha = 0, eps" if "eps" in label else "alpha = 0"
    elif "BPTT" in label or "FPTT" in label:
        name = "BPTT" if "BPTT" in label else "FPTT"
    else:
        return None
    part = _SHADES[shade % len(_SHADES)]
    channels = [int(METHOD_COLORS[name][i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + abs(part) * ((255 if part > 0 else 0) - c)):02x}" for c in channels)


def learning_curves(history: Iterable[EpochRecord], label: str = "", *, axes: Axes | None = None) -> Axes:
    """Plot the score of each epoch in percent: a line for validation, dashed in its color for training.

    Args:
        history: What :meth:`~fptt_plugin.FPTTTrainer.fit` returned, with a metric in [0, 1] such as the accuracy.
        label: Name of the run in the legend. A run of a method gets the method's color, see :func:`method_color`.
        axes: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no epoch to draw, or none with a score.

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
    validation = [(record.epoch, record.val_score) for record in records if record.val_score is not None]
    training = [(record.epoch, record.train_score) for record in records]
    if all(math.isnan(score) for _, score in (*validation, *training)):
        raise ValueError("no epoch has a score: pass a metric to trainer.fit(...), or plot record.decision_loss")
    axes = _axes(axes)
    color = _color(axes, label)
    for kind, style, points in (("validation", "-", validation), ("training", "--", training)):
        if points:
            epochs, scores = zip(*points, strict=True)
            (line,) = axes.plot(epochs, [100 * score for score in scores], style, color=color)
            line.set_label(f"{label} {kind}".strip())
            color = line.get_color()
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
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
        _legend(axes)
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
        sizes: Bytes of each measurement, such as :attr:`SavedForBackward.peak <fptt_plugin.SavedForBackward>`; drawn in
            MiB.
        label: Name in the legend. A method gets its color, see :func:`method_color`.
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
    mebibytes = [size / 2**20 for size in sizes]
    axes.loglog(lengths, mebibytes, marker="o", color=_color(axes, label), label=label or None)
    axes.set(xlabel="time steps T", ylabel="memory (MiB)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    if label:
        _legend(axes)
    return axes


def _axes(axes: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure."""
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("fptt_plugin.plot needs matplotlib: pip install matplotlib") from error
    _, fresh = plt.subplots(figsize=(6.4, 4), layout="constrained")
    return cast("Axes", fresh)


def _color(axes: Axes, label: str) -> str | None:
    """Return the method's color, another shade if the axes hold a run of it; ``None`` if the label names none."""
    used = {line.get_color() for line in axes.lines}
    shades = (method_color(label, shade) for shade in range(len(_SHADES)))
    return next((color for color in shades if color not in used), None)


def _legend(axes: Axes) -> None:
    """Put the legend below the axes, where it hides no curve, if the figure makes room for it."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.transforms import ScaledTranslation

    if isinstance(axes.figure.get_layout_engine(), ConstrainedLayoutEngine):
        below = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)  # by inches: label of the axis
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=2, frameon=False)
    else:
        axes.legend()


def _plain_numbers(axes: Axes) -> None:
    """Label a logarithmic axis of less than a decade with 3, 4, 5 instead of powers of ten."""
    from matplotlib.ticker import LogFormatter

    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
