"""The rules of the house: who may import whom, what is public, what loads lazily, what never appears."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import scoresde
from scoresde.core import tables
from scoresde.core.registry import fields_of, options_of, resolve

ROOT = Path(scoresde.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

PUBLIC = """
    SDE VPSDE SubVPSDE VESDE CosineSDE EDMSDE VDMSDE FlowMatching Shifted DDPM SMLD verify
    MeanReverting OUVE BBED Bridge Blur Parts
    Estimate Denoiser Domain Parametrization Eps X0 V Score Velocity EDM
    ScoreModel Guided Mixed Steered Measured Thresholded Rescaled Particles convert
    GaussianMixture Noise Condition Codec denoising_loss
    Solver Solution EulerMaruyama PredictorCorrector ProbabilityFlow RungeKutta Multistep FixedStep sample
    Likelihood LogLikelihood Scores MeanLikelihood log_likelihood bits_per_dim Elbo elbo
    Dataset load_data Run load TrainConfig fit averaged reflow straightness __version__
    data metrics nn plot solvers
""".split()


ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| (.*) \|$", re.M)


def read_floors() -> dict[str, tuple[int, list[str]]]:
    """Floor and files of each folder, from the table in the manual's page on the design."""
    text = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    return {folder: (int(floor), re.findall(r"`(\w+)`", files)) for floor, folder, files in ROW.findall(text)}


FLOORS = read_floors()


def module_of(path: Path) -> str:
    """``sde.base`` for ``scoresde/sde/base.py``, ``sde`` for its ``__init__``, and "" for that of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of everything a file imports from this package, also inside functions, at run time."""
    package = ["scoresde", *path.relative_to(ROOT).parent.parts]

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child)
            return
        targets: list[list[str]] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            targets = [[*base, alias.name] for alias in node.names]
        for target in targets:
            if target[0] == "scoresde":
                whole, parent = ".".join(target[1:]), ".".join(target[1:-1])
                yield node.lineno, whole if whole in MODULES else parent
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def test_every_file_has_a_floor() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}
    found = {f"{folder}.{name}" for folder, (_, files) in FLOORS.items() for name in files}
    known = {module for module in MODULES if "." in module}
    assert {m for m in known if not m.startswith("cli.")} == {m for m in found if not m.startswith("cli.")}


def test_every_file_opens_with_a_sentence() -> None:
    for path in FILES:  # from which the manual makes its list of files
        if path.parent != ROOT and path.stat().st_size:
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert re.match(r"[^\n]{10,}[.:]", " ".join(said.split())), path


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != ROOT], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    module = module_of(path)
    folder, _, name = module.partition(".")
    floor, files = FLOORS[folder]
    for line, other in imports(path):
        theirs, _, part = other.partition(".")
        assert theirs in FLOORS, f"{path}:{line}: {other!r} is not a module; import from the module that defines it"
        if theirs != folder:
            assert FLOORS[theirs][0] < floor, f"{path}:{line}: {module} (floor {floor}) imports {other}"
        elif name in files and part:
            assert files.index(part) < files.index(name), f"{path}:{line}: {name} comes before {part} in {folder}"


def test_the_import_reader_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "nn").mkdir()
    path = tmp_path / "nn" / "x.py"
    path.write_text(
        "from ..sde.base import SDE\nfrom .mlp import MLP\nif TYPE_CHECKING:\n    from ..train import fit\n"
        "def f():\n    from .. import run\n    import scoresde.cli, torch\n    from scoresde import load\n"
    )
    assert list(imports(path)) == [(1, "sde.base"), (2, "nn.mlp"), (6, "run"), (7, "cli"), (8, "")]


# The log-SNR and the ratio are a clock: they choose times, and the arithmetic of a step does without. Who reads them:
CLOCK = {"log_snr", "t_of_log_snr", "ratio", "t_of_ratio"}
READS_THE_CLOCK = {
    "sde/base.py": "defines it",
    "sde/check.py": "it must fall",
    "sde/continuous.py": "closed forms of it",
    "sde/modified.py": "a path read at another log-SNR",
    "sde/grids.py": "grids are uniform in a clock",
    "objective/times.py": "training times are drawn on it",
    "model/parametrization.py": "the noise label of a network",
    "model/convert.py": "converting a model finds the noise levels that two paths share",
    "guidance/classifier_free.py": "an interval of guidance is one for all coordinates",
    "guidance/steered.py": "a state near the prior is replaced by a slightly less noisy one",
    "run/sampling.py": "the amount of noise at which samples start",
    "solvers/flow.py": "steps of Runge-Kutta are taken in the clock of the frame",
    "solvers/level.py": "the middle of a step",
    "solvers/singlestep.py": "a stage lies at a clock time",
    "solvers/edm.py": "nodes of its own, in sigma/alpha",
    "solvers/trajectory.py": "interpolates in the straight frame",
    "solvers/tuned.py": "fitted times are stored as log-SNRs",
    "run/fitted.py": "the times of a fitted grid are stored as log-SNRs",
    "study/levenberg.py": "fitted times are stored as log-SNRs",
    "study/tune.py": "local errors of steps in the straight frame",
    "likelihood/problem.py": "its variable of integration is a clock",
    "likelihood/elbo.py": "an integral over the clock",
    "likelihood/dequantise.py": "where the path begins, as a noise level",
    "train/levels.py": "losses are sorted by it",
    "train/reflow.py": "how straight a path is says the straight frame",
    "study/compass.py": "levels are spread over it",
    "study/figures.py": "frames are spread over it",
    "plot/schedules.py": "an axis",
    "cli/plot/run.py": "an axis",
    "page/frame.py": "sliders move over it",
    "page/views.py": "the clock of a path in the page",
    "page/plane.py": "where the frames of a path are",
    "page/frames.py": "where the frames of a path are",
    "study/evaluate.py": "another ratio",
    "metrics/copies.py": "another ratio",
}


def test_the_clock_only_chooses_times() -> None:
    def reads(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        return any(isinstance(node, ast.Attribute) and node.attr in CLOCK for node in nodes)

    assert {str(path.relative_to(ROOT)) for path in FILES if reads(path)} == set(READS_THE_CLOCK)


# ------------------------------------------------------------------------------------------------- the public face


def test_public_names() -> None:
    assert sorted(scoresde.__all__) == sorted(PUBLIC)
    assert len(set(scoresde.__all__)) == len(scoresde.__all__)
    assert set(dir(scoresde)) == set(PUBLIC)
    for name in PUBLIC:
        assert getattr(scoresde, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = scoresde.Nonsense


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    seen = {a.asname or a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen | {"__version__"} == set(PUBLIC)


def public_objects() -> Iterator[tuple[str, Any, Any]]:
    """Name, object and owner (class or None) of everything on the public face, with public methods."""
    seen = set()
    found = [(name, getattr(scoresde, name)) for name in PUBLIC if name != "__version__"]
    for name, thing in list(found):
        if isinstance(thing, ModuleType):
            found += [(f"{name}.{n}", getattr(thing, n)) for n in thing.__all__]
    for name, thing in found:
        if id(thing) in seen or isinstance(thing, str | tuple | dict | int):
            continue
        seen.add(id(thing))
        yield name, thing, None
        if inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                wrapped = getattr(value, "__func__", getattr(value, "fget", value))
                told = issubclass(thing, Exception) or getattr(thing, "_is_protocol", False)  # by the class
                if not attribute.startswith("_") and inspect.isfunction(wrapped) and not told:
                    yield f"{name}.{attribute}", getattr(thing, attribute), thing


FACE = list(public_objects())
SHAPE = re.compile(r"[Ss]hape|\(B\b|\(\)|\(n\b|\(N\b|\(K\b|\(D\b|\(C\b|\(\d")


@pytest.mark.parametrize(("name", "thing", "owner"), FACE, ids=[f[0] for f in FACE])
def test_docstrings(name: str, thing: Any, owner: Any) -> None:
    text = inspect.getdoc(thing)
    # A property that a dataclass needs only to satisfy the Denoiser protocol is described there.
    if owner is not None and not text and name.rpartition(".")[2] in ("sde", "t_min", "t_max", "coupled", "nodes"):
        text = inspect.getdoc(scoresde.Denoiser)
    # dataclass writes Name(field, ...) where there is no docstring.
    assert text and not text.startswith(f"{name.rpartition('.')[2]}("), f"{name} has no docstring"
    function = getattr(thing, "fget", thing)
    if inspect.isclass(thing):
        notes = "".join(str(v) for k in thing.__mro__ for v in vars(k).get("__annotations__", {}).values())
    else:
        notes = "".join(str(v) for v in getattr(function, "__annotations__", {}).values())
    if "Tensor" in notes and "Callable" not in notes:
        spoken = text + (inspect.getdoc(owner) or "" if owner is not None else "")
        assert SHAPE.search(spoken), f"{name} takes or returns tensors, and its docstring states no shape"


# ------------------------------------------------------------------------------------------------------------- lazy


def python(code: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing() -> None:
    heavy = "torch numpy scipy matplotlib click PIL safetensors torchdiffeq torchsde tqdm".split()
    out = python(f"import sys, scoresde; dir(scoresde); print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


VERBS = [
    "data", "train", "sample", "interpolate", "tune", "bench", "likelihood", "evaluate", "classifier", "plot", "page",
    "reflow", "ema", "info", "config", "list", "demo",
]  # fmt: skip


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from scoresde.cli import main\n"
        "heavy = ('torch', 'numpy', 'scipy', 'matplotlib')\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n"
        "        main([*line.split(), '--help'])\n"
        "    except SystemExit as stop:\n"
        "        print('ENDED', line, stop.code, [m for m in heavy if m in sys.modules])"
    )
    commands = ["", *VERBS, "data inspect", "plot schedule", "demo single-image", "config diff"]
    rest = python(code, *commands)
    for command in commands:
        out, ended, rest = rest.partition(f"ENDED {command} 0 []\n")
        assert ended, f"{command} --help loads one of them, or fails: {out[:300]}"
        assert "Usage: scoresde" in out and "--help" in out and len(out.splitlines()) > 5
    assert rest == ""


def test_every_command_is_tested_for_help() -> None:
    from scoresde.cli import cli

    assert set(cli.commands) == set(VERBS)


def test_one_sde_loads_no_optional_library() -> None:
    heavy = "torchdiffeq torchsde scipy matplotlib PIL click".split()
    out = python(f"import sys; from scoresde import VPSDE; VPSDE(); print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


# ----------------------------------------------------------------------------------------------- what never appears

FORBIDDEN = {
    "broadcasting by hand": r"\[:, None, None, None\]",
    "pickle": r"allow_pickle\s*=\s*True|weights_only\s*=\s*False|pickle\.load|import pickle|torch\.load\(",
    "code from text": r"(?<![\w.])(eval|exec)\(|shell\s*=\s*True",
    "absolute path": r"""["'`]/(home|tmp|work|root|Users|var)/""",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_never(what: str) -> None:
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not re.search(FORBIDDEN[what], line), f"{path}:{number}: {what}: {line.strip()}"


# ----------------------------------------------------------------------------------------------------------- tables

TABLES = {
    name: table
    for name, table in vars(tables).items()
    if isinstance(table, dict) and name in tables.__all__ and name != "PRESETS"
}
WITH_OPTIONS = ("SDES", "SOLVERS", "PARAMETRIZATIONS", "WEIGHTINGS", "TIME_SAMPLERS", "RATES")
ENTRIES = [(table, key) for table, entries in TABLES.items() for key in entries]


@pytest.mark.parametrize(("table", "key"), ENTRIES)
def test_table_entries_resolve(table: str, key: str) -> None:
    entry = resolve(key, TABLES[table])
    assert callable(entry)
    if table in WITH_OPTIONS:
        made = entry()  # a class, or a function that returns one with its options set
        kind = type(made)
        assert dataclasses.is_dataclass(made) and kind.__dataclass_params__.frozen
        module = importlib.import_module(entry.__module__)
        again = eval(repr(made), vars(module).copy())
        assert again == made and type(again) is kind
        assert kind(**options_of(made)) == made
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.anything = 1
    if table == "NETWORKS":
        assert issubclass(entry, nn.Module)


def test_a_changed_field_is_another_object() -> None:
    for table in WITH_OPTIONS:
        for key in TABLES[table]:
            made = resolve(key, TABLES[table])()
            if "churn" in options_of(made):  # without it there are options that nothing would use
                made = dataclasses.replace(made, churn=10.0)
            for name, value in options_of(made).items():
                if type(value) is float and value > 0:
                    other = dataclasses.replace(made, **{name: value * 0.9})
                    assert other != made and f"{value * 0.9!r}" in repr(other)


def test_presets_name_networks_and_their_options() -> None:
    assert tables.PRESETS
    for options in tables.PRESETS.values():
        fields = fields_of(resolve(str(options["network"]), tables.NETWORKS))
        assert set(options) - {"network"} <= set(fields)


def test_tables_are_plain_and_import_nothing() -> None:
    tree = ast.parse((ROOT / "core" / "tables.py").read_text())
    assert [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)] == ["__future__"]
    assert not any(isinstance(n, ast.Import | ast.Call | ast.FunctionDef) for n in ast.walk(tree))
