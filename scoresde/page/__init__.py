"""Pages that move: one HTML file with the figures that explain diffusion, on one's own model (:func:`make_page`) or on
an exact one (:func:`exact_page`)."""

from __future__ import annotations

from .make import exact_page, make_page
from .write import Page

__all__ = ["Page", "exact_page", "make_page"]
