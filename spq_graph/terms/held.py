"""How the weight of a head or an embedding lies in a file: what is stored once, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """The tensor behind a head or an embedding.

    Attributes:
        table: its name: a head and an embedding that are tied have one.
        size: bytes that it takes.
        coded: bytes that it takes in 8 bits by block, with the scales.
        by_others: whether anything reads it that is neither a head nor an embedding, so that it stays whatever becomes
            of these.
    """

    table: str
    size: int
    coded: int
    by_others: bool = False
