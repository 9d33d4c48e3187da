"""The evaluation of samples: what is compared with what, the floor, files and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import gaussian
from PIL import Image

from scoresde import VPSDE, Multistep, ProbabilityFlow, load, load_data
from scoresde.cli import main
from scoresde.core.errors import DataError, UsageError
from scoresde.core.tables import METRICS
from scoresde.data import Dataset
from scoresde.metrics import Measurement, frechet, frechet_distance, jackknife, kernel_distance, neighbourhoods
from scoresde.metrics.measurement import deal
from scoresde.plot import neighbour_sheet
from scoresde.run.samples import read_samples
from scoresde.solvers.exponential import sa_solver
from scoresde.study import features
from scoresde.study.classifier import ClassifierConfig, train_classifier
from scoresde.study.evaluate import (
    compare,
    described,
    evaluate,
    evaluate_features,
    evaluation_table,
    metrics_by_name,
    resolved_options,
    write_evaluation,
)
from scoresde.study.features import Reference, pixels


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def small(digits: Dataset) -> Dataset:
    """Fewer digits: 300 to train on, 60 held out."""
    return replace(digits, train=digits.train[:300], test=digits.test[:60])


def noisy(x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Digits with so much noise that they are nobody's copy, on their levels."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return (x.float() + 3 * noise).round().clamp(0, 16)


# ------------------------------------------------------------------------------------------------- what is measured


def test_samples_and_floor_are_compared_with_the_same_reference(small: Dataset) -> None:
    by, x = pixels(small.codec), noisy(small.train[:50])
    found = evaluate(x, small, by, metrics_by_name(["frechet", "prdc", "kernel"]), seed=5)
    rows = {row.metric: row for row in found.rows}
    assert list(rows) == ["frechet", "precision", "recall", "density", "coverage", "kernel"]
    assert rows["frechet"].samples.value == frechet_distance(by(x), by(small.test))
    density = neighbourhoods(by(x), by(small.test)).density
    assert (rows["density"].samples.value, rows["density"].samples.stderr) == (density.value, density.stderr)
    # The floor is of as many training rows, drawn by the seed.
    chosen = torch.randperm(300, generator=torch.Generator().manual_seed(6))[:50]
    real = by(small.train[chosen])
    assert rows["frechet"].real is not None and rows["frechet"].real.value == frechet_distance(real, by(small.test))
    assert rows["kernel"].real == kernel_distance(real, by(small.test))
    assert (found.n, found.n_real, found.features, found.copies) == (50, 50, 64, None)
    assert rows["frechet"].samples.extrapolated > 1 > abs(rows["frechet"].real.extrapolated)


def test_against_the_training_data_the_floor_is_held_out(small: Dataset) -> None:
    by = pixels(small.codec)
    found = evaluate(noisy(small.test), small, by, metrics_by_name(["frechet"]), against="train")
    assert found.reference.split == "train" and found.reference.moments.n == 300 and found.n_real == 60
    assert found.rows[0].real is not None
    assert found.rows[0].real.value == frechet_distance(by(small.test), by(small.train))
    fewer = evaluate(noisy(small.test), small, by, metrics_by_name(["frechet"]), against="train", limit=100)
    assert fewer.reference.moments.n == 100
    with pytest.raises(UsageError, match="unknown split 'all'"):
        evaluate(small.test, small, by, {}, against="all")


def test_a_stored_reference_gives_the_same_figures(small: Dataset, tmp_path: Path) -> None:
    by, x, metrics = pixels(small.codec), noisy(small.train[:40]), metrics_by_name(list(METRICS))
    first = evaluate(x, small, by, metrics)
    first.reference.save(tmp_path / "r")
    again = evaluate(x, small, by, metrics, reference=Reference.load(tmp_path / "r"))
    assert described(again) == described(first)
    with pytest.raises(UsageError, match="hash"):
        evaluate(x, small, replace(by, hash="0"), metrics, reference=first.reference)
    # Moments alone serve the Fréchet distance, and nothing else.
    bare = replace(first.reference, features=None)
    only = compare(by(x), bare, metrics_by_name(["frechet"]))
    assert only[0].samples.value == pytest.approx(first.rows[0].samples.value, rel=1e-9) and only[0].real is None
    with pytest.raises(UsageError, match="the metric 'kernel' requires the features"):
        compare(by(x), bare, metrics_by_name(["frechet", "kernel"]))


def test_a_metric_of_ones_own_gets_an_error(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_metrics_a.py").write_text(
        "def shift(x, y):\n    return (x.mean() - y.mean()).abs()\n\ndef words(x, y):\n    return 'far'\n"
    )
    by, x = pixels(small.codec), noisy(small.train[:40])
    metric = metrics_by_name(["my_metrics_a:shift"])
    row = evaluate(x, small, by, metric).rows[0]
    expected = jackknife(lambda a, b: float((a.mean() - b.mean()).abs()), by(x), by(small.test))
    assert row.samples == expected and row.samples.stderr > 0
    with pytest.raises(UsageError, match="must return a number or a Measurement, got 'far'"):
        evaluate(x, small, by, metrics_by_name(["my_metrics_a:words"]))
    with pytest.raises(UsageError, match="unknown metric 'frechett'; did you mean 'frechet'"):
        metrics_by_name(["frechett"])


def test_a_planted_copy_is_found_among_samples_and_held_out_data_raise_no_flag(digits: Dataset) -> None:
    by, x = pixels(digits.codec), noisy(digits.train[:200])
    x[31] = digits.train[777]
    found = evaluate(x, digits, by, {}, copies=by)
    assert found.copies is not None and found.copies.flagged.tolist() == [31]
    assert int(found.copies.nearest[31]) == 777 and found.copies.exact == 1
    assert digits.rows is not None and (row := int(digits.rows[777])) != 777  # the split shuffles
    assert f"1 flagged: sample 31 (nearest: row {row}); exact copies: 1 (among held-out data: 0)" in evaluation_table(
        found
    )
    clean = evaluate(digits.test.float(), digits, by, {}, copies=by)
    assert clean.copies is not None and len(clean.copies.flagged) == 0 and clean.copies.exact == 0
    assert clean.copies.closer.value == 0.5 and "no sample is closer" in evaluation_table(clean)


def test_too_few_held_out_rows_are_no_reason_to_measure_nothing(small: Dataset) -> None:
    by, few = pixels(small.codec), replace(small, test=small.test[:19])
    with pytest.warns(
        UserWarning, match="check for copies was skipped: it requires at least 20 held-out rows, but digits has 19"
    ):
        found = evaluate(noisy(small.train[:30]), few, by, metrics_by_name(["frechet"]), copies=by)
    assert found.copies is None and found.rows[0].samples.value > 0 and "copies" not in evaluation_table(found)


@pytest.mark.parametrize("held_out", [2, 5, 6])
def test_neighbours_of_too_few_rows_are_left_out_and_the_rest_is_measured(small: Dataset, held_out: int) -> None:
    few, metrics = replace(small, test=small.test[:held_out]), metrics_by_name(["frechet", "prdc"])
    by, x = pixels(small.codec), noisy(small.train[:40])
    if held_out > 5:
        names = {row.metric for row in evaluate(x, few, by, metrics, copies=None).rows}
        assert names == {"frechet", "precision", "recall", "density", "coverage"}
        return
    with pytest.warns(UserWarning, match=f"'prdc' was skipped: .*, got 40 and {held_out}"):
        found = evaluate(x, few, by, metrics, copies=None)
    assert [row.metric for row in found.rows] == ["frechet"]
    with pytest.raises(UsageError, match="k = 5"):  # nothing else was asked for
        evaluate(x, few, by, metrics_by_name(["prdc"]), copies=None)


def test_a_table_without_figures_states_what_was_compared(small: Dataset) -> None:
    few = replace(small, test=small.test[:6])
    with pytest.warns(UserWarning, match="the check for copies was skipped"):
        found = evaluate(noisy(small.train[:40]), few, pixels(small.codec), {}, copies=pixels(small.codec))
    assert "40 samples against 6 rows of digits (test)" in evaluation_table(found)


def test_the_table_states_numbers_and_features(small: Dataset) -> None:
    by = pixels(small.codec)
    found = evaluate(noisy(small.train[:40]), small, by, metrics_by_name(["frechet", "mmd"]), copies=by)
    text = evaluation_table(found)
    lines = text.splitlines()
    assert lines[0].split() == ["samples", "real", "data"]
    assert [line.split()[0] for line in lines[1:6]] == ["frechet", "without", "mmd", "closer", "authenticity"]
    assert lines[1].count("±") == 2
    assert "40 samples against 60 rows of digits (test); real data: 40 rows of the other split" in text
    assert f"features: pixels (64 per row), hash {by.hash}, resizing none" in text


def test_the_extrapolated_value_has_the_error_of_the_pseudo_values(small: Dataset) -> None:
    by = pixels(small.codec)
    found = evaluate(noisy(small.train[:60]), small, by, metrics_by_name(["frechet"]))
    x, y = by(noisy(small.train[:60])), by(small.test)
    blocks = deal([60, 60])
    without = [frechet_distance(x[blocks[0] != b], y[blocks[1] != b]) for b in range(20)]
    pseudo = 20 * found.rows[0].samples.value - 19 * np.array(without)
    error = pseudo.std(ddof=1) / 20**0.5
    line = evaluation_table(found).splitlines()[2]
    assert line.split()[:2] == ["without", "bias"] and line.count("±") == 2
    assert line.split()[2:5] == str(Measurement(float(pseudo.mean()), float(error))).split()


def test_fewer_real_rows_than_samples_give_no_floor(small: Dataset) -> None:
    by, x, names = pixels(small.codec), noisy(small.train[:80]), metrics_by_name(["frechet", "kernel", "prdc"])
    told = (
        "there are fewer real rows than samples, so the values for real data are not a floor for frechet, precision, "
    )
    told += "recall, density, coverage; to obtain a floor, compare at most 60 samples"
    assert told in evaluation_table(evaluate(x, small, by, names, against="train"))
    assert "not a floor" not in evaluation_table(evaluate(x[:60], small, by, names, against="train"))
    assert "not a floor" not in evaluation_table(evaluate(x, small, by, names))
    unbiased = metrics_by_name(["kernel"])
    assert "not a floor" not in evaluation_table(evaluate(x, small, by, unbiased, against="train"))


def test_options_are_resolved_as_the_solver_resolves_them() -> None:
    model = gaussian(VPSDE(), dims=2)
    made = {"grid": "sqrt", "order": 3, "correct": True, "taper": False}
    assert {k: v for k, v in resolved_options(Multistep(30), model).items() if k in made} == made
    few = resolved_options(Multistep(5, order=2, variable="x0", grid="uniform"), model)
    assert (few["grid"], few["order"], few["correct"], few["taper"]) == ("uniform", 2, False, True)
    assert resolved_options(sa_solver(10), model)["grid"] == "sqrt"
    ode = resolved_options(ProbabilityFlow(rtol=1e-3), model)
    assert (ode["atol"], ode["method"]) == (1e-3, "dopri5")


# ------------------------------------------------------------------------------------------------------------- files


def test_what_is_written(small: Dataset, tmp_path: Path) -> None:
    by, x = pixels(small.codec), noisy(small.train[:40])
    x[3] = small.train[200]
    found = evaluate(x, small, by, {"frechet": frechet, "odd": lambda a, b: Measurement(1.0)}, copies=by)
    files = write_evaluation(tmp_path, found, {"made": "so"}, (small.info, x, small.train))
    assert [f.name for f in files] == ["neighbours.png", "evaluation.json"]
    facts = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert facts["made"] == "so" and facts["metrics"]["odd"]["samples"] == {"value": 1.0, "stderr": None, "bias": None}
    assert facts["metrics"]["frechet"]["samples"]["value"] == found.rows[0].samples.value
    assert facts["copies"]["flagged"] == [3] and facts["copies"]["suspects"][0]["training_row"] == int(small.rows[200])
    assert facts["features"] == {"name": "pixels", "hash": by.hash, "resize": "none", "count": 64}
    assert facts["reference"] == {"data": "digits", "split": "test", "n": 60}
    assert min(Image.open(tmp_path / "neighbours.png").size) > 300


def test_a_copy_of_a_picture_is_traced_to_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    drawn = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for i, picture in enumerate(drawn):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    data = load_data(str(folder), test_fraction=0.5)
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8))
    x[4] = data.train[7]
    found = evaluate(x, data, pixels(data.codec), {}, copies=pixels(data.codec))
    file = data.files[7]
    np.testing.assert_array_equal(np.asarray(Image.open(file)), x[4, 0].numpy())
    assert f"sample 4 (nearest: {file})" in evaluation_table(found)
    write_evaluation(tmp_path, found, {})
    suspect = json.loads((tmp_path / "evaluation.json").read_text())["copies"]["suspects"][0]
    assert suspect["sample"] == 4 and suspect["training_file"] == str(file) and "training_row" not in suspect


def vermilion(figure) -> int:
    """How many frames have the colour of what is flagged."""
    colours = [axes.spines["left"].get_edgecolor()[:3] for axes in figure.axes]
    return sum(colour == pytest.approx((0.835, 0.369, 0), abs=0.01) for colour in colours)


def test_the_sheet_shows_pairs_and_frames_what_is_flagged(digits: Dataset) -> None:
    x, y = digits.test[:11], digits.train[:11]
    figure = neighbour_sheet(x, y, [str(i) for i in range(11)], "image", 0, 16, flagged=[2, 9])
    assert len(figure.axes) == 22 and vermilion(figure) == 4
    shown = [axes.images[0].get_array()[..., 0] for axes in figure.axes]
    for i in (0, 9):
        for panel, source in ((shown[2 * i], x), (shown[2 * i + 1], y)):
            np.testing.assert_allclose(panel, np.rint(255 * source[i, 0].double().numpy() / 16))
    lines = neighbour_sheet(torch.randn(3, 2, 5), torch.randn(3, 2, 5), ["a", "b", "c"], "signal", 0, 1, flagged=[1])
    assert len(lines.axes) == 3 and vermilion(lines) == 1 and len(lines.axes[0].lines) == 2
    near, far = torch.rand(3, 2), torch.rand(3, 2)
    points = neighbour_sheet(near, far, ["a", "b", "c"], "vector", 0, 1, flagged=[1], data=torch.rand(50, 2))
    (axes,) = points.axes  # one panel, with a line from each sample to its row
    for i, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_xydata(), torch.stack([far[i], near[i]]))
        assert (line.get_color() == axes.lines[1].get_color()) == (i == 1)
    assert [len(dots.get_offsets()) for dots in axes.collections] == [50, 3]
    with pytest.raises(UsageError, match="must have the same shape"):
        neighbour_sheet(x, y[:3], ["a"], "image", 0, 1)


def test_samples_are_read_again(digits: Dataset, tmp_path: Path) -> None:
    path, x = tmp_path / "s.npz", digits.test[:5].numpy()
    np.savez(path, x=x, index=np.arange(5))
    assert torch.equal(read_samples(path, digits), digits.test[:5].float())
    np.savez(path, x=x + 0.75)
    assert torch.equal(read_samples(path, digits), digits.test[:5].float())
    for arrays, message in (
        ({"mu": x, "sigma": x}, r"unclear which array holds the data \(arrays found: mu, sigma\)"),
        ({"x": x[:, :, :7]}, r"samples of shape \(1, 7, 8\), but those of digits have shape \(1, 8, 8\)"),
        ({"x": x / 8.0 - 1}, "values range from -1 to 1, but those of digits range from 0 to 16; samples must"),
        ({"x": x + 1.0}, "values range from 1 to 17"),
        ({"x": np.array(["a"])}, "real numbers"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            read_samples(path, digits)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="damaged"):
        read_samples(path, digits)


# ------------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """``shell("evaluate --n 4")``: what it prints on standard output and standard error. Classifiers train briefly."""
    quick = ClassifierConfig(steps=40, batch=64, lr=1e-2, width=8)
    monkeypatch.setattr(features, "train_classifier", lambda data, device: train_classifier(data, quick, device=device))

    def run(line: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        out, err = capsys.readouterr()
        assert stop.value.code == code, f"exit code {stop.value.code}\n{out}\n{err}"
        return out, err

    return run


Copied = Callable[[str], str]
SHORT = "--n 24 --steps 3"


def test_evaluate_needs_nothing_but_a_run(copied: Copied, shell) -> None:
    copied("digits")
    out, err = shell(f"evaluate {SHORT}")
    folder = Path("runs/digits/evaluation")
    assert out.splitlines()[-1].startswith(f"{folder}/neighbours.png  ")
    for word in "frechet kernel mmd sliced precision recall density coverage closer authenticity copies".split():
        assert f"\n{word}" in out
    assert "24 samples against 180 rows of digits (test)" in out and "features: classifier (8 per row)" in out
    assert "training a classifier" in err and Path("runs/digits/classifier/classifier.json").is_file()
    facts = json.loads((folder / "evaluation.json").read_text())
    assert facts["run"] == "runs/digits" and facts["solver"] == "multistep"
    assert facts["nfe_mean"] == facts["nfe_max"] == 4  # the noise-free step, too
    used = facts["resolved"]
    assert (used["steps"], used["grid"], used["order"], used["correct"], used["taper"]) == (3, "sqrt", 3, False, False)
    assert facts["denoise"] is True and facts["dtype"] == "float32" and facts["labels"] is None
    assert facts["weights"] == load("runs/digits").request({})["weights"] and "\nlabels:" not in out
    again, err = shell(f"evaluate runs/digits {SHORT} --quiet --metrics frechet,kernel")
    rows = [[line.split() for line in text.splitlines()] for text in (out, again)]
    kept = [row for row in rows[0] if row and row[0] in ("frechet", "kernel")]
    # The classifier was kept, the seed the same.
    assert err == "" and len(kept) == 2 and all(row in rows[1] for row in kept)
    assert Path("runs/digits/evaluation-2/evaluation.json").is_file()


def test_evaluate_says_that_it_drew_without_labels(copied: Callable[..., str], shell) -> None:
    copied("classes")
    out, _ = shell(f"evaluate {SHORT} --features pixels --metrics frechet")
    assert "\nlabels: none, so the samples are those of the model without labels\n" in out


def test_evaluate_takes_samples_and_finds_the_planted_copy(copied: Copied, shell, digits: Dataset) -> None:
    copied("digits")
    x = noisy(digits.train[:40])
    x[11] = digits.train[900]
    np.savez("s.npz", x=x.to(torch.uint8).numpy())
    out, _ = shell("evaluate --samples s.npz --features pixels --metrics frechet,copies --json --quiet")
    facts = json.loads(out)
    assert facts["copies"]["flagged"] == [11] and facts["copies"]["suspects"][0]["training_row"] == int(
        digits.rows[900]
    )
    assert facts["metrics"]["frechet"]["samples"]["value"] == pytest.approx(
        frechet_distance(pixels(digits.codec)(x), pixels(digits.codec)(digits.test)), rel=1e-9
    )
    assert facts["files"] == ["runs/digits/evaluation/neighbours.png", "runs/digits/evaluation/evaluation.json"]
    # The same without a run, and without the check.
    out, _ = shell("evaluate --samples s.npz --data digits --features pixels --metrics frechet --out here --json")
    bare = json.loads(out)
    assert bare["metrics"] == facts["metrics"] and bare["copies"] is None and bare["files"] == ["here/evaluation.json"]


def test_evaluate_refuses_samples_in_other_units_or_converts_them(copied: Copied, shell, digits: Dataset) -> None:
    copied("digits")
    x = noisy(digits.train[:40])
    line = "--features pixels --metrics frechet --json --quiet"
    np.savez("s.npz", x=x.numpy())
    right = json.loads(shell(f"evaluate --samples s.npz --data digits {line}")[0])
    np.savez("s.npz", x=(x / 16).numpy())
    for source in ("", "--data digits"):
        out, err = shell(f"evaluate --samples s.npz {source} {line}", 3)
        assert out == "" and "values range from 0 to 1, but those of digits range from 0 to 16" in err
        assert "(on the command line: --units 0,1)" in err
    converted = json.loads(shell(f"evaluate --samples s.npz --data digits --units 0,1 {line}")[0])
    assert converted["metrics"] == right["metrics"] and converted["units"] == "0,1"
    as_they_are = json.loads(shell(f"evaluate --samples s.npz --data digits --units data {line}")[0])
    assert as_they_are["metrics"]["frechet"]["samples"]["value"] > 2 * right["metrics"]["frechet"]["samples"]["value"]
    np.savez("s.npz", x=(x / 8 - 1).numpy())
    assert json.loads(shell(f"evaluate --samples s.npz --units -1,1 {line}")[0])["metrics"] == right["metrics"]
    _, err = shell(f"evaluate --units 0,1 {line}", 2)
    assert "--units 0,1 requires --samples" in err
    _, err = shell(f"evaluate --samples s.npz --units bytes {line}", 2)
    assert "two increasing numbers such as 0,1, but got 'bytes'" in err


def test_samples_of_a_run_are_compared_with_other_data_in_its_units(copied: Copied, shell) -> None:
    copied("moons")
    np.save("far.npy", 1000 + load_data("moons").test[:200].numpy())
    line = "evaluate --data far.npy --n 40 --solver heun --steps 2 --metrics sliced --quiet"
    _, err = shell(line, 3)
    assert "the samples of runs/moons: the values in column 0" in err and "those of far range" in err
    shell(f"{line} --units data")


def test_evaluate_keeps_and_refuses_references(copied: Copied, shell) -> None:
    copied("digits")
    line = f"evaluate {SHORT} --metrics frechet,kernel --json --quiet"
    first = json.loads(shell(f"{line} --features pixels --save-reference ref.safetensors")[0])
    again = json.loads(shell(f"{line} --features pixels --reference ref.safetensors")[0])
    assert again["metrics"] == first["metrics"] and again["features"] == first["features"]
    _, err = shell(f"{line} --features classifier --reference ref.safetensors", 2)
    assert "the reference was computed with the features pixels (hash" in err
    _, err = shell(f"{line} --reference none.safetensors", 3)
    assert "none.safetensors cannot be read" in err
    assert not list(Path("runs/digits").glob("evaluation-3"))  # nothing is left of what failed


def test_evaluate_takes_features_from_a_file(copied: Copied, shell) -> None:
    copied("moons")
    rng = np.random.default_rng(0)
    arrays = {"samples": rng.normal(size=(30, 3)), "reference": rng.normal(size=(40, 3))}
    np.savez("f.npz", **arrays)
    out, err = shell("evaluate --features f.npz")
    assert "warning: the check for copies was skipped: f.npz has no array 'train'" in err
    assert "30 samples against 40 rows of f.npz (reference)" in out and "features: f.npz (3 per row)" in out
    assert evaluate_features(Path("f.npz"), {}).copies_by is None
    np.savez("f.npz", **arrays, train=np.concatenate([rng.normal(size=(50, 3)), arrays["samples"][:1]]))
    out, err = shell("evaluate --features f.npz --json")
    assert err == "evaluation already exists, so the results are written to evaluation-2\n"
    assert json.loads(out)["copies"]["flagged"] == [0] and json.loads(out)["n_real"] == 30
    _, err = shell("evaluate runs/moons --features f.npz", 2)
    assert "omit RUN" in err


def test_evaluate_vectors_by_their_values(copied: Copied, shell) -> None:
    copied("moons")
    out, _ = shell(f"evaluate {SHORT} --solver heun --limit 100 --metrics sliced,copies --quiet")
    assert "24 samples against 100 rows of moons (test)" in out and "features: pixels (2 per row)" in out
    assert Path("runs/moons/evaluation/neighbours.png").is_file()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--metrics frechet,kernl", 2, "unknown metric 'kernl'; did you mean 'kernel'"),
        ("--metrics ,", 2, "--metrics is empty"),
        ("--features pixls", 2, "unknown features 'pixls'"),
        ("--features classifier:nowhere", 3, "nowhere does not contain a classifier"),
        ("--copies-by nonsense", 2, "unknown features 'nonsense'"),
        ("--solver ode --steps 4", 2, "has no option 'steps'; choose from: atol"),
        ("--solver ode --steps 4", 2, "'steps' is an option of: euler, heun"),
        ("--data moons", 3, "cannot be compared"),
        ("--samples nowhere.npz", 3, "nowhere.npz cannot be read"),
        ("--n 1", 2, "1 is not in the range"),
    ],
)
def test_evaluate_refuses(copied: Copied, shell, line: str, code: int, words: str) -> None:
    copied("digits")
    out, err = shell(f"evaluate {SHORT if '--n' not in line and 'ode' not in line else ''} {line}", code)
    assert out == "" and words in err and "unexpected" not in err
    assert not list(Path("runs/digits").glob("evaluation*"))


def test_the_verb_classifier(shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = shell("classifier --steps 5 --width 6")
    assert out.startswith("runs/digits-classifier  accuracy 0.") and "of 180" not in out and "180 held-out" in out
    assert "1617 training and 180 test samples" in err
    facts = json.loads(shell("classifier --steps 5 --width 6 --json --quiet")[0])
    assert facts["folder"] == "runs/digits-classifier-2" and facts["held_out"] == 180
    stored = json.loads(Path("runs/digits-classifier/classifier.json").read_text())
    assert stored["sha256"] == facts["sha256"] and stored["config"]["width"] == 6
    _, err = shell("classifier --data moons", 2)
    assert "moons has no labels" in err


def test_a_stored_reference_of_the_training_split_is_compared_with_the_test_split(small: Dataset) -> None:
    by, x, metric = pixels(small.codec), noisy(small.train[:60]), metrics_by_name(["frechet"])
    first = evaluate(x, small, by, metric, against="train")
    again = evaluate(x, small, by, metric, reference=first.reference)
    assert again.n_real == 60
    assert again.rows[0].real.value == frechet_distance(by(small.test), by(small.train))
