"""The training loop: resumed bit for bit, fed with fresh noise, and loud when something is not finite."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same, contents, edit, signal_at
from torch import Tensor

from scoresde import FlowMatching, ScoreModel, TrainConfig, fit, load_data
from scoresde.core.condition import Condition
from scoresde.core.errors import CheckpointError, NumericalError, Preempted, Stopped, UsageError
from scoresde.core.files import read_json, read_lines, read_tensors
from scoresde.core.noise import keyed
from scoresde.core.progress import Progress
from scoresde.data import Dataset
from scoresde.data.batch import Batch, Batches, Rows
from scoresde.objective import loss as objective
from scoresde.objective.loss import denoising_loss
from scoresde.run.config import build_sde
from scoresde.run.files import newest_checkpoint
from scoresde.train import loop, prepared
from scoresde.train.state import Record


@dataclasses.dataclass(frozen=True)
class BlindAtZero(FlowMatching):
    """A path that is trained down to sigma = 0."""

    t_min = 0.0


TINY = TrainConfig(data="moons", steps=3, batch=16, network_options={"width": 8, "blocks": 1})
DROPOUT = TrainConfig(steps=5, batch=8, network_options={"channels": 4, "dropout": 0.3}, cond="class", cond_drop=0.3)


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda n: n.name
)
def test_a_resumed_run_is_the_same_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    torch.manual_seed(1)
    whole = fit(DROPOUT, out=tmp_path / "whole", quiet=True)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        signal_at(patch, 3, number)
        with pytest.raises(Preempted, match=rf"{number.name} after step 3: the checkpoint is saved in "):
            fit(DROPOUT, out=tmp_path / "parts", quiet=True)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert read_json(newest_checkpoint(tmp_path / "parts") / "state.json")["step"] == 3
    torch.manual_seed(2)  # the global generator has no say
    resumed = fit(DROPOUT, out=tmp_path / "parts", resume=True, quiet=True)
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    states = [read_json(newest_checkpoint(tmp_path / f) / "state.json") for f in ("whole", "parts")]
    assert states[0] == states[1] and states[0]["ema_updates"] == 5
    lines = [read_lines(tmp_path / f / "metrics.jsonl") for f in ("whole", "parts")]
    for line in (*lines[0], *lines[1]):
        del line["seconds"]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [1, 2, 3, 4, 5]


LEARNS = dataclasses.replace(
    TINY, steps=30, weighting="likelihood", t_sampler="loss-second-moment", t_sampler_options={"bins": 4, "history": 5}
)


def test_what_the_time_sampler_has_learned_is_resumed(tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint before every bin had its losses and from one after."""
    whole = fit(LEARNS, out=tmp_path / "whole", quiet=True)
    stored = read_tensors(newest_checkpoint(tmp_path / "whole") / "times.safetensors")["losses"]
    assert stored.shape == (4, 5) and stored.dtype == torch.float64 and torch.isfinite(stored).all()
    for stops in (1, 20):
        folder = tmp_path / f"stopped-{stops}"
        # Nothing of the schedule depends on the number of steps here, so that a shorter run is the longer one's start.
        short = dataclasses.replace(LEARNS, decay="none", warmup=5)
        fit(dataclasses.replace(short, steps=stops), out=folder, quiet=True)
        resumed = fit(short, out=folder, resume=True, quiet=True)
        alone = fit(short, save=False, quiet=True)
        assert_same(alone.model.state_dict(), resumed.model.state_dict())
    assert not torch.equal(
        next(iter(whole.model.parameters())),
        next(iter(fit(dataclasses.replace(LEARNS, t_sampler_options={"bins": 5}), save=False).model.parameters())),
    )


def test_a_checkpoint_without_what_was_learned_cannot_be_resumed(tmp_path: Path) -> None:
    fit(dataclasses.replace(LEARNS, steps=3), out=tmp_path / "r", quiet=True)
    checkpoint = newest_checkpoint(tmp_path / "r")
    (checkpoint / "times.safetensors").unlink()
    files = read_json(checkpoint / "state.json")["files"]
    del files["times.safetensors"]
    edit(checkpoint / "state.json", lambda state: {**state, "files": files})
    with pytest.raises(CheckpointError, match=r"times\.safetensors cannot be read"):
        fit(LEARNS, out=tmp_path / "r", resume=True, quiet=True)


def test_dropout_is_on_in_training(tmp_path: Path) -> None:
    """Otherwise the test above would say nothing of it."""
    # The last layers start at zero, so that dropout shows from the second step on.
    plain = dataclasses.replace(DROPOUT, network_options={"channels": 4})
    for name, config in (("with", DROPOUT), ("without", plain)):
        fit(dataclasses.replace(config, steps=3, lr=0.1), out=tmp_path / name, quiet=True)
    losses = [[line["loss"] for line in read_lines(tmp_path / n / "metrics.jsonl")] for n in ("with", "without")]
    assert losses[0][0] == losses[1][0] and losses[0][2] != losses[1][2]


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fit(TINY, save=False, quiet=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_depends_on_the_seed_alone() -> None:
    runs = [fit(dataclasses.replace(TINY, seed=s), save=False, quiet=True).model.state_dict() for s in (3, 3, 4)]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["network.enter.weight"], runs[2]["network.enter.weight"])


def test_ctrl_c_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_at(monkeypatch, 3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"after step 3: the checkpoint is saved in ") as stop:
        fit(dataclasses.replace(TINY, steps=11), out=tmp_path / "r")  # every other step has a checkpoint
    assert read_json(newest_checkpoint(tmp_path / "r") / "state.json")["step"] == 3
    assert isinstance(stop.value, Stopped) and (stop.value.parameter, stop.value.value) == ("resume", tmp_path / "r")


def test_a_signal_at_the_last_step_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_at(monkeypatch, 3, signal.SIGTERM)
    assert fit(TINY, out=tmp_path / "r", quiet=True).step == 3


def test_training_in_a_thread_installs_no_handlers(tmp_path: Path) -> None:
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.append(fit(TINY, save=False, quiet=True).step))
    thread.start()
    thread.join()
    assert steps == [3]


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path) -> None:
    fit(TINY, out=tmp_path / "r", quiet=True)
    longer = dataclasses.replace(TINY, steps=5)
    assert fit(longer, out=tmp_path / "r", resume=True, quiet=True).step == 5
    assert [line["step"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    before = contents(tmp_path / "r")
    with pytest.raises(UsageError, match=r"has already been trained for 5 steps, but steps is 4"):
        fit(dataclasses.replace(TINY, steps=4), out=tmp_path / "r", resume=True, quiet=True)
    assert_same(contents(tmp_path / "r"), before)
    assert read_json(tmp_path / "r" / "config.json")["config"]["steps"] == 5


def test_resume_keeps_the_settings(tmp_path: Path) -> None:
    fit(TINY, out=tmp_path / "r", quiet=True)
    with pytest.raises(UsageError, match=r"has lr = 0\.002, not 0\.1; a resumed run keeps its settings"):
        fit(dataclasses.replace(TINY, lr=0.1), out=tmp_path / "r", resume=True, quiet=True)
    with pytest.raises(UsageError, match="already contains a run"):
        fit(TINY, out=tmp_path / "r", quiet=True)


def test_resume_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="nothing is not a run folder"):
        fit(TINY, out="nothing", resume=True, quiet=True)
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        fit(TINY, resume=True, quiet=True)
    assert list(tmp_path.iterdir()) == [], "a folder was made for nothing"


def test_resume_drops_lines_that_are_done_again(tmp_path: Path) -> None:
    fit(TINY, out=tmp_path / "r", quiet=True)
    path = tmp_path / "r" / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 99.0}) + '\n{"step": 5, "lo')
    fit(dataclasses.replace(TINY, steps=4), out=tmp_path / "r", resume=True, quiet=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[-1]["loss"] != 99.0


# ----------------------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of one grey each, the number of the row, with labels: 22 for training and 2 for the test."""
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    x = np.arange(24, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    np.savez(path, x=x, y=np.arange(24) % 4)
    return str(path)


def order(data: Dataset, size: int, seed: int = 0) -> Batches:
    """The batches that training draws of the rows of ``data``."""
    return Batches(Rows(data.train, data.codec), size, seed)


@pytest.mark.parametrize("size", [1, 5, 11, 22])
def test_an_epoch_has_every_row_once(rows: str, size: int) -> None:
    data = load_data(rows)
    count = len(data.train)
    batches = order(data, size)
    stream = torch.cat([data.train[batches.index(i)][:, 0, 0, 0] for i in range(3 * count // size + 1)]).tolist()
    truth = sorted(data.train[:, 0, 0, 0].tolist())
    epochs = [stream[i * count : (i + 1) * count] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == truth
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0], "each pass has an order of its own"


def test_a_batch_depends_on_seed_and_step_alone(rows: str) -> None:
    data = load_data(rows)
    source = Rows(data.train, data.codec, data.train_labels, 4)
    forward = Batches(source, 5, seed=1)

    def at(batches: Batches, step: int) -> Batch:
        return batches.at(step, keyed(1, step), torch.float64)

    batches = [at(forward, i) for i in range(12)]
    for i in reversed(range(12)):
        again = at(Batches(source, 5, seed=1), i)
        assert again.condition is not None and batches[i].condition is not None
        label = again.condition.label
        assert torch.equal(again.x0, batches[i].x0) and torch.equal(label, batches[i].condition.label)
        x = data.codec.to_data(again.x0)[:, 0, 0, 0].long()
        assert len(x) == 5 and torch.equal(label, x % 4), "a label lost its row"
    assert torch.equal(at(forward, 3).x0, batches[3].x0)
    assert not torch.equal(Batches(source, 5, seed=2).index(0), forward.index(0))


# ---------------------------------------------------------------------------------------------------------- schedule


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, steps=10, warmup=4, lr=0.1)
    fit(config, out=tmp_path / "cosine", quiet=True)
    found = [line["lr"] for line in read_lines(tmp_path / "cosine" / "metrics.jsonl")]
    warm = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    cosine = [0.5 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    assert found == pytest.approx([0.1 * w * c for w, c in zip(warm, cosine, strict=True)])
    assert found[-1] < 0.1 * 0.03
    fit(dataclasses.replace(config, decay="none"), out=tmp_path / "none", quiet=True)
    found = [line["lr"] for line in read_lines(tmp_path / "none" / "metrics.jsonl")]
    assert found == pytest.approx([0.1 * w for w in warm])


def test_the_schedule_moves_the_weights() -> None:
    # Adam's first step moves a weight by lr: after one step with a warm-up of 1000, by a thousandth of it.
    moved = []
    for warmup in (1, 1000):
        config = dataclasses.replace(TINY, steps=1, warmup=warmup, decay="none", lr=0.1, ema=0.0)
        _, start, _ = prepared(config, load_data("moons"))
        end = fit(config, save=False, quiet=True).model.state_dict()
        moved.append(max(float((end[k] - v).abs().max()) for k, v in start.state_dict().items()))
    assert moved == pytest.approx([0.1, 1e-4], rel=0.02)


# ----------------------------------------------------------------------------------------------- what the loss is fed


class Seen:
    """Stands in for the loss and keeps what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loss: Callable[[int, Tensor], Tensor] | None = None) -> None:
        self.x0: list[Tensor] = []
        self.t: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.cond: list[Condition | None] = []
        self.loss = loss
        monkeypatch.setattr(objective, "denoising_loss", self)

    def __call__(
        self, model: ScoreModel, x0: Tensor, t: Tensor, noise: Tensor, cond: Condition | None, *_: object
    ) -> Tensor:
        self.x0.append(x0.clone())
        self.t.append(t.clone())
        self.noise.append(noise.clone())
        self.cond.append(cond)
        nothing = sum(p.sum() * 0 for p in model.parameters()) + torch.zeros(len(x0))
        if self.loss is not None:
            return nothing + self.loss(len(self.x0), t)
        return nothing


def test_quantised_data_are_dequantised_with_fresh_noise_each_step(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(rows)
    assert data.info.levels == 256
    seen = Seen(monkeypatch)
    config = TrainConfig(data=rows, preset="mlp", steps=3, batch=22, network_options={"width": 8, "blocks": 1})
    fit(config, data=data, save=False, quiet=True)
    draws, ordered = [], []
    for step, x0 in enumerate(seen.x0):
        assert x0.dtype == torch.float32 and x0.shape == (22, 1, 2, 3)
        x = data.train[order(data, 22).index(step)]
        raw = data.codec.continuous.to_data(x0.double())
        u = raw - x
        assert (u > -1e-4).all() and (u < 1 + 1e-4).all(), "outside the bin of its level"
        assert torch.equal(raw.floor()[(u > 1e-3) & (u < 0.999)], x.double()[(u > 1e-3) & (u < 0.999)])
        assert ((u > 1e-3) & (u < 0.999)).float().mean() > 0.95, "on levels"
        assert abs(u.mean() - 0.5) < 0.15 and u.std() == pytest.approx(12**-0.5, abs=0.06)
        draws.append(u)
        ordered.append(u[x[:, 0, 0, 0].argsort()])
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (draws[a] - draws[b]).abs().mean() > 0.2, "the same noise twice"
        assert (ordered[a] - ordered[b]).abs().mean() > 0.2, "a row keeps its noise"
    assert draws[0].flatten(1).std(1).min() > 0.05, "one draw for a whole image"


def test_continuous_data_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = load_data("moons"), Seen(monkeypatch)
    fit(TINY, data=data, save=False, quiet=True)
    x = data.train[order(data, 16).index(1)]
    torch.testing.assert_close(seen.x0[1], data.codec.continuous.to_model(x))


def test_times_and_noise_are_fresh_and_in_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    config = dataclasses.replace(TINY, batch=200, sde="flow", predict="velocity")
    fit(config, save=False, quiet=True)
    low, high = build_sde(config).times("train")
    for t, noise in zip(seen.t, seen.noise, strict=True):
        assert t.dtype == torch.float64 and low <= t.min() and t.max() <= high
        assert len(t.unique()) == 200 and t.max() - t.min() > 0.9
        assert noise.std() == pytest.approx(1, abs=0.1) and noise.shape == (200, 2)
    assert not torch.equal(seen.t[0], seen.t[1]) and not torch.equal(seen.noise[0], seen.noise[1])


def test_the_weight_of_a_draw_is_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With importance, the loss that is logged and descended is that of uniform times."""
    seen = Seen(monkeypatch, lambda call, t: 1 / t)
    config = dataclasses.replace(TINY, steps=1, batch=512, weighting="likelihood", t_sampler="importance")
    fit(config, out=tmp_path / "r", quiet=True)
    (line,) = read_lines(tmp_path / "r" / "metrics.jsonl")
    sde = build_sde(config)
    weight = 23.864472 / (sde.beta(seen.t[0]) / sde.sigma(seen.t[0]) ** 2)  # type: ignore[attr-defined, operator]
    assert line["loss"] == pytest.approx(float((weight / seen.t[0]).mean()), rel=1e-4)
    # E 1/t of uniform times is log(1e5), to which 512 of them come nowhere near
    assert line["loss"] == pytest.approx(math.log(1e5), rel=0.01)


def test_an_adaptive_sampler_is_told_the_losses_before_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses ten times as large above 1/2 draw ten times as many times there; the loss of uniform times remains."""
    seen = Seen(monkeypatch, lambda call, t: torch.where(t > 0.5, 10.0, 1.0))
    config = dataclasses.replace(
        TINY, steps=6, batch=400, sde="flow", t_sampler="loss-second-moment", t_sampler_options={"bins": 2}
    )
    fit(config, save=False, quiet=True)
    shares = [float((t > 0.5).double().mean()) for t in seen.t]
    assert shares[0] == 0.5 and shares[1:] == pytest.approx([10 / 11] * 5, abs=0.005)


def test_labels_are_left_out_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, data = Seen(monkeypatch), load_data("digits")
    config = TrainConfig(steps=4, batch=1000, cond="class", cond_drop=0.3, network_options={"channels": 4})
    fit(config, data=data, save=False, quiet=True)
    masks = []
    for step, cond in enumerate(seen.cond):
        labels = data.train_labels[order(data, 1000).index(step)]  # type: ignore[index]
        assert cond is not None and cond.label is not None and cond.label.dtype == torch.int64
        dropped = cond.label == 10
        assert torch.equal(cond.label[~dropped], labels[~dropped])
        masks.append(dropped)
    rate = torch.stack(masks).double().mean()
    assert float(rate) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))
    assert not torch.equal(masks[0], masks[1])


def test_without_conditioning_the_labels_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    fit(TrainConfig(steps=2, batch=4, network_options={"channels": 4}), save=False, quiet=True)
    assert seen.cond == [None, None]


# ------------------------------------------------------------------------------------------------- files and failures


def test_without_save_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit(TINY, save=False, quiet=True)
    assert run.folder is None and run.step == 3 and list(tmp_path.rglob("*")) == []


def test_what_a_run_folder_holds(trained: Path) -> None:
    for name in ("digits", "classes", "moons"):
        folder = trained / name
        assert {p.name for p in folder.iterdir()} == {
            "config.json", "data.json", "model.json", "env.json", "metrics.jsonl", "samples", "plots", "checkpoints",
        }  # fmt: skip
        assert [p.name for p in (folder / "samples").iterdir()] == ["step-000003.png"]  # too short for more
        assert [p.name for p in (folder / "plots").iterdir()] == ["loss.png"]
        assert (folder / "checkpoints" / "LATEST").read_text().strip() == newest_checkpoint(folder).name


def test_metrics(trained: Path) -> None:
    for name in ("digits", "classes", "moons"):
        lines = [json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        assert steps == sorted(set(steps)) == [1, 2, 3]
        for line in lines:
            numbers = {name: value for name, value in line.items() if "by_noise" not in name}
            assert set(numbers) == {"step", "loss", "lr", "grad_norm", "seconds"}
            assert all(math.isfinite(v) for v in numbers.values()) and line["loss"] > 0
            assert set(line) - set(numbers) == {"loss_by_noise", "rows_by_noise"}


def displayed(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[float]:
    """What the line of progress shows beside each of a series of losses."""
    shown: list[float] = []

    def records(*_: object, **__: object) -> Iterator[Record]:
        for i, loss in enumerate(losses):
            yield Record(i + 1, 1.0, torch.tensor([loss, 1e-3], dtype=torch.float64), lambda record: AssertionError())

    monkeypatch.setattr(loop, "steps", records)
    monkeypatch.setattr(Progress, "update", lambda self, n, fields: shown.append(fields["loss"]))
    fit(dataclasses.replace(TINY, steps=len(losses)), save=False, quiet=True)
    assert len(shown) == len(losses)
    return shown


def test_the_loss_beside_the_progress_is_an_average_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of equal losses it is their value, from the first step on; noise it takes out; and it follows a trend.
    assert displayed(monkeypatch, [3.0] * 40) == pytest.approx([3.0] * 40)
    noisy = displayed(monkeypatch, [1.0, 3.0] * 100)
    assert noisy[0] == 1 and all(1 <= value <= 3 for value in noisy)
    assert noisy[60:] == pytest.approx([2.0] * 140, abs=0.15)
    # Over the last tenth of a short run, over the last fifty steps of a long one.
    rising = displayed(monkeypatch, [float(step) for step in range(1, 1001)])
    assert 0.85 * 100 < rising[99] < 0.95 * 100 and 930 < rising[-1] < 970


def test_a_loss_that_is_not_finite_stops_with_step_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(call: int, t: Tensor) -> Tensor:
        out = torch.zeros(len(t))
        if call == 4:
            out[5] = math.nan
        return out

    seen = Seen(monkeypatch, loss)
    config = dataclasses.replace(TINY, steps=6)
    with pytest.raises(NumericalError) as error:
        fit(config, out=tmp_path / "r", quiet=True)
    text = str(error.value)
    assert "stopped at step 4 because" in text and f"t = {float(seen.t[3][5]):.3g} has loss nan" in text
    assert "Try a smaller learning rate" in text and error.value.parameter == "lr"
    assert f"The last checkpoint in {tmp_path / 'r'} is from an earlier step" in text
    assert newest_checkpoint(tmp_path / "r").name == "step-000000003"
    assert [line["step"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2, 3]
    monkeypatch.setattr(objective, "denoising_loss", denoising_loss)
    assert fit(config, out=tmp_path / "r", resume=True, quiet=True).step == 6


def test_there_is_no_talk_of_a_checkpoint_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Seen(monkeypatch, lambda call, t: torch.full((len(t),), math.inf))
    with pytest.raises(NumericalError, match=r"step 1 because .* is not finite \(loss inf") as error:
        fit(TINY, out=tmp_path / "r", quiet=True)
    assert "checkpoint" not in str(error.value)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[ScoreModel] = []

    def loss(model: ScoreModel, x0: Tensor, *_: object) -> Tensor:
        models.append(model)
        p = next(model.parameters())
        return torch.sqrt((p * 0).sum()) + torch.zeros(len(x0))  # 0, with an infinite derivative

    monkeypatch.setattr(objective, "denoising_loss", loss)
    with pytest.raises(NumericalError, match="gradient norm nan"):
        fit(TINY, save=False, quiet=True)
    assert all(bool(torch.isfinite(p).all()) for p in models[0].parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting": "nativ"}, "unknown weighting 'nativ'; did you mean 'native'"),
        ({"weighting": "p2", "weighting_options": {"gama": 1}}, "no option 'gama'; did you mean 'gamma'"),
        ({"weighting_options": {"gamma": 1}}, "weighting 'native' has no option 'gamma'"),
        ({"weighting": "test_weighting:by_hand", "weighting_options": {"k": 1}}, "is a function and has no options"),
        ({"t_sampler": "log"}, "unknown time sampler 'log'"),
        ({"t_sampler_options": {"mean": 1}}, "time sampler 'sqrt' has no option 'mean'"),
        ({"t_sampler": "lognormal", "t_sampler_options": {"mean": 99}}, "the training times of .* use another mean"),
        ({"t_sampler": "sqrt", "weighting": "likelihood"}, "Likelihood.* is defined for times uniform in t"),
        ({"t_sampler": "importance"}, r"mean square of the loss is .* times as large as .*error='edm'"),
        ({"t_sampler": "importance", "weighting": "x0"}, "mean square of the loss"),
        ({"sde": BlindAtZero(), "predict": "v", "weighting": "score"}, "must be at least 0 and below 1e15"),
        ({"sde": "vpp"}, "unknown SDE 'vpp'; did you mean 'vp'"),
        ({"predict": "epss"}, "unknown prediction 'epss'; did you mean 'eps'"),
        ({"network_options": {"widht": 3}}, "no option 'widht'; did you mean 'width'"),
        ({"cond": "class"}, "moons has no labels"),
    ],
)
def test_settings_are_checked_before_a_folder_is_made(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(dataclasses.replace(TINY, **changes), out=tmp_path / "r", quiet=True)  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps is -1; it must be an integer >= 0"),
        ({"clip": 0.0}, "clip is 0.0; it must be a number > 0"),
        ({"clip": "abc"}, "clip is 'abc'; it must be a number"),
        ({"seed": 1.5}, "seed is 1.5; it must be an integer"),
        ({"steps": True}, "steps is True; it must be an integer"),
        ({"ema": 1.5}, "ema is 1.5; it must be a number >= 0 and <= 1"),
        ({"sde": 3}, "sde is 3; it must be a name"),
        ({"sde_options": "beta"}, "it must be a mapping of options"),
        ({"decay": "cosin"}, "unknown decay 'cosin'; did you mean 'cosine'"),
        ({"preset": "smal"}, "unknown preset 'smal'; did you mean 'small'"),
    ],
)
def test_values_that_cannot_be_right(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**changes)  # type: ignore[arg-type]


def test_a_small_data_set_has_small_batches(rows: str) -> None:
    config, *_ = prepared(TrainConfig(data=rows, preset="mlp", batch=64), load_data(rows))
    assert config.batch == 22 and config.predict == "edm" and config.warmup >= 1


def test_configurations_survive_json() -> None:
    config, *_ = prepared(dataclasses.replace(TINY, sde="ve", sde_options={"sigma_max": 7.0}), load_data("moons"))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
