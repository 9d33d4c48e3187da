"""Interchangeable solvers, which move samples from the prior to the data.

Deterministic solvers can also run in the opposite direction.

In the following table, *the flow* is the probability flow, and a *frame* is a change of variables in which the flow is
integrated (:mod:`scoresde.solvers.flow`). A solver *on x0* approximates the model's estimate of the data by a
polynomial, and a solver *on eps* approximates the estimate of the noise. With a solver *on any variable*, the user
chooses the quantity to approximate. The last column gives the number of model evaluations with the default options,
not counting the final noise-free step of :func:`scoresde.sample`.

========================  ====================  ===============================================  =====================
name                      class                 what it integrates                               evaluations
========================  ====================  ===============================================  =====================
``ode``                   `ProbabilityFlow`     the flow, with adaptive steps                    depends on ``rtol``
``euler``                 `RungeKutta`          the flow in t, order 1                           ``steps``
``heun``                  `RungeKutta`          the flow in the straight frame, order 2          ``2 * steps``
``rk4``                   `RungeKutta`          the flow in the straight frame, order 4          ``4 * steps``
``edm``                   `EDMHeun`             the flow in the VE frame, order 2                ``2 * steps``
``ddim``                  `DDIM`                the flow, order 1, with noise if ``eta`` > 0     ``steps``
``multistep``             `Multistep`           the flow on any variable, orders 1 to 6          ``steps``
``tuned``                 `Tuned`               the flow, fitted to one run with ``tune``         ``steps``
``dpm++2m``               `Multistep`           the flow on x0, order 2                          ``steps``
``dpm++3m``               `Multistep`           the flow on x0, order 3                          ``steps``
``deis``                  `Multistep`           the flow on eps, order 3                         ``steps``
``unipc``                 `Multistep`           the flow on x0, order 3 with the corrector       ``steps``
``dpm2s``, ``dpm3s``      `Singlestep`          the flow on eps, orders 2 and 3                  ``order * steps``
``dpm++2s``, ``dpm++3s``  `Singlestep`          the flow on x0, orders 2 and 3                   ``order * steps``
``singlestep``            `Singlestep`          the flow on any variable, orders 1 to 3          ``order * steps``
``sde``                   `MultistepSDE`        the reverse SDE on x0 (DPM-Solver++ 2M-SDE)      ``steps``
``ancestral``             `Ancestral`           the reverse steps of a chain, as in DDPM         ``steps``
``sde-dpm``               `MultistepSDE`        the reverse SDE on eps, order 1                  ``steps``
``sa``                    `MultistepSDE`        the reverse SDE with a corrector (SA-Solver)     ``steps``
``er-sde``                `MultistepSDE`        an SDE whose noise fades, with a corrector       ``steps``
``em``                    `EulerMaruyama`       the reverse SDE, weak order 1                    ``steps``
``heun-sde``              `StochasticHeun`      the reverse SDE, weak order 2                    ``2 * steps``
``adaptive-sde``          `AdaptiveSDE`         the reverse SDE, with adaptive steps             depends on ``rtol``
``reverse-diffusion``     `PredictorCorrector`  reverse SDE, discretised like the forward SDE    ``steps``
``pc``                    `PredictorCorrector`  the reverse SDE, corrected by Langevin steps     ``2 * steps``
``ald``                   `PredictorCorrector`  annealed Langevin dynamics alone                 ``5 * steps``
``particles``             `Particles`           a steered reverse SDE with weighted particles    ``steps * particles``
``phase``                 `Phase`               the reverse SDE in position and velocity         ``steps``
``torchsde``              `TorchSDE`            the reverse SDE, with the torchsde library       ``10 * steps``
``original``              `Original`            the reverse SDE, as in the original code         ``steps``
========================  ====================  ===============================================  =====================
"""

from .adaptive import AdaptiveSDE
from .base import FixedStep, Solution, Solver, sample
from .edm import EDMHeun
from .exponential import Multistep, MultistepSDE
from .flow import ProbabilityFlow, RungeKutta
from .original import Original
from .particles import Particles
from .pc import PredictorCorrector
from .phase import Phase
from .singlestep import Singlestep
from .stochastic import DDIM, Ancestral, EulerMaruyama, StochasticHeun
from .torchsde import TorchSDE
from .trajectory import Step, Trajectory
from .tuned import Tuned

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
    "Particles",
    "Phase",
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
    "Tuned",
    "sample",
]
