"""Features: what extractors return, that a hash stands for what it was made of, and what a reference refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from runs import edit

from scoresde import load_data
from scoresde.codec import Affine, as_affine
from scoresde.core.errors import CheckpointError, DataError, UsageError
from scoresde.data import Dataset
from scoresde.metrics import Moments, frechet_distance
from scoresde.nn import Classifier
from scoresde.study import features
from scoresde.study.classifier import ClassifierConfig, TrainedClassifier, load_classifier, train_classifier
from scoresde.study.features import (
    Extractor,
    Reference,
    classifier_features,
    extractor_by_name,
    function_features,
    inception,
    pixels,
    read_features,
)

QUICK = ClassifierConfig(steps=40, batch=64)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> TrainedClassifier:
    return train_classifier(digits, QUICK)


# -------------------------------------------------------------------------------------------------------- classifier


def test_a_classifier_learns_the_digits(digits: Dataset, trained: TrainedClassifier) -> None:
    assert trained.accuracy > 0.8 and trained.held_out == 180
    assert trained.stderr == pytest.approx((trained.accuracy * (1 - trained.accuracy) / 180) ** 0.5)
    seen = trained(digits.test).argmax(1)
    assert float((seen == digits.test_labels).double().mean()) == trained.accuracy
    # The last hidden layer, scaled; the head of the network sees it as it is.
    found = trained.features(digits.train)
    assert found.shape == (1617, 64) and float(found.min()) == 0
    assert float(found.double().square().mean()) == pytest.approx(1, rel=1e-4)
    logits = trained.network.head(found * trained.network.scale)
    torch.testing.assert_close(logits, trained(digits.train))


def test_training_is_decided_by_the_seed_and_leaves_the_global_generator_alone(digits: Dataset) -> None:
    config, state, steps = ClassifierConfig(steps=3, batch=8), torch.get_rng_state(), []
    once = train_classifier(digits, config, on_step=lambda step, loss: steps.append((step, loss > 0)))
    torch.manual_seed(99)
    again, other = train_classifier(digits, config), train_classifier(digits, replace(config, seed=1))
    assert once.digest == again.digest != other.digest and steps == [(1, True), (2, True), (3, True)]
    torch.set_rng_state(state)
    train_classifier(digits, config)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stored_classifier_is_the_same_again(digits: Dataset, tmp_path: Path, dtype: torch.dtype) -> None:
    made = train_classifier(digits, ClassifierConfig(steps=2, width=12), dtype=dtype)
    files = made.save(tmp_path / "a" / "b")
    assert [f.name for f in files] == ["classifier.safetensors", "classifier.json"]
    back = load_classifier(tmp_path / "a" / "b")
    assert (back.digest, back.accuracy, back.held_out, back.config) == (
        made.digest, made.accuracy, made.held_out, made.config
    )  # fmt: skip
    assert torch.equal(back.features(digits.test), made.features(digits.test))
    assert back.features(digits.test).dtype == dtype and not back.network.training


def test_a_damaged_classifier_is_refused(digits: Dataset, tmp_path: Path) -> None:
    made = train_classifier(digits, ClassifierConfig(steps=1, width=4))
    weights, facts = made.save(tmp_path)
    with pytest.raises(CheckpointError, match="does not contain a classifier"):
        load_classifier(tmp_path / "nowhere")
    stored = facts.read_text()
    facts.write_text(stored.replace('"steps": 1', '"steps": 2'))
    with pytest.raises(CheckpointError, match=r"classifier\.json was changed after it was written"):
        load_classifier(tmp_path)
    assert load_classifier(tmp_path, edited=True).config.steps == 2
    for change, message in (
        ({"format": 0}, "format 0"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"config": {"widht": 3}}, "widht"),
        ({"config": {"width": 5}}, "shape"),
    ):
        facts.write_text(stored)
        edit(facts, lambda known, change=change: known | change)
        with pytest.raises(CheckpointError, match=message):
            load_classifier(tmp_path)
    facts.write_text(stored)
    weights.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_classifier(tmp_path)


def test_data_without_labels_has_no_classifier() -> None:
    with pytest.raises(UsageError, match="moons has no labels"):
        train_classifier(load_data("moons"), QUICK)
    with pytest.raises(UsageError, match="steps"):
        ClassifierConfig(steps=0)


def test_a_batch_larger_than_the_data_repeats_no_rows(digits: Dataset) -> None:
    count = len(digits.train)
    whole, huge = (train_classifier(digits, replace(QUICK, steps=2, batch=n)) for n in (count, 10**9))
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), huge.network.parameters(), strict=True))


def test_without_held_out_labels_there_is_no_accuracy(digits: Dataset, tmp_path: Path) -> None:
    made = train_classifier(replace(digits, test_labels=None), ClassifierConfig(steps=1))
    assert made.accuracy != made.accuracy and made.stderr != made.stderr and made.held_out == 0
    assert json.loads(made.save(tmp_path)[1].read_text())["accuracy"] is None
    assert load_classifier(tmp_path).held_out == 0


@pytest.mark.parametrize("shape", [(5,), (2, 17), (3, 9, 14), (1, 4, 5, 6), (1, 33, 2)])
def test_classifiers_of_every_shape(shape: tuple[int, ...]) -> None:
    network = Classifier(shape, classes=3, width=7)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    assert network(x).shape == (4, 3) and network.features(x).shape == (4, 7)
    network.eval()
    # Rows do not see each other.
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


def test_a_classifier_refuses_what_it_cannot_be() -> None:
    for shape, classes in (((), 2), ((3, 0), 2), ((1, 2, 3, 4, 5), 2), ((4,), 1)):
        with pytest.raises(UsageError, match=r"a classifier needs|classes is 1"):
            Classifier(shape, classes)


# -------------------------------------------------------------------------------------------------------- extractors


def test_pixels_are_model_units_whatever_the_dtype(digits: Dataset) -> None:
    by = pixels(digits.codec)
    found = by(digits.train[:300], batch=77)
    assert found.shape == (300, 64)
    torch.testing.assert_close(found, digits.codec.continuous.to_model(digits.train[:300]).flatten(1))
    for dtype in (torch.float32, torch.float64, torch.int32):
        assert torch.equal(by(digits.train[:300].to(dtype)), found)  # so a copy has the distance 0


def test_hashes_stand_for_weights_options_and_transform(digits: Dataset, trained: TrainedClassifier) -> None:
    info = digits.info
    affine = as_affine(digits.codec, "pixels")
    other = Affine(affine.shift + 1, affine.scale)
    assert pixels(digits.codec).hash == pixels(load_data("digits").codec).hash != pixels(other).hash
    assert pixels(digits.codec).hash == "c5431483a78a2812", "stored references would not be found again"
    by = classifier_features(trained, info)
    again = classifier_features(train_classifier(digits, QUICK), info)
    changed = train_classifier(digits, replace(QUICK, steps=41))
    assert by.hash == again.hash != classifier_features(changed, info).hash
    assert len({pixels(digits.codec).hash, by.hash}) == 2 and len(by.hash) == 16 and int(by.hash, 16) >= 0
    assert torch.equal(by(digits.test), trained.features(digits.test))


def test_a_hash_is_the_same_in_another_process(digits: Dataset) -> None:
    code = (
        "from scoresde import load_data; from scoresde.study.features import pixels\n"
        "print(pixels(load_data('digits').codec).hash)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == pixels(digits.codec).hash


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "def edges(x):\n    return (x.float().diff(dim=-1)).flatten(1)\n\ndef flat(x):\n    return x.float()\n"
    Path("my_features_a.py").write_text(source)
    Path("my_features_b.py").write_text(source + "# a comment\n")
    by = function_features("my_features_a:edges")
    x = torch.arange(24).reshape(2, 1, 3, 4)
    assert torch.equal(by(x), torch.ones(2, 9)) and by.resize == "its own"
    assert by.hash == function_features("my_features_a:edges").hash
    assert by.hash != function_features("my_features_b:edges").hash
    Path("my_features_a.py").write_text(source + "# another comment\n")
    assert by.hash != function_features("my_features_a:edges").hash
    with pytest.raises(UsageError, match=r"events of shape \(2, 1, 3, 4\), .* got \(2, 1, 3, 4\)"):
        function_features("my_features_a:flat")(x)
    with pytest.raises(UsageError, match="did you mean 'edges'"):
        function_features("my_features_a:egdes")
    with pytest.raises(UsageError, match="got list"):
        Extractor("bad", "0", "none", lambda x: [1])(x)  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match="no source file"):
        function_features("math:sin")


def test_a_classifier_that_guesses_compares_nothing(digits: Dataset, tmp_path: Path, monkeypatch) -> None:
    labels = torch.randint(0, 10, digits.train_labels.shape, generator=torch.Generator().manual_seed(0))
    strange = replace(digits, train_labels=labels)  # as folders are that have nothing to do with what they hold
    monkeypatch.setattr(features, "train_classifier", lambda data, device: train_classifier(data, QUICK, device=device))
    told: list[str] = []
    home = tmp_path / "classifier"
    assert extractor_by_name("auto", strange, folder=home, told=told.append).name == "pixels"
    assert "not better than chance" in told[-1] and not home.exists()
    assert extractor_by_name("classifier", strange).name == "classifier"  # but for who asks for it


def test_names_of_extractors(digits: Dataset, trained: TrainedClassifier, tmp_path: Path, monkeypatch) -> None:
    assert extractor_by_name("pixels", digits).name == "pixels"
    assert extractor_by_name("auto", load_data("moons")).name == "pixels"
    trained.save(tmp_path / "stored")
    by = classifier_features(trained, digits.info)
    assert extractor_by_name(f"classifier:{tmp_path / 'stored'}", digits).hash == by.hash
    # Left to itself it trains one, and keeps it.
    monkeypatch.setattr(features, "train_classifier", lambda data, device: train_classifier(data, QUICK, device=device))
    told: list[str] = []
    home = tmp_path / "run" / "classifier"
    assert extractor_by_name("auto", digits, folder=home, told=told.append).hash == by.hash
    assert len(told) == 2 and load_classifier(home).digest == trained.digest
    assert extractor_by_name("classifier", digits, folder=home, told=told.append).hash == by.hash and len(told) == 2
    with pytest.raises(UsageError, match=r"shape \(1, 8, 8\), but moons has shape \(2,\)"):
        extractor_by_name("classifier", load_data("moons"), folder=home)
    with pytest.raises(UsageError, match="unknown features 'pixles'; choose from: auto, pixels, classifier"):
        extractor_by_name("pixles", digits)
    for name in ("auto:x", "auto:", "pixels:digits"):  # no module of a user's is called so
        with pytest.raises(UsageError, match=f"features '{name}': .* takes nothing after a colon; use "):
            extractor_by_name(name, digits)
    # Nobody could say whether a classifier of these is better than chance.
    told.clear()
    assert extractor_by_name("auto", replace(digits, test_labels=None), told=told.append).name == "pixels"
    assert not told


# --------------------------------------------------------------------------------------------------------- inception


class _Inception(torch.nn.Module):
    """In the place of torch-fidelity's: the mean of each channel, after a look at what came."""

    seen: torch.Tensor

    def __init__(self, name: str, names: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert names == ["2048"] and Path(feature_extractor_weights_path).is_file()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        type(self).seen = x
        return (x.double().mean(dim=(2, 3)),)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = _Inception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_names_the_extra_when_it_is_missing(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError, match=r"pip install 'scoresde\[fid\]'"):
        inception(digits.info)
    with pytest.raises(UsageError, match="moons contains vectors"):
        inception(load_data("moons").info)


def test_inception_gets_bytes_and_only_the_published_weights(
    digits: Dataset, fidelity: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError, match=r"does not exist; download https://github.com/toshas"):
        inception(digits.info)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"anything")
    with pytest.raises(UsageError, match="does not contain the expected weights"):
        extractor_by_name(f"inception:{file}", digits)
    digest = hashlib.sha256(b"anything").hexdigest()
    monkeypatch.setattr(features, "INCEPTION", f"weights-{digest[:8]}.pth")
    by = extractor_by_name(f"inception:{file}", digits)
    levels = torch.tensor([0.0, 8.0, 16.0, 4.0]).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)
    assert by(levels)[:, 0].tolist() == [0, 128, 255, 64]  # 255 (x - low) / (high - low), rounded to even
    assert torch.equal(_Inception.seen[:, 0], _Inception.seen[:, 2]) and by.resize.startswith("bilinear 299")


# ----------------------------------------------------------------------------------------------- files of features


def test_features_from_a_file(tmp_path: Path) -> None:
    path, x = tmp_path / "f.npz", np.arange(12.0).reshape(6, 2)
    np.savez(path, samples=x, reference=x[:3])
    found = read_features(path)
    assert set(found) == {"samples", "reference"} and found["samples"].shape == (6, 2)
    for arrays, message in (
        ({"samples": x}, "arrays 'samples' and 'reference', .* got 'samples'"),
        ({"samples": x, "reference": x[:, :1]}, r"\'reference\' has shape \(6, 1\)"),
        ({"samples": x, "reference": np.array([{}])}, "cannot be read"),
        ({"samples": x, "reference": np.array(["a"])}, "cannot be read"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            read_features(path)
    for content in (b"", b"PK\x03\x04 cut short"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
            read_features(path)
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(DataError, match=r"arrays 'samples' and 'reference', .* got 'x'"):
        read_features(tmp_path / "a.npy")


# --------------------------------------------------------------------------------------------------------- reference


def test_a_reference_is_the_same_again(digits: Dataset, tmp_path: Path) -> None:
    by, path = pixels(digits.codec), tmp_path / "ref.safetensors"
    held_out = by(digits.test)
    made = Reference.of(held_out, by, "digits", "test")
    made.save(path)
    back = Reference.load(path)
    for name in ("extractor", "hash", "resize", "data", "split"):
        assert getattr(back, name) == getattr(made, name)
    assert back.moments.n == 180 and back.features is not None and torch.equal(back.features, held_out)
    assert torch.equal(back.moments.covariance, made.moments.covariance)
    x = by(digits.train[:200])
    assert Moments.of(x).distance(back.moments) == pytest.approx(frechet_distance(x, held_out), rel=1e-12)
    back.check(by)
    assert [p.name for p in tmp_path.iterdir()] == ["ref.safetensors"]  # nothing temporary stays


def test_a_reference_refuses_other_features(digits: Dataset, trained: TrainedClassifier) -> None:
    by = pixels(digits.codec)
    made = Reference.of(by(digits.test), by, "digits", "test")
    with pytest.raises(UsageError, match=r"pixels .hash .* features of the samples are classifier .hash"):
        made.check(classifier_features(trained, digits.info))
    with pytest.raises(
        UsageError, match=r"resizing 'none'.*, but the features of the samples are pixels .resizing 'bicubic 32'"
    ):
        made.check(replace(by, resize="bicubic 32"))


def test_large_references_keep_their_moments_alone(digits: Dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(features, "STORED", 1000)
    by = pixels(digits.codec)
    made = Reference.of(by(digits.test), by, "digits", "test")
    made.save(tmp_path / "r")
    assert made.features is None and Reference.load(tmp_path / "r").features is None


def test_what_is_no_reference_is_refused(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        Reference.load(path)
    train_classifier(digits, ClassifierConfig(steps=1)).save(tmp_path)
    with pytest.raises(CheckpointError, match="format None"):
        Reference.load(tmp_path / "classifier.safetensors")
    by = pixels(digits.codec)
    Reference.of(by(digits.test), by, "digits", "test").save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        Reference.load(path)
