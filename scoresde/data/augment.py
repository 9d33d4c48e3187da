"""Non-leaking augmentation: training images are transformed, and the network receives the parameters of the
transformation, so that it does not generate transformed images.

A small set of images can be enlarged by mirroring, shifting and scaling. A model trained on the enlarged set also
generates mirrored, shifted and scaled images, unless it can tell transformed images from the originals. If the network
F receives the parameters a of the transformation T_a as an extra input,

    F(x_t, c, cond, a),    x_t = alpha T_a(x_0) + sigma eps,                                                    (1)

where c is the noise-level input and cond is the condition, the network learns the score of each augmented distribution.
The value a = 0 corresponds to the original images (Karras et al. 2022, arXiv:2206.00364, app. F.2). Sampling and
likelihood evaluation use a = 0.

Each row is first mirrored, then scaled about its centre, then shifted. Pixel i along an axis of n pixels is read from
the position

    s(i) = m +- (i - m - d) / 2^(0.2 a_scale),    m = (n - 1)/2,    d = a_shift n/8  (an integer),               (2)

by linear interpolation, with reflection at the edges. The minus sign applies to mirrored rows. The distribution of the
parameters follows table 6 of the paper: a_scale and a_shift are normal, and the mirroring parameter is 1 for a mirrored
row. ``flip`` mirrors half of the rows. By default, ``scale`` and ``shift`` each apply to 12 % of the rows, and
``vflip`` mirrors 6 %. In this implementation, shifts are rounded to whole pixels, so that they need no interpolation.

The parameters of a row depend only on the seed, the step and the position of the row in its batch.
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

# The kinds of augmentation in the order of the network's inputs, each with its number of parameters.
KINDS = {"flip": 1, "vflip": 1, "scale": 1, "shift": 2}

_OCTAVES = 0.2  # standard deviation of log2 of the scale
_EIGHTH = 0.125  # standard deviation of a shift, as a fraction of the image's size


@dataclass(frozen=True)
class Augmentation(Checked):
    """Augmentation of images during training.

    Args:
        kinds: Any of ``flip`` (left to right), ``vflip`` (top to bottom), ``scale`` and ``shift``.
        share: Fraction of the rows, from 0 to 1, to which ``scale`` and ``shift`` each apply. ``vflip`` mirrors half
            this fraction. ``flip`` always mirrors half of the rows.

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
                raise UsageError(f"{told}, or use none on its own to disable augmentation", parameter="augment")
        object.__setattr__(self, "kinds", tuple(kind for kind in KINDS if kind in self.kinds))

    @classmethod
    def of(cls, text: str) -> Augmentation | None:
        """Parse a list of kinds, such as ``flip,shift``, or ``all`` for every kind. Return ``None`` for ``none``.

        Raises:
            UsageError: If a kind is unknown.
        """
        if text == "none":
            return None
        names = tuple(part.strip() for part in text.split(","))
        return cls(tuple(KINDS) if "all" in names else names)

    def __str__(self) -> str:
        return ",".join(self.kinds)

    @property
    def numbers(self) -> int:
        """Number of augmentation parameters per row."""
        return sum(KINDS[kind] for kind in self.kinds)

    def drawn(self, count: int, shape: tuple[int, ...], *, seed: int, step: int) -> Tensor:
        """Draw the augmentation parameters of ``count`` images of shape ``(C, H, W)`` for one training step.

        The result has shape ``(count, numbers)`` and dtype float64. The parameters of a transformation that is not
        applied are 0. Otherwise, the parameter is 1 for mirroring and a standard normal number for scaling. A shift has
        two parameters: the shift to the right in eighths of the width, and the shift down in eighths of the height.
        """
        noise = Noise.of(count, seed % 2**64)
        # Use two steps of the noise, because normal numbers are computed from the uniform ones. Draw the parameters of
        # all kinds, so that no kind depends on which other kinds are chosen.
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
        """Apply the transformation of equation 2 to images.

        Mirroring and shifting only move pixels, while scaling interpolates.

        Args:
            x: Images in any units, shape ``(B, C, H, W)``.
            numbers: The parameters that :meth:`drawn` returned for the images, shape ``(B, numbers)``.

        Returns:
            The augmented images, shape ``(B, C, H, W)``.
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
    """Return an eighth of the width and an eighth of the height of an image, in pixels."""
    return _EIGHTH * torch.tensor([shape[2], shape[1]], dtype=torch.float64)


def _read(x: Tensor, source: Tensor, axis: int) -> Tensor:
    """Interpolate images ``(B, C, H, W)`` linearly along ``axis`` at the positions ``source: (B, n)``."""
    size = x.shape[axis]
    below = source.floor()

    def view(v: Tensor) -> Tensor:
        return v.reshape(len(x), 1, *(size if a == axis else 1 for a in (2, 3)))

    def pixel(i: Tensor) -> Tensor:
        i = i.long() % (2 * size)  # the image, its mirror image, the image, ...
        return x.gather(axis, view(torch.minimum(i, 2 * size - 1 - i)).expand(x.shape))

    part = view(source - below).to(x.dtype)
    return (1 - part) * pixel(below) + part * pixel(below + 1)
