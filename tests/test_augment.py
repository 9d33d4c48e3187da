"""Augmentation: exact where it can be, a function of seed, step and row, told to the network and to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same, contents, edit
from shell import Shell
from torch import Tensor, nn

from scoresde import VPSDE, Dataset, Eps, Likelihood, ScoreModel, TrainConfig, fit, load, load_data, reflow
from scoresde.core.condition import Condition
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.files import read_json, read_lines
from scoresde.core.noise import keyed
from scoresde.data.augment import KINDS, Augmentation
from scoresde.data.batch import Batch, Batches, Rows
from scoresde.nn import MLP, UNet
from scoresde.objective.draw import PathDraw
from scoresde.objective.loss import Denoising
from scoresde.objective.times import Setting, Sqrt
from scoresde.objective.weighting import Native
from scoresde.solvers.flow import euler
from scoresde.train import loop

ALL = Augmentation(tuple(KINDS))
SMALL = TrainConfig(
    data="digits", steps=4, batch=16, network_options={"channels": 8, "multipliers": [1]}, augment="flip,shift"
)


def pictures(count: int = 5, shape: tuple[int, ...] = (2, 6, 8)) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def told(flip: float = 0, vflip: float = 0, scale: float = 0, right: float = 0, down: float = 0) -> Tensor:
    return torch.tensor([[flip, vflip, scale, right, down]], dtype=torch.float64).expand(5, -1)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "sample_sheet", lambda folder, run: None)
    monkeypatch.setattr(loop, "loss_figure", lambda folder: None)


# -------------------------------------------------------------------------------------------------------- what is done


def test_nothing_and_mirror_images_are_exact() -> None:
    x = pictures()
    assert torch.equal(ALL.applied(x, told()), x)
    assert torch.equal(ALL.applied(x, told(flip=1)), x.flip(3))
    assert torch.equal(ALL.applied(x, told(vflip=1)), x.flip(2))
    assert torch.equal(ALL.applied(x, told(flip=1, vflip=1)), x.flip(2, 3))


def test_a_shift_moves_by_the_number_that_is_told() -> None:
    x = pictures()  # an eighth of the width is a pixel, of the height 0.75
    moved = ALL.applied(x, told(right=2, down=-1 / 0.75))
    assert torch.equal(moved[:, :, :-1, 2:], x[:, :, 1:, :-2])
    # What comes in from outside is the picture mirrored at its edge.
    assert torch.equal(moved[:, :, :-1, :2], x[:, :, 1:, :2].flip(3))
    assert torch.equal(moved[:, :, -1:, 2:], x[:, :, -1:, :-2])
    far = ALL.applied(x, told(right=16))
    assert torch.equal(far, x), "two widths on is the picture again"


def test_a_row_is_mirrored_and_then_shifted() -> None:
    x = pictures()
    assert torch.equal(ALL.applied(x, told(flip=1, right=3))[..., 3:], x.flip(3)[..., :-3])


def test_a_scale_keeps_the_centre_and_is_two_to_a_fifth_of_its_number() -> None:
    ramp = (torch.arange(9.0) - 4).expand(5, 1, 7, 9)
    for a in (-2.0, 1.0, 3.0):
        scaled = ALL.applied(ramp, told(scale=a))
        assert torch.allclose(scaled[..., 3:6], ramp[..., 3:6] / 2 ** (0.2 * a), atol=1e-6)
    upright = ALL.applied(ramp.transpose(2, 3), told(scale=1.0))
    assert torch.allclose(upright, ALL.applied(ramp, told(scale=1.0)).transpose(2, 3)), "the same along both axes"


def test_rows_do_not_mix_and_each_has_its_own() -> None:
    x, numbers = pictures(), torch.cat([told()[:1], told(flip=1)[:1], told(right=1)[:1], told(scale=1)[:1], told()[:1]])
    whole = ALL.applied(x, numbers)
    for i in range(5):
        assert torch.equal(whole[i : i + 1], ALL.applied(x[i : i + 1], numbers[i : i + 1]))


def test_mirrored_levels_are_levels() -> None:
    data = load_data("digits")
    x = data.codec.to_model(data.train[:5], noise=torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    moved = data.codec.to_data(ALL.applied(x, told(flip=1, down=1)))
    assert torch.equal(moved[:, :, 1:], data.train[:5].flip(3)[:, :, :-1])


# ------------------------------------------------------------------------------------------------------- what is drawn


def test_how_often_each_is_done_and_how_far() -> None:
    numbers = ALL.drawn(20_000, (1, 32, 64), seed=1, step=7)
    done = (numbers != 0).double()
    assert torch.allclose(done.mean(0)[:3], torch.tensor([0.5, 0.06, 0.12], dtype=torch.float64), atol=0.012)
    assert set(numbers[:, :2].flatten().tolist()) == {0.0, 1.0}
    pixels = numbers[:, 3:] * torch.tensor([8.0, 4.0])
    assert torch.allclose(pixels, pixels.round(), atol=1e-12), "shifts are whole pixels"
    shifted = numbers[(numbers[:, 3:] != 0).any(1)]
    assert abs(len(shifted) / 20_000 - 0.12) < 0.01
    assert torch.allclose(shifted[:, 3:].std(0), torch.ones(2, dtype=torch.float64), atol=0.06)
    assert abs(float(numbers[:, 2][numbers[:, 2] != 0].std()) - 1) < 0.06
    assert float(torch.corrcoef(done.T)[:3, :3].fill_diagonal_(0).abs().max()) < 0.03, "kinds are independent"
    far = torch.cat([shifted[:, :1], shifted[:, 3:].abs()], 1)
    assert float(torch.corrcoef(far.T).fill_diagonal_(0).abs().max()) < 0.08, "nor does one tell how far another goes"


def test_a_row_is_a_function_of_seed_step_and_place() -> None:
    def numbers(count: int = 64, seed: int = 1, step: int = 7, kinds: tuple[str, ...] = tuple(KINDS)) -> Tensor:
        return Augmentation(kinds).drawn(count, (1, 8, 8), seed=seed, step=step)

    assert torch.equal(numbers(), numbers()) and torch.equal(numbers(9), numbers()[:9])
    assert not torch.equal(numbers(step=8), numbers()) and not torch.equal(numbers(seed=2), numbers())
    assert torch.equal(numbers(kinds=("shift", "flip")), numbers()[:, [0, 3, 4]]), "one kind moves no other"
    assert torch.equal(numbers(seed=-1), numbers(seed=2**64 - 1))


def test_the_share_of_rows_is_that_which_was_asked_for() -> None:
    always, never = (Augmentation(("scale",), share).drawn(50, (1, 8, 8), seed=0, step=0) for share in (1.0, 0.0))
    assert bool((always != 0).all()) and not bool(never.any())
    with pytest.raises(UsageError, match="share"):
        Augmentation(("scale",), 1.5)


def test_batches_are_those_without_moved_and_told() -> None:
    data = load_data("digits")
    rows = Rows(data.train, data.codec, data.train_labels, 10)
    bare, moving = Batches(rows, 16, 5), Batches(rows, 16, 5, ALL)
    first, second = keyed(5, 3), keyed(5, 3)
    plain, moved = bare.at(3, first, torch.float64), moving.at(3, second, torch.float64)
    assert plain.augment is None and moved.augment is not None and plain.condition is not None
    assert torch.equal(moved.augment, ALL.drawn(16, (1, 8, 8), seed=5, step=3))
    assert torch.equal(moved.x0, ALL.applied(plain.x0, moved.augment)) and not torch.equal(moved.x0, plain.x0)
    assert torch.equal(first.get_state(), second.get_state()), "times and noise are those without"
    assert moved.condition is not None and torch.equal(moved.condition.label, plain.condition.label)
    half = moved.rows(torch.tensor([3, 1])).to("cpu")
    assert half.augment is not None and torch.equal(half.augment, moved.augment[[3, 1]])


def test_what_belongs_to_pixels_is_not_left_behind() -> None:
    class Given:
        """The same batch whatever is asked."""

        def __init__(self, **parts: Tensor) -> None:
            self.parts = {"x0": torch.zeros(4, 1, 8, 8)} | parts

        def __len__(self) -> int:
            return 4

        def __call__(self, index: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Batch:
            return Batch(**self.parts)  # type: ignore[arg-type]

    ones = torch.ones(4, 1, 8, 8)
    for parts in ({"eps": ones}, {"weight": ones}, {"x0": torch.zeros(4, 8)}):
        with pytest.raises(UsageError, match="augmentation needs images"):
            Batches(Given(**parts), 4, 0, ALL).at(0, keyed(0, 0), torch.float32)


# ------------------------------------------------------------------------------------------------------- the own input

NETWORKS = {
    "mlp": lambda augments: MLP(dims=64, width=16, blocks=1, classes=3, augments=augments),
    "unet": lambda augments: UNet(1, channels=8, multipliers=(1, 2), blocks=1, classes=3, augments=augments),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_absent_is_zeros_bit_for_bit(kind: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind](3).eval().requires_grad_(False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, c, cond = torch.randn(4, 1, 8, 8), torch.randn(4), Condition(label=torch.tensor([0, 1, 2, 3]))
    for known in (None, cond):
        absent = network(x, c, known)
        assert torch.equal(network(x, c, known, torch.zeros(4, 3)), absent)
        for i in range(3):
            assert not torch.allclose(network(x, c, known, torch.eye(3)[i].expand(4, 3)), absent, atol=1e-4), i
    with pytest.raises(UsageError, match=r"augment has shape \(B, 2\).*augments=2"):
        network(x, c, None, torch.zeros(4, 2))
    with pytest.raises(UsageError, match="built with augments=0"):
        NETWORKS[kind](0)(x, c, None, torch.zeros(4, 2))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_with_the_input_starts_as_one_without(kind: str) -> None:
    states = []
    for augments in (0, 4):
        torch.manual_seed(0)
        states.append(NETWORKS[kind](augments).state_dict())
    without, having = states
    # As large as what a class adds: from zeros a U-Net had not heard the numbers after 600 steps.
    assert float(having.pop("embedding.augment").std()) == pytest.approx(1, abs=0.2)
    assert_same(without, having)


class Spy(nn.Module):
    """A network of one's own that keeps what it was told, call by call."""

    augments = 3

    def __init__(self) -> None:
        super().__init__()
        self.inner = UNet(1, channels=8, multipliers=(1,), blocks=1, classes=10, augments=3)
        self.told: list[tuple[Tensor | None, Condition | None]] = []

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None, augment: Tensor | None = None) -> Tensor:
        self.told.append((augment, cond))
        out: Tensor = self.inner(x, c, cond, augment)
        return out


def test_guidance_leaves_out_the_class_and_never_the_augmentation() -> None:
    data = load_data("digits")
    model = ScoreModel(spy := Spy(), VPSDE(), Eps(), classes=10)
    draw = PathDraw(Sqrt().over(Setting(model.sde, *model.domain.interval("train"), model.parametrization)), drop=1.0)
    batches = Batches(Rows(data.train, data.codec, data.train_labels, 10), 16, 0, Augmentation(("flip", "shift")))
    batch = batches.at(0, keyed(0, 0), torch.float32)
    losses = Denoising(Native())(model, batch, draw(batch, keyed(0, 0)))
    assert losses.shape == (16,)
    ((augment, cond),) = spy.told
    assert cond is not None and cond.label.tolist() == 16 * [10]
    assert augment is not None and torch.equal(augment, batch.augment) and bool(augment.any())


def test_sampling_and_likelihood_are_told_nothing(no_pictures: None) -> None:
    data = load_data("digits")
    network = Spy()
    run = fit(replace(SMALL, cond="class"), data=data, network=network, save=False, quiet=True)
    assert len(network.told) == 4 and all(a is not None and a.shape == (16, 3) for a, _ in network.told)
    spy = run.base.network
    spy.told.clear()
    run.given(torch.tensor([1, 2])).guided(2.0).sample(2, euler(2))
    run.log_likelihood(data.test[:1], Likelihood(rtol=0.3))
    run.elbo(data.test[:2], strata=2)
    assert len(spy.told) > 8 and all(augment is None for augment, _ in spy.told)


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"cond": "class", "coupling": "ot", "sde": "flow"},
        {"sde": "ddpm", "learn_variance": True},
        {"network_options": {"network": "mlp", "width": 16}, "preset": "mlp"},
        {"augment": "all", "predict": "eps", "sde": "ve"},
    ],
    ids=["plain", "ot", "variance", "mlp", "all"],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    more: dict[str, object], tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, decay="none", warmup=1, **more)  # type: ignore[arg-type]
    fit(config, out=tmp_path / "whole", quiet=True)
    fit(replace(config, steps=2), out=tmp_path / "parts", quiet=True)
    again = TrainConfig.from_dict(read_json(tmp_path / "parts" / "config.json")["config"])
    assert again.augment == ("flip,vflip,scale,shift" if more.get("augment") else "flip,shift")
    fit(replace(again, steps=4), out=tmp_path / "parts", resume=True, quiet=True)
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    moments = contents(tmp_path / "whole")["optim/embedding.augment.exp_avg_sq"]
    assert bool((moments.sum(1) > 0).any()), "the input is trained"


def test_without_it_training_is_what_it_was(tmp_path: Path, no_pictures: None) -> None:
    config = replace(SMALL, augment="none", coupling="ot", cond="class", sde="flow")
    run = fit(config, out=tmp_path / "run", quiet=True)
    found = [line["loss"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    # As computed before there was any augmentation.
    assert found == pytest.approx([1.6270955801, 1.5557546616, 1.7155600786, 1.4925842285], rel=1e-5)
    names = run.base.network.state_dict()  # type: ignore[attr-defined]
    assert len(names) == 71 and not any("augment" in name for name in names)


def test_a_run_says_what_was_done_and_older_ones_did_nothing(tmp_path: Path, no_pictures: None) -> None:
    folder = tmp_path / "run"
    fit(replace(SMALL, augment="shift, flip", steps=1), out=folder, quiet=True)
    assert read_json(folder / "config.json")["config"]["augment"] == "flip,shift"
    assert read_json(folder / "model.json")["network"]["options"]["augments"] == 3
    run = load(folder)
    assert run.config is not None and run.config.augment == "flip,shift" and run.sample(2, euler(2)).x.shape[0] == 2
    with pytest.raises(UsageError, match="augment = 'flip,shift', not 'none'"):
        fit(replace(SMALL, augment="none", steps=2), out=folder, resume=True, quiet=True)

    def has(count: int | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def change(stored: dict[str, Any]) -> dict[str, Any]:
            options = {k: v for k, v in stored["network"]["options"].items() if k != "augments"}
            options |= {} if count is None else {"augments": count}
            return stored | {"network": stored["network"] | {"options": options}}

        return change

    edit(folder / "model.json", has(5))
    with pytest.raises(CheckpointError, match="augments"):
        load(folder)

    fit(replace(SMALL, augment="none", steps=1), out=tmp_path / "old", quiet=True)
    before = load(tmp_path / "old").sample(2, euler(2)).x

    def bare(stored: dict[str, Any]) -> dict[str, Any]:
        return stored | {"config": {k: v for k, v in stored["config"].items() if k != "augment"}}

    edit(tmp_path / "old" / "config.json", bare)
    edit(tmp_path / "old" / "model.json", has(None))
    again = load(tmp_path / "old")
    assert again.config is not None and again.config.augment == "none"
    assert torch.equal(again.sample(2, euler(2)).x, before)


def test_noise_is_dealt_out_among_rows_that_are_alike() -> None:
    # The model is asked for rows to which nothing was done, with any noise: theirs must not be what suits them best.
    x0 = torch.cat([-torch.ones(8, 1, 4, 4), torch.ones(8, 1, 4, 4)])
    moved = torch.cat([torch.zeros(8, 1), torch.ones(8, 1)])
    times = Sqrt().over(Setting(VPSDE(), 1e-3, 1.0, Eps()))
    label = Condition(label=torch.arange(16) % 2, classes=2)
    for known in (None, label):
        kept = PathDraw(times)(Batch(x0, known, augment=moved), keyed(0, 0)).eps
        dealt = PathDraw(times, pair=True)(Batch(x0, known, augment=moved), keyed(0, 0)).eps
        crossed = PathDraw(times, pair=True)(Batch(x0, known), keyed(0, 0)).eps
        sides = [{float(v) for v in eps[:8, 0, 0, 0]} for eps in (kept, dealt, crossed)]
        assert sides[0] == sides[1] and sides[0] != sides[2]
        if known is not None:
            assert {float(v) for v in kept[:8:2, 0, 0, 0]} == {float(v) for v in dealt[:8:2, 0, 0, 0]}


def test_an_augmented_run_is_rectified_and_trained_on(no_pictures: None) -> None:
    run = fit(replace(SMALL, sde="flow"), save=False, quiet=True)
    straight = reflow(run, pairs=16, steps=1, solver=None, save=False, quiet=True)
    assert straight.config is not None and straight.config.augment == "none"
    more = fit(replace(SMALL, augment="shift,flip", steps=1), start=run, save=False, quiet=True)
    assert more.config is not None and more.config.augment == "flip,shift"
    for kinds, known in (("scale,shift", run), ("flip,shift", straight)):
        with pytest.raises(UsageError, match="was trained with augment="):
            fit(replace(SMALL, augment=kinds, steps=1), start=known, save=False, quiet=True)


# ------------------------------------------------------------------------------------------------------------ refusals


class Plain(nn.Module):
    """A network of one's own, with three arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Tensor:
        return self.weight * x


def test_what_cannot_be_told_or_moved_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    signals = Dataset.of(torch.randn(30, 2, 16, generator=torch.Generator().manual_seed(0)))
    cases: list[tuple[dict[str, object], dict[str, object], str]] = [
        ({"data": "moons"}, {}, "moons contains vectors"),
        ({}, {"data": signals}, "array contains signals"),
        ({"coupling": "reflow"}, {}, "reflow' trains on stored pairs"),
        ({}, {"network": Plain()}, "Plain has augments = 0.*augments = 3.*network\\(x, c, cond, augment\\)"),
        ({"network_options": {"channels": 8, "augments": 2}}, {}, "UNet has augments = 2"),
    ]
    for change, given, words in cases:
        with pytest.raises(UsageError, match=words) as caught:
            fit(replace(SMALL, **change), out=tmp_path / "run", quiet=True, **given)  # type: ignore[arg-type]
        assert caught.value.parameter == "augment" and not (tmp_path / "run").exists()
    fit(replace(SMALL, augment="none", steps=1), network=Plain(), save=False, quiet=True)


@pytest.mark.parametrize("text", ["flop", "", "flip,", "flip,none", "Flip"])
def test_an_unknown_kind_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown augmentation.*all.*flip"):
        TrainConfig(augment=text)


def test_all_is_every_kind_and_none_is_none() -> None:
    assert TrainConfig(augment="all").augment == TrainConfig(augment="flip,all").augment == ",".join(KINDS)
    assert TrainConfig().augment == "none" and TrainConfig().augmentation is None
    assert ALL.numbers == 5 and Augmentation(("shift", "flip")).numbers == 3


def test_the_command_line_takes_a_list(capsys: pytest.CaptureFixture[str], tmp_path: Path, no_pictures: None) -> None:
    shell, out = Shell(capsys), tmp_path / "run"
    shell(f"train --steps 1 --batch 8 --set network.channels=8 --augment flip,scale --out {out} --quiet")
    assert read_json(out / "config.json")["config"]["augment"] == "flip,scale"
    shell(f"train --resume {out} --steps 2 --quiet")
    shell.refuses(f"train --resume {out} --augment none", 2, "--augment", "cannot be changed")
    shell.refuses("train --augment flup", 2, "flup", "flip", "--augment")
    shell.refuses("train --data moons --augment all", 2, "vectors", "--augment none")
    assert "--augment KINDS" in shell("train --help-all") or "--augment KINDS" in shell("train --help")


# ------------------------------------------------------------------------------------------------------ does it leak?

LETTERS = """
    #... ####
    #... ...#
    #... ..#.
    ###. .#..
"""


class Deaf(nn.Module):
    """A network that takes the numbers and hears nothing: the fault that they are there to prevent."""

    augments = 1

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(16, width=64)

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None, augment: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(x, c, cond)
        return out


@pytest.mark.slow
def test_flips_leak_into_no_sample_unless_the_network_is_deaf() -> None:
    rows = [line.split() for line in LETTERS.split("\n") if line.strip()]
    letters = torch.tensor([[[cell == "#" for cell in row[k]] for row in rows] for k in (0, 1)]).float()
    data = Dataset.of(letters.repeat(50, 1, 1)[:, None] * 2 - 1, name="letters", split="rows")
    known = torch.cat([letters, letters.flip(2)]).flatten(1) * 2 - 1
    config = TrainConfig(preset="mlp", network_options={"width": 64}, steps=500, batch=64, augment="flip", seed=1)
    shares = []
    for network in (None, Deaf()):
        run = fit(config, data=data, network=network, save=False, quiet=True)
        x = run.sample(400, "heun").x.flatten(1)
        distance, nearest = torch.cdist(x, known).min(1)
        assert float(distance.median()) < 1.5, "samples are letters"
        shares.append(float((nearest >= 2).double().mean()))
    assert shares[0] < 0.01 and 0.4 < shares[1] < 0.6, shares
