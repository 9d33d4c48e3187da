"""``scoresde likelihood``: what it prints and writes, on models that hardly know anything."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import edit
from shell import Shell

from scoresde import Likelihood, TrainConfig, fit, load, load_data
from scoresde.likelihood.data import join

FAST = "--rtol 0.3 --no-check --threads 1"


def rows(folder: str | Path) -> list[dict[str, str]]:
    with (Path(folder) / "likelihood.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figure(found: dict[str, Any], k: int = 0) -> dict[str, Any]:
    return found["sets"][k]


def foreign(path: str = "inverted.npz") -> str:
    """Digits, black on white: values among the same 17 levels."""
    np.savez(path, x=16 - load_data("digits").test.numpy().astype(np.int64))
    return path


def test_each_figure_names_the_row_of_the_file(shell: Shell, moons: str) -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    x[24] = 9.0  # the odd one
    np.save("x.npy", x)
    shell(f"likelihood {moons} --data x.npy --limit 0 --save csv,npz {FAST}")
    scored = len(rows(f"{moons}/likelihood"))
    assert (
        f"leaves out {50 - scored} samples of x; use --split all to include every sample that has no empty cells"
        in shell.err
    )
    shell(f"likelihood {moons} --data x.npy --split all --limit 0 --save csv,npz --out all {FAST}")
    assert "leaves out" not in shell.err
    expected = load(moons).log_likelihood(torch.from_numpy(x), Likelihood(rtol=0.3)).log_prob
    for folder, n in ((f"{moons}/likelihood", scored), ("all", 50)):
        found = rows(folder)
        assert len(found) == n
        for one in found:
            assert float(one["log_prob"]) == pytest.approx(float(expected[int(one["row"])]), rel=1e-4)
    assert min(rows("all"), key=lambda one: float(one["log_prob"]))["row"] == "24"


def test_rows_of_parts_and_files(shell: Shell, digits: str) -> None:
    data = load_data("digits")
    np.savez("two.npz", x_train=data.train[:20].numpy(), x_test=data.test[:5].numpy())
    shell(f"likelihood {digits} --data two.npz --split all --limit 0 --save csv --out two {FAST}")
    counted = [int(one["row"]) for one in sorted(rows("two"), key=lambda one: int(one["index"]))]
    assert counted[-5:] == list(range(5)) and sorted(counted[:-5]) == list(range(20)), "each part from 0"
    for i, picture in enumerate((data.train[:30, 0] * 15).byte().numpy()):
        Path("p").mkdir(exist_ok=True)
        Image.fromarray(picture).save(f"p/{i:02}.png")
    small = {"data": "p", "steps": 2, "batch": 8, "network_options": {"channels": 4}}
    fit(TrainConfig(**small), out="r", quiet=True)
    np.save("p.npy", np.stack([np.asarray(Image.open(path)) for path in sorted(Path("p").iterdir())])[:, None])
    how = "--dequantisation none --divergence exact"
    shell(f"likelihood r --data p --data p.npy --split all --limit 2 --save csv,npz --out q {how} {FAST}")

    def of(data: str) -> list[dict[str, str]]:
        return [one for one in rows("q") if one["data"] == data]

    files = sorted(Path("p").iterdir())
    expected = {int(one["row"]): float(one["log_prob"]) for one in of("p (2)")}
    assert len(of("p (1)")) == 2 == len(expected) and all(one["path"] == "" for one in of("p (2)"))
    model, how_exact = load("r"), Likelihood(rtol=0.3, dequantisation="none", divergence="exact")
    for one in of("p (1)"):
        assert one["row"] == "-1"
        read = torch.from_numpy(np.array(Image.open(one["path"])))[None, None]
        alone = model.log_likelihood(read, how_exact, check=False).log_prob
        assert float(one["log_prob"]) == pytest.approx(float(alone), rel=1e-4)
    for i in expected:
        read = torch.from_numpy(np.array(Image.open(files[i])))[None, None]
        alone = model.log_likelihood(read, how_exact, check=False).log_prob
        assert expected[i] == pytest.approx(float(alone), rel=1e-4)


def test_the_progress_shows_the_mean_of_all_rows(shell: Shell, moons: str) -> None:
    shell(f"likelihood {moons} --limit 40 --batch 7 --save csv {FAST}")
    final = re.search(r"40/40 .*nats (\S+)", shell.err)
    mean = np.mean([float(one["log_prob"]) for one in rows(f"{moons}/likelihood")])
    assert final and float(final[1]) == pytest.approx(mean, rel=0.006)


def test_json_says_all_that_the_figure_depends_on(shell: Shell, digits: str) -> None:
    found = shell.json(f"likelihood {digits} --limit 3 --rtol 0.3")
    assert found.keys() == {
        "run", "step", "sets", "condition", "guidance", "seed", "dtype", "device", "columns", "seconds", "files",
    }  # fmt: skip
    one = figure(found)
    assert one.keys() == {
        "data", "split", "n", "of", "failed", "unit", "mean", "stderr_mean", "stderr_probes", "change", "converged",
        "checked", "shift", "share", "nfe_mean", "nfe_max", "dequantisation", "draws", "importance", "t_min", "method",
        "divergence", "probes", "probe", "redraw", "scheme", "steps", "rtol", "atol", "max_nfe", "scale",
    }  # fmt: skip
    assert (one["unit"], one["n"], one["of"], one["divergence"], one["probes"]) == ("bits/dim", 3, 180, "difference", 1)
    assert one["stderr_probes"] is None and one["stderr_mean"] > 0, "one probe says nothing about its error"
    assert one["change"] is not None and one["converged"] is (one["change"] <= 0.01) and one["checked"] == 3
    assert [Path(f).name for f in found["files"]] == ["likelihood.png", "likelihood.csv", "likelihood.json"]
    stored = json.loads(Path(found["files"][-1]).read_text())
    assert stored == {k: v for k, v in found.items() if k != "files"}
    again = shell.json(f"likelihood {digits} --limit 1 {FAST}")
    assert Path(again["files"][0]).parent.name == "likelihood-2", "nothing is overwritten"
    assert figure(again)["stderr_mean"] is None and figure(again)["converged"] is None
    assert figure(again)["checked"] == 0


def test_continuous_data_is_scored_in_nats(shell: Shell, moons: str) -> None:
    one = figure(shell.json(f"likelihood {moons} --limit 2 {FAST} --elbo"))
    assert (one["unit"], one["divergence"], one["dequantisation"], one["probes"]) == ("nats", "exact", "none", 0)
    assert one["stderr_probes"] == 0
    assert one["elbo"]["mean"] == pytest.approx(
        sum(one["elbo"][k] for k in ("prior", "diffusion", "reconstruction")), rel=1e-5
    )
    out = shell(f"likelihood {moons} --limit 2 {FAST}")
    assert re.match(r"-?\d+\.\d{4} ± \d+\.\d{4} nats  \(n = 2 of 2,000, test, NFE", out), out
    assert "no dequantisation, exact divergence, coupled, rtol 0.3" in out


def test_the_figure_is_that_of_the_library_and_of_any_batch(shell: Shell, digits: str) -> None:
    line = f"likelihood {digits} --limit 5 --steps 3 --no-check --threads 1 --probes 2 --elbo --strata 4 --save csv"
    found = shell.json(f"{line} --out whole")
    shell.json(f"{line} --batch 2 --out parts")
    for whole, part in zip(rows("whole"), rows("parts"), strict=True):
        assert (whole["data"], whole["index"]) == (part["data"], part["index"])
        for name in ("log_prob", "bits_per_dim", "stderr_probes", "elbo"):
            assert float(part[name]) == pytest.approx(float(whole[name]), rel=1e-3, abs=2e-2), name
    # samples 0 to 2 are the same ones with the same draws in a smaller selection
    shell.json(f"{line.replace('--limit 5', '--limit 3')} --out fewer")
    for whole, fewer in zip(rows("whole"), rows("fewer"), strict=False):
        assert whole["index"] == fewer["index"]
        assert float(fewer["log_prob"]) == pytest.approx(float(whole["log_prob"]), rel=1e-3)
    run, data = load(digits), load_data("digits")
    index = [int(r["index"]) for r in rows("whole")]
    assert len(set(index)) == 5 and index != [0, 1, 2, 3, 4]
    scores = run.log_likelihood(data.test[index], Likelihood(steps=3, probes=2), check=False)
    assert figure(found)["mean"] == pytest.approx(scores.mean(), rel=1e-4)
    assert figure(found)["stderr_mean"] == pytest.approx(scores.stderr_mean(), rel=1e-2)
    assert figure(found)["stderr_probes"] == pytest.approx(scores.stderr_sample(), rel=1e-2) and math.isfinite(
        figure(found)["stderr_probes"]
    )
    assert figure(found)["mean"] == pytest.approx(np.mean([float(r["bits_per_dim"]) for r in rows("whole")]), rel=1e-5)
    assert join([scores]).mean() == scores.mean()


def test_several_data_sets_share_one_figure(shell: Shell, digits: str) -> None:
    out = shell(f"likelihood {digits} --data digits --data {foreign()} --split all --limit 4 {FAST} --save png,npz")
    lines = out.splitlines()
    assert len(lines) == 5 and lines[2] == "convergence not checked: a more accurate solution could change the result"
    assert lines[0].startswith("digits: ") and "n = 4 of 1,797, all" in lines[0] and "AUROC" not in lines[0]
    assert re.search(r"^inverted: .*n = 4 of 180, all.*, AUROC [01]\.\d{3}\)$", lines[1])
    assert shell.err.count("computing the likelihoods of 4 of") == 2
    with np.load(f"{digits}/likelihood/likelihood.npz") as arrays:
        assert arrays["data"].tolist() == ["digits"] * 4 + ["inverted"] * 4
        assert np.isfinite(arrays["bits_per_dim"]).all()
    found = json.loads(Path(digits, "likelihood", "likelihood.json").read_text())
    worse = (arrays_of(digits)[4:, None] > arrays_of(digits)[None, :4]).mean()
    assert figure(found, 1)["auroc"] == pytest.approx(worse)


def arrays_of(run: str) -> np.ndarray:
    with np.load(f"{run}/likelihood/likelihood.npz") as arrays:
        return arrays["bits_per_dim"]


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        (
            "--draws 2 --importance 2 --steps 2",
            {"draws": 2, "importance": 2, "redraw": False},
            "2 draws of the importance-",
        ),
        ("--dequantisation truncated-normal", {"dequantisation": "truncated-normal"}, "truncated-normal dequant"),
        ("--dequantisation none", {"unit": "nats"}, "no dequantisation"),
        ("--method quadrature --probes 2", {"method": "quadrature", "probes": 2}, "quadrature"),
        (
            "--probe gaussian --no-redraw",
            {"probe": "gaussian", "redraw": False},
            "1 gaussian probe with finite differences, fixed along",
        ),
        ("--scheme bosh3 --t-min 1e-3", {"scheme": "bosh3", "t_min": 1e-3}, "rtol 0.3 with bosh3, t_min 0.001"),
        ("--steps 3 --scheme heun", {"steps": 3, "nfe_max": 12}, "3 steps with heun"),
        ("--steps 3 --scheme adams --divergence hutchinson", {"steps": 3, "nfe_max": 3}, "3 steps with adams"),
        ("--divergence difference", {"divergence": "difference", "probes": 1}, "1 rademacher probe with finite diff"),
        ("--divergence exact --steps 1", {"divergence": "exact", "probes": 0, "stderr_probes": 0}, "exact divergence"),
    ],
)
def test_options_reach_the_figure(
    shell: Shell, digits: str, options: str, expected: dict[str, Any], words: str
) -> None:
    out = shell(f"likelihood {digits} --limit 2 {FAST} {options} --save csv")
    assert words in out
    found = figure(json.loads(Path(digits, "likelihood", "likelihood.json").read_text()))
    assert {k: found[k] for k in expected} == expected
    assert math.isfinite(found["mean"])


def test_few_euler_steps_are_loud_in_words_and_in_json(shell: Shell, moons: str) -> None:
    line = f"likelihood {moons} --data moons --data moons --limit 2 --steps 8 --scheme euler --quiet --save csv"
    out = shell(line)
    assert out.count("NOT CONVERGED: the results change by up to ") == 2
    assert "warning: THE LOG-LIKELIHOOD HAS NOT CONVERGED" in shell.err and "of steps is doubled to 16" in shell.err
    assert ".py" not in shell.err and shell.err.count("warning:") == 1, "the same words once"
    found = shell.json(line)
    for one in found["sets"]:
        assert one["converged"] is False and one["change"] > 0.01


def test_the_bound_of_the_reverse_sde_and_of_a_chain(shell: Shell, tmp_path: Path) -> None:
    small = "--data moons --steps 2 --batch 8 --set network.width=8 --set network.blocks=1 --quiet --threads 1"
    shell(f"train --sde ddpm --set sde.steps=30 {small} --out chain")
    shell(f"train {small} --out plain")
    for run, whose in (("chain", "chain"), ("plain", "reverse SDE")):
        second = shell(f"likelihood {run} --limit 3 {FAST} --elbo").splitlines()[1]
        assert f"nats by the variational bound of the {whose}  (prior " in second
        numbers = [float(v) for v in re.findall(r"-?\d+\.\d+", second)]
        assert numbers[0] == pytest.approx(sum(numbers[2:]), abs=2e-4), "the terms add up"
    for run, nfe in (("chain", 30), ("plain", 7)):
        found = figure(shell.json(f"likelihood {run} --limit 3 {FAST} --elbo --strata 7"))
        assert found["elbo"]["nfe"] == nfe


def test_labels_and_guidance(shell: Shell, copied: Callable[[str], str]) -> None:
    classes, plain = copied("classes"), copied("digits")
    line = f"likelihood {classes} --limit 2 {FAST} --save csv"
    found = shell.json(f"{line} --labels --guidance 1.5 --elbo --strata 3 --out a")
    assert (found["condition"], found["guidance"]) == ("labels", 1.5)
    shell.json(f"{line} --label 3 --out b")
    index = [int(r["index"]) for r in rows("b")]
    run, data = load(classes), load_data("digits")
    assert figure(found)["elbo"]["whose"] == "reverse SDE of the guided model"
    for folder, labels, scale in (("a", data.test_labels, 1.5), ("b", None, 1.0)):
        asked = run.given(3 if labels is None else labels[index]).guided(scale)
        scores = asked.log_likelihood(data.test[index], Likelihood(rtol=0.3), check=False)
        torch.testing.assert_close(
            torch.tensor([float(r["log_prob"]) for r in rows(folder)]).double(), scores.log_prob, rtol=1e-3, atol=1e-2
        )
    shell.refuses(f"likelihood {plain} --limit 2 --labels", 2, "to use a label for each", "--cond class")
    shell.refuses(f"likelihood {plain} --limit 2 --label 3", 2, "without labels", "--cond class")
    shell.refuses(f"likelihood {classes} --label eleven", 2, "'eleven'")
    assert not list(Path(plain).glob("likelihood*")), "an empty folder is left"


def test_several_runs_on_the_same_samples_with_the_same_noise(shell: Shell, copied: Callable[[str], str]) -> None:
    a, b = copied("digits"), copied("classes")
    line = "--limit 4 --steps 2 --no-check --threads 1 --elbo --strata 2 --save csv,png"
    found = shell.json(f"likelihood {a} {b} {a} {line}")
    assert found["run"] == a and [r["run"] for r in found["runs"]] == [a, b, a]
    assert [s["run"] for s in found["sets"]] == [a, b, a] and Path(found["files"][0]).parent == Path(a, "likelihood")
    alone = [figure(shell.json(f"likelihood {run} {line} --out {name}")) for name, run in (("a", a), ("b", b))]
    values = [np.array([float(r["bits_per_dim"]) for r in rows(name)]) for name in ("a", "b")]
    assert [r["index"] for r in rows("a")] == [r["index"] for r in rows("b")]
    one, other, again = found["sets"]
    assert one["mean"] == alone[0]["mean"] and other["mean"] == alone[1]["mean"], "as if each were alone"
    assert "difference" not in one and other["paired"] == 4 and other["against"] == a
    d = values[1] - values[0]
    assert other["difference"] == pytest.approx(d.mean(), rel=1e-4)
    assert other["stderr_difference"] == pytest.approx(d.std(ddof=1) / 2, rel=1e-3)
    assert again["difference"] == again["stderr_difference"] == 0, "the same noise"
    assert other["elbo"]["difference"] == pytest.approx(other["elbo"]["mean"] - one["elbo"]["mean"], abs=1e-5)
    with (Path(a) / "likelihood/likelihood.csv").open() as file:
        assert [r["run"] for r in csv.DictReader(file)] == [a] * 4 + [b] * 4 + [a] * 4


def test_runs_are_told_apart_in_words(shell: Shell, copied: Callable[[str], str]) -> None:
    a, b = copied("digits"), copied("classes")
    out = shell(f"likelihood {a} {b} --data digits --data {foreign()} --limit 3 {FAST} --save png")
    lines = out.splitlines()
    assert [line.split(": ")[:2] for line in lines[:6]] == [
        [run, data] for data in ("digits", "inverted") for run in (a, b, b)
    ]  # fmt: skip
    assert re.match(rf"{b}: digits: [+-]\d+\.\d{{4}} ± ", lines[2])
    assert re.search(rf"± \d\.\d{{4}} bits/dim against {a}, sample by sample  \(n = 3, lower is better\)$", lines[2])
    assert "AUROC" not in lines[0] and "AUROC" in lines[3] and "AUROC" in lines[4]
    assert lines[6].startswith("convergence not checked") and "dequantisation" in lines[7]
    assert shell.err.count("computing the likelihoods of 3 of") == 4
    assert not [line for line in lines if line.startswith("warning")] and "unfair" not in shell.err


def test_another_split_is_said(shell: Shell, copied: Callable[[str], str]) -> None:
    a, b = copied("digits"), copied("digits", "other")
    edit(f"{b}/config.json", lambda stored: {**stored, "config": {**stored["config"], "seed": 1}})
    shell(f"likelihood {a} {b} --limit 20 {FAST} --save csv")
    assert re.search(
        rf"warning: the comparison is unfair: {b} was trained on \d+ of these 20 samples, which {a} holds out \(seed 1",
        shell.err,
    )


def test_runs_that_cannot_be_compared(shell: Shell, copied: Callable[[str], str]) -> None:
    a, b, c = copied("digits"), copied("moons"), copied("classes")
    shell.refuses(f"likelihood {a} {b}", 2, "cannot be compared", "shape")
    shell.refuses(f"likelihood {c} {a} --labels", 2, "without labels")
    shell.refuses(f"likelihood {a} nowhere", 3, "nowhere")
    assert not list(Path(a).glob("likelihood*"))


def test_data_that_does_not_fit_the_run(shell: Shell, digits: str) -> None:
    np.save("v.npy", np.random.default_rng(0).normal(8, 3, (40, 1, 8, 8)))
    shell.refuses(f"likelihood {digits} --data v.npy", 3, "v: ", "is not a level of digits", "17 levels in [0, 16]")
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    shell.refuses(f"likelihood {digits} --data x.npy", 3, "x: ", "values range from 3 to 249", "17 levels in [0, 16]")
    np.save("y.npy", np.arange(17 * 40).reshape(-1, 34) % 17)
    shell.refuses(f"likelihood {digits} --data y.npy --quiet", 3, "(34,)", "(1, 8, 8)")
    shell.refuses(f"likelihood {digits} --data nowhere.npz", 3, "nowhere.npz")
    # bytes that are all among the levels are as good as any
    np.save("z.npy", np.random.default_rng(0).integers(0, 17, (20, 8, 8), dtype=np.uint8))
    assert figure(shell.json(f"likelihood {digits} --data z.npy --limit 2 {FAST} --save csv"))["n"] == 2


def test_data_in_other_units_are_scored_with_a_warning(shell: Shell, moons: str) -> None:
    np.save("x.npy", 255 * load_data("moons").test[:50].numpy())
    shell(f"likelihood {moons} --data x.npy --limit 3 --steps 1 --no-check --elbo --strata 1 --save csv --threads 1")
    assert shell.err.count("warning: the values in column 0 range from") == 1 and "those of moons" in shell.err


def test_samples_that_fail_are_named_and_left_out(shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoresde.run.run import Run

    original = Run.log_likelihood

    def spoilt(self: Run, x: torch.Tensor, *how: Any, **options: Any) -> object:
        x = x.clone()
        x[1] = 1e30
        return original(self, x, *how, **options)

    monkeypatch.setattr(Run, "log_likelihood", spoilt)
    out = shell(f"likelihood {moons} --limit 3 {FAST}", 4)
    assert "n = 2 of 2,000" in out and "moons: 1 of 3 samples failed (1)" in shell.err
    stored = json.loads(Path(moons, "likelihood", "likelihood.json").read_text())
    assert figure(stored)["failed"] == 1 and math.isfinite(figure(stored)["mean"])
    assert [r["status"] for r in rows(f"{moons}/likelihood")][::2] == ["0", "0"]
    assert rows(f"{moons}/likelihood")[1]["log_prob"] == "nan"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(shell: Shell, moons: str) -> None:
    Path("closed").mkdir(mode=0o500)
    shell.refuses(f"likelihood {moons} --limit 2 {FAST} --out closed/x", 3, "closed/x", "--out")


def test_a_file_in_the_place_of_a_folder(shell: Shell, moons: str) -> None:
    Path("file").touch()
    shell.refuses(f"likelihood {moons} --limit 2 {FAST} --out file/x", 3, "file is a file", "--out")


def test_the_bounds_of_two_runs_are_compared_in_words(shell: Shell, copied: Callable[[str], str]) -> None:
    a, b = copied("digits"), copied("classes")
    out = shell(f"likelihood {a} {b} --limit 3 {FAST} --elbo --strata 4 --save csv")
    shown = re.search(
        rf"^{b}: ([+-]\S+) ± (\S+) bits/dim against {a} by the variational bound, .*\(n = 3, lower is better", out, re.M
    )
    assert shown is not None, out
    bound = json.loads(Path(a, "likelihood", "likelihood.json").read_text())["sets"][1]["elbo"]
    assert bound["paired"] == 3 and f"{bound['difference']:+.4f}" == shown[1]
    assert f"{bound['stderr_difference']:.4f}" == shown[2]
    each = [-float(r["elbo"]) / 64 / math.log(2) for r in rows(f"{a}/likelihood")]  # three of a, three of b
    assert np.mean(each[3:]) - np.mean(each[:3]) == pytest.approx(bound["difference"], rel=1e-4)


def test_the_file_states_the_units_of_the_columns(shell: Shell, digits: str, moons: str) -> None:
    found = shell.json(f"likelihood {digits} --limit 2 {FAST} --elbo --strata 4 --save csv")
    assert found["columns"] == {
        "log_prob": "nats", "bits_per_dim": "bits/dim", "stderr_probes": "nats", "elbo": "nats", "change": "nats",
    }  # fmt: skip
    assert found["columns"].keys() <= rows(f"{digits}/likelihood")[0].keys()
    found = shell.json(f"likelihood {moons} --limit 2 {FAST} --save csv")
    assert found["columns"] == {"log_prob": "nats", "stderr_probes": "nats", "change": "nats"}


def test_the_check_is_told_and_so_is_that_there_was_none(shell: Shell, moons: str) -> None:
    out = shell(f"likelihood {moons} --limit 20 --steps 16 --elbo --strata 4 --save csv")
    found = figure(json.loads(Path(moons, "likelihood", "likelihood.json").read_text()))
    assert found["checked"] == 16 and "solving some of the samples again" in shell.err
    assert shell.err.index("computing the variational bounds of 20 samples") < shell.err.index(
        "solving some of the samples again"
    )
    word = "passed" if found["converged"] else "FAILED"
    change = f"{found['change']:.2g} nats"
    assert f"\ncheck {word}: solving 16 samples again changes the likelihoods by at most {change}, and their" in out
    assert re.search(r"and their mean by [+-][\d.e-]+, which is [\d.]+ % of its error\n", out)
    assert found["share"] == pytest.approx(abs(found["shift"]) / found["stderr_mean"])
    out = shell(f"likelihood {moons} --limit 2 --steps 2 --no-check --save csv")
    assert "\nconvergence not checked: a more accurate solution could change the result\n" in out
    assert "solving some" not in shell.err


def test_the_check_in_words() -> None:
    from scoresde.cli.scored import _checks

    one = {"converged": True, "checked": 16, "change": 0.00012, "unit": "bits/dim", "data": "a"}
    failed = {**one, "converged": False, "change": None, "data": "b"}
    none = {**one, "converged": None, "checked": 0, "change": None, "data": "c"}
    assert _checks([one, failed, none], True) == [
        "a: check passed: solving 16 samples again changes the likelihoods by at most 0.00012 bits/dim",
        "b: check FAILED: solving 16 samples again failed for at least one of them",
        "c: convergence not checked",
    ]
    del one["checked"]  # the file of an earlier version
    assert _checks([one], False) == [
        "check passed: solving some samples again changes the likelihoods by at most 0.00012 bits/dim"
    ]


def test_a_sample_that_cannot_be_solved_again_is_no_crash() -> None:
    from scoresde.cli.scored import _lines

    found = {
        "data": "d", "n": 2, "of": 2, "split": "test", "unit": "nats", "mean": 1.0, "stderr_mean": 0.1, "nfe_mean": 2,
        "stderr_probes": None, "nfe_max": 3, "converged": False, "change": None,
    }  # fmt: skip
    assert _lines(found, False).endswith("NOT CONVERGED: solving a sample again failed")
