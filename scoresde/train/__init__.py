"""Training: the state and its steps (``state``), and the loop that handles files and signals (``loop``)."""

from __future__ import annotations

from .loop import fit, prepared

__all__ = ["fit", "prepared"]
