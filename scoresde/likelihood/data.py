"""Likelihoods in the units of the data, with everything that the figure depends on.

A figure in bits/dim says nothing without its dequantisation, its number of draws, the time at which the density is
taken, the tolerance, the probes and the scale of the data (:mod:`scoresde.likelihood.dequantise`), and nothing without
its error. The first are in the :class:`~scoresde.Likelihood` that every result carries. Of errors there are two:

    stderr_probes   of each sample: what its K probes leave uncertain, everything else being fixed;
    stderr_mean     of the mean: the spread of the samples over sqrt(n), in which data, dequantisation and probes all
                    have their part, because each sample has draws of its own.

Importance-weighted bounds take the logarithm of a mean, which the noise of probes would raise: log mean exp of noisy
terms is too large by about half their variance. The K terms of a sample therefore share their probes, which are the
same along the path, so that the noise is nearly common and drops out; an exact divergence has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import DataInfo
from ..errors import UsageError
from ..estimate import Denoiser
from ..noise import Noise
from .dequantise import log_mean_exp, start_time, truncated_normal
from .result import ALLOWED, LogLikelihood, bits_per_dim

if TYPE_CHECKING:
    from .method import Likelihood

__all__ = ["Scores", "begins", "join", "score"]


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
        how: What the figure depends on, every option resolved.
        scale: Data units per model unit, the geometric mean over an event.
    """

    log_prob: Tensor
    bits_per_dim: Tensor | None
    stderr_probes: Tensor
    model: LogLikelihood
    how: Likelihood
    scale: float

    def __str__(self) -> str:
        return f"{self.mean():.4f} ± {self.stderr_mean():.4f} {self.unit} ({self.depends_on()})"

    def depends_on(self) -> str:
        """What the figure depends on, in words."""
        return f"{self.how}, data scale {self.scale:g}"

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
    return Scores(log_prob, torch.cat(bits) if bits else None, stderr, model, pieces[0].how, pieces[0].scale)


def begins(model: Denoiser, info: DataInfo | None = None, dequantisation: str = "none") -> float:
    """The time at which the path of a likelihood begins by default."""
    low = model.domain.interval("likelihood")[0]
    if info is None or info.bin_width is None or dequantisation != "truncated-normal":
        return low
    return start_time(model.domain.sde, low, info.bin_width / float(info.transform.scale.max()))


def score(
    likelihood: Likelihood,
    model: Denoiser,
    info: DataInfo,
    x: Tensor,
    noise: Noise | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 256,
    memory: int | None = None,
    check: bool = True,
    watch: Callable[[Scores], object] | None = None,
) -> Scores:
    """Score data, batch by batch.

    Args:
        likelihood: How.
        model: The denoiser; its conditioning has one row for each sample, or one for all.
        info: The data's units and levels.
        x: Data in data units, shape ``(n, *event)``.
        noise: Addresses of the samples' draws (dequantisation and probes), on the model's device.
        dtype: In which to solve.
        batch: Samples solved at once, at most.
        memory: Budget in bytes that may lower ``batch`` further.
        check: Check the convergence of the first draw, on samples from all over the data.
        watch: Called with the scores of each batch.

    Raises:
        UsageError: If an option cannot be used.
    """
    if not len(x):
        raise UsageError("there are no samples to score")
    if batch < 1:
        raise UsageError(f"batch is {batch}; at least 1 sample is solved at once", parameter="batch")
    noise = Noise.of(len(x)) if noise is None else noise
    how = likelihood.resolved(model, info.dims, info)
    states = _States(how, model, info, x.cpu(), noise, dtype)
    everyone = torch.arange(len(x), device=noise.indices.device)
    first = states(everyone[:1], 0)[0]
    batch = how.batch_within(memory, model.rows(everyone[:1]), first, batch)
    pieces = []
    for rows in torch.split(everyone, batch):
        pieces.append(_piece(how, states, rows, batch))
        if watch is not None:
            watch(pieces[-1])
    found = join(pieces)
    if not check:
        return found
    change = how.change(found.model, lambda rows: (model.rows(rows), states(rows, 0)[0], noise.rows(rows)), batch)
    return replace(found, model=replace(found.model, change=change))


def _piece(how: Likelihood, states: _States, rows: Tensor, batch: int) -> Scores:
    """The scores of ``rows``, int64 ``(b,)``: R draws of K weights each."""
    info, model, noise = states.info, states.model.rows(rows), states.noise.rows(rows)
    solved: list[LogLikelihood] = []
    log_w = []
    for r in range(how.draws):
        group = []
        for k in range(how.importance):
            state, log_q = states(rows, r * how.importance + k)
            solved.append(how.solve(model, state, noise, batch, draw=r))
            group.append(solved[-1].log_prob.double() - log_q)
        log_w.append(torch.stack(group))
    log_prob = torch.stack([log_mean_exp(group) for group in log_w]).mean(0)
    merged = replace(
        solved[0],
        nfe=torch.stack([s.nfe for s in solved]).sum(0),
        divergences=torch.stack([s.divergences for s in solved]).sum(0),
        status=torch.stack([s.status for s in solved]).amax(0),
    )
    bits = None if how.dequantisation == "none" else bits_per_dim(log_prob, info.dims)
    scale = float(info.transform.scale.log().mean().exp())
    return Scores(log_prob, bits, _stderr(solved, torch.stack(log_w)), merged, how, scale)


@dataclass(frozen=True)
class _States:
    """Data as the states that a density is asked for, draw by draw."""

    how: Likelihood
    model: Denoiser
    info: DataInfo
    x: Tensor
    noise: Noise
    dtype: torch.dtype

    def __call__(self, rows: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """The state of ``rows: (b,)`` at ``t_min``, ``(b, *event)``, and the correction ``log p - log w``, ``(b,)``."""
        u = self.noise.rows(rows).uniform(self.info.shape, draw, "dequantise", torch.float64).cpu()
        state, log_q = self._spread(self.x[rows.cpu()].double(), u)
        return state.to(device=rows.device, dtype=self.dtype), log_q.to(rows.device)

    def _spread(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        info, t0 = self.info, self.how.t_min
        log_scale = info.transform.log_scale(info.shape)
        if self.how.dequantisation == "none" or info.bin_width is None:
            same = torch.full((len(x),), log_scale, dtype=x.dtype)
            return info.transform.encode(x + (info.bin_width or 0) / 2), same
        if self.how.dequantisation == "uniform":
            log_q = -info.dims * math.log(info.bin_width)
            state = info.transform.encode(info.dequantise(x, u))
            return state, torch.full((len(x),), log_scale + log_q, dtype=x.dtype)
        # x + b/2 + s e, s = scale sigma/alpha, is alpha times itself at t0
        domain = self.model.domain
        alpha, sigma = domain.sde.coefficients(torch.tensor(t0, dtype=torch.float64))
        std = info.transform.scale * sigma / alpha
        e, log_q_e = truncated_normal(u, info.bin_width / (2 * std))
        # a converted model takes states at its beginning in the unit of its own path
        alpha = alpha / (domain.sde.data_scale if t0 == domain.interval("likelihood")[0] else 1.0)
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
