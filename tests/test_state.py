"""The state of training: saved by name, taken up bit for bit, and driven by any objective."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scoresde import TrainConfig, fit
from scoresde.codec import Composed
from scoresde.core.errors import CheckpointError, NumericalError, UsageError
from scoresde.core.files import read_object
from scoresde.core.noise import keyed
from scoresde.data.batch import Batch, Batches, Rows
from scoresde.objective import loss as objective
from scoresde.objective.draw import Draws, NoiseDraw
from scoresde.objective.loss import Objective
from scoresde.run.files import newest_checkpoint
from scoresde.train import loop
from scoresde.train.averages import EMA
from scoresde.train.levels import Levels
from scoresde.train.prepare import begun, parts, prepared
from scoresde.train.state import Record, TrainState, keyed_rng, steps


class Shrink(Objective):
    """The squared error of a linear map that is to halve what it sees."""

    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        return (model(batch.x0) - batch.x0 / 2).square().mean(1)


class Ends(Shrink):
    def ends(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.full((len(batch),), 3.0)


def start(lr: float = 0.1) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 2))
    return TrainState(model, torch.optim.Adam(model.parameters(), lr), NoiseDraw(), EMA(model))


def running(state: TrainState, until: int, objective: Objective | None = None) -> Iterator[Record]:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    batches = Batches(Rows(x, Composed()), 8, seed=5)
    return steps(state, objective or Shrink(), batches, until, seed=5, rate=lambda n: 0.1 / (n + 1))


def tensors(state: TrainState) -> dict[str, Tensor]:
    return {**state.model.state_dict(), **{f"ema {k}": v for k, v in state.average.state_dict().items()}}


def same(one: TrainState, other: TrainState) -> bool:
    a, b = tensors(one), tensors(other)
    return one.step == other.step and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_caller_stands_between_two_steps(tmp_path: Path) -> None:
    whole, halves, again = start(), start(), start()
    seen = list(running(whole, 6))
    assert [r.step for r in seen] == [1, 2, 3, 4, 5, 6] and [r.lr for r in seen] == [0.1 / (n + 1) for n in range(6)]
    for record in running(halves, 6):
        if record.step == 4:
            break
    again.load(halves.save(tmp_path))
    assert same(again, halves) and not same(again, whole)
    assert [r.loss for r in running(again, 6)] == [r.loss for r in seen[4:]]
    assert same(again, whole)
    assert [r.loss for r in running(again, 6)] == []  # there is nothing left to do


def test_what_no_draw_changes_is_added_to_the_loss() -> None:
    first, other = (next(running(start(), 1, objective)) for objective in (Shrink(), Ends()))
    assert other.loss == pytest.approx(first.loss + 3.0) and other.grad_norm == first.grad_norm


def test_moments_have_the_names_of_their_parameters(tmp_path: Path) -> None:
    state = start()
    list(running(state, 2))
    file = state.save(tmp_path) / "optim.safetensors"
    stored = load_file(file)
    assert {name.rpartition(".")[0] for name in stored} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    # Format 1 had their numbers.
    numbers = {"0.weight": "0", "0.bias": "1", "2.weight": "2", "2.bias": "3"}
    split = {name: name.rpartition(".") for name in stored}
    save_file({f"{numbers[split[n][0]]}.{split[n][2]}": v for n, v in stored.items()}, file)
    old = start()
    old.load(tmp_path / "checkpoints" / "step-000000002")
    list(running(old, 5))
    list(running(state, 5))
    assert same(old, state)
    save_file({"3.weight.exp_avg": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"optimiser moments for '3\.weight', which is not in the model"):
        start().load(file.parent)
    save_file({}, file)
    with pytest.raises(CheckpointError, match="no optimiser state"):
        start().load(file.parent)


def test_a_step_that_fails_leaves_the_state_before_it() -> None:
    class Bad(Shrink):
        def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
            return super().__call__(model, batch, draws) * (torch.nan if state.step == 2 else 1)

    state, fine = start(), start()
    list(running(fine, 2))
    with pytest.raises(NumericalError, match=r"step 3 because .*loss nan.*the worst row has loss nan"):
        list(running(state, 5, Bad()))
    assert same(state, fine)


@pytest.mark.parametrize("name", ["sample_sheet", "loss_figure"])
def test_a_picture_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def broken(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(loop, name, broken)
    config = TrainConfig(data="moons", steps=2, batch=8, network_options={"width": 8, "blocks": 1})
    with pytest.warns(UserWarning, match=r"the figure .*was not created \(OSError: no space left"):
        assert fit(config, out=tmp_path / "r", quiet=True).step == 2
    assert newest_checkpoint(tmp_path / "r").name == "step-000000002"


def fused(lr: float = 0.1) -> TrainState:
    """The state of `start` with the optimiser of training, which skips an update on the device."""
    state = start(lr)
    state.optimiser = torch.optim.Adam(state.model.parameters(), lr, fused=True)
    return state


def everything(state: TrainState) -> dict[str, Tensor]:
    moments = state.optimiser.state_dict()["state"]
    return {**tensors(state), **{f"{i}.{k}": v.clone() for i, found in moments.items() for k, v in found.items()}}


class Learned(NoiseDraw):
    """A draw that learns the mean loss, as some time samplers do."""

    def __init__(self) -> None:
        object.__setattr__(self, "std", 0.0)
        object.__setattr__(self, "seen", torch.zeros(2, dtype=torch.float64))

    def update(self, draws: Draws, losses: Tensor) -> None:
        self.seen.add_(torch.tensor([float(losses.mean()), 1.0]))  # type: ignore[attr-defined]

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen.clone()}  # type: ignore[attr-defined]


class BadAt(Shrink):
    """Losses of which one is not finite, or has no finite gradient, when the weights have been updated `at` times."""

    def __init__(self, at: int, kind: str) -> None:
        self.at, self.kind, self.asked = at, kind, 0

    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        losses = super().__call__(model, batch, draws)
        self.asked += 1
        if self.asked != self.at + 1:
            return losses
        bad = torch.zeros_like(losses)
        if self.kind == "gradient":  # sqrt(0) has an infinite derivative
            return losses + torch.sqrt((losses * 0).sum())
        bad[3] = torch.nan if self.kind == "nan" else torch.inf
        return losses + bad


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_step_that_fails_is_never_applied(at: int, kind: str, learns: bool) -> None:
    """Although it is reported a step late: weights, moments, averages and what the draw learned are those before it."""
    state, fine = fused(), fused()
    if learns:
        state.draw, fine.draw = Learned(), Learned()
    list(running(fine, at))
    objective = BadAt(at, kind)
    with pytest.raises(NumericalError, match=f"stopped at step {at + 1} because"):
        list(running(state, 5, objective))
    # The report of the last step cannot be later than itself, and a draw that learns waits for it.
    assert objective.asked == min(5, at + (1 if learns else 2))
    a, b = everything(state), everything(fine)
    assert state.step == at and state.average is not None and state.average.updates == at
    for name in b:
        assert torch.equal(a[name], b[name]), name
    assert not any(bool(a[name].any()) for name in a if name not in b)  # moments of a first step that was skipped
    assert all(torch.equal(v, fine.draw.state()[k]) for k, v in state.draw.state().items())


def test_a_step_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two yields, no number is read from a tensor, except by `Record`, a step late."""
    read: list[str] = []
    inside = [False]

    def counted(name: str) -> None:
        real = getattr(Tensor, name)

        def called(self: Tensor, *args: object, **options: object) -> object:
            caller = sys._getframe(1).f_code.co_name
            if inside[0] and caller not in ("read", "finite_g"):  # the latter asks the path on the host
                read.append(f"{name} in {caller}")
            return real(self, *args, **options)

        monkeypatch.setattr(Tensor, name, called)

    config = TrainConfig(steps=4, batch=16, warmup=1, network_options={"channels": 4})
    data = config.load_data()
    config, model, spec = prepared(config, data, None, None, None)
    state, objective = begun(config, model, torch.device("cpu"), torch.float32)
    batches = Batches(parts(data, spec, config, None)[0], config.batch, 0)
    # The batch and its draws are made on the host.
    ready = [batches.at(n, keyed(0, n), torch.float32) for n in range(4)]
    drawn = [state.draw(batch, keyed(1, n)) for n, batch in enumerate(ready)]
    monkeypatch.setattr(Batches, "at", lambda self, step, *_: ready[step])
    monkeypatch.setattr(type(state.draw), "__call__", lambda self, batch, _: drawn[state.step])
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "nonzero"):
        counted(name)
    levels = Levels(model.domain)
    records = steps(state, objective, batches, 4, seed=0, rate=lambda n: 1e-3, clip=1.0, watch=levels.add)
    for _ in range(4):
        inside[0] = True
        next(records)
        inside[0] = False
    assert state.step == 4 and read == [] and sum(levels.take().counts.tolist()) == 64


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    one, four = (fused().model.double() for _ in range(2))
    found = []
    for model, number in ((one, 1), (four, 4)):
        model.eval()  # no dropout
        state = TrainState(model, torch.optim.Adam(model.parameters(), 0.1, fused=True), NoiseDraw(), EMA(model))
        state.divided = (1, number)
        x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        batches = Batches(Rows(x, Composed()), 8, seed=5)
        found.append([r.loss for r in steps(state, Shrink(), batches, 6, seed=5, rate=lambda n: 0.1)])
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_each_process_and_part_has_its_own_dropout() -> None:
    seen = []
    for rank, part in ((0, 0), (0, 1), (1, 0), (1, 1)):
        with keyed_rng(3, 7, "cpu", None, rank, part):
            seen.append(torch.rand(8))
    with keyed_rng(3, 7, "cpu"):  # what it was before there were several
        assert torch.equal(torch.rand(8), seen[0])
    assert len({tuple(found.tolist()) for found in seen}) == 4


def test_dropout_ties_a_run_to_its_division(tmp_path: Path) -> None:
    config = TrainConfig(data="moons", steps=2, batch=8, network_options={"width": 8, "blocks": 1, "dropout": 0.1})
    fit(replace(config, accumulate=2), out=tmp_path / "r", quiet=True)
    more = replace(config, steps=4)
    with pytest.raises(UsageError, match="in 1 process with 2 parts each, and would continue in 1 process with 1 part"):
        fit(more, out=tmp_path / "r", resume=True, quiet=True)
    assert fit(more, out=tmp_path / "r", resume=True, redivided=True, quiet=True).step == 4
    plain = replace(config, network_options={"width": 8, "blocks": 1})
    fit(replace(plain, accumulate=2), out=tmp_path / "p", quiet=True)
    assert fit(replace(plain, steps=4), out=tmp_path / "p", resume=True, quiet=True).step == 4


def test_a_batch_that_does_not_fit_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, the parts are halved, with a warning. This is kept, and the weights are those of a whole batch."""
    config = TrainConfig(data="moons", steps=4, batch=32, network_options={"width": 8, "blocks": 1}, save_minutes=0)
    whole = fit(config, out=tmp_path / "w", dtype=torch.float64, quiet=True)
    real, rows = objective.denoising_loss, []

    def small(model: nn.Module, x0: Tensor, *more: Tensor) -> Tensor:
        rows.append(len(x0))
        if len(x0) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, x0, *more)

    monkeypatch.setattr(objective, "denoising_loss", small)
    with pytest.warns(UserWarning, match="memory ran out") as told:
        fit(replace(config, steps=2), out=tmp_path / "r", dtype=torch.float64, quiet=True)
    assert [str(w.message).split(" parts")[0][-1] for w in told if "memory ran out" in str(w.message)] == ["2", "4"]
    assert read_object(newest_checkpoint(tmp_path / "r") / "state.json")["divided"] == [1, 4]
    rows.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit(config, out=tmp_path / "r", resume=True, dtype=torch.float64, quiet=True)
    assert set(rows) == {8}
    for a, b in zip(run.base.learned.parameters(), whole.base.learned.parameters(), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)  # the schedule of the first half was that of two steps
    monkeypatch.setattr(
        objective, "denoising_loss", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    )
    with pytest.raises(torch.OutOfMemoryError):  # a row alone does not fit
        fit(config, save=False, quiet=True)
