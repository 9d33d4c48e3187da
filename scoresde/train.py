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

import numpy.typing as npt
import torch
from torch import Tensor, nn

from .checkpoint import find_run, load_weights, make_run_folder, newest_checkpoint, read_config, save_checkpoint
from .condition import Condition
from .config import TrainConfig, plain
from .coupling import Pairs, optimal_transport
from .data import Dataset
from .data.batch import Batch, Batches, Rows
from .ema import EMA
from .errors import CheckpointError, NumericalError, Preempted, UsageError
from .files import FORMAT, append_line, read_json, read_lines, read_tensors, write_json, write_lines, write_tensors
from .grids import snap
from .loss import denoising_loss, end_terms
from .model import ScoreModel
from .noise import keyed
from .progress import Progress
from .run import Run, described
from .solvers import RungeKutta
from .spec import ModelSpec
from .times import Setting, Times, make_times
from .weighting import Weight, check_weight, make_weighting

__all__ = ["fit"]


def fit(
    config: TrainConfig,
    *,
    data: Dataset | Tensor | npt.ArrayLike | None = None,
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
        data: The data, instead of ``config.data``: a data set, or an array that :meth:`scoresde.Dataset.of` takes.
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
    folder = find_run(out) if resume and save else None
    if data is None:
        data = config.load_data()
    else:
        if not isinstance(data, Dataset):
            data = Dataset.of(data, seed=config.seed, test_fraction=config.test_fraction)
        # What is not read from a file keeps the name it has, so that nobody reads another in its place.
        config = replace(config, data=data.info.source if folder is None else read_config(folder)["data"])
    config, model, spec = prepared(config, data, network, start, folder)
    info = data.info
    if not resume and (pairs is None) == (config.coupling == "reflow"):
        raise UsageError("the coupling reflow, and no other, trains on given pairs; scoresde reflow RUN makes them")
    weighting, times = _objective(config, model)
    model.to(device=device, dtype=dtype)
    ema = EMA(model.learned, config.ema)
    optimiser = torch.optim.Adam(model.learned.parameters(), lr=config.lr, betas=(0.9, 0.999))

    first = 0
    if save:
        if folder is not None:
            first = _restore(folder, config, model, ema, optimiser, times)
        else:
            folder = make_run_folder(out, f"{info.name}-{config.name('sde').rpartition(':')[2].lower()}")
        stored = {"format": FORMAT, "config": config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
        write_json(folder / "model.json", spec.to_dict())
        write_json(folder / "data.json", info.to_dict())
        write_json(folder / "config.json", stored)
        metrics = folder / "metrics.jsonl"  # without the lines of steps that are done again
        write_lines(metrics, (line for line in read_lines(metrics) if line["step"] <= first))
        if config.coupling == "reflow":
            pairs = _kept(folder / "pairs.safetensors", pairs, len(info.classes))
    rows = Rows(data.train, spec.codec, data.train_labels if model.classes else None, model.classes)
    batches = Batches(rows if pairs is None else pairs, config.batch, config.seed)

    every = max(1, config.steps // 5)
    log_every = max(1, config.steps // 200)
    average, began = 0.0, time.monotonic()
    saved = began
    model.train()
    with Progress(config.steps, "train", quiet=quiet, initial=first) as progress, _Interrupts() as interrupts:
        for step in range(first, config.steps):
            generator = keyed(config.seed, step)
            batch = batches.at(step, generator, dtype)
            drawn, importance = times.draw(len(batch), generator)
            t = snap(drawn, model.domain.nodes).to(device)
            batch = _paired(batch, config, generator).to(device)
            assert batch.eps is not None

            for group in optimiser.param_groups:
                group["lr"] = config.lr * _schedule(config, step)
            with _keyed_rng(config.seed, step, device):
                losses = denoising_loss(model, batch.x0, t, batch.eps, batch.condition, weighting)
            loss = (importance.to(losses) * losses).mean()
            if model.sde.parameters():
                loss = loss + end_terms(model, batch.x0).mean()
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
                    _sample_sheet(folder / "samples", Run(_averaged(model, ema), spec.codec, info, config, spec, done))
            if interrupts.signal is not None and done < config.steps:
                where = f"; resume with: scoresde train --resume {folder}" if folder else ""
                if interrupts.signal == signal.SIGINT:
                    progress.note(f"stopped after step {done}{where}")
                    raise KeyboardInterrupt
                kept = "checkpoint saved" if folder else "nothing was saved"
                raise Preempted(f"{signal.Signals(interrupts.signal).name} after step {done}: {kept}{where}")
    if folder is not None:
        _loss_figure(folder)
    return Run(_averaged(model, ema), spec.codec, info, config, spec, config.steps, folder)


def prepared(
    config: TrainConfig,
    data: Dataset,
    network: nn.Module | None = None,
    start: Run | None = None,
    resumed: Path | None = None,
) -> tuple[TrainConfig, ScoreModel, ModelSpec]:
    """The resolved configuration, the model to train, and what it is made of.

    The model is untrained, or that of ``start``; what a run that is resumed is made of says its folder, ``resumed``.
    """
    if start is not None:
        config = _continued(config, start)
    config = config.resolved(data.info, data_std=_spread(data))
    if start is not None:
        assert isinstance(start.base, ScoreModel)
        spec = start.spec or config.spec(data.info, start.codec)
        spec = replace(spec, coupled=config.coupling != "independent")
        model = copy.deepcopy(start.base).requires_grad_(True)
        model.domain = replace(model.domain, has_score=not spec.coupled)
    else:
        if resumed is None:
            spec = config.spec(data.info, data.codec, network is None)
        else:
            spec = described(resumed, TrainConfig.from_dict(read_config(resumed)))[1]
        sde = None if isinstance(config.sde, str) else config.sde
        predict = None if isinstance(config.predict, str) else config.predict
        with _keyed_rng(config.seed, -1, "cpu"):
            model = spec.build(sde, network, predict, typed=config.typed_names())
        spec = spec.resolved(model, config.typed_names())
    _objective(config, model)  # wrong names and pairs are refused here, before there is a folder
    return config, model, spec


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


@contextmanager
def _keyed_rng(seed: int, n: int, device: torch.device | str) -> Iterator[None]:
    """Give dropout and initial weights, which know only torch's global generator, the state of draw ``n``."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(keyed(seed, n, "dropout").initial_seed())
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
    x = data.codec.to_model(x, noise=torch.full(x.shape, 0.5))
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
        if name not in ("steps", "warmup") and plain(value) != plain(stored[name]):
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


def _kept(path: Path, pairs: Pairs | None, classes: int) -> Pairs:
    """Write the pairs of a new run to its folder, or read them again for one that is resumed."""
    if pairs is None:
        stored = read_tensors(path)
        known = Condition(label=stored["labels"], classes=classes) if "labels" in stored else None
        return Pairs(stored["x0"], stored["eps"], known)
    labels = None if pairs.condition is None else pairs.condition.label
    write_tensors(path, {"x0": pairs.x0, "eps": pairs.eps} | ({} if labels is None else {"labels": labels}))
    return pairs


def _paired(batch: Batch, config: TrainConfig, generator: torch.Generator) -> Batch:
    """The batch with the noise of each row, and with what some of them are not to know left out."""
    eps, known = batch.eps, batch.condition
    if eps is None:
        eps = torch.randn(batch.x0.shape, generator=generator, dtype=batch.x0.dtype)
    if config.coupling == "ot":
        eps = optimal_transport(batch.x0, eps, None if known is None else known.label)
    if known is not None:
        known = known.dropped(torch.rand(len(batch), generator=generator) < config.cond_drop)
    return replace(batch, eps=eps, condition=known)


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
