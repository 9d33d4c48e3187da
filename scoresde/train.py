"""The training loop: read :func:`fit` from top to bottom.

Every draw of step n depends on ``(seed, n)`` alone: batch, times, noise, dequantisation, dropped labels and dropout.
A run that is stopped and resumed therefore continues as if it had not been, with no generator to save: bit for bit on
the same machine with the same number of threads.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import find_run, load_weights, make_run_folder, newest_checkpoint, read_config, save_checkpoint
from .config import TrainConfig, build_model, build_sde
from .coupling import Pairs, optimal_transport
from .data import Dataset
from .ema import EMA
from .errors import CheckpointError, NumericalError, Preempted, UsageError
from .files import FORMAT, append_line, read_json, read_lines, read_tensors, write_json, write_lines, write_tensors
from .grids import snap
from .loss import denoising_loss, end_terms
from .model import ScoreModel
from .progress import Progress
from .run import Run
from .solvers import RungeKutta
from .times import Setting, Times, make_times
from .weighting import Weight, check_weight, make_weighting

__all__ = ["fit"]


def fit(
    config: TrainConfig,
    *,
    data: Dataset | None = None,
    network: nn.Module | None = None,
    pairs: Pairs | None = None,
    start: Run | None = None,
    out: str | Path | None = None,
    save: bool = True,
    resume: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quiet: bool = False,
) -> Run:
    """Train a model by denoising score matching.

    Args:
        config: What to train; ``auto`` fields are resolved against the data.
        data: The data set, instead of ``config.data``.
        network: Your own network (see :class:`scoresde.ScoreModel`), instead of a preset.
        pairs: Data with the noise of each sample, to train on with the coupling ``reflow``; kept in the run folder.
        start: A run to go on from: its network with its weights, its path and its parametrisation, whatever ``config``
            says of these.
        out: The run folder; ``runs/DATA-SDE`` if left out.
        save: Write a run folder at all.
        resume: Continue the run in ``out`` (default: the newest) from its newest checkpoint.
        device, dtype: Where to train, and in which precision.
        quiet: Print no progress.

    Returns:
        The trained run, with averaged weights.

    Raises:
        NumericalError: If the loss is not finite, with the step and where to look.
        Preempted: After SIGTERM or SIGUSR1, with the checkpoint saved.

    Example:
        >>> from scoresde import TrainConfig, fit
        >>> run = fit(TrainConfig(data="8gaussians", steps=2, batch=8), save=False, quiet=True)
        >>> run.sample(4).x.shape
        torch.Size([4, 2])
    """
    data = config.load_data() if data is None else data
    info = data.info
    config, model = prepared(config, data, network, start)
    if not resume and (pairs is None) == (config.coupling == "reflow"):
        raise UsageError("the coupling reflow, and no other, trains on given pairs; scoresde reflow RUN makes them")
    weighting, times = _objective(config, model)
    model.to(device=device, dtype=dtype)
    ema = EMA(model.learned, config.ema)
    optimiser = torch.optim.Adam(model.learned.parameters(), lr=config.lr, betas=(0.9, 0.999))

    first, folder = 0, None
    if save:
        name = config.to_dict()["sde"].rpartition(":")[2].lower()
        folder = find_run(out) if resume else make_run_folder(out, f"{info.name}-{name}")
        first = _restore(folder, config, model, ema, optimiser, times) if resume else 0
        stored = {"format": FORMAT, "config": config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
        write_json(folder / "config.json", stored)
        write_json(folder / "data.json", info.to_dict())
        metrics = folder / "metrics.jsonl"  # without the lines of steps that are done again
        write_lines(metrics, (line for line in read_lines(metrics) if line["step"] <= first))
        if config.coupling == "reflow":
            pairs = _kept(folder / "pairs.safetensors", pairs)
    batches = Batches(data, config.batch, config.seed, pairs)

    every = max(1, config.steps // 5)
    log_every = max(1, config.steps // 200)
    average, began = 0.0, time.monotonic()
    saved = began
    model.train()
    with Progress(config.steps, "train", quiet=quiet, initial=first) as progress, _Interrupts() as interrupts:
        for step in range(first, config.steps):
            generator = _generator(config.seed, step)
            x0, eps, labels = batches.pair(step, generator, dtype)
            drawn, importance = times.draw(len(x0), generator)
            t = snap(drawn, model.domain.nodes).to(device)
            if eps is None:
                eps = torch.randn(x0.shape, generator=generator, dtype=dtype)
            if config.coupling == "ot":
                eps = optimal_transport(x0, eps, labels if model.classes else None)
            if labels is not None:
                dropped = torch.rand(len(labels), generator=generator) < config.cond_drop
                labels = torch.where(dropped, model.classes, labels).to(device)

            for group in optimiser.param_groups:
                group["lr"] = config.lr * _schedule(config, step)
            with _keyed_rng(config.seed, step, device):
                cond = labels if model.classes else None
                losses = denoising_loss(model, x0.to(device), t, eps.to(device), cond, weighting)
            loss = (importance.to(losses) * losses).mean()
            if model.sde.parameters():
                loss = loss + end_terms(model, x0.to(device)).mean()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            norm = nn.utils.clip_grad_norm_(model.learned.parameters(), config.clip)
            value = float(loss.detach())
            if not (math.isfinite(value) and bool(torch.isfinite(norm))):
                raise NumericalError(_diagnosis(step + 1, losses.detach(), t, float(norm), config.lr, folder))
            optimiser.step()
            times.update(drawn, losses.detach())
            ema.update(model.learned)

            # Over the last tenth or so of the steps at first, as in EMA: a short run should not show its start.
            keep = min(0.98, (step - first) / (step - first + 9))
            average = keep * average + (1 - keep) * value
            progress.update(1, {"loss": average})
            done = step + 1
            if folder is not None:
                if done % log_every == 0 or done == config.steps:
                    line = {"step": done, "loss": value, "lr": optimiser.param_groups[0]["lr"]}
                    line |= {"grad_norm": float(norm), "seconds": round(time.monotonic() - began, 2)}
                    append_line(folder / "metrics.jsonl", line)
                due = done % every == 0 or done == config.steps
                if due or interrupts.signal is not None or time.monotonic() - saved > 60 * config.save_minutes:
                    _save(folder, done, model, ema, optimiser, times)
                    saved = time.monotonic()
                if due:
                    _sample_sheet(folder / "samples", Run(_averaged(model, ema), info, config, done))
            if interrupts.signal is not None and done < config.steps:
                where = f"; resume with: scoresde train --resume {folder}" if folder else ""
                if interrupts.signal == signal.SIGINT:
                    progress.note(f"stopped after step {done}{where}")
                    raise KeyboardInterrupt
                kept = "checkpoint saved" if folder else "nothing was saved"
                raise Preempted(f"{signal.Signals(interrupts.signal).name} after step {done}: {kept}{where}")
    if folder is not None:
        _loss_figure(folder)
    return Run(_averaged(model, ema), info, config, config.steps, folder)


def prepared(
    config: TrainConfig, data: Dataset, network: nn.Module | None = None, start: Run | None = None
) -> tuple[TrainConfig, ScoreModel]:
    """The resolved configuration and the model to train, untrained or that of ``start``."""
    if start is not None:
        config = _continued(config, start)
    config = config.resolved(data.info, data_std=_spread(data))
    if start is not None:
        assert isinstance(start.base, ScoreModel)
        model = copy.deepcopy(start.base).requires_grad_(True)
        model.domain = replace(model.domain, has_score=config.coupling == "independent")
    else:
        with _keyed_rng(config.seed, -1, "cpu"):
            model = build_model(config, data.info, build_sde(config), network)
    _objective(config, model)  # wrong names and pairs are refused here, before there is a folder
    return config, model


def _continued(config: TrainConfig, start: Run) -> TrainConfig:
    """The budget of ``config`` with the network, path and parametrisation of a run."""
    if start.config is None or not isinstance(start.base, ScoreModel):
        raise UsageError("training goes on from a run that was trained here; this one says nothing of its training")
    return replace(
        config, sde=start.base.sde, sde_options={}, shift=1.0, predict=start.base.parametrization, predict_options={},
        cond=start.config.cond, learn_variance=start.config.learn_variance, preset=start.config.preset,
        network_options=start.config.network_options,
    )  # fmt: skip


@torch.no_grad()
def _objective(config: TrainConfig, model: ScoreModel) -> tuple[Weight, Times]:
    """The weighting and the time sampler at work, checked against the path, the prediction and each other."""
    low, high = model.domain.interval("train")
    weighting = make_weighting(config.weighting, config.weighting_options, config.typed)
    check_weight(weighting, model.sde, model.parametrization, low, high)
    setting = Setting(model.sde, low, high, model.parametrization, weighting)
    return weighting, make_times(config.t_sampler, config.t_sampler_options, setting, config.typed)


class Batches:
    """Batch n of a seed: each pass over the data, or over the pairs, in an order of its own."""

    def __init__(self, data: Dataset, size: int, seed: int, pairs: Pairs | None = None) -> None:
        self.data, self.size, self.seed, self.pairs = data, size, seed, pairs
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def pair(
        self, step: int, generator: torch.Generator, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Data in model units, ``(size, *event)``, the noise it is paired with, if any, and its labels, if any."""
        if self.pairs is not None:
            rows, labels = self.index(step, len(self.pairs.x0)), self.pairs.labels
            x0, eps = (v[rows].to(dtype) for v in (self.pairs.x0, self.pairs.eps))
            return x0, eps, None if labels is None else labels[rows]
        (x, labels), info = self.at(step), self.data.info
        x0 = info.transform.encode(info.dequantise(x, torch.rand(x.shape, generator=generator))).to(dtype)
        return x0, None, labels

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Rows ``(size, *event)`` in data units and their labels, int64 ``(size,)`` or ``None``."""
        index, labels = self.index(step, len(self.data.train)), self.data.train_labels
        return self.data.train[index], None if labels is None else labels[index]

    def index(self, step: int, count: int) -> Tensor:
        """Which of ``count`` rows, int64 ``(size,)``."""
        start, stop = step * self.size, (step + 1) * self.size
        parts = []
        while start < stop:  # a batch may span two passes
            epoch, offset = divmod(start, count)
            parts.append(self._permutation(epoch, count)[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int, count: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(count, generator=_generator(self.seed, epoch, "epoch"))
        return self._order


_STREAMS = {"step": 0, "epoch": 1, "dropout": 2}


def _generator(seed: int, n: int, stream: str = "step") -> torch.Generator:
    """The generator of draw ``n``: a hash (the finaliser of splitmix64) of seed, n and purpose."""
    key = (seed * 0x9E3779B97F4A7C15 + (n + 2) * 0xBF58476D1CE4E5B9 + _STREAMS[stream]) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = (key ^ (key >> shift)) * factor % 2**64
    return torch.Generator().manual_seed((key ^ (key >> 31)) % 2**63)


@contextmanager
def _keyed_rng(seed: int, n: int, device: torch.device | str) -> Iterator[None]:
    """Give dropout and initial weights, which know only torch's global generator, the state of draw ``n``."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_generator(seed, n, "dropout").initial_seed())
        yield


def _schedule(config: TrainConfig, step: int) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine to 0 at the last step (or constant)."""
    warm = min(1.0, (step + 1) / config.warmup)
    if config.decay == "none":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _spread(data: Dataset) -> float:
    """Root mean square of the training data in model units (on up to 4,096 rows)."""
    x = data.train[:4096]
    x = data.info.transform.encode(data.info.dequantise(x, torch.full(x.shape, 0.5)))
    return float(x.double().square().mean().sqrt())


def _averaged(model: ScoreModel, ema: EMA) -> ScoreModel:
    """A copy of the model with averaged weights, for evaluation."""
    averaged = copy.deepcopy(model)
    averaged.learned.load_state_dict(ema.state_dict())
    return averaged.eval().requires_grad_(False)


def _diagnosis(step: int, losses: Tensor, t: Tensor, norm: float, lr: float, folder: Path | None) -> str:
    worst = int(torch.nan_to_num(losses, nan=torch.inf).argmax())
    saved = folder is not None and any((folder / "checkpoints").glob("step-*"))
    kept = f" The last checkpoint in {folder} is from before." if saved else ""
    return (
        f"training stopped at step {step}: loss {float(losses.mean()):.4g}, gradient norm {norm:.4g}; the worst row is "
        f"at t = {float(t[worst]):.3g} with loss {float(losses[worst]):.4g}. Try a smaller --lr (now {lr:g}), a longer "
        f"warm-up (--set warmup=...), or look for extreme values in the data.{kept}"
    )


class _Interrupts:
    """Remember SIGINT, SIGTERM and SIGUSR1 until the step is done; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def _save(
    folder: Path, step: int, model: ScoreModel, ema: EMA, optimiser: torch.optim.Adam, times: Times
) -> None:
    moments = {
        f"{i}.{key}": value
        for i, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }
    tensors = {"model": model.learned.state_dict(), "ema": ema.state_dict(), "optim": moments}
    if learned := times.state():
        tensors["times"] = learned
    save_checkpoint(folder, step, tensors, {"ema_updates": ema.updates})


def _restore(
    folder: Path, config: TrainConfig, model: ScoreModel, ema: EMA, optimiser: torch.optim.Adam, times: Times
) -> int:
    """Load the newest whole checkpoint and return its step."""
    stored = TrainConfig.from_dict(read_config(folder)).to_dict()
    for name, value in config.to_dict().items():
        if name not in ("steps", "warmup") and _plain(value) != _plain(stored[name]):
            raise UsageError(f"{folder} has {name} = {stored[name]!r}, not {value!r}; a resumed run keeps its settings")
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    trained = read_json(folder / "config.json").get("dtype", dtype)
    if trained != dtype:
        raise UsageError(f"{folder} was trained in {trained}, not {dtype}; resume it with --dtype {trained}")
    checkpoint = newest_checkpoint(folder)
    state = read_json(checkpoint / "state.json")
    if config.steps < state["step"]:
        raise UsageError(f"{folder} has done {state['step']:,} steps; --steps {config.steps:,} cannot take any back")
    load_weights(model.learned, read_tensors(checkpoint / "model.safetensors"), checkpoint)
    ema.state = {k: v.to(ema.state[k].device) for k, v in read_tensors(checkpoint / "ema.safetensors").items()}
    ema.updates = int(state["ema_updates"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in read_tensors(checkpoint / "optim.safetensors").items():
        i, _, key = name.partition(".")
        moments.setdefault(int(i), {})[key] = value
    if not moments:
        raise CheckpointError(f"{checkpoint} has no optimiser state")
    if times.state():
        times.load(read_tensors(checkpoint / "times.safetensors"))
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(state["step"])


def _plain(value: Any) -> Any:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()} if isinstance(value, dict) else value


def _kept(path: Path, pairs: Pairs | None) -> Pairs:
    """Write the pairs of a new run to its folder, or read them again for one that is resumed."""
    if pairs is None:
        return Pairs(**read_tensors(path))
    write_tensors(path, {k: v for k, v in vars(pairs).items() if v is not None})
    return pairs


def _sample_sheet(folder: Path, run: Run) -> None:
    """A picture of a few samples, always of the same noise."""
    from .plot import samples_figure, save_figure, save_image_grid

    info, path = run.info, folder / f"step-{run.step:06d}.png"
    n = 36 if info.kind == "image" else 8 if info.kind == "signal" else 1024
    n = 9 if info.kind == "image" and info.dims > 4096 else n  # a sheet is wide enough, and a sample costs more
    nodes = run.model.domain.nodes
    x = run.sample(n, RungeKutta(steps=16 if nodes is None else min(16, len(nodes) - 1))).x
    if not bool(torch.isfinite(x).all()):
        warnings.warn(f"no picture at step {run.step}: some samples are not finite", stacklevel=2)
    elif info.kind == "image":
        save_image_grid(path, x.numpy(), info.low, info.high)
    else:
        save_figure(path, samples_figure(x.numpy(), info.kind, info.low, info.high))


def _loss_figure(folder: Path) -> None:
    import numpy as np

    from .plot import loss_curve, save_figure

    lines = read_lines(folder / "metrics.jsonl")
    if len(lines) > 1:
        steps, losses = (np.array([line[key] for line in lines], dtype=float) for key in ("step", "loss"))
        save_figure(folder / "plots" / "loss.png", loss_curve(steps, losses))
