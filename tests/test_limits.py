"""Numbers that cannot be right are refused where they are given, whoever declared them: every field, every option."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import pytest
import torch
from shell import Shell

from scoresde import (
    DDPM,
    VESDE,
    VPSDE,
    Dataset,
    GaussianMixture,
    Likelihood,
    Noise,
    RungeKutta,
    TrainConfig,
    elbo,
    fit,
    load_data,
    sample,
)  # fmt: skip
from scoresde.cli import cli
from scoresde.cli.command import Command, Real, Whole
from scoresde.core import limits, tables
from scoresde.core.errors import Problems, ScoresdeError, UsageError
from scoresde.core.limits import COUNT, POSITIVE, Checked, Range, check_number, checked, duration, enough_memory, ranges
from scoresde.core.registry import fields_of, resolve
from scoresde.data import Reading
from scoresde.data.augment import Augmentation
from scoresde.data.toys import sample_toy
from scoresde.guidance.classifier_free import Guided
from scoresde.metrics import frechet, neighbourhoods, sliced
from scoresde.nn import MLP, UNet
from scoresde.study.classifier import ClassifierConfig
from scoresde.train.averages import EMA

NONSENSE: tuple[Any, ...] = (math.nan, -1, -math.inf, 10**400, True, "three", None, [1], 1j)
NAMED = ("SDES", "PARAMETRIZATIONS", "WEIGHTINGS", "TIME_SAMPLERS", "NETWORKS", "GRIDS", "SOLVERS")
NEEDED = {"dims": 2, "channels_in": 1, "shape": (2,)}  # of those that have no default
# Fields for which something on the list is a value.
LEGAL: dict[tuple[str, str], tuple[Any, ...]] = {
    ("lognormal", "mean"): (-1,), ("logit-normal", "mean"): (-1,), ("mode", "k"): (-1,), ("sigmoid", "bias"): (-1,),
    ("vdm", "log_snr_min"): (-1,), ("vdm", "log_snr_max"): (-1,),
    ("deis", "order"): (None,), ("unipc", "order"): (None,),
}  # fmt: skip


def numeric(factory: Any) -> dict[str, set[str]]:
    """The numeric fields of a class or function, and what each may be."""
    kinds = {name: set(limits.kinds_of(p.annotation)) for name, p in fields_of(factory).items()}
    return {name: found for name, found in kinds.items() if found & {"int", "float"}}


def registered() -> Iterator[tuple[str, Any, str, set[str]]]:
    for table in NAMED:
        for name, path in getattr(tables, table).items():
            factory = resolve(path, {}, typed=True)
            for field, kinds in numeric(factory).items():
                yield name, factory, field, kinds
    for factory in (TrainConfig, Likelihood, ClassifierConfig, Reading):
        for field, kinds in numeric(factory).items():
            yield factory.__name__, factory, field, kinds


def cases() -> Iterator[Any]:
    for name, factory, field, kinds in registered():
        yield pytest.param(name, factory, field, kinds, id=f"{name}-{field}")


@pytest.mark.parametrize(("name", "factory", "field", "kinds"), cases())
def test_every_number_of_everything_with_a_name(name: str, factory: Any, field: str, kinds: set[str]) -> None:
    given = {n: v for n, v in NEEDED.items() if n in fields_of(factory)}
    wrong = [v for v in NONSENSE if v not in LEGAL.get((name, field), ())]
    wrong += [2.5] if "float" not in kinds else [1e308] * (field not in ("clip", "save_minutes", "s_max", "gamma"))
    wrong += [10**12] * (field not in ("seed", "data_std", "rtol", "atol", "lr"))
    if "None" in kinds:
        wrong.remove(None)
    for value in wrong:
        if (field, value) in (("gamma", 10**12), ("s_max", 10**12), ("clip", 10**12), ("save_minutes", 10**12)):
            continue  # infinity is one of their values
        if isinstance(value, str) and "str" in kinds:
            continue
        with pytest.raises(UsageError) as error:
            factory(**{**given, field: value})
        assert field in str(error.value) and str(error.value).count("\n") == 0, (value, error.value)


def test_a_new_field_is_safe_before_anybody_has_thought_of_it() -> None:
    @dataclass(frozen=True)
    class New(Checked):
        size: float = 1.0
        count: int | None = None
        flag: bool = False
        sizes: tuple[float, ...] = ()

    assert New(np.float32(2.0), np.int64(3)) == New(2.0, 3) and type(New(1.0, np.int64(3)).count) is int
    for wrong in (
        {"size": math.inf},
        {"count": 1.0},
        {"flag": "no"},
        {"sizes": (1.0, math.nan)},
        {"size": torch.tensor([1.0, 2.0])},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            New(**wrong)


def test_ranges_are_inherited_and_said() -> None:
    @dataclass(frozen=True)
    class Base(Checked):
        limits = ranges(a=POSITIVE)
        a: float = 1.0

    @dataclass(frozen=True)
    class Derived(Base):
        limits = ranges(b=Range(0, 1, below=True, hint="a share"))
        b: float = 0.5

    with pytest.raises(UsageError, match=r"Derived: a is 0; it must be a finite number > 0"):
        Derived(a=0)
    with pytest.raises(UsageError, match=r"b is 1; it must be a number >= 0 and < 1 \(a share\)") as error:
        Derived(b=1)
    assert error.value.parameter == "b"


def test_what_would_take_years_says_so_and_what_to_take_instead() -> None:
    with pytest.raises(UsageError, match=r"with this value, the computation would take at least 32 years") as error:
        TrainConfig(steps=10**12)
    assert (error.value.parameter, error.value.value) == ("steps", 10**8)
    assert duration(7200) == "2 hours" and duration(5) == "5 seconds"


def test_what_would_take_all_memory_is_refused_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: 2**34)
    mixture = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    for parameter, make in {
        "width": lambda: MLP(2, width=100_000, blocks=10),
        "channels": lambda: UNet(3, channels=20_000),
        "n": lambda: sample_toy("moons", 10**9, 0),
        "strata": lambda: elbo(mixture, torch.zeros(1000, 2), strata=10**6),
        "n ": lambda: Noise.of(10**12),
    }.items():
        with pytest.raises(UsageError, match=r"would need at least [\d,]+ GiB of memory, but only 16 GiB is") as error:
            make()
        assert error.value.parameter == parameter.strip()
    enough_memory(2**33, "half of it", "n")


def test_samples_beyond_the_memory() -> None:
    run = fit(
        TrainConfig(data="moons", steps=1, batch=8, network_options={"width": 4, "blocks": 0}), save=False, quiet=True
    )
    for n in (10**12, 10**9, 0, 2.5, True, math.nan):
        if n == 10**9 and limits.memory() > 24 * n:
            continue
        with pytest.raises(UsageError, match=r"n is |10{9}|1,000,000,000 samples") as error:
            run.sample(n)
        assert error.value.parameter == "n"
    for options in ({"seed": -1}, {"seed": 1.5}, {"start": -1}, {"batch": 0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            run.sample(2, **options)
    with pytest.raises(UsageError, match="scale is nan"):
        run.guided(math.nan)
    for options in ({"strata": 10**9}, {"draws": 0}, {"t_min": math.nan}):
        with pytest.raises(UsageError, match=next(iter(options))):
            run.elbo(torch.zeros(2, 2), **options)


def test_functions_and_small_classes() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    model = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    wrong: dict[str, Callable[[], object]] = {
        "decay": lambda: EMA(torch.nn.Linear(1, 1), math.nan),
        "blocks": lambda: frechet(x, x, blocks=1),
        "k": lambda: neighbourhoods(x, x, k=0),
        "test_fraction": lambda: load_data("moons", test_fraction=math.nan),
        "seed": lambda: Dataset.of(x, seed=-1),
        "share": lambda: Augmentation(("flip",), share=math.nan),
        "scale": lambda: Guided(model, model, math.inf),
        "batch": lambda: sample(model, RungeKutta(1), (2,), Noise.of(1), batch=0),
        "count": lambda: Noise.of(-1),
        "dropout": lambda: MLP(2, dropout=1.5),
        "multipliers": lambda: UNet(1, multipliers=(1, 2.5)),  # type: ignore[arg-type]
        "betas": lambda: DDPM(betas=(0.1, math.nan)),
        "size": lambda: Reading(size=100_000),
        "t0": lambda: RungeKutta(1)(model, x, t0=math.nan),
    }
    for name, make in wrong.items():
        with pytest.raises(UsageError, match=rf"\b{name} is"):
            make()
    with pytest.raises(UsageError, match="blocks is 1"):
        sliced(x, x, blocks=1)


def test_a_decorated_function_is_what_it_was() -> None:
    @checked(n=COUNT)
    def drawn(n: int, *, scale: float = 1.0) -> float:
        """Its docstring."""
        return n * scale

    assert drawn(2, scale=1.5) == 3.0 and drawn.__doc__ == "Its docstring."
    assert list(inspect.signature(drawn).parameters) == ["n", "scale"]
    with pytest.raises(TypeError, match="missing 1 required"):
        drawn()  # type: ignore[call-arg]
    assert check_number("n", torch.tensor(3), COUNT, "int") == 3


class TestPaths:
    @pytest.mark.parametrize(("t_min", "t_max"), [
        (0.5, 0.5), (-0.1, 1.0), (math.nan, 1.0), (1e-5, math.inf), (1e-5, 1e300), (1e-300, 1.0),
        ("0", 1.0), (0.0, True),
    ])  # fmt: skip
    def test_times_that_cannot_be(self, t_min: Any, t_max: Any) -> None:
        @dataclass(frozen=True)
        class Own(VPSDE):
            pass

        Own.t_min, Own.t_max = t_min, t_max
        with pytest.raises(UsageError, match=r"t_min|t_max|sampling stops"):
            Own()

    def test_sampling_stops_inside(self) -> None:
        @dataclass(frozen=True)
        class Own(VPSDE):
            t_sample = 1.5

        with pytest.raises(UsageError, match=r"t_sample = 1.5, which must be at least t_min"):
            Own()

    def test_a_path_may_be_all_noise_before_its_end(self) -> None:
        sde = VPSDE(beta_max=1e5)
        assert float(sde.alpha(torch.tensor(0.9).double())) == 0 and sde.finite(sde.t_min, sde.t_max)

    def test_noise_of_any_size(self) -> None:
        for sigma_max in (1e308, 1e7, math.inf, 10**400):
            with pytest.raises(UsageError, match="sigma_max is"):
                VESDE(sigma_max=sigma_max)


# --------------------------------------------------------------------------------------------------------- command line


def commands(group: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))
    else:
        yield path, group


def options() -> Iterator[Any]:
    for path, command in commands():
        for param in command.params:
            if isinstance(param, click.Option) and isinstance(
                param.type, click.types.IntParamType | click.types.FloatParamType
            ):
                yield pytest.param(path, param, id=f"{'-'.join(path)}{param.opts[0]}")


@pytest.mark.parametrize(("path", "param"), options())
def test_every_number_on_the_command_line(path: tuple[str, ...], param: click.Option, capsys: Any) -> None:
    bounded = isinstance(param.type, Whole | Real) or getattr(param.type, "max", None) is not None
    assert bounded, "a number has a range of the library's: Whole(COUNT), Real(POSITIVE)"
    whole = isinstance(param.type, click.types.IntParamType)
    wrong = ["nan", "-inf", "abc", "1e400" if not whole else "1" + "0" * 400, "-1001", ""]
    for value in (*wrong, *(["2.5", "1e3"] if whole else ["inf"])):
        Shell(capsys).refuses(" ".join([*path, f"{param.opts[0]}={value}"]), 2, param.opts[0])


FIRST = {
    "train --set sde.beta_max=inf": "beta_max is inf",
    "train --lr nan": "'--lr'",
    "train --lr -1": "'--lr'",
    "train --shift 1e308": "'--shift'",
    "train --steps 1000000000000": "would take at least 32 years",
    "train --set predict.data_std=-1 --predict edm": "data_std is -1.0",
    "train --set weighting.data_std=nan --weighting edm": "data_std is nan",
    "train --set t_sampler.bins=1000000000 --t-sampler loss-second-moment": "bins is 1,000,000,000",
    "train --set clip=nan": "clip is nan",
    "train --set ema=2": "ema is 2.0",
    "train --set network.width=1000000000000 --preset mlp": "width is 1,000,000,000,000",
    "train --set network.width=1000000 --preset mlp --data moons": "would need at least",
    "train --set network.dropout=nan --preset mlp --data moons": "dropout is nan",
    "train --set warmup=1e3": "warmup is 1000.0",
    "train --size 100000 --data x": "'--size'",
    "sample --set solver.atol=inf": "atol is inf",
    "sample --set solver.max_nfe=0": "max_nfe is 0",
    "sample --n 1000000000000": "'--n'",
    "sample --guidance nan": "'--guidance'",
    "sample --solver ddim --set solver.eta=nan": "eta is nan",
    "sample --solver ddim --steps 1000000000000": "would take at least",
    "likelihood --strata 1000000000": "would take at least",
    "likelihood --set likelihood.t_min=-1": "t_min is -1.0",
    "bench --nfe 5,1000000000000": "--nfe is 1,000,000,000,000",
}


@pytest.mark.parametrize("line", FIRST)
def test_the_first_nonsense_is_said(line: str, capsys: Any) -> None:
    Shell(capsys).refuses(line, 2, FIRST[line])


@pytest.mark.parametrize("field", ["decay", "augment", "cond"])
@pytest.mark.parametrize("none", ["none", "None", "NONE"])
def test_none_is_a_value_wherever_there_is_one(field: str, none: str) -> None:
    from scoresde.cli.train import SETTINGS

    assert getattr(TrainConfig(**SETTINGS.read(None, {field: none})), field) == "none"
    assert getattr(TrainConfig(**{field: None}), field) == "none"


def test_every_optional_field_takes_none() -> None:
    from scoresde.core.registry import read_options

    tried = 0
    for _, factory, field, kinds in registered():
        if "None" in kinds:
            assert read_options(factory, "it", "it", {field: "none"}) == {field: None}
            tried += 1
    assert tried > 7


def test_commands_say_what_they_say_of_errors(capsys: Any) -> None:
    assert issubclass(UsageError, ScoresdeError) and UsageError.exit_code == 2 and not issubclass(Problems, UsageError)
    assert all(isinstance(command, Command) for _, command in commands())
    assert dataclasses.is_dataclass(Range)


def test_memory_is_what_the_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda what: (2**28, 2**30) if what == resource.RLIMIT_AS else (0, 0))
    assert limits.memory.__wrapped__() == 2**28
