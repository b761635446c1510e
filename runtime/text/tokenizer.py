"""The tokenizer of a model folder, read from its tokenizer.json and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from spq_graph.documents.parsed import parse_json
from spq_graph.terms.errors import SourceError, SpqError, UsageError

_LEGACY = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "vocab.bpe")
_CHUNK = 32_768  # characters encoded at once
_GROUP = 16  # chunks in flight: bounds memory, feeds every core
_MOST_IDS = 1 << 31
_CONTEXT = 64  # characters on either side of a cut that have to agree


class TextTokenizer:
    """Text to token ids and back.

    Args:
        tokenizer: what does the work; its truncation and padding are switched off.
        bos_id: the beginning-of-sequence token, where one is known. A tokenizer that prepends exactly one token is
            taken to prepend that.
        eos_id: the end-of-sequence token, where one is known.
        folder: where it was read, with the chat template; None where it was made.

    Attributes:
        prefix: the ids this tokenizer prepends to a text, as its tokenizer.json says. What it appends is not kept.
        bos_id: the beginning-of-sequence token, prepended or not; None where the folder names none.
        eos_id: the end-of-sequence token; None where the folder names none.
        unknown_id: what stands for a character that the vocabulary lacks; None where every one can be told.
        vocab_size: number of ids, added tokens included.
        folder: where it was read.
    """

    def __init__(
        self, tokenizer: Tokenizer, bos_id: int | None = None, eos_id: int | None = None, folder: Path | None = None
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.prefix = _prepended(tokenizer)
        self.bos_id = self.prefix[0] if bos_id is None and len(self.prefix) == 1 else bos_id
        self.eos_id = eos_id
        unknown: str | None = getattr(tokenizer.model, "unk_token", "<unk>")
        self.unknown_id: int | None = tokenizer.token_to_id(unknown) if unknown is not None else None
        self.folder = folder
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Read the tokenizer of a Hugging Face folder.

        Raises:
            SourceError: no tokenizer.json, or a file beside it that cannot be read.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise _missing(folder)
        with _sound(path):
            tokenizer = Tokenizer.from_file(str(path))
        bos, eos = (_special_id(folder, tokenizer, which) for which in ("bos", "eos"))
        with _sound(path):
            return cls(tokenizer, bos, eos, folder)

    def prepended(self, bos: bool) -> list[int]:
        """What a sequence starts with: the prefix of the tokenizer, with BOS first where `bos` asks for it.

        Raises:
            UsageError: BOS is asked for and the tokenizer has none.
        """
        if not bos or (self.bos_id is not None and self.bos_id in self.prefix):
            return list(self.prefix)
        if self.bos_id is None:
            raise UsageError("this tokenizer names no beginning-of-sequence token", remedy="Leave out --bos.")
        return [self.bos_id, *self.prefix]

    def unknown_among(self, ids: npt.NDArray[np.int64]) -> int:
        """How many of these tokens, int64 [...], stand for a character that the vocabulary lacks."""
        return int((ids == self.unknown_id).sum()) if self.unknown_id is not None else 0

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; with `special`, what the tokenizer prepends goes first."""
        ids = chain.from_iterable(self.pieces(text))
        return [*self.prefix, *ids] if special else list(ids)

    def pieces(self, text: str) -> Iterator[list[int]]:
        """Yield the ids of a text bit by bit: together what encoding the whole gives, in less memory and on all cores.

        A text is cut only at line ends where the tokens on both sides are those of the uncut text.
        """
        chunks = self._chunks(text)
        while group := list(islice(chunks, _GROUP)):
            with _sound(self.folder):
                encodings = self._tokenizer.encode_batch_fast([chunk for chunk, _ in group], add_special_tokens=False)
            for encoding, (_, context) in zip(encodings, group, strict=True):
                yield encoding.ids[context:]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of token ids; special tokens are shown only with `special`."""
        with _sound(self.folder):
            return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special)

    def token_text(self, token: int) -> str:
        """One token for people: its text, or its name in the vocabulary where it has no text of its own."""
        text = self.decode([token], special=True)
        if text and "\ufffd" not in text:  # blanks too: who shows them puts them in quotes
            return text
        return self._tokenizer.id_to_token(int(token)) or f"#{token}"

    def _chunks(self, text: str) -> Iterator[tuple[str, int]]:
        """Yield stretches of text, each led by some context, with the number of tokens that context makes.

        The context keeps a tokenizer that treats the start of a text specially (a prepended space, stripping) from
        doing so at every cut.
        """
        start, context, known = 0, 0, 0
        while start < len(text):
            end, context_next, known_next = self._cut(text, start + _CHUNK)
            yield text[start - context : end], known
            start, context, known = end, context_next, known_next

    def _cut(self, text: str, position: int) -> tuple[int, int, int]:
        """First clean cut after a position, with the characters and tokens of its context; the text's end if none."""
        while at := text.find("\n", position) + 1:
            context, following = text[max(at - _CONTEXT, 0) : at], text[at : at + _CONTEXT]
            if context.strip() and following.strip():  # a run of blank lines may be one token
                known = self._raw(context)
                if self._raw(context + following)[: len(known)] == known:
                    return at, len(context), len(known)
            position = at
        return len(text), 0, 0

    def _raw(self, text: str) -> list[int]:
        with _sound(self.folder):
            return self._tokenizer.encode(text, add_special_tokens=False).ids


@contextmanager
def _sound(path: Path | None) -> Iterator[None]:
    """Turn what the library raises into a SourceError; where its own code is at fault, that is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, SpqError):
        raise
    except BaseException as error:
        raise SourceError(
            f"not a tokenizer that can be used: {error}", where=str(path or ""), remedy="Fetch the file again."
        ) from error


def _prepended(tokenizer: Tokenizer) -> list[int]:
    """Ids before the text's own, found by encoding a text with and without them."""
    for probe in ("a", "the", " ", ""):
        plain = tokenizer.encode(probe, add_special_tokens=False).ids
        full = tokenizer.encode(probe, add_special_tokens=True).ids
        if plain:
            starts = range(len(full) - len(plain) + 1)
            return next((full[:i] for i in starts if full[i : i + len(plain)] == plain), [])
    return []


def _missing(folder: Path) -> SourceError:
    if not folder.is_dir():
        return SourceError("there is no such folder", where=str(folder), remedy="Give the folder with tokenizer.json.")
    if legacy := [name for name in _LEGACY if (folder / name).is_file()]:
        return SourceError(
            f"no tokenizer.json, only {', '.join(legacy)}",
            where=str(folder),
            remedy="Convert it once with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW), "
            "then pass --tokenizer NEW.",
        )
    return SourceError(
        "no tokenizer.json in this folder", where=str(folder), remedy="Pass --tokenizer DIR, the folder that has one."
    )


def _special_id(folder: Path, tokenizer: Tokenizer, which: str) -> int | None:
    """BOS or EOS as the folder's files name it: by its text first, by its number in the model's config last."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(folder / name).get(f"{which}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and (known := tokenizer.token_to_id(text)) is not None:
            return known
    number = read_json(folder / "config.json").get(f"{which}_token_id")
    return number if isinstance(number, int) and 0 <= number < _MOST_IDS else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where the file is absent.

    Raises:
        SourceError: it cannot be read as one.
    """
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"not valid JSON: {error}", where=str(path), remedy="Fetch the file again.") from error
    if not isinstance(content, dict):
        raise SourceError("not a JSON object", where=str(path), remedy="Fetch the file again.")
    return content
