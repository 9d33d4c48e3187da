"""Interchangeable solvers, which move samples from the prior to the data and back.

=====================  =======================  ===============================================  ==================
name                   class                    what it integrates                               evaluations
=====================  =======================  ===============================================  ==================
``ode``                `ProbabilityFlow`        the probability flow, to a tolerance             adaptive
``euler``              `RungeKutta`             the velocity in t, order 1                       ``steps``
``heun``               `RungeKutta`             the flow in the straight frame, order 2          ``2 steps``
``rk4``                `RungeKutta`             the same, order 4                                ``4 steps``
``edm``                `EDMHeun`                the flow in the VE frame, order 2, with churn    ``2 steps``
``ddim``               `DDIM`                   exponential, order 1; with noise by ``eta``      ``steps``
``multistep``          `Multistep`              the flow, exponential, order 1 to 6              ``steps``
``dpm++2m``            `Multistep`              on x0, order 2, midpoint rule                    ``steps``
``dpm++3m``            `Multistep`              on x0, order 3                                   ``steps``
``deis``               `Multistep`              on eps, order 3                                  ``steps``
``unipc``              `Multistep`              on x0, order 2 and the corrector: 3              ``steps``
``dpm2s``, ``dpm3s``   `Singlestep`             on eps, order 2, 3                               order * ``steps``
``dpm++2s``, ``3s``    `Singlestep`             on x0, order 2, 3                                order * ``steps``
``singlestep``         `Singlestep`             the same by ``variable`` and ``order``           order * ``steps``
``sde``                `MultistepSDE`           the reverse SDE, exponential (2M-SDE)            ``steps``
``ancestral``          `Ancestral`              the chain's steps down (DDPM)                    ``steps``
``sde-dpm``            `MultistepSDE`           on eps, order 1                                  ``steps``
``sa``                 `MultistepSDE`           order 2 with the corrector (SA-Solver)           ``steps``
``er-sde``             `MultistepSDE`           order 2, corrected, with noise that fades        ``steps``
``em``                 `EulerMaruyama`          the reverse SDE                                  ``steps``
``heun-sde``           `StochasticHeun`         the reverse SDE, weak order 2                    ``2 steps``
``adaptive-sde``       `AdaptiveSDE`            the reverse SDE, to a tolerance                  adaptive
``reverse-diffusion``  `PredictorCorrector`     the reverse SDE, discretised as the path         ``steps``
``pc``                 `PredictorCorrector`     the same, with Langevin steps                    ``2 steps``
``ald``                `PredictorCorrector`     annealed Langevin dynamics alone                 ``5 steps``
``torchsde``           `TorchSDE`               the reverse SDE, by torchsde                     ``steps`` or more
``original``           `Original`               the tables and order of the original code        ``steps`` or more
=====================  =======================  ===============================================  ==================
"""

from .adaptive import AdaptiveSDE
from .base import FixedStep, Solution, Solver, sample
from .edm import EDMHeun
from .exponential import Multistep, MultistepSDE
from .flow import ProbabilityFlow, RungeKutta
from .original import Original
from .pc import PredictorCorrector
from .singlestep import Singlestep
from .stochastic import DDIM, Ancestral, EulerMaruyama, StochasticHeun
from .torchsde import TorchSDE
from .trajectory import Step, Trajectory

__all__ = [
    "DDIM",
    "AdaptiveSDE",
    "Ancestral",
    "EDMHeun",
    "EulerMaruyama",
    "FixedStep",
    "Multistep",
    "MultistepSDE",
    "Original",
    "PredictorCorrector",
    "ProbabilityFlow",
    "RungeKutta",
    "Singlestep",
    "Solution",
    "Solver",
    "Step",
    "StochasticHeun",
    "TorchSDE",
    "Trajectory",
    "sample",
]
