"""The ranges and the menus of a page's controls, as far as they depend on the model."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["controls"]

STEPS = 200  # of the sliders of the noise, which move evenly in r = s/(c + s)


def controls(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return what the template needs, by place: the attributes of sliders and the options of menus."""
    about, solvers = parts["about"], parts["solvers"]
    low, high = (1 / (1 + math.exp(log_snr / 2)) for log_snr in (about["high"], about["low"]))
    noise = math.ceil(STEPS * low), math.floor(STEPS * high)
    paths = parts["reverse"][0]
    places = (1 if paths["note"] else len(paths["log_snr"]) - 1) * about["between"]
    budgets = len(solvers["budgets"])
    return {
        "slider:compass-noise": _slider(*noise, 100),
        "slider:field-noise": _slider(*noise, 90),
        "slider:reverse-time": _slider(0, places, round(0.6 * places)),
        "slider:solvers-budget": _slider(0, budgets - 1, min(2, budgets - 1)),
        "menu:class": _menu([view["name"] for view in about["views"]]),
        "menu:forward-path": _menu([path["name"] for path in parts["paths"]]),
        "menu:forward-set": _menu([each["name"] for each in parts["forward"]] if about["kind"] == "plane" else []),
        "menu:solvers-name": _menu(solvers["names"], numbered=False),
    }


def _slider(low: int, high: int, initial: int) -> str:
    return f'min="{low}" max="{high}" value="{min(max(initial, low), high)}"'


def _menu(names: Sequence[str], numbered: bool = True) -> str:
    """Return options whose values are their places, or their names."""
    options = [(str(k) if numbered else name, name) for k, name in enumerate(names)]
    return "".join(f'<option value="{html.escape(value)}">{html.escape(name)}</option>' for value, name in options)
