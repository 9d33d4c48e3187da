"""The comparison of solvers: distances that are known, budgets that are kept, files that say what was done."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from models import Poisoned
from PIL import Image
from runs import edit
from torch import Tensor

from scoresde import VESDE, VPSDE, GaussianMixture, Noise, Run, TrainConfig, load, load_data
from scoresde.cli import cli, main
from scoresde.core import limits
from scoresde.core.errors import DataError, NumericalError, UsageError
from scoresde.data import Dataset
from scoresde.metrics import sliced_wasserstein
from scoresde.model.estimate import Wrapped
from scoresde.plot import work_precision
from scoresde.solvers import DDIM, FixedStep, ProbabilityFlow, RungeKutta, Solution, Solver, TorchSDE
from scoresde.study.bench import Bench, BenchRow, Floor, bench, bench_table, plan, solvers_by_name, write_bench

F64 = torch.float64


@pytest.fixture(scope="module")
def moons() -> Dataset:
    return load_data("moons")


@pytest.fixture(scope="module")
def gaussian(moons: Dataset) -> Run:
    """A run whose model is N(m, s^2) in model units, with the units of the moons."""
    mixture = GaussianMixture(VPSDE(), torch.tensor([[0.3, -0.2]], dtype=F64), torch.tensor([0.5], dtype=F64))
    return Run(mixture, moons.codec, moons.info, TrainConfig(data="moons"), dtype=F64)


def exact_end(run: Run, n: int, seed: int = 0) -> Tensor:
    """Where the flow of one Gaussian ends: the same quantile, so x = alpha m + std_1 (z - alpha_T m) / std_T."""
    sde, mean, std = run.model.domain.sde, torch.tensor([0.3, -0.2], dtype=F64), 0.5
    low, high = sde.times("sample")
    (a1, s1), (a0, s0) = (sde.coefficients(torch.tensor(t, dtype=F64)) for t in (high, low))
    z = sde.prior_std * Noise.of(n, seed).normal((2,), stream="prior", dtype=F64)
    return a0 * mean + (z - a1 * mean) * torch.hypot(a0 * std, s0) / torch.hypot(a1 * std, s1)


# --------------------------------------------------------------------------------------------------------- distances


def test_distances_are_those_to_the_exact_flow_and_fall(gaussian: Run) -> None:
    solvers = solvers_by_name(["ddim", "dpm++2m", "heun", "ode"])
    found = bench(gaussian, solvers, (6, 12, 24), n=40, seed=3)
    truth, noise = exact_end(gaussian, 40, seed=3), Noise.of(40, 3)
    start = gaussian.model.domain.sde.prior_std * noise.normal((2,), stream="prior", dtype=F64)
    low, high = gaussian.model.domain.sde.times("sample")
    for name, solver in solvers.items():
        rows = [r for r in found.rows if r.solver == name]
        errors = [r.rms for r in rows]
        assert errors[-1] < errors[0] / 3, f"{name}: {errors}"  # type: ignore[operator]
        if name != "ode":
            assert errors == sorted(errors, reverse=True)  # type: ignore[type-var]
            order = math.log2(errors[0] / errors[-1]) / 2  # type: ignore[operator]
            assert order > (1.2 if name == "heun" else 0.7), f"{name}: {errors}"  # dpm++2m tapers below 15
        for row in rows:
            asked = solver.within(row.asked) if row.asked else replace(solver, rtol=row.tolerance, atol=row.tolerance)  # type: ignore[type-var]
            assert asked is not None
            x = asked(gaussian.model, start, t0=high, t1=low, noise=noise).x
            assert row.rms == pytest.approx(float((x - truth).square().mean().sqrt()), rel=1e-3, abs=1e-6)
            assert row.sliced_w2 is None and row.failed == 0
    assert found.floor is None and found.converged.tolerance == 1e-8 and found.converged.rms is None
    assert found.converged.nfe is not None and found.converged.nfe > 50


def test_the_distance_is_per_dimension_and_leaves_the_last_step_out() -> None:
    @dataclass(frozen=True)
    class Shift(FixedStep):
        """The exact flow, and then 3 in each of four dimensions; with a failure in row 1."""

        def stepper(self, model, times, noise):
            raise NotImplementedError

        def solve(self, model, x, t0, t1, noise, watch) -> Solution:
            solved = ProbabilityFlow(rtol=1e-9, atol=1e-9).solve(model, x, t0, t1, noise, watch)
            status = solved.status.clone()
            status[1] = 1
            return replace(solved, x=solved.x + 3, nfe=torch.full_like(solved.nfe, self.steps), status=status)

    moons = load_data("moons")
    info = replace(moons.info, shape=(2, 2), kind="signal")
    mixture = GaussianMixture(VESDE(), torch.zeros(1, 2, 2, dtype=F64), torch.ones(1, dtype=F64))
    run = Run(mixture, moons.codec, info, TrainConfig(), dtype=F64)
    row, *_ = bench(run, {"shift": Shift()}, (7,), n=5).rows
    assert (row.asked, row.nfe, row.failed) == (7, 7.0, 1)
    assert row.rms == pytest.approx(3, abs=1e-5)


def test_sliced_w2_is_that_of_the_samples_to_held_out_data(gaussian: Run, moons: Dataset) -> None:
    before = moons.train.clone(), moons.test.clone()
    found = bench(gaussian, {"heun": RungeKutta()}, (40,), n=100, seed=1, data=moons, batch=30)
    assert torch.equal(before[0], moons.train) and torch.equal(before[1], moons.test)
    floor = found.floor
    assert floor is not None and floor.least < floor.mean < floor.most and (floor.samples, floor.held_out) == (100, 100)
    # The same by hand: decoded samples of the run, in the model's units again.
    samples = gaussian.sample(100, RungeKutta(20), seed=1).solution.x
    order = torch.randperm(len(moons.test), generator=torch.Generator().manual_seed(1))[:100]
    real = moons.codec.continuous.to_model(moons.test[order].double())
    assert found.rows[0].sliced_w2 == pytest.approx(sliced_wasserstein(samples, real), rel=1e-6)
    # Two moons are no Gaussian, and real moons are nearer to moons than the Gaussian is.
    assert floor.most < found.converged.sliced_w2  # type: ignore[operator]


def test_as_many_samples_are_compared_as_there_are_data(gaussian: Run, moons: Dataset) -> None:
    few = replace(moons, train=moons.train[:30], test=moons.test[:20])
    found = bench(gaussian, {"ddim": DDIM()}, (5,), n=50, data=few)
    assert found.floor is not None and (found.floor.samples, found.floor.held_out) == (30, 20)


def test_a_class_is_compared_with_its_own_data(trained: Path) -> None:
    run, data = load(trained / "classes"), load_data("digits")
    assert data.test_labels is not None
    found = bench(run.given(3).guided(1.5), {"ddim": DDIM()}, (2,), n=16, data=data)
    assert found.floor is not None and found.floor.held_out == min(16, int((data.test_labels == 3).sum()))
    assert bench(run, {"ddim": DDIM()}, (2,), n=16, data=data).floor.mean > found.floor.mean  # type: ignore[union-attr]


def test_samples_do_not_depend_on_the_batch(gaussian: Run) -> None:
    for solvers in ({"heun": RungeKutta()}, solvers_by_name(["sde"])):
        whole, parts = (bench(gaussian, solvers, (8,), n=12, batch=size).rows[0] for size in (12, 5))
        assert whole.rms == (None if parts.rms is None else pytest.approx(parts.rms, rel=1e-9))


def test_seconds_are_those_of_the_solver_alone(gaussian: Run, moons: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that goes on by one with each row that is evaluated, and stands still otherwise.
    ticks = [100.0]

    @dataclass(frozen=True)
    class Ticking(Wrapped):
        def __call__(self, x, t):
            ticks[0] += len(x)
            return self.model(x, t)

    monkeypatch.setattr("scoresde.study.bench.time.monotonic", lambda: ticks[0])
    run = replace(gaussian, base=Ticking(gaussian.base))
    found = bench(run, {"ddim": DDIM(), "heun": RungeKutta()}, (4, 8), n=6, data=moons)
    for row in (found.converged, *found.rows):
        assert row.nfe is not None and row.seconds == pytest.approx(6 * row.nfe)


# ----------------------------------------------------------------------------------------------------------- budgets


def test_budgets() -> None:
    solvers = solvers_by_name(["heun", "ald", "ode", "adaptive-sde", "torchsde", "original"])
    cases = {name: [c for c in plan(solvers, (1, 5, 20)) if c.name == name] for name in solvers}
    assert [c.solver and c.solver.steps for c in cases["heun"]] == [None, 2, 10]  # type: ignore[attr-defined]
    assert [c.solver and c.solver.steps for c in cases["ald"]] == [None, 1, 4]  # type: ignore[attr-defined]
    assert [c.solver and c.solver.steps for c in cases["original"]] == [None, 5, 20]  # type: ignore[attr-defined]
    assert [(c.tolerance, c.asked) for c in cases["ode"]] == [(10.0**-k, None) for k in (1, 2, 3, 4)]
    for c in (*cases["ode"], *cases["adaptive-sde"]):
        assert (c.solver.rtol, c.solver.atol) == (c.tolerance, None)  # type: ignore[union-attr]
    assert [c.solver for c in cases["torchsde"]] == [TorchSDE()]
    given = plan({"mine": DDIM(grid=(1.0, 0.5, 1e-3))}, (5, 10))
    assert len(given) == 1 and given[0].asked is None, "given times cannot follow a budget"


def test_rows_say_what_was_asked_and_what_was_taken(gaussian: Run) -> None:
    told: list[BenchRow] = []
    solvers = solvers_by_name(["heun", "sde", "ode", "dpm++3s"])
    found = bench(gaussian, solvers, (1, 5), n=4, on_row=told.append)
    assert told == [found.converged, *found.rows]
    taken = {(r.solver, r.asked): r.nfe for r in found.rows}
    assert taken["heun", 1] is None and taken["heun", 5] == 4 and taken["sde", 5] == 5 and taken["dpm++3s", 5] == 3
    assert all(r.rms is None for r in found.rows if r.solver == "sde")
    skipped = next(r for r in found.rows if r.solver == "heun")
    assert skipped.note and skipped.rms is None and skipped.seconds is None and skipped.failed == 0
    adaptive = [r.nfe for r in found.rows if r.solver == "ode"]
    assert adaptive == sorted(adaptive) and adaptive[0] < adaptive[-1]  # type: ignore[type-var, operator]


def test_a_grid_for_all_that_have_one() -> None:
    found = solvers_by_name(["heun", "edm", "ode", "dpm++2m"], "logsnr")
    assert [getattr(s, "grid", None) for s in found.values()] == ["logsnr", "logsnr", None, "logsnr"]
    assert found["ode"] == ProbabilityFlow() and solvers_by_name(["edm"])["edm"].grid == "karras"  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------ errors


def test_what_cannot_be_right(gaussian: Run, moons: Dataset) -> None:
    with pytest.raises(UsageError, match="did you mean 'heun'"):
        solvers_by_name(["ddim", "huen"])
    with pytest.raises(UsageError, match="did you mean 'sqrt'"):
        solvers_by_name(["ddim"], "sqr")
    for solvers, nfe in (({}, (5,)), ({"ddim": DDIM()}, ()), ({"ddim": DDIM()}, (5, 0))):
        with pytest.raises(UsageError, match="at least one solver and at least one evaluation budget"):
            bench(gaussian, solvers, nfe)
    with pytest.raises(UsageError, match="budget of 1 is too small for one step of heun"):
        bench(gaussian, {"heun": RungeKutta()}, (1,))
    with pytest.raises(UsageError, match="n is 1; it must be"):
        bench(gaussian, {"ddim": DDIM()}, (5,), n=1)
    with pytest.raises(DataError, match=r"digits has shape \(1, 8, 8\) and 17 levels.*\(2,\) and no levels"):
        bench(gaussian, {"ddim": DDIM()}, (5,), data=load_data("digits"))
    with pytest.raises(DataError, match=r"at least 2 training samples and 2 held-out samples .* but moons has 1 in"):
        bench(gaussian, {"ddim": DDIM()}, (5,), data=replace(moons, test=moons.test[:1]))


def test_a_solver_that_cannot_run_does_not_stop_the_others(gaussian: Run) -> None:
    solvers = {"many": DDIM(grid="leading"), "ddim": DDIM()}
    found = bench(gaussian, solvers, (5, 1500), n=2)
    notes = {(r.solver, r.asked): r.note for r in found.rows}
    assert "use fewer steps" in notes.pop(("many", 1500)) and set(notes.values()) == {""}
    with pytest.raises(UsageError, match=r"none of the solvers could run .many: .*use fewer steps"):
        bench(gaussian, {"many": DDIM(grid="leading")}, (1500,), n=2)


def test_failed_samples_are_counted_and_left_out(gaussian: Run, moons: Dataset) -> None:
    solvers: dict[str, Solver] = {"ode": ProbabilityFlow(max_nfe=16)}
    found = bench(gaussian, solvers, n=6, data=moons)
    assert [r.failed for r in found.rows][-1] == 6
    assert found.rows[-1].rms is None and found.rows[-1].sliced_w2 is None
    assert "failed samples" in bench_table(found) and "failed samples: 6" in str(found.rows[-1])


def test_without_a_converged_solution_there_is_nothing_to_compare_with(gaussian: Run) -> None:
    run = replace(gaussian, base=Poisoned(gaussian.base, torch.ones(3, dtype=torch.bool)))
    with pytest.raises(
        NumericalError, match="the probability flow failed for all samples at a tolerance of 1e-08: 3 of 3"
    ):
        bench(run, {"ddim": DDIM()}, (5,), n=3)


# ------------------------------------------------------------------------------------------------- table, CSV, figure

ROWS = (
    BenchRow("ddim", 5, None, 5.0, 0.25, 0.5, 0.1),
    BenchRow("ddim", 10, None, 10.0, 0.00125, 0.25, 0.2, failed=2),
    BenchRow("heun", 5, None, 4.0, 0.5, 0.75, 0.1),
    BenchRow("heun", 10, note="too few, or, \"so\""),
    BenchRow("sde", 5, None, 5.0, None, 1.5, 0.1),
    BenchRow("sde", 10, None, 10.0, None, 0.3, 0.2),
    BenchRow("ode", None, 0.1, 14.5, 1e-5, 0.2, 0.3),
)  # fmt: skip
FOUND = Bench(ROWS, BenchRow("converged", None, 1e-6, 99.5, None, 0.21, 2.0), Floor(0.15, 0.125, 0.175, 64, 50))


def test_table() -> None:
    assert (
        bench_table(FOUND)
        == """\
distance to the converged solution (RMS per dimension)
evaluations           5        10
ddim              0.250   0.00125
heun              0.500         -
sde                   -         -
tolerance           0.1
ode             1.0e-05

sliced W2 distance to held-out data (64 samples, 50 held-out rows)
evaluations           5        10
ddim              0.500     0.250
heun              0.750         -
sde                1.50     0.300
tolerance           0.1
ode               0.200
converged         0.210
real data         0.150  (0.125 to 0.175)

seconds
evaluations           5        10
ddim               0.10      0.20
heun               0.10         -
sde                0.10      0.20
tolerance           0.1
ode                0.30
converged          2.00

evaluations used
evaluations           5        10
heun                4.0         -
tolerance           0.1
ode                14.5
converged          99.5

failed samples
evaluations           5        10
ddim                  0         2"""
    )


def test_files(tmp_path: Path) -> None:
    files = write_bench(tmp_path, FOUND, {"n": 64})
    assert [f.name for f in files] == ["work-precision.png", "bench.csv", "bench.json"]
    assert sorted(tmp_path.iterdir()) == sorted(files), "something temporary was left"
    assert json.loads(files[2].read_text()) == {"n": 64}
    with files[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "solver", "asked", "tolerance", "nfe", "rms", "sliced_w2", "seconds", "failed", "note", "median",
    ]  # fmt: skip
    for row, text in zip(ROWS, rows, strict=True):
        for name in ("asked", "tolerance", "nfe", "rms", "sliced_w2", "seconds"):
            value = getattr(row, name)
            assert text[name] == "" if value is None else float(text[name]) == value
        assert (text["solver"], int(text["failed"]), text["note"]) == (row.solver, row.failed, row.note)
    assert np.asarray(Image.open(files[0])).ndim == 3
    nothing = replace(FOUND, rows=ROWS[3:4])
    assert [f.name for f in write_bench(tmp_path, nothing, {})] == ["bench.csv", "bench.json"]


def test_figure() -> None:
    curves = {
        "a": [[5, 0.25, 0.5], [10, 0.0625, math.nan]],
        "b": [[5, math.nan, 1.0], [10, 0.0, 0.5]],
        "c": torch.tensor([[7.0, 0.1, 0.2]]),
    }
    figure = work_precision(curves, floor=(0.1, 0.2), converged=0.15)
    assert isinstance(figure, Figure)
    left, right = figure.axes
    assert {ax.get_xscale() for ax in (left, right)} == {ax.get_yscale() for ax in (left, right)} == {"log"}
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn == {"a": [[5, 0.25], [10, 0.0625]], "c": [[7, pytest.approx(0.1)]]}
    drawn = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert drawn["a"] == [[5, 0.5]] and drawn["b"] == [[5, 1], [10, 0.5]] and "converged" in drawn
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", "c", "real data", "converged"]
    colours = {line.get_label(): line.get_color() for ax in (left, right) for line in ax.lines}
    assert len({line.get_color() for ax in (left, right) for line in ax.lines}) == len(colours), "one colour each"
    own = Figure()
    assert work_precision(curves, ax=own.add_subplot()) is own and len(own.axes) == 1
    assert len(work_precision({"sde": [[5, math.nan, 1.0]]}).axes) == 1, "an empty panel is left out"


def test_no_two_of_many_lines_look_alike() -> None:
    figure = work_precision({f"solver {i}": [[5, 1 + i, 1], [10, 1 + i, 1]] for i in range(20)})
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines]
    assert len(set(looks)) == 20


@pytest.mark.parametrize("curves", [{}, {"a": [[5, math.nan, math.nan]]}, {"a": [[5, 1]]}, {"a": [5, 1, 1]}])
def test_refused_figures(curves: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        work_precision(curves)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ command line

Shell = Callable[..., tuple[str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], copied: Callable[[str], str]) -> Shell:
    """``shell("bench ...")`` beside a run of the moons: standard output and standard error."""
    copied("moons")

    def call(line: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        found = capsys.readouterr()
        assert stop.value.code == code, found
        return found.out, found.err

    return call


def test_the_command(shell: Shell) -> None:
    line = "bench --solvers ddim,heun,ode,sde --nfe 3,8 --n 16"
    out, err = shell(line)
    folder = Path("runs/moons/bench")
    assert sorted(p.name for p in folder.iterdir()) == ["bench.csv", "bench.json", "work-precision.png"]
    assert out.startswith("distance to the converged solution (RMS per dimension)\nevaluations           3         8\n")
    assert f"\n\n{folder}/work-precision.png  16 samples  " in out and out.endswith("s  seed 0\n")
    newest, _, rest = err.partition("\n")
    assert newest == "no run is named, so the newest is used: runs/moons"
    told = "comparing ddim, heun, ode, sde with 16 samples from runs/moons (step 3)"
    assert rest.startswith(f"{told}\n  1/11  converged ")
    assert " 11/11  sde                8 evaluations" in err
    made = json.loads((folder / "bench.json").read_text())
    assert made["nfe"] == [3, 8] and made["n"] == 16 and made["data"] == "moons" and made["floor"]["samples"] == 16
    assert made["solvers"]["ddim"] == repr(DDIM())

    out, err = shell(f"{line} --json --quiet --seed 2 --out here/b --grid sqrt")
    found = json.loads(out)
    assert err == "" and len(found["rows"]) == 10 and found["seed"] == 2 and "grid='sqrt'" in found["solvers"]["heun"]
    assert [Path(f).parent for f in found["files"]] == [Path("here/b")] * 3
    rows = {(r["solver"], r["asked"]): r for r in found["rows"]}
    assert rows["sde", 8]["rms"] is None and rows["heun", 3]["nfe"] == 2 and rows["ddim", 8]["rms"] > 0
    shell("bench --solvers ddim --nfe 3 --n 2 --quiet")
    assert Path("runs/moons/bench-2").is_dir(), "nothing is overwritten"


def test_the_command_without_the_data(shell: Shell) -> None:
    edit("runs/moons/config.json", lambda stored: {**stored, "config": {**stored["config"], "data": "gone.npy"}})
    out, err = shell("bench --solvers ddim --nfe 3 --n 4 --quiet")
    assert "warning: the distance to held-out data will not be measured: " in err and "gone.npy" in err
    assert "sliced W2" not in out and out.startswith("distance to the converged solution")


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--solvers ddim,huen", 2, ["unknown solver 'huen'", "did you mean 'heun'"]),
        ("--solvers ,", 2, ["at least one solver"]),
        ("--solvers heun --nfe 1", 2, ["budget of 1 is too small for one step of heun", "--nfe"]),
        ("--nfe 5,x", 2, ["--nfe must be positive integers", "5,10,20,50", "'5,x'"]),
        ("--nfe 0", 2, ["--nfe must be positive integers", "'0'"]),
        ("--n 1", 2, ["--n", "1", ">=2"]),
        ("--grid sqr", 2, ["did you mean 'sqrt'"]),
        ("--label 3", 2, ["'3'", "without labels"]),
        ("--guidance 2", 2, ["guidance 2 requires a condition"]),
        ("nothing", 3, ["nothing is not a run folder"]),
    ],
)
def test_usage_errors(shell: Shell, line: str, code: int, words: list[str]) -> None:
    before = sorted(Path().rglob("*"))
    out, err = shell(f"bench {line}", code)
    assert out == "" and all(word in err for word in words), err
    assert "converged" not in err, "something ran first"
    assert sorted(Path().rglob("*")) == before, "something was written"


def test_the_defaults_are_solvers() -> None:
    options = {p.name: p.default for p in cli.commands["bench"].params}
    assert len(solvers_by_name(options["solvers"].split(","))) == 8
    assert options["nfe"] == "5,10,20,50" and options["n"] == 128


def test_more_samples_than_memory_holds_are_refused(moons: Dataset, gaussian: Run, monkeypatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: 2**30)
    with pytest.raises(UsageError, match=r"100,000,000 samples of 2 numbers would need at least 4 GiB"):
        bench(gaussian, {"heun": RungeKutta(5)}, n=10**8, data=moons)
