"""Run folders as other versions and other hands left them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def edit(file: str | Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Write what ``change`` makes of the object in a JSON file."""
    path = Path(file)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def older(folder: str | Path) -> None:
    """Make a run as format 1 had it: no model.json, and an affine map among the facts of the data."""
    folder = Path(folder)
    parts = json.loads((folder / "model.json").read_text())["codec"]
    (folder / "model.json").unlink()
    edit(folder / "data.json", lambda stored: {**stored, "transform": parts[-1]["options"]})
    for path in folder.rglob("*.json"):
        if path.name in ("config.json", "state.json"):
            edit(path, lambda stored: {**stored, "format": 1})
