"""Fitted solvers: the table of numbers, the fit, the time grid, the file of a run, and what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import F64, OnNodes, normals, ring, watched
from shell import Shell
from solving import problem
from torch import Tensor

from scoresde import DDPM, VESDE, VPSDE, FlowMatching, GaussianMixture, Multistep, ProbabilityFlow, RungeKutta, load
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.noise import Noise
from scoresde.run.fitted import Fit, Fits, bindings, six_digits
from scoresde.sde.grids import GivenGrid
from scoresde.solvers import DDIM, EulerMaruyama, Singlestep, Tuned
from scoresde.solvers.tuned import unrolled
from scoresde.study import levenberg as fitting
from scoresde.study.levenberg import Rows, _solve, levenberg, normal_equations, numbers, squares, with_numbers
from scoresde.study.shortest import local_errors, shortest_path
from scoresde.study.tune import GAIN, MOST, _fine, fit, teach

ENDS = (1.0, 1e-3)
VP = problem()


def start(count: int, model: GaussianMixture = VP) -> Tensor:
    return model.domain.sde.prior_std * normals(count, 2, seed=3)


# ------------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize(
    "solver",
    [
        Multistep(1), Multistep(5), Multistep(10), Multistep(6, grid="logsnr"), Multistep(7, "gauss", 4, correct=True),
        Multistep(6, "x0"), Multistep(6, "eps", 3), DDIM(4), RungeKutta(5, "euler", "t"),
    ],
    ids=repr,
)  # fmt: skip
def test_fixed_solvers_are_tables(solver) -> None:
    """The corrector, the taper and every variable are unrolled exactly."""
    table, x = unrolled(solver, VP.domain, *ENDS), start(8)
    found, expected = (s(VP, x, t0=ENDS[0], t1=ENDS[1]) for s in (table, solver))
    assert float((found.x - expected.x).abs().max()) < 1e-12 * 10
    assert torch.equal(found.nfe, expected.nfe) and torch.equal(found.accepted, expected.accepted)


def test_in_single_precision_a_table_differs_by_rounding() -> None:
    x = start(32).float()
    for n in (5, 10, 20):
        table = unrolled(Multistep(n), VP.domain, *ENDS)
        found, expected = (s(VP, x, t0=ENDS[0], t1=ENDS[1]).x for s in (table, Multistep(n)))
        assert float((found - expected).abs().max()) < 5e-6


def test_rows_of_a_consistent_table_sum_to_the_change_of_the_clock() -> None:
    table, sde = unrolled(Multistep(6), VP.domain, *ENDS), VP.domain.sde
    r = sde.ratio(table.times(VP.domain))
    assert [sum(row) for row in table.weights] == pytest.approx((r[1:] - r[0]).tolist(), abs=1e-12)
    assert table.keep == pytest.approx([1.0] * 6)


def test_a_path_that_begins_without_signal() -> None:
    model = replace(problem(), sde=FlowMatching())
    low, high = model.domain.interval("sample")
    x, solver = start(8, model), Multistep(6)
    found, expected = (s(model, x).x for s in (unrolled(solver, model.domain, high, low), solver))
    assert float((found - expected).abs().max()) < 1e-10


@pytest.mark.parametrize("solver", [EulerMaruyama(5), Singlestep(5), RungeKutta(5), DDIM(5, eta=1.0)], ids=repr)
def test_other_solvers_are_no_tables(solver) -> None:
    with pytest.raises(UsageError, match="cannot be unrolled"):
        unrolled(solver, VP.domain, *ENDS)


def test_results_do_not_depend_on_the_batch() -> None:
    table, x = unrolled(Multistep(5), VP.domain, *ENDS), start(16).float()
    whole = table(VP, x, t0=ENDS[0], t1=ENDS[1]).x
    one = torch.cat([table(VP, x[i : i + 1], t0=ENDS[0], t1=ENDS[1]).x for i in range(16)])
    assert float((whole - one).abs().max()) < 1e-5


def test_it_shows_its_steps_and_keeps_its_numbers() -> None:
    table = unrolled(Multistep(5), VP.domain, *ENDS)
    found = table(VP, start(3), t0=ENDS[0], t1=ENDS[1], record=True)
    assert found.trajectory is not None
    assert found.trajectory.times(0).tolist() == pytest.approx(table.times(VP.domain).tolist())
    assert torch.equal(found.trajectory.states(2)[-1], found.x[2])
    assert table.within(5) is table and table.within(6) is None and table.within(10**6) is None
    assert Tuned(3).within(7) == Tuned(7)


REFUSED = {
    "no times and weights": (Tuned(5), VP, {}),
    "fitted from t = 1 to 0.001, but is used from t = 1 to 0.01": (
        unrolled(Multistep(5), VP.domain, *ENDS), VP, {"t0": 1.0, "t1": 0.01}
    ),
    "used from t = 0.001 to 1": (unrolled(Multistep(5), VP.domain, *ENDS), VP, {"t0": 1e-3, "t1": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_was_not_fitted_is_refused_before_any_evaluation(why: str) -> None:
    solver, model, ends = REFUSED[why]
    spy = watched(model)
    with pytest.raises(UsageError, match=why):
        solver(spy, start(2), **ends)
    assert not spy.times


@pytest.mark.parametrize(
    "options",
    [
        {"keep": (1.0,)}, {"log_snr": (0.0,), "keep": (1.0, 1.0), "weights": ((1.0,), (1.0,))},
        {"log_snr": (float("nan"),), "keep": (1.0, 1.0), "weights": ((1.0,), (1.0, 1.0))}, {"keep": -1}, {"weights": 3},
    ],
)  # fmt: skip
def test_tables_of_another_shape_are_refused(options) -> None:
    with pytest.raises(UsageError, match="Tuned: "):
        Tuned(2, **options)


# -------------------------------------------------------------------------------------------------------------- the fit


def rows(count: int, model: GaussianMixture = VP, batch: int = 64) -> Rows:
    x = start(count, model)
    return Rows(model, x, ProbabilityFlow(rtol=1e-9)(model, x, t0=ENDS[0], t1=ENDS[1]).x, batch)


def jacobian(solver: Tuned, given: Rows) -> Tensor:
    """J_b of every row by central differences of the real solver, ``(B, D, P)``."""
    theta, columns = numbers(solver, True), []
    for k in range(len(theta)):
        both = []
        for sign in (1, -1):
            moved = theta.clone()
            moved[k] += sign * 1e-5
            both.append(with_numbers(solver, moved, True)(given.model, given.x, t0=ENDS[0], t1=ENDS[1]).x)
        columns.append((both[0] - both[1]) / 2e-5)
    return torch.stack(columns, -1) / given.x[0].numel() ** 0.5


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()], ids=repr)
def test_the_gradient_and_the_curvature_are_those_of_the_real_solver(sde) -> None:
    """Also of the times, whose derivative goes through the network, the scale and the clock."""
    model = replace(problem(), sde=sde)
    low, high = model.domain.interval("sample")
    x = start(6, model)
    given = Rows(model, x, normals(6, 2, seed=9), batch=4)
    solver = replace(unrolled(Multistep(3, order=2), VP.domain, *ENDS))
    given = replace(given, model=replace(model))
    j = jacobian(solver, given)
    r = (solver(given.model, x, t0=ENDS[0], t1=ENDS[1]).x - given.target) / 2**0.5
    w = torch.linspace(0.2, 1, 6, dtype=F64)
    g, h = normal_equations(solver, given, w, 40, Noise.of(6), True)
    assert low <= ENDS[1] and high == ENDS[0]
    torch.testing.assert_close(g, torch.einsum("b,bd,bdp->p", w, r, j), rtol=1e-5, atol=1e-7)
    exact = torch.einsum("b,bdp,bdq->pq", w, j, j)
    assert float((h - exact).norm() / exact.norm()) < 0.2  # an estimate from 40 probes


def test_the_solve_that_is_differentiated_is_the_solver() -> None:
    given, solver = rows(5), unrolled(Multistep(4), VP.domain, *ENDS)
    theta = numbers(solver, True)
    found = _solve(solver, given, theta.expand(5, -1), True)
    torch.testing.assert_close(found, solver(VP, given.x, t0=ENDS[0], t1=ENDS[1]).x, rtol=0, atol=1e-12)
    again = with_numbers(solver, theta, True)
    assert again == solver and with_numbers(solver, numbers(solver, False), False) == solver


def test_a_fit_lowers_the_error_and_is_the_same_bit_for_bit() -> None:
    given, other = rows(128), Rows(VP, normals(256, 2, seed=8), torch.empty(0))
    other = replace(other, target=ProbabilityFlow(rtol=1e-9)(VP, other.x, t0=ENDS[0], t1=ENDS[1]).x)
    begin = unrolled(Multistep(5), VP.domain, *ENDS)
    first, second = (levenberg(begin, given, 8, seed=1) for _ in range(2))
    assert first == second
    before, after = (float(squares(s, other).median().sqrt()) for s in (begin, first))
    assert after < 0.3 * before
    assert levenberg(begin, given, 2, seed=2) != levenberg(begin, given, 2, seed=3)


def test_probes_that_hide_the_way_do_not_end_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    given, begin, calls = rows(64), unrolled(Multistep(5), VP.domain, *ENDS), list[int]()

    def misleading(*args: Any) -> tuple[Tensor, Tensor]:
        g, h = normal_equations(*args)
        calls.append(len(calls))
        return (-g, h) if len(calls) == 1 else (g, h)

    monkeypatch.setattr(fitting, "normal_equations", misleading)
    assert levenberg(begin, given, 1, seed=1) == begin, "no step leads down"
    calls.clear()
    found = levenberg(begin, given, 4, seed=1)
    assert float(squares(found, given).mean()) < 0.5 * float(squares(begin, given).mean())


def test_a_row_that_is_far_off_counts_for_little() -> None:
    given = rows(64)
    spoiled = replace(given, target=torch.cat([given.target[:-1], given.target[-1:] + 100]))
    begin = unrolled(Multistep(4), VP.domain, *ENDS)
    found = [squares(levenberg(begin, r, 5), given.part(0, 63)).median().sqrt() for r in (given, spoiled)]
    assert float(found[1]) < 2 * float(found[0])


# ------------------------------------------------------------------------------------------------------------- the grid


def test_the_cheapest_path_is_found() -> None:
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    for steps in (1, 2, 4, 7):
        every = ((0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1))
        best = min(every, key=lambda path: sum(float(cost[a, b]) for a, b in itertools.pairwise(path)))
        assert shortest_path(cost, steps) == list(best)
    with pytest.raises(UsageError, match="8 steps does not fit on 8 nodes"):
        shortest_path(cost, 8)


def test_local_errors_are_those_of_euler() -> None:
    z, q, r = normals(4, 3, 2), normals(4, 3, 2, seed=1), torch.tensor([0.9, 0.5, 0.2, 0.1], dtype=F64)
    found = local_errors(z, q, r)
    for s, e in itertools.combinations(range(4), 2):
        expected = (z[e] - z[s] - (r[e] - r[s]) * q[s]).square().mean()
        torch.testing.assert_close(found[s, e], expected)


def test_the_whole_fit_is_kept_apart_rows_rounded_and_better() -> None:
    teacher = teach(VP, start(192), rtol=1e-7)
    assert len(teacher.rows) == 128 and len(teacher.apart) == 64
    low, high = VP.domain.interval("sample")
    assert teacher.ends == (high, low) and bool((teacher.times.diff() < 0).all())
    outcome = fit(teacher, 5)
    found = outcome.fit
    assert outcome.kept and found.rms <= GAIN * found.fixed_rms and found.median < 0.4 * found.fixed_median
    assert found.rms == six_digits(float(squares(found.solver, teacher.apart).mean().sqrt()))
    assert all(six_digits(n) == n for n in numbers(found.solver, True).tolist())
    assert fit(teacher, 5).fit == found
    times = found.times(VP.domain.sde)
    assert len(times) == 6 and all(a > b for a, b in itertools.pairwise(times))
    assert times == pytest.approx(
        min((teacher.grid(5, p) for p in (1, 2)), key=lambda g: abs(g[1] - times[1])), abs=1e-4
    )


def test_on_a_chain_the_times_are_nodes() -> None:
    model = OnNodes(ring(DDPM(200)))
    teacher = teach(model, normals(96, 2, seed=3), rtol=1e-6)
    outcome = fit(teacher, 6)
    spy = watched(model)
    found = outcome.fit.solver(spy, normals(2, 2))
    asked = torch.stack([t[0] for t in spy.times]) * 200
    assert float((asked - asked.round()).abs().max()) < 1e-9 and bool(found.ok.all())
    assert outcome.fit.rms < outcome.usual and outcome.kept


# ------------------------------------------------------------------------------------------------- the file and the run


def stored(folder: str, steps: int = 5) -> Fits:
    """Fits for a run that are tables of ``multistep``, so that no time is spent on fitting."""
    run = load(folder)
    low, high = run.model.domain.interval("sample")
    table = unrolled(Multistep(steps), run.model.domain, high, low)
    table = with_numbers(table, torch.tensor([six_digits(n) for n in numbers(table, True).tolist()]).double(), True)
    grid = unrolled(Multistep(steps, grid="logsnr"), run.model.domain, high, low).log_snr
    made = Fit(table, tuple(map(six_digits, grid)), 0.02, 0.01, "multistep order 3, sqrt", 0.05, 0.03, 256, 0)
    return Fits(bindings(run), (made,))


def test_a_run_reads_its_fits(digits: str) -> None:
    fits = stored(digits)
    path = fits.write(Path(digits))
    assert Fits.read(Path(digits)) == fits and path.read_text().count("\n") == 1
    run = load(digits)
    assert run.fits == fits and run.tuned(5) == fits.fits[0].solver
    found, usual = run.sample(4, Tuned(5)).solution.x, run.sample(4, Multistep(5)).solution.x
    assert float((found - usual).abs().max()) < 1e-4  # six digits
    assert torch.equal(run.sample(4, "tuned").solution.x, found)
    grid = run.fitted(RungeKutta(5, "euler", grid="fitted")).grid
    assert grid == fits.fits[0].times(run.model.domain.sde)
    assert torch.equal(run.sample(4, DDIM(5, grid="fitted")).x, run.sample(4, DDIM(grid=grid)).x)
    assert run.fitted(Multistep(7)) == Multistep(7) and isinstance(GivenGrid(grid), GivenGrid)
    wide = load(digits, dtype=F64)
    assert float((wide.sample(4, Tuned(5)).solution.x - found).abs().max()) < 1e-4


def test_fits_of_the_same_model_are_joined(digits: str) -> None:
    five, six = stored(digits), stored(digits, 6)
    assert six.joined(five).steps == (5, 6) and five.joined(six).joined(five).steps == (5, 6)
    assert six.joined(replace(five, known={**five.known, "guidance": 2.0})).steps == (6,)


def test_what_differs_is_refused(classes: str) -> None:
    stored(classes).write(Path(classes))
    run = load(classes)
    assert run.sample(2, Tuned(5)).solution.nfe.tolist() == [6, 6]
    for other, why in (
        (run.given(3), "the condition none, but this run has label"),
        (run.on("flow"), r"the path VPSDE\(.*but this run has Stretch"),
        (run.given(3).guided(2.0), "the condition"),
        (run.near(torch.full((1, 1, 8, 8), 8.0), each=2), "from t = 1 to 0.001, but is used from"),
        (run.measured("half", torch.zeros(1, 1, 8, 8)), "measurement none, but this run has"),
    ):
        with pytest.raises(UsageError, match=why):
            other.sample(2, Tuned(5))
    with pytest.raises(UsageError, match="for 7 steps, but for 5"):
        run.sample(2, Tuned(7))
    with torch.no_grad():
        next(run.base.parameters()).add_(1e-3)
    with pytest.raises(UsageError, match="weights with the digest"):
        run.tuned(5)


def test_the_guidance_is_part_of_it(classes: str) -> None:
    run = load(classes).given(torch.arange(10))
    Fits(bindings(run.guided(2.0)), stored(classes).fits).write(Path(classes))
    assert run.guided(2.0).sample(10, Tuned(5)).solution.ok.all()
    assert load(classes).given(1).guided(2.0).sample(2, Tuned(5)).solution.ok.all()
    for other, why in ((run, "guidance scale 2.0, but this run has 1.0"), (run.guided(4.0), "has 4.0")):
        with pytest.raises(UsageError, match=why):
            other.sample(10, Tuned(5))


def test_a_fitted_solver_is_used_for_its_own_flow_alone(classes: str) -> None:
    run = load(classes).given(torch.arange(10))
    Fits(bindings(run), stored(classes).fits).write(Path(classes))
    own = run.tuned(5)
    assert run.sample(10, own).solution.ok.all()
    with pytest.raises(UsageError, match="guidance"):
        run.guided(2.0).sample(10, own)
    with pytest.raises(UsageError, match="was not fitted to"):
        run.sample(10, replace(own, keep=(0.9, *own.keep[1:])))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()])
def test_the_fine_grid_has_nodes_for_the_longest_fit(sde) -> None:
    model = GaussianMixture(sde, torch.zeros(1, 2, dtype=torch.float64), torch.ones(1))
    low, high = model.domain.interval("sample")
    times = _fine(model, high, low)
    assert len(times) > MOST and bool((times.diff() < 0).all())


def test_a_file_that_is_damaged_is_refused(digits: str) -> None:
    with pytest.raises(UsageError, match="no solver was fitted to"):
        load(digits).tuned(5)
    path = stored(digits).write(Path(digits))
    good = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"guidance":1.0', '"guidance":2.0'))
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load(digits).tuned(5)
    good.pop("checksum")
    for wrong in (
        {"fits": []}, {"fits": 3}, {"ends": [1]}, {"fits": [{}]}, {"fits": [{**good["fits"][0], "keep": ["a:b"]}]},
        {"fits": [{**good["fits"][0], "keep": []}]}, {"fits": [{**good["fits"][0], "steps": "os:system"}]},
        {"format": 99}, {"fits": [{**good["fits"][0], "fixed": ["a"]}]},
    ):  # fmt: skip
        path.write_text(json.dumps({**good, **wrong}))
        with pytest.raises(CheckpointError):
            load(digits).tuned(5)
    path.write_text(json.dumps({**good, "fits": [{**good["fits"][0], "rows": 1e999}]}))
    with pytest.raises(CheckpointError):
        load(digits).tuned(5)


# ----------------------------------------------------------------------------------------------------- the command line


def test_tune_sample_and_bench(shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.study.tune.GAIN", 2.0)  # a network of three steps has a flow that is easy
    facts = shell.json(f"tune {moons} --nfe 2,3 --rows 16 --quiet")
    assert facts["steps"] == [2, 3] and facts["file"] == f"{moons}/tuned.json"
    assert all(one["rms"] > 0 and one["kept"] for one in facts["fits"])  # type: ignore[attr-defined]
    size = Path(moons, "tuned.json").stat().st_size
    assert size < 2000
    first = Path(moons, "tuned.json").read_bytes()
    shell(f"tune {moons} --nfe 3,2 --rows 16")
    assert Path(moons, "tuned.json").read_bytes() == first
    out = shell(f"sample {moons} --solver tuned --steps 3 --n 4")
    assert "  fitted  " in out and "fitted to this run" in shell.err
    facts = shell.json(f"sample {moons} --solver tuned --steps 3 --n 4 --out other")
    assert facts["fitted"] is True and facts["nfe_max"] == 4 and len(facts["options"]["keep"]) == 3  # type: ignore
    shell.refuses(f"sample {moons} --solver tuned --steps 4 --n 4", 2, "4 steps", "2, 3", "--steps 3")
    shell.refuses(f"sample {moons} --solver tuned --path flow --steps 3 --n 4", 2, "the path")
    shell(f"sample {moons} --solver ddim --grid fitted --steps 3 --n 4")
    shell.refuses(f"sample {moons} --solver ddim --grid fitted --steps 5 --n 4", 2, "5 steps")
    out = shell(f"evaluate {moons} --solver tuned --steps 3 --n 8 --metrics mmd --out judged")
    assert "  fitted  " in out and "fitted to this run" in shell.err
    facts = shell.json(f"evaluate {moons} --solver tuned --steps 3 --n 8 --metrics mmd --out judged2 --quiet")
    assert facts["fitted"] and facts["options"]["keep"]
    out = shell(f"bench {moons} --solvers ddim --nfe 2,3,4 --n 8")
    assert "tuned (fitted)" in out and "distance of the median sample" in out
    rows = shell.json(f"bench {moons} --solvers ddim --nfe 2,4 --n 8 --out b --quiet")["rows"]
    fitted = [row for row in rows if row["solver"] == "tuned (fitted)"]  # type: ignore[attr-defined]
    assert fitted[0]["rms"] > 0 and fitted[0]["median"] > 0 and "for 4 steps" in fitted[1]["note"]
    out = shell(f"bench {moons} --solvers multistep --grid fitted --nfe 2,3 --n 8 --out c")
    assert "multistep (fitted grid)" in out
    assert "fitted" in shell("list solvers").partition("tuned")[2].partition("\n")[0]


def test_what_tune_refuses(shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.refuses(f"tune {moons} --nfe 0", 2, "--nfe")
    shell.refuses(f"tune {moons} --nfe 5,500 --rows 8", 2, "from 1 to 40")
    shell.refuses(f"tune {moons} --labels --rows 8", 2, "--labels")
    shell.refuses(f"tune {moons} --label 1 --rows 8", 2, "--labels instead of --label")
    shell.refuses(f"sample {moons} --solver tuned --n 2", 2, "no solver was fitted")
    monkeypatch.setattr("scoresde.study.tune.GAIN", 1e-9)
    shell.refuses(f"tune {moons} --nfe 2 --rows 8", 4, "nothing was written", "at most 0.8")
    assert not Path(moons, "tuned.json").exists()


def test_one_fit_serves_all_classes(shell: Shell, classes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.study.tune.GAIN", 1e9)
    shell(f"tune {classes} --labels --guidance 2 --nfe 2 --rows 8 --quiet")
    shell(f"sample {classes} --solver tuned --steps 2 --label 3 --guidance 2 --n 2")
    shell.refuses(f"sample {classes} --solver tuned --steps 2 --label 3 --n 2", 2, "guidance")
    shell.refuses(f"sample {classes} --solver tuned --steps 2 --n 2", 2, "the condition label")
