"""``log_likelihood``: options, chunks, and the check that the figure has converged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UsageError
from ..estimate import Denoiser
from ..noise import Noise
from ..ode import TABLEAUS
from .coupled import FIXED, by_fixed_steps, coupled
from .divergence import Probes, width
from .frame import Frame
from .memory import rows_within
from .quadrature import by_quadrature
from .result import LogLikelihood

__all__ = ["METHODS", "chosen_divergence", "log_likelihood"]

METHODS = ("coupled", "quadrature")
DIVERGENCES = ("auto", "exact", "hutchinson", "difference")

# Up to this many dimensions the exact divergence costs less than the probes that a small error bar would need.
EXACT_UP_TO = 16

# Rows on which convergence is checked, and the change that a figure may not show, in bits per dimension.
CHECKED, ALLOWED = 16, 0.01


@contextmanager
def _single_precision() -> Iterator[None]:
    """Convolutions on a GPU in float32 proper: by default their inputs are rounded to 10 bits there (TF32).

    That would be an error of 1e-3 in every evaluation, and a hundred times the tolerance in differences.
    """
    is_set = torch.backends.cudnn
    with is_set.flags(is_set.enabled, is_set.benchmark, is_set.benchmark_limit, is_set.deterministic, allow_tf32=False):
        yield


@dataclass(frozen=True)
class _Plan:
    """How a batch is solved."""

    method: str
    divergence: str
    probes: int
    probe: str
    draw: int
    rtol: float
    atol: float
    scheme: str
    steps: int | None
    t_min: float | None
    max_nfe: int
    graph: bool
    width: float
    fixed: bool = False
    finer: bool = False

    def other(self, dtype: torch.dtype) -> _Plan:
        """What to compare with: a tolerance ten times tighter, or looser if the numbers have no more, or 2N steps.

        Differences are half as wide: a quarter of their error is left, and twice the rounding.
        """
        if self.steps is not None:
            return replace(self, steps=2 * self.steps, width=self.width / 2)
        resolved = self.rtol / 10 >= (0.99e-6 if dtype == torch.float32 else 1e-13)
        factor = 0.1 if resolved else 10.0
        return replace(self, rtol=factor * self.rtol, atol=factor * self.atol, finer=resolved, width=self.width / 2)

    def solve(self, model: Denoiser, x: Tensor, noise: Noise, batch: int) -> LogLikelihood:
        """Solve the rows of ``x``, ``batch`` at once."""
        with _single_precision():
            return self._pieces(model, x, noise, batch)

    def _pieces(self, model: Denoiser, x: Tensor, noise: Noise, batch: int) -> LogLikelihood:
        pieces = []
        for rows in torch.split(torch.arange(len(x), device=x.device), batch):
            frame = Frame(model.rows(rows), x[rows], self.t_min, self.graph)
            kind = "exact" if self.divergence == "exact" else self.probe
            probes = Probes(kind, self.probes, noise.rows(rows), self.draw * self.probes, self.fixed, self.width)
            with torch.set_grad_enabled(self.graph):
                pieces.append(self._solve(frame, probes, batch))
        return LogLikelihood.join(pieces)

    def _solve(self, frame: Frame, probes: Probes, batch: int) -> LogLikelihood:
        if self.steps is not None:
            return by_fixed_steps(frame, probes, self.scheme, self.steps)
        if self.method == "coupled":
            return coupled(frame, probes, self.rtol, self.atol, self.scheme, self.max_nfe)
        return by_quadrature(frame, probes, self.rtol, self.atol, self.scheme, self.max_nfe, batch, self.finer)


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    method: str = "coupled",
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "rademacher",
    redraw: bool = True,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    scheme: str | None = None,
    steps: int | None = None,
    t_min: float | None = None,
    noise: Noise | None = None,
    draw: int = 0,
    batch: int = 256,
    memory: int | None = None,
    max_nfe: int = 10_000,
    check: bool | None = None,
    differentiable: bool = False,
) -> LogLikelihood:
    """Log density of each row under the model's probability flow (:mod:`scoresde.likelihood`, eq. 1).

    Args:
        model: Any denoiser.
        x: Data in model units, shape ``(B, *event)``.
        method: ``coupled`` (path and log-determinant as one system) or ``quadrature`` (the path first, then the
            divergence at nodes along it: half the cost of an exact divergence or of many probes).
        divergence: ``exact``; ``hutchinson`` (probes and backward passes); ``difference`` (probes and pairs of
            evaluations, without backward passes, for a model that computes in the dtype of ``x``, not by autocast;
            :mod:`scoresde.likelihood.divergence`, eq. 3); or ``auto``: exact up to 16 dimensions, then ``hutchinson``.
        probes: Number of probes K.
        probe: ``rademacher`` (signs) or ``gaussian``.
        redraw: Draw new probes on the way, so that their errors average out; otherwise they are the same everywhere.
        rtol, atol: Tolerances, in units of the straight frame and in nats per dimension.
        scheme: A Runge-Kutta method of :mod:`scoresde.ode` (default ``dopri5``); with ``steps``, one of ``euler``,
            ``heun`` and ``rk4`` (the default then).
        steps: Take so many fixed steps instead of following the tolerance.
        t_min: Where the path begins, the time at which ``x`` is the state (default: the model's).
        noise: Addresses of the rows' probes (default: samples 0 to B-1 of seed 0).
        draw: Another number gives the same rows other probes.
        batch: Rows solved at once, at most; ``difference`` shows the model two states of each.
        memory: Budget in bytes that may lower ``batch`` further (:mod:`scoresde.likelihood.memory`).
        max_nfe: Largest number of points at which a row is evaluated.
        check: Solve up to 16 of the rows again, at a tolerance ten times as tight (as loose, where the numbers do not
            resolve a tighter one) or with twice the steps, and warn if the figure changes by more than 0.01 bits per
            dimension. Its evaluations are not in ``nfe``. Default: unless the result is to be differentiated.
        differentiable: Keep the graph, for gradients in ``x`` and in the model's parameters; needs ``steps``.

    Raises:
        UsageError: If an option cannot be used.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> normal = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
        >>> result = log_likelihood(normal, torch.zeros(1, 2))
        >>> abs(float(result.log_prob) + math.log(2 * math.pi)) < 1e-3
        True
    """
    if x.ndim == 0 or not x.numel():
        raise UsageError(f"the data has shape {tuple(x.shape)}; a likelihood needs (B, *event) with at least one row")
    dims = x[0].numel()
    divergence = chosen_divergence(divergence, dims)
    plan = _Plan(
        method,
        divergence,
        probes,
        probe,
        draw,
        rtol,
        atol,
        scheme or ("dopri5" if steps is None else "rk4"),
        steps,
        t_min,
        max_nfe,
        differentiable,
        width(x.dtype) if divergence == "difference" else 0.0,
        not redraw,
    )
    _refuse(plan, batch)
    if differentiable and model.sde.parameters():
        raise UsageError("the path has learned ends, which a differentiable likelihood does not follow; freeze them")
    noise = Noise.of(len(x), device=x.device) if noise is None else noise
    if noise.indices.device != x.device:
        raise UsageError(f"the noise is on {noise.indices.device}, the data on {x.device}")
    if len(noise.indices) != len(x):
        raise UsageError(f"noise for {len(noise.indices)} rows, but the data has {len(x)}")
    if memory is not None:
        backward = divergence != "difference" or differentiable
        passes = 0 if not differentiable else dims if divergence == "exact" else probes
        batch = min(batch, rows_within(memory, model, x, passes, backward))
    result = plan.solve(model, x, noise, batch)
    if check or (check is None and not differentiable):
        change = _change(plan, result, model, x, noise, batch)
        _warn(plan, change, dims, x.dtype)
        result = replace(result, change=change)
    return result


def chosen_divergence(name: str, dims: int) -> str:
    """What ``auto`` stands for in ``dims`` dimensions; another name is its own."""
    return ("exact" if dims <= EXACT_UP_TO else "hutchinson") if name == "auto" else name


def _refuse(plan: _Plan, batch: int) -> None:
    """Raise a UsageError for what cannot be."""
    if plan.divergence not in DIVERGENCES:
        raise UsageError(f"unknown divergence {plan.divergence!r}; choose from: {', '.join(DIVERGENCES)}")
    if plan.method not in METHODS:
        raise UsageError(f"unknown method {plan.method!r}; choose from: {', '.join(METHODS)}")
    schemes, kind = (TABLEAUS, "tolerance") if plan.steps is None else (FIXED, "number of steps")
    if plan.scheme not in schemes:
        raise UsageError(f"unknown scheme {plan.scheme!r} for a given {kind}; choose from: {', '.join(schemes)}")
    if plan.steps is not None and (plan.steps < 1 or plan.method != "coupled"):
        raise UsageError(f"{plan.steps} steps with the method {plan.method}; fixed steps are at least 1, and coupled")
    if plan.graph and plan.steps is None:
        raise UsageError("a likelihood to be differentiated takes a fixed number of steps; give steps, for example 40")
    if batch < 1:
        raise UsageError(f"batch is {batch}; at least 1 row is solved at once")
    Probes(plan.probe, plan.probes, Noise.of(0), plan.draw * plan.probes).check()


def _change(
    plan: _Plan, result: LogLikelihood, model: Denoiser, x: Tensor, noise: Noise, batch: int
) -> Tensor:
    """The change of ``log_prob`` in another solve of some rows, NaN elsewhere; ``(B,)``."""
    change = torch.full_like(result.log_prob.detach(), torch.nan)
    good = result.ok.nonzero().flatten()
    if not len(good):
        return change
    rows = good[torch.linspace(0, len(good) - 1, min(CHECKED, len(good))).round().long().to(good.device)]
    # Probes that are the same along the path, and in both solves: what is left is the error of the integration.
    same = plan.divergence == "exact" or plan.fixed
    plan = replace(plan, graph=False, fixed=True)
    part = model.rows(rows), x.detach()[rows], noise.rows(rows), batch
    own = result.log_prob.detach()[rows] if same else plan.solve(*part).log_prob
    other = plan.other(x.dtype).solve(*part)
    # A row that cannot be solved more tightly has not converged.
    off = (other.log_prob - own).abs()
    change[rows] = torch.where(off.isfinite(), off, torch.inf)
    return change


def _warn(plan: _Plan, change: Tensor, dims: int, dtype: torch.dtype) -> None:
    """Warn where the figure is not to be trusted; NaN is what was not checked."""
    checked = change[~change.isnan()]
    bits = checked / (dims * math.log(2))
    if not len(checked) or float(bits.max()) <= ALLOWED:
        return
    other = plan.other(dtype)
    if plan.steps is not None:
        what, cure = f"{plan.steps} steps become {other.steps}", "more steps, or a tolerance instead of steps"
    elif other.rtol < plan.rtol:
        what, cure = "the tolerance is ten times tighter", f"a tolerance below {plan.rtol:g}"
    else:
        what, cure = "the tolerance is ten times looser", "float64"
    if plan.width:
        what, cure = f"{what} and the differences are half as wide", f"{cure}, or the divergence hutchinson"
    warnings.warn(
        f"THE LOG-LIKELIHOOD HAS NOT CONVERGED: it changes by up to {float(checked.max()):.3g} nats "
        f"({float(bits.max()):.3g} bits/dim) per sample when {what}; do not use this figure, take {cure}",
        stacklevel=3,
    )
