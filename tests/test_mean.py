"""A mean likelihood to a stated error: coverage, cost, the pictures, and an exact model from end to end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import F64
from torch import Tensor

from scoresde import VPSDE, GaussianMixture, Likelihood, Noise, Run, load_data
from scoresde.codec import Affine
from scoresde.core.errors import UsageError
from scoresde.data import DataInfo
from scoresde.likelihood.mean import MeanLikelihood, Solved, Terms, telescoped
from scoresde.likelihood.telescope import LOOSEST, levels_of, mean_likelihood

COSTS = {"base": 24.0, "fixed": 24.0, "rough": 92.0, "fine": 190.0, "plain": 190.0}
TRUTH = 1.8563  # the mean of U in the world below


class World:
    """Levels with known moments, like those of a network on digits. The levels of a picture share what they should."""

    def __init__(self, seed: int, count: int = 10_000, correction: float = 0.0095, offset: float = 0.12) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(std: float) -> Tensor:
            return std * torch.randn(count, generator=generator, dtype=F64)

        self.known, rest, fixed = normal(0.17), normal(0.12), normal(0.13)
        picture = self.known + rest
        self.values = {"base": 1.7 + picture + normal(0.066), "fixed": 1.7 + picture + fixed}
        self.values["rough"] = 1.7 + offset + 1.05 * (picture + fixed) + normal(correction)
        self.values["fine"] = self.values["rough"] + TRUTH - 1.7 - offset + normal(0.001)
        self.values["plain"] = TRUTH + 1.05 * picture + normal(0.066)
        self.asked: dict[str, list[int]] = {name: [] for name in COSTS}
        self.count = count

    def __call__(self, level: str, places: Tensor, found: Callable[[Tensor, Solved], object]) -> None:
        self.asked[level] += places.tolist()
        for part in torch.split(places, 100):
            found(part, Solved(self.values[level][part], torch.full((len(part),), COSTS[level], dtype=F64)))

    def control(self, places: Tensor, values: Tensor) -> tuple[Tensor, float]:
        return 1.7 + self.known, 0.0

    def mean(self, within: float, features: bool = False, **options) -> MeanLikelihood:
        return telescoped(self, self.count, within, control=self.control if features else None, **options)


@pytest.mark.parametrize("features", [False, True])
def test_the_error_is_what_it_says_and_the_bar_holds(features: bool) -> None:
    found = [World(seed).mean(0.005, features) for seed in range(150)]
    z = torch.tensor([(one.mean - TRUTH) / one.stderr for one in found])
    assert 0.88 < float(z.square().mean().sqrt()) < 1.12 and abs(float(z.mean())) < 0.25
    assert all(one.reached and one.stderr <= 0.005 for one in found)
    ratio = torch.tensor([one.cost / one.plan.cost for one in found if one.plan is not None])
    assert len(ratio) == 150 and float(((ratio > 0.8) & (ratio < 1.25)).double().mean()) >= 0.9
    cost = sum(one.cost for one in found) / 150
    assert cost < (36_000 if features else 72_000) < found[0].plan.plain_cost  # type: ignore[union-attr]


def test_the_parts_add_up_and_name_the_levels() -> None:
    found = World(0).mean(0.005, True)
    assert list(found.parts) == ["pictures", "correction", "tolerance"]
    assert math.sqrt(sum(v**2 for v in found.parts.values())) == pytest.approx(found.stderr)
    assert list(found.sizes) == ["base", "correction", "tolerance"]
    assert found.cost == pytest.approx(
        24 * found.sizes["base"] + 116 * found.sizes["correction"] + 190 * found.sizes["tolerance"]
    )
    assert found.slope == pytest.approx(1.05, abs=0.03) and 0.4 < found.explained < 0.8
    assert found.change == pytest.approx(TRUTH - 1.82, abs=0.001)


def test_a_smaller_error_extends_the_pictures_of_a_larger_one() -> None:
    loose, tight = World(3), World(3)
    first, second = loose.mean(0.01), tight.mean(0.004)
    assert first.cost < second.cost
    for level in ("base", "fixed", "rough", "fine"):
        assert set(loose.asked[level]) <= set(tight.asked[level])
        assert len(set(tight.asked[level])) == len(tight.asked[level]), "no picture is solved twice"
    assert not set(tight.asked["base"]) & set(tight.asked["rough"]), "the correction has pictures of its own"
    assert set(tight.asked["fine"]) <= set(tight.asked["rough"]) == set(tight.asked["fixed"])


def test_these_pictures_are_known_better_than_the_population() -> None:
    own = [World(seed, 2000) for seed in range(100)]
    found = [one.mean(0.0045, True, of="these") for one in own]
    errors = torch.tensor([
        one.mean - float(world.values["plain"].mean()) for one, world in zip(found, own, strict=True)
    ])  # fmt: skip
    z = errors / torch.tensor([one.stderr for one in found])
    assert all(one.reached for one in found) and 0.7 < float(z.square().mean().sqrt()) < 1.15
    assert not World(0, 2000).mean(0.0045, True).reached, "sd/sqrt(N) is 0.005"


def test_a_data_set_that_is_too_small_says_so() -> None:
    world = World(1, 180)
    found = world.mean(0.005)
    assert not found.reached and "0.005 not reached" in str(found)
    assert found.floor == pytest.approx(float(world.values["base"].std()) * 1.05 / math.sqrt(180), rel=0.2)
    assert found.cost < 180 * 190 / 2, "it stops after the pilot"
    near = World(1, 180).mean(0.97 * float(world.values["plain"].std()) / math.sqrt(180))
    assert near.sizes == {"plain": 180} or near.reached, "if the bar is near the floor, all pictures are solved"


def test_few_pictures_are_averaged() -> None:
    world = World(2, 40)
    found = world.mean(0.001)
    assert found.sizes == {"plain": 40} and found.mean == pytest.approx(float(world.values["plain"].mean()))
    assert found.stderr == pytest.approx(float(world.values["plain"].std()) / math.sqrt(40)) and found.plan is None


def test_a_useless_base_level_gives_way_to_a_plain_average() -> None:
    found = World(4, correction=1.0).mean(0.01)
    assert list(found.sizes) == ["plain"] and found.plan is not None and found.plan.sizes is None
    assert found.reached and abs(found.mean - TRUTH) < 4 * found.stderr
    assert "a plain average of" in str(found.plan) and "at 24" in str(World(4).mean(0.01).plan)


def test_solves_that_fail_are_left_out_and_counted() -> None:
    world = World(5)
    for values in world.values.values():
        values[::10] = math.nan
    found = world.mean(0.008)
    assert found.failed > 10 and abs(found.mean - TRUTH) < 4 * found.stderr
    for values in world.values.values():
        values[:] = math.nan
    assert math.isnan(world.mean(0.008).mean) or not world.mean(0.008).reached


def test_the_numbers_are_the_cheapest() -> None:
    terms = Terms(0.0, 1e-6, (0.05, 1e-4, 1e-6), (256, 64, 16), (24.0, 116.0, 190.0), 0.05, count=10_000)
    sizes = terms.sizes_for(0.005, (1, 1, 1))
    assert sizes is not None
    assert replace(terms, sizes=sizes).stderr == pytest.approx(0.005, rel=0.02)

    def cost(a: float, b: float) -> float:
        """The cost with these two sizes and the third from the bar."""
        left = 0.005**2 - terms.rest - terms.spread[0] / a - terms.spread[1] / b
        return math.inf if left <= 0 else 24 * a + 116 * b + 190 * terms.spread[2] / left

    best = cost(*sizes[:2])
    assert all(cost(sizes[0] * f, sizes[1] * g) > 0.99 * best for f in (0.8, 1.0, 1.2) for g in (0.8, 1.0, 1.2))
    assert terms.sizes_for(0.0009) is None, "below the floor"
    bound = terms.sizes_for(0.005)
    assert bound is not None and bound[1] >= 32 and bound[2] >= 16


# ------------------------------------------------------------------------------------------------------ an exact model


def model(dims: int = 20) -> GaussianMixture:
    means = torch.randn(4, dims, generator=torch.Generator().manual_seed(0), dtype=F64)
    return GaussianMixture(VPSDE(), means, torch.full((4,), 0.4, dtype=F64))


def of_mixture(within: float, n: int = 400, seed: int = 0, **options) -> tuple[MeanLikelihood, Tensor]:
    exact = model()
    x = exact.sample(n, torch.Generator().manual_seed(1))
    how = options.pop("how", Likelihood(divergence="difference"))
    found = mean_likelihood(how, exact, Affine(0.0, 1.0), x, Noise.of(n, seed), within, dtype=F64, **options)
    return found, exact.log_prob(x, VPSDE().times("likelihood")[0])


def test_the_exact_mean_of_a_mixture() -> None:
    found, truth = of_mixture(0.4, control=False)
    assert found.unit == "nats" and found.reached
    assert abs(found.mean - float(truth.mean())) < 3 * found.stderr
    these, _ = of_mixture(0.3, of="these", train=model().sample(100, torch.Generator().manual_seed(2)))
    assert these.reached and abs(these.mean - float(truth.mean())) < 3 * these.stderr
    assert found.how is not None and found.how.divergence == "difference"


def test_another_batch_gives_the_same_figure() -> None:
    one, other = (of_mixture(0.4, batch=batch)[0] for batch in (7, 256))
    assert one.mean == pytest.approx(other.mean, abs=1e-9) and one.stderr == pytest.approx(other.stderr, abs=1e-9)
    assert one.sizes == other.sizes and one.cost == other.cost
    assert of_mixture(0.4, seed=1)[0].mean != one.mean


def test_probes_that_are_redrawn_do_not_change_the_mean_of_the_base_level() -> None:
    exact, levels = model(), levels_of(Likelihood(divergence="difference").resolved(model(), 20))
    x, d = exact.sample(100, torch.Generator().manual_seed(3)), []
    for seed in range(10):
        one, two = (levels[k](exact, x, Noise.of(100, seed), check=False).log_prob for k in ("base", "fixed"))
        d.append(one - two)
    rows = torch.stack(d).mean(0)
    assert abs(float(rows.mean())) < 2.5 * float(rows.std()) / 10


def test_levels_follow_from_the_options() -> None:
    levels = levels_of(Likelihood(probes=3).resolved(model(), 20))
    assert {one.probes for one in levels.values()} == {3} and levels["plain"].redraw and levels["base"].redraw
    assert levels["rough"].rtol == levels["rough"].atol and not (levels["rough"].redraw or levels["fixed"].redraw)
    assert levels["rough"].rtol == pytest.approx(min(LOOSEST, 100 * levels["fine"].rtol))
    loose = levels_of(Likelihood(rtol=0.1).resolved(model(), 20))
    assert loose["rough"] == loose["fine"], "no tolerance is looser than what was asked for"
    found, _ = of_mixture(0.5, how=Likelihood(divergence="difference", rtol=0.05))
    assert found.sizes["tolerance"] == 0 and found.parts["tolerance"] == 0


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Likelihood(importance=2), "importance is 2"), (Likelihood(draws=3), "draws is 3"),
        (Likelihood(steps=5), "steps is 5"), (Likelihood(method="quadrature"), "method is quadrature"),
        (Likelihood(redraw=False), "redraw is False"),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_mean_by_levels_is_refused(how: Likelihood, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        of_mixture(0.5, how=how)


def test_a_run_estimates_its_mean(tmp_path: Path) -> None:
    exact = model(2)
    x = exact.sample(300, torch.Generator().manual_seed(1)).float()
    info = replace(load_data("moons").info, name="mixture")
    assert isinstance(info, DataInfo)
    run = Run(exact, Affine(0.0, 1.0), info, dtype=F64)
    found = run.mean_likelihood(x, 0.1, keep=tmp_path / "parts")
    truth = exact.log_prob(x.double(), VPSDE().times("likelihood")[0])
    assert abs(found.mean - float(truth.mean())) < 3 * found.stderr and found.how is not None
    assert found.how.divergence == "exact" and "nats" in str(found)
    kept = {path.name for path in (tmp_path / "parts").iterdir()}
    assert {"base", "fixed", "rough"} <= kept or "plain" in kept
    again = run.mean_likelihood(x, 0.1, keep=tmp_path / "parts")
    assert again.mean == found.mean and again.cost == found.cost
    with pytest.raises(UsageError, match="within is 0"):
        run.mean_likelihood(x, 0.0)
    with pytest.raises(UsageError, match="unknown mean 'them'"):
        run.mean_likelihood(x, 0.1, of="them")
    with pytest.raises(UsageError, match="does not match the parts"):
        run.mean_likelihood(x, 0.1, seed=1, keep=tmp_path / "parts")
