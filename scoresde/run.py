"""A trained run in use: samples and likelihoods in the units of the data.

A :class:`Run` joins a model with the units, levels and classes of its data. What is known of the samples, how strongly
it is followed and on which path the model is asked is *bound* first,

    run.given("cat").guided(2.0).on("flow").sample(16)

and each of these is a run again, so that sampling and likelihood take none of it. Bindings compose in one order, given,
guided, on, whatever the order of the calls. :func:`load` reads a run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy.typing as npt
import torch
from torch import Tensor, nn

from .build import build, closest, resolve
from .checkpoint import find_run, load_weights, newest_checkpoint, read_config
from .config import TrainConfig, build_model, build_sde
from .data import DataInfo, Dataset
from .errors import CheckpointError, DataError, UsageError
from .estimate import Denoiser, Parametrization
from .files import read_json, read_tensors
from .likelihood import Elbo, Likelihood, Scores, elbo
from .likelihood.elbo import whose
from .model import Guided, ScoreModel, convert
from .noise import Noise
from .sde import SDE
from .shapes import as_tensor, select
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


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A model with the units of its data, and what is bound to it.

    Args:
        base: The model as it was trained, or any other denoiser.
        info: What is known of the data.
        config: How it was trained, ``None`` for a model that was not trained here.
        step: Training steps done.
        folder: The run folder, or ``None``.
        device, dtype: Where and in which precision the states are; ``None`` for those of the weights.
        label: Classes bound by :meth:`given`, int64, shape ``(n,)`` or ``(1,)``.
        scale: Of guidance, bound by :meth:`guided`.
        path: Bound by :meth:`on`.
    """

    base: Denoiser
    info: DataInfo
    config: TrainConfig | None = None
    step: int = 0
    folder: Path | None = None
    device: torch.device = None  # type: ignore[assignment]  # filled in below
    dtype: torch.dtype = None  # type: ignore[assignment]
    label: Tensor | None = None
    scale: float = 1.0
    path: SDE | None = None

    def __post_init__(self) -> None:
        weights = next(self.base.parameters(), None) if isinstance(self.base, nn.Module) else None
        if self.device is None:
            object.__setattr__(self, "device", torch.device("cpu") if weights is None else weights.device)
        if self.dtype is None:
            object.__setattr__(self, "dtype", torch.float32 if weights is None else weights.dtype)

    def __repr__(self) -> str:
        sde = type(self.model.domain.sde).__name__
        shape = " x ".join(map(str, self.info.shape))
        bound = [] if self.label is None else [f"given {self._names()}"]
        bound += [] if self.scale == 1.0 else [f"guided {self.scale:g}"]
        bound += [] if self.path is None else [f"on {self.path!r}"]
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [
            f"Run {self.folder or '(not saved)'}: {type(self.base).__name__} on {sde}, step {self.step:,}",
            f"{self.info.kind}s of {self.info.name}, {shape}, {dtype} on {self.device}",
            *([", ".join(bound)] if bound else []),
        ]
        return "\n".join(lines)

    def _names(self) -> str:
        """The bound classes, in words."""
        assert self.label is not None
        found = [self.info.classes[i] if i < len(self.info.classes) else "none" for i in self.label[:5].tolist()]
        return ", ".join(found) + (f", ... ({len(self.label)} rows)" if len(self.label) > 5 else "")

    # ------------------------------------------------------------------------------------------------------- binding

    def given(self, label: int | str | Sequence[int | str] | Tensor | npt.ArrayLike | None) -> Run:
        """The run given a class, by number or name, or given one for each row; ``None`` takes it away again.

        Args:
            label: One for all, or ``(n,)`` for n rows; the number of classes stands for "not given".

        Raises:
            UsageError: If the model knows no classes, or not this one.
        """
        if label is None:
            return replace(self, label=None)
        if not isinstance(self.base, ScoreModel) or not self.base.classes:
            raise UsageError(
                f"{self.folder or 'this model'} was trained without labels, and label {label!r} needs cond='class' in "
                "training",
                parameter="cond",
                value="class",
            )
        if isinstance(label, str):
            label = [label]
        if isinstance(label, Sequence):
            label = [self._number(one) if isinstance(one, str) else one for one in label]
        return replace(self, label=self.base.given(as_tensor(label)).cond)

    def _number(self, name: str) -> int:
        names = list(self.info.classes)
        if name in names:
            return names.index(name)
        if name.isdigit() and int(name) < len(names):
            return int(name)
        raise UsageError(f"no class {name!r}; {closest(name, names)}", parameter="label")

    def guided(self, scale: float) -> Run:
        """The run guided away from the model without a condition: 1 is the conditional model, 0 the other one."""
        return replace(self, scale=float(scale))

    def on(self, path: str | SDE | None) -> Run:
        """The run on another path, at the model's noise levels (:func:`scoresde.convert`); ``None`` for its own.

        Args:
            path: A name in :data:`scoresde.tables.SDES`, ``module:Class``, or an SDE.
        """
        return replace(self, path=None if path is None else build(path, SDES, "SDE", typed=True))

    def rows(self, index: Tensor) -> Run:
        """The run for the rows ``index``, int64 ``(b,)``, of what is bound to it."""
        return self if self.label is None else replace(self, label=select(self.label, index.to(self.label.device)))

    @cached_property
    def model(self) -> Denoiser:
        """The model with all that is bound to it: what solvers and the likelihood are given."""
        model = self.base
        if self.label is not None:
            assert isinstance(model, ScoreModel)
            model = model.given(self.label)
        if self.scale != 1.0:
            if self.label is None:
                raise UsageError(
                    f"guidance {self.scale:g} needs a condition: run.given(label).guided({self.scale:g})",
                    parameter="label",
                )
            assert isinstance(self.base, ScoreModel)
            model = Guided(model, self.base.given(self.base.classes), self.scale)
        return model if self.path is None else convert(model, self.path)

    def _bound(self, count: int) -> Denoiser:
        """The model for ``count`` rows."""
        if self.label is not None and len(self.label) not in (1, count):
            raise UsageError(f"{len(self.label)} labels for {count} samples; give one for all, or one for each")
        return self.model

    # ---------------------------------------------------------------------------------------------------------- data

    def data(self, data: str | None = None) -> Dataset:
        """The data that the run was trained on, or of another name or path, split as the run splits.

        Raises:
            UsageError: If it was not trained here.
            DataError: If the data are gone, or unreadable.
        """
        if self.config is None:
            raise UsageError("this run was not trained here and does not say on which data; load them with load_data")
        return self.config.load_data(data)

    def to_model(self, x: Tensor | npt.ArrayLike, u: Tensor | None = None) -> Tensor:
        """Data ``(n, *event)`` in model units, on the run's device and in its precision.

        Args:
            x: In data units.
            u: Uniform numbers in [0, 1), the shape of ``x``, which spread levels over their cells.
        """
        x = as_tensor(x).cpu().double()
        spread = x if u is None else self.info.dequantise(x, u.cpu().double())
        return self.info.transform.encode(spread).to(device=self.device, dtype=self.dtype)

    def to_data(self, x: Tensor) -> Tensor:
        """States ``(n, *event)`` in data units, on the data's levels if it has any, on the CPU."""
        return self.info.quantise(self.info.transform.decode(x.cpu()))

    # --------------------------------------------------------------------------------------------------------- using

    def sample(
        self,
        n: int,
        solver: str | Solver = "ode",
        *,
        seed: int = 0,
        start: int = 0,
        denoise: bool = True,
        brownian: bool = False,
        batch: int = 256,
        watch: Watch | None = None,
        record: bool = False,
    ) -> Samples:
        """Draw samples ``start`` to ``start + n - 1`` of ``seed``, in data units.

        Args:
            n: Number of samples; as many as there are bound rows, if there is one for each.
            solver: A name in :data:`scoresde.tables.SOLVERS`, or a solver.
            seed, start: Addresses of the samples: sample i is the same in every call.
            denoise: End with a noise-free step (see :func:`scoresde.sample`).
            brownian: Let a stochastic solver follow one Brownian path for each sample, whatever its number of steps.
            batch: Samples solved at once.
            watch: Called with a :class:`~scoresde.solvers.Step` after each step of each batch, in model units.
            record: Keep every step, for :meth:`frames`.

        Raises:
            UsageError: If an option cannot be used.
        """
        if n < 1:
            raise UsageError(f"the number of samples is {n}; draw at least 1", parameter="n")
        built: Solver = build(solver, SOLVERS, "solver", typed=True)
        if brownian and not built.stochastic:
            raise UsageError(f"{type(built).__name__} draws no noise; a Brownian path is for stochastic solvers")
        solution = sample(
            self._bound(n),
            built,
            self.info.shape,
            Noise.of(n, seed, start, self.device, brownian=brownian),
            denoise=denoise,
            batch=batch,
            dtype=self.dtype,
            watch=watch,
            record=record,
        )
        return Samples(self.to_data(solution.x), solution)

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
        x: Tensor | npt.ArrayLike,
        likelihood: Likelihood | None = None,
        *,
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
        memory: int | None = None,
        check: bool = True,
        watch: Callable[[Scores], object] | None = None,
    ) -> Scores:
        """Score data by the probability flow.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            likelihood: How (default: ``Likelihood()``).
            seed, start: Addresses of the draws (dequantisation and probes).
            batch, memory, check, watch: See :class:`scoresde.Likelihood`.

        Raises:
            DataError: If the shape is not the model's.
        """
        x = self._checked(x)
        noise = Noise.of(len(x), seed, start, self.device)
        return (likelihood or Likelihood())(
            self._bound(len(x)), x, noise, self.info, batch=batch, memory=memory, check=check, watch=watch,
            dtype=self.dtype,
        )  # fmt: skip

    def elbo(
        self,
        x: Tensor | npt.ArrayLike,
        *,
        dequantise: bool = True,
        strata: int = 64,
        draws: int = 1,
        t_min: float | None = None,
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
    ) -> Elbo:
        """The variational bound of the reverse SDE, or of the chain of a model with nodes, in data units.

        It bounds the density of what the reverse SDE of this very model generates. For a guided model that is neither
        the density of its flow nor the tilted one; the result says whose it is.

        Data with levels are dequantised by the same uniform numbers as in the first draw of :meth:`log_likelihood`.
        A model with nodes is a chain, whose bound has one draw for each of its nodes (:func:`scoresde.vlb.bound`); its
        decoder is the reconstruction here.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            dequantise: Whether data with levels are dequantised; the bound is one of a density if not.
            strata, draws, t_min: See :func:`scoresde.elbo`; without a meaning for a chain.
            batch: States evaluated at once.
            seed, start: Addresses of the draws.

        Raises:
            DataError: If the shape is not the model's.
        """
        x = self._checked(x)
        info, noise = self.info, Noise.of(len(x), seed, start, self.device)
        log_cell, width = -info.transform.log_scale(info.shape), info.bin_width
        u = torch.full(x.shape, 0.5, dtype=torch.float64)  # the middle of the cell
        if dequantise and width is not None:
            u = noise.uniform(info.shape, stream="dequantise", dtype=torch.float64)
            log_cell += info.dims * math.log(width)
        encoded, model = self.to_model(x, u), self._bound(len(x))
        if model.domain.nodes is None:
            terms = elbo(model, encoded, strata=strata, draws=draws, t_min=t_min, noise=noise, batch=batch)
        else:
            pieces = []
            for rows in torch.split(torch.arange(len(x), device=self.device), batch):
                chain = bound(model.rows(rows), encoded[rows], noise.rows(rows))
                nan = torch.full_like(chain.prior, torch.nan)
                pieces.append(Elbo(chain.prior, chain.steps, chain.data, nan, chain.nfe, whose(model, "chain")))
            terms = Elbo.join(pieces)
        # -log P = -log p(m) - log(b^D / prod scale), b = 1 for a density: part of the decoder
        return replace(terms, reconstruction=terms.reconstruction - log_cell)

    def _checked(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Data as a tensor of the right shape, ``(n, *event)``."""
        x, info = as_tensor(x), self.info
        if tuple(x.shape[1:]) != info.shape:
            raise DataError(
                f"samples of shape {tuple(x.shape[1:])}, but the model was trained on {info.name}, shape {info.shape}"
            )
        return x


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
