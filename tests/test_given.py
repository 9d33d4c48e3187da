"""What is known about each sample, from files and arrays: the right numbers beside the right rows, or an error."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell
from torch import Tensor

from scoresde import Dataset, TrainConfig, load_data
from scoresde.core.condition import Condition
from scoresde.core.errors import DataError, Problems, UsageError
from scoresde.data import DataInfo, Reading, split
from scoresde.data.given import CondInfo, Sources
from scoresde.data.look import look
from scoresde.data.raw import Known

WORDS = ("red", "green", "blue")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def vectors(n: int = 60, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=(n, 3))


def beside(x: np.ndarray) -> np.ndarray:
    """Numbers that identify each row, ``(n, 2)``."""
    first = x.reshape(len(x), -1)[:, 0].astype(np.float64)
    return np.stack([10 * first + 3, -first], 1)


def save(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def both(data: Dataset) -> list[tuple[Tensor, Condition]]:
    return [(data.train, data.train_given), (data.test, data.test_given)]


# ------------------------------------------------------------------------------------------------------------- sources


def test_sources_are_read_from_cond() -> None:
    assert Sources.of("none") == Sources() and not Sources.of("class").rich and Sources.of("class").label
    found = Sources.of("class + vector:age, dose+text + pool:2")
    assert (found.label, found.vector, found.text, found.image) == (True, True, True, False)
    assert found.columns == ("age", "dose") and found.operator == "pool:2" and found.rich
    assert found.needs == ("vector", "text") and Sources.of("image").needs == ("image",)
    assert Sources.of("grey/hole/pool:4").operator == "grey/hole/pool:4"
    assert Sources.of("mask:a/cells/b.png").operator == "mask:a/cells/b.png"
    for cond, gaps in (("cells", True), ("cells:0.3", True), ("hole/cells", True), ("mask:a/cells", False),
                       ("pool:2", False), ("vector", False)):  # fmt: skip
        assert Sources.of(cond).gaps == gaps, cond


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ("clas", "unknown cond 'clas'; did you mean 'class'"),
        ("class+class", "lists 'class' twice"),
        ("vector:a,b,a", "lists column 'a' twice"),
        ("pool:2+hole", "two operators.*join them with a slash: pool:2/hole"),
        ("image+pool:2", "lists both image, which means the pictures in the data, and the operator pool:2"),
        ("class+none", "unknown cond 'none'"),
        ("", "unknown cond ''"),
    ],
)
def test_bad_sources(cond: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sources.of(cond)
    with pytest.raises(UsageError, match=message):
        TrainConfig(cond=cond)


# ------------------------------------------------------------------------------------------------------------- CondInfo


def test_numbers_are_standardised_by_what_is_known_of_them() -> None:
    nan = math.nan
    v = np.array([[1.0, 5.0, nan, 0.1], [3.0, 5.0, nan, 0.1], [nan, 5.0, nan, 0.1]])
    info = CondInfo.of(Known(vector=v))
    assert info.vector == ("c0", "c1", "c2", "c3")
    assert info.shift == pytest.approx((2, 5, 0, 0.1)) and info.scale == (1, 1, 1, 1)  # constants are only shifted
    told = info.to_model(Condition(vector=torch.from_numpy(v))).vector
    torch.testing.assert_close(
        told, torch.tensor([[-1, 0, nan, 0], [1, 0, nan, 0], [nan, 0, nan, 0]]), equal_nan=True, atol=1e-6, rtol=0
    )
    big = rng().normal(1e6, 1e-2, (500, 1))
    info = CondInfo.of(Known(vector=big))
    told = info.to_model(Condition(vector=torch.from_numpy(big))).vector.double()
    assert abs(float(told.mean())) < 1e-5 and float(told.std(correction=0)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(DataError, match="squares of the numbers in the condition overflow"):
        CondInfo.of(Known(vector=np.array([[1e200], [-1e200]])))


@pytest.mark.parametrize(
    ("dtype", "low", "high", "stored"),
    [("u1", 0, 255, "uint8"), ("?", 0, 1, "uint8"), ("i1", -5, 5, "int32"), ("u2", 3, 60_000, "int32"),
     ("<i8", -5, 5, "int64"), (">i4", -5, 5, "int32"), ("f2", -0.5, 2, "float32"), (">f4", -0.5, 2, "float32"),
     ("f8", -0.5, 2, "float64")],
)  # fmt: skip
def test_pictures_of_every_dtype_span_minus_one_to_one(
    tmp_path: Path, dtype: str, low: float, high: float, stored: str
) -> None:
    x, given = vectors(40)[:, :, None] * np.ones((1, 1, 4)), np.empty((40, 2, 3), dtype)
    given[:20], given[20:] = low, high
    data = load_data(save(tmp_path, x=x, given=given))
    known = data.info.known
    assert (known.image, known.low, known.high) == ((2, 3), low, high)
    for part, told in both(data):
        assert str(told.image.dtype) == f"torch.{stored}" and told.image.shape == (len(part), 2, 3)
        model = known.to_model(told.rows(torch.arange(len(part)))).image
        expected = 2 * (told.image.double() - low) / (high - low) - 1
        assert model.dtype == torch.float32 and float((model - expected).abs().max()) < 1e-6
        assert {float(v) for v in model.unique()} <= {-1.0, 1.0}


def test_words_are_numbered_by_the_training_texts() -> None:
    info = CondInfo.of(Known(text=np.array(["A red-ish dog.", "a dog", ""])))
    assert info.words == ("-", ".", "a", "dog", "ish", "red")
    assert info.tokens(["a DOG", "", "the dog ."]).tolist() == [[3, 4, -1], [-1, -1, -1], [0, 4, 2]]
    assert info.tokens([]).shape == (0, 1)
    assert info.tokens(["dog " * 500]).shape == (1, 500)  # no text is cut
    assert set(info.unknown("a dgo ran")) == {"dgo", "ran"} and "did you mean 'dog'" in info.unknown("dgo")["dgo"]


def test_the_description_survives_json_and_older_ones_have_none(tmp_path: Path) -> None:
    x = vectors()
    data = Dataset.of(
        x[:, :, None] * np.ones(4), given=Condition(vector=torch.from_numpy(beside(x)), image=torch.rand(60, 2, 3)),
        text=[WORDS[i % 3] for i in range(60)],
    )  # fmt: skip
    stored = json.loads(json.dumps(data.info.to_dict()))
    again = DataInfo.from_dict(stored)
    assert again == data.info and again.known.words == ("blue", "green", "red")
    assert "conditions besides the class: 2 numbers (c0, c1), a picture of shape 2 x 3, a text (3 different words)" in (
        data.describe()
    )
    del stored["known"]  # data.json of an earlier version
    assert DataInfo.from_dict(stored) == replace(data.info, known=CondInfo())
    plain = Dataset.of(x).info
    assert plain.known == CondInfo() and plain.to_dict()["known"] == {} and plain.known.describe() == ""
    features = CondInfo.of(Known(features=np.zeros((3, 2, 5), np.float32)))
    assert CondInfo.from_dict(features.to_dict()) == features and "features of size 5" in features.describe()


@pytest.mark.parametrize(
    "bad",
    [[], 3, {"colour": 1}, {"vector": ["a"]}, {"vector": ["a"], "shift": [0], "scale": [0]}, {"low": 1, "high": 1},
     {"low": "a"}, {"low": math.nan}, {"high": math.inf}, {"image": [0, 2]}, {"image": 3}, {"features": -1},
     {"vector": ["a"], "shift": [math.nan], "scale": [1]}],
)  # fmt: skip
def test_a_malformed_description_is_a_data_error(bad: Any) -> None:
    with pytest.raises(DataError, match="malformed"):
        DataInfo.from_dict({**Dataset.of(vectors()).info.to_dict(), "known": bad})


def test_a_condition_of_another_shape_is_refused() -> None:
    info = CondInfo(vector=("a", "b"), shift=(0.0, 0.0), scale=(1.0, 1.0), image=(3, 4, 4))
    for bad in (torch.zeros(5, 3), torch.zeros(5)):
        with pytest.raises(UsageError, match=r"trained on 2 numbers for each sample: a, b; pass an array of shape"):
            info.to_model(Condition(vector=bad))
    for bad in (torch.zeros(5, 1, 4, 4), torch.zeros(5, 3, 4)):
        with pytest.raises(UsageError, match=r"trained on pictures of shape \(3, 4, 4\)"):
            info.to_model(Condition(image=bad))


def test_words_keep_the_numbers_of_the_training_data() -> None:
    ours, theirs = CondInfo(words=("blue", "dog", "red")), CondInfo(words=("cat", "dog", "red", "the"))
    known = Condition(tokens=theirs.tokens(["the red dog", "cat"]), vector=torch.zeros(2, 1))
    moved = ours.translated(known, theirs)
    assert moved.tokens.tolist() == ours.tokens(["the red dog", "cat"]).tolist() == [[0, 3, 2], [0, -1, -1]]
    assert moved.vector is known.vector and ours.translated(known, ours) is known
    features = Condition(tokens=torch.zeros(2, 3, 4))
    assert ours.translated(features, theirs) is features


def test_a_run_keeps_only_what_its_model_is_told() -> None:
    full = CondInfo(("a",), (1.0,), (2.0,), (1, 2), 0.0, 5.0, ("w",), 0)
    assert full.told(Sources.of("none")) == full.told(Sources.of("class+pool:2")) == CondInfo()
    assert full.told(Sources.of("vector")) == CondInfo(("a",), (1.0,), (2.0,))
    assert full.told(Sources.of("text")) == CondInfo(words=("w",))
    assert full.told(Sources.of("image+vector+text")) == full


# --------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("kind", ["vector", "signal", "image", "volume", "grey", "last"])
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("way", ["content", "rows"])
def test_every_row_keeps_what_is_known_about_it(tmp_path: Path, kind: str, parts: bool, way: str) -> None:
    event = {"vector": (3,), "signal": (2, 20), "image": (3, 8, 8), "volume": (1, 4, 5, 6), "grey": (8, 8),
             "last": (9, 8, 3)}[kind]  # fmt: skip
    x = rng().integers(0, 256, (60, *event)).astype(np.uint8) if len(event) > 1 else vectors()
    mark = x.reshape(60, -1)[:, 0].astype(np.float64)
    c, text = beside(x), np.array([f"{WORDS[i % 3]} {m:g}" for i, m in enumerate(mark)])
    given = np.broadcast_to(mark.reshape(60, *[1] * len(event)), (60, *event)).astype(np.float32)
    cut = 45
    arrays = {"x": x, "c": c, "given": given, "text": text}
    if parts:
        arrays = {f"{k}_{p}": v[at] for k, v in arrays.items()
                  for p, at in (("train", slice(cut)), ("test", slice(cut, None)))}  # fmt: skip
    data = load_data(save(tmp_path, **arrays), split=way)
    shape = (1, 8, 8) if kind == "grey" else (3, 9, 8) if kind == "last" else event
    assert data.info.known.image == shape == data.info.shape
    if parts:
        assert len(data.train) == cut
    words = ("", *data.info.known.words)
    for part, told in both(data):
        first = part.flatten(1)[:, 0].double()  # the first element is the same for both layouts
        torch.testing.assert_close(told.vector, torch.stack([10 * first + 3, -first], 1), atol=1e-5, rtol=0)
        assert told.image.shape == part.shape
        assert torch.equal(told.image, first.float().reshape(-1, *[1] * len(shape)).expand(told.image.shape))
        for value, tokens in zip(first.tolist(), told.tokens.tolist(), strict=True):
            if kind != "vector":
                assert f"{value:g}" in [words[i] for i in tokens if i > 0] or 0 in tokens


def test_given_takes_its_axes_from_the_samples(tmp_path: Path) -> None:
    def shape(x: tuple[int, ...], given: tuple[int, ...], layout: str = "auto") -> tuple[int, ...]:
        arrays = {"x": rng().random((60, *x)), "given": rng(1).random((60, *given))}
        found = load_data(save(tmp_path, **arrays), reading=Reading(layout=layout)).train_given.image
        return () if found is None else tuple(found.shape[1:])

    assert shape((8, 16), (8, 4)) == (8, 4)  # a signal that is pooled by 4 has few samples, not 4 channels
    assert shape((16, 2), (4, 2)) == (2, 4)  # channels last, as in the samples
    assert shape((3, 8, 8), (4, 4)) == (1, 4, 4)
    assert shape((3, 8, 8), (1, 4, 4)) == (1, 4, 4)
    assert shape((8, 8, 3), (4, 4, 1)) == (1, 4, 4) and shape((8, 8, 3), (1, 6, 6)) == (1, 6, 6)
    assert shape((8, 8, 3), (4, 4, 6)) == (6, 4, 4)
    assert shape((1, 8, 8), (8, 8, 3)) == (3, 8, 8) and shape((9, 8, 3), (3, 18, 16)) == (3, 18, 16)
    assert shape((3, 8, 8), (5, 4, 6)) == (5, 4, 6) and shape((8, 8, 3), (4, 6, 5)) == (5, 4, 6)
    assert shape((1, 8, 8), (6, 8, 3), "first") == (6, 8, 3)
    assert shape((3,), (7,)) == (7,) and shape((3,), (7, 2)) == ()


UNFIT = [
    ("c", np.float64(3.0), "has shape ()"),
    ("c", np.zeros((7, 2)), "has shape (7, 2), but there are 60 samples"),
    ("c", np.zeros((60, 2, 2)), "must hold numbers and have shape (N, K)"),
    ("c", np.zeros((60, 0)), "must hold numbers and have shape (N, K)"),
    ("c", np.full((60, 2), np.inf), "infinite values"),
    ("c", np.full(60, "a"), "must hold numbers"),
    ("given", np.zeros((60, 2, 2)), "must have 2 axes"),
    ("given", np.full((60, 2), np.inf), "infinite values"),
    ("given", np.full((60, 2), np.nan), "contains only NaN; fill in values"),
    ("given", np.full((60, 2), "a"), "must hold numbers"),
    ("given", np.zeros((60, 0)), "is empty"),
    ("text", np.array("a description of the file"), "has shape ()"),
    ("text", np.zeros((60, 2)), "must hold strings"),
    ("text", np.full(60, b"a"), "must hold strings"),
    ("text", np.full(60, "  "), "only empty texts"),
]


@pytest.mark.parametrize(("name", "value", "message"), UNFIT, ids=[f"{n}-{m}" for n, _, m in UNFIT])
def test_an_array_that_is_no_condition_hinders_only_those_who_ask_for_it(
    tmp_path: Path, name: str, value: np.ndarray, message: str
) -> None:
    cond = {"c": "vector", "given": "image", "text": "text"}[name]
    path = save(tmp_path, x=vectors(), **{name: value})
    data = load_data(path)
    assert len(data.train) + len(data.test) == 60 and data.info.known == CondInfo()
    (note,) = data.notes
    assert note.startswith(f"{name} is not used as a condition: array {name!r}") and message in note
    with pytest.raises(DataError, match=r"data\.npz: array") as error:
        TrainConfig(data=path, cond=cond).load_data()
    assert message in str(error.value)


def test_both_parts_say_the_same_kind_of_thing(tmp_path: Path) -> None:
    x = {"x_train": vectors(), "x_test": vectors(20, seed=1)}
    cases = [
        ({"c_train": np.zeros((60, 2))}, "c_train' describes only the training samples; add an array for the test"),
        ({"c_test": np.zeros((20, 2))}, "c_test' describes only the test samples; add an array for the training"),
        ({"c_train": np.zeros((60, 2)), "c_test": np.zeros((20, 3))}, "the shapes may differ only in the number"),
    ]
    for more, message in cases:
        path = save(tmp_path, **x, **more)
        data = load_data(path)
        assert data.info.known == CondInfo() and data.test_given.vector is None and message in data.notes[0]
        with pytest.raises(DataError, match=message):
            TrainConfig(data=path, cond="vector").load_data()
    features = {"text_train": np.zeros((60, 5, 4), np.float32), "text_test": np.zeros((20, 9, 4), np.float32)}
    assert load_data(save(tmp_path, **x, **features)).test_given.tokens.shape == (20, 9, 4)


def test_a_file_with_theta_and_c_holds_samples_and_what_is_known_about_them(tmp_path: Path) -> None:
    theta = vectors()
    data = load_data(save(tmp_path, theta=theta, c=beside(theta)))
    torch.testing.assert_close(data.train_given.vector[:, 1].float(), -data.train[:, 0])
    assert load_data(save(tmp_path, c=theta)).info.shape == (3,)
    with pytest.raises(DataError, match="it is unclear which of c and c_train holds the conditions"):
        load_data(save(tmp_path, x=theta, c=theta, c_train=theta))


def test_data_in_memory_are_as_data_in_a_file(tmp_path: Path) -> None:
    x, text = vectors(), [WORDS[i % 3] for i in range(60)]
    given = Condition(vector=torch.from_numpy(beside(x)), image=torch.rand(60, 7))
    data = Dataset.of(x, given=given, text=text)
    file = load_data(save(tmp_path, x=x, c=given.vector.numpy(), given=given.image.numpy(), text=np.array(text)))
    assert data.info.known == file.info.known
    for (a, one), (b, other) in zip(both(data), both(file), strict=True):
        assert torch.equal(a, b)
        for name in ("vector", "image", "tokens"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    features = torch.rand(60, 4, 5)
    told = Dataset.of(x, given=Condition(tokens=features))
    assert told.info.known.features == 5 and told.train_given.tokens.dtype == torch.float32
    apart = Dataset.of(x, x[:9], given=given, text=text, test_given=given.rows(torch.arange(9)), test_text=text[:9])
    assert torch.equal(apart.test_given.vector, given.vector[:9]) and len(apart.train_given.tokens) == 60


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"given": Condition(label=torch.zeros(60).long())}, UsageError, "as the argument classes instead"),
        (
            {"given": Condition(tokens=torch.zeros(60, 2, 3)), "text": ["a"] * 60},
            UsageError,
            "pass only one of the two",
        ),
        ({"given": Condition(tokens=torch.zeros(60, 2).long())}, DataError, "must hold strings and have shape"),
        ({"given": Condition(vector=torch.zeros(1, 2))}, DataError, "but there are 60 samples"),
        ({"text": ["a"] * 59}, DataError, "but there are 60 samples"),
        ({"given": Condition(vector=torch.full((60, 1), torch.inf))}, DataError, "infinite values"),
        ({"test": vectors(9), "text": ["a"] * 60}, DataError, "only the training samples"),
    ],
)
def test_what_is_passed_in_memory_has_to_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dataset.of(vectors(), **options)


# --------------------------------------------------------------------------------------------------------------- tables


def table(folder: Path, rows: list[str], header: str = "age,height,dose,weight") -> str:
    (folder / "table.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(folder / "table.csv")


def people(n: int = 80, empty: float = 0.0, told: float = 0.0) -> list[str]:
    """Lines in which dose is 2 height + 1, and age is a whole number."""
    r, found = rng(), []
    for height in r.normal(size=n).round(4):
        cells = [str(r.integers(20, 90)), f"{height:.4f}", f"{2 * height + 1:.4f}", f"{r.normal():.4f}"]
        hide = r.random(4) < np.array([told, empty, told, empty])
        found.append(",".join("" if gone else cell for gone, cell in zip(hide, cells, strict=True)))
    return found


def test_columns_of_a_table_are_conditions(tmp_path: Path) -> None:
    path = table(tmp_path, people(told=0.2))
    config = TrainConfig(data=path, cond="vector:dose,age")
    data = config.load_data()
    assert data.info.names == ("height", "weight") and data.info.known.vector == ("dose", "age")
    dose = torch.cat([data.train_given.vector, data.test_given.vector])[:, 0]
    height = torch.cat([data.train, data.test])[:, 0].double()
    assert 5 < int(dose.isnan().sum()) < 40  # an empty cell is not given
    torch.testing.assert_close(dose[~dose.isnan()], (2 * height + 1)[~dose.isnan()], atol=1e-5, rtol=0)
    known = dose[: len(data.train)]
    assert data.info.known.shift[0] == pytest.approx(float(known.nanmean()))
    assert config.resolved(data.info).cond == "vector:dose,age"
    assert load_data(path.replace("table", "table"), reading=Reading(columns=("dose", "age"))).info == data.info


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ("vector:heigth", "has no column 'heigth'; did you mean 'height'"),
        ("vector:age,height,dose,weight", "every column is part of the condition"),
    ],
)
def test_columns_that_cannot_be_conditions(tmp_path: Path, cond: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TrainConfig(data=table(tmp_path, people()), cond=cond).load_data()


def test_columns_are_named_only_for_tables(tmp_path: Path) -> None:
    data = Dataset.of(vectors(), given=Condition(vector=torch.zeros(60, 2)))
    with pytest.raises(
        UsageError,
        match=r"for the condition are called c0, c1; columns can be named only for a table",
    ):
        TrainConfig(cond="vector:age").resolved(data.info)
    assert TrainConfig(cond="vector").resolved(data.info).cond == "vector"
    read = load_data(table(tmp_path, people()), reading=Reading(columns=("age",)))
    with pytest.raises(UsageError, match=r"that table provides for the condition are called age"):
        TrainConfig(cond="vector:dose").resolved(read.info)


def test_a_class_and_a_condition_column(tmp_path: Path) -> None:
    rows = [f"{i % 3},{v:.3f},{-v:.3f}" for i, v in enumerate(rng().normal(size=60))]
    path = table(tmp_path, rows, "label,x,z")
    data = TrainConfig(data=path, cond="class+vector:z").load_data()
    assert data.info.classes == ("0", "1", "2") and data.info.names == ("x",)
    torch.testing.assert_close(data.train_given.vector[:, 0].float(), -data.train[:, 0])
    told = TrainConfig(data=path, cond="vector:label").load_data()
    assert told.info.classes == () and set(told.train_given.vector.unique().tolist()) == {0.0, 1.0, 2.0}


# ---------------------------------------------------------------------------------------------------------- empty cells


def test_rows_with_empty_cells_are_trained_on_and_have_no_weight_there(tmp_path: Path) -> None:
    rows = people(200, empty=0.2)
    path = table(tmp_path, rows)
    with pytest.raises(DataError, match=r"empty cells.*which accepts empty cells\) \(cond='cells'\)"):
        load_data(path)
    data = TrainConfig(data=path, cond="cells").load_data()
    assert data.complete is not None and data.complete.shape == data.train.shape
    cells = [[cell for cell in row.split(",")] for row in rows]
    assert int((~data.complete).sum()) == sum(row.count("") for row in cells)
    assert f"empty values of the training samples, which have no weight in training: {int((~data.complete).sum())}" in (
        data.describe()
    )
    whole = {i for i, row in enumerate(cells) if "" not in row}
    for part, first in ((data.train, 0), (data.test, len(data.train))):
        for i, x in enumerate(part):
            row = cells[data.origin(first + i)]
            known = data.complete[i].tolist() if first == 0 else [True] * 4
            assert known == [cell != "" for cell in row]
            values = [v for v, there in zip(x.tolist(), known, strict=True) if there]
            assert values == pytest.approx([float(cell) for cell in row if cell])
    held = {data.origin(len(data.train) + i) for i in range(len(data.test))}
    assert held and held <= whole
    assert data.validates is not None and len(data.validates)
    assert {data.origin(int(i)) for i in data.validates} <= whole and bool(data.complete[data.validates].all())
    # units are those of the known values
    known = [np.array([float(r[k]) for i, r in enumerate(cells) if r[k] and i not in held]) for k in range(4)]
    affine = data.codec.continuous
    mean, std = affine.shift.flatten().tolist(), affine.scale.flatten().tolist()
    assert mean[1:] == pytest.approx([v.mean() for v in known[1:]], abs=1e-5)
    assert std[1:] == pytest.approx([v.std() for v in known[1:]], rel=1e-5)
    assert mean[0] == pytest.approx(known[0].mean() + 0.5)  # whole numbers: the middle of a cell
    assert std[0] == pytest.approx(math.sqrt(known[0].var() + 1 / 12))


@pytest.mark.parametrize("event", [(3,), (2, 20), (2, 8, 8)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nan_in_arrays_is_kept_for_cells(tmp_path: Path, event: tuple[int, ...], dtype: str) -> None:
    x = (1000 * rng().normal(size=(120, *event))).astype(dtype)
    x[rng(1).random(120) < 0.3, 0] = np.nan
    path = save(tmp_path, x=x)
    with pytest.raises(DataError, match="NaN or infinite"):
        TrainConfig(data=path).load_data()
    data = TrainConfig(data=path, cond="cells").load_data()
    assert data.complete is not None and not bool(data.train.isnan().any() | data.test.isnan().any())
    empty = data.train[~data.complete].double()
    assert float(empty.abs().max()) < 400  # about the mean of the column
    order = data.rows[: len(data.train)].numpy()
    assert np.array_equal(~np.isnan(x[order]), data.complete.numpy())
    stored = x[order].astype(data.train.numpy().dtype)
    assert np.array_equal(stored[data.complete.numpy()], data.train.numpy()[data.complete.numpy()])
    x[5] = np.inf
    with pytest.raises(DataError, match="NaN or infinite value"):
        TrainConfig(data=save(tmp_path, x=x), cond="cells").load_data()


def test_rows_with_empty_cells_are_known_again(tmp_path: Path) -> None:
    x = vectors(300)
    x[rng(1).random((300, 3)) < 0.2] = np.nan
    data, order = Dataset.of(x), rng(2).permutation(300)
    shuffled, grown = Dataset.of(x[order]), Dataset.of(np.concatenate([x, vectors(5, seed=9)]))
    assert data.identity is not None and shuffled.identity is not None and grown.identity is not None
    assert data.identity.compared(shuffled.identity)[0] == "re-sorted"
    assert data.identity.compared(grown.identity) == ("grown", 5, 0)
    held = {tuple(row) for row in data.test.tolist()}
    assert held == {tuple(row) for row in shuffled.test.tolist()} <= {tuple(row) for row in grown.test.tolist()}


def test_data_that_are_never_complete(tmp_path: Path) -> None:
    x = vectors()
    x[:30, 0] = x[30:, 1] = np.nan
    with pytest.raises(
        DataError, match=r"values are missing in 60 of the 60 samples.*leave out columns that are mostly empty"
    ):
        Dataset.of(x)
    x = vectors()
    x[:, 2] = np.nan
    x[:5, 2] = 1.0
    with pytest.raises(DataError, match=r"no complete sample is left to hold out.*or hold out a larger fraction"):
        Dataset.of(x, split="rows", seed=next(s for s in range(99) if split(60, 0.1, s)[1].min() >= 5))
    with pytest.raises(DataError, match=r"no training sample has a value in feature 1 \(counted from 0\); drop it"):
        Dataset.of(np.where(np.arange(3) == 1, np.nan, vectors()), vectors(9))
    with pytest.raises(DataError, match="NaN or infinite value"):
        Dataset.of(vectors(), np.full((9, 3), np.nan))
    rows = [f"{'' if i % 5 else i % 3},{v:.3f}" for i, v in enumerate(rng().normal(size=60))]
    with pytest.raises(DataError, match="48 empty cells, the first in line 3, column 'label', which holds the classes"):
        TrainConfig(data=table(tmp_path, rows, "label,x"), cond="cells").load_data()


# -------------------------------------------------------------------------------------------------------------- folders


def pictures(folder: Path, given: bool = True, texts: bool = True, n: int = 60, sub: str = "") -> None:
    """Pictures of one brightness each, in two classes; a known picture of half the brightness, and a text."""
    for i in range(n):
        where = Path(sub) / ("cat", "dog")[i % 2]
        for place, side, value in ((folder, 8, 2 * i), (folder / "given", 4, i)):
            if place != folder and not given:
                continue
            (place / where).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((side, side), value, np.uint8)).save(place / where / f"{i:02d}.png")
        if texts and i % 3:
            (folder / where / f"{i:02d}.txt").write_text(f"number n{i}\n second line", encoding="utf-8")


@pytest.mark.parametrize("parts", [False, True])
def test_a_folder_with_known_pictures_and_texts(tmp_path: Path, parts: bool) -> None:
    for sub in ("train", "test") if parts else ("",):
        pictures(tmp_path, sub=sub)
    (tmp_path / "README.txt").write_text("about")
    data = load_data(str(tmp_path))
    assert data.info.classes == ("cat", "dog") and data.info.known.image == (1, 4, 4)
    words = ("", *data.info.known.words)
    for part, told in both(data):
        value = part[:, 0, 0, 0]
        assert torch.equal(told.image, (value // 2).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4))
        for v, tokens in zip((value // 2).tolist(), told.tokens.tolist(), strict=True):
            said = [words[i] if i > 0 else "?" for i in tokens if i >= 0]
            assert said == [] if v % 3 == 0 else said[0] == "number" and said[1] in (f"n{v}", "?") and said[3] == "line"
    note = [n for n in data.notes if "other files" in n]
    assert len(note) == 1 and "1 .txt (README.txt)" in note[0]


def test_a_class_called_given_stays_a_class(tmp_path: Path) -> None:
    for name in ("given", "taken"):
        (tmp_path / name).mkdir()
        for i in range(9):
            image = Image.fromarray(rng(i).integers(0, 256, (8, 8), dtype=np.uint8))
            image.save(tmp_path / name / f"{i}.png")
    data = load_data(str(tmp_path))
    assert data.info.classes == ("given", "taken") and data.info.known == CondInfo()


def test_known_pictures_and_texts_that_cannot_be_used_hinder_only_those_who_ask(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "given" / "cat" / "04.png").write_bytes(b"no picture")
    (tmp_path / "cat" / "02.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "dog" / "05.txt").write_text("long " * 20_000)
    data = load_data(str(tmp_path))
    assert len(data.train) + len(data.test) == 60 and data.info.known == CondInfo()
    notes = " ".join(data.notes)
    assert (
        "the images in given/ are not used as a condition: 1 of 60 files is not a readable image: given/cat/04.png"
        in (notes)
    )
    assert "the texts next to the images are not used as a condition" in notes and "and 1 more problem" in notes
    for cond, message in (("image", "given/cat/04.png"), ("text", r"cat/02\.txt cannot be read")):
        with pytest.raises(Problems, match=message):
            TrainConfig(data=str(tmp_path), cond=cond).load_data()
    # a sample without its condition is of no use, so nothing is skipped
    skipping = Reading(on_bad="skip", needs=("image",))
    found = look(str(tmp_path), reading=skipping)
    assert found.dataset is None and [p.answers for p in found.problems] == [{}]
    (tmp_path / "given" / "cat" / "04.png").unlink()
    with pytest.raises(Problems, match=r"1 image has no image in given/ \(cat/04\.png\); add the"):
        TrainConfig(data=str(tmp_path), cond="image").load_data()


def test_empty_texts_are_no_texts(tmp_path: Path) -> None:
    pictures(tmp_path, given=False, texts=False)
    for i in range(0, 60, 2):
        (tmp_path / "cat" / f"{i:02d}.txt").write_text(" \n")
    data = load_data(str(tmp_path))
    assert data.info.known == CondInfo() and any(".txt files next to the images are empty" in n for n in data.notes)
    with pytest.raises(Problems, match="are empty"):
        TrainConfig(data=str(tmp_path), cond="text").load_data()


def test_known_pictures_are_resized_with_the_others(tmp_path: Path) -> None:
    pictures(tmp_path, texts=False)
    data = load_data(str(tmp_path), reading=Reading(size=8))
    assert data.info.shape == (1, 8, 8) and data.info.known.image == (1, 8, 8)


def test_known_pictures_of_16_bits(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "given"):
        (place / "a").mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((8, 8), 3000 * i + i, np.uint16)).save(place / "a" / f"{i}.png")
    data = load_data(str(tmp_path))
    assert torch.equal(data.train_given.image.int(), data.train.int())
    told = data.info.known.to_model(data.train_given.rows(torch.tensor([3, 1]))).image
    assert told.shape == (2, 1, 8, 8) and float(told.abs().max()) <= 1


# -------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ("vector", "requires a vector for each sample, but array has none; vectors are read from an array called c"),
        ("image", "requires an image for each sample.*images with the same names in a folder given/"),
        ("text", "requires a text for each sample.*a .txt file next to each image"),
        ("class", "requires labels"),
        ("pool:2", "needs pictures, signals or volumes"),
        ("grey", "needs pictures"),
    ],
)
def test_a_condition_that_the_data_do_not_have(cond: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(cond=cond).resolved(Dataset.of(vectors()).info)


@pytest.mark.parametrize("cond", ["vector", "image", "text", "cells", "class+vector"])
def test_optimal_transport_is_refused_with_its_reason(cond: str) -> None:
    data = Dataset.of(
        vectors(), classes=np.arange(60) % 2, text=["a b"] * 60,
        given=Condition(vector=torch.zeros(60, 2), image=torch.zeros(60, 3)),
    )  # fmt: skip
    with pytest.raises(UsageError, match="the noise of a row would reveal its condition") as error:
        TrainConfig(cond=cond, coupling="ot").resolved(data.info)
    assert error.value.parameter == "coupling" and error.value.value == "independent"
    assert TrainConfig(cond="class", coupling="ot").resolved(data.info).coupling == "ot"


def test_inspect_says_what_is_known(shell: Shell, tmp_path: Path) -> None:
    x = vectors()
    np.savez("data.npz", x=x, c=beside(x), text=np.array(["a dog"] * 60), given=np.zeros((60, 2, 2)))
    out = shell("data inspect data.npz")
    assert "conditions besides the class: 2 numbers (c0, c1), a text (2 different words)" in out
    assert "given is not used as a condition: array 'given' has shape (60, 2, 2)" in out
    assert "--cond" in out
    found = shell.json("data inspect data.npz")["found"]
    assert isinstance(found, dict) and found["known"]["words"] == ["a", "dog"]
