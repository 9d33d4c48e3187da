"""Pictures: pixels are exact, files are whole, and nothing of pyplot is touched."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from scoresde import plot
from scoresde.core.errors import CheckpointError, UsageError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- grids --------------------------------------------------------------------------------------------------


def test_every_pixel_is_where_it_belongs(rng):
    n, height, width, columns, pad = 7, 4, 5, 3, 2
    bytes_ = rng.integers(0, 256, (n, 3, height, width))
    sheet = plot.image_grid(bytes_ / 255 * 2 - 1, columns, -1, 1, pad)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * (height + pad) + pad, columns * (width + pad) + pad, 3)
    inside = np.zeros(sheet.shape[:2], dtype=bool)
    for i in range(n):
        for h in range(height):
            for w in range(width):
                row = pad + (i // columns) * (height + pad) + h
                column = pad + (i % columns) * (width + pad) + w
                assert sheet[row, column].tolist() == bytes_[i, :, h, w].tolist()
                inside[row, column] = True
    assert (sheet[~inside] == plot.images.GAP).all()


def test_grey_is_grey_in_all_colours():
    x = np.array([0.0, 0.2, 0.6, 1.0]).reshape(1, 1, 2, 2)
    sheet = plot.image_grid(x, low=0, high=1, pad=0)
    assert (sheet == np.array([[0, 51], [153, 255]])[:, :, None]).all()


@pytest.mark.parametrize("channels", [2, 5, 9])
def test_channels_that_are_no_colours_stand_side_by_side_each_on_its_own_scale(rng, channels):
    # As far apart as humidity and pressure: on one scale all but one would be black.
    x = rng.integers(0, 2, (3, channels, 4, 5)) * 10.0 ** np.arange(channels)[:, None, None] + 7
    sheet = plot.image_grid(x, columns=1, low=0, high=1)
    count = min(channels, 6)
    assert sheet.shape == (3 * 5 + 1, count * 6 + 1 + 2, 3)
    for n in range(3):
        for c in range(count):
            top, left = 1 + 5 * n, 2 + 6 * c
            shown = sheet[top : top + 4, left : left + 5]
            assert (shown == 255 * (x[n, c] > x[:, c].min())[..., None]).all()
            assert (sheet[top : top + 4, [left - 1, left + 5]] == plot.images.GAP).all()
    square = plot.image_grid(np.repeat(x, 12, axis=0)).shape
    assert 0.4 < square[0] / square[1] < 2.5


def test_a_channel_that_is_constant_is_grey():
    x = np.zeros((1, 2, 2, 2))
    x[0, 1, 0, 0] = 1
    sheet = plot.image_grid(x, pad=0)
    assert (sheet[:, 1:3] == 128).all() and sheet[0, 4, 0] == 255


def test_of_a_volume_the_slice_in_the_middle_is_shown(rng):
    x = rng.uniform(-1, 1, (4, 3, 5, 6, 7))
    assert (plot.image_grid(x) == plot.image_grid(x[:, :, 2])).all()


def test_opacity_is_composited_on_white():
    red, clear, half = [255, 51, 0, 255], [10, 20, 30, 0], [100, 0, 255, 51]
    x = np.array([red, clear, half]).T.reshape(1, 4, 1, 3) / 255
    sheet = plot.image_grid(x, low=0, high=1, pad=0)
    # 51/255 = 0.2: 0.2 c + 0.8 * 255
    assert sheet[0].tolist() == [[255, 51, 0], [255, 255, 255], [224, 204, 255]]


def test_values_outside_the_range_are_clipped():
    x = np.array([-9.0, -2.0, 4.0, 9.0]).reshape(1, 1, 1, 4)
    assert plot.image_grid(x, low=-2, high=4, pad=0)[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (9, 3, 3), (10, 4, 3)])
def test_square_by_default(n, columns, rows):
    assert plot.image_grid(np.zeros((n, 1, 2, 2)), pad=0).shape == (2 * rows, 2 * columns, 3)


def test_a_tensor_with_a_graph_is_an_array():
    x = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4).requires_grad_()
    assert (plot.image_grid(x) == plot.image_grid(x.detach().double().numpy())).all()
    assert plot.image_grid(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), pad=0)[0, 0, 0] == 128


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": np.zeros((2, 4, 4))},
        {"x": np.zeros((2, 0, 4, 4))},
        {"x": np.zeros((2, 1, 0, 4, 4))},
        {"x": np.zeros((0, 1, 4, 4))},
        {"x": np.full((1, 1, 2, 2), math.nan)},
        {"x": np.zeros((1, 1, 2, 2)), "low": 1.0, "high": 1.0},
        {"x": np.zeros((1, 1, 2, 2)), "columns": 0},
        {"x": np.zeros((1, 1, 2, 2)), "pad": -1},
    ],
)
def test_refused_grids(arguments):
    with pytest.raises(UsageError):
        plot.image_grid(**arguments)


# --- files --------------------------------------------------------------------------------------------------


def test_magnified_pixels_are_squares(tmp_path, rng):
    x = rng.uniform(-1, 1, (6, 3, 5, 4))
    sheet = plot.image_grid(x, 3, -1, 1)
    path = tmp_path / "new" / "folder" / "sheet.png"
    plot.save_image_grid(path, x, -1, 1, columns=3, magnify=7)
    written = np.asarray(Image.open(path))
    assert written.shape == (7 * sheet.shape[0], 7 * sheet.shape[1], 3)
    for dy in range(7):
        for dx in range(7):
            assert (written[dy::7, dx::7] == sheet).all()
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(("width", "factor"), [(8, 60), (598, 1), (297, 3), (700, 1)])
def test_small_sheets_are_magnified_to_600_pixels(tmp_path, width, factor):
    path = tmp_path / "sheet.png"
    plot.save_image_grid(path, np.zeros((1, 1, 2, width)), -1, 1)
    assert Image.open(path).size == ((width + 2) * factor, 4 * factor)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"before")

    def half(self, file, format=None):
        file.write_bytes(b"half a pict")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(CheckpointError, match=r"sheet\.png: disk full"):
        plot.save_image_grid(path, np.zeros((1, 1, 2, 2)), -1, 1)

    def half_figure(file, dpi=None, format=None):
        half(None, file)

    figure = plot.scatter(np.zeros((3, 2)))
    monkeypatch.setattr(figure, "savefig", half_figure)
    with pytest.raises(CheckpointError, match=r"sheet\.png: disk full"):
        plot.save_figure(path, figure)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_figures_in_the_format_of_their_name(tmp_path, name, start):
    plot.save_figure(tmp_path / name, plot.scatter(np.eye(2)))
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [name]


# --- figures ------------------------------------------------------------------------------------------------


def test_signals_hang_one_below_the_other_in_a_panel_for_each_channel(rng):
    # As they are, from left to right: all that is changed of a trace is its height.
    x = rng.normal(size=(10, 7, 40)) * np.arange(1, 8)[:, None]
    figure = plot.signals(x, title="eight of ten")
    assert len(figure.axes) == 6 and figure.get_suptitle() == "eight of ten"
    for c, ax in enumerate(figure.axes):
        assert len(ax.lines) == 8 and ax.get_xlim() == (0, 39) and ax.get_xlabel() == "position"
        drawn = np.stack([line.get_ydata() for line in ax.lines])
        assert all((line.get_xdata() == np.arange(40)).all() for line in ax.lines)
        shift = drawn - x[:8, c]
        np.testing.assert_allclose(shift, shift[:, :1].repeat(40, axis=1), atol=1e-12)
        np.testing.assert_allclose(np.diff(shift[:, 0]), -1.15 * np.ptp(x[:8, c]), rtol=1e-12)
        assert [t.get_text() for t in ax.texts] == [f"no. {i}" for i in range(8)]
        assert ax.get_title(loc="left") == f"channel {c}"
    assert plot.signals(x, names=list("abcdefg")).axes[2].get_title(loc="left") == "c"
    assert plot.signals(x[:, :1], title="one").axes[0].get_title(loc="left") == "one"


def test_signals_have_their_values_beside_them(rng):
    x = 1000 + rng.uniform(-3, 3, (3, 1, 50))
    ax = plot.signals(x).axes[0]
    step = 1.15 * np.ptp(x)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    each = len(labels) // 3
    assert each >= 2 and labels == labels[:each] * 3
    for i in range(3):  # what is written beside trace i is what the trace has there
        heights = np.asarray(ax.get_yticks()[each * i : each * (i + 1)]) + i * step
        np.testing.assert_allclose(heights, [float(v) for v in labels[:each]], rtol=1e-12)
        assert x.min() <= heights.min() and heights.max() <= x.max()
    low, high = ax.get_ylim()
    assert low < x.min() - 2 * step and high > x.max()


def test_signals_that_leave_a_scale_that_was_given_cross_no_neighbour(rng):
    like = rng.uniform(-1, 1, (2, 1, 30))
    ax = plot.signals(100 * rng.normal(size=(2, 1, 30)), like=like).axes[0]
    step = 1.15 * np.ptp(like)
    first, second = (line.get_ydata() for line in ax.lines)
    assert first.min() > second.max() and np.ptp(first) <= step


def test_histograms_of_vectors_are_those_of_their_coordinates(rng):
    x, reference = rng.normal(size=(400, 14)) + np.arange(14), 2 * rng.normal(size=(300, 14))
    figure = plot.vectors(x, reference)
    assert [ax.get_title() for ax in figure.axes] == [f"x{d}" for d in range(12)]
    assert figure.get_suptitle() == "the first 12 of 14 columns"
    for d, ax in enumerate(figure.axes):
        filled, both = list(ax.containers[0]), np.concatenate((reference[:, d], x[:, d]))
        edges = np.linspace(both.min(), both.max(), len(filled) + 1)  # both from end to end, in the same bins
        np.testing.assert_allclose([bar.get_x() for bar in filled], edges[:-1], atol=1e-9)
        heights = np.histogram(reference[:, d], edges, density=True)[0]
        np.testing.assert_allclose([bar.get_height() for bar in filled], heights)
        outline = ax.patches[-1].get_xy()  # up at the first edge, each height from edge to edge, down at the last
        np.testing.assert_allclose(outline[1:-1:2, 1], np.histogram(x[:, d], edges, density=True)[0])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["data", "samples"]
    assert plot.vectors(x).legends == [] and len(plot.vectors(x[:, :2]).axes) == 2


def test_whole_numbers_have_bins_around_them(rng):
    x, reference = rng.integers(0, 4, (50, 1)), np.array([[0], [3], [3], [1]])
    bars = list(plot.vectors(x, reference).axes[0].containers[0])
    assert [b.get_x() + b.get_width() / 2 for b in bars] == pytest.approx([0, 1, 2, 3])
    np.testing.assert_allclose([b.get_height() for b in bars], [0.25, 0.25, 0, 0.5])
    # Of many, every bin holds as many of them, or there would be a comb.
    wide = np.arange(1000.0)[:, None]
    bars = list(plot.vectors(wide, wide).axes[0].containers[0])
    heights = [b.get_height() for b in bars]
    np.testing.assert_allclose(heights[:-1], heights[0])
    assert len(bars) <= 51 and bars[0].get_x() == -0.5


def test_a_value_that_would_squeeze_the_rest_is_left_out_and_counted(rng):
    x = rng.normal(size=(500, 3))
    x[7, 1] = 1e6
    free, squeezed, _ = plot.vectors(x).axes
    assert free.get_xlim() == pytest.approx((x[:, 0].min(), x[:, 0].max())) and not free.texts
    assert squeezed.get_xlim()[1] < 10 and squeezed.texts[0].get_text() == "1 outside"
    ax = plot.scatter(x[:, :2]).axes[0]
    assert ax.get_ylim()[1] < 10 and ax.texts[0].get_text() == "1 outside"
    assert len(ax.collections[0].get_offsets()) == 500


def test_names_are_drawn_character_by_character(rng, tmp_path):
    names = ["price in $ (of $ 2020)", "_rank", "a" * 60 + "\nb"]
    figure = plot.vectors(rng.normal(size=(20, 3)), names=names)
    plot.save_figure(tmp_path / "a.png", figure)  # a formula that cannot be parsed is found when it is drawn
    assert [ax.get_title() for ax in figure.axes][:2] == [r"price in \$ (of \$ 2020)", " _rank"]
    assert len(figure.axes[2].get_title()) == 24 and "\n" not in figure.axes[2].get_title()
    pair = plot.scatter(rng.normal(size=(20, 2)), names=[r"$\frac{$", "b"]).axes[0]
    pair.figure.canvas.draw()
    assert pair.get_ylabel() == "b"
    both = plot.likelihood_histogram({"$x^{$": [1.0, 2.0], "_y": [1.0]}, "nats")
    both.canvas.draw()
    assert [t.get_text()[:3] for t in both.axes[0].get_legend().get_texts()] == [r"\$x", " _y"]
    plot.compass([1.0, 0.0], np.ones((2, 3)), np.ones((2, 3)), "$_{$", "$ and $ {").canvas.draw()
    plot.work_precision({"$a_{$": [[1.0, 1.0, 1.0]]}).canvas.draw()


def test_columns_of_unlike_size_have_a_scale_each(rng):
    x = rng.normal(size=(200, 2)) * [1.0, 1e5]
    ax = plot.scatter(x, names=["age", "income"]).axes[0]
    for (low, high), values in ((ax.get_xlim(), x[:, 0]), (ax.get_ylim(), x[:, 1])):
        assert high - low == pytest.approx(1.08 * np.ptp(values))
    still = plot.animate(np.stack([3 * x, x]), "vector", 0, 1, ["age", "income"])
    assert still[0].shape == still[1].shape and (still[0] != still[1]).any()


def test_samples_are_drawn_as_what_they_are(rng):
    images = rng.uniform(-1, 1, (5, 3, 8, 8))
    for x in (images, torch.from_numpy(images)):
        figure = plot.samples_figure(x, "image", -1, 1, images[:2])
        assert [ax.get_title(loc="left") for ax in figure.axes] == ["samples", "data"]
        for ax, shown in zip(figure.axes, (images, images[:2]), strict=True):
            np.testing.assert_array_equal(ax.images[0].get_array(), plot.image_grid(shown, None, -1, 1))
    assert len(plot.samples_figure(images, "image", -1, 1).axes) == 1
    traces, others = rng.normal(size=(3, 1, 9)), rng.normal(size=(2, 1, 9))
    figure = plot.samples_figure(traces, "signal", -1, 1, others)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["samples", "data"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    np.testing.assert_allclose([ax.lines[0].get_ydata() for ax in figure.axes], [traces[0, 0], others[0, 0]])
    assert [len(ax.lines) for ax in figure.axes] == [3, 2]
    points, below = rng.normal(size=(2, 30, 2))
    ax = plot.samples_figure(points, "vector", -1, 1, below).axes[0]
    np.testing.assert_allclose([c.get_offsets() for c in ax.collections], [below, points])
    assert [ax.get_title() for ax in plot.samples_figure(rng.normal(size=(30, 3)), "vector", -1, 1).axes] == [
        "x0", "x1", "x2"
    ]  # fmt: skip
    both = rng.normal(size=(2, 3, 2, 9))
    figure = plot.samples_figure(both[0], "signal", -1, 1, both[1], names=["u", "v"])
    assert [part.get_suptitle() for part in figure.subfigs] == ["samples", "data"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["u", "v"] * 2
    volume = rng.uniform(-1, 1, (4, 1, 3, 5, 5))
    shown = plot.samples_figure(volume, "volume", -1, 1).axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, plot.image_grid(volume[:, :, 1]))


def test_a_loss_is_drawn_at_its_step_and_a_gap_where_it_is_not_finite():
    ax = plot.loss_curve([10, 20, 40], [1.0, math.nan, math.inf]).axes[0]
    each, mean = ax.lines
    assert each.get_xdata().tolist() == mean.get_xdata().tolist() == [10, 20, 40]
    assert each.get_ydata()[0] == 1 and np.isnan(each.get_ydata()[1:]).all()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["each record", "running mean"]
    assert len(plot.loss_curve([1], [1.0], ([], []), best=3).axes[0].lines) == 2


def test_the_validation_loss_is_drawn_beside_the_training_loss():
    ax = plot.loss_curve([1, 2, 3], [1.0, 0.9, 0.8], ([1, 3], [1.2, math.nan]), best=1).axes[0]
    held, best = ax.lines[2:]
    assert held.get_xdata().tolist() == [1, 3] and held.get_ydata()[0] == 1.2 and math.isnan(held.get_ydata()[1])
    assert list(best.get_xdata()) == [1, 1]
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["each record", "running mean", "validation", "lowest, step 1"]
    assert plot.loss_curve([1], [1.0], ([1], [90.0])).axes[0].get_yscale() == "log"
    with pytest.raises(UsageError, match="one loss for each step"):
        plot.loss_curve([1], [1.0], ([1, 2], [1.0]))


@pytest.mark.parametrize("backend", ["module://nowhere", "nonsense"])
def test_figures_need_no_backend(tmp_path, backend):
    program = f"""
import os, numpy as np
from scoresde import plot
plot.save_figure({str(tmp_path / "a.png")!r}, plot.scatter(np.eye(2)))
assert os.environ["MPLBACKEND"] == {backend!r}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=os.environ | {"MPLBACKEND": backend})
    assert Image.open(tmp_path / "a.png").size[0] > 100


def test_the_density_lies_under_the_arrows(rng):
    # A pixel for each node, around it, the first row at the bottom.
    x, y, density = np.linspace(-1, 1, 5), np.linspace(0, 6, 4), rng.uniform(size=(4, 5))
    ax = plot.score_field(None, x, y, np.ones((4, 5)), np.ones((4, 5)), density).axes[0]
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), density)
    assert image.origin == "lower" and image.get_extent() == pytest.approx((-1.25, 1.25, -1, 7))
    assert (*ax.get_xlim(), *ax.get_ylim()) == pytest.approx((-1.25, 1.25, -1, 7))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.scatter(np.zeros((1, 2))),
        lambda: plot.signals(np.zeros((1, 1, 1))),
        lambda: plot.vectors(np.ones((3, 1))),
        lambda: plot.loss_curve([], []),
        lambda: plot.score_field(None, np.arange(3), np.arange(2), np.zeros((2, 3)), np.zeros((2, 3)), None),
    ],
    ids=["one point", "one value", "equal values", "no loss", "no score"],
)
def test_the_least_there_is_can_be_drawn(draw):
    # Axes without a width and divisions by nothing would warn here.
    figure = draw()
    assert isinstance(figure, Figure)
    figure.canvas.draw()


def test_pyplot_is_not_imported_and_settings_do_not_change(tmp_path):
    program = f"""
import sys, numpy as np
from scoresde import plot
assert not any(name.startswith(("matplotlib", "PIL", "scipy")) for name in sys.modules), "imported too early"
import matplotlib
settings = lambda: {{k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != "backend"}}
before = settings()
plot.save_figure({str(tmp_path / "a.png")!r}, plot.scatter(np.eye(2), np.eye(2)))
plot.save_figure({str(tmp_path / "b.png")!r}, plot.samples_figure(np.zeros((2, 1, 4, 4)), "image", -1, 1))
for figure in (plot.signals(np.zeros((2, 1, 9))), plot.vectors(np.eye(3)), plot.loss_curve([1, 2], [3, 4])):
    figure.canvas.draw()
assert "matplotlib.pyplot" not in sys.modules
assert settings() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_given_axes_are_used(rng):
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    grid = np.linspace(-1, 1, 5)
    zero = np.zeros((5, 5))
    for panel in (left, right):
        ax = panel.add_subplot()
        assert plot.scatter(rng.normal(size=(9, 2)), ax=ax) is figure
    assert plot.signals(rng.normal(size=(2, 1, 9)), ax=left.axes[0]) is figure
    assert plot.loss_curve([1, 2], [3, 4], ax=left.axes[0]) is figure
    assert plot.score_field(right.axes[0], grid, grid, zero, zero, zero) is figure


def test_scatter_shares_square_limits(rng):
    x, reference = rng.uniform(0, 1, (9, 2)), np.array([[-4.0, 0.0], [6.0, 1.0]])
    ax = plot.scatter(x, reference).axes[0]
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    assert x1 - x0 == pytest.approx(y1 - y0)
    assert (x0 + x1) / 2 == pytest.approx(1) and x0 < -4 and x1 > 6
    drawn = [collection.get_offsets() for collection in ax.collections]
    assert (drawn[0] == reference).all() and (drawn[1] == x).all()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["data", "samples"]
    assert plot.scatter(x, title="alone").axes[0].get_title(loc="left") == "alone"


def test_loss_axis_is_logarithmic_beyond_a_decade():
    steps = np.arange(3)
    assert plot.loss_curve(steps, [1.0, 5.0, 9.0]).axes[0].get_yscale() == "linear"
    assert plot.loss_curve(steps, [0.1, 5.0, 9.0]).axes[0].get_yscale() == "log"
    assert plot.loss_curve(steps, [-1.0, 5.0, 90.0]).axes[0].get_yscale() == "linear"


def test_running_mean_is_centred_and_skips_what_is_missing():
    line = np.arange(20.0)
    assert plot.loss_curve(line, line).axes[0].lines[1].get_ydata()[1:-1] == pytest.approx(line[1:-1])
    y = np.array([1.0, math.nan, 5.0, 7.0])
    smooth = plot.loss_curve(np.arange(4), y).axes[0].lines[1].get_ydata()
    assert smooth[[0, 2, 3]] == pytest.approx([1, 6, 6]) and math.isnan(smooth[1])


def test_score_arrows_point_along_the_score():
    xs, ys = np.linspace(-1, 1, 5), np.linspace(-2, 2, 4)
    u, v = np.meshgrid(3 * xs, -ys)
    quiver = next(c for c in plot.score_field(None, xs, ys, u, v, None).axes[0].collections if hasattr(c, "U"))
    assert (quiver.X.reshape(4, 5)[0] == xs).all() and (quiver.Y.reshape(4, 5)[:, 0] == ys).all()
    cross = quiver.U * v.ravel() - quiver.V * u.ravel()
    assert cross == pytest.approx(0, abs=1e-12) and (quiver.U * u.ravel() + quiver.V * v.ravel() >= 0).all()
    assert np.hypot(quiver.U, quiver.V) ** 4 == pytest.approx(np.hypot(u, v).ravel())


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot.scatter(np.zeros((3, 3))),
        lambda: plot.scatter(np.array([[0.0, math.inf]])),
        lambda: plot.scatter(np.zeros((3, 2)), np.zeros((0, 2))),
        lambda: plot.signals(np.zeros((3, 4))),
        lambda: plot.signals(np.zeros((0, 1, 4))),
        lambda: plot.vectors(np.zeros((3, 4)), np.zeros((3, 5))),
        lambda: plot.samples_figure(np.zeros((3, 4)), "sound", -1, 1),
        lambda: plot.loss_curve([1, 2], [1.0]),
        lambda: plot.score_field(None, np.arange(3), np.arange(2), np.zeros((3, 2)), np.zeros((3, 2)), None),
        lambda: plot.save_image_grid("never.png", np.zeros((1, 1, 2, 2)), -1, 1, magnify=0),
    ],
)
def test_refusals(call):
    with pytest.raises(UsageError):
        call()


# --- likelihoods --------------------------------------------------------------------------------------------


def test_a_histogram_has_all_values_in_bins_of_one_width(rng):
    sets = {"inside": rng.normal(2, 0.2, 400), "outside": rng.normal(9, 0.4, 100)}
    ax = plot.likelihood_histogram(sets, "bits/dim").axes[0]
    assert ax.get_xlabel() == "bits/dim"
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == [f"{name}, mean {v.mean():.4g}" for name, v in sets.items()]
    assert [line.get_xdata()[0] for line in ax.lines] == [v.mean() for v in sets.values()]
    bars = [c for c in ax.containers if len(c) > 1]
    widths = {round(b.get_width(), 6) for c in bars for b in c}
    assert len(widths) <= 3, "the first and last bins may be wider by a rounding"
    for container, values in zip(bars, sets.values(), strict=True):
        counts = [b.get_height() * b.get_width() * len(values) for b in container]
        assert sum(counts) == pytest.approx(len(values)), "area 1"
        edges = [b.get_x() for b in container] + [container[-1].get_x() + container[-1].get_width()]
        np.testing.assert_allclose(counts, np.histogram(values, edges)[0], atol=1e-6)
        assert edges[0] <= values.min() and edges[-1] >= values.max()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "sets", [{"a": [1.0]}, {"a": [2, 2], "b": [2]}, {"a": [1, 1, 1, 5], "b": [3]}, {"a": [1, 1e6]}]
)
def test_histograms_of_few_values(sets):
    figure = plot.likelihood_histogram(sets, "nats")
    figure.canvas.draw()
    drawn = [b for c in figure.axes[0].containers for b in c]
    assert drawn and all(math.isfinite(b.get_height()) for b in drawn)


def test_histograms_that_cannot_be_drawn():
    with pytest.raises(UsageError, match="1 to 7 data sets, each with at least one value"):
        plot.likelihood_histogram({"a": []}, "nats")
    with pytest.raises(UsageError, match="1 to 7 data sets"):
        plot.likelihood_histogram({str(i): [1.0] for i in range(8)}, "nats")
    with pytest.raises(UsageError, match="non-finite values"):
        plot.likelihood_histogram({"a": [1.0, math.nan]}, "nats")


# --- calibration --------------------------------------------------------------------------------------------


def test_ranks_and_coverage_are_drawn_as_they_are():
    counts, errors, levels = [0.5, 1.0, 1.5, 1.0], [0.1, math.nan, 0.2, 0.1], [0.2, 0.5, 0.9]
    figure = plot.calibration({"a": (counts, errors)}, {"a": ([0.1, 0.4, 0.95], [0.01, 0.02, math.nan])}, levels)
    left, right = figure.axes
    assert [bar.get_height() for bar in left.containers[0]] == counts
    bars = [segment for c in left.collections for segment in c.get_segments()]
    ends = {(round(float(s[0, 0]), 6), round(float(s[0, 1]), 6), round(float(s[1, 1]), 6)) for s in bars}
    assert ends == {(0.125, 0.3, 0.7), (0.625, 1.1, 1.9), (0.875, 0.8, 1.2)}  # two standard errors, where known
    diagonal, curve = right.lines[:2]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert list(curve.get_xdata()) == levels and list(curve.get_ydata()) == [0.1, 0.4, 0.95]
    assert left.get_ylim()[1] > 1.9 and left.get_legend() is None
    figure.canvas.draw()


@pytest.mark.filterwarnings("error")
def test_several_columns_share_a_legend_and_their_bars_stand_apart():
    ranks = {name: ([1.0, 1.0], [0.1, 0.1]) for name in ("_age", "$dose$", "c")}
    figure = plot.calibration(ranks, {name: ([0.5], [0.1]) for name in ranks}, [0.5])
    figure.canvas.draw()
    left = figure.axes[0]
    assert len(left.get_legend().get_texts()) == 3
    places = [round(float(segment[0, 0]), 6) for c in left.collections for segment in c.get_segments()]
    assert len(set(places)) == 6 and all(0 < place < 1 for place in places)


@pytest.mark.parametrize(
    ("ranks", "coverage", "message"),
    [
        ({}, {}, "1 to 7 of them"),
        ({"a": ([1.0], [0.0])}, {"b": ([0.5], [0.1])}, r"got \['a'\] and \['b'\]"),
        ({"a": ([1.0, 1.0], [0.0])}, {"a": ([0.5], [0.1])}, "one standard error for each value"),
        ({"a": ([1.0], [0.0])}, {"a": ([0.5, 0.6], [0.1, 0.1])}, "has 2 values for 1 levels"),
        ({"a": ([math.nan], [0.0])}, {"a": ([0.5], [0.1])}, "non-finite values"),
    ],
)
def test_calibration_that_cannot_be_drawn(ranks, coverage, message):
    with pytest.raises(UsageError, match=message):
        plot.calibration(ranks, coverage, [0.5])
