"""Pictures of samples, scores, schedules and training, from arrays.

Every function returns a :class:`matplotlib.figure.Figure` and shows nothing; a function that takes ``ax`` draws there
instead and returns that figure. ``pyplot`` is never imported. Images and points are in data units.

    samples      :mod:`.samples`, :mod:`.images`        training     :mod:`.training`
    scores       :mod:`.fields`                         solvers      :mod:`.precision`
    GIFs         :mod:`.animation`                      the style    :mod:`.base`
"""

from __future__ import annotations

from .animation import animate, save_gif
from .base import save_figure
from .fields import score_field
from .images import forward_strip, image_grid, save_image_grid
from .precision import work_precision
from .samples import samples_figure, scatter, signals, vectors
from .training import loss_curve

__all__ = [
    "animate",
    "forward_strip",
    "image_grid",
    "loss_curve",
    "samples_figure",
    "save_figure",
    "save_gif",
    "save_image_grid",
    "scatter",
    "score_field",
    "signals",
    "vectors",
    "work_precision",
]
