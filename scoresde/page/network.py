"""The weights of a small network in a page, so that the reader can evaluate the model itself at a few points.

Only the package's own MLP is written, in half precision: the script of a page has the same layers
(:mod:`scoresde.nn.mlp`). For every other network the page uses its table. The meaning of the output F
(:mod:`scoresde.model.parametrization`) is linear in the state, so four curves over the log-SNR say everything about the
path and the parametrisation: with z of :mod:`.frame`,

    x0_hat = k_z z + k_F F(k_in z, label),      k_F = sigma o/d,      k_z = -b size/d,      d = a sigma - b alpha.
"""

from __future__ import annotations

from typing import Any

import torch

from ..codec import Affine
from ..model.network import Given, ScoreModel
from ..nn.mlp import MLP
from .data import Packed, pack_floats
from .frame import Frame

__all__ = ["pack_network"]

NODES = 513  # points of each curve; the script interpolates with cubics


def pack_network(frame: Frame) -> dict[str, Any] | None:
    """Pack the weights and the curves of a model of points in the plane, or return ``None`` if it is not an MLP.

    A network with classes is packed once, with all of its classes.
    """
    model = frame.model.model if isinstance(frame.model, Given) else frame.model
    network = model.network if isinstance(model, ScoreModel) else None
    codec = frame.run.codec
    if type(network) is not MLP or not isinstance(model, ScoreModel) or set(network.slots) - {"label"}:
        return None
    if codec.space.parts or not isinstance(codec.continuous, Affine) or network.outputs != 1 or network.augments:
        return None
    weights = {name: value.detach().cpu().double().numpy() for name, value in network.state_dict().items()}
    if not all(abs(value).max() <= 65_504 for value in weights.values()):
        return None
    return {
        "classes": model.classes,
        "blocks": len(network.blocks),
        "frequencies": pack_floats(network.embedding.frequencies.cpu().numpy()),
        "weights": {name: pack_floats(value, half=True) for name, value in weights.items()},
        "curves": _curves(frame, model),
    }


def _curves(frame: Frame, model: ScoreModel) -> Packed:
    """Pack the curves ``(4, NODES)``: the noise label, k_in, k_z and k_F, at evenly spaced log-SNRs."""
    sde, made = model.sde, model.parametrization
    t = frame.times(torch.linspace(frame.low, frame.high, NODES, dtype=torch.float64))
    with torch.no_grad():
        alpha, sigma = sde.coefficients(t)
        size = torch.hypot(alpha, sigma)
        a, b = (torch.as_tensor(value).expand(t.shape) for value in made.target(sde, t))
        d = a * sigma - b * alpha
        curves = (
            made.label(sde, t),
            made.input_scale(sde, t) * size,
            -b * size / d,
            sigma * made.output_scale(sde, t) / d,
        )
    return pack_floats(torch.stack(curves).numpy())
