"""Load data sets (``dataset``) from files (``readers``) or toy distributions (``toys``), check them for problems
(``look``), and form batches from them for training (``batch``).
"""

from __future__ import annotations

from .dataset import NAMES, DataInfo, Dataset, load_data, split
from .look import Look, look
from .raw import Reading
from .toys import eight_gaussians, sample_toy

__all__ = [
    "NAMES", "DataInfo", "Dataset", "Look", "Reading", "eight_gaussians", "load_data", "look", "sample_toy", "split",
]  # fmt: skip
