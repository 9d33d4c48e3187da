"""Runs: how one is trained (``config``), what its model is made of (``spec``), its folder (``files``), its use
(``run``), samples on the disk (``samples``), and weights from elsewhere (``foreign``).
"""

from __future__ import annotations

from .run import Run, Samples, load

__all__ = ["Run", "Samples", "load"]
