"""The plots draw the data that they are given; without matplotlib they say what to install."""

import sys

import pytest
import torch

from fptt_plugin import plot
from fptt_plugin.results import EpochRecord

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def record(epoch, train, val):
    return EpochRecord(epoch, 1.0, train, val, {}, epoch, 1.0)


def curves(axes):
    return {line.get_label(): [list(map(float, data)) for data in line.get_data()] for line in axes.lines}


def test_learning_curves_of_two_runs_on_one_picture():
    axes = plot.learning_curves([record(1, 0.5, 0.25), record(2, 0.75, 0.5)], "FPTT")
    again = plot.learning_curves([record(1, 0.5, None)], "BPTT", axes=axes)
    assert again is axes
    assert curves(axes) == {
        "FPTT validation": [[1, 2], [25, 50]],
        "FPTT training": [[1, 2], [50, 75]],
        "BPTT training": [[1], [50]],
    }
    first, second, third = (line.get_color() for line in axes.lines)
    assert first == second != third
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves(axes))
    assert axes.get_xlabel() == "epoch"


def test_without_a_metric_there_is_no_learning_curve():
    figures, nan = plt.get_fignums(), float("nan")
    with pytest.raises(ValueError, match="no epoch has a score: pass a metric"):
        plot.learning_curves([record(1, nan, None), record(2, nan, nan)])
    assert plt.get_fignums() == figures
    assert "validation" in curves(plot.learning_curves([record(1, nan, 0.5)]))


def test_time_constants_are_inverse_kappa_with_the_middle_of_the_neurons():
    kappa = torch.full((3, 4, 5), 0.25)
    kappa[1] = 0.125
    kappa[:, 0, 0] = 1.0  # one neuron of twenty: inside neither median nor band
    axes = plot.time_constants(kappa.requires_grad_(), "hidden")
    assert curves(axes) == {"hidden": [[0, 1, 2], [4, 8, 4]]}
    corners = axes.collections[0].get_paths()[0].vertices
    assert set(corners[:, 1].round(6)) == {4, 8}
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("wrong", [-1.0, 0.0, 1.5, float("nan")])
def test_logits_are_no_inverse_time_constants(wrong):
    figures = plt.get_fignums()
    with pytest.raises(ValueError, match=r"in \(0, 1\]: apply torch.sigmoid"):
        plot.time_constants(torch.tensor([0.5, wrong]))
    assert plt.get_fignums() == figures


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3)])
def test_raster_marks_each_spike_once(shape):
    spikes = torch.zeros(4, 6)
    spikes[0, 5] = spikes[3, 1] = spikes[3, 2] = 1
    axes = plot.raster(spikes.view(shape))
    assert axes.collections[0].get_offsets().tolist() == [[0, 5], [3, 1], [3, 2]]
    assert axes.get_xlim() == (-0.5, 3.5)
    assert axes.get_ylim() == (-0.5, 5.5)
    assert plot.raster(torch.zeros(3)).get_ylim() == (-0.5, 0.5)


def test_memory_in_mebibytes():
    axes = plot.memory([10, 100], [2**20, 3 * 2**20], "BPTT")
    assert curves(axes) == {"BPTT": [[10, 100], [1, 3]]}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    with pytest.raises(ValueError, match="2 lengths and 1 sizes"):
        plot.memory([1, 2], [3])


def test_no_history():
    with pytest.raises(ValueError, match=r"trainer\.fit"):
        plot.learning_curves([])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        plot.raster(torch.zeros(2, 2))


METHODS = {
    "FPTT": "FPTT",
    "FPTT, alpha = 0.5": "FPTT",
    "LTCLeaky, FPTT, window=4": "FPTT",
    "alpha = 0": "alpha = 0",
    "FPTT, alpha=0, lr=0.01": "alpha = 0",
    "TruncatedBPTT": "alpha = 0",
    "alpha = 0, eps = 0.001": "alpha = 0, eps",
    "BPTT": "BPTT",
    "snnTorch BPTT": "BPTT",
}


@pytest.mark.parametrize("label", METHODS)
def test_each_method_has_its_color(label):
    assert plot.method_color(label) == plot.METHOD_COLORS[METHODS[label]]


def test_colors_differ_and_so_do_the_shades_of_each():
    every = [plot.method_color(name, shade) for name in plot.METHOD_COLORS for shade in range(5)]
    assert len(set(every)) == 4 * 5
    rgb = [matplotlib.colors.to_rgb(color) for color in every]
    assert max(map(min, rgb)) < 0.75  # none is lost on white
    assert plot.method_color("BPTT", 5) == plot.METHOD_COLORS["BPTT"]


def test_pictures_use_the_color_of_the_method_and_another_shade_for_its_next_run():
    axes = plot.memory([1, 2], [1, 2], "BPTT")
    plot.memory([1, 2], [1, 1], "FPTT, window=4", axes=axes)
    plot.memory([1, 2], [1, 1], "FPTT, window=1", axes=axes)
    plot.memory([1, 2], [1, 1], "mine", axes=axes)
    colors = [line.get_color() for line in axes.lines]
    assert colors[:2] == [plot.METHOD_COLORS["BPTT"], plot.METHOD_COLORS["FPTT"]]
    assert colors[2] == plot.method_color("FPTT", 1)
    assert colors[3] not in colors[:3]
    (line,) = plot.learning_curves([record(1, 0.5, None)], "alpha = 0").lines
    assert line.get_color() == plot.METHOD_COLORS["alpha = 0"]


@pytest.mark.parametrize(("layout", "outside"), [("constrained", True), (None, False)])
def test_the_legend_stands_below_the_axes_where_there_is_room(layout, outside):
    figure, axes = plt.subplots(layout=layout)
    plot.memory([1, 2], [1, 2], "FPTT", axes=axes)
    figure.canvas.draw()
    legend, label = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
    assert (legend.y1 <= label.y0) == outside
    assert legend.y0 >= figure.bbox.y0
