"""Operators, which describe how a sample is measured (see :mod:`scoresde.operators.base`)."""

from .base import Linear, Operator, conjugate_gradients
from .blur import Blur
from .choice import OneOf, choices, parse
from .crop import Crop
from .grey import Grey
from .jpeg import JPEG
from .masks import Cells, Half, Hole, Mask, Masking
from .noise import AddedNoise
from .pool import Pool

__all__ = [
    "JPEG", "AddedNoise", "Blur", "Cells", "Crop", "Grey", "Half", "Hole", "Linear", "Mask", "Masking", "OneOf",
    "Operator", "Pool", "choices", "conjugate_gradients", "parse",
]  # fmt: skip
