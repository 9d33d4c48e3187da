"""Which files of a folder are pictures, of which split and class, and that none is passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from scoresde.data.folders import Found, find_pictures, some


def touch(root: Path, *names: str) -> None:
    """Empty files; what is in them is nobody's business here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def by_class(root: Path, rows: list[tuple[Path, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, name in rows:
        found.setdefault(name, []).append(path.relative_to(root).as_posix())
    return {name: sorted(paths) for name, paths in found.items()}


def said(found: Found) -> str:
    return "\n".join([*(p.message for p in found.problems), *found.notes])


def test_a_class_is_all_that_lies_in_and_below_a_folder(tmp_path: Path) -> None:
    cats, dogs = ["cat/0.png", "cat/a/1.JPG", "cat/a/b/c/2.tiff"], ["dog/x/y/0.webp"]
    touch(tmp_path, *cats, *dogs)
    found = find_pictures(tmp_path)
    assert by_class(tmp_path, found.train) == {"cat": cats, "dog": dogs} and not found.test
    assert not found.problems and not found.notes
    for part in ("train", "test"):
        touch(tmp_path / "split", *(f"{part}/{name}" for name in cats + dogs))
    found = find_pictures(tmp_path / "split")
    for part, rows in (("train", found.train), ("test", found.test)):
        assert by_class(tmp_path / "split" / part, rows) == {"cat": cats, "dog": dogs}


def test_the_order_is_that_of_the_names_shuffled_once(tmp_path: Path) -> None:
    names = [f"{i:02d}.png" for i in range(30)]
    touch(tmp_path / "a", *names)
    touch(tmp_path / "b", *reversed(names))
    one, other = ([path.name for path, _ in find_pictures(tmp_path / folder).train] for folder in "ab")
    assert one == other and sorted(one) == names and one != names


def test_pictures_beside_folders_of_pictures_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "deep/er/c.png", "deep/d.png", "notes/readme.txt")
    found = find_pictures(tmp_path)
    (problem,) = found.problems
    assert "at the top level (2: a.png, b.png) and in folders (2: deep/d.png)" in problem.message
    assert not problem.answers
    assert len(found.train) == 4, "they are looked at all the same"


def test_other_files_are_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "x/0.png", "x/1.png", *(f"x/{i}.gif" for i in range(5)), "x/y/p.HEIC", "info.txt", "x/raw")
    touch(tmp_path, "Thumbs.db", ".DS_Store", "__MACOSX/x/0.png", "x/._0.png", ".git/a.png", "@eaDir/0.png")
    found = find_pictures(tmp_path)
    assert len(found.train) == 2
    assert found.notes == (
        "other files are left out: 5 .gif (x/0.gif, x/1.gif, x/2.gif and 2 more), 1 .txt (info.txt), "
        "1 without a suffix (x/raw), 1 .heic (x/y/p.HEIC)",
    )


def test_a_folder_without_pictures_says_what_it_has(tmp_path: Path) -> None:
    touch(tmp_path, "a/scan.dcm", "x.npz")
    (problem,) = find_pictures(tmp_path).problems
    assert "there are no images (.png, " in problem.message
    assert "1 .dcm (a/scan.dcm)" in problem.message and "1 .npz (x.npz)" in problem.message


def test_an_empty_folder_is_no_class_and_that_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "cat/0.png", "masks/0.txt")
    (tmp_path / "empty").mkdir()
    found = find_pictures(tmp_path)
    assert set(by_class(tmp_path, found.train)) == {"cat"}
    assert "there are no images in empty/, masks/" in found.notes


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "Testing"), ("TRAIN", "validation")])
def test_the_parts_have_several_names(tmp_path: Path, train: str, test: str) -> None:
    touch(tmp_path, f"{train}/a/0.png", f"{train}/a/1.png", f"{test}/a/2.png")
    found = find_pictures(tmp_path)
    assert (len(found.train), len(found.test)) == (2, 1) and not found.notes and not found.problems


def test_of_two_held_out_parts_one_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.png", "test/1.png", "test/2.png", "val/deep/3.png", "val/4.png")
    found = find_pictures(tmp_path)
    assert {path.name for path, _ in found.test} == {"1.png", "2.png"} and not found.problems
    assert found.notes == ("val/ is left out (2 images), because test/ is the test part",)
    touch(tmp_path / "b", "train/0.png", "test/list.txt", "val/3.png")
    found = find_pictures(tmp_path / "b")
    assert [path.name for path, _ in found.test] == ["3.png"]
    assert found.notes == ("test/ is left out (0 images), because val/ is the test part",)


def test_what_could_be_two_things_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "two", "train/0.png", "val/1.png", "valid/2.png")
    assert "val/, valid/ are names for the same part" in said(find_pictures(tmp_path / "two"))
    touch(tmp_path / "beside", "train/0.png", "bus/deep/1.png", "loose.png", "list.csv")
    found = find_pictures(tmp_path / "beside")
    assert "some images are not in any part (bus/deep/1.png, loose.png)" in said(found)
    assert "other files are left out: 1 .csv (list.csv)" in found.notes


def test_a_test_folder_without_a_training_one_is_a_class_and_that_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "test/0.png", "other/1.png")
    found = find_pictures(tmp_path)
    assert set(by_class(tmp_path, found.train)) == {
        "test",
        "other",
    } and "every folder is a class, including test/" in said(found)


def test_labels_of_one_part_alone_are_said_to_be_missing(tmp_path: Path) -> None:
    touch(tmp_path / "a", "train/cat/0.png", "test/1.png")
    assert "only one part has class folders, so the test images have no labels" in said(find_pictures(tmp_path / "a"))
    touch(tmp_path / "b", "train/0.png", "test/cat/1.png")
    assert "the training images have no labels" in said(find_pictures(tmp_path / "b"))


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    touch(tmp_path, "cat/0.png", "elsewhere/0.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    (tmp_path / "dog").symlink_to(tmp_path / "elsewhere")
    found = by_class(tmp_path, find_pictures(tmp_path).train)
    assert found == {"cat": ["cat/0.png"], "dog": ["dog/0.png"], "elsewhere": ["elsewhere/0.png"]}


def test_some_names_and_how_many_more() -> None:
    assert some(["a", "b"]) == "a, b" and some(list("abcde")) == "a, b, c and 2 more"
    assert some(["a", "b"], of=2_000, most=2) == "a, b and 1,998 more"
