"""Names from files do nothing to a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell import Shell

from scoresde.core.text import one_line, printable

ESC = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize("code", [0, 7, 8, 0x0D, 0x1B, 0x7F, 0x9B, 0x200F, 0x2028, 0x202E, 0x2066, 0xFEFF, 0xD800])
def test_control_characters_are_written_out(code: int) -> None:
    text = f"cat{chr(code)}dog"
    for shown in (printable(text), one_line(text)):
        assert chr(code) not in shown and shown.startswith("cat\\") and shown.endswith("dog")


def test_what_people_write_stays() -> None:
    for text in ("chat noir, Käse, 猫, кот, قط, नमस्ते, 👩‍🔬", "two\nlines\tand a tab"):
        assert printable(text) == text
    assert one_line("two\nlines\t.") == r"two\nlines\t."


def test_the_command_line_shows_no_control_characters(shell: Shell) -> None:
    name = f"c{ESC}at\u202e"
    rows = "".join(f"{i}.5,{i % 7},{name if i % 2 else 'dog'}\n" for i in range(40))
    Path("t.csv").write_text(f"a{ESC},b,label\n{rows}", encoding="utf-8")
    out = shell("data inspect t.csv")
    assert r"c\x1b[2J\x1b]0;owned\x07at\u202e" in out and "\x1b" not in out + shell.err
    Path("t.csv").write_text(f"a{ESC},b,label\n{rows}1,no{ESC}number,dog\n", encoding="utf-8")
    shell("data inspect t.csv", 3)
    assert "\x1b" not in shell.out + shell.err and "\x07" not in shell.out + shell.err
    shell(f"info runs/{ESC}", 3)
    assert r"runs/\x1b[2J" in shell.err and "\x1b" not in shell.err
    shell("train --data t.csv --out r", 3)
    assert "\x1b" not in shell.out + shell.err
