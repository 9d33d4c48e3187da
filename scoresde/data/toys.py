"""Two-dimensional toy distributions, sampled from formulas.

Each toy is a function ``(n, generator) -> (n, 2)`` that returns independent points in data units. Two toys have a known
density, so they can be used to check likelihoods: ``8gaussians`` (smooth, full support) and ``checkerboard``
(discontinuous, with log density -inf outside its squares).

References:
    Grathwohl et al. (2019), FFJORD, https://arxiv.org/abs/1810.01367. The toys follow the code of the paper,
    with some scales changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..core.limits import COUNT, SEED, checked, enough_memory

__all__ = ["DENSITIES", "TOYS", "eight_gaussians", "sample_toy"]

RADIUS = 2.0  # radius of the ring of eight Gaussians
STD = 0.2  # standard deviation of each Gaussian
SIDE = 2.0  # side of a checkerboard square; the board has 4 x 4 squares, centred at the origin


@checked(n=COUNT, seed=SEED)
def sample_toy(name: str, n: int, seed: int) -> Tensor:
    """Draw ``n`` points, float32 ``(n, 2)``, from the toy distribution ``name``, with the given ``seed``."""
    enough_memory(64 * n, f"{n:,} points", "n")
    return TOYS[name](n, Generator().manual_seed(seed)).float()


def eight_gaussians(radius: float = RADIUS, std: float = STD) -> tuple[Tensor, float]:
    """Return the means, ``(8, 2)`` float64, and the common standard deviation of eight Gaussians on a ring."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return radius * torch.stack([angle.cos(), angle.sin()], 1), std


def eight_gaussians_log_density(x: Tensor, radius: float = RADIUS, std: float = STD) -> Tensor:
    """Return the exact log density ``(N,)`` of the eight Gaussians, in nats, at the points ``x: (N, 2)``."""
    means, std = eight_gaussians(radius, std)
    square = (x[:, None] - means.to(x)).square().sum(-1)
    return torch.logsumexp(-square / (2 * std**2), 1) - math.log(8 * 2 * math.pi * std**2)


def checkerboard_log_density(x: Tensor) -> Tensor:
    """Return the exact log density ``(N,)`` of the checkerboard, in nats, at the points ``x: (N, 2)``.

    The density is constant on 8 of the 16 squares and 0 elsewhere.
    """
    square = torch.floor(x / SIDE)
    inside = ((square >= -2) & (square <= 1)).all(1) & (square.sum(1) % 2 == 0)
    return torch.where(inside, -math.log(8 * SIDE**2), -math.inf).to(x.dtype)


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _choice(options: int, n: int, generator: Generator) -> Tensor:
    return torch.randint(options, (n,), generator=generator)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _swissroll(n: int, generator: Generator) -> Tensor:
    t = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    return (_polar(t, t) + _normal(n, generator)) / 5


def _moons(n: int, generator: Generator) -> Tensor:
    lower = _choice(2, n, generator).double()
    arc = _polar(torch.ones(n, dtype=torch.float64), math.pi * _uniform(n, generator))
    # The lower moon is the upper one rotated by half a turn about (0.5, 0.25).
    points = torch.where(lower[:, None] > 0, torch.tensor([1.0, 0.5], dtype=torch.float32) - arc, arc)
    return 2 * (points + 0.1 * _normal(n, generator)) - torch.tensor([1.0, 0.2], dtype=torch.float32)


def _checkerboard(n: int, generator: Generator) -> Tensor:
    column = _choice(4, n, generator) - 2
    row = 2 * _choice(2, n, generator) - 2 + column % 2
    corner = torch.stack([column, row], 1)
    # Stay 2^-20 short of the far edge: in float32, -2 + (1 - 2^-24) rounds to -1, which is in the next square.
    within = torch.stack([_uniform(n, generator), _uniform(n, generator)], 1).clamp(max=1 - 2**-20)
    return SIDE * (corner + within)


def _8gaussians(n: int, generator: Generator) -> Tensor:
    means, std = eight_gaussians()
    return means[_choice(8, n, generator)] + std * _normal(n, generator)


def _2spirals(n: int, generator: Generator) -> Tensor:
    sign = 2.0 * _choice(2, n, generator)[:, None] - 1
    t = 3 * math.pi * _uniform(n, generator).sqrt()
    jitter = 0.5 * torch.stack([_uniform(n, generator), _uniform(n, generator)], 1)
    return sign * (_polar(-t, -t) + jitter) / 3 + 0.1 * _normal(n, generator)


def _rings(n: int, generator: Generator) -> Tensor:
    radius = (_choice(4, n, generator) + 1) / 4
    return 3 * _polar(radius, 2 * math.pi * _uniform(n, generator)) + 0.08 * _normal(n, generator)


def _pinwheel(n: int, generator: Generator) -> Tensor:
    blade = _choice(5, n, generator).double()
    widths, centre = torch.tensor([[0.3, 0.1], [1.0, 0.0]], dtype=torch.float32)
    point = _normal(n, generator) * widths + centre
    turn = 2 * math.pi / 5 * blade + 0.25 * point[:, 0].exp()
    x, y = point.unbind(1)
    return 2 * torch.stack([x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()], 1)


TOYS: dict[str, Callable[[int, Generator], Tensor]] = {
    "swissroll": _swissroll,
    "moons": _moons,
    "checkerboard": _checkerboard,
    "8gaussians": _8gaussians,
    "2spirals": _2spirals,
    "rings": _rings,
    "pinwheel": _pinwheel,
}

DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "8gaussians": eight_gaussians_log_density,
    "checkerboard": checkerboard_log_density,
}
