"""Codecs, which convert between data units and model units and compute the log-determinant for the likelihood.

``base`` defines the codec interface and composes codecs, ``affine`` applies a shift and a scale, and ``dequantise``
converts discrete levels to continuous values. The others are spaces, in whose coordinates a path is stated (``space``).
"""

from __future__ import annotations

from .affine import Affine, as_affine
from .base import Codec, Composed, Unbuilt, digest, from_dict, to_dict, undefined
from .basis import Basis
from .centred import ZeroMean
from .choice import named_again, names_of, parse_spaces, space_text
from .dequantise import Levels
from .logarithm import Log
from .masked import Masked
from .relative import Relative
from .space import Space
from .symmetric import Symmetric
from .whitened import Whitened

__all__ = [
    "Affine", "Basis", "Codec", "Composed", "Levels", "Log", "Masked", "Relative", "Space", "Symmetric", "Unbuilt",
    "Whitened", "ZeroMean", "as_affine", "digest", "from_dict", "named_again", "names_of", "parse_spaces", "space_text",
    "to_dict", "undefined",
]  # fmt: skip
