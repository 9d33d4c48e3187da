"""A run in use: samples with an address, labels that keep their row, likelihoods in the units of the data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import edit, older, unsigned
from torch import Tensor, nn

from scoresde import (
    SDE,
    VESDE,
    VPSDE,
    EulerMaruyama,
    GaussianMixture,
    Likelihood,
    Noise,
    PredictorCorrector,
    ProbabilityFlow,
    Run,
    RungeKutta,
    TrainConfig,
    V,
    fit,
    load,
    load_data,
)
from scoresde.codec import Affine, as_affine
from scoresde.core.errors import CheckpointError, DataError, UsageError
from scoresde.data import DataInfo
from scoresde.likelihood.chain import bound
from scoresde.likelihood.data import join
from scoresde.ode.integrate import FAILED_LIMIT, OK
from scoresde.run.samples import write_samples
from scoresde.solvers import MultistepSDE

SOLVERS = [
    ProbabilityFlow(rtol=1e-2, atol=1e-2),
    RungeKutta(steps=3),
    EulerMaruyama(steps=4),
    PredictorCorrector(steps=3),
]


def shaken(run: Run) -> Run:
    """Weights of order one: after three steps of training a network still says next to nothing."""
    generator = torch.Generator().manual_seed(0)
    for p in run.model.parameters():
        p.add_(torch.randn(p.shape, generator=generator).to(p) / math.sqrt(max(p[0].numel() if p.ndim else 1, 1)))
    return run


@pytest.fixture(scope="module")
def moons(trained: Path) -> Run:
    return shaken(load(trained / "moons"))


@pytest.fixture(scope="module")
def classes(trained: Path) -> Run:
    return shaken(load(trained / "classes"))


# ----------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_sample_i_is_the_same_in_every_call(moons: Run, solver: object) -> None:
    # Float32: a matrix product may be summed in another order for another number of rows, hence the tolerance.
    whole = moons.sample(7, solver, seed=5)
    assert whole.x.shape == (7, 2) and whole.solution.ok.all()
    assert (torch.cdist(whole.x, whole.x) + torch.eye(7)).min() > 1e-3, "two samples are alike"
    for other, part in (
        (moons.sample(7, solver, seed=5, batch=3), slice(None)),
        (moons.sample(3, solver, seed=5, start=2), slice(2, 5)),
        (moons.sample(1, solver, seed=5, start=6), slice(6, 7)),
    ):
        torch.testing.assert_close(other.x, whole.x[part], rtol=1e-4, atol=1e-4)
        assert torch.equal(other.solution.nfe, whole.solution.nfe[part])
    assert not torch.allclose(moons.sample(7, solver, seed=6).x, whole.x, atol=1e-2)


def test_solvers_by_name(moons: Run) -> None:
    assert torch.equal(moons.sample(2, "heun").x, moons.sample(2, RungeKutta()).x)
    with pytest.raises(UsageError, match="did you mean 'heun'"):
        moons.sample(2, "huen")
    with pytest.raises(UsageError, match="n is 0; it must be"):
        moons.sample(0)


def test_samples_are_decoded(moons: Run) -> None:
    samples = moons.sample(5, RungeKutta(steps=3))
    t = as_affine(moons.codec, "moons")
    torch.testing.assert_close(samples.x, (samples.solution.x * t.scale + t.shift).float())
    assert (t.scale != 1).all()


def test_quantised_samples_are_on_levels(classes: Run) -> None:
    samples = classes.sample(4, RungeKutta(steps=2))
    assert samples.x.shape == (4, 1, 8, 8)
    assert set(samples.x.unique().tolist()) <= set(range(17)) and len(samples.x.unique()) > 2
    raw = classes.codec.continuous.to_data(samples.solution.x)
    inside = (raw > 0) & (raw < 17)
    assert inside.any() and torch.equal(samples.x[inside], raw[inside].floor())


def test_labels_keep_their_row(classes: Run) -> None:
    labels = torch.tensor([3, 0, 3, 9, 5])
    whole = classes.given(labels).sample(5, RungeKutta(steps=3), batch=2).solution.x
    for i, label in enumerate(labels.tolist()):
        alone = classes.given(label).sample(1, RungeKutta(steps=3), start=i).solution.x[0]
        other = classes.given(str((label + 1) % 10)).sample(1, RungeKutta(steps=3), start=i).solution.x[0]
        torch.testing.assert_close(whole[i], alone, rtol=1e-4, atol=1e-4)
        assert (whole[i] - other).abs().max() > 1e-2, "the label makes no difference"


def test_labels_keep_their_row_in_an_adaptive_solver(classes: Run) -> None:
    labels = torch.tensor([3, 0, 9, 5])
    solver = ProbabilityFlow(rtol=1e-2, atol=1e-2)
    whole = classes.given(labels.numpy()).sample(4, solver).solution
    named = classes.given(labels.numpy().astype(str)).condition
    assert named is not None and torch.equal(named.label, labels), "an array of names, as a data file has them"
    assert len(set(whole.nfe.tolist())) > 1, "no row finished before another: the test sees nothing"
    for i in range(4):
        alone = classes.given(labels).rows(torch.tensor([i])).sample(1, solver, start=i).solution
        torch.testing.assert_close(whole.x[i], alone.x[0], rtol=1e-3, atol=1e-3)


def test_guidance_is_the_affine_mixture(classes: Run) -> None:
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), 0.5
    cond, free = classes.given(3).model(x, t), classes.model(x, t)
    guided = classes.given(3).guided(2.5).model(x, t)
    assert torch.equal(classes.guided(2.5).given(3).model(x, t).x0, guided.x0)  # in either order
    assert guided.calls == 2 and cond.calls == 1
    torch.testing.assert_close(guided.x0, free.x0 + 2.5 * (cond.x0 - free.x0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classes.given(3).guided(1.0).model(x, t).x0, cond.x0)
    torch.testing.assert_close(classes.given(classes.base.classes).model(x, t).x0, free.x0)


def test_labels_that_cannot_be_right(classes: Run, moons: Run) -> None:
    for label in (11, -1):
        with pytest.raises(UsageError, match=rf"label {label} is not one of the 10 classes 0 to 9"):
            classes.given(label)
    with pytest.raises(UsageError, match="unknown class 'cat'; choose from: 0, 1"):
        classes.given("cat")
    with pytest.raises(UsageError, match="trained without labels"):
        moons.given(0)
    with pytest.raises(UsageError, match="requires a condition"):
        classes.guided(2.0).sample(1)
    for count in (3, 6):
        with pytest.raises(UsageError, match=f"condition has {count} rows for 5 samples"):
            classes.given(torch.arange(count)).sample(5, batch=2)
        with pytest.raises(UsageError, match=f"condition has {count} rows for 5 samples"):
            classes.given(range(count)).log_likelihood(torch.zeros(5, 1, 8, 8), Likelihood(rtol=1e-2))


# -------------------------------------------------------------------------------------------------------- likelihood


def exact_run(data: str, std: float) -> Run:
    """A run whose model is N(0, std^2) in model units."""
    known = load_data(data)
    mixture = GaussianMixture(VPSDE(), torch.zeros(1, *known.info.shape).double(), torch.tensor([std]).double())
    return Run(mixture, known.codec, known.info, dtype=torch.float64)


def normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


@pytest.fixture
def bytes_file(tmp_path: Path) -> str:
    """Images with 256 levels."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 3, 3), dtype=np.uint8))
    return str(tmp_path / "x.npy")


def test_bits_per_dim_of_256_levels(bytes_file: str) -> None:
    run = exact_run(bytes_file, 0.4)
    x = torch.arange(60, 195, 15, dtype=torch.uint8).reshape(1, 1, 3, 3).repeat(64, 1, 1, 1)
    scores = run.log_likelihood(x, Likelihood(rtol=1e-6, atol=1e-6))
    assert scores.unit == "bits/dim" and scores.bits_per_dim is not None and scores.log_prob.shape == (64,)
    # The formula, with the constant worked out by hand: 256 levels on [-1, 1), so log2(bin/scale) = log2(2/256) = -7.
    expected = -(scores.model.log_prob / 9 / math.log(2)) + 7
    torch.testing.assert_close(scores.bits_per_dim, expected.to(scores.bits_per_dim), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scores.log_prob, -scores.bits_per_dim * 9 * math.log(2), rtol=1e-9, atol=1e-9)
    # The truth: the probability that the model gives to each level's cell. A smooth density hardly varies in it.
    edges = torch.stack([x[0].double(), x[0].double() + 1]).sub(128).div(128).div(0.4)
    truth = -(normal_cdf(edges[1]) - normal_cdf(edges[0])).log2().mean()
    assert scores.mean() == pytest.approx(float(truth), abs=2e-3)
    assert scores.mean() > float(truth) - 3 * scores.stderr_mean(), "an upper bound in expectation"
    assert 0 < scores.stderr_mean() < 1e-2, "dequantisation varies from row to row"


def test_continuous_data_is_scored_in_its_own_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal([1000.0, -2.0], [50.0, 0.01], (200, 2)))
    run = exact_run(str(tmp_path / "x.npy"), 0.7)
    x = torch.tensor([[1000.0, -2.0], [1100.0, -1.99], [930.0, -2.02]])
    scores = run.log_likelihood(x, Likelihood(rtol=1e-6))
    assert scores.unit == "nats" and scores.bits_per_dim is None
    t = as_affine(run.codec, "the data")
    truth = torch.distributions.Normal(t.shift, 0.7 * t.scale).log_prob(x.double()).sum(1)
    torch.testing.assert_close(scores.log_prob, truth, rtol=0, atol=1e-3)
    assert scores.mean() == pytest.approx(float(scores.log_prob.mean()))


def test_log_density_does_not_depend_on_the_units_of_the_model(tmp_path: Path) -> None:
    # The same density in data units: model units twice as large, a model half as wide.
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 2)))
    run = exact_run(str(tmp_path / "x.npy"), 0.8)
    t = as_affine(run.codec, "the data")
    wide = Affine(t.shift, 2 * t.scale)
    mixture = GaussianMixture(VESDE(), torch.zeros(1, 2).double(), torch.tensor([0.4]).double())
    other = Run(mixture, wide, run.info, dtype=torch.float64)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        other.log_likelihood(x, Likelihood(rtol=1e-6)).log_prob,
        run.log_likelihood(x, Likelihood(rtol=1e-6)).log_prob,
        rtol=0,
        atol=2e-3,
    )


def test_scores_of_parts_join_to_the_scores_of_the_whole(bytes_file: str) -> None:
    run = exact_run(bytes_file, 0.5)
    x = load_data(bytes_file).train[:7]
    whole = run.log_likelihood(x, Likelihood(rtol=1e-3))
    parts = [run.log_likelihood(x[i : i + 3], Likelihood(rtol=1e-3), start=i) for i in (0, 3, 6)]
    joined = join(parts)
    assert joined.log_prob.shape == (7,) and joined.model.z.shape == (7, 1, 3, 3) and joined.unit == "bits/dim"
    torch.testing.assert_close(joined.log_prob, whole.log_prob)
    torch.testing.assert_close(joined.values, whole.values)
    assert joined.mean() == pytest.approx(whole.mean()) and joined.stderr_mean() == pytest.approx(whole.stderr_mean())
    shifted = run.log_likelihood(x[3:6], Likelihood(rtol=1e-3), start=0)
    assert not torch.allclose(shifted.log_prob, whole.log_prob[3:6]), "start addresses the dequantisation"


def test_the_bound_of_an_exact_model_is_its_probability(bytes_file: str) -> None:
    # Exact, so that flow, reverse SDE and data are one: the bound differs by the draws, the prior and t_min alone.
    run = exact_run(bytes_file, 0.4)
    x = torch.arange(60, 195, 15, dtype=torch.uint8).reshape(1, 1, 3, 3).repeat(16, 1, 1, 1)
    terms = run.elbo(x, draws=4, seed=3, start=2)
    u = Noise.of(16, 3, 2).uniform((1, 3, 3), dtype=torch.float64)
    density = torch.distributions.Normal(0.0, 0.4).log_prob((x + u - 128) / 128).flatten(1).sum(1)
    truth = density - 9 * math.log(128)  # a cell is 1/128 of a model unit
    off = terms.log_prob - truth
    expected = float(terms.stderr.square().mean().sqrt())
    assert abs(float(off.mean())) < 3 * expected / 4, (off, terms.stderr)
    assert 0.5 < float(off.std()) / expected < 2, "the stated error is the scatter"
    bare = run.elbo(x, draws=4, dequantise=False)
    known = torch.distributions.Normal(0.0, 0.4).log_prob((x.double() + 0.5 - 128) / 128).flatten(1).sum(1)
    assert abs(float((bare.log_prob - known + 9 * math.log(128)).mean())) < 3 * expected / 4


def test_the_bound_of_a_chain_is_the_sum_of_its_terms() -> None:
    config = TrainConfig(
        data="digits", sde="ddpm", sde_options={"steps": 40}, steps=2, batch=8, network_options={"channels": 4}
    )
    run = fit(config, save=False, quiet=True)
    x = load_data("digits").test[:3]
    terms = run.elbo(x, seed=5)
    u = Noise.of(3, 5).uniform((1, 8, 8), dtype=torch.float64)
    chain = bound(run.model, run.codec.continuous.to_model(x + u).float(), Noise.of(3, 5))
    torch.testing.assert_close(terms.prior, chain.prior)
    torch.testing.assert_close(terms.diffusion, chain.steps.sum(1))
    # levels 1 apart, model units of 8.5: -log P = -log p(m) - 64 log(1/8.5)
    torch.testing.assert_close(terms.reconstruction, chain.data + 64 * math.log(8.5))
    torch.testing.assert_close(-terms.log_prob, chain.total + 64 * math.log(8.5))
    torch.testing.assert_close(terms.steps, chain.steps)
    torch.testing.assert_close(run.elbo(x, seed=5, batch=2).log_prob, terms.log_prob)
    assert terms.nfe.tolist() == [40] * 3 and terms.stderr.isnan().all()


def test_failed_rows_are_left_out_of_the_mean(moons: Run) -> None:
    x = torch.zeros(3, 2)
    x[1] = 1e30  # whose square is beyond float32
    with pytest.warns(UserWarning, match="in column 0 range from 0 to 1e.30.*are both data sets in the same units"):
        scores = moons.log_likelihood(x, Likelihood(rtol=1e-2, atol=1e-2))
    assert scores.model.ok.tolist() == [True, False, True]
    assert math.isfinite(scores.mean()) and math.isfinite(scores.stderr_mean())
    assert "1 of 3" in scores.model.failures()[0]


def test_a_brownian_path_is_for_stochastic_solvers(moons: Run) -> None:
    with pytest.raises(UsageError, match="draws no noise"):
        moons.sample(2, "heun", brownian=True)
    a = moons.sample(8, MultistepSDE(steps=10), brownian=True)
    b = moons.sample(8, MultistepSDE(steps=20), brownian=True)
    c = moons.sample(8, MultistepSDE(steps=20))
    assert float((a.x - b.x).abs().median()) < float((a.x - c.x).abs().median())


def test_data_of_another_shape_is_refused(moons: Run, classes: Run) -> None:
    with pytest.raises(DataError, match=r"shape \(1, 8, 8\), but those of moons, .* have shape \(2,\)"):
        moons.log_likelihood(torch.zeros(3, 1, 8, 8))
    with pytest.raises(DataError, match=r"shape \(8, 8\), but"):
        classes.log_likelihood(torch.zeros(3, 8, 8))


def test_values_that_no_level_is_are_refused_in_python_too(classes: Run) -> None:
    x = load_data("digits").test[:3].float()
    fast = Likelihood(steps=1, divergence="hutchinson")
    for bad in (x + 0.25, x / 16, x + 1, -x, x.double() * 0.999):
        for score in (lambda x: classes.log_likelihood(x, fast, check=False), lambda x: classes.elbo(x, strata=1)):
            with pytest.raises(DataError, match=r"is not a level of digits, .* trained on \(17 levels"):
                score(bad)
    # as a density, they are as good as any
    assert classes.log_likelihood(x + 0.25, Likelihood(steps=1, dequantisation="none"), check=False).unit == "nats"
    assert classes.elbo(x + 0.25, strata=1, dequantise=False).log_prob.isfinite().all()
    assert classes.log_likelihood(x.numpy().astype("uint8"), fast, check=False).log_prob.isfinite().all()


def test_values_that_are_not_finite_are_refused(moons: Run) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.zeros(4, 2)
        x[2, 1] = x[3, 0] = bad
        for score in (moons.log_likelihood, moons.elbo):
            with pytest.raises(DataError, match=r"infinite values in 2 of 4 samples \(the first at index 2"):
                score(x)


# -------------------------------------------------------------------------------------------------------------- load


@dataclass(frozen=True)
class Own(SDE):
    """A path of the user's."""

    power: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def sigma(self, t: Tensor) -> Tensor:
        return t**self.power


def test_a_loaded_run_is_the_run_that_was_trained(tmp_path: Path) -> None:
    config = TrainConfig(data="8gaussians", steps=2, batch=8, network_options={"width": 8, "blocks": 1}, sde="ve")
    run = fit(config, out=tmp_path / "r", quiet=True)
    again = load(tmp_path / "r")
    assert again.config == run.config and again.info == run.info and again.step == run.step == 2
    assert again.model.domain.sde == VESDE() and not again.model.training
    assert not any(p.requires_grad for p in again.model.parameters())
    assert torch.equal(again.sample(3, RungeKutta(steps=2)).x, run.sample(3, RungeKutta(steps=2)).x)
    assert load(tmp_path / "r", dtype=torch.float64).sample(1, RungeKutta(steps=2)).solution.x.dtype == torch.float64


def test_own_sde(tmp_path: Path) -> None:
    config = TrainConfig(data="moons", steps=2, batch=8, network_options={"width": 8}, sde=Own(power=2.0))
    run = fit(config, out=tmp_path / "r", quiet=True)
    stored = json.loads((tmp_path / "r" / "config.json").read_text())["config"]
    assert stored["sde"].endswith(":Own") and stored["sde_options"] == {"power": 2.0}
    with pytest.raises(CheckpointError, match=r"refers to the SDE '.*:Own', which is not a built-in.*\(sde=\)"):
        load(tmp_path / "r")
    for given in (Own, Own(power=2.0)):
        again = load(tmp_path / "r", sde=given)
        assert again.model.domain.sde == Own(power=2.0)
        assert torch.equal(again.sample(3, RungeKutta(steps=2)).x, run.sample(3, RungeKutta(steps=2)).x)
    with pytest.raises(CheckpointError, match=r"trained with the '.*:Own' SDE, not with 'vp'"):
        load(tmp_path / "r", sde=VPSDE)


def test_another_sde_than_the_run_was_trained_with_is_refused(trained: Path) -> None:
    assert load(trained / "moons", sde=VPSDE).model.domain.sde == VPSDE()
    for wrong in (VESDE, VESDE(), Own):
        with pytest.raises(CheckpointError, match="trained with the 'vp' SDE, not"):
            load(trained / "moons", sde=wrong)


@dataclass(frozen=True)
class OwnV(V):
    """A parametrisation of the user's."""


class Net(nn.Module):
    """A network of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None) -> Tensor:
        return self.inner(x) + c[:, None]


def test_own_network(tmp_path: Path) -> None:
    config = TrainConfig(data="moons", steps=2, batch=8, predict="v")
    run = fit(config, network=Net(), out=tmp_path / "r", quiet=True)
    with pytest.raises(CheckpointError, match="trained with a network of your own; pass that network"):
        load(tmp_path / "r")
    again = load(tmp_path / "r", network=Net())
    assert torch.equal(again.sample(3, RungeKutta(steps=2)).x, run.sample(3, RungeKutta(steps=2)).x)


def change(folder: str, **changes: object) -> None:
    """Change the configuration of a run, which alone describes the model of an older one."""
    older(folder)
    edit(f"{folder}/config.json", lambda stored: {**stored, "config": {**stored["config"], **changes}})


@pytest.fixture
def bait(copied: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    """A run in a folder that also holds a module which must never be imported."""
    folder = copied("moons")
    (tmp_path / "bait.py").write_text('import pathlib\npathlib.Path("ran").touch()\nclass Trap: pass\n')
    yield folder
    assert not (tmp_path / "ran").exists(), "loading a run imported a module that the run named"


@pytest.mark.parametrize(
    "changes",
    [{"sde": "bait:Trap"}, {"predict": "bait:Trap"}, {"network_options": {"network": "bait:Trap"}}],
    ids=["sde", "predict", "network"],
)
def test_a_run_names_no_code(bait: str, changes: dict[str, object]) -> None:
    change(bait, **changes)
    words = "bait:Trap', which is not a built-in; for safety, names read from files are"
    with pytest.raises(CheckpointError, match=words):
        load(bait)


def test_own_parametrisation(bait: str) -> None:
    change(bait, predict=f"{__name__}:OwnV", predict_options={})
    with pytest.raises(CheckpointError, match="never imported"):
        load(bait)
    assert load(bait, parametrization=OwnV()).model.parametrization == OwnV()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonsense": 1}, "unknown field 'nonsense'"),
        ({"clip": "wide"}, "clip is 'wide'; it must be a number"),
        ({"steps": 2.5}, "steps is 2.5; it must be an integer"),
        ({"sde_options": {"beta": 1}}, "no option 'beta'"),
        ({"sde_options": {"beta_max": "x"}}, "beta_max is 'x'"),
        ({"sde_options": 3}, "mapping of options"),
        ({"network_options": {"width": 12, "blocks": 1}}, r"has shape \(.*8.*\), but the network expects \(.*12.*\)"),
        ({"preset": "huge"}, "unknown preset 'huge'"),
    ],
)
def test_a_config_that_cannot_be_right(bait: str, changes: dict[str, object], message: str) -> None:
    change(bait, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(bait)


def test_a_data_description_that_cannot_be_right(bait: str) -> None:
    path = Path(bait) / "data.json"
    stored = unsigned(path)
    edit(path, lambda stored: stored | {"kind": "smell"})
    with pytest.raises(CheckpointError, match="smell"):
        load(bait)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"data\.json is missing"):
        load(bait)
    assert isinstance(DataInfo.from_dict(stored), DataInfo)


def test_the_way_of_samples_that_failed_is_not_written(moons: Run, tmp_path: Path) -> None:
    samples = moons.sample(3, "heun")
    status = torch.tensor([OK, FAILED_LIMIT, OK])
    samples = dataclasses.replace(samples, solution=dataclasses.replace(samples.solution, status=status))
    states = torch.arange(12.0).reshape(2, 3, 2)
    write_samples(tmp_path, samples, moons.info, {}, ("path",), (torch.tensor([1.0, 0.0]), states))
    with np.load(tmp_path / "path.npz") as found:
        assert found["index"].tolist() == [0, 2] and np.array_equal(found["x"], states[:, [0, 2]].numpy())
