"""model.json: what it holds, what it protects from, and runs from before it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import edit, older, unsigned
from safetensors.torch import load_file

from scoresde import Run, TrainConfig, fit, load, load_data
from scoresde.codec import Affine
from scoresde.core import tables
from scoresde.core.errors import CheckpointError, DataError, UsageError
from scoresde.core.registry import moved
from scoresde.core.tables import MOVED
from scoresde.data import Dataset
from scoresde.run.files import newest_checkpoint
from scoresde.run.foreign import OriginalScore
from scoresde.run.spec import ModelSpec

SMALL = {"width": 8, "blocks": 1}


def drawn(run: Run) -> torch.Tensor:
    return run.sample(4, "heun", seed=3).x


def stored(folder: str | Path, name: str) -> dict[str, object]:
    return unsigned(Path(folder) / name)


def test_every_option_is_written_and_read_again(trained: Path) -> None:
    found = stored(trained / "moons", "model.json")
    assert found["path"] == {"name": "vp", "options": {"beta_min": 0.1, "beta_max": 20.0}}
    rest = {"dropout": 0.0, "classes": 0, "outputs": 1, "dims": 2, "augments": 0}
    rest |= {"vector": 0, "given": 0, "words": 0, "features": 0}
    assert found["network"]["options"] == {**SMALL, **rest}
    assert stored(trained / "classes", "model.json")["classes"] == 10
    spec = ModelSpec.read(trained / "moons" / "model.json")
    assert spec.to_dict() == found == load(trained / "moons").spec.to_dict()


def test_a_preset_that_changes_changes_no_run(
    trained: Path, copied: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn(load(trained / "digits"))
    preset = stored(trained / "digits", "config.json")["config"]["preset"]
    monkeypatch.setitem(tables.PRESETS, preset, {"network": "mlp", "width": 3})
    assert torch.equal(drawn(load(trained / "digits")), before)
    again = fit(load(copied("digits")).config, out="runs/digits", resume=True, quiet=True)
    assert torch.equal(drawn(again), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, "path": {"name": "ve", "options": {}}}, r"config\.json has sde 'vp', but .* has 've'"),
        (
            lambda s: {**s, "codec": [{"name": "affine", "options": {"shift": 0.0, "scale": 9.0}}]},
            "not match its digest",
        ),
        (lambda s: {**s, "shift": 3.0}, r"disagree on shift \(1.0 and 3.0\)"),
        (lambda s: {**s, "classes": -7}, "classes must be an integer >= 0, got -7"),
        (lambda s: {**s, "classes": float("inf")}, "not a valid model specification: OverflowError"),
        (lambda s: {**s, "coupled": 1}, "coupled must be true or false, got 1"),
        (lambda s: {**s, "format": 3}, "format 3.*newer"),
        (lambda s: {k: v for k, v in s.items() if k != "classes"}, "not a valid model .*: KeyError.'classes'"),
        (lambda s: {**s, "path": {"name": "vp", "options": {"beta": 1}}}, "beta_m"),
        (lambda s: {**s, "network": None}, "a network of your own; pass that network"),
    ],
    ids=["path", "codec", "shift", "negative", "infinite", "flag", "format", "missing", "option", "network"],
)
def test_a_model_that_was_changed_is_refused(copied: Callable[[str], str], change: object, words: str) -> None:
    folder = copied("moons")
    edit(f"{folder}/model.json", change)
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_a_model_that_is_missing_is_not_guessed(copied: Callable[[str], str]) -> None:
    folder = copied("moons")
    (Path(folder) / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json is missing.*restore the file"):
        load(folder)


@pytest.mark.parametrize("name", ["classes", "moons"])
def test_a_run_of_format_1_loads_samples_and_goes_on(copied: Callable[[str], str], name: str) -> None:
    old, new = copied(name, "old"), copied(name, "new")
    older(old)
    data = stored(old, "data.json")
    assert load(old).spec.codec == load(new).spec.codec and torch.equal(drawn(load(old)), drawn(load(new)))
    for folder in (old, new):
        fit(replace(load(folder).config, steps=5), out=folder, resume=True, quiet=True)
    one, other = (load_file(newest_checkpoint(Path(folder)) / "model.safetensors") for folder in (old, new))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert stored(old, "model.json") == stored(new, "model.json")  # from here on it is a run of today
    assert stored(old, "data.json") == data  # which is never written again


def test_an_array_is_data(copied: Callable[[str], str]) -> None:
    copied("moons")
    x = np.random.default_rng(0).normal(5.0, 3.0, (50, 3))
    config = TrainConfig(steps=2, batch=8, network_options=SMALL)
    run = fit(config, data=x, out="runs/own", quiet=True)
    assert run.sample(7, "heun").x.shape == (7, 3) and run.info.n_train + run.info.n_test == 50
    lost = load("runs/own")
    assert torch.equal(drawn(lost), drawn(run))
    with pytest.raises(DataError, match="array"):
        lost.data()
    again = fit(replace(lost.config, steps=3), data=torch.as_tensor(x), out="runs/own", resume=True, quiet=True)
    assert again.step == 3 and load("runs/own").config.data == "(array)"


def test_a_run_that_is_resumed_keeps_its_data(copied: Callable[[str], str]) -> None:
    folder = Path(copied("moons"))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    config = replace(load(folder).config, steps=5)
    scaled = load(folder).data().train * 1000
    for other in (np.zeros((50, 3)) + np.arange(50)[:, None], np.arange(100).reshape(50, 2), scaled):
        with pytest.raises(DataError, match=r"was trained on moons with .*original data|has changed since runs/moons"):
            fit(config, data=other, out=folder, resume=True, quiet=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_tensor_is_data_whatever_is_asked_of_it() -> None:
    x = torch.arange(40.0).reshape(20, 2)
    for given in (x.requires_grad_(), x.detach().bfloat16()):
        assert torch.equal(Dataset.of(given).train, Dataset.of(x.detach().numpy()).train)


def test_an_array_is_not_the_toy_of_its_name() -> None:
    found = Dataset.of(np.random.default_rng(0).normal(size=(30, 2)), name="8gaussians")
    assert found.info.name == "8gaussians" and found.info.source == "(array)" and found.log_density is None


def test_an_array_is_what_the_file_that_holds_it_is(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels, names = generator.integers(0, 9, (40, 1, 4, 4)).astype(np.uint8), generator.choice(["cat", "dog"], 40)
    np.savez(tmp_path / "d.npz", x=pixels, y=names)
    file, array = load_data(str(tmp_path / "d.npz")), Dataset.of(pixels, classes=names)
    assert array.info == replace(file.info, name="array", source="(array)") and array.codec == file.codec
    assert torch.equal(array.train, file.train) and torch.equal(array.test_labels, file.test_labels)
    held = Dataset.of(pixels[:30], pixels[30:], classes=names[:30], test_classes=names[30:])
    assert (held.info.n_train, held.info.n_test) == (30, 10)
    assert torch.equal(held.test, torch.as_tensor(pixels[30:]))


class Own(Affine):
    """A codec that no table lists."""


def test_a_codec_that_could_not_be_read_again_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    data = Dataset.of(np.random.default_rng(0).normal(size=(30, 2)))
    own = replace(data, codec=Own(*vars(data.codec).values()))
    config = TrainConfig(steps=1, batch=8, network_options=SMALL)
    with pytest.raises(UsageError, match=r"Own is not a built-in codec.*save=False"):
        fit(config, data=own, out=tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()
    assert fit(config, data=own, save=False, quiet=True).sample(3, "heun").x.shape == (3, 2)


def test_data_that_were_an_array_are_asked_for_again(tmp_path: Path) -> None:
    data = Dataset.of(np.random.default_rng(0).normal(size=(30, 2)), name="mine")
    run = fit(TrainConfig(steps=1, batch=8, network_options=SMALL), data=data, save=False, quiet=True)
    with pytest.raises(DataError, match=r"trained on an array, which .*save the array as an .npy file"):
        run.data()


def test_a_class_that_has_moved_is_still_the_one_that_a_run_names(copied: Callable[[str], str]) -> None:
    # An earlier version named its own classes outside the tables by the modules they were in then.
    config = TrainConfig(data="moons", steps=2, batch=8, predict=OriginalScore(), network_options=SMALL)
    copied("moons")
    run = fit(config, out="runs/old", quiet=True)
    older("runs/old")
    text = Path("runs/old/config.json").read_text()
    assert "scoresde.run.foreign:OriginalScore" in text
    Path("runs/old/config.json").write_text(text.replace("scoresde.run.foreign", "scoresde.compat"))
    with pytest.raises(CheckpointError, match="never imported"):
        load("runs/old")
    again = load("runs/old", parametrization=OriginalScore())
    assert torch.equal(drawn(again), drawn(run))
    config = replace(again.config, steps=3, predict=OriginalScore())
    assert fit(config, out="runs/old", resume=True, quiet=True).step == 3


def test_what_has_moved_is_there() -> None:
    for old, new in MOVED.items():
        module, _, name = new.partition(":")
        found = importlib.import_module(module)
        assert not name or hasattr(found, name), new
        assert moved(old if ":" in old else f"{old}:X") == (new if name else f"{new}:X")
