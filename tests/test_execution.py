"""Networks that are computed in another precision or memory layout, or compiled."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Shell
from torch import Tensor, nn

from scoresde import VPSDE, Likelihood, ScoreModel, TrainConfig, fit, load
from scoresde.core.errors import UsageError
from scoresde.model.parametrization import EDM
from scoresde.nn import MLP, UNet, execution
from scoresde.nn.execution import Execution, faster_with_channels_last, lay_out, precision_on
from scoresde.objective.weighting import make_weighting

SMALL = TrainConfig(
    data="digits", preset="tiny", steps=4, batch=8, sample_every=10**4, decay="none", warmup=1,
    network_options={"channels": 8},
)  # fmt: skip


def filled(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():  # zero-initialised outputs would hide the rest
        nn.init.normal_(parameter, std=0.2)
    return network


def unet() -> nn.Module:
    return filled(UNet(dims=2, channels_in=1, channels=8, multipliers=(1, 2), blocks=1, attention=(1,)))


def model(dtype: torch.dtype = torch.float32) -> ScoreModel:
    return ScoreModel(unet().to(dtype), VPSDE(), EDM())


def test_bf16_concerns_the_network_alone() -> None:
    made, x = model(), torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        full = made(x, 0.5)
        made.execution = Execution("bf16")
        low = made(x, 0.5)
    assert low.x0.dtype == torch.float32 and {p.dtype for p in made.parameters()} == {torch.float32}
    off = float((low.x0 - full.x0).norm() / full.x0.norm())
    assert 1e-5 < off < 2e-2  # bfloat16 resolves 4e-3, and the network is only a part of the estimate
    seen: list[torch.dtype] = []
    made.network.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    made(x, 0.5)
    assert seen == [torch.bfloat16]


class _Cast(nn.Module):
    """A network in float32 as a part of a model in float64."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c: Tensor, cond: Any = None) -> Tensor:
        return self.network(x.float(), c.float(), cond).double()


def _gradient(made: ScoreModel, execute: Execution, dtype: torch.dtype) -> Tensor:
    """The gradient of the denoising loss, with everything but the network in ``dtype``."""
    generator = torch.Generator().manual_seed(1)
    x, eps, t = (f(*s, generator=generator).to(dtype) for f, s in (
        (torch.randn, (16, 1, 8, 8)), (torch.randn, (16, 1, 8, 8)), (torch.rand, (16,)),
    ))  # fmt: skip
    made.execution = execute
    made.zero_grad()
    alpha, sigma = (c.to(dtype).reshape(-1, 1, 1, 1) for c in made.sde.coefficients(t.double())[:2])
    weight = make_weighting("native", {}, True)(made.sde, made.parametrization, t.double()).to(dtype)
    losses = (made(alpha * x + sigma * eps, t).eps - eps).square().mean((1, 2, 3))
    (weight * losses).mean().backward()
    return torch.cat([p.grad.double().flatten() for p in made.parameters() if p.grad is not None])


def test_the_gradient_in_bf16_is_off_by_what_the_network_explains() -> None:
    single = model()
    double = ScoreModel(_Cast(copy.deepcopy(single.network)), VPSDE(), EDM())
    off = []
    for made, dtype in ((single, torch.float32), (double, torch.float64)):
        full = _gradient(made, Execution(), dtype)
        network = made.network.network if isinstance(made.network, _Cast) else made.network
        assert isinstance(network, nn.Module)
        low = _gradient(made, Execution("bf16"), dtype)
        off.append(float((low - full).norm() / full.norm()))
    assert 1e-4 < off[1] < 0.1
    assert off[0] == pytest.approx(off[1], rel=0.02)


def test_a_solver_keeps_its_precision() -> None:
    run = fit(SMALL, save=False, quiet=True)
    low = run.executed("bf16")
    assert low.execution.precision == "bf16" and run.execution.precision == "float32"
    full, near, again = (
        one.sample(4, "heun", seed=3, batch=4).solution.x for one in (run, low, low.executed("float32"))
    )
    assert near.dtype == torch.float32 and 0 < float((near - full).norm() / full.norm()) < 0.02
    assert torch.equal(again, full)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_differ_by_rounding(dims: int) -> None:
    network = filled(UNet(dims=dims, channels_in=2, channels=8, multipliers=(1, 2), blocks=1)).double()
    made = ScoreModel(network, VPSDE(), EDM())
    x = torch.randn(3, 2, *(6,) * dims, dtype=torch.float64)
    plain = made(x, 0.4).x0
    lay_out(network, True)
    made.execution = Execution(channels_last=True)
    last = made(x, 0.4).x0.detach()
    assert last.is_contiguous() and float((last - plain).abs().max()) < 1e-12
    assert any(not p.is_contiguous() for p in network.parameters())
    lay_out(network, False)
    assert all(p.is_contiguous() for p in network.parameters())


def test_training_with_channels_last_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    # Fused optimisers pair weights, gradients and moments by their position in memory.
    found = []
    for layout in ("no", "yes"):
        run = fit(replace(SMALL, channels_last=layout), save=False, quiet=True, dtype=torch.float64)
        found.append([p.detach() for p in run.base.parameters()])
    assert max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) < 1e-11


def test_a_run_with_channels_last_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = replace(SMALL, channels_last="yes")
    whole = fit(config, out=tmp_path / "whole", quiet=True)
    fit(replace(config, steps=2), out=tmp_path / "half", quiet=True)
    again = fit(config, out=tmp_path / "half", quiet=True, resume=True)
    for a, b in zip(whole.base.parameters(), again.base.parameters(), strict=True):
        assert torch.equal(a, b)
    assert load(tmp_path / "half").execution.channels_last
    assert not load(tmp_path / "half", channels_last="no").execution.channels_last


def _clock(monkeypatch: pytest.MonkeyPatch, durations: dict[bool, float]) -> list[bool]:
    now, asked = [0.0], list[bool]()
    monkeypatch.setattr(execution.time, "monotonic", lambda: now[0])

    def step(how: Execution) -> None:
        asked.append(how.channels_last)
        now[0] += durations[how.channels_last]

    found = faster_with_channels_last(unet(), step)
    return [found, *asked]


def test_the_layout_is_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    found, *asked = _clock(monkeypatch, {False: 2.0, True: 1.0})
    assert found and asked == [False, True] * 4
    assert not _clock(monkeypatch, {False: 1.0, True: 2.0})[0]
    assert not faster_with_channels_last(MLP(dims=2), lambda how: pytest.fail("an MLP has no channels to lay out"))


def test_a_measured_layout_is_kept_on_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scoresde.train import executing

    auto = replace(SMALL, channels_last="auto")
    monkeypatch.setattr(executing, "faster_with_channels_last", lambda *_: True)
    first = fit(replace(auto, steps=2), out=tmp_path / "run", quiet=True)
    assert first.config is not None and first.config.channels_last == "yes"
    monkeypatch.setattr(executing, "faster_with_channels_last", lambda *_: pytest.fail("measured again"))
    again = fit(auto, out=tmp_path / "run", quiet=True, resume=True)
    assert again.config is not None and again.config.channels_last == "yes" and again.execution.channels_last


def test_auto_is_float32_on_a_cpu_and_bf16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert precision_on(cpu, torch.float32, "auto") == "float32"
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda _, able=able: able)
        assert precision_on(gpu, torch.float32, "auto") == ("bf16" if able else "float32")
        assert precision_on(gpu, torch.float64, "auto") == "float32"


def test_an_older_run_was_trained_in_float32() -> None:
    stored = {name: value for name, value in SMALL.to_dict().items() if name not in ("precision", "channels_last")}
    again = TrainConfig.from_dict(stored)
    assert again.precision == "float32" and again.channels_last == "no"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"channels_last": "maybe"}, "unknown channels_last 'maybe'"),
    ],
)
def test_unknown_names_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **given)
    run = fit(replace(SMALL, steps=1), save=False, quiet=True)
    with pytest.raises(UsageError):
        run.executed(**given)


def test_bf16_needs_weights_in_float32() -> None:
    with pytest.raises(UsageError, match="needs weights in float32, but dtype is float64"):
        fit(replace(SMALL, precision="bf16"), save=False, quiet=True, dtype=torch.float64)


def test_results_with_another_execution_are_other_results() -> None:
    run = fit(replace(SMALL, steps=1), save=False, quiet=True)
    plain = run.score_request(Likelihood())
    assert run.executed("float32").score_request(Likelihood()) == plain
    for other in (run.executed("bf16"), run.executed(channels_last="yes"), run.executed(compile=True)):
        assert other.score_request(Likelihood()) != plain


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch.compile trace networks without generating code, which would take minutes."""
    compile_with = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_with(self, backend="eager"))
    yield
    torch._dynamo.reset()


def test_a_compiled_network_gives_the_same(eager: None) -> None:
    made = ScoreModel(filled(MLP(dims=2, width=8, blocks=1)), VPSDE(), EDM())
    x = torch.randn(5, 2)
    plain = made(x, 0.5).x0
    names = list(made.state_dict())
    made.execution = Execution(compiled=True)
    assert torch.equal(made(x, 0.5).x0, plain)
    assert made.network._compiled_call_impl is not None and list(made.state_dict()) == names
    torch.testing.assert_close(copy.deepcopy(made)(x[:3], 0.5).x0, plain[:3])  # another number of rows


def test_a_run_is_not_changed_by_another_execution(eager: None) -> None:
    config = TrainConfig(data="moons", steps=1, batch=32, sample_every=10**4)
    run = fit(config, save=False, quiet=True)
    compiled = run.executed(compile=True)
    compiled.sample(4, "heun", seed=0)
    assert compiled.executed("bf16").execution.compiled and not compiled.executed(compile=False).execution.compiled
    calls: list[object] = []
    network = run.base.network  # type: ignore[attr-defined]
    network._compiled_call_impl = lambda *args: calls.append(args)
    run.sample(4, "heun", seed=0)
    assert not calls
    images = fit(replace(SMALL, steps=1), save=False, quiet=True)
    before = [p.stride() for p in images.base.parameters()]
    images.executed(channels_last="yes")
    assert [p.stride() for p in images.base.parameters()] == before


def test_a_compiler_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(self: nn.Module) -> None:
        def call(*_: Any) -> Any:
            raise BackendCompilerFailed(lambda: None, RuntimeError("no g++ here"), None)

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", fails)
    made = ScoreModel(MLP(dims=2, width=8, blocks=1), VPSDE(), EDM())
    made.execution = Execution(compiled=True)
    with pytest.raises(UsageError, match=r"MLP could not be compiled .*leave out compile"):
        made(torch.zeros(2, 2), 0.5)


def test_training_can_be_compiled(eager: None) -> None:
    config = TrainConfig(data="moons", steps=3, batch=32, sample_every=10**4)
    plain, other = (fit(replace(config, compile=on), save=False, quiet=True) for on in (False, True))
    for a, b in zip(plain.base.parameters(), other.base.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not other.execution.compiled  # the run that is returned is a copy


def test_fsdp_has_no_channels_last() -> None:
    class Two:
        several, size = True, 2

    from scoresde.train.executing import executable

    made: Any = (model(), None, torch.device("cpu"), torch.float32, Two(), "fsdp")
    assert executable(replace(SMALL, channels_last="auto"), *made).channels_last == "no"
    with pytest.raises(UsageError, match="channels last"):
        executable(replace(SMALL, channels_last="yes"), *made)


def test_likelihood_says_what_bf16_costs(shell: Shell, digits: str) -> None:
    line = f"likelihood {digits} --limit 3 --rtol 0.1 --no-check --threads 1 --save csv"
    shell(f"{line} --precision bf16 --json")
    found = json.loads(shell.out)["sets"][0]
    cost = found["precision"]
    assert cost["precision"] == "bf16" and cost["n"] == 3 and cost["unit"] == "bits/dim"
    run, part = load(digits), load(digits).data().test
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:3]
    how = Likelihood(rtol=0.1, redraw=False)
    low, full = (one.log_likelihood(part[order], how).values for one in (run.executed("bf16"), run))
    assert cost["mean"] == pytest.approx(float((low - full).mean()), abs=1e-6) and cost["mean"] != 0
    assert cost["largest"] == pytest.approx(float((low - full).abs().max()), abs=1e-6)
    text = shell(f"{line} --precision bf16")  # finished before
    assert re.search(r"[+-]\d\.\d{4} ± \d\.\d{4} bits/dim is the change by the bf16 network", text)
    assert "bf16" not in shell(f"{line} --out plain")


def test_samples_in_bf16_are_kept_apart(shell: Shell, digits: str) -> None:
    line = f"sample {digits} --n 2 --solver heun --steps 2 --threads 1 --save npz --out here"
    shell(line)
    shell(f"{line} --precision bf16 --resume", code=2)
    assert "execution" in shell.err
    shell(f"{line} --resume")


def test_the_benchmark_for_a_gpu_runs_whole_on_a_cpu() -> None:
    script = Path(__file__).parents[1] / "experiments" / "bench_training.py"
    done = subprocess.run(
        [sys.executable, str(script), "--gpu", "--toy", "--rounds", "1", "--peak-flops", "1e12"],
        capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '| fit {"precision": "bf16", "channels_last": "yes"} |' in done.stdout
    assert re.search(r"fastest: fit .*TFLOP/s, \d+\.\d% of 1 TFLOP/s", done.stdout)


@pytest.mark.slow
def test_a_compiled_network_trains_samples_and_has_a_likelihood(tmp_path: Path) -> None:
    """With the real compiler, which takes about a minute on a CPU."""
    config = TrainConfig(data="moons", steps=5, batch=32, sample_every=10**4)
    plain, other = (fit(replace(config, compile=on), save=False, quiet=True) for on in (False, True))
    for a, b in zip(plain.base.parameters(), other.base.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    compiled, x = plain.executed(compile=True), plain.data().test[:20]
    for probes in (1, 3):
        how = Likelihood(probes=probes, redraw=False)
        one, two = (run.log_likelihood(x, how).log_prob for run in (plain, compiled))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        plain.sample(20, "ode", seed=1).x, compiled.sample(20, "ode", seed=1).x, rtol=1e-3, atol=1e-3
    )


def test_a_resumed_run_names_its_precision_first(tmp_path: Path) -> None:
    config = TrainConfig(data="moons", steps=1, batch=32, sample_every=10**4, precision="bf16")
    fit(config, out=tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match="was trained with dtype float32, not float64"):
        fit(replace(config, steps=2), out=tmp_path / "run", quiet=True, resume=True, dtype=torch.float64)
