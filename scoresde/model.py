"""A trained model: a network, the path it was trained on, and what its output means; conditioning, guidance and
another path as wrappers.

:class:`ScoreModel` is a :class:`~scoresde.estimate.Denoiser`. What is known of the samples is bound before solving,
``model.given(condition)``, and guidance mixes two denoisers; both are denoisers again, so that no solver ever carries a
condition. A condition keeps its row: ``rows(index)`` selects the rows that a solver still works on.

A model belongs to no path. At one noise level sigma/alpha the states of two paths differ by a factor, which is that of
their scales  s = alpha + sigma,

    x'_t' / s'(t') = x_t / s(t)        where        sigma'/alpha' (t') = sigma/alpha (t),                      (1)

and the estimates of data and noise are the same. :class:`Converted` asks a model trained on one path for another, such
as a VP model for the straight path of flow matching: the same samples and likelihoods, solved where that costs less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy.typing as npt
import torch
from torch import Tensor, nn

from .codec import Codec, Composed
from .condition import Condition
from .errors import UsageError
from .estimate import Denoiser, Domain, Estimate, Parametrization, Wrapped
from .paths import Stretch
from .sde import SDE
from .shapes import as_tensor, as_time, expand

__all__ = ["Converted", "Given", "Guided", "ScoreModel", "convert"]


class ScoreModel(nn.Module):
    """``network + sde + parametrization``, called as ``model(x, t) -> Estimate``.

    What of the path is learned (:meth:`scoresde.SDE.parameters`) is among the parameters of the model.

    Args:
        network: Called as ``network(x, c, cond)`` with ``x: (B, *event)``, the noise label ``c: (B,)`` and ``cond``
            the :class:`~scoresde.condition.Condition` of the rows, or ``None``; returns the shape of ``x``.
        sde: The path. The model of a chain knows its nodes, and fixed-step solvers go from node to node.
        parametrization: What the output means.
        classes: Number of classes the network was trained with; class ``classes`` stands for "not given".
        coupled: Data and noise were paired in training (:mod:`scoresde.coupling`): the flow is right, but there is no
            score.
        codec: The map from data units to the model's; the network sees and answers arrays of the shape of the data,
            ``codec.show(x)``. Without one, they are alike.
        learn_variance: The network returns twice the channels, ``(B, 2 C, ...)``, and the second half v says where the
            variance of a reverse step lies: ``frac = (v + 1)/2`` (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).

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
        if learn_variance and sde.nodes is None:
            raise UsageError(
                f"learn_variance: {type(sde).__name__} has no nodes, and what is learned is the variance of a step "
                "from one node to the next; take the SDE ddpm or smld",
                parameter="sde",
                value="ddpm",
            )
        if learn_variance and coupled:
            raise UsageError("learn_variance: coupled data and noise have no reverse steps with noise; leave one out")
        self.network = network
        self.sde = sde
        self.parametrization = parametrization
        self.classes = classes
        self.learn_variance = learn_variance
        self.codec = Composed() if codec is None else codec
        t_max, nodes = parametrization.legal_t_max(sde), sde.nodes
        if nodes is not None and t_max < sde.t_max:
            nodes = nodes[nodes <= t_max]  # a chain ends at a node
            t_max = float(nodes[-1])
        self.domain = Domain(sde, sde.t_min, t_max, nodes, has_score=not coupled)
        self.schedule = nn.ParameterDict(sde.parameters())

    @property
    def learned(self) -> nn.Module:
        """What training changes: the network, or the network and the path."""
        return nn.ModuleDict({"network": self.network, "schedule": self.schedule}) if self.schedule else self.network

    def output(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The output F at ``(x_t, t)``, shape of ``x``."""
        return self.outputs(x, t, cond)[0]

    def outputs(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> tuple[Tensor, Tensor | None]:
        """The output F at ``(x_t, t)`` and ``frac``, if the model learns it, else ``None``; shape of ``x``."""
        # Schedules are computed in the dtype of t (float64 in solvers) and cast where they meet the network.
        label = self.parametrization.label(self.sde, t).to(x.dtype).expand(x.shape[0])
        shown = self.codec.show(expand(self.parametrization.input_scale(self.sde, t), x) * x)
        raw = self._asked(shown, label, self._known(cond, x))
        frac = None
        if self.learn_variance:
            raw, v = raw.chunk(2, dim=1)
            frac = (v + 1) / 2
        return expand(self.parametrization.output_scale(self.sde, t), x) * self.codec.hide(raw), frac

    def _known(self, cond: Condition | None, x: Tensor) -> Condition | None:
        """What is known of each row; a model that knows classes is told where none is given."""
        if self.classes and (cond is None or cond.label is None):
            label = torch.full((len(x),), self.classes, dtype=torch.int64, device=x.device)
            cond = replace(cond or Condition(), label=label, classes=self.classes)
        return None if cond is None else cond.expand(len(x))

    def _asked(self, x: Tensor, c: Tensor, cond: Condition | None) -> Tensor:
        """What the network returns, of the right shape."""
        try:
            raw: Tensor = self.network(x, c, cond)
        except (TypeError, AttributeError) as error:
            if cond is None or "Condition" not in str(error):
                raise
            raise UsageError(
                f"the network {type(self.network).__name__} is given a scoresde.Condition as its third argument and "
                f"cannot use it ({error}); the classes are its field label, int64 (B,): write cond.label"
            ) from error
        expected = (len(x), 2 * x.shape[1], *x.shape[2:]) if self.learn_variance else tuple(x.shape)
        if tuple(raw.shape) != expected:
            twice = "; to learn the variance it returns twice the channels (B, 2 C, ...)" if self.learn_variance else ""
            raise UsageError(
                f"the network {type(self.network).__name__} returns the shape {tuple(raw.shape)} for {tuple(x.shape)}; "
                f"expected is {expected}{twice}"
            )
        return raw

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Estimate:
        """Estimate data and noise at ``x: (B, *event)``, ``t: ()`` or ``(B,)``."""
        t = as_time(t, x)
        output, frac = self.outputs(x, t, cond)
        return replace(self.parametrization.solve(self.sde, x, t, output), frac=frac)

    def rows(self, index: Tensor) -> ScoreModel:
        """The model itself: without a condition all rows are alike."""
        return self

    def given(self, condition: Condition | Tensor | npt.ArrayLike) -> Given:
        """Bind what is known of each row.

        Args:
            condition: A :class:`~scoresde.Condition`; or a class for all rows, or for each, int64 ``(B,)``, where
                ``classes`` stands for "not given".

        Raises:
            UsageError: If the model knows no classes, or not this one.
        """
        if not isinstance(condition, Condition):
            condition = Condition(label=as_tensor(condition).to(torch.int64).reshape(-1))
        if condition.label is not None:
            if not self.classes:
                raise UsageError("this model was trained without classes; train with cond='class' to give it a label")
            wrong = condition.label[(condition.label < 0) | (condition.label > self.classes)]
            if len(wrong):
                raise UsageError(
                    f"label {int(wrong[0])} is not one of the {self.classes} classes 0 to {self.classes - 1}"
                )
        return Given(self, replace(condition, classes=self.classes))


@dataclass(frozen=True)
class Given(Wrapped):
    """A model with a condition bound to each row.

    Args:
        model: The model that knows what to do with it.
        condition: What is known of the rows: of each, or the same of all.
    """

    model: ScoreModel
    condition: Condition

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate: Estimate = self.model(x, t, self.condition.to(x.device).expand(len(x)))
        return estimate


@dataclass(frozen=True)
class Guided(Wrapped):
    """Guidance: ``estimate = against + scale (model - against)``; scale 1 is the model itself, 0 the other one.

    Ho and Salimans (2022), arXiv:2207.12598, eq. 6, whose w is ``scale - 1``: the model with a condition against the
    one without. Two networks are asked, but one at scale 0 or 1.

    Args:
        model: The model to move towards.
        against: The model to move away from.
        scale: How far.
    """

    against: Denoiser
    scale: float

    @cached_property
    def domain(self) -> Domain:
        """Where both may be asked."""
        a, b = self.model.domain, self.against.domain
        return replace(
            a,
            t_min=max(a.t_min, b.t_min),
            t_max=min(a.t_max, b.t_max),
            has_score=a.has_score and b.has_score,
            consistent=a.consistent and b.consistent and self.scale in (0.0, 1.0),
        )

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if self.scale in (0.0, 1.0):
            return self.model(x, t) if self.scale else self.against(x, t)
        c, u = self.model(x, t), self.against(x, t)
        # Both satisfy alpha x0 + sigma eps = x, and so does any affine mixture of them. A learned variance is that of
        # the conditional model: a fraction that is extrapolated would leave its interval.
        x0, eps = torch.lerp(u.x0, c.x0, self.scale), torch.lerp(u.eps, c.eps, self.scale)
        return replace(c, x0=x0, eps=eps, calls=c.calls + u.calls)


@dataclass(frozen=True)
class Converted(Wrapped):
    """A model asked on another path, at the same noise levels (1); :func:`convert` makes it.

    Args:
        model: Any denoiser.
        sde: The stretch of the other path whose noise levels the model knows.
    """

    sde: Stretch

    @cached_property
    def domain(self) -> Domain:
        """The stretch, with those of the model's nodes that lie on it, at its times."""
        theirs, low, high = self.model.domain, self.sde.t_min, self.sde.t_max
        nodes = theirs.nodes
        if nodes is not None:
            nodes = self.sde.t_of_log_snr(theirs.sde.log_snr(nodes))
            nodes = nodes[(nodes > low - _CLOSE) & (nodes < high + _CLOSE)]
        return replace(theirs, sde=self.sde, t_min=low, t_max=high, nodes=nodes)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        t, theirs, ours = as_time(t, x), self.model.domain, self.domain
        outside = (t < ours.t_min - _CLOSE) | (t > ours.t_max + _CLOSE)
        if bool(outside.any()):
            raise UsageError(
                f"asked at t = {float(t[outside].flatten()[0]):g}: {_ranges(theirs, self.sde.path)}; what they "
                f"share is t from {ours.t_min:.6g} to {ours.t_max:.6g}"
            )
        at = theirs.sde.t_of_log_snr(self.sde.log_snr(t)).clamp(theirs.t_min, theirs.t_max)
        # x_t = s(t) x'_t' / s'(t')                                                                      (1)
        estimate = self.model(expand(theirs.sde.scale(at) / self.sde.scale(t), x) * x, at)
        # A learned variance was learned between the two of the model's own path, and the step up is another here.
        return replace(estimate, x=x, t=t, sde=self.sde, frac=None)


_CLOSE = 1e-12  # what rounding may carry a time over an end


def convert(model: Denoiser, path: SDE) -> Converted:
    """Return ``model`` on another path, for those of the path's times whose noise level the model knows.

    Args:
        model: Any denoiser.
        path: The path to ask it on; the prior of the result is the model's, in the scale of the path.

    Raises:
        UsageError: If the two share no noise level. The result raises it when asked outside those they share. The
            message names both ranges of log-SNR.

    >>> from scoresde import VPSDE, FlowMatching, GaussianMixture
    >>> model = GaussianMixture(VPSDE(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.2]))
    >>> straight = convert(model, FlowMatching())
    >>> round(straight.domain.t_min, 6), round(straight.domain.t_max, 6)
    (0.000999, 0.993471)
    """
    domain, theirs = model.domain, model.domain.sde
    t = torch.tensor([domain.t_min, theirs.times("sample")[0], domain.t_max], dtype=torch.float64)
    # Their noise levels, as far as the path has them
    most, least = path.log_snr(torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
    shared = theirs.log_snr(t).clamp(least, most)
    low, stop, high = path.t_of_log_snr(shared).clamp(path.t_min, path.t_max).tolist()
    if not low < high:
        raise UsageError(f"{_ranges(domain, path)}: they share none, and the model cannot be asked on that path")
    # Where the model's own end is the end, what holds there for it does so in the scale of the path.
    ends = torch.tensor([low, high], dtype=torch.float64)
    start, end = (path.scale(ends) / theirs.scale(t[[0, 2]])).tolist()
    std = end * theirs.prior.std if high < path.t_max else path.prior.std
    unit = start * theirs.data_scale if low > path.t_min else path.data_scale
    return Converted(model, Stretch(path, std, low, high, max(stop, path.times("sample")[0]), unit))


def _ranges(domain: Domain, path: SDE) -> str:
    """The log-SNR that a model knows and that a path goes through, in words."""

    def span(sde: SDE, low: float, high: float) -> str:
        ends = sde.log_snr(torch.tensor([high, low], dtype=torch.float64))
        return " to ".join(f"{end:.4g}" for end in ends.tolist())

    known, theirs = span(domain.sde, domain.t_min, domain.t_max), span(path, path.t_min, path.t_max)
    return f"the model knows the log-SNR from {known}, {type(path).__name__} goes from {theirs}"
