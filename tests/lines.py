"""Random command lines over all verbs, from what click and the fields know of themselves.

A line is a list of groups of words, of which each but the first may be left out, so that a line that shows a fault can
be made shorter. Most values are plausible and small; some are odd.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import cache

import click

from scoresde.cli import cli
from scoresde.cli.command import Command
from scoresde.cli.list import KINDS
from scoresde.core.registry import fields_of, is_flag, resolve
from scoresde.core.tables import ANSWERS, GRIDS, METRICS, PARAMETRIZATIONS, SDES, SOLVERS, TIME_SAMPLERS, WEIGHTINGS

__all__ = ["commands", "random_line", "shortened", "words_of"]

Line = list[list[str]]

RUNS = ("runs/photos", "runs/points", "runs/table")
SMALL_UNET = "--set network.channels=4"
SMALL_MLP = "--set network.width=8 --set network.blocks=1"
TRAINED_ON = (
    f"--data photos {SMALL_UNET}", f"--data photos --cond class {SMALL_UNET}", f"--data points.npy {SMALL_MLP}",
    f"--data table.csv {SMALL_MLP}",
)  # fmt: skip
DATA = ("photos", "points.npy", "table.csv", "labelled.npz", "moons")
OUT = ("out", "deep/er/out", "runs/new", "runs/points", "afile", "out.png")
SOLVER = "SOLVER"  # stands for a solver with a small budget
SAMPLERS = ("", *RUNS), ("--n 2", "--n 3"), (SOLVER,)

# What a line has nearly always, one of each: without these the defaults take seconds.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": ((*(f"{data} --batch 8" for data in TRAINED_ON), *(f"--resume {run}" for run in RUNS)),
              ("--steps 1", "--steps 5"), ("", "", "--dry-run")),
    "sample": SAMPLERS,
    "likelihood": (("", *RUNS, "runs/points runs/points"), ("--limit 2",), ("--rtol 0.1", "--set likelihood.steps=3"),
                   ("", "--no-check"),
                   ("", "--elbo --strata 2", "--save npz", "--all-bounds --chain-steps 2", "--within 9")),
    "evaluate": ((*RUNS, "--samples points.npy --data points.npy", "runs/photos --samples photos"), ("--n 4",),
                 ("--limit 20",), ("--features pixels",), (SOLVER,), ("", "--metrics frechet,copies")),
    "bench": (RUNS, ("--n 2", "--n 4"), ("--nfe 2", "--nfe 2,3"),
              ("--solvers euler", "--solvers ddim,multistep", "--solvers sde")),
    "tune": (RUNS, ("--nfe 2", "--nfe 2,3"), ("--rows 8",)),
    "classifier": (("--data labelled.npz", "--data photos"), ("--steps 2",), ("--width 4",), ("--batch 4",)),
    "reflow": (("runs/points", "runs/table"), ("--pairs 4",), ("--steps 1",), ("--rtol 0.1", SOLVER)),
    "ema": (("", *RUNS), ("--sigma-rel 0.1", "--sigma-rel 0.08,0.15")),
    "list": (("", *KINDS, "data"),),
    "info": (("", *RUNS),),
    "config show": (("", *RUNS, "runs/photos/config.json"),),
    "config diff": (RUNS, RUNS),
    "interpolate": (("runs/photos photos/cat/0.png photos/cat/1.png", "photos/cat/0.png photos/cat/0.png"), ("--n 2",),
                    ("--rtol 0.1",)),
    "data inspect": (DATA,),
    "data pack": (("photos packed.zip", "photos packed", "photos p.npy", "points.npy p.npy", "table.csv p.npy"),),
    "page": (("runs/points", "runs/table", "runs/photos", "--data 8gaussians"), ("", "--no-weights")),
    "plot schedule": (("", *(f"--sde {name}" for name in SDES)),),
    "plot forward": (tuple(f"--data {name}" for name in DATA), ("--steps 2",), ("--n 3",)),
    "plot reverse": (RUNS, (SOLVER,), ("--n 2",), ("--columns 2",), ("--frames 2",), ("", "--no-gif")),
    "plot score-field": (("runs/points",), ("", "--times 0.2")),
    "plot trajectories": (RUNS, ("--n 2",), ("--paths 2",), ("--steps 3", SOLVER)),
    "plot loss-by-noise": (RUNS, ("", "--lines 2")),
    "plot compass": (RUNS, ("--n 2",), ("--levels 2",)),
    "demo single-image": (("", "photos/cat/0.png"), ("--size 8",), ("--steps 1",), ("--columns 2",), ("--frames 2",)),
}  # fmt: skip

# What an option of this name may plausibly be; without an entry its type says.
PLAUSIBLE: dict[str, tuple[str, ...]] = {
    "run": RUNS, "runs": RUNS, "resume": RUNS, "data": DATA, "path": tuple(SDES), "data inspect path": DATA, "out": OUT,
    "solver": tuple(SOLVERS), "solvers": ("euler", "ddim,heun", "em", "multistep"), "sde": tuple(SDES),
    "sdes": ("vp,ve", "flow", *SDES), "predict": ("auto", *PARAMETRIZATIONS), "weighting": ("auto", *WEIGHTINGS),
    "t_sampler": ("auto", *TIME_SAMPLERS), "preset": ("auto", "mlp", "tiny", "small"), "grid": ("auto", *GRIDS),
    "metrics": (*METRICS, *ANSWERS, "copies", "kernel,mmd"), "features": ("pixels",), "copies_by": ("pixels",),
    "save": ("png", "npz", "csv", "gif", "path", "png,npz"), "units": ("auto", "data", "model", "0,1", "-1,1"),
    "label": ("cat", "dog", "0", "1"), "times": ("0.1,0.5", "0.9"), "nfe": ("2", "2,3"), "kind": (*KINDS, "data"),
    "augment": ("none", "flip", "all", "shift,scale"), "samples": ("points.npy", "labelled.npz", "photos"),
    "reference": ("reference.npz", "labelled.npz"), "save_reference": ("kept.npz",), "device": ("auto", "cpu"),
    "threads": ("1",), "file": ("photos/cat/0.png",), "rtol": ("0.1", "0.01"), "guidance": ("0", "1.5", "3"),
    "given": ("test", "train"), "operator": ("half", "pool:2"),
    "dtype": ("float32", "float64"), "lr": ("0.001", "1"), "size": ("8", "12"), "seed": ("0", "7"),
    "config_file": (*RUNS, "runs/points/config.json"), "seeds": ("0", "0,1", "3,0"), "source": RUNS, "first": RUNS,
    "second": RUNS, "max_time": ("1h", "45m"), "accumulate": ("1", "2"), "keep": ("1", "3"), "shard": ("ddp", "fsdp"),
    "budget": ("1.5", "0.2"), "sigma_rel": ("0.1", "0.05,0.2"), "within": ("9", "0.5"),
    "of": ("population", "these"), "ema": ("0.9", "0.9999,power:0.05,power:0.1"),
    "track": ("tensorboard", "module:Class"), "decay": ("cosine", "wsd", "rsqrt", "none"),
}  # fmt: skip

ODD = (
    "nan", "inf", "-inf", "-1", "0", "-0.0", "1", "1e308", "1e-308", "1e-30", "1000000000000", "9223372036854775808",
    "0x10", "1_0", "", " ", "none", "auto", "yes", "no", ",", "1,2", "1,2,", "0,0", "--n", "--", "-", "=", "a=b", "%s",
    "{}", "ümläut", "∞", "三", "\x1b[31mred", "two\nlines", "\ufeff", "\udcff", "module:Class", "os:system",
    "scoresde:fit", "missing/nowhere", "/dev/null", "/dev/full", "/dev/zero", "fifo", "afile", "photos", "locked",
    "locked/out", ".", "..", "/proc/nothing", "a" * 300, "b/" * 200, "loop", "points.npy", "runs",
    "runs/photos/config.json",
)  # fmt: skip
NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "-0.0", "1", "2", "1e308", "1e-308", "1e-30", "0.5", "1e9", "1000000000",
    "1000000000000", "9223372036854775807", "9223372036854775808", "1e4000", "1" * 400,
)  # fmt: skip
# Training for very many steps is no mistake that anybody could know from the number.
LONG = {("train", "steps"), ("reflow", "steps"), ("classifier", "steps"), ("demo single-image", "steps")}
WEIGHTS = {
    "list": 0.3,
    "info": 0.5,
    "config show": 0.5,
    "config diff": 0.5,
    "data inspect": 0.5,
    "data pack": 0.5,
    "demo single-image": 0.3,
    "page": 0.2,
    "train": 4,
    "sample": 4,
    "likelihood": 3,
    "evaluate": 2,
    "bench": 2,
    "reflow": 2,
}
WRONG = ("--nonsense", "--steps", "--n", "--set", "-x", "extra", "--out", "--helpp", "--json=1", "--help", "--help-all")


@cache
def commands() -> dict[str, Command]:
    """Every command by the words that call it."""

    def walk(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[str, Command]]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from walk(command, (*words, name))
            else:
                assert isinstance(command, Command)
                yield " ".join((*words, name)), command

    return dict(walk(cli, ()))


def random_line(rng: random.Random) -> Line:
    """A command line."""
    (verb,) = rng.choices(sorted(commands()), [WEIGHTS.get(verb, 1) for verb in sorted(commands())])
    groups = [verb.split()]
    for choices in NEEDED[verb]:
        text = rng.choice(choices)
        groups += _groups(_solver(rng) if text == SOLVER else text)
    groups += [group for _ in range(_few(rng)) if (group := _option(rng, verb))]
    groups += [_assignment(rng, verb, words_of(groups)) for _ in range(_few(rng)) if commands()[verb].fields]
    if rng.random() < 0.06:
        groups.append([rng.choice(WRONG)])
    if rng.random() < 0.4:
        _spoil(rng, verb, groups)
    first, *rest = groups
    if rng.random() < 0.3:
        rng.shuffle(rest)
    return [first, *([["--json"]] if rng.random() < 0.5 else []), *rest]


def words_of(line: Line) -> list[str]:
    """The words of a line."""
    return [word for group in line for word in group]


def shortened(line: Line, shows: Callable[[Line], bool], seconds: float = 60.0) -> Line:
    """The line without each group that is not needed for a fault; ``shows`` says whether a line has it."""
    until = time.monotonic() + seconds
    for i in reversed(range(1, len(line))):
        shorter = line[:i] + line[i + 1 :]
        if time.monotonic() < until and shows(shorter):
            line = shorter
    return line


def _few(rng: random.Random) -> int:
    return rng.choice((0, 0, 0, 1, 1, 2, 3))


def _groups(text: str) -> Line:
    """``"--n 3 --json runs/x"`` in groups: an option with its value, a word alone."""
    groups: Line = []
    for word in text.split():
        if groups and groups[-1][0].startswith("--") and len(groups[-1]) == 1 and not word.startswith("--"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _solver(rng: random.Random) -> str:
    """A solver, with a small budget."""
    name = rng.choice(tuple(SOLVERS))
    fields = fields_of(resolve(name, SOLVERS))
    return f"--solver {name} " + ("--set solver.steps=3" if "steps" in fields else "--set solver.rtol=0.1")


def _option(rng: random.Random, verb: str) -> list[str]:
    """An option of a command, or an argument, with a value."""
    param = rng.choice(commands()[verb].params)
    name = str(param.name)
    if isinstance(param, click.Option) and param.is_flag:
        return [rng.choice((*param.opts, *param.secondary_opts))]
    value = _value(rng, verb, name, param.type)
    if not isinstance(param, click.Option):
        return [value]
    flag = rng.choice(param.opts)
    return [f"{flag}={value}"] if rng.random() < 0.15 else [flag, value]


def _value(rng: random.Random, verb: str, name: str, kind: click.ParamType) -> str:
    if rng.random() < 0.25:
        return _odd(rng, verb, name, isinstance(kind, click.types.IntParamType | click.types.FloatParamType))
    plausible = PLAUSIBLE.get(f"{verb} {name}", PLAUSIBLE.get(name))
    if plausible is not None:
        return rng.choice(plausible)
    if isinstance(kind, click.Choice):
        return str(rng.choice(list(kind.choices)))
    if isinstance(kind, click.types.IntParamType):
        return str(int(getattr(kind, "min", None) or 0) + rng.choice((0, 1, 2, 5)))
    if isinstance(kind, click.types.FloatParamType):
        return rng.choice(("0.01", "0.5", "1", "1.5"))
    return rng.choice(ODD)


def _odd(rng: random.Random, verb: str, name: str, number: bool = False) -> str:
    """An odd value; of what takes a number mostly a number, which gets further."""
    value = rng.choice(NUMBERS if rng.random() < (0.8 if number else 0.3) else ODD)
    return "0" if (verb, name) in LONG and value[:1].isdigit() else value


def _assignment(rng: random.Random, verb: str, words: list[str]) -> list[str]:
    """A field of what a command builds, mostly of what was chosen, by ``--set`` or as an option of its own."""
    fields = rng.choice(commands()[verb].fields)
    flag = f"--{(fields.option or '').replace('_', '-')}"
    chosen = next(iter(words[words.index(flag) + 1 :]), None) if flag in words else None
    known = fields.of(chosen, everywhere=chosen not in fields.table or rng.random() < 0.2)
    names = [name for name in known if (verb, name) not in LONG]
    if not names:
        return ["--set", "x=1"]
    name = rng.choice(names)
    default, flag = known[name].default, is_flag(known[name])
    if rng.random() < 0.3:
        value = _odd(rng, verb, name, isinstance(default, int | float) and not flag)
    elif flag:
        value = rng.choice(("yes", "no"))
    elif isinstance(default, int):
        value = str(rng.choice((1, 2, 3, default)) if abs(default) > 8 else default + rng.choice((-1, 0, 1)))
    elif isinstance(default, float):
        value = str(default * rng.choice((0.5, 1.0, 2.0)) + rng.choice((0.0, 0.1)))
    elif name in PLAUSIBLE:
        value = rng.choice(PLAUSIBLE[name])
    else:
        value = rng.choice((str(default), "1", "2", "0.5", "1,2", "none", *GRIDS, *PARAMETRIZATIONS))
    if rng.random() < 0.5:
        return ["--set", f"{fields.group}{'.' * bool(fields.group)}{name}={value}"]
    dashed = name.replace("_", "-")
    return [f"--{dashed}" if value != "no" else f"--no-{dashed}"] if flag else [f"--{dashed}", value]


def _spoil(rng: random.Random, verb: str, groups: Line) -> None:
    """Give one of the groups an odd value, or say it twice, or leave it out."""
    at = [i for i, group in enumerate(groups) if i]
    if not at:
        return
    i = rng.choice(at)
    group = groups[i]
    how = rng.choice(("odd", "odd", "odd", "twice"))
    if how == "twice":
        groups.append(list(group))
    elif group[0] == "--set" and len(group) == 2:
        key, _, value = group[1].partition("=")
        number = value.replace(".", "", 1).isdigit()
        groups[i] = ["--set", f"{key}={_odd(rng, verb, key.rpartition('.')[2], number)}"]
    elif len(group) == 2 and group[0].startswith("--"):
        number = group[1].replace(".", "", 1).isdigit()
        groups[i] = [group[0], _odd(rng, verb, group[0].removeprefix("--").replace("-", "_"), number)]
    elif not group[0].startswith("--"):
        groups[i] = [_odd(rng, verb, "run")]
