"""How many threads suit one call of a network, on an idle machine and beside a busy process.

    python experiments/threads.py                 # calls of networks, with one thread and with all
    python experiments/threads.py --commands      # scoresde train, sample and likelihood, as a user types them

A call with several threads is a chain of short parallel pieces, and all threads meet at the end of each piece. On an
idle machine this costs little. If another process uses one of the cores, the threads wait for the one that has lost
its core, and they use up CPU time while they wait. The default number of threads (scoresde/core/threads.py) therefore
depends on the work of a call: a call that gains little from a second thread does without it.

The first table gives, for each call, its multiplications and additions, its time with one thread, and the ratio of the
times with all threads to that time: alone, and beside one busy process. The second one gives the times of the demo's
three commands alone and beside a busy process, and their ratio, which should be at most 2.5.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from scoresde.core.threads import work
from scoresde.nn import MLP, UNet

TINY = {"channels_in": 1, "dims": 2, "channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,)}


def spin() -> None:
    while True:
        pass


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep ``count`` cores busy with other processes."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()


def seconds(call: Callable[[], object], least: float) -> float:
    """Return the mean duration of a call, repeated for at least ``least`` seconds."""
    call()
    taken, began = [], time.monotonic()
    while time.monotonic() - began < least or len(taken) < 3:
        start = time.monotonic()
        call()
        taken.append(time.monotonic() - start)
    return sum(taken) / len(taken)


def calls() -> Iterator[tuple[str, Callable[[], object], float]]:
    """Yield the name of each call, the call, and its work (:func:`scoresde.core.threads.work`)."""
    unet, mlp = UNet(**TINY), MLP(dims=2, width=128, blocks=3)  # type: ignore[arg-type]
    for name, network, shape, rows in (
        ("mlp", mlp, (2,), (256, 512, 4096)), ("unet 8 x 8", unet, (1, 8, 8), (1, 8, 24, 64, 128, 256)),
    ):  # fmt: skip
        for count in rows:
            x, c = torch.randn(count, *shape), torch.zeros(count)

            def forward(network: torch.nn.Module = network, x: torch.Tensor = x, c: torch.Tensor = c) -> None:
                with torch.no_grad():
                    network(x, c)

            def gradient(network: torch.nn.Module = network, x: torch.Tensor = x, c: torch.Tensor = c) -> None:
                network(x, c).square().sum().backward()

            amount = work(network, lambda n=network, x=x, c=c: n(x, c))
            yield f"{name}, {count} rows, forward", forward, amount
            yield f"{name}, {count} rows, gradient", gradient, 3 * amount


def table(least: float) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores\n\n| call | work | 1 thread | {cores} threads, alone | 1 thread, beside | {cores}, beside |")
    print("|---|---|---|---|---|---|")
    for name, call, amount in calls():
        found = []
        for others in (0, 1):
            with busy(others):
                for threads in (1, cores):
                    torch.set_num_threads(threads)
                    found.append(seconds(call, least))
        one, *rest = found
        ratios = " | ".join(f"{value / one:.2f}" for value in rest)
        print(f"| {name} | {amount / 1e6:,.0f} M | {1e3 * one:.2f} ms | {ratios} |", flush=True)


def commands(steps: int, limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        typed = {
            "train": ["train", "--steps", str(steps), "--out"],
            "sample": ["sample", run, "--solver", "ode", "--rtol", "1e-5", "--n", "64", "--out"],
            "likelihood": ["likelihood", run, "--limit", str(limit), "--out"],
        }
        print("| command | alone | beside one busy process | ratio |\n|---|---|---|---|")
        for name, words in typed.items():
            taken = []
            for others in (0, 1):
                out = run if name == "train" and not others else str(Path(folder) / f"{name}-{others}")
                with busy(others):
                    began = time.monotonic()
                    subprocess.run([sys.executable, "-m", "scoresde", *words, out], check=True, capture_output=True)
                    taken.append(time.monotonic() - began)
            print(f"| {name} | {taken[0]:.1f} s | {taken[1]:.1f} s | {taken[1] / taken[0]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="time the three commands instead of single calls")
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--limit", type=int, default=24, help="samples whose likelihood is computed")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time for each call")
    args = parser.parse_args()
    if args.commands:
        commands(args.steps, args.limit)
    else:
        table(args.seconds)


if __name__ == "__main__":
    main()
