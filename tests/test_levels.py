"""The loss by noise level: the intervals, the sums, what metrics.jsonl has, and its picture."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import edit
from shell import Shell

from scoresde import EDMSDE, VDMSDE, VESDE, VPSDE, FlowMatching, TrainConfig, fit, load
from scoresde.core.errors import DataError
from scoresde.core.files import read_lines
from scoresde.model.estimate import Domain
from scoresde.objective.draw import Draws
from scoresde.study.figures import loss_by_noise
from scoresde.train.levels import COUNT, Levels, edges_of
from scoresde.train.loop import steps as real_steps

POINTS = TrainConfig(data="moons", steps=6, batch=32, warmup=1, network_options={"width": 8, "blocks": 1})


def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 2))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(), FlowMatching(), VDMSDE(learn=True)])
def test_the_intervals_divide_the_log_snr_evenly(sde: Any) -> None:
    domain = Domain(sde, sde.t_min, sde.t_max, None)
    edges, levels = edges_of(domain), Levels(domain)
    low, high = domain.interval("train")
    ends = sde.log_snr(torch.tensor([high, low], dtype=torch.float64)).clamp(-15, 15)
    assert edges.tolist() == pytest.approx(np.linspace(*ends.tolist(), 11).tolist(), abs=1e-12)
    # Times in every interval, and at the ends, where the log-SNR may be infinite.
    t = torch.cat([torch.tensor([low, high], dtype=torch.float64), torch.linspace(low, high, 997, dtype=torch.float64)])
    with torch.no_grad():
        snr = sde.log_snr(t).double()
    for k in range(COUNT):
        inside = (snr > edges[k] + 1e-9 if k else snr < edges[1]) & (
            snr < edges[k + 1] - 1e-9 if k < 9 else snr > edges[9]
        )
        found = levels.of(t[inside], torch.ones(int(inside.sum()))).counts.tolist()
        assert found == [int(inside.sum()) if i == k else 0 for i in range(COUNT)]


def test_the_means_are_those_of_the_rows() -> None:
    sde = VPSDE()
    levels, edges = Levels(Domain(sde, sde.t_min, sde.t_max, None)), edges_of(Domain(sde, sde.t_min, sde.t_max, None))
    rng = np.random.default_rng(0)
    t, losses, weight = (torch.from_numpy(rng.uniform(0.01, 1, 200)) for _ in range(3))
    at = np.clip(np.digitize(sde.log_snr(t).numpy(), edges.numpy()) - 1, 0, 9)
    expected = [float(losses[at == k].mean()) if (at == k).any() else None for k in range(10)]
    assert levels.of(t, losses).means == pytest.approx(expected) and None in expected
    # In training, with the weights of the draws, over two steps; a part of the second is the same for all.
    for rows, ends in ((slice(0, 120), 0.0), (slice(120, 200), 7.0)):
        loss = (weight[rows] * losses[rows]).mean() + ends
        levels.add(Draws(torch.zeros(1), t=t[rows], weight=weight[rows]), losses[rows], loss)
    each = weight * losses
    each[120:] += 7
    expected = [float(each[at == k].mean()) if (at == k).any() else None for k in range(10)]
    taken = levels.take()
    assert taken.means == pytest.approx(expected) and taken.counts.tolist() == np.bincount(at, minlength=10).tolist()
    assert levels.take().means == [None] * 10 and taken.means == pytest.approx(expected)


def total(line: dict[str, Any], name: str, rows: str) -> float:
    pairs = [(mean, n) for mean, n in zip(line[name], line[rows], strict=True) if n]
    assert all(mean is None for mean, n in zip(line[name], line[rows], strict=True) if not n)
    return sum(mean * n for mean, n in pairs) / sum(n for _, n in pairs)


CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "weighted draws": {"weighting": "likelihood", "t_sampler": "importance"},
    "learned path": {"sde": "vdm", "sde_options": {"learn": True}}, "chain": {"sde": "ddpm"},
    "parts": {"accumulate": 4}, "few": {"steps": 1, "validate_every": 1},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_intervals_sum_to_the_loss(tmp_path: Path, case: str) -> None:
    config = replace(POINTS, data="", validate_every=2)
    fit(replace(config, **CASES[case]), data=table(), out=tmp_path / "r", quiet=True)
    lines = read_lines(tmp_path / "r" / "metrics.jsonl")
    for line in lines:  # each of a single step
        assert total(line, "loss_by_noise", "rows_by_noise") == pytest.approx(line["loss"], rel=1e-6)
        assert sum(line["rows_by_noise"]) == 32
    looks = [line for line in lines if "validation" in line]
    assert len(looks) == max(1, len(lines) // 2)
    for line in looks:
        found = total(line, "validation_by_noise", "validation_rows_by_noise")
        assert found == pytest.approx(line["validation"], rel=1e-6)
        assert sum(line["validation_rows_by_noise"]) == 7 * 64  # each of few rows at 64 times
    assert all("validation_by_noise" not in line for line in lines if "validation" not in line)


def test_a_line_has_the_steps_since_the_line_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second step of 500 is logged: with the rows of two steps, although losses are read a step late."""
    seen: list[float] = []

    def watched(*args: Any, **options: Any) -> Any:
        for record in real_steps(*args, **options):
            seen.append(record.loss)
            yield record

    monkeypatch.setattr("scoresde.train.loop.steps", watched)
    fit(replace(POINTS, steps=500, batch=4), out=tmp_path / "r", quiet=True, dtype=torch.float64)
    lines = read_lines(tmp_path / "r" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(2, 501, 2))
    for line in lines:
        mean = sum(seen[line["step"] - 2 : line["step"]]) / 2
        assert total(line, "loss_by_noise", "rows_by_noise") == pytest.approx(mean, rel=1e-6)


def test_recording_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = fit(POINTS, save=False, quiet=True).model.state_dict()
    monkeypatch.setattr(Levels, "add", lambda *_: None)
    assert all(torch.equal(v, recorded[k]) for k, v in fit(POINTS, save=False, quiet=True).model.state_dict().items())


# ----------------------------------------------------------------------------------------------------------- picture


def test_the_picture_has_the_validations_or_the_training_losses(tmp_path: Path) -> None:
    fit(replace(POINTS, data="", validate_every=2), data=table(), out=tmp_path / "r", quiet=True)
    lines = read_lines(tmp_path / "r" / "metrics.jsonl")
    found = loss_by_noise(load(tmp_path / "r"))
    assert found.validation and found.steps == (2, 4, 6) and found.labels == ["step 2", "step 4", "step 6"]
    for step, row in zip(found.steps, found.losses.tolist(), strict=True):
        expected = [math.nan if mean is None else mean for mean in lines[step - 1]["validation_by_noise"]]
        assert row == pytest.approx(expected, nan_ok=True)
    assert loss_by_noise(load(tmp_path / "r"), 2).steps == (2, 6)
    fit(POINTS, out=tmp_path / "moons", quiet=True)
    lines = read_lines(tmp_path / "moons" / "metrics.jsonl")
    found = loss_by_noise(load(tmp_path / "moons"), 2)
    assert not found.validation and found.steps[-1] == 6 and found.labels[0].startswith("to step ")
    first = found.steps[0]
    rows = np.array([line["rows_by_noise"] for line in lines[:first]])
    sums = np.array([[mean or 0 for mean in line["loss_by_noise"]] for line in lines[:first]]) * rows
    with np.errstate(invalid="ignore"):
        expected = (sums.sum(0) / rows.sum(0)).tolist()
    assert found.losses[0].tolist() == pytest.approx(expected, nan_ok=True)


def test_the_command(shell: Shell, moons: str) -> None:
    found = shell.json(f"plot loss-by-noise {moons}")
    assert Path(f"{moons}/plots/loss-by-noise.png").stat().st_size > 5000
    assert len(found["log_snr"]) == 11 and found["loss"] == "training loss"  # type: ignore[arg-type]
    assert shell(f"plot loss-by-noise {moons} --lines 2 --out a.svg") == "a.svg\n"


def test_an_older_run_has_no_such_losses(shell: Shell, moons: str) -> None:
    path = Path(moons) / "metrics.jsonl"
    lines = [{k: v for k, v in line.items() if "by_noise" not in k} for line in read_lines(path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="has no losses by noise level"):
        loss_by_noise(load(moons))
    shell.refuses(f"plot loss-by-noise {moons}", 3, "has no losses by noise level", "train it for more steps")
    # Such a run goes on, and then has some.
    for name in ("decay_options", "weight_decay", "frechet_every"):
        edit(Path(moons) / "config.json", lambda stored, name=name: {
            **stored, "config": {k: v for k, v in stored["config"].items() if k != name}
        })  # fmt: skip
    shell(f"train --resume {moons} --steps 6 --quiet")
    assert loss_by_noise(load(moons)).steps[-1] == 6
