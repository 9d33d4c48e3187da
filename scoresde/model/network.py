"""A trained model: a network, the path on which the network was trained, and the meaning of the network's output.

:class:`ScoreModel` is a :class:`~scoresde.model.estimate.Denoiser`. To use conditions, call ``model.given(condition)``
before solving. The result is itself a denoiser, so solvers never handle conditions. When a solver calls
``rows(index)`` to restrict the model to the rows that are not finished yet, the conditions are restricted as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..codec import Codec, Composed
from ..core.condition import SLOTS, Condition
from ..core.errors import UsageError
from ..core.shapes import as_tensor, as_time, expand
from ..nn.execution import Execution
from ..nn.labelled import check_network
from ..sde.base import SDE
from .estimate import Domain, Estimate, Wrapped
from .parametrization import Parametrization

__all__ = ["Given", "ScoreModel"]


class ScoreModel(nn.Module):
    """A model that consists of a network, an SDE and a parametrisation, called as ``model(x, t) -> Estimate``.

    The model's parameters include the learned parameters of the path (:meth:`scoresde.SDE.parameters`). The attribute
    ``execution`` states how the network is computed (:class:`scoresde.nn.execution.Execution`).

    Args:
        network: The network, called as ``network(x, c, cond)`` with ``x: (B, *event)`` and the noise label ``c: (B,)``.
            The argument ``cond`` is the :class:`~scoresde.core.condition.Condition` of the rows, or ``None``. The
            network must return a tensor with the same shape as ``x`` (but see ``learn_variance``). Use
            :class:`scoresde.nn.Labelled` to wrap a network that takes two arguments. In training on augmented data, the
            network is called as ``network(x, c, cond, augment)``.
        sde: The path. If it is a chain, the model is restricted to the chain's nodes, and fixed-step solvers step from
            node to node.
        parametrization: The meaning of the network's output.
        classes: The number of classes with which the network was trained. A label equal to this number means "no
            label".
        coupled: Whether data and noise were paired in training (:mod:`scoresde.objective.coupling`). The flow of such a
            model is correct, but the model has no score.
        codec: The map from data units to model units. The network receives ``codec.show(x, cond)``, and its input and
            output have the shape of the data. Without a codec, data units and model units are the same.
        learn_variance: Whether the network also learns the variance of a reverse step. For an input of C channels, it
            then returns 2 C channels. The second half of these, v, determines the variance: on a log scale,
            ``frac = (v + 1)/2`` is the position of the variance between its two bounds (Nichol and Dhariwal 2021,
            arXiv:2102.09672, eq. 15).

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
                f"learn_variance: {type(sde).__name__} has no nodes, but learn_variance learns the variance of the "
                "steps between nodes; use the 'ddpm' or 'smld' SDE",
                parameter="sde",
                value="ddpm",
            )
        if learn_variance and coupled:
            raise UsageError(
                "learn_variance: a model trained on coupled data and noise has no stochastic reverse steps, and hence "
                "no variance to learn; turn off learn_variance or the coupling"
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
        self.execution = Execution()

    @property
    def learned(self) -> nn.Module:
        """The module to train, which is the network together with the learned parameters of the path, if any."""
        return nn.ModuleDict({"network": self.network, "schedule": self.schedule}) if self.schedule else self.network

    @property
    def slots(self) -> tuple[str, ...]:
        """The fields of a condition that the network uses.

        The network lists them in its attribute ``slots``. If it has no such attribute, it is assumed to use all fields.
        """
        return tuple(getattr(self.network, "slots", SLOTS))

    def output(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the network's prediction of the target F at ``(x_t, t)``, with the same shape as ``x``.

        For F, see equation (1) of :mod:`scoresde.model.parametrization`.
        """
        return self.outputs(x, t, cond)[0]

    def outputs(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, augment: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the network's prediction of the target F at ``(x_t, t)``, and the learned variance as a fraction.

        For F, see equation (1) of :mod:`scoresde.model.parametrization`.

        Both results have the same shape as ``x``. The fraction is ``None`` if the model does not learn the variance.
        The argument ``augment: (B, A)``, which is used only in training, describes how each row was augmented.
        """
        # Schedules are computed in the dtype of t (float64 in solvers) and cast to the dtype of the network's input.
        label = self.parametrization.label(self.sde, t).to(x.dtype).expand(x.shape[0])
        known = self._known(cond, x)
        shown = self.codec.show(expand(self.parametrization.input_scale(self.sde, t), x) * x, known)
        raw = self._asked(shown, label, known, augment)
        frac = None
        if self.learn_variance:
            raw, v = raw.chunk(2, dim=1)
            frac = (v + 1) / 2
        return expand(self.parametrization.output_scale(self.sde, t), x) * self.codec.hide(raw, known), frac

    def _known(self, cond: Condition | None, x: Tensor) -> Condition | None:
        """Return the condition of each row, or ``None`` if there is no condition."""
        if self.classes and (cond is None or cond.label is None):
            # The label `classes` means "no label".
            label = torch.full((len(x),), self.classes, dtype=torch.int64, device=x.device)
            cond = replace(cond or Condition(), label=label, classes=self.classes)
        return None if cond is None else cond.expand(len(x))

    def _asked(self, x: Tensor, c: Tensor, cond: Condition | None, augment: Tensor | None) -> Tensor:
        """Call the network, and check its output."""
        try:
            raw = self.execution(self.network, x, c, cond, *(() if augment is None else (augment,)))
        except (TypeError, AttributeError) as error:
            if cond is None or "Condition" not in str(error):
                raise
            raise UsageError(
                f"the network {type(self.network).__name__} cannot use its third argument, a scoresde.Condition "
                f"({error}); if this argument is called cond, the class of each row is cond.label, int64 (B,)"
            ) from error
        return _checked(raw, x, type(self.network).__name__, self.learn_variance)

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Estimate:
        """Estimate the data and the noise at ``x: (B, *event)`` and ``t: ()`` or ``(B,)``."""
        t = as_time(t, x)
        output, frac = self.outputs(x, t, cond)
        return replace(self.parametrization.solve(self.sde, x, t, output), frac=frac)

    def rows(self, index: Tensor) -> ScoreModel:
        """Return the model itself, because no condition is bound to its rows."""
        return self

    def given(self, condition: Condition | Tensor | npt.ArrayLike) -> Given:
        """Return the model with a condition bound to each row.

        Args:
            condition: A :class:`~scoresde.Condition`, a class for all rows, or the class of each row, int64 ``(B,)``.
                A label equal to ``self.classes`` means "no label".

        Raises:
            UsageError: If the labels are not integers, if a label is not one of the model's classes, or if the
                condition has a field that the model was not trained to use.
        """
        if not isinstance(condition, Condition):
            label = as_tensor(condition)
            if label.is_floating_point() or label.is_complex() or label.ndim > 1:
                raise UsageError(
                    "labels must be integers, either one label for all rows or one for each row, shape (B,); got dtype "
                    f"{label.dtype} and shape {tuple(label.shape)}"
                )
            condition = Condition(label=label.to(torch.int64).reshape(-1))
        if condition.label is not None:
            if condition.label.is_floating_point() or condition.label.ndim != 1:
                raise UsageError(
                    "the label of a condition must be an integer tensor of shape (B,); got dtype "
                    f"{condition.label.dtype} and shape {tuple(condition.label.shape)}"
                )
            if not self.classes:
                raise UsageError(
                    "labels were given, but this model was trained without classes; train with cond='class' to use "
                    "labels"
                )
            wrong = condition.label[(condition.label < 0) | (condition.label > self.classes)]
            if len(wrong):
                raise UsageError(
                    f"label {int(wrong[0])} is not one of the {self.classes} classes 0 to {self.classes - 1}"
                )
        for slot, source in (("vector", "vector"), ("image", "image"), ("tokens", "text")):
            if getattr(condition, slot) is not None and slot not in self.slots:
                raise UsageError(
                    f"this model was not trained to use the field {slot!r} of a condition; to use it, train with "
                    f"cond='{source}'" + (" or with an operator, such as cond='pool:2'" if slot == "image" else ""),
                    parameter="cond",
                    value=source,
                )
        return Given(self, replace(condition, classes=self.classes))


def _legal(parametrization: Parametrization, sde: SDE) -> tuple[float, float]:
    """Return the smallest and the largest t at which the network's output determines both the data and the noise."""
    t_min, t_max = parametrization.legal_t_min(sde), parametrization.legal_t_max(sde)
    if sde.nodes is not None and t_max < sde.t_max and float(sde.coefficients(sde.nodes[-1])[0]) == 0:
        name = type(parametrization).__name__
        raise UsageError(
            f"at the last noise level of {type(sde).__name__}, no signal is left (alpha = 0), so a network that "
            f"predicts {name} does not determine the data there. This level cannot be left out, because sampling must "
            "start from the distribution at the end of the chain (Lin et al. 2024, arXiv:2305.08891). Predict v, x0, "
            "velocity or edm, or use a last beta below 1",
            parameter="predict",
            value="v",
        )
    if not t_min < t_max:
        raise UsageError(
            f"on the path {sde!r}, the output of a network that predicts {type(parametrization).__name__} never "
            "determines both the data and the noise; use another path or prediction",
            parameter="predict",
        )
    return t_min, t_max


def _checked(raw: object, x: Tensor, name: str, twice: bool) -> Tensor:
    """Check the output ``raw`` of a network for the input ``x``, and convert the output to the dtype of ``x``.

    If ``twice`` is true, the output must have twice as many channels as ``x``.
    """
    both = (len(x), 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else ()
    expected = both if twice else tuple(x.shape)
    if not isinstance(raw, Tensor):
        several = f" (length {len(raw)})" if isinstance(raw, tuple | list) else ""
        found = (
            f"an object of type {type(raw).__name__}{several}, not a tensor of shape {expected}; return only the tensor"
        )
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
        found = f"a {raw.dtype} tensor for a {x.dtype} input; the output must have a real floating-point dtype"
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
        condition: The condition of each row, or a single condition for all rows.
    """

    model: ScoreModel
    condition: Condition

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate: Estimate = self.model(x, t, self.condition.to(x.device).expand(len(x)))
        return estimate
