"""Time grids: both ends exact, uniform in the clock they promise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from models import ALL, normals, ring, watched

from scoresde import VPSDE, FlowMatching, convert
from scoresde.core.errors import UsageError
from scoresde.core.tables import GRIDS
from scoresde.sde.grids import (
    Discrete,
    GivenGrid,
    Grid,
    Karras,
    LogSNR,
    as_grid,
    default_grid,
    leading,
    linspace,
    make_grid,
    trailing,
)
from scoresde.solvers import DDIM, RungeKutta

OF_A_PATH = [name for name in GRIDS if name != "fitted"]  # which belongs to a run


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("grid", OF_A_PATH)
def test_ends_are_exact_and_the_way_is_monotone(name, grid):
    sde = ALL[name]
    for t0, t1 in ((1.0, 1e-3), (1e-3, 1.0)):
        times = make_grid(grid, sde, 37, t0, t1)
        assert float(times[0]) == t0 and float(times[-1]) == t1 and len(times) == 38
        assert times.dtype == torch.float64 and bool(((times[1:] - times[:-1]) * (t1 - t0) > 0).all())


def test_clocks():
    vp = ALL["vp"]

    def steps(values):
        d = torch.diff(values)
        return float((d - d.mean()).abs().max() / d.abs().mean())

    assert steps(make_grid("uniform", vp, 20, 1.0, 1e-3)) < 1e-10
    assert steps(make_grid("sqrt", vp, 20, 1.0, 1e-3).sqrt()) < 1e-10
    assert steps(vp.log_snr(make_grid("logsnr", vp, 20, 1.0, 1e-3))) < 1e-10
    flow = ALL["flow"]  # its log-SNR at t = 1e-5 is 23, and -infinity at 1
    assert steps(flow.log_snr(make_grid("logsnr", flow, 20, 0.99, 1e-5))) < 1e-9
    assert steps(flow.log_snr(make_grid("logsnr", flow, 20, 1.0, 1e-5))[1:]) < 1e-9
    assert steps(torch.exp(-vp.log_snr(make_grid("karras", vp, 20, 1.0, 1e-3)) / 14)) < 1e-10


def test_karras_is_the_published_grid():
    # Karras et al. 2022, eq. 5, for sigma between 0.002 and 80, rho 7, 18 steps: on a path with sigma = 80 t.
    sde = type(ALL["user_ve"])(top=80.0)
    times = make_grid("karras", sde, 17, 1.0, 0.002 / 80)
    i = torch.arange(18, dtype=torch.float64) / 17
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert torch.allclose(80 * times, expected, rtol=1e-9)


def test_bad_grids_are_refused():
    with pytest.raises(UsageError, match=r"choose from: .*logsnr"):
        make_grid("cosine", ALL["vp"], 5, 1.0, 0.1)
    with pytest.raises(UsageError, match="steps is 0"):
        make_grid("uniform", ALL["vp"], 0, 1.0, 0.1)
    with pytest.raises(UsageError, match="must be strictly monotone"):
        make_grid("logsnr", ALL["flow"], 5, 0.5, 0.5)


# -------------------------------------------------------------------------------------------- nodes of a discrete model


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 10, 30, 50, 600])
def test_discrete_grids_visit_nodes_only(spacing, steps):
    times = make_grid(Discrete(spacing), ALL["vp"], steps, 1.0, 1e-3)
    assert torch.equal(times, (times * 1000).round() / 1000)  # i/N to the last bit
    assert len(set(times.tolist())) == steps + 1
    back = make_grid(Discrete(spacing), ALL["vp"], steps, 1e-3, 1.0)
    assert torch.equal(back, times.flip(0))


@pytest.mark.parametrize(
    ("grid", "nodes"),
    [
        # Lin et al. 2024, arXiv:2305.08891, tab. 2, for 10 of 1000, and the top, where the path begins.
        (linspace(), [1000, 900, 800, 700, 600, 500, 401, 301, 201, 101, 1]),
        (leading(), [1000, 901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        (trailing(), [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 1]),
    ],
)
def test_discrete_spacings_are_the_published_ones(grid, nodes):
    times = make_grid(grid, ALL["vp"], 10, 1.0, 1e-3)
    assert (times * 1000).round().int().tolist() == nodes


def test_discrete_grids_of_another_number_of_nodes_and_of_a_part_of_the_way():
    times = make_grid(Discrete("trailing", 50), ALL["flow"], 5, 1.0, 0.02)
    assert (times * 50).round().int().tolist() == [50, 40, 30, 20, 10, 1]
    part = make_grid(Discrete("linspace", 100), ALL["vp"], 4, 0.8, 0.4)
    assert part.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4], abs=1e-12)
    with pytest.raises(UsageError, match="60 steps do not fit between nodes 1 and 50"):
        make_grid(Discrete("leading", 50), ALL["vp"], 60, 1.0, 0.02)
    with pytest.raises(UsageError, match="linspace, leading, trailing"):
        Discrete("leadig")


# ---------------------------------------------------------------------------------------------------------- given times


@pytest.mark.parametrize(
    "given", [(1.0, 0.5, 0.001), [1, 0.5, 1e-3], "1,0.5,0.001", GivenGrid((1.0, 0.5, 0.001))], ids=str
)
def test_a_grid_may_be_its_times(given):
    assert make_grid(given, ALL["vp"], 99, 1.0, 1e-3).tolist() == [1.0, 0.5, 0.001]
    model = watched(ring(ALL["vp"]))
    solved = DDIM(99, grid=given if not isinstance(given, list) else tuple(given))(model, normals(3, 2))
    assert [float(t) for t in model.times] == [1.0, 0.5] and solved.accepted.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((1.0, 0.5, 0.5, 1e-3), "time 1 is 0.5 and time 2 is 0.5"),  # repeated
        ((1.0, 0.4, 0.5, 1e-3), "time 1 is 0.4 and time 2 is 0.5"),  # rising
        ((1e-3, 0.5, 1.0), "from t = 0.001 to 1, but the solver goes from t = 1 to 0.001"),  # the other way
        ((0.9, 0.5, 1e-3), "from t = 0.9 to 0.001, but the solver goes from t = 1"),
        ((1.0, 0.5), "from t = 1 to 0.5, but the solver goes from t = 1 to 0.001"),
        ((1.0,), "must have at least two times"),
        ("1,0.5,x", "not a list of numbers"),
        (0.5, "a name, a list of times or a Grid"),
    ],
)  # fmt: skip
def test_given_grids_that_cannot_be_are_refused(given, words):
    model = watched(ring(ALL["vp"]))
    with pytest.raises(UsageError, match=words):
        RungeKutta(4, grid=given)(model, normals(2, 2))
    assert not model.times


def test_a_time_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="times is nan; it must be a finite number"):
        make_grid((1.0, float("nan"), 1e-3), ALL["vp"], 2, 1.0, 1e-3)


def test_grids_by_name_and_as_objects_are_one():
    for name, made in (("karras", Karras()), ("logsnr", LogSNR()), ("leading", leading())):
        assert as_grid(name) == made
        assert torch.equal(make_grid(name, ALL["ve"], 9, 1.0, 0.01), make_grid(made, ALL["ve"], 9, 1.0, 0.01))
    assert as_grid("auto") is None
    for sde in ALL.values():
        low, high = sde.times("sample")
        assert torch.equal(make_grid("auto", sde, 9, high, low), make_grid(default_grid(sde), sde, 9, high, low))


def test_rho_of_karras():
    # 1 is uniform in sigma/alpha; a large rho is uniform in its logarithm.
    vp = ALL["vp"]
    ratio = torch.exp(-vp.log_snr(make_grid(Karras(rho=1.0), vp, 20, 1.0, 1e-3)) / 2)
    assert torch.allclose(torch.diff(ratio), torch.diff(ratio).mean().expand(20), rtol=1e-6)
    near = make_grid(Karras(rho=1e4), vp, 20, 1.0, 1e-3) - make_grid("logsnr", vp, 20, 1.0, 1e-3)
    assert float(near.abs().max()) < 1e-3


@dataclass(frozen=True)
class Wrong(Grid):
    """A user's grid that does not move at its end."""

    def __call__(self, sde, steps, t0, t1):
        return torch.linspace(t0, t1, steps + 1, dtype=torch.float64).clamp(min=0.5)


def test_a_grid_of_ones_own_is_checked():
    with pytest.raises(UsageError, match=r"time 3 is 0\.5 and time 4 is 0\.5"):
        make_grid(Wrong(), ALL["vp"], 5, 1.0, 0.1)


# ----------------------------------------------------------------------------------------------------- solvers on grids


@pytest.mark.parametrize("grid", [*OF_A_PATH, "auto"])
@pytest.mark.parametrize("name", ALL)
def test_a_solver_asks_at_the_nodes_of_its_grid_and_nowhere_else(name, grid):
    # From the start, the noisiest there is, down without a stop; the end itself is not asked.
    model = watched(ring(ALL[name]))
    low, high = model.domain.interval("sample")
    DDIM(12, grid=grid)(model, ALL[name].prior_std * normals(2, 2))
    asked = torch.cat(model.times)
    assert torch.equal(asked, make_grid(grid, ALL[name], 12, high, low)[:-1])
    assert float(asked[0]) == high and bool((torch.diff(ALL[name].log_snr(asked)) > 0).all())


def test_a_converted_model_has_the_grid_of_the_path_it_is_asked_on():
    assert default_grid(convert(ring(VPSDE()), FlowMatching()).domain.sde) == default_grid(FlowMatching()) == "uniform"
