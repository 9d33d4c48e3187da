"""Linear SDEs, that is, Gaussian paths.

What an SDE is (``base``), its steps between two times (``marginal``), paths in continuous time (``continuous``),
discrete chains (``chains``), paths made of others (``modified``), and time grids (``grids``).
"""

from __future__ import annotations

from .base import SDE, Prior
from .chains import DDPM, SMLD
from .continuous import EDMSDE, VDMSDE, VESDE, VPSDE, CosineSDE, FlowMatching, SubVPSDE
from .modified import Shifted, Stretch

__all__ = [
    "DDPM", "EDMSDE", "SDE", "SMLD", "VDMSDE", "VESDE", "VPSDE", "CosineSDE", "FlowMatching", "Prior", "Shifted",
    "Stretch", "SubVPSDE",
]  # fmt: skip
