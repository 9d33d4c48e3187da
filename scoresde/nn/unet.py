"""A U-Net in the style of DDPM++, for 1-D, 2-D and 3-D events of any size.

The encoder and the decoder consist of ResNet blocks, and skip connections join them at every level. A ResNet block
applies the sequence of group norm, SiLU and convolution twice. The result of the second group norm is scaled and
shifted by values computed from the noise embedding. The block then adds its input and divides the sum by sqrt(2).
Selected levels have self-attention. Sizes need not be powers of two, because halving an odd size rounds up and the
decoder restores the original size.

References:
    Ho et al. (2020), arXiv:2006.11239, app. B.    Song et al. (2021), arXiv:2011.13456, app. H (DDPM++).
    Dhariwal and Nichol (2021), arXiv:2105.05233, sec. 3 (scale and shift).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.limits import CLASSES, COUNT, FRACTION, TOLD, WHOLE, WIDTH, Range, checked, enough_for_network
from .doors import TextEncoder, Words, beside, places, slots
from .dropout import Dropout
from .embedding import NoiseEmbedding, zero

__all__ = ["UNet"]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def _conv(dims: int, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return _CONV[dims](channels_in, channels_out, kernel, stride=stride, padding=kernel // 2)


def _norm(channels: int) -> nn.Module:
    # Each group has at least 4 channels, and there are at most 32 groups, as in DDPM++.
    return nn.GroupNorm(math.gcd(channels, max(1, min(channels // 4, 32))), channels, eps=1e-6)


class _ResBlock(nn.Module):
    def __init__(self, dims: int, channels_in: int, channels_out: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.conv_in = _norm(channels_in), _conv(dims, channels_in, channels_out)
        self.modulate = nn.Linear(width, 2 * channels_out)
        self.norm_out, self.conv_out = _norm(channels_out), zero(_conv(dims, channels_out, channels_out))
        self.dropout = Dropout(dropout)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else _conv(dims, channels_in, channels_out, kernel=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv_in(functional.silu(self.norm_in(x)))
        scale, shift = self.modulate(c).reshape(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = functional.silu(self.norm_out(h) * (1 + scale) + shift)
        h = self.conv_out(self.dropout(h))
        out: Tensor = (self.skip(x) + h) / math.sqrt(2)
        return out


class _Attention(nn.Module):
    """Self-attention among the pixels, which also attend to the words of a text, if there is one."""

    def __init__(self, dims: int, channels: int, text: int = 0) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = _conv(dims, channels, 3 * channels, kernel=1)
        self.out = zero(_conv(dims, channels, channels, kernel=1))
        self.words = nn.Linear(text, 2 * channels) if text else None

    def forward(self, x: Tensor, words: Words | None = None) -> Tensor:
        # Texts may refer to positions, so a network for texts receives an encoding of the position of each pixel.
        h = self.norm(x) if self.words is None else self.norm(x) + places(x)
        # Treat the positions as a sequence, (B, C, *space) to (B, positions, C). There is a single head.
        q, k, v = self.qkv(h).flatten(2).transpose(1, 2).chunk(3, dim=2)
        mask = None
        if self.words is not None and words is not None:
            encoded, known = words
            more_k, more_v = self.words(encoded).chunk(2, dim=2)
            k, v = torch.cat([k, more_k], dim=1), torch.cat([v, more_v], dim=1)
            mask = torch.cat([known.new_ones(len(x), q.shape[1]), known], dim=1)[:, None]
        h = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape)
        out: Tensor = (x + self.out(h)) / math.sqrt(2)
        return out


class _Stage(nn.Module):
    """A ResNet block, followed by self-attention if ``attention`` is true."""

    def __init__(
        self, dims: int, ins: int, outs: int, width: int, dropout: float, attention: bool, text: int = 0
    ) -> None:
        super().__init__()
        self.block = _ResBlock(dims, ins, outs, width, dropout)
        self.attention = _Attention(dims, outs, text) if attention else None

    def forward(self, x: Tensor, c: Tensor, words: Words | None = None) -> Tensor:
        h: Tensor = self.block(x, c)
        return h if self.attention is None else self.attention(h, words)


_BLOCKS = Range(1, 1000)


class UNet(nn.Module):
    """A U-Net, modulated by the noise level and the class.

    Args:
        channels_in: Number of channels of an event.
        dims: Number of spatial axes: 1, 2 or 3.
        channels: Number of channels at the finest level.
        multipliers: Number of channels at each level, as a multiple of ``channels``. Each level after the first has
            half the spatial size of the level before it.
        blocks: Number of ResNet blocks per level of the encoder. Each level of the decoder has one more block.
        attention: Indices of the levels with self-attention, where 0 is the finest level.
        dropout: Dropout probability inside the blocks.
        classes: Number of classes, or 0 if there are none.
        outputs: Number of output channels as a multiple of the event's channels: 1, or 2 to learn the variance.
        augments: Number of augmentation parameters per row in training, or 0 if there are none.
        vector: Length of the vector in the condition, or 0 if there is none.
        given: Number of channels of the image in the condition, or 0 if there is none.
        words: Size of the vocabulary if texts are given as word indices, or 0 otherwise. The network attends to the
            words of a text at the levels in ``attention`` and between the encoder and the decoder.
        features: Number of features per word if texts are given as features from another encoder, or 0 otherwise.

    Example:
        >>> net = UNet(channels_in=1, dims=2, channels=8, multipliers=(1, 2), blocks=1, attention=(1,))
        >>> net(torch.zeros(2, 1, 9, 6), torch.zeros(2)).shape
        torch.Size([2, 1, 9, 6])
    """

    @checked(
        channels_in=COUNT, dims=Range(1, 3), channels=WIDTH, multipliers=Range(1, 1000), blocks=_BLOCKS,
        attention=WHOLE, dropout=FRACTION, classes=CLASSES, outputs=Range(1, 2), augments=TOLD, vector=CLASSES,
        given=CLASSES, words=CLASSES, features=CLASSES,
    )  # fmt: skip
    def __init__(
        self,
        channels_in: int,
        dims: int = 2,
        channels: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (),
        dropout: float = 0.0,
        classes: int = 0,
        outputs: int = 1,
        augments: int = 0,
        vector: int = 0,
        given: int = 0,
        words: int = 0,
        features: int = 0,
    ) -> None:
        super().__init__()
        if not multipliers:
            raise UsageError(
                "multipliers must not be empty; pass one multiplier for each level of the U-Net",
                parameter="multipliers",
            )
        # Each level has 2 * blocks + 1 stages, with two convolutions and a modulation in each of them.
        stages = sum(2 * 3**dims * m**2 + 8 * m for m in multipliers) * channels**2 * (2 * blocks + 1)
        enough_for_network(stages, f"a U-Net with {channels=}, {multipliers=}, {blocks=}", "channels")
        width = 4 * channels
        self.augments, self.given = augments, given
        self.slots = slots(classes, vector, given, words or features)
        self.embedding = NoiseEmbedding(width, classes, augments=augments, vector=vector)
        self.enter = _conv(dims, channels_in + 2 * given, channels)
        texts = bool(words or features)
        text = width if texts else 0

        def stage(ins: int, outs: int, level: int) -> _Stage:
            return _Stage(dims, ins, outs, width, dropout, level in attention, text)

        sizes = [channels * m for m in multipliers]
        self.blocks = blocks
        # Stages in the order in which they run: `blocks` on each level down, `blocks + 1` on each level up.
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        current, skips = channels, [[channels]]
        for level, size in enumerate(sizes):
            for _ in range(blocks):
                self.down.append(stage(current, size, level))
                current = size
                skips[-1].append(current)
            if level < len(sizes) - 1:
                self.downsample.append(_conv(dims, current, current, stride=2))
                skips.append([current])

        self.middle = nn.ModuleList(
            [
                _Stage(dims, current, current, width, dropout, bool(attention) or texts, text),
                stage(current, current, -1),
            ]
        )

        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level, size in reversed(list(enumerate(sizes))):
            for skip in reversed(skips[level]):
                self.up.append(stage(current + skip, size, level))
                current = size
            if level:
                self.upsample.append(_conv(dims, current, current))
        self.leave = nn.Sequential(_norm(current), nn.SiLU(), zero(_conv(dims, current, outputs * channels_in)))
        self.text = TextEncoder(text, words, features) if texts else None

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None, augment: Tensor | None = None) -> Tensor:
        """Apply the network to ``x: (B, C, *space)`` with the noise label ``c: (B,)`` and the condition of each row.

        The tensor ``augment: (B, augments)`` contains the augmentation parameters of each row in training. If it is
        ``None``, no row is augmented. The result has shape ``(B, outputs * C, *space)``.
        """
        embedded = self.embedding(c, cond, augment)
        h = self.enter(beside(x, None if cond is None else cond.image, self.given))
        words = None if self.text is None or cond is None or cond.tokens is None else self.text(cond.tokens)
        skips = [h]
        for i, stage in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.downsample[i // self.blocks - 1](h)
                skips.append(h)
            h = stage(h, embedded, words)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, embedded, words)
        for i, stage in enumerate(self.up):
            if i and i % (self.blocks + 1) == 0:
                # Return to the size that the encoder had at this level, which may be odd.
                h = functional.interpolate(h, size=skips[-1].shape[2:], mode="nearest")
                h = self.upsample[i // (self.blocks + 1) - 1](h)
            h = stage(torch.cat([h, skips.pop()], dim=1), embedded, words)
        out: Tensor = self.leave(h)
        return out
