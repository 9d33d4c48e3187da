"""Runs that were never trained for a question: measurements, guidance by other models, starts, and the way between."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell

from scoresde import Condition, Mixed, Particles, TrainConfig, fit, load, load_data
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.solvers import DDIM, Multistep
from scoresde.study.classifier import load_classifier

UNET: dict[str, Any] = {"steps": 5, "batch": 16, "network_options": {"channels": 4}, "sample_every": 5}
MLP: dict[str, Any] = {"steps": 60, "batch": 48, "lr": 5e-3, "ema": 0.9, "network_options": {"width": 8, "blocks": 1}}
FAST = "--solver multistep --steps 3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("steered"), np.random.default_rng(0)
    with (root / "table.csv").open("w") as file:
        file.write("temp,pressure,count\n")
        for _ in range(60):
            file.write(f"{rng.normal(20, 5):.3f},{rng.normal(101325, 800):.1f},{rng.integers(0, 9)}\n")
    for name, options in {
        "plain": {**UNET, "keep": 5},
        "classes": {**UNET, "cond": "class", "keep": 5},
        "low": {**UNET, "cond": "pool:2"},
        "half": {**UNET, "cond": "half/pool:2"},
        "holes": {**UNET, "cond": "cells"},
        "table": {**MLP, "data": str(root / "table.csv")},
    }.items():
        fit(TrainConfig(**options), out=root / name, quiet=True)
    return root


@pytest.fixture
def here(runs: Path, shell: Shell) -> Path:
    for name in ("plain", "classes", "low", "half", "holes", "table"):
        shutil.copytree(runs / name, Path("runs") / name)
    return Path("runs")


def digits(count: int = 2) -> torch.Tensor:
    return load_data("digits").test[:count].double()


def pooled(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(len(x), 1, 4, 2, 4, 2).mean((3, 5))


def save(x: torch.Tensor, path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((x.reshape(x.shape[-2:]) / 16 * 255).round().byte().numpy()).save(path)


def samples(facts: dict[str, Any]) -> np.ndarray:
    with np.load(next(file for file in facts["files"] if file.endswith("samples.npz"))) as arrays:
        return np.asarray(arrays["x"], dtype=np.float64)


# ------------------------------------------------------------------------------------------------------- measurements


def test_low_resolution_pictures_are_measurements(here, shell):
    np.save("low.npy", pooled(digits()).numpy())
    facts = shell.json(f"sample runs/plain --given low.npy --seen pool:2 --each 3 {FAST}")
    x = torch.from_numpy(samples(facts)).reshape(2, 3, 1, 8, 8)
    assert float((pooled(x.flatten(0, 1)).reshape(2, 3, 1, 4, 4) - pooled(digits())[:, None]).abs().max()) <= 0.5
    assert facts["rule"] == "moment" and facts["noise"] == 0 and facts["operator"] == "pool:2"
    shell(f"sample runs/plain --given low.npy --seen pool:2 --each 3 {FAST} --out again")
    assert (
        "2 rows of shape 4 x 4 from low.npy, used as measurements (pooled by 2); 3 answers each, by the rule"
        in shell.err
    )
    noisy = shell.json(f"sample runs/plain --given low.npy --seen pool:2 --noise 3 --rule pseudoinverse {FAST}")
    assert noisy["noise"] == 3 and noisy["rule"] == "pseudoinverse" and 0.1 < noisy["rms_residual"] < 20


def test_a_run_that_was_trained_with_the_operator_uses_its_network(here, shell):
    np.save("low.npy", pooled(digits()).numpy())
    shell(f"sample runs/low --given low.npy --seen pool:2 {FAST} --out a")
    assert "runs/low (step 5) was trained with pool:2, so its network uses the measurements" in shell.err
    shell(f"sample runs/low --given low.npy {FAST} --out b")
    with np.load("a/samples.npz") as a, np.load("b/samples.npz") as b:
        assert np.array_equal(a["x"], b["x"])
    facts = shell.json(f"sample runs/low --given low.npy --seen pool:2 --noise 1 {FAST}")
    assert facts["rule"] == "moment"  # the network was trained without noise


def test_known_pixels_come_back_bit_for_bit(here, shell):
    save(digits(1), "photo.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:7] = 255
    Image.fromarray(mask).save("hole.png")
    facts = shell.json(f"sample runs/plain --given photo.png --mask hole.png --each 5 {FAST}")
    x = samples(facts)
    known = np.broadcast_to(mask == 0, (5, 1, 8, 8))
    assert np.array_equal(x[known], np.broadcast_to(digits(1).numpy(), (5, 1, 8, 8))[known])
    assert len(np.unique(x[:, 0, 2:6, 3:7].reshape(5, -1), axis=0)) == 5
    assert "16 of 64 pixels to fill" in shell.err


def test_known_cells_come_back_as_they_were_typed(here, shell):
    Path("gaps.csv").write_text("temp,pressure,count\n21.50,,3\n,101325.0,\n19.0,100000,1\n")
    facts = shell.json(f"sample runs/table --given gaps.csv --seen cells --each 2 {FAST}")
    with open(next(file for file in facts["files"] if file.endswith("filled.csv"))) as file:
        rows = list(csv.DictReader(file))
    assert [row["temp"] for row in rows[:2]] == ["21.50", "21.50"] and rows[2]["pressure"] == "101325.0"
    assert [row["count"] for row in rows[:2]] == ["3", "3"]
    assert all(row["pressure"] and row["temp"] and float(row["count"]).is_integer() for row in rows)
    assert rows[4]["temp"] == "19.0" and rows[4]["pressure"] == "100000" and rows[4]["count"] == "1"


def test_whole_pictures_are_degraded_and_the_line_says_so(here, shell):
    save(digits(1), "photo.png")
    shell(f"sample runs/plain --given photo.png --seen pool:2 {FAST}")
    assert "has the shape of a sample, so it is used as the truth and degraded here (pooled by 2)" in shell.err


def test_particles_report_how_many_of_them_count(here, shell):
    np.save("low.npy", pooled(digits()).numpy())
    line = "sample runs/plain --given low.npy --seen pool:2 --noise 2 --solver particles --particles 3 --steps 3"
    facts = shell.json(line)
    assert 1 <= facts["ess_min"] <= facts["ess_mean"] <= 3
    assert facts["nfe_mean"] == 4 * 3 + 1


def test_the_default_solver_of_a_rule_is_ancestral(here, shell):
    np.save("low.npy", pooled(digits(1)).numpy())
    facts = shell.json("sample runs/plain --given low.npy --seen pool:2 --rule projection")
    assert (facts["solver"], facts["options"]["steps"]) == ("ancestral", 50)
    assert shell.json("sample runs/plain --n 1 --rtol 0.1")["solver"] == "ode"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("runs/plain --seen pool:2", "--seen pool:2 requires --given"),
        ("runs/plain --noise 2", "--noise 2.0 requires --seen"),
        ("runs/plain --rule moment", "--rule moment requires --seen"),
        ("runs/plain --given low.npy --seen jpeg:10", "jpeg:10 is not linear"),
        ("runs/plain --given low.npy --seen pool:3", "sides that are divisible by 3"),
        ("runs/plain --given low.npy --seen pool:2 --rule momnet", "unknown rule 'momnet'; did you mean 'moment'"),
        ("runs/plain --given low.npy --seen pool:2 --operator pool:2", "use only one of them"),
        ("runs/plain --given low.npy", "name the operator that made"),
        ("runs/plain --solver particles --steps 2", "has neither"),
        ("runs/plain --given low.npy --from low.npy --seen pool:2", "--from and --given cannot be combined"),
        ("runs/plain --at 0.3", "--at 0.3 requires --from"),
        ("runs/plain --from photo.npy --at 0.001", "is not above the noise level 0.01 at which sampling stops"),
        ("runs/classes --against 3", "has no effect without guidance"),
        ("runs/classes --label 3 --guidance 2 --guidance-interval 1,0", "the guidance interval is 1, 0"),
        ("runs/classes --label 3 --guidance 2 --guidance-interval 1", "--guidance-interval 1 must be two noise levels"),
        ("runs/classes --label 3 --guidance 2 --against @7", "no checkpoint for step 7; it has checkpoints for"),
        ("runs/classes --label 3 --guidance 2 --against @x", "must be @ followed by the step of a checkpoint"),
        ("runs/classes --label 3 --guidance 2 --against eleven", "unknown class 'eleven'"),
        ("runs/classes --label 3 --guidance 2 --against runs/table", "only be guided by a run with the same units"),
    ],
)
def test_what_is_refused(here, shell, line, words):
    np.save("low.npy", pooled(digits(1)).numpy())
    np.save("photo.npy", digits(1).numpy())
    shell(f"sample {line}", 2 if "checkpoint for" not in words else 3)
    assert words in shell.err.replace("\n", " ")


# ----------------------------------------------------------------------------------------------------------- guidance


def test_guidance_away_from_a_class_and_from_an_earlier_step(here, shell):
    one = shell.json(f"sample runs/classes --label 3 --guidance 2 --against 8 --n 2 {FAST}")
    run = load("runs/classes")
    found = run.given("3").guided(2.0, against="8").sample(2, Multistep(steps=3)).x
    assert np.array_equal(samples(one), found.numpy()) and one["against"] == "8"
    early = shell.json(f"sample runs/classes --label 3 --guidance 2 --against @2 --n 2 {FAST} --out early")
    worse = load("runs/classes", step=2).given("3")
    expected = run.given("3").guided(2.0, against=worse).sample(2, Multistep(steps=3)).x
    assert np.array_equal(samples(early), expected.numpy())
    assert not np.array_equal(samples(one), samples(early))
    plain = shell.json(f"sample runs/plain --guidance 2 --against @2 --n 2 {FAST}")  # without any condition
    assert plain["nfe_mean"] == 8
    shell(f"sample runs/plain --guidance 2 --against runs/plain --n 2 {FAST}")


def test_an_interval_saves_evaluations(here, shell):
    full = shell.json("sample runs/classes --label 3 --guidance 2 --n 2 --solver multistep --steps 10")
    part = shell.json(
        "sample runs/classes --label 3 --guidance 2 --guidance-interval 0,1 --n 2 --solver multistep --steps 10 --out p"
    )
    assert full["nfe_mean"] == 22 and 11 < part["nfe_mean"] <= 0.8 * 22 and part["interval"] == "0,1"


def test_only_checkpoints_that_were_kept_can_be_loaded(here):
    assert load("runs/plain", step=2).step == 2 and load("runs/plain").step == 5
    with pytest.raises(CheckpointError, match=r"no checkpoint for step 7; .* 1, 2, 3, 4, 5\. .*keep=5"):
        load("runs/plain", step=7)


def test_a_renamed_option_says_its_new_name(here, shell):
    shell("evaluate runs/plain --against train", 2)
    assert "--against train is now written --part train" in shell.err


# --------------------------------------------------------------------------------------------- starts, ways between


def test_samples_start_from_a_sketch(here, shell):
    save(digits(1), "sketch.png")
    facts = shell.json(f"sample runs/plain --from sketch.png --at 0.05 --each 3 {FAST}")
    assert facts["n"] == 3 and facts["at"] == 0.05 and facts["from"] == "sketch.png"
    assert np.abs(samples(facts) - digits(1).numpy()).mean() < 3
    far = shell.json(f"sample runs/plain --from sketch.png --at 0.9 --n 3 {FAST} --out far")
    assert np.abs(samples(far) - digits(1).numpy()).mean() > np.abs(samples(facts) - digits(1).numpy()).mean()


def test_a_start_is_a_continuous_level(here):
    run, x = load("runs/plain"), digits(2)
    at = [run.near(x, at).sample(2, DDIM(steps=3)).solution.x for at in (0.30, 0.31, 0.9)]
    assert not torch.equal(at[0], at[1])
    assert float((at[0] - at[1]).abs().mean()) < float((at[0] - at[2]).abs().mean())
    assert torch.equal(run.near(x, 0.3).near(None).sample(2, DDIM(steps=3)).x, run.sample(2, DDIM(steps=3)).x)
    with pytest.raises(UsageError, match="the samples start from 2 rows of data, but the number of samples is 3"):
        run.near(x, 0.3).sample(3, DDIM(steps=3))
    rows = run.near(x, 0.5, each=2).sample(4, DDIM(steps=3)).x
    torch.testing.assert_close(run.near(x[1:], 0.5, each=2).sample(2, DDIM(steps=3), start=2).x, rows[2:])


def test_encoding_and_decoding_is_exact(here):
    run, x = load("runs/plain"), digits(3)
    z = run.encode(x)
    assert z.shape == x.shape and torch.equal(run.decode(z), x.float())
    way = run.interpolate(x[0], x[1], 4)
    assert torch.equal(way[0], x[0].float()) and torch.equal(way[-1], x[1].float()) and way.shape == (4, 1, 8, 8)
    assert torch.equal(run.interpolate(x[0], x[0], 3), x[:1].float().repeat(3, 1, 1, 1))
    with pytest.raises(UsageError, match="discrete chain"):
        fit(TrainConfig(**UNET | {"sde": "ddpm", "steps": 1}), save=False, quiet=True).encode(x)


def test_the_way_between_two_pictures(here, shell):
    save(digits(2)[0], "a.png")
    save(digits(2)[1], "b.png")
    facts = shell.json("interpolate runs/plain a.png b.png --n 3 --rtol 1e-3")
    with np.load("runs/plain/interpolated/interpolated.npz") as arrays:
        assert np.array_equal(arrays["x"][[0, 2]], digits(2).numpy()) and facts["difference"] == 0
    assert Image.open(facts["files"][0]).size[0] > 3 * 8
    shell("interpolate runs/plain a.png", 2)
    assert "two files with one sample each" in shell.err
    np.save("two.npy", digits(2).numpy())
    shell("interpolate runs/plain two.npy a.png", 2)
    assert "two.npy has 2 samples" in shell.err


# --------------------------------------------------------------------------------------------------------------- runs


def test_bindings_are_composed_in_one_order_whatever_the_order_of_the_calls(here):
    run, low = load("runs/classes"), pooled(digits(1))
    a = run.given(3).guided(2.0).measured("pool:2", low, noise=1.0).on("flow")
    b = run.on("flow").measured("pool:2", low, noise=1.0).guided(2.0).given(3)
    solver = DDIM(steps=3)
    assert torch.equal(a.sample(2, solver).x, b.sample(2, solver).x)
    assert "guided 2" in repr(a) and "measured by pool:2" in repr(a)
    free = a.given(None)
    assert free.measurement is not None  # the measurement stays
    steered = run.steered(lambda e: -e.x0.square().mean((1, 2, 3)), 5.0)
    assert "steered" in repr(steered) and steered.sample(2, solver).x.shape == (2, 1, 8, 8)
    assert torch.equal(steered.steered(None).sample(2, solver).x, run.sample(2, solver).x)


def test_measurements_need_a_row_for_each_sample(here):
    run = load("runs/plain")
    post = run.measured("pool:2", pooled(digits(2)), each=2)
    assert post.sample(4, DDIM(steps=2)).residual.shape == (4,)
    with pytest.raises(UsageError, match="the number of measurements is 4, but the number of samples is 3"):
        post.sample(3, DDIM(steps=2))
    with pytest.raises(UsageError, match=r"have shape \(1, 3, 3\) for each sample, but the shape must be \(1, 4, 4\)"):
        run.measured("pool:2", torch.zeros(1, 1, 3, 3))
    one = run.measured("pool:2", pooled(digits(1)), noise=0.5)
    assert one.sample(3, Particles(steps=2, particles=2)).x.shape == (3, 1, 8, 8)
    assert one.request({})["measured"] == "pool:2" and "measured" not in run.request({})
    with pytest.raises(UsageError, match="noise"):
        run.measured("pool:2", pooled(digits(1)), noise=-1.0)


def test_the_truth_is_measured_with_noise_of_its_own(here):
    run, x = load("runs/plain"), digits(2)
    seen = run.measured("pool:2", x, noise=2.0, seed=3).measurement
    off = seen.y - pooled(x)
    assert 1.0 < float(off.std()) < 3.0 and torch.equal(seen.truth, x)
    assert torch.equal(run.measured("pool:2", x, noise=2.0, seed=3).measurement.y, seen.y)
    assert not torch.equal(run.measured("pool:2", x, noise=2.0, seed=4).measurement.y, seen.y)
    assert torch.equal(run.measured("pool:2", x).measurement.y, pooled(x))


def test_a_condition_of_the_run_and_a_measurement_at_once(here):
    run = load("runs/classes")
    both = run.given(Condition(label=torch.tensor([3]))).measured("half", digits(1), each=2)
    found = both.sample(2, DDIM(steps=2))
    assert torch.equal(found.x[:, :, :4], digits(1)[:, :, :4].float().repeat(2, 1, 1, 1))


def test_a_noisy_classifier_guides_a_run_that_knows_no_classes(here, shell):
    shell("classifier --data digits --noisy --steps 150 --out judge --quiet")
    line = "sample runs/plain --n 4 --label 3 --solver multistep --steps 10"
    facts = shell.json(f"{line} --classifier judge --guidance 3 --out guided")
    assert facts["label"] == "3" and facts["guidance"] == 3 and facts["classifier"] == "judge"
    assert "guided to the class 3 by the classifier in judge, scale 3" in shell.err
    judge, run = load_classifier(Path("judge")), load("runs/plain")
    potential = judge.potential(3)
    x, t = digits(4), torch.tensor([0.01, 0.1, 0.5, 0.9], dtype=torch.float64)
    m = run.codec.continuous.to_model(x)
    states = run.base.domain.sde.perturb(m, t, torch.randn(m.shape, dtype=torch.float64))
    values = potential(run.model(states.float(), t))
    assert values.shape == (4,) and bool((values <= 0).all())
    clean = run.model(m.float(), 0.001)
    every = torch.stack([judge.potential(k)(clean) for k in range(10)], 1)
    torch.testing.assert_close(every.exp().sum(1), torch.ones(4))  # a distribution over the classes
    # A few steps of a network that has learned nothing: the samples still agree with the class far more often.
    guided = run.steered(potential, 3.0).sample(40, Multistep(steps=20)).x
    free = run.sample(40, Multistep(steps=20)).x
    share = [float((judge(each.double()).argmax(1) == 3).double().mean()) for each in (guided, free)]
    assert share[0] > share[1] + 0.3
    shell(f"{line.replace('--label 3 ', '')} --classifier judge", 2)
    assert "--classifier judge requires --label, one of its classes: 0, 1" in shell.err
    shell(f"{line.replace('--label 3', '--label 11')} --classifier judge", 2)
    assert "unknown class '11'" in shell.err
    shell("sample runs/table --n 4 --label 3 --classifier judge", 2)
    assert "with other units than runs/table" in shell.err
    shell("classifier --data digits --steps 2 --out plain-judge --quiet")
    shell(f"{line} --classifier plain-judge", 2)
    assert "must have been trained on noisy samples" in shell.err and "--noisy" in shell.err


def test_random_cells_are_not_a_mask_that_a_run_was_trained_with(here, shell):
    save(digits(1), "photo.png")
    shell(f"sample runs/half --from photo.png --at 0.5 {FAST}")
    shell(f"sample runs/half --given photo.png --seen half {FAST} --out half")
    assert "was trained with half, so its network" in shell.err
    torn = digits(1)
    torn[..., 2:5, 2:5] = torch.nan
    np.save("torn.npy", torn.numpy())
    facts = shell.json(f"sample runs/half --given torn.npy --seen cells {FAST} --out cells")
    assert facts["rule"] == "moment"
    x, known = samples(facts)[0], torn[0].isfinite().numpy()
    assert np.array_equal(x[known], digits(1)[0].numpy()[known])


def test_noise_under_a_mask_asks_for_a_rule(here, shell):
    save(digits(1), "photo.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save("mask.png")
    line = f"sample runs/holes --given photo.png --mask mask.png {FAST}"
    assert "rule" not in shell.json(line)
    noisy = shell.json(f"{line} --noise 2 --out noisy")
    assert noisy["rule"] == "moment" and noisy["noise"] == 2 and 0 < noisy["rms_residual"] < 20


def test_steps_belong_to_the_default_solver_of_a_rule(here, shell):
    np.save("low.npy", pooled(digits(1)).numpy())
    facts = shell.json("sample runs/plain --given low.npy --seen pool:2 --steps 4")
    assert facts["solver"] == "ancestral" and facts["nfe_mean"] == 5


def test_guidance_against_a_class_leaves_the_measurement_alone(here):
    run, low = load("runs/classes"), pooled(digits(1))
    a = run.given(3).measured("pool:2", low, noise=1.0)
    one = a.guided(2.0, against=8).sample(2, DDIM(steps=5)).x
    other = run.given(3).guided(2.0, against=run.given(8)).measured("pool:2", low, noise=1.0).sample(2, DDIM(steps=5)).x
    assert torch.equal(one, other)
    same = a.guided(2.0, against=a.given(8)).sample(2, DDIM(steps=5)).x
    assert torch.equal(one, same)
    flow = run.on("flow")
    assert torch.equal(
        flow.given(3).guided(2.0, against=flow.given(8)).sample(2, DDIM(steps=5)).x,
        run.given(3).guided(2.0, against=8).on("flow").sample(2, DDIM(steps=5)).x,
    )


def test_a_measurement_stays_when_a_condition_is_bound(here):
    run, low, x = load("runs/low"), pooled(digits(1)), digits(1)
    a = run.measured("half", x).given(Condition(image=low)).sample(2, DDIM(steps=2)).x
    b = run.given(Condition(image=low)).measured("half", x).sample(2, DDIM(steps=2)).x
    assert torch.equal(a, b) and torch.equal(a[:, :, :4], x[:, :, :4].float().repeat(2, 1, 1, 1))


def test_rows_of_everything_that_is_bound(here):
    run, x = load("runs/classes"), digits(3)
    bound = (
        run.given([3, 4, 5])
        .guided(2.0, against=torch.tensor([0, 1, 2]))
        .measured("pool:2", pooled(x), 1.0)
        .near(x, 0.5)
    )
    whole = bound.sample(3, DDIM(steps=3)).x
    some = bound.rows(torch.tensor([1, 2])).sample(2, DDIM(steps=3), start=1).x
    torch.testing.assert_close(some, whole[1:], rtol=0, atol=1)  # a level


def test_a_request_names_everything_that_samples_depend_on(here):
    run, x = load("runs/plain"), torch.zeros(1, 1, 8, 8)
    left, right = (x.clone() for _ in range(2))
    left[..., :4], right[..., 4:] = torch.nan, torch.nan
    seen = set()
    for other in (
        run, run.measured("cells", left), run.measured("cells", right), run.measured("cells", left, 1.0),
        run.measured("cells", left, rule="projection"), run.near(digits(1), 0.3), run.near(digits(1), 0.4),
        run.near(digits(2)[1:], 0.3), run.steered(lambda e: e.x0.sum((1, 2, 3))),
        run.steered(lambda e: 2 * e.x0.sum((1, 2, 3))), run.guided(2.0, against=load("runs/plain", step=2)),
        run.guided(2.0, against=load("runs/plain", step=3)),
        *(replace(run, base=Mixed((run.base, load("runs/plain", step=2).base), w)) for w in ((-1.0, 2.0), (-2.0, 3.0))),
    ):  # fmt: skip
        seen.add(str(other.request({})))
    assert len(seen) == 14
    again = load("runs/plain")
    assert str(again.steered(potential_of_a_module).request({})) == str(run.steered(potential_of_a_module).request({}))


def potential_of_a_module(estimate):
    return -estimate.x0.square().sum((1, 2, 3))


def test_the_likelihood_of_a_guided_flow_is_named(here, shell):
    line = "likelihood runs/classes --label 3 --guidance 2 --limit 2 --set likelihood.steps=4 --no-check"
    shell(line)
    assert "under the flow of the guided model" in shell.out
    shell("likelihood runs/classes --label 3 --limit 2 --set likelihood.steps=4 --no-check --out plain")
    assert "guided" not in shell.out


@pytest.mark.parametrize("names", ["", "runs/plain", "a.png", "runs/plain a.png", "runs/plain runs/plain a.png b.png"])
def test_interpolate_takes_two_files(here, shell, names):
    shell.refuses(f"interpolate {names}", 2, "takes two files with one sample each")
