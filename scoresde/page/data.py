"""Arrays as text inside a page: integers, half precision or bytes, deflated and in base64.

Numbers whose size is known in advance are stored as 16-bit multiples of a step. Neighbours differ by little, so their
differences (modulo 2^16) are stored, with all low bytes before all high bytes, which makes the deflated text a third to
a half as long. The integer -32768 marks a hole, that is, a number that is not finite. Deflate (RFC 1951) writes the
same bytes for the same input and the same version of zlib. The script of the page undoes each of these operations.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.errors import UsageError

__all__ = ["Numbers", "Packed", "pack_bytes", "pack_floats", "pack_steps", "unpack"]

Numbers: TypeAlias = npt.NDArray[Any]
Packed: TypeAlias = dict[str, Any]  # what JSON stores: kind, shape, step, and the text

HOLE = -32768
LARGEST = 32_000


def pack_steps(values: npt.ArrayLike, step: float = 0.0) -> Packed:
    """Pack numbers of any shape as multiples of ``step``. Numbers that are not finite become holes.

    If ``step`` is 0, or if the largest number exceeds 32,000 steps, the step is a 32,000th of the largest number.
    """
    x = np.asarray(values, dtype=np.float64)
    known = np.isfinite(x)
    largest = float(np.abs(x[known]).max()) if known.any() else 0.0
    step = max(step, largest / LARGEST) or 1.0
    whole = np.where(known, np.rint(np.where(known, x, 0.0) / step), HOLE).astype(np.int16)
    change = np.diff(whole, axis=-1, prepend=np.int16(0)) if whole.ndim else whole
    return _packed("steps", x.shape, change.astype("<i2"), step)


def pack_floats(values: npt.ArrayLike, half: bool = False) -> Packed:
    """Pack numbers of any shape in single or half precision.

    Raises:
        UsageError: If a number is too large for half precision.
    """
    x = np.asarray(values, dtype=np.float64)
    if half and x.size and float(np.abs(x).max()) > 65_504:
        raise UsageError(f"the number {float(np.abs(x).max()):.3g} is too large for half precision (at most 65,504)")
    return _packed("half" if half else "single", x.shape, x.astype("<f2" if half else "<f4"))


def pack_bytes(values: npt.ArrayLike) -> Packed:
    """Pack numbers from 0 to 1, of any shape, as multiples of 1/255. Other numbers are clipped, and NaN becomes 0."""
    x = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    return _packed("bytes", x.shape, np.rint(255 * x.clip(0, 1)).astype(np.uint8), 1 / 255)


def unpack(packed: Packed) -> Numbers:
    """Return the numbers of a packed array in float64, exactly as the script of the page reads them."""
    kind, shape = packed["kind"], tuple(packed["shape"])
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed["text"]), -zlib.MAX_WBITS), dtype=np.uint8)
    if kind == "bytes":
        return raw.reshape(shape) * float(packed["step"])
    width = 4 if kind == "single" else 2
    ordered = np.ascontiguousarray(raw.reshape(width, -1).T)
    if kind != "steps":
        return ordered.view("<f4" if kind == "single" else "<f2").reshape(shape).astype(np.float64)
    change = ordered.view("<i2").reshape(shape)
    whole = np.cumsum(change, axis=-1, dtype=np.int16) if shape else change
    return np.where(whole == HOLE, np.nan, whole * float(packed["step"]))


def _packed(kind: str, shape: tuple[int, ...], values: Numbers, step: float = 1.0) -> Packed:
    planes = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, values.dtype.itemsize).T
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    text = base64.b64encode(deflate.compress(np.ascontiguousarray(planes).tobytes()) + deflate.flush()).decode()
    return {"kind": kind, "shape": list(shape), "step": step, "text": text}
