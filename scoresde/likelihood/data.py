"""Likelihoods of data in data units, with their standard errors and settings.

A likelihood in bits/dim can be interpreted only together with its error and its settings, namely the dequantisation
(:mod:`scoresde.likelihood.dequantise`), the number of draws, the time at which the density is evaluated, the tolerance,
the probes and the scale of the data. Every result therefore contains the scale and the :class:`~scoresde.Likelihood`
with the options. There are two standard errors:

    stderr_probes   The standard error of each sample's log-likelihood due to its random probes, with everything else
                    fixed.
    stderr_mean     The standard error of the mean, which is the standard deviation over the samples divided by sqrt(n).
                    It includes the variation of data, dequantisation and probes, because each sample has its own draws.

An importance-weighted bound is the logarithm of a mean. If the terms of the mean had independent probes, the noise of
the probes would bias the bound upwards by about half its variance. The K terms of a sample therefore share their
probes, which stay the same along the trajectory. Most of the noise is then common to all terms and causes no bias. An
exact divergence has no such noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..codec import Codec, Levels, as_affine, undefined
from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.noise import Noise
from ..core.parts import Packed, Parts, pieces
from ..core.threads import rows_each
from ..model.estimate import Denoiser
from ..sde.check import check_scalar
from .dequantise import log_mean_exp, start_time, truncated_normal
from .result import ALLOWED, LogLikelihood, bits_per_dim

if TYPE_CHECKING:
    from .method import Likelihood

__all__ = ["Scores", "States", "begins", "is_density", "join", "piece", "score"]


@dataclass(frozen=True)
class Scores:
    """Likelihoods of data, one per sample, with their standard errors and settings.

    Attributes:
        log_prob: Log-likelihood of each sample in nats, shape ``(n,)``. For dequantised data, this is a lower bound on
            the log probability or, if only some columns are stored as discrete levels, on a log density. Without
            dequantisation, it is the log density in data units.
        bits_per_dim: Negative log-likelihood of each sample in bits per dimension, shape ``(n,)``, or ``None`` if
            ``log_prob`` is a log density or a bound on one.
        stderr_probes: Standard error of each ``log_prob`` due to the probes, in nats, shape ``(n,)``. It is 0 for an
            exact divergence, and NaN for a single probe.
        model: The result in model units for the first draw of each sample. Only its ``nfe``, ``divergences`` and
            ``status`` cover all draws.
        how: The options used, with each ``auto`` replaced by the actual choice.
        scale: Number of data units per model unit (the geometric mean over the elements of an event).
        dims: Number of dimensions D of each sample (:meth:`scoresde.codec.Codec.dims`), int64 ``(n,)``.
    """

    log_prob: Tensor
    bits_per_dim: Tensor | None
    stderr_probes: Tensor
    model: LogLikelihood
    how: Likelihood
    scale: float
    dims: Tensor

    def __str__(self) -> str:
        return f"{self.mean():.4f} ± {self.stderr_mean():.4f} {self.unit} ({self.depends_on()})"

    def depends_on(self) -> str:
        """Describe the options and the data scale in words."""
        return f"{self.how}, data scale {self.scale:g}"

    @property
    def values(self) -> Tensor:
        """``bits_per_dim``, or ``log_prob`` if ``bits_per_dim`` is ``None``, shape ``(n,)``."""
        return self.log_prob if self.bits_per_dim is None else self.bits_per_dim

    @property
    def unit(self) -> str:
        """The unit of ``values``: ``bits/dim`` or ``nats``."""
        return "nats" if self.bits_per_dim is None else "bits/dim"

    @property
    def nats_per_unit(self) -> Tensor:
        """Number of nats in one unit of ``values`` for each sample, float64 ``(n,)``."""
        nats = self.dims.double() * math.log(2)
        return torch.ones_like(nats) if self.bits_per_dim is None else nats

    @property
    def change(self) -> float:
        """Largest change in the value of any sample that was solved again to check convergence.

        The change is in the unit of ``values``. It is NaN if no samples were solved again.
        """
        checked = self._changes.abs()
        return float(checked.max()) if len(checked) else math.nan

    @property
    def _changes(self) -> Tensor:
        """The changes of the samples that were solved again, float64 ``(m,)``, in the unit of ``values``."""
        changes = (1 if self.bits_per_dim is None else -1) * self.model.change.double() / self.nats_per_unit
        return changes[~changes.isnan()]

    @property
    def shift(self) -> float:
        """Mean change of the values that were solved again to check convergence, in the unit of ``values``.

        It estimates the error of the integration in :meth:`mean`. It is NaN if no samples were solved again.
        """
        return float(self._changes.mean()) if len(self._changes) else math.nan

    @property
    def share(self) -> float:
        """The size of :attr:`shift` as a share of :meth:`stderr_mean`, or NaN if either is unknown."""
        return abs(self.shift) / self.stderr_mean() if self.stderr_mean() > 0 else math.nan

    @property
    def checked(self) -> int:
        """Number of samples that were solved again to check convergence, or 0 if convergence was not checked."""
        return int((~self.model.change.isnan()).sum())

    @property
    def converged(self) -> bool | None:
        """Whether all checked values changed by at most 0.01 bits per dimension, or ``None`` if none was checked."""
        bits = self.model.change.abs() / (self.dims.double() * math.log(2))
        checked = bits[~bits.isnan()]
        return bool((checked <= ALLOWED).all()) if len(checked) else None

    def mean(self) -> float:
        """Mean of ``values`` over the successfully solved samples."""
        return float(self.values[self.model.ok].double().mean())

    def stderr_mean(self) -> float:
        """Standard error of :meth:`mean`, from the standard deviation over the successfully solved samples.

        It is NaN for fewer than two such samples.
        """
        values = self.values[self.model.ok].double()
        return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan

    def stderr_sample(self) -> float:
        """Root mean square of ``stderr_probes`` over the successfully solved samples, in the unit of ``values``."""
        errors = (self.stderr_probes / self.nats_per_unit)[self.model.ok]
        return float(errors.double().square().mean().sqrt())

    def pack(self) -> Packed:
        """Pack the scores, without ``how``, into named tensors and a dictionary of numbers (see :meth:`unpack`)."""
        own = {name: getattr(self, name) for name in ("log_prob", "bits_per_dim", "stderr_probes", "dims")}
        solved = {f"model.{f.name}": getattr(self.model, f.name) for f in fields(self.model)}
        return {k: v for k, v in {**own, **solved}.items() if v is not None}, {"scale": self.scale}

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], how: Likelihood, device: torch.device
    ) -> Scores:
        """Restore the scores from the result of :meth:`pack` and the options ``how``."""
        found = {name: value.to(device) for name, value in tensors.items()}
        model = LogLikelihood(**{k.partition(".")[2]: found.pop(k) for k in list(found) if k.startswith("model.")})
        found.setdefault("bits_per_dim", None)  # type: ignore[arg-type]
        return cls(**found, model=model, how=how, scale=float(facts["scale"]))


def join(pieces: Sequence[Scores]) -> Scores:
    """Concatenate the scores of consecutive batches of a data set."""
    model = LogLikelihood.join([p.model for p in pieces])
    bits = [p.bits_per_dim for p in pieces if p.bits_per_dim is not None]
    log_prob, stderr, dims = (
        torch.cat([getattr(p, name) for p in pieces]) for name in ("log_prob", "stderr_probes", "dims")
    )
    return Scores(log_prob, torch.cat(bits) if bits else None, stderr, model, pieces[0].how, pieces[0].scale, dims)


def begins(model: Denoiser, codec: Codec | None = None, dequantisation: str = "none") -> float:
    """Return the default time at which the trajectory of a likelihood computation begins."""
    low = model.domain.interval("likelihood")[0]
    if codec is None or not isinstance(codec.levels, Levels) or dequantisation != "truncated-normal":
        return low
    check_scalar(
        model.domain.sde, "truncated-normal dequantisation", "uniform dequantisation", parameter="dequantisation",
        value="uniform",
    )  # fmt: skip
    width = torch.as_tensor(codec.levels.width) / as_affine(codec, "truncated-normal dequantisation").scale
    if not codec.levels.everywhere:
        raise UsageError(
            "truncated-normal dequantisation needs data with discrete levels in every column; use uniform "
            "dequantisation, which leaves columns without levels unchanged",
            parameter="dequantisation",
            value="uniform",
        )
    return start_time(model.domain.sde, low, float(width.min()))


def score(
    likelihood: Likelihood,
    model: Denoiser,
    codec: Codec,
    x: Tensor,
    noise: Noise | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 256,
    memory: int | None = None,
    check: bool = True,
    watch: Callable[[Scores], object] | None = None,
    parts: Parts | None = None,
    condition: Condition | None = None,
) -> Scores:
    """Compute the likelihoods of data in data units, one batch at a time.

    Args:
        likelihood: The options.
        model: The denoiser. Its conditioning has one row per sample, or one row for all samples.
        codec: The map from data units to model units.
        x: Data in data units, shape ``(n, *event)``.
        noise: Noise addresses of the samples, used for dequantisation and probes (default: samples 0 to n-1 of seed
            0). The addresses must be on the model's device.
        dtype: Floating-point dtype used by the solver.
        batch: Largest number of samples solved at once.
        memory: Memory budget in bytes. The batches are made smaller if necessary.
        check: Whether to check the convergence of the first draw, on up to 16 samples spread evenly over the data.
        watch: Function to call with the scores of each batch.
        parts: A store in which the scores of each batch are saved as soon as they are computed. Batches that are
            already in the store are read instead of being scored again.
        condition: The conditions of the samples that the codec needs, with one row per sample or one row for all.

    Raises:
        UsageError: If an option is invalid.
    """
    if not len(x):
        raise UsageError("the data set x contains no samples; pass at least one sample to score")
    if batch < 1:
        raise UsageError(f"batch is {batch}; it must be at least 1", parameter="batch")
    noise = Noise.of(len(x)) if noise is None else noise
    dims = codec.dims(x, condition)
    how = likelihood.resolved(model, dims if isinstance(dims, int) else int(dims.max()), codec)
    condition = None if condition is None else condition.to("cpu")
    states = States(how, model, codec, x.cpu(), noise, dtype, condition)
    everyone = torch.arange(len(x), device=noise.indices.device)
    first = states(everyone[:1], 0)[0]
    batch = how.batch_within(memory, model.rows(everyone[:1]), first, batch)
    batch = rows_each(len(x), batch)
    batch = batch if parts is None else parts.batch(batch)

    def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Scores:
        return Scores.unpack(tensors, facts, how, everyone.device)

    ranges = torch.split(everyone, batch)
    solve = partial(piece, how, states, batch)
    found = join(pieces(ranges, solve, Scores.pack, unpack, parts, noise.indices, watch))
    if not check:
        return found
    change = how.change(found.model, lambda rows: (model.rows(rows), states(rows, 0)[0], noise.rows(rows)), batch)
    return replace(found, model=replace(found.model, change=change))


def piece(how: Likelihood, states: States, batch: int, rows: Tensor) -> Scores:
    """Score the samples ``rows``, with R draws per sample and K importance samples per draw."""
    codec, model, noise = states.codec.rows(rows), states.model.rows(rows), states.noise.rows(rows)
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
    x = states.x[rows.cpu()].double()
    known = states.known(rows)
    log_det = codec.continuous.log_det(x, known)
    dims = torch.as_tensor(codec.dims(x, known), device=log_prob.device).expand(len(x))
    bits = None if is_density(how, codec) else bits_per_dim(log_prob, dims)
    scale = math.nan if log_det is None else float((-torch.as_tensor(log_det) / dims.cpu()).mean().exp())
    return Scores(log_prob, bits, _stderr(solved, torch.stack(log_w)), merged, how, scale, dims)


def is_density(how: Likelihood, codec: Codec) -> bool:
    """Return whether a likelihood is a density, in nats, and not a probability, in bits/dim."""
    # If only some columns are stored as levels, the result in nats combines their probability with a density.
    return how.dequantisation == "none" or (isinstance(codec.levels, Levels) and not codec.levels.everywhere)


@dataclass(frozen=True)
class States:
    """A callable that draws the states at which the density of the data is evaluated."""

    how: Likelihood
    model: Denoiser
    codec: Codec
    x: Tensor
    noise: Noise
    dtype: torch.dtype
    condition: Condition | None = None

    def known(self, rows: Tensor) -> Condition | None:
        """Return the conditions of the samples in ``rows``."""
        return None if self.condition is None else self.condition.rows(rows.cpu())

    def __call__(self, rows: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Return a state at ``t_min`` and the correction ``log p - log w`` for each sample in ``rows``.

        Here, p is the model's density at the state in model units, and w is the importance weight (equation 1 of
        :mod:`scoresde.likelihood.dequantise`).
        """
        x, codec, known = self.x[rows.cpu()].double(), self.codec.rows(rows), self.known(rows)
        u = self.noise.rows(rows).uniform(tuple(x.shape[1:]), draw, "dequantise", torch.float64).cpu()
        if self.how.dequantisation == "truncated-normal":
            state, log_q = self._truncated(codec, x, u)
        elif self.how.dequantisation == "uniform":
            state, log_q = codec.to_model(x, known, noise=u), self._minus_log_det(codec, x, known)
        else:
            middle = x if codec.levels is None else codec.levels.to_model(x, noise=torch.full_like(u, 0.5))
            state = codec.continuous.to_model(middle, known)
            log_q = self._minus_log_det(codec.continuous, middle, known)
        return state.to(device=rows.device, dtype=self.dtype), log_q.to(rows.device)

    @staticmethod
    def _minus_log_det(codec: Codec, x: Tensor, known: Condition | None) -> Tensor:
        log_det = codec.log_det(x, known)
        if log_det is None:
            raise undefined(codec, x, known)
        return -torch.as_tensor(log_det, dtype=x.dtype).expand(len(x))

    def _truncated(self, codec: Codec, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states and the corrections for equation 3 of :mod:`scoresde.likelihood.dequantise`."""
        levels, affine, t0 = codec.levels, as_affine(codec, "truncated-normal dequantisation"), self.how.t_min
        assert isinstance(levels, Levels)
        # s = scale sigma/alpha, and the state at t0 is alpha times v in model units
        domain, shape = self.model.domain, x.shape[1:]
        alpha, sigma = domain.sde.coefficients(torch.tensor(t0, dtype=torch.float64))
        std = affine.scale * sigma / alpha
        e, log_q_e = truncated_normal(u, levels.width / (2 * std))
        # a converted model expects states at the start of its path in the units of its original path
        alpha = alpha / (domain.sde.data_scale if t0 == domain.interval("likelihood")[0] else 1.0)
        state = alpha * affine.to_model(x + levels.width / 2 + std * e)
        # log q = log q(e) - sum log s, and the density of v is alpha^D times that of the state
        log_std = float(torch.broadcast_to(std, shape).log().sum())
        return state, log_q_e - log_std + affine.log_scale(shape) - math.prod(shape) * alpha.log()


def _stderr(solved: list[LogLikelihood], log_w: Tensor) -> Tensor:
    """Return the standard error of each log-likelihood due to the probes.

    ``solved`` contains the R K solutions whose log weights are ``log_w: (R, K, n)``.
    """
    # The K weights of a draw share their probes, so their errors add up. The R draws are independent.
    each = torch.stack([s.stderr_probes.double() for s in solved]).reshape(log_w.shape)
    grouped = (torch.softmax(log_w, dim=1) * each).sum(1)
    return grouped.square().sum(0).sqrt() / len(log_w)
