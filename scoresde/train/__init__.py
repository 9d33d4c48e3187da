"""The training of models.

The modules define the training step (``state``), the averaged weights (``averages``), how often training validates and
draws (``schedule``), the choice of weights by the validation loss (``validation``), the pictures drawn during training
(``pictures``), what training starts from (``prepare``), how a run is resumed (``resume``), how long training takes
(``timing``), the training loop with its files and signals (``loop``), and rectified flow (``reflow``).
"""

from __future__ import annotations

from .loop import fit
from .prepare import prepared
from .resume import finished
from .timing import timed

__all__ = ["finished", "fit", "prepared", "timed"]
