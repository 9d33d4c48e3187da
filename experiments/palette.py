"""Restore digits with one network for several tasks, and colour grey digits.

    python experiments/palette.py
    python experiments/palette.py --steps 1000 --each 64 --figure ""     # faster

The first part trains one network on the 8 x 8 digits with `--cond half/pool:2/noise:4`, which draws one of the three
tasks for each training picture, and a specialist for each task with as many steps. The networks answer questions about
the held-out digits. The PSNR is that of the mean of the answers, which are not rounded to levels, over the values that
are not given. If answers are exact draws from the posterior, the mean of K answers has 10 log10(2/(1 + 1/K)) dB more
than one answer. The error of a difference is that of a jackknife over the questions, which are the same for both
networks.

The second part trains a network to colour tinted digits (`--data tinted --cond grey`; scoresde/data/tinted.py). The hue
of a tinted digit is uniform on the circle whatever its grey picture is, so the hues of the answers must be, too, and
the answers to one question must not share a hue. The script prints p-values of Kuiper's test, for one hue per question
and for all hues; and K |mean of exp(i hue)|^2, averaged over the questions, which is 1 if the K hues of each question
are uniform.

Goals: no specialist is better by more than 0.3 dB plus two standard errors; answers have
the given grey picture to 1e-6 of the range; p > 0.01.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path

import torch
from superresolution import linear, middle
from torch import Tensor

from scoresde import Condition, Dataset, Multistep, Noise, Run, TrainConfig, fit, load, load_data
from scoresde.data.tinted import hue
from scoresde.metrics import Measurement, exact_gap, gap, jackknife, kuiper, psnr
from scoresde.operators import Masking, Operator, parse

TASKS = ("half", "pool:2", "noise:4")


def trained(data: Dataset, cond: str, args: argparse.Namespace) -> Run:
    """Train a model with one thread, and print how long it took. If ``--out`` already holds the model, load it."""
    out = None if args.out is None else Path(args.out) / re.sub(r"\W+", "-", cond)
    if out is not None and (out / "config.json").is_file():
        return load(out)
    began = time.process_time()
    config = TrainConfig(data=data.info.source, cond=cond, cond_drop=0.0, steps=args.steps, sample_every=args.steps)
    run = fit(config, data=data, out=out, save=out is not None, quiet=True)
    print(f"{cond}: {args.steps:,} steps in {(time.process_time() - began) / 60:.1f} CPU minutes", flush=True)
    return run


def measured(operator: Operator, x: Tensor, seed: int) -> tuple[Operator, Tensor]:
    """Measure pictures, and return the operator with its random parts drawn, and the measurements, NaN if missing."""
    operator = operator.drawn(Noise.of(len(x), seed))
    y = operator(x.double())
    return operator, operator.shown(y) if isinstance(operator, Masking) else y


def drawn(run: Run, y: Tensor, task: str, each: int, steps: int) -> Tensor:
    """Draw answers to measurements by a task, float64 ``(n, each, *event)`` in data units, not rounded to levels."""
    bound = run.given(Condition(image=y), operator=task, each=each)
    found = bound.sample(len(y) * each, Multistep(steps=steps), batch=2048).solution.x.double()
    x = middle(run.codec.continuous.to_data(found), run.codec)
    return x.reshape(len(y), each, *x.shape[1:])


def better(truth: Tensor, first: Tensor, second: Tensor, hidden: Tensor) -> Measurement:
    """Return by how many decibels the first of two estimates of the same pictures is better than the second."""
    errors = [((x - truth) * hidden).square().flatten(1).sum(1) for x in (first, second)]
    return jackknife(lambda a, b: 10 * math.log10(float(b.sum() / a.sum())), *errors, paired=True)


def restore(args: argparse.Namespace) -> list[tuple[str, list[Tensor]]]:
    """Compare one network for all tasks with a specialist for each, and return rows of pictures for the figure."""
    data = load_data("digits")
    truth, span = data.test[: args.n].double(), data.info.high - data.info.low
    one = trained(data, "/".join(TASKS), args)
    own = {task: trained(data, task, args) for task in TASKS}
    print("\n| task | linear | specialist | one network | specialist minus one network | gap, specialist | gap, one |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for task in TASKS:
        operator, y = measured(parse(task).on(data.info.shape, data.info.low, data.info.high), truth, seed=1)
        _, seen = measured(parse(task).on(data.info.shape, data.info.low, data.info.high), data.train, seed=2)
        hidden = operator.hidden(data.info.shape)
        best = linear(seen.nan_to_num(), data.train, hidden)(y.nan_to_num())
        by = {
            name: drawn(run, y, task, args.each, args.solver_steps) for name, run in (("own", own[task]), ("one", one))
        }
        means = {name: x.mean(1) for name, x in by.items()}
        gaps = {name: gap(truth, x, span, hidden) for name, x in by.items()}
        figures = [psnr(truth, x, span, hidden) for x in (best, means["own"], means["one"])]
        cells = [*figures, better(truth, means["own"], means["one"], hidden), gaps["own"], gaps["one"]]
        print(f"| {task} | {' | '.join(map(str, cells))} |", flush=True)
        for i in args.rows:
            x = torch.where(hidden, by["one"][i], truth[i])
            given = operator.rows(torch.tensor([i])).degrade(truth[i : i + 1])[0]
            images = [given.nan_to_num(nan=span / 2), *x[:4], x.mean(0), truth[i]]
            rows.append((operator.title, [(image / span).clamp(0, 1) for image in images]))
    print(f"\nexact gap of {args.each} answers: {exact_gap(args.each):.2f} dB")
    return rows


def colour(args: argparse.Namespace) -> list[tuple[str, list[Tensor]]]:
    """Colour the held-out digits, test the hues, and return rows of pictures for the figure."""
    data = load_data("tinted")
    run = trained(data, "grey", args)
    n, each = len(data.test), args.hues
    bound = run.given_rows(data, torch.arange(n), each=each)
    found = bound.sample(n * each, Multistep(steps=args.solver_steps), batch=2048)
    assert found.residual is not None
    x = found.x.reshape(n, each, *data.info.shape)
    hues = hue(found.x).reshape(n, each)
    off = float(found.residual.max()) / (data.info.high - data.info.low)
    print(f"\ncolouring {n} digits, {each} answers to each")
    print(f"grey(answer) differs from what was given by at most {off:.1e} of the range")
    first, every = kuiper(hues[:, 0]), kuiper(hues.flatten())
    print(f"Kuiper's test of one hue per question: V = {first[0]:.3f}, p = {first[1]:.3f}; of all: p = {every[1]:.3f}")
    shared = each * torch.polar(torch.ones_like(hues), hues).mean(1).abs().square()
    print(f"K |mean of exp(i hue)|^2: {jackknife(lambda s: float(s.mean()), shared)} (exact: 1)")
    rows = []
    for i in args.rows:
        given = data.test[i].new_tensor([0.299, 0.587, 0.114])[:, None, None].mul(data.test[i]).sum(0, keepdim=True)
        images = [given.expand(3, -1, -1), *x[i, :4], x[i].mean(0), data.test[i]]
        rows.append(("grey", [image.clamp(0, 1) for image in images]))
    return rows


def figure(path: str, rows: list[tuple[str, list[Tensor]]], each: int) -> None:
    """Draw a row of pictures ``(C, H, W)``, from 0 to 1, for each question, with the task on the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = ("given", *(f"answer {k + 1}" for k in range(4)), "mean", "truth")
    fig = Figure(figsize=(1.05 * len(columns) + 0.4, 1.05 * len(rows) + 0.25), layout="constrained")
    FigureCanvasAgg(fig)
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    axes = fig.subplots(len(rows), len(columns), squeeze=False)
    for i, (task, images) in enumerate(rows):
        for j, image in enumerate(images):
            axes[i, j].imshow(image.expand(3, -1, -1).permute(1, 2, 0).double().numpy(), interpolation="nearest")
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].spines[:].set_visible(False)
            if i == 0:
                axes[i, j].set_title(columns[j], fontsize=9)
        axes[i, 0].set_ylabel(task, fontsize=8)
    fig.savefig(path, dpi=130)
    print(f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps of each network")
    parser.add_argument("--parts", nargs="+", default=["restore", "colour"], choices=["restore", "colour"])
    parser.add_argument("--each", type=int, default=256, help="number of answers to each question")
    parser.add_argument("--n", type=int, default=50, help="number of held-out digits to restore")
    parser.add_argument("--hues", type=int, default=16, help="number of colourings of each digit")
    parser.add_argument("--solver-steps", type=int, default=10, help="steps of the solver (multistep)")
    parser.add_argument("--out", help="folder that keeps the networks; if it already does, they are not trained again")
    parser.add_argument("--figure", default="docs/images/palette.png", help="file of the figure (empty: no figure)")
    parser.add_argument("--rows", nargs="+", type=int, default=[0, 1], help="held-out digits in the figure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for part in args.parts for row in {"restore": restore, "colour": colour}[part](args)]
    if args.figure:
        figure(args.figure, rows, args.each)


if __name__ == "__main__":
    main()
