"""The only broadcasting code: everything else works on a batch of events of any shape.

Convention. A batch ``x`` has shape ``(B, *event)``; a time, or a coefficient that depends on time alone, has shape
``()`` (one for the whole batch) or ``(B,)`` (one per row). Rows never mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import UsageError

__all__ = [
    "add_scaled", "as_tensor", "as_time", "expand", "flat", "mean_flat", "rms_flat", "select", "sum_flat", "time_dtype",
    "to_device",
]  # fmt: skip


def expand(a: Tensor, x: Tensor) -> Tensor:
    """Append axes to ``a`` so that it multiplies ``x`` row by row.

    Args:
        a: A coefficient, shape ``()`` or ``(B,)``, any floating dtype; or a mask.
        x: The batch it will meet, shape ``(B, *event)``.

    Returns:
        ``a`` in the dtype (but for a mask) and on the device of ``x``, shape ``()`` or ``(B, 1, ..., 1)``.

    Raises:
        UsageError: If ``a`` is neither a scalar nor one number per row.

    >>> expand(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    dtype = torch.bool if a.dtype == torch.bool else x.dtype
    if a.ndim == 0:
        return a.to(dtype=dtype, device=x.device)
    if a.ndim != 1 or x.ndim == 0 or a.shape[0] not in (1, x.shape[0]):
        raise UsageError(
            f"a coefficient has shape () or (B,): got {tuple(a.shape)} for a batch of shape {tuple(x.shape)}"
        )
    return a.to(dtype=dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))


def time_dtype(device: torch.device) -> torch.dtype:
    """Return float64, in which times and schedules are computed, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(numbers: npt.NDArray[Any], x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor on the device of ``x``, in their shape; in their own dtype or ``dtype``."""
    return torch.from_numpy(numbers).to(dtype=dtype).to(x.device)


def as_tensor(x: Tensor | npt.ArrayLike) -> Tensor:
    """``x`` as a tensor of its shape; arrays are accepted wherever tensors are."""
    return x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))


def as_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Return the time ``t``, shape ``()`` or ``(B,)``, on the device of ``x``; numbers become float64."""
    if isinstance(t, Tensor):
        return t.to(x.device)
    return torch.tensor(t, dtype=time_dtype(x.device), device=x.device)


def add_scaled(x: Tensor, factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """``x + sum_j factors_j values_j``, over as many as there are of both; shapes as of ``x``."""
    for factor, value in zip(factors, values, strict=False):
        if factor:
            x = torch.add(x, value, alpha=factor)
    return x


def select(a: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` of ``a``; a leading size of 1 means "the same for every row" and is left as it is."""
    return a if a.shape[0] == 1 else a[index]


def flat(x: Tensor) -> Tensor:
    """Events as vectors: ``(B, *event)`` to ``(B, D)``; an event of shape ``()`` has D = 1."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def sum_flat(x: Tensor) -> Tensor:
    """Sum over the event axes: ``(B, *event)`` to ``(B,)``."""
    return flat(x).sum(1)


def mean_flat(x: Tensor) -> Tensor:
    """Mean over the event axes: ``(B, *event)`` to ``(B,)``."""
    return flat(x).mean(1)


def rms_flat(x: Tensor) -> Tensor:
    """Root mean square over the event axes: ``(B, *event)`` to ``(B,)``."""
    x = flat(x)
    norm: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norm / math.sqrt(x.shape[1])
