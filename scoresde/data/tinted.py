"""Tinted digits: the bundled digits, each in a random hue, as 8 x 8 pictures with three channels.

A picture with the grey values g and the hue h has the colours

    x = g (1 + s (cos(h) e_1 + sin(h) e_2)),        w . e_1 = w . e_2 = 0,        s = 0.3,                    (1)

where w are the weights of :class:`scoresde.operators.Grey`, which add up to 1, and e_1 and e_2 are orthonormal. Hence
grey(x) = g exactly, and the grey picture says nothing about the hue. The hues are uniform on the circle and independent
of the digits, so a model that colours grey digits correctly draws hues uniformly from the circle for every digit.

The grey values are those of the digits, scaled to the range from 0 to :data:`BRIGHTEST`. The values of the three
channels are continuous, from 0 to about 0.97.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..operators.grey import WEIGHTS
from .raw import Raw
from .readers import read_digits

__all__ = ["hue", "read_tinted", "tinted"]

BRIGHTEST = 0.75  # the largest grey value
STRENGTH = 0.3  # s in equation 1
SEED = 0  # seed of the random hues


def _colours() -> Tensor:
    """Return e_1 and e_2 of equation 1 as the rows of a float64 tensor ``(2, 3)``."""
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    first = torch.tensor([w[1], -w[0], 0.0], dtype=torch.float64)
    second = torch.linalg.cross(w, first)
    return torch.stack([first / first.norm(), second / second.norm()])


def tinted(grey: Tensor, hues: Tensor) -> Tensor:
    """Return float64 pictures ``(N, 3, H, W)`` with the given grey values and hues (equation 1).

    Args:
        grey: The grey values, ``(N, 1, H, W)``.
        hues: The hue of each picture in radians, ``(N,)``.
    """
    turn = torch.stack([hues.double().cos(), hues.double().sin()], 1)
    return grey.double() * (1 + STRENGTH * (turn @ _colours()))[:, :, None, None]


def hue(x: Tensor) -> Tensor:
    """Compute the hues ``(N,)`` of pictures as angles between -pi and pi, in float64.

    The hue is the angle of the sum of ``(e_1 . (x - g), e_2 . (x - g))`` over all pixels, where g is the grey value.
    Brighter pixels therefore count more. The result is exact for :func:`tinted` pictures.

    Args:
        x: The pictures, ``(N, 3, H, W)``.

    >>> x = tinted(torch.ones(1, 1, 8, 8), torch.tensor([1.25]))
    >>> round(float(hue(x)), 6)
    1.25
    """
    total = x.double().sum((2, 3))
    grey = total @ torch.tensor(WEIGHTS, dtype=torch.float64, device=x.device)
    along = (total - grey[:, None]) @ _colours().T.to(x.device)
    return torch.atan2(along[:, 1], along[:, 0])


def read_tinted() -> Raw:
    """Return the bundled digits in random hues, as 1,797 float32 pictures ``(3, 8, 8)`` with their classes."""
    digits = read_digits()
    grey = torch.from_numpy(digits.train).double() * (BRIGHTEST / 16)
    generator = torch.Generator().manual_seed(SEED)
    hues = 2 * math.pi * torch.rand(len(grey), generator=generator, dtype=torch.float64)
    return replace(digits, train=tinted(grey, hues).float().numpy(), levels=None)
