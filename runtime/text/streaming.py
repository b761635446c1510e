"""Text as its tokens arrive, never half a character, and never a part of what it is to stop at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spq_graph.runtime.text.tokenizer import TextTokenizer

# A tokenizer may write a token differently at the start of a text: so many tokens before a new one are decoded with it.
_CONTEXT = 6
_INCOMPLETE = "\ufffd"  # what decoding makes of bytes that are no whole character


class TextStream:
    """The text that follows a prompt, token by token.

    Args:
        tokenizer: decodes.
        prompt: the ids before the first token.
        stops: texts that end it; neither they nor what follows is given out.

    Attributes:
        text: everything that was given out.
        stopped: whether one of `stops` was met.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids = list(prompt)[-_CONTEXT:]
        self._start, self._read = 0, len(self._ids)
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now, which may be empty."""
        self._ids.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith(_INCOMPLETE):
            return ""
        self._start, self._read = max(self._read - _CONTEXT, 0), len(self._ids)
        return self._give(fresh)

    def finish(self) -> str:
        """What is still held back, at the end."""
        rest = "" if self.stopped else self._give(self._fresh())
        if self.stopped:
            return rest
        self.text += self._held
        rest, self._held = rest + self._held, ""
        return rest

    def _fresh(self) -> str:
        """Text of the tokens that were not given out, as it reads behind those before them."""
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]

    def _give(self, fresh: str) -> str:
        self._held += fresh
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._held) - self._begun()
        given, self._held = self._held[:end], "" if found else self._held[end:]
        self.text += given
        return given

    def _begun(self) -> int:
        """How many characters at the end of what is held may begin a text to stop at."""
        lengths = (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)


class InOrder:
    """Several texts that arrive together, written one after the other: each as it comes once those before it are whole.

    Args:
        write: takes what is to be shown.
        headings: what goes before each text.
    """

    def __init__(self, write: Callable[[str], None], headings: Sequence[str]) -> None:
        self._write = write
        self._waiting = list(headings)
        self._ended = [False] * len(headings)
        self._current = 0

    def add(self, index: int, text: str) -> None:
        """Take a piece of one text."""
        self._waiting[index] += text
        self._flush()

    def end(self, index: int) -> None:
        """One text is whole: a line ends it, and an empty one parts it from the next."""
        self._waiting[index] += "\n" if index == len(self._ended) - 1 else "\n\n"
        self._ended[index] = True
        self._flush()

    def _flush(self) -> None:
        while self._current < len(self._ended):
            if self._waiting[self._current]:
                self._write(self._waiting[self._current])
                self._waiting[self._current] = ""
            if not self._ended[self._current]:
                return
            self._current += 1
