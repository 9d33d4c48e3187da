"""The training of models.

The modules define the training step (``state``), the averaged weights (``averages``), the choice of weights by the
validation loss (``validation``), the pictures drawn during training (``pictures``), what training starts from
(``prepare``), how a run is resumed (``resume``), the training loop with its files and signals (``loop``), and rectified
flow (``reflow``).
"""

from __future__ import annotations

from .loop import fit
from .prepare import prepared

__all__ = ["fit", "prepared"]
