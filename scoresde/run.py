"""A trained run in use: samples and likelihoods in the units of the data.

:func:`load` reads a run folder; :class:`Run` joins the model with the data's units, levels and labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .build import build, resolve
from .checkpoint import find_run, load_weights, newest_checkpoint, read_config, read_json, read_tensors
from .config import TrainConfig, build_model, build_sde
from .data import DataInfo
from .errors import CheckpointError, DataError, UsageError
from .estimate import Denoiser, Parametrization
from .likelihood import Elbo, elbo
from .model import Guided, ScoreModel, convert
from .noise import Noise
from .scores import Scores, score
from .sde import SDE
from .solvers import Solution, Solver, sample
from .solvers.base import Watch
from .tables import SDES, SOLVERS
from .vlb import bound

__all__ = ["Run", "Samples", "load"]


@dataclass(frozen=True)
class Samples:
    """Samples in data units.

    Attributes:
        x: Shape ``(n, *event)``; on the data's levels if it has any.
        solution: The solver's statistics, with the samples in model units.
    """

    x: Tensor
    solution: Solution


@dataclass(frozen=True)
class Run:
    """A trained model and the data's units.

    Attributes:
        model: The model with averaged weights, in evaluation mode.
        info: What is known of the data.
        config: The resolved configuration.
        step: Training steps done.
        folder: The run folder, or ``None``.
    """

    model: ScoreModel
    info: DataInfo
    config: TrainConfig
    step: int
    folder: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the states that solvers carry."""
        return next(self.model.parameters()).dtype

    def conditioned(
        self,
        labels: int | Tensor | None,
        guidance: float = 1.0,
        n: int | None = None,
        path: str | SDE | None = None,
    ) -> Denoiser:
        """The denoiser for given labels: an int for all, int64 ``(n,)``, or ``None`` for the unconditional model.

        With ``path``, a name in :data:`scoresde.tables.SDES` or an SDE, it is asked there (:func:`scoresde.convert`).
        """
        model = self._conditioned(labels, guidance, n)
        return model if path is None else convert(model, build(path, SDES, "SDE", typed=True))

    def _conditioned(self, labels: int | Tensor | None, guidance: float, n: int | None) -> Denoiser:
        if isinstance(labels, Tensor) and n is not None and labels.numel() not in (1, n):
            raise UsageError(f"{labels.numel()} labels for {n} samples; give one for all, or one for each")
        if labels is None:
            if guidance != 1.0:
                raise UsageError(f"guidance {guidance} needs a label; give --label")
            return self.model
        given = self.model.given(labels)
        if guidance == 1.0:
            return given
        return Guided(given, self.model.given(self.model.classes), guidance)

    def sample(
        self,
        n: int,
        solver: str | Solver = "ode",
        *,
        seed: int = 0,
        start: int = 0,
        labels: int | Tensor | None = None,
        guidance: float = 1.0,
        denoise: bool = True,
        brownian: bool = False,
        path: str | SDE | None = None,
        batch: int = 256,
        watch: Watch | None = None,
        record: bool = False,
    ) -> Samples:
        """Draw samples ``start`` to ``start + n - 1`` of ``seed``, in data units.

        Args:
            n: Number of samples.
            solver: A name in :data:`scoresde.tables.SOLVERS`, or a solver.
            seed, start: Addresses of the samples: sample i is the same in every call.
            labels: A class for all, or int64 ``(n,)``.
            guidance: Scale of classifier-free guidance; 1 is the conditional model.
            denoise: End with a noise-free step (see :func:`scoresde.sample`).
            brownian: Let a stochastic solver follow one Brownian path for each sample, whatever its number of steps.
            path: Another path to sample on, at the model's noise levels (see :func:`scoresde.convert`).
            batch: Samples solved at once.
            watch: Called with a :class:`~scoresde.solvers.Step` after each step of each batch, in model units.
            record: Keep every step, for :meth:`frames`.

        Raises:
            UsageError: If an option cannot be used.
        """
        if n < 1:
            raise UsageError(f"the number of samples is {n}; take at least 1")
        model = self.conditioned(labels, guidance, n, path)
        built: Solver = build(solver, SOLVERS, "solver", typed=True)
        if brownian and not built.stochastic:
            raise UsageError(f"{type(built).__name__} draws no noise; a Brownian path is for stochastic solvers")
        solution = sample(
            model,
            built,
            self.info.shape,
            Noise.of(n, seed, start, self.device, brownian=brownian),
            denoise=denoise,
            batch=batch,
            dtype=self.dtype,
            watch=watch,
            record=record,
        )
        return Samples(self.info.quantise(self.info.transform.decode(solution.x.cpu())), solution)

    def frames(self, samples: Samples, count: int = 40) -> tuple[Tensor, Tensor]:
        """Recorded samples on their way, for an animation.

        Args:
            samples: Drawn with ``record=True``.
            count: Number of frames.

        Returns:
            Times, shape ``(count,)``, and states in data units, shape ``(count, n, *event)``; the last are the samples.
        """
        trajectory = samples.solution.trajectory
        if trajectory is None:
            raise UsageError("these samples have no trajectory; draw them with record=True")
        times, states = trajectory.frames(count)
        shown = self.info.transform.decode(states.flatten(0, 1)).reshape(states.shape)
        shown[-1] = samples.x
        return times, shown

    def log_likelihood(
        self,
        x: Tensor,
        *,
        labels: int | Tensor | None = None,
        guidance: float = 1.0,
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
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
        memory: int | None = None,
        check: bool = True,
    ) -> Scores:
        """Score data by the probability flow.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            labels: A class for all, or int64 ``(n,)``; the model must know classes.
            guidance: Scale of classifier-free guidance.
            dequantisation, draws, importance, redraw, t_min, check: See :func:`scoresde.scores.score`.
            method, divergence, probes, probe, rtol, atol, scheme, steps, batch, memory: See
                :func:`scoresde.log_likelihood`.
            seed, start: Addresses of the draws (dequantisation and probes).

        Raises:
            DataError: If the shape is not the model's.
        """
        self._check_shape(x)
        return score(
            self.conditioned(labels, guidance, len(x)), self.info, x, Noise.of(len(x), seed, start, self.device),
            self.dtype, dequantisation=dequantisation, draws=draws, importance=importance, method=method,
            divergence=divergence, probes=probes, probe=probe, redraw=redraw, rtol=rtol, atol=atol, scheme=scheme,
            steps=steps, t_min=t_min, batch=batch, memory=memory, check=check,
        )  # fmt: skip

    def elbo(
        self,
        x: Tensor,
        *,
        labels: int | Tensor | None = None,
        guidance: float = 1.0,
        dequantise: bool = True,
        strata: int = 64,
        draws: int = 1,
        t_min: float | None = None,
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
    ) -> Elbo:
        """The variational bound of the reverse SDE, or of the chain of a model with nodes, in data units.

        Data with levels are dequantised by the same uniform numbers as in the first draw of :meth:`log_likelihood`.
        A model with nodes is a chain, whose bound has one draw for each of its nodes (:func:`scoresde.vlb.bound`); its
        decoder is the reconstruction here.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            labels: A class for all, or int64 ``(n,)``.
            guidance: Scale of classifier-free guidance.
            dequantise: Whether data with levels are dequantised; the bound is one of a density if not.
            strata, draws, t_min: See :func:`scoresde.elbo`; without a meaning for a chain.
            batch: States evaluated at once.
            seed, start: Addresses of the draws.

        Raises:
            DataError: If the shape is not the model's.
        """
        self._check_shape(x)
        info, noise = self.info, Noise.of(len(x), seed, start, self.device)
        data, log_cell = x.cpu().double(), -info.transform.log_scale(info.shape)
        if dequantise and info.bin_width is not None:
            u = noise.uniform(info.shape, stream="dequantise", dtype=torch.float64).cpu()
            data, log_cell = info.dequantise(data, u), log_cell + info.dims * math.log(info.bin_width)
        elif info.bin_width is not None:
            data = data + info.bin_width / 2  # the middle of the cell
        encoded = info.transform.encode(data).to(device=self.device, dtype=self.dtype)
        model = self.conditioned(labels, guidance, len(x))
        if model.nodes is None:
            terms = elbo(model, encoded, strata=strata, draws=draws, t_min=t_min, noise=noise, batch=batch)
        else:
            pieces = []
            for rows in torch.split(torch.arange(len(x), device=self.device), batch):
                chain = bound(model.rows(rows), encoded[rows], noise.rows(rows))
                nan, count = torch.full_like(chain.prior, torch.nan), torch.full_like(rows, len(model.nodes))
                pieces.append(Elbo(chain.prior, chain.steps, chain.data, nan, count))
            terms = Elbo.join(pieces)
        # -log P = -log p(m) - log(b^D / prod scale), b = 1 for a density: part of the decoder
        return replace(terms, reconstruction=terms.reconstruction - log_cell)

    def _check_shape(self, x: Tensor) -> None:
        info = self.info
        if tuple(x.shape[1:]) != info.shape:
            raise DataError(
                f"samples of shape {tuple(x.shape[1:])}, but the model was trained on {info.name}, shape {info.shape}"
            )


def load(
    run: str | Path | None = None,
    *,
    sde: SDE | type[SDE] | str | None = None,
    network: nn.Module | None = None,
    parametrization: Parametrization | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Run:
    """Load a trained run; no code comes from the folder.

    Args:
        run: A run folder, a name under ``runs/``, or ``None`` for the newest.
        sde: The SDE, its class, or ``"module:Name"``, if it is in no table.
        network: The network, if it is in no table.
        parametrization: What its output means, if that is in no table.
        device, dtype: Where and in which precision to compute.

    Raises:
        CheckpointError: If the folder is none, damaged, or needs a class that was not given.
    """
    folder = find_run(run)
    given: SDE | type[SDE] | None = resolve(sde, SDES, "SDE", typed=True) if isinstance(sde, str) else sde
    config = TrainConfig.from_dict(read_config(folder))
    info = DataInfo.from_dict(read_json(folder / "data.json"))
    checkpoint = newest_checkpoint(folder)
    state = read_json(checkpoint / "state.json")
    try:
        model = build_model(config, info, build_sde(config, given), network, parametrization)
    except (UsageError, CheckpointError) as error:
        raise CheckpointError(f"{folder}: {error}", parameter=error.parameter, value=error.value) from None
    source = checkpoint / "ema.safetensors"
    load_weights(model.learned, read_tensors(source), source)
    model.to(device=device, dtype=dtype)
    return Run(model.eval().requires_grad_(False), info, config, int(state["step"]), folder)
