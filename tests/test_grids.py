"""Time grids: both ends exact, uniform in the clock they promise."""

from __future__ import annotations

import pytest
import torch
from models import ALL

from scoresde.errors import UsageError
from scoresde.grids import make_grid
from scoresde.tables import GRIDS


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("grid", GRIDS)
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
    with pytest.raises(UsageError, match="uniform, sqrt"):
        make_grid("cosine", ALL["vp"], 5, 1.0, 0.1)
    with pytest.raises(UsageError, match="steps is 0"):
        make_grid("uniform", ALL["vp"], 0, 1.0, 0.1)
    with pytest.raises(UsageError, match="must move towards its end"):
        make_grid("logsnr", ALL["flow"], 5, 0.5, 0.5)
