"""Score-based generative models in continuous time: SDEs, solvers, exact likelihood.

The names below are loaded when they are first used (PEP 562), so that ``import scoresde`` costs nothing::

    from scoresde import VPSDE, GaussianMixture, log_likelihood
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

_HOME = {
    "SDE": "sde",
    "VPSDE": "sdes",
    "SubVPSDE": "sdes",
    "VESDE": "sdes",
    "FlowMatching": "sdes",
    "CosineSDE": "sdes",
    "EDMSDE": "sdes",
    "VDMSDE": "sdes",
    "Shifted": "paths",
    "DDPM": "discrete",
    "SMLD": "discrete",
    "Estimate": "estimate",
    "Denoiser": "estimate",
    "Domain": "estimate",
    "Parametrization": "estimate",
    "Eps": "estimate",
    "X0": "estimate",
    "V": "estimate",
    "Score": "estimate",
    "Velocity": "estimate",
    "EDM": "estimate",
    "ScoreModel": "model",
    "Guided": "model",
    "convert": "model",
    "GaussianMixture": "exact",
    "Noise": "noise",
    "Condition": "condition",
    "Codec": "codec",
    "denoising_loss": "loss",
    "Solver": "solvers",
    "Solution": "solvers",
    "EulerMaruyama": "solvers",
    "PredictorCorrector": "solvers",
    "ProbabilityFlow": "solvers",
    "RungeKutta": "solvers",
    "Multistep": "solvers",
    "FixedStep": "solvers",
    "sample": "solvers",
    "Likelihood": "likelihood",
    "LogLikelihood": "likelihood",
    "Scores": "likelihood",
    "log_likelihood": "likelihood",
    "bits_per_dim": "likelihood",
    "Elbo": "likelihood",
    "elbo": "likelihood",
    "Dataset": "data",
    "load_data": "data",
    "Run": "run",
    "load": "run",
    "TrainConfig": "config",
    "fit": "train",
    "reflow": "rectified",
    "straightness": "rectified",
}
_MODULES = ("data", "metrics", "nn", "plot", "solvers")

__all__ = ["__version__", *_HOME, *_MODULES]

if TYPE_CHECKING:
    from . import data, metrics, nn, plot, solvers
    from .codec import Codec
    from .condition import Condition
    from .config import TrainConfig
    from .data import Dataset, load_data
    from .discrete import DDPM, SMLD
    from .estimate import EDM, X0, Denoiser, Domain, Eps, Estimate, Parametrization, Score, V, Velocity
    from .exact import GaussianMixture
    from .likelihood import Elbo, Likelihood, LogLikelihood, Scores, bits_per_dim, elbo, log_likelihood
    from .loss import denoising_loss
    from .model import Guided, ScoreModel, convert
    from .noise import Noise
    from .paths import Shifted
    from .rectified import reflow, straightness
    from .run import Run, load
    from .sde import SDE
    from .sdes import EDMSDE, VDMSDE, VESDE, VPSDE, CosineSDE, FlowMatching, SubVPSDE
    from .solvers import (
        EulerMaruyama,
        FixedStep,
        Multistep,
        PredictorCorrector,
        ProbabilityFlow,
        RungeKutta,
        Solution,
        Solver,
        sample,
    )
    from .train import fit


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'scoresde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
