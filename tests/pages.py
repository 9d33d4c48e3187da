"""Pages that several test files share, Node and a browser to run them, and what is skipped where these are missing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from scoresde import EDM, VPSDE, GaussianMixture, Run, ScoreModel, load_data
from scoresde.core.noise import Noise
from scoresde.data import Dataset
from scoresde.model.estimate import Estimate, Wrapped
from scoresde.nn import MLP
from scoresde.page import Page, exact_page, make_page, plane, views
from scoresde.study.compass import known_mixture

REQUIRED = "SCORESDE_BROWSER"  # if this variable is "required", a missing tool is a failure and not a reason to skip
ROOT = Path(__file__).parent.parent
AXE = ROOT / ".venv" / "browser" / "node_modules" / "axe-core" / "axe.min.js"


def missing(what: str) -> NoReturn:
    told = f"{what} is not installed; run `make browser`"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(told)
    pytest.skip(told)


# -------------------------------------------------------------------------------------------------------------- runs


@cache
def eight() -> tuple[GaussianMixture, Dataset]:
    """The exact mixture of eight Gaussians, and its data."""
    data = load_data("8gaussians", 0)
    mixture = known_mixture(data.info, data.codec, VPSDE())
    assert mixture is not None
    return mixture, data


def network(classes: int = 0, half: bool = False, width: int = 128, seed: int = 0) -> ScoreModel:
    """A model with random weights, which half precision represents exactly if ``half`` is set."""
    generator = torch.Generator().manual_seed(seed)
    mlp = MLP(dims=2, width=width, blocks=3, classes=classes)
    for name, parameter in mlp.named_parameters():
        size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = size * torch.randn(parameter.shape, generator=generator)
        if "norm.weight" in name or name == "leave.0.weight":
            parameter.data = 1 + parameter.data / 4
        if half:
            parameter.data = parameter.data.half().float()
    return ScoreModel(mlp, VPSDE(), EDM(), classes=classes).double().eval().requires_grad_(False)


@dataclass(frozen=True)
class Holed(Wrapped):
    """A model that returns NaN in a corner of the plane, if the noise is strong.

    Weak noise is left out, because an adaptive solver takes thousands of steps along the border of a hole.
    """

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        found = self.model(x, t)
        bad = (x > 0.4).all(1, keepdim=True) & (torch.as_tensor(t) > 0.9).reshape(-1, 1)
        return replace(found, x0=torch.where(bad, torch.nan, found.x0), eps=torch.where(bad, torch.nan, found.eps))


def run_of(model: Any, name: str | None = None) -> Run:
    """A run of a model of points in the plane, with the units of eight Gaussians."""
    _, data = eight()
    return Run(model, data.codec, data.info if name is None else replace(data.info, name=name))


# ------------------------------------------------------------------------------------------------------------- pages


@contextmanager
def small() -> Iterator[None]:
    """Pages with few numbers, which are made quickly."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SIZES", ((99, 17, 9),)), ("PATHS", 48), ("DRAWN", 16), ("SHOWN", 16)):
            patch.setattr(plane, name, value)
        patch.setattr(plane, "GRID", {True: 9, False: 9})
        patch.setattr(plane, "COMPARED", {True: 16, False: 4})
        patch.setattr(views, "BUDGETS", (1, 4))
        yield


def little(run: Run, data: Dataset | None = None, **options: Any) -> Page:
    with small():
        return make_page(run, data, **options)


@cache
def exact() -> Page:
    return exact_page()


@cache
def learned() -> Page:
    """The page of a network with random weights."""
    return little(run_of(network().float()), eight()[1])


def parts(page: Page) -> dict[str, Any]:
    """The numbers of a page, as its script reads them."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.text, re.S)
    assert found is not None
    stored: dict[str, Any] = json.loads(found[1])
    return stored


def with_change(page: Page, right: str, wrong: str) -> str:
    """A page whose script has a change, with its hash."""
    old = re.search(r"<script>(.*?)</script>", page.text, re.S)
    assert old is not None and old[1].count(right) == 1
    script = old[1].replace(right, wrong)

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return page.text.replace(old[1], script).replace(digest(old[1]), digest(script))


def states(count: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """States z ``(count, 2)`` in the frame of a page, and their log-SNRs ``(count,)``."""
    z = Noise.of(count, seed).normal((2,), 0, "prior", torch.float64)
    return z, torch.linspace(-9.5, 8.5, count, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------------- node


def mathematics() -> str:
    """The files of the script that need no page."""
    return "".join((ROOT / "scoresde" / "page" / f"{name}.js").read_text("utf-8") for name in ("numbers", "model"))


def node(code: str, given: Any, script: str | None = None) -> Any:
    """Run JavaScript in Node, after the mathematics or another script and with ``given``, and return its value."""
    program = shutil.which("node")
    if program is None or int(subprocess.check_output([program, "--version"]).decode()[1:].split(".")[0]) < 20:
        missing("Node 20 or later")
    text = mathematics() if script is None else script
    whole = (
        f"{text}\n(async () => {{\n"
        "const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
        f"const found = await (async () => {{ {code} }})();\nprocess.stdout.write(JSON.stringify(found));\n}})();"
    )
    done = subprocess.run([program, "-e", whole], input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ----------------------------------------------------------------------------------------------------------- browser


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium of the system, driven by Playwright."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        missing("Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright")
    with sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=program)
        try:
            yield found
        finally:
            found.close()


def axe() -> str:
    """The source of axe-core."""
    path = Path(os.environ.get("SCORESDE_AXE", AXE))
    if not path.is_file():
        missing("axe-core")
    return path.read_text(encoding="utf-8")
