"""A second device that is not there: tensors of the CPU that say they are elsewhere, and refuse to meet others.

Inside :class:`Far`, ``far(x)`` marks a tensor as one of another device, ``cuda:0``. What is computed from it is there
too, what is made with ``device=x.device`` as well, and what is made without is on the CPU, as it would be. Where a
tensor with axes of the one meets a tensor of the other, :class:`TwoDevices` is raised, as torch would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

__all__ = ["THERE", "Far", "TwoDevices", "far", "is_far"]

THERE = torch.device("cuda:0")
# What may be asked of tensors on two devices: an index may lie on the CPU, and copying is what moves.
_MOVES = {"__getitem__", "__setitem__", "copy_", "to", "type_as", "cpu", "index_put", "index_put_"}


class TwoDevices(RuntimeError):
    """Tensors of two devices met."""


def far(x: Any) -> Any:
    """Mark a tensor, or what a module holds, as of the other device."""
    if isinstance(x, nn.Module):
        for value in (*x.parameters(), *x.buffers()):
            value._far = True
    else:
        x._far = True
    return x


def is_far(x: object) -> bool:
    return getattr(x, "_far", False) is True


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


class Far(TorchFunctionMode):
    """While this is active, marks are passed on and meetings refused."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if name == "__get__" and owner is Tensor.device and is_far(args[0]):
            return THERE
        given = list(_tensors((args, kwargs)))
        marked = any(map(is_far, given))
        wanted = kwargs.get("device")
        if name == "to":
            wanted = next((a for a in (*args[1:], wanted) if isinstance(a, str | torch.device)), None)
            other = next((a for a in args[1:] if isinstance(a, Tensor)), None)
            marked = is_far(other) if other is not None else marked
        if wanted is not None:
            marked = torch.device(wanted).type == "cuda"
            kwargs = {k: v for k, v in kwargs.items() if k != "device"}
            args = (*args[:1], *(torch.device("cpu") if isinstance(a, str | torch.device) else a for a in args[1:]))
        elif name == "type_as":
            marked = is_far(args[1])
        elif name in ("__getitem__", "__setitem__", "copy_"):
            marked = is_far(args[0])
        elif name not in _MOVES and marked and any(not is_far(t) and t.ndim for t in given):
            raise TwoDevices(f"{name} of tensors on {THERE} and on the CPU: {[tuple(t.shape) for t in given]}")
        found = func(*args, **kwargs)
        marked = marked and name != "cpu"
        if name in ("cpu", "to") and found is args[0] and is_far(found) != marked:
            found = found.clone()  # a tensor that moves is another one
        for t in _tensors(found):
            if marked or name in ("cpu", "to"):
                t._far = marked
        return found
