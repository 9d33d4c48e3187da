"""How the manual is built: `make docs`, that is, `sphinx-build -W -b html docs docs/_build/html`."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the notebook is small; more threads only get in its way

import click
from click.testing import CliRunner
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import scoresde
from scoresde.cli import cli
from scoresde.cli.command import Command
from scoresde.core.registry import resolve
from scoresde.core.tables import SOLVERS

sys.path.insert(0, str(Path(__file__).parent))
import gallery

project = "scoresde"
author = "The scoresde authors"
copyright = "2026, The scoresde authors"
version = release = scoresde.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build", "_gallery", "**/.ipynb_checkpoints"]
suppress_warnings = ["mystnb.mime_priority"]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"scoresde {version}"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

# The notebook runs at every build, so that it cannot show what the code no longer does.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 140
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # `Attributes:` become field lists: no second description of a dataclass field
napoleon_use_rtype = False


class CliHelp(Directive):
    """``{cli-help} train``: what ``scoresde train --help-all`` prints, taken from the commands themselves."""

    required_arguments = 0
    optional_arguments = 2  # a command, and one of its own: plot schedule

    def run(self) -> list[nodes.Node]:
        context = click.Context(cli, info_name="scoresde", **{**cli.context_settings, "max_content_width": 88})
        context.terminal_width = 88
        command: click.Command = cli
        for name in self.arguments:
            assert isinstance(command, click.Group)
            command = command.commands[name]
            context = click.Context(command, parent=context, info_name=name)
        text = command.full_help(context) if isinstance(command, Command) else command.get_help(context)
        for file in Path(scoresde.cli.__file__).parent.rglob("*.py"):
            self.state.document.settings.record_dependencies.add(str(file))
        return [nodes.literal_block(text, text, language="text")]


class ModuleList(Directive):
    """``{module-list}``: the first sentence of every module, by folder, in the order of the table of floors."""

    def run(self) -> list[nodes.Node]:
        root, found = Path(scoresde.__file__).parent, []
        page = (Path(__file__).parent / "design.md").read_text(encoding="utf-8")
        for folder, files in re.findall(r"^\| \d+ \| `(\w+)` \| (.*) \|$", page, re.M):
            listed = re.findall(r"`(\w+)`", files) if folder != "cli" else ["command", "common", "work"]
            found.append(nodes.rubric(folder, folder))
            items = nodes.bullet_list()
            for name in listed:
                path = root / folder / f"{name}.py"
                self.state.document.settings.record_dependencies.add(str(path))
                said = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
                said = re.sub(r":\w+:`~?([^`]+)`", r"\1", said).replace("``", "")
                first = re.match(r".*?[.:](?= [A-Z]|$)", said)
                text = nodes.inline(text=f": {(first.group(0) if first else said).rstrip(':.')}.")
                items += nodes.list_item("", nodes.paragraph("", "", nodes.literal(text=f"{name}.py"), text))
            found.append(items)
        return found


class Names(Directive):
    """``{names} weightings``: what ``scoresde list weightings`` prints, as a list.

    ``{names} solvers flow`` shows the solvers that sample without the score, and ``{names} solvers sde`` the others.
    """

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind, part = [*self.arguments, ""][:2]
        printed = CliRunner().invoke(cli, ["list", kind, "--json"], catch_exceptions=False).stdout
        shown = nodes.definition_list()
        for entry in json.loads(printed)["entries"]:
            name = entry["name"]
            if part and resolve(name, SOLVERS, "solver")().needs_score == (part == "flow"):
                continue
            body = nodes.definition("", nodes.paragraph(text=entry["what"] + "."))
            defaults = (f"{key}={value}" for key, value in entry.get("options", {}).items())
            if options := [nodes.literal(text=option) for option in (*entry.get("needs", ()), *defaults)]:
                body += nodes.paragraph("", "", *(node for option in options for node in (option, nodes.Text(" "))))
            shown += nodes.definition_list_item(
                "", nodes.term("", "", nodes.literal(text=entry.get("typed", name))), body
            )
        for file in Path(scoresde.__file__).parent.rglob("*.py"):
            self.state.document.settings.record_dependencies.add(str(file))
        return [shown]


class MadeBy(Directive):
    """``{made-by} schedule``: the commands that made a picture of the gallery (docs/gallery.py)."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.state.document.settings.record_dependencies.add(gallery.__file__)
        text = "\n".join(f"$ {line}" for line in gallery.COMMANDS[self.arguments[0]])
        return [nodes.literal_block(text, text, language="console")]


def make_gallery(app: Sphinx) -> None:
    """Run the commands of the gallery, whatever builder asks."""
    gallery.build(gallery.FOLDER)


def copy_pages(app: Sphinx, error: Exception | None) -> None:
    """Put the pages that move beside the page of the gallery, which shows them in frames."""
    if error is None and app.builder.format == "html":
        shutil.copytree(gallery.FOLDER / "pages", Path(app.outdir) / "pages", dirs_exist_ok=True)


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read in the source; make them legal reStructuredText.

    Bars, ``|x|``, would be substitutions and a lone star an emphasis, and an indented formula would be a quotation.
    """

    def escaped(line: str) -> str:
        parts = re.split(r"(``[^`]*``|`[^`]*`|(?<![\w*\\])\*\w[\w' -]*\*(?![\w*]))", line)  # literals and emphasis stay
        return "".join(re.sub(r"(?<!\\)([|*])", r"\\\1", p) if i % 2 == 0 else p for i, p in enumerate(parts))

    out: list[str] = []
    formula = False
    for line in lines:
        indented = line.startswith("    ")
        if what == "module" and indented and not formula and (not out or not out[-1].strip()):
            formula = True
            if not out[-2].rstrip().endswith(":") or out[-2].strip() == "References:":
                out[len(out) - 1 :] = ["", "::", ""]
            elif not out[-2].rstrip().endswith("::"):
                out[-2] = out[-2].rstrip() + ":"
        elif line.strip() and not indented:
            formula = False
        if line.startswith((":ivar ", ":param ", ":Parameters ")):
            # `rtol, atol: Tolerances` is one entry for two names; the field would take the first for a type.
            head, colon, rest = line[1:].partition(":")
            line = f":{re.sub(r', +', ',', head)}{colon}{rest}"
        is_code = formula or line.lstrip().startswith((">>>", "...", ".. ", ":", "="))
        out.append(line if is_code else escaped(line))
    lines[:] = out


def plain_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """A protocol is not called to make one: ``Denoiser(*args, **kwargs)`` says nothing."""
    return ("", returns) if signature == "(*args, **kwargs)" else None


def public_home(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Docstrings refer to ``scoresde.sde.base.SDE`` or its methods; the manual documents it as ``scoresde.SDE``."""
    parts = node.get("reftarget", "").split(".")
    tail = parts[-2:] if parts[-2:-1] and parts[-2] in scoresde._HOME else parts[-1:]
    if node.get("refdomain") != "py" or not (tail[0] in scoresde._HOME or len(parts) == 1):
        return None
    domain = env.get_domain("py")
    target = ".".join(["scoresde", *tail])
    if target not in domain.objects:
        return None
    found = domain.objects[target]
    from sphinx.util.nodes import make_refnode

    return make_refnode(app.builder, node.get("refdoc", "index"), found.docname, found.node_id, contnode, target)


def setup(app: Sphinx) -> None:
    app.add_directive("cli-help", CliHelp)
    app.add_directive("made-by", MadeBy)
    app.add_directive("names", Names)
    app.add_directive("module-list", ModuleList)
    app.connect("builder-inited", make_gallery)
    app.connect("build-finished", copy_pages)
    app.connect("autodoc-process-docstring", plain_docstring, priority=900)  # after napoleon
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("missing-reference", public_home)
