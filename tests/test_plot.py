"""Pictures: pixels are exact, files are whole, and nothing of pyplot is touched."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from scoresde import plot
from scoresde.errors import CheckpointError, UsageError


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


def test_grey_and_grey_with_opacity_show_the_first_channel():
    x = np.array([0.0, 0.2, 0.6, 1.0]).reshape(1, 1, 2, 2)
    expected = np.array([[0, 51], [153, 255]])
    for images in (x, np.concatenate((x, 1 - x), axis=1)):
        sheet = plot.image_grid(images, low=0, high=1, pad=0)
        assert (sheet == expected[:, :, None]).all()


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
        {"x": np.zeros((2, 5, 4, 4))},
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


def figures(rng):
    """One of each."""
    grid = np.linspace(-2, 2, 30)
    u, v = np.meshgrid(-grid, -grid)
    images = rng.uniform(-1, 1, (5, 3, 8, 8))
    return [
        plot.scatter(rng.normal(size=(50, 2)), rng.normal(size=(70, 2)), title="both"),
        plot.scatter(np.zeros((1, 2))),
        plot.signals(rng.normal(size=(10, 2, 40))),
        plot.signals(np.zeros((1, 1, 1))),
        plot.vectors(rng.normal(size=(50, 9)), rng.normal(size=(20, 9))),
        plot.vectors(np.ones((3, 1))),
        plot.samples_figure(images, "image", -1, 1),
        plot.samples_figure(torch.from_numpy(images), "image", -1, 1, images[:2]),
        plot.samples_figure(rng.normal(size=(3, 1, 9)), "signal", -1, 1, rng.normal(size=(2, 1, 9))),
        plot.samples_figure(rng.normal(size=(30, 2)), "vector", -1, 1, rng.normal(size=(30, 2))),
        plot.samples_figure(rng.normal(size=(30, 3)), "vector", -1, 1),
        plot.loss_curve(np.arange(100), np.exp(-np.arange(100) / 20)),
        plot.loss_curve([1, 2, 3], [1.0, math.nan, math.inf]),
        plot.loss_curve([], []),
        plot.score_field(None, grid, grid, u, v, np.exp(-(u**2 + v**2) / 2)),
        plot.score_field(None, grid[:3], grid[:2], np.zeros((2, 3)), np.zeros((2, 3)), None),
        plot.forward_strip([plot.image_grid(images[:1]), np.eye(4)], ["t = 0", "t = 1"]),
    ]


def test_figures_are_returned_and_can_be_drawn(rng, tmp_path):
    for i, figure in enumerate(figures(rng)):
        assert isinstance(figure, Figure)
        plot.save_figure(tmp_path / f"{i}.png", figure, dpi=40)
        assert np.asarray(Image.open(tmp_path / f"{i}.png")).std() > 0


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
assert "matplotlib.pyplot" not in sys.modules
assert settings() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_no_figure_is_left_open(rng):
    figures(rng)
    if "matplotlib.pyplot" in sys.modules:  # some other test may have imported it
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


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
        lambda: plot.forward_strip([np.eye(2)], []),
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
    with pytest.raises(UsageError, match="1 to 7 data sets, each with a value"):
        plot.likelihood_histogram({"a": []}, "nats")
    with pytest.raises(UsageError, match="1 to 7 data sets"):
        plot.likelihood_histogram({str(i): [1.0] for i in range(8)}, "nats")
    with pytest.raises(UsageError, match="not finite"):
        plot.likelihood_histogram({"a": [1.0, math.nan]}, "nats")
