"""The learning rate: each decay against its formula, resumed, and said when another number of steps bends it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same, contents, signal_at
from shell import Shell
from torch import nn

from scoresde import TrainConfig, fit, load_data
from scoresde.core.errors import Preempted, UsageError
from scoresde.core.files import read_lines
from scoresde.core.tables import RATES
from scoresde.run.files import newest_checkpoint
from scoresde.train.prepare import begun, prepared
from scoresde.train.rates import bent, make_rate, rate_at

TINY = TrainConfig(
    data="moons", steps=10, batch=8, warmup=2, lr=0.1, network_options={"width": 4, "blocks": 1}, ema=0.5
)
N = 10
# Each decay by its name and options, as the published formula, at the steps 0 to 9 of 10.
FORMULAS: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "cosine": ({}, lambda n: (1 + math.cos(math.pi * n / N)) / 2),
    "cosine to a tenth": ({"end": 0.1}, lambda n: 0.1 + 0.9 * math.cos(math.pi * n / (2 * N)) ** 2),
    "constant": ({}, lambda n: 1),
    "none": ({}, lambda n: 1),
    "linear": ({}, lambda n: (N - n) / N),
    "linear to a half": ({"end": 0.5}, lambda n: 1 - n / (2 * N)),
    "wsd": ({}, lambda n: 1 if n <= 8 else (N - n) / 2),
    "wsd of half the run": ({"share": 0.5, "end": 0.2}, lambda n: 1 if n <= 5 else 0.2 + 0.8 * (N - n) / 5),
    "rsqrt": ({"after": 4}, lambda n: math.sqrt(4 / n) if n > 4 else 1),
}


def of(case: str, **changes: Any) -> TrainConfig:
    return replace(TINY, decay=case.partition(" ")[0], decay_options=FORMULAS[case][0], **changes)


def test_every_decay_is_here() -> None:
    assert {case.partition(" ")[0] for case in FORMULAS} == {*RATES, "none"}


@pytest.mark.parametrize("case", FORMULAS)
def test_a_decay_is_its_formula(case: str) -> None:
    config = of(case)
    found = [rate_at(config, make_rate(config), n) for n in range(N)]
    expected = [0.1 * min(1, (n + 1) / 2) * FORMULAS[case][1](n) for n in range(N)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[1:] == sorted(found[1:], reverse=True)  # after the warm-up


def test_the_cosine_has_the_bits_that_it_always_had() -> None:
    config = replace(TINY, steps=997, warmup=49, lr=2e-3)
    for n in range(997):
        factor = min(1.0, (n + 1) / 49) * 0.5 * (1 + math.cos(math.pi * n / 997))
        assert rate_at(config, make_rate(config), n) == 2e-3 * factor


@pytest.mark.parametrize("case", FORMULAS)
def test_a_run_is_trained_and_resumed_with_its_decay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    config = of(case)
    fit(config, out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        signal_at(patch, 6, 15)
        with pytest.raises(Preempted):
            fit(config, out=tmp_path / "parts", quiet=True)
    fit(config, out=tmp_path / "parts", resume=True)
    assert "depends on the number" not in capsys.readouterr().err
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    rates = [line["lr"] for line in read_lines(tmp_path / "parts" / "metrics.jsonl")]
    assert rates == pytest.approx([0.1 * min(1, (n + 1) / 2) * FORMULAS[case][1](n) for n in range(N)])


# Whether 6 of 10 steps are as they would be in a run of 20 steps, and of 8 steps.
BENDS = {
    "cosine": (True, True), "linear": (True, True), "constant": (False, False), "none": (False, False),
    "rsqrt": (False, False), "wsd": (False, False), "wsd of half the run": (False, True),
}  # fmt: skip


@pytest.mark.parametrize("case", BENDS)
def test_another_number_of_steps_bends_some_curves(case: str) -> None:
    for steps, expected in zip((20, 8), BENDS[case], strict=True):
        assert bool(bent(of(case, steps=steps), 6, 10)) == expected
    assert not bent(of(case), 6, 10) and not bent(of(case, steps=20), 0, 10)
    assert not bent(of(case, steps=6), 6, 10)  # nothing is left to do
    # What bent says is what the curves say, at every step.
    for done in range(1, 10):
        rates = [[make_rate(of(case))(n, steps) for n in range(done)] for steps in (10, 20)]
        assert bool(bent(of(case, steps=20), done, 10)) == (rates[0] != pytest.approx(rates[1], rel=1e-9))


def test_wsd_bends_from_the_first_step_of_its_decay() -> None:
    for share in (0.1, 0.2, 0.3, 0.7):
        for steps in (10, 30, 90, 1000):
            config = replace(TINY, decay="wsd", decay_options={"share": share}, steps=2 * steps)
            begins = round((1 - share) * steps)  # the last step with the full rate
            assert not bent(config, begins + 1, steps) and (begins + 2 >= steps or bent(config, begins + 2, steps))


def test_a_longer_run_says_once_how_its_curve_is_bent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "r"
    fit(replace(TINY, warmup=1), out=folder, quiet=True)
    assert newest_checkpoint(folder).name == "step-000000010"
    capsys.readouterr()
    longer = replace(TINY, warmup=1, steps=20)
    fit(longer, out=folder, resume=True)
    said = [line for line in capsys.readouterr().err.splitlines() if "depends on the number of steps" in line]
    rates = [line["lr"] for line in read_lines(folder / "metrics.jsonl")]
    assert len(said) == 1 and f"from {rates[9]:.3g} at step 10 to {rates[10]:.3g} at the next step" in said[0]
    assert "was 10 and is now 20" in said[0] and "'constant' or 'rsqrt', or 'wsd'" in said[0]
    assert rates[9] < rates[10]
    fit(replace(longer, steps=24), out=folder, resume=True, quiet=True)
    assert "depends" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "step"}, "unknown decay 'step'; choose from: constant, cosine, linear, none, rsqrt, wsd"),
        ({"decay": "wsd", "decay_options": {"shares": 0.1}}, "has no option 'shares'; did you mean 'share'?"),
        ({"decay": "wsd", "decay_options": {"share": 0}}, "share is 0; it must be a number > 0 and <= 1"),
        ({"decay": "none", "decay_options": {"end": 0}}, "'constant' has no option 'end'"),
        ({"decay": "rsqrt", "decay_options": {"after": 0.5}}, "after is 0.5; it must be an integer >= 1"),
        ({"weight_decay": -1}, "weight_decay is -1; it must be a number >= 0"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
    ],
)
def test_settings_that_cannot_be_right(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        fit(replace(TINY, **changes), out=tmp_path / "r", quiet=True)
    assert message in str(caught.value) and not (tmp_path / "r").exists()


def test_decays_on_the_command_line(shell: Shell) -> None:
    line = "train --data moons --steps 5 --batch 8 --set network.width=4 --set network.blocks=1 --out r --quiet"
    shell(f"{line} --decay wsd --share 0.6 --set decay.end=0.5 --set lr=1 --set warmup=1")
    assert [line["lr"] for line in read_lines(Path("r/metrics.jsonl"))] == pytest.approx([1, 1, 1, 5 / 6, 4 / 6])
    shell.refuses(f"{line} --set decay.share=0.5", 2, "decay 'cosine' has no option 'share'", "wsd")
    shell.refuses(f"{line} --set decay=wsd --set decay.share=2", 2, "share is 2.0", "--set decay.share=1")
    entries = shell.json("list decays")["entries"]
    assert {e["name"]: e["options"] for e in entries}["wsd"] == {"share": 0.2, "end": 0.0}  # type: ignore[attr-defined]
    shell("train --resume r --steps 9")
    assert "the decay 'wsd' of the learning rate depends on the number of steps" in shell.err


# ------------------------------------------------------------------------------------------------------ weight decay


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return fit(replace(config, ema=0.0), save=False, quiet=True).model.state_dict()


def test_without_weight_decay_the_optimiser_is_adam() -> None:
    config, model, _ = prepared(TINY, load_data("moons"))
    state, _ = begun(config, model, torch.device("cpu"), torch.float32)
    assert type(state.optimiser) is torch.optim.Adam and len(state.optimiser.param_groups) == 1


def test_weight_decay_shrinks_all_weights_of_the_network_apart_from_the_gradient() -> None:
    """One step of AdamW is that of Adam plus -lr * weight_decay * w."""
    config = replace(TINY, steps=1, warmup=1, decay="none")
    start = prepared(config, load_data("moons"))[1].state_dict()
    plain, decayed = weights(config), weights(replace(config, weight_decay=0.5))
    assert any(bool((value != 0).any()) for name, value in start.items() if name.endswith("bias"))
    for name, value in start.items():
        if value.is_floating_point() and not torch.equal(plain[name], value):  # learned
            torch.testing.assert_close(decayed[name], plain[name] - 0.1 * 0.5 * value, rtol=0, atol=2e-7)


def test_a_learned_path_does_not_decay() -> None:
    config = replace(
        TINY, sde="vdm", sde_options={"learn": True}, weight_decay=0.5, weighting="auto", steps=3
    )  # fmt: skip
    config, model, _ = prepared(config, load_data("moons"))
    state, _ = begun(config, model, torch.device("cpu"), torch.float32)
    groups = state.optimiser.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in model.schedule.values()}
    # The moments of a checkpoint are keyed by name, so the optimiser must count as the module does.
    listed: list[nn.Parameter] = [p for group in groups for p in group["params"]]
    assert [id(p) for p in listed] == [id(p) for p in state.learned.parameters()]


def test_a_run_with_weight_decay_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, sde="vdm", sde_options={"learn": True}, weight_decay=0.5, steps=6)
    fit(config, out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        signal_at(patch, 3, 15)
        with pytest.raises(Preempted):
            fit(config, out=tmp_path / "parts", quiet=True)
    fit(config, out=tmp_path / "parts", resume=True, quiet=True)
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    with pytest.raises(UsageError, match=r"has weight_decay = 0\.5, not 0\.0"):
        fit(replace(config, weight_decay=0.0, steps=8), out=tmp_path / "whole", resume=True, quiet=True)
