"""Formulas as MathML, made when the manual is built: pages need no script and no network.

Docutils translates TeX; what it does not know is said in other words first.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.math import get_node_equation_number

# TeX that docutils does not read, and what it reads in its place.
_REWRITTEN = (
    (r"\\texttt\b", r"\\mathtt"),
    (r"\\dots\b", r"\\ldots"),
    (r"\\(d?)frac(\d)(\d)", r"\\\1frac{\2}{\3}"),
)

# TeX sets a thin space between a function and an argument without brackets; browsers set none.
_APPLIED, _THIN = re.compile(r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[{])"), '<mspace width="0.1667em"></mspace>'

_NAMESPACE, _ACCENTS = "http://www.w3.org/1998/Math/MathML", tuple("\u02c6\u02c9~\u02dc\u00af\u02d9\u20d7^")
ElementTree.register_namespace("", _NAMESPACE)


def mathml(tex: str, block: bool = False, where: str = "") -> str:
    """The ``<math>`` element of a formula.

    Raises:
        ExtensionError: If docutils cannot read it, with the formula and its place.
    """
    for pattern, replacement in _REWRITTEN:
        tex = re.sub(pattern, replacement, tex)
    try:
        made: str = tex2mathml(tex, as_block=block)
    except MathError as error:
        raise ExtensionError(f"{where}: docutils cannot translate the formula {tex!r}: {error}") from None
    root = ElementTree.fromstring(_APPLIED.sub(_THIN, made).replace("&ApplyFunction;", "\u2061"))
    for parent in root.iter():
        for i, child in enumerate(parent):
            if child.tag == f"{{{_NAMESPACE}}}munderover" and (child[2].text or "") in _ACCENTS:
                parent[i] = _subscripted(*child)
    return ElementTree.tostring(root, "unicode")


def _subscripted(base: Element, below: Element, accent: Element) -> Element:
    """A subscript beside a letter with an accent; docutils sets it below the letter."""
    both = Element(f"{{{_NAMESPACE}}}msub")
    over = SubElement(both, f"{{{_NAMESPACE}}}mover", accent="true")
    over.extend((base, accent))
    both.append(below)
    return both


def _where(translator: Any, node: nodes.Element) -> str:
    return f"{translator.builder.current_docname}, line {node.line}"


def visit_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), where=_where(translator, node)))
    raise nodes.SkipNode


def visit_displaymath(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(mathml(node.astext(), True, _where(translator, node)))
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
