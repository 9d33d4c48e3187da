"""Measure what guidance does to the samples of the digits, and what it does to a distribution that is known exactly.

    python experiments/guidance.py --out runs/digits-class      # the digits: a quarter of an hour on one CPU core
    python experiments/guidance.py --exact                      # a known distribution: ten minutes on one CPU core
    python experiments/guidance.py --exact --part picture --figure docs/images/guidance.png

**The digits.** The script trains (or loads) a class-conditional model of the 8x8 digits, and draws the same number of
samples of each class. A small classifier trained on the real digits then classifies the samples. Guidance moves away
from the model without a class (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598), at all noise levels
or in an interval of them (Kynkaanniemi et al. 2024, arXiv:2404.07724). Autoguidance moves away from an earlier
checkpoint of the same run, with the same class (Karras et al. 2024, arXiv:2406.02507). The columns are

    scale, against   the guidance scale, and the model to move away from; scale 1 means no guidance
    sigma/alpha      the noise levels at which the model is guided
    calls            network evaluations for each sample
    agreement        share of the samples that the classifier assigns to their own class, with its standard error
    worst class      the class with the lowest agreement
    Frechet          Frechet distance of the samples to the training digits on the features of the classifier, with the
                     jackknife errors of `scoresde evaluate`; it depends on the number of samples

Goals: an agreement of 90 % or more at scale 2; with guidance at sigma/alpha below 1, at most 0.75 of the calls at an
agreement that differs from that at all levels by less than two standard errors; with autoguidance, a Frechet distance
that is below that of scale 1 by more than the sum of the two errors.

**A known distribution** (--exact). Two classes of two clusters each, in the plane, with the exact scores on the VP
path. In the problem `overlap`, one cluster of each class is shared in part with the other class; in the problem
`apart`, the classes hardly overlap. Guidance with scale w is often derived from the tilted density
p(x|c)^w p(x)^(1-w). The script draws exact samples of it on a fine grid, and measures distances to them in *units*: the
sliced Wasserstein distance of n samples to n exact samples, divided by that of exact samples to each other. Exact
samples have the distance 1. The first table has a row for each way to sample, with

    guided at   the noise levels sigma/alpha at which the model is guided; `none` is p(x|c) itself
    calls       model evaluations for each sample
    distance    distance of the samples to the tilted density, in units, with the standard error over the sets
    mean        mean of the first coordinate (class c lies at negative values)
    outside     share of the samples where p(x|c) is below its 1 % quantile

The second table compares two ways to solve the guided model, in the same units: 1 means that they draw from the same
distribution. Steps are quadrupled to show that their number is not the cause of the difference. The third table has the
integral of the density of the guided flow over the plane, and means over draws from the tilted density (in nats): its
own log-density, that of p(x|c), that of the guided flow, and the variational bound, which is a lower bound for the
reverse SDE of the guided model. If the last column is positive, it is no bound for the guided flow. Unlike the first
table, these two are only for the first problem.

Goal: at scale 2 and sigma/alpha below 1, a distance of at most 3.5 units in the problem `overlap`. For the expected
results, see docs/results.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoresde import (
    VPSDE,
    Denoiser,
    GaussianMixture,
    Guided,
    Likelihood,
    Multistep,
    Noise,
    Run,
    Solver,
    TrainConfig,
    elbo,
    fit,
    load,
    load_data,
    sample,
)
from scoresde.guidance.classifier_free import ALL
from scoresde.metrics import Measurement, frechet, sliced_wasserstein
from scoresde.solvers import Ancestral
from scoresde.study.classifier import TrainedClassifier, train_classifier

F64 = torch.float64
INTERVALS = (ALL, (0.0, 2.0), (0.0, 1.0), (0.0, 0.5), (0.2, 2.0))
# The centres of the clusters of class c and of the other class.
PROBLEMS = {
    "overlap": ([[-1.2, 0.3], [-0.2, -0.3]], [[1.2, -0.3], [0.2, 0.3]]),
    "apart": ([[-1.0, 0.6], [-0.4, -0.6]], [[1.0, -0.6], [0.4, 0.6]]),
}
WIDTH = 0.3  # the standard deviation of each cluster
SIDE = 4.0  # the tilted density is drawn on a grid from -SIDE to SIDE


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(interval: tuple[float, float]) -> str:
    """Describe an interval of noise levels in words."""
    low, high = interval
    if interval == ALL:
        return "all"
    if low == 0:
        return f"< {high:g}"
    return f"> {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


# ------------------------------------------------------------------------------------------------ a known distribution


class Tilted:
    """The density proportional to p(x|c)^w p(x)^(1-w), on a grid, with exact models of p(x|c) and of p(x).

    Args:
        problem: A key of ``PROBLEMS``.
        scale: The exponent w.
        cells: Number of grid cells on each side.
    """

    def __init__(self, problem: str, scale: float, cells: int = 1601) -> None:
        own, other = (torch.tensor(centres, dtype=F64) for centres in PROBLEMS[problem])
        both = torch.cat([own, other])
        self.given = GaussianMixture(VPSDE(), own, torch.full((len(own),), WIDTH, dtype=F64))
        self.whole = GaussianMixture(VPSDE(), both, torch.full((len(both),), WIDTH, dtype=F64))
        self.scale = scale
        axis = torch.linspace(-SIDE, SIDE, cells, dtype=F64)
        self.width = float(axis[1] - axis[0])
        self.grid = torch.cartesian_prod(axis, axis)
        logs = torch.cat([self._unscaled(part) for part in self.grid.split(100_000)])
        self.log_volume = float(torch.logsumexp(logs, 0)) + 2 * math.log(self.width)
        self.share = torch.softmax(logs, 0)

    def _unscaled(self, x: Tensor) -> Tensor:
        return self.scale * self.given.log_prob(x) + (1 - self.scale) * self.whole.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density, in nats, of the rows of ``x: (n, 2)``, shape ``(n,)``."""
        return self._unscaled(x) - self.log_volume

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` exact samples, ``(n, 2)``: a cell of the grid, and a uniform position in it."""
        cell = torch.multinomial(self.share, n, replacement=True, generator=generator)
        return self.grid[cell] + self.width * (torch.rand(n, 2, generator=generator, dtype=F64) - 0.5)

    def guided(self, interval: tuple[float, float] = ALL) -> Denoiser:
        """Return p(x|c), guided away from p(x)."""
        return Guided(self.given, self.whole, self.scale, interval)


def draw(model: Denoiser, solver: Solver, n: int, seed: int) -> tuple[Tensor, float]:
    """Draw ``n`` samples, ``(n, 2)``, and return them with the mean number of evaluations for each."""
    found = sample(model, solver, (2,), Noise.of(n, seed), batch=n, dtype=F64)
    return found.x, float(found.nfe.double().mean())


class Units:
    """Distances between sets of samples, in units of the distance between two sets of exact samples.

    Args:
        tilted: The distribution of the exact samples.
        n: The number of samples in each set.
        sets: The number of sets with which samples are compared.
    """

    def __init__(self, tilted: Tilted, n: int, sets: int = 8) -> None:
        exact = tilted.draw(2 * sets * n, seeded(1)).split(n)
        self.exact = exact[:sets]
        self.unit = sum(self._between(a, b) for a, b in zip(exact[:sets], exact[sets:], strict=True)) / sets

    @staticmethod
    def _between(x: Tensor, y: Tensor) -> float:
        return sliced_wasserstein(x, y, projections=128)

    def to_exact(self, x: Tensor) -> float:
        """Return the mean distance of ``x: (n, 2)`` to the sets of exact samples."""
        return sum(self._between(x, y) for y in self.exact) / len(self.exact) / self.unit

    def between(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> str:
        """Return the mean distance between the sets ``xs`` and the sets ``ys``, with its standard error."""
        return spread([self._between(x, y) / self.unit for x, y in zip(xs, ys, strict=True)])


def spread(values: Sequence[float]) -> str:
    """Describe the mean of some values, and its standard error."""
    found = torch.tensor(values, dtype=F64)
    return f"{found.mean():.1f}" + (f" ± {found.std() / len(values) ** 0.5:.1f}" if len(values) > 1 else "")


def distances(problem: str, scale: float, args: argparse.Namespace) -> None:
    """Print the distance of each way to sample to the tilted density."""
    tilted = Tilted(problem, scale)
    units, c = Units(tilted, args.n), tilted.given
    floor = torch.quantile(c.log_prob(c.sample(100_000, seeded(2))), 0.01)
    methods: dict[str, Solver] = {"multistep 30": Multistep(steps=30), "ancestral 200": Ancestral(steps=200)}

    def row(solver: str, guided: str, calls: str, sets: list[Tensor]) -> None:
        x = torch.cat(sets)
        outside = float((c.log_prob(x) < floor).double().mean())
        distance = spread([units.to_exact(x) for x in sets])
        print(f"| {solver} | {guided} | {calls} | {distance} | {x[:, 0].mean():.2f} | {outside:.1%} |", flush=True)

    print(f"\n{problem}, scale {scale:g} (one unit is {units.unit:.4f})\n")
    print("| samples | guided at | calls | distance | mean | outside |\n|---|---|---|---|---|---|")
    row("exact, tilted", "-", "-", [tilted.draw(args.n, seeded(100 + s)) for s in args.seeds])
    row("exact, p(x given c)", "-", "-", [c.sample(args.n, seeded(200 + s)) for s in args.seeds])
    for name, solver in methods.items():
        found = [draw(c, solver, args.n, s) for s in args.seeds]
        row(name, "none", f"{found[0][1]:.0f}", [x for x, _ in found])
        for interval in INTERVALS:
            found = [draw(tilted.guided(interval), solver, args.n, s) for s in args.seeds]
            row(name, levels(interval), f"{found[0][1]:.0f}", [x for x, _ in found])


def laws(problem: str, scales: Sequence[float], args: argparse.Namespace) -> None:
    """Print how far the samples of two solvers are from each other, for p(x|c) and for the guided model."""
    columns = ("multistep 30 and 120", "ancestral 200 and 800", "multistep 120 and ancestral 800")
    print(f"\n{problem}: distance between the samples of two solvers\n")
    print(f"| scale | {' | '.join(columns)} |\n|---|---|---|---|")
    for scale in (1.0, *scales):
        tilted = Tilted(problem, scale)
        units = Units(tilted, args.n)

        # Other seeds for each solver: the same noise would give nearly the same samples.
        solvers = (Multistep(steps=30), Multistep(steps=120), Ancestral(steps=200), Ancestral(steps=800))
        model, seeds = tilted.guided(), [1000 * i for i in range(4)]
        ode, many, sde, long = (
            [draw(model, solver, args.n, first + s)[0] for s in args.seeds]
            for solver, first in zip(solvers, seeds, strict=True)
        )
        cells = [units.between(ode, many), units.between(sde, long), units.between(many, long)]
        print(f"| {scale:g} | {' | '.join(cells)} |", flush=True)


def densities(problem: str, scales: Sequence[float], args: argparse.Namespace) -> None:
    """Print log-densities at draws from the tilted density, and the integral of the density of the guided flow."""
    print(f"\n{problem}: log-densities in nats, at draws from the tilted density\n")
    print("| scale | integral of the flow | tilted | p(x given c) | guided flow | bound | bound minus flow |")
    print("|---|---|---|---|---|---|---|")
    how = Likelihood(divergence="exact", rtol=1e-5)
    for scale in (1.0, *scales):
        tilted = Tilted(problem, scale)
        model = tilted.guided()
        axis = torch.linspace(-5, 5, args.side, dtype=F64)
        grid = torch.cartesian_prod(axis, axis)
        volume = how(model, grid, check=False).log_prob.double().exp().sum() * float(axis[1] - axis[0]) ** 2
        x = tilted.draw(1_000, seeded(3))
        flow = how(model, x, check=False).log_prob.double()
        bound = elbo(model, x, strata=1024).log_prob.double()
        means = [values.mean() for values in (tilted.log_prob(x), tilted.given.log_prob(x), flow, bound)]
        gap = bound - flow
        shown = f"{gap.mean():+.3f} ± {gap.std() / len(gap) ** 0.5:.3f}"
        print(f"| {scale:g} | {volume:.5f} | {' | '.join(f'{m:.3f}' for m in means)} | {shown} |", flush=True)


def picture(problem: str, scales: Sequence[float], path: str) -> None:
    """Draw samples over the tilted density: those of p(x|c), and those that guidance leads to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9.6, 2.2 * len(scales) + 0.5), layout="constrained")
    FigureCanvasAgg(fig)
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = fig.subplots(len(scales), 4, squeeze=False, sharex=True, sharey=True)
    for i, scale in enumerate(scales):
        tilted = Tilted(problem, scale, 401)
        side = torch.linspace(-SIDE, SIDE, 401).numpy()
        density = tilted.share.reshape(401, 401).T.numpy()
        n, solver = 1_500, Multistep(steps=30)
        shown = {
            "exact draws from the\ntilted density": tilted.draw(n, seeded(0)),
            "p(x | c),\nnot guided": draw(tilted.given, solver, n, 0)[0],
            "guided at all\nnoise levels": draw(tilted.guided(), solver, n, 0)[0],
            "guided at\n$\\sigma/\\alpha < 1$": draw(tilted.guided((0.0, 1.0)), solver, n, 0)[0],
        }
        axes[i, 0].set_ylabel(f"scale {scale:g}", fontsize=11)
        for axis, (name, x) in zip(axes[i], shown.items(), strict=True):
            axis.contourf(side, side, density, levels=[density.max() * s for s in (0.02, 0.2, 0.6, 1.0)],
                          cmap="Blues", vmin=-0.3 * density.max(), vmax=1.6 * density.max())  # fmt: skip
            axis.scatter(*x.T.numpy(), s=1.5, color="#c0392b", alpha=0.45, linewidths=0)
            axis.set(xticks=[], yticks=[], xlim=(-2.5, 0.9), ylim=(-1.5, 1.5), aspect="equal")
            if i == 0:
                axis.set_title(name, fontsize=10)
    fig.savefig(path, dpi=130)
    print(f"\n{path}")


def exact(args: argparse.Namespace) -> None:
    """Measure guidance on the known distributions."""
    scales, first = args.scales or (2.0, 4.0), args.problem[0]
    if "distances" in args.part:
        for problem in args.problem:
            for scale in scales:
                distances(problem, scale, args)
    if "laws" in args.part:
        laws(first, scales, args)
    if "densities" in args.part:
        densities(first, scales, args)
    if "picture" in args.part and args.figure:
        picture(first, scales, args.figure)


# ---------------------------------------------------------------------------------------------------------- the digits


class Judge:
    """The table of the digits, and what it takes to fill a row.

    Args:
        run: The class-conditional run.
        classifier: The classifier of the real digits.
        real: The training digits, ``(m, 1, 8, 8)``.
        args: The options.
    """

    def __init__(self, run: Run, classifier: TrainedClassifier, real: Tensor, args: argparse.Namespace) -> None:
        self.classifier, self.real, self.args = classifier, classifier.features(real), args
        self.labels = torch.arange(10).repeat_interleave(args.each)
        self.run = run.given(self.labels)

    def row(
        self, scale: float, against: str = "", interval: tuple[float, float] = ALL
    ) -> tuple[Measurement, Measurement, float]:
        """Print a row of the table, and return the agreement, the Frechet distance and the calls.

        Args:
            scale: The guidance scale.
            against: ``@`` and the step of a checkpoint to move away from, or "" for the model without a class.
            interval: The noise levels at which to guide.
        """
        guide = None
        if against:
            assert self.run.folder is not None
            guide = load(self.run.folder, step=int(against.removeprefix("@"))).given(self.labels)
        bound = self.run.guided(scale, guide, interval)
        found = bound.sample(len(self.labels), Multistep(steps=self.args.solver_steps))
        agrees = (self.classifier(found.x).argmax(1) == self.labels).double()
        share, n = float(agrees.mean()), len(agrees)
        agreement = Measurement(share, math.sqrt(share * (1 - share) / n))
        classes = agrees.reshape(10, -1).mean(1)
        worst, calls = int(classes.argmin()), float(found.solution.nfe.double().mean())
        distance = frechet(self.classifier.features(found.x), self.real)
        words = "-" if scale == 1 else against or "no class"
        shown = f"{distance.value:.2f} ± {distance.stderr:.2f}"
        print(
            f"| {scale:g} | {words} | {'-' if scale == 1 else levels(interval)} | {calls:.1f} "
            f"| {share:.1%} ± {agreement.stderr:.1%} | {worst}: {classes[worst]:.0%} | {shown} |",
            flush=True,
        )
        return agreement, distance, calls


def digits(args: argparse.Namespace, folder: Path) -> None:
    """Measure guidance on the digits, with the run in ``folder``, which is trained if it is not there."""
    data = load_data("digits")
    classifier = train_classifier(data)
    print(f"classifier: {classifier.accuracy:.1%} correct on {classifier.held_out} held-out digits")
    if not (folder / "config.json").is_file():
        config = TrainConfig(data="digits", cond="class", keep=5, steps=args.steps, sample_every=args.steps)
        fit(config, data=data, out=folder, quiet=True)
    judge = Judge(load(folder, step=args.step), classifier, data.train, args)
    print(f"run: {judge.run.step:,} steps; {len(judge.labels):,} samples in each row, multistep {args.solver_steps}\n")

    print("| scale | against | sigma/alpha | calls | agreement | worst class | Frechet distance |")
    print("|---|---|---|---|---|---|---|")
    plain = {scale: judge.row(scale) for scale in args.scales or (1.0, 1.5, 2.0, 3.0)}
    parts = [tuple(float(end) for end in interval.split(",")) for interval in args.intervals]
    within = {(low, high): judge.row(2.0, interval=(low, high)) for low, high in parts}
    auto = {(a, s): judge.row(s, a) for a in args.against for s in args.auto_scales}

    print()
    if 2.0 in plain:
        share = plain[2.0][0].value
        print(f"agreement at scale 2: {share:.1%} (goal: at least 90 %: {met(share >= 0.9)})")
    if 2.0 in plain and (0.0, 1.0) in within:
        (one, _, full), (other, _, part) = plain[2.0], within[0.0, 1.0]
        # A share of 100 % has no standard error of its own, so one wrong sample is the least difference that counts.
        error = max(math.hypot(one.stderr, other.stderr), 1 / len(judge.labels))
        equal = abs(one.value - other.value) <= 2 * error
        words = f"{part / full:.2f} of the calls, agreement {other.value - one.value:+.1%}"
        print(f"scale 2, sigma/alpha below 1: {words} (goal: at most 0.75: {met(part <= 0.75 * full and equal)})")
    if 1.0 in plain and auto:
        (against, scale), (_, best, _) = min(auto.items(), key=lambda item: item[1][1].value)
        least = plain[1.0][1]
        gain = least.value - best.value
        print(
            f"autoguidance: at best {best.value:.2f} ± {best.stderr:.2f} (scale {scale:g} against {against}), without "
            f"{least.value:.2f} ± {least.stderr:.2f} (goal: below by more than both errors: "
            f"{met(gain > best.stderr + least.stderr)})"
        )


def met(goal: bool) -> str:
    return "met" if goal else "not met"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", nargs="+", type=float, help="guidance scales (1 1.5 2 3, and 2 4 with --exact)")
    group = parser.add_argument_group("the digits")
    group.add_argument("--out", "--run", help="folder that keeps the run; if it already does, it is not trained again")
    group.add_argument("--steps", type=int, default=2_000, help="training steps")
    group.add_argument("--step", type=int, help="the checkpoint to sample from (the last)")
    group.add_argument("--each", type=int, default=200, help="number of samples of each class")
    group.add_argument("--solver-steps", type=int, default=20, help="steps of the solver (multistep)")
    group.add_argument(
        "--intervals", nargs="*", default=["0,1", "0.2,2"], help="noise levels at which to guide at scale 2"
    )
    group.add_argument("--against", nargs="*", default=["@400", "@800"], help="checkpoints for autoguidance")
    group.add_argument("--auto-scales", nargs="+", type=float, default=[1.5, 2.0], help="scales of autoguidance")
    group = parser.add_argument_group("a known distribution")
    group.add_argument("--exact", action="store_true", help="measure guidance on a known distribution")
    group.add_argument("--problem", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parts = ["distances", "laws", "densities", "picture"]
    group.add_argument("--part", nargs="+", choices=parts, default=parts, help="what to measure or to draw")
    group.add_argument("--n", type=int, default=4_000, help="number of samples in a set")
    group.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of the sets")
    group.add_argument("--side", type=int, default=121, help="grid points on each side for the integral")
    group.add_argument("--figure", help="file of the picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.exact:
        exact(args)
    elif args.out:
        digits(args, Path(args.out))
    else:
        with tempfile.TemporaryDirectory() as folder:
            digits(args, Path(folder) / "run")


if __name__ == "__main__":
    main()
