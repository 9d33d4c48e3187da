"""Names to objects: tables, near names, own classes, typed values."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from scoresde import SDE, VPSDE, ProbabilityFlow, RungeKutta
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.registry import READ, build, closest, fields_of, name_of, options_of, parse_value, resolve
from scoresde.core.tables import SDES, SOLVERS
from scoresde.solvers import Solver

OWN = """
from dataclasses import dataclass
from pathlib import Path
import torch
from scoresde import SDE

Path("imported").touch()

@dataclass(frozen=True)
class Own(SDE):
    power: float = 1.0
    def alpha(self, t): return 1 - t**self.power
    def sigma(self, t): return t**self.power

def make(power=2.0): return Own(power)
def needs(power): return Own(power)
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_sde.py").write_text(OWN)
    return tmp_path


def test_names_and_options() -> None:
    assert build("vp", SDES) == VPSDE()
    assert build("vp", SDES, beta_max=18.0) == VPSDE(beta_max=18.0)
    assert build("heun", SOLVERS, steps=7) == RungeKutta(steps=7)
    assert build("phase", SOLVERS, "solver", {"kind": "psld"}, kind=Solver).kind == "psld"
    ready = VPSDE(beta_max=3.0)
    assert build(ready, SDES) is ready
    with pytest.raises(UsageError, match="only with a name, not with an object"):
        build(ready, SDES, beta_max=3.0)


@pytest.mark.parametrize("name", [*SDES])
def test_names_go_both_ways(name: str) -> None:
    assert name_of(build(name, SDES), SDES) == name


def test_unknown_names_get_the_near_ones() -> None:
    near = r"unknown SDE 'vpp'; did you mean 'vp' or 'subvp'\? choose from: .*subvp, vdm, ve, vp"
    with pytest.raises(UsageError, match=near):
        build("vpp", SDES, "SDE", typed=True)
    with pytest.raises(UsageError) as error:
        build("qqqq", SDES, "SDE", typed=True)
    assert "did you mean" not in str(error.value) and ", ".join(sorted(SDES)) in str(error.value)
    for name in (":VPSDE", "scoresde.sde.base:", ":", ""):
        with pytest.raises(UsageError, match="unknown SDE"):
            build(name, SDES, "SDE", typed=True)
    assert closest("x", []).endswith("(none)")


def test_unknown_options_list_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no option 'steps'; .*atol, engine, frame, max_nfe, method, rtol"):
        build("ode", SOLVERS, "solver", steps=5)
    with pytest.raises(UsageError, match=r"did you mean 'beta_max'"):
        build("vp", SDES, "SDE", beta_mx=5)
    assert list(fields_of(ProbabilityFlow)) == ["rtol", "atol", "method", "max_nfe", "engine", "frame"]
    shown = {"steps": 3, "grid": "auto", "method": "heun", "frame": "straight"}
    assert options_of(RungeKutta(steps=3)) == shown and options_of("text") == {}


def test_values_that_cannot_be_right_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"beta_max is 'abc'; it must be a number"):
        build("vp", SDES, "SDE", beta_max="abc")
    with pytest.raises(UsageError, match="rtol is 0"):  # the class's own words come through as they are
        build("ode", SOLVERS, "solver", rtol=0.0)


def test_own_classes_come_from_where_the_user_stands(own: Path) -> None:
    before = list(sys.path)
    made = build("own_sde:Own", SDES, "SDE", typed=True, power=3.0)
    assert type(made).__name__ == "Own" and made.power == 3.0
    assert sys.path == before
    assert name_of(made, SDES) == "own_sde:Own"
    assert build("own_sde:make", SDES, "SDE", typed=True).power == 2.0
    said = r"module 'own_sde' .*own_sde.py. has no attribute 'Owm'; did you mean 'Own'\?"
    with pytest.raises(UsageError, match=said) as error:
        resolve("own_sde:Owm", SDES, "SDE", typed=True)
    assert "number" not in str(error.value)
    with pytest.raises(UsageError, match=r"requires a value for power$"):
        build("own_sde:needs", SDES, "SDE", typed=True)


def test_a_missing_module_is_named_with_the_folder(own: Path) -> None:
    with pytest.raises(UsageError, match="no module 'own_sdee'") as error:
        resolve("own_sdee:Own", SDES, "SDE", typed=True)
    assert str(own) in str(error.value)
    # A module that is there and imports one that is not: the fault is the inner one, also if the names begin alike.
    (own / "own_broken.py").write_text("import own\n")
    with pytest.raises(
        UsageError, match="own_broken imports a module that cannot be found: No module named 'own'"
    ) as error:
        resolve("own_broken:Own", SDES, "SDE", typed=True)
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "importing own_bad failed: SyntaxError: '\\(' was never closed"),
        ("raise KeyError('k')", "importing own_bad failed: KeyError: 'k'"),
        ("raise SystemExit(0)", "importing own_bad failed: SystemExit: 0"),
        ("Own = 3", "'own_bad:Own' is neither a class nor a function; its type is int"),
        ("def Own(): return 3", "SDE 'own_bad:Own' creates an object of type int, which is not a subclass of"),
        ("class Own: pass", "SDE 'own_bad:Own' creates an object of type Own"),
        ("class Own:\n    def __init__(self): raise KeyError('k')", "cannot be created with no options: 'k'"),
        ("def Own(): raise SystemExit(0)", "SDE 'own_bad:Own' failed: SystemExit: 0"),
        ("from collections import OrderedDict as Own", "creates an object of type OrderedDict"),
    ],
)
def test_what_is_wrong_with_a_module_of_ones_own_is_said(own: Path, text: str, said: str) -> None:
    (own / "own_bad.py").write_text(text)
    with pytest.raises(UsageError, match=said):
        build("own_bad:Own", SDES, "SDE", typed=True, kind=SDE)


def test_nothing_is_imported_from_above() -> None:
    for name in (".:x", "..own:x", ".own:x"):
        with pytest.raises(UsageError, match="there is no module"):
            resolve(name, SDES, "SDE", typed=True)


def test_errors_of_ones_own_functions_say_whose_they_are(own: Path) -> None:
    (own / "own_fails.py").write_text("def level(sde, t):\n    return sde.nothing\n")
    level = resolve("own_fails:level", {}, "noise level", typed=True)
    with pytest.raises(UsageError, match=r"noise level 'own_fails:level' failed: AttributeError: .*nothing") as error:
        level(VPSDE(), 0.5)
    assert isinstance(error.value.__cause__, AttributeError)
    assert list(fields_of(level)) == ["sde", "t"]
    for called in (resolve("abc:ABC", {}, "noise level", typed=True, function=True), level):
        with pytest.raises(UsageError, match="failed: "):
            called(VPSDE(), 0.5)


def test_names_from_files_are_only_looked_up(own: Path) -> None:
    assert resolve("vp", SDES, "SDE") is VPSDE  # read is the default
    for name in ("own_sde:Own", "os:system", "scoresde.sde.continuous:VPSDE"):
        for typed in (READ, False, ["another:Own"]):
            with pytest.raises(CheckpointError, match="never imported") as error:
                resolve(name, SDES, "SDE", typed=typed)
            assert (error.value.parameter, error.value.value) == ("sde", name)
    for options in ({"beta_max": "own_sde:Own"}, {"beta_max": [{"x": " own_sde:Own "}]}, {"own_sde:Own": 1}):
        with pytest.raises(CheckpointError, match="never imported"):
            build("vp", SDES, "SDE", **options)
    assert not (own / "imported").exists() and "own_sde" not in sys.modules
    resolve("own_sde:Own", SDES, "SDE", typed=["own_sde:Own"])  # what a person typed is imported
    assert (own / "imported").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("1e-5", 1e-5),
        ("inf", math.inf),
        ("-2", -2),
        ("true", True),
        ("False", False),
        ("none", None),
        ("", None),
        ("abc", "abc"),
        ("Karras", "Karras"),
        ("1,2,4", (1, 2, 4)),
        ("1,", (1,)),
        ("0.5,x", (0.5, "x")),
        ("yes", True),
        ("off", False),
    ],
)
def test_parse_value(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value and type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(v) for v in found] == [type(v) for v in value]
