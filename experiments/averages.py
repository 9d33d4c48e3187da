"""Averages computed after training, compared with averages kept during training.

    python experiments/averages.py                 (about two minutes on one core)
    python experiments/averages.py --steps 2000 --simulated 2000     (a quick look)

Two power-function averages of widths 0.05 and 0.10 are stored 16, 32 or 64 times, at equal intervals up to the end.
From these, averages of other widths are computed (:mod:`scoresde.run.profiles`), and compared with averages of these
widths that were updated after each step. The error is the norm of the difference relative to the norm of the weights.
It is measured on two paths of the weights:

* simulated: 2,000 weights that drift to a goal and jitter around it (an Ornstein-Uhlenbeck process of correlation time
  50 steps), in 19,200 steps, in float64;
* trained: the weights of an MLP that is trained on moons, with the cosine decay of the learning rate and in float32.

The last column of the first table is the predicted error of the profile, which does not depend on the weights. Three
further measurements follow: a last snapshot that is not at the end, a single stored width, and the time of an update.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from scoresde import TrainConfig, fit
from scoresde.core.files import read_tensors
from scoresde.run.files import newest_checkpoint
from scoresde.run.profiles import Power, coefficients, profiles_of
from scoresde.train import prepared
from scoresde.train.averages import EMA
from scoresde.train.snapshots import planned, snapshots

Array = npt.NDArray[np.float64]

WIDTHS = (0.05, 0.08, 0.10, 0.15, 0.20)
PAIR = (0.05, 0.10)
COUNTS = (16, 32, 64)
SHORT = 600  # the part of the run, one in this many, by which the last snapshot is too early in the second table


def walk(steps: int, size: int = 2_000) -> Iterator[Array]:
    """Yield simulated weights ``(size,)`` after each step."""
    rng = np.random.default_rng(0)
    goal, jitter = rng.normal(size=size), np.zeros(size)
    for n in range(1, steps + 1):
        jitter = 0.98 * jitter + 0.02 * rng.normal(size=size)
        yield goal * (1 - math.exp(-4 * n / steps)) + jitter


def simulated(steps: int) -> tuple[Array, dict[int, Array]]:
    """Return averages of all widths at the end ``(D, size)``, and those of the pair at all steps of a snapshot."""
    profiles = [Power(width) for width in WIDTHS]
    stored = [WIDTHS.index(width) for width in PAIR]
    taken = {step for count in COUNTS for step in planned(steps, count)} | {steps - steps // SHORT}
    found, snaps = np.zeros((len(WIDTHS), 1)), {}
    for n, weights in enumerate(walk(steps), 1):
        decay = np.array([profile(n) for profile in profiles])[:, None]
        found = decay * found + (1 - decay) * weights
        if n in taken:
            snaps[n] = found[stored]
    return found, snaps


def trained(steps: int, folder: Path) -> tuple[Array, dict[int, Array]]:
    """Train the same network twice, with snapshots and with averages of all widths. The result is as above."""
    config = TrainConfig(
        data="moons", steps=steps, batch=256, network_options={"width": 64, "blocks": 2},
        ema=",".join(str(Power(width)) for width in PAIR), snapshots=max(COUNTS),
    )  # fmt: skip
    fit(config, out=folder / "stored", quiet=True)
    fit(replace(config, ema=tuple(map(Power, WIDTHS)), snapshots=0), out=folder / "direct", quiet=True)  # type: ignore[arg-type]
    checkpoint = newest_checkpoint(folder / "direct")
    groups = ["ema", *(f"ema-{number}" for number in range(1, len(WIDTHS)))]
    direct = np.stack([_flat(read_tensors(checkpoint / f"{group}.safetensors")) for group in groups])
    snaps = {}
    for step, path in snapshots(folder / "stored").items():
        tensors = read_tensors(path)
        parts = [{n: v for n, v in tensors.items() if n.startswith(f"{Power(width)}/")} for width in PAIR]
        snaps[step] = np.stack([_flat(part) for part in parts])
    return direct, snaps


def _flat(tensors: dict[str, torch.Tensor]) -> Array:
    found: Array = torch.cat([tensors[name].flatten().double() for name in sorted(tensors)]).numpy()
    return found


def errors(direct: Array, snaps: dict[int, Array], steps: Sequence[int], pair: Sequence[float] = PAIR) -> list[float]:
    """Return the relative error of the average of each width, computed from the snapshots of the given steps."""
    found = []
    used = [PAIR.index(width) for width in pair]
    for width, exact in zip(WIDTHS, direct, strict=True):
        shares, _ = coefficients(steps, [Power(w) for w in pair], Power(width))
        combined = sum(share @ snaps[step][used] for share, step in zip(shares, steps, strict=True))
        found.append(float(np.linalg.norm(combined - exact) / np.linalg.norm(exact)))
    return found


def row(name: str, values: Sequence[float]) -> None:
    """Print a row of a table."""
    print(f"| {name} | {' | '.join(f'{value:.1e}' for value in values)} |", flush=True)


def seconds(act: Callable[[], object], repeats: int = 100) -> float:
    """Return the median duration of a call."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", type=int, default=19_200, help="steps of the simulated path")
    parser.add_argument("--steps", type=int, default=4_000, help="training steps")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as name:
        paths = {"simulated": simulated(asked.simulated), "trained": trained(asked.steps, Path(name))}
    lengths = {"simulated": asked.simulated, "trained": asked.steps}
    print(f"| snapshots | path | {' | '.join(f'{width:.2f}' for width in WIDTHS)} |")
    print(f"|---|---|{'---|' * len(WIDTHS)}")
    for count in COUNTS:
        for path, (direct, snaps) in paths.items():
            row(f"{count} | {path}", errors(direct, snaps, planned(lengths[path], count)))
        pair = [Power(width) for width in PAIR]
        predicted = [coefficients(range(1, count + 1), pair, Power(width))[1] for width in WIDTHS]
        row(f"{count} | profile", predicted)

    direct, snaps = paths["simulated"]
    print(f"\n| simulated, 64 snapshots | {' | '.join(f'{width:.2f}' for width in WIDTHS)} |")
    print(f"|---|{'---|' * len(WIDTHS)}")
    short = asked.simulated // SHORT
    early = [*planned(asked.simulated, 64)[:-1], asked.simulated - short]
    row(f"the last is {short} steps before the end", errors(direct, snaps, early))
    for width in PAIR:
        row(f"only the width {width:.2f}", errors(direct, snaps, planned(asked.simulated, 64), [width]))

    print("\n| averages of the network of the digits | time of an update |\n|---|---|")
    config = TrainConfig()
    model = prepared(config, config.load_data())[1]
    for ema in ("0.9999", "0.9999,power:0.05,power:0.1"):
        average = EMA(model.learned, *profiles_of(ema))
        print(f"| `{ema}` | {1e3 * seconds(lambda a=average: a.update(torch.zeros(()))):.2f} ms |")  # type: ignore[misc]


if __name__ == "__main__":
    main()
