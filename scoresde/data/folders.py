"""Search a folder or an archive for images, and determine which of them are for training and what their classes are.

Images may be at any depth. The classes are the top-level folders or, if there is a folder ``train``, the folders inside
``train`` and ``test``. Everything in or below a class folder belongs to that class. Files that are not images are
reported as left out, except for hidden files and files that operating systems create.

Some files are not samples, but conditions of an image. For ``cat/7.png``, these are the image ``given/cat/7.png`` in
the top-level folder ``given``, and the text file ``cat/7.txt`` next to the image. In archives without class folders,
the class and the text of ``7.png`` can also be in ``7.cls`` and ``7.json``, as in the WebDataset format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import Problem
from ..core.opened import parse_json, reason
from ..core.text import one_line
from .places import Folder, Place

__all__ = ["IMAGE_SUFFIXES", "Found", "find_pictures", "pictures_in", "some"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= {name: "validation" for name in ("val", "valid", "validation")}
OLDER = ("train", "test", "val", "valid")  # the names recognised by older versions
GIVEN = "given"
JUNK = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")  # ignored, as are all names that begin with a dot

SMALL = 2**16  # largest size of a file with the class or the text of an image, in bytes
LABELS, TEXTS = ("cls", "class", "label"), ("txt", "text", "caption")  # keys of a JSON file next to an image

Classed = list[tuple[Path, str]]


@dataclass(frozen=True)
class Found:
    """The images found in a folder.

    Attributes:
        train: File and class of each training image, or of each image if the folder has no test part. The class is ""
            if there are no classes. The images are in the order of the data rows.
        test: File and class of each test image.
        problems: Problems that prevent the folder from being read.
        notes: Notes on what was left out, one sentence each.
        given: The paths of the conditions in the folder ``given``, keyed by the paths of the images to which they
            belong.
        texts: The paths of the text files, keyed by the paths of the images to which they belong.
        labels: The paths of the files with the classes of images, keyed by the paths of the images.
    """

    train: Classed
    test: Classed
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    given: Mapping[Path, Path] = field(default_factory=dict)
    texts: Mapping[Path, Path] = field(default_factory=dict)
    labels: Mapping[Path, Path] = field(default_factory=dict)

    def beside(self, path: Path) -> list[Path]:
        """Return the paths of the files that say something about an image."""
        found = (files.get(path) for files in (self.texts, self.labels, self.given))
        return list(dict.fromkeys(file for file in found if file is not None))


def find_pictures(folder: Path | Place, older: bool = False) -> Found:
    """Find all images in and below a folder or an archive. For ``older``, see :class:`~scoresde.data.Reading`."""
    search = _Search(folder, older)
    folder = search.folder
    parts: dict[str, list[Path]] = {}
    for path, is_folder in search.visible(folder):
        if is_folder and path.name.lower() in (OLDER if older else PARTS):
            parts.setdefault(PARTS[path.name.lower()], []).append(path)
    if "train" not in parts:
        if parts:
            search.note(
                "there is no train/ folder, so every folder is a class, including "
                f"{_names(p for several in parts.values() for p in several)}"
            )
        return search.found(search.classed(folder), [])
    for several in parts.values():
        if len(several) > 1:
            search.refuse(f"{_names(several)} are names for the same part of the data; rename or move all but one")
    train = search.classed(parts["train"][0])
    chosen = _held_out(search, parts)
    test = search.classed(chosen) if chosen is not None else []
    used = {path for several in parts.values() for path in several}
    beside = [p for top, inside in search.visible(folder) if top not in used for p in search.pictures(top, inside)]
    if beside and not search.older:
        search.refuse(
            f"{parts['train'][0].name}/ is read as the training part, but some images are not in any part "
            f"({search.shown(beside)}); rename the training folder if it is a class, or move these images into a part"
        )
    if train and test and bool(train[0][1]) != bool(test[0][1]):
        which = "test" if train[0][1] else "training"
        search.note(f"only one part has class folders, so the {which} images have no labels")
    return search.found(train, test)


def pictures_in(folder: Path) -> list[Path]:
    """Return all images in and below a folder, sorted by path, regardless of splits, classes and conditions."""
    return [path for path in _Search(folder, older=False, alone=False).walk(folder) if _is_picture(path)]


def _held_out(search: _Search, parts: dict[str, list[Path]]) -> Path | None:
    """Return the test folder, the validation folder if there are no test images, or ``None``."""
    folders = [parts[part][0] for part in ("test", "validation") if part in parts]
    if not folders:
        return None
    counts = [sum(_is_picture(p) for p in search.walk(folder)) for folder in folders]
    chosen = folders[0] if counts[0] or not any(counts) else folders[1]
    for path, count in zip(folders, counts, strict=True):
        if path is not chosen:
            images = f"{count:,} image{'' if count == 1 else 's'}"
            search.note(f"{path.name}/ is left out ({images}), because {chosen.name}/ is the test part")
    return chosen


class _Search:
    """A search for images in a folder. The search collects problems, notes and the paths of other files.

    Args:
        folder: The folder or the archive.
        older: See :class:`~scoresde.data.Reading`.
        alone: Whether images in the subfolder ``given`` may be conditions of other images.
    """

    def __init__(self, folder: Path | Place, older: bool, alone: bool = True) -> None:
        self.place = folder if isinstance(folder, Place) else Folder(folder)
        self.folder, self.older = self.place.path, older
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.others: list[Path] = []
        self.known = self._known() if alone and not older else {}

    def _known(self) -> dict[Path, Path]:
        """Return the images below ``given``, keyed by their paths relative to ``given``, without suffix."""
        folder = self.folder / GIVEN
        if not self.place.is_folder(folder):
            return {}
        found = {p.relative_to(folder).with_suffix(""): p for p in self.walk(folder) if _is_picture(p)}
        apart = [
            path for path, inside in self.visible(self.folder) if path != folder for path in self.walk(path, inside)
        ]
        names = {path.relative_to(self.folder).with_suffix("") for path in apart if _is_picture(path)}
        # If no image elsewhere has the same name as an image in this folder, the folder is a class called "given".
        return found if names & found.keys() else {}

    def refuse(self, text: str) -> None:
        self.problems.append(Problem(text))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def shown(self, paths: Sequence[Path]) -> str:
        return some([path.relative_to(self.folder).as_posix() for path in paths])

    def visible(self, folder: Path) -> list[tuple[Path, bool]]:
        """Return the visible entries of a folder, sorted by name, each with a flag that is true for folders."""
        inside = self.place.listed(folder)
        seen = sorted((name, folded) for name, folded in inside if name[0] != "." and name.lower() not in JUNK)
        apart = GIVEN if folder == self.folder and getattr(self, "known", None) else ""
        return [(folder / name, is_folder) for name, is_folder in seen if name != apart]

    def walk(self, path: Path, is_folder: bool = True, above: tuple[Path, ...] = ()) -> Iterator[Path]:
        """Yield every file in and below a folder, or ``path`` itself if it is a file."""
        if not is_folder:
            yield path
        if not is_folder or (self.older and above):
            return
        if not self.place.links:
            for inside, folded in self.visible(path):
                yield from self.walk(inside, folded)
            return
        here = path.resolve()
        above = above or (path.parent.resolve(), *path.parent.resolve().parents)
        if here not in above:  # a link may lead back to a folder above it
            for inside, folded in self.visible(path):
                yield from self.walk(inside, folded, (*above, here))

    def pictures(self, path: Path, is_folder: bool) -> list[Path]:
        """Return the images in and below ``path``, and record the other files."""
        found: list[Path] = []
        for file in self.walk(path, is_folder):
            (found if _is_picture(file) else self.others).append(file)
        return found

    def classed(self, part: Path) -> Classed:
        """Return every image in a part of the data, with its class."""
        flat: list[Path] = []
        inside: dict[str, list[Path]] = {}
        for path, is_folder in self.visible(part):
            if is_folder:
                inside[path.name] = self.pictures(path, True)
            else:
                flat += self.pictures(path, False)
        empty = [name for name, pictures in inside.items() if not pictures]
        classes = {name: pictures for name, pictures in inside.items() if pictures}
        where = "there are" if part == self.folder else f"{part.name}/ has"
        if flat and classes:
            name, pictures = next(iter(classes.items()))
            self.refuse(
                f"{where} images both at the top level ({len(flat):,}: {self.shown(flat)}) and in folders "
                f"({sum(map(len, classes.values())):,}: {name}/{pictures[0].name}); each folder is a class, so move "
                "the top-level images into a class folder or elsewhere"
            )
        if not (flat or classes):
            held = f"; there are other files: {_by_suffix(self, self.others)}" if self.others else ""
            self.refuse(f"{where} no images ({', '.join(IMAGE_SUFFIXES)}) at any depth{held}")
        elif empty:
            self.note(f"there are no images in {some([f'{name}/' for name in empty])}")
        rows = [(p, "") for p in flat] + [(p, name) for name, pictures in classes.items() for p in pictures]
        # Files are often sorted by content. Shuffle once, always in the same way, so that the first rows are a
        # representative sample of all rows.
        return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]

    def labelled(self, rows: Classed) -> tuple[Classed, dict[Path, Path], dict[Path, Path]]:
        """Return the images of an archive without class folders with the classes that are in files next to them.

        Also return the paths of these files, and those of JSON files with a text, keyed by the paths of the images.
        """
        there, labels, texts, classed = set(self.others), {}, {}, []
        for path, name in rows:
            plain, full = (path.with_name(path.name.partition(".")[0] + suffix) for suffix in (".cls", ".json"))
            told = self._json(full) if full in there else {}
            if full in there and any(isinstance(told.get(key), str) for key in TEXTS):
                texts[path] = full
            if plain in there:
                labels[path], name = plain, self._line(plain)
            elif keys := [key for key in LABELS if isinstance(told.get(key), str | int)]:
                labels[path], name = full, one_line(str(told[keys[0]]))
            classed.append((path, name))
        without = [path for path, _ in rows if path not in labels]
        if labels and without:
            self.refuse(
                f"some images have a file with their class and others have none ({self.shown(without)}); add the "
                "missing .cls files, or remove the others"
            )
        return classed, labels, texts

    def _line(self, path: Path) -> str:
        try:
            name = one_line(self.place.read(path, SMALL).decode("utf-8-sig").strip())
        except (OSError, ValueError) as error:
            name = ""
            self.refuse(f"{self.shown([path])} cannot be read: {reason(error)}")
        else:
            if not name:
                self.refuse(f"{self.shown([path])} is empty, but it should contain the class of an image")
        return name

    def _json(self, path: Path) -> dict[str, object]:
        try:
            found = parse_json(self.place.read(path, SMALL))
        except (OSError, ValueError) as error:
            self.refuse(f"{self.shown([path])} cannot be read: {reason(error)}")
            return {}
        return found if isinstance(found, dict) else {}

    def found(self, train: Classed, test: Classed) -> Found:
        labels: dict[Path, Path] = {}
        captions: dict[Path, Path] = {}
        if not self.place.links and self.others and not any(name for _, name in (*train, *test)):
            (train, labels, captions), (test, *more) = self.labelled(train), self.labelled(test)
            labels, captions = labels | more[0], captions | more[1]
        given, texts, others_there = {}, dict(captions), set(self.others)
        for path, _ in (*train, *test):
            if image := self.known.get(path.relative_to(self.folder).with_suffix("")):
                given[path] = image
            if not self.older and (text := path.with_suffix(".txt")) in others_there:
                texts[path] = text
        used = {*texts.values(), *labels.values()}
        left = [path for path in self.others if path not in used]
        others = [f"other files are left out: {_by_suffix(self, left)}"] if left and train else []
        return Found(train, test, tuple(self.problems), (*self.notes, *others), given, texts, labels)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(f"{one_line(path.name)}/" for path in folders)


def _by_suffix(search: _Search, paths: Sequence[Path]) -> str:
    """Summarise files by suffix: ``12 .gif (a.gif, b.gif, c.gif and 9 more), 1 .txt (notes.txt)``."""
    kinds: dict[str, list[Path]] = {}
    for path in paths:
        kinds.setdefault(path.suffix.lower() or "without a suffix", []).append(path)
    most_first = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    return ", ".join(f"{len(of)} {suffix} ({search.shown(of)})" for suffix, of in most_first)


def some(names: Sequence[str], most: int = 3, of: int = 0) -> str:
    """Abbreviate a list as ``a, b, c and 9 more``. If ``names`` is incomplete, ``of`` is the total number of names."""
    rest = max(of, len(names)) - most
    more = f" and {rest:,} more" if rest > 0 else ""
    return f"{', '.join(map(one_line, names[:most]))}{more}"
