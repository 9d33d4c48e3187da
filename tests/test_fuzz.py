"""Random command lines, damaged run folders and damaged data: an answer or an error, and never a wrong result.

The slow tests try a few dozen cases of each family; more of them, others, or one again are asked for by

    FUZZ_SEED=7 FUZZ_LINES=3000 FUZZ_BYTES=1000 FUZZ_MEANINGS=600 FUZZ_DATA=600 pytest tests/test_fuzz.py -m slow -s
    FUZZ_SEED=7 FUZZ_CASE=12 pytest tests/test_fuzz.py -m slow -s -k lines

A case is a function of the seed and its number. ``FUZZ_MINUTES`` ends a family early, ``FUZZ_LIMIT`` is how many
seconds of work a command may take (three times as many by the clock), ``FUZZ_REPORT`` names a file for the faults.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import damage
import forks
import lines
import numpy as np
import pytest
import stock as stocks

from scoresde.core.files import read_tensors

SEED = os.environ.get("FUZZ_SEED", "0")
MINUTES = float(os.environ.get("FUZZ_MINUTES", "15"))
CASE = os.environ.get("FUZZ_CASE")
REPORT = os.environ.get("FUZZ_REPORT")

codes: Counter[int] = Counter()  # of the commands of a family


@dataclass(frozen=True)
class Fault:
    """Something that must not be: what, in which command, and what the command said."""

    what: str
    line: list[str]
    said: str = ""
    place: str = ""

    @property
    def kind(self) -> str:
        """The same for faults of one cause, as far as can be known."""
        about = self.place or re.sub(r"\d+", "#", self.said)[:60]
        verb = " ".join(self.line[: 2 if self.line[:1] == ["plot"] else 1])
        return " | ".join((re.sub(r"\d+", "#", self.what), verb, about))

    def __str__(self) -> str:
        brief = (word if len(word) < 80 else f"{word[:60]}...({len(word)})" for word in self.line)
        shown = " ".join(word if re.fullmatch(r"[\w./,=:+-]+", word) else repr(word) for word in brief)
        at = f"\n    at: {self.place}" * bool(self.place)
        return f"{self.what}\n    scoresde {shown}\n    said: {self.said[:300]}{at}"


@pytest.fixture(scope="session")
def stock(scratch: Path) -> Path:
    return stocks.make_stock(scratch / "stock")


def explore(
    family: str, count: int, scratch: Path, case: Callable[[random.Random, Path], tuple[str, list[Fault]]]
) -> None:
    """Try the cases of a family; say how many, and fail with the faults, one of each kind."""
    if os.getuid() == 0 and not forks.handed.gives_up:  # type: ignore[attr-defined]
        pytest.skip("as root, which cannot be given up here, a path might reach beyond the folder")
    chosen = range(count) if CASE is None else [int(CASE)]
    found: dict[str, list[tuple[int, str, Fault]]] = {}
    began, done, faulty = time.monotonic(), 0, 0
    for i in chosen:
        if time.monotonic() - began > 60 * MINUTES:
            break
        home = scratch / f"{family}-{i}"
        try:
            what, faults = case(random.Random(f"{SEED} {family} {i}"), home)
        finally:
            for folder in (home, *(p for p in home.rglob("*") if p.is_dir() and not p.is_symlink())):
                folder.chmod(0o755)
            shutil.rmtree(home)
        done += 1
        faulty += bool(faults)
        for fault in faults:
            found.setdefault(fault.kind, []).append((i, what, fault))
            if REPORT:
                with open(REPORT, "a", encoding="utf-8", errors="backslashreplace") as file:
                    fields = (family, SEED, i, what, fault.kind, fault.what, fault.line, fault.said, fault.place)
                    file.write(json.dumps(fields) + "\n")
    ended = ", ".join(f"{codes[code]} x {code}" for code in sorted(codes))
    told = f"{family}: seed {SEED}, {done} of {len(chosen)} cases in {time.monotonic() - began:.0f} s, {faulty} faulty"
    told += f" (exit codes: {ended})"
    codes.clear()
    print(f"\n{told}")
    listed = [f"[{len(cases)} x] case {i}, {what}: {fault}" for cases in found.values() for i, what, fault in cases[:1]]
    if found:
        pytest.fail("\n".join([told, *listed]), pytrace=False)


def judged(outcome: forks.Outcome, words: list[str], home: Path, before: dict[str, int]) -> list[Fault]:
    """The faults of a command that any command may have."""
    found = []
    codes[outcome.code] += 1
    fault = outcome.fault()
    if fault is not None:
        found.append(Fault(fault, words, outcome.said, _place(outcome.err)))
    if fault is None or not outcome.hung:
        failed = outcome.code not in (0, 4)  # with 4 the rows that did not fail are kept
        found += [Fault(what, words, outcome.said) for what in forks.left(before, forks.tree(home), failed)]
    in_json = "--json" in words[:3] and not {"--help", "--help-all"} & {*words}
    if outcome.code == 0 and in_json and not words[words.index("--json") - 1].startswith("-"):
        found += [Fault(what, words, outcome.out[:200]) for what in _misprinted(outcome.out, home)]
    return found


def _place(err: str) -> str:
    """Where in the package a traceback ends."""
    places = re.findall(r'File "[^"]*/(scoresde/[^"]+)", line (\d+)', err)
    return ":".join(places[-1]) if places else ""


def _misprinted(out: str, home: Path) -> Iterator[str]:
    """What is wrong with a result in JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        found = json.loads(out, parse_constant=refuse)
    except ValueError as error:
        yield f"prints no JSON: {error}"
        return
    if isinstance(found, dict):
        named = [
            *(found.get("files") or []),
            *(found[key] for key in ("run", "folder") if isinstance(found.get(key), str)),
        ]
        yield from (f"names {name}, which is not there" for name in named if not (home / name).exists())


# ---------------------------------------------------------------------------------------------------------------- lines


@pytest.mark.slow
def test_lines(scratch: Path, stock: Path) -> None:
    def case(rng: random.Random, home: Path) -> tuple[str, list[Fault]]:
        line = lines.random_line(rng)
        limits = forks.Limits(file=rng.choice((0, 5_000)) if rng.random() < 0.05 else None)  # as if the disk were full

        def tried(line: lines.Line, *debug: str) -> list[Fault]:
            shutil.rmtree(home, ignore_errors=True)
            stocks.copied(stock, home, special=True)
            before, words = forks.tree(home), lines.words_of(line)
            return judged(forks.run([*debug, *words], home, limits), words, home, before)

        found = tried(line)
        if not found or found[0].kind in seen:
            return "", found
        seen.add(found[0].kind)
        shorter = lines.shortened(line, lambda less: any(f.what == found[0].what for f in tried(less)))
        found = [f for f in tried(shorter) if f.what == found[0].what] or found
        places = [f.place for f in tried(shorter, "--debug") if f.place]
        return "disk full" * (limits.file is not None), [replace(found[0], place=places[0] if places else "")]

    seen: set[str] = set()
    explore("lines", int(os.environ.get("FUZZ_LINES", "60")), scratch, case)


# ---------------------------------------------------------------------------------------------------------- run folders

ASKED = {
    "info": "info RUN --json",
    "sample": "sample RUN --n 2 --solver euler --steps 2 --save npz --out told --quiet",
    "likelihood": "likelihood RUN --limit 2 --set likelihood.steps=2 --no-check --save npz --out told --quiet",
    "train": "train --resume RUN --steps 5 --quiet",
}


def asked(name: str, run: str) -> list[str]:
    return ASKED[name].replace("RUN", run).split()


def result(name: str, run: Path, outcome: forks.Outcome, home: Path) -> str:
    """What a command found, in a few letters: the same for the same numbers."""
    if outcome.code:
        return f"exit code {outcome.code}"
    numbers = hashlib.sha256()
    if name == "info":
        facts = json.loads(outcome.out)
        del facts["last_loss"]  # a line of the log is as good as another
        numbers.update(json.dumps(facts, sort_keys=True).encode())
    elif name == "train":
        for file in sorted((run / "checkpoints" / "step-000000005").glob("*.safetensors")):
            for key, value in sorted(read_tensors(file).items()):
                numbers.update(f"{file.name} {key} {value.dtype} {value.shape}".encode() + value.numpy().tobytes())
    else:
        for file in sorted((home / "told").glob("*.npz")):
            with np.load(file) as arrays:
                for key in sorted(arrays):
                    numbers.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode() + arrays[key].tobytes())
    return numbers.hexdigest()[:16]


@pytest.fixture(scope="session")
def intact(scratch: Path, stock: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """What each command finds in each run as it was trained, and what it says of it."""
    found = {}
    for run in stocks.CONFIGS:
        for name in ASKED:
            home = stocks.copied(stock, scratch / f"intact-{run}-{name}")
            outcome = forks.run(asked(name, f"runs/{run}"), home)
            assert outcome.code == 0, outcome.err
            found[run, name] = result(name, home / "runs" / run, outcome, home), outcome.err
            shutil.rmtree(home)
    return found


def damaged_run(
    rng: random.Random, home: Path, stock: Path, intact: dict[tuple[str, str], tuple[str, str]],
    harm: Callable[[random.Random, Path], str],
) -> tuple[str, list[Fault]]:  # fmt: skip
    """Damage a run; ask for samples, a likelihood, what it is and to train on: the same numbers, or a word."""
    run = rng.choice(sorted(stocks.CONFIGS))
    stocks.copied(stock, home)
    what = f"{run}: {harm(rng, home / 'runs' / run)}"
    forks.handed(home)
    found = []
    for name in ASKED:  # training on, the last, changes the folder
        words = asked(name, f"runs/{run}")
        shutil.rmtree(home / "told", ignore_errors=True)
        before = forks.tree(home)
        outcome = forks.run(words, home)
        faults = judged(outcome, words, home, before)
        known, said = intact[run, name]
        if any(fault.what == "unexpected error" for fault in faults):
            place = _place(forks.run(["--debug", *words], home).err)
            faults = [replace(fault, place=place) for fault in faults]
        if not faults and outcome.code == 0 and outcome.err == said:
            numbers = result(name, home / "runs" / run, outcome, home)
            if numbers != known:
                faults.append(Fault("silent change", words, re.sub(r"'.*?'", "NAME", what)))
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]", outcome.out + outcome.err.replace("\r", "")):
            faults.append(Fault("control characters", words, repr(outcome.said)))
        found += faults
    return what, found


@pytest.mark.slow
def test_bytes_of_runs(scratch: Path, stock: Path, intact: dict[tuple[str, str], tuple[str, str]]) -> None:
    def harm(rng: random.Random, run: Path) -> str:
        files = [p for p in damage.files_of(run) if p.parent.name not in ("samples", "plots")]
        file, other = rng.choice(files), rng.choice(files)
        return f"{damage.damage_bytes(rng, file, other)} in {file.relative_to(run)}"

    count = int(os.environ.get("FUZZ_BYTES", "30"))
    explore("bytes", count, scratch, lambda rng, home: damaged_run(rng, home, stock, intact, harm))


@pytest.mark.slow
def test_meaning_of_runs(scratch: Path, stock: Path, intact: dict[tuple[str, str], tuple[str, str]]) -> None:
    count = int(os.environ.get("FUZZ_MEANINGS", "30"))
    explore("meanings", count, scratch, lambda rng, home: damaged_run(rng, home, stock, intact, damage.damage_meaning))


# ----------------------------------------------------------------------------------------------------------------- data

FILES = {
    "points.npy": ("points.npy",), "labelled.npz": ("labelled.npz",), "table.csv": ("table.csv",),
    "table.tsv": ("table.tsv",), "table.csv.gz": ("table.csv.gz",),
    "idx": ("idx/train-images-idx3-ubyte", "idx/train-labels-idx1-ubyte.gz"), "photos": ("photos/cat/0.png",),
    **{f"kinds/{kind}": (f"kinds/{kind}/{kind}0.{kind}",) for kind in ("jpg", "bmp", "tif", "webp", "gif")},
}  # fmt: skip
SEALED = (".npz", ".gz", ".png")  # formats that know by a checksum what was in them
READ = (
    "train --data DATA --steps 1 --batch 4 --out made --quiet",
    "evaluate --samples DATA --data DATA --features pixels --limit 20 --out made --quiet",
    "likelihood RUN --data DATA --limit 2 --set likelihood.steps=2 --no-check --save npz --out made --quiet",
    "classifier --data DATA --steps 1 --width 4 --out made --quiet",
    "plot forward --data DATA --n 2 --steps 1 --out made.png",
)


def read(path: str) -> Callable[[], None]:
    """Print the numbers that a file holds, in a few letters."""

    def work() -> None:
        from scoresde import load_data
        from scoresde.core.errors import DataError

        try:
            data = load_data(path)
        except DataError as error:
            raise SystemExit(error.exit_code) from None
        x = np.concatenate([data.train.numpy(), data.test.numpy()]).reshape(data.info.n_train + data.info.n_test, -1)
        print(x.shape, hashlib.sha256(x[np.lexsort(x.T)].tobytes()).hexdigest()[:16])

    return work


@pytest.mark.slow
def test_data(scratch: Path, stock: Path) -> None:
    known = {}
    for name in FILES:
        known[name] = forks.run(read(name), stock).out

    def case(rng: random.Random, home: Path) -> tuple[str, list[Fault]]:
        stocks.copied(stock, home)
        sealed = False
        if rng.random() < 0.4:
            what = rng.choice(sorted(damage.CRAFTED))
            name = damage.CRAFTED[what](home)
        else:
            name = rng.choice(sorted(FILES))
            file = rng.choice(FILES[name])
            other = rng.choice([p for parts in FILES.values() for p in parts])
            what = f"{damage.damage_bytes(rng, home / file, home / other)} in {file}"
            sealed = file.endswith(SEALED) and not what.startswith(("replace", "append"))
        forks.handed(home)
        found = []
        run = "runs/photos" if name in ("photos", "idx", "labelled.npz") else "runs/points"
        for text in (rng.choice(("data inspect DATA", "data inspect DATA --json")), rng.choice(READ)):
            words = text.replace("DATA", name).replace("RUN", run).split()
            before = forks.tree(home)
            outcome = forks.run(words, home)
            found += judged(outcome, words, home, before)
            if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", outcome.out + outcome.err.replace("\r", "")):
                found.append(Fault("control characters", words, repr(outcome.said)))
        outcome = forks.run(read(name), home)
        fault = outcome.fault()
        if fault is not None:
            found.append(Fault(f"load_data: {fault}", [name], outcome.said, _place(outcome.err)))
        elif outcome.code == 0 and sealed and outcome.out != known[name] and "warning" not in outcome.err.lower():
            found.append(Fault("silent change", ["load_data", name], re.sub(r"\d+", "#", what)))
        return what, found

    explore("data", int(os.environ.get("FUZZ_DATA", "40")), scratch, case)


# --------------------------------------------------------------------------------------------------- the harness itself


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scoresde-fuzz-") as name:
        os.chmod(name, 0o755)
        yield forks.handed(Path(name))


def spoilt(code: int = 0, said: str = "") -> Callable[[], None]:
    def work() -> None:
        print(said)
        raise SystemExit(code)

    return work


@pytest.mark.parametrize(
    ("work", "fault"),
    [
        (spoilt(0), None), (spoilt(75), None), (spoilt(1), "exit code 1"), (lambda: 1 / 0, "traceback"),
        (spoilt(0, "Traceback (most recent call last)"), "traceback"),
        (lambda: os.kill(os.getpid(), 11), "killed by SIGSEGV"), (lambda: time.sleep(60), "hangs"),
    ],
    ids=["fine", "interrupted", "code", "raises", "prints", "dies", "waits"],
)  # fmt: skip
def test_faults_are_seen(work: Callable[[], object], fault: str | None, home: Path) -> None:
    outcome = forks.run(work, home, forks.Limits(clock=1.0))
    assert (outcome.fault() or "").startswith(fault or ""), outcome
    assert (outcome.fault() is None) == (fault is None)


def test_work_and_memory_have_a_limit(home: Path) -> None:
    def busy() -> None:
        while True:
            pass

    assert forks.run(busy, home, forks.Limits(seconds=1)).hung
    outcome = forks.run(lambda: bytearray(2**40), home)
    assert outcome.code == 1 and "MemoryError" in outcome.err


def test_what_is_left_is_seen(home: Path) -> None:
    def work() -> None:
        for folder in ("old/new/deep", "full"):
            Path(folder).mkdir(parents=True)
        Path("full/file").write_text("text")
        Path("full/.file.tmp-12").write_text("text")
        Path("empty").touch()

    (home / "old").mkdir()
    forks.handed(home)
    before = forks.tree(home)
    assert forks.run(work, home).code == 0
    after = forks.tree(home)
    assert sorted(forks.left(before, after)) == [
        "leaves full/.file.tmp-12", "leaves the empty file empty", "leaves the empty folder old/new",
    ]  # fmt: skip
    assert list(forks.left(before, after, failed=False)) == ["leaves full/.file.tmp-12"]


def test_lines_are_random_and_repeat() -> None:
    made = [lines.random_line(random.Random(i)) for i in range(500)]
    assert made == [lines.random_line(random.Random(i)) for i in range(500)]
    assert {line[0][0] for line in made} >= {words.split()[0] for words in lines.commands()}
    assert set(lines.NEEDED) == set(lines.commands())


def test_a_line_is_shortened() -> None:
    line = [["sample"], ["runs/x"], ["--n", "2"], ["--json"], ["--seed", "nan"]]
    assert lines.shortened(line, lambda less: ["--seed", "nan"] in less) == [["sample"], ["--seed", "nan"]]


def test_results_in_json_are_checked(home: Path) -> None:
    assert list(_misprinted('{"files": ["."]}', home)) == []
    assert list(_misprinted('{"files": ["x"]}', home)) == ["names x, which is not there"]
    assert next(_misprinted("[NaN]", home)).startswith("prints no JSON")


def test_damage_is_the_same_for_a_seed(tmp_path: Path) -> None:
    stocks.make_data(tmp_path / "a")
    stocks.make_data(tmp_path / "b")

    def harmed(folder: Path) -> str:
        return damage.damage_bytes(random.Random(3), folder / "table.csv", folder / "points.npy")

    assert harmed(tmp_path / "a") == harmed(tmp_path / "b")
    assert (tmp_path / "a/table.csv").read_bytes() == (tmp_path / "b/table.csv").read_bytes()
    assert (tmp_path / "a/table.csv").read_bytes() != (tmp_path / "a/table.tsv").read_bytes()
