"""What is known of a sample: the slots of a condition, at most four tensors with a row for each sample.

That something is *not* known is written in the value itself, so that dropping a condition for guidance, a hole in a
picture and an empty cell of a table are one thing:

    =========  ==============================  =====================
    slot       shape                           not given
    =========  ==============================  =====================
    `label`    int64 ``(B,)``                  the number of classes
    `vector`   ``(B, V)``                      NaN
    `image`    ``(B, C, *space)``              NaN
    `tokens`   int64 ``(B, L)``                -1
    =========  ==============================  =====================

A leading size of 1 in place of B means "the same for every row". A network takes NaN out by ``where`` before any
product, because 0 times NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .errors import UsageError
from .shapes import each, expand, select

__all__ = ["SLOTS", "Condition"]

SLOTS = ("label", "vector", "image", "tokens")


@dataclass(frozen=True, eq=False)
class Condition:
    """What is known of the rows of a batch.

    Args:
        label: Class of each row, int64, shape ``(B,)`` or ``(1,)``.
        vector: Numbers, shape ``(B, V)`` or ``(1, V)``.
        image: A picture or a signal, shape ``(B, C, *space)`` or ``(1, C, *space)``.
        tokens: Words, int64, shape ``(B, L)`` or ``(1, L)``.
        classes: How many classes there are; this label stands for "not given".

    >>> known = Condition(label=torch.tensor([2, 0, 1]), classes=3)
    >>> known.dropped(torch.tensor([False, True, False])).label, len(known)
    (tensor([2, 3, 1]), 3)
    """

    label: Tensor | None = None
    vector: Tensor | None = None
    image: Tensor | None = None
    tokens: Tensor | None = None
    classes: int = 0

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name in SLOTS if (value := getattr(self, name)) is not None}
        if len({size for size in sizes.values() if size != 1}) > 1:
            raise UsageError(f"the parts of a condition have one row for each sample, or one for all; got {sizes}")

    def __len__(self) -> int:
        """The number of rows; 1 if they are all the same."""
        return max((len(v) for name in SLOTS if (v := getattr(self, name)) is not None), default=1)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Condition:
        label, vector, image, tokens = each(function, self.label, self.vector, self.image, self.tokens)
        return Condition(label, vector, image, tokens, self.classes)

    def rows(self, index: Tensor) -> Condition:
        """The condition of the rows ``index``, shape ``(B',)``."""
        return self._each(lambda value: select(value, index.to(value.device)))

    def expand(self, count: int) -> Condition:
        """The same with ``count`` rows.

        Raises:
            UsageError: If there are rows, and not so many.
        """
        if len(self) not in (1, count):
            raise UsageError(f"a condition of {len(self)} rows for {count} samples; give one for all, or one for each")
        return self._each(lambda value: value.expand(count, *value.shape[1:]))

    def to(self, device: torch.device | str) -> Condition:
        """The same on a device."""
        return self._each(lambda value: value.to(device))

    def dropped(self, mask: Tensor) -> Condition:
        """The same with nothing given for the rows where ``mask``, bool ``(B,)``, is true."""
        if self.label is not None and not self.classes:
            raise UsageError("a label that may be dropped needs the number of classes, which stands for none: classes=")
        found = self.expand(len(mask))

        def hide(value: Tensor | None, nothing: float) -> Tensor | None:
            return None if value is None else torch.where(expand(mask.to(value.device), value), nothing, value)

        return replace(
            found,
            label=hide(found.label, self.classes),
            vector=hide(found.vector, torch.nan),
            image=hide(found.image, torch.nan),
            tokens=hide(found.tokens, -1),
        )


# Compiled and exported networks take a condition apart into its tensors.
def _made(values: Iterable[Any], classes: Any) -> Condition:
    """A condition of whatever stands for its tensors, unchecked."""
    made = object.__new__(Condition)
    for name, value in zip((*SLOTS, "classes"), (*values, classes), strict=True):
        object.__setattr__(made, name, value)
    return made


_pytree.register_pytree_node(
    Condition,
    lambda c: ([getattr(c, name) for name in SLOTS], c.classes),
    _made,
    serialized_type_name="scoresde.Condition",
    flatten_with_keys_fn=lambda c: ([(_pytree.GetAttrKey(name), getattr(c, name)) for name in SLOTS], c.classes),
)
