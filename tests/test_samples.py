"""Samples as files: what is written first, what a table looks like, and samples of other programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import edit
from shell import Shell

from scoresde import Dataset, load, load_data, plot
from scoresde.codec import Affine, Levels
from scoresde.core.errors import DataError, UsageError
from scoresde.plot import save_images
from scoresde.run.run import Run, Samples
from scoresde.run.samples import kinds_of, read_samples, write_samples
from scoresde.solvers import Solution

NAMES = ("age", "price, in $", "grade")


def drawn(x: torch.Tensor) -> Samples:
    """Samples that a solver returned."""
    zero = torch.zeros(len(x), dtype=torch.int64)
    return Samples(x, Solution(x, zero, zero, zero, zero))


@pytest.fixture
def table() -> Dataset:
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, 90, 200), rng.normal(1e6, 1e3, 200), rng.integers(0, 4, 200)], 1)
    data = Dataset.of(x.astype(np.float32), name="people")
    return replace(data, info=replace(data.info, names=NAMES))


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_table_is_written_with_its_names(table: Dataset, tmp_path: Path) -> None:
    x = torch.tensor([[30.0, 0.1, -0.0], [31.0, 1e6 + 0.125, 3.0]])
    files = write_samples(tmp_path, drawn(x), table.info, {"n": 2})
    assert [f.name for f in files] == ["samples.png", "samples.npz", "samples.csv"]
    assert cells(tmp_path / "samples.csv") == [list(NAMES), ["30", "0.1", "0"], ["31", "1000000.1", "3"]]
    assert json.loads((tmp_path / "samples.json").read_text()) == {"n": 2}
    back = read_samples(tmp_path / "samples.csv", table)
    assert torch.equal(back.float(), x)
    wide = torch.tensor([[1 / 3, 2.0**60, 1.0]], dtype=torch.float64)
    write_samples(tmp_path, drawn(wide), table.info, {}, ["csv"])
    assert cells(tmp_path / "samples.csv")[1] == [repr(1 / 3), str(2**60), "1"]


def test_columns_are_whole_where_the_codec_has_levels(table: Dataset, tmp_path: Path) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    info = replace(table.info, names=("a", "b"), shape=(2,))

    class Mixed(Levels):
        """Levels of which there are some in the first column alone."""

        @property
        def levels(self) -> Levels:
            return self

    mixed = Mixed(0.0, 9.0, 10)
    object.__setattr__(mixed, "count", torch.tensor([10, 0]))
    for codec, expected in (
        (Levels(0, 9, 10), ["1", "2"]),
        (Affine(torch.tensor(0.0), torch.tensor(1.0)), ["1.0", "2.0"]),
        (mixed, ["1", "2.0"]),
        (None, ["1", "2"]),
    ):
        write_samples(tmp_path, drawn(x), info, {}, ["csv"], codec=codec)
        assert cells(tmp_path / "samples.csv")[1] == expected
    write_samples(tmp_path, drawn(x / 2), info, {}, ["csv"], codec=Levels(0, 4.5, 10))
    assert cells(tmp_path / "samples.csv")[1] == ["0.5", "1"], "half a level is no whole number"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_hold_the_pixels(tmp_path: Path, channels: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, channels, 5, 4), dtype=np.uint8)
    save_images(tmp_path / "files", x, ["a.png", "b.png", "c.png"], 0, 255)
    for image, name in zip(x, ("a.png", "b.png", "c.png"), strict=True):
        read = np.asarray(Image.open(tmp_path / "files" / name)).reshape(5, 4, channels)
        assert np.array_equal(read, image.transpose(1, 2, 0))
    save_images(tmp_path, np.array([[[[0, 8, 16]]]]), ["level.png"], 0, 16)
    assert np.asarray(Image.open(tmp_path / "level.png")).tolist() == [[0, 128, 255]]


def test_files_are_named_by_the_number_of_the_sample(shell: Shell, copied: Callable[[str], str]) -> None:
    digits, moons = copied("digits"), copied("moons")
    shell(f"sample {digits} --n 3 --start 7 --solver euler --steps 2 --save files --out o --quiet")
    assert sorted(p.name for p in Path("o/files").iterdir()) == [f"{i:06d}.png" for i in (7, 8, 9)]
    again = shell.json(f"sample {digits} --n 3 --start 7 --solver euler --steps 2 --save files --out o --resume")
    assert again["files"] == ["o/files"]
    shell.refuses(f"sample {moons} --save files", 2, "'files' is only for images with 1 to 4", "vectors of shape (2,)")


def test_the_kinds_of_files(table: Dataset) -> None:
    digits = load_data("digits").info
    assert kinds_of(table.info) == ("png", "npz", "csv") and kinds_of(digits) == ("png", "npz")
    assert kinds_of(replace(table.info, names=())) == ("png", "npz")
    assert kinds_of(replace(table.info, names=()), ["csv"]) == ["csv"]
    with pytest.raises(UsageError, match=r"'csv' is only for tables, but digits has images of shape \(1, 8, 8\)"):
        kinds_of(digits, ["csv"])
    with pytest.raises(UsageError, match="cannot save 'txt'"):
        kinds_of(digits, ["txt"])


def test_numbers_are_written_before_pictures_are_begun(
    table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def there(name: str) -> None:
        seen[name] = sorted(p.name for p in tmp_path.iterdir())

    def stop(*_: object, **__: object) -> None:
        there("picture")
        raise RuntimeError("no picture")

    monkeypatch.setattr(plot, "samples_figure", stop)
    x = torch.rand(4, 3)
    results = ["samples.csv", "samples.json", "samples.npz"]
    with pytest.warns(
        UserWarning, match=r"samples\.png was not created \(RuntimeError: no picture\); the samples are in"
    ):
        files = write_samples(
            tmp_path, drawn(x), table.info, {}, ["png", "npz", "csv", "path"],
            frames=lambda: (there("frames"), (torch.tensor([1.0, 0.0]), torch.stack([x, x])))[1],
            reference=lambda: there("data"),
        )  # fmt: skip
    assert seen == {"data": results, "picture": results, "frames": results}
    assert [f.name for f in files] == ["samples.npz", "samples.csv", "path.npz"]

    def broken() -> tuple[torch.Tensor, torch.Tensor]:
        raise MemoryError

    with pytest.warns(UserWarning, match="the trajectory of the samples was not created"):
        assert len(write_samples(tmp_path / "2", drawn(x), table.info, {}, ["npz", "gif"], frames=broken)) == 1


def test_the_figure_shows_the_data_behind(table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda path, figure: figures.append(figure))
    write_samples(tmp_path, drawn(table.test), table.info, {}, ["png"], reference=table.train)
    (figure,) = figures
    assert [ax.get_title() for ax in figure.axes] == ["age", r"price, in \$", "grade"]
    grades = [bar.get_height() for bar in figure.axes[2].containers[0]]
    np.testing.assert_allclose(grades, table.train[:, 2].long().bincount() / len(table.train), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 6, 6), (5, 6, 6), (1, 3, 6, 6), (2, 3, 6, 6)])
def test_any_number_of_channels_has_a_sheet(table: Dataset, tmp_path: Path, shape: tuple[int, ...]) -> None:
    info = replace(table.info, kind="image" if len(shape) == 3 else "volume", shape=shape, names=())
    x = torch.rand(4, *shape)
    states = (torch.tensor([1.0, 0.0]), torch.stack([x, x]))
    files = write_samples(tmp_path, drawn(x), info, {}, ["png", "npz", "gif"], states)
    assert [f.name for f in files] == ["grid.png", "samples.gif", "samples.npz"]


def test_a_table_on_the_command_line(shell: Shell, moons: str) -> None:
    edit(Path(moons) / "data.json", lambda stored: stored | {"names": ["left $", "right $"]})
    found = shell.json(f"sample {moons} --n 5 --solver heun --steps 2 --quiet")
    assert [Path(f).name for f in found["files"]] == ["samples.png", "samples.npz", "samples.csv"]
    assert "warning" not in shell.err
    head, *rows = cells(Path(found["files"][2]))
    assert head == ["left $", "right $"] and len(rows) == 5
    with np.load(found["files"][1]) as arrays:
        assert np.array_equal(arrays["x"], np.array(rows, np.float32)), "full precision"
    shell.refuses(f"sample {moons} --save csv,gif,txt", 2, "cannot save 'txt'")
    shell.refuses(f"sample {moons} --frames 3", 2, "use --save png,npz,csv,gif")


def test_samples_without_their_data(shell: Shell, moons: str) -> None:
    for name in ("config.json", "data.json"):
        path = Path(moons) / name
        path.write_text(path.read_text().replace('"moons"', '"gone.csv"'))
        edit(path, dict)
    shell(f"sample {moons} --n 5 --solver heun --steps 2")
    assert "gone.csv does not exist, and they are not" in shell.err and "warning" not in shell.err
    assert (Path(moons) / "samples/heun-seed0/samples.png").is_file()


def test_the_data_behind_samples_of_a_class_are_of_that_class(trained: Path) -> None:
    from scoresde.cli.common import Session
    from scoresde.cli.sample import _behind

    run: Run = load(trained / "classes")
    found = _behind(run.given(3), Session(0, "cpu", "float32", None, False, True))
    data = run.data()
    assert data.train_labels is not None and len(found) == int((data.train_labels == 3).sum())
    assert len(_behind(run, Session(0, "cpu", "float32", None, False, True))) == len(data.train)


# ------------------------------------------------------------------------------------------------- of other programs


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.mark.parametrize("name", ["x", "samples", "arr_0", "images"])
def test_samples_by_their_usual_names(digits: Dataset, tmp_path: Path, name: str) -> None:
    x = digits.test[:5].numpy()
    np.savez(tmp_path / "s.npz", **{name: x, "arr_1": np.arange(5)})
    assert torch.equal(read_samples(tmp_path / "s.npz", digits), digits.test[:5].float())


def test_samples_in_other_shapes(digits: Dataset, tmp_path: Path) -> None:
    x, colours = digits.test[:5].numpy(), Dataset.of(np.random.default_rng(0).random((20, 3, 8, 9)).astype(np.float32))
    for shown in (x, x[:, 0], np.moveaxis(x, 1, -1)):
        np.save(tmp_path / "s.npy", shown)
        assert torch.equal(read_samples(tmp_path / "s.npy", digits), digits.test[:5].float())
    np.savez(tmp_path / "s.npz", arr_0=np.moveaxis(colours.test.numpy(), 1, -1))
    assert torch.equal(read_samples(tmp_path / "s.npz", colours), colours.test)
    for wrong in (np.zeros((5, 8, 3, 9)), np.zeros((5, 8, 9)), np.zeros((5, 216)), np.float64(3)):
        np.save(tmp_path / "s.npy", wrong)
        with pytest.raises(DataError, match=r"have shape \(3, 8, 9\) or, with channels last, \(8, 9, 3\)"):
            read_samples(tmp_path / "s.npy", colours)


def test_samples_of_a_table_go_by_their_names(table: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text('grade,age,"price, in $",class\n1,2,1000003.5,s\n2,3,1000004.5,v\n3,4,1000005.5,s\n')
    assert read_samples(path, table).tolist() == [[2, 1000003.5, 1], [3, 1000004.5, 2], [4, 1000005.5, 3]]
    path.write_text("1,1000003.5,2\n2,1000004.5,3\n")
    assert read_samples(path, table).tolist() == [[1, 1000003.5, 2], [2, 1000004.5, 3]]
    for text, words in (
        ("grade,age\n1,2\n", "lacks the column price, in"),
        ('grade,age,"price, in $",more\n1,2,3.5,4.5\n', "has the extra column more; the columns of people are age"),
        ("1,2\n2,3\n", r"shape \(2,\)"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_samples(path, table)
    plain = replace(table, info=replace(table.info, names=()))
    path.write_text("x2,x0,x1\n1,2,3.5\n")
    assert read_samples(path, plain, units="data").tolist() == [[2, 3.5, 1]]
    path.write_text("u,v,w\n1,2,3.5\n")
    assert read_samples(path, plain, units="data").tolist() == [[1, 2, 3.5]]
    # What would be a class in data is a column if the data say so.
    called = replace(table, info=replace(table.info, names=("age", "height", "y")))
    path.write_text("age,height,y\n1.5,2,0\n2,3,1\n3,4,0\n4,5,1\n")
    assert read_samples(path, called, units="data")[:, 2].tolist() == [0, 1, 0, 1]


def test_a_folder_of_pictures_is_samples(digits: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for i, x in enumerate(digits.test[:5, 0].numpy()):
        Image.fromarray(x).save(folder / f"{i}.png")
    found = read_samples(folder, digits)
    assert {bytes(x.numpy().tobytes()) for x in found} == {bytes(x.numpy().tobytes()) for x in digits.test[:5].float()}


def test_samples_that_are_refused(digits: Dataset, table: Dataset, tmp_path: Path) -> None:
    x = digits.test[:5].double().numpy()
    for name, content, words in (
        ("s.pt", b"PK", "is a pickle, which can run code"),
        ("s.npz", {"x": x, "samples": x}, "which of x and samples holds the data"),
        ("s.npz", {"x_train": x, "x_test": x}, "are parts of a data set"),
        ("s.npz", {"x": np.where(x > 15, np.nan, x)}, r"NaN or infinite values in \d+ of 5 samples"),
        ("s.npz", {"x": x.astype(str)}, "real numbers"),
        ("s.csv", b"1,2\n", r"is a table, but digits has images"),
    ):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
        with pytest.raises(DataError, match=words):
            read_samples(path, digits)
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path / "gone.npz", digits)


@pytest.mark.parametrize(
    ("typed", "spread", "value", "written"),
    [
        (["21.3", "19.0"], 4.0, 57.37441175059987, "57.4"),
        (["61.20", "7"], 5.0, 57.37441175059987, "57.37"),
        (["21", "19"], 4.0, 57.37441175059987, "57.4"),  # whole numbers would be too coarse
        (["1021", "980"], 60.0, 1003.7441175, "1004"),
        ([], 4.0, 57.37441175059987, "57.3744"),
        ([], 20.0, 1.7e9 + 0.37441, "1700000000.4"),
        (["0.0000123", "845.12"], 90.0, 845.1234567, "845.123"),
        (["0.0000123", "845.12"], 90.0, 1.23456e-5, "1.23e-05"),
        (["1.5e-7"], 1e-7, 2.34567e-7, "2.35e-07"),
        (["21.3"], 4.0, -0.04, "0.0"),
        (["21.3"], 4.0, float("nan"), "nan"),
    ],
)
def test_filled_numbers_are_as_precise_as_the_given_ones(
    typed: list[str], spread: float, value: float, written: str
) -> None:
    from scoresde.run.samples import _as_typed, precision

    assert _as_typed(*precision(typed), spread, np.float64(value)) == written
