"""``scoresde plot``: the pictures that explain."""

from __future__ import annotations

import click

from ..command import Group
from .run import compass, reverse, score_field, trajectories
from .sde import forward, schedule

__all__ = ["plot"]


@click.group(cls=Group)
def plot() -> None:
    """Pictures that explain: schedules, the way to noise and back, scores.

    \b
    scoresde plot schedule --sde vp,cosine,flow
    scoresde plot trajectories                    # of the newest run
    """


for _picture in (schedule, forward, reverse, trajectories, score_field, compass):
    plot.add_command(_picture)
