"""Linear SDEs and their Gaussian probability paths.

The modules define the SDE interface (``base``), forward and reverse steps between two times (``marginal``), paths in
continuous time (``continuous``), discrete chains (``chains``), paths towards a known signal (``towards``), paths that
differ between coordinates (``bands``, ``clock``), paths derived from other paths (``modified``), a check that the prior
fits the end of a path (``reach``), time grids (``grids``), and a check of a class against the published drift and
diffusion of its SDE (``verify``).
"""

from __future__ import annotations

from .bands import Blur, Parts
from .base import SDE, Prior
from .chains import DDPM, SMLD
from .continuous import EDMSDE, VDMSDE, VESDE, VPSDE, CosineSDE, FlowMatching, SubVPSDE
from .modified import Shifted, Stretch
from .towards import BBED, OUVE, Bridge, MeanReverting
from .verify import verify

__all__ = [
    "BBED", "DDPM", "EDMSDE", "OUVE", "SDE", "SMLD", "VDMSDE", "VESDE", "VPSDE", "Blur", "Bridge", "CosineSDE",
    "FlowMatching", "MeanReverting", "Parts", "Prior", "Shifted", "Stretch", "SubVPSDE", "verify",
]  # fmt: skip
