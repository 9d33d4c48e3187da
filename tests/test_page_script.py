"""The mathematics in the script of a page, in Node, against the package in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pages
import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, FlowMatching
from scoresde.page.data import pack_bytes, pack_floats, pack_steps, unpack
from scoresde.page.frame import Frame
from scoresde.page.network import pack_network
from scoresde.page.plane import _mixture_json
from scoresde.page.table import make_table, table_error
from scoresde.solvers.stochastic import ddim_step

Z, LOG_SNR = pages.states(200)
ASKED = {"z": Z.tolist(), "logSnr": LOG_SNR.tolist()}


def frame_of(model: Any) -> Frame:
    return Frame.of(replace(pages.run_of(model), dtype=torch.float64))


def found(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_arrays_are_read_as_in_python() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 40))
    x[1, 7] = np.nan
    packed = [pack_steps(x, 0.001), pack_floats(x[0]), pack_floats(x[0] * 1e-4, half=True), pack_bytes(x)]
    read = pages.node("return (await unpackAll(given)).map((a) => [a.shape, Array.from(a.values)])", packed)
    for (shape, values), each in zip(read, packed, strict=True):
        assert shape == each["shape"]
        assert np.array_equal(np.array(values, dtype=float).reshape(shape), unpack(each), equal_nan=True)


@pytest.mark.parametrize(("half", "bound"), [(True, 1e-5), (False, 2e-3)], ids=["exact weights", "half precision"])
def test_the_network(half: bool, bound: float) -> None:
    frame = frame_of(pages.network(half=half))
    given = {**ASKED, "net": pack_network(frame), "about": {"low": frame.low, "high": frame.high}}
    code = """const net = await unpackAll(given.net);
    return given.z.map((z, i) => networkX0(net, given.about, z, given.logSnr[i], null));"""
    truth = frame.x0(Z, LOG_SNR)
    error = (found(pages.node(code, given)) - truth).abs().max()
    assert error < bound * truth.abs().max(), f"error {error:.2e}"
    assert float(truth.std()) > 0.3


def test_the_network_with_classes() -> None:
    model = pages.network(classes=3, half=True, width=16)
    code = """const net = await unpackAll(given.net);
    return given.z.map((z, i) => networkX0(net, given.about, z, given.logSnr[i], given.label));"""
    answers = []
    for label in range(4):
        frame = frame_of(model.given(label))
        given = {**ASKED, "net": pack_network(frame), "about": {"low": frame.low, "high": frame.high}, "label": label}
        answers.append(found(pages.node(code, given)))
        assert (answers[-1] - frame.x0(Z, LOG_SNR)).abs().max() < 1e-5
    assert (answers[0] - answers[1]).abs().max() > 1e-2


def test_the_mixture() -> None:
    mixture = pages.eight()[0]
    given = {**ASKED, "mixture": _mixture_json(mixture)}
    code = "return given.z.map((z, i) => mixtureX0(given.mixture, z, given.logSnr[i]))"
    assert (found(pages.node(code, given)) - frame_of(mixture).x0(Z, LOG_SNR)).abs().max() < 1e-10
    code = "return given.z.map((z, i) => Math.log(mixtureDensity(given.mixture, [z[0]], [z[1]], given.logSnr[i])[0]))"
    t = mixture.sde.t_of_log_snr(LOG_SNR)  # VP keeps the variance, so z is the state itself
    log_prob = mixture.log_prob(Z, t)
    assert (found(pages.node(code, given)) - log_prob).diff().abs().max() < 1e-6


def test_the_mixture_on_a_grid() -> None:
    given = {"mixture": _mixture_json(pages.eight()[0]), "xs": [-1.0, 0.3, 2.0], "ys": [0.1, 1.4]}
    code = """const { mixture, xs, ys } = given, one = (x, y) => mixtureDensity(mixture, [x], [y], 1.0)[0];
    return [[...mixtureDensity(mixture, xs, ys, 1.0)], ys.flatMap((y) => xs.map((x) => one(x, y)))];"""
    grid, points = pages.node(code, given)
    assert len(grid) == 6 and grid == pytest.approx(points, rel=1e-12)


def test_hills_are_counted() -> None:
    given = {"mixture": _mixture_json(pages.eight()[0])}
    code = """return [32, 64].map((n) => {
      const places = Float64Array.from({ length: n }, (_, i) => ((2 * i + 1) / n - 1) * 3.4);
      return [-4, 0, 0.8, 2.5, 6].map((level) => hills(n, mixtureDensity(given.mixture, places, places, level)));
    });"""
    assert pages.node(code, given) == [[1, 1, 1, 8, 8]] * 2  # one hill, a ridge around a hollow, then eight hills
    grids = [[9, 0, 0, 0, 0, 0, 0, 0, 5], [9, 4, 5, 0, 0, 0, 1, 0, 0], [9, 8, 8.5, 0, 0, 0, 0, 0, 0], [1] * 9]
    assert pages.node("return given.map((grid) => hills(3, grid))", grids) == [2, 3, 1, 1]


def steps_agree(script: str | None = None) -> None:
    """A step of the script is one of the package, on a path that keeps the variance and on one that does not."""
    pairs = [(-9.0, -3.0), (-2.0, 0.5), (0.0, 1.0), (3.0, 8.0)]
    z, noise = pages.states(50)[0], pages.states(50, seed=9)[0]
    for sde in (VPSDE(), FlowMatching()):
        mixture = replace(pages.eight()[0], sde=sde)
        frame = frame_of(mixture)
        for start, end in pairs:
            t, s = (sde.t_of_log_snr(torch.tensor(level, dtype=torch.float64)) for level in (start, end))
            sizes = [torch.hypot(*sde.coefficients(time)) for time in (t, s)]
            x0 = frame.x0(z, torch.tensor(start, dtype=torch.float64))
            for eta in (0.0, 0.5, 1.0):
                truth = ddim_step(mixture, z * sizes[0], t, s, noise if eta else None, eta) / sizes[1]
                code = """const [keep, see, stir] = stepper(given.start, given.end, given.eta);
                return given.z.map((z, i) => [0, 1].map(
                  (d) => keep * z[d] + see * given.x0[i][d] + stir * given.noise[i][d]));"""
                asked = {"z": z.tolist(), "x0": x0.tolist(), "noise": noise.tolist()}
                taken = found(pages.node(code, {**asked, "start": start, "end": end, "eta": eta}, script))
                assert (taken - truth).abs().max() < 1e-6, f"{sde}, {start} to {end}, eta {eta}"


def test_a_step() -> None:
    steps_agree()


def test_a_sign_that_is_flipped_in_a_step_is_found() -> None:
    script = pages.mathematics()
    for right, wrong in (
        ("return [kept, c1 - kept * c, n]", "return [-kept, c1 - kept * c, n]"),
        ("c1 - kept * c", "c1 + kept * c"),
        ("kept * c, n]", "kept * c, -n]"),
    ):
        assert script.count(right) == 1
        with pytest.raises(AssertionError, match="eta"):
            steps_agree(script.replace(right, wrong))


# The error of the table, measured as table.py does, by the functions of the script.
TABLE_ERROR = """const { about, table, network, mixture, forward } = await unpackAll(given);
const { x0, eps } = forward.at(-1), n = x0.shape[1], gaps = [];
for (let i = 0; i < n; i++) {
  const logSnr = about.low + (i + 0.5) / n * (about.high - about.low), [c, s] = angle(logSnr);
  const z = [i, n + i].map((at) => c * x0.values[at] + s * eps.values[at]);
  const [[x], [y]] = tableX0(table[0], [z[0]], [z[1]], logSnr);
  const truth = network ? networkX0(network, about, z, logSnr, null) : mixtureX0(mixture, z, logSnr);
  gaps.push(Math.hypot(x - truth[0], y - truth[1]));
}
return gaps.filter(Number.isFinite);"""


def table_gaps(stored: dict[str, Any]) -> dict[str, float]:
    gaps = np.array(pages.node(TABLE_ERROR, stored))
    return {"rms": float(np.sqrt(np.mean(gaps**2))), "most": float(np.quantile(gaps, 0.99)), "count": len(gaps)}


@pytest.mark.parametrize("made", [pages.exact, pages.learned], ids=["exact", "network"])
def test_the_error_that_the_page_prints(made: Any) -> None:
    stored = pages.parts(made())
    again, printed = table_gaps(stored), stored["about"]["table_error"]
    assert again["count"] == printed["count"]
    assert [float(f"{again[name]:.3g}") for name in ("rms", "most")] == pytest.approx(
        [printed["rms"], printed["most"]], rel=1e-10 if made is pages.exact else 2e-2
    )


def test_a_table_that_is_shifted_by_a_cell_is_found() -> None:
    stored = json.loads(json.dumps(pages.parts(pages.exact())))
    values = unpack(stored["table"][0]["values"])
    for axis in (1, 2, 3):
        stored["table"][0]["values"] = pack_steps(np.roll(values, 1, axis), 2.0**-11)
        assert table_gaps(stored)["rms"] > 5 * stored["about"]["table_error"]["rms"]


def test_the_table_is_read_as_in_python() -> None:
    frame = frame_of(pages.Holed(pages.eight()[0]))
    table = make_table(frame, 2.0, 17, 9)
    nodes = torch.tensor([[0.25, 0.25], [0.25, 1.0], [-2.0, 0.25]])  # beside holes, which have no weight there
    z, log_snr = torch.cat([nodes, Z]), torch.cat([LOG_SNR[:3], LOG_SNR])
    stored = {"values": table.packed, "half": 2.0, "low": table.low, "high": table.high}
    given = {"z": z.tolist(), "logSnr": log_snr.tolist(), "table": stored}
    code = """const table = await unpackAll(given.table);
    return given.z.map((z, i) => tableX0(table, [z[0]], [z[1]], given.logSnr[i]).map((a) => a[0]));"""
    truth = table(z.numpy(), log_snr.numpy())
    assert np.isfinite(truth[:3]).all()
    read = np.array(pages.node(code, given), dtype=float)
    assert np.array_equal(np.isnan(read), np.isnan(truth)) and 0 < np.isnan(truth).sum() < truth.size
    assert np.nanmax(np.abs(read - truth)) < 1e-12
    assert table_error(table, frame, Z[:50], Z[50:100]).count < 50


def test_accuracy_is_the_cosine_to_the_own_arrow() -> None:
    code = """return given.map((a) => [1, -1].map((side) => {
      const [x, y] = turned([3, 4], a, side);
      return [(3 * x + 4 * y) / 25, Math.hypot(x, y)];
    }));"""
    for accuracy, both in zip((0.0, 0.3, 1.0), pages.node(code, [0.0, 0.3, 1.0]), strict=True):
        assert np.allclose(both, [[accuracy, 5.0]] * 2)
