"""All bounds of one run: each row is what it is alone, from the same draws; models whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import F64, OnNodes, ring

from scoresde import DDPM, VPSDE, FlowMatching, GaussianMixture, Likelihood, Run, load, load_data
from scoresde.core.errors import UsageError
from scoresde.likelihood.bounds import Bounds, Row, table
from scoresde.likelihood.weights import Weights

FAST = Likelihood(steps=2, divergence="difference")
KEYS = ["flow", "k2", "k8", "truncated_normal", "elbo", "elbo_levels", "chain"]


def exact(sde, means: int = 3, std: float = 0.15) -> Run:
    """A run on points in the plane whose model is an exact mixture."""
    data = load_data("moons")
    centres = torch.tensor([[0.8, 0.1], [-0.6, 0.5], [0.1, -0.7]], dtype=F64)[:means]
    mixture = GaussianMixture(sde, centres, torch.full((means,), std, dtype=F64))
    return Run(mixture, data.codec, data.info, dtype=F64)


def drawn(run: Run, n: int) -> torch.Tensor:
    """Samples of the exact mixture of a run, in data units."""
    return run.codec.to_data(run.base.sample(n, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()], ids=["vp", "flow"])
def test_the_rows_of_an_exact_mixture(sde) -> None:
    run = exact(sde)
    x = drawn(run, 300)
    bounds = run.all_bounds(x, Likelihood(rtol=1e-5), strata=64, chain_steps=60)
    assert [row.key for row in bounds.rows] == ["flow", "elbo", "chain"] and bounds.unit == "nats"
    truth = run.base.log_prob(run.to_model(x)) + run.codec.log_det(x)
    off = bounds["flow"].log_prob - truth  # at t_max, a little of the data is left, which the prior does not know
    assert abs(float(off.mean())) < 1e-3 and float(off.abs().max()) < 5e-3
    off = bounds["elbo"].log_prob - truth
    error = float(off.std()) / math.sqrt(len(x))
    assert abs(float(off.mean())) < 4 * error < 0.3, "an exact score makes the bound tight"
    found = bounds.summary()[2]
    assert found["difference"] < -5 * found["stderr_difference"], "a chain of 60 steps is another model"
    finer = run.all_bounds(x, Likelihood(rtol=1e-3), strata=1, chain_steps=240, check=False).summary()[2]
    assert finer["difference"] == pytest.approx(found["difference"] / 4, abs=3 * found["stderr_difference"])


def test_each_row_is_what_it_is_alone(copied: Callable[[str], str]) -> None:
    run = load(copied("digits"))
    x = run.data().test[:3]
    bounds = run.all_bounds(x, FAST, strata=5, chain_steps=4, seed=7, check=False)
    assert [row.key for row in bounds.rows] == KEYS and not bounds.left_out and bounds.unit == "bits/dim"
    assert [row.whose for row in bounds.rows] == ["flow"] * 4 + ["reverse SDE"] * 2 + ["chain"]
    alone = {
        "flow": FAST, "k2": replace(FAST, importance=2), "k8": replace(FAST, importance=8),
        "truncated_normal": replace(FAST, dequantisation="truncated-normal"),
    }  # fmt: skip
    for key, how in alone.items():
        scores = run.log_likelihood(x, how, seed=7, check=False)
        torch.testing.assert_close(bounds[key].log_prob, scores.log_prob, rtol=1e-9, atol=1e-9)
        assert torch.equal(bounds[key].nfe, scores.model.nfe) and bounds[key].how == str(scores.how), key
    torch.testing.assert_close(bounds["elbo"].log_prob, run.elbo(x, strata=5, seed=7).log_prob.double())
    assert bounds["elbo"].nfe.tolist() == [5] * 3 == bounds["elbo_levels"].nfe.tolist()
    assert bounds["chain"].nfe.tolist() == [4] * 3 and bounds["chain"].name == "chain, T = 4, uniform"
    # The weights are compared with K = 1 of the same probe, the others with the flow.
    one = run.log_likelihood(x, replace(FAST, redraw=False), seed=7, check=False).log_prob
    torch.testing.assert_close(bounds["k8"].base, one, rtol=1e-9, atol=1e-9)
    assert bounds["flow"].base is None and torch.equal(bounds["chain"].base, bounds["flow"].log_prob)


def test_a_row_does_not_depend_on_the_others(copied: Callable[[str], str], tmp_path: Path) -> None:
    run = load(copied("digits"))
    x = run.data().test[:3]
    options = {"strata": 3, "chain_steps": 3, "check": False}
    whole = run.all_bounds(x, FAST, **options)
    kept = run.all_bounds(x[1:], FAST, start=1, batch=1, keep=tmp_path / "kept", **options)
    for row in whole.rows:
        torch.testing.assert_close(kept[row.key].log_prob, row.log_prob[1:], rtol=1e-4, atol=2e-3)
    names = {path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()}
    assert names == {"weights", "truncated", "elbo", "levels", "chain"}
    told: list[str] = []
    again = run.all_bounds(x[1:], FAST, start=1, batch=9, keep=tmp_path / "kept", told=told.append, **options)
    assert all(torch.equal(again[row.key].log_prob, row.log_prob) for row in kept.rows), "read, not computed"
    assert told[0] == "flow" and told[-1] == "chain" and len(told) == 6
    with pytest.raises(UsageError, match="does not match"):
        run.all_bounds(x[1:], FAST, start=1, keep=tmp_path / "kept", **(options | {"chain_steps": 4}))


def test_rows_that_do_not_apply_are_left_out_with_the_reason(copied: Callable[[str], str]) -> None:
    points, pictures = load(copied("moons")), load(copied("digits"))
    left_out = points.bounds_left_out(Likelihood())
    assert left_out == {
        "flow, K = 2 and 8": "the data are continuous, so nothing is dequantised",
        "flow, truncated normal": "the data are continuous, so nothing is dequantised",
        "ELBO on the levels": "the data are continuous, so there are no levels to decode",
    }
    assert pictures.bounds_left_out(Likelihood()) == {}
    chain = Run(OnNodes(ring(DDPM(30))), points.codec, points.info, dtype=F64)
    assert "only at the nodes of a chain" in chain.bounds_left_out(Likelihood())["ELBO"]
    bounds = chain.all_bounds(points.data().test[:2], Likelihood(rtol=0.1), check=False)
    assert [row.name for row in bounds.rows] == ["flow", "chain, T = 30"] and "nodes of the model" in bounds[
        "chain"
    ].how
    assert torch.equal(bounds["chain"].log_prob, chain.elbo(points.data().test[:2]).log_prob.double())
    with pytest.raises(UsageError, match="chain_steps is 100, but the model is a chain with 30 nodes"):
        chain.bounds_left_out(Likelihood(), 100)
    for how in (Likelihood(importance=2), Likelihood(draws=2), Likelihood(dequantisation="none")):
        with pytest.raises(UsageError, match="leave these options as they are; got draws"):
            pictures.all_bounds(torch.zeros(1, 1, 8, 8), how)


def test_guided_models_are_named(copied: Callable[[str], str]) -> None:
    run = load(copied("classes")).given(3).guided(2.0)
    bounds = run.all_bounds(run.data().test[:2], FAST, strata=1, chain_steps=2, check=False)
    kinds = {row.key: row.whose for row in bounds.rows}
    assert kinds["k2"] == "flow of the guided model" and kinds["elbo_levels"] == "reverse SDE of the guided model"
    assert kinds["chain"] == "chain of the guided model"


# ---------------------------------------------------------------------------------------------------- the table itself


def made(whose: tuple[str, ...] = ("flow", "chain")) -> Bounds:
    first = torch.tensor([-3.0, -5.0, torch.nan], dtype=F64)
    other = torch.tensor([-4.0, -7.0, -1.0], dtype=F64)
    nfe = torch.tensor([10, 20, 30])
    rows = (
        Row("flow", "flow, uniform", whose[0], "a", first, nfe),
        Row("k2", "flow, K = 2", "flow", "c", other, nfe, other - 1, "K = 1 with the same probe"),
        Row("chain", "chain, T = 3", whose[1], "b", other, nfe, first, "flow, uniform"),
    )
    return Bounds(rows, {"ELBO": "of this"}, "bits/dim", torch.full((3,), 2.0, dtype=F64))


def test_means_and_paired_differences() -> None:
    flow, weighted, chain = made().summary()
    assert (flow["mean"], flow["n"], flow["nfe_mean"], flow["nfe_max"]) == (2.0, 2, 20.0, 30) and "against" not in flow
    assert flow["stderr_mean"] == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    assert (chain["mean"], chain["n"]) == (2.0, 3)
    assert chain["difference"] == 0.75 and chain["against"] == "flow, uniform"  # (0.5 + 1)/2, without the third sample
    assert chain["stderr_difference"] == pytest.approx(0.25)
    assert weighted["difference"] == -0.5 and weighted["stderr_difference"] == 0


def test_rows_with_failed_samples_are_named() -> None:
    bounds = made()
    nan = torch.full((3,), torch.nan, dtype=F64)
    failed = replace(
        bounds.rows[1], log_prob=torch.where(torch.tensor([True, False, False]), bounds.rows[1].log_prob, nan)
    )
    assert bounds.failures() == []
    assert replace(bounds, rows=(bounds.rows[0], failed, bounds.rows[2])).failures() == [
        "flow, K = 2: 2 of 3 samples failed, and are left out"
    ]


def test_the_table_states_whose_model_and_no_order() -> None:
    lines = str(made()).splitlines()
    assert lines[0].split() == "bound whose model bits/dim minus the flow evaluations".split()
    assert lines[3] == "chain, T = 3   chain        2.0000 ± 0.8660  +0.7500 ± 0.2500  20"
    assert lines[4] == "flow, K = 2: compared with K = 1 with the same probe"
    assert lines[5] == "left out: ELBO, because of this"
    assert lines[6].startswith("the rows are not ordered: flow and chain are different models")
    alone = table(made(("flow", "flow")).summary(), "nats", {})
    assert not any("ordered" in line for line in alone)


def test_weights_of_a_failed_solve_are_no_number() -> None:
    log_w = torch.tensor([[-1.0, -2.0], [-1.0, torch.nan]], dtype=F64)
    found = Weights(log_w, torch.tensor([[3, 4], [5, 6]]), torch.tensor([[0, 0], [0, 1]]))
    expected = math.log((math.exp(-1) + math.exp(-2)) / 2)
    assert float(found.log_prob(2)[0]) == pytest.approx(expected) and math.isnan(found.log_prob(2)[1])
    assert found.log_prob(1).tolist() == [-1.0, -1.0] and found.evaluations(2).tolist() == [7, 11]
