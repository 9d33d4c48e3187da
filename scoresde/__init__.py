"""Score-based generative models in continuous time: SDEs, solvers and exact likelihoods.

All public names can be imported from this package::

    from scoresde import VPSDE, GaussianMixture, log_likelihood

They are loaded on first use (PEP 562), so ``import scoresde`` takes almost no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .core.version import __version__

_HOME = {
    "SDE": "sde.base",
    "VPSDE": "sde.continuous",
    "SubVPSDE": "sde.continuous",
    "VESDE": "sde.continuous",
    "FlowMatching": "sde.continuous",
    "CosineSDE": "sde.continuous",
    "MeanReverting": "sde.towards",
    "OUVE": "sde.towards",
    "BBED": "sde.towards",
    "Bridge": "sde.towards",
    "Blur": "sde.bands",
    "Parts": "sde.bands",
    "EDMSDE": "sde.continuous",
    "VDMSDE": "sde.continuous",
    "Shifted": "sde.modified",
    "DDPM": "sde.chains",
    "SMLD": "sde.chains",
    "verify": "sde.verify",
    "Estimate": "model.estimate",
    "Denoiser": "model.estimate",
    "Domain": "model.estimate",
    "Parametrization": "model.parametrization",
    "Eps": "model.parametrization",
    "X0": "model.parametrization",
    "V": "model.parametrization",
    "Score": "model.parametrization",
    "Velocity": "model.parametrization",
    "EDM": "model.parametrization",
    "ScoreModel": "model.network",
    "Guided": "guidance.classifier_free",
    "Mixed": "guidance.classifier_free",
    "Steered": "guidance.steered",
    "Thresholded": "guidance.steered",
    "Rescaled": "guidance.steered",
    "Measured": "guidance.measured",
    "convert": "model.convert",
    "GaussianMixture": "model.mixture",
    "Noise": "core.noise",
    "Condition": "core.condition",
    "Codec": "codec",
    "denoising_loss": "objective.loss",
    "Solver": "solvers",
    "Solution": "solvers",
    "EulerMaruyama": "solvers",
    "PredictorCorrector": "solvers",
    "ProbabilityFlow": "solvers",
    "RungeKutta": "solvers",
    "Multistep": "solvers",
    "Particles": "solvers",
    "FixedStep": "solvers",
    "sample": "solvers",
    "Likelihood": "likelihood",
    "LogLikelihood": "likelihood",
    "Scores": "likelihood",
    "MeanLikelihood": "likelihood",
    "log_likelihood": "likelihood",
    "bits_per_dim": "likelihood",
    "Elbo": "likelihood",
    "elbo": "likelihood",
    "Dataset": "data",
    "load_data": "data",
    "Run": "run.run",
    "load": "run.run",
    "TrainConfig": "run.config",
    "fit": "train",
    "averaged": "train.posthoc",
    "reflow": "train.reflow",
    "straightness": "train.reflow",
}
_MODULES = ("data", "metrics", "nn", "plot", "solvers")

__all__ = ["__version__", *_HOME, *_MODULES]

if TYPE_CHECKING:
    from . import data, metrics, nn, plot, solvers
    from .codec import Codec
    from .core.condition import Condition
    from .core.noise import Noise
    from .data import Dataset, load_data
    from .guidance.classifier_free import Guided, Mixed
    from .guidance.measured import Measured
    from .guidance.steered import Rescaled, Steered, Thresholded
    from .likelihood import (
        Elbo,
        Likelihood,
        LogLikelihood,
        MeanLikelihood,
        Scores,
        bits_per_dim,
        elbo,
        log_likelihood,
    )
    from .model.convert import convert
    from .model.estimate import Denoiser, Domain, Estimate
    from .model.mixture import GaussianMixture
    from .model.network import ScoreModel
    from .model.parametrization import EDM, X0, Eps, Parametrization, Score, V, Velocity
    from .objective.loss import denoising_loss
    from .run.config import TrainConfig
    from .run.run import Run, load
    from .sde.bands import Blur, Parts
    from .sde.base import SDE
    from .sde.chains import DDPM, SMLD
    from .sde.continuous import EDMSDE, VDMSDE, VESDE, VPSDE, CosineSDE, FlowMatching, SubVPSDE
    from .sde.modified import Shifted
    from .sde.towards import BBED, OUVE, Bridge, MeanReverting
    from .sde.verify import verify
    from .solvers import (
        EulerMaruyama,
        FixedStep,
        Multistep,
        Particles,
        PredictorCorrector,
        ProbabilityFlow,
        RungeKutta,
        Solution,
        Solver,
        sample,
    )
    from .train import fit
    from .train.posthoc import averaged
    from .train.reflow import reflow, straightness


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'scoresde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
