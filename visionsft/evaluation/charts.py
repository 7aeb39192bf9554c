"""Charts: figures as SVG that stands inside an HTML page and takes the page's colours and fonts."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from visionsft import plots

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {
    plots.INK: "var(--ink)",
    plots.MUTED: "var(--muted)",
    plots.RULE: "var(--rule)",
    plots.PAPER: "var(--paper)",
    plots.BLUE: "var(--blue)",
    plots.VERMILION: "var(--vermilion)",
    plots.GREEN: "var(--green)",
}
"""The figures' colours as the page's style sheet names them, where each has a light and a dark shade."""
_COLOUR = re.compile("|".join(_VARIABLES))
_SHORTHAND, _FAMILY = re.compile(r"font: ?([\d.]+px)[^;]*"), re.compile(r"font-family:[^;]*; ?")
"""How matplotlib before and since 3.10 writes a font, which would win over the style sheet's."""


def inline_svg(figure: Figure, *, name: str, alt: str) -> Markup:
    """The figure as an ``<svg>`` element whose text stays text; `name` is unique on the page, `alt` says it in words.

    Nothing in it refers to anything outside it, and no id of it can meet another figure's.
    """
    root = ElementTree.fromstring(_draw(figure))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # its style would hold for the page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")  # HTML knows no prefixes
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            element.set(key.replace(f"{{{_XLINK}}}", ""), _adapt(key, value, name))
    width, height = (float(text) for text in root.attrib.pop("viewBox").split()[2:])
    root.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": f"{width * 4 / 3:.0f}",  # points to CSS pixels
        "height": f"{height * 4 / 3:.0f}",
        "role": "img",
        "aria-label": alt,
        "class": "chart",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _draw(figure: Figure) -> bytes:
    target = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "visionsft"}):
        figure.savefig(target, format="svg", metadata=metadata, transparent=True)
    return target.getvalue()


def _adapt(key: str, value: str, name: str) -> str:
    """An attribute's value, with ids that begin with the figure's name, and colours and fonts of the page."""
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = _FAMILY.sub("", _SHORTHAND.sub(r"font-size: \1", value))
        value = _COLOUR.sub(lambda match: _VARIABLES[match[0]], value)
    return value
