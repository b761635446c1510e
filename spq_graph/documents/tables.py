"""Text that cannot act, and tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from spq_graph.terms.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame


def printable(text: str) -> str:
    """The text with control, direction-changing and unpaired characters spelled out, so that it cannot act."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
