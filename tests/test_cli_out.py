"""Where results go if the folder that was asked for exists: to one with a number, which the command says."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell import Shell

SMALL = "--steps 1 --batch 8 --set network.width=8"
# Every verb that writes to a new folder, with the folder that it takes by default.
VERBS = {
    "train": (f"train --data moons {SMALL}", "runs/moons-vp", False),
    "reflow": ("reflow runs/moons --pairs 4 --steps 1", "runs/moons-reflow", False),
    "demo": ("demo single-image --steps 1 --size 8 --columns 2 --frames 2", "runs/single-image", False),
    "classifier": ("classifier --steps 1", "runs/digits-classifier", True),
    "sample": ("sample runs/moons --n 2 --solver heun --steps 2", "runs/moons/samples/heun-seed0", True),
    "likelihood": ("likelihood runs/moons --limit 2 --rtol 0.3 --no-check", "runs/moons/likelihood", True),
    "evaluate": ("evaluate runs/moons --n 8 --metrics sliced --solver heun --steps 2", "runs/moons/evaluation", True),
    "bench": ("bench runs/moons --n 4 --nfe 2 --solvers heun", "runs/moons/bench", True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_exists_is_not_replaced_silently(shell: Shell, moons: str, verb: str) -> None:
    line, default, numbered = VERBS[verb]
    for out in (default, *(["mine/here"] if numbered else [])):
        Path(out).mkdir(parents=True)
        given = "" if out == default else f" --out {out}"
        told = f"{out} already exists, so the results are written to {out}-2"
        assert f"{out}-2" in shell(line + given)
        assert shell.err.count(told) == 1 and Path(f"{out}-2").is_dir()
        shell(f"{line}{given} --quiet")
        assert "already exists" not in shell.err and Path(f"{out}-3").is_dir()
        shell(f"{line} --out new{len(given)}")
        assert "already exists" not in shell.err
