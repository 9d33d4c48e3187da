"""Pictures of the figures for readers without scripts, as small PNG files inside the page.

They are drawn from the packed numbers of the page, so they show what the script shows. Each has at most 32 colours and
no dates, so that the same page has the same bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plot.base import BLUE, COLOURS, GREY, INK, new_figure, tidy
from .data import Numbers, unpack
from .frame import angle
from .table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["poster", "posters"]

Parts = Mapping[str, Any]


def posters(parts: Parts) -> dict[str, str]:
    """Return a data URI for each figure of a page."""
    plane = parts["about"]["kind"] == "plane"
    made: dict[str, Callable[[Parts], Figure]] = {"forward": _forward, "reverse": _reverse}
    if plane:
        made |= {"compass": _compass, "field": _field, "flows": _flows, "density": _density}
    made |= {"schedules": _schedules, "solvers": _solvers}
    return {name: poster(draw(parts)) for name, draw in made.items()}


def poster(figure: Figure) -> str:
    """Return a figure as the data URI of a PNG file with at most 32 colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])  # type: ignore[no-untyped-call]
    out = io.BytesIO()
    image.quantize(32, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _panels(count: int, width: float = 6.6, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    figure = new_figure(width, height)
    figure.set_dpi(96)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _scatter(ax: Axes, x: Numbers, half: float, title: str, colour: str = BLUE) -> None:
    """Draw points ``(2, N)`` of the plane."""
    ax.scatter(x[0], x[1], s=2, color=colour, linewidths=0)
    ax.set_xlim(-half, half)
    ax.set_ylim(-half, half)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, fontsize=9, color=INK)


def _missing(note: str) -> Figure:
    figure, (ax,) = _panels(1, height=1.0)
    ax.axis("off")
    ax.text(0, 0.5, note[:90], fontsize=9, color=INK)
    return figure


def _strip(ax: Axes, block: Numbers, about: Parts, title: str) -> None:
    """Draw up to six samples of one frame, ``(n, *event)``, side by side."""
    ax.set_title(title, fontsize=9, color=INK)
    ax.set_xticks([])
    ax.set_yticks([])
    if about["kind"] == "points":
        ax.scatter(block[:, 0], block[:, 1], s=2, color=BLUE, linewidths=0)
        ax.set_xlim(*about["window"][0])
        ax.set_ylim(*about["window"][1])
    elif about["kind"] == "signal":
        for k, row in enumerate(block[:3]):
            ax.plot(row[0], color=COLOURS[k], linewidth=0.8)
        ax.set_ylim(*about["window"][1])
    else:
        few = [np.pad(x.transpose(1, 2, 0), ((1, 1), (1, 1), (0, 0))) for x in block[:4]]
        sheet = np.concatenate([np.concatenate(few[i : i + 2], 1) for i in range(0, len(few) - 1, 2)] or few[:1])
        ax.imshow(sheet if sheet.shape[2] == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=1)


def _forward(parts: Parts) -> Figure:
    about, (figure, axes) = parts["about"], _panels(4)
    if about["kind"] != "plane":
        frames = unpack(parts["forward"]["frames"])
        for ax, share in zip(axes, (0.0, 0.35, 0.65, 1.0), strict=True):
            _strip(ax, frames[round(share * (len(frames) - 1))], about, ("data", "", "", "noise")[axes.index(ax)])
        return figure
    x0, eps = (unpack(parts["forward"][0][name]) for name in ("x0", "eps"))
    for ax, noise in zip(axes, (0.0, 0.1, 0.5, 1.0), strict=True):
        _scatter(ax, (1 - noise) ** 0.5 * x0 + noise**0.5 * eps, about["half"], f"{noise:.0%} noise")
    return figure


def _reverse(parts: Parts) -> Figure:
    found, about = parts["reverse"][0], parts["about"]
    if found["note"]:
        return _missing(found["note"])
    figure, axes = _panels(4)
    titles = ("noise", "", "", "samples")
    states = unpack(found["states"])
    for ax, share, title in zip(axes, (0.0, 0.4, 0.7, 1.0), titles, strict=True):
        at = round(share * (len(found["log_snr"]) - 1))
        if about["kind"] == "plane":
            _scatter(ax, states[:, :, at], about["half"], title)
        else:
            _strip(ax, states[at], about, title)
    return figure


def _arrows(ax: Axes, parts: Parts, log_snr: float, score: bool, title: str) -> None:
    """Draw the model's arrows at one noise level over noisy data: to its estimates, or along the score."""
    import torch

    about, stored = parts["about"], parts["table"][0]
    table = Table(stored["values"], stored["half"], stored["low"], stored["high"], 0, 0)
    own = parts["forward"][-1]
    c, s = (float(v) for v in angle(torch.tensor(log_snr, dtype=torch.float64)))
    _scatter(ax, c * unpack(own["x0"]) + s * unpack(own["eps"]), about["half"], title, "#9ecae1")
    ticks = np.linspace(-0.92, 0.92, 15) * about["half"]
    z = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    seen = table(z, np.full(len(z), log_snr))
    to = (c * seen if score else seen) - z
    known = np.isfinite(to).all(1)
    length = np.linalg.norm(to[known], axis=1, keepdims=True).clip(1e-9)
    shown = to[known] * length**-0.75
    ax.quiver(*z[known].T, *shown.T, color=INK, pivot="mid", width=0.005, scale=float(abs(shown).max()) * 18)


def _compass(parts: Parts) -> Figure:
    figure, (ax,) = _panels(1, 3.4, 3.2)
    _arrows(ax, parts, 0.0, False, "arrows to what the model sees")
    return figure


def _field(parts: Parts) -> Figure:
    figure, axes = _panels(2, 6.6, 3.2)
    for ax, log_snr, title in zip(axes, (-3.0, 2.0), ("much noise", "little noise"), strict=True):
        _arrows(ax, parts, min(max(log_snr, parts["about"]["low"]), parts["about"]["high"]), True, title)
    return figure


def _flows(parts: Parts) -> Figure:
    found = parts["reverse"][0]
    if found["note"]:
        return _missing(found["note"])
    figure, (ax,) = _panels(1)
    states = unpack(found["states"])[0, :48]
    noise = 1 / (1 + np.exp(np.array(found["log_snr"]) / 2))
    for k, path in enumerate(states):
        ax.plot(noise, path, color=COLOURS[k % 6], linewidth=0.6)
    ax.set_xlim(float(noise[0]), float(noise[-1]))
    ax.set_xlabel("from noise to data: paths of the ODE", fontsize=9, color=INK)
    ax.set_yticks([])
    tidy(ax)
    return figure


def _schedules(parts: Parts) -> Figure:
    figure, (ax,) = _panels(1)
    for k, path in enumerate(parts["paths"]):
        left = np.cos(unpack(path["curves"])[0]) ** 2
        ax.plot(np.linspace(0, 1, len(left)), left, color=COLOURS[k % 6], label=path["name"], linewidth=1.4)
    ax.set_xlabel("time, from data to noise", fontsize=9, color=INK)
    ax.set_ylabel("variance left", fontsize=9, color=INK)
    ax.legend(fontsize=8, frameon=False, loc="upper right")
    tidy(ax)
    return figure


def _solvers(parts: Parts) -> Figure:
    found = parts["solvers"]
    if found["note"]:
        return _missing(found["note"])
    figure, (ax,) = _panels(1)
    key = "w2" if any(row["w2"] for row in found["rows"]) else "rms"
    for k, name in enumerate(dict.fromkeys(row["solver"] for row in found["rows"])):
        mine = [row for row in found["rows"] if row["solver"] == name and row[key]]
        ax.plot(
            [r["nfe"] for r in mine], [r[key] for r in mine], marker="osD^"[k % 4], color=COLOURS[k], label=name, ms=4
        )
    if key == "w2" and found["floor"]:
        ax.axhspan(*found["floor"], color=GREY, alpha=0.25, linewidth=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("evaluations", fontsize=9, color=INK)
    ax.set_title("distance to data" if key == "w2" else "distance to the end of the flow", fontsize=9, color=INK)
    ax.legend(fontsize=8, frameon=False)
    tidy(ax)
    return figure


def _density(parts: Parts) -> Figure:
    found, half = parts["density"], parts["about"]["half"]
    if found["note"]:
        return _missing(found["note"])
    figure, (ax,) = _panels(1, 3.4, 3.2)
    values = unpack(found["log_prob"])
    most = float(np.nanmax(values))
    ax.imshow(values.clip(most - 12, most), cmap="Blues", origin="lower", extent=(-half, half, -half, half))
    ax.set_title("log p", fontsize=9, color=INK)
    ax.set_xticks([])
    ax.set_yticks([])
    return figure
