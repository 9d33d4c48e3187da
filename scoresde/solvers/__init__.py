"""Interchangeable solvers: from the prior to the data, and back.

=========  ======================  =============================================  =====================
name       class                   what it integrates                             cost (evaluations)
=========  ======================  =============================================  =====================
``ode``    `ProbabilityFlow`       the probability flow, to a tolerance           adaptive, per sample
``heun``   `Heun`                  the probability flow, order 2                  ``2 steps``
``multi``  `Multistep`             the probability flow, any order                ``steps``
``em``     `EulerMaruyama`         the reverse SDE                                ``steps``
``pc``     `PredictorCorrector`    the reverse SDE, with Langevin corrections     ``steps (1 + corrections)``
=========  ======================  =============================================  =====================
"""

from .base import Solution, Solver, sample
from .exponential import Multistep
from .flow import Heun, ProbabilityFlow
from .pc import PredictorCorrector
from .stochastic import EulerMaruyama

__all__ = [
    "EulerMaruyama",
    "Heun",
    "Multistep",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Solution",
    "Solver",
    "sample",
]
