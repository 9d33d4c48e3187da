"""Draw the figure of docs/measuring.md: a network that was trained without any condition answers two measurements.

    python experiments/measuring.py                        # three CPU minutes, most of them training
    python experiments/measuring.py --run runs/digits-vp   # with the run of `make demo`, in seconds
    python experiments/measuring.py --run runs/digits-vp --table   # rules and solvers, in ten CPU minutes

The network is that of `make demo`, trained on the 8 x 8 digits. A held-out digit is measured by `pool:2` (enlarging)
and another one by `half` (a hole in its lower half), both without noise. Each rule of `scoresde.guidance.measured`
answers both of them, with the same noise, and the figure has a row for each measurement and rule. The script also
prints the PSNR of the mean of the answers in each row and, for comparison, that of the mean of as many samples of the
network that ignore the measurement.

With --table, all held-out digits are measured by `pool:2` with noise of standard deviation 0.17 (1 % of the range), and
the script prints, for each rule and solver, the PSNR of the mean of four answers with its standard error over the
digits, the root mean square of A x - y in units of the noise, for answers rounded to whole levels, and the CPU time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import Tensor

from scoresde import Run, TrainConfig, fit, load
from scoresde.guidance.measured import RULES
from scoresde.metrics import psnr
from scoresde.operators import parse
from scoresde.plot import answers_figure, save_figure
from scoresde.solvers import Ancestral, Multistep, MultistepSDE

MEASUREMENTS = ("pool:2", "half")
NOISE = 0.17
WAYS: list[tuple[str, Ancestral | Multistep | MultistepSDE]] = [
    ("moment", Ancestral(50)), ("moment", MultistepSDE(50)), ("moment", Multistep(50)),
    ("pseudoinverse", Ancestral(50)), ("projection", Ancestral(50)),
]  # fmt: skip


def enlarged(y: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat the pixels of a picture ``(C, h, w)`` until it has the given shape."""
    return np.kron(y.double().numpy(), np.ones((1, shape[1] // y.shape[1], shape[2] // y.shape[2])))


def report(who: str, x: Tensor, truth: Tensor, span: float) -> None:
    """Print the PSNR of the mean of the answers ``x: (K, *event)``."""
    print(f"{who:24} PSNR of the mean {float(psnr(truth[None], x.mean(0)[None], span).value):.1f} dB", flush=True)


def table(run: Run, count: int, each: int, seed: int) -> None:
    """Print the table of rules and solvers for the first ``count`` held-out digits."""
    operator, truth = parse("pool:2").on(run.info.shape), run.data().test[:count].double()
    y = operator(truth)
    y = y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    print("| rule | solver | PSNR of the mean, dB | rms of A x - y, / noise | CPU seconds |\n|---|---|---|---|---|")
    for rule, solver in WAYS:
        began = time.process_time()
        asked = run.measured("pool:2", y, noise=NOISE, rule=rule, each=each)
        x = asked.sample(len(truth) * each, solver, seed=seed).x.double()
        found = psnr(truth, x.unflatten(0, (len(truth), each)).mean(1), run.info.high - run.info.low)
        off = (operator(x) - y.repeat_interleave(each, 0)).square().mean().sqrt() / NOISE
        told = f"{found.value:.2f} ± {found.stderr:.2f} | {off:.2f} | {time.process_time() - began:.0f}"
        print(f"| `{rule}` | {type(solver).__name__} {solver.steps} | {told} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run on the digits without a condition (default: train one)")
    parser.add_argument("--steps", type=int, default=2000, help="number of training steps")
    parser.add_argument("--each", type=int, default=64, help="number of answers to each measurement")
    parser.add_argument("--rows", nargs=2, type=int, default=[0, 3], help="the held-out digits that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of rules and solvers instead")
    parser.add_argument("--count", type=int, default=180, help="number of held-out digits of the table")
    parser.add_argument("--figure", default="docs/images/measuring.png", help="file of the figure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run: Run = load(args.run) if args.run else fit(TrainConfig(steps=args.steps), save=False, quiet=True)
    if args.table:
        table(run, args.count, 4, args.seed)
        return
    shape, span = run.info.shape, run.info.high - run.info.low
    ignoring = run.sample(args.each, "multistep", seed=args.seed).x.double()
    given, answers, truths, labels = [], [], [], []
    for spec, row in zip(MEASUREMENTS, args.rows, strict=True):
        operator = parse(spec).on(shape)
        truth = run.data().test[row].double()
        y = operator(truth[None])
        for rule in RULES:
            x = run.measured(spec, y, rule=rule, each=args.each).sample(args.each, seed=args.seed).x.double()
            # A measurement of another size is shown as it is, and hidden pixels are NaN.
            given.append(enlarged(y[0] if y.shape[1:] != shape else operator.shown(y)[0], shape))
            answers.append(x)
            truths.append(truth)
            labels.append(rule)
            report(f"{spec}, {rule}", x, truth, span)
        report(f"{spec}, y ignored", ignoring, truth, span)
    figure = answers_figure(
        torch.stack(answers), "image", run.info.low, run.info.high, given=np.stack(given), truth=torch.stack(truths),
        labels=labels,
    )  # fmt: skip
    save_figure(args.figure, figure)
    print(args.figure)


if __name__ == "__main__":
    main()
