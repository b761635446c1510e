"""Data sets by name: what a name means, and the file that its rows are kept in.

`wikitext-2`, `ultrachat:2000`: a name of `KNOWN`, then a split and how many rows, in any order, where they are asked
for. `hf://datasets/ORG/NAME[@REVISION][/CONFIG][:SPLIT][:ROWS][#COLUMN]` is any set of the Hub. Rows become a file of
JSON lines, or of text, below the user's cache, so that they are read like any other file, and fetched once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from spq_graph.documents.json_text import json_text
from spq_graph.documents.staging import written
from spq_graph.runtime.text.hub_data import from_cache_alone, is_absent, why_unreachable
from spq_graph.runtime.text.parquet import COLUMNS, OWN
from spq_graph.terms.errors import DataError, OutputError, SpqError, UsageError

_MOST: Final = 1 << 26  # characters of a set
_PART: Final = r"[\w.-]+"
# Of a path, which a program may give, the second slash is gone.
_ADDRESS: Final = re.compile(
    rf"hf:/{{1,2}}datasets/({_PART}/{_PART}?)(?:@({_PART}))?(?:/({_PART}))?((?::{_PART})*)(#.+)?"
)
_SHORT: Final = re.compile(rf"([\w-]+?)((?::{_PART})*)")


@dataclass(frozen=True, slots=True)
class NamedSet:
    """Rows of a data set of the Hub.

    Attributes:
        repository: organization and name.
        config: which of its configurations; None where it has one.
        split: None for `train`.
        judged: the split that a model is judged by where none is asked for; None for `train`.
        rows: how many, the first ones; None for up to 64 MiB of text.
        column: what holds the text, or the messages; None for `text`, `messages`, or `prompt` and what answers it.
        revision: a commit, a branch or a tag; None for the newest.
        joined: whether rows are lines of one text, parted by an empty line.
    """

    repository: str
    config: str | None = None
    split: str | None = None
    judged: str | None = None
    rows: int | None = None
    column: str | None = None
    revision: str | None = None
    joined: bool = False

    @classmethod
    def of(cls, name: str) -> NamedSet | None:
        """What somebody typed as a name; None where it is none."""
        if (address := _ADDRESS.fullmatch(name)) is not None:
            repository, revision, config, more, column = address.groups()
            found = cls(repository, config, revision=revision, column=column[1:] if column else None)
        elif (short := _SHORT.fullmatch(name)) is not None and (key := _plain(short[1])) in KNOWN:
            found, more = KNOWN[key], short[2]
        else:
            return None
        for part in filter(None, more.split(":")):
            found = replace(found, rows=int(part)) if part.isdecimal() else replace(found, split=part)
        return found

    def for_judging(self) -> NamedSet:
        """The same, of the split that a model is judged by where none was asked for."""
        return replace(self, split=self.split or self.judged)

    @property
    def file(self) -> Path:
        """Where its rows are kept."""
        parts = [self.repository.replace("/", "--"), self.config, self.split or "train", self.column, self.revision]
        words = [re.sub(r"[^\w.-]", "_", part) for part in parts if part] + [str(self.rows)] * (self.rows is not None)
        return cache() / ("-".join(words) + (".txt" if self.joined else ".jsonl"))


KNOWN: Final[Mapping[str, NamedSet]] = MappingProxyType(
    {
        "wikitext2": NamedSet("Salesforce/wikitext", "wikitext-2-raw-v1", judged="test", joined=True),
        "wikitext103": NamedSet("Salesforce/wikitext", "wikitext-103-raw-v1", judged="test", joined=True),
        "c4": NamedSet("allenai/c4", "en", judged="validation"),
        "pile10k": NamedSet("NeelNanda/pile-10k"),
        "ultrachat": NamedSet("HuggingFaceH4/ultrachat_200k", split="train_sft"),
    }
)
NAMES: Final = ("wikitext-2", "wikitext-103", "c4", "pile-10k", "ultrachat")


def cache() -> Path:
    """The folder that rows of named sets are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spq-graph" / "sets"


def nearest(name: str) -> str | None:
    """The known name that one resembles, for what is no file either; None where there is none."""
    near = get_close_matches(name.partition(":")[0], NAMES, n=1, cutoff=0.7)
    return near[0] if near else None


def fetched(named: NamedSet, asked: str) -> Path:
    """The file with the rows of a set: kept from before, else from the cache of `datasets`, else from the Hub.

    Args:
        named: the set.
        asked: as somebody typed it.

    Raises:
        UsageError: `datasets` is not installed.
        DataError: the set is neither here nor to be had, has no such configuration or split, or no column that holds
            text.
        OutputError: the cache cannot be written.
    """
    if named.file.is_file():
        return named.file
    if find_spec("datasets") is None:
        raise UsageError(
            "a data set by name, and `datasets`, which fetches it, is not installed",
            where=asked,
            remedy="pip install 'spq-graph[data]', or pass a file",
        )
    try:
        content = _content(named, _rows(named, asked), asked)
    except (SpqError, MemoryError):
        raise
    except Exception as error:  # those of `datasets`, and of whatever client of HTTP is below it
        raise _refused(asked, error) from error
    try:
        named.file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the cache cannot be written: {error.strerror or error}",
            where=str(named.file.parent),
            remedy="set XDG_CACHE_HOME to a folder that can",
        ) from error
    written({named.file: content})
    return named.file


def _rows(named: NamedSet, asked: str) -> Iterable[Mapping[str, Any]]:
    """The set, from the cache of `datasets` or as a stream from the Hub, of which only what is read is fetched."""
    from datasets import load_dataset

    given = {"path": named.repository, "name": named.config, "split": named.split or "train"}
    given |= {"revision": named.revision} if named.revision else {}
    try:
        with from_cache_alone():
            found: Iterable[Mapping[str, Any]] = load_dataset(**given)
        return found
    except (ConnectionError, ValueError) as error:
        if not is_absent(error):
            raise
        why = why_unreachable()
        if why is not None:
            raise DataError(
                f"{named.repository} is not in the cache of `datasets`, and the Hub cannot be reached: {why}",
                where=asked,
                remedy=f"run it once where there is a network and bring {named.file}, or pass a file of your own",
            ) from error
    streamed: Iterable[Mapping[str, Any]] = load_dataset(**given, streaming=True)
    return streamed


def _content(named: NamedSet, rows: Iterable[Mapping[str, Any]], asked: str) -> bytes:
    """The file's content: so many rows, in the columns that files of data have."""
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        raise DataError("the split has no rows", where=asked, remedy="name another split: NAME:SPLIT")
    _require_column(named, first, asked)
    texts: list[str] = []
    size = 0
    for row in islice(chain([first], stream), named.rows):
        kept = _kept(named, row, asked)
        texts.append(kept["text"] if named.joined else json_text(kept, asked, indent=None))
        size += len(texts[-1])
        if size > _MOST:
            break
    return ("\n\n" if named.joined else "\n").join(texts).encode()


def _require_column(named: NamedSet, row: Mapping[str, Any], asked: str) -> None:
    if not any(name in row for name in ([named.column] if named.column else OWN)):
        wanted = f"`{named.column}`" if named.column else "`text`, `prompt` or `messages`"
        raise DataError(
            f"the set has no column {wanted}: its columns are {', '.join(row)}",
            where=asked,
            remedy="name one of these that holds text or messages: hf://datasets/ORG/NAME#COLUMN",
        )


def _kept(named: NamedSet, row: Mapping[str, Any], asked: str) -> dict[str, Any]:
    if named.column is None:
        return {name: row[name] for name in COLUMNS if row.get(name) is not None}
    value = row[named.column]
    if not isinstance(value, str | list):
        raise DataError(
            f"the column `{named.column}` holds {type(value).__name__}, neither text nor messages",
            where=asked,
            remedy=f"name another of its columns: {', '.join(row)}",
        )
    return {"text" if isinstance(value, str) else "messages": value}


def _refused(asked: str, error: Exception) -> DataError:
    """What `datasets` says of a configuration, a split or a set that is not there: it lists those that are."""
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return DataError(
        f"the set cannot be read: {said}",
        where=asked,
        remedy="name what there is: hf://datasets/ORG/NAME/CONFIG:SPLIT; a gated set wants `hf auth login`",
    )


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()
