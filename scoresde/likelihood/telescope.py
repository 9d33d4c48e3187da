"""The levels of a mean likelihood, as :class:`~scoresde.Likelihood` objects, and the call that estimates the mean.

Each level of :mod:`scoresde.likelihood.mean` is a :class:`~scoresde.Likelihood` with other options. From the options
U that were asked for follow

    L   steps=12, scheme="adams"                L'  the same, with redraw=False
    T   rtol 100 times looser, at most 1e-2, and redraw=False                    U'  redraw=False.

The estimate is that of the mean of U: U' has its tolerance, and its expectation over the probes. If U is no tighter
than 1e-2, T and U' are the same, and there is no third level.

All random numbers of a picture have the address that they have in :meth:`scoresde.Run.log_likelihood`, so the levels
share the dequantisation of a picture, and its fixed probe. The order of the pictures is a random permutation by the
seed. Nothing depends on the batch, except by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..codec import Codec
from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.limits import BAR
from ..core.noise import Noise
from ..core.parts import Packed, Parts, pieces
from ..core.threads import rows_each
from ..model.estimate import Denoiser
from .adams import ADAMS
from .control import Ridge, features
from .data import States, is_density, piece
from .mean import OF, MeanLikelihood, Plan, Solved, Terms, telescoped
from .method import Likelihood

__all__ = ["LOOSE", "STEPS", "Progress", "check_options", "levels_of", "mean_likelihood"]

STEPS = 12  # of the base level
LOOSE = 100.0  # how much looser T is than U
LOOSEST = 1e-2


@dataclass(frozen=True)
class Progress:
    """The state of an estimate after a batch.

    Attributes:
        terms: The figure and its error so far.
        plan: The plan, or ``None`` during the pilot.
        cost: Number of forward passes so far.
    """

    terms: Terms
    plan: Plan | None
    cost: float


def check_options(likelihood: Likelihood, within: float, of: str) -> None:
    """Check that a mean likelihood can be estimated with these options.

    Raises:
        UsageError: If it cannot.
    """
    if of not in OF:
        raise UsageError(f"unknown mean {of!r}; choose from: {', '.join(OF)}", parameter="of")
    if not (within >= BAR.low and math.isfinite(within)):
        raise UsageError(
            f"within is {within:g}; it must be at least {BAR.low:g}, for example 0.005", parameter="within"
        )
    for name, usual, why in (
        ("importance", 1, "the logarithm of a mean is not a sum over levels"),
        ("draws", 1, "each picture is dequantised once, and more pictures are solved instead"),
        ("steps", None, "the levels choose their own steps"),
        ("method", "coupled", "the levels are solved by the 'coupled' method"),
        ("redraw", True, "the levels choose which probes are redrawn"),
    ):
        value = getattr(likelihood, name)
        if value != usual:
            raise UsageError(
                f"{name} is {value}, but a mean to a stated error cannot use this, because {why}; leave out {name}, or "
                "the stated error",
                parameter=name,
            )


def levels_of(how: Likelihood) -> dict[str, Likelihood]:
    """Return the options of each level for the resolved options ``how`` of U."""
    base = replace(how, scheme=ADAMS, steps=STEPS)
    assert how.atol is not None
    factor = max(1.0, min(LOOSE, LOOSEST / how.rtol))
    fixed = replace(how, redraw=False)
    rough = replace(fixed, rtol=factor * how.rtol, atol=factor * how.atol)
    return {"base": base, "fixed": replace(base, redraw=False), "rough": rough, "fine": fixed, "plain": how}


def mean_likelihood(
    likelihood: Likelihood,
    model: Denoiser,
    codec: Codec,
    x: Tensor,
    noise: Noise,
    within: float,
    *,
    of: str = "population",
    control: bool = True,
    train: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    batch: int = 256,
    memory: int | None = None,
    watch: Callable[[Progress], object] | None = None,
    parts: Callable[[str, Tensor], Parts | None] | None = None,
    condition: Condition | None = None,
    sizes: tuple[int, int, int] | None = None,
) -> MeanLikelihood:
    """Estimate the mean likelihood of data in data units to a stated standard error.

    Args:
        likelihood: The options of the likelihood whose mean is estimated.
        model, codec, x, noise, dtype, batch, memory, condition: See :func:`scoresde.likelihood.data.score`.
        within: The wanted standard error, in bits/dim or, for continuous data, in nats.
        of: The mean to estimate: that of the ``population`` from which the data were drawn, or of ``these`` data.
        control: Whether to use a regression on features of the data (:mod:`scoresde.likelihood.control`).
        train: Training rows in model units, for these features, shape ``(M, *event)``.
        watch: Function to call after each batch.
        parts: Function that returns the store for the batches of a level, given its name and the row of each picture,
            in the order in which they are solved.
        sizes: Fixed numbers of pictures for the three levels, for experiments.

    Raises:
        UsageError: If an option is not suitable.
    """
    check_options(likelihood, within, of)
    if not len(x):
        raise UsageError("the data set x contains no samples; pass the samples whose mean likelihood is wanted")
    dims = codec.dims(x, condition)
    how = likelihood.resolved(model, dims if isinstance(dims, int) else int(dims.max()), codec)
    levels, rows = levels_of(how), torch.arange(len(x), device=noise.indices.device)
    known = None if condition is None else condition.to("cpu")
    states = {name: States(level, model, codec, x.cpu(), noise, dtype, known) for name, level in levels.items()}
    batch = how.batch_within(memory, model.rows(rows[:1]), states["plain"](rows[:1], 0)[0], batch)
    batch = rows_each(len(x), batch)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(noise.seed % 2**63))
    kept: dict[str, Parts | None] = {}

    def solve(name: str, places: Tensor, found: Callable[[Tensor, Solved], object]) -> None:
        level = levels[name]
        if parts is not None and name not in kept:
            kept[name] = parts(name, order)
        store = kept.get(name)
        size = batch if store is None else store.batch(batch)

        def solved(index: Tensor) -> _Batch:
            scores = piece(level, states[name], size, order[index].to(rows.device))
            values = torch.where(scores.model.ok, scores.values.double(), torch.nan)
            cost = scores.model.nfe.double() + _backward(level, scores.dims) * scores.model.divergences.double()
            return _Batch(index, Solved(values.cpu(), cost.cpu()))

        ranges = [places[part] for part in torch.split(torch.arange(len(places)), size)]
        everywhere = torch.arange(len(x))
        pieces(
            ranges, solved, _Batch.pack, _Batch.unpack, store, everywhere,
            lambda solved: found(solved.places, solved.solved),
        )  # fmt: skip

    def told(terms: Terms, plan: Plan | None, cost: float) -> None:
        if watch is not None:
            watch(Progress(terms, plan, cost))

    ridge = _ridge(states["plain"], order, train, of) if control else None
    unit = "nats" if is_density(how, codec) else "bits/dim"
    found = telescoped(
        solve, len(x), within, unit=unit, of=of, control=ridge, tolerance=levels["rough"] != levels["fine"],
        sizes=sizes, watch=told,
    )  # fmt: skip
    return replace(found, how=how)


@dataclass(frozen=True)
class _Batch:
    """The results of one level for the pictures at ``places``."""

    places: Tensor
    solved: Solved

    def pack(self) -> Packed:
        return {"places": self.places, "values": self.solved.values, "cost": self.solved.cost}, {}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> _Batch:
        return cls(tensors["places"], Solved(tensors["values"], tensors["cost"]))


def _backward(how: Likelihood, dims: Tensor) -> Tensor | float:
    """Return the cost of the backward passes at a point with a divergence, in forward passes."""
    if how.divergence == "exact":
        return 2.0 * dims
    return 2.0 * how.probes if how.divergence == "hutchinson" else 0.0


def _ridge(states: States, order: Tensor, train: Tensor | None, of: str) -> Ridge:
    """Compute the features of the pictures in the given order."""

    def of_draw(draw: int) -> Tensor:
        rows = states.noise.indices.new_tensor(order.tolist())
        drawn = torch.cat([states(part, draw)[0].cpu() for part in torch.split(rows, 1024)])
        return features(drawn, None if train is None else train.cpu())

    return Ridge(of_draw(0), of_draw(1) if of == "these" and states.how.dequantisation != "none" else None)
