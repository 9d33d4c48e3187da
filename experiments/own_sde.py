"""Train four SDEs of one's own, run a fifth as a solver, and compare everything with the truth.

    python experiments/own_sde.py                          # about ten CPU minutes
    python experiments/own_sde.py --steps 500 --n 300      # faster
    python experiments/own_sde.py --only costs             # one part: a class, Phase, costs or figure

The classes below are those of docs/own-sde.md. Each is checked against the drift and diffusion of its publication, and
trained for about 30 seconds on one core. The table has the mean log-likelihood of held-out rows, its difference from
the truth (with the standard error over rows), and the squared MMD between 1,000 samples of each solver and as many real
rows, times 1,000 (unbiased, so it is 0 on average if the samples are right). For the digits, the truth is unknown, and
a VP path that was trained in the same way is shown for comparison. The second table shows damped Langevin dynamics with
a VP model of eight Gaussians, whose density is known. The third table shows what bands cost, with the exact model of a
Gaussian that has the mean and covariance of the digits.

For the expected results, see docs/own-sde.md.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde import (
    SDE,
    VPSDE,
    Condition,
    Dataset,
    GaussianMixture,
    Likelihood,
    Noise,
    Run,
    TrainConfig,
    fit,
    load_data,
    verify,
)  # fmt: skip
from scoresde.codec import Basis, Whitened
from scoresde.data.toys import eight_gaussians_log_density
from scoresde.metrics import mmd
from scoresde.plot.base import BLUE, GREY, INK, ORANGE, VERMILION, new_figure, save_figure, show_picture
from scoresde.solvers import MultistepSDE, Phase
from scoresde.solvers.exponential import sa_solver
from scoresde.solvers.phase import Damped

SOLVERS = ("ode", "ancestral", "multistep")
F64 = torch.float64


# ------------------------------------------------------------------------------------------------- classes of one's own


@dataclass(frozen=True)
class Reverting(SDE):
    """The difference x - y from a condition y vanishes at the rate theta."""

    theta: float = 5.0
    noise: float = 0.5

    def alpha(self, t):
        return torch.exp(-self.theta * t)

    def sigma(self, t):
        return self.noise * torch.sqrt(-torch.expm1(-2 * self.theta * t))


@dataclass(frozen=True)
class Bands(SDE):
    """One VP path for each coefficient of the cosine transform, coarse ones last."""

    beta: float = 20.0
    coords = (1, 8, 8)

    def integral(self, t):
        k = torch.arange(8, dtype=t.dtype)
        return self.beta * t ** (3 - (k[:, None] + k) / 7)

    def alpha(self, t):
        return torch.exp(-self.integral(t) / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.integral(t)))


@dataclass(frozen=True)
class Polynomial(SDE):
    """The path of equivariant diffusion for molecules."""

    s: float = 1e-5

    def alpha(self, t):
        return (1 - 2 * self.s) * (1 - t**2) + self.s

    def sigma(self, t):
        return torch.sqrt(1 - self.alpha(t) ** 2)


@dataclass(frozen=True)
class Fields(SDE):
    """dx = -beta(t) x/2 dt + sqrt(beta(t)) L dw with beta(t) = b t."""

    b: float = 20.0

    def alpha(self, t):
        return torch.exp(-self.b * t**2 / 4)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.b * t**2 / 2))


def powers() -> Tensor:
    """Return the powers of t of the bands, shape ``(8, 8)``."""
    k = torch.arange(8, dtype=F64)
    return 3 - (k[:, None] + k) / 7


# The published drift and diffusion of each class.
PUBLISHED: dict[type[SDE], tuple[Callable[..., Any], Callable[..., Any]]] = {
    Reverting: (lambda x, t, y: 5 * (y - x), lambda t: math.sqrt(2 * 5) * 0.5),
    Bands: (
        lambda x, t: -10 * powers() * t ** (powers() - 1) * x,
        lambda t: torch.sqrt(20 * powers() * t ** (powers() - 1)),
    ),
    Polynomial: (
        lambda x, t: -2 * t * (1 - 2e-5) / Polynomial().alpha(t) * x,
        lambda t: torch.sqrt(4 * t * (1 - 2e-5) / Polynomial().alpha(t)),
    ),
    Fields: (lambda x, t: -20 * t / 2 * x, lambda t: torch.sqrt(20 * t)),
}


# -------------------------------------------------------------------------------------------- data with a known density


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def angles(n: int, seed: int) -> Tensor:
    return 2 * math.pi * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixed(log_densities: Tensor) -> Tensor:
    """Return the log density of a mixture with equal weights, from those of its components, ``(n, K)``."""
    return torch.logsumexp(log_densities, 1) - math.log(log_densities.shape[1])


def gauss(square: Tensor, std: float, dims: int) -> Tensor:
    """Return the log density of a Gaussian at squared distances from its mean."""
    return -square / (2 * std**2) - dims * math.log(std * math.sqrt(2 * math.pi))


MOON, BLURRED = 0.1, 0.5  # the standard deviation of the points of a moon, and of the noise of their copies


def moons() -> Tensor:
    """Return the means of the Gaussians of two moons, ``(48, 2)``."""
    a = torch.linspace(0, math.pi, 24, dtype=F64)
    upper = torch.stack([a.cos() - 0.5, a.sin() - 0.25], 1)
    return torch.cat([upper, -upper])


def moon_data(n: int) -> Dataset:
    """Return points of two moons, each with its noisy copy as the condition y."""
    chosen = torch.randint(48, (n,), generator=torch.Generator().manual_seed(2))
    x = moons()[chosen] + MOON * normals(n, 2, seed=0)
    y = x + BLURRED * normals(n, 2, seed=1)
    return Dataset.of(x.float(), name="moons and noisy copies", given=Condition(image=y.float()))


def moon_truth(x: Tensor, y: Tensor) -> Tensor:
    """Return log p(x given y)."""

    def density(x: Tensor, std: float) -> Tensor:
        return mixed(gauss((x[:, None] - moons()).square().sum(2), std, 2))

    return density(x, MOON) + gauss((x - y).square().sum(1), BLURRED, 2) - density(y, math.hypot(MOON, BLURRED))


TRIANGLE = torch.tensor([[1.2, 0.0], [-0.8, 0.6], [-0.4, -0.6]], dtype=F64)
JITTER = 0.08


def turned(angle: Tensor) -> Tensor:
    """Return the triangle, turned by each angle, ``(n, 3, 2)``."""
    c, s = angle.cos(), angle.sin()
    return TRIANGLE @ torch.stack([c, s, -s, c], 1).reshape(-1, 2, 2)


def triangle_data(n: int) -> Dataset:
    """Return triangles of random orientation, whose corners vary a little, with the centre at 0."""
    x = turned(angles(n, 0)) + JITTER * normals(n, 3, 2, seed=1)
    return Dataset.of((x - x.mean(1, keepdim=True)).float(), name="triangles", layout="first")


def triangle_truth(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the log density per surface measure, in 4 dimensions."""
    every = turned(torch.arange(720, dtype=F64) * (math.pi / 360))
    return mixed(gauss((x[:, None] - every).square().sum((2, 3)), JITTER, 4))


POINTS, WOBBLE = 16, 0.3


def kernel() -> tuple[Tensor, Tensor]:
    """Return the factor L of the exponential kernel with the length 0.3, and the points of a curve."""
    u = torch.linspace(0, 1, POINTS, dtype=F64)
    return torch.linalg.cholesky(torch.exp(-(u[:, None] - u).abs() / 0.3)), u


def waves(phase: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * kernel()[1] + phase[:, None])


def curve_data(n: int) -> Dataset:
    """Return sine waves of random phase, plus a Gaussian process with the exponential kernel."""
    x = waves(angles(n, 0)) + WOBBLE * normals(n, POINTS, seed=1) @ kernel()[0].T
    return Dataset.of(x[:, None].float(), name="curves", layout="first")


def curve_truth(x: Tensor, y: Tensor | None = None) -> Tensor:
    lower, _ = kernel()
    every = waves(torch.arange(720, dtype=F64) * (math.pi / 360))
    white = torch.linalg.solve_triangular(lower, (x - every).flatten(0, 1).T, upper=False).square().sum(0)
    return mixed(gauss(white.reshape(len(x), -1), WOBBLE, POINTS)) - lower.diagonal().log().sum()


# ------------------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Case:
    """A path, the space in which it is stated, data, and their true log density, if it is known."""

    sde: SDE
    space: str
    data: Callable[[], Dataset]
    truth: Callable[[Tensor, Tensor], Tensor] | None = None
    more: dict[str, Any] = field(default_factory=dict)


CASES = {
    "Reverting": Case(
        Reverting(), "relative", lambda: moon_data(20_000), moon_truth, {"cond": "image", "cond_drop": 0.0}
    ),
    "Bands": Case(Bands(), "basis:dct", lambda: load_data("digits")),
    "VPSDE": Case(VPSDE(), "none", lambda: load_data("digits")),
    "Polynomial": Case(Polynomial(), "zero-mean", lambda: triangle_data(20_000), triangle_truth),
    "Fields": Case(Fields(), "whitened:exponential:0.3", lambda: curve_data(20_000), curve_truth),
}  # fmt: skip


def trained(sde: SDE, space: str, data: Dataset, args: argparse.Namespace, **more: Any) -> tuple[Run, float]:
    """Train an MLP, and return the run and the CPU seconds."""
    began = time.process_time()
    config = TrainConfig(
        sde=sde, space=space, preset="mlp", steps=args.steps, batch=256, sample_every=args.steps, **more
    )
    run = fit(config, data=data, save=False, quiet=True)
    return run, time.process_time() - began


def shown(mean: float, error: float, digits: int) -> str:
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def measure(name: str, case: Case, args: argparse.Namespace) -> None:
    """Check, train, score and sample a path, and print its row of the table."""
    if type(case.sde) in PUBLISHED:
        verify(case.sde, *PUBLISHED[type(case.sde)])
    data = case.data()
    run, seconds = trained(case.sde, case.space, data, args, **case.more)
    index = torch.arange(min(args.n, len(data.test)))
    y = data.test_given.image
    asked = run if y is None else run.given_rows(data, index)
    scores = asked.log_likelihood(data.test[index], seed=args.seed)
    truth = "unknown"
    if case.truth is None:
        cells = [f"{shown(*mean_and_error(scores.values.double()), 3)} {scores.unit}"]
    else:
        exact = case.truth(data.test[index].double(), torch.empty(0) if y is None else y[index].double())
        truth, gap = f"{float(exact.mean()):.3f}", scores.log_prob.double() - exact
        cells = [f"{float(scores.log_prob.double().mean()):.3f}, {shown(*mean_and_error(gap), 3)}"]
    # The samples answer the conditions of training rows, and are compared with other training rows.
    index = torch.arange(min(args.samples, len(data.train) // 2))
    drawn = run if y is None else run.given_rows(data, index, split="train")
    real = rows(data, index + len(index), data.train[index + len(index)])
    for solver in SOLVERS:
        x = drawn.sample(len(index), solver, seed=args.seed, batch=1024).x
        found = mmd(rows(data, index, x), real)
        cells.append(shown(1000 * found.value, 1000 * found.stderr, 1))
    print(f"| `{name}` | {case.space} | {seconds:.0f} s | {cells[0]} | {truth} | {' | '.join(cells[1:])} |", flush=True)


def rows(data: Dataset, index: Tensor, x: Tensor) -> Tensor:
    """Return samples as vectors, together with the conditions of the training rows ``index``, if there are any."""
    y = data.train_given.image
    flat = x.double().flatten(1)
    return flat if y is None else torch.cat([flat, y[index].double()], 1)


def measure_all(names: list[str], args: argparse.Namespace) -> None:
    solvers = " | ".join(f"`{solver}`" for solver in SOLVERS)
    print(f"| class | space | training | log p: model, minus truth | truth | {solvers} |")
    print("|---|---|---|---|---|" + "---|" * len(SOLVERS))
    for name in names:
        measure(name, CASES[name], args)


def damped(args: argparse.Namespace) -> None:
    """Print the mean true log density of samples of a VP model, by `phase` and by `sde`."""
    run, seconds = trained(VPSDE(), "none", load_data("8gaussians"), args)
    truth = eight_gaussians_log_density(run.data().test.double())
    steps = (25, 50, 100)
    print(f"\n| solver | {' | '.join(f'{n} steps' for n in steps)} |")
    print("|---|" + "---|" * len(steps))
    for name, solver in (("phase", Phase()), ("sde", MultistepSDE())):
        drawn = [run.sample(2000, replace(solver, steps=n), seed=args.seed).x.double() for n in steps]
        cells = [shown(*mean_and_error(eight_gaussians_log_density(x)), 3) for x in drawn]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
    print(f"\n{seconds:.0f} s of training; mean log density of data: {shown(*mean_and_error(truth), 3)}")


def costs(args: argparse.Namespace) -> None:
    """Print what bands cost with the exact model of a Gaussian that has the mean and covariance of the digits."""
    data = load_data("digits")
    x = Basis("dct").to_model(data.codec.to_model(data.train.double(), noise=torch.full((1,), 0.5)))
    flat = x.flatten(1)
    c = torch.cov(flat.T) + 1e-3 * torch.eye(64, dtype=F64)
    mean = flat.mean(0).reshape(1, 1, 8, 8)
    held_out = GaussianMixture(VPSDE(), mean, covariances=c[None]).sample(16, torch.Generator().manual_seed(0))
    print("\n| path | evaluations of a likelihood at rtol 1e-3 to 1e-6 | KL of `sa` at 20, 40, 80 steps | of `sde` |")
    print("|---|---|---|---|")
    for name, sde in (("`VPSDE`", VPSDE()), ("`Bands`", Bands())):
        model = GaussianMixture(sde, mean, covariances=c[None])
        nfe = []
        for rtol in (1e-3, 1e-4, 1e-5, 1e-6):
            nfe.append(float(Likelihood(rtol=rtol, atol=rtol)(model, held_out).nfe.double().mean()))
        noise = Noise.of(4000, args.seed)
        start = sde.prior.sample(noise, (1, 8, 8), F64)
        gaps = []
        for make in (sa_solver, MultistepSDE):
            ends = [make(steps=n)(model, start, noise=noise).x.flatten(1) for n in (20, 40, 80)]
            gaps.append(", ".join(f"{divergence(x, mean.flatten(), c):.2f}" for x in ends))
        print(f"| {name} | {', '.join(f'{n:.0f}' for n in nfe)} | {' | '.join(gaps)} |", flush=True)
    true = GaussianMixture(VPSDE(), mean, covariances=c[None]).sample(4000, torch.Generator().manual_seed(1))
    print(f"\nKL of 4,000 true draws: {divergence(true.flatten(1), mean.flatten(), c):.2f}")


def divergence(x: Tensor, mean: Tensor, c: Tensor) -> float:
    """Return the KL divergence of the Gaussian with the moments of ``x`` from N(mean, c), in nats."""
    m, white = x.mean(0) - mean, torch.linalg.solve(c, torch.cov(x.T))
    return float((torch.trace(white) - len(c) - torch.logdet(white) + m @ torch.linalg.solve(c, m)) / 2)


# ----------------------------------------------------------------------------------------------------------- the figure


LEVELS = (0.0, 0.1, 0.25, 0.4, 0.6, 1.0)  # noise levels sigma/(alpha + sigma), by the clock of the path


def times(sde: SDE) -> Tensor:
    """Return the times at which the path has the noise levels of the figure."""
    return sde.t_of_ratio(torch.tensor(LEVELS, dtype=F64))


def states(sde: SDE, z: Tensor, eps: Tensor) -> list[Tensor]:
    """Return the states of rows ``z`` at the times of the figure, all with the same noise ``eps``."""
    return [sde.perturb(z, float(t), eps) for t in times(sde)]


def figure(path: str) -> None:
    """Draw the forward process of one sample in data units, one row for each class."""
    made = new_figure(9.6, 7.5)
    axes = made.subplots(5, len(LEVELS), gridspec_kw={"hspace": 0.12, "wspace": 0.08, "left": 0.13, "right": 0.995,
                                                     "top": 0.965, "bottom": 0.01})  # fmt: skip
    named = ("Reverting\nrelative", "Bands\nbasis:dct", "Polynomial\nzero-mean", "Fields\nwhitened", "Phase\n(x, v)")
    for row, name in zip(axes, named, strict=True):
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
            for side in ax.spines.values():
                side.set_color("#dddddd")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10, color=INK, labelpad=8)
    for ax, level in zip(axes[0], LEVELS, strict=True):
        ax.set_title("data" if level == 0 else f"noise {level:.0%}", fontsize=10, color=INK)
    for row, sde in zip(axes, (Reverting(), Bands(), Polynomial(), Fields(), VPSDE()), strict=True):
        for ax, t in zip(row[1:], times(sde)[1:], strict=True):
            box = {"boxstyle": "square,pad=0.15", "color": "white", "alpha": 0.75, "linewidth": 0}
            ax.text(0.04, 0.95, f"t = {float(t):.2g}", transform=ax.transAxes, va="top", fontsize=8, bbox=box, zorder=5)
    draw_moon(axes[0])
    draw_digit(axes[1])
    draw_triangle(axes[2])
    draw_curve(axes[3])
    draw_phase(axes[4])
    save_figure(path, made, dpi=100)


def draw_moon(axes: Any) -> None:
    data = moons().repeat(4, 1) + MOON * normals(192, 2, seed=3)
    x, y = torch.tensor([[-1.35, 0.35]], dtype=F64), torch.tensor([[1.2, 0.75]], dtype=F64)
    eps = normals(250, 2, seed=4)
    for ax, z in zip(axes, states(Reverting(), (x - y).expand(250, -1), eps), strict=True):
        ax.scatter(*data.T, s=2, color="#cccccc", linewidths=0)
        ax.scatter(*(y + z).T, s=3, color=BLUE, linewidths=0, alpha=0.5)
        ax.scatter(*(y + z)[:1].T, s=22, color=ORANGE, linewidths=0.5, edgecolors=INK, zorder=3)
        ax.plot(*y[0], "x", color=VERMILION, markersize=7, markeredgewidth=1.8)
        ax.set(xlim=(-2.6, 2.9), ylim=(-1.9, 2.3))


def draw_digit(axes: Any) -> None:
    data = load_data("digits")
    x = data.codec.to_model(data.test[4:5].double(), noise=torch.full((1,), 0.5))
    basis = Basis("dct")
    for ax, m in zip(axes, states(Bands(), basis.to_model(x), normals(1, 1, 8, 8, seed=5)), strict=True):
        picture = ((basis.to_data(m)[0, 0].clamp(-1.4, 1.4) + 1.4) / 2.8 * 255).round().to(torch.uint8)
        show_picture(ax, np.repeat(picture.numpy()[:, :, None], 3, 2))


def draw_triangle(axes: Any) -> None:
    x = turned(torch.tensor([0.5], dtype=F64))
    eps = normals(60, 3, 2, seed=7)
    eps = eps - eps.mean(1, keepdim=True)
    colours = (BLUE, VERMILION, ORANGE)
    for ax, m in zip(axes, states(Polynomial(), x.expand(60, -1, -1), eps), strict=True):
        for corner, colour in enumerate(colours):
            ax.scatter(*m[:, corner].T, s=3, color=colour, linewidths=0, alpha=0.4)
        whole = torch.cat([m[0], m[0, :1]])
        ax.plot(*whole.T, color=INK, linewidth=1)
        ax.scatter(*m[0].T, s=22, color=colours, linewidths=0.5, edgecolors=INK, zorder=3)
        ax.plot(*m[0].mean(0), "+", color=INK, markersize=8, markeredgewidth=1.5)
        ax.set(xlim=(-2.9, 2.9), ylim=(-2.2, 2.2))


def draw_curve(axes: Any) -> None:
    n = 64
    u = torch.linspace(0, 1, n, dtype=F64)
    space = Whitened("exponential:0.3")
    x = torch.sin(2 * math.pi * u)[None]
    for ax, m in zip(axes, states(Fields(), space.to_model(x).expand(6, -1), normals(6, n, seed=8)), strict=True):
        for i, curve in enumerate(space.to_data(m)):
            ax.plot(u, curve, color=GREY if i else BLUE, linewidth=0.7 if i else 1.6, zorder=1 if i else 3)
        ax.set(ylim=(-3, 3))


def draw_phase(axes: Any) -> None:
    """Draw states of one coordinate and its velocity, at the clocks at which they are as noisy as a VP path."""
    process, sde = Damped(), VPSDE()
    _, moments = process.on(*sde.coefficients(times(sde)))
    eps = normals(400, 2, seed=9)
    for i, ax in enumerate(axes):
        lower = torch.linalg.cholesky(moments.cov[i])
        u = 1.5 * moments.mean[i] + eps @ lower.T
        ax.scatter(*u.T, s=3, color=BLUE, linewidths=0, alpha=0.5)
        ax.scatter(*u[:1].T, s=22, color=ORANGE, linewidths=0.5, edgecolors=INK, zorder=3)
        ax.set(xlim=(-3.6, 3.6), ylim=(-3.2, 3.2))
        ax.axhline(0, color="#dddddd", linewidth=0.6, zorder=0)
        ax.axvline(0, color="#dddddd", linewidth=0.6, zorder=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*CASES, "Phase", "costs", "figure"], help="run this part alone")
    parser.add_argument("--steps", type=int, default=2500, help="number of training steps")
    parser.add_argument("--n", type=int, default=1000, help="number of held-out rows for the likelihood")
    parser.add_argument("--samples", type=int, default=1000, help="number of samples of each solver")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="docs/images/own-sde.png", help="file of the figure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only in (None, "figure"):
        figure(args.figure)
    names = [name for name in CASES if args.only in (None, name)]
    if names:
        measure_all(names, args)
    if args.only in (None, "Phase"):
        damped(args)
    if args.only in (None, "costs"):
        costs(args)


if __name__ == "__main__":
    main()
