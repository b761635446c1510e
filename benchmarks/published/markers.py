"""Text between markers of a page, written anew by a command."""

from __future__ import annotations

from pathlib import Path


def between(page: str, name: str, text: str) -> str:
    """The page with `text` between its markers of that name.

    Raises:
        ValueError: the page does not have both markers, once each and in order.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"the page needs {start} and {end}, once each and in this order")
    head, rest = page.split(start)
    return f"{head}{start}\n{text.strip()}\n{end}{rest.split(end)[1]}"


def write(path: Path, name: str, text: str) -> None:
    """Put text between the markers of a file."""
    path.write_text(between(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")
