"""The state of training: saved by name, taken up bit for bit, and driven by any objective."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scoresde import TrainConfig, fit
from scoresde.codec import Composed
from scoresde.core.errors import CheckpointError, NumericalError
from scoresde.data.batch import Batch, Batches, Rows
from scoresde.objective.draw import Draws, NoiseDraw
from scoresde.objective.loss import Objective
from scoresde.run.files import newest_checkpoint
from scoresde.train import loop
from scoresde.train.averages import EMA
from scoresde.train.state import Record, TrainState, steps


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
