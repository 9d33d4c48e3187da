"""Parquet files of pictures and of numbers, as this package and as others write them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from packs import pictures, png, same

from scoresde import load_data
from scoresde.core.errors import DataError, Problems
from scoresde.data import Reading, inplace
from scoresde.data import parquet as module
from scoresde.data.pack import pack
from scoresde.data.rows import Stored

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the size above which data stay in their files."""
    return lambda most=0: monkeypatch.setattr(inplace, "LARGE", most)


def foreign(path: Path, n: int = 60, **columns: list[object]) -> Path:
    """Pictures as data sets of Hugging Face have them: a struct of bytes and path, and a class."""
    image = [{"bytes": png(i, 6, 6, 3), "path": None} for i in range(n)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(image, kind), **columns})
    pq.write_table(table, path, row_group_size=7)
    return path


def test_pictures_of_others(tmp_path: Path, small: Callable[..., None]) -> None:
    texts = [f"a {'bc'[i % 2]}" for i in range(60)]
    path = foreign(tmp_path / "x.parquet", label=[i % 3 for i in range(60)], caption=texts)
    read = load_data(str(path))
    assert read.info.shape == (3, 6, 6) and read.info.classes == ("0", "1", "2")
    assert read.info.known.words == ("a", "b", "c")
    every, y = torch.cat([read.train, read.test]), torch.cat([read.train_labels, read.test_labels])
    for x, label, file in zip(every, y, read.files, strict=True):
        i = int(file.stem)
        assert int(label) == i % 3 and file.parent.name == str(i % 3)
        expected = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        assert np.array_equal(x.numpy(), expected.transpose(2, 0, 1))
    small(0)
    stored = load_data(str(path))
    assert isinstance(stored.train, Stored)
    same(stored, read)
    assert torch.equal(stored.train_given.tokens, read.train_given.tokens)
    # Other threads, and other processes that are not forked, read the same.
    with ThreadPoolExecutor(4) as pool:
        index = [torch.arange(k, 40, 4) for k in range(4)]
        assert all(map(torch.equal, pool.map(stored.train.__getitem__, index), [read.train[k] for k in index]))
    again = pickle.loads(pickle.dumps(stored.train))
    assert torch.equal(again[:5], read.train[:5])


def test_a_bare_column_of_bytes(tmp_path: Path) -> None:
    for kind in (pa.binary(), pa.large_binary()):
        path = tmp_path / f"{kind}.parquet"
        pq.write_table(pa.table({"png": pa.array([png(i, 6, 6) for i in range(40)], kind)}), path)
        assert load_data(str(path)).info.shape == (1, 6, 6) and load_data(str(path)).train_labels is None


def test_groups_are_small_and_one_is_read_for_a_row(
    tmp_path: Path, small: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(pictures(tmp_path / "photos", 200, odd=False), tmp_path / "a.parquet").path
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [64, 64, 64, 8]
    monkeypatch.setattr(module, "GROUP", (64, 2000))
    other = pq.ParquetFile(pack(tmp_path / "photos", tmp_path / "b.parquet").path)
    assert other.num_row_groups > 10
    small(0)
    data = load_data(str(path))
    opened, real = [], module._opened
    monkeypatch.setattr(module, "_opened", lambda path: opened.append(path) or real(path))
    data.train[torch.arange(20)]
    assert not opened  # the file that was opened to count the rows


def test_what_is_wrong_with_pictures(tmp_path: Path, small: Callable[..., None]) -> None:
    path = tmp_path / "x.parquet"
    bytes_of: list[bytes | None] = [png(i, 6, 6) for i in range(40)]
    bytes_of[7] = None
    pq.write_table(pa.table({"bytes": pa.array(bytes_of, pa.binary())}), path)
    with pytest.raises(Problems, match=r"000000007\.png \(its bytes are missing\)"):
        load_data(str(path))
    assert len(load_data(str(path), reading=Reading(on_bad="skip")).files) == 39
    for name in ("../x.png", "/x.png"):
        pq.write_table(pa.table({"path": [name], "bytes": pa.array([b"x"], pa.binary())}), path)
        with pytest.raises(DataError, match="leads out"):
            load_data(str(path))
    pq.write_table(pa.table({"path": ["a.png", "a.png"], "bytes": pa.array([b"x", b"y"], pa.binary())}), path)
    with pytest.raises(DataError, match=r"two members called 'a\.png'"):
        load_data(str(path))
    small(0)
    foreign(path)
    data = load_data(str(path))
    foreign(path, 59)
    with pytest.raises(DataError, match="the parquet file has changed since it was opened"):
        data.train[:2]
    whole = path.read_bytes()
    for cut in (whole[:-9], whole[:8], b""):
        path.write_bytes(cut)
        with pytest.raises(DataError, match="is damaged or is not a parquet file"):
            load_data(str(path))
    path.write_bytes(whole[:300] + bytes(200) + whole[500:])
    with pytest.raises((DataError, Problems)):
        load_data(str(path))


def test_a_bomb_in_a_group_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.core.opened.FREE", 1000)
    path = tmp_path / "x.parquet"
    table = pa.table({"bytes": pa.array([bytes(10**7)], pa.binary())})
    pq.write_table(table, path, compression="gzip", use_dictionary=False)
    with pytest.raises(DataError, match="it unpacks from"):
        load_data(str(path))


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("kind", ["classes", "numbers", "unnamed", "plain"])
def test_a_table_is_its_csv(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    header = {"classes": ["height,count,label"], "numbers": ["height,count,label"], "plain": ["height,count"]}
    tail = {"classes": lambda i: f",{'ab'[i % 2]}", "numbers": lambda i: f",{i % 11}"}.get(kind, lambda i: "")
    path = tmp_path / "x.csv"
    lines = [f"{rng.normal()!r},{rng.integers(9)}{tail(i)}" for i in range(300)]
    path.write_text("\n".join([*header.get(kind, []), *lines]))
    memory = load_data(str(path))
    found = pack(path, tmp_path / "x.parquet")
    assert found.count == 300
    read = load_data(str(found.path))
    assert read.identity.compared(memory.identity) == ("same", 0, 0) and read.codec == memory.codec
    for name in ("kind", "shape", "classes", "names", "n_train", "n_test", "levels", "trained", "wide"):
        assert getattr(read.info, name) == getattr(memory.info, name), name
    assert torch.equal(read.train, memory.train) and torch.equal(read.test, memory.test)


def test_tables_of_others(tmp_path: Path) -> None:
    path, n = tmp_path / "x.parquet", 90
    table = {
        "a": pa.array(np.random.default_rng(0).normal(size=n).astype("f4")), "b": pa.array(range(n)),
        "c": pa.array([i % 2 == 0 for i in range(n)]), "class": pa.array([f"k{i % 3}" for i in range(n)]),
    }  # fmt: skip
    pq.write_table(pa.table(table), path)
    data = load_data(str(path))
    assert data.info.classes == ("k0", "k1", "k2") and data.info.names[0] == "a" and data.info.names[-1] == "c"
    gaps = {"a": pa.array([None, float("nan"), *range(n - 2)], pa.float64()), "d": table["a"]}
    pq.write_table(pa.table(gaps), path)
    with pytest.raises(DataError, match=r"column 'a'.*empty"):
        load_data(str(path))
    kept = load_data(str(path), reading=Reading(empty="keep"))
    assert int((~kept.complete).sum()) == 2
    pq.write_table(pa.table({"a": [[1, 2], [3]] * 30, "b": [1.5, 2.5] * 30}), path)
    with pytest.raises(DataError, match="column 'a'"):
        load_data(str(path))


def test_tables_that_are_too_large_or_not_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1.5, 2.5] * 30}), path)
    monkeypatch.setattr(module, "CELLS", 59)
    with pytest.raises(DataError, match=r"has 60 cells, more than 59.*save its numbers as an"):
        load_data(str(path))
    np.save(tmp_path / "x.npy", np.zeros((20, 1, 4, 4)))
    with pytest.raises(DataError, match=r"cannot be packed as parquet.*\.npy"):
        pack(tmp_path / "x.npy", tmp_path / "y.parquet")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign(tmp_path / "x.parquet")
    folder = pictures(tmp_path / "photos", 20, odd=False)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: load_data(str(path)), lambda: pack(folder, tmp_path / "y.parquet")):
        with pytest.raises(DataError, match=r"pip install 'scoresde\[parquet\]'"):
            call()
    assert not (tmp_path / "y.parquet").exists()
