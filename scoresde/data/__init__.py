"""Data sets: their types (``dataset``), their sources (``readers`` and ``toys``), a check for problems (``look``), and
the batches that training draws from them (``batch``).
"""

from __future__ import annotations

from .dataset import NAMES, DataInfo, Dataset, load_data, split
from .look import Look, look
from .raw import Reading
from .toys import eight_gaussians, sample_toy

__all__ = [
    "NAMES", "DataInfo", "Dataset", "Look", "Reading", "eight_gaussians", "load_data", "look", "sample_toy", "split",
]  # fmt: skip
