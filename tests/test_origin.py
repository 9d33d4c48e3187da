"""The data of a run that moved, grew, were sorted again, or are others: what each reader of them says."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import edit, older
from shell import Shell

from scoresde import TrainConfig, fit, load, load_data
from scoresde.core.errors import DataError, UsageError
from scoresde.data import Reading, content, dataset

SMALL = {"width": 8, "blocks": 1}
LINE = "likelihood runs/own --limit 4 --rtol 1e-2 --no-check --save csv"


def table(n: int = 120, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2))


@pytest.fixture
def own(shell: Shell) -> Path:
    """A run of two steps on x.npy, in the current folder."""
    np.save("x.npy", table())
    fit(TrainConfig(data="x.npy", steps=2, batch=8, network_options=SMALL), out="runs/own", quiet=True)
    return Path("runs/own")


def test_a_run_finds_its_data_from_another_folder(
    own: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.save("x.npy", table(seed=1))  # other data under the name that was typed
    shell(f"likelihood {tmp_path / 'runs/own'} --limit 4 --rtol 1e-2 --no-check --save csv")
    assert "changed" not in shell.err and "grown" not in shell.err


def test_data_that_moved_with_the_run_are_found(own: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    shutil.move("x.npy", "project/x.npy")
    shutil.move("runs", "project/runs")
    assert len(load("project/runs/own").data().test)


def test_data_that_are_gone_are_asked_for(own: Path, shell: Shell) -> None:
    Path("x.npy").rename("y.npy")
    shell.refuses(LINE, 3, "x.npy", "are missing", "(on the command line: --data)")
    shell(LINE + " --data y.npy")  # the same under another name: nothing to say
    assert "rows" not in shell.err


def test_an_older_run_finds_a_relative_path_beside_the_folders_above_it(own: Path, shell: Shell) -> None:
    edit(own / "config.json", lambda s: {k: v for k, v in s.items() if k != "data_beside"})
    edit(own / "config.json", lambda s: s | {"config": s["config"] | {"data": "x.npy"}})
    Path("elsewhere").mkdir()
    run = load(own.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("elsewhere")
        assert len(run.data().test)


# What stands in the file then, what every reader says of it, and whether it goes on.
CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, bool]] = {
    "re-sorted": (lambda x: x[::-1], "the order of the data of", True),
    "grown": (lambda x: np.concatenate([table(5, seed=3), x]), "grown by 5 rows", True),
    "shrunk": (lambda x: x[3:], "3 of the 120 rows", False),
    "edited": (lambda x: np.where(np.arange(len(x))[:, None] < 2, x + 1, x), "2 of the 120 rows", False),
    "scaled": (lambda x: x * 100, "there are 120 new rows", False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_verb_says_what_has_become_of_the_data(own: Path, shell: Shell, name: str) -> None:
    change, told, right = CHANGES[name]
    np.save("x.npy", change(table()))
    before = (own / "data.json").read_bytes(), (own / "rows.npz").read_bytes()
    for line in (
        LINE,
        "evaluate runs/own --n 20 --solver euler --steps 2 --metrics frechet",
        "train --resume runs/own --steps 3",
    ):
        if right:
            shell(line)
            assert told in shell.err, line
        else:
            shell.refuses(line, 3, told, "--changed-data")
    if not right:
        shell(LINE + " --changed-data")
        assert told in shell.err and "used as they are" in shell.err
    assert before[0] == (own / "data.json").read_bytes()
    assert name == "grown" or before[1] == (own / "rows.npz").read_bytes()


def test_what_a_run_was_trained_on_only_grows(own: Path) -> None:
    np.save("x.npy", np.concatenate([table(), table(5, seed=3)]))
    with pytest.warns(UserWarning, match="grown by 5 rows"):
        fit(replace(load(own).config, steps=3), out=own, resume=True, quiet=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(own).data()  # they are the run's by now
    np.save("x.npy", table())
    with pytest.raises(DataError, match="5 of the 125 rows"):
        load(own).data()
    np.save("x.npy", np.concatenate([table(110), table(4, seed=6)]))
    with pytest.warns(UserWarning, match="used as they are"):
        fit(replace(load(own).config, steps=4), out=own, resume=True, quiet=True, changed_data=True)
    with pytest.raises(DataError, match="15 of the 129 rows"):
        load(own).data()


@pytest.mark.parametrize("kind", ["c", "given", "text", "features"])
def test_a_run_knows_the_conditions_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    x, rows = np.random.default_rng(0).normal(size=(120, 1, 8, 8)), np.arange(120)
    conditions = {
        "c": rows[:, None] / 120.0, "given": x + 1, "text": np.array([f"row {i}" for i in rows]),
        "features": np.tile(rows[:, None, None] / 120.0, (1, 2, 3)),
    }[kind]  # fmt: skip
    name = "text" if kind == "features" else kind
    cond = {"c": "vector", "given": "image"}.get(kind, "text")
    small = {"network": "unet", "channels": 8, "multipliers": (1,), "attention": ()}
    config = TrainConfig(data="z.npz", cond=cond, layout="first", steps=2, batch=8, network_options=small)
    np.savez("z.npz", x=x, **{name: conditions})
    fit(config, out="runs/told", quiet=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("runs/told").data()
    order = rows[::-1]
    np.savez("z.npz", x=x[order], **{name: conditions[order]})  # the same pairs
    with pytest.warns(UserWarning, match="order of the data"):
        load("runs/told").data()
    conditions[[3, 5]] = conditions[[5, 3]]
    np.savez("z.npz", x=x, **{name: conditions})
    with pytest.raises(DataError, match="the conditions of 2 of the 120 rows are different") as caught:
        fit(replace(config, steps=3), out="runs/told", resume=True, quiet=True)
    assert caught.value.parameter == "changed_data"
    with pytest.warns(UserWarning, match="used as they are"):
        fit(replace(config, steps=3), out="runs/told", resume=True, quiet=True, changed_data=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("runs/told").data()  # both conditions are known by now


@pytest.mark.parametrize("column", [0, 2])
def test_large_data_are_known_by_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: int) -> None:
    """The rows and their conditions, not only the ends of the files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset, "LARGE", 2**17)
    x = np.random.default_rng(0).uniform(1, 2, size=(6_000, 3))
    config = TrainConfig(data="z.csv", cond="vector:age", steps=1, batch=8, network_options=SMALL)
    np.savetxt("z.csv", x, "%.7f", ",", header="a,b,age", comments="")
    fit(config, out="runs/z", quiet=True)
    load("runs/z").data()
    before = Path("z.csv").read_bytes()
    x[3_000, column] = 3 - x[3_000, column]
    np.savetxt("z.csv", x, "%.7f", ",", header="a,b,age", comments="")
    after = Path("z.csv").read_bytes()
    assert all(before[part] == after[part] for part in (slice(2**16), slice(-(2**16), None))) and before != after
    told = "1 of the 6,000 rows" if column == 0 else "the conditions of 1 of the 6,000 rows are different"
    with pytest.raises(DataError, match=told):
        fit(replace(config, steps=2), out="runs/z", resume=True, quiet=True)


def test_an_earlier_run_on_large_data_is_recognised(own: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "LARGE", 100)
    whole = np.uint64(content.ends([Path("x.npy")]))
    np.savez(own / "rows.npz", hashes=np.array([whole]), order=whole, large=np.bool_(True))
    shell("train --resume runs/own --steps 3")
    assert "changed" not in shell.err and "order" not in shell.err
    np.save("x.npy", table()[::-1])
    shell.refuses("train --resume runs/own --steps 4", 3, "the data are different", "--changed-data")


def test_a_run_without_conditions_ignores_those_of_its_data(own: Path) -> None:
    np.savez("z.npz", x=table(), c=np.arange(120)[:, None])
    fit(TrainConfig(data="z.npz", steps=2, batch=8, network_options=SMALL), out="runs/plain", quiet=True)
    np.savez("z.npz", x=table(), c=np.zeros((120, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load("runs/plain").data().train)


def test_test_rows_stay_the_same_when_data_grow(own: Path) -> None:
    held = {tuple(row) for row in load(own).data().test.tolist()}
    trained = {tuple(row) for row in load(own).data().train.tolist()}
    np.save("x.npy", np.concatenate([table(60, seed=2), table()[::-1]]))
    with pytest.warns(UserWarning, match="grown by 60"):
        now = load(own).data()
    assert held <= {tuple(row) for row in now.test.tolist()} and not trained & {tuple(r) for r in now.test.tolist()}


def test_a_resumed_run_keeps_its_units(own: Path, shell: Shell) -> None:
    np.savez("z.npz", x=table(), y=np.arange(120) % 3)
    config = TrainConfig(data="z.npz", steps=2, batch=8, network_options=SMALL)
    fit(config, out="runs/named", quiet=True)
    np.savez("z.npz", x=table(), y=np.arange(120) % 3 + 1)  # other classes of the same rows
    with pytest.raises(DataError, match="classes"):
        fit(replace(config, steps=3), out="runs/named", resume=True, quiet=True)
    with pytest.raises(DataError, match="shape"):
        fit(
            replace(load(own).config, steps=3),
            data=np.tile(table(50), 2),
            out=own,
            resume=True,
            quiet=True,
            changed_data=True,
        )
    with pytest.raises(UsageError, match="data"):
        fit(replace(load(own).config, data="moons", steps=3), out=own, resume=True, quiet=True, changed_data=True)


def test_a_resumed_run_goes_on_with_grown_data_in_its_own_units(own: Path) -> None:
    codec = json.loads((own / "model.json").read_text())["codec"]
    np.save("x.npy", np.concatenate([table(), 50 + table(40, seed=5)]))
    with pytest.warns(UserWarning, match="grown by 40"):
        run = fit(replace(load(own).config, steps=4), out=own, resume=True, quiet=True)
    assert run.step == 4 and json.loads((own / "model.json").read_text())["codec"] == codec


def test_an_older_run_keeps_its_rows_and_says_when_they_changed(own: Path) -> None:
    older(own)
    (own / "rows.npz").unlink()
    edit(own / "config.json", lambda s: s | {"config": {k: v for k, v in s["config"].items() if k != "split"}})
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    known = {"n_train": 108, "n_test": 12, "n_validation": 0}
    edit(own / "data.json", lambda s: s | known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(own).data().test, torch.from_numpy(table().astype("f4"))[order[:12]])
    np.save("x.npy", table(130))
    with pytest.raises(DataError, match=r"n_train was 108 and is now 117.*no rows\.npz to identify") as caught:
        load(own).data()
    assert caught.value.parameter == "changed_data"
    with pytest.warns(UserWarning, match="used as they are"):
        assert len(load(own, changed_data=True).data().test) == 13


def test_an_older_run_keeps_the_axes_it_read(own: Path) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 16, 4, 4)).astype("f4"))
    config = TrainConfig(data="x.npy", steps=2, batch=8, split="rows", layout="last", network_options={"channels": 4})
    fit(config, out="runs/old", quiet=True)
    Path("runs/old/rows.npz").unlink(missing_ok=True)
    edit("runs/old/config.json", lambda s: s | {"config": {k: v for k, v in s["config"].items() if k != "layout"}})
    assert load("runs/old").data().info.shape == (4, 16, 4)


def test_damaged_hashes_are_named(own: Path) -> None:
    (own / "rows.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"rows\.npz cannot be read"):
        load(own).data()


def test_an_older_run_keeps_the_pictures_it_read(own: Path) -> None:
    """It passed over what lay deeper than in class folders, and kept an opaque alpha channel."""
    for i in range(40):
        x = np.random.default_rng(i).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        x[..., 3] = 255
        Path(f"photos/{'ab'[i % 2]}/deeper").mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(f"photos/{'ab'[i % 2]}/{'deeper/' * (i % 5 == 0)}{i}.png")
    config = TrainConfig(data="photos", steps=1, batch=8, split="rows", network_options={"channels": 4})
    then = load_data("photos", reading=Reading(older=True), split="rows")
    assert then.info.shape == (4, 8, 8) and then.info.n_train + then.info.n_test == 32
    fit(config, data=then, out="runs/old", quiet=True)
    Path("runs/old/rows.npz").unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load("runs/old").data().test, then.test)
    Image.new("RGB", (8, 8)).save("photos/loose.png")  # refused today, and a class of its own then
    with pytest.raises(DataError, match="at the top level"):
        load("runs/old").data()


def test_levels_of_a_column_are_units_too(own: Path) -> None:
    """Rows that grow a column of levels beyond its own range, within that of the others."""
    x = np.stack([np.arange(120) % 100, np.arange(120) % 5], 1)
    np.save("n.npy", x)
    config = TrainConfig(data="n.npy", steps=2, batch=8, network_options=SMALL)
    fit(config, out="runs/n", quiet=True)
    np.save("n.npy", np.concatenate([x, [[3, 50]]]))
    with pytest.raises(DataError, match="with levels"):
        fit(replace(config, steps=3), out="runs/n", resume=True, quiet=True)


def test_named_test_rows_that_were_trained_on_are_said(own: Path, shell: Shell) -> None:
    trained = load(own).data().trained.numpy()
    np.savez("theirs.npz", x_train=table(50, seed=8), x_test=np.concatenate([trained[:7], table(13, seed=9)]))
    shell(LINE.replace("--limit 4", "--limit 0") + " --data theirs.npz")
    assert "was trained on 7 of these 20 samples of theirs" in shell.err


def test_a_run_goes_on_with_data_that_moved(own: Path, shell: Shell) -> None:
    Path("away").mkdir()
    shutil.move("x.npy", "away/q.npy")
    shell.refuses("train --resume runs/own --steps 3", 3, "are missing", "(on the command line: --data)")
    shell("train --resume runs/own --steps 3 --data away/q.npy")
    assert "trained 1 step" in shell.err and ", 3 in total" in shell.err
    shell(LINE)  # and has noted where they are
    np.save("other.npy", table(seed=4))
    shell.refuses("train --resume runs/own --steps 4 --data other.npy", 3, "there are 120 new rows")


def test_a_continuous_column_may_grow_beyond_its_range(own: Path, shell: Shell) -> None:
    rows = [f"{u:.3f},{i % 7}" for i, u in enumerate(table()[:, 0])]
    Path("t.csv").write_text("\n".join(["u,n", *rows]))
    shell("train --data t.csv --steps 2 --batch 8 --out runs/t --quiet --set network.width=8 --set network.blocks=1")
    Path("t.csv").write_text("\n".join(["u,n", *rows, "99.5,3"]))
    shell("train --resume runs/t --steps 3")
    assert "grown by 1 row since" in shell.err
    Path("t.csv").write_text("\n".join(["u,n", *rows, "0.5,30"]))
    shell.refuses("train --resume runs/t --steps 4", 3, "levels", "from [0.0, 0.0] to [0.0, 6.0]", "the original data")


def test_named_data_of_the_run_that_have_changed_are_said(own: Path, shell: Shell) -> None:
    np.save("y.npy", np.concatenate([table()[5:], table(3, seed=5)]))
    shell(LINE + " --data y.npy")
    assert "these data lack 5 of the rows of the run runs/own and contain 3 new rows" in shell.err
    np.save("z.npy", table(seed=5))
    shell(LINE + " --data z.npy")
    assert "lack" not in shell.err
