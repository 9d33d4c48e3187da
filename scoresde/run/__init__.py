"""Trained runs and everything that a run folder contains.

The modules are ``config`` (the configuration of a training run), ``spec`` (the specification of the model), ``files``
(the files in a run folder), ``origin`` (finding the data of a run again), ``run`` (the class :class:`scoresde.Run`,
whose methods are in ``bound``, ``conditioning``, ``steering``, ``keeping``, ``sampling`` and ``scoring``), ``seen``
(the measurements that samples must agree with), ``questions`` (conditions read from files), ``samples`` (samples on
disk), ``plausible`` (the units of samples) and ``foreign`` (pretrained weights of the original code).
"""

from __future__ import annotations

from .run import Run, Samples, load

__all__ = ["Run", "Samples", "load"]
