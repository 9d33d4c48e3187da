"""Broadcasting helpers, which let all other code work with batches of events of any shape.

A batch ``x`` has shape ``(B, *event)``. A time has shape ``()`` (one for the whole batch) or ``(B,)`` (one per row). A
coefficient that depends only on time also has one of these two shapes. A coefficient that varies within an event has
the same rank as ``x``. No function combines values from different rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import UsageError

__all__ = [
    "add_scaled", "align", "all_rows", "as_states", "as_tensor", "as_time", "at", "dims", "each", "expand", "flat",
    "laid_out", "mean_flat", "moved", "rms_flat", "select", "sum_flat", "time_dtype", "to_device",
]  # fmt: skip


def expand(a: Tensor, x: Tensor) -> Tensor:
    """Append axes to ``a`` so that it multiplies ``x`` row by row.

    Args:
        a: A coefficient of any floating dtype, or a mask. Its shape is ``()`` or ``(B,)``, or it has the same rank as
            ``x`` and broadcasts to the shape of ``x``.
        x: The batch that ``a`` is to be combined with, shape ``(B, *event)``.

    Returns:
        The tensor ``a`` on the device of ``x`` and, unless it is a mask, with the dtype of ``x``. Its shape is ``()``
        or ``(B, 1, ..., 1)``, or is unchanged if ``a`` has the same rank as ``x``.

    Raises:
        UsageError: If ``a`` has any other shape.

    >>> expand(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    dtype = torch.bool if a.dtype == torch.bool else x.dtype
    if a.ndim == 0:
        return a.to(dtype=dtype, device=x.device)
    whole = a.ndim == x.ndim and all(n in (1, m) for n, m in zip(a.shape, x.shape, strict=True))
    if not whole and (a.ndim != 1 or x.ndim == 0 or a.shape[0] not in (1, x.shape[0])):
        raise UsageError(
            "a coefficient must have shape () or (B,), or the rank of the batch and a shape that broadcasts to it; got "
            f"shape {tuple(a.shape)} for a batch of shape {tuple(x.shape)}"
        )
    a = a.to(dtype=dtype, device=x.device)
    return a if whole else align(a, x)


def align(a: Tensor, like: Tensor) -> Tensor:
    """Append axes to ``a: (B,)`` so that it broadcasts against ``like: (B, *event)`` row by row.

    >>> align(torch.ones(2), torch.zeros(2, 3, 4)).shape, align(torch.ones(2, 3), torch.zeros(2, 3)).shape
    (torch.Size([2, 1, 1]), torch.Size([2, 3]))
    """
    return a if a.ndim in (0, like.ndim) else a.reshape(-1, *[1] * (like.ndim - 1))


def at(table: Tensor, i: int) -> Tensor:
    """Return row ``i`` of a table ``(n, ...)`` of coefficients, as a tensor of shape ``(1, ...)``."""
    return table[i : i + 1]


def all_rows(mask: Tensor) -> list[bool]:
    """Return, for each row of a mask of shape ``(n, ...)``, whether all elements of the row are true."""
    found: list[bool] = flat(mask).all(1).tolist()
    return found


def dims(x: Tensor) -> int:
    """Return D, the number of elements in an event of ``x: (B, *event)``.

    This function returns a single number. Formulas that use D also accept a tensor of shape ``(B,)``, for data whose
    dimension differs between rows (:meth:`scoresde.codec.Codec.dims`).
    """
    return x[0].numel()


def time_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype to use for times and schedules: float64, or float32 on a device without float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(numbers: npt.NDArray[Any], x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a NumPy array as a tensor of the same shape on the device of ``x``, converted to ``dtype`` if given."""
    return torch.from_numpy(numbers).to(dtype=dtype).to(x.device)


def as_tensor(x: Tensor | npt.ArrayLike) -> Tensor:
    """Return ``x``, a tensor or an array, as a tensor of the same shape."""
    return x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))


def as_states(x: Tensor | npt.ArrayLike) -> Tensor:
    """Return states ``(B, *event)`` as a floating-point tensor, converting integers to float32."""
    x = as_tensor(x)
    return x if x.is_floating_point() else x.to(torch.float32)


def as_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Return the time ``t`` as a tensor of shape ``()`` or ``(B,)`` on the device of ``x``.

    A plain number is converted to the dtype that :func:`time_dtype` returns.

    Raises:
        UsageError: If ``t`` is neither one time nor one time per row.
    """
    if isinstance(t, Tensor):
        if t.ndim > 1 or (t.ndim and x.ndim and t.shape[0] not in (1, x.shape[0])):
            raise UsageError(
                f"a time must have shape () or (B,), got {tuple(t.shape)} for a batch of shape {tuple(x.shape)}"
            )
        return t.to(x.device)
    return torch.tensor(t, dtype=time_dtype(x.device), device=x.device)


def add_scaled(x: Tensor, factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Return ``x + sum_j factors_j values_j``, with the shape of ``x``.

    If the two sequences differ in length, the sum stops at the end of the shorter one.
    """
    for factor, value in zip(factors, values, strict=False):
        if factor:
            x = torch.add(x, value, alpha=factor)
    return x


def each(function: Callable[[Tensor], Tensor], *values: Tensor | None) -> tuple[Tensor | None, ...]:
    """Apply a function to each value that is a tensor, and return the results. Each ``None`` stays ``None``."""
    return tuple(None if value is None else function(value) for value in values)


def moved(value: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device. A copy from the host to a GPU does not wait for earlier work of the GPU."""
    if torch.device(device).type == "cuda" and value.device.type == "cpu" and torch.cuda.is_available():
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def select(a: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index: (n,)`` of ``a``, or ``a`` itself if it has a single row that applies to all samples."""
    return a if a.shape[0] == 1 else a[index]


def flat(x: Tensor) -> Tensor:
    """Flatten each event of ``x: (B, *event)``, and return a tensor of shape ``(B, D)``. For scalar events, D is 1."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def sum_flat(x: Tensor) -> Tensor:
    """Sum ``x: (B, *event)`` over the event axes, and return a tensor of shape ``(B,)``."""
    return flat(x).sum(1)


def mean_flat(x: Tensor) -> Tensor:
    """Average ``x: (B, *event)`` over the event axes, and return a tensor of shape ``(B,)``."""
    return flat(x).mean(1)


def rms_flat(x: Tensor) -> Tensor:
    """Compute the root mean square of each event of ``x: (B, *event)``, and return a tensor of shape ``(B,)``."""
    x = flat(x)
    norm: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norm / math.sqrt(x.shape[1])


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with its elements in memory in the same order as those of ``like``, which has the same shape.

    Fused optimisers pair the elements of a weight, its gradient and its moments by their position in memory.
    """
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
