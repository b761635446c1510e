"""The report's page as a reader of HTML takes it."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "br", "link", "img", "path", "use", "input"}
# Elements whose end HTML lets one leave out, and what ends them.
_ENDS = {"th": {"td", "th", "tr"}, "td": {"td", "th", "tr"}, "tr": {"tr"}, "option": {"option"}}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest, but for ends that HTML implies."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        while self.open and tag in _ENDS.get(self.open[-1], ()):
            self.open.pop()
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        while self.open[-1] != tag and self.open[-1] in _ENDS:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]
