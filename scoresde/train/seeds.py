"""Train the same model with several seeds, and measure how much its figures vary from seed to seed.

The seed of a run determines the initial weights, the batches and the noise and, unless the data have their own test
part, which rows are held out. The figures x_1, ..., x_n of n seeds have

    mean = sum x_i / n,    sd^2 = sum (x_i - mean)^2 / (n - 1),    stderr = sd / sqrt(n).                         (1)

The standard deviation says how far the figure of another seed is likely to be from the mean, and the standard error how
well the mean is known. With n seeds, the standard deviation itself is known to about 1 / sqrt(2 (n - 1)): half of its
value for three seeds.

Each run is an ordinary run in a folder of its own, ``OUT-seed0`` and so on. The table is in ``OUT-seeds.json`` and
``OUT-seeds.txt``. If the same call is repeated, finished runs are kept, an unfinished run is resumed, and new seeds are
added. Rows of seeds that are not named again are kept. All runs of a table have the same number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import Preempted, Stopped, UsageError
from ..core.files import atomic, read_object, write_json
from ..core.parts import check_request, plain_request
from ..core.signals import check
from ..metrics.measurement import Measurement
from ..run.config import TrainConfig
from ..run.files import checkpoints, find_run, read_config
from ..run.origin import placed
from ..run.outcome import Outcome, outcome
from .frechet import Features
from .loop import fit, run_name
from .resume import finished
from .track import Track

__all__ = ["SeedTable", "Spread", "fit_seeds", "spread"]

FIGURES = {"loss": "loss", "validation": "validation", "used_step": "step used"}  # and the headings of their columns
# These settings may differ when a call is repeated.
FREE = (
    "seed",
    "steps",
    "warmup",
    "accumulate",
    "recompute",
    "workers",
    "keep",
    "compile",
    "frechet_every",
    "snapshots",
)


@dataclass(frozen=True)
class Spread:
    """The spread of a figure over n runs (equation 1).

    Attributes:
        n: Number of runs that have the figure.
        mean: The mean of the figures.
        sd: Their standard deviation, or NaN if there is only one.
        stderr: The standard error of the mean, or NaN if there is only one.
    """

    n: int
    mean: float
    sd: float
    stderr: float

    def __str__(self) -> str:
        return str(Measurement(self.mean, self.stderr))


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of figures, one for each run. Figures that are not finite are left out.

    >>> print(spread([1.0, 2.0, 3.0]))
    2.00 ± 0.58
    """
    known = [float(value) for value in values if math.isfinite(value)]
    n = len(known)
    mean = math.fsum(known) / n if n else math.nan
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in known) / (n - 1)) if n > 1 else math.nan
    return Spread(n, mean, sd, sd / math.sqrt(n) if n > 1 else math.nan)


@dataclass(frozen=True)
class SeedTable:
    """The figures of runs that differ only in their seeds.

    Attributes:
        base: The path that the names of the run folders begin with.
        runs: The figures of each run, keyed by seed.
    """

    base: Path
    runs: Mapping[int, Outcome]

    @property
    def file(self) -> Path:
        """The file of the table as JSON. That of the text has the same name and the suffix ``.txt``."""
        return self.base.with_name(f"{self.base.name}-seeds.json")

    def folder(self, seed: int) -> Path:
        """Return the run folder of a seed."""
        return self.base.with_name(f"{self.base.name}-seed{seed}")

    @property
    def spreads(self) -> dict[str, Spread]:
        """The spread of each figure, keyed by the name of the figure."""
        return {name: spread([float(getattr(run, name)) for run in self.runs.values()]) for name in FIGURES}

    def facts(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        runs = [{"seed": seed, "run": str(self.folder(seed)), **asdict(run)} for seed, run in self.runs.items()]
        return {"runs": _without_nan(runs), "spread": _without_nan({k: asdict(s) for k, s in self.spreads.items()})}

    def text(self) -> str:
        """Return the table as text, with a row for each run and three rows for the spread."""
        known = {name: s for name, s in self.spreads.items() if s.n}
        rows = [["seed", *(FIGURES[name] for name in known), "run"]]
        for seed, run in self.runs.items():
            rows.append([str(seed), *(_shown(getattr(run, name)) for name in known), str(self.folder(seed))])
        for name in ("mean", "sd", "stderr"):
            rows.append([name, *(_shown(getattr(s, name)) for s in known.values()), ""])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)

    def write(self, request: Mapping[str, Any]) -> None:
        """Write the table as JSON, with the ``request`` that it belongs to, and as text."""
        write_json(self.file, {"request": request, **self.facts()})
        with atomic(self.file.with_suffix(".txt")) as temporary:
            temporary.write_text(self.text() + "\n", encoding="utf-8")


def fit_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quiet: bool = False,
    changed_data: bool = False,
    edited: bool = False,
    redivided: bool = False,
    say: Callable[[str], object] = print,
    features: Features | None = None,
    track: Track = (),
) -> SeedTable:
    """Train a run for each seed, one after the other, and write a table of their figures.

    Args:
        config: The configuration, whose seed is replaced.
        seeds: Different integers >= 0.
        out: What the names of the run folders begin with (default: ``runs/DATA-SDE``).
        device, dtype, quiet: As in :func:`scoresde.fit`.
        changed_data, edited, redivided: As in :func:`scoresde.fit`, for the runs that are resumed.
        say: A function that shows one line of text.
        features, track: As in :func:`scoresde.fit`, for each run.

    Raises:
        UsageError: If a folder contains a run of another request, or if the runs of the table would have different
            numbers of steps. The message says what differs.
        Preempted: After SIGTERM or SIGUSR1, once the checkpoint of the current run is saved.
        Stopped: After Ctrl-C, once the checkpoint of the current run is saved.
    """
    config = placed(config)
    data = None
    if out is None:
        data = replace(config, seed=seeds[0]).load_data()
        out = Path("runs") / run_name(data.info, config)
    elif Path(out).name in ("", ".."):
        raise UsageError(
            f"the names of the runs of several seeds cannot begin with {str(out)!r}; choose a path that ends in a "
            "name, such as runs/a",
            parameter="out",
        )
    table = SeedTable(Path(out), {})
    request = _request(config, dtype)
    rows: dict[int, Outcome] = {}
    with _requested(table, seeds, request), _repeated(seeds, rows):
        before = [int(row["seed"]) for row in read_object(table.file).get("runs", [])]
        begun = _begun(table, {*before, *seeds}, edited)
        config = replace(config, steps=_same_steps(table, config.steps, begun, seeds))
        order = list(dict.fromkeys([*before, *seeds]))
        for seed in order:
            if seed in begun and finished(table.folder(seed), replace(begun[seed], steps=config.steps), edited=edited):
                rows[seed] = outcome(table.folder(seed), edited=edited)
            elif seed not in seeds:
                say(f"seed {seed}: {table.folder(seed)} is not a finished run, so it is left out of the table")
        if before:  # figures of fewer steps must not remain if training is stopped
            table = _ordered(table, rows, order)
            table.write(request)
        for number, seed in enumerate(seeds, 1):
            check()
            folder, began = table.folder(seed), seed in begun
            if seed in rows:
                say(f"seed {seed} ({number} of {len(seeds)}): {folder} is finished")
            else:
                say(f"seed {seed} ({number} of {len(seeds)}): {folder}{' is resumed' if began else ''}")
                given = data if number == 1 and not began else None
                fit(
                    replace(config, seed=seed), data=given, out=folder, resume=began, device=device, dtype=dtype,
                    quiet=quiet, changed_data=changed_data and began, edited=edited, redivided=redivided and began,
                    features=features, track=track,
                )  # fmt: skip
                rows[seed] = outcome(folder, edited=edited)
            table = _ordered(table, rows, order)
            table.write(request)
    return table


def _ordered(table: SeedTable, rows: Mapping[int, Outcome], order: Sequence[int]) -> SeedTable:
    """Return the table with the rows that are known, in the given order of their seeds."""
    return replace(table, runs={seed: rows[seed] for seed in order if seed in rows})


def _begun(table: SeedTable, seeds: Iterable[int], edited: bool) -> dict[int, TrainConfig]:
    """Return the stored configurations of the runs that exist, keyed by seed."""
    there = [seed for seed in sorted(seeds) if (table.folder(seed) / "config.json").is_file()]
    return {seed: TrainConfig.from_dict(read_config(find_run(table.folder(seed), edited=edited))) for seed in there}


def _same_steps(table: SeedTable, steps: int, begun: Mapping[int, TrainConfig], seeds: Sequence[int]) -> int:
    """Return the number of steps of all runs: ``steps``, or that of the runs that exist if it is 0.

    Raises:
        UsageError: If the table would contain runs with different numbers of steps.
    """
    known = {seed: stored.steps for seed, stored in begun.items() if not steps or seed not in seeds}
    if len({*known.values(), *([steps] if steps else [])}) <= 1:
        return steps or next(iter(known.values()), 0)
    told = ", ".join(f"{table.folder(seed)} has {count:,} steps" for seed, count in known.items())
    if not steps:
        raise UsageError(
            f"the runs of a table need the same number of steps, but {told}; state the number of steps for all",
            parameter="steps",
            value=max(known.values()),
        )
    raise UsageError(
        f"the runs of a table need the same number of steps, but {told}, and {steps:,} are asked for; name the other "
        "seeds as well, or choose another folder",
        parameter="out",
    )


def _request(config: TrainConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the settings that must be the same when a call is repeated, as plain JSON values."""
    stored = {name: value for name, value in config.to_dict().items() if name not in FREE}
    return plain_request({**stored, "dtype": str(dtype).removeprefix("torch.")})


@contextmanager
def _requested(table: SeedTable, seeds: Sequence[int], request: Mapping[str, Any]) -> Iterator[None]:
    """Check that the runs belong to the same request, and store the request until the table is written."""
    new = not table.file.is_file()
    if not new:
        check_request(request, read_object(table.file).get("request", {}), f"the runs of {table.file}")
    else:
        for folder in map(table.folder, seeds):
            if checkpoints(folder):
                raise UsageError(
                    f"{folder} already contains a run of another command, because there is no {table.file}; choose "
                    "another folder",
                    parameter="out",
                )
        write_json(table.file, {"request": request})
    try:
        yield
    finally:
        if new and not any(table.folder(seed).exists() for seed in seeds):
            table.file.unlink(missing_ok=True)


@contextmanager
def _repeated(seeds: Sequence[int], rows: Mapping[int, Outcome]) -> Iterator[None]:
    """Say in the message of a signal how to continue. ``rows`` are those of the runs that are finished."""
    try:
        yield
    except (Preempted, Stopped) as stop:
        done = set(rows) & set(seeds)
        stop.args = (f"{stop}; {len(done)} of {len(seeds)} seeds are finished, and the same command continues",)
        stop.parameter = stop.value = None
        raise


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Pad the cells of a row, which are numbers except for the first and the last."""
    padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return [row[0].ljust(widths[0]), *padded[1:-1], row[-1]]


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else "" if math.isnan(value) else f"{value:,.5g}"


def _without_nan(value: Any) -> Any:
    """Replace NaN by ``None``, because JSON does not have it."""
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
