"""What training starts from: the resolved configuration, the model, the objective and the rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import Codec, named_again
from ..core.errors import DataError, UsageError
from ..core.parallel import ALONE, World
from ..data import DataInfo, Dataset
from ..data.batch import Rows
from ..data.rows import part
from ..metrics.rows import furthest
from ..model.network import ScoreModel
from ..nn.checkpointing import as_before, blocks_of, recompute
from ..nn.execution import Execution, lay_out
from ..objective.draw import PathDraw
from ..objective.loss import Denoising
from ..objective.times import Setting, Times, make_times
from ..objective.weighting import Weight, check_weight, make_weighting
from ..operators import Operator
from ..run.config import TrainConfig
from ..run.files import load_weights, read_config
from ..run.run import Run, described
from ..run.seen import kept_mask
from ..run.spec import ModelSpec
from ..sde.check import check_event
from ..sde.reach import explodes, sigma_for
from .averages import EMA
from .schedule import interval
from .state import TrainState, keyed_rng
from .stated import model_rows, stated
from .validation import evaluations

__all__ = ["averaged_model", "begun", "measured", "operator_of", "parts", "prepared"]


def prepared(
    config: TrainConfig,
    data: Dataset,
    network: nn.Module | None = None,
    start: Run | None = None,
    resumed: Path | None = None,
) -> tuple[TrainConfig, ScoreModel, ModelSpec]:
    """Return the resolved configuration, the model to train, and the specification of the model.

    Without ``start``, the model is untrained. Otherwise, it is a copy of the model of the run ``start``. If a run is
    resumed, the specification is read from its folder, ``resumed``.
    """
    if start is not None:
        config = _continued(config, start, network, data)
    given = config.batch
    if data.complete is not None:
        _check_incomplete(config, data)
    operator = operator_of(config, data.info, start, resumed)
    if start is not None:
        codec = start.codec
    elif resumed is not None and config.space_names:
        codec = _named_again(config, resumed)
    else:
        codec = stated(config, data, operator) if resumed is None else data.codec
    spread = _spread(config, data, codec, operator)
    config = config.fitted(lambda: sigma_for(furthest(_model_units(config, data, codec, operator)), spread))
    config = config.shaped(codec.model_shape(data.info.shape))
    config = config.resolved(data.info, data_std=spread, operator=operator)
    if resumed is not None:
        config = replace(config, batch=given)  # even if the number of rows has changed
    elif (count := _validating(config, data)) and not config.validate_every:
        config = replace(config, validate_every=interval(evaluations(count), config.steps, config.batch))
    if start is not None:
        assert isinstance(start.base, ScoreModel)
        spec = start.spec or config.spec(data.info, start.codec)
        spec = replace(spec, coupled=config.coupling != "independent")
        model = copy.deepcopy(start.base).requires_grad_(True)
        model.domain = replace(model.domain, has_score=not spec.coupled)
    else:
        if resumed is None:
            spec = config.spec(data.info, codec, network is None)
        else:
            spec = described(resumed, TrainConfig.from_dict(read_config(resumed)))[1]
            spec = replace(spec, codec=codec) if config.space_names else spec
        sde = None if isinstance(config.sde, str) else config.sde
        predict = None if isinstance(config.predict, str) else config.predict
        with keyed_rng(config.seed, -1, "cpu"):
            model = spec.build(sde, network, predict, typed=config.typed_names())
        spec = spec.resolved(model, config.typed_names())
    check_event(model.sde, spec.codec.model_shape(data.info.shape))
    config.check_network(model.network)
    _objective(config, model)  # rejects invalid names and combinations before a folder is created
    return config, model, spec


def _named_again(config: TrainConfig, resumed: Path) -> Codec:
    """Return the codec of a resumed run. Its spaces that are not built in must be named in ``config`` by the user."""
    codec = described(resumed, TrainConfig.from_dict(read_config(resumed)))[1].codec
    return named_again(codec, config.space, config.typed) if any(":" in name for name in config.space_names) else codec


def operator_of(config: TrainConfig, info: DataInfo, start: Run | None, resumed: Path | None) -> Operator | None:
    """Return the operator of the run ``start`` or, without ``start``, the operator in ``config.cond``, if any."""
    if start is not None:
        return start.operator
    # A resumed run reads the masks of its operator from its own folder.
    return config.operator_for(info, None if resumed is None else partial(kept_mask, resumed, config.sources.operator))


def _check_incomplete(config: TrainConfig, data: Dataset) -> None:
    """Reject missing values in the training samples unless ``config`` allows missing values."""
    assert data.complete is not None
    missing = f"{data.info.source}: values of the training samples are missing (count: {int((~data.complete).sum()):,})"
    if not config.sources.gaps:
        raise DataError(
            f"{missing}; fill in these values, leave out the affected samples, or train with cond='cells', which "
            "accepts missing values",
            parameter="cond",
            value="cells",
        )
    if config.augmentation is not None:
        raise UsageError(
            f"{missing}, so the samples cannot be augmented; leave out the augmentation",
            parameter="augment",
            value="none",
        )


def _continued(config: TrainConfig, start: Run, network: nn.Module | None, data: Dataset) -> TrainConfig:
    """Return ``config`` with the network, path, parametrisation and condition of the run ``start``."""
    if network is not None:
        raise UsageError("training that continues from a run uses the network of that run; do not pass a network")
    if data.info.shape != start.info.shape:
        raise DataError(
            f"the run was trained on samples of shape {start.info.shape}, but the data have shape "
            f"{data.info.shape}; use data of the same shape"
        )
    if start.config is None or not isinstance(start.base, ScoreModel):
        raise UsageError("training can continue only from a run with a training configuration and a score model")
    if config.augment not in ("none", start.config.augment):
        raise UsageError(
            f"the run was trained with augment={start.config.augment!r}, so its network has no inputs for "
            f"{config.augment!r}; use the augmentation of the run, or none",
            parameter="augment",
            value=start.config.augment,
        )
    return replace(
        config, sde=start.base.sde, sde_options={}, shift=1.0, predict=start.base.parametrization, predict_options={},
        cond=start.config.cond, space=start.config.space, learn_variance=start.config.learn_variance,
        preset=start.config.preset, network_options=start.config.network_options,
    )  # fmt: skip


@torch.no_grad()
def _objective(config: TrainConfig, model: ScoreModel) -> tuple[Weight, Times]:
    """Build the weighting and the time sampler, and check that they suit the path and the prediction."""
    low, high = model.domain.interval("train")
    weighting = make_weighting(config.weighting, config.weighting_options, config.typed)
    check_weight(weighting, model.sde, model.parametrization, low, high)
    setting = Setting(model.sde, low, high, model.parametrization, weighting)
    return weighting, make_times(config.t_sampler, config.t_sampler_options, setting, config.typed)


def begun(
    config: TrainConfig, model: ScoreModel, device: torch.device, dtype: torch.dtype, world: World = ALONE,
    shard: str = "ddp",
) -> tuple[TrainState, Denoising]:  # fmt: skip
    """Return the state before the first step and the objective. The model is moved to ``device`` and ``dtype``.

    All processes of ``world`` start with the weights and buffers of the first. If ``shard`` is ``fsdp``, the network is
    divided among them.
    """
    weighting, times = _objective(config, model)
    model.to(device=device, dtype=dtype)
    model.execution = Execution(config.precision, config.compile, config.channels_last == "yes")
    lay_out(model.network, model.execution.channels_last)
    world.align(model)
    if config.recompute:
        recompute(model.network)
    undivided = None
    if shard == "fsdp" and world.several:
        if model.sde.parameters():
            raise UsageError(
                "a network whose path is learned cannot be divided among processes; use shard='ddp'",
                parameter="shard",
                value="ddp",
            )
        if scalars := [name for name, value in model.network.named_parameters() if not value.ndim]:
            raise UsageError(
                f"the parameter {scalars[0]} of the network has no dimensions, so it cannot be divided among the "
                "processes; give it the shape (1,), or use shard='ddp'",
                parameter="shard",
                value="ddp",
            )
        undivided = copy.deepcopy(model).cpu()
        world.shard(model.network, list(blocks_of(model.network)))
    optimiser = _optimiser(config, model)
    draw = PathDraw(times, model.domain.nodes, config.coupling == "ot", config.cond_drop)
    average = EMA(model.learned, *config.profiles)
    return TrainState(model, optimiser, draw, average, undivided=undivided), Denoising(weighting)


def _optimiser(config: TrainConfig, model: ScoreModel) -> torch.optim.Optimizer:
    """Return Adam, or AdamW for a weight decay above 0 (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).

    Only the weights of the network decay, because zero has no special meaning for the parameters of a learned path.
    """
    if not config.weight_decay:
        return torch.optim.Adam(model.learned.parameters(), lr=config.lr, betas=(0.9, 0.999), fused=True)
    groups: list[dict[str, Any]] = [{"params": list(model.network.parameters()), "weight_decay": config.weight_decay}]
    if model.schedule:
        groups.append({"params": list(model.schedule.parameters()), "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)


def averaged_model(state: TrainState, weights: Mapping[str, Tensor] | None = None) -> ScoreModel:
    """Return a copy of the model for evaluation, with ``weights`` or, by default, the averaged weights.

    If each process has only a part of the averaged weights, ``weights`` must be passed.
    """
    assert isinstance(state.model, ScoreModel) and state.average is not None
    assert state.undivided is None or weights is not None
    averaged = copy.deepcopy(state.undivided or state.model).to(next(state.model.parameters()).device)
    load_weights(averaged.learned, state.average.state_dict() if weights is None else weights, Path("the best weights"))
    as_before(averaged)
    averaged.execution = replace(averaged.execution, compiled=False)  # a copy that is used only a few times
    return averaged.eval().requires_grad_(False)


def _validating(config: TrainConfig, data: Dataset) -> int:
    """Return the number of validation rows. Pairs of noise and samples are not rows of the data, so they have none."""
    return 0 if config.coupling == "reflow" or data.validates is None else len(data.validates)


def parts(data: Dataset, spec: ModelSpec, config: TrainConfig, operator: Operator | None) -> tuple[Rows, Rows | None]:
    """Return the training rows and the validation rows (``None`` if no rows are set aside)."""

    def rows(index: Tensor | None) -> Rows:
        x, y, known, complete = data.train, data.train_labels, config.told(data.train_given), data.complete
        y = y if spec.classes else None
        if index is not None:
            x, y = part(x, index), None if y is None else y[index]
            known = (
                None if known is None else known.rows(index.nonzero().flatten() if index.dtype == torch.bool else index)
            )
            complete = None if complete is None else complete[index]
        return Rows(x, spec.codec, y, spec.classes, known, data.info.known, complete, operator)

    if not _validating(config, data):
        return rows(None), None
    return rows(data.trains), rows(data.validates)


def _spread(config: TrainConfig, data: Dataset, codec: Codec, operator: Operator | None) -> float:
    """Return the root mean square of the first 4,096 training rows in model units."""
    x, support = model_rows(config, data, torch.arange(min(4096, len(data.train))), codec, operator)
    if support is not None:
        x = x[support.expand(x.shape)]
    if data.complete is not None:
        x = x[data.complete[:4096]]
    return float(x.double().square().mean().sqrt())


def _model_units(config: TrainConfig, data: Dataset, codec: Codec, operator: Operator | None) -> Tensor:
    """Return training rows in model units, evenly thinned if they have more than 2^25 elements."""
    most = max(16, 2**25 // data.info.dims)
    index = torch.linspace(0, len(data.train) - 1, min(most, len(data.train)), dtype=torch.float64)
    return model_rows(config, data, index.round().long(), codec, operator)[0]


def measured(
    config: TrainConfig, data: Dataset, codec: Codec, model: ScoreModel, operator: Operator | None
) -> DataInfo:
    """Return the description of the data, extended by ``spread`` and, if alpha is constant, by ``furthest``."""
    across = furthest(_model_units(config, data, codec, operator)) if explodes(model.sde) else 0.0
    return replace(data.info, spread=_spread(config, data, codec, operator) or None, furthest=across or None)
