"""Nothing is made on the wrong device or in the wrong precision: a walk over what takes tensors.

There is no second device here, so that one is pretended (:mod:`far`); and under another default dtype nothing may
change, because no number may take its precision from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from far import THERE, Far, TwoDevices, far
from torch import Tensor
from torch.utils import _pytree

from scoresde import (
    DDPM,
    EDM,
    EDMSDE,
    VDMSDE,
    VESDE,
    VPSDE,
    Codec,
    Condition,
    Eps,
    FlowMatching,
    GaussianMixture,
    Guided,
    Likelihood,
    Noise,
    ScoreModel,
    V,
    Velocity,
    convert,
    elbo,
    metrics,
)
from scoresde.codec import Affine, Composed, Levels
from scoresde.core import tables
from scoresde.core.registry import resolve
from scoresde.data.batch import Batches, Rows
from scoresde.data.toys import TOYS, sample_toy
from scoresde.likelihood.chain import bound
from scoresde.model.empirical import TrainingSet
from scoresde.nn import MLP, UNet
from scoresde.objective.draw import PathDraw
from scoresde.objective.loss import Denoising
from scoresde.objective.times import Setting
from scoresde.objective.weighting import Native
from scoresde.solvers import sample
from scoresde.train import state
from scoresde.train.averages import EMA
from scoresde.train.reflow import straightness
from scoresde.train.state import TrainState, steps

ROWS = 3
MODELS = {
    "vp": lambda: ScoreModel(MLP(dims=2, width=8, blocks=1), VPSDE(), Eps()),
    "ve": lambda: ScoreModel(MLP(dims=2, width=8, blocks=1), VESDE(), EDM()),
    "flow": lambda: ScoreModel(MLP(dims=2, width=8, blocks=1), FlowMatching(), Velocity()),
    "learned": lambda: ScoreModel(MLP(dims=2, width=8, blocks=1), VDMSDE(learn=True), V()),
    "chain": lambda: ScoreModel(MLP(dims=2, width=8, blocks=1, outputs=2), DDPM(40), Eps(), learn_variance=True),
    "classes": lambda: ScoreModel(MLP(dims=2, width=8, blocks=1, classes=2), EDMSDE(), EDM(), classes=2),
}


def model_of(name: str) -> ScoreModel:
    """A network that is not zero anywhere."""
    generator = torch.Generator().manual_seed(0)
    made = MODELS[name]()
    for value in made.network.parameters():
        value.data = 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float32)
    return made.eval().requires_grad_(False)


def data(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float32)


def trained(model: ScoreModel, place: Callable[[Any], Any], sampler: str, pair: bool = False) -> list[Tensor]:
    """Two steps of training: the weights and the average; rows are kept where data are, on the CPU."""
    model.train().requires_grad_(True)
    codec = Composed((Levels(0.0, 7.0, 8), Affine(torch.tensor(4.0).double(), torch.tensor(4.0).double())))
    labels = torch.tensor([0, 1] * 8) if model.classes else None
    rows = Rows((data(16) * 2 + 4).round().clamp(0, 7), codec, labels, model.classes)
    low, high = model.domain.interval("train")
    where = Setting(model.sde, low, high, model.parametrization, Native())
    times = resolve(sampler, tables.TIME_SAMPLERS)().over(where)
    draw = PathDraw(times, model.domain.nodes, pair, 0.3)
    average = EMA(model.learned)
    average.states = [{k: place(v) for k, v in state.items()} for state in average.states]
    training = TrainState(model, torch.optim.SGD(model.learned.parameters(), 1e-3), draw, average)
    for _ in steps(training, Denoising(Native()), Batches(rows, 6, 0), 2, seed=0, rate=lambda n: 1e-3, clip=1.0):
        pass
    return [*(p.detach() for p in model.parameters()), *average.state_dict().values()]


Act = Callable[[Callable[[Any], Any]], Any]


def solved(name: str, solver: str, **options: Any) -> Act:
    made = resolve(solver, tables.SOLVERS)()
    made = replace(made, **({"steps": 4} if hasattr(made, "steps") else {"rtol": 0.2}), **options)
    if solver == "original":
        made = replace(made, steps=50)  # as few as its betas allow

    def act(place: Callable[[Any], Any]) -> Any:
        known = model_of(name)
        place(known)
        noise = Noise(0, place(torch.arange(ROWS)))
        found = sample(known, made, (2,), noise, batch=2, record=True)
        return found.x, found.nfe, found.status

    return act


def scored(name: str, **options: Any) -> Act:
    def act(place: Callable[[Any], Any]) -> Any:
        found = Likelihood(**{"rtol": 1e-2, **options})(
            place(model_of(name)), place(data()), Noise(0, place(torch.arange(ROWS))), check=False
        )
        return found.log_prob, found.z, found.nfe, found.stderr_probes

    return act


def bounded(place: Callable[[Any], Any]) -> Any:
    found = elbo(place(model_of("vp")), place(data()), strata=4, draws=2, noise=Noise(0, place(torch.arange(ROWS))))
    return found.prior, found.steps, found.reconstruction, found.stderr


def chained(place: Callable[[Any], Any]) -> Any:
    found = bound(place(model_of("chain")), place(data()), noise=Noise(0, place(torch.arange(ROWS))))
    return found.prior, found.data, found.steps


def in_levels(place: Callable[[Any], Any]) -> Any:
    codec: Codec = Composed((Levels(0.0, 7.0, 8), Affine(torch.tensor(4.0).double(), torch.tensor(4.0).double())))
    x = place((data() * 2 + 4).round().clamp(0, 7))
    noise = Noise(0, place(torch.arange(ROWS)))
    how = Likelihood(steps=2, draws=2, importance=2)
    m = codec.to_model(x, noise=noise.uniform((2,), stream="dequantise", dtype=torch.float32))
    scores = how(place(model_of("vp")), x, noise, codec, check=False)
    return m, codec.to_data(m), codec.log_det(m), scores.log_prob, scores.bits_per_dim, scores.dims


def guided(place: Callable[[Any], Any]) -> Any:
    known = place(model_of("classes"))
    told = known.given(Condition(label=place(torch.tensor([0, 1, 0])), classes=2))
    model = convert(Guided(told, known, 2.0), VPSDE())
    x, t = place(data()), 0.5
    e, some = model(x, t), model.rows(place(torch.tensor([2, 0])))(x[:2], t)
    dropped = told.condition.dropped(place(torch.tensor([True, False, True])))
    return e.x0, e.score, e.velocity, some.eps, dropped.label


def exact(place: Callable[[Any], Any]) -> Any:
    means, stds = place(torch.tensor([[-1.0, 0.0], [1.0, 0.5]])), place(torch.tensor([0.3, 0.2]))
    mixture = GaussianMixture(FlowMatching(), means, stds)
    x, noise = place(data()), Noise(0, place(torch.arange(ROWS)), brownian=True)
    points = TrainingSet(VPSDE(), means)(x, 0.3)
    bent = straightness(mixture, noise, (2,), steps=3)
    moved = noise.between(0.5, 0.4, (2,), 0)
    return mixture(x, 0.4).x0, mixture.log_prob(x, 0.4), points.x0, moved, torch.tensor(bent, dtype=torch.float64)


def pictures(place: Callable[[Any], Any]) -> Any:
    net = UNet(1, channels=4, multipliers=(1, 2), blocks=1, attention=(1,), classes=3)
    generator = torch.Generator().manual_seed(0)
    for value in net.parameters():
        value.data = 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float32)
    model = place(ScoreModel(net, VPSDE(), EDM(), classes=3).eval().requires_grad_(False))
    x = place(torch.randn(ROWS, 1, 8, 8, generator=generator, dtype=torch.float32))
    return model(x, place(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))).x0, model.given(1)(x, 0.5).eps


def measured(place: Callable[[Any], Any]) -> Any:
    x, y = place(data(40)), place(data(48)[8:] + 0.5)
    found = [getattr(metrics, name)(x, y) for name in ("frechet", "kernel_distance", "mmd", "sliced")]
    near = metrics.neighbourhoods(x, y)
    return [torch.tensor(m.value, dtype=torch.float64) for m in (*found, near.precision, near.coverage)]


WALK: dict[str, Act] = {
    **{
        f"sample {solver}": solved("vp", solver)
        for solver in tables.SOLVERS
        if solver not in ("torchsde", "particles", "tuned")
    },
    **{f"sample {name} {s}": solved(name, s) for name in ("ve", "flow") for s in ("heun", "multistep", "em", "ode")},
    "sample chain ancestral": solved("chain", "ancestral", variance="learned"),
    **{f"sample learned {s}": solved("learned", s) for s in ("multistep", "em", "ode")},
    "likelihood learned": scored("learned", steps=2),
    "sample classes": solved("classes", "edm", churn=5.0),
    **{f"likelihood {d}": scored("vp", divergence=d, steps=2) for d in ("exact", "hutchinson", "difference")},
    "likelihood adaptive": scored("vp", divergence="hutchinson", rtol=0.3),
    "likelihood quadrature": scored("flow", method="quadrature", divergence="exact"),
    "likelihood probes": scored("ve", method="quadrature", divergence="hutchinson", probes=2),
    "likelihood fixed": scored("flow", steps=2, scheme="rk4"),
    "likelihood of levels": in_levels,
    "elbo": bounded,
    "bound of a chain": chained,
    "guided and converted": guided,
    "exact": exact,
    "network of pictures": pictures,
    "metrics": measured,
    **{f"train {s}": lambda place, s=s: trained(place(model_of("vp")), place, s) for s in tables.TIME_SAMPLERS},
    "train classes, paired": lambda place: trained(place(model_of("classes")), place, "lognormal", pair=True),
    "train learned": lambda place: trained(place(model_of("learned")), place, "low-discrepancy"),
    "toys": lambda place: [place(sample_toy(name, 20, 0)) for name in TOYS],
    "train chain": lambda place: trained(place(model_of("chain")), place, "low-discrepancy"),
}

# By names of the table whose class, with such steps as these, is walked by another name.
AGAIN = {f"sample {name}" for name in (
    "euler", "rk4", "dpm++2m", "dpm++3m", "deis", "dpm2s", "dpm3s", "dpm++2s", "dpm++3s", "sde-dpm",
    "reverse-diffusion",
)}  # fmt: skip
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in AGAIN else name for name in WALK]


def here(x: Any) -> Any:
    return x


def leaves(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_made_on_the_wrong_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "keyed_rng", lambda *_: contextlib.nullcontext())  # there is no generator there
    with Far():
        found = list(leaves(WALK[name](far)))
        assert found and all(x.device == THERE for x in found if x.ndim)


@contextlib.contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_precision_changes_nothing(name: str) -> None:
    one = list(leaves(WALK[name](here)))
    with default(torch.float64):
        other = list(leaves(WALK[name](here)))
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(-9.0), b.nan_to_num(-9.0))


def test_the_pretended_device_is_one() -> None:
    with Far():
        x = far(torch.ones(2))
        assert (x + 1).device == THERE and torch.zeros(2, device=x.device).device == THERE == x[0].device
        assert torch.zeros(2).device.type == x.cpu().device.type == "cpu" and x.new_zeros(3).device == THERE
        assert (x * torch.tensor(2.0)).device == THERE and x[torch.tensor([1])].device == THERE
        for meet in (lambda: x + torch.ones(2), lambda: torch.cat([x, torch.ones(1)]), lambda: torch.ones(2) * x):
            with pytest.raises(TwoDevices):
                meet()
        assert (x + torch.ones(2).to(x.device)).tolist() == [2, 2]
