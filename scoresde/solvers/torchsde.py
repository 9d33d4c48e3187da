"""A solver that integrates the reverse SDE with the torchsde library (Li et al. 2020, arXiv:2001.01328).

The solver is meant for cross-checks, and gives access to torchsde's stochastic Runge-Kutta method. The whole batch has
the same step size. The Brownian motion is created with this step size, because torchsde's default Brownian motion is a
thousand times slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import STEPS, Range, ranges
from ..core.noise import Noise
from ..core.shapes import expand, flat, time_dtype
from ..core.shared import silence
from ..model.estimate import Counted, Denoiser, Tally
from ..sde.base import SDE
from ..sde.grids import make_grid
from ..solvers.base import Solution, Solver, Watch, fixed_solution
from ..solvers.level import auto_level
from ..solvers.trajectory import Step

__all__ = ["TorchSDE"]


@dataclass(frozen=True)
class TorchSDE(Solver):
    """Solver that integrates the reverse SDE with the torchsde library, with equal steps in t.

    Each batch has a single random number generator, which is seeded with the seed of the noise and the index of the
    first sample in the batch. A batch is therefore reproducible, but a sample depends on its batch. The
    ``reversible_heun`` method is rejected, because it diverges on the reverse SDE.

    Args:
        steps: Number of steps.
        method: ``euler``, ``milstein`` (the same as ``euler`` here, because the noise is additive) or ``srk``
            (stochastic Runge-Kutta, with ten evaluations per step).
        eta: Scale factor for the noise level.
    """

    limits = ranges(steps=STEPS, eta=Range(0, 1000, above=True, hint="to sample without noise, use the 'ode' solver"))

    steps: int = 200
    method: str = "srk"
    eta: float = 1.0

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("euler", "milstein", "srk")
        if self.method not in known:
            raise UsageError(f"unsupported torchsde method {self.method!r}; choose from: {', '.join(known)}")

    def uses_rates(self, sde: SDE) -> bool:
        return True

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        import torchsde

        if noise.brownian:
            raise UsageError(
                "TorchSDE cannot use noise with brownian=True, because torchsde draws its own Brownian motion for the "
                "whole batch, not one for each sample; use the 'sde' or 'em' solver"
            )
        sde, shape = model.domain.sde, x.shape
        make_grid("uniform", sde, self.steps, t0, t1)  # rejects an invalid grid; torchsde does not support nodes
        eta, counted = self.eta, Counted(model, Tally(x))
        support = model.domain.support
        real = 1 if support is None else flat(support.to(x))  # padded numbers have no noise

        class Reverse(torch.nn.Module):
            sde_type, noise_type = "ito", "diagonal"

            def time(self, s: Tensor) -> Tensor:
                # torchsde runs forward in s = t0 - t. The clamp keeps t within the model's domain despite rounding.
                return (t0 - s.to(time_dtype(x.device))).clamp(t1, t0)

            def f(self, s: Tensor, y: Tensor) -> Tensor:
                t = self.time(s)
                estimate = counted(y.reshape(shape), t)
                level = eta * auto_level(sde, t)
                return flat(expand(level.square() / 2, x) * estimate.score - estimate.velocity)

            def g(self, s: Tensor, y: Tensor) -> Tensor:
                level = flat(expand(eta * auto_level(sde, self.time(s)), x).expand(shape))
                return level.to(y.dtype) * real

        start = flat(x)
        # The seed is drawn from the noise of the first row, so that different batches have different Brownian motions.
        entropy = int(noise.uniform((1,), stream="solver", dtype=torch.float64)[0, 0] * 2**24)
        s = torch.tensor([0.0, t0 - t1], dtype=x.dtype, device=x.device)
        # torchsde adds up the steps. Without this margin for rounding, it may take an extra step of almost no length.
        step = (t0 - t1) / self.steps * (1 + 4 * self.steps * torch.finfo(x.dtype).eps)
        with silence:
            bm = torchsde.BrownianInterval(
                t0=s[0], t1=s[1], size=start.shape, dtype=x.dtype, device=x.device, dt=step,
                entropy=entropy, levy_area_approximation="space-time" if self.method == "srk" else "none",
            )  # fmt: skip
            solved = torchsde.sdeint(Reverse(), start, s, bm=bm, method=self.method, dt=step)
        end = solved[-1].reshape(shape)
        watch(Step(torch.arange(len(x), device=x.device), torch.tensor(t1, dtype=time_dtype(x.device)), end, done=1.0))
        return fixed_solution(end, counted.tally.total, self.steps)
