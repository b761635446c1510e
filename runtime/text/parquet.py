"""The rows of a Parquet file, which most data sets of the Hugging Face Hub are kept in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spq_graph.terms.errors import DataError, UsageError

_MAGIC = b"PAR1"
COLUMNS = ("text", "prompt", "completion", "response", "messages")
OWN = ("text", "prompt", "messages")  # of these one says what a row holds
_MOST = 1 << 28  # bytes of these columns, unpacked


def is_parquet(path: Path) -> bool:
    """Whether a file begins as one does; what is no file is not opened, for opening a pipe waits for who writes."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False  # which is said where it is read


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """What stands in the columns `text`, `prompt`, `completion`, `response` and `messages`, row by row.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: it cannot be read, has none of these columns, or they hold more than 256 MiB.
    """
    if find_spec("pyarrow") is None:
        raise UsageError(
            "a Parquet file, and pyarrow, which reads it, is not installed",
            where=str(path),
            remedy="pip install 'spq-graph[data]', or write its rows as JSON lines with `text`",
        )
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        known = file.schema_arrow.names
        size = 0
        for batch in file.iter_batches(columns=[name for name in COLUMNS if name in known]) if _tells(known) else ():
            size += batch.nbytes
            if size > _MOST:
                raise DataError(
                    "more than 256 MiB of text in a Parquet file", where=str(path), remedy="Pass a piece of it."
                )
            yield from batch.to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"a damaged Parquet file: {str(error).partition(chr(10))[0]}",
            where=str(path),
            remedy="Fetch the file again.",
        ) from error
    if not _tells(known):
        raise DataError(
            f"no column `text`, `prompt` or `messages` among {', '.join(known)}",
            where=str(path),
            remedy="Name the column that is meant `text`, or write it as JSON lines with `text`.",
        )


def _tells(columns: list[str]) -> bool:
    return any(name in columns for name in OWN)
