"""What a model, a function or a setting is, in the same words and with the same digest in each process."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from types import FunctionType

from torch import Tensor, nn

from ..core.parts import digest

__all__ = ["identity", "outline", "tensors"]


def tensors(thing: object) -> list[Tensor]:
    """Return all tensors in a model, or in a dataclass such as a condition, in a fixed order."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, nn.Module):
        return list(thing.state_dict().values())
    return [t for f in fields(thing) for t in tensors(getattr(thing, f.name))] if is_dataclass(thing) else []


def outline(thing: object) -> str:
    """Describe what a model, a function or a setting is, except for its tensors, in the same words in each process."""
    if isinstance(thing, Tensor):
        return f"tensor {tuple(thing.shape)}"
    if isinstance(thing, nn.Module):
        return re.sub(r"\s+", " ", repr(thing))
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(outline, thing))})"
    if is_dataclass(thing) and not isinstance(thing, type):
        inside = ", ".join(f"{f.name}={outline(getattr(thing, f.name))}" for f in fields(thing) if f.init)
        return f"{type(thing).__module__}.{type(thing).__qualname__}({inside})"
    if isinstance(thing, FunctionType):
        code, cells = thing.__code__, thing.__closure__ or ()
        inside = outline([cell.cell_contents for cell in cells])
        return f"{thing.__module__}.{thing.__qualname__} {code.co_code.hex()} {code.co_names} {inside}"
    return repr(thing)


def identity(thing: object) -> str:
    return digest(outline(thing), *tensors(thing))
