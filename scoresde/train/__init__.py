"""Training: the steps (``state``), the averaged weights (``averages``), the validation loss (``validation``), the loop,
which also handles files and signals (``loop``), and rectified flow (``reflow``).
"""

from __future__ import annotations

from .loop import fit, prepared

__all__ = ["fit", "prepared"]
