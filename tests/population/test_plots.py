"""Pictures of statistics: what is drawn, not what it looks like."""

import sys

from bnlasagne import (
    BatchNormLayer,
    Moments,
    PopulationStatistics,
    plot_statistics,
)

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("matplotlib")

# With a standard deviation of 1, 2 and 4: `Moments` has sums of squares.
COUNT = 10
MEAN = np.array([[1., -2., 3.]])
STD = np.array([[1., 2., 4.]])
RUNNING = (MEAN + STD * [[0.3, -0.3, 0.3]]).astype("float32"), STD * 0.8


def statistics(*names, mean=MEAN, std=STD, running=RUNNING):
    found = PopulationStatistics()
    for name in names:
        layer = BatchNormLayer((None, 3), name=name)
        found[layer] = Moments(COUNT, mean, COUNT * np.square(std))
        found.replaced[layer] = running
        found.labels[layer] = f"BatchNormLayer (layer {len(found)})"
    return found


def titles(figure):
    return [axes.get_title(loc="left").split("\n") for axes in figure.axes]


def points(axes):
    _, line = axes.lines  # the diagonal is first
    return line.get_data()


@pytest.mark.parametrize("count", [1, 20])
def test_a_row_with_two_panels_for_each_layer(count):
    figure = plot_statistics(statistics(*["layer"] * count))
    assert len(figure.axes) == 2 * count
    assert figure.get_size_inches()[1] == pytest.approx(3.2 * count)


def test_points_are_the_data():
    mean, std = plot_statistics(statistics("a")).axes
    for axes, x, y in (mean, MEAN, RUNNING[0]), (std, STD, RUNNING[1]):
        assert_allclose(points(axes), [x.ravel(), y.ravel()])
        assert axes.get_xlim() == axes.get_ylim()
        assert axes.get_xlim()[0] < min(x.min(), y.min())
        assert axes.get_xlim()[1] > max(x.max(), y.max())
        assert axes.get_aspect() in ("equal", 1)


def test_names_and_drifts():
    figure = plot_statistics(statistics("a$b$", None))
    means, stds = "drift of means: 0.3", "drift of stds: 0.2"
    assert titles(figure) == [[r"a\$b\$", means], ["", stds],
                              ["BatchNormLayer (layer 2)", means], ["", stds]]


def test_drift_is_a_root_mean_square():
    running = MEAN + STD * [[0., 0., 3.]], STD * [[1., 3., 1.]]
    found = titles(plot_statistics(statistics("a", running=running)))
    assert float(found[0][1].split()[-1]) == pytest.approx(3 ** 0.5, rel=0.01)
    assert float(found[1][1].split()[-1]) == pytest.approx(
        (4 / 3) ** 0.5, rel=0.01)


# Warnings are errors here, those of a division by zero included.

def test_constant_channel(tmp_path):
    std = STD * [[1, 0, 1]]
    figure = plot_statistics(statistics("a", std=std))
    assert titles(figure) == [["a", "drift of means: 0.3"],
                              ["", "drift of stds: 0.2"]]
    assert_array_equal(points(figure.axes[1])[0], std.ravel())
    figure.savefig(str(tmp_path / "a.png"))


def test_nothing_but_constant_channels(tmp_path):
    zeros = np.zeros((1, 3))
    figure = plot_statistics(statistics(
        "a", mean=zeros, std=zeros, running=(zeros, zeros)))
    assert titles(figure) == [["a", "drift of means: none varies"],
                              ["", "drift of stds: none varies"]]
    figure.savefig(str(tmp_path / "a.png"))


def test_averages_that_ran_off(tmp_path):
    running = MEAN + [[0, np.inf, 0]], STD + [[0, np.nan, 0]]
    figure = plot_statistics(statistics("a", running=running))
    assert titles(figure) == [["a", "drift of means: inf"],
                              ["", "drift of stds: nan"]]
    figure.savefig(str(tmp_path / "a.png"))


def test_given_figure():
    from matplotlib.figure import Figure
    figure = Figure(figsize=(3, 4))
    assert plot_statistics(statistics("a"), figure) is figure
    assert len(figure.axes) == 2
    assert figure.get_size_inches().tolist() == [3, 4]


def test_saves_a_picture_without_a_display(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    path = tmp_path / "a.png"
    plot_statistics(statistics("a", None)).savefig(str(path))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib(monkeypatch):
    # The submodule as well: it may have been imported before.
    for name in "matplotlib", "matplotlib.figure":
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"extra 'plot'.*\[plot\]"):
        plot_statistics(statistics("a"))


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="found has no layers"):
        plot_statistics(PopulationStatistics())
    with pytest.raises(TypeError, match="update_population_statistics"):
        plot_statistics({})
