"""Text that cannot act, spans of time in words, and tables for notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from spq_graph.terms.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame


_LONGEST_WORD, _LONGEST_TEXT = 1000, 8000  # characters; no path of a sound system's is longer than four thousand
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


def printable(text: str) -> str:
    """The text with control, direction-changing and unpaired characters spelled out, so that it cannot act.

    Of a word that no name should be as long as, and of a text that nobody reads to its end, the middle is left out.
    """
    spelled = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _without_middle(_LONG_WORD.sub(lambda found: _without_middle(found[0], _LONGEST_WORD), spelled))


def _without_middle(text: str, most: int = _LONGEST_TEXT) -> str:
    if len(text) <= most:
        return text
    kept = most // 4
    return f"{text[:kept]} … {len(text) - 2 * kept} characters … {text[-kept:]}"


def duration(seconds: float) -> str:
    """A time span for people, such as "2 min 05 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def to_frame(rows: Iterable[Mapping[str, Any]], index: str) -> DataFrame:
    """A pandas table with one row for each mapping.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as cause:
        raise UsageError("this needs pandas, which is not installed", remedy="pip install pandas") from cause
    found = list(rows)
    return pd.DataFrame(found).set_index(index) if found else pd.DataFrame(index=pd.Index([], name=index))


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain HTML table, for notebooks: everything in it is text."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    title = escape(printable(caption))
    return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return "<td>–</td>"
    text = f"{value:.4g}" if isinstance(value, float) else printable(str(value))
    return f"<td>{escape(text)}</td>"
