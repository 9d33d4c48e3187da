"""Augmentation that does not leak: pictures are moved in training, and the network is told how.

More pictures can be made of a few: mirrored, shifted, scaled. A model that is trained on them draws mirrored and
shifted pictures too, unless it knows which are: with the numbers a of what was done to a row in an input of its own,

    F(x_t, c, cond, a),    x_t = alpha T_a(x_0) + sigma eps,                                                    (1)

a network learns the score of each augmented law, and a = 0 is that of the pictures as they are (Karras et al. 2022,
arXiv:2206.00364, app. F.2). Sampling and likelihood ask with a = 0, and the weights are shared with all other a.

Each row is first mirrored, then scaled about its centre, then shifted; a pixel i along an axis of n comes from

    s(i) = m +- (i - m - d) / 2^(0.2 a_scale),    m = (n - 1)/2,    d = a_shift n/8, a whole number,             (2)

with minus in a mirrored row, linearly interpolated and reflected at the edges. The parameters are those of the paper's
table 6: a_scale and a_shift are normal, a mirrored row has a = 1, and each but ``flip``, a fair coin in every row, is
done to a share of 12 % of the rows. Shifts are rounded to whole pixels here, so that they interpolate nothing.

The numbers of a row are a function of the seed, the step and the place of the row in its batch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import FRACTION, Checked, ranges
from ..core.noise import Noise
from ..core.registry import closest

__all__ = ["KINDS", "Augmentation"]

# What may be done, in the order in which the network is told of it, and how many numbers tell it.
KINDS = {"flip": 1, "vflip": 1, "scale": 1, "shift": 2}

_OCTAVES = 0.2  # the standard deviation of log2 of the scale
_EIGHTH = 0.125  # that of a shift, of the size of the picture


@dataclass(frozen=True)
class Augmentation(Checked):
    """What is done to pictures in training.

    Args:
        kinds: Among ``flip`` (left to right), ``vflip`` (top to bottom), ``scale`` and ``shift``.
        share: Of the rows that each kind but ``flip`` is done to, from 0 to 1.

    >>> flipped = Augmentation(("flip",)).applied(torch.arange(3.0).reshape(1, 1, 1, 3), torch.ones(1, 1))
    >>> flipped.flatten().tolist()
    [2.0, 1.0, 0.0]
    """

    limits = ranges(share=FRACTION)

    kinds: tuple[str, ...]
    share: float = 0.12

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            if kind not in KINDS:
                told = f"unknown augmentation {kind!r}; {closest(kind, [*KINDS, 'all'])}"
                raise UsageError(f"{told}; or none alone", parameter="augment")
        object.__setattr__(self, "kinds", tuple(kind for kind in KINDS if kind in self.kinds))

    @classmethod
    def of(cls, text: str) -> Augmentation | None:
        """What a list such as ``flip,shift`` says, ``all`` being every kind; ``None`` for ``none``.

        Raises:
            UsageError: If there is no such kind.
        """
        if text == "none":
            return None
        names = tuple(part.strip() for part in text.split(","))
        return cls(tuple(KINDS) if "all" in names else names)

    def __str__(self) -> str:
        return ",".join(self.kinds)

    @property
    def numbers(self) -> int:
        """How many numbers the network is told of a row."""
        return sum(KINDS[kind] for kind in self.kinds)

    def drawn(self, count: int, shape: tuple[int, ...], *, seed: int, step: int) -> Tensor:
        """What is done to each of ``count`` rows of shape ``(C, H, W)`` in a step, ``(count, numbers)`` float64.

        0 is nothing; else 1 for a mirrored row, a standard normal for its scale, and for a shift to the right and one
        down whole pixels over an eighth of the width and of the height.
        """
        noise = Noise.of(count, seed % 2**64)
        # Two addresses, because normals are made of uniforms; all kinds are drawn, so that none depends on the others.
        u = noise.uniform((5,), 2 * step, "augment", torch.float64)
        z = noise.normal((3,), 2 * step + 1, "augment", torch.float64)
        chosen = u[:, 1:4] < self.share  # vflip, scale, shift
        eighth = _eighths(shape)
        found = {
            "flip": (u[:, :1] < 0.5).double(),
            "vflip": (chosen[:, :1] & (u[:, 4:] < 0.5)).double(),
            "scale": torch.where(chosen[:, 1:2], z[:, :1], 0.0),
            "shift": torch.where(chosen[:, 2:], (eighth * z[:, 1:]).round() / eighth, 0.0),
        }
        return torch.cat([found[kind] for kind in self.kinds], dim=1)

    def applied(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Do it: (2).

        Mirrored and shifted rows are the same numbers in other places; only a scale interpolates.

        Args:
            x: Pictures in model units, shape ``(B, C, H, W)``.
            numbers: What :meth:`drawn` returned for them.

        Returns:
            Shape ``(B, C, H, W)``.
        """
        done = (numbers != 0).any(1)
        moved = x.clone()
        moved[done] = self._moved(x[done], numbers[done].double())
        return moved

    def _moved(self, x: Tensor, a: Tensor) -> Tensor:
        parts = dict(zip(self.kinds, torch.split(a, [KINDS[kind] for kind in self.kinds], dim=1), strict=True))
        nothing = a.new_zeros(len(a), 1)
        scale = 2 ** (_OCTAVES * parts.get("scale", nothing))
        shift = (parts.get("shift", a.new_zeros(len(a), 2)) * _eighths(x.shape[1:])).round()
        for axis, mirror, d in ((3, "flip", shift[:, :1]), (2, "vflip", shift[:, 1:])):
            sign = 1 - 2 * parts.get(mirror, nothing)
            middle = (x.shape[axis] - 1) / 2
            i = torch.arange(x.shape[axis], dtype=torch.float64)
            source = middle + sign * (i - middle - d) / scale
            if bool((source != i).any()):
                x = _read(x, source, axis)
        return x


def _eighths(shape: tuple[int, ...]) -> Tensor:
    """An eighth of the width and of the height of ``(C, H, W)``, in pixels, shape ``(2,)``."""
    return _EIGHTH * torch.tensor([shape[2], shape[1]], dtype=torch.float64)


def _read(x: Tensor, source: Tensor, axis: int) -> Tensor:
    """``x: (B, C, H, W)`` along ``axis`` at the places ``source: (B, n)``, between two pixels by a straight line."""
    size = x.shape[axis]
    below = source.floor()

    def view(v: Tensor) -> Tensor:
        return v.reshape(len(x), 1, *(size if a == axis else 1 for a in (2, 3)))

    def pixel(i: Tensor) -> Tensor:
        i = i.long() % (2 * size)  # the picture, its mirror image, the picture, ...
        return x.gather(axis, view(torch.minimum(i, 2 * size - 1 - i)).expand(x.shape))

    part = view(source - below).to(x.dtype)
    return (1 - part) * pixel(below) + part * pixel(below + 1)
