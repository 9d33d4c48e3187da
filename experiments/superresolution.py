"""Answer questions about Fashion-MNIST: enlarge a picture of 14 x 14 pixels, or fill a hole.

    python experiments/superresolution.py FOLDER                                     # 14 x 14 to 28 x 28
    python experiments/superresolution.py FOLDER --cond pool:4 --figure ""           # 7 x 7 to 28 x 28
    python experiments/superresolution.py FOLDER --cond hole --figure ""             # the centre of 12 x 12 is missing

FOLDER holds the IDX files of Fashion-MNIST (train-images-idx3-ubyte.gz and its siblings), for example from the Debian
package dataset-fashion-mnist (`apt-get download dataset-fashion-mnist`, then `dpkg-deb -x`). The script trains two
networks of the same size, with the same number of steps on the same batches and one thread: a conditional model, which
draws answers, and a regression network, which returns one picture. It compares them on test images with the best
linear map in closed form and with bicubic interpolation.

PSNR is pooled over the pictures, of range 1; for a hole, only its pixels count. If answers are exact draws from the
posterior, the mean of K answers has 10 log10(2/(1 + 1/K)) dB more than one answer, and the rank of a true value among
its answers is uniform (scoresde/metrics/answers.py). Means are not rounded to levels.

A picture is much less uncertain once part of it is known, so the noise levels that matter are lower than without a
condition. Let s be the error of the linear map (root mean square, in model units, in which the data range from -1 to
1). The path is shifted so that half of the training is at sigma/alpha below 2 s, and the loss has EDM's weighting for
data of standard deviation s.

Goals for pool:2: at most 15 CPU minutes of training; the mean of 16 answers at least
21.6 dB and within 0.7 dB of the regression network; 2.4 to 3.0 dB between the mean and one answer; each bin of ranks
within 15 % of uniform. For the others: the mean above the linear map.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from scoresde import Condition, Dataset, Multistep, Run, TrainConfig, fit, load, load_data
from scoresde.core.files import read_tensors, write_tensors
from scoresde.data.batch import Batches, Rows
from scoresde.metrics import exact_gap, gap, psnr, ranks, spread, ssim
from scoresde.operators import Pool, parse
from scoresde.train.averages import EMA
from scoresde.train.loop import prepared

BATCH = 256  # rows evaluated at once
NETWORK = {"channels": 16, "multipliers": (1, 2, 4), "blocks": 1, "attention": ()}


class Regression:
    """The network of a run, trained to return the mean of what is asked for, from the same batches.

    Args:
        config: The configuration of the run. The path, the prediction and the weighting make no difference.
        data: The data.
        kept: A file that holds the weights, or to which they are written.
    """

    def __init__(self, config: TrainConfig, data: Dataset, kept: Path | None) -> None:
        config, model, _ = prepared(config, data)
        self.network, self.codec, self.seconds = model.network, data.codec, 0.0
        if kept is not None and kept.is_file():
            self.network.load_state_dict(read_tensors(kept))
        else:
            self._train(config, data)
            if kept is not None:
                write_tensors(kept, dict(self.network.state_dict()))
        self.network.eval().requires_grad_(False)

    def _train(self, config: TrainConfig, data: Dataset) -> None:
        began = time.process_time()
        operator = config.operator_for(data.info)
        batches = Batches(Rows(data.trained, data.codec, operator=operator), config.batch, config.seed)
        optimiser, average = torch.optim.Adam(self.network.parameters(), config.lr), EMA(self.network, *config.profiles)
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimiser,
            [
                torch.optim.lr_scheduler.LinearLR(optimiser, 1 / config.warmup, total_iters=config.warmup),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps - config.warmup),
            ],
            [config.warmup],
        )
        for step in range(config.steps):
            batch = batches.at(step, torch.Generator().manual_seed(step), torch.float32)
            optimiser.zero_grad(set_to_none=True)
            (self._network(batch.condition) - batch.x0).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
            optimiser.step()
            schedule.step()
            average.update()
        self.network.load_state_dict(average.state_dict())
        self.seconds = time.process_time() - began

    def _network(self, known: Condition) -> Tensor:
        return self.network(torch.zeros_like(known.image), torch.zeros(len(known)), known)

    def __call__(self, shown: Tensor) -> Tensor:
        """Return the estimate, float64 in data units, from what a network is shown, both ``(n, *event)``."""
        image = self.codec.continuous.to_model(shown).float()
        found = torch.cat([self._network(Condition(image=part)) for part in image.split(BATCH)])
        return middle(self.codec.continuous.to_data(found.double()), self.codec)


def middle(x: Tensor, codec) -> Tensor:
    """Return continuous values in data units, in which a level covers the cell that begins at it, minus half a cell."""
    return x if codec.levels is None else x - codec.levels.width / 2


def linear(y: Tensor, x: Tensor, hidden: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit the best linear estimate (with a constant) of pictures from their measurements, by least squares.

    Args:
        y, x: The measurements of the training pictures, and these pictures, ``(n, *event)``.
        hidden: Which values to estimate, bool ``(1, *event)``. The others are 0.
    """
    inputs, targets, where = ones(y), x.double().flatten(1)[:, hidden.flatten()], hidden.flatten()
    # Some inputs are always 0, hence the driver for matrices of lower rank.
    weights = torch.linalg.lstsq(inputs.T @ inputs, inputs.T @ targets, driver="gelsd").solution

    def estimate(y: Tensor) -> Tensor:
        found = torch.zeros(len(y), len(where), dtype=torch.float64)
        found[:, where] = ones(y) @ weights
        return found.reshape(len(y), *x.shape[1:])

    return estimate


def ones(y: Tensor) -> Tensor:
    return torch.cat([y.double().flatten(1), y.new_ones(len(y), 1).double()], 1)


def answers(run: Run, data: Dataset, index: Tensor, each: int, steps: int) -> tuple[Tensor, float]:
    """Draw answers to questions about test images, ``(n, each, *event)``, and the largest share of disagreement.

    Returns:
        The answers, and the share of answers whose measurement differs from the one given by more than half a level.
    """
    found, wrong = [], 0
    for part in index.split(BATCH):
        samples = run.given_rows(data, part, each=each).sample(
            len(part) * each, Multistep(steps=steps), start=int(part[0]) * each, batch=BATCH
        )
        found.append(samples.x.reshape(len(part), each, *samples.x.shape[1:]).float())
        if samples.residual is not None:
            wrong += int((samples.residual > 0.5 + 1e-9).sum())
    return torch.cat(found), wrong / (len(index) * each)


def figure(path: str, columns: dict[str, Tensor], deviation: str) -> None:
    """Draw a row for each question and a column for each entry of ``columns``, ``(n, H, W)`` each.

    Args:
        path: The file.
        columns: The pictures, from 0 to 255.
        deviation: The column that is drawn in its own colours.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(next(iter(columns.values())))
    fig = Figure(figsize=(1.05 * len(columns), 1.05 * rows + 0.25), layout="constrained")
    FigureCanvasAgg(fig)
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    axes = fig.subplots(rows, len(columns), squeeze=False)
    for j, (name, x) in enumerate(columns.items()):
        for i in range(rows):
            image = x[i].double().numpy()
            if name == deviation:
                axes[i, j].imshow(image, cmap="magma", vmin=0, vmax=64)
            else:
                axes[i, j].imshow(image, cmap="gray", vmin=0, vmax=255)
            axes[i, j].set_axis_off()
        axes[0, j].set_title(name, fontsize=9)
    fig.savefig(path, dpi=130)
    print(f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the folder of the IDX files of Fashion-MNIST")
    parser.add_argument("--cond", default="pool:2", help="the operator: pool:2, pool:4, hole, ...")
    parser.add_argument("--steps", type=int, default=6_400, help="training steps")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--n", type=int, default=1_000, help="number of test images")
    parser.add_argument("--each", type=int, default=16, help="number of answers to each question")
    parser.add_argument("--solver-steps", type=int, default=10, help="steps of the solver (multistep)")
    parser.add_argument("--compare", nargs="*", type=int, default=[5, 20, 40], help="other numbers of steps to compare")
    parser.add_argument("--out", help="folder that keeps both networks; if it already does, they are not trained again")
    parser.add_argument("--figure", default="docs/images/superresolution.png", help="the figure (empty: no figure)")
    parser.add_argument("--rows", nargs="+", type=int, default=[3, 23, 18, 5, 11], help="test images in the figure")
    args = parser.parse_args()
    torch.set_num_threads(1)

    data = load_data(args.folder)
    operator = parse(args.cond).on(data.info.shape, data.info.low, data.info.high)
    hidden = operator.hidden(data.info.shape)
    index = torch.arange(args.n)
    truth, span = data.test[index].double(), data.info.high - data.info.low
    measured = torch.cat([operator(part.double()) for part in data.train.split(10_000)])
    best, some = linear(measured, data.train, hidden), slice(5_000)
    error = ((best(measured[some]) - data.train[some]) * hidden).square().mean() / hidden.double().mean()
    s = round(2 * float(error.sqrt()) / span, 2)

    out = None if args.out is None else Path(args.out)
    config = TrainConfig(
        data=args.folder, cond=args.cond, cond_drop=0.0, sde="cosine", shift=2 * s, weighting="edm",
        weighting_options={"data_std": s}, preset="small", network_options=NETWORK, steps=args.steps, batch=args.batch,
        lr=args.lr, sample_every=args.steps,
    )  # fmt: skip
    if out is not None and (out / "config.json").is_file():
        run, seconds = load(out), 0.0
        assert run.config is not None
        config = run.config
    else:
        began = time.process_time()
        run = fit(config, data=data, out=out, save=out is not None, quiet=True)
        seconds = time.process_time() - began
    regression = Regression(config, data, None if out is None else out / "regression.safetensors")
    count = sum(p.numel() for p in run.base.parameters())
    print(f"{args.cond}: s = {s}; {count:,} parameters, {config.steps:,} steps of batch {config.batch}", end="")
    print(f", {seconds / 60:.1f} CPU minutes (regression: {regression.seconds / 60:.1f})\n", flush=True)

    shown, found = operator.degrade(truth), {}
    if isinstance(operator, Pool):
        found["bicubic"] = functional.interpolate(operator(truth), size=truth.shape[2:], mode="bicubic")
    found["linear least squares"] = best(operator(truth))
    found["regression network"] = regression(shown)
    drawn, wrong = answers(run, data, index, args.each, args.solver_steps)
    found[f"mean of {args.each} answers"] = drawn.double().mean(1)
    found["one answer"] = drawn[:, 0].double()

    print("| estimate | PSNR, dB | SSIM |\n|---|---|---|")
    for name, x in found.items():
        x = torch.where(hidden, x, truth)
        # The squared errors of all answers are averaged, which is one answer with a smaller error bar.
        value = psnr(truth, drawn if name == "one answer" else x, span, hidden)
        print(f"| {name} | {value} | {ssim(truth, x, span).value:.3f} |")
    rank = ranks(truth, drawn, hidden)
    relative = rank.counts / rank.counts.mean()
    print(f"\nmean minus one answer: {gap(truth, drawn, span, hidden)} dB (exact: {exact_gap(args.each):.2f})")
    print(f"deviation of the answers over the error of their mean: {spread(truth, drawn, hidden)} (exact: 1)")
    print(f"ranks: {rank.counts.sum():,} in {len(relative)} bins, at most {rank.deviation:.1%} from uniform")
    print("       " + " ".join(f"{r:.2f}" for r in relative))
    print(f"answers that disagree with what was given by more than half a level: {wrong:.2%}", flush=True)

    few = index[: min(100, args.n)]
    print("\n| steps of the solver | mean, dB | one answer, dB | gap, dB | largest bin |\n|---|---|---|---|---|")
    for steps in args.compare:
        x, _ = answers(run, data, few, args.each, steps)
        mean, one = psnr(truth[few], x.double().mean(1), span, hidden), psnr(truth[few], x, span, hidden)
        bins = ranks(truth[few], x, hidden).deviation
        print(
            f"| {steps} | {mean.value:.2f} | {one.value:.2f} | {mean.value - one.value:.2f} | {bins:.1%} |", flush=True
        )
    if args.figure:
        rows = torch.tensor(args.rows)
        chosen = drawn[rows][:, :, 0]
        given = torch.where(shown[rows].isnan(), 128, shown[rows])[:, 0]
        columns = {"given": given} | {f"answer {k + 1}": chosen[:, k] for k in range(4)}
        columns |= {f"mean of {args.each}": chosen.mean(1), "deviation": chosen.std(1), "truth": truth[rows][:, 0]}
        figure(args.figure, columns, "deviation")


if __name__ == "__main__":
    main()
