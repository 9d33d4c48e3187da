"""``scoresde likelihood --within``: what it prints, writes and refuses, on a model that hardly knows anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from shell import Shell

FAST = "--rtol 0.1 --threads 1 --split all --limit 200"


def test_it_prints_and_writes_the_mean_with_the_parts_of_its_error(shell: Shell, digits: str) -> None:
    out = shell(f"likelihood {digits} --within 0.005 {FAST} --out found")
    stored = json.loads(Path("found/likelihood.json").read_text())
    assert sorted(path.name for path in Path("found").iterdir()) == ["likelihood.json", "request.json"]
    assert re.match(r"\d+\.\d{4} ± 0\.\d{4} bits/dim of the population  \(200 samples of digits, all; ± 0.005 was", out)
    assert "the error consists of: the samples 0." in out and "forward passes (" in out and "0 tolerance" in out
    assert stored["reached"] and stored["stderr_mean"] <= 0.005 and stored["parts"].keys() == {
        "pictures", "correction", "tolerance",
    }  # fmt: skip
    assert stored["plan"]["plain_cost"] > 0 and "plan: of 200 pictures," in shell.err
    assert (stored["n"], stored["within"], stored["of"], stored["failed"]) == (200, 0.005, "population", 0)
    assert (stored["divergence"], stored["rtol"]) == ("difference", 0.1)
    again = shell.json(f"likelihood {digits} --within 0.005 {FAST} --out again --batch 17 --quiet")
    assert again["mean"] == pytest.approx(stored["mean"], abs=1e-4) and again["cost"] == stored["cost"]
    assert again["files"] == [str(Path("again/likelihood.json"))]


def test_a_data_set_that_is_too_small_is_named(shell: Shell, digits: str) -> None:
    found = shell.json(f"likelihood {digits} --within 1e-6 --no-features --rtol 0.1 --threads 1 --split all --limit 70")
    assert found["reached"] is False and found["floor"] > 1e-6
    assert "± 1e-06 WAS NOT REACHED: the 70 samples allow ±" in shell.err
    found = shell.json(f"likelihood {digits} --within 5 --rtol 0.3 --threads 1 --limit 20 --of these")
    assert found["sizes"] == {"plain": 20} and found["of"] == "these" and found["plan"] is None


def test_it_resumes_and_knows_a_finished_result(shell: Shell, digits: str) -> None:
    line = f"likelihood {digits} --within 0.3 {FAST} --out found"
    whole = shell(line)
    assert shell(f"{line} --resume").splitlines()[:3] == whole.splitlines()[:3]
    assert "is already finished" in shell.err
    assert "does not match" in shell.refuses(f"{line} --resume --seed 1", 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--within 0.1 --importance 2", "importance is 2"),
        ("--within 0.1 --draws 2", "draws is 2"),
        ("--within 0.1 --steps 4", "steps is 4"),
        ("--within 0.1 --data digits --data digits", "several data sets"),
        ("{run} --within 0.1", "several runs"),
        ("--within 0.1 --elbo", "does not support --elbo"),
        ("--within 0.1 --all-bounds", "does not support --all-bounds"),
        ("--within 0.1 --save csv", "does not support --save"),
        ("--within 0.1 --strata 8", "does not support --strata"),
        ("--within 0.1 --no-check", "does not support --check or --no-check"),
        ("--within 0", "0"),
        ("--of these", "--of needs --within"),
        ("--no-features", "--no-features needs --within"),
    ],
)
def test_what_does_not_suit_it_is_refused_before_any_work(shell: Shell, digits: str, options: str, said: str) -> None:
    before = sorted(Path(digits).iterdir())
    assert said in shell.refuses(f"likelihood {digits} {options.format(run=digits)} --threads 1", 2)
    assert sorted(Path(digits).iterdir()) == before


def test_a_single_sample_has_no_error(shell: Shell, moons: str) -> None:
    found = shell.json(f"likelihood {moons} --within 9 --limit 1 --rtol 0.3 --threads 1")
    assert found["stderr_mean"] is None and found["reached"] is False and found["unit"] == "nats"
    assert "unknown" in shell(f"likelihood {moons} --within 9 --limit 1 --rtol 0.3 --threads 1")
    found = shell.json(f"likelihood {moons} --within 0.2 --limit 150 --rtol 0.3 --threads 1")
    assert found["divergence"] == "exact" and found["stderr_mean"] <= 0.2
