"""The names a user may type, and the class each stands for.

Plain dictionaries of ``"name": "module:Class"`` strings and nothing else, so that ``scoresde --help`` can list them
without importing torch. Adding an SDE, a solver, a network or a parametrisation is one class in one file and one
line here; a class in nobody's table is named in full, ``mymodule:MySDE`` (see :mod:`scoresde.build`).
"""

from __future__ import annotations

__all__ = [
    "CODECS", "GRIDS", "METRICS", "NETWORKS", "PARAMETRIZATIONS", "PRESETS", "SDES", "SOLVERS", "TIME_SAMPLERS",
    "WEIGHTINGS",
]  # fmt: skip

SDES = {
    "vp": "scoresde.sdes:VPSDE",
    "subvp": "scoresde.sdes:SubVPSDE",
    "ve": "scoresde.sdes:VESDE",
    "cosine": "scoresde.sdes:CosineSDE",
    "edm": "scoresde.sdes:EDMSDE",
    "vdm": "scoresde.sdes:VDMSDE",
    "flow": "scoresde.sdes:FlowMatching",
    "ddpm": "scoresde.discrete:DDPM",
    "smld": "scoresde.discrete:SMLD",
}

PARAMETRIZATIONS = {
    "eps": "scoresde.estimate:Eps",
    "x0": "scoresde.estimate:X0",
    "v": "scoresde.estimate:V",
    "score": "scoresde.estimate:Score",
    "velocity": "scoresde.estimate:Velocity",
    "edm": "scoresde.estimate:EDM",
}

WEIGHTINGS = {
    "native": "scoresde.weighting:Native",
    "eps": "scoresde.weighting:Eps",
    "x0": "scoresde.weighting:X0",
    "v": "scoresde.weighting:V",
    "score": "scoresde.weighting:Score",
    "likelihood": "scoresde.weighting:Likelihood",
    "p2": "scoresde.weighting:P2",
    "min-snr": "scoresde.weighting:MinSNR",
    "edm": "scoresde.weighting:EDM",
    "sigmoid": "scoresde.weighting:Sigmoid",
}

TIME_SAMPLERS = {
    "uniform": "scoresde.times:independent",
    "low-discrepancy": "scoresde.times:Uniform",
    "sqrt": "scoresde.times:Sqrt",
    "lognormal": "scoresde.times:LogNormal",
    "logit-normal": "scoresde.times:LogitNormal",
    "mode": "scoresde.times:Mode",
    "importance": "scoresde.times:Importance",
    "loss-second-moment": "scoresde.times:LossSecondMoment",
}

CODECS = {
    "affine": "scoresde.codec.affine:Affine",
    "levels": "scoresde.codec.dequantise:Levels",
}

NETWORKS = {
    "mlp": "scoresde.nn.mlp:MLP",
    "unet": "scoresde.nn.unet:UNet",
}

GRIDS = {
    "uniform": "scoresde.grids:Uniform",
    "sqrt": "scoresde.grids:SqrtT",
    "logsnr": "scoresde.grids:LogSNR",
    "karras": "scoresde.grids:Karras",
    "linspace": "scoresde.grids:linspace",
    "leading": "scoresde.grids:leading",
    "trailing": "scoresde.grids:trailing",
}

SOLVERS = {
    "ode": "scoresde.solvers.flow:ProbabilityFlow",
    "euler": "scoresde.solvers.flow:euler",
    "heun": "scoresde.solvers.flow:heun",
    "rk4": "scoresde.solvers.flow:rk4",
    "edm": "scoresde.solvers.edm:EDMHeun",
    "ddim": "scoresde.solvers.stochastic:DDIM",
    "multistep": "scoresde.solvers.exponential:Multistep",
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
    "torchsde": "scoresde.solvers.engines:TorchSDE",
}

# Of samples (N, d) and a reference (M, d).
METRICS = {
    "frechet": "scoresde.metrics:frechet",
    "kernel": "scoresde.metrics:kernel_distance",
    "mmd": "scoresde.metrics:mmd",
    "sliced": "scoresde.metrics:sliced",
    "prdc": "scoresde.metrics:neighbourhoods",
}

# Sizes of the two networks. `auto` picks by the data: the MLP for vectors, `tiny` for events up to 12 pixels on the
# longest side, `small` up to 40, `base` above.
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
