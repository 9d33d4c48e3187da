"""One thread for everybody, slow tests if asked for, GPU tests where there is one, a few trained runs to share."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import pytest
import torch
from shell import OWN, Shell

from scoresde import RungeKutta, TrainConfig, fit
from scoresde.train import loop
from scoresde.train import pictures as train_pictures


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skipped = {}
    if "slow" not in config.option.markexpr:
        skipped["slow"] = "slow; ask for it with -m slow"
    if not torch.cuda.is_available():
        skipped["gpu"] = "needs a CUDA device"
    for item in items:
        for mark, reason in skipped.items():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test imported from its own folder: the next test may write others of these names."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).resolve().is_relative_to(tmp_path_factory.getbasetemp().resolve()):
            del sys.modules[name]


SHEET, FIGURE = loop.sample_sheet, loop.loss_figure


@pytest.fixture(scope="session", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Drawing takes longer than all else of a tiny run, and a picture that fails ends none: see ``pictures``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "sample_sheet", lambda *_: None)
        patch.setattr(loop, "loss_figure", lambda *_: None)
        yield


def draw(patch: pytest.MonkeyPatch) -> None:
    """Let training draw its pictures, of samples in two steps of the solver in the place of sixteen."""
    patch.setattr(loop, "sample_sheet", SHEET)
    patch.setattr(loop, "loss_figure", FIGURE)
    patch.setattr(train_pictures, "RungeKutta", lambda steps: RungeKutta(steps=min(steps, 2)))


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws its pictures, as it does in the runs of ``trained``."""
    draw(monkeypatch)


TINY = {
    "digits": TrainConfig(steps=3, batch=16, network_options={"channels": 4}),
    "classes": TrainConfig(steps=3, batch=16, network_options={"channels": 4}, cond="class"),
    "moons": TrainConfig(data="moons", steps=3, batch=16, network_options={"width": 8, "blocks": 1}),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run for each entry of TINY; not to be written to."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        draw(patch)
        for name, config in TINY.items():
            fit(config, out=root / name, quiet=True)
    return root


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Stand in an empty folder; ``copied("digits")`` puts a run there and returns its path ``runs/digits``."""
    monkeypatch.chdir(tmp_path)

    def copy(name: str, to: str | None = None) -> str:
        shutil.copytree(trained / name, Path("runs") / (to or name))
        return f"runs/{to or name}"

    return copy


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


@pytest.fixture
def digits(shell: Shell, copied: Callable[[str], str]) -> str:
    return copied("digits")


@pytest.fixture
def classes(shell: Shell, copied: Callable[[str], str]) -> str:
    return copied("classes")


@pytest.fixture
def moons(shell: Shell, copied: Callable[[str], str]) -> str:
    return copied("moons")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A module with an SDE of the user's; importing it leaves the file ``imported``."""
    (tmp_path / "mysde.py").write_text(OWN)
    return tmp_path / "imported"


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder where forks may come that are not root (`forks`), removed at the end."""
    with tempfile.TemporaryDirectory(prefix="scoresde-fuzz-") as name:
        path = Path(name)
        forks.preload(path)
        yield path
