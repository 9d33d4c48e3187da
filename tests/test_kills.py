"""Processes that are killed or told to stop at any moment: nothing is lost, and what goes on is bit for bit the same.

    FUZZ_SEED=7 FUZZ_KILLS=200 FUZZ_SIGNALS=200 pytest tests/test_kills.py -m slow -s

A tenth of the kills are before the first checkpoint, and a tenth while two processes fight for the folder. Half of them
fall on a file being opened, renamed or removed, which is where something could break, the others at any time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import forks
import lines
import numpy as np
import pytest
import stock as stocks

from scoresde.core.files import read_tensors

SEED = os.environ.get("FUZZ_SEED", "0")
MINUTES = float(os.environ.get("FUZZ_MINUTES", "15"))
KILLS = int(os.environ.get("FUZZ_KILLS", "30"))
SIGNALS = int(os.environ.get("FUZZ_SIGNALS", "30"))

STEPS = 40
NEW = f"train --data points.npy {lines.SMALL_MLP} --steps {STEPS} --batch 8 --out run --quiet".split()
ON = "train --resume run --quiet".split()
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


@pytest.fixture(scope="module")
def stock(scratch: Path) -> Path:
    folder = scratch / "data"
    stocks.make_data(folder)
    return folder


def watched(work: Callable[[], object], deadly: int = -1) -> Callable[[], None]:
    """Work that is killed at a certain event with a file, or says at its end how many there were."""

    def watching() -> None:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event in EVENTS:
                count += 1
                if count == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        finally:
            print(f"events {count}")

    return watching


def kept(run: Path) -> dict[str, object]:
    """All that a finished run is, but for how long it took, and for older checkpoints, which depend on where it
    stopped."""
    older = [path.name for path in sorted((run / "checkpoints").glob("step-*[0-9]"))[:-1]]
    files = [path for path in sorted(forks.tree(run)) if not any(name in path.split("/") for name in older)]
    facts: dict[str, object] = {"files": files}
    for path in files:
        if path.endswith(".safetensors"):
            tensors = read_tensors(run / path)
            facts |= {f"{path} {k}": (v.dtype, v.shape, v.numpy().tobytes()) for k, v in tensors.items()}
    for name in ("config.json", "data.json", "model.json", "validation.json"):
        facts[name] = (run / name).read_text() if (run / name).exists() else None
    rows = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    facts["metrics"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return facts


def words(run: Path) -> list[str]:
    """How a training is begun, or gone on with."""
    return ON if any((run / "checkpoints").glob("step-*[0-9]")) else NEW


def differs(run: Path, whole: dict[str, object]) -> str | None:
    """The first thing in which a run that went on differs from one that was never stopped."""
    found = kept(run)
    names = [name for name in (*whole, *found) if whole.get(name) != found.get(name)]
    if not names:
        return None
    if names[0] == "files":
        return f"other files: {sorted({*whole['files']} ^ {*found['files']})}"  # type: ignore[misc]
    return f"another {names[0]}"


def told(family: str, counts: Counter[str], faults: list[str], began: float) -> None:
    """Print what was tried; fail with what was wrong, once each."""
    spent = time.monotonic() - began
    text = f"{family}: seed {SEED}, {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))} in {spent:.0f} s"
    print(f"\n{text}, {len(faults)} faults")
    several = Counter(faults)
    if faults:
        pytest.fail("\n".join([text, *(f"[{n} x] {fault}" for fault, n in several.items())]), pytrace=False)


@pytest.mark.slow
def test_kills(scratch: Path, stock: Path) -> None:
    home = stocks.copied(stock, scratch / "life")  # each life is in the same place, which a run remembers
    outcome = forks.run(watched(forks.calls(*NEW)), home)
    assert outcome.code == 0, outcome.err
    whole, last = kept(home / "run"), outcome.seconds
    events = int(outcome.out.split()[-1])
    shutil.rmtree(home)
    rng, counts, faults, began = random.Random(f"{SEED} kills"), Counter[str](), list[str](), time.monotonic()

    def kill(home: Path, early: bool) -> None:
        """Go on with a run and kill it."""
        line = words(home / "run")
        if rng.random() < 0.5:
            deadly = rng.randrange(1, events // 6 if early else events)
            outcome = forks.run(watched(forks.calls(*line), deadly), home)
        else:
            fork = forks.start(forks.calls(*line), home)
            if not fork.wait(rng.uniform(0.0, last / 8 if early else last)):
                fork.kill()
            outcome = fork.outcome()
        if outcome.code == -signal.SIGKILL:
            counts["kills before the first checkpoint" if words(home / "run") == NEW else "later kills"] += 1
        elif outcome.code:
            faults.append(f"`{line[0]} {line[1]}` of a run that was killed: exit code {outcome.code}: {outcome.said}")

    def fight(home: Path) -> None:
        """Two at once, of which one is killed or none."""
        pair = []
        for _ in range(2):
            pair.append(forks.start(forks.calls(*words(home / "run")), home))
            pair[-1].wait(rng.uniform(0.0, last / 4))
        victim = rng.choice((0, 1, None))
        if victim is not None:
            pair[victim].kill()
        while not any(ended := [fork.wait(0.01) for fork in pair]):
            pass
        holder = None if all(ended) else pair[ended.index(False)]  # whoever goes on when the other has ended,
        holder = None if holder is not None and holder.wait(0.05) else holder  # and is not about to end as well
        outcomes = [fork.outcome() for fork in pair]
        counts["fights"] += 1
        counts["kills in a fight"] += sum(outcome.code == -signal.SIGKILL for outcome in outcomes)
        for fork, outcome in zip(pair, outcomes, strict=True):
            fault = outcome.fault() if outcome.code != -signal.SIGKILL else None
            if fault is not None:
                faults.append(f"of two at once: {fault}: {outcome.said}")
            elif outcome.code > 0 and holder not in (None, fork) and str(holder.pid) not in outcome.err:
                said = f"{outcome.code}: {outcome.err[-400:]!r}"
                faults.append(f"of two at once, one does not say who holds the folder: {said}")

    def finish(home: Path) -> None:
        line = words(home / "run")
        outcome = forks.run(line, home)
        fault = outcome.fault() or (f"exit code {outcome.code}" if outcome.code else None)
        if fault is None:
            fault = differs(home / "run", whole)
        if fault is not None:
            faults.append(f"the last `{line[0]} {line[1]}`: {fault}: {outcome.said}")

    while sum(n for what, n in counts.items() if "kills" in what) < KILLS:
        if time.monotonic() - began > 60 * MINUTES or len(faults) > KILLS:
            break
        home = stocks.copied(stock, scratch / "life")
        for _ in range(2):
            if counts["kills before the first checkpoint"] < KILLS / 10:
                kill(home, early=True)
        if counts["kills in a fight"] < KILLS / 10:
            fight(home)
        for _ in range(4):
            kill(home, early=False)
        finish(home)
        shutil.rmtree(home)
    told("kills", counts, faults, began)


# -------------------------------------------------------------------------------------------------------------- signals

LINES = {
    "train": f"train --data points.npy {lines.SMALL_MLP} --steps {STEPS} --batch 8 --out told",
    "resume": "train --resume runs/points --steps 300",
    "sample": "sample runs/points --n 64 --batch 4 --solver ode --rtol 1e-4 --save npz --out told",
    "likelihood": "likelihood runs/points --limit 16 --batch 2 --save npz --out told",
    "evaluate": "evaluate runs/points --n 40 --features pixels --solver ode --rtol 1e-4 --batch 4 --out told",
    "bench": "bench runs/points --n 16 --nfe 5,10,20 --solvers euler,ddim --out told",
    "classifier": "classifier --data labelled.npz --steps 200 --width 8 --out told",
    "reflow": "reflow runs/points --pairs 64 --steps 100 --out told",
    "plot reverse": "plot reverse runs/points --n 50 --out told/picture.png",
    "plot compass": "plot compass runs/points --n 50 --out told/picture.png",
    "plot trajectories": "plot trajectories runs/points --n 50 --out told/picture.png",
    "plot schedule": "plot schedule --out told/picture.png",
    "plot forward": "plot forward --data points.npy --out told/picture.png",
    "data inspect": "data inspect photos",
    "list": "list data",
    "demo": "demo single-image --size 8 --steps 10 --columns 3 --frames 3 --out told",
}
GO_ON = {"sample": ["--resume"], "likelihood": ["--resume"]}


def numbers(folder: Path) -> list[tuple[str, str, bytes]]:
    """The arrays that a command wrote."""
    found = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            found += [(f"{file.name} {key}", str(arrays[key].dtype), arrays[key].tobytes()) for key in sorted(arrays)]
    return found


@pytest.mark.slow
def test_signals(scratch: Path, stock: Path) -> None:
    trained = stocks.make_stock(scratch / "signalled")
    rng, counts, faults, began = random.Random(f"{SEED} signals"), Counter[str](), list[str](), time.monotonic()
    seconds: dict[str, float] = {}
    whole: dict[str, object] = {}
    known: dict[str, list[tuple[str, str, bytes]]] = {}
    order = [name for _ in range(SIGNALS // len(LINES) + 1) for name in LINES][:SIGNALS]
    for name in order:
        if time.monotonic() - began > 60 * MINUTES:
            break
        line = LINES[name].split()
        home = stocks.copied(trained, scratch / "signal")
        if name not in seconds:
            outcome = forks.run(line, home)
            assert outcome.code == 0, f"{name}: {outcome.err}"
            seconds[name], known[name] = outcome.seconds, numbers(home / "told")
            if name == "train":
                whole = kept(home / "told")
            shutil.rmtree(home)
            home = stocks.copied(trained, home)
        number = rng.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
        before = forks.tree(home)
        fork = forks.start(forks.calls(*line), home)
        fork.wait(0.05 + rng.uniform(0.0, seconds[name]))
        fork.kill(number)
        outcome = fork.outcome()
        if name == "train" and outcome.code == (130 if number == signal.SIGINT else 75):
            again = forks.run("train --resume told --quiet".split(), home)
            if again.code or differs(home / "told", whole):
                faults.append(f"training that goes on: exit code {again.code}, {differs(home / 'told', whole)}")
        counts["in time" if outcome.code else "too late"] += 1
        right = 130 if number == signal.SIGINT else 75
        wrong = outcome.fault()
        if wrong is None and outcome.code not in (0, right):
            wrong = f"exit code {outcome.code}"
        wrongs = [] if wrong is None else [wrong]
        wrongs += [re_numbered(what) for what in forks.left(before, forks.tree(home))]
        if not wrongs and outcome.code and name in GO_ON and (home / "told").exists():  # what was finished is kept
            again = forks.run([*line, *GO_ON[name]], home)
            if again.code or numbers(home / "told") != known[name]:
                wrongs.append(f"going on: exit code {again.code}, perhaps other numbers: {again.said}")
        faults += [f"{signal.Signals(number).name} in {name}: {what}" for what in wrongs]
        shutil.rmtree(home)
    told("signals", counts, faults, began)


def re_numbered(text: str) -> str:
    """Without the number of a process."""
    return "".join("#" if c.isdigit() else c for c in text)


# --------------------------------------------------------------------------------------------------- the harness itself


def test_a_kill_falls_on_an_event(scratch: Path) -> None:
    def work() -> None:
        for i in range(5):
            Path(f"file-{i}").write_text("text")

    home = forks.handed(stocks.empty(scratch / "events"))
    counted = forks.run(watched(work), home)
    assert counted.code == 0
    events = int(counted.out.split()[-1])
    assert events >= 5
    for file in home.iterdir():
        file.unlink()
    assert forks.run(watched(work, events - 1), home).code == -signal.SIGKILL
    assert len(list(home.iterdir())) == 3


def test_a_difference_is_seen(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "seconds": 3}\n')
    whole = kept(tmp_path)
    assert differs(tmp_path, whole) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "seconds": 4}\n')
    assert differs(tmp_path, whole) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "seconds": 4}\n')
    assert differs(tmp_path, whole) == "another metrics"
    (tmp_path / ".x.tmp-1").touch()
    assert differs(tmp_path, whole) == "other files: ['.x.tmp-1']"
