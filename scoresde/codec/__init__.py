"""Codecs, which convert between data units and model units and compute the log-determinant for the likelihood.

``base`` defines the codec interface and composes codecs, ``affine`` applies a shift and a scale, and ``dequantise``
converts discrete levels to continuous values.
"""

from __future__ import annotations

from .affine import Affine, as_affine
from .base import Codec, Composed, digest, from_dict, to_dict
from .dequantise import Levels

__all__ = ["Affine", "Codec", "Composed", "Levels", "as_affine", "digest", "from_dict", "to_dict"]
