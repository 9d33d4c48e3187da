"""The training of models.

The modules define the training step (``state``), the averaged weights (``averages``), the choice of weights by the
validation loss (``validation``), the training loop with its files and signals (``loop``), and rectified flow
(``reflow``).
"""

from __future__ import annotations

from .loop import fit, prepared

__all__ = ["fit", "prepared"]
