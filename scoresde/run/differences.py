"""Compare two runs: what a reader needs in order to tell why their figures differ.

The differences are grouped by what they concern, with what usually matters most first: the data, the model, the
settings of the training, how the training went, and the environment. What changes neither the weights nor their choice,
such as the name of a folder or the number of checkpoints to keep, is ignored unless it is asked for, and listed as
ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from ..codec import Space, space_text, to_dict
from ..core.errors import ScoresdeError
from ..core.files import read_object
from ..core.registry import fields_of, resolve
from ..core.text import one_line
from ..data import NAMES, DataInfo
from ..data.content import Identity
from .config import TrainConfig, plain
from .environment import in_words, sessions_of
from .files import checkpoints, find_run, newest_checkpoint, read_config
from .origin import kept_identity
from .outcome import Outcome, outcome
from .run import described
from .settings import PARTS
from .spec import ModelSpec, Part

__all__ = ["Comparison", "Difference", "Group", "compare"]

# Settings that change neither the weights nor the choice between them.
HARMLESS = ("keep", "save_minutes", "sample_every", "workers", "frechet_every", "snapshots")
# Settings that are compared with the data or, with all their defaults, with the model.
OF_DATA = ("size", "fit", "layout", "on_bad", "split", "test_fraction")
OF_MODEL = ("sde", "sde_options", "shift", "predict", "predict_options", "network_options", "learn_variance")
NAMED = ("weighting", "t_sampler", "decay")

# What is compared of a session, and what it is called. The rest of a session is ignored.
PLACES = {
    "scoresde": "scoresde", "code": "source code of scoresde", "torch": "torch", "numpy": "numpy", "python": "python",
    "device": "device", "device_name": "GPU", "cuda": "CUDA", "cpu": "CPU", "threads": "threads",
    "lanes": "lanes", "dtype": "dtype",
    "matmul": "matmul precision", "platform": "platform",
}  # fmt: skip

LONGEST = 44  # characters of a value in a table, unless it looks like another one
UNIMPORTANT = {"started": "date", "command": "command", "cpus": "number of CPUs"}

ROUNDING = "sums are rounded in another way, and the difference grows from step to step"
# What a difference leads to, where a reader may not know.
EFFECTS = {
    "seed": "other initial weights, batches, noise and held-out rows (unless the data have a test part)",
    "decay": "another learning rate at each step",
    "steps": "also another learning rate at each step, because its decay ends with the last step",
    "batch": "also another number of samples in all",
    "validate_every": "follows from the number of validation rows unless it was set",
    "precision": ROUNDING, "compile": ROUNDING, "channels_last": ROUNDING, "lanes": ROUNDING,
    "accumulate": ROUNDING, "recompute": f"{ROUNDING}; dropout draws other masks", "threads": ROUNDING, "CPU": ROUNDING,
    "torch": ROUNDING, "numpy": ROUNDING, "device": ROUNDING, "GPU": ROUNDING, "CUDA": ROUNDING, "dtype": ROUNDING,
    "matmul precision": ROUNDING, "division of a batch": f"{ROUNDING}; dropout draws other masks",
    "average of another width": "the weights in use were averaged after training",
    "test_fraction": "other rows are held out", "split": "other rows are held out",
}  # fmt: skip
# Differences that follow from other training rows, and therefore from another seed.
DERIVED = (
    "training rows", "of these for validation", "test rows", "lowest value", "highest value", "units",
    "predict data_std", "weighting data_std", "sde sigma_max", "validate_every",
)  # fmt: skip
# What the loss depends on besides the weights: losses of runs that differ in it cannot be compared.
LOSS = ("sde", "shift", "predict", "weighting", "t_sampler", "learn_variance", "space", "coupling", "cond")
CAUSES = ("seed", "data", "path", "content", "rows that the other run lacks", *OF_DATA)


@dataclass(frozen=True)
class Difference:
    """One difference between two runs.

    Attributes:
        what: What differs.
        first, second: Its value in each of the runs, as plain values.
        note: What it leads to, or "".
    """

    what: str
    first: Any
    second: Any
    note: str = ""


@dataclass(frozen=True)
class Group:
    """All differences of one kind.

    Attributes:
        name: What they concern.
        told: What the runs have in common, in a few words.
        differences: The differences.
        unknown: What cannot be compared and why, or "".
    """

    name: str
    told: str
    differences: tuple[Difference, ...] = ()
    unknown: str = ""


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs.

    Attributes:
        first, second: The run folders.
        groups: The differences, grouped. The groups come in the order of their usual importance.
        results: The figures of both runs, whether they differ or not.
        ignored: Differences that change neither the weights nor their choice.
        same_weights: Whether the weights in use are equal bit for bit, or ``None`` if a run has none.
    """

    first: Path
    second: Path
    groups: tuple[Group, ...]
    results: tuple[Difference, ...]
    ignored: tuple[Difference, ...]
    same_weights: bool | None

    @property
    def causes(self) -> dict[str, list[str]]:
        """What differs in each group, without what follows from other differences."""
        found = {group.name: [d.what for d in group.differences] for group in self.groups}
        if any(what in CAUSES for what in chain(*found.values())):
            found = {name: [what for what in whats if what not in DERIVED] for name, whats in found.items()}
        if found["data"] != ["path"]:  # the content is what matters
            found["data"] = [what for what in found["data"] if what != "path"]
        return {name: whats for name, whats in found.items() if whats}

    @property
    def verdict(self) -> str:
        """What the differences mean for the figures, in one sentence."""
        differing = self.causes
        unknown = [group.name for group in self.groups if group.unknown]
        if self.same_weights:
            return "the weights in use are equal bit for bit, so no difference changes the model"
        if not differing:
            but = f"; {_listed(unknown)} cannot be compared completely" if unknown else ""
            return f"nothing that was recorded explains a difference of the figures{but}"
        if differing == {"settings": ["seed"]}:
            return "the runs differ only in their seeds, so their figures differ by chance"
        where = [f"{name} ({', '.join(whats[:4])}{', ...' * (len(whats) > 4)})" for name, whats in differing.items()]
        if list(differing) == ["environment"] and not set(differing["environment"]) & {"scoresde", PLACES["code"]}:
            return f"the runs differ only in the {where[0]}, so their figures differ by rounding, as far as is recorded"
        return f"the figures may differ because of the {_listed(where)}"

    def facts(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        return {
            "first": str(self.first), "second": str(self.second), "verdict": self.verdict,
            "groups": {g.name: {k: v for k, v in asdict(g).items() if k != "name"} for g in self.groups},
            "results": [asdict(d) for d in self.results], "ignored": [asdict(d) for d in self.ignored],
            "same_weights": self.same_weights,
        }  # fmt: skip

    def text(self, *, everything: bool = False) -> str:
        """Return the comparison as text: the verdict, what differs, what is the same, the results, and what is ignored.

        Args:
            everything: Whether to show the values of what is ignored.
        """
        differing = [group for group in self.groups if group.differences]
        differing.sort(key=lambda group: group.name not in self.causes)  # what only follows from the others comes last
        tables = [(f"{g.name}{f' ({g.unknown})' if g.unknown else ''}", g.differences) for g in differing]
        tables += [("results", self.results), *([("ignored", self.ignored)] if everything and self.ignored else [])]
        rows = {title: [(d.what, *_both(d.first, d.second), d.note) for d in found] for title, found in tables}
        heading = ("", "A", "B", "")
        widths = [max(len(row[i]) for row in (heading, *chain(*rows.values()))) for i in range(3)]

        def line(row: Sequence[str]) -> str:
            return "  ".join(["", *(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip()

        lines = [f"A: {self.first}", f"B: {self.second}", self.verdict, "", line(heading)]
        for title, found in rows.items():
            lines += [title, *map(line, found)]
        same = [group for group in self.groups if not group.differences]
        lines += [""] * bool(same)
        lines += [f"{group.name}: {group.unknown or f'the same ({group.told})'}" for group in same]
        if self.ignored and not everything:
            lines.append(f"ignored, because it does not change the weights: {', '.join(d.what for d in self.ignored)}")
        return "\n".join(lines)


def compare(first: str | Path, second: str | Path, *, edited: bool = False) -> Comparison:
    """Compare two runs, which may be unfinished, or of an earlier version.

    Args:
        first, second: The run folders, or the names of runs under ``runs/``.
        edited: Whether to accept runs whose files were changed after they were written.

    Raises:
        CheckpointError: If a run does not exist, or a file of it is damaged.
    """
    a, b = (_Side(find_run(run, edited=edited), edited) for run in (first, second))
    groups = (_data(a, b), _model(a, b), _settings(a, b), _training(a, b), _environment(a, b))
    weights = [side.outcome.weights for side in (a, b)]
    same = weights[0] == weights[1] if all(weights) else None
    return Comparison(a.folder, b.folder, groups, _results(a, b, groups), _ignored(a, b), same)


@dataclass
class _Side:
    """What is known about one of the runs."""

    folder: Path
    edited: bool = False
    config: TrainConfig = field(init=False)
    info: DataInfo = field(init=False)
    spec: ModelSpec = field(init=False)

    def __post_init__(self) -> None:
        self.config = TrainConfig.from_dict(read_config(self.folder))
        self.info, self.spec = described(self.folder, self.config)

    @cached_property
    def outcome(self) -> Outcome:
        return outcome(self.folder, edited=self.edited)

    @cached_property
    def identity(self) -> Identity | None:
        return kept_identity(self.folder)

    @cached_property
    def sessions(self) -> list[dict[str, Any]]:
        return sessions_of(self.folder)

    @cached_property
    def state(self) -> Mapping[str, Any]:
        """The content of ``state.json`` of the newest checkpoint, or nothing if there is none."""
        if not checkpoints(self.folder):
            return {}
        return read_object(newest_checkpoint(self.folder, edited=self.edited) / "state.json")

    @cached_property
    def dtype(self) -> str | None:
        """The precision of the training, or ``None`` for a run that is too old to have stored it."""
        return read_object(self.folder / "config.json").get("dtype")


def _pairs(named: Iterable[tuple[str, Callable[[_Side], Any]]], a: _Side, b: _Side) -> tuple[Difference, ...]:
    """Return the values that differ."""
    found = [(what, plain(get(a)), plain(get(b))) for what, get in named]
    return tuple(_difference(what, x, y) for what, x, y in found if x != y)


def _difference(what: str, first: Any, second: Any) -> Difference:
    return Difference(what, first, second, EFFECTS.get(what, "follows from the rows" if what in DERIVED else ""))


def _options(first: Part | None, second: Part | None, what: str) -> list[Difference]:
    """Compare the name and the options of a part, with the defaults of options that are not stated."""
    if first is None or second is None:
        one, other = ("an object" if part is None else part.name for part in (first, second))
        return [Difference(what, one, other)] if first is not second else []
    first, second = (_with_defaults(part, PARTS[what]) for part in (first, second))
    if first.name != second.name:
        one, other = (f"{part.name}{_in_brackets(part.options)}" for part in (first, second))
        return [Difference(what, one, other)]
    ours, theirs = plain(first.options), plain(second.options)
    return [
        _difference(f"{what} {name}", ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]


def _with_defaults(part: Part, table: Mapping[str, str]) -> Part:
    """Return a part with the defaults of its options, which are unknown for a class of the user."""
    known = fields_of(resolve(part.name, table)) if part.name in table else {}
    return Part(part.name, {k: p.default for k, p in known.items() if p.default is not p.empty} | dict(part.options))


def _in_brackets(options: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {_shown(value)}" for name, value in options.items())
    return f" ({told})" if told else ""


# -------------------------------------------------------------------------------------------------------------- groups


def _data(a: _Side, b: _Side) -> Group:
    built_in = [side.config.data in NAMES for side in (a, b)]
    known = [side.identity for side in (a, b)]
    found: list[Difference] = []
    unknown = ""
    content = "the same content"
    if all(built_in) or any(built_in):
        found += _pairs([("data", lambda side: side.config.data)], a, b)
        content = f"the built-in data {a.config.data}"
    elif known[0] is None or known[1] is None:
        lacking = _listed([str(side.folder) for side, one in zip((a, b), known, strict=True) if one is None])
        unknown = f"the content cannot be compared, because {lacking} has no hashes of the rows"
        found += _pairs([("path", lambda side: side.config.data)], a, b)
    else:
        found += _rows(known[0], known[1])
        if found:
            found += _pairs([("path", lambda side: side.config.data)], a, b)
    names = ("n_train", "n_validation", "n_test", "kind", "shape", "low", "high", "levels", "classes", "names", "known")
    told = {"n_train": "training rows", "n_validation": "of these for validation", "n_test": "test rows",
            "low": "lowest value", "high": "highest value", "names": "columns", "known": "conditions"}  # fmt: skip
    info = [(told.get(name, name), _getter("info", name)) for name in names]
    found += _pairs(info, a, b)
    found += _pairs([(name, _getter("config", name)) for name in OF_DATA], a, b)
    rows = f"{a.info.n_train:,} training and {a.info.n_test:,} test rows of shape {' x '.join(map(str, a.info.shape))}"
    return Group("data", f"{content}, {rows}", tuple(found), unknown)


def _getter(owner: str, name: str) -> Callable[[_Side], Any]:
    def get(side: _Side) -> Any:
        value = getattr(getattr(side, owner), name)
        return value.to_dict() if name == "known" else space_text(value) if isinstance(value, Space) else value

    return get


def _rows(first: Identity, second: Identity) -> list[Difference]:
    """Compare the content of the rows by their hashes."""
    state, new, missing = first.compared(second)
    if first.large or second.large:
        return [Difference("content", f"{first.order:016x}", f"{second.order:016x}")] if state != "same" else []
    if state == "re-sorted":
        return [Difference("order of the rows", "one order", "another order", "batches are made of other rows")]
    rows = [f"{n:,} of {len(side.hashes):,}" for n, side in ((missing, first), (new, second))]
    if state != "same":
        return [Difference("rows that the other run lacks", *rows)]
    retold = first.retold(second)
    return [Difference("conditions", "as given", f"{retold:,} rows have other conditions")] if retold else []


def _model(a: _Side, b: _Side) -> Group:
    found = [
        *_options(a.spec.path, b.spec.path, "sde"),
        *_pairs([("shift", lambda side: side.spec.shift)], a, b),
        *_options(a.spec.parametrization, b.spec.parametrization, "predict"),
        *_options(a.spec.network, b.spec.network, "network"),
        *_pairs([("learn_variance", lambda side: side.spec.learn_variance)], a, b),
    ]
    ours, theirs = (plain(to_dict(side.spec.codec)) for side in (a, b))
    names = [" + ".join(part["name"] for part in codec) for codec in (ours, theirs)]
    if names[0] != names[1]:
        found.append(Difference("space and units", names[0], names[1]))
    elif ours != theirs:
        found.append(_difference("units", _numbers(ours), _numbers(theirs)))
    named = "a network of its own" if a.spec.network is None else a.spec.network.name
    return Group("model", f"{a.spec.path.name}, {a.spec.parametrization.name}, {named}", tuple(found))


def _numbers(codec: Sequence[Mapping[str, Any]]) -> str:
    """Format the numbers in a codec, apart from those with many values."""
    return _shown({name: value for part in codec for name, value in part["options"].items()})


def _settings(a: _Side, b: _Side) -> Group:
    taken = {"data", "ema", *OF_DATA, *OF_MODEL, *HARMLESS, *(f"{name}_options" for name in NAMED), *NAMED}
    # The SDE, the network and what else the model needs are compared by the model.
    names = [name for name in a.config.to_dict() if name not in taken]
    found = list(_pairs([(name, _getter("config", name)) for name in names], a, b))
    found += _pairs([("ema", _used_average), ("average of another width", _averaged)], a, b)
    for name in NAMED:
        parts = [Part(side.config.name(name), getattr(side.config, f"{name}_options")) for side in (a, b)]
        found += _options(parts[0], parts[1], name)
    config = a.config
    told = f"{config.steps:,} steps of {config.batch} samples, learning rate {config.lr:g}, seed {config.seed}"
    return Group("settings", told, tuple(found))


def _used_average(side: _Side) -> str:
    """Return the profile of the average that is used, which is the first."""
    return str(side.config.profiles[0])


def _averaged(side: _Side) -> str | None:
    """Return the average that a run contains if it was computed after training, and otherwise nothing."""
    told = read_object(side.folder / "config.json").get("averaged")
    return f"width {told['sigma_rel']:g} from {told['from']}" if isinstance(told, dict) else None


def _training(a: _Side, b: _Side) -> Group:
    def division(side: _Side) -> str:
        processes, parts = side.state.get("divided", [1, 1])
        told = [f"{n} {what}{'es' * (what == 'process' and n > 1)}{'s' * (what == 'part' and n > 1)}" for n, what in
                ((processes, "process"), (parts, "part"))]  # fmt: skip
        return " with ".join(told)

    named: list[tuple[str, Callable[[_Side], Any]]] = [
        ("steps done", lambda side: side.outcome.step),
        ("division of a batch", division),
        ("parts halved for memory", lambda side: bool(side.state.get("short"))),
    ]
    return Group("training", f"{a.outcome.step:,} steps done, {division(a)} for a batch", _pairs(named, a, b))


def _environment(a: _Side, b: _Side) -> Group:
    lacking = [str(side.folder) for side in (a, b) if not side.sessions]
    dtypes = _pairs([("dtype", lambda side: side.dtype)], a, b) if a.dtype and b.dtype else ()
    if lacking:
        known = next((side for side in (a, b) if side.sessions), None)
        has = f"; {known.folder} was trained with {in_words(known.sessions)}" if known is not None else ""
        return Group("environment", "", dtypes, f"it was not recorded for {_listed(lacking)}{has}")
    names = [(what, _over_sessions(name)) for name, what in PLACES.items()]
    found = _pairs(names, a, b)
    # The commits are shown with the code, because they alone make no difference.
    told = [replace(d, first=_source(a), second=_source(b)) if d.what == PLACES["code"] else d for d in found]
    return Group("environment", in_words(a.sessions), tuple(told))


def _over_sessions(name: str) -> Callable[[_Side], Any]:
    """Return a function that gives the value of all sessions of a run, or their different values in order."""

    def get(side: _Side) -> Any:
        values = list(dict.fromkeys(str(session.get(name)) for session in side.sessions))
        return side.sessions[0].get(name) if len(values) == 1 else " then ".join(values)  # "" without sessions

    return get


def _source(side: _Side) -> str:
    """Return the digest of the source code and, for a checkout, its commit."""
    commit = _over_sessions("commit")(side)
    return f"{_over_sessions('code')(side)} (commit {str(commit)[:9]})" if commit else str(_over_sessions("code")(side))


def _results(a: _Side, b: _Side, groups: Iterable[Group]) -> tuple[Difference, ...]:
    """Return the figures of both runs that at least one of them has."""
    figures: list[tuple[str, Callable[[_Side], Any]]] = [
        ("training loss, last tenth", lambda side: side.outcome.loss),
        ("validation loss", lambda side: side.outcome.validation),
        ("likelihood", _likelihood),
        ("weights in use", lambda side: f"{side.outcome.used} (step {side.outcome.used_step:,})"),
        ("digest of the weights", lambda side: side.outcome.weights[:12] or None),
    ]
    differing = {d.what for group in groups for d in group.differences}
    rows = bool(differing & {*CAUSES, *DERIVED})
    other = any(what.partition(" ")[0] in LOSS for what in differing - {*DERIVED})
    notes = {
        "training loss, last tenth": "not comparable: the losses are defined differently" if other else "",
        "validation loss": "not comparable: the losses are defined differently" if other else "on other rows" * rows,
    }
    found = [Difference(what, _known(get(a)), _known(get(b)), notes.get(what, "")) for what, get in figures]
    return tuple(d for d in found if d.first is not None or d.second is not None)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def _likelihood(side: _Side) -> str | None:
    """Return the likelihood of the first data set that ``scoresde likelihood`` has written, if any."""
    path = side.folder / "likelihood" / "likelihood.json"
    if not os.path.isfile(path):
        return None
    try:
        first = read_object(path)["sets"][0]
        return one_line(f"{first['mean']:.4f} ± {first['stderr_mean']:.4f} {first['unit']}")
    except (ScoresdeError, KeyError, IndexError, TypeError, ValueError):  # unfinished, or of another version
        return None


def _ignored(a: _Side, b: _Side) -> tuple[Difference, ...]:
    named: list[tuple[str, Callable[[_Side], Any]]] = [("folder", lambda side: str(side.folder))]
    named += [(name, _getter("config", name)) for name in HARMLESS]
    named.append(("averages that are not used", lambda side: ", ".join(map(str, side.config.profiles[1:])) or "none"))
    named += [("path of the data", lambda side: side.config.data)]
    named += [(what, _over_sessions(name)) for name, what in UNIMPORTANT.items()]
    named.append(("number of sessions", lambda side: len(side.sessions) or None))
    return tuple(d for d in _pairs(named, a, b) if all(x not in (None, "") for x in (d.first, d.second)))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _both(first: Any, second: Any) -> tuple[str, str]:
    """Format two values, in full only if they look the same otherwise."""
    full = _shown(first), _shown(second)
    short = _shortened(full[0]), _shortened(full[1])
    return short if short[0] != short[1] or full[0] == full[1] else full


def _shortened(text: str) -> str:
    """Shorten a text to its beginning, or a path to its end."""
    if len(text) <= LONGEST:
        return text
    return f"...{text[3 - LONGEST :]}" if text.startswith(("/", "~")) else f"{text[: LONGEST - 3]}..."


def _shown(value: Any) -> str:
    """Format a value on one line."""
    if value is None:
        text = "none"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, list):
        text = ", ".join(map(_shown, value))
    elif isinstance(value, Mapping):
        text = ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    else:
        text = one_line(value)
    return text
