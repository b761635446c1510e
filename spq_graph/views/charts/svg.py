"""Drawings of matplotlib, with colours of their own or with those of the page around them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spq-graph",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11.0,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a drawing, named as the page's style sheet names them."""

    ink: str = "#16191f"
    muted: str = "#5b6472"
    line: str = "#e2e5ea"
    card: str = "#ffffff"
    good: str = "#0b7a57"
    bad: str = "#c2361d"
    int: str = "#2757b8"
    int_soft: str = "#e4ecfb"
    high: str = "#9a4a00"
    high_soft: str = "#fdeedd"


LIGHT = Palette()
# matplotlib knows no CSS variables: these colours, which nothing else uses, are exchanged for them afterwards.
PAGE = Palette(*(f"#{n:02d}{n:02d}{n:02d}" for n in range(1, len(fields(Palette)) + 1)))


@contextmanager
def drawing_style(more: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """The style that all drawings share, and what one of them has besides."""
    import matplotlib as mpl

    with mpl.rc_context({**_STYLE, **(more or {})}), warnings.catch_warnings():
        # The reader's fonts show the text, not those that it is measured with here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def for_page(figure: Figure, prefix: str) -> str:
    """An svg element that takes its size, fonts and colours from the page; the same bytes for the same figure.

    Args:
        figure: drawn with the colours of `PAGE`.
        prefix: for the ids in the drawing, unique on the page.
    """
    stream = io.StringIO()
    with drawing_style():
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font: (?:(bold|[0-9]+) )?([0-9.]+)px [^;\"]*", _font, svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for field in fields(Palette):
        svg = svg.replace(getattr(PAGE, field.name), f"var(--{field.name.replace('_', '-')})")
    return re.sub(r"\n\s*", "\n", svg)


def _font(found: re.Match[str]) -> str:
    return f"font-size: {found[2]}px" + ("; font-weight: 650" if found[1] else "")
