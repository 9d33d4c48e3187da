"""Noise with a constant covariance C along the last axis, as white noise in the coordinates m = L^-1 x, C = L L^T.

The SDE  dx = f x dt + g L dw  with correlated noise is the scalar SDE  dm = f m dt + g dw  in these coordinates, and
its preconditioned reverse drift  f x - g^2 C score_x  is the ordinary one of m. Published examples are PriorGrad (Lee
et al. 2022, arXiv:2106.06406), blue noise (Huang et al. 2024, arXiv:2402.04930) and Gaussian-process noise for series
(Bilos et al. 2023, arXiv:2211.02590). The log-determinant is  -log det L  for each vector along the axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataError, UsageError
from ..core.opened import read_arrays, reason
from ..core.registry import closest
from .space import Space, matrix_times

__all__ = ["Whitened", "kernel_matrix"]

# Correlation at distance d, in units of the length.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": lambda d: torch.exp(-d),
    "matern": lambda d: (1 + math.sqrt(3) * d) * torch.exp(-math.sqrt(3) * d),
    "gaussian": lambda d: torch.exp(-d.square() / 2),
}
SINGULAR = 1e-12  # smallest ratio of two eigenvalues


@lru_cache(maxsize=32)
def kernel_matrix(name: str, length: float, n: int) -> Tensor:
    """Return the covariance of a kernel at ``n`` points spread evenly over [0, 1], float64 ``(n, n)``."""
    at = torch.linspace(0, 1, n, dtype=torch.float64)
    found: Tensor = KERNELS[name]((at[:, None] - at).abs() / length)
    return found


@lru_cache(maxsize=32)
def _kernel_factors(name: str, length: float, n: int) -> tuple[Tensor, Tensor]:
    return _factors(kernel_matrix(name, length, n), f"{name}:{length:g} at {n} points")


def _factors(covariance: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return L and its inverse, or reject a covariance that is not positive definite."""
    if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-12):
        raise UsageError(f"the covariance {what} of the noise must be symmetric", parameter="space")
    covariance = (covariance + covariance.T) / 2
    values = torch.linalg.eigvalsh(covariance)
    if not float(values[0]) > SINGULAR * float(values[-1]):
        raise UsageError(
            f"the covariance {what} of the noise is singular or has negative eigenvalues (from {float(values[0]):.3g} "
            f"to {float(values[-1]):.3g}), so it cannot be undone; use a shorter length, or add a small multiple of "
            "the identity",
            parameter="space",
        )
    lower = torch.linalg.cholesky(covariance)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
    return lower, inverse


@dataclass(frozen=True, eq=False, repr=False)
class Whitened(Space):
    """Coordinates in which noise of a constant covariance along the last axis is white.

    Args:
        covariance: A matrix ``(k, k)`` for the last axis, or for the last two axes as one vector; a file (.npy, or .npz
            with one array) that contains the matrix; or ``exponential:LENGTH``, ``matern:LENGTH`` or
            ``gaussian:LENGTH``, where the length is a fraction of the axis. The numbers of a matrix are stored with the
            run.
    """

    covariance: Any = "exponential:0.1"

    def __post_init__(self) -> None:
        given = self.covariance
        if isinstance(given, str):
            self._kernel()
            return
        matrix = torch.as_tensor(given, dtype=torch.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not bool(matrix.isfinite().all()):
            raise UsageError(
                f"the covariance of the noise must be a square matrix of finite numbers, but its shape is "
                f"{tuple(matrix.shape)}",
                parameter="space",
            )
        object.__setattr__(self, "covariance", matrix)
        object.__setattr__(self, "_made", _factors(matrix, f"(a matrix of shape {tuple(matrix.shape)})"))

    def __str__(self) -> str:
        return f"whitened:{self.covariance}" if isinstance(self.covariance, str) else "whitened"

    def _kernel(self) -> tuple[str, float] | None:
        """Return the name and the length of the kernel, or ``None`` for a file."""
        name, _, rest = self.covariance.partition(":")
        if Path(self.covariance).suffix.lower() in (".npy", ".npz"):
            return None
        if name not in KERNELS:
            raise UsageError(
                f"unknown covariance {self.covariance!r}; name a file (.npy or .npz), or a kernel with its length, "
                f"such as exponential:0.3; {closest(name, KERNELS)}",
                parameter="space",
                value="whitened:exponential:0.3",
            )
        try:
            length = float(rest)
        except ValueError:
            length = math.nan
        if not (0 < length < math.inf):
            raise UsageError(
                f"the kernel {name!r} needs a positive length, a fraction of the axis, but got {rest!r}",
                parameter="space",
                value=f"whitened:{name}:0.3",
            )
        return name, length

    def fitted(self, m: Tensor, condition: object = None) -> Self:
        found = self.read()
        found._factors(m)
        return found

    def read(self) -> Self:
        """Return the space with the matrix of its file, or the space itself if it does not name a file."""
        if not isinstance(self.covariance, str) or self._kernel() is not None:
            return self
        try:
            arrays = read_arrays(Path(self.covariance))
        except (OSError, ValueError, MemoryError) as error:
            raise DataError(f"{self.covariance} cannot be read: {reason(error)}", parameter="space") from error
        if len(arrays) != 1 or next(iter(arrays.values())).dtype.kind not in "biuf":
            raise DataError(f"{self.covariance} must contain one array of numbers, the covariance", parameter="space")
        return replace(self, covariance=np.asarray(next(iter(arrays.values())), dtype=np.float64))

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return L, its inverse, and the number of axes on which they act."""
        if isinstance(self.covariance, str):
            kernel = self._kernel()
            if kernel is None:
                return self.read()._factors(x)
            return *_kernel_factors(*kernel, x.shape[-1]), 1
        (lower, inverse), k = self._made, len(self.covariance)  # type: ignore[attr-defined]
        if x.shape[-1] == k:
            return lower, inverse, 1
        if x.ndim > 2 and x.shape[-1] * x.shape[-2] == k:
            return lower, inverse, 2
        raise UsageError(
            f"the covariance of the noise has shape {tuple(self.covariance.shape)}, which fits neither the last axis "
            f"nor the last two axes of samples of shape {tuple(x.shape[1:])}",
            parameter="space",
        )

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        _, inverse, axes = self._factors(x)
        return matrix_times(inverse, x, axes)

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        lower, _, axes = self._factors(m)
        return matrix_times(lower, m, axes)

    def log_det(self, x: Tensor, condition: object = None) -> float:
        lower = self._factors(x)[0]
        return -float(lower.diagonal().log().sum()) * (x[0].numel() // len(lower))

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        return self.to_data(m)

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        return self.to_model(x)
