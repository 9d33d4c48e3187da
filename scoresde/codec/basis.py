"""Orthonormal bases of the last one or two axes of an event: cosines, waves, Haar wavelets and principal components.

White noise is white in every orthonormal basis, so a basis alone does not change a scalar path. It is the space in
which bands can be treated differently. Each basis exists for every size, including odd sizes and 1, and has the
log-determinant 0. Networks see and return pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.registry import closest
from .space import Space, check_axes, matrix_times

__all__ = ["Basis", "basis_matrix"]

LARGEST = 1024  # largest number of elements for principal components, whose matrix is stored with the run


def _dct(n: int) -> Tensor:
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    found = math.sqrt(2 / n) * torch.cos(math.pi / n * (i + 0.5) * k)
    found[0] = 1 / math.sqrt(n)
    return found


def _fft(n: int) -> Tensor:
    i, rows = torch.arange(n, dtype=torch.float64), [torch.full((n,), 1 / math.sqrt(n), dtype=torch.float64)]
    for k in range(1, (n - 1) // 2 + 1):
        rows += [math.sqrt(2 / n) * torch.cos(2 * math.pi * k * i / n)]
        rows += [math.sqrt(2 / n) * torch.sin(2 * math.pi * k * i / n)]
    return torch.stack([*rows, (1 - 2 * (i % 2)) / math.sqrt(n)] if n % 2 == 0 else rows)


def _haar(n: int) -> Tensor:
    """Halve the signal repeatedly. If its length is odd, its last value joins the averages of the pairs."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    half = n // 2
    average, detail = torch.zeros(n - half, n, dtype=torch.float64), torch.zeros(half, n, dtype=torch.float64)
    for i in range(half):
        average[i, 2 * i : 2 * i + 2] = 1 / math.sqrt(2)
        detail[i, 2 * i], detail[i, 2 * i + 1] = 1 / math.sqrt(2), -1 / math.sqrt(2)
    if n % 2:
        average[half, n - 1] = 1.0
    return torch.cat([_haar(n - half) @ average, detail])


KINDS = {"dct": _dct, "fft": _fft, "haar": _haar}


@lru_cache(maxsize=64)
def basis_matrix(kind: str, n: int) -> Tensor:
    """Return the orthonormal matrix of a basis, float64 ``(n, n)``.

    The rows are the basis vectors, from coarse to fine.
    """
    return KINDS[kind](n)


@dataclass(frozen=True, eq=False, repr=False)
class Basis(Space):
    """An orthonormal basis of the last axes: dct, fft, haar or pca.

    Args:
        kind: ``dct`` (cosines), ``fft`` (real waves), ``haar`` (wavelets) or ``pca`` (principal components of the
            training data, which are stored with the run).
        axes: The number of axes, 1 or 2, or 0 for 2 if the samples are images or volumes, and 1 otherwise.
        matrix: The principal components, ``(k, k)``, or ``None`` before training.
    """

    masks: ClassVar[bool] = False
    rigid: ClassVar[bool] = True

    kind: str = "dct"
    axes: int = 0
    matrix: Any = None

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "pca"):
            raise UsageError(f"unknown basis {self.kind!r}; {closest(self.kind, (*KINDS, 'pca'))}", parameter="space")
        if self.matrix is not None:
            object.__setattr__(self, "matrix", torch.as_tensor(self.matrix, dtype=torch.float64))

    def __str__(self) -> str:
        return f"basis:{self.kind}"

    def _axes(self, event: tuple[int, ...]) -> int:
        axes = self.axes or (2 if len(event) > 2 else 1)
        check_axes("'basis'", axes, event)
        return axes

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        size = math.prod(shape[-self._axes(shape) :])
        if self.kind == "pca" and size > LARGEST:
            raise UsageError(
                f"the basis 'pca' supports up to {LARGEST:,} numbers on its axes, but samples of shape {shape} have "
                f"{size:,}; use 'dct', 'fft' or 'haar'",
                parameter="space",
                value="basis:dct",
            )
        return shape

    def fitted(self, m: Tensor, condition: object = None) -> Self:
        if self.kind != "pca":
            return self
        self.model_shape(tuple(m.shape[1:]))
        rows = m.double().flatten(-2) if self._axes(tuple(m.shape[1:])) == 2 else m.double()
        rows = rows.reshape(-1, rows.shape[-1])
        rows = rows - rows.mean(0)
        vectors = torch.linalg.eigh(rows.T @ rows / len(rows))[1]
        return replace(self, matrix=vectors.flip(1).T.contiguous())

    def _turned(self, x: Tensor, back: bool) -> Tensor:
        axes = self._axes(tuple(x.shape[1:]))
        if self.kind == "pca":
            if self.matrix is None:
                raise UsageError("the basis 'pca' is not fitted; call fitted(x) with training rows", parameter="space")
            if len(self.matrix) != math.prod(x.shape[-axes:]):
                raise UsageError(
                    f"the basis 'pca' was fitted to {len(self.matrix)} numbers, not to samples of {tuple(x.shape[1:])}"
                )
            return matrix_times(self.matrix.T if back else self.matrix, x, axes)
        for axis in range(-axes, 0):
            turn = basis_matrix(self.kind, x.shape[axis]).to(x)
            x = (x.movedim(axis, -1) @ (turn if back else turn.T)).movedim(-1, axis)
        return x

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        return self._turned(x, False)

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        return self._turned(m, True)

    def log_det(self, x: Tensor, condition: object = None) -> float:
        return 0.0

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        return self._turned(m, True)

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        return self._turned(x, False)
