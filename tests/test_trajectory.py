"""What happened on the way: every step of every row, and the state at any time between."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import ALL, F64, gaussian, gaussian_flow, normals, ring
from solving import FIVE, OURS, prior, small, start

from scoresde import VPSDE, EulerMaruyama, Multistep, Noise, ProbabilityFlow, RungeKutta
from scoresde.core.errors import UsageError
from scoresde.ode.integrate import FAILED_LIMIT
from scoresde.sde.grids import make_grid
from scoresde.solvers import AdaptiveSDE, MultistepSDE, PredictorCorrector, sample
from scoresde.solvers.base import Solution

# --------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("solver", OURS)
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_steps_lead_from_start_to_end(name, solver):
    model, z = ring(ALL[name]), prior(name, 5, 2)
    low, high = model.domain.interval("sample")
    made = small(solver)
    solved = made(model, z, noise=Noise.of(5), record=True)
    path = solved.trajectory
    assert len(path) == 5
    for row in range(5):
        times, states, sizes = path.times(row), path.states(row), path.step_sizes(row)
        assert times.dtype == torch.float64 and float(times[0]) == high
        assert float(times[-1]) == pytest.approx(low, abs=1e-12) and bool((torch.diff(times) < 0).all())
        assert len(times) == len(states) == len(sizes) + 1 == int(solved.accepted[row]) + 1
        assert float(sizes.sum()) == pytest.approx(high - low, abs=1e-12) and bool((sizes > 0).all())
        assert torch.equal(states[0], z[row]) and torch.equal(states[-1], solved.x[row])


@pytest.mark.parametrize("solver", ["heun", "ode", "sde"])
def test_recording_changes_nothing(solver):
    model, z, made = ring(VPSDE()), normals(6, 2), small(solver)
    plain, recorded = (made(model, z, noise=Noise.of(6), record=r) for r in (False, True))
    assert plain.trajectory is None
    assert torch.equal(plain.x, recorded.x) and torch.equal(plain.nfe, recorded.nfe)


@pytest.mark.parametrize("grid", ["uniform", "karras", (1.0, 0.7, 0.2, 1e-3)], ids=str)
def test_a_fixed_solver_stops_at_its_nodes(grid):
    solved = RungeKutta(3, grid=grid)(ring(VPSDE()), normals(4, 2), record=True)
    assert torch.equal(solved.trajectory.times(2), make_grid(grid, VPSDE(), 3, 1.0, 1e-3))


def test_states_in_between_are_the_solvers_own():
    # The state at node k of a solver is its end on the grid cut off there; a multistep solver starts as it started.
    model, z, grid = ring(VPSDE()), normals(4, 2), (1.0, 0.6, 0.3, 0.1, 1e-3)
    path = Multistep(order=2, grid=grid)(model, z, record=True).trajectory
    for k in (1, 2, 3):
        ended = Multistep(order=2, grid=grid[: k + 1])(model, z, t1=grid[k]).x
        assert float((path.states(1)[k] - ended[1]).abs().max()) < 1e-12


def test_other_peoples_integrators_record_their_ends():
    for engine in ("torchdiffeq", "scipy"):
        solved = ProbabilityFlow(engine=engine)(ring(VPSDE()), normals(3, 2), record=True)
        assert solved.trajectory.times(0).tolist() == [1.0, 1e-3]
        assert torch.equal(solved.trajectory.states(1)[-1], solved.x[1])


# -------------------------------------------------------------------------------------------------------- in between


@pytest.mark.parametrize("name", FIVE)
def test_the_flow_at_any_time(name):
    # Cubic between steps that are right to 1e-6: the flow of a Gaussian in closed form.
    model, z = gaussian(ALL[name], dims=3), prior(name, 6, 3)
    low, high = model.domain.interval("sample")
    path = ProbabilityFlow(rtol=1e-6, atol=1e-6)(model, z, record=True).trajectory
    times = [high, 0.9, 0.7, 0.5, 0.3, 0.1, 0.01, low]
    shown = path.at(times)
    assert shown.shape == (8, 6, 3)
    for t, x in zip(times, shown, strict=True):
        scale = float(ALL[name].scale(torch.tensor(t, dtype=F64)))
        assert float((x - gaussian_flow(model, z, high, t)).abs().max()) < 2e-4 * scale, t


@pytest.mark.parametrize("name", [pytest.param("vp", marks=pytest.mark.slow), "flow"])
def test_the_flow_of_the_mixture_at_any_time(name):
    model, z = start(name)[0], start(name)[1][:48]
    path = ProbabilityFlow(rtol=1e-6, atol=1e-6)(model, z, record=True).trajectory
    for t in (0.6, 0.2, 0.05):
        exact = ProbabilityFlow(rtol=1e-8)(model, z, t1=t).x
        assert float((path.at([t])[0] - exact).norm(dim=1).median()) < 1e-4


def test_what_the_slopes_buy():
    # Straight lines between the same stops: a hundred times as far off.
    model, z = gaussian(VPSDE(), dims=3), normals(6, 3)
    path = ProbabilityFlow(rtol=1e-6, atol=1e-6)(model, z, record=True).trajectory
    times = torch.linspace(1.0, 1e-3, 41, dtype=F64)
    exact = torch.stack([gaussian_flow(model, z, 1.0, float(t)) for t in times])
    cubic = (path.at(times) - exact).abs().max()
    bare = type(path)(path.sde, [(t, x, [None] * len(k)) for t, x, k in path._rows])
    straight = (bare.at(times) - exact).abs().max()
    assert float(cubic) < 0.05 * float(straight)


def test_an_encoding_is_read_off_as_well():
    model, x = gaussian(VPSDE(), dims=2), 0.3 + 0.5 * normals(6, 2)
    path = ProbabilityFlow(rtol=1e-6, atol=1e-6)(model, x, t0=1e-3, t1=1.0, record=True).trajectory
    for t in (0.01, 0.2, 0.8):
        assert float((path.at([t])[0] - gaussian_flow(model, x, 1e-3, t)).abs().max()) < 2e-4


def test_stops_are_met_exactly_and_lines_join_them():
    # A solver without slopes: straight in the frame x/(alpha + sigma) against sigma/(alpha + sigma).
    model, z = ring(VPSDE()), normals(4, 2)
    path = RungeKutta(6)(model, z, record=True).trajectory
    times, states = path.times(0), torch.stack([path.states(row) for row in range(4)], 1)
    assert float((path.at(times) - states).abs().max()) < 1e-12
    t = torch.tensor([0.5 * float(times[2] + times[3])], dtype=F64)
    r, at = VPSDE().ratio(times), VPSDE().ratio(t)
    u = (at - r[2]) / (r[3] - r[2])
    y = (1 - u) * states[2] / VPSDE().scale(times[2]) + u * states[3] / VPSDE().scale(times[3])
    assert float((path.at(t)[0] - y * VPSDE().scale(t)).abs().max()) < 1e-12


def test_rows_of_an_adaptive_solver_have_times_of_their_own():
    path = AdaptiveSDE(rtol=0.3, atol=0.3)(ring(VPSDE()), normals(6, 2), noise=Noise.of(6), record=True).trajectory
    assert len({len(path.times(row)) for row in range(6)}) > 1
    shown = path.at([0.8, 0.4])
    for row in range(6):
        near = int((path.times(row) - 0.4).abs().argmin())
        if abs(float(path.times(row)[near]) - 0.4) < 1e-4:
            assert float((shown[1, row] - path.states(row)[near]).norm()) < 0.1


def test_a_time_that_was_not_passed_is_refused():
    path = RungeKutta(4)(ring(VPSDE()), normals(2, 2), t1=0.2, record=True).trajectory
    for times in ([0.1], [0.5, 1.1]):
        with pytest.raises(UsageError, match=r"from t = 1 to 0\.2"):
            path.at(times)


def test_a_row_that_failed_stays_where_it_was():
    # Rows give up on their ways at different times; the others are shown to the end.
    model, z, solver = ring(VPSDE()), normals(6, 2), ProbabilityFlow(rtol=1e-4, atol=1e-4)
    nfe = solver(model, z).nfe
    z = z[nfe.argsort(descending=True)]  # the first one is among them
    limit = int(nfe.max()) - 1
    solved = replace(solver, max_nfe=limit)(model, z, record=True)
    lost = (solved.status == FAILED_LIMIT).nonzero().flatten().tolist()
    assert 0 < len(lost) < 6
    shown = solved.trajectory.at([0.9, 1e-3])
    for row in range(6):
        assert float((shown[1, row] - solved.x[row]).abs().max()) < 1e-9
        assert (float(solved.trajectory.times(row)[-1]) > 1e-3) == (row in lost)


# -------------------------------------------------------------------------------------------- samples, frames, watchers


@pytest.mark.parametrize("solver", [ProbabilityFlow(rtol=1e-4, atol=1e-4), MultistepSDE(8), EulerMaruyama(8)])
def test_chunks_are_joined_row_by_row(solver):
    model, noise = ring(VPSDE()), Noise.of(11, seed=2)
    whole = sample(model, solver, (2,), noise, dtype=F64, record=True)
    parts = sample(model, solver, (2,), noise, dtype=F64, batch=4, record=True)
    assert len(whole.trajectory) == len(parts.trajectory) == 11
    for row in (0, 4, 10):
        assert torch.allclose(whole.trajectory.times(row), parts.trajectory.times(row), rtol=0, atol=1e-12)
        assert torch.allclose(whole.trajectory.states(row), parts.trajectory.states(row), rtol=0, atol=1e-10)
    assert Solution.join([whole]).trajectory.times(3).tolist() == whole.trajectory.times(3).tolist()


@pytest.mark.parametrize("name", FIVE)
def test_the_last_frame_is_the_denoised_sample(name):
    model, noise = ring(ALL[name]), Noise.of(7, seed=2)
    for denoise in (True, False):
        solved = sample(model, RungeKutta(6), (2,), noise, dtype=F64, batch=3, denoise=denoise, record=True)
        times, states = solved.trajectory.frames(9)
        assert times.shape == (9,) and states.shape == (9, 7, 2) and bool(torch.isfinite(states).all())
        low, high = model.domain.interval("sample")
        assert float(times[0]) == high and float(times[-1]) == pytest.approx(low, abs=1e-12)
        assert float((states[-1] - solved.x).abs().max()) < 1e-12
        first = torch.stack([solved.trajectory.states(row)[0] for row in range(7)])
        assert float((states[0] - first).abs().max()) < 1e-12


def test_frames_are_spaced_as_asked():
    path = RungeKutta(6)(ring(VPSDE()), normals(3, 2), record=True).trajectory
    times, states = path.frames(5, "uniform")
    assert torch.allclose(times, torch.linspace(1.0, 1e-3, 5, dtype=F64)) and states.shape == (5, 3, 2)
    assert path.frames(5, (1.0, 0.5, 1e-3))[0].tolist() == [1.0, 0.5, 1e-3]
    with pytest.raises(UsageError, match="count is 1; it must be an integer >= 2"):
        path.frames(1)


@pytest.mark.parametrize("event", [(), (3,), (1, 4, 4)])
def test_any_event_shape(event):
    from scoresde import GaussianMixture

    model = GaussianMixture(VPSDE(), torch.full((1, *event), 0.3, dtype=F64), torch.tensor([0.5], dtype=F64))
    for solver in (ProbabilityFlow(rtol=1e-3, atol=1e-3), MultistepSDE(4)):
        path = solver(model, normals(2, *event), noise=Noise.of(2), record=True).trajectory
        assert path.at([0.7, 0.2]).shape == (2, 2, *event) and path.frames(4)[1].shape == (4, 2, *event)


@pytest.mark.parametrize("solver", [RungeKutta(4), MultistepSDE(4), PredictorCorrector(4), ProbabilityFlow(rtol=1e-2)])
def test_a_watcher_is_told_the_rows_of_the_whole_set(solver):
    seen: dict[int, list[float]] = {row: [] for row in range(7)}
    done, last = [], {}

    def watch(step):
        done.append(step.done)
        for i, row in enumerate(step.index.tolist()):
            seen[row].append(float(step.t.expand(len(step.index))[i]))
            last[row] = step.x[i]

    model = ring(VPSDE())
    solved = sample(model, solver, (2,), Noise.of(7, 3), dtype=F64, batch=3, denoise=False, watch=watch)
    for row, times in seen.items():
        assert len(times) == int(solved.accepted[row]) and times == sorted(times, reverse=True)
        assert times[-1] == pytest.approx(1e-3) and torch.equal(last[row], solved.x[row])
    assert 0 < min(done) <= max(done) == 1


def test_a_watcher_and_a_record_see_the_same():
    seen = []
    model, z = ring(VPSDE()), normals(3, 2)
    solver = replace(Multistep(5, order=2), grid="sqrt")
    solved = solver(model, z, watch=lambda step: seen.append(step.x.clone()), record=True)
    assert torch.equal(torch.stack(seen), torch.stack([solved.trajectory.states(r)[1:] for r in range(3)], 1))
