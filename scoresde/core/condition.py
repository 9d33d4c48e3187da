"""Conditions: the information known about each sample, in up to four tensors (slots) with one row per sample.

Missing values are marked in the tensors themselves, so a condition that is dropped for guidance, a hole in an image and
an empty cell of a table are all handled in the same way:

    =========  ==============================  =====================
    slot       shape                           missing value
    =========  ==============================  =====================
    `label`    int64 ``(B,)``                  the number of classes
    `vector`   ``(B, V)``                      NaN
    `image`    ``(B, C, *space)``              NaN
    `tokens`   int64 ``(B, L)``                -1
    `tokens`   features ``(B, L, E)``          NaN
    =========  ==============================  =====================

A fifth tensor, ``mask``, is not a condition but says which values of each row are real, bool ``(B, *event)``. It exists
only for padded rows (:class:`scoresde.codec.Masked`), and is never dropped.

A first dimension of 1 instead of B means that the single row applies to all samples. A network must use
``torch.where`` to replace NaN before any multiplication, because 0 times NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .errors import UsageError
from .shapes import each, expand, moved, select

__all__ = ["SLOTS", "Condition"]

SLOTS = ("label", "vector", "image", "tokens")


@dataclass(frozen=True, eq=False)
class Condition:
    """The information that is known about the rows of a batch.

    Args:
        label: Class of each row, int64, shape ``(B,)`` or ``(1,)``.
        vector: A vector for each row, shape ``(B, V)`` or ``(1, V)``.
        image: An image or a signal for each row, shape ``(B, C, *space)`` or ``(1, C, *space)``.
        tokens: Word indices, int64, shape ``(B, L)`` or ``(1, L)``, or word features, shape ``(B, L, E)`` or
            ``(1, L, E)``.
        classes: The number of classes. A label equal to this number means that the class is missing.
        mask: Which values of each row are real, bool, shape ``(B, *event)`` or ``(1, *event)`` in the shape of the
            data.

    >>> known = Condition(label=torch.tensor([2, 0, 1]), classes=3)
    >>> known.dropped(torch.tensor([False, True, False])).label, len(known)
    (tensor([2, 3, 1]), 3)
    """

    label: Tensor | None = None
    vector: Tensor | None = None
    image: Tensor | None = None
    tokens: Tensor | None = None
    classes: int = 0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name in (*SLOTS, "mask") if (value := getattr(self, name)) is not None}
        if len({size for size in sizes.values() if size != 1}) > 1:
            raise UsageError(
                f"each tensor of a condition must have one row per sample, or a single row; got these counts: {sizes}"
            )

    def __len__(self) -> int:
        """Return the number of rows, or 1 if a single row applies to all samples."""
        return max((len(v) for name in (*SLOTS, "mask") if (v := getattr(self, name)) is not None), default=1)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Condition:
        label, vector, image, tokens, mask = each(function, self.label, self.vector, self.image, self.tokens, self.mask)
        return Condition(label, vector, image, tokens, self.classes, mask)

    def rows(self, index: Tensor) -> Condition:
        """Return the condition for the rows selected by ``index: (B',)``."""
        return self._each(lambda value: select(value, index.to(value.device)))

    def expand(self, count: int) -> Condition:
        """Return the condition expanded to ``count`` rows.

        Raises:
            UsageError: If the condition has neither one row nor ``count`` rows.
        """
        if len(self) not in (1, count):
            raise UsageError(
                f"the condition has {len(self)} rows for {count} sample{'s' * (count > 1)}; pass a single row, or one "
                "row per sample"
            )
        return self._each(lambda value: value.expand(count, *value.shape[1:]))

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on the given device."""
        return self._each(lambda value: moved(value, device))

    def to_dtype(self, dtype: torch.dtype) -> Condition:
        """Return the condition with its floating-point values converted to ``dtype``."""
        return self._each(lambda value: value.to(dtype) if value.is_floating_point() else value)

    def dropped(self, mask: Tensor) -> Condition:
        """Return a copy in which all values are marked as missing in the rows where ``mask: (B,)`` is true."""
        if self.label is not None and not self.classes:
            raise UsageError("cannot drop labels because the number of classes is unknown; pass classes= to Condition")
        found = self.expand(len(mask))

        def hide(value: Tensor | None, nothing: float) -> Tensor | None:
            return None if value is None else torch.where(expand(mask.to(value.device), value), nothing, value)

        return replace(
            found,
            label=hide(found.label, self.classes),
            vector=hide(found.vector, torch.nan),
            image=hide(found.image, torch.nan),
            tokens=hide(found.tokens, -1 if found.tokens is None or found.tokens.ndim == 2 else torch.nan),
        )


# The code below lets compiled and exported networks split a condition into its tensors.
def _made(values: Iterable[Any], classes: Any) -> Condition:
    """Build a condition from tensors or placeholders without checking them."""
    made = object.__new__(Condition)
    *slots, mask = values if len(values := list(values)) > len(SLOTS) else (*values, None)
    for name, value in zip((*SLOTS, "classes", "mask"), (*slots, classes, mask), strict=True):
        object.__setattr__(made, name, value)
    return made


def _names(c: Condition) -> tuple[str, ...]:
    return SLOTS if c.mask is None else (*SLOTS, "mask")


_pytree.register_pytree_node(
    Condition,
    lambda c: ([getattr(c, name) for name in _names(c)], c.classes),
    _made,
    serialized_type_name="scoresde.Condition",
    flatten_with_keys_fn=lambda c: ([(_pytree.GetAttrKey(name), getattr(c, name)) for name in _names(c)], c.classes),
)
