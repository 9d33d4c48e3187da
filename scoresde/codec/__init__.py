"""Codecs: maps from data units to model units and back, with the log-determinant that a likelihood needs.

``base`` defines the interface of a codec and composes codecs, ``affine`` applies a shift and a scale, and
``dequantise`` turns levels into continuous values.
"""

from __future__ import annotations

from .affine import Affine, as_affine
from .base import Codec, Composed, digest, from_dict, to_dict
from .dequantise import Levels

__all__ = ["Affine", "Codec", "Composed", "Levels", "as_affine", "digest", "from_dict", "to_dict"]
