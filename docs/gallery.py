"""The pictures of the gallery, made by the very commands that the page shows.

    python docs/gallery.py                # into docs/_gallery: about two minutes on one core
    python docs/gallery.py --list

`make docs` calls it (docs/conf.py), so that every command is run whenever the manual is built. The runs are small: what
the pictures show is right, what the networks know is little.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
import warnings
from pathlib import Path

FOLDER = Path(__file__).parent / "_gallery"

# What each picture of the page takes; all in one folder, in this order.
COMMANDS: dict[str, tuple[str, ...]] = {
    "runs": (
        "scoresde train --data 8gaussians --sde vp --steps 800 --batch 128",
        "scoresde train --data digits --sde vp --steps 200 --batch 32",
    ),
    "schedule": ("scoresde plot schedule --sde vp,cosine,flow --out schedule.png",),
    "schedules": ("scoresde plot schedule --sde vp,subvp,ve,cosine,edm,vdm,flow --out schedules.png",),
    "forward": ("scoresde plot forward --data digits --sde cosine --n 4 --out forward.png",),
    "forward-points": ("scoresde plot forward --data moons --sde vp --n 600 --steps 8 --out forward-points.png",),
    "reverse": ("scoresde plot reverse runs/digits-vp --n 4 --frames 17 --out reverse.png",),
    "reverse-points": ("scoresde plot reverse runs/8gaussians-vp --n 600 --no-gif --out reverse-points.png",),
    "score-field": ("scoresde plot score-field runs/8gaussians-vp --exact --out score-field.png",),
    "trajectories": ("scoresde plot trajectories runs/8gaussians-vp --n 500 --steps 150 --out trajectories.png",),
    "compass": ("scoresde plot compass runs/8gaussians-vp --n 500 --out compass.png",),
    "compass-digits": ("scoresde plot compass runs/digits-vp --n 64 --out compass-digits.png",),
    "loss-by-noise": ("scoresde plot loss-by-noise runs/8gaussians-vp --out loss-by-noise.png",),
    "pages": (
        "scoresde page --data 8gaussians --out pages/8gaussians.html",
        "scoresde page runs/digits-vp --out pages/digits.html",
    ),
    "single-image": ("scoresde demo single-image --size 24 --steps 120 --frames 9 --out runs/lighthouse",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    if parser.parse_args().list:
        print("\n".join(line for lines in COMMANDS.values() for line in lines))
        return
    began = time.monotonic()
    build(FOLDER)
    print(f"{FOLDER} in {time.monotonic() - began:.0f} s")


def build(folder: Path) -> None:
    """Run the commands in ``folder``, unless that has been done since the package and this file last changed."""
    import scoresde

    stamp = folder / "done"
    sources = [Path(__file__), *Path(scoresde.__file__).parent.rglob("*.py")]
    if stamp.exists() and stamp.stat().st_mtime > max(s.stat().st_mtime for s in sources):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for made in folder.rglob("*"):  # what is left of another time; a run is not trained twice into one folder
        if made.is_file():
            made.unlink()
    for made in sorted(folder.rglob("*"), reverse=True):
        made.rmdir()
    shown = warnings.showwarning
    try:
        with contextlib.chdir(folder):
            for lines in COMMANDS.values():
                for line in lines:
                    run(line)
    finally:
        warnings.showwarning = shown
    stamp.touch()


def run(line: str) -> None:
    """Run a command in this process, without starting torch anew; raise if it fails."""
    from scoresde.cli import main

    words = line.split()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            main([*words[1:], "--quiet"])
        except SystemExit as stop:
            if stop.code not in (0, None):
                raise RuntimeError(f"{line}: exit code {stop.code}") from None


if __name__ == "__main__":
    main()
