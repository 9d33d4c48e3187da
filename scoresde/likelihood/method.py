"""The :class:`Likelihood` class and its convergence check.

A :class:`Likelihood` is built and called like a solver. It is also a record of the settings: each
:class:`~scoresde.Scores` contains the :class:`Likelihood` that computed it, with ``auto`` replaced by the value used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

import torch
from torch import Tensor

from ..codec import Codec
from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.limits import EVALUATIONS, STEPS, TIME, Checked, Range, ranges
from ..core.noise import Noise
from ..core.parts import Parts
from ..core.shapes import as_states, as_tensor, dims
from ..core.shared import Shared
from ..core.threads import in_lanes
from ..model.estimate import Denoiser
from ..ode.fixed import RULES
from ..ode.integrate import TABLEAUS, blamed, check_tolerances
from .adams import ADAMS
from .coupled import by_fixed_steps, coupled
from .data import Scores, begins, score
from .dequantise import DEQUANTISATIONS
from .divergence import Probes, width
from .memory import rows_within
from .problem import Problem
from .quadrature import by_quadrature
from .result import ALLOWED, LogLikelihood

__all__ = ["Likelihood", "log_likelihood"]

METHODS = ("coupled", "quadrature")
DIVERGENCES = ("auto", "exact", "hutchinson", "difference")

# Up to this many dimensions, the exact divergence costs less than the probes needed for a small error bar.
EXACT_UP_TO = 16

_DRAWS = Range(1, 100_000)

CHECKED = 16  # number of rows on which convergence is checked


@dataclass(frozen=True)
class Likelihood(Checked):
    """A method of computing likelihoods under the probability flow (:mod:`scoresde.likelihood`, equations 1 and 2).

    Args:
        method: ``coupled`` solves for the trajectory and the log-determinant as one system. ``quadrature`` first solves
            for the trajectory, and then evaluates the divergence at nodes along it. The ``quadrature`` method halves
            the cost of an exact divergence or of many probes.
        divergence: ``exact``, ``hutchinson`` (probes and backward passes), ``difference`` (probes and finite
            differences, equation 3 of :mod:`scoresde.likelihood.divergence`) or ``auto``, which means ``exact`` for up
            to 16 dimensions and ``difference`` for more. ``difference`` is not suitable for networks in bfloat16 and
            for gradients, where ``auto`` means ``hutchinson``.
        probes: Number of probes K. The exact divergence uses none.
        probe: ``rademacher`` (random signs) or ``gaussian``.
        redraw: Whether to draw new probes along the trajectory, so that their errors average out. Probes are not
            redrawn if ``importance`` is greater than 1, because importance samples share their probes.
        rtol: Relative tolerance for the state (in the straight frame) and for the integrals (in nats per dimension).
            The default is the loosest power of ten at which the error of the integration was at most a tenth of the
            standard error of the mean of 10,000 samples, for a network trained on digits and for an exact mixture.
        atol: Absolute tolerance for the same quantities, or ``None`` to use the value of ``rtol``.
        scheme: A Runge-Kutta method of :mod:`scoresde.ode.integrate` (``auto`` means ``dopri5``) or, if ``steps`` is
            given, one of ``euler``, ``midpoint``, ``heun``, ``rk4`` (``auto`` means ``rk4``) and ``adams``
            (:mod:`scoresde.likelihood.adams`).
        steps: Number of fixed steps, or ``None`` for adaptive steps controlled by the tolerances.
        t_min: The time at which the density is evaluated and the trajectory begins. ``None`` means the beginning of the
            model's domain or, with ``truncated-normal``, the time at which half a cell equals three standard deviations
            of the noise, if that is later.
        max_nfe: With adaptive steps, the largest number of points per row at which the model may be evaluated.
        dequantisation: Dequantisation of data stored as discrete levels (:mod:`scoresde.likelihood.dequantise`):
            ``uniform``, ``truncated-normal``, ``none`` or ``auto``, which means ``uniform`` for such data and ``none``
            for continuous data.
        draws: Number of independent draws R for each sample. A draw is an estimate of the log-likelihood with its own
            dequantisation noise and probes. The estimates from all draws are averaged.
        importance: Number of importance samples K in each draw.

    Example:
        >>> from scoresde import GaussianMixture, Likelihood, VPSDE
        >>> normal = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
        >>> result = Likelihood(rtol=1e-6)(normal, torch.zeros(1, 2, dtype=torch.float64))
        >>> abs(float(result.log_prob) + math.log(2 * math.pi)) < 1e-3
        True
    """

    limits = ranges(probes=_DRAWS, draws=_DRAWS, importance=_DRAWS, steps=STEPS, t_min=TIME,
        max_nfe=EVALUATIONS)  # fmt: skip

    method: str = "coupled"
    divergence: str = "auto"
    probes: int = 1
    probe: str = "rademacher"
    redraw: bool = True
    rtol: float = 1e-4
    atol: float | None = None
    scheme: str = "auto"
    steps: int | None = None
    t_min: float | None = None
    max_nfe: int = 10_000
    dequantisation: str = "auto"
    draws: int = 1
    importance: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("method", METHODS), ("divergence", DIVERGENCES), ("dequantisation", ("auto", *DEQUANTISATIONS)),
            ("scheme", ("auto", *(TABLEAUS if self.steps is None else (*RULES, ADAMS)))),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                given = f" for {'adaptive steps' if self.steps is None else 'fixed steps'}" if name == "scheme" else ""
                raise UsageError(
                    f"unknown {name} {getattr(self, name)!r}{given}; choose from: {', '.join(known)}", parameter=name
                )
        check_tolerances(self.rtol, self.atol)
        if self.steps is not None and self.method != "coupled":
            raise UsageError(
                f"the {self.method!r} method does not support fixed steps; use the 'coupled' method",
                parameter="method",
                value="coupled",
            )
        if self.dequantisation == "none" and self.importance > 1:
            raise UsageError(
                f"importance is {self.importance}, but an importance-weighted bound needs dequantisation; set "
                "importance to 1, or use uniform or truncated-normal dequantisation"
            )
        Probes(self.probe, self.probes, Noise.of(0), (self.draws - 1) * self.probes).check()

    def __str__(self) -> str:
        drawn = f"{self.draws} draw{'s' if self.draws > 1 else ''}"
        if self.dequantisation == "none":
            parts = ["no dequantisation" + (f", {drawn}" if self.draws > 1 else "")]
        else:
            parts = [f"{self.dequantisation} dequantisation, {drawn}"]
            if self.importance > 1:
                parts[0] += f" of the importance-weighted bound with K = {self.importance}"
        if self.divergence == "exact":
            parts.append("exact divergence")
        else:
            traced = f"{self.probes} {self.probe} probe{'s' if self.probes > 1 else ''}"
            traced += " with finite differences" if self.divergence == "difference" else ""
            parts.append(traced + ("" if self.redraw else ", fixed along the trajectory"))
        solved = f"rtol {self.rtol:g}" if self.steps is None else f"{self.steps} step{'s' if self.steps > 1 else ''}"
        if self.scheme not in ("auto", self._default_scheme):
            solved += f" with {self.scheme}"
        parts += [self.method, solved]
        return ", ".join(parts if self.t_min is None else [*parts, f"t_min {self.t_min:.3g}"])

    @property
    def _default_scheme(self) -> str:
        return "dopri5" if self.steps is None else "rk4"

    def resolved(
        self, model: Denoiser, dims: int, codec: Codec | None = None, *, differentiable: bool = False
    ) -> Likelihood:
        """Return a copy in which each ``auto``, and ``None`` for ``atol`` or ``t_min``, is replaced by a value.

        Args:
            model: The model.
            dims: Number of dimensions of an event.
            codec: The map from data units to model units. Without a codec, ``dequantisation`` stays unchanged.
            differentiable: Whether the result is to be differentiated.

        Raises:
            UsageError: If an option is not suitable for the data.
        """
        passes = "hutchinson" if differentiable or model.domain.rounded else "difference"
        choice = "exact" if dims <= EXACT_UP_TO else passes
        changed = replace(
            self,
            divergence=choice if self.divergence == "auto" else self.divergence,
            atol=self.rtol if self.atol is None else self.atol,
            scheme=self._default_scheme if self.scheme == "auto" else self.scheme,
            redraw=self.redraw and self.importance == 1,
        )
        if codec is None:
            return changed if self.t_min is not None else replace(changed, t_min=begins(model))
        levels = codec.levels is not None
        dequantisation = self.dequantisation
        if dequantisation == "auto":
            dequantisation = "uniform" if levels else "none"
        if dequantisation != "none" and not levels:
            raise UsageError(
                "continuous data need no dequantisation; set dequantisation to 'none'", parameter="dequantisation"
            )
        t_min = begins(model, codec, dequantisation) if self.t_min is None else self.t_min
        return replace(changed, dequantisation=dequantisation, t_min=t_min)

    @overload
    def __call__(
        self, model: Denoiser, x: Tensor, noise: Noise | None = None, codec: None = None, *, batch: int = 256,
        memory: int | None = None, check: bool = True, watch: Callable[[LogLikelihood], object] | None = None,
    ) -> LogLikelihood: ...  # fmt: skip

    @overload
    def __call__(
        self, model: Denoiser, x: Tensor, noise: Noise | None, codec: Codec, *, batch: int = 256,
        memory: int | None = None, check: bool = True, watch: Callable[[Scores], object] | None = None,
        dtype: torch.dtype = torch.float32, parts: Parts | None = None, condition: Condition | None = None,
    ) -> Scores: ...  # fmt: skip

    def __call__(
        self,
        model: Denoiser,
        x: Tensor,
        noise: Noise | None = None,
        codec: Codec | None = None,
        *,
        batch: int = 256,
        memory: int | None = None,
        check: bool = True,
        watch: Callable[..., object] | None = None,
        dtype: torch.dtype = torch.float32,
        parts: Parts | None = None,
        condition: Condition | None = None,
    ) -> LogLikelihood | Scores:
        """Compute the log-likelihood of each row, in model units or, if ``codec`` is given, in data units.

        Args:
            model: Any denoiser.
            x: The states at ``t_min`` in model units or, if ``codec`` is given, the data in data units, shape
                ``(B, *event)``.
            noise: Noise addresses of the rows (default: samples 0 to B-1 of seed 0).
            codec: The map from data units to model units.
            batch: Largest number of rows solved at once. If ``divergence`` is ``difference``, each call of the model
                evaluates two states per row.
            memory: Memory budget in bytes (:mod:`scoresde.likelihood.memory`). Batches are made smaller if necessary.
            check: Whether to check convergence by solving up to 16 of the rows again, with tolerances ten times tighter
                (ten times looser if the dtype does not resolve tighter ones) or with twice as many steps. A warning is
                issued if a result changes by more than 0.01 bits per dimension. The evaluations of the check are not
                included in ``nfe``.
            watch: Function to call with the result of each batch.
            dtype: Floating-point dtype used by the solver if ``codec`` is given. Otherwise, the solver uses the dtype
                of ``x``.
            parts: A store in which the result of each batch is saved as soon as it is computed. The store is used only
                if ``codec`` is given.
            condition: The conditions of the rows that the codec needs (:class:`scoresde.codec.Relative`).

        Raises:
            UsageError: If an option is invalid.
        """
        if codec is not None:
            return score(
                self, model, codec, as_tensor(x), noise, dtype=dtype, batch=batch, memory=memory, check=check,
                watch=watch, parts=parts, condition=condition,
            )  # fmt: skip
        return log_likelihood(model, x, self, noise=noise, batch=batch, memory=memory, check=check, watch=watch)

    def solve(
        self,
        model: Denoiser,
        x: Tensor,
        noise: Noise,
        batch: int,
        *,
        draw: int = 0,
        graph: bool = False,
        finer: bool = False,
        narrow: float = 1.0,
        watch: Callable[[LogLikelihood], object] | None = None,
    ) -> LogLikelihood:
        """Compute the log densities of the rows of ``x``, ``batch`` rows at a time, without a convergence check.

        The options must already be resolved (see :meth:`resolved`).

        Args:
            model, x, noise, batch, watch: See :meth:`__call__`.
            draw: Index of the draw (see ``draws``). Different draws of a row have different probes.
            graph: Whether to keep the graph of the whole computation.
            finer: Whether to double both the smallest and the largest number of quadrature nodes.
            narrow: Factor by which the width of the finite differences is multiplied.
        """
        kind = "exact" if self.divergence == "exact" else self.probe
        wide = narrow * width(x.dtype) if self.divergence == "difference" else 0.0
        pieces = []
        for rows in torch.split(torch.arange(len(x), device=x.device), batch):
            problem = Problem(model.rows(rows), x[rows], self.t_min, graph)
            probes = Probes(kind, self.probes, noise.rows(rows), draw * self.probes, not self.redraw, wide)
            with _SINGLE_PRECISION, torch.set_grad_enabled(graph):
                piece = self._piece(problem, probes, batch, finer)
            sound = partial(model.domain.sde.finite, *problem.ends)
            pieces.append(replace(piece, status=blamed(piece.status, sound)))
            if watch is not None:
                watch(pieces[-1])
        return LogLikelihood.join(pieces)

    def _piece(self, problem: Problem, probes: Probes, batch: int, finer: bool) -> LogLikelihood:
        if self.steps is not None:
            return by_fixed_steps(problem, probes, self.scheme, self.steps)
        assert self.atol is not None
        if self.method == "coupled":
            return coupled(problem, probes, self.rtol, self.atol, self.scheme, self.max_nfe)
        return by_quadrature(problem, probes, self.rtol, self.atol, self.scheme, self.max_nfe, batch, finer)

    def batch_within(self, memory: int | None, model: Denoiser, x: Tensor, batch: int, graph: bool = False) -> int:
        """Return the number of rows of ``x: (B, *event)`` to solve at once.

        This is ``batch``, or a smaller number if ``batch`` rows would need more than ``memory`` bytes.
        """
        if memory is None:
            return batch
        backward = self.divergence != "difference" or graph
        passes = 0 if not graph else dims(x) if self.divergence == "exact" else self.probes
        return min(batch, rows_within(memory, model, x, passes, backward))

    def change(
        self, result: LogLikelihood, part: Callable[[Tensor], tuple[Denoiser, Tensor, Noise]], batch: int
    ) -> Tensor:
        """Compute how much ``result`` changes when some rows are solved again, and warn if it changes too much.

        The second solve uses other tolerances or more steps, as described for ``check`` in :meth:`__call__`.

        Args:
            result: The result for all rows.
            part: Function that takes row indices, int64 ``(b,)``, and returns the model, the states and the noise for
                these rows.
            batch: Largest number of rows solved at once.

        Returns:
            The change in nats with its sign, shape ``(B,)``. It is NaN for rows that were not solved again, and
            infinite for rows whose second solve failed.
        """
        change = torch.full_like(result.log_prob.detach(), torch.nan)
        good = result.ok.nonzero().flatten()
        if not len(good):
            return change
        rows = good[torch.linspace(0, len(good) - 1, min(CHECKED, len(good))).round().long().to(good.device)]
        # Use probes that are the same along the trajectory and in both solves, so that only integration errors remain.
        same = self.divergence == "exact" or not self.redraw
        fixed = replace(self, redraw=False)
        model, x, noise = part(rows)
        other, finer = fixed._other(x.dtype)
        # Halve the width of the differences, which leaves a quarter of their truncation error and doubles the rounding
        # error.
        solves = [partial(other.solve, model, x, noise, batch, finer=finer, narrow=0.5)]
        solves += [] if same else [partial(fixed.solve, model, x, noise, batch)]
        again, *first = in_lanes(lambda solve: solve(), solves)
        own = result.log_prob.detach()[rows] if same else first[0].log_prob
        # A row that cannot be solved with a tighter tolerance has not converged.
        off = again.log_prob - own
        change[rows] = torch.where(off.isfinite(), off, torch.inf)
        self._warn(change, dims(x), other)
        return change

    def _other(self, dtype: torch.dtype) -> tuple[Likelihood, bool]:
        """Return the options for the second solve, and whether to double the number of quadrature nodes."""
        if self.steps is not None:
            return replace(self, steps=2 * self.steps), False
        assert self.atol is not None
        resolved = self.rtol / 10 >= (0.99e-6 if dtype == torch.float32 else 1e-13)
        factor = 0.1 if resolved else 10.0
        return replace(self, rtol=factor * self.rtol, atol=factor * self.atol), resolved

    def _warn(self, change: Tensor, dims: int, other: Likelihood) -> None:
        """Warn if any log-likelihood changed too much. ``change`` is in nats, and NaN for unchecked rows."""
        checked = change[~change.isnan()].abs()
        bits = checked / (dims * math.log(2))
        if not len(checked) or float(bits.max()) <= ALLOWED:
            return
        if self.steps is not None:
            what, cure = f"the number of steps is doubled to {other.steps}", "more steps, or adaptive steps"
        elif other.rtol < self.rtol:
            what, cure = "the tolerance is ten times tighter", f"a tolerance below {self.rtol:g}"
        else:
            what, cure = "the tolerance is ten times looser", "float64"
        if self.method == "quadrature":
            cure = f"{cure}, or the 'coupled' method"
        if self.divergence == "difference":
            what, cure = (
                f"{what} and the finite differences are half as wide",
                f"{cure}, or the 'hutchinson' divergence",
            )
        warnings.warn(
            f"THE LOG-LIKELIHOOD HAS NOT CONVERGED: it changes by up to {float(checked.max()):.3g} nats "
            f"({float(bits.max()):.3g} bits/dim) per sample when {what}; discard this result, and use {cure}",
            stacklevel=4,
        )


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    likelihood: Likelihood | None = None,
    *,
    noise: Noise | None = None,
    draw: int = 0,
    batch: int = 256,
    memory: int | None = None,
    check: bool | None = None,
    watch: Callable[[LogLikelihood], object] | None = None,
    differentiable: bool = False,
) -> LogLikelihood:
    """Compute the log density of each row under the model's probability flow (:mod:`scoresde.likelihood`, equation 1).

    Args:
        model: Any denoiser.
        x: The states at ``t_min`` in model units, shape ``(B, *event)``.
        likelihood: The options (default: ``Likelihood()``). The option ``dequantisation`` has no effect, because ``x``
            contains states instead of data.
        noise, batch, memory, watch: See :meth:`Likelihood.__call__`.
        draw: Index of the draw (see :class:`Likelihood`). Different draws of a row have different probes.
        check: See :meth:`Likelihood.__call__`. By default, convergence is checked unless ``differentiable`` is true.
        differentiable: Whether to keep the graph, for gradients with respect to ``x`` and the model's parameters. This
            requires a likelihood with fixed ``steps``.

    Raises:
        UsageError: If an option is invalid.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> normal = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
        >>> result = log_likelihood(normal, torch.zeros(1, 2))
        >>> abs(float(result.log_prob) + math.log(2 * math.pi)) < 1e-3
        True
    """
    x = as_states(x)
    if x.ndim == 0 or not x.numel():
        raise UsageError(f"the data must have shape (B, *event) and must not be empty; got shape {tuple(x.shape)}")
    how = (likelihood or Likelihood()).resolved(model, dims(x), differentiable=differentiable)
    if differentiable and how.steps is None:
        raise UsageError(
            "a differentiable likelihood needs a fixed number of steps; set steps, for example to 40",
            parameter="steps",
        )
    if differentiable and model.domain.sde.parameters():
        raise UsageError(
            "a differentiable likelihood does not support a path with learned ends; use a path whose ends are fixed"
        )
    if batch < 1:
        raise UsageError(f"batch is {batch}; it must be at least 1", parameter="batch")
    noise = Noise.of(len(x), device=x.device) if noise is None else noise
    if noise.indices.device != x.device:
        raise UsageError(
            f"the noise is on {noise.indices.device}, but the data are on {x.device}; put both on the same device"
        )
    if len(noise.indices) != len(x):
        raise UsageError(f"noise and data must have the same number of rows; got {len(noise.indices)} and {len(x)}")
    Probes(how.probe, how.probes, noise, draw * how.probes).check()
    batch = how.batch_within(memory, model, x, batch, differentiable)
    result = how.solve(model, x, noise, batch, draw=draw, graph=differentiable, watch=watch)
    if check or (check is None and not differentiable):
        change = how.change(result, lambda rows: (model.rows(rows), x.detach()[rows], noise.rows(rows)), batch)
        result = replace(result, change=change)
    return result


@contextmanager
def _full_precision() -> Iterator[None]:
    """Use full float32 precision for convolutions on a GPU while the context is active."""
    # By default, PyTorch rounds the inputs of these convolutions to 10 mantissa bits (TF32). Every evaluation would
    # then have an error of 1e-3, and the error of finite differences would be a hundred times the tolerance.
    is_set = torch.backends.cudnn
    with is_set.flags(is_set.enabled, is_set.benchmark, is_set.benchmark_limit, is_set.deterministic, allow_tf32=False):
        yield


_SINGLE_PRECISION = Shared(_full_precision)  # the flag is shared by all threads of the process
