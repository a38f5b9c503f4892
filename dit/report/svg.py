"""matplotlib figures as SVG elements of the page, in the colours of its style sheet.

figure, axes = chart_axes("Parameters", "FID")
axes.plot(x, y, color=colour("hue-0"))
markup = to_svg(figure, title, description, salt="parameters")
"""

from __future__ import annotations

import io
import os
import re
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from dit.storage import cache_dir

# matplotlib writes a cache of fonts, by default below HOME, which a container may not have.
os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from dit.report.axes import Range, log_ticks, short

WIDTH, HEIGHT = 4.8, 3.8
"""Inches. The page scales a chart to its column, text included: 10 points become 10 to 15 pixels."""
FRAME = (0.16, 0.15, 0.81, 0.75)
"""Left, bottom, width and height of the axes as shares of the figure, with one row of a legend above them."""
LEGEND_ROW = 0.055
FONT = 10.0
_LIGHT = {
    "page": "#f6f7f9",
    "surface": "#ffffff",
    "ink": "#1a1d23",
    "muted": "#667085",
    "axis": "#98a2b3",
    "grid": "#e7eaf0",
    "hue-0": "#0072b2",
    "hue-1": "#d55e00",
    "hue-2": "#009e73",
    "hue-3": "#9b4f96",
    "hue-4": "#8c564b",
}
"""Variable of report.css.j2 -> its value in the light theme. Each value is unique, so that it can be replaced."""
_NAMES = {value: name for name, value in _LIGHT.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": FONT,
    "text.color": _LIGHT["ink"],
    "axes.labelcolor": _LIGHT["ink"],
    "axes.edgecolor": _LIGHT["axis"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": _LIGHT["axis"],
    "ytick.color": _LIGHT["axis"],
    "xtick.labelcolor": _LIGHT["ink"],
    "ytick.labelcolor": _LIGHT["ink"],
}


def colour(name: str) -> str:
    """The colour of a variable of the page, such as `hue-0`, which follows the page between light and dark."""
    return _LIGHT[name]


def chart_axes(x_title: str, y_title: str) -> tuple[Figure, Axes]:
    """An empty chart; both axes are linear until `log_axis` changes one."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="none")
        axes = figure.add_axes(FRAME, facecolor="none")
        axes.set_xlabel(x_title, labelpad=5)
        axes.set_ylabel(y_title, labelpad=4)
    return figure, axes


def log_axis(axes: Axes, which: str, span: Range, ticks: list[float] | None = None) -> None:
    """Make axis `x` or `y` logarithmic over `span` (log10), with ticks at these values or at readable ones."""
    axis, limits = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    limits(10 ** span[0], 10 ** span[1])
    axis.set_major_locator(FixedLocator(ticks or log_ticks(span)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def step_axis(axes: Axes, last: float) -> None:
    """Make the x axis linear in training steps from 0 to `last`, with room for labels behind it."""
    axes.set_xlim(0, 1.14 * last)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in MaxNLocator(6).tick_values(0, last) if tick <= last]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def to_svg(figure: Figure, title: str, description: str, salt: str) -> Markup:
    """The figure as an <svg> element with title and description for screen readers; `salt` is unique on the page."""
    buffer = io.StringIO()
    # Without a date and with a fixed salt, equal figures give equal bytes.
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    for parent in root.iter():
        for sheet in parent.findall(f"{_SVG}style"):
            parent.remove(sheet)  # it would apply to the whole page
    _drop_unused_ids(root)
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-labelledby": f"{salt}-title {salt}-desc"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{_SVG}{tag}", {"id": f"{salt}-{tag}"})
        element.text = text
        root.insert(place, element)
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _LINK[1:].partition("}")[0])
    text = ElementTree.tostring(root, encoding="unicode")
    # Fonts and colours are the page's.
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    return Markup(re.sub("|".join(_NAMES), lambda found: f"var(--{_NAMES[found[0]]})", text))


def _drop_unused_ids(root: ElementTree.Element) -> None:
    """Remove the ids that nothing refers to: matplotlib gives every figure the same ones."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {name for value in values for name in re.findall(r"#([\w-]+)", value)}
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
