"""Sampling and likelihoods with a trained model, in the units of its data.

A :class:`Run` combines a model with the units, levels and classes of its data. The condition, the guidance scale and
the path are bound to a run before it is used, as in

    run.given("cat").guided(2.0).on("flow").sample(16)
    run.measured("pool:2", low, noise=5.0).sample(16, "ancestral")

Each of these methods returns a new run. Whatever the order of the calls, the settings are applied in the order given,
guided, steered, limited, measured, on, near. :func:`load` loads a run from its folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..codec import Space, named_again
from ..core.errors import CheckpointError, DataError, UsageError
from ..core.files import read_object, read_tensors
from ..core.registry import READ, name_of, resolve
from ..core.tables import NETWORKS, OPERATORS, PARAMETRIZATIONS, SDES
from ..data import DataInfo
from ..data.dataset import old_codec
from ..model.parametrization import Parametrization
from ..operators import OneOf, Operator, parse
from ..sde.base import SDE
from .bound import reach
from .bounding import Bounding
from .config import TrainConfig
from .files import checkpoint_at, chosen_checkpoint, find_run, load_weights, read_config
from .identity import outline
from .sampling import Samples, warn_of_prior
from .seen import kept_mask
from .spec import ModelSpec

__all__ = ["Run", "Samples", "described", "load", "outline", "reach", "warn_of_prior"]


class Run(Bounding):
    """A model with the units of its data and the settings that are bound to it.

    Args:
        base: The model as it was trained, or any other denoiser.
        codec: The map from data units to model units.
        info: The description of the data.
        config: The configuration of the training run, or ``None`` for a model that was not trained by this package.
        spec: The specification from which the model can be rebuilt, or ``None`` if it is unknown.
        step: Number of training steps completed.
        folder: The run folder, or ``None``.
        device, dtype: Device and precision of the solver states. The defaults are the device and precision of the
            weights.
        condition: The condition on the samples, bound by :meth:`given`.
        scale: The guidance scale, bound by :meth:`guided`.
        against: The model to move away from, bound by :meth:`guided`, or ``None`` for the model without a condition.
        interval: The noise levels at which the model is guided, bound by :meth:`guided`.
        potential: The function whose gradient steers the samples, bound by :meth:`steered`, or ``None``.
        strength: The factor of this gradient, bound by :meth:`steered`.
        rescale: The weight of the estimate with the contrast of the unguided model, bound by :meth:`limited`.
        threshold: The quantile of the estimate that is limited to the range of the data, bound by :meth:`limited`, or
            ``None``.
        path: The path on which to sample, bound by :meth:`on`, or ``None`` for the model's own path.
        changed_data: Whether to accept the run's data even if they have changed. If false, missing rows or different
            data raise an error.
        told: Whether to suppress the warning about a prior that does not match the path.
        operator: The operator in ``cond``, set up for these data, or ``None``. Its measurements are part of the
            model's condition.
        seen: The measurements that the samples must agree with, bound by :meth:`given`.
        measurement: The measurements that a rule uses, bound by :meth:`measured`.
        rule: How measurements change the estimates of a model that was not trained with them, bound by
            :meth:`measured`, or ``None``.
        noise: The standard deviation of the noise of the measurements, bound by :meth:`measured`.
        begin: The data from which sampling starts, in the units of the data's own codec, ``(n, *event)``, bound by
            :meth:`near`, or ``None``.
        at: The amount of noise that is added to these data, bound by :meth:`near`.
    """


def load(
    run: str | Path | None = None,
    *,
    sde: SDE | type[SDE] | str | None = None,
    network: nn.Module | Callable[..., nn.Module] | str | None = None,
    parametrization: Parametrization | Callable[..., Parametrization] | str | None = None,
    operator: Operator | type[Operator] | str | None = None,
    space: Space | type[Space] | str | None = None,
    step: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: str = "auto",
    compile: bool = False,
    channels_last: str = "auto",
    changed_data: bool = False,
    edited: bool = False,
) -> Run:
    """Load a trained run. No code is loaded from the folder.

    Args:
        run: A run folder, a name under ``runs/``, or ``None`` for the newest run.
        sde: The SDE of the run, its class, or ``"module:Name"``. Required if the SDE is not built in.
        network: The network of the run, its class, or ``"module:Name"``. Required if the network is not built in.
        parametrization: The parametrisation of the run, its class, or ``"module:Name"``. Required if the
            parametrisation is not built in.
        operator: The operator in the run's ``cond``, its class, or ``"module:Name"``. Required if the operator
            is not built in.
        space: The space of the run, its class, or ``"module:Name"``. Required if the space is not built in.
        step: The training step of the checkpoint to load (default: the best checkpoint if training selected it, and
            otherwise the newest).
        device, dtype: Device and precision of the computation.
        precision: How the network is computed: ``float32`` (or rather the precision of the weights), ``bf16``, or
            ``auto`` (``float32`` on every device, so that results do not depend on the device).
        compile: Whether to compile the network by ``torch.compile``.
        channels_last: Whether the channels of a pixel are neighbours in memory: ``yes``, ``no``, or ``auto`` (as when
            the run was trained).
        changed_data: See :class:`Run`.
        edited: Whether to accept, with a warning, files of the run that were changed after they were written.

    Raises:
        CheckpointError: If the folder is not a run folder, is damaged, or requires a class that was not passed.
    """
    folder = find_run(run, edited=edited)

    given: list[Any] = [sde, network, parametrization]
    for i, (table, what) in enumerate(((SDES, "SDE"), (NETWORKS, "network"), (PARAMETRIZATIONS, "prediction"))):
        if isinstance(given[i], str):
            given[i] = resolve(given[i], table, what, typed=True)
    config = TrainConfig.from_dict(read_config(folder))
    info, spec = described(folder, config)
    checkpoint = (
        chosen_checkpoint(folder, edited=edited) if step is None else checkpoint_at(folder, step, edited=edited)
    )
    state = read_object(checkpoint / "state.json")
    try:
        spec = replace(spec, codec=named_again(spec.codec, space))
        model = spec.build(*given)
    except (UsageError, CheckpointError) as error:
        raise CheckpointError(f"{folder}: {error}", parameter=error.parameter, value=error.value) from None
    source = checkpoint / "ema.safetensors"
    load_weights(model.learned, read_tensors(source), source)
    model.to(device=device, dtype=dtype)
    model.eval().requires_grad_(False)
    made = _operator(folder, config, info, operator)
    loaded = Run(
        model, spec.codec, info, config, spec, int(state["step"]), folder, changed_data=changed_data, operator=made
    )
    layout = config.channels_last if channels_last == "auto" else channels_last
    return loaded.executed(precision, compile, layout)


def _operator(
    folder: Path, config: TrainConfig, info: DataInfo, own: Operator | type[Operator] | str | None
) -> Operator | None:
    """Return the operator of a run, with ``own`` as the part that is not built in."""
    asked, kept = config.sources.operator, partial(kept_mask, folder, config.sources.operator)
    if own is None:
        return config.operator_for(info, kept)
    name = own if isinstance(own, str) else name_of(own, OPERATORS)
    parts = [asked] if asked.startswith("mask:") else asked.split("/")
    if name not in parts or name in OPERATORS:
        trained = f"with the operator {asked}" if asked else "without an operator"
        raise UsageError(
            f"{folder} was trained {trained}, so it cannot be loaded with the operator {name}"
            + ("; leave out the operator" if all(part.partition(":")[0] in OPERATORS for part in parts) else ""),
            parameter="operator",
        )
    if isinstance(own, str):
        return replace(config, typed=(own,)).operator_for(info, kept)
    own = own() if isinstance(own, type) else own
    choices = tuple(own if part == name else parse(part, typed=READ, read_mask=kept) for part in parts)
    whole = choices[0] if len(choices) == 1 else OneOf(choices)
    return whole.on(info.shape, info.low, info.high)


def described(folder: Path, config: TrainConfig) -> tuple[DataInfo, ModelSpec]:
    """Read the descriptions of a run's data and of its model.

    A run in format 1 has no ``model.json``. Its codec is an affine map stored in ``data.json``, and its configuration
    specifies the model.

    Raises:
        CheckpointError: If the files are missing or damaged, or contradict each other.
    """
    stored = read_object(folder / "data.json")
    try:
        info = DataInfo.from_dict(stored)
        path = folder / "model.json"
        if not os.path.lexists(path) and "transform" not in stored:
            raise CheckpointError(f"{path} is missing, but the model cannot be rebuilt without it; restore the file")
        spec = ModelSpec.read(path) if os.path.lexists(path) else config.spec(info, old_codec(stored))
    except (DataError, UsageError) as error:
        raise CheckpointError(f"{folder}: {error}", parameter=error.parameter, value=error.value) from None
    config.check_spec(spec, folder)
    return info, spec
