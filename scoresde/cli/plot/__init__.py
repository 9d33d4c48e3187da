"""The command ``scoresde plot``, which draws pictures of SDEs and trained runs."""

from __future__ import annotations

import click

from ..command import Group
from .run import compass, loss_by_noise, reverse, score_field, trajectories
from .sde import forward, schedule

__all__ = ["plot"]


@click.group(cls=Group)
def plot() -> None:
    """Draw pictures of SDEs and of trained runs.

    \b
    scoresde plot schedule --sde vp,cosine,flow   # does not use a run
    scoresde plot trajectories                    # uses the newest run
    """


for _picture in (schedule, forward, reverse, trajectories, score_field, compass, loss_by_noise):
    plot.add_command(_picture)
