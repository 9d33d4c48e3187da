"""Draw from p(x | y) with an exact unconditional model, and compare the answers with the exact posterior.

    python experiments/posterior.py                                 # all samplers on all problems
    python experiments/posterior.py --n 300                         # the same with fewer answers
    python experiments/posterior.py --problem gaussian-field --rule moment --solver multistep
    python experiments/posterior.py --problem clusters --solver particles --particles 16
    python experiments/posterior.py --problem clusters --solver particles --particles 64 --steps 200
    python experiments/posterior.py --problem ring --rule moment --steps 200 --seeds 0 1 2 3 4 5 6 7 8 9

The samplers are given a measurement y = A x + noise, and a Gaussian mixture as the model of x. The posterior is then
another Gaussian mixture (`GaussianMixture.seen`), and the model is exact, so all errors are those of the sampler. The
path is VP. The problems are

    gaussian-field   eight points of a Gaussian field with the covariance exp(-|i - j|/3), pooled by 2, noise 0.05
    clusters         16 clusters (standard deviation 0.15) in eight dimensions, four numbers seen, noise 0.1. The
                     centres differ less in these four numbers than in the others, so that two clusters are compatible
                     with the measurement. Their posterior weights are 0.63 and 0.36.
    random-rows      the same clusters, and A with two rows of random numbers, noise 0.2. Two clusters have posterior
                     weights of 0.73 and 0.24.
    ring             eight clusters (standard deviation 0.15) on a ring of radius 1.3, x_1 = 0.9 seen, noise 0.1
    ring-wide        the same clusters, x_1 = 0 seen, noise 0.5

The table has a row for each sampler. Its columns are

    a problem   the sliced Wasserstein distance of N answers to N exact draws, averaged over ten sets of exact draws,
                and divided by the mean distance between two of these sets: about 1 for exact answers. With several
                seeds, this is the mean of the ratios, followed by the largest ratio in brackets.
    mean        for the field, the largest difference between the mean of the answers and the exact posterior mean (the
                kriging estimate), over the eight points and the seeds. With 1,000 exact answers, the standard
                error of the mean of a point is 0.011.
    forward     the evaluations of the model for each answer (the largest number over the problems)
    backward    the backward passes for each answer (the largest number over the problems)

Without --rule, --solver and --particles, the table has all samplers: draws of x that ignore y, the score of the exact
posterior with three solvers, the rules of `Measured` with the same solvers, `Particles`, and published samplers. Any of
these options selects a single sampler. By default, the rule is `moment`, the solver is `ancestral` (or `particles`, if
--particles is given), there are 16 particles, and the number of steps is 50 for `multistep` and `sde`, and 100
otherwise.

Goals, for N = 1,000:

    gaussian-field   moment with multistep: at most 1.3 at 51 evaluations, and means within 0.03
    clusters         16 particles: at most 2.5; 64 particles and 200 steps: at most 1.5
    ring             moment with ancestral and 200 steps: at most 2.2 for each of ten seeds, and 1.4 on average
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import combinations, pairwise

import torch
from torch import Tensor

from scoresde import VPSDE, Denoiser, Estimate, GaussianMixture, Measured, Multistep, Noise, Particles, Solver, sample
from scoresde.core.shapes import flat
from scoresde.metrics import sliced_wasserstein
from scoresde.model.estimate import Wrapped
from scoresde.operators import Linear, Mask, Pool
from scoresde.sde.grids import make_grid
from scoresde.sde.marginal import forward_step, posterior
from scoresde.solvers import DDIM, Ancestral, MultistepSDE

F64 = torch.float64
SDE = VPSDE()
SETS = 10  # sets of exact draws
ROWS = 8_000  # states that are moved at once


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=F64)


# --- problems -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows(Linear):
    """The product with a matrix, for samples that are vectors.

    Args:
        matrix: The matrix, ``(1, M, D)``.
    """

    matrix: Tensor = field(repr=False)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.matrix.to(x) @ x[..., None])[..., 0]

    def transpose(self, y: Tensor) -> Tensor:
        return (self.matrix.to(y).mT @ y[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class Problem:
    """A measurement of a draw from a Gaussian mixture.

    Args:
        prior: The mixture.
        operator: The operator A.
        y: The measurement, with the shape of one measurement.
        noise: The standard deviation of the noise of the measurement.
    """

    prior: GaussianMixture
    operator: Linear
    y: Tensor
    noise: float

    @cached_property
    def posterior(self) -> GaussianMixture:
        """The exact posterior."""
        return self.prior.seen(self.operator, self.y, self.noise)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of x."""
        return tuple(self.prior.means.shape[1:])

    @property
    def data_std(self) -> float:
        """The root mean square of the standard deviations of the elements of x."""
        within = self.prior.axes[0].mean()
        return float((within + self.prior.means.var(0, correction=0).mean()).sqrt())

    @cached_property
    def matrix(self) -> Tensor:
        """The operator as a matrix, ``(M, D)``, for measurements and samples that are flattened."""
        dims = math.prod(self.event)
        return flat(self.operator(torch.eye(dims, dtype=F64).reshape(dims, *self.event))).mT

    def ratio(self, x: Tensor) -> float:
        """Return the distance of answers ``x: (N, *event)`` to exact draws, divided by that of exact draws."""
        sets, unit = exact_draws(self, len(x))
        return sum(sliced_wasserstein(x, one) for one in sets) / len(sets) / unit

    def shift(self, x: Tensor) -> float:
        """Return the largest difference between the mean of answers ``x: (N, *event)`` and the posterior mean."""
        weights = self.posterior.weights
        assert weights is not None
        return float((x.mean(0) - torch.tensordot(weights, self.posterior.means, 1)).abs().max())


@cache
def exact_draws(problem: Problem, n: int) -> tuple[list[Tensor], float]:
    """Return sets of ``n`` draws from the exact posterior, and the mean distance between two of them."""
    sets = [problem.posterior.sample(n, seeded(1000 + i)) for i in range(SETS)]
    distances = [sliced_wasserstein(a, b) for a, b in combinations(sets, 2)]
    return sets, sum(distances) / len(distances)


def measured(prior: GaussianMixture, operator: Linear, noise: float, generator: torch.Generator) -> Problem:
    """Return the problem in which a draw from ``prior`` is measured."""
    exact = operator(prior.sample(1, generator))
    y = exact + noise * normal(tuple(exact.shape), generator)
    y = operator(y) if isinstance(operator, Mask) else y  # numbers that are not seen are 0
    return Problem(prior, operator, y[0], noise)


def gaussian_field() -> Problem:
    i = torch.arange(8, dtype=F64)
    covariance = torch.exp(-(i - i[:, None]).abs() / 3)
    prior = GaussianMixture(SDE, torch.zeros(1, 1, 8, dtype=F64), covariances=covariance[None])
    return measured(prior, Pool(2).on((1, 8)), 0.05, seeded(0))


def in_eight_dimensions() -> tuple[GaussianMixture, torch.Generator]:
    """Return 16 clusters, and the generator from which they were drawn."""
    generator = seeded(2)
    means = normal((16, 8), generator) * torch.tensor([0.5] * 4 + [1.0] * 4, dtype=F64)
    return GaussianMixture(SDE, means, torch.full((16,), 0.15, dtype=F64)), generator


def clusters() -> Problem:
    prior, generator = in_eight_dimensions()
    return measured(prior, Mask(torch.arange(8) < 4).on((8,)), 0.1, generator)


def random_rows() -> Problem:
    prior, generator = in_eight_dimensions()
    return measured(prior, Rows(normal((1, 2, 8), generator)).on((8,)), 0.2, generator)


def ring(seen: float, noise: float) -> Problem:
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    means = 1.3 * torch.stack([angle.cos(), angle.sin()], 1)
    prior = GaussianMixture(SDE, means, torch.full((8,), 0.15, dtype=F64))
    first = torch.tensor([True, False])
    return Problem(prior, Mask(first).on((2,)), torch.tensor([seen, 0.0], dtype=F64), noise)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "gaussian-field": gaussian_field,
    "clusters": clusters,
    "random-rows": random_rows,
    "ring": partial(ring, 0.9, 0.1),
    "ring-wide": partial(ring, 0.0, 0.5),
}


# --- samplers of the library --------------------------------------------------------------------------------


class Calls:
    """Numbers of rows for which a model was evaluated, and for which its estimate was differentiated."""

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0

    def differentiated(self, gradient: Tensor) -> None:
        """Count a backward pass, for a gradient ``(B, *event)``."""
        self.backward += len(gradient)


@dataclass(frozen=True)
class Watched(Wrapped):
    """A model whose evaluations and backward passes are counted.

    Args:
        calls: The counter.
    """

    calls: Calls

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        self.calls.forward += len(x)
        if estimate.x0.requires_grad:
            estimate.x0.register_hook(self.calls.differentiated)  # type: ignore[no-untyped-call]
        return estimate


Draw = Callable[[Problem, Calls, int, int], Tensor]


def steered(rule: str, solver: Solver, problem: Problem, calls: Calls, n: int, seed: int) -> Tensor:
    """Draw ``n`` answers with a solver of the library, ``(n, *event)``.

    The rule is one of `Measured`, or ``exact``, which stands for the score of the exact posterior.
    """
    model: Denoiser = Watched(problem.posterior if rule == "exact" else problem.prior, calls)
    if rule != "exact":
        model = Measured(model, problem.operator, problem.y[None], problem.noise, rule, data_std=problem.data_std)
    batch = max(1, ROWS // solver.particles) if isinstance(solver, Particles) else ROWS
    return sample(model, solver, problem.event, Noise.of(n, seed), batch=batch, dtype=F64).x


# --- published samplers -------------------------------------------------------------------------------------

# A published sampler is called with a problem, a model, the number of steps, the number of answers and a generator. It
# returns the answers, (n, *event).
Published = Callable[[Problem, Denoiser, int, int, torch.Generator], Tensor]


def times_of(steps: int) -> Tensor:
    """Return the times from the prior to the end of sampling, ``(steps + 1,)``, on the default grid of the path."""
    low, high = SDE.times("sample")
    return make_grid("auto", SDE, steps, high, low)


def prior_only(problem: Problem, model: Denoiser, steps: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw from the prior and ignore the measurement."""
    return problem.prior.sample(n, generator)


def repaint(
    problem: Problem, model: Denoiser, steps: int, n: int, generator: torch.Generator, resamplings: int
) -> Tensor:
    """RePaint (Lugmayr et al. 2022, arXiv:2201.09865, alg. 1), with jumps of one step.

    After each ancestral step to the time s, the known values are replaced by  alpha_s y + sigma_s z.  The step is taken
    ``resamplings`` times, and before each repetition, the state is taken back with a forward step. For an
    operator that is not a mask,  x + A^+ (alpha_s y + sigma_s A z - A x)  replaces x. With ``resamplings`` = 1, this is
    the imputation of Song et al. (2021), arXiv:2011.13456, app. I.2, with an ancestral predictor and no corrector.
    """
    operator, shape, times = problem.operator, (n, *problem.event), times_of(steps)
    x = SDE.prior.std * normal(shape, generator)

    def agreeing(x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        y = alpha * problem.y + operator(sigma * normal(shape, generator))
        return x + operator.pinv(y - operator(x))

    for i, (t, s) in enumerate(pairwise(times)):
        (a, b, v), (step, variance) = posterior(SDE, t, s), forward_step(SDE, t, s)
        alpha, sigma = SDE.coefficients(s)
        last = i == steps - 1
        for again in range(1 if last else resamplings):
            if again:
                x = step * x + variance.sqrt() * normal(shape, generator)
            x = a * model(x, t).x0 + b * x + v.sqrt() * normal(shape, generator)
            x = agreeing(x, alpha, sigma)
    return agreeing(model(x, times[-1]).x0, 1.0, 0.0)


def dps(problem: Problem, model: Denoiser, steps: int, n: int, generator: torch.Generator, zeta: float) -> Tensor:
    """Diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687, alg. 1).

    Each ancestral step is followed by a gradient step,  x_s <- x_s - (zeta/|r|) grad |r|^2,  with r = y - A x0_hat(x_t)
    and the gradient with respect to x_t. The step size is that of the paper (app. C.2); its code takes half of it.
    """
    times = times_of(steps)
    x = SDE.prior.std * normal((n, *problem.event), generator)
    for t, s in pairwise(times):
        a, b, v = posterior(SDE, t, s)
        with torch.enable_grad():
            state = x.requires_grad_()
            x0 = model(state, t).x0
            size = flat(problem.y - problem.operator(x0)).norm(dim=1)
            (gradient,) = torch.autograd.grad(size.sum(), state)
        x0, x = x0.detach(), x.detach()
        x = a * x0 + b * x + v.sqrt() * normal(tuple(x.shape), generator) - 2 * zeta * gradient
    return model(x, times[-1]).x0


def daps(problem: Problem, model: Denoiser, steps: int, n: int, generator: torch.Generator, inner: int) -> Tensor:
    """Decoupled annealing posterior sampling (Zhang et al. 2024, arXiv:2407.01521, alg. 1).

    At each noise level, the probability flow is solved from the state to the data with ``inner`` Euler steps in
    sigma/alpha. Its end is the mean of a Gaussian approximation to p(x_0 | x_t), with the standard deviation r =
    sigma/alpha. A draw from the product of this Gaussian and p(y | x_0) is noised to the next level. For a linear
    operator, the product is Gaussian, so the draw is exact, where the paper uses Langevin dynamics.
    """
    shape, times = (n, *problem.event), times_of(steps)
    low = float(times[-1])
    values, axes = torch.linalg.eigh(problem.matrix.mT @ problem.matrix / problem.noise**2)
    x = SDE.prior.std * normal(shape, generator)
    flow = DDIM(inner - 1, grid="karras")
    for t, s in pairwise(times):
        alpha, sigma = SDE.coefficients(t)
        x0 = flat(model(flow(model, x, t0=float(t), t1=low).x, low).x0)
        pull = (problem.y.flatten() - x0 @ problem.matrix.mT) @ problem.matrix / problem.noise**2
        variance = 1 / (values + (alpha / sigma).square())
        x0 = x0 + (variance * (pull @ axes) + variance.sqrt() * normal(tuple(x0.shape), generator)) @ axes.mT
        x0 = x0.reshape(shape)
        alpha, sigma = SDE.coefficients(s)
        x = alpha * x0 + sigma * normal(shape, generator)
    return x0


PUBLISHED: dict[str, tuple[str, Published]] = {
    "prior": ("prior, y ignored", prior_only),
    "replacement": ("replacement (Song et al. 2021)", partial(repaint, resamplings=1)),
    "repaint-5": ("RePaint, 5 resamplings", partial(repaint, resamplings=5)),
    "repaint-20": ("RePaint, 20 resamplings", partial(repaint, resamplings=20)),
    "dps-0.3": ("DPS, zeta 0.3", partial(dps, zeta=0.3)),
    "dps-1": ("DPS, zeta 1", partial(dps, zeta=1.0)),
    "daps": ("DAPS, 5 inner steps", partial(daps, inner=5)),
}


def recreated(draw: Published, steps: int, problem: Problem, calls: Calls, n: int, seed: int) -> Tensor:
    """Draw ``n`` answers with a published sampler, ``(n, *event)``."""
    with torch.no_grad():
        return draw(problem, Watched(problem.prior, calls), steps, n, seeded(seed))


# --- table --------------------------------------------------------------------------------------------------

RULES = ("exact", "moment", "pseudoinverse", "projection")
SOLVERS = ("multistep", "sde", "ancestral", "particles")


def sampler(rule: str, solver: str, particles: int, steps: int | None) -> tuple[str, Draw]:
    """Return a sampler and its title. The solver and the particles are ignored for a published sampler."""
    if rule in PUBLISHED:
        title, draw = PUBLISHED[rule]
        return title, partial(recreated, draw, steps or 100)
    count = steps or (50 if solver in ("multistep", "sde") else 100)
    title = f"{'exact posterior score' if rule == 'exact' else rule}, {solver}"
    if solver == "particles":
        return f"{title}, P = {particles}", partial(steered, rule, Particles(count, particles))
    found = {"multistep": Multistep, "sde": MultistepSDE, "ancestral": Ancestral}[solver]
    return title, partial(steered, rule, found(count))


def all_samplers(steps: int | None) -> list[tuple[str, Draw]]:
    """Return all samplers, each with its title."""
    single = [(rule, solver) for rule in RULES for solver in ("multistep", "sde", "ancestral")]
    several = [(rule, particles) for rule in ("pseudoinverse", "moment") for particles in (4, 16, 64)]
    return [
        sampler("prior", "", 0, steps),
        *(sampler(rule, solver, 0, steps) for rule, solver in single),
        *(sampler(rule, "particles", particles, steps) for rule, particles in several),
        *(sampler(rule, "", 0, steps) for rule in PUBLISHED if rule != "prior"),
    ]


def cell(values: list[float]) -> str:
    """Return the mean of some ratios and, if there are several, the largest."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({max(values):.2f})"


def row(title: str, draw: Draw, problems: dict[str, Problem], n: int, seeds: list[int]) -> str:
    """Return the row of the table for one sampler."""
    cells, shift, forward, backward = [], 0.0, 0.0, 0.0
    for name, problem in problems.items():
        ratios = []
        for seed in seeds:
            calls = Calls()
            x = draw(problem, calls, n, seed)
            good = bool(x.isfinite().all())
            ratios.append(problem.ratio(x) if good else math.inf)
            if name == "gaussian-field":
                shift = max(shift, problem.shift(x) if good else math.inf)
            forward, backward = max(forward, calls.forward / n), max(backward, calls.backward / n)
        cells.append(cell(ratios))
    means = [f"{shift:.3f}"] if "gaussian-field" in problems else []
    return f"| {' | '.join([title, *cells, *means, f'{forward:.0f}', f'{backward:.0f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--rule", choices=[*RULES, *PUBLISHED], help="a rule, or the name of a published sampler")
    parser.add_argument("--solver", choices=SOLVERS)
    parser.add_argument("--particles", type=int, help="number of particles of each answer")
    parser.add_argument("--steps", type=int, help="number of steps")
    parser.add_argument("--n", type=int, default=1000, help="number of answers, N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    solver = args.solver or ("particles" if args.particles else "ancestral")
    if args.particles and solver != "particles":
        parser.error(f"--particles has no effect on the solver {solver}; leave it out, or use --solver particles")
    if args.rule in PUBLISHED and (args.solver or args.particles):
        parser.error(f"{args.rule} is a sampler of its own; leave out --solver and --particles")
    if args.rule == "exact" and solver == "particles":
        parser.error("the exact posterior has no measurement by which particles are weighted; use another solver")
    torch.set_num_threads(1)
    problems = {name: PROBLEMS[name]() for name in args.problem}
    chosen = args.rule or args.solver or args.particles
    samplers = (
        [sampler(args.rule or "moment", solver, args.particles or 16, args.steps)]
        if chosen
        else all_samplers(args.steps)
    )
    columns = ["sampler", *problems, *(["mean"] if "gaussian-field" in problems else []), "forward", "backward"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for title, draw in samplers:
        print(row(title, draw, problems, args.n, args.seeds), flush=True)


if __name__ == "__main__":
    main()
