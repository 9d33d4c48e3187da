"""Run samplers of other libraries ("peers") on any denoiser of this library, for comparison with few_steps.py.

    python experiments/peers.py         # a few seconds on one CPU core; requires at least one of these peers

    k-diffusion 0.1.1.post1   sample_dpmpp_2m, sample_heun, sample_lms of order 4
    azula 0.11.1              vAB, zEAB and REAB of order 3
    diffusers 0.42.1          DPM-Solver++(2M) midpoint, UniPC-bh2 of order 2, DEIS of order 2 and 3

Each sampler is wrapped as ``run(model, x, n) -> x_end`` with ``n`` evaluations of the model (Heun uses n - 1 if n is
odd). It uses the uniform log-SNR grid, and goes from ``x`` at the start of the model's sampling interval to the end of
this interval. All steps are computed by the code of the peer. The code of k-diffusion works on the state x/alpha, with
noise level sigma/alpha. The code of azula and diffusers works on the state with alpha^2 + sigma^2 = 1 at the same
log-SNR. The network is evaluated at the continuous time that belongs to the sampler's sigma, never at a rounded time.

All peers are optional. :data:`PEERS` contains the peers that can be imported, and :func:`missing` lists the others with
the reason. From k-diffusion, only the samplers are imported. They require torchsde, torchdiffeq and SciPy, but not the
dependencies of k-diffusion's training code.

The code of the peers is used unmodified. The samplers of diffusers lower the order of the last steps if there are fewer
than 15 steps, and its DPM-Solver++ computes steps in float32. Its float32 tables of sigma are replaced by the float64
values of this module. The REAB sampler of azula uses the wrong noise level in a factor (``sqrt(alpha_s^2 +
sigma_t^2)``). It is therefore of first order, whatever its nominal order, and depends on the frame (on the state
x/alpha, its rms error is 1.4 to 2 times as large).

When run as a script, this module prints the rms and the median distance to the exact flow on the mixture of
few_steps.py, from the same starting points.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.core.errors import UsageError
from scoresde.core.shapes import expand
from scoresde.model.estimate import Denoiser

F64 = torch.float64
BUDGETS = (5, 10, 20, 50)

Peer = Callable[[Denoiser, Tensor, int], Tensor]


@dataclass(frozen=True)
class VEFrame:
    """A model in the form that the peers expect: ``frame(y, sigma)`` denoises ``y = x/alpha = x_0 + sigma eps``.

    If alpha is 0 at the start (flow matching), x/alpha is not finite. The state is then treated as if its log-SNR were
    -20, which causes a relative error of 5e-5.
    """

    model: Denoiser

    def ends(self) -> Tensor:
        """Return the log-SNR at the start and the end of sampling, float64 ``(2,)``."""
        low, high = self.model.domain.interval("sample")
        return self.model.domain.sde.log_snr(torch.tensor([high, low], dtype=F64)).clamp(-20, 60)

    def levels(self, n: int) -> Tensor:
        """Return n + 1 noise levels sigma/alpha, uniform in their logarithm, float64 on the CPU."""
        start, end = self.ends().tolist()
        return torch.exp(-torch.linspace(start, end, n + 1, dtype=F64) / 2)

    def time(self, sigma: Tensor) -> Tensor:
        """Return the model's time at noise levels sigma/alpha, with the same shape as ``sigma``."""
        low, high = self.model.domain.interval("sample")
        return self.model.domain.sde.t_of_log_snr(-2 * torch.log(sigma.to(F64))).clamp(low, high)

    def alpha(self, sigma: Tensor, x: Tensor) -> Tensor:
        """Return the model's alpha at noise levels of shape ``()`` or ``(B,)``, expanded to the shape of ``x``."""
        return expand(self.model.domain.sde.coefficients(self.time(sigma))[0], x)

    def __call__(self, y: Tensor, sigma: Tensor) -> Tensor:
        return self.model(self.alpha(sigma, y) * y, self.time(sigma).to(y.device)).x0


def vp_scale(sigma: Tensor) -> Tensor:
    """Return the factor that turns x/alpha into the variance-preserving state."""
    return torch.rsqrt(1 + sigma.square())


def in_frame(steps: Callable[[VEFrame, Tensor, Tensor], Tensor], evaluations: int = 1) -> Peer:
    """Make a peer from ``steps(frame, y, levels) -> y_end``, which needs ``evaluations`` of the model per step."""

    def run(model: Denoiser, x: Tensor, n: int) -> Tensor:
        if n < evaluations:
            raise UsageError(f"the number of evaluations must be at least {evaluations} for one step, got {n}")
        frame = VEFrame(model)
        levels = frame.levels(n // evaluations)
        # The peers may draw noise even if they multiply it by 0.
        with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return frame.alpha(levels[-1], x) * steps(frame, x / frame.alpha(levels[0], x), levels)

    return run


# ------------------------------------------------------------------------------------------------------- k-diffusion


def import_sampling() -> Any:
    """Import ``k_diffusion.sampling`` without the package's ``__init__``, which imports all of the training code."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise ModuleNotFoundError("No module named 'k_diffusion'")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["k_diffusion"] = package
    # The helpers of k-diffusion import torchvision to read images. An empty stub is enough here, and is removed below.
    names = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional"]
    stubs = [] if importlib.util.find_spec("torchvision") else names
    try:
        for name in stubs:
            sys.modules[name] = types.ModuleType(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in stubs:
            sys.modules.pop(name, None)


def k_diffusion() -> dict[str, Peer]:
    sampling = import_sampling()

    def peer(name: str, evaluations: int = 1, **options: Any) -> Peer:
        sampler = getattr(sampling, name)

        def steps(frame: VEFrame, y: Tensor, levels: Tensor) -> Tensor:
            end: Tensor = sampler(frame, y, levels.to(y), disable=True, **options)
            return end

        return in_frame(steps, evaluations)

    return {
        "k-diffusion dpmpp_2m": peer("sample_dpmpp_2m"),
        "k-diffusion heun": peer("sample_heun", evaluations=2),
        "k-diffusion lms, order 4": peer("sample_lms", order=4),
    }


# ------------------------------------------------------------------------------------------------------------- azula


@dataclass(frozen=True)
class Posterior:
    """A denoiser for azula, whose time goes from 1 to 0, uniformly in log sigma from the first to the last level."""

    frame: VEFrame
    levels: Any

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.levels(t)[1]
        return vp_scale(sigma), vp_scale(sigma) * sigma

    def __call__(self, z: Tensor, t: Tensor) -> Any:
        sigma = self.levels(t)[1]
        return types.SimpleNamespace(mean=self.frame(z / vp_scale(sigma), sigma))


def azula() -> dict[str, Peer]:
    noise, sample = importlib.import_module("azula.noise"), importlib.import_module("azula.sample")

    def peer(name: str) -> Peer:
        kind = getattr(sample, name)

        def steps(frame: VEFrame, y: Tensor, levels: Tensor) -> Tensor:
            denoiser = Posterior(frame, noise.VESchedule(float(levels[-1]), float(levels[0])))
            sampler = kind(denoiser, order=3, steps=len(levels) - 1, silent=True, dtype=F64)
            end: Tensor = sampler(vp_scale(levels[0]) * y) / vp_scale(levels[-1])
            return end

        return in_frame(steps)

    return {f"azula {name}, order 3": peer(f"{name}Sampler") for name in ("vAB", "zEAB", "REAB")}


# --------------------------------------------------------------------------------------------------------- diffusers


def diffusers() -> dict[str, Peer]:
    schedulers = importlib.import_module("diffusers.schedulers")

    def peer(name: str, order: int, **options: Any) -> Peer:
        kind = getattr(schedulers, f"{name}MultistepScheduler")

        def steps(frame: VEFrame, y: Tensor, levels: Tensor) -> Tensor:
            n = len(levels) - 1
            scheduler = kind(solver_order=order, prediction_type="sample", thresholding=False, **options)
            scheduler.set_timesteps(n)
            # Replace the noise levels from the scheduler's table by ``levels``. The timesteps are then only labels.
            scheduler.sigmas, scheduler.timesteps = levels, torch.arange(n)
            scheduler.set_begin_index(0)
            scale = vp_scale(levels)
            z = scale[0] * y
            for i, label in enumerate(scheduler.timesteps):
                z = scheduler.step(frame(z / scale[i], levels[i]), label, z, return_dict=False)[0]
            return z / scale[-1]

        return in_frame(steps)

    last = "sigma_min"  # end at the last noise level, not at 0
    return {
        "diffusers DPM-Solver++(2M)": peer(
            "DPMSolver", 2, algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type=last
        ),
        "diffusers UniPC-bh2, order 2": peer("UniPC", 2, solver_type="bh2", final_sigmas_type=last),
        "diffusers DEIS, order 2": peer("DEIS", 2),
        "diffusers DEIS, order 3": peer("DEIS", 3),
    }


# ------------------------------------------------------------------------------------------------------------- table


def _load() -> tuple[dict[str, Peer], list[str]]:
    found: dict[str, Peer] = {}
    lacking: list[str] = []
    for project, load in (("k-diffusion", k_diffusion), ("azula", azula), ("diffusers", diffusers)):
        try:
            found |= load()
        except (ImportError, RuntimeError, AttributeError) as error:  # diffusers raises RuntimeError
            lacking.append(f"{project}: {error}")
    return found, lacking


PEERS, _MISSING = _load()


def missing() -> list[str]:
    """List the peers that cannot be imported, each with the reason."""
    return list(_MISSING)


def main() -> None:
    from few_steps import problem, starts

    from scoresde import ProbabilityFlow

    torch.set_num_threads(1)
    for line in missing():
        print(f"not installed: {line}")
    model = problem()
    x = starts(model)
    low, high = model.domain.interval("sample")
    exact = ProbabilityFlow(rtol=1e-11, atol=1e-11)(model, x, t0=high, t1=low).x
    print("| peer | " + " | ".join(f"{n} evaluations" for n in BUDGETS) + " |")
    print("|---|" + "---|" * len(BUDGETS))
    for name, run in PEERS.items():
        cells = []
        for n in BUDGETS:
            e = (run(model, x, n) - exact).norm(dim=1)
            cells.append(f"{float(e.square().mean().sqrt()):.4f} / {float(e.median()):.5f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
