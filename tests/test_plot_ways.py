"""Schedules, strips, paths, fields and the compass: what is drawn, where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scoresde import plot
from scoresde.core.errors import UsageError
from scoresde.plot.strips import SECTORS, sectors


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def curve(name="vp", infinite=False):
    t = np.linspace(0.01, 1, 50)
    alpha, sigma = 1 - t, t
    with np.errstate(divide="ignore"):
        log_snr = 2 * np.log(alpha / sigma)
        beta, g2 = 2 / (1 - t), 2 * t / (1 - t)
    nodes = np.linspace(8, -8, 33)
    if infinite:
        nodes[-1] = -np.inf
    return plot.Schedule(name, t, alpha, sigma, log_snr, beta, g2, nodes, np.linspace(-3, 3, 2000))


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_schedules_show_each_sde_in_each_panel():
    one, two = curve("one"), replace(curve("two"), sigma=1.5 * curve().sigma)
    figure = plot.schedules([one, two])
    assert len(figure.axes) == 8
    t, levels = one.t, one.log_snr.clip(-60, 60)
    shown = [(t, "alpha"), (t, "sigma"), None, (t, "log_snr"), (levels, "alpha"), (levels, "sigma")]
    for ax, panel in zip(figure.axes, shown, strict=False):
        for each in (one, two):
            drawn = lines(ax)[each.name]
            if panel is not None:
                np.testing.assert_allclose(drawn.get_xdata(), panel[0])
                np.testing.assert_allclose(drawn.get_ydata(), getattr(each, panel[1]).clip(-60, 60))
    heads = [ax.get_title(loc="left") for ax in figure.axes]
    assert [head[0] for head in heads] == ["α", "σ", "β", "l", "α", "σ", "s", "n"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    # From data on the left to noise on the right, on all axes of the lower row alike.
    assert len({ax.get_xlim() for ax in figure.axes[4:]}) == 1
    left, right = figure.axes[4].get_xlim()
    assert left > right
    widths = [line.get_linewidth() for line in figure.axes[0].lines]
    assert widths[0] > widths[1], "a line that is hidden behind another can still be seen"


def test_beta_is_dotted_where_the_noise_differs_and_cut_where_it_has_no_end():
    ax = plot.schedules([curve()]).axes[2]
    beta, noise = ax.lines
    assert noise.get_linestyle() != beta.get_linestyle()
    assert np.isnan(beta.get_ydata()[-1]) and np.nanmax(beta.get_ydata()) < 1e3
    preserving = replace(curve(), g2=curve().beta)
    assert len(plot.schedules([preserving]).axes[2].lines) == 1


@pytest.mark.parametrize("infinite", [False, True])
def test_shares_of_steps_and_of_training_add_up_to_one(infinite):
    axes = plot.schedules([curve(infinite=infinite)]).axes
    _, y = axes[6].lines[0].get_data()
    assert float(np.sum(y) * 0.5) == pytest.approx(1 - infinite / 32), "each step is half a unit of log-SNR wide"
    values, edges, _ = axes[7].patches[0].get_data()
    assert float(np.sum(values * np.diff(edges))) == pytest.approx(1)


def test_exploding_noise_has_a_logarithmic_axis():
    calm, wild = curve(), replace(curve(), sigma=50 * np.asarray(curve().sigma))
    assert plot.schedules([calm]).axes[1].get_yscale() == "linear"
    assert plot.schedules([calm, wild]).axes[1].get_yscale() == "log"
    with pytest.raises(UsageError, match="no schedule"):
        plot.schedules([])


# ------------------------------------------------------------------------------------------------------------ strips


def test_a_strip_of_images_has_a_column_for_each_time(rng):
    states = rng.uniform(-1, 1, (4, 3, 1, 5, 6))
    figure = plot.strips({"there": states, "back": -states}, list("abcd"), "image")
    for ax, x in zip(figure.axes, (states, -states), strict=True):
        sheet = ax.images[0].get_array()
        assert sheet.shape == (3 * 6 + 1, 4 * 7 + 1, 3)
        for n in range(3):
            for t in range(4):
                one = plot.image_grid(x[t, n][None], pad=0)
                np.testing.assert_array_equal(sheet[1 + 6 * n : 6 + 6 * n, 1 + 7 * t : 7 + 7 * t], one)
        assert [label.get_text() for label in ax.get_xticklabels()] == list("abcd")
        assert ax.get_xticks().tolist() == [3.5, 10.5, 17.5, 24.5], "labels are in the middle of the columns"
    assert [part._suptitle.get_text() for part in figure.subfigs] == ["there", "back"]


def test_points_keep_their_colours(rng):
    states = rng.normal(size=(3, 40, 2))
    blocks = {"a": states, "b": states[::-1]}
    figure = plot.strips(blocks, ["1", "2", "3"], "vector", coloured_by=states[0], note="below")
    first, last = figure.axes[0].collections[0], figure.axes[5].collections[0]
    np.testing.assert_allclose(first.get_offsets(), states[0])
    np.testing.assert_allclose(first.get_facecolors(), last.get_facecolors())
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    angle = np.arange(8) * np.pi / 4
    assert len(set(sectors(np.stack([np.cos(angle), np.sin(angle)], 1)))) == len(set(SECTORS)) == 8


def test_signals_are_traces_on_the_same_axes(rng):
    states = rng.normal(size=(2, 3, 2, 16))
    figure = plot.strips({"a": states}, ["1", "2"], "signal")
    assert [len(ax.lines) for ax in figure.axes] == [3, 3]
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), states[1, 0, 0])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


@pytest.mark.parametrize(
    ("blocks", "columns", "kind"),
    [
        ({}, ["a"], "image"),
        ({"a": np.zeros((2, 1, 1, 4, 4))}, ["a"], "image"),
        ({"a": np.zeros((1, 1, 4))}, ["a"], "image"),
        ({"a": np.zeros((1, 0, 2))}, ["a"], "vector"),
        ({"a": np.zeros((1, 3, 1))}, ["a"], "vector"),
        ({"a": np.zeros((1, 3, 1))}, ["a"], "cloud"),
    ],
)
def test_refused_strips(blocks, columns, kind):
    with pytest.raises(UsageError):
        plot.strips(blocks, columns, kind)


# ------------------------------------------------------------------------------------------------------------- paths


def test_paths_are_drawn_in_the_same_colours_on_both_sides(rng):
    t = np.linspace(1, 0.01, 20)
    flow = np.cumsum(rng.normal(size=(20, 50)), axis=0)
    other = np.concatenate([flow[:1], np.cumsum(rng.normal(size=(19, 50)), axis=0)])
    figure = plot.trajectories(t, {"flow": flow, "sde": other}, shown=3, data=rng.normal(size=80), label="x")
    assert len(figure.axes) == 6
    sides = [figure.axes[1], figure.axes[4]]
    for ax, x in zip(sides, (flow, other), strict=True):
        assert len(ax.lines) == 3 and ax.get_xlim() == (1, 0.01)
        for line, row in zip(ax.lines, np.argsort(flow[0, :3]), strict=True):
            np.testing.assert_allclose(line.get_data(), (t, x[:, row]))
    assert [a.get_color() for a in sides[0].lines] == [b.get_color() for b in sides[1].lines]
    with pytest.raises(UsageError, match="20 times"):
        plot.trajectories(t, {"flow": flow[:5]})


def test_the_histograms_beside_the_paths_are_of_their_first_and_last_states(rng):
    # Noise about -3 on the left, two modes about 3 on the right, the data in grey behind these alone.
    first, last, data = rng.normal(-3, 0.3, 200), rng.normal(3, 0.3, 200), rng.normal(3.5, 0.2, 100)
    x = np.linspace(first, last, 6)
    start, panel, end = plot.trajectories(np.linspace(1, 0, 6), {"flow": x}, data=data, label="value").axes
    assert start.get_ylabel() == "value" and panel.get_title(loc="left") == "flow"

    def middle(patch):
        """The height about which a histogram that lies on its side is drawn."""
        width, height = patch.get_xy().T
        return float((width * height).sum() / width.sum())

    assert middle(start.patches[-1]) == pytest.approx(-3, abs=0.2)
    assert middle(end.patches[-1]) == pytest.approx(3, abs=0.2)
    assert not start.containers and len(end.containers) == 1
    behind = [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in end.containers[0]]
    assert sum(y * w for y, w in behind) / sum(w for _, w in behind) == pytest.approx(3.5, abs=0.1)


def test_the_shade_behind_the_paths_is_their_law(rng):
    """On a law of two spikes the shade is darkest at both, at each time."""
    x = np.where(np.arange(200) % 2, 2.0, -2.0)[None].repeat(5, axis=0) + 0.05 * rng.normal(size=(5, 200))
    ax = plot.trajectories(np.linspace(1, 0, 5), {"a": x}, shown=1).axes[1]
    mesh = ax.collections[0]
    shade = mesh.get_array().reshape(-1, 5)
    heights = mesh.get_coordinates()[:, 0, 1]
    peaks = heights[shade[:, 2] > 0.5]
    assert peaks.min() == pytest.approx(-2, abs=0.4) and peaks.max() == pytest.approx(2, abs=0.4)
    assert shade[np.abs(heights).argmin(), 2] < 0.05


# ------------------------------------------------------------------------------------------------ fields and compass


def test_fields_have_a_row_for_each_model_and_a_column_for_each_time(rng):
    x = np.linspace(-1, 1, 5)
    fields = {"learned": rng.normal(size=(3, 2, 5, 5)), "exact": rng.normal(size=(3, 2, 5, 5))}
    density, dots = rng.uniform(size=(3, 5, 5)), rng.normal(size=(3, 7, 2))
    figure = plot.score_fields(x, x, fields, ["a", "b", "c"], density, dots)
    assert len(figure.axes) == 6
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", "", "", ""]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["learned", "exact"]
    for i, ax in enumerate(figure.axes):
        np.testing.assert_allclose(ax.images[0].get_array(), density[i % 3])
        np.testing.assert_allclose(ax.collections[0].get_offsets(), dots[i % 3])
        # Quivers point along the field.
        field, arrows = fields["learned" if i < 3 else "exact"][i % 3], ax.collections[1]
        angle = np.arctan2(arrows.V, arrows.U)
        np.testing.assert_allclose(angle, np.arctan2(field[1], field[0]).ravel(), atol=1e-9)
    with pytest.raises(UsageError, match="T = 2"):
        plot.score_fields(x, x, fields, ["a", "b"])


def test_the_compass_has_bands_from_data_to_noise():
    levels = np.linspace(10, -10, 6)
    cosine, error = np.tile([0.2, 0.5, 0.9], (6, 1)), np.tile([1e-3, 1e-2, 1e-1], (6, 1))
    figure = plot.compass(levels, cosine, error, "title", "note")
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() == (10, -10) and right.get_yscale() == "log"
    np.testing.assert_allclose(lines(left)["mean"].get_data(), (levels, cosine[:, 1]))
    np.testing.assert_allclose(lines(right)["root mean square"].get_data(), (levels, error[:, 1]))
    assert figure.get_supxlabel() == "note" and figure.get_suptitle() == "title"
    with pytest.raises(UsageError, match="L = 6"):
        plot.compass(levels, cosine[:5], error)


# -------------------------------------------------------------------------------------------------------- animations


# All kinds alike but for what stands in a half, which the strips show too.
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("image", (5, 6, 6)),
        ("volume", (1, 4, 6, 6)),
        *(
            pytest.param(k, s, marks=pytest.mark.slow)
            for k, s in (("image", (3, 6, 6)), ("signal", (1, 9)), ("vector", (2,)))
        ),
    ],
)
def test_a_pair_moves_side_by_side(rng, kind, shape):
    left, right = rng.uniform(-1, 1, (2, 3, 4, *shape))
    pictures = plot.animate_pair(left, right, [("a", "b")] * 3, kind, -1, 1)
    assert len({p.shape for p in pictures}) == 1 and pictures[0].dtype == np.uint8
    assert (pictures[0] != pictures[1]).any()
    # A title with a hat stands whole within the frame.
    hat = plot.animate_pair(left, right, [(r"$x_t$", r"$\hat{x}_0(x_t, t)$")] * 3, kind, -1, 1)
    assert (hat[0][:2] == 255).all() and (hat[0] != pictures[0]).any()
    # Each half shows its own: with the same right side, only the left half moves.
    still = plot.animate_pair(left, right[:1].repeat(3, 0), [("a", "b")] * 3, kind, -1, 1)
    half = still[0].shape[1] // 2 + 20
    assert (still[0][:, half:] == still[2][:, half:]).all() and (still[0] != still[2]).any()


@pytest.mark.parametrize(
    ("left", "kind"),
    [(np.zeros((2, 3, 1)), "vector"), (np.zeros((2, 3, 2)), "cloud"), (np.zeros((3, 3, 2)), "vector")],
)
def test_refused_pairs(left, kind):
    with pytest.raises(UsageError):
        plot.animate_pair(left, np.zeros((2, 3, left.shape[2])), [("a", "b")] * 2, kind, -1, 1)


@pytest.mark.parametrize(("kind", "shape"), [("signal", (2, 30)), ("vector", (2,)), ("vector", (3,))])
def test_the_axes_stand_still(rng, kind, shape):
    # The noise of the first frame is 50 times as wide as the data of the last, whose axes both have.
    x = rng.normal(size=(2, 40, *shape)) * np.array([50, 1]).reshape(2, *[1] * (len(shape) + 1))
    first, last = plot.animate(x, kind, 0, 1, ["a", "b", "c"][: shape[0]])
    strip = np.s_[-18:, :] if shape == (3,) else np.s_[:, :16]  # the numbers below, or on the left
    assert (first[strip] == last[strip]).all() and (last[strip] != 255).any() and (first != last).any()


def test_the_rows_of_a_table_are_compared_in_standard_deviations(rng):
    data = rng.normal(size=(100, 3)) * [1.0, 1e4, 1e-4] + [5, 0, 0]
    axes = plot.neighbour_sheet(data[:2], data[2:4], ["a", "b"], "vector", 0, 1, data=data).axes
    scaled = (data - data.mean(0)) / data.std(0)
    for i, ax in enumerate(axes):
        nearest, sample = (line.get_ydata() for line in ax.lines)
        np.testing.assert_allclose(sample, scaled[i])
        np.testing.assert_allclose(nearest, scaled[2 + i])


def test_a_pair_of_pictures_with_many_channels_has_one_scale(rng):
    x = rng.uniform(0, 1, (1, 5, 4, 4))
    sample, nearest = plot.neighbour_sheet(x, 0.5 * x, ["a"], "image", 0, 1).axes
    whole, half = (float(panel.images[0].get_array()[:, 1:5].mean()) for panel in (sample, nearest))
    assert half < 0.7 * whole
