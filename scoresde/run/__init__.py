"""Trained runs and everything that a run folder holds.

The modules are ``config`` (the configuration of a training run), ``spec`` (the parts of its model), ``files`` (the
files in a run folder), ``origin`` (finding the data of a run again), ``run`` (sampling and likelihoods), ``samples``
(samples on disk), ``plausible`` (the units of samples) and ``foreign`` (pretrained weights from other code).
"""

from __future__ import annotations

from .run import Run, Samples, load

__all__ = ["Run", "Samples", "load"]
