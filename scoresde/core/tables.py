"""The built-in names that a user can type, and the class or function that each name refers to.

The tables are plain dictionaries of strings, ``"name": "module:Class"``, so that ``scoresde --help`` can list the names
without importing torch. To add an SDE, a solver, a network or a parametrisation, write one class in one file and add
one line here. The name of any other class is written as ``module:Class``, such as ``mymodule:MySDE`` (see
:mod:`scoresde.core.registry`).
"""

from __future__ import annotations

__all__ = [
    "ANSWERS", "CODECS", "GRIDS", "METRICS", "NETWORKS", "OPERATORS", "PARAMETRIZATIONS", "PRESETS", "RATES", "SDES",
    "SOLVERS", "SPACES", "TIME_SAMPLERS", "TRACKERS", "WEIGHTINGS",
]  # fmt: skip

SDES = {
    "vp": "scoresde.sde.continuous:VPSDE",
    "subvp": "scoresde.sde.continuous:SubVPSDE",
    "ve": "scoresde.sde.continuous:VESDE",
    "cosine": "scoresde.sde.continuous:CosineSDE",
    "edm": "scoresde.sde.continuous:EDMSDE",
    "vdm": "scoresde.sde.continuous:VDMSDE",
    "flow": "scoresde.sde.continuous:FlowMatching",
    "mean-reverting": "scoresde.sde.towards:MeanReverting",
    "ouve": "scoresde.sde.towards:OUVE",
    "bbed": "scoresde.sde.towards:BBED",
    "bridge": "scoresde.sde.towards:Bridge",
    "blur": "scoresde.sde.bands:Blur",
    "parts": "scoresde.sde.bands:Parts",
    "ddpm": "scoresde.sde.chains:DDPM",
    "smld": "scoresde.sde.chains:SMLD",
}

PARAMETRIZATIONS = {
    "eps": "scoresde.model.parametrization:Eps",
    "x0": "scoresde.model.parametrization:X0",
    "v": "scoresde.model.parametrization:V",
    "score": "scoresde.model.parametrization:Score",
    "velocity": "scoresde.model.parametrization:Velocity",
    "edm": "scoresde.model.parametrization:EDM",
}

WEIGHTINGS = {
    "native": "scoresde.objective.weighting:Native",
    "eps": "scoresde.objective.weighting:EpsWeight",
    "x0": "scoresde.objective.weighting:X0Weight",
    "v": "scoresde.objective.weighting:VWeight",
    "score": "scoresde.objective.weighting:ScoreWeight",
    "likelihood": "scoresde.objective.weighting:LikelihoodWeight",
    "p2": "scoresde.objective.weighting:P2",
    "min-snr": "scoresde.objective.weighting:MinSNR",
    "edm": "scoresde.objective.weighting:EDMWeight",
    "sigmoid": "scoresde.objective.weighting:Sigmoid",
}

TIME_SAMPLERS = {
    "uniform": "scoresde.objective.times:independent",
    "low-discrepancy": "scoresde.objective.times:LowDiscrepancy",
    "sqrt": "scoresde.objective.times:Sqrt",
    "lognormal": "scoresde.objective.times:LogNormal",
    "logit-normal": "scoresde.objective.times:LogitNormal",
    "mode": "scoresde.objective.times:Mode",
    "importance": "scoresde.objective.times:Importance",
    "loss-second-moment": "scoresde.objective.times:LossSecondMoment",
}

# Decays of the learning rate.
RATES = {
    "cosine": "scoresde.train.rates:Cosine",
    "constant": "scoresde.train.rates:Constant",
    "linear": "scoresde.train.rates:Linear",
    "wsd": "scoresde.train.rates:WarmupStableDecay",
    "rsqrt": "scoresde.train.rates:InverseSqrt",
}

# Places to which the records of training go, besides metrics.jsonl.
TRACKERS = {
    "tensorboard": "scoresde.train.track:TensorBoard",
}

# Spaces: codecs in whose coordinates a path is stated.
SPACES = {
    "relative": "scoresde.codec.relative:Relative",
    "basis": "scoresde.codec.basis:Basis",
    "whitened": "scoresde.codec.whitened:Whitened",
    "zero-mean": "scoresde.codec.centred:ZeroMean",
    "symmetric": "scoresde.codec.symmetric:Symmetric",
    "masked": "scoresde.codec.masked:Masked",
    "log": "scoresde.codec.logarithm:Log",
}

CODECS = {
    "affine": "scoresde.codec.affine:Affine",
    "levels": "scoresde.codec.dequantise:Levels",
    **SPACES,
}

NETWORKS = {
    "mlp": "scoresde.nn.mlp:MLP",
    "unet": "scoresde.nn.unet:UNet",
}

# Operators, which describe how a sample is measured.
OPERATORS = {
    "mask": "scoresde.operators.masks:Mask",
    "hole": "scoresde.operators.masks:Hole",
    "half": "scoresde.operators.masks:Half",
    "cells": "scoresde.operators.masks:Cells",
    "pool": "scoresde.operators.pool:Pool",
    "grey": "scoresde.operators.grey:Grey",
    "crop": "scoresde.operators.crop:Crop",
    "blur": "scoresde.operators.blur:Blur",
    "noise": "scoresde.operators.noise:AddedNoise",
    "jpeg": "scoresde.operators.jpeg:JPEG",
}

GRIDS = {
    "uniform": "scoresde.sde.grids:UniformGrid",
    "sqrt": "scoresde.sde.grids:SqrtT",
    "logsnr": "scoresde.sde.grids:LogSNR",
    "karras": "scoresde.sde.grids:Karras",
    "linspace": "scoresde.sde.grids:linspace",
    "leading": "scoresde.sde.grids:leading",
    "trailing": "scoresde.sde.grids:trailing",
    "fitted": "scoresde.sde.grids:FittedGrid",
}

SOLVERS = {
    "ode": "scoresde.solvers.flow:ProbabilityFlow",
    "euler": "scoresde.solvers.flow:euler",
    "heun": "scoresde.solvers.flow:heun",
    "rk4": "scoresde.solvers.flow:rk4",
    "edm": "scoresde.solvers.edm:EDMHeun",
    "ddim": "scoresde.solvers.stochastic:DDIM",
    "multistep": "scoresde.solvers.exponential:Multistep",
    "tuned": "scoresde.solvers.tuned:Tuned",
    "dpm++2m": "scoresde.solvers.exponential:dpmpp_2m",
    "dpm++3m": "scoresde.solvers.exponential:dpmpp_3m",
    "deis": "scoresde.solvers.exponential:deis",
    "unipc": "scoresde.solvers.exponential:unipc",
    "dpm2s": "scoresde.solvers.singlestep:dpm_2s",
    "dpm3s": "scoresde.solvers.singlestep:dpm_3s",
    "dpm++2s": "scoresde.solvers.singlestep:dpmpp_2s",
    "dpm++3s": "scoresde.solvers.singlestep:dpmpp_3s",
    "singlestep": "scoresde.solvers.singlestep:Singlestep",
    "sde": "scoresde.solvers.exponential:MultistepSDE",
    "ancestral": "scoresde.solvers.stochastic:Ancestral",
    "sde-dpm": "scoresde.solvers.exponential:sde_dpm",
    "sa": "scoresde.solvers.exponential:sa_solver",
    "er-sde": "scoresde.solvers.exponential:er_sde",
    "em": "scoresde.solvers.stochastic:EulerMaruyama",
    "heun-sde": "scoresde.solvers.stochastic:StochasticHeun",
    "adaptive-sde": "scoresde.solvers.adaptive:AdaptiveSDE",
    "reverse-diffusion": "scoresde.solvers.pc:reverse_diffusion",
    "pc": "scoresde.solvers.pc:PredictorCorrector",
    "ald": "scoresde.solvers.pc:annealed_langevin",
    "original": "scoresde.solvers.original:Original",
    "particles": "scoresde.solvers.particles:Particles",
    "phase": "scoresde.solvers.phase:Phase",
    "torchsde": "scoresde.solvers.torchsde:TorchSDE",
}

# Each metric compares samples (N, d) with a reference (M, d).
METRICS = {
    "frechet": "scoresde.metrics:frechet",
    "kernel": "scoresde.metrics:kernel_distance",
    "mmd": "scoresde.metrics:mmd",
    "sliced": "scoresde.metrics:sliced",
    "prdc": "scoresde.metrics:neighbourhoods",
}

# Metrics that compare the samples of a conditional model (its answers) with the truth.
ANSWERS = {
    "psnr": "scoresde.metrics.answers:psnr",
    "ssim": "scoresde.metrics.answers:ssim",
    "seen": "scoresde.metrics.answers:seen",
    "ranks": "scoresde.metrics.answers:ranks",
    "spread": "scoresde.metrics.answers:spread",
}

# Presets for the two networks. `auto` chooses a preset for the data: `mlp` for vectors, `tiny` for events of up to 12
# pixels on each side, `small` for up to 40 pixels, and `base` for larger events. An event with unequal sides is treated
# as a square or a cube with the same number of pixels.
PRESETS: dict[str, dict[str, object]] = {
    "mlp": {"network": "mlp", "width": 128, "blocks": 3},
    "tiny": {"network": "unet", "channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)},
    "small": {"network": "unet", "channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,)},
    "base": {"network": "unet", "channels": 64, "multipliers": (1, 2, 2, 4), "blocks": 2, "attention": (2, 3)},
    "ddpm++": {
        "network": "unet",
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 4,
        "attention": (1,),
        "dropout": 0.1,
    },
}

# New names of modules and classes that have moved. Old run folders may refer to a class by its old name.
MOVED = {
    "scoresde.errors": "scoresde.core.errors",
    "scoresde.shapes": "scoresde.core.shapes",
    "scoresde.noise": "scoresde.core.noise",
    "scoresde.progress": "scoresde.core.progress",
    "scoresde.tables": "scoresde.core.tables",
    "scoresde.files": "scoresde.core.files",
    "scoresde.condition": "scoresde.core.condition",
    "scoresde.version": "scoresde.core.version",
    "scoresde.build": "scoresde.core.registry",
    "scoresde.tableaus": "scoresde.ode.tableaus",
    "scoresde.fixed": "scoresde.ode.fixed",
    "scoresde.dense": "scoresde.ode.dense",
    "scoresde.solvers.engines": "scoresde.ode.engines",
    "scoresde.sdes": "scoresde.sde.continuous",
    "scoresde.discrete": "scoresde.sde.chains",
    "scoresde.paths": "scoresde.sde.modified",
    "scoresde.grids": "scoresde.sde.grids",
    "scoresde.estimate": "scoresde.model.estimate",
    "scoresde.exact": "scoresde.model.mixture",
    "scoresde.vlb": "scoresde.likelihood.chain",
    "scoresde.comparison": "scoresde.study.report",
    "scoresde.likelihood.frame": "scoresde.likelihood.problem",
    "scoresde.weighting": "scoresde.objective.weighting",
    "scoresde.times": "scoresde.objective.times",
    "scoresde.draw": "scoresde.objective.draw",
    "scoresde.coupling": "scoresde.objective.coupling",
    "scoresde.loss": "scoresde.objective.loss",
    "scoresde.config": "scoresde.run.config",
    "scoresde.spec": "scoresde.run.spec",
    "scoresde.checkpoint": "scoresde.run.files",
    "scoresde.gallery": "scoresde.run.samples",
    "scoresde.compat": "scoresde.run.foreign",
    "scoresde.ema": "scoresde.train.averages",
    "scoresde.rectified": "scoresde.train.reflow",
    "scoresde.classifier": "scoresde.study.classifier",
    "scoresde.features": "scoresde.study.features",
    "scoresde.evaluate": "scoresde.study.evaluate",
    "scoresde.bench": "scoresde.study.bench",
    "scoresde.pictures": "scoresde.study.figures",
    "scoresde.compass": "scoresde.study.compass",
    "scoresde.single_image": "scoresde.study.single_image",
    "scoresde.estimate:Parametrization": "scoresde.model.parametrization:Parametrization",
    "scoresde.estimate:Eps": "scoresde.model.parametrization:Eps",
    "scoresde.estimate:X0": "scoresde.model.parametrization:X0",
    "scoresde.estimate:V": "scoresde.model.parametrization:V",
    "scoresde.estimate:Score": "scoresde.model.parametrization:Score",
    "scoresde.estimate:Velocity": "scoresde.model.parametrization:Velocity",
    "scoresde.estimate:EDM": "scoresde.model.parametrization:EDM",
    "scoresde.model:Guided": "scoresde.guidance.classifier_free:Guided",
    "scoresde.model:Converted": "scoresde.model.convert:Converted",
    "scoresde.model:convert": "scoresde.model.convert:convert",
    "scoresde.discrete:forward_step": "scoresde.sde.marginal:forward_step",
    "scoresde.discrete:posterior": "scoresde.sde.marginal:posterior",
    "scoresde.compass:TrainingSet": "scoresde.model.empirical:TrainingSet",
    "scoresde.solvers.engines:TorchSDE": "scoresde.solvers.torchsde:TorchSDE",
    "scoresde.weighting:Eps": "scoresde.objective.weighting:EpsWeight",
    "scoresde.weighting:X0": "scoresde.objective.weighting:X0Weight",
    "scoresde.weighting:V": "scoresde.objective.weighting:VWeight",
    "scoresde.weighting:Score": "scoresde.objective.weighting:ScoreWeight",
    "scoresde.weighting:EDM": "scoresde.objective.weighting:EDMWeight",
    "scoresde.weighting:Likelihood": "scoresde.objective.weighting:LikelihoodWeight",
    "scoresde.grids:Uniform": "scoresde.sde.grids:UniformGrid",
    "scoresde.grids:Given": "scoresde.sde.grids:GivenGrid",
    "scoresde.grids:nearest": "scoresde.sde.grids:nearest_node",
    "scoresde.times:Uniform": "scoresde.objective.times:LowDiscrepancy",
    "scoresde.likelihood.frame:Frame": "scoresde.likelihood.problem:Problem",
    "scoresde.bench:Row": "scoresde.study.bench:BenchRow",
    "scoresde.bench:table": "scoresde.study.bench:bench_table",
    "scoresde.evaluate:Row": "scoresde.study.evaluate:MetricRow",
    "scoresde.evaluate:table": "scoresde.study.evaluate:evaluation_table",
}
