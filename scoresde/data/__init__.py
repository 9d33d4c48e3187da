"""Data sets: what they are (``dataset``), where they come from (``readers`` and ``toys``), and what training draws from
them (``batch``).
"""

from __future__ import annotations

from .dataset import NAMES, DataInfo, Dataset, load_data, split
from .raw import Reading
from .toys import eight_gaussians, sample_toy

__all__ = ["NAMES", "DataInfo", "Dataset", "Reading", "eight_gaussians", "load_data", "sample_toy", "split"]
