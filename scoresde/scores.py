"""Likelihoods in the units of the data, with everything that the figure depends on.

A figure in bits/dim says nothing without its dequantisation, its number of draws, the time at which the density is
taken, the tolerance, the probes and the scale of the data (:mod:`scoresde.likelihood.dequantise`, ``How``), and nothing
without its error. Two errors are kept apart:

    stderr_probes   of each sample: what its K probes leave uncertain, everything else being fixed;
    stderr_mean     of the mean: the spread of the samples over sqrt(n), in which data, dequantisation and probes all
                    have their part, because each sample has draws of its own.

Importance-weighted bounds take the logarithm of a mean, which the noise of probes would raise: log mean exp of noisy
terms is too large by about half their variance. The K terms of a sample therefore share their probes, which are the
same along the path, so that the noise is nearly common and drops out; an exact divergence has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import DataInfo
from .errors import UsageError
from .estimate import Denoiser
from .likelihood import LogLikelihood, log_likelihood
from .likelihood.dequantise import DEQUANTISATIONS, log_mean_exp, start_time, truncated_normal
from .likelihood.flow import ALLOWED, chosen_divergence
from .likelihood.frame import beginning
from .noise import Noise

__all__ = ["How", "Scores", "join", "score"]


@dataclass(frozen=True)
class How:
    """What a likelihood depends on besides model and data.

    Attributes:
        dequantisation: ``uniform``, ``truncated-normal`` or ``none``.
        draws: Independent draws R of each sample, averaged.
        importance: Samples K of each importance-weighted bound.
        t_min: The time at which the density is taken.
        method, divergence, probes, probe, redraw: How the log-determinant was found (``probes`` is 0 if it is exact).
        scheme: The Runge-Kutta method; ``None`` for the default.
        steps: Number of fixed steps, ``None`` for steps by the tolerance.
        rtol, atol: Tolerances; without a meaning for fixed steps.
        scale: Data units per model unit, the geometric mean over an event.
    """

    dequantisation: str
    draws: int
    importance: int
    t_min: float
    method: str
    divergence: str
    probes: int
    probe: str
    redraw: bool
    scheme: str | None
    steps: int | None
    rtol: float
    atol: float
    scale: float

    def __str__(self) -> str:
        drawn = f"{self.draws} draw{'s' if self.draws > 1 else ''}"
        if self.dequantisation == "none":
            first = "no dequantisation" + (f", {drawn}" if self.draws > 1 else "")
        else:
            first = f"{self.dequantisation} dequantisation, {drawn}"
            if self.importance > 1:
                first += f" of the importance-weighted bound with K = {self.importance}"
        if self.divergence == "exact":
            traced = "exact divergence"
        else:
            traced = f"{self.probes} {self.probe} probe{'s' if self.probes > 1 else ''}"
            traced += " by differences" if self.divergence == "difference" else ""
            traced += "" if self.redraw else ", the same along the path"
        solved = f"rtol {self.rtol:g}" if self.steps is None else f"{self.steps} steps"
        solved += "" if self.scheme is None else f" of {self.scheme}"
        return f"{first}, {traced}, {self.method}, {solved}, t_min {self.t_min:.3g}, data scale {self.scale:g}"


@dataclass(frozen=True)
class Scores:
    """Likelihoods of data.

    Attributes:
        log_prob: Nats per sample, shape ``(n,)``: for data with levels a lower bound of the log probability, otherwise,
            and without dequantisation, the log density in data units.
        bits_per_dim: The same in bits per dimension, ``None`` for a density.
        stderr_probes: Standard error of ``log_prob`` of each sample from its probes, nats, shape ``(n,)``; 0 for an
            exact divergence, NaN for one probe.
        model: What the solver returned for the first draw, in model units; evaluations and failures are those of all.
        how: What the figure depends on.
    """

    log_prob: Tensor
    bits_per_dim: Tensor | None
    stderr_probes: Tensor
    model: LogLikelihood
    how: How

    @property
    def values(self) -> Tensor:
        """Bits per dimension if the data has levels, else nats; shape ``(n,)``."""
        return self.log_prob if self.bits_per_dim is None else self.bits_per_dim

    @property
    def unit(self) -> str:
        """``bits/dim`` or ``nats``."""
        return "nats" if self.bits_per_dim is None else "bits/dim"

    @property
    def nats_per_unit(self) -> float:
        """How many nats of a sample one unit of ``values`` is."""
        return 1.0 if self.bits_per_dim is None else self.model.z[0].numel() * math.log(2)

    @property
    def change(self) -> float:
        """Largest change of a sample when some are solved again more accurately, in the unit of the values.

        NaN if none were.
        """
        checked = self.model.change[~self.model.change.isnan()]
        return float(checked.max()) / self.nats_per_unit if len(checked) else math.nan

    @property
    def converged(self) -> bool | None:
        """Whether the change is small, at most 0.01 bits per dimension; ``None`` if that was not checked."""
        if math.isnan(self.change):
            return None
        return self.change * self.nats_per_unit <= ALLOWED * self.model.z[0].numel() * math.log(2)

    def mean(self) -> float:
        """Mean over the samples that were solved."""
        return float(self.values[self.model.ok].double().mean())

    def stderr_mean(self) -> float:
        """Standard error of the mean over samples; data, dequantisation and probes are part of the spread."""
        values = self.values[self.model.ok].double()
        return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan

    def stderr_sample(self) -> float:
        """Root mean square of ``stderr_probes`` over the samples, in the unit of the values."""
        return float(self.stderr_probes[self.model.ok].double().square().mean().sqrt()) / self.nats_per_unit


def join(pieces: Sequence[Scores]) -> Scores:
    """Put the scores of a data set that was scored in parts together again."""
    model = LogLikelihood.join([p.model for p in pieces])
    bits = [p.bits_per_dim for p in pieces if p.bits_per_dim is not None]
    log_prob, stderr = (torch.cat([getattr(p, name) for p in pieces]) for name in ("log_prob", "stderr_probes"))
    return Scores(log_prob, torch.cat(bits) if bits else None, stderr, model, pieces[0].how)


def score(
    model: Denoiser,
    info: DataInfo,
    x: Tensor,
    noise: Noise,
    dtype: torch.dtype,
    *,
    dequantisation: str = "auto",
    draws: int = 1,
    importance: int = 1,
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
    batch: int = 256,
    memory: int | None = None,
    check: bool = True,
) -> Scores:
    """Score data.

    Args:
        model: The denoiser.
        info: The data's units and levels.
        x: Data in data units, shape ``(n, *event)``.
        noise: Addresses of the samples' draws (dequantisation and probes), on the model's device.
        dtype: In which to solve.
        dequantisation: ``auto`` (``uniform`` for data with levels), or a name.
        draws: Independent draws R of each sample, averaged.
        importance: Samples K of each importance-weighted bound.
        t_min: Where the path begins (default: the model's; with ``truncated-normal`` where its noise fills a cell).
        method, divergence, probes, probe, rtol, atol, scheme, steps, batch, memory: See
            :func:`scoresde.log_likelihood`.
        redraw: The same; samples of one importance-weighted bound share theirs, so it is off for more than one.
        check: Check the convergence of the first draw.

    Raises:
        UsageError: If an option cannot be used.
    """
    dequantisation = _chosen(dequantisation, info, draws, importance)
    divergence = chosen_divergence(divergence, info.dims)
    exact = divergence == "exact"
    redraw = redraw and importance == 1
    begin = beginning(model) if t_min is None else t_min
    if dequantisation == "truncated-normal" and info.bin_width is not None and t_min is None:
        begin = start_time(model.sde, begin, info.bin_width / float(info.transform.scale.max()))
    solved: list[LogLikelihood] = []
    log_w = []
    for r in range(draws):
        group = []
        for k in range(importance):
            u = noise.uniform(info.shape, r * importance + k, "dequantise", torch.float64).cpu()
            state, log_q = _spread(model, info, x.cpu().double(), u, dequantisation, begin)
            solved.append(
                log_likelihood(
                    model, state.to(device=noise.indices.device, dtype=dtype), method=method, divergence=divergence,
                    probes=probes, probe=probe, redraw=redraw, rtol=rtol, atol=atol, scheme=scheme, steps=steps,
                    t_min=begin, noise=noise, draw=r, batch=batch, memory=memory, check=check and not solved,
                )
            )  # fmt: skip
            group.append(solved[-1].log_prob.double() - log_q.to(noise.indices.device))
        log_w.append(torch.stack(group))
    log_prob = torch.stack([log_mean_exp(group) for group in log_w]).mean(0)
    merged = replace(
        solved[0],
        nfe=torch.stack([s.nfe for s in solved]).sum(0),
        divergences=torch.stack([s.divergences for s in solved]).sum(0),
        status=torch.stack([s.status for s in solved]).amax(0),
    )
    how = How(
        dequantisation, draws, importance, begin, method, divergence,
        0 if exact else probes, probe, redraw, scheme, steps, rtol, atol,
        float(info.transform.scale.log().mean().exp()),
    )  # fmt: skip
    bits = None if dequantisation == "none" else -log_prob / (info.dims * math.log(2))
    return Scores(log_prob, bits, _stderr(solved, torch.stack(log_w)), merged, how)


def _chosen(dequantisation: str, info: DataInfo, draws: int, importance: int) -> str:
    """The dequantisation, or an error for what cannot be."""
    if dequantisation == "auto":
        dequantisation = "none" if info.levels is None else "uniform"
    if dequantisation not in DEQUANTISATIONS:
        raise UsageError(f"unknown dequantisation {dequantisation!r}; choose from: auto, {', '.join(DEQUANTISATIONS)}")
    if dequantisation != "none" and info.levels is None:
        raise UsageError(f"{info.name} is continuous and needs no dequantisation; take none")
    if draws < 1 or importance < 1:
        raise UsageError(f"draws is {draws} and importance is {importance}; each is at least 1")
    if dequantisation == "none" and importance > 1:
        raise UsageError("an importance-weighted bound needs a dequantisation; there is nothing else to weigh")
    return dequantisation


def _spread(
    model: Denoiser, info: DataInfo, x: Tensor, u: Tensor, dequantisation: str, t0: float
) -> tuple[Tensor, Tensor]:
    """The state at ``t0``, shape of ``x``, and what ``log p`` of it exceeds ``log w`` by, shape ``(n,)``."""
    log_scale = info.transform.log_scale(info.shape)
    if dequantisation == "none" or info.bin_width is None:
        return info.transform.encode(x + (info.bin_width or 0) / 2), torch.full((len(x),), log_scale, dtype=x.dtype)
    if dequantisation == "uniform":
        log_q = -info.dims * math.log(info.bin_width)
        state = info.transform.encode(info.dequantise(x, u))
        return state, torch.full((len(x),), log_scale + log_q, dtype=x.dtype)
    # x + b/2 + s e, s = scale sigma/alpha, is alpha times itself at t0
    alpha, sigma = model.sde.coefficients(torch.tensor(t0, dtype=torch.float64))
    std = info.transform.scale * sigma / alpha
    e, log_q_e = truncated_normal(u, info.bin_width / (2 * std))
    # a converted model takes states at its beginning in the unit of its own path
    alpha = alpha / (model.sde.data_scale if t0 == beginning(model) else 1.0)
    state = alpha * info.transform.encode(x + info.bin_width / 2 + std * e)
    # log q = log q(e) - sum log s, and the density of v is alpha^D that of the state
    log_std = float(torch.broadcast_to(std, info.shape).log().sum())
    return state, log_q_e - log_std + log_scale - info.dims * alpha.log()


def _stderr(solved: list[LogLikelihood], log_w: Tensor) -> Tensor:
    """Standard error from the probes ``(n,)`` of weights ``log_w: (R, K, n)``.

    Groups are independent, within a group the probes are shared.
    """
    each = torch.stack([s.stderr_probes.double() for s in solved]).reshape(log_w.shape)
    grouped = (torch.softmax(log_w, dim=1) * each).sum(1)
    return grouped.square().sum(0).sqrt() / len(log_w)
