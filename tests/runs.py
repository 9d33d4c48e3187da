"""Run folders: cut off, compared, and as other versions and other hands left them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde.core.files import read_tensors
from scoresde.run.files import newest_checkpoint
from scoresde.train import loop
from scoresde.train.state import Record


def unsigned(file: str | Path) -> dict[str, Any]:
    """The object in a JSON file, as it was before there were checksums."""
    stored: dict[str, Any] = json.loads(Path(file).read_text())
    stored.pop("checksum", None)
    return stored


def edit(file: str | Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Write what ``change`` makes of the object in a JSON file, without a checksum."""
    Path(file).write_text(json.dumps(change(unsigned(file))))


def older(folder: str | Path) -> None:
    """Make a run as format 1 had it: no model.json, and an affine map among the facts of the data."""
    folder = Path(folder)
    parts = json.loads((folder / "model.json").read_text())["codec"]
    (folder / "model.json").unlink()
    edit(folder / "data.json", lambda stored: {**stored, "transform": parts[-1]["options"]})
    for path in folder.rglob("*.json"):
        if path.name in ("config.json", "state.json"):
            edit(path, lambda stored: {**stored, "format": 1})


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Have the operating system send a signal to this process in the middle of a step."""
    real = loop.steps

    def steps(*args: Any, **options: Any) -> Iterator[Record]:
        for record in real(*args, **options):
            if record.step == step:
                os.kill(os.getpid(), number)
            yield record

    monkeypatch.setattr(loop, "steps", steps)


def killed(act: Callable[[], object], at: int) -> bool:
    """Whether a process that does this was killed when it renamed, or removed, for the ``at``-th time."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return call

        for module, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree")):
            setattr(module, name, counted(getattr(module, name)))
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint."""
    checkpoint = newest_checkpoint(folder)
    files = sorted(checkpoint.glob("*.safetensors"))
    assert [f.stem for f in files if not f.stem.startswith("ema-")] == ["ema", "model", "optim"]
    return {f"{f.stem}/{k}": v for f in files for k, v in read_tensors(f).items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        assert torch.equal(a[name], b[name]), name
