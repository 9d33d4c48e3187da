"""The three ways in which a condition enters a network.

Which of them is used depends on the kind of condition:

- *Embedding*: the class and the vector become part of the embedding of the noise level
  (:class:`~scoresde.nn.NoiseEmbedding`). The vector also becomes part of the input of an MLP (:func:`numbers`).
- *Concatenation*: the channels of the image are appended to those of the input (:func:`beside`).
- *Attention*: the words of the text provide additional keys and values (:class:`TextEncoder`,
  :class:`CrossAttention`).

A missing value (NaN, or the token -1) is replaced by 0, and a mask tells the network that the value is missing. If a
slot of the condition is ``None``, all its values are treated as missing. Calling a model without a condition is
therefore the same as dropping the whole condition, which is done at random in training.

References:
    Saharia et al. (2021), arXiv:2104.07636, sec. 2.3, and (2022), arXiv:2111.05826, sec. 3: images as channels.
    Rombach et al. (2022), arXiv:2112.10752, sec. 3.3: text by attention. In the U-Net, the words are appended to the
    keys and values of the self-attention, as in Nichol et al. (2022), arXiv:2112.10741, sec. 4.1.
    Vaswani et al. (2017), arXiv:1706.03762, sec. 3.5: the encoding of positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.condition import SLOTS, Condition
from ..core.errors import UsageError

__all__ = ["CrossAttention", "TextEncoder", "Words", "beside", "masked", "numbers", "places", "slots"]

Words = tuple[Tensor, Tensor]  # encoded words (B, L, E), and a mask that is true where there is a word, bool (B, L)


def slots(label: int, vector: int, image: int, tokens: int) -> tuple[str, ...]:
    """Return the names of the condition slots that a network uses, given the size of each slot (0 if it is unused)."""
    return tuple(name for name, size in zip(SLOTS, (label, vector, image, tokens), strict=True) if size)


def masked(value: Tensor) -> Tensor:
    """Replace NaN in ``value`` by 0, and append along axis 1 a mask that is 1 where ``value`` is known.

    >>> masked(torch.tensor([[2.0, torch.nan]]))
    tensor([[2., 0., 1., 0.]])
    """
    known = ~value.isnan()
    return torch.cat([torch.where(known, value, 0), known.to(value.dtype)], dim=1)


def numbers(cond: Condition | None, x: Tensor, count: int) -> Tensor:
    """Return the values of the condition's vector, followed by the mask of its known values, as ``(B, 2 count)``.

    Args:
        cond: The condition of each row. If it is ``None`` or has no vector, all values are treated as missing.
        x: The samples, ``(B, ...)``, which determine the number of rows and the dtype of the result.
        count: The length of the vector for which the network was built.

    Raises:
        UsageError: If the length of the condition's vector is not ``count``.
    """
    if cond is None or cond.vector is None:
        return x.new_zeros(len(x), 2 * count)
    if cond.vector.shape[1] != count:
        raise UsageError(
            f"the vector of the condition has length {cond.vector.shape[1]}, but the network was built for length "
            f"{count}"
        )
    return masked(cond.vector.to(x.dtype))


def beside(x: Tensor, image: Tensor | None, channels: int) -> Tensor:
    """Append images and their masks to a network input as additional channels.

    The result has shape ``(B, C + 2 channels, *space)``.

    Args:
        x: The noisy samples, ``(B, C, *space)``.
        image: The images, ``(B, channels, *other)``, with NaN for missing values. If their size differs from that of
            ``x``, they are resized by nearest-neighbour interpolation. If ``image`` is ``None``, all values are treated
            as missing.
        channels: Number of channels of the images. If it is 0, ``x`` is returned unchanged.

    Raises:
        UsageError: If the number of channels of the images is not ``channels``, or the images have more or fewer axes
            than ``x``.
    """
    if not channels:
        return x
    if image is None:
        return torch.cat([x, x.new_zeros(len(x), 2 * channels, *x.shape[2:])], dim=1)
    if image.ndim != x.ndim or image.shape[1] != channels:
        raise UsageError(
            f"the image of the condition has shape {tuple(image.shape[1:])}, which does not match the network "
            f"(channels: {channels}, spatial axes: {x.ndim - 2})"
        )
    told = masked(image.to(x.dtype))
    if told.shape[2:] != x.shape[2:]:
        told = functional.interpolate(told, size=x.shape[2:], mode="nearest-exact")
    return torch.cat([x, told], dim=1)


def places(x: Tensor) -> Tensor:
    """Return an encoding, ``(1, C, *space)``, of the position of each pixel of ``x: (B, C, *space)``.

    The encoding consists of sines and cosines of the position along each axis, with up to four periods from one side to
    the other. Each sine and cosine is scaled to a mean square of 1. In one trial, a U-Net without this encoding needed
    five times as many steps to learn "left" and "right" from captions.
    """
    channels, axes = x.shape[1], x.ndim - 2
    count = channels // (2 * axes)
    frequencies = math.pi * torch.logspace(0, 3, count, base=2.0, device=x.device)
    parts = []
    for axis, size in enumerate(x.shape[2:]):
        angle = frequencies[:, None] * (torch.arange(size, device=x.device) + 0.5) / size
        part = math.sqrt(2) * torch.cat([angle.sin(), angle.cos()])
        shape = [1, 2 * count] + [size if other == axis else 1 for other in range(axes)]
        parts.append(part.reshape(shape).expand(1, -1, *x.shape[2:]))
    rest = x.new_zeros(1, channels - 2 * count * axes, *x.shape[2:])
    return torch.cat([*(part.to(x.dtype) for part in parts), rest], dim=1)


class TextEncoder(nn.Module):
    """An encoder for the words of a text.

    Word indices are encoded by a small transformer. Features from another encoder are encoded by a linear map.

    Args:
        width: Size of an encoded word.
        words: Number of words in the vocabulary, or 0 if texts are given as features from another encoder.
        features: Number of features per word, or 0 if texts are given as word indices.
        layers: Number of layers of the transformer.

    Example:
        >>> encoded, known = TextEncoder(width=32, words=10)(torch.tensor([[3, 1, -1]]))
        >>> encoded.shape, known
        (torch.Size([1, 3, 32]), tensor([[ True,  True, False]]))
    """

    def __init__(self, width: int, words: int = 0, features: int = 0, layers: int = 2) -> None:
        super().__init__()
        if bool(words) == bool(features):
            raise UsageError(f"exactly one of words and features must be positive; got {words=} and {features=}")
        self.width, self.words, self.features = width, words, features
        self.enter = nn.Embedding(words, width) if words else nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=math.gcd(width, 4), dim_feedforward=2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if words else None

    def forward(self, tokens: Tensor) -> Words:
        """Encode the words of each text.

        The words are given either as indices ``(B, L)`` or as features ``(B, L, features)``. A word is missing if its
        index is -1 or one of its features is NaN.

        Returns:
            The encoded words ``(B, L, width)``, and a mask that is true where there is a word, bool ``(B, L)``.
        """
        if tokens.ndim != (2 if self.words else 3) or (self.features and tokens.shape[2] != self.features):
            expected = "word indices (B, L)" if self.words else f"features (B, L, {self.features})"
            raise UsageError(
                f"the network expects {expected} as tokens, but the tokens have shape {tuple(tokens.shape)}"
            )
        if self.layers is None:
            known = ~tokens.isnan().any(2)
            return self.enter(torch.where(known[..., None], tokens, 0).to(self.enter.weight.dtype)), known
        known = tokens >= 0
        h = self.enter(tokens.clamp(min=0))
        h = h + _positions(h)
        # A row without words would have no keys, so let it attend to its first position. The result is ignored later.
        nothing = ~known.any(1, keepdim=True) & (torch.arange(tokens.shape[1], device=tokens.device) == 0)
        return self.layers(h, src_key_padding_mask=~(known | nothing)), known


class CrossAttention(nn.Module):
    """Attention from a vector to the words of a text, ``h <- h + W softmax(q . k) v``.

    An extra key, which is always present, represents "no text".

    Args:
        width: Size of the vector.
        text: Size of an encoded word.
    """

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.keys_values = nn.Linear(text, 2 * width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, text))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, words: Words | None) -> Tensor:
        """Let ``h: (B, width)`` attend to the words, and return the updated h."""
        encoded, known = words or (h.new_zeros(len(h), 0, self.nothing.shape[2]), h.new_zeros(len(h), 0).bool())
        encoded = torch.cat([self.nothing.expand(len(h), 1, -1), encoded], dim=1)
        known = torch.cat([known.new_ones(len(h), 1), known], dim=1)
        k, v = self.keys_values(encoded).chunk(2, dim=2)
        q = self.query(self.norm(h))[:, None]
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=known[:, None])[:, 0]
        out: Tensor = h + self.out(found)
        return out


def _positions(h: Tensor) -> Tensor:
    """Return the sinusoidal encoding ``(L, E)`` of the positions in ``h: (B, L, E)``."""
    length, width = h.shape[1:]
    frequency = torch.exp(-math.log(10_000) * torch.arange(0, width, 2, device=h.device) / width)
    angle = torch.arange(length, device=h.device)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width].to(h.dtype)
