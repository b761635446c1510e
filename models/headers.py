"""What a file of weights says of itself at its beginning."""

from __future__ import annotations

import struct
from pathlib import Path

from spq_graph.documents.parsed import parse_json
from spq_graph.models.leftover import refuse_quantized_names
from spq_graph.terms.errors import SourceError


def check_safetensors(file: Path) -> int:
    """How many tensors a file holds.

    Raises:
        SourceError: header and size do not agree, as an interrupted download or a full disk leaves them.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        try:
            header = parse_json(stream.read(min(length, size, 100_000_000)))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise SourceError(
                "truncated or not a safetensors file: its header cannot be read",
                where=str(file),
                remedy="Download or write the file again.",
            ) from error
    refuse_quantized_names(header, str(file))
    if 8 + length + end > size:
        raise SourceError(
            f"truncated: its header promises {8 + length + end} bytes, the file has {size}",
            where=str(file),
            remedy="Download or write the file again.",
        )
    return len(header.keys() - {"__metadata__"})
