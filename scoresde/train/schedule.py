"""How often training pauses to validate and to draw pictures.

The cost of training is counted in evaluations of the network on one row. A training step runs forward and backward on
each row of its batch, and the backward pass costs about as much as two evaluations, so

    evaluations of training = 3 * batch * steps.                                                              (1)

Validation and pictures only run forward. By default, each of the two takes at most a fifth of equation 1, except that
there is always a picture after the last step. The default depends on numbers of rows and steps but not on a clock, so
the same configuration gives the same weights on every machine.
"""

from __future__ import annotations

import math

__all__ = ["affordable", "interval", "looks", "older", "previews"]

PASSES = 3  # a forward and a backward pass, in units of a forward pass
SHARE = 5  # validation takes at most 1/SHARE of equation 1, and so do pictures
LOOKS = 20  # maximum number of validations by default
PERCENT = (1, 2, 5, 10, 20, 50, 100)


def affordable(cost: int, steps: int, batch: int) -> int:
    """Return how many times something may be done that evaluates the network on ``cost`` rows.

    Args:
        cost: Number of evaluations each time.
        steps, batch: Number of training steps, and the batch size.
    """
    return PASSES * batch * steps // (SHARE * cost)


def interval(cost: int, steps: int, batch: int) -> int:
    """Return the default number of steps between validations. The arguments are those of :func:`affordable`.

    If the run is too short for a single validation, the result is the number of steps that would pay for one, which is
    larger than ``steps``.

    >>> interval(1024, 2000, 64), interval(1024, 100, 64), interval(1024, 10, 64)
    (100, 34, 27)
    """
    times = min(LOOKS, affordable(cost, steps, batch))
    return math.ceil(steps / times) if times else math.ceil(SHARE * cost / (PASSES * batch))


def older(steps: int) -> int:
    """Return the number of steps between validations in a run whose configuration does not state it."""
    return max(1, steps // LOOKS)


def looks(steps: int, every: int, done: int = 0) -> int:
    """Return the number of validations after step ``done``: one every ``every`` steps, and one after the last step."""
    if every > steps or done >= steps:
        return 0
    return (steps - 1) // every - done // every + 1


def previews(total: int, every: int = 0, most: int | None = None) -> set[int]:
    """Return the steps after which samples are plotted: all multiples of ``every``, and the last step, ``total``.

    If ``every`` is 0, samples are plotted after 1, 2, 5, 10, 20, 50 and 100 % of the ``total`` steps instead, or only
    after the last ``most`` of these steps, and always after the last one.
    """
    if every:
        return {*range(every, total + 1, every), total}
    found = sorted({max(1, math.ceil(total * percent / 100)) for percent in PERCENT})
    return set(found if most is None else found[-max(1, most) :])
