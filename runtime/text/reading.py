"""What calibration and evaluation run on, read from text, JSON lists or arrays of ids and cut into rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spq_graph.documents.content import refuse_special
from spq_graph.runtime.text.chat import has_template, render
from spq_graph.runtime.text.documents import read_documents
from spq_graph.runtime.text.sequences import Ids, Sequences, cut, padded_behind
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import DataError, UsageError

_MOST_BYTES = 128 << 20  # of an array: 16 million ids
__all__ = ["Sequences", "TextTokenizer", "load_sequences", "windows"]


def windows(
    tokenizer: TextTokenizer,
    text: str | Sequence[str],
    *,
    window: int,
    bos: bool,
    origin: str = "",
    min_windows: int = 1,
    max_tokens: int | None = None,
) -> Sequences:
    """Cut a text, or several that have nothing to do with each other, into rows of at most `window` tokens.

    The last row of a text is shorter and padded on the right.

    Args:
        tokenizer: makes the tokens and says what goes before them.
        text: one text, or a list of documents: no row crosses from one to the next.
        window: tokens in a full row, prepended ones included.
        bos: prepend BOS even where the tokenizer does not.
        origin: where the text comes from, named in errors.
        min_windows: how many full windows the text has to fill; 0 takes anything with a token to predict.
        max_tokens: as `take(max_tokens)` afterwards, but the rest of the text is not even tokenized.

    Raises:
        DataError: the text is empty or too short.
        UsageError: `window` leaves no room for text, or BOS is asked for and not known.
    """
    documents = [text] if isinstance(text, str) else text
    if not any(document.strip() for document in documents):
        raise DataError("the text is empty", where=origin, remedy="Give a UTF-8 text with some pages of prose.")
    prefix = tokenizer.prepended(bos)
    # Enough for the asked tokens, the check of min_windows, and a last row that is not cut short.
    enough = None if max_tokens is None else max(max_tokens, min_windows * window) + window
    encoded = _encode(tokenizer, documents, enough)
    sequences = cut(encoded, prefix, window=window, origin=origin, min_windows=min_windows)
    return sequences if max_tokens is None else sequences.take(max_tokens)


def load_sequences(
    path: Path,
    tokenizer: TextTokenizer | None,
    *,
    window: int,
    bos: bool,
    vocab_size: int | None,
    min_windows: int = 1,
    max_tokens: int | None = None,
) -> Sequences:
    """Read what to calibrate or evaluate on.

    `.npz`: `input_ids`, int [n, length] or [length] (a lone array may have any name), `attention_mask` beside it if
    some of it is padding. Rows are taken as they are, those longer than `window` are cut. Anything else: text, or
    documents in JSON, as `read_documents` has it.

    Args:
        path: the file.
        tokenizer: needed for text; for ids it says which one is BOS.
        window: tokens in a full row.
        bos: prepend BOS even where the tokenizer does not. Ids must have it already.
        vocab_size: the model's; ids are checked against it where it is known.
        min_windows: full windows that text has to fill, or rows that an `.npz` has to hold.
        max_tokens: keep the first whole rows of so many tokens.

    Raises:
        SourceError: an `.npz` that is a pipe or a device.
        DataError: unreadable, empty, too short, in no Unicode encoding, or ids outside the vocabulary.
        UsageError: text without a tokenizer; BOS asked for where there is none.
    """
    if path.suffix == ".npz":
        ids, mask = padded_behind(*_read_npz(path))
        _check_vocabulary(ids, mask, vocab_size, path)
        sequences = _from_ids(ids, mask, tokenizer, window=window, bos=bos, path=path)
        if len(sequences) < min_windows:
            raise DataError(
                f"{len(sequences)} rows where {min_windows} are needed", where=str(path), remedy="Save more rows."
            )
        return sequences if max_tokens is None else sequences.take(max_tokens)
    if tokenizer is None:
        raise UsageError("text needs a tokenizer", where=str(path), remedy="Pass --tokenizer DIR, or ids as .npz.")
    folder, led = tokenizer.folder, tokenizer.bos_id in tokenizer.prepended(bos)
    text = read_documents(path, partial(render, folder=folder, led=led), templated=has_template(folder))
    sequences = windows(
        tokenizer, text, window=window, bos=bos, origin=str(path), min_windows=min_windows, max_tokens=max_tokens
    )
    _check_vocabulary(sequences.ids, sequences.mask, vocab_size, path)
    return sequences


def check_readable(path: Path, folder: Path | None = None) -> None:
    """Check that a file holds texts or ids, without making tokens of them.

    Args:
        path: the file.
        folder: of the tokenizer, whose chat template is to take every conversation; None where it is not known yet.

    Raises:
        DataError: as `load_sequences`, for what does not depend on the model.
    """
    if path.suffix == ".npz":
        _read_npz(path)
    else:
        chat = partial(render, folder=folder) if folder is not None else lambda messages: ""
        read_documents(path, chat, templated=has_template(folder))


def _encode(tokenizer: TextTokenizer, documents: Iterable[str], enough: int | None) -> list[Ids]:
    """Ids of each document, until there are enough."""
    encoded: list[Ids] = []
    total = 0
    for document in documents:
        pieces: list[list[int]] = []
        for piece in tokenizer.pieces(document):
            pieces.append(piece)
            total += len(piece)
            if enough is not None and total >= enough:
                break
        encoded.append(np.fromiter(chain.from_iterable(pieces), dtype=np.int64))
        if enough is not None and total >= enough:
            break
    return encoded


def _from_ids(ids: Ids, mask: Ids, tokenizer: TextTokenizer | None, *, window: int, bos: bool, path: Path) -> Sequences:
    begin = tokenizer.bos_id if tokenizer is not None else None
    led = begin is not None and bool((ids[:, 0] == begin).all())
    if bos and not led:
        raise UsageError(
            "--bos does nothing to ids, and not every row is known to start with BOS",
            where=str(path),
            remedy="Put BOS into the file, or leave out --bos.",
        )
    if ids.shape[1] <= window:
        return Sequences(np.where(mask == 1, ids, 0), mask, prefix=int(led), origin=str(path))
    documents = [row[keep == 1][int(led) :] for row, keep in zip(ids, mask, strict=True)]
    return cut(documents, ids[0, : int(led)].tolist(), window=window, origin=str(path))


def _read_npz(path: Path) -> tuple[Ids, Ids]:
    name, arrays = _arrays_in(path)
    ids = arrays[name]
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (1, 2):
        raise DataError(
            f"{name} is {ids.dtype} {list(ids.shape)}", where=str(path), remedy="Ids are integers, [n, length]."
        )
    mask = arrays.get("attention_mask", np.ones_like(ids))
    if mask.shape != ids.shape or not ((mask == 0) | (mask == 1)).all():
        raise DataError(
            f"attention_mask must be 0 or 1 and {list(ids.shape)} like {name}",
            where=str(path),
            remedy="Save a mask like that, or none where nothing is padding.",
        )
    ids, mask = np.atleast_2d(ids).astype(np.int64), np.atleast_2d(mask).astype(np.int64)
    if not (mask[:, :-1] & mask[:, 1:]).any():
        raise DataError("no row holds two tokens", where=str(path), remedy="Save rows of a few hundred ids.")
    return ids, mask


def _arrays_in(path: Path) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """The name of the ids in an archive, and the arrays that are asked for; no more is unpacked."""
    refuse_special(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            others = sorted(name for name in archive.files if name != "attention_mask")
            name = "input_ids" if "input_ids" in others else others[0] if len(others) == 1 else None
            if name is None:
                raise DataError(f"no input_ids among {others}", where=str(path), remedy="Name the array input_ids.")
            wanted = [name, *({"attention_mask"} & set(archive.files))]
            for member in archive.zip.infolist():
                if member.filename.removesuffix(".npy") in wanted and member.file_size > _MOST_BYTES:
                    raise DataError(
                        f"{member.filename} unpacks to {member.file_size >> 20} MiB, more than {_MOST_BYTES >> 20}",
                        where=str(path),
                        remedy="Save fewer rows.",
                    )
            return name, {wish: archive[wish] for wish in wanted}
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen kinds for headers and members that are none
        raise DataError(
            f"not a readable .npz: {error}", where=str(path), remedy="numpy.savez(FILE, input_ids=IDS) makes one."
        ) from error


def _check_vocabulary(ids: Ids, mask: Ids, vocab_size: int | None, path: Path) -> None:
    outside = (ids < 0) | (ids >= (np.iinfo(np.int64).max if vocab_size is None else vocab_size))
    rows, columns = np.nonzero(outside & (mask == 1))
    if rows.size:
        known = "" if vocab_size is None else f" of {vocab_size}"
        raise DataError(
            f"token id {ids[rows[0], columns[0]]} in row {rows[0]} is outside the vocabulary{known}",
            where=str(path),
            remedy="Use the tokenizer that belongs to the model.",
        )
