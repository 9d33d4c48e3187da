"""Draw pictures for captions such as "a red three left of a green seven", and judge what is in them.

    python experiments/captions.py                     # about ten minutes of one CPU core
    python experiments/captions.py --control           # the same with all words in alphabetical order
    python experiments/captions.py --encoder minilm    # the features of a pretrained language model (minilm.py)
    python experiments/captions.py --run runs/captions --figure captions.png

The script trains (or loads) a model of `--data captions` with `--cond text`, and draws pictures for held-out captions.
No training caption has the words of a held-out caption, in any order. A classifier that is trained on the grey digits
reads the digit in each half of a picture, and the hue of most of its light gives the colour. The columns are

    digits      both digits are as asked, in any order
    colours     both colours are as asked, in any order
    order       the digit asked for on the left is on the left, if the digits differ and both are there
    binding     each digit has its own colour, if the digits and the colours differ and all of them are there
    all         all of this

For the control, the words of every caption are sorted, in training and in sampling, so that they are a mere bag of
words. Guessing then gives 50 % for the order and for the binding. The last row of the other table shows what sorting
does to the trained model alone. Errors are standard errors over captions, of the mean of three seeds.

Goals: 85 % or more in the last column, and at most about 50 % order for the control.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from minilm import MiniLM
from torch import Tensor

from scoresde import Condition, Dataset, Run, TrainConfig, fit, load, load_data
from scoresde.data.captions import COLOURS, DIGITS
from scoresde.study.classifier import TrainedClassifier, train_classifier

PALETTE = torch.tensor(list(COLOURS.values()), dtype=torch.float64)


def captions(data: Dataset, tokens: Tensor) -> list[str]:
    """Return captions as text, from their word indices ``(n, L)``."""
    words = data.info.known.words
    return [" ".join(words[i - 1] for i in row if i > 0) for row in tokens.tolist()]


def ordered(text: str) -> str:
    """Return the words of a text in alphabetical order."""
    return " ".join(sorted(text.split()))


def scenes(texts: Sequence[str]) -> Tensor:
    """Return what captions ask for, int64 ``(n, 2, 2)``: the digit and the colour on the left, then on the right."""
    found = []
    for text in texts:
        _, colour, digit, side, _, _, other_colour, other_digit = text.split()
        both = [[DIGITS.index(d), list(COLOURS).index(c)] for d, c in ((digit, colour), (other_digit, other_colour))]
        found.append(both if side == "left" else both[::-1])
    return torch.tensor(found)


def hues(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hue in degrees and the chroma of colours ``(..., 3)``."""
    high, low = x.amax(-1), x.amin(-1)
    chroma = high - low
    r, g, b = (x / chroma.clamp(min=1e-9)[..., None]).unbind(-1)
    top = x.argmax(-1)
    return 60 * torch.where(top == 0, (g - b) % 6, torch.where(top == 1, b - r + 2, r - g + 4)), chroma


def seen(judge: TrainedClassifier, x: Tensor) -> Tensor:
    """Return what pictures ``(n, 3, 8, 16)`` show, as in :func:`scenes`."""
    found = []
    for half in (x.double() / 255).split(8, dim=3):
        hue, chroma = hues(half.flatten(2).transpose(1, 2))
        apart = (hue[..., None] - hues(PALETTE)[0] + 180) % 360 - 180
        nearest = torch.nn.functional.one_hot(apart.abs().argmin(-1), len(COLOURS))
        colour = (nearest * chroma[..., None]).sum(1).argmax(1)  # the hue of most of the light
        own = PALETTE[colour][:, :, None, None]
        grey = 16 * (half * own).sum(1, keepdim=True) / own.square().sum(1, keepdim=True)
        found.append(torch.stack([judge(grey).argmax(1), colour], 1))
    return torch.stack(found, 1)


def judged(found: Tensor, asked: Tensor) -> dict[str, Tensor]:
    """Return whether each picture is right, float64 ``(n,)``, for each column. NaN where a column does not apply."""
    there = (found.sort(1).values == asked.sort(1).values).all(1)  # both digits, both colours, in any order
    differ = asked[:, 0] != asked[:, 1]
    placed = (found == asked).all(1)
    digits, colours = there.unbind(1)
    bound = torch.where(found[:, 0, 0] == asked[:, 0, 0], placed[:, 1], found[:, 0, 1] == asked[:, 1, 1])
    nan = torch.tensor(math.nan, dtype=torch.float64)
    return {
        "digits": digits.double(),
        "colours": colours.double(),
        "order": torch.where(digits & differ[:, 0], placed[:, 0].double(), nan),
        "binding": torch.where(there.all(1) & differ.all(1), bound.double(), nan),
        "all": placed.all(1).double(),
    }


def row(name: str, seeds: Sequence[dict[str, Tensor]]) -> str:
    """Return a row of the table, from the results for each seed."""
    cells = []
    for column in seeds[0]:
        values = torch.stack([found[column] for found in seeds]).nanmean(0)
        values = values[~values.isnan()]
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        cells.append(f"{float(values.mean()):.1%} ± {error:.1%}")
    return " | ".join([f"| {name}", *cells, ", ".join(f"{float(found['all'].mean()):.1%}" for found in seeds)]) + " |"


def draw(run: Run, texts: Sequence[str], scale: float, seed: int) -> Tensor:
    """Draw a picture for each text."""
    if run.info.known.features:  # the run was trained with the features of an encoder
        bound = run.given(Condition(tokens=MiniLM()(texts)))
    else:
        bound = run.given(text=list(texts))
    return bound.guided(scale).sample(len(texts), "multistep", seed=seed).x


def figure(run: Run, texts: Sequence[str], scale: float, path: Path, columns: int = 4) -> None:
    """Draw pictures with their captions."""
    from scoresde.plot.base import new_figure, save_figure

    x = draw(run, texts, scale, seed=0).permute(0, 2, 3, 1) / 255
    rows = -(-len(texts) // columns)
    made = new_figure(2.1 * columns, 1.5 * rows)
    for i, (image, text) in enumerate(zip(x.clamp(0, 1).numpy(), texts, strict=True)):
        ax = made.add_subplot(rows, columns, i + 1)
        ax.imshow(image, interpolation="nearest")
        ax.axis("off")
        ax.set_title(text.replace(" left", "\nleft").replace(" right", "\nright"), fontsize=9)
    save_figure(path, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a trained run (default: train a new run)")
    parser.add_argument("--steps", type=int, default=0, help="training steps (default: those of the preset, 2,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--control", action="store_true", help="sort the words of every caption")
    parser.add_argument("--encoder", choices=["own", "minilm"], default="own", help="what turns captions into features")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 2.0, 3.0])
    parser.add_argument("--captions", type=int, default=400, help="number of held-out captions")
    parser.add_argument("--seeds", type=int, default=3, help="number of pictures for each caption")
    parser.add_argument("--figure", type=Path, help="a file for 16 of the pictures, with their captions")
    parser.add_argument("--out", help="a folder for the trained run")
    args = parser.parse_args()

    data = load_data("captions")
    judge = train_classifier(load_data("digits"))
    texts = captions(data, data.test_given.tokens)
    true = judged(seen(judge, data.test), scenes(texts))
    print(f"the judge agrees with {float(true['all'].mean()):.1%} of {len(texts):,} true pictures\n")
    texts = list(dict.fromkeys(texts))[: args.captions]
    asked = scenes(texts)

    if args.run:
        run = load(args.run)
    else:
        config = TrainConfig(data="captions", cond="text", steps=args.steps, seed=args.seed)
        told: Dataset | None = None
        text, test_text = (captions(data, known.tokens) for known in (data.train_given, data.test_given))
        if args.control:
            text, test_text = ([*map(ordered, part)] for part in (text, test_text))
            told = Dataset.of(data.train, data.test, text=text, test_text=test_text, name="sorted captions")
        if args.encoder == "minilm":
            known, test_known = (Condition(tokens=MiniLM()(part)) for part in (text, test_text))
            told = Dataset.of(data.train, data.test, given=known, test_given=test_known, name="encoded captions")
        began = time.process_time()
        run = fit(config, data=told, save=args.out is not None, out=args.out, quiet=True)
        seconds, size = time.process_time() - began, sum(p.numel() for p in run.base.parameters())
        print(f"{size:,} parameters, {run.step:,} steps in {seconds:.0f} CPU seconds\n", flush=True)

    print("| guidance | digits | colours | order | binding | all | all, for each seed |\n|---|---|---|---|---|---|---|")
    shown = [ordered(text) for text in texts] if args.control else texts
    for scale in args.scales:
        found = [judged(seen(judge, draw(run, shown, scale, seed)), asked) for seed in range(args.seeds)]
        print(row(f"{scale:g}", found), flush=True)
    if not args.control:
        found = [judged(seen(judge, draw(run, [*map(ordered, texts)], 2.0, seed)), asked) for seed in range(args.seeds)]
        print(row("2, words sorted in sampling only", found))
    if args.figure:
        figure(run, texts[:16], 2.0, args.figure)


if __name__ == "__main__":
    main()
