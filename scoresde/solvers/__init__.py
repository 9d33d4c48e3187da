"""Interchangeable solvers: from the prior to the data, and back.

=============  ======================  =========================================  ===========================
name           class                   what it integrates                         cost (evaluations)
=============  ======================  =========================================  ===========================
``ode``        `ProbabilityFlow`       the probability flow, to a tolerance       adaptive, per sample
``heun``       `Heun`                  the probability flow, order 2              ``2 steps``
``multistep``  `Multistep`             the probability flow, order 1 to 6         ``steps``
``ddim``       `Multistep`             the same at order 1                        ``steps``
``dpm++2m``    `Multistep`             the same on x0, order 2, midpoint rule     ``steps``
``deis``       `Multistep`             the same on eps, order 3                   ``steps``
``sde``        `MultistepSDE`          the reverse SDE, exponential, order 2      ``steps``
``ancestral``  `MultistepSDE`          the same at order 1                        ``steps``
``torchsde``   `TorchSDE`              the reverse SDE, by torchsde               ``steps`` or more
``em``         `EulerMaruyama`         the reverse SDE                            ``steps``
``pc``         `PredictorCorrector`    the reverse SDE, with Langevin steps       ``steps (1 + corrections)``
=============  ======================  =========================================  ===========================
"""

from .base import Solution, Solver, sample
from .engines import TorchSDE
from .exponential import Multistep, MultistepSDE
from .flow import Heun, ProbabilityFlow
from .pc import PredictorCorrector
from .stochastic import EulerMaruyama

__all__ = [
    "EulerMaruyama",
    "Heun",
    "Multistep",
    "MultistepSDE",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Solution",
    "Solver",
    "TorchSDE",
    "sample",
]
