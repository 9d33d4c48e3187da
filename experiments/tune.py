"""Fit solvers with few evaluations, and test them on rows that no fit has seen.

    make demo && python experiments/tune.py digits demo/runs/digits-vp --nfe 5,10   # 10 minutes on one CPU core
    python experiments/tune.py mixture --nfe 5,10                                   # seconds
    python experiments/tune.py moons --nfe 5,10                                     # a minute, most of it training
    python experiments/tune.py classes --nfe 5,10                                   # a minute, most of it training
    python experiments/tune.py default                                              # seconds

The problems are the network of `make demo` (8 x 8 digits, VP), the mixture of few_steps.py with the exact model in
float64, a small network on moons, and another on eight Gaussians of different widths with their number as the class.
The last two are on the straight path (`flow`). The fitted rows and the test rows have different starts, and the teacher
of the test rows is solved to a tighter tolerance. The test rows of the digits are 1,000 starts, of which the first 128
are those of bench_solvers.py.

The table has a row for each number of evaluations and solver. The distances to the exact ends are the rms over rows and
dimensions, the median row, the rms without the worst hundredth of the rows, and the rms of the first 128 rows. For the
mixture they are norms in the plane, as in few_steps.py. `Frechet` is the squared Frechet distance of the ends to the
exact ends of the same starts, and `variance` is the ratio of their total variances. `over` is the median on the test
rows over that on the fitted rows. Seconds are CPU seconds of one thread.

`default` compares the two settings that the default of `multistep` could have with 10 to 25 evaluations.

For the expected results, see docs/tuning.md.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from few_steps import END, problem, starts
from torch import Tensor

from scoresde import (
    VESDE,
    VPSDE,
    CosineSDE,
    Dataset,
    FlowMatching,
    Multistep,
    Noise,
    ProbabilityFlow,
    Run,
    SubVPSDE,
    TrainConfig,
    fit,
    load,
)
from scoresde.metrics import frechet
from scoresde.model.estimate import Denoiser
from scoresde.solvers import Solver
from scoresde.study.levenberg import Rows
from scoresde.study.tune import APART, Outcome, Teacher, teach
from scoresde.study.tune import fit as fit_one

HEAD = "| evaluations | solver | rms | median | rms of 99 % | first 128 | Frechet | variance | over | seconds |"


def line(
    name: str, solver: Solver, test: Rows, ends: tuple[float, float], told: Outcome | None = None, norm: bool = False
) -> str:
    """Return a row of the table for a solver."""
    found = [solver(part.model, part.x, t0=ends[0], t1=ends[1]).x for part in replace(test, batch=250).pieces()]
    x, y = torch.cat(found).double(), test.target.double()
    factor = x[0].numel() if norm else 1
    e2 = factor * (x - y).square().flatten(1).mean(1)
    least = e2.sort().values[: math.ceil(0.99 * len(e2))]
    errors = [float(value.sqrt()) for value in (e2.mean(), e2.median(), least.mean(), e2[:128].mean())]
    apart = frechet(x.flatten(1), y.flatten(1)).value
    ratio = float(x.flatten(1).var(0).sum() / y.flatten(1).var(0).sum())
    median = errors[1] / factor**0.5
    over = ["", ""] if told is None else [f"{median / told.median:.2f}", f"{told.seconds:.0f}"]
    cells = [*(f"{e:.5f}" for e in errors), f"{apart:.2g}", f"{ratio:.3f}", *over]
    return f"| {name} | " + " | ".join(cells) + " |"


def table(teacher: Teacher, test: Rows, counts: Sequence[int], seed: int, norm: bool = False) -> list[Outcome]:
    """Fit a solver for each number of evaluations, and print how far it and the fixed ones are from the exact ends."""
    print(HEAD + "\n|" + "---|" * 10)
    outcomes = []
    for n in counts:
        made = fit_one(teacher, n, seed=seed)
        outcomes.append(made)
        ends = teacher.ends
        grid = made.fit.times(teacher.rows.model.domain.sde)
        best = {"order 2": {"order": 2}, "order 3": {"order": 3}}
        words = made.fit.fixed.removeprefix("multistep ").split(", ")
        fixed = Multistep(n, **best[words[0]], correct="correct" in words, grid=words[-1])
        print(line(f"{n} | multistep", Multistep(n), test, ends, norm=norm))
        print(line(f"{n} | best fixed: {made.fit.fixed}", fixed, test, ends, norm=norm))
        print(line(f"{n} | multistep, fitted grid", Multistep(grid=grid), test, ends, norm=norm))
        print(
            line(f"{n} | **fitted**{'' if made.kept else ', not kept'}", made.fit.solver, test, ends, made, norm),
            flush=True,
        )
    return outcomes


def taught(run: Run, rows: int, seed: int) -> tuple[Teacher, Run]:
    """Solve the rows of a fit, whose starts are those of the command `tune`. Return also the run they belong to."""
    model, shape = run.model, run.codec.model_shape(run.info.shape)
    began = time.process_time()
    x = model.domain.sde.prior.sample(Noise.of(rows + APART, seed, 2**40), shape, run.dtype)
    teacher = teach(model, x)
    print(f"teacher: {rows + APART} rows, {time.process_time() - began:.0f} CPU seconds")
    return teacher, run


def tested(model: Denoiser, x: Tensor) -> Rows:
    """Solve test rows to a tight tolerance."""
    ends = [ProbabilityFlow(rtol=1e-6)(model.rows(index), x[index]).x for index in torch.arange(len(x)).split(250)]
    return Rows(model, x, torch.cat(ends))


def digits(args: argparse.Namespace, counts: Sequence[int]) -> None:
    run = load(args.run)

    def bound(rows: int) -> Run:  # to all classes in turn, if it was trained with them
        by_class = run.config is not None and run.config.cond == "class"
        return run.given(torch.arange(rows) % len(run.info.classes)) if by_class else run

    x = run.model.domain.sde.prior_std * Noise.of(1000, seed=1).normal(run.info.shape, stream="prior")
    test = tested(bound(len(x)).model, x)
    teacher, _ = taught(bound(args.rows + APART), args.rows, args.seed)
    table(teacher, test, counts, args.seed)


def mixture(args: argparse.Namespace, counts: Sequence[int]) -> None:
    model = problem()
    x = starts(model, args.rows * 4 + APART, seed=args.seed + 1000)
    test = starts(model)
    exact = ProbabilityFlow(rtol=1e-11)(model, test, t0=1.0, t1=END).x
    table(teach(model, x, rtol=1e-8, batch=256), Rows(model, test, exact), counts, args.seed, norm=True)


def moons(args: argparse.Namespace, counts: Sequence[int]) -> None:
    run = fit(TrainConfig(data="moons", sde="flow", steps=args.steps), save=False, quiet=True)
    teacher, _ = taught(run, args.rows, args.seed)
    table(teacher, tested(run.model, Noise.of(1000, 1).normal((2,), stream="prior")), counts, args.seed)


def eight(count: int = 20_000) -> Dataset:
    """Return the eight Gaussians of different widths, with their number as the class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(8, (count,), generator=generator)
    angle, width = y * math.pi / 4, 0.05 + 0.05 * y
    z = torch.randn(count, 2, generator=generator)
    x = torch.stack([1.5 * angle.cos(), 1.5 * angle.sin()], 1) + width[:, None] * z
    return Dataset.of(x.numpy(), classes=y.numpy(), name="eight")


def classes(args: argparse.Namespace, counts: Sequence[int]) -> None:
    run = fit(TrainConfig(sde="flow", cond="class", steps=args.steps), data=eight(), save=False, quiet=True)
    teacher, _ = taught(run.given(torch.arange(args.rows + APART) % 8), args.rows, args.seed)
    model = run.given(torch.arange(1000) % 8).model
    table(teacher, tested(model, Noise.of(1000, 1).normal((2,), stream="prior")), counts, args.seed)


def default() -> None:
    print("multistep with the correction: rms and median with order 3 over those with order 2, on the exact mixture\n")
    print("| path, grid | " + " | ".join(map(str, range(10, 26))) + " |\n|---|" + "---|" * 16)
    for sde in (VPSDE(), FlowMatching(), VESDE(), CosineSDE(), SubVPSDE()):
        model = replace(problem(), sde=sde)
        z = torch.randn(1024, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = model.domain.sde.prior_std * z
        exact = ProbabilityFlow(rtol=1e-8)(model, x).x
        for grid in ("auto", "logsnr"):
            cells = []
            for n in range(10, 26):
                two, three = (
                    (Multistep(n, order=order, correct=True, grid=grid)(model, x).x - exact).norm(dim=1)
                    for order in (2, 3)
                )
                rms = float((three.square().mean() / two.square().mean()).sqrt())
                cells.append(f"{rms:.2f} / {float(three.median() / two.median()):.2f}")
            print(f"| {type(sde).__name__}, {grid} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "mixture", "moons", "classes", "default"])
    parser.add_argument("run", nargs="?", type=Path, help="the run of make demo (for digits)")
    parser.add_argument("--nfe", default="5,10", help="numbers of evaluations")
    parser.add_argument(
        "--rows", type=int, default=256, help="number of rows to fit (the mixture has four times as many)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the fitted rows and of the fit")
    parser.add_argument("--steps", type=int, default=1500, help="number of training steps of the small networks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "default":
        default()
        return
    counts = [int(part) for part in args.nfe.split(",")]
    {"digits": digits, "mixture": mixture, "moons": moons, "classes": classes}[args.what](args, counts)


if __name__ == "__main__":
    main()
