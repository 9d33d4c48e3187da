"""Plots of samples, scores, schedules and training, drawn from arrays.

Functions that draw a plot return a :class:`matplotlib.figure.Figure` without showing it. If ``ax`` is given, they draw
on these axes and return their figure. ``pyplot`` is never imported. Images and points are in data units.

    samples       :mod:`.samples`, :mod:`.images`, :mod:`.answers`, :mod:`.animation`, :mod:`.neighbours`
    trajectories  :mod:`.strips`, :mod:`.paths`
    scores        :mod:`.fields`, :mod:`.compass`
    other         :mod:`.schedules`, :mod:`.training`, :mod:`.precision`, :mod:`.likelihoods`,
                  :mod:`.calibration`

The module :mod:`.base` defines the style.
"""

from __future__ import annotations

from .animation import animate, animate_pair, save_gif
from .answers import answers_figure
from .base import save_figure
from .calibration import calibration
from .compass import compass
from .fields import score_field, score_fields
from .images import image_grid, save_image_grid, save_images
from .likelihoods import likelihood_histogram
from .neighbours import neighbour_sheet
from .paths import trajectories
from .precision import work_precision
from .samples import samples_figure, scatter, signals, vectors
from .schedules import Schedule, schedules
from .strips import strips
from .training import loss_by_noise, loss_curve

__all__ = [
    "Schedule",
    "animate",
    "animate_pair",
    "answers_figure",
    "calibration",
    "compass",
    "image_grid",
    "likelihood_histogram",
    "loss_by_noise",
    "loss_curve",
    "neighbour_sheet",
    "samples_figure",
    "save_figure",
    "save_gif",
    "save_image_grid",
    "save_images",
    "scatter",
    "schedules",
    "score_field",
    "score_fields",
    "signals",
    "strips",
    "trajectories",
    "vectors",
    "work_precision",
]
