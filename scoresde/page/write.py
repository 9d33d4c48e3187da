"""A page as one HTML file: the template, its Content-Security-Policy, its size, and what shows it in a notebook.

The page may run the one script and use the one style sheet whose hashes are in its policy, and may load nothing. Its
numbers are JSON in a block that is not a script, in which every ``<`` is escaped, so nothing in them can end the block.
All names are either escaped in Python or become text, never markup, in the script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.files import atomic
from .controls import controls

__all__ = ["SCRIPTS", "Page", "fill"]

# The files that are joined into the one script of a page, in this order, by the kind of the page.
SCRIPTS = {
    "plane": ("numbers", "model", "draw", "figures", "plane", "page"),
    "frames": ("numbers", "draw", "figures", "frames", "page"),
}


@dataclass(frozen=True, repr=False)
class Page:
    """A page, which a notebook shows in a frame.

    Attributes:
        text: The HTML file.
        facts: What the page says about itself: its sizes, and the error of its table.
    """

    text: str
    facts: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Page of {self.facts['title']}, {len(self.text.encode()):,} bytes"

    def write(self, path: str | Path) -> Path:
        """Write the page to a file, which appears only when it is complete, and return its path."""
        with atomic(path) as temporary:
            temporary.write_text(self.text, encoding="utf-8", newline="\n")
        return Path(path)

    def _repr_html_(self) -> str:
        """Return a frame with the page, which a notebook shows. The page cannot reach the notebook around it."""
        return (
            f'<iframe srcdoc="{html.escape(self.text)}" sandbox="allow-scripts" width="100%" height="720" '
            f'title="{html.escape(str(self.facts["title"]))}" style="border: 1px solid #999"></iframe>'
        )


def fill(
    parts: Mapping[str, Any], words: Mapping[str, str], posters: Mapping[str, str], budget: float, facts: dict[str, Any]
) -> Page:
    """Put the parts of a page together.

    Args:
        parts: The numbers of the page, by part, as JSON values.
        words: The texts for the places of the template, as plain text.
        posters: The pictures for readers without scripts, as data URIs, by figure.
        budget: The largest size, in megabytes (10^6 bytes).
        facts: What the page says about itself. Its sizes are added.

    Raises:
        UsageError: If the page is larger than its budget. The message names the largest part.
    """
    kind = "plane" if parts["about"]["kind"] == "plane" else "frames"
    script, style = "\n".join(_read(f"{name}.js") for name in SCRIPTS[kind]), _read("page.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    stored = {name: _json(part) for name, part in parts.items()}
    sizes = {name: len(text.encode()) for name, text in stored.items()}
    sizes |= {"script and style": len((script + style).encode()), "posters": sum(map(len, posters.values()))}
    text = _read("page.html")
    fitted = any(name.startswith("tuned") for name in parts["solvers"]["names"])
    kept = {kind, *["classes"] * (len(parts["about"]["views"]) > 1), *["fitted"] * fitted}
    for other in {"plane", "frames", "classes", "fitted"} - kept:
        text = re.sub(rf"<!--{other}-->.*?<!--/{other}-->", "", text, flags=re.S)
    text = re.sub(rf"<!--/?({'|'.join(kept)})-->", "", text)
    formulas = json.loads(_read("formulas.json"))
    text = re.sub(r"\\\((.*?)\\\)", lambda found: formulas[found[1]], text, flags=re.S)
    data = "{" + ",".join(f"{json.dumps(name)}:{part}" for name, part in stored.items()) + "}"
    places = {name: html.escape(value) for name, value in words.items()}
    places |= {"policy": policy, "style": style, "script": script, "data": data} | controls(parts)
    places |= {f"poster:{name}": _figure(name, uri, words) for name, uri in posters.items()}
    # One pass, so that a text that looks like a place stays as it is.
    text = re.sub(r"\{\{([a-z:-]+)\}\}", lambda found: places[found[1]], text)
    size = len(text.encode())
    if size > budget * 1e6:
        name = max(sizes, key=lambda part: sizes[part])
        raise UsageError(
            f"the page has {size / 1e6:.2f} MB, but at most {budget:g} MB are allowed; its largest part is {name!r} "
            f"with {sizes[name] / 1e6:.2f} MB; allow more"
            + (", or leave out the weights of the network" if name == "network" else ""),
            parameter="weights" if name == "network" else "budget",
            value=False if name == "network" else round(1.1 * size / 1e6, 1),
        )
    return Page(text, facts | {"bytes": size, "parts": sizes})


def _figure(name: str, uri: str, words: Mapping[str, str]) -> str:
    """Return the place of a figure: the picture without scripts, the canvas, and the sentence below."""
    said = html.escape(words[f"poster-{name}"])
    return (
        f'<figure><img class="poster" src="{uri}" alt="{said}"><canvas role="img" aria-label="{said}"></canvas>'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _json(value: Any) -> str:
    """Return JSON without spaces in which no ``<`` can begin markup. NaN and infinity are rejected."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _read(name: str) -> str:
    return (files("scoresde.page") / name).read_text(encoding="utf-8")
