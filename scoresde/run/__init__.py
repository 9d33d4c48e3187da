"""Runs: how a run is trained (``config``), the parts of its model (``spec``), its folder (``files``), sampling and
likelihood (``run``), samples on disk (``samples``), and pretrained weights from other code (``foreign``).
"""

from __future__ import annotations

from .run import Run, Samples, load

__all__ = ["Run", "Samples", "load"]
