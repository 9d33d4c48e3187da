"""The Fréchet distance of a few samples to held-out data, at intervals during training.

The samples are always drawn from the same noise and under the same conditions, by the solver of the pictures, so the
distances of a run differ only because of its weights. They are compared with held-out rows (:mod:`scoresde.metrics`),
in the features that are passed to :func:`scoresde.fit`. Few samples make the distance too large, by about as much each
time: the curve shows whether the samples still improve, and ``scoresde evaluate`` gives a number for a table. The
distance chooses no weights, and the draws of training do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..codec import Codec
from ..data import Dataset
from ..data.rows import thinned
from ..metrics import Measurement, frechet
from ..run.run import Run
from .pictures import drawn, solver_of

__all__ = ["MOST", "Features", "Frechet", "pixels"]

MOST = 1000  # number of samples, and maximum number of held-out rows

# A function of the data and the run folder, if there is one, that returns a map from events (B, *event) to (B, d).
Features = Callable[[Dataset, Path | None], Callable[[Tensor], Tensor]]


def pixels(data: Dataset, folder: Path | None = None) -> Callable[[Tensor], Tensor]:
    """Return a map from events ``(B, *event)`` in data units to their values in model units, ``(B, D)``."""
    codec: Codec = data.codec
    return lambda x: codec.units.to_model(x.double()).flatten(1).float()


class Frechet:
    """The comparison of samples with held-out rows.

    Args:
        data: The data.
        features: The map from events to features.
    """

    def __init__(self, data: Dataset, features: Callable[[Tensor], Tensor]) -> None:
        self.data, self.features = data, features
        rows = thinned(data.test)
        at = torch.linspace(0, len(rows) - 1, min(MOST, len(rows)), dtype=torch.float64).round().long()
        self.reference = features(rows[at])

    def __call__(self, run: Run) -> Measurement:
        """Return the squared distance of samples of ``run`` to the held-out rows, with its standard error.

        Raises:
            NumericalError: If some of the samples are not finite.
            UsageError: If there are too few rows, or a feature is not finite.
        """
        x = drawn(run, self.data, MOST, solver_of(run.base.domain.nodes))
        return frechet(self.features(x), self.reference)
