"""What the pictures show is what the formulas say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scoresde import VESDE, VPSDE, CosineSDE, FlowMatching, Noise, Shifted, load, load_data, plot
from scoresde.core.errors import NumericalError
from scoresde.core.registry import build
from scoresde.core.tables import SDES, SOLVERS
from scoresde.study.figures import (
    DRAWS,
    Undone,
    dissolve,
    even_times,
    frames_between,
    paths,
    projection,
    schedules_of,
    shown,
    size_note,
    training_log_snr,
    undo,
    write_reverse,
)

ALL = [VPSDE(), VESDE(), CosineSDE(), FlowMatching(), Shifted(FlowMatching(), 3.0)]


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_the_jump_and_the_chain_have_one_law(sde):
    x0 = torch.full((40_000, 1), 1.5, dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.5, 0.9], dtype=torch.float64)
    found = dissolve(sde, x0, t, Noise.of(len(x0), 3))
    alpha, sigma = sde.coefficients(t)
    for states in (found.jump, found.chain):
        centred = (states[..., 0] - 1.5 * alpha[:, None]) / sigma[:, None]
        assert centred.mean(1).abs().max() < 4 / 200
        assert (centred.var(1) - 1).abs().max() < 4 * 2**0.5 / 200
    # At two times they differ: the jump keeps its noise, the chain keeps the share A sigma_s / sigma_t of it.
    for states, expected in ((found.jump, 1.0), (found.chain, alpha[2] / alpha[1] * sigma[1] / sigma[2])):
        pair = ((states[1:3, :, 0] - 1.5 * alpha[1:3, None]) / sigma[1:3, None]).unbind(0)
        assert float((pair[0] * pair[1]).mean()) == pytest.approx(float(expected), abs=4 / 200)
    assert found.spread.shape == (2, 4) and (found.spread - 1).abs().max() < 0.02


def test_the_jump_is_its_formula():
    x0 = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    found = dissolve(FlowMatching(), x0, [0.25, 1.0], Noise.of(2, 5))
    eps = found.jump[1]
    torch.testing.assert_close(found.jump[0], 0.75 * x0 + 0.25 * eps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_even_times_are_even_in_the_straight_clock(sde):
    t = even_times(sde, 9, 0.95, sde.t_min)
    gaps = torch.diff(sde.ratio(t))
    assert t[0] == 0.95 and t[-1] == sde.t_min and (gaps < 0).all()
    torch.testing.assert_close(gaps, gaps.mean().expand(8), rtol=1e-6, atol=1e-9)


def test_states_are_drawn_in_data_units_and_at_unit_size():
    codec = load_data("moons").codec
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    x = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = shown(FlowMatching(), codec, x, t)
    expected = torch.stack([x[0], x[1] / 0.5**0.5, x[2]]) * codec.scale + codec.shift
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-12)
    assert size_note(VPSDE(), t) == "" and "divided" in size_note(VESDE(), t)


# ---------------------------------------------------------------------------------------------------------- schedule


def test_a_schedule_has_the_closed_forms():
    (vp,), (flow,) = schedules_of("vp", VPSDE()), schedules_of("flow", FlowMatching())
    beta = 0.1 + torch.as_tensor(vp.t) * 19.9
    torch.testing.assert_close(torch.as_tensor(vp.beta), beta, rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.as_tensor(vp.g2), beta, rtol=1e-10, atol=0)
    t = torch.as_tensor(flow.t)[:-1]
    torch.testing.assert_close(torch.as_tensor(flow.beta)[:-1], 2 / (1 - t), rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.as_tensor(flow.g2)[:-1], 2 * t / (1 - t), rtol=1e-10, atol=0)
    assert torch.isinf(torch.as_tensor(flow.beta)[-1])
    assert torch.diff(torch.as_tensor(vp.nodes)).min() > 0, "a solver goes from noise to data"


def test_training_noise_levels_are_where_training_draws_them():
    """Uniform t on the straight path: the log-SNR is logistic with scale 2, P(l' > l) = sigmoid(-l/2)."""
    levels = training_log_snr(FlowMatching(), DRAWS).sort(descending=True).values
    share = (torch.arange(DRAWS) + 0.5) / DRAWS
    assert (share - torch.sigmoid(-levels / 2)).abs().max() < 1e-3


@pytest.mark.parametrize("name", SDES)
def test_every_sde_has_a_schedule(name):
    sde = build(name, SDES, **({"shape": (1, 4, 4)} if name == "blur" else {"shape": (2,)} if name == "parts" else {}))
    curves = schedules_of(name, sde)
    assert len(curves) == {"blur": 3, "parts": 2}.get(name, 1)
    for made in curves:
        for values in (made.alpha, made.sigma):
            assert values.shape == (513,) and torch.isfinite(torch.as_tensor(values)).all()
        assert len(torch.as_tensor(made.training)) == DRAWS


# --------------------------------------------------------------------------------------------------- with a trained run


def test_reverse_asks_the_model_at_the_states_it_shows(trained: Path):
    run = load(trained / "moons", dtype=torch.float64)
    found = undo(run, 5, build("heun", SOLVERS, steps=4), 6, seed=2)
    assert found.x.shape == found.x0.shape == (6, 5, 2) and found.nfe == 8
    start = Noise.of(5, 2).normal((2,), stream="prior", dtype=torch.float64)
    torch.testing.assert_close(found.x[0], run.codec.continuous.to_data(start), rtol=0, atol=2e-4)  # sigma(1) = 0.99998
    samples = run.sample(5, build("heun", SOLVERS, steps=4), seed=2)
    torch.testing.assert_close(found.x0[-1], samples.x, rtol=0, atol=1e-9)
    # In between: the model, asked at the state that is shown.
    size = torch.hypot(*run.model.domain.sde.coefficients(found.t))[2]
    x = run.codec.continuous.to_model(found.x[2]) * size
    torch.testing.assert_close(
        found.x0[2], run.codec.continuous.to_data(run.model(x, found.t[2]).x0), rtol=0, atol=1e-9
    )


def test_the_columns_of_a_strip_are_equally_far_apart(trained: Path, tmp_path: Path, monkeypatch):
    run, seen = load(trained / "moons"), {}
    monkeypatch.setattr(plot, "strips", lambda blocks, columns, *_, **__: seen.update(blocks) or plot.scatter(eye))
    eye = torch.eye(2)
    for columns, frames in ((4, 2), (4, 5), (3, 9)):
        found = undo(run, 3, build("heun", SOLVERS, steps=2), frames_between(columns, frames))
        assert len(found.t) >= max(frames, columns)
        seen.clear()
        write_reverse(run, found, tmp_path / "r.png", columns, gif=False)
        times = found.t[:: (len(found.t) - 1) // (columns - 1)]
        assert len(times) == columns and times[-1] == found.t[-1]
        gaps = torch.diff(run.model.domain.sde.ratio(times))
        torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-6, atol=1e-9)
        assert all(len(states) == columns for states in seen.values()) and len(seen) == 2


def test_the_last_frame_does_not_claim_to_be_at_zero(trained: Path, tmp_path: Path, monkeypatch):
    run, seen = load(trained / "moons"), []
    animate = plot.animate_pair
    monkeypatch.setattr(plot, "animate_pair", lambda x, y, names, *of: seen.extend(names) or animate(x, y, names, *of))
    write_reverse(run, undo(run, 3, build("heun", SOLVERS, steps=2), 3), tmp_path / "r.png", 3)
    assert [state for state, _ in seen][::2] == ["$x_t$,  t = 1.00", "$x_t$,  t = 0.001"]
    assert (tmp_path / "r.gif").exists()


def test_both_kinds_of_path_leave_from_the_same_noise(trained: Path):
    run = load(trained / "moons", dtype=torch.float64)
    axis, what = projection(run, load_data("moons").train)
    found = paths(run, 6, build("heun", SOLVERS, steps=8), build("em", SOLVERS, steps=8), axis, frames=12)
    assert what == "first coordinate" and axis.tolist() == [1.0, 0.0]
    assert found.flow.shape == found.sde.shape == (12, 6)
    assert torch.equal(found.flow[0], found.sde[0])
    assert (found.flow[-1] - found.sde[-1]).abs().min() > 1e-3


def test_images_are_followed_along_their_principal_axis(trained: Path):
    run, data = load(trained / "digits"), load_data("digits")
    axis, what = projection(run, data.train)
    assert what == "first principal axis" and float(axis.norm()) == pytest.approx(1)
    x = run.codec.continuous.to_model(data.train.double()).flatten(1)
    largest = torch.linalg.eigvalsh(torch.cov(x.T))[-1]
    assert float((x @ axis).var()) == pytest.approx(float(largest), rel=1e-9)


def test_what_is_not_finite_is_not_drawn(trained: Path, tmp_path: Path):
    run = load(trained / "moons")
    x = torch.zeros(3, 4, 2)
    x[1, 2, 0] = torch.nan
    with pytest.raises(NumericalError, match="contains 1 sample with values that are not finite"):
        write_reverse(
            run, Undone(torch.tensor([1.0, 0.5, 0.1]), x, x, 1.0, torch.ones(x.shape[1]) > 0), tmp_path / "r.png", 3
        )
    assert list(tmp_path.iterdir()) == []
