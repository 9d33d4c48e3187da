"""A trained model: a network, the path it was trained on, and the meaning of its output.

:class:`ScoreModel` is a :class:`~scoresde.model.estimate.Denoiser`. To use conditions, call ``model.given(condition)``
before solving. The result is itself a denoiser, so solvers never handle conditions. When a solver selects the rows that
it is still working on with ``rows(index)``, the conditions of these rows are selected with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..codec import Codec, Composed
from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.shapes import as_tensor, as_time, expand
from ..nn.labelled import check_network
from ..sde.base import SDE
from .estimate import Domain, Estimate, Wrapped
from .parametrization import Parametrization

__all__ = ["Given", "ScoreModel"]


class ScoreModel(nn.Module):
    """A model made of a network, an SDE and a parametrization, called as ``model(x, t) -> Estimate``.

    The learned parameters of the path (:meth:`scoresde.SDE.parameters`) are among the parameters of the model.

    Args:
        network: The network, called as ``network(x, c, cond)`` with ``x: (B, *event)``, the noise label ``c: (B,)`` and
            ``cond``, the :class:`~scoresde.core.condition.Condition` of the rows, or ``None``. It must return a tensor
            with the same shape as ``x`` (but see ``learn_variance``). Use :class:`scoresde.nn.Labelled` to wrap a
            network that takes two arguments. When training on augmented data, the network is called as
            ``network(x, c, cond, augment)``.
        sde: The path. If it is a chain, the model is limited to the nodes, and fixed-step solvers go from node to node.
        parametrization: The meaning of the network's output.
        classes: Number of classes that the network was trained with. The label ``classes`` stands for "not given".
        coupled: Whether data and noise were paired in training (:mod:`scoresde.objective.coupling`). The flow is then
            correct, but there is no score.
        codec: The map from data units to model units. The input of the network, ``codec.show(x)``, and the output of
            the network have the shape of the data. Without a codec, data units and model units are the same.
        learn_variance: Whether the network returns twice as many channels, ``(B, 2 C, ...)``. The second half, v, sets
            the variance of a reverse step: ``frac = (v + 1)/2`` is its position between the two bounds, on a log scale
            (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).

    Example:
        >>> from scoresde import VPSDE, Eps, ScoreModel
        >>> from scoresde.nn import MLP
        >>> model = ScoreModel(MLP(dims=2, width=8, blocks=1), VPSDE(), Eps())
        >>> model(torch.zeros(5, 2), 0.5).score.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        parametrization: Parametrization,
        classes: int = 0,
        coupled: bool = False,
        learn_variance: bool = False,
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        check_network(network, classes)
        if learn_variance and sde.nodes is None:
            raise UsageError(
                f"learn_variance: {type(sde).__name__} has no nodes, but the variance to learn is that of a step from "
                "one node to the next; use the SDE ddpm or smld",
                parameter="sde",
                value="ddpm",
            )
        if learn_variance and coupled:
            raise UsageError(
                "learn_variance: a model of coupled data and noise has no reverse steps with noise, so it has no "
                "variance to learn; turn off learn_variance or the coupling"
            )
        self.network = network
        self.sde = sde
        self.parametrization = parametrization
        self.classes = classes
        self.learn_variance = learn_variance
        self.codec = Composed() if codec is None else codec
        (t_min, t_max), nodes = _legal(parametrization, sde), sde.nodes
        if nodes is not None and (t_min, t_max) != (sde.t_min, sde.t_max):
            nodes = nodes[(nodes >= t_min) & (nodes <= t_max)]  # a chain begins and ends at a node
            t_min, t_max = float(nodes[0]), float(nodes[-1])
        self.domain = Domain(sde, t_min, t_max, nodes, has_score=not coupled)
        self.schedule = nn.ParameterDict(sde.parameters())

    @property
    def learned(self) -> nn.Module:
        """The module that training changes: the network, together with the path if the path has learned parameters."""
        return nn.ModuleDict({"network": self.network, "schedule": self.schedule}) if self.schedule else self.network

    def output(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the output F at ``(x_t, t)``, with the same shape as ``x``."""
        return self.outputs(x, t, cond)[0]

    def outputs(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, augment: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output F at ``(x_t, t)``, and ``frac``, or ``None`` if the model does not learn the variance.

        F and ``frac`` have the same shape as ``x``. ``augment: (B, A)``, which is used only in training, describes how
        the rows were augmented.
        """
        # Schedules are computed in the dtype of t (float64 in solvers) and cast to the dtype of the network's input.
        label = self.parametrization.label(self.sde, t).to(x.dtype).expand(x.shape[0])
        shown = self.codec.show(expand(self.parametrization.input_scale(self.sde, t), x) * x)
        raw = self._asked(shown, label, self._known(cond, x), augment)
        frac = None
        if self.learn_variance:
            raw, v = raw.chunk(2, dim=1)
            frac = (v + 1) / 2
        return expand(self.parametrization.output_scale(self.sde, t), x) * self.codec.hide(raw), frac

    def _known(self, cond: Condition | None, x: Tensor) -> Condition | None:
        """Return the condition of each row. If the model has classes, a missing label becomes "not given"."""
        if self.classes and (cond is None or cond.label is None):
            label = torch.full((len(x),), self.classes, dtype=torch.int64, device=x.device)
            cond = replace(cond or Condition(), label=label, classes=self.classes)
        return None if cond is None else cond.expand(len(x))

    def _asked(self, x: Tensor, c: Tensor, cond: Condition | None, augment: Tensor | None) -> Tensor:
        """Call the network, check its output, and return the output."""
        try:
            raw = self.network(x, c, cond) if augment is None else self.network(x, c, cond, augment)
        except (TypeError, AttributeError) as error:
            if cond is None or "Condition" not in str(error):
                raise
            raise UsageError(
                f"the network {type(self.network).__name__} cannot use its third argument, which is a "
                f"scoresde.Condition ({error}); use the field label of the Condition, cond.label, which holds the "
                "class of each row, int64 (B,)"
            ) from error
        return _checked(raw, x, type(self.network).__name__, self.learn_variance)

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Estimate:
        """Estimate data and noise at ``x: (B, *event)`` and ``t: ()`` or ``(B,)``."""
        t = as_time(t, x)
        output, frac = self.outputs(x, t, cond)
        return replace(self.parametrization.solve(self.sde, x, t, output), frac=frac)

    def rows(self, index: Tensor) -> ScoreModel:
        """Return the model itself, because without a condition nothing in it is specific to a row."""
        return self

    def given(self, condition: Condition | Tensor | npt.ArrayLike) -> Given:
        """Bind a condition to each row.

        Args:
            condition: A :class:`~scoresde.Condition`, a class for all rows, or the class of each row, int64 ``(B,)``.
                The label ``classes`` stands for "not given".

        Raises:
            UsageError: If the labels are not integers, or the model does not have the requested class.
        """
        if not isinstance(condition, Condition):
            label = as_tensor(condition)
            if label.is_floating_point() or label.is_complex() or label.ndim > 1:
                raise UsageError(
                    "labels must be integers, either one label for all rows or one for each row, shape (B,); got "
                    f"{label.dtype} of shape {tuple(label.shape)}"
                )
            condition = Condition(label=label.to(torch.int64).reshape(-1))
        if condition.label is not None:
            if not self.classes:
                raise UsageError("this model was trained without classes; train with cond='class' to use labels")
            wrong = condition.label[(condition.label < 0) | (condition.label > self.classes)]
            if len(wrong):
                raise UsageError(
                    f"label {int(wrong[0])} is not one of the {self.classes} classes 0 to {self.classes - 1}"
                )
        return Given(self, replace(condition, classes=self.classes))


def _legal(parametrization: Parametrization, sde: SDE) -> tuple[float, float]:
    """Return the ends of the interval of t in which the network's output determines both the data and the noise.

    Raises:
        UsageError: If there is no such interval, or if it does not contain the last node of a chain, where sampling
            starts.
    """
    t_min, t_max = parametrization.legal_t_min(sde), parametrization.legal_t_max(sde)
    if sde.nodes is not None and t_max < sde.t_max and float(sde.coefficients(sde.nodes[-1])[0]) == 0:
        name = type(parametrization).__name__
        raise UsageError(
            f"at the last level of {type(sde).__name__} no data are left (alpha = 0), so the output {name} does not "
            "determine the data there; without that level, samples would not start from the distribution in which the "
            "chain ends (Lin et al. 2024, arXiv:2305.08891). Predict v, x0, velocity or edm, or use a last beta below "
            "1",
            parameter="predict",
            value="v",
        )
    if not t_min < t_max:
        raise UsageError(
            f"on the path {sde!r}, the output {type(parametrization).__name__} never determines both the data and the "
            "noise; use another path or prediction",
            parameter="predict",
        )
    return t_min, t_max


def _checked(raw: object, x: Tensor, name: str, twice: bool) -> Tensor:
    """Check the output ``raw`` of a network for ``x: (B, *event)``, and return it in the dtype of ``x``.

    The output must have the same shape as ``x``, or twice as many channels if ``twice`` is set.
    """
    both = (len(x), 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else ()
    expected = both if twice else tuple(x.shape)
    if not isinstance(raw, Tensor):
        several = f" of {len(raw)}" if isinstance(raw, tuple | list) else ""
        found = f"a {type(raw).__name__}{several}, not a tensor of shape {expected}; return the tensor alone"
    elif tuple(raw.shape) != expected:
        found = (
            f"a tensor of shape {tuple(raw.shape)} for an input of shape {tuple(x.shape)}; the output must have shape "
            f"{expected}"
        )
        if twice:
            found += ", because a network that learns the variance returns twice as many channels"
        elif tuple(raw.shape) == both:
            found += ", unless the model learns the variance (learn_variance=True)"
    elif not raw.is_floating_point():
        found = f"a tensor of {raw.dtype} for an input of {x.dtype}; the output must have a real floating-point dtype"
    elif raw.device != x.device:
        found = f"a tensor on {raw.device} for an input on {x.device}; keep the output on the device of the input"
    else:
        return raw.to(x.dtype)
    raise UsageError(f"the network {name} returns {found}")


@dataclass(frozen=True)
class Given(Wrapped):
    """A model with a condition bound to each row.

    Args:
        model: The conditional model.
        condition: The condition of each row, or one condition for all rows.
    """

    model: ScoreModel
    condition: Condition

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate: Estimate = self.model(x, t, self.condition.to(x.device).expand(len(x)))
        return estimate
