"""A trained model: a network, the path it was trained on, and what its output means; conditioning as wrappers.

:class:`ScoreModel` is a :class:`~scoresde.estimate.Denoiser`. Conditioning is bound before solving,
``model.given(labels)``, and guidance mixes two denoisers; both are denoisers again, so that no solver ever carries a
label. A label keeps its row: ``rows(index)`` selects the rows that a solver still works on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import UsageError
from .estimate import Denoiser, Estimate, Parametrization, Wrapped
from .sde import SDE
from .shapes import as_time, expand, select

__all__ = ["Given", "Guided", "ScoreModel"]


class ScoreModel(nn.Module):
    """``network + sde + parametrization``, called as ``model(x, t) -> Estimate``.

    Args:
        network: Called as ``network(x, c, cond)`` with ``x: (B, *event)``, the noise label ``c: (B,)`` and ``cond``
            the class of each row, int64 ``(B,)``, or ``None``; returns the shape of ``x``.
        sde: The path.
        parametrization: What the output means.
        classes: Number of classes the network was trained with; class ``classes`` stands for "no label".

    Example:
        >>> from scoresde import VPSDE, Eps, ScoreModel
        >>> from scoresde.nn import MLP
        >>> model = ScoreModel(MLP(dims=2, width=8, blocks=1), VPSDE(), Eps())
        >>> model(torch.zeros(5, 2), 0.5).score.shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, sde: SDE, parametrization: Parametrization, classes: int = 0) -> None:
        super().__init__()
        self.network = network
        self.sde = sde
        self.parametrization = parametrization
        self.classes = classes
        self.t_min = sde.t_min
        self.t_max = parametrization.legal_t_max(sde)
        self.coupled = False
        self.nodes: Tensor | None = None

    def output(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The output F at ``(x_t, t)``, shape of ``x``."""
        # Schedules are computed in the dtype of t (float64 in solvers) and cast where they meet the network.
        label = self.parametrization.label(self.sde, t).to(x.dtype).expand(x.shape[0])
        scaled = expand(self.parametrization.input_scale(self.sde, t), x) * x
        if self.classes:
            cond = torch.full_like(label, self.classes, dtype=torch.int64) if cond is None else cond.expand(len(x))
        raw: Tensor = self.network(scaled, label, cond)
        return expand(self.parametrization.output_scale(self.sde, t), x) * raw

    def forward(self, x: Tensor, t: float | Tensor, cond: Tensor | None = None) -> Estimate:
        """Estimate data and noise at ``x: (B, *event)``, ``t: ()`` or ``(B,)``."""
        t = as_time(t, x)
        return self.parametrization.solve(self.sde, x, t, self.output(x, t, cond))

    def rows(self, index: Tensor) -> ScoreModel:
        """The model itself: without conditioning all rows are alike."""
        return self

    def given(self, labels: int | Tensor) -> Given:
        """Bind a class to each row: an int for all, or int64 ``(B,)`` with ``classes`` for "no label"."""
        if not self.classes:
            raise UsageError("this model was trained without classes; train with --cond class to ask for a label")
        cond = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        if bool(((cond < 0) | (cond > self.classes)).any()):
            wrong = cond[(cond < 0) | (cond > self.classes)][0]
            raise UsageError(f"label {int(wrong)} is not one of the {self.classes} classes 0 to {self.classes - 1}")
        return Given(self, cond)


@dataclass(frozen=True)
class Given(Wrapped):
    """A model with a class bound to each row.

    Args:
        model: The model that knows classes.
        cond: int64, shape ``(B,)`` or ``(1,)`` for all rows.
    """

    model: ScoreModel
    cond: Tensor

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if len(self.cond) not in (1, len(x)):
            raise UsageError(f"{len(self.cond)} labels for {len(x)} samples; give one for all, or one for each")
        estimate: Estimate = self.model(x, t, self.cond.to(x.device))
        return estimate

    def rows(self, index: Tensor) -> Given:
        """The same for the rows ``index``, shape ``(B',)``: each keeps its class."""
        return Given(self.model, select(self.cond, index.to(self.cond.device)))


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: ``estimate = uncond + scale (cond - uncond)``; scale 1 is the conditional model.

    Ho and Salimans (2022), arXiv:2207.12598, eq. 6, whose w is ``scale - 1``. Two network evaluations per call, but one
    at scale 0 or 1.
    """

    cond: Denoiser
    uncond: Denoiser
    scale: float

    @property
    def sde(self) -> SDE:
        return self.cond.sde

    @property
    def t_min(self) -> float:
        return max(self.cond.t_min, self.uncond.t_min)

    @property
    def t_max(self) -> float:
        return min(self.cond.t_max, self.uncond.t_max)

    @property
    def coupled(self) -> bool:
        return self.cond.coupled or self.uncond.coupled

    @property
    def nodes(self) -> Tensor | None:
        return self.cond.nodes

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if self.scale in (0.0, 1.0):
            return self.cond(x, t) if self.scale else self.uncond(x, t)
        c, u = self.cond(x, t), self.uncond(x, t)
        # Both satisfy alpha x0 + sigma eps = x, and so does any affine mixture of them.
        return Estimate(x, c.t, torch.lerp(u.x0, c.x0, self.scale), torch.lerp(u.eps, c.eps, self.scale), c.sde)

    def rows(self, index: Tensor) -> Guided:
        """The same for the rows ``index``, shape ``(B',)``."""
        return Guided(self.cond.rows(index), self.uncond.rows(index), self.scale)
