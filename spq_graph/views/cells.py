"""What tables in the terminal have in common: how they look, and their cells.

Names come from models and tokens from tokenizers: they are set as `Text`, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from spq_graph.documents.plan import Evidence, Reason
from spq_graph.views import words

_REASON_STYLES: dict[str, str] = {Reason.SPIKE: "bold red", Reason.OVERRIDE: "magenta", Reason.UNSUPPORTED: "yellow"}
_PROSE = ("role", "as", "reason", "token", "A", "B", "")
_FOLDED = ("reason", "")
_TOKEN_WIDTH = 10


def table(first: str, *columns: str, title: str | None = None) -> Table:
    """A table without rows: names in its first column, then prose to the left and figures to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    made.add_column(Text(first), overflow="fold")
    for column in columns:
        prose, folded = column in _PROSE, column in _FOLDED
        made.add_column(Text(column), justify="left" if prose else "right", overflow="fold", no_wrap=not folded)
    return made


def spikes(
    first: str,
    entries: Iterable[tuple[str, Evidence, Sequence[str | Text]]],
    beside: Sequence[str] = (),
    title: str | None = None,
) -> Table:
    """What spikes at the inputs of sites, one a row.

    Args:
        first: what stands above their names.
        entries: the key of each, what was measured, and cells for the columns beside it.
        beside: those columns.
        title: of the table.
    """
    made = table(first, "ratio", "max", "median", "token", "pos", *beside, title=title)
    for key, seen, cells in entries:
        made.add_row(
            name(key),
            words.number(seen.ratio),
            words.number(seen.max),
            words.number(seen.median),
            Text(words.clipped(words.token(seen), _TOKEN_WIDTH)),
            words.NOTHING if seen.position is None else str(seen.position),
            *cells,
        )
    return made


def name(text: str) -> Text:
    """A name of any length."""
    return Text(words.printable(text), overflow="fold")


def reason(value: str | None) -> Text:
    """Why a site has its precision, in a word or two."""
    return Text(words.printable(value or words.NOTHING).replace("_", " "), _REASON_STYLES.get(value or "", ""))
