"""``scoresde list`` says what the names stand for, and forgets none."""

from __future__ import annotations

from shell import Shell

from scoresde.cli.list import KINDS
from scoresde.core import tables


def test_list_knows_every_table_and_every_name(shell: Shell) -> None:
    names = shell.json("list")
    assert set(names) == {*KINDS, "data"}
    assert len(KINDS) == len(tables.__all__)
    for kind, table in KINDS.items():
        assert names[kind] == list(table)
        assert shell(f"list {kind}").count("\n") >= len(table)


def test_list_says_what_a_name_stands_for_and_its_options(shell: Shell) -> None:
    out = shell("list sdes")
    assert "vp " in out and "variance-preserving" in out and "beta_min=0.1  beta_max=20.0" in out and "`" not in out
    found = shell.json("list solvers")
    entries = {entry["name"]: entry for entry in found["entries"]}  # type: ignore[attr-defined]
    assert list(entries) == list(tables.SOLVERS)
    assert entries["dpm++3m"]["options"]["steps"] == 20 and entries["dpm++3m"]["needs"] == []
    assert all(entry["what"] for entry in entries.values())
    networks = {entry["name"]: entry for entry in shell.json("list networks")["entries"]}  # type: ignore[attr-defined]
    assert networks["mlp"]["needs"] == ["dims"] and networks["mlp"]["options"]["width"] == 128
    data = shell("list data")
    assert "20,000 vectors of shape 2; its density is known" in data
    assert "10,000 images of shape 3 x 8 x 16, each with a text (18 different words)" in data
    assert "1,797 images of shape 1 x 8 x 8\n" in data


def test_an_unknown_kind_lists_the_kinds(shell: Shell) -> None:
    shell.refuses("list solver", 2, "'solver'", "did you mean 'solvers'", "weightings", "data")
