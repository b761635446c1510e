"""What a file of text holds, by its content: plain text, JSON or JSON lines, in any Unicode encoding, gzip or not."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spq_graph.documents.content import content_of
from spq_graph.runtime.text.parquet import is_parquet, rows_of
from spq_graph.terms.errors import DataError

_JSON = (".json", ".jsonl", ".ndjson")
_MOST = 1 << 28  # bytes that a compressed file may hold
_GZIP = b"\x1f\x8b"
# The longer first: UTF-32's mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What begins so holds text in a form that no decoding brings out, or none at all.
_FORMS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh91AY&SY", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"ARROW1", "an Arrow file"),
    (b"\x93NUMPY", "an array of numpy"),
    (b"%PDF-", "a PDF"),
    (b"SQLite format 3\x00", "a database"),
)
_WANTED = (
    "A list of strings, or lines of objects with `text`, with `prompt` (and `completion` or `response`), or with "
    "`messages`."
)
Chat = Callable[[list[Any]], str]


def read_documents(path: Path, chat: Chat, *, templated: bool = False) -> str | list[str]:
    """One text, or documents that have nothing to do with each other.

    JSON is a list, or lines, of strings or of objects: `text`, else `prompt` with what `completion` or `response` adds,
    else `messages`; rows of Parquet are such objects. A file that is not called JSON and does not hold such is plain
    text, whatever it begins with.

    Args:
        path: the file.
        chat: renders messages, each with `role` and `content`.
        templated: whether a prompt and what answers it are messages as well: the model talks by a template.

    Raises:
        DataError: it cannot be read, is in no Unicode encoding, or is called JSON and holds something else.
    """
    if is_parquet(path):
        return [_document(item, number, path, chat, templated) for number, item in enumerate(rows_of(path))]
    text = read_text(path)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    called_json = bool(suffixes) and suffixes[-1] in _JSON
    if not called_json and not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return [_document(item, number, path, chat, templated) for number, item in enumerate(_items(text, path))]
    except DataError:
        if called_json or text.lstrip().startswith("{"):
            raise
        return text


def read_text(path: Path) -> str:
    """All of a file, in whatever Unicode encoding it is, gzip or not.

    Raises:
        DataError: it cannot be read, is in no Unicode encoding, or holds something else than text.
    """
    content = _content(path)
    form = next((name for begin, name in _FORMS if content.startswith(begin)), None)
    if form is not None:
        raise DataError(
            f"{form}, not text",
            where=str(path),
            remedy="Write what it holds as text, as JSON lines with `text`, or as ids: "
            "numpy.savez('IDS.npz', input_ids=IDS).",
        )
    return _decoded(content, path)


def _content(path: Path) -> bytes:
    try:
        content = content_of(path)
        if not content.startswith(_GZIP):
            return content
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            content = stream.read(_MOST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"a damaged gzip file: {error}", where=str(path), remedy="Copy or compress it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}",
            where=str(path),
            remedy="Check the spelling and the right to read it.",
        ) from error
    if len(content) > _MOST:
        raise DataError("more than 256 MiB of text in a gzip file", where=str(path), remedy="Pass a piece of it.")
    return content


def _decoded(content: bytes, path: Path) -> str:
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", None))
    encoding = encoding or _unmarked(content)
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not {encoding.upper()}: byte 0x{error.object[error.start]:02x} at offset {len(mark) + error.start}",
            where=str(path),
            remedy="Convert it to UTF-8: in Latin-1 it would be iconv -f LATIN1 -t UTF-8.",
        ) from error


def _unmarked(content: bytes) -> str:
    """UTF-16 without a mark has a zero in every second byte of what is mostly Latin; text in UTF-8 has none."""
    sample = content[:4096]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = sample[first::2]
        if len(zeros) > 1 and zeros.count(0) > 0.7 * len(zeros) and 0 not in sample[1 - first :: 2]:
            return encoding
    return "utf-8"


def _items(text: str, path: Path) -> list[Any]:
    """The list in a file, or what stands on its lines."""
    try:
        content = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as whole:
        items: list[Any] = []
        for number, line in enumerate(text.split("\n"), 1):
            try:
                items += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                # Of the two readings the one that came further tells more.
                lines = bool(items) or text.lstrip().startswith("{")
                said = f" in line {number}: {getattr(error, 'msg', error)}" if lines else f": {whole}"
                raise DataError(f"not valid JSON{said}", where=str(path), remedy=_WANTED) from error
        return items
    return content if isinstance(content, list) else [content]


def _document(item: Any, number: int, path: Path, chat: Chat, templated: bool) -> str:
    """The text in one item of a file."""
    if isinstance(item, Mapping) and _has_no_user(item):
        raise DataError(
            f"the conversation of document {number} has no turn of a user",
            where=str(path),
            remedy="Write what was asked as a message whose `role` is user, or the texts under `text`.",
        )
    text = item if isinstance(item, str) else _text_in(item, chat, templated) if isinstance(item, Mapping) else None
    if text is None:
        what = f"an object with {', '.join(sorted(map(str, item)))}" if isinstance(item, Mapping) else repr(item)[:40]
        raise DataError(f"document {number} is {what}: no text", where=str(path), remedy=_WANTED)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"document {number} holds half a surrogate pair",
            where=str(path),
            remedy="Write the whole character, or leave it out.",
        ) from error
    return text


def _has_no_user(item: Mapping[str, Any]) -> bool:
    messages = item.get("messages")
    if isinstance(item.get("text"), str) or not isinstance(messages, list) or _answer(item) is not None:
        return False
    turns = [one for one in messages if isinstance(one, Mapping)]
    return bool(turns) and all(one.get("role") != "user" for one in turns)


def _answer(item: Mapping[str, Any]) -> str | None:
    """What answers a prompt in a key of its own."""
    given = (item.get(name) for name in ("completion", "response"))
    return next((one for one in given if isinstance(one, str)), None) if isinstance(item.get("prompt"), str) else None


def _text_in(item: Mapping[str, Any], chat: Chat, templated: bool) -> str | None:
    """The text of an object; of one with a prompt alone and a conversation, which begins with it, the conversation."""
    if isinstance(text := item.get("text"), str):
        return text
    prompt, added, messages = item.get("prompt"), _answer(item), item.get("messages")
    if added is not None:
        if templated:
            return chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": added}])
        return f"{prompt}{added}"
    if isinstance(messages, list) and messages and all(isinstance(one, Mapping) for one in messages):
        return chat(messages)
    return prompt if isinstance(prompt, str) else None
