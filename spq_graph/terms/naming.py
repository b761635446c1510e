"""How sites are named by people: keys, ends of keys, and globs."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase


def matches(pattern: str, *names: str) -> bool:
    """Whether a glob, the plain name, or the end of one from a dot on, fits one of the names."""
    return any(pattern == name or name.endswith(f".{pattern}") or fnmatchcase(name, pattern) for name in names)


def nearest(pattern: str, names: Iterable[str]) -> str | None:
    """The name, or the end of one, that somebody may have meant by what fits none; None where none is like it."""
    known = list(dict.fromkeys(end for name in names for end in (name, name.rpartition(".")[2])))
    return next(iter(get_close_matches(pattern, known, n=1, cutoff=0.75)), None)
